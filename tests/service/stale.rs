//! Subscribers that fall silent, and streams that nobody watches.

use std::time::{Duration, Instant};

use orchestrator_service::{
    service::ServiceSettings,
    wire::proto::{Cause, Code, Mode, OrchestratorConfig, PublishedTo, Stats},
};

use crate::{
    support::messages::*,
    testbed::{LIMIT, Testbed, settings, wall_ms},
};

/// The counts of a service that has nothing.
const EMPTY: Stats = Stats {
    total: 0,
    active: 0,
    stale: 0,
    unique_clients: 0,
    streams: 0,
    running_streams: 0,
    published_to: PublishedTo::Subjects as i32,
};

on_both_transports! {
    who_falls_silent_is_stale_and_then_removed,
    a_stream_that_nobody_ever_watched_is_removed,
}

/// How far two clocks in whole milliseconds may be apart between two readings, ms.
const CLOCKS_MS: u64 = 5;

async fn who_falls_silent_is_stale_and_then_removed(world: Testbed) {
    let _service = world.service(ServiceSettings { stale_after_ms: 1_000, ..settings() }).await;
    let caller = world.caller().await;
    let mut updates = caller.updates("show").await;
    let lifetimes = OrchestratorConfig { empty_grace_ms: Some(200), idle_timeout_ms: Some(700), ..long_config() };
    caller.done(start("show", lifetimes)).await;
    let loud = caller.subscription(register("show", "loud")).await.handle;
    let before_ms = wall_ms();
    caller.subscription(register("show", "silent")).await;

    // The one is heard of, by name and by handle, while the other goes.
    let (mut seen_stale, mut by_name, mut last_heard_ms) = (false, false, 0);
    let deadline = Instant::now() + LIMIT;
    loop {
        by_name = !by_name;
        let beat = if by_name { heartbeat("show", "loud", 0) } else { heartbeats("", &[], vec![loud]) };
        last_heard_ms = last_heard_ms.max(wall_ms());
        assert_eq!(caller.subscription(beat).await.code(), Code::Ok);
        let Stats { total, active, stale, unique_clients, .. } = caller.stats("").await;
        assert_eq!((total, total), (active + stale, unique_clients));
        seen_stale |= stale == 1;
        if total == 1 {
            break;
        }
        assert!(Instant::now() < deadline, "the silent one is removed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(seen_stale, "stale in the meantime");
    let took_ms = wall_ms() - before_ms;
    assert!(took_ms + CLOCKS_MS >= 1_000, "not before its time: {took_ms} ms");
    assert_eq!(caller.state("show").await.mode(), Mode::Running);
    assert_eq!(caller.subscription(heartbeat("show", "silent", 0)).await.code(), Code::UnknownSubscriber);

    // Now nobody is.
    let seen = updates.until(|update| update.mode() == Mode::Unknown).await;
    let [.., idle, removed] = &*seen else { panic!("{seen:?}") };
    assert_eq!((idle.mode(), idle.cause(), idle.current_time), (Mode::Idle, Cause::Lifecycle, 0));
    assert_eq!((removed.cause(), removed.revision), (Cause::Lifecycle, idle.revision + 1));
    // Stale after 1 s, idle after the grace, gone after the idle timeout, which counts from the last viewer too.
    assert!(idle.server_time_ms + CLOCKS_MS >= last_heard_ms + 1_200, "{idle:?}");
    assert!(removed.server_time_ms + CLOCKS_MS >= last_heard_ms + 1_700, "{removed:?}");
    assert_eq!(caller.query(get_state("show")).await.code(), Code::StreamNotFound);
    assert_eq!(caller.stats("").await, EMPTY);
}

async fn a_stream_that_nobody_ever_watched_is_removed(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let mut updates = caller.updates("show").await;

    caller.done(start("show", OrchestratorConfig { idle_timeout_ms: Some(300), ..long_config() })).await;

    let (created, removed) = (updates.next().await, updates.next().await);
    assert_eq!((created.mode(), removed.mode(), removed.cause()), (Mode::Idle, Mode::Unknown, Cause::Lifecycle));
    let lived_ms = removed.server_time_ms - created.server_time_ms;
    assert!(lived_ms + CLOCKS_MS >= 300, "{lived_ms} ms");
    assert_eq!(caller.stats("").await, EMPTY);
}
