//! Which registrations this client keeps, and what is owed to the service for them: decisions only.
//!
//! It knows no transport and no clock. The [keeper](super::keeper) tells it that a slot's time has come or that the
//! connection is new, takes [`Job`]s out and brings back what became of them; guards come and go in between. So every
//! race between a guard and a request under way is a sequence of calls here, and tested as one.
//!
//! # Invariants
//! - An entry's [`Errand`] says which queue or job holds its key. It is in exactly one, at most once, and only that one
//!   may remove it: a key under way is never reused, and the queues are no longer than the table.
//! - `holders` counts, for each handle, the guards that hold it: two guards of the same subscriber share a handle, and
//!   dropping one must not unregister the other.
//! - `names` counts, for each subscriber, its guards and the registrations under way: an unregistering by name, of one
//!   that may never have been, must not meet one that is.
//! - `streams` holds each stream that has entries, and for each the keys of all of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use slab::Slab;
use tokio::sync::watch;

use super::{
    ClientError, ErrorKind, Standing,
    farewells::{Farewell, Farewells, Names},
};
use crate::wire::proto::{self, Code, Reply};

/// Handles in one heartbeat or unregistering message: 8 KB, one step of work for a shard.
pub(super) const MAX_HANDLES: usize = 1_000;
/// Subscribers in one registering message: with ids of full length still a tenth of what a broker takes.
pub(super) const MAX_SUBSCRIBERS: usize = 500;

/// Who is registered: a subscriber as the service knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) stream_id: Arc<str>,
    pub(super) client_id: Box<str>,
    pub(super) source_addr: Option<SocketAddr>,
    pub(super) session: u64,
}

impl Who {
    pub(super) fn source_text(&self) -> String {
        self.source_addr.map(|addr| addr.to_string()).unwrap_or_default()
    }
}

/// One request to make.
#[derive(Debug, PartialEq)]
pub(super) enum Job {
    /// `HeartbeatBatch`: entries and the handles they had.
    Beat(Vec<(usize, u64)>),
    /// `RegisterBatch`.
    Register { stream_id: Arc<str>, keys: Vec<usize>, subscribers: Vec<proto::Subscriber> },
    /// `UnregisterBatch`.
    Leave { handles: Vec<u64>, tries: u8 },
    /// `Unregister`, when the handle is not known.
    LeaveByName { who: Who, tries: u8 },
}

/// What an entry's key is under way for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Errand {
    /// Nothing: the key is in no queue and in no job.
    None,
    /// A heartbeat: in `beats` or in a [`Job::Beat`].
    Beat,
    /// A registration: in `due` or in a [`Job::Register`].
    Register,
}

#[derive(Debug)]
struct Entry {
    who: Who,
    /// 0 while the service does not know it.
    handle: u64,
    errand: Errand,
    /// It is to be registered again as soon as its errand ends.
    owed: bool,
    /// Its guard was dropped; whoever holds the key removes it.
    gone: bool,
    rounds: u64,
    /// The highest epoch of its stream that was known when it was last registered.
    epoch: u64,
    standing: watch::Sender<Standing>,
}

/// A stream that has entries.
#[derive(Debug, Default)]
struct Watched {
    /// The highest epoch known. Invariant: no entry of the stream has a higher one.
    epoch: u64,
    keys: BTreeSet<usize>,
}

/// The table of registrations and the queues of what is owed.
#[derive(Debug)]
pub(super) struct Book {
    entries: Slab<Entry>,
    streams: HashMap<Arc<str>, Watched>,
    /// Streams whose epoch has risen above that of an entry, until [`Self::register_risen`].
    risen: BTreeSet<Arc<str>>,
    beats: VecDeque<usize>,
    due: BTreeMap<Arc<str>, Vec<usize>>,
    farewells: Farewells,
    holders: HashMap<u64, u32>,
    names: Names,
    max_registrations: usize,
    closed: bool,
}

impl Book {
    pub(super) fn new(max_registrations: usize, max_farewells: usize) -> Self {
        Self {
            entries: Slab::new(),
            streams: HashMap::new(),
            risen: BTreeSet::new(),
            beats: VecDeque::new(),
            due: BTreeMap::new(),
            farewells: Farewells::new(max_farewells),
            holders: HashMap::new(),
            names: Names::default(),
            max_registrations,
            closed: false,
        }
    }

    /// Refuses when a registration could not be kept: asked before the service is.
    pub(super) fn check_room(&self) -> Result<(), ClientError> {
        if self.closed {
            return Err(ClientError::closed());
        }
        if self.entries.len() >= self.max_registrations {
            let message = format!("this client keeps {} registrations, its limit", self.max_registrations);
            return Err(ClientError::new(ErrorKind::Exhausted, message));
        }
        Ok(())
    }

    /// A registration is about to be asked for, until [`Self::end`].
    pub(super) fn begin(&mut self, who: &Who) -> Result<(), ClientError> {
        self.check_room()?;
        self.names.add(who);
        Ok(())
    }

    /// It has ended. If `is_owed`, the service may have registered a subscriber that nobody holds. True when something
    /// is to be done.
    pub(super) fn end(&mut self, who: &Who, is_owed: bool) -> bool {
        let left_out = self.names.subtract(who);
        let is_owed = (is_owed || left_out) && !self.closed;
        if is_owed {
            self.farewells.owe(Farewell::Name { who: who.clone(), tries: 0 });
        }
        is_owed
    }

    /// Keeps a subscriber that the service has just registered under `handle`, with its stream in this epoch.
    pub(super) fn insert(
        &mut self,
        who: Who,
        handle: u64,
        epoch: u64,
    ) -> Result<(usize, watch::Receiver<Standing>), ClientError> {
        self.check_room()?;
        let (standing, watcher) = watch::channel(Standing::Registered { round: 1 });
        self.hold(handle);
        self.names.add(&who);
        let stream_id = who.stream_id.clone();
        let entry = Entry { who, handle, errand: Errand::None, owed: false, gone: false, rounds: 1, epoch, standing };
        let key = self.entries.insert(entry);
        let watched = self.streams.entry(stream_id.clone()).or_default();
        watched.keys.insert(key);
        if watched.keys.len() == 1 {
            watched.epoch = epoch;
        } else if epoch < watched.epoch {
            // The stream was created anew while the answer was on its way.
            self.risen.insert(stream_id);
        } else {
            self.see(&stream_id, epoch);
        }
        Ok((key, watcher))
    }

    /// A stream was seen in this epoch. If it is higher than before, another service has it, or it was created anew:
    /// whoever is registered in a lower one is not known any more.
    pub(super) fn see(&mut self, stream_id: &str, epoch: u64) {
        let Some(watched) = self.streams.get_mut(stream_id) else { return };
        if epoch > watched.epoch {
            watched.epoch = epoch;
            self.risen.insert(stream_id.into());
        }
    }

    /// Whether [`Self::register_risen`] has something to do.
    pub(super) fn has_risen(&self) -> bool {
        !self.risen.is_empty()
    }

    /// Registers again whoever is registered in a lower epoch than the stream is in.
    pub(super) fn register_risen(&mut self) {
        for stream_id in std::mem::take(&mut self.risen) {
            let Some(watched) = self.streams.get(&stream_id) else { continue };
            let (keys, epoch) = (Vec::from_iter(watched.keys.iter().copied()), watched.epoch);
            for key in keys {
                if self.entries[key].epoch < epoch {
                    self.owe(key);
                }
            }
        }
    }

    /// The guard of `key` was dropped.
    pub(super) fn remove(&mut self, key: usize) {
        if self.closed {
            return;
        }
        let entry = &mut self.entries[key];
        debug_assert!(!entry.gone, "registration {key} is dropped twice");
        entry.gone = true;
        // What was left out for its sake is not made up for: it has a handle to be unregistered by, or the service has
        // said that it does not know it.
        self.names.subtract(&entry.who);
        let (handle, errand) = (std::mem::take(&mut entry.handle), entry.errand);
        if handle != 0 {
            self.unhold(handle);
            self.farewells.owe(Farewell::Handle { handle, tries: 0 });
        }
        if errand == Errand::None {
            self.forget(key);
        }
    }

    /// The time of one of `slots` has come: those of its entries that have no errand get one.
    ///
    /// Keys are handed out densely, so key modulo slots spreads the entries evenly without another list to keep.
    pub(super) fn beat(&mut self, slot: usize, slots: usize) {
        for key in (slot..self.entries.capacity()).step_by(slots.max(1)) {
            let Some(entry) = self.entries.get_mut(key) else { continue };
            if entry.errand != Errand::None {
                continue;
            }
            if entry.handle == 0 {
                self.owe(key);
            } else {
                entry.errand = Errand::Beat;
                self.beats.push_back(key);
            }
        }
    }

    /// The connection is a new one: all are to be registered again.
    pub(super) fn register_all_again(&mut self) {
        let keys: Vec<usize> = self.entries.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.owe(key);
        }
    }

    /// `key` is to be registered again: at once, or when its errand ends.
    fn owe(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        if !entry.gone {
            entry.owed = true;
            if entry.errand == Errand::None {
                self.settle(key);
            }
        }
    }

    /// What to ask next: heartbeats before all, since others are waiting for nothing but time.
    pub(super) fn next_job(&mut self) -> Option<Job> {
        self.next_beat()
            .or_else(|| self.farewells.next(&self.holders, &mut self.names))
            .or_else(|| self.next_register())
    }

    fn next_beat(&mut self) -> Option<Job> {
        let mut batch = Vec::new();
        while batch.len() < MAX_HANDLES
            && let Some(key) = self.beats.pop_front()
        {
            let entry = &self.entries[key];
            if entry.gone || entry.owed {
                self.settle(key);
            } else {
                batch.push((key, entry.handle));
            }
        }
        (!batch.is_empty()).then_some(Job::Beat(batch))
    }

    fn next_register(&mut self) -> Option<Job> {
        while let Some(mut stream) = self.due.first_entry() {
            let waiting = stream.get_mut();
            let chosen = waiting.split_off(waiting.len().saturating_sub(MAX_SUBSCRIBERS));
            let stream_id = stream.key().clone();
            if stream.get().is_empty() {
                stream.remove();
            }
            let epoch = self.streams.get(&stream_id).map_or(0, |watched| watched.epoch);
            let (mut keys, mut subscribers) = (Vec::with_capacity(chosen.len()), Vec::with_capacity(chosen.len()));
            for key in chosen {
                let entry = &mut self.entries[key];
                entry.owed = false;
                entry.epoch = epoch;
                if entry.gone {
                    self.settle(key);
                    continue;
                }
                keys.push(key);
                subscribers.push(proto::Subscriber {
                    client_id: entry.who.client_id.to_string(),
                    source_addr: entry.who.source_text(),
                    session: entry.who.session,
                });
            }
            if !keys.is_empty() {
                return Some(Job::Register { stream_id, keys, subscribers });
            }
        }
        None
    }

    /// What became of a job. False when it failed as a whole and what it owed is queued again: better wait a little.
    #[must_use]
    pub(super) fn finished(&mut self, job: Job, answer: Result<Reply, ClientError>) -> bool {
        match job {
            Job::Beat(batch) => self.beaten(&batch, answer),
            Job::Register { keys, .. } => self.registered(&keys, answer),
            Job::Leave { handles, tries } => self.farewells.left(handles, tries, &answer),
            Job::LeaveByName { who, tries } => self.farewells.left_by_name(who, tries, &answer),
        }
    }

    fn beaten(&mut self, batch: &[(usize, u64)], answer: Result<Reply, ClientError>) -> bool {
        let reply = match answer {
            Ok(reply) if matches!(reply.code(), Code::Ok | Code::UnknownSubscriber) => reply,
            _ => {
                for &(key, _) in batch {
                    if self.entries[key].gone || self.entries[key].owed || self.closed {
                        self.settle(key);
                    } else {
                        self.beats.push_back(key);
                    }
                }
                return false;
            }
        };
        let unknown: std::collections::HashSet<u64> = reply.unknown_handle.into_iter().collect();
        for &(key, handle) in batch {
            if unknown.contains(&handle) && !self.entries[key].gone {
                self.lose(key, Code::UnknownSubscriber);
                self.entries[key].owed = true;
            }
            self.settle(key);
        }
        true
    }

    fn registered(&mut self, keys: &[usize], answer: Result<Reply, ClientError>) -> bool {
        match answer {
            Ok(reply) if reply.handles.len() == keys.len() => {
                for (&key, &handle) in keys.iter().zip(&reply.handles) {
                    if handle == 0 {
                        self.lose(key, reply.code());
                    } else {
                        self.renew(key, handle);
                    }
                    self.settle(key);
                }
                true
            }
            Ok(reply) if !matches!(reply.code(), Code::Ok | Code::Unavailable) => {
                for &key in keys {
                    self.lose(key, reply.code());
                    self.settle(key);
                }
                true
            }
            Ok(_) | Err(_) => {
                // Nobody knows what the service did with it.
                for &key in keys {
                    let entry = &mut self.entries[key];
                    if entry.gone {
                        let who = entry.who.clone();
                        self.farewells.owe(Farewell::Name { who, tries: 0 });
                    } else {
                        entry.owed = true;
                    }
                    self.settle(key);
                }
                false
            }
        }
    }

    /// The service has registered `key` again, under a handle that replaces the old one.
    fn renew(&mut self, key: usize, handle: u64) {
        let entry = &mut self.entries[key];
        if entry.gone {
            // Its guard was dropped meanwhile, and its farewell may have been handled before the registration was.
            self.farewells.owe(Farewell::Handle { handle, tries: 0 });
            return;
        }
        let old = std::mem::replace(&mut entry.handle, handle);
        entry.rounds += 1;
        let round = entry.rounds;
        entry.standing.send_replace(Standing::Registered { round });
        self.hold(handle);
        if old != 0 {
            self.unhold(old);
        }
    }

    /// The service does not know `key` (any more).
    fn lose(&mut self, key: usize, code: Code) {
        let entry = &mut self.entries[key];
        if entry.gone {
            return;
        }
        let handle = std::mem::take(&mut entry.handle);
        entry
            .standing
            .send_if_modified(|standing| std::mem::replace(standing, Standing::Lost(code)) != Standing::Lost(code));
        if handle != 0 {
            self.unhold(handle);
        }
    }

    /// The errand of `key` has ended, or it had none: remove it, queue what it is owed, or let it rest.
    fn settle(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        if entry.gone || self.closed {
            self.forget(key);
        } else if entry.owed {
            entry.errand = Errand::Register;
            let stream_id = entry.who.stream_id.clone();
            self.due.entry(stream_id).or_default().push(key);
        } else {
            entry.errand = Errand::None;
        }
    }

    /// Removes an entry that is in no queue and in no job.
    fn forget(&mut self, key: usize) {
        let entry = self.entries.remove(key);
        if let Some(watched) = self.streams.get_mut(&entry.who.stream_id) {
            watched.keys.remove(&key);
            if watched.keys.is_empty() {
                self.streams.remove(&entry.who.stream_id);
            }
        }
    }

    fn hold(&mut self, handle: u64) {
        *self.holders.entry(handle).or_default() += 1;
    }

    fn unhold(&mut self, handle: u64) {
        if let std::collections::hash_map::Entry::Occupied(mut holders) = self.holders.entry(handle) {
            *holders.get_mut() -= 1;
            if *holders.get() == 0 {
                holders.remove();
            }
        }
    }

    /// Takes nothing more and unregisters all. The guards that are left no longer matter.
    pub(super) fn close(&mut self) {
        if self.closed {
            return;
        }
        self.farewells.make_room(self.entries.len());
        let queued: Vec<usize> =
            self.beats.drain(..).chain(std::mem::take(&mut self.due).into_values().flatten()).collect();
        for key in queued {
            self.entries[key].errand = Errand::None;
        }
        let keys: Vec<usize> = self.entries.iter().map(|(key, _)| key).collect();
        for key in keys {
            let entry = &self.entries[key];
            if !entry.gone {
                entry.standing.send_replace(Standing::Closed);
                self.remove(key);
            } else if entry.errand == Errand::None {
                self.forget(key);
            }
        }
        self.risen.clear();
        self.names.clear();
        self.closed = true;
    }

    /// Whether [`Self::close`] was called.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether a closed book has nothing left to unregister, jobs under way aside.
    pub(super) fn is_done(&self) -> bool {
        self.closed && self.farewells.is_empty()
    }

    /// How many guards are kept, those included that are gone and under way.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
