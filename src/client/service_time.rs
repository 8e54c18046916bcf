//! The service's clock, asked for as often as somebody wants to know, and no oftener than it takes.
//!
//! | what is known | what [`Client::service_time`] does |
//! |---|---|
//! | nothing, or only something older than [`FORGET_AFTER`] | asks [`FIRST_QUESTIONS`] times, for all who wait together |
//! | something up to [`REFRESH_AFTER`] old | nothing |
//! | something older than that | the first who wants to know asks once more; the others have what is known |
//!
//! If nobody answers that one, it has what is known, too.
//!
//! While nobody wants to know, nothing is asked.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, timeout};

use super::{
    Client, ClientError, ErrorKind,
    clock_offset::{ClockOffset, ServiceTime},
};

/// How many questions are asked at first: their intervals have little more than a millisecond in common, most times.
const FIRST_QUESTIONS: usize = 8;
/// How long an estimate does: the two clocks drift apart by a quarter of a millisecond meanwhile, and so late is a
/// clock that was set found out about.
const REFRESH_AFTER: Duration = Duration::from_secs(5);
/// How long an estimate does while no question is answered: its bound has grown by 3 ms.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// How long an answer is waited for: what takes longer says little about the time.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(1);
/// For how long a failure is everybody's answer.
const FAILED_FOR: Duration = Duration::from_secs(1);

/// What is known of the service's clock.
#[derive(Debug)]
pub(super) struct ServiceClock {
    /// From where this clock of ours counts.
    origin: Instant,
    known: Mutex<Known>,
    /// Held by who asks.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    offset: Option<ClockOffset>,
    failed: Option<(Instant, ClientError)>,
}

impl ServiceClock {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), known: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    /// What is known, if it is no older than that.
    fn known_for(&self, at_most: Duration) -> Option<ServiceTime> {
        let now = self.origin.elapsed();
        self.known().offset.filter(|offset| offset.age(now) <= at_most).map(|offset| offset.time_at(now))
    }

    fn recent_failure(&self) -> Option<ClientError> {
        let known = self.known();
        known.failed.as_ref().filter(|(at, _)| at.elapsed() < FAILED_FOR).map(|(_, error)| error.clone())
    }

    fn note(&self, answer: Result<ClockOffset, ClientError>) {
        let mut known = self.known();
        match answer {
            Ok(offset) => known.offset = Some(known.offset.map_or(offset, |before| before.and(offset))),
            Err(error) => known.failed = Some((Instant::now(), error)),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// What the service's wall clock says now, and by how much that may be wrong: what `server_time_ms` of its updates is
    /// measured by, and what [`Playout::at`](super::Playout::at) wants to know.
    ///
    /// It is estimated from questions ([`Client::get_time`]): several at first, and one each 5 s for as long as somebody
    /// calls this. Over a quiet network the bound is about a millisecond. A service's clock that is set is found out
    /// about with the next question.
    ///
    /// # Errors
    /// When nothing answers, and nothing has for a minute.
    pub async fn service_time(&self) -> Result<ServiceTime, ClientError> {
        let clock = &self.core().clock;
        if let Some(time) = clock.known_for(REFRESH_AFTER) {
            return Ok(time);
        }
        if let Some(time) = clock.known_for(FORGET_AFTER) {
            // While somebody asks already, what is known does.
            let Ok(_asking) = clock.asking.try_lock() else { return Ok(time) };
            if clock.recent_failure().is_none() {
                self.ask_time().await;
            }
            return Ok(clock.known_for(Duration::MAX).unwrap_or(time));
        }
        let _asking = clock.asking.lock().await;
        // What another has found out meanwhile is for all.
        if let Some(time) = clock.known_for(REFRESH_AFTER) {
            return Ok(time);
        }
        for _ in 0..FIRST_QUESTIONS {
            if clock.recent_failure().is_none() {
                self.ask_time().await;
            }
        }
        let failure = || clock.recent_failure().unwrap_or_else(ClientError::closed);
        clock.known_for(FORGET_AFTER).ok_or_else(failure)
    }

    async fn ask_time(&self) {
        let clock = &self.core().clock;
        let sent = clock.origin.elapsed();
        let answer = timeout(QUESTION_TIMEOUT, self.get_time()).await;
        let received = clock.origin.elapsed();
        let answer = answer.unwrap_or_else(|_| {
            Err(ClientError::new(ErrorKind::Timeout, format!("no answer within {QUESTION_TIMEOUT:?}")))
        });
        let offset = answer.map(|server_time_ms| ClockOffset::of_answer(server_time_ms, sent, received));
        clock.note(offset);
    }
}

#[cfg(test)]
#[path = "service_time_tests.rs"]
mod tests;
