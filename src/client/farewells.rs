//! Who is still to be unregistered: the queue of what the [book](super::book) owes for guards that are gone.
//!
//! It is bounded, and nothing in it is worth keeping for long: a subscriber that nobody unregisters goes stale by itself.

use std::collections::{HashMap, VecDeque};

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

    /// The next request: a batch of handles, those left out that another guard holds, or one by name.
    pub(super) fn next(&mut self, holders: &HashMap<u64, u32>) -> Option<Job> {
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
