//! What a stream is asked to be, and the limits on it.

use std::sync::Arc;

use super::{Invalid, MAX_DURATION_MS, Scene, SceneLimits, Tick, Timeline};

/// What happens when the last subscriber leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WhenEmpty {
    /// The clock runs on for the grace, so that a reloaded page carries on; then the stream is idle at 0.
    #[default]
    Restart,
    /// The position is kept and the next first subscriber goes on from there.
    Freeze,
    /// Clock and mode go on, the end included; nothing is published.
    RunOn,
}

/// A configuration as somebody asks for it, unchecked.
#[derive(Clone, Debug, Default)]
pub struct Draft<'a> {
    /// Scenes in order.
    pub scenes: Vec<Scene<'a>>,
    /// Default [`DEFAULT_TICK_INTERVAL_MS`].
    pub tick_interval_ms: Option<u64>,
    /// Begin again at the end.
    pub loop_scenes: bool,
    /// Default [`WhenEmpty::Restart`].
    pub when_empty: WhenEmpty,
    /// Default [`DEFAULT_EMPTY_GRACE_MS`].
    pub empty_grace_ms: Option<u64>,
    /// Default [`Limits::idle_timeout_ms`].
    pub idle_timeout_ms: Option<u64>,
    /// The wall clock, ms since 1970, at which the timeline begins. The engine lets it be at most [`MAX_DURATION_MS`] ahead.
    pub starts_at_ms: Option<u64>,
    /// Only changes are published.
    pub no_ticks: bool,
    /// For people, at most [`MAX_TITLE_BYTES`] bytes.
    pub title: &'a str,
}

/// How often a running stream's state is published unless it says otherwise, ms.
pub const DEFAULT_TICK_INTERVAL_MS: u64 = 100;
/// How long a stream without viewers runs on unless it says otherwise, ms.
pub const DEFAULT_EMPTY_GRACE_MS: u64 = 2_000;
/// The longest title, bytes.
pub const MAX_TITLE_BYTES: usize = 256;

/// A checked configuration with every default filled in, so that two are the same exactly when they mean the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// The scenes.
    pub timeline: Arc<Timeline>,
    /// How often the state is published while it runs, ms.
    pub tick_interval_ms: u32,
    /// Whether the end is followed by the beginning.
    pub loop_scenes: bool,
    /// What happens when nobody is left.
    pub when_empty: WhenEmpty,
    /// Whether only changes are published.
    pub no_ticks: bool,
    /// How long the clock runs on then, for [`WhenEmpty::Restart`], ms.
    pub empty_grace_ms: u64,
    /// After how long without a subscriber the stream is removed, ms.
    pub idle_timeout_ms: u64,
    /// What few streams have; none if it has nothing of it.
    pub more: Option<Arc<More>>,
}

/// What few streams have in their configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct More {
    /// The wall clock, ms since 1970, at which the timeline begins.
    pub starts_at_ms: Option<u64>,
    /// For people.
    pub title: Box<str>,
}

impl Config {
    /// Checks a draft and fills in the defaults.
    ///
    /// # Errors
    /// Names the field and the limit.
    pub fn new(draft: &Draft<'_>, limits: &Limits) -> Result<Self, Invalid> {
        let timeline =
            Timeline::new(&draft.scenes, limits.scenes()).map_err(|error| Invalid::new(error.to_string()))?;
        if draft.title.len() > MAX_TITLE_BYTES {
            let bytes = draft.title.len();
            return Err(Invalid::new(format!("title must have at most {MAX_TITLE_BYTES} bytes, this has {bytes}")));
        }
        let within = |field, value: Option<u64>, default: u64, least, most| match value.unwrap_or(default) {
            value if (least..=most).contains(&value) => Ok(value),
            value => Err(Invalid::new(format!("{field} must be {least} to {most}, not {value}"))),
        };
        let (shortest, longest) = (limits.min_tick_interval_ms, limits.max_tick_interval_ms.min(u32::MAX.into()));
        let default_tick = DEFAULT_TICK_INTERVAL_MS.max(shortest).min(longest);
        let tick_interval_ms = within("tick_interval_ms", draft.tick_interval_ms, default_tick, shortest, longest)?;
        let more = More { starts_at_ms: draft.starts_at_ms, title: draft.title.into() };
        let config = Self {
            timeline: Arc::new(timeline),
            tick_interval_ms: tick_interval_ms as u32,
            loop_scenes: draft.loop_scenes,
            when_empty: draft.when_empty,
            no_ticks: draft.no_ticks,
            empty_grace_ms: within("empty_grace_ms", draft.empty_grace_ms, DEFAULT_EMPTY_GRACE_MS, 0, MAX_DURATION_MS)?,
            idle_timeout_ms: within(
                "idle_timeout_ms",
                draft.idle_timeout_ms,
                limits.idle_timeout_ms,
                1,
                limits.max_idle_timeout_ms,
            )?,
            more: Some(more).filter(|more| *more != More::default()).map(Arc::new),
        };
        config.check_bytes(limits.max_config_bytes_of_stream)?;
        Ok(config)
    }

    /// The wall clock, ms since 1970, at which the timeline begins, if it does not begin with the first subscriber.
    #[must_use]
    pub fn starts_at_ms(&self) -> Option<u64> {
        self.more.as_ref().and_then(|more| more.starts_at_ms)
    }

    /// When the next tick is due behind a moment.
    pub(super) fn tick_after(&self, now: Tick) -> Tick {
        if self.no_ticks { Tick::NEVER } else { now.after(self.tick_interval_ms.into()) }
    }

    /// What people call it.
    #[must_use]
    pub fn title(&self) -> &str {
        self.more.as_ref().map_or("", |more| &more.title)
    }

    /// What it gives to keep, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.timeline.bytes() + self.more.as_ref().map_or(0, |more| size_of::<More>() + more.title.len())
    }

    fn check_bytes(&self, most: u64) -> Result<(), Invalid> {
        let bytes = self.bytes() as u64;
        if bytes <= most {
            return Ok(());
        }
        Err(Invalid::new(format!(
            "scenes must take at most {most} bytes, 16 each and their names, and 40 to 52 each if one has more, and ids, \
             data and the title; these take {bytes}"
        )))
    }
}

/// The limits of one service. Those on a configuration are checked in [`Config::new`], those on tables by the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most scenes of a stream.
    pub max_scenes: usize,
    /// Longest name of a scene, bytes.
    pub max_scene_name_bytes: usize,
    /// Shortest tick interval, ms.
    pub min_tick_interval_ms: u64,
    /// Longest tick interval, ms.
    pub max_tick_interval_ms: u64,
    /// Default of a stream's idle timeout, ms.
    pub idle_timeout_ms: u64,
    /// Longest idle timeout that a stream may ask for, ms: for so long it is kept for nobody.
    pub max_idle_timeout_ms: u64,
    /// Most streams.
    pub max_streams: u64,
    /// Most subscribers.
    pub max_subscribers: u64,
    /// Most that all streams may give to keep, [`Counts::config_bytes`](super::Counts).
    pub max_config_bytes: u64,
    /// Most that one configuration may take of it, bytes: 16 a scene and the names, 40 to 52 a scene more if one has more
    /// than name and length, ids, data and the title.
    pub max_config_bytes_of_stream: u64,
    /// Most that all subscribers may give to keep beside their records, [`Counts::client_bytes`](super::Counts).
    pub max_client_bytes: u64,
    /// Most filters that are followed, of all streams.
    pub max_filters: u64,
    /// Most that they may take, [`Counts::filter_bytes`](super::Counts).
    pub max_filter_bytes: u64,
    /// Most that the histories of all streams may take, [`Counts::history_bytes`](super::Counts). Beyond it the oldest of
    /// what happened is forgotten, and counted.
    pub max_history_bytes: u64,
    /// Most sessions of one client on one stream: they share one entry of the index, so a look-up walks them.
    pub max_sessions_per_client: u32,
    /// Most answers that an engine remembers for repeated request ids. Beyond it the oldest of the stream whose answers
    /// take the most is forgotten early, and counted.
    pub max_remembered_requests: usize,
    /// Most of them of one stream, and of all together that are not there. Beyond it the oldest of these is forgotten.
    pub max_remembered_of_stream: usize,
}

impl Limits {
    /// Those on scenes.
    #[must_use]
    pub const fn scenes(&self) -> SceneLimits {
        SceneLimits { max_scenes: self.max_scenes, max_name_bytes: self.max_scene_name_bytes }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let SceneLimits { max_scenes, max_name_bytes } = SceneLimits::default();
        Self {
            max_scenes,
            max_scene_name_bytes: max_name_bytes,
            min_tick_interval_ms: 10,
            max_tick_interval_ms: 60_000,
            idle_timeout_ms: 60_000,
            max_idle_timeout_ms: 24 * 60 * 60 * 1_000,
            max_streams: 1_000_000,
            max_subscribers: 20_000_000,
            max_config_bytes: 512 << 20,
            max_config_bytes_of_stream: 1 << 20,
            max_client_bytes: 1 << 30,
            max_filters: 100_000,
            max_filter_bytes: 64 << 20,
            max_history_bytes: 64 << 20,
            max_sessions_per_client: 256,
            max_remembered_requests: 65_536,
            max_remembered_of_stream: 256,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft() -> Draft<'static> {
        Draft { scenes: vec![Scene::new("Main", 10_000)], ..Draft::default() }
    }

    #[test]
    fn a_default_spelled_out_is_the_same_config() {
        let spelled_out = Draft {
            tick_interval_ms: Some(100),
            empty_grace_ms: Some(2_000),
            idle_timeout_ms: Some(60_000),
            ..draft()
        };
        let limits = Limits::default();
        assert_eq!(Config::new(&draft(), &limits), Config::new(&spelled_out, &limits));
    }

    #[test]
    fn numbers_at_the_ends_are_refused_with_field_and_limit() {
        let limits = Limits::default();
        for (draft, words) in [
            (Draft { tick_interval_ms: Some(0), ..draft() }, "tick_interval_ms must be 10 to 60000, not 0"),
            (Draft { tick_interval_ms: Some(u64::MAX), ..draft() }, "tick_interval_ms must be 10 to 60000"),
            (Draft { empty_grace_ms: Some(u64::MAX), ..draft() }, "empty_grace_ms must be 0 to 31536000000"),
            (Draft { idle_timeout_ms: Some(0), ..draft() }, "idle_timeout_ms must be 1 to 86400000, not 0"),
            (Draft { idle_timeout_ms: Some(u64::MAX), ..draft() }, "idle_timeout_ms must be 1 to 86400000"),
        ] {
            let error = Config::new(&draft, &limits).expect_err(words);
            assert!(error.0.contains(words), "{error}");
        }
        assert!(Config::new(&Draft { empty_grace_ms: Some(0), ..draft() }, &limits).is_ok());
        let (fits, long) = ("x".repeat(256), "x".repeat(257));
        assert!(Config::new(&Draft { title: &fits, ..draft() }, &limits).is_ok_and(|config| config.title() == fits));
        let error = Config::new(&Draft { title: &long, ..draft() }, &limits).expect_err("too long");
        assert!(error.0.contains("title must have at most 256 bytes, this has 257"), "{error}");
    }

    #[test]
    fn what_few_streams_have_takes_a_pointer_of_those_that_have_not() {
        assert_eq!(size_of::<Config>(), 40);
        let config = |draft: &Draft<'_>| Config::new(draft, &Limits::default()).unwrap();
        let plain = config(&draft());
        assert_eq!((&plain.more, plain.starts_at_ms(), plain.title(), plain.bytes()), (&None, None, "", 16 + 4));
        let titled = config(&Draft { title: "Morning", starts_at_ms: Some(7), ..draft() });
        assert_eq!((titled.starts_at_ms(), titled.title(), titled.bytes()), (Some(7), "Morning", 20 + 32 + 7));
    }
}
