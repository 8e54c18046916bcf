//! The service: starts the shards and the ingress, drains and stops them.
//!
//! It knows the transport on the one side and the shards on the other, and nothing of what is said between them.

use std::{
    io,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use metrics::{counter, gauge};
use tokio::{sync::watch, task::JoinHandle as Task};
use tracing::{info, warn};

use self::{presence::Others, receiver::NotSubscribed};
use crate::{
    engine::{Counts, Settings},
    shard::{
        clock::Clock,
        ingress::Ingress,
        mailbox::{MAILBOX_BYTES, MAILBOX_CAPACITY, Mailbox},
        publish_queue::{PublishLimits, PublishQueue, PublishTo},
        record::Recorder,
        router::{MAX_SHARDS, Router},
        thread::{Health, Phase, ShardContext, spawn},
        totals::Totals,
        turn::{ShardSettings, TurnLimits},
    },
    transport::{Denied, Transport, TransportError},
    wire::{WireLimits, subject},
};

pub mod delivery;
mod log_limit;
mod presence;
mod publisher;
mod receiver;

/// How long a drain may take before what is still owed is given up, of the 5 s that a stop may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(4);

/// How often an instance announces itself: another one is known to be gone after three times that.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(3);

/// What a service is made with.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    /// How many shard threads.
    pub shards: usize,
    /// A subscriber not heard of for that long is removed, ms.
    pub stale_after_ms: u64,
    /// The limits on messages and on what is in them.
    pub limits: WireLimits,
    /// Which subjects carry the updates.
    pub publish_to: PublishTo,
    /// What each shard may have waiting to be published.
    pub publish_limits: PublishLimits,
    /// How often it announces itself to other instances, and looks for them; never without a time.
    pub presence_interval: Option<Duration>,
    /// A number that a stranger cannot guess.
    pub seed: u64,
    /// Where to write down what the engines are fed.
    pub recorder: Option<Arc<Recorder>>,
}

impl Default for ServiceSettings {
    /// One shard a core, and a random seed.
    fn default() -> Self {
        Self {
            shards: std::thread::available_parallelism().map_or(1, usize::from).min(MAX_SHARDS),
            stale_after_ms: Settings::default().stale_after_ms,
            limits: WireLimits::default(),
            publish_to: PublishTo::default(),
            publish_limits: PublishLimits::default(),
            presence_interval: Some(PRESENCE_INTERVAL),
            seed: uuid::Uuid::new_v4().as_u64_pair().0,
            recorder: None,
        }
    }
}

/// Why a service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No thread, or no runtime, to be had.
    #[error("cannot start a shard: {0}")]
    Thread(#[from] io::Error),
    /// The transport refused the subscription.
    #[error("cannot subscribe: {0}")]
    Transport(#[from] TransportError),
    /// A setting is out of its limits.
    #[error("{0}")]
    Setting(String),
}

/// A running service. Dropped without [`Service::drain`], it stops at once.
#[derive(Debug)]
pub struct Service {
    transports: Vec<Arc<dyn Transport>>,
    phases: watch::Sender<Phase>,
    receiver: Option<Task<()>>,
    threads: Vec<JoinHandle<()>>,
    router: Arc<Router>,
    totals: Arc<Totals>,
    health: Arc<Health>,
    /// Why requests do not come in, if the broker refuses them.
    not_subscribed: Arc<NotSubscribed>,
    /// Other instances on the same subjects.
    others: Arc<Others>,
    presence: Option<Task<()>>,
}

impl Service {
    /// Starts the shards and subscribes.
    ///
    /// `ingress` is where requests come in; each shard publishes over one of `publishers`, which may be the same.
    /// The service closes them all when it is drained.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        settings: ServiceSettings,
        ingress: Arc<dyn Transport>,
        publishers: Vec<Arc<dyn Transport>>,
    ) -> Result<Self, StartError> {
        let ServiceSettings {
            shards,
            stale_after_ms,
            limits,
            publish_to,
            publish_limits,
            presence_interval,
            seed,
            recorder,
        } = settings;
        if !(1..=MAX_SHARDS).contains(&shards) {
            return Err(StartError::Setting(format!("shards must be 1 to {MAX_SHARDS}, not {shards}")));
        }
        if publishers.is_empty() {
            return Err(StartError::Setting("there is no transport to publish over".to_owned()));
        }
        let router = Router::new((0..shards).map(|_| Mailbox::new(MAILBOX_CAPACITY, MAILBOX_BYTES)).collect());
        let limits = Arc::new(limits);
        let (phases, _) = watch::channel(Phase::Work);
        let mut service = Self {
            transports: Vec::new(),
            phases,
            receiver: None,
            threads: Vec::new(),
            router: Arc::new(router),
            totals: Arc::new(Totals::new(shards)),
            health: Arc::default(),
            not_subscribed: Arc::default(),
            others: Arc::new(Others::new(presence_interval.is_some())),
            presence: None,
        };
        let clock = Clock::new();
        let troubles: Arc<publisher::Troubles> = Arc::default();
        for number in 0..shards {
            let engine = Settings { limits: limits.engine.clone(), stale_after_ms, seed: seed ^ number as u64 };
            let context = ShardContext {
                number,
                settings: ShardSettings {
                    engine,
                    wire: Arc::clone(&limits),
                    recorder: recorder.clone(),
                    turn: TurnLimits::default(),
                },
                router: Arc::clone(&service.router),
                totals: Arc::clone(&service.totals),
                health: Arc::clone(&service.health),
                phases: service.phases.subscribe(),
                clock,
            };
            let transport = Arc::clone(&publishers[number % publishers.len()]);
            let queue = PublishQueue::with_limits(publish_to, publish_limits.clone());
            let troubles = Arc::clone(&troubles);
            let thread = spawn(context, queue, |outlet| publisher::publish(outlet, transport, troubles))?;
            service.threads.push(thread);
        }
        let subscription = receiver::subscribe(&*ingress, &service.not_subscribed).await?;
        let inlet = Ingress::new(Arc::clone(&service.router), limits);
        let refused = Arc::clone(&service.not_subscribed);
        let task = receiver::receive(subscription, inlet, Arc::clone(&ingress), service.phases.subscribe(), refused);
        // A thread of its own: as a task, it would wait on the worker that reads the connection until that is through
        // with all that had arrived, and that may be more than the subscription holds.
        let runtime = tokio::runtime::Handle::current();
        service.receiver = Some(tokio::task::spawn_blocking(move || runtime.block_on(task)));
        if let Some(interval) = presence_interval {
            let (transport, phases) = (Arc::clone(&ingress), service.phases.subscribe());
            let others = Arc::clone(&service.others);
            service.presence = Some(tokio::spawn(presence::announce(transport, interval, others, phases)));
        }
        service.transports = std::iter::once(ingress).chain(publishers).collect();
        info!(shards, stale_after_ms, ?publish_to, "service started");
        Ok(service)
    }

    /// Whether it can do its work; if not, why.
    ///
    /// # Errors
    /// The reason, for an operator.
    pub fn ready(&self) -> Result<(), String> {
        if *self.phases.borrow() != Phase::Work {
            return Err("draining".to_owned());
        }
        if let Some(shard) = self.health.dead_shard() {
            return Err(format!("shard {shard} has ended; the process must be started again"));
        }
        if self.threads.iter().any(JoinHandle::is_finished) {
            return Err("a shard has ended; the process must be started again".to_owned());
        }
        if let Some(shard) = self.health.ailing_shard() {
            return Err(format!("shard {shard} panicked and lost its streams"));
        }
        if self.receiver.as_ref().is_some_and(|receiver| receiver.is_finished()) {
            return Err("the receiver of requests has ended; the process must be started again".to_owned());
        }
        if self.transports.iter().any(|transport| !transport.connection().borrow().connected) {
            return Err("the connection to the broker is away".to_owned());
        }
        if let Some(reason) = self.transports.iter().find_map(|transport| refusal(&transport.denied().borrow())) {
            return Err(reason);
        }
        if let Some(reason) = &*self.not_subscribed.borrow() {
            return Err(reason.clone());
        }
        if let Some(other) = self.others.earlier() {
            return Err(format!("{other} serves the same subjects, and was there before"));
        }
        if self.others.is_listening() {
            return Err("not known yet whether another instance serves the same subjects".to_owned());
        }
        Ok(())
    }

    /// What the shards last counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.totals.sum()
    }

    /// Sets the gauges, and what is counted elsewhere, before somebody reads them.
    #[allow(clippy::cast_precision_loss, reason = "gauges are floats")]
    pub fn record_gauges(&self) {
        let counts = self.counts();
        for (name, value) in [
            ("orchestrator_subscribers", counts.total),
            ("orchestrator_subscribers_active", counts.active),
            ("orchestrator_subscribers_stale", counts.stale),
            ("orchestrator_unique_clients", counts.unique),
            ("orchestrator_streams", counts.streams),
            ("orchestrator_streams_running", counts.running),
            ("orchestrator_config_bytes", counts.config_bytes),
            ("orchestrator_client_bytes", counts.client_bytes),
            ("orchestrator_filters", counts.filters),
            ("orchestrator_filter_bytes", counts.filter_bytes),
            ("orchestrator_history_bytes", counts.history_bytes),
            ("orchestrator_receive_dropped", self.transports.iter().map(|transport| transport.dropped()).sum()),
            ("orchestrator_ready", u64::from(self.ready().is_ok())),
        ] {
            gauge!(name).set(value as f64);
        }
        let denied = self.transports.iter().map(|transport| transport.denied().borrow().refused).sum();
        counter!("orchestrator_publish_denied_total").absolute(denied);
        for shard in 0..self.router.shards() {
            let waiting = self.router.mailbox(shard).len() as f64;
            gauge!("orchestrator_mailbox_messages", "shard" => shard.to_string()).set(waiting);
        }
    }

    /// How other instances know this one.
    #[must_use]
    pub fn instance(&self) -> &str {
        self.others.own()
    }

    /// Stops taking work, handles what was taken, publishes what is owed, and ends, within 5 s.
    pub async fn drain(mut self) {
        let started = Instant::now();
        self.phases.send_replace(Phase::Close);
        if let Some(receiver) = self.receiver.take() {
            let _ = tokio::time::timeout(DRAIN_TIMEOUT / 2, receiver).await;
        }
        // Only now: the shards were to see what the receiver still had.
        self.phases.send_replace(Phase::Drain);
        let threads = std::mem::take(&mut self.threads);
        let joined = tokio::task::spawn_blocking(|| threads.into_iter().for_each(|thread| _ = thread.join()));
        let left = DRAIN_TIMEOUT.saturating_sub(started.elapsed());
        if tokio::time::timeout(left, joined).await.is_err() {
            warn!("what is still owed could not be published in time and is given up");
            self.phases.send_replace(Phase::Abort);
        }
        if let Some(presence) = self.presence.take() {
            let _ = tokio::time::timeout(Duration::from_millis(200), presence).await;
        }
        for transport in &self.transports {
            let left = (DRAIN_TIMEOUT + Duration::from_millis(700)).saturating_sub(started.elapsed());
            let _ = tokio::time::timeout(left, transport.close()).await;
        }
        info!(took_ms = started.elapsed().as_millis(), "service stopped");
    }
}

/// What the broker refuses that the service cannot do without: requests, its inbox (for barriers), and updates. Which
/// subjects there are for answers, strangers decide.
fn refusal(denied: &Denied) -> Option<String> {
    let requests = denied.subscribe.get(subject::ALL_REQUESTS);
    let requests =
        requests.map(|reason| format!("the broker refuses to subscribe to {}: {reason}", subject::ALL_REQUESTS));
    let inbox = denied.inbox.as_ref().map(ToString::to_string);
    requests.or(inbox).or_else(|| denied.publishing(subject::carries_updates).map(|denial| denial.to_string()))
}

impl Drop for Service {
    fn drop(&mut self) {
        self.phases.send_replace(Phase::Abort);
    }
}
