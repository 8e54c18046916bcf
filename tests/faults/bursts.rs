//! More than can be handled at once, and readers that do not read.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use orchestrator_service::{
    transport::Outgoing,
    wire::{
        proto::{Code, OrchestratorConfig, Reply},
        subject,
    },
};
use prost::Message as _;

use crate::{
    machine::{alone, measured},
    observer::{Gaps, Observer},
    support::caller::{Caller, say, say_subscription},
    support::messages::{LONG_MS, config, heartbeat, long_config, seek, status},
    support::nats_server::NatsServer,
    support::program::Program,
    support::waiting::{LIMIT, eventually},
};

const BURST: usize = 300_000;
/// How many connections the burst comes by.
const SENDERS: usize = 4;
/// Messages in a flood on one stream.
const FLOOD: usize = 200_000;
const FLOODERS: usize = 2;
/// The streams beside a flood tick that often.
const BEAT_MS: u64 = 50;
/// How long such a stream may be without a word on a machine that has time for it.
const LONGEST_GAP: Duration = Duration::from_millis(250);

/// Heartbeats, commands, and what is refused: half a dozen streams, each with a viewer.
fn assorted(number: usize) -> Outgoing {
    let id = stream(number);
    match number % 10 {
        0..6 => say_subscription(heartbeat(&id, "viewer", 0)),
        6 | 7 => say(status(&id, number as u64, "00:00:00:00")),
        8 => say_subscription(heartbeat(&id, "stranger", 0)),
        _ => Outgoing { subject: subject::COMMAND.into(), payload: Bytes::from_static(b"no protobuf") },
    }
}

fn stream(number: usize) -> String {
    format!("show-{}", number / 10 % 6)
}

async fn with_streams(nats: &NatsServer) -> (Program, Caller) {
    let service = Program::serve(&nats.url(), &[]).ready().await;
    let caller = Caller::connect(&nats.url()).await;
    for number in (0..60).step_by(10) {
        caller.play(&stream(number), long_config()).await;
    }
    (service, caller)
}

/// What the service says has become of the messages for it: (received, dropped).
async fn fate(service: &Program) -> (usize, usize) {
    let received = service.metric("orchestrator_received_total", "").await;
    let dropped = service.metric("orchestrator_receive_dropped", "").await;
    (received as usize, dropped as usize)
}

/// As [`fate`], once it has said the same for a second.
async fn final_fate(service: &Program) -> (usize, usize) {
    let deadline = Instant::now() + 3 * LIMIT;
    let (mut last, mut since) = (fate(service).await, Instant::now());
    while since.elapsed() < Duration::from_secs(1) {
        assert!(Instant::now() < deadline, "still counting: {last:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = fate(service).await;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_burst_all_that_is_not_counted_as_dropped_is_answered() {
    alone(async {
        let nats = NatsServer::start();
        let (service, caller) = with_streams(&nats).await;
        let (before, _) = fate(&service).await;
        let started = Instant::now();
        let senders: Vec<_> = (0..SENDERS).map(|sender| tokio::spawn(send_and_count(nats.url(), sender))).collect();

        let (mut by_code, mut answered) = (std::collections::BTreeMap::<String, usize>::new(), 0);
        for sender in senders {
            for (code, count) in sender.await.expect("a sender") {
                answered += count;
                *by_code.entry(code.as_str_name().to_owned()).or_default() += count;
            }
        }
        let (received, dropped) = fate(&service).await;
        let received = received - before;
        let took = started.elapsed();
        measured(
            "burst of 300,000 requests",
            format!(
                "{received} received, {dropped} dropped and counted, {answered} answered in {took:.2?}: {by_code:?}"
            ),
        );
        assert_eq!(received + dropped, BURST, "none was lost in silence");
        assert_eq!(answered, received, "each that was received is answered");
        let refused = service.metric("orchestrator_refused_total", "").await as usize;
        assert_eq!(by_code.values().sum::<usize>() - by_code["OK"], refused);
        assert_eq!(caller.stats("").await.active, 6, "and the service goes on");
    })
    .await;
}

/// Sends a part of the burst without waiting for anything, and counts what is answered until nothing comes any more.
async fn send_and_count(url: String, sender: usize) -> Vec<(Code, usize)> {
    // The test's own queue holds all answers, so that none is lost here.
    let options = async_nats::ConnectOptions::new().subscription_capacity(BURST);
    let client = options.connect(url).await.expect("a connection");
    let mut answers = client.subscribe(format!("answers.{sender}.*")).await.expect("a subscription");
    client.flush().await.expect("flushed");
    let part = BURST / SENDERS;
    let publisher = client.clone();
    let publishing = tokio::spawn(async move {
        for number in 0..part {
            let Outgoing { subject, payload } = assorted(number);
            let reply = format!("answers.{sender}.{number}");
            publisher.publish_with_reply(subject.to_string(), reply, payload).await.expect("published");
        }
        publisher.flush().await.expect("flushed");
    });
    let (mut seen, mut missing) = (vec![None; part], part);
    // A message that was dropped has no answer, so that only silence tells the end.
    while missing > 0
        && let Ok(Some(answer)) = tokio::time::timeout(Duration::from_secs(5), answers.next()).await
    {
        let number: usize = answer.subject.rsplit('.').next().and_then(|last| last.parse().ok()).expect("a number");
        let code = Reply::decode(answer.payload).expect("an answer").code();
        assert_eq!(seen[number].replace(code), None, "message {number} is answered twice");
        missing -= 1;
    }
    publishing.await.expect("all was published");
    let mut counts: Vec<(Code, usize)> = Vec::new();
    for code in seen.into_iter().flatten() {
        match counts.iter_mut().find(|(known, _)| *known == code) {
            Some((_, count)) => *count += 1,
            None => counts.push((code, 1)),
        }
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_at_a_frozen_service_is_not_lost_in_silence() {
    alone(async {
        let nats = NatsServer::start();
        let (service, caller) = with_streams(&nats).await;
        let (before, _) = fate(&service).await;

        service.signal("STOP");
        let mut senders = Vec::new();
        for _ in 0..SENDERS {
            let sender = Caller::connect(&nats.url()).await;
            senders.push(tokio::spawn(async move {
                sender.tell((0..BURST / SENDERS).map(assorted)).await;
                sender.until_connected().await;
            }));
        }
        for sender in senders {
            sender.await.expect("a sender");
        }
        service.signal("CONT");

        let (received, dropped) = final_fate(&service).await;
        assert_eq!(caller.stats("").await.active, 6, "the service goes on");
        let received = received - before;
        let refused = service.metric("orchestrator_refused_total", "").await;
        let overloaded = service.metric("orchestrator_refused_total", "UNAVAILABLE").await;
        measured(
            "burst of 300,000 at a stopped service",
            format!("{received} received, {dropped} dropped and counted; {refused} refused, {overloaded} for overload"),
        );
        assert_eq!(received + dropped, BURST, "none was lost in silence");
        if dropped == 0 && overloaded == 0 {
            assert_eq!(refused as usize, BURST / 5, "what had to be refused, and nothing else");
        }
        assert!(!service.log().contains("lost the connection"), "{}", service.log());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_reads_nothing_disturbs_nobody() {
    /// Fills the sockets' buffers and then the broker's own for that reader, up to below its limit of 64 MiB.
    const FILLER_BYTES: usize = 500_000;
    const FILLERS: usize = 120;
    alone(async {
        let nats = NatsServer::start();
        let service = Program::serve(&nats.url(), &[]).ready().await;
        let caller = Caller::connect(&nats.url()).await;
        let ids: Vec<String> = (0..20).map(|number| format!("beat-{number}")).collect();
        for id in &ids {
            caller.play(id, beat()).await;
        }
        let mut silent = subscribe_and_never_read(&nats);
        let observer = Observer::of(&nats.url(), &ids).await;
        let filler = Outgoing { subject: "stream.filler".into(), payload: vec![0; FILLER_BYTES].into() };

        for _ in 0..FILLERS {
            caller.tell([filler.clone()]).await;
        }
        caller.until_connected().await;
        let filled = Instant::now();
        // On past the 10 s after which the broker gives up on a reader that takes nothing.
        let mut questions = 0;
        while filled.elapsed() < Duration::from_secs(11) {
            let asked = Instant::now();
            assert_eq!(caller.stats("").await.active, ids.len() as u64);
            assert!(asked.elapsed() < Duration::from_secs(5), "{:?} for an answer", asked.elapsed());
            questions += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        let gaps = assert_beats(&observer, &ids).await;
        measured("beside a subscriber that reads nothing", format!("{gaps}; {questions} questions answered"));
        assert!(service.is_ready().await);
        assert!(!service.log().contains("lost the connection"), "{}", service.log());
        assert_eq!(service.metric("orchestrator_republished_total", "").await, 0);
        // It was there all the time, whatever the broker thinks of it by now.
        silent.flush().expect("the reader still holds its end");
    })
    .await;
}

/// A connection that subscribes to all updates, and what is sent to it stays in its buffers.
fn subscribe_and_never_read(nats: &NatsServer) -> TcpStream {
    let mut stream = TcpStream::connect(nats.url().replace("nats://", "")).expect("a connection");
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    stream.write_all(b"CONNECT {\"verbose\":false}\r\nSUB stream.> 1\r\nPING\r\n").expect("sent");
    let mut lines = BufReader::new(stream.try_clone().expect("another handle")).lines();
    // What comes before the broker has seen the subscription.
    assert!(lines.any(|line| line.expect("a line").starts_with("PONG")), "the broker answers");
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_commands_on_one_stream_leaves_others_beats_alone() {
    alone(async {
        let nats = NatsServer::start();
        let service = Program::serve(&nats.url(), &[]).ready().await;
        let caller = Caller::connect(&nats.url()).await;
        // Enough of them that both shards have some, the flooded one too.
        let ids: Vec<String> = (0..8).map(|number| format!("beat-{number}")).collect();
        for id in &ids {
            caller.play(id, beat()).await;
        }
        caller.play("flooded", long_config()).await;
        let revision = caller.state("flooded").await.revision;
        let observer = Observer::of(&nats.url(), &ids).await;
        let (before, _) = fate(&service).await;

        let started = Instant::now();
        let mut flooders = Vec::new();
        for _ in 0..FLOODERS {
            let flooder = Caller::connect(&nats.url()).await;
            flooders.push(tokio::spawn(async move {
                for chunk in 0..FLOOD / FLOODERS / 1_000 {
                    flooder.tell((0..1_000).map(|number| say(seek("flooded", chunk as u64 + number)))).await;
                }
                flooder.until_connected().await;
            }));
        }
        for flooder in flooders {
            flooder.await.expect("a flooder");
        }
        let (received, dropped) = final_fate(&service).await;
        assert_eq!(received - before + dropped, FLOOD, "none was lost in silence");
        // The question waits behind what is left of the flood, unless its mailbox is full.
        let state = caller.state("flooded").await;
        let took = started.elapsed();

        let gaps = assert_beats(&observer, &ids).await;
        let refused = service.metric("orchestrator_refused_total", "UNAVAILABLE").await as usize;
        measured(
            "beside a flood of 200,000 commands",
            format!("{gaps}; the flood took {took:.2?}; {refused} refused for overload, {dropped} dropped and counted"),
        );
        assert_eq!((state.revision - revision) as usize + refused + dropped, FLOOD, "each is carried out or counted");
        eventually("all changes are confirmed", async || {
            service.metric("orchestrator_mailbox_messages", "").await == 0
        })
        .await;
    })
    .await;
}

/// A stream with a quick tick that does not end.
pub(crate) fn beat() -> OrchestratorConfig {
    OrchestratorConfig { tick_interval_ms: Some(BEAT_MS), ..config(&[("Main", LONG_MS)]) }
}

/// Asserts that each of the streams went on telling without a long pause, up to now.
pub(crate) async fn assert_beats(observer: &Observer, ids: &[String]) -> Gaps {
    // A beat that has stopped would show no gap.
    let now = Instant::now();
    let held_up = observer.machine.worst();
    let mut all = Gaps::default();
    for id in ids {
        observer.until("its beat goes on", id, |seen| seen.at > now).await;
        let gaps = observer.history(id).longest_gaps();
        // Service, broker and observer each wait that long for the machine.
        let limit = LONGEST_GAP + 3 * held_up;
        assert!(gaps.by_arrival <= limit && gaps.by_clock <= limit, "{id}: {gaps}; the machine was {held_up:.1?} late");
        all = all.worse(gaps);
    }
    measured("a thread that only sleeps was late by at most", format!("{held_up:.1?}"));
    all
}
