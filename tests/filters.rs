//! Filters: what passes, for how long, and how many there may be; and that who reads a filter misses no change of it.

use std::collections::BTreeMap;

use driver::{EngineDriver, T0, config, show};
use orchestrator_service::engine::*;
use proptest::prelude::*;

mod driver;

/// No scenes: everything.
const ALL: FilterDraft<'static> =
    FilterDraft { scenes: Vec::new(), changes_only: false, min_interval_ms: 0, min_progress: 0.0 };

fn scenes<'a>(scenes: &[&'a str]) -> FilterDraft<'a> {
    FilterDraft { scenes: scenes.to_vec(), ..ALL }
}

fn filter(draft: &FilterDraft<'_>) -> Filter {
    Filter::new(draft).expect("a filter")
}

fn stream(id: &str) -> StreamId<'_> {
    StreamId::parse(id).expect("a valid id")
}

impl EngineDriver {
    fn try_follow(&mut self, id: &str, draft: &FilterDraft<'_>) -> Result<(u64, StateUpdate), Rejection> {
        match self.handle(Input::Follow { stream_id: stream(id), filter: filter(draft) })? {
            Accepted::Following(following) if following.joined.is_none() => Ok((following.token, following.state)),
            other => panic!("a follow was answered with {other:?}"),
        }
    }

    /// Somebody follows `show`.
    fn follow(&mut self, draft: &FilterDraft<'_>) -> u64 {
        self.try_follow("show", draft).expect("it is followed").0
    }

    /// What passes of all that is said until then: when, cause, scene.
    fn passing_until(&mut self, token: u64, at: u64) -> Vec<(u64, Cause, Option<String>)> {
        let mut updates = Vec::new();
        while let Some(due) = self.engine.next_deadline().map(|due| due.0.saturating_sub(T0)).filter(|due| *due <= at) {
            if due > self.at() {
                self.sleep_until(due);
            }
            self.expire();
            updates.extend(self.updates());
        }
        if at > self.at() {
            self.sleep_until(at);
        }
        let passed = updates.into_iter().filter(|update| passes(update, token));
        passed.map(|update| (update.at.0 - T0, update.cause, scene(&update))).collect()
    }
}

fn passes(update: &StateUpdate, token: u64) -> bool {
    update.filtered().contains(&token)
}

fn scene(update: &StateUpdate) -> Option<String> {
    update.scene.map(|scene| update.timeline.name(scene).to_owned())
}

fn at(ms: u64, cause: Cause, scene: &str) -> (u64, Cause, Option<String>) {
    (ms, cause, Some(scene.to_owned()))
}

#[test]
fn without_conditions_all_passes_and_with_changes_only_changes() {
    let mut world = EngineDriver::with_show(&show());
    let (all, changes) = (world.follow(&ALL), world.follow(&FilterDraft { changes_only: true, ..ALL }));
    world.join("viewer", 0);
    let (mut of_all, mut of_changes) = (Vec::new(), Vec::new());
    for ms in (500..=15_500).step_by(500) {
        world.sleep_until(ms);
        world.expire();
        for update in world.updates() {
            assert!(passes(&update, all), "{update:?}");
            of_all.push(update.sequence);
            if passes(&update, changes) {
                of_changes.push((update.at.0 - T0, update.cause, scene(&update)));
            }
        }
    }
    assert!(of_all.windows(2).all(|pair| pair[1] == pair[0] + 1), "{of_all:?}");
    let expected = [
        at(0, Cause::Lifecycle, "Intro"),
        at(3_000, Cause::Scene, "Main"),
        at(13_000, Cause::Scene, "Outro"),
        (15_000, Cause::Lifecycle, None),
    ];
    assert_eq!(of_changes, expected);
}

#[test]
fn with_scenes_what_passes_is_of_them_and_the_change_that_leaves() {
    let mut world = EngineDriver::with_show(&show());
    let main = world.follow(&scenes(&["Main"]));
    world.join("viewer", 0);
    let passed = world.passing_until(main, 20_000);
    let ticks = (4_000..=12_000).step_by(1_000).map(|ms| at(ms, Cause::Tick, "Main"));
    let expected: Vec<_> =
        [at(3_000, Cause::Scene, "Main")].into_iter().chain(ticks).chain([at(13_000, Cause::Scene, "Outro")]).collect();
    assert_eq!(passed, expected);
}

#[test]
fn commands_of_other_scenes_stay_away_and_one_that_leaves_comes() {
    let mut world = EngineDriver::with_show(&show());
    let main = world.follow(&scenes(&["Main"]));
    world.join("viewer", 0);
    let mut of_main = |command: Command<'_>| {
        world.command("show", command).expect("it is carried out");
        world.updates().iter().filter(|update| passes(update, main)).map(scene).collect::<Vec<_>>()
    };
    let main = || vec![Some("Main".to_owned())];
    assert_eq!(of_main(Command::Pause), [] as [Option<String>; 0]);
    assert_eq!(of_main(Command::ForceScene("Main")), main());
    assert_eq!(of_main(Command::Resume), main());
    assert_eq!(of_main(Command::ForceScene("Outro")), [Some("Outro".to_owned())], "it leaves");
    assert_eq!(of_main(Command::Pause), [] as [Option<String>; 0]);
    assert_eq!(of_main(Command::Seek(3_000)), main());
    assert_eq!(of_main(Command::Stop), main());
    assert_eq!(of_main(Command::Reset), [Some("Intro".to_owned())], "it leaves");
}

#[test]
fn whoever_follows_within_a_scene_is_told_when_it_is_left() {
    let mut world = EngineDriver::with_show(&show());
    world.join("viewer", 0);
    world.until(1_000);
    let changes = FilterDraft { changes_only: true, ..scenes(&["Intro"]) };
    let intro = world.follow(&changes);
    assert_eq!(world.passing_until(intro, 10_000), [at(3_000, Cause::Scene, "Main")]);
}

#[test]
fn a_tick_passes_so_long_after_what_passed_before() {
    let mut world = EngineDriver::with_show(&show());
    let seldom = world.follow(&FilterDraft { min_interval_ms: 2_500, ..ALL });
    world.join("viewer", 0);
    let expected = [
        // The first update; a change begins the interval anew.
        at(0, Cause::Lifecycle, "Intro"),
        at(3_000, Cause::Scene, "Main"),
        at(6_000, Cause::Tick, "Main"),
        at(9_000, Cause::Tick, "Main"),
        at(12_000, Cause::Tick, "Main"),
        at(13_000, Cause::Scene, "Outro"),
        (15_000, Cause::Lifecycle, None),
    ];
    assert_eq!(world.passing_until(seldom, 20_000), expected[..]);
}

#[test]
fn a_tick_passes_so_far_from_what_passed_before() {
    let draft = Draft { scenes: vec![Scene::new("Main", 10_000)], ..show() };
    let mut world = EngineDriver::with_show(&draft);
    let coarse = world.follow(&FilterDraft { min_progress: 30.0, ..ALL });
    world.join("viewer", 0);
    let expected = [at(0, Cause::Lifecycle, "Main"), at(3_000, Cause::Tick, "Main"), at(6_000, Cause::Tick, "Main")];
    assert_eq!(world.passing_until(coarse, 8_500), expected);
    world.command("show", Command::Seek(1_000)).expect("it jumps");
    let jumped = world.updates();
    assert!(passes(&jumped[0], coarse), "a change");
    assert_eq!(world.passing_until(coarse, 12_000), [at(12_000, Cause::Tick, "Main")]);
}

#[test]
fn a_snapshot_passes_as_a_tick_does() {
    let mut world = EngineDriver::with_show(&show());
    world.join("viewer", 0);
    let (all, changes) = (world.follow(&ALL), world.follow(&FilterDraft { changes_only: true, ..ALL }));
    let (main, seldom) = (world.follow(&scenes(&["Main"])), world.follow(&FilterDraft { min_interval_ms: 500, ..ALL }));
    world.until(100);
    world.updates();
    world.register("show", "unanswered", 0, false).expect("it joins");
    let said = world.updates();
    let [snapshot] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!(snapshot.cause, Cause::Snapshot);
    assert_eq!([all, changes, main, seldom].map(|token| passes(snapshot, token)), [true, false, false, false]);
}

#[test]
fn equal_filters_are_followed_once() {
    let mut world = EngineDriver::with_show(&show());
    let token = world.follow(&scenes(&["Main", "Intro"]));
    assert_eq!(world.follow(&scenes(&["Intro", "Main", "Intro"])), token);
    assert_ne!(world.follow(&scenes(&["Intro"])), token);
    assert_eq!(world.engine.counts().filters, 2);
    world.join("viewer", 0);
    let said = world.updates();
    let [first] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!(first.filtered().len(), 2, "each once");
}

#[test]
fn who_follows_again_makes_nobody_wait_longer_for_a_tick() {
    let mut world = EngineDriver::with_show(&show());
    world.join("viewer", 0);
    let seldom = FilterDraft { min_interval_ms: 2_000, ..ALL };
    let token = world.follow(&seldom);
    let mut passed = Vec::new();
    for ms in (500..=7_000).step_by(500) {
        passed.extend(world.passing_until(token, ms).into_iter().map(|(ms, ..)| ms));
        world.follow(&seldom);
    }
    assert_eq!(passed, [2_000, 3_000, 5_000, 7_000]);
}

#[test]
fn a_stream_has_64_filters_and_one_that_is_there_is_followed_again() {
    let mut world = EngineDriver::with_show(&show());
    let every = |ms: u32| FilterDraft { min_interval_ms: ms, ..ALL };
    for ms in 0..MAX_FILTERS_OF_STREAM as u32 {
        world.follow(&every(ms));
    }
    let before = world.engine.digest();
    let refused = world.try_follow("show", &every(64)).expect_err("one too many");
    assert_eq!(refused.to_string(), "the service is at its limit of 64 filters of one stream");
    let stream_id = stream("show");
    let subscriber = Newcomer { client_id: ClientId::parse("viewer").unwrap(), session: 0, source: None };
    let both = Input::RegisterFollowing { stream_id, subscriber, answered: true, filter: Box::new(filter(&every(64))) };
    assert_eq!(world.handle(both), Err(refused), "nobody is registered by that");
    assert_eq!(world.engine.digest(), before, "a refusal changes nothing");
    world.follow(&every(63));
    world.command("other", Command::Start(Some(config(&show())))).expect("it starts");
    world.try_follow("other", &every(64)).expect("another stream has room of its own");
}

#[test]
fn filters_and_their_bytes_have_a_limit_for_the_service() {
    let limits = Limits { max_filters: 2, max_filter_bytes: 1_000, ..Limits::default() };
    let mut world = EngineDriver::with(Settings { limits, ..Settings::default() });
    world.command("show", Command::Start(Some(config(&show())))).expect("it starts");
    let name = "x".repeat(256);
    let long: Vec<&str> = (0..4).map(|less| &name[less..]).collect();
    let refused = |world: &mut EngineDriver, draft: &FilterDraft<'_>| {
        world.try_follow("show", draft).expect_err("there is no room").to_string()
    };
    assert_eq!(refused(&mut world, &scenes(&long)), "the service is at its limit of 1000 bytes of filters");
    world.follow(&scenes(&["a"]));
    world.follow(&scenes(&["b"]));
    assert_eq!(refused(&mut world, &scenes(&["c"])), "the service is at its limit of 2 filters");
    let quota = Quota { filters: 1, ..Quota::of(&Limits::default()) };
    world.handle(Input::SetQuota(quota)).expect("it is noted");
    world.follow(&scenes(&["b"]));
    assert_eq!(world.engine.counts().filters, 2, "what is there stays");
}

#[test]
fn a_lease_ends_with_the_stale_timeout_unless_it_is_repeated() {
    let mut world = EngineDriver::with_show(&show());
    world.join("viewer", 0);
    let (once, again) = (world.follow(&scenes(&["Main"])), scenes(&["Intro"]));
    world.follow(&again);
    let filters = |world: &mut EngineDriver, ms: u64| {
        world.until(ms);
        world.engine.counts().filters
    };
    // The viewer is kept as well, so that nothing else ends.
    world.until(60_000);
    world.beat("viewer", 0).expect("it is there");
    world.follow(&again);
    assert_eq!(filters(&mut world, 89_999), 2);
    assert_eq!(filters(&mut world, 90_000), 1);
    world.command("show", Command::Reset).expect("it begins again");
    assert!(world.updates().iter().all(|update| !passes(update, once)), "it was of this stream's, and is no more");
    assert_eq!(filters(&mut world, 149_999), 1);
    assert_eq!(filters(&mut world, 150_000), 0);
    assert_eq!(world.engine.counts().filter_bytes, 0);
}

#[test]
fn no_lease_ends_for_a_process_that_stood_still() {
    let mut world = EngineDriver::with_show(&show());
    world.join("viewer", 0);
    world.follow(&ALL);
    world.until(80_000);
    world.beat("viewer", 0).expect("it is there");
    world.sleep_until(100_000);
    world.handle(Input::ClockStalled { ms: 20_000 }).expect("it is noted");
    world.expire();
    assert_eq!(world.engine.counts().filters, 1);
    world.until(119_999);
    assert_eq!(world.engine.counts().filters, 1);
    world.until(120_000);
    assert_eq!(world.engine.counts().filters, 0);
}

#[test]
fn to_follow_watches_nothing_and_keeps_no_stream() {
    let mut world = EngineDriver::with_show(&show());
    let (all, main) = (world.follow(&ALL), world.follow(&scenes(&["Main"])));
    assert_eq!(world.updates(), [], "nothing is said");
    assert_eq!((world.show(), world.engine.counts().total), ((Mode::Idle, 0), 0));
    let mut last = Vec::new();
    for ms in [30_000, 60_000] {
        world.follow(&ALL);
        world.sleep_until(ms);
        world.expire();
        last.extend(world.updates());
    }
    let [removed] = last.as_slice() else { panic!("{last:?}") };
    assert_eq!((removed.mode, removed.cause), (Mode::Unknown, Cause::Lifecycle));
    assert!(passes(removed, all) && passes(removed, main), "the last of a stream is for everybody");
    let refused = world.try_follow("show", &ALL).expect_err("it is gone");
    assert_eq!(refused, Rejection::StreamNotFound("show".to_owned()));
    assert!(world.engine.is_empty());
}

#[test]
fn a_command_that_removes_a_stream_ends_its_leases_alone() {
    let mut world = EngineDriver::with_show(&show());
    world.command("other", Command::Start(Some(config(&show())))).expect("it starts");
    let (show_all, other_all) = (world.follow(&ALL), world.try_follow("other", &ALL).expect("it is followed").0);
    assert_eq!(show_all, other_all, "a token is a filter's, whatever the stream");
    world.updates();
    world.command("show", Command::Remove).expect("it is removed");
    assert!(passes(&world.updates()[0], show_all));
    assert_eq!(world.engine.counts().filters, 1);
    world.command("show", Command::Start(Some(config(&show())))).expect("it starts");
    assert_eq!(world.updates()[0].filtered(), [0_u64; 0], "a new stream has no followers");
}

#[test]
fn register_with_a_filter_is_both_in_one() {
    let mut world = EngineDriver::with_show(&show());
    let stream_id = stream("show");
    let subscriber = Newcomer { client_id: ClientId::parse("viewer").unwrap(), session: 7, source: None };
    let both = |filter: &FilterDraft<'_>| {
        let filter = Box::new(Filter::new(filter).expect("a filter"));
        Input::RegisterFollowing { stream_id, subscriber, answered: true, filter }
    };
    let Ok(Accepted::Following(following)) = world.handle(both(&ALL)) else { panic!("it joins") };
    let Following { token, lease_ms, joined, state } = *following;
    let joined = joined.expect("it joins");
    assert_eq!((lease_ms, joined.new, joined.total, state.mode), (90_000, true, 1, Mode::Running));
    assert!(passes(&world.updates()[0], token), "the first update is marked for who made it");
    let Ok(Accepted::Following(again)) = world.handle(both(&ALL)) else { panic!("it is there") };
    assert!(again.joined.is_some_and(|again| !again.new && again.handle != joined.handle));
    world.leave("viewer", 7).expect("it leaves");
    assert_eq!(world.engine.counts().filters, 1, "a lease is nobody's");
}

// --- readers of filters agree with those of everything -----------------------------------------------------------

/// What somebody who follows a filter must be told, out of all that is said: reckoned from the beginning each time.
struct Reference {
    filter: FilterDraft<'static>,
    /// What the follower was answered first, and what has passed since.
    known: Vec<StateUpdate>,
    /// A state inside of the filter's scenes was seen since the last that passed.
    answered_inside: bool,
}

impl Reference {
    fn is_inside(&self, update: &StateUpdate) -> bool {
        self.filter.scenes.is_empty() || scene(update).is_some_and(|scene| self.filter.scenes.contains(&&*scene))
    }

    fn answered(&mut self, state: StateUpdate) {
        if self.known.is_empty() {
            self.known.push(state);
        } else if self.is_inside(&state) {
            self.answered_inside = true;
        }
    }

    fn expects(&mut self, update: &StateUpdate) -> bool {
        let before = self.known.last().expect("it follows");
        let percent = |update: &StateUpdate| update.position_ms as f64 / update.timeline.total_ms() as f64 * 100.0;
        let expected = match update.cause {
            _ if update.mode == Mode::Unknown => true,
            Cause::Scene | Cause::Command | Cause::Lifecycle => {
                self.is_inside(update) || self.is_inside(before) || self.answered_inside
            }
            Cause::Tick | Cause::Snapshot => {
                !self.filter.changes_only
                    && self.is_inside(update)
                    && update.at.since(before.at) >= u64::from(self.filter.min_interval_ms)
                    && (percent(update) - percent(before)).abs() > self.filter.min_progress - 1e-6
            }
        };
        if expected {
            self.known.push(update.clone());
            self.answered_inside = false;
        }
        expected
    }
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Follow(usize),
    Join(u8, bool),
    Leave(u8),
    Command(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop_oneof![1..50u64, 50..3_000u64, 3_000..40_000u64].prop_map(Step::Wait),
        3 => (0..5usize).prop_map(Step::Follow),
        2 => (0..2u8, any::<bool>()).prop_map(|(client, answered)| Step::Join(client, answered)),
        1 => (0..2u8).prop_map(Step::Leave),
        4 => (0..9u8).prop_map(Step::Command),
    ]
}

fn filters() -> [FilterDraft<'static>; 5] {
    [
        ALL,
        FilterDraft { changes_only: true, ..scenes(&["Main"]) },
        FilterDraft { min_interval_ms: 1_500, ..scenes(&["Intro", "Outro"]) },
        FilterDraft { min_progress: 7.0, ..ALL },
        FilterDraft { min_interval_ms: 400, min_progress: 2.0, ..scenes(&["Outro"]) },
    ]
}

proptest! {
    #[test]
    fn who_follows_a_filter_is_told_what_it_says_and_no_more(
        steps in prop::collection::vec(step(), 1..60),
        when_empty in prop::sample::select(vec![WhenEmpty::Restart, WhenEmpty::Freeze, WhenEmpty::RunOn]),
        loop_scenes in any::<bool>(),
    ) {
        let draft = Draft { when_empty, loop_scenes, tick_interval_ms: Some(300), ..show() };
        let mut world = EngineDriver::with_show(&draft);
        // By token, with when the lease ends.
        let mut followed: BTreeMap<u64, (Reference, u64)> = BTreeMap::new();
        for step in steps {
            let answer = match step {
                Step::Wait(ms) => {
                    let end = world.at() + ms;
                    let due = world.engine.next_deadline().map(|due| due.0.saturating_sub(T0));
                    // Sometimes the engine is called when it wants to be, sometimes late.
                    if let Some(due) = due.filter(|due| *due > world.at() && *due < end && ms % 3 != 0) {
                        world.sleep_until(due);
                        world.expire();
                        verify(&mut followed, &world.updates(), None)?;
                        let now = world.at();
                        followed.retain(|_, (_, until)| *until > now);
                    }
                    world.sleep_until(end);
                    world.expire();
                    None
                }
                Step::Follow(number) => {
                    let draft = filters()[number].clone();
                    let answer = world.try_follow("show", &draft).ok();
                    answer.map(|(token, state)| (token, state, draft))
                }
                Step::Join(client, answered) => {
                    let _ = world.register("show", ["a", "b"][usize::from(client)], 0, answered);
                    None
                }
                Step::Leave(client) => {
                    let _ = world.leave(["a", "b"][usize::from(client)], 0);
                    None
                }
                Step::Command(number) => {
                    let command = match number {
                        0 => Command::Pause,
                        1 => Command::Resume,
                        2 => Command::SkipScene,
                        3 => Command::ForceScene("Main"),
                        4 => Command::Seek(12_900),
                        5 => Command::AdjustScene(-2_000),
                        6 => Command::Reset,
                        7 => Command::Start(Some(config(&draft))),
                        _ => Command::PreviousScene,
                    };
                    let _ = world.command("show", command);
                    None
                }
            };
            let said = world.updates();
            verify(&mut followed, &said, answer.as_ref().map(|(token, ..)| *token))?;
            if let Some((token, state, filter)) = answer {
                let until = world.at() + 90_000;
                let entry = followed.entry(token).or_insert_with(|| {
                    (Reference { filter, known: Vec::new(), answered_inside: false }, until)
                });
                entry.0.answered(state);
                entry.1 = until;
            }
            let now = world.at();
            followed.retain(|_, (_, until)| *until > now);
            if world.engine.counts().streams == 0 {
                followed.clear();
            }
        }
    }
}

/// Asserts that these updates are marked as expected; `new` was followed by the call that made them.
fn verify(
    followed: &mut BTreeMap<u64, (Reference, u64)>,
    said: &[StateUpdate],
    new: Option<u64>,
) -> Result<(), TestCaseError> {
    for update in said {
        let marked: Vec<u64> = update.filtered().to_vec();
        for token in &marked {
            prop_assert!(followed.contains_key(token) || new == Some(*token), "nobody follows {}", token);
        }
        for (token, (reference, _)) in followed.iter_mut() {
            prop_assert_eq!(
                marked.contains(token),
                reference.expects(update),
                "{:?} of {:?}",
                update,
                reference.filter
            );
        }
    }
    Ok(())
}
