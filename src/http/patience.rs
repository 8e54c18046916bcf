//! Time limits for others that do not count the time during which this process itself stood still.
//!
//! When a process is stopped and goes on, or its machine slept, all its timers have run out, and what its peers sent
//! meanwhile is still unread: a timer alone would blame the peers. A timer that fires late tells of it, and so the peer
//! gets the whole period again. The service has the same rule for heartbeats.

use std::{future::Future, pin::pin, time::Duration};

use tokio::time::{Instant, sleep_until};

/// How late a timer may fire before its lateness is taken for a stop of the process: well over what a busy runtime is late
/// by, and under any time limit that is given to others.
pub const STALLED_AFTER: Duration = Duration::from_millis(250);

/// The time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

/// Whether a timer that was due at `due` fires so late that the process must have stood still.
#[must_use]
pub fn is_late(due: Instant) -> bool {
    due.elapsed() >= STALLED_AFTER
}

/// What `future` gives, if it does within `limit`.
///
/// # Errors
/// [`Elapsed`] when it does not.
pub async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut future = pin!(future);
    loop {
        let due = Instant::now() + limit;
        tokio::select! {
            biased;
            value = &mut future => return Ok(value),
            () = sleep_until(due) => {
                if !is_late(due) {
                    return Err(Elapsed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_takes_longer_than_its_limit_has_elapsed() {
        assert_eq!(within(Duration::from_secs(5), sleep(Duration::from_secs(4))).await, Ok(()));
        assert_eq!(within(Duration::from_secs(5), sleep(Duration::from_secs(6))).await, Err(Elapsed));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_stop_of_the_process_the_whole_limit_is_given_again() {
        let limit = Duration::from_secs(5);
        let waiting = tokio::spawn(within(limit, std::future::pending::<()>()));
        tokio::task::yield_now().await;
        // The clock jumps, as it does for a process that was stopped.
        advance(Duration::from_secs(21)).await;
        let more = timeout(limit - Duration::from_millis(1), async {
            while !waiting.is_finished() {
                sleep(Duration::from_millis(10)).await
            }
        });
        assert!(more.await.is_err(), "it was blamed for the stop");
        assert_eq!(waiting.await.expect("no panic"), Err(Elapsed));
    }
}
