//! WebSockets of one gateway: memory of a socket, processor time of a message, and how old a message is when it arrives.
//!
//! `cargo bench --bench viewers` takes about 5 minutes, `-- --quick` 2. Streams tick every 100 ms, and each socket is sent
//! each update. Beside the gateway are a loop that writes the same bytes to raw sockets, which is what the machine gives,
//! and the usual design: axum, with a `tokio::sync::broadcast` channel for each stream and a receiver for each socket.
//!
//! Whoever serves is a process, with the service in it where there is one; whoever reads is another. Processor time and
//! memory are the server's alone. The clocks are one, so an age is exact to the millisecond that an update carries.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss, reason = "a bench")]

mod support;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::{Path, State, WebSocketUpgrade, ws},
    routing::get,
};
use orchestrator_service::{
    client::{Client, ClientOptions, proto::OrchestratorConfig, proto::SceneConfig},
    gateway::{Gateway, GatewayOptions},
    http::{ServerOptions, descriptors},
    service::{Service, ServiceSettings},
    transport::{Transport, memory::MemoryBus},
};
use support::{
    Args, process,
    report::{LIMIT, OURS, Row},
    run, step, tell,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, broadcast},
    task::JoinSet,
};

const INTERVAL: Duration = Duration::from_millis(100);
/// The usual design.
const BROADCAST: &str = "axum, broadcast";
/// Runs before anything is measured, s.
const WARM: u64 = 2;
/// How many handshakes are under way at once.
const HANDSHAKES: usize = 64;
/// What carries an update's time.
const TIME: &[u8] = b"\"server_time_ms\":";

fn main() {
    let args = Args::read();
    if let Some(words) = &args.child {
        let number = |place: usize| words[place].parse().unwrap();
        descriptors::raise_limit();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (sockets, streams, seconds) = (number(1), number(2), number(3));
        return match words[0].as_str() {
            "read" => runtime.block_on(read(words[4].parse().unwrap(), sockets, streams, seconds)),
            OURS => runtime.block_on(ours(sockets, streams, seconds)),
            BROADCAST => runtime.block_on(broadcasting(sockets, streams, seconds)),
            _ => raw(sockets, streams, seconds),
        };
    }
    let seconds = if args.quick { 4 } else { 15 };
    let mut steps = Vec::new();
    for (sockets, streams) in [(1_000, 1), (1_000, 100), (10_000, 1), (10_000, 100)] {
        for who in [LIMIT, BROADCAST, OURS] {
            let words = [who, &sockets.to_string(), &streams.to_string(), &seconds.to_string()];
            steps.push(step(&words, seconds + WARM + sockets / 1_500 + 1));
        }
    }
    run("viewers", "WebSockets of one gateway, updates each 100 ms", &args, steps);
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

// --- whoever reads -----------------------------------------------------------------------------------------------

/// How old messages were, in ms, and how many there were.
struct Ages {
    /// The last place is for all beyond.
    by_ms: Vec<AtomicU64>,
    is_measuring: AtomicU64,
}

impl Ages {
    fn note(&self, age_ms: u64) {
        if self.is_measuring.load(Ordering::Relaxed) == 1 {
            self.by_ms[(age_ms as usize).min(self.by_ms.len() - 1)].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn count(&self) -> u64 {
        self.by_ms.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn quantile(&self, thousandths: u64) -> u64 {
        let wanted = self.count() * thousandths / 1_000;
        let mut seen = 0;
        let place = self.by_ms.iter().position(|count| {
            seen += count.load(Ordering::Relaxed);
            seen > wanted
        });
        place.unwrap_or(self.by_ms.len()) as u64
    }
}

/// Opens the sockets and reads them all. Says when they are open, and at the end what it has seen.
async fn read(address: SocketAddr, sockets: u64, streams: u64, seconds: u64) {
    let ages =
        Arc::new(Ages { by_ms: (0..20_000).map(|_| AtomicU64::new(0)).collect(), is_measuring: AtomicU64::new(0) });
    let mut readers = JoinSet::new();
    let permits = Arc::new(Semaphore::new(HANDSHAKES));
    let (opened, mut all) = tokio::sync::mpsc::channel(HANDSHAKES);
    for socket in 0..sockets {
        let (permit, ages, opened) =
            (Arc::clone(&permits).acquire_owned().await.unwrap(), Arc::clone(&ages), opened.clone());
        readers.spawn(async move {
            let stream = open(address, socket % streams).await;
            drop(permit);
            opened.send(()).await.unwrap();
            drop(opened);
            view(stream, &ages).await;
        });
        while all.try_recv().is_ok() {}
    }
    drop(opened);
    while all.recv().await.is_some() {}
    println!("open");
    std::io::stdout().flush().unwrap();
    tokio::time::sleep(Duration::from_secs(WARM)).await;
    ages.is_measuring.store(1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    ages.is_measuring.store(0, Ordering::Relaxed);
    assert_eq!(readers.try_join_next().map(|_| ()), None, "all sockets stay open");
    println!("{} {} {}", ages.count(), ages.quantile(500), ages.quantile(990));
}

/// A socket of a stream, after the handshake.
async fn open(address: SocketAddr, stream: u64) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let request = format!(
        "GET /streams/show-{stream}/ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    socket
}

/// Reads frames until the end; answers pings.
async fn view(mut stream: TcpStream, ages: &Ages) {
    let mut buffer = Vec::with_capacity(2_048);
    while matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
        let mut start = 0;
        while let Some(&[first, length, ..]) = buffer.get(start..) {
            let (head, length) = match length {
                126 if buffer.len() < start + 4 => break,
                126 => (4, usize::from(u16::from_be_bytes([buffer[start + 2], buffer[start + 3]]))),
                length => (2, usize::from(length)),
            };
            let Some(payload) = buffer.get(start + head..start + head + length) else { break };
            match first & 0xf {
                9 => {
                    let mut pong = vec![0x8a, 0x80 | length as u8, 0, 0, 0, 0];
                    pong.extend(payload);
                    stream.write_all(&pong).await.unwrap();
                }
                _ => ages.note(now_ms().saturating_sub(time_in(payload))),
            }
            start += head + length;
        }
        buffer.drain(..start);
    }
}

fn time_in(payload: &[u8]) -> u64 {
    let place = payload.windows(TIME.len()).rposition(|part| part == TIME).expect("a time") + TIME.len();
    payload[place..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |sum, byte| sum * 10 + u64::from(byte - b'0'))
}

// --- whoever serves ----------------------------------------------------------------------------------------------

/// The process of the readers.
struct Readers {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Readers {
    fn start(address: SocketAddr, sockets: u64, streams: u64, seconds: u64) -> Self {
        let numbers = [sockets, streams, seconds].map(|number| number.to_string());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--measure", "read"])
            .args(numbers)
            .arg(address.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Waits until all is open, measures this process while they read, and tells all of it.
    fn measure(mut self, before: u64, (sockets, streams, seconds): (u64, u64, u64), who: &str) {
        assert_eq!(self.lines.next().unwrap().unwrap(), "open");
        std::thread::sleep(Duration::from_secs(WARM));
        let (cpu, since) = (process::cpu(), Instant::now());
        std::thread::sleep(Duration::from_secs(seconds));
        let (cpu, elapsed) = (process::cpu() - cpu, since.elapsed().as_secs_f64());
        let bytes = process::rss().saturating_sub(before) as f64 / sockets as f64;
        let seen = self.lines.next().unwrap().unwrap();
        let seen: Vec<f64> = seen.split(' ').map(|number| number.parse().unwrap()).collect();
        assert!(self.child.wait().unwrap().success());
        let scale = format!("{} k of {streams}", sockets / 1_000);
        let row = |what, value, unit| Row::new(what, &scale, who, value, unit);
        let memory = row("memory of a socket", bytes, "bytes");
        tell(&if who == OURS { memory.aimed("<= 6144") } else { memory });
        tell(&row("processor time of a message", cpu / elapsed * seconds as f64 / seen[0] * 1e6, "µs"));
        tell(&row("messages", seen[0] / (sockets * seconds * 10) as f64 * 100.0, "% of those due"));
        tell(&row("age on arrival p50", seen[1], "ms"));
        tell(&row("age on arrival p99", seen[2], "ms"));
    }
}

/// Without a thread of the runtime. The code of it all is in memory before, since a first socket has come and gone: how much
/// that is is no socket's.
async fn measured(address: SocketAddr, sizes: (u64, u64, u64), who: &'static str) {
    let (sockets, streams, seconds) = sizes;
    drop(open(address, 0).await);
    let before = process::rss();
    let readers = Readers::start(address, sockets, streams, seconds);
    tokio::task::spawn_blocking(move || readers.measure(before, sizes, who)).await.unwrap();
}

async fn ours(sockets: u64, streams: u64, seconds: u64) {
    let bus = MemoryBus::new();
    let link = || -> Arc<dyn Transport> { bus.connect() };
    let settings = ServiceSettings { shards: 1, ..ServiceSettings::default() };
    let service = Service::start(settings, link(), vec![link()]).await.unwrap();
    let client = Client::new(bus.connect(), ClientOptions::default());
    for stream in 0..streams {
        let scenes = [("Intro", 3_000), ("Main", 10_000), ("Outro", 2_000)];
        let scenes =
            scenes.map(|(name, duration_ms)| SceneConfig { name: name.to_owned(), duration_ms, ..Default::default() });
        let config = OrchestratorConfig { scenes: scenes.into(), loop_scenes: true, ..OrchestratorConfig::default() };
        client.start(&format!("show-{stream}"), config).await.unwrap();
    }
    let http = ServerOptions { max_connections_per_address: Some(u32::MAX), ..ServerOptions::default() };
    let gateway = Gateway::new(client, GatewayOptions { http, ..GatewayOptions::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move { gateway.serve(listener, std::future::pending()).await });
    measured(address, (sockets, streams, seconds), OURS).await;
    serving.abort();
    service.drain().await;
}

/// An update of about the size of ours, as it is now.
fn update(stream: u64) -> String {
    let fields = r#""current_scene":"Main","current_time":4200,"time_remaining":10800,"progress_percentage":28.0,
        "is_running":true,"is_paused":false,"is_complete":false,"stream_timecode":"","stream_is_streaming":false,
        "mode":"RUNNING","revision":3,"sequence":42,"epoch":1700000000000000,"total_duration":15000,"scene_index":1,
        "scene_elapsed":1200,"scene_remaining":8800,"loop_count":0,"cause":"TICK""#;
    let fields: String = fields.split_whitespace().collect();
    format!("{{\"stream_id\":\"show-{stream}\",\"server_time_ms\":{},{fields}}}", now_ms())
}

/// Where a stream is in its interval when the streams spread over it.
fn offset(stream: u64, streams: u64) -> Duration {
    INTERVAL * stream as u32 / streams as u32
}

async fn broadcasting(sockets: u64, streams: u64, seconds: u64) {
    let channels: Arc<Vec<broadcast::Sender<String>>> =
        Arc::new((0..streams).map(|_| broadcast::channel(16).0).collect());
    for stream in 0..streams {
        let channels = Arc::clone(&channels);
        tokio::spawn(async move {
            let mut beats = tokio::time::interval_at(tokio::time::Instant::now() + offset(stream, streams), INTERVAL);
            loop {
                beats.tick().await;
                let _ = channels[stream as usize].send(update(stream));
            }
        });
    }
    async fn open(
        State(channels): State<Arc<Vec<broadcast::Sender<String>>>>,
        Path(name): Path<String>,
        upgrade: WebSocketUpgrade,
    ) -> axum::response::Response {
        let stream: usize = name.trim_start_matches("show-").parse().unwrap();
        let mut updates = channels[stream].subscribe();
        upgrade.on_upgrade(move |mut socket| async move {
            loop {
                tokio::select! {
                    update = updates.recv() => match update {
                        Ok(update) => if socket.send(ws::Message::Text(update.into())).await.is_err() { return },
                        Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => return,
                    },
                    message = socket.recv() => if !matches!(message, Some(Ok(_))) { return },
                }
            }
        })
    }
    let router = Router::new().route("/streams/{name}/ws", get(open)).with_state(channels);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    measured(address, (sockets, streams, seconds), BROADCAST).await;
    serving.abort();
}

/// The least: one thread that accepts, and then one that writes each update to each of its stream's sockets.
fn raw(sockets: u64, streams: u64, seconds: u64) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let before = process::rss();
    let readers = Readers::start(address, sockets, streams, seconds);
    let mut of_streams: Vec<Vec<std::net::TcpStream>> = (0..streams).map(|_| Vec::new()).collect();
    for _ in 0..sockets {
        let (mut socket, _) = listener.accept().unwrap();
        let mut lines = BufReader::with_capacity(512, socket.try_clone().unwrap()).lines().map(Result::unwrap);
        let first = lines.next().unwrap();
        let stream: usize = first["GET /streams/show-".len()..].split('/').next().unwrap().parse().unwrap();
        assert!(lines.any(|line| line.is_empty()));
        socket
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            .unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        of_streams[stream].push(socket);
    }
    std::thread::spawn(move || {
        let begun = Instant::now();
        for beat in 0.. {
            for (stream, sockets) in of_streams.iter_mut().enumerate() {
                let due = INTERVAL * beat + offset(stream as u64, streams);
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
                let text = update(stream as u64);
                let mut frame = vec![0x81, 126];
                frame.extend((text.len() as u16).to_be_bytes());
                frame.extend(text.as_bytes());
                for socket in sockets {
                    // One that takes nothing now misses it.
                    let _ = socket.write(&frame);
                }
            }
        }
    });
    readers.measure(before, (sockets, streams, seconds), LIMIT);
    // The thread ends with the process.
    std::process::exit(0);
}
