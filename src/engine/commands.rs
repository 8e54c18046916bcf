//! Commands: which stream one is for, whether it is as the command expects, and what each does to it.

use std::sync::Arc;

use super::{
    Accepted, Action, Cause, Command, Config, Engine, Expected, Invalid, Lifecycle, MAX_DURATION_MS, MAX_SLOTS,
    Mismatch, Outbox, Playhead, Rejection, Request, Run, Show, Status, StreamId, Tick, WallClock,
    requests::Recalled,
    schedule::check_instant,
    stream::{Spare, Stream},
};

/// When a command comes, by both clocks.
#[derive(Clone, Copy, Debug)]
struct Moment {
    now: Tick,
    clock: WallClock,
}

impl Engine {
    /// A repeat gets the first answer; everything else is executed, and its answer remembered if it has an id.
    pub(super) fn request(
        &mut self,
        now: Tick,
        request: Request<'_>,
        outbox: &mut Outbox,
    ) -> Result<Accepted, Rejection> {
        let Some(request_id) = request.request_id else { return self.command(now, request, outbox) };
        let stream_id = request.stream_id;
        let fingerprint = self.requests.fingerprint(&request);
        match self.requests.recall(now, stream_id.as_str(), request_id, fingerprint) {
            Recalled::Repeat(answer) => return answer.clone(),
            Recalled::OtherContent => return Err(Rejection::RequestIdTaken(request_id.to_owned())),
            Recalled::New => {}
        }
        let mut answer = self.command(now, request, outbox);
        if let Ok(Accepted::State(state)) = &mut answer {
            // A repeat is told the same, to the byte, whatever the clock says by then.
            state.rare_mut().server_time_ms = Some(self.clock.at(state.at));
        }
        let is_there = self.find_by_name(stream_id.as_str()).is_some();
        self.requests.remember(now, (stream_id.as_str(), request_id), fingerprint, answer.clone(), is_there);
        answer
    }

    fn command(&mut self, now: Tick, request: Request<'_>, outbox: &mut Outbox) -> Result<Accepted, Rejection> {
        let slot = self.wake_by_id(now, request.stream_id, outbox);
        // A command for a stream that is not there says so, whatever it expects.
        if slot.is_ok() || matches!(request.command, Command::Start(_)) {
            self.check_conditions(now, slot.as_ref().ok().copied(), &request)?;
        }
        let Request { stream_id, command, issued_by, .. } = request;
        let by = (Action::of(&command), issued_by.unwrap_or_default());
        let slot = match (slot, command) {
            (Err(_), Command::Start(config)) => self.create(now, stream_id, config, outbox)?,
            (Err(not_found), _) => return Err(not_found),
            (Ok(slot), Command::Remove) => return Ok(Accepted::State(self.remove_stream(now, slot, false, outbox))),
            (Ok(slot), command) => {
                let (spare, moment) = (self.spare(), Moment { now, clock: self.clock });
                let from_ms = self.streams.get(slot).show.position_ms(now);
                self.reconsider_stream(slot, |stream| stream.command(moment, command, spare, outbox))?;
                outbox.came_from(from_ms);
                slot
            }
        };
        self.note_changes(Some(by), outbox);
        Ok(Accepted::State(self.streams.get(slot).state(now, Cause::Command)))
    }

    /// Refuses a command that expects another stream than there is.
    fn check_conditions(&self, now: Tick, slot: Option<u32>, request: &Request<'_>) -> Result<(), Rejection> {
        let show = slot.map(|slot| &self.streams.get(slot).show);
        let (revision, epoch) = show.map_or((0, 0), |show| (show.revision, show.epoch));
        let conflict = |mismatch| Err(Rejection::Conflict { mismatch: Box::new(mismatch), revision });
        let Expected { revision: at, epoch: of, scene } = request.expected.as_deref().copied().unwrap_or_default();
        if let Some(expected) = at.filter(|expected| *expected != revision) {
            return conflict(Mismatch::Revision { expected, actual: revision });
        }
        if let Some(expected) = of.filter(|expected| *expected != epoch) {
            return conflict(Mismatch::Epoch { expected, actual: epoch });
        }
        let Some(expected) = scene else { return Ok(()) };
        let present = show.and_then(|show| Some((&show.pass, show.present(show.head(now))?.scene)));
        if present.map_or(expected.is_empty(), |(pass, scene)| pass.is_named(scene, expected)) {
            return Ok(());
        }
        let actual = present.map_or(String::new(), |(pass, scene)| pass.name(scene).to_owned());
        conflict(Mismatch::Scene { expected: expected.to_owned(), actual })
    }

    fn create(
        &mut self,
        now: Tick,
        stream_id: StreamId<'_>,
        config: Option<Config>,
        outbox: &mut Outbox,
    ) -> Result<u32, Rejection> {
        let config = config.ok_or_else(|| {
            Invalid::new(format!(
                "config must be given to start {stream_id:?}, with 1 scene or more: it does not exist"
            ))
        })?;
        let limit = self.settings.limits.max_streams.min(MAX_SLOTS);
        if self.counts.streams >= self.quota.streams.min(limit) || self.streams.0.len() as u64 >= MAX_SLOTS {
            return Err(Rejection::Exhausted { what: "streams", limit });
        }
        check_instant(config.starts_at_ms(), self.clock.at(now))?;
        self.spare().check(0, stream_id.as_str().len() + config.bytes())?;
        // Microseconds, so that an epoch outgrows those of an earlier process and of a stream removed just now.
        self.last_epoch = (self.last_epoch + 1).max(now.0.saturating_mul(1_000));
        let slot = self.add_stream(Show::new(stream_id, config, now, self.last_epoch));
        let clock = self.clock;
        self.with_stream(slot, |stream| stream.created(now, clock, outbox));
        Ok(slot)
    }

    /// How much more may be kept for streams.
    fn spare(&self) -> Spare {
        let limit = self.settings.limits.max_config_bytes;
        Spare { bytes: self.quota.config_bytes.min(limit).saturating_sub(self.counts.config_bytes), limit }
    }
}

impl Stream {
    /// Carries out a command for a stream that exists and was woken to this moment. Remove is the engine's.
    fn command(
        &mut self,
        moment: Moment,
        command: Command<'_>,
        spare: Spare,
        outbox: &mut Outbox,
    ) -> Result<(), Rejection> {
        let Moment { now, clock } = moment;
        let head = self.show.head(now);
        let pass = Arc::clone(&self.show.pass);
        match command {
            Command::Start(config) => self.start(moment, config, outbox)?,
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
            Command::ForceScene(named) => {
                self.check_movable(&command)?;
                let present = self.show.present(head).map(|place| place.scene);
                let scene = pass.find(named, present).ok_or_else(|| Rejection::SceneNotFound(named.to_owned()))?;
                self.jump(now, Playhead { pass_ms: pass.pass_start_ms(scene), ..head }, outbox);
            }
            Command::SkipScene => {
                self.check_movable(&command)?;
                self.skip(now, head, outbox);
            }
            Command::PreviousScene => {
                self.check_movable(&command)?;
                let scene = pass.place(head.pass_ms).scene;
                let before = (0..scene).rev().find(|before| pass.duration_ms(*before) > 0).unwrap_or(0);
                self.jump(now, Playhead { pass_ms: pass.pass_start_ms(before), ..head }, outbox);
            }
            Command::Seek(position_ms) => {
                self.check_movable(&command)?;
                check_position(position_ms, pass.total_ms())?;
                self.jump(now, Playhead { pass_ms: pass.pass_at(position_ms), ..head }, outbox);
            }
            Command::AdjustScene(delta_ms) => {
                self.check_movable(&command)?;
                self.adjust(now, delta_ms, spare, outbox)?;
            }
            Command::UpdateStreamStatus { is_streaming, stream_time_ms, timecode } => {
                let status = Status { is_streaming, stream_time_ms, timecode: timecode.into() };
                self.take_status(now, status, spare, outbox)?;
            }
            Command::Reconfigure(config) => {
                check_instant(config.starts_at_ms(), clock.at(now))?;
                spare.check(self.show.config.bytes() + self.show.adjusted_bytes(), config.bytes())?;
                self.reconfigure(moment, config, outbox);
            }
            Command::Remove => unreachable!("the engine removes streams, having their tables"),
        }
        Ok(())
    }

    fn start(&mut self, moment: Moment, config: Option<Config>, outbox: &mut Outbox) -> Result<(), Rejection> {
        if config.is_some_and(|config| config != self.show.config) {
            return Err(Rejection::AlreadyExists(self.show.id.to_string()));
        }
        if !matches!(self.show.lifecycle, Lifecycle::Stopped(_) | Lifecycle::Finished { .. }) {
            return Ok(());
        }
        let Moment { now, clock } = moment;
        match self.show.config.starts_at_ms() {
            Some(starts_at_ms) if clock.at(now) < starts_at_ms => {
                self.show.restore_lengths();
                self.follow_schedule(now, clock, starts_at_ms, Cause::Command, outbox);
            }
            _ => self.rewind(now, outbox),
        }
        Ok(())
    }

    /// Back to 0: plays if somebody watches, else waits.
    fn rewind(&mut self, now: Tick, outbox: &mut Outbox) {
        self.show.restore_lengths();
        if self.is_watched() {
            self.play(now, Playhead::START, Cause::Command, outbox);
        } else {
            self.enter(now, Lifecycle::Idle(Playhead::START), Cause::Command, outbox);
        }
    }

    fn skip(&mut self, now: Tick, head: Playhead, outbox: &mut Outbox) {
        let next = self.show.pass.place(head.pass_ms).scene + 1;
        if next < self.show.pass.scene_count() {
            let pass_ms = self.show.pass.pass_start_ms(next);
            self.jump(now, Playhead { pass_ms, ..head }, outbox);
        } else if self.show.config.loop_scenes {
            self.show.pass = Arc::clone(&self.show.config.timeline);
            self.jump(now, Playhead { loops: head.loops.saturating_add(1), pass_ms: 0 }, outbox);
        } else {
            self.finish(now, Cause::Command, outbox);
        }
    }

    /// Another length for the present scene in this pass. One that holds plays on for what it gains.
    fn adjust(&mut self, now: Tick, delta_ms: i64, spare: Spare, outbox: &mut Outbox) -> Result<(), Rejection> {
        let head = self.show.head(now);
        let pass = &self.show.pass;
        let place = pass.place(head.pass_ms);
        let duration_ms = adjusted(pass.duration_ms(place.scene), place.elapsed_ms, delta_ms)?;
        let adjusted = pass.with_duration(place.scene, duration_ms);
        let is_as_configured = adjusted == *self.show.config.timeline;
        spare.check(self.show.adjusted_bytes(), if is_as_configured { 0 } else { adjusted.bytes() })?;
        let pass_ms = adjusted.pass_within(place.scene, place.elapsed_ms, place.overtime_ms.unwrap_or(0));
        self.show.pass = Arc::new(adjusted);
        self.show.share_pass();
        self.show.note_change();
        self.relocate(now, Playhead { pass_ms, ..head }, self.show.is_on_schedule(), outbox);
        Ok(())
    }

    /// Takes what is told of the encoder. Whether it sends is a change; what it says every second is none, and goes with
    /// the next update.
    fn take_status(&mut self, now: Tick, status: Status, spare: Spare, outbox: &mut Outbox) -> Result<(), Rejection> {
        let before = self.show.status.as_ref();
        spare.check(before.map_or(0, |status| status.timecode.len()), status.timecode.len())?;
        let is_change = before.is_some_and(|status| status.is_streaming) != status.is_streaming;
        self.show.status = Some(Arc::new(status));
        if is_change {
            self.enter(now, self.show.lifecycle, Cause::Command, outbox);
        }
        Ok(())
    }

    /// The present scene's elapsed time is kept if the new timeline has it still, else the position; either as far as there
    /// is room. Another instant to start at puts it on that schedule, and none any more takes it off.
    fn reconfigure(&mut self, moment: Moment, config: Config, outbox: &mut Outbox) {
        let Moment { now, clock } = moment;
        let head = self.show.head(now);
        let (old, new) = (&self.show.pass, &config.timeline);
        let place = old.place(head.pass_ms);
        let kept = self.show.present(head).and_then(|place| old.counterpart(place.scene, new));
        let pass_ms = match kept {
            Some(scene) => new.pass_within(scene, place.elapsed_ms, place.overtime_ms.unwrap_or(0)),
            None => new.pass_at(place.position_ms),
        };
        self.show.pass = Arc::clone(new);
        self.show.note_change();
        if let Lifecycle::Running(run) = &mut self.show.lifecycle {
            run.next_tick = config.tick_after(now);
        }
        let is_rescheduled = config.starts_at_ms() != self.show.config.starts_at_ms();
        self.show.config = config;
        match self.show.config.starts_at_ms() {
            Some(starts_at_ms) if is_rescheduled && self.is_movable() => {
                self.follow_schedule(now, clock, starts_at_ms, Cause::Command, outbox);
            }
            _ => {
                let on_schedule = self.show.is_on_schedule() && !is_rescheduled;
                self.relocate(now, Playhead { pass_ms, ..head }, on_schedule, outbox);
            }
        }
        // A rule that changed with nobody there applies from now on: the grace may be over already.
        self.end_grace(now, outbox);
    }

    /// The same state at another position, by its own clock from then on.
    fn jump(&mut self, now: Tick, head: Playhead, outbox: &mut Outbox) {
        self.relocate(now, head, false, outbox);
    }

    /// The same state at another position, on schedule or not any more.
    fn relocate(&mut self, now: Tick, head: Playhead, on_schedule: bool, outbox: &mut Outbox) {
        let lifecycle = match &self.show.lifecycle {
            Lifecycle::Scheduled if on_schedule => Lifecycle::Scheduled,
            Lifecycle::Scheduled if self.is_watched() => Lifecycle::Running(Run::from(head, now, &self.show.config)),
            Lifecycle::Scheduled | Lifecycle::Idle(_) => Lifecycle::Idle(head),
            Lifecycle::Running(run) => Lifecycle::Running(Run { anchor: now, from: head, on_schedule, ..*run }),
            Lifecycle::Paused(_) => Lifecycle::Paused(head),
            Lifecycle::Stopped(_) => Lifecycle::Stopped(head),
            there @ (Lifecycle::Finished { .. } | Lifecycle::Removed(_)) => *there,
        };
        self.enter(now, lifecycle, Cause::Command, outbox);
    }

    pub(super) fn play(&mut self, now: Tick, from: Playhead, cause: Cause, outbox: &mut Outbox) {
        let run = Run::from(from, now, &self.show.config);
        self.enter(now, Lifecycle::Running(run), cause, outbox);
    }

    fn check_movable(&self, command: &Command<'_>) -> Result<(), Rejection> {
        if self.is_movable() { Ok(()) } else { Err(self.invalid_state(command)) }
    }

    const fn is_movable(&self) -> bool {
        match self.show.lifecycle {
            Lifecycle::Idle(_) | Lifecycle::Scheduled | Lifecycle::Running(_) | Lifecycle::Paused(_) => true,
            Lifecycle::Stopped(_) | Lifecycle::Finished { .. } | Lifecycle::Removed(_) => false,
        }
    }

    fn invalid_state(&self, command: &Command<'_>) -> Rejection {
        Rejection::InvalidState { command: command.name(), mode: self.mode() }
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
