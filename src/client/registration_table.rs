//! Which registrations this client keeps, and what is to be asked of the service for them: decisions only.
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

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use slab::Slab;
use tokio::sync::{Notify, futures::OwnedNotified, watch};

use super::{ClientError, ErrorKind, Standing, batch::BatchLimits, unregister_queue::UnregisterQueue};
use crate::wire::proto::{self, Code, Reply};

/// A subscriber as the service tells it from others.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub(super) stream_id: Arc<str>,
    pub(super) client_id: Box<str>,
    pub(super) session: u64,
}

/// One request to make.
#[derive(Debug, PartialEq)]
pub(super) enum Job {
    /// `HeartbeatBatch`: entries and the handles they had.
    Beat(Vec<(usize, u64)>),
    /// `Heartbeat` by name, of an entry whose handle is void.
    Confirm { key: usize, name: Arc<Name> },
    /// `RegisterBatch`.
    Register { stream_id: Arc<str>, keys: Vec<usize>, subscribers: Vec<proto::Subscriber> },
    /// `UnregisterBatch`.
    Unregister { handles: Vec<u64>, tries: u8 },
    /// `Unregister`, when the handle is not known.
    UnregisterByName { name: Arc<Name>, tries: u8, connection: u64 },
}

impl Job {
    /// How many entries it is about.
    pub(super) fn entries(&self) -> usize {
        match self {
            Self::Beat(batch) => batch.len(),
            Self::Register { keys, .. } => keys.len(),
            Self::Unregister { handles, .. } => handles.len(),
            Self::Confirm { .. } | Self::UnregisterByName { .. } => 1,
        }
    }
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

    /// The time of one of `slots` has come: something is asked for those of its entries for which nothing is in flight.
    ///
    /// Keys are handed out densely, so key modulo slots spreads the entries evenly without another list to keep.
    pub(super) fn beat(&mut self, slot: usize, slots: usize) {
        for key in (slot..self.entries.capacity()).step_by(slots.max(1)) {
            if self.entries.get(key).is_some_and(|entry| entry.in_flight == InFlight::Nothing) {
                self.beat_one(key);
            }
        }
    }

    fn beat_one(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        if entry.handle != 0 {
            entry.in_flight = InFlight::Beat;
            self.beats.push_back(key);
        } else {
            self.register_again(key);
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

    /// What to ask next, in messages of at most `max_payload` bytes, answers included. Heartbeats before all, since
    /// others are waiting for nothing but time.
    pub(super) fn next_job(&mut self, max_payload: usize) -> Option<Job> {
        let most = self.limits.handles(max_payload);
        self.next_beat(most)
            .or_else(|| self.next_unregister(most))
            .or_else(|| self.next_confirm())
            .or_else(|| self.next_register(max_payload))
    }

    fn next_beat(&mut self, most: usize) -> Option<Job> {
        let mut batch = Vec::new();
        while batch.len() < most
            && let Some(key) = self.beats.pop_front()
        {
            let entry = &self.entries[key];
            if entry.handle == 0 || entry.needs != Needs::Nothing {
                self.rest(key);
            } else {
                batch.push((key, entry.handle));
            }
        }
        (!batch.is_empty()).then_some(Job::Beat(batch))
    }

    fn next_unregister(&mut self, most: usize) -> Option<Job> {
        let Self { unregisters, names, entries, .. } = self;
        unregisters.next(most, |name| {
            let in_use = names.get(name);
            // Whoever uses the name makes up for it, should it come to nothing.
            in_use.inspect(|&&key| entries[key].maybe_registered |= entries[key].handle == 0).is_some()
        })
    }

    fn next_confirm(&mut self) -> Option<Job> {
        while let Some(key) = self.confirms.pop_front() {
            let entry = &mut self.entries[key];
            if entry.guards > 0 && entry.needs != Needs::Register {
                entry.needs = Needs::Nothing;
                return Some(Job::Confirm { key, name: Arc::clone(&entry.name) });
            }
            self.rest(key);
        }
        None
    }

    fn next_register(&mut self, max_payload: usize) -> Option<Job> {
        while let Some(mut stream) = self.registers.first_entry() {
            let stream_id = Arc::clone(stream.key());
            let mut batch = self.limits.registers(&stream_id, max_payload);
            let (mut keys, mut subscribers) = (Vec::new(), Vec::new());
            let mut dropped = Vec::new();
            while let Some(&key) = stream.get().last() {
                let entry = &mut self.entries[key];
                if entry.guards == 0 {
                    dropped.push(key);
                } else {
                    let subscriber = proto::Subscriber {
                        client_id: entry.name.client_id.to_string(),
                        source_addr: source_text(entry.source_addr),
                        session: entry.name.session,
                    };
                    if !batch.takes(&subscriber) {
                        break;
                    }
                    entry.needs = Needs::Nothing;
                    keys.push(key);
                    subscribers.push(subscriber);
                }
                stream.get_mut().pop();
            }
            if stream.get().is_empty() {
                stream.remove();
            }
            dropped.into_iter().for_each(|key| self.rest(key));
            if !keys.is_empty() {
                let epoch = self.streams.get(&stream_id).map_or(0, |watched| watched.epoch);
                for &key in &keys {
                    self.entries[key].epoch = epoch;
                    self.entries[key].asked_on = self.unregisters.connection();
                }
                return Some(Job::Register { stream_id, keys, subscribers });
            }
        }
        None
    }

    /// What became of a job. False when it failed as a whole and is queued again: better wait a little.
    #[must_use]
    pub(super) fn finished(&mut self, job: Job, answer: Result<Reply, ClientError>) -> bool {
        if self.limits.shrink(&job, &answer) {
            self.again(job);
            return true;
        }
        match job {
            Job::Beat(batch) => self.beaten(&batch, answer),
            Job::Confirm { key, .. } => self.confirmed(key, answer),
            Job::Register { keys, .. } => self.registered(&keys, answer),
            Job::Unregister { handles, tries } => self.unregisters.finished(handles, tries, &answer),
            Job::UnregisterByName { name, tries, connection } => {
                self.unregisters.finished_by_name(name, tries, connection, &answer)
            }
        }
    }

    /// Queues what was in a batch that was too large: the next ones are smaller.
    fn again(&mut self, job: Job) {
        match job {
            Job::Beat(batch) => batch.into_iter().for_each(|(key, _)| self.beat_again(key)),
            Job::Register { keys, .. } => {
                for key in keys {
                    self.entries[key].needs = Needs::Register;
                    self.rest(key);
                }
            }
            Job::Unregister { handles, tries } => self.unregisters.again(handles, tries),
            Job::Confirm { .. } | Job::UnregisterByName { .. } => debug_assert!(false, "{job:?} is no batch"),
        }
    }

    fn beat_again(&mut self, key: usize) {
        let entry = &self.entries[key];
        if entry.guards == 0 || entry.needs != Needs::Nothing || self.closed {
            self.rest(key);
        } else {
            self.beats.push_back(key);
        }
    }

    fn beaten(&mut self, batch: &[(usize, u64)], answer: Result<Reply, ClientError>) -> bool {
        let reply = match answer {
            Ok(reply) if matches!(reply.code(), Code::Ok | Code::UnknownSubscriber) => reply,
            _ => {
                batch.iter().for_each(|&(key, _)| self.beat_again(key));
                return false;
            }
        };
        let unknown: HashSet<u64> = reply.unknown_handle.into_iter().collect();
        for &(key, handle) in batch {
            if unknown.contains(&handle) && self.entries[key].handle == handle {
                self.entries[key].handle = 0;
                let needs = if self.is_outdated(key) { Needs::Register } else { Needs::Confirm };
                self.entries[key].needs = self.entries[key].needs.max(needs);
            }
            self.rest(key);
        }
        true
    }

    /// The service was asked by name for a subscriber whose handle is void.
    fn confirmed(&mut self, key: usize, answer: Result<Reply, ClientError>) -> bool {
        let code = match answer {
            Ok(reply) if reply.code() != Code::Unavailable => reply.code(),
            Ok(_) | Err(_) => {
                self.entries[key].needs = self.entries[key].needs.max(Needs::Confirm);
                self.rest(key);
                return false;
            }
        };
        let entry = &mut self.entries[key];
        if code == Code::Ok {
            entry.superseded = true;
        } else {
            entry.needs = Needs::Register;
            self.lose(key, code);
        }
        self.rest(key);
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
                    self.rest(key);
                }
                true
            }
            Ok(reply) if !matches!(reply.code(), Code::Ok | Code::Unavailable) => {
                self.refuse(keys, reply.code());
                true
            }
            Err(error) if error.limit().is_some() => {
                // It is one that does not even fit alone.
                tracing::debug!(%error, "a registration cannot be sent");
                self.refuse(keys, error.code());
                true
            }
            Ok(_) | Err(_) => {
                // Nobody knows what the service did with it.
                for &key in keys {
                    let entry = &mut self.entries[key];
                    entry.maybe_registered = true;
                    entry.needs = Needs::Register;
                    self.rest(key);
                }
                false
            }
        }
    }

    fn refuse(&mut self, keys: &[usize], code: Code) {
        for &key in keys {
            self.lose(key, code);
            self.rest(key);
        }
    }

    /// The service has registered `key` again, under a handle that replaces the old one.
    fn renew(&mut self, key: usize, handle: u64) {
        if self.entries[key].guards == 0 {
            // Its guards were dropped meanwhile.
            self.entries[key].maybe_registered = false;
            self.unregisters.push_handle(handle);
            return;
        }
        let epoch = self.entries[key].epoch;
        self.hold(key, handle, epoch);
        Self::show_registered(&mut self.entries[key]);
    }

    /// The service does not know `key` (any more), nor what another holder has registered of the same name.
    fn lose(&mut self, key: usize, code: Code) {
        let entry = &mut self.entries[key];
        entry.handle = 0;
        entry.superseded = false;
        entry.maybe_registered = false;
        entry
            .standing
            .send_if_modified(|standing| std::mem::replace(standing, Standing::Lost(code)) != Standing::Lost(code));
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

/// An address as the wire has it.
pub(super) fn source_text(source_addr: Option<SocketAddr>) -> String {
    source_addr.map(|addr| addr.to_string()).unwrap_or_default()
}

#[cfg(test)]
#[path = "registration_table_tests.rs"]
mod tests;
