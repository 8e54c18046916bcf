//! The client against a service that is played by the test, request by request, in virtual time.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use prost::Message as _;
use tokio::time::Instant;

use super::*;
use crate::{
    transport::{
        Outgoing, Subject, Subscription,
        memory::{MemoryBus, MemoryTransport},
    },
    wire::proto::{
        Code, HeartbeatBatch, OrchestratorCommand, OrchestratorConfig, QueryReply, Reply, SceneConfig, StateUpdate,
        SubscriptionCommand, UnregisterBatch, subscription_command::Command as Wire,
    },
};

/// The other side of the bus.
struct Service {
    link: Arc<MemoryTransport>,
    requests: Subscription,
}

/// A request and where its answer goes.
struct Incoming {
    payload: Bytes,
    reply: Subject,
}

type Bytes = bytes::Bytes;

impl Service {
    async fn on(bus: &MemoryBus) -> Self {
        let link = bus.connect();
        let requests = link.subscribe(subject::ALL_REQUESTS, Some(subject::QUEUE_GROUP)).await.expect("subscribed");
        Self { link, requests }
    }

    async fn next(&mut self) -> Incoming {
        let message = self.requests.next().await.expect("the bus lives");
        Incoming { payload: message.payload, reply: message.reply.expect("the client wants answers") }
    }

    async fn next_command(&mut self) -> (OrchestratorCommand, Incoming) {
        let asked = self.next().await;
        (OrchestratorCommand::decode(asked.payload.clone()).expect("a command"), asked)
    }

    async fn next_wire(&mut self) -> (Wire, Incoming) {
        let asked = self.next().await;
        let command = SubscriptionCommand::decode(asked.payload.clone()).expect("a subscription command").command;
        (command.expect("not empty"), asked)
    }

    async fn answer(&self, asked: Incoming, reply: &impl prost::Message) {
        self.publish(asked.reply, reply.encode_to_vec()).await;
    }

    async fn publish(&self, subject: Subject, payload: Vec<u8>) {
        let mut messages = VecDeque::from([Outgoing { subject, payload: payload.into() }]);
        self.link.publish(&mut messages).await.expect("published");
    }

    /// Takes the next request, which must be a Register, and gives it `handle`.
    async fn register(&mut self, handle: u64) {
        let (command, asked) = self.next_wire().await;
        assert!(matches!(command, Wire::Register(_)), "{command:?}");
        self.answer(asked, &Reply { handle, state: Some(StateUpdate::default()), ..about_s() }).await;
    }

    /// Takes the next request, which must ask by name for who is registered, and says that nobody is.
    async fn nobody_by_name(&mut self) {
        let (command, asked) = self.next_wire().await;
        assert!(matches!(&command, Wire::Heartbeat(who) if who.client_id == "c"), "{command:?}");
        self.answer(asked, &Reply { code: Code::UnknownSubscriber.into(), ..about_s() }).await;
    }

    async fn next_beat(&mut self) -> (Vec<u64>, Incoming) {
        match self.next_wire().await {
            (Wire::HeartbeatBatch(HeartbeatBatch { handle, .. }), asked) => (handle, asked),
            (other, _) => panic!("not a heartbeat: {other:?}"),
        }
    }

    async fn next_leave(&mut self) -> (Vec<u64>, Incoming) {
        match self.next_wire().await {
            (Wire::UnregisterBatch(UnregisterBatch { handle, .. }), asked) => (handle, asked),
            (other, _) => panic!("not an unregistering: {other:?}"),
        }
    }

    /// Takes the next request, which must register again, and gives each subscriber one of `handles`. Heartbeats that
    /// happen to be due before it are answered.
    async fn next_registers(&mut self, handles: &[u64]) {
        let (batch, asked) = loop {
            match self.next_wire().await {
                (Wire::RegisterBatch(batch), asked) => break (batch, asked),
                (Wire::HeartbeatBatch(_), asked) => self.answer(asked, &ok()).await,
                (other, _) => panic!("not a registration: {other:?}"),
            }
        };
        assert_eq!(batch.subscriber.len(), handles.len());
        self.answer(asked, &Reply { handles: handles.to_vec(), ..about_s() }).await;
    }
}

async fn world() -> (MemoryBus, Service, Client) {
    let bus = MemoryBus::new();
    let service = Service::on(&bus).await;
    let client = Client::new(bus.connect(), ClientOptions::default());
    (bus, service, client)
}

async fn registered(client: &Client, service: &mut Service, handle: u64) -> Registration {
    let (registration, ()) = tokio::join!(client.register("s", "c", None, handle), service.register(handle));
    registration.expect("registered")
}

async fn until(registration: &Registration, standing: Standing) {
    registration.watch().wait_for(|now| *now == standing).await.expect("watched");
}

fn subject(stream: &str) -> Subject {
    subject::updates(StreamId::parse(stream).expect("an id"))
}

/// All handles of a batch are known.
fn ok() -> Reply {
    Reply::default()
}

/// An answer about the stream of most of these tests.
fn about_s() -> Reply {
    Reply { stream_id: "s".into(), ..Reply::default() }
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_command_is_sent_again_with_the_same_request_id() {
    let (_bus, mut service, client) = world().await;
    let begun = Instant::now();
    let (result, ()) = tokio::join!(client.pause("s"), async {
        let (first, _unanswered) = service.next_command().await;
        let (second, asked) = service.next_command().await;
        assert!(!first.request_id.is_empty());
        assert_eq!(first, second);
        service.answer(asked, &Reply { stream_id: "s".into(), revision: 7, ..Reply::default() }).await;
    });
    assert_eq!(result.expect("answered").revision, 7);
    assert!((Duration::from_secs(2)..Duration::from_secs(3)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_command_carries_its_id_its_conditions_and_who_issued_it() {
    let (_bus, mut service, client) = world().await;
    let call = client.seek("s", 5).request_id("mine").expected_revision(3).expected_epoch(7).expected_scene("");
    let (result, ()) = tokio::join!(call.issued_by("ann").into_future(), async {
        let (command, asked) = service.next_command().await;
        assert_eq!((command.request_id.as_str(), command.issued_by.as_str()), ("mine", "ann"));
        let expected = (command.expected_revision, command.expected_epoch, command.expected_scene.as_deref());
        assert_eq!(expected, (Some(3), Some(7), Some("")), "no scene at all is a condition too");
        let refusal =
            Reply { code: Code::Conflict.into(), message: "moved on".into(), revision: 4, ..Reply::default() };
        service.answer(asked, &refusal).await;
    });
    let error = result.expect_err("a conflict");
    assert_eq!((error.kind(), error.message()), (ErrorKind::Rejected(Code::Conflict), "moved on"));
    assert_eq!(error.reply().map(|reply| reply.revision), Some(4));
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_within_its_budget_when_nobody_answers() {
    let (_bus, service, client) = world().await;
    let begun = Instant::now();
    let error = client.pause("s").await.expect_err("nobody answers");
    assert_eq!((error.kind(), error.code()), (ErrorKind::Timeout, Code::Unavailable));
    assert!(begun.elapsed() <= Duration::from_millis(5_200), "{:?}", begun.elapsed());

    drop(service);
    let begun = Instant::now();
    let error = client.get_state("s").await.expect_err("nobody listens");
    assert_eq!((error.kind(), error.code()), (ErrorKind::NoService, Code::Unavailable));
    assert!(begun.elapsed() <= Duration::from_millis(5_200), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_call_without_patience_says_at_once_that_there_is_no_service() {
    let bus = MemoryBus::new();
    let client =
        Client::new(bus.connect(), ClientOptions { absent_timeout: Duration::ZERO, ..ClientOptions::default() });
    let begun = Instant::now();
    assert_eq!(client.get_state("s").await.expect_err("nobody listens").kind(), ErrorKind::NoService);
    assert_eq!(client.register("s", "c", None, 0).await.expect_err("nobody listens").kind(), ErrorKind::NoService);
    assert_eq!(begun.elapsed(), Duration::ZERO);

    bus.set_online(false);
    assert_eq!(client.get_state("s").await.expect_err("no broker").kind(), ErrorKind::Unavailable);
    assert!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());
}

/// A client that is patient with an absent service for a second.
fn patient_for_a_second(bus: &MemoryBus) -> Client {
    Client::new(bus.connect(), ClientOptions { absent_timeout: Duration::from_secs(1), ..ClientOptions::default() })
}

#[tokio::test(start_paused = true)]
async fn a_service_that_comes_while_its_absence_is_borne_is_found() {
    let bus = MemoryBus::new();
    let client = patient_for_a_second(&bus);
    let begun = Instant::now();
    let (result, ()) = tokio::join!(client.pause("s").into_future(), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut service = Service::on(&bus).await;
        let (_, asked) = service.next_command().await;
        service.answer(asked, &about_s()).await;
    });
    result.expect("answered");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_broker_takes_nothing_from_the_absent_timeout() {
    let bus = MemoryBus::new();
    let client = patient_for_a_second(&bus);
    bus.set_online(false);
    let begun = Instant::now();
    let (result, ()) = tokio::join!(client.pause("s").into_future(), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        bus.set_online(true);
    });
    assert_eq!(result.expect_err("nobody listens").kind(), ErrorKind::NoService);
    let took = begun.elapsed();
    assert!((Duration::from_millis(2_700)..=Duration::from_millis(3_200)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_found_no_service_is_not_unregistered() {
    let bus = MemoryBus::new();
    let client = patient_for_a_second(&bus);
    assert_eq!(client.register("s", "c", None, 7).await.expect_err("nobody listens").kind(), ErrorKind::NoService);
    let mut service = Service::on(&bus).await;
    let _viewer = registered(&client, &mut service, 7).await;
    let next = tokio::time::timeout(Duration::from_secs(90), service.next_wire()).await.expect("a heartbeat");
    assert!(matches!(next.0, Wire::HeartbeatBatch(_)), "{:?}", next.0);
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_lost_its_service_is_unregistered() {
    let (bus, mut service, client) = world().await;
    let (result, ()) = tokio::join!(client.register("s", "c", None, 7), async {
        let (_, _unanswered) = service.next_wire().await;
        drop(service);
    });
    assert_eq!(result.expect_err("nobody listens any more").kind(), ErrorKind::NoService);
    let mut service = Service::on(&bus).await;
    let next = service.next_wire().await.0;
    assert!(matches!(&next, Wire::Unregister(who) if who.client_id == "c" && who.session == 7), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn a_late_leave_does_not_meet_who_has_come_back() {
    let bus = MemoryBus::new();
    let client = patient_for_a_second(&bus);
    let mut service = Service::on(&bus).await;
    // Nobody can say what became of the first one, and while there is no broker nobody can be asked.
    let attempt = tokio::time::timeout(Duration::from_secs(1), client.register("s", "c", None, 7));
    let (result, _unanswered) = tokio::join!(attempt, async {
        let asked = service.next_wire().await;
        bus.set_online(false);
        asked
    });
    result.expect_err("given up");
    let (viewer, ()) = tokio::join!(client.register("s", "c", None, 7), async {
        bus.set_online(true);
        service.register(7).await;
    });
    let _viewer = viewer.expect("registered");
    let next = tokio::time::timeout(Duration::from_secs(90), service.next_wire()).await.expect("a heartbeat");
    assert!(matches!(next.0, Wire::HeartbeatBatch(_) | Wire::RegisterBatch(_)), "{:?}", next.0);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_comes_within_the_budget_is_found() {
    let bus = MemoryBus::new();
    let client = Client::new(bus.connect(), ClientOptions::default());
    let (result, ()) = tokio::join!(client.list_streams(0, None), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut service = Service::on(&bus).await;
        let asked = service.next().await;
        service
            .answer(asked, &QueryReply { state: vec![update_of(1, 1)], cursor: "more".into(), ..QueryReply::default() })
            .await;
    });
    assert_eq!(result.expect("answered").cursor.as_deref(), Some("more"));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_right_is_refused_before_anything_is_sent() {
    let bus = MemoryBus::with_max_payload(1_000);
    let client = Client::new(bus.connect(), ClientOptions::default());
    let scenes =
        (0..100).map(|n| SceneConfig { name: format!("scene {n}"), duration_ms: 1, ..Default::default() }).collect();
    let large = OrchestratorConfig { scenes, ..OrchestratorConfig::default() };
    let refused = [
        client.pause("a.b").await.map(|_| ()),
        client.start("*", None).await.map(|_| ()),
        client.get_state(">").await.map(|_| ()),
        client.stats(Some("")).await.map(|_| ()),
        client.updates("a b").await.map(|_| ()),
        client.register("s", "a\n", None, 0).await.map(|_| ()),
        client.start("s", large).await.map(|_| ()),
    ];
    let begun = Instant::now();
    for result in refused {
        let error = result.expect_err("refused");
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidArgument, Code::InvalidArgument), "{error}");
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let error = client.seek(&"x".repeat(129), 0).await.expect_err("too long");
    assert!(error.message().contains("stream_id") && error.message().contains("128"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_code_is_told_apart_and_not_asked_again() {
    let (_bus, mut service, client) = world().await;
    let (result, ()) = tokio::join!(client.stop("s"), async {
        let asked = service.next().await;
        service.answer(asked, &Reply { code: 99, ..about_s() }).await;
    });
    let error = result.expect_err("undecodable");
    assert_eq!((error.kind(), error.code()), (ErrorKind::Undecodable, Code::Undecodable));
}

#[tokio::test(start_paused = true)]
async fn what_a_stream_that_captures_requests_acknowledges_is_no_answer() {
    let (_bus, mut service, client) = world().await;
    let acknowledgements =
        [r#"{"stream":"ORDERS","seq":1}"#, r#"{"stream":"X","domain":"hub","seq":7,"duplicate":true}"#];
    let acknowledge = async |service: &mut Service, asked: &Incoming| {
        for text in acknowledgements {
            service.publish(asked.reply.clone(), text.into()).await;
        }
        service.publish(asked.reply.clone(), Vec::new()).await;
    };
    let begun = Instant::now();
    let (result, ()) = tokio::join!(client.pause("s"), async {
        let (_, asked) = service.next_command().await;
        acknowledge(&mut service, &asked).await;
        service.answer(asked, &Reply { revision: 3, ..about_s() }).await;
    });
    assert_eq!(result.expect("answered").revision, 3);
    let (result, ()) = tokio::join!(client.get_state("s"), async {
        let asked = service.next().await;
        acknowledge(&mut service, &asked).await;
        service.answer(asked, &QueryReply { state: vec![update_of(1, 1)], ..QueryReply::default() }).await;
    });
    assert_eq!(result.expect("answered").sequence, 1);
    let (viewer, ()) = tokio::join!(client.register("s", "c", None, 5), async {
        let (_, asked) = service.next_wire().await;
        acknowledge(&mut service, &asked).await;
        service.answer(asked, &Reply { handle: 5, state: Some(update_of(1, 1)), ..about_s() }).await;
    });
    assert_eq!(viewer.expect("registered").state().sequence, 1);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn registrations_beat_in_batches_spread_over_the_interval() {
    let (_bus, mut service, client) = world().await;
    let mut kept = Vec::new();
    for handle in 1..=128 {
        kept.push(registered(&client, &mut service, handle).await);
    }
    for _round in 0..2 {
        let begun = Instant::now();
        let (mut seen, mut messages) = (Vec::new(), 0);
        while seen.len() < 128 {
            let (handles, asked) = service.next_beat().await;
            assert!(handles.len() <= 2, "two of 128 in each of 64 slots");
            seen.extend(handles);
            messages += 1;
            service.answer(asked, &ok()).await;
        }
        seen.sort_unstable();
        assert_eq!(seen, (1..=128).collect::<Vec<u64>>());
        assert_eq!(messages, 64);
        assert!((Duration::from_secs(29)..Duration::from_secs(31)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_the_service_does_not_know_is_registered_again_at_once() {
    let (_bus, mut service, client) = world().await;
    let registration = registered(&client, &mut service, 1).await;
    let (handles, asked) = service.next_beat().await;
    assert_eq!(handles, [1]);
    let forgotten = Instant::now();
    let reply = Reply { code: Code::UnknownSubscriber.into(), unknown_handle: handles, ..Reply::default() };
    service.answer(asked, &reply).await;
    service.nobody_by_name().await;
    service.next_registers(&[2]).await;
    until(&registration, Standing::Registered { round: 2 }).await;
    assert!(forgotten.elapsed() < Duration::from_secs(1));
    assert_eq!(service.next_beat().await.0, [2]);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_is_not_answered_is_sent_again_soon() {
    let (_bus, mut service, client) = world().await;
    let _registration = registered(&client, &mut service, 1).await;
    let _unanswered = service.next_beat().await;
    let lost = Instant::now();
    let (_, asked) = service.next_beat().await;
    assert!(lost.elapsed() < Duration::from_secs(4), "{:?}", lost.elapsed());
    service.answer(asked, &ok()).await;
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_all_are_registered_again() {
    let (bus, mut service, client) = world().await;
    let registrations = [registered(&client, &mut service, 1).await, registered(&client, &mut service, 2).await];
    bus.set_online(false);
    tokio::task::yield_now().await;
    bus.set_online(true);
    service.next_registers(&[11, 12]).await;
    for registration in &registrations {
        until(registration, Standing::Registered { round: 2 }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_away_is_asked_for_again_on_later_beats() {
    let (_bus, mut service, client) = world().await;
    let registration = registered(&client, &mut service, 1).await;
    let (handles, asked) = service.next_beat().await;
    let reply = Reply { code: Code::UnknownSubscriber.into(), unknown_handle: handles, ..Reply::default() };
    service.answer(asked, &reply).await;
    service.nobody_by_name().await;
    let (_, asked) = service.next_wire().await;
    service.answer(asked, &Reply { code: Code::StreamNotFound.into(), handles: vec![0], ..about_s() }).await;
    until(&registration, Standing::Lost(Code::StreamNotFound)).await;
    let refused = Instant::now();
    service.next_registers(&[5]).await;
    assert!((Duration::from_secs(29)..Duration::from_secs(31)).contains(&refused.elapsed()));
    until(&registration, Standing::Registered { round: 2 }).await;
}

/// An update of `s` in this epoch, as it is published.
fn update_of(epoch: u64, sequence: u64) -> StateUpdate {
    StateUpdate { stream_id: "s".into(), epoch, sequence, ..StateUpdate::default() }
}

#[tokio::test(start_paused = true)]
async fn an_update_of_a_higher_epoch_registers_again_within_a_second() {
    let (_bus, mut service, client) = world().await;
    let mut updates = client.updates("s").await.expect("subscribed");
    let viewer = registered(&client, &mut service, 1).await;
    for (epoch, handle) in [(1, 11), (7, 21)] {
        let told = Instant::now();
        for sequence in 1..=3 {
            service.publish(subject("s"), update_of(epoch, sequence).encode_to_vec()).await;
            assert_eq!(updates.next().await.map(|update| update.epoch), Some(epoch));
        }
        service.next_registers(&[handle]).await;
        assert!(told.elapsed() <= Duration::from_secs(1), "{:?}", told.elapsed());
    }
    until(&viewer, Standing::Registered { round: 3 }).await;
    for _beat in 0..2 {
        let (handles, asked) = service.next_beat().await;
        assert_eq!(handles, [21], "nothing but heartbeats comes any more");
        service.answer(asked, &ok()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_stream_is_registered_with_at_its_first_update() {
    let (_bus, mut service, client) = world().await;
    let mut updates = client.updates("s").await.expect("subscribed");
    let viewer = registered(&client, &mut service, 1).await;
    let (handles, asked) = service.next_beat().await;
    let reply = Reply { code: Code::UnknownSubscriber.into(), unknown_handle: handles, ..Reply::default() };
    service.answer(asked, &reply).await;
    service.nobody_by_name().await;
    let (_, asked) = service.next_wire().await;
    service.answer(asked, &Reply { code: Code::StreamNotFound.into(), handles: vec![0], ..about_s() }).await;
    until(&viewer, Standing::Lost(Code::StreamNotFound)).await;
    let told = Instant::now();
    service.publish(subject("s"), update_of(7, 1).encode_to_vec()).await;
    updates.next().await.expect("an update");
    service.next_registers(&[5]).await;
    assert!(told.elapsed() <= Duration::from_secs(1), "{:?}", told.elapsed());
    until(&viewer, Standing::Registered { round: 2 }).await;
}

#[tokio::test(start_paused = true)]
async fn an_unwatched_stream_makes_a_viewer_ask_but_once_a_second() {
    let (_bus, mut service, client) = world().await;
    let mut updates = client.updates("s").await.expect("subscribed");
    let _viewer = registered(&client, &mut service, 1).await;
    let told = Instant::now();
    let (mode, cause) = (proto::Mode::Idle.into(), proto::Cause::Lifecycle.into());
    // In the epoch of the registration.
    let idle = |sequence| StateUpdate { mode, cause, ..update_of(0, sequence) }.encode_to_vec();
    for sequence in 1..=100 {
        service.publish(subject("s"), idle(sequence)).await;
        updates.next().await.expect("an update");
    }
    let (handles, asked) = service.next_beat().await;
    let unknown = Reply { code: Code::UnknownSubscriber.into(), unknown_handle: handles, ..Reply::default() };
    service.answer(asked, &unknown).await;
    service.nobody_by_name().await;
    service.next_registers(&[2]).await;
    assert_eq!(told.elapsed(), Duration::ZERO);
    service.publish(subject("s"), idle(101)).await;
    updates.next().await.expect("an update");
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let next = futures_util::FutureExt::now_or_never(service.next_wire());
    assert!(next.is_none(), "not again within a second");
}

#[tokio::test(start_paused = true)]
async fn a_refused_subscription_is_an_error_that_says_why_now_or_later() {
    use crate::transport::Operation;
    let (bus, service, client) = world().await;
    let pattern = "stream.*.updates";
    bus.deny(Operation::Subscribe, pattern);
    let error = client.updates("s").await.map(|_| ()).expect_err("denied");
    assert_eq!((error.kind(), error.code()), (ErrorKind::Denied, Code::Unavailable));
    assert!(error.message().contains("stream.s.updates"), "{error}");
    assert_eq!(bus.subscriptions(), 1);

    bus.allow(Operation::Subscribe, pattern);
    let mut updates = client.updates("s").await.expect("allowed");
    service.publish(subject("s"), update_of(1, 1).encode_to_vec()).await;
    bus.deny(Operation::Subscribe, pattern);
    assert_eq!(updates.next().await.map(|update| update.sequence), Some(1), "it had come before");
    assert_eq!(updates.next().await, None);
    assert_eq!(updates.end().map(ClientError::kind), Some(ErrorKind::Denied));
    assert_eq!(updates.next().await, None, "it stays so");
    drop(updates);
    assert_eq!(bus.subscriptions(), 1);

    bus.allow(Operation::Subscribe, pattern);
    let mut updates = client.updates("s").await.expect("allowed again");
    service.publish(subject("s"), update_of(1, 2).encode_to_vec()).await;
    assert_eq!(updates.next().await.map(|update| update.sequence), Some(2));

    bus.set_max_subscriptions(1);
    assert_eq!(client.updates("t").await.map(|_| ()).expect_err("too many").kind(), ErrorKind::Denied);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_the_broker_refuses_says_so_and_leaves_nothing() {
    use crate::transport::Operation;
    let (bus, mut service, client) = world().await;
    bus.deny(Operation::Publish, "orchestrator.*");
    let begun = Instant::now();
    assert_eq!(client.pause("s").await.expect_err("denied").kind(), ErrorKind::Denied);
    assert_eq!(client.register("s", "c", None, 0).await.expect_err("denied").kind(), ErrorKind::Denied);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!((client.core().table().len(), bus.subscriptions()), (0, 1));
    bus.allow(Operation::Publish, "orchestrator.*");
    let _viewer = registered(&client, &mut service, 1).await;
    let next = tokio::time::timeout(Duration::from_secs(90), service.next_wire()).await.expect("a heartbeat");
    assert!(matches!(next.0, Wire::HeartbeatBatch(_)), "nobody is unregistered: {:?}", next.0);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_cannot_be_true_is_no_registration() {
    let (_bus, mut service, client) = world().await;
    let (result, ()) = tokio::join!(client.register("s", "c", None, 5), async {
        let (_, asked) = service.next_wire().await;
        service.answer(asked, &Reply { handle: 5, state: Some(update_of(1 << 62, 1)), ..about_s() }).await;
    });
    assert_eq!(result.expect_err("implausible").kind(), ErrorKind::Undecodable);
    let next = service.next_wire().await.0;
    assert!(matches!(next, Wire::Unregister(_)), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn calls_refused_cancelled_and_timed_out_leave_nothing_behind() {
    let (bus, mut service, client) = world().await;
    let counts = |client: &Client| (client.core().table().len(), bus.subscriptions());
    let before = counts(&client);
    let (result, ()) = tokio::join!(client.register("s", "c", None, 5), async {
        let (_, asked) = service.next_wire().await;
        service.answer(asked, &Reply { code: Code::StreamNotFound.into(), ..about_s() }).await;
    });
    assert_eq!(result.expect_err("refused").code(), Code::StreamNotFound);
    assert_eq!(counts(&client), before);
    for _ in 0..50 {
        tokio::time::timeout(Duration::from_millis(10), client.pause("s").into_future()).await.expect_err("no answer");
        tokio::time::timeout(Duration::from_millis(10), client.get_state("s")).await.expect_err("no answer");
        tokio::time::timeout(Duration::from_millis(10), client.register("s", "c", None, 5)).await.expect_err("none");
    }
    client.get_state("s").await.expect_err("no answer");
    // Until those that were given up have been asked about and unregistered, or that was given up too.
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(counts(&client), before);
    assert!(client.core().table().is_idle(), "nothing is queued");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_registration_is_unregistered_soon() {
    let (_bus, mut service, client) = world().await;
    let registrations = [registered(&client, &mut service, 1).await, registered(&client, &mut service, 2).await];
    let dropped = Instant::now();
    drop(registrations);
    let (handles, _) = service.next_leave().await;
    assert_eq!(handles, [1, 2]);
    assert!(dropped.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn a_register_given_up_is_unregistered_by_handle_once_answered() {
    let (_bus, mut service, client) = world().await;
    let attempt = tokio::spawn({
        let client = client.clone();
        async move { client.register("s", "c", None, 9).await.map(|_| ()) }
    });
    let (command, asked) = service.next_wire().await;
    assert!(matches!(command, Wire::Register(_)));
    attempt.abort();
    service.answer(asked, &Reply { handle: 5, state: Some(StateUpdate::default()), ..about_s() }).await;
    assert_eq!(service.next_leave().await.0, [5]);
}

#[tokio::test(start_paused = true)]
async fn a_register_given_up_and_never_answered_is_unregistered_by_name() {
    let (_bus, mut service, client) = world().await;
    let attempt = tokio::time::timeout(Duration::from_secs(1), client.register("s", "c", None, 9));
    let (result, _unanswered) = tokio::join!(attempt, service.next_wire());
    result.expect_err("given up");
    let (command, _) = service.next_wire().await;
    let Wire::Unregister(leaving) = command else { panic!("{command:?}") };
    assert_eq!((leaving.stream_id.as_str(), leaving.client_id.as_str(), leaving.session), ("s", "c", 9));
}

#[tokio::test(start_paused = true)]
async fn closing_unregisters_all_and_refuses_new_ones() {
    let (_bus, mut service, client) = world().await;
    let registration = registered(&client, &mut service, 1).await;
    let ((), ()) = tokio::join!(client.close(), async {
        let (handles, asked) = service.next_leave().await;
        assert_eq!(handles, [1]);
        service.answer(asked, &ok()).await;
    });
    assert_eq!(registration.standing(), Standing::Closed);
    assert_eq!(client.register("s", "c", None, 0).await.expect_err("closed").kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn closing_ends_in_time_when_nobody_answers() {
    let (bus, mut service, client) = world().await;
    let _registration = registered(&client, &mut service, 1).await;
    let begun = Instant::now();
    client.close().await;
    assert!(begun.elapsed() <= Duration::from_millis(2_200), "{:?}", begun.elapsed());
    assert_eq!(service.next_leave().await.0, [1]);

    let other = Client::new(bus.connect(), ClientOptions::default());
    let _registration = registered(&other, &mut service, 1).await;
    bus.set_online(false);
    let begun = Instant::now();
    other.close().await;
    assert!(begun.elapsed() < Duration::from_millis(100), "without a connection there is nobody to tell");
}

#[tokio::test(start_paused = true)]
async fn the_background_task_ends_with_the_last_client_and_registration() {
    let (_bus, mut service, client) = world().await;
    let registration = registered(&client, &mut service, 1).await;
    let mut ended = client.core().ended.subscribe();
    drop(client);
    let (_, asked) = service.next_beat().await;
    service.answer(asked, &ok()).await;
    assert!(!*ended.borrow(), "the registration is still kept");
    drop(registration);
    let (_, asked) = service.next_leave().await;
    service.answer(asked, &ok()).await;
    ended.wait_for(|ended| *ended).await.expect("watched");
}
