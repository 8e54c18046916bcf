//! A real `nats-server` on a free port of 127.0.0.1, killed when it is dropped.

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{
    nats_binary::{answers_as, binary, free_port},
    program::Guard,
};

/// How long it may take to accept connections.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How many ports to try: another process may take a free one between asking for it and using it.
const ATTEMPTS: usize = 20;

/// See the module.
#[derive(Debug)]
pub struct Server {
    child: Guard,
    port: u16,
    monitor: u16,
    _directory: tempfile::TempDir,
}

impl Server {
    /// One with its default options and its monitoring pages, ready for connections.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory for nats-server");
        for attempt in 0..ATTEMPTS {
            let (port, monitor) = (free_port(), free_port());
            let name = format!("bench-{}-{attempt}", std::process::id());
            let log = fs::File::create(directory.path().join("log")).expect("a log for nats-server");
            let child = Command::new(binary())
                .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-m", &monitor.to_string(), "--name", &name])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("nats-server starts");
            let mut child = Guard(child);
            let deadline = Instant::now() + START_TIMEOUT;
            while Instant::now() < deadline && child.is_running() {
                if answers_as(port, &name) {
                    return Self { child, port, monitor, _directory: directory };
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        let log = fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        panic!("nats-server did not start on any of {ATTEMPTS} ports:\n{log}");
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// The same for a plain socket.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// A number of its general page, such as `in_msgs`: how many messages it was sent.
    pub async fn varz(&self, field: &str) -> u64 {
        let page = reqwest::get(format!("http://127.0.0.1:{}/varz", self.monitor)).await.expect("nats-server's /varz");
        let page: serde_json::Value = page.json().await.expect("/varz is JSON");
        page[field].as_u64().unwrap_or_else(|| panic!("/varz has no number {field}"))
    }
}
