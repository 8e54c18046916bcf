//! Updates of many streams gathered into messages of a feed, none of which is longer than the connection takes.

use bytes::{Bytes, BytesMut};
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::wire::{encode, feed};

/// Messages that are being filled, one a partition.
#[derive(Debug)]
pub(super) struct Batches {
    max_bytes: usize,
    of_partition: HashMap<u8, BytesMut, FixedState>,
}

impl Batches {
    /// None yet, and none longer than that.
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, of_partition: HashMap::default() }
    }

    /// Adds an update, and gives away the partition's message before it if both do not fit into one. False if it does
    /// not fit by itself: then it is not added.
    pub(super) fn add(&mut self, partition: u8, update: &[u8], full: impl FnOnce(Bytes)) -> bool {
        let entry_bytes = feed::entry_bytes(update.len());
        if entry_bytes > self.max_bytes {
            return false;
        }
        let batch = self.of_partition.entry(partition).or_default();
        if batch.len() + entry_bytes > self.max_bytes {
            full(batch.split().freeze());
        }
        encode::write_batch_entry(batch, update);
        true
    }

    /// Gives away what is left, in the order of the partitions: a map's own differs from run to run.
    pub(super) fn finish(self, mut each: impl FnMut(u8, Bytes)) {
        let mut batches: Vec<(u8, BytesMut)> = self.of_partition.into_iter().collect();
        batches.sort_unstable_by_key(|(partition, _)| *partition);
        for (partition, batch) in batches {
            each(partition, batch.freeze());
        }
    }
}
