//! Brokers that take smaller messages than they do by default.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use orchestrator_service::{
    engine::partition,
    service::ServiceSettings,
    shard::publish_queue::PublishTo,
    transport::{Message, Subscription},
    wire::proto::{Cause, Code, Mode, OrchestratorConfig, QueryReply, StateUpdate, UpdateBatch},
};
use prost::Message as _;

use crate::{
    support::messages::*,
    testbed::{Caller, LIMIT, Testbed, eventually, say, say_subscription, settings, within_limit},
};

const STREAMS: usize = 200;

/// Ids of one partition, so that one feed carries all of them.
fn ids_of_one_partition(count: usize) -> Vec<String> {
    let ids = (0..).map(|number| format!("a-show-with-a-name-of-usual-length-{number}"));
    ids.filter(|id| partition(id) == 7).take(count).collect()
}

/// Starts streams and watches them, all at once: what they tell comes together.
async fn watch_all(caller: &Caller, ids: &[String], config: OrchestratorConfig) {
    caller.tell(ids.iter().map(|id| say(start(id, config.clone())))).await;
    caller.tell(ids.iter().map(|id| say_subscription(register(id, "viewer")))).await;
}

fn updates_in(message: &Message) -> Vec<StateUpdate> {
    match message.subject.starts_with("orchestrator.feed.") {
        true => UpdateBatch::decode(message.payload.clone()).expect("a batch").update,
        false => vec![StateUpdate::decode(message.payload.clone()).expect("an update")],
    }
}

/// Reads until each stream has finished; gives the changes of each by sequence. No message is longer than `max_payload`.
async fn changes_until_finished(
    updates: &mut Subscription,
    ids: &[String],
    max_payload: usize,
) -> BTreeMap<String, BTreeMap<u64, (Cause, Mode)>> {
    let mut changes: BTreeMap<String, BTreeMap<u64, (Cause, Mode)>> = BTreeMap::new();
    let mut running: BTreeSet<&String> = ids.iter().collect();
    let deadline = Instant::now() + 3 * LIMIT;
    while !running.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let next = tokio::time::timeout(left, updates.next()).await;
        let message = next.unwrap_or_else(|_| panic!("{} of {} have not finished", running.len(), ids.len()));
        let message = message.expect("open");
        assert!(message.payload.len() <= max_payload, "{} bytes", message.payload.len());
        for update in updates_in(&message) {
            if update.mode() == Mode::Finished {
                running.remove(&update.stream_id);
            }
            if !update.is_replaceable() {
                let outline = (update.cause(), update.mode());
                changes.entry(update.stream_id).or_default().insert(update.sequence, outline);
            }
        }
    }
    changes
}

/// Created, begun, the second scene, the end.
fn assert_all_told(changes: &BTreeMap<String, BTreeMap<u64, (Cause, Mode)>>, ids: &[String]) {
    let expected = [
        (Cause::Command, Mode::Idle),
        (Cause::Lifecycle, Mode::Running),
        (Cause::Scene, Mode::Running),
        (Cause::Lifecycle, Mode::Finished),
    ];
    for id in ids {
        let told: Vec<(Cause, Mode)> = changes[id].values().copied().collect();
        assert_eq!(told, expected, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_of_200_streams_is_cut_to_the_16_kb_that_the_broker_takes() {
    const MAX_PAYLOAD: usize = 16_384;
    within_limit(async {
        let world = Testbed::nats_that_takes(MAX_PAYLOAD).await;
        let _service = world.service(ServiceSettings { publish_to: PublishTo::Feed, ..settings() }).await;
        let caller = world.caller().await;
        let mut feed = caller.listen("orchestrator.feed.7").await;
        let ids = ids_of_one_partition(STREAMS);
        watch_all(&caller, &ids, config(&[("One", 400), ("Two", 400)])).await;
        assert_all_told(&changes_until_finished(&mut feed, &ids, MAX_PAYLOAD).await, &ids);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_never_fits_into_600_bytes_holds_up_no_other() {
    const MAX_PAYLOAD: usize = 600;
    within_limit(async {
        let world = Testbed::nats_that_takes(MAX_PAYLOAD).await;
        let service = world.service(ServiceSettings { publish_to: PublishTo::Both, ..settings() }).await;
        let caller = world.caller().await;
        let mut feed = caller.listen("orchestrator.feed.7").await;

        // Ids, scene and timecode of full length are more than a message has room for.
        let longest = "x".repeat(128);
        let scene = "s".repeat(256);
        caller.tell([say(start(&longest, config(&[(&scene, LONG_MS)])))]).await;
        caller.tell([say_subscription(register(&longest, "viewer"))]).await;
        caller.tell([say(status(&longest, 0, &"t".repeat(256)))]).await;
        caller.tell((0..10).map(|position_ms| say(seek(&longest, position_ms)))).await;

        let ids = ids_of_one_partition(50);
        watch_all(&caller, &ids, config(&[("One", 400), ("Two", 400)])).await;
        assert_all_told(&changes_until_finished(&mut feed, &ids, MAX_PAYLOAD).await, &ids);
        assert!(service.ready().is_ok());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reconnect_to_a_broker_that_takes_less_nothing_is_lost() {
    const MAX_PAYLOAD: usize = 2_048;
    within_limit(async {
        let mut world = Testbed::nats().await;
        let service = world.service(ServiceSettings { publish_to: PublishTo::Feed, ..settings() }).await;
        let caller = world.caller().await;
        let mut feed = caller.listen("orchestrator.feed.7").await;
        let ids = ids_of_one_partition(STREAMS);
        watch_all(&caller, &ids, config(&[("One", 1_500), ("Two", 400)])).await;
        eventually("all are watched", async || service.counts().running == STREAMS as u64).await;

        world.cut();
        // The change of the scene and the end happen in the outage.
        eventually("all have finished", async || service.counts().running == 0).await;
        let Testbed::Nats(server, _) = &mut world else { unreachable!() };
        server.set_max_payload(MAX_PAYLOAD);
        let mut connection = caller.transport.connection();
        let generation = connection.borrow().generation;
        server.restart();
        // Whoever is not there when it is published would miss it.
        let back = connection.wait_for(|now| now.connected && now.generation > generation);
        tokio::time::timeout(LIMIT, back).await.expect("the caller is back").expect("open");
        caller.transport.barrier().await.expect("its subscription too");
        world.mend();

        // What came before the outage is not looked at for its size.
        let changes = changes_until_finished(&mut feed, &ids, 1 << 20).await;
        for id in &ids {
            let told: Vec<(Cause, Mode)> = changes[id].values().copied().collect();
            assert!(told.ends_with(&[(Cause::Scene, Mode::Running), (Cause::Lifecycle, Mode::Finished)]), "{told:?}");
        }
        eventually("it is ready", async || service.ready().is_ok()).await;
        let asked = Instant::now();
        let reply: QueryReply = caller.query(list(1_000, "")).await;
        assert!(asked.elapsed() < Duration::from_secs(5), "answered, whatever it says");
        assert!(matches!(reply.code(), Code::Ok | Code::ResourceExhausted), "{reply:?}");
        if reply.code() == Code::ResourceExhausted {
            assert!(reply.message.contains("2048"), "{}", reply.message);
        }
    })
    .await;
}
