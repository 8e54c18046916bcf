//! A hash index of slots: a look-up reads one cache line as a rule, and growing reads no record.
//!
//! It does not own its keys. One hashbrown table would move all its entries at once when it grows, 40 ms at a million,
//! and would ask each record for its hash again. Here twelve bits of the hash pick one of 4,096 tables, each of which
//! grows by itself, by a quarter or a bucket; in it, sixteen more bits, the tag, say in which bucket an entry belongs,
//! whatever the number of buckets. So the tags are all that a table needs to know to grow.
//!
//! | bytes of a bucket | field | what |
//! |---|---|---|
//! | 40 | `slots` | ten slots |
//! | 20 | `tags` | their tags, 0 where there is none |
//! | 4 | `passed_by` | how many entries found it full and lie in a bucket behind it |

use std::{collections::BTreeSet, fmt};

use super::{prefetch::prefetch, records::NONE};

const TABLES: usize = 4_096;
const PLACES: usize = 10;
/// Of a table's places as many are taken at the most as 17 of 20: then one entry in twelve has passed a bucket by.
const MOST_OF_20: usize = 17;

#[derive(Clone)]
#[repr(align(64))]
struct Bucket {
    slots: [u32; PLACES],
    tags: [u16; PLACES],
    passed_by: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64, "a bucket is one cache line");

impl Bucket {
    const EMPTY: Self = Self { slots: [NONE; PLACES], tags: [0; PLACES], passed_by: 0 };

    /// The places that have this tag, a bit each.
    #[inline]
    fn places(&self, tag: u16) -> u32 {
        // All are looked at, without branches: so the compiler takes eight at a time.
        self.tags.iter().enumerate().fold(0, |places, (place, other)| places | u32::from(*other == tag) << place)
    }
}

/// Buckets in a ring, and how many entries they have.
#[derive(Clone, Default)]
struct Table {
    buckets: Box<[Bucket]>,
    len: u32,
}

impl Table {
    /// The bucket in which entries of a tag belong.
    #[inline]
    const fn home(&self, tag: u16) -> usize {
        (tag as usize * self.buckets.len()) >> u16::BITS
    }

    /// The buckets in which an entry may be: its home, and behind it for as long as somebody passed by.
    #[inline]
    fn probe(&self, tag: u16) -> impl Iterator<Item = usize> + '_ {
        let (home, count) = (self.home(tag), self.buckets.len());
        let behind = move |bucket: &usize| {
            let next = if bucket + 1 == count { 0 } else { bucket + 1 };
            (self.buckets[*bucket].passed_by > 0 && next != home).then_some(next)
        };
        std::iter::successors((count > 0).then_some(home), behind)
    }

    /// Where the entry is that `is_it` is true of: bucket and place.
    #[inline]
    fn find(&self, tag: u16, mut is_it: impl FnMut(u32) -> bool) -> Option<(usize, usize)> {
        for at in self.probe(tag) {
            let bucket = &self.buckets[at];
            let mut places = bucket.places(tag);
            while places != 0 {
                let place = places.trailing_zeros() as usize;
                if is_it(bucket.slots[place]) {
                    return Some((at, place));
                }
                places &= places - 1;
            }
        }
        None
    }

    fn insert(&mut self, tag: u16, slot: u32) {
        if (self.len as usize + 1) * 20 > self.buckets.len() * PLACES * MOST_OF_20 {
            self.grow();
        }
        self.put(tag, slot);
        self.len += 1;
    }

    /// Puts an entry where there is room, which there is.
    fn put(&mut self, tag: u16, slot: u32) {
        let mut at = self.home(tag);
        loop {
            let bucket = &mut self.buckets[at];
            let free = bucket.places(0);
            if free != 0 {
                let place = free.trailing_zeros() as usize;
                (bucket.tags[place], bucket.slots[place]) = (tag, slot);
                return;
            }
            bucket.passed_by += 1;
            at = if at + 1 == self.buckets.len() { 0 } else { at + 1 };
        }
    }

    fn remove(&mut self, tag: u16, slot: u32) -> bool {
        let Some((found, place)) = self.find(tag, |other| other == slot) else { return false };
        (self.buckets[found].tags[place], self.buckets[found].slots[place]) = (0, NONE);
        let mut at = self.home(tag);
        while at != found {
            self.buckets[at].passed_by -= 1;
            at = if at + 1 == self.buckets.len() { 0 } else { at + 1 };
        }
        self.len -= 1;
        true
    }

    /// Asserts what must hold; returns how many entries there are.
    fn check(&self) -> usize {
        let (mut count, mut passed_by) = (0, vec![0; self.buckets.len()]);
        for (found, bucket) in self.buckets.iter().enumerate() {
            for tag in bucket.tags.into_iter().filter(|tag| *tag != 0) {
                count += 1;
                let mut at = self.home(tag);
                while at != found {
                    passed_by[at] += 1;
                    at = (at + 1) % self.buckets.len();
                }
            }
        }
        assert_eq!(self.len as usize, count, "entries of a table");
        assert!(self.buckets.iter().map(|bucket| bucket.passed_by).eq(passed_by), "who passed by is counted");
        count
    }

    #[cold]
    fn grow(&mut self) {
        let count = self.buckets.len();
        let larger = vec![Bucket::EMPTY; count + (count / 4).max(1)].into_boxed_slice();
        for bucket in std::mem::replace(&mut self.buckets, larger) {
            for (tag, slot) in bucket.tags.into_iter().zip(bucket.slots).filter(|(tag, _)| *tag != 0) {
                self.put(tag, slot);
            }
        }
    }
}

/// Slots, found by a hash and a comparison that the caller makes with its own records.
pub(super) struct Index {
    tables: Box<[Table]>,
    len: usize,
}

impl Index {
    pub(super) fn new() -> Self {
        Self { tables: vec![Table::default(); TABLES].into_boxed_slice(), len: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn find(&self, hash: u64, is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let table = &self.tables[table(hash)];
        table.find(tag(hash), is_it).map(|(bucket, place)| table.buckets[bucket].slots[place])
    }

    /// The first entry of that tag in its home, as a rule what [`Index::find`] finds; or `NONE`.
    #[inline]
    pub(super) fn likely(&self, hash: u64) -> u32 {
        let (table, tag) = (&self.tables[table(hash)], tag(hash));
        let Some(bucket) = table.buckets.get(table.home(tag)) else { return NONE };
        bucket.slots.get(bucket.places(tag).trailing_zeros() as usize).copied().unwrap_or(NONE)
    }

    /// Asks for what [`Index::find`] and [`Index::likely`] will read.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        let table = &self.tables[table(hash)];
        if let Some(home) = table.buckets.get(table.home(tag(hash))) {
            prefetch(&home.passed_by);
        }
    }

    /// Adds a slot that is not there.
    pub(super) fn insert(&mut self, hash: u64, slot: u32) {
        self.tables[table(hash)].insert(tag(hash), slot);
        self.len += 1;
    }

    /// Puts another slot in the place of one.
    pub(super) fn replace(&mut self, hash: u64, old: u32, new: u32) {
        let table = &mut self.tables[table(hash)];
        let found = table.find(tag(hash), |slot| slot == old);
        debug_assert!(found.is_some(), "slot {old} is not in the index");
        if let Some((bucket, place)) = found {
            table.buckets[bucket].slots[place] = new;
        }
    }

    pub(super) fn remove(&mut self, hash: u64, slot: u32) {
        let removed = self.tables[table(hash)].remove(tag(hash), slot);
        debug_assert!(removed, "slot {slot} is not in the index");
        self.len -= usize::from(removed);
    }

    /// Asserts what must hold within the tables, given the hashes of all entries that there should be. It looks at their
    /// tables alone: searches check after every step, and nearly all tables are empty. An entry in any other would show
    /// in the count.
    pub(super) fn check(&self, hashes: impl Iterator<Item = u64>) {
        let tables: BTreeSet<usize> = hashes.map(table).collect();
        let tables = tables.into_iter().map(|table| &self.tables[table]);
        assert_eq!(tables.map(Table::check).sum::<usize>(), self.len, "entries of all tables");
    }
}

/// The entries, where they lie: places without one say nothing.
impl fmt::Debug for Index {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = formatter.debug_list();
        for (table, buckets) in self.tables.iter().enumerate() {
            for (at, bucket) in buckets.buckets.iter().enumerate() {
                let entries = bucket.tags.iter().zip(&bucket.slots).enumerate().filter(|(_, (tag, _))| **tag != 0);
                list.entries(entries.map(|(place, (tag, slot))| (table, at, place, tag, slot)));
            }
        }
        list.finish()
    }
}

const fn table(hash: u64) -> usize {
    (hash >> 48) as usize & (TABLES - 1)
}

/// Never 0. None of the bits that pick the table.
const fn tag(hash: u64) -> u16 {
    let tag = (hash >> 24) as u16;
    if tag == 0 { 1 } else { tag }
}

#[cfg(test)]
mod tests {
    use foldhash::fast::FixedState;
    use std::hash::BuildHasher as _;

    use super::*;

    /// Of the slots that it knows by their numbers. All fall into one table if `crowded`.
    fn hash(slot: u32, crowded: bool) -> u64 {
        let hash = FixedState::with_seed(7).hash_one(slot);
        if crowded { hash & !(0xfff << 48) } else { hash }
    }

    #[test]
    fn what_was_inserted_is_found_until_removed_however_crowded() {
        for crowded in [false, true] {
            let mut index = Index::new();
            let check = |index: &Index, slots: &mut dyn Iterator<Item = u32>| {
                index.check(slots.map(|slot| hash(slot, crowded)));
            };
            let find = |index: &Index, slot| index.find(hash(slot, crowded), |other| other == slot);
            for slot in 0..5_000 {
                assert_eq!(find(&index, slot), None);
                index.insert(hash(slot, crowded), slot);
            }
            check(&index, &mut (0..5_000));
            // Some go, the rest is found; others come into their places.
            for slot in (0..5_000).filter(|slot| slot % 3 == 0) {
                index.remove(hash(slot, crowded), slot);
            }
            check(&index, &mut (0..5_000).filter(|slot| slot % 3 != 0));
            for slot in 0..5_000 {
                assert_eq!(find(&index, slot), Some(slot).filter(|slot| slot % 3 != 0));
            }
            for slot in 5_000..6_000 {
                index.insert(hash(slot, crowded), slot);
            }
            assert!((5_000..6_000).all(|slot| find(&index, slot) == Some(slot)));
            index.replace(hash(5_001, crowded), 5_001, 7_000);
            assert_eq!(index.find(hash(5_001, crowded), |other| other == 7_000), Some(7_000));
            assert_eq!(find(&index, 5_001), None);
            check(&index, &mut (1..6_000).filter(|slot| slot % 3 != 0 || *slot >= 5_000));
            assert_eq!(index.len(), 5_000 - 1_667 + 1_000);
        }
    }

    #[test]
    fn entries_of_one_tag_lie_in_a_row_of_buckets_and_the_row_ends() {
        let mut table = Table::default();
        // Thirty of a kind fill three buckets from the last one on, around the ring.
        for slot in 0..30 {
            table.insert(u16::MAX, slot);
        }
        assert_eq!(table.buckets.iter().filter(|bucket| bucket.passed_by > 0).count(), 2);
        assert!((0..30).all(|slot| table.find(u16::MAX, |other| other == slot).is_some()));
        assert_eq!(table.find(u16::MAX, |other| other == 30), None);
        assert_eq!(table.check(), 30);
        assert!((0..30).all(|slot| table.remove(u16::MAX, slot)));
        assert_eq!(table.check(), 0);
        assert!(table.buckets.iter().all(|bucket| bucket.passed_by == 0 && bucket.places(0).count_ones() == 10));
    }

    proptest::proptest! {
        /// With few tags, so that buckets fill, entries pass them by and find room again, and tables grow meanwhile.
        #[test]
        fn a_table_holds_what_a_set_holds(
            steps in proptest::collection::vec((0..4_usize, 0..40_u32, proptest::bool::weighted(0.7)), 0..200),
        ) {
            const TAGS: [u16; 4] = [1, 20_000, 20_001, u16::MAX];
            let (mut table, mut set) = (Table::default(), BTreeSet::new());
            for (tag, number, comes) in steps {
                let (tag, slot) = (TAGS[tag], tag as u32 * 100 + number);
                if comes && set.insert((tag, slot)) {
                    table.insert(tag, slot);
                } else if !comes {
                    assert_eq!(table.remove(tag, slot), set.remove(&(tag, slot)));
                }
                assert_eq!(table.check(), set.len());
                for tag in TAGS {
                    let mut found = BTreeSet::new();
                    assert_eq!(table.find(tag, |slot| !found.insert((tag, slot))), None, "each entry once");
                    assert!(found.iter().eq(set.iter().filter(|(other, _)| *other == tag)));
                }
            }
        }
    }

    #[test]
    fn a_look_up_ends_where_every_bucket_was_passed_by() {
        let mut table = Table { buckets: vec![Bucket::EMPTY; 2].into_boxed_slice(), len: 0 };
        table.buckets.iter_mut().for_each(|bucket| bucket.passed_by = 1);
        assert_eq!(table.find(7, |_| true), None);
    }
}
