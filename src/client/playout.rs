//! Where a show is at any moment, computed from its configuration and the last thing that was said of it.
//!
//! Between two changes nothing happens to a stream that cannot be foreseen: it plays, comes to the end of a scene,
//! holds, goes on, begins again, ends, or starts at the instant that it waits for. So a reader of [`changes
//! only`](crate::wire::proto::Filter::changes_only), or of a stream with
//! [`no_ticks`](crate::wire::proto::OrchestratorConfig::no_ticks), knows all that one with ticks is told, to the
//! millisecond.
//!
//! It is arithmetic, on the [`timeline`](crate::timeline) that the engine computes with too: no clock, no task, no
//! connection. Whoever asks says what the service's clock says now, which [`Client::service_time`] tells.
//!
//! What only an audience brings about comes with an update like any command: that a stream begins, is frozen, or is
//! idle again.
//!
//! [`Client::service_time`]: super::Client::service_time

use std::sync::Arc;

use crate::{
    timeline::{AtEnd, MAX_DURATION_MS, Playhead, Progress, Scene, SceneLimits, Timeline, TimelineError, advance},
    wire::proto::{self, Mode, OrchestratorConfig, StateUpdate},
};

/// The most scenes that are computed with: far more than a service takes by default, and few enough for sums of the longest
/// scenes and holds.
const MAX_SCENES: usize = 8_000;

/// The configuration that scenes cannot be made of: from a newer service perhaps, or from nobody's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct InvalidConfig(#[from] TimelineError);

/// A stream as one reader knows it.
///
/// ```
/// use orchestrator_service::client::{Playout, proto::{Mode, OrchestratorConfig, SceneConfig, StateUpdate}};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // As `GetConfig` answers: the configuration, and the state of the same instant.
/// let scene = |name: &str, duration_ms| SceneConfig { name: name.into(), duration_ms, ..Default::default() };
/// let config = OrchestratorConfig { scenes: vec![scene("Intro", 3_000), scene("Main", 10_000)], ..Default::default() };
/// let state = StateUpdate {
///     mode: Mode::Running.into(),
///     server_time_ms: 1_790_000_000_000,
///     current_time: 1_000,
///     total_duration: 13_000,
///     scene_index: Some(0),
///     scene_elapsed: 1_000,
///     scene_remaining: 2_000,
///     time_remaining: 12_000,
///     ..Default::default()
/// };
/// let mut playout = Playout::new(&config, &[], &state)?;
///
/// let view = playout.at(1_790_000_000_000 + 2_500);
/// assert_eq!((view.scene, view.scene_elapsed_ms, view.time_remaining_ms), (Some(1), 500, 9_500));
/// // When to draw something else.
/// assert_eq!(playout.next_change(1_790_000_000_000), Some(1_790_000_002_000));
/// // It ends by itself.
/// assert_eq!(playout.at(1_790_000_000_000 + 12_000).mode, Mode::Finished);
///
/// // Whatever is said is taken as it comes; with other scenes, the configuration is to be read again.
/// playout.apply(&StateUpdate { sequence: 1, config_revision: 7, ..state });
/// assert!(playout.needs_config());
/// # Ok(())
/// # }
/// ```
///
/// Clones share the scenes: who follows many readers of one stream keeps them once.
#[derive(Clone, Debug)]
pub struct Playout {
    scenes: Arc<Scenes>,
    /// The number and timeline of a pass with other lengths, from when AdjustScene changed some until it is over: another
    /// of that number, after a Reset, has the configured ones again.
    adjusted: Option<(u64, Arc<Timeline>)>,
    said: Said,
}

/// What a stream shows at one moment: the fields of an update that change with time, under the names of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// What it does.
    pub mode: Mode,
    /// Position on the timeline, ms; it stands still during a hold.
    pub position_ms: u64,
    /// The current scene, its place in the configuration; none where an update has none.
    pub scene: Option<u32>,
    /// How much of it has played, ms.
    pub scene_elapsed_ms: u64,
    /// How much of it is left, ms.
    pub scene_remaining_ms: u64,
    /// To the end of the timeline, ms, holds not counted.
    pub time_remaining_ms: u64,
    /// Whether it is at the end of a scene that holds, waiting for somebody to go on.
    pub holding: bool,
    /// Since when, ms; 0 when it does not.
    pub overtime_ms: u64,
    /// Completed passes.
    pub loop_count: u64,
    /// How long until it starts by itself, ms; none when it does not wait for that.
    pub starts_in_ms: Option<u64>,
}

impl From<&StateUpdate> for View {
    /// What an update shows, at its own moment.
    fn from(update: &StateUpdate) -> Self {
        Self {
            mode: update.mode(),
            position_ms: update.current_time,
            scene: update.scene_index,
            scene_elapsed_ms: update.scene_elapsed,
            scene_remaining_ms: update.scene_remaining,
            time_remaining_ms: update.time_remaining,
            holding: update.holding,
            overtime_ms: update.overtime,
            loop_count: update.loop_count,
            starts_in_ms: update.starts_in,
        }
    }
}

impl Playout {
    /// A stream of which both are known: what `GetConfig` answers.
    ///
    /// `scene_duration_ms` is what it says of the present pass, nothing if that is as configured; `state` is of the same
    /// instant.
    ///
    /// # Errors
    /// When the configuration has scenes that no service takes.
    pub fn new(
        config: &OrchestratorConfig,
        scene_duration_ms: &[u64],
        state: &StateUpdate,
    ) -> Result<Self, InvalidConfig> {
        let scenes = Scenes::new(config, state)?;
        let adjusted = scenes.adjusted(scene_duration_ms)?;
        let said = Said::of(state);
        Ok(Self { scenes: Arc::new(scenes), adjusted: adjusted.map(|pass| (said.view.loop_count, pass)), said })
    }

    /// Takes another configuration, as [`Playout::new`] does. What was said since it was read stays said.
    ///
    /// # Errors
    /// As there; nothing has changed then.
    pub fn configure(
        &mut self,
        config: &OrchestratorConfig,
        scene_duration_ms: &[u64],
        state: &StateUpdate,
    ) -> Result<(), InvalidConfig> {
        let newest = self.said;
        *self = Self::new(config, scene_duration_ms, state)?;
        self.take(newest);
        Ok(())
    }

    /// Takes note of an update, of whatever cause, or of a snapshot. False for one that is older than what is known, which
    /// changes nothing.
    ///
    /// One of the same epoch and sequence is as new: a snapshot repeats the last update's, and says where that has led.
    pub fn apply(&mut self, update: &StateUpdate) -> bool {
        self.take(Said::of(update))
    }

    /// Whether scenes or their lengths have changed, so that the configuration is to be read again: see
    /// [`StateUpdate::config_revision`](proto::StateUpdate::config_revision).
    ///
    /// Until then, [`Playout::at`] is right up to the end of the present scene, and stops there.
    #[must_use]
    pub fn needs_config(&self) -> bool {
        self.said.view.mode != Mode::Unknown && self.pass().is_none()
    }

    /// What it shows when the service's clock says `server_time_ms`; before the last update, what that said.
    #[must_use]
    pub fn at(&self, server_time_ms: u64) -> View {
        let elapsed_ms = server_time_ms.saturating_sub(self.said.server_time_ms);
        let Some(pass) = self.pass() else { return self.said.view.within_scene(elapsed_ms) };
        match self.course(pass, elapsed_ms) {
            Course::Stands(view) => view,
            Course::Plays(pass, head) => View::playing(pass, head),
            Course::Ended { loop_count, position_ms } => {
                View { mode: Mode::Finished, position_ms, loop_count, ..View::default() }
            }
        }
    }

    /// When it next shows something else than time that goes by, on the service's clock, ms: a scene or a hold begins
    /// or ends, it starts or is over. None when nothing happens by itself.
    #[must_use]
    pub fn next_change(&self, server_time_ms: u64) -> Option<u64> {
        let now_ms = server_time_ms.max(self.said.server_time_ms);
        let elapsed_ms = now_ms - self.said.server_time_ms;
        let Some(pass) = self.pass() else {
            let view = self.said.view.within_scene(elapsed_ms);
            let in_ms = Some(view.scene_remaining_ms).filter(|ms| *ms > 0 && view.mode == Mode::Running);
            return now_ms.checked_add(in_ms?);
        };
        let in_ms = match self.course(pass, elapsed_ms) {
            Course::Stands(view) => view.starts_in_ms?,
            Course::Plays(pass, head) => pass.next_boundary(head.pass_ms)? - head.pass_ms,
            Course::Ended { .. } => return None,
        };
        now_ms.checked_add(in_ms)
    }

    fn take(&mut self, said: Said) -> bool {
        let is_news = (said.epoch, said.sequence) >= (self.said.epoch, self.said.sequence);
        if is_news {
            if self.has_left_pass(&said) {
                self.adjusted = None;
            }
            self.said = said;
        }
        is_news
    }

    /// Whether the adjusted pass is over by then, by what is said or computed.
    fn has_left_pass(&self, said: &Said) -> bool {
        let Some((number, _)) = &self.adjusted else { return false };
        if said.view.loop_count != *number || said.revision == self.said.revision {
            return said.view.loop_count != *number;
        }
        // It may have come to its end, and a Reset then have gone back to its number.
        let elapsed_ms = said.server_time_ms.saturating_sub(self.said.server_time_ms);
        let computed = self.pass().map(|pass| self.course(pass, elapsed_ms));
        matches!(computed, Some(Course::Plays(_, head)) if head.loops != *number)
    }

    /// The timeline of the pass that was last told of, if it is known.
    fn pass(&self) -> Option<&Timeline> {
        let (scenes, said) = (&self.scenes, &self.said);
        if (said.epoch, said.config_revision) != (scenes.epoch, scenes.config_revision) {
            return None;
        }
        // What is over begins again with the configured lengths, or is told that they have changed.
        if matches!(said.view.mode, Mode::Finished | Mode::Stopped) {
            return Some(&scenes.base);
        }
        let pass = match &self.adjusted {
            Some((number, pass)) if *number == said.view.loop_count => pass,
            _ => &scenes.base,
        };
        // One that says otherwise is of other scenes, whatever its revision.
        (said.total_ms == pass.total_ms()).then_some(pass)
    }

    /// What has become of what was last said.
    fn course<'a>(&'a self, pass: &'a Timeline, elapsed_ms: u64) -> Course<'a> {
        let view = self.said.view;
        match (view.mode, view.starts_in_ms) {
            (Mode::Running, _) => self.play(pass, view.head(pass), elapsed_ms),
            (Mode::Idle, Some(starts_in_ms)) => match elapsed_ms.checked_sub(starts_in_ms) {
                Some(elapsed_ms) => self.play(pass, Playhead { loops: view.loop_count, pass_ms: 0 }, elapsed_ms),
                None => Course::Stands(View { starts_in_ms: Some(starts_in_ms - elapsed_ms), ..view }),
            },
            _ => Course::Stands(view),
        }
    }

    fn play<'a>(&'a self, pass: &'a Timeline, from: Playhead, elapsed_ms: u64) -> Course<'a> {
        let Scenes { base, looping, .. } = &*self.scenes;
        match advance(from, elapsed_ms, pass, base, *looping) {
            Progress::SamePass(head) => Course::Plays(pass, head),
            Progress::LaterPass(head) => Course::Plays(base, head),
            Progress::Ended => Course::Ended { loop_count: from.loops.saturating_add(1), position_ms: pass.total_ms() },
        }
    }
}

/// What has become of a stream.
enum Course<'a> {
    /// It does not move, except that the time until it starts goes by.
    Stands(View),
    /// It is there, in a pass of that timeline.
    Plays(&'a Timeline, Playhead),
    /// It came to its end.
    Ended { loop_count: u64, position_ms: u64 },
}

/// The part of an update that this needs.
#[derive(Clone, Copy, Debug)]
struct Said {
    epoch: u64,
    sequence: u64,
    revision: u64,
    config_revision: u64,
    server_time_ms: u64,
    total_ms: u64,
    view: View,
}

impl Said {
    fn of(update: &StateUpdate) -> Self {
        Self {
            epoch: update.epoch,
            sequence: update.sequence,
            revision: update.revision,
            config_revision: update.config_revision,
            server_time_ms: update.server_time_ms,
            total_ms: update.total_duration,
            view: View::from(update),
        }
    }
}

impl View {
    /// Where it is in the coordinate in which holds take time.
    fn head(&self, pass: &Timeline) -> Playhead {
        let pass_ms = match self.scene.filter(|scene| *scene < pass.scene_count()) {
            Some(scene) => pass.pass_within(scene, self.scene_elapsed_ms, self.overtime_ms),
            None => pass.pass_at(self.position_ms.min(pass.total_ms())),
        };
        Playhead { loops: self.loop_count, pass_ms }
    }

    fn playing(pass: &Timeline, head: Playhead) -> Self {
        let place = pass.place(head.pass_ms);
        Self {
            mode: Mode::Running,
            position_ms: place.position_ms,
            scene: Some(place.scene),
            scene_elapsed_ms: place.elapsed_ms,
            scene_remaining_ms: place.remaining_ms,
            time_remaining_ms: pass.total_ms().saturating_sub(place.position_ms),
            holding: place.overtime_ms.is_some(),
            overtime_ms: place.overtime_ms.unwrap_or_default(),
            loop_count: head.loops,
            starts_in_ms: None,
        }
    }

    /// The same some time later, as far as that is known without the other scenes.
    fn within_scene(self, elapsed_ms: u64) -> Self {
        let starts_in_ms = self.starts_in_ms.map(|starts_in_ms| starts_in_ms.saturating_sub(elapsed_ms));
        if self.mode != Mode::Running {
            return Self { starts_in_ms, ..self };
        }
        let played_ms = elapsed_ms.min(self.scene_remaining_ms);
        Self {
            position_ms: self.position_ms.saturating_add(played_ms),
            scene_elapsed_ms: self.scene_elapsed_ms.saturating_add(played_ms),
            scene_remaining_ms: self.scene_remaining_ms - played_ms,
            time_remaining_ms: self.time_remaining_ms.saturating_sub(played_ms),
            overtime_ms: if self.holding { self.overtime_ms.saturating_add(elapsed_ms) } else { 0 },
            ..self
        }
    }
}

/// The scenes as they are configured, and since when.
#[derive(Debug)]
struct Scenes {
    epoch: u64,
    config_revision: u64,
    looping: bool,
    base: Timeline,
}

impl Scenes {
    fn new(config: &OrchestratorConfig, state: &StateUpdate) -> Result<Self, InvalidConfig> {
        let scenes: Vec<Scene<'_>> = config.scenes.iter().map(scene).collect();
        let limits = SceneLimits { max_scenes: MAX_SCENES, max_name_bytes: usize::MAX };
        Ok(Self {
            epoch: state.epoch,
            config_revision: state.config_revision,
            looping: config.loop_scenes,
            base: Timeline::new(&scenes, limits)?,
        })
    }

    /// The timeline of a pass with these lengths, if they are others.
    fn adjusted(&self, scene_duration_ms: &[u64]) -> Result<Option<Arc<Timeline>>, InvalidConfig> {
        let mut adjusted = None;
        for (scene, duration_ms) in (0..self.base.scene_count()).zip(scene_duration_ms.iter().copied()) {
            if duration_ms > MAX_DURATION_MS {
                return Err(TimelineError::Duration { place: scene as usize, duration_ms }.into());
            }
            if self.base.duration_ms(scene) != duration_ms {
                adjusted = Some(adjusted.as_ref().unwrap_or(&self.base).with_duration(scene, duration_ms));
            }
        }
        Ok(adjusted.map(Arc::new))
    }
}

/// The hints among its fields make no difference to when it plays.
fn scene(config: &proto::SceneConfig) -> Scene<'_> {
    let at_end = match config.at_end() {
        proto::AtEnd::Next => AtEnd::Next,
        proto::AtEnd::Hold => AtEnd::Hold {
            max_hold_ms: config.max_hold_ms,
            fallback: Some(&*config.fallback_scene).filter(|fallback| !fallback.is_empty()),
        },
    };
    Scene {
        name: &config.name,
        duration_ms: config.duration_ms,
        id: Some(&*config.scene_id).filter(|id| !id.is_empty()),
        at_end,
        ..Scene::default()
    }
}
