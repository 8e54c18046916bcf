//! Gateways as processes, and the viewers behind them.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use orchestrator_service::wire::proto::StateUpdate;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    machine::{measured, shared},
    support::caller::Caller,
    support::messages::{LONG_MS, config, long_config, start},
    support::nats_server::NatsServer,
    support::program::Program,
    support::waiting::eventually,
};

/// Somebody with a WebSocket, who reads all the time.
#[derive(Debug)]
pub(crate) struct Viewer {
    seen: Arc<Mutex<Vec<StateUpdate>>>,
    reading: JoinHandle<()>,
}

impl Viewer {
    /// Sees the state when this returns.
    pub(crate) async fn open(gateway: &Program, stream_id: &str) -> Self {
        let url = format!("ws://{}/streams/{stream_id}/ws", gateway.web().await);
        let (mut socket, _) = tokio_tungstenite::connect_async(url).await.expect("a socket");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&seen);
        let reading = tokio::spawn(async move {
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Text(text) = message {
                    let update = serde_json::from_str(&text).expect("an update");
                    into.lock().expect("viewers only push").push(update);
                }
            }
        });
        let viewer = Self { seen, reading };
        eventually("a viewer sees the state", async || viewer.seen().last().is_some()).await;
        viewer
    }

    fn seen(&self) -> Vec<StateUpdate> {
        self.seen.lock().expect("viewers only push").clone()
    }

    pub(crate) fn latest(&self) -> StateUpdate {
        self.seen.lock().expect("viewers only push").last().cloned().expect("a viewer has seen something")
    }

    /// Whether the gateway or the network ended the socket.
    pub(crate) fn is_gone(&self) -> bool {
        self.reading.is_finished()
    }

    /// Nothing came twice, and nothing old came behind something new.
    pub(crate) fn assert_in_order(&self) {
        for pair in self.seen().windows(2) {
            let key = |update: &StateUpdate| (update.epoch, update.sequence);
            assert!(key(&pair[0]) < key(&pair[1]), "{pair:#?}");
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_gateways_viewers_are_gone_when_they_are_stale_and_others_stay() {
    const STALE_MS: u64 = 3_000;
    const VIEWERS: u64 = 50;
    shared(async {
        let nats = NatsServer::start();
        let service = Program::serve(&nats.url(), &["--stale-timeout", "3s"]).ready().await;
        let mut killed = Program::gateway(&nats.url(), &["--heartbeat-interval", "1s"]).ready().await;
        let other = Program::gateway(&nats.url(), &["--heartbeat-interval", "1s"]).ready().await;
        let caller = Caller::connect(&nats.url()).await;
        // One stream that only the killed gateway's viewers watch, and one that others watch too.
        caller.done(start("theirs", long_config())).await;
        caller.done(start("shared", config(&[("Main", LONG_MS)]))).await;
        let (mut lost, mut kept) = (Vec::new(), Vec::new());
        for _ in 0..VIEWERS {
            lost.push(Viewer::open(&killed, "theirs").await);
            lost.push(Viewer::open(&killed, "shared").await);
            kept.push(Viewer::open(&other, "shared").await);
        }
        // Longer than the stale timeout: they are there because their gateway says so.
        let until = Instant::now() + Duration::from_millis(STALE_MS + 1_500);
        while Instant::now() < until {
            let stats = caller.stats("").await;
            assert_eq!((stats.total, stats.active), (3 * VIEWERS, 3 * VIEWERS), "all viewers are watching");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }

        killed.kill();
        let killed_at = Instant::now();

        eventually("only the other gateway's viewers are left", async || {
            let stats = caller.stats("shared").await;
            assert!(stats.active >= VIEWERS, "a viewer of the living gateway is gone: {stats:?}");
            caller.stats("").await.total == VIEWERS
        })
        .await;
        let took = killed_at.elapsed();
        measured("viewers of a killed gateway gone after", format!("{took:.2?} with a stale timeout of 3 s"));
        assert!(took <= Duration::from_millis(STALE_MS + 2_000), "{took:?}");
        assert_eq!(caller.stats("theirs").await.total, 0);
        assert_eq!(caller.stats("shared").await.unique_clients, VIEWERS);
        let removed = service.metric("orchestrator_stale_removed_total", "").await;
        assert_eq!(removed, 2 * VIEWERS);
        assert!(lost.iter().all(Viewer::is_gone) && !kept.iter().any(Viewer::is_gone));
        let before = kept[0].latest().sequence;
        eventually("the others' stream plays on", async || kept[0].latest().sequence > before).await;
    })
    .await;
}
