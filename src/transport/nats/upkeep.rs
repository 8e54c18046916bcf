//! The work of a connection that nobody waits for, or several wait for together: subscriptions are made and made again, and
//! what was refused is tried.

use std::{
    future::poll_fn,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use tokio::time::{sleep, sleep_until, timeout_at};

use super::{
    core::Core,
    subscriptions::{Made, Task, Wish},
};
use crate::transport::{Connection, Operation, TransportError};

/// How long a subscription may take to reach the client's queue. It is full only if thousands of subscriptions are made
/// in an outage, and then the caller should hear of it instead of waiting for the outage's end.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for the client's last reports, where some have come.
const SETTLE: Duration = Duration::from_millis(50);

/// How long a round trip may take that may have lost its way.
const SILENCE: Duration = Duration::from_secs(1);

/// How often to forget what nobody publishes to any more, and to try an inbox that is refused.
const ROUND: Duration = Duration::from_secs(1);

/// Works until it is aborted.
pub(super) async fn keep(core: Arc<Core>) {
    let (shared, mut connection) = (&core.shared, core.shared.link.watch());
    let mut generation = 0;
    let mut round = Instant::now() + ROUND;
    loop {
        let now = Instant::now();
        let seen = *connection.borrow_and_update();
        if seen.generation != generation {
            generation = seen.generation;
            shared.gate.open();
            core.confirm_subscriptions(seen).await;
            shared.subscriptions.reconnected(now);
        }
        if now >= round {
            round = now + ROUND;
            shared.gate.forget(now);
            core.try_inbox(seen).await;
        }
        if core.work(seen).await {
            continue;
        }
        let due = shared.subscriptions.next_due().map_or(round, |due| due.min(round));
        tokio::select! {
            biased;
            changed = connection.changed() => if changed.is_err() { return },
            () = shared.subscriptions.work.notified() => {}
            () = sleep_until(due.into()) => {}
        }
    }
}

impl Core {
    /// Lets the server say what it has to say to the subscriptions that the client has made with a new connection: what it
    /// refuses later is about others.
    async fn confirm_subscriptions(&self, connection: Connection) {
        let before = self.shared.subscriptions.unnamed().count;
        // Whatever becomes of it: all that it is for is the time.
        let _ = self.until_told(connection, &[]).await;
        if self.shared.subscriptions.unnamed().count > before {
            sleep(SETTLE).await;
        }
    }

    /// Makes the next subscriptions and finds out what has become of probes. False when there is nothing to do now.
    async fn work(&self, connection: Connection) -> bool {
        let shared = &self.shared;
        let probes = if connection.connected { shared.gate.take_probes() } else { Vec::new() };
        let batch = shared.subscriptions.next_batch(Instant::now());
        if batch.is_empty() && probes.is_empty() {
            return false;
        }
        let unnamed_before = shared.subscriptions.unnamed().count;
        let made = self.make(batch).await;
        let told = self.until_told(connection, &made).await;
        let made = made.into_iter().map(|(task, made)| {
            let made = match (&told, &task.wish) {
                // In an outage the client makes it with the next connection.
                (Ok(()) | Err(TransportError::Disconnected), _) => made,
                // Better than none.
                (Err(_), Wish::Remake) => made,
                (Err(error), Wish::New(_) | Wish::Retry) => made.and(Err(error.clone())),
            };
            (task, made)
        });
        // With a lost connection, nobody knows what they were about.
        let unnamed = if told.is_ok() { shared.subscriptions.unnamed().count - unnamed_before } else { 0 };
        let recovered = shared.subscriptions.conclude(made.collect(), unnamed, Instant::now());
        if recovered > 0 {
            shared.log_accepted("subscriptions", Instant::now());
        }
        if told.is_ok() && shared.gate.judge(&probes) {
            shared.log_accepted("messages", Instant::now());
        }
        true
    }

    /// Hands subscriptions to the client. In an outage they wait there.
    async fn make(&self, batch: Vec<Task>) -> Vec<(Task, Made)> {
        let deadline = tokio::time::Instant::now() + SUBSCRIBE_TIMEOUT;
        let mut made = Vec::with_capacity(batch.len());
        for task in batch {
            let subscribing = self.subscribe(&task.entry.pattern, task.entry.queue.as_deref());
            let subscribed = timeout_at(deadline, subscribing).await;
            let subscriber = subscribed.unwrap_or(Err(TransportError::Timeout(SUBSCRIBE_TIMEOUT)));
            // The answer that tells what became of it comes to the inbox itself.
            let subscriber = subscriber.map(|subscriber| match task.entry.is_inbox {
                true => {
                    task.entry.source.install(subscriber);
                    None
                }
                false => Some(subscriber),
            });
            made.push((task, subscriber));
        }
        made
    }

    /// Waits until the server has said what it has to say to what was sent.
    async fn until_told(&self, connection: Connection, made: &[(Task, Made)]) -> Result<(), TransportError> {
        if !connection.connected {
            return Err(TransportError::Disconnected);
        }
        let refused = self.shared.denied.borrow().inbox.clone();
        let tried = made.iter().map(|(task, _)| &task.entry).find(|entry| entry.is_inbox);
        if let Some(denial) = refused.filter(|denial| denial.operation == Operation::Publish || tried.is_none()) {
            return Err(TransportError::Denied(denial));
        }
        // An inbox that was refused before anybody waited for an answer has told nobody. So this is looked at behind the
        // round trip, which waits by then: of whatever is refused later it is told.
        let refused_before = poll_fn(|_| match tried.and_then(|inbox| inbox.refusal()) {
            Some(denial) => Poll::Ready(Err(TransportError::Denied(denial))),
            None => Poll::Pending,
        });
        let told = tokio::select! {
            biased;
            told = self.round_trip(connection.generation) => told,
            told = refused_before => told,
            () = self.refused_in_silence() => Err(TransportError::Timeout(SILENCE)),
        };
        if matches!(told, Err(TransportError::Timeout(_))) && tried.is_none() {
            self.shared.subscriptions.remake_inbox();
        }
        told
    }

    /// Resolves when nothing else has come for a while behind refusals that do not say of what: one of them may be about
    /// the inbox that the answer is to come to.
    async fn refused_in_silence(&self) {
        let before = self.shared.subscriptions.unnamed().count;
        loop {
            sleep(SILENCE).await;
            if self.shared.subscriptions.unnamed().count > before {
                return;
            }
        }
    }

    /// Sends a message to an inbox that none may be sent to, to find out whether that is still so.
    async fn try_inbox(&self, connection: Connection) {
        let denied = |operation| self.shared.denied.borrow().inbox.as_ref().is_some_and(|it| it.operation == operation);
        if connection.connected && denied(Operation::Publish) && self.round_trip(connection.generation).await.is_ok() {
            self.shared.gate.open();
            self.shared.log_accepted("messages", Instant::now());
        }
    }
}
