//! Requests and what is answered to them.

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

/// Whoever is surely there is known by its handle: nobody is told to register again for nothing.
pub struct TheLivingAreKnown;

impl Checker for TheLivingAreKnown {
    fn see(&mut self, _now: u64, fact: &Fact<'_>, truth: &Truth) {
        let Fact::Answered { answer, by: Some(by), .. } = fact else { return };
        let (What::Beat(_), AnswerBody::Reply(reply)) = (&truth.requests[answer.request].sent.what, &answer.body)
        else {
            return;
        };
        for handle in &reply.unknown_handle {
            let there = truth.surely_named(*handle, *by);
            assert!(there.is_none(), "live: handle {handle} is unknown, but there is {}", there.expect("somebody"));
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
                assert_same_course(said, state, truth);
            } else {
                assert_same_course(state, said, truth);
            }
            // A newer timecode alone counts no revision.
            assert_eq!(said.stream_is_streaming, state.stream_is_streaming, "status: {}", in_short(said));
        }
    }
}
