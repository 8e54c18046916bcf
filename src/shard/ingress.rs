//! Messages from outside: to which shard, or why not.
//!
//! This is the one place that everything passes through, so it does as little as it can: it peeks at the id and leaves
//! the decoding to the shard. Except: what has more scenes or entries than it may is refused here, and a batch that is large or
//! concerns several shards is checked and cut into pieces, because each would make a shard's turn long.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use metrics::counter;
use prost::{DecodeError, Message as _};

use super::{
    log,
    mailbox::{Body, Mail, Piece, Pieces, Round},
    router::Router,
};
use crate::{
    engine::{Counts, Handle, Invalid},
    wire::{
        Refusal, WireLimits,
        commands::CommandRoute,
        decode, encode, proto,
        queries::{self, Question},
        subject::{self, Subject},
        subscriptions::{self, Subscription, SubscriptionRoute},
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
        let route = CommandRoute::read(&payload).map_err(undecodable)?;
        // A megabyte has room for half a million of them, which would be a long turn. The rest the shard says better.
        if route.scenes > self.limits.engine.max_scenes {
            self.limits.engine.scenes().check_count(route.scenes).map_err(|error| Invalid::new(error.to_string()))?;
        }
        Ok((self.router.shard_of(route.stream_id), Body::Command(payload)))
    }

    fn subscription(&self, payload: Bytes) -> Result<(usize, Body), Refusal> {
        self.check_size(&payload)?;
        // What names nobody at all is for any shard to refuse.
        let route = SubscriptionRoute::read(&payload).map_err(undecodable)?.unwrap_or_default();
        subscriptions::check_entry_count(route.entries)?;
        let named_at = (!route.stream_id.is_empty()).then(|| self.router.shard_of(route.stream_id));
        let owner = |handle: &Handle| self.router.owner(handle.partition());
        let first = named_at.or_else(|| route.handles.first().map(owner)).unwrap_or(0);
        if route.entries <= MAX_PIECE_ENTRIES && route.handles.iter().all(|handle| owner(handle) == first) {
            return Ok((first, Body::Subscription(payload)));
        }
        // All of it is checked before the first piece does anything.
        let message = subscriptions::read(&payload, &self.limits)?;
        subscriptions::check_batch(&message)?;
        let stream_id = message.stream_id.into();
        let left = self.cut(message, named_at);
        let first = left.front().map_or(first, |piece| piece.shard);
        let bytes = payload.len();
        Ok((first, Body::Pieces(Box::new(Pieces { stream_id, left, so_far: None, bytes }))))
    }

    /// What each shard gets of a batch: its handles, and everything else if the stream that the batch names is there.
    fn cut(&self, mut message: Subscription<'_>, named_at: Option<usize>) -> VecDeque<Piece> {
        let kind = message.kind;
        let mut handles = vec![Vec::new(); self.router.shards()];
        for handle in std::mem::take(&mut message.handles) {
            handles[self.router.owner(handle.partition())].push(handle);
        }
        let mut named = Some(message);
        let parts = handles.into_iter().enumerate().filter_map(|(shard, handles)| {
            let rest = if named_at == Some(shard) { named.take() } else { None };
            let concerns_it = rest.is_some() || !handles.is_empty();
            let rest = rest.unwrap_or_else(|| Subscription::empty(kind));
            concerns_it.then_some((shard, Subscription { handles, ..rest }))
        });
        let pieces = parts.flat_map(|(shard, part)| {
            part.pieces(MAX_PIECE_ENTRIES).into_iter().map(move |message| Piece { shard, message })
        });
        pieces.collect()
    }

    fn query(&self, payload: Bytes) -> Result<(usize, Body), Refusal> {
        let message: proto::Query = decode::message(&payload, &self.limits)?;
        Ok(match queries::question(&message)? {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        shard::mailbox::{MAILBOX_BYTES, Mailbox},
        wire::proto::{HeartbeatBatch, subscription_command::Command},
    };

    /// Where a batch goes: for each piece its shard, its stream, how many clients and which handles.
    type Route = Vec<(usize, String, usize, Vec<u64>)>;

    fn route(batch: HeartbeatBatch) -> (usize, Route) {
        let mailboxes = (0..3).map(|_| Mailbox::new(8, MAILBOX_BYTES)).collect();
        let ingress = Ingress::new(Arc::new(Router::new(mailboxes)), Arc::default());
        let message = proto::SubscriptionCommand { command: Some(Command::HeartbeatBatch(batch)) };
        let payload = Bytes::from(message.encode_to_vec());
        let refused = ingress.accept(subject::SUBSCRIPTION, payload.clone(), None);
        assert_eq!(refused, None);
        let mut mail = (0..3).filter_map(|shard| Some((shard, ingress.router.mailbox(shard).take()?)));
        let (shard, Mail { body, .. }) = mail.next().expect("one shard has it");
        assert!(mail.next().is_none(), "only one has it");
        if let Body::Pieces(pieces) = &body {
            assert_eq!(pieces.bytes, payload.len(), "it weighs what it did");
        }
        let pieces = match body {
            Body::Pieces(pieces) => pieces.left,
            Body::Subscription(message) => VecDeque::from([Piece { shard, message }]),
            other => panic!("{other:?}"),
        };
        let read = |Piece { shard, message }: &Piece| {
            let read = Subscription::read(message).unwrap().unwrap();
            let handles = read.handles.iter().map(|handle| handle.0).collect();
            (*shard, read.stream_id.to_owned(), read.clients.len(), handles)
        };
        (shard, pieces.iter().map(read).collect())
    }

    fn handle(partition: u64, slot: u64) -> u64 {
        partition << 56 | 1 << 28 | slot
    }

    #[test]
    fn a_batch_is_cut_into_what_each_shard_handles_in_one_turn() {
        let stream_id = (0..).map(|n| format!("s{n}")).find(|id| crate::engine::partition(id) % 3 == 1).unwrap();
        let clients = |count: usize| (0..count).map(|n| format!("c{n}")).collect::<Vec<_>>();
        let (here, there) = (handle(1, 7), handle(2, 8));
        let s = || stream_id.clone();

        let small = HeartbeatBatch { stream_id: s(), client_id: clients(999), handle: vec![here] };
        assert_eq!(route(small), (1, vec![(1, s(), 999, vec![here])]), "left as it is");

        let large = HeartbeatBatch { stream_id: s(), client_id: clients(1_500), handle: vec![there, here] };
        let pieces = vec![
            (1, s(), 0, vec![here]),
            (1, s(), 1_000, vec![]),
            (1, s(), 500, vec![]),
            (2, String::new(), 0, vec![there]),
        ];
        assert_eq!(route(large), (1, pieces));

        let handles = HeartbeatBatch { handle: vec![there, handle(0, 1), handle(3, 2)], ..Default::default() };
        let own = vec![handle(0, 1), handle(3, 2)];
        assert_eq!(route(handles), (0, vec![(0, String::new(), 0, own), (2, String::new(), 0, vec![there])]));

        // The stream that it names is asked for, though nobody of it is named.
        let elsewhere = HeartbeatBatch { stream_id: s(), client_id: vec![], handle: vec![there] };
        assert_eq!(route(elsewhere), (1, vec![(1, s(), 0, vec![]), (2, String::new(), 0, vec![there])]));
    }
}
