//! Subjects, queue groups, bytes and replies: what the service and the client need of a message broker.
//!
//! One trait, [`Transport`], and two implementations with the same semantics: [`nats`] over async-nats, and [`memory`]
//! within the process. Nothing here knows what the bytes mean.
//!
//! Delivery is at most once, as in core NATS: order holds between one publisher's connection and one subscription,
//! and a message that nobody subscribes to is gone. What has to arrive in spite of an outage is kept by the publisher
//! and sent again ([`Transport::barrier`], [`Connection::generation`]).

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

pub use async_nats::Subject;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future::BoxFuture};
use tokio::sync::watch;

pub mod memory;
pub mod nats;
mod subject;

/// How many received messages a subscription holds until its reader takes them; what comes on top is dropped and counted.
///
/// A reader sees to 100,000 messages a second and more, so this bridges half a second in which it does not get to run,
/// a reconnect's burst of registrations included. All of it full of small messages is some 20 MB, which a process can
/// afford for each of its few subscriptions.
pub const SUBSCRIPTION_CAPACITY: usize = 65_536;

/// How long [`Transport::barrier`] waits for the broker: longer than a busy broker lags, and close to the time after
/// which a dead one is noticed anyway.
pub const BARRIER_TIMEOUT: Duration = Duration::from_secs(5);

/// A message as it was received.
#[derive(Debug, Clone)]
pub struct Message {
    /// The subject it was published to.
    pub subject: Subject,
    /// Its bytes.
    pub payload: Bytes,
    /// Where its sender waits for an answer.
    pub reply: Option<Subject>,
}

/// A message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// A subject without wildcards. Whoever builds it has checked the parts that a stranger gave.
    pub subject: Subject,
    /// Its bytes, at most [`Transport::max_payload`].
    pub payload: Bytes,
}

/// Whether the transport is connected, and to which incarnation of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// False from the moment a loss is noticed until the connection is back.
    pub connected: bool,
    /// Grows by one with each connection made, so that a reader of the watch sees a short outage too:
    /// what was published before and not confirmed by a [`Transport::barrier`] may be lost.
    pub generation: u64,
}

/// Why the transport refused. Nothing was sent, unless a `Timeout` or `Disconnected` came after it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The connection is away; it is being retried for as long as the transport lives.
    #[error("the connection to the broker is away")]
    Disconnected,
    /// The transport was closed.
    #[error("the transport is closed")]
    Closed,
    /// Nobody subscribes to the subject of a request.
    #[error("nobody answers on {0}")]
    NoResponders(String),
    /// No answer came in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The payload is larger than the broker takes.
    #[error("a payload of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Size of the payload, bytes.
        bytes: usize,
        /// The broker's limit, bytes.
        limit: usize,
    },
    /// The subject or the subscription was refused.
    #[error("{0}")]
    Refused(String),
}

/// Publish, subscribe, ask: a connection to a broker.
///
/// A transport connects and reconnects by itself, for ever. It is shared as `Arc<dyn Transport>`.
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// Publishes `messages` in order, front first, and removes each as it is taken.
    ///
    /// Waits while the connection's own bounded queue is full. On an error the rest stays in `messages`, to be sent
    /// later; a message that is itself at fault ([`TransportError::TooLarge`], [`TransportError::Refused`]) is removed.
    /// While the connection is away it returns [`TransportError::Disconnected`] at once: nothing is queued to go out
    /// stale. An outage that comes while it waits ends the wait in the same way.
    ///
    /// Cancel safe: what is no longer in `messages` was taken.
    fn publish<'a>(&'a self, messages: &'a mut VecDeque<Outgoing>) -> BoxFuture<'a, Result<(), TransportError>>;

    /// Resolves when all that this transport took before has reached the broker: a round trip behind it.
    ///
    /// An error means that what was published since the last successful barrier may be lost. Success speaks for the
    /// connection as it is now: what was published under an earlier [`Connection::generation`] may be lost all the
    /// same, so a publisher notes the generation before it publishes and compares it after the barrier.
    /// Fails as soon as the connection goes away meanwhile, and after [`BARRIER_TIMEOUT`].
    fn barrier(&self) -> BoxFuture<'_, Result<(), TransportError>>;

    /// Subscribes to `subject`, where `*` stands for one token and a last `>` for one or more.
    ///
    /// With a `queue`, each message goes to one member of that group. When this returns, what is published by anyone
    /// on this transport from now on is seen. The subscription outlives outages; what was published meanwhile is lost.
    fn subscribe<'a>(
        &'a self,
        subject: &'a str,
        queue: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Subscription, TransportError>>;

    /// Publishes `payload` with a reply subject and waits at most `timeout` for the first answer.
    ///
    /// The timeout covers all of it, also a connection whose queue is full. An unanswered request leaves nothing behind.
    fn request<'a>(
        &'a self,
        subject: &'a str,
        payload: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Message, TransportError>>;

    /// The state of the connection, to read or to wait for.
    fn connection(&self) -> watch::Receiver<Connection>;

    /// The largest payload the broker takes, bytes.
    fn max_payload(&self) -> usize;

    /// How many messages subscriptions of this transport dropped because nobody read them in time.
    ///
    /// Over NATS it is exact as soon as nothing waits to be read, for as long as no subscription has ended, and a lower
    /// bound otherwise.
    fn dropped(&self) -> u64;

    /// Sends what was taken, ends all subscriptions and disconnects. Whatever is called afterwards says `Closed`.
    ///
    /// Takes two seconds at most. Dropping the transport closes it too, without waiting for what was taken.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// What an implementation makes a [`Subscription`] of. Dropping it unsubscribes.
pub trait Incoming: Stream<Item = Message> + Send {
    /// As [`Subscription::stop`].
    fn stop(self: Pin<&mut Self>) -> BoxFuture<'_, Result<(), TransportError>>;
}

/// A stream of messages. Dropping it unsubscribes.
pub struct Subscription {
    messages: Pin<Box<dyn Incoming>>,
}

impl Subscription {
    /// Wraps the stream of an implementation, which unsubscribes when it is dropped.
    pub fn new(messages: impl Incoming + 'static) -> Self {
        Self { messages: Box::pin(messages) }
    }

    /// Asks the broker for no more: who publishes a request from now on hears that nobody is there. What has come stays to
    /// be taken, and behind it is the end. What is on its way in this moment may be lost: async-nats forgets a
    /// subscription once it has written that it wants no more, without waiting for the broker to have read it. So
    /// whoever ends has a [`Transport::barrier`] first, and loses next to nothing.
    ///
    /// # Errors
    /// `Closed` when the transport is.
    pub async fn stop(&mut self) -> Result<(), TransportError> {
        self.messages.as_mut().stop().await
    }

    /// The next message, or `None` when the transport is closed or the subscription stopped. Cancel safe.
    pub async fn next(&mut self) -> Option<Message> {
        self.messages.next().await
    }
}

impl Stream for Subscription {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        self.messages.as_mut().poll_next(context)
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Subscription").finish_non_exhaustive()
    }
}
