//! What the service's wall clock says, computed from questions to it: arithmetic, without a clock of its own.
//!
//! A question leaves at `sent`, the service reads its clock, and the answer is there at `received`. So the service's
//! clock was read somewhere in between, and how far it is ahead of ours lies in an interval as wide as the round trip
//! took (and a millisecond more: it answers in whole ones). Of several questions all intervals hold, so what they have
//! in common does: that is narrower than the fastest round trip alone, however long the way there and back takes each
//! time. In between, the interval widens by what two clocks may drift apart.
//!
//! | what | the estimate is wrong by |
//! |---|---|
//! | one question | at most half of its round trip, and half a millisecond |
//! | several | at most half of what their intervals have in common |
//! | later | and by [`DRIFT_PER_MILLION`] of the time since |
//! | the service's clock was set | whatever it was set by, until the next question |
//! | it was set by less than is seen, or runs faster than clocks drift | by as much besides, for as long as it is not seen |
//!
//! It is seen once intervals have nothing in common: then the newest takes the place of those before.

use std::time::Duration;

/// How fast two clocks may drift apart, µs a second: ordinary quartz is within half of that.
pub(super) const DRIFT_PER_MILLION: u64 = 50;

/// Of the answer's clock, µs: it tells whole milliseconds, rounded down.
const RESOLUTION_US: i64 = 1_000;

/// How far the service's wall clock is ahead of a clock of ours that began some time: bounds, and when they held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClockOffset {
    /// At least so far ahead, µs.
    least_us: i64,
    /// At most so far ahead, µs. Invariant: not below `least_us`.
    most_us: i64,
    /// By our clock.
    at: Duration,
}

/// The service's wall clock at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceTime {
    /// What it says, since 1970.
    pub since_1970: Duration,
    /// By how much that may be wrong, either way.
    pub error: Duration,
}

impl ServiceTime {
    /// What it says, ms since 1970 with a fraction: to the microsecond, as far as a double goes.
    #[must_use]
    pub fn ms(&self) -> f64 {
        in_ms(self.since_1970)
    }

    /// By how much that may be wrong, ms.
    #[must_use]
    pub fn error_ms(&self) -> f64 {
        in_ms(self.error)
    }
}

#[allow(clippy::cast_precision_loss, reason = "microseconds since 1970 are below 2^53 until the year 2255")]
fn in_ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}

impl ClockOffset {
    /// What one question says: the service's clock, ms since 1970, between two times of our clock. An answer is never there
    /// before its question left.
    pub(super) fn of_answer(server_time_ms: u64, sent: Duration, received: Duration) -> Self {
        let received = received.max(sent);
        let server_us = i64::try_from(server_time_ms).unwrap_or(i64::MAX).saturating_mul(1_000);
        Self {
            least_us: server_us.saturating_sub(in_us(received)),
            most_us: server_us.saturating_add(RESOLUTION_US).saturating_sub(in_us(sent)),
            at: received,
        }
    }

    /// What this and a later question say together. If they contradict each other, one of the clocks was set or is held
    /// back by more than clocks drift: then the later one alone.
    pub(super) fn and(self, later: Self) -> Self {
        let widened = self.widened(later.at);
        let (least_us, most_us) = (widened.least_us.max(later.least_us), widened.most_us.min(later.most_us));
        if least_us <= most_us { Self { least_us, most_us, at: later.at } } else { later }
    }

    /// What the service's clock says at a time of ours.
    pub(super) fn time_at(self, now: Duration) -> ServiceTime {
        let Self { least_us, most_us, .. } = self.widened(now);
        let width_us = most_us.abs_diff(least_us);
        let middle_us = least_us.saturating_add_unsigned(width_us / 2).saturating_add(in_us(now));
        ServiceTime {
            since_1970: Duration::from_micros(middle_us.max(0).unsigned_abs()),
            error: Duration::from_micros(width_us.div_ceil(2)),
        }
    }

    /// How old it is, in the time of our clock.
    pub(super) fn age(self, now: Duration) -> Duration {
        now.saturating_sub(self.at)
    }

    fn widened(self, now: Duration) -> Self {
        let age_us = in_us(self.age(now));
        let drift_us = age_us / 1_000_000 * DRIFT_PER_MILLION as i64
            + (age_us % 1_000_000 * DRIFT_PER_MILLION as i64 + 999_999) / 1_000_000;
        let at = now.max(self.at);
        Self { least_us: self.least_us.saturating_sub(drift_us), most_us: self.most_us.saturating_add(drift_us), at }
    }
}

fn in_us(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SET_AT_US: i64 = 1_790_000_000_000_000;

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    /// The answer of a service whose clock is so far ahead, read at `read` of our clock.
    fn answer(offset_us: i64, sent: u64, read: u64, received: u64) -> ClockOffset {
        let server_us = offset_us.checked_add_unsigned(read).expect("in range");
        ClockOffset::of_answer((server_us / 1_000).unsigned_abs(), us(sent), us(received))
    }

    #[test]
    fn one_answer_is_right_to_half_of_its_round_trip() {
        let time = answer(SET_AT_US, 10_000, 10_500, 12_000).time_at(us(12_000));
        assert_eq!(time.error, us(1_500), "2 ms of round trip, and the millisecond that is rounded away");
        let really = SET_AT_US.unsigned_abs() + 12_000;
        assert!(time.since_1970.abs_diff(us(really)) <= time.error, "{time:?}");
        assert!((time.ms() - really as f64 / 1_000.0).abs() <= time.error_ms());
    }

    #[test]
    fn several_answers_are_better_than_the_fastest_of_them() {
        let slow = answer(SET_AT_US, 0, 9_500, 10_000);
        let other = answer(SET_AT_US, 20_000, 20_100, 28_000);
        let error = |offset: ClockOffset| offset.time_at(us(28_000)).error;
        assert!(error(slow.and(other)) < us(1_500), "{:?}", error(slow.and(other)));
        assert!(error(slow) > us(5_000) && error(other) > us(4_000));
    }

    #[test]
    fn the_bound_grows_with_what_clocks_drift() {
        let offset = answer(SET_AT_US, 0, 0, 0);
        let error = |s: u64| offset.time_at(Duration::from_secs(s)).error;
        assert_eq!([error(0), error(1), error(60), error(3_600)], [500, 550, 3_500, 180_500].map(us));
    }

    #[test]
    fn a_clock_that_was_set_is_believed_with_the_next_answer() {
        let before = answer(SET_AT_US, 0, 400, 800);
        for set_by in [-3_600_000_000, -5_000, 5_000, 3_600_000_000] {
            let after = before.and(answer(SET_AT_US + set_by, 1_000_000, 1_000_400, 1_000_800));
            let really = (SET_AT_US + set_by).unsigned_abs() + 1_000_800;
            let time = after.time_at(us(1_000_800));
            assert!(time.since_1970.abs_diff(us(really)) <= time.error, "set by {set_by}: {time:?}");
        }
    }

    #[test]
    fn an_answer_before_its_question_is_one_that_took_no_time() {
        let offset = ClockOffset::of_answer(1_790_000_000_000, us(12_000), us(10_000));
        assert_eq!(offset, ClockOffset::of_answer(1_790_000_000_000, us(12_000), us(12_000)));
        assert_eq!(offset.time_at(us(12_000)).error, us(500));
    }

    #[test]
    fn absurd_answers_do_not_overflow() {
        let times = [Duration::ZERO, us(1), Duration::from_secs(1 << 40), Duration::MAX];
        let mut answers = Vec::new();
        for server_ms in [0, 1, u64::MAX / 2, u64::MAX] {
            for (sent, received) in times.iter().flat_map(|sent| times.map(|received| (*sent, received))) {
                let offset = ClockOffset::of_answer(server_ms, sent, received);
                let said = us(server_ms.saturating_mul(1_000).min(i64::MAX as u64));
                let time = offset.time_at(received.max(sent));
                assert!(
                    time.since_1970.abs_diff(said) <= time.error,
                    "{server_ms} from {sent:?} to {received:?}: {time:?}"
                );
                answers.push(offset);
            }
        }
        for (before, later) in answers.iter().flat_map(|before| answers.iter().map(move |later| (*before, *later))) {
            let both = before.and(later);
            assert!(both.least_us <= both.most_us, "{before:?} and {later:?}: {both:?}");
            assert!(both.least_us >= later.least_us && both.most_us <= later.most_us, "{later:?}: {both:?}");
            let errors = [later.at, Duration::MAX].map(|now| both.time_at(now).error);
            assert!(errors[0] <= errors[1], "a bound never shrinks by itself: {both:?}");
        }
    }

    proptest! {
        /// Clocks that drift within the bound are never further apart than the estimate says.
        #[test]
        fn the_truth_is_within_the_bound(
            offset_us in 0..2 * SET_AT_US,
            drift in -(DRIFT_PER_MILLION as i64)..=DRIFT_PER_MILLION as i64,
            questions in prop::collection::vec((0..5_000_000_u64, 0..80_000_u64, 0..80_000_u64), 1..20),
            later in 0..60_000_000_u64,
        ) {
            let server_at = |ours: u64| offset_us + ours as i64 + (ours as i64 * drift).div_euclid(1_000_000);
            let mut estimate: Option<ClockOffset> = None;
            let mut now = 0;
            for (pause, there, back) in questions {
                let sent = now + pause;
                let (read, received) = (sent + there, sent + there + back);
                let answer = ClockOffset::of_answer((server_at(read) / 1_000).unsigned_abs(), us(sent), us(received));
                estimate = Some(estimate.map_or(answer, |before| before.and(answer)));
                now = received;
                let time = estimate.expect("there is one").time_at(us(now));
                prop_assert!(time.error <= us((there + back).div_ceil(2) + 501), "{:?}", time);
            }
            now += later;
            let time = estimate.expect("there is one").time_at(us(now));
            let really = us(server_at(now).unsigned_abs());
            prop_assert!(time.since_1970.abs_diff(really) <= time.error + us(2), "{:?}, really {:?}", time, really);
        }
    }
}
