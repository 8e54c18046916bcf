//! WebSockets with a filter: what such a viewer sees, and what it costs.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error;

use crate::{
    sockets::{Viewer, next, read},
    support::waiting::eventually,
    under_test::{GatewayUnderTest, Options},
};

/// Cause and scene of each update until the stream is removed.
async fn until_removed<S>(viewer: &mut Viewer<S>) -> Vec<(Value, Value)>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut seen = Vec::new();
    while let Ok(update) = read(viewer).await {
        seen.push((update["cause"].clone(), update["current_scene"].clone()));
    }
    seen
}

#[tokio::test]
async fn a_viewer_with_a_filter_sees_the_state_and_then_what_passes() {
    for options in [Options::default(), Options::over_the_feed()] {
        let world = GatewayUnderTest::with(options).await;
        world.create_with("s", json!({"tick_interval_ms": 10})).await;
        let mut plain = world.try_watch("/streams/s/ws").await.expect("upgraded");
        let mut changes = world.try_watch("/streams/s/ws?changes_only=true").await.expect("upgraded");
        let mut main = world.try_watch("/streams/s/ws?scenes=Main&changes_only=true").await.expect("upgraded");
        let mut coarse =
            world.try_watch("/streams/s/ws?min_interval_ms=3600000&min_progress=99.5").await.expect("upgraded");
        for viewer in [&mut plain, &mut changes, &mut main, &mut coarse] {
            let snapshot = next(viewer).await;
            assert_eq!((&snapshot["mode"], &snapshot["cause"]), (&json!("RUNNING"), &json!("SNAPSHOT")));
        }
        assert_eq!(world.stats("s").await.total, 4, "each of them watches");
        while next(&mut plain).await["cause"] != "TICK" {}
        for scene in ["Outro", "Main", "Intro", "Outro"] {
            assert_eq!(world.post(&format!("/streams/s/scene/{scene}")).await.0, 200, "{scene}");
        }
        world.client.remove("s").await.expect("removed");

        let told = |scene: Value| (json!("COMMAND"), scene);
        let last = (json!("LIFECYCLE"), Value::Null);
        let all = ["Outro", "Main", "Intro", "Outro"].map(|scene| told(json!(scene)));
        assert_eq!(until_removed(&mut changes).await, [&all[..], std::slice::from_ref(&last)].concat());
        assert_eq!(until_removed(&mut coarse).await, [&all[..], std::slice::from_ref(&last)].concat());
        assert_eq!(until_removed(&mut main).await, [told(json!("Main")), told(json!("Intro")), last]);
        assert!(until_removed(&mut plain).await.len() >= 5);
    }
}

#[tokio::test]
async fn viewers_of_equal_filters_share_one_channel() {
    let world = GatewayUnderTest::new().await;
    world.create_with("s", json!({"tick_interval_ms": 60_000})).await;
    let before = world.bus.subscriptions();
    let mut viewers = Vec::new();
    for query in [
        "?scenes=Main,Intro",
        "?scenes=Intro,Main,Intro",
        "?scenes=Intro%2CMain",
        "?scenes=Main,Intro&changes_only=false",
    ] {
        let mut viewer = world.try_watch(&format!("/streams/s/ws{query}")).await.expect("upgraded");
        next(&mut viewer).await;
        viewers.push(viewer);
        assert_eq!(world.gateway.watched_streams(), 1, "{query}");
        eventually("there is one subscription", async || world.bus.subscriptions() == before + 1).await;
    }
    let mut plain = world.watch("s").await;
    next(&mut plain).await;
    assert_eq!(world.gateway.watched_streams(), 2);
    eventually("there are two", async || world.bus.subscriptions() == before + 2).await;
    drop(viewers);
    eventually("the filter is not read any more", async || world.gateway.watched_streams() == 1).await;
    world.until_viewers("s", 1).await;
}

#[tokio::test]
async fn a_filter_that_cannot_be_is_refused_before_the_upgrade() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let many = vec!["a"; 65].join(",");
    for (query, part) in [
        (&*format!("scenes={many}"), "filter.scene"),
        ("scenes=a,,b", "filter.scene[1]"),
        ("scenes=", "filter.scene[0]"),
        ("changes_only=yes", "changes_only"),
        ("min_interval_ms=3600001", "filter.min_interval_ms"),
        ("min_interval_ms=-1", "min_interval_ms"),
        ("min_progress=100.5", "filter.min_progress"),
        ("min_progress=NaN", "filter.min_progress"),
        ("min_progress=much", "min_progress"),
        ("scene=a", "scene"),
    ] {
        let refused = world.try_watch(&format!("/streams/s/ws?{query}")).await.map(|_| ());
        let Err(Error::Http(response)) = refused else { panic!("{query} upgraded") };
        assert_eq!(response.status(), 400, "{query}");
        let body: Value = serde_json::from_slice(response.body().as_deref().unwrap_or_default()).expect("JSON");
        assert_eq!(body["code"], "INVALID_ARGUMENT", "{query}");
        assert!(body["message"].as_str().is_some_and(|message| message.contains(part)), "{query}: {body}");
    }
    let refused = world.try_watch("/streams/nobody/ws?changes_only=true").await.map(|_| ());
    let Err(Error::Http(response)) = refused else { panic!("upgraded") };
    assert_eq!(response.status(), 404);
    assert_eq!((world.stats("s").await.total, world.gateway.watched_streams()), (0, 0));
}

#[tokio::test]
async fn who_is_refused_leaves_no_filter() {
    let mut options = Options::default();
    options.service.limits.engine.max_filters = 1;
    let world = GatewayUnderTest::with(options).await;
    world.create("s").await;
    let long = "x".repeat(129);
    for client_id in ["", "%00", &*long] {
        let path = format!("/streams/s/ws?client_id={client_id}&changes_only=true");
        let Err(Error::Http(response)) = world.try_watch(&path).await.map(|_| ()) else { panic!("upgraded") };
        assert_eq!(response.status(), 400, "{client_id:?}");
    }
    let mut viewer = world.try_watch("/streams/s/ws?min_progress=5").await.expect("there is room for one");
    next(&mut viewer).await;
}

#[tokio::test]
async fn a_filter_that_lets_all_pass_is_none() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let mut plain = world.watch("s").await;
    let mut viewers = Vec::new();
    for query in ["changes_only=false", "min_interval_ms=0", "min_progress=-0", "min_progress=0&changes_only=false"] {
        viewers.push(world.try_watch(&format!("/streams/s/ws?{query}")).await.expect("upgraded"));
        assert_eq!(world.gateway.watched_streams(), 1, "{query}");
    }
    next(&mut plain).await;
    for viewer in &mut viewers {
        next(viewer).await;
    }
}

#[tokio::test]
async fn a_viewer_with_a_filter_sees_the_service_that_takes_over() {
    let mut world = GatewayUnderTest::new().await;
    world.create_with("s", json!({"tick_interval_ms": 60_000})).await;
    let mut viewer = world.try_watch("/streams/s/ws?changes_only=true").await.expect("upgraded");
    let epoch = next(&mut viewer).await["epoch"].as_u64().expect("a number");
    world.stop_service().await;
    world.start_service().await;
    world.create_with("s", json!({"tick_interval_ms": 60_000})).await;
    while next(&mut viewer).await["epoch"].as_u64().expect("a number") <= epoch {}
    world.until_viewers("s", 1).await;
    // Once it is followed again, changes come as before.
    let seen = async {
        loop {
            assert_eq!(world.post("/streams/s/seek/1000").await.0, 200);
            if let Ok(update) = tokio::time::timeout(Duration::from_millis(500), next(&mut viewer)).await
                && update["cause"] == "COMMAND"
            {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), seen).await.expect("a change comes");
}
