//! Queries over all shards.

use std::collections::BTreeSet;

use orchestrator_service::{
    transport::Outgoing,
    wire::{
        proto::{Code, Mode, QueryReply},
        subject,
    },
};

use crate::{
    support::messages::*,
    testbed::{Caller, LIMIT, Testbed, eventually, say, say_subscription},
};

on_both_transports! {
    a_state_is_that_of_the_stream_asked_for,
    pages_of_streams_go_over_all_shards_and_miss_none,
    a_page_is_of_a_hundred_unless_it_says_otherwise,
    stats_of_the_whole_are_the_sum_of_the_shards,
    a_query_without_a_reply_subject_harms_nobody,
    a_subject_of_nobody_is_left_alone,
}

async fn a_state_is_that_of_the_stream_asked_for(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    for id in ["one", "two", "three"] {
        caller.done(start(id, long_config())).await;
    }
    caller.subscription(register("two", "viewer")).await;

    for (id, mode) in [("one", Mode::Idle), ("two", Mode::Running), ("three", Mode::Idle)] {
        let state = caller.state(id).await;
        assert_eq!((&*state.stream_id, state.mode()), (id, mode));
    }
    let QueryReply { code, message, state, .. } = caller.query(get_state("four")).await;
    assert_eq!((code, state.len()), (Code::StreamNotFound as i32, 0));
    assert!(message.contains("\"four\""), "{message}");
    assert_eq!(caller.query(get_stats("four")).await.code(), Code::StreamNotFound);
}

/// Creates 250 streams.
async fn create_many(caller: &Caller) -> BTreeSet<String> {
    let ids: BTreeSet<String> = (0..250).map(|number| format!("show-{number}")).collect();
    caller.tell(ids.iter().map(|id| say(start(id, long_config())))).await;
    assert_eq!(caller.stats("").await.streams, 250);
    ids
}

/// All pages of at most `limit`, each as a list of ids.
async fn pages(caller: &Caller, limit: u32) -> Vec<Vec<String>> {
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = caller.query(list(limit, &cursor)).await;
        assert_eq!((page.code(), &*page.message), (Code::Ok, ""));
        pages.push(page.state.into_iter().map(|state| state.stream_id).collect());
        assert!(pages.len() <= 300, "the pages have an end");
        cursor = page.cursor;
        if cursor.is_empty() {
            return pages;
        }
    }
}

async fn pages_of_streams_go_over_all_shards_and_miss_none(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    assert_eq!(pages(&caller, 10).await.concat(), [""; 0], "none at first");
    let ids = create_many(&caller).await;

    for limit in [1, 7, 83, 249, 250, 251, 1_000] {
        let pages = pages(&caller, limit).await;
        assert!(pages.iter().all(|page| page.len() <= limit as usize), "{limit}");
        let seen = pages.concat();
        assert_eq!(seen.len(), 250, "{limit}: each once");
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), ids, "{limit}");
    }
}

async fn a_page_is_of_a_hundred_unless_it_says_otherwise(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    create_many(&caller).await;

    assert_eq!(caller.query(list(0, "")).await.state.len(), 100);
    // Made up: behind the end of everything there is nothing more.
    let page = caller.query(list(10, "4294967295-4294967295")).await;
    assert_eq!((page.code(), page.state.len(), &*page.cursor), (Code::Ok, 0, ""));
}

async fn stats_of_the_whole_are_the_sum_of_the_shards(world: Testbed) {
    let (service, caller) = world.with_service().await;
    let ids = create_many(&caller).await;
    // One viewer with two sessions, and another, on every fifth stream.
    let watched: Vec<&String> = ids.iter().step_by(5).collect();
    for id in &watched {
        let sessions = [("a", 1), ("a", 2), ("b", 1)];
        caller.tell(sessions.map(|(client, session)| say_subscription(register_from(id, client, "", session)))).await;
    }

    let stats = caller.stats("").await;
    assert_eq!((stats.total, stats.active, stats.stale, stats.unique_clients), (150, 150, 0, 100));
    assert_eq!((stats.streams, stats.running_streams), (250, 50));
    // A shard counts at the end of its turn, or before an answer of its own.
    eventually("the service counts the same", async || {
        let counts = service.counts();
        (counts.total, counts.unique, counts.streams, counts.running) == (150, 100, 250, 50)
    })
    .await;
    let one = caller.stats(watched[7]).await;
    assert_eq!((one.total, one.active, one.stale, one.unique_clients), (3, 3, 0, 2));
    assert_eq!((one.streams, one.running_streams), (1, 1));
}

async fn a_query_without_a_reply_subject_harms_nobody(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let query = |payload: &'static [u8]| Outgoing { subject: subject::QUERY.into(), payload: payload.into() };

    caller.tell([query(b""), query(&[0x12, 0x00]), query(&[0xff; 9])]).await;

    assert_eq!(caller.stats("").await.streams, 0);
}

/// It may belong to another program, whose answer is not to be forestalled.
async fn a_subject_of_nobody_is_left_alone(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let other = world.caller().await;
    let mut requests = other.listen("orchestrator.nothing").await;

    let asking = caller.transport.request("orchestrator.nothing", "for the other".into(), LIMIT);
    let answering = async {
        let request = tokio::time::timeout(LIMIT / 2, requests.next()).await.expect("the request").expect("open");
        // Behind whatever the service has to say to it.
        assert_eq!(other.stats("").await.streams, 0);
        let subject = request.reply.expect("a reply subject");
        other.tell([Outgoing { subject, payload: "from the other".into() }]).await;
    };
    let (answer, ()) = tokio::join!(asking, answering);

    assert_eq!(&*answer.expect("an answer").payload, b"from the other");
}
