//! What a shard has yet to publish, while publishing cannot keep up or the broker is away.
//!
//! | kind | kept |
//! |---|---|
//! | a change (scene, command, lifecycle) | in order, until the broker is known to have it |
//! | a tick or snapshot | the newest of each stream, until any newer update of that stream |
//! | a change whose subject the broker refuses | so many of them, apart, tried again now and then (`held`) |
//! | … where that is only a filter's subject | likewise, for who follows it alone (`held_filtered`) |
//! | an answer | in order and behind the changes before it, until it is handed over (`answers`) |
//!
//! Which updates are which is the rule of `wire/replace`. A stream's tick is always newer than all its changes here,
//! because a change takes the tick's place; so it waits for them, and the order within a stream is kept.
//!
//! A hand-over is bounded in messages and in bytes, because what was handed over goes before all that comes later. Each
//! kind has a share of it:
//!
//! | in this order | as long as |
//! |---|---|
//! | ticks of streams without changes here | less than half of the messages and of the bytes is used |
//! | changes and answers in turns | there is room; answers until they have had a quarter of the bytes, on average |
//! | ticks again, then answers again | there is room |
//!
//! So neither a flood of commands on one stream nor one of large answers makes the ticks of other streams old, and
//! ticks hold up neither.
//!
//! When [`PublishQueue::is_full`], the shard stops working rather than dropping a change: playback is arithmetic, so it
//! loses nothing by standing still.

use std::collections::VecDeque;

use bytes::{BufMut as _, Bytes, BytesMut};
use foldhash::fast::FixedState;
use hashbrown::{HashMap, hash_map::Entry};
use metrics::counter;

pub use super::publication::{AtOnce, DEFAULT_MAX_PAYLOAD, Kind, Publication, PublishLimits, PublishTo, TooLarge};
use super::{
    answers::Answers,
    batches::Batches,
    clock::Now,
    encoded::{Encoded, StreamKey},
    filtered::{Filtered, HeldFiltered},
};
use crate::{
    engine::{StateUpdate, StreamId},
    wire::{
        encode, proto,
        subject::{self, Subject},
    },
};

/// How often in a row a change that may have been refused goes again at once. Beyond it, it waits as what was refused
/// does, so that a broker that refuses all the time is not told the same all the time.
const MAX_DOUBTS: u8 = 8;

/// What of a stream waits.
#[derive(Debug, Default)]
struct PendingStream {
    /// The newest tick; none where a change has taken its place.
    tick: Option<Encoded>,
    /// Whether it is in [`PublishQueue::order`].
    has_turn: bool,
    /// Its changes in [`PublishQueue::changes`], which go before the tick.
    changes: usize,
    /// Its changes in [`PublishQueue::held`], which go before all others.
    held: usize,
}

/// See the module.
#[derive(Debug)]
pub struct PublishQueue {
    publish_to: PublishTo,
    limits: PublishLimits,
    /// What the connection takes, as far as is known.
    max_payload: usize,
    changes: VecDeque<Encoded>,
    answers: Answers,
    /// Changes whose subjects the broker does not take messages for, to be tried again.
    held: VecDeque<Encoded>,
    /// Invariant: bytes in `held`.
    held_bytes: usize,
    /// The same for those alone who follow filters. They hold up nobody else.
    held_filtered: HeldFiltered,
    /// Invariant: those with a turn or changes, held ones too.
    places: HashMap<StreamKey, PendingStream, FixedState>,
    /// The streams that have a turn for their tick, each once, in the order in which they got it.
    order: VecDeque<StreamKey>,
    /// How many ticks there are.
    waiting: usize,
    /// Changes handed over, which the broker is not known to have.
    unconfirmed: VecDeque<Encoded>,
    /// How many were ever handed over. The first of `unconfirmed` has the number `handed_over - unconfirmed.len()`.
    handed_over: u64,
    /// How many changes have left `changes` and not come back. Below 0 where more came back than left: what is held for
    /// filters alone left with the change that it is of.
    gone: i64,
    /// How many changes were ever owed.
    numbered: u64,
    /// Invariant: bytes in `changes` and `unconfirmed`.
    change_bytes: usize,
    /// Where updates are encoded: one allocation serves many.
    buffer: BytesMut,
    published: u64,
    filtered: u64,
    superseded: u64,
    too_large: Option<TooLarge>,
}

impl PublishQueue {
    /// Owes nothing yet.
    #[must_use]
    pub fn new(publish_to: PublishTo) -> Self {
        Self::with_limits(publish_to, PublishLimits::default())
    }

    /// Owes nothing yet, and may owe so much.
    #[must_use]
    pub fn with_limits(publish_to: PublishTo, limits: PublishLimits) -> Self {
        Self {
            publish_to,
            answers: Answers::new(limits.max_answers, limits.max_answer_bytes),
            held_filtered: HeldFiltered::new(limits.max_held, limits.max_held_bytes),
            limits,
            max_payload: DEFAULT_MAX_PAYLOAD,
            changes: VecDeque::new(),
            held: VecDeque::new(),
            held_bytes: 0,
            places: HashMap::with_hasher(FixedState::default()),
            order: VecDeque::new(),
            waiting: 0,
            unconfirmed: VecDeque::new(),
            handed_over: 0,
            gone: 0,
            numbered: 0,
            change_bytes: 0,
            buffer: BytesMut::new(),
            published: 0,
            filtered: 0,
            superseded: 0,
            too_large: None,
        }
    }

    /// Where the updates go, as it is told on the wire.
    #[must_use]
    pub fn published_to(&self) -> proto::PublishedTo {
        self.publish_to.into()
    }

    /// The largest message that the connection takes, bytes, as far as is known: an answer that is longer is refused when
    /// it leaves. It may change until then.
    #[must_use]
    pub const fn max_payload(&self) -> usize {
        self.max_payload
    }

    /// The connection takes messages of so many bytes from now on.
    pub const fn set_max_payload(&mut self, bytes: usize) {
        self.max_payload = bytes;
    }

    /// How much is to be handed over at once.
    #[must_use]
    pub const fn at_once(&self) -> AtOnce {
        self.limits.at_once
    }

    /// Whether so many changes or answers are owed that the shard must not make more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.changes.len() + self.unconfirmed.len() >= self.limits.max_changes
            || self.change_bytes >= self.limits.max_change_bytes
            || self.answers.is_full()
    }

    /// Whether large answers are refused, because too many of them wait: who would make one need not.
    #[must_use]
    pub const fn refuses_large_answers(&self) -> bool {
        self.answers.refuses_large()
    }

    /// Whether so many ticks wait that the publisher cannot keep up, or is away.
    #[must_use]
    pub const fn is_behind(&self) -> bool {
        self.waiting > self.limits.ticks_behind
    }

    /// Whether changes wait for the broker to take messages for their subjects again.
    #[must_use]
    pub fn has_held(&self) -> bool {
        !self.held.is_empty() || !self.held_filtered.is_empty()
    }

    /// Whether there is nothing to hand over.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.answers.is_empty() && self.waiting == 0
    }

    /// Whether the broker is known to have everything.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.is_empty() && self.unconfirmed.is_empty()
    }

    /// Owes an update.
    pub fn update(&mut self, update: &StateUpdate, now: Now) {
        let mut encoded = self.encode(update, now);
        let stream = encoded.stream;
        let place = self.places.entry(stream).or_default();
        if let Some(before) = &mut place.tick {
            self.waiting -= 1;
            self.superseded += 1;
            Filtered::take_over(&mut encoded.filtered, before.filtered.take());
        }
        if update.is_replaceable() {
            place.tick = Some(encoded);
            self.waiting += 1;
            if place.changes + place.held == 0 && !std::mem::replace(&mut place.has_turn, true) {
                self.order.push_back(stream);
            }
        } else {
            place.tick = None;
            place.changes += 1;
            self.numbered += 1;
            self.change_bytes += encoded.bytes();
            self.changes.push_back(encoded.by_itself());
        }
    }

    /// Owes an answer, behind the changes that were owed before it.
    ///
    /// Where too many wait, a large one is replaced by a short refusal, `UNAVAILABLE`; the last quarter of the room is for
    /// short ones, so that whoever asks for lists takes nobody's answer to a command.
    pub fn reply(&mut self, to: &Subject, payload: Bytes) {
        let changes_before = self.gone + self.changes.len() as i64;
        self.answers.push(to, payload, changes_before);
    }

    /// Hands over what there is, up to `at_once`, in the order in which it is to be published, on a connection that takes
    /// messages of `max_payload` bytes. What does not fit is cut, or refused if it is an answer; an update that does
    /// not fit by itself is given up and counted.
    pub fn hand_over(&mut self, at_once: AtOnce, max_payload: usize, mut publish: impl FnMut(Publication)) {
        self.max_payload = max_payload;
        self.answers.begin_share(at_once.bytes / 4);
        let mut batches = Batches::new(self.limits.max_feed_bytes.min(max_payload));
        let mut used = AtOnce::NOTHING;
        let mut answer_is_next = false;
        while used.messages < at_once.messages && used.bytes < at_once.bytes {
            let ticks_first = used.messages < at_once.messages / 2 && used.bytes < at_once.bytes / 2;
            // As a rule there is nothing but ticks, so these go straight on.
            let mut update = if ticks_first { self.next_tick() } else { None };
            let mut is_of_share = false;
            if update.is_none() {
                let change_waits = self.change_waits();
                is_of_share = self.answers.has_share(self.gone) && (answer_is_next || !change_waits);
                update = match (is_of_share, change_waits) {
                    (true, _) => None,
                    (false, true) => self.next_change(),
                    (false, false) => self.next_tick(),
                };
            }
            if let Some(update) = update {
                answer_is_next = true;
                used.add(self.publish_update(update, &mut batches, &mut publish));
                continue;
            }
            let answer = if is_of_share { self.answers.pop_of_share(self.gone) } else { self.answers.pop(self.gone) };
            let Some((to, payload)) = answer else { break };
            answer_is_next = false;
            used.add(AtOnce { messages: 1, bytes: payload.len() });
            self.publish_answer(to, payload, &mut publish);
        }
        batches.finish(|partition, payload| publish(feed_message(partition, payload)));
    }

    fn publish_answer(&mut self, to: Subject, payload: Bytes, publish: &mut impl FnMut(Publication)) {
        if let Some(payload) = fitting(payload, self.max_payload) {
            publish(Publication { kind: Kind::Answer, subject: to, payload });
        }
    }

    /// Publishes an update wherever it goes. Returns how much that is.
    #[inline]
    fn publish_update(
        &mut self,
        update: Encoded,
        batches: &mut Batches,
        publish: &mut impl FnMut(Publication),
    ) -> AtOnce {
        let (for_all, for_followers) = (usize::from(update.is_for_all()), update.tokens().len());
        self.published += for_all as u64;
        self.filtered += for_followers as u64;
        let Encoded { subject, in_feed, filtered, partition, payload, .. } = update;
        let mut fits = true;
        if in_feed {
            fits &= batches.add(partition, &payload, |payload| publish(feed_message(partition, payload)));
        }
        let bytes = payload.len();
        let on = |subject, payload| Publication { kind: Kind::Update, subject, payload };
        match (subject, filtered) {
            (None, None) => {}
            _ if bytes > self.max_payload => fits = false,
            // As a rule, so the bytes are moved: thousands of streams come by here each tick.
            (Some(subject), None) => publish(on(subject, payload)),
            (subject, Some(filtered)) => {
                let subjects = subject.into_iter().chain(filtered.subjects(&mut self.buffer));
                subjects.for_each(|subject| publish(on(subject, payload.clone())));
            }
        }
        if !fits {
            self.give_up_too_large(bytes, self.max_payload);
        }
        let messages = for_all + for_followers;
        AtOnce { messages, bytes: messages * bytes }
    }

    /// An update can be published nowhere where messages have at most `limit` bytes. It counts as published, since it
    /// never will be.
    pub fn give_up_too_large(&mut self, bytes: usize, limit: usize) {
        counter!("orchestrator_dropped_total", "reason" => "update_too_large").increment(1);
        if self.too_large.is_none_or(|largest| largest.bytes < bytes) {
            self.too_large = Some(TooLarge { bytes, limit });
        }
    }

    /// Whether there is a change to hand over. Those of a stream with held ones go behind these.
    fn change_waits(&mut self) -> bool {
        while let Some(next) = self.changes.front() {
            let is_free = self.held.is_empty() || self.places.get(&next.stream).is_none_or(|place| place.held == 0);
            // What is for followers alone waits for nothing that is for all.
            if is_free || !next.is_for_all() {
                return true;
            }
            let Some(change) = self.changes.pop_front() else { break };
            self.gone += 1;
            self.change_bytes -= change.bytes();
            self.change_goes(change.stream);
            self.hold(change);
        }
        false
    }

    /// The next change, which is handed over with that.
    fn next_change(&mut self) -> Option<Encoded> {
        let mut change = self.changes.pop_front()?;
        self.gone += 1;
        self.change_goes(change.stream);
        let bytes = change.bytes();
        if let Some(behind) = self.held_filtered.take_out(&mut change) {
            self.change_bytes -= bytes - change.bytes();
            self.held_filtered.hold(change.for_followers(Some(behind)));
        }
        self.unconfirmed.push_back(change.clone());
        self.handed_over += 1;
        Some(change)
    }

    /// The next tick of a stream without changes here.
    fn next_tick(&mut self) -> Option<Encoded> {
        loop {
            let stream = self.order.pop_front()?;
            let Entry::Occupied(mut place) = self.places.entry(stream) else { continue };
            if place.get().changes + place.get().held > 0 {
                // It gets another turn behind the last of them.
                place.get_mut().has_turn = false;
            } else if let Some(mut encoded) = place.remove().tick {
                self.waiting -= 1;
                // Who waits for a change is told nothing newer before.
                self.held_filtered.take_out(&mut encoded);
                return Some(encoded);
            }
        }
    }

    /// One of a stream's changes goes; with the last, its tick may.
    fn change_goes(&mut self, stream: StreamKey) {
        let Entry::Occupied(mut entry) = self.places.entry(stream) else { return };
        entry.get_mut().changes -= 1;
        self.tick_may_go(stream);
    }

    /// With the last of its changes gone, a stream's tick gets a turn; what waits for nothing has no place.
    fn tick_may_go(&mut self, stream: StreamKey) {
        let Entry::Occupied(mut entry) = self.places.entry(stream) else { return };
        let place = entry.get_mut();
        if place.changes + place.held > 0 || place.has_turn {
            return;
        }
        if place.tick.is_some() {
            place.has_turn = true;
            self.order.push_back(stream);
        } else {
            entry.remove();
        }
    }

    /// How many changes were ever handed over, for [`PublishQueue::confirm`].
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

    /// How many of them for who follows a filter, each once a filter, likewise.
    pub fn take_filtered(&mut self) -> u64 {
        std::mem::take(&mut self.filtered)
    }

    /// How many ticks were replaced by a newer update before they were handed over, likewise.
    pub fn take_superseded(&mut self) -> u64 {
        std::mem::take(&mut self.superseded)
    }

    /// The largest update that was given up because no message can carry it, for the log, likewise.
    pub fn take_too_large(&mut self) -> Option<TooLarge> {
        self.too_large.take()
    }

    /// The broker has the changes that had been handed over when [`PublishQueue::handed_over`] was `until`.
    pub fn confirm(&mut self, until: u64) {
        self.confirm_but(until, false, |_| false);
    }

    /// As [`PublishQueue::confirm`], but for messages whose subject was `refused`: their changes are held until
    /// [`PublishQueue::release_held`], and go to that subject alone then. If the others are in doubt, since refusals may
    /// have been missed, they go again at once, before everything else, but not for ever. So they hold up
    /// nobody, whoever it was that was refused.
    pub fn confirm_but(&mut self, until: u64, in_doubt: bool, refused: impl Fn(&str) -> bool) {
        let first = self.handed_over - self.unconfirmed.len() as u64;
        let mut again = Vec::new();
        for _ in first..until {
            let Some(change) = self.unconfirmed.pop_front() else { break };
            self.change_bytes -= change.bytes();
            let [held, rest] = change.split(&refused);
            held.into_iter().for_each(|change| self.hold_part(change));
            match rest.filter(|_| in_doubt) {
                Some(change) if change.doubts == MAX_DOUBTS => self.hold_part(Encoded { doubts: 0, ..change }),
                Some(change) => again.push(Encoded { doubts: change.doubts + 1, ..change }),
                None => {}
            }
        }
        self.change_bytes += again.iter().map(Encoded::bytes).sum::<usize>();
        self.put_back(again);
    }

    fn hold_part(&mut self, change: Encoded) {
        if change.is_for_all() { self.hold(change) } else { self.held_filtered.hold(change) }
    }

    fn hold(&mut self, change: Encoded) {
        self.held_bytes += change.bytes();
        self.places.entry(change.stream).or_default().held += 1;
        self.held.push_back(change);
        while self.held.len() > self.limits.max_held || self.held_bytes > self.limits.max_held_bytes {
            self.give_up_oldest_held();
        }
    }

    fn give_up_oldest_held(&mut self) {
        let Some(oldest) = self.held.pop_front() else { return };
        counter!("orchestrator_dropped_total", "reason" => "denied").increment(1);
        self.held_bytes -= oldest.bytes();
        if let Some(place) = self.places.get_mut(&oldest.stream) {
            place.held -= 1;
        }
        self.tick_may_go(oldest.stream);
    }

    /// Gives up what is held: there is no time to wait for permission.
    pub fn give_up_held(&mut self) {
        while !self.held.is_empty() {
            self.give_up_oldest_held();
        }
        self.held_filtered.give_up();
    }

    /// What is held is published again, before everything else: perhaps the broker takes it now.
    pub fn release_held(&mut self) {
        let held = self.take_held();
        self.put_back(held);
    }

    /// What was held, as changes that wait for nothing.
    fn take_held(&mut self) -> Vec<Encoded> {
        let mut held = Vec::from(std::mem::take(&mut self.held));
        self.held_bytes = 0;
        for change in &held {
            self.places.entry(change.stream).or_default().held -= 1;
        }
        held.extend(self.held_filtered.take());
        self.change_bytes += held.iter().map(Encoded::bytes).sum::<usize>();
        held
    }

    /// Puts changes that had left before all others, in the order in which they were made.
    fn put_back(&mut self, mut changes: Vec<Encoded>) {
        changes.sort_unstable_by_key(|change| change.number);
        for change in changes.into_iter().rev() {
            self.gone -= 1;
            self.places.entry(change.stream).or_default().changes += 1;
            self.changes.push_front(change);
        }
    }

    /// The connection was lost: what was not confirmed is published again, before everything else. A reader that had it
    /// already sees its sequence repeated. So is what is held, since another connection may have other permissions.
    pub fn requeue_unconfirmed(&mut self) {
        let mut again = Vec::from(std::mem::take(&mut self.unconfirmed));
        if !again.is_empty() {
            counter!("orchestrator_republished_total").increment(again.len() as u64);
        }
        self.handed_over -= again.len() as u64;
        again.extend(self.take_held());
        self.put_back(again);
    }

    /// Asserts what must hold.
    ///
    /// # Panics
    /// When it does not.
    pub fn check(&self) {
        let change_bytes: usize = self.changes.iter().chain(&self.unconfirmed).map(Encoded::bytes).sum();
        assert_eq!(self.change_bytes, change_bytes, "bytes of changes");
        assert_eq!(self.waiting, self.places.values().filter(|place| place.tick.is_some()).count(), "ticks waiting");
        let turns = self.places.values().filter(|place| place.has_turn).count();
        assert_eq!(turns, self.order.len(), "each stream has one turn");
        assert!(self.order.iter().all(|stream| self.places[stream].has_turn), "a turn is a stream's");
        let waits = |place: &PendingStream| place.has_turn || place.changes + place.held > 0;
        assert!(self.places.values().all(waits), "a place waits for something");
        let held_bytes: usize = self.held.iter().map(Encoded::bytes).sum();
        assert_eq!(self.held_bytes, held_bytes, "bytes held");
        let held: usize = self.places.values().map(|place| place.held).sum();
        assert_eq!(held, self.held.len(), "held changes of all streams");
        self.held_filtered.check();
        let mut changes: HashMap<StreamKey, usize, FixedState> = HashMap::default();
        for change in &self.changes {
            *changes.entry(change.stream).or_default() += 1;
        }
        let counted = self.places.iter().filter(|(_, place)| place.changes > 0);
        assert_eq!(
            changes,
            counted.map(|(stream, place)| (*stream, place.changes)).collect(),
            "changes of each stream"
        );
        self.answers.check(self.gone + self.changes.len() as i64);
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
        let payload_bytes = self.buffer.len();
        let has_subject = self.publish_to.subjects();
        if has_subject {
            self.write_subject(&update.stream_id);
        }
        let mut payload = self.buffer.split().freeze();
        Encoded {
            stream: (update.slot, update.epoch),
            subject: has_subject.then(|| subject_of(payload.split_off(payload_bytes))),
            in_feed: self.publish_to.feed(),
            filtered: Filtered::of(update),
            partition: update.partition,
            payload,
            number: self.numbered,
            doubts: 0,
        }
    }

    fn write_subject(&mut self, stream_id: &str) {
        debug_assert!(StreamId::parse(stream_id).is_ok(), "{stream_id:?} comes from the engine");
        self.buffer.put_slice(b"stream.");
        self.buffer.put_slice(stream_id.as_bytes());
        self.buffer.put_slice(b".updates");
    }
}

fn subject_of(written: Bytes) -> Subject {
    Subject::from_utf8(written).unwrap_or_else(|_| Subject::from_static("stream.invalid.updates"))
}

/// An answer where messages have at most `limit` bytes: itself, or what [`refusal_fitting`] says.
fn fitting(answer: Bytes, limit: usize) -> Option<Bytes> {
    if answer.len() <= limit {
        return Some(answer);
    }
    refusal_fitting(answer.len(), limit)
}

/// What is published instead of an answer of `bytes` bytes where messages have at most `limit`: a short refusal, or
/// nothing where not even that fits.
#[must_use]
pub fn refusal_fitting(bytes: usize, limit: usize) -> Option<Bytes> {
    counter!("orchestrator_dropped_total", "reason" => "answer_too_large").increment(1);
    Some(encode::answer_too_large(bytes, limit)).filter(|refusal| refusal.len() <= limit)
}

fn feed_message(partition: u8, payload: Bytes) -> Publication {
    Publication { kind: Kind::Feed, subject: subject::feed(partition), payload }
}

#[cfg(test)]
#[path = "publish_queue_tests.rs"]
mod tests;
