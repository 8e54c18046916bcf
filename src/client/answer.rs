//! What counts as the service's answer to a request: others may answer too.
//!
//! A JetStream stream that captures a request's subject acknowledges each message before the service answers, a foreign
//! program may listen on it as well. What they send is no `Reply`, but protobuf is lenient: an empty message is one, and
//! so are nine bytes of digits. So an answer has to be what this very request is answered with; whatever else comes is
//! passed over and the answer waited for.
//!
//! Three things are asked of every answer:
//! - All of it decodes, and no field at its top is a group. No message of ours has groups, and `{`, with which an
//!   acknowledgement begins, is one, as are `[`, `+` and `<`.
//! - It names the stream that it was asked about, if any.
//! - What is accepted has what the request asked for. A refusal is one whatever else is in it.

use prost::Message as _;

use crate::wire::{
    is_fields_without_groups,
    proto::{Code, QueryReply, Reply},
    queries::Cursor,
};

/// What a request is to be answered with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Expected<'a> {
    /// A `Reply` about this stream.
    Stream(&'a str),
    /// A `Reply` about handles, which names no stream: that all are known is an empty message.
    Handles,
    /// A `QueryReply` with the state of this stream.
    State(&'a str),
    /// A `QueryReply` with counts.
    Stats,
    /// A `QueryReply` with states: none at all is an empty message, and a page may have nothing but a cursor.
    Page,
    /// A `QueryReply` with the configuration of this stream, and its state.
    Config(&'a str),
    /// A `QueryReply` with the service's clock: GetTime, and whatever else says when it was true.
    Dated,
}

impl Expected<'_> {
    /// Whether this is the answer.
    pub(super) fn is_answered_by(self, payload: &[u8]) -> bool {
        if !is_fields_without_groups(payload) {
            return false;
        }
        match self {
            Self::Stream(_) | Self::Handles => Reply::decode(payload).is_ok_and(|reply| self.accepts_reply(&reply)),
            Self::State(_) | Self::Stats | Self::Page | Self::Config(_) | Self::Dated => {
                QueryReply::decode(payload).is_ok_and(|reply| self.accepts_query_reply(&reply, payload.is_empty()))
            }
        }
    }

    fn accepts_reply(self, reply: &Reply) -> bool {
        let is_refused = reply.code != i32::from(Code::Ok);
        match self {
            Self::Stream(stream_id) => {
                let named = reply.stream_id == stream_id;
                let is_about_it = reply.state.as_ref().is_some_and(|state| state.stream_id == stream_id);
                named || reply.stream_id.is_empty() && (is_refused || is_about_it)
            }
            Self::Handles => {
                let has_other = reply.handle != 0 || !reply.handles.is_empty() || reply.state.is_some();
                let has_unknown = !reply.unknown_handle.is_empty() || !reply.unknown_client_id.is_empty();
                !has_other && (is_refused || !has_unknown)
            }
            Self::State(_) | Self::Stats | Self::Page | Self::Config(_) | Self::Dated => false,
        }
    }

    fn accepts_query_reply(self, reply: &QueryReply, is_empty: bool) -> bool {
        if reply.code != i32::from(Code::Ok) {
            return true;
        }
        match self {
            Self::State(stream_id) => is_state_of(reply, stream_id),
            Self::Stats => reply.stats.is_some(),
            Self::Page => !reply.state.is_empty() || is_empty || is_cursor(&reply.cursor),
            Self::Config(stream_id) => reply.config.is_some() && is_state_of(reply, stream_id),
            Self::Dated => reply.server_time_ms != 0,
            Self::Stream(_) | Self::Handles => false,
        }
    }
}

fn is_state_of(reply: &QueryReply, stream_id: &str) -> bool {
    reply.state.first().is_some_and(|state| state.stream_id == stream_id)
}

/// Where many streams were removed, a page may end before it has come to one that is there.
fn is_cursor(text: &str) -> bool {
    !text.is_empty() && Cursor::parse(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto::{OrchestratorConfig, StateUpdate, Stats};

    const ALL: [Expected<'static>; 7] = [
        Expected::Stream("show"),
        Expected::Handles,
        Expected::State("show"),
        Expected::Stats,
        Expected::Page,
        Expected::Config("show"),
        Expected::Dated,
    ];

    /// What others answer, and why it might pass for an answer of ours.
    const FOREIGN: [&[u8]; 24] = [
        br#"{"stream":"ORDERS","seq":1}"#,
        br#"{"stream":"ORDERS", "domain":"hub", "seq":18446744073709551615, "duplicate":true}"#,
        br#"{"type":"io.nats.jetstream.api.v1.pub_ack_response","stream":"X","seq":1}"#,
        br#"{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"X","seq":0}"#,
        // A group that ends, as `|` would have it; an empty object; white space before it.
        b"{|",
        b"{}",
        br#" {"stream":"X","seq":1}"#,
        b"  {\"stream\":\"X\",\"seq\":1}",
        b"\n{\"stream\":\"X\",\"seq\":1}",
        b"\r\n{}",
        b"\t{}",
        b"[]",
        b"[1,2,3]",
        b"+ACK",
        b"-ERR 'no'",
        b"+OK",
        b"OK",
        b"<html>",
        b"\"service unavailable\"",
        // A fixed64 of digits, and one behind a number: a handle, and a revision with a handle.
        b"123456789",
        b"  123456789",
        // An unknown handle with code OK; fields of a number that no answer has.
        b"ACK123456",
        b"Error",
        b"\x08\x00Error",
    ];

    #[test]
    fn what_others_answer_is_no_answer() {
        for foreign in FOREIGN {
            let text = String::from_utf8_lossy(foreign);
            for expected in ALL {
                assert!(!expected.is_answered_by(foreign), "{text:?} passes for {expected:?}");
            }
        }
    }

    #[test]
    fn an_empty_message_is_an_answer_only_where_one_is_expected() {
        let answered = ALL.map(|expected| expected.is_answered_by(b""));
        assert_eq!(answered, [false, true, false, false, true, false, false]);
        assert!(Reply::default().encode_to_vec().is_empty(), "all handles are known");
        assert!(QueryReply::default().encode_to_vec().is_empty(), "there are no streams");
    }

    fn reply(code: Code, stream_id: &str) -> Reply {
        Reply { code: code.into(), stream_id: stream_id.into(), message: "why".into(), ..Reply::default() }
    }

    #[test]
    fn only_replies_to_this_request_are_its_answer() {
        let show = || StateUpdate { stream_id: "show".into(), ..StateUpdate::default() };
        let about_show = Expected::Stream("show");
        for yes in [
            reply(Code::Ok, "show"),
            reply(Code::StreamNotFound, "show"),
            reply(Code::Undecodable, ""),
            Reply { state: Some(show()), ..reply(Code::Ok, "") },
            Reply { code: 99, ..reply(Code::Ok, "show") },
        ] {
            assert!(about_show.is_answered_by(&yes.encode_to_vec()), "{yes:?}");
        }
        for no in [reply(Code::Ok, ""), reply(Code::Ok, "other"), reply(Code::Conflict, "other")] {
            assert!(!about_show.is_answered_by(&no.encode_to_vec()), "{no:?}");
        }
        let unknown = Reply { unknown_handle: vec![1, 2], ..reply(Code::UnknownSubscriber, "") };
        assert!(Expected::Handles.is_answered_by(&unknown.encode_to_vec()));
        let registered = Reply { handle: 7, ..reply(Code::Ok, "") };
        assert!(!Expected::Handles.is_answered_by(&registered.encode_to_vec()));
    }

    #[test]
    fn query_replies_have_what_was_asked_for_or_a_refusal() {
        let state = |id: &str| StateUpdate { stream_id: id.into(), ..StateUpdate::default() };
        let states =
            |ids: &[&str]| QueryReply { state: ids.iter().map(|id| state(id)).collect(), ..Default::default() };
        let counts = QueryReply { stats: Some(Stats::default()), ..QueryReply::default() };
        let refusal = QueryReply { code: Code::StreamNotFound.into(), ..QueryReply::default() };
        let configured = |id: &str| QueryReply { config: Some(OrchestratorConfig::default()), ..states(&[id]) };
        let dated = QueryReply { server_time_ms: 7, ..QueryReply::default() };
        let cursor = |cursor: &str| QueryReply { cursor: cursor.into(), ..QueryReply::default() };
        let table: [(&QueryReply, [bool; 5]); 10] = [
            (&states(&["show"]), [true, false, true, false, false]),
            (&states(&["other"]), [false, false, true, false, false]),
            (&states(&[]), [false, false, true, false, false]),
            (&cursor("0-4096"), [false, false, true, false, false]),
            (&cursor("next"), [false, false, false, false, false]),
            (&counts, [false, true, false, false, false]),
            (&configured("show"), [true, false, true, true, false]),
            (&configured("other"), [false, false, true, false, false]),
            (&dated, [false, false, false, false, true]),
            (&refusal, [true, true, true, true, true]),
        ];
        for (reply, expected) in table {
            let bytes = reply.encode_to_vec();
            let all =
                [Expected::State("show"), Expected::Stats, Expected::Page, Expected::Config("show"), Expected::Dated];
            let answered = all.map(|one| one.is_answered_by(&bytes));
            assert_eq!(answered, expected, "{reply:?}");
        }
    }

    #[test]
    fn fields_of_later_versions_are_passed_over() {
        let mut bytes = reply(Code::Ok, "show").encode_to_vec();
        // Field 200: a number, a text, a fixed32 and a fixed64.
        for field in [&[0xc0, 0x0c, 5][..], &[0xc2, 0x0c, 1, b'x'], &[0xc5, 0x0c, 1, 2, 3, 4]] {
            bytes.extend(field);
        }
        bytes.extend([0xc1, 0x0c, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(Expected::Stream("show").is_answered_by(&bytes));
        bytes.extend([0xc3, 0x0c, 0xc4, 0x0c]);
        assert!(!Expected::Stream("show").is_answered_by(&bytes), "a group is of nobody's");
    }
}
