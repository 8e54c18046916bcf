//! The client's one source of randomness, for jitter, sessions and request ids: seeded, so that a run can be repeated.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// A generator that clones of a client share. Its numbers are well spread and no secret.
#[derive(Debug)]
pub(super) struct Random(Mutex<fastrand::Rng>);

impl Random {
    /// From `seed`, or from the process's own randomness.
    pub(super) fn new(seed: Option<u64>) -> Self {
        Self(Mutex::new(seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed)))
    }

    /// Any number.
    pub(super) fn number(&self) -> u64 {
        self.with(|rng| rng.u64(..))
    }

    /// A duration below `limit`, to the nanosecond.
    pub(super) fn below(&self, limit: Duration) -> Duration {
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(self.with(|rng| rng.u64(..nanos)))
    }

    /// A version 4 UUID.
    pub(super) fn uuid(&self) -> uuid::Uuid {
        uuid::Builder::from_random_bytes(self.with(|rng| rng.u128(..)).to_le_bytes()).into_uuid()
    }

    fn with<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        // No draw can panic half-way.
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_and_another_seed_something_else() {
        let draw = |random: &Random| (random.number(), random.below(Duration::from_secs(1)), random.uuid());
        let [first, same, other] = [1, 1, 2].map(|seed| draw(&Random::new(Some(seed))));
        assert_eq!(first, same);
        assert_ne!(first, other);
        assert_ne!(draw(&Random::new(None)), draw(&Random::new(None)));
    }

    #[test]
    fn a_duration_is_below_its_limit_and_0_below_0() {
        let random = Random::new(Some(7));
        assert!((0..1_000).all(|_| random.below(Duration::from_nanos(3)) < Duration::from_nanos(3)));
        assert_eq!(random.below(Duration::ZERO), Duration::ZERO);
    }
}
