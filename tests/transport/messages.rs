//! What becomes of messages, requests and answers, over both transports.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use orchestrator_service::transport::{Outgoing, SUBSCRIPTION_CAPACITY, TransportError};

use crate::{
    broker::{Broker, NEVER, SMALL, flush_all, outgoing, owned, received, text, texts},
    support::waiting::{LIMIT, eventually},
};

pub(crate) async fn messages_arrive_in_the_order_in_which_they_were_published(broker: Broker) {
    let (publisher, reader) = (broker.connect().await, broker.connect().await);
    let mut subscription = reader.subscribe("numbers", None).await.unwrap();

    let mut numbers: VecDeque<Outgoing> = (0..10_000).map(|number| outgoing("numbers", &number.to_string())).collect();
    publisher.publish(&mut numbers).await.unwrap();

    assert!(numbers.is_empty());
    flush_all(&[&publisher, &reader]).await;
    let expected: Vec<String> = (0..10_000).map(|number| number.to_string()).collect();
    assert_eq!(texts(received(&mut subscription)), expected);
}

pub(crate) async fn a_wildcard_subscription_sees_one_order_across_subjects(broker: Broker) {
    let (publisher, reader) = (broker.connect().await, broker.connect().await);
    let mut subscription = reader.subscribe("orders.*", None).await.unwrap();

    let sent: Vec<String> = (0..1_000).map(|number| format!("orders.{}", number % 7)).collect();
    publisher.publish(&mut sent.iter().map(|subject| outgoing(subject, "")).collect()).await.unwrap();

    flush_all(&[&publisher, &reader]).await;
    let seen: Vec<String> =
        received(&mut subscription).into_iter().map(|message| message.subject.to_string()).collect();
    assert_eq!(seen, sent);
}

pub(crate) async fn a_star_is_one_token_and_a_last_greater_than_is_one_or_more(broker: Broker) {
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

pub(crate) async fn one_member_of_a_queue_group_gets_each_message(broker: Broker) {
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

pub(crate) async fn members_of_one_group_by_different_patterns_share_a_message(broker: Broker) {
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

pub(crate) async fn a_dropped_subscription_gets_nothing_more_and_its_group_goes_on(broker: Broker) {
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

pub(crate) async fn a_stopped_subscription_gives_what_has_come_and_then_the_end(broker: Broker) {
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

pub(crate) async fn an_unread_subscription_drops_and_counts_what_is_over_capacity(broker: Broker) {
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

pub(crate) async fn a_request_is_answered(broker: Broker) {
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

pub(crate) async fn a_request_that_nobody_listens_to_is_refused_at_once(broker: Broker) {
    let (transport, open) = broker.connect_counting().await;

    let refusal = transport.request("nobody.here", Bytes::new(), NEVER).await.unwrap_err();

    assert_eq!(refusal, TransportError::NoResponders("nobody.here".to_owned()));
    assert_eq!(open(), 0);
}

pub(crate) async fn an_unanswered_request_times_out_and_leaves_nothing_behind(broker: Broker) {
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

pub(crate) async fn an_answer_that_is_not_accepted_is_waited_past(broker: Broker) {
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

pub(crate) async fn a_payload_over_the_limit_is_refused_and_the_connection_lives(broker: Broker) {
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

pub(crate) async fn a_subject_that_would_break_the_protocol_is_refused(broker: Broker) {
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
