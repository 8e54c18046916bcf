//! What the client reports, and whose business it is.
//!
//! Reports come in the order in which the client made them, but behind what it did; and its queue holds 128 of them and
//! drops the rest. So nothing waits here, and a burst in which some may have been lost is told to those who must know.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_nats::Event;
use metrics::counter;
use tokio::sync::watch;

use super::{
    inbox::Inbox, link::Link, log_limit::LogLimit, publish_gate::PublishGate, server_error::ServerError,
    subscriptions::Subscriptions, tally::Tally,
};
use crate::transport::{Denial, Denied, TransportError, publish_denial};

/// More than so many reports within [`BURST_TIME`] may have filled the client's queue: less than it holds.
const BURST: usize = 100;
const BURST_TIME: Duration = Duration::from_secs(1);

/// What one connection's parts share with the client that they use.
pub(super) struct Shared {
    pub(super) link: Link,
    pub(super) inbox: Inbox,
    pub(super) gate: PublishGate,
    pub(super) subscriptions: Arc<Subscriptions>,
    pub(super) tally: Arc<Tally>,
    pub(super) denied: Arc<watch::Sender<Denied>>,
    pub(super) log: LogLimit,
    burst: Mutex<Burst>,
}

/// Reports that came together.
struct Burst {
    begun: Instant,
    reports: usize,
    refusals: usize,
}

impl Burst {
    /// Whether some of the server's refusals may have been lost with this report.
    fn add(&mut self, is_refusal: bool, now: Instant) -> bool {
        if now.duration_since(self.begun) >= BURST_TIME {
            *self = Self { begun: now, reports: 0, refusals: 0 };
        }
        self.reports += 1;
        self.refusals += usize::from(is_refusal);
        let overflowed = self.reports >= BURST && self.refusals > 0;
        if overflowed {
            *self = Self { begun: now, reports: 0, refusals: 0 };
        }
        overflowed
    }
}

impl Shared {
    pub(super) fn new(link: Link, inbox: Inbox, log: LogLimit) -> Self {
        let denied = Arc::new(watch::Sender::default());
        Self {
            link,
            inbox,
            gate: PublishGate::new(Arc::clone(&denied)),
            subscriptions: Arc::new(Subscriptions::new(Arc::clone(&denied))),
            tally: Arc::default(),
            denied,
            log,
            burst: Mutex::new(Burst { begun: Instant::now(), reports: 0, refusals: 0 }),
        }
    }

    /// What the client reports, in the client's own task.
    pub(super) fn on_event(&self, event: &Event) {
        let now = Instant::now();
        match event {
            Event::Connected | Event::Draining => {}
            Event::Disconnected => self.link.log_lost(),
            Event::LameDuckMode => self.link.lame_duck(),
            Event::Closed => self.link.client_ended(),
            Event::SlowConsumer(_) => self.tally.report(),
            Event::ServerError(error) => self.on_server_error(error, now),
            Event::ClientError(error) => self.log_away(&error.to_string(), now),
        }
        let is_refusal = matches!(event, Event::ServerError(_));
        if self.burst.lock().unwrap_or_else(PoisonError::into_inner).add(is_refusal, now) {
            self.denied.send_modify(|denied| denied.missed += 1);
            self.subscriptions.may_have_missed();
        }
        self.link.look();
    }

    fn on_server_error(&self, error: &async_nats::ServerError, now: Instant) {
        let async_nats::ServerError::Other(text) = error else { return self.log_error(&error.to_string(), now) };
        match ServerError::parse(text) {
            ServerError::Subscription { pattern, queue } => {
                self.subscriptions.refuse(&pattern, queue.as_deref(), text);
                if pattern == self.inbox.pattern() {
                    self.fail_inbox();
                }
                self.log_refused_subscription(text, now);
            }
            ServerError::SomeSubscription => {
                self.subscriptions.refuse_one(text);
                self.log_refused_subscription(text, now);
            }
            ServerError::Publish(subject) => self.refuse_publish(&subject, text, now),
            ServerError::Reply(subject) => {
                let denial = Denial { reason: text.clone(), ..publish_denial(&subject) };
                self.inbox.fail(&subject, &TransportError::Denied(denial));
                self.log_refused_message(&subject, now);
            }
            ServerError::Other => self.log_error(text, now),
        }
    }

    fn refuse_publish(&self, subject: &str, text: &str, now: Instant) {
        let denial = Denial { reason: text.to_owned(), ..publish_denial(subject) };
        if self.inbox.owns(subject) {
            // Each has a subject of its own, but what is refused to one is refused to all.
            let pattern = self.inbox.pattern();
            self.gate.refuse(&pattern, now);
            self.inbox.fail(subject, &TransportError::Denied(denial.clone()));
            let denial = Denial { subject: pattern, ..denial };
            self.denied.send_if_modified(|denied| {
                let is_first = denied.inbox.is_none();
                if is_first {
                    denied.inbox = Some(denial);
                }
                is_first
            });
        } else {
            self.gate.refuse(subject, now);
            self.inbox.fail_those_about(subject, &TransportError::Denied(denial));
        }
        self.log_refused_message(subject, now);
    }

    /// Without an inbox nothing comes back.
    pub(super) fn fail_inbox(&self) {
        if let Some(denial) = self.denied.borrow().inbox.clone() {
            self.inbox.fail_all(&TransportError::Denied(denial));
        }
    }

    fn log_refused_subscription(&self, error: &str, now: Instant) {
        counter!("orchestrator_broker_refusals_total", "operation" => "subscribe").increment(1);
        if let Some(unlogged) = self.log.permit("subscribe", now) {
            let Link { url, name, .. } = &self.link;
            tracing::warn!(%url, name, error, unlogged, "NATS refuses a subscription; trying it until it is allowed");
        }
    }

    fn log_refused_message(&self, subject: &str, now: Instant) {
        counter!("orchestrator_broker_refusals_total", "operation" => "publish").increment(1);
        if let Some(unlogged) = self.log.permit("publish", now) {
            let Link { url, name, .. } = &self.link;
            tracing::warn!(%url, name, subject, unlogged, "NATS refuses messages: the login may not publish them");
        }
    }

    fn log_error(&self, error: &str, now: Instant) {
        if let Some(unlogged) = self.log.permit(error, now) {
            let Link { url, name, .. } = &self.link;
            tracing::warn!(%url, name, error, unlogged, "NATS reported an error");
        }
    }

    /// Says that an attempt to connect failed.
    pub(super) fn log_away(&self, error: &str, now: Instant) {
        if self.log.permit(error, now).is_some() {
            let (Link { url, name, .. }, away_s) = (&self.link, self.link.away_s(now));
            tracing::warn!(%url, name, error, away_s, "NATS is away; trying until it is there");
        }
    }

    /// Says that what was refused is accepted.
    pub(super) fn log_accepted(&self, what: &'static str, now: Instant) {
        if self.log.permit(what, now).is_some() {
            let Link { url, name, .. } = &self.link;
            tracing::info!(%url, name, "NATS accepts {what} again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_reports_at_once_that_a_refusal_may_be_lost_are_told() {
        let begun = Instant::now();
        let mut burst = Burst { begun, reports: 0, refusals: 0 };
        let told = |burst: &mut Burst, refusals: bool, at_ms: u64, count: usize| {
            (0..count).filter(|_| burst.add(refusals, begun + Duration::from_millis(at_ms))).count()
        };
        assert_eq!(told(&mut burst, true, 0, 99), 0);
        assert_eq!(told(&mut burst, true, 1_000, 99), 0, "a second later it begins anew");
        assert_eq!(told(&mut burst, true, 1_999, 1), 1);
        assert_eq!(told(&mut burst, false, 3_000, 1_000), 0, "none of them refuses anything");
        assert_eq!(told(&mut burst, true, 3_500, 1), 1);
    }
}
