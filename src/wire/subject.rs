//! Subjects: where what is said. What a subject is and may look like: [`subject`](crate::subject).

pub use crate::subject::{MAX_SUBJECT_BYTES, Subject};
use crate::{
    engine::StreamId,
    subject::{SubjectError, check_subject},
};

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

/// `Presence` of all instances.
pub const ALL_PRESENCES: &str = "orchestrator.i.*.presence";

/// `Presence` of one instance.
#[must_use]
pub fn presence(instance: &str) -> Subject {
    Subject::from(format!("orchestrator.i.{instance}.presence"))
}

/// Whether updates of streams go there, one by one or in feeds.
#[must_use]
pub fn carries_updates(subject: &str) -> bool {
    subject.starts_with("stream.") || subject.starts_with("orchestrator.feed.")
}

/// `UpdateBatch` of one partition, service → gateways.
#[must_use]
pub fn feed(partition: u8) -> Subject {
    Subject::from(format!("orchestrator.feed.{partition}"))
}

/// Why a message is refused for where its answer would go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// Nothing can be published to it.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// There an answer would be taken for something else.
    #[error("an answer may not go to {0}: it would act as a request, or pass for an update")]
    Reserved(Subject),
}

/// Refuses where no answer may go: to what is no subject, under `orchestrator.` and `stream.`, where it would be a request
/// or an update, and under `$`, where it would be a request to the broker itself. Whoever names it is a stranger.
///
/// # Errors
/// See [`ReplyError`].
pub fn check_reply(subject: &Subject) -> Result<(), ReplyError> {
    check_subject(subject)?;
    let first = subject.split('.').next().unwrap_or_default();
    if matches!(first, "orchestrator" | "stream") || first.starts_with('$') {
        return Err(ReplyError::Reserved(subject.clone()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_goes_where_it_would_be_something_else() {
        let long = format!("_INBOX.{}", "x".repeat(MAX_SUBJECT_BYTES));
        let reserved = [
            "orchestrator.command",
            "orchestrator.feed.7",
            "orchestrator.i.1.presence",
            "orchestrator",
            "stream.show.updates",
            "stream.x",
            "$JS.API.STREAM.DELETE.orders",
            "$SYS.REQ.SERVER.PING",
            "$KV.bucket.key",
            "$",
        ];
        for to in reserved {
            assert!(matches!(check_reply(&to.into()), Err(ReplyError::Reserved(_))), "{to}");
        }
        let no_subject = [
            "",
            ".",
            "a..b",
            ".a",
            "a.",
            "a.*",
            "*",
            ">",
            "a.>",
            "a b",
            "a\tb",
            "a\0",
            "a\r\nPUB x 0",
            "\u{7f}",
            &long,
        ];
        for to in no_subject {
            assert!(matches!(check_reply(&to.into()), Err(ReplyError::Subject(_))), "{to:?}");
        }
        for to in
            ["_INBOX.abc.1", "answers", "streams.x", "orchestrators.x", "a.orchestrator.command", "a.$JS", "_R_.x"]
        {
            assert_eq!(check_reply(&to.into()), Ok(()), "{to}");
        }
    }
}
