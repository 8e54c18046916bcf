//! The wire: bytes to the engine's inputs, the engine's outputs to bytes, subjects, and the limits on what comes in.
//!
//! Field numbers and meanings are those of `proto/orchestrator.proto`. This part decides nothing about streams: what it
//! lets through is well-formed, and the engine judges it.
//!
//! | file | job |
//! |---|---|
//! | `commands`, `subscriptions`, `queries` | each kind of request: where it belongs, what it says, the input it makes |
//! | `filters` | which updates somebody follows |
//! | `reader` | the pieces of a message, read in place |
//! | `decode` | what all readings share: sizes, and the words of a refusal |
//! | `encode` | updates and answers |
//! | `read_back` | answers about one stream's configuration, subscribers and history |
//! | `feed` | a feed's message, update by update |
//! | `replace` | which update may take another's place |
//! | `json`, `subject` | names in JSON; subjects |

pub mod commands;
pub mod decode;
pub mod encode;
pub mod feed;
mod filters;
pub mod json;
pub mod presence;
pub mod queries;
pub mod read_back;
mod reader;
mod replace;
pub mod subject;
pub mod subscriptions;

pub use self::reader::is_fields_without_groups;
pub use crate::engine::{ClientId, Filter, StreamId};

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
    /// The answer would have more bytes than the connection takes.
    #[error("the answer would have {bytes} bytes, and the connection takes {limit}")]
    TooLarge {
        /// So many bytes it would have.
        bytes: usize,
        /// So many it may.
        limit: usize,
    },
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
            Self::Rejected(Rejection::Conflict { .. } | Rejection::RequestIdTaken(_)) => proto::Code::Conflict,
            Self::TooLarge { .. } | Self::Rejected(Rejection::Exhausted { .. }) => proto::Code::ResourceExhausted,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;
    use prost::{
        Message as _,
        encoding::{WireType, encode_key, encode_varint},
    };

    use super::{
        commands::{self, CommandRoute},
        proto,
        subscriptions::{Subscription, SubscriptionRoute},
    };

    /// The fields of a message of the contract's oneof: name of the type, and number.
    fn oneof(message: &str) -> Vec<(&'static str, u32)> {
        let fields = body_of(message).split_once("oneof ").expect("a oneof").1;
        let fields = fields.split_once('{').and_then(|(_, fields)| fields.split_once('}')).expect("its braces").0;
        let fields =
            fields.lines().filter_map(|line| line.split_once("//").map_or(line, |(field, _)| field).split_once('='));
        let number = |text: &str| text.trim().trim_end_matches(';').parse().expect("a number");
        let fields: Vec<_> =
            fields.map(|(field, tag)| (field.split_whitespace().next().expect("a type"), number(tag))).collect();
        assert!(!fields.is_empty(), "{message} has a oneof");
        fields
    }

    /// What a message of the contract holds, from its name on.
    fn body_of(message: &str) -> &'static str {
        const CONTRACT: &str = include_str!("../../proto/orchestrator.proto");
        let start = format!("message {message} {{");
        CONTRACT.split_once(&*start).unwrap_or_else(|| panic!("{message} is in the contract")).1
    }

    /// A message whose field `tag` is a message with these bytes.
    fn wrapped(tag: u32, inner: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_key(tag, WireType::LengthDelimited, &mut bytes);
        encode_varint(inner.len() as u64, &mut bytes);
        bytes.put_slice(inner);
        bytes
    }

    #[test]
    fn every_command_of_the_contract_is_routed_by_its_stream() {
        let config = proto::OrchestratorConfig { scenes: vec![proto::SceneConfig::default(); 3], ..Default::default() };
        let stream_id = wrapped(1, b"show");
        for (name, tag) in oneof("OrchestratorCommand") {
            let fields = body_of(name).split_once('}').expect("its end").0;
            let (inner, scenes) = if fields.contains("OrchestratorConfig") {
                ([&*stream_id, &wrapped(2, &config.encode_to_vec())].concat(), 3)
            } else {
                (stream_id.clone(), 0)
            };
            let bytes = wrapped(tag, &inner);
            let message = proto::OrchestratorCommand::decode(&*bytes).expect("a command");
            assert_eq!(message.command.as_ref().map(commands::stream_id), Some("show"), "{name}");
            assert_eq!(CommandRoute::read(&bytes), Ok(CommandRoute { stream_id: "show", scenes }), "{name}");
        }
    }

    #[test]
    fn every_subscription_of_the_contract_is_routed_by_its_stream() {
        for (name, tag) in oneof("SubscriptionCommand") {
            let bytes = wrapped(tag, &wrapped(1, b"show"));
            let route = SubscriptionRoute::read(&bytes).expect("it reads").unwrap_or_else(|| panic!("{name} is known"));
            let whole = Subscription::read(&bytes).expect("it reads").expect("a command");
            assert_eq!((route.stream_id, whole.stream_id), ("show", "show"), "{name}");
            let by_prost = proto::SubscriptionCommand::decode(&*bytes).expect("a command").command.expect("one");
            assert_eq!(format!("{:?}", whole.kind), name);
            assert!(format!("{by_prost:?}").starts_with(name), "{by_prost:?}");
        }
    }

    #[test]
    fn every_query_of_the_contract_is_understood() {
        for (name, tag) in oneof("Query") {
            let message = proto::Query::decode(&*wrapped(tag, &wrapped(1, b""))).or_else(|_| {
                // Its field 1 is no text.
                proto::Query::decode(&*wrapped(tag, &[]))
            });
            let query = message.expect("a query").query.unwrap_or_else(|| panic!("{name} is known"));
            assert!(format!("{query:?}").starts_with(name), "{query:?}");
        }
    }
}
