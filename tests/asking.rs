//! What can be asked of the engine besides states and counts, in virtual time: who watches, and what happened.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is the report")]

use std::collections::BTreeSet;

use driver::{EngineDriver, T0, config, show};
use orchestrator_service::engine::*;
use proptest::prelude::*;

mod driver;

fn stream(id: &str) -> StreamId<'_> {
    StreamId::parse(id).expect("a valid id")
}

fn by(world: &mut EngineDriver, who: &str, command: Command<'_>) -> StateUpdate {
    world.request(Request { issued_by: Some(who), ..Request::new(stream("show"), command) }).expect("it is done")
}

fn history(world: &mut EngineDriver, id: &str, limit: usize, before_revision: Option<u64>) -> Vec<HistoryEntry> {
    match world.handle(Input::GetHistory { stream_id: stream(id), before_revision, limit }) {
        Ok(Accepted::History(entries)) => entries,
        other => panic!("a question was answered with {other:?}"),
    }
}

/// When, since the world began; what; and where it was before, is after it, and was planned to be.
type Outline = (u64, Action, Mode, [u64; 3]);

fn outline(world: &mut EngineDriver) -> Vec<Outline> {
    let entries = history(world, "show", 256, None);
    let of = |entry: &HistoryEntry| {
        let HistoryEntry { position_before_ms, position_ms, planned_position_ms, .. } = *entry;
        (entry.at_ms - T0, entry.action, entry.mode, [position_before_ms, position_ms, planned_position_ms])
    };
    entries.iter().map(of).collect()
}

// --- history -----------------------------------------------------------------------------------------------------

#[test]
fn a_history_tells_where_the_show_was_and_where_it_would_have_been() {
    let mut world = EngineDriver::with_show(&show());
    world.until(1_000);
    world.join("viewer", 0);
    world.until(2_000);
    by(&mut world, "ann", Command::Pause);
    world.until(5_000);
    by(&mut world, "bob", Command::Resume);
    world.until(6_000);
    by(&mut world, "", Command::ForceScene("Outro"));
    world.until(9_000);
    let expected = [
        (8_000, Action::Lifecycle, Mode::Finished, [15_000, 15_000, 7_000]),
        (6_000, Action::ForceScene, Mode::Running, [2_000, 13_000, 5_000]),
        (5_000, Action::Resume, Mode::Running, [1_000, 1_000, 4_000]),
        (2_000, Action::Pause, Mode::Paused, [1_000, 1_000, 1_000]),
        (1_000, Action::Lifecycle, Mode::Running, [0, 0, 0]),
        (0, Action::Start, Mode::Idle, [0, 0, 0]),
    ];
    assert_eq!(outline(&mut world), expected);
    let entries = history(&mut world, "show", 3, Some(6));
    let told: Vec<_> =
        entries.iter().map(|entry| (entry.revision, &*entry.issued_by, entry.scene, entry.loop_count)).collect();
    assert_eq!(told, [(5, "", Some(2), 0), (4, "bob", Some(0), 0), (3, "ann", Some(0), 0)]);
}

#[test]
fn a_plan_begins_anew_with_reset_and_start_and_after_the_grace() {
    let mut world = EngineDriver::with_show(&show());
    world.join("viewer", 0);
    world.until(1_000);
    world.command("show", Command::Seek(9_000)).unwrap();
    world.until(2_000);
    world.command("show", Command::Reset).unwrap();
    world.until(3_000);
    world.command("show", Command::Stop).unwrap();
    world.until(5_000);
    world.command("show", Command::Start(None)).unwrap();
    world.until(6_000);
    world.leave("viewer", 0).unwrap();
    world.until(9_000);
    world.join("viewer", 0);
    world.until(9_500);
    world.command("show", Command::Seek(0)).unwrap();
    world.until(10_500);
    world.command("show", Command::Pause).unwrap();
    let expected = [
        // A jump to 0 is none of the plan.
        (10_500, Action::Pause, Mode::Paused, [1_000, 1_000, 1_500]),
        (9_500, Action::Seek, Mode::Running, [500, 0, 500]),
        (9_000, Action::Lifecycle, Mode::Running, [0, 0, 0]),
        // It left after a second, and the clock ran on for two.
        (8_000, Action::Lifecycle, Mode::Idle, [3_000, 0, 0]),
        (5_000, Action::Start, Mode::Running, [1_000, 0, 0]),
        (3_000, Action::Stop, Mode::Stopped, [1_000, 1_000, 1_000]),
        (2_000, Action::Reset, Mode::Running, [10_000, 0, 0]),
        (1_000, Action::Seek, Mode::Running, [1_000, 9_000, 1_000]),
        (0, Action::Lifecycle, Mode::Running, [0, 0, 0]),
        (0, Action::Start, Mode::Idle, [0, 0, 0]),
    ];
    assert_eq!(outline(&mut world), expected);
}

#[test]
fn a_plan_goes_round_and_stays_where_a_show_would_hold() {
    let mut world = EngineDriver::with_show(&Draft { loop_scenes: true, ..show() });
    world.join("viewer", 0);
    world.until(37_000);
    world.command("show", Command::AdjustScene(5_000)).unwrap();
    world.until(48_000);
    by(&mut world, "", Command::SkipScene);
    let expected = [
        (48_000, Action::SkipScene, Mode::Running, [18_000, 0, 3_000]),
        (37_000, Action::AdjustScene, Mode::Running, [7_000, 7_000, 7_000]),
    ];
    assert_eq!(outline(&mut world)[..2], expected);

    let at_end = AtEnd::Hold { max_hold_ms: None, fallback: None };
    let scenes = vec![Scene { at_end, ..Scene::new("Intro", 3_000) }, Scene::new("Main", 10_000)];
    let mut world = EngineDriver::with_show(&Draft { scenes, ..show() });
    world.join("viewer", 0);
    world.until(4_000);
    by(&mut world, "", Command::SkipScene);
    world.until(6_000);
    by(&mut world, "", Command::Pause);
    let expected = [
        (6_000, Action::Pause, Mode::Paused, [5_000, 5_000, 3_000]),
        (4_000, Action::SkipScene, Mode::Running, [3_000, 3_000, 3_000]),
    ];
    assert_eq!(outline(&mut world)[..2], expected);
}

#[test]
fn what_changes_nothing_is_no_history_and_a_repeat_is_one() {
    let mut world = EngineDriver::with_show(&show());
    world.join("viewer", 0);
    let repeated = || Request { request_id: Some("r"), ..Request::new(stream("show"), Command::Seek(5_000)) };
    world.request(repeated()).unwrap();
    world.request(repeated()).unwrap();
    world.command("show", Command::Resume).unwrap();
    world.command("show", Command::ForceScene("Nowhere")).unwrap_err();
    world
        .request(
            Request::new(stream("show"), Command::Stop)
                .expecting(Expected { revision: Some(1), ..Expected::default() }),
        )
        .unwrap_err();
    let actions: Vec<Action> = history(&mut world, "show", 9, None).into_iter().map(|entry| entry.action).collect();
    assert_eq!(actions, [Action::Seek, Action::Lifecycle, Action::Start]);
}

#[test]
fn an_untouched_stream_takes_nothing_and_its_creation_is_told() {
    let mut world = EngineDriver::new();
    world.handle(Input::WallClock { ms: T0 + 5_000 }).unwrap();
    world.until(1_000);
    world.command("show", Command::Start(Some(config(&show())))).unwrap();
    assert_eq!(world.engine.counts().history_bytes, 0);
    let told = history(&mut world, "show", 256, None);
    assert_eq!((told.len(), told[0].at_ms, told[0].action, told[0].revision), (1, T0 + 6_000, Action::Start, 1));
    assert_eq!(history(&mut world, "show", 256, Some(1)), []);

    // Somebody who says who it is is kept.
    let named = Request::new(stream("named"), Command::Start(Some(config(&show()))));
    world.request(Request { issued_by: Some("ann"), ..named }).unwrap();
    let told = history(&mut world, "named", 256, None);
    assert_eq!((told.len(), &*told[0].issued_by, told[0].at_ms), (1, "ann", T0 + 6_000));
    assert!(world.engine.counts().history_bytes > 0);
}

#[test]
fn a_stream_that_was_created_again_has_a_history_of_its_own() {
    let mut world = EngineDriver::with_show(&show());
    by(&mut world, "ann", Command::Seek(5_000));
    world.command("show", Command::Remove).unwrap();
    assert_eq!(world.engine.counts().history_bytes, 0);
    world.until(10);
    world.command("show", Command::Start(Some(config(&show())))).unwrap();
    assert_eq!(outline(&mut world), [(10, Action::Start, Mode::Idle, [0, 0, 0])]);
    by(&mut world, "ann", Command::Seek(5_000));
    world.until(60_010);
    assert!(!world.exists("show"), "nobody came");
    assert_eq!(world.engine.counts(), Counts::default());
}

#[test]
fn what_does_not_fit_any_more_is_forgotten_and_counted() {
    let limits = Limits { max_history_bytes: 1_000, ..Limits::default() };
    let mut world = EngineDriver::with(Settings { limits, ..Settings::default() });
    world.command("show", Command::Start(Some(config(&show())))).unwrap();
    for position in 0..100 {
        world.command("show", Command::Seek(position)).unwrap();
    }
    let kept = history(&mut world, "show", 256, None);
    assert!((5..20).contains(&kept.len()), "{} entries", kept.len());
    assert_eq!(kept[0].revision, 101);
    assert_eq!(world.engine.history_forgotten_early(), 100 - kept.len() as u64);
    assert!(world.engine.counts().history_bytes <= 1_000);
}

fn any_step() -> impl Strategy<Value = (u64, u8, u64)> {
    (0..4_000_u64, 0..12_u8, 0..16_000_u64)
}

proptest! {
    #[test]
    fn a_history_is_what_was_said_of_commands_and_modes(steps in prop::collection::vec(any_step(), 1..60)) {
        let mut world = EngineDriver::with_show(&Draft { loop_scenes: steps.len() % 2 == 0, ..show() });
        let (mut at, mut said) = (0, Vec::new());
        let note = |said: &mut Vec<StateUpdate>, world: &mut EngineDriver| {
            said.extend(world.updates().into_iter().filter(|update| {
                matches!(update.cause, Cause::Command | Cause::Lifecycle)
            }));
        };
        for (pause_ms, which, number) in steps {
            if pause_ms > 0 {
                at += pause_ms;
                world.sleep_until(at);
                world.expire();
                note(&mut said, &mut world);
            }
            let _ = match which {
                0 => world.command("show", Command::Pause).map(drop),
                1 => world.command("show", Command::Resume).map(drop),
                2 => world.command("show", Command::SkipScene).map(drop),
                3 => world.command("show", Command::Seek(number)).map(drop),
                4 => world.command("show", Command::Reset).map(drop),
                5 => world.command("show", Command::Start(None)).map(drop),
                6 => world.command("show", Command::AdjustScene(number as i64 - 8_000)).map(drop),
                7 if number % 4 == 0 => world.command("show", Command::Stop).map(drop),
                8 => world.leave("viewer", 0).map(drop),
                _ => world.register("show", "viewer", 0, true).map(drop),
            };
            note(&mut said, &mut world);
        }
        prop_assume!(world.exists("show"));
        note(&mut said, &mut world);
        let told = history(&mut world, "show", 256, None);
        // All but the creation, which was heard before.
        prop_assert_eq!(told.len(), said.len() + 1);
        for (entry, update) in told.iter().rev().skip(1).zip(&said) {
            prop_assert_eq!(
                (entry.at_ms, entry.revision, entry.mode, entry.position_ms, entry.loop_count, entry.scene),
                (update.at.0, update.revision, update.mode, update.position_ms, update.loop_count, update.scene)
            );
            prop_assert_eq!(entry.action == Action::Lifecycle, update.cause == Cause::Lifecycle);
        }
    }
}

// --- subscribers -------------------------------------------------------------------------------------------------

fn page(world: &mut EngineDriver, id: &str, from_slot: u32, limit: usize) -> (Vec<SubscriberInfo>, Option<u32>) {
    match world.handle(Input::ListSubscribers { stream_id: stream(id), from_slot, limit }) {
        Ok(Accepted::Subscribers { subscribers, next_slot }) => (subscribers, next_slot),
        other => panic!("a question was answered with {other:?}"),
    }
}

#[test]
fn a_subscriber_is_told_with_when_it_was_last_heard_of() {
    let mut world = EngineDriver::with_show(&show());
    world.join("a", 7);
    world.until(1_000);
    world.beat("a", 7).unwrap();
    world.until(60_000);
    world.join("b", u64::MAX);
    let info = |world: &mut EngineDriver| {
        let (list, next) = page(world, "show", 0, 9);
        assert_eq!(next, None);
        let of = |one: &SubscriberInfo| (one.client_id.to_string(), one.session, one.heard.0 - T0, one.is_stale);
        list.iter().map(of).collect::<Vec<_>>()
    };
    let b = ("b".to_owned(), u64::MAX, 60_000, false);
    assert_eq!(info(&mut world), [("a".to_owned(), 7, 1_000, false), b.clone()]);
    world.until(91_000);
    assert_eq!(info(&mut world), [("a".to_owned(), 7, 1_000, true), b.clone()], "stale, and not yet gone");
    world.until(91_500);
    assert_eq!(info(&mut world), [b]);
}

/// Registers many at once.
fn crowd(world: &mut EngineDriver, id: &str, names: &[String]) {
    for names in names.chunks(1_000) {
        let newcomer = |name| Ok(Newcomer { client_id: ClientId::parse(name).unwrap(), session: 0, source: None });
        let subscribers = names.iter().map(|name| newcomer(name.as_str())).collect();
        world.handle(Input::RegisterBatch { stream_id: stream(id), subscribers, answered: true }).unwrap();
    }
}

#[test]
fn pages_of_a_small_and_of_a_large_audience_have_everybody_once() {
    let names = |kind: &str, count: usize| (0..count).map(|n| format!("{kind}{n}")).collect::<Vec<_>>();
    for (own, others, limit) in [(3_000, 100, 700), (4_200, 100, 700), (4_200, 80_000, 1_000)] {
        let mut world = EngineDriver::new();
        for id in ["show", "other"] {
            world.command(id, Command::Start(Some(config(&show())))).unwrap();
        }
        let (first, second) = (names("a", own / 2), names("b", own / 2));
        crowd(&mut world, "show", &first);
        crowd(&mut world, "other", &names("x", others));
        crowd(&mut world, "show", &second);
        let (mut seen, mut from, mut pages) = (Vec::new(), Some(0), 0);
        while let Some(slot) = from {
            let (list, next) = page(&mut world, "show", slot, limit);
            assert!(list.len() <= limit && next.is_none_or(|next| next > slot));
            seen.extend(list.into_iter().map(|one| one.client_id.to_string()));
            from = next;
            pages += 1;
            // Who was to come next goes, and another one comes: into its slot.
            let leaver = &second[second.len() - pages];
            world
                .handle(Input::Unregister(Subscriber {
                    stream_id: stream("show"),
                    client_id: ClientId::parse(leaver).unwrap(),
                    session: 0,
                }))
                .unwrap();
            world.register("show", &format!("new{pages}"), 0, true).unwrap();
        }
        let gone: BTreeSet<&String> = second.iter().rev().take(pages).collect();
        let stayed: Vec<&String> = first.iter().chain(&second).filter(|name| !gone.contains(name)).collect();
        let distinct: BTreeSet<&String> = seen.iter().collect();
        assert_eq!(distinct.len(), seen.len(), "nobody twice");
        assert!(stayed.iter().all(|name| distinct.contains(name)), "who stayed is listed");
        assert!(pages < 20, "{pages} pages");
    }
}

#[test]
fn behind_the_end_there_is_nobody() {
    let mut world = EngineDriver::with_show(&show());
    world.join("a", 0);
    assert_eq!(page(&mut world, "show", u32::MAX, 5), (vec![], None));
    let unknown = Input::ListSubscribers { stream_id: stream("nobody"), from_slot: 0, limit: 5 };
    assert_eq!(world.handle(unknown), Err(Rejection::StreamNotFound("nobody".to_owned())));
}
