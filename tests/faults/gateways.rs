//! Gateways as processes, and the viewers behind them.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use orchestrator_service::wire::proto::{OrchestratorConfig, StateUpdate};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    machine::{measured, shared},
    support::caller::Caller,
    support::messages::{LONG_MS, config, long_config, start},
    support::nats_server::NatsServer,
    support::program::Program,
    support::waiting::{eventually, wall_ms},
};

/// Somebody with a WebSocket, who reads all the time.
#[derive(Debug)]
pub(crate) struct Viewer {
    seen: Arc<Mutex<Vec<StateUpdate>>>,
    /// When it was told whether what it sees is live.
    liveness: Arc<Mutex<Vec<(Instant, bool)>>>,
    /// When each update was read, ms since 1970.
    read_at: Arc<Mutex<Vec<u64>>>,
    reading: JoinHandle<()>,
}

impl Viewer {
    /// Sees the state when this returns.
    pub(crate) async fn open(gateway: &Program, stream_id: &str) -> Self {
        let url = format!("ws://{}/streams/{stream_id}/ws", gateway.web().await);
        let (mut socket, _) = tokio_tungstenite::connect_async(url).await.expect("a socket");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let liveness: Arc<Mutex<Vec<(Instant, bool)>>> = Arc::default();
        let read_at: Arc<Mutex<Vec<u64>>> = Arc::default();
        let (into, words, times) = (Arc::clone(&seen), Arc::clone(&liveness), Arc::clone(&read_at));
        let reading = tokio::spawn(async move {
            let mut is_back = false;
            while let Some(Ok(message)) = socket.next().await {
                let Message::Text(text) = message else { continue };
                let message: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                match message["live"].as_bool() {
                    Some(live) => {
                        words.lock().expect("viewers only push").push((Instant::now(), live));
                        is_back = live;
                    }
                    None => {
                        let update: StateUpdate = serde_json::from_value(message).expect("an update");
                        // What was seen is told again when it is live again, since it may not have changed.
                        let last =
                            into.lock().expect("viewers only push").last().map(|last: &StateUpdate| last.sequence);
                        if std::mem::take(&mut is_back) && last == Some(update.sequence) {
                            continue;
                        }
                        into.lock().expect("viewers only push").push(update);
                        times.lock().expect("viewers only push").push(wall_ms());
                    }
                }
            }
        });
        let viewer = Self { seen, liveness, read_at, reading };
        eventually("a viewer sees the state", async || viewer.seen().last().is_some()).await;
        viewer
    }

    fn seen(&self) -> Vec<StateUpdate> {
        self.seen.lock().expect("viewers only push").clone()
    }

    pub(crate) fn latest(&self) -> StateUpdate {
        self.seen.lock().expect("viewers only push").last().cloned().expect("a viewer has seen something")
    }

    fn liveness(&self) -> Vec<(Instant, bool)> {
        self.liveness.lock().expect("viewers only push").clone()
    }

    /// How old each update was when it was read, ms.
    fn ages_ms(&self) -> Vec<u64> {
        let read_at = self.read_at.lock().expect("viewers only push").clone();
        read_at.iter().zip(self.seen()).map(|(read, update)| read.saturating_sub(update.server_time_ms)).collect()
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
async fn a_killed_gateways_viewers_go_when_stale_and_others_stay() {
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
        // A second after they are stale is the promise; the rest is for a busy machine.
        assert!(took <= Duration::from_millis(STALE_MS + 7_000), "{took:?}");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viewers_are_told_of_a_killed_service_within_3_s() {
    shared(async {
        let nats = NatsServer::start();
        let mut service = Program::serve(&nats.url(), &[]).ready().await;
        let gateway = Program::gateway(&nats.url(), &[]).ready().await;
        let caller = Caller::connect(&nats.url()).await;
        caller.done(start("show", config(&[("Main", LONG_MS)]))).await;
        let viewers = [Viewer::open(&gateway, "show").await, Viewer::open(&gateway, "show").await];
        service.kill();
        let killed_at = Instant::now();
        for viewer in &viewers {
            eventually("the viewer is told", async || !viewer.liveness().is_empty()).await;
            let (told_at, live) = viewer.liveness()[0];
            measured("told of a killed service after", format!("{:.2?}", told_at - killed_at));
            // 3 s is the promise; the rest is for a busy machine.
            assert!(!live && told_at - killed_at < Duration::from_secs(10));
        }
        let warnings = gateway.log().lines().filter(|line| line.contains("WARN") && line.contains("is away")).count();
        assert_eq!(warnings, 1, "{}", gateway.log());

        let _service = Program::serve(&nats.url(), &[]).ready().await;
        caller.done(start("show", config(&[("Main", LONG_MS)]))).await;
        for viewer in &viewers {
            eventually("the viewer is told that it is live", async || {
                viewer.liveness().last().is_some_and(|word| word.1)
            })
            .await;
            assert!(!viewer.is_gone());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_gateway_blames_nobody_and_shows_the_newest_once() {
    shared(async {
        let nats = NatsServer::start();
        let _service = Program::serve(&nats.url(), &[]).ready().await;
        let gateway = Program::gateway(&nats.url(), &["--ping-interval", "1s", "--vanished-after", "2s"]).ready().await;
        let caller = Caller::connect(&nats.url()).await;
        // Scenes change within the stop, too.
        let scenes = [("A", 700), ("B", 900), ("C", 500)];
        caller.done(start("show", OrchestratorConfig { loop_scenes: true, ..config(&scenes) })).await;
        let mut viewers = Vec::new();
        for _ in 0..50 {
            viewers.push(Viewer::open(&gateway, "show").await);
        }
        tokio::time::sleep(Duration::from_millis(1_500)).await;

        gateway.signal("STOP");
        tokio::time::sleep(Duration::from_secs(6)).await;
        let before: Vec<usize> = viewers.iter().map(|viewer| viewer.ages_ms().len()).collect();
        gateway.signal("CONT");

        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(viewers.iter().all(|viewer| !viewer.is_gone()), "nobody is blamed");
        let oldest = viewers.iter().zip(before).flat_map(|(viewer, before)| viewer.ages_ms().split_off(before)).max();
        measured("the oldest state shown after a stop of 6 s", format!("{oldest:?} ms"));
        assert!(oldest.is_some_and(|oldest| oldest < 4_000), "{oldest:?}");
        viewers.iter().for_each(Viewer::assert_in_order);
    })
    .await;
}
