//! Who watches, and what for.

use std::collections::BTreeSet;

use orchestrator_service::wire::proto::{Cause, Code, Mode};

use super::{Checker, Fact, played_on};
use crate::{
    reading::in_short,
    truth::{Sub, Truth},
};

/// Ticks, scenes and snapshots are for somebody who watches.
pub struct NothingPlaysUnwatched;

impl Checker for NothingPlaysUnwatched {
    fn see(&mut self, now: u64, fact: &Fact<'_>, truth: &Truth) {
        let Fact::Said { shard, update, first_time: true } = fact else { return };
        let tick = truth.tick_of(update);
        // What had to wait is from a time that is not known any more.
        if tick != now || !matches!(update.cause(), Cause::Tick | Cause::Scene | Cause::Snapshot) {
            return;
        }
        let late = truth.lateness(*shard, tick);
        let watched = truth.may_be_watched(update.stream, tick.saturating_sub(late), tick);
        let all = || names(truth.streams[update.stream].subs.iter().map(|sub| (*sub, &truth.subs[*sub])));
        assert!(watched, "unwatched, {late} ms late: {}{}", in_short(update), all());
    }
}

/// Under RESTART the clock runs on for the grace after the last viewer left, so that a reloaded page carries on.
pub struct GraceIsGranted;

impl Checker for GraceIsGranted {
    fn see(&mut self, now: u64, fact: &Fact<'_>, truth: &Truth) {
        let Fact::Said { update, first_time: true, .. } = fact else { return };
        let stream = &truth.streams[update.stream];
        let Some(before) = stream.said.as_ref().filter(|before| before.epoch == update.epoch) else { return };
        let restarts = matches!(before.mode(), Mode::Running | Mode::Paused)
            && (update.mode(), update.cause(), update.current_time) == (Mode::Idle, Cause::Lifecycle, 0);
        let frozen_at_0 = before.mode() == Mode::Running && {
            let ms = update.server_time_ms - before.server_time_ms;
            let played = played_on(before, ms, update.total_duration, truth);
            played.is_none_or(|played| played == (update.loop_count, 0))
        };
        if restarts && !frozen_at_0 && truth.tick_of(update) == now {
            let (left, grace_ms) = (stream.surely_until, truth.grace_ms);
            assert!(now >= left + grace_ms, "grace: {grace_ms} ms after {left}: {}", in_short(update));
        }
    }
}

/// Nobody who lives is removed, nobody who is dead stays.
pub struct CountsAreWithinBounds;

impl Checker for CountsAreWithinBounds {
    fn see(&mut self, now: u64, fact: &Fact<'_>, truth: &Truth) {
        let Fact::Sampled { shard, counts, all_known } = fact else { return };
        let most = truth.maybe_there(*shard, now).count() as u64;
        let all = || names(truth.maybe_there(*shard, now));
        assert!(counts.total <= most, "dead: shard {shard} counts {counts:?}, at most these can be there: {}", all());
        if *all_known {
            let least = truth.surely_active(*shard, now).count() as u64;
            let all = || names(truth.surely_active(*shard, now));
            assert!(
                counts.active >= least,
                "live: shard {shard} counts {counts:?}, at least {least} must be active: {}",
                all()
            );
        }
    }
}

fn names<'a>(subs: impl Iterator<Item = (usize, &'a Sub)>) -> String {
    subs.map(|(number, sub)| format!("\n{number} {sub}")).collect()
}

/// Once quiet, a stream's counts are the world's.
pub struct CountsAreExactWhenQuiet;

impl Checker for CountsAreExactWhenQuiet {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, _truth: &Truth) {
        let Fact::QuietCounts { stream, answer, viewers } = fact else { return };
        if answer.code() == Code::Unavailable {
            return;
        }
        let stats = answer.stats.unwrap_or_default();
        let subscribers: BTreeSet<_> = viewers.iter().collect();
        let clients: BTreeSet<_> = viewers.iter().map(|(client, _)| client).collect();
        let (subscribers, clients) = (subscribers.len() as u64, clients.len() as u64);
        assert_eq!(
            (stats.total, stats.active, stats.stale, stats.unique_clients),
            (subscribers, subscribers, 0, clients),
            "counts: stream {stream}, {:?}: total, active, stale, unique",
            answer.code()
        );
    }
}
