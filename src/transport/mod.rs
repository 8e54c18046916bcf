//! Subjects, queue groups, bytes and replies: what the service and the client need of a message broker.
//!
//! One trait, [`Transport`], and two implementations with the same semantics: [`nats`] over async-nats, and [`memory`]
//! within the process. Nothing here knows what the bytes mean.
//!
//! Delivery is at most once, as in core NATS: order holds between one publisher's connection and one subscription,
//! and a message that nobody subscribes to is gone. What has to arrive in spite of an outage is kept by the publisher
//! and sent again ([`Transport::barrier`], [`Connection::generation`]).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future::BoxFuture};
use tokio::sync::watch;

pub use crate::subject::Subject;
use crate::subject::SubjectError;

pub mod memory;
pub mod nats;

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
    /// Its bytes, at most what [`Transport::max_payload`] says when it is published.
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

/// What a permission of the broker is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// To receive.
    Subscribe,
    /// To send, answers and requests included.
    Publish,
}

/// One thing that the broker refuses: for want of a permission, or beyond its limit of subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// What was asked for.
    pub operation: Operation,
    /// The subject, or the pattern of a subscription.
    pub subject: String,
    /// The broker's own words.
    pub reason: String,
}

impl fmt::Display for Denial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, subject, reason } = self;
        let what = match operation {
            Operation::Subscribe => "subscribe",
            Operation::Publish => "publish",
        };
        write!(formatter, "the broker refuses to {what} to {subject}: {reason}")
    }
}

/// What the broker refuses this transport at present, as far as it has said so.
///
/// A broker answers a subscription or a message that it refuses later, on its own account. So this is where such an
/// answer goes when the call that caused it has returned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Denied {
    /// The patterns of subscriptions that are held and refused, with the broker's words. Each is tried again until it is
    /// allowed, and goes from here then, or when the subscription is dropped.
    pub subscribe: BTreeMap<String, String>,
    /// Why the transport's own inbox is refused. As long as it is, nothing can be confirmed, asked or subscribed to.
    pub inbox: Option<Denial>,
    /// The subjects, reply subjects among them, to which a message was refused. They go from here when the broker takes
    /// a message again, with a new connection, and when nobody has tried for [`DENIAL_FORGOTTEN_AFTER`]. At most
    /// [`MAX_DENIED_SUBJECTS`]; beyond that others give way.
    pub publish: BTreeSet<String>,
    /// How many messages were refused, by the broker or here because it had refused their subject.
    pub refused: u64,
    /// Grows when refusals may have been missed, because so many came at once, and when subjects go from `publish` while
    /// they may still be refused: any message published shortly before may have been refused without its subject
    /// being above.
    pub missed: u64,
}

impl Denied {
    /// One of the refused patterns, for an operator; the inbox before all others.
    #[must_use]
    pub fn subscription(&self) -> Option<Denial> {
        if let Some(inbox) = &self.inbox {
            return Some(inbox.clone());
        }
        let (subject, reason) = self.subscribe.first_key_value()?;
        Some(Denial { operation: Operation::Subscribe, subject: subject.clone(), reason: reason.clone() })
    }

    /// The first refused subject that is one of the `own` ones: which reply subjects there are, strangers decide.
    #[must_use]
    pub fn publishing(&self, own: impl Fn(&str) -> bool) -> Option<Denial> {
        let subject = self.publish.iter().find(|subject| own(subject))?;
        Some(publish_denial(subject))
    }
}

fn publish_denial(subject: &str) -> Denial {
    let reason = "permissions violation".to_owned();
    Denial { operation: Operation::Publish, subject: subject.to_owned(), reason }
}

/// How many subjects are remembered as refused: more than a service has streams that change within a second. They take
/// some 2 MB, and 33 MB if each is of the 1,024 bytes that a subject may have.
pub const MAX_DENIED_SUBJECTS: usize = 16_384;

/// After that time without a message for it a refused subject is forgotten, so that what nobody publishes any more does
/// not count as a fault for ever.
pub const DENIAL_FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// How many answers to one request wait to be judged. More than the acknowledgements of the JetStream streams that may
/// capture its subject; what comes on top is skipped.
const MAX_ANSWERS: usize = 16;

/// Counts an answer that its request did not accept, or had no place for.
fn count_skipped_answer() {
    metrics::counter!("orchestrator_answers_skipped_total").increment(1);
}

/// Whether a message is the answer that is waited for.
pub type Accept<'a> = &'a (dyn Fn(&Message) -> bool + Send + Sync);

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
    /// The subject or the subscription was refused here: it is not well formed.
    #[error("{0}")]
    Refused(String),
    /// The broker refuses it, for want of a permission or beyond its limit of subscriptions.
    #[error("{0}")]
    Denied(Denial),
}

impl From<SubjectError> for TransportError {
    fn from(error: SubjectError) -> Self {
        Self::Refused(error.to_string())
    }
}

/// Publish, subscribe, ask: a connection to a broker.
///
/// A transport connects and reconnects by itself, for ever. It is shared as `Arc<dyn Transport>`.
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// Publishes `messages` in order, front first, and removes each as it is taken.
    ///
    /// Waits while the connection's own bounded queue is full. On an error the rest stays in `messages`, to be sent
    /// later; a message that is itself at fault is removed ([`TransportError::TooLarge`], [`TransportError::Refused`],
    /// and [`TransportError::Denied`] when the broker has refused its subject before).
    ///
    /// The broker says that it refuses a message after it was taken, so the first ones are lost and told in
    /// [`Transport::denied`]. From then on messages for that subject are refused here, but for one a second at the most
    /// that is sent to find out whether the broker takes it by now. When it does, all is tried again.
    ///
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
    ///
    /// It says nothing of a message that the broker refused: whoever must know looks into [`Transport::denied`] behind
    /// it, where the refusals of what was published before are by then.
    fn barrier(&self) -> BoxFuture<'_, Result<(), TransportError>>;

    /// Subscribes to `subject`, where `*` stands for one token and a last `>` for one or more.
    ///
    /// With a `queue`, each message goes to one member of that group. When this returns, what is published by anyone
    /// on this transport from now on is seen. The subscription outlives outages; what was published meanwhile is lost.
    ///
    /// [`TransportError::Denied`] when the broker refuses it; nothing is left of it then, and the caller may ask again. If
    /// the broker refuses it later (after an outage, or with new permissions) it is tried again until it is allowed, and
    /// then goes on by itself: see [`Subscription::denied`] and [`Transport::denied`]. Whoever drops this future before its
    /// end has not subscribed.
    fn subscribe<'a>(
        &'a self,
        subject: &'a str,
        queue: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Subscription, TransportError>>;

    /// Publishes `payload` with a reply subject and waits at most `timeout` for the first answer that `accept` takes.
    ///
    /// Others than the one who is asked may answer: a JetStream stream that captures the subject acknowledges each message
    /// first. What is not accepted is counted (`orchestrator_answers_skipped_total`) and waited past.
    /// The timeout covers all of it, also a connection whose queue is full. A request that has ended, in whichever way,
    /// leaves nothing behind, and an answer that comes later finds nobody.
    fn request_where<'a>(
        &'a self,
        subject: &'a str,
        payload: Bytes,
        timeout: Duration,
        accept: Accept<'a>,
    ) -> BoxFuture<'a, Result<Message, TransportError>>;

    /// As [`Transport::request_where`], with any answer.
    fn request<'a>(
        &'a self,
        subject: &'a str,
        payload: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Message, TransportError>> {
        self.request_where(subject, payload, timeout, &|_| true)
    }

    /// The state of the connection, to read or to wait for.
    fn connection(&self) -> watch::Receiver<Connection>;

    /// What the broker refuses at present, to read or to wait for.
    fn denied(&self) -> watch::Receiver<Denied>;

    /// The largest payload that the broker of the present connection takes, bytes; while that is away, of the last one.
    /// `None` before the first: a broker says it when it is connected to, and the next one may say less.
    fn max_payload(&self) -> Option<usize>;

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

    /// As [`Subscription::denied`]. By default it is never refused.
    fn denied(&self) -> watch::Receiver<Option<Denial>> {
        watch::channel(None).1
    }
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

    /// Why the broker refuses this subscription at present, to read or to wait for; `None` while it is live. Meanwhile
    /// [`Subscription::next`] waits, for what had come before and then for what comes when it is allowed again.
    #[must_use]
    pub fn denied(&self) -> watch::Receiver<Option<Denial>> {
        self.messages.denied()
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
