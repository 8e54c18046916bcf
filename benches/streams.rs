//! Streams that tick every 100 ms: processor time, lateness, memory, beside a task with an interval for each.
//!
//! `cargo bench --bench streams` takes about 3 minutes, `-- --quick` 40 seconds. Streams have three scenes and one
//! viewer; their beats are spread over the interval. Each update is made, encoded and handed over, but not sent. An
//! update is late by the time from its beat, which is on the stream's own grid, until it is handed over.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss, reason = "a bench")]

mod support;

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use orchestrator_service::{
    engine::{
        ClientId, Command, Config, Draft, Engine, Input, Limits, Newcomer, Outbox, Request, Scene, Settings, StreamId,
        Tick,
    },
    shard::{
        clock::Now,
        publish_queue::{AtOnce, DEFAULT_MAX_PAYLOAD, PublishQueue, PublishTo},
        turn::EXPIRE_BUDGET,
    },
};
use support::{
    Args, actors, ids, process,
    report::{ACTORS, OURS, Row},
    run, tell,
};

const INTERVAL_MS: u64 = 100;
const SCENES: [(&str, u64); 3] = [("Intro", 3_000), ("Main", 10_000), ("Outro", 2_000)];

fn main() {
    let args = Args::read();
    if let Some(words) = &args.child {
        let (number, seconds) = (words[1].parse().unwrap(), words[2].parse().unwrap());
        return if words[0] == OURS { ours(number, seconds) } else { actors_measured(number, seconds) };
    }
    let (sizes, seconds): (&[u64], u64) =
        if args.quick { (&[1_000, 10_000, 50_000], 4) } else { (&[1_000, 10_000, 50_000, 100_000, 500_000], 15) };
    let mut steps = Vec::new();
    for number in sizes {
        let words = |who: &str| vec![who.to_owned(), number.to_string(), seconds.to_string()];
        // More of them do not keep up with their intervals on two cores.
        if *number <= 50_000 {
            steps.push((words(ACTORS), seconds + 3));
        }
        steps.push((words(OURS), seconds + number / 100_000));
    }
    run("streams", "Streams with a beat of 100 ms", &args, steps);
}

/// How many updates were late by how much.
struct Lateness {
    buckets: Vec<AtomicU64>,
}

impl Lateness {
    /// Of a bucket, µs.
    const WIDTH: u64 = 20;
    const BUCKETS: usize = 50_000;

    fn new() -> Self {
        Self { buckets: (0..Self::BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }

    fn note(&self, micros: u64) {
        let bucket = ((micros / Self::WIDTH) as usize).min(Self::BUCKETS - 1);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }

    fn clear(&self) {
        self.buckets.iter().for_each(|bucket| bucket.store(0, Ordering::Relaxed));
    }

    fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// In ms: below it are so many of a thousand.
    fn quantile(&self, thousandths: u64) -> f64 {
        let wanted = self.count() * thousandths / 1_000;
        let mut seen = 0;
        for (place, bucket) in self.buckets.iter().enumerate() {
            seen += bucket.load(Ordering::Relaxed);
            if seen > wanted {
                return ((place as u64 + 1) * Self::WIDTH) as f64 / 1e3;
            }
        }
        f64::INFINITY
    }

    fn tell(&self, number: u64, seconds: f64, cpu: f64, who: &str) {
        let scale = format!("{} k", number / 1_000);
        let row = |what, value, unit| Row::new(what, &scale, who, value, unit);
        let share = row("processor time", cpu / seconds * 100.0, "% of a core");
        let ours = who == OURS;
        tell(&match number {
            10_000 if ours => share.aimed("<= 8"),
            50_000 if ours => share.aimed("<= 25"),
            500_000 if ours => share.aimed("<= 200"),
            _ => share,
        });
        let made = self.count() as f64 / (number as f64 * seconds * 1e3 / INTERVAL_MS as f64) * 100.0;
        tell(&row("updates made", made, "% of those due"));
        tell(&row("lateness p50", self.quantile(500), "ms"));
        let p99 = row("lateness p99", self.quantile(990), "ms");
        tell(&if number == 50_000 && ours { p99.aimed("<= 2") } else { p99 });
        tell(&row("lateness p99.9", self.quantile(999), "ms"));
    }
}

// --- engines -----------------------------------------------------------------------------------------------------

fn ours(number: u64, seconds: u64) {
    // As `serve` does: a thread a core; one is enough up to 100,000.
    let threads = if number > 100_000 { 2 } else { 1 };
    let before = process::rss();
    let lateness = Arc::new(Lateness::new());
    let origin = 1_800_000_000_000;
    let mut engines: Vec<_> = (0..threads).map(|thread| started(number / threads, thread << 32, origin)).collect();
    // Without the viewer, which is not the stream's, and what the bench itself keeps.
    let own = Lateness::BUCKETS as u64 * 8 + number * 8;
    let bytes = (process::rss() - before - own) as f64 / number as f64;
    tell(&Row::new("memory of a stream", &format!("{} k", number / 1_000), OURS, bytes, "bytes").aimed("<= 512"));
    for (thread, (engine, begins)) in engines.iter_mut().enumerate() {
        watched(engine, begins, (thread as u64) << 32, origin);
    }
    let begun = Instant::now();
    let running: Vec<_> = engines
        .into_iter()
        .map(|(engine, begins)| {
            let lateness = Arc::clone(&lateness);
            // Beyond the measurement: the time of a thread that has ended is not told any more.
            std::thread::spawn(move || play(engine, &begins, origin + INTERVAL_MS, begun, seconds + 2, &lateness))
        })
        .collect();
    // Warm after a second.
    std::thread::sleep(Duration::from_secs(1));
    lateness.clear();
    let (cpu, since) = (process::cpu(), Instant::now());
    std::thread::sleep(Duration::from_secs(seconds - 1));
    let (cpu, elapsed) = (process::cpu() - cpu, since.elapsed());
    lateness.tell(number, elapsed.as_secs_f64(), cpu, OURS);
    running.into_iter().for_each(|thread| thread.join().unwrap());
}

/// An engine with streams that wait for a viewer, and when each begins, ms behind the origin.
fn started(number: u64, first: u64, origin: u64) -> (Engine, Vec<u64>) {
    let mut engine = Engine::new(Settings { seed: 7, ..Settings::default() });
    let mut outbox = Outbox::default();
    let mut begins = Vec::with_capacity(number as usize);
    for stream in 0..number {
        let begin = stream * INTERVAL_MS / number;
        let id = ids::stream(first + stream);
        let stream_id = StreamId::parse(&id).unwrap();
        let scenes = SCENES.map(|(name, duration_ms)| Scene::new(name, duration_ms));
        let draft =
            Draft { scenes: scenes.into(), loop_scenes: true, tick_interval_ms: Some(INTERVAL_MS), ..Draft::default() };
        let config = Config::new(&draft, &Limits::default()).unwrap();
        let command = Command::Start(Some(config));
        let request = Request::new(stream_id, command);
        let now = Tick(origin + begin);
        engine.handle(now, Input::Command(request), &mut outbox).unwrap();
        outbox.clear();
        begins.push(begin);
    }
    (engine, begins)
}

/// Gives each stream a viewer, at the time at which it began.
fn watched(engine: &mut Engine, begins: &[u64], first: u64, origin: u64) {
    let mut outbox = Outbox::default();
    let client_id = ClientId::parse("0b9f8a9e-3c1f-4d53-9a57-3c1f4d539a57").unwrap();
    for (stream, begin) in begins.iter().enumerate() {
        let id = ids::stream(first + stream as u64);
        let subscriber = Newcomer { client_id, session: 0, source: None };
        let input = Input::Register { stream_id: StreamId::parse(&id).unwrap(), subscriber, answered: true };
        engine.handle(Tick(origin + begin), input, &mut outbox).unwrap();
        outbox.clear();
    }
}

/// What a shard's thread does, with a clock of microseconds beside it.
fn play(mut engine: Engine, begins: &[u64], from: u64, begun: Instant, seconds: u64, lateness: &Lateness) {
    let mut outbox = Outbox::default();
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    while begun.elapsed() < Duration::from_secs(seconds) {
        let tick = Tick(from + begun.elapsed().as_millis() as u64);
        engine.expire(tick, EXPIRE_BUDGET, &mut outbox);
        for update in &outbox.updates {
            queue.update(update, Now { tick, wall_ms: tick.0 });
        }
        queue.hand_over(AtOnce::ALL, DEFAULT_MAX_PAYLOAD, |publication| _ = black_box(publication));
        let micros = from * 1_000 + begun.elapsed().as_micros() as u64;
        for update in &outbox.updates {
            let beat = (from - INTERVAL_MS + begins[update.slot as usize]) * 1_000;
            lateness.note((micros - beat) % (INTERVAL_MS * 1_000));
        }
        outbox.clear();
        queue.confirm(queue.handed_over());
        let due = engine.next_deadline().expect("streams play");
        let due = Duration::from_millis(due.0.saturating_sub(from));
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
}

// --- actors ------------------------------------------------------------------------------------------------------

fn actors_measured(number: u64, seconds: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async {
        let before = process::rss();
        let lateness = Arc::new(Lateness::new());
        let mut streams = Vec::new();
        for stream in 0..number {
            let lateness = Arc::clone(&lateness);
            let scenes = SCENES.map(|(name, ms)| (name.to_owned(), ms)).to_vec();
            let note = move |late: Duration| lateness.note(late.as_micros() as u64);
            streams.push(actors::stream(ids::stream(stream), scenes, Duration::from_millis(INTERVAL_MS), note));
            if stream % (number / 100).max(1) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let bytes = (process::rss() - before - Lateness::BUCKETS as u64 * 8) as f64 / number as f64;
        tell(&Row::new("memory of a stream", &format!("{} k", number / 1_000), ACTORS, bytes, "bytes"));
        lateness.clear();
        let (cpu, since) = (process::cpu(), Instant::now());
        tokio::time::sleep(Duration::from_secs(seconds - 1)).await;
        let (cpu, elapsed) = (process::cpu() - cpu, since.elapsed());
        lateness.tell(number, elapsed.as_secs_f64(), cpu, ACTORS);
        streams.iter().for_each(|(task, _)| task.abort());
    });
}
