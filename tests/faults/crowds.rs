//! 100,000 subscribers who do the same thing at the same time.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use orchestrator_service::wire::proto::{
    Code, HeartbeatBatch, RegisterBatch, Subscriber, UnregisterBatch, subscription_command::Command,
};

use crate::{
    bursts::{assert_beats, beat},
    machine::{alone, long_run, measured},
    observer::Observer,
    support::caller::Caller,
    support::messages::{long_config, start},
    support::nats_server::NatsServer,
    support::program::Program,
    support::waiting::eventually,
};

const CROWD: usize = 100_000;
/// Subscribers in one message.
const BATCH: usize = 1_000;

/// Registers the crowd, each with a name that no round before had; their handles.
async fn join(caller: &Caller, id: &str, round: usize) -> Vec<u64> {
    let mut handles = Vec::with_capacity(CROWD);
    for batch in 0..CROWD / BATCH {
        let subscriber = (0..BATCH).map(|number| Subscriber {
            client_id: format!("viewer-{round}-{}", batch * BATCH + number),
            source_addr: "192.0.2.1:4000".into(),
            session: number as u64,
        });
        let message = RegisterBatch { stream_id: id.into(), subscriber: subscriber.collect() };
        let reply = caller.joined(Command::RegisterBatch(message)).await;
        assert!(!reply.handles.contains(&0), "all are registered");
        handles.extend(reply.handles);
        // On a slow machine the first would be stale before the last are there.
        if batch % 20 == 0 {
            heartbeat_all(caller, &handles).await;
        }
    }
    handles
}

/// All at once, as near as can be.
async fn heartbeat_all(caller: &Caller, handles: &[u64]) {
    let replies = handles.chunks(BATCH).map(|handles| {
        let message = HeartbeatBatch { handle: handles.to_vec(), ..HeartbeatBatch::default() };
        caller.joined(Command::HeartbeatBatch(message))
    });
    assert!(join_all(replies).await.iter().all(|reply| reply.unknown_handle.is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_beat_holds_while_100_000_subscribers_go_stale_at_once() {
    const STALE: Duration = Duration::from_secs(4);
    /// Stale for at most a second, and then as long as a busy machine takes for 100,000.
    const GONE_WITHIN: Duration = Duration::from_secs(10);
    alone(async {
        let nats = NatsServer::start();
        let service = Program::serve(&nats.url(), &["--stale-timeout", "4s"]).ready().await;
        let caller = Caller::connect(&nats.url()).await;
        // Streams on both shards, that of the crowd too.
        let ids: Vec<String> = (0..8).map(|number| format!("beat-{number}")).collect();
        let client = caller.client();
        let mut viewers = Vec::new();
        for id in &ids {
            caller.done(start(id, beat())).await;
            viewers.push(client.register(id, "viewer", None, 0).await.expect("registered"));
        }
        caller.done(start("crowded", long_config())).await;
        let handles = join(&caller, "crowded", 0).await;
        heartbeat_all(&caller, &handles).await;
        let heard = Instant::now();
        assert_eq!(caller.stats("crowded").await.active, CROWD as u64);
        let observer = Observer::of(&nats.url(), &ids).await;

        tokio::time::sleep((STALE - Duration::from_millis(500)).saturating_sub(heard.elapsed())).await;
        if heard.elapsed() < STALE {
            let stats = caller.stats("crowded").await;
            assert!(heard.elapsed() >= STALE || stats.active == CROWD as u64, "too early: {stats:?}");
        }
        let mut left = CROWD as u64;
        eventually("the crowd is gone", async || {
            let stats = caller.stats("crowded").await;
            assert!(stats.total <= left && stats.active + stats.stale == stats.total, "{stats:?}");
            left = stats.total;
            left == 0
        })
        .await;
        let took = heard.elapsed();

        let gaps = assert_beats(&observer, &ids).await;
        measured(
            "while 100,000 go stale",
            format!("{gaps}; gone {took:.2?} after the last heartbeat, timeout {STALE:?}"),
        );
        assert!(took <= STALE + GONE_WITHIN, "{took:?}");
        assert_eq!(service.metric("orchestrator_stale_removed_total", "").await, CROWD as u64);
        let stats = caller.stats("").await;
        assert_eq!((stats.total, stats.active, stats.stale), (8, 8, 0), "those who heartbeat are still there");
    })
    .await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_flat_while_100_000_join_and_leave_again_and_again() {
    /// Rounds until the tables and the allocator have the size that they need.
    const WARM_UP: usize = 3;
    const MOST_GROWTH_PERCENT: u64 = 5;
    let rounds = if long_run() { 20 } else { 8 };
    alone(async {
        let nats = NatsServer::start();
        let service = Program::serve(&nats.url(), &[]).ready().await;
        let caller = Caller::connect(&nats.url()).await;
        caller.done(start("crowded", long_config())).await;
        let mut resident_mib: Vec<f64> = Vec::new();
        for round in 0..rounds {
            let handles = join(&caller, "crowded", round).await;
            assert_eq!(caller.stats("").await.active, CROWD as u64);
            for part in handles.chunks(BATCH) {
                let message = UnregisterBatch { handle: part.to_vec(), ..UnregisterBatch::default() };
                let reply = caller.subscription(Command::UnregisterBatch(message)).await;
                assert_eq!((reply.code(), reply.unknown_handle.len()), (Code::Ok, 0));
            }
            let stats = caller.stats("").await;
            assert_eq!((stats.total, stats.active, stats.unique_clients), (0, 0, 0));
            resident_mib.push(service.resident_bytes() as f64 / f64::from(1 << 20));
        }
        let base = resident_mib[WARM_UP - 1];
        let most = resident_mib[WARM_UP..].iter().copied().fold(0.0, f64::max);
        let growth_percent = (most / base - 1.0) * 100.0;
        let figures: Vec<String> = resident_mib.iter().map(|mib| format!("{mib:.1}")).collect();
        measured(
            &format!("resident MiB over {rounds} rounds of 100,000"),
            format!("{} (growth {growth_percent:+.1} % after round {WARM_UP})", figures.join(" ")),
        );
        assert!(growth_percent <= MOST_GROWTH_PERCENT as f64, "{growth_percent:.1} %");
    })
    .await;
}
