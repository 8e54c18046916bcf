//! Questions with large answers, from somebody who does not read them.

use std::{
    io::Write as _,
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use orchestrator_service::wire::{proto::Query, subject};
use prost::Message as _;

use crate::{
    bursts::beat,
    machine::{alone, measured},
    observer::Observer,
    support::caller::{Caller, say},
    support::messages::{LONG_MS, config, list, start},
    support::nats_server::NatsServer,
    support::program::Program,
    support::waiting::eventually,
};

/// Streams of some 700 bytes each in a list.
const STREAMS: usize = 1_000;
/// How many lists of them are asked for in a millisecond, and for how long.
const LISTS_A_MS: usize = 1;
const FLOOD: Duration = Duration::from_secs(6);

/// Asks for lists over connections of its own and reads no answer, so that they stay in the broker, which ends such a
/// connection now and then; then there is another.
fn ask_and_never_read(address: &str, stop: &AtomicBool) -> usize {
    let question = Query { query: Some(list(STREAMS as u32, "")) }.encode_to_vec();
    let mut publish = format!("PUB {} unread.inbox {}\r\n", subject::QUERY, question.len()).into_bytes();
    publish.extend_from_slice(&question);
    publish.extend_from_slice(b"\r\n");
    let messages = publish.repeat(10 * LISTS_A_MS);
    let mut asked = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(address) else { continue };
        stream.set_write_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        let _ = stream.write_all(b"CONNECT {\"verbose\":false}\r\nSUB unread.inbox 1\r\n");
        while !stop.load(Ordering::Relaxed) {
            match stream.write_all(&messages) {
                Ok(()) => asked += 10 * LISTS_A_MS,
                // A part of a message may have gone, so nothing can follow.
                Err(_) => break,
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    asked
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_lists_that_nobody_reads_costs_little_memory() {
    /// What may come on top while they are made and published. Without bounds it was over a gigabyte.
    const MOST_MORE_BYTES: u64 = 256 << 20;
    /// Without bounds the other streams' ticks were 4.6 s late. The broker has its own trouble with such a reader.
    const LONGEST_GAP: Duration = Duration::from_secs(2);
    alone(async {
        let nats = NatsServer::start();
        let service = Program::serve(&nats.url(), &[]).ready().await;
        let caller = Caller::connect(&nats.url()).await;
        let scene = "s".repeat(256);
        let large = config(&[(&scene, LONG_MS)]);
        for number in 0..STREAMS {
            caller.tell([say(start(&format!("{}-{number}", "a".repeat(110)), large.clone()))]).await;
        }
        eventually("all streams are there", async || caller.stats("").await.streams == STREAMS as u64).await;
        let ids: Vec<String> = (0..8).map(|number| format!("beat-{number}")).collect();
        for id in &ids {
            caller.play(id, beat()).await;
        }
        let observer = Observer::of(&nats.url(), &ids).await;
        let received = service.metric("orchestrator_received_total", "").await;
        let before = service.resident_bytes();

        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicUsize::new(0));
        let flooder = std::thread::spawn({
            let (address, stop, asked) = (nats.url().replace("nats://", ""), Arc::clone(&stop), Arc::clone(&asked));
            move || asked.store(ask_and_never_read(&address, &stop), Ordering::Relaxed)
        });
        let (begun, mut most) = (std::time::Instant::now(), before);
        while begun.elapsed() < FLOOD {
            most = most.max(service.resident_bytes());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stop.store(true, Ordering::Relaxed);
        flooder.join().expect("a flooder");

        let now = std::time::Instant::now();
        let mut gaps = crate::observer::Gaps::default();
        for id in &ids {
            observer.until("its beat goes on", id, |seen| seen.at > now).await;
            gaps = gaps.worse(observer.history(id).longest_gaps());
        }
        let asked = asked.load(Ordering::Relaxed);
        let more = service.metric("orchestrator_received_total", "").await - received;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        measured(
            "beside lists that nobody reads",
            format!("{asked} asked, {more} received, {:.0} MiB, then {:.0} at most; {gaps}", mib(before), mib(most)),
        );
        assert!(more > 500, "{more} of {asked} received");
        assert!(most - before <= MOST_MORE_BYTES, "{:.0} MiB more", mib(most - before));
        let limit = LONGEST_GAP + 3 * observer.machine.worst();
        assert!(gaps.by_arrival <= limit && gaps.by_clock <= limit, "{gaps}, of {limit:?}");
        assert_eq!(caller.stats("").await.streams, (STREAMS + ids.len()) as u64, "the service goes on");
    })
    .await;
}
