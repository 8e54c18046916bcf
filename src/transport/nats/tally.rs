//! How many messages were dropped because nobody took them in time, to the last one.
//!
//! The client raises an event for each, but its queue holds 128 events and drops the rest: of a burst's losses a
//! hundredth was told. It also counts whatever arrives. So what is taken is counted here, and once every queue is
//! empty, the difference was dropped.
//!
//! What arrives for a subscription that was given up a moment ago is nobody's loss, and cannot be told from one. So this
//! count stands still from the first end of a subscription on, and the events are all there is; whoever needs it, such as a
//! service for its requests, keeps its subscriptions for as long as its transport.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// How many were reported.
    reported: AtomicU64,
    taken: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Queues that may hold something.
    busy: usize,
    /// How many messages had arrived when `lost` was found out.
    arrived: u64,
    lost: u64,
    over: bool,
}

impl Tally {
    /// How many are known to be lost.
    pub(super) fn lost(&self) -> u64 {
        self.state().lost.max(self.reported.load(Ordering::Relaxed))
    }

    /// One was.
    pub(super) fn report(&self) {
        self.reported.fetch_add(1, Ordering::Relaxed);
    }

    /// Another queue, which is empty.
    pub(super) fn begin(self: &Arc<Self>) -> Tallied {
        Tallied { tally: Arc::clone(self), busy: false }
    }

    /// Each critical section leaves numbers that can be read, whatever stopped it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one queue says of itself.
#[derive(Debug)]
pub(super) struct Tallied {
    tally: Arc<Tally>,
    /// Whether it is one of [`State::busy`].
    busy: bool,
}

impl Tallied {
    /// A message was taken from it.
    pub(super) fn took(&mut self) {
        self.tally.taken.fetch_add(1, Ordering::Relaxed);
        self.may_hold_some();
    }

    /// It need not be empty any more.
    pub(super) fn may_hold_some(&mut self) {
        if !std::mem::replace(&mut self.busy, true) {
            self.tally.state().busy += 1;
        }
    }

    /// It was found empty after so many messages had arrived, at all queues.
    ///
    /// That can be wrong by what is on its way into a queue just now. Then that queue is found empty again later, and
    /// an older finding never replaces a newer one; so the last one is right.
    pub(super) fn found_empty(&mut self, arrived: u64) {
        let mut state = self.tally.state();
        if std::mem::replace(&mut self.busy, false) {
            state.busy -= 1;
        }
        if state.busy == 0 && arrived >= state.arrived && !state.over {
            state.arrived = arrived;
            state.lost = arrived.saturating_sub(self.tally.taken.load(Ordering::Relaxed));
        }
    }

    /// A message that it held was dropped.
    pub(super) fn dropped(&self) {
        self.tally.report();
    }

    /// What still arrives for it is nobody's loss.
    pub(super) fn gave_up(&self) {
        self.tally.state().over = true;
    }
}

impl Drop for Tallied {
    fn drop(&mut self) {
        if self.busy {
            self.tally.state().busy -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_taken_is_lost_once_all_queues_are_empty() {
        let tally = Arc::new(Tally::default());
        let (mut requests, mut answers) = (tally.begin(), tally.begin());
        [&mut requests, &mut answers].into_iter().for_each(Tallied::may_hold_some);
        for _ in 0..3 {
            requests.took();
        }
        requests.found_empty(10);
        assert_eq!(tally.lost(), 0, "the other queue may hold seven");
        answers.took();
        answers.found_empty(10);
        assert_eq!(tally.lost(), 6);
    }

    #[test]
    fn a_finding_that_was_too_early_is_put_right_by_the_next() {
        let tally = Arc::new(Tally::default());
        let (mut requests, mut answers) = (tally.begin(), tally.begin());
        [&mut requests, &mut answers].into_iter().for_each(Tallied::may_hold_some);
        answers.found_empty(0);
        requests.found_empty(1);
        assert_eq!(tally.lost(), 1, "it had arrived, but was not in the queue yet");
        requests.took();
        requests.found_empty(1);
        assert_eq!(tally.lost(), 0);
        requests.found_empty(5);
        answers.found_empty(4);
        assert_eq!(tally.lost(), 4);
    }

    #[test]
    fn from_the_first_end_of_a_subscription_on_only_reports_count() {
        let tally = Arc::new(Tally::default());
        let mut requests = tally.begin();
        requests.found_empty(2);
        requests.gave_up();
        requests.found_empty(9);
        assert_eq!(tally.lost(), 2);
        (0..3).for_each(|_| tally.report());
        assert_eq!(tally.lost(), 3);
    }
}
