//! What a gateway calls: typed commands and queries, registrations that keep themselves alive, streams of updates.
//!
//! Everything goes over a [`Transport`], to a service in another process or in this one: the client cannot tell. It
//! keeps no state of streams, and knows neither HTTP nor who its viewers are.
//!
//! ```no_run
//! use orchestrator_service::client::{Client, ClientOptions};
//! use orchestrator_service::transport::nats::{NatsOptions, NatsTransport};
//!
//! # async fn watch() -> Result<(), Box<dyn std::error::Error>> {
//! // Beside a service in the same process, and in tests, it is a `MemoryBus` that connects.
//! let transport = NatsTransport::connect(NatsOptions::new("nats://localhost:4222", "my-gateway")).await?;
//! let client = Client::new(transport, ClientOptions::default());
//! // Subscribe first, then register: what is published in between is in one of the two.
//! let mut updates = client.updates("morning-show").await?;
//! let viewer = client.register("morning-show", "viewer-7", None, 0).await?;
//! updates.seed(viewer.state());
//! println!("now: {:?}", viewer.state().current_scene);
//! // Two people who press at the same moment skip one scene, not two.
//! let current = viewer.state().current_scene.clone().unwrap_or_default();
//! client.skip_scene("morning-show").expected_scene(current).issued_by("ann").await?;
//! while let Some(update) = updates.next().await {
//!     println!("then: {:?}", update.current_scene);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `calls` | commands and queries |
//! | `registration` | the guard of a subscriber |
//! | `request`, `answer` | how often a request is sent, and what counts as its answer |
//! | `registration_table` | which registrations there are and what is to be asked for them: pure |
//! | `unregister_queue` | who is still to be unregistered |
//! | `batch` | how much goes into one message |
//! | `keeper` | the background task that asks |
//! | `liveness` | whether there is a service |
//! | `updates`, `plausible` | updates without old ones, and without those that cannot be true |
//! | `follow` | updates that pass a filter, followed again and again |
//! | `playout` | where a show is, computed from its configuration and its last update: pure |
//! | `service_time`, `clock_offset` | what the service's clock says; the arithmetic of it |
//! | `shared` | one task for all who share a subscription |
//! | `feeds` | one subscription to a partition's feed for all who follow its streams |

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

pub use self::{
    calls::{Accepted, Call, Command, Page, StreamConfig, SubscriberPage},
    clock_offset::ServiceTime,
    error::{ClientError, ErrorKind},
    liveness::{Absence, ServiceState},
    playout::{InvalidConfig, Playout, View},
    registration::{Registration, Standing},
    updates::{HighWaterMark, Received, UpdateStream, UpdatesFrom},
};
pub use crate::{
    transport::Connection,
    wire::{ClientId, Filter, StreamId, json, proto},
};

use self::{
    core::{Core, Lease, subscribe},
    updates::{Source, Subject},
};
use crate::{transport::Transport, wire::subject};

mod answer;
mod batch;
mod calls;
mod clock_offset;
mod core;
mod error;
mod feeds;
mod follow;
mod keeper;
mod liveness;
mod plausible;
mod playout;
mod random;
mod registration;
mod registration_table;
mod request;
mod service_time;
pub mod shared;
mod unregister_queue;
mod updates;

/// How a client behaves. The defaults fit the service's.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// How often each registration is confirmed: a third of the time after which the service takes it for stale.
    pub heartbeat_interval: Duration,
    /// How long one attempt of a request waits for its answer.
    pub attempt_timeout: Duration,
    /// How long a call takes at most, all attempts together.
    pub total_timeout: Duration,
    /// How long a call is tried again once the broker has said that no service listens, within the total timeout:
    /// enough for a service that is being restarted, or nothing for callers who would rather hear of it at once.
    pub absent_timeout: Duration,
    /// How long unregistering all may take at the end.
    pub close_timeout: Duration,
    /// Where updates are read: where the service publishes them.
    pub updates: UpdatesFrom,
    /// How many registrations are kept at most; more are refused.
    pub max_registrations: usize,
    /// How many unregisterings wait at most while the service is not reached; it finds out about more by staleness.
    pub max_unregisters: usize,
    /// What jitter, sessions and request ids are drawn from: the same seed and the same calls at the same times make the
    /// same requests, which a simulation needs. `None`: another for each client.
    pub seed: Option<u64>,
    /// The clock beside which epochs are judged. A simulation has one of its own.
    pub wall_clock: fn() -> SystemTime,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(2),
            total_timeout: Duration::from_secs(5),
            absent_timeout: Duration::from_secs(5),
            close_timeout: Duration::from_secs(2),
            updates: UpdatesFrom::default(),
            max_registrations: 1_000_000,
            max_unregisters: 100_000,
            seed: None,
            wall_clock: SystemTime::now,
        }
    }
}

/// A client of the orchestrator service, cheap to clone. Clones share one background task and its registrations.
#[derive(Debug, Clone)]
pub struct Client {
    lease: Arc<Lease>,
}

impl Client {
    /// A client over `transport`. It starts one background task, which ends with the last clone and registration.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, options: ClientOptions) -> Self {
        Self { lease: Arc::new(Lease::start(transport, options)) }
    }

    /// The updates of a stream from now on, whether the stream exists or not.
    ///
    /// From [subjects](UpdatesFrom::Subjects), each call is a subscription of its own: share it among viewers. From a
    /// [feed](UpdatesFrom::Feed), all that follow streams of one partition share one. A reader that is far behind skips
    /// updates and comes to the latest.
    ///
    /// An update in a higher epoch than before also lets this client register its viewers of the stream again, within a
    /// second: the service that plays it now does not know them.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an id that cannot be, `UNAVAILABLE` when the broker is away, [`ErrorKind::Denied`] when it
    /// refuses the subscription.
    pub async fn updates(&self, stream_id: &str) -> Result<UpdateStream, ClientError> {
        let id = StreamId::parse(stream_id).map_err(|error| ClientError::invalid(error.to_string()))?;
        let Core { transport, options, feeds, .. } = self.core();
        let timeout = options.total_timeout;
        let source = match options.updates {
            UpdatesFrom::Subjects => {
                Source::Subject(Subject::new(subscribe(&**transport, subject::updates(id).as_str(), timeout).await?))
            }
            UpdatesFrom::Feed => Source::Feed(feeds.follow(id, transport, timeout).await?),
        };
        Ok(UpdateStream::new(source, stream_id.to_owned(), self.lease.downgrade(), options.wall_clock))
    }

    /// The connection to the broker: a new generation means that updates may have been missed.
    #[must_use]
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.core().transport.connection()
    }

    /// Whether there is a service, to read or to wait for: found out within 3 s when it is killed, the broker goes or
    /// answers stop, and again when it is back. From the first call on, this client asks a small question about once a
    /// second, for all who watch together, until the last of its clones and registrations is gone; then the watch ends.
    ///
    /// A loss and a return are logged here, at most once in 30 s.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn service(&self) -> watch::Receiver<ServiceState> {
        self.lease.service()
    }

    /// Unregisters all registrations, waits for that at most [`ClientOptions::close_timeout`], and takes no new ones.
    /// Calls and update streams go on as long as the transport does.
    pub async fn close(&self) {
        self.core().close();
        let timeout = self.core().options.close_timeout + Duration::from_millis(100);
        let mut ended = self.core().ended.subscribe();
        if tokio::time::timeout(timeout, ended.wait_for(|ended| *ended)).await.is_err() {
            tracing::warn!("unregistering took too long; the service will notice when the rest go stale");
        }
    }

    /// A random number to tell one connection of a client from its others.
    #[must_use]
    pub fn random_session(&self) -> u64 {
        self.core().random.number()
    }

    fn core(&self) -> &Core {
        &self.lease
    }

    fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }
}

#[cfg(test)]
mod tests;
