//! Somebody who talks to the service over a connection of their own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures_util::StreamExt as _;
use orchestrator_service::wire::{
    feed,
    proto::{Code, QueryReply, Reply, Stats},
    subject,
};
use tokio::task::JoinHandle;

use super::messages;
use crate::support::ids;

/// How long an answer may take. A service that is asked for more than it can do answers late.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How many requests are under way at once while streams are set up.
const AT_ONCE: usize = 64;
/// Viewers in one RegisterBatch.
pub const A_BATCH: u64 = 1_000;

/// A bare connection, with room for a second of messages.
pub async fn connect(url: &str) -> Client {
    let options = ConnectOptions::new().subscription_capacity(1 << 20).request_timeout(Some(ANSWER_TIMEOUT));
    options.connect(url).await.expect("a connection")
}

/// Waits until the broker knows of all that this connection has subscribed to: a round trip behind it, to nobody. A
/// flush only empties the client's own buffer.
pub async fn wait_subscribed(client: &Client) {
    let answer = client.request("bench.nobody", Bytes::new()).await;
    assert!(answer.is_err(), "nobody answers");
}

/// Asks, and decodes the answer.
pub async fn ask<M: prost::Message + Default>(client: &Client, subject: &'static str, message: Bytes) -> M {
    let answer = client.request(subject, message).await.unwrap_or_else(|error| panic!("{subject}: {error}"));
    M::decode(answer.payload).expect("an answer of its kind")
}

/// Says what has to be carried out.
pub async fn done(client: &Client, subject: &'static str, message: Bytes) -> Reply {
    let reply: Reply = ask(client, subject, message).await;
    assert_eq!((reply.code(), &*reply.message), (Code::Ok, ""), "{subject}");
    reply
}

/// How many there are in the whole service.
pub async fn stats(client: &Client) -> Stats {
    let reply: QueryReply = ask(client, subject::QUERY, messages::get_stats()).await;
    reply.stats.expect("stats")
}

/// Starts so many streams, with a tick now and then or with none.
pub async fn start_streams(client: &Client, count: u64, tick_ms: impl Into<Option<u64>>) {
    let tick_ms = tick_ms.into();
    let starts = (0..count).map(|number| async move {
        done(client, subject::COMMAND, messages::start(&ids::stream(number), tick_ms)).await;
    });
    futures_util::stream::iter(starts).buffer_unordered(AT_ONCE).collect::<()>().await;
}

/// Lets each of them play for one viewer.
pub async fn watch_streams(client: &Client, count: u64) {
    let registers = (0..count).map(|number| async move {
        done(client, subject::SUBSCRIPTION, messages::register(&ids::stream(number), number)).await;
    });
    futures_util::stream::iter(registers).buffer_unordered(AT_ONCE).collect::<()>().await;
}

/// Registers `count` viewers, [`A_BATCH`] on each stream from the first on; their handles, in order.
pub async fn register(client: &Client, count: u64) -> Vec<u64> {
    let batches = (0..count / A_BATCH).map(|number| async move {
        let viewers = number * A_BATCH..(number + 1) * A_BATCH;
        done(client, subject::SUBSCRIPTION, messages::register_batch(&ids::stream(number), viewers)).await.handles
    });
    futures_util::stream::iter(batches).buffered(8).collect::<Vec<_>>().await.concat()
}

/// Counts what arrives at a subscription, in a task of its own. Of a feed's messages it counts the updates.
#[derive(Debug)]
pub struct Listener {
    counted: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Begins.
    pub async fn start(url: &str, subject: &'static str, of_feeds: bool) -> Self {
        let client = connect(url).await;
        let subscription = client.subscribe(subject).await.expect("a subscription");
        wait_subscribed(&client).await;
        let counted = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&counted);
        let task = tokio::spawn(async move {
            // Holds the connection.
            let _client = client;
            let mut chunks = subscription.ready_chunks(256);
            while let Some(chunk) = chunks.next().await {
                let updates = if of_feeds {
                    chunk.into_iter().map(|message| feed::updates(message.payload).map_or(0, |all| all.len())).sum()
                } else {
                    chunk.len()
                };
                counter.fetch_add(updates as u64, Ordering::Relaxed);
            }
        });
        Self { counted, task }
    }

    /// How many so far.
    pub fn count(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}
