//! Subscribers: memory, heartbeats and staleness, beside a task and a channel for each.
//!
//! `cargo bench --bench subscribers` takes about 4 minutes; `-- --quick` half a minute. Streams have 1,000 subscribers
//! each, whose ids are UUIDs and whose records lie scattered: they are registered one stream after the other, a thousand
//! times over. Everything is called in-process on one thread; nothing is sent.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss, reason = "a bench")]

mod support;

use std::{
    hash::BuildHasher as _,
    hint::black_box,
    net::SocketAddr,
    time::{Duration, Instant},
};

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use orchestrator_service::engine::{
    Accepted, Batch, ClientId, Command, Config, Draft, Engine, Handle, Input, Limits, Newcomer, Outbox, Request, Scene,
    Settings, StreamId, Subscriber, Tick,
};
use support::{
    Args, actors, ids,
    process::{self, Stopwatch},
    report::{ACTORS, LIMIT, OURS, Row},
    run, tell,
};

const A_STREAM: u64 = 1_000;
const BEGIN: Tick = Tick(1_800_000_000_000);
/// What a turn of a shard's loop allows itself.
const EXPIRE_BUDGET: usize = 2_048;
/// Texts are made in blocks of so many, outside of what is measured.
const BLOCK: u64 = 8_192;

const SINGLY: &str = "heartbeats by key, one at a time";
const BY_KEY: &str = "heartbeats by key, in batches of 1,000";
const BY_HANDLE: &str = "heartbeats by handle, in batches of 1,000";

fn main() {
    let args = Args::read();
    if let Some(words) = &args.child {
        let number = words[1].parse().unwrap();
        return match words[0].as_str() {
            OURS => ours(number, words[2] == "quick"),
            LIMIT => limit(number, words[2] == "quick"),
            _ => actors_measured(number),
        };
    }
    let (length, sizes): (_, &[(u64, u64)]) = if args.quick {
        ("quick", &[(10_000, 3), (100_000, 4), (1_000_000, 10)])
    } else {
        ("full", &[(10_000, 7), (100_000, 8), (1_000_000, 15), (10_000_000, 60)])
    };
    let mut steps = Vec::new();
    for (number, seconds) in sizes {
        let words = |who: &str| vec![who.to_owned(), number.to_string(), length.to_owned()];
        // Three kilobytes each: ten million actors would want 30 GB.
        if *number <= if args.quick { 100_000 } else { 1_000_000 } {
            steps.push((words(ACTORS), *seconds));
        }
        steps.push((words(LIMIT), *seconds));
        steps.push((words(OURS), *seconds));
    }
    run("subscribers", "Subscribers, on one core", &args, steps);
}

fn scale(number: u64) -> String {
    match number {
        10_000_000 => "10 M".to_owned(),
        1_000_000 => "1 M".to_owned(),
        _ => format!("{} k", number / 1_000),
    }
}

// --- the engine --------------------------------------------------------------------------------------------------

struct World {
    engine: Engine,
    outbox: Outbox,
    streams: Vec<String>,
    handles: Vec<Handle>,
}

fn ours(number: u64, quick: bool) {
    let scale = scale(number);
    let count = (number / A_STREAM).max(1);
    let before = process::rss();
    let mut world = World {
        engine: Engine::new(Settings { seed: 7, ..Settings::default() }),
        outbox: Outbox::default(),
        streams: (0..count).map(ids::stream).collect(),
        handles: Vec::new(),
    };
    world.start_streams();
    let with_streams = process::rss();
    let registered = world.register(number);
    let rss = process::rss() - with_streams - world.handles.capacity() as u64 * 8;
    let large = number >= 10_000_000;
    let each = |aim: (f64, f64)| format!(">= {}", if large { aim.1 } else { aim.0 });
    let row = |what, value, unit| Row::new(what, &scale, OURS, value, unit);
    let aimed = |row: Row, aim: String| if number >= 1_000_000 { row.aimed(aim) } else { row };
    tell(&aimed(row("memory of a subscriber", rss as f64 / number as f64, "bytes"), "<= 80".to_owned()));
    tell(&row("memory of a process", (process::rss() - before) as f64 / 1048576.0, "MiB"));
    tell(&row("registers", registered / 1e6, "M/s"));
    let span = Duration::from_secs(if quick { 1 } else { 2 });
    tell(&aimed(row(SINGLY, world.single(number, span) / 1e6, "M/s"), each((12.0, 8.0))));
    tell(&aimed(row(BY_KEY, world.by_key(span) / 1e6, "M/s"), each((30.0, 25.0))));
    tell(&aimed(row(BY_HANDLE, world.by_handle(span) / 1e6, "M/s"), each((60.0, 60.0))));
    let (each_us, longest_ms, removed) = world.go_silent();
    assert_eq!(removed, number, "everybody goes, and nobody twice");
    tell(&row("going stale", each_us, "µs each"));
    tell(&row("going stale, the longest stall", longest_ms, "ms").aimed("<= 2"));
}

impl World {
    fn start_streams(&mut self) {
        let scenes = [("Intro", 3_000), ("Main", 10_000), ("Outro", 2_000)]
            .map(|(name, duration_ms)| Scene::new(name, duration_ms));
        // The longest tick interval there is, so that what is measured is not ticks.
        let draft =
            Draft { scenes: scenes.into(), loop_scenes: true, tick_interval_ms: Some(60_000), ..Draft::default() };
        let config = Config::new(&draft, &Limits::default()).unwrap();
        for stream in &self.streams {
            let request = Request::new(StreamId::parse(stream).unwrap(), Command::Start(Some(config.clone())));
            self.engine.handle(BEGIN, Input::Command(request), &mut self.outbox).unwrap();
            self.outbox.clear();
        }
    }

    /// Registers everybody; returns how many a second.
    fn register(&mut self, number: u64) -> f64 {
        self.handles.reserve_exact(number as usize);
        let mut busy = Duration::ZERO;
        let source: Option<SocketAddr> = Some("192.0.2.7:51000".parse().unwrap());
        for block in 0..number.div_ceil(BLOCK) {
            let range = block * BLOCK..((block + 1) * BLOCK).min(number);
            let texts: Vec<String> = range.clone().map(ids::text).collect();
            let begun = Stopwatch::start();
            for (number, text) in range.zip(&texts) {
                let stream_id = StreamId::parse(&self.streams[number as usize % self.streams.len()]).unwrap();
                let subscriber = Newcomer { client_id: ClientId::parse(text).unwrap(), session: 0, source };
                let input = Input::Register { stream_id, subscriber, answered: true };
                match self.engine.handle(BEGIN, input, &mut self.outbox) {
                    Ok(Accepted::Registered { handle, .. }) => self.handles.push(handle),
                    other => panic!("{other:?}"),
                }
            }
            busy += begun.elapsed();
            self.outbox.clear();
        }
        number as f64 / busy.as_secs_f64()
    }

    /// Runs `act` on blocks that `prepare` makes, for as long as `span` of `act`; returns how many a second.
    fn timed<B>(
        &mut self,
        span: Duration,
        mut prepare: impl FnMut(&Self) -> (u64, B),
        act: impl Fn(&mut Self, B),
    ) -> f64 {
        let (mut busy, mut done) = (Duration::ZERO, 0);
        while busy < span {
            let (count, block) = prepare(self);
            let begun = Stopwatch::start();
            act(self, block);
            busy += begun.elapsed();
            done += count;
            self.outbox.clear();
        }
        done as f64 / busy.as_secs_f64()
    }

    fn single(&mut self, number: u64, span: Duration) -> f64 {
        /// A UUID's text.
        const ID: usize = 36;
        const A_BLOCK: u64 = 4_096;
        let mut order = ids::Shuffled::new(1, number);
        self.timed(
            span,
            // Stream and client one behind the other, as in a message.
            |world| {
                let of = |n: u64| world.streams[n as usize % world.streams.len()].clone() + &ids::text(n);
                (A_BLOCK, order.by_ref().take(A_BLOCK as usize).map(of).collect::<String>())
            },
            |world, block| {
                // As a shard does with the messages of a turn.
                for turn in block.as_bytes().chunks(64 * 2 * ID) {
                    let inputs: Vec<Input<'_>> = turn
                        .chunks(2 * ID)
                        .map(|ids| {
                            let ids = str::from_utf8(ids).unwrap();
                            let stream_id = StreamId::parse(&ids[..ID]).unwrap();
                            let client_id = ClientId::parse(&ids[ID..]).unwrap();
                            Input::Heartbeat(Subscriber { stream_id, client_id, session: 0 })
                        })
                        .collect();
                    let hints = world.engine.fetch(&inputs);
                    for (input, hint) in inputs.into_iter().zip(hints) {
                        assert!(world.engine.handle_with(BEGIN, input, hint, &mut world.outbox).is_ok());
                    }
                }
            },
        )
    }

    fn by_key(&mut self, span: Duration) -> f64 {
        let count = self.streams.len() as u64;
        let mut order = ids::Shuffled::new(2, count);
        let batches = 4;
        self.timed(
            span,
            |_| {
                let streams: Vec<u64> = order.by_ref().take(batches).collect();
                // One behind the other, as in a message.
                let block = streams.iter().map(|stream| {
                    let texts = (0..A_STREAM).map(|place| ids::text(place * count + stream));
                    (*stream, texts.collect::<String>())
                });
                (batches as u64 * A_STREAM, block.collect::<Vec<_>>())
            },
            |world, block| {
                for (stream, texts) in &block {
                    let stream_id = Some(StreamId::parse(&world.streams[*stream as usize]).unwrap());
                    let clients = texts.as_bytes().chunks(36).map(|text| ClientId::parse_uuid(text).unwrap()).collect();
                    let batch = Batch { stream_id, clients, handles: Vec::new() };
                    hear_all(&mut world.engine, batch, &mut world.outbox);
                }
            },
        )
    }

    fn by_handle(&mut self, span: Duration) -> f64 {
        let mut order = ids::Shuffled::new(3, self.handles.len() as u64);
        let batches = 4;
        self.timed(
            span,
            |world| {
                let block = (0..batches).map(|_| {
                    order.by_ref().take(1_000).map(|place| world.handles[place as usize]).collect::<Vec<Handle>>()
                });
                (batches * 1_000, block.collect::<Vec<_>>())
            },
            |world, block| {
                for handles in block {
                    let batch = Batch { stream_id: None, clients: Vec::new(), handles };
                    hear_all(&mut world.engine, batch, &mut world.outbox);
                }
            },
        )
    }

    /// Everybody was last heard of at the same time. Returns µs each, the longest call in ms, and how many went.
    fn go_silent(&mut self) -> (f64, f64, u64) {
        let number = self.engine.counts().total;
        let (mut longest, mut busy, mut now) = (Duration::ZERO, Duration::ZERO, BEGIN);
        while self.engine.counts().total > 0 {
            now = self.engine.next_deadline().unwrap().max(now);
            let begun = Stopwatch::start();
            self.engine.expire(now, EXPIRE_BUDGET, &mut self.outbox);
            longest = longest.max(begun.elapsed());
            busy += begun.elapsed();
            self.outbox.clear();
            assert!(now.since(BEGIN) < 91_000, "all are gone within a second of the stale timeout");
        }
        (busy.as_secs_f64() * 1e6 / number as f64, longest.as_secs_f64() * 1e3, number)
    }
}

fn hear_all(engine: &mut Engine, batch: Batch<'_>, outbox: &mut Outbox) {
    match engine.handle(BEGIN, Input::HeartbeatBatch(batch), outbox) {
        Ok(Accepted::Batch(unplaced)) => assert!(black_box(unplaced).is_empty()),
        other => panic!("{other:?}"),
    }
}

// --- the limit ---------------------------------------------------------------------------------------------------

/// The least that does the same: a table of 64-byte records, a hash index over their keys in binary form, and nothing
/// around it. What of the machine's memory is to be had at this hour shows here, and is the measure for the rest.
struct Limit {
    records: Vec<[u64; 8]>,
    index: HashTable<u32>,
    hasher: FixedState,
}

impl Limit {
    fn find(&self, hash: u64, key: u128) -> Option<u32> {
        self.index.find(hash, |slot| key_of(&self.records[*slot as usize]) == key).copied()
    }

    fn touch(&self, slots: impl Iterator<Item = u32>) {
        black_box(slots.fold(0, |sum, slot| sum ^ self.records[slot as usize][2]));
    }
}

/// Looks a block of slots and keys up.
type LookUp = dyn FnMut(&mut Limit, &[(u32, u128)]);

fn key_of(record: &[u64; 8]) -> u128 {
    u128::from(record[0]) | u128::from(record[1]) << 64
}

fn limit(number: u64, quick: bool) {
    let scale = scale(number);
    let row = |what, value, unit| tell(&Row::new(what, &scale, LIMIT, value, unit));
    let before = process::rss();
    let count = number as usize;
    let hasher = FixedState::with_seed(7);
    let records: Vec<[u64; 8]> =
        (0..number).map(|n| ids::uuid(n).as_u64_pair()).map(|(a, b)| [a, b, 1, 0, 0, 0, 0, 0]).collect();
    let mut limit = Limit { records, index: HashTable::with_capacity(count), hasher };
    let mut busy = Duration::ZERO;
    for block in 0..number.div_ceil(BLOCK) {
        let range = block * BLOCK..((block + 1) * BLOCK).min(number);
        let begun = Stopwatch::start();
        for slot in range {
            let hash = limit.hasher.hash_one(key_of(&limit.records[slot as usize]));
            limit
                .index
                .insert_unique(hash, slot as u32, |slot| limit.hasher.hash_one(key_of(&limit.records[*slot as usize])));
        }
        busy += begun.elapsed();
    }
    row("memory of a subscriber", (process::rss() - before) as f64 / number as f64, "bytes");
    row("registers", number as f64 / busy.as_secs_f64() / 1e6, "M/s");
    let span = Duration::from_secs(if quick { 1 } else { 2 });
    let mut time = |what, act: &mut LookUp| {
        let (mut busy, mut done) = (Duration::ZERO, 0);
        let mut order = ids::Shuffled::new(1, number);
        while busy < span {
            let block: Vec<(u32, u128)> = order
                .by_ref()
                .take(4_000)
                .map(|n| {
                    (
                        n as u32,
                        key_of(&{
                            let (a, b) = ids::uuid(n).as_u64_pair();
                            [a, b, 0, 0, 0, 0, 0, 0]
                        }),
                    )
                })
                .collect();
            let begun = Stopwatch::start();
            act(&mut limit, &block);
            busy += begun.elapsed();
            done += block.len();
        }
        row(what, done as f64 / busy.as_secs_f64() / 1e6, "M/s");
    };
    time(SINGLY, &mut |limit, block| {
        for (_, key) in block {
            let slot = limit.find(limit.hasher.hash_one(*key), *key).unwrap();
            limit.records[slot as usize][3] = 1;
        }
    });
    time(BY_KEY, &mut |limit, block| {
        for keys in block.chunks(32) {
            let mut hashes = [0; 32];
            hashes.iter_mut().zip(keys).for_each(|(hash, (_, key))| *hash = limit.hasher.hash_one(*key));
            let likely = hashes.map(|hash| limit.index.find(hash, |_| true).copied().unwrap_or_default());
            limit.touch(likely.into_iter());
            for ((_, key), hash) in keys.iter().zip(hashes) {
                let slot = limit.find(hash, *key).unwrap();
                limit.records[slot as usize][3] = 1;
            }
        }
    });
    time(BY_HANDLE, &mut |limit, block| {
        for handles in block.chunks(32) {
            limit.touch(handles.iter().map(|(slot, _)| *slot));
            for (slot, _) in handles {
                let record = &mut limit.records[*slot as usize];
                assert_eq!(record[2], 1);
                record[3] = 1;
            }
        }
    });
}

// --- actors ------------------------------------------------------------------------------------------------------

fn actors_measured(number: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let scale = scale(number);
    let row = move |what: &str, value, unit: &str| tell(&Row::new(what, &scale, ACTORS, value, unit));
    // In a task, so that yielding lets all the others run first.
    let measured = async move {
        let streams: Vec<String> = (0..(number / A_STREAM).max(1)).map(ids::stream).collect();
        let stream_of = |number: u64| streams[number as usize % streams.len()].as_str();
        let before = process::rss();
        let subscribers = actors::Subscribers::default();
        let mut busy = Duration::ZERO;
        for block in 0..number.div_ceil(BLOCK) {
            let range = block * BLOCK..((block + 1) * BLOCK).min(number);
            let texts: Vec<String> = range.clone().map(ids::text).collect();
            let begun = Stopwatch::start();
            range.zip(&texts).for_each(|(number, text)| subscribers.register(stream_of(number), text));
            tokio::task::yield_now().await;
            busy += begun.elapsed();
        }
        row("memory of a subscriber", (process::rss() - before) as f64 / number as f64, "bytes");
        row("memory of a process", (process::rss() - before) as f64 / 1048576.0, "MiB");
        row("registers", number as f64 / busy.as_secs_f64() / 1e6, "M/s");
        let (mut busy, mut done) = (Duration::ZERO, 0);
        let mut order = ids::Shuffled::new(1, number);
        while busy < Duration::from_secs(2) {
            let block: Vec<(u64, String)> = order.by_ref().take(1_024).map(|n| (n, ids::text(n))).collect();
            let begun = Stopwatch::start();
            for (number, text) in &block {
                assert!(subscribers.heartbeat(stream_of(*number), text).await);
            }
            // Until the tasks have run.
            tokio::task::yield_now().await;
            busy += begun.elapsed();
            done += block.len();
        }
        row(SINGLY, done as f64 / busy.as_secs_f64() / 1e6, "M/s");
        // A beat beside the sweep shows for how long nothing else runs.
        let beat = tokio::spawn(async {
            let (mut longest, mut last) = (Duration::ZERO, Instant::now());
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                longest = longest.max(last.elapsed());
                last = Instant::now();
                if STOP.load(std::sync::atomic::Ordering::Relaxed) {
                    return longest;
                }
            }
        });
        tokio::task::yield_now().await;
        let begun = Instant::now();
        let removed = subscribers.sweep(tokio::time::Instant::now()).await;
        let busy = begun.elapsed();
        STOP.store(true, std::sync::atomic::Ordering::Relaxed);
        let longest = beat.await.unwrap();
        assert_eq!(removed as u64, number);
        row("going stale", busy.as_secs_f64() * 1e6 / number as f64, "µs each");
        row("going stale, the longest stall", longest.as_secs_f64() * 1e3, "ms");
    };
    runtime.block_on(async { tokio::spawn(measured).await }).unwrap();
}

static STOP: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
