//! How much goes into one message to the service: as much as the broker takes now, of the answer as well.
//!
//! | bytes of | request | answer |
//! |---|---|---|
//! | a handle | 8 | 8, where it is unknown |
//! | a subscriber | its texts and up to 20 | 8, its handle |
//! | the rest | the stream's id and up to 20 | its code and message; the stream's state too |
//!
//! The broker's limit is asked anew for each message, because it is another with each connection. What does not fit all
//! the same is cut in half until it does.

use prost::Message as _;

use super::{ClientError, registration_table::Job};
use crate::wire::proto::{Code, Reply, Subscriber};

/// Handles in one heartbeat or unregistering message: 8 KB, one step of work for a shard.
pub(super) const MAX_HANDLES: usize = 1_000;
/// Subscribers in one registering message: with ids of full length still a tenth of what a broker takes by default.
pub(super) const MAX_SUBSCRIBERS: usize = 500;

/// What is kept free for the rest of an answer with handles: a code, and a message of a line.
const ANSWER_BYTES: usize = 256;
/// The same where it has a state: its texts, which are up to 128, 256 and some more bytes long, and two dozen numbers.
const ANSWER_WITH_STATE_BYTES: usize = 1_024;
/// What is kept free for the rest of a request, beside the stream's id: tags and lengths.
const REQUEST_BYTES: usize = 32;

/// How many entries a message may have, as far as that was learnt on this connection.
#[derive(Debug)]
pub(super) struct BatchLimits {
    handles: usize,
    subscribers: usize,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { handles: MAX_HANDLES, subscribers: MAX_SUBSCRIBERS }
    }
}

impl BatchLimits {
    /// How many handles go into a message of at most `max_payload` bytes; at least one.
    pub(super) fn handles(&self, max_payload: usize) -> usize {
        let room = without(max_payload, ANSWER_BYTES + REQUEST_BYTES);
        (room / size_of::<u64>()).clamp(1, self.handles)
    }

    /// The subscribers of one stream in a message of at most `max_payload` bytes; at least one.
    pub(super) fn registers(&self, stream_id: &str, max_payload: usize) -> RegisterBatch {
        let answered = without(max_payload, ANSWER_WITH_STATE_BYTES) / size_of::<u64>();
        let bytes = without(max_payload, REQUEST_BYTES + stream_id.len());
        RegisterBatch { bytes, entries: answered.clamp(1, self.subscribers), is_empty: true }
    }

    /// Learns that this request, or its answer, was too large; false if that was not so, or it has but one entry.
    pub(super) fn shrink(&mut self, job: &Job, answer: &Result<Reply, ClientError>) -> bool {
        let limit = match job {
            Job::Beat(_) | Job::Unregister { .. } => &mut self.handles,
            Job::Register { .. } => &mut self.subscribers,
            Job::Confirm { .. } | Job::UnregisterByName { .. } => return false,
        };
        let is_too_large = match answer {
            Err(error) => error.limit().is_some(),
            // As a whole: whoever is refused within a batch has a place among the handles.
            Ok(reply) => reply.code() == Code::ResourceExhausted && reply.handles.is_empty(),
        };
        let fits = job.entries() / 2;
        if !is_too_large || fits == 0 {
            return false;
        }
        *limit = fits.min(*limit);
        true
    }
}

/// A registering message as it fills.
#[derive(Debug)]
pub(super) struct RegisterBatch {
    bytes: usize,
    entries: usize,
    is_empty: bool,
}

impl RegisterBatch {
    /// Takes one more, if it fits or is the first.
    pub(super) fn takes(&mut self, subscriber: &Subscriber) -> bool {
        let bytes = subscriber.encoded_len();
        let bytes = 1 + prost::length_delimiter_len(bytes) + bytes;
        if !self.is_empty && (self.entries == 0 || bytes > self.bytes) {
            return false;
        }
        self.is_empty = false;
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        true
    }
}

/// A broker that takes next to nothing leaves half of it at least.
fn without(max_payload: usize, reserved: usize) -> usize {
    max_payload - reserved.min(max_payload / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto::{HeartbeatBatch, RegisterBatch as Message, SubscriptionCommand, subscription_command};

    fn size(command: subscription_command::Command) -> usize {
        SubscriptionCommand { command: Some(command) }.encoded_len()
    }

    #[test]
    fn handles_fit_and_so_does_the_answer_that_knows_none_of_them() {
        for max_payload in [64, 100, 512, 1_024, 4_096, 16_384, 1 << 20] {
            let handle = vec![u64::MAX; BatchLimits::default().handles(max_payload)];
            let answer = Reply {
                code: Code::UnknownSubscriber.into(),
                message: format!("{} are not registered; register them again", handle.len()),
                unknown_handle: if max_payload < 1_024 { handle[..1].to_vec() } else { handle.clone() },
                ..Reply::default()
            };
            assert!(answer.encoded_len() <= max_payload.max(128), "{max_payload}");
            let batch = HeartbeatBatch { handle, ..HeartbeatBatch::default() };
            assert!(size(subscription_command::Command::HeartbeatBatch(batch)) <= max_payload, "{max_payload}");
        }
        assert_eq!(BatchLimits::default().handles(1 << 20), MAX_HANDLES);
    }

    #[test]
    fn subscribers_fit_into_what_the_broker_takes() {
        for max_payload in [512, 1_024, 4_096, 16_384, 100_000, 1 << 20] {
            for id_bytes in [1, 36, 128] {
                let stream_id = "s".repeat(id_bytes);
                let mut batch = BatchLimits::default().registers(&stream_id, max_payload);
                let mut subscriber = Vec::new();
                let one = Subscriber {
                    client_id: "c".repeat(id_bytes),
                    source_addr: "[1111:2222:3333:4444:5555:6666:7777:8888]:65535".to_owned(),
                    session: u64::MAX,
                };
                while batch.takes(&one) {
                    subscriber.push(one.clone());
                }
                let count = subscriber.len();
                let bytes = size(subscription_command::Command::RegisterBatch(Message { stream_id, subscriber }));
                assert!(bytes <= max_payload && count <= MAX_SUBSCRIBERS, "{count} are {bytes} bytes of {max_payload}");
                // All but the room for one more.
                let full = count == MAX_SUBSCRIBERS || bytes + 2 * one.encoded_len() + REQUEST_BYTES > max_payload / 2;
                assert!(full, "{count} are only {bytes} bytes of {max_payload}");
            }
        }
    }

    #[test]
    fn what_was_too_large_is_cut_in_half_down_to_one() {
        let mut limits = BatchLimits::default();
        let too_large = || Err(ClientError::too_large(20_000, 16_384));
        let refused = || Ok(Reply { code: Code::ResourceExhausted.into(), ..Reply::default() });
        let beat = |entries: usize| Job::Beat(vec![(0, 1); entries]);
        assert!(limits.shrink(&beat(1_000), &too_large()));
        assert_eq!(limits.handles(1 << 20), 500);
        assert!(limits.shrink(&beat(3), &refused()));
        assert_eq!(limits.handles(1 << 20), 1);
        assert!(!limits.shrink(&beat(1), &too_large()), "nothing is left to cut");
        assert!(!limits.shrink(&beat(9), &Ok(Reply::default())));
        assert_eq!(limits.registers("s", 1 << 20).entries, MAX_SUBSCRIBERS, "they are learnt apart");
    }
}
