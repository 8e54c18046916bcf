//! Connections: what strangers do to them, and what happens then. Most of it on the server that both ports share, with
//! routes of the test.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use orchestrator_service::http::{self, AllowList, ServerOptions};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::under_test::{GatewayUnderTest, Options};

/// How long anything that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// An answer that does not fit the kernel's buffers.
const LARGE: usize = 8 << 20;

/// How long a request takes that does.
const BUSY: Duration = Duration::from_secs(8);

struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<io::Result<()>>,
}

impl Server {
    async fn start(options: ServerOptions) -> Self {
        let router = Router::new()
            .route("/", get(|| async { "hello" }))
            .route("/large", get(|| async { vec![b'x'; LARGE] }))
            .route("/busy", get(|| async { sleep(BUSY).await }))
            .route("/half", get(|| async { vec![b'x'; 512 << 10] }));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(http::serve(listener, router, options, async { _ = stopped.await }));
        Self { address, stop: Some(stop), serving }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connected")
    }

    /// From another address of this machine, with room for next to nothing that it does not read.
    async fn connect_from(&self, ip: [u8; 4]) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        socket.bind(SocketAddr::new(IpAddr::from(ip), 0)).expect("bound");
        socket.connect(self.address).await.expect("connected")
    }

    async fn stop(&mut self) {
        let _ = self.stop.take().expect("running").send(());
        (&mut self.serving).await.expect("no panic").expect("no error");
    }
}

fn options() -> ServerOptions {
    ServerOptions { name: "test", ..ServerOptions::default() }
}

/// Sends this and gives all that comes until the end.
async fn ask(mut stream: TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("written");
    rest(&mut stream).await
}

/// What comes until the end of the line, however it ends.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("not for ever");
    String::from_utf8_lossy(&answer).into_owned()
}

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// Without the last line.
const HALF_A_HEAD: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n";

fn status(answer: &str) -> u16 {
    let code = answer.strip_prefix("HTTP/1.1 ").or_else(|| answer.strip_prefix("HTTP/1.0 "));
    code.and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

fn assert_refused(answer: &str, expected: u16) {
    assert_eq!(status(answer), expected, "{answer}");
    let body: Value = serde_json::from_str(answer.rsplit("\r\n\r\n").next().expect("a body")).expect("JSON");
    assert!(body["code"].is_string() && body["message"].is_string(), "{answer}");
}

#[tokio::test]
async fn pages_of_another_origin_neither_control_nor_watch() {
    let world = GatewayUnderTest::new().await;
    world.create("s").await;
    let own = format!("http://{}", world.address);
    let json = r#"{"stream_id": "theirs", "scenes": [{"name": "a", "duration_ms": 1000}]}"#;
    let with_body = |method: &str, path: &str, more: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n\
            Content-Length: {}\r\n{more}\r\n{json}",
            world.address,
            json.len()
        )
    };
    let without = |method: &str, path: &str, more: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{more}\r\n", world.address)
    };
    let socket = |more: &str| {
        format!(
            "GET /streams/s/ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n",
            world.address
        )
    };
    let send = async |request: String| {
        let mut stream = TcpStream::connect(&world.address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut head = vec![0; 4096];
        let length = timeout(PATIENCE, stream.read(&mut head)).await.expect("not for ever").expect("an answer");
        String::from_utf8_lossy(&head[..length]).into_owned()
    };
    let before = world.get("/streams/s").await.1["revision"].take();
    for origin in
        ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1", &format!("{own}.evil.example")]
    {
        let origin = format!("Origin: {origin}\r\n");
        for request in [
            without("POST", "/streams/s/stop", &origin),
            without("POST", "/streams/s/seek/9000", &origin),
            without("DELETE", "/streams/s", &origin),
            without("GET", "/streams/s", &origin),
            with_body("POST", "/streams", &origin),
            with_body("PUT", "/streams/s/config", &origin),
            socket(&origin),
        ] {
            assert_refused(&send(request).await, 403);
        }
    }
    assert_eq!(world.get("/streams/s").await.1["revision"], before, "nothing was done");
    assert_eq!(world.stats("s").await.total, 0, "nobody watches");
    assert_eq!(world.get("/streams/theirs").await.0, 404);
    for origin in [String::new(), format!("Origin: {own}\r\n")] {
        assert_eq!(status(&send(without("POST", "/streams/s/skip", &origin)).await), 200);
        assert_eq!(status(&send(with_body("POST", "/streams", &origin)).await), 201);
        assert_eq!(status(&send(socket(&origin)).await), 101);
    }
}

#[tokio::test]
async fn a_name_that_was_rebound_to_here_is_refused() {
    let world = GatewayUnderTest::new().await;
    let port = world.address.rsplit(':').next().expect("a port").to_owned();
    let send = async |head: String| {
        let stream = TcpStream::connect(&world.address).await.expect("connected");
        ask(stream, &format!("{head}Connection: close\r\n\r\n")).await
    };
    for (head, expected) in [
        (format!("GET /streams HTTP/1.1\r\nHost: localhost:{port}\r\n"), 200),
        (format!("GET /streams HTTP/1.1\r\nHost: [::1]:{port}\r\n"), 200),
        (format!("GET http://127.0.0.1:{port}/streams HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"), 200),
        (format!("GET /streams HTTP/1.1\r\nHost: evil.example:{port}\r\nOrigin: http://evil.example:{port}\r\n"), 403),
        (format!("POST /streams/s/stop HTTP/1.1\r\nHost: evil.example:{port}\r\n"), 403),
        (format!("GET http://evil.example:{port}/streams HTTP/1.1\r\nHost: localhost:{port}\r\n"), 403),
        ("GET /streams HTTP/1.1\r\n".to_owned(), 400),
        ("GET /streams HTTP/1.0\r\n".to_owned(), 200),
        ("GET /streams HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n".to_owned(), 400),
        ("GET /streams HTTP/1.1\r\nHost: x@localhost\r\n".to_owned(), 400),
    ] {
        let answer = send(head.clone()).await;
        if expected == 200 {
            assert_eq!(status(&answer), 200, "{head}{answer}")
        } else {
            assert_refused(&answer, expected)
        }
    }
}

#[tokio::test]
async fn an_allowed_page_may_ask_and_read() {
    let mut options = Options::default();
    options.gateway.http.allowed = AllowList {
        hosts: vec!["gateway.example".parse().expect("a host")],
        origins: vec!["https://studio.example".parse().expect("an origin")],
    };
    let world = GatewayUnderTest::with(options).await;
    let send = async |head: &str| {
        let stream = TcpStream::connect(&world.address).await.expect("connected");
        ask(stream, &format!("{head}Host: gateway.example\r\nConnection: close\r\n\r\n")).await.to_ascii_lowercase()
    };
    let answer = send("GET /streams HTTP/1.1\r\nOrigin: https://studio.example\r\n").await;
    assert!(
        answer.starts_with("http/1.1 200")
            && answer.contains("access-control-allow-origin: https://studio.example\r\n")
    );
    let preflight = "OPTIONS /streams HTTP/1.1\r\nOrigin: https://studio.example\r\nAccess-Control-Request-Method: POST\r\n\
        Access-Control-Request-Headers: content-type\r\n";
    let answer = send(preflight).await;
    assert!(
        answer.starts_with("http/1.1 204") && answer.contains("access-control-allow-headers: content-type"),
        "{answer}"
    );
    let answer = send("GET /streams HTTP/1.1\r\nOrigin: https://other.example\r\n").await;
    assert!(answer.starts_with("http/1.1 403") && !answer.contains("access-control-allow-origin"), "{answer}");
}

#[tokio::test]
async fn half_a_head_is_cut_and_an_idle_connection_kept() {
    let limit = Duration::from_millis(300);
    let server = Server::start(ServerOptions { head_timeout: limit, ..options() }).await;
    for said in ["", HALF_A_HEAD] {
        let begun = Instant::now();
        assert_eq!(ask(server.connect().await, said).await, "", "after {said:?}");
        assert!(begun.elapsed() >= limit);
    }
    // The same for the second request of a connection; before it begins there is time.
    let mut stream = server.connect().await;
    for wait in [limit * 3, Duration::ZERO] {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("written");
        let mut answer = [0; 1024];
        assert!(stream.read(&mut answer).await.expect("an answer") > 0);
        sleep(wait).await;
    }
    let begun = Instant::now();
    assert_eq!(ask(stream, HALF_A_HEAD).await, "");
    assert!((limit..PATIENCE).contains(&begun.elapsed()));
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_the_end() {
    let server = Server::start(ServerOptions { idle_timeout: Duration::from_millis(300), ..options() }).await;
    let begun = Instant::now();
    let answer = ask(server.connect().await, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(answer.ends_with("hello") && begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn who_does_not_read_an_answer_is_cut_who_reads_slowly_gets_it() {
    let write_timeout = Duration::from_millis(500);
    let mut server = Server::start(ServerOptions { write_timeout, ..options() }).await;
    let request = "GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    // One that reads nothing, and one that reads a little all the time.
    let mut silent = server.connect_from([127, 0, 0, 1]).await;
    silent.write_all(request.as_bytes()).await.expect("written");
    let mut dripping = server.connect_from([127, 0, 0, 1]).await;
    dripping.write_all(request.as_bytes()).await.expect("written");
    let drip = tokio::spawn(async move {
        let (mut some, mut total) = ([0; 512], 0);
        while let Ok(length @ 1..) = dripping.read(&mut some).await {
            total += length;
            sleep(Duration::from_millis(10)).await;
        }
        total
    });
    // One that takes 3 s for it is no slower than it may be.
    let mut steady = server.connect_from([127, 0, 0, 1]).await;
    steady.write_all(request.as_bytes()).await.expect("written");
    let (mut some, mut total) = (vec![0; LARGE / 60], 0);
    while let Ok(length @ 1..) = steady.read(&mut some).await {
        total += length;
        if total % (LARGE / 60) < length {
            sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(total > LARGE, "{total}");
    assert!(timeout(PATIENCE, drip).await.expect("it is cut").expect("no panic") < LARGE / 2);
    assert!(rest(&mut silent).await.len() < LARGE / 2);
    timeout(Duration::from_secs(1), server.stop()).await.expect("nothing is left of them");
}

#[tokio::test]
async fn slow_readers_keep_only_so_many_bytes_here_and_others_are_served() {
    let max_buffered_bytes = 4 << 20;
    let server = Server::start(ServerOptions { max_buffered_bytes, ..options() }).await;
    let request = "GET /half HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = server.connect_from([127, 0, 0, 2]).await;
        stream.write_all(request.as_bytes()).await.expect("written");
        slow.push(stream);
    }
    sleep(Duration::from_millis(200)).await;
    let mut refused = 0;
    for stream in &mut slow {
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.expect("an answer");
        refused += usize::from(&head == b"HTTP/1.1 503");
    }
    // Half of the bytes are one address's; the kernel has taken some of each answer, but lets none go.
    assert_eq!(refused, 20 - max_buffered_bytes / 2 / (512 << 10));
    assert!(ask(server.connect().await, request).await.len() > 512 << 10, "another address has its half");
    assert!(ask(server.connect_from([127, 0, 0, 2]).await, GET).await.ends_with("hello"), "small answers go on");
    drop(slow);
    let freed = async {
        while status(&ask(server.connect_from([127, 0, 0, 2]).await, request).await) != 200 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, freed).await.expect("what was kept for them is free again");
}

#[tokio::test]
async fn crowds_that_send_nothing_keep_nobody_out() {
    let mut server = Server::start(ServerOptions { max_connections: 8, ..options() }).await;
    let mut crowd = Vec::new();
    for place in 0..200 {
        let mut stream = server.connect().await;
        if place % 2 == 0 {
            stream.write_all(HALF_A_HEAD.as_bytes()).await.expect("written");
        }
        crowd.push(stream);
        if place % 20 == 0 {
            let begun = Instant::now();
            assert!(ask(server.connect().await, GET).await.ends_with("hello"));
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        }
    }
    timeout(PATIENCE, server.stop()).await.expect("it ends");
}

#[tokio::test]
async fn slow_readers_of_all_places_keep_nobody_out() {
    let server = Server::start(ServerOptions { max_connections: 8, ..options() }).await;
    let mut crowd = Vec::new();
    for _ in 0..30 {
        let mut stream = server.connect_from([127, 0, 0, 1]).await;
        stream.write_all(b"GET /half HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("written");
        crowd.push(stream);
    }
    let begun = Instant::now();
    assert!(ask(server.connect().await, GET).await.ends_with("hello"));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_full_server_says_so_and_one_address_cannot_fill_it() {
    let mut server = Server::start(ServerOptions { max_connections: 4, ..options() }).await;
    let request = "GET /busy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect_from([127, 0, 0, 2]).await;
        stream.write_all(request.as_bytes()).await.expect("written");
        busy.push(stream);
    }
    sleep(BUSY / 20).await;
    assert_refused(&ask(server.connect_from([127, 0, 0, 2]).await, GET).await, 503);
    assert!(ask(server.connect().await, GET).await.ends_with("hello"), "others have the rest");
    for _ in 0..2 {
        let mut stream = server.connect_from([127, 0, 0, 3]).await;
        stream.write_all(request.as_bytes()).await.expect("written");
        busy.push(stream);
    }
    sleep(BUSY / 20).await;
    assert_refused(&ask(server.connect().await, GET).await, 503);
    let served = async { while !ask(server.connect().await, GET).await.ends_with("hello") {} };
    timeout(PATIENCE, served).await.expect("there is a place again");
    timeout(PATIENCE, server.stop()).await.expect("it ends");
}

#[tokio::test]
async fn pipelined_requests_and_half_closed_clients_get_their_answers() {
    let server = Server::start(options()).await;
    let many = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(49) + GET;
    assert_eq!(ask(server.connect().await, &many).await.matches("hello").count(), 50);
    let world = GatewayUnderTest::new().await;
    let body = r#"{"stream_id": "s", "scenes": [{"name": "a", "duration_ms": 1000}]}"#;
    for request in [
        format!(
            "POST /streams HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ),
        "GET /streams/s HTTP/1.1\r\nHost: localhost\r\n\r\nGET /streams HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
    ] {
        let mut stream = TcpStream::connect(&world.address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("written");
        stream.shutdown().await.expect("half closed");
        let answer = rest(&mut stream).await;
        assert_eq!(answer.matches("HTTP/1.1 20").count(), request.matches("HTTP/1.1").count(), "{answer}");
    }
}

#[tokio::test]
async fn a_slow_body_is_cut_and_what_many_send_at_once_is_bounded() {
    let mut options = Options::default();
    options.gateway.http.body_timeout = Duration::from_millis(500);
    options.gateway.http.max_buffered_bytes = 4 << 20;
    let world = GatewayUnderTest::with(options).await;
    let head = "POST /streams HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
        Content-Length: 1000000\r\n\r\n";
    let sending: Vec<_> = (0..4)
        .map(|_| {
            let address = world.address.clone();
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.expect("connected");
                stream.write_all(head.as_bytes()).await.expect("written");
                // All but the end. A refusal may come before it is sent.
                let _ = stream.write_all(&vec![b' '; 900_000]).await;
                status(&rest(&mut stream).await)
            })
        })
        .collect();
    let mut answers = Vec::new();
    for sending in sending {
        answers.push(timeout(PATIENCE, sending).await.expect("not for ever").expect("no panic"));
    }
    answers.sort_unstable();
    assert_eq!(answers, [408, 408, 503, 503], "half of the bytes for one address");
    assert_eq!(world.get("/streams").await.0, 200);
    world.create("s").await;
}
