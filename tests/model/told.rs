//! What is said: updates, events, answers and refusals, in the words in which the model and the engine are compared.

use orchestrator_service::engine::{Cause, Counts, Mode};

use crate::steps::Status;

/// What somebody is told of a stream: an update, or the state in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) stream: &'static str,
    pub(crate) incarnation: usize,
    pub(crate) cause: Cause,
    pub(crate) mode: Mode,
    pub(crate) scene: Option<u32>,
    pub(crate) position: u64,
    pub(crate) loops: u64,
    pub(crate) status: Option<Status>,
    pub(crate) revision: u64,
    pub(crate) sequence: u64,
    pub(crate) scenes: Vec<(&'static str, u64)>,
    pub(crate) overtime: Option<u64>,
    pub(crate) config_revision: u64,
    pub(crate) starts: Option<u64>,
}

/// What whoever runs the engine is told of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    Created,
    Started,
    Stopped(Mode),
    Removed { idle: bool },
    StaleRemoved { removed: u64, left: u64 },
}

/// All that was said in one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) facts: Vec<Fact>,
    pub(crate) happenings: Vec<(&'static str, Happening)>,
}

impl Told {
    /// Notes an event. Removals of stale subscribers add up: who of several silent ones goes first means nothing.
    pub(crate) fn happened(&mut self, stream: &'static str, happening: Happening) {
        if let Happening::StaleRemoved { removed: more, left: now_left } = happening {
            for (name, before) in &mut self.happenings {
                if let (true, Happening::StaleRemoved { removed, left }) = (*name == stream, before) {
                    (*removed, *left) = (*removed + more, now_left);
                    return;
                }
            }
        }
        self.happenings.push((stream, happening));
    }

    /// Order between streams means nothing, order within one everything.
    pub(crate) fn by_stream(&mut self) {
        self.facts.sort_by_key(|fact| fact.stream);
        let goes_last = |happening: &Happening| matches!(happening, Happening::StaleRemoved { .. });
        self.happenings.sort_by_key(|(stream, happening)| (*stream, goes_last(happening)));
    }
}

/// An answer, with handles replaced by whom they stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    State(Fact),
    Registered {
        ticket: usize,
        new: bool,
        total: u64,
        state: Fact,
    },
    RegisteredBatch {
        tickets: Vec<Result<usize, Refusal>>,
        state: Fact,
    },
    /// From where is `None` inside if it never said.
    Unregistered {
        total: u64,
        from: u8,
    },
    Heard,
    Batch {
        no_such_stream: bool,
        handles: Vec<Holder>,
        clients: Vec<u8>,
    },
    Stats(Counts),
    /// By name.
    Streams(Vec<Fact>),
    Noted,
}

/// Whose a handle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// That of this registration of the run, which may be over.
    Registration(usize),
    /// Nobody's: made up in this way.
    Nobody(u8),
}

/// The kind of a refusal, and what its numbers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Invalid,
    StreamNotFound,
    AlreadyExists,
    InvalidState(Mode),
    SceneNotFound,
    UnknownSubscriber,
    /// With the revision, and the scene if another was expected.
    Conflict {
        expected: Expected,
        revision: u64,
        scene: &'static str,
    },
    RequestIdTaken,
    Exhausted {
        what: &'static str,
        limit: u64,
    },
}

/// What a command expects, as it is in this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Revision(u64),
    /// Of which of all streams of the run; 0 if of none.
    EpochOf(Option<usize>),
    /// One that no stream has.
    NoEpoch,
    Scene(&'static str),
}

/// What a step comes to.
pub(crate) type Outcome = Result<Answer, Refusal>;
