//! Scenes that hold: how long, where to, and what becomes of a hold that somebody meddles with.

use orchestrator_service::engine::*;

use crate::{
    at,
    driver::{EngineDriver, Said, T0, config, said, show},
    hold, holding, place, scenes,
};

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
