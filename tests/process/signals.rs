//! The end of a process.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};

use crate::{session::create, support::nats_server::NatsServer, support::program::Program, viewer::Viewer};

const SIGNALS: [&str; 2] = ["TERM", "INT"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_program_ends_on_sigterm_and_ctrl_c() {
    let server = NatsServer::start();
    for signal in SIGNALS {
        // The gateway before the service that it needs to be ready.
        let (service, gateway) = (Program::serve(&server.url(), &[]), Program::gateway(&server.url(), &[]));
        for mut program in [gateway, service, Program::standalone()] {
            program.readiness(200).await;
            program.stops_on(signal).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_ends_while_streams_play_and_is_silent_afterwards() {
    let server = NatsServer::start();
    let listener = async_nats::connect(server.url()).await.unwrap();
    for signal in SIGNALS {
        let (mut service, gateway) = (Program::serve(&server.url(), &[]), Program::gateway(&server.url(), &[]));
        service.readiness(200).await;
        gateway.readiness(200).await;
        let stream_id = create(&gateway).await;
        let mut viewer = Viewer::of(&gateway, &stream_id, "").await;
        viewer.until(|update| update["cause"] == "TICK").await;

        service.stops_on(signal).await;

        // What the server has it passed on before it answers a ping; so what comes now was published after the end.
        let mut updates = listener.subscribe("stream.>").await.unwrap();
        listener.flush().await.unwrap();
        let silence = tokio::time::timeout(Duration::from_millis(500), updates.next()).await;
        assert!(silence.is_err(), "five ticks later: {silence:?}");
        assert!(service.log().contains("service stopped"), "{}", service.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_ends_tells_its_viewers_and_the_service() {
    let server = NatsServer::start();
    let service = Program::serve(&server.url(), &[]);
    service.readiness(200).await;
    for signal in SIGNALS {
        let mut gateway = Program::gateway(&server.url(), &[]);
        gateway.readiness(200).await;
        let stream_id = create(&gateway).await;
        let mut viewer = Viewer::of(&gateway, &stream_id, "").await;
        viewer.until(|update| update["cause"] == "TICK").await;

        gateway.stops_on(signal).await;

        while viewer.next().await.is_some() {}
        let left = service.page("/metrics").await.1;
        assert!(left.contains("\norchestrator_subscribers 0\n"), "{left}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standalone_ends_while_viewers_watch() {
    for signal in SIGNALS {
        let mut program = Program::standalone();
        let stream_id = create(&program).await;
        let mut viewer = Viewer::of(&program, &stream_id, "").await;
        viewer.until(|update| update["cause"] == "TICK").await;

        program.stops_on(signal).await;

        while viewer.next().await.is_some() {}
        assert_eq!(viewer.next().now_or_never().flatten(), None, "closed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_stopping_is_not_ready_any_more() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let server = NatsServer::start();
    let (_service, gateway) = (Program::serve(&server.url(), &[]), Program::gateway(&server.url(), &[]));
    for mut program in [gateway, Program::standalone()] {
        program.readiness(200).await;
        // A request whose body never comes is waited for.
        let mut line = tokio::net::TcpStream::connect(program.web().await).await.unwrap();
        let head = "POST /streams HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\
                    Expect: 100-continue\r\n\r\n";
        line.write_all(head.as_bytes()).await.unwrap();
        let mut asked_for = [0; 12];
        line.read_exact(&mut asked_for).await.unwrap();
        assert_eq!(asked_for, *b"HTTP/1.1 100");

        program.signal("TERM");

        program.unready_because("stopping").await;
        assert!(program.end().await.0.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_and_gateway_end_while_nats_was_never_there() {
    let server = NatsServer::absent();
    for signal in SIGNALS {
        for mut program in [Program::serve(&server.url(), &[]), Program::gateway(&server.url(), &[])] {
            program.readiness(503).await;
            program.stops_on(signal).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_and_gateway_end_while_nats_is_away_and_changes_are_owed() {
    for signal in SIGNALS {
        let mut server = NatsServer::start();
        let (mut service, mut gateway) = (Program::serve(&server.url(), &[]), Program::gateway(&server.url(), &[]));
        service.readiness(200).await;
        gateway.readiness(200).await;
        let body = r#"{"stream_id": "show", "scenes": [{"name": "One", "duration_ms": 1000}]}"#;
        assert_eq!(gateway.call("POST", "/streams", Some(body)).await.0, 201);
        let mut viewer = Viewer::of(&gateway, "show", "").await;
        viewer.until(|update| update["cause"] == "TICK").await;
        server.kill();
        service.readiness(503).await;
        gateway.readiness(503).await;
        // The end of the show, which nobody is told of.
        service.logged("orchestrator stopped").await;

        service.stops_on(signal).await;
        gateway.stops_on(signal).await;
    }
}
