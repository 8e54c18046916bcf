//! Feeds on the memory transport, with the test as the publisher.

use super::*;
use crate::{
    client::{Client, ClientOptions, ErrorKind, UpdateStream, UpdatesFrom},
    transport::{
        Outgoing,
        memory::{MemoryBus, MemoryTransport},
    },
    wire::proto::{Cause, Mode, UpdateBatch},
};

/// Two streams of one partition, and one of another.
const ONE: [&str; 2] = ["s0", "s40"];
const OTHER: &str = "s1";

fn partition(stream: &str) -> u8 {
    StreamId::parse(stream).expect("an id").partition()
}

fn world() -> (MemoryBus, Arc<MemoryTransport>, Client) {
    let bus = MemoryBus::new();
    let options = ClientOptions { updates: UpdatesFrom::Feed, ..ClientOptions::default() };
    (bus.clone(), bus.connect(), Client::new(bus.connect(), options))
}

fn update(stream: &str, sequence: u64) -> StateUpdate {
    StateUpdate { mode: Mode::Running.into(), stream_id: stream.into(), epoch: 1, sequence, ..StateUpdate::default() }
}

fn change(stream: &str, sequence: u64) -> StateUpdate {
    StateUpdate { cause: Cause::Scene.into(), ..update(stream, sequence) }
}

async fn publish(link: &MemoryTransport, partition: u8, payload: Vec<u8>) {
    let mut messages = VecDeque::from([Outgoing { subject: subject::feed(partition), payload: payload.into() }]);
    link.publish(&mut messages).await.expect("published");
}

/// Publishes updates of one partition in one message.
async fn batch(link: &MemoryTransport, update: Vec<StateUpdate>) {
    publish(link, partition(&update[0].stream_id), UpdateBatch { update }.encode_to_vec()).await;
}

async fn follow(client: &Client, stream: &str) -> UpdateStream {
    client.updates(stream).await.expect("subscribed")
}

async fn sequences(updates: &mut UpdateStream, count: usize) -> Vec<u64> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(5), updates.next()).await.expect("an update");
        seen.push(next.expect("open").sequence);
    }
    seen
}

/// Lets the readers take what was published.
async fn yield_often() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_streams_of_these_tests_are_of_two_partitions() {
    assert_eq!(partition(ONE[0]), partition(ONE[1]));
    assert_ne!(partition(ONE[0]), partition(OTHER));
}

#[tokio::test]
async fn each_follower_gets_its_streams_updates_in_order_and_no_others() {
    let (_bus, link, client) = world();
    let (mut first, mut second) = (follow(&client, ONE[0]).await, follow(&client, ONE[1]).await);
    let (mut twin, mut other) = (follow(&client, ONE[0]).await, follow(&client, OTHER).await);
    let [a, b] = ONE;
    batch(&link, vec![update(a, 1), update(b, 7), update(a, 2), update("nobody's", 99)]).await;
    batch(&link, vec![update(OTHER, 5)]).await;
    batch(&link, vec![update(a, 2), update(a, 3), update(b, 6), update(b, 8)]).await;
    assert_eq!(sequences(&mut first, 3).await, [1, 2, 3]);
    assert_eq!(sequences(&mut twin, 3).await, [1, 2, 3]);
    assert_eq!(sequences(&mut second, 2).await, [7, 8], "6 is old");
    assert_eq!(sequences(&mut other, 1).await, [5]);
}

#[tokio::test]
async fn a_partition_has_one_subscription_from_first_to_last_follower() {
    let (bus, link, client) = world();
    let first = follow(&client, ONE[0]).await;
    let second = follow(&client, ONE[1]).await;
    let twin = follow(&client, ONE[0]).await;
    assert_eq!(bus.subscriptions(), 1);
    let other = follow(&client, OTHER).await;
    assert_eq!(bus.subscriptions(), 2);
    drop((first, other));
    yield_often().await;
    assert_eq!(bus.subscriptions(), 1);
    drop((second, twin));
    yield_often().await;
    assert_eq!(bus.subscriptions(), 0);
    assert_eq!(client.core().feeds.len(), 0);

    // At once, while the reader before may not have ended.
    drop(follow(&client, ONE[0]).await);
    let mut again = follow(&client, ONE[1]).await;
    yield_often().await;
    assert_eq!(bus.subscriptions(), 1);
    batch(&link, vec![update(ONE[1], 1)]).await;
    assert_eq!(sequences(&mut again, 1).await, [1]);
}

#[tokio::test]
async fn what_does_not_decode_takes_nothing_else_with_it() {
    let (_bus, link, client) = world();
    let stream = ONE[0];
    let mut updates = follow(&client, stream).await;
    publish(&link, partition(stream), vec![0xff, 0xff]).await;
    // An update whose sequence is a text, and one that ends within its id.
    let mut bad = update(stream, 0).encode_to_vec();
    bad.extend([13 << 3 | 2, 1, b'x']);
    let mut message = Vec::new();
    for part in [&update(stream, 1).encode_to_vec(), &bad, &vec![10, 9, b's'], &update(stream, 2).encode_to_vec()] {
        crate::wire::encode::write_batch_entry(&mut message, part);
    }
    publish(&link, partition(stream), message).await;
    assert_eq!(sequences(&mut updates, 2).await, [1, 2]);
}

#[tokio::test]
async fn a_follower_that_takes_nothing_keeps_the_changes_and_the_newest() {
    let (_bus, link, client) = world();
    let stream = ONE[0];
    let mut updates = follow(&client, stream).await;
    for sequence in 1..=2_000 {
        let made = match sequence % 100 {
            0 => change(stream, sequence),
            odd if odd % 2 == 1 => StateUpdate { cause: Cause::Snapshot.into(), ..update(stream, sequence) },
            _ => update(stream, sequence),
        };
        batch(&link, vec![made]).await;
        yield_often().await;
    }
    let mut seen = Vec::new();
    while seen.last() != Some(&2_000) {
        seen.extend(sequences(&mut updates, 1).await);
    }
    assert!(seen.is_sorted() && seen.len() <= MAX_WAITING, "{}", seen.len());
    assert!((1..=20).all(|number| seen.contains(&(100 * number))), "{seen:?}");
}

#[tokio::test]
async fn of_a_long_message_who_takes_what_comes_misses_nothing() {
    let (_bus, link, client) = world();
    let stream = ONE[0];
    let mut updates = follow(&client, stream).await;
    let last = 10 * MAX_WAITING as u64;
    let reader = tokio::spawn(async move { sequences(&mut updates, 10 * MAX_WAITING).await });
    yield_often().await;
    batch(&link, (1..=last).map(|sequence| change(stream, sequence)).collect()).await;
    assert_eq!(reader.await.expect("it reads"), (1..=last).collect::<Vec<_>>());
}

#[tokio::test]
async fn of_more_changes_than_are_kept_the_newest_are() {
    let (_bus, link, client) = world();
    let stream = ONE[0];
    let mut updates = follow(&client, stream).await;
    let last = MAX_WAITING as u64 + 100;
    batch(&link, (1..=last).map(|sequence| change(stream, sequence)).collect()).await;
    yield_often().await;
    assert_eq!(sequences(&mut updates, MAX_WAITING).await, (101..=last).collect::<Vec<_>>());
}

#[tokio::test]
async fn when_the_transport_closes_followers_end_behind_what_came_before() {
    let (bus, link, client) = world();
    let mut updates = follow(&client, ONE[0]).await;
    let waiting = tokio::spawn({
        let mut other = follow(&client, OTHER).await;
        async move { other.next().await }
    });
    batch(&link, vec![update(ONE[0], 1)]).await;
    client.core().transport.close().await;
    assert_eq!(sequences(&mut updates, 1).await, [1]);
    assert_eq!(updates.next().await, None);
    assert_eq!(waiting.await.expect("no panic"), None);
    let error = client.updates(ONE[0]).await.map(|_| ()).expect_err("closed");
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(client.core().feeds.len(), 0);
    assert_eq!(bus.subscriptions(), 0);
}

#[tokio::test]
async fn a_feed_refused_later_says_why_and_may_be_followed_again() {
    use crate::transport::Operation;
    let (bus, link, client) = world();
    let mut updates = follow(&client, ONE[0]).await;
    let mut other = follow(&client, ONE[1]).await;
    batch(&link, vec![update(ONE[0], 1)]).await;
    yield_often().await;
    bus.deny(Operation::Subscribe, "orchestrator.feed.*");
    assert_eq!(sequences(&mut updates, 1).await, [1]);
    for updates in [&mut updates, &mut other] {
        assert_eq!(tokio::time::timeout(Duration::from_secs(5), updates.next()).await.expect("told"), None);
        assert_eq!(updates.end().map(ClientError::kind), Some(ErrorKind::Denied));
    }
    let error = client.updates(ONE[0]).await.map(|_| ()).expect_err("denied");
    assert_eq!(error.kind(), ErrorKind::Denied);
    yield_often().await;
    assert_eq!((client.core().feeds.len(), bus.subscriptions()), (0, 0));
    bus.allow(Operation::Subscribe, "orchestrator.feed.*");
    let mut again = follow(&client, ONE[0]).await;
    batch(&link, vec![update(ONE[0], 2)]).await;
    assert_eq!(sequences(&mut again, 1).await, [2]);
}

#[tokio::test]
async fn followers_do_not_keep_the_transport() {
    let (_bus, _link, client) = world();
    let mut updates = follow(&client, ONE[0]).await;
    drop(client);
    let end = tokio::time::timeout(Duration::from_secs(5), updates.next()).await;
    assert_eq!(end.expect("the transport is gone"), None);
}

#[tokio::test]
async fn an_outage_ends_no_feed() {
    let (bus, link, client) = world();
    let mut updates = follow(&client, ONE[0]).await;
    bus.set_online(false);
    bus.set_online(true);
    batch(&link, vec![update(ONE[0], 1)]).await;
    assert_eq!(sequences(&mut updates, 1).await, [1]);
}
