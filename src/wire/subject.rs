//! Subjects: where what is said. What a subject is and may look like: [`subject`](crate::subject).

use bytes::BufMut;

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

/// `StateUpdate`s of one stream that pass the filter of this token, service → who follows it.
#[must_use]
pub fn filtered(stream_id: &str, token: u64) -> Subject {
    let mut bytes = Vec::with_capacity(32 + stream_id.len());
    write_filtered(&mut bytes, stream_id, token);
    Subject::from_utf8(bytes).unwrap_or_else(|_| Subject::from_static("stream.invalid.filtered"))
}

/// Writes the text of [`filtered`].
pub fn write_filtered(buffer: &mut impl BufMut, stream_id: &str, token: u64) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    buffer.put_slice(b"stream.");
    buffer.put_slice(stream_id.as_bytes());
    buffer.put_slice(b".filtered.");
    let token: [u8; 16] = std::array::from_fn(|place| DIGITS[(token >> (60 - 4 * place) & 0xf) as usize]);
    buffer.put_slice(&token);
}

/// Whether the updates of a stream that pass a filter may be published there: what an answer says is not believed
/// unseen.
#[must_use]
pub fn is_filtered(subject: &str, stream: StreamId<'_>) -> bool {
    let token = subject.strip_prefix("stream.").and_then(|rest| rest.strip_prefix(stream.as_str()));
    let token = token.and_then(|rest| rest.strip_prefix(".filtered."));
    token.is_some_and(|token| StreamId::parse(token).is_ok())
}

/// `Presence` of all instances.
pub const ALL_PRESENCES: &str = "orchestrator.i.*.presence";

/// `Presence` of one instance.
#[must_use]
pub fn presence(instance: &str) -> Subject {
    Subject::from(format!("orchestrator.i.{instance}.presence"))
}

/// Whether updates of streams go there for all who read them, one by one or in feeds. Not those that pass a filter: whoever
/// follows one can name new subjects all the time, and that the broker refuses these is for them alone.
#[must_use]
pub fn carries_updates(subject: &str) -> bool {
    let of_stream = subject.starts_with("stream.") && subject.split('.').nth(2) != Some("filtered");
    of_stream || subject.starts_with("orchestrator.feed.")
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
    fn a_filters_subject_is_one_of_its_stream_and_of_no_other() {
        let show = StreamId::parse("show").unwrap();
        assert_eq!(filtered("show", 0x1f).as_str(), "stream.show.filtered.000000000000001f");
        assert!(is_filtered(&filtered("show", u64::MAX), show));
        assert!(is_filtered("stream.show.filtered.of-another-form", show));
        for other in [
            "stream.show.updates",
            "stream.show.filtered",
            "stream.show.filtered.",
            "stream.show.filtered.*",
            "stream.show.filtered.>",
            "stream.show.filtered.a.b",
            "stream.shows.filtered.a",
            "stream.sho.filtered.a",
            "orchestrator.feed.7",
            ">",
        ] {
            assert!(!is_filtered(other, show), "{other}");
        }
    }

    #[test]
    fn updates_for_all_go_to_streams_subjects_and_feeds() {
        for (subject, expected) in [
            ("stream.show.updates", true),
            ("orchestrator.feed.7", true),
            ("stream.show.filtered.0123456789abcdef", false),
            ("_INBOX.1", false),
            ("orchestrator.i.1.presence", false),
        ] {
            assert_eq!(carries_updates(subject), expected, "{subject}");
        }
    }

    #[test]
    fn no_answer_goes_where_it_would_be_something_else() {
        let long = format!("_INBOX.{}", "x".repeat(MAX_SUBJECT_BYTES));
        let reserved = [
            "orchestrator.command",
            "orchestrator.feed.7",
            "orchestrator.i.1.presence",
            "orchestrator",
            "stream.show.updates",
            "stream.show.filtered.0123456789abcdef",
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
