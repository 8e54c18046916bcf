//! What a stream is asked to be, and the limits on it.

use std::sync::Arc;

use super::{Invalid, MAX_DURATION_MS, Scene, SceneLimits, Timeline};

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
}

/// How often a running stream's state is published unless it says otherwise, ms.
pub const DEFAULT_TICK_INTERVAL_MS: u64 = 100;
/// How long a stream without viewers runs on unless it says otherwise, ms.
pub const DEFAULT_EMPTY_GRACE_MS: u64 = 2_000;

/// A checked configuration with every default filled in, so that two are the same exactly when they mean the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// The scenes.
    pub timeline: Arc<Timeline>,
    /// How often the state is published while it runs, ms.
    pub tick_interval_ms: u64,
    /// Whether the end is followed by the beginning.
    pub loop_scenes: bool,
    /// What happens when nobody is left.
    pub when_empty: WhenEmpty,
    /// How long the clock runs on then, for [`WhenEmpty::Restart`], ms.
    pub empty_grace_ms: u64,
    /// After how long without a subscriber the stream is removed, ms.
    pub idle_timeout_ms: u64,
}

impl Config {
    /// Checks a draft and fills in the defaults.
    ///
    /// # Errors
    /// Names the field and the limit.
    pub fn new(draft: &Draft<'_>, limits: &Limits) -> Result<Self, Invalid> {
        let timeline =
            Timeline::new(&draft.scenes, limits.scenes()).map_err(|error| Invalid::new(error.to_string()))?;
        let (bytes, most) = (timeline.bytes() as u64, limits.max_config_bytes_of_stream);
        if bytes > most {
            return Err(Invalid::new(format!(
                "scenes must take at most {most} bytes, 16 each and their names; these take {bytes}"
            )));
        }
        let within = |field, value: Option<u64>, default: u64, least, most| match value.unwrap_or(default) {
            value if (least..=most).contains(&value) => Ok(value),
            value => Err(Invalid::new(format!("{field} must be {least} to {most}, not {value}"))),
        };
        let ticks = (limits.min_tick_interval_ms, limits.max_tick_interval_ms);
        let default_tick = DEFAULT_TICK_INTERVAL_MS.clamp(ticks.0, ticks.1);
        Ok(Self {
            timeline: Arc::new(timeline),
            tick_interval_ms: within("tick_interval_ms", draft.tick_interval_ms, default_tick, ticks.0, ticks.1)?,
            loop_scenes: draft.loop_scenes,
            when_empty: draft.when_empty,
            empty_grace_ms: within("empty_grace_ms", draft.empty_grace_ms, DEFAULT_EMPTY_GRACE_MS, 0, MAX_DURATION_MS)?,
            idle_timeout_ms: within(
                "idle_timeout_ms",
                draft.idle_timeout_ms,
                limits.idle_timeout_ms,
                1,
                limits.max_idle_timeout_ms,
            )?,
        })
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
    /// Most that one configuration may take of it, bytes: 16 a scene, and the names.
    pub max_config_bytes_of_stream: u64,
    /// Most that all subscribers may give to keep beside their records, [`Counts::client_bytes`](super::Counts).
    pub max_client_bytes: u64,
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
        Draft { scenes: vec![Scene { name: "Main", duration_ms: 10_000 }], ..Draft::default() }
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
    }
}
