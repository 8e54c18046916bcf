//! One stream: its lifecycle, and what each command, each wake-up and each change of its audience does to it.
//!
//! Every state is entered through [`Stream::enter`], which normalises it, counts the revision and makes the one update. A stream has one timer, [`Stream::next_due`], derived from its state, so there is nothing to cancel.
//! It does not know who its subscribers are, only how many.

use std::sync::Arc;

use super::{
    Cause, Command, Config, Counts, Event, Invalid, MAX_DURATION_MS, Mode, Outbox, Playhead, Progress, Rejection,
    StateUpdate, StreamId, Tick, Timeline, WhenEmpty, advance, partition, subscribers::Removed, wheel::Link,
};

/// At most one snapshot in this time is published for a stream, however many join without a reply subject, ms.
pub const SNAPSHOT_INTERVAL_MS: u64 = 50;

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
    /// Since when nobody watches; none while somebody does.
    pub empty_since: Option<Tick>,
}

/// The states of a stream, each with what only it has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lifecycle {
    /// Waits for its first subscriber, to begin there.
    Idle(Playhead),
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
    /// Invariant: after a wake-up, later than it.
    pub next_tick: Tick,
    /// Where the last change that was told left it: the boundaries behind it are still to be told. Invariant: in the
    /// present pass or an earlier one.
    pub told: Playhead,
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
            empty_since: Some(now),
        }
    }
}

impl Show {
    /// What it was given to keep, bytes.
    pub(super) fn bytes(&self) -> usize {
        let timecode = self.status.as_ref().map_or(0, |status| status.timecode.len());
        self.id.len() + self.config.timeline.bytes() + self.adjusted_bytes() + timecode
    }

    /// What the present pass takes beside the configuration.
    fn adjusted_bytes(&self) -> usize {
        if Arc::ptr_eq(&self.pass, &self.config.timeline) { 0 } else { self.pass.bytes() }
    }

    /// Lets a pass that is as configured be the configuration's, so that it takes nothing.
    pub(super) fn share_pass(&mut self) {
        if self.pass == self.config.timeline {
            self.pass = Arc::clone(&self.config.timeline);
        }
    }
}

impl Run {
    /// When it reaches a position of the present pass; at once if that lies behind.
    const fn reaches(&self, position_ms: u64) -> Tick {
        self.anchor.after(position_ms.saturating_sub(self.from.position_ms))
    }

    /// Whether another scene or pass has begun since the last update.
    fn has_passed_boundary(&self, pass: &Timeline, head: Playhead) -> bool {
        self.told.loops != head.loops
            || pass.next_boundary(self.told.position_ms).is_some_and(|boundary_ms| boundary_ms <= head.position_ms)
    }

    /// Moves the next tick behind `now`, on the same beat: what was slept through is not caught up with.
    fn skip_ticks(&mut self, now: Tick, interval_ms: u64) {
        if self.next_tick <= now {
            self.next_tick = self.next_tick.after((now.since(self.next_tick) / interval_ms + 1) * interval_ms);
        }
    }
}

/// How many subscribers a stream has, and where their list begins. Kept by the engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Members {
    pub head: u32,
    pub total: u32,
    pub active: u32,
    pub unique: u32,
}

impl Members {
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
    min_scene_interval_ms: u64,
    pub timer: Link,
    /// Invariant: while `timer` is linked, what it was armed for.
    pub due: Tick,
}

impl Stream {
    pub(super) fn new(show: Show, slot: u32, min_scene_interval_ms: u64) -> Self {
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
    pub(super) fn created(&mut self, now: Tick, outbox: &mut Outbox) {
        outbox.events.push(Event::Created { stream_id: Arc::clone(&self.show.id) });
        self.enter(now, Lifecycle::Idle(Playhead::START), Cause::Command, outbox);
    }

    pub(super) const fn mode(&self) -> Mode {
        match self.show.lifecycle {
            Lifecycle::Idle(_) => Mode::Idle,
            Lifecycle::Running(_) => Mode::Running,
            Lifecycle::Paused(_) => Mode::Paused,
            Lifecycle::Stopped(_) => Mode::Stopped,
            Lifecycle::Finished { .. } => Mode::Finished,
            Lifecycle::Removed(_) => Mode::Unknown,
        }
    }

    /// Whether it is no more, and waits for its subscribers' records to be freed.
    pub(super) const fn is_removed(&self) -> bool {
        matches!(self.show.lifecycle, Lifecycle::Removed(_))
    }

    /// What it adds to the engine's counts: nothing once it is removed.
    pub(super) fn counts(&self) -> Counts {
        if self.is_removed() {
            return Counts::default();
        }
        let Members { total, active, unique, .. } = self.members;
        Counts {
            total: total.into(),
            active: active.into(),
            stale: (total - active).into(),
            unique: unique.into(),
            streams: 1,
            running: u64::from(self.mode() == Mode::Running),
            config_bytes: self.show.bytes() as u64,
            client_bytes: 0,
        }
    }

    const fn is_watched(&self) -> bool {
        self.show.empty_since.is_none()
    }

    /// FREEZE: nothing runs unwatched.
    fn may_run(&self) -> bool {
        self.is_watched() || self.show.config.when_empty != WhenEmpty::Freeze
    }

    /// The state at `now`, to which the stream was woken before.
    pub(super) fn state(&self, now: Tick, cause: Cause) -> StateUpdate {
        let head = self.head(now);
        StateUpdate {
            stream_id: Arc::clone(&self.show.id),
            slot: self.slot,
            partition: self.partition,
            at: now,
            server_time_ms: None,
            cause,
            mode: self.mode(),
            timeline: Arc::clone(&self.show.pass),
            scene: self.scene(head),
            position_ms: head.position_ms,
            loop_count: head.loops,
            status: self.show.status.clone(),
            revision: self.show.revision,
            sequence: self.show.sequence,
            epoch: self.show.epoch,
        }
    }

    // --- time ----------------------------------------------------------------------------------------------------

    /// When [`Stream::wake`] has something to do.
    pub(super) fn next_due(&self) -> Tick {
        let Show { config, pass, lifecycle, empty_since, .. } = &self.show;
        let end = match lifecycle {
            Lifecycle::Running(run) if !config.loop_scenes => run.reaches(pass.total_ms()),
            _ => Tick::NEVER,
        };
        let Some(empty_since) = *empty_since else {
            let snapshot = if self.snapshot_owed { self.snapshot_at.after(SNAPSHOT_INTERVAL_MS) } else { Tick::NEVER };
            return match lifecycle {
                Lifecycle::Running(run) => snapshot.min(run.next_tick).min(self.next_boundary_told(run)).min(end),
                Lifecycle::Removed(_) => Tick::NEVER,
                _ => snapshot,
            };
        };
        let removal = empty_since.after(config.idle_timeout_ms);
        match lifecycle {
            Lifecycle::Removed(_) => Tick::NEVER,
            Lifecycle::Running(_) | Lifecycle::Paused(_) if config.when_empty == WhenEmpty::Restart => {
                removal.min(empty_since.after(config.empty_grace_ms)).min(end)
            }
            _ => removal.min(end),
        }
    }

    /// When the first boundary that was not told yet is to be told.
    fn next_boundary_told(&self, run: &Run) -> Tick {
        let passed = if run.told.loops == run.from.loops {
            self.show
                .pass
                .next_boundary(run.told.position_ms)
                .map_or(Tick::NEVER, |boundary_ms| run.reaches(boundary_ms))
        } else {
            run.anchor
        };
        passed.max(self.scene_at.after(self.min_scene_interval_ms))
    }

    /// Brings the stream to `now`: what fell due, each kind at most once, in the order in which it fell due. Ticks that
    /// were slept through stay away, and so does all of a stream whose time is up. Returns false when it is.
    pub(super) fn wake(&mut self, now: Tick, outbox: &mut Outbox) -> bool {
        if let Some(empty_since) = self.show.empty_since {
            if empty_since.after(self.show.config.idle_timeout_ms) <= now {
                if self.show.config.loop_scenes {
                    // Its passes went by without a wake-up; the last update tells where it really is.
                    self.advance_to(now, outbox);
                }
                return false;
            }
            self.end_grace(now, outbox);
        }
        self.advance_to(now, outbox);
        if self.is_watched() {
            self.tell_progress(now, outbox);
            self.tell_newcomers(now, outbox);
        }
        true
    }

    /// RESTART: nobody came back within the grace.
    fn end_grace(&mut self, now: Tick, outbox: &mut Outbox) {
        let Some(empty_since) = self.show.empty_since else { return };
        let end = empty_since.after(self.show.config.empty_grace_ms);
        if self.show.config.when_empty != WhenEmpty::Restart || now < end {
            return;
        }
        self.advance_to(end, outbox);
        if matches!(self.show.lifecycle, Lifecycle::Running(_) | Lifecycle::Paused(_)) {
            self.show.pass = Arc::clone(&self.show.config.timeline);
            self.enter(now, Lifecycle::Idle(Playhead::START), Cause::Lifecycle, outbox);
        }
    }

    /// Lets a running stream come to its end, or into its next pass, if that was by `until`.
    fn advance_to(&mut self, until: Tick, outbox: &mut Outbox) {
        let Lifecycle::Running(run) = &mut self.show.lifecycle else { return };
        let config = &self.show.config;
        let (pass_ms, base_ms) = (self.show.pass.total_ms(), config.timeline.total_ms());
        match advance(run.from, until.since(run.anchor), pass_ms, base_ms, config.loop_scenes) {
            Progress::SamePass(_) => {}
            Progress::LaterPass(from) => {
                (run.anchor, run.from) = (until, from);
                self.show.pass = Arc::clone(&config.timeline);
            }
            Progress::Ended => {
                let loops = run.from.loops.saturating_add(1);
                self.enter(until, Lifecycle::Finished { loops }, Cause::Lifecycle, outbox);
            }
        }
    }

    /// Another scene or pass, or else a tick. A boundary that has to wait is told soon, so no tick tells of it before:
    /// ticks may be lost.
    fn tell_progress(&mut self, now: Tick, outbox: &mut Outbox) {
        let head = self.head(now);
        let Lifecycle::Running(run) = &mut self.show.lifecycle else { return };
        let tick = run.next_tick <= now;
        run.skip_ticks(now, self.show.config.tick_interval_ms);
        if run.has_passed_boundary(&self.show.pass, head) {
            if self.scene_at.after(self.min_scene_interval_ms) <= now {
                self.scene_at = now;
                self.emit(now, Cause::Scene, outbox);
            }
        } else if tick {
            self.emit(now, Cause::Tick, outbox);
        }
    }

    // --- audience ------------------------------------------------------------------------------------------------

    /// Called after every change of `members`: the one place where a stream finds out that somebody came, or that
    /// nobody is left, whether they left, went stale, or came back.
    pub(super) fn audience_changed(&mut self, now: Tick, outbox: &mut Outbox) {
        let watched = self.members.active > 0;
        if watched == self.is_watched() {
            return;
        }
        self.show.empty_since = (!watched).then_some(now);
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
                run.skip_ticks(now, self.show.config.tick_interval_ms);
                self.announce(now);
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

    // --- commands ------------------------------------------------------------------------------------------------

    /// Carries out a command for a stream that exists and was woken to `now`. Remove is the engine's.
    pub(super) fn command(
        &mut self,
        now: Tick,
        command: Command<'_>,
        spare: Spare,
        outbox: &mut Outbox,
    ) -> Result<(), Rejection> {
        let head = self.head(now);
        let pass = Arc::clone(&self.show.pass);
        match command {
            Command::Start(config) => self.start(now, config, outbox)?,
            Command::Reset => self.rewind(now, outbox),
            Command::Stop => match self.show.lifecycle {
                Lifecycle::Stopped(_) => {}
                _ => self.enter(now, Lifecycle::Stopped(head), Cause::Command, outbox),
            },
            Command::Pause => match self.show.lifecycle {
                Lifecycle::Running(_) => self.enter(now, Lifecycle::Paused(head), Cause::Command, outbox),
                Lifecycle::Paused(_) => {}
                _ => return Err(self.invalid_state(&command)),
            },
            Command::Resume => match self.show.lifecycle {
                Lifecycle::Paused(_) => self.play(now, head, Cause::Command, outbox),
                Lifecycle::Running(_) => {}
                _ => return Err(self.invalid_state(&command)),
            },
            Command::ForceScene(name) => {
                self.check_movable(&command)?;
                let scene = pass.find(name).ok_or_else(|| Rejection::SceneNotFound(name.to_owned()))?;
                self.jump(now, Playhead { position_ms: pass.start_ms(scene), ..head }, outbox);
            }
            Command::SkipScene => {
                self.check_movable(&command)?;
                self.skip(now, head, outbox);
            }
            Command::PreviousScene => {
                self.check_movable(&command)?;
                let scene = pass.place(head.position_ms).scene;
                let before = (0..scene).rev().find(|before| pass.duration_ms(*before) > 0).unwrap_or(0);
                self.jump(now, Playhead { position_ms: pass.start_ms(before), ..head }, outbox);
            }
            Command::Seek(position_ms) => {
                self.check_movable(&command)?;
                check_position(position_ms, pass.total_ms())?;
                self.jump(now, Playhead { position_ms, ..head }, outbox);
            }
            Command::AdjustScene(delta_ms) => {
                self.check_movable(&command)?;
                let place = pass.place(head.position_ms);
                let duration_ms = adjusted(pass.duration_ms(place.scene), place.elapsed_ms, delta_ms)?;
                let adjusted = pass.with_duration(place.scene, duration_ms);
                let is_as_configured = adjusted == *self.show.config.timeline;
                spare.check(self.show.adjusted_bytes(), if is_as_configured { 0 } else { adjusted.bytes() })?;
                self.show.pass = Arc::new(adjusted);
                self.show.share_pass();
                self.jump(now, head, outbox);
            }
            Command::UpdateStreamStatus { is_streaming, stream_time_ms, timecode } => {
                let before = self.show.status.as_ref().map_or(0, |status| status.timecode.len());
                spare.check(before, timecode.len())?;
                self.show.status = Some(Arc::new(Status { is_streaming, stream_time_ms, timecode: timecode.into() }));
                self.enter(now, self.show.lifecycle, Cause::Command, outbox);
            }
            Command::Reconfigure(config) => {
                let before = self.show.config.timeline.bytes() + self.show.adjusted_bytes();
                spare.check(before, config.timeline.bytes())?;
                self.reconfigure(now, config, outbox);
            }
            Command::Remove => unreachable!("the engine removes streams, having their tables"),
        }
        Ok(())
    }

    fn start(&mut self, now: Tick, config: Option<Config>, outbox: &mut Outbox) -> Result<(), Rejection> {
        if config.is_some_and(|config| config != self.show.config) {
            return Err(Rejection::AlreadyExists(self.show.id.to_string()));
        }
        match self.show.lifecycle {
            Lifecycle::Idle(_) | Lifecycle::Running(_) | Lifecycle::Paused(_) | Lifecycle::Removed(_) => {}
            Lifecycle::Stopped(_) | Lifecycle::Finished { .. } => self.rewind(now, outbox),
        }
        Ok(())
    }

    /// Back to 0: plays if somebody watches, else waits.
    fn rewind(&mut self, now: Tick, outbox: &mut Outbox) {
        self.show.pass = Arc::clone(&self.show.config.timeline);
        if self.is_watched() {
            self.play(now, Playhead::START, Cause::Command, outbox);
        } else {
            self.enter(now, Lifecycle::Idle(Playhead::START), Cause::Command, outbox);
        }
    }

    fn skip(&mut self, now: Tick, head: Playhead, outbox: &mut Outbox) {
        let scene = self.show.pass.place(head.position_ms).scene;
        if scene + 1 < self.show.pass.scene_count() {
            self.jump(now, Playhead { position_ms: self.show.pass.end_ms(scene), ..head }, outbox);
        } else if self.show.config.loop_scenes {
            self.show.pass = Arc::clone(&self.show.config.timeline);
            self.jump(now, Playhead { loops: head.loops.saturating_add(1), position_ms: 0 }, outbox);
        } else {
            let loops = head.loops.saturating_add(1);
            self.enter(now, Lifecycle::Finished { loops }, Cause::Command, outbox);
        }
    }

    /// The present scene's elapsed time is kept if the new timeline has a scene of that name, else the position; either
    /// as far as there is room.
    fn reconfigure(&mut self, now: Tick, config: Config, outbox: &mut Outbox) {
        let head = self.head(now);
        let (old, new) = (&self.show.pass, &config.timeline);
        let kept = self.scene(head).and_then(|scene| new.find(old.name(scene)));
        let position_ms = match kept {
            Some(scene) => {
                let elapsed_ms = old.place(head.position_ms).elapsed_ms;
                new.start_ms(scene) + elapsed_ms.min(new.duration_ms(scene))
            }
            None => head.position_ms.min(new.total_ms()),
        };
        self.show.pass = Arc::clone(new);
        if let Lifecycle::Running(run) = &mut self.show.lifecycle {
            run.next_tick = now.after(config.tick_interval_ms);
        }
        self.show.config = config;
        self.jump(now, Playhead { position_ms, ..head }, outbox);
        // A rule that changed with nobody there applies from now on: the grace may be over already.
        self.end_grace(now, outbox);
    }

    /// The same state at another position.
    fn jump(&mut self, now: Tick, head: Playhead, outbox: &mut Outbox) {
        let lifecycle = match &self.show.lifecycle {
            Lifecycle::Idle(_) => Lifecycle::Idle(head),
            Lifecycle::Running(run) => Lifecycle::Running(Run { anchor: now, from: head, ..*run }),
            Lifecycle::Paused(_) => Lifecycle::Paused(head),
            Lifecycle::Stopped(_) => Lifecycle::Stopped(head),
            there @ (Lifecycle::Finished { .. } | Lifecycle::Removed(_)) => *there,
        };
        self.enter(now, lifecycle, Cause::Command, outbox);
    }

    fn play(&mut self, now: Tick, from: Playhead, cause: Cause, outbox: &mut Outbox) {
        let next_tick = now.after(self.show.config.tick_interval_ms);
        let run = Run { anchor: now, from, next_tick, told: from };
        self.enter(now, Lifecycle::Running(run), cause, outbox);
    }

    fn check_movable(&self, command: &Command<'_>) -> Result<(), Rejection> {
        match self.show.lifecycle {
            Lifecycle::Idle(_) | Lifecycle::Running(_) | Lifecycle::Paused(_) => Ok(()),
            Lifecycle::Stopped(_) | Lifecycle::Finished { .. } | Lifecycle::Removed(_) => {
                Err(self.invalid_state(command))
            }
        }
    }

    fn invalid_state(&self, command: &Command<'_>) -> Rejection {
        Rejection::InvalidState { command: command.name(), mode: self.mode() }
    }

    // --- the one door --------------------------------------------------------------------------------------------

    /// Enters a state: the only function that changes the lifecycle, counts the revision and makes the update of it.
    fn enter(&mut self, now: Tick, lifecycle: Lifecycle, cause: Cause, outbox: &mut Outbox) {
        let was_live = matches!(self.mode(), Mode::Running | Mode::Paused);
        self.show.lifecycle = self.normalized(now, lifecycle);
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
    }

    /// Normalises a state on entry: past the end → Finished; FREEZE and unwatched → Idle.
    fn normalized(&mut self, now: Tick, lifecycle: Lifecycle) -> Lifecycle {
        let Lifecycle::Running(mut run) = lifecycle else { return lifecycle };
        let config = &self.show.config;
        let (pass_ms, base_ms) = (self.show.pass.total_ms(), config.timeline.total_ms());
        match advance(run.from, now.since(run.anchor), pass_ms, base_ms, config.loop_scenes) {
            Progress::SamePass(from) => (run.anchor, run.from) = (now, from),
            Progress::LaterPass(from) => {
                (run.anchor, run.from) = (now, from);
                self.show.pass = Arc::clone(&config.timeline);
            }
            Progress::Ended => return Lifecycle::Finished { loops: run.from.loops.saturating_add(1) },
        }
        if self.may_run() { Lifecycle::Running(run) } else { Lifecycle::Idle(run.from) }
    }

    /// Removes the stream: its last update. The engine frees what belongs to it.
    pub(super) fn remove(&mut self, now: Tick, idle: bool, outbox: &mut Outbox) {
        let head = self.head(now);
        self.enter(now, Lifecycle::Removed(head), Cause::Lifecycle, outbox);
        outbox.events.push(Event::Removed { stream_id: Arc::clone(&self.show.id), idle });
    }

    /// Makes an update. With nobody watching, only what a command or the lifecycle did is told: whoever follows the
    /// subject without a subscription of its own learns of that, and everything else would be playing unwatched.
    fn emit(&mut self, now: Tick, cause: Cause, outbox: &mut Outbox) {
        let unwatched_too = matches!(cause, Cause::Command | Cause::Lifecycle);
        if !self.is_watched() && !unwatched_too {
            return;
        }
        self.snapshot_owed = false;
        self.show.sequence += 1;
        let update = self.state(now, cause);
        if let Lifecycle::Running(run) = &mut self.show.lifecycle
            && matches!(cause, Cause::Scene | Cause::Command | Cause::Lifecycle)
        {
            run.told = Playhead { loops: update.loop_count, position_ms: update.position_ms };
        }
        outbox.updates.push(update);
    }

    /// Notes that everybody who came now knows the present pass and scene.
    fn announce(&mut self, now: Tick) {
        let head = self.head(now);
        if let Lifecycle::Running(run) = &mut self.show.lifecycle {
            run.told = head;
        }
    }

    // --- where it is ---------------------------------------------------------------------------------------------

    fn head(&self, now: Tick) -> Playhead {
        let total_ms = self.show.pass.total_ms();
        match &self.show.lifecycle {
            Lifecycle::Idle(head) | Lifecycle::Paused(head) | Lifecycle::Stopped(head) | Lifecycle::Removed(head) => {
                *head
            }
            Lifecycle::Running(run) => {
                let position_ms = run.from.position_ms.saturating_add(now.since(run.anchor)).min(total_ms);
                Playhead { position_ms, ..run.from }
            }
            Lifecycle::Finished { loops } => Playhead { loops: *loops, position_ms: total_ms },
        }
    }

    /// The present scene; none before the start and after the end.
    fn scene(&self, head: Playhead) -> Option<u32> {
        let inside = 0 < head.position_ms && head.position_ms < self.show.pass.total_ms();
        let present = match self.mode() {
            Mode::Running | Mode::Paused => true,
            Mode::Idle | Mode::Stopped => inside,
            Mode::Finished | Mode::Unknown => false,
        };
        present.then(|| self.show.pass.place(head.position_ms).scene)
    }

    /// Asserts what must hold between two calls.
    pub(super) fn check(&self) {
        let (id, watched) = (&self.show.id, self.is_watched());
        assert_eq!(watched, self.members.active > 0, "stream {id}: watched with {:?}", self.members);
        assert!(self.members.active <= self.members.total, "stream {id}: {:?}", self.members);
        assert!(self.members.unique <= self.members.total, "stream {id}: {:?}", self.members);
        assert!(watched || !self.snapshot_owed, "stream {id} owes nobody a snapshot");
        if let Lifecycle::Running(run) = &self.show.lifecycle {
            let total_ms = self.show.pass.total_ms();
            assert!(run.from.position_ms < total_ms, "stream {id} runs from {:?}, its end is {total_ms}", run.from);
            assert!(run.told.loops <= run.from.loops, "stream {id} runs from {:?}, and told {:?}", run.from, run.told);
            assert!(self.may_run(), "stream {id} runs unwatched under FREEZE");
        }
    }
}

fn check_position(position_ms: u64, total_ms: u64) -> Result<(), Rejection> {
    if position_ms < total_ms {
        return Ok(());
    }
    let message = format!("position_ms must be below the timeline's length of {total_ms}, not {position_ms}");
    Err(Invalid::new(message).into())
}

/// A scene's length after AdjustScene: never below what has played, never over the longest scene.
fn adjusted(duration_ms: u64, elapsed_ms: u64, delta_ms: i64) -> Result<u64, Rejection> {
    let adjusted_ms = duration_ms.saturating_add_signed(delta_ms).max(elapsed_ms);
    if adjusted_ms <= MAX_DURATION_MS {
        return Ok(adjusted_ms);
    }
    let message = format!(
        "delta_ms must leave the scene at most {MAX_DURATION_MS} ms (365 days), {delta_ms} would make it {adjusted_ms}"
    );
    Err(Invalid::new(message).into())
}
