//! What the service publishes, as somebody reads it.

use std::{rc::Rc, sync::LazyLock};

use bytes::Bytes;
use orchestrator_service::{
    engine::partition,
    wire::{StreamId, proto, subject},
};
use prost::Message as _;

use crate::{
    log::hash_of,
    net::{Answer, AnswerBody, Update, Updates, What},
    truth::Request,
};

/// A published message.
#[derive(Debug)]
pub enum Read {
    Updates(Updates),
    Answer(Rc<Answer>),
}

/// How many streams have a partition of their own; all others share these.
const SPREAD: usize = 3;
/// Most streams of a world.
const MOST_STREAMS: usize = 64;

/// The name of a stream. Its number can be read from it.
pub fn stream_id(stream: usize) -> String {
    NAMES[stream].clone()
}

/// Streams that share a partition share the messages of a feed.
static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let name = |stream: usize| {
        if stream < SPREAD {
            return format!("show-{stream}");
        }
        let shared = partition(&format!("show-{}", stream % SPREAD));
        let mut names = (0..).map(|salt| format!("show-{stream}-{salt}"));
        names.find(|name| partition(name) == shared).expect("one in 256 is")
    };
    (0..MOST_STREAMS).map(name).collect()
});

/// The number of a stream of that name.
pub fn stream_number(id: &str) -> usize {
    let number = id.strip_prefix("show-").map(|rest| rest.split('-').next().unwrap_or(rest));
    number.and_then(|number| number.parse().ok()).expect("a stream of this world")
}

pub fn read(subject: &str, payload: Bytes, requests: &[Request]) -> Read {
    if let Some(request) = subject.strip_prefix("answer.") {
        let request: usize = request.parse().expect("an answer's subject ends in a number");
        let body = match requests[request].sent.what {
            What::State { .. }
            | What::Stats { .. }
            | What::List
            | What::History { .. }
            | What::Subscribers { .. }
            | What::Config { .. } => {
                AnswerBody::Query(proto::QueryReply::decode(payload.clone()).expect("an answer decodes"))
            }
            _ => AnswerBody::Reply(proto::Reply::decode(payload.clone()).expect("an answer decodes")),
        };
        return Read::Answer(Rc::new(Answer { request, payload, body }));
    }
    if subject.starts_with("orchestrator.feed.") {
        let batch = proto::UpdateBatch::decode(payload.clone()).expect("a feed decodes");
        let updates = batch.update.into_iter().map(|state| update(hash_of(&state.encode_to_vec()), state)).collect();
        return Read::Updates(Updates { subject: subject.to_owned(), payload, feed: true, filtered: false, updates });
    }
    let state = proto::StateUpdate::decode(payload.clone()).expect("an update decodes");
    let id = StreamId::parse(&state.stream_id).expect("a stream's name");
    let filtered = subject::is_filtered(subject, id);
    let is_its = filtered || subject == subject::updates(id).as_str();
    assert!(is_its, "an update of {} on {subject}", state.stream_id);
    let updates = vec![update(hash_of(&payload), state)];
    Read::Updates(Updates { subject: subject.to_owned(), payload, feed: false, filtered, updates })
}

fn update(bytes_hash: u64, state: proto::StateUpdate) -> Rc<Update> {
    Rc::new(Update { stream: stream_number(&state.stream_id), bytes_hash, state })
}

/// An update for a reader of the log.
pub fn in_short(update: &Update) -> String {
    let proto::StateUpdate { stream_id, epoch, revision, sequence, current_time, loop_count, scene_elapsed, .. } =
        &update.state;
    let (mode, cause, scene) = (update.mode(), update.cause(), update.scene_index);
    format!(
        "{stream_id} {mode:?} {cause:?} at {current_time} pass {loop_count} scene {scene:?}+{scene_elapsed} \
         revision {revision} sequence {sequence} epoch {epoch} time {}",
        update.server_time_ms
    )
}
