//! How late this gateway is itself: what is late because of that is nobody else's fault.
//!
//! A timer that fires late tells how long whatever becomes ready now waits for its turn: a pong that has come, as well as
//! an update. So one timer for the whole gateway, for as long as somebody watches, measures it all the time.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// How often it is measured: several times while an answer may take before it counts as late.
const INTERVAL: Duration = Duration::from_millis(50);
/// Of what was measured before, this part counts for the next: so half of a lag is forgotten in a quarter of a second.
const KEPT: (u64, u64) = (7, 8);

/// By how much this process is late, of late at most.
#[derive(Debug, Default)]
pub(super) struct Lag(AtomicU64);

impl Lag {
    pub(super) fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    /// Measures for ever.
    pub(super) async fn measure(&self) -> Infallible {
        loop {
            let due = Instant::now() + INTERVAL;
            sleep_until(due).await;
            self.note(due.elapsed());
        }
    }

    fn note(&self, late: Duration) {
        let late = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
        let before = self.0.load(Ordering::Relaxed);
        self.0.store(late.max(before.saturating_mul(KEPT.0) / KEPT.1), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lag_counts_at_once_and_is_forgotten_soon() {
        let lag = Arc::new(Lag::default());
        let measuring = tokio::spawn({
            let lag = Arc::clone(&lag);
            async move { lag.measure().await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(lag.get() <= Duration::from_millis(1), "{:?}", lag.get());
        // The clock jumps, as it does for a process that was stopped.
        tokio::time::advance(Duration::from_millis(2_050)).await;
        tokio::task::yield_now().await;
        assert!(lag.get() >= Duration::from_millis(1_900), "{:?}", lag.get());
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(lag.get() <= Duration::from_millis(1_200), "{:?}", lag.get());
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(lag.get() <= Duration::from_millis(7), "{:?}", lag.get());
        measuring.abort();
    }

    #[test]
    fn absurd_lags_are_kept_within_what_can_be_told() {
        let lag = Lag::default();
        lag.note(Duration::MAX);
        lag.note(Duration::ZERO);
        assert_eq!(lag.get(), Duration::from_millis(u64::MAX / 8));
    }
}
