//! The broker and everybody's connection to it.
//!
//! A connection keeps the order of its messages in each direction and loses what is on its way when it breaks, like
//! TCP: what was before the break arrives, what is behind it does not. Whoever holds its end notices the break later.

use std::rc::Rc;

use bytes::Bytes;
use orchestrator_service::{transport::Connection, wire::proto};

use crate::{gateway::SubId, rng::Rng};

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    Ingress,
    Publisher(usize),
    Gateway(usize),
    Director(usize),
    /// A gateway with the real client.
    Client(usize),
}

/// One connection.
#[derive(Debug)]
pub struct Link {
    pub alive: bool,
    pub generation: u64,
    /// What it takes, bytes.
    pub max_payload: usize,
    /// What its holder knows of it.
    pub believed: Connection,
    out_last: u64,
    in_last: u64,
}

/// On its way over a connection of which this was the generation.
#[derive(Clone, Debug)]
pub struct Parcel {
    pub party: Party,
    pub generation: u64,
    pub message: Message,
}

#[derive(Clone, Debug)]
pub enum Message {
    Request(Rc<Sent>),
    Updates(Rc<Updates>),
    Answer(Rc<Answer>),
    /// A publisher's, to itself.
    Barrier(u64),
    /// To a publisher: the broker refuses messages to that subject.
    Refused(String),
    /// A publisher's, to itself, behind a message that may be refused: how many had been before.
    Probe(u64),
    /// To a client: nobody listens who could answer that request.
    NoResponders(usize),
    /// To a client: an answer to that request that is not the service's.
    Another {
        request: usize,
        payload: Bytes,
    },
    /// A client's subscription, by its number, and that the broker has it.
    Subscribe {
        number: u64,
        subject: String,
    },
    Subscribed {
        number: u64,
        denied: bool,
    },
    Unsubscribe {
        number: u64,
    },
}

/// A request as it was sent.
#[derive(Debug)]
pub struct Sent {
    pub from: Party,
    pub subject: &'static str,
    pub payload: Bytes,
    /// Number of the request whose answer is waited for.
    pub request: Option<usize>,
    pub what: What,
    /// The shards that each have a part of it; none if it is for one alone.
    pub round: Vec<usize>,
}

/// What a request is about.
#[derive(Debug)]
pub enum What {
    /// A command with the number of its request id, if it has one.
    Command {
        stream: usize,
        request_id: Option<usize>,
    },
    Join(Vec<SubId>),
    /// Subscribers, each with the handle it is called by if it is not by name.
    Leave(Vec<(SubId, Option<u64>)>),
    Beat(Vec<(SubId, Option<u64>)>),
    /// A filter, by its number among those of this world.
    Follow {
        stream: usize,
        filter: usize,
    },
    State {
        stream: usize,
    },
    Stats {
        stream: Option<usize>,
    },
    List,
    History {
        stream: usize,
    },
    Subscribers {
        stream: usize,
    },
    Config {
        stream: usize,
    },
}

impl What {
    /// How many subscribers it is about.
    pub fn entries(&self) -> usize {
        match self {
            Self::Join(subs) => subs.len(),
            Self::Beat(subs) | Self::Leave(subs) => subs.len(),
            Self::Command { .. }
            | Self::Follow { .. }
            | Self::State { .. }
            | Self::Stats { .. }
            | Self::List
            | Self::History { .. }
            | Self::Subscribers { .. }
            | Self::Config { .. } => 1,
        }
    }
}

/// An answer as it was handed over.
#[derive(Debug)]
pub struct Answer {
    pub request: usize,
    pub payload: Bytes,
    pub body: AnswerBody,
}

#[derive(Debug)]
pub enum AnswerBody {
    Reply(proto::Reply),
    Query(proto::QueryReply),
}

impl AnswerBody {
    pub fn code(&self) -> proto::Code {
        match self {
            Self::Reply(reply) => reply.code(),
            Self::Query(reply) => reply.code(),
        }
    }
}

/// A published message with its updates.
#[derive(Debug)]
pub struct Updates {
    pub subject: String,
    pub payload: Bytes,
    pub feed: bool,
    /// Whether it is for those alone who follow a filter.
    pub filtered: bool,
    pub updates: Vec<Rc<Update>>,
}

/// An update with the number of its stream.
#[derive(Debug)]
pub struct Update {
    pub stream: usize,
    pub bytes_hash: u64,
    pub state: proto::StateUpdate,
}

impl std::ops::Deref for Update {
    type Target = proto::StateUpdate;

    fn deref(&self) -> &Self::Target {
        &self.state
    }
}

impl Link {
    pub fn new(max_payload: usize) -> Self {
        let believed = Connection { connected: true, generation: 1 };
        Self { alive: true, generation: 1, max_payload, believed, out_last: 0, in_last: 0 }
    }

    /// When what is sent now reaches the broker; never, if the connection is broken.
    pub fn send_at(&mut self, now: u64, delay: u64) -> Option<u64> {
        self.out_last = self.out_last.max(now + delay);
        self.alive.then_some(self.out_last)
    }

    /// When what the broker sends now arrives.
    pub fn receive_at(&mut self, now: u64, delay: u64) -> Option<u64> {
        self.in_last = self.in_last.max(now + delay);
        self.alive.then_some(self.in_last)
    }

    pub fn carries(&self, generation: u64) -> bool {
        self.alive && self.generation == generation
    }

    pub fn is_up(&self) -> bool {
        self.believed.connected
    }
}

/// One way of one message.
pub fn delay(rng: &mut Rng, (least, most): (u64, u64), spikes: u64) -> u64 {
    if spikes > 0 && rng.chance(spikes) { rng.within(most, most + 900) } else { rng.within(least, most) }
}
