//! The transport over core NATS: one connection by async-nats, with the promises of [`Transport`] added to it.
//!
//! What async-nats leaves open, and what is done about it here:
//!
//! | the client | here |
//! |---|---|
//! | queues in an outage, then waits without end | the state is looked at first; a wait ends with the connection (`core`) |
//! | reports losses as events that can be lost | they only wake a reader of the client's own state (`link`) |
//! | so are most of its reports of dropped messages | what is taken is counted and compared with what arrived (`tally`) |
//! | tells refusals as texts, late or never | they are read (`server_error`) and brought to who caused them (`events`) |
//! | leaves it at that | what was refused is tried again (`subscriptions`, `publish_gate`, `upkeep`) |
//! | logs URLs, reads a credentials file once | it gets neither: logins are told it at each attempt (`options`) |
//! | keeps an entry for each request that is never answered | requests go by an inbox of ours that forgets them (`inbox`) |
//! | flushes as far as the local socket | a barrier is a round trip to that inbox |
//! | goes on retrying in the background whatever happens | a closed transport stops trying |
//!
//! It does not know what the bytes mean, nor who keeps what has to be sent again.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use self::{core::Core, events::Shared, inbox::Inbox, link::Link, options::client_options, servers::Servers};
use super::{Accept, Connection, Denied, Message, Outgoing, Subscription, Transport, TransportError};
use crate::subject::{check_pattern, check_queue};

pub use self::{
    log_limit::LogLimit,
    options::{NatsError, NatsOptions},
};

mod core;
mod credentials;
mod events;
mod inbox;
mod link;
mod log_limit;
mod options;
mod publish_gate;
mod server_error;
mod servers;
mod source;
mod subscriptions;
mod tally;
mod upkeep;

/// How long closing may take, all steps together; a service that is told to stop has a few seconds in all.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the client logs beside what is logged here, as a filter of logs: its connector repeats with each attempt what
/// [`LogLimit`] lets pass once in a while.
pub const QUIET_LOGS: &str = "async_nats::connector=off";

/// A connection to a NATS server. Dropping it closes it without waiting.
pub struct NatsTransport {
    core: Arc<Core>,
    tasks: [JoinHandle<()>; 3],
}

impl NatsTransport {
    /// Makes a transport that connects in the background, for as long as it takes.
    ///
    /// Must be called within a tokio runtime.
    pub async fn connect(options: NatsOptions) -> Result<Arc<Self>, NatsError> {
        options.check().await?;
        let servers = Servers::parse(&options.url)?;
        let link = Link::new(servers.to_string(), options.name.clone());
        // Nobody who does not hear of it can guess it.
        let inbox = Inbox::new(format!("_INBOX.{}", uuid::Uuid::new_v4().simple()));
        let shared = Arc::new(Shared::new(link, inbox, options.log_limit.clone()));
        let client = client_options(&options, servers.login, &shared)
            .connect(servers.addresses)
            .await
            .map_err(|error| NatsError::Client(error.into()))?;
        let core = Arc::new(Core { client, shared });
        let answers = core.open_inbox().await.map_err(|error| NatsError::Client(error.into()))?;
        let (watching, answering) = (Arc::clone(&core), Arc::clone(&core.shared));
        let tasks = [
            tokio::spawn(async move { watching.shared.link.keep_watching(&watching.client).await }),
            tokio::spawn(async move { answering.inbox.hand_out(answers).await }),
            tokio::spawn(upkeep::keep(Arc::clone(&core))),
        ];
        Ok(Arc::new(Self { core, tasks }))
    }

    /// How many requests and barriers wait for their answers.
    pub fn pending_requests(&self) -> usize {
        self.core.shared.inbox.len()
    }

    /// How many subscriptions are held or being made, the transport's own inbox among them.
    pub fn subscriptions(&self) -> usize {
        self.core.shared.subscriptions.len()
    }

    /// Ends what a drained client has not ended by itself. Does no harm when repeated.
    fn close_hard(&self) {
        let Shared { link, inbox, .. } = &*self.core.shared;
        link.cut_subscriptions();
        link.show_closed();
        for task in &self.tasks {
            task.abort();
        }
        inbox.clear();
    }
}

impl Transport for NatsTransport {
    fn publish<'a>(&'a self, messages: &'a mut VecDeque<Outgoing>) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(self.core.publish(messages))
    }

    fn barrier(&self) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(self.core.barrier())
    }

    fn subscribe<'a>(
        &'a self,
        subject: &'a str,
        queue: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Subscription, TransportError>> {
        Box::pin(async move {
            check_pattern(subject)?;
            queue.map_or(Ok(()), check_queue)?;
            let Shared { link, subscriptions, .. } = &*self.core.shared;
            if link.is_closing() {
                return Err(TransportError::Closed);
            }
            let subscription = subscriptions.enter(subject, queue, self.core.source(), link.cut().boxed());
            match subscriptions.ask_for(&subscription.entry).await {
                Ok(outcome) => outcome.map(|()| Subscription::new(subscription)),
                // Nobody makes it any more.
                Err(_) => Err(TransportError::Closed),
            }
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
            match timeout(limit, self.core.ask(subject, payload, accept)).await {
                Ok(answer) => answer,
                Err(_) => Err(TransportError::Timeout(limit)),
            }
        })
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.core.shared.link.watch()
    }

    fn denied(&self) -> watch::Receiver<Denied> {
        self.core.shared.denied.subscribe()
    }

    fn max_payload(&self) -> Option<usize> {
        // The client says 1 MiB before it knows.
        let connection = self.core.shared.link.refresh(&self.core.client);
        (connection.generation > 0).then(|| self.core.client.max_payload())
    }

    fn dropped(&self) -> u64 {
        self.core.shared.tally.lost()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let (core, link) = (&self.core, &self.core.shared.link);
            let deadline = Instant::now() + CLOSE_TIMEOUT;
            let drained = match core.check_link() {
                Ok(generation) if link.begin_closing() => {
                    timeout_at(deadline, core.drain(generation)).await.is_ok_and(|drained| drained.is_ok())
                }
                // Another caller is at it.
                Ok(_) | Err(TransportError::Closed) => timeout_at(deadline, link.ended()).await.is_ok(),
                Err(_) => !link.begin_closing(),
            };
            if !drained {
                tracing::warn!(url = %link.url, "closed without the broker's confirmation that all was sent");
            }
            self.close_hard();
        })
    }
}

impl Drop for NatsTransport {
    fn drop(&mut self) {
        self.core.shared.link.begin_closing();
        self.close_hard();
    }
}

impl fmt::Debug for NatsTransport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("NatsTransport")
            .field("url", &self.core.shared.link.url)
            .field("connection", &*self.core.shared.link.watch().borrow())
            .finish_non_exhaustive()
    }
}
