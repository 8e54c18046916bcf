//! One client of async-nats and what is kept about its connection.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{
    Client,
    client::{PublishErrorKind, SubscribeErrorKind},
    connection::State,
    message::OutboundMessage,
};
use bytes::Bytes;
use futures_util::{FutureExt as _, SinkExt as _, TryFutureExt as _};
use tokio::time::{sleep, timeout};

use super::{events::Shared, inbox::Status, publish_gate::Gate, source::Source, subscriptions::NatsSubscription};
use crate::{
    subject::check_subject,
    transport::{
        Accept, BARRIER_TIMEOUT, Message, Outgoing, Subject, TransportError, count_skipped_answer, publish_denial,
    },
};

/// How much longer than its answer the client's reports of refusals before it may take: they go by way of a task of the
/// client's. One that takes longer is dealt with when it comes.
const REPORT_TIME: Duration = Duration::from_millis(2);

/// How many bytes the client may hold that it has not written, about. Its own queue is bounded in messages, and full of
/// the largest it would hold gigabytes, behind which everything newer waits.
const MAX_UNFLUSHED_BYTES: usize = 1 << 20;

/// See the module.
pub(super) struct Core {
    pub(super) client: Client,
    pub(super) shared: Arc<Shared>,
}

impl Core {
    /// The generation of the connection, if it is neither closed nor away.
    pub(super) fn check_link(&self) -> Result<u64, TransportError> {
        if self.shared.link.is_closing() {
            return Err(TransportError::Closed);
        }
        let connection = self.shared.link.refresh(&self.client);
        if connection.connected { Ok(connection.generation) } else { Err(TransportError::Disconnected) }
    }

    /// The cheap part of [`Self::check_link`], for each message.
    fn check_still_up(&self) -> Result<(), TransportError> {
        if self.shared.link.is_closing() {
            Err(TransportError::Closed)
        } else if self.client.connection_state() != State::Connected {
            Err(TransportError::Disconnected)
        } else {
            Ok(())
        }
    }

    /// Whether a message may be sent; true if it is one that is sent to find out.
    fn check_message(&self, subject: &str, payload: &Bytes) -> Result<bool, TransportError> {
        check_subject(subject)?;
        let (bytes, limit) = (payload.len(), self.client.max_payload());
        if bytes > limit {
            return Err(TransportError::TooLarge { bytes, limit });
        }
        match self.shared.gate.check(subject, Instant::now) {
            Gate::Open => Ok(false),
            Gate::Probe => Ok(true),
            Gate::Shut => Err(TransportError::Denied(publish_denial(subject))),
        }
    }

    /// A message that was sent to find out has left.
    fn probe_sent(&self, subject: &str) {
        self.shared.gate.probe_sent(subject, Instant::now());
        self.shared.subscriptions.work.notify_one();
    }

    fn check_inbox(&self) -> Result<(), TransportError> {
        self.shared.denied.borrow().inbox.clone().map_or(Ok(()), |denial| Err(TransportError::Denied(denial)))
    }

    /// `work`, ended early by the loss of the connection of `generation`.
    pub(super) async fn while_connected<T>(
        &self,
        generation: u64,
        work: impl Future<Output = Result<T, TransportError>>,
    ) -> Result<T, TransportError> {
        tokio::select! {
            biased;
            result = work => result,
            error = self.shared.link.lost(generation) => Err(error),
        }
    }

    /// Hands messages to the client and removes them, as [`Transport::publish`](crate::transport::Transport::publish)
    /// says.
    pub(super) async fn publish(&self, messages: &mut VecDeque<Outgoing>) -> Result<(), TransportError> {
        let generation = self.check_link()?;
        // The client's sink gives room first and takes a message then. Between the two nothing waits, so whoever
        // drops this future takes no message along.
        let mut sink = self.client.clone();
        let mut unflushed = 0;
        while let Some(Outgoing { subject, payload }) = messages.front() {
            self.check_still_up()?;
            let is_probe = match self.check_message(subject, payload) {
                Ok(is_probe) => is_probe,
                Err(error) => {
                    messages.pop_front();
                    return Err(error);
                }
            };
            self.while_connected(generation, poll_fn(|context| sink.poll_ready_unpin(context)).map_err(refused))
                .await?;
            let Some(Outgoing { subject, payload }) = messages.pop_front() else { break };
            let probed = is_probe.then(|| subject.clone());
            let message = OutboundMessage { subject: nats_subject(subject), payload, reply: None, headers: None };
            unflushed += message.payload.len();
            sink.start_send_unpin(message).map_err(refused)?;
            if let Some(subject) = probed {
                self.probe_sent(&subject);
            }
            if unflushed >= MAX_UNFLUSHED_BYTES {
                unflushed = 0;
                self.flush(generation).await?;
            }
        }
        // The client's queue counts messages, of whatever size: what is large is waited for before more is given to it.
        if unflushed >= MAX_UNFLUSHED_BYTES / 8 {
            self.flush(generation).await?;
        }
        Ok(())
    }

    /// Waits until the client has written what it took.
    async fn flush(&self, generation: u64) -> Result<(), TransportError> {
        self.while_connected(generation, async { self.client.flush().await.map_err(|_| TransportError::Closed) }).await
    }

    /// Whether all that the client took before is at the server, and what that has refused of it is known.
    pub(super) async fn barrier(&self) -> Result<(), TransportError> {
        let generation = self.check_link()?;
        self.check_inbox()?;
        self.round_trip(generation).await
    }

    /// Publishes to the own inbox and waits until it comes back: what the client took before is at the server by then.
    pub(super) async fn round_trip(&self, generation: u64) -> Result<(), TransportError> {
        let mut expected = self.shared.inbox.expect(Subject::from_static(""));
        let work = async {
            self.client.publish(nats_subject(expected.subject().clone()), Bytes::new()).await.map_err(refused)?;
            expected.answer().await?;
            sleep(REPORT_TIME).await;
            Ok(())
        };
        match timeout(BARRIER_TIMEOUT, self.while_connected(generation, work)).await {
            Ok(result) => result,
            Err(_) => Err(TransportError::Timeout(BARRIER_TIMEOUT)),
        }?;
        // The answer may have come by a connection that is newer than the watch knew.
        match self.shared.link.refresh(&self.client) {
            now if now.generation == generation => Ok(()),
            _ => Err(TransportError::Disconnected),
        }
    }

    /// Asks, and waits for an answer that is accepted.
    pub(super) async fn ask(
        &self,
        subject: &str,
        payload: Bytes,
        accept: Accept<'_>,
    ) -> Result<Message, TransportError> {
        let generation = self.check_link()?;
        self.check_inbox()?;
        let is_probe = self.check_message(subject, &payload)?;
        let subject = Subject::from(subject);
        let mut expected = self.shared.inbox.expect(subject.clone());
        let work = async {
            let (to, reply) = (nats_subject(subject.clone()), nats_subject(expected.subject().clone()));
            self.client.publish_with_reply(to, reply, payload).await.map_err(refused)?;
            if is_probe {
                self.probe_sent(&subject);
            }
            loop {
                match expected.answer().await? {
                    (Status::Answered, message) if accept(&message) => return Ok(message),
                    (Status::Answered, _) => count_skipped_answer(),
                    (Status::NoResponders, _) => return Err(TransportError::NoResponders(subject.to_string())),
                }
            }
        };
        self.while_connected(generation, work).await
    }

    /// Hands a subscription to the client. In an outage it waits there and is made with the next connection.
    pub(super) async fn subscribe(
        &self,
        pattern: &str,
        queue: Option<&str>,
    ) -> Result<async_nats::Subscriber, TransportError> {
        let pattern = async_nats::Subject::from(pattern);
        let subscribed = match queue {
            Some(queue) => self.client.queue_subscribe(pattern, queue.to_owned()).await,
            None => self.client.subscribe(pattern).await,
        };
        subscribed.map_err(|error| match error.kind() {
            SubscribeErrorKind::Other => TransportError::Closed,
            SubscribeErrorKind::InvalidSubject | SubscribeErrorKind::InvalidQueueName => {
                TransportError::Refused(error.to_string())
            }
        })
    }

    /// Subscribes to the own inbox, on a client that has not sent anything yet: so this does not wait, and nothing can be
    /// published before it.
    pub(super) async fn open_inbox(&self) -> Result<NatsSubscription, TransportError> {
        let Shared { inbox, subscriptions, link, .. } = &*self.shared;
        let pattern = inbox.pattern();
        let subscription = subscriptions.enter_inbox(&pattern, self.source(), link.cut().boxed());
        subscription.entry.source.install(self.subscribe(&pattern, None).await?);
        Ok(subscription)
    }

    /// Where the messages of a new subscription will come from.
    pub(super) fn source(&self) -> Source {
        Source::new(&self.shared.tally, self.client.statistics())
    }

    /// The orderly end of a connection that is up: all that was taken arrives, subscriptions get what is on its way.
    pub(super) async fn drain(&self, generation: u64) -> Result<(), TransportError> {
        self.flush(generation).await?;
        if self.check_inbox().is_ok() {
            self.round_trip(generation).await?;
        }
        self.client.drain().await.map_err(|_| TransportError::Closed)?;
        self.shared.link.ended().await;
        Ok(())
    }
}

/// The client's own type, over the same bytes.
fn nats_subject(subject: Subject) -> async_nats::Subject {
    // What is text here is text there.
    async_nats::Subject::from_utf8(subject.into_bytes()).unwrap_or_else(|_| async_nats::Subject::from_static("invalid"))
}

/// What the client says when it does not take a message. Size and subject were checked before, so that the client ended.
fn refused(error: async_nats::PublishError) -> TransportError {
    match error.kind() {
        PublishErrorKind::Send => TransportError::Closed,
        PublishErrorKind::MaxPayloadExceeded | PublishErrorKind::InvalidSubject => {
            TransportError::Refused(error.to_string())
        }
    }
}
