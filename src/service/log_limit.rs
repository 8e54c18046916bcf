//! At most one line in an interval, for what happens as often as strangers or a broker like.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How often the same trouble is logged.
pub(super) const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Says when to log, and how many times it said no.
#[derive(Debug, Default)]
pub(super) struct LogLimit {
    /// When it last said yes, and how often it said no since.
    last: Mutex<Option<(Instant, u64)>>,
}

impl LogLimit {
    /// Whether it is time to log; if so, how often it was not since the line before.
    pub(super) fn is_due(&self) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *last {
            Some((at, missed)) if at.elapsed() < LOG_INTERVAL => {
                *missed += 1;
                None
            }
            _ => last.replace((Instant::now(), 0)).map_or(Some(0), |(_, missed)| Some(missed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_passes_in_an_interval_and_says_how_many_did_not() {
        let limit = LogLimit::default();
        assert_eq!(limit.is_due(), Some(0));
        for _ in 0..500 {
            assert_eq!(limit.is_due(), None);
        }
        tokio::time::advance(LOG_INTERVAL).await;
        assert_eq!([limit.is_due(), limit.is_due()], [Some(500), None]);
    }
}
