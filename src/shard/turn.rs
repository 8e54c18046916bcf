//! One turn of a shard: read the time once, handle a batch of mail, do what is due, owe what came of it.
//!
//! [`Shard`] is a plain struct and [`Shard::turn`] a plain function of the time and the mailbox: it waits for nothing
//! and knows no thread, so a simulator takes turns with the same code.

use std::sync::Arc;

use metrics::counter;
use tracing::info;

use super::{
    clock::Now,
    engine_op::{EngineOp, Outcome},
    handle::InHand,
    log,
    mailbox::{Body, Inbox},
    publish_queue::PublishQueue,
    record::Recorder,
    router::Router,
    totals::Totals,
};
use crate::{
    engine::{Counts, Engine, Hint, Input, Limits, Outbox, Quota, STALE_LINGER_MS, Settings, Tick, WallClock},
    wire::{
        WireLimits,
        subscriptions::{self, Subscription},
    },
};

/// The most timers looked at in one turn.
pub const EXPIRE_BUDGET: usize = 1_024;

/// How much one turn takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnLimits {
    /// The most messages: of single commands and heartbeats, about a microsecond each, so that a turn stays well below
    /// the 2 ms that a beat may be late.
    pub messages: usize,
    /// The most weight, of the last message aside: a batch of 1,000 registers, or as many bytes as decoding them takes
    /// as long. A register takes half a microsecond, a look at a timer likewise.
    pub weight: usize,
    /// For how many messages' subscribers memory is asked at once, see [`Engine::fetch`]. Not 0.
    pub look_ahead: usize,
    /// The most timers looked at.
    pub expire_budget: usize,
    /// While so many ticks are owed that more would only take their places, what is due waits, so that the processor's
    /// time is the publisher's; but no longer than this, ms: a change is late by no more.
    pub rest_ms: u64,
}

impl Default for TurnLimits {
    fn default() -> Self {
        Self { messages: 256, weight: 1_000, look_ahead: 64, expire_budget: EXPIRE_BUDGET, rest_ms: 100 }
    }
}

/// A turn that comes so much later than it was due means that the process stood still, ms. Less than a subscriber is
/// stale for: else one could be stale and gone in the turn of waking, before its heartbeat is read.
const CLOCK_STALLED_MS: u64 = STALE_LINGER_MS / 2;

/// While a stream waits for an instant of the wall clock, that is looked at so often, ms: it may have been set.
const WALL_CLOCK_LOOK_MS: u64 = 1_000;

/// What a turn leaves to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another turn at once: there is more mail, or more is due.
    Again,
    /// A turn at that time, or when mail comes.
    Sleep(Option<Tick>),
    /// Nothing was done: so much is owed that room must be made first.
    Blocked,
}

/// What a shard is made with.
#[derive(Clone, Debug)]
pub struct ShardSettings {
    /// For its engine. The limits are those of the whole service.
    pub engine: Settings,
    /// For what comes in.
    pub wire: Arc<WireLimits>,
    /// Where to write down what the engine is fed.
    pub recorder: Option<Arc<Recorder>>,
    /// How much one turn takes.
    pub turn: TurnLimits,
}

impl ShardSettings {
    /// For a shard that takes the place of one that panicked: with another seed, which is another key, so that a handle
    /// that the old engine gave out stands for nobody in the new one, rather than for somebody else.
    #[must_use]
    pub fn for_successor(mut self) -> Self {
        self.engine.seed = self.engine.seed.wrapping_add(0x9e37_79b9);
        self
    }
}

/// An engine with its number, and the way to the other shards.
#[derive(Debug)]
pub struct Shard {
    pub(super) number: usize,
    pub(super) engine: Engine,
    router: Arc<Router>,
    pub(super) totals: Arc<Totals>,
    wire: Arc<WireLimits>,
    /// Of the whole service.
    limits: Limits,
    /// What the engine was last told that it may hold.
    quota: Quota,
    /// The wall clock as the engine was last told of it.
    clock: WallClock,
    pub(super) outbox: Outbox,
    /// For whom the engine is being fed.
    pub(super) in_hand: InHand,
    recorder: Option<Arc<Recorder>>,
    turn: TurnLimits,
    /// How many forgotten answers were counted, and how many forgotten entries of histories.
    forgotten: u64,
    history_forgotten: u64,
    /// When the next turn is due.
    due: Option<Tick>,
    /// When it last did all that was due.
    expired_at: Tick,
    /// For tests: the engine panics when it is fed next.
    #[cfg(test)]
    pub(super) panic_next: bool,
}

impl Shard {
    /// A shard with an empty engine.
    #[must_use]
    pub fn new(number: usize, mut settings: ShardSettings, router: Arc<Router>, totals: Arc<Totals>) -> Self {
        // A table that forgets is full in the end. Shared as other limits are, it would leave nothing to the shard that
        // comes later: so each has its part from the beginning.
        settings.engine.limits.max_history_bytes /= router.shards() as u64;
        let limits = settings.engine.limits.clone();
        if let Some(recorder) = &settings.recorder {
            recorder.begin(number, &settings.engine);
        }
        totals.set(number, &Counts::default());
        Self {
            number,
            quota: Quota::of(&limits),
            clock: WallClock::default(),
            engine: Engine::new(settings.engine),
            router,
            totals,
            wire: settings.wire,
            limits,
            outbox: Outbox::default(),
            in_hand: InHand::default(),
            recorder: settings.recorder,
            turn: settings.turn,
            forgotten: 0,
            history_forgotten: 0,
            due: None,
            expired_at: Tick(0),
            #[cfg(test)]
            panic_next: false,
        }
    }

    /// Its engine, to look at.
    #[must_use]
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Ends it: says to the recording, if there is one, what state it is in.
    pub fn end(&self) {
        if let Some(recorder) = &self.recorder {
            recorder.end(self.number, &self.engine);
        }
    }

    /// Takes a turn. What it makes is put into `queue`, and counted in the shared totals before anybody can see an answer.
    pub fn turn(&mut self, now: Now, queue: &mut PublishQueue) -> Next {
        if queue.is_full() {
            return Next::Blocked;
        }
        self.router.mailbox(self.number).set_max_answer(queue.max_payload());
        self.note_lateness(now.tick);
        self.note_wall_clock(now);
        let tight = self.share_quota(now.tick);
        self.handle_batch(now, tight, queue);
        let rested =
            queue.is_behind().then(|| self.expired_at.after(self.turn.rest_ms)).filter(|until| *until > now.tick);
        if rested.is_none() && self.engine.next_deadline().is_some_and(|due| due <= now.tick) {
            self.feed(now.tick, &EngineOp::Expire(self.turn.expire_budget));
            if self.engine.next_deadline().is_none_or(|due| due > now.tick) {
                self.expired_at = now.tick;
            }
        }
        self.queue_outbox(now, queue);
        self.totals.set(self.number, &self.engine.counts());
        self.tell_dropped(queue);
        // What is due at once is due now: a time gone by would look like a turn that came late.
        let due = self.engine.next_deadline().map(|due| due.max(rested.unwrap_or(now.tick)));
        let look = self.engine.waits_for_wall_clock().then(|| now.tick.after(WALL_CLOCK_LOOK_MS));
        self.due = due.into_iter().chain(look).min();
        let more = !self.router.mailbox(self.number).is_empty() || self.due.is_some_and(|due| due <= now.tick);
        if more { Next::Again } else { Next::Sleep(self.due) }
    }

    /// Handles mail, as much as one turn takes.
    fn handle_batch(&mut self, now: Now, tight: bool, queue: &mut PublishQueue) {
        let router = Arc::clone(&self.router);
        let mut inbox = router.mailbox(self.number).open();
        let (mut weight, mut hints) = (0, Vec::new().into_iter());
        for place in 0..self.turn.messages {
            if place % self.turn.look_ahead == 0 {
                hints = self.fetch_ahead(&mut inbox).into_iter();
            }
            let hint = hints.next().unwrap_or(Hint::NONE);
            let Some(mail) = inbox.take() else { break };
            if tight {
                // Its sender may have had an answer of another shard since this turn began.
                self.share_quota(now.tick);
            }
            let (weighed, left) = self.handle(now, mail, hint, queue);
            if let Some(left) = left {
                // What its sender said behind it stays behind it.
                inbox.put_back(left);
            }
            weight += weighed;
            if weight >= self.turn.weight || queue.is_full() {
                break;
            }
        }
    }

    /// After the process stood still, heartbeats may be waiting unread behind what is due: nobody is to blame.
    fn note_lateness(&mut self, now: Tick) {
        let late_ms = self.due.map_or(0, |due| now.since(due));
        let someone_would_go = || {
            let counts = self.engine.counts();
            counts.total > 0 || counts.filters > 0
        };
        if late_ms >= CLOCK_STALLED_MS && someone_would_go() {
            info!(shard = self.number, late_ms, "woke late; nobody goes stale for as long");
            self.feed(now, &EngineOp::ClockStalled(late_ms));
        }
    }

    /// Tells the engine what the wall clock says, if that is not what follows from the time and what it was told before.
    fn note_wall_clock(&mut self, now: Now) {
        let clock = WallClock::read(now.tick, now.wall_ms);
        if clock != self.clock {
            self.clock = clock;
            self.feed(now.tick, &EngineOp::WallClock(now.wall_ms));
        }
    }

    /// Limits hold for the service, engines for shards: near a limit, each may fill what the others leave. True when a
    /// limit is near.
    fn share_quota(&mut self, now: Tick) -> bool {
        /// While that many are free, shards need not look at one another: few turns take more.
        const SLACK: u64 = 65_536;
        /// The same in bytes.
        const SLACK_BYTES: u64 = 64 << 20;
        /// Of filters, for which there is less room: a turn takes as many as messages, of 17 KB each at the most.
        const FILTER_SLACK: u64 = 16_384;
        const FILTER_SLACK_BYTES: u64 = 16 << 20;
        let own = self.engine.counts();
        self.totals.set(self.number, &own);
        let sum = self.totals.sum();
        let limits = Quota::of(&self.limits);
        let mut tight = false;
        let mut share = |slack: u64, limit: u64, sum: u64, own: u64| {
            if sum + slack < limit {
                return limit;
            }
            tight = true;
            limit.saturating_sub(sum.saturating_sub(own))
        };
        let quota = Quota {
            streams: share(SLACK, limits.streams, sum.streams, own.streams),
            subscribers: share(SLACK, limits.subscribers, sum.total, own.total),
            config_bytes: share(SLACK_BYTES, limits.config_bytes, sum.config_bytes, own.config_bytes),
            client_bytes: share(SLACK_BYTES, limits.client_bytes, sum.client_bytes, own.client_bytes),
            filters: share(FILTER_SLACK, limits.filters, sum.filters, own.filters),
            filter_bytes: share(FILTER_SLACK_BYTES, limits.filter_bytes, sum.filter_bytes, own.filter_bytes),
        };
        if quota != self.quota {
            self.quota = quota;
            self.feed(now, &EngineOp::Quota(quota));
        }
        tight
    }

    /// Counts what was given up: answers and entries of histories that were forgotten for want of room, and ticks that
    /// newer updates have replaced.
    fn tell_dropped(&mut self, queue: &mut PublishQueue) {
        // As a rule nothing is, and a counter is looked up by its name: turns are short.
        let superseded = queue.take_superseded();
        if superseded > 0 {
            counter!("orchestrator_dropped_total", "reason" => "tick_superseded").increment(superseded);
        }
        let forgotten = self.engine.requests_forgotten_early();
        if forgotten > self.forgotten {
            counter!("orchestrator_dropped_total", "reason" => "request_forgotten")
                .increment(forgotten - self.forgotten);
            self.forgotten = forgotten;
        }
        let forgotten = self.engine.history_forgotten_early();
        if forgotten > self.history_forgotten {
            counter!("orchestrator_dropped_total", "reason" => "history_forgotten")
                .increment(forgotten - self.history_forgotten);
            self.history_forgotten = forgotten;
        }
    }

    /// Lets the look-ups of the next messages wait for memory together; batches do so by themselves. Says for each where
    /// they end. Behind a piece that is put back each hint is for the message before: a hint may be wrong.
    fn fetch_ahead(&self, inbox: &mut Inbox<'_>) -> Vec<Hint> {
        /// Longer than any message about one subscriber is as a rule.
        const SHORT: usize = 256;
        let look_ahead = self.turn.look_ahead;
        let mails = inbox.look_ahead(look_ahead);
        // Behind a piece of a batch hardly anything is handled in this turn.
        if mails.len() < look_ahead / 8 || matches!(mails.front().map(|mail| &mail.body), Some(Body::Part(_))) {
            return Vec::new();
        }
        let nobody = Input::GetStats(None);
        let inputs = mails.iter().take(look_ahead).map(|mail| {
            let Body::Subscription(message) = &mail.body else { return None };
            let short = Some(message).filter(|message| message.len() <= SHORT)?;
            subscriptions::input(Subscription::read(short).ok()??, false).ok()
        });
        let inputs: Vec<Input<'_>> = inputs.map(|input| input.unwrap_or_else(|| nobody.clone())).collect();
        self.engine.fetch(&inputs)
    }

    /// The one way to the engine, which is also the recorder's.
    pub(super) fn feed<'a>(&mut self, now: Tick, fed: &'a EngineOp) -> Outcome<'a> {
        if let Some(recorder) = &self.recorder {
            recorder.write(self.number, now, fed);
        }
        #[cfg(test)]
        assert!(!std::mem::take(&mut self.panic_next), "as a test asked for");
        fed.apply(now, &mut self.engine, &self.wire, &mut self.outbox)
    }

    /// Owes what the engine said, and logs what it did.
    pub(super) fn queue_outbox(&mut self, now: Now, queue: &mut PublishQueue) {
        for update in &self.outbox.updates {
            log::update(update);
            queue.update(update, now);
        }
        for event in &self.outbox.events {
            log::event(event);
        }
        self.outbox.clear();
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::{
        shard::{
            mailbox::{MAILBOX_BYTES, Mail, Mailbox},
            publish_queue::{AtOnce, Publication, PublishTo},
        },
        wire::{
            proto::{self, Code, HeartbeatBatch, orchestrator_command, subscription_command},
            subject::Subject,
        },
    };

    const NOW: Now = Now { tick: Tick(1_000), wall_ms: 1_000 };
    const REST_MS: u64 = 100;

    /// One shard, asked one thing at a time.
    struct Desk {
        shard: Shard,
        router: Arc<Router>,
        queue: PublishQueue,
    }

    impl Desk {
        fn new(settings: ShardSettings) -> Self {
            let router = Arc::new(Router::new(vec![Mailbox::new(8, MAILBOX_BYTES)]));
            let shard = Shard::new(0, settings, Arc::clone(&router), Arc::new(Totals::new(1)));
            Self { shard, router, queue: PublishQueue::new(PublishTo::Subjects) }
        }

        fn ask(&mut self, body: Body) -> proto::Reply {
            let reply = Some(Subject::from_static("answer"));
            self.router.send(0, Mail::new(body, reply)).unwrap();
            self.shard.turn(NOW, &mut self.queue);
            let mut answer = None;
            self.queue.hand_over(AtOnce::ALL, usize::MAX, |Publication { subject, payload, .. }| {
                if &*subject == "answer" {
                    answer = Some(proto::Reply::decode(payload).unwrap());
                }
            });
            answer.unwrap()
        }

        fn subscribe(&mut self, command: subscription_command::Command) -> proto::Reply {
            let message = proto::SubscriptionCommand { command: Some(command) };
            self.ask(Body::Subscription(message.encode_to_vec().into()))
        }

        fn welcome(&mut self, client_id: &str) -> u64 {
            self.play("show", client_id)
        }

        /// Starts a stream and registers a client; returns its handle.
        fn play(&mut self, stream_id: &str, client_id: &str) -> u64 {
            let scene = proto::SceneConfig { name: "Main".into(), duration_ms: 10_000, ..Default::default() };
            let tick_interval_ms = Some(10);
            let config = proto::OrchestratorConfig { scenes: vec![scene], tick_interval_ms, ..Default::default() };
            let start = proto::Start { stream_id: stream_id.into(), config: Some(config) };
            let command = Some(orchestrator_command::Command::Start(start));
            let message = proto::OrchestratorCommand { command, ..Default::default() };
            assert_eq!(self.ask(Body::Command(message.encode_to_vec().into())).code(), Code::Ok);
            let register =
                proto::Register { stream_id: stream_id.into(), client_id: client_id.into(), ..Default::default() };
            self.subscribe(subscription_command::Command::Register(register)).handle
        }
    }

    #[test]
    fn a_handle_from_before_a_panic_stands_for_nobody() {
        let settings = ShardSettings {
            engine: Settings::default(),
            wire: Arc::default(),
            recorder: None,
            turn: TurnLimits::default(),
        };
        let old = Desk::new(settings.clone()).welcome("a");
        let mut successor = Desk::new(settings.for_successor());
        successor.welcome("b");
        let batch = HeartbeatBatch { handle: vec![old], ..Default::default() };
        let reply = successor.subscribe(subscription_command::Command::HeartbeatBatch(batch));
        assert_eq!((reply.code(), reply.unknown_handle), (Code::UnknownSubscriber, vec![old]));
    }

    #[test]
    fn a_crowd_removed_with_its_stream_is_no_late_turn() {
        let mut desk = Desk::new(ShardSettings {
            engine: Settings::default(),
            wire: Arc::default(),
            recorder: None,
            turn: TurnLimits::default(),
        });
        desk.welcome("viewer");
        let scene = proto::SceneConfig { name: "Main".into(), duration_ms: 1_000, ..Default::default() };
        let config = Some(proto::OrchestratorConfig { scenes: vec![scene], ..Default::default() });
        let stream_id = "crowd".to_owned();
        let start = orchestrator_command::Command::Start(proto::Start { stream_id: stream_id.clone(), config });
        let subscriber = (0..5_000).map(|n| proto::Subscriber { client_id: n.to_string(), ..Default::default() });
        let crowd = proto::RegisterBatch { stream_id: stream_id.clone(), subscriber: subscriber.collect() };
        let remove = orchestrator_command::Command::Remove(proto::Remove { stream_id });
        let command = |command| {
            let message = proto::OrchestratorCommand { command: Some(command), ..Default::default() };
            Body::Command(message.encode_to_vec().into())
        };
        assert_eq!(desk.ask(command(start)).code(), Code::Ok);
        assert_eq!(desk.subscribe(subscription_command::Command::RegisterBatch(crowd)).code(), Code::Ok);
        assert_eq!(desk.ask(command(remove)).code(), Code::Ok);
        let mut now = NOW;
        while now.tick < NOW.tick.after(90_000) {
            now.tick = match desk.shard.turn(now, &mut desk.queue) {
                Next::Sleep(Some(due)) => due.min(NOW.tick.after(90_000)),
                _ => now.tick,
            };
            desk.queue.hand_over(AtOnce::ALL, usize::MAX, |_| {});
        }
        desk.shard.turn(now, &mut desk.queue);
        assert_eq!((desk.shard.engine().counts().total, desk.shard.engine().counts().stale), (1, 1));
    }

    #[test]
    fn a_filter_that_is_followed_outlasts_a_late_turn() {
        let mut desk = Desk::new(ShardSettings {
            engine: Settings::default(),
            wire: Arc::default(),
            recorder: None,
            turn: TurnLimits::default(),
        });
        // Nobody watches it, or this is in vain.
        let scene = proto::SceneConfig { name: "Main".into(), duration_ms: 1_000, ..Default::default() };
        let idle_timeout_ms = Some(3_600_000);
        let config = Some(proto::OrchestratorConfig { scenes: vec![scene], idle_timeout_ms, ..Default::default() });
        let start = orchestrator_command::Command::Start(proto::Start { stream_id: "show".into(), config });
        let message = proto::OrchestratorCommand { command: Some(start), ..Default::default() };
        assert_eq!(desk.ask(Body::Command(message.encode_to_vec().into())).code(), Code::Ok);
        let follow = proto::Follow { stream_id: "show".into(), filter: None };
        let lease_ms = desk.subscribe(subscription_command::Command::Follow(follow)).lease_ms;

        let late = Now { tick: NOW.tick.after(lease_ms + 1_000), wall_ms: NOW.wall_ms + lease_ms + 1_000 };
        desk.shard.turn(late, &mut desk.queue);
        assert_eq!(desk.shard.engine().counts().filters, 1, "who repeats it may be waiting unread");
        let later = Now { tick: late.tick.after(1_000), wall_ms: late.wall_ms + 1_000 };
        desk.shard.turn(later, &mut desk.queue);
        assert_eq!(desk.shard.engine().counts().filters, 0);
    }

    #[test]
    fn a_wall_clock_that_is_set_is_noticed_within_a_second() {
        let mut desk = Desk::new(ShardSettings {
            engine: Settings::default(),
            wire: Arc::default(),
            recorder: None,
            turn: TurnLimits::default(),
        });
        let scene = proto::SceneConfig { name: "Main".into(), duration_ms: 100_000, ..Default::default() };
        let starts_at_ms = Some(NOW.wall_ms + 3_600_000);
        let config = Some(proto::OrchestratorConfig { scenes: vec![scene], starts_at_ms, ..Default::default() });
        let start = orchestrator_command::Command::Start(proto::Start { stream_id: "show".into(), config });
        let message = proto::OrchestratorCommand { command: Some(start), ..Default::default() };
        let state = desk.ask(Body::Command(message.encode_to_vec().into())).state.unwrap();
        assert_eq!(state.starts_in, Some(3_600_000));
        let mut now = NOW;
        for _ in 0..3 {
            let Next::Sleep(Some(due)) = desk.shard.turn(now, &mut desk.queue) else { panic!("nothing is due") };
            assert!(due <= now.tick.after(1_000), "it looks at the clock");
            now = Now { tick: due, wall_ms: now.wall_ms + due.since(now.tick) };
        }
        assert_eq!(desk.shard.engine().counts().running, 0);
        // Somebody sets it two seconds beyond the instant.
        now.wall_ms = NOW.wall_ms + 3_602_000;
        desk.shard.turn(now, &mut desk.queue);
        assert_eq!(desk.shard.engine().counts().running, 1);
        assert!(!desk.shard.engine().waits_for_wall_clock());
    }

    #[test]
    fn behind_a_slow_publisher_what_is_due_is_done_seldom_not_never() {
        let mut desk = Desk::new(ShardSettings {
            engine: Settings::default(),
            wire: Arc::default(),
            recorder: None,
            turn: TurnLimits::default(),
        });
        for stream in 0..9_000 {
            desk.play(&format!("show-{stream}"), "viewer");
        }
        let mut now = NOW;
        let mut done_at = Vec::new();
        for _ in 0..15 * REST_MS {
            now.tick = now.tick.after(1);
            while desk.shard.turn(now, &mut desk.queue) == Next::Again {}
            if desk.queue.is_behind() && done_at.last() != Some(&desk.shard.expired_at) {
                done_at.push(desk.shard.expired_at);
            }
        }
        assert!(done_at.len() > 10, "ticks are made: {done_at:?}");
        assert!(done_at.windows(2).all(|pair| pair[1].since(pair[0]) >= REST_MS), "{done_at:?}");

        desk.queue.hand_over(AtOnce::ALL, usize::MAX, |_| {});
        let due = match desk.shard.turn(now, &mut desk.queue) {
            Next::Sleep(Some(due)) => due,
            Next::Again => now.tick,
            other => panic!("{other:?}"),
        };
        assert!(due <= now.tick.after(10), "on the beat again");
    }
}
