//! The broker dies and comes back, or is not there yet.

use orchestrator_service::wire::proto::{Cause, Mode, OrchestratorConfig, SceneConfig};

use crate::{
    gateways::Viewer,
    machine::{clock_at, long_run, measured, shared},
    observer::{Observer, Seen},
    support::caller::Caller,
    support::messages::{LONG_MS, config, register_from, start},
    support::nats_server::NatsServer,
    support::program::Program,
    support::proxy::Proxy,
    support::waiting::eventually,
};

/// Streams whose changes come one after the other, so that a broker's death finds one in each state: not yet made,
/// owed, on its way, published and not confirmed, confirmed.
const STREAMS: u64 = 40;
/// When changes come, on a machine that has time: together they take 600 ms, in the middle of which the broker dies.
const PACE: Pace = Pace { first_ms: 1_500, stagger_ms: 15 };
/// How late a change may be, ms: the machine may have other things to do.
const LATEST_MS: u64 = 5_000;
const TICK_MS: u64 = 50;
/// How far a position may be from the clock, ms: two roundings, and a wall clock that is being adjusted.
const CLOCK_TOLERANCE_MS: u64 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_during_scene_changes_loses_none() {
    shared(async {
        for round in 0..rounds() {
            a_broker_dies(Cause::Scene, LONG_MS, round % 2 == 1).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_while_streams_finish_loses_no_last_update() {
    shared(async {
        for round in 0..rounds() {
            a_broker_dies(Cause::Lifecycle, 0, round % 2 == 1).await;
        }
    })
    .await;
}

fn rounds() -> usize {
    if long_run() { 20 } else { 2 }
}

fn id(number: u64) -> String {
    format!("show-{number}")
}

/// When the changes of streams come.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// The first, ms after its stream was started.
    first_ms: u64,
    /// Each so much later than the one before, ms.
    stagger_ms: u64,
}

impl Pace {
    const fn change_ms(self, number: u64) -> u64 {
        self.first_ms + number * self.stagger_ms
    }

    const fn slower(self) -> Self {
        Self { first_ms: 2 * self.first_ms, stagger_ms: 2 * self.stagger_ms }
    }
}

/// Where the broker hangs, changes must fall into that time: on a busy machine they may all have come before. Then it is
/// done once more, more slowly.
async fn a_broker_dies(expected: Cause, second_scene_ms: u64, hangs: bool) {
    let mut pace = PACE;
    for _ in 0..4 {
        let published_again = a_broker_dies_among_changes(expected, second_scene_ms, hangs, pace).await;
        if published_again > 0 || !hangs {
            return;
        }
        pace = pace.slower();
    }
    panic!("what the hanging broker swallowed was not published again, at {pace:?}");
}

/// What comes behind the first scene: another one of this length, or the end. A broker that hangs before it dies takes
/// what it is given, and nobody gets it.
///
/// Returns how many changes were published again.
async fn a_broker_dies_among_changes(expected: Cause, second_scene_ms: u64, hangs: bool, pace: Pace) -> u64 {
    let mut nats = NatsServer::start();
    // The service finds the new broker only once the observer has: what is published to nobody proves nothing.
    let proxy = Proxy::to(nats.url().replace("nats://", "")).await;
    let service = Program::serve(&proxy.url(), &[]).ready().await;
    let observer = Observer::of_all(&nats.url()).await;
    let caller = Caller::connect(&nats.url()).await;
    let mut starts = Vec::new();
    for number in 0..STREAMS {
        let second = SceneConfig { name: "Two".into(), duration_ms: second_scene_ms, ..Default::default() };
        let mut config =
            OrchestratorConfig { tick_interval_ms: Some(TICK_MS), ..config(&[("One", pace.change_ms(number))]) };
        config.scenes.extend((second_scene_ms > 0).then_some(second));
        let began = caller.play(&id(number), config).await;
        starts.push(began.server_time_ms - began.current_time);
    }

    if hangs {
        clock_at(starts[0] + pace.change_ms(STREAMS / 4)).await;
        nats.freeze();
    }
    clock_at(starts[0] + pace.change_ms(STREAMS / 2)).await;
    nats.kill();
    proxy.set_open(false);
    nats.restart();
    observer.caller.until_connected().await;
    proxy.set_open(true);
    service.readiness(200).await;

    let is_last = |seen: &Seen| match expected {
        Cause::Scene => seen.update.cause() == Cause::Tick && seen.update.current_scene.as_deref() == Some("Two"),
        _ => seen.update.mode() == Mode::Finished,
    };
    for number in 0..STREAMS {
        observer.until("its last update comes", &id(number), is_last).await;
    }
    let (mut repeats, mut late_ms) = (0, 0);
    for number in 0..STREAMS {
        let (history, moment_ms, began_ms) =
            (observer.history(&id(number)), pace.change_ms(number), starts[number as usize]);
        repeats += history.repeats;
        let mut changes = history.changes();
        changes.retain(|change| change.mode() != Mode::Idle);
        let [began, changed] = &changes[..] else { panic!("{} changes, not 2: {changes:#?}", changes.len()) };
        assert_eq!((began.mode(), began.cause()), (Mode::Running, Cause::Lifecycle));
        assert_eq!(changed.cause(), expected);
        // The position and the time of its own moment, whenever it was published.
        if expected == Cause::Scene {
            assert_eq!(changed.current_scene.as_deref(), Some("Two"));
            assert!((moment_ms..moment_ms + LATEST_MS).contains(&changed.current_time), "{moment_ms}: {changed:?}");
        } else {
            assert_eq!((changed.mode(), changed.current_time), (Mode::Finished, moment_ms));
        }
        late_ms = late_ms.max(changed.current_time - moment_ms);
        for seen in history.updates.iter().filter(|seen| seen.update.mode() == Mode::Running) {
            // The start, too, is known to a millisecond only.
            let by_clock_ms = seen.update.server_time_ms.saturating_sub(began_ms);
            assert!(
                seen.update.current_time.abs_diff(by_clock_ms) <= CLOCK_TOLERANCE_MS,
                "{by_clock_ms} ms after the start: {:?}",
                seen.update
            );
        }
        let position = |seen: &Seen| seen.update.current_time;
        assert!(history.updates.is_sorted_by_key(position), "the position never goes back");
    }
    let published_again = service.metric("orchestrator_republished_total", "").await;
    measured(
        "broker killed among changes",
        format!(
            "{published_again} published again, {repeats} came twice, latest change {late_ms} ms behind its moment"
        ),
    );
    let states = caller_after(&caller).await.stats("").await;
    assert_eq!((states.streams, states.active), (STREAMS, STREAMS), "nobody was forgotten");
    published_again
}

/// The caller with its connection back.
async fn caller_after(caller: &Caller) -> &Caller {
    caller.until_connected().await;
    caller
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viewers_see_the_end_whoever_finds_the_new_broker_first() {
    shared(async {
        for _ in 0..rounds() {
            let mut nats = NatsServer::start();
            let service = Program::serve(&nats.url(), &[]).ready().await;
            let gateway = Program::gateway(&nats.url(), &[]).ready().await;
            let caller = Caller::connect(&nats.url()).await;
            let mut viewers = Vec::new();
            let mut first_start = None;
            for number in 0..STREAMS {
                let config = OrchestratorConfig {
                    tick_interval_ms: Some(TICK_MS),
                    ..config(&[("One", PACE.change_ms(number))])
                };
                caller.done(start(&id(number), config)).await;
                let viewer = Viewer::open(&gateway, &id(number)).await;
                let began = viewer.latest();
                first_start.get_or_insert(began.server_time_ms - began.current_time);
                viewers.push(viewer);
            }

            clock_at(first_start.unwrap_or_default() + PACE.change_ms(STREAMS / 2)).await;
            nats.kill();
            nats.restart();

            for viewer in &viewers {
                eventually("each viewer sees the end", async || viewer.latest().mode() == Mode::Finished).await;
            }
            for (viewer, number) in viewers.iter().zip(0..) {
                assert_eq!(viewer.latest().current_time, PACE.change_ms(number));
                viewer.assert_in_order();
            }
            service.readiness(200).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_start_without_a_broker_work_when_it_comes() {
    shared(async {
        let mut nats = NatsServer::absent();
        let service = Program::serve(&nats.url(), &[]);
        let gateway = Program::gateway(&nats.url(), &[]);
        for program in [&service, &gateway] {
            let (status, reason) = program.page("/readyz").await;
            assert_eq!(status, 503, "{reason}");
            assert_eq!(program.page("/livez").await.0, 200);
        }

        nats.restart();
        service.readiness(200).await;
        gateway.readiness(200).await;

        let caller = Caller::connect(&nats.url()).await;
        let config = OrchestratorConfig { tick_interval_ms: Some(TICK_MS), ..config(&[("Main", LONG_MS)]) };
        caller.done(start("show", config)).await;
        let viewer = Viewer::open(&gateway, "show").await;
        eventually("it ticks", async || viewer.latest().cause() == Cause::Tick).await;
        caller.joined(register_from("show", "another", "", 0)).await;
        assert_eq!(caller.stats("show").await.active, 2);
    })
    .await;
}
