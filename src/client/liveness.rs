//! Whether there is a service: asked for as long as somebody may want to know, once for all who do.
//!
//! Three things show that there is none. The connection to the broker is away; the broker says that nobody listens; or
//! answers stop. The first two are known at once or with the next question. For the third, two questions in a row have
//! to stay unanswered, since one may get lost, or be missed by a client that was stopped itself.
//!
//! | step | at most |
//! |---|---|
//! | from an answer to the next question | [`PROBE_INTERVAL`] |
//! | a question and the one behind it stay unanswered | 2 × [`PROBE_TIMEOUT`] |
//! | so an absence is found out within | 2.75 s |
//!
//! The question is for the counts of the whole service, to which every shard adds its part.

use std::{fmt, sync::Arc, time::Duration};

use prost::Message as _;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    ClientError, ErrorKind, UpdatesFrom, answer::Expected, calls::accepted_query, core::Core, request::Request,
};
use crate::{
    transport::Connection,
    wire::{
        proto::{self, PublishedTo},
        subject,
    },
};

/// How long after an answer the next question is asked: little for a service with many clients.
const PROBE_INTERVAL: Duration = Duration::from_millis(750);
/// How long an answer is waited for: far longer than a busy service takes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How many questions in a row have to stay unanswered.
const MAX_UNANSWERED: u32 = 2;
/// Over how long clients spread their first questions when a broker is back, which they all see at the same moment.
const RECONNECT_SPREAD: Duration = Duration::from_millis(250);
/// How often at most it is logged that the service is away.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Whether there is a service, as far as a client knows: see [`Client::service`](super::Client::service).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceState {
    /// Not known yet: the first question is under way. Becomes another within 3 s, and never comes again.
    Unknown,
    /// It answered, less than 3 s ago.
    Alive,
    /// It answers, but publishes updates where this client does not read them: nothing will come.
    Elsewhere {
        /// Where this client reads.
        reads: UpdatesFrom,
        /// Where the service says that it publishes.
        publishes: PublishedTo,
    },
    /// There is none: what was last seen of its streams may no longer be true.
    Away {
        /// When this was found out; at most 3 s after it began.
        since: Instant,
        /// Why, as it looks now: it may become another while the absence goes on.
        reason: Absence,
    },
}

/// Why a service is away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absence {
    /// The connection to the broker is away.
    Broker,
    /// The broker says that nobody listens.
    NoService,
    /// No answer comes.
    Silent,
    /// No question can be asked: why in words.
    Refused(Arc<str>),
}

impl ServiceState {
    /// Whether it is [`Self::Alive`].
    #[must_use]
    pub fn is_alive(&self) -> bool {
        *self == Self::Alive
    }

    /// The same for a readiness check.
    ///
    /// # Errors
    /// Says in words why there is none.
    pub fn ready(&self) -> Result<(), String> {
        match self {
            Self::Unknown => Err("no service has answered yet".to_owned()),
            Self::Alive => Ok(()),
            Self::Elsewhere { reads, publishes } => Err(format!(
                "updates are read from {} and published to {}: nothing will come",
                match reads {
                    UpdatesFrom::Subjects => "SUBJECTS",
                    UpdatesFrom::Feed => "FEED",
                },
                publishes.as_str_name().trim_start_matches("PUBLISHED_TO_"),
            )),
            Self::Away { reason, .. } => Err(reason.to_string()),
        }
    }
}

impl fmt::Display for Absence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker => formatter.write_str("the connection to the broker is away"),
            Self::NoService => formatter.write_str("no service listens"),
            Self::Silent => write!(formatter, "no service answers within {PROBE_TIMEOUT:?}"),
            Self::Refused(why) => write!(formatter, "the service cannot be asked: {why}"),
        }
    }
}

/// Asks until it is aborted.
pub(super) async fn run(core: Arc<Core>) {
    let mut connection = core.transport.connection();
    let mut observer = Observer { core: &core, unanswered: 0, logged: None, is_logged: false, logged_elsewhere: None };
    // An error would mean that the transport is gone, which the core holds.
    while let Ok(()) = ask(&mut observer, &mut connection).await {}
}

/// Asks once, and waits until it is time to ask again.
async fn ask(
    observer: &mut Observer<'_>,
    connection: &mut watch::Receiver<Connection>,
) -> Result<(), watch::error::RecvError> {
    if !connection.borrow_and_update().connected {
        observer.found(Absence::Broker);
        connection.changed().await?;
        if connection.borrow().connected {
            sleep(observer.core.random.below(RECONNECT_SPREAD)).await;
        }
        return Ok(());
    }
    let pause = tokio::select! {
        biased;
        answer = observer.core.probe() => observer.heard(answer),
        changed = connection.changed() => return changed,
    };
    tokio::select! {
        biased;
        changed = connection.changed() => changed,
        () = sleep(pause) => Ok(()),
    }
}

/// What the questions have come to so far.
struct Observer<'a> {
    core: &'a Core,
    /// How many questions in a row were not answered.
    unanswered: u32,
    /// When an absence was last logged, and whether the present one was.
    logged: Option<Instant>,
    is_logged: bool,
    /// When it was last logged that updates are published elsewhere.
    logged_elsewhere: Option<Instant>,
}

impl Observer<'_> {
    /// Takes note of an answer and says how long to wait until the next question.
    fn heard(&mut self, answer: Result<PublishedTo, ClientError>) -> Duration {
        let error = match answer {
            Ok(publishes) => {
                self.found_there(state_of(self.core.options.updates, publishes));
                return PROBE_INTERVAL;
            }
            Err(error) => error,
        };
        match error.kind() {
            // It is an answer: there is a service, perhaps with too much to do.
            ErrorKind::Rejected(_) => {
                let known = self.core.service.borrow().clone();
                let is_elsewhere = matches!(known, ServiceState::Elsewhere { .. });
                self.found_there(if is_elsewhere { known } else { ServiceState::Alive });
            }
            ErrorKind::NoService => self.found(Absence::NoService),
            ErrorKind::Timeout => {
                self.unanswered = self.unanswered.saturating_add(1);
                if self.unanswered < MAX_UNANSWERED {
                    return Duration::ZERO;
                }
                self.found(Absence::Silent);
            }
            ErrorKind::Unavailable | ErrorKind::Closed => self.found(Absence::Broker),
            ErrorKind::Denied | ErrorKind::InvalidArgument | ErrorKind::Exhausted | ErrorKind::Undecodable => {
                self.found(Absence::Refused(error.message().into()));
            }
        }
        PROBE_INTERVAL
    }

    /// There is one, alive or publishing elsewhere.
    fn found_there(&mut self, now: ServiceState) {
        self.unanswered = 0;
        let mut before = now.clone();
        self.core.service.send_if_modified(|state| {
            before = std::mem::replace(state, now.clone());
            before != now
        });
        if let ServiceState::Away { since, reason } = before {
            self.log_return(since, &reason);
            self.core.returns.count_one();
        }
        if let (ServiceState::Elsewhere { .. }, Err(why)) = (&now, now.ready())
            && self.logged_elsewhere.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL)
        {
            self.logged_elsewhere = Some(Instant::now());
            tracing::warn!("{why}");
        }
    }

    fn found(&mut self, reason: Absence) {
        let mut is_new = false;
        self.core.service.send_if_modified(|state| match state {
            ServiceState::Away { reason: known, .. } if *known == reason => false,
            ServiceState::Away { reason: known, .. } => {
                *known = reason.clone();
                true
            }
            ServiceState::Unknown | ServiceState::Alive | ServiceState::Elsewhere { .. } => {
                is_new = true;
                *state = ServiceState::Away { since: Instant::now(), reason: reason.clone() };
                true
            }
        });
        if is_new {
            self.log_loss(&reason);
        }
    }

    /// A service that comes and goes fills no log.
    fn log_loss(&mut self, reason: &Absence) {
        self.is_logged = self.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL);
        if self.is_logged {
            self.logged = Some(Instant::now());
            tracing::warn!(%reason, "the service is away");
        } else {
            tracing::debug!(%reason, "the service is away again");
        }
    }

    fn log_return(&self, since: Instant, reason: &Absence) {
        let away_for = since.elapsed();
        if self.is_logged {
            tracing::info!(?away_for, %reason, "the service is there again");
        } else {
            tracing::debug!(?away_for, %reason, "the service is there again");
        }
    }
}

/// What to make of a service that publishes there. One that does not say so is believed to publish where it should.
fn state_of(reads: UpdatesFrom, publishes: PublishedTo) -> ServiceState {
    match (reads, publishes) {
        (_, PublishedTo::Unknown | PublishedTo::Both)
        | (UpdatesFrom::Subjects, PublishedTo::Subjects)
        | (UpdatesFrom::Feed, PublishedTo::Feed) => ServiceState::Alive,
        (UpdatesFrom::Subjects, PublishedTo::Feed) | (UpdatesFrom::Feed, PublishedTo::Subjects) => {
            ServiceState::Elsewhere { reads, publishes }
        }
    }
}

impl Core {
    /// Asks the service once whether it is there.
    async fn probe(&self) -> Result<PublishedTo, ClientError> {
        let query = Some(proto::query::Query::GetStats(proto::GetStats::default()));
        let question = Request::new(subject::QUERY, proto::Query { query }.encode_to_vec(), Expected::Stats);
        let reply = accepted_query(self.ask_once(&question, Instant::now() + PROBE_TIMEOUT).await?)?;
        Ok(reply.stats.map_or(PublishedTo::Unknown, |stats| stats.published_to()))
    }
}

#[cfg(test)]
#[path = "liveness_tests.rs"]
mod tests;
