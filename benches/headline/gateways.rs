//! The gateways of the run: their viewers come, are heard of, are replaced and fall silent; and what is known of it, for
//! whoever compares that with the service's totals.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use async_nats::Client;
use futures_util::StreamExt as _;
use orchestrator_service::wire::{proto::Reply, subject};
use tokio::task::JoinSet;

use crate::{
    Plan,
    support::{
        ids,
        nats::{
            caller::{self, A_BATCH},
            messages,
        },
    },
};

pub(crate) const GATEWAYS: u64 = 4;
/// RegisterBatches that a gateway has under way at once while everybody arrives.
const AT_ONCE: usize = 4;
/// Messages that a gateway has under way at once later on, so that a slow answer holds up no heartbeat.
const UNDER_WAY: usize = 128;
/// One of so many viewers is replaced each minute, and one falls silent.
pub(crate) const ONE_OF: u64 = 100;
/// When a silent viewer has to be gone, after the stale timeout.
pub(crate) const REMOVAL_SLACK: Duration = Duration::from_secs(1);
/// Clocks are compared in whole milliseconds.
const CLOCK_SLACK: Duration = Duration::from_millis(5);

/// Some who fell silent together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silent {
    /// Before their last heartbeat was sent, and when it was answered.
    pub(crate) heard: (Instant, Instant),
    pub(crate) count: u64,
}

/// What gateways have done, for whoever compares it with the service's totals.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Registered, not asked to leave, and heartbeating.
    pub(crate) live: AtomicU64,
    /// On their way in or out.
    pub(crate) moving: AtomicU64,
    /// All that ever were.
    pub(crate) moved: AtomicU64,
    pub(crate) silent: Mutex<Vec<Silent>>,
    /// Heartbeats of live viewers that the service did not know.
    pub(crate) thrown_out: AtomicU64,
    /// Of batches.
    pub(crate) latest_heartbeat_us: AtomicU64,
    pub(crate) heartbeats: AtomicU64,
}

/// Within which limits the service's total has to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) least: u64,
    pub(crate) most: u64,
}

impl Known {
    /// A reading of it, to be closed by [`Known::limits`] behind the question to the service.
    pub(crate) fn open(&self) -> (u64, u64, u64, Instant) {
        (self.live.load(Relaxed), self.moving.load(Relaxed), self.moved.load(Relaxed), Instant::now())
    }

    pub(crate) fn limits(&self, before: (u64, u64, u64, Instant), stale: Duration) -> Limits {
        let after = self.open();
        // Who moved in between may have been counted or not.
        let slack = after.2 - before.2;
        let silent = self.silent.lock().unwrap();
        let still = |silent: &&Silent| silent.heard.0 + stale > after.3 + CLOCK_SLACK;
        let yet = |silent: &&Silent| silent.heard.1 + stale + REMOVAL_SLACK > before.3;
        let sum = |those: &dyn Fn(&&Silent) -> bool| silent.iter().filter(those).map(|some| some.count).sum::<u64>();
        Limits {
            least: (before.0.min(after.0) + sum(&still)).saturating_sub(slack),
            most: before.0.max(after.0) + before.1.max(after.1) + sum(&yet) + slack,
        }
    }
}

pub(crate) struct Gateway {
    plan: Plan,
    number: u64,
    client: Client,
    /// The streams whose viewers it has.
    streams: Vec<String>,
    /// By place in the stream, then by stream: neighbours watch different streams. 0 for who fell silent.
    handles: Vec<u64>,
    /// When each batch was last sent, and answered.
    heard: Vec<(Instant, Instant)>,
    silent: Vec<u64>,
    /// For names that nobody had before.
    named: u64,
    known: Arc<Known>,
}

/// What came of something that a gateway had under way.
enum Done {
    Heartbeat { batch: usize, sent: Instant, answered: Instant, unknown: Vec<u64> },
    Replaced { stream: usize, places: Vec<usize>, handles: Vec<u64>, unknown: usize },
}

impl Gateway {
    pub(crate) async fn new(plan: Plan, number: u64, url: &str, known: Arc<Known>) -> Self {
        let streams: Vec<String> = (0..plan.streams).filter(|n| n % GATEWAYS == number).map(ids::stream).collect();
        let handles = vec![0; streams.len() * plan.a_stream() as usize];
        let heard = vec![(Instant::now(), Instant::now()); handles.len().div_ceil(A_BATCH as usize)];
        let client = caller::connect(url).await;
        Self { plan, number, client, streams, handles, heard, silent: Vec::new(), named: 0, known }
    }

    /// Numbers for so many new viewers.
    fn names(&mut self, count: u64) -> std::ops::Range<u64> {
        let first = (self.number << 40) + self.named;
        self.named += count;
        first..first + count
    }

    /// Everybody comes.
    pub(crate) async fn open(&mut self) {
        let mut batches = Vec::new();
        for stream in 0..self.streams.len() {
            for first in (0..self.plan.a_stream()).step_by(A_BATCH as usize) {
                let count = A_BATCH.min(self.plan.a_stream() - first);
                batches.push((stream, first, self.names(count)));
            }
        }
        let (client, streams) = (&self.client, &self.streams);
        let registered = batches.into_iter().map(|(stream, first, names)| async move {
            let message = messages::register_batch(&streams[stream], names);
            (stream, first, caller::done(client, subject::SUBSCRIPTION, message).await.handles)
        });
        let mut registered = futures_util::stream::iter(registered).buffer_unordered(AT_ONCE);
        while let Some((stream, first, handles)) = registered.next().await {
            self.known.live.fetch_add(handles.len() as u64, Relaxed);
            for (place, handle) in (first..).zip(handles) {
                assert_ne!(handle, 0, "all are registered");
                self.handles[place as usize * streams.len() + stream] = handle;
            }
        }
        self.heard.fill((Instant::now(), Instant::now()));
    }

    /// Heartbeats, replacements and silences, each at its time, until the end.
    pub(crate) async fn run(mut self, began: Instant) -> Self {
        let Plan { span, heartbeat, minute, .. } = self.plan;
        let (mut beats, mut replaced, mut silences) = (0_u32, 0_u32, 0);
        let beat = heartbeat / self.heard.len() as u32;
        let replacement = minute / self.streams.len() as u32;
        let mut under_way = JoinSet::new();
        loop {
            // Between two beats, so that a viewer who leaves is not heartbeating just then.
            let due = [beat * beats, replacement * replaced + beat / 2, minute * (silences as u32 + 1)];
            let (first, at) = due.into_iter().enumerate().min_by_key(|(_, due)| *due).unwrap();
            if at >= span {
                break;
            }
            let wait = tokio::time::sleep_until((began + at).into());
            tokio::pin!(wait);
            loop {
                tokio::select! {
                    Some(done) = under_way.join_next() => self.note(done.unwrap()),
                    () = &mut wait, if under_way.len() < UNDER_WAY => break,
                }
            }
            match first {
                0 => {
                    let late = (began + at).elapsed().as_micros() as u64;
                    self.known.latest_heartbeat_us.fetch_max(late, Relaxed);
                    under_way.spawn(self.heartbeat(beats as usize % self.heard.len()));
                    beats += 1;
                }
                1 => {
                    let (stream, round) =
                        (replaced as usize % self.streams.len(), replaced as usize / self.streams.len());
                    under_way.spawn(self.replace(stream, round as u64));
                    replaced += 1;
                }
                _ => {
                    if silences < self.plan.silences() {
                        // So that it is known when each was last heard.
                        while let Some(done) = under_way.join_next().await {
                            self.note(done.unwrap());
                        }
                        self.go_silent(silences);
                    }
                    silences += 1;
                }
            }
        }
        while let Some(done) = under_way.join_next().await {
            self.note(done.unwrap());
        }
        self
    }

    fn note(&mut self, done: Done) {
        match done {
            Done::Heartbeat { batch, sent, answered, unknown } => {
                self.heard[batch] = (sent, answered);
                // Who has left meanwhile is rightly unknown.
                let first = batch * A_BATCH as usize;
                let those = &self.handles[first..(first + A_BATCH as usize).min(self.handles.len())];
                let thrown_out = unknown.iter().filter(|handle| those.contains(handle)).count();
                self.known.thrown_out.fetch_add(thrown_out as u64, Relaxed);
            }
            Done::Replaced { stream, places, handles, unknown } => {
                self.known.thrown_out.fetch_add(unknown as u64, Relaxed);
                for (place, handle) in places.into_iter().zip(handles) {
                    self.handles[place * self.streams.len() + stream] = handle;
                }
            }
        }
    }

    fn heartbeat(&self, batch: usize) -> impl Future<Output = Done> + use<> {
        let first = batch * A_BATCH as usize;
        let those = &self.handles[first..(first + A_BATCH as usize).min(self.handles.len())];
        let those: Vec<u64> = those.iter().copied().filter(|handle| *handle != 0).collect();
        self.known.heartbeats.fetch_add(those.len() as u64, Relaxed);
        let client = self.client.clone();
        async move {
            let sent = Instant::now();
            let message = messages::heartbeats_by_handle(those);
            let reply: Reply = caller::ask(&client, subject::SUBSCRIPTION, message).await;
            Done::Heartbeat { batch, sent, answered: Instant::now(), unknown: reply.unknown_handle }
        }
    }

    /// Some of a stream leave, and others come.
    fn replace(&mut self, stream: usize, round: u64) -> impl Future<Output = Done> + use<> {
        let places = self.chosen(ONE_OF / 2 + round % (ONE_OF / 2));
        let (count, streams) = (places.len() as u64, self.streams.len());
        let leaving = places.iter().map(|place| std::mem::take(&mut self.handles[place * streams + stream]));
        let leaving: Vec<u64> = leaving.filter(|handle| *handle != 0).collect();
        assert_eq!(leaving.len() as u64, count, "they are there");
        let names = self.names(count);
        let (client, known, id) = (self.client.clone(), Arc::clone(&self.known), self.streams[stream].clone());
        known.moved.fetch_add(count, Relaxed);
        known.moving.fetch_add(count, Relaxed);
        known.live.fetch_sub(count, Relaxed);
        async move {
            let left: Reply =
                caller::ask(&client, subject::SUBSCRIPTION, messages::unregister_by_handle(leaving)).await;
            let message = messages::register_batch(&id, names);
            let handles = caller::done(&client, subject::SUBSCRIPTION, message).await.handles;
            known.moved.fetch_add(count, Relaxed);
            known.live.fetch_add(count, Relaxed);
            known.moving.fetch_sub(count, Relaxed);
            Done::Replaced { stream, places, handles, unknown: left.unknown_handle.len() }
        }
    }

    /// Where a stream's viewers are who are chosen this time: spread over all places, so that their heartbeats are.
    fn chosen(&self, from: u64) -> Vec<usize> {
        let apart = self.plan.a_stream() / self.plan.few();
        (0..self.plan.few()).map(|few| (few * apart + from % apart) as usize).collect()
    }

    /// Some of each stream say nothing any more.
    fn go_silent(&mut self, round: u64) {
        let mut counts = vec![0; self.heard.len()];
        for place in self.chosen(round) {
            for stream in 0..self.streams.len() {
                let at = place * self.streams.len() + stream;
                self.silent.push(std::mem::take(&mut self.handles[at]));
                counts[at / A_BATCH as usize] += 1;
            }
        }
        let counted: u64 = counts.iter().sum();
        let those = self.heard.iter().zip(counts).filter(|(_, count)| *count > 0);
        let mut silent = self.known.silent.lock().unwrap();
        silent.extend(those.map(|(heard, count)| Silent { heard: *heard, count }));
        self.known.moved.fetch_add(counted, Relaxed);
        self.known.live.fetch_sub(counted, Relaxed);
    }

    /// How many of those who fell silent the service still knows. They are heartbeats, so this is for the end.
    pub(crate) async fn silent_yet_known(&self) -> u64 {
        let mut known = 0;
        for those in self.silent.chunks(A_BATCH as usize) {
            let message = messages::heartbeats_by_handle(those.to_vec());
            let reply: Reply = caller::ask(&self.client, subject::SUBSCRIPTION, message).await;
            known += (those.len() - reply.unknown_handle.len()) as u64;
        }
        known
    }
}
