//! How much a viewer may say. Nothing of it matters but pongs, and reading it takes time that others need.

use std::time::Duration;

use tokio::time::Instant;

/// How long a viewer may say at once what it may say in a second on average, s: one that comes back from a line without
/// reception answers many pings at once.
const BURST: u64 = 10;

/// Of an answer to a ping, bytes: its head, its mask and the number.
const ANSWER_BYTES: u64 = 10;

/// How much a viewer may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TalkLimits {
    /// Bytes a second, on average.
    pub bytes_per_second: u32,
    /// Messages a second, on average, fragments and reads of the connection among them.
    pub messages_per_second: u32,
}

impl Default for TalkLimits {
    fn default() -> Self {
        Self { bytes_per_second: 4 << 10, messages_per_second: 20 }
    }
}

/// A viewer said more than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more was said than a viewer may")]
pub(super) struct TooMuch;

/// What is left of it. Both are kept as the moment up to which a second's share is used up, so that time gives them back
/// by itself.
#[derive(Debug)]
pub(super) struct Allowance {
    bytes: Bucket,
    messages: Bucket,
}

impl Allowance {
    pub(super) fn new(limits: TalkLimits) -> Self {
        let now = Instant::now();
        Self {
            bytes: Bucket::new(limits.bytes_per_second, now),
            messages: Bucket::new(limits.messages_per_second, now),
        }
    }

    /// So many bytes came with one read.
    pub(super) fn take_bytes(&mut self, bytes: usize) -> Result<(), TooMuch> {
        let now = Instant::now();
        self.messages.take(1, now)?;
        self.bytes.take(bytes as u64, now)
    }

    /// An answer to one of our own questions came: it was asked for.
    pub(super) fn forgive_answer(&mut self) {
        self.messages.give_back(2);
        self.bytes.give_back(ANSWER_BYTES);
    }

    /// A message came.
    pub(super) fn take_message(&mut self) -> Result<(), TooMuch> {
        self.messages.take(1, Instant::now())
    }
}

/// A token bucket (the generic cell rate algorithm).
#[derive(Debug)]
struct Bucket {
    used_until: Instant,
    per_second: u32,
}

impl Bucket {
    fn new(per_second: u32, now: Instant) -> Self {
        Self { used_until: now, per_second: per_second.max(1) }
    }

    fn take(&mut self, amount: u64, now: Instant) -> Result<(), TooMuch> {
        let used_until = self.used_until.max(now) + self.cost(amount);
        if used_until > now + Duration::from_secs(BURST) {
            return Err(TooMuch);
        }
        self.used_until = used_until;
        Ok(())
    }

    fn give_back(&mut self, amount: u64) {
        self.used_until = self.used_until.checked_sub(self.cost(amount)).unwrap_or(self.used_until);
    }

    fn cost(&self, amount: u64) -> Duration {
        Duration::from_nanos(amount.saturating_mul(1_000_000_000 / u64::from(self.per_second)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_allowed_and_then_so_much_a_second() {
        let mut allowance = Allowance::new(TalkLimits { bytes_per_second: 100, messages_per_second: 1_000 });
        assert_eq!(allowance.take_bytes(1_000), Ok(()), "ten seconds' worth");
        assert_eq!(allowance.take_bytes(1), Err(TooMuch));
        for _ in 0..100 {
            advance(Duration::from_millis(500)).await;
            assert_eq!(allowance.take_bytes(50), Ok(()));
        }
        assert_eq!(allowance.take_bytes(1), Err(TooMuch));
    }

    #[tokio::test(start_paused = true)]
    async fn many_small_reads_and_messages_are_too_much_as_well() {
        let mut allowance = Allowance::new(TalkLimits { bytes_per_second: 1_000, messages_per_second: 2 });
        for _ in 0..10 {
            assert_eq!((allowance.take_bytes(1), allowance.take_message()), (Ok(()), Ok(())));
        }
        assert_eq!(allowance.take_bytes(0), Err(TooMuch));
        advance(Duration::from_secs(1)).await;
        assert_eq!((allowance.take_message(), allowance.take_message()), (Ok(()), Ok(())));
        assert_eq!(allowance.take_message(), Err(TooMuch));
    }
}
