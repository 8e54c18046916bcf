//! What only the memory bus does: turns in order, permissions at once, and what tests make it do.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use orchestrator_service::transport::{
    Connection, Denial, Denied, Operation, Outgoing, Transport as _, TransportError, memory::MemoryBus,
};

use crate::broker::{NEVER, SMALL, outgoing, owned, received, texts};

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
