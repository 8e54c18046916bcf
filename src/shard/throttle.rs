//! How many log lines there are of one kind that a stranger can cause.

use std::sync::{
    LazyLock,
    atomic::{AtomicU64, Ordering},
};

use tokio::time::Instant;

/// Lets so many through in each stretch of time, and counts the others.
#[derive(Debug)]
pub(super) struct Throttle {
    most: u64,
    every_ms: u64,
    /// Number of the stretch that is being counted, from 1 on.
    stretch: AtomicU64,
    passed: AtomicU64,
    held_back: AtomicU64,
}

impl Throttle {
    pub(super) const fn new(most: u64, every_ms: u64) -> Self {
        let (stretch, passed, held_back) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self { most, every_ms, stretch, passed, held_back }
    }

    /// Whether one more may pass now; if so, how many were held back since the last one. Several threads at once may
    /// let a few more through.
    pub(super) fn pass(&self) -> Option<u64> {
        static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
        self.pass_at(u64::try_from(ORIGIN.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn pass_at(&self, now_ms: u64) -> Option<u64> {
        let stretch = now_ms / self.every_ms + 1;
        if self.stretch.swap(stretch, Ordering::Relaxed) != stretch {
            self.passed.store(0, Ordering::Relaxed);
        }
        if self.passed.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.held_back.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.held_back.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_a_few_lines_pass_and_the_rest_is_counted() {
        let throttle = Throttle::new(3, 1_000);
        let passed = (0..500).filter(|_| throttle.pass_at(10).is_some()).count();
        assert_eq!(passed, 3);
        assert_eq!(throttle.pass_at(999), None);
        assert_eq!(throttle.pass_at(1_000), Some(498));
        assert_eq!(throttle.pass_at(1_001), Some(0));
    }
}
