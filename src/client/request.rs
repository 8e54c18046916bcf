//! One request: how often it is sent, and for how long.
//!
//! | what happened to an attempt | what follows |
//! |---|---|
//! | the service answered, with a refusal too | that is the result: asking more helps no overloaded service |
//! | something came that is no [answer](super::answer) | it is passed over |
//! | no answer within [`attempt_timeout`](ClientOptions::attempt_timeout) | another attempt |
//! | the broker is away | another attempt |
//! | nobody listens | another attempt, for [`absent_timeout`](ClientOptions::absent_timeout) from the first time on |
//! | it is too large, or the broker refuses it | that is the result |
//!
//! Between two attempts is a pause of 100 to 200 ms. All of it ends after
//! [`total_timeout`](ClientOptions::total_timeout), or when the caller no longer waits.
//!
//! Every attempt sends the same bytes, and with them the same request id: if only the answer was lost, the service gives it
//! again instead of executing twice.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout_at};

use super::{ClientError, ClientOptions, ErrorKind, answer::Expected, core::Core};

/// Pause before a request that nobody answered is sent again, plus up to as much again: long enough not to be a
/// load on a service that starts, short against the time that a call has.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How much later than the transport itself an attempt is given up: a call must end whatever is beneath it.
const MARGIN: Duration = Duration::from_millis(100);

/// A request, to be sent as often as it takes.
#[derive(Debug, Clone)]
pub(super) struct Request<'a> {
    subject: &'static str,
    payload: Bytes,
    expected: Expected<'a>,
}

impl<'a> Request<'a> {
    pub(super) fn new(subject: &'static str, payload: Vec<u8>, expected: Expected<'a>) -> Self {
        Self { subject, payload: payload.into(), expected }
    }
}

/// How long a request is tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    until: Instant,
    absent_for: Duration,
}

impl Budget {
    /// When it is used up.
    pub(super) fn until(self) -> Instant {
        self.until
    }
}

impl Core {
    /// The time that a call has, from now on.
    pub(super) fn budget(&self) -> Budget {
        let ClientOptions { total_timeout, absent_timeout, .. } = self.options;
        Budget { until: Instant::now() + total_timeout, absent_for: absent_timeout }
    }

    /// Sends a request until it is answered, as the table above says.
    pub(super) async fn ask(&self, request: &Request<'_>, budget: Budget) -> Result<Bytes, ClientError> {
        self.ask_while(request, budget, || true).await
    }

    /// The same, but begins no other attempt once it is not `wanted` any more.
    pub(super) async fn ask_while(
        &self,
        request: &Request<'_>,
        budget: Budget,
        wanted: impl Fn() -> bool,
    ) -> Result<Bytes, ClientError> {
        let mut absent_since = None;
        let mut reached_none = true;
        loop {
            let error = match self.ask_once(request, budget.until).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            reached_none &= error.reached_none();
            let pause = RETRY_PAUSE + self.random.below(RETRY_PAUSE);
            let now = Instant::now();
            let give_up_at = if error.kind() == ErrorKind::NoService {
                budget.until.min(*absent_since.get_or_insert(now) + budget.absent_for)
            } else {
                budget.until
            };
            let error = error.with_reached_none(reached_none);
            if !error.is_unanswered() || now + pause >= give_up_at {
                return Err(error);
            }
            tracing::debug!(subject = request.subject, %error, "nothing answered, trying again");
            sleep(pause).await;
            if !wanted() {
                return Err(error);
            }
        }
    }

    /// One attempt, at most for the timeout of an attempt and not past `until`.
    pub(super) async fn ask_once(&self, request: &Request<'_>, until: Instant) -> Result<Bytes, ClientError> {
        let Request { subject, payload, expected } = request;
        let bytes = payload.len();
        if let Some(limit) = self.transport.max_payload().filter(|limit| bytes > *limit) {
            return Err(ClientError::too_large(bytes, limit));
        }
        let connection = self.transport.connection();
        let before = *connection.borrow();
        let timeout = self.options.attempt_timeout.min(until.saturating_duration_since(Instant::now()));
        let accept = |message: &crate::transport::Message| expected.is_answered_by(&message.payload);
        let asked = self.transport.request_where(subject, payload.clone(), timeout, &accept);
        match timeout_at(Instant::now() + timeout + MARGIN, asked).await {
            Ok(Ok(answer)) => Ok(answer.payload),
            Ok(Err(error)) => {
                let error = ClientError::from(error);
                // Without a connection at any time nothing was sent.
                let was_away = !before.connected && *connection.borrow() == before;
                let reached_none = error.reached_none() || was_away && error.kind() == ErrorKind::Unavailable;
                Err(error.with_reached_none(reached_none))
            }
            Err(_) => Err(ClientError::new(ErrorKind::Timeout, format!("no answer within {timeout:?}"))),
        }
    }
}
