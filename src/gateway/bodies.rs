//! What a request's body may say, field by field. What the service checks, such as limits and names, is left to it.

use serde::Deserialize;

use super::error::ApiError;
use crate::client::proto::{OrchestratorConfig, SceneConfig, WhenEmpty};

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
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SceneBody {
    name: String,
    duration_ms: u64,
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
        let scenes = self.scenes.into_iter().map(|SceneBody { name, duration_ms }| SceneConfig {
            name,
            duration_ms,
            ..Default::default()
        });
        OrchestratorConfig {
            scenes: scenes.collect(),
            tick_interval_ms: self.tick_interval_ms,
            loop_scenes: self.loop_scenes,
            when_empty: when_empty.into(),
            empty_grace_ms: self.empty_grace_ms,
            idle_timeout_ms: self.idle_timeout_ms,
            ..Default::default()
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

/// What the broadcast itself says of its state.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatusBody {
    pub(super) is_streaming: bool,
    pub(super) stream_time: u64,
    pub(super) timecode: String,
}
