//! What a stream is: all of it that must outlive a process, and where it is at a moment.

use std::sync::Arc;

use super::{
    Cause, Config, Mode, Place, Playhead, Progress, Rare, StateUpdate, StreamId, Tick, Timeline, WhenEmpty, advance,
};

/// What the encoder behind a stream does, as last told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether it sends.
    pub is_streaming: bool,
    /// For how long it has, ms.
    pub stream_time_ms: u64,
    /// Its timecode.
    pub timecode: Box<str>,
}

/// All of a stream that must outlive a process: small, and whole in itself. Ticks count from 1970, so an anchor can be
/// written down and read back elsewhere. See [`Engine::export`](super::Engine::export).
#[derive(Clone, Debug, PartialEq)]
pub struct Show {
    /// The stream's id, a valid one.
    pub id: Arc<str>,
    /// What it was asked to be.
    pub config: Config,
    /// The present pass's timeline: that of `config`, unless AdjustScene changed a length for this pass.
    pub pass: Arc<Timeline>,
    /// What it is.
    pub lifecycle: Lifecycle,
    /// As last given by UpdateStreamStatus; none if it never was.
    pub status: Option<Arc<Status>>,
    /// Grows by one with every accepted command and every lifecycle change.
    pub revision: u64,
    /// Grows by one with every update.
    pub sequence: u64,
    /// Tells streams of one id apart.
    pub epoch: u64,
    /// The revision at which the configuration, or a length, last changed.
    pub config_revision: u64,
    /// Since when nobody watches, or it is not on schedule any more, if that was later; [`Tick::NEVER`] while somebody
    /// watches.
    pub empty_since: Tick,
}

/// The states of a stream, each with what only it has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lifecycle {
    /// Waits for its first subscriber, to begin there.
    Idle(Playhead),
    /// Waits for the instant of its configuration, to begin at 0 whether somebody watches or not.
    Scheduled,
    /// Plays.
    Running(Run),
    /// Stands still there until a Resume.
    Paused(Playhead),
    /// Stopped there by a command.
    Stopped(Playhead),
    /// Played to its end.
    Finished {
        /// Completed passes, the last one included.
        loops: u64,
    },
    /// Removed there. It stays in its slot until the records of its subscribers are freed.
    Removed(Playhead),
}

/// A stream that plays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// When it was at `from`.
    pub anchor: Tick,
    /// Invariant: before the end of the pass.
    pub from: Playhead,
    /// Invariant: after a wake-up, later than it; [`Tick::NEVER`] if the configuration says so.
    pub next_tick: Tick,
    /// The first boundary that is still to be told; [`Run::NO_BOUNDARY`] into the pass if none comes. Kept, because each
    /// tick asks for it. Invariant: in the present pass or an earlier one.
    pub boundary: Playhead,
    /// Whether it began at the instant of its configuration and nobody has moved it since: then it plays unwatched.
    pub on_schedule: bool,
}

impl Show {
    /// A new stream's.
    pub(super) fn new(id: StreamId<'_>, config: Config, now: Tick, epoch: u64) -> Self {
        Self {
            id: id.as_str().into(),
            pass: Arc::clone(&config.timeline),
            config,
            lifecycle: Lifecycle::Idle(Playhead::START),
            status: None,
            revision: 0,
            sequence: 0,
            epoch,
            config_revision: 1,
            empty_since: now,
        }
    }

    /// What it was given to keep, bytes.
    pub(super) fn bytes(&self) -> usize {
        let timecode = self.status.as_ref().map_or(0, |status| status.timecode.len());
        self.id.len() + self.config.bytes() + self.adjusted_bytes() + timecode
    }

    /// Whether the present pass has lengths of its own.
    pub(super) fn is_adjusted(&self) -> bool {
        !Arc::ptr_eq(&self.pass, &self.config.timeline)
    }

    /// Lets a pass that is as configured be the configuration's, so that it takes nothing.
    pub(super) fn share_pass(&mut self) {
        if self.pass == self.config.timeline {
            self.pass = Arc::clone(&self.config.timeline);
        }
    }

    /// What the present pass takes beside the configuration.
    pub(super) fn adjusted_bytes(&self) -> usize {
        if self.is_adjusted() { self.pass.bytes() } else { 0 }
    }

    pub(super) const fn mode(&self) -> Mode {
        match self.lifecycle {
            Lifecycle::Idle(_) | Lifecycle::Scheduled => Mode::Idle,
            Lifecycle::Running(_) => Mode::Running,
            Lifecycle::Paused(_) => Mode::Paused,
            Lifecycle::Stopped(_) => Mode::Stopped,
            Lifecycle::Finished { .. } => Mode::Finished,
            Lifecycle::Removed(_) => Mode::Unknown,
        }
    }

    pub(super) fn is_watched(&self) -> bool {
        self.empty_since == Tick::NEVER
    }

    /// Whether it begins, or began, at the instant of its configuration, and nobody has moved it since.
    pub(super) const fn is_on_schedule(&self) -> bool {
        matches!(self.lifecycle, Lifecycle::Scheduled | Lifecycle::Running(Run { on_schedule: true, .. }))
    }

    /// What holds for it while nobody watches. On schedule it plays on in any case.
    pub(super) const fn when_empty(&self) -> WhenEmpty {
        if self.is_on_schedule() { WhenEmpty::RunOn } else { self.config.when_empty }
    }

    /// When it is removed because nobody watches it.
    pub(super) const fn removal(&self) -> Tick {
        if self.is_on_schedule() { Tick::NEVER } else { self.empty_since.after(self.config.idle_timeout_ms) }
    }

    /// Says that scenes or their lengths change at the next revision.
    pub(super) const fn note_change(&mut self) {
        self.config_revision = self.revision + 1;
    }

    /// Puts the configured lengths back, which is a change at the next revision if one was adjusted.
    pub(super) fn restore_lengths(&mut self) {
        if self.pass != self.config.timeline {
            self.note_change();
        }
        self.pass = Arc::clone(&self.config.timeline);
    }

    // --- where it is ---------------------------------------------------------------------------------------------

    pub(super) fn head(&self, now: Tick) -> Playhead {
        match &self.lifecycle {
            Lifecycle::Scheduled => Playhead::START,
            Lifecycle::Idle(head) | Lifecycle::Paused(head) | Lifecycle::Stopped(head) | Lifecycle::Removed(head) => {
                *head
            }
            Lifecycle::Running(run) => {
                let pass_ms = self.pass.after(run.from.pass_ms, now.since(run.anchor)).min(self.pass.pass_total_ms());
                Playhead { pass_ms, ..run.from }
            }
            Lifecycle::Finished { loops } => Playhead { loops: *loops, pass_ms: self.pass.pass_total_ms() },
        }
    }

    pub(super) fn position_ms(&self, now: Tick) -> u64 {
        self.pass.place(self.head(now).pass_ms).position_ms
    }

    /// When it was at the beginning of its pass, had it always played; never if it does not.
    pub(super) const fn began(&self) -> Option<Tick> {
        match &self.lifecycle {
            Lifecycle::Running(run) => Some(Tick(run.anchor.0.saturating_sub(run.from.pass_ms))),
            _ => None,
        }
    }

    /// Where it is in the present scene; nowhere before the start and after the end.
    pub(super) fn present(&self, head: Playhead) -> Option<Place> {
        self.has_scene(head).then(|| self.pass.place(head.pass_ms))
    }

    fn has_scene(&self, head: Playhead) -> bool {
        match self.mode() {
            Mode::Running | Mode::Paused => true,
            Mode::Idle | Mode::Stopped => 0 < head.pass_ms && head.pass_ms < self.pass.pass_total_ms(),
            Mode::Finished | Mode::Unknown => false,
        }
    }

    /// The state at a moment, without what the stream's place in an engine adds.
    pub(super) fn state(&self, now: Tick, cause: Cause, place: (u32, u8)) -> StateUpdate {
        self.state_at(now, self.head(now), cause, place)
    }

    /// The same of one that is known to be there then.
    #[inline]
    pub(super) fn state_at(
        &self,
        now: Tick,
        head: Playhead,
        cause: Cause,
        (slot, partition): (u32, u8),
    ) -> StateUpdate {
        let (place, has_scene) = (self.pass.place(head.pass_ms), self.has_scene(head));
        let is_plain = place.overtime_ms.is_none() && !matches!(self.lifecycle, Lifecycle::Scheduled);
        StateUpdate {
            stream_id: Arc::clone(&self.id),
            slot,
            partition,
            at: now,
            cause,
            mode: self.mode(),
            timeline: Arc::clone(&self.pass),
            scene: has_scene.then_some(place.scene),
            position_ms: place.position_ms,
            loop_count: head.loops,
            status: self.status.clone(),
            revision: self.revision,
            sequence: self.sequence,
            epoch: self.epoch,
            config_revision: self.config_revision,
            rare: if is_plain { None } else { self.rare(place.overtime_ms.filter(|_| has_scene)) },
        }
    }

    #[cold]
    fn rare(&self, overtime_ms: Option<u64>) -> Option<Box<Rare>> {
        Rare { overtime_ms, starts_at_ms: self.waits_until(), ..Rare::default() }.boxed()
    }

    /// Where it is at a moment, if it plays and [`Show::advance`] has nothing to do.
    #[inline]
    pub(super) fn plays_on(&self, until: Tick) -> Option<Playhead> {
        let Lifecycle::Running(run) = &self.lifecycle else { return None };
        match self.progress(run, until) {
            Progress::SamePass(head) if run.leads_on_to(head, until) => Some(head),
            _ => None,
        }
    }

    #[inline]
    fn progress(&self, run: &Run, until: Tick) -> Progress {
        let elapsed_ms = until.since(run.anchor);
        advance(run.from, elapsed_ms, &self.pass, &self.config.timeline, self.config.loop_scenes)
    }

    /// Brings what plays to a moment: from there on it is reckoned if the present pass is not the same any more, or time
    /// has led elsewhere than on. False if it was at its end by then.
    pub(super) fn advance(&mut self, until: Tick) -> bool {
        let Lifecycle::Running(mut run) = self.lifecycle else { return true };
        match self.progress(&run, until) {
            Progress::SamePass(head) if run.leads_on_to(head, until) => return true,
            Progress::SamePass(from) => (run.anchor, run.from) = (until, from),
            Progress::LaterPass(from) => {
                (run.anchor, run.from) = (until, from);
                self.pass = Arc::clone(&self.config.timeline);
            }
            Progress::Ended => return false,
        }
        self.lifecycle = Lifecycle::Running(run);
        true
    }

    /// Notes that everybody knows where it is in the present pass.
    pub(super) fn announce(&mut self, head: Playhead) {
        if let Lifecycle::Running(run) = &mut self.lifecycle {
            let pass_ms = self.pass.next_boundary(head.pass_ms).unwrap_or(Run::NO_BOUNDARY);
            run.boundary = Playhead { pass_ms, ..head };
        }
    }
}

impl Run {
    /// Further into a pass than any boundary.
    pub const NO_BOUNDARY: u64 = u64::MAX;

    /// Plays from there, which is still to be told.
    pub(super) fn from(head: Playhead, now: Tick, config: &Config) -> Self {
        Self { anchor: now, from: head, next_tick: config.tick_after(now), boundary: head, on_schedule: false }
    }

    /// Whether nothing but time has led there.
    #[inline]
    fn leads_on_to(&self, head: Playhead, at: Tick) -> bool {
        head.pass_ms - self.from.pass_ms == at.since(self.anchor)
    }

    /// When it comes to the end of the pass.
    pub(super) fn end(&self, pass: &Timeline) -> Tick {
        pass.time_to_end(self.from.pass_ms).map_or(Tick::NEVER, |ms| self.anchor.after(ms))
    }

    /// When the next boundary is reached that is still to be told; at once if it lies behind. Nothing but time leads there:
    /// who comes out of a hold elsewhere is reckoned from there.
    #[inline]
    pub(super) const fn next_boundary(&self) -> Tick {
        if self.boundary.loops != self.from.loops {
            return self.anchor;
        }
        match self.boundary.pass_ms {
            Self::NO_BOUNDARY => Tick::NEVER,
            pass_ms => self.anchor.after(pass_ms.saturating_sub(self.from.pass_ms)),
        }
    }

    /// Moves the next tick behind `now`, on the same beat: what was slept through is not caught up with. Says whether there
    /// was one.
    #[inline]
    pub(super) const fn skip_ticks(&mut self, now: Tick, interval_ms: u64) -> bool {
        let is_due = self.next_tick.0 <= now.0;
        if is_due {
            self.next_tick = self.next_tick.after((now.since(self.next_tick) / interval_ms + 1) * interval_ms);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_show_is_as_small_as_it_was_before_it_could_be_scheduled() {
        assert_eq!((size_of::<Lifecycle>(), size_of::<Show>()), (56, 168));
    }
}
