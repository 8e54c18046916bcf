//! What the service remembers of streams and of who watches them.

use std::collections::{BTreeMap, BTreeSet};

use orchestrator_service::{
    engine::MAX_HISTORY_OF_STREAM,
    wire::proto::{Cause, Code, HistoryAction, HistoryEntry, StateUpdate},
};

use super::{Checker, Fact, grows_revision};
use crate::truth::Truth;

/// A stream's history is its commands and changes of mode, as they were said, in one row that ends with the newest; and
/// who is named in it did just that.
#[derive(Default)]
pub struct HistoryTellsWhatHappened {
    /// By stream: its epoch, and what was said of it by revision.
    said: BTreeMap<usize, (u64, BTreeMap<u64, Said>)>,
}

/// What an update said that a history must say as well.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    at_ms: u64,
    mode: i32,
    position_ms: u64,
    loop_count: u64,
    scene_index: Option<u32>,
    by_command: bool,
}

impl Said {
    fn by(update: &StateUpdate) -> Self {
        Self {
            at_ms: update.server_time_ms,
            mode: update.mode,
            position_ms: update.current_time,
            loop_count: update.loop_count,
            scene_index: update.scene_index,
            by_command: update.cause() == Cause::Command,
        }
    }

    fn in_history(entry: &HistoryEntry) -> Self {
        Self {
            at_ms: entry.at_ms,
            mode: entry.mode,
            position_ms: entry.position_ms,
            loop_count: entry.loop_count,
            scene_index: entry.scene_index,
            by_command: entry.action() != HistoryAction::Lifecycle,
        }
    }
}

impl Checker for HistoryTellsWhatHappened {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        match fact {
            Fact::Said { update, .. } if grows_revision(update.cause()) => {
                let (epoch, said) = self.said.entry(update.stream).or_default();
                if *epoch < update.epoch {
                    (*epoch, *said) = (update.epoch, BTreeMap::new());
                }
                if *epoch == update.epoch {
                    said.insert(update.revision, Said::by(update));
                }
            }
            Fact::QuietHistory { stream, answer, state } if answer.code() == Code::Ok => {
                let Some((epoch, said)) = self.said.get(stream) else { return };
                let history = &answer.history;
                let revisions: Vec<u64> = history.iter().map(|entry| entry.revision).collect();
                let in_a_row = revisions.windows(2).all(|pair| pair[0] == pair[1] + 1);
                assert!(in_a_row, "history: of stream {stream}: {revisions:?}");
                assert!(history.len() <= MAX_HISTORY_OF_STREAM, "history: {} entries", history.len());
                if let Some(state) = state.filter(|state| state.epoch == *epoch) {
                    let newest = revisions.first().copied();
                    assert!(
                        newest >= Some(state.revision),
                        "history: of stream {stream}: {newest:?}, behind {state:?}"
                    );
                }
                for entry in history {
                    check_entry(*stream, entry, said.get(&entry.revision), truth);
                }
            }
            _ => {}
        }
    }
}

fn check_entry(stream: usize, entry: &HistoryEntry, said: Option<&Said>, truth: &Truth) {
    // What the broker refused may have been given up for what was newer.
    if let Some(said) = said {
        assert_eq!(Said::in_history(entry), *said, "history: of stream {stream}, what was said behind: {entry:?}");
    }
    match entry.issued_by.strip_prefix("command ").map(|number| number.parse::<usize>()) {
        Some(number) => {
            let commanded = number.ok().and_then(|number| truth.commands.get(number));
            assert_eq!(commanded, Some(&(stream, entry.action())), "history: who did it: {entry:?}");
        }
        None => assert_eq!(entry.issued_by, "", "history: nobody of that name: {entry:?}"),
    }
}

/// Once quiet, the subscribers that are listed are the world's.
pub struct SubscribersAreListed;

impl Checker for SubscribersAreListed {
    fn see(&mut self, now: u64, fact: &Fact<'_>, truth: &Truth) {
        let Fact::QuietSubscribers { stream, answer, viewers } = fact else { return };
        if answer.code() != Code::Ok {
            return;
        }
        let all: BTreeSet<(&str, u64)> = viewers.iter().map(|(client, session)| (client.as_str(), *session)).collect();
        let listed: Vec<(&str, u64)> =
            answer.subscriber.iter().map(|one| (one.client_id.as_str(), one.session)).collect();
        let distinct: BTreeSet<(&str, u64)> = listed.iter().copied().collect();
        assert_eq!(distinct.len(), listed.len(), "subscribers: of stream {stream}, somebody twice: {listed:?}");
        assert!(distinct.is_subset(&all), "subscribers: of stream {stream}, who has left: {distinct:?} of {all:?}");
        if answer.cursor.is_empty() {
            assert_eq!(distinct, all, "subscribers: of stream {stream}");
        }
        for one in &answer.subscriber {
            let silent_ms = (now + truth.skew_ms).saturating_sub(one.last_heard_ms);
            assert!(!one.stale && silent_ms < truth.stale_after_ms + 5_000, "subscribers: {one:?}");
        }
    }
}
