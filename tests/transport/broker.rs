//! A broker of either kind, and how to wait for what it does.

use std::{collections::VecDeque, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use orchestrator_service::transport::{
    BARRIER_TIMEOUT, Message, Outgoing, Subscription, Transport, TransportError,
    memory::MemoryBus,
    nats::{NatsOptions, NatsTransport},
};

use crate::support::{
    nats_server::NatsServer,
    waiting::{LIMIT, eventually},
};

/// A timeout that a test would notice if it came.
pub(crate) const NEVER: Duration = Duration::from_secs(3600);

/// The payload limit of a broker with `small_payloads`, bytes.
pub(crate) const SMALL: usize = 2048;

/// A broker of one kind.
pub(crate) enum Broker {
    Memory(MemoryBus),
    Nats(NatsServer),
}

impl Broker {
    /// A connection that is up.
    pub(crate) async fn connect(&self) -> Arc<dyn Transport> {
        self.connect_counting().await.0
    }

    /// A connection that is up, and how many of its requests and subscriptions are open.
    pub(crate) async fn connect_counting(&self) -> (Arc<dyn Transport>, Box<dyn Fn() -> usize + Send>) {
        let (transport, count): (Arc<dyn Transport>, Box<dyn Fn() -> usize + Send>) = match self {
            Self::Memory(bus) => {
                let bus = bus.clone();
                (bus.connect(), Box::new(move || bus.subscriptions()))
            }
            Self::Nats(server) => {
                let transport = nats(server.url()).await;
                let counted = Arc::clone(&transport);
                (transport, Box::new(move || counted.pending_requests()))
            }
        };
        wait_until_connected(&*transport, 1).await;
        transport.barrier().await.expect("a barrier of a new connection");
        if let Self::Nats(_) = self {
            // The transport has a question of its own about each new connection: what the server refused of it.
            eventually("nothing is open", async || count() == 0).await;
        }
        (transport, count)
    }

    pub(crate) fn go_away(&mut self) {
        match self {
            Self::Memory(bus) => bus.set_online(false),
            Self::Nats(server) => server.kill(),
        }
    }

    pub(crate) fn reconnect(&mut self) {
        match self {
            Self::Memory(bus) => {
                bus.set_black_hole(false);
                bus.set_online(true);
            }
            Self::Nats(server) => server.restart(),
        }
    }

    /// The broker stops answering, but its connections stay.
    pub(crate) fn go_silent(&self) {
        match self {
            Self::Memory(bus) => bus.set_black_hole(true),
            Self::Nats(server) => server.freeze(),
        }
    }
}

/// A transport to the server at `url`, perhaps not connected yet.
pub(crate) async fn nats(url: String) -> Arc<NatsTransport> {
    NatsTransport::connect(NatsOptions::new(url, "test")).await.expect("a transport")
}

pub(crate) async fn within_limit(test: impl Future<Output = ()>) {
    // A barrier's own timeout is part of some tests.
    tokio::time::timeout(LIMIT + BARRIER_TIMEOUT, test).await.expect("the test ends in time");
}

pub(crate) async fn wait_until_connected(transport: &dyn Transport, generation: u64) {
    let mut watch = transport.connection();
    let up = watch.wait_for(|connection| connection.connected && connection.generation >= generation);
    tokio::time::timeout(LIMIT, up).await.expect("the connection comes up").expect("the transport lives");
}

pub(crate) async fn wait_until_away(transport: &dyn Transport) {
    let mut watch = transport.connection();
    let away = watch.wait_for(|connection| !connection.connected);
    tokio::time::timeout(LIMIT, away).await.expect("the loss is noticed").expect("the transport lives");
}

/// Waits until all that was published by the first of `transports` is where the others' readers find it: each barrier
/// is answered behind what the broker sent on that connection before.
pub(crate) async fn flush_all(transports: &[&Arc<dyn Transport>]) {
    for transport in transports {
        transport.barrier().await.expect("a barrier");
    }
}

/// What has arrived by now, without waiting.
pub(crate) fn received(subscription: &mut Subscription) -> Vec<Message> {
    let mut messages = Vec::new();
    // Unconstrained, since tokio would answer `Pending` every so often just to let others run.
    while let Some(Some(message)) = tokio::task::unconstrained(subscription.next()).now_or_never() {
        messages.push(message);
    }
    messages
}

pub(crate) async fn assert_all_closed(transport: &dyn Transport) {
    let mut messages = VecDeque::from([outgoing("late", "")]);
    assert_eq!(transport.publish(&mut messages).await, Err(TransportError::Closed));
    assert_eq!(messages.len(), 1);
    assert_eq!(transport.barrier().await, Err(TransportError::Closed));
    assert_eq!(transport.subscribe("late", None).await.unwrap_err(), TransportError::Closed);
    assert_eq!(transport.request("late", Bytes::new(), NEVER).await.unwrap_err(), TransportError::Closed);
    assert!(!transport.connection().borrow().connected);
}

pub(crate) fn outgoing(subject: &str, text: &str) -> Outgoing {
    Outgoing { subject: subject.into(), payload: Bytes::copy_from_slice(text.as_bytes()) }
}

pub(crate) fn text(message: &Message) -> String {
    String::from_utf8(message.payload.to_vec()).expect("text")
}

pub(crate) fn texts(messages: Vec<Message>) -> Vec<String> {
    messages.iter().map(text).collect()
}

pub(crate) fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
