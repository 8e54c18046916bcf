//! Processes beside the bench: the service as an operator runs it, and contestants in its place.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tokio::signal::unix::{SignalKind, signal};

/// How long a process may take until it is ready.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A process that is killed, by its own id, when this is dropped.
#[derive(Debug)]
pub struct Guard(pub Child);

impl Guard {
    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `work`, or a panic on SIGTERM and Ctrl-C: so that children are ended then as well.
pub async fn until_told_to_stop<T>(work: impl Future<Output = T>) -> T {
    let mut terminate = signal(SignalKind::terminate()).expect("a handler");
    let mut interrupt = signal(SignalKind::interrupt()).expect("a handler");
    tokio::select! {
        done = work => done,
        _ = terminate.recv() => panic!("told to stop"),
        _ = interrupt.recv() => panic!("told to stop"),
    }
}

/// `orchestrator_service serve`.
#[derive(Debug)]
pub struct Service {
    child: Guard,
    admin: String,
    directory: tempfile::TempDir,
}

impl Service {
    /// Starts it, and waits until it is ready.
    pub async fn start(nats_url: &str, options: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the service's log");
        let log = fs::File::create(directory.path().join("log")).expect("a log for the service");
        let mut command = Command::new(env!("CARGO_BIN_EXE_orchestrator_service"));
        command.args(["serve", "--nats-url", nats_url, "--admin-addr", "127.0.0.1:0"]).args(options);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("ORCH_") || name.starts_with("NATS_") {
                command.env_remove(&*name);
            }
        }
        // Warnings, and the one line that names the administrator's port.
        command.env("RUST_LOG", "warn,orchestrator_service::telemetry=info");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("the service starts");
        let mut service = Self { child: Guard(child), admin: String::new(), directory };
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if service.admin.is_empty() {
                let log = service.log();
                let address = log.split_once("http://").and_then(|(_, rest)| rest.split_once(" serves /livez"));
                service.admin = address.map(|(address, _)| address.to_owned()).unwrap_or_default();
            } else if service.page("/readyz").await.is_ok_and(|page| page == "ready\n") {
                return service;
            }
            let running = service.child.is_running();
            assert!(running && Instant::now() < deadline, "the service is not ready:\n{}", service.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    async fn page(&self, path: &str) -> reqwest::Result<String> {
        reqwest::get(format!("http://{}{path}", self.admin)).await?.text().await
    }

    /// Sum of a metric over all its labels that contain `label`; 0 for one that was never counted.
    pub async fn metric(&self, name: &str, label: &str) -> u64 {
        let page = self.page("/metrics").await.expect("the service's metrics");
        let of_name = page.lines().filter(|line| {
            let behind = line.strip_prefix(name);
            behind.is_some_and(|behind| behind.starts_with([' ', '{'])) && line.contains(label)
        });
        of_name.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the service's log:\n{}", self.log());
        }
    }
}

/// A contestant in the service's place: this program again, told by `--measure role …` what to be. It ends when it is
/// killed, or when this process is.
#[derive(Debug)]
pub struct Role(Guard);

impl Role {
    /// Starts it, and waits until it says that it is ready.
    pub fn start(words: &[&str]) -> Self {
        let program = std::env::current_exe().expect("the path of this program");
        let child = Command::new(program)
            .args(["--measure", "role"])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program runs again");
        let mut guard = Guard(child);
        let mut line = String::new();
        let stdout = guard.0.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut line).expect("its output can be read");
        assert_eq!(line, "ready\n", "{} did not start", words.join(" "));
        Self(guard)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.0.0.id()
    }

    /// For the contestant: tells that it is ready.
    pub fn ready() {
        println!("ready");
        // Ends with the process that started it, however that ended.
        std::thread::spawn(|| {
            let _ = std::io::stdin().read(&mut [0]);
            std::process::exit(0);
        });
    }
}
