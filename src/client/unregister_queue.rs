//! Who is still to be unregistered: what the [table](super::registration_table) leaves behind for guards that are gone.
//!
//! It is bounded, and nothing in it is worth keeping for long: a subscriber that nobody unregisters goes stale by itself.
//!
//! # By handle, or by name
//! By handle wherever one is known. Whoever registers the same subscriber again, here or at another gateway, gets a new
//! handle, and the old one is nobody's: so unregistering by handle is never too late.
//!
//! By name only where the service may have registered somebody and no answer said so. A name meets whoever has it by
//! then, so this is given up as soon as that may be another: while this client uses the name itself, after
//! [`MAX_RETRIES_BY_NAME`] attempts, and with a new connection, on which all clients register again. What remains is a
//! holder of the same session at another gateway that registers within the few seconds in between: it is told with its
//! next heartbeat that nobody knows it, and registers again.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use super::{
    ClientError,
    registration_table::{Job, Name},
};
use crate::wire::proto::{Code, Reply};

/// How often an unregistering by handle is tried again. After that the service is left to find out.
pub(super) const MAX_RETRIES: u8 = 5;
/// The same by name: a lost message or answer, and no more.
pub(super) const MAX_RETRIES_BY_NAME: u8 = 1;

/// What is to be done for one subscriber.
#[derive(Debug)]
enum Unregister {
    /// The service gave it this handle.
    Handle { handle: u64, tries: u8 },
    /// The service may have registered it; no answer said so.
    Name { name: Arc<Name>, tries: u8 },
}

/// The queue, and how many requests of it are under way.
#[derive(Debug)]
pub(super) struct UnregisterQueue {
    queue: VecDeque<Unregister>,
    /// The handles that are queued or under way. One that is not here any more is passed over.
    handles: HashSet<u64>,
    /// The names that are queued, likewise.
    names: HashSet<Arc<Name>>,
    /// The names that are under way, as long as nobody has used them since.
    sent_names: HashSet<Arc<Name>>,
    capacity: usize,
    under_way: usize,
    /// Grows with each new connection; a name that was queued before it is given up.
    connection: u64,
    pub(super) forgotten: u64,
}

impl UnregisterQueue {
    pub(super) fn new(capacity: usize) -> Self {
        let (queue, handles, names, sent_names) = Default::default();
        Self { queue, handles, names, sent_names, capacity, under_way: 0, connection: 0, forgotten: 0 }
    }

    /// Takes another `more` at once: those of a closing are as many as there are registrations, which are bounded.
    pub(super) fn make_room(&mut self, more: usize) {
        self.capacity = self.capacity.saturating_add(more);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many wait, those that will be passed over included.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Queues a handle that nobody holds any more.
    pub(super) fn push_handle(&mut self, handle: u64) {
        self.push(Unregister::Handle { handle, tries: 0 });
    }

    /// Queues a name that the service may know, if it was asked to register it on the present connection.
    pub(super) fn push_name(&mut self, name: Arc<Name>, asked_on: u64) {
        if asked_on == self.connection {
            self.push(Unregister::Name { name, tries: 0 });
        } else {
            count_given_up(1);
        }
    }

    /// The number of the present connection.
    pub(super) fn connection(&self) -> u64 {
        self.connection
    }

    /// Somebody holds `handle`: a service of before handles were issued anew gives the same one to who comes back.
    pub(super) fn keep(&mut self, handle: u64) {
        self.handles.remove(&handle);
    }

    /// Somebody uses a name from now on: what was queued for it is older, and would meet whoever has it when it comes to its
    /// turn, again if it is under way. True if something was.
    pub(super) fn take_over(&mut self, name: &Name) -> bool {
        let was_sent = self.sent_names.remove(name);
        self.names.remove(name) || was_sent
    }

    /// Whoever registered may do so again on a new connection, so no name is safe any more.
    pub(super) fn forget_names(&mut self) {
        self.connection += 1;
        self.names.clear();
        let before = self.queue.len();
        self.queue.retain(|unregister| matches!(unregister, Unregister::Handle { .. }));
        count_given_up(before - self.queue.len());
    }

    fn push(&mut self, unregister: Unregister) {
        if self.queue.len() < self.capacity {
            match &unregister {
                Unregister::Handle { handle, .. } => _ = self.handles.insert(*handle),
                Unregister::Name { name, .. } => _ = self.names.insert(Arc::clone(name)),
            }
            self.queue.push_back(unregister);
            return;
        }
        self.forgotten += 1;
        metrics::counter!("client_unregisters_forgotten_total").increment(1);
        if self.forgotten.is_power_of_two() {
            let forgotten = self.forgotten;
            tracing::warn!(forgotten, "too many to unregister at once; the service will notice when they go stale");
        }
    }

    /// The next request: up to `most` handles, or one name that `is_in_use` does not take over.
    pub(super) fn next(&mut self, most: usize, mut is_in_use: impl FnMut(&Arc<Name>) -> bool) -> Option<Job> {
        // One at a time until there is a full batch: what is dropped while one is under way collects behind it.
        if self.under_way > 0 && self.queue.len() < most {
            return None;
        }
        let mut batch = Vec::new();
        let mut most_tries = 0;
        while batch.len() < most {
            match self.queue.pop_front() {
                Some(Unregister::Handle { handle, tries }) => {
                    if self.handles.contains(&handle) {
                        most_tries = most_tries.max(tries);
                        batch.push(handle);
                    }
                }
                Some(Unregister::Name { name, .. }) if !self.names.contains(&name) => {}
                Some(Unregister::Name { name, .. }) if is_in_use(&name) => _ = self.names.remove(&name),
                Some(Unregister::Name { name, tries }) if batch.is_empty() => {
                    self.under_way += 1;
                    self.names.remove(&name);
                    self.sent_names.insert(Arc::clone(&name));
                    return Some(Job::UnregisterByName { name, tries, connection: self.connection });
                }
                Some(named) => {
                    self.queue.push_front(named);
                    break;
                }
                None => break,
            }
        }
        if batch.is_empty() {
            return None;
        }
        self.under_way += 1;
        Some(Job::Unregister { handles: batch, tries: most_tries })
    }

    /// What became of a batch; false when it was not taken.
    pub(super) fn finished(&mut self, batch: Vec<u64>, tries: u8, answer: &Result<Reply, ClientError>) -> bool {
        self.under_way -= 1;
        let taken = is_taken(answer);
        for handle in batch {
            if !self.handles.remove(&handle) {
                continue;
            }
            if !taken && tries < MAX_RETRIES {
                self.push(Unregister::Handle { handle, tries: tries + 1 });
            } else if !taken {
                count_given_up(1);
            }
        }
        taken
    }

    /// A batch was too large to be sent: the next one is smaller.
    pub(super) fn again(&mut self, batch: Vec<u64>, tries: u8) {
        self.under_way -= 1;
        for handle in batch {
            if self.handles.remove(&handle) {
                self.push(Unregister::Handle { handle, tries });
            }
        }
    }

    /// What became of one by name; false when it was not taken.
    pub(super) fn finished_by_name(
        &mut self,
        name: Arc<Name>,
        tries: u8,
        connection: u64,
        answer: &Result<Reply, ClientError>,
    ) -> bool {
        self.under_way -= 1;
        let taken = is_taken(answer);
        let is_unused = self.sent_names.remove(&name);
        if !taken && is_unused && tries < MAX_RETRIES_BY_NAME && connection == self.connection {
            self.push(Unregister::Name { name, tries: tries + 1 });
        } else if !taken {
            count_given_up(1);
        }
        taken
    }
}

/// Any answer but `UNAVAILABLE`, which says that the request was not looked at.
fn is_taken(answer: &Result<Reply, ClientError>) -> bool {
    matches!(answer, Ok(reply) if reply.code() != Code::Unavailable)
}

fn count_given_up(subscribers: usize) {
    if subscribers > 0 {
        metrics::counter!("client_unregisters_given_up_total").increment(subscribers as u64);
    }
}
