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
    /// An answer came that does not decode.
    Undecodable,
    /// The client or its transport was closed.
    Closed,
}

impl ClientError {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), reply: None, reached_none: false }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
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
        Self { kind: ErrorKind::Rejected(code), message, reply: Some(Box::new(reply)), reached_none: false }
    }

    /// The same, of a call of which no attempt reached a service.
    pub(super) fn of_none_reached(self) -> Self {
        Self { reached_none: true, ..self }
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
            ErrorKind::Timeout | ErrorKind::Unavailable | ErrorKind::NoService | ErrorKind::Closed => Code::Unavailable,
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

    /// True when it is certain that nothing was executed.
    pub(super) fn executed_nothing(&self) -> bool {
        self.reached_none || matches!(self.kind, ErrorKind::Rejected(_) | ErrorKind::InvalidArgument)
    }

    /// True when another attempt of the same request may succeed: nothing answered it.
    pub(super) fn is_unanswered(&self) -> bool {
        matches!(self.kind, ErrorKind::Timeout | ErrorKind::Unavailable | ErrorKind::NoService)
    }
}

impl From<TransportError> for ClientError {
    fn from(error: TransportError) -> Self {
        let kind = match error {
            TransportError::Disconnected | TransportError::Denied(_) => ErrorKind::Unavailable,
            TransportError::NoResponders(_) => ErrorKind::NoService,
            TransportError::Timeout(_) => ErrorKind::Timeout,
            TransportError::Closed => ErrorKind::Closed,
            TransportError::TooLarge { .. } | TransportError::Refused(_) => ErrorKind::InvalidArgument,
        };
        Self::new(kind, error.to_string())
    }
}
