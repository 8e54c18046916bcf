//! What the engine answers.

use std::net::SocketAddr;

use super::{Config, Counts, Handle, HistoryEntry, Invalid, Mode, StateUpdate, Tick};

/// An input that was carried out. No larger than a state and what Register tells with it, since each heartbeat has one.
#[derive(Clone, Debug, PartialEq)]
pub enum Accepted {
    /// A command, or GetState: the state after it.
    State(StateUpdate),
    /// Register.
    Registered {
        /// What a batch may send instead of the client id.
        handle: Handle,
        /// False when the same subscriber was there before.
        new: bool,
        /// How many subscribers the stream has now.
        total: u64,
        /// What the newcomer sees.
        state: StateUpdate,
    },
    /// Follow, and Register with a filter.
    Following(Box<Following>),
    /// RegisterBatch.
    RegisteredBatch {
        /// In the order of the subscribers.
        handles: Vec<Result<Handle, Rejection>>,
        /// What the newcomers see.
        state: StateUpdate,
    },
    /// Unregister.
    Unregistered {
        /// How many subscribers the stream has left.
        total: u64,
        /// Where the one that left had connected from.
        source: Option<SocketAddr>,
    },
    /// Heartbeat.
    Heard,
    /// HeartbeatBatch, UnregisterBatch: what could not be placed.
    Batch(Unplaced),
    /// GetStats.
    Stats(Counts),
    /// ListStreams.
    Streams {
        /// The states, in the order of their slots.
        states: Vec<StateUpdate>,
        /// Where to go on, if there may be more.
        next_slot: Option<u32>,
    },
    /// GetConfig.
    Config {
        /// What the stream was asked to be.
        config: Box<Config>,
        /// What it is; its timeline is the present pass's.
        state: StateUpdate,
    },
    /// ListSubscribers.
    Subscribers {
        /// In the order of their slots.
        subscribers: Vec<SubscriberInfo>,
        /// Where to go on, if there may be more.
        next_slot: Option<u32>,
    },
    /// GetHistory: the newest first.
    History(Vec<HistoryEntry>),
    /// SetQuota, WallClock, ClockStalled.
    Noted,
}

/// A filter that is followed.
#[derive(Clone, Debug, PartialEq)]
pub struct Following {
    /// Of the filter: names the subject.
    pub token: u64,
    /// For how long, unless it is repeated, ms.
    pub lease_ms: u64,
    /// Of Register: who joined.
    pub joined: Option<Joined>,
    /// What the follower sees.
    pub state: StateUpdate,
}

/// A subscriber that was registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    /// What a batch may send instead of the client id.
    pub handle: Handle,
    /// False when the same subscriber was there before.
    pub new: bool,
    /// How many subscribers the stream has now.
    pub total: u64,
}

/// What there is to tell of a subscriber.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriberInfo {
    /// The engine's number for it, which it keeps for as long as it is there.
    pub slot: u32,
    /// The viewer.
    pub client_id: Box<str>,
    /// Where it connected from, if that is known.
    pub source: Option<SocketAddr>,
    /// Which of its connections.
    pub session: u64,
    /// When it was last heard of.
    pub heard: Tick,
    /// Whether that is too long ago: it is about to be removed.
    pub is_stale: bool,
}

impl Accepted {
    /// Whether every part of it was carried out: a batch may have been in part.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        match self {
            Self::Batch(unplaced) => unplaced.is_empty(),
            Self::RegisteredBatch { handles, .. } => handles.iter().all(Result::is_ok),
            _ => true,
        }
    }

    /// What a batch came to that was handled in two pieces, this one and the one behind.
    #[must_use]
    pub fn and(self, behind: Self) -> Self {
        match (self, behind) {
            (Self::Batch(mut unplaced), Self::Batch(more)) => {
                unplaced.no_such_stream |= more.no_such_stream;
                unplaced.handles.extend(more.handles);
                unplaced.clients.extend(more.clients);
                Self::Batch(unplaced)
            }
            (Self::RegisteredBatch { mut handles, .. }, Self::RegisteredBatch { handles: more, state }) => {
                handles.extend(more);
                Self::RegisteredBatch { handles, state }
            }
            (_, behind) => behind,
        }
    }
}

/// What a batch could not place: whom to register again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unplaced {
    /// True when the batch names a stream that is not there.
    pub no_such_stream: bool,
    /// Handles that stand for nobody.
    pub handles: Vec<Handle>,
    /// Clients that the stream does not have.
    pub clients: Vec<String>,
}

impl Unplaced {
    /// Whether everything found its place.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.no_such_stream && self.handles.is_empty() && self.clients.is_empty()
    }
}

/// Why an input was refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// A value that fits no stream, or not this one.
    #[error(transparent)]
    InvalidArgument(#[from] Invalid),
    /// No such stream.
    #[error("stream_id: there is no stream {0:?}")]
    StreamNotFound(String),
    /// The stream has another configuration.
    #[error("config: stream {0:?} exists with another config; use Reconfigure to change it")]
    AlreadyExists(String),
    /// The command does not fit the mode.
    #[error("{command} is not possible while the stream is {mode}")]
    InvalidState {
        /// The command.
        command: &'static str,
        /// What the stream is.
        mode: Mode,
    },
    /// No scene of that name.
    #[error("scene_name: the stream has no scene {0:?}")]
    SceneNotFound(String),
    /// No such subscriber: it should register again.
    #[error("client_id: client {client_id:?} with session {session} is not registered; register it again")]
    UnknownSubscriber {
        /// The client.
        client_id: String,
        /// The session.
        session: u64,
    },
    /// The stream is not as the command expects.
    #[error("{mismatch}")]
    Conflict {
        /// What is not.
        mismatch: Box<Mismatch>,
        /// The revision that the stream is at.
        revision: u64,
    },
    /// The id was another command's, not long ago.
    #[error("request_id: {0:?} was given to another command within the last 2 minutes; use a new one")]
    RequestIdTaken(String),
    /// The service holds as many as it may.
    #[error("the service is at its limit of {limit} {what}")]
    Exhausted {
        /// Of what.
        what: &'static str,
        /// How many.
        limit: u64,
    },
}

/// What of a stream is not as a command expects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// It has moved on.
    #[error("expected_revision: {expected} was expected, the stream is at {actual}")]
    Revision {
        /// What was expected.
        expected: u64,
        /// What is.
        actual: u64,
    },
    /// It is another one of the same id.
    #[error("expected_epoch: {expected} was expected, the stream is of {actual}")]
    Epoch {
        /// What was expected.
        expected: u64,
        /// What is.
        actual: u64,
    },
    /// Another scene is the present one, or none is.
    #[error("expected_scene: {expected:?} was expected, the stream is in {actual:?}")]
    Scene {
        /// Id or name of the scene that was expected, empty for none.
        expected: String,
        /// The name of the one that is, empty for none.
        actual: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_updates_are_as_large_as_what_most_of_them_have() {
        assert_eq!((size_of::<StateUpdate>(), size_of::<Rejection>()), (112, 32));
        assert_eq!(size_of::<Result<Accepted, Rejection>>(), 144);
    }
}
