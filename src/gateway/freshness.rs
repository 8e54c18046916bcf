//! Whether an update comes as fast as those before it, or was held up on its way.
//!
//! After a stop of this process, or of the broker, all that was published meanwhile comes in one burst. Every update is the
//! whole state, so only the newest is worth showing. How long an update took is not known, since the clocks of two
//! machines differ; but how much longer than the fastest of late.

use std::time::Duration;

use tokio::time::Instant;

/// How much longer than the fastest an update may take: well over what a busy machine holds one up, and less than people
/// notice.
const LATE_AFTER_MS: i64 = 500;
/// After so long without a timely update, what is seen is how long it takes now, or a clock that was set.
const LATE_FOR_GOOD: Duration = Duration::from_secs(2);
/// By how much clocks may drift apart: one ms in this many.
const DRIFT: i64 = 1_000;

/// How long updates of a stream take.
#[derive(Debug, Default)]
pub(super) struct Freshness {
    /// When the first came: arrivals are counted from there.
    origin: Option<Instant>,
    /// Of the fastest: arrival less the publisher's time, ms.
    fastest: i64,
    last: i64,
    late_since: Option<Instant>,
}

impl Freshness {
    /// Takes note of an update that arrived at `now`; true when it was held up.
    pub(super) fn is_late(&mut self, server_time_ms: u64, now: Instant) -> bool {
        let Some(origin) = self.origin else {
            self.origin = Some(now);
            self.fastest = i64::try_from(server_time_ms).unwrap_or(i64::MAX).saturating_neg();
            return false;
        };
        let arrival = i64::try_from((now - origin).as_millis()).unwrap_or(i64::MAX);
        let took = arrival.saturating_sub(i64::try_from(server_time_ms).unwrap_or(i64::MAX));
        self.fastest = self.fastest.saturating_add((arrival - self.last) / DRIFT);
        // Of less than that, nothing would be counted if it came often.
        if arrival - self.last >= DRIFT {
            self.last = arrival;
        }
        if took.saturating_sub(self.fastest) <= LATE_AFTER_MS {
            self.fastest = self.fastest.min(took);
            self.late_since = None;
            return false;
        }
        let since = *self.late_since.get_or_insert(now);
        if now - since >= LATE_FOR_GOOD {
            self.fastest = took;
            self.late_since = None;
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(origin: Instant, ms: u64) -> Instant {
        origin + Duration::from_millis(ms)
    }

    #[test]
    fn what_comes_in_a_burst_behind_a_stop_is_late_but_for_the_last() {
        let (origin, mut freshness) = (Instant::now(), Freshness::default());
        // This clock is 5 s behind the publisher's.
        let late =
            |freshness: &mut Freshness, sent: u64, arrived: u64| freshness.is_late(5_000 + sent, at(origin, arrived));
        for sent in (0..1_000).step_by(100) {
            assert!(!late(&mut freshness, sent, sent + 3));
        }
        let burst: Vec<bool> = (1_000..9_000).step_by(100).map(|sent| late(&mut freshness, sent, 9_000)).collect();
        assert_eq!(burst.iter().filter(|late| !**late).count(), 5);
        assert!(!late(&mut freshness, 9_100, 9_103));
    }

    #[test]
    fn a_clock_that_is_set_makes_updates_late_for_a_moment_only() {
        let (origin, mut freshness) = (Instant::now(), Freshness::default());
        assert!(!freshness.is_late(1_000_000, origin));
        // The publisher's clock is set back by a minute.
        let late = |ms: u64| (940_000 + ms, at(origin, ms));
        let judged: Vec<bool> =
            (100..10_000).step_by(100).map(late).map(|(sent, now)| freshness.is_late(sent, now)).collect();
        assert_eq!(judged.iter().rposition(|late| *late), Some(19));
        assert!(!freshness.is_late(1_100_000, at(origin, 10_100)), "and forth again");
        assert!(!freshness.is_late(1_100_100, at(origin, 10_200)));
    }

    #[test]
    fn clocks_may_drift_apart() {
        let (origin, mut freshness) = (Instant::now(), Freshness::default());
        for hour in 0..100_u64 {
            for second in 0..3_600 {
                let ms = (hour * 3_600 + second) * 1_000;
                // By 50 ms in a minute and a half.
                assert!(!freshness.is_late(1_000_000_000 + ms - ms / 2_000, at(origin, ms)));
            }
        }
    }

    #[test]
    fn absurd_times_are_judged_too() {
        let (origin, mut freshness) = (Instant::now(), Freshness::default());
        let late = [0, u64::MAX, 1, u64::MAX / 2, 0].map(|time| freshness.is_late(time, origin));
        assert_eq!(late, [false, false, true, false, true]);
    }
}
