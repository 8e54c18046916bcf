//! Somebody who talks to the service over a NATS connection of their own, in protobuf.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use orchestrator_service::{
    client::{Client, ClientOptions},
    transport::{
        Outgoing, Transport,
        nats::{NatsOptions, NatsTransport},
    },
    wire::{
        proto::{
            Code, OrchestratorCommand, Query, QueryReply, Reply, StateUpdate, Stats, SubscriptionCommand,
            orchestrator_command, query, subscription_command,
        },
        subject,
    },
};
use prost::Message as _;

use crate::{
    machine::LIMIT,
    messages::{get_state, get_stats, register_from, start},
};

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) transport: Arc<dyn Transport>,
}

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

    async fn ask<M: prost::Message + Default>(&self, subject: &str, message: &impl prost::Message) -> M {
        let payload = message.encode_to_vec().into();
        let answer = self.transport.request(subject, payload, LIMIT).await.expect("an answer");
        M::decode(answer.payload).expect("an answer of its kind")
    }

    pub(crate) async fn command(&self, command: orchestrator_command::Command) -> Reply {
        self.ask(subject::COMMAND, &command_message(command)).await
    }

    /// As [`Self::command`], and it is carried out.
    pub(crate) async fn done(&self, command: orchestrator_command::Command) -> StateUpdate {
        let reply = self.command(command).await;
        assert_eq!((reply.code(), &*reply.message), (Code::Ok, ""));
        reply.state.expect("a state")
    }

    pub(crate) async fn subscription(&self, command: subscription_command::Command) -> Reply {
        self.ask(subject::SUBSCRIPTION, &SubscriptionCommand { command: Some(command) }).await
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

    pub(crate) async fn query(&self, query: query::Query) -> QueryReply {
        let reply: QueryReply = self.ask(subject::QUERY, &Query { query: Some(query) }).await;
        assert_eq!((reply.code(), &*reply.message), (Code::Ok, ""));
        reply
    }

    pub(crate) async fn state(&self, id: &str) -> StateUpdate {
        self.query(get_state(id)).await.state.remove(0)
    }

    /// Of the whole service if `id` is empty.
    pub(crate) async fn stats(&self, id: &str) -> Stats {
        self.query(get_stats(id)).await.stats.expect("stats")
    }

    /// Sends without a reply subject and without waiting for anything but room, in this order.
    pub(crate) async fn tell(&self, messages: impl IntoIterator<Item = Outgoing>) {
        let mut messages: VecDeque<Outgoing> = messages.into_iter().collect();
        self.transport.publish(&mut messages).await.expect("published");
    }
}

fn command_message(command: orchestrator_command::Command) -> OrchestratorCommand {
    OrchestratorCommand { command: Some(command), ..Default::default() }
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
