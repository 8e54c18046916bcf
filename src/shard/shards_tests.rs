//! Several shards together, turn by turn: what one request does in all of them, in whatever order their turns come.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message as _;

use super::{
    clock::Now,
    ingress::Ingress,
    mailbox::{MAILBOX_BYTES, MAILBOX_CAPACITY, Mailbox},
    publish_queue::{AtOnce, Publication, PublishQueue, PublishTo},
    router::Router,
    totals::Totals,
    turn::{Next, Shard, ShardSettings, TurnLimits},
};
use crate::{
    engine::{Settings, Tick},
    wire::{
        proto::{
            self, Code, HeartbeatBatch, Query, QueryReply, Register, RegisterBatch, Reply, Subscriber, UnregisterBatch,
            orchestrator_command, query, subscription_command::Command,
        },
        subject::{self, Subject},
    },
};

const NOW: Now = Now { tick: Tick(1_000), wall_ms: 1_000 };

struct Shards {
    router: Arc<Router>,
    totals: Arc<Totals>,
    ingress: Ingress,
    shards: Vec<(Shard, PublishQueue)>,
    asked: usize,
    /// What the connection takes.
    max_payload: usize,
    answers: BTreeMap<String, Bytes>,
}

impl Shards {
    fn new(count: usize) -> Self {
        let mailboxes = (0..count).map(|_| Mailbox::new(MAILBOX_CAPACITY, MAILBOX_BYTES)).collect();
        let router = Arc::new(Router::new(mailboxes));
        let totals = Arc::new(Totals::new(count));
        let ingress = Ingress::new(Arc::clone(&router), Arc::default());
        let mut shards = Self {
            router,
            totals,
            ingress,
            shards: Vec::new(),
            asked: 0,
            max_payload: 1 << 20,
            answers: BTreeMap::new(),
        };
        shards.shards =
            (0..count).map(|number| (shards.new_shard(number), PublishQueue::new(PublishTo::Subjects))).collect();
        shards
    }

    fn new_shard(&self, number: usize) -> Shard {
        let settings = ShardSettings {
            engine: Settings::default(),
            wire: Arc::default(),
            recorder: None,
            turn: TurnLimits::default(),
        };
        Shard::new(number, settings, Arc::clone(&self.router), Arc::clone(&self.totals))
    }

    /// The connection takes messages of so many bytes from now on, which shards find out with their next turn.
    fn set_max_payload(&mut self, bytes: usize) {
        self.max_payload = bytes;
        for number in 0..self.shards.len() {
            self.shards[number].1.set_max_payload(bytes);
            self.turn(number);
        }
    }

    /// Puts a request in; returns where its answer goes.
    fn send(&mut self, to: &str, message: &impl prost::Message) -> String {
        self.asked += 1;
        let reply = format!("answer.{}", self.asked);
        let refused = self.ingress.accept(to, message.encode_to_vec().into(), Some(Subject::from(reply.clone())));
        if let Some((to, payload)) = refused {
            self.answers.insert(to.to_string(), payload);
        }
        reply
    }

    fn say(&mut self, command: Command) -> String {
        self.send(subject::SUBSCRIPTION, &proto::SubscriptionCommand { command: Some(command) })
    }

    /// One turn of a shard, with what its thread does about a panic.
    fn turn(&mut self, number: usize) -> Next {
        let (shard, queue) = &mut self.shards[number];
        let turn = catch_unwind(AssertUnwindSafe(|| shard.turn(NOW, queue)));
        let next = turn.unwrap_or_else(|_| {
            shard.answer_lost(queue);
            Next::Again
        });
        let answers = &mut self.answers;
        queue.hand_over(AtOnce::ALL, self.max_payload, |Publication { subject: to, payload, .. }| {
            if to.starts_with("answer.") {
                let again = answers.insert(to.to_string(), payload);
                assert_eq!(again, None, "{to} is answered once");
            }
        });
        next
    }

    /// Turns of the shards in this order, each until it has nothing more to do.
    fn run(&mut self, order: impl IntoIterator<Item = usize>) {
        for number in order {
            while !self.router.mailbox(number).is_empty() {
                self.turn(number);
            }
        }
    }

    fn run_all(&mut self) {
        self.run(0..self.shards.len());
        assert!((0..self.shards.len()).all(|shard| self.router.mailbox(shard).is_empty()), "nothing goes on");
    }

    fn answer<M: prost::Message + Default>(&mut self, to: &str) -> M {
        let payload = self.answers.remove(to).unwrap_or_else(|| panic!("{to} is answered"));
        M::decode(payload).expect("an answer of its kind")
    }

    fn asked(&mut self, command: Command) -> Reply {
        let to = self.say(command);
        self.run_all();
        self.answer(&to)
    }

    fn query(&mut self, query: query::Query) -> QueryReply {
        let to = self.send(subject::QUERY, &Query { query: Some(query) });
        self.run_all();
        self.answer(&to)
    }

    /// Starts a stream on each shard, and gives their names.
    fn streams(&mut self) -> Vec<String> {
        let of = |shards: &Self, shard| {
            (0..).map(|n| format!("show-{n}")).find(|id| shards.router.shard_of(id) == shard).expect("one")
        };
        let ids: Vec<String> = (0..self.shards.len()).map(|shard| of(self, shard)).collect();
        ids.iter().for_each(|id| self.start(id));
        ids
    }

    fn start(&mut self, stream_id: &str) {
        let scene = proto::SceneConfig { name: "Main".into(), duration_ms: 600_000, ..Default::default() };
        let config = Some(proto::OrchestratorConfig { scenes: vec![scene], ..Default::default() });
        let start = orchestrator_command::Command::Start(proto::Start { stream_id: stream_id.into(), config });
        let to =
            self.send(subject::COMMAND, &proto::OrchestratorCommand { command: Some(start), ..Default::default() });
        self.run_all();
        assert_eq!(self.answer::<Reply>(&to).code(), Code::Ok);
    }

    fn total(&mut self) -> u64 {
        self.query(query::Query::GetStats(proto::GetStats::default())).stats.expect("stats").total
    }
}

fn register(stream_id: &str, client_id: &str) -> Command {
    Command::Register(Register { stream_id: stream_id.into(), client_id: client_id.into(), ..Default::default() })
}

fn leave(handle: Vec<u64>) -> Command {
    Command::UnregisterBatch(UnregisterBatch { handle, ..Default::default() })
}

#[test]
fn a_register_behind_a_batch_of_leaves_stands() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut shards = Shards::new(3);
        let ids = shards.streams();
        let handles = ids.iter().map(|id| shards.asked(register(id, "v")).handle).collect();
        let left = shards.say(leave(handles));
        let registered: Vec<String> = ids.iter().map(|id| shards.say(register(id, "v"))).collect();
        shards.run(order);
        assert_eq!(shards.answer::<Reply>(&left).code(), Code::Ok);
        for to in registered {
            assert_eq!(shards.answer::<Reply>(&to).code(), Code::Ok);
        }
        assert_eq!(shards.total(), 3, "{order:?}: who has registered is there");
    }
}

#[test]
fn nothing_overtakes_a_batch_that_takes_many_turns() {
    let mut shards = Shards::new(2);
    let ids = shards.streams();
    let clients: Vec<String> = (0..3_500).map(|n| format!("c{n}")).collect();
    let subscriber = clients.iter().map(|id| Subscriber { client_id: id.clone(), ..Default::default() }).collect();
    let batch = RegisterBatch { stream_id: ids[1].clone(), subscriber };
    assert_eq!(shards.asked(Command::RegisterBatch(batch)).code(), Code::Ok);
    let other = shards.asked(register(&ids[0], "other")).handle;

    let left = UnregisterBatch { stream_id: ids[1].clone(), client_id: clients, handle: vec![other] };
    let left = shards.say(Command::UnregisterBatch(left));
    let back = [shards.say(register(&ids[1], "c3499")), shards.say(register(&ids[0], "other"))];
    shards.turn(1);
    assert!(shards.answers.is_empty(), "it takes more than one turn");
    shards.run_all();

    assert_eq!(shards.answer::<Reply>(&left).code(), Code::Ok);
    for to in back {
        assert_eq!(shards.answer::<Reply>(&to).code(), Code::Ok);
    }
    assert_eq!(shards.total(), 2);
}

#[test]
fn the_answer_of_the_last_shard_is_for_all_of_them() {
    let mut shards = Shards::new(3);
    let ids = shards.streams();
    let mut handles: Vec<u64> = ids.iter().map(|id| shards.asked(register(id, "v")).handle).collect();
    assert_eq!(shards.asked(leave(handles.clone())).code(), Code::Ok);
    let to = shards.say(Command::HeartbeatBatch(HeartbeatBatch { handle: handles.clone(), ..Default::default() }));
    shards.run([2, 0]);
    assert!(shards.answers.is_empty(), "one is missing");
    shards.run([1]);
    let mut reply: Reply = shards.answer(&to);
    reply.unknown_handle.sort_unstable();
    handles.sort_unstable();
    assert_eq!((reply.code(), reply.unknown_handle), (Code::UnknownSubscriber, handles));
}

#[test]
fn who_asked_a_shard_that_panics_is_told_and_nothing_is_left() {
    for panicking in 0..3 {
        let mut shards = Shards::new(3);
        let ids = shards.streams();
        let handles: Vec<u64> = ids.iter().map(|id| shards.asked(register(id, "v")).handle).collect();
        let asked = [
            shards.say(Command::HeartbeatBatch(HeartbeatBatch { handle: handles, ..Default::default() })),
            shards.send(subject::QUERY, &Query { query: Some(query::Query::ListStreams(Default::default())) }),
            shards.say(register(&ids[panicking], "w")),
        ];
        for (number, to) in asked.iter().enumerate() {
            // Whether it is the first, the last or the one in between that panics.
            shards.shards[panicking].0.panic_next = true;
            shards.turn(panicking);
            shards.shards[panicking].0 = shards.new_shard(panicking);
            if number == 2 {
                break;
            }
            (0..3).filter(|shard| *shard != panicking).for_each(|shard| _ = shards.turn(shard));
            let reply: Reply = shards.answer(to);
            assert_eq!(reply.code(), Code::Unavailable, "{}", reply.message);
        }
        let reply: Reply = shards.answer(&asked[2]);
        assert_eq!(reply.code(), Code::Unavailable, "{}", reply.message);
        shards.run_all();
        assert_eq!((shards.answers.len(), shards.total()), (0, 2), "the others live");
    }
}

#[test]
fn pages_miss_no_stream_and_the_last_one_is_known_to_be() {
    let mut shards = Shards::new(3);
    let ids: Vec<String> = (0..100).map(|n| format!("show-{n}")).collect();
    ids.iter().for_each(|id| shards.start(id));
    for limit in [1, 7, 50, 99, 100, 101] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = shards.query(query::Query::ListStreams(proto::ListStreams { limit, cursor }));
            assert!(page.state.len() <= limit as usize);
            seen.extend(page.state.into_iter().map(|state| state.stream_id));
            cursor = page.cursor;
            if cursor.is_empty() {
                break;
            }
        }
        seen.sort_unstable();
        let mut all = ids.clone();
        all.sort_unstable();
        assert_eq!(seen, all, "{limit}");
    }
    let whole = shards.query(query::Query::ListStreams(proto::ListStreams { limit: 100, cursor: String::new() }));
    assert_eq!((whole.state.len(), &*whole.cursor), (100, ""), "a page that all fit on is the only one");
}

fn pause(stream_id: &str) -> proto::OrchestratorCommand {
    let pause = orchestrator_command::Command::Pause(proto::Pause { stream_id: stream_id.into() });
    proto::OrchestratorCommand { command: Some(pause), ..Default::default() }
}

/// How many turns a command waits that is sent now.
fn turns_of_a_command(shards: &mut Shards, stream_id: &str) -> usize {
    let shard = shards.router.shard_of(stream_id);
    let to = shards.send(subject::COMMAND, &pause(stream_id));
    let turns = (1..).find(|_| {
        shards.turn(shard);
        shards.answers.contains_key(&to)
    });
    let reply: Reply = shards.answer(&to);
    assert_ne!(reply.code(), Code::Unavailable, "commands are taken");
    turns.expect("it is answered")
}

fn refused(shards: &mut Shards, asked: &[String]) -> usize {
    let unavailable = |payload: &Bytes| Reply::decode(payload.clone()).unwrap().code() == Code::Unavailable;
    asked.iter().filter(|to| shards.answers.get(*to).is_some_and(unavailable)).count()
}

#[test]
fn a_command_behind_a_flood_of_batches_waits_for_their_share() {
    let mut shards = Shards::new(2);
    let ids = shards.streams();
    let client_id: Vec<String> = (0..100_000).map(|n| format!("c{n}")).collect();
    let batch = HeartbeatBatch { stream_id: ids[1].clone(), client_id, ..Default::default() };
    let flood = proto::SubscriptionCommand { command: Some(Command::HeartbeatBatch(batch)) };
    let asked: Vec<String> = (0..30).map(|_| shards.send(subject::SUBSCRIPTION, &flood)).collect();
    assert_eq!(refused(&mut shards, &asked), 28, "those whose turn would come too late");
    let turns = turns_of_a_command(&mut shards, &ids[1]);
    assert!((100..=250).contains(&turns), "{turns} turns of half a millisecond of registers");
    assert!(turns_of_a_command(&mut shards, &ids[0]) <= 1, "the other shard is not concerned");
    shards.run_all();
    assert_eq!(shards.answers.len(), 30, "all are answered");
}

#[test]
fn guessing_handles_uses_up_turns() {
    let mut shards = Shards::new(1);
    let ids = shards.streams();
    let known = shards.asked(register(&ids[0], "v")).handle;
    let turns = |shards: &mut Shards, handle: Vec<u64>| {
        let to = shards.say(Command::HeartbeatBatch(HeartbeatBatch { handle, ..Default::default() }));
        let turns = (1..).find(|_| {
            shards.turn(0);
            shards.answers.contains_key(&to)
        });
        shards.answers.clear();
        turns.expect("it is answered")
    };
    let honest = turns(&mut shards, vec![known; 8_000]);
    let guessed = turns(&mut shards, (1..=8_000).collect());
    assert!(guessed >= 3 * honest, "{guessed} turns beside {honest}");
}

#[test]
fn lists_are_few_at_a_time_and_one_fills_a_turn() {
    let mut shards = Shards::new(2);
    let ids: Vec<String> = (0..1_000).map(|n| format!("show-{n}")).collect();
    ids.iter().for_each(|id| shards.start(id));
    let list =
        Query { query: Some(query::Query::ListStreams(proto::ListStreams { limit: 1_000, ..Default::default() })) };
    for _ in 0..2 {
        let asked: Vec<String> = (0..40).map(|_| shards.send(subject::QUERY, &list)).collect();
        assert_eq!(refused(&mut shards, &asked), 24);
        let turns = turns_of_a_command(&mut shards, &ids[0]);
        assert!((8..=17).contains(&turns), "{turns} turns");
        shards.run_all();
        let states = |payload: &Bytes| QueryReply::decode(payload.clone()).unwrap().state.len();
        assert_eq!(asked.iter().map(|to| states(&shards.answers[to])).sum::<usize>(), 16_000);
        shards.answers.clear();
    }
}

#[test]
fn a_batch_whose_answer_would_not_fit_registers_nobody() {
    let mut shards = Shards::new(2);
    let ids = shards.streams();
    let subscriber =
        |count: usize| (0..count).map(|n| Subscriber { client_id: n.to_string(), ..Default::default() }).collect();
    let batch =
        |count| Command::RegisterBatch(RegisterBatch { stream_id: ids[0].clone(), subscriber: subscriber(count) });
    shards.set_max_payload(16_384);
    let to = shards.say(batch(2_000));
    let reply: Reply = shards.answer(&to);
    assert_eq!(reply.code(), Code::ResourceExhausted, "{}", reply.message);
    assert!(reply.message.contains("16384") && reply.message.contains("17536"), "{}", reply.message);
    assert_eq!(shards.total(), 0);
    assert_eq!(shards.asked(batch(1_800)).code(), Code::Ok);
    assert_eq!(shards.total(), 1_800);
}

#[test]
fn pages_are_cut_to_what_the_connection_takes_and_miss_none() {
    let mut shards = Shards::new(3);
    let ids: BTreeSet<String> = (0..1_000).map(|n| format!("show-{n:080}")).collect();
    ids.iter().for_each(|id| shards.start(id));
    for max_payload in [1_024, 16_384, 65_536] {
        shards.set_max_payload(max_payload);
        let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let list = proto::ListStreams { limit: 1_000, cursor };
            let to = shards.send(subject::QUERY, &Query { query: Some(query::Query::ListStreams(list)) });
            shards.run_all();
            assert!(shards.answers[&to].len() <= max_payload);
            let page: QueryReply = shards.answer(&to);
            assert_eq!(page.code(), Code::Ok, "{}", page.message);
            seen.extend(page.state.into_iter().map(|state| state.stream_id));
            pages += 1;
            cursor = page.cursor;
            if cursor.is_empty() {
                break;
            }
        }
        assert!(pages > 1 && pages < 1_000, "{max_payload}: {pages} pages");
        assert_eq!(seen.len(), 1_000, "{max_payload}: each once");
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), ids, "{max_payload}");
    }
}

#[test]
fn unknown_ones_are_listed_as_far_as_the_connection_takes_them() {
    let mut shards = Shards::new(3);
    let ids = shards.streams();
    let clients: Vec<String> = (0..4_000).map(|n| format!("{n:036}")).collect();
    for max_payload in [16_384, 65_536] {
        shards.set_max_payload(max_payload);
        let handle = (0..4_000_u64).map(|n| n << 54 | n).collect();
        let batch = HeartbeatBatch { stream_id: ids[1].clone(), client_id: clients.clone(), handle };
        let to = shards.say(Command::HeartbeatBatch(batch));
        shards.run_all();
        assert!(shards.answers[&to].len() <= max_payload);
        let reply: Reply = shards.answer(&to);
        let listed = reply.unknown_handle.len() + reply.unknown_client_id.len();
        assert_eq!(reply.code(), Code::UnknownSubscriber);
        assert!(listed > 1_000 && listed < 8_000, "{listed}");
        let said = ["8000 are not registered".to_owned(), format!("{} of them are not listed", 8_000 - listed)];
        assert!(said.iter().all(|words| reply.message.contains(&**words)), "{}", reply.message);
    }
}
