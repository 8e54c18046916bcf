//! Whether another instance serves the same subjects.
//!
//! Requests go to any member of the queue group, so two instances without a common store would each know half of the
//! streams. Each announces itself, at its start, when it hears of another, and every few seconds; the later one is not
//! ready for as long as it hears an earlier one, nor before it has listened for a moment. What a stranger announces can
//! cost no more than that, and is forgotten when it stops.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt as _;
use metrics::counter;
use tokio::{sync::watch, time::Instant};
use tracing::{debug, error, info, warn};

use super::log_limit::LogLimit;
use crate::{
    shard::thread::Phase,
    transport::{Message, Outgoing, Subscription, Transport, TransportError},
    wire::{presence, proto, subject},
};

/// How many other instances are remembered: more than anybody starts by mistake.
const MAX_OTHERS: usize = 16;
/// After so many intervals without a word an instance is gone.
const SILENT_INTERVALS: u32 = 3;
/// How soon a broker that refuses announcements is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(600);
/// How often others' announcements are answered with one, which is for all of them.
const ANSWER_INTERVAL: Duration = Duration::from_millis(100);
/// For how long a service that begins listens for those that were there before, once it is connected.
const LISTEN: Duration = Duration::from_millis(300);

/// Another instance, as it has announced itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Other {
    started_at_ms: u64,
    instance: String,
    name: String,
    heard: Instant,
}

impl fmt::Display for Other {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { started_at_ms, instance, name, .. } = self;
        write!(formatter, "another instance ({name:?}, id {instance}, started at {started_at_ms} ms since 1970)")
    }
}

/// This instance, and those that were there before it.
#[derive(Debug)]
pub(super) struct Others {
    own: proto::Presence,
    /// At most [`MAX_OTHERS`].
    earlier: Mutex<Vec<Other>>,
    /// Whether those that are there may not all have been heard of.
    is_listening: AtomicBool,
}

impl Others {
    /// An instance that begins now, and knows of none; whether it will have to listen for others first.
    pub(super) fn new(listens: bool) -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let own = proto::Presence {
            instance: uuid::Uuid::new_v4().simple().to_string(),
            started_at_ms: u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX),
            name: own_name(),
            leaving: false,
        };
        Self { own, earlier: Mutex::default(), is_listening: AtomicBool::new(listens) }
    }

    /// Whether it is too early to say that there is no other.
    pub(super) fn is_listening(&self) -> bool {
        self.is_listening.load(Ordering::Acquire)
    }

    fn has_listened(&self) {
        self.is_listening.store(false, Ordering::Release);
    }

    /// This one's id.
    pub(super) fn own(&self) -> &str {
        &self.own.instance
    }

    /// The earliest of those that were there before.
    pub(super) fn earlier(&self) -> Option<Other> {
        self.lock().iter().min_by(|a, b| (a.started_at_ms, &a.instance).cmp(&(b.started_at_ms, &b.instance))).cloned()
    }

    /// Notes what came on the subject of announcements. True if it is news to whoever sent it that this one is here.
    fn hear(&self, message: &Message) -> bool {
        let Some(presence) = presence::read(&message.subject, &message.payload) else {
            counter!("orchestrator_dropped_total", "reason" => "bad_presence").increment(1);
            return false;
        };
        self.observe(presence, Instant::now())
    }

    /// Notes what another instance says. True if it is news to that one that this one is here.
    fn observe(&self, presence: proto::Presence, now: Instant) -> bool {
        let proto::Presence { instance, started_at_ms, name, leaving } = presence;
        if instance == self.own.instance {
            return false;
        }
        let mut earlier = self.lock();
        if leaving {
            earlier.retain(|other| other.instance != instance);
            return false;
        }
        if (started_at_ms, &instance) > (self.own.started_at_ms, &self.own.instance) {
            return true;
        }
        let other = Other { started_at_ms, instance, name, heard: now };
        let known = earlier.iter().position(|known| known.instance == other.instance);
        match known {
            Some(place) => earlier[place] = other,
            None if earlier.len() < MAX_OTHERS => earlier.push(other),
            None => counter!("orchestrator_dropped_total", "reason" => "too_many_instances").increment(1),
        }
        false
    }

    /// Forgets those that were not heard of for so long; says whether the last has gone.
    fn forget_silent(&self, silent: Duration, now: Instant) -> bool {
        let mut earlier = self.lock();
        let before = earlier.len();
        earlier.retain(|other| now.duration_since(other.heard) < silent);
        before > 0 && earlier.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Other>> {
        self.earlier.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The machine and the process, for whoever reads the log of the other one.
fn own_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(|letter| !letter.is_control()).take(32).collect();
    format!("{host} process {}", std::process::id())
}

/// Announces this instance and listens for others, until the service stops; then says that it leaves.
pub(super) async fn announce(
    transport: Arc<dyn Transport>,
    interval: Duration,
    others: Arc<Others>,
    mut phases: watch::Receiver<Phase>,
) {
    let mut announcer = Announcer { transport, own: others.own.clone(), refused_until: None, warned: false };
    let mut subscription = announcer.subscribe().await;
    let mut subscribed_at = Instant::now();
    let mut connection = announcer.transport.connection();
    let told = LogLimit::default();
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut answers = Answers::default();
    let mut listen = Box::pin(tokio::time::sleep(LISTEN));
    loop {
        let mut on_time = false;
        tokio::select! {
            biased;
            () = stopped(&mut phases) => break,
            due = ticks.tick() => {
                on_time = due.elapsed() < interval / 2;
                announcer.say(false).await;
                if subscription.is_none() && subscribed_at.elapsed() > ASK_AGAIN {
                    subscription = announcer.subscribe().await;
                    subscribed_at = Instant::now();
                }
            }
            // At once, for whoever came while the connection was away.
            changed = connection.changed() => match changed {
                Ok(()) => {
                    if connection.borrow_and_update().connected {
                        announcer.say(false).await;
                        listen.as_mut().reset(Instant::now() + LISTEN);
                    }
                }
                Err(_) => return,
            },
            () = &mut listen, if others.is_listening() => {
                if connection.borrow().connected {
                    others.has_listened();
                }
                listen.as_mut().reset(Instant::now() + LISTEN);
            }
            () = answers.due() => {
                answers.give(Instant::now());
                announcer.say(false).await;
            }
            message = next(&mut subscription) => match message {
                None => subscription = None,
                Some(message) => {
                    if others.hear(&message) {
                        answers.owe(Instant::now());
                    }
                }
            },
        }
        // A tick that comes late means that this process stood still: what the others said meanwhile is not read yet.
        if on_time && others.forget_silent(interval * SILENT_INTERVALS, Instant::now()) {
            info!("the other instance is gone");
        }
        tell_earlier(&others, &told);
    }
    announcer.say(true).await;
}

fn tell_earlier(others: &Others, told: &LogLimit) {
    if let Some(other) = others.earlier()
        && told.is_due().is_some()
    {
        error!(%other, "another instance serves the same subjects; this one is not ready while it is there");
    }
}

async fn stopped(phases: &mut watch::Receiver<Phase>) {
    let _ = phases.wait_for(|phase| *phase != Phase::Work).await;
}

async fn next(subscription: &mut Option<Subscription>) -> Option<Message> {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}

/// When to answer those who announce themselves: at once, and then not for a while. Nobody goes without an answer.
#[derive(Debug, Default)]
struct Answers {
    owed: Option<Instant>,
    given: Option<Instant>,
}

impl Answers {
    fn owe(&mut self, now: Instant) {
        let at = self.given.map_or(now, |given| now.max(given + ANSWER_INTERVAL));
        self.owed.get_or_insert(at);
    }

    fn give(&mut self, now: Instant) {
        (self.owed, self.given) = (None, Some(now));
    }

    /// Resolves when an answer is due; never while none is owed.
    fn due(&self) -> impl Future<Output = ()> + use<> {
        let owed = self.owed;
        async move {
            match owed {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        }
    }
}

struct Announcer {
    transport: Arc<dyn Transport>,
    own: proto::Presence,
    refused_until: Option<Instant>,
    warned: bool,
}

impl Announcer {
    async fn subscribe(&mut self) -> Option<Subscription> {
        match self.transport.subscribe(subject::ALL_PRESENCES, None).await {
            Ok(subscription) => Some(subscription),
            Err(error) => {
                self.warn_once(&error);
                None
            }
        }
    }

    /// Publishes a presence. What cannot be published now is not: the next one says the same.
    async fn say(&mut self, leaving: bool) {
        /// A connection whose queue is full is none to wait for.
        const PATIENCE: Duration = Duration::from_millis(100);
        if self.refused_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let payload = presence::write(&proto::Presence { leaving, ..self.own.clone() });
        let mut messages = VecDeque::from([Outgoing { subject: subject::presence(&self.own.instance), payload }]);
        let said = tokio::time::timeout(PATIENCE, self.transport.publish(&mut messages).boxed()).await;
        match said {
            Ok(Err(error @ TransportError::Denied(_))) => {
                self.refused_until = Some(Instant::now() + ASK_AGAIN);
                self.warn_once(&error);
            }
            Ok(Err(error)) => debug!(%error, "not announced"),
            Ok(Ok(())) | Err(_) => {}
        }
    }

    /// This login may do less than it could, and one instance needs no more.
    fn warn_once(&mut self, error: &TransportError) {
        if !std::mem::replace(&mut self.warned, true) {
            warn!(%error, "a second instance on the same subjects would not be found out");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(instance: &str, started_at_ms: u64, leaving: bool) -> proto::Presence {
        proto::Presence { instance: instance.into(), started_at_ms, name: "other".into(), leaving }
    }

    fn others() -> Others {
        let own = proto::Presence { instance: "m".into(), started_at_ms: 1_000, ..Default::default() };
        Others { own, earlier: Mutex::default(), is_listening: AtomicBool::new(false) }
    }

    #[test]
    fn the_later_instance_gives_way_or_at_one_moment_the_greater_id() {
        let now = Instant::now();
        for (instance, started_at_ms, gives_way) in
            [("z", 999, true), ("a", 1_000, true), ("z", 1_000, false), ("a", 1_001, false), ("m", 1, false)]
        {
            let others = others();
            others.observe(said(instance, started_at_ms, false), now);
            assert_eq!(others.earlier().is_some(), gives_way, "{instance} {started_at_ms}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_announce_themselves_are_answered_a_flood_now_and_then() {
        let (mut answers, begun, mut given) = (Answers::default(), Instant::now(), 0);
        for _ in 0..1_000 {
            answers.owe(Instant::now());
            tokio::time::sleep(Duration::from_millis(1)).await;
            if answers.due().now_or_never().is_some() {
                answers.give(Instant::now());
                given += 1;
            }
        }
        assert!((9..=11).contains(&given), "{given} answers in {:?}", begun.elapsed());
        let last = Instant::now();
        answers.owe(last);
        answers.due().await;
        assert!(last.elapsed() <= ANSWER_INTERVAL, "the last is answered too");
    }

    #[test]
    fn an_instance_that_leaves_or_is_silent_is_forgotten() {
        let (others, now) = (others(), Instant::now());
        others.observe(said("a", 1, false), now);
        others.observe(said("b", 2, false), now + Duration::from_secs(5));
        assert_eq!(others.earlier().map(|other| other.instance), Some("a".to_owned()));
        assert!(!others.forget_silent(Duration::from_secs(9), now + Duration::from_secs(9)));
        assert_eq!(others.earlier().map(|other| other.instance), Some("b".to_owned()));
        others.observe(said("b", 2, true), now);
        assert_eq!(others.earlier(), None);
    }

    #[test]
    fn a_flood_of_made_up_instances_is_bounded() {
        let (others, now) = (others(), Instant::now());
        (0..10_000).for_each(|number| _ = others.observe(said(&format!("a{number}"), 1, false), now));
        assert_eq!(others.lock().len(), MAX_OTHERS);
        assert!(others.forget_silent(Duration::from_secs(9), now + Duration::from_secs(9)));
    }
}
