//! Time, as the shards have it: two clocks, read together once a turn.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::engine::Tick;
pub use crate::wire::encode::Now;

/// Time for all shards: milliseconds since 1970 on a clock that never goes back.
///
/// Its milliseconds begin when those of the wall clock do, so that the two are apart by whole ones, and what a reader
/// computes from one update is what the next says: not now and then a millisecond more.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    /// What the wall clock said then.
    since_1970: Duration,
}

impl Clock {
    /// Starts at the wall clock's present time.
    #[must_use]
    pub fn new() -> Self {
        Self { origin: Instant::now(), since_1970: since_1970() }
    }

    /// Reads both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        let tick = Tick(in_ms(self.since_1970.saturating_add(self.origin.elapsed())));
        Now { tick, wall_ms: wall_ms() }
    }

    /// When a tick is due, for whoever sleeps until then.
    pub(super) fn instant(&self, tick: Tick) -> Instant {
        self.origin + Duration::from_millis(tick.0).saturating_sub(self.since_1970)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// The wall clock, ms since 1970.
pub(super) fn wall_ms() -> u64 {
    in_ms(since_1970())
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn in_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_turn_to_the_next_millisecond_together() {
        const READINGS: usize = 20_000;
        let clock = Clock::new();
        let apart = (0..READINGS).map(|_| clock.now()).filter(|now| now.tick.0 != now.wall_ms).count();
        // One is read behind the other; and a clock may be slewed meanwhile.
        assert!(apart < READINGS / 20, "{apart} of {READINGS}");
    }

    #[test]
    fn a_tick_is_due_when_it_begins() {
        let clock = Clock::new();
        let now = clock.now().tick;
        assert!(clock.instant(now) <= Instant::now());
        let next = clock.instant(now.after(2)) - clock.instant(now.after(1));
        assert_eq!(next, Duration::from_millis(1));
    }
}
