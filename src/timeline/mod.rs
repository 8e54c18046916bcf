//! Timelines: scenes one behind the other, which of them a position falls into, where the next boundary is, and where a
//! show has got to that plays them.
//!
//! It is arithmetic on lengths and positions, which engine, clients and their SDKs share. It knows neither time nor
//! streams, and uses nothing of ours.
//!
//! | file | what |
//! |---|---|
//! | `playhead` | where a show is that left some place some time ago: passes, overshoot, the end |
//! | this one | scenes, their boundaries, and the limits on them |

#![allow(clippy::cast_possible_truncation, reason = "a timeline has fewer than 2^32 scenes, which making one checks")]

use std::{collections::BTreeSet, fmt, sync::Arc};

mod playhead;

pub use playhead::{Playhead, Progress, advance};

/// A scene as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scene<'a> {
    /// 1 to [`SceneLimits::max_name_bytes`] bytes, distinct within a timeline.
    pub name: &'a str,
    /// Between [`MIN_DURATION_MS`] and [`MAX_DURATION_MS`].
    pub duration_ms: u64,
}

/// The shortest scene, ms.
pub const MIN_DURATION_MS: u64 = 1;
/// The longest scene, and the longest of all other times somebody may ask for: 365 days, ms.
pub const MAX_DURATION_MS: u64 = 365 * 24 * 60 * 60 * 1_000;

/// What scenes may be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SceneLimits {
    /// Most scenes of a timeline.
    pub max_scenes: usize,
    /// Longest name of a scene, bytes.
    pub max_name_bytes: usize,
}

impl Default for SceneLimits {
    fn default() -> Self {
        Self { max_scenes: 1_000, max_name_bytes: 256 }
    }
}

impl SceneLimits {
    /// Checks how many scenes there are, before anybody looks at them.
    ///
    /// # Errors
    /// Names the field and the limit.
    pub const fn check_count(self, count: usize) -> Result<(), TimelineError> {
        let Self { max_scenes, .. } = self;
        if 1 <= count && count <= max_scenes { Ok(()) } else { Err(TimelineError::SceneCount { count, max_scenes }) }
    }
}

/// Why scenes make no timeline. The words name the field, its place and the limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimelineError {
    /// None, or too many.
    #[error("scenes must have 1 to {max_scenes} entries, not {count}")]
    SceneCount {
        /// How many there are.
        count: usize,
        /// How many there may be.
        max_scenes: usize,
    },
    /// A name is empty or too long.
    #[error("scenes[{place}].name must have 1 to {max_bytes} bytes, this has {bytes}")]
    NameLength {
        /// Which scene.
        place: usize,
        /// How long its name is.
        bytes: usize,
        /// How long it may be.
        max_bytes: usize,
    },
    /// Two scenes have the same name.
    #[error("scenes[{place}].name must be distinct, {name:?} is there twice")]
    NameTaken {
        /// The second scene of that name.
        place: usize,
        /// The name.
        name: String,
    },
    /// A scene is too short or too long.
    #[error("scenes[{place}].duration_ms must be {MIN_DURATION_MS} to {MAX_DURATION_MS} (365 days), not {duration_ms}")]
    Duration {
        /// Which scene.
        place: usize,
        /// How long it is, ms.
        duration_ms: u64,
    },
    /// All names together are longer than a timeline can hold.
    #[error("scenes: the names are too long")]
    NamesTooLong,
}

/// Scenes with their ends summed up. 16 bytes a scene, and the names in one text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Timeline {
    /// Invariant: at least one; `end_ms` and `name_end` never fall.
    spans: Box<[Span]>,
    /// Shared by the timelines of adjusted passes.
    names: Arc<str>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Span {
    /// Where the scene ends on the timeline, ms.
    end_ms: u64,
    /// Where its name ends in `names`.
    name_end: u32,
}

/// A position, seen from its scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which scene.
    pub scene: u32,
    /// How much of it has played, ms.
    pub elapsed_ms: u64,
    /// How much of it is left, ms.
    pub remaining_ms: u64,
}

impl Timeline {
    /// Checks the scenes and sums them up.
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub fn new(scenes: &[Scene<'_>], limits: SceneLimits) -> Result<Self, TimelineError> {
        limits.check_count(scenes.len())?;
        let max_bytes = limits.max_name_bytes;
        let mut seen = BTreeSet::new();
        let mut spans = Vec::with_capacity(scenes.len());
        let mut names = String::new();
        let mut end_ms = 0;
        for (place, Scene { name, duration_ms }) in scenes.iter().enumerate() {
            if !(1..=max_bytes).contains(&name.len()) {
                return Err(TimelineError::NameLength { place, bytes: name.len(), max_bytes });
            }
            if !seen.insert(name) {
                return Err(TimelineError::NameTaken { place, name: (*name).to_owned() });
            }
            if !(MIN_DURATION_MS..=MAX_DURATION_MS).contains(duration_ms) {
                return Err(TimelineError::Duration { place, duration_ms: *duration_ms });
            }
            names.push_str(name);
            end_ms += duration_ms;
            let name_end = u32::try_from(names.len()).map_err(|_| TimelineError::NamesTooLong)?;
            spans.push(Span { end_ms, name_end });
        }
        Ok(Self { spans: spans.into(), names: names.into() })
    }

    /// The whole length, ms.
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

    /// The scene of that name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<u32> {
        (0..self.scene_count()).find(|scene| self.name(*scene) == name)
    }

    /// The scene that a position falls into; the end of the timeline counts to the last scene.
    #[must_use]
    pub fn place(&self, position_ms: u64) -> Place {
        let ended = self.spans.partition_point(|span| span.end_ms <= position_ms);
        self.within((ended as u32).min(self.scene_count() - 1), position_ms)
    }

    /// The next position at which another scene begins or the timeline ends; none at the end and behind it.
    #[must_use]
    pub fn next_boundary(&self, position_ms: u64) -> Option<u64> {
        Some(self.end_ms(self.place(position_ms).scene)).filter(|boundary_ms| *boundary_ms > position_ms)
    }

    /// A position in the scene that it falls into, if that is known already.
    #[must_use]
    pub fn within(&self, scene: u32, position_ms: u64) -> Place {
        let elapsed_ms = position_ms.min(self.total_ms()).saturating_sub(self.start_ms(scene));
        Place { scene, elapsed_ms, remaining_ms: self.duration_ms(scene).saturating_sub(elapsed_ms) }
    }

    /// The same timeline with another length for one scene, which may be 0 here.
    #[must_use]
    pub fn with_duration(&self, scene: u32, duration_ms: u64) -> Self {
        let mut changed = self.clone();
        let (old, first) = (self.duration_ms(scene), scene as usize);
        for span in &mut changed.spans[first..] {
            span.end_ms = span.end_ms - old + duration_ms;
        }
        changed
    }

    /// What it takes, bytes: for whoever keeps many.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.spans) + self.names.len()
    }

    fn span(&self, scene: u32) -> Span {
        self.spans[scene as usize]
    }
}

impl fmt::Debug for Timeline {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries((0..self.scene_count()).map(|s| (self.name(s), self.duration_ms(s)))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTRO_MAIN: [Scene<'_>; 2] =
        [Scene { name: "Intro", duration_ms: 3_000 }, Scene { name: "Main", duration_ms: 10_000 }];

    fn timeline(scenes: &[Scene<'_>]) -> Result<Timeline, TimelineError> {
        Timeline::new(scenes, SceneLimits::default())
    }

    #[test]
    fn a_position_falls_into_the_scene_that_begins_there() {
        let timeline = timeline(&INTRO_MAIN).unwrap();
        assert_eq!(timeline.place(0), Place { scene: 0, elapsed_ms: 0, remaining_ms: 3_000 });
        assert_eq!(timeline.place(2_999), Place { scene: 0, elapsed_ms: 2_999, remaining_ms: 1 });
        assert_eq!(timeline.place(3_000), Place { scene: 1, elapsed_ms: 0, remaining_ms: 10_000 });
        assert_eq!(timeline.place(13_000), Place { scene: 1, elapsed_ms: 10_000, remaining_ms: 0 });
        assert_eq!((timeline.name(0), timeline.name(1)), ("Intro", "Main"));
    }

    #[test]
    fn a_scene_shortened_to_nothing_is_passed_over() {
        let timeline = timeline(&INTRO_MAIN).unwrap().with_duration(0, 0);
        assert_eq!(timeline.place(0), Place { scene: 1, elapsed_ms: 0, remaining_ms: 10_000 });
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
        let scenes: Vec<_> = names.iter().map(|name| Scene { name, duration_ms: MAX_DURATION_MS }).collect();
        assert_eq!(timeline(&scenes).unwrap().total_ms(), 1_000 * MAX_DURATION_MS);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_limit() {
        let scene = |name, duration_ms| Scene { name, duration_ms };
        let long = "x".repeat(257);
        for (scenes, words) in [
            (vec![], "scenes must have 1 to 1000 entries, not 0"),
            (vec![scene("a", 1); 1_001], "scenes must have 1 to 1000 entries, not 1001"),
            (vec![scene("", 1)], "scenes[0].name must have 1 to 256 bytes"),
            (vec![scene(&long, 1)], "this has 257"),
            (vec![scene("a", 1), scene("a", 1)], "scenes[1].name must be distinct"),
            (vec![scene("a", 0)], "scenes[0].duration_ms must be 1 to 31536000000"),
            (vec![scene("a", u64::MAX)], "not 18446744073709551615"),
        ] {
            let error = timeline(&scenes).expect_err(words);
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
