//! First answers, kept for repeats of the same request.
//!
//! It knows ids, fingerprints and answers, not what was asked. What a stream's requests take is bounded, so that a flood
//! of ids forgets its own; streams that are not there share what one stream may have.
//!
//! | bound | of | what is forgotten early, and counted |
//! |---|---|---|
//! | [`Limits::max_remembered_of_stream`](super::Limits), 1 MiB | each stream | its oldest |
//! | the same | all streams that are not there, or not any more | their oldest |
//! | [`Limits::max_remembered_requests`](super::Limits), 64 MiB | an engine | the oldest of the stream that takes the most |

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{BuildHasher as _, Hash as _, Hasher as _},
    sync::Arc,
};

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use siphasher::sip::SipHasher13;

use super::{Accepted, Limits, Mismatch, Rare, Rejection, Request, Tick, Timeline};

/// For how long a repeat gets the first answer, ms.
pub const REMEMBER_MS: u64 = 120_000;

/// The most that one engine may keep for repeats, bytes: keys, entries, and what the answers keep alive. An answer holds
/// its stream's timeline, which is small as a rule; a stranger can make one of 272 KB.
const MAX_BYTES: usize = 64 << 20;
/// The most of it that one stream may have, and all together that are not there.
const MAX_BYTES_OF_STREAM: usize = MAX_BYTES / 64;
/// What an answer takes beside itself: its places in the tables.
const ENTRY_BYTES: usize = 96;

pub(super) type Answer = Result<Accepted, Rejection>;

#[derive(Debug)]
struct Remembered {
    given: Tick,
    stream: Arc<str>,
    request: Box<str>,
    fingerprint: u64,
    answer: Answer,
    /// What it is reckoned with. The timeline is reckoned with the oldest of those in a row that share it.
    bytes: usize,
}

/// What one stream's requests were answered.
#[derive(Debug)]
struct Memory {
    /// Oldest first. Invariant: not empty.
    serials: VecDeque<u64>,
    bytes: usize,
    /// Whether the stream is there.
    is_there: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Requests {
    /// By serial, which grows: the oldest first.
    answers: BTreeMap<u64, Remembered>,
    /// Serials, by stream and request.
    index: HashTable<u64>,
    memories: BTreeMap<Arc<str>, Memory>,
    /// Streams that are there, by what they take.
    largest: BTreeSet<(usize, Arc<str>)>,
    /// Serials of those whose streams are not there.
    absent: BTreeSet<u64>,
    absent_bytes: usize,
    next_serial: u64,
    hasher: FixedState,
    /// For fingerprints: nobody can make two commands of the same one.
    seed: u64,
    capacity: usize,
    capacity_of_stream: usize,
    bytes: usize,
    forgotten_early: u64,
}

/// What was found of a request.
#[derive(Debug)]
pub(super) enum Recalled<'a> {
    /// It is a repeat: the first answer.
    Repeat(&'a Answer),
    /// Its id was another command's.
    OtherContent,
    /// It is new.
    New,
}

impl Requests {
    pub(super) fn new(limits: &Limits, seed: u64) -> Self {
        Self {
            answers: BTreeMap::new(),
            index: HashTable::new(),
            memories: BTreeMap::new(),
            largest: BTreeSet::new(),
            absent: BTreeSet::new(),
            absent_bytes: 0,
            next_serial: 0,
            hasher: FixedState::with_seed(seed),
            seed,
            capacity: limits.max_remembered_requests,
            capacity_of_stream: limits.max_remembered_of_stream,
            bytes: 0,
            forgotten_early: 0,
        }
    }

    /// A hash of what a request asks for: with the same id, another one is another request.
    pub(super) fn fingerprint(&self, request: &Request<'_>) -> u64 {
        let Request { stream_id: _, request_id: _, expected, issued_by, command } = request;
        let mut hasher = SipHasher13::new_with_keys(self.seed, 0x7265_7175_6573_7400);
        (expected, issued_by, command).hash(&mut hasher);
        hasher.finish()
    }

    /// What is known of a request, if it came within [`REMEMBER_MS`].
    pub(super) fn recall(&mut self, now: Tick, stream: &str, request: &str, fingerprint: u64) -> Recalled<'_> {
        let Some(serial) = self.find(stream, request) else { return Recalled::New };
        if self.answers[&serial].given.after(REMEMBER_MS) <= now {
            // It and the stream's older ones: at most as many as a stream may have.
            while self.find(stream, request).is_some() {
                self.forget_oldest_of(stream);
            }
            return Recalled::New;
        }
        let known = &self.answers[&serial];
        if known.fingerprint == fingerprint { Recalled::Repeat(&known.answer) } else { Recalled::OtherContent }
    }

    /// Keeps the answer to a new request. `is_there` says whether its stream is, now that it was carried out.
    pub(super) fn remember(
        &mut self,
        now: Tick,
        (stream, request): (&str, &str),
        fingerprint: u64,
        answer: Answer,
        is_there: bool,
    ) {
        if self.capacity == 0 || self.capacity_of_stream == 0 {
            return;
        }
        self.note_presence(stream, is_there);
        let newest = self.memories.get(stream).and_then(|memory| self.answers.get(memory.serials.back()?));
        let shares = newest.is_some_and(|newest| shares_timeline(&newest.answer, &answer));
        let own = ENTRY_BYTES + size_of::<Remembered>() + stream.len() + request.len() + text_bytes(&answer);
        let bytes = own + if shares { 0 } else { timeline_bytes(&answer) };
        self.make_room(stream, bytes, is_there);
        // What it shared with may have been forgotten for its sake.
        let bytes = if self.memories.contains_key(stream) { bytes } else { own + timeline_bytes(&answer) };
        let key = match self.memories.get_key_value(stream) {
            Some((key, _)) => Arc::clone(key),
            None => Arc::from(stream),
        };
        let serial = self.next_serial;
        self.next_serial += 1;
        let (answers, hasher) = (&self.answers, &self.hasher);
        let hash = hash_of(hasher, stream, request);
        self.index.insert_unique(hash, serial, |serial| {
            let Remembered { stream, request, .. } = &answers[serial];
            hash_of(hasher, stream, request)
        });
        let stream = Arc::clone(&key);
        self.answers
            .insert(serial, Remembered { given: now, stream, request: request.into(), fingerprint, answer, bytes });
        let memory =
            self.memories.entry(Arc::clone(&key)).or_insert(Memory { serials: VecDeque::new(), bytes: 0, is_there });
        memory.serials.push_back(serial);
        if !is_there {
            self.absent.insert(serial);
        }
        self.reckon(&key, bytes, 0);
    }

    /// A stream is there from now on, or is not any more. Costs nothing if it has asked for nothing to be remembered.
    pub(super) fn note_presence(&mut self, stream: &str, is_there: bool) {
        let Some((key, memory)) = self.memories.get_key_value(stream).filter(|(_, memory)| memory.is_there != is_there)
        else {
            return;
        };
        let (key, bytes) = (Arc::clone(key), memory.bytes);
        if is_there {
            memory.serials.iter().for_each(|serial| _ = self.absent.remove(serial));
            self.absent_bytes -= bytes;
            self.largest.insert((bytes, Arc::clone(&key)));
        } else {
            self.absent.extend(&memory.serials);
            self.absent_bytes += bytes;
            self.largest.remove(&(bytes, Arc::clone(&key)));
        }
        if let Some(memory) = self.memories.get_mut(&key) {
            memory.is_there = is_there;
        }
        while self.absent.len() > self.capacity_of_stream || self.absent_bytes > MAX_BYTES_OF_STREAM {
            self.forget_oldest_absent();
        }
    }

    /// Forgets at most `most` of those that are old enough.
    pub(super) fn forget_until(&mut self, now: Tick, most: usize) {
        for _ in 0..most {
            match self.answers.first_key_value() {
                Some((_, oldest)) if oldest.given.after(REMEMBER_MS) <= now => {
                    let stream = Arc::clone(&oldest.stream);
                    self.forget_oldest_of(&stream);
                }
                _ => return,
            }
        }
    }

    /// When the oldest is to be forgotten.
    pub(super) fn next_due(&self) -> Option<Tick> {
        self.answers.first_key_value().map(|(_, oldest)| oldest.given.after(REMEMBER_MS))
    }

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.answers.len()
    }

    /// How many were forgotten before their time because there was no room.
    pub(super) const fn forgotten_early(&self) -> u64 {
        self.forgotten_early
    }

    fn find(&self, stream: &str, request: &str) -> Option<u64> {
        let is_it = |serial: &u64| {
            let known = &self.answers[serial];
            *known.request == *request && *known.stream == *stream
        };
        self.index.find(hash_of(&self.hasher, stream, request), is_it).copied()
    }

    /// Forgets whatever is in the way of so many bytes more: the stream's own first.
    fn make_room(&mut self, stream: &str, bytes: usize, is_there: bool) {
        let most = self.capacity_of_stream;
        while is_there
            && self
                .memories
                .get(stream)
                .is_some_and(|memory| memory.serials.len() >= most || memory.bytes + bytes > MAX_BYTES_OF_STREAM)
        {
            self.forgotten_early += 1;
            self.forget_oldest_of(stream);
        }
        while !is_there
            && !self.absent.is_empty()
            && (self.absent.len() >= most || self.absent_bytes + bytes > MAX_BYTES_OF_STREAM)
        {
            self.forget_oldest_absent();
        }
        while !self.answers.is_empty() && (self.answers.len() >= self.capacity || self.bytes + bytes > MAX_BYTES) {
            match self.largest.last().map(|(_, stream)| Arc::clone(stream)) {
                Some(largest) => {
                    self.forgotten_early += 1;
                    self.forget_oldest_of(&largest);
                }
                None => self.forget_oldest_absent(),
            }
        }
    }

    fn forget_oldest_absent(&mut self) {
        let Some(oldest) = self.absent.first().map(|serial| Arc::clone(&self.answers[serial].stream)) else { return };
        self.forgotten_early += 1;
        self.forget_oldest_of(&oldest);
    }

    fn forget_oldest_of(&mut self, stream: &str) {
        let Some((key, memory)) = self.memories.get_key_value(stream) else { return };
        let (key, is_last) = (Arc::clone(key), memory.serials.len() == 1);
        let Some(serial) = memory.serials.front().copied() else { return };
        let Some(forgotten) = self.answers.remove(&serial) else { return };
        let hash = hash_of(&self.hasher, stream, &forgotten.request);
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == serial) {
            entry.remove();
        }
        self.absent.remove(&serial);
        let mut inherited = 0;
        if let Some(memory) = self.memories.get_mut(&key) {
            memory.serials.pop_front();
            if let Some(heir) = memory.serials.front().and_then(|next| self.answers.get_mut(next))
                && shares_timeline(&heir.answer, &forgotten.answer)
            {
                inherited = timeline_bytes(&heir.answer);
                heir.bytes += inherited;
            }
        }
        self.reckon(&key, inherited, forgotten.bytes);
        if is_last {
            self.largest.remove(&(0, Arc::clone(&key)));
            self.memories.remove(&key);
        }
    }

    /// Notes that a stream's answers take so many bytes more, and so many less.
    fn reckon(&mut self, key: &Arc<str>, more: usize, less: usize) {
        let Some(memory) = self.memories.get_mut(key) else { return };
        let before = memory.bytes;
        memory.bytes = before + more - less;
        self.bytes = self.bytes + more - less;
        if memory.is_there {
            self.largest.remove(&(before, Arc::clone(key)));
            self.largest.insert((memory.bytes, Arc::clone(key)));
        } else {
            self.absent_bytes = self.absent_bytes + more - less;
        }
    }

    /// Asserts what must hold.
    pub(super) fn check(&self) {
        assert_eq!(self.answers.len(), self.index.len(), "one answer for each in the index");
        assert!(self.answers.len() <= self.capacity, "{} of {}", self.answers.len(), self.capacity);
        let (mut serials, mut absent, mut bytes, mut absent_bytes, mut there) = (0, 0, 0, 0, 0);
        for (stream, memory) in &self.memories {
            assert!(!memory.serials.is_empty(), "{stream} has asked for nothing");
            assert!(memory.serials.len() <= self.capacity_of_stream, "{stream}: {memory:?}");
            assert!(memory.serials.iter().is_sorted(), "{stream}: {memory:?}");
            serials += memory.serials.len();
            let mut before: Option<&Answer> = None;
            let mut sum = 0;
            for serial in &memory.serials {
                let known = &self.answers[serial];
                assert_eq!(self.find(stream, &known.request), Some(*serial), "{stream}: {} is found", known.request);
                assert_eq!(self.absent.contains(serial), !memory.is_there, "{stream}: whether it is there");
                let shares = before.is_some_and(|before| shares_timeline(before, &known.answer));
                sum += ENTRY_BYTES + size_of::<Remembered>() + stream.len() + known.request.len();
                sum += text_bytes(&known.answer) + if shares { 0 } else { timeline_bytes(&known.answer) };
                before = Some(&known.answer);
            }
            assert_eq!(memory.bytes, sum, "{stream}: bytes");
            bytes += sum;
            if memory.is_there {
                there += 1;
                assert!(self.largest.contains(&(sum, Arc::clone(stream))), "{stream} is among the largest");
            } else {
                absent += memory.serials.len();
                absent_bytes += sum;
            }
        }
        assert_eq!((serials, absent), (self.answers.len(), self.absent.len()), "each answer is one stream's");
        assert_eq!((bytes, absent_bytes), (self.bytes, self.absent_bytes), "bytes that are kept for repeats");
        assert_eq!(there, self.largest.len(), "each stream that is there once");
        assert!(absent <= self.capacity_of_stream, "{absent} answers of streams that are not there");
    }
}

fn hash_of(hasher: &FixedState, stream: &str, request: &str) -> u64 {
    hasher.hash_one((stream, request))
}

fn timeline(answer: &Answer) -> Option<&Arc<Timeline>> {
    match answer {
        Ok(Accepted::State(state)) => Some(&state.timeline),
        _ => None,
    }
}

fn timeline_bytes(answer: &Answer) -> usize {
    timeline(answer).map_or(0, |timeline| timeline.bytes())
}

fn shares_timeline(one: &Answer, other: &Answer) -> bool {
    timeline(one).zip(timeline(other)).is_some_and(|(one, other)| Arc::ptr_eq(one, other))
}

fn scenes_bytes(mismatch: &Mismatch) -> usize {
    match mismatch {
        Mismatch::Scene { expected, actual } => expected.len() + actual.len(),
        Mismatch::Revision { .. } | Mismatch::Epoch { .. } => 0,
    }
}

/// What an answer holds besides a timeline, bytes.
fn text_bytes(answer: &Answer) -> usize {
    match answer {
        Ok(Accepted::State(state)) => {
            let rare = state.rare.as_deref().map_or(0, |rare| size_of::<Rare>() + size_of_val(&*rare.filtered));
            rare + state.status.as_deref().map_or(0, |status| status.timecode.len())
        }
        Ok(_) => 0,
        Err(rejection) => match rejection {
            Rejection::InvalidArgument(why) => why.0.len(),
            Rejection::StreamNotFound(text) | Rejection::AlreadyExists(text) | Rejection::SceneNotFound(text) => {
                text.len()
            }
            Rejection::Conflict { mismatch, .. } => size_of::<Mismatch>() + scenes_bytes(mismatch),
            _ => 0,
        },
    }
}
