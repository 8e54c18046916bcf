//! Writing an update of a stream to all of its sockets.
//!
//! A task woken for each socket and each update would cost more than the write itself. So what is new is written in a row,
//! by one task for [`PART`] sockets, with what each line takes at once. Nothing here waits: a line that takes no more, or a
//! viewer that is behind, is left to its socket's task, and delays nobody.
//!
//! ```text
//! hub: post ─▶ latest ─▶ Round: a task for each part ─▶ outlet ─▶ line
//!                └──────────────────────────────────────▶ outlet's own task, where it has to wait
//! ```
//!
//! While a round is under way, newer updates are put up and nothing is begun; the next round finds the newest. So
//! a gateway that is behind itself skips ticks, as a slow viewer does, and it makes nobody too slow for changes: before
//! so many wait that one could be pushed out, no more are taken ([`Round::has_room`]).

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Bytes;
use slab::Slab;
use tokio::{task::JoinSet, time::Instant};
use tungstenite::Utf8Bytes;

use super::{
    clock::TimeQuestion,
    end::End,
    lag::Lag,
    latest::{Format, Latest, MAX_CHANGES, Reader},
    line::Line,
    outlet::{Moment, Outlet},
};
use crate::client::shared::Holder;

/// How many sockets one task writes to in a row: a millisecond or two, in which others of its thread wait, and enough that
/// the task costs nothing beside it.
const PART: usize = 256;
/// How many changes are put up during a round: whoever has not come to them then still finds them in the next one.
const MAX_WAITING: u64 = MAX_CHANGES as u64 / 2;

/// A stream's latest updates, and the outlets they go to.
#[derive(Debug)]
pub(super) struct Fanout {
    latest: RwLock<Latest>,
    recipients: Mutex<Slab<Arc<Recipient>>>,
    lag: Holder<(), Lag>,
    write_timeout: Duration,
}

/// Where an outlet is, until its socket leaves.
struct Recipient(Mutex<Option<Outlet>>);

/// A socket's place in a fanout. It leaves when this is dropped.
#[derive(Debug)]
pub(super) struct Member {
    fanout: Arc<Fanout>,
    key: usize,
    recipient: Arc<Recipient>,
}

impl Fanout {
    pub(super) fn new(lag: Holder<(), Lag>, write_timeout: Duration) -> Self {
        Self { latest: RwLock::default(), recipients: Mutex::default(), lag, write_timeout }
    }

    /// Puts something up. To write it is for a [`Round`].
    pub(super) fn post(&self, post: impl FnOnce(&mut Latest)) {
        post(&mut self.latest.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// A reader for whom all that is up now is old.
    pub(super) fn reader(&self, format: Format) -> Reader {
        self.latest.read().unwrap_or_else(PoisonError::into_inner).reader(format)
    }

    /// Takes a line in. Nothing is written before [`Member::start`].
    pub(super) fn join(self: &Arc<Self>, line: Line, reader: Reader) -> Member {
        let recipient = Arc::new(Recipient(Mutex::new(Some(Outlet::new(line, reader, Instant::now())))));
        let key = self.recipients().insert(Arc::clone(&recipient));
        Member { fanout: Arc::clone(self), key, recipient }
    }

    /// Offers what is up to all outlets, here and now.
    pub(super) fn write_all(&self) {
        let keys = 0..self.extent();
        self.write(keys);
    }

    /// Offers what is up to the outlets in these places. Who joins or leaves does not wait for it.
    fn write(&self, keys: Range<usize>) {
        let recipients: Vec<_> = {
            let recipients = self.recipients();
            keys.filter_map(|key| recipients.get(key).cloned()).collect()
        };
        let moment = self.moment();
        for recipient in recipients {
            if let Some(outlet) = recipient.outlet().as_mut() {
                outlet.offer(moment);
            }
        }
    }

    /// Behind this there are no outlets.
    fn extent(&self) -> usize {
        self.recipients().iter().next_back().map_or(0, |(key, _)| key + 1)
    }

    fn change_count(&self) -> u64 {
        self.latest.read().unwrap_or_else(PoisonError::into_inner).change_count()
    }

    fn moment(&self) -> Moment<'_> {
        Moment { now: Instant::now(), lag: self.lag.get(), latest: &self.latest, write_timeout: self.write_timeout }
    }

    fn recipients(&self) -> MutexGuard<'_, Slab<Arc<Recipient>>> {
        self.recipients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recipient {
    fn outlet(&self) -> MutexGuard<'_, Option<Outlet>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Recipient {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Recipient").finish_non_exhaustive()
    }
}

impl Member {
    /// Sends the snapshot; from now on, what is newer is written too.
    pub(super) fn start(&self, snapshot: Bytes) {
        self.with((), |outlet, moment| outlet.start(snapshot, moment));
    }

    /// Ready when the viewer has said something, and at the end; see [`Outlet::poll`].
    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<Result<Option<Utf8Bytes>, End>> {
        self.with(Poll::Ready(Err(End::Failed)), |outlet, moment| outlet.poll(context, moment))
    }

    /// When [`Self::poll`] and [`Self::check_time`] are due, if nothing happens before.
    pub(super) fn due(&self) -> Option<Instant> {
        self.with(None, |outlet, _| outlet.due())
    }

    /// See [`Outlet::check_time`].
    pub(super) fn check_time(&self) -> Result<(), End> {
        self.with(Ok(()), Outlet::check_time)
    }

    /// See [`Outlet::ping`].
    pub(super) fn ping(&self) -> Result<(), End> {
        self.with(Ok(()), Outlet::ping)
    }

    /// See [`Outlet::poll_answer`].
    pub(super) fn poll_answer(&self, question: &mut TimeQuestion, context: &mut Context<'_>) -> Poll<Result<(), End>> {
        self.with(Poll::Ready(Err(End::Failed)), |outlet, moment| outlet.poll_answer(question, context, moment))
    }

    /// Leaves, with the line. `None` if it was taken already.
    pub(super) fn leave(self) -> Option<Line> {
        self.recipient.outlet().take().map(Outlet::into_line)
    }

    /// `gone` is what is so when the outlet is not there any more.
    fn with<T>(&self, gone: T, look: impl FnOnce(&mut Outlet, Moment<'_>) -> T) -> T {
        match self.recipient.outlet().as_mut() {
            Some(outlet) => look(outlet, self.fanout.moment()),
            None => gone,
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.fanout.recipients().remove(self.key);
        // A round may still hold the recipient.
        self.recipient.outlet().take();
    }
}

/// The writing of what was put up, once to all outlets, and again while there is something newer.
#[derive(Debug)]
pub(super) struct Round {
    fanout: Arc<Fanout>,
    parts: JoinSet<()>,
    /// Something was put up since the parts began.
    is_behind: bool,
    /// How many changes there were then.
    changes: u64,
}

impl Round {
    pub(super) fn new(fanout: Arc<Fanout>) -> Self {
        Self { fanout, parts: JoinSet::new(), is_behind: false, changes: 0 }
    }

    /// Something was put up: begins to write it, or does once what is under way has ended.
    pub(super) fn write(&mut self) {
        self.is_behind = true;
        if self.parts.is_empty() {
            self.begin();
        }
    }

    /// Whether more changes may be put up without that one is pushed out which an outlet waits for that is not behind.
    pub(super) fn has_room(&self) -> bool {
        self.fanout.change_count() - self.changes < MAX_WAITING
    }

    /// Resolves when all is written; never when nothing is under way. Cancel safe.
    pub(super) async fn done(&mut self) {
        if self.parts.is_empty() {
            std::future::pending().await
        }
        while self.parts.join_next().await.is_some() {}
        if self.is_behind {
            self.begin();
        }
    }

    fn begin(&mut self) {
        self.is_behind = false;
        self.changes = self.fanout.change_count();
        let extent = self.fanout.extent();
        for start in (0..extent).step_by(PART) {
            let fanout = Arc::clone(&self.fanout);
            self.parts.spawn(async move { fanout.write(start..start + PART) });
        }
    }
}

#[cfg(test)]
#[path = "fanout_tests.rs"]
mod tests;
