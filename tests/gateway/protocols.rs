//! What a viewer may choose and ask over its WebSocket: the form of its updates, and the time.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use orchestrator_service::{
    client::{StreamId, proto::StateUpdate},
    transport::{Outgoing, Transport as _},
};
use prost::Message as _;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{ClientRequestBuilder, Message, protocol::frame::coding::CloseCode},
};

use crate::{
    support::waiting::wall_ms,
    under_test::{GatewayUnderTest, Options},
};

type Viewer = WebSocketStream<TcpStream>;

impl GatewayUnderTest {
    async fn watch_as(&self, name: &str, protocol: Option<&str>) -> Viewer {
        let stream = TcpStream::connect(&self.address).await.expect("connected");
        let uri = format!("ws://{}/streams/{name}/ws", self.address).parse().expect("an address");
        let request = ClientRequestBuilder::new(uri);
        let request = protocol.into_iter().fold(request, |request, name| request.with_sub_protocol(name));
        client_async(request, stream).await.expect("upgraded").0
    }

    /// What the gateway chooses of the subprotocols that are offered.
    async fn chosen_of(&self, name: &str, offered: &[&str]) -> Option<String> {
        let mut request = self
            .request(Method::GET, &format!("/streams/{name}/ws"))
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        for value in offered {
            request = request.header("sec-websocket-protocol", *value);
        }
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 101, "whatever is offered");
        response.headers().get("sec-websocket-protocol").map(|value| value.to_str().expect("text").to_owned())
    }
}

/// The next message that is one.
async fn next(viewer: &mut Viewer) -> Message {
    loop {
        let message = tokio::time::timeout(Duration::from_secs(20), viewer.next()).await.expect("not for ever");
        match message.expect("open").expect("no error") {
            Message::Ping(_) | Message::Pong(_) => {}
            message => return message,
        }
    }
}

async fn next_update(viewer: &mut Viewer) -> StateUpdate {
    match next(viewer).await {
        Message::Binary(bytes) => StateUpdate::decode(bytes).expect("an update"),
        message => panic!("not binary: {message:?}"),
    }
}

async fn next_json(viewer: &mut Viewer) -> Value {
    serde_json::from_str(next(viewer).await.to_text().expect("text")).expect("JSON")
}

/// The next text that is neither an update nor word of whether they are live.
async fn next_answer(viewer: &mut Viewer) -> String {
    loop {
        if let Message::Text(text) = next(viewer).await
            && text.starts_with(r#"{"time""#)
        {
            return text.as_str().to_owned();
        }
    }
}

// --- subprotocols ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_first_subprotocol_offered_that_is_known_is_chosen() {
    let gateway = GatewayUnderTest::new().await;
    gateway.create("s").await;
    let (json, proto) = ("orchestrator.json", "orchestrator.proto");
    for (offered, chosen) in [
        (&[][..], None),
        (&[json], Some(json)),
        (&[proto], Some(proto)),
        (&["orchestrator.proto , orchestrator.json"], Some(proto)),
        (&["other, orchestrator.json", proto], Some(json)),
        (&["other", proto], Some(proto)),
        // None of these: it is for who offered them to go on or not.
        (&["other"], None),
        (&["Orchestrator.Proto"], None),
        (&[""], None),
    ] {
        assert_eq!(gateway.chosen_of("s", offered).await.as_deref(), chosen, "{offered:?}");
    }
}

#[tokio::test]
async fn viewers_of_one_stream_have_the_same_updates_in_both_forms() {
    for options in [Options::default(), Options::over_the_feed()] {
        let gateway = GatewayUnderTest::with(options).await;
        gateway.create_with("s", json!({"tick_interval_ms": 60_000})).await;
        let mut text = gateway.watch_as("s", Some("orchestrator.json")).await;
        assert_eq!(next_json(&mut text).await["mode"], "RUNNING");
        let mut binary = gateway.watch_as("s", Some("orchestrator.proto")).await;
        assert_eq!(next_update(&mut binary).await.stream_id, "s", "the snapshot is binary too");
        for command in ["pause", "resume", "skip"] {
            gateway.post(&format!("/streams/s/{command}")).await;
            let (told, update) = (next_json(&mut text).await, next_update(&mut binary).await);
            assert_eq!(told, serde_json::to_value(&update).expect("JSON"), "{command}");
        }
        // Once nobody wants it any more, the others go on.
        binary.close(None).await.expect("closed");
        gateway.until_viewers("s", 1).await;
        gateway.post("/streams/s/pause").await;
        assert_eq!(next_json(&mut text).await["mode"], "PAUSED");
    }
}

#[tokio::test]
async fn protobuf_reaches_a_viewer_as_it_was_published() {
    for (options, reads_feed) in [(Options::default(), false), (Options::over_the_feed(), true)] {
        let gateway = GatewayUnderTest::with(options).await;
        gateway.create_with("s", json!({"tick_interval_ms": 60_000})).await;
        let mut viewer = gateway.watch_as("s", Some("orchestrator.proto")).await;
        let snapshot = next_update(&mut viewer).await;
        // A change behind which it is known that bytes are kept.
        gateway.post("/streams/s/pause").await;
        next_update(&mut viewer).await;
        // Of a service of tomorrow: field 200 is a number.
        let later = StateUpdate { sequence: snapshot.sequence + 100, ..snapshot };
        let bytes = [later.encode_to_vec(), vec![0xc0, 0x0c, 5]].concat();
        let (subject, payload) = if reads_feed {
            let partition = StreamId::parse("s").expect("an id").partition();
            assert!(bytes.len() < 128, "its length has one byte: {}", bytes.len());
            let mut batch = vec![0x0a, bytes.len() as u8];
            batch.extend(&bytes);
            (format!("orchestrator.feed.{partition}"), batch)
        } else {
            ("stream.s.updates".to_owned(), bytes.clone())
        };
        let message = Outgoing { subject: subject.into(), payload: payload.into() };
        gateway.bus.connect().publish(&mut [message].into()).await.expect("published");
        assert_eq!(next(&mut viewer).await.into_data(), bytes, "feed: {reads_feed}");
    }
}

#[tokio::test]
async fn that_a_state_is_not_live_is_told_in_words_beside_protobuf() {
    let gateway = GatewayUnderTest::new().await;
    gateway.create_with("s", json!({"tick_interval_ms": 60_000})).await;
    let mut viewer = gateway.watch_as("s", Some("orchestrator.proto")).await;
    next_update(&mut viewer).await;
    gateway.bus.set_online(false);
    assert_eq!(next_json(&mut viewer).await["live"], false);
    gateway.bus.set_online(true);
    assert_eq!(next_json(&mut viewer).await, json!({"live": true}));
    assert_eq!(next_update(&mut viewer).await.stream_id, "s");
}

// --- the time ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_viewer_that_asks_for_the_time_is_told_the_services() {
    let gateway = GatewayUnderTest::new().await;
    gateway.create_with("s", json!({"tick_interval_ms": 60_000})).await;
    for protocol in [None, Some("orchestrator.proto")] {
        let mut viewer = gateway.watch_as("s", protocol).await;
        for number in ["81.50", "-7", "1790000000000123456789"] {
            let before = wall_ms();
            viewer.send(Message::text(format!("{{\"time\": {number}}}"))).await.expect("sent");
            let text = next_answer(&mut viewer).await;
            let after = wall_ms();
            assert!(text.starts_with(&format!("{{\"time\":{number},\"server_time_ms\":")), "{text}");
            let answer: Value = serde_json::from_str(&text).expect("JSON");
            let [server_ms, error_ms] =
                ["server_time_ms", "error_ms"].map(|name| answer[name].as_f64().expect("a number"));
            assert!(error_ms < 1_000.0, "{text}");
            let (least, most) = (before as f64 - error_ms, after as f64 + 1.0 + error_ms);
            assert!((least..=most).contains(&server_ms), "{text}, between {before} and {after}");
        }
    }
}

#[tokio::test]
async fn whatever_else_a_viewer_says_is_ignored() {
    let gateway = GatewayUnderTest::new().await;
    gateway.create_with("s", json!({"tick_interval_ms": 60_000})).await;
    let mut viewer = gateway.watch_as("s", None).await;
    next_json(&mut viewer).await;
    for said in ["hello", r#"{"time": "5"}"#, r#"{"time": 5, "more": 6}"#, r#"[{"time": 5}]"#] {
        viewer.send(Message::text(said)).await.expect("sent");
    }
    viewer.send(Message::binary(r#"{"time": 5}"#)).await.expect("sent");
    viewer.send(Message::text(r#"{"time": 6}"#)).await.expect("sent");
    let text = next(&mut viewer).await;
    assert!(text.to_text().expect("text").starts_with(r#"{"time":6,"#), "{text:?}");
}

#[tokio::test]
async fn without_an_estimate_the_answer_says_why() {
    let mut options = Options::default();
    options.client.attempt_timeout = Duration::from_millis(100);
    options.client.total_timeout = Duration::from_millis(300);
    let gateway = GatewayUnderTest::with(options).await;
    gateway.create_with("s", json!({"tick_interval_ms": 60_000})).await;
    let mut viewer = gateway.watch_as("s", None).await;
    gateway.bus.set_black_hole(true);
    viewer.send(Message::text(r#"{"time": 5}"#)).await.expect("sent");
    let answer: Value = serde_json::from_str(&next_answer(&mut viewer).await).expect("JSON");
    assert_eq!(
        (&answer["time"], &answer["server_time_ms"], &answer["error_ms"]),
        (&json!(5), &Value::Null, &Value::Null)
    );
    assert!(answer["reason"].as_str().is_some_and(|reason| reason.contains("answer")), "{answer}");
}

#[tokio::test]
async fn who_asks_again_before_the_answer_is_answered_all_the_same() {
    let gateway = GatewayUnderTest::new().await;
    gateway.create_with("s", json!({"tick_interval_ms": 60_000})).await;
    let mut viewer = gateway.watch_as("s", None).await;
    gateway.bus.set_black_hole(true);
    for number in 0..40 {
        viewer.send(Message::text(format!("{{\"time\": {number}}}"))).await.expect("sent");
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(200), next_answer(&mut viewer)).await {
            assert!(answer.contains("\"reason\""), "{answer}");
            return;
        }
    }
    panic!("40 questions in 8 s, and no answer");
}

#[tokio::test]
async fn who_asks_for_the_time_too_often_has_said_too_much() {
    let gateway = GatewayUnderTest::new().await;
    gateway.create_with("s", json!({"tick_interval_ms": 60_000})).await;
    let mut viewer = gateway.watch_as("s", None).await;
    let flood = async {
        loop {
            match viewer.next().await {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code),
                Some(Ok(_)) => {
                    // Each answer is asked for, and behind it there are two more.
                    for number in 0..2 {
                        let _ = viewer.send(Message::text(format!("{{\"time\": {number}}}"))).await;
                    }
                }
                Some(Err(_)) | None => return None,
            }
        }
    };
    let code = tokio::time::timeout(Duration::from_secs(20), flood).await.expect("not for ever");
    assert_eq!(code, Some(CloseCode::Policy));
}
