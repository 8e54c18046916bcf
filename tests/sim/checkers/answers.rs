//! Requests and what is answered to them.

use std::collections::BTreeMap;

use orchestrator_service::{engine::REMEMBER_MS, wire::proto};

use super::{Checker, Fact, assert_same_course};
use crate::{
    net::{AnswerBody, What},
    reading::in_short,
    truth::Truth,
};

/// Each delivery of a request with a reply subject is answered once, and never twice.
pub struct OneAnswerADelivery;

impl Checker for OneAnswerADelivery {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        match fact {
            Fact::Answered { answer, .. } => {
                let request = &truth.requests[answer.request];
                let answers = request.answered + request.refused;
                assert!(answers <= request.delivered, "answers: {answers} to {request:?}");
            }
            Fact::Ended => {
                for request in &truth.requests {
                    let answers = request.answered + request.refused;
                    assert_eq!(answers, request.delivered, "answers: {answers} to {request:?}");
                }
            }
            _ => {}
        }
    }
}

/// A repeat of a request id gets the first answer.
#[derive(Default)]
pub struct RequestIdsAreExecutedOnce {
    first: BTreeMap<usize, (u64, proto::Reply)>,
}

impl Checker for RequestIdsAreExecutedOnce {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        let Fact::Answered { answer, handled: Some(handled) } = fact else { return };
        let What::Command { stream, request_id: Some(id) } = truth.requests[answer.request].sent.what else { return };
        let AnswerBody::Reply(reply) = &answer.body else { return };
        let panicked = truth.panicked_at(truth.streams[stream].shard);
        match self.first.get(&id) {
            Some((at, first)) if handled.tick < at + REMEMBER_MS && panicked.is_none_or(|panicked| panicked < *at) => {
                assert_eq!(reply, first, "repeats: request id {id} was answered otherwise before");
            }
            Some(_) => {
                // The first may have been handled without an answer: it counts from then on.
                self.first.remove(&id);
            }
            None => {
                self.first.insert(id, (handled.tick, reply.clone()));
            }
        }
    }
}

/// The state in an answer and that in the updates are one.
pub struct AnswersAgreeWithUpdates;

impl Checker for AnswersAgreeWithUpdates {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        let Fact::Answered { answer, .. } = fact else { return };
        let states = match &answer.body {
            AnswerBody::Reply(reply) => reply.state.as_slice(),
            AnswerBody::Query(reply) => &reply.state,
        };
        for state in states {
            let said = truth.streams.iter().filter_map(|stream| stream.said.as_ref());
            let said = said.into_iter().find(|said| said.stream_id == state.stream_id);
            let Some(said) = said.filter(|said| (said.epoch, said.revision) == (state.epoch, state.revision)) else {
                continue;
            };
            if said.server_time_ms <= state.server_time_ms {
                assert_same_course(said, state);
            } else {
                assert_same_course(state, said);
            }
            assert_eq!(said.stream_timecode, state.stream_timecode, "status: {}", in_short(said));
        }
    }
}
