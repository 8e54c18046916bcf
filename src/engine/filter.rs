//! Filters: which updates of a stream somebody wants to have, in the one form of all that mean the same.
//!
//! Equal filters have one token in every process and release, so that all who ask for the same read one subject.

use siphasher::sip::SipHasher13;

use super::{Invalid, SceneLimits, Timeline};

/// Most scenes of a filter.
pub const MAX_FILTER_SCENES: usize = 64;
/// Longest interval between ticks that a filter may ask for, ms: an hour.
pub const MAX_FILTER_INTERVAL_MS: u32 = 60 * 60 * 1_000;

/// The keys of tokens: any numbers, and never others, because a token names a subject.
const TOKEN_KEYS: (u64, u64) = (0x7374_7265_616d_2e66, 0x696c_7465_7265_642e);

/// A filter as somebody asks for it, unchecked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FilterDraft<'a> {
    /// Ids or names of scenes: passes only while one of them is current. None: all.
    pub scenes: Vec<&'a str>,
    /// No ticks and no snapshots.
    pub changes_only: bool,
    /// Between a tick and what passed before it, ms.
    pub min_interval_ms: u32,
    /// By how many percentage points a tick must differ from what passed before it.
    pub min_progress: f64,
}

/// A checked filter: its scenes sorted and each once, and without what makes no difference. So two are the same exactly
/// when they mean the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Invariant: sorted, each once.
    scenes: Box<[Box<str>]>,
    changes_only: bool,
    /// Invariant: 0 with `changes_only`.
    min_interval_ms: u32,
    /// The bits of it, for it is compared and hashed. Invariant: as above.
    min_progress: u64,
}

impl Filter {
    /// Checks a draft.
    ///
    /// # Errors
    /// Names the field and the limit.
    pub fn new(draft: &FilterDraft<'_>) -> Result<Self, Invalid> {
        let FilterDraft { scenes, changes_only, min_interval_ms, min_progress } = draft;
        check_scenes(scenes)?;
        if *min_interval_ms > MAX_FILTER_INTERVAL_MS {
            return Err(Invalid::new(format!(
                "filter.min_interval_ms must be at most {MAX_FILTER_INTERVAL_MS} (an hour), not {min_interval_ms}"
            )));
        }
        if !(0.0..=100.0).contains(min_progress) {
            return Err(Invalid::new(format!("filter.min_progress must be 0 to 100, not {min_progress}")));
        }
        let mut sorted = scenes.clone();
        sorted.sort_unstable();
        sorted.dedup();
        // Of the two zeros, the one without a sign.
        let (min_interval_ms, min_progress) =
            if *changes_only { (0, 0.0) } else { (*min_interval_ms, min_progress + 0.0) };
        Ok(Self {
            scenes: sorted.into_iter().map(Box::from).collect(),
            changes_only: *changes_only,
            min_interval_ms,
            min_progress: min_progress.to_bits(),
        })
    }

    /// The scenes, by id or name, sorted and each once; none: all.
    pub fn scenes(&self) -> impl Iterator<Item = &str> {
        self.scenes.iter().map(|scene| &**scene)
    }

    /// Whether ticks and snapshots stay away.
    #[must_use]
    pub const fn changes_only(&self) -> bool {
        self.changes_only
    }

    /// Between a tick and what passed before it, ms.
    #[must_use]
    pub const fn min_interval_ms(&self) -> u32 {
        self.min_interval_ms
    }

    /// By how many percentage points a tick must differ from what passed before it.
    #[must_use]
    pub const fn min_progress(&self) -> f64 {
        f64::from_bits(self.min_progress)
    }

    /// Whether it asks for this scene, of which there may be none.
    pub(super) fn takes_in(&self, timeline: &Timeline, scene: Option<u32>) -> bool {
        self.asks_for(scene.map(|scene| (timeline.name(scene), timeline.scene_id(scene))))
    }

    /// Whether it asks for the scene of this name and id, if there is one.
    #[must_use]
    pub fn asks_for(&self, scene: Option<(&str, Option<&str>)>) -> bool {
        let is_in = |named: &str| self.scenes.binary_search_by(|scene| (**scene).cmp(named)).is_ok();
        self.scenes.is_empty() || scene.is_some_and(|(name, id)| is_in(name) || id.is_some_and(is_in))
    }

    /// What names its subject.
    pub(super) fn token(&self) -> u64 {
        let mut bytes = Vec::with_capacity(16 + self.text_bytes() + 2 * self.scenes.len());
        bytes.push(u8::from(self.changes_only));
        bytes.extend(self.min_interval_ms.to_le_bytes());
        bytes.extend(self.min_progress.to_le_bytes());
        for scene in &self.scenes {
            // None is longer than two bytes tell.
            bytes.extend((scene.len() as u16).to_le_bytes());
            bytes.extend(scene.as_bytes());
        }
        SipHasher13::new_with_keys(TOKEN_KEYS.0, TOKEN_KEYS.1).hash(&bytes)
    }

    /// What it keeps beside its own size, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.text_bytes() + size_of::<Box<str>>() * self.scenes.len()
    }

    fn text_bytes(&self) -> usize {
        self.scenes.iter().map(|scene| scene.len()).sum()
    }
}

fn check_scenes(scenes: &[&str]) -> Result<(), Invalid> {
    if scenes.len() > MAX_FILTER_SCENES {
        let count = scenes.len();
        return Err(Invalid::new(format!("filter.scene must be given at most {MAX_FILTER_SCENES} times, not {count}")));
    }
    let most = SceneLimits::default().max_name_bytes;
    match scenes.iter().enumerate().find(|(_, scene)| scene.is_empty() || scene.len() > most) {
        None => Ok(()),
        Some((place, scene)) => Err(Invalid::new(format!(
            "filter.scene[{place}] must have 1 to {most} bytes, this one has {}",
            scene.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft<'a>(scenes: &[&'a str]) -> FilterDraft<'a> {
        FilterDraft { scenes: scenes.to_vec(), ..FilterDraft::default() }
    }

    fn filter(draft: &FilterDraft<'_>) -> Filter {
        Filter::new(draft).expect("a filter")
    }

    #[test]
    fn filters_that_mean_the_same_are_the_same_and_have_one_token() {
        let one = filter(&draft(&["b", "a", "b"]));
        let other = filter(&FilterDraft { min_progress: -0.0, ..draft(&["a", "b"]) });
        assert_eq!((&one, one.token()), (&other, other.token()));
        assert_eq!(one.scenes().collect::<Vec<_>>(), ["a", "b"]);
        let changes = FilterDraft { changes_only: true, ..draft(&[]) };
        let rates = FilterDraft { min_interval_ms: 1_000, min_progress: 5.0, ..changes.clone() };
        assert_eq!(filter(&changes), filter(&rates), "of what does not tick, no rate makes a difference");
    }

    #[test]
    fn whatever_differs_makes_another_token() {
        let mut tokens: Vec<u64> = [
            draft(&[]),
            draft(&["a"]),
            draft(&["a", "b"]),
            draft(&["ab"]),
            draft(&["a,b"]),
            FilterDraft { changes_only: true, ..draft(&[]) },
            FilterDraft { min_interval_ms: 1, ..draft(&[]) },
            FilterDraft { min_progress: 1.0, ..draft(&[]) },
        ]
        .iter()
        .map(|draft| filter(draft).token())
        .collect();
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), 8);
    }

    /// A subject outlives a release: these numbers never change.
    #[test]
    fn a_token_is_the_same_in_every_process_and_release() {
        let all = FilterDraft { min_interval_ms: 1_000, min_progress: 0.5, ..draft(&["Main", "Outro"]) };
        assert_eq!(format!("{:016x}", filter(&draft(&[])).token()), "634731be341d0e16");
        assert_eq!(format!("{:016x}", filter(&all).token()), "467bc9a7aa894139");
    }

    #[test]
    fn what_is_over_a_limit_is_refused_with_field_and_limit() {
        let (many, long) = (["a"; MAX_FILTER_SCENES + 1], "x".repeat(257));
        for (draft, words) in [
            (draft(&many), "filter.scene must be given at most 64 times, not 65"),
            (draft(&["a", ""]), "filter.scene[1] must have 1 to 256 bytes, this one has 0"),
            (draft(&[&long]), "filter.scene[0] must have 1 to 256 bytes, this one has 257"),
            (
                FilterDraft { min_interval_ms: 3_600_001, ..draft(&[]) },
                "filter.min_interval_ms must be at most 3600000",
            ),
            (FilterDraft { min_progress: f64::NAN, ..draft(&[]) }, "filter.min_progress must be 0 to 100, not NaN"),
            (FilterDraft { min_progress: -0.1, ..draft(&[]) }, "filter.min_progress must be 0 to 100"),
            (FilterDraft { min_progress: 100.1, ..draft(&[]) }, "filter.min_progress must be 0 to 100"),
        ] {
            let error = Filter::new(&draft).expect_err(words);
            assert!(error.0.contains(words), "{error}");
        }
        let ends = FilterDraft {
            min_interval_ms: MAX_FILTER_INTERVAL_MS,
            min_progress: 100.0,
            ..draft(&many[..MAX_FILTER_SCENES])
        };
        assert!(Filter::new(&ends).is_ok());
    }

    #[test]
    fn a_scene_is_asked_for_by_name_or_id_and_by_no_scenes_all_are() {
        let some = filter(&draft(&["Main", "id-7"]));
        for (scene, expected) in [
            (Some(("Main", None)), true),
            (Some(("Other", Some("id-7"))), true),
            (Some(("id-7", Some("x"))), true),
            (Some(("Other", Some("id-8"))), false),
            (None, false),
        ] {
            assert_eq!(some.asks_for(scene), expected, "{scene:?}");
            assert!(filter(&draft(&[])).asks_for(scene));
        }
    }
}
