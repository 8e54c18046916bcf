//! What callers do here beside talking: they connect, and play streams.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use orchestrator_service::{
    client::{Client, ClientOptions},
    transport::nats::{NatsOptions, NatsTransport},
    wire::proto::{Code, Reply, StateUpdate, subscription_command},
};

use crate::support::{
    caller::Caller,
    messages::{register_from, start},
    waiting::LIMIT,
};

impl Caller {
    /// On a connection that is up.
    pub(crate) async fn connect(url: &str) -> Self {
        let transport = NatsTransport::connect(NatsOptions::new(url, "test")).await.expect("a transport");
        let caller = Self { transport };
        caller.until_connected().await;
        caller
    }

    /// The connection is up, and all that was subscribed to is known to the broker.
    pub(crate) async fn until_connected(&self) {
        let deadline = Instant::now() + LIMIT;
        while let Err(error) = self.transport.barrier().await {
            assert!(Instant::now() < deadline, "the caller is not connected: {error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A client on the same connection, which heartbeats every second.
    pub(crate) fn client(&self) -> Client {
        let options = ClientOptions { heartbeat_interval: Duration::from_secs(1), ..ClientOptions::default() };
        Client::new(Arc::clone(&self.transport), options)
    }

    /// As [`Self::subscription`], and it is carried out.
    pub(crate) async fn joined(&self, command: subscription_command::Command) -> Reply {
        let reply = self.subscription(command).await;
        assert_eq!((reply.code(), &*reply.message), (Code::Ok, ""));
        reply
    }

    /// Starts a stream and registers a viewer, so that it plays; the state when it began.
    pub(crate) async fn play(
        &self,
        id: &str,
        config: orchestrator_service::wire::proto::OrchestratorConfig,
    ) -> StateUpdate {
        self.done(start(id, config)).await;
        self.joined(register_from(id, "viewer", "", 0)).await.state.expect("a state")
    }
}
