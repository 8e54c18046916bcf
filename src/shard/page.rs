//! A page of the list of streams, put together from what each shard has listed.
//!
//! The order of the list is that of shards, and of slots within a shard. A stream keeps its slot for its life, and a page
//! is always a whole stretch of that order: so whoever asks page after page sees every stream that is there all the
//! time, once.

use std::ops::Range;

use crate::{
    engine::StateUpdate,
    wire::{
        encode::{self, Now},
        queries::Cursor,
    },
};

/// What one shard has listed, from the slot on where it was asked to begin.
#[derive(Debug, Default)]
pub struct Listed {
    /// Fields of a `QueryReply`, one behind the other.
    bytes: Vec<u8>,
    /// The slot of each, and where in `bytes` it is.
    states: Vec<(u32, Range<usize>)>,
    /// Where to go on; none at the end of the shard.
    next_slot: Option<u32>,
}

impl Listed {
    /// Nothing, because other shards' streams fill the page: this one's come on the next, from `slot` on.
    #[must_use]
    pub fn nothing_from(slot: u32) -> Self {
        Self { next_slot: Some(slot), ..Self::default() }
    }

    /// States in the order of their slots, and where the shard would go on; cut at `max_bytes`.
    #[must_use]
    pub fn of(states: &[StateUpdate], next_slot: Option<u32>, now: Now, max_bytes: usize) -> Self {
        let mut listed = Self { next_slot, ..Self::default() };
        for state in states {
            let start = listed.bytes.len();
            encode::write_listed(&mut listed.bytes, state, now);
            // One is there in any case: whoever puts the page together says that it does not fit.
            if start > 0 && listed.bytes.len() > max_bytes {
                listed.bytes.truncate(start);
                listed.next_slot = Some(state.slot);
                break;
            }
            listed.states.push((state.slot, start..listed.bytes.len()));
        }
        listed
    }

    /// How many states.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// What it takes, bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// What the shards have listed, before it is cut to what an answer may have.
#[derive(Debug)]
pub struct Page {
    /// By shard.
    listed: Vec<(usize, Listed)>,
    limit: usize,
}

impl Page {
    /// Of what these shards have listed, in their order, at most `limit` states.
    pub fn of(listed: impl Iterator<Item = (usize, Listed)>, limit: usize) -> Self {
        Self { listed: listed.collect(), limit }
    }

    /// The `QueryReply`: as many states as fit into `max_bytes`, and the cursor behind them.
    ///
    /// # Errors
    /// How many bytes a page of one state would have, if not even that fits.
    pub fn encode(&self, max_bytes: usize) -> Result<Vec<u8>, usize> {
        let mut reply = Vec::new();
        let mut room = self.limit;
        for (shard, listed) in &self.listed {
            for (slot, place) in &listed.states {
                let bytes = reply.len() + place.len();
                let fits = bytes + Cursor::MAX_FIELD_BYTES <= max_bytes;
                if room == 0 || !fits {
                    if reply.is_empty() && room > 0 {
                        return Err(bytes + Cursor::MAX_FIELD_BYTES);
                    }
                    return Ok(with_cursor(reply, *shard, *slot));
                }
                reply.extend_from_slice(&listed.bytes[place.clone()]);
                room -= 1;
            }
            if let Some(slot) = listed.next_slot {
                return Ok(with_cursor(reply, *shard, slot));
            }
        }
        Ok(reply)
    }
}

fn with_cursor(mut reply: Vec<u8>, shard: usize, slot: u32) -> Vec<u8> {
    let shard = u32::try_from(shard).unwrap_or(u32::MAX);
    encode::write_cursor(&mut reply, &Cursor { shard, slot }.to_text());
    reply
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::{
        engine::{Cause, Tick},
        wire::proto,
    };

    const NOW: Now = Now { tick: Tick(0), wall_ms: 0 };

    fn state(shard: usize, slot: u32) -> StateUpdate {
        // Of different lengths.
        let stream_id = format!("{shard}-{slot}-{}", "x".repeat(slot as usize * 7 % 60)).into();
        StateUpdate { stream_id, slot, cause: Cause::Snapshot, ..StateUpdate::sample() }
    }

    /// Lists page after page, as shards and whoever asks do.
    fn walk(shards: &[Vec<u32>], limit: usize, max_bytes: usize, quota: usize) -> Vec<Vec<String>> {
        let mut from = Cursor::default();
        let mut pages = Vec::new();
        loop {
            let first = from.shard as usize;
            let listed = shards.iter().enumerate().skip(first).map(|(shard, slots)| {
                let begin = if shard == first { from.slot } else { 0 };
                let mut rest = slots.iter().copied().filter(|slot| *slot >= begin);
                let states: Vec<_> = rest.by_ref().take(quota).map(|slot| state(shard, slot)).collect();
                (shard, Listed::of(&states, rest.next(), NOW, max_bytes))
            });
            let reply = Page::of(listed, limit).encode(max_bytes).expect("one fits");
            assert!(reply.len() <= max_bytes, "{} bytes", reply.len());
            let reply = proto::QueryReply::decode(&*reply).expect("a reply");
            assert!(reply.state.len() <= limit);
            pages.push(reply.state.into_iter().map(|state| state.stream_id).collect());
            if reply.cursor.is_empty() {
                return pages;
            }
            from = Cursor::parse(&reply.cursor).unwrap();
            assert!(pages.len() < 1_000, "it comes to an end");
        }
    }

    proptest! {
        #[test]
        fn every_stream_is_on_one_page_whatever_the_limits_are(
            shards in prop::collection::vec(prop::collection::btree_set(0..40_u32, 0..15), 1..4),
            limit in 1..20_usize,
            max_bytes in 200..3_000_usize,
            quota in 1..20_usize,
        ) {
            let shards: Vec<Vec<u32>> = shards.into_iter().map(|slots| slots.into_iter().collect()).collect();
            let listed: Vec<String> = walk(&shards, limit, max_bytes, quota).into_iter().flatten().collect();
            let all: Vec<String> = shards.iter().enumerate()
                .flat_map(|(shard, slots)| slots.iter().map(move |slot| state(shard, *slot).stream_id.to_string()))
                .collect();
            prop_assert_eq!(listed, all);
        }
    }

    #[test]
    fn a_page_is_what_prost_would_write() {
        let states = [state(0, 1), state(0, 2)];
        let listed = Listed::of(&states, Some(7), NOW, usize::MAX);
        let expected = proto::QueryReply {
            state: states.iter().map(|state| encode::state(state, NOW)).collect(),
            cursor: "3-7".into(),
            ..Default::default()
        };
        assert_eq!(Page::of([(3, listed)].into_iter(), 9).encode(usize::MAX), Ok(expected.encode_to_vec()));
    }

    #[test]
    fn a_page_full_to_the_last_stream_needs_no_other() {
        let shards = [vec![1, 2], vec![4]];
        assert_eq!(walk(&shards, 3, usize::MAX, usize::MAX).len(), 1);
        assert_eq!(walk(&shards, 2, usize::MAX, usize::MAX).iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn a_state_that_does_not_fit_alone_is_said_to_be_too_large() {
        let listed = Listed::of(&[state(0, 1)], None, NOW, 10);
        let bytes = listed.bytes();
        let refused = Page::of([(0, listed)].into_iter(), 1).encode(bytes);
        assert_eq!(refused, Err(bytes + Cursor::MAX_FIELD_BYTES));
    }
}
