//! The client's one background task: it keeps all registrations alive with as few messages as possible.
//!
//! What is to be asked is decided in the [table](super::registration_table); here are the timer, the requests and the end.
//! The heartbeat interval is cut into slots, and each registration beats in its own: a gateway's viewers never beat all
//! at once, and those of one slot share a message. Requests run a few at a time; whatever is not asked yet waits in the
//! table.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use prost::Message as _;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

use super::{
    ClientError, answer::Expected, calls::decode_reply, core::Core, registration_table::Job, request::Request,
};
use crate::{
    transport::Connection,
    wire::{
        proto::{self, Reply, subscription_command::Command},
        subject,
    },
};

/// Into how many slots the heartbeat interval is cut, at most: half a second each for 30 s.
const MAX_SLOTS: u32 = 64;
/// A slot shorter than this would only cost wake-ups.
const MIN_SLOT: Duration = Duration::from_millis(10);
/// Requests under way at once: enough to hide the round trip, few enough to be no burst.
const MAX_JOBS: usize = 16;
/// How long after a failed request the next is made, plus up to as much again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What a broker is taken for that has not said how much it takes: it says so when it is connected to.
const ASSUMED_MAX_PAYLOAD: usize = 16 * 1024;
/// How often at most it is logged that requests fail.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Over how long it is spread that clients register again with a stream that was created anew: all of them see its first
/// update at the same moment.
const RENEW_SPREAD: Duration = Duration::from_secs(1);

/// Runs until the table is closed and all are unregistered, or the time for that is over.
pub(super) async fn run(core: Arc<Core>) {
    let mut keeper = Keeper::new(core);
    keeper.run().await;
}

struct Keeper {
    core: Arc<Core>,
    jobs: FuturesUnordered<BoxFuture<'static, (Job, Result<Reply, ClientError>)>>,
    connection: watch::Receiver<Connection>,
    seen: Connection,
    slots: u32,
    slot: u32,
    paused_until: Instant,
    /// When the streams that were created anew are registered with again, those that follow until then included.
    renew_at: Option<Instant>,
    closing_until: Option<Instant>,
    /// When a failure was last logged for operators.
    logged: Option<Instant>,
}

impl Keeper {
    fn new(core: Arc<Core>) -> Self {
        let mut connection = core.transport.connection();
        let seen = *connection.borrow_and_update();
        let fitting = core.options.heartbeat_interval.as_nanos() / MIN_SLOT.as_nanos();
        let slots = u32::try_from(fitting).unwrap_or(MAX_SLOTS).clamp(1, MAX_SLOTS);
        let now = Instant::now();
        Self {
            core,
            jobs: FuturesUnordered::new(),
            connection,
            seen,
            slots,
            slot: 0,
            paused_until: now,
            renew_at: None,
            closing_until: None,
            logged: None,
        }
    }

    async fn run(&mut self) {
        let slot = (self.core.options.heartbeat_interval / self.slots).max(Duration::from_millis(1));
        let mut slots = interval_at(Instant::now() + self.core.random.below(slot), slot);
        slots.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watched = true;
        while !self.is_over() {
            self.start_jobs();
            if self.renew_at.is_none() && self.core.table().has_risen() {
                self.renew_at = Some(Instant::now() + self.core.random.below(RENEW_SPREAD));
            }
            let paused = self.paused_until > Instant::now();
            tokio::select! {
                biased;
                Some((job, answer)) = self.jobs.next(), if !self.jobs.is_empty() => self.finish(job, answer),
                () = self.core.wake.notified() => {}
                _ = slots.tick() => self.beat(),
                changed = self.connection.changed(), if watched => {
                    watched = changed.is_ok();
                    self.look_at_connection();
                }
                () = sleep_until(self.paused_until), if paused => {}
                () = sleep_until(self.renew_at.unwrap_or_else(Instant::now)), if self.renew_at.is_some() => {
                    self.renew_at = None;
                    self.core.table().register_risen();
                }
                () = sleep_until(self.closing_until.unwrap_or_else(Instant::now)), if self.closing_until.is_some() => {}
            }
        }
    }

    fn beat(&mut self) {
        self.core.table().beat(self.slot as usize, self.slots as usize);
        self.slot = (self.slot + 1) % self.slots;
    }

    /// A new generation means that the service may have been told nothing, or be another one: register all again.
    fn look_at_connection(&mut self) {
        let now = *self.connection.borrow_and_update();
        if now.connected && now.generation != self.seen.generation {
            let mut table = self.core.table();
            if table.len() > 0 {
                tracing::info!(registrations = table.len(), "connected again, registering again");
            }
            table.register_all_again();
            // All clients of a broker see it come back at the same moment.
            self.paused_until = Instant::now() + self.core.random.below(RETRY_PAUSE / 2);
        }
        self.seen = if now.connected { now } else { Connection { connected: false, ..self.seen } };
    }

    fn start_jobs(&mut self) {
        if !self.seen.connected || self.paused_until > Instant::now() {
            return;
        }
        while self.jobs.len() < MAX_JOBS {
            let max_payload = self.core.transport.max_payload().unwrap_or(ASSUMED_MAX_PAYLOAD);
            let Some(job) = self.core.table().next_job(max_payload) else { break };
            let core = Arc::clone(&self.core);
            self.jobs.push(Box::pin(async move {
                let answer = core.ask_about(&job).await;
                (job, answer)
            }));
        }
    }

    fn finish(&mut self, job: Job, answer: Result<Reply, ClientError>) {
        match &answer {
            Ok(reply) => tracing::trace!(?job, code = reply.code().as_str_name(), "asked"),
            Err(error) => self.log_failure(error),
        }
        if !self.core.table().finished(job, answer) {
            self.paused_until = Instant::now() + RETRY_PAUSE + self.core.random.below(RETRY_PAUSE);
        }
    }

    fn log_failure(&mut self, error: &ClientError) {
        if self.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL) {
            self.logged = Some(Instant::now());
            tracing::warn!(%error, "a heartbeat, registration or unregistering failed; trying again");
        } else {
            tracing::debug!(%error, "a heartbeat, registration or unregistering failed; trying again");
        }
    }

    fn is_over(&mut self) -> bool {
        let (closed, done) = {
            let table = self.core.table();
            (table.is_closed(), table.is_done())
        };
        if !closed {
            return false;
        }
        let until = *self.closing_until.get_or_insert_with(|| Instant::now() + self.core.options.close_timeout);
        // Without a connection there is nobody to unregister with: the service notices by itself.
        done && self.jobs.is_empty() || Instant::now() >= until || !self.seen.connected
    }
}

impl Core {
    async fn ask_about(&self, job: &Job) -> Result<Reply, ClientError> {
        let (command, expected) = match job {
            Job::Beat(batch) => {
                let handle = batch.iter().map(|&(_, handle)| handle).collect();
                let batch = proto::HeartbeatBatch { handle, ..proto::HeartbeatBatch::default() };
                (Command::HeartbeatBatch(batch), Expected::Handles)
            }
            Job::Confirm { name, .. } => {
                let (stream_id, client_id) = (name.stream_id.to_string(), name.client_id.to_string());
                let heartbeat = proto::Heartbeat { stream_id, client_id, session: name.session };
                (Command::Heartbeat(heartbeat), Expected::Stream(&name.stream_id))
            }
            Job::Register { stream_id, subscribers, .. } => {
                let batch = proto::RegisterBatch { stream_id: stream_id.to_string(), subscriber: subscribers.clone() };
                (Command::RegisterBatch(batch), Expected::Stream(stream_id))
            }
            Job::Unregister { handles, .. } => {
                let batch = proto::UnregisterBatch { handle: handles.clone(), ..proto::UnregisterBatch::default() };
                (Command::UnregisterBatch(batch), Expected::Handles)
            }
            Job::UnregisterByName { name, .. } => {
                let (stream_id, client_id) = (name.stream_id.to_string(), name.client_id.to_string());
                let leave = proto::Unregister { stream_id, client_id, session: name.session };
                (Command::Unregister(leave), Expected::Stream(&name.stream_id))
            }
        };
        let payload = proto::SubscriptionCommand { command: Some(command) }.encode_to_vec();
        let request = Request::new(subject::SUBSCRIPTION, payload, expected);
        let until = Instant::now() + self.options.attempt_timeout;
        decode_reply(self.ask_once(&request, until).await?)
    }
}
