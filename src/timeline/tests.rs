use super::*;

const INTRO_MAIN: [Scene<'_>; 2] = [Scene::new("Intro", 3_000), Scene::new("Main", 10_000)];

fn timeline(scenes: &[Scene<'_>]) -> Result<Timeline, TimelineError> {
    Timeline::new(scenes, SceneLimits::default())
}

fn at(position_ms: u64, scene: u32, elapsed_ms: u64, remaining_ms: u64) -> Place {
    Place { scene, position_ms, elapsed_ms, remaining_ms, overtime_ms: None }
}

#[test]
fn a_position_falls_into_the_scene_that_begins_there() {
    let timeline = timeline(&INTRO_MAIN).unwrap();
    assert_eq!(timeline.place(0), at(0, 0, 0, 3_000));
    assert_eq!(timeline.place(2_999), at(2_999, 0, 2_999, 1));
    assert_eq!(timeline.place(3_000), at(3_000, 1, 0, 10_000));
    assert_eq!(timeline.place(13_000), at(13_000, 1, 10_000, 0));
    assert_eq!((timeline.name(0), timeline.name(1)), ("Intro", "Main"));
}

#[test]
fn a_scene_shortened_to_nothing_is_passed_over() {
    let timeline = timeline(&INTRO_MAIN).unwrap().with_duration(0, 0);
    assert_eq!(timeline.place(0), at(0, 1, 0, 10_000));
    assert_eq!(timeline.total_ms(), 10_000);
}

#[test]
fn the_next_boundary_is_the_scenes_end_and_the_last_has_none() {
    let timeline = timeline(&INTRO_MAIN).unwrap();
    let boundaries = [0, 2_999, 3_000, 12_999, 13_000, u64::MAX].map(|at| timeline.next_boundary(at));
    assert_eq!(boundaries, [Some(3_000), Some(3_000), Some(13_000), Some(13_000), None, None]);
    // Scenes shortened to nothing have no boundary of their own.
    assert_eq!(timeline.with_duration(0, 0).next_boundary(0), Some(10_000));
    assert_eq!(timeline.with_duration(1, 0).next_boundary(2_999), Some(3_000));
    assert_eq!(timeline.with_duration(0, 0).with_duration(1, 0).next_boundary(0), None);
}

#[test]
fn the_longest_timeline_does_not_overflow() {
    let names: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
    let scenes: Vec<_> = names.iter().map(|name| Scene::new(name, MAX_DURATION_MS)).collect();
    assert_eq!(timeline(&scenes).unwrap().total_ms(), 1_000 * MAX_DURATION_MS);
}

#[test]
fn what_is_wrong_is_named_with_its_limit() {
    let scene = Scene::new;
    let long = "x".repeat(257);
    let data = "x".repeat(4_097);
    let named = |id| Scene { id: Some(id), ..scene("a", 1) };
    let holding = |max_hold_ms, fallback| Scene { at_end: AtEnd::Hold { max_hold_ms, fallback }, ..scene("a", 1) };
    for (scenes, words) in [
        (vec![], "scenes must have 1 to 1000 entries, not 0"),
        (vec![scene("a", 1); 1_001], "scenes must have 1 to 1000 entries, not 1001"),
        (vec![scene("", 1)], "scenes[0].name must have 1 to 256 bytes"),
        (vec![scene(&long, 1)], "this has 257"),
        (vec![scene("a", 0)], "scenes[0].duration_ms must be 1 to 31536000000"),
        (vec![scene("a", u64::MAX)], "not 18446744073709551615"),
        (vec![named("")], "scenes[0].scene_id must have 1 to 128 bytes out of A-Z a-z 0-9 - and _, not \"\""),
        (vec![named("a.b")], "not \"a.b\""),
        (vec![named(&long[..129])], "scene_id must have 1 to 128 bytes"),
        (vec![named("x"), scene("x", 1), named("x")], "scenes[2].scene_id must be distinct, \"x\" is there twice"),
        (vec![Scene { data: &data, ..scene("a", 1) }], "scenes[0].data must have at most 4096 bytes, this has 4097"),
        (vec![holding(Some(0), None)], "scenes[0].max_hold_ms must be 1 to 31536000000 (365 days), not 0"),
        (vec![holding(Some(MAX_DURATION_MS + 1), None)], "not 31536000001"),
        (vec![holding(None, Some("b"))], "scenes[0].fallback_scene must be id or name of a later scene, \"b\" is"),
        (vec![scene("b", 1), holding(None, Some("b"))], "scenes[1].fallback_scene"),
        (vec![holding(None, Some("a"))], "scenes[0].fallback_scene"),
        // An id matches first, also that of an earlier scene.
        (vec![Scene { id: Some("b"), ..scene("c", 1) }, holding(None, Some("b")), scene("b", 1)], "scenes[1].fallb"),
        (vec![Scene { warn_ms: Some(MAX_DURATION_MS + 1), ..scene("a", 1) }], "scenes[0].warn_ms must be at most"),
        (vec![Scene { danger_ms: Some(u64::MAX), ..scene("a", 1) }], "scenes[0].danger_ms must be at most"),
    ] {
        let error = timeline(&scenes).expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
    }
}

// --- holds ---------------------------------------------------------------------------------------------------

/// A of 3 ms, B of 2 ms that holds for 5 ms and then goes to D, C of 4 ms that holds for ever, D of 1 ms that holds
/// for 2 ms, E of 2 ms.
fn holding() -> Timeline {
    let hold = |max_hold_ms, fallback| AtEnd::Hold { max_hold_ms, fallback };
    timeline(&[
        Scene::new("A", 3),
        Scene { at_end: hold(Some(5), Some("d")), id: Some("b"), data: "red", ..Scene::new("B", 2) },
        Scene { at_end: hold(None, None), warn_ms: Some(2), ..Scene::new("C", 4) },
        Scene { at_end: hold(Some(2), None), id: Some("d"), danger_ms: Some(0), ..Scene::new("D", 1) },
        Scene::new("E", 2),
    ])
    .unwrap()
}

#[test]
fn details_are_read_as_they_were_given() {
    let timeline = holding();
    let read: Vec<Scene<'_>> = (0..5)
        .map(|scene| Scene {
            name: timeline.name(scene),
            duration_ms: timeline.duration_ms(scene),
            id: timeline.scene_id(scene),
            data: timeline.data(scene),
            at_end: timeline.at_end(scene),
            warn_ms: timeline.warn_ms(scene),
            danger_ms: timeline.danger_ms(scene),
        })
        .collect();
    assert_eq!(Timeline::new(&read, SceneLimits::default()), Ok(timeline.clone()));
    assert_eq!(read[1].at_end, AtEnd::Hold { max_hold_ms: Some(5), fallback: Some("d") });
    assert_eq!((read[1].id, read[1].data, read[2].warn_ms, read[3].danger_ms), (Some("b"), "red", Some(2), Some(0)));
    // What is named by name is told by name.
    let fallback = AtEnd::Hold { max_hold_ms: None, fallback: Some("B") };
    let scenes = [Scene { at_end: fallback, ..Scene::new("A", 1) }, Scene { id: Some("b"), ..Scene::new("B", 1) }];
    assert_eq!(super::Timeline::new(&scenes, SceneLimits::default()).unwrap().at_end(0), fallback);
}

#[test]
fn a_timeline_without_details_takes_a_pointer_more_and_no_byte() {
    assert_eq!(size_of::<Timeline>(), 40);
    assert_eq!(timeline(&INTRO_MAIN).unwrap().bytes(), 2 * 16 + "IntroMain".len());
    // Pointers; 40 bytes a scene; two ids and data; two turns; times to the end.
    let details = 48 + 5 * 40 + "bredd".len() + 2 * 4;
    assert_eq!(holding().bytes(), 5 * 16 + "ABCDE".len() + 24 + details + 6 * 8);
}

#[test]
fn a_scene_is_found_by_its_id_and_else_as_the_next_of_its_name() {
    let scenes = [
        Scene::new("Break", 1),
        Scene { id: Some("b2"), ..Scene::new("Break", 1) },
        Scene { id: Some("Break-3"), ..Scene::new("Main", 1) },
        Scene { id: Some("Main"), ..Scene::new("Break", 1) },
    ];
    let timeline = timeline(&scenes).unwrap();
    let find = |named, behind| timeline.find(named, behind);
    assert_eq!([None, Some(0), Some(1), Some(2), Some(3)].map(|at| find("Break", at).unwrap()), [0, 1, 3, 3, 0]);
    assert_eq!((find("b2", Some(2)), find("Main", None), find("Outro", None)), (Some(1), Some(3), None));
    assert!(timeline.is_named(1, "b2") && timeline.is_named(1, "Break") && !timeline.is_named(1, "Main"));
}

#[test]
fn a_scenes_counterpart_is_that_of_its_id_or_its_place_of_a_name() {
    let id = |id, name| Scene { id: Some(id), ..Scene::new(name, 1) };
    let old = timeline(&[Scene::new("Break", 1), id("x", "Main"), Scene::new("Break", 1), id("y", "Break")]).unwrap();
    let new = timeline(&[Scene::new("Break", 1), Scene::new("Main", 1), id("x", "Break")]).unwrap();
    // The first and the second; the one of the id; the last there is of the name.
    assert_eq!([0, 1, 2, 3].map(|scene| old.counterpart(scene, &new)), [Some(0), Some(2), Some(2), Some(2)]);
    assert_eq!(new.counterpart(1, &timeline(&[Scene::new("Outro", 1)]).unwrap()), None);
}

/// Scene, position and overtime at each millisecond, as time leads from the beginning.
fn played(timeline: &Timeline, from_ms: u64, ms: u64) -> Vec<(u32, u64, Option<u64>)> {
    let place = |elapsed_ms| timeline.place(timeline.after(from_ms, elapsed_ms));
    (0..ms).map(place).map(|place| (place.scene, place.position_ms, place.overtime_ms)).collect()
}

#[test]
fn a_hold_keeps_the_position_and_leads_to_its_fallback() {
    let (timeline, n) = (holding(), None);
    let first = [(0, 0, n), (0, 1, n), (0, 2, n), (1, 3, n), (1, 4, n)];
    let hold = [0, 1, 2, 3, 4].map(|overtime| (1, 5, Some(overtime)));
    let last = [(3, 9, n), (3, 10, Some(0)), (3, 10, Some(1)), (4, 10, n), (4, 11, n), (4, 12, n)];
    assert_eq!(played(&timeline, 0, 16), [&first[..], &hold, &last].concat());
    assert_eq!(timeline.time_to_end(0), Some(15));
    // Whoever skips out of the hold is in C, and stays in its hold for ever.
    let c = timeline.pass_at(5);
    assert_eq!(timeline.place(c), at(5, 2, 0, 4));
    assert_eq!(played(&timeline, c, 7)[4..], [(2, 9, Some(0)), (2, 9, Some(1)), (2, 9, Some(2))]);
    assert_eq!(timeline.time_to_end(c), None);
    let end = timeline.place(timeline.after(c, u64::MAX));
    assert_eq!((end.scene, end.position_ms), (2, 9));
}

#[test]
fn a_hold_has_a_boundary_at_its_beginning_and_at_its_end() {
    let timeline = holding();
    let mut boundaries = vec![0];
    while let Some(next) = timeline.next_boundary(*boundaries.last().unwrap()) {
        boundaries.push(next);
    }
    assert_eq!(boundaries, [0, 3, 5, 10, 14], "A, B, its hold, C, a hold without an end");
    let d = timeline.pass_at(9);
    let from_d = [d, d + 1, d + 3, d + 5].map(|at| timeline.next_boundary(at));
    assert_eq!(from_d, [Some(d + 1), Some(d + 3), Some(d + 5), None]);
}

#[test]
fn the_moment_of_a_scene_is_behind_the_holds_before_it() {
    let timeline = holding();
    for position in 0..12 {
        let pass = timeline.pass_at(position);
        assert_eq!(timeline.place(pass).position_ms, position);
        assert_eq!(timeline.place(pass).overtime_ms, None, "a position is in a scene, not in the hold before it");
        let place = timeline.place(pass);
        assert_eq!(timeline.pass_within(place.scene, place.elapsed_ms, 0), pass);
    }
    assert_eq!(timeline.pass_at(12), timeline.pass_total_ms());
    assert_eq!(timeline.pass_at(u64::MAX), timeline.pass_total_ms());
    // A hold that is shorter now is over, and leads to its fallback.
    let in_hold = |overtime| timeline.place(timeline.pass_within(1, 2, overtime));
    assert_eq!(in_hold(4), Place { overtime_ms: Some(4), ..at(5, 1, 2, 0) });
    assert_eq!((in_hold(5), in_hold(7)), (at(9, 3, 0, 1), at(9, 3, 0, 1)));
    assert_eq!(timeline.pass_within(2, 4, u64::MAX), timeline.pass_at(9) - 1, "one without an end is not");
}

#[test]
fn a_holding_scene_shortened_to_what_has_played_holds_at_once() {
    let shortened = holding().with_duration(0, 0).with_duration(1, 0);
    assert_eq!(shortened.place(0), Place { overtime_ms: Some(0), ..at(0, 1, 0, 0) });
    assert_eq!(shortened.next_boundary(0), Some(5));
    assert_eq!(shortened.place(shortened.after(0, 5)), at(4, 3, 0, 1));
    // By its position, what is there is the scene behind.
    assert_eq!(shortened.place(shortened.pass_at(0)), at(0, 2, 0, 4));
}

#[test]
fn a_thousand_of_the_longest_scenes_and_holds_do_not_overflow() {
    for max_hold_ms in [None, Some(MAX_DURATION_MS)] {
        let at_end = AtEnd::Hold { max_hold_ms, fallback: None };
        let scenes = vec![Scene { at_end, ..Scene::new("a", MAX_DURATION_MS) }; 1_000];
        let timeline = timeline(&scenes).unwrap();
        let all = 1_000 * (MAX_DURATION_MS + max_hold_ms.unwrap_or(details::FOREVER_MS));
        assert_eq!(timeline.pass_total_ms(), all);
        assert_eq!(timeline.time_to_end(0), max_hold_ms.map(|_| all));
        assert_eq!(timeline.place(u64::MAX).scene, 999);
        let last = timeline.place(timeline.after(0, u64::MAX));
        assert_eq!(last.scene, if max_hold_ms.is_some() { 999 } else { 0 });
    }
}
