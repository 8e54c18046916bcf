//! What a connection that goes does to what is under way: outages, barriers and closing, over both transports.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use orchestrator_service::transport::{BARRIER_TIMEOUT, Connection, Outgoing, TransportError};

use crate::broker::{
    Broker, NEVER, assert_all_closed, flush_all, outgoing, received, text, texts, wait_until_away, wait_until_connected,
};

pub(crate) async fn while_the_broker_is_away_calls_fail_and_keep_their_messages(mut broker: Broker) {
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

pub(crate) async fn the_watch_shows_an_outage_and_a_return_as_another_generation(mut broker: Broker) {
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

pub(crate) async fn subscriptions_survive_an_outage(mut broker: Broker) {
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

pub(crate) async fn a_subscription_made_in_an_outage_works_after_it(mut broker: Broker) {
    let transport = broker.connect().await;
    broker.go_away();
    wait_until_away(&*transport).await;

    let mut subscription = transport.subscribe("news", None).await.unwrap();

    broker.reconnect();
    wait_until_connected(&*transport, 2).await;
    transport.publish(&mut VecDeque::from([outgoing("news", "back")])).await.unwrap();
    assert_eq!(text(&subscription.next().await.expect("a message")), "back");
}

pub(crate) async fn a_waiting_request_fails_when_the_connection_goes(mut broker: Broker) {
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

pub(crate) async fn barriers_of_many_callers_confirm_what_was_published_before(broker: Broker) {
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

pub(crate) async fn a_barrier_that_waits_fails_when_the_connection_goes(mut broker: Broker) {
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

pub(crate) async fn a_barrier_of_a_silent_broker_times_out(broker: Broker) {
    let transport = broker.connect().await;
    broker.go_silent();
    let started = Instant::now();

    let error = transport.barrier().await.unwrap_err();

    // A NATS client may notice the silence by itself a little earlier or later than the timeout.
    assert!(matches!(error, TransportError::Timeout(BARRIER_TIMEOUT) | TransportError::Disconnected), "{error:?}");
    assert!(started.elapsed() > Duration::from_secs(1));
}

pub(crate) async fn closing_sends_what_was_taken_and_ends_subscriptions_and_calls(broker: Broker) {
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

pub(crate) async fn closing_in_an_outage_ends_subscriptions_and_calls(mut broker: Broker) {
    let transport = broker.connect().await;
    let mut subscription = transport.subscribe("news", None).await.unwrap();
    broker.go_away();
    wait_until_away(&*transport).await;

    transport.close().await;

    assert!(subscription.next().await.is_none());
    assert_all_closed(&*transport).await;
}

pub(crate) async fn dropping_a_transport_ends_its_subscriptions_only(broker: Broker) {
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
