//! One subscription that all answers come to, told apart by the last token of their subject.
//!
//! async-nats has the same, but keeps an entry for each request that is never answered for as long as it lives. Here
//! the entry goes with the future that waits for it: answered, timed out or dropped.

use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_nats::StatusCode;
use tokio::sync::Notify;

use super::subscriptions::{NatsSubscription, message};
use crate::transport::{MAX_ANSWERS, Message, Subject, TransportError, count_skipped_answer};

/// What kind of answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// A responder's.
    Answered,
    /// The server's: nobody listens there.
    NoResponders,
}

type Answer = (Status, Message);

/// Where the answers to one request wait for whoever asked.
struct Slot {
    /// The subject of the request.
    asked: Subject,
    /// An error is the end: nothing comes behind it.
    answers: Mutex<Result<VecDeque<Answer>, TransportError>>,
    filled: Notify,
}

impl Slot {
    fn new(asked: Subject) -> Self {
        Self { asked, answers: Mutex::new(Ok(VecDeque::new())), filled: Notify::new() }
    }

    fn put(&self, answer: Answer) {
        match &mut *unpoisoned(&self.answers) {
            Ok(answers) if answers.len() < MAX_ANSWERS => answers.push_back(answer),
            _ => count_skipped_answer(),
        }
        self.filled.notify_one();
    }

    fn fail(&self, error: TransportError) {
        *unpoisoned(&self.answers) = Err(error);
        self.filled.notify_one();
    }

    async fn take(&self) -> Result<Answer, TransportError> {
        loop {
            match unpoisoned(&self.answers).as_mut().map(VecDeque::pop_front) {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {}
                Err(error) => return Err(error.clone()),
            }
            // A permit that was given meanwhile is kept for this.
            self.filled.notified().await;
        }
    }
}

/// Each critical section is one statement that cannot stop half-way, so a poisoned lock is as good as another.
fn unpoisoned<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The inbox and who waits for what.
pub(super) struct Inbox {
    /// `_INBOX.<unique>.`, to which a number is added.
    prefix: String,
    waiting: Mutex<Waiting>,
}

struct Waiting {
    next_token: u64,
    /// Only looked up, so that its order does not matter.
    slots: HashMap<u64, Arc<Slot>>,
}

impl Inbox {
    /// An inbox under the unique subject `inbox`.
    pub(super) fn new(inbox: String) -> Self {
        Self { prefix: inbox + ".", waiting: Mutex::new(Waiting { next_token: 1, slots: HashMap::new() }) }
    }

    /// Whether `subject` is one of this inbox.
    pub(super) fn owns(&self, subject: &str) -> bool {
        subject.starts_with(&self.prefix)
    }

    /// What to subscribe to.
    pub(super) fn pattern(&self) -> String {
        format!("{}*", self.prefix)
    }

    /// How many answers are waited for.
    pub(super) fn len(&self) -> usize {
        self.lock().slots.len()
    }

    /// A new subject in this inbox, and the place where the answers to a request about `asked` will come.
    pub(super) fn expect(&self, asked: Subject) -> Expected<'_> {
        let slot = Arc::new(Slot::new(asked));
        let mut waiting = self.lock();
        let token = waiting.next_token;
        waiting.next_token += 1;
        waiting.slots.insert(token, Arc::clone(&slot));
        drop(waiting);
        Expected { _entry: Entry { inbox: self, token }, subject: format!("{}{token}", self.prefix).into(), slot }
    }

    /// Hands each answer to whoever waits for it, until the subscription ends. One that nobody waits for is late: its
    /// request has ended.
    pub(super) async fn hand_out(&self, mut answers: NatsSubscription) {
        while let Some(answer) = poll_fn(|context| answers.poll_raw(context)).await {
            let Some(slot) = self.find(&answer.subject) else { continue };
            let status = match answer.status {
                Some(StatusCode::NO_RESPONDERS) => Status::NoResponders,
                _ => Status::Answered,
            };
            slot.put((status, message(answer)));
        }
        self.clear();
    }

    /// Tells all who wait that no answer will come, because the transport is closed.
    pub(super) fn clear(&self) {
        self.fail_all(&TransportError::Closed);
    }

    /// Tells all who wait that no answer will come.
    pub(super) fn fail_all(&self, error: &TransportError) {
        self.lock().slots.values().for_each(|slot| slot.fail(error.clone()));
    }

    /// Tells those who asked about `asked` that no answer will come.
    pub(super) fn fail_those_about(&self, asked: &str, error: &TransportError) {
        let waiting = self.lock();
        let about = waiting.slots.values().filter(|slot| *slot.asked == *asked);
        about.for_each(|slot| slot.fail(error.clone()));
    }

    /// Tells whoever waits for an answer to `subject` that none will come.
    pub(super) fn fail(&self, subject: &str, error: &TransportError) {
        if let Some(slot) = self.find(subject) {
            slot.fail(error.clone());
        }
    }

    fn find(&self, subject: &str) -> Option<Arc<Slot>> {
        let token = subject.strip_prefix(self.prefix.as_str())?.parse().ok()?;
        self.lock().slots.get(&token).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        unpoisoned(&self.waiting)
    }
}

/// Answers to come. Dropping it stops waiting and leaves nothing behind.
pub(super) struct Expected<'a> {
    _entry: Entry<'a>,
    subject: Subject,
    slot: Arc<Slot>,
}

impl Expected<'_> {
    /// Where the answer has to be sent.
    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The next answer, or why none will come. Cancel safe.
    pub(super) async fn answer(&mut self) -> Result<Answer, TransportError> {
        self.slot.take().await
    }
}

/// Removes its token when dropped.
struct Entry<'a> {
    inbox: &'a Inbox,
    token: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.inbox.lock().slots.remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expected_answer_that_is_dropped_leaves_nothing_behind() {
        let inbox = Inbox::new("_INBOX.x".to_owned());
        let (first, second) = (inbox.expect("a".into()), inbox.expect("b".into()));
        assert_eq!((first.subject().as_str(), second.subject().as_str()), ("_INBOX.x.1", "_INBOX.x.2"));
        assert_eq!(inbox.len(), 2);
        drop(first);
        assert_eq!(inbox.len(), 1);
        for not_there in ["_INBOX.x.1", "_INBOX.x.two", "_INBOX.y.2", "_INBOX.x.", ""] {
            assert!(inbox.find(not_there).is_none(), "{not_there}");
        }
        assert!(inbox.find("_INBOX.x.2").is_some());
        drop(second);
        assert_eq!(inbox.len(), 0);
    }
}
