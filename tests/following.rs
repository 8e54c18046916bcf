//! The client's followed filters with a real service on the memory transport.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use orchestrator_service::{
    client::{
        Client, ClientError, ClientOptions, ErrorKind, ServiceState, UpdateStream,
        proto::{self, Cause, Code, Filter, Mode, OrchestratorConfig, SceneConfig, StateUpdate},
    },
    service::{Service, ServiceSettings},
    shard::publish_queue::PublishTo,
    transport::{Operation, Outgoing, Transport, memory::MemoryBus},
};
use prost::Message as _;
use support::waiting::{LIMIT, eventually};

/// Short, so that a filter is followed again within a test: each 300 ms or so.
const LEASE_MS: u64 = 1_000;

async fn service_that(bus: &MemoryBus, publish_to: PublishTo) -> Service {
    service_with(bus, ServiceSettings { publish_to, stale_after_ms: LEASE_MS, ..ServiceSettings::default() }).await
}

/// One whose leases no test sees the end of: a filter is followed again in time only if there is reason to.
async fn service_with_long_leases(bus: &MemoryBus) -> Service {
    service_with(bus, ServiceSettings { stale_after_ms: 90_000, ..ServiceSettings::default() }).await
}

async fn service_with(bus: &MemoryBus, settings: ServiceSettings) -> Service {
    let link = || -> Arc<dyn Transport> { bus.connect() };
    Service::start(ServiceSettings { shards: 2, ..settings }, link(), vec![link()]).await.expect("started")
}

async fn world() -> (MemoryBus, Service, Client) {
    let bus = MemoryBus::new();
    let service = service_that(&bus, PublishTo::Subjects).await;
    let client = Client::new(bus.connect(), options());
    (bus, service, client)
}

fn options() -> ClientOptions {
    ClientOptions { heartbeat_interval: Duration::from_millis(200), ..ClientOptions::default() }
}

/// Long scenes, and a tick now and then.
fn config(tick_interval_ms: u64) -> OrchestratorConfig {
    let scenes = ["Intro", "Main", "Outro"].map(|name| SceneConfig {
        name: name.into(),
        duration_ms: 600_000,
        ..Default::default()
    });
    OrchestratorConfig { scenes: scenes.into(), tick_interval_ms: Some(tick_interval_ms), ..Default::default() }
}

fn changes() -> Filter {
    Filter { changes_only: true, ..Filter::default() }
}

async fn next(updates: &mut UpdateStream) -> StateUpdate {
    let next = tokio::time::timeout(LIMIT, updates.next()).await.expect("an update");
    next.unwrap_or_else(|| panic!("it ended: {:?}", updates.end()))
}

#[tokio::test]
async fn first_comes_the_state_and_then_each_change_that_passes() {
    for publish_to in [PublishTo::Subjects, PublishTo::Feed] {
        let bus = MemoryBus::new();
        let _service = service_that(&bus, publish_to).await;
        let client = Client::new(bus.connect(), options());
        client.start("s", config(10)).await.expect("started");
        let mut followed = client.follow("s", &changes()).await.expect("followed");
        let first = next(&mut followed).await;
        assert_eq!((first.mode(), first.cause()), (Mode::Idle, Cause::Snapshot));
        assert_eq!(client.stats(Some("s")).await.expect("stats").total, 0, "it watches nothing");
        let _viewer = client.register("s", "viewer", None, 0).await.expect("registered");
        assert_eq!(next(&mut followed).await.cause(), Cause::Lifecycle);
        let mut main = client.follow("s", &Filter { scene: vec!["Main".into()], ..changes() }).await.expect("followed");
        assert_eq!(next(&mut main).await.current_scene.as_deref(), Some("Intro"), "the state, wherever it is");
        for scene in ["Outro", "Main", "Intro", "Outro"] {
            let accepted = client.force_scene("s", scene).await.expect("accepted");
            let update = next(&mut followed).await;
            assert_eq!((update.revision, update.cause()), (accepted.revision, Cause::Command), "{publish_to:?}");
        }
        let scenes = [next(&mut main).await, next(&mut main).await].map(|update| update.current_scene);
        assert_eq!(scenes, [Some("Main".to_owned()), Some("Intro".to_owned())]);
        client.remove("s").await.expect("removed");
        assert_eq!(next(&mut main).await.mode(), Mode::Unknown);
    }
}

#[tokio::test]
async fn whoever_reads_keeps_the_filter_and_misses_no_change() {
    let (_bus, _service, client) = world().await;
    client.start("s", config(10)).await.expect("started");
    let _viewer = client.register("s", "viewer", None, 0).await.expect("registered");
    let mut followed = client.follow("s", &changes()).await.expect("followed");
    let first = next(&mut followed).await.revision;
    // Four leases long.
    for number in 1..=40 {
        client.seek("s", number).await.expect("accepted");
        let update = next(&mut followed).await;
        assert_eq!((update.revision, update.cause()), (first + number, Cause::Command), "no answer comes between");
        let quiet = tokio::time::timeout(Duration::from_millis(4 * LEASE_MS / 40), followed.next()).await;
        assert!(quiet.is_err(), "{quiet:?} is no change");
    }
}

#[tokio::test]
async fn whoever_did_not_read_is_told_what_it_missed_when_it_does() {
    let (_bus, _service, client) = world().await;
    client.start("s", config(60_000)).await.expect("started");
    let _viewer = client.register("s", "viewer", None, 0).await.expect("registered");
    let mut followed = client.follow("s", &changes()).await.expect("followed");
    next(&mut followed).await;
    tokio::time::sleep(Duration::from_millis(2 * LEASE_MS)).await;
    // Its lease is over, so this is published for nobody who follows.
    let missed = client.skip_scene("s").await.expect("accepted");
    assert!(followed.next().now_or_never().is_none());
    let told = next(&mut followed).await;
    assert_eq!((told.revision, told.cause()), (missed.revision, Cause::Snapshot));
    let accepted = client.pause("s").await.expect("accepted");
    assert_eq!(next(&mut followed).await.revision, accepted.revision);
}

/// The stream was told of, by a service that is gone now; there is another, which does not know the filter.
async fn is_told_by_another_service(client: &Client, followed: &mut UpdateStream, before: &StateUpdate) {
    client.start("s", config(60_000)).await.expect("started again");
    let after = next(followed).await;
    assert!(after.epoch > before.epoch && after.cause() == Cause::Snapshot, "{after:?}");
    let accepted = client.skip_scene("s").await.expect("accepted");
    let update = next(followed).await;
    assert_eq!((update.revision, update.cause()), (accepted.revision, Cause::Command));
}

#[tokio::test]
async fn a_service_that_forgot_the_filter_is_asked_again() {
    let bus = MemoryBus::new();
    let service = service_with_long_leases(&bus).await;
    let client = Client::new(bus.connect(), options());
    client.start("s", config(60_000)).await.expect("started");
    let mut followed = client.follow("s", &changes()).await.expect("followed");
    let before = next(&mut followed).await;
    service.drain().await;
    // The connection stays: only that nobody answers shows it.
    let is_away = |state: &ServiceState| matches!(state, ServiceState::Away { .. });
    client.service().wait_for(is_away).await.expect("the client is there");
    let _service = service_with_long_leases(&bus).await;
    is_told_by_another_service(&client, &mut followed, &before).await;
}

#[tokio::test]
async fn a_connection_lost_for_an_instant_is_reason_to_ask_again() {
    let bus = MemoryBus::new();
    let service = service_with_long_leases(&bus).await;
    let client = Client::new(bus.connect(), options());
    client.start("s", config(60_000)).await.expect("started");
    let mut followed = client.follow("s", &changes()).await.expect("followed");
    let before = next(&mut followed).await;
    // Faster than it asks whether there is a service: as a rule, nothing but the connection shows it.
    service.drain().await;
    let _service = service_with_long_leases(&bus).await;
    bus.set_online(false);
    bus.set_online(true);
    is_told_by_another_service(&client, &mut followed, &before).await;
}

#[tokio::test]
async fn a_stream_that_was_removed_is_followed_again_when_it_comes_back() {
    let (_bus, _service, client) = world().await;
    client.start("s", config(60_000)).await.expect("started");
    let mut followed = client.follow("s", &changes()).await.expect("followed");
    let before = next(&mut followed).await;
    client.remove("s").await.expect("removed");
    assert_eq!(next(&mut followed).await.mode(), Mode::Unknown);
    client.start("s", config(60_000)).await.expect("started again");
    let after = next(&mut followed).await;
    assert!(after.epoch > before.epoch && after.cause() == Cause::Snapshot, "{after:?}");
    let accepted = client.skip_scene("s").await.expect("accepted");
    assert_eq!(next(&mut followed).await.revision, accepted.revision);
}

#[tokio::test]
async fn after_an_outage_another_service_is_asked_again() {
    let bus = MemoryBus::new();
    let service = service_with_long_leases(&bus).await;
    let client = Client::new(bus.connect(), options());
    client.start("s", config(60_000)).await.expect("started");
    let mut followed = client.follow("s", &changes()).await.expect("followed");
    let before = next(&mut followed).await;
    bus.set_online(false);
    drop(service);
    // It is noticed while it is read.
    assert!(tokio::time::timeout(Duration::from_millis(500), followed.next()).await.is_err());
    bus.set_online(true);
    let _service = service_with_long_leases(&bus).await;
    is_told_by_another_service(&client, &mut followed, &before).await;
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused_and_leaves_no_subscription() {
    let (bus, _service, client) = world().await;
    client.start("s", config(60_000)).await.expect("started");
    let before = bus.subscriptions();
    let refused = async |stream: &str, filter: &Filter| {
        let error = client.follow(stream, filter).await.expect_err("refused");
        (error.kind(), error.message().to_owned())
    };
    let too_long = Filter { min_interval_ms: u32::MAX, ..Filter::default() };
    let (kind, message) = refused("s", &too_long).await;
    assert!(kind == ErrorKind::InvalidArgument && message.contains("filter.min_interval_ms"), "{message}");
    assert_eq!(refused("a.b", &changes()).await.0, ErrorKind::InvalidArgument);
    assert_eq!(refused("nobody", &changes()).await.0, ErrorKind::Rejected(Code::StreamNotFound));
    bus.deny(Operation::Subscribe, "stream.*.filtered.*");
    assert_eq!(refused("s", &changes()).await.0, ErrorKind::Denied);
    bus.allow(Operation::Subscribe, "stream.*.filtered.*");
    eventually("nothing is subscribed", async || bus.subscriptions() == before).await;

    let mut followed = client.follow("s", &changes()).await.expect("followed");
    next(&mut followed).await;
    bus.deny(Operation::Subscribe, "stream.*.filtered.*");
    assert!(tokio::time::timeout(LIMIT, followed.next()).await.expect("an end").is_none());
    assert_eq!(followed.end().map(ClientError::kind), Some(ErrorKind::Denied));
    drop(followed);
    eventually("nothing is subscribed", async || bus.subscriptions() == before).await;
}

#[tokio::test]
async fn a_filter_for_which_there_is_no_room_any_more_ends() {
    let bus = MemoryBus::new();
    let link = || -> Arc<dyn Transport> { bus.connect() };
    let mut settings = ServiceSettings { shards: 2, stale_after_ms: LEASE_MS, ..ServiceSettings::default() };
    settings.limits.engine.max_filters = 1;
    let _service = Service::start(settings, link(), vec![link()]).await.expect("started");
    let client = Client::new(bus.connect(), options());
    client.start("s", config(60_000)).await.expect("started");
    let mut first = client.follow("s", &changes()).await.expect("followed");
    next(&mut first).await;
    // It is not read for so long that its lease is over, and its place another's.
    tokio::time::sleep(Duration::from_millis(2 * LEASE_MS)).await;
    let other = Filter { min_progress: 5.0, ..Filter::default() };
    let mut second = client.follow("s", &other).await.expect("followed");
    next(&mut second).await;
    let reading = tokio::spawn(async move { second.next().await });
    assert_eq!(tokio::time::timeout(LIMIT, first.next()).await.expect("an end"), None);
    assert_eq!(first.end().map(ClientError::kind), Some(ErrorKind::Rejected(Code::ResourceExhausted)));
    reading.abort();
}

#[tokio::test]
async fn with_the_last_client_it_ends() {
    let (bus, service, client) = world().await;
    client.start("s", config(60_000)).await.expect("started");
    let mut followed = client.follow("s", &changes()).await.expect("followed");
    next(&mut followed).await;
    drop(client);
    assert!(tokio::time::timeout(LIMIT, followed.next()).await.expect("an end").is_none());
    assert_eq!(followed.end().map(ClientError::kind), Some(ErrorKind::Closed));
    drop((bus, service));
}

/// Somebody who answers each Follow with the subject that `name` makes of how many there were.
async fn answerer(bus: &MemoryBus, name: impl Fn(u32) -> String + Send + 'static) {
    let transport = bus.connect();
    let mut requests = transport.subscribe("orchestrator.*", None).await.expect("subscribed");
    tokio::spawn(async move {
        let mut count = 0;
        while let Some(request) = requests.next().await {
            let Some(reply) = request.reply else { continue };
            let state = StateUpdate { stream_id: "s".into(), mode: Mode::Idle.into(), epoch: 1, ..Default::default() };
            let answer = proto::Reply {
                stream_id: "s".into(),
                state: Some(state),
                updates_subject: name(count),
                lease_ms: 90_000,
                ..Default::default()
            };
            count += u32::from(&*request.subject == "orchestrator.subscription");
            let outgoing = Outgoing { subject: reply, payload: answer.encode_to_vec().into() };
            let _ = transport.publish(&mut [outgoing].into()).await;
        }
    });
}

#[tokio::test]
async fn a_subject_that_is_not_the_streams_is_not_subscribed_to() {
    for name in [">", "stream.*.filtered.1", "stream.other.filtered.1", "stream.s.updates", "orchestrator.command"] {
        let bus = MemoryBus::new();
        answerer(&bus, move |_| name.to_owned()).await;
        let client = Client::new(bus.connect(), options());
        let before = bus.subscriptions();
        let error = client.follow("s", &changes()).await.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Undecodable, "{error}");
        assert!(error.message().contains(name), "{error}");
        // A question that is waited for is one, too.
        eventually("nothing is subscribed", async || bus.subscriptions() == before).await;
    }
}

#[tokio::test]
async fn the_answer_that_counts_is_one_behind_the_subscription() {
    let bus = MemoryBus::new();
    // Another service has taken the first one's place, and has another subject for it.
    answerer(&bus, |count| format!("stream.s.filtered.{}", if count == 0 { "old" } else { "new" })).await;
    let client = Client::new(bus.connect(), options());
    let mut followed = client.follow("s", &changes()).await.expect("followed");
    assert_eq!(next(&mut followed).await.mode(), Mode::Idle);
    let update = StateUpdate { stream_id: "s".into(), epoch: 1, sequence: 1, ..Default::default() };
    for (subject, comes) in [("stream.s.filtered.old", false), ("stream.s.filtered.new", true)] {
        let outgoing = Outgoing { subject: subject.into(), payload: update.encode_to_vec().into() };
        bus.connect().publish(&mut [outgoing].into()).await.expect("published");
        let read = tokio::time::timeout(Duration::from_millis(300), followed.next()).await;
        assert_eq!(read.is_ok(), comes, "{subject}");
    }
    // One that never says the same twice is no answer.
    let bus = MemoryBus::new();
    answerer(&bus, |count| format!("stream.s.filtered.{count}")).await;
    let error = Client::new(bus.connect(), options()).follow("s", &changes()).await.expect_err("no end of it");
    assert_eq!(error.kind(), ErrorKind::Undecodable, "{error}");
}
