//! What the engine says: state updates for everybody, and events for whoever runs it.

use std::sync::Arc;

use super::{Status, Tick, Timeline};

/// A stream's mode, with the numbers of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The stream is no more: said once, by its last update.
    Unknown,
    /// Waits for its first subscriber.
    Idle,
    /// Plays.
    Running,
    /// Stands still until a Resume.
    Paused,
    /// Stopped by a command.
    Stopped,
    /// Played to its end.
    Finished,
}

impl std::fmt::Display for Mode {
    /// Its name on the wire.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Unknown => "UNKNOWN",
            Self::Idle => "IDLE",
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::Stopped => "STOPPED",
            Self::Finished => "FINISHED",
        })
    }
}

/// Why an update was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The tick interval has gone by.
    Tick,
    /// Another scene, or another pass, has begun.
    Scene,
    /// A command was carried out.
    Command,
    /// The mode changed without a command, or the stream was removed.
    Lifecycle,
    /// A newcomer needs it.
    Snapshot,
}

/// The full state of a stream at one moment. Texts are shared, so a copy costs no allocation as a rule. Thousands are made
/// each tick, so what few have is behind one pointer: 56 bytes less each.
#[derive(Clone, Debug, PartialEq)]
pub struct StateUpdate {
    /// The stream's id.
    pub stream_id: Arc<str>,
    /// The engine's number for the stream: no two streams that exist at a time share it.
    pub slot: u32,
    /// The partition of the stream.
    pub partition: u8,
    /// When it was true: the moment that `position_ms` is for.
    pub at: Tick,
    /// Why it was made.
    pub cause: Cause,
    /// The mode.
    pub mode: Mode,
    /// The present pass's timeline.
    pub timeline: Arc<Timeline>,
    /// The present scene; none before the start and after the end.
    pub scene: Option<u32>,
    /// Position on the timeline, ms.
    pub position_ms: u64,
    /// Completed passes.
    pub loop_count: u64,
    /// As last given by UpdateStreamStatus; none if it never was.
    pub status: Option<Arc<Status>>,
    /// Grows by one with every accepted command and every lifecycle change.
    pub revision: u64,
    /// Grows by one with every update published for the stream.
    pub sequence: u64,
    /// Grows when the stream changes owner or is created anew.
    pub epoch: u64,
    /// The revision at which the configuration, or a length, last changed. A pass that ends puts adjusted lengths back
    /// without one.
    pub config_revision: u64,
    /// What few updates have; none if it has nothing of it.
    pub rare: Option<Box<Rare>>,
}

/// What few updates have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rare {
    /// For how long the present scene has been holding at its end, ms; none if it is not.
    pub overtime_ms: Option<u64>,
    /// While it waits for it, the wall clock at which it starts, ms since 1970.
    pub starts_at_ms: Option<u64>,
    /// The wall clock at the moment of the update, ms since 1970, as it was told then: in an answer that may be given again.
    /// None where the clock that is read for sending tells it.
    pub server_time_ms: Option<u64>,
    /// The filters that it passes, by token; empty where it passes none, and in answers.
    pub filtered: Box<[u64]>,
}

impl Rare {
    /// As it is kept: nothing, if it has nothing.
    #[must_use]
    pub fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

impl StateUpdate {
    /// See [`Rare::overtime_ms`].
    #[must_use]
    pub fn overtime_ms(&self) -> Option<u64> {
        self.rare.as_ref().and_then(|rare| rare.overtime_ms)
    }

    /// See [`Rare::starts_at_ms`].
    #[must_use]
    pub fn starts_at_ms(&self) -> Option<u64> {
        self.rare.as_ref().and_then(|rare| rare.starts_at_ms)
    }

    /// See [`Rare::server_time_ms`].
    #[must_use]
    pub fn server_time_ms(&self) -> Option<u64> {
        self.rare.as_ref().and_then(|rare| rare.server_time_ms)
    }

    /// See [`Rare::filtered`].
    #[must_use]
    pub fn filtered(&self) -> &[u64] {
        self.rare.as_ref().map_or(&[], |rare| &rare.filtered)
    }

    pub(super) fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

#[cfg(test)]
impl StateUpdate {
    /// The state that the stream `show` begins with, in slot 0: a test changes what it is about.
    pub(crate) fn sample() -> Self {
        let scenes = [crate::timeline::Scene::new("Main", 10_000)];
        let timeline = Timeline::new(&scenes, crate::timeline::SceneLimits::default()).expect("valid");
        Self {
            stream_id: "show".into(),
            slot: 0,
            partition: 0,
            at: Tick(0),
            cause: Cause::Command,
            mode: Mode::Idle,
            timeline: Arc::new(timeline),
            scene: None,
            position_ms: 0,
            loop_count: 0,
            status: None,
            revision: 1,
            sequence: 1,
            epoch: 1,
            config_revision: 1,
            rare: None,
        }
    }
}

/// What happened, for logs and counters. Not part of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A stream was created.
    Created {
        /// Its id.
        stream_id: Arc<str>,
    },
    /// A stream began to play, after waiting or anew.
    Started {
        /// Its id.
        stream_id: Arc<str>,
    },
    /// A stream that played or was paused does so no more.
    Stopped {
        /// Its id.
        stream_id: Arc<str>,
        /// What it is now.
        mode: Mode,
    },
    /// A stream was removed.
    Removed {
        /// Its id.
        stream_id: Arc<str>,
        /// True when nobody watched it for its idle timeout, false when a command asked for it.
        idle: bool,
    },
    /// Subscribers that were not heard of for the stale timeout were removed.
    StaleRemoved {
        /// The stream's id.
        stream_id: Arc<str>,
        /// How many.
        removed: u64,
        /// How many subscribers the stream has left.
        left: u64,
    },
}

/// Filled by the engine, drained by its caller after each turn: its size is bounded by the batch and the budget.
#[derive(Debug, Default, PartialEq)]
pub struct Outbox {
    /// Updates in the order in which they were made.
    pub updates: Vec<StateUpdate>,
    /// Events in the order in which they happened.
    pub events: Vec<Event>,
    /// What histories are to be told, which the engine does before it returns.
    pub(super) changes: Vec<Change>,
}

/// What an update does not tell of the change that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Which of the updates.
    pub update: usize,
    /// When the stream was at the beginning of its pass, had it always played; none if it does not play.
    pub began: Option<Tick>,
    /// Where it was before, ms.
    pub position_before_ms: u64,
}

impl Outbox {
    /// Notes of the newest update what a history is to be told besides.
    pub(super) fn note_change(&mut self, began: Option<Tick>, position_before_ms: u64) {
        if let Some(update) = self.updates.len().checked_sub(1) {
            self.changes.push(Change { update, began, position_before_ms });
        }
    }

    /// Says of the first change that was not told yet where the stream was before: a command may change lengths first, and
    /// with them what a position means.
    pub(super) fn came_from(&mut self, position_ms: u64) {
        if let Some(change) = self.changes.first_mut() {
            change.position_before_ms = position_ms;
        }
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.updates.clear();
        self.events.clear();
        self.changes.clear();
    }
}
