//! The headline run: ten million viewers of ten thousand streams, over a real nats-server, for five minutes.
//!
//! `cargo bench --bench headline` takes about six minutes and wants two cores and 3 GiB; `-- --quick` is done within
//! one. `--viewers`, `--streams`, `--seconds` and `--publish subjects|feed` make other runs of it; `--no-ticks` one of
//! ten times as many streams, of which only changes are told: the scenes.
//!
//! Several gateways (tasks of this process, each with a connection of its own) register their viewers in batches and
//! heartbeat each of them by handle, 1,000 in a message, spread over the heartbeat interval. A batch holds viewers of as
//! many streams as it can, so that each is for all shards. Every minute each stream loses 1 % of its viewers who say so
//! and are replaced by others, and 1 % of them who just say nothing any more.
//!
//! **Lateness** of an update is the time from the tick's place on the stream's beat until the update has been received
//! here. The beat is that of the stream's position, which a tick finds at a multiple of the interval; so an update that
//! says position 1,203 ms at the wall-clock time `server_time_ms` was due 3 ms before that. Clock and position are told
//! in whole milliseconds, rounded down, which makes an update look up to 1 ms later than it was. It takes in the
//! service's own lateness, the broker, and this process, all on the same cores. What the machine itself adds is shown
//! beside it: by how much a thread is late that only sleeps, and the round trip of a request that is only echoed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss, reason = "a bench")]

mod gateways;
#[path = "../support/mod.rs"]
mod support;

use std::{
    io::IsTerminal as _,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_nats::Client;
use bytes::Bytes;
use clap::Parser as _;
use futures_util::StreamExt as _;
use gateways::{GATEWAYS, Gateway, Known, ONE_OF, REMOVAL_SLACK};
use orchestrator_service::wire::{feed, proto::Cause, subject};
use prost::Message as _;
use support::{
    ids,
    lateness::Histogram,
    nats::{
        caller, messages,
        program::{Service, until_told_to_stop},
        server::Server,
    },
    process::{cpu_of, rss_of},
    report::{BARE, OURS, Report, Row, number},
};
use tokio::task::JoinSet;

const TICK_MS: u64 = 100;
/// How many scenes begin in a pass, and how long one is, ms.
const PASS: (u64, u64) = (3, 15_000);
const ECHO: &str = "bench.echo";
/// Between two commands, and between two looks at the totals.
const PERIOD: Duration = Duration::from_millis(100);

/// The headline run: many viewers of many streams over a real nats-server.
#[derive(Debug, clap::Parser)]
struct Options {
    /// Viewers, all streams together.
    #[arg(long)]
    viewers: Option<u64>,
    /// Streams, each with a tick every 100 ms if it has any.
    #[arg(long)]
    streams: Option<u64>,
    /// For how long, after everybody has been registered.
    #[arg(long)]
    seconds: Option<u64>,
    /// Streams without ticks: ten times as many, unless told otherwise.
    #[arg(long)]
    no_ticks: bool,
    /// Where the service publishes and this program listens.
    #[arg(long, default_value = "subjects", value_parser = ["subjects", "feed"])]
    publish: String,
    /// 100,000 viewers of 100 streams, with shorter times.
    #[arg(long)]
    quick: bool,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How large, and how long.
#[derive(Clone, Copy, Debug)]
struct Plan {
    viewers: u64,
    streams: u64,
    /// None: no ticks.
    tick_ms: Option<u64>,
    span: Duration,
    stale: Duration,
    heartbeat: Duration,
    /// In which one of a hundred is replaced, and one falls silent.
    minute: Duration,
}

impl Plan {
    fn of(options: &Options) -> Self {
        let (viewers, streams, seconds, times_s) =
            if options.quick { (100_000, 100, 40, [15, 5, 10]) } else { (10_000_000, 10_000, 300, [90, 30, 60]) };
        let [stale, heartbeat, minute] = times_s.map(Duration::from_secs);
        let span = Duration::from_secs(options.seconds.unwrap_or(seconds).clamp(10, 3_600));
        let (streams, tick_ms) = if options.no_ticks { (streams * 10, None) } else { (streams, Some(TICK_MS)) };
        let streams = options.streams.unwrap_or(streams).max(GATEWAYS);
        let viewers = options.viewers.unwrap_or(viewers) / streams * streams;
        assert!(viewers / streams >= ONE_OF, "each stream needs {ONE_OF} viewers at least");
        Self { viewers, streams, tick_ms, span, stale, heartbeat, minute }
    }

    const fn a_stream(&self) -> u64 {
        self.viewers / self.streams
    }

    /// How many updates of all streams are to come in a second, at the least, where so many seconds are measured.
    fn asked(&self, seconds: f64) -> f64 {
        let (scenes, pass_ms) = PASS;
        // Scenes begin for all streams at much the same time: what is sure to be seen is those of whole passes.
        let whole_passes = (seconds * 1_000.0 / pass_ms as f64).floor();
        let of_one = self.tick_ms.map_or(whole_passes * scenes as f64 / seconds, |tick_ms| 1_000.0 / tick_ms as f64);
        self.streams as f64 * of_one
    }

    /// How many of a stream are replaced at a time, or fall silent.
    const fn few(&self) -> u64 {
        self.a_stream() / ONE_OF
    }

    /// How many times viewers fall silent early enough to be seen removed.
    fn silences(&self) -> u64 {
        let last = self.span.saturating_sub(self.stale + REMOVAL_SLACK + Duration::from_secs(2));
        // More would meet those who are replaced.
        ((last.as_secs_f64() / self.minute.as_secs_f64()) as u64).min(ONE_OF / 2)
    }
}

fn main() {
    let options = Options::parse();
    let plan = Plan::of(&options);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // Of its own, so that gateways do not hold it up.
    let ears = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let limit = plan.span + plan.stale + Duration::from_secs(120);
    let report = runtime.block_on(async {
        let run = until_told_to_stop(headline(&options, plan, ears.handle()));
        tokio::time::timeout(limit, run).await.expect("the run ends in time")
    });
    report.print();
    report.save(&options.out);
    ears.shutdown_background();
}

// --- who listens -------------------------------------------------------------------------------------------------

/// What of an update is of interest here.
#[derive(Clone, PartialEq, prost::Message)]
struct Seen {
    #[prost(uint64, tag = "3")]
    current_time: u64,
    #[prost(uint64, tag = "15")]
    server_time_ms: u64,
    #[prost(enumeration = "Cause", tag = "21")]
    cause: i32,
}

#[derive(Debug, Default)]
struct Heard {
    counting: AtomicBool,
    updates: AtomicU64,
    /// End to end, and what of it the service told itself.
    lateness: Mutex<(Histogram, Histogram)>,
}

impl Heard {
    fn take(&self, updates: impl Iterator<Item = Bytes>) {
        let received_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        let mut lateness = self.lateness.lock().unwrap();
        let mut count = 0;
        for update in updates {
            let seen = Seen::decode(update).expect("an update");
            count += 1;
            if !matches!(seen.cause(), Cause::Tick | Cause::Scene) || !self.counting.load(Relaxed) {
                continue;
            }
            let off_beat_ms = seen.current_time % TICK_MS;
            let late_us = received_us.saturating_sub(seen.server_time_ms * 1_000) + off_beat_ms * 1_000;
            lateness.0.add(Duration::from_micros(late_us));
            lateness.1.add(Duration::from_millis(off_beat_ms));
        }
        self.updates.fetch_add(count, Relaxed);
    }
}

async fn listen(url: String, of_feeds: bool, heard: Arc<Heard>) {
    let client = caller::connect(&url).await;
    let pattern = if of_feeds { "orchestrator.feed.*" } else { "stream.*.updates" };
    let mut chunks = client.subscribe(pattern).await.expect("a subscription").ready_chunks(256);
    while let Some(chunk) = chunks.next().await {
        let payloads = chunk.into_iter().map(|message| message.payload);
        if of_feeds {
            payloads.for_each(|batch| heard.take(feed::updates(batch).expect("a batch of updates").into_iter()));
        } else {
            heard.take(payloads);
        }
    }
}

/// Answers with nothing: what a round trip takes that is not the service's.
async fn echo(url: String) {
    let client = caller::connect(&url).await;
    let mut requests = client.subscribe(ECHO).await.expect("a subscription");
    while let Some(message) = requests.next().await {
        let reply = message.reply.expect("somebody waits");
        client.publish(reply, message.payload).await.expect("the client takes it");
    }
}

/// Sees how long the machine lets a thread wait that only sleeps: nothing else on it can be better than that.
fn metronome(stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Histogram> {
    const STEP: Duration = Duration::from_millis(1);
    std::thread::spawn(move || {
        let mut late = Histogram::default();
        while !stop.load(Relaxed) {
            let before = Instant::now();
            std::thread::sleep(STEP);
            late.add(before.elapsed().saturating_sub(STEP));
        }
        late
    })
}

// --- the run -----------------------------------------------------------------------------------------------------

/// What was seen while it ran.
#[derive(Debug, Default)]
struct Watched {
    commands: Histogram,
    echoes: Histogram,
    peak_rss: u64,
    /// Processor time in the busiest five seconds, share of a core.
    busiest: f64,
    too_many: u64,
    too_few: u64,
    /// How many had been removed for their silence at what time.
    removals: Vec<(Instant, u64)>,
}

/// Reads how many have been removed, for as long as it is polled.
async fn note_removals(service: &Service, removals: &Mutex<Vec<(Instant, u64)>>) {
    let mut pace = tokio::time::interval(PERIOD);
    loop {
        pace.tick().await;
        let removed = service.metric("orchestrator_stale_removed_total", "").await;
        let mut removals = removals.lock().unwrap();
        if removed > removals.last().map_or(0, |last| last.1) {
            removals.push((Instant::now(), removed));
        }
    }
}

async fn headline(options: &Options, plan: Plan, ears: &tokio::runtime::Handle) -> Report {
    let Plan { viewers, streams, span, stale, .. } = plan;
    let about = plan.span.as_secs() + plan.viewers / 400_000 + 5;
    let ticks = if options.no_ticks { "no ticks, " } else { "" };
    println!("{viewers} viewers of {streams} streams, {ticks}--publish {}: about {about} s", options.publish);
    let server = Server::start();
    let url = server.url();
    let stale_option = format!("{}s", stale.as_secs());
    let service = Service::start(&url, &["--publish", &options.publish, "--stale-timeout", &stale_option]).await;
    let heard = Arc::new(Heard::default());
    ears.spawn(listen(url.clone(), options.publish == "feed", Arc::clone(&heard)));
    ears.spawn(echo(url.clone()));
    let client = caller::connect(&url).await;
    let empty = rss_of(service.pid());
    caller::start_streams(&client, streams, plan.tick_ms).await;
    let with_streams = rss_of(service.pid());

    let known = Arc::new(Known::default());
    let began = Instant::now();
    let mut opening = JoinSet::new();
    for number in 0..GATEWAYS {
        let mut gateway = Gateway::new(plan, number, &url, Arc::clone(&known)).await;
        opening.spawn(async move {
            gateway.open().await;
            gateway
        });
    }
    let gateways = opening.join_all().await;
    let opened = began.elapsed();
    println!("registered in {opened:.1?}, {:.0} a second", viewers as f64 / opened.as_secs_f64());
    assert!(opened + plan.heartbeat < stale, "the first would be stale before their first heartbeat");

    // Gateways begin at once; what is measured begins when the burst of registrations is over.
    let began = Instant::now();
    let mut running = JoinSet::new();
    gateways.into_iter().for_each(|gateway| drop(running.spawn(gateway.run(began))));
    tokio::time::sleep(Duration::from_secs(2)).await;
    heard.counting.store(true, Relaxed);
    let (updates, at) = (heard.updates.load(Relaxed), Instant::now());
    let cpu = || [service.pid(), server.pid(), std::process::id()].map(cpu_of);
    let before = cpu();
    let stop = Arc::new(AtomicBool::new(false));
    let sleeper = metronome(Arc::clone(&stop));
    let removals = Mutex::default();
    let watching = watch(&service, &client, &known, &heard, &removals, plan, began);
    let mut watched = tokio::select! {
        watched = watching => watched,
        () = note_removals(&service, &removals) => Watched::default(),
    };
    watched.removals = removals.into_inner().unwrap();
    let took = at.elapsed().as_secs_f64();
    let after = cpu();
    let updates = (heard.updates.load(Relaxed) - updates) as f64 / took;
    heard.counting.store(false, Relaxed);
    stop.store(true, Relaxed);
    let sleeper = sleeper.join().unwrap();
    let rss = rss_of(service.pid());

    let gateways = running.join_all().await;
    let mut counters = Vec::new();
    for (what, name, label) in [
        ("ticks superseded", "orchestrator_dropped_total", "tick_superseded"),
        ("requests dropped", "orchestrator_receive_dropped", ""),
        ("requests refused", "orchestrator_refused_total", ""),
    ] {
        counters.push((what, service.metric(name, label).await as f64));
    }
    let mut yet_known = 0;
    for gateway in &gateways {
        yet_known += gateway.silent_yet_known().await;
    }
    let name = if options.no_ticks { "headline_no_ticks" } else { "headline" };
    let mut report = Report::new(name, "The headline run", options.quick);
    let (viewers_text, streams_text) = (number(viewers as f64), number(streams as f64));
    let scale = format!("{viewers_text} viewers, {streams_text} streams, {ticks}{}", options.publish);
    let row = |what: &str, value: f64, unit: &str| Row::new(what, &scale, OURS, value, unit);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let share = |place: usize| (after[place] - before[place]) * 100.0 / took;
    let asked = plan.asked(took);
    let silent: u64 = known.silent.lock().unwrap().iter().map(|some| some.count).sum();
    let delays = removal_delays(&known, &watched.removals);
    let (lateness, off_beat) = heard.lateness.lock().unwrap().clone();
    let rows = &mut report.rows;
    rows.extend([
        row("memory at the end", mib(rss), "MiB").aimed("<= 1024"),
        row("memory at its most", mib(watched.peak_rss), "MiB"),
        row("memory of a stream", (with_streams - empty) as f64 / streams as f64, "bytes"),
        row("memory of a viewer", rss.saturating_sub(with_streams) as f64 / viewers as f64, "bytes"),
        row("registered", viewers as f64 / opened.as_secs_f64(), "/s"),
        row("share of a core", share(0), "%").aimed("<= 100"),
        row("share of a core, busiest 5 s", watched.busiest, "%"),
        row("share of a core, nats-server", share(1), "%"),
        row("share of a core, gateways and listener", share(2), "%"),
        row("heartbeats", known.heartbeats.load(Relaxed) as f64 / span.as_secs_f64(), "/s"),
        row("heartbeat messages late by at most", known.latest_heartbeat_us.load(Relaxed) as f64 / 1e3, "ms"),
        row("updates received", updates, "/s").aimed(format!(">= {:.0}", asked * 0.995)),
    ]);
    for (what, times) in [("lateness of updates", &lateness), ("lateness by the service's word", &off_beat)] {
        let p99 = row(&format!("{what}, p99"), times.quantile_ms(0.99), "ms");
        rows.extend([
            row(&format!("{what}, p50"), times.quantile_ms(0.5), "ms"),
            if what == "lateness of updates" { p99.aimed("<= 5") } else { p99 },
            row(&format!("{what}, most"), times.longest_ms(), "ms"),
        ]);
    }
    rows.extend([
        row("a command's round trip, p50", watched.commands.quantile_ms(0.5), "ms"),
        row("a command's round trip, p99", watched.commands.quantile_ms(0.99), "ms").aimed("<= 5"),
        row("a command's round trip, most", watched.commands.longest_ms(), "ms"),
        Row::new("a command's round trip, p50", &scale, BARE, watched.echoes.quantile_ms(0.5), "ms"),
        Row::new("a command's round trip, p99", &scale, BARE, watched.echoes.quantile_ms(0.99), "ms"),
        Row::new("a command's round trip, most", &scale, BARE, watched.echoes.longest_ms(), "ms"),
        row("a thread that only sleeps 1 ms is late, p99", sleeper.quantile_ms(0.99), "ms"),
        row("a thread that only sleeps 1 ms is late, most", sleeper.longest_ms(), "ms"),
        row("fell silent", silent as f64, "viewers"),
        row("silent and removed", watched.removals.last().map_or(0, |last| last.1) as f64, "viewers"),
        row("silent and still known at the end", yet_known as f64, "viewers").aimed("<= 0"),
        row("live and thrown out", known.thrown_out.load(Relaxed) as f64, "viewers").aimed("<= 0"),
        row("total above what it may be, at most", watched.too_many as f64, "viewers").aimed("<= 0"),
        row("total below what it must be, at most", watched.too_few as f64, "viewers").aimed("<= 0"),
    ]);
    if let (Some(first), Some(last)) = (delays.first(), delays.last()) {
        let limit = (stale + REMOVAL_SLACK + PERIOD).as_secs_f64();
        rows.push(row("removed after the last heartbeat, soonest", *first, "s"));
        rows.push(row("removed after the last heartbeat, latest", *last, "s").aimed(format!("<= {limit}")));
    }
    rows.extend(counters.into_iter().map(|(what, value)| row(what, value, "in all")));
    report
}

/// Asks, commands and shows, until the time is over.
async fn watch(
    service: &Service,
    client: &Client,
    known: &Known,
    heard: &Heard,
    removals: &Mutex<Vec<(Instant, u64)>>,
    plan: Plan,
    began: Instant,
) -> Watched {
    let mut watched = Watched::default();
    let mut order = ids::Shuffled::new(11, plan.streams);
    let mut streaming = std::collections::HashSet::new();
    let mut pace = tokio::time::interval(PERIOD);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut busy = (Instant::now(), cpu_of(service.pid()));
    let mut shown = (Instant::now(), heard.updates.load(Relaxed));
    let every = Duration::from_secs(if std::io::stderr().is_terminal() { 1 } else { 10 });
    while began.elapsed() < plan.span {
        pace.tick().await;
        let place = order.next().unwrap();
        let is_streaming = !streaming.remove(&place) && streaming.insert(place);
        let status = messages::status(&ids::stream(place), is_streaming);
        let asked = Instant::now();
        caller::done(client, subject::COMMAND, status).await;
        watched.commands.add(asked.elapsed());
        let asked = Instant::now();
        client.request(ECHO, Bytes::new()).await.expect("an echo");
        watched.echoes.add(asked.elapsed());
        let before = known.open();
        let total = caller::stats(client).await.total;
        let limits = known.limits(before, plan.stale);
        watched.too_many = watched.too_many.max(total.saturating_sub(limits.most));
        watched.too_few = watched.too_few.max(limits.least.saturating_sub(total));
        let removed = removals.lock().unwrap().last().map_or(0, |last| last.1);
        watched.peak_rss = watched.peak_rss.max(rss_of(service.pid()));
        if busy.0.elapsed() >= Duration::from_secs(5) {
            let now = (Instant::now(), cpu_of(service.pid()));
            watched.busiest = watched.busiest.max((now.1 - busy.1) * 100.0 / (now.0 - busy.0).as_secs_f64());
            busy = now;
        }
        if shown.0.elapsed() >= every {
            let now = (Instant::now(), heard.updates.load(Relaxed));
            let line = format!(
                "[{:3.0}/{} s] {total} viewers, {removed} removed, {:.0} updates/s, {} MiB, command p99 {} ms",
                began.elapsed().as_secs_f64(),
                plan.span.as_secs(),
                (now.1 - shown.1) as f64 / (now.0 - shown.0).as_secs_f64(),
                rss_of(service.pid()) >> 20,
                number(watched.commands.quantile_ms(0.99)),
            );
            if every > Duration::from_secs(1) {
                eprintln!("{line}")
            } else {
                eprint!("\r{line}   ")
            }
            shown = now;
        }
    }
    eprintln!();
    watched
}

/// From the last heartbeat that was answered until the removal was seen, s, sorted. The service removes in the order of
/// last heartbeats, as near as the milliseconds in which they arrived.
fn removal_delays(known: &Known, removals: &[(Instant, u64)]) -> Vec<f64> {
    let mut silent = known.silent.lock().unwrap().clone();
    silent.sort_by_key(|some| some.heard.1);
    let mut removals = removals.iter().peekable();
    let (mut through, mut delays) = (0, Vec::new());
    for some in silent {
        through += some.count;
        while removals.next_if(|(_, removed)| *removed < through).is_some() {}
        if let Some((at, _)) = removals.peek() {
            delays.push(at.duration_since(some.heard.1).as_secs_f64());
        }
    }
    delays.sort_by(f64::total_cmp);
    delays
}
