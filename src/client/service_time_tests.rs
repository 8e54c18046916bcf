//! How often the service's clock is asked for: against a service that the test plays, in virtual time.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed},
};

use futures_util::future::join_all;
use prost::Message as _;

use super::*;
use crate::{
    client::ClientOptions,
    transport::{Outgoing, Transport as _, memory::MemoryBus},
    wire::{
        proto::{Query, QueryReply, query},
        subject,
    },
};

/// The service's clock when the test begins, ms.
const BEGIN_MS: i64 = 1_790_000_000_000;

/// A service that tells the time, and how often it was asked.
struct Service {
    begin: Instant,
    asked: AtomicUsize,
    /// By how much its clock was set.
    set_by_ms: AtomicI64,
}

impl Service {
    fn now_ms(&self) -> i64 {
        BEGIN_MS + self.set_by_ms.load(Relaxed) + self.begin.elapsed().as_millis() as i64
    }

    /// Asserts that an estimate is there, and as right as it says.
    async fn check(&self, client: &Client) -> ServiceTime {
        let time = client.service_time().await.expect("a time");
        let really = Duration::from_millis(self.now_ms() as u64);
        assert!(time.since_1970.abs_diff(really) <= time.error + Duration::from_millis(1), "{time:?}, not {really:?}");
        time
    }
}

async fn world() -> (MemoryBus, Arc<Service>, Client) {
    let bus = MemoryBus::new();
    let link = bus.connect();
    let mut questions = link.subscribe(subject::QUERY, Some(subject::QUEUE_GROUP)).await.expect("subscribed");
    let service = Arc::new(Service { begin: Instant::now(), asked: AtomicUsize::new(0), set_by_ms: AtomicI64::new(0) });
    let client = Client::new(bus.connect(), ClientOptions { seed: Some(1), ..ClientOptions::default() });
    let answering = Arc::clone(&service);
    tokio::spawn(async move {
        while let Some(message) = questions.next().await {
            let query = Query::decode(message.payload).expect("a query").query;
            assert!(matches!(query, Some(query::Query::GetTime(_))), "{query:?}");
            answering.asked.fetch_add(1, Relaxed);
            // On its way there, and back.
            tokio::time::sleep(Duration::from_millis(3)).await;
            let reply = QueryReply { server_time_ms: answering.now_ms() as u64, ..QueryReply::default() };
            tokio::time::sleep(Duration::from_millis(1)).await;
            let (subject, payload) = (message.reply.expect("asked"), reply.encode_to_vec().into());
            link.publish(&mut [Outgoing { subject, payload }].into()).await.expect("published");
        }
    });
    (bus, service, client)
}

#[tokio::test(start_paused = true)]
async fn at_first_the_service_is_asked_several_times_for_all_who_wait() {
    let (_bus, service, client) = world().await;
    for time in join_all((0..100).map(|_| service.check(&client))).await {
        assert!(time.error <= Duration::from_micros(2_501), "{time:?}");
    }
    assert_eq!(service.asked.load(Relaxed), FIRST_QUESTIONS);
}

#[tokio::test(start_paused = true)]
async fn as_long_as_somebody_wants_to_know_it_is_asked_once_in_a_while() {
    let (_bus, service, client) = world().await;
    client.service_time().await.expect("a time");
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        join_all([service.check(&client), service.check(&client)]).await;
    }
    let asked = service.asked.load(Relaxed) - FIRST_QUESTIONS;
    assert!((10..=12).contains(&asked), "{asked} in a minute");
    // Nobody wants to know: nothing is asked.
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(service.asked.load(Relaxed) - FIRST_QUESTIONS, asked);
    service.check(&client).await;
    assert_eq!(service.asked.load(Relaxed), asked + 2 * FIRST_QUESTIONS);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_is_found_out_about_with_the_next_question() {
    let (_bus, service, client) = world().await;
    client.service_time().await.expect("a time");
    service.set_by_ms.store(-3_600_000, Relaxed);
    tokio::time::sleep(REFRESH_AFTER + Duration::from_millis(1)).await;
    service.check(&client).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_known_does_for_a_minute_while_nobody_answers() {
    let (bus, service, client) = world().await;
    client.service_time().await.expect("a time");
    bus.set_black_hole(true);
    tokio::time::sleep(FORGET_AFTER - Duration::from_secs(3)).await;
    // Of two who want to know, one asks in vain, and both are told what is known.
    join_all([service.check(&client), service.check(&client)]).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let begun = Instant::now();
    let failures = join_all((0..100).map(|_| client.service_time())).await;
    assert!(failures.into_iter().all(|failure| failure.is_err_and(|error| error.kind() == ErrorKind::Timeout)));
    assert!(begun.elapsed() < 2 * QUESTION_TIMEOUT, "one question fails for all: {:?}", begun.elapsed());
    bus.set_black_hole(false);
    tokio::time::sleep(FAILED_FOR).await;
    service.check(&client).await;
}
