//! A broker within the process: what one program, a test or a simulation needs instead of a server.
//!
//! [`MemoryBus`] is the broker, [`MemoryBus::connect`] makes a connection to it. Semantics are those of core NATS, and
//! one suite of tests runs over both. Everything happens in the call that causes it and in the order of subscription,
//! nothing is drawn at random, and no clock is read except for a request's timeout: the same calls in the same order
//! deliver the same messages.
//!
//! It does not know what the bytes mean, and it has no network: an outage happens when [`MemoryBus::set_online`] or
//! [`MemoryBus::set_black_hole`] says so.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, future::BoxFuture};
use slab::Slab;
use tokio::sync::{mpsc, watch};

use super::{
    BARRIER_TIMEOUT, Connection, Incoming, Message, Outgoing, SUBSCRIPTION_CAPACITY, Subject, Subscription, Transport,
    TransportError,
    subject::{check_pattern, check_queue, check_subject, has_wildcard, matches},
};

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
        let routes = Routes {
            online: true,
            black_hole: false,
            links: Vec::new(),
            subscribers: Slab::new(),
            exact: HashMap::new(),
            wildcard: Vec::new(),
            picks: 0,
            inboxes: 0,
            members: Vec::new(),
        };
        Self { broker: Arc::new(Broker { max_payload, routes: Mutex::new(routes) }) }
    }

    /// A new connection, connected at once if the broker is online.
    pub fn connect(&self) -> Arc<MemoryTransport> {
        let mut routes = self.broker.lock();
        let connected = routes.online;
        let link = Arc::new(Link {
            connection: watch::Sender::new(Connection { connected, generation: u64::from(connected) }),
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
        for link in routes.links.iter().filter_map(Weak::upgrade) {
            link.set_connected(online);
        }
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
        let (bytes, limit) = (payload.len(), self.broker.max_payload);
        if bytes > limit { Err(TransportError::TooLarge { bytes, limit }) } else { Ok(()) }
    }

    /// Hands over up to [`PUBLISH_BURST`] messages.
    fn publish_burst(&self, messages: &mut VecDeque<Outgoing>) -> Result<(), TransportError> {
        let mut routes = self.broker.lock();
        self.check_link(&routes)?;
        for _ in 0..PUBLISH_BURST {
            let Some(Outgoing { subject, payload }) = messages.pop_front() else { break };
            self.check_message(&subject, &payload)?;
            routes.deliver(&Message { subject, payload, reply: None });
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
        let (key, receiver) = routes.add(&self.link, pattern, queue, SUBSCRIPTION_CAPACITY);
        drop(routes);
        Ok(Subscription::new(MemorySubscription { broker: Arc::clone(&self.broker), key, receiver }))
    }

    /// Publishes a request; returns the inbox that its answer comes to and the connection's generation.
    fn publish_request(&self, subject: &str, payload: Bytes) -> Result<(MemorySubscription, u64), TransportError> {
        let mut routes = self.broker.lock();
        let generation = self.check_link(&routes)?;
        self.check_message(subject, &payload)?;
        if !routes.black_hole && !routes.is_heard(subject) {
            return Err(TransportError::NoResponders(subject.to_owned()));
        }
        routes.inboxes += 1;
        let inbox = Subject::from(format!("_INBOX.{}", routes.inboxes));
        // One place: only the first answer counts.
        let (key, receiver) = routes.add(&self.link, &inbox, None, 1);
        routes.deliver(&Message { subject: subject.into(), payload, reply: Some(inbox) });
        drop(routes);
        Ok((MemorySubscription { broker: Arc::clone(&self.broker), key, receiver }, generation))
    }

    async fn answer(&self, inbox: &mut MemorySubscription, generation: u64) -> Result<Message, TransportError> {
        tokio::select! {
            biased;
            answer = inbox.receiver.recv() => answer.ok_or(TransportError::Closed),
            error = self.link.lost(generation) => Err(error),
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

    fn request<'a>(
        &'a self,
        subject: &'a str,
        payload: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Message, TransportError>> {
        Box::pin(async move {
            // The inbox goes with the end of this future, however it ends.
            let (mut inbox, generation) = self.publish_request(subject, payload)?;
            match tokio::time::timeout(timeout, self.answer(&mut inbox, generation)).await {
                Ok(answer) => answer,
                Err(_) => Err(TransportError::Timeout(timeout)),
            }
        })
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.link.connection.subscribe()
    }

    fn max_payload(&self) -> usize {
        self.broker.max_payload
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

/// The receiving end of a subscription; dropping it unsubscribes at once.
struct MemorySubscription {
    broker: Arc<Broker>,
    key: Key,
    receiver: mpsc::Receiver<Message>,
}

impl Stream for MemorySubscription {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        self.receiver.poll_recv(context)
    }
}

impl Incoming for MemorySubscription {
    fn stop(self: Pin<&mut Self>) -> BoxFuture<'_, Result<(), TransportError>> {
        self.broker.lock().remove(self.key);
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Drop for MemorySubscription {
    fn drop(&mut self) {
        self.broker.lock().remove(self.key);
    }
}

/// What a connection shares with the broker.
struct Link {
    connection: watch::Sender<Connection>,
    dropped: AtomicU64,
    /// Written under the broker's lock.
    closed: AtomicBool,
}

impl Link {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn set_connected(&self, connected: bool) {
        if !self.is_closed() {
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
    max_payload: usize,
    routes: Mutex<Routes>,
}

impl Broker {
    /// A panic under the lock is a bug elsewhere; the routes are whole after each statement, so go on with them.
    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the slab and the number of the subscription that took it, so that a late drop never removes another's.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    index: usize,
    number: u64,
}

struct Subscriber {
    number: u64,
    pattern: Box<str>,
    queue: Option<Box<str>>,
    /// When it was last picked for its group, as a number of [`Routes::picks`]; the longest ago is next.
    picked: u64,
    sender: mpsc::Sender<Message>,
    link: Arc<Link>,
}

impl Subscriber {
    fn send(&self, message: &Message) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.sender.try_send(message.clone()) {
            self.link.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Who gets what.
struct Routes {
    online: bool,
    black_hole: bool,
    links: Vec<Weak<Link>>,
    subscribers: Slab<Subscriber>,
    /// Patterns without wildcards, by subject, in the order of subscription. Only looked up, never walked, because a
    /// map's order differs from run to run.
    ///
    /// Invariant: `exact` and `wildcard` together hold each index of `subscribers` once; no list in `exact` is empty.
    exact: HashMap<Box<str>, Vec<usize>>,
    /// Patterns with wildcards, in the order of subscription.
    wildcard: Vec<usize>,
    /// Grows with each pick of a group's member and each subscription.
    picks: u64,
    /// Grows with each request.
    inboxes: u64,
    /// Group members that match the message at hand; kept for its memory.
    members: Vec<usize>,
}

impl Routes {
    fn add(
        &mut self,
        link: &Arc<Link>,
        pattern: &str,
        queue: Option<&str>,
        capacity: usize,
    ) -> (Key, mpsc::Receiver<Message>) {
        let (sender, receiver) = mpsc::channel(capacity);
        self.picks += 1;
        let number = self.picks;
        let index = self.subscribers.insert(Subscriber {
            number,
            pattern: pattern.into(),
            queue: queue.map(Into::into),
            picked: 0,
            sender,
            link: Arc::clone(link),
        });
        if has_wildcard(pattern) {
            self.wildcard.push(index);
        } else {
            self.exact.entry(pattern.into()).or_default().push(index);
        }
        (Key { index, number }, receiver)
    }

    fn remove(&mut self, key: Key) {
        if self.subscribers.get(key.index).is_none_or(|subscriber| subscriber.number != key.number) {
            return;
        }
        let subscriber = self.subscribers.remove(key.index);
        match self.exact.get_mut(&subscriber.pattern) {
            Some(indices) => {
                indices.retain(|index| *index != key.index);
                if indices.is_empty() {
                    self.exact.remove(&subscriber.pattern);
                }
            }
            None => self.wildcard.retain(|index| *index != key.index),
        }
    }

    fn remove_link(&mut self, link: &Arc<Link>) {
        let of_link = |(_, subscriber): &(usize, &Subscriber)| Arc::ptr_eq(&subscriber.link, link);
        let keys: Vec<Key> = self
            .subscribers
            .iter()
            .filter(of_link)
            .map(|(index, subscriber)| Key { index, number: subscriber.number })
            .collect();
        for key in keys {
            self.remove(key);
        }
    }

    fn is_heard(&self, subject: &str) -> bool {
        self.exact.contains_key(subject)
            || self.wildcard.iter().any(|index| matches(&self.subscribers[*index].pattern, subject))
    }

    /// Sends `message` to each plain subscription that matches and to one member of each group that does.
    fn deliver(&mut self, message: &Message) {
        if self.black_hole {
            return;
        }
        let mut members = std::mem::take(&mut self.members);
        let exact = self.exact.get(message.subject.as_str()).into_iter().flatten();
        let wildcard =
            self.wildcard.iter().filter(|index| matches(&self.subscribers[**index].pattern, &message.subject));
        for &index in exact.chain(wildcard) {
            let subscriber = &self.subscribers[index];
            match subscriber.queue {
                None => subscriber.send(message),
                Some(_) => members.push(index),
            }
        }
        self.deliver_to_groups(message, &mut members);
        members.clear();
        self.members = members;
    }

    /// Groups go by name alone, as in NATS: its members may have come by different patterns.
    fn deliver_to_groups(&mut self, message: &Message, members: &mut Vec<usize>) {
        while let Some(&first) = members.first() {
            let group = self.subscribers[first].queue.clone();
            let next = members
                .iter()
                .copied()
                .filter(|index| self.subscribers[*index].queue == group)
                .min_by_key(|index| (self.subscribers[*index].picked, self.subscribers[*index].number))
                .unwrap_or(first);
            self.picks += 1;
            self.subscribers[next].picked = self.picks;
            self.subscribers[next].send(message);
            members.retain(|index| self.subscribers[*index].queue != group);
        }
    }
}
