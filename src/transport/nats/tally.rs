//! How many messages the client dropped because nobody took them in time, to the last one.
//!
//! The client raises an event for each, but its queue holds 128 events and drops the rest: of a burst's losses a
//! hundredth was told. It also counts whatever arrives. So what is taken is counted here, and once every queue is
//! empty, the difference was dropped.
//!
//! What arrives for a subscription that was ended a moment ago is nobody's loss, and cannot be told from one. So this
//! count stands still from the first end of a subscription on; whoever needs it, such as a service for its requests,
//! keeps its subscriptions for as long as its transport.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use async_nats::{Statistics, Subscriber};
use futures_util::Stream;

use crate::transport::TransportError;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tally {
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
    /// How many were lost by the last time when all queues were empty.
    pub(super) fn lost(&self) -> u64 {
        self.state().lost
    }

    /// A queue that counts here what is taken from it.
    pub(super) fn queue(self: &Arc<Self>, subscriber: Subscriber, statistics: Arc<Statistics>) -> Queue {
        self.state().busy += 1;
        Queue { subscriber, statistics, tally: Arc::clone(self), busy: true }
    }

    fn took(&self, busy: &mut bool) {
        self.taken.fetch_add(1, Ordering::Relaxed);
        if !std::mem::replace(busy, true) {
            self.state().busy += 1;
        }
    }

    /// A queue was found empty after so many messages had arrived.
    ///
    /// That can be wrong by what is on its way into a queue just now. Then that queue is found empty again later, and
    /// an older finding never replaces a newer one; so the last one is right.
    fn found_empty(&self, busy: &mut bool, arrived: u64) {
        let mut state = self.state();
        if std::mem::replace(busy, false) {
            state.busy -= 1;
        }
        if state.busy == 0 && arrived >= state.arrived && !state.over {
            state.arrived = arrived;
            state.lost = arrived.saturating_sub(self.taken.load(Ordering::Relaxed));
        }
    }

    fn ended(&self) {
        self.state().over = true;
    }

    /// Each critical section leaves numbers that can be read, whatever stopped it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the client holds for one subscription. Unsubscribes when it is dropped.
pub(super) struct Queue {
    subscriber: Subscriber,
    statistics: Arc<Statistics>,
    tally: Arc<Tally>,
    /// Whether it is one of [`State::busy`].
    busy: bool,
}

impl Queue {
    /// Unsubscribes. What has arrived stays to be taken.
    pub(super) async fn stop(&mut self) -> Result<(), TransportError> {
        self.subscriber.drain().await.map_err(|_| TransportError::Closed)
    }
}

impl Stream for Queue {
    type Item = async_nats::Message;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { subscriber, statistics, tally, busy } = self.get_mut();
        // Before looking into the queue: what arrives meanwhile makes for another look.
        let arrived = statistics.in_messages.load(Ordering::Relaxed);
        let polled = Pin::new(subscriber).poll_next(context);
        match &polled {
            Poll::Ready(Some(_)) => tally.took(busy),
            Poll::Pending => tally.found_empty(busy, arrived),
            Poll::Ready(None) => {}
        }
        polled
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.tally.ended();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrived_and_was_not_taken_is_lost_once_all_queues_are_empty() {
        let (tally, mut requests, mut answers) = (Tally::default(), true, true);
        tally.state().busy = 2;
        for _ in 0..3 {
            tally.took(&mut requests);
        }
        tally.found_empty(&mut requests, 10);
        assert_eq!(tally.lost(), 0, "the other queue may hold seven");
        tally.took(&mut answers);
        tally.found_empty(&mut answers, 10);
        assert_eq!(tally.lost(), 6);
    }

    #[test]
    fn a_finding_that_was_too_early_is_put_right_by_the_next() {
        let (tally, mut requests, mut answers) = (Tally::default(), true, false);
        tally.state().busy = 1;
        tally.found_empty(&mut requests, 1);
        assert_eq!(tally.lost(), 1, "it had arrived, but was not in the queue yet");
        tally.took(&mut requests);
        tally.found_empty(&mut requests, 1);
        assert_eq!(tally.lost(), 0);
        tally.found_empty(&mut requests, 5);
        tally.found_empty(&mut answers, 4);
        assert_eq!(tally.lost(), 4);
    }

    #[test]
    fn from_the_first_end_of_a_subscription_on_nothing_is_concluded() {
        let (tally, mut requests) = (Tally::default(), true);
        tally.state().busy = 1;
        tally.found_empty(&mut requests, 2);
        tally.ended();
        tally.found_empty(&mut requests, 9);
        assert_eq!(tally.lost(), 2);
    }
}
