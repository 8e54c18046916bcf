//! `Query`: what is asked. There are few of them, so prost reads them.

use super::{
    decode,
    proto::{self, query::Query},
};
use crate::engine::{Invalid, MAX_HISTORY_OF_STREAM, StreamId};

/// The most streams in one page, and how many there are if nobody says: 1,000 states of the greatest size stay below
/// the megabyte that a broker takes.
pub const MAX_PAGE: u32 = 1_000;
/// See [`MAX_PAGE`].
pub const DEFAULT_PAGE: u32 = 100;
/// The most entries of a history in one answer, which is what is kept of a stream.
pub const MAX_HISTORY: u32 = MAX_HISTORY_OF_STREAM as u32;

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
    /// What a stream was asked to be.
    Config(StreamId<'a>),
    /// What time it is.
    Time,
    /// A page of a stream's subscribers.
    Subscribers {
        /// Of which stream.
        stream_id: StreamId<'a>,
        /// Most subscribers in the page.
        limit: usize,
        /// The slot where it begins.
        from_slot: u32,
    },
    /// What happened to a stream, the newest first.
    History {
        /// To which stream.
        stream_id: StreamId<'a>,
        /// Most entries in the answer.
        limit: usize,
        /// Only entries of lower revisions, if it is given.
        before_revision: Option<u64>,
    },
}

impl Question<'_> {
    /// How much work it is for a shard at the least, as a message of that many bytes times 64 would be: what has a large
    /// answer may fill no mailbox.
    #[must_use]
    pub const fn weight(&self) -> usize {
        match self {
            Self::State(_) | Self::Stats(_) | Self::Time => 1,
            Self::List { limit, .. } | Self::History { limit, .. } => *limit,
            // A usual configuration takes as long as this.
            Self::Config(_) => 100,
            Self::Subscribers { limit, .. } => *limit + LOOKS_WEIGHT,
        }
    }
}

/// What looking for a page of subscribers weighs at the most: 65,536 looks in a row, or 4,096 here and there.
pub const LOOKS_WEIGHT: usize = 1_000;

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
        parts.map(|(shard, slot)| Self { shard, slot }).ok_or_else(bad_cursor)
    }

    /// As it goes into an answer.
    #[must_use]
    pub fn to_text(self) -> String {
        format!("{}-{}", self.shard, self.slot)
    }
}

/// Where a page of subscribers begins, which is all that its cursor says: none is as it was at the first page.
fn slot(cursor: &str) -> Result<u32, Invalid> {
    if cursor.is_empty() {
        return Ok(0);
    }
    cursor.parse().map_err(|_| bad_cursor())
}

fn bad_cursor() -> Invalid {
    Invalid::new("cursor must be empty or as the page before gave it")
}

/// How much is asked for at once; 0 is the default.
fn limit(asked: u32, most: u32) -> Result<usize, Invalid> {
    match asked {
        0 => Ok(DEFAULT_PAGE as usize),
        asked if asked <= most => Ok(asked as usize),
        asked => Err(Invalid::new(format!("limit must be 0 (for {DEFAULT_PAGE}) to {most}, not {asked}"))),
    }
}

/// What a message asks.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field and the limit.
pub fn question(message: &proto::Query) -> Result<Question<'_>, Invalid> {
    let query = message.query.as_ref().ok_or_else(|| decode::missing("query", "GetState to GetHistory"))?;
    Ok(match query {
        Query::GetState(m) => Question::State(StreamId::parse(&m.stream_id)?),
        Query::GetStats(m) if m.stream_id.is_empty() => Question::Stats(None),
        Query::GetStats(m) => Question::Stats(Some(StreamId::parse(&m.stream_id)?)),
        Query::ListStreams(m) => Question::List { limit: limit(m.limit, MAX_PAGE)?, from: Cursor::parse(&m.cursor)? },
        Query::GetConfig(m) => Question::Config(StreamId::parse(&m.stream_id)?),
        Query::GetTime(_) => Question::Time,
        Query::ListSubscribers(m) => Question::Subscribers {
            stream_id: StreamId::parse(&m.stream_id)?,
            limit: limit(m.limit, MAX_PAGE)?,
            from_slot: slot(&m.cursor)?,
        },
        Query::GetHistory(m) => Question::History {
            stream_id: StreamId::parse(&m.stream_id)?,
            limit: limit(m.limit, MAX_HISTORY)?,
            before_revision: Some(m.before_revision).filter(|revision| *revision > 0),
        },
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

    fn asked(query: Query) -> Result<String, String> {
        let message = proto::Query { query: Some(query) };
        question(&message).map(|question| format!("{question:?}")).map_err(|error| error.0)
    }

    #[test]
    fn a_page_of_subscribers_has_a_limit_and_begins_at_its_cursor() {
        let page = |limit, cursor: &str| {
            let (stream_id, cursor) = ("show".to_owned(), cursor.to_owned());
            asked(Query::ListSubscribers(proto::ListSubscribers { stream_id, limit, cursor }))
        };
        let stream_id = StreamId::parse("show").unwrap();
        let subscribers = |limit, from_slot| Ok(format!("{:?}", Question::Subscribers { stream_id, limit, from_slot }));
        assert_eq!(page(0, ""), subscribers(100, 0));
        assert_eq!(page(1_000, "4294967295"), subscribers(1_000, u32::MAX));
        assert_eq!(page(1_001, "").unwrap_err(), "limit must be 0 (for 100) to 1000, not 1001");
        for cursor in ["-1", "4294967296", "1-1", "x"] {
            assert!(page(1, cursor).unwrap_err().contains("cursor"), "{cursor}");
        }
    }

    #[test]
    fn a_history_is_asked_for_from_the_newest_or_from_a_revision_on() {
        let history = |limit, before_revision| {
            asked(Query::GetHistory(proto::GetHistory { stream_id: "show".into(), limit, before_revision }))
        };
        let stream_id = StreamId::parse("show").unwrap();
        let expected =
            |limit, before_revision| Ok(format!("{:?}", Question::History { stream_id, limit, before_revision }));
        assert_eq!(history(0, 0), expected(100, None));
        assert_eq!(history(256, 9), expected(256, Some(9)));
        assert_eq!(history(257, 0).unwrap_err(), "limit must be 0 (for 100) to 256, not 257");
    }
}
