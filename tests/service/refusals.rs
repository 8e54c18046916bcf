//! A broker that refuses what the service needs, and takes the refusal back.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    sync::Arc,
};

use futures_util::FutureExt as _;
use orchestrator_service::{
    service::Service,
    transport::{
        Operation, Subscription, Transport,
        memory::MemoryBus,
        nats::{NatsOptions, NatsTransport},
    },
    wire::proto::{Cause, Code, Filter, Mode, OrchestratorConfig, Query, StateUpdate},
};
use prost::Message as _;

use crate::{
    filters::follow,
    support::{
        messages::*,
        nats_server::{NatsServer, ServerOptions},
    },
    testbed::{Caller, LIMIT, assert_gapless, eventually, settings, wall_ms, within_limit},
};

fn says(service: &Service, word: &str) -> bool {
    service.ready().is_err_and(|reason| reason.contains(word))
}

async fn start_service(bus: &MemoryBus) -> Service {
    Service::start(settings(), bus.connect(), vec![bus.connect(), bus.connect()]).await.expect("it starts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_requests_are_refused_the_service_is_unready_and_says_why() {
    within_limit(async {
        let bus = MemoryBus::new();
        bus.deny(Operation::Subscribe, "orchestrator.*");
        let service = start_service(&bus).await;
        assert!(says(&service, "orchestrator.*"), "{:?}", service.ready());

        bus.allow(Operation::Subscribe, "orchestrator.*");
        eventually("it has subscribed by itself", async || service.ready().is_ok()).await;
        let caller = Caller { transport: bus.connect() };
        assert_eq!(caller.command(start("show", long_config())).await.code(), Code::Ok);

        // By a reload, behind its back.
        bus.deny(Operation::Subscribe, "orchestrator.*");
        eventually("it has noticed", async || says(&service, "orchestrator.*")).await;
        bus.allow(Operation::Subscribe, "orchestrator.*");
        eventually("it is ready again", async || service.ready().is_ok()).await;
        assert_eq!(caller.command(skip("show")).await.code(), Code::Ok);
        service.drain().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_the_broker_refused_arrive_when_it_takes_them_again() {
    within_limit(async {
        let bus = MemoryBus::new();
        let service = start_service(&bus).await;
        let caller = Caller { transport: bus.connect() };
        let mut updates = caller.updates("show").await;
        let mut others = caller.updates("other").await;
        bus.deny(Operation::Publish, "stream.show.updates");
        caller.done(start("show", long_config())).await;
        caller.done(start("other", long_config())).await;
        caller.subscription(register("show", "viewer")).await;
        for _ in 0..3 {
            caller.done(seek("show", 1_000)).await;
        }
        eventually("it says so", async || says(&service, "stream.show.updates")).await;
        caller.done(skip("other")).await;
        assert_eq!(others.until(|update| update.revision == 2).await.len(), 2, "others go on");
        assert_eq!(updates.arrived(), []);

        bus.allow(Operation::Publish, "stream.show.updates");
        let seen = updates.until(|update| update.revision == 5).await;
        assert_gapless(&seen);
        let changes = seen.iter().map(|update| update.cause()).filter(|cause| *cause != Cause::Tick).count();
        assert_eq!((changes, seen[0].mode()), (5, Mode::Idle), "each of them, in order");
        eventually("it is ready", async || service.ready().is_ok()).await;
        service.drain().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_filter_holds_up_nobody_else_and_misses_no_change() {
    within_limit(async {
        let bus = MemoryBus::new();
        let service = start_service(&bus).await;
        let caller = Caller { transport: bus.connect() };
        let mut updates = caller.updates("show").await;
        caller.done(start("show", long_config())).await;
        let changes_only = |scene: Vec<String>| Filter { scene, changes_only: true, ..Filter::default() };
        let refused = caller.subscription(follow("show", changes_only(vec![]))).await.updates_subject;
        let taken = caller.subscription(follow("show", changes_only(vec!["Intro".into()]))).await.updates_subject;
        let (mut followed, mut others) = (caller.listen(&refused).await, caller.listen(&taken).await);
        bus.deny(Operation::Publish, &refused);
        caller.subscription(register("show", "viewer")).await;
        for _ in 0..5 {
            caller.done(seek("show", 1_000)).await;
        }
        let seen = updates.until(|update| update.revision == 7).await;
        assert_gapless(&seen);
        let sequence = async |messages: &mut Subscription| {
            let message = tokio::time::timeout(LIMIT, messages.next()).await.expect("an update").expect("open");
            StateUpdate::decode(message.payload).expect("an update").sequence
        };
        let mut passed = Vec::new();
        while passed.last() != Some(&7) {
            passed.push(sequence(&mut others).await);
        }
        passed.dedup();
        assert_eq!(passed, [2, 3, 4, 5, 6, 7], "who follows another filter misses nothing");
        eventually("strangers do not make it unready", async || service.ready().is_ok()).await;
        assert!(followed.next().now_or_never().is_none());

        bus.allow(Operation::Publish, &refused);
        caller.done(seek("show", 1_000)).await;
        let mut passed = Vec::new();
        while passed.last() != Some(&8) {
            passed.push(sequence(&mut followed).await);
        }
        passed.dedup();
        assert_eq!(passed, [2, 3, 4, 5, 6, 7, 8], "each of them, in order");
        service.drain().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_does_not_wait_for_permission() {
    within_limit(async {
        let bus = MemoryBus::new();
        let service = start_service(&bus).await;
        let caller = Caller { transport: bus.connect() };
        bus.deny(Operation::Publish, "stream.>");
        caller.done(start("show", long_config())).await;
        eventually("it says so", async || says(&service, "stream.show.updates")).await;
        let before = std::time::Instant::now();
        service.drain().await;
        assert!(before.elapsed() < std::time::Duration::from_secs(3), "{:?}", before.elapsed());
    })
    .await;
}

/// A server with a service's login that may do so much, and a caller's that may do all.
fn permitting(publish: &str, subscribe: &str) -> String {
    format!(
        "authorization {{ users: [ {{ user: service, password: service, permissions: {{\n\
         publish: {publish}, subscribe: {subscribe} }} }},\n{{ user: caller, password: caller }} ] }}\n"
    )
}

const ALL: &str = "{ allow: [\">\"] }";

async fn login(server: &NatsServer, user: &str) -> Arc<dyn Transport> {
    let url = server.url().replace("nats://", &format!("nats://{user}:{user}@"));
    let transport = NatsTransport::connect(NatsOptions::new(url, user)).await.expect("a transport");
    crate::testbed::wait_until_connected(&*transport).await;
    transport
}

async fn service_on(server: &NatsServer) -> (Service, Caller) {
    let publishers = vec![login(server, "service").await, login(server, "service").await];
    let service = Service::start(settings(), login(server, "service").await, publishers).await.expect("it starts");
    (service, Caller { transport: login(server, "caller").await })
}

fn server_that(more: String) -> NatsServer {
    NatsServer::start_with(ServerOptions { more, ..Default::default() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_with_three_subjects_is_told_that_it_needs_a_pattern() {
    within_limit(async {
        let three =
            r#"{ allow: ["orchestrator.command", "orchestrator.subscription", "orchestrator.query", "_INBOX.>"] }"#;
        let mut server = server_that(permitting(ALL, three));
        let (service, caller) = service_on(&server).await;
        eventually("it says so", async || says(&service, "orchestrator.*")).await;
        server.reload(&permitting(ALL, ALL));
        eventually("it is ready", async || service.ready().is_ok()).await;
        assert_eq!(caller.command(start("show", long_config())).await.code(), Code::Ok);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_a_nats_server_refused_arrive_after_a_reload() {
    within_limit(async {
        let mut server = server_that(permitting("{ deny: [\"stream.>\"] }", ALL));
        let (service, caller) = service_on(&server).await;
        let mut updates = caller.updates("show").await;
        caller.done(start("show", long_config())).await;
        caller.subscription(register("show", "viewer")).await;
        for _ in 0..3 {
            caller.done(seek("show", 1_000)).await;
        }
        eventually("it says so", async || says(&service, "stream.show.updates")).await;
        assert_eq!(updates.arrived(), []);
        server.reload(&permitting(ALL, ALL));
        let seen = updates.until(|update| update.revision == 5).await;
        assert_gapless(&seen);
        assert_eq!(seen[0].mode(), Mode::Idle, "from the first on");
        eventually("it is ready", async || service.ready().is_ok()).await;
    })
    .await;
}

/// Asks for a stream's state so often, each time to be answered on another subject under this one.
fn ask_for_answers_on(server: &NatsServer, reply: &str, stream_id: &str, from: usize, count: usize) {
    let question = Query { query: Some(get_state(stream_id)) }.encode_to_vec();
    let login = r#"CONNECT {"verbose": false, "user": "caller", "pass": "caller"}"#;
    let mut said = format!("{login}\r\n").into_bytes();
    for number in from..from + count {
        said.extend(format!("PUB orchestrator.query {reply}.{number} {}\r\n", question.len()).bytes());
        said.extend(question.iter().chain(b"\r\n"));
    }
    said.extend(b"PING\r\n");
    let mut stream = TcpStream::connect(server.url().replace("nats://", "")).expect("a connection");
    stream.write_all(&said).expect("it is written");
    // Behind the server's greeting it says that it has read all of it.
    let pong = BufReader::new(stream).lines().map(|line| line.expect("a line")).find(|line| line.starts_with("PONG"));
    assert!(pong.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_refused_answers_is_the_business_of_its_askers_alone() {
    within_limit(async {
        let server = server_that(permitting("{ deny: [\"private.>\"] }", ALL));
        let (service, caller) = service_on(&server).await;
        let mut updates = caller.updates("show").await;
        let scenes = [("a", 50), ("b", 50)];
        let looping = OrchestratorConfig { loop_scenes: true, tick_interval_ms: Some(20), ..config(&scenes) };
        caller.done(start("show", looping)).await;
        caller.subscription(register("show", "viewer")).await;
        let mut late = 0;
        for round in 0..20 {
            ask_for_answers_on(&server, "private", "show", 200 * round, 200);
            let asked_at = wall_ms();
            let seen = updates.until(|update| update.server_time_ms > asked_at).await;
            // As late as what waits for permission.
            let newest = seen.last().expect("an update").server_time_ms;
            late += u32::from(wall_ms().saturating_sub(newest) > 500);
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert!(late <= 5, "{late} of 20 updates were late");
        assert_eq!(service.ready(), Ok(()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_inbox_the_service_is_unready_and_repeats_nothing() {
    within_limit(async {
        let mut server = server_that(permitting("{ deny: [\"_INBOX.>\"] }", ALL));
        let (service, caller) = service_on(&server).await;
        eventually("it says so", async || says(&service, "_INBOX")).await;
        server.reload(&permitting(ALL, ALL));
        eventually("it is ready", async || service.ready().is_ok()).await;
        let mut updates = caller.updates("show").await;
        caller.done(start("show", long_config())).await;
        server.reload(&permitting("{ deny: [\"_INBOX.>\"] }", ALL));
        // Without a reply subject, which would be an inbox too.
        for _ in 0..5 {
            caller.tell([crate::testbed::say(seek("show", 1_000))]).await;
        }
        updates.until(|update| update.revision == 6).await;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        updates.arrived();
        assert!(updates.repeats <= 12, "{} repeats", updates.repeats);
        server.reload(&permitting(ALL, ALL));
        eventually("it is ready again", async || service.ready().is_ok()).await;
        service.drain().await;
    })
    .await;
}
