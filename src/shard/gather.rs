//! Requests that concern several shards, or one of them for several turns.
//!
//! Ingress puts every shard's part into its mailbox at once. So what the same sender says next comes behind all of it,
//! in whichever shard. Each shard does its part when its turn comes, and the last one to finish answers for all; none
//! waits for another.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;

use super::page::{Listed, Page};
use crate::{
    engine::{Accepted, Counts},
    wire::{
        Refusal,
        subject::{self, Subject},
    },
};

/// The answer to a request of which a shard lost its part in a panic.
pub(super) const LOST: Refusal =
    Refusal::Unavailable("the service lost streams while it handled this; whether it was carried out is not known");

/// A request that is done in parts.
#[derive(Debug)]
pub struct Gather {
    /// What it asks for.
    what: What,
    /// Where its sender waits for the answer.
    reply: Option<Subject>,
    parts: Mutex<Parts>,
    /// Given back at its end, however that comes.
    _permit: Option<Permit>,
}

/// Room for a request of a kind that may make only so much at a time.
#[derive(Debug)]
pub struct Permit {
    taken: Arc<AtomicUsize>,
    size: usize,
}

impl Permit {
    /// Takes room for `size`, if no more than `most` is taken then.
    #[must_use]
    pub fn take(taken: &Arc<AtomicUsize>, size: usize, most: usize) -> Option<Self> {
        let more = |before: usize| before.checked_add(size).filter(|sum| *sum <= most);
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self { taken: Arc::clone(taken), size })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// What there is to do in one shard.
#[derive(Debug, Default)]
pub struct Work {
    /// Of a batch: messages for one turn each.
    pub pieces: VecDeque<Bytes>,
    /// How much it is, see [`Mail`](super::mailbox::Mail).
    pub weight: usize,
}

#[derive(Debug)]
struct Parts {
    /// How many are not finished.
    left: usize,
    /// What came of each, in the order of their shards.
    outcomes: Vec<Option<Result<Outcome, Refusal>>>,
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum What {
    /// A batch of subscribers, to be answered with this stream id.
    Batch {
        /// The stream that it names, if it does.
        stream_id: Box<str>,
    },
    /// GetStats of the whole service.
    Stats,
    /// ListStreams.
    List {
        /// The shard that the page begins in, and the first slot there.
        from: (usize, u32),
        /// Most states in the page.
        limit: usize,
    },
}

/// What came of a part.
#[derive(Debug)]
pub enum Outcome {
    /// Of a batch.
    Batch(Accepted),
    /// Of GetStats.
    Stats(Counts),
    /// Of ListStreams.
    List(Listed),
}

/// What came of a request.
#[derive(Debug)]
pub struct Finished {
    /// What was said: the subject of the message.
    pub about: &'static str,
    /// Where its sender waits for the answer.
    pub reply: Option<Subject>,
    /// The stream that it names, if it does.
    pub stream_id: Box<str>,
    /// The answer.
    pub result: Result<Gathered, Refusal>,
}

/// What came of all its parts together.
#[derive(Debug)]
pub enum Gathered {
    /// A batch.
    Batch(Accepted),
    /// GetStats.
    Stats(Counts),
    /// ListStreams.
    Page(Page),
}

/// One shard's part of a request. Dropped unfinished it counts as lost, so that the others do not answer as if it
/// had been done.
#[derive(Debug)]
pub struct Part {
    gather: Arc<Gather>,
    /// Its number among the parts.
    number: usize,
    /// What is left of a batch, in messages for one turn each.
    pieces: VecDeque<Bytes>,
    /// What all of its pieces have, bytes.
    bytes: usize,
    weight: usize,
    /// What came of the pieces before.
    so_far: Option<Accepted>,
    finished: bool,
}

impl Part {
    /// The parts of a request, in the order of their shards. `permit` is given back when it ends.
    #[must_use]
    pub fn of(what: What, reply: Option<Subject>, work: Vec<Work>, permit: Option<Permit>) -> Vec<Box<Self>> {
        let outcomes = work.iter().map(|_| None).collect();
        let parts = Mutex::new(Parts { left: work.len(), outcomes });
        let gather = Arc::new(Gather { what, reply, parts, _permit: permit });
        let part = |(number, Work { pieces, weight }): (usize, Work)| {
            let bytes = pieces.iter().map(Bytes::len).sum();
            let gather = Arc::clone(&gather);
            Box::new(Self { gather, number, pieces, bytes, weight, so_far: None, finished: false })
        };
        work.into_iter().enumerate().map(part).collect()
    }

    /// What the whole request asks for.
    #[must_use]
    pub fn what(&self) -> &What {
        &self.gather.what
    }

    /// Whether somebody waits for the answer.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.gather.reply.is_some()
    }

    /// What it weighs in a mailbox, until its end: what could not be placed grows as pieces go.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// How much work all of it is, likewise.
    #[must_use]
    pub const fn weight(&self) -> usize {
        self.weight
    }

    /// Takes the next piece of a batch.
    pub fn next_piece(&mut self) -> Option<Bytes> {
        self.pieces.pop_front()
    }

    /// Notes what came of a piece. Gives what the whole part came to, if this was its last piece or was refused.
    pub fn note(&mut self, result: Result<Accepted, Refusal>) -> Option<Result<Outcome, Refusal>> {
        let piece = match result {
            Ok(piece) => piece,
            // Refused as a whole, or its stream went away between two pieces, and all that were registered with it.
            Err(refusal) => return Some(Err(refusal)),
        };
        let so_far = match self.so_far.take() {
            Some(before) => before.and(piece),
            None => piece,
        };
        if self.pieces.is_empty() {
            return Some(Ok(Outcome::Batch(so_far)));
        }
        self.so_far = Some(so_far);
        None
    }

    /// Says what came of it. Whoever finishes the last part gets what came of the request, and answers it.
    #[must_use]
    pub fn finish(mut self: Box<Self>, outcome: Result<Outcome, Refusal>) -> Option<Finished> {
        self.finished = true;
        let outcomes = self.gather.put(self.number, outcome)?;
        let (about, stream_id) = match &self.gather.what {
            What::Batch { stream_id } => (subject::SUBSCRIPTION, stream_id.clone()),
            What::Stats | What::List { .. } => (subject::QUERY, Box::default()),
        };
        let result = self.gather.what.gathered(outcomes);
        Some(Finished { about, reply: self.gather.reply.clone(), stream_id, result })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.finished {
            // If it was the last, there is nobody left to answer: this happens only when a service ends at once.
            drop(self.gather.put(self.number, Err(LOST)));
        }
    }
}

impl Gather {
    /// Notes what came of a part; all outcomes, if it was the last one.
    fn put(&self, number: usize, outcome: Result<Outcome, Refusal>) -> Option<Vec<Result<Outcome, Refusal>>> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        debug_assert!(parts.outcomes[number].is_none(), "part {number} finishes once");
        parts.outcomes[number] = Some(outcome);
        parts.left -= 1;
        (parts.left == 0).then(|| std::mem::take(&mut parts.outcomes).into_iter().flatten().collect())
    }
}

impl What {
    /// Puts the parts together. What any of them was refused for, the whole is.
    fn gathered(&self, outcomes: Vec<Result<Outcome, Refusal>>) -> Result<Gathered, Refusal> {
        let outcomes: Vec<Outcome> = outcomes.into_iter().collect::<Result<_, _>>()?;
        Ok(match self {
            Self::Batch { .. } => {
                let accepted = outcomes.into_iter().filter_map(|outcome| match outcome {
                    Outcome::Batch(accepted) => Some(accepted),
                    Outcome::Stats(_) | Outcome::List(_) => None,
                });
                Gathered::Batch(accepted.reduce(Accepted::and).ok_or(LOST)?)
            }
            Self::Stats => {
                let counts = outcomes.into_iter().filter_map(|outcome| match outcome {
                    Outcome::Stats(counts) => Some(counts),
                    Outcome::Batch(_) | Outcome::List(_) => None,
                });
                Gathered::Stats(counts.fold(Counts::default(), |sum, own| sum + own))
            }
            Self::List { from: (first, _), limit } => {
                let listed = outcomes.into_iter().filter_map(|outcome| match outcome {
                    Outcome::List(listed) => Some(listed),
                    Outcome::Batch(_) | Outcome::Stats(_) => None,
                });
                Gathered::Page(Page::of((*first..).zip(listed), *limit))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Handle, Unplaced};

    fn unplaced(handle: u64) -> Accepted {
        Accepted::Batch(Unplaced { handles: vec![Handle(handle)], ..Unplaced::default() })
    }

    #[allow(clippy::vec_box, reason = "as they are made")]
    fn parts(pieces: &[usize]) -> Vec<Box<Part>> {
        let what = What::Batch { stream_id: "s".into() };
        let work = pieces.iter().map(|count| {
            let pieces = vec![Bytes::from_static(b"piece"); *count].into();
            Work { pieces, weight: *count }
        });
        Part::of(what, Some(Subject::from_static("answer")), work.collect(), None)
    }

    #[test]
    fn the_last_part_has_the_answer_in_the_order_of_the_shards() {
        let mut parts = parts(&[1, 1, 1]);
        let outcome = |handle| Ok(Outcome::Batch(unplaced(handle)));
        assert!(parts.pop().unwrap().finish(outcome(3)).is_none());
        assert!(parts.remove(0).finish(outcome(1)).is_none());
        let finished = parts.remove(0).finish(outcome(2)).expect("the last");
        assert_eq!(&*finished.stream_id, "s");
        assert_eq!(finished.reply.as_deref(), Some("answer"));
        let Ok(Gathered::Batch(Accepted::Batch(Unplaced { handles, .. }))) = finished.result else {
            panic!("{finished:?}")
        };
        assert_eq!(handles, [Handle(1), Handle(2), Handle(3)]);
    }

    #[test]
    fn a_part_ends_with_its_last_piece_or_with_one_that_is_refused() {
        let mut part = parts(&[3]).remove(0);
        assert_eq!(part.bytes(), 15);
        assert!(part.next_piece().is_some() && part.note(Ok(unplaced(1))).is_none());
        assert!(part.next_piece().is_some() && part.note(Ok(unplaced(2))).is_none());
        assert!(part.next_piece().is_some());
        assert_eq!(part.bytes(), 15, "it weighs what it did");
        let Some(Ok(Outcome::Batch(Accepted::Batch(all)))) = part.note(Ok(unplaced(3))) else { panic!("it ends") };
        assert_eq!(all.handles, [Handle(1), Handle(2), Handle(3)]);

        let mut part = parts(&[2]).remove(0);
        part.next_piece();
        assert!(matches!(part.note(Err(LOST)), Some(Err(LOST))));
    }

    #[test]
    fn what_any_part_lost_the_whole_has_lost() {
        let mut lost_first = parts(&[1, 1]);
        drop(lost_first.pop());
        let finished = lost_first.remove(0).finish(Ok(Outcome::Batch(unplaced(1)))).expect("it was the last");
        assert_eq!(finished.result.unwrap_err(), LOST);

        let mut done_first = parts(&[1, 1]);
        assert!(done_first.pop().unwrap().finish(Ok(Outcome::Batch(unplaced(1)))).is_none());
        let gather = Arc::downgrade(&done_first[0].gather);
        let finished = done_first.remove(0).finish(Err(LOST)).expect("it was the last");
        assert_eq!(finished.result.unwrap_err(), LOST);
        assert!(gather.upgrade().is_none(), "nothing is left of it");
    }

    #[test]
    fn a_place_is_given_back_when_the_last_part_is_gone() {
        let taken = Arc::default();
        let permit = Permit::take(&taken, 5, 9);
        assert!(permit.is_some() && Permit::take(&taken, 5, 9).is_none());
        let mut parts = Part::of(What::Stats, None, vec![Work::default(), Work::default()], permit);
        drop(parts.pop());
        assert!(Permit::take(&taken, 5, 9).is_none(), "one part is under way");
        drop(parts.pop().unwrap().finish(Err(LOST)));
        assert!(Permit::take(&taken, 5, 9).is_some());
    }
}
