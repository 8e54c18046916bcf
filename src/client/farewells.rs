//! Who is still to be unregistered: the queue of what the [book](super::book) owes for guards that are gone.
//!
//! It is bounded, and nothing in it is worth keeping for long: a subscriber that nobody unregisters goes stale by itself.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::{BuildHasher as _, RandomState},
};

use super::{
    ClientError,
    book::{Job, MAX_HANDLES, Who},
};
use crate::wire::proto::{Code, Reply};

/// How often an unregistering is tried again. After that the service is left to find out.
pub(super) const MAX_RETRIES: u8 = 5;

/// What is owed for one subscriber.
#[derive(Debug)]
pub(super) enum Farewell {
    /// The service gave it this handle.
    Handle { handle: u64, tries: u8 },
    /// The service may have registered it; no answer said so.
    Name { who: Who, tries: u8 },
}

/// Whose name is in use, by guards and by registrations under way: a farewell by name would meet them too.
///
/// By hash, because there may be a million of them. Two names of one hash cost a farewell, and the subscriber goes stale.
#[derive(Debug, Default)]
pub(super) struct Names {
    hasher: RandomState,
    uses: HashMap<u64, Uses>,
}

#[derive(Debug, Default)]
struct Uses {
    count: usize,
    /// A farewell by this name was left out.
    left_out: bool,
}

impl Names {
    fn hash(&self, who: &Who) -> u64 {
        // The address is not part of the name.
        self.hasher.hash_one((&who.stream_id, &who.client_id, who.session))
    }

    /// One more uses it.
    pub(super) fn add(&mut self, who: &Who) {
        self.uses.entry(self.hash(who)).or_default().count += 1;
    }

    /// One less does; true when it was the last and a farewell was left out for their sake.
    pub(super) fn subtract(&mut self, who: &Who) -> bool {
        let Entry::Occupied(mut uses) = self.uses.entry(self.hash(who)) else { return false };
        uses.get_mut().count -= 1;
        uses.get().count == 0 && uses.remove().left_out
    }

    /// Whether a farewell by this name is to be left out.
    fn leave_out(&mut self, who: &Who) -> bool {
        let hash = self.hash(who);
        self.uses.get_mut(&hash).map(|uses| uses.left_out = true).is_some()
    }

    /// Nobody is to be spared any more.
    pub(super) fn clear(&mut self) {
        self.uses.clear();
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.uses.values().map(|uses| uses.count).sum()
    }
}

/// The queue, and how many requests of it are under way.
#[derive(Debug)]
pub(super) struct Farewells {
    queue: VecDeque<Farewell>,
    capacity: usize,
    leaving: usize,
    pub(super) forgotten: u64,
}

impl Farewells {
    pub(super) fn new(capacity: usize) -> Self {
        Self { queue: VecDeque::new(), capacity, leaving: 0, forgotten: 0 }
    }

    /// Takes another `more` at once: those of a closing are as many as there are registrations, which are bounded.
    pub(super) fn make_room(&mut self, more: usize) {
        self.capacity = self.capacity.saturating_add(more);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Queues one, or forgets it when there is no room.
    pub(super) fn owe(&mut self, farewell: Farewell) {
        if self.queue.len() < self.capacity {
            self.queue.push_back(farewell);
            return;
        }
        self.forgotten += 1;
        metrics::counter!("client_unregisters_forgotten_total").increment(1);
        if self.forgotten.is_power_of_two() {
            let forgotten = self.forgotten;
            tracing::warn!(forgotten, "too many to unregister at once; the service will notice when they go stale");
        }
    }

    /// The next request: a batch of handles, those left out that another guard holds, or one by a name that is not in
    /// use.
    pub(super) fn next(&mut self, holders: &HashMap<u64, u32>, names: &mut Names) -> Option<Job> {
        // One at a time until there is a full batch: what is dropped while one is under way collects behind it.
        if self.leaving > 0 && self.queue.len() < MAX_HANDLES {
            return None;
        }
        let mut handles = Vec::new();
        let mut most_tries = 0;
        while handles.len() < MAX_HANDLES {
            match self.queue.pop_front() {
                Some(Farewell::Handle { handle, tries }) if !holders.contains_key(&handle) => {
                    most_tries = most_tries.max(tries);
                    handles.push(handle);
                }
                Some(Farewell::Handle { .. }) => {}
                Some(Farewell::Name { who, .. }) if names.leave_out(&who) => {}
                Some(Farewell::Name { who, tries }) if handles.is_empty() => {
                    self.leaving += 1;
                    return Some(Job::LeaveByName { who, tries });
                }
                Some(named) => {
                    self.queue.push_front(named);
                    break;
                }
                None => break,
            }
        }
        if handles.is_empty() {
            return None;
        }
        self.leaving += 1;
        Some(Job::Leave { handles, tries: most_tries })
    }

    /// What became of a batch; false when it was not taken.
    pub(super) fn left(&mut self, handles: Vec<u64>, tries: u8, answer: &Result<Reply, ClientError>) -> bool {
        self.leaving -= 1;
        let taken = is_taken(answer);
        if !taken && tries < MAX_RETRIES {
            handles.into_iter().for_each(|handle| self.owe(Farewell::Handle { handle, tries: tries + 1 }));
        }
        taken
    }

    /// What became of one by name; false when it was not taken.
    pub(super) fn left_by_name(&mut self, who: Who, tries: u8, answer: &Result<Reply, ClientError>) -> bool {
        self.leaving -= 1;
        let taken = is_taken(answer);
        if !taken && tries < MAX_RETRIES {
            self.owe(Farewell::Name { who, tries: tries + 1 });
        }
        taken
    }
}

/// Any answer but `UNAVAILABLE`, which says that the request was not looked at.
fn is_taken(answer: &Result<Reply, ClientError>) -> bool {
    matches!(answer, Ok(reply) if reply.code() != Code::Unavailable)
}
