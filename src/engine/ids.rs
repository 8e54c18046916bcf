//! Names and time: the newtypes that everything else speaks in.
//!
//! An id that exists is valid: `parse` is the only door, so nothing behind it checks again.

use std::{fmt, net::SocketAddr};

/// A point in time, in whole milliseconds. The engine only compares and subtracts; the service counts from 1970, on a
/// clock that never goes back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Tick(pub u64);

impl Tick {
    /// Later than anything that will ever be due.
    pub const NEVER: Self = Self(u64::MAX);

    /// This point and `ms` more; [`Tick::NEVER`] at the end of time.
    #[must_use]
    pub const fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds gone by since `earlier`, 0 if it is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The wall clock, as whoever runs the engine has last told: how far it is ahead of the ticks. It can be set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WallClock {
    ahead_ms: i64,
}

impl WallClock {
    /// It is `wall_ms`, ms since 1970, at that tick.
    #[must_use]
    pub const fn read(tick: Tick, wall_ms: u64) -> Self {
        Self { ahead_ms: wall_ms.wrapping_sub(tick.0).cast_signed() }
    }

    /// What it says at a tick, ms since 1970.
    #[must_use]
    pub const fn at(self, tick: Tick) -> u64 {
        tick.0.saturating_add_signed(self.ahead_ms)
    }

    /// The tick at which it says that, ms since 1970; the first one if that is earlier.
    #[must_use]
    pub const fn tick_of(self, wall_ms: u64) -> Tick {
        Tick(wall_ms.saturating_add_signed(self.ahead_ms.saturating_neg()))
    }
}

/// What is wrong with a value that somebody sent, in words that name the field and the limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl Invalid {
    /// Shorthand for `Invalid(format!(…))` at the end of a check.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// How many bytes a stream id or a client id may have.
pub const MAX_ID_BYTES: usize = 128;

/// How many partitions streams are hashed onto, in every release and in every client.
pub const PARTITIONS: u32 = 256;

/// The name of a stream: 1 to 128 bytes out of `A–Z a–z 0–9 - _`, because it becomes a subject's token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamId<'a>(&'a str);

impl<'a> StreamId<'a> {
    /// Checks a stream id.
    ///
    /// # Errors
    /// Names the field, the limit and what broke it.
    pub fn parse(id: &'a str) -> Result<Self, Invalid> {
        if id.is_empty() || id.len() > MAX_ID_BYTES {
            return Err(Invalid::new(format!(
                "stream_id must have 1 to {MAX_ID_BYTES} bytes, this one has {}",
                id.len()
            )));
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() | (byte == b'-') | (byte == b'_');
        // All are looked at, also behind a bad one: so the compiler takes many at a time.
        if id.bytes().fold(true, |fine, byte| fine & allowed(byte)) {
            return Ok(Self(id));
        }
        let bad = id.chars().find(|c| !u8::try_from(*c).is_ok_and(allowed)).unwrap_or_default();
        Err(Invalid::new(format!("stream_id may hold only A-Z a-z 0-9 - and _, this one holds {bad:?}")))
    }

    /// The id as it was given.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// The partition this stream belongs to: FNV-1a with 32 bits modulo [`PARTITIONS`], which is what nats-server's
    /// `partition()` mapping computes.
    #[must_use]
    pub fn partition(self) -> u8 {
        partition(self.0)
    }
}

impl fmt::Display for StreamId<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }
}

/// [`StreamId::partition`] of any text, for whoever routes before checking.
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "modulo 256")]
pub fn partition(id: &str) -> u8 {
    let hash = id.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash % PARTITIONS) as u8
}

/// Where a viewer connects from: `ip:port`, or nothing.
///
/// # Errors
/// Names the field when there is something else.
pub fn parse_source_addr(text: &str) -> Result<Option<SocketAddr>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Invalid::new("source_addr must be empty or ip:port, such as 192.0.2.7:51000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_id_is_a_subject_token() {
        for good in ["a", "A-z_9", &"x".repeat(128), "6f9619ff-8b86-d011-b42d-00cf4fc964ff"] {
            assert_eq!(StreamId::parse(good).map(StreamId::as_str), Ok(good));
        }
        for bad in ["", "a.b", "*", ">", "a b", "ü", "a\n", &"x".repeat(129)] {
            let error = StreamId::parse(bad).expect_err(bad);
            assert!(error.0.contains("stream_id"), "{error}");
        }
    }

    #[test]
    fn the_partition_is_fnv_1a_modulo_256() {
        // The published test vectors of FNV-1a with 32 bits: "" 0x811c9dc5, "a" 0xe40c292c, "foobar" 0xbf9cf968.
        assert_eq!(partition(""), 0xc5);
        assert_eq!(partition("a"), 0x2c);
        assert_eq!(partition("foobar"), 0x68);
    }
}
