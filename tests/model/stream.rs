//! One stream as the contract describes it: a story of what moved or stopped its clock, and positions read off that
//! story by walking it from the beginning, every time anew.

use orchestrator_service::engine::{Cause, Limits, MAX_DURATION_MS, Mode, SNAPSHOT_INTERVAL_MS, WhenEmpty};

use crate::{
    reference::{Fact, Happening, Refusal, Room, Told},
    steps::{Order, Plan, SCENES, Status, TIMECODES},
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
    status: Option<Status>,
    /// Since when nobody watches; none while somebody does.
    empty_since: Option<u64>,
    story: Vec<(u64, Chapter)>,
    /// Where its ticks are counted from.
    beat_from: u64,
    /// Up to when everything due has been seen to.
    seen_to: u64,
    snapshot_said: Option<u64>,
    snapshot_owed: bool,
    scene_said: Option<u64>,
    /// A scene has begun that nobody was told of yet.
    scene_owed: bool,
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

/// Something that a walk through the story has to know.
#[derive(Clone)]
enum Chapter {
    Plays,
    Holds,
    JumpsTo(u64),
    BeginsNextPass,
    Ends,
    IsBackAtTheStart,
    SceneBecomes(usize, u64),
    /// Its plan from now on, and where it is on it.
    Takes(Plan, u64),
}

/// Where a walk has got to.
struct Head {
    loops: u64,
    position: u64,
    /// The scenes in this pass.
    scenes: Vec<(&'static str, u64)>,
    ended: bool,
}

impl Head {
    fn total(&self) -> u64 {
        self.start_of(self.scenes.len())
    }

    fn start_of(&self, scene: usize) -> u64 {
        self.scenes[..scene].iter().map(|(_, ms)| ms).sum()
    }

    /// The first scene that ends behind the position, or else the last.
    fn scene(&self) -> usize {
        let last = self.scenes.len() - 1;
        (0..last).find(|scene| self.start_of(scene + 1) > self.position).unwrap_or(last)
    }

    fn scene_end(&self) -> u64 {
        self.start_of(self.scene() + 1)
    }

    fn begin_pass(&mut self, plan: &Plan) {
        self.loops += 1;
        self.position = 0;
        self.scenes.clone_from(&plan.scenes);
    }

    fn end(&mut self) {
        self.loops += 1;
        self.position = self.total();
        self.ended = true;
    }

    fn play(&mut self, mut ms: u64, plan: &Plan) {
        while !self.ended {
            let left = self.total() - self.position;
            if ms < left {
                self.position += ms;
                return;
            }
            if !plan.looping {
                return self.end();
            }
            ms -= left;
            self.begin_pass(plan);
            // A week of a show of one millisecond in one step.
            self.loops += ms / self.total();
            ms %= self.total();
        }
    }

    fn walk(story: &[(u64, Chapter)], until: u64) -> Self {
        let [(begun, Chapter::Takes(plan, _)), rest @ ..] = story else { panic!("a story begins with a plan") };
        let (mut at, mut plan) = (*begun, plan);
        let mut head = Self { loops: 0, position: 0, scenes: plan.scenes.clone(), ended: false };
        let mut plays = false;
        for (when, chapter) in rest {
            if plays {
                head.play(when - at, plan);
            }
            at = *when;
            match chapter {
                Chapter::Plays => plays = true,
                Chapter::Holds => plays = false,
                Chapter::JumpsTo(position) => head.position = *position,
                Chapter::BeginsNextPass => head.begin_pass(plan),
                Chapter::Ends => head.end(),
                Chapter::SceneBecomes(scene, ms) => head.scenes[*scene].1 = *ms,
                Chapter::IsBackAtTheStart => {
                    head = Self { loops: 0, position: 0, scenes: plan.scenes.clone(), ended: false };
                    plays = false;
                }
                Chapter::Takes(new, position) => {
                    plan = new;
                    head.scenes.clone_from(&plan.scenes);
                    head.position = *position;
                }
            }
        }
        if plays {
            head.play(until - at, plan);
        }
        head
    }
}

impl Stream {
    pub(crate) fn created(name: &'static str, incarnation: usize, plan: Plan, now: u64, told: &mut Told) -> Self {
        let mut stream = Self {
            name,
            incarnation,
            story: vec![(now, Chapter::Takes(plan.clone(), 0))],
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
        };
        told.happened(name, Happening::Created);
        stream.becomes(now, Mode::Idle, Cause::Command, told);
        stream
    }

    /// Its state, as somebody who asks is told.
    pub(crate) fn fact(&self, now: u64, cause: Cause) -> Fact {
        let head = self.head(now);
        let inside = 0 < head.position && head.position < head.total();
        let on_stage = match self.mode {
            Mode::Running | Mode::Paused => true,
            Mode::Idle | Mode::Stopped => inside,
            Mode::Finished | Mode::Unknown => false,
        };
        Fact {
            stream: self.name,
            incarnation: self.incarnation,
            cause,
            mode: self.mode,
            scene: on_stage.then(|| head.scene() as u32),
            position: head.position,
            loops: head.loops,
            status: self.status,
            revision: self.revision,
            sequence: self.sequence,
            scenes: head.scenes,
        }
    }

    pub(crate) fn active(&self) -> usize {
        self.audience.iter().filter(|member| !member.stale).count()
    }

    fn watched(&self) -> bool {
        self.empty_since.is_none()
    }

    /// What is kept for it, bytes, in the fewest and in the most: the engine keeps a pass that was adjusted until it
    /// notices that another has begun, and of a stream that nobody watches it does so when it has to.
    pub(crate) fn bytes(&self, now: u64) -> (u64, u64) {
        let timecode = self.status.map_or(0, |status| TIMECODES[usize::from(status.timecode)].len() as u64);
        let configured = self.name.len() as u64 + self.plan.bytes() + timecode;
        let least = configured + if self.head(now).scenes == self.plan.scenes { 0 } else { self.plan.bytes() };
        let resets = |chapter: &Chapter| {
            matches!(chapter, Chapter::Takes(..) | Chapter::IsBackAtTheStart | Chapter::BeginsNextPass)
        };
        let of_present = self.story.iter().rev().map(|(_, chapter)| chapter).take_while(|chapter| !resets(chapter));
        let was_adjusted = of_present.into_iter().any(|chapter| matches!(chapter, Chapter::SceneBecomes(..)));
        (least, if was_adjusted { configured + self.plan.bytes() } else { least })
    }

    fn head(&self, now: u64) -> Head {
        Head::walk(&self.story, now)
    }

    fn add(&mut self, now: u64, chapter: Chapter) {
        self.story.push((now, chapter));
    }

    // --- time ---------------------------------------------------------------------------------------------------------

    /// When something will be due, unless something happens before.
    pub(crate) fn dues(&self) -> Vec<u64> {
        let head = self.head(self.seen_to);
        let mut dues = Vec::new();
        let running = self.mode == Mode::Running;
        if let Some(empty_since) = self.empty_since {
            dues.push(empty_since + self.plan.idle);
            if self.grace_applies() {
                dues.push(empty_since + self.plan.grace);
            }
            if running && !self.plan.looping {
                dues.push(self.seen_to + head.total() - head.position);
            }
            return dues;
        }
        if running {
            dues.push(self.next_tick());
            let boundary = if self.scene_owed { self.seen_to } else { self.seen_to + head.scene_end() - head.position };
            dues.push(boundary.max(self.next_scene()));
            if !self.plan.looping {
                dues.push(self.seen_to + head.total() - head.position);
            }
        }
        if self.snapshot_owed {
            dues.push(self.next_snapshot());
        }
        dues
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

    fn grace_applies(&self) -> bool {
        self.plan.when_empty == WhenEmpty::Restart && matches!(self.mode, Mode::Running | Mode::Paused)
    }

    /// Does what fell due by `now`. False when the stream is to be removed.
    #[must_use]
    pub(crate) fn bring(&mut self, now: u64, told: &mut Told) -> bool {
        if let Some(empty_since) = self.empty_since {
            if empty_since + self.plan.idle <= now {
                return false;
            }
            self.end_grace(now, told);
        }
        let before = self.head(self.seen_to);
        let tick = self.next_tick() <= now;
        self.seen_to = now;
        if self.mode == Mode::Running {
            let head = self.head(now);
            if head.ended {
                self.add(now, Chapter::Holds);
                self.becomes(now, Mode::Finished, Cause::Lifecycle, told);
            } else if self.watched() {
                self.scene_owed |= (head.loops, head.scene()) != (before.loops, before.scene());
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
        let ended = self.mode == Mode::Running && self.head(end.max(self.seen_to)).ended;
        if self.grace_applies() && end <= now && !ended {
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
                if self.mode == Mode::Idle {
                    self.plays(now, Cause::Lifecycle, told);
                }
            }
            (true, false) => {
                self.empty_since = Some(now);
                self.snapshot_owed = false;
                if self.mode == Mode::Running && self.plan.when_empty == WhenEmpty::Freeze {
                    self.add(now, Chapter::Holds);
                    self.becomes(now, Mode::Idle, Cause::Lifecycle, told);
                }
            }
            _ => {}
        }
    }

    /// Whether it waits for its first viewer.
    pub(crate) fn is_idle(&self) -> bool {
        self.mode == Mode::Idle
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
        now: u64,
        order: Order,
        plans: &[Plan],
        room: Room,
        told: &mut Told,
    ) -> Result<(), Refusal> {
        let head = self.head(now);
        let (before, _) = self.bytes(now);
        let mode = self.mode;
        let playing = matches!(mode, Mode::Running | Mode::Paused);
        let movable = if playing || mode == Mode::Idle { Ok(()) } else { Err(Refusal::InvalidState(mode)) };
        match order {
            Order::Start(plan) => {
                if plan.is_some_and(|plan| plans[plan as usize] != self.plan) {
                    return Err(Refusal::AlreadyExists);
                }
                if movable.is_err() {
                    self.rewinds(now, told);
                }
            }
            Order::Reset => self.rewinds(now, told),
            Order::Stop => {
                if mode != Mode::Stopped {
                    self.add(now, Chapter::Holds);
                    self.becomes(now, Mode::Stopped, Cause::Command, told);
                }
            }
            Order::Pause => match mode {
                Mode::Running => {
                    self.add(now, Chapter::Holds);
                    self.becomes(now, Mode::Paused, Cause::Command, told);
                }
                Mode::Paused => {}
                _ => return Err(Refusal::InvalidState(mode)),
            },
            Order::Resume => match mode {
                Mode::Paused => self.plays(now, Cause::Command, told),
                Mode::Running => {}
                _ => return Err(Refusal::InvalidState(mode)),
            },
            Order::ForceScene(name) => {
                movable?;
                let is_it = |(name_there, _): &(&str, u64)| *name_there == SCENES[name as usize];
                let scene = head.scenes.iter().position(is_it).ok_or(Refusal::SceneNotFound)?;
                self.moves(now, Chapter::JumpsTo(head.start_of(scene)), told);
            }
            Order::SkipScene => {
                movable?;
                if head.scene() + 1 < head.scenes.len() {
                    self.moves(now, Chapter::JumpsTo(head.scene_end()), told);
                } else if self.plan.looping {
                    self.moves(now, Chapter::BeginsNextPass, told);
                } else {
                    self.add(now, Chapter::Ends);
                    self.add(now, Chapter::Holds);
                    self.becomes(now, Mode::Finished, Cause::Command, told);
                }
            }
            Order::PreviousScene => {
                movable?;
                // One that was shortened to nothing cannot be gone to.
                let before = head.scenes[..head.scene()].iter().rposition(|(_, ms)| *ms > 0);
                self.moves(now, Chapter::JumpsTo(head.start_of(before.unwrap_or(0))), told);
            }
            Order::Seek(_) | Order::SeekFromEnd(_) => {
                movable?;
                let position = self.sought(order, now);
                if position >= head.total() {
                    return Err(Refusal::Invalid);
                }
                self.moves(now, Chapter::JumpsTo(position), told);
            }
            Order::AdjustScene(delta) => {
                movable?;
                let scene = head.scene();
                let played = head.position - head.start_of(scene);
                let wanted = i128::from(head.scenes[scene].1) + i128::from(delta);
                let length = wanted.max(i128::from(played));
                let length = u64::try_from(length).ok().filter(|ms| *ms <= MAX_DURATION_MS).ok_or(Refusal::Invalid)?;
                let mut scenes = head.scenes.clone();
                scenes[scene].1 = length;
                let is_first = head.scenes == self.plan.scenes && scenes != self.plan.scenes;
                room.check(0, if is_first { self.plan.bytes() } else { 0 })?;
                self.moves(now, Chapter::SceneBecomes(scene, length), told);
            }
            Order::Status(status) => {
                let was_streaming = self.status.is_some_and(|status| status.is_streaming);
                self.status = Some(status);
                if status.is_streaming != was_streaming {
                    self.becomes(now, mode, Cause::Command, told);
                }
            }
            Order::Reconfigure(plan) => {
                let plan = &plans[plan as usize];
                let others = before - self.plan.bytes() * if head.scenes == self.plan.scenes { 1 } else { 2 };
                room.check(before - others, plan.bytes())?;
                self.reconfigures(now, &head, plan, told);
            }
            Order::Remove => unreachable!("removing is not the stream's to do"),
        }
        Ok(())
    }

    /// The position that an order to seek asks for.
    pub(crate) fn sought(&self, order: Order, now: u64) -> u64 {
        match order {
            Order::Seek(position) => position,
            Order::SeekFromEnd(ms) => self.head(now).total().saturating_sub(ms),
            _ => 0,
        }
    }

    fn reconfigures(&mut self, now: u64, head: &Head, plan: &Plan, told: &mut Told) {
        let present = self.fact(now, Cause::Command).scene.map(|scene| head.scenes[scene as usize].0);
        let start_of = |place: usize| plan.scenes[..place].iter().map(|(_, ms)| ms).sum::<u64>();
        let position = match plan.scenes.iter().position(|(name, _)| Some(*name) == present) {
            Some(place) => start_of(place) + (head.position - head.start_of(head.scene())).min(plan.scenes[place].1),
            None => head.position.min(start_of(plan.scenes.len())),
        };
        // What is over stays over, at the end of whatever it is the end of.
        let position = if self.mode == Mode::Finished { start_of(plan.scenes.len()) } else { position };
        self.plan = plan.clone();
        self.beat_from = now;
        self.moves(now, Chapter::Takes(plan.clone(), position), told);
        self.end_grace(now, told);
    }

    /// Back to the start: plays if somebody watches, else waits.
    fn rewinds(&mut self, now: u64, told: &mut Told) {
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
            Mode::Running if !self.watched() && self.plan.when_empty == WhenEmpty::Freeze => Mode::Idle,
            mode => mode,
        };
        if mode != Mode::Running {
            self.add(now, Chapter::Holds);
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
