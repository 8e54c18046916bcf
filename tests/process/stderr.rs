//! A log that cannot be written stops nothing: its reader has gone, sleeps, or the disk is full.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, PipeReader, Read as _},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    support::nats_server::NatsServer,
    support::program::{STOP_LIMIT, command},
    support::waiting::LIMIT,
};

/// A program whose log goes where the test says. Killed by its own id when it is dropped.
struct Process(Child);

impl Process {
    fn start(mut command: Command, stderr: impl Into<Stdio>) -> Self {
        Self(command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap())
    }

    /// Waits for its end.
    async fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends well, and in time.
    async fn stops(&mut self) {
        let before = Instant::now();
        let status = Command::new("kill").args(["-s", "TERM", &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
        assert_eq!(self.end().await.code(), Some(0));
        assert!(before.elapsed() < STOP_LIMIT, "{:?}", before.elapsed());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Where a program listens.
struct Addresses {
    http: String,
    admin: String,
}

/// Logs every update, which fills a pipe that nobody reads within seconds.
fn verbose(subcommand: &[&str], http: Option<&str>, admin: &str) -> Command {
    let mut command = command(subcommand);
    command.args(["--admin-addr", admin]).env("RUST_LOG", "trace");
    if let Some(http) = http {
        command.args(["--http-addr", http]);
    }
    command
}

/// Starts `standalone` and reads its log until it says where it listens.
fn started() -> (Process, Addresses, BufReader<PipeReader>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let process = Process::start(verbose(&["standalone"], Some("127.0.0.1:0"), "127.0.0.1:0"), writer);
    let mut log = BufReader::new(reader);
    let admin = address(&mut log, "serves /livez");
    let http = address(&mut log, "serves REST");
    (process, Addresses { http, admin }, log)
}

/// Reads on until something is said to be served, and gives where.
fn address(log: &mut BufReader<PipeReader>, what: &str) -> String {
    let mut line = String::new();
    while log.read_line(&mut line).unwrap() > 0 {
        if line.contains(what) {
            return line.split_once("http://").unwrap().1.split_once(' ').unwrap().0.to_owned();
        }
        line.clear();
    }
    panic!("{what} is not in the log");
}

/// Starts a program that cannot say where it listens, on ports that were free a moment ago.
async fn started_mute(subcommand: &[&str], stderr: impl Fn() -> Stdio) -> (Process, Addresses) {
    for _ in 0..20 {
        let (http, admin) = (free_address(), free_address());
        let with_http = (subcommand[0] != "serve").then_some(&*http);
        let mut process = Process::start(verbose(subcommand, with_http, &admin), stderr());
        let deadline = Instant::now() + LIMIT;
        while process.0.try_wait().unwrap().is_none_or(|status| {
            assert_eq!(status.code(), Some(1), "it ended because it could not log");
            false
        }) {
            let there = is_answered(&admin, "/livez").await;
            if there && process.0.try_wait().unwrap().is_none() {
                return (process, Addresses { http, admin });
            }
            assert!(Instant::now() < deadline, "it does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    panic!("no free ports");
}

fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A program that waits for its log answers nothing.
fn http() -> reqwest::Client {
    reqwest::Client::builder().timeout(LIMIT).build().unwrap()
}

async fn get(address: &str, path: &str) -> (u16, String) {
    let answer = http().get(format!("http://{address}{path}")).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn is_answered(address: &str, path: &str) -> bool {
    http().get(format!("http://{address}{path}")).send().await.is_ok()
}

async fn post(address: &str, path: &str, body: Value) -> (u16, String) {
    let answer = http().post(format!("http://{address}{path}")).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn ready(address: &str) {
    let deadline = Instant::now() + LIMIT;
    while get(address, "/readyz").await.0 != 200 {
        assert!(Instant::now() < deadline, "it is not ready");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How many lines the program says that it lost.
async fn lost_lines(address: &str) -> u64 {
    let metrics = get(address, "/metrics").await.1;
    let line = metrics.lines().find(|line| line.starts_with("orchestrator_dropped_total{reason=\"log_line\"}"));
    line.map_or(0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

/// Commands for many streams, all of which are answered.
async fn use_it(http: &str) {
    for number in 0..20 {
        let scenes = json!([{"name": "Main", "duration_ms": 600_000}]);
        let body = json!({"stream_id": format!("show-{number}"), "scenes": scenes});
        let (status, answer) = post(http, "/streams", body).await;
        assert_eq!(status, 201, "{answer}");
        let (status, answer) = post(http, &format!("/streams/show-{number}/stop"), json!(null)).await;
        assert_eq!(status, 200, "{answer}");
    }
}

/// Streams that tick a hundred times a second, which fills a log that logs every update. The viewers leave with the set.
async fn play(http: &str) -> JoinSet<()> {
    let mut viewers = JoinSet::new();
    for number in 0..40 {
        let scenes = json!([{"name": "Main", "duration_ms": 600_000}]);
        let body = json!({"stream_id": format!("playing-{number}"), "scenes": scenes, "tick_interval_ms": 10});
        assert_eq!(post(http, "/streams", body).await.0, 201);
        let url = format!("ws://{http}/streams/playing-{number}/ws");
        let (mut viewer, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        viewers.spawn(async move { while let Some(Ok(_)) = viewer.next().await {} });
    }
    viewers
}

/// Uses it until it has lost lines of its log, and then once more.
async fn goes_on_without_its_log(process: &mut Process, at: &Addresses) {
    ready(&at.admin).await;
    let deadline = Instant::now() + 3 * LIMIT;
    while lost_lines(&at.admin).await == 0 {
        assert!(Instant::now() < deadline, "no line was lost");
        use_it(&at.http).await;
    }
    use_it(&at.http).await;
    ready(&at.admin).await;
    process.stops().await;
}

fn full_disk() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// A pipe that nobody can read.
fn closed_pipe() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_reader_has_gone_stops_nothing() {
    let (mut process, at, log) = started();
    drop(log);

    goes_on_without_its_log(&mut process, &at).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_stops_nothing() {
    let (mut process, at, log) = started();
    let _viewers = play(&at.http).await;

    goes_on_without_its_log(&mut process, &at).await;
    drop(log);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_read_late_says_what_was_lost_in_between() {
    let (mut process, at, mut log) = started();
    let _viewers = play(&at.http).await;
    let deadline = Instant::now() + 3 * LIMIT;
    while lost_lines(&at.admin).await == 0 {
        assert!(Instant::now() < deadline, "no line was lost");
        use_it(&at.http).await;
    }

    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        text
    });
    process.stops().await;

    let text = reading.join().unwrap();
    assert!(text.contains(" lines of the log were lost\n") && text.contains("service stopped"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_on_a_full_disk_or_a_closed_pipe_stops_no_start() {
    for stderr in [full_disk, closed_pipe] {
        let (mut process, at) = started_mute(&["standalone"], stderr).await;
        goes_on_without_its_log(&mut process, &at).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_and_gateway_over_nats_go_on_without_their_logs() {
    let server = NatsServer::start();
    for stderr in [full_disk, closed_pipe] {
        let (mut service, at) = started_mute(&["serve", "--nats-url", &server.url()], stderr).await;
        ready(&at.admin).await;
        let (mut gateway, at) = started_mute(&["gateway", "--nats-url", &server.url()], stderr).await;
        goes_on_without_its_log(&mut gateway, &at).await;
        service.stops().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_cannot_be_said_keeps_its_exit_code() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();
    for stderr in [full_disk, closed_pipe] {
        for (arguments, code) in [
            (&["standalone", "--admin-addr", &taken][..], 1),
            (&["serve", "--nats-url", "not a url"], 1),
            (&["replay", "/no/such/file"], 1),
            (&["--nothing"], 2),
        ] {
            assert_eq!(Process::start(command(arguments), stderr()).end().await.code(), Some(code), "{arguments:?}");
        }
    }
    let mut bad_filter = command(&["standalone"]);
    bad_filter.env("RUST_LOG", "a=b=c");
    assert_eq!(Process::start(bad_filter, full_disk()).end().await.code(), Some(1));
}

#[test]
fn printing_to_a_closed_pipe_is_no_error_but_to_a_full_disk() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("recording");
    record(&file);
    let file = file.to_str().unwrap();
    for arguments in [&["--help"][..], &["--version"], &["replay", file]] {
        for (stdout, code) in [(closed_pipe(), 0), (full_disk(), 1)] {
            let output = command(arguments).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
            let output = output.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
            assert!(!text.contains("panicked"), "{text}");
        }
    }
}

/// Records a standalone that is stopped as soon as it listens.
fn record(file: &std::path::Path) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = command(&["standalone", "--http-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"]);
    command.arg("--record").arg(file);
    let mut process = Process::start(command, writer);
    let mut log = BufReader::new(reader);
    address(&mut log, "serves REST");
    let id = process.0.id().to_string();
    assert!(Command::new("kill").args(["-s", "TERM", &id]).status().unwrap().success());
    assert!(process.0.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_on_a_full_disk_ends_and_the_service_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (file, log) = (directory.path().join("recording"), directory.path().join("log"));
    // A limit on the size of files stands for the disk: 8 blocks of 512 bytes.
    let script = "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"";
    for _ in 0..20 {
        let (http, admin) = (free_address(), free_address());
        let arguments = ["standalone", "--http-addr", &http, "--admin-addr", &admin, "--shards", "3"];
        let mut shell = Command::new("sh");
        shell.args(["-c", script, env!("CARGO_BIN_EXE_orchestrator_service")]).args(arguments).arg("--record");
        shell.arg(&file).env_clear().stdin(Stdio::null());
        let _ = std::fs::remove_file(&file);
        let mut process = Process::start(shell, File::create(&log).unwrap());
        let deadline = Instant::now() + LIMIT;
        while process.0.try_wait().unwrap().is_none() {
            if is_answered(&http, "/").await {
                for _ in 0..20 {
                    use_it(&http).await;
                }
                ready(&admin).await;
                assert!(std::fs::metadata(&file).unwrap().len() <= 8 * 1_024, "it is full");
                let text = std::fs::read_to_string(&log).unwrap();
                assert_eq!(text.matches("recording failed and ends here").count(), 1, "{text}");
                process.stops().await;
                // What was recorded is worth something.
                let replayed = command(&["replay"]).arg(&file).output().unwrap();
                assert!(replayed.status.success(), "{replayed:?}");
                return;
            }
            assert!(Instant::now() < deadline, "it does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    panic!("no free ports");
}
