//! Connections to the program: under a limit of open files, and at the administrator's address.

use std::{
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::client_async;

use crate::{support::nats_server::NatsServer, support::program::Program, support::waiting::LIMIT};

/// Under a hard limit of open files.
fn with_open_files(files: u32, arguments: &[&str]) -> Program {
    let mut shell = Command::new("sh");
    let limit = format!("ulimit -n {files} && exec \"$@\"");
    shell.env_clear().args(["-c", &limit, "sh", env!("CARGO_BIN_EXE_orchestrator_service")]).args(arguments);
    shell.stdin(Stdio::null());
    Program::start(shell)
}

async fn connect_from(last: u8, address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(IpAddr::from([127, 0, 0, last]), 0)).expect("bound");
    let address = address.parse().expect("an address");
    timeout(LIMIT, socket.connect(address)).await.expect("not for ever").expect("connected")
}

/// How long a viewer waits for a place.
const PLACE_LIMIT: Duration = Duration::from_secs(3);

#[tokio::test]
async fn with_few_open_files_viewers_do_not_cost_a_gateway_its_broker() {
    let mut nats = NatsServer::start();
    let url = nats.url();
    let service = Program::serve(&url, &[]);
    let arguments = [
        "gateway",
        "--nats-url",
        &url,
        "--http-addr",
        "127.0.0.1:0",
        "--admin-addr",
        "127.0.0.1:0",
        "--admin-max-connections",
        "32",
    ];
    let gateway = with_open_files(300, &arguments);
    gateway.logged("this process may open 300 files").await;
    service.readiness(200).await;
    gateway.readiness(200).await;
    let created = gateway
        .call("POST", "/streams", Some(r#"{"stream_id": "s", "scenes": [{"name": "a", "duration_ms": 600000}]}"#))
        .await;
    assert_eq!(created.0, 201, "{}", created.1);
    // More than there are files, from several addresses; some find no place.
    let web = gateway.web().await;
    let mut viewers = Vec::new();
    for place in 0..330_u16 {
        let stream = connect_from(2 + (place % 4) as u8, &web).await;
        // Who finds no place is refused, or waits for one.
        match timeout(PLACE_LIMIT, client_async(format!("ws://{web}/streams/s/ws"), stream)).await {
            Ok(Ok((viewer, _))) => viewers.push(viewer),
            Ok(Err(_)) | Err(_) => break,
        }
    }
    assert!(viewers.len() >= 50, "{}", viewers.len());

    // Its descriptor is free for a moment, and a newcomer waits for one.
    nats.kill();
    gateway.unready_because("broker").await;
    let _newcomers = [connect_from(2, &web).await, connect_from(3, &web).await];
    nats.restart();

    gateway.readiness(200).await;
    assert_eq!(gateway.page("/livez").await.0, 200);
}

#[tokio::test]
async fn unfinished_heads_at_the_admin_address_end_neither_it_nor_rest() {
    let program = Program::standalone();
    let admin = program.address("serves /livez").await;
    let mut crowd = Vec::new();
    for _ in 0..1_000 {
        let mut stream = connect_from(1, &admin).await;
        // It may have had to give way already.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n").await;
        crowd.push(stream);
    }
    let begun = Instant::now();
    assert_eq!(program.page("/readyz").await.0, 200);
    assert_eq!(program.call("GET", "/streams", None).await.0, 200);
    // It had ended REST for good.
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    let (_, metrics) = program.page("/metrics").await;
    let cut = metrics.lines().find(|line| line.starts_with("orchestrator_http_cut_total") && line.contains("gave_way"));
    let cut: u64 = cut.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("counted");
    assert!(cut >= 1_000 - 256, "{cut}");
}

#[tokio::test]
async fn the_admin_address_answers_no_foreign_origin_and_no_foreign_name() {
    let program = Program::standalone();
    let admin = program.address("serves /livez").await;
    for (headers, expected) in [
        (format!("Host: {admin}"), "HTTP/1.1 200"),
        (format!("Host: {admin}\r\nOrigin: http://{admin}"), "HTTP/1.1 200"),
        ("Host: evil.example".to_owned(), "HTTP/1.1 403"),
        (format!("Host: {admin}\r\nOrigin: http://evil.example"), "HTTP/1.1 403"),
    ] {
        let mut stream = connect_from(1, &admin).await;
        let request = format!("GET /metrics HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        timeout(LIMIT, stream.read_to_string(&mut answer)).await.expect("not for ever").expect("an answer");
        assert!(answer.starts_with(expected), "{headers}: {answer}");
    }
}
