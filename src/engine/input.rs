//! What the engine is told, and what it answers.

use std::{
    net::SocketAddr,
    ops::{Add, AddAssign, SubAssign},
};

use super::{ClientId, Config, Filter, Handle, HistoryEntry, Invalid, Limits, Mode, StateUpdate, StreamId, Tick};

/// One thing to handle. Everything in it is checked already, except against the engine's own state.
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
        filter: Filter,
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
    /// Refused if the stream has moved on. An unknown stream is at 0.
    pub expected_revision: Option<u64>,
    /// Refused if the stream was created again. An unknown stream is at 0.
    pub expected_epoch: Option<u64>,
    /// Id or name of the scene that must be the present one; empty: none may be.
    pub expected_scene: Option<&'a str>,
    /// Who asks, for logs and history.
    pub issued_by: Option<&'a str>,
    /// What to do.
    pub command: Command<'a>,
}

impl<'a> Request<'a> {
    /// A command and nothing around it.
    #[must_use]
    pub const fn new(stream_id: StreamId<'a>, command: Command<'a>) -> Self {
        Self {
            stream_id,
            request_id: None,
            expected_revision: None,
            expected_epoch: None,
            expected_scene: None,
            issued_by: None,
            command,
        }
    }
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

/// An input that was carried out.
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
    Following {
        /// Of the filter: names the subject.
        token: u64,
        /// For how long, unless it is repeated, ms.
        lease_ms: u64,
        /// Of Register: who joined.
        joined: Option<Joined>,
        /// What the follower sees.
        state: StateUpdate,
    },
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
        config: Config,
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

/// How much an engine's tables may hold: the limits, or what others leave of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Most streams.
    pub streams: u64,
    /// Most subscribers.
    pub subscribers: u64,
    /// Most [`Counts::config_bytes`].
    pub config_bytes: u64,
    /// Most [`Counts::client_bytes`].
    pub client_bytes: u64,
    /// Most filters that are followed.
    pub filters: u64,
    /// Most [`Counts::filter_bytes`].
    pub filter_bytes: u64,
}

impl Quota {
    /// All that the limits allow.
    #[must_use]
    pub const fn of(limits: &Limits) -> Self {
        Self {
            streams: limits.max_streams,
            subscribers: limits.max_subscribers,
            config_bytes: limits.max_config_bytes,
            client_bytes: limits.max_client_bytes,
            filters: limits.max_filters,
            filter_bytes: limits.max_filter_bytes,
        }
    }
}

/// How many there are. Kept, not computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Subscribers: active and stale.
    pub total: u64,
    /// Subscribers heard of within the stale timeout.
    pub active: u64,
    /// Subscribers about to be removed because they were not.
    pub stale: u64,
    /// Clients, each once a stream.
    pub unique: u64,
    /// Streams.
    pub streams: u64,
    /// Streams in mode RUNNING.
    pub running: u64,
    /// What streams were given to keep, bytes: ids, configurations, adjusted passes, timecodes.
    pub config_bytes: u64,
    /// What subscribers were given to keep beside their records, bytes: ids that are no UUIDs, and IPv6 addresses.
    pub client_bytes: u64,
    /// Filters that are followed, each once a stream.
    pub filters: u64,
    /// What they take, bytes.
    pub filter_bytes: u64,
    /// What the histories of all streams take, bytes.
    pub history_bytes: u64,
}

impl Add for Counts {
    type Output = Self;

    fn add(mut self, more: Self) -> Self {
        self += more;
        self
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        let Self {
            total,
            active,
            stale,
            unique,
            streams,
            running,
            config_bytes,
            client_bytes,
            filters,
            filter_bytes,
            history_bytes,
        } = more;
        self.total += total;
        self.active += active;
        self.stale += stale;
        self.unique += unique;
        self.streams += streams;
        self.running += running;
        self.config_bytes += config_bytes;
        self.client_bytes += client_bytes;
        self.filters += filters;
        self.filter_bytes += filter_bytes;
        self.history_bytes += history_bytes;
    }
}

impl SubAssign for Counts {
    fn sub_assign(&mut self, less: Self) {
        let Self {
            total,
            active,
            stale,
            unique,
            streams,
            running,
            config_bytes,
            client_bytes,
            filters,
            filter_bytes,
            history_bytes,
        } = less;
        self.total -= total;
        self.active -= active;
        self.stale -= stale;
        self.unique -= unique;
        self.streams -= streams;
        self.running -= running;
        self.config_bytes -= config_bytes;
        self.client_bytes -= client_bytes;
        self.filters -= filters;
        self.filter_bytes -= filter_bytes;
        self.history_bytes -= history_bytes;
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
        mismatch: Mismatch,
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
