//! One task for all that share something, such as a subscription: there from the first holder to the last.
//!
//! The first holder of a key makes the value and starts the task, the others wait until the task has opened what it is
//! there for, and with the last one it is aborted. So a subscription costs the same for one reader as for a thousand,
//! and whoever is dropped, cancelled or refused leaves no task, entry or subscription behind.
//!
//! ```text
//! join ──▶ Opening ──▶ Open ──▶ Ended       (the task came to its end by itself)
//!             │          └────▶ aborted     (the last holder left)
//!             └────────▶ Failed             (nothing was opened; whoever comes next tries anew)
//! ```
//!
//! It does not know what is shared, and it waits for nothing but the opening.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use tokio::{sync::Notify, task::AbortHandle};

use super::ClientError;

/// What is shared under which key.
pub struct Shared<K: Key, T: Send + Sync + 'static> {
    /// Invariant: each entry has a holder, and its task has not ended. A holder whose entry is not here any more holds
    /// something whose task has ended.
    entries: Mutex<HashMap<K, Entry<K, T>>>,
}

/// What something can be shared under.
pub trait Key: Clone + Eq + Hash + fmt::Debug + Send + Sync + 'static {}

impl<K: Clone + Eq + Hash + fmt::Debug + Send + Sync + 'static> Key for K {}

struct Entry<K, T> {
    slot: Arc<Slot<K, T>>,
    holders: usize,
}

struct Slot<K, T> {
    key: K,
    value: Arc<T>,
    progress: Mutex<Progress>,
    /// Told when that changes. A watch would wake those who wait in an order that chance decides, and a run of a client
    /// could not be repeated.
    changed: Notify,
    /// Set by whoever holds it first, before anybody can leave.
    task: OnceLock<AbortHandle>,
}

/// How far a task has come.
#[derive(Debug, Clone)]
enum Progress {
    Opening,
    Open,
    /// Nothing was opened.
    Failed(ClientError),
    /// It was open, and is no more.
    Ended,
}

/// One of those that share something. Dropping it leaves; with the last one the task is aborted.
pub struct Holder<K: Key, T: Send + Sync + 'static> {
    shared: Arc<Shared<K, T>>,
    slot: Arc<Slot<K, T>>,
}

impl<K: Key, T: Send + Sync + 'static> Shared<K, T> {
    /// Holds what is shared under `key`, once it is open.
    ///
    /// If nobody holds it, `make` makes the value, and a new task runs `open` with it: first until that has opened what
    /// is to be shared, and then the future that it gives, which goes on until the last holder leaves, or ends by itself
    /// when there is nothing more to come. `make` must not call this object.
    ///
    /// # Errors
    /// What `open` says: to all that wait for it. `Closed` when the runtime is shutting down.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn join<Opening, Running>(
        self: &Arc<Self>,
        key: K,
        make: impl FnOnce() -> T,
        open: impl FnOnce(Arc<T>) -> Opening,
    ) -> Result<Holder<K, T>, ClientError>
    where
        Opening: Future<Output = Result<Running, ClientError>> + Send + 'static,
        Running: Future<Output = ()> + Send + 'static,
    {
        // From here on, dropping this future leaves.
        let holder = self.hold(key, make);
        holder.start(open);
        match holder.slot.wait_for(|progress| !matches!(progress, Progress::Opening)).await {
            Progress::Failed(error) => Err(error),
            Progress::Ended => Err(ClientError::closed()),
            Progress::Open | Progress::Opening => Ok(holder),
        }
    }

    /// Under how many keys something is shared.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether nothing is shared.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn hold(self: &Arc<Self>, key: K, make: impl FnOnce() -> T) -> Holder<K, T> {
        let mut entries = self.entries();
        let entry = entries.entry(key).or_insert_with_key(|key| {
            let (progress, changed, task) = (Mutex::new(Progress::Opening), Notify::new(), OnceLock::new());
            let slot = Arc::new(Slot { key: key.clone(), value: Arc::new(make()), progress, changed, task });
            Entry { slot, holders: 0 }
        });
        entry.holders += 1;
        Holder { shared: Arc::clone(self), slot: Arc::clone(&entry.slot) }
    }

    fn leave(&self, slot: &Arc<Slot<K, T>>) {
        let mut entries = self.entries();
        let Some(entry) = entry_of(&mut entries, slot) else { return };
        entry.holders -= 1;
        if entry.holders == 0 {
            entries.remove(&slot.key);
            drop(entries);
            if let Some(task) = slot.task.get() {
                task.abort();
            }
        }
    }

    /// A task has ended, if with an error before it was open. Its entry goes first, so that whoever comes next begins anew;
    /// then its holders hear of it.
    fn end(&self, slot: &Arc<Slot<K, T>>, error: Option<ClientError>) {
        let mut entries = self.entries();
        if entry_of(&mut entries, slot).is_some() {
            entries.remove(&slot.key);
        }
        drop(entries);
        slot.become_next(|progress| match progress {
            Progress::Opening => Some(Progress::Failed(error.unwrap_or_else(ClientError::closed))),
            Progress::Open => Some(Progress::Ended),
            Progress::Failed(_) | Progress::Ended => None,
        });
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<K, Entry<K, T>>> {
        // `make` is a caller's and may panic, but only before there is an entry.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The entry of this slot, and not of one that has taken its place.
fn entry_of<'a, K: Key, T>(
    entries: &'a mut HashMap<K, Entry<K, T>>,
    slot: &Arc<Slot<K, T>>,
) -> Option<&'a mut Entry<K, T>> {
    entries.get_mut(&slot.key).filter(|entry| Arc::ptr_eq(&entry.slot, slot))
}

impl<K, T> Slot<K, T> {
    /// How far its task has come, once that is so. Cancel safe.
    async fn wait_for(&self, is_so: impl Fn(&Progress) -> bool) -> Progress {
        loop {
            // Before the look: whatever changes behind it wakes this.
            let changed = self.changed.notified();
            let progress = self.progress().clone();
            if is_so(&progress) {
                return progress;
            }
            changed.await;
        }
    }

    /// Replaces its progress, if by anything.
    fn become_next(&self, next: impl FnOnce(&Progress) -> Option<Progress>) {
        let mut progress = self.progress();
        if let Some(next) = next(&progress) {
            *progress = next;
            drop(progress);
            self.changed.notify_waiters();
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Key, T: Send + Sync + 'static> Holder<K, T> {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &K {
        &self.slot.key
    }

    /// Resolves when the task has ended by itself: nothing comes any more. Cancel safe.
    pub async fn ended(&self) {
        self.slot.wait_for(|progress| matches!(progress, Progress::Ended | Progress::Failed(_))).await;
    }

    /// Starts the task, unless another holder has. Without the lock on the entries, which the task needs at its end: a
    /// runtime that is shutting down ends it in here.
    fn start<Opening, Running>(&self, open: impl FnOnce(Arc<T>) -> Opening)
    where
        Opening: Future<Output = Result<Running, ClientError>> + Send + 'static,
        Running: Future<Output = ()> + Send + 'static,
    {
        self.slot.task.get_or_init(|| {
            let task = Task { shared: Arc::clone(&self.shared), slot: Arc::clone(&self.slot), error: None };
            let opening = open(Arc::clone(&self.slot.value));
            tokio::spawn(task.run(opening)).abort_handle()
        });
    }
}

impl<K: Key, T: Send + Sync + 'static> Deref for Holder<K, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.slot.value
    }
}

impl<K: Key, T: Send + Sync + 'static> Drop for Holder<K, T> {
    fn drop(&mut self) {
        self.shared.leave(&self.slot);
    }
}

/// The task. However it ends, by itself, aborted, with its runtime or in a panic, its holders hear of it.
struct Task<K: Key, T: Send + Sync + 'static> {
    shared: Arc<Shared<K, T>>,
    slot: Arc<Slot<K, T>>,
    /// Why nothing was opened.
    error: Option<ClientError>,
}

impl<K: Key, T: Send + Sync + 'static> Task<K, T> {
    async fn run<Running: Future<Output = ()>>(mut self, opening: impl Future<Output = Result<Running, ClientError>>) {
        match opening.await {
            Ok(running) => {
                self.slot.become_next(|_| Some(Progress::Open));
                running.await;
            }
            Err(error) => self.error = Some(error),
        }
    }
}

impl<K: Key, T: Send + Sync + 'static> Drop for Task<K, T> {
    fn drop(&mut self) {
        self.shared.end(&self.slot, self.error.take());
    }
}

impl<K: Key, T: Send + Sync + 'static> Default for Shared<K, T> {
    fn default() -> Self {
        Self { entries: Mutex::default() }
    }
}

impl<K: Key, T: Send + Sync + 'static> fmt::Debug for Shared<K, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("keys", &self.len()).finish_non_exhaustive()
    }
}

impl<K: Key, T: Send + Sync + 'static> fmt::Debug for Holder<K, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Holder").field("key", self.key()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "shared_tests.rs"]
mod tests;
