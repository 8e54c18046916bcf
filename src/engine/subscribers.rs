//! Subscribers: their records, the hash index that finds them, and the wheel that notices silence.
//!
//! It knows who watches which stream (by slot) and when each was last heard of, not what a stream is.
//!
//! The index has one entry a client and stream, the first of the chain of its sessions; so its size is the number of
//! unique clients.

use std::{
    fmt,
    hash::{BuildHasher as _, Hasher as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
};

use foldhash::fast::FixedState;
use slab::Slab;

use super::{
    ClientId, Handle, Hint, SubscriberInfo, Tick,
    check::Entries,
    client_id::Form,
    handle::{HandleKey, Named},
    index::Index,
    prefetch::prefetch,
    records::{HAS_SOURCE, IS_STALE, IS_TEXT, IS_V6, NONE, PORT_SHIFT, Record, Records, SEEN_MASK, VOID},
    wheel::{Link, Wheel},
};

/// How many look-ups of a batch are under way at once: each waits for memory, and the processor waits for many as long
/// as for one. So many records and lines of the index are half of what the nearest cache holds.
pub(super) const IN_FLIGHT: usize = 128;

/// A client of a stream, ready to be looked up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lookup<'a> {
    key: Form<'a>,
    hash: u64,
    stream: u32,
    /// The slot to look at first, if [`Subscribers::approach`] has found one.
    likely: u32,
}

impl Lookup<'_> {
    /// Stands for an input that is not about one subscriber. Nobody looks it up, and its hint means nothing.
    pub(super) const NOBODY: Self = Self { key: Form::Uuid(0), hash: 0, stream: NONE, likely: NONE };

    pub(super) const fn hint(&self) -> Hint {
        Hint { stream: self.stream, subscriber: self.likely }
    }
}

/// Why the wheel let go of a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silent {
    /// It is stale from now on.
    Stale(u32),
    /// It was stale long enough: to be removed.
    Gone(u32),
}

/// What was true of a subscriber that was removed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removed {
    pub was_stale: bool,
    /// No other session of the client is left on the stream.
    pub last_of_client: bool,
}

/// See the module.
pub(super) struct Subscribers {
    records: Records,
    index: Index,
    wheel: Wheel,
    handles: HandleKey,
    hasher: FixedState,
    /// What UUIDs are hidden under before they are hashed.
    mask: u128,
    /// Client ids that are no UUIDs.
    texts: Slab<Box<str>>,
    /// Source addresses that are IPv6.
    v6: Slab<SocketAddrV6>,
    /// Invariant: what `texts` and `v6` hold, bytes.
    bytes: u64,
    len: u64,
}

/// What a text takes beside its bytes: its place, and what the allocator adds.
const TEXT_BYTES: u64 = 32;
const V6_BYTES: u64 = size_of::<SocketAddrV6>() as u64;

fn source_bytes(source: Option<SocketAddr>) -> u64 {
    if matches!(source, Some(SocketAddr::V6(_))) { V6_BYTES } else { 0 }
}

impl Subscribers {
    /// `seed` makes the hash unguessable from outside, and the handles of one process unlike those of another.
    pub(super) fn new(stale_after_ms: u64, seed: u64) -> Self {
        let hasher = FixedState::with_seed(seed);
        let records = Records::new(stale_after_ms);
        // The hasher multiplies the halves of a UUID, each changed by constants that everybody knows: under a seed alone,
        // a stranger could choose a half that makes the product 0, whatever the other is.
        let mask = u128::from(hasher.hash_one("low half")) | u128::from(hasher.hash_one("high half")) << 64;
        let (texts, v6) = (Slab::new(), Slab::new());
        let handles = HandleKey::new(seed);
        Self { records, index: Index::new(), wheel: Wheel::new(), handles, hasher, mask, texts, v6, bytes: 0, len: 0 }
    }

    /// Records in use.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// What is kept beside the records, bytes.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What somebody who joins would add to it: a newcomer its id, if that is no UUID, and in place of the source that
    /// it had, if it is there already, another one.
    pub(super) fn more_bytes(&self, client: ClientId<'_>, there: Option<u32>, source: Option<SocketAddr>) -> u64 {
        let text = match client.0 {
            Form::Text(text) if there.is_none() => TEXT_BYTES + text.len() as u64,
            _ => 0,
        };
        let before = there.map_or(0, |slot| source_bytes(self.source(slot)));
        text + source_bytes(source).saturating_sub(before)
    }

    /// Makes ready to look a client up.
    #[inline]
    pub(super) fn lookup<'a>(&self, stream: u32, client: ClientId<'a>) -> Lookup<'a> {
        let ClientId(key) = client;
        Lookup { key, hash: self.hash(stream, key), stream, likely: NONE }
    }

    #[inline]
    fn hash(&self, stream: u32, key: Form<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u32(stream);
        match key {
            Form::Uuid(uuid) => hasher.write_u128(uuid ^ self.mask),
            Form::Text(text) => hasher.write(text.as_bytes()),
        }
        hasher.finish()
    }

    /// The first session of a client on a stream; the others follow through [`Subscribers::next_session`].
    #[inline]
    pub(super) fn find(&self, lookup: &Lookup<'_>) -> Option<u32> {
        let Lookup { key, hash, stream, likely } = *lookup;
        // What was the first session of a client stays that until it is gone.
        if likely < self.records.used && self.is_of(likely, stream, key) {
            return Some(likely);
        }
        self.index.find(hash, |slot| self.is_of(slot, stream, key))
    }

    /// Whether a slot, if it is one, is that session of that client on that stream.
    #[inline]
    pub(super) fn is_it(&self, slot: u32, stream: u32, client: ClientId<'_>, session: u64) -> bool {
        slot < self.records.used && self.records.get(slot).session == session && self.is_of(slot, stream, client.0)
    }

    #[inline]
    fn is_of(&self, slot: u32, stream: u32, key: Form<'_>) -> bool {
        let record = self.records.get(slot);
        // The stream first: a free slot has none, and its text is gone.
        record.stream == stream
            && match key {
                Form::Uuid(uuid) => record.seen & IS_TEXT == 0 && record.client == uuid,
                Form::Text(_) => key_of(record, &self.texts) == key,
            }
    }

    /// One session of a client, of which `first` is the first.
    pub(super) fn find_session(&self, first: Option<u32>, session: u64) -> Option<u32> {
        self.sessions(first).find(|slot| self.records.get(*slot).session == session)
    }

    /// The first of two steps to a look-up that waits for nothing: [`Subscribers::lookup`], and asks memory for the index.
    #[inline]
    pub(super) fn begin<'a>(&self, stream: u32, client: ClientId<'a>) -> Lookup<'a> {
        let lookup = self.lookup(stream, client);
        self.index.prefetch(lookup.hash);
        lookup
    }

    /// The second one, when the index has come: asks for the record. Others should go their steps in between.
    #[inline]
    pub(super) fn approach(&self, lookup: &mut Lookup<'_>) {
        lookup.likely = self.index.likely(lookup.hash);
        self.prefetch(lookup.likely);
    }

    /// The first of two steps to look-ups by handle: opens them, and asks memory for the records.
    #[inline]
    pub(super) fn begin_handles(&self, handles: &[Handle], named: &mut [Named]) {
        for (handle, named) in handles.iter().zip(named) {
            *named = self.handles.open(*handle);
            self.prefetch(named.slot());
        }
    }

    fn prefetch(&self, slot: u32) {
        if let Some(record) = self.records.try_get(slot) {
            prefetch(&record.tag);
        }
    }

    /// The second one: whom it stands for.
    #[inline]
    pub(super) fn find_named(&self, named: Named) -> Option<u32> {
        let slot = named.slot();
        (self.records.try_get(slot)?.tag == named.tag()).then_some(slot)
    }

    /// A slot and the sessions of the same client behind it.
    pub(super) fn sessions(&self, first: Option<u32>) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(first, |slot| self.next_session(*slot))
    }

    pub(super) fn next_session(&self, slot: u32) -> Option<u32> {
        let next = self.records.get(slot).next_session;
        (next != NONE).then_some(next)
    }

    pub(super) fn stream_of(&self, slot: u32) -> u32 {
        self.records.get(slot).stream
    }

    pub(super) fn handle(&self, slot: u32, partition: u8) -> Handle {
        self.handles.seal(partition, Named::new(slot, self.records.get(slot).tag))
    }

    /// Voids a subscriber's handle: it is registered again, and has another one from now on.
    pub(super) fn renew(&mut self, slot: u32) {
        let record = self.records.get_mut(slot);
        record.tag = self.handles.draw_tag(record.tag);
    }

    /// Adds a subscriber that is not there, to the front of the list that begins with `head`, and behind the client's
    /// `first` session, if it has one. Returns its slot. The caller has checked that there is room.
    pub(super) fn insert(
        &mut self,
        now: Tick,
        Lookup { key, hash, stream, .. }: Lookup<'_>,
        first: Option<u32>,
        session: u64,
        source: Option<SocketAddr>,
        head: u32,
    ) -> u32 {
        let (client, flags) = match key {
            Form::Uuid(uuid) => (uuid, 0),
            Form::Text(text) => {
                self.bytes += TEXT_BYTES + text.len() as u64;
                (self.texts.insert(text.into()) as u128, IS_TEXT)
            }
        };
        let slot = self.records.allocate();
        let tag = self.handles.draw_tag(self.records.get(slot).tag & !VOID);
        *self.records.get_mut(slot) = Record {
            client,
            session,
            seen: now.0.min(SEEN_MASK) | flags,
            address: 0,
            tag,
            stream,
            next_session: NONE,
            timer: Link::UNLINKED,
            prev_in_stream: NONE,
            next_in_stream: head,
        };
        if head != NONE {
            self.records.get_mut(head).prev_in_stream = slot;
        }
        self.set_source(slot, source);
        match first {
            // Behind the first one, so that the index stays as it is.
            Some(first) => {
                self.records.get_mut(slot).next_session = self.records.get(first).next_session;
                self.records.get_mut(first).next_session = slot;
            }
            None => self.index.insert(hash, slot),
        }
        self.wheel.arm(&mut self.records, slot);
        self.len += 1;
        slot
    }

    /// Notes that a subscriber was heard of. Returns true if it was stale until now.
    #[inline]
    pub(super) fn heard(&mut self, slot: u32, now: Tick) -> bool {
        let record = self.records.get_mut(slot);
        let was_stale = record.seen & IS_STALE != 0;
        record.seen = record.seen & !(SEEN_MASK | IS_STALE) | now.0.min(SEEN_MASK);
        if was_stale {
            self.rearm(slot);
        }
        was_stale
    }

    /// A short stale timeout may end before the lingering would have: the one case in which a deadline comes closer.
    #[cold]
    fn rearm(&mut self, slot: u32) {
        self.wheel.cancel(&mut self.records, slot);
        self.wheel.arm(&mut self.records, slot);
    }

    /// Where it connects from now.
    pub(super) fn set_source(&mut self, slot: u32, source: Option<SocketAddr>) {
        self.drop_source(slot);
        let (address, flags, port) = match source {
            None => return,
            Some(SocketAddr::V4(v4)) => (v4.ip().to_bits(), HAS_SOURCE, v4.port()),
            Some(SocketAddr::V6(v6)) => (self.v6.insert(v6) as u32, HAS_SOURCE | IS_V6, v6.port()),
        };
        self.bytes += source_bytes(source);
        let record = self.records.get_mut(slot);
        record.address = address;
        record.seen |= flags | u64::from(port) << PORT_SHIFT;
    }

    /// Where it connects from.
    pub(super) fn source(&self, slot: u32) -> Option<SocketAddr> {
        let record = self.records.get(slot);
        if record.seen & HAS_SOURCE == 0 {
            return None;
        }
        if record.seen & IS_V6 != 0 {
            return Some(SocketAddr::V6(self.v6[record.address as usize]));
        }
        let ip = IpAddr::V4(Ipv4Addr::from_bits(record.address));
        Some(SocketAddr::new(ip, (record.seen >> PORT_SHIFT) as u16))
    }

    /// What there is to tell of one.
    pub(super) fn info(&self, slot: u32) -> SubscriberInfo {
        let record = self.records.get(slot);
        SubscriberInfo {
            slot,
            client_id: ClientId(key_of(record, &self.texts)).to_string().into(),
            source: self.source(slot),
            session: record.session,
            heard: Tick(record.seen & SEEN_MASK),
            is_stale: record.seen & IS_STALE != 0,
        }
    }

    /// The subscribers of a stream from a slot on, at most `limit`, and where to go on: found by looking at slots one after
    /// the other, no more than `looks` of them.
    pub(super) fn among(&self, stream: u32, from: u32, limit: usize, looks: u32) -> (Vec<u32>, Option<u32>) {
        let end = self.records.used;
        let last = from.saturating_add(looks).min(end);
        let mut own = (from..last).filter(|slot| self.records.get(*slot).stream == stream);
        let found: Vec<u32> = own.by_ref().take(limit).collect();
        let next = own.next().unwrap_or(last.max(from));
        (found, (next < end).then_some(next))
    }

    /// Takes a subscriber out. `head` is the first of its stream's list, and is moved on if need be.
    pub(super) fn remove(&mut self, slot: u32, head: &mut u32) -> Removed {
        let last_of_client = self.unchain(slot);
        let Record { seen, prev_in_stream, next_in_stream, client, .. } = *self.records.get(slot);
        if next_in_stream != NONE {
            self.records.get_mut(next_in_stream).prev_in_stream = prev_in_stream;
        }
        if prev_in_stream == NONE {
            *head = next_in_stream;
        } else {
            self.records.get_mut(prev_in_stream).next_in_stream = next_in_stream;
        }
        self.wheel.cancel(&mut self.records, slot);
        self.drop_source(slot);
        if seen & IS_TEXT != 0 {
            self.bytes -= TEXT_BYTES + self.texts.remove(client as usize).len() as u64;
        }
        self.records.release(slot);
        self.len -= 1;
        Removed { was_stale: seen & IS_STALE != 0, last_of_client }
    }

    /// The next subscriber that has been silent for too long, if the budget of looks allows.
    pub(super) fn next_silent(&mut self, now: Tick, looks: &mut usize) -> Option<Silent> {
        let slot = self.wheel.pop(&mut self.records, now, looks)?;
        let record = self.records.get_mut(slot);
        if record.seen & IS_STALE != 0 {
            return Some(Silent::Gone(slot));
        }
        record.seen |= IS_STALE;
        self.wheel.arm(&mut self.records, slot);
        Some(Silent::Stale(slot))
    }

    /// When to call [`Subscribers::next_silent`] next.
    pub(super) fn next_look(&self) -> Option<Tick> {
        self.wheel.next_look()
    }

    /// Nobody goes stale, or is removed for it, before `until`.
    pub(super) fn extend_deadlines(&mut self, until: Tick) {
        self.records.extended_until = self.records.extended_until.max(until);
    }

    /// Takes a record out of its client's chain of sessions, and of the index if it was the only one.
    fn unchain(&mut self, slot: u32) -> bool {
        let (lookup, next) = (self.lookup_of(slot), self.records.get(slot).next_session);
        let (first, hash) = (self.find(&lookup), lookup.hash);
        debug_assert!(first.is_some(), "slot {slot} is not in the index");
        if first != Some(slot) {
            let before = self.sessions(first).find(|before| self.records.get(*before).next_session == slot);
            debug_assert!(before.is_some(), "slot {slot} is not in its chain");
            if let Some(before) = before {
                self.records.get_mut(before).next_session = next;
            }
            return false;
        }
        if next == NONE {
            self.index.remove(hash, slot);
            return true;
        }
        self.index.replace(hash, slot, next);
        false
    }

    fn lookup_of(&self, slot: u32) -> Lookup<'_> {
        let record = self.records.get(slot);
        let key = key_of(record, &self.texts);
        Lookup { key, hash: self.hash(record.stream, key), stream: record.stream, likely: NONE }
    }

    fn drop_source(&mut self, slot: u32) {
        let record = self.records.get_mut(slot);
        if record.seen & IS_V6 != 0 {
            self.v6.remove(record.address as usize);
            self.bytes -= V6_BYTES;
        }
        record.seen &= !(HAS_SOURCE | IS_V6 | u64::MAX << PORT_SHIFT);
    }

    /// Asserts what must hold across records, index, wheel and side tables.
    pub(super) fn check(&self) {
        let in_use = || (0..self.records.used).filter(|slot| self.records.get(*slot).stream != NONE);
        assert_eq!(in_use().count() as u64, self.len, "records in use");
        assert_eq!(self.wheel.check(&self.records) as u64, self.len, "every record is in the wheel");
        let (mut texts, mut v6, mut chained, mut firsts) = (0, 0, 0, 0);
        for slot in in_use() {
            let record = self.records.get(slot);
            texts += usize::from(record.seen & IS_TEXT != 0);
            v6 += usize::from(record.seen & IS_V6 != 0);
            let first = self.find(&self.lookup_of(slot));
            assert!(self.sessions(first).any(|other| other == slot), "slot {slot} is not in its client's chain");
            if first == Some(slot) {
                firsts += 1;
                chained += self.sessions(first).count() as u64;
            }
        }
        self.index.check(in_use().map(|slot| self.lookup_of(slot).hash));
        assert_eq!(firsts, self.index.len(), "one index entry a client and stream");
        assert_eq!(chained, self.len, "every record is in one chain");
        let bytes =
            self.texts.iter().map(|(_, text)| TEXT_BYTES + text.len() as u64).sum::<u64>() + v6 as u64 * V6_BYTES;
        assert_eq!(bytes, self.bytes, "bytes beside the records");
        assert_eq!((texts, v6), (self.texts.len(), self.v6.len()), "side tables hold what records point to");
    }

    /// The slots of a stream's list.
    pub(super) fn of_stream(&self, head: u32) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors((head != NONE).then_some(head), |slot| {
            let behind = self.records.get(*slot).next_in_stream;
            (behind != NONE).then_some(behind)
        })
    }

    /// Whether a subscriber is counted as stale.
    pub(super) fn is_stale(&self, slot: u32) -> bool {
        self.records.get(slot).seen & IS_STALE != 0
    }
}

/// All that decides what it will do: the hasher and the mask follow from the seed.
impl fmt::Debug for Subscribers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { records, index, wheel, handles, hasher: _, mask: _, texts, v6, bytes, len } = self;
        formatter
            .debug_struct("Subscribers")
            .field("records", records)
            .field("index", index)
            .field("wheel", wheel)
            .field("handles", handles)
            .field("texts", &Entries(texts))
            .field("v6", &Entries(v6))
            .field("bytes", bytes)
            .field("len", len)
            .finish()
    }
}

fn key_of<'a>(record: &Record, texts: &'a Slab<Box<str>>) -> Form<'a> {
    if record.seen & IS_TEXT == 0 { Form::Uuid(record.client) } else { Form::Text(&texts[record.client as usize]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_address_is_given_back() {
        let mut subscribers = Subscribers::new(90_000, 7);
        let client = ClientId::parse("zoë").unwrap();
        for source in [None, Some("192.0.2.7:51000"), Some("[2001:db8::7]:65535"), Some("0.0.0.0:0"), None] {
            let source = source.map(|text| text.parse().unwrap());
            let slot = subscribers.insert(Tick(1), subscribers.lookup(3, client), None, 9, None, NONE);
            subscribers.set_source(slot, source);
            assert_eq!(subscribers.source(slot), source);
            subscribers.check();
            subscribers.remove(slot, &mut slot.clone());
            subscribers.check();
        }
    }

    #[test]
    fn nobody_can_choose_uuids_that_fall_together() {
        // The half that the hasher's own constants undo.
        let text = |number: u32| format!("{number:08x}-0000-4000-dd50-7cc9b729acc0");
        for seed in [0, 1, u64::MAX] {
            let subscribers = Subscribers::new(90_000, seed);
            let hash = |number| subscribers.lookup(3, ClientId::parse(&text(number)).unwrap()).hash;
            let hashes: std::collections::BTreeSet<u64> = (0..1_000).map(hash).collect();
            assert_eq!(hashes.len(), 1_000);
        }
    }

    fn find_handle(subscribers: &Subscribers, handle: Handle) -> Option<u32> {
        let mut named = [Named::default()];
        subscribers.begin_handles(&[handle], &mut named);
        subscribers.find_named(named[0])
    }

    #[test]
    fn a_handle_of_a_slot_used_again_stands_for_nobody() {
        let mut subscribers = Subscribers::new(90_000, u64::MAX);
        let client = ClientId::parse("a").unwrap();
        let slot = subscribers.insert(Tick(0), subscribers.lookup(0, client), None, 0, None, NONE);
        let handle = subscribers.handle(slot, 1);
        assert_eq!(find_handle(&subscribers, handle), Some(slot));
        subscribers.remove(slot, &mut slot.clone());
        assert_eq!(find_handle(&subscribers, handle), None);
        let again = subscribers.insert(Tick(0), subscribers.lookup(0, client), None, 0, None, NONE);
        assert_eq!(again, slot);
        assert_eq!(find_handle(&subscribers, handle), None);
        assert_eq!(find_handle(&subscribers, Handle(u64::MAX)), None);
        assert_eq!(find_handle(&subscribers, Handle(0)), None);
    }
}
