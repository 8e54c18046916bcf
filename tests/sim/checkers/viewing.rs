//! What a viewer sees of one stream, one update after the other.

use std::collections::BTreeMap;

use orchestrator_service::wire::proto::{Cause, Mode};

use super::{Checker, Fact, assert_same_course, grows_revision, is_change, played_on};
use crate::{net::Update, reading::in_short, truth::Truth};

/// Scenes are told so far apart at the least, ms.
const MIN_SCENE_MS: u64 = 10;

/// Two updates with the same epoch and sequence are the same to the byte.
#[derive(Default)]
pub struct RepeatsAreIdentical {
    hashes: BTreeMap<(usize, u64, u64), u64>,
}

impl Checker for RepeatsAreIdentical {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, _truth: &Truth) {
        if let Fact::Said { update, first_time, .. } = fact {
            let key = (update.stream, update.epoch, update.sequence);
            let first = *self.hashes.entry(key).or_insert(update.bytes_hash);
            assert_eq!(first, update.bytes_hash, "identity: said otherwise before: {}", in_short(update));
            if *first_time && update.cause() == Cause::Tick && self.hashes.len() > 100_000 {
                self.hashes.retain(|_, _| false);
            }
        }
    }
}

/// Sequence, revision and time grow; the revision exactly with commands and the lifecycle.
pub struct NothingGoesBack;

impl Checker for NothingGoesBack {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, _truth: &Truth) {
        let Fact::Seen { before: Some(before), update, .. } = fact else { return };
        if before.epoch != update.epoch {
            return;
        }
        let pair = || format!("{}\nbefore: {}", in_short(update), in_short(before));
        assert!(update.server_time_ms >= before.server_time_ms, "order: time went back: {}", pair());
        assert!(update.revision >= before.revision, "order: the revision went back: {}", pair());
        let grows = grows_revision(update.cause());
        assert!(!grows || update.revision > before.revision, "order: the revision did not grow: {}", pair());
        assert_ne!(before.mode(), Mode::Unknown, "order: said after the end of its epoch: {}", pair());
    }
}

/// While it runs, a stream moves as its clock does; otherwise it stands still; and what is carried over from one state
/// into the next is carried over exactly.
pub struct PositionFollowsTheClock;

impl Checker for PositionFollowsTheClock {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        let Fact::Seen { before: Some(before), update, .. } = fact else { return };
        if before.epoch != update.epoch {
            return;
        }
        if before.revision == update.revision {
            assert_same_course(before, update, truth);
        } else if before.revision + 1 == update.revision && grows_revision(update.cause()) {
            check_transition(before, update, truth);
        }
    }
}

fn check_transition(before: &Update, update: &Update, truth: &Truth) {
    let pair = || format!("{}\nbefore: {}", in_short(update), in_short(before));
    let here = (update.loop_count, update.current_time);
    let stood = (before.loop_count, before.current_time);
    let ms = update.server_time_ms - before.server_time_ms;
    let played = played_on(before, ms, update.total_duration, truth);
    let is_played = played.is_none_or(|played| here == played);
    match (before.mode(), update.mode(), update.cause()) {
        (Mode::Running, Mode::Paused | Mode::Stopped, _) => {
            assert!(is_played, "position: it stops where it is, {played:?}: {}", pair());
        }
        (Mode::Paused, Mode::Running, _) => {
            // Unless it was put on a schedule.
            let scheduled = truth.has_holds && update.config_revision == update.revision;
            let froze = scheduled || here == stood || update.current_time == 0;
            assert!(froze, "position: a pause freezes: {}", pair());
        }
        (Mode::Idle, Mode::Running, Cause::Lifecycle) => {
            let began = before.starts_in.is_some() || here == stood || update.current_time == 0;
            assert!(began, "position: it begins where it waits: {}", pair());
        }
        (Mode::Running, Mode::Idle, Cause::Lifecycle) => {
            assert!(is_played || here == (0, 0), "position: frozen where it is, or at 0: {}", pair());
        }
        (Mode::Running, Mode::Finished, Cause::Lifecycle) if truth.has_holds => {
            if let Some(reader) = truth.reader_from(before) {
                let shard = truth.streams[update.stream].shard;
                let soonest = update.server_time_ms - truth.lateness(shard, truth.tick_of(update)) - 1;
                let ended = [soonest, update.server_time_ms].map(|ms| reader.at(ms).mode == Mode::Finished);
                assert_eq!(ended, [false, true], "position: it ends in time: {}", pair());
            }
        }
        (Mode::Running, Mode::Finished, Cause::Lifecycle) => {
            let shard = truth.streams[update.stream].shard;
            let late = (before.current_time + ms).checked_sub(before.total_duration);
            let allowed = truth.lateness(shard, truth.tick_of(update));
            assert!(late.is_some_and(|late| late <= allowed), "position: the end, {late:?} late: {}", pair());
            assert_eq!(update.loop_count, before.loop_count + 1, "position: the last pass counts: {}", pair());
        }
        _ => {}
    }
}

/// A scene is told when it begins, unless the shard is known to have woken late or another has just begun; and none
/// begins untold while somebody watches.
pub struct ScenesBeginAtTheirBoundary;

impl Checker for ScenesBeginAtTheirBoundary {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        if let Fact::Said { update, first_time: true, .. } = fact
            && update.cause() == Cause::Scene
        {
            let tick = truth.tick_of(update);
            let late = truth.lateness(truth.streams[update.stream].shard, tick);
            // Where the one before was told just now, this one has to wait.
            let waited = truth.streams[update.stream].scene_at + MIN_SCENE_MS + late >= tick;
            let late = if waited { late.max(MIN_SCENE_MS + late) } else { late };
            let since_ms = if update.holding { update.overtime } else { update.scene_elapsed };
            assert!(since_ms <= late, "boundary: {late} ms late at most, {since_ms} are: {}", in_short(update));
            assert_eq!(update.mode(), Mode::Running, "boundary: {}", in_short(update));
        }
        let Fact::Seen { before, covered, update, .. } = fact else { return };
        let Some(before) =
            before.filter(|before| *covered && before.epoch == update.epoch && before.revision == update.revision)
        else {
            return;
        };
        let place = |update: &Update| (update.loop_count, update.scene_index, update.holding);
        let moved = place(before) != place(update);
        // Where it has to wait to be told, somebody who joins sees it before.
        let since_ms = if update.holding { update.overtime } else { update.scene_elapsed };
        let waits = update.cause() == Cause::Snapshot && since_ms < MIN_SCENE_MS;
        if moved && !waits && !is_change(update.cause()) {
            let (from, to) = (truth.tick_of(before), truth.tick_of(update));
            assert!(
                !truth.surely_watched(update.stream, from, to),
                "boundary: a scene began untold: {}\nbefore: {}",
                in_short(update),
                in_short(before)
            );
        }
    }
}

/// Whoever was connected throughout gets every change.
pub struct NoChangeIsMissing;

impl Checker for NoChangeIsMissing {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        let Fact::Seen { before: Some(before), covered: true, update, .. } = fact else { return };
        let pair = || format!("{}\nbefore: {}", in_short(update), in_short(before));
        if before.epoch == update.epoch {
            let expected = before.revision + u64::from(grows_revision(update.cause()));
            assert_eq!(update.revision, expected, "loss: a change is missing before {}", pair());
            return;
        }
        assert_eq!(update.revision, 1, "loss: the first update of an epoch is missing before {}", pair());
        let shard = truth.streams[update.stream].shard;
        let panicked = truth.panicked_at(shard).is_some_and(|at| at >= truth.tick_of(before));
        assert!(before.mode() == Mode::Unknown || panicked, "loss: the end of an epoch is missing before {}", pair());
    }
}
