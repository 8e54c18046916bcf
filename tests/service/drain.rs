//! The end of a service.

use std::time::{Duration, Instant};

use futures_util::future::{join_all, try_join_all};
use orchestrator_service::{
    transport::{Subscription, TransportError},
    wire::{
        proto::{Code, Mode, OrchestratorConfig, Query, QueryReply, Reply, SubscriptionCommand},
        subject,
    },
};
use prost::Message as _;

use crate::{
    support::messages::*,
    testbed::{Caller, LIMIT, Testbed, command_message, eventually, wall_ms},
};

on_both_transports! {
    what_came_in_before_a_drain_is_carried_out_and_answered,
    questions_that_go_round_the_shards_are_answered_in_a_drain,
    after_a_drain_nothing_is_published_and_nobody_answers,
    a_drain_waits_for_the_broker_to_take_what_is_owed,
    a_drain_without_a_broker_ends_in_time,
}

/// Sees requests as the broker hands them out, to itself and to the service.
struct Observer {
    requests: Subscription,
    /// Whose subscription it is.
    _caller: Caller,
}

impl Observer {
    async fn of(world: &Testbed) -> Self {
        let caller = world.caller().await;
        Self { requests: caller.listen("orchestrator.*").await, _caller: caller }
    }

    /// Waits until the broker has handed out so many.
    async fn see(mut self, count: usize) {
        for _ in 0..count {
            tokio::time::timeout(LIMIT, self.requests.next()).await.expect("a request").expect("open");
        }
    }
}

async fn what_came_in_before_a_drain_is_carried_out_and_answered(world: Testbed) {
    let (service, caller) = world.with_service().await;
    let mut updates = caller.listen("stream.*.updates").await;
    let observer = Observer::of(&world).await;
    let ids: Vec<String> = (0..500).map(|number| format!("show-{number}")).collect();

    let requests = join_all(ids.iter().map(|id| {
        let payload = command_message(start(id, long_config())).encode_to_vec().into();
        caller.transport.request(subject::COMMAND, payload, Duration::from_secs(10))
    }));
    let drain = async {
        observer.see(500).await;
        service.drain().await;
    };
    let (answers, ()) = tokio::join!(requests, drain);

    let missing = answers.iter().filter(|answer| answer.is_err()).count();
    assert_eq!(missing, 0, "of {} requests so many were not answered", ids.len());
    for answer in answers {
        assert_eq!(Reply::decode(answer.unwrap().payload).unwrap().code(), Code::Ok);
    }
    caller.transport.barrier().await.unwrap();
    let mut published = 0;
    while let Some(Some(_)) = futures_util::FutureExt::now_or_never(tokio::task::unconstrained(updates.next())) {
        published += 1;
    }
    assert_eq!(published, ids.len(), "one update each");
}

async fn questions_that_go_round_the_shards_are_answered_in_a_drain(world: Testbed) {
    let (service, caller) = world.with_service().await;
    let mut handles = Vec::new();
    for number in 0..6 {
        let id = format!("show-{number}");
        caller.done(start(&id, long_config())).await;
        handles.push(caller.subscription(register(&id, "viewer")).await.handle);
    }

    let observer = Observer::of(&world).await;
    let stats = Query { query: Some(get_stats("")) }.encode_to_vec();
    let pages = Query { query: Some(list(100, "")) }.encode_to_vec();
    let beat = SubscriptionCommand { command: Some(heartbeats("", &[], handles)) }.encode_to_vec();
    let ask =
        |subject, payload: &Vec<u8>| caller.transport.request(subject, payload.clone().into(), Duration::from_secs(10));
    let requests = async {
        tokio::try_join!(
            try_join_all((0..100).map(|_| ask(subject::QUERY, &stats))),
            try_join_all((0..100).map(|_| ask(subject::QUERY, &pages))),
            try_join_all((0..100).map(|_| ask(subject::SUBSCRIPTION, &beat))),
        )
    };
    let drain = async {
        observer.see(300).await;
        service.drain().await;
    };
    let (answers, ()) = tokio::join!(requests, drain);

    let (stats, pages, beats) = answers.expect("every question is answered");
    for answer in stats {
        assert_eq!(QueryReply::decode(answer.payload).unwrap().stats.expect("stats").streams, 6);
    }
    for answer in pages {
        assert_eq!(QueryReply::decode(answer.payload).unwrap().state.len(), 6);
    }
    for answer in beats {
        assert_eq!(Reply::decode(answer.payload).unwrap().code(), Code::Ok);
    }
}

async fn after_a_drain_nothing_is_published_and_nobody_answers(world: Testbed) {
    let (service, caller) = world.with_service().await;
    let mut updates = caller.updates("show").await;
    let config = OrchestratorConfig { tick_interval_ms: Some(10), ..config(&[("Main", LONG_MS)]) };
    caller.done(start("show", config)).await;
    caller.subscription(register("show", "viewer")).await;
    updates.until(|update| update.sequence > 5).await;

    service.drain().await;

    // All that was published is here now, or was never.
    caller.transport.barrier().await.unwrap();
    updates.arrived();
    let silence = tokio::time::timeout(Duration::from_millis(500), updates.next()).await;
    assert!(silence.is_err(), "50 ticks later: {silence:?}");
    let payload = Query { query: Some(get_stats("")) }.encode_to_vec().into();
    let answer = caller.transport.request(subject::QUERY, payload, Duration::from_secs(10)).await;
    assert!(matches!(answer, Err(TransportError::NoResponders(_))), "{answer:?}");
}

async fn a_drain_waits_for_the_broker_to_take_what_is_owed(world: Testbed) {
    let (service, caller) = world.with_service().await;
    let mut updates = caller.updates("show").await;
    let config = OrchestratorConfig { tick_interval_ms: Some(60_000), ..config(&[("Main", 400)]) };
    caller.done(start("show", config)).await;
    caller.subscription(register("show", "viewer")).await;
    let started = updates.until(|update| update.mode() == Mode::Running).await.remove(1);

    world.cut();
    eventually("the service is not ready", async || service.ready().is_err()).await;
    eventually("the stream is at its end", async || wall_ms() > started.server_time_ms + 500).await;
    let drain = tokio::spawn(service.drain());
    eventually("the shards had time to end", async || wall_ms() > started.server_time_ms + 700).await;
    world.mend();

    drain.await.unwrap();
    assert_eq!(updates.next().await.mode(), Mode::Finished);
}

async fn a_drain_without_a_broker_ends_in_time(world: Testbed) {
    let (service, caller) = world.with_service().await;
    let config = OrchestratorConfig { tick_interval_ms: Some(10), ..config(&[("One", 200), ("Two", 200)]) };
    caller.done(start("show", config)).await;
    let state = caller.subscription(register("show", "viewer")).await.state.expect("a state");

    world.cut();
    eventually("changes are owed", async || wall_ms() > state.server_time_ms + 500).await;
    let before = Instant::now();
    service.drain().await;

    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
}
