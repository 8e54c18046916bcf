//! Handles: how a registration is named, so that its holder can name it and nobody else can guess it.
//!
//! A handle is 64 bits of which the first 8 are in the clear. The others are two numbers of 28 bits under a keyed
//! permutation, so that neither shows, and a handle that was made up stands for nobody, with all but certainty.
//!
//! | bits of a handle | meaning |
//! |---|---|
//! | 56..64 | partition of the stream, in the clear, so that a batch of handles can be routed |
//! | 0..56 | sealed: the bits below, under the permutation of [`HandleKey`], and mixed with the partition |
//!
//! | bits under the seal | meaning |
//! |---|---|
//! | 48..56 | tag, upper part: may become the low bits of a term of ownership, once partitions change their owners |
//! | 28..48 | tag, lower part |
//! | 0..28 | slot in the engine that owns the partition |
//!
//! The same sealed bits mean something else in another partition. The tag is drawn anew for each registration from a keyed
//! hash of a counter, two of each hash, and is never 0, nor that of the slot's registration before. It is what cannot be
//! guessed, even by somebody who has seen through the permutation: 2²⁸ to one for a given slot. The permutation makes it
//! 2⁵⁶ to one for each registration that there is, since nobody knows where slots lie: with ten million of them, somebody
//! who sends a hundred thousand guesses a second finds about one a day, and cannot choose whose it is.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

/// One subscriber's registration, for its holder an opaque number that is never 0. See the module for what is in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handle(pub u64);

impl Handle {
    /// The partition of the stream it was given for.
    #[must_use]
    pub const fn partition(self) -> u8 {
        (self.0 >> SEALED_BITS) as u8
    }
}

/// How many bits slots and tags have each.
pub(super) const SLOT_BITS: u32 = 28;
const SEALED_BITS: u32 = 2 * SLOT_BITS;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
/// The partition's bits. While a handle is sealed and opened they are the lowest ones of a word.
const PARTITION_BITS: u32 = u64::BITS - SEALED_BITS;
const PARTITION_MASK: u64 = (1 << PARTITION_BITS) - 1;
/// Where slot and tag lie in it.
const SLOT_SHIFT: u32 = PARTITION_BITS;
const TAG_SHIFT: u32 = SLOT_SHIFT + SLOT_BITS;

/// What a handle names: a slot, and the tag of one registration in it. As the word that opening makes, whose other bits
/// say nothing: batches keep many of them for a moment.
#[derive(Clone, Copy, Default)]
pub(super) struct Named(u64);

impl Named {
    pub(super) fn new(slot: u32, tag: u32) -> Self {
        debug_assert!(tag != 0 && u64::from(tag) <= SLOT_MASK, "tag {tag}");
        debug_assert!(u64::from(slot) <= SLOT_MASK, "slot {slot}");
        Self(u64::from(tag) << TAG_SHIFT | u64::from(slot) << SLOT_SHIFT)
    }

    #[inline]
    pub(super) const fn slot(self) -> u32 {
        (self.0 >> SLOT_SHIFT & SLOT_MASK) as u32
    }

    #[inline]
    pub(super) const fn tag(self) -> u32 {
        (self.0 >> TAG_SHIFT) as u32
    }
}

/// Seals and opens handles, and draws tags. Another seed is another key: what one engine has sealed is nobody's in
/// another.
///
/// The permutation is two multiplications by odd numbers, which are the key, modulo 2⁶⁴, with the upper half of the 56
/// bits folded into the lower one between them: as much as is to be had for half a nanosecond, since each heartbeat opens
/// a handle. Only 0 becomes 0, and no tag is 0. The 56 bits are the upper ones of a word, so that a product's overflow
/// falls off by itself; below them is the partition, whose products go into them, and which no other bit changes.
#[derive(Debug)]
pub(super) struct HandleKey {
    factors: [u64; 2],
    /// Of the factors, in their order.
    inverses: [u64; 2],
    /// What the partition is multiplied by before it is sealed, so that it comes out as it was.
    clear: u64,
    /// A keyed hash that nothing was written to.
    tags: SipHasher13,
    /// How many tags were drawn.
    drawn: u64,
    /// What was hashed last, of which each half of the sealed bits is a tag: a hash costs a register a twentieth.
    hashed: u64,
}

impl HandleKey {
    pub(super) fn new(seed: u64) -> Self {
        let hash_of = |name: u64| hash(SipHasher13::new_with_keys(seed, 0x6861_6e64_6c65_7300), name);
        let factors = [0, 1].map(|name| hash_of(name) | 1);
        let tags = SipHasher13::new_with_keys(hash_of(2), hash_of(3));
        let inverses = factors.map(inverse);
        let clear = inverses[0].wrapping_mul(inverses[1]);
        Self { factors, inverses, clear, tags, drawn: 0, hashed: 0 }
    }

    /// A tag for a new registration in a slot whose last one had the tag `before`.
    pub(super) fn draw_tag(&mut self, before: u32) -> u32 {
        loop {
            let second = self.drawn % 2;
            if second == 0 {
                self.hashed = hash(self.tags, self.drawn);
            }
            self.drawn += 1;
            let tag = (self.hashed >> (second as u32 * SLOT_BITS) & SLOT_MASK) as u32;
            if tag != 0 && tag != before {
                return tag;
            }
        }
    }

    pub(super) fn seal(&self, partition: u8, Named(bits): Named) -> Handle {
        let [first, second] = self.factors;
        let bits = bits | u64::from(partition).wrapping_mul(self.clear) & PARTITION_MASK;
        let bits = fold(bits.wrapping_mul(first)).wrapping_mul(second);
        Handle(bits.rotate_right(PARTITION_BITS))
    }

    /// What was sealed in a handle, or anything at all if it is none of this key's.
    #[inline]
    pub(super) fn open(&self, handle: Handle) -> Named {
        let [first, second] = self.inverses;
        let bits = handle.0.rotate_left(PARTITION_BITS);
        Named(fold(bits.wrapping_mul(second)).wrapping_mul(first))
    }
}

/// Folds the upper half of 56 upper bits into the lower one, and leaves those below. Done twice, it is as before.
#[inline]
const fn fold(bits: u64) -> u64 {
    bits ^ bits >> SLOT_BITS >> SLOT_SHIFT << SLOT_SHIFT
}

/// What undoes a multiplication by an odd number.
const fn inverse(factor: u64) -> u64 {
    // An odd number is its own inverse modulo 2³; each step of Newton's method doubles how many bits are right.
    let mut inverse = factor;
    let mut bits = 3;
    while bits < u64::BITS {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(factor.wrapping_mul(inverse)));
        bits *= 2;
    }
    inverse
}

fn hash(mut hasher: SipHasher13, number: u64) -> u64 {
    hasher.write_u64(number);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEDS: [u64; 4] = [0, 7, 1 << 63, u64::MAX];

    /// Slot and tag.
    fn opened(key: &HandleKey, handle: Handle) -> (u32, u32) {
        let named = key.open(handle);
        (named.slot(), named.tag())
    }

    #[test]
    fn what_was_sealed_is_in_the_handle_and_it_is_never_0() {
        for seed in SEEDS {
            let mut key = HandleKey::new(seed);
            let mut tag = 0;
            for number in 0..100_000_u32 {
                tag = key.draw_tag(tag);
                let slot = number.wrapping_mul(0x9e37_79b9) & SLOT_MASK as u32;
                let handle = key.seal(number as u8, Named::new(slot, tag));
                assert_eq!((opened(&key, handle), handle.partition()), ((slot, tag), number as u8), "seed {seed}");
                assert_ne!(handle.0, 0);
            }
            for (slot, tag) in [(0, 1), (SLOT_MASK, 1), (0, SLOT_MASK), (SLOT_MASK, SLOT_MASK)] {
                let named = (slot as u32, tag as u32);
                assert_eq!(opened(&key, key.seal(0, Named::new(named.0, named.1))), named);
            }
        }
    }

    #[test]
    fn a_handle_with_another_partition_names_something_else() {
        let key = HandleKey::new(7);
        let named = (3, 5);
        let handle = key.seal(200, Named::new(named.0, named.1));
        for partition in (0..=255).filter(|partition| *partition != 200_u64) {
            let forged = Handle(handle.0 << 8 >> 8 | partition << SEALED_BITS);
            assert_ne!(opened(&key, forged), named, "partition {partition}");
        }
    }

    #[test]
    fn a_tag_is_never_0_nor_the_one_before_and_all_are_drawn_alike() {
        let mut key = HandleKey::new(7);
        let (mut before, mut ones) = (0, [0_u32; SLOT_BITS as usize]);
        for _ in 0..100_000 {
            let tag = key.draw_tag(before);
            assert!(tag != 0 && tag != before && u64::from(tag) <= SLOT_MASK);
            ones.iter_mut().enumerate().for_each(|(bit, ones)| *ones += tag >> bit & 1);
            before = tag;
        }
        assert!(ones.iter().all(|ones| (49_000..51_000).contains(ones)), "{ones:?}");
    }

    #[test]
    fn each_bit_of_slot_and_tag_changes_a_handle_as_if_by_chance() {
        for seed in SEEDS {
            let mut key = HandleKey::new(seed);
            let mut changed = [[0_u32; SEALED_BITS as usize]; SEALED_BITS as usize];
            const TRIES: u32 = 2_000;
            for slot in 0..TRIES {
                let tag = key.draw_tag(0);
                let plain = u64::from(tag) << SLOT_BITS | u64::from(slot);
                let seal =
                    |plain: u64| key.seal(0, Named::new((plain & SLOT_MASK) as u32, (plain >> SLOT_BITS) as u32)).0;
                for bit in 0..SEALED_BITS {
                    let other = plain ^ 1 << bit;
                    if other >> SLOT_BITS == 0 {
                        continue;
                    }
                    let difference = seal(plain) ^ seal(other);
                    for (place, count) in changed[bit as usize].iter_mut().enumerate() {
                        *count += (difference >> place & 1) as u32;
                    }
                }
            }
            // Hardly any bit of the handle follows a bit of the slot: each changes in a good part of all cases, and not in
            // all. The lowest few do so less, of a product that has few bits below them.
            for (bit, counts) in changed.iter().enumerate().take(SLOT_BITS as usize) {
                let weak = counts.iter().filter(|count| !(TRIES / 4..=TRIES * 3 / 4).contains(count)).count();
                assert!(weak <= 6, "seed {seed}: slot bit {bit} shows in {weak} bits: {counts:?}");
            }
        }
    }
}
