//! Time, as the shards have it: two clocks, read together once a turn.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::engine::Tick;
pub use crate::wire::encode::Now;

/// Time for all shards: milliseconds since 1970 on a clock that never goes back.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    origin_ms: u64,
}

impl Clock {
    /// Starts at the wall clock's present time.
    #[must_use]
    pub fn new() -> Self {
        Self { origin: Instant::now(), origin_ms: wall_ms() }
    }

    /// Reads both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        let elapsed_ms = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now { tick: Tick(self.origin_ms.saturating_add(elapsed_ms)), wall_ms: wall_ms() }
    }

    /// When a tick is due, for whoever sleeps until then.
    pub(super) fn instant(&self, tick: Tick) -> Instant {
        self.origin + Duration::from_millis(tick.0.saturating_sub(self.origin_ms))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// The wall clock, ms since 1970.
pub(super) fn wall_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
