//! What was said and answered, in a file: one line each, and messages in hexadecimal.
//!
//! | line | what |
//! |---|---|
//! | `ask SUBJECT REQUEST ANSWER` | a request and its answer |
//! | `tell SUBJECT MESSAGE` | a message without a reply subject |
//! | `wait STREAM COUNT` | so many updates come by themselves |
//! | `update STREAM MESSAGE` | an update that was published for what is above it |
//!
//! `UPGRADE_RECORD=<file> cargo test --test upgrade record -- --ignored` makes one, in a checkout of the version that
//! is to be recorded. `recorded.txt` is of commit cbb4cd6.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use orchestrator_service::{
    service::{Service, ServiceSettings},
    transport::{Outgoing, Subscription, Transport, memory::MemoryBus},
    wire::{
        proto::{Reply, StateUpdate},
        subject,
    },
};
use prost::Message as _;

use crate::{
    script::{Step, steps},
    support::{caller::Caller, waiting::LIMIT},
};

pub(crate) const RECORDED: &str = include_str!("recorded.txt");

/// For how long nothing may come before nothing more is expected.
const QUIET: Duration = Duration::from_millis(100);

/// A service, somebody who talks to it, and all that it publishes.
pub(crate) struct Testbed {
    service: Service,
    caller: Caller,
    updates: Subscription,
    /// What has come and was not asked for yet.
    heard: BTreeMap<String, Vec<Vec<u8>>>,
}

impl Testbed {
    pub(crate) async fn new() -> Self {
        let bus = MemoryBus::new();
        let link = || -> Arc<dyn Transport> { bus.connect() };
        let settings = ServiceSettings { shards: 2, ..ServiceSettings::default() };
        let service = Service::start(settings, link(), vec![link()]).await.expect("started");
        let caller = Caller { transport: link() };
        let updates = caller.transport.subscribe("stream.*.updates", None).await.expect("subscribed");
        caller.transport.barrier().await.expect("the broker knows of it");
        Self { service, caller, updates, heard: BTreeMap::new() }
    }

    pub(crate) async fn ask(&self, subject: &str, payload: Vec<u8>) -> Vec<u8> {
        self.caller.ask_raw(subject, payload).await.payload.to_vec()
    }

    pub(crate) async fn tell(&self, subject: &str, payload: Vec<u8>) {
        self.caller.tell([Outgoing { subject: subject.into(), payload: payload.into() }]).await;
    }

    /// The next update of a stream.
    pub(crate) async fn next_update(&mut self, stream_id: &str) -> Vec<u8> {
        loop {
            if let Some(waiting) = self.heard.get_mut(stream_id).filter(|waiting| !waiting.is_empty()) {
                return waiting.remove(0);
            }
            let message = tokio::time::timeout(LIMIT, self.updates.next()).await;
            self.note(
                &message.unwrap_or_else(|_| panic!("an update of {stream_id}")).expect("the bus is there").payload,
            );
        }
    }

    /// All that has come and was not asked for, once nothing more comes.
    async fn rest(&mut self) -> Vec<(String, Vec<u8>)> {
        while let Ok(Some(message)) = tokio::time::timeout(QUIET, self.updates.next()).await {
            self.note(&message.payload);
        }
        let of_streams = std::mem::take(&mut self.heard).into_iter();
        of_streams.flat_map(|(id, updates)| updates.into_iter().map(move |update| (id.clone(), update))).collect()
    }

    fn note(&mut self, payload: &[u8]) {
        let update = StateUpdate::decode(payload).expect("an update");
        self.heard.entry(update.stream_id).or_default().push(payload.to_vec());
    }

    pub(crate) async fn end(self) {
        self.service.drain().await;
    }
}

#[tokio::test]
#[ignore = "makes a recording"]
async fn record() {
    let path = std::env::var("UPGRADE_RECORD").expect("UPGRADE_RECORD names a file");
    std::fs::write(path, recorded().await).expect("written");
}

async fn recorded() -> String {
    let mut testbed = Testbed::new().await;
    let mut lines = String::new();
    let mut handles = Vec::new();
    for step in steps() {
        let line = match step(&handles) {
            Step::Ask(subject, request) => {
                let answer = testbed.ask(subject, request.clone()).await;
                if subject == subject::SUBSCRIPTION
                    && let Ok(reply) = Reply::decode(&*answer)
                {
                    handles.extend([reply.handle].into_iter().chain(reply.handles).filter(|handle| *handle != 0));
                }
                format!("ask {subject} {} {}\n", hex(&request), hex(&answer))
            }
            Step::Tell(subject, message) => {
                testbed.tell(subject, message.clone()).await;
                format!("tell {subject} {}\n", hex(&message))
            }
            Step::Wait(stream_id, count) => {
                let mut line = format!("wait {stream_id} {count}\n");
                for _ in 0..count {
                    line += &format!("update {stream_id} {}\n", hex(&testbed.next_update(stream_id).await));
                }
                line
            }
        };
        lines += &line;
        for (stream_id, update) in testbed.rest().await {
            lines += &format!("update {stream_id} {}\n", hex(&update));
        }
    }
    testbed.end().await;
    lines
}

/// Empty messages have to be seen.
fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".to_owned();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digit = |place: usize| u8::from_str_radix(&text[place..place + 2], 16).expect("hexadecimal");
    if text == "-" { Vec::new() } else { (0..text.len()).step_by(2).map(digit).collect() }
}
