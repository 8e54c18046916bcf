//! One message: to the engine, and what came of it back to whoever waits for it.

use bytes::Bytes;
use prost::Message as _;

use super::{
    clock::Now,
    engine_op::{EngineOp, Outcome},
    gather::{self, Finished, Gathered, LOST, Part, What},
    ingress::FULL,
    log,
    mailbox::{Body, Mail, weight_of},
    page::Listed,
    publish_queue::PublishQueue,
    turn::Shard,
};
use crate::{
    engine::{Accepted, Hint, Unplaced},
    wire::{
        Refusal, encode, proto, queries, read_back,
        subject::{self, Subject},
    },
};

/// Who waits for an answer.
#[derive(Debug)]
pub(super) struct Asker {
    /// What was said: the subject of the message.
    about: &'static str,
    reply: Option<Subject>,
}

/// For whom the engine is being fed, so that a panic leaves nobody without an answer.
#[derive(Debug, Default)]
pub(super) enum InHand {
    #[default]
    Nobody,
    Asker(Asker),
    Part(Box<Part>),
}

impl Shard {
    /// Handles one piece of mail. Returns how much it was, and what is left of it for the next turn.
    pub(super) fn handle(
        &mut self,
        now: Now,
        mail: Mail,
        hint: Hint,
        queue: &mut PublishQueue,
    ) -> (usize, Option<Mail>) {
        let Mail { body, reply, .. } = mail;
        let weight = match body {
            Body::Part(part) => return self.handle_part(now, part, queue),
            Body::Command(bytes) => {
                let weight = weight_of(bytes.len());
                let fed = EngineOp::Command(bytes);
                let (outcome, asker) = self.feed_for(now, &fed, Asker { about: subject::COMMAND, reply });
                log::command(&outcome.message, &outcome.result);
                self.answer(now, &outcome.result, outcome.message.stream_id(), asker, queue);
                weight
            }
            Body::Subscription(message) => {
                let bytes = weight_of(message.len());
                let fed = EngineOp::Subscription { message, answered: reply.is_some(), hint };
                let (outcome, asker) = self.feed_for(now, &fed, Asker { about: subject::SUBSCRIPTION, reply });
                let weight = bytes.max(outcome.message.weight()) + unknown(&outcome.result);
                log::membership(&outcome.message, &outcome.result);
                self.answer(now, &outcome.result, outcome.message.stream_id(), asker, queue);
                weight
            }
            Body::Query(bytes) => {
                let fed = EngineOp::Query(bytes);
                let (outcome, asker) = self.feed_for(now, &fed, Asker { about: subject::QUERY, reply });
                let looks = looks(&outcome.result);
                looks + self.answer_query(now, outcome.result, asker, queue)
            }
        };
        (weight, None)
    }

    /// Feeds the engine for somebody, who is in hand meanwhile.
    fn feed_for<'a>(&mut self, now: Now, fed: &'a EngineOp, asker: Asker) -> (Outcome<'a>, Asker) {
        let about = asker.about;
        self.in_hand = InHand::Asker(asker);
        let outcome = self.feed(now.tick, fed);
        match std::mem::take(&mut self.in_hand) {
            InHand::Asker(asker) => (outcome, asker),
            InHand::Nobody | InHand::Part(_) => (outcome, Asker { about, reply: None }),
        }
    }

    // --- parts ---------------------------------------------------------------------------------------------------

    /// Does this shard's part of a request, or one piece of it.
    fn handle_part(&mut self, now: Now, mut part: Box<Part>, queue: &mut PublishQueue) -> (usize, Option<Mail>) {
        match *part.what() {
            What::Batch { .. } => {
                let Some(piece) = part.next_piece() else {
                    let nobody = gather::Outcome::Batch(Accepted::Batch(Unplaced::default()));
                    self.finish(now, part, Ok(nobody), queue);
                    return (1, None);
                };
                self.handle_piece(now, part, piece, queue)
            }
            What::Stats => {
                let counts = self.engine.counts();
                self.finish(now, part, Ok(gather::Outcome::Stats(counts)), queue);
                (1, None)
            }
            What::List { from, limit } => (self.list(now, part, from, limit, queue), None),
        }
    }

    /// Handles a piece of a batch.
    fn handle_piece(
        &mut self,
        now: Now,
        part: Box<Part>,
        piece: Bytes,
        queue: &mut PublishQueue,
    ) -> (usize, Option<Mail>) {
        let bytes = weight_of(piece.len());
        let fed = EngineOp::Subscription { message: piece, answered: part.is_answered(), hint: Hint::NONE };
        self.in_hand = InHand::Part(part);
        let outcome = self.feed(now.tick, &fed);
        let weight = bytes.max(outcome.message.weight()) + unknown(&outcome.result);
        log::membership(&outcome.message, &outcome.result);
        let InHand::Part(mut part) = std::mem::take(&mut self.in_hand) else { return (weight, None) };
        match part.note(outcome.result) {
            None => (weight, Some(Mail::new(Body::Part(part), None))),
            Some(outcome) => {
                self.finish(now, part, outcome, queue);
                (weight, None)
            }
        }
    }

    /// Lists this shard's streams for a page that begins at `from`. Returns how much it was.
    fn list(&mut self, now: Now, part: Box<Part>, from: (usize, u32), limit: usize, queue: &mut PublishQueue) -> usize {
        if queue.refuses_large_answers() {
            // Lists are large, and anybody may ask for them: they must not take the room of changes.
            self.finish(now, part, Err(FULL), queue);
            return 1;
        }
        let (first, slot) = from;
        let from_slot = if self.number == first { slot } else { 0 };
        // What the shards before it fill of the page need not be listed here as well. They may have changed since they
        // were counted: then the page is shorter than it might be, and the next one begins here.
        let whole_before = (first..self.number).skip(usize::from(slot > 0));
        let before = self.totals.streams(whole_before);
        let room = limit.saturating_sub(usize::try_from(before).unwrap_or(usize::MAX));
        if room == 0 && self.engine.counts().streams > 0 {
            self.finish(now, part, Ok(gather::Outcome::List(Listed::nothing_from(from_slot))), queue);
            return 1;
        }
        // One more than there is room for tells whether there is another page.
        let fed = EngineOp::List { from_slot, limit: room + 1 };
        self.in_hand = InHand::Part(part);
        let result = self.feed(now.tick, &fed).result;
        let InHand::Part(part) = std::mem::take(&mut self.in_hand) else { return 1 };
        let listed = result.map(|accepted| match accepted {
            Accepted::Streams { states, next_slot } => Listed::of(&states, next_slot, now, queue.max_payload()),
            _ => Listed::default(),
        });
        let weight = listed.as_ref().map_or(1, |listed| listed.len() + weight_of(listed.bytes()));
        self.finish(now, part, listed.map(gather::Outcome::List), queue);
        weight
    }

    /// Ends a part; the last one of a request answers it.
    fn finish(
        &mut self,
        now: Now,
        part: Box<Part>,
        outcome: Result<gather::Outcome, Refusal>,
        queue: &mut PublishQueue,
    ) {
        // What its engine said, and counts, is there before somebody can be answered by another shard.
        self.queue_outbox(now, queue);
        self.totals.set(self.number, &self.engine.counts());
        if let Some(finished) = part.finish(outcome) {
            self.answer_finished(now, finished, queue);
        }
    }

    fn answer_finished(&mut self, now: Now, finished: Finished, queue: &mut PublishQueue) {
        let Finished { reply, stream_id, about, result } = finished;
        let asker = Asker { about, reply };
        match result {
            Ok(Gathered::Batch(accepted)) => self.answer(now, &Ok(accepted), &stream_id, asker, queue),
            Ok(Gathered::Stats(counts)) => _ = self.answer_query(now, Ok(Accepted::Stats(counts)), asker, queue),
            Ok(Gathered::Page(page)) => {
                let limit = queue.max_payload();
                match page.encode(limit) {
                    Ok(bytes) => self.reply_with(now, bytes.into(), asker.reply, queue),
                    Err(bytes) => self.answer(now, &Err(Refusal::TooLarge { bytes, limit }), "", asker, queue),
                }
            }
            Err(refusal) => self.answer(now, &Err(refusal), &stream_id, asker, queue),
        }
    }

    // --- answers -------------------------------------------------------------------------------------------------

    /// Answers a command or subscription, if somebody waits; a refusal is logged and counted in any case.
    fn answer(
        &mut self,
        now: Now,
        result: &Result<Accepted, Refusal>,
        stream_id: &str,
        asker: Asker,
        queue: &mut PublishQueue,
    ) {
        let message = match result {
            Ok(accepted) if asker.reply.is_none() && accepted.is_whole() => return,
            Ok(Accepted::Batch(unplaced)) => encode::batch_reply(unplaced, stream_id, queue.max_payload()),
            Ok(accepted) => encode::reply(accepted, stream_id, now),
            // Of a question it has the same fields.
            Err(refusal) => encode::refusal(refusal, stream_id),
        };
        log::refused(message.code(), &message.message, asker.about);
        self.reply_with(now, message.encode_to_vec().into(), asker.reply, queue);
    }

    /// Answers a question. Returns how much the answer is.
    fn answer_query(
        &mut self,
        now: Now,
        result: Result<Accepted, Refusal>,
        asker: Asker,
        queue: &mut PublishQueue,
    ) -> usize {
        match result.and_then(|accepted| answer_to(&accepted, now, queue)) {
            Ok(message) => {
                let weight = weight_of(message.len());
                self.reply_with(now, message, asker.reply, queue);
                weight
            }
            Err(refusal) => {
                self.answer(now, &Err(refusal), "", asker, queue);
                1
            }
        }
    }

    /// Owes an answer, behind the updates that came before it.
    fn reply_with(&mut self, now: Now, message: Bytes, reply: Option<Subject>, queue: &mut PublishQueue) {
        self.queue_outbox(now, queue);
        if let Some(reply) = reply {
            // Whoever gets the answer may ask another shard for room: it must see what this one has taken.
            self.totals.set(self.number, &self.engine.counts());
            queue.reply(&reply, message);
        }
    }

    // --- panics --------------------------------------------------------------------------------------------------

    /// After a panic in a turn: answers for whom the engine was fed. Nothing else of this shard may be used then.
    pub fn answer_lost(&mut self, queue: &mut PublishQueue) {
        let asker = match std::mem::take(&mut self.in_hand) {
            InHand::Nobody => return,
            InHand::Asker(asker) => asker,
            InHand::Part(part) => match part.finish(Err(LOST)) {
                Some(Finished { reply, about, .. }) => Asker { about, reply },
                None => return,
            },
        };
        log::refused(LOST.code(), &LOST.to_string(), asker.about);
        if let Some(reply) = asker.reply {
            queue.reply(&reply, encode::refusal(&LOST, "").encode_to_vec().into());
        }
    }

    /// As if the engine had panicked at this mail; for a simulator.
    pub fn lose(&mut self, mail: Mail, queue: &mut PublishQueue) {
        let Mail { body, reply, .. } = mail;
        self.in_hand = match body {
            Body::Command(_) => InHand::Asker(Asker { about: subject::COMMAND, reply }),
            Body::Subscription(_) => InHand::Asker(Asker { about: subject::SUBSCRIPTION, reply }),
            Body::Query(_) => InHand::Asker(Asker { about: subject::QUERY, reply }),
            Body::Part(part) => InHand::Part(part),
        };
        self.answer_lost(queue);
    }
}

/// The answer to a question. Large ones must not take the room of changes.
fn answer_to(accepted: &Accepted, now: Now, queue: &PublishQueue) -> Result<Bytes, Refusal> {
    let is_large = matches!(accepted, Accepted::Config { .. } | Accepted::Subscribers { .. } | Accepted::History(_));
    if is_large && queue.refuses_large_answers() {
        return Err(FULL);
    }
    let most = queue.max_payload();
    let message = match accepted {
        Accepted::State(update) => proto::QueryReply { state: vec![encode::state(update, now)], ..Default::default() },
        Accepted::Stats(counts) => {
            proto::QueryReply { stats: Some(encode::stats(counts, queue.published_to())), ..Default::default() }
        }
        Accepted::Config { config, state } => return read_back::configured(config, state, now, most),
        Accepted::Subscribers { subscribers, next_slot } => {
            return read_back::subscribers(subscribers, *next_slot, now, most);
        }
        Accepted::History(entries) => return read_back::history(entries, now, most),
        _ => proto::QueryReply::default(),
    };
    Ok(message.encode_to_vec().into())
}

/// How much finding an answer was, beside writing it.
fn looks(result: &Result<Accepted, Refusal>) -> usize {
    match result {
        Ok(Accepted::Subscribers { .. }) => queries::LOOKS_WEIGHT,
        _ => 0,
    }
}

/// How many subscribers a batch names that are not there: each is another look-up, and something to answer. Whoever
/// guesses many has used a turn up sooner.
fn unknown(result: &Result<Accepted, Refusal>) -> usize {
    match result {
        Ok(Accepted::Batch(unplaced)) => unplaced.handles.len() + unplaced.clients.len(),
        _ => 0,
    }
}
