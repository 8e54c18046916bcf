//! Rules of a running order by name: scenes that hold, that are called alike, that begin at an instant; who may change it
//! on what condition; and what is told of it without ticks. Random runs meet all of them, and say less of what they mean.

use driver::{EngineDriver, Said, T0, config, said, show};
use orchestrator_service::engine::*;

mod driver;

fn stream(id: &str) -> StreamId<'_> {
    StreamId::parse(id).expect("a valid id")
}

const fn hold(max_hold_ms: Option<u64>, fallback: Option<&'static str>) -> AtEnd<'static> {
    AtEnd::Hold { max_hold_ms, fallback }
}

/// The show, whose intro holds.
fn holding(max_hold_ms: Option<u64>, fallback: Option<&'static str>) -> Draft<'static> {
    let mut draft = show();
    draft.scenes[0].at_end = hold(max_hold_ms, fallback);
    draft
}

/// Scene, position and overtime of `show`.
fn place(world: &mut EngineDriver) -> (Option<String>, u64, Option<u64>) {
    let state = world.state("show").expect("the show is there");
    (state.scene.map(|scene| state.timeline.name(scene).to_owned()), state.position_ms, state.overtime_ms())
}

fn at(scene: &str, position_ms: u64, overtime_ms: impl Into<Option<u64>>) -> (Option<String>, u64, Option<u64>) {
    (Some(scene.to_owned()), position_ms, overtime_ms.into())
}

fn scenes(said: &[Said]) -> Vec<(u64, Option<&str>)> {
    let scene = |said: &&Said| said.cause == Cause::Scene;
    said.iter().filter(scene).map(|said| (said.at, said.scene.as_deref())).collect()
}

// --- holds ------------------------------------------------------------------------------------------------------------

#[test]
fn a_hold_keeps_the_position_until_somebody_goes_on() {
    let mut world = EngineDriver::with_show(&holding(None, None));
    world.join("a", 0);
    let before = world.state("show").unwrap().revision;
    assert_eq!(scenes(&world.until(3_000)), [(3_000, Some("Intro"))], "its beginning is told");
    assert_eq!(place(&mut world), at("Intro", 3_000, 0));
    assert_eq!(scenes(&world.until(5_500)), [], "once");
    assert_eq!(place(&mut world), at("Intro", 3_000, 2_500));
    let state = world.state("show").unwrap();
    assert_eq!((state.mode, state.revision), (Mode::Running, before), "it changed by itself");
    world.command("show", Command::SkipScene).unwrap();
    assert_eq!(place(&mut world), at("Main", 3_000, None));
    world.until(6_500);
    assert_eq!(place(&mut world), at("Main", 4_000, None));
    // Whoever goes back goes to its start.
    world.command("show", Command::ForceScene("Intro")).unwrap();
    world.until(10_500);
    assert_eq!(place(&mut world), at("Intro", 3_000, 1_000));
    world.command("show", Command::PreviousScene).unwrap();
    assert_eq!(place(&mut world), at("Intro", 0, None));
}

#[test]
fn a_hold_that_runs_out_leads_on_or_to_its_fallback_punctually() {
    for (fallback, next) in [(None, "Main"), (Some("Outro"), "Outro")] {
        let mut world = EngineDriver::with_show(&holding(Some(700), fallback));
        world.join("a", 0);
        assert_eq!(scenes(&world.until(3_800)), [(3_000, Some("Intro")), (3_700, Some(next))]);
        let (_, position, overtime) = place(&mut world);
        assert_eq!((position, overtime), (if fallback.is_some() { 13_100 } else { 3_100 }, None));
    }
}

#[test]
fn unwatched_a_hold_comes_and_goes_without_a_wake_up() {
    let draft = Draft { when_empty: WhenEmpty::RunOn, ..holding(Some(700), Some("Outro")) };
    let mut world = EngineDriver::with_show(&draft);
    world.join("a", 0);
    world.until(1);
    world.leave("a", 0).unwrap();
    world.heard();
    world.sleep_until(3_650);
    assert_eq!(place(&mut world), at("Intro", 3_000, 650));
    world.sleep_until(4_000);
    assert_eq!(place(&mut world), at("Outro", 13_300, None));
    assert_eq!(world.until(5_700), [Said { loops: 1, ..said(5_700, Cause::Lifecycle, Mode::Finished, 15_000, None) }]);
}

/// How often the engine wants to be called until then. A timer that is far away is looked at a few times.
fn calls_until(world: &mut EngineDriver, at: u64) -> usize {
    let mut calls = 0;
    while let Some(due) = world.engine.next_deadline().filter(|due| *due <= Tick(T0 + at)) {
        if due > Tick(T0 + world.at()) {
            world.sleep_until(due.0 - T0);
        }
        world.expire();
        calls += 1;
    }
    calls
}

#[test]
fn a_thousand_holds_that_nobody_watches_wake_nobody() {
    let scene = |number: usize| {
        let fallback = (number % 3 == 1 && number < 990).then_some("last");
        Scene { at_end: hold(Some(2_000), fallback), ..Scene::new("a", 1_000) }
    };
    let mut scenes: Vec<Scene<'_>> = (0..1_000).map(scene).collect();
    scenes[997].name = "last";
    for (when_empty, starts_at_ms) in [(WhenEmpty::RunOn, None), (WhenEmpty::Restart, Some(T0))] {
        let scenes = scenes.clone();
        let loop_scenes = true;
        let draft =
            Draft { scenes, loop_scenes, when_empty, starts_at_ms, idle_timeout_ms: Some(86_400_000), ..show() };
        let mut world = EngineDriver::with_show(&draft);
        world.join("a", 0);
        world.leave("a", 0).unwrap();
        world.heard();
        let calls = calls_until(&mut world, 80_000_000);
        assert!(calls < 10, "{calls} calls in 80,000 s");
        assert_eq!(world.heard(), []);
        // Two scenes and their holds, the fallback, and two more: 15 s a pass.
        world.sleep_until(80_000_001);
        let state = world.state("show").unwrap();
        assert_eq!((state.loop_count, state.scene, state.overtime_ms()), (5_333, Some(1), Some(1_001)));
        world.sleep_until(80_001_001);
        assert_eq!(world.state("show").unwrap().scene, Some(997));
    }
}

#[test]
fn an_endless_hold_has_no_end_to_wake_up_for() {
    let mut world = EngineDriver::with_show(&Draft { no_ticks: true, ..holding(None, None) });
    world.join("a", 0);
    world.until(3_000);
    assert!(calls_until(&mut world, 89_999) < 10, "until that one goes stale");
    assert_eq!(place(&mut world).2.map(|ms| ms > 80_000), Some(true));
}

#[test]
fn pause_resume_and_frozen_streams_keep_overtime() {
    let mut world = EngineDriver::with_show(&Draft { when_empty: WhenEmpty::Freeze, ..holding(Some(5_000), None) });
    world.join("a", 0);
    world.until(4_000);
    world.command("show", Command::Pause).unwrap();
    world.until(9_000);
    assert_eq!(place(&mut world), at("Intro", 3_000, 1_000));
    world.command("show", Command::Resume).unwrap();
    world.until(10_000);
    assert_eq!(place(&mut world), at("Intro", 3_000, 2_000));
    world.leave("a", 0).unwrap();
    world.until(20_000);
    assert_eq!((world.show(), place(&mut world)), ((Mode::Idle, 3_000), at("Intro", 3_000, 2_000)));
    world.join("a", 0);
    assert_eq!(scenes(&world.until(23_000)), [(23_000, Some("Main"))]);
}

#[test]
fn a_holding_scene_lengthened_plays_on_and_shortened_holds_on() {
    let mut world = EngineDriver::with_show(&holding(None, None));
    world.join("a", 0);
    world.until(4_000);
    let revision = world.state("show").unwrap().revision;
    let shortened = world.command("show", Command::AdjustScene(-500)).unwrap();
    assert_eq!((shortened.overtime_ms(), shortened.revision), (Some(1_000), revision + 1));
    assert_eq!(place(&mut world), at("Intro", 3_000, 1_000));
    world.command("show", Command::AdjustScene(2_000)).unwrap();
    assert_eq!(place(&mut world), at("Intro", 3_000, None));
    assert_eq!(scenes(&world.until(6_500)), [(6_000, Some("Intro"))]);
    assert_eq!(place(&mut world), at("Intro", 5_000, 500));
}

#[test]
fn a_scene_shortened_to_what_has_played_holds_at_once() {
    let mut world = EngineDriver::with_show(&holding(Some(1_000), None));
    world.join("a", 0);
    world.until(1_200);
    let state = world.command("show", Command::AdjustScene(i64::MIN)).unwrap();
    assert_eq!((state.scene, state.position_ms, state.overtime_ms()), (Some(0), 1_200, Some(0)));
    assert_eq!(scenes(&world.until(2_200)), [(2_200, Some("Main"))]);
}

#[test]
fn reconfigure_while_holding_holds_on_plays_on_or_goes_on() {
    let after = |draft: &Draft<'_>| {
        let mut world = EngineDriver::with_show(&holding(None, None));
        world.join("a", 0);
        world.until(4_000);
        world.command("show", Command::Reconfigure(config(draft))).unwrap();
        place(&mut world)
    };
    let longer = |ms| {
        let mut draft = holding(Some(90_000), None);
        draft.scenes[0].duration_ms = ms;
        draft
    };
    assert_eq!(after(&longer(3_000)), at("Intro", 3_000, 1_000));
    assert_eq!(after(&longer(2_000)), at("Intro", 2_000, 1_000), "shorter: it has played all of it");
    assert_eq!(after(&longer(5_000)), at("Intro", 3_000, None), "longer: it plays on");
    assert_eq!(after(&show()), at("Main", 3_000, None), "no hold any more");
    assert_eq!(after(&holding(Some(1_000), Some("Outro"))), at("Outro", 13_000, None), "a hold that is over by now");
}

#[test]
fn ten_thousand_passes_with_holds_do_not_drift_by_a_millisecond() {
    let mut draft = Draft { loop_scenes: true, tick_interval_ms: Some(60_000), ..show() };
    draft.scenes = vec![
        Scene { at_end: hold(Some(70), None), ..Scene::new("a", 30) },
        Scene { at_end: hold(Some(40), Some("d")), ..Scene::new("b", 20) },
        Scene { at_end: hold(None, None), ..Scene::new("c", 500) },
        Scene { at_end: hold(Some(11), None), ..Scene::new("d", 29) },
    ];
    // 30 + 70, 20 + 40, never c, 29 + 11.
    const PASS_MS: u64 = 200;
    let mut world = EngineDriver::with_show(&draft);
    world.join("a", 0);
    let mut expected = (0..).flat_map(|pass| [30, 100, 120, 160, 189, 200].map(|ms| pass * PASS_MS + ms));
    for pass in 1..=10_000_u64 {
        if pass % 400 == 0 {
            world.beat("a", 0).unwrap();
        }
        for said in world.until(pass * PASS_MS).iter().filter(|said| said.cause == Cause::Scene) {
            assert_eq!(Some(said.at), expected.next(), "{said:?}");
        }
        let state = world.state("show").unwrap();
        assert_eq!((state.loop_count, state.position_ms, state.scene), (pass, 0, Some(0)));
    }
}

// --- names ------------------------------------------------------------------------------------------------------------

/// Three breaks, the second of which has an id, around two scenes.
fn rundown() -> Draft<'static> {
    let scenes = vec![
        Scene::new("Break", 1_000),
        Scene::new("News", 1_000),
        Scene { id: Some("second"), ..Scene::new("Break", 1_000) },
        Scene { id: Some("Weather"), ..Scene::new("Sports", 1_000) },
        Scene::new("Break", 1_000),
    ];
    Draft { scenes, tick_interval_ms: Some(60_000), ..show() }
}

#[test]
fn a_scene_is_forced_by_its_id_and_else_the_next_of_its_name() {
    let mut world = EngineDriver::with_show(&rundown());
    let force = |world: &mut EngineDriver, named: &'static str| {
        world.command("show", Command::ForceScene(named)).map(|state| state.scene.unwrap_or_default())
    };
    // Nothing is current: the first of that name. It is where it begins, before the start.
    assert_eq!(force(&mut world, "Break"), Ok(0));
    world.join("a", 0);
    assert_eq!([2, 4, 0, 2].map(|_| force(&mut world, "Break").unwrap()), [2, 4, 0, 2], "around the end");
    assert_eq!((force(&mut world, "Weather"), force(&mut world, "second")), (Ok(3), Ok(2)));
    assert_eq!(force(&mut world, "News"), Ok(1), "also back");
    assert_eq!(force(&mut world, "Sports"), Ok(3));
    assert_eq!(force(&mut world, "Nowhere"), Err(Rejection::SceneNotFound("Nowhere".to_owned())));
}

#[test]
fn reconfigure_keeps_the_scene_of_that_id_or_the_same_of_its_name() {
    let after = |from: u64, scenes: Vec<Scene<'static>>| {
        let mut world = EngineDriver::with_show(&rundown());
        world.join("a", 0);
        world.until(1);
        world.command("show", Command::Seek(from + 300)).unwrap();
        let draft = Draft { scenes, ..rundown() };
        let state = world.command("show", Command::Reconfigure(config(&draft))).unwrap();
        (state.scene, state.position_ms)
    };
    let plain = |names: &[&'static str]| names.iter().map(|name| Scene::new(name, 1_000)).collect::<Vec<_>>();
    // The third break stays the third, or becomes the last there is.
    assert_eq!(after(4_000, plain(&["Break", "Break", "Break", "Break"])), (Some(2), 2_300));
    assert_eq!(after(4_000, plain(&["Break", "Break", "News"])), (Some(1), 1_300));
    // One with an id is found wherever it is, and by its name if that is gone.
    let mut moved = plain(&["Break", "News", "Break"]);
    moved[0].id = Some("second");
    assert_eq!(after(2_000, moved), (Some(0), 300));
    assert_eq!(after(2_000, plain(&["News", "Break", "Break"])), (Some(2), 2_300));
}

// --- conditions -------------------------------------------------------------------------------------------------------

fn skip(scene: Option<&str>) -> Request<'_> {
    Request::new(stream("show"), Command::SkipScene).expecting(Expected { scene, ..Expected::default() })
}

/// Two people press within 20 ms of the end of a scene, whom the wire takes up to 20 ms. Returns how often one press was
/// one too many.
fn double_skips(expecting: bool) -> usize {
    let mut random = 7_u32;
    let mut draw = |below: u64| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        u64::from(random >> 8) % below
    };
    let mut double = 0;
    for round in 0..1_000 {
        let names = ["One", "Two", "Three", "Four"];
        let scenes = names.iter().map(|name| Scene::new(name, 1_000)).collect();
        let mut world = EngineDriver::with_show(&Draft { scenes, tick_interval_ms: Some(60_000), ..show() });
        world.join("a", 0);
        // Pressed in the last moments of the first scene, which both see; it comes before its end, or after.
        let mut presses = [980 + draw(40), 980 + draw(40)];
        presses.sort_unstable();
        for at in presses {
            if at > world.at() {
                world.until(at);
            }
            let result = world.request(skip(expecting.then_some("One")));
            assert!(expecting || result.is_ok(), "round {round}");
        }
        world.until(1_030);
        let scene = world.state("show").expect("the show is there").scene;
        assert!(scene >= Some(1), "round {round}: a press that came in time was carried out, or time did it");
        double += usize::from(scene > Some(1));
    }
    double
}

#[test]
fn two_who_skip_within_20_ms_of_a_boundary_never_skip_two_scenes() {
    assert_eq!(double_skips(true), 0);
    assert!(double_skips(false) > 500, "which happens to those who expect nothing");
}

#[test]
fn a_command_that_expects_another_scene_is_told_which_it_is() {
    let mut world = EngineDriver::with_show(&rundown());
    world.join("a", 0);
    let revision = world.state("show").unwrap().revision;
    world.heard();
    let refused = |expected: &str, actual: &str| {
        let mismatch = Box::new(Mismatch::Scene { expected: expected.to_owned(), actual: actual.to_owned() });
        Err(Rejection::Conflict { mismatch, revision })
    };
    assert_eq!(world.request(skip(Some("News"))), refused("News", "Break"));
    assert_eq!(world.request(skip(Some(""))), refused("", "Break"));
    assert_eq!(world.heard(), [], "nothing has changed");
    let words = world.request(skip(Some("News"))).unwrap_err().to_string();
    assert_eq!(words, "expected_scene: \"News\" was expected, the stream is in \"Break\"");
    // By name or by id.
    for expected in ["Break", "News", "second"] {
        world.request(skip(Some(expected))).expect(expected);
    }
    world.request(skip(Some("Sports"))).unwrap();
    world.command("show", Command::Stop).unwrap();
    world.command("show", Command::Start(None)).unwrap();
    // Before the start there is none.
    world.leave("a", 0).unwrap();
    world.until(2_000);
    let start = skip(Some(""));
    assert!(world.request(start.clone()).is_ok());
    let Err(Rejection::Conflict { mismatch, .. }) = world.request(start) else { panic!("a scene is current") };
    assert!(matches!(*mismatch, Mismatch::Scene { .. }));
}

#[test]
fn a_command_for_a_stream_that_was_created_again_meets_a_conflict() {
    let mut world = EngineDriver::with_show(&show());
    let epoch = world.state("show").unwrap().epoch;
    let of =
        |epoch, command| Request::new(stream("show"), command).expecting(Expected { epoch, ..Expected::default() });
    let stop = |epoch| of(epoch, Command::Stop);
    assert!(world.request(stop(Some(epoch))).is_ok());
    world.command("show", Command::Remove).unwrap();
    assert!(matches!(world.request(stop(Some(epoch))), Err(Rejection::StreamNotFound(_))), "it is not there");
    let start = |epoch| of(epoch, Command::Start(Some(config(&show()))));
    let gone = Box::new(Mismatch::Epoch { expected: epoch, actual: 0 });
    assert_eq!(world.request(start(Some(epoch))), Err(Rejection::Conflict { mismatch: gone, revision: 0 }));
    let again = world.request(start(Some(0))).unwrap();
    let mismatch = Box::new(Mismatch::Epoch { expected: epoch, actual: again.epoch });
    assert_eq!(world.request(stop(Some(epoch))), Err(Rejection::Conflict { mismatch, revision: 1 }));
}

#[test]
fn what_a_request_expects_and_who_asks_are_a_part_of_it() {
    let mut world = EngineDriver::with_show(&show());
    world.join("a", 0);
    let pause = Request { request_id: Some("r"), ..Request::new(stream("show"), Command::Pause) };
    world.request(pause.clone()).unwrap();
    for other in [
        pause.clone().expecting(Expected { epoch: Some(1), ..Expected::default() }),
        pause.clone().expecting(Expected { scene: Some("Intro"), ..Expected::default() }),
        Request { issued_by: Some("somebody else"), ..pause.clone() },
    ] {
        assert_eq!(world.request(other), Err(Rejection::RequestIdTaken("r".to_owned())));
    }
    assert!(world.request(pause).is_ok());
}

// --- instants ---------------------------------------------------------------------------------------------------------

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

// --- what is told -----------------------------------------------------------------------------------------------------

#[test]
fn without_ticks_all_but_ticks_is_told() {
    let mut draft = Draft { no_ticks: true, tick_interval_ms: Some(10), ..holding(Some(1_000), None) };
    draft.loop_scenes = true;
    let mut world = EngineDriver::with_show(&draft);
    world.join("a", 0);
    world.heard();
    let scene = |at, position, scene| said(at, Cause::Scene, Mode::Running, position, scene);
    let told = world.until(16_000);
    let expected = [scene(3_000, 3_000, "Intro"), scene(4_000, 3_000, "Main"), scene(14_000, 13_000, "Outro")];
    assert_eq!(told[..3], expected);
    assert_eq!(told[3..], [Said { loops: 1, ..scene(16_000, 0, "Intro") }]);
    world.register("show", "b", 0, false).unwrap();
    world.command("show", Command::Pause).unwrap();
    world.until(17_000);
    world.command("show", Command::Resume).unwrap();
    assert_eq!(world.heard().len(), 1);
    // A Reconfigure brings them back, and takes them away.
    world.command("show", Command::Reconfigure(config(&Draft { no_ticks: false, ..draft.clone() }))).unwrap();
    world.heard();
    assert_eq!(world.until(17_050).len(), 5);
    world.command("show", Command::Reconfigure(config(&draft))).unwrap();
    world.heard();
    assert_eq!(world.until(18_000), []);
}

#[test]
fn what_an_encoder_reports_every_second_voids_no_expected_revision() {
    let mut world = EngineDriver::with_show(&show());
    world.join("a", 0);
    let report = |is_streaming, timecode| Command::UpdateStreamStatus { is_streaming, stream_time_ms: 7, timecode };
    let before = world.state("show").unwrap().revision;
    world.heard();
    // It does not stream, and did not: no change.
    assert_eq!(world.command("show", report(false, "00:01")).unwrap().revision, before);
    assert_eq!(world.heard(), []);
    let begun = world.command("show", report(true, "00:02")).unwrap();
    assert_eq!((begun.revision, world.heard().len()), (before + 1, 1));
    let newer = world.command("show", report(true, "00:03")).unwrap();
    assert_eq!((newer.revision, world.heard().len()), (before + 1, 0));
    assert_eq!(newer.status.map(|status| status.timecode.clone()), Some("00:03".into()));
    // It goes with the next update.
    world.until(999);
    world.sleep_until(1_000);
    world.expire();
    let timecodes: Vec<_> = world.updates().iter().filter_map(|update| update.status.clone()).collect();
    assert_eq!(timecodes.iter().map(|status| &*status.timecode).collect::<Vec<_>>(), ["00:03"]);
    assert_eq!(world.command("show", report(false, "00:04")).unwrap().revision, before + 2);
}

#[test]
fn config_revision_is_that_of_the_last_change_of_scenes_or_lengths() {
    let mut world = EngineDriver::with_show(&Draft { loop_scenes: true, ..show() });
    let told = |state: StateUpdate| (state.revision, state.config_revision);
    assert_eq!(told(world.state("show").unwrap()), (1, 1));
    world.join("a", 0);
    assert_eq!(told(world.command("show", Command::SkipScene).unwrap()), (3, 1));
    assert_eq!(told(world.command("show", Command::Reset).unwrap()), (4, 1), "all was as configured");
    assert_eq!(told(world.command("show", Command::AdjustScene(500)).unwrap()), (5, 5));
    assert_eq!(told(world.command("show", Command::Reset).unwrap()), (6, 6), "the lengths are as configured again");
    assert_eq!(told(world.command("show", Command::Reconfigure(config(&show()))).unwrap()), (7, 7));
    world.command("show", Command::AdjustScene(-100)).unwrap();
    world.command("show", Command::Stop).unwrap();
    assert_eq!(told(world.command("show", Command::Start(None)).unwrap()), (10, 10));
    // Nobody comes back within the grace.
    world.command("show", Command::AdjustScene(-100)).unwrap();
    world.leave("a", 0).unwrap();
    world.until(2_000);
    assert_eq!(told(world.state("show").unwrap()), (12, 12));
    // A new pass puts them back as well, which loop_count tells.
    world.command("show", Command::Reconfigure(config(&Draft { loop_scenes: true, ..show() }))).unwrap();
    world.join("a", 0);
    world.command("show", Command::AdjustScene(-2_000)).unwrap();
    world.until(15_001);
    let state = world.state("show").unwrap();
    assert_eq!((state.loop_count, state.timeline.total_ms(), told(state)), (1, 15_000, (15, 15)));
}
