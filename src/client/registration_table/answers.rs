//! What became of a request: what its answer, or that there was none, means for the registrations that it was about.

use std::collections::HashSet;

use super::{Job, Needs, RegistrationTable};
use crate::{
    client::{ClientError, Standing},
    wire::proto::{Code, Reply},
};

impl RegistrationTable {
    /// What became of a job. False when it failed as a whole and is queued again: better wait a little.
    #[must_use]
    pub(in crate::client) fn finished(&mut self, job: Job, answer: Result<Reply, ClientError>) -> bool {
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
}
