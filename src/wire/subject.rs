//! Subjects: where what is said. What a subject is and may look like: [`subject`](crate::subject).

use crate::engine::StreamId;
pub use crate::subject::{MAX_SUBJECT_BYTES, Subject};

/// `OrchestratorCommand`, gateway → service.
pub const COMMAND: &str = "orchestrator.command";
/// `SubscriptionCommand`, gateway → service.
pub const SUBSCRIPTION: &str = "orchestrator.subscription";
/// `Query`, anyone → service.
pub const QUERY: &str = "orchestrator.query";
/// All three in one subscription, so that a Start stays before the Register that follows it.
pub const ALL_REQUESTS: &str = "orchestrator.*";
/// The queue group that consumes them: two instances never both act on one message.
pub const QUEUE_GROUP: &str = "orchestrator";

/// `StateUpdate` of one stream, service → everyone.
#[must_use]
pub fn updates(stream: StreamId<'_>) -> Subject {
    Subject::from(format!("stream.{stream}.updates"))
}

/// `UpdateBatch` of one partition, service → gateways.
#[must_use]
pub fn feed(partition: u8) -> Subject {
    Subject::from(format!("orchestrator.feed.{partition}"))
}
