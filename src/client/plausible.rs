//! Which updates a reader believes: anybody on the bus can publish one, and the highest epoch and sequence win for ever.
//!
//! An epoch is the microsecond of its stream's creation, so it is never ahead of the clock by more than clocks differ. A
//! sequence counts what a stream has published since, which is far less than one update a microsecond. What is beyond that
//! would silence the stream for all who read it, present and new, and is refused: in feeds, on subjects, in snapshots and in
//! answers. It is no proof of who sent an update; that is for the broker's permissions.

use std::time::{Duration, SystemTime};

use crate::wire::proto::StateUpdate;

/// How far an epoch may be ahead of this machine's clock: more than a clock that was set for another time zone is wrong.
const MAX_AHEAD: Duration = Duration::from_secs(24 * 60 * 60);
/// How many updates a stream may have published at its creation.
const MAX_BURST: u64 = 1_000_000;

/// Why an update cannot be true, if it cannot.
pub(super) fn doubt(update: &StateUpdate, now: SystemTime) -> Option<&'static str> {
    let latest = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() + MAX_AHEAD;
    let latest_us = u64::try_from(latest.as_micros()).unwrap_or(u64::MAX);
    match latest_us.checked_sub(update.epoch) {
        None => Some("its epoch is far ahead of the clock"),
        Some(age_us) if update.sequence > age_us.saturating_add(MAX_BURST) => Some("its sequence is beyond its age"),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_ahead_of_time_and_sequences_beyond_age_are_doubted() {
        let day = 24 * 60 * 60 * 1_000_000_u64;
        let now_us = 1_790_000_000_000_000_u64;
        let now = SystemTime::UNIX_EPOCH + Duration::from_micros(now_us);
        let is_doubted =
            |epoch, sequence| doubt(&StateUpdate { epoch, sequence, ..StateUpdate::default() }, now).is_some();
        for (epoch, sequence) in [(0, 0), (1, 5), (now_us, 1), (now_us + day, 1_000_000), (now_us - day, day + 1)] {
            assert!(!is_doubted(epoch, sequence), "{epoch} {sequence}");
        }
        for (epoch, sequence) in
            [(now_us + day + 1, 1), (1 << 62, 1), (u64::MAX, 0), (now_us, 1 << 62), (now_us, u64::MAX), (0, u64::MAX)]
        {
            assert!(is_doubted(epoch, sequence), "{epoch} {sequence}");
        }
    }
}
