//! How often a stream is told of, at the most and at the least.

use std::collections::BTreeMap;

use orchestrator_service::{
    engine::Limits,
    wire::proto::{Cause, Mode},
};

use super::{Checker, Fact};
use crate::{reading::in_short, truth::Truth};

/// Snapshots are published so often at most, ms.
const SNAPSHOT_MS: u64 = 50;

/// What a stream says by itself, it says no more often than it may tick, however short its scenes are.
#[derive(Default)]
pub struct BeatsAreNotTooOften {
    /// The newest, by stream and cause: epoch and revision, and when.
    last: BTreeMap<(usize, i32), ((u64, u64), u64)>,
}

impl Checker for BeatsAreNotTooOften {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        let Fact::Said { update, first_time: true, .. } = fact else { return };
        let least_ms = match update.cause() {
            Cause::Tick | Cause::Scene => Limits::default().min_tick_interval_ms,
            Cause::Snapshot => SNAPSHOT_MS,
            Cause::Command | Cause::Lifecycle => return,
        };
        let tick = truth.tick_of(update);
        // Whoever commands it begins its beat anew.
        let course = (update.epoch, update.revision);
        let last = self.last.insert((update.stream, update.cause), (course, tick));
        if let Some((before_course, before)) = last
            && before_course == course
        {
            // Ticks come on a beat: what was late comes close before the next.
            let late = truth.lateness(truth.streams[update.stream].shard, before);
            let least_ms = if update.cause() == Cause::Tick { least_ms.saturating_sub(late) } else { least_ms };
            assert!(
                tick >= before + least_ms,
                "often: {} ms after the one before: {}",
                tick - before,
                in_short(update)
            );
        }
    }
}

/// Every change is handed over, in order, whatever else waits.
pub struct NoChangeIsOverwritten;

impl Checker for NoChangeIsOverwritten {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        let Fact::Said { update, first_time: true, .. } = fact else { return };
        let Some(before) = truth.streams[update.stream].said.as_ref().filter(|said| said.epoch == update.epoch) else {
            return;
        };
        let grows = super::grows_revision(update.cause());
        assert_eq!(
            update.revision,
            before.revision + u64::from(grows),
            "overwritten: a change is missing before {}\nbefore: {}",
            in_short(update),
            in_short(before)
        );
        let moved = (before.loop_count, before.scene_index) != (update.loop_count, update.scene_index);
        if !grows && moved && update.cause() == Cause::Tick {
            let (from, to) = (truth.tick_of(before), truth.tick_of(update));
            assert!(
                !truth.surely_watched(update.stream, from, to),
                "overwritten: a scene is missing before {}\nbefore: {}",
                in_short(update),
                in_short(before)
            );
        }
    }
}

/// No turn is longer than it may be, but for its last message.
pub struct TurnsAreShort;

impl Checker for TurnsAreShort {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, _truth: &Truth) {
        let Fact::Turned { weights: weights @ [before @ .., _], most } = fact else { return };
        assert!(before.len() < most.messages, "turn: more than {} messages", most.messages);
        let weight: usize = before.iter().sum();
        assert!(
            weight < most.weight.max(1),
            "turn: {weight} before its last message, of {} at most: {weights:?}",
            most.weight
        );
    }
}

/// A stream that is watched and plays is told of in time, however much there is to tell of others.
#[derive(Default)]
pub struct NobodyIsStarved {
    /// The newest update of a stream, by when it was due and when it was handed over.
    last: BTreeMap<usize, (u64, u64)>,
}

impl Checker for NobodyIsStarved {
    fn see(&mut self, now: u64, fact: &Fact<'_>, truth: &Truth) {
        let Fact::Said { shard, update, first_time: true } = fact else { return };
        let Some(most_ms) = truth.longest_gap_ms else { return };
        let tick = truth.tick_of(update);
        let last = self.last.insert(update.stream, (tick, now));
        let before = truth.streams[update.stream].said.as_ref();
        let plays = before.is_some_and(|before| {
            (before.epoch, before.revision, before.mode()) == (update.epoch, update.revision, Mode::Running)
        });
        let Some((then, handed_over)) = last.filter(|_| plays && update.cause() == Cause::Tick) else { return };
        if truth.surely_watched(update.stream, then, tick) && !truth.was_hindered(*shard, handed_over, now) {
            let gap_ms = now - handed_over;
            assert!(gap_ms <= most_ms, "starved: nothing for {gap_ms} ms, {most_ms} at most: {}", in_short(update));
        }
    }
}
