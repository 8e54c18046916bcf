//! The engine's operations and the wire's, one by one: `cargo bench --bench engine`.
//!
//! They run on 100 streams with 100 subscribers each, which lie in the nearest caches: what is measured is work, not
//! memory. `cargo bench --bench subscribers` shows what memory adds.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench")]

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use orchestrator_service::{
    engine::{
        Accepted, Batch, ClientId, Command, Config, Draft, Engine, Handle, Input, Limits, Newcomer, Outbox, Request,
        Scene, Settings, StreamId, Subscriber, Tick,
    },
    wire::{
        WireLimits, commands, decode,
        encode::{self, Now},
        proto::{self, orchestrator_command, subscription_command},
        subscriptions::{self, Subscription},
    },
};
use prost::Message as _;
use uuid::Uuid;

const NOW: Tick = Tick(1_800_000_000_000);
const STREAMS: u64 = 100;
const VIEWERS: u64 = 100;
const BATCH: u64 = 1_000;

struct World {
    engine: Engine,
    outbox: Outbox,
    streams: Vec<String>,
    viewers: Vec<String>,
    handles: Vec<Handle>,
}

fn id(number: u64) -> String {
    Uuid::from_u64_pair(number.wrapping_mul(0x9e37_79b9_7f4a_7c15), !number).to_string()
}

fn config(tick_interval_ms: u64) -> Config {
    let scenes =
        [("Intro", 3_000), ("Main", 10_000), ("Outro", 2_000)].map(|(name, duration_ms)| Scene::new(name, duration_ms));
    let tick_interval_ms = Some(tick_interval_ms);
    let draft = Draft { scenes: scenes.into(), loop_scenes: true, tick_interval_ms, ..Draft::default() };
    Config::new(&draft, &Limits::default()).unwrap()
}

fn command<'a>(stream: &'a str, command: Command<'a>) -> Input<'a> {
    let stream_id = StreamId::parse(stream).unwrap();
    Input::Command(Request::new(stream_id, command))
}

fn newcomer(client: &str) -> Newcomer<'_> {
    let client_id = ClientId::parse(client).unwrap();
    Newcomer { client_id, session: 0, source: Some("192.0.2.7:51000".parse().unwrap()) }
}

fn subscriber<'a>(stream: &'a str, client: &'a str) -> Subscriber<'a> {
    let stream_id = StreamId::parse(stream).unwrap();
    Subscriber { stream_id, client_id: ClientId::parse(client).unwrap(), session: 0 }
}

impl World {
    fn new(tick_interval_ms: u64) -> Self {
        let mut world = Self {
            engine: Engine::new(Settings { seed: 7, ..Settings::default() }),
            outbox: Outbox::default(),
            streams: (0..STREAMS).map(id).collect(),
            viewers: (0..VIEWERS).map(|viewer| id(1_000_000 + viewer)).collect(),
            handles: Vec::new(),
        };
        for stream in &world.streams {
            let start = command(stream, Command::Start(Some(config(tick_interval_ms))));
            world.engine.handle(NOW, start, &mut world.outbox).unwrap();
            for viewer in &world.viewers {
                let stream_id = StreamId::parse(stream).unwrap();
                let input = Input::Register { stream_id, subscriber: newcomer(viewer), answered: true };
                match world.engine.handle(NOW, input, &mut world.outbox) {
                    Ok(Accepted::Registered { handle, .. }) => world.handles.push(handle),
                    other => panic!("{other:?}"),
                }
            }
        }
        world.outbox.clear();
        world
    }
}

fn handle(engine: &mut Engine, outbox: &mut Outbox, now: Tick, input: Input<'_>) {
    assert!(black_box(engine.handle(now, input, outbox)).is_ok());
    outbox.clear();
}

fn subscribers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("subscribers");
    let World { mut engine, mut outbox, streams, viewers, handles } = World::new(60_000);
    let newcomers: Vec<String> = (0..4_096).map(|viewer| id(2_000_000 + viewer)).collect();
    group.throughput(Throughput::Elements(2));
    let mut turn = 0;
    group.bench_function("register and unregister", |bencher| {
        bencher.iter(|| {
            turn = (turn + 1) % newcomers.len();
            let (stream, viewer) = (&streams[turn % streams.len()], &newcomers[turn]);
            let stream_id = StreamId::parse(stream).unwrap();
            let register = Input::Register { stream_id, subscriber: newcomer(viewer), answered: true };
            handle(&mut engine, &mut outbox, NOW, register);
            handle(&mut engine, &mut outbox, NOW, Input::Unregister(subscriber(stream, viewer)));
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("heartbeat by key", |bencher| {
        bencher.iter(|| {
            turn += 1;
            let (stream, viewer) = (&streams[turn % streams.len()], &viewers[turn % viewers.len()]);
            handle(&mut engine, &mut outbox, NOW, Input::Heartbeat(subscriber(stream, viewer)));
        });
    });
    group.throughput(Throughput::Elements(VIEWERS));
    group.bench_function("heartbeats by key, a batch of 100", |bencher| {
        bencher.iter(|| {
            turn += 1;
            let stream_id = Some(StreamId::parse(&streams[turn % streams.len()]).unwrap());
            let clients = viewers.iter().map(|viewer| ClientId::parse(viewer).unwrap()).collect();
            let batch = Batch { stream_id, clients, handles: Vec::new() };
            handle(&mut engine, &mut outbox, NOW, Input::HeartbeatBatch(batch));
        });
    });
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("heartbeats by handle, a batch of 1,000", |bencher| {
        let batches: Vec<&[Handle]> = handles.chunks(BATCH as usize).collect();
        bencher.iter(|| {
            turn += 1;
            let handles = batches[turn % batches.len()].to_vec();
            let batch = Batch { stream_id: None, clients: Vec::new(), handles };
            handle(&mut engine, &mut outbox, NOW, Input::HeartbeatBatch(batch));
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("stats", |bencher| {
        bencher.iter(|| handle(&mut engine, &mut outbox, NOW, Input::GetStats(None)));
    });
    group.throughput(Throughput::Elements(STREAMS * VIEWERS));
    group.bench_function("10,000 go stale and are removed", |bencher| {
        bencher.iter_batched_ref(
            || World::new(60_000),
            |world| {
                let mut now = NOW;
                while world.engine.counts().total > 0 {
                    now = world.engine.next_deadline().unwrap().max(now);
                    world.engine.expire(now, usize::MAX, &mut world.outbox);
                    world.outbox.clear();
                }
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn streams(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("streams");
    let World { mut engine, mut outbox, streams, .. } = World::new(60_000);
    group.throughput(Throughput::Elements(2));
    let mut turn = 0;
    group.bench_function("pause and resume", |bencher| {
        bencher.iter(|| {
            turn += 1;
            let stream = &streams[turn % streams.len()];
            handle(&mut engine, &mut outbox, NOW, command(stream, Command::Pause));
            handle(&mut engine, &mut outbox, NOW, command(stream, Command::Resume));
        });
    });
    let World { mut engine, mut outbox, .. } = World::new(100);
    group.throughput(Throughput::Elements(STREAMS));
    let mut now = NOW;
    group.bench_function("a tick of 100 streams", |bencher| {
        bencher.iter(|| {
            now = now.after(100);
            engine.expire(now, usize::MAX, &mut outbox);
            assert!(outbox.updates.len() >= STREAMS as usize);
            outbox.clear();
            // In time the subscribers would go stale.
            if now.since(NOW).is_multiple_of(60_000) {
                handle(&mut engine, &mut outbox, now, Input::ClockStalled { ms: 90_000 });
            }
        });
    });
    group.finish();
}

fn wire(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    let limits = WireLimits::default();
    let subscription = |command| proto::SubscriptionCommand { command: Some(command) }.encode_to_vec();
    let heartbeat = subscription(subscription_command::Command::Heartbeat(proto::Heartbeat {
        stream_id: id(1),
        client_id: id(2),
        session: 3,
    }));
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode a heartbeat", |bencher| {
        bencher.iter(|| {
            let message = subscriptions::read(black_box(&heartbeat), &limits).unwrap();
            black_box(subscriptions::input(message, false).is_ok())
        });
    });
    group.bench_function("decode a heartbeat with prost alone", |bencher| {
        bencher.iter(|| black_box(proto::SubscriptionCommand::decode(black_box(&*heartbeat))).is_ok());
    });
    let batch = subscription(subscription_command::Command::HeartbeatBatch(proto::HeartbeatBatch {
        stream_id: id(1),
        client_id: (0..BATCH).map(id).collect(),
        handle: Vec::new(),
    }));
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("decode a batch of 1,000 keys", |bencher| {
        bencher.iter(|| {
            let message = subscriptions::read(black_box(&batch), &limits).unwrap();
            black_box(subscriptions::input(message, false).is_ok())
        });
    });
    group.bench_function("decode a batch of 1,000 keys with prost alone", |bencher| {
        bencher.iter(|| black_box(proto::SubscriptionCommand::decode(black_box(&*batch))).is_ok());
    });
    let by_handle = subscription(subscription_command::Command::HeartbeatBatch(proto::HeartbeatBatch {
        handle: (0..BATCH).collect(),
        ..Default::default()
    }));
    group.bench_function("decode a batch of 1,000 handles", |bencher| {
        bencher.iter(|| black_box(Subscription::read(black_box(&by_handle))).is_ok());
    });
    let seek = orchestrator_command::Command::Seek(proto::Seek { stream_id: id(1), position_ms: 7 });
    let seek = proto::OrchestratorCommand { command: Some(seek), ..Default::default() }.encode_to_vec();
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode a command", |bencher| {
        bencher.iter(|| {
            let message = decode::message(black_box(&seek), &limits).unwrap();
            black_box(commands::input(&message, &limits).is_ok())
        });
    });
    let World { mut engine, mut outbox, .. } = World::new(100);
    engine.expire(NOW.after(100), usize::MAX, &mut outbox);
    let update = outbox.updates[0].clone();
    let now = Now { tick: NOW.after(100), wall_ms: NOW.0 + 100 };
    let mut buffer = Vec::new();
    group.bench_function("encode an update", |bencher| {
        bencher.iter(|| {
            buffer.clear();
            encode::write_state(&mut buffer, black_box(&update), now);
            black_box(buffer.len())
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(30);
    targets = subscribers, streams, wire
}
criterion_main!(benches);
