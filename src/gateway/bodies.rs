//! What a request's body may say, field by field. What the service checks, such as limits and names, is left to it.

use serde::Deserialize;

use super::error::ApiError;
use crate::client::proto::{AtEnd, OrchestratorConfig, SceneConfig, WhenEmpty};

/// A stream's configuration, and at its creation its name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamBody {
    pub(super) stream_id: Option<String>,
    scenes: Vec<SceneBody>,
    tick_interval_ms: Option<u64>,
    #[serde(default)]
    loop_scenes: bool,
    #[serde(default)]
    when_empty: WhenEmptyBody,
    empty_grace_ms: Option<u64>,
    idle_timeout_ms: Option<u64>,
    starts_at_ms: Option<u64>,
    #[serde(default)]
    no_ticks: bool,
    title: Option<String>,
}

/// A text that is not there is empty on the wire; here it may be `null` or left out too.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SceneBody {
    name: String,
    duration_ms: u64,
    scene_id: Option<String>,
    data: Option<String>,
    #[serde(default)]
    at_end: AtEndBody,
    max_hold_ms: Option<u64>,
    fallback_scene: Option<String>,
    warn_ms: Option<u64>,
    danger_ms: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum AtEndBody {
    #[default]
    Next,
    Hold,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum WhenEmptyBody {
    #[default]
    Restart,
    Freeze,
    RunOn,
}

impl StreamBody {
    pub(super) fn into_config(self) -> OrchestratorConfig {
        let when_empty = match self.when_empty {
            WhenEmptyBody::Restart => WhenEmpty::Restart,
            WhenEmptyBody::Freeze => WhenEmpty::Freeze,
            WhenEmptyBody::RunOn => WhenEmpty::RunOn,
        };
        OrchestratorConfig {
            scenes: self.scenes.into_iter().map(SceneBody::into_scene).collect(),
            tick_interval_ms: self.tick_interval_ms,
            loop_scenes: self.loop_scenes,
            when_empty: when_empty.into(),
            empty_grace_ms: self.empty_grace_ms,
            idle_timeout_ms: self.idle_timeout_ms,
            starts_at_ms: self.starts_at_ms,
            no_ticks: self.no_ticks,
            title: self.title.unwrap_or_default(),
        }
    }

    /// The configuration for a stream that the path names already.
    pub(super) fn config_of(self, stream_id: &str) -> Result<OrchestratorConfig, ApiError> {
        match &self.stream_id {
            Some(other) if other != stream_id => {
                Err(ApiError::invalid(format!("stream_id is {other:?} in the body and {stream_id:?} in the path")))
            }
            _ => Ok(self.into_config()),
        }
    }
}

impl SceneBody {
    fn into_scene(self) -> SceneConfig {
        let at_end = match self.at_end {
            AtEndBody::Next => AtEnd::Next,
            AtEndBody::Hold => AtEnd::Hold,
        };
        SceneConfig {
            name: self.name,
            duration_ms: self.duration_ms,
            scene_id: self.scene_id.unwrap_or_default(),
            data: self.data.unwrap_or_default(),
            at_end: at_end.into(),
            max_hold_ms: self.max_hold_ms,
            fallback_scene: self.fallback_scene.unwrap_or_default(),
            warn_ms: self.warn_ms,
            danger_ms: self.danger_ms,
        }
    }
}

/// What the broadcast itself says of its state.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatusBody {
    pub(super) is_streaming: bool,
    pub(super) stream_time: u64,
    pub(super) timecode: String,
}
