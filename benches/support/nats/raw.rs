//! The fastest publisher there is: a plain socket and the protocol's lines made beforehand, so that the publisher takes
//! next to nothing of the machine from those who are measured.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    time::{Duration, Instant},
};

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt as _;

use super::{caller, messages};
use orchestrator_service::wire::subject;

/// How long an answer to a marker may take.
const MARKER_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages as they go onto the wire.
#[derive(Debug, Default)]
pub struct Block {
    bytes: Vec<u8>,
    /// How many messages.
    pub messages: u64,
}

impl Block {
    /// All to one subject.
    pub fn new(subject: &str, payloads: impl Iterator<Item = Bytes>) -> Self {
        let mut block = Self::default();
        payloads.for_each(|payload| block.push(subject, None, &payload));
        block
    }

    fn push(&mut self, subject: &str, reply: Option<&str>, payload: &[u8]) {
        let reply = reply.map(|reply| format!("{reply} ")).unwrap_or_default();
        let _ = write!(self.bytes, "PUB {subject} {reply}{}\r\n", payload.len());
        self.bytes.extend_from_slice(payload);
        self.bytes.extend_from_slice(b"\r\n");
        self.messages += 1;
    }
}

/// What came of a flood.
#[derive(Clone, Copy, Debug)]
pub struct Flooded {
    /// How many messages were sent, without the markers.
    pub messages: u64,
    /// How many markers.
    pub markers: u64,
    /// From the first byte until the last marker was answered.
    pub took: Duration,
    /// Whether all markers were.
    pub complete: bool,
}

/// Sends `blocks` in turn, `count` of them, each with a marker behind it: a question that the receiver answers when it
/// has come so far. At most `ahead` of them are unanswered; with none, nothing is waited for before the end.
pub async fn flood(
    address: SocketAddr,
    client: &Client,
    blocks: Vec<Block>,
    count: usize,
    ahead: Option<u64>,
) -> (Flooded, Vec<Block>) {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("an inbox");
    caller::wait_subscribed(client).await;
    let (answered, marks) = mpsc::channel();
    let reader = tokio::spawn(async move {
        while answers.next().await.is_some() {
            if answered.send(()).is_err() {
                return;
            }
        }
    });
    let sender = tokio::task::spawn_blocking(move || {
        let mut marker = Block::default();
        marker.push(subject::QUERY, Some(&inbox), &messages::get_stats());
        let mut socket = TcpStream::connect(address).expect("a connection");
        socket.set_nodelay(true).expect("no delay");
        socket.set_write_timeout(Some(MARKER_TIMEOUT)).expect("a timeout");
        socket.write_all(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n").expect("the broker takes it");
        let begun = Instant::now();
        let mut flooded = Flooded { messages: 0, markers: 0, took: Duration::ZERO, complete: true };
        let mut open = 0;
        for number in 0..count {
            let block = &blocks[number % blocks.len()];
            socket.write_all(&block.bytes).expect("the broker takes messages");
            flooded.messages += block.messages;
            if ahead.is_none() && number + 1 < count {
                continue;
            }
            socket.write_all(&marker.bytes).expect("the broker takes messages");
            flooded.markers += 1;
            open += 1;
            while open > ahead.unwrap_or(u64::MAX) || (number + 1 == count && open > 0) {
                if marks.recv_timeout(MARKER_TIMEOUT).is_err() {
                    flooded.complete = false;
                    return (flooded, blocks);
                }
                open -= 1;
            }
        }
        flooded.took = begun.elapsed();
        (flooded, blocks)
    });
    let done = sender.await.expect("the flood ends");
    reader.abort();
    done
}
