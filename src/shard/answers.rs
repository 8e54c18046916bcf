//! Answers that have yet to leave, apart from updates: bounded in count and bytes, and with a share of what leaves.

use std::collections::VecDeque;

use bytes::Bytes;
use metrics::counter;

use super::ingress::FULL;
use crate::wire::{encode, subject::Subject};

/// What an answer to a single command is shorter than: two ids, a scene's name and a timecode of full length, and the
/// numbers of a state.
const SHORT_BYTES: usize = 4 << 10;
/// What an answer takes besides its payload and its subject, bytes: its entry here, and two allocations.
const ENTRY_BYTES: usize = 96;

#[derive(Debug)]
struct Answer {
    to: Subject,
    payload: Bytes,
    /// How many changes must have gone before it, as the queue counts them. It leaves behind the last of them.
    changes_before: i64,
}

impl Answer {
    fn bytes(&self) -> usize {
        self.payload.len() + self.to.len() + ENTRY_BYTES
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Answers {
    queue: VecDeque<Answer>,
    /// Invariant: the sum of [`Answer::bytes`].
    bytes: usize,
    max: usize,
    max_bytes: usize,
    /// How many bytes may leave before others have had their share. Below 0 behind an answer that was longer than what
    /// was left: it is paid back out of the next shares.
    credit: isize,
}

impl Answers {
    pub(super) const fn new(max: usize, max_bytes: usize) -> Self {
        Self { queue: VecDeque::new(), bytes: 0, max, max_bytes, credit: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether not even short ones should be made any more.
    pub(super) fn is_full(&self) -> bool {
        self.queue.len() >= self.max || self.bytes >= self.max_bytes
    }

    /// Whether half of the room is used: who makes large ones had better not, before a quarter more is and they are
    /// refused here.
    pub(super) const fn refuses_large(&self) -> bool {
        self.bytes >= self.max_bytes / 2
    }

    pub(super) fn push(&mut self, to: &Subject, payload: Bytes, changes_before: i64) {
        let fits = payload.len() <= SHORT_BYTES || self.bytes + payload.len() <= self.max_bytes / 4 * 3;
        let payload = if fits {
            payload
        } else {
            counter!("orchestrator_dropped_total", "reason" => "answers_full").increment(1);
            encode::short_refusal(FULL.code(), FULL.to_string())
        };
        // In memory of its own: the subject was cut out of what was received, all of which it would keep.
        let answer = Answer { to: Subject::from(to.as_str()), payload, changes_before };
        self.bytes += answer.bytes();
        self.queue.push_back(answer);
    }

    /// A hand-over begins, of which answers may have so many bytes.
    pub(super) fn begin_share(&mut self, bytes: usize) {
        let share = isize::try_from(bytes).unwrap_or(isize::MAX);
        self.credit = self.credit.saturating_add(share).min(share);
    }

    /// Whether one may leave that is within the share.
    pub(super) fn has_share(&self, gone: i64) -> bool {
        self.credit > 0 && self.is_due(gone)
    }

    /// The next, out of the share.
    pub(super) fn pop_of_share(&mut self, gone: i64) -> Option<(Subject, Bytes)> {
        let (to, payload) = self.pop(gone)?;
        self.credit = self.credit.saturating_sub_unsigned(payload.len());
        Some((to, payload))
    }

    /// The next, if the changes before it have gone.
    pub(super) fn pop(&mut self, gone: i64) -> Option<(Subject, Bytes)> {
        if !self.is_due(gone) {
            return None;
        }
        let answer = self.queue.pop_front()?;
        self.bytes -= answer.bytes();
        Some((answer.to, answer.payload))
    }

    fn is_due(&self, gone: i64) -> bool {
        self.queue.front().is_some_and(|answer| answer.changes_before <= gone)
    }

    /// Asserts what must hold, when so many changes have gone once all that wait have.
    pub(super) fn check(&self, changes: i64) {
        assert_eq!(self.bytes, self.queue.iter().map(Answer::bytes).sum::<usize>(), "bytes of answers");
        let before = self.queue.iter().map(|answer| answer.changes_before);
        assert!(before.clone().is_sorted() && before.last().is_none_or(|last| last <= changes), "answers' changes");
    }
}
