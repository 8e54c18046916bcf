//! One suite over both transports: what holds for a NATS server holds for the memory bus, and the other way round.
//!
//! Nothing here waits for a while and then looks. A reader that must have everything by now is behind a barrier
//! (see [`flush_all`]); whatever else takes time is awaited as such, and [`LIMIT`] only ends a test that failed.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[path = "../support/mod.rs"]
mod support;

mod credentials;
mod fake_server;
mod permissions;
mod protocol;

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use orchestrator_service::transport::{
    BARRIER_TIMEOUT, Connection, Denial, Denied, Message, Operation, Outgoing, SUBSCRIPTION_CAPACITY, Subscription,
    Transport, TransportError,
    memory::MemoryBus,
    nats::{NatsOptions, NatsTransport},
};
use support::{
    nats_server::{NatsServer, ServerOptions},
    waiting::{LIMIT, eventually},
};

/// A timeout that a test would notice if it came.
const NEVER: Duration = Duration::from_secs(3600);

/// The payload limit of a broker with `small_payloads`, bytes.
const SMALL: usize = 2048;

/// A broker of one kind.
enum Broker {
    Memory(MemoryBus),
    Nats(NatsServer),
}

impl Broker {
    /// A connection that is up.
    async fn connect(&self) -> Arc<dyn Transport> {
        self.connect_counting().await.0
    }

    /// A connection that is up, and how many of its requests and subscriptions are open.
    async fn connect_counting(&self) -> (Arc<dyn Transport>, Box<dyn Fn() -> usize + Send>) {
        let (transport, count): (Arc<dyn Transport>, Box<dyn Fn() -> usize + Send>) = match self {
            Self::Memory(bus) => {
                let bus = bus.clone();
                (bus.connect(), Box::new(move || bus.subscriptions()))
            }
            Self::Nats(server) => {
                let transport = nats(server.url()).await;
                let counted = Arc::clone(&transport);
                (transport, Box::new(move || counted.pending_requests()))
            }
        };
        wait_until_connected(&*transport, 1).await;
        transport.barrier().await.expect("a barrier of a new connection");
        if let Self::Nats(_) = self {
            // The transport has a question of its own about each new connection: what the server refused of it.
            eventually("nothing is open", async || count() == 0).await;
        }
        (transport, count)
    }

    fn go_away(&mut self) {
        match self {
            Self::Memory(bus) => bus.set_online(false),
            Self::Nats(server) => server.kill(),
        }
    }

    fn reconnect(&mut self) {
        match self {
            Self::Memory(bus) => {
                bus.set_black_hole(false);
                bus.set_online(true);
            }
            Self::Nats(server) => server.restart(),
        }
    }

    /// The broker stops answering, but its connections stay.
    fn go_silent(&self) {
        match self {
            Self::Memory(bus) => bus.set_black_hole(true),
            Self::Nats(server) => server.freeze(),
        }
    }
}

/// Runs each case over both transports, each time with a broker of its own.
macro_rules! on_both_transports {
    ($($case:ident $(with $options:ident)?),* $(,)?) => {
        mod over_memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::within_limit(super::$case(super::memory_broker!($($options)?))).await;
                }
            )*
        }
        mod over_nats {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::within_limit(super::$case(super::nats_broker!($($options)?))).await;
                }
            )*
        }
    };
}

macro_rules! memory_broker {
    () => {
        super::Broker::Memory(super::MemoryBus::new())
    };
    (small_payloads) => {
        super::Broker::Memory(super::MemoryBus::with_max_payload(super::SMALL))
    };
}

macro_rules! nats_broker {
    () => {
        super::Broker::Nats(super::NatsServer::start())
    };
    (small_payloads) => {
        super::Broker::Nats(super::NatsServer::start_with(super::ServerOptions {
            max_payload: Some(super::SMALL),
            ..Default::default()
        }))
    };
}

use {memory_broker, nats_broker};

on_both_transports! {
    messages_arrive_in_the_order_in_which_they_were_published,
    a_wildcard_subscription_sees_one_order_across_subjects,
    a_star_is_one_token_and_a_last_greater_than_is_one_or_more,
    one_member_of_a_queue_group_gets_each_message,
    members_of_one_group_by_different_patterns_share_a_message,
    a_dropped_subscription_gets_nothing_more_and_its_group_goes_on,
    a_stopped_subscription_gives_what_has_come_and_then_the_end,
    a_request_is_answered,
    a_request_that_nobody_listens_to_is_refused_at_once,
    an_unanswered_request_times_out_and_leaves_nothing_behind,
    an_answer_that_is_not_accepted_is_waited_past,
    a_payload_over_the_limit_is_refused_and_the_connection_lives with small_payloads,
    a_subject_that_would_break_the_protocol_is_refused,
    while_the_broker_is_away_calls_fail_and_keep_their_messages,
    the_watch_shows_an_outage_and_a_return_as_another_generation,
    subscriptions_survive_an_outage,
    a_subscription_made_in_an_outage_works_after_it,
    a_waiting_request_fails_when_the_connection_goes,
    barriers_of_many_callers_confirm_what_was_published_before,
    a_barrier_that_waits_fails_when_the_connection_goes,
    a_barrier_of_a_silent_broker_times_out,
    an_unread_subscription_drops_and_counts_what_is_over_capacity,
    closing_sends_what_was_taken_and_ends_subscriptions_and_calls,
    closing_in_an_outage_ends_subscriptions_and_calls,
    dropping_a_transport_ends_its_subscriptions_only,
}

async fn messages_arrive_in_the_order_in_which_they_were_published(broker: Broker) {
    let (publisher, reader) = (broker.connect().await, broker.connect().await);
    let mut subscription = reader.subscribe("numbers", None).await.unwrap();

    let mut numbers: VecDeque<Outgoing> = (0..10_000).map(|number| outgoing("numbers", &number.to_string())).collect();
    publisher.publish(&mut numbers).await.unwrap();

    assert!(numbers.is_empty());
    flush_all(&[&publisher, &reader]).await;
    let expected: Vec<String> = (0..10_000).map(|number| number.to_string()).collect();
    assert_eq!(texts(received(&mut subscription)), expected);
}

async fn a_wildcard_subscription_sees_one_order_across_subjects(broker: Broker) {
    let (publisher, reader) = (broker.connect().await, broker.connect().await);
    let mut subscription = reader.subscribe("orders.*", None).await.unwrap();

    let sent: Vec<String> = (0..1_000).map(|number| format!("orders.{}", number % 7)).collect();
    publisher.publish(&mut sent.iter().map(|subject| outgoing(subject, "")).collect()).await.unwrap();

    flush_all(&[&publisher, &reader]).await;
    let seen: Vec<String> =
        received(&mut subscription).into_iter().map(|message| message.subject.to_string()).collect();
    assert_eq!(seen, sent);
}

async fn a_star_is_one_token_and_a_last_greater_than_is_one_or_more(broker: Broker) {
    let transport = broker.connect().await;
    let mut subscriptions = Vec::new();
    for pattern in ["a.b", "a.*", "*.b", "a.*.c", "a.>", ">"] {
        subscriptions.push((pattern, transport.subscribe(pattern, None).await.unwrap()));
    }

    let subjects = ["a", "a.b", "a.c", "a.b.c", "x.b", "a.b.c.d"];
    transport.publish(&mut subjects.iter().map(|subject| outgoing(subject, subject)).collect()).await.unwrap();

    flush_all(&[&transport]).await;
    let seen: BTreeMap<&str, Vec<String>> = subscriptions
        .iter_mut()
        .map(|(pattern, subscription)| {
            // Without the inboxes that a barrier is allowed to use.
            let messages = received(subscription).into_iter().filter(|message| !message.subject.starts_with("_INBOX"));
            (*pattern, texts(messages.collect()))
        })
        .collect();
    let expected = BTreeMap::from([
        ("a.b", vec!["a.b"]),
        ("a.*", vec!["a.b", "a.c"]),
        ("*.b", vec!["a.b", "x.b"]),
        ("a.*.c", vec!["a.b.c"]),
        ("a.>", vec!["a.b", "a.c", "a.b.c", "a.b.c.d"]),
        (">", subjects.to_vec()),
    ]);
    assert_eq!(seen, expected.into_iter().map(|(pattern, seen)| (pattern, owned(&seen))).collect());
}

async fn one_member_of_a_queue_group_gets_each_message(broker: Broker) {
    let (publisher, one, other) = (broker.connect().await, broker.connect().await, broker.connect().await);
    let mut workers = [
        one.subscribe("jobs", Some("workers")).await.unwrap(),
        one.subscribe("jobs", Some("workers")).await.unwrap(),
        other.subscribe("jobs", Some("workers")).await.unwrap(),
    ];
    let mut lone_auditor = other.subscribe("jobs", Some("auditors")).await.unwrap();
    let mut plain = [one.subscribe("jobs", None).await.unwrap(), other.subscribe("jobs", None).await.unwrap()];

    let jobs: Vec<String> = (1000..1300).map(|job| job.to_string()).collect();
    publisher.publish(&mut jobs.iter().map(|job| outgoing("jobs", job)).collect()).await.unwrap();

    flush_all(&[&publisher, &one, &other]).await;
    let by_worker: Vec<Vec<String>> = workers.iter_mut().map(|worker| texts(received(worker))).collect();
    assert!(by_worker.iter().all(|jobs| jobs.len() > 10), "all take part: {by_worker:?}");
    let mut done = by_worker.concat();
    done.sort();
    assert_eq!(done, jobs, "each job once among the workers");
    assert_eq!(texts(received(&mut lone_auditor)), jobs);
    for subscription in &mut plain {
        assert_eq!(texts(received(subscription)), jobs);
    }
}

async fn members_of_one_group_by_different_patterns_share_a_message(broker: Broker) {
    let transport = broker.connect().await;
    let mut exact = transport.subscribe("jobs.a", Some("workers")).await.unwrap();
    let mut wildcard = transport.subscribe("jobs.*", Some("workers")).await.unwrap();

    let jobs: Vec<String> = (1000..1100).map(|job| job.to_string()).collect();
    transport.publish(&mut jobs.iter().map(|job| outgoing("jobs.a", job)).collect()).await.unwrap();

    flush_all(&[&transport]).await;
    let mut done = [texts(received(&mut exact)), texts(received(&mut wildcard))].concat();
    done.sort();
    assert_eq!(done, jobs);
}

async fn a_dropped_subscription_gets_nothing_more_and_its_group_goes_on(broker: Broker) {
    let transport = broker.connect().await;
    let leaving = transport.subscribe("jobs", Some("workers")).await.unwrap();
    let mut staying = transport.subscribe("jobs", Some("workers")).await.unwrap();
    drop(leaving);

    let jobs: Vec<String> = (1000..1100).map(|job| job.to_string()).collect();
    transport.publish(&mut jobs.iter().map(|job| outgoing("jobs", job)).collect()).await.unwrap();
    flush_all(&[&transport]).await;
    assert_eq!(texts(received(&mut staying)), jobs);

    drop(staying);
    let nobody = transport.request("jobs", Bytes::new(), NEVER).await;
    assert_eq!(nobody.unwrap_err(), TransportError::NoResponders("jobs".to_owned()));
}

async fn a_stopped_subscription_gives_what_has_come_and_then_the_end(broker: Broker) {
    let (publisher, reader) = (broker.connect().await, broker.connect().await);
    let mut subscription = reader.subscribe("jobs", Some("workers")).await.unwrap();
    let jobs: Vec<String> = (1000..1100).map(|job| job.to_string()).collect();
    publisher.publish(&mut jobs.iter().map(|job| outgoing("jobs", job)).collect()).await.unwrap();
    flush_all(&[&publisher, &reader]).await;

    subscription.stop().await.unwrap();
    flush_all(&[&reader]).await;
    let nobody = publisher.request("jobs", Bytes::new(), NEVER).await;
    assert_eq!(nobody.unwrap_err(), TransportError::NoResponders("jobs".to_owned()));
    for job in jobs {
        assert_eq!(text(&subscription.next().await.expect("it came before")), job);
    }
    assert!(subscription.next().await.is_none());
}

async fn a_request_is_answered(broker: Broker) {
    let (asking, answering) = (broker.connect().await, broker.connect().await);
    let mut questions = answering.subscribe("double", Some("service")).await.unwrap();
    let service = tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            let answer = text(&question).repeat(2);
            let subject = question.reply.expect("a reply subject");
            answering.publish(&mut VecDeque::from([outgoing(&subject, &answer)])).await.unwrap();
        }
    });

    // Several at a time, so that answers have to find the right one.
    let words: Vec<String> = (0..50).map(|number| format!("word {number}, ")).collect();
    let asked = words.iter().map(|word| asking.request("double", Bytes::from(word.clone()), LIMIT));
    let answers: Vec<String> =
        futures_util::future::join_all(asked).await.into_iter().map(|answer| text(&answer.unwrap())).collect();

    assert_eq!(answers, words.iter().map(|word| word.repeat(2)).collect::<Vec<_>>());
    service.abort();
}

async fn a_request_that_nobody_listens_to_is_refused_at_once(broker: Broker) {
    let (transport, open) = broker.connect_counting().await;

    let refusal = transport.request("nobody.here", Bytes::new(), NEVER).await.unwrap_err();

    assert_eq!(refusal, TransportError::NoResponders("nobody.here".to_owned()));
    assert_eq!(open(), 0);
}

async fn an_unanswered_request_times_out_and_leaves_nothing_behind(broker: Broker) {
    let silent = broker.connect().await;
    let mut questions = silent.subscribe("silence", None).await.unwrap();
    let (asking, open) = broker.connect_counting().await;
    let before = open();
    let patience = Duration::from_millis(200);

    let started = Instant::now();
    let timed_out = asking.request("silence", Bytes::new(), patience).await.unwrap_err();

    assert_eq!(timed_out, TransportError::Timeout(patience));
    assert!(started.elapsed() >= patience);
    assert_eq!(open(), before, "after a timeout");

    // One whose caller went away before the answer, seen by the question's arrival.
    questions.next().await.expect("the first question");
    let asked = tokio::spawn({
        let asking = Arc::clone(&asking);
        async move { asking.request("silence", Bytes::new(), NEVER).await }
    });
    let question = questions.next().await.expect("the second question");
    assert_eq!(open(), before + 1);
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
    assert_eq!(open(), before, "after a cancellation");

    // The late answer finds nobody and does no harm.
    let late = outgoing(&question.reply.expect("a reply subject"), "late");
    silent.publish(&mut VecDeque::from([late])).await.unwrap();
    flush_all(&[&silent, &asking]).await;
    assert_eq!(open(), before, "after a late answer");
}

async fn an_answer_that_is_not_accepted_is_waited_past(broker: Broker) {
    let answering = broker.connect().await;
    let mut questions = answering.subscribe("question", None).await.unwrap();
    let (asking, open) = broker.connect_counting().await;
    let before = open();
    let ask = |limit: Duration| {
        let asking = Arc::clone(&asking);
        tokio::spawn(async move {
            asking.request_where("question", Bytes::new(), limit, &|answer| answer.payload.starts_with(b"yes")).await
        })
    };
    let answer = async |reply: &str, texts: &[&str]| {
        answering.publish(&mut texts.iter().map(|text| outgoing(reply, text)).collect()).await.unwrap();
    };

    let asked = ask(NEVER);
    let reply = questions.next().await.expect("a question").reply.expect("a reply subject");
    answer(&reply, &["", "{\"stream\":\"EVENTS\",\"seq\":1}", "no"]).await;
    flush_all(&[&answering, &asking]).await;
    assert!(!asked.is_finished(), "three answers came and none was accepted");
    answer(&reply, &["yes, the first", "yes, the second"]).await;
    assert_eq!(text(&asked.await.unwrap().unwrap()), "yes, the first");
    assert_eq!(open(), before, "after an answer");

    // What is refused does not lengthen the wait, and leaves nothing behind.
    let limit = Duration::from_millis(200);
    let asked = ask(limit);
    let reply = questions.next().await.expect("a question").reply.expect("a reply subject");
    answer(&reply, &["no"; 100]).await;
    assert_eq!(asked.await.unwrap().unwrap_err(), TransportError::Timeout(limit));
    assert_eq!(open(), before, "after a timeout");
}

async fn a_payload_over_the_limit_is_refused_and_the_connection_lives(broker: Broker) {
    let transport = broker.connect().await;
    let mut subscription = transport.subscribe("sizes", None).await.unwrap();
    let connection = transport.connection();
    let before = *connection.borrow();
    assert_eq!(transport.max_payload(), Some(SMALL));
    let of_size = |bytes: usize| Outgoing { subject: "sizes".into(), payload: Bytes::from(vec![b'x'; bytes]) };
    let too_large = TransportError::TooLarge { bytes: SMALL + 1, limit: SMALL };

    let mut messages = VecDeque::from([of_size(SMALL), of_size(SMALL + 1), of_size(7)]);
    assert_eq!(transport.publish(&mut messages).await, Err(too_large.clone()));
    assert_eq!(messages, [of_size(7)], "the one at fault is removed, the rest is kept");
    transport.publish(&mut messages).await.unwrap();
    let asked = transport.request("sizes", Bytes::from(vec![b'x'; SMALL + 1]), NEVER).await;

    assert_eq!(asked.unwrap_err(), too_large);
    flush_all(&[&transport]).await;
    let sizes: Vec<usize> = received(&mut subscription).iter().map(|message| message.payload.len()).collect();
    assert_eq!(sizes, [SMALL, 7]);
    assert_eq!(*connection.borrow(), before);
}

async fn a_subject_that_would_break_the_protocol_is_refused(broker: Broker) {
    let transport = broker.connect().await;
    let mut subscription = transport.subscribe("good", None).await.unwrap();
    let connection = transport.connection();
    let before = *connection.borrow();

    // Over 4,096 bytes a server ends the connection, and a subscription of that size would end each one that follows.
    let giant = "g".repeat(5_000);
    for subject in ["", "a b", "a\r\nPUB x", "a..b", giant.as_str()] {
        let mut messages = VecDeque::from([outgoing(subject, "bad"), outgoing("good", subject)]);
        assert!(matches!(transport.publish(&mut messages).await, Err(TransportError::Refused(_))), "{subject:?}");
        assert_eq!(messages, [outgoing("good", subject)]);
        transport.publish(&mut messages).await.unwrap();
        let subscribed = transport.subscribe(subject, None).await;
        assert!(matches!(subscribed, Err(TransportError::Refused(_))), "{subject:?}");
        let asked = transport.request(subject, Bytes::new(), NEVER).await;
        assert!(matches!(asked, Err(TransportError::Refused(_))), "{subject:?}");
    }
    let in_group = transport.subscribe("good", Some(&giant)).await;
    assert!(matches!(in_group, Err(TransportError::Refused(_))));
    let to_many = transport.publish(&mut VecDeque::from([outgoing("a.*", "")])).await;
    assert!(matches!(to_many, Err(TransportError::Refused(_))));

    flush_all(&[&transport]).await;
    assert_eq!(received(&mut subscription).len(), 5);
    assert_eq!(*connection.borrow(), before);
}

async fn while_the_broker_is_away_calls_fail_and_keep_their_messages(mut broker: Broker) {
    let transport = broker.connect().await;
    let mut subscription = transport.subscribe("news", None).await.unwrap();
    broker.go_away();
    wait_until_away(&*transport).await;

    let owed: VecDeque<Outgoing> = ["one", "two", "three"].map(|text| outgoing("news", text)).into();
    let mut messages = owed.clone();
    assert_eq!(transport.publish(&mut messages).await, Err(TransportError::Disconnected));
    assert_eq!(messages, owed);
    assert_eq!(transport.barrier().await, Err(TransportError::Disconnected));
    let asked = transport.request("news", Bytes::new(), NEVER).await;
    assert_eq!(asked.unwrap_err(), TransportError::Disconnected);

    broker.reconnect();
    wait_until_connected(&*transport, 2).await;
    transport.publish(&mut messages).await.unwrap();
    flush_all(&[&transport]).await;
    assert_eq!(texts(received(&mut subscription)), ["one", "two", "three"], "once each, nothing queued meanwhile");
}

async fn the_watch_shows_an_outage_and_a_return_as_another_generation(mut broker: Broker) {
    let transport = broker.connect().await;
    let watch = transport.connection();
    assert_eq!(*watch.borrow(), Connection { connected: true, generation: 1 });

    for generation in 1..4 {
        broker.go_away();
        wait_until_away(&*transport).await;
        assert_eq!(*watch.borrow(), Connection { connected: false, generation });
        broker.reconnect();
        wait_until_connected(&*transport, generation + 1).await;
        assert_eq!(*watch.borrow(), Connection { connected: true, generation: generation + 1 });
    }
}

async fn subscriptions_survive_an_outage(mut broker: Broker) {
    let (publisher, reader) = (broker.connect().await, broker.connect().await);
    let mut subscriptions = [
        reader.subscribe("news.today", None).await.unwrap(),
        reader.subscribe("news.*", None).await.unwrap(),
        reader.subscribe("news.today", Some("group")).await.unwrap(),
    ];
    let dropped_meanwhile = reader.subscribe("old", None).await.unwrap();

    broker.go_away();
    for transport in [&publisher, &reader] {
        wait_until_away(&**transport).await;
    }
    drop(dropped_meanwhile);
    broker.reconnect();
    for transport in [&publisher, &reader] {
        wait_until_connected(&**transport, 2).await;
    }
    flush_all(&[&reader]).await;
    publisher.publish(&mut VecDeque::from([outgoing("news.today", "back")])).await.unwrap();

    flush_all(&[&publisher, &reader]).await;
    for subscription in &mut subscriptions {
        assert_eq!(texts(received(subscription)), ["back"]);
    }
    let nobody = publisher.request("old", Bytes::new(), NEVER).await;
    assert_eq!(nobody.unwrap_err(), TransportError::NoResponders("old".to_owned()));
}

async fn a_subscription_made_in_an_outage_works_after_it(mut broker: Broker) {
    let transport = broker.connect().await;
    broker.go_away();
    wait_until_away(&*transport).await;

    let mut subscription = transport.subscribe("news", None).await.unwrap();

    broker.reconnect();
    wait_until_connected(&*transport, 2).await;
    transport.publish(&mut VecDeque::from([outgoing("news", "back")])).await.unwrap();
    assert_eq!(text(&subscription.next().await.expect("a message")), "back");
}

async fn a_waiting_request_fails_when_the_connection_goes(mut broker: Broker) {
    let (asking, answering) = (broker.connect().await, broker.connect().await);
    let mut questions = answering.subscribe("question", None).await.unwrap();
    let asked = tokio::spawn({
        let asking = Arc::clone(&asking);
        async move { asking.request("question", Bytes::new(), NEVER).await }
    });
    questions.next().await.expect("the question");

    broker.go_away();

    assert_eq!(asked.await.unwrap().unwrap_err(), TransportError::Disconnected);
}

async fn barriers_of_many_callers_confirm_what_was_published_before(broker: Broker) {
    let (publisher, reader) = (broker.connect().await, broker.connect().await);
    let mut subscription = reader.subscribe("numbers", None).await.unwrap();

    let callers = (0..100).map(|number: usize| {
        let publisher = Arc::clone(&publisher);
        tokio::spawn(async move {
            publisher.publish(&mut VecDeque::from([outgoing("numbers", &number.to_string())])).await?;
            publisher.barrier().await
        })
    });
    for caller in futures_util::future::join_all(callers).await {
        assert_eq!(caller.unwrap(), Ok(()));
    }

    flush_all(&[&reader]).await;
    assert_eq!(received(&mut subscription).len(), 100);
}

async fn a_barrier_that_waits_fails_when_the_connection_goes(mut broker: Broker) {
    let transport = broker.connect().await;
    broker.go_silent();
    let mut barrier = transport.barrier();
    assert_eq!(barrier.as_mut().now_or_never(), None, "there is nothing to confirm it");
    let started = Instant::now();

    broker.go_away();

    assert_eq!(barrier.await, Err(TransportError::Disconnected));
    assert!(started.elapsed() < BARRIER_TIMEOUT, "by the loss, not by the timeout");
    broker.reconnect();
    wait_until_connected(&*transport, 2).await;
    assert_eq!(transport.barrier().await, Ok(()));
}

async fn a_barrier_of_a_silent_broker_times_out(broker: Broker) {
    let transport = broker.connect().await;
    broker.go_silent();
    let started = Instant::now();

    let error = transport.barrier().await.unwrap_err();

    // A NATS client may notice the silence by itself a little earlier or later than the timeout.
    assert!(matches!(error, TransportError::Timeout(BARRIER_TIMEOUT) | TransportError::Disconnected), "{error:?}");
    assert!(started.elapsed() > Duration::from_secs(1));
}

async fn an_unread_subscription_drops_and_counts_what_is_over_capacity(broker: Broker) {
    const EXCESS: usize = 1_000;
    let (publisher, reader) = (broker.connect().await, broker.connect().await);
    let mut unread = reader.subscribe("numbers", None).await.unwrap();
    let numbers = (0..SUBSCRIPTION_CAPACITY + EXCESS).map(|number| outgoing("numbers", &number.to_string()));

    publisher.publish(&mut numbers.collect()).await.unwrap();

    flush_all(&[&publisher, &reader]).await;
    let kept = texts(received(&mut unread));
    assert_eq!(kept, (0..SUBSCRIPTION_CAPACITY).map(|number| number.to_string()).collect::<Vec<_>>());
    match broker {
        Broker::Memory(_) => assert_eq!(reader.dropped(), EXCESS as u64),
        // The client's reports come through a queue that drops, too.
        Broker::Nats(_) => {
            eventually("messages are dropped", async || reader.dropped() > 0).await;
            assert!(reader.dropped() <= EXCESS as u64);
        }
    }
    assert_eq!(publisher.dropped(), 0);

    // It goes on with what comes next.
    publisher.publish(&mut VecDeque::from([outgoing("numbers", "next")])).await.unwrap();
    assert_eq!(text(&unread.next().await.expect("a message")), "next");
}

async fn closing_sends_what_was_taken_and_ends_subscriptions_and_calls(broker: Broker) {
    let (closing, reader) = (broker.connect().await, broker.connect().await);
    let mut elsewhere = reader.subscribe("numbers", None).await.unwrap();
    let mut own = closing.subscribe("numbers", None).await.unwrap();
    let sent: Vec<String> = (0..5_000).map(|number| number.to_string()).collect();
    closing.publish(&mut sent.iter().map(|number| outgoing("numbers", number)).collect()).await.unwrap();

    closing.close().await;

    flush_all(&[&reader]).await;
    assert_eq!(texts(received(&mut elsewhere)), sent);
    let mut last_words = Vec::new();
    while let Some(message) = own.next().await {
        last_words.push(text(&message));
    }
    assert_eq!(last_words, sent, "what had arrived is still there to be read, then the end");
    assert_all_closed(&*closing).await;
    assert!(reader.connection().borrow().connected);

    closing.close().await;
}

async fn closing_in_an_outage_ends_subscriptions_and_calls(mut broker: Broker) {
    let transport = broker.connect().await;
    let mut subscription = transport.subscribe("news", None).await.unwrap();
    broker.go_away();
    wait_until_away(&*transport).await;

    transport.close().await;

    assert!(subscription.next().await.is_none());
    assert_all_closed(&*transport).await;
}

async fn dropping_a_transport_ends_its_subscriptions_only(broker: Broker) {
    let (dropped, staying) = (broker.connect().await, broker.connect().await);
    let mut ending = dropped.subscribe("news", None).await.unwrap();
    let mut going_on = staying.subscribe("news", None).await.unwrap();
    let mut watch = dropped.connection();

    drop(dropped);

    assert!(ending.next().await.is_none());
    assert!(!watch.borrow_and_update().connected);
    staying.publish(&mut VecDeque::from([outgoing("news", "still here")])).await.unwrap();
    assert_eq!(text(&going_on.next().await.expect("a message")), "still here");
}

mod over_nats_alone {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_broker_that_is_absent_at_the_start_is_waited_for() {
        within_limit(async {
            let mut server = NatsServer::absent();
            let transport = nats(server.url()).await;
            assert_eq!(*transport.connection().borrow(), Connection { connected: false, generation: 0 });
            assert_eq!(transport.max_payload(), None, "nobody knows yet");
            let mut messages = VecDeque::from([outgoing("news", "first")]);
            assert_eq!(transport.publish(&mut messages).await, Err(TransportError::Disconnected));
            let mut subscription = transport.subscribe("news", None).await.unwrap();

            server.restart();

            wait_until_connected(&*transport, 1).await;
            transport.publish(&mut messages).await.unwrap();
            assert_eq!(text(&subscription.next().await.expect("a message")), "first");
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stuck_publish_ends_with_the_outage_and_keeps_the_rest() {
        within_limit(async {
            let mut server = NatsServer::start();
            let transport = nats(server.url()).await;
            wait_until_connected(&*transport, 1).await;
            transport.barrier().await.unwrap();
            server.freeze();
            // 1 GiB, far more than the sockets and the client's queue of 2,048 messages take.
            let payload = Bytes::from(vec![0; 256 * 1024]);
            let sent: VecDeque<Outgoing> = (0..4096)
                .map(|number| Outgoing { subject: format!("bulk.{number}").into(), payload: payload.clone() })
                .collect();
            let mut messages = sent.clone();

            // Dropped while it waits: it waits for as long as the silence is not noticed.
            let stuck = tokio::time::timeout(Duration::from_millis(500), transport.publish(&mut messages)).await;
            assert!(stuck.is_err(), "{stuck:?}");
            assert!(!messages.is_empty() && messages.len() < sent.len(), "{} left", messages.len());
            let mut publish = transport.publish(&mut messages);
            assert_eq!(publish.as_mut().now_or_never(), None, "it waits again");
            server.kill();
            assert_eq!(publish.await, Err(TransportError::Disconnected));

            assert!(!messages.is_empty());
            let taken = sent.len() - messages.len();
            assert!(messages.iter().eq(sent.iter().skip(taken)), "the rest, in order, from {taken} on");
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_broker_that_fell_silent_is_noticed_by_its_missing_pongs() {
        tokio::time::timeout(2 * LIMIT, async {
            let server = NatsServer::start();
            let transport = nats(server.url()).await;
            wait_until_connected(&*transport, 1).await;
            server.freeze();

            let mut watch = transport.connection();
            watch.wait_for(|connection| !connection.connected).await.unwrap();

            server.resume();
            wait_until_connected(&*transport, 2).await;
        })
        .await
        .expect("noticed in time");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_in_lame_duck_mode_is_left_for_another() {
        within_limit(async {
            let (leaving, mut staying) = (NatsServer::start(), NatsServer::absent());
            let transport = nats(format!("{},{}", leaving.url(), staying.url())).await;
            wait_until_connected(&*transport, 1).await;
            let mut subscription = transport.subscribe("news", None).await.unwrap();
            staying.restart();

            leaving.signal("ldm");

            wait_until_connected(&*transport, 2).await;
            let elsewhere = nats(staying.url()).await;
            wait_until_connected(&*elsewhere, 1).await;
            transport.barrier().await.unwrap();
            elsewhere.publish(&mut VecDeque::from([outgoing("news", "from the other server")])).await.unwrap();
            assert_eq!(text(&subscription.next().await.expect("a message")), "from the other server");
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_login_in_the_url_is_used_and_never_shown() {
        within_limit(async {
            let login = Some(("user".to_owned(), "p@ss".to_owned()));
            let server = NatsServer::start_with(ServerOptions { login, ..Default::default() });
            let url = server.url().replace("nats://", "nats://user:p%40ss@");
            let options = NatsOptions::new(url, "test");
            assert!(!format!("{options:?}").contains("ss"), "{options:?}");

            let transport = NatsTransport::connect(options).await.unwrap();

            wait_until_connected(&*transport, 1).await;
            assert_eq!(transport.barrier().await, Ok(()));
            assert!(!format!("{transport:?}").contains("p@ss"), "{transport:?}");
            assert!(!format!("{transport:?}").contains("p%40ss"), "{transport:?}");
        })
        .await;
    }
}

mod over_memory_alone {
    use super::*;

    #[tokio::test]
    async fn members_of_a_queue_group_take_turns_in_order_of_subscription() {
        let bus = MemoryBus::new();
        let transport = bus.connect();
        let mut members = Vec::new();
        for _ in 0..3 {
            members.push(transport.subscribe("jobs", Some("workers")).await.unwrap());
        }

        transport.publish(&mut (0..7).map(|job| outgoing("jobs", &job.to_string())).collect()).await.unwrap();

        let done: Vec<Vec<String>> = members.iter_mut().map(|member| texts(received(member))).collect();
        assert_eq!(done, [owned(&["0", "3", "6"]), owned(&["1", "4"]), owned(&["2", "5"])]);
    }

    #[tokio::test]
    async fn a_black_hole_takes_messages_and_delivers_none() {
        let bus = MemoryBus::new();
        let transport = bus.connect();
        let mut subscription = transport.subscribe("news", None).await.unwrap();

        bus.set_black_hole(true);
        let mut messages = VecDeque::from([outgoing("news", "lost")]);
        assert_eq!(transport.publish(&mut messages).await, Ok(()));
        bus.set_black_hole(false);
        transport.publish(&mut VecDeque::from([outgoing("news", "seen")])).await.unwrap();

        assert!(messages.is_empty());
        assert_eq!(texts(received(&mut subscription)), ["seen"]);
    }

    #[tokio::test]
    async fn a_connection_made_while_the_bus_is_away_begins_with_its_return() {
        let bus = MemoryBus::new();
        bus.set_online(false);
        let transport = bus.connect();
        assert_eq!(*transport.connection().borrow(), Connection { connected: false, generation: 0 });

        bus.set_online(true);

        assert_eq!(*transport.connection().borrow(), Connection { connected: true, generation: 1 });
    }

    #[tokio::test]
    async fn a_connection_keeps_the_payload_limit_that_it_was_made_with() {
        let bus = MemoryBus::with_max_payload(SMALL);
        bus.set_online(false);
        let transport = bus.connect();
        assert_eq!(transport.max_payload(), None);
        bus.set_online(true);
        bus.set_max_payload(7);
        assert_eq!(transport.max_payload(), Some(SMALL));

        bus.set_online(false);
        assert_eq!(transport.max_payload(), Some(SMALL), "the last one's");
        bus.set_online(true);

        assert_eq!(transport.max_payload(), Some(7));
        let published = transport.publish(&mut VecDeque::from([outgoing("news", "too long")])).await;
        assert_eq!(published, Err(TransportError::TooLarge { bytes: 8, limit: 7 }));
    }

    #[tokio::test]
    async fn a_subscription_refused_later_is_live_again_by_itself() {
        let bus = MemoryBus::new();
        let (reader, publisher) = (bus.connect(), bus.connect());
        let mut news = reader.subscribe("news.*", Some("readers")).await.unwrap();
        let mut other = reader.subscribe("other", None).await.unwrap();
        let (denied, denied_at_all) = (news.denied(), reader.denied());
        let publish = async |text: &str| {
            let mut messages = VecDeque::from([outgoing("news.today", text), outgoing("other", text)]);
            publisher.publish(&mut messages).await.unwrap();
        };

        publish("before").await;
        bus.deny(Operation::Subscribe, "news.>");
        publish("meanwhile").await;

        let reason = "Permissions Violation for Subscription to \"news.*\"".to_owned();
        let denial = Denial { operation: Operation::Subscribe, subject: "news.*".to_owned(), reason: reason.clone() };
        assert_eq!(*denied.borrow(), Some(denial.clone()));
        assert_eq!(denied_at_all.borrow().subscribe, BTreeMap::from([("news.*".to_owned(), reason)]));
        assert_eq!(denied_at_all.borrow().subscription(), Some(denial.clone()));
        assert!(other.denied().borrow().is_none() && publisher.denied().borrow().subscribe.is_empty());
        assert_eq!(reader.subscribe("news.*", None).await.unwrap_err(), TransportError::Denied(denial));
        let nobody = publisher.request("news.today", Bytes::new(), NEVER).await;
        assert_eq!(nobody.unwrap_err(), TransportError::NoResponders("news.today".to_owned()));

        bus.allow(Operation::Subscribe, "news.>");
        publish("after").await;
        assert_eq!(*denied.borrow(), None);
        assert_eq!(*denied_at_all.borrow(), Denied::default());
        assert_eq!(texts(received(&mut news)), ["before", "after"]);
        assert_eq!(texts(received(&mut other)), ["before", "meanwhile", "after"]);
    }

    #[tokio::test]
    async fn a_subscription_too_many_is_refused_until_there_is_room() {
        let bus = MemoryBus::new();
        bus.set_max_subscriptions(2);
        let (one, other) = (bus.connect(), bus.connect());
        let first = one.subscribe("a", None).await.unwrap();
        let _second = one.subscribe("b", None).await.unwrap();
        assert!(matches!(one.subscribe("c", None).await, Err(TransportError::Denied(_))));
        other.subscribe("c", None).await.expect("each connection has a number of its own");

        drop(first);
        let third = one.subscribe("c", None).await.expect("there is room");
        bus.set_max_subscriptions(1);
        assert!(third.denied().borrow().is_some(), "the oldest stay");
        bus.set_max_subscriptions(2);
        assert!(third.denied().borrow().is_none());
    }

    #[tokio::test]
    async fn a_refused_message_is_told_later_and_its_subjects_next_at_once() {
        let bus = MemoryBus::new();
        let transport = bus.connect();
        let mut subscription = transport.subscribe(">", None).await.unwrap();
        let denied = transport.denied();
        bus.deny(Operation::Publish, "news.*");

        let mut messages: VecDeque<Outgoing> =
            ["news.a", "other", "news.a", "news.b", "other"].map(|subject| outgoing(subject, subject)).into();
        let refusal = transport.publish(&mut messages).await.unwrap_err();

        assert!(matches!(&refusal, TransportError::Denied(denial) if denial.subject == "news.a"), "{refusal}");
        assert_eq!(messages.len(), 2, "the third is removed");
        assert_eq!(transport.publish(&mut messages).await, Ok(()), "nobody knew of news.b");
        assert_eq!(texts(received(&mut subscription)), ["other", "other"]);
        assert!(denied.borrow().publish.iter().eq(["news.a", "news.b"]));
        assert_eq!(denied.borrow().refused, 3);
        assert_eq!(denied.borrow().publishing(|subject| subject.ends_with('b')).unwrap().subject, "news.b");
        let asked = transport.request("news.a", Bytes::new(), NEVER).await;
        assert!(matches!(asked, Err(TransportError::Denied(_))), "{asked:?}");

        bus.allow(Operation::Publish, "news.*");
        assert!(denied.borrow().publish.is_empty());
        transport.publish(&mut VecDeque::from([outgoing("news.a", "again")])).await.unwrap();
        assert_eq!(texts(received(&mut subscription)), ["again"]);
    }

    #[tokio::test]
    async fn a_late_drop_after_closing_leaves_other_subscriptions_alone() {
        let bus = MemoryBus::new();
        let (closing, staying) = (bus.connect(), bus.connect());
        let closed = closing.subscribe("news", None).await.unwrap();
        closing.close().await;
        // Takes the place that the closed one had.
        let mut subscription = staying.subscribe("news", None).await.unwrap();

        drop(closed);

        staying.publish(&mut VecDeque::from([outgoing("news", "seen")])).await.unwrap();
        assert_eq!(texts(received(&mut subscription)), ["seen"]);
    }
}

/// A transport to the server at `url`, perhaps not connected yet.
async fn nats(url: String) -> Arc<NatsTransport> {
    NatsTransport::connect(NatsOptions::new(url, "test")).await.expect("a transport")
}

async fn within_limit(test: impl Future<Output = ()>) {
    // A barrier's own timeout is part of some tests.
    tokio::time::timeout(LIMIT + BARRIER_TIMEOUT, test).await.expect("the test ends in time");
}

async fn wait_until_connected(transport: &dyn Transport, generation: u64) {
    let mut watch = transport.connection();
    let up = watch.wait_for(|connection| connection.connected && connection.generation >= generation);
    tokio::time::timeout(LIMIT, up).await.expect("the connection comes up").expect("the transport lives");
}

async fn wait_until_away(transport: &dyn Transport) {
    let mut watch = transport.connection();
    let away = watch.wait_for(|connection| !connection.connected);
    tokio::time::timeout(LIMIT, away).await.expect("the loss is noticed").expect("the transport lives");
}

/// Waits until all that was published by the first of `transports` is where the others' readers find it: each barrier
/// is answered behind what the broker sent on that connection before.
async fn flush_all(transports: &[&Arc<dyn Transport>]) {
    for transport in transports {
        transport.barrier().await.expect("a barrier");
    }
}

/// What has arrived by now, without waiting.
fn received(subscription: &mut Subscription) -> Vec<Message> {
    let mut messages = Vec::new();
    // Unconstrained, since tokio would answer `Pending` every so often just to let others run.
    while let Some(Some(message)) = tokio::task::unconstrained(subscription.next()).now_or_never() {
        messages.push(message);
    }
    messages
}

async fn assert_all_closed(transport: &dyn Transport) {
    let mut messages = VecDeque::from([outgoing("late", "")]);
    assert_eq!(transport.publish(&mut messages).await, Err(TransportError::Closed));
    assert_eq!(messages.len(), 1);
    assert_eq!(transport.barrier().await, Err(TransportError::Closed));
    assert_eq!(transport.subscribe("late", None).await.unwrap_err(), TransportError::Closed);
    assert_eq!(transport.request("late", Bytes::new(), NEVER).await.unwrap_err(), TransportError::Closed);
    assert!(!transport.connection().borrow().connected);
}

fn outgoing(subject: &str, text: &str) -> Outgoing {
    Outgoing { subject: subject.into(), payload: Bytes::copy_from_slice(text.as_bytes()) }
}

fn text(message: &Message) -> String {
    String::from_utf8(message.payload.to_vec()).expect("text")
}

fn texts(messages: Vec<Message>) -> Vec<String> {
    messages.iter().map(text).collect()
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
