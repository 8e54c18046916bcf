//! What a reader of `stream.<stream_id>.updates` sees, and when.

use orchestrator_service::{
    engine::{SNAPSHOT_INTERVAL_MS, partition},
    service::ServiceSettings,
    shard::publish_queue::PublishTo,
    transport::Subscription,
    wire::proto::{Cause, Mode, OrchestratorConfig, PublishedTo, StateUpdate, UpdateBatch},
};
use prost::Message as _;

use crate::{
    support::messages::*,
    testbed::{Caller, LIMIT, Testbed, Updates, assert_gapless, outline, say_subscription, settings},
};

on_both_transports! {
    the_first_subscriber_starts_a_stream_and_an_update_says_so,
    a_scene_changes_at_its_boundary_and_not_at_the_next_tick,
    ticks_come_at_their_interval_with_gapless_sequences,
    an_update_does_not_carry_the_configuration,
    a_viewer_who_joins_sees_the_state_at_once_whatever_the_mode,
    a_crowd_that_joins_gets_one_snapshot_in_50_ms_and_all_get_it,
    both_ways_of_publishing_carry_the_same_updates,
    the_feed_alone_carries_them_all,
    the_counts_say_which_subjects_carry_the_updates,
}

/// How far two clocks in whole milliseconds may be apart between two readings, ms.
const CLOCKS_MS: u64 = 5;

/// How late a scene may be told on a busy machine, ms. Far below the tick interval of these tests.
const LATE_MS: u64 = 2_000;

async fn the_first_subscriber_starts_a_stream_and_an_update_says_so(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let mut updates = caller.updates("show").await;

    caller.done(start("show", long_config())).await;
    caller.subscription(register("show", "viewer")).await;

    let seen = [updates.next().await, updates.next().await];
    assert_eq!(outline(&seen), [(Mode::Idle, Cause::Command), (Mode::Running, Cause::Lifecycle)]);
    assert_gapless(&seen);
    assert_eq!((seen[0].sequence, seen[0].revision, seen[1].revision), (1, 1, 2));
    assert_eq!((seen[1].current_time, seen[1].current_scene.as_deref()), (0, Some("Intro")));
}

async fn a_scene_changes_at_its_boundary_and_not_at_the_next_tick(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let mut updates = caller.updates("show").await;
    let scenes = [("One", 700), ("Two", 2_600), ("Three", 500)];
    let tick_interval_ms = Some(60_000);
    caller.done(start("show", OrchestratorConfig { tick_interval_ms, ..config(&scenes) })).await;
    caller.subscription(register("show", "viewer")).await;

    let seen = updates.until(|update| update.mode() == Mode::Finished).await;

    assert_eq!(
        outline(&seen),
        [
            (Mode::Idle, Cause::Command),
            (Mode::Running, Cause::Lifecycle),
            (Mode::Running, Cause::Scene),
            (Mode::Running, Cause::Scene),
            (Mode::Finished, Cause::Lifecycle),
        ]
    );
    assert_gapless(&seen);
    for (update, name, boundary_ms) in [(&seen[2], "Two", 700), (&seen[3], "Three", 3_300)] {
        assert_eq!(update.current_scene.as_deref(), Some(name));
        assert!((boundary_ms..boundary_ms + LATE_MS).contains(&update.current_time), "{update:?}");
        assert_eq!(update.scene_elapsed, update.current_time - boundary_ms);
        assert_on_time(&seen[1], update);
    }
    let end = &seen[4];
    assert_eq!((end.current_time, end.time_remaining, &end.current_scene, end.loop_count), (3_800, 0, &None, 1));
    // Its position stands still from the end on, so it is as true when the end is told late.
    let elapsed_ms = end.server_time_ms - seen[1].server_time_ms;
    assert!((3_800 - CLOCKS_MS..3_800 + LATE_MS).contains(&elapsed_ms), "{elapsed_ms} ms after the start: {end:?}");
}

/// Asserts that an update's position is what the clock says, counted from the start of play.
fn assert_on_time(started: &StateUpdate, update: &StateUpdate) {
    let elapsed_ms = update.server_time_ms - started.server_time_ms;
    // Two clocks in whole milliseconds, of which one can be set.
    assert!(elapsed_ms.abs_diff(update.current_time) <= CLOCKS_MS, "{elapsed_ms} ms after the start: {update:?}");
}

async fn ticks_come_at_their_interval_with_gapless_sequences(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let mut updates = caller.updates("show").await;
    let tick_interval_ms = Some(100);
    caller.done(start("show", OrchestratorConfig { tick_interval_ms, ..config(&[("Main", LONG_MS)]) })).await;
    caller.subscription(register("show", "viewer")).await;

    let seen = updates.until(|update| update.sequence >= 12).await;

    assert_gapless(&seen);
    let started = &seen[1];
    for tick in &seen[2..] {
        assert_eq!((tick.mode(), tick.cause(), tick.revision), (Mode::Running, Cause::Tick, started.revision));
        assert_on_time(started, tick);
    }
    let span_ms = seen[11].server_time_ms - started.server_time_ms;
    assert!((10 * 100 - CLOCKS_MS..10 * 100 + LATE_MS).contains(&span_ms), "10 ticks took {span_ms} ms");
}

async fn an_update_does_not_carry_the_configuration(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let mut messages = caller.listen("stream.show.updates").await;
    let names: Vec<String> = (0..1_000).map(|number| format!("{number:0>200}")).collect();
    let scenes: Vec<(&str, u64)> = names.iter().map(|name| (&**name, LONG_MS)).collect();
    caller.done(start("show", OrchestratorConfig { tick_interval_ms: Some(10), ..config(&scenes) })).await;
    caller.subscription(register("show", "viewer")).await;

    let mut ticks = 0;
    while ticks < 3 {
        let message = tokio::time::timeout(LIMIT, messages.next()).await.expect("an update").expect("open");
        assert!(message.payload.len() < 512, "{} bytes", message.payload.len());
        ticks += usize::from(StateUpdate::decode(message.payload).expect("an update").cause() == Cause::Tick);
    }
}

async fn a_viewer_who_joins_sees_the_state_at_once_whatever_the_mode(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    for watched in [true, false] {
        for mode in [Mode::Running, Mode::Paused, Mode::Stopped, Mode::Finished] {
            let id = format!("{}-{watched}", mode.as_str_name());
            let mut updates = caller.updates(&id).await;
            // RUN_ON, so that it keeps its mode unwatched.
            caller.done(start(&id, OrchestratorConfig { when_empty: 2, ..long_config() })).await;
            caller.subscription(register(&id, "first")).await;
            match mode {
                Mode::Paused => caller.done(pause(&id)).await,
                Mode::Stopped => caller.done(stop(&id)).await,
                Mode::Finished => {
                    caller.done(force(&id, "Outro")).await;
                    caller.done(skip(&id)).await
                }
                _ => caller.state(&id).await,
            };
            if !watched {
                caller.subscription(unregister(&id, "first", 0)).await;
            }
            // All up to here has arrived: answers come behind their updates.
            caller.transport.barrier().await.unwrap();
            updates.arrived();

            let reply = caller.subscription(register(&id, "answered")).await;
            assert_eq!(reply.state.expect("a state").mode(), mode, "{id}");
            if !watched {
                caller.subscription(unregister(&id, "answered", 0)).await;
            }
            caller.tell([say_subscription(register(&id, "unanswered"))]).await;
            let update = updates.next().await;
            assert_eq!((update.mode(), update.cause()), (mode, Cause::Snapshot), "{id}");
        }
    }
}

async fn a_crowd_that_joins_gets_one_snapshot_in_50_ms_and_all_get_it(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let mut updates = caller.updates("show").await;
    caller.done(start("show", long_config())).await;
    caller.subscription(register("show", "first")).await;
    caller.done(pause("show")).await;
    updates.until(|update| update.mode() == Mode::Paused).await;

    // Ten crowds over more than ten intervals.
    let mut last_came_ms = 0;
    for crowd in 0..10 {
        let newcomer = |number| say_subscription(register("show", &format!("{crowd}-{number}")));
        last_came_ms = caller.state("show").await.server_time_ms;
        caller.tell((0..50).map(newcomer)).await;
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    }
    assert_eq!(caller.stats("show").await.total, 501);
    let snapshots = updates.until(|update| update.server_time_ms >= last_came_ms).await;

    assert!(snapshots.iter().all(|update| update.cause() == Cause::Snapshot && update.mode() == Mode::Paused));
    assert_gapless(&snapshots);
    for pair in snapshots.windows(2) {
        let apart_ms = pair[1].server_time_ms - pair[0].server_time_ms;
        assert!(apart_ms + CLOCKS_MS >= SNAPSHOT_INTERVAL_MS, "{apart_ms} ms apart");
    }
    assert!((2..=20).contains(&snapshots.len()), "{} snapshots", snapshots.len());
}

/// A stream's short life with ticks, a scene change and commands.
async fn live(caller: &Caller) {
    let mut updates = caller.updates("show").await;
    let tick_interval_ms = Some(10);
    let scenes = config(&[("Intro", 300), ("Main", LONG_MS)]);
    caller.done(start("show", OrchestratorConfig { tick_interval_ms, ..scenes })).await;
    caller.tell([say_subscription(register("show", "viewer"))]).await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    caller.done(pause("show")).await;
    caller.done(remove("show")).await;
    caller.transport.barrier().await.unwrap();
    updates.arrived();
}

async fn feed_until_removed(feed: &mut Subscription) -> Vec<StateUpdate> {
    let mut updates: Vec<StateUpdate> = Vec::new();
    while updates.last().is_none_or(|update| update.mode() != Mode::Unknown) {
        let message = tokio::time::timeout(LIMIT, feed.next()).await.expect("a batch").expect("open");
        assert_eq!(&*message.subject, format!("orchestrator.feed.{}", partition("show")));
        let batch = UpdateBatch::decode(message.payload).expect("a batch");
        assert!(!batch.update.is_empty(), "a batch has something in it");
        updates.extend(batch.update);
    }
    updates
}

fn assert_is_a_life(updates: &[StateUpdate]) {
    // A tick may be outrun by what comes behind it, and leaves a gap; nothing else may.
    assert!(updates.is_sorted_by(|a, b| a.sequence < b.sequence));
    let changes: Vec<Cause> = updates.iter().map(StateUpdate::cause).filter(|cause| *cause != Cause::Tick).collect();
    let expected = [Cause::Command, Cause::Lifecycle, Cause::Scene, Cause::Command, Cause::Lifecycle];
    assert_eq!(changes, expected);
    assert!(updates.len() > 10, "with ticks");
}

async fn both_ways_of_publishing_carry_the_same_updates(world: Testbed) {
    let _service = world.service(ServiceSettings { publish_to: PublishTo::Both, ..settings() }).await;
    let caller = world.caller().await;
    let mut updates: Updates = caller.updates("show").await;
    let mut feed = caller.listen("orchestrator.feed.*").await;

    live(&caller).await;

    let by_subject = updates.until(|update| update.mode() == Mode::Unknown).await;
    assert_is_a_life(&by_subject);
    assert_eq!(feed_until_removed(&mut feed).await, by_subject);
}

async fn the_feed_alone_carries_them_all(world: Testbed) {
    let _service = world.service(ServiceSettings { publish_to: PublishTo::Feed, ..settings() }).await;
    let caller = world.caller().await;
    let mut updates = caller.updates("show").await;
    let mut feed = caller.listen("orchestrator.feed.*").await;

    live(&caller).await;

    assert_is_a_life(&feed_until_removed(&mut feed).await);
    assert_eq!(updates.arrived(), [], "nothing by subject");
}

async fn the_counts_say_which_subjects_carry_the_updates(world: Testbed) {
    for (publish_to, told) in [
        (PublishTo::Subjects, PublishedTo::Subjects),
        (PublishTo::Feed, PublishedTo::Feed),
        (PublishTo::Both, PublishedTo::Both),
    ] {
        let service = world.service(ServiceSettings { publish_to, ..settings() }).await;
        let caller = world.caller().await;
        caller.done(start("show", long_config())).await;
        assert_eq!((caller.stats("").await.published_to(), caller.stats("show").await.published_to()), (told, told));
        service.drain().await;
    }
}
