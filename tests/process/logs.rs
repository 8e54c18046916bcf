//! What is logged, and how much.

use orchestrator_service::{
    transport::{
        Transport as _,
        nats::{NatsOptions, NatsTransport},
    },
    wire::{
        proto::{
            Code, OrchestratorCommand, OrchestratorConfig, Register, Reply, SceneConfig, Start, SubscriptionCommand,
            Unregister, UnregisterBatch, orchestrator_command::Command, subscription_command::Command as Subscription,
        },
        subject,
    },
};
use prost::Message as _;

use crate::{
    session::create,
    support::nats_server::{NatsServer, ServerOptions},
    support::program::{Program, command},
    support::waiting::LIMIT,
    viewer::Viewer,
};

/// Standalone with this `RUST_LOG`, on the addresses given.
fn standalone(rust_log: &str, http: &str, admin: &str) -> Program {
    let mut command = command(&["standalone", "--http-addr", http, "--admin-addr", admin]);
    command.env("RUST_LOG", rust_log);
    Program::start(command)
}

/// A stream with two viewers of which one leaves.
async fn watch(program: &Program) -> String {
    let stream_id = create(program).await;
    let mut first = Viewer::of(program, &stream_id, "?client_id=first").await;
    first.until(|update| update["cause"] == "TICK").await;
    let mut second = Viewer::of(program, &stream_id, "?client_id=second").await;
    second.until(|update| update["cause"] == "TICK").await;
    drop(second);
    stream_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debug_logs_tell_who_comes_and_goes_with_the_count() {
    let program = standalone("orchestrator_service=debug", "127.0.0.1:0", "127.0.0.1:0");

    let stream_id = watch(&program).await;

    let line = program.logged(&format!("Added subscriber second to stream {stream_id}")).await;
    for words in [
        "client_id=\"second\"",
        "session=",
        "subscribers=2",
        &*format!("stream_id=\"{stream_id}\""),
        "source_addr=\"127.0.0.1:",
    ] {
        assert!(line.contains(words), "{words}: {line}");
    }
    let left = program.logged(" unregistering ").await;
    assert!(left.contains("orchestrator_service::"), "{left}");
    assert!(!program.log().contains("stream  ") && !program.log().contains("client_id=\"\""), "no empty id");
    for event in ["stream created", "orchestrator started"] {
        assert!(program.logged(event).await.contains(&stream_id));
    }
    assert!(!program.log().contains("state published"), "that is for trace");
    for line in program.log().lines() {
        assert!(line.contains(" orchestrator_service"), "all targets are ours: {line}");
    }
}

/// Says something to the service, again until it is there to answer.
async fn say(transport: &NatsTransport, subject: &str, message: impl prost::Message) -> Reply {
    let payload = bytes::Bytes::from(message.encode_to_vec());
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        match transport.request(subject, payload.clone(), LIMIT).await {
            Ok(answer) => return Reply::decode(answer.payload).expect("a reply"),
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_words_that_runbooks_know_are_in_the_debug_log() {
    let server = NatsServer::start();
    let mut command = command(&["serve", "--nats-url", &server.url(), "--admin-addr", "127.0.0.1:0", "--shards", "3"]);
    command.args(["--stale-timeout", "1s"]).env("RUST_LOG", "debug");
    let program = Program::start(command);
    let transport = NatsTransport::connect(NatsOptions::new(server.url(), "test")).await.expect("a transport");
    let stream_id = || "show".to_owned();
    let subscription = |command| SubscriptionCommand { command: Some(command) };
    let register = |client: &str| {
        let client_id = client.to_owned();
        subscription(Subscription::Register(Register { stream_id: stream_id(), client_id, ..Default::default() }))
    };

    let scenes = vec![SceneConfig { name: "Main".into(), duration_ms: 600_000, ..Default::default() }];
    let config = OrchestratorConfig { scenes, idle_timeout_ms: Some(2_500), ..Default::default() };
    let start = Command::Start(Start { stream_id: stream_id(), config: Some(config) });
    let start = OrchestratorCommand { command: Some(start), ..Default::default() };
    // Created again until somebody watches: it does not stay for long without.
    loop {
        say(&transport, subject::COMMAND, start.clone()).await;
        if say(&transport, subject::SUBSCRIPTION, register("one")).await.code() == Code::Ok {
            break;
        }
    }
    let two = say(&transport, subject::SUBSCRIPTION, register("two")).await.handle;
    let leave = Unregister { stream_id: stream_id(), client_id: "one".into(), session: 0 };
    say(&transport, subject::SUBSCRIPTION, subscription(Subscription::Unregister(leave))).await;
    let batch = |handle: Vec<u64>, client_id: &[&str]| {
        let client_id: Vec<String> = client_id.iter().map(|id| (*id).to_owned()).collect();
        let stream_id = if client_id.is_empty() { String::new() } else { stream_id() };
        subscription(Subscription::UnregisterBatch(UnregisterBatch { stream_id, client_id, handle }))
    };
    say(&transport, subject::SUBSCRIPTION, batch(vec![two], &[])).await;
    say(&transport, subject::SUBSCRIPTION, register("three")).await;
    say(&transport, subject::SUBSCRIPTION, batch(vec![], &["three", "nobody"])).await;
    say(&transport, subject::SUBSCRIPTION, register("four")).await;

    for (words, field) in [
        ("Added subscriber one to stream show", "client_id=\"one\""),
        ("Client one unregistering from stream show", "session=0"),
        ("Remaining subscribers for stream show: 1", "stream_id=\"show\""),
        ("1 clients unregistering by handle", "unknown=0"),
        ("1 clients unregistering from stream show", "unknown=1"),
        ("Cleaned up 1 stale subscribers", "stream_id=\"show\""),
        ("Removing idle orchestrator for stream show", "stream_id=\"show\""),
    ] {
        let line = program.logged(words).await;
        assert!(line.contains(field), "{field}: {line}");
    }
    let log = program.log();
    assert!(!log.contains("stream_id=\"\"") && !log.contains("client_id=\"\""), "never an empty id: {log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trace_logs_tell_each_update() {
    let program = standalone("orchestrator_service=trace", "127.0.0.1:0", "127.0.0.1:0");

    watch(&program).await;

    let line = program.logged("state published").await;
    assert!(line.contains("TRACE") && line.contains("sequence=1"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn info_is_the_default_and_tells_no_client() {
    let mut program = standalone("", "127.0.0.1:0", "127.0.0.1:0");

    watch(&program).await;
    program.logged("orchestrator started").await;
    program.stops_on("TERM").await;

    let log = program.log();
    assert!(!log.contains("DEBUG") && !log.contains("Added subscriber"), "{log}");
    assert!(log.contains("stopping") && log.contains("service stopped"), "{log}");
}

/// `serve` with three shards, and so four connections, without NATS for long enough that each has tried several times.
async fn without_nats(rust_log: &str) -> String {
    let server = NatsServer::absent();
    let mut command = command(&["serve", "--nats-url", &server.url(), "--admin-addr", "127.0.0.1:0", "--shards", "3"]);
    command.env("RUST_LOG", rust_log);
    let mut service = Program::start(command);
    service.logged("NATS is away").await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    service.stops_on("TERM").await;
    service.log()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_nats_is_away_is_said_once_for_all_connections() {
    let log = without_nats("").await;

    let away: Vec<&str> = log.lines().filter(|line| line.contains("NATS is away")).collect();
    assert_eq!(away.len(), 1, "{log}");
}

/// Accepts NATS connections and ends each at once, so that every attempt fails after it was connected.
async fn no_broker() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    format!("nats://{address}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nats_clients_log_of_attempts_is_there_for_who_asks() {
    for (rust_log, expected) in [("", false), ("warn", true), ("orchestrator_service=info,async_nats=error", true)] {
        let url = no_broker().await;
        let mut command = command(&["gateway", "--nats-url", &url, "--admin-addr", "127.0.0.1:0"]);
        command.args(["--http-addr", "127.0.0.1:0"]).env("RUST_LOG", rust_log);
        let mut gateway = Program::start(command);
        gateway.logged("NATS is away").await;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        gateway.stops_on("TERM").await;

        assert_eq!(gateway.log().contains("async_nats"), expected, "RUST_LOG={rust_log:?}: {}", gateway.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn off_is_silence() {
    // Nobody says which ports they are, so they are chosen here; somebody else may take one before.
    for _ in 0..20 {
        let (http, admin) = (free_address(), free_address());
        let mut program = standalone("off", &http, &admin);
        if !answers(&mut program, &http).await {
            continue;
        }
        let body = r#"{"scenes": [{"name": "Main", "duration_ms": 60000}]}"#;
        let request = reqwest::Client::new().post(format!("http://{http}/streams"));
        let answer = request.header("Content-Type", "application/json").body(body).send().await.unwrap();
        assert_eq!(answer.status(), 201);
        program.stops_on("TERM").await;
        assert_eq!(program.log(), "");
        return;
    }
    panic!("no free ports");
}

fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Waits until the program listens; false if it ended instead.
async fn answers(program: &mut Program, address: &str) -> bool {
    let deadline = std::time::Instant::now() + crate::support::waiting::LIMIT;
    while tokio::net::TcpStream::connect(address).await.is_err() {
        if program.has_ended() {
            return false;
        }
        assert!(std::time::Instant::now() < deadline, "it does not listen");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    !program.has_ended()
}

#[test]
fn a_filter_that_is_none_is_an_error() {
    for filter in ["a=b=c", "orchestrator_service=loud", "[{"] {
        let output = command(&["standalone"]).env("RUST_LOG", filter).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{filter}: {text}");
        assert!(text.contains("RUST_LOG") && text.contains(filter), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_level_logs_the_login_of_a_url() {
    let login = Some(("operator-name".to_owned(), "s3cret@word".to_owned()));
    let server = NatsServer::start_with(ServerOptions { login, ..Default::default() });
    for (login, wrong) in
        [("operator-name:s3cret%40word", false), ("operator-name:s3cret-wrong", true), ("s3cret-token", true)]
    {
        let url = server.url().replace("nats://", &format!("nats://{login}@"));
        for program in ["serve", "gateway"] {
            let mut command = command(&[program, "--admin-addr", "127.0.0.1:0"]);
            command.env("NATS_URL", &url).env("RUST_LOG", "trace");
            if program == "gateway" {
                command.args(["--http-addr", "127.0.0.1:0"]);
            }
            let mut program = Program::start(command);
            program.logged(if wrong { "NATS is away" } else { "connected to NATS" }).await;
            program.stops_on("TERM").await;

            let log = program.log();
            assert!(log.contains("TRACE async_nats"), "the client's own lines are there");
            for secret in ["s3cret", "%40word"] {
                assert!(
                    !log.contains(secret),
                    "{}",
                    log.lines().find(|line| line.contains(secret)).unwrap_or_default()
                );
            }
        }
    }
}
