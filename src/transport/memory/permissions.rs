//! What a bus refuses: patterns that may not be subscribed or published to, and subscriptions beyond a number.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use super::{Link, routes::Routes};
use crate::{
    subject::matches,
    transport::{Denial, Operation},
};

/// What is refused, to each connection alike.
#[derive(Debug)]
pub(super) struct Permissions {
    refused: Vec<(Operation, Box<str>)>,
    /// Of one connection.
    pub(super) max_subscriptions: usize,
    /// Whether anything was refused when the subscriptions were last judged.
    judged: bool,
}

impl Default for Permissions {
    fn default() -> Self {
        Self { refused: Vec::new(), max_subscriptions: usize::MAX, judged: false }
    }
}

impl Permissions {
    pub(super) fn deny(&mut self, operation: Operation, pattern: &str) {
        self.refused.push((operation, pattern.into()));
    }

    pub(super) fn allow(&mut self, operation: Operation, pattern: &str) {
        self.refused.retain(|refused| (refused.0, &*refused.1) != (operation, pattern));
    }

    pub(super) fn refuses(&self, operation: Operation, subject: &str) -> bool {
        self.refused.iter().any(|(refused, pattern)| *refused == operation && matches(pattern, subject))
    }

    /// Why a subscription to `pattern` is refused beside so many others that are `live`.
    fn refusal(&self, pattern: &str, live: usize) -> Option<Denial> {
        let reason = if self.refuses(Operation::Subscribe, pattern) {
            format!("Permissions Violation for Subscription to {pattern:?}")
        } else if live >= self.max_subscriptions {
            "maximum subscriptions exceeded".to_owned()
        } else {
            return None;
        };
        Some(Denial { operation: Operation::Subscribe, subject: pattern.to_owned(), reason })
    }

    fn is_any(&self) -> bool {
        !self.refused.is_empty() || self.max_subscriptions < usize::MAX
    }
}

impl Routes {
    /// Why a new subscription of `link` to `pattern` is refused.
    pub(super) fn refusal(&self, link: &Arc<Link>, pattern: &str) -> Option<Denial> {
        if !self.permissions.is_any() {
            return None;
        }
        let others = self.subscribers.iter().filter(|(_, other)| other.denied.is_some() && other.is_live);
        self.permissions.refusal(pattern, others.filter(|(_, other)| Arc::ptr_eq(&other.link, link)).count())
    }

    /// Finds out which subscriptions are refused now, and tells those concerned.
    pub(super) fn judge(&mut self) {
        let any = self.permissions.is_any();
        if !std::mem::replace(&mut self.permissions.judged, any) && !any {
            return;
        }
        let mut oldest_first: Vec<(u64, usize)> =
            self.subscribers.iter().map(|(index, subscriber)| (subscriber.number, index)).collect();
        oldest_first.sort_unstable();
        for link in self.links.iter().filter_map(Weak::upgrade) {
            let (mut live, mut refused) = (0, BTreeMap::new());
            for (_, index) in &oldest_first {
                let subscriber = &mut self.subscribers[*index];
                let Some(denied) = subscriber.denied.as_ref().filter(|_| Arc::ptr_eq(&subscriber.link, &link)) else {
                    continue;
                };
                let refusal = self.permissions.refusal(&subscriber.pattern, live);
                subscriber.is_live = refusal.is_none();
                live += usize::from(subscriber.is_live);
                if let Some(Denial { subject, reason, .. }) = refusal.clone() {
                    refused.insert(subject, reason);
                }
                denied.send_if_modified(|now| {
                    *now != refusal && {
                        *now = refusal;
                        true
                    }
                });
            }
            link.denied.send_if_modified(|denied| {
                denied.subscribe != refused && {
                    denied.subscribe = refused;
                    true
                }
            });
        }
    }
}
