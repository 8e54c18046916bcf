//! What is published: a message, its kind, on which subjects, and how much of it at once.

use bytes::Bytes;

use crate::wire::{proto, subject::Subject};

/// What a broker takes unless it is told otherwise, bytes: what is reckoned with before there is a connection.
pub const DEFAULT_MAX_PAYLOAD: usize = 1 << 20;

/// Which subjects carry the updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PublishTo {
    /// `stream.<stream_id>.updates`: a subject a stream.
    #[default]
    Subjects,
    /// `orchestrator.feed.<partition>`: many streams' updates in one message.
    Feed,
    /// Both.
    Both,
}

impl From<PublishTo> for proto::PublishedTo {
    fn from(publish_to: PublishTo) -> Self {
        match publish_to {
            PublishTo::Subjects => Self::Subjects,
            PublishTo::Feed => Self::Feed,
            PublishTo::Both => Self::Both,
        }
    }
}

impl PublishTo {
    pub(super) const fn subjects(self) -> bool {
        matches!(self, Self::Subjects | Self::Both)
    }

    pub(super) const fn feed(self) -> bool {
        matches!(self, Self::Feed | Self::Both)
    }
}

/// What a publish queue may hold, and how much of it leaves at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishLimits {
    /// How many changes may be owed or unconfirmed before the shard stops: half a minute of 2,000 changes a second.
    pub max_changes: usize,
    /// How many bytes of them.
    pub max_change_bytes: usize,
    /// How many answers may wait before the shard stops. As many as changes, since a command makes one of each.
    pub max_answers: usize,
    /// How many bytes of them, subjects and bookkeeping included. Large answers may take three quarters: see
    /// [`PublishQueue::reply`](super::publish_queue::PublishQueue::reply).
    pub max_answer_bytes: usize,
    /// How many ticks may wait before the shard rests rather than replace them by newer ones: what a publisher that is at
    /// its limit sends in about 2 ms.
    pub ticks_behind: usize,
    /// How many changes may wait for the broker to take messages for their subjects again, and then the oldest are given
    /// up: they stop no other stream. A minute of four streams that change once a second is 240.
    pub max_held: usize,
    /// How many bytes of them.
    pub max_held_bytes: usize,
    /// Largest message of a feed, bytes, if the connection takes it: half of what a broker takes by default.
    pub max_feed_bytes: usize,
    /// How much is handed over at once.
    pub at_once: AtOnce,
}

impl Default for PublishLimits {
    fn default() -> Self {
        Self {
            max_changes: 65_536,
            max_change_bytes: 64 << 20,
            max_answers: 65_536,
            max_answer_bytes: 16 << 20,
            ticks_behind: 1_024,
            max_held: 16_384,
            max_held_bytes: 8 << 20,
            max_feed_bytes: 512 << 10,
            at_once: AtOnce::default(),
        }
    }
}

/// How much is handed over at once: little enough that ticks do not grow old behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtOnce {
    /// Messages; of a feed, entries.
    pub messages: usize,
    /// Bytes, but for the last message, which may go over it.
    pub bytes: usize,
}

impl AtOnce {
    /// All there is.
    pub const ALL: Self = Self { messages: usize::MAX, bytes: usize::MAX };
    pub(super) const NOTHING: Self = Self { messages: 0, bytes: 0 };

    pub(super) const fn add(&mut self, more: Self) {
        self.messages += more.messages;
        self.bytes += more.bytes;
    }
}

impl Default for AtOnce {
    /// As many bytes as a local network carries in some milliseconds.
    fn default() -> Self {
        Self { messages: 512, bytes: 512 << 10 }
    }
}

/// A message that is to be published now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// What it is, for whoever finds that it cannot be published.
    pub kind: Kind,
    /// Where.
    pub subject: Subject,
    /// What.
    pub payload: Bytes,
}

/// What kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A stream's update, on its subject.
    Update,
    /// Updates of a partition.
    Feed,
    /// An answer.
    Answer,
}

/// What did not fit into any message that the connection takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// Size of the largest, bytes.
    pub bytes: usize,
    /// What the connection took, bytes.
    pub limit: usize,
}
