//! A broker, services on it, and somebody who talks to them in bytes.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use futures_util::FutureExt as _;
use orchestrator_service::{
    service::{Service, ServiceSettings},
    transport::{
        Message, Subscription, Transport,
        memory::MemoryBus,
        nats::{NatsOptions, NatsTransport},
    },
    wire::proto::{Cause, Code, Mode, Reply, StateUpdate},
};
use prost::Message as _;

pub(crate) use crate::support::{
    caller::{Caller, accepted, command_message, say, say_subscription},
    waiting::{LIMIT, eventually, wall_ms},
};
use crate::support::{
    nats_server::{NatsServer, ServerOptions},
    proxy::Proxy,
};

/// Larger than what the service takes, so that the service and not the broker refuses.
const MAX_PAYLOAD: usize = 4 << 20;

pub(crate) async fn within_limit(test: impl Future<Output = ()>) {
    tokio::time::timeout(3 * LIMIT, test).await.expect("the test ends in time");
}

/// A broker of one kind.
#[allow(clippy::large_enum_variant, reason = "there are few of them, one a test")]
pub(crate) enum Testbed {
    Memory(MemoryBus),
    /// Services reach the server through the proxy, callers directly.
    Nats(NatsServer, Proxy),
}

impl Testbed {
    pub(crate) fn memory() -> Self {
        Self::Memory(MemoryBus::with_max_payload(MAX_PAYLOAD))
    }

    pub(crate) async fn nats() -> Self {
        Self::nats_that_takes(MAX_PAYLOAD).await
    }

    /// A server that takes messages of so many bytes.
    pub(crate) async fn nats_that_takes(max_payload: usize) -> Self {
        let server = NatsServer::start_with(ServerOptions { max_payload: Some(max_payload), ..Default::default() });
        let proxy = Proxy::to(server.url().replace("nats://", "")).await;
        Self::Nats(server, proxy)
    }

    /// A service with three shards, ready, and a caller.
    pub(crate) async fn with_service(&self) -> (Service, Caller) {
        (self.service(settings()).await, self.caller().await)
    }

    /// A service that has its connections.
    pub(crate) async fn service(&self, settings: ServiceSettings) -> Service {
        let (service, ingress) = self.service_in_outage(settings).await;
        eventually("the service is ready", async || service.ready().is_ok()).await;
        ingress.barrier().await.expect("the subscription is known to the broker");
        service
    }

    /// A service that may have no connection yet, and where its requests come in.
    pub(crate) async fn service_in_outage(&self, settings: ServiceSettings) -> (Service, Arc<dyn Transport>) {
        let ingress = self.connect_service().await;
        let publishers = vec![self.connect_service().await, self.connect_service().await];
        (Service::start(settings, Arc::clone(&ingress), publishers).await.expect("the service starts"), ingress)
    }

    async fn connect_service(&self) -> Arc<dyn Transport> {
        match self {
            Self::Memory(bus) => bus.connect(),
            Self::Nats(_, proxy) => nats(proxy.url()).await,
        }
    }

    /// Somebody on a connection of their own, which is up.
    pub(crate) async fn caller(&self) -> Caller {
        let transport: Arc<dyn Transport> = match self {
            Self::Memory(bus) => bus.connect(),
            Self::Nats(server, _) => nats(server.url()).await,
        };
        wait_until_connected(&*transport).await;
        Caller { transport }
    }

    /// Services lose their connections. Over NATS callers keep theirs.
    pub(crate) fn cut(&self) {
        match self {
            Self::Memory(bus) => bus.set_online(false),
            Self::Nats(_, proxy) => proxy.set_open(false),
        }
    }

    /// Services can connect again.
    pub(crate) fn mend(&self) {
        match self {
            Self::Memory(bus) => bus.set_online(true),
            Self::Nats(_, proxy) => proxy.set_open(true),
        }
    }
}

/// Three shards, and everything else by default.
pub(crate) fn settings() -> ServiceSettings {
    ServiceSettings { shards: 3, ..ServiceSettings::default() }
}

async fn nats(url: String) -> Arc<NatsTransport> {
    NatsTransport::connect(NatsOptions::new(url, "test")).await.expect("a transport")
}

pub(crate) async fn wait_until_connected(transport: &dyn Transport) {
    let mut watch = transport.connection();
    let up = watch.wait_for(|connection| connection.connected);
    tokio::time::timeout(LIMIT, up).await.expect("the connection comes up").expect("the transport lives");
}

impl Caller {
    /// Follows a stream's updates, from now on.
    pub(crate) async fn updates(&self, id: &str) -> Updates {
        Updates { messages: self.listen(&format!("stream.{id}.updates")).await, seen: BTreeMap::new(), repeats: 0 }
    }

    pub(crate) async fn listen(&self, pattern: &str) -> Subscription {
        let subscription = self.transport.subscribe(pattern, None).await.expect("a subscription");
        self.transport.barrier().await.expect("the broker knows of it");
        subscription
    }
}

/// Asserts that something was refused with this code, and that the message says all of `words`.
pub(crate) fn refused(reply: &Reply, code: Code, words: &[&str]) {
    assert_eq!(reply.code(), code, "{:?}", reply.message);
    assert_eq!(reply.state, None, "a refusal has no state");
    for word in words {
        assert!(reply.message.contains(word), "{word:?} in {:?}", reply.message);
    }
}

/// A stream's updates as one reader sees them.
pub(crate) struct Updates {
    messages: Subscription,
    /// By epoch and sequence.
    seen: BTreeMap<(u64, u64), StateUpdate>,
    /// How many came a second time.
    pub(crate) repeats: usize,
}

impl Updates {
    /// The next update.
    pub(crate) async fn next(&mut self) -> StateUpdate {
        loop {
            let message = tokio::time::timeout(LIMIT, self.messages.next()).await.expect("an update").expect("open");
            if let Some(update) = self.take(&message) {
                return update;
            }
        }
    }

    /// All updates up to and with the first one like this.
    pub(crate) async fn until(&mut self, is_last: impl Fn(&StateUpdate) -> bool) -> Vec<StateUpdate> {
        let mut updates = Vec::new();
        loop {
            let update = self.next().await;
            updates.push(update.clone());
            if is_last(&update) {
                return updates;
            }
        }
    }

    /// What has arrived by now, without waiting.
    pub(crate) fn arrived(&mut self) -> Vec<StateUpdate> {
        let mut updates = Vec::new();
        // Unconstrained, since tokio would answer `Pending` every so often just to let others run.
        while let Some(Some(message)) = tokio::task::unconstrained(self.messages.next()).now_or_never() {
            updates.extend(self.take(&message));
        }
        updates
    }

    /// Nothing for what was seen before: a change comes again when the broker may not have had it, and is the same then.
    fn take(&mut self, message: &Message) -> Option<StateUpdate> {
        let update = StateUpdate::decode(message.payload.clone()).expect("an update");
        assert_eq!(&*message.subject, format!("stream.{}.updates", update.stream_id));
        let key = (update.epoch, update.sequence);
        if let Some(before) = self.seen.get(&key) {
            assert_eq!(before, &update, "one sequence, one update");
            self.repeats += 1;
            return None;
        }
        let newest = self.seen.last_key_value().map(|(newest, _)| *newest);
        assert!(newest < Some(key), "{key:?} comes behind {newest:?}");
        self.seen.insert(key, update.clone());
        Some(update)
    }
}

/// Asserts that the sequences grow by one.
pub(crate) fn assert_gapless(updates: &[StateUpdate]) {
    for pair in updates.windows(2) {
        assert_eq!(pair[1].sequence, pair[0].sequence + 1, "{pair:#?}");
    }
}

/// Mode and cause of each.
pub(crate) fn outline(updates: &[StateUpdate]) -> Vec<(Mode, Cause)> {
    updates.iter().map(|update| (update.mode(), update.cause())).collect()
}
