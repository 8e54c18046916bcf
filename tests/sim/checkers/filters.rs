//! Who follows a filter is told what all are told, as far as it passes.

use std::collections::BTreeMap;

use orchestrator_service::wire::proto::{Cause, Code, Mode, StateUpdate};

use super::{Checker, Fact, grows_revision, is_change};
use crate::{
    client::viewer::filters,
    net::{AnswerBody, Update, What},
    reading::in_short,
    truth::Truth,
};

/// How long it may take until who follows a stream that was removed finds out that it is there again, ms.
const FOUND_OUT_MS: u64 = 5_000;

/// What is said for a filter is, to the byte, what is said for all; and it passes the filter.
#[derive(Default)]
pub struct FiltersSayWhatIsSaid {
    hashes: BTreeMap<(usize, u64, u64), u64>,
    /// Which filter has which subject, as far as an answer has told.
    subjects: BTreeMap<String, usize>,
    /// The newest update on each subject, or answer of it, and whether it was in a scene of the filter.
    newest: BTreeMap<String, (u64, u64, bool)>,
}

impl Checker for FiltersSayWhatIsSaid {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        match fact {
            Fact::Said { update, .. } => {
                if self.hashes.len() > 100_000 {
                    self.hashes.clear();
                }
                self.hashes.insert((update.stream, update.epoch, update.sequence), update.bytes_hash);
            }
            Fact::Answered { answer, .. } => {
                if let (What::Follow { filter, .. }, AnswerBody::Reply(reply)) =
                    (&truth.requests[answer.request].sent.what, &answer.body)
                    && reply.code() == Code::Ok
                {
                    let known = self.subjects.insert(reply.updates_subject.clone(), *filter);
                    assert!(known.is_none_or(|known| known == *filter), "filters: two share a subject: {reply:?}");
                    assert_eq!(reply.lease_ms, truth.stale_after_ms, "filters: {reply:?}");
                    if let Some(state) = &reply.state {
                        self.told(&reply.updates_subject, *filter, state);
                    }
                }
            }
            Fact::SaidFiltered { subject, update } => self.said(subject, update),
            _ => {}
        }
    }
}

impl FiltersSayWhatIsSaid {
    /// Who asks to follow is told a state: where that is in a scene of the filter, whoever follows is told what leaves it.
    fn told(&mut self, subject: &str, filter: usize, state: &StateUpdate) {
        let newest = self.newest.get(subject).copied();
        let inside = asks_for(filter, state) || newest.is_some_and(|(epoch, _, inside)| epoch == state.epoch && inside);
        if newest.is_none_or(|(epoch, sequence, _)| (epoch, sequence) <= (state.epoch, state.sequence)) {
            self.newest.insert(subject.to_owned(), (state.epoch, state.sequence, inside));
        }
    }

    fn said(&mut self, subject: &str, update: &Update) {
        let key = (update.stream, update.epoch, update.sequence);
        if let Some(hash) = self.hashes.get(&key) {
            assert_eq!(*hash, update.bytes_hash, "filters: said otherwise to all: {}", in_short(update));
        }
        let Some(filter) = self.subjects.get(subject) else { return };
        let asked = &filters()[*filter];
        let inside = asks_for(*filter, update);
        let newest = self.newest.get(subject).copied();
        if newest.is_none_or(|(epoch, sequence, _)| (epoch, sequence) < (update.epoch, update.sequence)) {
            let left = newest.is_some_and(|(_, _, inside)| inside);
            let last = update.mode() == Mode::Unknown;
            // Somebody may have been answered a state within the scene.
            let fine = is_change(update.cause()) || inside && !asked.changes_only;
            assert!(fine || last || left, "filters: does not pass {asked:?}: {}", in_short(update));
            self.newest.insert(subject.to_owned(), (update.epoch, update.sequence, inside));
        }
    }
}

/// Whether it passes as far as its scene goes.
fn asks_for(filter: usize, update: &StateUpdate) -> bool {
    let asked = &filters()[filter].scene;
    asked.is_empty() || update.current_scene.as_ref().is_some_and(|scene| asked.contains(scene))
}

/// Whoever follows a filter and was connected throughout gets every change that passes, or a later state in its place.
pub struct WhoFollowsMissesNoChange;

impl Checker for WhoFollowsMissesNoChange {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        let Fact::SeenFiltered { filter, before, covered, update } = fact else { return };
        let Some(before) = before else { return };
        let pair = || format!("{}\nbefore: {}", in_short(update), in_short(before));
        assert!((before.epoch, before.sequence) < (update.epoch, update.sequence), "filters: order: {}", pair());
        if update.cause() == Cause::Snapshot {
            let place = |update: &Update| (update.loop_count, update.scene_index, update.holding);
            let told = |update: &Update| (update.epoch, update.revision, place(update));
            let is_news = told(before) != told(update) || before.mode() != update.mode();
            let passes = asks_for(*filter, update) && !filters()[*filter].changes_only;
            assert!(is_news || passes, "filters: it was told this: {}", pair());
            return;
        }
        let (from, to) = (truth.tick_of(before), truth.tick_of(update));
        let all_scenes = filters()[*filter].scene.is_empty();
        if *covered && all_scenes && before.epoch == update.epoch && truth.is_followed(update.stream, *filter, from, to)
        {
            let expected = before.revision + u64::from(grows_revision(update.cause()));
            assert_eq!(update.revision, expected, "filters: a change is missing before {}", pair());
        }
    }
}

/// When nothing goes wrong any more, who follows a filter has seen the last change that passes it.
pub struct FollowersConverge;

impl Checker for FollowersConverge {
    fn see(&mut self, now: u64, fact: &Fact<'_>, _truth: &Truth) {
        let Fact::QuietFiltered { gateway, stream, filter, answer, view } = fact else { return };
        let (Some(state), Some(view)) = (answer.state.first(), view) else { return };
        // That a stream is there again is found out by asking; an epoch is the microsecond in which it began.
        if view.epoch != state.epoch && state.epoch / 1_000 + FOUND_OUT_MS > now {
            return;
        }
        let known = (view.epoch, view.revision) >= (state.epoch, state.revision);
        let outside = !filters()[*filter].scene.is_empty() && !asks_for(*filter, state);
        // Or, in an epoch before, the one of that id since then was in none of them yet.
        let left = !asks_for(*filter, view);
        assert!(
            known || outside && left,
            "filters: gateway {gateway} sees of stream {stream} {}, the service has {state:?}",
            in_short(view)
        );
    }
}
