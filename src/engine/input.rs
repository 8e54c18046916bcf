//! What the engine is told.

use std::net::SocketAddr;

use super::{ClientId, Config, Filter, Handle, Invalid, Quota, StreamId};

/// One thing to handle. Everything in it is checked already, except against the engine's own state. No larger than a
/// Register, since each heartbeat is one, and is moved several times.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// A command for one stream.
    Command(Request<'a>),
    /// One subscriber joins, or is heard of again.
    Register {
        /// What it watches.
        stream_id: StreamId<'a>,
        /// Who it is.
        subscriber: Newcomer<'a>,
        /// Whether the answer reaches it. If not, it gets its snapshot as an update.
        answered: bool,
    },
    /// One subscriber joins and follows a filter: both, or neither.
    RegisterFollowing {
        /// What it watches.
        stream_id: StreamId<'a>,
        /// Who it is.
        subscriber: Newcomer<'a>,
        /// As in `Register`.
        answered: bool,
        /// What it follows.
        filter: Box<Filter>,
    },
    /// Somebody wants the updates that pass a filter, until its lease ends. It watches nothing.
    Follow {
        /// Of which stream.
        stream_id: StreamId<'a>,
        /// Which updates.
        filter: Filter,
    },
    /// Many subscribers of one stream join. A malformed one is refused alone.
    RegisterBatch {
        /// What they watch.
        stream_id: StreamId<'a>,
        /// Who they are.
        subscribers: Vec<Result<Newcomer<'a>, Invalid>>,
        /// As in `Register`.
        answered: bool,
    },
    /// One subscriber leaves.
    Unregister(Subscriber<'a>),
    /// One subscriber is still there.
    Heartbeat(Subscriber<'a>),
    /// Many are still there.
    HeartbeatBatch(Batch<'a>),
    /// Many leave.
    UnregisterBatch(Batch<'a>),
    /// What is the state of this stream?
    GetState(StreamId<'a>),
    /// How many are there: of one stream, or of the whole engine?
    GetStats(Option<StreamId<'a>>),
    /// Which streams are there, from this slot on, at most so many?
    ListStreams {
        /// First slot to look at.
        from_slot: u32,
        /// Most streams in the answer.
        limit: usize,
    },
    /// What was this stream asked to be, and what is its state?
    GetConfig(StreamId<'a>),
    /// Who watches this stream, from this slot on, at most so many?
    ListSubscribers {
        /// Which stream.
        stream_id: StreamId<'a>,
        /// First slot to look at.
        from_slot: u32,
        /// Most subscribers in the answer.
        limit: usize,
    },
    /// What happened to this stream, the newest first, at most so much?
    GetHistory {
        /// Which stream.
        stream_id: StreamId<'a>,
        /// Only what is of lower revisions, if it is given.
        before_revision: Option<u64>,
        /// Most entries in the answer.
        limit: usize,
    },
    /// How much the tables may hold from now on, within the limits. What is there stays.
    SetQuota(Quota),
    /// What the wall clock says now, ms since 1970. Told before anything else of a turn in which it has been set.
    WallClock {
        /// What it says.
        ms: u64,
    },
    /// The engine was not called for that long, so heartbeats may be waiting unread: nobody goes stale for as long.
    ClockStalled {
        /// How long, ms.
        ms: u64,
    },
}

impl<'a> Input<'a> {
    /// The stream and the client, if it is about one subscriber.
    #[inline]
    pub(super) const fn one_subscriber(&self) -> Option<(StreamId<'a>, ClientId<'a>)> {
        match self {
            Self::Register { stream_id, subscriber, .. } | Self::RegisterFollowing { stream_id, subscriber, .. } => {
                Some((*stream_id, subscriber.client_id))
            }
            Self::Heartbeat(subscriber) | Self::Unregister(subscriber) => {
                Some((subscriber.stream_id, subscriber.client_id))
            }
            _ => None,
        }
    }
}

/// Where the look-up of an input will probably end: what `Engine::fetch` finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    pub(super) stream: u32,
    pub(super) subscriber: u32,
}

impl Hint {
    /// Nothing is known.
    pub const NONE: Self = Self { stream: super::records::NONE, subscriber: super::records::NONE };
}

/// A command with what comes around it.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Which stream.
    pub stream_id: StreamId<'a>,
    /// A repeat within [`super::REMEMBER_MS`] gets the first answer; another command of the same id is refused.
    pub request_id: Option<&'a str>,
    /// Refused if the stream is not so; none if it may be as it is.
    pub expected: Option<Box<Expected<'a>>>,
    /// Who asks, for logs and history.
    pub issued_by: Option<&'a str>,
    /// What to do.
    pub command: Command<'a>,
}

impl<'a> Request<'a> {
    /// A command and nothing around it.
    #[must_use]
    pub const fn new(stream_id: StreamId<'a>, command: Command<'a>) -> Self {
        Self { stream_id, request_id: None, expected: None, issued_by: None, command }
    }

    /// The same for a stream that is as expected.
    #[must_use]
    pub fn expecting(self, expected: Expected<'a>) -> Self {
        Self { expected: (expected != Expected::default()).then(|| Box::new(expected)), ..self }
    }
}

/// What a command expects of its stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Expected<'a> {
    /// It has not moved on. An unknown stream is at 0.
    pub revision: Option<u64>,
    /// It was not created again. An unknown stream is at 0.
    pub epoch: Option<u64>,
    /// Id or name of the scene that must be the present one; empty: none may be.
    pub scene: Option<&'a str>,
}

/// What a director can ask of a stream.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Command<'a> {
    /// Creates the stream, or begins again.
    Start(Option<Config>),
    /// Ends it, from any mode.
    Stop,
    /// Freezes the clock.
    Pause,
    /// Lets it go on.
    Resume,
    /// Jumps to the scene of that id, or the next one of that name behind the present one, around the end.
    ForceScene(&'a str),
    /// Jumps to the next scene, also out of a hold.
    SkipScene,
    /// Jumps to the scene before.
    PreviousScene,
    /// Jumps to a position, ms.
    Seek(u64),
    /// Changes the present scene's length in this pass, ms. One that holds plays on for what it gains; one that is
    /// shortened to what has played holds at once.
    AdjustScene(i64),
    /// Says what the encoder behind the stream does. A change of `is_streaming` counts a revision and is told; a newer
    /// time or timecode alone does neither, and goes with the next update.
    UpdateStreamStatus {
        /// Whether it sends.
        is_streaming: bool,
        /// For how long it has, ms.
        stream_time_ms: u64,
        /// Its timecode.
        timecode: &'a str,
    },
    /// Takes another configuration without a restart. What has played of the present scene is kept if it is still there,
    /// by its id or else as the same one of its name; so is its overtime while it holds on. Another instant to start at
    /// puts a stream that is neither stopped nor over on that schedule.
    Reconfigure(Config),
    /// Back to 0, as if just created.
    Reset,
    /// Removes the stream.
    Remove,
}

impl Command<'_> {
    /// The command's name, for messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Start(_) => "Start",
            Self::Stop => "Stop",
            Self::Pause => "Pause",
            Self::Resume => "Resume",
            Self::ForceScene(_) => "ForceScene",
            Self::SkipScene => "SkipScene",
            Self::PreviousScene => "PreviousScene",
            Self::Seek(_) => "Seek",
            Self::AdjustScene(_) => "AdjustScene",
            Self::UpdateStreamStatus { .. } => "UpdateStreamStatus",
            Self::Reconfigure(_) => "Reconfigure",
            Self::Reset => "Reset",
            Self::Remove => "Remove",
        }
    }
}

/// Who joins.
#[derive(Clone, Copy, Debug)]
pub struct Newcomer<'a> {
    /// The viewer.
    pub client_id: ClientId<'a>,
    /// Which of its connections.
    pub session: u64,
    /// Where from.
    pub source: Option<SocketAddr>,
}

/// A subscriber by its name.
#[derive(Clone, Copy, Debug)]
pub struct Subscriber<'a> {
    /// What it watches.
    pub stream_id: StreamId<'a>,
    /// The viewer.
    pub client_id: ClientId<'a>,
    /// Which of its connections.
    pub session: u64,
}

/// Subscribers by name, all sessions of each, and by handle, one session each.
#[derive(Clone, Debug, Default)]
pub struct Batch<'a> {
    /// The stream of the named ones; none when there are only handles.
    pub stream_id: Option<StreamId<'a>>,
    /// Named ones.
    pub clients: Vec<ClientId<'a>>,
    /// Those of any stream.
    pub handles: Vec<Handle>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_moves_no_more_for_what_commands_and_filters_have() {
        assert_eq!((size_of::<Input<'_>>(), size_of::<Request<'_>>()), (112, 104));
    }
}
