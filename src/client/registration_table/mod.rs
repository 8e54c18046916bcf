//! Which registrations this client keeps, and what is to be asked of the service for them: decisions only.
//!
//! | file | what |
//! |---|---|
//! | `jobs` | the requests to make, and which is next |
//! | `answers` | what became of one |
//! | this one | who is kept, and for what each waits |
//!
//! It knows no transport and no clock. The [keeper](super::keeper) says that a slot's time has come or that the
//! connection is new, takes [`Job`]s out and brings back what became of them; registrations come and go in between. So
//! every race between a guard and a request under way is a sequence of calls here, and tested as one.
//!
//! # One subscriber, several holders
//! A subscriber is a name: stream, client, session. Here it is one entry, however many guards hold it, and at most one
//! request is [in flight](InFlight) for it: what is asked later waits, so no answer overtakes another.
//!
//! At another gateway the same name may be held too. Each registration of it gets a new handle and voids the one before,
//! so whoever registered last has the handle that counts. Whoever finds its own void asks by name, once a heartbeat
//! interval, whether the subscriber is there. If it is, another holder is newer: the entry is [superseded](Entry), takes
//! no handle away from the other, and leaves without a word. If not, it registers again.
//!
//! # Invariants
//! - An entry's [`InFlight`] says which queue or job holds its key. It is in exactly one, at most once, and only that one
//!   may remove it: a key under way is never reused, and the queues are no longer than the table.
//! - `names` has each entry once. An entry without guards is in flight, and goes when it no longer is.
//! - A superseded entry has no handle.
//! - `streams` holds each stream that has entries, and for each the keys of all of them.

mod answers;
mod jobs;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use slab::Slab;
use tokio::sync::{Notify, futures::OwnedNotified, watch};

pub(super) use jobs::{Job, source_text};

use super::{ClientError, ErrorKind, Standing, batch::BatchLimits, unregister_queue::UnregisterQueue};

/// A subscriber as the service tells it from others.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub(super) stream_id: Arc<str>,
    pub(super) client_id: Box<str>,
    pub(super) session: u64,
}

/// What an entry's key is queued or under way for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InFlight {
    /// Nothing: the key is in no queue and in no job.
    Nothing,
    /// A caller's [attempt](RegistrationTable::begin) to register it.
    Attempt,
    /// A heartbeat: in `beats` or in a [`Job::Beat`].
    Beat,
    /// A question by name: in `confirms` or in a [`Job::Confirm`].
    Confirm,
    /// A registration: in `registers` or in a [`Job::Register`].
    Register,
}

/// What is to be asked for an entry as soon as nothing is in flight for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Needs {
    Nothing,
    Confirm,
    Register,
}

#[derive(Debug)]
struct Entry {
    name: Arc<Name>,
    source_addr: Option<SocketAddr>,
    /// How many guards hold it.
    guards: u32,
    /// 0 while the service has given none that counts.
    handle: u64,
    in_flight: InFlight,
    needs: Needs,
    /// Another holder has registered the same subscriber since.
    superseded: bool,
    /// The service may have registered it under a handle that nobody was told.
    maybe_registered: bool,
    /// On which connection it was last asked to: see [`UnregisterQueue::connection`].
    asked_on: u64,
    rounds: u64,
    /// The highest epoch of its stream that was known when it was last registered.
    epoch: u64,
    standing: watch::Sender<Standing>,
    /// Who waits until nothing is in flight, if anybody does.
    idle: Option<Arc<Notify>>,
}

impl Entry {
    /// Whether it was registered in a lower epoch. Who never was has none yet.
    fn is_outdated(&self, epoch: u64) -> bool {
        self.rounds > 0 && self.epoch < epoch
    }
}

/// A stream that has entries.
#[derive(Debug, Default)]
struct Watched {
    /// The highest epoch known. Invariant: no entry of the stream has a higher one.
    epoch: u64,
    keys: BTreeSet<usize>,
}

/// Whether an attempt to register may begin.
#[derive(Debug)]
pub(super) enum Begun {
    /// Now: [`RegistrationTable::end`] is to be called for this key.
    Now(usize),
    /// Not while something else is in flight for the same subscriber: ask again when this resolves.
    Later(OwnedNotified),
}

/// What became of an attempt to register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The service has registered it under this handle, with its stream in this epoch.
    Registered { handle: u64, epoch: u64 },
    /// The service has refused.
    Refused,
    /// It reached no service.
    NotExecuted,
    /// Nobody knows.
    Unknown,
}

/// The table of registrations and the queues of what is to be asked.
#[derive(Debug)]
pub(super) struct RegistrationTable {
    entries: Slab<Entry>,
    names: HashMap<Arc<Name>, usize>,
    streams: HashMap<Arc<str>, Watched>,
    /// Streams whose epoch has risen above that of an entry, until [`Self::register_risen`].
    risen: BTreeSet<Arc<str>>,
    beats: VecDeque<usize>,
    confirms: VecDeque<usize>,
    registers: BTreeMap<Arc<str>, Vec<usize>>,
    unregisters: UnregisterQueue,
    limits: BatchLimits,
    max_registrations: usize,
    closed: bool,
}

impl RegistrationTable {
    pub(super) fn new(max_registrations: usize, max_unregisters: usize) -> Self {
        Self {
            entries: Slab::new(),
            names: HashMap::new(),
            streams: HashMap::new(),
            risen: BTreeSet::new(),
            beats: VecDeque::new(),
            confirms: VecDeque::new(),
            registers: BTreeMap::new(),
            unregisters: UnregisterQueue::new(max_unregisters),
            limits: BatchLimits::default(),
            max_registrations,
            closed: false,
        }
    }

    /// A caller wants to register this subscriber.
    pub(super) fn begin(&mut self, name: Name, source_addr: Option<SocketAddr>) -> Result<Begun, ClientError> {
        if self.closed {
            return Err(ClientError::closed());
        }
        if let Some(&key) = self.names.get(&name) {
            let entry = &mut self.entries[key];
            if entry.in_flight != InFlight::Nothing {
                let idle = Arc::clone(entry.idle.get_or_insert_default());
                return Ok(Begun::Later(idle.notified_owned()));
            }
            entry.source_addr = source_addr;
            entry.in_flight = InFlight::Attempt;
            entry.asked_on = self.unregisters.connection();
            return Ok(Begun::Now(key));
        }
        if self.entries.len() >= self.max_registrations {
            let message = format!("this client keeps {} registrations, its limit", self.max_registrations);
            return Err(ClientError::new(ErrorKind::Exhausted, message));
        }
        Ok(Begun::Now(self.add(Arc::new(name), source_addr)))
    }

    fn add(&mut self, name: Arc<Name>, source_addr: Option<SocketAddr>) -> usize {
        // It makes up for a leave by this name, should it come to nothing.
        let maybe_registered = self.unregisters.take_over(&name);
        let key = self.entries.insert(Entry {
            name: Arc::clone(&name),
            source_addr,
            guards: 0,
            handle: 0,
            in_flight: InFlight::Attempt,
            needs: Needs::Nothing,
            superseded: false,
            maybe_registered,
            asked_on: self.unregisters.connection(),
            rounds: 0,
            epoch: 0,
            standing: watch::Sender::new(Standing::Registered { round: 1 }),
            idle: None,
        });
        self.streams.entry(Arc::clone(&name.stream_id)).or_default().keys.insert(key);
        self.names.insert(name, key);
        key
    }

    /// An attempt has ended. If it was registered, one more guard holds it, and may watch how it stands.
    pub(super) fn end(&mut self, key: usize, outcome: Outcome) -> Option<watch::Receiver<Standing>> {
        let entry = &mut self.entries[key];
        match outcome {
            Outcome::Registered { handle, epoch } => {
                let first = entry.rounds == 0;
                entry.guards += 1;
                self.hold(key, handle, epoch);
                let entry = &mut self.entries[key];
                if first || *entry.standing.borrow() != (Standing::Registered { round: entry.rounds }) {
                    Self::show_registered(entry);
                }
            }
            Outcome::Refused => entry.maybe_registered = false,
            Outcome::NotExecuted => {}
            Outcome::Unknown => {
                entry.maybe_registered = true;
                // The handle that its guards hold may be void, and nobody knows the new one.
                entry.needs = Needs::Register;
            }
        }
        let watcher = matches!(outcome, Outcome::Registered { .. }).then(|| self.entries[key].standing.subscribe());
        self.rest(key);
        watcher.filter(|_| !self.closed)
    }

    /// The service has registered `key` under `handle`, and the handle before is void.
    fn hold(&mut self, key: usize, handle: u64, epoch: u64) {
        self.unregisters.keep(handle);
        let entry = &mut self.entries[key];
        entry.handle = handle;
        entry.superseded = false;
        entry.maybe_registered = false;
        entry.epoch = epoch;
        let stream_id = Arc::clone(&entry.name.stream_id);
        if self.streams.get(&stream_id).is_some_and(|watched| epoch < watched.epoch) {
            // The stream was created anew while the answer was on its way.
            self.risen.insert(stream_id);
        } else {
            self.see(&stream_id, epoch);
        }
    }

    fn show_registered(entry: &mut Entry) {
        entry.rounds += 1;
        entry.standing.send_replace(Standing::Registered { round: entry.rounds });
    }

    /// A guard of `key` was dropped.
    pub(super) fn release(&mut self, key: usize) {
        if self.closed {
            return;
        }
        let entry = &mut self.entries[key];
        debug_assert!(entry.guards > 0, "registration {key} is dropped more often than it is held");
        entry.guards = entry.guards.saturating_sub(1);
        if entry.guards == 0 {
            // At once, whatever is in flight.
            let handle = std::mem::take(&mut entry.handle);
            if handle != 0 {
                self.unregisters.push_handle(handle);
            }
            if self.entries[key].in_flight == InFlight::Nothing {
                self.forget(key);
            }
        }
    }

    /// A stream was seen in this epoch. If it is higher than before, another service has it, or it was created anew:
    /// whoever is registered in a lower one is not known any more.
    pub(super) fn see(&mut self, stream_id: &str, epoch: u64) {
        let Some(watched) = self.streams.get_mut(stream_id) else { return };
        if epoch <= watched.epoch {
            return;
        }
        watched.epoch = epoch;
        if watched.keys.iter().any(|&key| self.entries[key].is_outdated(epoch)) {
            self.risen.insert(stream_id.into());
        }
    }

    /// Whether `key` was registered in a lower epoch than its stream is in.
    fn is_outdated(&self, key: usize) -> bool {
        let entry = &self.entries[key];
        self.streams.get(&entry.name.stream_id).is_some_and(|watched| entry.is_outdated(watched.epoch))
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
                if self.entries[key].is_outdated(epoch) {
                    self.register_again(key);
                }
            }
        }
    }

    /// A stream was seen to have nobody who watches it: those of its entries for which nothing is in flight are asked about
    /// now, since they have another holder's leave behind them, or the service has forgotten them.
    pub(super) fn see_unwatched(&mut self, stream_id: &str) {
        let Some(watched) = self.streams.get(stream_id) else { return };
        for key in Vec::from_iter(watched.keys.iter().copied()) {
            if self.entries[key].in_flight == InFlight::Nothing {
                self.beat_one(key);
            }
        }
    }

    /// The connection is a new one: all are to be registered again.
    pub(super) fn register_all_again(&mut self) {
        self.limits = BatchLimits::default();
        self.unregisters.forget_names();
        let keys: Vec<usize> = self.entries.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.register_again(key);
        }
    }

    /// `key` is to be registered again, or asked for where another holder may have done so: now, or when nothing is in
    /// flight for it any more.
    fn register_again(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        entry.needs = entry.needs.max(if entry.superseded { Needs::Confirm } else { Needs::Register });
        if entry.in_flight == InFlight::Nothing {
            self.rest(key);
        }
    }

    /// Nothing is in flight for `key` any more: removes it, queues what it needs, or lets it be.
    fn rest(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        entry.in_flight = InFlight::Nothing;
        if entry.guards == 0 || self.closed {
            self.forget(key);
            return;
        }
        match std::mem::replace(&mut entry.needs, Needs::Nothing) {
            Needs::Nothing => {
                if let Some(idle) = entry.idle.take() {
                    idle.notify_waiters();
                }
            }
            Needs::Confirm => {
                entry.in_flight = InFlight::Confirm;
                self.confirms.push_back(key);
            }
            Needs::Register => {
                entry.in_flight = InFlight::Register;
                let stream_id = Arc::clone(&entry.name.stream_id);
                self.registers.entry(stream_id).or_default().push(key);
            }
        }
    }

    /// Removes an entry that is in no queue and in no job, and queues what unregisters it.
    fn forget(&mut self, key: usize) {
        let entry = self.entries.remove(key);
        self.names.remove(&entry.name);
        if let Some(watched) = self.streams.get_mut(&entry.name.stream_id) {
            watched.keys.remove(&key);
            if watched.keys.is_empty() {
                self.streams.remove(&entry.name.stream_id);
            }
        }
        if entry.handle != 0 {
            self.unregisters.push_handle(entry.handle);
        } else if entry.maybe_registered {
            self.unregisters.push_name(entry.name, entry.asked_on);
        }
        if let Some(idle) = entry.idle {
            idle.notify_waiters();
        }
    }

    /// Takes nothing more and unregisters all. The guards that are left no longer matter.
    pub(super) fn close(&mut self) {
        if self.closed {
            return;
        }
        self.closed = true;
        self.unregisters.make_room(self.entries.len());
        let queued: Vec<usize> = (self.beats.drain(..).chain(self.confirms.drain(..)))
            .chain(std::mem::take(&mut self.registers).into_values().flatten())
            .collect();
        for key in queued {
            self.entries[key].in_flight = InFlight::Nothing;
        }
        let keys: Vec<usize> = self.entries.iter().map(|(key, _)| key).collect();
        for key in keys {
            let entry = &mut self.entries[key];
            if entry.guards > 0 {
                entry.standing.send_replace(Standing::Closed);
            }
            let handle = std::mem::take(&mut entry.handle);
            if handle != 0 {
                self.unregisters.push_handle(handle);
            }
            if self.entries[key].in_flight == InFlight::Nothing {
                self.forget(key);
            }
        }
        self.risen.clear();
    }

    /// Whether [`Self::close`] was called.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether a closed table has nothing left to unregister, jobs under way aside.
    pub(super) fn is_done(&self) -> bool {
        self.closed && self.unregisters.is_empty() && self.entries.is_empty()
    }

    /// Whether nothing is kept and nothing is to be unregistered.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.entries.is_empty() && self.unregisters.is_empty()
    }

    /// How many subscribers are kept, those included that are about to come or to go.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests;
