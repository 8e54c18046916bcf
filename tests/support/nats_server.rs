//! A real `nats-server` for one test: its own process on its own port, killed when it is dropped.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::nats_binary::{answers_as, binary, free_port};

/// How long a server may take to accept connections before the start counts as failed.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How many ports to try. Another process may take a free port between asking for it and using it.
const PORT_ATTEMPTS: usize = 20;

/// What to configure.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServerOptions {
    /// The largest payload, bytes; the server's own default otherwise.
    pub(crate) max_payload: Option<usize>,
    /// User and password that a client must give.
    pub(crate) login: Option<(String, String)>,
    /// Whether it keeps streams.
    pub(crate) jetstream: bool,
    /// More lines of its configuration.
    pub(crate) more: String,
}

/// A running server, or one that was killed and may be started again on the same port.
#[derive(Debug)]
pub(crate) struct NatsServer {
    child: Option<Child>,
    port: u16,
    /// In its configuration, because a server that was given one as an argument cannot be reloaded.
    name: String,
    options: ServerOptions,
    directory: tempfile::TempDir,
}

impl NatsServer {
    /// A server with its default options, ready for connections.
    pub(crate) fn start() -> Self {
        Self::start_with(ServerOptions::default())
    }

    /// A server with `options`, ready for connections.
    pub(crate) fn start_with(options: ServerOptions) -> Self {
        let mut server = Self::absent_with(options);
        for _ in 0..PORT_ATTEMPTS {
            if server.try_start() {
                return server;
            }
            server.port = free_port();
        }
        panic!("nats-server did not start on any of {PORT_ATTEMPTS} ports:\n{}", server.log());
    }

    /// No server yet, but a port that [`Self::restart`] will start it on.
    pub(crate) fn absent() -> Self {
        Self::absent_with(ServerOptions::default())
    }

    fn absent_with(options: ServerOptions) -> Self {
        let directory = tempfile::tempdir().expect("a directory for nats-server");
        Self { child: None, port: free_port(), name: unique_name(), options, directory }
    }

    /// Where clients connect.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills the server without a word to its clients.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error means that it has ended already.
            let _ = child.kill();
            child.wait().expect("nats-server ends when it is killed");
        }
    }

    /// Starts it again on the same port, where clients look for it.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.try_start() {
            assert!(
                Instant::now() < deadline,
                "nats-server did not start again on port {}:\n{}",
                self.port,
                self.log()
            );
        }
    }

    /// What it takes from its next start on, bytes.
    pub(crate) fn set_max_payload(&mut self, bytes: usize) {
        self.options.max_payload = Some(bytes);
    }

    /// Gives the running server other lines of configuration, and waits until they hold.
    pub(crate) fn reload(&mut self, more: &str) {
        more.clone_into(&mut self.options.more);
        self.write_config();
        let reloads = |log: &str| log.matches("Reloaded server configuration").count();
        let before = reloads(&self.log());
        self.signal("reload");
        let deadline = Instant::now() + START_TIMEOUT;
        while reloads(&self.log()) == before {
            assert!(Instant::now() < deadline, "nats-server does not reload:\n{}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it will be started with the next time.
    pub(crate) fn options(&mut self) -> &mut ServerOptions {
        &mut self.options
    }

    /// Sends one of nats-server's own signals, such as `ldm` for lame duck mode.
    pub(crate) fn signal(&self, signal: &str) {
        let child = self.child.as_ref().expect("nats-server runs");
        let status =
            Command::new(binary()).arg("-sl").arg(format!("{signal}={}", child.id())).status().expect("nats-server");
        assert!(status.success(), "nats-server -sl {signal}: {status}");
    }

    /// Stops the process without ending it, so that it neither answers nor closes anything. Resumed by [`Self::resume`].
    #[cfg(unix)]
    pub(crate) fn freeze(&self) {
        self.unix_signal("-STOP");
        // The signal is sent, and its threads stop one after the other, each when it gets to run.
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.is_stopped() {
            assert!(Instant::now() < deadline, "nats-server does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether all its threads are, where the system tells that in `/proc`.
    #[cfg(unix)]
    fn is_stopped(&self) -> bool {
        let child = self.child.as_ref().expect("nats-server runs");
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", child.id())) else { return true };
        let mut states = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
        // Behind the name in brackets.
        states.all(|stat| stat.rsplit_once(')').is_some_and(|(_, behind)| behind.starts_with(" T")))
    }

    /// Lets a frozen server go on.
    #[cfg(unix)]
    pub(crate) fn resume(&self) {
        self.unix_signal("-CONT");
    }

    #[cfg(unix)]
    fn unix_signal(&self, signal: &str) {
        let child = self.child.as_ref().expect("nats-server runs");
        let status = Command::new("kill").arg(signal).arg(child.id().to_string()).status().expect("kill");
        assert!(status.success(), "kill {signal}: {status}");
    }

    /// True when the new process accepts connections; false when it ended, as it does when the port is taken.
    fn try_start(&mut self) -> bool {
        self.name = unique_name();
        let log = fs::File::create(self.directory.path().join("log")).expect("a log for nats-server");
        let child = Command::new(binary())
            .args(["-a", "127.0.0.1", "-p", &self.port.to_string()])
            .arg("-c")
            .arg(self.write_config())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nats-server starts");
        self.child = Some(child);

        let deadline = Instant::now() + START_TIMEOUT;
        while Instant::now() < deadline {
            if self.child.as_mut().is_some_and(|child| child.try_wait().expect("nats-server's state").is_some()) {
                break;
            }
            if answers_as(self.port, &self.name) {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.kill();
        false
    }

    fn write_config(&self) -> PathBuf {
        let mut config = format!("server_name: {:?}\n", self.name);
        if let Some(bytes) = self.options.max_payload {
            config += &format!("max_payload: {bytes}\n");
        }
        if let Some((user, password)) = &self.options.login {
            config += &format!("authorization {{ user: {user:?}, password: {password:?} }}\n");
        }
        if self.options.jetstream {
            config += &format!("jetstream {{ store_dir: {:?} }}\n", self.directory.path().join("jetstream"));
        }
        config += &self.options.more;
        // Longer than any test: whoever leaves a server in lame duck mode does it by itself.
        config += "lame_duck_grace_period: \"10m\"\nlame_duck_duration: \"20m\"\n";
        let path = self.directory.path().join("nats.conf");
        fs::write(&path, config).expect("a configuration for nats-server");
        path
    }

    /// What it has logged since it was started.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn unique_name() -> String {
    static STARTED: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed))
}
