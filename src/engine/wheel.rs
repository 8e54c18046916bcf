//! A hierarchical timer wheel that owns no entries: it threads lists through records that live elsewhere.
//!
//! It knows slots and links and asks its [`Nodes`] for everything else, so streams and subscribers use the same wheel
//! and pay 8 bytes an entry. It does not know what an entry is for, nor what happens when it is due.
//!
//! | level | a slot spans | the level spans |
//! |---|---|---|
//! | 0 | 1 ms | 64 ms |
//! | 1 | 64 ms | 4.1 s |
//! | 2 | 4.1 s | 4.4 min |
//! | 3 | 4.4 min | 4.7 h |
//! | 4 | 4.7 h | 12 days |
//! | 5 | 12 days | 2.2 years |
//! | 6 | 2.2 years | 139 years |
//! | 7 | 139 years | 8,900 years |
//!
//! An entry sits at the level of the highest digit (of 6 bits) in which its deadline differs from the wheel's time, so
//! within a level all entries lie ahead of the current slot and nothing ever wraps. When the wheel's time reaches a
//! slot, its entries are looked at one by one: due, or moved to a finer level. A deadline that has moved on since the
//! entry was armed is found at that look and costs nothing before: this is why a heartbeat touches no timer.

use super::Tick;

const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
const LEVELS: usize = 8;
/// The pseudo slot whose entries are being looked at; it may stay filled between two calls when a budget ran out.
const EMPTYING: u32 = (LEVELS * SLOTS) as u32;
/// Marks a `prev` that names a slot, for the first entry of a list.
const HEAD: u32 = 1 << 31;
const NONE: u32 = u32::MAX;
/// Farther than this is looked at again when that time has come.
const HORIZON_MS: u64 = 1 << (BITS * LEVELS as u32 - 1);

/// An entry's place in the wheel, kept in its owner's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The entry before, or `HEAD | slot` for the first one, or `NONE` when it is in no list.
    prev: u32,
    /// The entry behind, or `NONE`.
    next: u32,
}

impl Link {
    /// In no list.
    pub const UNLINKED: Self = Self { prev: NONE, next: NONE };

    /// Whether the entry is armed.
    #[must_use]
    pub const fn is_linked(self) -> bool {
        self.prev != NONE
    }
}

/// The records that a wheel threads its lists through. Keys are below 2³¹.
pub trait Nodes {
    /// The link of an entry, to read.
    fn link(&self, key: u32) -> Link;
    /// The link of an entry, to write.
    fn link_mut(&mut self, key: u32) -> &mut Link;
    /// When the entry is due. May move on to later while it is armed, never to earlier.
    fn deadline(&self, key: u32) -> Tick;
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Wheel {
    /// Invariant: no armed entry's slot begins before this, except those in `EMPTYING`.
    elapsed: Tick,
    /// First entry of each slot's list.
    heads: Box<[u32; LEVELS * SLOTS + 1]>,
    /// Invariant: a bit is set exactly where `heads` has an entry.
    occupied: [u64; LEVELS],
}

impl Wheel {
    /// An empty wheel. Its time begins with the first [`Wheel::pop`].
    #[must_use]
    pub fn new() -> Self {
        Self { elapsed: Tick(0), heads: Box::new([NONE; LEVELS * SLOTS + 1]), occupied: [0; LEVELS] }
    }

    /// Arms `key` for its deadline; one that has passed is due at the next [`Wheel::pop`].
    pub fn arm(&mut self, nodes: &mut impl Nodes, key: u32) {
        debug_assert!(!nodes.link(key).is_linked(), "entry {key} is armed already: {:?}", nodes.link(key));
        let slot = self.slot_for(nodes.deadline(key));
        self.push(nodes, slot, key);
    }

    /// Takes `key` out, if it is armed.
    pub fn cancel(&mut self, nodes: &mut impl Nodes, key: u32) {
        let Link { prev, next } = nodes.link(key);
        if prev == NONE {
            return;
        }
        *nodes.link_mut(key) = Link::UNLINKED;
        if next != NONE {
            nodes.link_mut(next).prev = prev;
        }
        if prev & HEAD == 0 {
            nodes.link_mut(prev).next = next;
        } else {
            self.set_head(prev & !HEAD, next);
        }
    }

    /// Takes out one entry that is due at `now`, or `None` when there is none or the budget of looks is used up.
    ///
    /// Entries that are late come in any order, but always in the same one.
    pub fn pop(&mut self, nodes: &mut impl Nodes, now: Tick, looks: &mut usize) -> Option<u32> {
        loop {
            let key = self.heads[EMPTYING as usize];
            if key == NONE {
                if !self.begin_next_slot(nodes, now) {
                    return None;
                }
                continue;
            }
            *looks = looks.checked_sub(1)?;
            self.cancel(nodes, key);
            if nodes.deadline(key) <= now {
                return Some(key);
            }
            self.arm(nodes, key);
        }
    }

    /// When to call [`Wheel::pop`] next: never later than the first deadline, and up to one call a level earlier.
    #[must_use]
    pub fn next_look(&self) -> Option<Tick> {
        if self.heads[EMPTYING as usize] != NONE {
            return Some(self.elapsed);
        }
        self.next_slot().map(|(_, start)| start)
    }

    /// Moves the list of the next slot that begins by `now` into `EMPTYING`; false when there is none.
    fn begin_next_slot(&mut self, nodes: &mut impl Nodes, now: Tick) -> bool {
        match self.next_slot() {
            Some((slot, start)) if start <= now => {
                self.elapsed = self.elapsed.max(start);
                let first = self.heads[slot as usize];
                self.set_head(slot, NONE);
                self.heads[EMPTYING as usize] = first;
                nodes.link_mut(first).prev = HEAD | EMPTYING;
                true
            }
            _ => {
                self.elapsed = self.elapsed.max(now);
                false
            }
        }
    }

    /// The occupied slot that begins first, and when. Lower levels lie wholly before the next slot of a higher one.
    fn next_slot(&self) -> Option<(u32, Tick)> {
        let level = self.occupied.iter().position(|bits| *bits != 0)?;
        let index = self.occupied[level].trailing_zeros();
        let shift = BITS * level as u32;
        let window = self.elapsed.0 >> shift >> BITS << BITS;
        Some(((level * SLOTS) as u32 + index, Tick((window | u64::from(index)) << shift)))
    }

    /// The slot for a deadline, seen from the wheel's time.
    fn slot_for(&self, deadline: Tick) -> u32 {
        let elapsed = self.elapsed.0;
        let when = deadline.0.clamp(elapsed, elapsed.saturating_add(HORIZON_MS));
        let highest_bit = 63 - (elapsed ^ when | (SLOTS as u64 - 1)).leading_zeros();
        let level = (highest_bit / BITS).min(LEVELS as u32 - 1);
        let index = (when >> (BITS * level)) as u32 & (SLOTS as u32 - 1);
        level * SLOTS as u32 + index
    }

    fn push(&mut self, nodes: &mut impl Nodes, slot: u32, key: u32) {
        let next = self.heads[slot as usize];
        if next != NONE {
            nodes.link_mut(next).prev = key;
        }
        *nodes.link_mut(key) = Link { prev: HEAD | slot, next };
        self.set_head(slot, key);
    }

    fn set_head(&mut self, slot: u32, key: u32) {
        self.heads[slot as usize] = key;
        if slot != EMPTYING {
            let (level, bit) = (slot as usize / SLOTS, 1 << (slot as usize % SLOTS));
            if key == NONE {
                self.occupied[level] &= !bit;
            } else {
                self.occupied[level] |= bit;
            }
        }
    }

    /// Walks every list and asserts the invariants; returns how many entries are armed.
    ///
    /// # Panics
    /// When an invariant does not hold.
    pub fn check(&self, nodes: &impl Nodes) -> usize {
        let mut armed = 0;
        let mut slots = vec![EMPTYING];
        // Searches check after every step, and nearly all slots are empty: one comparison for all those of a level.
        for (level, occupied) in self.occupied.iter().enumerate() {
            let heads = self.heads[level * SLOTS..][..SLOTS].iter().enumerate();
            let marked = |index| 0_u32.wrapping_sub((occupied >> index & 1) as u32);
            let all = heads.fold(NONE, |all, (index, head)| all & (head | marked(index)));
            assert_eq!(all, NONE, "a slot of level {level} has an entry, but no bit");
            let mut bits = *occupied;
            while bits != 0 {
                slots.push((level * SLOTS) as u32 + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
        for slot in slots {
            let (level, index) = (slot as usize / SLOTS, slot as usize % SLOTS);
            let (mut prev, mut key) = (HEAD | slot, self.heads[slot as usize]);
            assert!(slot == EMPTYING || key != NONE, "slot {slot} has a bit, but no entry");
            while key != NONE {
                let link = nodes.link(key);
                assert_eq!(link.prev, prev, "entry {key} in slot {slot} points back wrongly");
                if slot != EMPTYING {
                    let shift = BITS * level as u32;
                    let window = self.elapsed.0 >> shift >> BITS << BITS;
                    let start = (window | index as u64) << shift;
                    let latest = nodes.deadline(key).0.max(self.elapsed.0);
                    assert!(start <= latest, "entry {key} is due at {latest}, its slot {slot} begins at {start}");
                }
                armed += 1;
                (prev, key) = (key, link.next);
            }
        }
        armed
    }
}

impl Default for Wheel {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Entries as plain vectors.
    #[derive(Default)]
    struct Entries(Vec<(Link, Tick)>);

    impl Nodes for Entries {
        fn link(&self, key: u32) -> Link {
            self.0[key as usize].0
        }
        fn link_mut(&mut self, key: u32) -> &mut Link {
            &mut self.0[key as usize].0
        }
        fn deadline(&self, key: u32) -> Tick {
            self.0[key as usize].1
        }
    }

    fn drain(wheel: &mut Wheel, entries: &mut Entries, now: Tick) -> Vec<u32> {
        let mut due: Vec<u32> = std::iter::from_fn(|| wheel.pop(entries, now, &mut usize::MAX.clone())).collect();
        due.sort_unstable();
        due
    }

    #[test]
    fn a_budget_that_runs_out_leaves_the_rest_for_the_next_call() {
        let mut wheel = Wheel::new();
        let mut entries = Entries((0..10).map(|_| (Link::UNLINKED, Tick(5_000))).collect());
        (0..10).for_each(|key| wheel.arm(&mut entries, key));
        let mut looks = 4;
        while wheel.pop(&mut entries, Tick(5_000), &mut looks).is_some() {}
        assert_eq!(looks, 0);
        assert_eq!(wheel.check(&entries), 6);
        assert!(wheel.next_look().is_some_and(|look| look <= Tick(5_000)));
        assert_eq!(drain(&mut wheel, &mut entries, Tick(5_000)).len(), 6);
        assert_eq!(wheel.next_look(), None);
    }

    #[test]
    fn a_deadline_moved_on_costs_one_look_and_fires_at_the_new_time() {
        let mut wheel = Wheel::new();
        let mut entries = Entries(vec![(Link::UNLINKED, Tick(90_000))]);
        wheel.arm(&mut entries, 0);
        entries.0[0].1 = Tick(150_000);
        assert_eq!(drain(&mut wheel, &mut entries, Tick(149_999)), Vec::<u32>::new());
        assert_eq!(drain(&mut wheel, &mut entries, Tick(150_000)), [0]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Arm(u32, u64),
        Cancel(u32),
        Postpone(u32, u64),
        Pass(u64, usize),
    }

    fn delay() -> impl Strategy<Value = u64> {
        prop_oneof![0..200u64, 0..20_000u64, 0..100_000_000u64, 0..1u64 << 50, Just(u64::MAX)]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..40u32, delay()).prop_map(|(key, delay)| Step::Arm(key, delay)),
            1 => (0..40u32).prop_map(Step::Cancel),
            2 => (0..40u32, delay()).prop_map(|(key, delay)| Step::Postpone(key, delay)),
            4 => (delay(), 1..50usize).prop_map(|(ms, looks)| Step::Pass(ms.min(1 << 36), looks)),
        ]
    }

    proptest! {
        #[test]
        fn it_fires_what_a_sorted_map_fires(steps in prop::collection::vec(step(), 1..200)) {
            let mut wheel = Wheel::new();
            let mut entries = Entries((0..40).map(|_| (Link::UNLINKED, Tick(0))).collect());
            let mut sorted: BTreeMap<u32, Tick> = BTreeMap::new();
            let mut now = Tick(1_700_000_000_000);
            for step in steps {
                match step {
                    Step::Arm(key, delay) => {
                        wheel.cancel(&mut entries, key);
                        entries.0[key as usize].1 = now.after(delay);
                        wheel.arm(&mut entries, key);
                        sorted.insert(key, now.after(delay));
                    }
                    Step::Cancel(key) => {
                        wheel.cancel(&mut entries, key);
                        sorted.remove(&key);
                    }
                    Step::Postpone(key, delay) => if let Some(deadline) = sorted.get_mut(&key) {
                        *deadline = deadline.after(delay);
                        entries.0[key as usize].1 = *deadline;
                    },
                    Step::Pass(ms, mut looks) => {
                        if let (Some(look), Some(first)) = (wheel.next_look(), sorted.values().min()) {
                            prop_assert!(look <= (*first).max(now), "looks at {look:?}, first due {first:?}");
                        }
                        now = now.after(ms);
                        while let Some(key) = wheel.pop(&mut entries, now, &mut looks) {
                            let deadline = sorted.remove(&key);
                            prop_assert!(deadline.is_some_and(|d| d <= now), "{key} fired at {now:?}, due {deadline:?}");
                        }
                        if looks > 0 {
                            prop_assert_eq!(sorted.values().filter(|d| **d <= now).count(), 0);
                        }
                    }
                }
                prop_assert_eq!(wheel.check(&entries), sorted.len());
            }
        }
    }
}
