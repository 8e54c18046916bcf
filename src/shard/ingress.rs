//! Messages from outside: to which shard, or why not.
//!
//! This is the one place that everything passes through, so it does as little as it can: it peeks at the id and leaves
//! the decoding to the shard. What has more scenes or entries than it may is refused here, and a large batch is checked
//! and cut into pieces, because each would make a shard's turn long.

use std::sync::Arc;

use async_nats::Subject;
use bytes::Bytes;
use metrics::counter;
use prost::{DecodeError, Message as _};

use super::{
    log,
    mailbox::{BatchRound, Body, Mail, Pieces, Round},
    router::Router,
};
use crate::{
    engine::{Counts, Handle, Timeline, Unplaced},
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
        let address = route::command(&payload).map_err(undecodable)?;
        // A megabyte has room for half a million of them, which would be a long turn. The rest the shard says better.
        if address.scenes > self.limits.engine.max_scenes {
            Timeline::check_scene_count(address.scenes, &self.limits.engine)?;
        }
        Ok((self.router.shard_of(&address.stream_id), Body::Command(payload)))
    }

    fn subscription(&self, payload: Bytes) -> Result<(usize, Body), Refusal> {
        self.check_size(&payload)?;
        // What names nobody at all is for any shard to refuse.
        let address = Address::read(&payload).map_err(undecodable)?.unwrap_or_default();
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

fn undecodable(error: DecodeError) -> Refusal {
    Refusal::Undecodable(error.to_string())
}

/// What the sender of a message for a full mailbox is told.
pub(super) const FULL: Refusal = Refusal::Unavailable("the service is overloaded; try again");
