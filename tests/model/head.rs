//! Where a show is, scene by scene: time is played through one scene and one hold after the other. No sums, no shortcut
//! but one for whole passes.

use crate::steps::{Hold, Plan, PlanScene};

/// Where a walk through a story has got to.
#[derive(Clone)]
pub(crate) struct Head {
    pub(crate) loops: u64,
    pub(crate) scene: usize,
    elapsed: u64,
    /// While it holds, for how long it has.
    pub(crate) overtime: Option<u64>,
    /// The scenes in this pass.
    pub(crate) scenes: Vec<PlanScene>,
    pub(crate) ended: bool,
}

/// Something that a walk through a story has to know.
#[derive(Clone)]
pub(crate) enum Chapter {
    Plays,
    StandsStill,
    JumpsTo(u64),
    GoesTo(usize),
    BeginsNextPass,
    Ends,
    IsBackAtTheStart,
    /// The present scene's length from now on.
    SceneBecomes(usize, u64),
    /// Any scene's length from now on; where it is then is to be said.
    LengthIs(usize, u64),
    /// Its plan from now on, and where it is on it.
    Takes(Plan, Landing),
}

/// Where it is on a new plan.
#[derive(Clone, Copy)]
pub(crate) enum Landing {
    Position(u64),
    /// Over, as it was.
    End,
    /// So far into a scene, and so far into its hold if it was holding.
    Scene(usize, u64, Option<u64>),
}

impl Head {
    pub(crate) fn at_start(plan: &Plan) -> Self {
        Self { loops: 0, scene: 0, elapsed: 0, overtime: None, scenes: plan.scenes.clone(), ended: false }.normalized()
    }

    pub(crate) fn walk(story: &[(u64, Chapter)], until: u64) -> Self {
        let [(begun, Chapter::Takes(plan, _)), rest @ ..] = story else { panic!("a story begins with a plan") };
        let (mut at, mut plan) = (*begun, plan);
        let mut head = Self::at_start(plan);
        let mut plays = false;
        for (when, chapter) in rest {
            if plays {
                head.play(when - at, plan);
            }
            at = *when;
            match chapter {
                Chapter::Plays => plays = true,
                Chapter::StandsStill => plays = false,
                Chapter::JumpsTo(position) => head.jump(*position),
                Chapter::GoesTo(scene) => head.go_to(*scene),
                Chapter::BeginsNextPass => head.begin_pass(plan),
                Chapter::Ends => head.end(),
                Chapter::SceneBecomes(scene, ms) => head.lengthen(*scene, *ms),
                Chapter::LengthIs(scene, ms) => head.scenes[*scene].ms = *ms,
                Chapter::IsBackAtTheStart => {
                    head = Self::at_start(plan);
                    plays = false;
                }
                Chapter::Takes(new, landing) => {
                    plan = new;
                    head.scenes.clone_from(&plan.scenes);
                    head.land(*landing);
                }
            }
        }
        if plays {
            head.play(until - at, plan);
        }
        head
    }

    // --- looking ------------------------------------------------------------------------------------------------------

    pub(crate) fn total(&self) -> u64 {
        self.start_of(self.scenes.len())
    }

    pub(crate) fn start_of(&self, scene: usize) -> u64 {
        self.scenes[..scene].iter().map(|scene| scene.ms).sum()
    }

    pub(crate) fn position(&self) -> u64 {
        self.start_of(self.scene) + self.elapsed
    }

    pub(crate) fn elapsed(&self) -> u64 {
        self.elapsed
    }

    /// Whether no time at all has gone into this pass, that of holds included.
    pub(crate) fn is_at_start(&self) -> bool {
        let held = self.scenes[..self.scene].iter().any(|scene| scene.hold.is_some());
        self.position() == 0 && !held && self.overtime.unwrap_or(0) == 0
    }

    /// Whether nothing of this pass is left.
    pub(crate) fn is_at_end(&self) -> bool {
        let scene = &self.scenes[self.scene];
        let over = match scene.hold {
            None => true,
            Some(hold) => hold.max.is_some_and(|max| self.overtime.is_some_and(|overtime| overtime >= max)),
        };
        self.ended || (self.scene + 1 == self.scenes.len() && self.elapsed == scene.ms && over)
    }

    /// The scene that is meant: by its id, or the next one of that name.
    pub(crate) fn find(&self, named: &str, behind: Option<usize>) -> Option<usize> {
        let count = self.scenes.len();
        let first = behind.map_or(0, |scene| scene + 1);
        let by_id = self.scenes.iter().position(|scene| scene.id == Some(named));
        by_id.or_else(|| (first..first + count).map(|n| n % count).find(|scene| self.scenes[*scene].name == named))
    }

    /// Where the present scene is on another plan.
    pub(crate) fn counterpart(&self, plan: &Plan) -> Option<usize> {
        let present = &self.scenes[self.scene];
        let by_id = plan.scenes.iter().position(|scene| scene.id.is_some() && scene.id == present.id);
        by_id.or_else(|| {
            let before = self.scenes[..self.scene].iter().filter(|scene| scene.name == present.name).count();
            let same: Vec<usize> =
                (0..plan.scenes.len()).filter(|scene| plan.scenes[*scene].name == present.name).collect();
            same.get(before).or(same.last()).copied()
        })
    }

    /// How long until the scene, or its hold, is over; none for a hold without an end.
    pub(crate) fn until_boundary(&self) -> Option<u64> {
        match self.overtime {
            Some(overtime) => Some(self.scenes[self.scene].hold?.max? - overtime),
            None => Some(self.scenes[self.scene].ms - self.elapsed),
        }
    }

    /// How long until this pass is over; none if a hold without an end is on the way.
    pub(crate) fn until_end(&self) -> Option<u64> {
        let (mut head, mut ms) = (self.clone(), 0);
        while !head.is_at_end() {
            ms += head.until_boundary()?;
            head.pass_boundary();
        }
        Some(ms)
    }

    // --- moving -------------------------------------------------------------------------------------------------------

    fn play(&mut self, mut ms: u64, plan: &Plan) {
        while !self.ended {
            if self.is_at_end() {
                if !plan.looping {
                    return self.end();
                }
                self.begin_pass(plan);
                // A week of a show of one millisecond in one step.
                if let Some(whole) = self.until_end() {
                    self.loops += ms / whole;
                    ms %= whole;
                }
            }
            match self.until_boundary() {
                Some(left) if left <= ms => {
                    ms -= left;
                    self.pass_boundary();
                }
                _ => {
                    *self.overtime.as_mut().unwrap_or(&mut self.elapsed) += ms;
                    return;
                }
            }
        }
    }

    /// The scene is over, or its hold.
    fn pass_boundary(&mut self) {
        match self.overtime {
            Some(_) => self.leave_hold(),
            None => {
                self.elapsed = self.scenes[self.scene].ms;
                *self = self.clone().normalized();
            }
        }
    }

    /// The hold is over: on to its fallback, or the next scene, or there is none.
    fn leave_hold(&mut self) {
        let hold = self.scenes[self.scene].hold.expect("it holds");
        let fallback = hold.fallback.and_then(|named| {
            let later = |scene: &usize| *scene > self.scene;
            self.find(named, Some(self.scene)).filter(later)
        });
        if self.scene + 1 == self.scenes.len() {
            self.overtime = hold.max;
        } else {
            self.go_to(fallback.unwrap_or(self.scene + 1));
        }
    }

    /// On from what is over already: scenes without a length left, and into a hold.
    fn normalized(mut self) -> Self {
        while self.overtime.is_none() && self.elapsed >= self.scenes[self.scene].ms {
            if self.scenes[self.scene].hold.is_some() {
                self.overtime = Some(0);
            } else if self.scene + 1 < self.scenes.len() {
                (self.scene, self.elapsed) = (self.scene + 1, 0);
            } else {
                break;
            }
        }
        if let (Some(overtime), Some(Hold { max: Some(max), .. })) = (self.overtime, self.scenes[self.scene].hold)
            && overtime >= max
        {
            self.leave_hold();
        }
        self
    }

    fn go_to(&mut self, scene: usize) {
        (self.scene, self.elapsed, self.overtime) = (scene, 0, None);
        *self = self.clone().normalized();
    }

    /// To the first scene that ends behind the position, or the end of the last.
    fn jump(&mut self, position: u64) {
        let last = self.scenes.len() - 1;
        self.scene = (0..last).find(|scene| self.start_of(scene + 1) > position).unwrap_or(last);
        (self.elapsed, self.overtime) = (position - self.start_of(self.scene), None);
        *self = self.clone().normalized();
    }

    fn lengthen(&mut self, scene: usize, ms: u64) {
        self.scenes[scene].ms = ms;
        self.land(Landing::Scene(scene, self.elapsed, self.overtime));
    }

    fn land(&mut self, landing: Landing) {
        self.ended = false;
        match landing {
            Landing::End => self.stand_at_end(),
            Landing::Position(position) => self.jump(position),
            Landing::Scene(scene, elapsed, overtime) => {
                let there = &self.scenes[scene];
                let holds_on = elapsed >= there.ms && there.hold.is_some();
                (self.scene, self.elapsed) = (scene, elapsed.min(there.ms));
                self.overtime = overtime.filter(|_| holds_on);
                *self = self.clone().normalized();
            }
        }
    }

    fn begin_pass(&mut self, plan: &Plan) {
        *self = Self { loops: self.loops + 1, ..Self::at_start(plan) };
    }

    fn end(&mut self) {
        self.loops += 1;
        self.stand_at_end();
    }

    fn stand_at_end(&mut self) {
        self.scene = self.scenes.len() - 1;
        (self.elapsed, self.overtime) = (self.scenes[self.scene].ms, None);
        self.ended = true;
    }
}
