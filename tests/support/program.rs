//! The program as a process of its own: started with options, signalled, read through its log and its administrator's
//! address.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::waiting::LIMIT;

/// How long a process may take to end.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(5);

/// The program, with nothing of this process's environment that it would listen to.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orchestrator_service"));
    command.env_clear().args(arguments).stdin(Stdio::null());
    command
}

/// A process. Killed by its own id when it is dropped.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<thread::JoinHandle<()>>,
    http: reqwest::Client,
}

impl Program {
    /// `serve` against this server with two shards, on an admin port of its own.
    pub(crate) fn serve(nats_url: &str, more: &[&str]) -> Self {
        let arguments = ["serve", "--nats-url", nats_url, "--admin-addr", "127.0.0.1:0", "--shards", "2"];
        Self::start(command(&[&arguments, more].concat()))
    }

    /// `gateway` against this server, on ports of its own.
    pub(crate) fn gateway(nats_url: &str, more: &[&str]) -> Self {
        let (http, admin) = (["--http-addr", "127.0.0.1:0"], ["--admin-addr", "127.0.0.1:0"]);
        Self::start(command(&[&["gateway", "--nats-url", nats_url], &http[..], &admin[..], more].concat()))
    }

    /// `standalone` on ports of its own.
    pub(crate) fn standalone() -> Self {
        Self::start(command(&["standalone", "--http-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"]))
    }

    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, written) = (BufReader::new(child.stderr.take().expect("piped")).lines(), Arc::clone(&log));
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *written.lock().expect("nobody panicked with it") += &(line + "\n");
            }
        });
        let http = reqwest::Client::builder().timeout(LIMIT).build().expect("a client");
        Self { child, log, reader: Some(reader), http }
    }

    /// The same once it can do its work.
    pub(crate) async fn ready(self) -> Self {
        self.readiness(200).await;
        self
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("nobody panicked with it").clone()
    }

    /// Waits until the log says this, and gives the line.
    pub(crate) async fn logged(&self, words: &str) -> String {
        let find = || self.log().lines().find(|line| line.contains(words)).map(str::to_owned);
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(line) = find() {
                return line;
            }
            assert!(Instant::now() < deadline, "{words:?} is not in the log:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// `127.0.0.1:port`, as the log says where something is served.
    pub(crate) async fn address(&self, what: &str) -> String {
        let line = self.logged(what).await;
        let rest = line.split_once("http://").expect("an address").1;
        rest.split_once(' ').expect("and more").0.to_owned()
    }

    /// Where REST and WebSockets are.
    pub(crate) async fn web(&self) -> String {
        self.address("serves REST").await
    }

    /// Asks an administrator's page.
    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.address("serves /livez").await);
        let answer = self.http.get(url).send().await.expect("the admin address answers");
        (answer.status().as_u16(), answer.text().await.expect("a text"))
    }

    /// Waits until `/readyz` has this status.
    pub(crate) async fn readiness(&self, status: u16) {
        self.readiness_is(status, "").await;
    }

    /// Waits until `/readyz` says that it is not, and why.
    pub(crate) async fn unready_because(&self, reason: &str) {
        self.readiness_is(503, reason).await;
    }

    async fn readiness_is(&self, status: u16, reason: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let (now, text) = self.page("/readyz").await;
            if now == status && text.contains(reason) {
                return;
            }
            assert!(Instant::now() < deadline, "/readyz is {now} {text}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether `/readyz` says so now.
    pub(crate) async fn is_ready(&self) -> bool {
        self.page("/readyz").await.0 == 200
    }

    /// Sum of a metric over all its labels that contain `label`; 0 for one that was never counted.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> u64 {
        let (_, page) = self.page("/metrics").await;
        let of_name = page.lines().filter(|line| {
            let behind = line.strip_prefix(name);
            behind.is_some_and(|behind| behind.starts_with([' ', '{'])) && line.contains(label)
        });
        of_name.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }

    /// What of its memory is in use, bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("the state of a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1_024
    }

    /// Calls REST.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<&str>) -> (u16, Value) {
        let url = format!("http://{}{path}", self.web().await);
        let mut request = self.http.request(method.parse().expect("a method"), url);
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body.to_owned());
        }
        let answer = request.send().await.expect("the gateway answers");
        (answer.status().as_u16(), answer.json().await.expect("JSON"))
    }

    /// Sends a signal by name, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().expect("kill");
        assert!(status.success(), "kill -s {name} {id}: {status}");
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the process's state").is_some()
    }

    /// Waits for its end; gives how it ended and all that it logged.
    pub(crate) async fn end(&mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("the process's state") {
                self.reader.take().expect("ends once").join().expect("the log's reader");
                return (status, self.log());
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        self.child.wait().expect("the program ends when it is killed");
    }

    /// Sends a signal; it ends well, and in time.
    pub(crate) async fn stops_on(&mut self, name: &str) {
        let before = Instant::now();
        self.signal(name);
        let (status, log) = self.end().await;
        assert!(status.success(), "SIG{name}: {status}\n{log}");
        assert!(before.elapsed() < STOP_LIMIT, "SIG{name}: took {:?}\n{log}", before.elapsed());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(8_000);
            eprintln!("the program's log:\n{}", log.get(from..).unwrap_or(&log));
        }
    }
}
