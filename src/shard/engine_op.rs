//! What an engine is fed: the one way in, for a live shard and for a replay.

use bytes::Bytes;

use crate::{
    engine::{Accepted, Engine, Hint, Input, Outbox, Quota, Tick},
    wire::{
        Refusal, WireLimits, commands, decode, proto,
        queries::{self, Question},
        subscriptions::{self, Kind, Named, Subscription},
    },
};

/// One thing that a shard does to its engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineOp {
    /// An `OrchestratorCommand`, undecoded.
    Command(Bytes),
    /// A `SubscriptionCommand`, undecoded.
    Subscription {
        /// The message.
        message: Bytes,
        /// Whether its sender waits for an answer.
        answered: bool,
        /// Where to look first. Changes nothing of what comes of it, so it is not recorded.
        hint: Hint,
    },
    /// A `Query` about one stream, undecoded.
    Query(Bytes),
    /// A part of the list of streams.
    List {
        /// First slot.
        from_slot: u32,
        /// Most streams.
        limit: usize,
    },
    /// How much the tables may hold.
    Quota(Quota),
    /// What the wall clock says, ms since 1970.
    WallClock(u64),
    /// The process stood still, ms.
    ClockStalled(u64),
    /// What is due, looking at so many timers at the most.
    Expire(usize),
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// The message, if there was one and it decodes.
    pub message: Message<'a>,
    /// The engine's answer, or why it was not asked.
    pub result: Result<Accepted, Refusal>,
}

/// A decoded message.
#[derive(Debug)]
pub enum Message<'a> {
    /// A command.
    Command(proto::OrchestratorCommand),
    /// A subscription.
    Subscription {
        /// Which one.
        kind: Kind,
        /// The stream that it names.
        stream_id: &'a str,
        /// Whom it is about, if it is about one.
        named: Named<'a>,
        /// How many it is about.
        entries: usize,
        /// How much work it is, see [`subscriptions::weight`].
        weight: usize,
    },
    /// Neither, or nothing that decodes.
    None,
}

impl EngineOp {
    /// Feeds it to an engine.
    pub fn apply(&self, now: Tick, engine: &mut Engine, limits: &WireLimits, outbox: &mut Outbox) -> Outcome<'_> {
        let mut message = Message::None;
        let mut handle_with =
            |input: Input<'_>, hint: Hint| engine.handle_with(now, input, hint, outbox).map_err(Refusal::from);
        let mut handle = |input: Input<'_>| handle_with(input, Hint::NONE);
        let result = match self {
            Self::Command(bytes) => decode::message(bytes, limits).and_then(|command| {
                let result = commands::input(&command, limits).map_err(Refusal::from).and_then(handle);
                message = Message::Command(command);
                result
            }),
            Self::Subscription { message: bytes, answered, hint } => {
                subscriptions::read(bytes, limits).and_then(|subscription| {
                    message = Message::of(&subscription);
                    let input = subscriptions::input(subscription, *answered)?;
                    handle_with(input, *hint)
                })
            }
            Self::Query(bytes) => decode::message(bytes, limits).and_then(|query| match queries::question(&query)? {
                Question::State(stream_id) => handle(Input::GetState(stream_id)),
                Question::Stats(stream_id) => handle(Input::GetStats(stream_id)),
                Question::Config(stream_id) => handle(Input::GetConfig(stream_id)),
                Question::Subscribers { stream_id, limit, from_slot } => {
                    handle(Input::ListSubscribers { stream_id, from_slot, limit })
                }
                Question::History { stream_id, limit, before_revision } => {
                    handle(Input::GetHistory { stream_id, before_revision, limit })
                }
                Question::List { .. } => Err(Refusal::Unavailable("a list is made in parts")),
                Question::Time => Err(Refusal::Unavailable("the time is told where questions come in")),
            }),
            Self::List { from_slot, limit } => handle(Input::ListStreams { from_slot: *from_slot, limit: *limit }),
            Self::Quota(quota) => handle(Input::SetQuota(*quota)),
            Self::WallClock(ms) => handle(Input::WallClock { ms: *ms }),
            Self::ClockStalled(ms) => handle(Input::ClockStalled { ms: *ms }),
            Self::Expire(budget) => {
                engine.expire(now, *budget, outbox);
                Ok(Accepted::Noted)
            }
        };
        Outcome { message, result }
    }
}

impl<'a> Message<'a> {
    fn of(message: &Subscription<'a>) -> Self {
        let Subscription { kind, stream_id, named, .. } = *message;
        Self::Subscription { kind, stream_id, named, entries: message.entries(), weight: message.weight() }
    }

    /// How much work its subscribers are.
    #[must_use]
    pub const fn weight(&self) -> usize {
        match self {
            Self::Subscription { weight, .. } => *weight,
            Self::Command(_) | Self::None => 0,
        }
    }

    /// The stream that the message names.
    #[must_use]
    pub fn stream_id(&self) -> &str {
        match self {
            Self::Command(message) => message.command.as_ref().map_or("", commands::stream_id),
            Self::Subscription { stream_id, .. } => stream_id,
            Self::None => "",
        }
    }
}
