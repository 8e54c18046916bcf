//! Why a call did not succeed: one type with a kind, whoever said no.

use crate::{
    transport::TransportError,
    wire::proto::{Code, Reply},
};

/// A call that did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ClientError {
    kind: ErrorKind,
    message: String,
    /// Boxed, so that a `Result` stays small: most have none.
    reply: Option<Box<Reply>>,
    /// No attempt of the call reached a service.
    reached_none: bool,
    /// What a message may have, bytes, where it was too large.
    limit: Option<usize>,
}

/// What kind of failure it was, and with it whether anything may have been executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The service refused; nothing changed.
    Rejected(Code),
    /// Refused here before anything was sent: an id or a size that the service would refuse too.
    InvalidArgument,
    /// Refused here before anything was sent: a local table is full.
    Exhausted,
    /// No answer came within the budget. Whether it was executed is unknown; the same request id may be sent again.
    Timeout,
    /// The broker is away.
    Unavailable,
    /// The broker says that no service listens: nothing was executed, unless an attempt of the same call before this
    /// one lost its answer.
    NoService,
    /// The broker refuses it, for want of a permission or beyond its limit of subscriptions: the message says what. It is
    /// tried again when it is asked for again.
    Denied,
    /// An answer came that this version does not know.
    Undecodable,
    /// The client or its transport was closed.
    Closed,
}

impl ClientError {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        // Nothing was sent; or it was, and who was to take it said no.
        let reached_none = match kind {
            ErrorKind::InvalidArgument | ErrorKind::Exhausted | ErrorKind::NoService | ErrorKind::Denied => true,
            ErrorKind::Rejected(_)
            | ErrorKind::Timeout
            | ErrorKind::Unavailable
            | ErrorKind::Undecodable
            | ErrorKind::Closed => false,
        };
        Self { kind, message: message.into(), reply: None, reached_none, limit: None }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// A message that the broker would not take.
    pub(super) fn too_large(bytes: usize, limit: usize) -> Self {
        let message = format!("a message of {bytes} bytes is over the broker's limit of {limit}");
        Self { limit: Some(limit), ..Self::invalid(message) }
    }

    pub(super) fn undecodable(what: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::Undecodable, format!("the answer does not decode: {what}"))
    }

    pub(super) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the client is closed")
    }

    /// A reply whose code is not `OK`.
    pub(super) fn rejected(code: Code, reply: Reply) -> Self {
        let message = if reply.message.is_empty() { code.as_str_name().to_owned() } else { reply.message.clone() };
        Self { reply: Some(Box::new(reply)), ..Self::new(ErrorKind::Rejected(code), message) }
    }

    /// The same, of a call of which no attempt reached a service, or one did.
    pub(super) fn with_reached_none(self, reached_none: bool) -> Self {
        Self { reached_none, ..self }
    }

    /// What kind of failure it was.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The wire's code for it, so that a gateway has one table for everything that can go wrong.
    #[must_use]
    pub fn code(&self) -> Code {
        match self.kind {
            ErrorKind::Rejected(code) => code,
            ErrorKind::InvalidArgument => Code::InvalidArgument,
            ErrorKind::Exhausted => Code::ResourceExhausted,
            ErrorKind::Undecodable => Code::Undecodable,
            ErrorKind::Timeout
            | ErrorKind::Unavailable
            | ErrorKind::NoService
            | ErrorKind::Denied
            | ErrorKind::Closed => Code::Unavailable,
        }
    }

    /// What was wrong, in words that name the field and the limit.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The whole reply with which the service refused, if it was the service.
    #[must_use]
    pub fn reply(&self) -> Option<&Reply> {
        self.reply.as_deref()
    }

    /// What the broker takes, bytes, if it would not take this message.
    pub(super) fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// True when the service looked at the request and refused it; `UNAVAILABLE` says that it did not look.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.kind, ErrorKind::Rejected(code) if code != Code::Unavailable)
    }

    /// True when no attempt of the call reached a service: nothing was executed.
    pub(super) fn reached_none(&self) -> bool {
        self.reached_none
    }

    /// True when another attempt of the same request may succeed: nothing answered it.
    pub(super) fn is_unanswered(&self) -> bool {
        matches!(self.kind, ErrorKind::Timeout | ErrorKind::Unavailable | ErrorKind::NoService)
    }
}

impl From<TransportError> for ClientError {
    fn from(error: TransportError) -> Self {
        let kind = match error {
            TransportError::TooLarge { bytes, limit } => return Self::too_large(bytes, limit),
            TransportError::Disconnected => ErrorKind::Unavailable,
            TransportError::Denied(_) => ErrorKind::Denied,
            TransportError::NoResponders(_) => ErrorKind::NoService,
            TransportError::Timeout(_) => ErrorKind::Timeout,
            TransportError::Closed => ErrorKind::Closed,
            TransportError::Refused(_) => ErrorKind::InvalidArgument,
        };
        Self::new(kind, error.to_string())
    }
}
