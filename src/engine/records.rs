//! Records of subscribers: a slab of cache lines in chunks, which the wheel threads its lists through.
//!
//! It knows how a record is laid out, when it falls due and which slots are free, not who is who.
//!
//! | bytes | field | what |
//! |---|---|---|
//! | 16 | `client` | a UUID, or the number of a text kept aside |
//! | 8 | `session` | |
//! | 8 | `seen` | last heard of (44 bits, ms), four flags, the source's port |
//! | 4 | `address` | an IPv4 address, or the number of an IPv6 address kept aside |
//! | 4 | `tag` | of the registration, 28 bits: what its handle is told from others by |
//! | 4 | `stream` | slot of the stream |
//! | 4 | `next_session` | the next session of the same client on the same stream |
//! | 8 | `timer` | links in the wheel |
//! | 8 | `prev_in_stream`, `next_in_stream` | links in the list of the stream's subscribers |

use std::fmt;

use super::{
    Tick,
    wheel::{Link, Nodes},
};

/// A subscriber is counted as stale for that long before it is removed, ms. The contract allows a second; half of it is
/// left for a shard that is busy.
pub const STALE_LINGER_MS: u64 = 500;

pub(super) const NONE: u32 = u32::MAX;
/// Records are allocated in chunks, so that a growing slab never moves: 1,024 of them are 64 KiB, 16 pages. A larger
/// chunk makes the turn long in which the system gives its pages, each of which may take 20 µs.
const CHUNK: usize = 1 << 10;

const SEEN_BITS: u32 = 44;
pub(super) const SEEN_MASK: u64 = (1 << SEEN_BITS) - 1;
pub(super) const IS_TEXT: u64 = 1 << SEEN_BITS;
pub(super) const HAS_SOURCE: u64 = 2 << SEEN_BITS;
pub(super) const IS_V6: u64 = 4 << SEEN_BITS;
pub(super) const IS_STALE: u64 = 8 << SEEN_BITS;
pub(super) const PORT_SHIFT: u32 = 48;
/// No tag has this bit: so no handle stands for a free slot, and who looks one up need not look for that.
pub(super) const VOID: u32 = 1 << 31;

#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Record {
    pub(super) client: u128,
    pub(super) session: u64,
    pub(super) seen: u64,
    pub(super) address: u32,
    /// Of the registration; while the slot is free that of the last one, 0 before the first, with [`VOID`].
    pub(super) tag: u32,
    /// `NONE` while the slot is free.
    pub(super) stream: u32,
    /// While the slot is free: the next free one.
    pub(super) next_session: u32,
    pub(super) timer: Link,
    pub(super) prev_in_stream: u32,
    pub(super) next_in_stream: u32,
}

const _: () = assert!(size_of::<Record>() == 64, "a subscriber's record is one cache line");

/// Slots in chunks, and those of them that are free.
pub(super) struct Records {
    chunks: Vec<Box<[Record; CHUNK]>>,
    /// First free slot.
    free: u32,
    /// How many slots were ever used.
    pub(super) used: u32,
    stale_after_ms: u64,
    /// Nobody goes stale before.
    pub(super) extended_until: Tick,
}

impl Records {
    /// Without records.
    pub(super) const fn new(stale_after_ms: u64) -> Self {
        Self { chunks: Vec::new(), free: NONE, used: 0, stale_after_ms, extended_until: Tick(0) }
    }

    #[inline]
    pub(super) fn get(&self, slot: u32) -> &Record {
        &self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }

    /// The record of any number that somebody made up.
    #[inline]
    pub(super) fn try_get(&self, slot: u32) -> Option<&Record> {
        Some(&self.chunks.get(slot as usize / CHUNK)?[slot as usize % CHUNK])
    }

    #[inline]
    pub(super) fn get_mut(&mut self, slot: u32) -> &mut Record {
        &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }

    /// A slot for a record. The caller has checked that there is room.
    pub(super) fn allocate(&mut self) -> u32 {
        if self.free != NONE {
            let slot = self.free;
            self.free = self.get(slot).next_session;
            return slot;
        }
        if self.used as usize == self.chunks.len() * CHUNK {
            let blank = Record {
                client: 0,
                session: 0,
                seen: 0,
                address: 0,
                tag: VOID,
                stream: NONE,
                next_session: NONE,
                timer: Link::UNLINKED,
                prev_in_stream: NONE,
                next_in_stream: NONE,
            };
            self.chunks.push(boxed(blank));
        }
        self.used += 1;
        self.used - 1
    }

    pub(super) fn release(&mut self, slot: u32) {
        let free = self.free;
        let record = self.get_mut(slot);
        record.tag |= VOID;
        record.stream = NONE;
        record.next_session = free;
        self.free = slot;
    }
}

/// Without the slots that were never used, which are most of a small engine.
impl fmt::Debug for Records {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chunks: _, free, used, stale_after_ms, extended_until } = self;
        formatter
            .debug_struct("Records")
            .field("free", free)
            .field("stale_after_ms", stale_after_ms)
            .field("extended_until", extended_until)
            .field("used", &(0..*used).map(|slot| self.get(slot)).collect::<Vec<_>>())
            .finish()
    }
}

/// A chunk of blank records, made where it will stay rather than on the stack.
fn boxed(blank: Record) -> Box<[Record; CHUNK]> {
    match vec![blank; CHUNK].into_boxed_slice().try_into() {
        Ok(chunk) => chunk,
        Err(_) => unreachable!("a vector of that length is an array of that length"),
    }
}

impl Nodes for Records {
    fn link(&self, key: u32) -> Link {
        self.get(key).timer
    }

    fn link_mut(&mut self, key: u32) -> &mut Link {
        &mut self.get_mut(key).timer
    }

    fn deadline(&self, key: u32) -> Tick {
        let seen = self.get(key).seen;
        let stale_at = Tick(seen & SEEN_MASK).after(self.stale_after_ms).max(self.extended_until);
        if seen & IS_STALE == 0 { stale_at } else { stale_at.after(STALE_LINGER_MS) }
    }
}
