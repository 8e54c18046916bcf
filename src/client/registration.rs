//! Being a subscriber: a guard, kept alive in the background until it is dropped.

use std::{net::SocketAddr, sync::Arc};

use prost::Message as _;
use tokio::{
    sync::{oneshot, watch},
    time::timeout_at,
};

use super::{
    Client, ClientError, ErrorKind,
    answer::Expected,
    calls::accepted,
    core::{Core, Lease},
    plausible,
    registration_table::{Begun, Name, Outcome, source_text},
    request::{Budget, Request},
};
use crate::wire::{
    ClientId, StreamId,
    proto::{self, Code, Reply, StateUpdate, subscription_command::Command},
    subject,
};

/// Whether the service knows a registration, as far as this client has heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Registered.
    Registered {
        /// 1 at first, one more each time it was registered again: what was published in between may be missed. A guard
        /// that joins another of the same subscriber begins where that is.
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
///
/// The last guard of a subscriber unregisters it. Should another client have registered the same one since, this one
/// leaves it alone, as far as it has found out: see `registration_table`. Where both hold it, whoever registered last
/// decides; the other is told with its next heartbeat that it is gone, and registers again.
#[derive(Debug)]
pub struct Registration {
    /// Dropped before the lease, which may be the last.
    held: Held,
    state: StateUpdate,
    client_id: Box<str>,
    session: u64,
    _lease: Arc<Lease>,
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
        *self.held.standing.borrow()
    }

    /// The same, to wait for.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Standing> {
        self.held.standing.clone()
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
        let name = || Name { stream_id: stream_id.into(), client_id: client_id.into(), session };
        let core = self.lease().core();
        let budget = core.budget();
        let attempt = Attempt::begin(core, name, source_addr, budget).await?;
        let command = Command::Register(proto::Register {
            stream_id: stream_id.to_owned(),
            client_id: client_id.to_owned(),
            source_addr: source_text(source_addr),
            session,
            ..Default::default()
        });
        let payload = proto::SubscriptionCommand { command: Some(command) }.encode_to_vec();

        // It goes on when the caller does not: whoever is registered in the end is unregistered by its handle, which meets
        // nobody else.
        let (caller, registered) = oneshot::channel();
        tokio::spawn(attempt.run(stream_id.to_owned(), payload, budget, caller));
        let (held, state) = registered.await.map_err(|_| ClientError::closed())??;
        let client_id = client_id.into();
        Ok(Registration { held, state, client_id, session, _lease: Arc::clone(self.lease()) })
    }
}

/// A place in the table, given up when it is dropped.
#[derive(Debug)]
struct Held {
    core: Arc<Core>,
    key: usize,
    standing: watch::Receiver<Standing>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.core.table().release(self.key);
        self.core.wake.notify_one();
    }
}

/// A registration under way: however it ends, the table is told.
struct Attempt {
    core: Arc<Core>,
    /// `None` once the table was told.
    key: Option<usize>,
    /// What became of it, as far as it is known.
    outcome: Outcome,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // Cancelled before anything was sent, or ended by the runtime.
        self.tell();
    }
}

impl Attempt {
    /// Waits until nothing else is in flight for the same subscriber.
    async fn begin(
        core: &Arc<Core>,
        name: impl Fn() -> Name,
        source_addr: Option<SocketAddr>,
        budget: Budget,
    ) -> Result<Self, ClientError> {
        loop {
            let begun = core.table().begin(name(), source_addr)?;
            match begun {
                Begun::Now(key) => {
                    return Ok(Self { core: Arc::clone(core), key: Some(key), outcome: Outcome::NotExecuted });
                }
                Begun::Later(idle) => {
                    if timeout_at(budget.until(), idle).await.is_err() {
                        let message = "another request for the same subscriber has no answer yet";
                        return Err(ClientError::new(ErrorKind::Timeout, message).with_reached_none(true));
                    }
                }
            }
        }
    }

    async fn run(
        mut self,
        stream_id: String,
        payload: Vec<u8>,
        budget: Budget,
        caller: oneshot::Sender<Result<(Held, StateUpdate), ClientError>>,
    ) {
        let request = Request::new(subject::SUBSCRIPTION, payload, Expected::Stream(&stream_id));
        // Should this end here, nobody knows what became of it.
        self.outcome = Outcome::Unknown;
        let answer = self.core.ask_while(&request, budget, || !caller.is_closed()).await;
        let result = answer.and_then(accepted).and_then(|reply| self.believe(reply));
        self.outcome = match &result {
            Ok(reply) if reply.handle != 0 => {
                let epoch = reply.state.as_ref().map_or(0, |state| state.epoch);
                Outcome::Registered { handle: reply.handle, epoch }
            }
            Err(error) if error.reached_none() => Outcome::NotExecuted,
            // Said of the first attempt, or of one that had been executed before: then it would have been accepted.
            Err(error) if error.is_refusal() => Outcome::Refused,
            Ok(_) | Err(_) => Outcome::Unknown,
        };
        let held = self.tell();
        // A caller that is gone drops what it would have held.
        let _ = caller.send(result.and_then(|reply| {
            if reply.handle == 0 {
                return Err(ClientError::undecodable("the handle is missing"));
            }
            let held = held.ok_or_else(ClientError::closed)?;
            Ok((held, reply.state.ok_or_else(|| ClientError::undecodable("the snapshot is missing"))?))
        }));
    }

    /// Its epoch decides who is registered again, so it has to be one that can be true.
    fn believe(&self, reply: Reply) -> Result<Reply, ClientError> {
        let now = (self.core.options.wall_clock)();
        match reply.state.as_ref().and_then(|state| plausible::doubt(state, now)) {
            Some(why) => Err(ClientError::undecodable(format_args!("the snapshot cannot be true: {why}"))),
            None => Ok(reply),
        }
    }

    /// Tells the table what became of it. If it was registered, gives what holds it, unless the client was closed meanwhile.
    fn tell(&mut self) -> Option<Held> {
        let key = self.key.take()?;
        let standing = self.core.table().end(key, self.outcome);
        self.core.wake.notify_one();
        Some(Held { core: Arc::clone(&self.core), key, standing: standing? })
    }
}
