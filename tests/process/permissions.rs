//! The README's table of permissions, taken out of it and given to a server: with exactly these both programs do
//! everything; without any one of them something is refused, which is told where the README says.

use futures_util::future::join_all;
use orchestrator_service::subject::matches;
use serde_json::json;
use tokio_tungstenite::{connect_async, tungstenite};

use crate::{
    support::{
        nats_server::{NatsServer, ServerOptions},
        program::Program,
        waiting::eventually,
    },
    viewer::Viewer,
};

const SUBJECTS: &str = "stream.*.updates";
const FEED: &str = "orchestrator.feed.*";
const BODY: &str = r#"{"stream_id": "show", "loop_scenes": true,
    "scenes": [{"name": "Intro", "duration_ms": 600000}, {"name": "Main", "duration_ms": 600000}]}"#;

/// What a program's login may do; user and password are the program's name.
#[derive(Debug, Clone)]
struct Login {
    user: &'static str,
    publish: Vec<String>,
    subscribe: Vec<String>,
}

impl Login {
    /// The row of the README's table.
    fn of(user: &'static str) -> Self {
        let table = include_str!("../../README.md").split_once("\n| | publish | subscribe |\n").expect("the table").1;
        let row = table.lines().find(|line| line.starts_with(&format!("| {user} |"))).expect("its row");
        let mut cells = row.split(" | ").skip(1).map(|cell| {
            let quoted = cell.split('`').skip(1).step_by(2);
            quoted.filter(|word| word.contains('.')).map(str::to_owned).collect()
        });
        Self { user, publish: cells.next().expect("a cell"), subscribe: cells.next().expect("a cell") }
    }

    fn of_both() -> [Self; 2] {
        [Self::of("service"), Self::of("gateway")]
    }

    /// All that the login may do: what, and where.
    fn lines(&self) -> Vec<(&'static str, String)> {
        let publish = self.publish.iter().map(|pattern| ("publish", pattern.clone()));
        publish.chain(self.subscribe.iter().map(|pattern| ("subscribe", pattern.clone()))).collect()
    }

    fn take_away(&mut self, operation: &str, pattern: &str) {
        let allowed = if operation == "publish" { &mut self.publish } else { &mut self.subscribe };
        allowed.retain(|allowed| allowed != pattern);
    }
}

/// A server, and both programs with logins of their own.
struct World {
    server: NatsServer,
    service: Program,
    gateway: Program,
}

impl World {
    /// `updates` is `subjects` or `feed`: what the other one alone needs is taken from both.
    fn start(mut logins: [Login; 2], updates: &str) -> Self {
        let unneeded = if updates == "feed" { SUBJECTS } else { FEED };
        let users = logins.each_mut().map(|login| {
            login.take_away("publish", unneeded);
            login.take_away("subscribe", unneeded);
            let Login { user, publish, subscribe } = login;
            format!(
                "{{ user: {user}, password: {user}, permissions: {{ \
                 publish: {{ allow: {publish:?} }}, subscribe: {{ allow: {subscribe:?} }} }} }}"
            )
        });
        let more = format!("authorization {{ users: [ {} ] }}\n", users.join(",\n"));
        let server = NatsServer::start_with(ServerOptions { more, ..Default::default() });
        let url = |user: &str| server.url().replace("nats://", &format!("nats://{user}:{user}@"));
        let service = Program::serve(&url("service"), &["--publish", updates]);
        let gateway = Program::gateway(&url("gateway"), &["--updates", updates]);
        Self { server, service, gateway }
    }

    fn program(&self, user: &str) -> &Program {
        if user == "service" { &self.service } else { &self.gateway }
    }

    /// Whether the server has refused this user that.
    fn has_refused(&self, user: &str, operation: &str, pattern: &str) -> bool {
        let kind = if operation == "publish" { "Publish Violation" } else { "Subscription Violation" };
        self.server.log().lines().any(|line| {
            let subject = line.split("Subject \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
            // Some servers say `User "service"`, others `"$G/user:service"`.
            line.contains(kind) && line.contains(&format!("{user}\"")) && matches(pattern, subject)
        })
    }

    /// Commands, a question, and two viewers: of all updates, and of changes alone. Gives what was answered 503.
    async fn use_once(&self) -> Vec<String> {
        let mut refused = Vec::new();
        for (method, path, body) in
            [("POST", "/streams", Some(BODY)), ("POST", "/streams/show/skip", None), ("GET", "/streams", None)]
        {
            let (status, answer) = self.gateway.call(method, path, body).await;
            if status == 503 {
                refused.push(answer.to_string());
            }
        }
        let mut viewers = Vec::new();
        for query in ["", "?changes_only=true"] {
            match connect_async(format!("ws://{}/streams/show/ws{query}", self.gateway.web().await)).await {
                Err(tungstenite::Error::Http(answer)) if answer.status() == 503 => {
                    refused.push(String::from_utf8(answer.into_body().unwrap_or_default()).expect("UTF-8"));
                }
                viewer => viewers.push(viewer),
            }
        }
        self.gateway.call("POST", "/streams/show/skip", None).await;
        refused
    }

    /// Uses it until the server has refused this.
    async fn until_refused(&self, user: &str, operation: &str, pattern: &str) {
        let using = async {
            loop {
                self.use_once().await;
            }
        };
        let words = format!("{user} is refused to {operation} to {pattern}");
        tokio::select! {
            () = using => {}
            () = eventually(&words, async || self.has_refused(user, operation, pattern)) => {}
        }
    }

    /// Uses it until a caller or a viewer is answered 503 with these words.
    async fn until_answered(&self, words: &str) {
        eventually(words, async || self.use_once().await.iter().any(|answer| answer.contains(words))).await;
    }
}

/// Whether `/readyz` tells of it: without it the program could do nothing.
fn makes_unready(user: &str, pattern: &str) -> bool {
    let needed: &[&str] = match user {
        "service" => &["orchestrator.*", SUBJECTS, FEED, "_INBOX.>"],
        _ => &["orchestrator.query", "_INBOX.>"],
    };
    needed.contains(&pattern)
}

/// Takes each line of the login away: one in each world, a few of which are there at once.
async fn without_each_line(user: &'static str) {
    let lines = Login::of(user).lines();
    assert!(lines.len() >= 7, "{lines:?}");
    for some in lines.chunks(4) {
        join_all(some.iter().map(|(operation, pattern)| without(user, operation, pattern))).await;
    }
}

async fn without(user: &'static str, operation: &str, pattern: &str) {
    let mut logins = Login::of_both();
    let login = logins.iter_mut().find(|login| login.user == user).expect("it is one of them");
    login.take_away(operation, pattern);
    let world = World::start(logins, if pattern == FEED { "feed" } else { "subjects" });

    world.until_refused(user, operation, pattern).await;
    let program = world.program(user);
    program.logged("NATS refuses").await;
    let before_wildcard = pattern.split(['*', '>']).next().unwrap_or_default();
    let words = format!("the broker refuses to {operation} to {before_wildcard}");
    if makes_unready(user, pattern) {
        program.unready_because(&words).await;
    } else {
        program.readiness(200).await;
    }
    if user == "gateway" {
        world.until_answered(&words).await;
    }
}

/// Everything that a viewer and a caller can notice of a permission.
async fn nothing_is_refused(updates: &str) {
    let World { server, mut service, mut gateway } = World::start(Login::of_both(), updates);
    service.readiness(200).await;
    gateway.readiness(200).await;
    assert_eq!(gateway.call("POST", "/streams", Some(BODY)).await.0, 201);
    let mut all = Viewer::of(&gateway, "show", "").await;
    let mut changes = Viewer::of(&gateway, "show", "?changes_only=true").await;
    all.until(|update| update["cause"] == "TICK").await;

    assert_eq!(gateway.call("POST", "/streams/show/skip", None).await.0, 200);
    for viewer in [&mut all, &mut changes] {
        viewer.until(|update| update["cause"] == "COMMAND" && update["current_scene"] == "Main").await;
    }
    assert_eq!(gateway.call("GET", "/streams/show/stats", None).await.1["total"], json!(2));
    assert_eq!(gateway.call("DELETE", "/streams/show", None).await.0, 200);
    for viewer in [&mut all, &mut changes] {
        viewer.until(|update| update["mode"] == "UNKNOWN").await;
    }
    for program in [&mut gateway, &mut service] {
        assert_eq!(program.metric("orchestrator_broker_refusals_total", "").await, 0);
        program.stops_on("TERM").await;
    }
    assert!(!server.log().contains("Violation"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_readmes_permissions_nothing_is_refused() {
    nothing_is_refused("subjects").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_readmes_permissions_nothing_of_a_feed_is_refused() {
    nothing_is_refused("feed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_permission_of_a_service_it_is_told_what_is_refused() {
    without_each_line("service").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_permission_of_a_gateway_it_is_told_what_is_refused() {
    without_each_line("gateway").await;
}
