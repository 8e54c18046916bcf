//! One stream: its lifecycle, and what each wake-up and each change of its audience does to it. What commands do to it is
//! in `commands`, the instant at which it may begin in `schedule`.
//!
//! Every state is entered through [`Stream::enter`], which normalises it, counts the revision and makes the one update. A
//! stream has one timer, [`Stream::next_due`], derived from its state, so there is nothing to cancel.
//! It does not know who its subscribers are, only how many.

use std::sync::Arc;

use super::{
    Cause, Counts, Event, Lifecycle, Mode, Outbox, Playhead, Rejection, Run, Show, StateUpdate, Tick, WallClock,
    WhenEmpty, partition, subscribers::Removed, wheel::Link,
};

/// At most one snapshot in this time is published for a stream, however many join without a reply subject, ms.
pub const SNAPSHOT_INTERVAL_MS: u64 = 50;

/// How many subscribers a stream has, and where their list begins. Kept by the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Members {
    pub head: u32,
    pub total: u32,
    pub active: u32,
    pub unique: u32,
}

impl Members {
    /// What it adds to the engine's counts.
    pub(super) fn counts(self) -> Counts {
        let Self { total, active, unique, head: _ } = self;
        Counts {
            total: total.into(),
            active: active.into(),
            stale: (total - active).into(),
            unique: unique.into(),
            ..Counts::default()
        }
    }

    /// Somebody came, and is the first of the list.
    pub(super) fn joined(&mut self, slot: u32, first_of_client: bool) {
        self.head = slot;
        self.total += 1;
        self.active += 1;
        self.unique += u32::from(first_of_client);
    }

    /// Somebody left, whom the list has lost already.
    pub(super) fn left(&mut self, removed: Removed) {
        self.total -= 1;
        self.active -= u32::from(!removed.was_stale);
        self.unique -= u32::from(removed.last_of_client);
    }
}

/// What decides the numbers of heads and streams that a stream counts for: cheaper to compare than these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heads {
    mode: Mode,
    members: Members,
}

impl Heads {
    /// Nothing once it is removed.
    pub(super) fn counts(self) -> Counts {
        if self.mode == Mode::Unknown {
            return Counts::default();
        }
        Counts { streams: 1, running: u64::from(self.mode == Mode::Running), ..self.members.counts() }
    }
}

/// How much more may be kept for streams.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spare {
    /// Bytes that are left.
    pub bytes: u64,
    /// Of so many.
    pub limit: u64,
}

impl Spare {
    /// Refuses to keep more than there is room for. To keep less is always fine.
    pub(super) const fn check(self, before: usize, after: usize) -> Result<(), Rejection> {
        if after.saturating_sub(before) as u64 <= self.bytes {
            return Ok(());
        }
        Err(Rejection::Exhausted { what: "bytes of configurations", limit: self.limit })
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Stream {
    /// The engine's number for it.
    slot: u32,
    pub partition: u8,
    /// Invariant: between calls, watched exactly if `members.active` is over 0.
    pub show: Show,
    pub members: Members,
    snapshot_at: Tick,
    snapshot_owed: bool,
    /// When a boundary was last told.
    scene_at: Tick,
    /// A boundary is told so much later than the one before at the least, ms: a loop of a millisecond would publish a
    /// thousand updates a second. The newest scene is told then.
    min_scene_interval_ms: u32,
    pub timer: Link,
    /// Invariant: while `timer` is linked, what it was armed for.
    pub due: Tick,
}

impl Stream {
    pub(super) fn new(show: Show, slot: u32, min_scene_interval_ms: u32) -> Self {
        Self {
            slot,
            partition: partition(&show.id),
            show,
            members: Members { head: u32::MAX, total: 0, active: 0, unique: 0 },
            snapshot_at: Tick(0),
            snapshot_owed: false,
            scene_at: Tick(0),
            min_scene_interval_ms,
            timer: Link::UNLINKED,
            due: Tick::NEVER,
        }
    }

    /// Makes the first update of a new stream.
    pub(super) fn created(&mut self, now: Tick, clock: WallClock, outbox: &mut Outbox) {
        outbox.events.push(Event::Created { stream_id: Arc::clone(&self.show.id) });
        match self.show.config.starts_at_ms() {
            Some(starts_at_ms) => self.follow_schedule(now, clock, starts_at_ms, Cause::Command, outbox),
            None => self.enter(now, Lifecycle::Idle(Playhead::START), Cause::Command, outbox),
        }
    }

    pub(super) const fn mode(&self) -> Mode {
        self.show.mode()
    }

    /// Whether it is no more, and waits for its subscribers' records to be freed.
    pub(super) const fn is_removed(&self) -> bool {
        matches!(self.show.lifecycle, Lifecycle::Removed(_))
    }

    /// What it adds to the engine's counts: nothing once it is removed.
    pub(super) fn counts(&self) -> Counts {
        Counts { config_bytes: self.config_bytes(), ..self.heads().counts() }
    }

    /// What it keeps, bytes, as long as it is there.
    pub(super) fn config_bytes(&self) -> u64 {
        if self.is_removed() { 0 } else { self.show.bytes() as u64 }
    }

    /// What the rest of its counts follows from.
    pub(super) const fn heads(&self) -> Heads {
        Heads { mode: self.mode(), members: self.members }
    }

    pub(super) fn is_watched(&self) -> bool {
        self.show.is_watched()
    }

    /// FREEZE: nothing runs unwatched.
    fn may_run(&self) -> bool {
        self.is_watched() || self.show.when_empty() != WhenEmpty::Freeze
    }

    /// The state at `now`, to which the stream was woken before.
    pub(super) fn state(&self, now: Tick, cause: Cause) -> StateUpdate {
        self.show.state(now, cause, (self.slot, self.partition))
    }

    // --- time ----------------------------------------------------------------------------------------------------

    /// When [`Stream::wake`] has something to do; that it may start at an instant aside.
    pub(super) fn next_due(&self) -> Tick {
        let Show { config, pass, lifecycle, empty_since, .. } = &self.show;
        let end = match lifecycle {
            Lifecycle::Running(run) if !config.loop_scenes => run.end(pass),
            _ => Tick::NEVER,
        };
        if self.is_watched() {
            let snapshot = if self.snapshot_owed { self.snapshot_at.after(SNAPSHOT_INTERVAL_MS) } else { Tick::NEVER };
            return match lifecycle {
                Lifecycle::Running(run) => {
                    snapshot.min(run.next_tick).min(run.next_boundary().max(self.next_scene())).min(end)
                }
                Lifecycle::Removed(_) => Tick::NEVER,
                _ => snapshot,
            };
        }
        match lifecycle {
            Lifecycle::Removed(_) => Tick::NEVER,
            Lifecycle::Running(_) | Lifecycle::Paused(_) if self.show.when_empty() == WhenEmpty::Restart => {
                self.show.removal().min(empty_since.after(config.empty_grace_ms)).min(end)
            }
            _ => self.show.removal().min(end),
        }
    }

    /// When a boundary may be told next.
    const fn next_scene(&self) -> Tick {
        self.scene_at.after(self.min_scene_interval_ms as u64)
    }

    /// Where it is, if it plays and somebody watches, and is neither at its end nor in another pass by then: as a rule. Then
    /// all of [`Stream::wake`] is [`Stream::tell`], and nothing is counted anew.
    #[inline]
    pub(super) fn plays_on(&self, now: Tick) -> Option<Playhead> {
        if self.is_watched() { self.show.plays_on(now) } else { None }
    }

    /// Whether [`Stream::wake`] would do nothing. Nothing is due: so it is before the next boundary, the end of its pass
    /// included, unless one waits to be told. What happens unwatched, or by the wall clock, is not looked into here.
    pub(super) fn is_awake(&self, now: Tick) -> bool {
        now < self.due && self.next_scene() <= now && self.is_watched() && self.show.waits_until().is_none()
    }

    /// Brings the stream to `now`: what fell due, each kind at most once, in the order in which it fell due. Ticks that
    /// were slept through stay away, and so does all of a stream whose time is up. Returns false when it is.
    pub(super) fn wake(&mut self, now: Tick, clock: WallClock, outbox: &mut Outbox) -> bool {
        self.start_if_due(now, clock, outbox);
        if !self.is_watched() {
            if self.show.removal() <= now {
                // Its scenes went by without a wake-up; the last update tells where it really is.
                self.show.advance(now);
                return false;
            }
            self.end_grace(now, outbox);
        }
        self.advance_to(now, outbox);
        if self.is_watched() {
            self.tell(now, self.show.head(now), outbox);
        }
        true
    }

    /// RESTART: nobody came back within the grace.
    pub(super) fn end_grace(&mut self, now: Tick, outbox: &mut Outbox) {
        let end = self.show.empty_since.after(self.show.config.empty_grace_ms);
        if self.is_watched() || self.show.when_empty() != WhenEmpty::Restart || now < end {
            return;
        }
        self.advance_to(end, outbox);
        if matches!(self.show.lifecycle, Lifecycle::Running(_) | Lifecycle::Paused(_)) {
            let from_ms = self.show.position_ms(end);
            self.show.restore_lengths();
            self.enter_from(now, from_ms, Lifecycle::Idle(Playhead::START), Cause::Lifecycle, outbox);
        }
    }

    /// Lets a running stream come to its end, or into its next pass, if that was by `until`.
    fn advance_to(&mut self, until: Tick, outbox: &mut Outbox) {
        if !self.show.advance(until) {
            self.finish(until, Cause::Lifecycle, outbox);
        }
    }

    /// Comes to its end.
    pub(super) fn finish(&mut self, now: Tick, cause: Cause, outbox: &mut Outbox) {
        let loops = self.show.head(now).loops.saturating_add(1);
        self.enter(now, Lifecycle::Finished { loops }, cause, outbox);
    }

    /// Tells those who watch what is due, of a stream that was brought there.
    pub(super) fn tell(&mut self, now: Tick, head: Playhead, outbox: &mut Outbox) {
        if let Some(cause) = self.progress(now, head) {
            self.emit_at(now, head, cause, outbox);
        }
        if self.snapshot_owed {
            self.tell_newcomers(now, outbox);
        }
    }

    /// Another scene or pass, or else a tick. A boundary that has to wait is told soon, so no tick tells of it before:
    /// ticks may be lost.
    #[inline]
    fn progress(&mut self, now: Tick, head: Playhead) -> Option<Cause> {
        let Lifecycle::Running(run) = &mut self.show.lifecycle else { return None };
        let has_ticked = run.skip_ticks(now, self.show.config.tick_interval_ms.into());
        if head < run.boundary {
            return if has_ticked { Some(Cause::Tick) } else { None };
        }
        if now < self.next_scene() {
            return None;
        }
        self.scene_at = now;
        Some(Cause::Scene)
    }

    // --- audience ------------------------------------------------------------------------------------------------

    /// Whether somebody came, or nobody is left, of which it is yet to find out.
    pub(super) fn has_new_audience(&self) -> bool {
        (self.members.active > 0) != self.is_watched()
    }

    /// Called after every change of `members` that makes a difference: the one place where a stream finds out that
    /// somebody came, or that nobody is left, whether they left, went stale, or came back.
    pub(super) fn audience_changed(&mut self, now: Tick, outbox: &mut Outbox) {
        if !self.has_new_audience() {
            return;
        }
        let watched = self.members.active > 0;
        self.show.empty_since = if watched { Tick::NEVER } else { now };
        if !watched {
            self.snapshot_owed = false;
            if let running @ Lifecycle::Running(_) = self.show.lifecycle
                && !self.may_run()
            {
                // Entering it anew makes of it what may be.
                self.enter(now, running, Cause::Lifecycle, outbox);
            }
            return;
        }
        match &mut self.show.lifecycle {
            Lifecycle::Idle(head) => {
                let head = *head;
                self.play(now, head, Cause::Lifecycle, outbox);
            }
            Lifecycle::Running(run) => {
                // Unwatched, scenes went by without being told; the newcomer gets a snapshot, not what it missed.
                run.skip_ticks(now, self.show.config.tick_interval_ms.into());
                let head = self.show.head(now);
                self.show.announce(head);
            }
            _ => {}
        }
    }

    /// A subscriber joined whom no reply reaches: it gets a snapshot now, or with the next update.
    pub(super) fn owe_snapshot(&mut self, now: Tick, outbox: &mut Outbox) {
        self.snapshot_owed = true;
        self.tell_newcomers(now, outbox);
    }

    fn tell_newcomers(&mut self, now: Tick, outbox: &mut Outbox) {
        if self.snapshot_owed && self.snapshot_at.after(SNAPSHOT_INTERVAL_MS) <= now {
            self.snapshot_at = now;
            self.emit(now, Cause::Snapshot, outbox);
        }
    }

    // --- the one door --------------------------------------------------------------------------------------------

    /// Enters a state: the only function that changes the lifecycle, counts the revision and makes the update of it.
    pub(super) fn enter(&mut self, now: Tick, lifecycle: Lifecycle, cause: Cause, outbox: &mut Outbox) {
        let from_ms = self.show.position_ms(now);
        self.enter_from(now, from_ms, lifecycle, cause, outbox);
    }

    /// The same, of a stream that was at that position before, for its history.
    fn enter_from(&mut self, now: Tick, from_ms: u64, lifecycle: Lifecycle, cause: Cause, outbox: &mut Outbox) {
        let was_live = matches!(self.mode(), Mode::Running | Mode::Paused);
        let mut was_on_schedule = self.show.is_on_schedule();
        self.show.lifecycle = lifecycle;
        was_on_schedule |= self.show.is_on_schedule();
        self.normalize(now);
        if was_on_schedule && !self.show.is_on_schedule() && !self.is_watched() {
            self.show.empty_since = now;
        }
        self.show.revision += 1;
        let stream_id = || Arc::clone(&self.show.id);
        match (was_live, self.mode()) {
            (false, Mode::Running | Mode::Paused) => outbox.events.push(Event::Started { stream_id: stream_id() }),
            (true, mode @ (Mode::Idle | Mode::Stopped | Mode::Finished | Mode::Unknown)) => {
                outbox.events.push(Event::Stopped { stream_id: stream_id(), mode });
            }
            _ => {}
        }
        self.emit(now, cause, outbox);
        outbox.note_change(self.show.began(), from_ms);
    }

    /// Normalises a state on entry: it is reckoned from now; past the end → Finished; FREEZE and unwatched → Idle.
    fn normalize(&mut self, now: Tick) {
        let is_over = !self.show.advance(now);
        let head = self.show.head(now);
        let may_run = self.may_run();
        let Lifecycle::Running(run) = &mut self.show.lifecycle else { return };
        (run.anchor, run.from) = (now, head);
        if is_over {
            self.show.lifecycle = Lifecycle::Finished { loops: head.loops.saturating_add(1) };
        } else if !may_run {
            self.show.lifecycle = Lifecycle::Idle(head);
        }
    }

    /// Removes the stream: its last update. The engine frees what belongs to it.
    pub(super) fn remove(&mut self, now: Tick, idle: bool, outbox: &mut Outbox) {
        let head = self.show.head(now);
        self.enter(now, Lifecycle::Removed(head), Cause::Lifecycle, outbox);
        outbox.events.push(Event::Removed { stream_id: Arc::clone(&self.show.id), idle });
    }

    /// Makes an update. With nobody watching, only what a command or the lifecycle did is told: whoever follows the
    /// subject without a subscription of its own learns of that, and everything else would be playing unwatched.
    fn emit(&mut self, now: Tick, cause: Cause, outbox: &mut Outbox) {
        self.emit_at(now, self.show.head(now), cause, outbox);
    }

    /// The same of a stream that is known to be there.
    #[inline]
    fn emit_at(&mut self, now: Tick, head: Playhead, cause: Cause, outbox: &mut Outbox) {
        let unwatched_too = matches!(cause, Cause::Command | Cause::Lifecycle);
        if !self.is_watched() && !unwatched_too {
            return;
        }
        self.snapshot_owed = false;
        self.show.sequence += 1;
        outbox.updates.push(self.show.state_at(now, head, cause, (self.slot, self.partition)));
        if matches!(cause, Cause::Scene | Cause::Command | Cause::Lifecycle) {
            self.show.announce(head);
        }
    }

    /// Asserts what must hold between two calls.
    pub(super) fn check(&self) {
        let (id, watched) = (&self.show.id, self.is_watched());
        assert_eq!(watched, self.members.active > 0, "stream {id}: watched with {:?}", self.members);
        assert!(self.members.active <= self.members.total, "stream {id}: {:?}", self.members);
        assert!(self.members.unique <= self.members.total, "stream {id}: {:?}", self.members);
        assert!(watched || !self.snapshot_owed, "stream {id} owes nobody a snapshot");
        let waits = self.show.lifecycle == Lifecycle::Scheduled;
        assert_eq!(waits, self.show.waits_until().is_some(), "stream {id} waits for no instant");
        assert!(self.show.config_revision <= self.show.revision, "stream {id}: {:?}", self.show);
        if let Lifecycle::Running(run) = &self.show.lifecycle {
            let total_ms = self.show.pass.pass_total_ms();
            assert!(run.from.pass_ms < total_ms, "stream {id} runs from {:?}, its end is {total_ms}", run.from);
            self.check_boundary(run);
            assert!(self.may_run(), "stream {id} runs unwatched under FREEZE");
            assert!(!run.on_schedule || self.show.config.starts_at_ms().is_some(), "stream {id} is on no schedule");
        }
    }

    /// What is still to be told is a boundary of the present pass, unless it is of an earlier one.
    fn check_boundary(&self, run: &Run) {
        let (id, Playhead { loops, pass_ms }) = (&self.show.id, run.boundary);
        assert!(loops <= run.from.loops, "stream {id} runs from {:?}, and is to tell {:?}", run.from, run.boundary);
        if loops == run.from.loops && pass_ms != Run::NO_BOUNDARY {
            let before_ms = pass_ms.checked_sub(1).expect("a boundary is behind something");
            assert_eq!(self.show.pass.next_boundary(before_ms), Some(pass_ms), "stream {id} tells no boundary");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streams_record_is_no_larger_for_holds_and_instants() {
        assert_eq!(size_of::<Stream>(), 232);
    }
}
