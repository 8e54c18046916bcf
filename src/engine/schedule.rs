//! Streams that begin at an instant of the wall clock: `starts_at_ms`.
//!
//! A stream is *on schedule* from its creation, or from a Reconfigure that changes the instant, until somebody moves it or
//! it comes to its end. Before the instant it waits, [`Lifecycle::Scheduled`]: not in the wheel of timers, whose time is
//! no wall clock's, but in [`Waiting`], in the order of the instants. So a wall clock that is set costs nothing, however
//! many wait. At the instant it plays, anchored there to the millisecond whenever that is noticed, and from then on its
//! clock is the one that never goes back.

use std::collections::BTreeSet;

use super::{Cause, Invalid, Lifecycle, MAX_DURATION_MS, Outbox, Playhead, Run, Show, Tick, WallClock, stream::Stream};

/// The streams that wait for an instant, by instant and slot.
#[derive(Debug, Default)]
pub(super) struct Waiting(BTreeSet<(u64, u32)>);

impl Waiting {
    /// A stream waited for one instant, and waits for another, or for none.
    pub(super) fn change(&mut self, slot: u32, before: Option<u64>, now: Option<u64>) {
        if before == now {
            return;
        }
        if let Some(before) = before {
            self.0.remove(&(before, slot));
        }
        if let Some(now) = now {
            self.0.insert((now, slot));
        }
    }

    /// Whose instant has come at that time, ms since 1970.
    pub(super) fn due(&self, wall_ms: u64) -> Option<u32> {
        self.0.first().filter(|(at_ms, _)| *at_ms <= wall_ms).map(|(_, slot)| *slot)
    }

    /// The next instant.
    pub(super) fn next(&self) -> Option<u64> {
        self.0.first().map(|(at_ms, _)| *at_ms)
    }

    /// Asserts that it holds these and no others.
    pub(super) fn check(&self, waiting: BTreeSet<(u64, u32)>) {
        assert_eq!(self.0, waiting, "streams that wait for an instant");
    }
}

impl Show {
    /// The instant that it waits for, ms since 1970.
    pub(super) fn waits_until(&self) -> Option<u64> {
        match self.lifecycle {
            Lifecycle::Scheduled => self.config.starts_at_ms(),
            _ => None,
        }
    }

    /// The instant that it waits for, if that has come.
    pub(super) fn begins(&self, now: Tick, clock: WallClock) -> Option<u64> {
        self.waits_until().filter(|at_ms| *at_ms <= clock.at(now))
    }
}

impl Stream {
    /// Waits for an instant, or plays as if it had begun then: in later passes, or at its end.
    pub(super) fn follow_schedule(
        &mut self,
        now: Tick,
        clock: WallClock,
        starts_at_ms: u64,
        cause: Cause,
        outbox: &mut Outbox,
    ) {
        if clock.at(now) < starts_at_ms {
            return self.enter(now, Lifecycle::Scheduled, cause, outbox);
        }
        let anchor = clock.tick_of(starts_at_ms);
        let mut run = Run { on_schedule: true, ..Run::from(Playhead::START, anchor, &self.show.config) };
        run.skip_ticks(now, self.show.config.tick_interval_ms.into());
        self.enter(now, Lifecycle::Running(run), cause, outbox);
    }

    /// Starts if that is what it waited for.
    pub(super) fn start_if_due(&mut self, now: Tick, clock: WallClock, outbox: &mut Outbox) {
        if let Some(starts_at_ms) = self.show.begins(now, clock) {
            self.follow_schedule(now, clock, starts_at_ms, Cause::Lifecycle, outbox);
        }
    }
}

/// Refuses an instant that is further ahead than anything else may be.
pub(super) fn check_instant(starts_at_ms: Option<u64>, wall_ms: u64) -> Result<(), Invalid> {
    let latest_ms = wall_ms.saturating_add(MAX_DURATION_MS);
    match starts_at_ms {
        Some(at_ms) if at_ms > latest_ms => Err(Invalid::new(format!(
            "starts_at_ms must be at most {MAX_DURATION_MS} ms (365 days) ahead, that is {latest_ms}, not {at_ms}"
        ))),
        _ => Ok(()),
    }
}
