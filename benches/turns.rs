//! The longest turn of a shard's loop, while a beat must not be late.
//!
//! `cargo bench --bench turns` takes about a minute, `-- --quick` a quarter of it. A shard takes its turns as its
//! thread would let it, with messages in its mailbox and in virtual time; each turn is timed, in processor time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss, reason = "a bench")]

mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use orchestrator_service::{
    engine::{Limits, Settings, Tick},
    shard::{
        clock::Now,
        ingress::Ingress,
        mailbox::{MAILBOX_BYTES, MAILBOX_CAPACITY, Mailbox},
        publish_queue::{AtOnce, DEFAULT_MAX_PAYLOAD, PublishQueue, PublishTo},
        router::Router,
        totals::Totals,
        turn::{Next, Shard, ShardSettings, TurnLimits},
    },
    wire::{
        WireLimits,
        proto::{self, orchestrator_command, subscription_command},
        subject,
    },
};
use support::{
    Args, ids,
    process::Stopwatch,
    report::{OURS, Row},
    run, step, tell,
};

const BEGIN: u64 = 1_800_000_000_000;

fn main() {
    let args = Args::read();
    if let Some(words) = &args.child {
        let number = words[1].parse().unwrap();
        return match words[0].as_str() {
            "register" => register(number),
            "stale" => stale(number),
            "start" => start(number),
            _ => large(),
        };
    }
    let million = if args.quick { "100000" } else { "1000000" };
    let steps = vec![
        step(&["register", million], if args.quick { 2 } else { 12 }),
        step(&["stale", million], if args.quick { 2 } else { 12 }),
        step(&["start", "10000"], 1),
        step(&["large", "0"], 1),
    ];
    run("turns", "The longest turns of a shard's loop", &args, steps);
}

/// A shard with all that is around it, in virtual time.
struct Desk {
    shard: Shard,
    router: Arc<Router>,
    ingress: Ingress,
    queue: PublishQueue,
    now: u64,
    turns: Vec<Duration>,
}

impl Desk {
    fn new() -> Self {
        let wire = Arc::new(WireLimits { engine: Limits::default(), ..WireLimits::default() });
        let engine = Settings { seed: 7, ..Settings::default() };
        let settings = ShardSettings { engine, wire: Arc::clone(&wire), recorder: None, turn: TurnLimits::default() };
        let router = Arc::new(Router::new(vec![Mailbox::new(MAILBOX_CAPACITY, MAILBOX_BYTES)]));
        let shard = Shard::new(0, settings, Arc::clone(&router), Arc::new(Totals::new(1)));
        let ingress = Ingress::new(Arc::clone(&router), wire);
        Self { shard, router, ingress, queue: PublishQueue::new(PublishTo::Subjects), now: BEGIN, turns: Vec::new() }
    }

    fn say(&self, subject: &str, message: &impl prost::Message) {
        let refused = self.ingress.accept(subject, Bytes::from(message.encode_to_vec()), Some("reply".into()));
        assert!(refused.is_none(), "the mailbox has room");
    }

    /// Turns until nothing is left to be done at this time, and then the time at which there is.
    fn turn(&mut self) -> Option<u64> {
        loop {
            let begun = Stopwatch::start();
            let next = self.shard.turn(Now { tick: Tick(self.now), wall_ms: self.now }, &mut self.queue);
            self.turns.push(begun.elapsed());
            // As the publisher would.
            self.queue.hand_over(AtOnce::ALL, DEFAULT_MAX_PAYLOAD, |_| {});
            self.queue.confirm(self.queue.handed_over());
            match next {
                Next::Again => {}
                Next::Sleep(due) => return due.map(|due| due.0),
                Next::Blocked => panic!("everything owed was handed over"),
            }
        }
    }

    fn tell(&mut self, what: &str) {
        let mut turns = std::mem::take(&mut self.turns);
        turns.sort_unstable();
        let ms = |place: usize| turns[place.min(turns.len() - 1)].as_secs_f64() * 1e3;
        tell(&Row::new(what, "longest", OURS, ms(turns.len()), "ms").aimed("<= 2"));
        tell(&Row::new(what, "p99.9", OURS, ms(turns.len() * 999 / 1000), "ms"));
        tell(&Row::new(what, "p50", OURS, ms(turns.len() / 2), "ms"));
        tell(&Row::new(what, "turns", OURS, turns.len() as f64, ""));
    }

    fn start(&self, stream: u64, tick_interval_ms: u64) {
        let scene =
            |name: &str, duration_ms| proto::SceneConfig { name: name.into(), duration_ms, ..Default::default() };
        let config = proto::OrchestratorConfig {
            scenes: vec![scene("Intro", 3_000), scene("Main", 10_000), scene("Outro", 2_000)],
            tick_interval_ms: Some(tick_interval_ms),
            loop_scenes: true,
            ..Default::default()
        };
        let start = proto::Start { stream_id: ids::stream(stream), config: Some(config) };
        let command = Some(orchestrator_command::Command::Start(start));
        self.say(subject::COMMAND, &proto::OrchestratorCommand { command, ..Default::default() });
    }

    fn register(&self, stream: u64, viewers: std::ops::Range<u64>) {
        let subscriber = viewers.map(|viewer| proto::Subscriber {
            client_id: ids::text(viewer),
            source_addr: "192.0.2.7:51000".into(),
            session: 0,
        });
        let batch = proto::RegisterBatch { stream_id: ids::stream(stream), subscriber: subscriber.collect() };
        let command = Some(subscription_command::Command::RegisterBatch(batch));
        self.say(subject::SUBSCRIPTION, &proto::SubscriptionCommand { command });
    }
}

/// A crowd: so many subscribers in batches of 1,000, 100 streams, of which one has a beat of 50 ms.
fn crowd(desk: &mut Desk, number: u64) {
    desk.start(0, 50);
    (1..100).for_each(|stream| desk.start(stream, 60_000));
    desk.register(0, u64::MAX - 1..u64::MAX);
    desk.turn();
    desk.turns.clear();
    for batch in 0..number / 1_000 {
        desk.register(batch % 99 + 1, batch * 1_000..(batch + 1) * 1_000);
        if batch % 100 == 99 {
            desk.now += 1;
            desk.turn();
        }
    }
    desk.turn();
    assert_eq!(desk.shard.engine().counts().total, number + 1);
}

fn register(number: u64) {
    let mut desk = Desk::new();
    crowd(&mut desk, number);
    desk.tell(&format!("{} k register", number / 1_000));
}

fn stale(number: u64) {
    let mut desk = Desk::new();
    crowd(&mut desk, number);
    desk.turns.clear();
    let mut looked = Instant::now();
    while desk.shard.engine().counts().total > 1 {
        let due = desk.turn().expect("somebody is left");
        desk.now = due.max(desk.now + 1).min(desk.now + 50);
        // The one with the beat is heard of.
        if desk.now % 10_000 < 50 {
            let command = Some(subscription_command::Command::Heartbeat(proto::Heartbeat {
                stream_id: ids::stream(0),
                client_id: ids::text(u64::MAX - 1),
                session: 0,
            }));
            desk.say(subject::SUBSCRIPTION, &proto::SubscriptionCommand { command });
        }
        assert!(desk.now < BEGIN + 120_000, "all are gone by then");
        if looked.elapsed() > Duration::from_secs(10) {
            looked = Instant::now();
            eprintln!("{} left", desk.shard.engine().counts().total);
        }
    }
    desk.tell(&format!("{} k go stale", number / 1_000));
}

fn start(number: u64) {
    let mut desk = Desk::new();
    (0..number).for_each(|stream| desk.start(stream, 100));
    (0..number).for_each(|stream| desk.register(stream, stream..stream + 1));
    desk.turn();
    assert_eq!(desk.shard.engine().counts().running, number);
    for _ in 0..1_000 {
        desk.now += 1;
        desk.turn();
    }
    desk.tell(&format!("{} k streams start and play a second", number / 1_000));
}

/// One message of the greatest size: as many registers as fit.
fn large() {
    let mut desk = Desk::new();
    desk.start(0, 100);
    desk.turn();
    desk.turns.clear();
    let subscriber = (0..90_000_u64).map(|n| proto::Subscriber { client_id: format!("{n:x}"), ..Default::default() });
    let batch = proto::RegisterBatch { stream_id: ids::stream(0), subscriber: subscriber.collect() };
    let command = Some(subscription_command::Command::RegisterBatch(batch));
    desk.say(subject::SUBSCRIPTION, &proto::SubscriptionCommand { command });
    desk.turn();
    assert_eq!(desk.shard.engine().counts().total, 90_000);
    assert!(desk.router.mailbox(0).is_empty());
    desk.tell("one message with 90 k registers");
}
