//! The broker goes away and comes back.

use std::time::Duration;

use orchestrator_service::wire::proto::{Cause, Code, Mode, OrchestratorConfig, StateUpdate};

use crate::{
    support::messages::*,
    testbed::{Caller, Testbed, Updates, eventually, outline, settings, wait_until_connected, wall_ms},
};

on_both_transports! {
    changes_in_an_outage_are_published_after_it_once_and_in_order,
    ticks_of_an_outage_are_not_made_up_for_and_time_has_gone_on,
    a_service_that_starts_without_its_broker_waits_for_it,
}

/// Starts a stream and watches it.
async fn watched(caller: &Caller, id: &str, tick_ms: u64, scenes: &[(&str, u64)]) -> Updates {
    let mut updates = caller.updates(id).await;
    let config = OrchestratorConfig { tick_interval_ms: Some(tick_ms), ..config(scenes) };
    caller.done(start(id, config)).await;
    caller.subscription(register(id, "viewer")).await;
    updates.until(|update| update.mode() == Mode::Running).await;
    updates
}

async fn the_clock_to_reach(time_ms: u64) {
    while wall_ms() <= time_ms {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn changes_in_an_outage_are_published_after_it_once_and_in_order(world: Testbed) {
    let (service, caller) = world.with_service().await;
    let long_name = "x".repeat(200);
    let scenes = [("One", 1_000), ("Two", 400), (&*long_name, 400)];
    let mut updates = watched(&caller, "show", 20, &scenes).await;
    let started_ms = updates.until(|update| update.cause() == Cause::Tick).await.remove(0).server_time_ms;

    world.cut();
    eventually("the service is not ready", async || service.ready().is_err()).await;
    assert!(service.ready().unwrap_err().contains("broker"), "{:?}", service.ready());
    let in_time = wall_ms() < started_ms + 900;
    the_clock_to_reach(started_ms + 1_900).await;
    world.mend();

    let seen = updates.until(|update| update.mode() == Mode::Finished).await;
    eventually("the service is ready", async || service.ready().is_ok()).await;
    let changes: Vec<StateUpdate> = seen.into_iter().filter(|update| update.cause() != Cause::Tick).collect();
    assert_eq!(
        outline(&changes),
        [(Mode::Running, Cause::Scene), (Mode::Running, Cause::Scene), (Mode::Finished, Cause::Lifecycle)]
    );
    let scene = |update: &StateUpdate| update.current_scene.clone().unwrap_or_default();
    assert_eq!(changes.iter().map(scene).collect::<Vec<_>>(), ["Two", &long_name, ""]);
    // Each with the sequence and the time of its own moment.
    assert!(changes.is_sorted_by(|a, b| a.sequence < b.sequence && a.server_time_ms <= b.server_time_ms));
    for (change, moment_ms) in changes.iter().zip([1_000, 1_400, 1_800]) {
        assert!(change.current_time >= moment_ms, "{change:?}");
    }
    assert!(in_time, "the outage was noticed before the first change");
    let state = caller.state("show").await;
    assert_eq!((state.mode(), state.sequence), (Mode::Finished, changes[2].sequence));
    caller.transport.barrier().await.unwrap();
    assert_eq!(updates.arrived(), [], "nothing behind the end");
}

async fn ticks_of_an_outage_are_not_made_up_for_and_time_has_gone_on(world: Testbed) {
    let (service, caller) = world.with_service().await;
    let mut updates = watched(&caller, "show", 10, &[("Main", LONG_MS)]).await;
    let before = updates.until(|update| update.cause() == Cause::Tick).await.remove(0);

    world.cut();
    eventually("the service is not ready", async || service.ready().is_err()).await;
    // What the client had taken by then is its own affair.
    let away_ms = wall_ms() + 100;
    the_clock_to_reach(away_ms + 1_000).await;
    let mended_ms = wall_ms();
    world.mend();

    let seen = updates.until(|update| update.server_time_ms > mended_ms + 200).await;
    let of_the_outage = seen.iter().filter(|update| (away_ms..mended_ms).contains(&update.server_time_ms)).count();
    assert!(of_the_outage <= 1, "{of_the_outage} ticks of 100 were kept");
    let last = &seen[seen.len() - 1];
    assert_eq!(last.epoch, before.epoch, "the same stream");
    let (elapsed_ms, played_ms) =
        (last.server_time_ms - before.server_time_ms, last.current_time - before.current_time);
    // Two clocks in whole milliseconds, of which one can be set.
    assert!(elapsed_ms.abs_diff(played_ms) <= 5, "{played_ms} played in {elapsed_ms}");
}

async fn a_service_that_starts_without_its_broker_waits_for_it(world: Testbed) {
    world.cut();
    let (service, ingress) = world.service_in_outage(settings()).await;
    assert!(service.ready().unwrap_err().contains("broker"), "{:?}", service.ready());

    world.mend();

    eventually("the service is ready", async || service.ready().is_ok()).await;
    ingress.barrier().await.unwrap();
    let caller = world.caller().await;
    watched(&caller, "show", 10, &[("Main", LONG_MS)]).await.until(|update| update.cause() == Cause::Tick).await;
}

mod over_nats_alone {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_killed_server_is_found_again_and_nothing_was_forgotten() {
        crate::testbed::within_limit(async {
            let mut world = Testbed::nats().await;
            let (service, caller) = world.with_service().await;
            let mut updates = watched(&caller, "show", 10, &[("One", 1_000), ("Two", LONG_MS)]).await;
            caller.done(start("idle", long_config())).await;

            let Testbed::Nats(server, _) = &mut world else { panic!() };
            server.kill();
            eventually("the service is not ready", async || service.ready().is_err()).await;
            server.restart();
            eventually("the service is ready", async || service.ready().is_ok()).await;
            wait_until_connected(&*caller.transport).await;

            // Both ends found the new server, each in its own time; what was said meanwhile is in the full state.
            caller.transport.barrier().await.unwrap();
            let seen = updates.until(|update| update.current_scene.as_deref() == Some("Two")).await;
            assert!(seen.iter().all(|update| update.mode() == Mode::Running));
            let state = loop {
                // The service's subscription may be a moment behind its connection.
                let query = orchestrator_service::wire::proto::Query { query: Some(get_state("show")) };
                let asked = prost::Message::encode_to_vec(&query).into();
                let subject = orchestrator_service::wire::subject::QUERY;
                if caller.transport.request(subject, asked, Duration::from_secs(1)).await.is_ok() {
                    break caller.state("show").await;
                }
            };
            assert_eq!((state.mode(), caller.stats("").await.streams), (Mode::Running, 2));
            assert_eq!(caller.subscription(heartbeat("show", "viewer", 0)).await.code(), Code::Ok);
            updates.until(|update| update.cause() == Cause::Tick && update.sequence > state.sequence).await;
        })
        .await;
    }
}

mod over_memory_alone {
    use super::*;

    /// A peer that died and is not missed yet takes what it is given, and it is gone.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn changes_that_a_dead_broker_swallowed_are_published_again() {
        crate::testbed::within_limit(async {
            let world = Testbed::memory();
            let Testbed::Memory(bus) = &world else { panic!() };
            let (service, caller) = world.with_service().await;
            let mut updates = watched(&caller, "show", 60_000, &[("One", 500), ("Two", 300), ("Three", 300)]).await;
            let started_ms = caller.state("show").await.server_time_ms;

            bus.set_black_hole(true);
            the_clock_to_reach(started_ms + 1_300).await;
            assert_eq!(service.ready(), Ok(()), "nobody has noticed");
            assert_eq!(updates.arrived(), []);
            world.cut();
            bus.set_black_hole(false);
            world.mend();

            let seen = updates.until(|update| update.mode() == Mode::Finished).await;
            assert_eq!(
                outline(&seen),
                [(Mode::Running, Cause::Scene), (Mode::Running, Cause::Scene), (Mode::Finished, Cause::Lifecycle)]
            );
            crate::testbed::assert_gapless(&seen);
        })
        .await;
    }
}
