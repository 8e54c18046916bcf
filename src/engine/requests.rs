//! First answers, kept for repeats of the same request.
//!
//! It knows ids and answers, not what was asked.

use std::{collections::VecDeque, hash::BuildHasher as _};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::{Accepted, Rejection, Tick};

/// For how long a repeat gets the first answer, ms.
pub const REMEMBER_MS: u64 = 120_000;

/// The most that the answers of one engine may keep alive, bytes. An answer holds its stream's timeline, which is small
/// as a rule; a stranger can make one of 272 KB.
const MAX_BYTES: usize = 64 << 20;

pub(super) type Answer = Result<Accepted, Rejection>;

#[derive(Debug)]
struct Remembered {
    serial: u64,
    given: Tick,
    /// The stream's id and the request's, which cannot run into one another: a stream id holds no NUL.
    key: Box<str>,
    answer: Answer,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Requests {
    answers: HashTable<Remembered>,
    /// When each was given, oldest first, and its hash. Invariant: one for each of `answers`, serials without a gap.
    order: VecDeque<(Tick, u64)>,
    /// Serial of the first of `order`.
    oldest: u64,
    hasher: FixedState,
    capacity: usize,
    /// Invariant: what the answers keep alive, reckoned each for itself.
    bytes: usize,
    forgotten_early: u64,
}

impl Requests {
    pub(super) fn new(capacity: usize, seed: u64) -> Self {
        Self {
            answers: HashTable::new(),
            order: VecDeque::new(),
            oldest: 0,
            hasher: FixedState::with_seed(seed),
            capacity,
            bytes: 0,
            forgotten_early: 0,
        }
    }

    /// The first answer to this request, if it was given within [`REMEMBER_MS`].
    pub(super) fn recall(&mut self, now: Tick, stream: &str, request: &str) -> Option<&Answer> {
        let (key, hash) = self.key(stream, request);
        if self.answers.find(hash, |known| known.key == key)?.given.after(REMEMBER_MS) <= now {
            self.forget_until(now, usize::MAX);
        }
        self.answers.find(hash, |known| known.key == key).map(|known| &known.answer)
    }

    /// Keeps the answer to a request that [`Requests::recall`] did not know. When it is full, the oldest is forgotten.
    pub(super) fn remember(&mut self, now: Tick, stream: &str, request: &str, answer: Answer) {
        if self.capacity == 0 {
            return;
        }
        let bytes = bytes_of(&answer);
        while self.order.len() == self.capacity || (self.bytes + bytes > MAX_BYTES && !self.order.is_empty()) {
            self.forget_oldest();
            self.forgotten_early += 1;
        }
        self.bytes += bytes;
        let (key, hash) = self.key(stream, request);
        let serial = self.oldest + self.order.len() as u64;
        self.order.push_back((now, hash));
        let hasher = &self.hasher;
        self.answers
            .insert_unique(hash, Remembered { serial, given: now, key, answer }, |known| hasher.hash_one(&known.key));
    }

    /// Forgets at most `most` of those that are old enough.
    pub(super) fn forget_until(&mut self, now: Tick, most: usize) {
        for _ in 0..most {
            match self.order.front() {
                Some((given, _)) if given.after(REMEMBER_MS) <= now => self.forget_oldest(),
                _ => return,
            }
        }
    }

    /// When the oldest is to be forgotten.
    pub(super) fn next_due(&self) -> Option<Tick> {
        self.order.front().map(|(given, _)| given.after(REMEMBER_MS))
    }

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// How many were forgotten before their time because there was no room.
    pub(super) const fn forgotten_early(&self) -> u64 {
        self.forgotten_early
    }

    fn forget_oldest(&mut self) {
        let Some((_, hash)) = self.order.pop_front() else { return };
        let oldest = self.oldest;
        self.oldest += 1;
        if let Ok(entry) = self.answers.find_entry(hash, |known| known.serial == oldest) {
            self.bytes -= bytes_of(&entry.remove().0.answer);
        }
    }

    fn key(&self, stream: &str, request: &str) -> (Box<str>, u64) {
        let key: Box<str> = format!("{stream}\0{request}").into();
        let hash = self.hasher.hash_one(&key);
        (key, hash)
    }

    /// Asserts what must hold.
    pub(super) fn check(&self) {
        assert_eq!(self.answers.len(), self.order.len(), "one answer for each in the order");
        assert!(self.order.len() <= self.capacity, "{} of {}", self.order.len(), self.capacity);
        let bytes: usize = self.answers.iter().map(|known| bytes_of(&known.answer)).sum();
        assert_eq!(self.bytes, bytes, "bytes that answers keep alive");
    }
}

/// What an answer keeps alive, bytes.
fn bytes_of(answer: &Answer) -> usize {
    match answer {
        Ok(Accepted::State(state)) => state.timeline.bytes(),
        _ => 0,
    }
}
