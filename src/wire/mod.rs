//! The wire: bytes to the engine's inputs, the engine's outputs to bytes, subjects, and the limits on what comes in.
//!
//! Field numbers and meanings are those of `proto/orchestrator.proto`. This part decides nothing about streams: what it
//! lets through is well-formed, and the engine judges it.

pub mod decode;
pub mod encode;
pub mod feed;
pub mod json;
mod replace;
pub mod route;
pub mod subject;
pub mod subscription;

pub use crate::engine::{ClientId, StreamId};

/// The messages of `proto/orchestrator.proto`, as prost generates them.
pub mod proto {
    #![allow(missing_docs, clippy::all, clippy::pedantic)]
    include!(concat!(env!("OUT_DIR"), "/orchestrator.v1.rs"));
}

use crate::engine::{Invalid, Limits, Rejection};

/// The limits on messages, and the engine's on what is in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireLimits {
    /// Largest message that is looked into, bytes.
    pub max_message_bytes: usize,
    /// Longest request id, bytes.
    pub max_request_id_bytes: usize,
    /// Longest timecode, bytes.
    pub max_timecode_bytes: usize,
    /// Those on configurations.
    pub engine: Limits,
}

impl Default for WireLimits {
    fn default() -> Self {
        Self {
            max_message_bytes: 1 << 20,
            max_request_id_bytes: 128,
            max_timecode_bytes: 256,
            engine: Limits::default(),
        }
    }
}

/// Why a message was refused, with a code of the wire for each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bytes are no such message.
    #[error("the message does not decode: {0}")]
    Undecodable(String),
    /// A value in it is out of its limits.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The engine refused it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The service cannot take it now.
    #[error("{0}")]
    Unavailable(&'static str),
}

impl Refusal {
    /// The code on the wire.
    #[must_use]
    pub const fn code(&self) -> proto::Code {
        match self {
            Self::Undecodable(_) => proto::Code::Undecodable,
            Self::Invalid(_) | Self::Rejected(Rejection::InvalidArgument(_)) => proto::Code::InvalidArgument,
            Self::Unavailable(_) => proto::Code::Unavailable,
            Self::Rejected(Rejection::StreamNotFound(_)) => proto::Code::StreamNotFound,
            Self::Rejected(Rejection::AlreadyExists(_)) => proto::Code::AlreadyExists,
            Self::Rejected(Rejection::InvalidState { .. }) => proto::Code::InvalidState,
            Self::Rejected(Rejection::SceneNotFound(_)) => proto::Code::SceneNotFound,
            Self::Rejected(Rejection::UnknownSubscriber { .. }) => proto::Code::UnknownSubscriber,
            Self::Rejected(Rejection::Conflict { .. }) => proto::Code::Conflict,
            Self::Rejected(Rejection::Exhausted { .. }) => proto::Code::ResourceExhausted,
        }
    }
}
