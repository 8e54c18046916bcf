//! The transport over core NATS: one connection by async-nats, with the promises of [`Transport`] added to it.
//!
//! What async-nats leaves open, and what is done about it here:
//!
//! | the client | here |
//! |---|---|
//! | queues what is published while it is away, then waits without limit | the state is checked first, and a wait ends with the connection (`link`) |
//! | reports losses as events that can be lost themselves | they only wake a reader of the client's own state and count of connections (`link`) |
//! | so are most of its reports of dropped messages | what is taken is counted and compared with what arrived (`tally`) |
//! | keeps an entry for each request that is never answered | requests go by an inbox of ours that forgets them (`inbox`) |
//! | flushes as far as the local socket | a barrier is a round trip to that inbox |
//! | goes on retrying in the background whatever happens | a closed transport stops trying |
//!
//! It does not know what the bytes mean, nor who keeps what has to be sent again.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions,
    client::{PublishErrorKind, SubscribeErrorKind},
    connection::State,
    message::OutboundMessage,
};
use bytes::Bytes;
use futures_util::{FutureExt as _, SinkExt as _, Stream, TryFutureExt as _, future::BoxFuture};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use self::{
    inbox::{Inbox, Status},
    link::{Link, reconnect_delay},
    servers::{Login, Servers},
    tally::{Queue, Tally},
};
use super::{
    Accept, BARRIER_TIMEOUT, Connection, Denied, Incoming, Message, Outgoing, SUBSCRIPTION_CAPACITY, Subject,
    Subscription, Transport, TransportError, count_skipped_answer,
};
use crate::subject::{check_pattern, check_queue, check_subject};

pub use self::link::Outage;

mod inbox;
mod link;
mod servers;
mod tally;

/// How often the client asks its server for a sign of life. It gives up after the third unanswered time, so a peer that
/// died without a word is noticed within 8 s, against 4 minutes by default.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// How long one attempt to connect may take before the next begins, a handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a subscription may take to reach the client's queue. It is full only if thousands of subscriptions are made
/// in an outage, and then the caller should hear of it instead of waiting for the outage's end.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long closing may take, all steps together; a service that is told to stop has a few seconds in all.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the client logs beside what is logged here, as a filter of logs: its connector repeats with each attempt what
/// [`Outage`] says once in a while.
pub const QUIET_LOGS: &str = "async_nats::connector=off";

/// How to reach the broker.
#[derive(Clone)]
pub struct NatsOptions {
    /// `nats://host:port`, or several of them separated by commas. `tls://` demands TLS. `user:password@` or `token@`
    /// before a host is the login for all of them, so they may not have different ones: the client has one for all
    /// servers, those that it hears of from a cluster included.
    pub url: String,
    /// What the broker's own tools call this connection.
    pub name: String,
    /// A `.creds` file with a JWT and its key.
    pub credentials: Option<PathBuf>,
    /// Shared by connections that are made together, so that attempts that fail for one reason are logged once for all
    /// of them. That a connection is lost or made is logged for each.
    pub outage: Outage,
}

impl NatsOptions {
    /// Options for `url` under `name`, without a credentials file.
    pub fn new(url: impl Into<String>, name: impl Into<String>) -> Self {
        Self { url: url.into(), name: name.into(), credentials: None, outage: Outage::default() }
    }

    /// Checks what [`NatsTransport::connect`] would refuse, as far as it can be told without connecting.
    pub async fn check(&self) -> Result<(), NatsError> {
        let servers = Servers::parse(&self.url)?;
        servers.login()?;
        with_credentials(ConnectOptions::new(), self.credentials.as_deref()).await.map(drop)
    }
}

impl fmt::Debug for NatsOptions {
    /// Without the URL, which may hold a password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("NatsOptions")
            .field("name", &self.name)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// Why no transport could be made. An absent broker is no such reason: it is waited for.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// The URL cannot be read. The text leaves out the URL, which may hold a password.
    #[error("the NATS URL cannot be read: {0}")]
    Url(#[source] io::Error),
    /// Two URLs have different users, passwords or tokens.
    #[error("the NATS URL of {0} has another login than those before it: all servers are sent the same")]
    Logins(String),
    /// A user, password or token cannot be meant.
    #[error("the login in the NATS URL of {server} {why}")]
    Login {
        /// Which server's, without the login.
        server: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A URL has a password without a user.
    #[error("the NATS URL of {0} has a password and no user before it")]
    NoUser(String),
    /// The credentials file cannot be read.
    #[error("the NATS credentials in {path} cannot be read: {source}")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What was wrong with it.
        source: io::Error,
    },
    /// The client refused its options.
    #[error("the NATS client cannot start: {0}")]
    Client(#[source] async_nats::Error),
}

/// A connection to a NATS server. Dropping it closes it without waiting.
pub struct NatsTransport {
    client: Client,
    link: Arc<Link>,
    inbox: Arc<Inbox>,
    tally: Arc<Tally>,
    tasks: [JoinHandle<()>; 2],
}

impl NatsTransport {
    /// Makes a transport that connects in the background, for as long as it takes.
    ///
    /// Must be called within a tokio runtime.
    pub async fn connect(options: NatsOptions) -> Result<Arc<Self>, NatsError> {
        let servers = Servers::parse(&options.url)?;
        let link = Arc::new(Link::new(servers.to_string(), options.name.clone(), options.outage.clone()));
        let client = client_options(&options, &servers, &link)
            .await?
            .connect(servers.0)
            .await
            .map_err(|error| NatsError::Client(error.into()))?;

        let inbox = Arc::new(Inbox::new(client.new_inbox()));
        // The client's queue is still empty, so this neither waits nor can anything be published before it.
        let answers = client.subscribe(inbox.pattern()).await.map_err(|error| NatsError::Client(error.into()))?;
        let tally = Arc::new(Tally::default());
        let answers = tally.queue(answers, client.statistics());
        let tasks = [
            tokio::spawn(Arc::clone(&link).keep_watching(client.clone())),
            tokio::spawn(Arc::clone(&inbox).hand_out(answers)),
        ];
        Ok(Arc::new(Self { client, link, inbox, tally, tasks }))
    }

    /// How many requests and barriers wait for their answers.
    pub fn pending_requests(&self) -> usize {
        self.inbox.len()
    }

    /// The generation of the connection, if it is neither closed nor away.
    fn check_link(&self) -> Result<u64, TransportError> {
        if self.link.is_closing() {
            return Err(TransportError::Closed);
        }
        let connection = self.link.refresh(&self.client);
        if connection.connected { Ok(connection.generation) } else { Err(TransportError::Disconnected) }
    }

    /// The cheap part of [`Self::check_link`], for each message.
    fn check_still_up(&self) -> Result<(), TransportError> {
        if self.link.is_closing() {
            Err(TransportError::Closed)
        } else if self.client.connection_state() != State::Connected {
            Err(TransportError::Disconnected)
        } else {
            Ok(())
        }
    }

    fn check_message(&self, subject: &str, payload: &Bytes) -> Result<(), TransportError> {
        check_subject(subject)?;
        let (bytes, limit) = (payload.len(), self.client.max_payload());
        if bytes > limit { Err(TransportError::TooLarge { bytes, limit }) } else { Ok(()) }
    }

    /// `work`, ended early by the loss of the connection of `generation`.
    async fn while_connected<T>(
        &self,
        generation: u64,
        work: impl Future<Output = Result<T, TransportError>>,
    ) -> Result<T, TransportError> {
        tokio::select! {
            biased;
            result = work => result,
            error = self.link.lost(generation) => Err(error),
        }
    }

    /// Publishes to the own inbox and waits until it comes back: what the client took before is at the server by then.
    async fn round_trip(&self, generation: u64) -> Result<(), TransportError> {
        let mut expected = self.inbox.expect();
        let work = async {
            self.client.publish(nats_subject(expected.subject().clone()), Bytes::new()).await.map_err(refused)?;
            expected.answer().await.map(drop)
        };
        match timeout(BARRIER_TIMEOUT, self.while_connected(generation, work)).await {
            Ok(result) => result,
            Err(_) => Err(TransportError::Timeout(BARRIER_TIMEOUT)),
        }?;
        // The answer may have come by a connection that is newer than the watch knew.
        match self.link.refresh(&self.client) {
            now if now.generation == generation => Ok(()),
            _ => Err(TransportError::Disconnected),
        }
    }

    async fn ask(&self, subject: &str, payload: Bytes, accept: Accept<'_>) -> Result<Message, TransportError> {
        let generation = self.check_link()?;
        self.check_message(subject, &payload)?;
        let mut expected = self.inbox.expect();
        let work = async {
            self.client
                .publish_with_reply(
                    async_nats::Subject::from(subject),
                    nats_subject(expected.subject().clone()),
                    payload,
                )
                .await
                .map_err(refused)?;
            loop {
                match expected.answer().await? {
                    (Status::Answered, message) if accept(&message) => return Ok(message),
                    (Status::Answered, _) => count_skipped_answer(),
                    (Status::NoResponders, _) => return Err(TransportError::NoResponders(subject.to_owned())),
                }
            }
        };
        self.while_connected(generation, work).await
    }

    /// Hands a subscription to the client. In an outage it waits there and is made with the next connection.
    async fn subscribe_at_client(
        &self,
        pattern: &str,
        queue: Option<&str>,
    ) -> Result<async_nats::Subscriber, TransportError> {
        let subscribed = async {
            match queue {
                Some(queue) => self.client.queue_subscribe(async_nats::Subject::from(pattern), queue.to_owned()).await,
                None => self.client.subscribe(async_nats::Subject::from(pattern)).await,
            }
        };
        match timeout(SUBSCRIBE_TIMEOUT, subscribed).await {
            Ok(subscribed) => subscribed.map_err(|error| match error.kind() {
                SubscribeErrorKind::Other => TransportError::Closed,
                SubscribeErrorKind::InvalidSubject | SubscribeErrorKind::InvalidQueueName => {
                    TransportError::Refused(error.to_string())
                }
            }),
            Err(_) => Err(TransportError::Timeout(SUBSCRIBE_TIMEOUT)),
        }
    }

    /// The orderly end of a connection that is up: all that was taken arrives, subscriptions get what is on its way.
    async fn drain(&self, generation: u64) -> Result<(), TransportError> {
        self.while_connected(generation, async { self.client.flush().await.map_err(|_| TransportError::Closed) })
            .await?;
        self.round_trip(generation).await?;
        self.client.drain().await.map_err(|_| TransportError::Closed)?;
        self.link.ended().await;
        Ok(())
    }

    /// Ends what a drained client has not ended by itself. Does no harm when repeated.
    fn close_hard(&self) {
        self.link.cut_subscriptions();
        self.link.show_closed();
        for task in &self.tasks {
            task.abort();
        }
        self.inbox.clear();
    }
}

impl Transport for NatsTransport {
    fn publish<'a>(&'a self, messages: &'a mut VecDeque<Outgoing>) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(async move {
            let generation = self.check_link()?;
            // The client's sink gives room first and takes a message then. Between the two nothing waits, so whoever
            // drops this future takes no message along.
            let mut sink = self.client.clone();
            while let Some(Outgoing { subject, payload }) = messages.front() {
                self.check_still_up()?;
                if let Err(error) = self.check_message(subject, payload) {
                    messages.pop_front();
                    return Err(error);
                }
                self.while_connected(generation, poll_fn(|context| sink.poll_ready_unpin(context)).map_err(refused))
                    .await?;
                let Some(Outgoing { subject, payload }) = messages.pop_front() else { break };
                let subject = nats_subject(subject);
                let message = OutboundMessage { subject, payload, reply: None, headers: None };
                sink.start_send_unpin(message).map_err(refused)?;
            }
            Ok(())
        })
    }

    fn barrier(&self) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move { self.round_trip(self.check_link()?).await })
    }

    fn subscribe<'a>(
        &'a self,
        subject: &'a str,
        queue: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Subscription, TransportError>> {
        Box::pin(async move {
            check_pattern(subject)?;
            queue.map_or(Ok(()), check_queue)?;
            let link = self.check_link();
            if link == Err(TransportError::Closed) {
                return Err(TransportError::Closed);
            }
            let subscriber = self.subscribe_at_client(subject, queue).await?;
            let queue = self.tally.queue(subscriber, self.client.statistics());
            if let Ok(generation) = link {
                match self.round_trip(generation).await {
                    // The connection went, and the client makes the subscription anew with the next one.
                    Ok(()) | Err(TransportError::Disconnected) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(Subscription::new(NatsSubscription { queue, cut: self.link.cut().boxed() }))
        })
    }

    fn request_where<'a>(
        &'a self,
        subject: &'a str,
        payload: Bytes,
        limit: Duration,
        accept: Accept<'a>,
    ) -> BoxFuture<'a, Result<Message, TransportError>> {
        Box::pin(async move {
            match timeout(limit, self.ask(subject, payload, accept)).await {
                Ok(answer) => answer,
                Err(_) => Err(TransportError::Timeout(limit)),
            }
        })
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.link.watch()
    }

    fn denied(&self) -> watch::Receiver<Denied> {
        self.link.denied.subscribe()
    }

    fn max_payload(&self) -> Option<usize> {
        // The client says 1 MiB before it knows.
        (self.link.refresh(&self.client).generation > 0).then(|| self.client.max_payload())
    }

    fn dropped(&self) -> u64 {
        self.link.dropped.load(Ordering::Relaxed).max(self.tally.lost())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let deadline = Instant::now() + CLOSE_TIMEOUT;
            let up = self.check_link();
            let drained = match up {
                Ok(generation) if self.link.begin_closing() => {
                    timeout_at(deadline, self.drain(generation)).await.is_ok_and(|drained| drained.is_ok())
                }
                // Another caller is at it.
                Ok(_) | Err(TransportError::Closed) => timeout_at(deadline, self.link.ended()).await.is_ok(),
                Err(_) => !self.link.begin_closing(),
            };
            if !drained {
                tracing::warn!(url = %self.link.url, "closed without the broker's confirmation that all was sent");
            }
            self.close_hard();
        })
    }
}

impl Drop for NatsTransport {
    fn drop(&mut self) {
        self.link.begin_closing();
        self.close_hard();
    }
}

impl fmt::Debug for NatsTransport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("NatsTransport")
            .field("url", &self.link.url)
            .field("connection", &*self.link.watch().borrow())
            .finish_non_exhaustive()
    }
}

/// A subscription of the client, which ends with the transport even when the client cannot end it.
struct NatsSubscription {
    /// Unsubscribes when it is dropped.
    queue: Queue,
    cut: BoxFuture<'static, ()>,
}

impl Stream for NatsSubscription {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        if let Poll::Ready(received) = Pin::new(&mut self.queue).poll_next(context) {
            return Poll::Ready(received.map(Message::from));
        }
        self.cut.poll_unpin(context).map(|()| None)
    }
}

impl Incoming for NatsSubscription {
    fn stop(self: Pin<&mut Self>) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(self.get_mut().queue.stop())
    }
}

impl From<async_nats::Message> for Message {
    fn from(received: async_nats::Message) -> Self {
        let text = |subject: async_nats::Subject| Subject::from(subject.as_str());
        Self { subject: text(received.subject), payload: received.payload, reply: received.reply.map(text) }
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

async fn client_options(
    options: &NatsOptions,
    servers: &Servers,
    link: &Arc<Link>,
) -> Result<ConnectOptions, NatsError> {
    let (for_events, for_delays) = (Arc::clone(link), Arc::clone(link));
    let mut client = ConnectOptions::new()
        .name(&options.name)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(PING_INTERVAL)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .event_callback(move |event| {
            for_events.on_event(&event);
            std::future::ready(())
        })
        .reconnect_delay_callback(move |attempt| reconnect_delay(attempt, for_delays.is_closing()));
    client = match servers.login()? {
        Some(Login { user, password: Some(password) }) => client.user_and_password(user, password),
        Some(Login { user: token, password: None }) => client.token(token),
        None => client,
    };
    with_credentials(client, options.credentials.as_deref()).await
}

async fn with_credentials(client: ConnectOptions, file: Option<&Path>) -> Result<ConnectOptions, NatsError> {
    match file {
        None => Ok(client),
        Some(path) => client
            .credentials_file(path)
            .await
            .map_err(|source| NatsError::Credentials { path: path.to_owned(), source }),
    }
}
