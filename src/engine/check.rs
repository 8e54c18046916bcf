//! Every invariant across the engine's structures, asserted in one place.

use std::fmt::{self, Write};

use super::{Counts, Engine, Mode, StreamId, Tick};

impl Engine {
    /// A hash of the whole state, the same for the same history in every process: what a replay is compared by.
    ///
    /// It is made of the debugging texts of all streams and subscribers, so that no field can be forgotten; so it looks
    /// at everything, and is for the end of a recording and for tests.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut digest = Digest(0xcbf2_9ce4_8422_2325);
        // A text that does not fit is no concern of this sink: it takes all.
        let _ = write!(
            digest,
            "{:?} {:?} {:?} {:?} {}",
            self.streams, self.subscribers, self.counts, self.requests, self.last_epoch
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
        let mut counted = Counts::default();
        let (mut armed, mut gone) = (0, 0);
        for (slot, stream) in &self.streams.0 {
            if stream.gone {
                gone += 1;
                continue;
            }
            stream.check();
            assert_eq!(stream.due, stream.next_due(), "stream {}: due", stream.id);
            assert_eq!(stream.timer.is_linked(), stream.due != Tick::NEVER, "stream {}: timer", stream.id);
            let id = StreamId::parse(&stream.id).expect("a stream's id is valid");
            assert_eq!(self.find_stream(id), Ok(slot as u32), "stream {} is in the index", stream.id);
            armed += usize::from(stream.timer.is_linked());
            let mates: Vec<u32> = self.subscribers.mates(stream.members.head).collect();
            let stale = mates.iter().filter(|mate| self.subscribers.is_stale(**mate)).count() as u64;
            assert_eq!(mates.len(), stream.members.total as usize, "stream {}: its list", stream.id);
            assert!(mates.iter().all(|mate| self.subscribers.stream_of(*mate) == slot as u32));
            assert_eq!(u64::from(stream.members.active), mates.len() as u64 - stale, "stream {}: active", stream.id);
            counted.total += mates.len() as u64;
            counted.stale += stale;
            counted.active += mates.len() as u64 - stale;
            counted.unique += u64::from(stream.members.unique);
            counted.streams += 1;
            counted.running += u64::from(stream.mode() == Mode::Running);
        }
        assert_eq!(counted, self.counts, "counts are kept");
        assert_eq!(self.timers.check(&self.streams), armed, "one timer a stream");
        let streams = self.streams.0.iter().map(|(_, stream)| stream).filter(|stream| !stream.gone);
        self.by_id.check(streams.map(|stream| self.hash_of(&stream.id)));
        assert_eq!(self.by_id.len() as u64, counted.streams, "one entry a stream in the index");
        assert_eq!(gone, self.dying.len(), "streams that are gone wait to be buried");
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
