//! Whoever computes knows as much as who is told all the time.

use std::{collections::BTreeMap, rc::Rc};

use orchestrator_service::{
    client::{HighWaterMark, Playout, View},
    wire::proto::{Cause, Mode},
};

use super::{Checker, Fact};
use crate::{
    net::{Answer, AnswerBody, Update, What},
    reading::in_short,
    truth::Truth,
};

/// A reader of commands and lifecycle alone, that asks for the scenes when they have changed, has computed to the
/// millisecond what ticks, scenes, snapshots and ends say, by the time that they say it.
#[derive(Default)]
pub struct TicksSayNothingNew {
    readers: BTreeMap<usize, Reader>,
    /// The newest change of each stream, for a reader that is told the scenes later.
    changes: BTreeMap<usize, Rc<Update>>,
}

struct Reader {
    playout: Playout,
    /// What it knows of.
    mark: HighWaterMark,
}

impl Checker for TicksSayNothingNew {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        match fact {
            Fact::Said { update, first_time: true, .. } => {
                let is_told = matches!(update.cause(), Cause::Command | Cause::Lifecycle);
                if is_told {
                    self.changes.insert(update.stream, Rc::clone(update));
                }
                let Some(Reader { playout, mark }) = self.readers.get_mut(&update.stream) else { return };
                // With the scenes it may have been told of something newer.
                if *mark >= HighWaterMark::of(update) {
                    return;
                }
                let by_itself = match update.cause() {
                    Cause::Tick | Cause::Scene | Cause::Snapshot => true,
                    // What waits at its end for its first viewer is over when there is one.
                    Cause::Lifecycle => {
                        let said = playout.at(0);
                        update.mode() == Mode::Finished && (said.mode != Mode::Idle || said.starts_in_ms.is_some())
                    }
                    Cause::Command => false,
                };
                if by_itself && !playout.needs_config() {
                    let (told, computed) = (View::from(&update.state), playout.at(update.server_time_ms));
                    assert_eq!(computed, told, "computed, and told: {}\nthe reader: {playout:?}", in_short(update));
                }
                if is_told {
                    assert!(playout.apply(update), "computed: {} is news", in_short(update));
                    mark.admit(update);
                }
            }
            Fact::Answered { answer, .. } => self.learn(answer, truth),
            _ => {}
        }
    }
}

impl TicksSayNothingNew {
    fn learn(&mut self, answer: &Answer, truth: &Truth) {
        let (What::Config { stream }, AnswerBody::Query(reply)) =
            (&truth.requests[answer.request].sent.what, &answer.body)
        else {
            return;
        };
        let (Some(config), Some(state)) = (&reply.config, reply.state.first()) else { return };
        let durations = &reply.scene_duration_ms;
        let told = HighWaterMark::of(state);
        match self.readers.get_mut(stream) {
            Some(Reader { playout, mark }) => {
                playout.configure(config, durations, state).expect("scenes that a service has");
                mark.raise(told);
            }
            None => {
                let playout = Playout::new(config, durations, state).expect("scenes that a service has");
                let reader = self.readers.entry(*stream).or_insert(Reader { playout, mark: told });
                if let Some(change) = self.changes.get(stream).filter(|change| reader.mark.admit(change)) {
                    assert!(reader.playout.apply(change), "computed: {} is news", in_short(change));
                }
            }
        }
    }
}

/// A show that waits for its instant starts then, unless its shard is known to have woken late.
pub struct ShowsStartAtTheirInstant;

impl Checker for ShowsStartAtTheirInstant {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        let Fact::Said { shard, update, first_time: true } = fact else { return };
        let before = truth.streams[update.stream].said.as_ref();
        let Some(before) = before.filter(|before| {
            before.epoch == update.epoch && before.revision + 1 == update.revision && before.mode() == Mode::Idle
        }) else {
            return;
        };
        let Some(starts_in) = before.starts_in.filter(|_| update.cause() == Cause::Lifecycle) else { return };
        let due = truth.tick_of(before) + starts_in;
        let (tick, late) = (truth.tick_of(update), truth.lateness(*shard, truth.tick_of(update)));
        match update.mode() {
            Mode::Running => {
                assert!((due..=due + late).contains(&tick), "start: due at {due}, {late} late: {}", in_short(update));
            }
            // It may be so short, or its shard so late, that its end is all there is to tell.
            Mode::Finished => assert!(due <= tick, "start: due at {due}: {}", in_short(update)),
            Mode::Unknown => {}
            mode => panic!("start: {mode:?} by itself, due at {due}: {}", in_short(update)),
        }
    }
}
