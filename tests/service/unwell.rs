//! Transports that behave badly, and what a service says and does about them.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use orchestrator_service::{
    service::{Service, ServiceSettings},
    transport::{
        Accept, Connection, Denied, Message, Outgoing, Subscription, Transport, TransportError,
        memory::{MemoryBus, MemoryTransport},
    },
    wire::{
        proto::{Cause, Code, OrchestratorConfig, QueryReply},
        subject,
    },
};
use tokio::sync::watch;

use crate::{
    support::messages::*,
    testbed::{Caller, eventually, settings, within_limit},
};

/// A connection that takes so many bytes a millisecond, and panics when it is told to.
#[derive(Debug)]
struct Bad {
    inner: Arc<MemoryTransport>,
    bytes_a_ms: usize,
    panics: AtomicBool,
}

impl Bad {
    fn new(bus: &MemoryBus, bytes_a_ms: usize) -> Arc<Self> {
        Arc::new(Self { inner: bus.connect(), bytes_a_ms, panics: AtomicBool::new(false) })
    }
}

impl Transport for Bad {
    fn publish<'a>(&'a self, messages: &'a mut VecDeque<Outgoing>) -> BoxFuture<'a, Result<(), TransportError>> {
        assert!(!self.panics.load(Ordering::SeqCst), "as it was told to");
        Box::pin(async move {
            let mut bytes = 0;
            while let Some(next) = messages.pop_front() {
                bytes += next.payload.len();
                let ms = bytes / self.bytes_a_ms;
                if ms > 0 {
                    tokio::time::sleep(Duration::from_millis(ms as u64)).await;
                    bytes %= self.bytes_a_ms;
                }
                self.inner.publish(&mut VecDeque::from([next])).await?;
            }
            Ok(())
        })
    }

    fn barrier(&self) -> BoxFuture<'_, Result<(), TransportError>> {
        self.inner.barrier()
    }

    fn subscribe<'a>(
        &'a self,
        subject: &'a str,
        queue: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Subscription, TransportError>> {
        self.inner.subscribe(subject, queue)
    }

    fn request_where<'a>(
        &'a self,
        subject: &'a str,
        payload: Bytes,
        timeout: Duration,
        accept: Accept<'a>,
    ) -> BoxFuture<'a, Result<Message, TransportError>> {
        self.inner.request_where(subject, payload, timeout, accept)
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.inner.connection()
    }

    fn denied(&self) -> watch::Receiver<Denied> {
        self.inner.denied()
    }

    fn max_payload(&self) -> Option<usize> {
        self.inner.max_payload()
    }

    fn dropped(&self) -> u64 {
        self.inner.dropped()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_whose_publisher_has_died_is_never_ready_again() {
    within_limit(async {
        let bus = MemoryBus::new();
        let bad = Bad::new(&bus, usize::MAX);
        let publishers: Vec<Arc<dyn Transport>> = vec![bus.connect(), Arc::clone(&bad) as Arc<dyn Transport>];
        let settings = ServiceSettings { shards: 2, ..settings() };
        let service = Service::start(settings, bus.connect(), publishers).await.expect("it starts");
        eventually("it is ready", async || service.ready().is_ok()).await;

        bad.panics.store(true, Ordering::SeqCst);
        let caller = Caller { transport: bus.connect() };
        for number in 0..20 {
            caller.tell([crate::testbed::say(start(&format!("show-{number}"), long_config()))]).await;
        }

        eventually("it says so", async || service.ready().is_err_and(|reason| reason.contains("shard 1"))).await;
        let before = Instant::now();
        service.drain().await;
        assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_whose_receiver_has_died_is_never_ready_again() {
    within_limit(async {
        let bus = MemoryBus::new();
        let bad = Bad::new(&bus, usize::MAX);
        let service = Service::start(settings(), Arc::clone(&bad) as Arc<dyn Transport>, vec![bus.connect()]).await;
        let service = service.expect("it starts");
        eventually("it is ready", async || service.ready().is_ok()).await;

        // What does not decode is refused by the receiver, over its own connection.
        bad.panics.store(true, Ordering::SeqCst);
        let asking = bus.connect();
        let unanswered =
            asking.request(subject::COMMAND, Bytes::from_static(b"\xff\xff"), Duration::from_millis(200)).await;
        assert!(matches!(unanswered, Err(TransportError::Timeout(_))), "{unanswered:?}");

        eventually("it says so", async || service.ready().is_err_and(|reason| reason.contains("receiver"))).await;
        let before = Instant::now();
        service.drain().await;
        assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_transport_to_publish_over_the_service_says_so() {
    let error = Service::start(settings(), MemoryBus::new().connect(), Vec::new()).await.expect_err("refused");
    assert!(error.to_string().contains("transport to publish over"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flood_of_lists_over_a_slow_connection_leaves_the_beat_alone() {
    /// 716 KB of states take 36 ms of it.
    const BYTES_A_MS: usize = 20_000;
    const LISTS: usize = 300;
    within_limit(async {
        let bus = MemoryBus::new();
        let publisher: Arc<dyn Transport> = Bad::new(&bus, BYTES_A_MS);
        let settings = ServiceSettings { shards: 1, ..settings() };
        let service = Service::start(settings, bus.connect(), vec![publisher]).await.expect("it starts");
        let caller = Caller { transport: bus.connect() };
        let scene = "s".repeat(256);
        let large = config(&[(&scene, LONG_MS)]);
        for number in 0..1_000 {
            let id = format!("{}-{number}", "a".repeat(110));
            caller.tell([crate::testbed::say(start(&id, large.clone()))]).await;
        }
        let mut updates = caller.updates("beat").await;
        let beat = OrchestratorConfig { tick_interval_ms: Some(20), ..config(&[("Main", LONG_MS)]) };
        caller.done(start("beat", beat)).await;
        caller.subscription(register("beat", "viewer")).await;
        updates.until(|update| update.cause() == Cause::Tick).await;

        let flood = tokio::spawn({
            let caller = caller.clone();
            async move {
                join_all((0..LISTS).map(|_| async {
                    let reply: QueryReply = caller.query(list(1_000, "")).await;
                    reply.code()
                }))
                .await
            }
        });
        let mut longest = Duration::ZERO;
        let mut last = Instant::now();
        while !flood.is_finished() {
            updates.next().await;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        println!("measured: longest pause of a beat of 20 ms beside {LISTS} lists: {longest:.0?}");
        assert!(longest < Duration::from_secs(1), "{longest:?}");
        let codes = flood.await.expect("all are answered");
        let told = codes.iter().filter(|code| **code == Code::Ok).count();
        assert!(told > 0, "some had their list");
        assert!(codes.iter().all(|code| matches!(code, Code::Ok | Code::Unavailable)), "{codes:?}");
        service.drain().await;
    })
    .await;
}
