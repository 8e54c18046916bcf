//! One subscription that all answers come to, told apart by the last token of their subject.
//!
//! async-nats has the same, but keeps an entry for each request that is never answered for as long as it lives. Here
//! the entry goes with the future that waits for it: answered, timed out or dropped.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_nats::StatusCode;
use futures_util::{Stream, StreamExt as _};
use std::sync::Arc;
use tokio::sync::oneshot;

use crate::transport::{Message, Subject};

/// What kind of answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// A responder's.
    Answered,
    /// The server's: nobody listens there.
    NoResponders,
}

type Answer = (Status, Message);

/// The inbox and who waits for what.
pub(super) struct Inbox {
    /// `_INBOX.<unique>.`, to which a number is added.
    prefix: String,
    waiting: Mutex<Waiting>,
}

struct Waiting {
    next_token: u64,
    /// Only looked up, so that its order does not matter.
    senders: HashMap<u64, oneshot::Sender<Answer>>,
}

impl Inbox {
    /// An inbox under the unique subject `inbox`.
    pub(super) fn new(inbox: String) -> Self {
        Self { prefix: inbox + ".", waiting: Mutex::new(Waiting { next_token: 1, senders: HashMap::new() }) }
    }

    /// What to subscribe to.
    pub(super) fn pattern(&self) -> String {
        format!("{}*", self.prefix)
    }

    /// How many answers are waited for.
    pub(super) fn len(&self) -> usize {
        self.lock().senders.len()
    }

    /// A new subject in this inbox, and the place where its answer will come.
    pub(super) fn expect(&self) -> Expected<'_> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.lock();
        let token = waiting.next_token;
        waiting.next_token += 1;
        waiting.senders.insert(token, sender);
        drop(waiting);
        Expected { entry: Entry { inbox: self, token }, subject: format!("{}{token}", self.prefix).into(), receiver }
    }

    /// Hands each answer to whoever waits for it, until the subscription ends. One that nobody waits for is late: its
    /// request has timed out.
    pub(super) async fn hand_out(self: Arc<Self>, mut answers: impl Stream<Item = async_nats::Message> + Unpin) {
        while let Some(answer) = answers.next().await {
            let Some(sender) = self.take(&answer.subject) else { continue };
            let status = match answer.status {
                Some(StatusCode::NO_RESPONDERS) => Status::NoResponders,
                _ => Status::Answered,
            };
            // It may have stopped waiting just now.
            let _ = sender.send((status, answer.into()));
        }
        self.clear();
    }

    /// Tells all who wait that no answer will come.
    pub(super) fn clear(&self) {
        self.lock().senders.clear();
    }

    fn take(&self, subject: &Subject) -> Option<oneshot::Sender<Answer>> {
        let token = subject.strip_prefix(self.prefix.as_str())?.parse().ok()?;
        self.lock().senders.remove(&token)
    }

    /// Each critical section is one statement that cannot stop half-way, so a poisoned lock is as good as another.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer to come. Dropping it stops waiting and leaves nothing behind.
pub(super) struct Expected<'a> {
    entry: Entry<'a>,
    subject: Subject,
    receiver: oneshot::Receiver<Answer>,
}

impl Expected<'_> {
    /// Where the answer has to be sent.
    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The first answer, or `None` when the transport is closed.
    pub(super) async fn answer(self) -> Option<Answer> {
        let Self { entry: _entry, subject: _, receiver } = self;
        receiver.await.ok()
    }
}

/// Removes its token when dropped.
struct Entry<'a> {
    inbox: &'a Inbox,
    token: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.inbox.lock().senders.remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expected_answer_that_is_dropped_leaves_nothing_behind() {
        let inbox = Inbox::new("_INBOX.x".to_owned());
        let (first, second) = (inbox.expect(), inbox.expect());
        assert_eq!((first.subject().as_str(), second.subject().as_str()), ("_INBOX.x.1", "_INBOX.x.2"));
        assert_eq!(inbox.len(), 2);
        drop(first);
        assert_eq!(inbox.len(), 1);
        assert!(inbox.take(&Subject::from("_INBOX.x.1")).is_none());
        assert!(inbox.take(&Subject::from("_INBOX.x.two")).is_none());
        assert!(inbox.take(&Subject::from("_INBOX.y.2")).is_none());
        assert!(inbox.take(&Subject::from("_INBOX.x.2")).is_some());
        assert_eq!(inbox.len(), 0);
    }
}
