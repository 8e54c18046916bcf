//! Filters that are followed: which there are of each stream, for how long, and which updates pass them.
//!
//! A filter is a lease of its own, beside the subscribers: it watches nothing, so it starts nothing, and no record of
//! anybody knows of it. Updates are marked where the engine is left, once for all that made them.
//!
//! | update | passes |
//! |---|---|
//! | a change (scene, command, lifecycle) | while a scene of the filter is current, and the one that leaves it |
//! | a tick or a snapshot | while a scene of the filter is current, but for `changes_only`, and so far behind the last one |
//! | the last one of a stream | always; its leases end with it |
//!
//! With no scenes in it, one of the filter's is always current. How far is `min_interval_ms` and `min_progress`, both.

use std::collections::BTreeSet;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{
    Accepted, Cause, Engine, Filter, Following, Joined, Limits, Mode, Outbox, Rejection, StateUpdate, StreamId, Tick,
    Timeline,
};

/// Most filters that are followed of one stream: what is published for it grows with them.
pub const MAX_FILTERS_OF_STREAM: usize = 64;

/// What a lease takes beside itself and its filter, bytes: its places in the tables.
const ENTRY_BYTES: usize = 96;
/// Progress is made of fractions: by so little less than asked for is as much.
const PROGRESS_MARGIN: f64 = 1e-9;

/// How much more may be followed.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// Filters that are left, of so many.
    filters: (u64, u64),
    /// Bytes that are left, of so many.
    bytes: (u64, u64),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Followers {
    /// By the stream's slot. Invariant: no list is empty, none has more than [`MAX_FILTERS_OF_STREAM`], and no two of one
    /// list have the same filter or token.
    by_stream: HashMap<u32, Vec<Lease>, FixedState>,
    /// When each lease ends. Invariant: one entry a lease.
    ends: BTreeSet<(Tick, u32, u64)>,
    /// No lease ends before.
    not_before: Tick,
    /// Invariant: the sum of [`bytes_of`] their filters.
    bytes: u64,
}

/// A filter, for as long as it is asked for.
#[derive(Debug)]
struct Lease {
    token: u64,
    filter: Filter,
    until: Tick,
    /// When and where what passed last was; at first, what its follower was answered.
    passed_at: Tick,
    passed_progress: f64,
    /// Whether a scene of the filter was current then, or in an answer since: if so, the change that leaves it passes.
    inside: bool,
}

impl Followers {
    /// Nothing is followed.
    pub(super) fn new() -> Self {
        Self {
            by_stream: HashMap::with_hasher(FixedState::default()),
            ends: BTreeSet::new(),
            not_before: Tick(0),
            bytes: 0,
        }
    }

    /// How many filters are followed.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// What they take, bytes.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Refuses a filter for which there is no room. One that is followed already takes none.
    fn check_room(&self, stream: u32, filter: &Filter, room: Room) -> Result<(), Rejection> {
        let leases = self.by_stream.get(&stream).map_or(&[][..], Vec::as_slice);
        if leases.iter().any(|lease| lease.filter == *filter) {
            return Ok(());
        }
        if leases.len() >= MAX_FILTERS_OF_STREAM {
            return Err(Rejection::Exhausted { what: "filters of one stream", limit: MAX_FILTERS_OF_STREAM as u64 });
        }
        if room.filters.0 == 0 {
            return Err(Rejection::Exhausted { what: "filters", limit: room.filters.1 });
        }
        if room.bytes.0 < bytes_of(filter) {
            return Err(Rejection::Exhausted { what: "bytes of filters", limit: room.bytes.1 });
        }
        Ok(())
    }

    /// Follows a filter until then, for which there is room. `state` is what its follower is answered. Gives its token.
    pub(super) fn follow(&mut self, filter: Filter, state: &StateUpdate, until: Tick) -> u64 {
        let stream = state.slot;
        let inside = filter.takes_in(&state.timeline, state.scene);
        let leases = self.by_stream.entry(stream).or_default();
        if let Some(lease) = leases.iter_mut().find(|lease| lease.filter == filter) {
            self.ends.remove(&(lease.until, stream, lease.token));
            self.ends.insert((until, stream, lease.token));
            lease.until = until;
            lease.inside |= inside;
            return lease.token;
        }
        let mut token = filter.token();
        // Two filters of one token, of which somebody may have been looking for the second: it gets the next one.
        while leases.iter().any(|lease| lease.token == token) {
            token = token.wrapping_add(1);
        }
        let (passed_at, passed_progress) = (state.at, progress(&state.timeline, state.position_ms));
        self.bytes += bytes_of(&filter);
        leases.push(Lease { token, filter, until, passed_at, passed_progress, inside });
        self.ends.insert((until, stream, token));
        token
    }

    /// Notes on updates, in the order in which they were made, which filters they pass.
    #[inline]
    pub(super) fn mark(&mut self, updates: &mut [StateUpdate]) {
        if !self.by_stream.is_empty() {
            updates.iter_mut().for_each(|update| self.mark_one(update));
        }
    }

    fn mark_one(&mut self, update: &mut StateUpdate) {
        let Some(leases) = self.by_stream.get_mut(&update.slot) else { return };
        let (mut tokens, mut count) = ([0; MAX_FILTERS_OF_STREAM], 0);
        let progress = progress(&update.timeline, update.position_ms);
        for lease in leases.iter_mut() {
            if lease.passes(update, progress) {
                tokens[count] = lease.token;
                count += 1;
            }
        }
        if count > 0 {
            update.rare_mut().filtered = tokens[..count].into();
        }
        if update.mode == Mode::Unknown {
            self.end_stream(update.slot);
        }
    }

    /// When the next lease ends.
    pub(super) fn next_end(&self) -> Option<Tick> {
        self.ends.first().map(|(until, ..)| (*until).max(self.not_before))
    }

    /// No lease ends before: who would have repeated it in time may be waiting unread.
    pub(super) fn extend(&mut self, until: Tick) {
        self.not_before = self.not_before.max(until);
    }

    /// Ends the leases whose time is up, at most so many.
    pub(super) fn end_until(&mut self, now: Tick, most: usize) {
        for _ in 0..most {
            if self.next_end().is_none_or(|end| end > now) {
                return;
            }
            let Some((_, stream, token)) = self.ends.pop_first() else { return };
            let Some(leases) = self.by_stream.get_mut(&stream) else { continue };
            if let Some(place) = leases.iter().position(|lease| lease.token == token) {
                // In order: what a bug would otherwise make of it differs from run to run.
                self.bytes -= bytes_of(&leases.remove(place).filter);
            }
            if leases.is_empty() {
                self.by_stream.remove(&stream);
            }
        }
    }

    fn end_stream(&mut self, stream: u32) {
        for lease in self.by_stream.remove(&stream).unwrap_or_default() {
            self.ends.remove(&(lease.until, stream, lease.token));
            self.bytes -= bytes_of(&lease.filter);
        }
    }

    /// Asserts what must hold, given which slots have streams.
    pub(super) fn check(&self, is_stream: impl Fn(u32) -> bool) {
        let mut ends = BTreeSet::new();
        let mut bytes = 0;
        for (stream, leases) in &self.by_stream {
            assert!(is_stream(*stream), "a filter of stream {stream}, which is not there");
            assert!((1..=MAX_FILTERS_OF_STREAM).contains(&leases.len()), "{} filters of {stream}", leases.len());
            for (place, lease) in leases.iter().enumerate() {
                assert!(leases[..place].iter().all(|other| other.filter != lease.filter), "{lease:?} is there twice");
                assert!(ends.insert((lease.until, *stream, lease.token)), "{lease:?} shares its token");
                bytes += bytes_of(&lease.filter);
            }
        }
        assert_eq!(ends, self.ends, "each lease ends once");
        assert_eq!(bytes, self.bytes, "bytes of filters");
    }
}

impl Lease {
    /// Whether an update passes; it is noted if so.
    fn passes(&mut self, update: &StateUpdate, progress: f64) -> bool {
        let inside = self.filter.takes_in(&update.timeline, update.scene);
        let passes = match update.cause {
            Cause::Tick | Cause::Snapshot => inside && self.is_due(update.at, progress),
            Cause::Scene | Cause::Command | Cause::Lifecycle => inside || self.inside || update.mode == Mode::Unknown,
        };
        if passes {
            (self.passed_at, self.passed_progress, self.inside) = (update.at, progress, inside);
        }
        passes
    }

    /// Whether a tick comes late enough, and far enough, behind what passed before.
    fn is_due(&self, at: Tick, progress: f64) -> bool {
        !self.filter.changes_only()
            && at.since(self.passed_at) >= self.filter.min_interval_ms().into()
            && (progress - self.passed_progress).abs() >= self.filter.min_progress() - PROGRESS_MARGIN
    }
}

impl Engine {
    /// Refuses a filter for which there is no room.
    pub(super) fn check_filter(&self, slot: u32, filter: &Filter) -> Result<(), Rejection> {
        let Limits { max_filters, max_filter_bytes, .. } = self.settings.limits;
        let (filters, bytes) = (self.quota.filters.min(max_filters), self.quota.filter_bytes.min(max_filter_bytes));
        let room = Room {
            filters: (filters.saturating_sub(self.followers.len() as u64), max_filters),
            bytes: (bytes.saturating_sub(self.followers.bytes()), max_filter_bytes),
        };
        self.followers.check_room(slot, filter, room)
    }

    /// Follows a filter without joining.
    pub(super) fn follow_alone(
        &mut self,
        now: Tick,
        stream_id: StreamId<'_>,
        filter: Filter,
        outbox: &mut Outbox,
    ) -> Result<Accepted, Rejection> {
        let slot = self.wake_by_id(now, stream_id, outbox)?;
        self.check_filter(slot, &filter)?;
        Ok(self.follow(now, slot, filter, None))
    }

    /// Follows a filter for which there is room, of a stream that is at `now`.
    pub(super) fn follow(&mut self, now: Tick, slot: u32, filter: Filter, joined: Option<Joined>) -> Accepted {
        let lease_ms = self.settings.stale_after_ms;
        let state = self.streams.get(slot).state(now, Cause::Snapshot);
        let token = self.followers.follow(filter, &state, now.after(lease_ms));
        Accepted::Following(Box::new(Following { token, lease_ms, joined, state }))
    }
}

/// What a lease of this filter takes, bytes.
fn bytes_of(filter: &Filter) -> u64 {
    (size_of::<Lease>() + ENTRY_BYTES + filter.bytes()) as u64
}

/// Percent of the timeline.
#[allow(clippy::cast_precision_loss, reason = "a percentage")]
fn progress(timeline: &Timeline, position_ms: u64) -> f64 {
    match timeline.total_ms() {
        0 => 100.0,
        total_ms => position_ms as f64 / total_ms as f64 * 100.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::FilterDraft;

    fn state(slot: u32) -> StateUpdate {
        StateUpdate { slot, cause: Cause::Tick, mode: Mode::Running, scene: Some(0), ..StateUpdate::sample() }
    }

    fn every(min_interval_ms: u32) -> Filter {
        Filter::new(&FilterDraft { min_interval_ms, ..FilterDraft::default() }).unwrap()
    }

    #[test]
    fn two_filters_of_one_token_have_a_subject_each() {
        let mut followers = Followers::new();
        // As if the first were another filter, whose token is the second's.
        followers.follow(every(1), &state(0), Tick(9));
        let token = every(2).token();
        followers.by_stream.get_mut(&0).unwrap()[0].token = token;
        followers.ends = BTreeSet::from([(Tick(9), 0, token)]);
        assert_eq!(followers.follow(every(2), &state(0), Tick(9)), token.wrapping_add(1));
        followers.check(|_| true);
        let mut updates = [0, 1].map(|slot| StateUpdate { at: Tick(5), ..state(slot) });
        followers.mark(&mut updates);
        assert_eq!(updates[0].filtered(), [token, token.wrapping_add(1)]);
        assert_eq!(updates[1].rare, None, "another stream's");
        // Wherever its subject is, it is found as what it is.
        assert_eq!(followers.follow(every(1), &state(0), Tick(10)), token);
        assert_eq!(followers.follow(every(2), &state(0), Tick(10)), token.wrapping_add(1));
        followers.end_until(Tick(9), 9);
        assert_eq!(followers.len(), 2);
        followers.end_until(Tick(10), 9);
        followers.check(|_| true);
        assert_eq!((followers.len(), followers.bytes(), followers.by_stream.len()), (0, 0, 0));
    }
}
