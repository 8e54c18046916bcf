//! The process is told to end under load, or stands still for a while.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use orchestrator_service::{
    client::Registration,
    transport::TransportError,
    wire::{
        proto::{Cause, Code, Mode, OrchestratorConfig, Reply},
        subject,
    },
};
use prost::Message as _;

use crate::{
    bursts::beat,
    machine::{alone, clock_at, long_run, measured},
    observer::{Observer, Seen},
    support::caller::{Caller, say, say_subscription},
    support::messages::{LONG_MS, config, heartbeat, long_config, register_from, seek, start},
    support::nats_server::NatsServer,
    support::program::Program,
    support::waiting::wall_ms,
};

/// How long a stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_answers_what_was_carried_out() {
    const STREAMS: usize = 50;
    /// Requests under way at once.
    const ASKING: usize = 64;
    alone(async {
        let nats = NatsServer::start();
        let mut service = Program::serve(&nats.url(), &[]).ready().await;
        let caller = Caller::connect(&nats.url()).await;
        let observer = Observer::of_all(&nats.url()).await;
        for number in 0..STREAMS {
            let config = OrchestratorConfig { tick_interval_ms: Some(20), ..config(&[("Main", LONG_MS)]) };
            caller.play(&format!("show-{number}"), config).await;
        }
        let tally = Arc::new(Tally::default());
        let mut asking = Vec::new();
        for asker in 0..ASKING {
            let (caller, tally) = (caller.clone(), Arc::clone(&tally));
            asking.push(tokio::spawn(async move {
                for number in 0.. {
                    let id = format!("show-{}", (asker + number) % STREAMS);
                    if !tally.ask(&caller, &id, number as u64).await {
                        return;
                    }
                }
            }));
        }
        while tally.answered.load(Ordering::Relaxed) < 5_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }

        service.signal("TERM");
        let before = Instant::now();
        let (status, _) = service.end().await;
        let took = before.elapsed();
        let ended_ms = wall_ms();
        tally.ended.store(true, Ordering::Relaxed);

        assert!(status.success() && took < STOP_LIMIT, "{status} after {took:?}");
        for task in asking {
            task.await.expect("an asker");
        }
        // All that the service had published is at the observer behind this.
        observer.caller.until_connected().await;
        let (answers, unanswered) = (tally.answers.lock().expect("askers only push").clone(), tally.unanswered());
        let answered: usize = answers.values().map(Vec::len).sum();
        measured(
            "SIGTERM under load",
            format!("ended after {took:.2?}; {answered} answered, {unanswered} without an answer"),
        );
        for (id, revisions) in answers {
            let history = observer.history(&id);
            let commands = history.updates.iter().filter(|seen| seen.update.cause() == Cause::Command);
            let mut told: Vec<u64> = commands.map(|seen| seen.update.revision).collect();
            // The answer to the Start, which was not counted here.
            told.retain(|revision| *revision > 1);
            let mut answered = revisions;
            answered.sort_unstable();
            assert_eq!(told, answered, "{id}: what was carried out is told and answered");
            let last = history.updates.last().expect("updates");
            assert!(last.update.server_time_ms <= ended_ms, "{last:?}");
        }
        // What the broker passed on before the service unsubscribed was answered, and whoever asked later is told that
        // nobody is there. What remains is what was on its way in that very moment, which the client drops. Whoever
        // asked finds out by a timeout and asks another.
        assert!(unanswered < ASKING as u64, "{unanswered} were on their way");
    })
    .await;
}

/// What became of many requests.
#[derive(Debug, Default)]
struct Tally {
    answered: AtomicU64,
    /// The revisions of each stream.
    answers: Mutex<BTreeMap<String, Vec<u64>>>,
    unanswered: AtomicU64,
    ended: AtomicBool,
}

impl Tally {
    /// False when nobody is there any more.
    async fn ask(&self, caller: &Caller, id: &str, number: u64) -> bool {
        let payload = say(seek(id, number % LONG_MS)).payload;
        match caller.transport.request(subject::COMMAND, payload, 2 * STOP_LIMIT).await {
            Ok(answer) => {
                let reply = Reply::decode(answer.payload).expect("an answer");
                match reply.code() {
                    Code::Ok => {
                        let mut answers = self.answers.lock().expect("askers only push");
                        answers.entry(id.to_owned()).or_default().push(reply.revision);
                        self.answered.fetch_add(1, Ordering::Relaxed);
                        true
                    }
                    // Refused: an answer, too.
                    code => {
                        assert_eq!(code, Code::Unavailable, "{}", reply.message);
                        true
                    }
                }
            }
            Err(TransportError::NoResponders(_)) => false,
            Err(TransportError::Timeout(_)) => {
                self.unanswered.fetch_add(1, Ordering::Relaxed);
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_frozen_for_5_s_goes_on_without_a_burst_of_ticks() {
    const TICK_MS: u64 = 50;
    alone(async {
        let nats = NatsServer::start();
        let service = Program::serve(&nats.url(), &[]).ready().await;
        let caller = Caller::connect(&nats.url()).await;
        let ids: Vec<String> = (0..20).map(|number| format!("beat-{number}")).collect();
        for id in &ids {
            caller.play(id, beat()).await;
        }
        // One whose scene ends and one that ends while nothing moves.
        caller
            .play("scene", OrchestratorConfig { scenes: config(&[("One", 2_000), ("Two", LONG_MS)]).scenes, ..beat() })
            .await;
        let observer = Observer::of_all(&nats.url()).await;
        for stop_ms in if long_run() { vec![5_000; 10] } else { vec![5_000, 1_500] } {
            observer.until("it ticks", &ids[0], |seen| seen.update.cause() == Cause::Tick).await;
            service.signal("STOP");
            let stopped_ms = wall_ms();
            clock_at(stopped_ms + stop_ms).await;
            // The signal may take a moment to stop all threads.
            let moved = |seen: &Seen| seen.update.server_time_ms > stopped_ms + stop_ms / 2;
            assert!(!ids.iter().any(|id| observer.has_seen(id, moved)), "it stands still");
            observer.forget();

            let woken_ms = wall_ms();
            service.signal("CONT");

            let mut first_after_ms = 0;
            for id in &ids {
                observer.until("it ticks on", id, |seen| seen.at_ms > woken_ms + 1_000).await;
                let history = observer.history(id);
                // What the process had made and not sent may be one old tick; of those slept through there is none.
                let old = history.updates.iter().filter(|seen| seen.update.server_time_ms < woken_ms).count();
                assert!(old <= 1, "{id}: {old} stale ticks");
                let within = |ms: u64| {
                    let fresh = history.updates.iter().filter(|seen| seen.update.server_time_ms >= woken_ms);
                    fresh.filter(|seen| seen.update.server_time_ms < woken_ms + ms).count() as u64
                };
                assert!(within(1_000) <= 1_000 / TICK_MS + 2, "{id}: {} ticks in the first second", within(1_000));
                // One that was overdue, and the next on the stream's own beat.
                assert!(within(TICK_MS) <= 2, "{id}: {} ticks right after waking", within(TICK_MS));
                let first = history.updates.iter().find(|seen| seen.update.server_time_ms >= woken_ms).expect("a tick");
                first_after_ms = first_after_ms.max(first.at_ms - woken_ms);
                let began_ms = |seen: &Seen| seen.update.server_time_ms - seen.update.current_time;
                let (low, high) = history
                    .updates
                    .iter()
                    .map(began_ms)
                    .fold((u64::MAX, 0), |(low, high), began| (low.min(began), high.max(began)));
                assert!(high - low <= 5, "{id}: the position is off the clock by {} ms", high - low);
            }
            measured(
                &format!("SIGSTOP for {stop_ms} ms"),
                format!("first tick of 20 streams after {first_after_ms} ms"),
            );
        }
        assert_eq!(caller.state("scene").await.current_scene.as_deref(), Some("Two"));
        assert!(!service.log().contains("lost the connection"), "{}", service.log());
    })
    .await;
}

/// The stops are longer than the stale timeout, by a lot and by little; the shards wake for a tick, or for nothing but
/// the subscribers' silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_who_heartbeats_is_removed_for_the_services_stall() {
    alone(async {
        let (rounds, stops) = (if long_run() { 5 } else { 1 }, [3_200, 3_600, 3_700, 3_800, 3_900, 5_000]);
        for _ in 0..rounds {
            let ticking = stops.iter().map(|stop_ms| stands_still(beat(), *stop_ms));
            let silent = stops.iter().map(|stop_ms| stands_still(long_config(), *stop_ms));
            // Side by side, each with a broker of its own: most of the time nothing happens.
            tokio::join!(join_all(ticking), join_all(silent));
        }
    })
    .await;
}

/// A service with a stale timeout of 3 s stands still twice, the second time with what the first has left behind.
async fn stands_still(config: OrchestratorConfig, stop_ms: u64) {
    /// Silence from before could throw somebody out for that long, no more.
    const STALE: Duration = Duration::from_secs(3);
    let nats = NatsServer::start();
    let service = Program::serve(&nats.url(), &["--stale-timeout", "3s"]).ready().await;
    let caller = Caller::connect(&nats.url()).await;
    caller.done(start("show", config)).await;
    for round in 1..=2 {
        let what = format!("round {round}, stopped for {stop_ms} ms");
        // One heartbeats while it stands still, and one right afterwards.
        for viewer in ["while", "after"] {
            caller.joined(register_from("show", viewer, "", 0)).await;
        }
        service.signal("STOP");
        let stopped_ms = wall_ms();
        clock_at(stopped_ms + stop_ms / 2).await;
        caller.tell([say_subscription(heartbeat("show", "while", 0))]).await;
        caller.until_connected().await;
        clock_at(stopped_ms + stop_ms).await;
        service.signal("CONT");

        let woken = Instant::now();
        let after = caller.subscription(heartbeat("show", "after", 0)).await;
        assert_eq!(after.code(), Code::Ok, "{what}: {}", after.message);
        let stats = caller.stats("show").await;
        assert_eq!((stats.active, stats.total), (2, 2), "{what}");
        while woken.elapsed() < STALE - Duration::from_millis(500) {
            let stats = caller.stats("show").await;
            assert_eq!(stats.total, 2, "{what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(service.metric("orchestrator_stale_removed_total", "").await, 0, "{what}");
        assert_eq!(caller.state("show").await.mode(), Mode::Running, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_viewers_are_there_after_each_of_several_stops() {
    const VIEWERS: usize = 50;
    alone(async {
        let nats = NatsServer::start();
        let service = Program::serve(&nats.url(), &["--stale-timeout", "3s"]).ready().await;
        let caller = Caller::connect(&nats.url()).await;
        caller.done(start("show", long_config())).await;
        let client = caller.client();
        let mut viewers: Vec<Registration> = Vec::new();
        for number in 0..VIEWERS {
            viewers.push(client.register("show", &format!("viewer-{number}"), None, 0).await.expect("registered"));
        }
        for stop_ms in if long_run() { vec![5_000; 10] } else { vec![5_000, 3_600] } {
            service.signal("STOP");
            clock_at(wall_ms() + stop_ms).await;
            service.signal("CONT");
            let woken = Instant::now();
            while woken.elapsed() < Duration::from_secs(2) {
                assert_eq!(caller.stats("show").await.total, VIEWERS as u64, "stopped for {stop_ms} ms");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        assert_eq!(service.metric("orchestrator_stale_removed_total", "").await, 0, "nobody came anew");
        assert_eq!(caller.stats("show").await.active, VIEWERS as u64);
        drop(viewers);
    })
    .await;
}
