//! Every invariant across the engine's structures, asserted in one place.

use std::fmt::{self, Write};

use slab::Slab;

use super::{Counts, Engine, StreamId, Tick};

impl Engine {
    /// A hash of the whole state, the same for the same history in every process: what a replay is compared by.
    ///
    /// It is made of the debugging texts of all that decides what the engine will do; so it looks at everything, and is
    /// for the end of a recording and for tests. One thing is left out: the hasher of stream ids, which follows from the
    /// seed in the settings. Records that were never used are all alike, and of free slots in slabs only the next one
    /// counts.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let Self {
            settings,
            quota,
            clock,
            streams,
            by_id,
            timers,
            waiting,
            subscribers,
            followers,
            requests,
            history,
            hasher: _,
            counts,
            last_epoch,
            removed,
        } = self;
        let mut digest = Digest(0xcbf2_9ce4_8422_2325);
        // A text that does not fit is no concern of this sink: it takes all.
        let _ = write!(
            digest,
            "{settings:?} {quota:?} {clock:?} {streams:?} {by_id:?} {timers:?} {waiting:?} {subscribers:?} {followers:?} \
             {requests:?} {history:?} {counts:?} {last_epoch} {removed:?}"
        );
        digest.0
    }

    /// Asserts every invariant across the engine's structures. For tests, after each step; it looks at everything.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check(&self) {
        self.subscribers.check();
        self.requests.check();
        let is_there = |slot: u32| self.streams.0.get(slot as usize).is_some_and(|stream| !stream.is_removed());
        self.followers.check(is_there);
        self.history.check(is_there);
        let mut counted = Counts::default();
        let (mut armed, mut removed, mut waiting) = (0, 0, std::collections::BTreeSet::new());
        for (slot, stream) in &self.streams.0 {
            if stream.is_removed() {
                removed += 1;
                continue;
            }
            stream.check();
            assert_eq!(stream.due, stream.next_due(), "stream {}: due", stream.show.id);
            assert_eq!(stream.timer.is_linked(), stream.due != Tick::NEVER, "stream {}: timer", stream.show.id);
            let id = StreamId::parse(&stream.show.id).expect("a stream's id is valid");
            assert_eq!(self.find_stream(id), Ok(slot as u32), "stream {} is in the index", stream.show.id);
            armed += usize::from(stream.timer.is_linked());
            waiting.extend(stream.show.waits_until().map(|at_ms| (at_ms, slot as u32)));
            let members: Vec<u32> = self.subscribers.of_stream(stream.members.head).collect();
            let stale = members.iter().filter(|member| self.subscribers.is_stale(**member)).count() as u64;
            let counts = stream.counts();
            assert!(members.iter().all(|member| self.subscribers.stream_of(*member) == slot as u32));
            assert_eq!(counts.total, members.len() as u64, "stream {}: its list", stream.show.id);
            assert_eq!(counts.stale, stale, "stream {}: stale", stream.show.id);
            counted += counts;
        }
        assert_eq!(counted, self.counts, "counts are kept");
        self.waiting.check(waiting);
        assert_eq!(self.timers.check(&self.streams), armed, "one timer a stream");
        let streams = self.streams.0.iter().map(|(_, stream)| stream).filter(|stream| !stream.is_removed());
        self.by_id.check(streams.map(|stream| self.hash_of(&stream.show.id)));
        assert_eq!(self.by_id.len() as u64, counted.streams, "one entry a stream in the index");
        assert_eq!(removed, self.removed.len(), "streams that were removed wait to be reaped");
    }
}

/// All entries of a slab, which by itself tells only how many there are; and which slot is the next.
pub(super) struct Entries<'a, T>(pub &'a Slab<T>);

impl<T: fmt::Debug> fmt::Debug for Entries<'_, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.0.iter()).finish()?;
        write!(formatter, "{}", self.0.vacant_key())
    }
}

/// FNV-1a with 64 bits over whatever is written.
struct Digest(u64);

impl Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = text.bytes().fold(self.0, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{
        ClientId, Command, Config, Draft, Input, Limits, Newcomer, Outbox, Request, Scene, Settings, StreamId,
    };

    fn engine() -> Engine {
        let mut engine = Engine::new(Settings::default());
        let stream_id = StreamId::parse("show").unwrap();
        let draft = Draft { scenes: vec![Scene::new("Main", 10_000)], ..Draft::default() };
        let command = Command::Start(Some(Config::new(&draft, &Limits::default()).unwrap()));
        let start = Request { request_id: Some("r"), ..Request::new(stream_id, command) };
        engine.handle(Tick(1), Input::Command(start), &mut Outbox::default()).unwrap();
        let source = Some("[2001:db8::7]:443".parse().unwrap());
        let subscriber = Newcomer { client_id: ClientId::parse("viewer").unwrap(), session: 0, source };
        let register = Input::Register { stream_id, subscriber, answered: true };
        engine.handle(Tick(1), register, &mut Outbox::default()).unwrap();
        engine
    }

    #[test]
    fn whatever_differs_makes_another_digest() {
        let same = engine().digest();
        assert_eq!(same, engine().digest(), "the same history");
        type Change = fn(&mut Engine);
        let changes: [(&str, Change); 18] = [
            ("settings", |engine| engine.settings.stale_after_ms += 1),
            ("quota", |engine| engine.quota.config_bytes -= 1),
            ("clock", |engine| engine.clock = crate::engine::WallClock::read(Tick(1), 2)),
            ("streams", |engine| engine.streams.get_mut(0).show.revision += 1),
            ("a stream's timer", |engine| engine.streams.get_mut(0).due = Tick(7)),
            ("by_id", |engine| engine.by_id.insert(7, 7)),
            ("timers", |engine| engine.timers.cancel(&mut engine.streams, 0)),
            ("waiting", |engine| engine.waiting.change(0, None, Some(7))),
            ("a wheel's time", |engine| {
                engine.timers.pop(&mut engine.streams, Tick(2), &mut 1);
            }),
            ("subscribers", |engine| engine.subscribers.renew(0)),
            ("a source address", |engine| {
                engine.subscribers.set_source(0, Some("[2001:db8::8]:443".parse().unwrap()));
            }),
            ("followers", |engine| {
                let state = engine.streams.get(0).state(Tick(1), crate::engine::Cause::Snapshot);
                engine.followers.follow(crate::engine::Filter::default(), &state, Tick(2));
            }),
            ("when the next lease ends", |engine| engine.followers.extend(Tick(1))),
            ("requests", |engine| engine.requests.forget_until(Tick::NEVER, 1)),
            ("history", |engine| engine.history.forget(0)),
            ("counts", |engine| engine.counts.active += 1),
            ("last_epoch", |engine| engine.last_epoch += 1),
            ("removed", |engine| engine.removed.push_back(0)),
        ];
        for (field, change) in changes {
            let mut changed = engine();
            change(&mut changed);
            assert_ne!(changed.digest(), same, "{field}");
        }
    }
}
