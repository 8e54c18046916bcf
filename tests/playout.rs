//! A reader that computes, with [`Playout`], beside the engine: from the configuration and the changes alone it knows at any
//! moment what the engine says, to the millisecond.
//!
//! It is told neither ticks nor snapshots, nor which scene begins or holds: only what commands and the lifecycle do.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is the report")]

use orchestrator_service::{
    client::{
        Playout, View,
        proto::{
            self, AtEnd, Cause, Mode, OrchestratorCommand, OrchestratorConfig, SceneConfig, StateUpdate,
            SubscriptionCommand, orchestrator_command::Command, subscription_command,
        },
    },
    engine::{self, Accepted, Engine, Input, Outbox, Settings, StreamId, Tick},
    wire::{
        WireLimits, commands,
        encode::{self, Now},
        subscriptions,
    },
};
use proptest::prelude::*;
use prost::Message as _;

/// Some day in 2023, ms since 1970.
const T0: u64 = 1_700_000_000_000;
const SHOW: &str = "show";

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Command(Command),
    Join(u8),
    Leave(u8),
    Pass(u64),
    /// Somebody sets the wall clock, by so much.
    SetClock(i64),
}

/// The engine, and a reader of its changes.
struct Testbed {
    engine: Engine,
    now: Tick,
    /// How far the wall clock is ahead of the ticks, ms.
    skew_ms: i64,
    outbox: Outbox,
    limits: WireLimits,
    config: OrchestratorConfig,
    reader: Option<Playout>,
    /// Of the configuration that the reader knows.
    config_revision: u64,
    /// How often it was right.
    compared: usize,
}

impl Testbed {
    fn new() -> Self {
        let mut testbed = Self {
            engine: Engine::new(Settings::default()),
            now: Tick(T0),
            skew_ms: 0,
            outbox: Outbox::default(),
            limits: WireLimits::default(),
            config: OrchestratorConfig::default(),
            reader: None,
            config_revision: 0,
            compared: 0,
        };
        testbed.set_clock(0);
        testbed
    }

    fn wall(&self) -> Now {
        Now { tick: self.now, wall_ms: self.now.0.saturating_add_signed(self.skew_ms) }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Command(command) => self.command(command),
            Step::Join(client) => {
                let client_id = format!("client {client}");
                let register = proto::Register { stream_id: SHOW.into(), client_id, ..Default::default() };
                self.subscription(subscription_command::Command::Register(register));
            }
            Step::Leave(client) => {
                let client_id = format!("client {client}");
                let leave = proto::Unregister { stream_id: SHOW.into(), client_id, session: 0 };
                self.subscription(subscription_command::Command::Unregister(leave));
            }
            Step::Pass(ms) => self.pass(ms),
            Step::SetClock(by_ms) => self.set_clock(by_ms),
        }
        self.look();
    }

    fn command(&mut self, command: Command) {
        let config = match &command {
            Command::Start(start) => start.config.clone(),
            Command::Reconfigure(change) => change.config.clone(),
            _ => None,
        };
        let message = OrchestratorCommand { command: Some(command), ..Default::default() };
        let Ok(input) = commands::input(&message, &self.limits) else { return };
        let done = self.engine.handle(self.now, input, &mut self.outbox);
        if let (Ok(_), Some(config)) = (done, config) {
            self.config = config;
        }
        self.hear();
    }

    fn subscription(&mut self, command: subscription_command::Command) {
        let bytes = SubscriptionCommand { command: Some(command) }.encode_to_vec();
        let message = subscriptions::read(&bytes, &self.limits).expect("a subscription");
        let input = subscriptions::input(message, true).expect("a valid one");
        let _ = self.engine.handle(self.now, input, &mut self.outbox);
        self.hear();
    }

    fn pass(&mut self, ms: u64) {
        let until = self.now.after(ms);
        while let Some(due) = self.engine.next_deadline().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.engine.expire(self.now, 1 << 20, &mut self.outbox);
            self.hear();
        }
        self.now = until;
    }

    /// The clock is set, and a reader is told where the show is by the new one.
    fn set_clock(&mut self, by_ms: i64) {
        self.skew_ms += by_ms;
        let ms = self.wall().wall_ms;
        self.engine.handle(self.now, Input::WallClock { ms }, &mut self.outbox).expect("noted");
        self.pass(0);
        if let Some(state) = self.state()
            && let Some(reader) = &mut self.reader
        {
            assert!(reader.apply(&state));
        }
    }

    /// Hears what was published.
    fn hear(&mut self) {
        for update in std::mem::take(&mut self.outbox).updates {
            let durations = durations(&update);
            let update = encode::state(&update, self.wall());
            // What the audience and commands do cannot be foreseen; what time does, can.
            let by_itself = match update.cause() {
                Cause::Tick | Cause::Scene | Cause::Snapshot => true,
                Cause::Lifecycle => update.mode() == Mode::Finished && !self.waits_for_somebody(),
                Cause::Command => false,
            };
            if by_itself {
                self.compare(&update);
            }
            if matches!(update.cause(), Cause::Command | Cause::Lifecycle) {
                self.tell(&update, &durations);
            }
        }
    }

    /// What waits at its end for its first viewer is over when there is one.
    fn waits_for_somebody(&self) -> bool {
        let said = self.reader.as_ref().map(|reader| reader.at(0));
        said.is_some_and(|said| said.mode == Mode::Idle && said.starts_in_ms.is_none())
    }

    fn tell(&mut self, update: &StateUpdate, durations: &[u64]) {
        if update.mode() == Mode::Unknown {
            (self.reader, self.config_revision) = (None, 0);
            return;
        }
        let config = &self.config;
        let reader = self.reader.get_or_insert_with(|| Playout::new(config, durations, update).expect("valid"));
        assert!(reader.apply(update), "news: {update:?}");
        let has_changed =
            std::mem::replace(&mut self.config_revision, update.config_revision) != update.config_revision;
        assert!(has_changed || !reader.needs_config(), "nothing has changed: {update:?}; the reader: {reader:?}");
        if has_changed {
            reader.configure(config, durations, update).expect("valid");
        }
        assert!(!reader.needs_config(), "{update:?}");
    }

    /// Looks at the stream, which any call of the engine does.
    fn look(&mut self) {
        if let Some(state) = self.state() {
            self.compare(&state);
        }
    }

    fn state(&mut self) -> Option<StateUpdate> {
        let id = StreamId::parse(SHOW).expect("an id");
        let answer = self.engine.handle(self.now, Input::GetState(id), &mut self.outbox);
        self.hear();
        match answer {
            Ok(Accepted::State(state)) => Some(encode::state(&state, self.wall())),
            _ => None,
        }
    }

    fn compare(&mut self, update: &StateUpdate) {
        let reader = self.reader.as_ref().expect("it was told that there is a stream");
        let (told, computed) = (View::from(update), reader.at(update.server_time_ms));
        assert_eq!(computed, told, "computed, and said by {update:?}; the reader: {reader:?}");
        self.compared += 1;
    }
}

fn durations(update: &engine::StateUpdate) -> Vec<u64> {
    (0..update.timeline.scene_count()).map(|scene| update.timeline.duration_ms(scene)).collect()
}

// --- what may happen ---------------------------------------------------------------------------------------------

fn scene() -> impl Strategy<Value = SceneConfig> {
    let hold = prop::option::weighted(0.3, (prop::option::weighted(0.8, 1..3_000_u64), any::<bool>()));
    ("[a-d]", prop_oneof![1..30_u64, 200..5_000_u64], hold).prop_map(|(name, duration_ms, hold)| SceneConfig {
        name,
        duration_ms,
        at_end: hold.map_or(AtEnd::Next, |_| AtEnd::Hold).into(),
        max_hold_ms: hold.and_then(|(max_hold_ms, _)| max_hold_ms),
        // The last scene's name, where that is a later one.
        fallback_scene: hold.filter(|(_, falls_back)| *falls_back).map_or(String::new(), |_| "last".into()),
        ..Default::default()
    })
}

fn config() -> impl Strategy<Value = OrchestratorConfig> {
    let starts_at = prop::option::weighted(0.3, -5_000..20_000_i64);
    (
        prop::collection::vec(scene(), 0..5),
        any::<bool>(),
        0..3_i32,
        prop::option::of(10..2_000_u64),
        starts_at,
        any::<bool>(),
    )
        .prop_map(|(mut scenes, loop_scenes, when_empty, tick_interval_ms, starts_at, no_ticks)| {
            scenes.push(SceneConfig { name: "last".into(), duration_ms: 700, ..Default::default() });
            OrchestratorConfig {
                scenes,
                loop_scenes,
                when_empty,
                tick_interval_ms,
                empty_grace_ms: Some(1_500),
                starts_at_ms: starts_at.map(|ms| T0.saturating_add_signed(ms)),
                no_ticks,
                ..Default::default()
            }
        })
}

fn command() -> impl Strategy<Value = Command> {
    let stream_id = || SHOW.to_owned();
    let force = move |scene_name| Command::ForceScene(proto::ForceScene { stream_id: stream_id(), scene_name });
    let seek = move |position_ms| Command::Seek(proto::Seek { stream_id: stream_id(), position_ms });
    let adjust = move |delta_ms| Command::AdjustScene(proto::AdjustScene { stream_id: stream_id(), delta_ms });
    let reconfigure =
        move |config| Command::Reconfigure(proto::Reconfigure { stream_id: stream_id(), config: Some(config) });
    prop_oneof![
        2 => Just(Command::Start(proto::Start { stream_id: stream_id(), config: None })),
        1 => Just(Command::Stop(proto::Stop { stream_id: stream_id() })),
        3 => Just(Command::Pause(proto::Pause { stream_id: stream_id() })),
        4 => Just(Command::Resume(proto::Resume { stream_id: stream_id() })),
        3 => "[a-d]".prop_map(force),
        4 => Just(Command::SkipScene(proto::SkipScene { stream_id: stream_id() })),
        2 => Just(Command::PreviousScene(proto::PreviousScene { stream_id: stream_id() })),
        3 => (0..12_000_u64).prop_map(seek),
        5 => (-4_000..4_000_i64).prop_map(adjust),
        1 => Just(Command::Reset(proto::Reset { stream_id: stream_id() })),
        2 => config().prop_map(reconfigure),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => command().prop_map(Step::Command),
        3 => (0..2_u8).prop_map(Step::Join),
        1 => (0..2_u8).prop_map(Step::Leave),
        8 => prop_oneof![0..20_u64, 20..3_000_u64, 3_000..30_000_u64].prop_map(Step::Pass),
        1 => (-10_000..10_000_i64).prop_map(Step::SetClock),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_computed_is_what_the_engine_says(
        config in config(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut testbed = Testbed::new();
        testbed.command(Command::Start(proto::Start { stream_id: SHOW.into(), config: Some(config) }));
        for step in steps {
            testbed.step(step);
        }
    }
}

// --- one thing after the other -----------------------------------------------------------------------------------

fn plain(scenes: &[(&str, u64)]) -> OrchestratorConfig {
    let scenes = scenes.iter().map(|(name, duration_ms)| SceneConfig {
        name: (*name).into(),
        duration_ms: *duration_ms,
        ..Default::default()
    });
    OrchestratorConfig { scenes: scenes.collect(), no_ticks: true, ..Default::default() }
}

fn playing(config: OrchestratorConfig) -> Testbed {
    let mut testbed = Testbed::new();
    testbed.command(Command::Start(proto::Start { stream_id: SHOW.into(), config: Some(config) }));
    testbed.step(Step::Join(0));
    testbed
}

#[test]
fn many_passes_with_holds_are_computed_from_the_first_moment() {
    let mut config = plain(&[("a", 70), ("b", 30)]);
    config.loop_scenes = true;
    config.scenes[0].at_end = AtEnd::Hold.into();
    config.scenes[0].max_hold_ms = Some(50);
    let mut testbed = playing(config);
    let reader = testbed.reader.clone().expect("it plays");
    for _ in 0..100 {
        testbed.pass(15_000);
        testbed.step(Step::Join(0));
        let state = testbed.state().expect("it is there");
        assert_eq!(reader.at(state.server_time_ms), View::from(&state));
    }
    assert_eq!(reader.at(testbed.wall().wall_ms).loop_count, 10_000);
    assert!(testbed.compared > 10_000, "each scene was told, and computed: {}", testbed.compared);
}

#[test]
fn lengths_of_one_pass_go_with_it() {
    let mut config = plain(&[("a", 1_000), ("b", 1_000)]);
    config.loop_scenes = true;
    let mut testbed = playing(config);
    testbed.step(Step::Command(Command::AdjustScene(proto::AdjustScene { stream_id: SHOW.into(), delta_ms: 500 })));
    let reader = testbed.reader.clone().expect("it plays");
    let at = |ms| reader.at(T0 + ms);
    assert_eq!((at(1_499).scene, at(1_500).scene, at(2_500).scene), (Some(0), Some(1), Some(0)));
    assert_eq!((at(3_499).scene, at(3_500).scene), (Some(0), Some(1)), "as configured again");
}

#[test]
fn a_show_that_waits_for_its_instant_is_computed_from_before_it() {
    let config = OrchestratorConfig { starts_at_ms: Some(T0 + 60_000), ..plain(&[("a", 1_000), ("b", 1_000)]) };
    let mut testbed = playing(config);
    let reader = testbed.reader.clone().expect("it waits");
    assert_eq!(reader.next_change(T0 + 10), Some(T0 + 60_000));
    assert_eq!((reader.at(T0 + 10).mode, reader.at(T0 + 10).starts_in_ms), (Mode::Idle, Some(59_990)));
    assert_eq!((reader.at(T0 + 60_000).mode, reader.at(T0 + 61_500).scene), (Mode::Running, Some(1)));
    testbed.step(Step::Pass(61_500));
    assert_eq!(reader.at(T0 + 62_000).mode, Mode::Finished);
}

#[test]
fn the_next_change_is_when_something_else_is_shown() {
    let mut config = plain(&[("a", 1_000), ("b", 2_000), ("c", 500)]);
    config.scenes[1].at_end = AtEnd::Hold.into();
    config.scenes[1].max_hold_ms = Some(300);
    let testbed = playing(config);
    let reader = testbed.reader.expect("it plays");
    let mut changes = Vec::new();
    let mut at = Some(T0);
    while let Some(now) = at.and_then(|now| reader.next_change(now)) {
        changes.push(now - T0);
        at = Some(now);
    }
    assert_eq!(changes, [1_000, 3_000, 3_300, 3_800]);
    let shown = [3_299, 3_300, 3_800].map(|ms| (reader.at(T0 + ms).holding, reader.at(T0 + ms).mode));
    assert_eq!(shown, [(true, Mode::Running), (false, Mode::Running), (false, Mode::Finished)]);
}

#[test]
fn without_its_configuration_a_reader_is_right_within_the_scene() {
    let mut testbed = playing(plain(&[("a", 1_000), ("b", 1_000)]));
    let mut reader = testbed.reader.clone().expect("it plays");
    let change = plain(&[("a", 3_000), ("c", 1_000)]);
    testbed.command(Command::Reconfigure(proto::Reconfigure { stream_id: SHOW.into(), config: Some(change.clone()) }));
    let state = testbed.state().expect("it is there");
    assert!(reader.apply(&state) && reader.needs_config());
    let places = [2_999, 3_000, 9_000].map(|ms| (reader.at(T0 + ms).scene, reader.at(T0 + ms).scene_remaining_ms));
    assert_eq!(places, [(Some(0), 1), (Some(0), 0), (Some(0), 0)]);
    assert_eq!(reader.next_change(T0), Some(T0 + 3_000));
    // What is older than what is known changes nothing.
    let before = StateUpdate { sequence: 0, mode: Mode::Paused.into(), ..state.clone() };
    assert!(!reader.apply(&before));
    reader.configure(&change, &[], &state).expect("valid");
    assert_eq!((reader.needs_config(), reader.at(T0 + 3_500).scene), (false, Some(1)));
}

/// Numbers that no stream has.
fn absurd(mode: Mode, total_duration: u64) -> StateUpdate {
    StateUpdate {
        mode: mode.into(),
        current_time: u64::MAX,
        scene_index: Some(u32::MAX),
        scene_elapsed: u64::MAX,
        scene_remaining: u64::MAX,
        overtime: u64::MAX,
        holding: true,
        loop_count: u64::MAX,
        total_duration,
        starts_in: Some(u64::MAX),
        ..Default::default()
    }
}

/// A reader that knows two scenes, of 5 and 6 ms in this pass, and was told so.
fn reader(update: &StateUpdate, loop_scenes: bool) -> Playout {
    let config = OrchestratorConfig { loop_scenes, ..plain(&[("a", 1_000), ("b", 1_000)]) };
    Playout::new(&config, &[5, 6, 7], update).expect("valid")
}

/// What the adjusted pass of [`reader`] has in all, ms.
const ADJUSTED_MS: u64 = 11;

#[test]
fn what_no_service_says_of_other_scenes_is_computed_with_too() {
    for of_nobodys_scenes in [2_000, u64::MAX] {
        let running = absurd(Mode::Running, of_nobodys_scenes);
        let late = StateUpdate { server_time_ms: u64::MAX, ..running.clone() };
        let unknown = StateUpdate { mode: 99, cause: 99, ..running.clone() };
        for (update, now) in
            [(&late, 0), (&late, 1), (&late, u64::MAX), (&running, 0), (&unknown, 1), (&unknown, u64::MAX)]
        {
            let mut said = View::from(update);
            if update.mode == 99 {
                // What does not play comes no nearer to its end.
                said.starts_in_ms = Some(u64::MAX - now);
            }
            assert_eq!(reader(update, false).at(now), said, "at {now}: {update:?}");
        }
        assert_eq!([&late, &unknown].map(|update| reader(update, false).next_change(1)), [None, None]);
        let reader_of_it = reader(&running, false);
        let played = View { scene_remaining_ms: u64::MAX - 1, ..View::from(&running) };
        assert_eq!((reader_of_it.at(1), reader_of_it.next_change(1)), (played, Some(u64::MAX)));
        let played = View { scene_remaining_ms: 0, ..View::from(&running) };
        assert_eq!((reader_of_it.at(u64::MAX), reader_of_it.next_change(u64::MAX)), (played, None));
    }
}

#[test]
fn what_no_service_says_of_known_scenes_is_computed_with_too() {
    let running = absurd(Mode::Running, ADJUSTED_MS);
    let over = View { mode: Mode::Finished, position_ms: ADJUSTED_MS, loop_count: u64::MAX, ..View::default() };
    let behind_the_end = reader(&running, false);
    assert_eq!(
        [0, 1, u64::MAX].map(|now| (behind_the_end.at(now), behind_the_end.next_change(now))),
        [(over, None); 3]
    );

    // Behind the end of its first scene, it is in the second.
    let behind_the_scene = reader(&StateUpdate { scene_index: Some(0), ..running.clone() }, false);
    let second = View {
        mode: Mode::Running,
        position_ms: 6,
        scene: Some(1),
        scene_elapsed_ms: 1,
        scene_remaining_ms: 5,
        time_remaining_ms: 5,
        loop_count: u64::MAX,
        ..View::default()
    };
    assert_eq!((behind_the_scene.at(1), behind_the_scene.next_change(1)), (second, Some(6)));
    assert_eq!((behind_the_scene.at(6), behind_the_scene.next_change(6)), (over, None));

    // Of passes that cannot be counted, the scenes are right.
    let looping = reader(&running, true);
    let places =
        [0, 1_000, 4_999].map(|now| (looping.at(now).loop_count, looping.at(now).scene, looping.next_change(now)));
    assert_eq!(places, [(0, 1_000), (1, 2_000), (0, 5_000)].map(|(scene, next)| (u64::MAX, Some(scene), Some(next))));
    assert_eq!((looping.at(u64::MAX).loop_count, looping.next_change(u64::MAX)), (u64::MAX, None));

    let waiting = reader(&absurd(Mode::Idle, ADJUSTED_MS), false);
    assert_eq!((waiting.at(1).starts_in_ms, waiting.next_change(1)), (Some(u64::MAX - 1), Some(u64::MAX)));
    let begun = waiting.at(u64::MAX);
    assert_eq!((begun.mode, begun.scene, begun.position_ms, begun.starts_in_ms), (Mode::Running, Some(0), 0, None));
    assert_eq!(waiting.next_change(u64::MAX), None, "there is no such moment");
}

#[test]
fn a_configuration_that_no_service_takes_is_refused() {
    let empty = Playout::new(&OrchestratorConfig::default(), &[], &StateUpdate::default()).expect_err("no scenes");
    assert!(empty.to_string().contains("scenes must have 1 to"), "{empty}");
    let config = plain(&[("a", 1_000), ("b", 1_000)]);
    let long = Playout::new(&config, &[1, u64::MAX], &StateUpdate::default()).expect_err("no scene is so long");
    assert!(long.to_string().contains("duration_ms"), "{long}");
}
