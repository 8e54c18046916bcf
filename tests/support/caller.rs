//! Somebody who talks to the service over a connection of their own, in protobuf.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use orchestrator_service::{
    transport::{Message, Outgoing, Transport, TransportError},
    wire::{
        proto::{
            Code, OrchestratorCommand, Query, QueryReply, Reply, StateUpdate, Stats, SubscriptionCommand,
            orchestrator_command, query, subscription_command,
        },
        subject,
    },
};
use prost::Message as _;

use super::{
    messages::{get_state, get_stats},
    waiting::LIMIT,
};

/// Somebody who talks to the service.
#[derive(Debug, Clone)]
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
