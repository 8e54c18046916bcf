//! The client with a real service on the memory transport: that both mean the same by the wire.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::{sync::Arc, time::Duration};

use orchestrator_service::{
    client::{
        Client, ClientError, ClientOptions, ErrorKind, Registration, Standing, StreamId, UpdatesFrom,
        proto::{Cause, Code, HistoryAction, Mode, OrchestratorConfig, SceneConfig, StateUpdate, WhenEmpty},
    },
    service::{Service, ServiceSettings},
    shard::publish_queue::PublishTo,
    transport::{
        Outgoing, Transport,
        memory::MemoryBus,
        nats::{NatsOptions, NatsTransport},
    },
};
use prost::Message as _;
use support::{
    nats_server::{NatsServer, ServerOptions},
    waiting::{LIMIT, eventually},
};

/// Where updates are read, and what a service publishes that is read there and nowhere else.
const WHERE: [(UpdatesFrom, PublishTo); 2] =
    [(UpdatesFrom::Subjects, PublishTo::Subjects), (UpdatesFrom::Feed, PublishTo::Feed)];

async fn service_on(bus: &MemoryBus) -> Service {
    service_that(bus, PublishTo::Subjects).await
}

async fn service_that(bus: &MemoryBus, publish_to: PublishTo) -> Service {
    let link = || -> Arc<dyn Transport> { bus.connect() };
    let settings = ServiceSettings { shards: 2, publish_to, ..ServiceSettings::default() };
    Service::start(settings, link(), vec![link()]).await.expect("started")
}

/// A client that beats often, so that a test need not wait half a minute.
fn client_on(bus: &MemoryBus) -> Client {
    client_that(bus, UpdatesFrom::Subjects, Duration::from_millis(200))
}

fn client_that(bus: &MemoryBus, updates: UpdatesFrom, heartbeat_interval: Duration) -> Client {
    Client::new(bus.connect(), ClientOptions { updates, heartbeat_interval, ..ClientOptions::default() })
}

async fn world() -> (MemoryBus, Service, Client) {
    let bus = MemoryBus::new();
    let service = service_on(&bus).await;
    let client = client_on(&bus);
    (bus, service, client)
}

fn config() -> OrchestratorConfig {
    let scenes = [("Intro", 3_000), ("Main", 10_000), ("Outro", 2_000)].map(|(name, duration_ms)| SceneConfig {
        name: name.into(),
        duration_ms,
        ..Default::default()
    });
    // Ticks do not disturb: what happens is due to the test. And whoever leaves leaves everything as it is.
    OrchestratorConfig {
        scenes: scenes.into(),
        tick_interval_ms: Some(60_000),
        when_empty: WhenEmpty::Freeze.into(),
        ..OrchestratorConfig::default()
    }
}

async fn register(client: &Client, stream: &str, session: u64) -> Registration {
    client.register(stream, "viewer", None, session).await.expect("registered")
}

async fn viewers(client: &Client, stream: &str) -> u64 {
    client.stats(Some(stream)).await.expect("stats").total
}

async fn round(registration: &Registration, at_least: u64) {
    let mut standing = registration.watch();
    let waiting = standing.wait_for(|now| matches!(now, Standing::Registered { round } if *round >= at_least));
    tokio::time::timeout(LIMIT, waiting).await.expect("registered again").expect("watched");
}

#[tokio::test]
async fn a_configuration_is_read_and_changed_only_as_it_was_read() {
    let (_bus, _service, client) = world().await;
    client.start("s", config()).await.expect("start");
    let read = client.get_config("s").await.expect("read");
    assert_eq!((&read.config.scenes, read.config.idle_timeout_ms), (&config().scenes, Some(60_000)));
    assert_eq!((read.state.revision, read.scene_duration_ms.len()), (1, 0));
    client.start("s", read.config.clone()).await.expect("it is the same");

    let mut changed = read.config;
    changed.title = "Mine".into();
    client.adjust_scene("s", 500).await.expect("somebody was quicker");
    let change = client.reconfigure("s", changed.clone()).expected_revision(read.state.revision);
    assert_eq!(change.await.expect_err("a conflict").kind(), ErrorKind::Rejected(Code::Conflict));
    let read = client.get_config("s").await.expect("read again");
    assert_eq!((&*read.config.title, read.scene_duration_ms), ("", vec![3_500, 10_000, 2_000]));
    client.reconfigure("s", changed).expected_revision(read.state.revision).await.expect("as it was read");
    assert_eq!(client.get_config("s").await.expect("read").config.title, "Mine");

    let wrong_scene = client.skip_scene("s").expected_scene("Outro").await.expect_err("a conflict");
    assert!(wrong_scene.message().contains("expected_scene"), "{wrong_scene}");
    let wrong_epoch = client.skip_scene("s").expected_epoch(read.state.epoch + 1).await.expect_err("a conflict");
    assert!(wrong_epoch.message().contains("expected_epoch"), "{wrong_epoch}");
    assert_eq!(client.get_config("nobody").await.expect_err("unknown").code(), Code::StreamNotFound);
}

#[tokio::test]
async fn subscribers_the_time_and_the_history_are_read() {
    let (_bus, _service, client) = world().await;
    client.start("s", config()).issued_by("ann").await.expect("start");
    assert_eq!(client.list_subscribers("s", 0, None).await.expect("nobody").subscribers, []);
    let mut viewers = Vec::new();
    for session in 0..5 {
        viewers.push(register(&client, "s", session).await);
    }
    let (mut sessions, mut cursor) = (Vec::new(), None);
    loop {
        let page = client.list_subscribers("s", 2, cursor.as_deref()).await.expect("a page");
        assert!(page.subscribers.iter().all(|one| one.last_heard_ms <= page.server_time_ms));
        sessions.extend(page.subscribers.into_iter().map(|one| one.session));
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    sessions.sort_unstable();
    assert_eq!(sessions, [0, 1, 2, 3, 4]);

    client.pause("s").issued_by("bob").await.expect("pause");
    let history = client.history("s", 0, None).await.expect("the history");
    let told: Vec<_> = history.iter().map(|entry| (entry.action(), &*entry.issued_by, entry.revision)).collect();
    let expected =
        [(HistoryAction::Pause, "bob", 3), (HistoryAction::Lifecycle, "", 2), (HistoryAction::Start, "ann", 1)];
    assert_eq!(told, expected);
    assert_eq!(client.history("s", 1, Some(3)).await.expect("before"), history[1..2]);
    for nothing in [Some(0), Some(1)] {
        assert_eq!(client.history("s", 0, nothing).await.expect("before all"), []);
        let error = client.history("nobody", 0, nothing).await.expect_err("there is none");
        assert_eq!(error.kind(), ErrorKind::Rejected(Code::StreamNotFound));
    }
    let time = client.get_time().await.expect("the time");
    assert!(history[0].at_ms.abs_diff(time) < 60_000, "{time}, {history:?}");
}

#[tokio::test]
async fn every_command_is_executed_and_answered_with_the_state_after_it() {
    let (_bus, _service, client) = world().await;
    let state = |accepted: orchestrator_service::client::Accepted| accepted.state.expect("a state");
    assert_eq!(state(client.start("s", config()).await.expect("start")).mode(), Mode::Idle);
    let viewer = register(&client, "s", 1).await;
    assert_eq!((viewer.state().mode(), viewer.state().cause()), (Mode::Running, Cause::Snapshot));
    assert_eq!(state(client.pause("s").await.expect("pause")).mode(), Mode::Paused);
    assert_eq!(state(client.seek("s", 4_000).await.expect("seek")).current_time, 4_000);
    assert_eq!(state(client.adjust_scene("s", 500).await.expect("adjust")).total_duration, 15_500);
    assert_eq!(state(client.previous_scene("s").await.expect("previous")).current_time, 0);
    assert_eq!(state(client.skip_scene("s").await.expect("skip")).scene_index, Some(1));
    let outro = state(client.force_scene("s", "Outro").await.expect("force"));
    assert_eq!(outro.current_scene.as_deref(), Some("Outro"));
    assert_eq!(state(client.resume("s").await.expect("resume")).mode(), Mode::Running);
    let status = state(client.update_stream_status("s", true, 5, "01:00").await.expect("status"));
    assert_eq!((status.stream_is_streaming, status.stream_timecode.as_str()), (true, "01:00"));
    assert_eq!(state(client.stop("s").await.expect("stop")).mode(), Mode::Stopped);
    assert_eq!(state(client.reset("s").await.expect("reset")).mode(), Mode::Running);
    let shorter = OrchestratorConfig { scenes: config().scenes[..1].into(), ..config() };
    assert_eq!(state(client.reconfigure("s", shorter).await.expect("reconfigure")).total_duration, 3_000);
    assert_eq!(client.get_state("s").await.expect("state").stream_id, "s");
    assert_eq!(client.list_streams(10, None).await.expect("list").streams.len(), 1);
    client.remove("s").await.expect("remove");
    let error = client.get_state("s").await.expect_err("removed");
    assert_eq!(error.kind(), ErrorKind::Rejected(Code::StreamNotFound));
}

#[tokio::test]
async fn repeats_are_executed_once_and_old_revisions_refused() {
    let (_bus, _service, client) = world().await;
    client.start("s", config()).await.expect("started");
    let first = client.skip_scene("s").request_id("once").await.expect("accepted");
    let second = client.skip_scene("s").request_id("once").await.expect("the same answer");
    let times = |state: Option<StateUpdate>| state.map(|state| (state.sequence, state.current_time));
    assert_eq!((first.revision, times(first.state)), (second.revision, times(second.state)));
    let error = client.skip_scene("s").expected_revision(first.revision - 1).await.expect_err("stale");
    assert_eq!(error.code(), Code::Conflict);
    assert!(error.message().contains(&first.revision.to_string()), "{error}");
    client.skip_scene("s").expected_revision(first.revision).await.expect("accepted");
}

#[tokio::test]
async fn updates_seeded_with_a_snapshot_hold_each_change_once_in_order() {
    for (from, publish_to) in WHERE {
        let bus = MemoryBus::new();
        let _service = service_that(&bus, publish_to).await;
        let client = client_that(&bus, from, Duration::from_millis(200));
        client.start("s", config()).await.expect("started");
        let mut updates = client.updates("s").await.expect("subscribed");
        let viewer = register(&client, "s", 1).await;
        updates.seed(viewer.state());
        for position in [1_000, 2_000, 5_000] {
            let accepted = client.seek("s", position).await.expect("accepted");
            let update: StateUpdate = updates.next().await.expect("an update");
            assert_eq!((update.revision, update.cause()), (accepted.revision, Cause::Command), "{from:?}");
        }
    }
}

#[tokio::test]
async fn streams_of_one_partition_are_read_out_of_one_feed() {
    let bus = MemoryBus::new();
    let _service = service_that(&bus, PublishTo::Feed).await;
    let client = client_that(&bus, UpdatesFrom::Feed, Duration::from_secs(30));
    let partition = |stream: &str| StreamId::parse(stream).expect("an id").partition();
    let streams: Vec<String> = (0..).map(|n| format!("s{n}")).filter(|s| partition(s) == 7).take(4).collect();
    for stream in &streams {
        client.start(stream, config()).await.expect("started");
    }
    let before = bus.subscriptions();
    // The last one has a viewer too, but nobody here reads its updates.
    let mut followed = Vec::new();
    let mut viewers = vec![register(&client, &streams[3], 1).await];
    for stream in &streams[..3] {
        let mut updates = client.updates(stream).await.expect("subscribed");
        viewers.push(register(&client, stream, 1).await);
        updates.seed(viewers[viewers.len() - 1].state());
        followed.push((stream, updates));
    }
    assert_eq!(bus.subscriptions(), before + 1);

    for position in 1..=200 {
        for stream in &streams {
            client.seek(stream, position).await.expect("accepted");
        }
    }
    for (stream, updates) in &mut followed {
        let mut first = None;
        for position in 1..=200 {
            let update = updates.next().await.expect("an update");
            assert_eq!((&update.stream_id, update.cause()), (*stream, Cause::Command));
            let first = *first.get_or_insert(update.revision);
            assert_eq!(update.revision, first + position - 1, "none is missing and none comes twice");
        }
    }
    drop(followed);
    eventually("the subscriptions are as many", async || bus.subscriptions() == before).await;
}

#[tokio::test]
async fn a_dropped_registration_is_unregistered() {
    let (_bus, _service, client) = world().await;
    client.start("s", config()).await.expect("started");
    let (first, second) = (register(&client, "s", 1).await, register(&client, "s", 2).await);
    assert_eq!(viewers(&client, "s").await, 2);
    drop(first);
    eventually("the viewers are as many", async || viewers(&client, "s").await == 1).await;
    drop(second);
    eventually("the viewers are as many", async || viewers(&client, "s").await == 0).await;
}

#[tokio::test]
async fn a_subscriber_registered_twice_stays_until_both_are_dropped() {
    let (_bus, _service, client) = world().await;
    client.start("s", config()).await.expect("started");
    let (first, second) = (register(&client, "s", 1).await, register(&client, "s", 1).await);
    drop(first);
    // What is dropped later is told later, so this says that the first was not told.
    drop(register(&client, "s", 2).await);
    eventually("the viewers are as many", async || viewers(&client, "s").await == 1).await;
    drop(second);
    eventually("the viewers are as many", async || viewers(&client, "s").await == 0).await;
}

#[tokio::test]
async fn a_service_that_forgot_its_subscribers_gets_them_back() {
    let (bus, service, client) = world().await;
    client.start("s", config()).await.expect("started");
    let viewers_of_s = [register(&client, "s", 1).await, register(&client, "s", 2).await];
    service.drain().await;
    let _service = service_on(&bus).await;
    client.start("s", config()).await.expect("started again");
    for viewer in &viewers_of_s {
        round(viewer, 2).await;
    }
    assert_eq!(viewers(&client, "s").await, 2);
}

#[tokio::test]
async fn a_stream_created_anew_is_joined_at_its_first_update() {
    for (from, publish_to) in WHERE {
        let bus = MemoryBus::new();
        let service = service_that(&bus, publish_to).await;
        let client = client_that(&bus, from, Duration::from_secs(600));
        client.start("s", config()).await.expect("started");
        let mut updates = client.updates("s").await.expect("subscribed");
        let kept = [register(&client, "s", 1).await, register(&client, "s", 2).await];
        service.drain().await;
        let _service = service_that(&bus, publish_to).await;
        client.start("s", config()).await.expect("started again");
        let reading = async { while updates.next().await.is_some() {} };
        let registered = async {
            for viewer in &kept {
                round(viewer, 2).await;
            }
        };
        tokio::select! {
            () = reading => panic!("the updates end"),
            () = registered => {}
        }
        assert_eq!(viewers(&client, "s").await, 2, "{from:?}");
    }
}

#[tokio::test]
async fn a_stream_that_is_gone_is_lost_until_it_comes_back() {
    let (_bus, _service, client) = world().await;
    client.start("s", config()).await.expect("started");
    let viewer = register(&client, "s", 1).await;
    client.remove("s").await.expect("removed");
    let mut standing = viewer.watch();
    standing.wait_for(|now| *now == Standing::Lost(Code::StreamNotFound)).await.expect("watched");
    client.start("s", config()).await.expect("started");
    round(&viewer, 2).await;
    assert_eq!(viewers(&client, "s").await, 1);
}

#[tokio::test]
async fn after_an_outage_registrations_and_updates_go_on() {
    for (from, publish_to) in WHERE {
        go_through_an_outage(from, publish_to).await;
    }
}

async fn go_through_an_outage(from: UpdatesFrom, publish_to: PublishTo) {
    let bus = MemoryBus::new();
    let _service = service_that(&bus, publish_to).await;
    let client = client_that(&bus, from, Duration::from_millis(200));
    client.start("s", config()).await.expect("started");
    let mut updates = client.updates("s").await.expect("subscribed");
    let viewer = register(&client, "s", 1).await;
    updates.seed(viewer.state());
    bus.set_online(false);
    let error: ClientError = {
        let hasty = ClientOptions { total_timeout: Duration::from_millis(200), ..ClientOptions::default() };
        Client::new(bus.connect(), hasty).pause("s").await.expect_err("away")
    };
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, Code::Unavailable));
    bus.set_online(true);
    round(&viewer, 2).await;
    let accepted = client.skip_scene("s").await.expect("accepted");
    loop {
        if updates.next().await.expect("an update").revision == accepted.revision {
            break;
        }
    }
    assert_eq!(viewers(&client, "s").await, 1);
}

#[tokio::test]
async fn a_thousand_viewers_are_kept_and_all_unregistered_at_the_end() {
    let (_bus, _service, client) = world().await;
    let mut kept = Vec::new();
    for stream in 0..20 {
        let name = format!("s{stream}");
        client.start(&name, config()).await.expect("started");
        for session in 0..60 {
            kept.push(register(&client, &name, session).await);
        }
    }
    assert_eq!(client.stats(None).await.expect("stats").total, 1_200);
    client.close().await;
    assert_eq!(client.stats(None).await.expect("stats").total, 0);
    assert!(kept.iter().all(|viewer| viewer.standing() == Standing::Closed));
}

#[tokio::test]
async fn the_last_client_gone_unregisters_its_viewers() {
    let (bus, _service, client) = world().await;
    client.start("s", config()).await.expect("started");
    let viewer = register(&client, "s", 1).await;
    drop(client);
    drop(viewer);
    let other = client_on(&bus);
    eventually("the viewers are as many", async || viewers(&other, "s").await == 0).await;
}

/// Two gateways that hold the same subscriber: the first has registered before the second.
async fn two_holders(bus: &MemoryBus) -> [(Client, Registration); 2] {
    let (first, second) = (client_on(bus), client_on(bus));
    first.start("s", OrchestratorConfig { when_empty: WhenEmpty::Restart.into(), ..config() }).await.expect("started");
    let viewers = [register(&first, "s", 7).await, register(&second, "s", 7).await];
    let [older, newer] = viewers;
    [(first, older), (second, newer)]
}

/// Several heartbeats of each client.
async fn beats() {
    tokio::time::sleep(Duration::from_millis(1_000)).await;
}

#[tokio::test]
async fn a_late_leave_at_one_gateway_evicts_nobody_newer_at_another() {
    for late in [false, true] {
        let bus = MemoryBus::new();
        let _service = service_on(&bus).await;
        let [(first, older), (second, newer)] = two_holders(&bus).await;
        let position = || async { second.get_state("s").await.expect("a state").current_time };
        if late {
            // Until the older one has heard that its handle is void.
            beats().await;
        }
        let before = position().await;
        drop(older);
        drop(register(&first, "s", 8).await);
        eventually("the viewers are as many", async || viewers(&first, "s").await == 1).await;
        beats().await;
        assert_eq!(viewers(&second, "s").await, 1, "{late}");
        assert!(position().await > before, "it plays on");
        assert_eq!(newer.standing(), Standing::Registered { round: 1 }, "and heard nothing of it");
        drop(newer);
        eventually("the viewers are as many", async || viewers(&first, "s").await == 0).await;
    }
}

#[tokio::test]
async fn two_gateways_do_not_take_a_shared_subscriber_from_each_other() {
    let bus = MemoryBus::new();
    let _service = service_on(&bus).await;
    let [(first, older), (_second, newer)] = two_holders(&bus).await;
    for _ in 0..2 {
        beats().await;
        for viewer in [&older, &newer] {
            assert_eq!(viewer.standing(), Standing::Registered { round: 1 });
        }
        assert_eq!(viewers(&first, "s").await, 1);
    }
    // Whoever is left finds out with its next heartbeat, and then has the say.
    drop(newer);
    round(&older, 2).await;
    assert_eq!(viewers(&first, "s").await, 1);
    drop(older);
    eventually("the viewers are as many", async || viewers(&first, "s").await == 0).await;
}

async fn nats(server: &NatsServer, name: &str) -> Arc<NatsTransport> {
    NatsTransport::connect(NatsOptions::new(server.url(), name)).await.expect("a transport")
}

/// A service over NATS.
async fn service_at(server: &NatsServer) -> Service {
    let link: Arc<dyn Transport> = nats(server, "shard").await;
    let settings = ServiceSettings { shards: 1, ..ServiceSettings::default() };
    Service::start(settings, nats(server, "ingress").await, vec![link]).await.expect("started")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_is_registered_again_with_a_broker_that_takes_little() {
    for max_payload in [16_384, 2_048] {
        let mut server = NatsServer::start_with(ServerOptions { max_payload: Some(max_payload), ..Default::default() });
        let _service = service_at(&server).await;
        let options = ClientOptions { heartbeat_interval: Duration::from_millis(500), ..ClientOptions::default() };
        let client = Client::new(nats(&server, "gateway").await, options);
        client.start("s", config()).await.expect("started");
        let mut kept = Vec::new();
        for number in 0..400_u64 {
            let viewer = format!("00000000-0000-4000-8000-{number:012}");
            kept.push(client.register("s", &viewer, "127.0.0.1:4000".parse().ok(), number).await.expect("registered"));
        }
        server.restart();
        for viewer in &kept {
            round(viewer, 2).await;
        }
        assert_eq!(viewers(&client, "s").await, 400);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(kept.iter().all(|viewer| matches!(viewer.standing(), Standing::Registered { .. })), "they beat");
        drop(kept);
        eventually("the viewers are as many", async || viewers(&client, "s").await == 0).await;
    }
}

/// A stream's update as its service would publish it.
fn update_of(stream_id: &str) -> StateUpdate {
    StateUpdate { stream_id: stream_id.to_owned(), epoch: 1, sequence: 1, ..StateUpdate::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_over_the_servers_limit_end_in_an_error_for_their_caller() {
    // One of the five is the transport's own inbox.
    const LIVE: usize = 4;
    let server =
        NatsServer::start_with(ServerOptions { more: "max_subscriptions: 5\n".to_owned(), ..Default::default() });
    let client = Client::new(nats(&server, "gateway").await, ClientOptions::default());
    let publisher = nats(&server, "service").await;
    eventually("both are connected", async || {
        publisher.barrier().await.is_ok()
            && client.get_state("s").await.is_err_and(|error| error.code() == Code::Unavailable)
    })
    .await;

    let ids: Vec<String> = (0..20).map(|number| format!("s{number}")).collect();
    let (mut open, mut refused) = (Vec::new(), Vec::new());
    for id in &ids {
        match client.updates(id).await {
            Ok(updates) => open.push((id, updates)),
            Err(error) => refused.push(error),
        }
    }
    // Whoever is refused later than it was made sees the end of its updates; all others see what is published.
    let publishing = tokio::spawn({
        let (publisher, ids) = (Arc::clone(&publisher), ids.clone());
        async move {
            loop {
                let updates = ids.iter().map(|id| Outgoing {
                    subject: format!("stream.{id}.updates").as_str().into(),
                    payload: update_of(id).encode_to_vec().into(),
                });
                publisher.publish(&mut updates.collect()).await.expect("published");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    let mut live = Vec::new();
    for (id, mut updates) in open {
        match tokio::time::timeout(LIMIT, updates.next()).await.expect("its update, or its end") {
            Some(update) => {
                assert_eq!(update.stream_id, *id);
                live.push(updates);
            }
            None => refused.push(updates.end().expect("why").clone()),
        }
    }
    publishing.abort();

    assert_eq!((live.len(), refused.len()), (LIVE, ids.len() - LIVE));
    for error in &refused {
        assert_eq!((error.kind(), error.code()), (ErrorKind::Denied, Code::Unavailable), "{error}");
        assert!(error.message().contains("maximum subscriptions"), "{error}");
    }
    drop(live.pop());
    let mut next = None;
    eventually("there is room for another", async || {
        next = client.updates("s0").await.ok();
        next.is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_takes_a_brokers_acknowledgement_for_its_answer() {
    let server = NatsServer::start_with(ServerOptions { jetstream: true, ..ServerOptions::default() });
    let _service = service_at(&server).await;
    let link = nats(&server, "gateway").await;
    let options = ClientOptions { heartbeat_interval: Duration::from_millis(500), ..ClientOptions::default() };
    let client = Client::new(Arc::clone(&link) as Arc<dyn Transport>, options);
    client.list_streams(0, None).await.expect("connected");
    let keep_all = r#"{"name": "REQUESTS", "subjects": ["orchestrator.*"], "storage": "memory", "num_replicas": 1}"#;
    let created = link.request("$JS.API.STREAM.CREATE.REQUESTS", keep_all.into(), LIMIT).await.expect("answered");
    let created = String::from_utf8_lossy(&created.payload).into_owned();
    assert!(!created.contains("\"error\""), "{created}");
    // As any program sees it: the acknowledgement comes first.
    let first = link.request("orchestrator.query", Vec::new().into(), LIMIT).await.expect("answered");
    assert!(first.payload.starts_with(b"{"), "{:?}", first.payload);

    let mut kept = Vec::new();
    for number in 0..30 {
        let stream = format!("s{number}");
        assert_eq!(client.start(&stream, config()).await.expect("started").stream_id, stream);
        kept.push(register(&client, &stream, number).await);
        assert_eq!(client.get_state(&stream).await.expect("a state").mode(), Mode::Running);
    }
    assert_eq!(client.list_streams(100, None).await.expect("a list").streams.len(), 30);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(client.stats(None).await.expect("counts").active, 30);
    assert!(kept.iter().all(|viewer| viewer.standing() == Standing::Registered { round: 1 }));
}

#[tokio::test]
async fn a_call_that_is_too_large_is_refused_at_once_with_the_limit() {
    let bus = MemoryBus::with_max_payload(1_000);
    let _service = service_on(&bus).await;
    let client = client_on(&bus);
    let scenes =
        (0..100).map(|n| SceneConfig { name: format!("scene {n}"), duration_ms: 1, ..Default::default() }).collect();
    let begun = std::time::Instant::now();
    let error = client.start("s", OrchestratorConfig { scenes, ..config() }).await.expect_err("too large");
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidArgument, Code::InvalidArgument));
    assert!(error.message().contains("1000"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}
