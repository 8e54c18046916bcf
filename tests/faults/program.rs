//! The program as a process of its own: started with options, signalled, read through its administrator's address.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crate::machine::{LIMIT, eventually};

/// A running process, killed by its own id when it is dropped.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    admin: String,
    http: Option<String>,
    directory: tempfile::TempDir,
}

impl Program {
    /// The service on two shards, ready for work.
    pub(crate) async fn serve(nats_url: &str, options: &[&str]) -> Self {
        let program = Self::serve_unready(nats_url, options).await;
        program.until_ready().await;
        program
    }

    /// The service on two shards, which may still wait for its broker.
    pub(crate) async fn serve_unready(nats_url: &str, options: &[&str]) -> Self {
        let mut arguments = vec!["serve", "--nats-url", nats_url, "--shards", "2"];
        arguments.extend(options);
        Self::launch(&arguments, false).await
    }

    /// A gateway that has its connection and a service, ready for viewers.
    pub(crate) async fn gateway(nats_url: &str, options: &[&str]) -> Self {
        let program = Self::gateway_unready(nats_url, options).await;
        program.until_ready().await;
        program
    }

    /// A gateway, which may still wait for its broker.
    pub(crate) async fn gateway_unready(nats_url: &str, options: &[&str]) -> Self {
        let mut arguments = vec!["gateway", "--nats-url", nats_url];
        arguments.extend(options);
        Self::launch(&arguments, true).await
    }

    /// On ports that the system chooses, and that the program's log names.
    async fn launch(arguments: &[&str], with_http: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the program");
        let log = fs::File::create(directory.path().join("log")).expect("a log for the program");
        let mut command = Command::new(env!("CARGO_BIN_EXE_orchestrator_service"));
        command.args(arguments).args(["--admin-addr", "127.0.0.1:0"]);
        if with_http {
            command.args(["--http-addr", "127.0.0.1:0"]);
        }
        // What the tester's own shell has set is not what is tested.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("ORCH_") || name.starts_with("NATS_") || name == "RUST_LOG" {
                command.env_remove(&*name);
            }
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("the program starts");
        let mut program = Self { child, admin: String::new(), http: None, directory };
        program.admin = program.listens_for("serves /livez").await;
        if with_http {
            program.http = Some(program.listens_for("serves REST").await);
        }
        program
    }

    /// The address in the line of the log that says `what`.
    async fn listens_for(&mut self, what: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let log = self.log();
            let line = log.lines().find(|line| line.contains(what) && line.contains("http://"));
            if let Some((_, address)) = line.and_then(|line| line.split_once("http://")) {
                return address.split(' ').next().unwrap_or_default().to_owned();
            }
            let ended = self.child.try_wait().expect("the program's state");
            assert!(ended.is_none() && Instant::now() < deadline, "nobody {what}: {ended:?}\n{log}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn until_ready(&self) {
        eventually("the program is ready", async || self.is_ready().await).await;
    }

    pub(crate) async fn is_ready(&self) -> bool {
        self.get("/readyz").await.is_some_and(|(status, _)| status == 200)
    }

    /// Status and body of a page of the administrator's; none while nobody answers.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        let url = format!("http://{}{path}", self.admin);
        let asked = tokio::time::timeout(LIMIT, reqwest::get(url)).await.ok()?.ok()?;
        Some((asked.status().as_u16(), asked.text().await.ok()?))
    }

    /// Sum of a metric over all its labels that contain `label`; 0 for one that was never counted.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> u64 {
        let (_, page) = self.get("/metrics").await.expect("the metrics");
        let of_name = page.lines().filter(|line| {
            let behind = line.strip_prefix(name);
            behind.is_some_and(|behind| behind.starts_with([' ', '{'])) && line.contains(label)
        });
        of_name.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }

    /// Where REST and WebSockets are served, as `ip:port`.
    pub(crate) fn http(&self) -> &str {
        self.http.as_deref().expect("a gateway")
    }

    /// Sends a signal, such as `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        let status =
            Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().expect("kill");
        assert!(status.success(), "kill -{name}: {status}");
    }

    /// Waits for the end, which may take `limit`.
    pub(crate) async fn ended(&mut self, limit: Duration) -> (ExitStatus, Duration) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the program's state") {
                return (status, started.elapsed());
            }
            assert!(started.elapsed() < limit, "the program still runs after {limit:?}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        self.child.wait().expect("the program ends when it is killed");
    }

    /// What of its memory is in use, bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let path = PathBuf::from("/proc").join(self.child.id().to_string()).join("status");
        let status = fs::read_to_string(path).expect("the state of a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1_024
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(8_000);
            eprintln!("the program's log:\n{}", log.get(from..).unwrap_or(&log));
        }
    }
}
