//! The session with curl that the README shows, taken out of it and run: against the gateway, and against the example
//! that gateway authors copy.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::{support::nats_server::NatsServer, support::program::Program, viewer::Viewer};

/// A command of the session, and the answer that the README shows behind it.
struct Step {
    command: String,
    shown: Option<Value>,
}

/// The commands of the README's section "With curl", in their order.
fn session() -> Vec<Step> {
    let section = include_str!("../../README.md").split_once("### With curl\n").expect("the section").1;
    let section = section.split_once("\n## ").expect("and another").0;
    let mut steps: Vec<Step> = Vec::new();
    let mut open = String::new();
    for line in section.split("```sh\n").skip(1).flat_map(|block| block.split("```").next().unwrap_or("").lines()) {
        match line.strip_prefix("# ") {
            Some(answer) => {
                let step = steps.last_mut().expect("a command before its answer");
                step.shown = Some(serde_json::from_str(answer).expect("JSON"));
            }
            None if line.is_empty() && open.is_empty() => {}
            None => {
                open = open + line + "\n";
                // A body in quotes goes over several lines.
                if open.matches('\'').count().is_multiple_of(2) {
                    steps.push(Step { command: std::mem::take(&mut open), shown: None });
                }
            }
        }
    }
    steps
}

/// Runs a command as the shell does, with this address in the place of the README's; gives status and body.
fn run(command: &str, address: &str) -> (u16, Value) {
    assert!(command.contains("http://localhost:3000/"), "{command}");
    let command = command.replace("http://localhost:3000/", &format!("http://{address}/"));
    let script = format!(
        "curl() {{ command curl --silent --show-error --max-time 20 -w '\\n%{{http_code}}' \"$@\"; }}\n{command}"
    );
    let output = Command::new("sh").args(["-c", &script]).output().expect("sh");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    let (body, status) = text.rsplit_once('\n').expect("a status");
    (status.parse().expect("a number"), serde_json::from_str(body).expect("JSON"))
}

/// What a viewer sees after a command: the mode, and the scene where it is another one.
fn seen_after(command: &str) -> impl Fn(&Value) -> bool {
    let (mode, scene) = match command.trim_end().rsplit_once("/streams/show/").expect("the stream's path").1 {
        "pause" => ("PAUSED", None),
        "resume" => ("RUNNING", None),
        "skip" | "scene/Main" => ("RUNNING", Some("Main")),
        "stop" => ("STOPPED", None),
        other => panic!("the README has a command that this test does not know: {other}"),
    };
    move |update| update["mode"] == mode && scene.is_none_or(|scene| update["current_scene"] == scene)
}

/// The whole session: what is answered is what is shown, and a viewer sees what each command did.
async fn go_through(program: &Program) {
    let address = program.web().await;
    let mut viewer = None;
    let mut commands = 0;
    for Step { command, shown } in session() {
        let (status, answer) = run(&command, &address);
        if let Some(shown) = shown {
            assert_eq!((status, answer), (201, shown), "{command}");
        } else if command.contains(" -X POST ") {
            assert_eq!(status, 200, "{command}: {answer}");
            let viewer = viewer.as_mut().expect("the README opens the WebSocket before");
            Viewer::until(viewer, seen_after(&command)).await;
            commands += 1;
        } else {
            assert_eq!((status, &answer["streams"][0]["stream_id"]), (200, &json!("show")), "{command}");
            // This is where the README lets the reader open the WebSocket.
            let mut opened = Viewer::of(program, "show", "").await;
            let snapshot = opened.next().await.expect("the state at once");
            assert_eq!((&snapshot["mode"], &snapshot["current_scene"]), (&json!("RUNNING"), &json!("Intro")));
            opened.until(|update| update["cause"] == "TICK").await;
            viewer = Some(opened);
        }
    }
    assert_eq!(commands, 5, "commands for the stream in the README");
}

/// The example's program, built as this test is. Cargo tells tests where programs are, but not where examples are.
fn example() -> PathBuf {
    let test = env::current_exe().expect("this test's path");
    let directory = test.parent().and_then(|deps| deps.parent()).expect("the profile's directory");
    let profile = if directory.ends_with("release") { "release" } else { "test" };
    let arguments = ["build", "--quiet", "--locked", "--offline", "--example", "axum_client", "--profile", profile];
    let built = Command::new(env!("CARGO")).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).status();
    assert!(built.expect("cargo").success(), "the example is not built");
    directory.join("examples/axum_client")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_answers_the_readmes_session_with_curl() {
    let program = Program::standalone();
    program.readiness(200).await;

    go_through(&program).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_answers_the_readmes_session_with_curl() {
    let server = NatsServer::start();
    let service = Program::serve(&server.url(), &[]);
    service.readiness(200).await;
    let mut example = Command::new(example());
    example.env_clear().env("NATS_URL", server.url()).env("ORCH_HTTP_ADDR", "127.0.0.1:0").stdin(Stdio::null());
    let mut example = Program::start(example);

    go_through(&example).await;

    example.stops_on("INT").await;
    let left = service.page("/metrics").await.1;
    assert!(left.contains("\norchestrator_subscribers 0\n"), "{left}");
}

#[test]
fn the_example_listens_where_the_readme_says() {
    assert!(include_str!("../../examples/axum_client.rs").contains("\"127.0.0.1:3000\""));
    assert!(include_str!("../../README.md").contains("`cargo run --example axum_client`, on port 3000,"));
}
