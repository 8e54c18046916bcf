//! What a real server refuses, with its own words and at its own time, and takes back by a reload.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use orchestrator_service::transport::{
    Denial, Denied, Operation, Outgoing, Subscription, Transport, TransportError,
    nats::{NatsOptions, NatsTransport},
};

use crate::{
    broker::{NEVER, outgoing, received, texts, wait_until_away, wait_until_connected, within_limit},
    support::{
        nats_server::{NatsServer, ServerOptions},
        waiting::{LIMIT, eventually},
    },
};

/// Configuration in which one user may do all but these.
fn without(operation: Operation, patterns: &[&str]) -> String {
    let denied = |this: Operation| if operation == this { format!("{patterns:?}") } else { "[]".to_owned() };
    let (publish, subscribe) = (denied(Operation::Publish), denied(Operation::Subscribe));
    format!(
        "authorization {{ users: [ {{ user: limited, password: limited, permissions: {{\n\
         publish: {{ allow: [\">\"], deny: {publish} }}, subscribe: {{ allow: [\">\"], deny: {subscribe} }} }} }},\n\
         {{ user: free, password: free }} ] }}\n"
    )
}

fn everything_allowed() -> String {
    without(Operation::Subscribe, &[])
}

fn server_with(more: String) -> NatsServer {
    NatsServer::start_with(ServerOptions { more, ..Default::default() })
}

async fn connect(server: &NatsServer, user: &str) -> Arc<NatsTransport> {
    let url = server.url().replace("nats://", &format!("nats://{user}:{user}@"));
    let transport = NatsTransport::connect(NatsOptions::new(url, user)).await.expect("a transport");
    wait_until_connected(&*transport, 1).await;
    transport
}

/// Why `pattern` cannot be subscribed to. A report that comes a little late, on a busy machine, comes to the subscription.
async fn refusal(transport: &NatsTransport, pattern: &str, queue: Option<&str>) -> Denial {
    match transport.subscribe(pattern, queue).await {
        Err(TransportError::Denied(denial)) => denial,
        Err(error) => panic!("{pattern}: {error}"),
        Ok(subscription) => until_denied(&subscription).await,
    }
}

async fn until_denied(subscription: &Subscription) -> Denial {
    let mut denied = subscription.denied();
    denied.wait_for(Option::is_some).await.expect("the transport lives").clone().expect("a denial")
}

async fn until_live(subscription: &Subscription) {
    subscription.denied().wait_for(Option::is_none).await.expect("the transport lives");
}

async fn until(transport: &NatsTransport, condition: impl FnMut(&Denied) -> bool) {
    drop(transport.denied().wait_for(condition).await.expect("the transport lives"));
}

async fn publish(transport: &NatsTransport, subject: &str, text: &str) -> Result<(), TransportError> {
    transport.publish(&mut VecDeque::from([outgoing(subject, text)])).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_subscription_is_an_error_and_leaves_nothing_behind() {
    within_limit(async {
        let mut server = server_with(without(Operation::Subscribe, &["news.>"]));
        let transport = connect(&server, "limited").await;
        let mut other = transport.subscribe("other", None).await.unwrap();
        let before = transport.subscriptions();

        for (pattern, queue) in [("news.*", None), ("news.today", Some("readers")), ("news.\"quoted\\", None)] {
            let denial = refusal(&transport, pattern, queue).await;
            assert_eq!((denial.operation, denial.subject.as_str()), (Operation::Subscribe, pattern));
            assert!(denial.reason.contains("Permissions Violation"), "{denial}");
        }
        assert_eq!(transport.subscriptions(), before);
        assert_eq!(transport.denied().borrow().subscription(), None, "nobody holds any of them");

        server.reload(&everything_allowed());
        let mut news = transport.subscribe("news.*", None).await.expect("allowed by now");
        for subject in ["news.today", "other"] {
            publish(&transport, subject, subject).await.unwrap();
        }
        transport.barrier().await.unwrap();
        assert_eq!(texts(received(&mut news)), ["news.today"]);
        assert_eq!(texts(received(&mut other)), ["other"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_taken_by_a_reload_is_live_when_given_back() {
    within_limit(async {
        let mut server = server_with(everything_allowed());
        let transport = connect(&server, "limited").await;
        let mut news = transport.subscribe("news.*", Some("readers")).await.unwrap();
        let mut other = transport.subscribe("other", None).await.unwrap();
        publish(&transport, "news.before", "before").await.unwrap();
        transport.barrier().await.unwrap();

        server.reload(&without(Operation::Subscribe, &["news.>"]));
        let denial = until_denied(&news).await;
        assert_eq!(denial.subject, "news.*");
        assert_eq!(transport.denied().borrow().subscription(), Some(denial));
        assert!(other.denied().borrow().is_none());

        server.reload(&everything_allowed());
        until_live(&news).await;
        assert_eq!(transport.denied().borrow().subscription(), None);
        for subject in ["news.after", "other"] {
            publish(&transport, subject, "after").await.unwrap();
        }
        transport.barrier().await.unwrap();
        assert_eq!(texts(received(&mut news)), ["before", "after"], "what had come before stays to be read");
        assert_eq!(texts(received(&mut other)), ["after"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_refused_after_an_outage_are_told_and_come_back() {
    // It takes a few rounds.
    tokio::time::timeout(6 * LIMIT, async {
        let mut server = server_with(everything_allowed());
        let transport = connect(&server, "limited").await;
        let mut subscriptions = Vec::new();
        for number in 0..300 {
            subscriptions.push(transport.subscribe(&format!("news.{number}"), None).await.unwrap());
        }

        server.kill();
        wait_until_away(&*transport).await;
        server.options().more = without(Operation::Subscribe, &["news.>"]);
        server.restart();
        wait_until_connected(&*transport, 2).await;
        until(&transport, |denied| denied.subscribe.len() == 300).await;
        for subscription in &subscriptions {
            until_denied(subscription).await;
        }

        server.reload(&everything_allowed());
        until(&transport, |denied| denied.subscribe.is_empty()).await;
        transport
            .publish(&mut (0..300).map(|number| outgoing(&format!("news.{number}"), "back")).collect())
            .await
            .unwrap();
        transport.barrier().await.unwrap();
        for subscription in &mut subscriptions {
            assert_eq!(texts(received(subscription)), ["back"]);
        }
    })
    .await
    .expect("it ends in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_subscription_over_the_servers_limit_is_told_to_its_caller() {
    within_limit(async {
        // One of them is the transport's own inbox.
        let server = server_with("max_subscriptions: 5\n".to_owned());
        let transport = NatsTransport::connect(NatsOptions::new(server.url(), "test")).await.unwrap();
        wait_until_connected(&*transport, 1).await;
        let subjects: Vec<String> = (0..20).map(|number| format!("news.{number}")).collect();
        let asked = subjects.iter().map(|subject| transport.subscribe(subject, None));

        let (mut live, mut refused) = (Vec::new(), 0);
        for subscribed in futures_util::future::join_all(asked).await {
            match subscribed {
                Ok(subscription) => live.push(subscription),
                Err(TransportError::Denied(denial)) => {
                    assert!(denial.reason.contains("maximum subscriptions"), "{denial}");
                    refused += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        // What is reported late is denied later.
        eventually("each is refused or live", async || {
            refused + live.iter().filter(|held| held.denied().borrow().is_some()).count() == 16
        })
        .await;

        live.retain(|held| held.denied().borrow().is_none());
        assert_eq!(live.len(), 4);
        drop(live.pop());
        transport.subscribe("news.next", None).await.expect("there is room for one");
        transport.barrier().await.expect("the inbox has kept its place");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_fewer_subscriptions_keeps_the_oldest() {
    // Three outages.
    tokio::time::timeout(6 * LIMIT, async {
        let mut server = NatsServer::start();
        let transport = NatsTransport::connect(NatsOptions::new(server.url(), "test")).await.unwrap();
        wait_until_connected(&*transport, 1).await;
        let mut held = Vec::new();
        for number in 0..30 {
            held.push(transport.subscribe(&format!("news.{number}"), None).await.unwrap());
        }

        for (limit, expected) in [(11, 10), (6, 5), (1_000, 30)] {
            let generation = transport.connection().borrow().generation;
            server.kill();
            wait_until_away(&*transport).await;
            server.options().more = format!("max_subscriptions: {limit}\n");
            server.restart();
            wait_until_connected(&*transport, generation + 1).await;
            let is_live = |subscription: &Subscription| subscription.denied().borrow().is_none();
            until(&transport, |denied| denied.subscribe.len() == 30 - expected).await;
            eventually("as many are live as are allowed", async || {
                held.iter().enumerate().all(|(number, held)| is_live(held) == (number < expected))
            })
            .await;
            // Once the inbox is there again.
            while transport.barrier().await.is_err() {}
            let mut messages = (0..30).map(|number| outgoing(&format!("news.{number}"), "back")).collect();
            transport.publish(&mut messages).await.unwrap();
            transport.barrier().await.unwrap();
            for (number, subscription) in held.iter_mut().enumerate() {
                assert_eq!(received(subscription).len(), usize::from(number < expected), "{number} of {limit}");
            }
        }
    })
    .await
    .expect("it ends in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_messages_are_told_held_back_and_taken_after_a_reload() {
    within_limit(async {
        let mut server = server_with(without(Operation::Publish, &["news.>"]));
        let (transport, free) = (connect(&server, "limited").await, connect(&server, "free").await);
        let mut reader = free.subscribe(">", None).await.unwrap();

        publish(&transport, "news.a", "lost").await.expect("nobody knows yet");
        transport.barrier().await.expect("the rest has arrived");
        until(&transport, |denied| denied.publish.contains("news.a")).await;
        let (mut shut, begun) = (0, Instant::now());
        // Until there were some, and for long enough that it is tried again in between.
        while shut <= 20 || begun.elapsed() < Duration::from_millis(1_500) {
            let mut messages = VecDeque::from([outgoing("news.a", "held back"), outgoing("other", "goes on")]);
            match transport.publish(&mut messages).await {
                Ok(()) => {}
                Err(TransportError::Denied(denial)) => {
                    shut += 1;
                    assert_eq!((denial.operation, denial.subject.as_str()), (Operation::Publish, "news.a"));
                    assert_eq!(messages, [outgoing("other", "goes on")], "the refused one alone is removed");
                    transport.publish(&mut messages).await.unwrap();
                }
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let violations = server.log().matches("Publish Violation").count();
        // One at first, and one a second.
        let most = 2 + begun.elapsed().as_secs() as usize;
        assert!(violations <= most, "{shut} held back, {violations} sent in {:?}", begun.elapsed());
        let denied = transport.denied().borrow().clone();
        assert_eq!(denied.publishing(|_| true).map(|denial| denial.subject).as_deref(), Some("news.a"));
        assert!(denied.refused > shut, "each is counted: {}", denied.refused);

        server.reload(&everything_allowed());
        while publish(&transport, "news.a", "taken").await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        until(&transport, |denied| denied.publish.is_empty()).await;
        publish(&transport, "news.a", "and again").await.expect("nothing is held back");
        transport.barrier().await.unwrap();
        free.barrier().await.unwrap();
        let seen = received(&mut reader).into_iter().filter(|message| message.subject.starts_with("news.")).collect();
        let seen = texts(seen);
        assert!(seen.ends_with(&["taken".to_owned(), "and again".to_owned()]), "{seen:?}");
        assert!(seen.iter().all(|text| text != "lost"), "{seen:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_may_not_be_published_fails_at_once() {
    within_limit(async {
        let server = server_with(without(Operation::Publish, &["question.>"]));
        let (transport, free) = (connect(&server, "limited").await, connect(&server, "free").await);
        let _nobody_answers = free.subscribe("question.*", None).await.unwrap();
        for _ in 0..3 {
            let asked = transport.request("question.a", Bytes::new(), NEVER).await.unwrap_err();
            assert!(matches!(&asked, TransportError::Denied(denial) if denial.subject == "question.a"), "{asked}");
            eventually("nothing is asked", async || transport.pending_requests() == 0).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_inbox_nothing_is_confirmed_and_the_reason_is_told() {
    for operation in [Operation::Subscribe, Operation::Publish] {
        within_limit(async {
            let mut server = server_with(without(operation, &["_INBOX.>"]));
            let transport = connect(&server, "limited").await;

            let refused = transport.barrier().await.unwrap_err();
            assert!(matches!(&refused, TransportError::Denied(denial) if denial.operation == operation), "{refused}");
            until(&transport, |denied| denied.inbox.is_some()).await;
            let denial = transport.denied().borrow().subscription().expect("a denial");
            assert!(denial.operation == operation && denial.subject.starts_with("_INBOX."), "{denial}");
            assert!(
                matches!(transport.barrier().await, Err(TransportError::Denied(_))),
                "and no timeout is waited for"
            );
            assert!(matches!(transport.subscribe("news", None).await, Err(TransportError::Denied(_))));
            assert!(matches!(transport.request("news", Bytes::new(), NEVER).await, Err(TransportError::Denied(_))));
            eventually("nothing is asked", async || transport.pending_requests() == 0).await;
            assert_eq!(transport.subscriptions(), 1);

            server.reload(&everything_allowed());
            until(&transport, |denied| denied.inbox.is_none()).await;
            transport.barrier().await.expect("a barrier");
            transport.subscribe("news", None).await.expect("a subscription");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_subscribes_just_when_a_refused_inbox_is_tried_is_refused() {
    within_limit(async {
        let server = server_with(without(Operation::Subscribe, &["_INBOX.>"]));
        let transport = connect(&server, "limited").await;
        until(&transport, |denied| denied.inbox.is_some()).await;
        // It is tried after a second, and after two more.
        let end = Instant::now() + Duration::from_millis(3_500);
        while Instant::now() < end {
            let refused = transport.subscribe("news", None).await.unwrap_err();
            assert!(matches!(refused, TransportError::Denied(_)), "{refused}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reconnect_to_a_smaller_limit_that_is_the_limit() {
    within_limit(async {
        let mut server = NatsServer::start();
        let transport = NatsTransport::connect(NatsOptions::new(server.url(), "test")).await.unwrap();
        wait_until_connected(&*transport, 1).await;
        assert_eq!(transport.max_payload(), Some(1024 * 1024));

        server.kill();
        wait_until_away(&*transport).await;
        assert_eq!(transport.max_payload(), Some(1024 * 1024), "the last one's");
        server.options().max_payload = Some(100);
        server.restart();
        wait_until_connected(&*transport, 2).await;

        eventually("the limit is known", async || transport.max_payload() == Some(100)).await;
        let large = Outgoing { subject: "news".into(), payload: Bytes::from(vec![0; 101]) };
        let published = transport.publish(&mut VecDeque::from([large])).await;
        assert_eq!(published, Err(TransportError::TooLarge { bytes: 101, limit: 100 }));
        assert_eq!(transport.connection().borrow().generation, 2, "the connection lives");
    })
    .await;
}

thread_local! {
    /// What this thread has logged: a test that runs on one thread reads its own lines there.
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct ThreadLog;

impl Write for ThreadLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.with_borrow_mut(|log| log.write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// On one thread, to which the log belongs.
#[tokio::test]
async fn of_500_refused_subjects_and_subscriptions_one_line_is_logged() {
    // For the whole process. With a subscriber of this thread alone, a line that another test reaches first would be
    // off for good: whether a line is on is asked once, on the thread that reaches it first.
    let log = tracing_subscriber::fmt().with_env_filter("orchestrator_service=info").with_writer(|| ThreadLog);
    tracing::subscriber::set_global_default(log.finish()).expect("the only log of this process");
    let server = server_with(without(Operation::Publish, &["news.>"]).replace("deny: []", "deny: [\"news.>\"]"));
    let transport = connect(&server, "limited").await;

    transport.publish(&mut (0..500).map(|number| outgoing(&format!("news.{number}"), "")).collect()).await.unwrap();
    transport.barrier().await.unwrap();
    for number in 0..500 {
        refusal(&transport, &format!("news.{number}"), None).await;
    }

    eventually("the subjects are known", async || transport.denied().borrow().publish.len() > 100).await;
    let said = || LOG.with_borrow(|log| String::from_utf8(log.clone()).unwrap());
    eventually("both are logged", async || said().contains("messages") && said().contains("subscription")).await;
    let log = said();
    for what in ["NATS refuses messages", "NATS refuses a subscription"] {
        assert_eq!(log.matches(what).count(), 1, "{what}: {log}");
    }
    assert!(log.lines().count() < 10, "{log}");
}
