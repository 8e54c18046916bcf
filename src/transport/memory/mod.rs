//! A broker within the process: what one program, a test or a simulation needs instead of a server.
//!
//! [`MemoryBus`] is the broker, [`MemoryBus::connect`] makes a connection to it. Semantics are those of core NATS, and
//! one suite of tests runs over both. Everything happens in the call that causes it and in the order of subscription,
//! nothing is drawn at random, and no clock is read except for a request's timeout: the same calls in the same order
//! deliver the same messages.
//!
//! It does not know what the bytes mean, and it has no network: an outage happens when [`MemoryBus::set_online`] or
//! [`MemoryBus::set_black_hole`] says so, a want of permissions when [`MemoryBus::deny`] does.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, future::BoxFuture};
use tokio::sync::{mpsc, watch};

use super::{
    Accept, BARRIER_TIMEOUT, Connection, Denial, Denied, Incoming, MAX_ANSWERS, MAX_DENIED_SUBJECTS, Message,
    Operation, Outgoing, SUBSCRIPTION_CAPACITY, Subject, Subscription, Transport, TransportError, count_skipped_answer,
    publish_denial,
};
use crate::subject::{check_pattern, check_queue, check_subject};

use self::routes::{Key, Routes};

mod permissions;
mod routes;

/// The largest payload unless the bus is made with another, bytes: a NATS server's own default.
pub const DEFAULT_MAX_PAYLOAD: usize = 1024 * 1024;

/// How many messages a publisher hands over before it lets other tasks run.
///
/// A publisher that never waits would starve the subscribers on its own thread until their queues overflow. 256 is a
/// small part of [`SUBSCRIPTION_CAPACITY`] and makes the cost of yielding vanish among the messages.
const PUBLISH_BURST: usize = 256;

/// A broker within the process. Clones are handles to the same one.
#[derive(Clone)]
pub struct MemoryBus {
    broker: Arc<Broker>,
}

impl MemoryBus {
    /// An online broker that takes payloads up to [`DEFAULT_MAX_PAYLOAD`].
    pub fn new() -> Self {
        Self::with_max_payload(DEFAULT_MAX_PAYLOAD)
    }

    /// An online broker that takes payloads up to `max_payload` bytes.
    pub fn with_max_payload(max_payload: usize) -> Self {
        Self { broker: Arc::new(Broker { routes: Mutex::new(Routes::new(max_payload)) }) }
    }

    /// A new connection, connected at once if the broker is online.
    pub fn connect(&self) -> Arc<MemoryTransport> {
        let mut routes = self.broker.lock();
        let connected = routes.online;
        let link = Arc::new(Link {
            connection: watch::Sender::new(Connection { connected, generation: u64::from(connected) }),
            max_payload: AtomicUsize::new(if connected { routes.max_payload } else { 0 }),
            denied: watch::Sender::default(),
            dropped: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        routes.links.retain(|link| link.strong_count() > 0);
        routes.links.push(Arc::downgrade(&link));
        drop(routes);
        Arc::new(MemoryTransport { broker: Arc::clone(&self.broker), link })
    }

    /// Takes all connections away, or brings them back with their subscriptions and a greater generation.
    ///
    /// Saying what is already so changes nothing.
    pub fn set_online(&self, online: bool) {
        let mut routes = self.broker.lock();
        if routes.online == online {
            return;
        }
        routes.online = online;
        let max_payload = routes.max_payload;
        for link in routes.links.iter().filter_map(Weak::upgrade) {
            link.set_connected(online, max_payload);
        }
    }

    /// Takes payloads up to `max_payload` bytes from connections that are made from now on, those that come back
    /// included.
    pub fn set_max_payload(&self, max_payload: usize) {
        self.broker.lock().max_payload = max_payload;
    }

    /// Refuses what `pattern` takes in to all connections, as a reload with fewer permissions does: subscriptions that
    /// are there become silent, and what is published is swallowed and told in [`Transport::denied`].
    ///
    /// A subscription is refused when `pattern` takes in all that it asks for; the inboxes of requests never are.
    pub fn deny(&self, operation: Operation, pattern: &str) {
        let mut routes = self.broker.lock();
        routes.permissions.deny(operation, pattern);
        routes.judge();
    }

    /// Takes [`MemoryBus::deny`] back: subscriptions are live again, and publishing is accepted.
    pub fn allow(&self, operation: Operation, pattern: &str) {
        let mut routes = self.broker.lock();
        routes.permissions.allow(operation, pattern);
        if operation == Operation::Publish {
            for link in routes.links.iter().filter_map(Weak::upgrade) {
                link.denied.send_if_modified(|denied| !std::mem::take(&mut denied.publish).is_empty());
            }
        }
        routes.judge();
    }

    /// Refuses subscriptions beyond so many to each connection, the inboxes of requests apart. Those that are there count
    /// from the oldest.
    pub fn set_max_subscriptions(&self, most: usize) {
        let mut routes = self.broker.lock();
        routes.permissions.max_subscriptions = most;
        routes.judge();
    }

    /// While on, connections look alive and swallow what is published: a peer that died and has not been missed yet.
    ///
    /// Barriers and requests wait, until the connections are taken away or their timeouts come.
    pub fn set_black_hole(&self, black_hole: bool) {
        self.broker.lock().black_hole = black_hole;
    }

    /// How many subscriptions there are over all connections, the inboxes of waiting requests included.
    pub fn subscriptions(&self) -> usize {
        self.broker.lock().subscribers.len()
    }
}

impl Default for MemoryBus {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryBus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes = self.broker.lock();
        formatter
            .debug_struct("MemoryBus")
            .field("online", &routes.online)
            .field("subscriptions", &routes.subscribers.len())
            .finish_non_exhaustive()
    }
}

/// One connection to a [`MemoryBus`]. Dropping it closes it.
pub struct MemoryTransport {
    broker: Arc<Broker>,
    link: Arc<Link>,
}

impl MemoryTransport {
    /// The connection's generation, if it is neither closed nor away.
    fn check_link(&self, routes: &Routes) -> Result<u64, TransportError> {
        if self.link.is_closed() {
            Err(TransportError::Closed)
        } else if !routes.online {
            Err(TransportError::Disconnected)
        } else {
            Ok(self.link.connection.borrow().generation)
        }
    }

    fn check_message(&self, subject: &str, payload: &Bytes) -> Result<(), TransportError> {
        check_subject(subject)?;
        let (bytes, limit) = (payload.len(), self.link.max_payload.load(Ordering::SeqCst));
        if bytes > limit { Err(TransportError::TooLarge { bytes, limit }) } else { Ok(()) }
    }

    /// Whether the broker takes a message for `subject`; if not, whether it had refused one before.
    fn check_permission(&self, routes: &Routes, subject: &str) -> Permission {
        if !routes.permissions.refuses(Operation::Publish, subject) {
            return Permission::Granted;
        }
        let mut is_new = false;
        self.link.denied.send_modify(|denied| {
            denied.refused += 1;
            is_new = denied.publish.insert(subject.to_owned());
            if denied.publish.len() > MAX_DENIED_SUBJECTS {
                denied.publish.pop_first();
                denied.missed += 1;
            }
        });
        if is_new { Permission::RefusedLater } else { Permission::Refused }
    }

    /// Hands over up to [`PUBLISH_BURST`] messages.
    fn publish_burst(&self, messages: &mut VecDeque<Outgoing>) -> Result<(), TransportError> {
        let mut routes = self.broker.lock();
        self.check_link(&routes)?;
        for _ in 0..PUBLISH_BURST {
            let Some(Outgoing { subject, payload }) = messages.pop_front() else { break };
            self.check_message(&subject, &payload)?;
            match self.check_permission(&routes, &subject) {
                Permission::Granted => routes.deliver(&Message { subject, payload, reply: None }),
                Permission::RefusedLater => {}
                Permission::Refused => return Err(TransportError::Denied(publish_denial(&subject))),
            }
        }
        Ok(())
    }

    fn subscribe_now(&self, pattern: &str, queue: Option<&str>) -> Result<Subscription, TransportError> {
        check_pattern(pattern)?;
        queue.map_or(Ok(()), check_queue)?;
        let mut routes = self.broker.lock();
        // Under the lock, so that nothing is added behind a `close`.
        if self.link.is_closed() {
            return Err(TransportError::Closed);
        }
        if routes.online
            && let Some(denial) = routes.refusal(&self.link, pattern)
        {
            return Err(TransportError::Denied(denial));
        }
        let denied = watch::Sender::default();
        let watched = denied.subscribe();
        let (key, receiver) = routes.add(&self.link, pattern, queue, SUBSCRIPTION_CAPACITY, Some(denied));
        routes.judge();
        drop(routes);
        let broker = Arc::clone(&self.broker);
        Ok(Subscription::new(MemorySubscription { broker, key, receiver, denied: watched }))
    }

    /// Publishes a request; returns the inbox that its answer comes to and the connection's generation.
    fn publish_request(&self, subject: &str, payload: Bytes) -> Result<(MemorySubscription, u64), TransportError> {
        let mut routes = self.broker.lock();
        let generation = self.check_link(&routes)?;
        self.check_message(subject, &payload)?;
        if !routes.black_hole && !routes.is_heard(subject) {
            return Err(TransportError::NoResponders(subject.to_owned()));
        }
        if !matches!(self.check_permission(&routes, subject), Permission::Granted) {
            return Err(TransportError::Denied(publish_denial(subject)));
        }
        routes.inboxes += 1;
        let inbox = Subject::from(format!("_INBOX.{}", routes.inboxes));
        let (key, receiver) = routes.add(&self.link, &inbox, None, MAX_ANSWERS, None);
        routes.deliver(&Message { subject: subject.into(), payload, reply: Some(inbox) });
        drop(routes);
        let (broker, denied) = (Arc::clone(&self.broker), watch::channel(None).1);
        Ok((MemorySubscription { broker, key, receiver, denied }, generation))
    }

    /// The first answer that is accepted.
    async fn answer(
        &self,
        inbox: &mut MemorySubscription,
        generation: u64,
        accept: Accept<'_>,
    ) -> Result<Message, TransportError> {
        loop {
            let answer = tokio::select! {
                biased;
                answer = inbox.receiver.recv() => answer.ok_or(TransportError::Closed)?,
                error = self.link.lost(generation) => return Err(error),
            };
            if accept(&answer) {
                return Ok(answer);
            }
            count_skipped_answer();
        }
    }

    async fn wait_in_black_hole(&self, generation: u64) -> Result<(), TransportError> {
        match tokio::time::timeout(BARRIER_TIMEOUT, self.link.lost(generation)).await {
            Ok(error) => Err(error),
            Err(_) => Err(TransportError::Timeout(BARRIER_TIMEOUT)),
        }
    }

    fn close_now(&self) {
        let mut routes = self.broker.lock();
        self.link.closed.store(true, Ordering::SeqCst);
        self.link.connection.send_modify(|connection| connection.connected = false);
        routes.remove_link(&self.link);
    }
}

impl Transport for MemoryTransport {
    fn publish<'a>(&'a self, messages: &'a mut VecDeque<Outgoing>) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(async move {
            loop {
                self.publish_burst(messages)?;
                if messages.is_empty() {
                    return Ok(());
                }
                tokio::task::yield_now().await;
            }
        })
    }

    fn barrier(&self) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move {
            let (generation, black_hole) = {
                let routes = self.broker.lock();
                (self.check_link(&routes)?, routes.black_hole)
            };
            if black_hole { self.wait_in_black_hole(generation).await } else { Ok(()) }
        })
    }

    fn subscribe<'a>(
        &'a self,
        subject: &'a str,
        queue: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Subscription, TransportError>> {
        Box::pin(async move { self.subscribe_now(subject, queue) })
    }

    fn request_where<'a>(
        &'a self,
        subject: &'a str,
        payload: Bytes,
        timeout: Duration,
        accept: Accept<'a>,
    ) -> BoxFuture<'a, Result<Message, TransportError>> {
        Box::pin(async move {
            // The inbox goes with the end of this future, however it ends.
            let (mut inbox, generation) = self.publish_request(subject, payload)?;
            match tokio::time::timeout(timeout, self.answer(&mut inbox, generation, accept)).await {
                Ok(answer) => answer,
                Err(_) => Err(TransportError::Timeout(timeout)),
            }
        })
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.link.connection.subscribe()
    }

    fn denied(&self) -> watch::Receiver<Denied> {
        self.link.denied.subscribe()
    }

    fn max_payload(&self) -> Option<usize> {
        let connected_once = self.link.connection.borrow().generation > 0;
        connected_once.then(|| self.link.max_payload.load(Ordering::SeqCst))
    }

    fn dropped(&self) -> u64 {
        self.link.dropped.load(Ordering::Relaxed)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.close_now() })
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.close_now();
    }
}

impl fmt::Debug for MemoryTransport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("MemoryTransport")
            .field("connection", &*self.link.connection.borrow())
            .field("closed", &self.link.is_closed())
            .finish_non_exhaustive()
    }
}

/// What becomes of a message.
enum Permission {
    Granted,
    /// It is taken and lost, as with a broker that says so afterwards.
    RefusedLater,
    /// It is not taken: its subject was refused before.
    Refused,
}

/// The receiving end of a subscription; dropping it unsubscribes at once.
struct MemorySubscription {
    broker: Arc<Broker>,
    key: Key,
    receiver: mpsc::Receiver<Message>,
    denied: watch::Receiver<Option<Denial>>,
}

impl Stream for MemorySubscription {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        self.receiver.poll_recv(context)
    }
}

impl Incoming for MemorySubscription {
    fn stop(self: Pin<&mut Self>) -> BoxFuture<'_, Result<(), TransportError>> {
        self.broker.remove(self.key);
        Box::pin(std::future::ready(Ok(())))
    }

    fn denied(&self) -> watch::Receiver<Option<Denial>> {
        self.denied.clone()
    }
}

impl Drop for MemorySubscription {
    fn drop(&mut self) {
        self.broker.remove(self.key);
    }
}

/// What a connection shares with the broker.
struct Link {
    connection: watch::Sender<Connection>,
    /// The broker's when this connection was made, bytes.
    max_payload: AtomicUsize,
    denied: watch::Sender<Denied>,
    dropped: AtomicU64,
    /// Written under the broker's lock.
    closed: AtomicBool,
}

impl Link {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn set_connected(&self, connected: bool, max_payload: usize) {
        if !self.is_closed() {
            if connected {
                self.max_payload.store(max_payload, Ordering::SeqCst);
                self.denied.send_if_modified(|denied| !std::mem::take(&mut denied.publish).is_empty());
            }
            self.connection.send_modify(|connection| {
                connection.connected = connected;
                connection.generation += u64::from(connected);
            });
        }
    }

    /// Resolves when the connection of `generation` is gone, also when another took its place, with what to tell a caller.
    async fn lost(&self, generation: u64) -> TransportError {
        let mut connection = self.connection.subscribe();
        // An error would mean that the sender is gone, which `self` holds.
        let _ = connection.wait_for(|now| !now.connected || now.generation != generation).await;
        if self.is_closed() { TransportError::Closed } else { TransportError::Disconnected }
    }
}

struct Broker {
    routes: Mutex<Routes>,
}

impl Broker {
    /// A panic under the lock is a bug elsewhere; the routes are whole after each statement, so go on with them.
    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, key: Key) {
        let mut routes = self.lock();
        if routes.remove(key) {
            routes.judge();
        }
    }
}
