//! Messages from outside: to which shard, or why not.
//!
//! This is the one place that everything passes through, so it does as little as it can: it peeks at the id and leaves
//! the decoding to the shard. Only what is so large that it would make a shard's turn long is checked here, and a large
//! batch cut into pieces.

use std::sync::Arc;

use async_nats::Subject;
use bytes::Bytes;
use metrics::counter;
use prost::Message as _;

use super::{
    log,
    mailbox::{BatchRound, Body, Mail, Pieces, Round},
    router::Router,
};
use crate::{
    engine::{Counts, Handle, Unplaced},
    wire::{
        Refusal, WireLimits,
        decode::{self, Question},
        encode, proto, route, subject,
        subscription::Address,
    },
};

/// The most entries of a batch that a shard handles at once: about half a millisecond of registers, so that a beat is
/// not late for a batch.
pub const MAX_PIECE_ENTRIES: usize = 1_000;

/// A command of more bytes is checked before it reaches a shard: a megabyte of half a million scenes takes 25 ms to
/// find out that there are too many.
const LARGE_COMMAND_BYTES: usize = 64 << 10;

/// See the module.
#[derive(Clone, Debug)]
pub struct Ingress {
    router: Arc<Router>,
    limits: Arc<WireLimits>,
}

impl Ingress {
    /// Routes with `router` what keeps to `limits`.
    #[must_use]
    pub const fn new(router: Arc<Router>, limits: Arc<WireLimits>) -> Self {
        Self { router, limits }
    }

    /// Takes a message. Returns an answer to publish if it was refused at once and somebody waits for it.
    pub fn accept(&self, to: &str, payload: Bytes, reply: Option<Subject>) -> Option<(Subject, Bytes)> {
        let mail = match to {
            subject::COMMAND => self.command(payload),
            subject::SUBSCRIPTION => self.subscription(payload),
            subject::QUERY => return self.accept_query(payload, reply),
            _ => {
                counter!("orchestrator_dropped_total", "reason" => "unknown_subject").increment(1);
                return None;
            }
        };
        let refusal = match mail {
            Ok((shard, body)) => self.deliver(shard, Mail { body, reply: reply.clone() }).err()?,
            Err(refusal) => refusal,
        };
        log::refused(refusal.code(), &refusal.to_string(), to);
        Some((reply?, encode::refusal(&refusal, "").encode_to_vec().into()))
    }

    fn accept_query(&self, payload: Bytes, reply: Option<Subject>) -> Option<(Subject, Bytes)> {
        let Some(reply) = reply else {
            // A question that nobody waits for.
            counter!("orchestrator_dropped_total", "reason" => "query_without_reply").increment(1);
            return None;
        };
        let sent = self
            .query(payload)
            .and_then(|(shard, body)| self.deliver(shard, Mail { body, reply: Some(reply.clone()) }));
        let refusal = sent.err()?;
        log::refused(refusal.code(), &refusal.to_string(), subject::QUERY);
        Some((reply, encode::query_refusal(&refusal).encode_to_vec().into()))
    }

    fn deliver(&self, shard: usize, mail: Mail) -> Result<(), Refusal> {
        self.router.send(shard, mail).map_err(|_| FULL)
    }

    fn command(&self, payload: Bytes) -> Result<(usize, Body), Refusal> {
        self.check_size(&payload)?;
        if payload.len() > LARGE_COMMAND_BYTES {
            decode::command(&decode::message(&payload, &self.limits)?, &self.limits)?;
        }
        Ok((self.router.shard_of(&route::command(&payload)), Body::Command(payload)))
    }

    fn subscription(&self, payload: Bytes) -> Result<(usize, Body), Refusal> {
        self.check_size(&payload)?;
        // What does not decode, or names nobody at all, is for any shard to refuse.
        let Ok(Some(address)) = Address::read(&payload) else { return Ok((0, Body::Subscription(payload))) };
        decode::check_entry_count(address.entries)?;
        let named_at = (!address.stream_id.is_empty()).then(|| self.router.shard_of(address.stream_id));
        let owner = |handle: &Handle| self.router.owner(handle.partition());
        let first = named_at.or_else(|| address.handles.first().map(owner)).unwrap_or(0);
        if address.handles.iter().all(|handle| owner(handle) == first) {
            if address.entries <= MAX_PIECE_ENTRIES {
                return Ok((first, Body::Subscription(payload)));
            }
            // All of it is checked before the first piece does anything.
            let message = decode::subscription_message(&payload, &self.limits)?;
            decode::subscription(message.clone(), true)?;
            let left = message.pieces(MAX_PIECE_ENTRIES).into();
            return Ok((first, Body::Pieces(Box::new(Pieces { left, so_far: None }))));
        }
        let mut handles = vec![Vec::new(); self.router.shards()];
        for handle in &address.handles {
            handles[owner(handle)].push(*handle);
        }
        let round = BatchRound { message: payload.clone(), named_at, handles, unplaced: Unplaced::default() };
        Ok((0, Body::Round(Box::new(Round::Batch(round)))))
    }

    fn query(&self, payload: Bytes) -> Result<(usize, Body), Refusal> {
        let message: proto::Query = decode::message(&payload, &self.limits)?;
        Ok(match decode::question(&message)? {
            Question::State(stream_id) | Question::Stats(Some(stream_id)) => {
                (self.router.owner(stream_id.partition()), Body::Query(payload))
            }
            Question::Stats(None) => (0, Body::Round(Box::new(Round::Stats(Counts::default())))),
            Question::List { limit, from } => {
                // A cursor from a time with more shards points behind the last: the answer is an empty page.
                let last = self.router.shards() - 1;
                let (shard, from_slot) =
                    if from.shard as usize <= last { (from.shard as usize, from.slot) } else { (last, u32::MAX) };
                (shard, Body::Round(Box::new(Round::List { room: limit, from_slot, states: Vec::new() })))
            }
        })
    }

    fn check_size(&self, payload: &Bytes) -> Result<(), Refusal> {
        decode::check_size(payload, &self.limits)
    }
}

/// What the sender of a message for a full mailbox is told.
pub(super) const FULL: Refusal = Refusal::Unavailable("the service is overloaded; try again");
