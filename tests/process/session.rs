//! The calls of the README, word for word, and what a viewer sees of them.

use orchestrator_service::client::{
    StreamId,
    proto::{StateUpdate, UpdateBatch},
};
use prost::Message as _;
use serde_json::{Value, json};

use crate::{
    support::{nats_server::NatsServer, program::Program, waiting::eventually},
    viewer::Viewer,
};

const CREATE: &str = r#"{"scenes":
      [{"name": "Intro", "duration_ms": 3000}, {"name": "Main", "duration_ms": 10000},
       {"name": "Outro", "duration_ms": 2000}],
      "tick_interval_ms": 100}"#;

/// Creates a stream as the README does, but for an id of its own and an end; gives the id.
pub(crate) async fn create(gateway: &Program) -> String {
    let (status, created) = gateway.call("POST", "/streams", Some(CREATE)).await;
    assert_eq!(status, 201, "{created}");
    let stream_id = created["stream_id"].as_str().expect("an id").to_owned();
    assert_eq!(created, json!({"stream_id": stream_id, "message": "Stream created successfully"}));
    stream_id
}

/// The whole session, against a gateway that has a service.
async fn go_through(gateway: &Program) {
    let stream_id = create(gateway).await;
    let path = |call: &str| format!("/streams/{stream_id}{call}");
    let post = async |call: &str| {
        let (status, answer) = gateway.call("POST", &path(call), None).await;
        assert_eq!(status, 200, "{call}: {answer}");
    };
    let is = |mode: &'static str| move |update: &Value| update["mode"] == mode;

    let mut viewer = Viewer::of(gateway, &stream_id, "").await;
    let snapshot = viewer.next().await.expect("the snapshot");
    assert_eq!((&snapshot["mode"], &snapshot["current_scene"]), (&json!("RUNNING"), &json!("Intro")));
    assert_eq!((&snapshot["total_duration"], &snapshot["is_running"]), (&json!(15_000), &json!(true)));
    let tick = viewer.until(|update| update["cause"] == "TICK").await;
    assert!(tick["current_time"].as_u64() >= snapshot["current_time"].as_u64(), "{snapshot} {tick}");

    post("/pause").await;
    assert_eq!(viewer.until(is("PAUSED")).await["is_paused"], true);
    post("/resume").await;
    viewer.until(is("RUNNING")).await;
    post("/skip").await;
    viewer.until(|update| update["current_scene"] == "Main").await;
    post("/skip").await;
    viewer.until(|update| update["current_scene"] == "Outro").await;
    post("/scene/Main").await;
    let main = viewer.until(|update| update["current_scene"] == "Main").await;
    assert_eq!((&main["cause"], &main["scene_index"]), (&json!("COMMAND"), &json!(1)));
    post("/stop").await;
    assert_eq!(viewer.until(is("STOPPED")).await["is_running"], false);

    let (status, list) = gateway.call("GET", "/streams", None).await;
    let listed: Vec<&Value> = list["streams"].as_array().expect("a list").iter().map(|s| &s["stream_id"]).collect();
    assert_eq!((status, listed), (200, vec![&json!(stream_id)]));
    let (status, state) = gateway.call("GET", &path(""), None).await;
    assert_eq!((status, &state["mode"]), (200, &json!("STOPPED")));
    let (status, refused) = gateway.call("POST", &path("/pause"), None).await;
    assert_eq!((status, &refused["code"]), (409, &json!("INVALID_STATE")), "{refused}");
    let (status, _) = gateway.call("DELETE", &path(""), None).await;
    assert_eq!(status, 200);
    viewer.until(is("UNKNOWN")).await;
    assert_eq!(gateway.call("GET", &path(""), None).await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_and_gateway_over_nats_do_what_the_readme_says() {
    let server = NatsServer::start();
    let (service, gateway) = (Program::serve(&server.url(), &[]), Program::gateway(&server.url(), &[]));
    service.readiness(200).await;
    gateway.readiness(200).await;

    go_through(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_feed_alone_viewers_of_a_gateway_see_the_same() {
    let server = NatsServer::start();
    let service = Program::serve(&server.url(), &["--publish", "feed"]);
    let gateway = Program::gateway(&server.url(), &["--updates", "feed"]);
    service.readiness(200).await;
    gateway.readiness(200).await;

    go_through(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_counts_what_it_has_no_use_for_in_a_feed_and_reads_on() {
    let server = NatsServer::start();
    let service = Program::serve(&server.url(), &["--publish", "feed"]);
    let gateway = Program::gateway(&server.url(), &["--updates", "feed"]);
    service.readiness(200).await;
    gateway.readiness(200).await;
    let body = r#"{"stream_id": "show", "scenes": [{"name": "Main", "duration_ms": 600000}]}"#;
    assert_eq!(gateway.call("POST", "/streams", Some(body)).await.0, 201);
    let mut viewer = Viewer::of(&gateway, "show", "").await;
    viewer.until(|update| update["cause"] == "TICK").await;

    // What came before anybody followed the stream may have been counted.
    let skipped = async |reason: &str| gateway.metric("client_updates_skipped_total", reason).await;
    let before = (skipped("\"undecodable\"").await, skipped("\"not_followed\"").await);
    let stranger = async_nats::connect(server.url()).await.unwrap();
    let feed = format!("orchestrator.feed.{}", StreamId::parse("show").unwrap().partition());
    // A batch that is none; one with an update that is none; one with three of a stream that nobody here watches.
    let other = || StateUpdate { stream_id: "other".to_owned(), ..StateUpdate::default() };
    let batch = UpdateBatch { update: vec![other(), other(), other()] }.encode_to_vec();
    for payload in [vec![0xff], vec![10, 1, 0xff], batch] {
        stranger.publish(feed.clone(), payload.into()).await.unwrap();
    }
    stranger.flush().await.unwrap();

    eventually("all are counted", async || {
        (skipped("\"undecodable\"").await, skipped("\"not_followed\"").await) == (before.0 + 2, before.1 + 3)
    })
    .await;
    viewer.until(|update| update["cause"] == "TICK").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standalone_reads_what_it_publishes() {
    let arguments = ["standalone", "--http-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--publish", "feed"];
    let program = Program::start(crate::support::program::command(&arguments));
    program.readiness(200).await;

    go_through(&program).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viewers_find_a_stream_created_anew_after_a_restart() {
    let server = NatsServer::start();
    let mut service = Program::serve(&server.url(), &[]);
    let gateway = Program::gateway(&server.url(), &["--heartbeat-interval", "10m"]);
    service.readiness(200).await;
    gateway.readiness(200).await;
    let body = r#"{"stream_id": "show", "scenes": [{"name": "Main", "duration_ms": 600000}]}"#;
    assert_eq!(gateway.call("POST", "/streams", Some(body)).await.0, 201);
    let mut viewer = Viewer::of(&gateway, "show", "").await;
    let before = viewer.until(|update| update["cause"] == "TICK").await;

    service.stops_on("TERM").await;
    let service = Program::serve(&server.url(), &[]);
    service.readiness(200).await;
    assert_eq!(gateway.call("POST", "/streams", Some(body)).await.0, 201);

    loop {
        let update = viewer.next().await.expect("the socket is open");
        if update["epoch"].as_u64() > before["epoch"].as_u64() && update["cause"] == "TICK" {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standalone_does_what_the_readme_says_and_has_a_page() {
    let program = Program::standalone();
    program.readiness(200).await;

    go_through(&program).await;

    let page = reqwest::get(format!("http://{}/", program.web().await)).await.unwrap();
    assert_eq!(page.status(), 200);
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    let text = page.text().await.unwrap();
    assert!(text.contains("<title>") && text.contains("WebSocket"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_subcommand_the_service_runs_as_the_environment_says() {
    let server = NatsServer::start();
    let mut service = crate::support::program::command(&[]);
    service.envs([("NATS_URL", &*server.url()), ("ORCH_ADMIN_ADDR", "127.0.0.1:0"), ("ORCH_SHARDS", "2")]);
    service.envs([("ORCH_STALE_TIMEOUT", "45s"), ("ORCH_PUBLISH", "both")]);
    let service = Program::start(service);

    service.readiness(200).await;

    let line = service.logged("service started").await;
    assert!(line.contains("shards=2") && line.contains("45000") && line.contains("Both"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_pages_tell_life_and_readiness_through_an_outage() {
    let mut server = NatsServer::absent();
    let (service, gateway) = (Program::serve(&server.url(), &[]), Program::gateway(&server.url(), &[]));
    for program in [&service, &gateway] {
        assert_eq!(program.page("/livez").await.0, 200);
        program.readiness(503).await;
        program.logged("NATS is away").await;
        program.unready_because("broker").await;
    }

    server.restart();
    for program in [&service, &gateway] {
        program.readiness(200).await;
    }
    let stream_id = create(&gateway).await;
    let mut viewer = Viewer::of(&gateway, &stream_id, "").await;
    viewer.until(|update| update["cause"] == "TICK").await;

    server.kill();
    for program in [&service, &gateway] {
        program.unready_because("broker").await;
        assert_eq!(program.page("/livez").await.0, 200);
    }
    let metrics = service.page("/metrics").await.1;
    assert!(metrics.contains("\norchestrator_ready 0\n"), "{metrics}");

    server.restart();
    for program in [&service, &gateway] {
        program.readiness(200).await;
    }
    viewer.until(|update| update["current_scene"] == "Main").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_a_service_says_so_soon_and_is_not_ready() {
    let server = NatsServer::start();
    let gateway = Program::gateway(&server.url(), &[]);
    gateway.unready_because("service").await;
    assert_eq!(gateway.page("/livez").await.0, 200);
    let begun = std::time::Instant::now();
    for (method, path) in [("GET", "/streams"), ("POST", "/streams/show/pause"), ("GET", "/stats")] {
        let (status, refused) = gateway.call(method, path, None).await;
        assert_eq!((status, &refused["code"]), (503, &json!("UNAVAILABLE")), "{refused}");
    }
    // Less than one of them would take that waits for a broker or an answer.
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());

    let mut service = Program::serve(&server.url(), &[]);
    gateway.readiness(200).await;
    service.stops_on("TERM").await;
    gateway.unready_because("service").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_finds_out_that_its_service_was_killed_or_frozen() {
    let server = NatsServer::start();
    let gateway = Program::gateway(&server.url(), &[]);
    let mut service = Program::serve(&server.url(), &[]);
    gateway.readiness(200).await;
    service.signal("STOP");
    gateway.unready_because("no service answers").await;
    service.signal("CONT");
    gateway.readiness(200).await;
    service.signal("KILL");
    service.end().await;
    gateway.unready_because("no service listens").await;

    let log = gateway.log();
    let warned = log.lines().filter(|line| line.contains("WARN") && line.contains("the service is away")).count();
    assert_eq!(warned, 1, "once in half a minute:\n{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_reads_where_nothing_is_published_is_not_ready() {
    let server = NatsServer::start();
    let _service = Program::serve(&server.url(), &["--publish", "feed"]);
    let gateway = Program::gateway(&server.url(), &[]);
    gateway.unready_because("updates are read from SUBJECTS and published to FEED").await;
    gateway.logged("published to FEED").await;
    let reading = Program::gateway(&server.url(), &["--updates", "feed"]);
    reading.readiness(200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_and_name_no_stream_and_no_client() {
    let program = Program::standalone();
    program.readiness(200).await;
    let body =
        r#"{"stream_id": "stream-of-somebody", "scenes": [{"name": "scene-of-somebody", "duration_ms": 60000}]}"#;
    assert_eq!(program.call("POST", "/streams", Some(body)).await.0, 201);
    let mut viewer = Viewer::of(&program, "stream-of-somebody", "?client_id=client-of-somebody&session=7").await;
    viewer.until(|update| update["cause"] == "TICK").await;
    assert_eq!(program.call("POST", "/streams/nothing-of-anybody/pause", None).await.0, 404);

    let (status, metrics) = program.page("/metrics").await;

    assert_eq!(status, 200);
    for line in ["orchestrator_streams 1", "orchestrator_streams_running 1", "orchestrator_subscribers 1"] {
        assert!(metrics.contains(&format!("\n{line}\n")), "{line}:\n{metrics}");
    }
    for counted in ["orchestrator_received_total", "orchestrator_published_total", "code=\"STREAM_NOT_FOUND\""] {
        assert!(metrics.contains(counted), "{counted}:\n{metrics}");
    }
    assert!(!metrics.contains("body"), "{metrics}");
    for (kind, help) in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(|kind| {
        let name = kind.split(' ').next().unwrap_or_default();
        (kind, format!("# HELP {name} "))
    }) {
        assert!(metrics.contains(&help), "{kind} has no help:\n{metrics}");
    }
    assert_eq!(program.page("/nothing").await.0, 404);
}
