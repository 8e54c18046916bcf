//! What must hold, each said once.
//!
//! The world tells every [`Fact`] to every checker; a checker asserts. A new one is a type with [`Checker`] and a line
//! in [`Checkers::new`].

mod answers;
mod audience;
mod beats;
mod computed;
mod conditions;
mod convergence;
mod filters;
mod history;
mod repeats;
mod viewing;

use std::rc::Rc;

use orchestrator_service::{
    engine::Counts,
    shard::turn::TurnLimits,
    wire::proto::{self, Cause, Mode},
};

use crate::{
    net::{Answer, Sent, Update},
    truth::{Handled, Truth},
};

/// Something that happened.
pub enum Fact<'a> {
    /// A shard handed an update over to be published, for the first time or again. `truth` is as it was before it.
    Said { shard: usize, update: &'a Rc<Update>, first_time: bool },
    /// The same for who follows a filter.
    SaidFiltered { subject: &'a str, update: &'a Rc<Update> },
    /// A gateway shows an update. `covered` says that its connection held since `before`, which it showed last.
    Seen { before: Option<&'a Update>, covered: bool, update: &'a Update },
    /// The same to somebody who follows the filter of that number.
    SeenFiltered { filter: usize, before: Option<&'a Update>, covered: bool, update: &'a Update },
    /// A shard has taken a turn, and has done with messages that weigh this at the least.
    Turned { weights: &'a [usize], most: TurnLimits },
    /// A shard handled a request, or its part of one.
    Handled { shard: usize, sent: &'a Sent, handled: Handled },
    /// An answer was handed over; by a shard, unless it was refused at the door.
    Answered { answer: &'a Answer, handled: Option<Handled>, by: Option<usize> },
    /// A shard that has nothing to do just now counts this.
    Sampled { shard: usize, counts: Counts, all_known: bool },
    /// All is quiet, and the service counts this on a stream, if it is there, that is watched by those.
    QuietCounts { stream: usize, answer: &'a proto::QueryReply, viewers: &'a [(String, u64)] },
    /// All is quiet, and the service tells this of what happened to a stream, which was in this state a moment before.
    QuietHistory { stream: usize, answer: &'a proto::QueryReply, state: Option<&'a proto::StateUpdate> },
    /// All is quiet, and the service lists this of the subscribers of a stream, which is watched by those.
    QuietSubscribers { stream: usize, answer: &'a proto::QueryReply, viewers: &'a [(String, u64)] },
    /// All is quiet, a stream is in this state, and a gateway sees it like that.
    QuietView {
        gateway: usize,
        stream: usize,
        answer: &'a proto::QueryReply,
        view: Option<&'a Update>,
        connected_since: u64,
        reads_feed: bool,
        watched: bool,
    },
    /// The same of somebody who follows a filter and watches.
    QuietFiltered {
        gateway: usize,
        stream: usize,
        filter: usize,
        answer: &'a proto::QueryReply,
        view: Option<&'a Update>,
    },
    /// Everybody has left, and everything is gone.
    Ended,
}

pub trait Checker {
    /// Asserts what can be asserted of a fact.
    fn see(&mut self, now: u64, fact: &Fact<'_>, truth: &Truth);
}

pub struct Checkers(Vec<Box<dyn Checker>>);

impl Checkers {
    pub fn new() -> Self {
        Self(vec![
            Box::new(viewing::RepeatsAreIdentical::default()),
            Box::new(viewing::NothingGoesBack),
            Box::new(viewing::PositionFollowsTheClock),
            Box::new(viewing::ScenesBeginAtTheirBoundary),
            Box::new(viewing::NoChangeIsMissing),
            Box::new(computed::TicksSayNothingNew::default()),
            Box::new(computed::ShowsStartAtTheirInstant),
            Box::new(beats::BeatsAreNotTooOften::default()),
            Box::new(beats::NoChangeIsOverwritten),
            Box::new(beats::NobodyIsStarved::default()),
            Box::new(beats::TurnsAreShort),
            Box::new(audience::NothingPlaysUnwatched),
            Box::new(audience::GraceIsGranted),
            Box::new(audience::CountsAreWithinBounds),
            Box::new(audience::CountsAreExactWhenQuiet),
            Box::new(answers::OneAnswerADelivery),
            Box::new(repeats::RequestIdsAreExecutedOnce::default()),
            Box::new(answers::TheLivingAreKnown),
            Box::new(answers::AnswersAgreeWithUpdates),
            Box::new(conditions::WhatIsExpectedIsSo::default()),
            Box::new(convergence::ViewsConverge),
            Box::new(filters::FiltersSayWhatIsSaid::default()),
            Box::new(filters::WhoFollowsMissesNoChange),
            Box::new(filters::FollowersConverge),
            Box::new(history::HistoryTellsWhatHappened::default()),
            Box::new(history::SubscribersAreListed),
        ])
    }

    pub fn see(&mut self, now: u64, fact: &Fact<'_>, truth: &Truth) {
        for checker in &mut self.0 {
            checker.see(now, fact, truth);
        }
    }
}

/// Whether an update of that cause may never be lost.
pub fn is_change(cause: Cause) -> bool {
    matches!(cause, Cause::Scene | Cause::Command | Cause::Lifecycle)
}

/// Whether it grows the revision.
pub fn grows_revision(cause: Cause) -> bool {
    matches!(cause, Cause::Command | Cause::Lifecycle)
}

/// Where a state that runs is some time later: pass and position; none where its scenes have to be known for that, and are
/// not. `base_ms` is the length of later passes.
fn played_on(state: &proto::StateUpdate, ms: u64, base_ms: u64, truth: &Truth) -> Option<(u64, u64)> {
    if truth.has_holds {
        let view = truth.reader_from(state)?.at(state.server_time_ms + ms);
        return Some((view.loop_count, view.position_ms));
    }
    let reached = state.current_time + ms;
    Some(match reached.checked_sub(state.total_duration) {
        None => (state.loop_count, reached),
        Some(overshoot) if base_ms > 0 => (state.loop_count + 1 + overshoot / base_ms, overshoot % base_ms),
        Some(_) => (state.loop_count, reached),
    })
}

/// Asserts that two states of the same revision are one timeline seen at two times: where it runs it moves as time
/// does, to the millisecond, and elsewhere not at all.
fn assert_same_course(earlier: &proto::StateUpdate, later: &proto::StateUpdate, truth: &Truth) {
    assert_eq!(earlier.mode, later.mode, "position: the mode changed without a revision: {earlier:?}, then {later:?}");
    let expected = match later.mode() {
        Mode::Running => {
            let ms = later.server_time_ms - earlier.server_time_ms;
            let base_ms = if later.loop_count == earlier.loop_count { 0 } else { later.total_duration };
            played_on(earlier, ms, base_ms, truth)
        }
        _ => Some((earlier.loop_count, earlier.current_time)),
    };
    let here = (later.loop_count, later.current_time);
    assert!(expected.is_none_or(|there| there == here), "position: {expected:?}: {earlier:?}, then {later:?}");
}
