//! REST: the calls of the README, every refusal, and bad input.

use futures_util::FutureExt as _;
use orchestrator_service::{client::proto, transport::Transport as _};
use prost::Message as _;
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    support::waiting::{eventually, wall_ms},
    under_test::{GatewayUnderTest, scenes},
};

fn refusal((status, answer): (StatusCode, Value)) -> (u16, String, String) {
    let keys: Vec<&String> = answer.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["code", "message"]);
    let text = |key: &str| answer[key].as_str().expect("text").to_owned();
    (status.as_u16(), text("code"), text("message"))
}

#[track_caller]
fn assert_refused(answer: (StatusCode, Value), status: u16, code: &str, parts: &[&str]) {
    let (was, named, message) = refusal(answer);
    assert_eq!((was, named.as_str()), (status, code), "{message}");
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[tokio::test]
async fn the_calls_of_the_readme_work_to_the_letter() {
    let world = GatewayUnderTest::new().await;
    let body = r#"{"stream_id": "show", "scenes":
  [{"name": "Intro", "duration_ms": 3000}, {"name": "Main", "duration_ms": 10000}, {"name": "Outro", "duration_ms": 2000}],
  "tick_interval_ms": 100, "loop_scenes": true}"#;
    assert!(include_str!("../../README.md").contains(body), "it is in the README");
    let create = || world.request(Method::POST, "/streams").header(header::CONTENT_TYPE, "application/json").body(body);
    let (status, created) = world.send(create()).await;
    assert_eq!(status, 201);
    let id = "show";
    assert_eq!(created, json!({"stream_id": id, "message": "Stream created successfully"}));

    let _viewer = world.client.register(id, "viewer", None, 1).await.expect("registered");
    let playing = world.get("/streams/show").await.1;
    assert_eq!(world.send(create()).await, (StatusCode::CREATED, created), "with the same configuration again");
    let same = world.get("/streams/show").await.1;
    assert_eq!((&same["revision"], &same["epoch"]), (&playing["revision"], &playing["epoch"]), "nothing was created");
    for (command, message, mode) in [
        ("pause", "Stream paused", "PAUSED"),
        ("resume", "Stream resumed", "RUNNING"),
        ("skip", "Scene skipped", "RUNNING"),
        ("scene/Main", "Scene forced", "RUNNING"),
        ("stop", "Stream stopped", "STOPPED"),
    ] {
        let (status, answer) = world.post(&format!("/streams/{id}/{command}")).await;
        assert_eq!(status, 200, "{command}: {answer}");
        assert_eq!((&answer["stream_id"], &answer["message"]), (&json!(id), &json!(message)));
        assert_eq!(answer["state"]["mode"], mode, "{command}");
        assert_eq!(answer["revision"], answer["state"]["revision"]);
    }

    let (status, list) = world.get("/streams").await;
    assert_eq!(status, 200);
    assert_eq!(list["cursor"], Value::Null);
    assert_eq!(list["streams"][0]["stream_id"], json!(id));
}

#[tokio::test]
async fn every_command_has_its_path() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let _viewer = world.client.register("s", "viewer", None, 1).await.expect("registered");
    world.post("/streams/s/pause").await;

    let (_, answer) = world.post("/streams/s/seek/4000").await;
    assert_eq!((&answer["state"]["current_time"], &answer["state"]["current_scene"]), (&json!(4000), &json!("Main")));
    let (_, answer) = world.post("/streams/s/adjust/-1500").await;
    assert_eq!(answer["state"]["total_duration"], 13_500);
    let (_, answer) = world.post("/streams/s/previous").await;
    assert_eq!((&answer["state"]["current_time"], &answer["state"]["scene_index"]), (&json!(0), &json!(0)));
    let status = json!({"is_streaming": true, "stream_time": 12, "timecode": "00:00:01:02"});
    let (_, answer) = world.send(world.request(Method::PUT, "/streams/s/status").json(&status)).await;
    assert_eq!(answer["state"]["stream_timecode"], "00:00:01:02");
    assert_eq!(answer["state"]["stream_is_streaming"], true);
    let config = json!({"scenes": [{"name": "Only", "duration_ms": 700}], "loop_scenes": true, "when_empty": "RUN_ON"});
    let (_, answer) = world.send(world.request(Method::PUT, "/streams/s/config").json(&config)).await;
    assert_eq!(answer["state"]["total_duration"], 700, "{answer}");
    let (_, answer) = world.post("/streams/s/stop").await;
    assert_eq!(answer["state"]["mode"], "STOPPED");
    let (_, answer) = world.post("/streams/s/start").await;
    assert_eq!((&answer["state"]["mode"], &answer["message"]), (&json!("RUNNING"), &json!("Stream started")));
    let (_, answer) = world.post("/streams/s/reset").await;
    assert_eq!(answer["state"]["mode"], "RUNNING");
    let (_, stats) = world.get("/streams/s/stats").await;
    assert_eq!((&stats["total"], &stats["active"], &stats["unique_clients"]), (&json!(1), &json!(1), &json!(1)));
    let (status, answer) = world.send(world.request(Method::DELETE, "/streams/s")).await;
    assert_eq!((status.as_u16(), &answer["message"]), (200, &json!("Stream removed")));
    assert_refused(world.get("/streams/s").await, 404, "STREAM_NOT_FOUND", &["s"]);
    eventually("the streams are as many", async || world.get("/stats").await.1["streams"] == 0).await;
}

#[tokio::test]
async fn a_state_has_the_wires_field_names_and_absent_ones_are_null() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let (status, state) = world.get("/streams/s").await;
    assert_eq!(status, 200);
    let keys: Vec<&String> = state.as_object().expect("an object").keys().collect();
    assert_eq!(keys.len(), 26, "{keys:?}");
    assert_eq!((&state["mode"], &state["cause"]), (&json!("IDLE"), &json!("SNAPSHOT")));
    assert_eq!((&state["total_duration"], &state["is_paused"]), (&json!(15_000), &json!(false)));
    assert_eq!((&state["current_scene"], &state["scene_index"]), (&Value::Null, &Value::Null), "before the start");
    let readme = include_str!("../../README.md");
    for key in keys {
        assert!(readme.contains(&format!("`{key}`")), "{key} is in the README");
    }
    let (_, skipped) = world.post("/streams/s/skip").await;
    let state = &skipped["state"];
    assert_eq!(
        (&state["mode"], &state["current_scene"], &state["scene_index"]),
        (&json!("IDLE"), &json!("Main"), &json!(1))
    );
    let (_, stats) = world.get("/stats").await;
    for key in stats.as_object().expect("an object").keys() {
        assert!(readme.contains(&format!("`{key}`")), "{key} is in the README");
    }
}

/// A configuration with everything in it, as `PUT …/config` takes it and `GET` gives it.
fn everything() -> Value {
    let scene = |name: &str, more: Value| {
        let mut scene = json!({
            "name": name, "duration_ms": 600_000, "scene_id": "", "data": "", "at_end": "NEXT", "max_hold_ms": null,
            "fallback_scene": "", "warn_ms": null, "danger_ms": null,
        });
        scene.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        scene
    };
    json!({
        "scenes": [
            scene("Intro", json!({"scene_id": "opening", "data": "{\"colour\":\"#f80\"}", "warn_ms": 60_000})),
            scene("Break", json!({"at_end": "HOLD"})),
            scene("Break", json!({"at_end": "HOLD", "max_hold_ms": 7_000, "fallback_scene": "closing", "danger_ms": 0})),
            scene("Main", json!({})),
            scene("Outro", json!({"scene_id": "closing"})),
        ],
        "tick_interval_ms": 250, "loop_scenes": true, "when_empty": "RUN_ON", "empty_grace_ms": 0,
        "idle_timeout_ms": 60_000, "starts_at_ms": null, "no_ticks": true, "title": "The morning show ☀",
    })
}

#[tokio::test]
async fn what_put_config_took_comes_back_equal() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let put = async |config: &Value| {
        let answer = world.send(world.request(Method::PUT, "/streams/s/config").json(config)).await;
        assert_eq!(answer.0, 200, "{}", answer.1);
    };
    put(&everything()).await;
    let (status, read) = world.get("/streams/s/config").await;
    assert_eq!((status.as_u16(), &read["config"]), (200, &everything()));
    let keys: Vec<&String> = read.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["config", "revision", "scene_duration_ms", "state", "stream_id"]);
    assert_eq!((&read["stream_id"], &read["scene_duration_ms"]), (&json!("s"), &json!([])));
    assert_eq!((&read["revision"], &read["state"]["config_revision"]), (&json!(2), &json!(2)));
    assert_eq!(&read["state"]["revision"], &read["revision"]);

    put(&read["config"]).await;
    assert_eq!(world.get("/streams/s/config").await.1["config"], read["config"]);
    // What is left out, or null, has its default.
    put(&json!({"scenes": [{"name": "Main", "duration_ms": 1, "scene_id": null, "data": null}], "title": null})).await;
    let (_, read) = world.get("/streams/s/config").await;
    let config = &read["config"];
    assert_eq!((&config["tick_interval_ms"], &config["when_empty"]), (&json!(100), &json!("RESTART")));
    assert_eq!((&config["empty_grace_ms"], &config["title"]), (&json!(2_000), &json!("")));
    let scene = json!({
        "name": "Main", "duration_ms": 1, "scene_id": "", "data": "", "at_end": "NEXT", "max_hold_ms": null,
        "fallback_scene": "", "warn_ms": null, "danger_ms": null,
    });
    assert_eq!(config["scenes"], json!([scene]));
    assert_refused(world.get("/streams/nobody/config").await, 404, "STREAM_NOT_FOUND", &["nobody"]);
}

#[tokio::test]
async fn a_change_of_what_was_read_is_refused_if_somebody_was_quicker() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let (_, mut seen) = world.get("/streams/s/config").await;
    let put = async |revision: &Value, config: &Value| {
        let path = format!("/streams/s/config?expected_revision={revision}");
        world.send(world.request(Method::PUT, &path).json(config)).await
    };
    let mut theirs = seen["config"].clone();
    theirs["title"] = json!("Theirs");
    assert_eq!(put(&seen["revision"], &theirs).await.0, 200);
    seen["config"]["title"] = json!("Mine");
    assert_refused(put(&seen["revision"], &seen["config"]).await, 409, "CONFLICT", &["expected_revision"]);
    assert_eq!(world.get("/streams/s/config").await.1["config"]["title"], "Theirs");
}

#[tokio::test]
async fn lengths_that_were_adjusted_are_told_beside_the_config() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    world.post("/streams/s/adjust/-1000").await;
    let (_, read) = world.get("/streams/s/config").await;
    assert_eq!(read["scene_duration_ms"], json!([2_000, 10_000, 2_000]));
    assert_eq!(read["config"]["scenes"][0]["duration_ms"], 3_000);
}

#[tokio::test]
async fn commands_that_expect_something_else_are_conflicts() {
    let world = GatewayUnderTest::new().await;
    world.create_with("s", json!({"scenes": everything()["scenes"]})).await;
    let _viewer = world.client.register("s", "viewer", None, 1).await.expect("registered");
    let (_, state) = world.get("/streams/s").await;
    assert_eq!((&state["current_scene"], &state["scene_id"]), (&json!("Intro"), &json!("opening")));
    let epoch = state["epoch"].as_u64().expect("a number");
    for (wrong, named) in [
        ("expected_revision=1".to_owned(), "expected_revision"),
        (format!("expected_epoch={}", epoch + 1), "expected_epoch"),
        ("expected_scene=Break".to_owned(), "expected_scene"),
        ("expected_scene=".to_owned(), "expected_scene"),
    ] {
        assert_refused(world.post(&format!("/streams/s/skip?{wrong}")).await, 409, "CONFLICT", &[named]);
    }
    assert_eq!(world.get("/streams/s").await.1["revision"], state["revision"], "nothing has changed");
    // By id, and by name.
    let skip = format!("/streams/s/skip?expected_scene=opening&expected_epoch={epoch}&expected_revision=2");
    let (status, answer) = world.post(&skip).await;
    assert_eq!((status.as_u16(), &answer["state"]["current_scene"]), (200, &json!("Break")), "{answer}");
    assert_eq!(answer["state"]["scene_id"], Value::Null);
    // A second press a moment later.
    assert_refused(world.post("/streams/s/skip?expected_scene=opening").await, 409, "CONFLICT", &["Break"]);
    for wrong in ["expected_epoch=x", "expected_epoch=-1", "expected_scenes=a"] {
        assert_refused(world.post(&format!("/streams/s/skip?{wrong}")).await, 400, "INVALID_ARGUMENT", &[]);
    }
}

#[tokio::test]
async fn subscribers_are_listed_page_by_page() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let address = "192.0.2.7:51000".parse().expect("an address");
    let mut viewers = Vec::new();
    for session in 0..5 {
        viewers.push(world.client.register("s", "viewer", Some(address), session).await.expect("registered"));
    }
    let (mut seen, mut path) = (Vec::new(), "/streams/s/subscribers?limit=2".to_owned());
    loop {
        let (status, page) = world.get(&path).await;
        assert_eq!(status, 200, "{page}");
        let subscribers = page["subscribers"].as_array().expect("a list");
        assert!(subscribers.len() <= 2);
        for one in subscribers {
            let keys: Vec<&String> = one.as_object().expect("an object").keys().collect();
            assert_eq!(keys, ["client_id", "last_heard_ms", "session", "source_addr", "stale"]);
            assert_eq!((&one["client_id"], &one["source_addr"]), (&json!("viewer"), &json!("192.0.2.7:51000")));
            assert!(one["last_heard_ms"].as_u64() <= page["server_time_ms"].as_u64(), "{page}");
            seen.push(one["session"].as_u64().expect("a number"));
        }
        let Some(cursor) = page["cursor"].as_str() else { break };
        path = format!("/streams/s/subscribers?limit=2&cursor={cursor}");
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 4]);
    assert_refused(world.get("/streams/nobody/subscribers").await, 404, "STREAM_NOT_FOUND", &["nobody"]);
    for (query, named) in [("limit=0", "limit"), ("limit=1001", "1000"), ("cursor=x", "cursor"), ("page=1", "page")] {
        let answer = world.get(&format!("/streams/s/subscribers?{query}")).await;
        assert_refused(answer, 400, "INVALID_ARGUMENT", &[named]);
    }
}

#[tokio::test]
async fn a_history_says_who_did_what() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    world.post("/streams/s/seek/4000?issued_by=ann%40studio").await;
    world.post("/streams/s/skip").await;
    let (status, read) = world.get("/streams/s/history").await;
    assert_eq!(status, 200, "{read}");
    let entries = read["history"].as_array().expect("a list");
    let outline: Vec<_> = entries.iter().map(|entry| (entry["action"].clone(), entry["revision"].clone())).collect();
    let expected = [("SKIP_SCENE", 3), ("SEEK", 2), ("START", 1)];
    assert_eq!(outline, expected.map(|(action, revision)| (json!(action), json!(revision))));
    let mut seek = entries[1].clone();
    assert!(seek["at_ms"].take().as_u64().is_some_and(|ms| ms > 1_700_000_000_000));
    let expected = json!({
        "at_ms": null, "action": "SEEK", "issued_by": "ann@studio", "revision": 2, "mode": "IDLE", "position_ms": 4_000,
        "position_before_ms": 0, "planned_position_ms": 4_000, "loop_count": 0, "scene_index": 1,
    });
    assert_eq!(seek, expected);

    let (_, before) = world.get("/streams/s/history?limit=1&before_revision=3").await;
    assert_eq!(before["history"], json!([entries[1]]));
    assert_eq!(world.get("/streams/s/history?before_revision=1").await.1["history"], json!([]));
    assert_eq!(world.get("/streams/s/history?before_revision=0").await, (StatusCode::OK, json!({"history": []})));
    for query in ["", "?before_revision=0", "?before_revision=1"] {
        let answer = world.get(&format!("/streams/nobody/history{query}")).await;
        assert_refused(answer, 404, "STREAM_NOT_FOUND", &["nobody"]);
        let answer = world.get(&format!("/streams/a.b/history{query}")).await;
        assert_refused(answer, 400, "INVALID_ARGUMENT", &["stream_id"]);
    }
    for (query, named) in [("limit=0", "limit"), ("limit=257", "256"), ("before_revision=x", "before_revision")] {
        let answer = world.get(&format!("/streams/s/history?{query}")).await;
        assert_refused(answer, 400, "INVALID_ARGUMENT", &[named]);
    }
    let long = world.post(&format!("/streams/s/skip?issued_by={}", "x".repeat(129))).await;
    assert_refused(long, 400, "INVALID_ARGUMENT", &["issued_by", "128"]);
}

#[tokio::test]
async fn the_time_is_the_services() {
    let world = GatewayUnderTest::new().await;
    // The service runs here: its clock is this one, but for what is said to be wrong at most.
    let before = wall_ms() as f64;
    let (status, time) = world.get("/time").await;
    assert_eq!(status, 200, "{time}");
    let number = |name: &str| time[name].as_f64().unwrap_or_else(|| panic!("{name} in {time}"));
    let (now, error) = (number("server_time_ms"), number("error_ms"));
    assert!(before - error <= now && now <= wall_ms() as f64 + 1.0 + error, "{before}, {time}");
    assert!(0.0 < error && error < 1_000.0, "{time}");
    assert_eq!(time.as_object().map(serde_json::Map::len), Some(2), "{time}");
}

#[tokio::test]
async fn however_often_the_time_is_asked_for_the_service_is_asked_seldom() {
    let world = GatewayUnderTest::new().await;
    let listener = world.bus.connect();
    let mut questions = listener.subscribe("orchestrator.query", None).await.expect("subscribed");
    for _ in 0..100 {
        assert_eq!(world.get("/time").await.0, 200);
    }
    let mut asked = 0;
    while let Some(Some(question)) = questions.next().now_or_never() {
        let question = proto::Query::decode(question.payload).expect("a question");
        asked += usize::from(matches!(question.query, Some(proto::query::Query::GetTime(_))));
    }
    assert!((1..=10).contains(&asked), "eight at first, and one each 5 s: {asked}");
}

#[tokio::test]
async fn without_a_service_nobody_tells_the_time() {
    let mut world = GatewayUnderTest::new().await;
    world.stop_service().await;
    assert_refused(world.get("/time").await, 503, "UNAVAILABLE", &[]);
}

#[tokio::test]
async fn streams_are_listed_page_by_page() {
    let world = GatewayUnderTest::new().await;
    for number in 0..5 {
        world.create(&format!("s{number}")).await;
    }
    let (mut seen, mut path) = (Vec::new(), "/streams?limit=2".to_owned());
    loop {
        let (status, page) = world.get(&path).await;
        assert_eq!(status, 200, "{page}");
        let streams = page["streams"].as_array().expect("a list");
        assert!(streams.len() <= 2);
        seen.extend(streams.iter().map(|state| state["stream_id"].as_str().expect("an id").to_owned()));
        let Some(cursor) = page["cursor"].as_str() else { break };
        path = format!("/streams?limit=2&cursor={cursor}");
    }
    seen.sort();
    assert_eq!(seen, ["s0", "s1", "s2", "s3", "s4"]);
}

#[tokio::test]
async fn repeats_get_the_first_answer_and_old_revisions_a_conflict() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let first = world.post("/streams/s/seek/5000?request_id=once").await;
    let second = world.post("/streams/s/seek/5000?request_id=once").await;
    assert_eq!(first.1["revision"], second.1["revision"]);
    let revision = first.1["revision"].as_u64().expect("a number");
    let stale = world.post(&format!("/streams/s/skip?expected_revision={}", revision - 1)).await;
    assert_refused(stale, 409, "CONFLICT", &["revision"]);
    let fresh = world.post(&format!("/streams/s/skip?expected_revision={revision}")).await;
    assert_eq!(fresh.0, 200);
}

#[tokio::test]
async fn a_repeated_creation_without_a_stream_id_creates_one_stream() {
    let world = GatewayUnderTest::new().await;
    let create =
        async |path: &str| world.send(world.request(Method::POST, path).json(&json!({"scenes": scenes()}))).await;
    let first = create("/streams?request_id=x").await;
    assert_eq!(first.0, 201);
    for _ in 0..2 {
        assert_eq!(create("/streams?request_id=x").await, first);
    }
    let other = create("/streams?request_id=y").await;
    assert_ne!(other.1["stream_id"], first.1["stream_id"]);
    assert_ne!(create("/streams").await.1["stream_id"], create("/streams").await.1["stream_id"]);
    assert_eq!(world.get("/stats").await.1["streams"], 4);
}

#[tokio::test]
async fn an_empty_request_id_is_refused_and_nothing_is_done() {
    let world = GatewayUnderTest::new().await;
    let create = world.request(Method::POST, "/streams?request_id=").json(&json!({"scenes": scenes()}));
    assert_refused(world.send(create).await, 400, "INVALID_ARGUMENT", &["request_id"]);
    assert_eq!(world.get("/stats").await.1["streams"], 0);
    world.create("s").await;
    assert_refused(world.post("/streams/s/skip?request_id=").await, 400, "INVALID_ARGUMENT", &["request_id"]);
    assert_eq!(world.get("/streams/s").await.1["revision"], 1);
}

#[tokio::test]
async fn a_query_string_that_is_not_utf_8_is_refused_by_name() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    for (query, named) in
        [("request_id=%ff", "request_id"), ("expected_revision=1&issued_by=a%C3", "issued_by"), ("%fe=1", "query")]
    {
        let answer = world.post(&format!("/streams/s/skip?{query}")).await;
        assert_refused(answer, 400, "INVALID_ARGUMENT", &[named, "UTF-8"]);
    }
    assert_refused(world.get("/streams?cursor=%80").await, 400, "INVALID_ARGUMENT", &["cursor", "UTF-8"]);
    assert_eq!(world.get("/streams/s").await.1["revision"], 1);
    // What is no escape is what it says, and a plus sign is a space.
    assert_eq!(world.post("/streams/s/skip?request_id=%zz%&issued_by=J%C3%BCrgen+B").await.0, 200);
    assert_eq!(world.get("/streams/s/history?limit=1").await.1["history"][0]["issued_by"], "J\u{fc}rgen B");
}

#[tokio::test]
async fn what_the_service_refuses_has_its_status_and_code() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    for path in ["pause", "resume", "stop", "reset", "skip", "previous", "seek/1", "scene/Main", "adjust/1"] {
        let answer = world.post(&format!("/streams/nobody/{path}")).await;
        assert_refused(answer, 404, "STREAM_NOT_FOUND", &["nobody"]);
    }
    assert_refused(world.get("/streams/nobody/stats").await, 404, "STREAM_NOT_FOUND", &["nobody"]);
    let remove = world.request(Method::DELETE, "/streams/nobody");
    assert_refused(world.send(remove).await, 404, "STREAM_NOT_FOUND", &["nobody"]);
    assert_refused(world.post("/streams/s/scene/Nowhere").await, 404, "SCENE_NOT_FOUND", &["Nowhere"]);
    assert_refused(world.post("/streams/s/pause").await, 409, "INVALID_STATE", &[]);
    let other = json!({"stream_id": "s", "scenes": [{"name": "Other", "duration_ms": 1}]});
    let create = world.request(Method::POST, "/streams").json(&other);
    assert_refused(world.send(create).await, 409, "ALREADY_EXISTS", &[]);
    for path in ["/streams/a.b", "/streams/a%20b", "/streams/%2A", "/streams/a.b/stats"] {
        assert_refused(world.get(path).await, 400, "INVALID_ARGUMENT", &["stream_id"]);
    }
}

#[tokio::test]
async fn a_full_service_is_429_and_an_absent_one_503() {
    let mut options = crate::under_test::Options::default();
    options.service.shards = 1;
    options.service.limits.engine.max_streams = 1;
    options.client.total_timeout = std::time::Duration::from_millis(300);
    let mut world = GatewayUnderTest::with(options).await;
    world.create("a").await;
    let create = world.request(Method::POST, "/streams").json(&json!({"scenes": scenes()}));
    assert_refused(world.send(create).await, 429, "RESOURCE_EXHAUSTED", &["1"]);
    world.stop_service().await;
    assert_refused(world.get("/streams").await, 503, "UNAVAILABLE", &[]);
    assert_refused(world.post("/streams/a/pause").await, 503, "UNAVAILABLE", &[]);
    world.bus.set_online(false);
    assert_refused(world.get("/streams/a").await, 503, "UNAVAILABLE", &[]);
}

#[tokio::test]
async fn what_is_no_request_of_ours_is_refused_in_json() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let post = |path: &str| world.request(Method::POST, path);
    assert_refused(world.get("/nothing").await, 404, "INVALID_ARGUMENT", &["/nothing"]);
    assert_refused(world.post("/streams/s/dance").await, 404, "INVALID_ARGUMENT", &["dance"]);
    let response = world.request(Method::PATCH, "/streams/s").send().await.expect("an answer");
    assert!(response.headers().contains_key(header::ALLOW));
    let patch = world.request(Method::PATCH, "/streams/s");
    assert_refused(world.send(patch).await, 405, "INVALID_ARGUMENT", &["PATCH"]);
    assert_refused(world.get("/streams/s/pause").await, 405, "INVALID_ARGUMENT", &["GET"]);
    assert_refused(world.get("/streams/s/ws").await, 426, "INVALID_ARGUMENT", &[]);
    let untyped = post("/streams").body("{}");
    assert_refused(world.send(untyped).await, 415, "INVALID_ARGUMENT", &["application/json"]);
    let text = post("/streams").header(header::CONTENT_TYPE, "text/plain").body("{}");
    assert_refused(world.send(text).await, 415, "INVALID_ARGUMENT", &["text/plain"]);
    let large = post("/streams").header(header::CONTENT_TYPE, "application/json").body(vec![b' '; 2 << 20]);
    assert_refused(world.send(large).await, 413, "INVALID_ARGUMENT", &["1048576"]);
    let broken = post("/streams").header(header::CONTENT_TYPE, "application/json").body(&b"{\"scenes\": \xff"[..]);
    assert_refused(world.send(broken).await, 400, "INVALID_ARGUMENT", &["UTF-8"]);
    assert_refused(world.get("/streams/%FF").await, 400, "INVALID_ARGUMENT", &[]);
    assert_refused(world.post("/streams/s/pause?expected_revison=1").await, 400, "INVALID_ARGUMENT", &["revison"]);
    for revision in ["x", "-1", "18446744073709551616", "1.5"] {
        let answer = world.post(&format!("/streams/s/pause?expected_revision={revision}")).await;
        assert_refused(answer, 400, "INVALID_ARGUMENT", &["expected_revision"]);
    }
}

#[tokio::test]
async fn a_body_is_refused_with_field_and_limit_and_changes_nothing() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let before = world.get("/streams/s").await.1["revision"].take();
    let scene = |name: &str, duration: Value| json!({"scenes": [{"name": name, "duration_ms": duration}]});
    let detailed = |field: &str, value: Value| {
        let mut scenes = json!([{"name": "a", "duration_ms": 1}, {"name": "b", "duration_ms": 1}]);
        scenes[0][field] = value;
        json!({"scenes": scenes})
    };
    let many: Vec<Value> = (0..1001).map(|n| json!({"name": format!("{n}"), "duration_ms": 1})).collect();
    let most = u64::MAX;
    for (config, parts) in [
        (json!({}), &["scenes"][..]),
        (json!({"scenes": []}), &["scenes", "1000"]),
        (json!({"scenes": many}), &["scenes", "1000"]),
        (json!({"scenes": "Intro"}), &["scenes"]),
        (scene("", json!(1)), &["name"]),
        (scene(&"x".repeat(257), json!(1)), &["name", "256"]),
        (scene("a", json!(0)), &["duration_ms", "1"]),
        (scene("a", json!(most)), &["duration_ms", "31536000000"]),
        (scene("a", json!(-1)), &["scenes[0].duration_ms"]),
        (scene("a", json!("1")), &["scenes[0].duration_ms"]),
        (scene("a", json!(1.5)), &["scenes[0].duration_ms"]),
        (json!({"scenes": scenes(), "tick_interval_ms": 0}), &["tick_interval_ms", "10"]),
        (json!({"scenes": scenes(), "tick_interval_ms": most}), &["tick_interval_ms", "60000"]),
        (json!({"scenes": scenes(), "idle_timeout_ms": most}), &["idle_timeout_ms"]),
        (json!({"scenes": scenes(), "empty_grace_ms": most}), &["empty_grace_ms"]),
        (json!({"scenes": scenes(), "when_empty": "LATER"}), &["when_empty", "RESTART"]),
        (json!({"scenes": scenes(), "when_empty": 1}), &["when_empty"]),
        (json!({"scenes": scenes(), "loop_scenes": "yes"}), &["loop_scenes"]),
        (json!({"scenes": scenes(), "looop": true}), &["looop"]),
        (json!({"scenes": scenes(), "stream_id": 5}), &["stream_id"]),
        (json!({"scenes": scenes(), "starts_at_ms": "noon"}), &["starts_at_ms"]),
        (json!({"scenes": scenes(), "starts_at_ms": most}), &["starts_at_ms"]),
        (json!({"scenes": scenes(), "no_ticks": 1}), &["no_ticks"]),
        (json!({"scenes": scenes(), "title": "x".repeat(257)}), &["title", "256"]),
        (detailed("scene_id", json!("a.b")), &["scenes[0].scene_id"]),
        (detailed("data", json!("x".repeat(4_097))), &["scenes[0].data", "4096"]),
        (detailed("at_end", json!("STOP")), &["scenes[0].at_end", "HOLD"]),
        (detailed("max_hold_ms", json!(5)), &["scenes[0]", "max_hold_ms"]),
        (detailed("fallback_scene", json!("b")), &["scenes[0]", "fallback_scene"]),
        (detailed("warn_ms", json!(most)), &["scenes[0].warn_ms"]),
        (detailed("danger_ms", json!(-1)), &["scenes[0].danger_ms"]),
        (detailed("color", json!("red")), &["color"]),
    ] {
        for (method, path) in [(Method::POST, "/streams"), (Method::PUT, "/streams/s/config")] {
            let answer = world.send(world.request(method, path).json(&config)).await;
            assert_refused(answer, 400, "INVALID_ARGUMENT", parts);
        }
    }
    for id in ["", "a.b", "*", "ü", &"x".repeat(129)] {
        let create = world.request(Method::POST, "/streams").json(&json!({"stream_id": id, "scenes": scenes()}));
        assert_refused(world.send(create).await, 400, "INVALID_ARGUMENT", &["stream_id"]);
    }
    let other = world.request(Method::PUT, "/streams/s/config").json(&json!({"stream_id": "t", "scenes": scenes()}));
    assert_refused(world.send(other).await, 400, "INVALID_ARGUMENT", &["stream_id"]);
    for status in [
        json!({"stream_time": 1, "timecode": ""}),
        json!({"is_streaming": 1, "stream_time": 1, "timecode": ""}),
        json!({"is_streaming": true, "stream_time": -1, "timecode": ""}),
    ] {
        let put = world.request(Method::PUT, "/streams/s/status").json(&status);
        assert_refused(world.send(put).await, 400, "INVALID_ARGUMENT", &[]);
    }
    assert_eq!(world.get("/streams/s").await.1["revision"], before);
    assert_eq!(world.get("/streams").await.1["streams"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_number_in_a_path_may_be_anything_and_is_answered() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    for text in ["-1", "x", "1.5", "18446744073709551616", "%20"] {
        let answer = world.post(&format!("/streams/s/seek/{text}")).await;
        assert_refused(answer, 400, "INVALID_ARGUMENT", &["position_ms"]);
    }
    for text in ["x", "9223372036854775808"] {
        assert_refused(world.post(&format!("/streams/s/adjust/{text}")).await, 400, "INVALID_ARGUMENT", &["delta_ms"]);
    }
    for path in ["seek/0", "seek/18446744073709551615", "adjust/9223372036854775807", "adjust/-9223372036854775808"] {
        let (status, answer) = world.post(&format!("/streams/s/{path}")).await;
        assert!([200, 400, 409].contains(&status.as_u16()), "{path}: {status} {answer}");
    }
    for limit in ["0", "1001", "-1", "18446744073709551615", "x"] {
        assert_refused(world.get(&format!("/streams?limit={limit}")).await, 400, "INVALID_ARGUMENT", &["limit"]);
    }
    assert_eq!(world.get("/streams/s").await.0, 200);
}

#[tokio::test]
async fn the_page_is_served_and_loads_nothing_from_elsewhere() {
    let world = GatewayUnderTest::new().await;
    let response = world.request(Method::GET, "/").send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
    assert!(response.headers()[header::CONTENT_SECURITY_POLICY].to_str().expect("text").contains("default-src 'none'"));
    let page = response.text().await.expect("a page");
    assert!(page.contains("<title>") && !page.contains("innerHTML") && !page.contains("src=\"http"));
}
