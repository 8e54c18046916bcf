//! Where a subscription's messages come from: the client's subscription, and what an earlier one had left when it was given
//! up.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    task::{Context, Poll, Waker},
};

use async_nats::{Message, Statistics, Subscriber};
use futures_util::{FutureExt as _, Stream as _, StreamExt as _};

use super::tally::{Tallied, Tally};
use crate::transport::{SUBSCRIPTION_CAPACITY, TransportError};

/// See the module.
pub(super) struct Source {
    inner: Mutex<Inner>,
    statistics: Arc<Statistics>,
}

struct Inner {
    /// What the subscriptions before had when they were given up.
    rest: VecDeque<Message>,
    /// None while the server refuses it, or before it is made.
    subscriber: Option<Subscriber>,
    tallied: Tallied,
    /// No other subscription will come.
    ended: bool,
    reader: Option<Waker>,
}

impl Source {
    /// Without messages yet.
    pub(super) fn new(tally: &Arc<Tally>, statistics: Arc<Statistics>) -> Self {
        let tallied = tally.begin();
        let inner = Inner { rest: VecDeque::new(), subscriber: None, tallied, ended: false, reader: None };
        Self { inner: Mutex::new(inner), statistics }
    }

    /// Whether the client has a subscription for it.
    pub(super) fn is_live(&self) -> bool {
        self.lock().subscriber.is_some()
    }

    /// Whether nobody reads it any more.
    pub(super) fn is_ended(&self) -> bool {
        self.lock().ended
    }

    /// Goes on with this subscription; that before is given up.
    pub(super) fn install(&self, subscriber: Subscriber) {
        let mut inner = self.lock();
        if inner.ended {
            return;
        }
        inner.give_up();
        inner.subscriber = Some(subscriber);
        inner.tallied.may_hold_some();
        inner.wake();
    }

    /// Unsubscribes. What has come stays to be read.
    pub(super) fn give_up(&self) {
        let mut inner = self.lock();
        inner.give_up();
        inner.wake();
    }

    /// Unsubscribes, and no other subscription will come. What has come stays to be read, and behind it is the end.
    pub(super) fn end(&self) {
        let mut inner = self.lock();
        inner.ended = true;
        inner.give_up();
        inner.wake();
    }

    /// As [`Source::end`], and what comes until the client has written to the server is still taken.
    pub(super) async fn drain(&self) -> Result<(), TransportError> {
        let lent = {
            let mut inner = self.lock();
            inner.ended = true;
            inner.wake();
            inner.subscriber.take()
        };
        match lent {
            None => Ok(()),
            Some(subscriber) => {
                let mut lent = Lent { source: self, subscriber: Some(subscriber) };
                let Some(subscriber) = &mut lent.subscriber else { return Ok(()) };
                subscriber.drain().await.map_err(|_| TransportError::Closed)
            }
        }
    }

    /// The next message, or the end.
    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<Option<Message>> {
        let mut inner = self.lock();
        let polled = inner.poll(context, &self.statistics);
        if polled.is_pending() && !inner.reader.as_ref().is_some_and(|reader| reader.will_wake(context.waker())) {
            inner.reader = Some(context.waker().clone());
        }
        polled
    }

    /// Each critical section leaves a source that can be read, whatever stopped it.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn poll(&mut self, context: &mut Context<'_>, statistics: &Statistics) -> Poll<Option<Message>> {
        if let Some(message) = self.rest.pop_front() {
            return Poll::Ready(Some(message));
        }
        let Some(subscriber) = &mut self.subscriber else {
            return if self.ended { Poll::Ready(None) } else { Poll::Pending };
        };
        // Before looking into the queue: what arrives meanwhile makes for another look.
        let arrived = statistics.in_messages.load(Ordering::Relaxed);
        let polled = Pin::new(subscriber).poll_next(context);
        match &polled {
            Poll::Ready(Some(_)) => self.tallied.took(),
            Poll::Pending => self.tallied.found_empty(arrived),
            Poll::Ready(None) => {}
        }
        polled
    }

    fn give_up(&mut self) {
        let Some(mut subscriber) = self.subscriber.take() else { return };
        // Unconstrained, since tokio would say that nothing is there when a task's budget is used up.
        while let Some(Some(message)) = tokio::task::unconstrained(subscriber.next()).now_or_never() {
            if self.rest.len() < SUBSCRIPTION_CAPACITY {
                self.rest.push_back(message);
            } else {
                self.tallied.dropped();
            }
        }
        self.tallied.gave_up();
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// A subscription that is being drained; it is put back in the end, so that it can be read.
struct Lent<'a> {
    source: &'a Source,
    subscriber: Option<Subscriber>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.source.lock().subscriber = self.subscriber.take();
    }
}
