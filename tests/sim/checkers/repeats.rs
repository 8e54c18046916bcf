//! Requests that are said again under the same id.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use orchestrator_service::{
    engine::REMEMBER_MS,
    wire::proto::{Code, Mode},
};

use super::{Checker, Fact};
use crate::{
    log::hash_of,
    net::{AnswerBody, What},
    truth::Truth,
};

/// A repeat of a request id gets the first answer, to the byte; the same id for something else is a conflict. However
/// many ids there are on other streams: only a stream's own make it forget.
#[derive(Default)]
pub struct RequestIdsAreExecutedOnce {
    /// By stream and id.
    first: BTreeMap<(usize, usize), First>,
    /// How many were handled of each stream.
    of_stream: BTreeMap<usize, usize>,
    /// When any were by each shard.
    of_shard: BTreeMap<usize, VecDeque<u64>>,
    /// How many of its stream, and how many by its shard for as long as they are remembered, when something was handled, by
    /// its serial.
    counted: BTreeMap<u64, (usize, usize)>,
}

/// How an id was first used.
struct First {
    serial: u64,
    tick: u64,
    content: u64,
    counted: (usize, usize),
    /// What it was answered, if that is known.
    answer: Option<Bytes>,
    /// It may have been forgotten, so nobody knows what is remembered.
    is_doubtful: bool,
}

impl Checker for RequestIdsAreExecutedOnce {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        match fact {
            Fact::Handled { shard, sent, handled } => {
                let What::Command { stream, request_id: Some(id) } = sent.what else { return };
                let of_stream = self.of_stream.entry(stream).or_default();
                let of_shard = self.of_shard.entry(*shard).or_default();
                *of_stream += 1;
                of_shard.push_back(handled.tick);
                // What was remembered when the first was handled may still be, when a repeat is.
                let oldest = handled.tick.saturating_sub(2 * REMEMBER_MS);
                while of_shard.front().is_some_and(|tick| *tick < oldest) {
                    of_shard.pop_front();
                }
                let counted = (*of_stream, of_shard.len());
                self.counted.insert(handled.serial, counted);
                self.first.entry((stream, id)).or_insert_with(|| {
                    let content = hash_of(&sent.payload);
                    First {
                        serial: handled.serial,
                        tick: handled.tick,
                        content,
                        counted,
                        answer: None,
                        is_doubtful: false,
                    }
                });
            }
            Fact::Answered { answer, handled: Some(handled), by: Some(by) } => {
                let sent = &truth.requests[answer.request].sent;
                let What::Command { stream, request_id: Some(id) } = sent.what else { return };
                let AnswerBody::Reply(reply) = &answer.body else { return };
                let Some(counted) = self.counted.remove(&handled.serial) else { return };
                let Some(first) = self.first.get_mut(&(stream, id)) else { return };
                first.is_doubtful |=
                    first.may_be_forgotten(stream, handled.tick, counted, truth) || !truth.is_up_to_date(stream, *by);
                if first.is_doubtful {
                    return;
                }
                if hash_of(&sent.payload) != first.content {
                    assert_eq!(reply.code(), Code::Conflict, "repeats: request id {id} was for something else before");
                    return;
                }
                let before = first.answer.get_or_insert_with(|| answer.payload.clone());
                assert_eq!(*before, answer.payload, "repeats: request id {id} was answered otherwise before");
            }
            _ => {}
        }
    }
}

impl First {
    /// Whether it may be, once so much was handled since.
    fn may_be_forgotten(&self, stream: usize, tick: u64, counted: (usize, usize), truth: &Truth) -> bool {
        let known = &truth.streams[stream];
        let panicked = truth.panicked_at(known.shard);
        let was_there = known.said.as_ref().is_some_and(|said| {
            let created = said.epoch / 1_000;
            said.mode() != Mode::Unknown && created < self.tick && panicked.is_none_or(|panicked| panicked < created)
        });
        let most = truth.remembered_of_stream;
        // Streams that are not there share what one may have, and each that goes adds what it had.
        let pushed_out = if was_there { counted.0 - self.counted.0 >= most } else { counted.1 >= most };
        let panicked = panicked.is_some_and(|panicked| panicked >= self.tick);
        pushed_out || panicked || tick >= self.tick + REMEMBER_MS || counted.0 < self.counted.0 || self.serial == 0
    }
}
