//! Rules of a running order by name: scenes that hold, that are called alike, that begin at an instant; who may change it
//! on what condition; and what is told of it without ticks. Random runs meet all of them, and say less of what they mean.

use driver::{EngineDriver, Said, config, said, show};
use orchestrator_service::engine::*;

#[path = "../driver/mod.rs"]
mod driver;
mod holds;
mod instants;

pub(crate) fn stream(id: &str) -> StreamId<'_> {
    StreamId::parse(id).expect("a valid id")
}

pub(crate) const fn hold(max_hold_ms: Option<u64>, fallback: Option<&'static str>) -> AtEnd<'static> {
    AtEnd::Hold { max_hold_ms, fallback }
}

/// The show, whose intro holds.
pub(crate) fn holding(max_hold_ms: Option<u64>, fallback: Option<&'static str>) -> Draft<'static> {
    let mut draft = show();
    draft.scenes[0].at_end = hold(max_hold_ms, fallback);
    draft
}

/// Scene, position and overtime of `show`.
pub(crate) fn place(world: &mut EngineDriver) -> (Option<String>, u64, Option<u64>) {
    let state = world.state("show").expect("the show is there");
    (state.scene.map(|scene| state.timeline.name(scene).to_owned()), state.position_ms, state.overtime_ms())
}

pub(crate) fn at(
    scene: &str,
    position_ms: u64,
    overtime_ms: impl Into<Option<u64>>,
) -> (Option<String>, u64, Option<u64>) {
    (Some(scene.to_owned()), position_ms, overtime_ms.into())
}

pub(crate) fn scenes(said: &[Said]) -> Vec<(u64, Option<&str>)> {
    let scene = |said: &&Said| said.cause == Cause::Scene;
    said.iter().filter(scene).map(|said| (said.at, said.scene.as_deref())).collect()
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
