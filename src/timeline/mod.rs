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
#[cfg(test)]
mod tests;

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
    #[inline]
    pub fn pass_total_ms(&self) -> u64 {
        self.leave_ms(self.scene_count() - 1)
    }

    /// Where a moment of a pass is. The end of the pass, and what is behind it, counts to the last scene.
    #[must_use]
    #[inline]
    pub fn place(&self, pass_ms: u64) -> Place {
        if self.extras.is_none() {
            // Nothing holds: a moment of the pass is a position. Most ticks take this way.
            return self.within(self.scene_at(pass_ms), pass_ms);
        }
        self.place_among_holds(pass_ms)
    }

    /// [`Timeline::place`] where holds may be.
    fn place_among_holds(&self, pass_ms: u64) -> Place {
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
    #[inline]
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
        let scene = self.scene_at(position_ms);
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
        if self.extras.is_none() {
            let end_ms = self.end_ms(self.scene_at(pass_ms));
            return Some(end_ms).filter(|end_ms| *end_ms > pass_ms);
        }
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
    #[inline]
    pub fn after(&self, pass_ms: u64, elapsed_ms: u64) -> u64 {
        if self.extras.is_none() {
            return pass_ms.saturating_add(elapsed_ms);
        }
        self.after_turns(pass_ms, elapsed_ms)
    }

    /// [`Timeline::after`] where holds may be.
    fn after_turns(&self, pass_ms: u64, elapsed_ms: u64) -> u64 {
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

    /// The scene that a position falls into; the last one at the end and behind it.
    #[inline]
    fn scene_at(&self, position_ms: u64) -> u32 {
        let over = self.spans.partition_point(|span| span.end_ms <= position_ms);
        over.min(self.spans.len() - 1) as u32
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
