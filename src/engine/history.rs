//! What happened to streams: of each the last commands and changes of mode, within a budget of bytes.
//!
//! It knows streams by their slots, and what it is told of them. Nothing of it is in a stream's record, and a stream to
//! which nothing has happened has nothing here.
//!
//! Entries are in two lists each: of their stream, and of all, so that what goes is the oldest of a stream that has as many
//! as it may, or else the oldest of all. Both are in the order of time, so either is the oldest of its stream.
//!
//! | a list | its links | its end |
//! |---|---|---|
//! | of a stream | `older`, `newer` | `newest_of`; a ring, so the oldest is the one that is newer than the newest |
//! | of all | `before`, `behind` | `oldest`, `newest` |

use std::fmt;

use slab::Slab;

use super::{
    Cause, Command, Config, Engine, Mode, Outbox, Playhead, Progress, StateUpdate, Tick, advance, check::Entries,
    outbox::Change,
};

/// The most entries that are kept of a stream.
pub const MAX_HISTORY_OF_STREAM: usize = 256;

/// What was done to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start.
    Start,
    /// Stop.
    Stop,
    /// Pause.
    Pause,
    /// Resume.
    Resume,
    /// ForceScene.
    ForceScene,
    /// SkipScene.
    SkipScene,
    /// UpdateStreamStatus.
    UpdateStreamStatus,
    /// Reconfigure.
    Reconfigure,
    /// Reset.
    Reset,
    /// Remove.
    Remove,
    /// Seek.
    Seek,
    /// PreviousScene.
    PreviousScene,
    /// AdjustScene.
    AdjustScene,
    /// No command: what the audience, the time or the end did.
    Lifecycle,
}

impl Action {
    /// What a command does.
    #[must_use]
    pub const fn of(command: &Command<'_>) -> Self {
        match command {
            Command::Start(_) => Self::Start,
            Command::Stop => Self::Stop,
            Command::Pause => Self::Pause,
            Command::Resume => Self::Resume,
            Command::ForceScene(_) => Self::ForceScene,
            Command::SkipScene => Self::SkipScene,
            Command::UpdateStreamStatus { .. } => Self::UpdateStreamStatus,
            Command::Reconfigure(_) => Self::Reconfigure,
            Command::Reset => Self::Reset,
            Command::Remove => Self::Remove,
            Command::Seek(_) => Self::Seek,
            Command::PreviousScene => Self::PreviousScene,
            Command::AdjustScene(_) => Self::AdjustScene,
        }
    }
}

/// One thing that happened to a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// When, by the wall clock, ms since 1970.
    pub at_ms: u64,
    /// What.
    pub action: Action,
    /// Who did it, as the command said; empty if it did not.
    pub issued_by: Box<str>,
    /// The revision after it.
    pub revision: u64,
    /// The mode after it.
    pub mode: Mode,
    /// Where the stream was after it, ms.
    pub position_ms: u64,
    /// Where it was before, ms.
    pub position_before_ms: u64,
    /// Where it would have been, had it gone on by itself since it last began, ms.
    pub planned_position_ms: u64,
    /// Completed passes after it.
    pub loop_count: u64,
    /// The scene after it, if one was current.
    pub scene: Option<u32>,
}

const NONE: u32 = u32::MAX;
/// In the place of a stream's newest entry: it had some, and none is kept.
const LOST: u32 = NONE - 1;

/// Who did something; one word in an entry, since most say nothing.
#[derive(Clone, Debug)]
struct Issuer(Box<str>);

/// An entry as it is kept.
#[derive(Clone, Debug)]
struct Node {
    at_ms: u64,
    revision: u64,
    position_ms: u64,
    position_before_ms: u64,
    planned_position_ms: u64,
    loop_count: u64,
    /// When the stream would have been at 0, had it always played: what the plans of the entries behind are made of.
    /// [`Tick::NEVER`] while it waits.
    began: Tick,
    issued_by: Option<Box<Issuer>>,
    scene: u32,
    stream: u32,
    older: u32,
    newer: u32,
    before: u32,
    behind: u32,
    /// One more than the number of the one before it in its stream.
    number: u16,
    action: Action,
    mode: Mode,
}

/// What an entry takes beside the name in it: itself, and its place among the streams'.
const ENTRY_BYTES: u64 = (size_of::<Node>() + size_of::<u32>()) as u64;
/// What a name takes beside its bytes: two allocations, and what they add.
const ISSUER_BYTES: u64 = 48;

impl Node {
    fn bytes(&self) -> u64 {
        bytes_of(self.issued_by.as_ref().map_or(0, |issuer| issuer.0.len()))
    }

    fn entry(&self) -> HistoryEntry {
        HistoryEntry {
            at_ms: self.at_ms,
            action: self.action,
            issued_by: self.issued_by.as_ref().map(|issuer| issuer.0.clone()).unwrap_or_default(),
            revision: self.revision,
            mode: self.mode,
            position_ms: self.position_ms,
            position_before_ms: self.position_before_ms,
            planned_position_ms: self.planned_position_ms,
            loop_count: self.loop_count,
            scene: (self.scene != NONE).then_some(self.scene),
        }
    }
}

const fn bytes_of(issuer: usize) -> u64 {
    ENTRY_BYTES + if issuer == 0 { 0 } else { ISSUER_BYTES + issuer as u64 }
}

/// See the module.
pub(super) struct History {
    nodes: Slab<Node>,
    /// By the slot of the stream.
    newest_of: Vec<u32>,
    oldest: u32,
    newest: u32,
    /// Invariant: the sum of [`Node::bytes`].
    bytes: u64,
    forgotten_early: u64,
}

impl History {
    pub(super) const fn new() -> Self {
        Self { nodes: Slab::new(), newest_of: Vec::new(), oldest: NONE, newest: NONE, bytes: 0, forgotten_early: 0 }
    }

    /// What all entries take, bytes.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many entries had to go for want of room, that their streams might have had.
    pub(super) const fn forgotten_early(&self) -> u64 {
        self.forgotten_early
    }

    /// When a stream would have been at 0, had it always played; none while it waits, or if that is not known.
    pub(super) fn began(&self, stream: u32) -> Option<Tick> {
        let newest = self.newest_of(stream)?;
        Some(self.nodes[newest as usize].began).filter(|began| *began != Tick::NEVER)
    }

    /// Notes what happened to a stream, of which the next entry's plan follows if it `began` then. No more than `most` bytes
    /// are kept.
    pub(super) fn note(&mut self, stream: u32, began: Option<Tick>, entry: HistoryEntry, most: u64) {
        let place = stream as usize;
        if self.newest_of.len() <= place {
            self.newest_of.resize(place + 1, NONE);
        }
        if self.count(stream) == MAX_HISTORY_OF_STREAM {
            self.remove_oldest_of(stream);
        }
        let HistoryEntry { issued_by, .. } = entry;
        let before = self.newest_of(stream);
        let number = match before {
            Some(before) => self.nodes[before as usize].number.wrapping_add(1),
            None => self.has_lost_all(stream).into(),
        };
        let key = self.nodes.insert(Node {
            at_ms: entry.at_ms,
            revision: entry.revision,
            position_ms: entry.position_ms,
            position_before_ms: entry.position_before_ms,
            planned_position_ms: entry.planned_position_ms,
            loop_count: entry.loop_count,
            began: began.unwrap_or(Tick::NEVER),
            issued_by: (!issued_by.is_empty()).then(|| Box::new(Issuer(issued_by))),
            scene: entry.scene.unwrap_or(NONE),
            stream,
            older: before.unwrap_or(NONE),
            newer: NONE,
            before: self.newest,
            behind: NONE,
            number,
            action: entry.action,
            mode: entry.mode,
        }) as u32;
        self.join(stream, key, before);
        self.bytes += self.nodes[key as usize].bytes();
        self.shrink_to(most);
    }

    /// Puts a new node behind the others of both lists.
    fn join(&mut self, stream: u32, key: u32, before: Option<u32>) {
        let oldest_of = before.map_or(key, |before| std::mem::replace(&mut self.nodes[before as usize].newer, key));
        self.nodes[key as usize].newer = oldest_of;
        self.newest_of[stream as usize] = key;
        match self.nodes.get_mut(self.newest as usize) {
            Some(newest) => newest.behind = key,
            None => self.oldest = key,
        }
        self.newest = key;
    }

    /// Keeps no more than `most` bytes: what is oldest goes, whosever it is.
    fn shrink_to(&mut self, most: u64) {
        while self.bytes > most && self.oldest != NONE {
            self.remove_oldest_of(self.nodes[self.oldest as usize].stream);
            self.forgotten_early += 1;
        }
    }

    /// A stream is gone.
    pub(super) fn forget(&mut self, stream: u32) {
        while self.newest_of(stream).is_some() {
            self.remove_oldest_of(stream);
        }
        if let Some(newest) = self.newest_of.get_mut(stream as usize) {
            *newest = NONE;
        }
    }

    /// What happened to a stream, the newest first, of revisions below `before`.
    pub(super) fn of(&self, stream: u32, before: Option<u64>) -> impl Iterator<Item = HistoryEntry> {
        let nodes = std::iter::successors(self.newest_of(stream), |key| {
            let older = self.nodes[*key as usize].older;
            (older != NONE).then_some(older)
        });
        nodes
            .map(|key| &self.nodes[key as usize])
            .skip_while(move |node| before.is_some_and(|before| node.revision >= before))
            .map(Node::entry)
    }

    /// The revision of a stream's oldest entry, and whether it never had one before.
    pub(super) fn oldest(&self, stream: u32) -> Option<(u64, bool)> {
        let newest = self.newest_of(stream)?;
        let oldest = &self.nodes[self.nodes[newest as usize].newer as usize];
        Some((oldest.revision, oldest.number == 0))
    }

    /// Whether a stream had entries, and has none any more.
    pub(super) fn has_lost_all(&self, stream: u32) -> bool {
        self.newest_of.get(stream as usize) == Some(&LOST)
    }

    /// How many entries a stream has.
    pub(super) fn count(&self, stream: u32) -> usize {
        let Some(newest) = self.newest_of(stream).map(|newest| &self.nodes[newest as usize]) else { return 0 };
        let oldest = &self.nodes[newest.newer as usize];
        usize::from(newest.number.wrapping_sub(oldest.number)) + 1
    }

    fn newest_of(&self, stream: u32) -> Option<u32> {
        self.newest_of.get(stream as usize).copied().filter(|newest| *newest < LOST)
    }

    fn remove_oldest_of(&mut self, stream: u32) {
        let Some(newest) = self.newest_of(stream) else { return };
        let key = self.nodes[newest as usize].newer;
        let node = self.nodes.remove(key as usize);
        self.bytes -= node.bytes();
        if key == newest {
            self.newest_of[stream as usize] = LOST;
        } else {
            self.nodes[newest as usize].newer = node.newer;
            self.nodes[node.newer as usize].older = NONE;
        }
        match self.nodes.get_mut(node.before as usize) {
            Some(before) => before.behind = node.behind,
            None => self.oldest = node.behind,
        }
        match self.nodes.get_mut(node.behind as usize) {
            Some(behind) => behind.before = node.before,
            None => self.newest = node.before,
        }
    }

    /// Asserts what must hold: both lists have every entry, in the order of time, and those of streams that are there alone.
    pub(super) fn check(&self, is_there: impl Fn(u32) -> bool) {
        let node = |key: u32| &self.nodes[key as usize];
        let (mut first, mut last) = (vec![NONE; self.newest_of.len()], vec![NONE; self.newest_of.len()]);
        let (mut bytes, mut count, mut before, mut key) = (0, 0, NONE, self.oldest);
        while key != NONE {
            let Node { stream, older, revision, number, .. } = *node(key);
            assert_eq!(node(key).before, before, "the list of all");
            let place = stream as usize;
            assert_eq!(older, last[place], "the list of stream {stream} is a part of that of all");
            if older == NONE {
                first[place] = key;
            } else {
                assert_eq!((node(older).newer, node(older).number.wrapping_add(1)), (key, number), "stream {stream}");
                assert!(node(older).revision < revision, "stream {stream}: revision {revision} comes late");
            }
            last[place] = key;
            bytes += node(key).bytes();
            count += 1;
            (before, key) = (key, node(key).behind);
        }
        assert_eq!(
            (before, count, bytes),
            (self.newest, self.nodes.len(), self.bytes),
            "newest, entries and bytes of all"
        );
        for (stream, newest) in self.newest_of.iter().copied().enumerate() {
            assert_eq!(last[stream], if newest == LOST { NONE } else { newest }, "the newest of stream {stream}");
            assert!(newest != LOST || is_there(stream as u32), "stream {stream} is not there, and had a history");
        }
        for (stream, newest) in last.iter().enumerate().filter(|(_, newest)| **newest != NONE) {
            assert_eq!(node(*newest).newer, first[stream], "the list of stream {stream} is a ring");
            assert!(is_there(stream as u32), "stream {stream} is not there, and has a history");
        }
    }
}

impl Engine {
    /// Notes what was changed, and whose command did it if one did: at the end of a call, and wherever in it that differs.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "each heartbeat comes by here, and has none")]
    pub(super) fn note_changes(&mut self, by: Option<(Action, &str)>, outbox: &mut Outbox) {
        if !outbox.changes.is_empty() {
            self.note_each(by, outbox);
        }
    }

    #[inline(never)]
    fn note_each(&mut self, by: Option<(Action, &str)>, outbox: &mut Outbox) {
        let mut changes = std::mem::take(&mut outbox.changes);
        for change in changes.drain(..) {
            self.note_change(change, by, &outbox.updates[change.update]);
        }
        outbox.changes = changes;
    }

    fn note_change(&mut self, change: Change, by: Option<(Action, &str)>, update: &StateUpdate) {
        let (action, issued_by) = by.filter(|_| update.cause == Cause::Command).unwrap_or((Action::Lifecycle, ""));
        let Some(stream) = self.streams.0.get(update.slot as usize).filter(|stream| !stream.is_removed()) else {
            return;
        };
        if update.revision == 1 && update.mode == Mode::Idle && issued_by.is_empty() {
            // Its creation: `Engine::creation` tells of it, so that streams to which nothing happens have nothing here.
            return;
        }
        let Config { timeline, loop_scenes, .. } = &stream.show.config;
        let began = match update.mode {
            Mode::Idle if update.loop_count == 0 && update.position_ms == 0 => None,
            Mode::Running if matches!(action, Action::Start | Action::Reset) => change.began,
            _ => self.history.began(update.slot).or(change.began),
        };
        let planned_position_ms = began.map_or(update.position_ms, |began| {
            match advance(Playhead::START, update.at.since(began), timeline, timeline, *loop_scenes) {
                Progress::SamePass(head) | Progress::LaterPass(head) => timeline.place(head.pass_ms).position_ms,
                Progress::Ended => timeline.total_ms(),
            }
        });
        let entry = HistoryEntry {
            at_ms: self.clock.at(update.at),
            action,
            issued_by: issued_by.into(),
            revision: update.revision,
            mode: update.mode,
            position_ms: update.position_ms,
            position_before_ms: change.position_before_ms,
            planned_position_ms,
            loop_count: update.loop_count,
            scene: update.scene,
        };
        self.history.note(update.slot, began, entry, self.settings.limits.max_history_bytes);
    }
}

/// All that decides what it will say.
impl fmt::Debug for History {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, newest_of, oldest, newest, bytes, forgotten_early } = self;
        formatter
            .debug_struct("History")
            .field("nodes", &Entries(nodes))
            .field("newest_of", newest_of)
            .field("oldest", oldest)
            .field("newest", newest)
            .field("bytes", bytes)
            .field("forgotten_early", forgotten_early)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn entry(revision: u64, issued_by: &str) -> HistoryEntry {
        HistoryEntry {
            at_ms: 1_000 + revision,
            action: Action::Seek,
            issued_by: issued_by.into(),
            revision,
            mode: Mode::Running,
            position_ms: 5,
            position_before_ms: 3,
            planned_position_ms: 4,
            loop_count: 0,
            scene: Some(1),
        }
    }

    fn revisions(history: &History, stream: u32, before: Option<u64>) -> Vec<u64> {
        history.of(stream, before).map(|entry| entry.revision).collect()
    }

    #[test]
    fn an_entry_is_told_as_it_was_noted() {
        let mut history = History::new();
        let entries = [entry(1, ""), HistoryEntry { scene: None, loop_count: 7, ..entry(2, "somebody") }];
        for entry in &entries {
            history.note(3, Some(Tick(9)), entry.clone(), u64::MAX);
        }
        let told: Vec<HistoryEntry> = history.of(3, None).collect();
        assert_eq!(told, [entries[1].clone(), entries[0].clone()], "the newest first");
        assert_eq!((history.began(3), history.began(2), history.began(4)), (Some(Tick(9)), None, None));
        assert_eq!(history.bytes(), 2 * ENTRY_BYTES + ISSUER_BYTES + 8);
        history.check(|stream| stream == 3);
    }

    #[test]
    fn a_stream_has_the_last_256_and_loses_its_own_alone() {
        let mut history = History::new();
        history.note(0, None, entry(1, ""), u64::MAX);
        // Numbers of entries have 16 bits, which this goes round.
        for revision in 1..=70_000 {
            history.note(1, None, entry(revision, ""), u64::MAX);
        }
        assert_eq!(revisions(&history, 0, None), [1]);
        assert_eq!(revisions(&history, 1, None), (70_000 - 255..=70_000).rev().collect::<Vec<_>>());
        assert_eq!(revisions(&history, 1, Some(69_748)), [69_747, 69_746, 69_745]);
        assert_eq!(history.forgotten_early(), 0, "what a stream may not have is not missed");
        history.check(|_| true);
    }

    #[test]
    fn beyond_the_budget_the_oldest_of_all_goes_and_is_counted() {
        let mut history = History::new();
        let most = 3 * ENTRY_BYTES;
        for (stream, revision) in [(0, 1), (1, 1), (0, 2), (1, 2)] {
            history.note(stream, None, entry(revision, ""), most);
        }
        assert_eq!((revisions(&history, 0, None), revisions(&history, 1, None)), (vec![2], vec![2, 1]));
        history.note(2, None, entry(1, &"x".repeat(128)), most);
        assert_eq!(revisions(&history, 0, None), [0; 0]);
        assert_eq!((revisions(&history, 1, None), revisions(&history, 2, None)), (vec![], vec![1]));
        assert_eq!(history.forgotten_early(), 4);
        history.note(2, None, entry(2, ""), ENTRY_BYTES - 1);
        assert_eq!((history.bytes(), history.forgotten_early()), (0, 6), "there is no room for any");
        history.check(|_| true);
    }

    /// What a history has to keep, written down in the order of time.
    #[derive(Default)]
    struct Reference {
        kept: Vec<(u32, HistoryEntry)>,
        /// Streams that have lost entries since they are there.
        shortened: BTreeSet<u32>,
        forgotten_early: u64,
    }

    impl Reference {
        fn note(&mut self, stream: u32, entry: HistoryEntry, most: u64) {
            let of_stream = |(of, _): &(u32, HistoryEntry)| *of == stream;
            if self.kept.iter().filter(|kept| of_stream(kept)).count() == MAX_HISTORY_OF_STREAM {
                self.kept.remove(self.kept.iter().position(of_stream).expect("there are some"));
                self.shortened.insert(stream);
            }
            self.kept.push((stream, entry));
            self.shrink_to(most);
        }

        fn shrink_to(&mut self, most: u64) {
            while self.bytes() > most {
                self.shortened.insert(self.kept.remove(0).0);
                self.forgotten_early += 1;
            }
        }

        fn forget(&mut self, stream: u32) {
            self.kept.retain(|(of, _)| *of != stream);
            self.shortened.remove(&stream);
        }

        fn bytes(&self) -> u64 {
            self.kept.iter().map(|(_, entry)| bytes_of(entry.issued_by.len())).sum()
        }

        /// The newest first.
        fn of(&self, stream: u32) -> Vec<HistoryEntry> {
            self.kept.iter().rev().filter(|(of, _)| *of == stream).map(|(_, entry)| entry.clone()).collect()
        }
    }

    #[test]
    fn a_stream_that_lost_all_its_entries_is_known_to_have_had_some() {
        let mut history = History::new();
        history.note(0, None, entry(1, "somebody"), u64::MAX);
        assert_eq!((history.oldest(0), history.has_lost_all(0)), (Some((1, true)), false));
        history.shrink_to(0);
        assert_eq!((history.oldest(0), history.has_lost_all(0)), (None, true));
        history.note(0, None, entry(2, ""), u64::MAX);
        assert_eq!(history.oldest(0), Some((2, false)), "one came before it");
        history.forget(0);
        assert!(!history.has_lost_all(0), "another stream may be there in its place");
        history.note(0, None, entry(1, ""), u64::MAX);
        assert_eq!(history.oldest(0), Some((1, true)));
        history.check(|stream| stream == 0);
    }

    proptest! {
        #[test]
        fn whatever_is_noted_and_forgotten_it_keeps_what_it_has_to(
            steps in prop::collection::vec((0..4_u32, 0..40_usize, 0..3_000_u64), 1..300),
            // Of a stream with as many as it may have.
            before in prop::bool::weighted(0.1),
        ) {
            let (mut history, mut reference) = (History::new(), Reference::default());
            let mut revision = 0;
            for _ in 0..if before { MAX_HISTORY_OF_STREAM } else { 0 } {
                revision += 1;
                history.note(1, None, entry(revision, ""), u64::MAX);
                reference.note(1, entry(revision, ""), u64::MAX);
            }
            let budget = if before { 60_000 } else { 1_000 };
            for (stream, issuer, most) in steps {
                revision += 1;
                match issuer {
                    0 => {
                        history.forget(stream);
                        reference.forget(stream);
                    }
                    1 => {
                        history.shrink_to(most);
                        reference.shrink_to(most);
                    }
                    _ => {
                        let entry = entry(revision, &"x".repeat(issuer / 2));
                        history.note(stream, None, entry.clone(), budget + most);
                        reference.note(stream, entry, budget + most);
                    }
                }
                history.check(|_| true);
                for stream in 0..4 {
                    let expected = reference.of(stream);
                    let whole = !reference.shortened.contains(&stream);
                    let oldest = expected.last().map(|entry| (entry.revision, whole));
                    prop_assert_eq!((history.count(stream), history.oldest(stream)), (expected.len(), oldest));
                    prop_assert_eq!(history.has_lost_all(stream), expected.is_empty() && !whole);
                    prop_assert_eq!(history.of(stream, None).collect::<Vec<_>>(), expected);
                }
                let sums = (history.bytes(), history.forgotten_early());
                prop_assert_eq!(sums, (reference.bytes(), reference.forgotten_early));
            }
        }
    }
}
