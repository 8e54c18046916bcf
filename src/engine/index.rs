//! A hash index of slots that does not own its keys and grows in small steps.
//!
//! One hashbrown table would move all its entries at once when it grows: 40 ms at a million. Here the hash picks one
//! of 4,096 tables, each of which grows by itself. They fill alike, but not so alike that many grow in the same moment.

use hashbrown::HashTable;

const TABLES: usize = 4_096;

/// Slots, found by a hash and a comparison that the caller makes with its own records.
#[derive(Debug)]
pub(super) struct Index {
    tables: Box<[HashTable<u32>]>,
    len: usize,
}

impl Index {
    pub(super) fn new() -> Self {
        Self { tables: (0..TABLES).map(|_| HashTable::new()).collect(), len: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn find(&self, hash: u64, is_it: impl FnMut(&u32) -> bool) -> Option<u32> {
        self.tables[table(hash)].find(hash, is_it).copied()
    }

    /// What [`Index::find`] will compare first, or nothing that is; reads the same places.
    pub(super) fn likely(&self, hash: u64) -> u32 {
        self.find(hash, |_| true).unwrap_or(u32::MAX)
    }

    /// Adds a slot that is not there. `hash_of` gives the hash of any slot in the index, for when a table grows.
    pub(super) fn insert(&mut self, hash: u64, slot: u32, hash_of: impl Fn(&u32) -> u64) {
        self.tables[table(hash)].insert_unique(hash, slot, hash_of);
        self.len += 1;
    }

    /// Puts another slot in the place of one.
    pub(super) fn replace(&mut self, hash: u64, old: u32, new: u32) {
        if let Some(entry) = self.tables[table(hash)].find_mut(hash, |slot| *slot == old) {
            *entry = new;
        }
    }

    pub(super) fn remove(&mut self, hash: u64, slot: u32) {
        let entry = self.tables[table(hash)].find_entry(hash, |entry| *entry == slot);
        debug_assert!(entry.is_ok(), "slot {slot} is not in the index");
        if let Ok(entry) = entry {
            entry.remove();
            self.len -= 1;
        }
    }
}

/// Hashbrown takes the place from the low bits and the tag from the top seven; these are neither.
const fn table(hash: u64) -> usize {
    (hash >> 40) as usize & (TABLES - 1)
}
