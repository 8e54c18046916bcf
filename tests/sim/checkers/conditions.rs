//! What a command expects.

use std::collections::{BTreeMap, VecDeque};

use orchestrator_service::wire::proto::{Cause, Code, Mode, OrchestratorCommand, StateUpdate, orchestrator_command};
use prost::Message as _;

use super::{Checker, Fact};
use crate::{
    net::{AnswerBody, Update, What},
    truth::{Handled, Truth},
};

/// So many commands of a stream are kept until they are answered.
const KEPT: usize = 64;

/// A command that expects a scene or an epoch moves a stream that is in it, and no other; and is refused because of them
/// only where they are others. So of two who skip the same scene one does.
#[derive(Default)]
pub struct WhatIsExpectedIsSo {
    /// Each stream's newest commands.
    commanded: BTreeMap<usize, VecDeque<Commanded>>,
    /// When each request id of a stream was first handled: repeats are answered what was so then.
    first: BTreeMap<(usize, usize), u64>,
}

/// What a command has changed.
struct Commanded {
    epoch: u64,
    revision: u64,
    tick: u64,
    /// In which scene the stream was before, if that is known: the scenes may be others when the command is answered.
    before: Option<Scene>,
}

/// A scene's id and name; both empty where there is none.
#[derive(Debug)]
struct Scene(String, String);

impl Scene {
    fn is_named(&self, expected: &str) -> bool {
        let Self(id, name) = self;
        name == expected || !expected.is_empty() && id == expected
    }
}

impl Checker for WhatIsExpectedIsSo {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        match fact {
            Fact::Said { update, first_time: true, .. } if update.cause() == Cause::Command => {
                self.note(update, truth);
            }
            Fact::Handled { sent, handled, .. } => {
                if let What::Command { stream, request_id: Some(id) } = sent.what {
                    self.first.entry((stream, id)).or_insert(handled.serial);
                }
            }
            Fact::Answered { answer, handled: Some(handled), by: Some(by) } => {
                let sent = &truth.requests[answer.request].sent;
                let (What::Command { stream, request_id }, AnswerBody::Reply(reply)) = (&sent.what, &answer.body)
                else {
                    return;
                };
                let first = request_id.and_then(|id| self.first.get(&(*stream, id)));
                let is_repeat = first.is_some_and(|first| *first != handled.serial);
                if is_repeat || !truth.is_up_to_date(*stream, *by) {
                    return;
                }
                let asked = OrchestratorCommand::decode(sent.payload.clone()).expect("a command");
                match (reply.code(), &reply.state) {
                    (Code::Ok, Some(state)) => self.check_accepted(*stream, &asked, state, *handled),
                    (Code::Conflict, _) => check_refused(*stream, &asked, &reply.message, *handled, truth),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

impl WhatIsExpectedIsSo {
    fn note(&mut self, update: &Update, truth: &Truth) {
        let before = truth.streams[update.stream].said.as_ref();
        let before = before.filter(|before| (before.epoch, before.revision + 1) == (update.epoch, update.revision));
        let before = before.and_then(|before| scene_at(before, update.server_time_ms, truth));
        let kept = self.commanded.entry(update.stream).or_default();
        let (epoch, revision, tick) = (update.epoch, update.revision, truth.tick_of(update));
        kept.push_back(Commanded { epoch, revision, tick, before });
        if kept.len() > KEPT {
            kept.pop_front();
        }
    }

    fn check_accepted(&self, stream: usize, asked: &OrchestratorCommand, state: &StateUpdate, handled: Handled) {
        if let Some(epoch) = asked.expected_epoch {
            assert_eq!(epoch, state.epoch, "conditions: of stream {stream}: {state:?}");
        }
        let Some(expected) = asked.expected_scene.as_deref().filter(|_| moves(asked)) else { return };
        let course = (state.epoch, state.revision, handled.tick);
        let commanded = self.commanded.get(&stream).into_iter().flatten();
        let mut commanded = commanded.filter(|one| (one.epoch, one.revision, one.tick) == course);
        if let Some(Commanded { before: Some(before), .. }) = commanded.next() {
            assert!(before.is_named(expected), "conditions: {expected:?} was expected, it was {before:?}: {state:?}");
        }
    }
}

/// Whether it makes an update of its own whenever it is carried out.
fn moves(asked: &OrchestratorCommand) -> bool {
    use orchestrator_command::Command;
    matches!(
        asked.command,
        Some(Command::SkipScene(_) | Command::PreviousScene(_) | Command::ForceScene(_) | Command::Seek(_))
    )
}

/// What was said at the same moment may have been said of a command behind it, and a stream that was removed, or lost in a
/// panic, has neither epoch nor scene.
fn check_refused(stream: usize, asked: &OrchestratorCommand, message: &str, handled: Handled, truth: &Truth) {
    let known = &truth.streams[stream];
    let is_there = |said: &Update| {
        let panicked = truth.panicked_at(known.shard);
        said.mode() != Mode::Unknown && panicked.is_none_or(|panicked| panicked < truth.tick_of(said))
    };
    let said = known.said.as_ref().filter(|said| is_there(said) && truth.tick_of(said) < handled.tick);
    let Some(said) = said else { return };
    if let Some(epoch) = asked.expected_epoch.filter(|_| message.starts_with("expected_epoch")) {
        assert_ne!(epoch, said.epoch, "conditions: {message}");
    }
    if let Some(scene) = asked.expected_scene.as_deref().filter(|_| message.starts_with("expected_scene"))
        && let Some(present) = scene_at(said, handled.tick + truth.skew_ms, truth)
    {
        assert!(!present.is_named(scene), "conditions: {message}, it was {present:?}");
    }
}

/// In which scene a stream is that was in that state, if nobody has commanded it since.
fn scene_at(state: &StateUpdate, wall_ms: u64, truth: &Truth) -> Option<Scene> {
    let scene = match state.mode() {
        Mode::Unknown => return None,
        Mode::Running => truth.reader_from(state)?.at(wall_ms).scene,
        _ => state.scene_index,
    };
    let (id, name) = truth.scenes_of(state)?.names(scene);
    Some(Scene(id, name))
}
