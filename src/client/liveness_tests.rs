//! Who is told what of the service, and when: against a service that the test plays, in virtual time.

use prost::Message as _;

use super::*;
use crate::{
    client::{Client, ClientOptions},
    transport::{
        Outgoing, Subscription, Transport as _,
        memory::{MemoryBus, MemoryTransport},
    },
    wire::{
        proto::{Code, QueryReply, Stats},
        subject,
    },
};

/// The promise to viewers.
const BOUND: Duration = Duration::from_secs(3);

/// Answers what it is asked, or swallows it.
struct Service {
    link: Arc<MemoryTransport>,
    questions: Subscription,
    publishes: PublishedTo,
}

impl Service {
    async fn on(bus: &MemoryBus) -> Self {
        let link = bus.connect();
        let questions = link.subscribe(subject::QUERY, Some(subject::QUEUE_GROUP)).await.expect("subscribed");
        Self { link, questions, publishes: PublishedTo::Unknown }
    }

    /// Answers one question with this code.
    async fn answer(&mut self, code: Code) {
        let message = self.questions.next().await.expect("the bus lives");
        let stats = Stats { published_to: self.publishes.into(), ..Stats::default() };
        let reply = QueryReply { code: code.into(), stats: Some(stats), ..QueryReply::default() };
        let reply = Outgoing { subject: message.reply.expect("asked"), payload: reply.encode_to_vec().into() };
        self.link.publish(&mut [reply].into()).await.expect("published");
    }

    /// Answers until the future is dropped.
    async fn serve(&mut self) -> std::convert::Infallible {
        loop {
            self.answer(Code::Ok).await;
        }
    }

    async fn serve_for(&mut self, time: Duration) {
        _ = tokio::time::timeout(time, self.serve()).await;
    }
}

fn client_on(bus: &MemoryBus) -> (Client, watch::Receiver<ServiceState>) {
    let client = Client::new(bus.connect(), ClientOptions { seed: Some(1), ..ClientOptions::default() });
    let state = client.service();
    (client, state)
}

async fn until(state: &mut watch::Receiver<ServiceState>, holds: impl FnMut(&ServiceState) -> bool) -> ServiceState {
    tokio::time::timeout(BOUND, state.wait_for(holds)).await.expect("found out within 3 s").expect("watched").clone()
}

fn is_away_for(reason: Absence) -> impl FnMut(&ServiceState) -> bool {
    move |state| matches!(state, ServiceState::Away { reason: why, .. } if *why == reason)
}

#[tokio::test(start_paused = true)]
async fn a_service_that_answers_is_alive_and_stays_so() {
    let bus = MemoryBus::new();
    let mut service = Service::on(&bus).await;
    let (_client, mut state) = client_on(&bus);
    assert_eq!(*state.borrow_and_update(), ServiceState::Unknown);
    assert!(state.borrow().ready().is_err());
    service.serve_for(Duration::from_secs(60)).await;
    assert_eq!(*state.borrow_and_update(), ServiceState::Alive);
    assert_eq!(state.borrow().ready(), Ok(()));
    service.serve_for(Duration::from_secs(60)).await;
    assert!(!state.has_changed().expect("watched"), "nothing was news");
}

#[tokio::test(start_paused = true)]
async fn that_nobody_listens_is_told_within_3_s() {
    let bus = MemoryBus::new();
    let mut service = Service::on(&bus).await;
    let (_client, mut state) = client_on(&bus);
    service.serve_for(Duration::from_secs(10)).await;
    let killed = Instant::now();
    drop(service);
    let away = until(&mut state, is_away_for(Absence::NoService)).await;
    let ServiceState::Away { since, .. } = away else { panic!("{away:?}") };
    assert!(since >= killed && since <= Instant::now());
    assert!(away.ready().is_err_and(|why| why.contains("no service listens")));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*state.borrow(), away, "and is told so once");
    let mut service = Service::on(&bus).await;
    tokio::select! {
        _ = service.serve() => {}
        _ = until(&mut state, |state| *state == ServiceState::Alive) => {}
    }
}

#[tokio::test(start_paused = true)]
async fn that_answers_have_stopped_is_told_within_3_s() {
    for stopped_after in (0..20).map(|n| Duration::from_millis(10_000 + 53 * n)) {
        let bus = MemoryBus::new();
        let mut service = Service::on(&bus).await;
        let (_client, mut state) = client_on(&bus);
        service.serve_for(stopped_after).await;
        until(&mut state, is_away_for(Absence::Silent)).await;
        tokio::select! {
            _ = service.serve() => {}
            _ = until(&mut state, |state| *state == ServiceState::Alive) => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_loss_of_the_broker_is_told_at_once() {
    let bus = MemoryBus::new();
    let mut service = Service::on(&bus).await;
    let (_client, mut state) = client_on(&bus);
    service.serve_for(Duration::from_secs(10)).await;
    bus.set_online(false);
    let told = Instant::now();
    until(&mut state, is_away_for(Absence::Broker)).await;
    assert_eq!(told.elapsed(), Duration::ZERO);
    tokio::time::sleep(Duration::from_secs(60)).await;
    bus.set_online(true);
    tokio::task::yield_now().await;
    assert!(!state.borrow().is_alive(), "a broker is no service");
    tokio::select! {
        _ = service.serve() => {}
        _ = until(&mut state, |state| *state == ServiceState::Alive) => {}
    }
}

#[tokio::test(start_paused = true)]
async fn one_lost_answer_is_no_absence() {
    let bus = MemoryBus::new();
    let mut service = Service::on(&bus).await;
    let (_client, mut state) = client_on(&bus);
    service.serve_for(Duration::from_secs(10)).await;
    state.borrow_and_update();
    for _ in 0..10 {
        let _lost = service.questions.next().await;
        service.answer(Code::Ok).await;
    }
    assert!(!state.has_changed().expect("watched"), "{:?}", *state.borrow());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_a_sign_of_life() {
    let bus = MemoryBus::new();
    let mut service = Service::on(&bus).await;
    let (_client, mut state) = client_on(&bus);
    let refusing = async {
        loop {
            service.answer(Code::Unavailable).await;
        }
    };
    tokio::select! {
        () = refusing => {}
        _ = until(&mut state, |state| *state == ServiceState::Alive) => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_was_never_there_is_away_within_3_s() {
    let bus = MemoryBus::new();
    let (_client, mut state) = client_on(&bus);
    until(&mut state, is_away_for(Absence::NoService)).await;
    bus.set_online(false);
    let (_client, mut state) = client_on(&bus);
    until(&mut state, is_away_for(Absence::Broker)).await;
    let bus = MemoryBus::new();
    let _deaf = Service::on(&bus).await;
    let (_client, mut state) = client_on(&bus);
    until(&mut state, is_away_for(Absence::Silent)).await;
}

#[tokio::test(start_paused = true)]
async fn only_a_client_that_is_asked_asks_until_the_last_clone_is_gone() {
    let bus = MemoryBus::new();
    let mut service = Service::on(&bus).await;
    let client = Client::new(bus.connect(), ClientOptions::default());
    tokio::time::timeout(Duration::from_secs(60), service.questions.next()).await.expect_err("nobody asked");
    let (first, second) = (client.service(), client.clone().service());
    let mut asked = 0;
    let counting = async {
        loop {
            service.answer(Code::Ok).await;
            asked += 1;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), counting).await.expect_err("asked for as long as there is a client");
    assert!((15..=40).contains(&asked), "{asked} questions in 30 s, of all who watch");
    drop(client);
    tokio::time::timeout(Duration::from_secs(60), service.questions.next()).await.expect_err("nobody asks any more");
    assert!(first.has_changed().is_err() && second.has_changed().is_err(), "whoever watches hears that it has ended");
    assert_eq!(bus.subscriptions(), 1, "and no question is left open");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_publishes_elsewhere_is_found_out_and_said() {
    let table = [
        (UpdatesFrom::Subjects, PublishedTo::Feed, false),
        (UpdatesFrom::Feed, PublishedTo::Subjects, false),
        (UpdatesFrom::Subjects, PublishedTo::Subjects, true),
        (UpdatesFrom::Feed, PublishedTo::Feed, true),
        (UpdatesFrom::Feed, PublishedTo::Both, true),
        (UpdatesFrom::Subjects, PublishedTo::Unknown, true),
    ];
    for (reads, publishes, fits) in table {
        let bus = MemoryBus::new();
        let mut service = Service { publishes, ..Service::on(&bus).await };
        let client = Client::new(bus.connect(), ClientOptions { updates: reads, ..ClientOptions::default() });
        let state = client.service();
        service.serve_for(Duration::from_secs(3)).await;
        let expected = if fits { ServiceState::Alive } else { ServiceState::Elsewhere { reads, publishes } };
        assert_eq!(*state.borrow(), expected);
        assert_eq!((state.borrow().is_alive(), state.borrow().ready().is_ok()), (fits, fits));
        service.publishes = PublishedTo::Both;
        service.serve_for(Duration::from_secs(3)).await;
        assert!(state.borrow().is_alive(), "and when it is as it should be");
    }
}
