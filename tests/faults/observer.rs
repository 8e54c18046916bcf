//! A reader of updates on a connection of its own, who writes down when each came.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::select_all};
use orchestrator_service::wire::proto::{Cause, StateUpdate};
use prost::Message as _;
use tokio::task::JoinHandle;

use crate::{
    machine::Metronome,
    support::caller::Caller,
    support::waiting::{eventually, wall_ms},
};

/// An update, and when it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) update: StateUpdate,
    pub(crate) at: Instant,
    /// By the wall clock.
    pub(crate) at_ms: u64,
}

/// What one stream said, each (epoch, sequence) once.
#[derive(Debug, Default, Clone)]
pub(crate) struct History {
    pub(crate) updates: Vec<Seen>,
    /// How many came a second time.
    pub(crate) repeats: usize,
    /// By (epoch, sequence), to tell repeats.
    known: BTreeMap<(u64, u64), StateUpdate>,
}

/// Reads in the background until it is dropped.
#[derive(Debug)]
pub(crate) struct Observer {
    pub(crate) caller: Caller,
    pub(crate) machine: Metronome,
    histories: Arc<Mutex<Histories>>,
    reading: JoinHandle<()>,
}

type Histories = BTreeMap<String, History>;

impl Observer {
    /// Of all streams.
    pub(crate) async fn of_all(url: &str) -> Self {
        Self::of(url, &["*"]).await
    }

    /// Of these streams.
    pub(crate) async fn of(url: &str, ids: &[impl AsRef<str>]) -> Self {
        let caller = Caller::connect(url).await;
        let mut subscriptions = Vec::new();
        for id in ids {
            let subject = format!("stream.{}.updates", id.as_ref());
            subscriptions.push(caller.transport.subscribe(&subject, None).await.expect("a subscription"));
        }
        let mut messages = select_all(subscriptions);
        caller.until_connected().await;
        let histories = Arc::new(Mutex::new(Histories::new()));
        let into = Arc::clone(&histories);
        let reading = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                let seen = Seen {
                    update: StateUpdate::decode(message.payload).expect("an update"),
                    at: Instant::now(),
                    at_ms: wall_ms(),
                };
                let mut histories = lock(&into);
                histories.entry(seen.update.stream_id.clone()).or_default().note(seen);
            }
        });
        Self { caller, machine: Metronome::start(), histories, reading }
    }

    /// What the stream has said so far.
    pub(crate) fn history(&self, id: &str) -> History {
        self.intact();
        lock(&self.histories).get(id).cloned().unwrap_or_default()
    }

    /// Whether the stream has said something like this.
    pub(crate) fn has_seen(&self, id: &str, is_it: impl Fn(&Seen) -> bool) -> bool {
        self.intact();
        lock(&self.histories).get(id).is_some_and(|history| history.updates.iter().rev().any(is_it))
    }

    /// Waits until the stream has said something like this.
    pub(crate) async fn until(&self, what: &str, id: &str, is_it: impl Fn(&Seen) -> bool) {
        eventually(&format!("{id}: {what}"), async || self.has_seen(id, &is_it)).await;
    }

    /// Forgets what was seen so far, for a measurement that begins now.
    pub(crate) fn forget(&self) {
        lock(&self.histories).clear();
    }

    fn intact(&self) {
        assert!(!self.reading.is_finished(), "the observer found something wrong, see above");
        assert_eq!(self.caller.transport.dropped(), 0, "the observer kept up");
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl History {
    /// Drops what was seen before, which must be the same to the letter: a change comes again when the broker may not
    /// have had it. Anything else must be newer than all before.
    fn note(&mut self, seen: Seen) {
        let key = (seen.update.epoch, seen.update.sequence);
        if let Some(before) = self.known.get(&key) {
            assert_eq!(before, &seen.update, "one sequence, one update");
            self.repeats += 1;
            return;
        }
        let newest = self.known.last_key_value().map(|(newest, _)| *newest);
        assert!(newest < Some(key), "{key:?} comes behind {newest:?}");
        self.known.insert(key, seen.update.clone());
        self.updates.push(seen);
    }

    pub(crate) fn changes(&self) -> Vec<StateUpdate> {
        let changes = self.updates.iter().filter(|seen| !matches!(seen.update.cause(), Cause::Tick | Cause::Snapshot));
        changes.map(|seen| seen.update.clone()).collect()
    }

    /// The longest time without an update from `since` to the last one seen, by arrival and by the service's clock.
    pub(crate) fn longest_gaps(&self) -> Gaps {
        let mut gaps = Gaps::default();
        for pair in self.updates.windows(2) {
            gaps.by_arrival = gaps.by_arrival.max(pair[1].at - pair[0].at);
            let by_clock = pair[1].update.server_time_ms.saturating_sub(pair[0].update.server_time_ms);
            gaps.by_clock = gaps.by_clock.max(Duration::from_millis(by_clock));
            gaps.count += 1;
        }
        gaps
    }
}

/// How regular a beat was.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Gaps {
    /// Of how many gaps.
    pub(crate) count: usize,
    /// The longest, as the observer saw it.
    pub(crate) by_arrival: Duration,
    /// The longest by `server_time_ms`.
    pub(crate) by_clock: Duration,
}

impl Gaps {
    /// The worst of both.
    pub(crate) fn worse(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            by_arrival: self.by_arrival.max(other.by_arrival),
            by_clock: self.by_clock.max(other.by_clock),
        }
    }
}

impl std::fmt::Display for Gaps {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "longest of {} gaps: {:.1} ms by arrival, {} ms by the clock",
            self.count,
            self.by_arrival.as_secs_f64() * 1e3,
            self.by_clock.as_millis()
        )
    }
}

fn lock(histories: &Mutex<Histories>) -> MutexGuard<'_, Histories> {
    histories.lock().expect("the observer reads on")
}
