//! WebSockets: what a viewer sees, and what the service sees of the viewer.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use orchestrator_service::{
    client::{ClientOptions, StreamId, proto::StateUpdate},
    transport::{Operation, Outgoing, Transport as _},
};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, protocol::CloseFrame},
};

use crate::{
    support::waiting::eventually,
    under_test::{GatewayUnderTest, Options},
};

pub(crate) type Viewer<S> = WebSocketStream<S>;

impl GatewayUnderTest {
    pub(crate) async fn watch(&self, name: &str) -> Viewer<impl AsyncRead + AsyncWrite + Unpin + use<>> {
        self.try_watch(&format!("/streams/{name}/ws")).await.expect("upgraded")
    }

    pub(crate) async fn try_watch(
        &self,
        path: &str,
    ) -> Result<Viewer<impl AsyncRead + AsyncWrite + Unpin + use<>>, Error> {
        watch_at(&self.address, path).await
    }

    /// A viewer behind a line that holds next to nothing: what it does not read, the gateway cannot write.
    async fn watch_narrowly(&self, name: &str) -> Viewer<DuplexStream> {
        let (near, far) = tokio::io::duplex(600);
        let service = TowerToHyperService::new(self.gateway.router());
        tokio::spawn(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service).with_upgrades(),
        );
        client_async(format!("ws://gateway/streams/{name}/ws"), near).await.expect("upgraded").0
    }
}

async fn watch_at(address: &str, path: &str) -> Result<Viewer<tokio::net::TcpStream>, Error> {
    let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    Ok(client_async(format!("ws://{address}{path}"), stream).await?.0)
}

/// The next update.
pub(crate) async fn next<S: AsyncRead + AsyncWrite + Unpin>(viewer: &mut Viewer<S>) -> Value {
    match read(viewer).await {
        Ok(update) => update,
        Err(close) => panic!("closed: {close:?}"),
    }
}

/// The next update, or how the socket was closed.
pub(crate) async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    viewer: &mut Viewer<S>,
) -> Result<Value, Option<CloseFrame>> {
    loop {
        let message = tokio::time::timeout(Duration::from_secs(20), viewer.next()).await.expect("not for ever");
        match message {
            Some(Ok(Message::Text(text))) => {
                let message: Value = serde_json::from_str(&text).expect("JSON");
                // Whether it is live is for who asks with `liveness`.
                if message.get("live").is_none() {
                    return Ok(message);
                }
            }
            Some(Ok(Message::Close(frame))) => return Err(frame),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Err(None),
        }
    }
}

/// The next word on whether the state is live, and what comes behind it.
async fn liveness<S: AsyncRead + AsyncWrite + Unpin>(viewer: &mut Viewer<S>) -> (Value, Value) {
    let text = async |viewer: &mut Viewer<S>| loop {
        let message = tokio::time::timeout(Duration::from_secs(20), viewer.next()).await.expect("not for ever");
        if let Message::Text(text) = message.expect("open").expect("open") {
            return serde_json::from_str::<Value>(&text).expect("JSON");
        }
    };
    loop {
        let message = text(viewer).await;
        match message["live"].as_bool() {
            Some(true) => return (message, text(viewer).await),
            Some(false) => return (message, Value::Null),
            None => {}
        }
    }
}

#[tokio::test]
async fn viewers_are_told_when_the_state_is_not_live_and_is_again() {
    let mut world = GatewayUnderTest::new().await;
    world.create_with("s", json!({"tick_interval_ms": 60_000})).await;
    let mut viewer = world.watch("s").await;
    next(&mut viewer).await;
    // The broker: what was seen is told again, since the viewer's clock may have stopped.
    world.bus.set_online(false);
    let (away, _) = liveness(&mut viewer).await;
    assert_eq!(away, json!({"live": false, "reason": "the connection to the broker is away"}));
    world.bus.set_online(true);
    let (back, state) = liveness(&mut viewer).await;
    assert_eq!((back, &state["mode"]), (json!({"live": true}), &json!("RUNNING")));
    // The service.
    let begun = std::time::Instant::now();
    world.stop_service().await;
    let (away, _) = liveness(&mut viewer).await;
    assert_eq!(away["live"], false);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // Another one does not know the stream, until it is created again.
    world.start_service().await;
    let (away, _) = liveness(&mut viewer).await;
    assert!(away["reason"].as_str().expect("words").contains("does not know"), "{away}");
    let refused = world.try_watch("/streams/s/ws").await;
    assert!(matches!(refused, Err(Error::Http(_))), "nobody joins what is not there");
    world.create("s").await;
    let (back, state) = liveness(&mut viewer).await;
    assert_eq!((back, &state["stream_id"]), (json!({"live": true}), &json!("s")));
}

#[tokio::test]
async fn what_was_said_before_a_service_went_makes_nothing_live_again() {
    let world = GatewayUnderTest::new().await;
    world.create_with("s", json!({"tick_interval_ms": 60_000})).await;
    let mut viewer = world.watch("s").await;
    next(&mut viewer).await;
    world.post("/streams/s/pause").await;
    next(&mut viewer).await;
    let paused = world.client.get_state("s").await.expect("a state");
    // One that was held up on its way: it waits a moment for a newer one behind it, and meanwhile the broker goes.
    let late = StateUpdate { sequence: paused.sequence + 100, server_time_ms: paused.server_time_ms - 5_000, ..paused };
    let (subject, payload) = ("stream.s.updates".into(), late.encode_to_vec().into());
    let late = serde_json::to_value(&late).expect("JSON");
    world.bus.connect().publish(&mut [Outgoing { subject, payload }].into()).await.expect("published");
    world.bus.set_online(false);
    assert_eq!(liveness(&mut viewer).await.0["live"], false);
    let mut seen = Vec::new();
    while let Ok(message) = tokio::time::timeout(Duration::from_secs(1), viewer.next()).await {
        let text = message.expect("open").expect("open").into_text().expect("text");
        seen.push(serde_json::from_str::<Value>(&text).expect("JSON"));
    }
    assert_eq!(seen, [late], "it is shown, as what it is");
    world.bus.set_online(true);
    assert_eq!(liveness(&mut viewer).await.0["live"], true);
}

#[tokio::test]
async fn a_viewer_whose_updates_are_refused_is_refused_without_a_trace() {
    for (options, subject) in
        [(Options::default(), "stream.*.updates"), (Options::over_the_feed(), "orchestrator.feed.*")]
    {
        let world = GatewayUnderTest::with(options).await;
        world.create_with("s", json!({"tick_interval_ms": 10})).await;
        world.bus.deny(Operation::Subscribe, subject);
        let Err(Error::Http(response)) = world.try_watch("/streams/s/ws").await.map(|_| ()) else { panic!("upgraded") };
        assert_eq!(response.status(), 503, "{subject}");
        let body: Value = serde_json::from_slice(response.body().as_deref().unwrap_or_default()).expect("JSON");
        assert_eq!(body["code"], "UNAVAILABLE");
        assert!(
            body["message"]
                .as_str()
                .is_some_and(|message| message.contains(subject.split('.').next().expect("a word"))),
            "{body}"
        );
        assert_eq!((world.stats("s").await.total, world.gateway.watched_streams()), (0, 0), "{subject}");

        world.bus.allow(Operation::Subscribe, subject);
        let mut viewer = world.watch("s").await;
        next(&mut viewer).await;
        // What is refused later than it was made ends the socket instead of leaving it in silence.
        world.bus.deny(Operation::Subscribe, subject);
        assert_eq!(closed(&mut viewer).await.0, 1013, "{subject}");
        world.until_viewers("s", 0).await;
        eventually("nothing is subscribed", async || world.gateway.watched_streams() == 0).await;

        world.bus.allow(Operation::Subscribe, subject);
        next(&mut world.watch("s").await).await;
    }
}

#[tokio::test]
async fn a_viewer_whose_registration_is_not_answered_leaves_nothing() {
    let mut options = Options::default();
    options.client.attempt_timeout = Duration::from_millis(100);
    options.client.total_timeout = Duration::from_millis(300);
    let mut world = GatewayUnderTest::with(options).await;
    world.create("s").await;
    world.bus.set_black_hole(true);
    let Err(Error::Http(response)) = world.try_watch("/streams/s/ws").await.map(|_| ()) else { panic!("upgraded") };
    assert_eq!(response.status(), 503);
    world.bus.set_black_hole(false);
    world.until_viewers("s", 0).await;
    eventually("nothing is subscribed", async || world.gateway.watched_streams() == 0).await;
    // It may have arrived all the same: what is registered is unregistered again.
    drop(world.watch("s").await);
    world.until_viewers("s", 0).await;
    world.stop_gateway().await;
}

/// Reads until the socket is closed and says with which code.
async fn closed<S: AsyncRead + AsyncWrite + Unpin>(viewer: &mut Viewer<S>) -> (u16, Vec<Value>) {
    let mut seen = Vec::new();
    loop {
        match read(viewer).await {
            Ok(update) => seen.push(update),
            Err(Some(frame)) => {
                // The viewer's own close frame goes out while it reads on, and the gateway closes the line after it.
                while let Some(Ok(_)) = viewer.next().await {}
                return (frame.code.into(), seen);
            }
            Err(None) => panic!("closed without a code"),
        }
    }
}

fn sequence(update: &Value) -> u64 {
    update["sequence"].as_u64().expect("a number")
}

#[tokio::test]
async fn a_viewer_that_joins_sees_the_state_at_once_in_every_mode() {
    let world = GatewayUnderTest::new().await;
    // No tick comes within the test: what is seen at once is the snapshot.
    for (name, commands, mode) in [
        ("running", &[][..], "RUNNING"),
        ("paused", &["pause"], "PAUSED"),
        ("stopped", &["stop"], "STOPPED"),
        ("finished", &["scene/Outro", "skip"], "FINISHED"),
    ] {
        world.create_with(name, json!({"tick_interval_ms": 60_000})).await;
        let mut first = world.watch(name).await;
        assert_eq!(next(&mut first).await["mode"], "RUNNING", "the first viewer starts it");
        for command in commands {
            assert_eq!(world.post(&format!("/streams/{name}/{command}")).await.0, 200, "{command}");
        }
        assert_eq!(world.mode(name).await, mode);
        let snapshot = next(&mut world.watch(name).await).await;
        assert_eq!((&snapshot["mode"], &snapshot["cause"]), (&json!(mode), &json!("SNAPSHOT")), "{snapshot}");
    }
}

#[tokio::test]
async fn after_the_snapshot_come_only_greater_sequences_and_all_changes() {
    for options in [Options::default(), Options::over_the_feed()] {
        see_all_changes(GatewayUnderTest::with(options).await).await;
    }
}

async fn see_all_changes(world: GatewayUnderTest) {
    world.create_with("s", json!({"tick_interval_ms": 10})).await;
    let mut viewer = world.watch("s").await;
    let mut last = sequence(&next(&mut viewer).await);
    for scene in ["Main", "Outro", "Intro", "Outro"] {
        world.post(&format!("/streams/s/scene/{scene}")).await;
        loop {
            let update = next(&mut viewer).await;
            assert!(sequence(&update) > last);
            last = sequence(&update);
            if update["cause"] == "COMMAND" {
                assert_eq!(update["current_scene"], scene);
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_register_that_is_refused_is_an_http_error_before_the_upgrade() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let long = "x".repeat(129);
    for (path, status, code) in [
        ("/streams/nobody/ws", 404, "STREAM_NOT_FOUND"),
        ("/streams/a.b/ws", 400, "INVALID_ARGUMENT"),
        (&*format!("/streams/s/ws?client_id={long}"), 400, "INVALID_ARGUMENT"),
        ("/streams/s/ws?session=-1", 400, "INVALID_ARGUMENT"),
        ("/streams/s/ws?sesion=1", 400, "INVALID_ARGUMENT"),
    ] {
        let Err(Error::Http(response)) = world.try_watch(path).await.map(|_| ()) else { panic!("{path} upgraded") };
        assert_eq!(response.status(), status, "{path}");
        let body: Value = serde_json::from_slice(response.body().as_deref().unwrap_or_default()).expect("JSON");
        assert_eq!(body["code"], code, "{path}");
    }
    assert_eq!(world.stats("s").await.total, 0);
}

#[tokio::test]
async fn sockets_of_one_stream_share_a_subscription_until_the_last() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let before = world.bus.subscriptions();
    let mut viewers = Vec::new();
    for _ in 0..3 {
        let mut viewer = world.watch("s").await;
        next(&mut viewer).await;
        viewers.push(viewer);
    }
    world.until_viewers("s", 3).await;
    eventually("the subscriptions are as many", async || world.bus.subscriptions() == before + 1).await;
    viewers.truncate(1);
    world.until_viewers("s", 1).await;
    eventually("the subscriptions are as many", async || world.bus.subscriptions() == before + 1).await;
    viewers.clear();
    world.until_viewers("s", 0).await;
    eventually("the subscriptions are as many", async || world.bus.subscriptions() == before).await;
}

#[tokio::test]
async fn sockets_of_a_partition_share_one_feed_until_the_last_leaves() {
    let world = GatewayUnderTest::with(Options::over_the_feed()).await;
    let partition = |name: &str| StreamId::parse(name).expect("an id").partition();
    let names: Vec<String> = (0..).map(|n| format!("s{n}")).filter(|name| partition(name) == 7).take(3).collect();
    for name in &names {
        world.create_with(name, json!({"tick_interval_ms": 50})).await;
    }
    // Behind the first answers, because the service has subscriptions of its own.
    let before = world.bus.subscriptions();
    let mut viewers = Vec::new();
    for name in names.iter().chain(&names) {
        let mut viewer = world.watch(name).await;
        next(&mut viewer).await;
        viewers.push((name, viewer));
    }
    for (name, viewer) in &mut viewers {
        let update = next(viewer).await;
        assert_eq!((&update["stream_id"], &update["mode"]), (&json!(name), &json!("RUNNING")));
    }
    eventually("the subscriptions are as many", async || world.bus.subscriptions() == before + 1).await;
    viewers.truncate(1);
    for name in &names[1..] {
        world.until_viewers(name, 0).await;
    }
    assert_eq!(world.bus.subscriptions(), before + 1);
    viewers.clear();
    eventually("the subscriptions are as many", async || world.bus.subscriptions() == before).await;
}

#[tokio::test]
async fn whoever_closes_breaks_off_or_says_too_much_is_unregistered() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let mut viewer = world.watch("s").await;
    next(&mut viewer).await;
    viewer.send(Message::text("ignored")).await.expect("sent");
    viewer.close(None).await.expect("closed");
    world.until_viewers("s", 0).await;

    let mut viewer = world.watch("s").await;
    next(&mut viewer).await;
    drop(viewer);
    world.until_viewers("s", 0).await;

    let mut viewer = world.watch("s").await;
    next(&mut viewer).await;
    viewer.send(Message::text("x".repeat(65 << 10))).await.expect("sent");
    world.until_viewers("s", 0).await;
}

#[tokio::test]
async fn a_viewers_close_is_answered_with_its_own_code() {
    let world = GatewayUnderTest::new().await;
    world.create_with("s", json!({"tick_interval_ms": 10})).await;
    for (code, answer) in [(Some(1000), Some(1000)), (Some(1001), Some(1001)), (Some(4321), Some(4321)), (None, None)] {
        let mut viewer = world.watch("s").await;
        next(&mut viewer).await;
        let frame = code.map(|code: u16| CloseFrame { code: code.into(), reason: "enough".into() });
        viewer.close(frame).await.expect("sent");
        let answered = loop {
            let message = tokio::time::timeout(Duration::from_secs(20), viewer.next()).await.expect("not for ever");
            match message.expect("a close frame before the end").expect("a close frame before the line breaks") {
                Message::Close(frame) => break frame.map(|frame| u16::from(frame.code)),
                _update => {}
            }
        };
        assert_eq!(answered, answer);
        let end = tokio::time::timeout(Duration::from_secs(20), viewer.next()).await.expect("not for ever");
        assert!(end.is_none(), "the line is closed after it");
    }
    world.until_viewers("s", 0).await;
}

#[tokio::test]
async fn two_tabs_of_one_client_are_two_subscribers_and_one_client() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let mut tabs = Vec::new();
    for session in 1..=2 {
        let path = format!("/streams/s/ws?client_id=me&session={session}");
        tabs.push(world.try_watch(&path).await.expect("upgraded"));
    }
    let stats = world.stats("s").await;
    assert_eq!((stats.total, stats.unique_clients), (2, 1));
    tabs.pop();
    world.until_viewers("s", 1).await;
}

#[tokio::test]
async fn a_new_socket_of_the_same_session_outlives_the_old_one() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let path = "/streams/s/ws?client_id=me&session=5";
    let old = world.try_watch(path).await.expect("upgraded");
    let mut new = world.try_watch(path).await.expect("upgraded");
    next(&mut new).await;
    drop(old);
    let mut witness = world.watch("s").await;
    next(&mut witness).await;
    drop(witness);
    // The witness left after the old socket did, and what left is told in order.
    world.until_viewers("s", 1).await;
}

#[tokio::test]
async fn a_viewer_that_does_not_answer_pings_is_unregistered() {
    let mut options = Options::default();
    options.gateway.ping_interval = Duration::from_millis(40);
    options.gateway.vanished_after = Duration::from_millis(200);
    let world = GatewayUnderTest::with(options).await;
    world.create("s").await;
    let mut present = world.watch("s").await;
    // Its pongs go out as it is read; the other one is there and never reads.
    let reading = tokio::spawn(async move { while read(&mut present).await.is_ok() {} });
    let _vanished = world.watch("s").await;
    eventually("the viewers are as many", async || world.stats("s").await.total == 2).await;
    world.until_viewers("s", 1).await;
    assert!(!reading.is_finished());
    reading.abort();
}

#[tokio::test]
async fn a_slow_viewer_skips_ticks_and_gets_the_newest() {
    for options in [Options::default(), Options::over_the_feed()] {
        be_slow(GatewayUnderTest::with(options).await).await;
    }
}

async fn be_slow(world: GatewayUnderTest) {
    world.create_with("s", json!({"tick_interval_ms": 10})).await;
    let mut updates = world.client.updates("s").await.expect("subscribed");
    let mut viewer = world.watch_narrowly("s").await;
    let first = sequence(&next(&mut viewer).await);
    let mut newest = first;
    while newest < first + 50 {
        newest = updates.next().await.expect("an update").sequence;
    }
    let mut seen = Vec::new();
    while seen.last().is_none_or(|&last| last < newest) {
        seen.push(sequence(&next(&mut viewer).await));
    }
    assert!(seen.is_sorted());
    assert!(seen.len() < 15, "of 50 updates it got {seen:?}");
    assert_eq!(world.stats("s").await.total, 1, "and stays");
}

#[tokio::test]
async fn answers_and_updates_do_not_mix_where_a_line_takes_only_parts() {
    let world = GatewayUnderTest::new().await;
    world.create_with("s", json!({"tick_interval_ms": 10})).await;
    let mut viewer = world.watch_narrowly("s").await;
    let mut last = sequence(&next(&mut viewer).await);
    for round in 0..60_u8 {
        // Answers of 127 bytes between updates of more than 500, on a line that holds 600.
        viewer.send(Message::Ping(vec![round; 125].into())).await.expect("sent");
        tokio::time::sleep(Duration::from_millis(u64::from(round % 4) * 5)).await;
        let update = next(&mut viewer).await;
        assert!(sequence(&update) > last, "{update}");
        last = sequence(&update);
    }
    assert_eq!(world.stats("s").await.total, 1);
}

#[tokio::test]
async fn a_gateway_that_is_late_itself_closes_nobody() {
    let mut options = Options::default();
    options.gateway.ping_interval = Duration::from_millis(100);
    options.gateway.vanished_after = Duration::from_millis(300);
    options.gateway.write_timeout = Duration::from_millis(300);
    let world = GatewayUnderTest::with(options).await;
    world.create_with("s", json!({"tick_interval_ms": 10})).await;
    // Viewers with a runtime of their own, who answer at once.
    let viewers = [(); 3].map(|()| {
        let address = world.address.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut viewer = watch_at(&address, "/streams/s/ws").await.expect("upgraded");
                while next(&mut viewer).await["mode"] != "UNKNOWN" {}
            });
        })
    });
    world.until_viewers("s", 3).await;
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(400));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.stats("s").await.total, 3);
    assert!(viewers.iter().all(|viewer| !viewer.is_finished()));
    world.client.remove("s").await.expect("removed");
    // To wait for a thread would hold up the gateway, which runs on this one.
    eventually("they have read to the end", async || viewers.iter().all(std::thread::JoinHandle::is_finished)).await;
    for viewer in viewers {
        viewer.join().expect("read to the end");
    }
}

#[tokio::test]
async fn a_viewer_more_than_64_changes_behind_is_dropped_as_too_slow() {
    let mut options = Options::default();
    options.gateway.write_timeout = Duration::from_secs(60);
    let world = GatewayUnderTest::with(options).await;
    world.create_with("s", json!({"tick_interval_ms": 60_000})).await;
    let mut viewer = world.watch_narrowly("s").await;
    for position in 1..=80 {
        world.client.seek("s", position).await.expect("accepted");
    }
    let (code, seen) = closed(&mut viewer).await;
    assert_eq!(code, 1008);
    assert!(seen.len() < 16, "{}", seen.len());
    world.until_viewers("s", 0).await;
}

#[tokio::test]
async fn a_viewer_that_takes_nothing_for_the_write_timeout_is_dropped() {
    let mut options = Options::default();
    options.gateway.write_timeout = Duration::from_millis(100);
    let world = GatewayUnderTest::with(options).await;
    world.create_with("s", json!({"tick_interval_ms": 10})).await;
    let _viewer = world.watch_narrowly("s").await;
    world.until_viewers("s", 1).await;
    world.until_viewers("s", 0).await;
}

#[tokio::test]
async fn a_removed_streams_last_update_is_followed_by_a_normal_close() {
    for options in [Options::default(), Options::over_the_feed()] {
        see_the_end(GatewayUnderTest::with(options).await).await;
    }
}

async fn see_the_end(world: GatewayUnderTest) {
    world.create_with("s", json!({"tick_interval_ms": 60_000})).await;
    let mut viewer = world.watch("s").await;
    next(&mut viewer).await;
    world.client.remove("s").await.expect("removed");
    let (code, seen) = closed(&mut viewer).await;
    assert_eq!(code, 1000);
    let last = seen.last().expect("an update");
    assert_eq!((&last["mode"], &last["cause"]), (&json!("UNKNOWN"), &json!("LIFECYCLE")));
}

#[tokio::test]
async fn after_an_outage_viewers_see_the_state_and_are_still_counted() {
    for options in [Options::default(), Options::over_the_feed()] {
        go_through_an_outage(GatewayUnderTest::with(options).await).await;
    }
}

async fn go_through_an_outage(world: GatewayUnderTest) {
    world.create_with("s", json!({"tick_interval_ms": 60_000})).await;
    let mut viewer = world.watch("s").await;
    let first = next(&mut viewer).await;
    world.bus.set_online(false);
    world.bus.set_online(true);
    world.client.seek("s", 7_000).await.expect("accepted");
    loop {
        let update = next(&mut viewer).await;
        assert!(sequence(&update) > sequence(&first));
        if update["current_scene"] == "Main" {
            break;
        }
    }
    world.until_viewers("s", 1).await;
}

#[tokio::test]
async fn viewers_see_the_stream_of_a_service_that_takes_over() {
    for (heartbeat_interval, options) in [
        (Duration::from_millis(200), Options::default()),
        // Its first update tells, long before a heartbeat could.
        (Duration::from_secs(600), Options::default()),
        (Duration::from_secs(600), Options::over_the_feed()),
    ] {
        let client = ClientOptions { heartbeat_interval, ..options.client };
        see_another_service(GatewayUnderTest::with(Options { client, ..options }).await).await;
    }
}

async fn see_another_service(mut world: GatewayUnderTest) {
    world.create("s").await;
    let mut viewer = world.watch("s").await;
    let before = next(&mut viewer).await;
    world.stop_service().await;
    world.start_service().await;
    world.create("s").await;
    world.until_viewers("s", 1).await;
    loop {
        let update = next(&mut viewer).await;
        if update["epoch"].as_u64() > before["epoch"].as_u64() && update["mode"] == "RUNNING" {
            break;
        }
    }
}

#[tokio::test]
async fn shutting_down_closes_sockets_with_1001_and_unregisters_viewers() {
    let mut world = GatewayUnderTest::new().await;
    world.create("s").await;
    let mut viewer = world.watch("s").await;
    next(&mut viewer).await;
    let begun = std::time::Instant::now();
    let ((), (code, _)) = tokio::join!(world.stop_gateway(), closed(&mut viewer));
    assert_eq!(code, 1001);
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(world.stats("s").await.total, 0);
}

#[tokio::test]
async fn the_peer_address_reaches_the_service() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let link = world.bus.connect();
    let mut requests = link.subscribe("orchestrator.subscription", None).await.expect("subscribed");
    let _viewer = world.watch("s").await;
    let payload = requests.next().await.expect("a request").payload;
    assert!(payload.windows(10).any(|part| part == b"127.0.0.1:"), "{payload:?}");
}
