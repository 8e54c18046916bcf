//! Scenes as they are asked for, and what they may be like.

/// A scene as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Scene<'a> {
    /// 1 to [`SceneLimits::max_name_bytes`] bytes. Names may repeat.
    pub name: &'a str,
    /// Between [`MIN_DURATION_MS`] and [`MAX_DURATION_MS`].
    pub duration_ms: u64,
    /// 1 to [`MAX_SCENE_ID_BYTES`] bytes out of `A–Z a–z 0–9 - _`, distinct within a timeline.
    pub id: Option<&'a str>,
    /// For clients alone, at most [`MAX_SCENE_DATA_BYTES`] bytes.
    pub data: &'a str,
    /// What happens at its end.
    pub at_end: AtEnd<'a>,
    /// Remaining time from which people are warned: a hint to clients, at most [`MAX_DURATION_MS`].
    pub warn_ms: Option<u64>,
    /// Likewise, more urgently.
    pub danger_ms: Option<u64>,
}

impl<'a> Scene<'a> {
    /// A scene with a name and a length alone.
    #[must_use]
    pub const fn new(name: &'a str, duration_ms: u64) -> Self {
        Self { name, duration_ms, id: None, data: "", at_end: AtEnd::Next, warn_ms: None, danger_ms: None }
    }

    /// Whether it has nothing else.
    pub(super) fn is_plain(&self) -> bool {
        *self == Self::new(self.name, self.duration_ms)
    }
}

/// What happens at the end of a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AtEnd<'a> {
    /// The next scene begins.
    #[default]
    Next,
    /// The position stays at the end until somebody goes on.
    Hold {
        /// For how long, before it goes on by itself: [`MIN_DURATION_MS`] to [`MAX_DURATION_MS`]. None: for ever.
        max_hold_ms: Option<u64>,
        /// Where to then: id or name of a later scene. None: the next.
        fallback: Option<&'a str>,
    },
}

/// The shortest scene, and the shortest hold that ends by itself, ms.
pub const MIN_DURATION_MS: u64 = 1;
/// The longest scene, and the longest of all other times somebody may ask for: 365 days, ms.
pub const MAX_DURATION_MS: u64 = 365 * 24 * 60 * 60 * 1_000;
/// The longest id of a scene, bytes.
pub const MAX_SCENE_ID_BYTES: usize = 128;
/// The most that a scene may carry for clients, bytes.
pub const MAX_SCENE_DATA_BYTES: usize = 4_096;

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

    /// Checks a scene by itself.
    pub(super) fn check(self, place: usize, scene: &Scene<'_>) -> Result<(), TimelineError> {
        let max_bytes = self.max_name_bytes;
        let Scene { name, duration_ms, id, data, at_end, warn_ms, danger_ms } = *scene;
        if !(1..=max_bytes).contains(&name.len()) {
            return Err(TimelineError::NameLength { place, bytes: name.len(), max_bytes });
        }
        if !(MIN_DURATION_MS..=MAX_DURATION_MS).contains(&duration_ms) {
            return Err(TimelineError::Duration { place, duration_ms });
        }
        if let Some(id) = id.filter(|id| !is_scene_id(id)) {
            return Err(TimelineError::Id { place, id: beginning(id) });
        }
        if data.len() > MAX_SCENE_DATA_BYTES {
            return Err(TimelineError::Data { place, bytes: data.len() });
        }
        if let AtEnd::Hold { max_hold_ms: Some(max_hold_ms), .. } = at_end
            && !(MIN_DURATION_MS..=MAX_DURATION_MS).contains(&max_hold_ms)
        {
            return Err(TimelineError::MaxHold { place, max_hold_ms });
        }
        for (field, hint_ms) in [("warn_ms", warn_ms), ("danger_ms", danger_ms)] {
            if let Some(ms) = hint_ms.filter(|ms| *ms > MAX_DURATION_MS) {
                return Err(TimelineError::Hint { place, field, ms });
            }
        }
        Ok(())
    }
}

/// Enough of a text to know it by, in a message.
pub(super) fn beginning(text: &str) -> String {
    text.chars().take(40).collect()
}

fn is_scene_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_SCENE_ID_BYTES).contains(&id.len()) && id.bytes().all(allowed)
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
    /// A scene is too short or too long.
    #[error("scenes[{place}].duration_ms must be {MIN_DURATION_MS} to {MAX_DURATION_MS} (365 days), not {duration_ms}")]
    Duration {
        /// Which scene.
        place: usize,
        /// How long it is, ms.
        duration_ms: u64,
    },
    /// An id is too long, or has other characters than it may.
    #[error(
        "scenes[{place}].scene_id must have 1 to {MAX_SCENE_ID_BYTES} bytes out of A-Z a-z 0-9 - and _, not {id:?}"
    )]
    Id {
        /// Which scene.
        place: usize,
        /// Its id, or the beginning of it.
        id: String,
    },
    /// Two scenes have the same id.
    #[error("scenes[{place}].scene_id must be distinct, {id:?} is there twice")]
    IdTaken {
        /// The second scene of that id.
        place: usize,
        /// The id.
        id: String,
    },
    /// A scene carries too much for clients.
    #[error("scenes[{place}].data must have at most {MAX_SCENE_DATA_BYTES} bytes, this has {bytes}")]
    Data {
        /// Which scene.
        place: usize,
        /// How much it is.
        bytes: usize,
    },
    /// A hold is too short or too long.
    #[error("scenes[{place}].max_hold_ms must be {MIN_DURATION_MS} to {MAX_DURATION_MS} (365 days), not {max_hold_ms}")]
    MaxHold {
        /// Which scene.
        place: usize,
        /// How long its hold is, ms.
        max_hold_ms: u64,
    },
    /// A hold leads to no later scene.
    #[error("scenes[{place}].fallback_scene must be id or name of a later scene, {named:?} is not")]
    Fallback {
        /// Which scene.
        place: usize,
        /// What it names, or the beginning of it.
        named: String,
    },
    /// People are to be warned at no time that there is.
    #[error("scenes[{place}].{field} must be at most {MAX_DURATION_MS} (365 days), not {ms}")]
    Hint {
        /// Which scene.
        place: usize,
        /// Which of the two.
        field: &'static str,
        /// When, ms before the end.
        ms: u64,
    },
    /// All texts together are longer than a timeline can hold.
    #[error("scenes: names, ids and data are too long")]
    TextsTooLong,
}
