//! Over a real nats-server: publishing, heartbeats, commands and bursts, beside a bare async-nats loop.
//!
//! `cargo bench --bench nats` takes about 5 minutes; `-- --quick` one. It wants `nats-server`, from `$NATS_SERVER`, the
//! PATH, or `target/nats-server/`, where `.ci/test` puts it.
//!
//! The service is the program as an operator runs it, a process of its own; so is every contestant, in its place. Server,
//! contestant and whoever loads them share the machine, so each ratio is of two runs one after the other on the same
//! server. A bare loop knows nothing: it publishes the same bytes on the same subjects, or counts what it receives.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss, reason = "a bench")]

mod support;

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use async_nats::{Client, Subject, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use orchestrator_service::wire::{
    proto::{SubscriptionCommand, subscription_command::Command},
    subject,
};
use prost::Message as _;
use support::{
    Args, actors, ids,
    lateness::Histogram,
    nats::{
        caller::{self, A_BATCH, Listener},
        messages,
        program::{Role, Service, until_told_to_stop},
        raw::{Block, Flooded, flood},
        server::Server,
    },
    process::cpu_of,
    report::{ACTORS, BARE, OURS, Row},
    run, step, tell,
};

const FEED: &str = "orchestrator, feed";

/// Streams that are published for.
const STREAMS: u64 = 10_000;
/// Viewers that heartbeat.
const VIEWERS: u64 = 100_000;
/// Streams that tick beside commands, every 100 ms.
const BESIDE: u64 = 20_000;
/// What a step may take. A contestant that hangs is ended with it.
const LONGEST_STEP: Duration = Duration::from_secs(300);
/// How many updates a second cost is compared at.
const FIXED_RATE: u64 = 100_000;

fn main() {
    let args = Args::read();
    if let Some(words) = &args.child {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        return runtime.block_on(async {
            if words[0] == "role" {
                return play(&words[1..]).await;
            }
            let measured = measure(words[0], words[1], words[2] == "quick");
            let measured = until_told_to_stop(measured);
            tokio::time::timeout(LONGEST_STEP, measured).await.expect("a step ends in time");
        });
    }
    let length = if args.quick { "quick" } else { "full" };
    let steps: &[(&str, &str, u64, u64)] = &[
        ("publish", "unheard", 14, 85),
        ("publish", "heard", 14, 85),
        ("cost", "unheard", 9, 30),
        ("receive", "singly", 6, 20),
        ("receive", "batched", 5, 25),
        ("commands", "round-trip", 8, 40),
        ("burst", "singly", 6, 20),
    ];
    let seconds = |quick: u64, full: u64| if args.quick { quick } else { full };
    let steps = steps.iter().map(|(what, how, quick, full)| step(&[what, how, length], seconds(*quick, *full)));
    run("nats", "Over nats-server, everybody on the same cores", &args, steps.collect());
}

async fn measure(what: &str, how: &str, quick: bool) {
    match (what, how) {
        ("publish", how) => publish(how == "heard", quick).await,
        ("cost", _) => cost(quick).await,
        ("receive", "singly") => receive_singly(quick).await,
        ("receive", _) => receive_batched(quick).await,
        ("commands", _) => commands(quick).await,
        ("burst", _) => burst(quick).await,
        _ => panic!("nothing is called {what} {how}"),
    }
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part * 100.0 / whole } else { 0.0 }
}

// --- publishing --------------------------------------------------------------------------------------------------

/// Whoever publishes: a process, and a way to see how much it got out.
enum Publisher {
    Service(Service, &'static str),
    Role(Role),
}

impl Publisher {
    async fn service(url: &str, publish_to: &'static str, tick_ms: u64) -> Self {
        let service = Service::start(url, &["--publish", publish_to, "--min-tick-interval", "1ms"]).await;
        let client = caller::connect(url).await;
        caller::start_streams(&client, STREAMS, tick_ms).await;
        caller::watch_streams(&client, STREAMS).await;
        Self::Service(service, publish_to)
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Service(service, _) => service.pid(),
            Self::Role(role) => role.pid(),
        }
    }

    /// Updates so far: those that arrived at the listener if there is one, else those that the broker has. A feed's
    /// messages carry many, which only the service can tell when nobody listens.
    async fn count(&self, server: &Server, listener: Option<&Listener>) -> u64 {
        match (self, listener) {
            (_, Some(listener)) => listener.count(),
            (Self::Service(service, "feed"), None) => service.metric("orchestrator_published_total", "").await,
            _ => server.varz("in_msgs").await,
        }
    }

    async fn observe(&self, server: &Server, listener: Option<&Listener>, span: Duration) -> Observed {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let (count, began) = (self.count(server, listener).await, Instant::now());
        let (own, broker) = (cpu_of(self.pid()), cpu_of(server.pid()));
        tokio::time::sleep(span).await;
        let (own, broker) = (cpu_of(self.pid()) - own, cpu_of(server.pid()) - broker);
        let (count, took) = ((self.count(server, listener).await - count) as f64, began.elapsed());
        Observed { rate: count / took.as_secs_f64(), own_us: own * 1e6 / count, broker_us: broker * 1e6 / count }
    }
}

#[derive(Clone, Copy, Default)]
struct Observed {
    /// Updates a second.
    rate: f64,
    /// Processor time of the publisher's process for each, µs.
    own_us: f64,
    /// The server's.
    broker_us: f64,
}

/// As many updates as will go.
async fn publish(heard: bool, quick: bool) {
    let how = if heard { "one listens" } else { "nobody listens" };
    let what = format!("publish, {how}");
    let span = if quick { Duration::from_secs(1) } else { Duration::from_secs(3) };
    let server = Server::start();
    let url = server.url();
    let of_subjects = if heard { Some(Listener::start(&url, "stream.*.updates", false).await) } else { None };
    let of_feeds = if heard { Some(Listener::start(&url, "orchestrator.feed.*", true).await) } else { None };
    let mut bare = 0.0;
    let mut told = |who: &str, rate: f64| {
        tell(&Row::new(&what, "10 k streams", who, rate / 1e6, "M updates/s"));
        if who == BARE {
            bare = rate;
        } else if who != ACTORS {
            let share = percent(rate, bare);
            tell(&Row::new(&format!("{what}, share of bare"), "10 k streams", who, share, "%").aimed(">= 90"));
        }
    };
    let contestant = Publisher::Role(Role::start(&["publish", &url, "0"]));
    told(BARE, contestant.observe(&server, of_subjects.as_ref(), span).await.rate);
    drop(contestant);
    // More is asked for at each try. Beyond what it can publish, the service spends part of its time on ticks that newer
    // ones supersede; the best of the tries is what it can.
    let ticks_ms: &[u64] = if quick { &[20, 8] } else { &[50, 25, 15, 10, 7, 5, 3] };
    for (who, publish_to) in [(OURS, "subjects"), (FEED, "feed")] {
        let mut best = 0.0_f64;
        for tick_ms in ticks_ms {
            let contestant = Publisher::service(&url, publish_to, *tick_ms).await;
            let listener = if publish_to == "feed" { &of_feeds } else { &of_subjects };
            let observed = contestant.observe(&server, listener.as_ref(), span).await;
            let asked = format!("{:.2} M/s asked", STREAMS as f64 / *tick_ms as f64 / 1e3);
            tell(&Row::new(&format!("{what}, as asked"), &asked, who, observed.rate / 1e6, "M updates/s"));
            best = best.max(observed.rate);
        }
        told(who, best);
    }
    let contestant = Publisher::Role(Role::start(&["actors-publish", &url, "10"]));
    told(ACTORS, contestant.observe(&server, of_subjects.as_ref(), span).await.rate);
}

/// What an update costs at a rate that all of them keep up with.
async fn cost(quick: bool) {
    let span = if quick { Duration::from_secs(1) } else { Duration::from_secs(5) };
    let server = Server::start();
    let url = server.url();
    let tick_ms = STREAMS * 1_000 / FIXED_RATE;
    let told = |who: &str, observed: Observed| {
        let row = |what, value, unit| tell(&Row::new(what, "100 k/s", who, value, unit));
        row("an update's cost to its publisher", observed.own_us, "µs");
        row("an update's cost to nats-server", observed.broker_us, "µs");
        row("updates at the fixed rate", observed.rate, "/s");
    };
    let contestant = Publisher::Role(Role::start(&["publish", &url, &FIXED_RATE.to_string()]));
    told(BARE, contestant.observe(&server, None, span).await);
    drop(contestant);
    for (who, publish_to) in [(OURS, "subjects"), (FEED, "feed")] {
        let contestant = Publisher::service(&url, publish_to, tick_ms).await;
        told(who, contestant.observe(&server, None, span).await);
    }
    let contestant = Publisher::Role(Role::start(&["actors-publish", &url, &tick_ms.to_string()]));
    told(ACTORS, contestant.observe(&server, None, span).await);
}

// --- receiving ---------------------------------------------------------------------------------------------------

/// Whoever receives requests: a process, which answers a question behind all that came before it.
struct Receiver {
    service: Option<Service>,
    role: Option<Role>,
    handles: Vec<u64>,
}

impl Receiver {
    /// With all viewers registered. They do not go stale meanwhile, nor do streams tick.
    async fn start(url: &str, who: &str) -> Self {
        if who == OURS {
            let service = Service::start(url, &["--stale-timeout", "1h"]).await;
            let client = caller::connect(url).await;
            caller::start_streams(&client, VIEWERS / A_BATCH, 60_000).await;
            let handles = caller::register(&client, VIEWERS).await;
            assert!(handles.len() as u64 == VIEWERS && !handles.contains(&0), "all are registered");
            return Self { service: Some(service), role: None, handles };
        }
        let role = if who == BARE { "count" } else { "actors-receive" };
        Self { service: None, role: Some(Role::start(&[role, url])), handles: Vec::new() }
    }

    fn pid(&self) -> u32 {
        self.service.as_ref().map(Service::pid).or(self.role.as_ref().map(Role::pid)).expect("a process")
    }

    /// How many messages it has handled, and what it says it dropped or refused.
    async fn fate(&self, client: &Client) -> (u64, u64) {
        match &self.service {
            Some(service) => {
                let received = service.metric("orchestrator_received_total", "").await;
                let overloaded = service.metric("orchestrator_refused_total", "UNAVAILABLE").await;
                (received - overloaded, service.metric("orchestrator_receive_dropped", "").await + overloaded)
            }
            None => {
                let answer = client.request(subject::QUERY, Bytes::new()).await.expect("an answer");
                let text = String::from_utf8_lossy(&answer.payload).into_owned();
                let mut numbers = text.split(' ').map(|number| number.parse().expect("a number"));
                (numbers.next().expect("handled"), numbers.next().expect("dropped"))
            }
        }
    }

    /// As [`Self::fate`], once it does not change any more.
    async fn final_fate(&self, client: &Client) -> (u64, u64) {
        let mut fate = self.fate(client).await;
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = self.fate(client).await;
            // The bare contestants count a question as well.
            if now.0.abs_diff(fate.0) <= 1 && now.1 == fate.1 {
                return now;
            }
            fate = now;
        }
    }
}

/// The viewers in an order in which neighbours have nothing in common.
fn scattered() -> impl Iterator<Item = (String, u64)> {
    // 7,919 is prime, so that each viewer comes once.
    (0..VIEWERS).map(|number| number * 7_919 % VIEWERS).map(|viewer| (ids::stream(viewer / A_BATCH), viewer))
}

fn single_heartbeats(a_block: usize) -> Vec<Block> {
    let payloads: Vec<Bytes> = scattered().map(|(stream, viewer)| messages::heartbeat(&stream, viewer)).collect();
    payloads.chunks(a_block).map(|chunk| Block::new(subject::SUBSCRIPTION, chunk.iter().cloned())).collect()
}

/// Single heartbeats, never more under way than a client's queue holds.
async fn receive_singly(quick: bool) {
    const A_BLOCK: usize = 5_000;
    const AHEAD: u64 = 8;
    let number = if quick { 400_000 } else { 2_000_000 };
    let server = Server::start();
    let client = caller::connect(&server.url()).await;
    let mut bare = 0.0;
    let mut blocks = single_heartbeats(A_BLOCK);
    for who in [BARE, OURS, ACTORS] {
        let receiver = Receiver::start(&server.url(), who).await;
        let (before, _) = receiver.fate(&client).await;
        let (own, broker) = (cpu_of(receiver.pid()), cpu_of(server.pid()));
        let flooded;
        (flooded, blocks) = flood(server.address(), &client, blocks, number / A_BLOCK, Some(AHEAD)).await;
        let (own, broker) = (cpu_of(receiver.pid()) - own, cpu_of(server.pid()) - broker);
        let (handled, _) = receiver.fate(&client).await;
        let rate = rate_of(who, &flooded);
        let row = |what, value, unit| Row::new(what, "", who, value, unit);
        tell(&row("receive heartbeats singly", rate / 1e6, "M/s"));
        tell(&row("a heartbeat's cost to its receiver", own * 1e6 / flooded.messages as f64, "µs"));
        tell(&row("a heartbeat's cost to nats-server", broker * 1e6 / flooded.messages as f64, "µs"));
        if who == BARE {
            bare = rate;
        } else {
            let lost = (flooded.messages + flooded.markers).saturating_sub(handled - before) as f64;
            let share = row("receive heartbeats singly, share of bare", percent(rate, bare), "%");
            tell(&if who == OURS { share.aimed(">= 80") } else { share });
            tell(&row("receive heartbeats singly, lost", lost, "messages").aimed("<= 0"));
        }
    }
}

fn rate_of(who: &str, flooded: &Flooded) -> f64 {
    if flooded.complete {
        return flooded.messages as f64 / flooded.took.as_secs_f64();
    }
    eprintln!("{who}: a question was not answered");
    0.0
}

/// A thousand heartbeats in a message.
async fn receive_batched(quick: bool) {
    let server = Server::start();
    let client = caller::connect(&server.url()).await;
    let factor = if quick { 1 } else { 3 };
    let mut receiver = Receiver::start(&server.url(), OURS).await;
    let handles = std::mem::take(&mut receiver.handles);
    let by_key = (0..VIEWERS / A_BATCH)
        .map(|number| messages::heartbeats_by_key(&ids::stream(number), number * A_BATCH..(number + 1) * A_BATCH));
    let by_handle = handles.chunks(A_BATCH as usize).map(|chunk| messages::heartbeats_by_handle(chunk.to_vec()));
    // The n-th viewers of all streams, so that each message is for all shards.
    let streams = VIEWERS / A_BATCH;
    let mixed: Vec<u64> = (0..VIEWERS).map(|n| handles[(n % streams * A_BATCH + n / streams) as usize]).collect();
    let mixed = mixed.chunks(A_BATCH as usize).map(|chunk| messages::heartbeats_by_handle(chunk.to_vec()));
    let block = |payloads: Vec<Bytes>| vec![Block::new(subject::SUBSCRIPTION, payloads.into_iter())];
    // What waits stays below 16 MiB: a block has 100 messages of 38 kB or 9 kB.
    let ways = [
        ("1,000 keys", block(by_key.collect()), 100 * factor, 3, Some(">= 15")),
        ("1,000 handles of one stream", block(by_handle.collect()), 800 * factor, 12, Some(">= 80")),
        ("1,000 handles of many streams", block(mixed.collect()), 800 * factor, 12, None),
    ];
    let mut ours = Vec::new();
    let mut all = Vec::new();
    for (how, blocks, count, ahead, aim) in ways {
        let own = cpu_of(receiver.pid());
        let (flooded, blocks) = flood(server.address(), &client, blocks, count, Some(ahead)).await;
        let own = cpu_of(receiver.pid()) - own;
        ours.push((how, rate_of(OURS, &flooded), own * 1e6 / flooded.messages as f64, aim));
        all.push((how, blocks, count, ahead));
    }
    let (_, dropped) = receiver.fate(&client).await;
    tell(&Row::new("receive heartbeats in batches, lost", "", OURS, dropped as f64, "messages").aimed("<= 0"));
    drop(receiver);
    let receiver = Receiver::start(&server.url(), BARE).await;
    for ((how, blocks, count, ahead), (_, rate, own_us, aim)) in all.into_iter().zip(ours) {
        let own = cpu_of(receiver.pid());
        let (flooded, _) = flood(server.address(), &client, blocks, count, Some(ahead)).await;
        let bare_us = (cpu_of(receiver.pid()) - own) * 1e6 / flooded.messages as f64;
        let what = "receive heartbeats in batches";
        let bare = Row::new(what, how, BARE, rate_of(BARE, &flooded) * A_BATCH as f64 / 1e6, "M heartbeats/s");
        let row = Row::new(what, how, OURS, rate * A_BATCH as f64 / 1e6, "M heartbeats/s");
        tell(&bare);
        tell(&if let Some(aim) = aim { row.aimed(aim) } else { row });
        for (who, us) in [(BARE, bare_us), (OURS, own_us)] {
            tell(&Row::new("a batch's cost to its receiver", how, who, us, "µs"));
        }
    }
}

/// More at once than anybody's queue holds.
async fn burst(quick: bool) {
    const NUMBER: u64 = 300_000;
    let tries = if quick { 1 } else { 3 };
    let server = Server::start();
    let client = caller::connect(&server.url()).await;
    let mut blocks = single_heartbeats(VIEWERS as usize);
    for who in [BARE, OURS, ACTORS] {
        let receiver = Receiver::start(&server.url(), who).await;
        let (mut handled, mut dropped, mut silent) = (0, 0, 0);
        for _ in 0..tries {
            let before = receiver.final_fate(&client).await;
            let flooded;
            (flooded, blocks) = flood(server.address(), &client, blocks, (NUMBER / VIEWERS) as usize, None).await;
            let after = receiver.final_fate(&client).await;
            // Questions are counted too: less than a dozen.
            let questions = flooded.markers + 8;
            handled += (after.0 - before.0).min(NUMBER);
            dropped += after.1 - before.1;
            let told = after.0 - before.0 + after.1 - before.1;
            silent += if told + questions < NUMBER { NUMBER - told } else { 0 };
        }
        let row = |what, value: u64, unit| Row::new(what, "300 k at once", who, value as f64 / tries as f64, unit);
        tell(&row("a burst, handled", handled, "messages"));
        tell(&row("a burst, dropped and counted", dropped, "messages"));
        let silent = row("a burst, lost without a word", silent, "messages");
        tell(&if who == OURS { silent.aimed("<= 0") } else { silent });
    }
}

// --- commands ----------------------------------------------------------------------------------------------------

/// A command and an echo, one after the other, so that both meet the same load.
async fn commands(quick: bool) {
    let number = if quick { 3_000 } else { 20_000 };
    let server = Server::start();
    let service = Service::start(&server.url(), &[]).await;
    let client = caller::connect(&server.url()).await;
    let _echo = Role::start(&["echo", &server.url()]);
    caller::start_streams(&client, BESIDE, 100).await;
    // One plays all the time; the others only for the second half.
    caller::watch_streams(&client, 1).await;
    let idle = round_trips(&client, number, 1).await;
    tell_round_trips("idle", &idle);
    caller::watch_streams(&client, BESIDE).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let published = service.metric("orchestrator_published_total", "").await;
    let began = Instant::now();
    let loaded = round_trips(&client, number, BESIDE).await;
    let rate = (service.metric("orchestrator_published_total", "").await - published) as f64;
    tell_round_trips("20 k streams tick", &loaded);
    let rate = rate / began.elapsed().as_secs_f64();
    tell(&Row::new("updates beside commands", "20 k streams tick", OURS, rate, "/s"));
}

/// Those of commands, and those of the echo.
async fn round_trips(client: &Client, number: u64, streams: u64) -> [Histogram; 2] {
    let mut times = [Histogram::default(), Histogram::default()];
    let echoed = messages::an_update(&ids::stream(0));
    let mut order = ids::Shuffled::new(5, streams);
    let mut paused: Option<String> = None;
    for _ in 0..number {
        let message = match paused.take() {
            Some(stream) => messages::resume(&stream),
            None => messages::pause(paused.insert(ids::stream(order.next().unwrap()))),
        };
        let began = Instant::now();
        caller::done(client, subject::COMMAND, message).await;
        times[0].add(began.elapsed());
        let began = Instant::now();
        client.request("bench.echo", echoed.clone()).await.expect("an echo");
        times[1].add(began.elapsed());
    }
    times
}

fn tell_round_trips(load: &str, [ours, bare]: &[Histogram; 2]) {
    for (name, share, aim) in [("p50", 0.5, "<= 2"), ("p99", 0.99, "<= 3")] {
        let what = format!("a command's round trip, {name}");
        let (ours, bare) = (ours.quantile_ms(share) * 1e3, bare.quantile_ms(share) * 1e3);
        tell(&Row::new(&what, load, BARE, bare, "µs"));
        tell(&Row::new(&what, load, OURS, ours, "µs"));
        tell(&Row::new(&format!("{what}, to bare"), load, OURS, ours / bare, "times").aimed(aim));
    }
}

// --- in the service's place --------------------------------------------------------------------------------------

async fn play(words: &[&str]) {
    let client = async_nats::connect(words[1]).await.expect("a connection");
    match words[0] {
        "publish" => bare_publisher(client, words[2].parse().unwrap()).await,
        "actors-publish" => actors_publisher(client, words[2].parse().unwrap()).await,
        "count" => bare_receiver(client).await,
        "actors-receive" => actors_receiver(client).await,
        "echo" => bare_echo(client).await,
        other => panic!("nobody is called {other}"),
    }
}

fn update_subjects() -> Vec<Subject> {
    (0..STREAMS).map(|number| format!("stream.{}.updates", ids::stream(number)).into()).collect()
}

/// As many as will go if `rate` is 0.
async fn bare_publisher(client: Client, rate: u64) {
    let subjects = update_subjects();
    let payload = messages::an_update(&ids::stream(0));
    Role::ready();
    let mut pace = tokio::time::interval(Duration::from_millis(1));
    let (began, mut sent) = (Instant::now(), 0);
    for subject in subjects.iter().cycle() {
        while rate > 0 && sent >= began.elapsed().as_millis() as u64 * rate / 1_000 {
            pace.tick().await;
        }
        client.publish(subject.clone(), payload.clone()).await.expect("the client takes it");
        sent += 1;
    }
}

/// A task a stream makes the updates, and another one publishes them.
async fn actors_publisher(client: Client, tick_ms: u64) {
    for (number, subject) in update_subjects().into_iter().enumerate() {
        let scenes = messages::SCENES.map(|(name, ms)| (name.to_owned(), ms)).into();
        let id = ids::stream(number as u64);
        let (_, mut updates) = actors::stream(id, scenes, Duration::from_millis(tick_ms), drop);
        let client = client.clone();
        tokio::spawn(async move {
            while updates.changed().await.is_ok() {
                let payload = updates.borrow_and_update().clone();
                if client.publish(subject.clone(), payload).await.is_err() {
                    return;
                }
            }
        });
    }
    Role::ready();
    std::future::pending().await
}

/// Counts, and answers a question with what it has counted and what the client dropped.
async fn bare_receiver(client: Client) {
    let mut requests = requests_of(&client).await;
    Role::ready();
    let mut counted = 0_u64;
    while let Some(message) = requests.next().await {
        counted += 1;
        if let Some(reply) = message.reply {
            answer(&client, reply, counted).await;
        }
    }
}

async fn requests_of(client: &Client) -> Subscriber {
    let requests = client.queue_subscribe(subject::ALL_REQUESTS, subject::QUEUE_GROUP.to_owned()).await;
    let requests = requests.expect("a subscription");
    caller::wait_subscribed(client).await;
    requests
}

/// What the client dropped is what arrived and was not counted, when nothing waits.
async fn answer(client: &Client, reply: Subject, counted: u64) {
    let arrived = client.statistics().in_messages.load(Ordering::Relaxed);
    let text = format!("{counted} {}", arrived.saturating_sub(counted));
    client.publish(reply, text.into()).await.expect("the client takes it");
}

async fn actors_receiver(client: Client) {
    let subscribers = actors::Subscribers::default();
    for viewer in 0..VIEWERS {
        subscribers.register(&ids::stream(viewer / A_BATCH), &ids::text(viewer));
    }
    let mut requests = requests_of(&client).await;
    Role::ready();
    let mut counted = 0;
    while let Some(message) = requests.next().await {
        counted += 1;
        if let Some(reply) = message.reply {
            answer(&client, reply, counted).await;
            continue;
        }
        let command = SubscriptionCommand::decode(message.payload).expect("a command").command;
        let Some(Command::Heartbeat(heartbeat)) = command else { continue };
        assert!(subscribers.heartbeat(&heartbeat.stream_id, &heartbeat.client_id).await, "all are registered");
    }
}

async fn bare_echo(client: Client) {
    let mut requests = client.subscribe("bench.echo").await.expect("a subscription");
    caller::wait_subscribed(&client).await;
    Role::ready();
    while let Some(message) = requests.next().await {
        if let Some(reply) = message.reply {
            client.publish(reply, message.payload).await.expect("the client takes it");
        }
    }
}
