//! Messages from outside: to which shards, or why not.
//!
//! This is the one place that everything passes through, so it does as little as it can: it peeks at the id and leaves
//! the decoding to the shard. Except: what has more scenes or entries than it may is refused here, and a batch that is
//! large or concerns several shards is checked and cut into pieces, because each would make a shard's turn long.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, atomic::AtomicUsize},
};

use bytes::Bytes;
use metrics::counter;
use prost::{DecodeError, Message as _};

use super::{
    clock::wall_ms,
    gather::{Part, Permit, What, Work},
    log,
    mailbox::{Body, Mail, Unsent},
    router::Router,
    split::{MAX_PIECE_ENTRIES, split},
};
use crate::{
    engine::{Handle, Invalid},
    wire::{
        Refusal, WireLimits,
        commands::CommandRoute,
        decode, encode, proto,
        queries::{self, Question},
        read_back,
        subject::{self, Subject},
        subscriptions::{self, SubscriptionRoute},
    },
};

/// How much is made of a message before a shard has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IngressLimits {
    /// The most entries of a batch that a shard handles at once.
    pub max_piece_entries: usize,
    /// How many states the lists that are under way may have together: some twelve megabytes, and as many in the shards
    /// that list more than there is room for.
    pub max_listed: usize,
}

impl Default for IngressLimits {
    fn default() -> Self {
        Self { max_piece_entries: MAX_PIECE_ENTRIES, max_listed: 16_000 }
    }
}

/// How the wall clock is read, ms since 1970.
pub type ReadWallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// See the module.
#[derive(Clone)]
pub struct Ingress {
    router: Arc<Router>,
    limits: Arc<WireLimits>,
    own: IngressLimits,
    /// How many states the lists that are under way may have.
    listed: Arc<AtomicUsize>,
    /// Told to whoever asks for the time: here, where no mailbox comes before it.
    wall_clock: ReadWallClock,
}

impl fmt::Debug for Ingress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { router, limits, own, listed, wall_clock: _ } = self;
        formatter
            .debug_struct("Ingress")
            .field("router", router)
            .field("limits", limits)
            .field("own", own)
            .field("listed", listed)
            .finish_non_exhaustive()
    }
}

impl Ingress {
    /// Routes with `router` what keeps to `limits`.
    #[must_use]
    pub fn new(router: Arc<Router>, limits: Arc<WireLimits>) -> Self {
        Self::with_limits(router, limits, IngressLimits::default())
    }

    /// The same, with other limits of its own.
    #[must_use]
    pub fn with_limits(router: Arc<Router>, limits: Arc<WireLimits>, own: IngressLimits) -> Self {
        Self { router, limits, own, listed: Arc::default(), wall_clock: Arc::new(wall_ms) }
    }

    /// The same, with another clock.
    #[must_use]
    pub fn with_wall_clock(self, wall_clock: ReadWallClock) -> Self {
        Self { wall_clock, ..self }
    }

    /// Takes a message. Returns an answer to publish if it was refused or answered at once and somebody waits for it.
    pub fn accept(&self, to: &str, payload: Bytes, reply: Option<Subject>) -> Option<(Subject, Bytes)> {
        if let Some(Err(error)) = reply.as_ref().map(subject::check_reply) {
            // Not carried out either: whoever asks so is up to something, or would never learn what came of it.
            log::reply_refused(to, &error);
            return None;
        }
        let taken = match to {
            subject::COMMAND => self.command(payload, reply.clone()).map(|()| None),
            subject::SUBSCRIPTION => self.subscription(payload, reply.clone()).map(|()| None),
            subject::QUERY => {
                if reply.is_none() {
                    // A question that nobody waits for.
                    counter!("orchestrator_dropped_total", "reason" => "query_without_reply").increment(1);
                    return None;
                }
                self.query(payload, reply.clone())
            }
            _ => {
                counter!("orchestrator_dropped_total", "reason" => "unknown_subject").increment(1);
                return None;
            }
        };
        let answer = match taken {
            Ok(answer) => answer?,
            Err(refusal) => {
                log::refused(refusal.code(), &refusal.to_string(), to);
                // That of a query has the same fields.
                encode::refusal(&refusal, "").encode_to_vec().into()
            }
        };
        Some((reply?, answer))
    }

    fn command(&self, payload: Bytes, reply: Option<Subject>) -> Result<(), Refusal> {
        self.check_size(&payload)?;
        let route = CommandRoute::read(&payload).map_err(undecodable)?;
        // A megabyte has room for half a million of them, which would be a long turn. The rest the shard says better.
        if route.scenes > self.limits.engine.max_scenes {
            self.limits.engine.scenes().check_count(route.scenes).map_err(|error| Invalid::new(error.to_string()))?;
        }
        self.send(self.router.shard_of(route.stream_id), Body::Command(payload), reply)
    }

    fn subscription(&self, payload: Bytes, reply: Option<Subject>) -> Result<(), Refusal> {
        self.check_size(&payload)?;
        // What names nobody at all is for any shard to refuse.
        let route = SubscriptionRoute::read(&payload).map_err(undecodable)?.unwrap_or_default();
        subscriptions::check_entry_count(route.entries)?;
        let named_at = (!route.stream_id.is_empty()).then(|| self.router.shard_of(route.stream_id));
        let owner = |handle: &Handle| self.router.owner(handle.partition());
        let first = named_at.or_else(|| route.handles.first().map(owner)).unwrap_or(0);
        if reply.is_some() {
            self.check_answer(first, route.registers)?;
        }
        if route.entries <= self.own.max_piece_entries && route.handles.iter().all(|handle| owner(handle) == first) {
            let mail = Mail::new(Body::Subscription(payload.clone()), reply).weighing(route.weight());
            return self.router.send(first, mail).map_err(refusal);
        }
        // Before any work is made of it.
        let concerned = named_at.into_iter().chain(route.handles.iter().map(owner));
        if self.router.are_full_of_bulk(concerned) {
            return Err(refusal(Unsent::FullOfBulk));
        }
        // All of it is checked before the first piece does anything.
        let message = subscriptions::read(&payload, &self.limits)?;
        subscriptions::check_batch(&message)?;
        let what = What::Batch { stream_id: message.stream_id.into() };
        let parts = split(&self.router, message, named_at, self.own.max_piece_entries);
        self.send_parts(what, parts, reply, None)
    }

    /// Takes a question, or answers it.
    fn query(&self, payload: Bytes, reply: Option<Subject>) -> Result<Option<Bytes>, Refusal> {
        let message: proto::Query = decode::message(&payload, &self.limits)?;
        let shards = self.router.shards();
        let each = |shards: Range<usize>, weight: usize| {
            shards.map(|shard| (shard, Work { weight, ..Work::default() })).collect()
        };
        let taken = match queries::question(&message)? {
            Question::Time => return Ok(Some(read_back::time((self.wall_clock)()))),
            question @ (Question::State(stream_id)
            | Question::Stats(Some(stream_id))
            | Question::Config(stream_id)
            | Question::Subscribers { stream_id, .. }
            | Question::History { stream_id, .. }) => {
                let mail = Mail::new(Body::Query(payload), reply).weighing(question.weight());
                self.router.send(self.router.owner(stream_id.partition()), mail).map_err(refusal)
            }
            Question::Stats(None) => self.send_parts(What::Stats, each(0..shards, 1), reply, None),
            Question::List { limit, from } => {
                // A cursor from a time with more shards points behind the last: the answer is an empty page.
                let from = usize::try_from(from.shard)
                    .ok()
                    .filter(|shard| *shard < shards)
                    .map_or((shards - 1, u32::MAX), |shard| (shard, from.slot));
                let permit = Permit::take(&self.listed, limit, self.own.max_listed);
                let permit = permit.ok_or(Refusal::Unavailable("too many lists are being made; try again"))?;
                self.send_parts(What::List { from, limit }, each(from.0..shards, limit), reply, Some(permit))
            }
        };
        taken.map(|()| None)
    }

    /// Refuses a batch whose answer could not be sent, before anybody is registered by it. One subscriber is taken as a
    /// Register is: else nobody could be registered over a connection that takes less than the longest answer.
    fn check_answer(&self, shard: usize, registers: usize) -> Result<(), Refusal> {
        let bytes = if registers > 1 { encode::MAX_REPLY_BYTES + 8 * registers } else { 0 };
        let limit = self.router.mailbox(shard).max_answer();
        if bytes > limit { Err(Refusal::TooLarge { bytes, limit }) } else { Ok(()) }
    }

    fn send(&self, shard: usize, body: Body, reply: Option<Subject>) -> Result<(), Refusal> {
        self.router.send(shard, Mail::new(body, reply)).map_err(refusal)
    }

    /// Puts each shard's part into its mailbox: all, or none.
    fn send_parts(
        &self,
        what: What,
        parts: Vec<(usize, Work)>,
        reply: Option<Subject>,
        permit: Option<Permit>,
    ) -> Result<(), Refusal> {
        let (shards, work): (Vec<usize>, Vec<Work>) = parts.into_iter().unzip();
        let parts = Part::of(what, reply, work, permit).into_iter().map(|part| Mail::new(Body::Part(part), None));
        self.router.send_all(shards.into_iter().zip(parts).collect()).map_err(refusal)
    }

    fn check_size(&self, payload: &Bytes) -> Result<(), Refusal> {
        decode::check_size(payload, &self.limits)
    }
}

fn undecodable(error: DecodeError) -> Refusal {
    Refusal::Undecodable(error.to_string())
}

/// What the sender of a message is told that no mailbox took.
fn refusal(unsent: Unsent) -> Refusal {
    match unsent {
        Unsent::Full => FULL,
        Unsent::FullOfBulk => Refusal::Unavailable("too many batches and large messages wait; try again"),
        Unsent::Closed => Refusal::Unavailable("the service is stopping"),
    }
}

/// What the sender of a message for a full mailbox is told.
pub(super) const FULL: Refusal = Refusal::Unavailable("the service is overloaded; try again");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        shard::mailbox::{MAILBOX_BYTES, Mailbox},
        wire::{
            proto::{HeartbeatBatch, subscription_command::Command},
            subscriptions::Subscription,
        },
    };

    /// What of a batch a shard gets in one message: its stream, how many clients and which handles.
    type Piece = (String, usize, Vec<u64>);

    fn read(message: &Bytes) -> Piece {
        let read = Subscription::read(message).unwrap().unwrap();
        let handles = read.handles.iter().map(|handle| handle.0).collect();
        (read.stream_id.to_owned(), read.clients.len(), handles)
    }

    fn ingress(capacities: [usize; 3]) -> Ingress {
        let mailboxes = capacities.map(|capacity| Mailbox::new(capacity, MAILBOX_BYTES));
        Ingress::new(Arc::new(Router::new(mailboxes.into())), Arc::default())
    }

    fn payload(batch: HeartbeatBatch) -> Bytes {
        let message = proto::SubscriptionCommand { command: Some(Command::HeartbeatBatch(batch)) };
        message.encode_to_vec().into()
    }

    /// Where a batch goes: by shard, in the order in which the shard will have it.
    fn route(batch: HeartbeatBatch) -> [Vec<Piece>; 3] {
        let ingress = ingress([8; 3]);
        assert_eq!(ingress.accept(subject::SUBSCRIPTION, payload(batch), None), None);
        [0, 1, 2].map(|shard| {
            let mut inbox = ingress.router.mailbox(shard).open();
            let pieces = match inbox.take().map(|mail| mail.body) {
                None => Vec::new(),
                Some(Body::Subscription(message)) => vec![read(&message)],
                Some(Body::Part(mut part)) => {
                    let pieces: Vec<Bytes> = std::iter::from_fn(|| part.next_piece()).collect();
                    assert_eq!(part.bytes(), pieces.iter().map(Bytes::len).sum::<usize>(), "it weighs what it has");
                    pieces.iter().map(read).collect()
                }
                other => panic!("{other:?}"),
            };
            assert!(inbox.take().is_none(), "one message a shard");
            pieces
        })
    }

    fn handle(partition: u64, slot: u64) -> u64 {
        partition << 56 | 1 << 28 | slot
    }

    #[test]
    fn a_batch_is_cut_into_what_each_shard_handles_in_one_turn() {
        let stream_id = (0..).map(|n| format!("s{n}")).find(|id| crate::engine::partition(id) % 3 == 1).unwrap();
        let clients = |count: usize| (0..count).map(|n| format!("c{n}")).collect::<Vec<_>>();
        let (here, there) = (handle(1, 7), handle(2, 8));
        let (s, none) = (|| stream_id.clone(), String::new);

        let small = HeartbeatBatch { stream_id: s(), client_id: clients(999), handle: vec![here] };
        assert_eq!(route(small), [vec![], vec![(s(), 999, vec![here])], vec![]], "left as it is");

        let large = HeartbeatBatch { stream_id: s(), client_id: clients(1_500), handle: vec![there, here] };
        let named = vec![(s(), 0, vec![here]), (s(), 1_000, vec![]), (s(), 500, vec![])];
        assert_eq!(route(large), [vec![], named, vec![(none(), 0, vec![there])]]);

        let handles = HeartbeatBatch { handle: vec![there, handle(0, 1), handle(3, 2)], ..Default::default() };
        let own = vec![handle(0, 1), handle(3, 2)];
        assert_eq!(route(handles), [vec![(none(), 0, own)], vec![], vec![(none(), 0, vec![there])]]);

        // The stream that it names is asked for, though nobody of it is named.
        let elsewhere = HeartbeatBatch { stream_id: s(), client_id: vec![], handle: vec![there] };
        assert_eq!(route(elsewhere), [vec![], vec![(s(), 0, vec![])], vec![(none(), 0, vec![there])]]);
    }

    #[test]
    fn what_one_mailbox_does_not_take_no_other_gets_a_part_of() {
        let ingress = ingress([8, 0, 8]);
        let batch = HeartbeatBatch { handle: vec![handle(0, 1), handle(1, 1), handle(2, 1)], ..Default::default() };
        let question = proto::Query { query: Some(proto::query::Query::GetStats(proto::GetStats::default())) };
        let messages = [(subject::SUBSCRIPTION, payload(batch)), (subject::QUERY, question.encode_to_vec().into())];
        for (to, payload) in messages {
            let (_, answer) = ingress.accept(to, payload, Some(Subject::from_static("answer"))).expect("it is refused");
            assert_eq!(proto::Reply::decode(answer).unwrap().code(), proto::Code::Unavailable, "{to}");
            assert!([0, 1, 2].iter().all(|shard| ingress.router.mailbox(*shard).is_empty()), "{to}");
        }
    }

    #[test]
    fn a_batch_of_one_is_taken_over_a_connection_that_takes_little() {
        let ingress = ingress([8; 3]);
        (0..3).for_each(|shard| ingress.router.mailbox(shard).set_max_answer(1_024));
        let register = |count: usize| {
            let subscriber = proto::Subscriber { client_id: "viewer".into(), ..Default::default() };
            let batch = proto::RegisterBatch { stream_id: "show".into(), subscriber: vec![subscriber; count] };
            let message = proto::SubscriptionCommand { command: Some(Command::RegisterBatch(batch)) };
            ingress.accept(subject::SUBSCRIPTION, message.encode_to_vec().into(), Some(Subject::from_static("answer")))
        };
        assert_eq!(register(1), None);
        let (_, answer) = register(2).expect("it is refused");
        assert_eq!(proto::Reply::decode(answer).unwrap().code(), proto::Code::ResourceExhausted);
    }

    #[test]
    fn the_time_is_told_at_once_and_to_whoever_waits_for_it() {
        let ingress = ingress([0; 3]).with_wall_clock(Arc::new(|| 1_700_000_000_123));
        let question = proto::Query { query: Some(proto::query::Query::GetTime(proto::GetTime {})) };
        let question = Bytes::from(question.encode_to_vec());
        let (to, answer) = ingress
            .accept(subject::QUERY, question.clone(), Some(Subject::from_static("answer")))
            .expect("it is answered, however full the mailboxes are");
        let expected = proto::QueryReply { server_time_ms: 1_700_000_000_123, ..Default::default() };
        assert_eq!((&*to, proto::QueryReply::decode(answer)), ("answer", Ok(expected)));
        assert_eq!(ingress.accept(subject::QUERY, question, None), None);
    }

    #[test]
    fn a_message_whose_answer_would_act_as_another_is_not_taken() {
        let ingress = ingress([8; 3]);
        let question = proto::Query { query: Some(proto::query::Query::GetStats(proto::GetStats::default())) };
        let pause = proto::orchestrator_command::Command::Pause(proto::Pause { stream_id: "show".into() });
        let pause = proto::OrchestratorCommand { command: Some(pause), ..Default::default() };
        let messages = [
            (subject::QUERY, Bytes::from(question.encode_to_vec())),
            (subject::COMMAND, pause.encode_to_vec().into()),
            (subject::SUBSCRIPTION, payload(HeartbeatBatch { handle: vec![1], ..Default::default() })),
            // What would be refused at once is not answered there either.
            (subject::COMMAND, Bytes::from_static(&[0xff])),
        ];
        for reply in ["orchestrator.command", "stream.show.updates", "$JS.API.STREAM.DELETE.orders", "a.*", ""] {
            for (to, payload) in &messages {
                assert_eq!(ingress.accept(to, payload.clone(), Some(reply.into())), None, "{to} {reply}");
                assert!([0, 1, 2].iter().all(|shard| ingress.router.mailbox(*shard).is_empty()), "{to} {reply}");
            }
        }
        assert_eq!(ingress.accept(subject::COMMAND, messages[1].1.clone(), Some("_INBOX.1".into())), None);
        assert_eq!((0..3).map(|shard| ingress.router.mailbox(shard).len()).sum::<usize>(), 1);
    }
}
