//! What all clones of a client, its registrations and its background task share.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
};

use super::{
    ClientError, ClientOptions, ErrorKind, ServiceState, feeds::Feeds, keeper, liveness, random::Random,
    registration_table::RegistrationTable, service_time::ServiceClock,
};
use crate::transport::{Subscription, Transport};

/// The shared part. The background task holds it too, so it says nothing about whether anybody is left.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) options: ClientOptions,
    table: Mutex<RegistrationTable>,
    pub(super) feeds: Feeds,
    pub(super) random: Random,
    /// Tells the background task that the table has something new for it.
    pub(super) wake: Notify,
    /// Whether there is a service: kept by the task that a [`Lease`] starts when it is first asked for.
    pub(super) service: watch::Sender<ServiceState>,
    /// How often it was there again.
    pub(super) returns: Arc<Returns>,
    pub(super) clock: ServiceClock,
    /// True when the background task has ended.
    pub(super) ended: watch::Sender<bool>,
}

impl Core {
    /// The registrations. Held for a look or a change, never across an await.
    pub(super) fn table(&self) -> MutexGuard<'_, RegistrationTable> {
        // A panic in one holder is a bug there; the others' registrations must not fall with it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream was seen in this epoch: whoever is registered in a lower one is registered again soon.
    pub(super) fn see(&self, stream_id: &str, epoch: u64) {
        let risen = {
            let mut table = self.table();
            table.see(stream_id, epoch);
            table.has_risen()
        };
        if risen {
            self.wake.notify_one();
        }
    }

    /// A stream was seen to have nobody who watches it: whoever is registered finds out whether that is so.
    pub(super) fn see_unwatched(&self, stream_id: &str) {
        self.table().see_unwatched(stream_id);
        self.wake.notify_one();
    }

    /// Unregisters all and lets the background task end.
    pub(super) fn close(&self) {
        self.table().close();
        self.wake.notify_one();
    }
}

/// Counts something for those who wait for the next time. A watch would wake them in an order that chance decides, and a
/// run of a client could not be repeated.
#[derive(Debug, Default)]
pub(super) struct Returns {
    count: AtomicU64,
    changed: Notify,
}

impl Returns {
    /// It has happened again.
    pub(super) fn count_one(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// How often it has happened.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The count, once it is not `seen` any more.
    pub(super) async fn next(&self, seen: u64) -> u64 {
        loop {
            // Before the look: whatever is counted behind it wakes this.
            let changed = self.changed.notified();
            if self.count() != seen {
                return self.count();
            }
            changed.await;
        }
    }
}

/// What clients and registrations hold; with the last of them the background task ends.
#[derive(Debug)]
pub(super) struct Lease {
    core: Arc<Core>,
    /// The task that asks whether there is a service.
    prober: OnceLock<AbortHandle>,
}

impl Lease {
    /// Starts the background task.
    pub(super) fn start(transport: Arc<dyn Transport>, options: ClientOptions) -> Self {
        let table = Mutex::new(RegistrationTable::new(options.max_registrations, options.max_unregisters));
        let random = Random::new(options.seed);
        let (feeds, wake, ended) = (Feeds::default(), Notify::new(), watch::Sender::new(false));
        let (service, returns, clock) =
            (watch::Sender::new(ServiceState::Unknown), Arc::default(), ServiceClock::new());
        let core = Arc::new(Core { transport, options, table, feeds, random, wake, service, returns, clock, ended });
        let ending = Ending(Arc::clone(&core));
        tokio::spawn(async move {
            keeper::run(Arc::clone(&ending.0)).await;
        });
        Self { core, prober: OnceLock::new() }
    }

    /// Whether there is a service: asked from the first call on.
    pub(super) fn service(&self) -> watch::Receiver<ServiceState> {
        self.prober.get_or_init(|| tokio::spawn(liveness::run(Arc::clone(&self.core))).abort_handle());
        self.core.service.subscribe()
    }

    /// The shared part, for what may go on when the last clone is gone.
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// What does not keep the background task, nor the transport.
    pub(super) fn downgrade(&self) -> Weak<Core> {
        Arc::downgrade(&self.core)
    }
}

/// Subscribes within `timeout`.
pub(super) async fn subscribe(
    transport: &dyn Transport,
    subject: &str,
    timeout: Duration,
) -> Result<Subscription, ClientError> {
    match tokio::time::timeout(timeout, transport.subscribe(subject, None)).await {
        Ok(subscribed) => Ok(subscribed?),
        Err(_) => Err(ClientError::new(ErrorKind::Timeout, format!("not subscribed within {timeout:?}"))),
    }
}

impl std::ops::Deref for Lease {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.close();
        if let Some(prober) = self.prober.get() {
            prober.abort();
        }
    }
}

/// Says that the background task has ended, also when its runtime or a panic ended it.
struct Ending(Arc<Core>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.ended.send_replace(true);
    }
}
