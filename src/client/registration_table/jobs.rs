//! The requests to make for registrations: which comes next, and what is in it.

use std::{net::SocketAddr, sync::Arc};

use super::{InFlight, Name, Needs, RegistrationTable};
use crate::wire::proto;

/// One request to make.
#[derive(Debug, PartialEq)]
pub(in crate::client) enum Job {
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
    pub(in crate::client) fn entries(&self) -> usize {
        match self {
            Self::Beat(batch) => batch.len(),
            Self::Register { keys, .. } => keys.len(),
            Self::Unregister { handles, .. } => handles.len(),
            Self::Confirm { .. } | Self::UnregisterByName { .. } => 1,
        }
    }
}

impl RegistrationTable {
    /// The time of one of `slots` has come: something is asked for those of its entries for which nothing is in flight.
    ///
    /// Keys are handed out densely, so key modulo slots spreads the entries evenly without another list to keep.
    pub(in crate::client) fn beat(&mut self, slot: usize, slots: usize) {
        for key in (slot..self.entries.capacity()).step_by(slots.max(1)) {
            if self.entries.get(key).is_some_and(|entry| entry.in_flight == InFlight::Nothing) {
                self.beat_one(key);
            }
        }
    }

    pub(super) fn beat_one(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        if entry.handle != 0 {
            entry.in_flight = InFlight::Beat;
            self.beats.push_back(key);
        } else {
            self.register_again(key);
        }
    }

    /// What to ask next, in messages of at most `max_payload` bytes, answers included. Heartbeats before all, since
    /// others are waiting for nothing but time.
    pub(in crate::client) fn next_job(&mut self, max_payload: usize) -> Option<Job> {
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
}

/// An address as the wire has it.
pub(in crate::client) fn source_text(source_addr: Option<SocketAddr>) -> String {
    source_addr.map(|addr| addr.to_string()).unwrap_or_default()
}
