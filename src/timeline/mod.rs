//! Timelines: scenes one behind the other, which of them a position falls into, where the next boundary is, and where a
//! show has got to that plays them.
//!
//! It is arithmetic on lengths and positions, which engine, clients and their SDKs share. It knows neither time nor
//! streams, and uses nothing of ours.
//!
//! | file | what |
//! |---|---|
//! | `scene` | scenes as they are asked for, and the limits on them |
//! | `details` | ids, data, holds, hints: what few timelines have |
//! | `playhead` | where a show is that left some place some time ago: passes, overshoot, the end |
//! | this one | scenes and their boundaries |
//!
//! **Positions and passes.** A position is a place on the timeline, ms. A scene with [`AtEnd::Hold`] keeps the position at
//! its end for a while, so a position alone does not say where a show is. What says it is the time into the pass, in
//! which each such scene is followed by its hold in full: `pass_ms`. Both grow together where nothing holds.

#![allow(clippy::cast_possible_truncation, reason = "a timeline has fewer than 2^32 scenes, which making one checks")]

use std::{fmt, sync::Arc};

mod details;
mod playhead;
mod scene;

pub use playhead::{Playhead, Progress, advance};
pub use scene::{
    AtEnd, MAX_DURATION_MS, MAX_SCENE_DATA_BYTES, MAX_SCENE_ID_BYTES, MIN_DURATION_MS, Scene, SceneLimits,
    TimelineError,
};

use details::Details;

/// Scenes with their ends summed up. 16 bytes a scene, and the names in one text; 40 to 52 more if any has more than that,
/// and ids and data in another.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Timeline {
    /// Invariant: at least one; `end_ms` and `name_end` never fall.
    spans: Box<[Span]>,
    /// Shared by the timelines of adjusted passes.
    names: Arc<str>,
    /// None if no scene has more than name and length.
    extras: Option<Box<Extras>>,
}

/// What few timelines have.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Extras {
    /// Shared by the timelines of adjusted passes.
    details: Arc<Details>,
    /// How long it takes from the beginning of each scene to the end of the pass, and from the end, ms; [`NEVER`] if it
    /// never comes. Empty where time leads from each scene to the next.
    to_end_ms: Box<[u64]>,
}

/// No time leads there.
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Span {
    /// Where the scene ends on the timeline, ms.
    end_ms: u64,
    /// Where its name ends in `names`.
    name_end: u32,
}

/// A moment of a pass, seen from its scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which scene.
    pub scene: u32,
    /// The position on the timeline, ms.
    pub position_ms: u64,
    /// How much of the scene has played, ms.
    pub elapsed_ms: u64,
    /// How much of it is left, ms.
    pub remaining_ms: u64,
    /// For how long it has been holding, ms; none if it is not.
    pub overtime_ms: Option<u64>,
}

impl Timeline {
    /// Checks the scenes and sums them up.
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub fn new(scenes: &[Scene<'_>], limits: SceneLimits) -> Result<Self, TimelineError> {
        limits.check_count(scenes.len())?;
        let mut spans = Vec::with_capacity(scenes.len());
        let mut names = String::new();
        let mut end_ms = 0;
        for (place, scene) in scenes.iter().enumerate() {
            limits.check(place, scene)?;
            names.push_str(scene.name);
            end_ms += scene.duration_ms;
            let name_end = u32::try_from(names.len()).map_err(|_| TimelineError::TextsTooLong)?;
            spans.push(Span { end_ms, name_end });
        }
        let extras = |details| Box::new(Extras { details: Arc::new(details), to_end_ms: Box::default() });
        let extras = Details::new(scenes)?.map(extras);
        let mut timeline = Self { spans: spans.into(), names: names.into(), extras };
        timeline.reckon();
        Ok(timeline)
    }

    // --- scenes --------------------------------------------------------------------------------------------------

    /// The whole length without any hold, ms.
    #[must_use]
    pub fn total_ms(&self) -> u64 {
        self.spans[self.spans.len() - 1].end_ms
    }

    /// How many scenes there are, at least one.
    #[must_use]
    pub fn scene_count(&self) -> u32 {
        self.spans.len() as u32
    }

    /// The name of a scene.
    #[must_use]
    pub fn name(&self, scene: u32) -> &str {
        let start = scene.checked_sub(1).map_or(0, |before| self.span(before).name_end);
        &self.names[start as usize..self.span(scene).name_end as usize]
    }

    /// Where a scene begins, ms.
    #[must_use]
    pub fn start_ms(&self, scene: u32) -> u64 {
        scene.checked_sub(1).map_or(0, |before| self.end_ms(before))
    }

    /// Where a scene ends, ms.
    #[must_use]
    pub fn end_ms(&self, scene: u32) -> u64 {
        self.span(scene).end_ms
    }

    /// How long a scene is, ms.
    #[must_use]
    pub fn duration_ms(&self, scene: u32) -> u64 {
        self.end_ms(scene) - self.start_ms(scene)
    }

    /// The id of a scene, if it has one.
    #[must_use]
    pub fn scene_id(&self, scene: u32) -> Option<&str> {
        self.details().and_then(|details| details.id(scene))
    }

    /// What a scene carries for clients.
    #[must_use]
    pub fn data(&self, scene: u32) -> &str {
        self.details().map_or("", |details| details.data(scene))
    }

    /// What happens at the end of a scene. The fallback is named as it was given.
    #[must_use]
    pub fn at_end(&self, scene: u32) -> AtEnd<'_> {
        let Some(details) = self.details() else { return AtEnd::Next };
        match details.held_ms(scene) - details.held_before_ms(scene) {
            0 => AtEnd::Next,
            hold_ms => AtEnd::Hold {
                max_hold_ms: Some(hold_ms).filter(|ms| *ms != details::FOREVER_MS),
                fallback: details.fallback(scene, |next| self.name(next)),
            },
        }
    }

    /// Remaining time of a scene from which people are warned, ms.
    #[must_use]
    pub fn warn_ms(&self, scene: u32) -> Option<u64> {
        self.details().and_then(|details| details.warn_ms(scene))
    }

    /// Likewise, more urgently.
    #[must_use]
    pub fn danger_ms(&self, scene: u32) -> Option<u64> {
        self.details().and_then(|details| details.danger_ms(scene))
    }

    /// The scene of that id, or else the next one of that name behind a scene, around the end, itself as the last; with
    /// none to begin behind, the first.
    #[must_use]
    pub fn find(&self, named: &str, behind: Option<u32>) -> Option<u32> {
        if self.extras.is_some()
            && let Some(scene) = (0..self.scene_count()).find(|scene| self.scene_id(*scene) == Some(named))
        {
            return Some(scene);
        }
        let first = behind.map_or(0, |scene| scene + 1);
        (first..self.scene_count()).chain(0..first).find(|scene| self.name(*scene) == named)
    }

    /// Whether that is the id or the name of a scene.
    #[must_use]
    pub fn is_named(&self, scene: u32, named: &str) -> bool {
        self.scene_id(scene) == Some(named) || self.name(scene) == named
    }

    /// Which scene of another timeline is the same as one of this: that of its id, or else that of its name, of several
    /// of a name the one in the same place among them, or the last.
    #[must_use]
    pub fn counterpart(&self, scene: u32, other: &Self) -> Option<u32> {
        let of_id = |id| (0..other.scene_count()).find(|scene| other.scene_id(*scene) == Some(id));
        if let Some(same) = self.scene_id(scene).and_then(of_id) {
            return Some(same);
        }
        let name = self.name(scene);
        let before = (0..scene).filter(|scene| self.name(*scene) == name).count();
        let mut same = (0..other.scene_count()).filter(|scene| other.name(*scene) == name);
        let mut last = None;
        for _ in 0..=before {
            last = same.next().or(last);
        }
        last
    }

    // --- places --------------------------------------------------------------------------------------------------

    /// The moment of a pass at which a scene begins: behind the hold of the one before.
    #[must_use]
    pub fn pass_start_ms(&self, scene: u32) -> u64 {
        self.start_ms(scene) + self.held_before_ms(scene)
    }

    /// How long a pass is with every hold in full, ms. No time at all may lead there, see [`Timeline::time_to_end`].
    #[must_use]
    pub fn pass_total_ms(&self) -> u64 {
        self.leave_ms(self.scene_count() - 1)
    }

    /// Where a moment of a pass is. The end of the pass, and what is behind it, counts to the last scene.
    #[must_use]
    pub fn place(&self, pass_ms: u64) -> Place {
        let scene = self.first_scene(|scene| self.leave_ms(scene) <= pass_ms);
        let into_ms = pass_ms.min(self.pass_total_ms()).saturating_sub(self.pass_start_ms(scene));
        let duration_ms = self.duration_ms(scene);
        let elapsed_ms = into_ms.min(duration_ms);
        Place {
            scene,
            position_ms: self.start_ms(scene) + elapsed_ms,
            elapsed_ms,
            remaining_ms: duration_ms - elapsed_ms,
            overtime_ms: self.holds(scene).then(|| into_ms.checked_sub(duration_ms)).flatten(),
        }
    }

    /// A position in the scene that it falls into, if that is known already; whether it holds is not looked at.
    #[must_use]
    pub fn within(&self, scene: u32, position_ms: u64) -> Place {
        let position_ms = position_ms.min(self.total_ms());
        let elapsed_ms = position_ms.saturating_sub(self.start_ms(scene));
        let remaining_ms = self.duration_ms(scene).saturating_sub(elapsed_ms);
        Place { scene, position_ms, elapsed_ms, remaining_ms, overtime_ms: None }
    }

    /// The moment of a pass at which a position is reached. The start of a scene is behind the hold before it; the end of
    /// the timeline, and what is behind it, is where the last scene ends.
    #[must_use]
    pub fn pass_at(&self, position_ms: u64) -> u64 {
        let scene = self.first_scene(|scene| self.end_ms(scene) <= position_ms);
        position_ms.min(self.total_ms()) + self.held_before_ms(scene)
    }

    /// The moment of a pass at which so much of a scene has played, and so much of its hold if all of it has. What there
    /// is less of is over: then it is where that leads.
    #[must_use]
    pub fn pass_within(&self, scene: u32, elapsed_ms: u64, overtime_ms: u64) -> u64 {
        let duration_ms = self.duration_ms(scene);
        let pass_ms = self.pass_start_ms(scene) + elapsed_ms.min(duration_ms);
        if elapsed_ms < duration_ms || !self.holds(scene) {
            return pass_ms;
        }
        self.after(pass_ms, overtime_ms.min(self.leave_ms(scene) - pass_ms))
    }

    /// The next moment at which a scene begins or its hold, or the pass ends; none at the end, behind it, and in a hold
    /// without an end.
    #[must_use]
    pub fn next_boundary(&self, pass_ms: u64) -> Option<u64> {
        let Place { scene, overtime_ms, .. } = self.place(pass_ms);
        let boundary_ms = match overtime_ms {
            Some(_) if self.has_endless_hold(scene) => return None,
            Some(_) => self.leave_ms(scene),
            None => self.pass_start_ms(scene) + self.duration_ms(scene),
        };
        Some(boundary_ms).filter(|boundary_ms| *boundary_ms > pass_ms)
    }

    // --- time ----------------------------------------------------------------------------------------------------

    /// Where time leads from a moment of a pass: on, and out of a hold that runs out to its fallback. Behind the end of
    /// the pass it goes on; a hold without an end is never left.
    #[must_use]
    pub fn after(&self, pass_ms: u64, elapsed_ms: u64) -> u64 {
        let (mut at_ms, mut left_ms) = (pass_ms, elapsed_ms);
        while let Some((scene, turn_ms)) = self.next_turn(at_ms) {
            let Some(behind_ms) = left_ms.checked_sub(turn_ms - at_ms) else { break };
            let Some(next) = self.leads_to(scene) else { return turn_ms - 1 };
            (at_ms, left_ms) = (self.pass_start_ms(next), behind_ms);
        }
        at_ms.saturating_add(left_ms)
    }

    /// How long it takes from a moment of a pass to the end of the pass, ms; none if a hold without an end is on the way.
    #[must_use]
    pub fn time_to_end(&self, pass_ms: u64) -> Option<u64> {
        let straight_ms = self.pass_total_ms().saturating_sub(pass_ms);
        let Some(extras) = self.extras.as_ref().filter(|extras| !extras.to_end_ms.is_empty() && straight_ms > 0) else {
            return Some(straight_ms);
        };
        let scene = self.place(pass_ms).scene;
        let behind_ms = extras.to_end_ms[extras.details.leads_to(scene)? as usize];
        (behind_ms != NEVER).then(|| self.leave_ms(scene) - pass_ms + behind_ms)
    }

    /// The next end of a hold from which a pass does not simply go on, and whose hold it is.
    fn next_turn(&self, pass_ms: u64) -> Option<(u32, u64)> {
        let scene = self.details()?.first_turn(|scene| self.leave_ms(scene) <= pass_ms)?;
        Some((scene, self.leave_ms(scene)))
    }

    // --- lengths of a pass ---------------------------------------------------------------------------------------

    /// The same timeline with another length for one scene, which may be 0 here.
    #[must_use]
    pub fn with_duration(&self, scene: u32, duration_ms: u64) -> Self {
        let mut changed = self.clone();
        let (old, first) = (self.duration_ms(scene), scene as usize);
        for span in &mut changed.spans[first..] {
            span.end_ms = span.end_ms - old + duration_ms;
        }
        changed.reckon();
        changed
    }

    /// Adds up how long it takes from each scene to the end.
    fn reckon(&mut self) {
        let Some(details) = self.details().filter(|details| details.has_turns()) else { return };
        let mut to_end_ms = vec![0; self.spans.len() + 1];
        for scene in (0..self.scene_count()).rev() {
            let behind_ms = details.leads_to(scene).map_or(NEVER, |next| to_end_ms[next as usize]);
            let lasts_ms = self.leave_ms(scene) - self.pass_start_ms(scene);
            to_end_ms[scene as usize] = behind_ms.saturating_add(lasts_ms);
        }
        if let Some(extras) = &mut self.extras {
            extras.to_end_ms = to_end_ms.into();
        }
    }

    /// What it takes, bytes: for whoever keeps many.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let extras = self.extras.as_ref().map_or(0, |extras| extras.bytes());
        size_of_val(&*self.spans) + self.names.len() + extras
    }

    fn details(&self) -> Option<&Details> {
        self.extras.as_ref().map(|extras| &*extras.details)
    }

    /// Where a scene's hold ends in a pass, or the scene if it has none, ms.
    fn leave_ms(&self, scene: u32) -> u64 {
        self.end_ms(scene) + self.details().map_or(0, |details| details.held_ms(scene))
    }

    fn held_before_ms(&self, scene: u32) -> u64 {
        self.details().map_or(0, |details| details.held_before_ms(scene))
    }

    fn holds(&self, scene: u32) -> bool {
        self.details().is_some_and(|details| details.held_ms(scene) > details.held_before_ms(scene))
    }

    fn has_endless_hold(&self, scene: u32) -> bool {
        self.holds(scene) && self.leads_to(scene).is_none()
    }

    /// Where a scene's hold leads; nowhere if it has no end.
    fn leads_to(&self, scene: u32) -> Option<u32> {
        self.details().and_then(|details| details.leads_to(scene))
    }

    /// The first scene that is not over, of which some are and then none; the last if all are.
    fn first_scene(&self, is_over: impl Fn(u32) -> bool) -> u32 {
        let (mut low, mut high) = (0, self.scene_count() - 1);
        while low < high {
            let middle = low.midpoint(high);
            if is_over(middle) { low = middle + 1 } else { high = middle }
        }
        low
    }

    fn span(&self, scene: u32) -> Span {
        self.spans[scene as usize]
    }
}

impl Extras {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.details.bytes() + size_of_val(&*self.to_end_ms)
    }
}

impl fmt::Debug for Timeline {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries((0..self.scene_count()).map(|s| (self.name(s), self.duration_ms(s)))).finish()?;
        self.details().map_or(Ok(()), |details| details.fmt(formatter))
    }
}

#[cfg(test)]
mod tests {
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
            (
                vec![Scene { data: &data, ..scene("a", 1) }],
                "scenes[0].data must have at most 4096 bytes, this has 4097",
            ),
            (vec![holding(Some(0), None)], "scenes[0].max_hold_ms must be 1 to 31536000000 (365 days), not 0"),
            (vec![holding(Some(MAX_DURATION_MS + 1), None)], "not 31536000001"),
            (vec![holding(None, Some("b"))], "scenes[0].fallback_scene must be id or name of a later scene, \"b\" is"),
            (vec![scene("b", 1), holding(None, Some("b"))], "scenes[1].fallback_scene"),
            (vec![holding(None, Some("a"))], "scenes[0].fallback_scene"),
            // An id matches first, also that of an earlier scene.
            (
                vec![Scene { id: Some("b"), ..scene("c", 1) }, holding(None, Some("b")), scene("b", 1)],
                "scenes[1].fallb",
            ),
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
        assert_eq!(
            (read[1].id, read[1].data, read[2].warn_ms, read[3].danger_ms),
            (Some("b"), "red", Some(2), Some(0))
        );
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
        let old =
            timeline(&[Scene::new("Break", 1), id("x", "Main"), Scene::new("Break", 1), id("y", "Break")]).unwrap();
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
}
