//! Being a subscriber: a guard, kept alive in the background until it is dropped.

use std::{net::SocketAddr, sync::Arc};

use prost::Message as _;
use tokio::sync::watch;

use super::{
    Client, ClientError,
    book::Who,
    calls::{accepted, decode_reply},
    core::Lease,
};
use crate::wire::{
    ClientId, StreamId,
    proto::{self, Code, StateUpdate, subscription_command::Command},
    subject,
};

/// Whether the service knows a registration, as far as this client has heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Registered.
    Registered {
        /// 1 at first, one more each time it was registered again: what was published in between may be missed.
        round: u64,
    },
    /// The service does not know it, and said this when it was last asked; it is asked again.
    Lost(Code),
    /// The client was closed.
    Closed,
}

/// A subscriber of a stream, from [`Client::register`] until it is dropped.
///
/// In between it is kept alive with heartbeats and registered again when the service has forgotten it. The heartbeats
/// say that this guard lives, not that the viewer does: drop it when the viewer is gone.
#[derive(Debug)]
pub struct Registration {
    lease: Arc<Lease>,
    key: usize,
    state: StateUpdate,
    client_id: Box<str>,
    session: u64,
    standing: watch::Receiver<Standing>,
}

impl Registration {
    /// The stream's state at the time of registering. Updates with a greater epoch or sequence are news to it.
    #[must_use]
    pub fn state(&self) -> &StateUpdate {
        &self.state
    }

    /// The client that is registered.
    #[must_use]
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// Which of the client's connections this is.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Whether the service knows it.
    #[must_use]
    pub fn standing(&self) -> Standing {
        *self.standing.borrow()
    }

    /// The same, to wait for.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.lease.book().remove(self.key);
        self.lease.wake.notify_one();
    }
}

impl Client {
    /// Registers a viewer with a stream, which plays while it has one.
    ///
    /// `session` tells several connections of one client apart; the same (stream, client, session) registered twice is
    /// one subscriber, which stays until both guards are dropped. Subscribe to [`Client::updates`] before, and seed
    /// it with [`Registration::state`]: then no update is missed in between.
    ///
    /// # Errors
    /// `STREAM_NOT_FOUND`, `INVALID_ARGUMENT`, `RESOURCE_EXHAUSTED`, or `UNAVAILABLE` when nothing answers. Should the
    /// service have registered it all the same, because only the answer was lost, it is unregistered again.
    pub async fn register(
        &self,
        stream_id: &str,
        client_id: &str,
        source_addr: Option<SocketAddr>,
        session: u64,
    ) -> Result<Registration, ClientError> {
        StreamId::parse(stream_id).map_err(|error| ClientError::invalid(error.to_string()))?;
        ClientId::parse(client_id).map_err(|error| ClientError::invalid(error.to_string()))?;
        let core = self.core();
        let who = Who { stream_id: stream_id.into(), client_id: client_id.into(), source_addr, session };
        let command = Command::Register(proto::Register {
            stream_id: stream_id.to_owned(),
            client_id: client_id.to_owned(),
            source_addr: who.source_text(),
            session,
        });
        let payload = proto::SubscriptionCommand { command: Some(command) }.encode_to_vec();

        let mut attempt = Attempt::begin(self.lease(), who)?;
        let answer = core.ask_until_answered(subject::SUBSCRIPTION, payload).await;
        let reply = match answer.and_then(decode_reply).and_then(accepted) {
            Ok(reply) => reply,
            Err(error) => {
                attempt.is_owed = !error.executed_nothing();
                return Err(error);
            }
        };
        let (handle, Some(state)) = (reply.handle, reply.state) else {
            return Err(ClientError::undecodable("the snapshot is missing"));
        };
        if handle == 0 {
            return Err(ClientError::undecodable("the handle is missing"));
        }
        attempt.finish(handle, state)
    }
}

/// A registration asked for: unless it is finished, the service may know a subscriber that nobody holds.
struct Attempt<'a> {
    lease: &'a Arc<Lease>,
    who: Who,
    is_owed: bool,
}

impl<'a> Attempt<'a> {
    fn begin(lease: &'a Arc<Lease>, who: Who) -> Result<Self, ClientError> {
        lease.book().begin(&who)?;
        Ok(Self { lease, who, is_owed: true })
    }

    fn finish(mut self, handle: u64, state: StateUpdate) -> Result<Registration, ClientError> {
        let (client_id, session) = (self.who.client_id.clone(), self.who.session);
        let (inserted, risen) = {
            let mut book = self.lease.book();
            (book.insert(self.who.clone(), handle, state.epoch), book.has_risen())
        };
        let (key, standing) = inserted?;
        self.is_owed = false;
        if risen {
            self.lease.wake.notify_one();
        }
        Ok(Registration { lease: Arc::clone(self.lease), key, state, client_id, session, standing })
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.lease.book().end(&self.who, self.is_owed) {
            self.lease.wake.notify_one();
        }
    }
}
