//! What a shard has yet to publish, while publishing cannot keep up or the broker is away.
//!
//! | kind | kept |
//! |---|---|
//! | a change (scene, command, lifecycle) | in order, until the broker is known to have it |
//! | a tick or snapshot | the newest of each stream, until any newer update of that stream |
//! | a reply | in order, until it is handed over |
//!
//! A stream's tick is always newer than all its changes here, because a change takes the tick's place; so it waits for
//! them, and the order within a stream is kept. Other streams' changes it does not wait for: a flood of commands on one
//! stream would silence all others for as long as 65,536 changes take. Half of each hand-over is for changes and
//! replies, so that ticks hold them up no more than that.
//!
//! Which updates are which is the rule of `wire/replace`.
//!
//! When [`Owed::is_full`], the shard stops working rather than dropping a change: playback is arithmetic, so it loses
//! nothing by standing still.

use std::collections::VecDeque;

use bytes::{BufMut as _, Bytes, BytesMut};
use foldhash::fast::FixedState;
use hashbrown::{HashMap, hash_map::Entry};
use metrics::counter;

use super::clock::Now;
use crate::{
    engine::{StateUpdate, StreamId},
    wire::{
        encode, proto,
        subject::{self, Subject},
    },
};

/// How many changes and replies may be owed before the shard stops: half a minute of 2,000 changes a second.
pub const OWED_CAPACITY: usize = 65_536;
/// How many bytes of them.
pub const OWED_BYTES: usize = 64 << 20;
/// How many ticks may wait before the shard rests rather than replace them by newer ones: what a publisher that is at its
/// limit sends in about 2 ms.
const BEHIND: usize = 1_024;
/// Largest message of a feed, bytes: half of what a broker takes by default.
const MAX_FEED_BYTES: usize = 512 << 10;
/// What an entry of a feed takes besides the update, bytes at the most.
const ENTRY_BYTES: usize = 8;

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
    const fn subjects(self) -> bool {
        matches!(self, Self::Subjects | Self::Both)
    }

    const fn feed(self) -> bool {
        matches!(self, Self::Feed | Self::Both)
    }
}

/// An encoded update.
#[derive(Clone, Debug)]
struct Encoded {
    /// The engine's, of the stream.
    slot: u32,
    /// None when only feeds are published.
    subject: Option<Subject>,
    partition: u8,
    payload: Bytes,
}

impl Encoded {
    /// In memory of its own. A change may be kept for the length of an outage, and would keep alive the whole buffer in
    /// which it was encoded, hundreds of superseded ticks and all.
    fn by_itself(self) -> Self {
        let own = |subject: Subject| Subject::from(subject.as_str());
        Self { subject: self.subject.map(own), payload: Bytes::copy_from_slice(&self.payload), ..self }
    }
}

#[derive(Debug)]
enum Firm {
    Change(Encoded),
    Reply(Subject, Bytes),
}

impl Firm {
    fn bytes(&self) -> usize {
        match self {
            Self::Change(encoded) => encoded.payload.len(),
            Self::Reply(_, payload) => payload.len(),
        }
    }
}

/// What of a stream waits.
#[derive(Debug, Default)]
struct Place {
    /// The newest tick; none where a change has taken its place.
    tick: Option<Encoded>,
    /// Whether it is in [`Owed::order`].
    has_turn: bool,
    /// Its changes in [`Owed::firm`], which go before the tick.
    changes: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Owed {
    publish_to: PublishTo,
    max_feed_bytes: usize,
    firm: VecDeque<Firm>,
    /// By the engine's slot. Invariant: those with a turn, changes, or both.
    places: HashMap<u32, Place, FixedState>,
    /// The slots that have a turn for their tick, each once, in the order in which they got it.
    order: VecDeque<u32>,
    /// How many ticks there are.
    waiting: usize,
    /// Changes handed over, which the broker is not known to have.
    unconfirmed: VecDeque<Encoded>,
    /// How many were ever handed over. The first of `unconfirmed` has the number `handed_over - unconfirmed.len()`.
    handed_over: u64,
    /// Invariant: bytes in `firm` and `unconfirmed`.
    bytes: usize,
    /// Where updates are encoded: one allocation serves many.
    buffer: BytesMut,
    published: u64,
    superseded: u64,
}

impl Owed {
    /// Owes nothing yet.
    #[must_use]
    pub fn new(publish_to: PublishTo) -> Self {
        Self {
            publish_to,
            max_feed_bytes: MAX_FEED_BYTES,
            firm: VecDeque::new(),
            places: HashMap::with_hasher(FixedState::default()),
            order: VecDeque::new(),
            waiting: 0,
            unconfirmed: VecDeque::new(),
            handed_over: 0,
            bytes: 0,
            buffer: BytesMut::new(),
            published: 0,
            superseded: 0,
        }
    }

    /// For a broker that takes messages of at most so many bytes.
    #[must_use]
    pub fn with_max_payload(self, bytes: usize) -> Self {
        Self { max_feed_bytes: MAX_FEED_BYTES.min(bytes), ..self }
    }

    /// Where the updates go, as it is told on the wire.
    #[must_use]
    pub fn published_to(&self) -> proto::PublishedTo {
        self.publish_to.into()
    }

    /// Whether so many changes and replies are owed that the shard must not make more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.firm.len() + self.unconfirmed.len() >= OWED_CAPACITY || self.bytes >= OWED_BYTES
    }

    /// Whether half of that is owed: more than what outages and bursts of ordinary size leave.
    #[must_use]
    pub fn is_half_full(&self) -> bool {
        self.firm.len() + self.unconfirmed.len() >= OWED_CAPACITY / 2 || self.bytes >= OWED_BYTES / 2
    }

    /// Whether so many ticks wait that the publisher cannot keep up, or is away.
    #[must_use]
    pub const fn is_behind(&self) -> bool {
        self.waiting > BEHIND
    }

    /// Whether there is something to hand over.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.firm.is_empty() && self.waiting == 0
    }

    /// Whether the broker is known to have everything.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.is_empty() && self.unconfirmed.is_empty()
    }

    /// Owes an update.
    pub fn update(&mut self, update: &StateUpdate, now: Now) {
        let encoded = self.encode(update, now);
        let place = self.places.entry(update.slot).or_default();
        let superseded = place.tick.take().is_some();
        self.waiting -= usize::from(superseded);
        if !update.is_replaceable() {
            place.changes += 1;
            self.bytes += encoded.payload.len();
            self.firm.push_back(Firm::Change(encoded));
        } else {
            place.tick = Some(encoded);
            self.waiting += 1;
            if place.changes == 0 && !std::mem::replace(&mut place.has_turn, true) {
                self.order.push_back(update.slot);
            }
        }
        self.superseded += u64::from(superseded);
    }

    /// Owes an answer.
    pub fn reply(&mut self, to: Subject, payload: Bytes) {
        self.bytes += payload.len();
        self.firm.push_back(Firm::Reply(to, payload));
    }

    /// Hands over about `most` messages, in the order in which they are to be published.
    pub fn hand_over(&mut self, most: usize, mut publish: impl FnMut(Subject, Bytes)) {
        let mut feeds: HashMap<u8, BytesMut, FixedState> = HashMap::default();
        let mut count = 0;
        while count < most {
            let tick = if count < most / 2 { self.next_tick() } else { None };
            let encoded = match tick {
                Some(encoded) => encoded,
                None => match self.firm.pop_front() {
                    Some(Firm::Reply(to, payload)) => {
                        self.bytes -= payload.len();
                        publish(to, payload);
                        count += 1;
                        continue;
                    }
                    Some(Firm::Change(encoded)) => {
                        self.change_goes(encoded.slot);
                        self.unconfirmed.push_back(encoded.clone());
                        self.handed_over += 1;
                        encoded
                    }
                    None => match self.next_tick() {
                        Some(encoded) => encoded,
                        None => break,
                    },
                },
            };
            count += 1;
            self.published += 1;
            if self.publish_to.feed() {
                let feed = feeds.entry(encoded.partition).or_default();
                if !feed.is_empty() && feed.len() + encoded.payload.len() + ENTRY_BYTES > self.max_feed_bytes {
                    publish(subject::feed(encoded.partition), feed.split().freeze());
                }
                encode::write_batch_entry(feed, &encoded.payload);
            }
            if let Some(subject) = encoded.subject {
                publish(subject, encoded.payload);
            }
        }
        let mut feeds: Vec<(u8, BytesMut)> = feeds.into_iter().collect();
        feeds.sort_unstable_by_key(|(partition, _)| *partition);
        for (partition, feed) in feeds {
            publish(subject::feed(partition), feed.freeze());
        }
    }

    /// The next tick of a stream without changes here.
    fn next_tick(&mut self) -> Option<Encoded> {
        loop {
            let slot = self.order.pop_front()?;
            let Entry::Occupied(mut place) = self.places.entry(slot) else { continue };
            if place.get().changes > 0 {
                // It gets another turn behind the last of them.
                place.get_mut().has_turn = false;
            } else if let Some(encoded) = place.remove().tick {
                self.waiting -= 1;
                return Some(encoded);
            }
        }
    }

    /// One of a stream's changes goes; with the last, its tick may.
    fn change_goes(&mut self, slot: u32) {
        let Entry::Occupied(mut entry) = self.places.entry(slot) else { return };
        let place = entry.get_mut();
        place.changes -= 1;
        if place.changes > 0 || place.has_turn {
            return;
        }
        if place.tick.is_some() {
            place.has_turn = true;
            self.order.push_back(slot);
        } else {
            entry.remove();
        }
    }

    /// How many changes were ever handed over, for [`Owed::confirm`].
    #[must_use]
    pub const fn handed_over(&self) -> u64 {
        self.handed_over
    }

    /// Whether changes wait to be confirmed.
    #[must_use]
    pub fn has_unconfirmed(&self) -> bool {
        !self.unconfirmed.is_empty()
    }

    /// How many updates were handed over, for metrics. Reading it sets it back.
    pub fn take_published(&mut self) -> u64 {
        std::mem::take(&mut self.published)
    }

    /// How many ticks were replaced by a newer update before they were handed over, likewise.
    pub fn take_superseded(&mut self) -> u64 {
        std::mem::take(&mut self.superseded)
    }

    /// The broker has the changes that had been handed over when [`Owed::handed_over`] was `until`.
    pub fn confirm(&mut self, until: u64) {
        let first = self.handed_over - self.unconfirmed.len() as u64;
        for confirmed in self.unconfirmed.drain(..until.saturating_sub(first) as usize) {
            self.bytes -= confirmed.payload.len();
        }
    }

    /// The connection was lost: what was not confirmed is owed again, before everything else. A reader that had it
    /// already sees its sequence repeated.
    pub fn owe_again(&mut self) {
        if !self.unconfirmed.is_empty() {
            counter!("orchestrator_republished_total").increment(self.unconfirmed.len() as u64);
        }
        while let Some(encoded) = self.unconfirmed.pop_back() {
            self.handed_over -= 1;
            self.places.entry(encoded.slot).or_default().changes += 1;
            self.firm.push_front(Firm::Change(encoded));
        }
    }

    /// Asserts what must hold.
    ///
    /// # Panics
    /// When it does not.
    pub fn check(&self) {
        let firm: usize = self.firm.iter().map(Firm::bytes).sum();
        let unconfirmed: usize = self.unconfirmed.iter().map(|encoded| encoded.payload.len()).sum();
        assert_eq!(self.bytes, firm + unconfirmed, "bytes owed");
        assert_eq!(self.waiting, self.places.values().filter(|place| place.tick.is_some()).count(), "ticks waiting");
        let turns = self.places.values().filter(|place| place.has_turn).count();
        assert_eq!(turns, self.order.len(), "each slot has one turn");
        assert!(self.order.iter().all(|slot| self.places[slot].has_turn), "a turn is a slot's");
        assert!(self.places.values().all(|place| place.has_turn || place.changes > 0), "a place waits for something");
        let mut changes: HashMap<u32, usize, FixedState> = HashMap::default();
        for firm in &self.firm {
            if let Firm::Change(encoded) = firm {
                *changes.entry(encoded.slot).or_default() += 1;
            }
        }
        let counted = self.places.iter().filter(|(_, place)| place.changes > 0);
        assert_eq!(changes, counted.map(|(slot, place)| (*slot, place.changes)).collect(), "changes of each stream");
    }

    fn encode(&mut self, update: &StateUpdate, now: Now) -> Encoded {
        /// One allocation for some hundred updates.
        const CHUNK: usize = 64 << 10;
        /// Above most updates; a longer one makes the buffer grow.
        const ROOM: usize = 512;
        if self.buffer.capacity() < ROOM {
            self.buffer.reserve(CHUNK);
        }
        encode::write_state(&mut self.buffer, update, now);
        let payload = self.buffer.split().freeze();
        let subject = self.publish_to.subjects().then(|| self.subject(&update.stream_id));
        let encoded = Encoded { slot: update.slot, subject, partition: update.partition, payload };
        if update.is_replaceable() { encoded } else { encoded.by_itself() }
    }

    fn subject(&mut self, stream_id: &str) -> Subject {
        debug_assert!(StreamId::parse(stream_id).is_ok(), "{stream_id:?} comes from the engine");
        self.buffer.put_slice(b"stream.");
        self.buffer.put_slice(stream_id.as_bytes());
        self.buffer.put_slice(b".updates");
        let bytes = self.buffer.split().freeze();
        Subject::from_utf8(bytes).unwrap_or_else(|_| Subject::from_static("stream.invalid.updates"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message as _;

    use super::*;
    use crate::engine::{Cause, Mode, Scene, SceneLimits, Tick, Timeline};

    const NOW: Now = Now { tick: Tick(0), wall_ms: 0 };

    fn update(slot: u32, sequence: u64, cause: Cause) -> StateUpdate {
        let scenes = [Scene { name: "Main", duration_ms: 10_000 }];
        StateUpdate {
            stream_id: format!("s{slot}").into(),
            slot,
            partition: slot as u8,
            at: Tick(0),
            cause,
            mode: Mode::Running,
            timeline: Arc::new(Timeline::new(&scenes, SceneLimits::default()).unwrap()),
            scene: Some(0),
            position_ms: 0,
            loop_count: 0,
            status: None,
            revision: 1,
            sequence,
            epoch: 1,
        }
    }

    /// What is handed over, as (subject, sequence).
    fn sent(owed: &mut Owed, most: usize) -> Vec<(String, u64)> {
        let mut sent = Vec::new();
        owed.hand_over(most, |subject, payload| {
            let sequence = proto::StateUpdate::decode(payload).map_or(0, |update| update.sequence);
            sent.push((subject.to_string(), sequence));
        });
        owed.check();
        sent
    }

    fn on(slot: u32, sequence: u64) -> (String, u64) {
        (format!("stream.s{slot}.updates"), sequence)
    }

    #[test]
    fn of_ticks_and_snapshots_the_newest_is_kept_and_of_changes_each() {
        let mut owed = Owed::new(PublishTo::Subjects);
        for (slot, sequence, cause) in [
            (0, 1, Cause::Tick),
            (1, 1, Cause::Tick),
            (0, 2, Cause::Tick),
            (0, 3, Cause::Scene),
            (0, 4, Cause::Command),
            (0, 5, Cause::Tick),
            (0, 6, Cause::Tick),
            (1, 2, Cause::Snapshot),
            (2, 1, Cause::Snapshot),
            (2, 2, Cause::Lifecycle),
            (2, 3, Cause::Snapshot),
            (2, 4, Cause::Tick),
            (2, 5, Cause::Snapshot),
        ] {
            owed.update(&update(slot, sequence, cause), NOW);
            owed.check();
        }
        assert_eq!(sent(&mut owed, 100), [on(1, 2), on(0, 3), on(0, 4), on(0, 6), on(2, 2), on(2, 5)]);
        assert!(owed.is_empty());
    }

    #[test]
    fn a_change_that_was_not_confirmed_is_owed_again_after_a_loss_and_before_newer_ones() {
        let mut owed = Owed::new(PublishTo::Subjects);
        for sequence in 1..=3 {
            owed.update(&update(0, sequence, Cause::Scene), NOW);
        }
        assert_eq!(sent(&mut owed, 2), [on(0, 1), on(0, 2)]);
        let barrier = owed.handed_over();
        assert_eq!(sent(&mut owed, 1), [on(0, 3)]);
        owed.confirm(barrier);
        owed.update(&update(0, 4, Cause::Scene), NOW);
        owed.owe_again();
        assert_eq!(sent(&mut owed, 100), [on(0, 3), on(0, 4)]);
        owed.confirm(owed.handed_over());
        assert!(owed.is_settled());
    }

    #[test]
    fn a_tick_waits_for_its_own_streams_changes_and_not_for_a_flood_on_another() {
        let mut owed = Owed::new(PublishTo::Subjects);
        for sequence in 1..=6 {
            owed.update(&update(0, sequence, Cause::Command), NOW);
        }
        owed.update(&update(0, 7, Cause::Tick), NOW);
        owed.update(&update(1, 1, Cause::Tick), NOW);
        owed.update(&update(2, 1, Cause::Tick), NOW);
        owed.update(&update(3, 1, Cause::Tick), NOW);
        assert_eq!(sent(&mut owed, 4), [on(1, 1), on(2, 1), on(0, 1), on(0, 2)], "half of it is for changes");
        owed.update(&update(3, 2, Cause::Scene), NOW);
        owed.update(&update(3, 3, Cause::Tick), NOW);
        assert_eq!(sent(&mut owed, 3), [on(0, 3), on(0, 4), on(0, 5)]);
        owed.owe_again();
        let again: Vec<_> = (1..=6).map(|sequence| on(0, sequence)).chain([on(0, 7), on(3, 2), on(3, 3)]).collect();
        assert_eq!(sent(&mut owed, 100), again);
        assert!(owed.is_empty());
    }

    #[test]
    fn it_is_full_before_it_would_drop_a_change() {
        let mut owed = Owed::new(PublishTo::Subjects);
        for sequence in 0..OWED_CAPACITY as u64 {
            assert!(!owed.is_full());
            owed.update(&update(0, sequence, Cause::Scene), NOW);
        }
        assert!(owed.is_full());
        assert_eq!(sent(&mut owed, usize::MAX).len(), OWED_CAPACITY);
        assert!(owed.is_full(), "handed over is not confirmed");
        owed.confirm(owed.handed_over());
        assert!(!owed.is_full());
    }

    #[test]
    fn a_feed_carries_a_partitions_updates_in_one_message_and_both_publishes_them_twice() {
        for (publish_to, messages) in [(PublishTo::Feed, 2), (PublishTo::Both, 5)] {
            let mut owed = Owed::new(publish_to);
            owed.update(&update(7, 1, Cause::Scene), NOW);
            owed.update(&update(7, 2, Cause::Tick), NOW);
            owed.update(&update(8, 1, Cause::Tick), NOW);
            let mut sent = Vec::new();
            owed.hand_over(100, |subject, payload| sent.push((subject.to_string(), payload)));
            assert_eq!(sent.len(), messages);
            let (subject, payload) = &sent[messages - 2];
            assert_eq!(subject, "orchestrator.feed.7");
            let batch = proto::UpdateBatch::decode(payload.clone()).unwrap();
            assert_eq!(batch.update.iter().map(|update| update.sequence).collect::<Vec<_>>(), [1, 2]);
        }
    }
}
