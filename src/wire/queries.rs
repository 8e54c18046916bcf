//! `Query`: what is asked. There are few of them, so prost reads them.

use super::{
    decode,
    proto::{self, query::Query},
};
use crate::engine::{Invalid, StreamId};

/// The most streams in one page, and how many there are if nobody says: 1,000 states of the greatest size stay below
/// the megabyte that a broker takes.
pub const MAX_PAGE: u32 = 1_000;
/// See [`MAX_PAGE`].
pub const DEFAULT_PAGE: u32 = 100;

/// A message on `orchestrator.query`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// The state of one stream.
    State(StreamId<'a>),
    /// How many there are: of one stream, or of all.
    Stats(Option<StreamId<'a>>),
    /// A page of streams.
    List {
        /// Most states in the page.
        limit: usize,
        /// Where it begins.
        from: Cursor,
    },
}

/// Where a page of streams begins: opaque for its holder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Which shard.
    pub shard: u32,
    /// Which slot of its engine.
    pub slot: u32,
}

impl Cursor {
    /// The most that it takes in an answer: key, length, two numbers of 32 bits and what is between them, bytes.
    pub const MAX_FIELD_BYTES: usize = 2 + 10 + 1 + 10;

    /// Reads it as it came back; empty text is the beginning.
    ///
    /// # Errors
    /// For anything that [`Cursor::to_text`] does not write.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let parts = text.split_once('-').and_then(|(shard, slot)| Some((shard.parse().ok()?, slot.parse().ok()?)));
        parts
            .map(|(shard, slot)| Self { shard, slot })
            .ok_or_else(|| Invalid::new("cursor must be empty or as the page before gave it"))
    }

    /// As it goes into an answer.
    #[must_use]
    pub fn to_text(self) -> String {
        format!("{}-{}", self.shard, self.slot)
    }
}

/// What a message asks.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field and the limit.
pub fn question(message: &proto::Query) -> Result<Question<'_>, Invalid> {
    let query = message.query.as_ref().ok_or_else(|| decode::missing("query", "GetState, ListStreams or GetStats"))?;
    Ok(match query {
        Query::GetState(m) => Question::State(StreamId::parse(&m.stream_id)?),
        Query::GetStats(m) if m.stream_id.is_empty() => Question::Stats(None),
        Query::GetStats(m) => Question::Stats(Some(StreamId::parse(&m.stream_id)?)),
        Query::GetConfig(_) | Query::GetTime(_) | Query::ListSubscribers(_) | Query::GetHistory(_) => {
            return Err(Invalid::new("query is not possible yet"));
        }
        Query::ListStreams(m) => {
            let limit = if m.limit == 0 { DEFAULT_PAGE } else { m.limit };
            if limit > MAX_PAGE {
                return Err(Invalid::new(format!("limit must be 0 (for {DEFAULT_PAGE}) to {MAX_PAGE}, not {limit}")));
            }
            Question::List { limit: limit as usize, from: Cursor::parse(&m.cursor)? }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let cursor = Cursor { shard: 3, slot: u32::MAX };
        assert_eq!(Cursor::parse(&cursor.to_text()), Ok(cursor));
        assert!(Cursor::parse("7").is_err());
        assert!(Cursor::parse("1-99999999999").is_err());
    }

    #[test]
    fn a_query_without_a_question_names_the_field() {
        let error = question(&proto::Query::default()).unwrap_err();
        assert!(error.0.contains("query"), "{error}");
    }
}
