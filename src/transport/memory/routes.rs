//! Who gets what: the subscriptions of a bus and how a message finds them.

use std::{
    collections::HashMap,
    sync::{Arc, Weak, atomic::Ordering},
};

use slab::Slab;
use tokio::sync::{mpsc, watch};

use super::{Link, permissions::Permissions};
use crate::{
    subject::{has_wildcard, matches},
    transport::{Denial, Message, count_skipped_answer},
};

/// A place in the slab and the number of the subscription that took it, so that a late drop never removes another's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) index: usize,
    pub(super) number: u64,
}

pub(super) struct Subscriber {
    pub(super) number: u64,
    pub(super) pattern: Box<str>,
    queue: Option<Box<str>>,
    /// When it was last picked for its group, as a number of [`Routes::picks`]; the longest ago is next.
    picked: u64,
    sender: mpsc::Sender<Message>,
    /// Whether it is not refused.
    pub(super) is_live: bool,
    /// Why it is. `None` for the inbox of a request, which never is.
    pub(super) denied: Option<watch::Sender<Option<Denial>>>,
    pub(super) link: Arc<Link>,
}

impl Subscriber {
    fn send(&self, message: &Message) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.sender.try_send(message.clone()) {
            match self.denied {
                Some(_) => _ = self.link.dropped.fetch_add(1, Ordering::Relaxed),
                None => count_skipped_answer(),
            }
        }
    }
}

/// Who gets what.
pub(super) struct Routes {
    pub(super) online: bool,
    pub(super) black_hole: bool,
    pub(super) max_payload: usize,
    pub(super) permissions: Permissions,
    pub(super) links: Vec<Weak<Link>>,
    pub(super) subscribers: Slab<Subscriber>,
    /// Patterns without wildcards, by subject, in the order of subscription. Only looked up, never walked, because a
    /// map's order differs from run to run.
    ///
    /// Invariant: `exact` and `wildcard` together hold each index of `subscribers` once; no list in `exact` is empty.
    exact: HashMap<Box<str>, Vec<usize>>,
    /// Patterns with wildcards, in the order of subscription.
    wildcard: Vec<usize>,
    /// Grows with each pick of a group's member and each subscription.
    picks: u64,
    /// Grows with each request.
    pub(super) inboxes: u64,
    /// Group members that match the message at hand; kept for its memory.
    members: Vec<usize>,
}

impl Routes {
    /// An online broker without subscriptions.
    pub(super) fn new(max_payload: usize) -> Self {
        Self {
            online: true,
            black_hole: false,
            max_payload,
            permissions: Permissions::default(),
            links: Vec::new(),
            subscribers: Slab::new(),
            exact: HashMap::new(),
            wildcard: Vec::new(),
            picks: 0,
            inboxes: 0,
            members: Vec::new(),
        }
    }

    pub(super) fn add(
        &mut self,
        link: &Arc<Link>,
        pattern: &str,
        queue: Option<&str>,
        capacity: usize,
        denied: Option<watch::Sender<Option<Denial>>>,
    ) -> (Key, mpsc::Receiver<Message>) {
        let (sender, receiver) = mpsc::channel(capacity);
        self.picks += 1;
        let number = self.picks;
        let index = self.subscribers.insert(Subscriber {
            number,
            pattern: pattern.into(),
            queue: queue.map(Into::into),
            picked: 0,
            sender,
            is_live: true,
            denied,
            link: Arc::clone(link),
        });
        if has_wildcard(pattern) {
            self.wildcard.push(index);
        } else {
            self.exact.entry(pattern.into()).or_default().push(index);
        }
        (Key { index, number }, receiver)
    }

    /// Removes what is there under `key`; true if it was.
    pub(super) fn remove(&mut self, key: Key) -> bool {
        if self.subscribers.get(key.index).is_none_or(|subscriber| subscriber.number != key.number) {
            return false;
        }
        let subscriber = self.subscribers.remove(key.index);
        match self.exact.get_mut(&subscriber.pattern) {
            Some(indices) => {
                indices.retain(|index| *index != key.index);
                if indices.is_empty() {
                    self.exact.remove(&subscriber.pattern);
                }
            }
            None => self.wildcard.retain(|index| *index != key.index),
        }
        true
    }

    pub(super) fn remove_link(&mut self, link: &Arc<Link>) {
        let of_link = |(_, subscriber): &(usize, &Subscriber)| Arc::ptr_eq(&subscriber.link, link);
        let keys: Vec<Key> = self
            .subscribers
            .iter()
            .filter(of_link)
            .map(|(index, subscriber)| Key { index, number: subscriber.number })
            .collect();
        for key in keys {
            self.remove(key);
        }
        self.judge();
    }

    pub(super) fn is_heard(&self, subject: &str) -> bool {
        let exact = self.exact.get(subject).into_iter().flatten();
        let wildcard = self.wildcard.iter().filter(|index| matches(&self.subscribers[**index].pattern, subject));
        exact.chain(wildcard).any(|index| self.subscribers[*index].is_live)
    }

    /// Sends `message` to each plain subscription that matches and to one member of each group that does.
    pub(super) fn deliver(&mut self, message: &Message) {
        if self.black_hole {
            return;
        }
        let mut members = std::mem::take(&mut self.members);
        let exact = self.exact.get(message.subject.as_str()).into_iter().flatten();
        let wildcard =
            self.wildcard.iter().filter(|index| matches(&self.subscribers[**index].pattern, &message.subject));
        for &index in exact.chain(wildcard) {
            let subscriber = &self.subscribers[index];
            if !subscriber.is_live {
                continue;
            }
            match subscriber.queue {
                None => subscriber.send(message),
                Some(_) => members.push(index),
            }
        }
        self.deliver_to_groups(message, &mut members);
        members.clear();
        self.members = members;
    }

    /// Groups go by name alone, as in NATS: its members may have come by different patterns.
    fn deliver_to_groups(&mut self, message: &Message, members: &mut Vec<usize>) {
        while let Some(&first) = members.first() {
            let group = self.subscribers[first].queue.clone();
            let next = members
                .iter()
                .copied()
                .filter(|index| self.subscribers[*index].queue == group)
                .min_by_key(|index| (self.subscribers[*index].picked, self.subscribers[*index].number))
                .unwrap_or(first);
            self.picks += 1;
            self.subscribers[next].picked = self.picks;
            self.subscribers[next].send(message);
            members.retain(|index| self.subscribers[*index].queue != group);
        }
    }
}
