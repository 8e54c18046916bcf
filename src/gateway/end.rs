//! Why sockets end, and what their viewers are told of it.

use super::{latest::Ended, line::Fault};

/// Why a socket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The viewer closed it.
    Closed,
    /// The stream was removed.
    Removed,
    /// The gateway ends.
    ShuttingDown,
    /// The stream's updates cannot be received any more.
    UpdatesEnded,
    /// The service does not know the stream, for too long.
    Lost,
    /// More changes waited than are kept, or one message took too long.
    TooSlow,
    /// Nothing was heard, not even a pong.
    Vanished,
    /// The viewer says more than it may.
    TooMuch,
    /// The viewer broke the protocol or its limits; the close code that says how.
    Protocol(u16),
    /// The connection broke.
    Failed,
}

impl End {
    /// As the metrics and the log call it.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Removed => "removed",
            Self::ShuttingDown => "shutting_down",
            Self::UpdatesEnded => "updates_ended",
            Self::Lost => "lost",
            Self::TooSlow => "too_slow",
            Self::Vanished => "vanished",
            Self::TooMuch => "too_much",
            Self::Protocol(_) => "protocol",
            Self::Failed => "failed",
        }
    }

    /// What to tell the viewer, where it is for the gateway to speak. The codes are those of RFC 6455, section 7.4.1, and
    /// of its registry.
    pub(super) fn close_frame(self) -> Option<(u16, &'static str)> {
        match self {
            Self::Removed => Some((1000, "the stream was removed")),
            Self::Lost => Some((1000, "the stream is gone")),
            Self::ShuttingDown => Some((1001, "the gateway is shutting down")),
            Self::UpdatesEnded => Some((1013, "the stream's updates are not received any more")),
            Self::TooSlow => Some((1008, "too slow")),
            Self::Vanished => Some((1008, "no ping was answered")),
            Self::TooMuch => Some((1008, "too much was said")),
            Self::Protocol(1007) => Some((1007, "a text message has to be UTF-8")),
            Self::Protocol(1009) => Some((1009, "the message is too large")),
            Self::Protocol(code) => Some((code, "the protocol was broken")),
            Self::Closed | Self::Failed => None,
        }
    }

    /// Whether nothing that the viewer says can be understood any more.
    pub(super) fn is_fault(self) -> bool {
        matches!(self, Self::TooMuch | Self::Protocol(_))
    }

    /// True when it was the gateway that gave the viewer up.
    pub(super) fn is_drop(self) -> bool {
        !matches!(self, Self::Closed | Self::Removed | Self::ShuttingDown)
    }
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Broken => Self::Failed,
            Fault::Protocol(code) => Self::Protocol(code),
            Fault::TooMuch => Self::TooMuch,
        }
    }
}

impl From<Ended> for End {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::ShuttingDown => Self::ShuttingDown,
            Ended::NoUpdates => Self::UpdatesEnded,
        }
    }
}
