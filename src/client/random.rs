//! A little randomness for jitter and sessions, from what already makes the ids.

use std::time::Duration;

/// A random number.
#[allow(clippy::cast_possible_truncation, reason = "the low half is as random as the whole")]
pub(super) fn number() -> u64 {
    // The low 64 bits of a version 4 UUID are random but for the two bits of the variant, which the shift removes.
    let id = uuid::Uuid::new_v4().as_u128();
    (id as u64) << 2 ^ (id >> 64) as u64
}

/// A random duration below `limit`.
pub(super) fn up_to(limit: Duration) -> Duration {
    let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1);
    Duration::from_nanos(number() % nanos)
}
