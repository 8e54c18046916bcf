//! A broker, services on it, and somebody who talks to them in bytes.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use orchestrator_service::{
    service::{Service, ServiceSettings},
    transport::{
        Message, Outgoing, Subscription, Transport, TransportError,
        memory::MemoryBus,
        nats::{NatsOptions, NatsTransport},
    },
    wire::{
        proto::{
            Cause, Code, Mode, OrchestratorCommand, Query, QueryReply, Reply, StateUpdate, Stats, SubscriptionCommand,
            orchestrator_command, query, subscription_command,
        },
        subject,
    },
};
use prost::Message as _;

use crate::{
    messages::{get_state, get_stats},
    proxy::Proxy,
    support::nats_server::{NatsServer, ServerOptions},
};

/// How long anything may take that is expected to happen; generous, for a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Larger than what the service takes, so that the service and not the broker refuses.
const MAX_PAYLOAD: usize = 4 << 20;

pub(crate) async fn within_limit(test: impl Future<Output = ()>) {
    tokio::time::timeout(6 * LIMIT, test).await.expect("the test ends in time");
}

/// A broker of one kind.
pub(crate) enum World {
    Memory(MemoryBus),
    /// Services reach the server through the proxy, callers directly.
    Nats(NatsServer, Proxy),
}

impl World {
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
        eventually("the service is ready", || service.ready().is_ok()).await;
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

/// For what has no event to wait for.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The wall clock, ms since 1970.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

/// Somebody who talks to the service.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) transport: Arc<dyn Transport>,
}

impl Caller {
    /// Sends bytes and waits for the answer.
    pub(crate) async fn ask_raw(&self, subject: &str, payload: impl Into<Bytes>) -> Message {
        self.transport.request(subject, payload.into(), LIMIT).await.expect("an answer")
    }

    async fn ask<M: prost::Message + Default>(&self, subject: &str, message: &impl prost::Message) -> M {
        let answer = self.ask_raw(subject, message.encode_to_vec()).await;
        M::decode(answer.payload).expect("an answer of its kind")
    }

    pub(crate) async fn send(&self, message: &OrchestratorCommand) -> Reply {
        self.ask(subject::COMMAND, message).await
    }

    pub(crate) async fn command(&self, command: orchestrator_command::Command) -> Reply {
        self.send(&command_message(command)).await
    }

    /// As [`Self::command`], and it is carried out.
    pub(crate) async fn done(&self, command: orchestrator_command::Command) -> StateUpdate {
        accepted(self.command(command).await)
    }

    pub(crate) async fn subscription(&self, command: subscription_command::Command) -> Reply {
        self.ask(subject::SUBSCRIPTION, &SubscriptionCommand { command: Some(command) }).await
    }

    pub(crate) async fn query(&self, query: query::Query) -> QueryReply {
        self.ask(subject::QUERY, &Query { query: Some(query) }).await
    }

    pub(crate) async fn state(&self, id: &str) -> StateUpdate {
        let QueryReply { code, message, mut state, .. } = self.query(get_state(id)).await;
        assert_eq!((code, state.len()), (Code::Ok as i32, 1), "{message}");
        state.remove(0)
    }

    /// Of the whole service if `id` is empty.
    pub(crate) async fn stats(&self, id: &str) -> Stats {
        let QueryReply { code, message, stats, .. } = self.query(get_stats(id)).await;
        assert_eq!(code, Code::Ok as i32, "{message}");
        stats.expect("stats")
    }

    /// Sends without a reply subject and without waiting, in this order.
    pub(crate) async fn tell(&self, messages: impl IntoIterator<Item = Outgoing>) {
        self.try_tell(messages).await.expect("published");
    }

    pub(crate) async fn try_tell(&self, messages: impl IntoIterator<Item = Outgoing>) -> Result<(), TransportError> {
        let mut messages: VecDeque<Outgoing> = messages.into_iter().collect();
        self.transport.publish(&mut messages).await
    }

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

/// A command as it is published.
pub(crate) fn say(command: orchestrator_command::Command) -> Outgoing {
    Outgoing { subject: subject::COMMAND.into(), payload: command_message(command).encode_to_vec().into() }
}

/// A subscription command as it is published.
pub(crate) fn say_subscription(command: subscription_command::Command) -> Outgoing {
    let payload = SubscriptionCommand { command: Some(command) }.encode_to_vec().into();
    Outgoing { subject: subject::SUBSCRIPTION.into(), payload }
}

pub(crate) fn command_message(command: orchestrator_command::Command) -> OrchestratorCommand {
    OrchestratorCommand { command: Some(command), ..Default::default() }
}

/// The state in the answer to something that was carried out.
pub(crate) fn accepted(reply: Reply) -> StateUpdate {
    assert_eq!((reply.code(), &*reply.message), (Code::Ok, ""));
    let state = reply.state.expect("a state");
    assert_eq!((reply.stream_id, reply.revision), (state.stream_id.clone(), state.revision));
    state
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
