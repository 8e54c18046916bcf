//! What all shards together count.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::Counts;

/// What each shard last counted, for limits that hold across shards, and for metrics.
#[derive(Debug)]
pub struct Totals {
    shards: Box<[ShardTotals]>,
}

#[derive(Debug, Default)]
struct ShardTotals {
    total: AtomicU64,
    active: AtomicU64,
    stale: AtomicU64,
    unique: AtomicU64,
    streams: AtomicU64,
    running: AtomicU64,
    config_bytes: AtomicU64,
    client_bytes: AtomicU64,
    filters: AtomicU64,
    filter_bytes: AtomicU64,
    history_bytes: AtomicU64,
}

impl Totals {
    /// For so many shards, nothing counted yet.
    #[must_use]
    pub fn new(shards: usize) -> Self {
        Self { shards: (0..shards).map(|_| ShardTotals::default()).collect() }
    }

    /// Notes what a shard counts now.
    pub fn set(&self, shard: usize, counts: &Counts) {
        let own = &self.shards[shard];
        own.total.store(counts.total, Ordering::Relaxed);
        own.active.store(counts.active, Ordering::Relaxed);
        own.stale.store(counts.stale, Ordering::Relaxed);
        own.unique.store(counts.unique, Ordering::Relaxed);
        own.streams.store(counts.streams, Ordering::Relaxed);
        own.running.store(counts.running, Ordering::Relaxed);
        own.config_bytes.store(counts.config_bytes, Ordering::Relaxed);
        own.client_bytes.store(counts.client_bytes, Ordering::Relaxed);
        own.filters.store(counts.filters, Ordering::Relaxed);
        own.filter_bytes.store(counts.filter_bytes, Ordering::Relaxed);
        own.history_bytes.store(counts.history_bytes, Ordering::Relaxed);
    }

    /// How many streams these shards counted last.
    #[must_use]
    pub fn streams(&self, shards: impl Iterator<Item = usize>) -> u64 {
        shards.map(|shard| self.shards[shard].streams.load(Ordering::Relaxed)).sum()
    }

    /// What all shards together counted last.
    #[must_use]
    pub fn sum(&self) -> Counts {
        self.shards.iter().fold(Counts::default(), |sum, own| {
            sum + Counts {
                total: own.total.load(Ordering::Relaxed),
                active: own.active.load(Ordering::Relaxed),
                stale: own.stale.load(Ordering::Relaxed),
                unique: own.unique.load(Ordering::Relaxed),
                streams: own.streams.load(Ordering::Relaxed),
                running: own.running.load(Ordering::Relaxed),
                config_bytes: own.config_bytes.load(Ordering::Relaxed),
                client_bytes: own.client_bytes.load(Ordering::Relaxed),
                filters: own.filters.load(Ordering::Relaxed),
                filter_bytes: own.filter_bytes.load(Ordering::Relaxed),
                history_bytes: own.history_bytes.load(Ordering::Relaxed),
            }
        })
    }
}
