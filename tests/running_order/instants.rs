//! Shows that begin at an instant: who waits for it, and what takes a show off its schedule.

use orchestrator_service::engine::*;

use crate::{
    at,
    driver::{EngineDriver, Said, T0, config, said, show},
    hold, place,
};

fn starting(in_ms: i64) -> Draft<'static> {
    Draft { starts_at_ms: Some(T0.saturating_add_signed(in_ms)), ..show() }
}

#[test]
fn a_thousand_streams_of_one_instant_begin_exactly_at_it() {
    let mut world = EngineDriver::new();
    let names: Vec<String> = (0..1_000).map(|number| format!("s{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        if number % 100 == 0 && number > 0 {
            world.until(number as u64);
        }
        world.command(name, Command::Start(Some(config(&starting(5_000))))).unwrap();
        if number % 2 == 0 {
            world.register(name, "a", 0, true).unwrap();
        }
    }
    world.until(4_999);
    assert_eq!(world.engine.counts().running, 0);
    world.updates();
    world.sleep_until(5_000);
    world.expire();
    let begun = world.updates();
    assert_eq!(begun.len(), 1_000);
    for update in begun {
        assert_eq!((update.mode, update.cause), (Mode::Running, Cause::Lifecycle));
        assert_eq!((update.at, update.position_ms, update.scene), (Tick(T0 + 5_000), 0, Some(0)));
    }
}

#[test]
fn an_instant_is_waited_for_while_somebody_watches() {
    let mut world = EngineDriver::with_show(&starting(5_000));
    let (_, state) = world.join("a", 0);
    assert_eq!((state.mode, state.starts_at_ms(), state.scene), (Mode::Idle, Some(T0 + 5_000), None));
    // Who is not answered is told so by an update.
    world.register("show", "b", 0, false).unwrap();
    assert_eq!(world.until(4_999), [said(0, Cause::Snapshot, Mode::Idle, 0, None)]);
    let told = world.until(7_000);
    let tick = |at| said(at, Cause::Tick, Mode::Running, at - 5_000, "Intro");
    assert_eq!(told, [said(5_000, Cause::Lifecycle, Mode::Running, 0, "Intro"), tick(6_000), tick(7_000)]);
    assert_eq!(world.state("show").unwrap().starts_at_ms(), None);
}

#[test]
fn noticed_late_a_show_is_where_it_would_be_with_holds_and_loops() {
    let mut draft = Draft { loop_scenes: true, ..starting(5_000) };
    draft.scenes[0].at_end = hold(Some(1_000), None);
    for (late, expected) in [
        (2_000, at("Intro", 2_000, None)),
        (3_400, at("Intro", 3_000, 400)),
        (4_400, at("Main", 3_400, None)),
        (16_000 * 7 + 3_999, at("Intro", 3_000, 999)),
    ] {
        // Whoever comes first finds it there, to the millisecond, whenever the engine was called.
        let mut world = EngineDriver::with_show(&draft);
        world.sleep_until(5_000 + late);
        let (_, state) = world.join("a", 0);
        assert_eq!(state.mode, Mode::Running);
        assert_eq!(place(&mut world), expected);
        // The same show, that began so long before it was asked for.
        let mut world = EngineDriver::with_show(&Draft { starts_at_ms: Some(T0 - late), ..draft.clone() });
        assert_eq!(place(&mut world), expected);
    }
}

#[test]
fn unwatched_a_show_plays_from_its_instant_and_goes_when_over() {
    for when_empty in [WhenEmpty::Restart, WhenEmpty::Freeze, WhenEmpty::RunOn] {
        let draft = Draft { when_empty, idle_timeout_ms: Some(1_000), ..starting(90_000) };
        let mut world = EngineDriver::with_show(&draft);
        // Nobody comes for longer than the idle timeout. It waits, begins, and is woken for its end alone.
        assert_eq!(world.until(90_000), [said(90_000, Cause::Lifecycle, Mode::Running, 0, "Intro")]);
        assert_eq!(world.until(100_000), []);
        world.join("a", 0);
        assert_eq!(world.show(), (Mode::Running, 10_000));
        world.leave("a", 0).unwrap();
        world.until(104_999);
        assert_eq!(world.show(), (Mode::Running, 14_999), "nothing restarts or freezes it");
        let last = world.until(106_000);
        let over = Said { loops: 1, ..said(105_000, Cause::Lifecycle, Mode::Finished, 15_000, None) };
        let gone = Said { at: 106_000, mode: Mode::Unknown, ..over.clone() };
        assert_eq!(last, [over, gone]);
    }
}

#[test]
fn a_clock_that_is_set_is_obeyed_only_while_it_waits() {
    let mut world = EngineDriver::with_show(&starting(60_000));
    let set = |world: &mut EngineDriver, wall: u64| {
        world.handle(Input::WallClock { ms: T0 + wall }).unwrap();
    };
    world.until(1_000);
    // Back: it waits longer; forth: not as long.
    set(&mut world, 0);
    assert!(world.engine.next_deadline() <= Some(Tick(T0 + 61_000)));
    set(&mut world, 55_000);
    assert!(world.engine.next_deadline() <= Some(Tick(T0 + 6_000)));
    assert_eq!(world.until(6_000), [said(6_000, Cause::Lifecycle, Mode::Running, 0, "Intro")]);
    world.until(8_000);
    for wall in [0, 3_600_000] {
        set(&mut world, wall);
        assert_eq!(world.show(), (Mode::Running, 2_000));
    }
    // Set beyond the instant, it is where it would be by then; beyond its end, it is over.
    for (wall, expected) in [(64_000, (Mode::Running, 4_000)), (75_000, (Mode::Finished, 15_000))] {
        let mut world = EngineDriver::with_show(&starting(60_000));
        world.until(1_000);
        set(&mut world, wall);
        world.expire();
        assert_eq!(world.show(), expected);
    }
}

#[test]
fn a_jump_a_pause_and_a_reset_take_a_show_off_its_schedule() {
    // While it waits, whoever watches sees it play from there.
    for (command, position) in [(Command::ForceScene("Main"), 3_000), (Command::Seek(700), 700), (Command::Reset, 0)] {
        let mut world = EngineDriver::with_show(&starting(5_000));
        world.join("a", 0);
        let state = world.command("show", command.clone()).unwrap();
        assert_eq!((state.mode, state.position_ms, state.starts_at_ms()), (Mode::Running, position, None));
        world.until(6_000);
        assert_eq!(world.show(), (Mode::Running, position + 6_000), "the instant means nothing any more");
        // Unwatched it waits there for somebody, and for no longer than others do.
        let mut world = EngineDriver::with_show(&starting(500_000));
        world.until(100_000);
        world.command("show", command).unwrap();
        assert_eq!(world.show(), (Mode::Idle, position));
        world.until(159_999);
        assert!(world.exists("show"), "since then nobody watches it");
        world.until(160_000);
        assert!(!world.exists("show"));
    }
    // While it plays unwatched, what it does then is what others do.
    for (when_empty, mode) in [(WhenEmpty::Freeze, Mode::Idle), (WhenEmpty::Restart, Mode::Running)] {
        let mut world = EngineDriver::with_show(&Draft { when_empty, ..starting(0) });
        world.until(1_000);
        let state = world.command("show", Command::SkipScene).unwrap();
        assert_eq!((state.mode, state.position_ms), (mode, 3_000));
        world.until(3_500);
        let expected = if mode == Mode::Idle { 3_000 } else { 0 };
        assert_eq!(world.show(), (Mode::Idle, expected), "the grace began when it left its schedule");
    }
    // One that is paused goes on from there.
    let mut world = EngineDriver::with_show(&starting(0));
    world.join("a", 0);
    world.until(1_000);
    world.command("show", Command::Pause).unwrap();
    world.until(2_000);
    world.command("show", Command::Resume).unwrap();
    world.until(3_000);
    assert_eq!(world.show(), (Mode::Running, 2_000));
}

#[test]
fn adjusting_and_reporting_leave_a_show_on_its_schedule() {
    let mut world = EngineDriver::with_show(&starting(5_000));
    let status = Command::UpdateStreamStatus { is_streaming: true, stream_time_ms: 0, timecode: "" };
    for command in [Command::AdjustScene(500), status, Command::Start(None)] {
        let state = world.command("show", command).unwrap();
        assert_eq!((state.mode, state.starts_at_ms()), (Mode::Idle, Some(T0 + 5_000)));
    }
    world.until(8_400);
    assert_eq!(place(&mut world), at("Intro", 3_400, None), "and it is as long as it was adjusted to");
    world.command("show", Command::AdjustScene(-100)).unwrap();
    world.until(8_500);
    assert_eq!(place(&mut world), at("Main", 3_500, None));
    let end = 5_000 + 15_400;
    let finished = world.until(end).last().map(|said| (said.at, said.mode));
    assert_eq!(finished, Some((end, Mode::Finished)), "unwatched it plays to its end");
}

#[test]
fn reconfigure_puts_a_show_on_another_schedule_or_on_none() {
    let reconfigured = |before: &Draft<'_>, watched: bool, after: &Draft<'_>| {
        let mut world = EngineDriver::with_show(before);
        if watched {
            world.join("a", 0);
        }
        world.until(1_000);
        world.command("show", Command::Reconfigure(config(after))).unwrap();
        let state = world.state("show").unwrap();
        (state.mode, state.position_ms, state.starts_at_ms().map(|at| at - T0))
    };
    let waits = (Mode::Idle, 0, Some(9_000));
    for before in [show(), starting(5_000), starting(0)] {
        for watched in [true, false] {
            assert_eq!(reconfigured(&before, watched, &starting(9_000)), waits);
            assert_eq!(reconfigured(&before, watched, &starting(-400)), (Mode::Running, 1_400, None));
            assert_eq!(reconfigured(&before, watched, &starting(-14_000)), (Mode::Finished, 15_000, None));
        }
    }
    // The same instant changes nothing; none any more makes it one like others.
    let retitled = |in_ms| Draft { title: "Another", ..starting(in_ms) };
    assert_eq!(reconfigured(&starting(9_000), true, &retitled(9_000)), waits);
    assert_eq!(reconfigured(&starting(0), false, &retitled(0)), (Mode::Running, 1_000, None));
    assert_eq!(reconfigured(&starting(9_000), true, &show()), (Mode::Running, 0, None));
    assert_eq!(reconfigured(&starting(9_000), false, &show()), (Mode::Idle, 0, None));
    assert_eq!(reconfigured(&starting(0), true, &show()), (Mode::Running, 1_000, None));
    // What was stopped stays so, until it is started: on schedule while its instant is ahead.
    let mut world = EngineDriver::with_show(&show());
    world.command("show", Command::Stop).unwrap();
    world.command("show", Command::Reconfigure(config(&starting(5_000)))).unwrap();
    assert_eq!(world.show(), (Mode::Stopped, 0));
    let started = world.command("show", Command::Start(None)).unwrap();
    assert_eq!((started.mode, started.starts_at_ms()), (Mode::Idle, Some(T0 + 5_000)));
    world.until(6_000);
    world.command("show", Command::Stop).unwrap();
    let again = world.command("show", Command::Start(None)).unwrap();
    assert_eq!((again.mode, again.position_ms, again.starts_at_ms()), (Mode::Idle, 0, None), "its instant is over");
}

#[test]
fn an_instant_more_than_a_year_ahead_by_the_wall_clock_is_refused() {
    let mut world = EngineDriver::with_show(&show());
    let year = MAX_DURATION_MS.cast_signed();
    let start = |in_ms| Command::Start(Some(config(&starting(in_ms))));
    let error = world.command("other", start(year + 1)).unwrap_err().to_string();
    let (latest, given) = (T0 + MAX_DURATION_MS, T0 + MAX_DURATION_MS + 1);
    let words = format!("starts_at_ms must be at most 31536000000 ms (365 days) ahead, that is {latest}, not {given}");
    assert_eq!(error, words);
    assert!(world.command("show", Command::Reconfigure(config(&starting(year + 1)))).is_err());
    world.handle(Input::WallClock { ms: T0 + 1 }).unwrap();
    assert!(world.command("other", start(year + 1)).is_ok());
    let error =
        world.command("another", Command::Start(Some(config(&Draft { starts_at_ms: Some(u64::MAX), ..show() }))));
    assert!(error.is_err());
    // Any time ago will do: a loop of 15 s has been through many passes since 1970.
    let draft = Draft { starts_at_ms: Some(1), loop_scenes: true, ..show() };
    let state = world.command("another", Command::Start(Some(config(&draft)))).unwrap();
    assert_eq!((state.loop_count, state.position_ms), (T0 / 15_000, T0 % 15_000));
}
