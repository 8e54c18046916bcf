//! Where an update goes beside its stream's own subject: to those who follow filters that it passes.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    sync::Arc,
};

use bytes::BytesMut;
use metrics::counter;

use super::encoded::{Encoded, StreamKey};
use crate::{
    engine::StateUpdate,
    wire::subject::{self, Subject},
};

/// The filters of one update.
#[derive(Clone, Debug)]
pub(super) struct Filtered {
    stream_id: Arc<str>,
    /// Invariant: each once, in the order in which they were followed.
    tokens: Vec<u64>,
}

impl Filtered {
    /// Those that an update passes; nothing where it passes none.
    #[inline]
    pub(super) fn of(update: &StateUpdate) -> Option<Box<Self>> {
        let tokens = update.filtered();
        if tokens.is_empty() { None } else { Some(Self::boxed(&update.stream_id, tokens)) }
    }

    #[cold]
    fn boxed(stream_id: &Arc<str>, tokens: &[u64]) -> Box<Self> {
        Box::new(Self { stream_id: Arc::clone(stream_id), tokens: tokens.to_vec() })
    }

    /// Their tokens.
    pub(super) fn tokens(&self) -> &[u64] {
        &self.tokens
    }

    /// Where they are followed. `buffer` is where the subjects are written: one allocation serves many.
    pub(super) fn subjects(&self, buffer: &mut BytesMut) -> impl Iterator<Item = Subject> {
        self.tokens.iter().map(|token| {
            subject::write_filtered(buffer, &self.stream_id, *token);
            let subject = Subject::from_utf8(buffer.split().freeze());
            // An id that exists is text.
            subject.unwrap_or_else(|_| subject::filtered("invalid", *token))
        })
    }

    /// An update takes the place of another of its stream, which is told to nobody any more: who was to have that has
    /// this one.
    pub(super) fn take_over(this: &mut Option<Box<Self>>, other: Option<Box<Self>>) {
        let Some(other) = other else { return };
        match this {
            None => *this = Some(other),
            Some(this) => {
                for token in other.tokens {
                    if !this.tokens.contains(&token) {
                        this.tokens.push(token);
                    }
                }
            }
        }
    }

    /// Takes out those of which that is so.
    pub(super) fn split_off(this: &mut Option<Box<Self>>, is_so: impl Fn(u64) -> bool) -> Option<Box<Self>> {
        let all = this.as_mut()?;
        let out: Vec<u64> = all.tokens.extract_if(.., |token| is_so(*token)).collect();
        let stream_id = Arc::clone(&all.stream_id);
        if all.tokens.is_empty() {
            *this = None;
        }
        (!out.is_empty()).then(|| Box::new(Self { stream_id, tokens: out }))
    }

    /// The same by their subjects.
    pub(super) fn split_where(this: &mut Option<Box<Self>>, is_so: impl Fn(&str) -> bool) -> Option<Box<Self>> {
        let stream_id = Arc::clone(&this.as_ref()?.stream_id);
        Self::split_off(this, |token| is_so(&subject::filtered(&stream_id, token)))
    }
}

/// Changes for who follows filters, whose subjects the broker refuses: apart from those for all, which they neither hold
/// up nor push out. At most so many are kept; the oldest is given up for a newer one.
#[derive(Debug)]
pub(super) struct HeldFiltered {
    changes: VecDeque<Encoded>,
    /// Invariant: bytes in `changes`.
    bytes: usize,
    /// How many there are of each stream and token.
    counts: BTreeMap<(StreamKey, u64), usize>,
    max: usize,
    max_bytes: usize,
}

impl HeldFiltered {
    /// None yet, and never more than that.
    pub(super) const fn new(max: usize, max_bytes: usize) -> Self {
        Self { changes: VecDeque::new(), bytes: 0, counts: BTreeMap::new(), max, max_bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Takes out of an update those who wait for an earlier change.
    #[inline]
    pub(super) fn take_out(&self, update: &mut Encoded) -> Option<Box<Filtered>> {
        if self.counts.is_empty() { None } else { self.split_off(update) }
    }

    fn split_off(&self, update: &mut Encoded) -> Option<Box<Filtered>> {
        let stream = update.stream;
        Filtered::split_off(&mut update.filtered, |token| self.counts.contains_key(&(stream, token)))
    }

    /// Keeps a change.
    pub(super) fn hold(&mut self, change: Encoded) {
        self.bytes += change.bytes();
        for token in change.tokens() {
            *self.counts.entry((change.stream, *token)).or_default() += 1;
        }
        self.changes.push_back(change);
        while self.changes.len() > self.max || self.bytes > self.max_bytes {
            self.give_up_oldest();
        }
    }

    /// Gives up all of them.
    pub(super) fn give_up(&mut self) {
        while !self.is_empty() {
            self.give_up_oldest();
        }
    }

    /// All of them, which are kept no more.
    pub(super) fn take(&mut self) -> VecDeque<Encoded> {
        let empty = Self::new(self.max, self.max_bytes);
        std::mem::replace(self, empty).changes
    }

    fn give_up_oldest(&mut self) {
        let Some(oldest) = self.changes.pop_front() else { return };
        counter!("orchestrator_dropped_total", "reason" => "denied").increment(1);
        self.bytes -= oldest.bytes();
        for token in oldest.tokens() {
            if let Entry::Occupied(mut count) = self.counts.entry((oldest.stream, *token)) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }

    /// Asserts what must hold.
    pub(super) fn check(&self) {
        assert_eq!(self.bytes, self.changes.iter().map(Encoded::bytes).sum::<usize>(), "bytes held for followers");
        let mut counts: BTreeMap<(StreamKey, u64), usize> = BTreeMap::new();
        for change in &self.changes {
            assert!(!change.is_for_all(), "{change:?} is held for followers alone");
            change.tokens().iter().for_each(|token| *counts.entry((change.stream, *token)).or_default() += 1);
        }
        assert_eq!(self.counts, counts, "held changes of each filter");
    }
}
