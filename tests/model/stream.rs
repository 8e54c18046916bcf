//! One stream as the contract describes it: a story of what moved or stopped its clock, and positions read off that
//! story by walking it from the beginning, every time anew.

use orchestrator_service::engine::{Cause, Limits, MAX_DURATION_MS, Mode, SNAPSHOT_INTERVAL_MS, WhenEmpty};

use crate::{
    bytes::Room,
    head::{Chapter, Head, Landing},
    steps::{Action, Plan, PlanScene, SCENES, Status, TIMECODES},
    told::{Fact, Happening, Refusal, Told},
};

/// What the reference keeps of one stream.
#[derive(Clone)]
pub(crate) struct Stream {
    pub(crate) name: &'static str,
    /// Which of all streams of the run this is: a name begun again is another one.
    pub(crate) incarnation: usize,
    pub(crate) plan: Plan,
    pub(crate) mode: Mode,
    pub(crate) revision: u64,
    pub(crate) audience: Vec<Member>,
    sequence: u64,
    pub(crate) status: Option<Status>,
    /// Since when nobody watches; none while somebody does.
    empty_since: Option<u64>,
    pub(crate) story: Vec<(u64, Chapter)>,
    /// Where its ticks are counted from.
    beat_from: u64,
    /// Up to when everything due has been seen to.
    seen_to: u64,
    snapshot_said: Option<u64>,
    snapshot_owed: bool,
    scene_said: Option<u64>,
    /// A scene has begun that nobody was told of yet.
    scene_owed: bool,
    /// The revision at which its scenes or their lengths changed last.
    config_revision: u64,
    /// Whether it waits for its instant, or plays since then and nobody has moved it.
    on_schedule: bool,
}

/// A subscriber.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) client: u8,
    pub(crate) session: u64,
    pub(crate) from: u8,
    pub(crate) heard: u64,
    pub(crate) stale: bool,
    /// Which of all registrations of the run this is: what its handle stands for.
    pub(crate) ticket: usize,
}

impl Stream {
    pub(crate) fn created(
        name: &'static str,
        incarnation: usize,
        plan: Plan,
        (now, ahead): (u64, i64),
        told: &mut Told,
    ) -> Self {
        let mut stream = Self {
            name,
            incarnation,
            story: vec![(now, Chapter::Takes(plan.clone(), Landing::Position(0)))],
            plan,
            mode: Mode::Idle,
            revision: 0,
            audience: Vec::new(),
            sequence: 0,
            status: None,
            empty_since: Some(now),
            beat_from: now,
            seen_to: now,
            snapshot_said: None,
            snapshot_owed: false,
            scene_said: None,
            scene_owed: false,
            config_revision: 1,
            on_schedule: false,
        };
        told.happened(name, Happening::Created);
        if stream.plan.starts.is_some() {
            stream.follows_schedule(now, ahead, Cause::Command, told);
        } else {
            stream.becomes(now, Mode::Idle, Cause::Command, told);
        }
        stream
    }

    /// Its state, as somebody who asks is told.
    pub(crate) fn fact(&self, now: u64, cause: Cause) -> Fact {
        let head = self.head(now);
        let on_stage = self.is_on_stage(&head);
        Fact {
            stream: self.name,
            incarnation: self.incarnation,
            cause,
            mode: self.mode,
            scene: on_stage.then_some(head.scene as u32),
            position: head.position(),
            loops: head.loops,
            status: self.status,
            revision: self.revision,
            sequence: self.sequence,
            scenes: head.scenes.iter().map(|scene| (scene.name, scene.ms)).collect(),
            overtime: head.overtime.filter(|_| on_stage),
            config_revision: self.config_revision,
            starts: self.plan.starts_at().filter(|_| self.waits()),
        }
    }

    fn is_on_stage(&self, head: &Head) -> bool {
        match self.mode {
            Mode::Running | Mode::Paused => true,
            Mode::Idle | Mode::Stopped => !head.is_at_start() && !head.is_at_end(),
            Mode::Finished | Mode::Unknown => false,
        }
    }

    /// The scene that is told as the present one.
    pub(crate) fn present_scene(&self, now: u64) -> Option<PlanScene> {
        let head = self.head(now);
        self.is_on_stage(&head).then(|| head.scenes[head.scene])
    }

    pub(crate) fn active(&self) -> usize {
        self.audience.iter().filter(|member| !member.stale).count()
    }

    fn watched(&self) -> bool {
        self.empty_since.is_none()
    }

    pub(crate) fn head(&self, now: u64) -> Head {
        Head::walk(&self.story, now)
    }

    fn add(&mut self, now: u64, chapter: Chapter) {
        self.story.push((now, chapter));
    }

    // --- time ---------------------------------------------------------------------------------------------------------

    /// When something will be due, unless something happens before.
    pub(crate) fn dues(&self, ahead: i64) -> Vec<u64> {
        let head = self.head(self.seen_to);
        let mut dues = Vec::new();
        let running = self.mode == Mode::Running;
        if running && !self.plan.looping {
            dues.extend(head.until_end().map(|ms| self.seen_to + ms));
        }
        if self.waits() {
            dues.extend(self.instant(ahead));
        }
        if let Some(empty_since) = self.empty_since {
            if !self.on_schedule {
                dues.push(empty_since + self.plan.idle);
            }
            if self.grace_applies() {
                dues.push(empty_since + self.plan.grace);
            }
            return dues;
        }
        if running {
            if !self.plan.no_ticks {
                dues.push(self.next_tick());
            }
            let boundary = if self.scene_owed { Some(0) } else { head.until_boundary() };
            dues.extend(boundary.map(|ms| (self.seen_to + ms).max(self.next_scene())));
        }
        if self.snapshot_owed {
            dues.push(self.next_snapshot());
        }
        dues
    }

    /// Whether it waits for its instant.
    fn waits(&self) -> bool {
        self.on_schedule && self.mode == Mode::Idle
    }

    /// The time of the run at which its instant is.
    fn instant(&self, ahead: i64) -> Option<u64> {
        self.plan.starts_at().map(|starts| starts.saturating_add_signed(-ahead))
    }

    fn next_tick(&self) -> u64 {
        self.beat_from + ((self.seen_to - self.beat_from) / self.plan.tick + 1) * self.plan.tick
    }

    fn next_snapshot(&self) -> u64 {
        self.snapshot_said.map_or(0, |said| said + SNAPSHOT_INTERVAL_MS)
    }

    /// Scenes are told no more often than the least tick interval, the newest then.
    fn next_scene(&self) -> u64 {
        self.scene_said.map_or(0, |said| said + Limits::default().min_tick_interval_ms)
    }

    /// On schedule nothing stops for want of an audience.
    fn when_empty(&self) -> WhenEmpty {
        if self.on_schedule { WhenEmpty::RunOn } else { self.plan.when_empty }
    }

    fn grace_applies(&self) -> bool {
        self.when_empty() == WhenEmpty::Restart && matches!(self.mode, Mode::Running | Mode::Paused)
    }

    /// Does what fell due by `now`. False when the stream is to be removed.
    #[must_use]
    pub(crate) fn bring(&mut self, now: u64, ahead: i64, told: &mut Told) -> bool {
        if self.waits() && self.instant(ahead).is_some_and(|instant| instant <= now) {
            self.follows_schedule(now, ahead, Cause::Lifecycle, told);
        }
        if let Some(empty_since) = self.empty_since {
            if !self.on_schedule && empty_since + self.plan.idle <= now {
                return false;
            }
            self.end_grace(now, told);
        }
        let before = self.head(self.seen_to);
        let tick = !self.plan.no_ticks && self.next_tick() <= now;
        self.seen_to = now;
        if self.mode == Mode::Running {
            let head = self.head(now);
            if head.ended {
                self.add(now, Chapter::StandsStill);
                self.becomes(now, Mode::Finished, Cause::Lifecycle, told);
            } else if self.watched() {
                let act = |head: &Head| (head.loops, head.scene, head.overtime.is_some());
                self.scene_owed |= act(&head) != act(&before);
                if self.scene_owed && self.next_scene() <= now {
                    self.scene_said = Some(now);
                    self.say(now, Cause::Scene, told);
                } else if tick && !self.scene_owed {
                    self.say(now, Cause::Tick, told);
                }
            }
        }
        self.say_owed(now, told);
        true
    }

    /// Nobody came back within the grace. An end that came before it stands.
    fn end_grace(&mut self, now: u64, told: &mut Told) {
        let Some(end) = self.empty_since.map(|since| since + self.plan.grace) else { return };
        let head = self.head(end.max(self.seen_to));
        let ended = self.mode == Mode::Running && head.ended;
        if self.grace_applies() && end <= now && !ended {
            self.puts_lengths_back(&head);
            self.add(now, Chapter::IsBackAtTheStart);
            self.becomes(now, Mode::Idle, Cause::Lifecycle, told);
        }
    }

    fn say_owed(&mut self, now: u64, told: &mut Told) {
        if self.snapshot_owed && self.next_snapshot() <= now {
            self.snapshot_said = Some(now);
            self.say(now, Cause::Snapshot, told);
        }
    }

    // --- audience -----------------------------------------------------------------------------------------------------

    /// Somebody came, came back, left, or went stale.
    pub(crate) fn audience_changed(&mut self, now: u64, told: &mut Told) {
        match (self.watched(), self.active() > 0) {
            (false, true) => {
                self.empty_since = None;
                self.scene_owed = false;
                if self.is_idle() {
                    self.plays(now, Cause::Lifecycle, told);
                }
            }
            (true, false) => {
                self.empty_since = Some(now);
                self.snapshot_owed = false;
                if self.mode == Mode::Running && self.when_empty() == WhenEmpty::Freeze {
                    self.add(now, Chapter::StandsStill);
                    self.becomes(now, Mode::Idle, Cause::Lifecycle, told);
                }
            }
            _ => {}
        }
    }

    /// Whether it waits for its first viewer.
    pub(crate) fn is_idle(&self) -> bool {
        self.mode == Mode::Idle && !self.on_schedule
    }

    /// Somebody joined whom no reply reaches, or came back from silence.
    pub(crate) fn owes_snapshot(&mut self, now: u64, told: &mut Told) {
        self.snapshot_owed = true;
        self.say_owed(now, told);
    }

    // --- commands -----------------------------------------------------------------------------------------------------

    /// Carries out a command, other than Remove.
    pub(crate) fn obey(
        &mut self,
        (now, ahead): (u64, i64),
        action: Action,
        plans: &[Plan],
        room: Room,
        told: &mut Told,
    ) -> Result<(), Refusal> {
        let head = self.head(now);
        let mode = self.mode;
        let playing = matches!(mode, Mode::Running | Mode::Paused);
        let movable = if playing || mode == Mode::Idle { Ok(()) } else { Err(Refusal::InvalidState(mode)) };
        match action {
            Action::Start(plan) => {
                if plan.is_some_and(|plan| plans[plan as usize] != self.plan) {
                    return Err(Refusal::AlreadyExists);
                }
                if movable.is_err() {
                    if self.instant(ahead).is_some_and(|instant| now < instant) {
                        self.puts_lengths_back(&head);
                        self.add(now, Chapter::IsBackAtTheStart);
                        self.follows_schedule(now, ahead, Cause::Command, told);
                    } else {
                        self.rewinds(now, told);
                    }
                }
            }
            Action::Reset => self.rewinds(now, told),
            Action::Stop => {
                if mode != Mode::Stopped {
                    self.leaves_schedule(now);
                    self.add(now, Chapter::StandsStill);
                    self.becomes(now, Mode::Stopped, Cause::Command, told);
                }
            }
            Action::Pause => match mode {
                Mode::Running => {
                    self.leaves_schedule(now);
                    self.add(now, Chapter::StandsStill);
                    self.becomes(now, Mode::Paused, Cause::Command, told);
                }
                Mode::Paused => {}
                _ => return Err(Refusal::InvalidState(mode)),
            },
            Action::Resume => match mode {
                Mode::Paused => self.plays(now, Cause::Command, told),
                Mode::Running => {}
                _ => return Err(Refusal::InvalidState(mode)),
            },
            Action::ForceScene(named) => {
                movable?;
                let behind = self.is_on_stage(&head).then_some(head.scene);
                let scene = head.find(SCENES[named as usize], behind).ok_or(Refusal::SceneNotFound)?;
                self.jumps(now, Chapter::GoesTo(scene), told);
            }
            Action::SkipScene => {
                movable?;
                if head.scene + 1 < head.scenes.len() {
                    self.jumps(now, Chapter::GoesTo(head.scene + 1), told);
                } else if self.plan.looping {
                    self.jumps(now, Chapter::BeginsNextPass, told);
                } else {
                    self.leaves_schedule(now);
                    self.add(now, Chapter::Ends);
                    self.add(now, Chapter::StandsStill);
                    self.becomes(now, Mode::Finished, Cause::Command, told);
                }
            }
            Action::PreviousScene => {
                movable?;
                // One that was shortened to nothing cannot be gone to.
                let before = head.scenes[..head.scene].iter().rposition(|scene| scene.ms > 0);
                self.jumps(now, Chapter::GoesTo(before.unwrap_or(0)), told);
            }
            Action::Seek(_) | Action::SeekFromEnd(_) => {
                movable?;
                let position = self.sought(action, now);
                if position >= head.total() {
                    return Err(Refusal::Invalid);
                }
                self.jumps(now, Chapter::JumpsTo(position), told);
            }
            Action::AdjustScene(delta) => {
                movable?;
                let wanted = i128::from(head.scenes[head.scene].ms) + i128::from(delta);
                let length = wanted.max(i128::from(head.elapsed()));
                let length = u64::try_from(length).ok().filter(|ms| *ms <= MAX_DURATION_MS).ok_or(Refusal::Invalid)?;
                let mut scenes = head.scenes.clone();
                scenes[head.scene].ms = length;
                let is_first = head.scenes == self.plan.scenes && scenes != self.plan.scenes;
                room.check(0, if is_first { self.plan.scene_bytes() } else { 0 })?;
                self.config_revision = self.revision + 1;
                self.moves(now, Chapter::SceneBecomes(head.scene, length), told);
            }
            Action::Status(status) => {
                let length = |status: Status| TIMECODES[usize::from(status.timecode)].len() as u64;
                room.check(self.status.map_or(0, length), length(status))?;
                let was_streaming = self.status.is_some_and(|status| status.is_streaming);
                self.status = Some(status);
                if status.is_streaming != was_streaming {
                    self.becomes(now, mode, Cause::Command, told);
                }
            }
            Action::Reconfigure(plan) => {
                let plan = &plans[plan as usize];
                check_instant(plan, now, ahead)?;
                room.check(self.plan.bytes() + self.adjusted_bytes(&head), plan.bytes())?;
                self.reconfigures((now, ahead), &head, plan, told);
            }
            Action::Remove => unreachable!("removing is not the stream's to do"),
        }
        Ok(())
    }

    /// The position that a command to seek asks for.
    pub(crate) fn sought(&self, action: Action, now: u64) -> u64 {
        match action {
            Action::Seek(position) => position,
            Action::SeekFromEnd(ms) => self.head(now).total().saturating_sub(ms),
            _ => 0,
        }
    }

    fn reconfigures(&mut self, (now, ahead): (u64, i64), head: &Head, plan: &Plan, told: &mut Told) {
        let kept = self.is_on_stage(head).then(|| head.counterpart(plan)).flatten();
        let total = plan.scenes.iter().map(|scene| scene.ms).sum::<u64>();
        let landing = match kept {
            // What is over stays over, at the end of whatever it is the end of.
            _ if self.mode == Mode::Finished => Landing::End,
            Some(scene) => Landing::Scene(scene, head.elapsed(), head.overtime),
            None => Landing::Position(head.position().min(total)),
        };
        let is_rescheduled = plan.starts != self.plan.starts;
        let movable = matches!(self.mode, Mode::Idle | Mode::Running | Mode::Paused);
        self.plan = plan.clone();
        self.beat_from = now;
        self.config_revision = self.revision + 1;
        let takes = Chapter::Takes(plan.clone(), landing);
        if is_rescheduled && movable && plan.starts.is_some() {
            self.add(now, takes);
            self.add(now, Chapter::IsBackAtTheStart);
            self.follows_schedule(now, ahead, Cause::Command, told);
        } else if is_rescheduled {
            self.jumps(now, takes, told);
        } else {
            self.moves(now, takes, told);
        }
        self.end_grace(now, told);
    }

    /// Waits for its instant, or plays as if it had begun then, with the lengths that its scenes have now.
    fn follows_schedule(&mut self, now: u64, ahead: i64, cause: Cause, told: &mut Told) {
        let instant = self.instant(ahead).expect("it has one");
        self.on_schedule = true;
        if now < instant {
            return self.becomes(now, Mode::Idle, cause, told);
        }
        let lengths = self.head(now).scenes.into_iter().map(|scene| scene.ms).enumerate();
        self.story = vec![(instant, Chapter::Takes(self.plan.clone(), Landing::Position(0)))];
        self.story.extend(lengths.map(|(scene, ms)| (instant, Chapter::LengthIs(scene, ms))));
        self.story.push((instant, Chapter::GoesTo(0)));
        self.story.push((instant, Chapter::Plays));
        // Nothing new, but known by now.
        self.story.push((now, Chapter::Plays));
        self.beat_from = instant;
        self.becomes(now, Mode::Running, cause, told);
    }

    /// Goes by its own clock from now on. Who has not watched it until now has not since now.
    fn leaves_schedule(&mut self, now: u64) {
        if self.on_schedule && !self.watched() {
            self.empty_since = Some(now);
        }
        self.on_schedule = false;
    }

    fn puts_lengths_back(&mut self, head: &Head) {
        if head.scenes != self.plan.scenes {
            self.config_revision = self.revision + 1;
        }
    }

    /// Back to the start: plays if somebody watches, else waits.
    fn rewinds(&mut self, now: u64, told: &mut Told) {
        self.puts_lengths_back(&self.head(now));
        self.leaves_schedule(now);
        self.add(now, Chapter::IsBackAtTheStart);
        if self.watched() {
            self.plays(now, Cause::Command, told);
        } else {
            self.becomes(now, Mode::Idle, Cause::Command, told);
        }
    }

    fn plays(&mut self, now: u64, cause: Cause, told: &mut Told) {
        self.beat_from = now;
        self.add(now, Chapter::Plays);
        self.becomes(now, Mode::Running, cause, told);
    }

    /// Elsewhere by its own clock, in the same mode; one that waited for its instant with somebody there plays.
    fn jumps(&mut self, now: u64, chapter: Chapter, told: &mut Told) {
        let waited = self.waits();
        self.leaves_schedule(now);
        if waited && self.watched() {
            self.add(now, chapter);
            self.plays(now, Cause::Command, told);
        } else {
            self.moves(now, chapter, told);
        }
    }

    /// Elsewhere, in the same mode.
    fn moves(&mut self, now: u64, chapter: Chapter, told: &mut Told) {
        self.add(now, chapter);
        self.becomes(now, self.mode, Cause::Command, told);
    }

    /// In this mode from now on, unless it would be running past its end, or unwatched under FREEZE.
    fn becomes(&mut self, now: u64, mode: Mode, cause: Cause, told: &mut Told) {
        let was_live = matches!(self.mode, Mode::Running | Mode::Paused);
        let mode = match mode {
            Mode::Running if self.head(now).ended => Mode::Finished,
            Mode::Running if !self.watched() && self.when_empty() == WhenEmpty::Freeze => Mode::Idle,
            mode => mode,
        };
        if mode == Mode::Finished {
            self.leaves_schedule(now);
        }
        if mode != Mode::Running {
            self.add(now, Chapter::StandsStill);
        }
        self.mode = mode;
        self.seen_to = now;
        let is_live = matches!(self.mode, Mode::Running | Mode::Paused);
        if is_live && !was_live {
            told.happened(self.name, Happening::Started);
        }
        if was_live && !is_live {
            told.happened(self.name, Happening::Stopped(mode));
        }
        self.revision += 1;
        self.say(now, cause, told);
    }

    /// Its end. Returns its last state.
    pub(crate) fn removed(&mut self, now: u64, idle: bool, told: &mut Told) -> Fact {
        let live = matches!(self.mode, Mode::Running | Mode::Paused);
        if live {
            told.happened(self.name, Happening::Stopped(Mode::Unknown));
        }
        told.happened(self.name, Happening::Removed { idle });
        let unnoticed_end = self.mode == Mode::Running && self.head(now).ended;
        self.mode = Mode::Unknown;
        self.revision += 1;
        self.sequence += 1;
        let mut last = self.fact(now, Cause::Lifecycle);
        // Woken so late that its end and its removal are one: the removal alone is told, and the pass does not count.
        last.loops -= u64::from(unnoticed_end);
        told.facts.push(last.clone());
        last
    }

    /// Says what it is. Ticks, scenes and snapshots only to somebody who watches.
    fn say(&mut self, now: u64, cause: Cause, told: &mut Told) {
        if self.watched() || matches!(cause, Cause::Command | Cause::Lifecycle) {
            self.snapshot_owed = false;
            self.scene_owed &= matches!(cause, Cause::Tick | Cause::Snapshot);
            self.sequence += 1;
            told.facts.push(self.fact(now, cause));
        }
    }
}

/// Refuses an instant that is more than a year ahead.
pub(crate) fn check_instant(plan: &Plan, now: u64, ahead: i64) -> Result<(), Refusal> {
    let latest = now.saturating_add_signed(ahead) + MAX_DURATION_MS;
    if plan.starts_at().is_some_and(|starts| starts > latest) { Err(Refusal::Invalid) } else { Ok(()) }
}
