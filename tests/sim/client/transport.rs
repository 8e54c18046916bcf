//! A real client's end of its connection. It decides nothing: what a client asks of its transport is a [`Call`], which
//! the world carries out, in its own time and with its own faults.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, Stream, future::BoxFuture};
use orchestrator_service::transport::{
    Accept, Connection, Denial, Denied, Incoming, Message, Outgoing, Subscription, Transport, TransportError,
};
use tokio::sync::{mpsc, oneshot, watch};

/// Something that a client asks of its connection.
#[derive(Debug)]
pub enum Call {
    Subscribe {
        number: u64,
        subject: String,
        messages: mpsc::UnboundedSender<Message>,
        denied: watch::Sender<Option<Denial>>,
        confirmed: oneshot::Sender<Result<(), TransportError>>,
    },
    Unsubscribe {
        number: u64,
    },
    Request {
        number: u64,
        subject: String,
        payload: Bytes,
        answers: mpsc::UnboundedSender<Result<Message, TransportError>>,
    },
    /// Nobody waits for the answer to a request any more.
    Abandon {
        number: u64,
    },
}

/// What all clients of a world have asked and not been granted yet, each with the number of its transport.
#[derive(Debug, Default)]
pub struct Calls {
    waiting: Mutex<VecDeque<(usize, Call)>>,
    /// Something has come since the world last looked, calls or else.
    has_news: AtomicBool,
    world: Mutex<Option<Waker>>,
}

impl Calls {
    pub fn push(&self, transport: usize, call: Call) {
        lock(&self.waiting).push_back((transport, call));
        self.wake();
    }

    pub fn pop(&self) -> Option<(usize, Call)> {
        lock(&self.waiting).pop_front()
    }

    /// Wakes whoever waits for calls, for another reason.
    pub fn wake(&self) {
        if !self.has_news.swap(true, Ordering::Relaxed)
            && let Some(world) = lock(&self.world).take()
        {
            world.wake();
        }
    }

    /// Ready when something has come since the last time that it was.
    pub fn poll_news(&self, context: &Context<'_>) -> Poll<()> {
        if self.has_news.swap(false, Ordering::Relaxed) {
            return Poll::Ready(());
        }
        *lock(&self.world) = Some(context.waker().clone());
        Poll::Pending
    }
}

/// See the module.
#[derive(Debug)]
pub struct SimTransport {
    number: usize,
    calls: Arc<Calls>,
    next: AtomicU64,
    believed: Mutex<Connection>,
    /// One for each who watches: they hear of a change in the order in which they came.
    watchers: Mutex<Vec<watch::Sender<Connection>>>,
    max_payload: AtomicUsize,
    denied: watch::Sender<Denied>,
}

impl SimTransport {
    /// The connection with that number among all that there ever are.
    pub fn new(number: usize, calls: Arc<Calls>, believed: Connection, max_payload: usize) -> Self {
        Self {
            number,
            calls,
            next: AtomicU64::new(0),
            believed: Mutex::new(believed),
            watchers: Mutex::default(),
            max_payload: AtomicUsize::new(max_payload),
            denied: watch::Sender::default(),
        }
    }

    /// Its holder learns that the connection is this now.
    pub fn is_now(&self, connection: Connection) {
        *lock(&self.believed) = connection;
        let mut watchers = lock(&self.watchers);
        watchers.retain(|watcher| !watcher.is_closed());
        watchers.iter().for_each(|watcher| _ = watcher.send_replace(connection));
    }

    /// It takes messages of so many bytes from now on.
    pub fn takes(&self, max_payload: usize) {
        self.max_payload.store(max_payload, Ordering::Relaxed);
    }

    fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn check(&self, payload: &Bytes) -> Result<(), TransportError> {
        if !lock(&self.believed).connected {
            return Err(TransportError::Disconnected);
        }
        let (bytes, limit) = (payload.len(), self.max_payload.load(Ordering::Relaxed));
        if bytes > limit { Err(TransportError::TooLarge { bytes, limit }) } else { Ok(()) }
    }
}

impl Transport for SimTransport {
    fn publish<'a>(&'a self, _messages: &'a mut VecDeque<Outgoing>) -> BoxFuture<'a, Result<(), TransportError>> {
        unreachable!("a client only asks")
    }

    fn barrier(&self) -> BoxFuture<'_, Result<(), TransportError>> {
        unreachable!("a client has nothing to confirm")
    }

    fn subscribe<'a>(
        &'a self,
        subject: &'a str,
        queue: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Subscription, TransportError>> {
        assert_eq!(queue, None, "a client is no member of a queue group");
        async move {
            self.check(&Bytes::new())?;
            let (number, subject) = (self.next(), subject.to_owned());
            let (messages, incoming) = mpsc::unbounded_channel();
            let (confirmed, confirmation) = oneshot::channel();
            // From here on it is unsubscribed when it is dropped, also while it is not confirmed.
            let (denied, denial) = watch::channel(None);
            let calls = Arc::clone(&self.calls);
            let incoming = SimIncoming { number, transport: self.number, calls, incoming, denial };
            self.calls.push(self.number, Call::Subscribe { number, subject, messages, denied, confirmed });
            confirmation.await.unwrap_or(Err(TransportError::Closed))?;
            Ok(Subscription::new(incoming))
        }
        .boxed()
    }

    fn request_where<'a>(
        &'a self,
        subject: &'a str,
        payload: Bytes,
        timeout: Duration,
        accept: Accept<'a>,
    ) -> BoxFuture<'a, Result<Message, TransportError>> {
        async move {
            self.check(&payload)?;
            let (number, subject) = (self.next(), subject.to_owned());
            let (answers, mut waiting) = mpsc::unbounded_channel();
            let _abandoned = Abandoned { number, transport: self.number, calls: &self.calls };
            self.calls.push(self.number, Call::Request { number, subject, payload, answers });
            let answer = async {
                loop {
                    match waiting.recv().await {
                        Some(Ok(other)) if !accept(&other) => {}
                        answer => return answer.unwrap_or(Err(TransportError::Closed)),
                    }
                }
            };
            tokio::time::timeout(timeout, answer).await.unwrap_or(Err(TransportError::Timeout(timeout)))
        }
        .boxed()
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        let (sender, receiver) = watch::channel(*lock(&self.believed));
        lock(&self.watchers).push(sender);
        receiver
    }

    fn denied(&self) -> watch::Receiver<Denied> {
        self.denied.subscribe()
    }

    fn max_payload(&self) -> Option<usize> {
        Some(self.max_payload.load(Ordering::Relaxed))
    }

    fn dropped(&self) -> u64 {
        0
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}

/// Says so when a request has ended, in whichever way.
struct Abandoned<'a> {
    number: u64,
    transport: usize,
    calls: &'a Calls,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        self.calls.push(self.transport, Call::Abandon { number: self.number });
    }
}

struct SimIncoming {
    number: u64,
    transport: usize,
    calls: Arc<Calls>,
    incoming: mpsc::UnboundedReceiver<Message>,
    denial: watch::Receiver<Option<Denial>>,
}

impl Stream for SimIncoming {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        self.incoming.poll_recv(context)
    }
}

impl Incoming for SimIncoming {
    fn stop(self: Pin<&mut Self>) -> BoxFuture<'_, Result<(), TransportError>> {
        unreachable!("a client drops what it does not want any more")
    }

    fn denied(&self) -> watch::Receiver<Option<Denial>> {
        self.denial.clone()
    }
}

impl Drop for SimIncoming {
    fn drop(&mut self) {
        self.calls.push(self.transport, Call::Unsubscribe { number: self.number });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
