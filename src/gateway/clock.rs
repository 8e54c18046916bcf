//! What a viewer's clock is set by: a message `{"time": <number>}` is answered with the same number and the service's time.
//!
//! ```text
//! viewer:   {"time": 81.5}
//! gateway:  {"time":81.5,"server_time_ms":1790000000000.123,"error_ms":0.412}
//! ```
//!
//! The time is the service's, not the gateway's, so viewers of all gateways agree, and with `server_time_ms` of the
//! updates. It is estimated by the [client](crate::client::Client::service_time), and `error_ms` is by how much it may
//! be wrong. What the way between viewer and gateway adds is for the viewer to find out: its number comes back as it
//! was sent, digit for digit.
//!
//! Before there is an estimate, the first question waits for one. If none can be had, the answer says why:
//! `{"time":81.5,"server_time_ms":null,"error_ms":null,"reason":"…"}`. While an answer waits, for that or for the viewer to
//! take what was sent before, the number of a newer question takes the place of the one before. How many may come is bounded
//! as is all that a viewer says (`talk`).

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};

use super::line::text_frame;
use crate::client::{Client, ClientError, ServiceTime};

/// The longest number that is sent back, bytes: a double has at most 24, and an integer of 64 bits 20.
const MAX_NUMBER_BYTES: usize = 32;

/// A viewer's question for the time, until it can be answered.
pub(super) struct TimeQuestion {
    number: Box<str>,
    time: BoxFuture<'static, Result<ServiceTime, ClientError>>,
}

impl TimeQuestion {
    /// Notes what a viewer said, if it is a question. Of one that waits already only the number changes: were its time asked
    /// for anew, who asks again before there is an answer would never have one.
    pub(super) fn note(waiting: &mut Option<Box<Self>>, said: &str, client: &Client) {
        let Some(number) = number(said).map(Box::from) else { return };
        if let Some(question) = waiting {
            question.number = number;
            return;
        }
        let client = client.clone();
        *waiting = Some(Box::new(Self { number, time: async move { client.service_time().await }.boxed() }));
    }

    /// The answer, once there is one, as a frame.
    pub(super) fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        let time = ready!(self.time.poll_unpin(context));
        Poll::Ready(text_frame(answer(&self.number, time.as_ref().map_err(ClientError::message))))
    }
}

/// The number in `{"time": <number>}`, as it is written.
fn number(text: &str) -> Option<&str> {
    let member = text.trim_matches(is_space).strip_prefix('{')?.strip_suffix('}')?;
    let value = member.trim_start_matches(is_space).strip_prefix(r#""time""#)?;
    let value = value.trim_start_matches(is_space).strip_prefix(':')?.trim_matches(is_space);
    let is_number = value.len() <= MAX_NUMBER_BYTES && serde_json::from_str::<serde_json::Number>(value).is_ok();
    is_number.then_some(value)
}

/// White space as JSON has it.
const fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r')
}

fn answer(number: &str, time: Result<&ServiceTime, &str>) -> String {
    match time {
        Ok(ServiceTime { since_1970, error }) => {
            format!(r#"{{"time":{number},"server_time_ms":{},"error_ms":{}}}"#, in_ms(*since_1970), in_ms(*error))
        }
        Err(reason) => {
            let reason = serde_json::Value::from(reason);
            format!(r#"{{"time":{number},"server_time_ms":null,"error_ms":null,"reason":{reason}}}"#)
        }
    }
}

fn in_ms(duration: Duration) -> String {
    format!("{}.{:03}", duration.as_millis(), duration.subsec_micros() % 1_000)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn numbers_are_read_as_they_are_written() {
        for (text, expected) in [
            (r#"{"time":5}"#, "5"),
            (" {\t\"time\" :\r\n -81.50 } ", "-81.50"),
            (r#"{"time":1e3}"#, "1e3"),
            (r#"{"time":18446744073709551616}"#, "18446744073709551616"),
            (r#"{"time":1790000000000.1234567}"#, "1790000000000.1234567"),
        ] {
            assert_eq!(number(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn whatever_else_is_said_is_no_question() {
        let long = format!(r#"{{"time":{}}}"#, "1".repeat(33));
        for text in [
            "",
            "hello",
            "{}",
            "{",
            "}",
            r#"{"time":}"#,
            r#"{"time":"5"}"#,
            r#"{"time":null}"#,
            r#"{"time":5,"x":6}"#,
            r#"{"time":05}"#,
            r#"{"time":5}}"#,
            r#"{"time":1e999}"#,
            r#"{"times":5}"#,
            r#"["time",5]"#,
            &long,
        ] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn an_answer_has_the_number_and_the_time_to_the_microsecond() {
        let time = ServiceTime {
            since_1970: Duration::from_micros(1_790_000_000_000_007),
            error: Duration::from_micros(1_412),
        };
        let text = answer("81.50", Ok(&time));
        assert_eq!(text, r#"{"time":81.50,"server_time_ms":1790000000000.007,"error_ms":1.412}"#);
    }

    #[test]
    fn an_answer_without_a_time_says_why() {
        let text = answer("7", Err("because of \"that\""));
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        let expected = json!({"time": 7, "server_time_ms": null, "error_ms": null, "reason": "because of \"that\""});
        assert_eq!(answer, expected);
    }
}
