//! The service under test: shards with all that is around them, called as `shard/thread.rs` and `service/publisher.rs`
//! call them, only that time is the world's.

use std::{
    collections::{BTreeSet, VecDeque},
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;
use orchestrator_service::{
    engine::{Handle, Limits, Settings, Tick, partition},
    service::delivery::{Delivery, Step},
    shard::{
        clock::Now,
        ingress::Ingress,
        mailbox::Mailbox,
        publish_queue::PublishQueue,
        record::Recorder,
        router::Router,
        totals::Totals,
        turn::{Next, Shard, ShardSettings},
    },
    transport::{BARRIER_TIMEOUT, Connection, Subject},
    wire::{WireLimits, proto::Mode},
};

use crate::{
    checkers::{Fact, is_change},
    gateway::SubId,
    net::{Message, Party, Sent, Updates, What},
    plan::Plan,
    reading::{self, Read},
    world::{Event, Phase, T0, World},
};

/// As `service/publisher.rs` waits after an error.
const PAUSE_MS: u64 = 100;
/// As the transport sends a message to a subject that was refused, and as `service/publisher.rs` tries again.
const PROBE_MS: u64 = 1_000;
/// As `shard/turn.rs` looks at the wall clock while a stream waits for an instant.
const WALL_CLOCK_LOOK_MS: u64 = 1_000;
/// So many turns at one moment are one too many: somebody says `Again` for ever.
const MOST_TURNS_AT_ONCE: u32 = 20_000;

/// A message, or a part of it, that a shard has not handled yet.
struct Waiting {
    sent: Rc<Sent>,
    /// Its number among all that reached the service.
    arrival: u64,
    /// When the shard may have begun with it, if it took several turns.
    begun: Option<u64>,
}

/// A shard and what its thread has.
pub struct ShardUnderTest {
    pub shard: Shard,
    pub queue: PublishQueue,
    delivery: Delivery,
    /// What was taken over and is not published, as it reads.
    read: VecDeque<Read>,
    /// What is in the mailbox, in the same order.
    mail: VecDeque<Waiting>,
    /// Of the wake-up that counts.
    token: u64,
    wakes_at: Option<u64>,
    /// When the next turn is due, and since when something is.
    due: Option<Tick>,
    /// Behind a slow publisher it may rest until then, and what an earlier turn said of that is not known of one that was
    /// to be followed by another at once.
    due_at_the_latest: Option<Tick>,
    deadline: Option<Tick>,
    blocked: bool,
    stalled_until: u64,
    panics_next: bool,
    barrier: Option<u64>,
    barriers: u64,
    /// Publishing waits until then.
    publishes_at: u64,
    /// Subjects that the broker is known to refuse messages to, and when one is sent to see whether it still does.
    pub denied: BTreeSet<String>,
    probes_at: u64,
    /// How many it has refused since the last barrier and since the one before, and ever.
    refused: (u64, u64),
    refusals: u64,
    /// When what is held for them is tried again.
    retries_at: Option<u64>,
    /// For how long its connection has still to do with what was published, µs.
    busy_us: u64,
    turns: u64,
    turns_at_once: u32,
    last_turn: u64,
}

pub struct Service {
    pub router: Arc<Router>,
    ingress: Ingress,
    totals: Arc<Totals>,
    settings: Vec<ShardSettings>,
    arrivals: u64,
    pub shards: Vec<ShardUnderTest>,
}

impl Service {
    pub fn new(plan: &Plan, seed: u64, recorder: Option<Arc<Recorder>>) -> Self {
        let mailboxes = (0..plan.shards).map(|_| Mailbox::with_limits(plan.mailbox)).collect();
        let router = Arc::new(Router::new(mailboxes));
        let wire = Arc::new(WireLimits::default());
        let totals = Arc::new(Totals::new(plan.shards));
        let settings: Vec<ShardSettings> = (0..plan.shards)
            .map(|number| ShardSettings {
                engine: Settings {
                    limits: Limits { max_remembered_of_stream: plan.remembered_of_stream, ..Limits::default() },
                    stale_after_ms: plan.stale_after_ms,
                    seed: seed ^ number as u64,
                },
                wire: Arc::clone(&wire),
                recorder: recorder.clone(),
                turn: plan.turn,
            })
            .collect();
        let shards = (settings.iter().enumerate())
            .map(|(number, settings)| ShardUnderTest {
                shard: Shard::new(number, settings.clone(), Arc::clone(&router), Arc::clone(&totals)),
                queue: PublishQueue::with_limits(plan.publish_to, plan.publish.clone()),
                delivery: Delivery::new(Connection { connected: true, generation: 1 }),
                read: VecDeque::new(),
                mail: VecDeque::new(),
                token: 0,
                wakes_at: None,
                due: None,
                due_at_the_latest: None,
                deadline: None,
                blocked: false,
                stalled_until: 0,
                panics_next: false,
                barrier: None,
                barriers: 0,
                publishes_at: 0,
                denied: BTreeSet::new(),
                probes_at: 0,
                refused: (0, 0),
                refusals: 0,
                retries_at: None,
                busy_us: 0,
                turns: 0,
                turns_at_once: 0,
                last_turn: 0,
            })
            .collect();
        let ingress = Ingress::with_limits(Arc::clone(&router), wire, plan.ingress);
        Self { router, ingress, totals, settings, arrivals: 0, shards }
    }

    /// How many messages have reached it.
    pub fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// Whether none of the first `arrivals` messages waits any more.
    pub fn has_handled(&self, arrivals: u64) -> bool {
        self.shards.iter().all(|own| own.mail.front().is_none_or(|waiting| waiting.arrival > arrivals))
    }

    pub fn shard_of(&self, stream_id: &str) -> usize {
        self.router.owner(partition(stream_id))
    }

    pub fn owner_of_handle(&self, handle: u64) -> usize {
        self.router.owner(Handle(handle).partition())
    }
}

impl World {
    // --- requests ------------------------------------------------------------------------------------------------

    /// A request reaches the service, as `service/receiver.rs` takes it in.
    pub fn take_in(&mut self, sent: &Rc<Sent>) {
        self.log.note(self.clock(), "received", &[sent.request.map_or(u64::MAX, |n| n as u64)], &sent.payload);
        if let Some(request) = sent.request {
            self.truth.requests[request].delivered += 1;
        }
        let reply = sent.request.map(|request| Subject::from(format!("answer.{request}")));
        let refused = self.service.ingress.accept(sent.subject, sent.payload.clone(), reply);
        self.service.arrivals += 1;
        let arrival = self.service.arrivals;
        let mut taken = 0;
        for shard in 0..self.plan.shards {
            let own = &mut self.service.shards[shard];
            if self.service.router.mailbox(shard).len() > own.mail.len() {
                own.mail.push_back(Waiting { sent: Rc::clone(sent), arrival, begun: None });
                taken += 1;
                self.wake(shard, self.now);
            }
        }
        assert!(taken <= sent.round.len().max(1), "ingress: a message went to {taken} shards, not {:?}", sent.round);
        for (shard, own) in self.service.shards.iter().enumerate() {
            let waiting = self.service.router.mailbox(shard).len();
            assert_eq!(waiting, own.mail.len(), "ingress: what waits for shard {shard}, and what it was sent");
        }
        assert!(
            (taken > 0) != refused.is_some() || sent.request.is_none(),
            "ingress: a message with a reply subject is either taken or refused, this one was taken {taken} times"
        );
        if let Some((subject, payload)) = refused {
            let read = self.read(&subject, payload);
            let Read::Answer(answer) = read else { panic!("ingress published something else than an answer") };
            self.truth.requests[answer.request].refused_at_the_door(&answer);
            self.fact(&Fact::Answered { answer: &answer, handled: None, by: None });
            self.send(Party::Ingress, Message::Answer(answer));
        }
    }

    fn read(&self, subject: &str, payload: Bytes) -> Read {
        reading::read(subject, payload, &self.truth.requests)
    }

    // --- turns ---------------------------------------------------------------------------------------------------

    /// A shard is to wake at `at`, or earlier.
    pub fn wake(&mut self, shard: usize, at: u64) {
        let own = &mut self.service.shards[shard];
        if own.blocked {
            return;
        }
        let at = at.max(self.now).max(own.stalled_until);
        if own.wakes_at.is_none_or(|wakes_at| at < wakes_at) {
            own.token += 1;
            own.wakes_at = Some(at);
            let token = own.token;
            self.at(at, Event::Turn(shard, token));
        }
    }

    pub fn turn_if_current(&mut self, shard: usize, token: u64) {
        let own = &mut self.service.shards[shard];
        if own.token != token {
            return;
        }
        own.wakes_at = None;
        if self.now < own.stalled_until {
            let until = own.stalled_until;
            self.wake(shard, until);
            return;
        }
        self.turn(shard);
    }

    fn turn(&mut self, shard: usize) {
        let now = self.now;
        let own = &mut self.service.shards[shard];
        own.turns += 1;
        own.turns_at_once = if own.last_turn == now { own.turns_at_once + 1 } else { 0 };
        own.last_turn = now;
        assert!(own.turns_at_once < MOST_TURNS_AT_ONCE, "shard {shard} does not come to rest");
        if std::mem::take(&mut own.panics_next) {
            self.panic(shard);
            self.wake(shard, now);
            return;
        }
        let full = own.queue.is_full();
        if !full {
            let since = |due: Option<Tick>| due.map_or(0, |due| now.saturating_sub(due.0));
            let late_ms = (since(own.due_at_the_latest), since(own.due));
            self.truth.note_turn(shard, now, late_ms, since(own.deadline));
        }
        let was_behind = own.queue.is_behind();
        let next = own.shard.turn(Now { tick: Tick(now), wall_ms: now + self.plan.skew_ms }, &mut own.queue);
        assert_eq!(full, next == Next::Blocked, "shard {shard} stops exactly when too much is owed");
        if !full {
            let deadline = own.shard.engine().next_deadline();
            // A look at the wall clock that comes late is a late turn, too.
            let look = own.shard.engine().waits_for_wall_clock().then_some(Tick(now + WALL_CLOCK_LOOK_MS));
            let due_from = |from: u64| deadline.map(|due| due.max(Tick(from))).into_iter().chain(look).min();
            (own.due, own.due_at_the_latest) = match next {
                // It says itself when the next one is due, having rested if it has to.
                Next::Sleep(due) => (due, due),
                // What is due at once is due now, or when it has rested, which this one does not say.
                Next::Again | Next::Blocked => {
                    let rests = was_behind || own.queue.is_behind();
                    let rest_ms = if rests { self.plan.turn.rest_ms } else { 0 };
                    (due_from(now), due_from(now + rest_ms))
                }
            };
            // Since when something is due is another matter: a turn may leave some of it. And what is to be done at once
            // hides since when something else is.
            let at_once = deadline == Some(Tick(0));
            let overdue = own.deadline.filter(|due| at_once && *due <= Tick(now));
            own.deadline = overdue.or(if at_once { Some(Tick(now)) } else { deadline });
        }
        let turns = own.turns;
        self.note_handled(shard);
        self.log.note(self.clock(), "turn", &[shard as u64, next_number(next)], &[]);
        match next {
            Next::Again => self.wake(shard, now),
            Next::Sleep(due) => {
                if let Some(due) = due {
                    let late = if self.phase == Phase::Safety { self.plan.jitter_ms } else { 0 };
                    let late = if late > 0 { self.rng.within(0, late) } else { 0 };
                    self.wake(shard, due.0.max(now) + late);
                }
            }
            Next::Blocked => {
                self.service.shards[shard].blocked = true;
                self.truth.blocked(shard, now);
            }
        }
        self.pump(shard);
        let rare = if self.plan.is_crowd() { 2_000 } else { 32 };
        if turns.is_multiple_of(rare) && matches!(next, Next::Sleep(_)) {
            self.sample(shard);
        }
    }

    /// What was taken from the mailbox was handled.
    fn note_handled(&mut self, shard: usize) {
        let waiting = self.service.router.mailbox(shard).len();
        let own = &mut self.service.shards[shard];
        let handled: Vec<Waiting> = own.mail.drain(..own.mail.len().saturating_sub(waiting)).collect();
        let now = self.now;
        let weights: Vec<usize> = handled.iter().map(|waiting| self.weight_of(shard, waiting)).collect();
        let most = self.plan.turn;
        self.fact(&Fact::Turned { weights: &weights, most });
        for Waiting { sent, arrival, begun } in handled {
            let handled = self.truth.handled(shard, begun.unwrap_or(now), now, &sent, arrival);
            self.fact(&Fact::Handled { shard, sent: &sent, handled });
        }
        // It may have done a piece of the next one.
        let next = self.service.shards[shard].mail.front_mut();
        let most = self.plan.ingress.max_piece_entries;
        let next = next.filter(|next| next.begun.is_none() && next.sent.what.entries() > most);
        if let Some(Waiting { sent, begun, .. }) = next {
            *begun = Some(now);
            self.truth.begun(shard, now, &Rc::clone(sent));
        }
    }

    /// How much a message is for a shard at the least: the subscribers of it that are the shard's. What took it several
    /// turns is not known of one.
    fn weight_of(&self, shard: usize, waiting: &Waiting) -> usize {
        let is_own = |sub: SubId| self.truth.streams[self.truth.subs[sub].stream].shard == shard;
        match &waiting.sent.what {
            _ if waiting.begun.is_some() => 1,
            // Where the first piece is refused, the rest is.
            What::Join(subs) => subs.len().min(self.plan.ingress.max_piece_entries),
            What::Beat(subs) | What::Leave(subs) => {
                let own = subs.iter().filter(|(sub, _)| is_own(*sub));
                let handles = own.clone().filter(|(_, handle)| handle.is_some()).count();
                // Four handles are found in the time of one name.
                own.count() - handles + handles.div_ceil(4)
            }
            What::Command { .. }
            | What::Follow { .. }
            | What::State { .. }
            | What::Stats { .. }
            | What::List
            | What::History { .. }
            | What::Subscribers { .. }
            | What::Config { .. } => 1,
        }
    }

    /// The engine panics at the next message: that is lost, and the shard begins again, as its thread would have it.
    fn panic(&mut self, shard: usize) {
        self.log.note(self.clock(), "panic", &[shard as u64], &[]);
        for _ in 0..self.rng.within(0, 2) {
            let mail = self.service.router.mailbox(shard).open().take();
            let own = &mut self.service.shards[shard];
            if let Some((mail, waiting)) = mail.zip(own.mail.pop_front()) {
                own.shard.lose(mail, &mut own.queue);
                self.truth.lost(self.now, &waiting.sent);
            }
        }
        let Service { settings, router, totals, shards, .. } = &mut self.service;
        settings[shard] = settings[shard].clone().for_successor();
        shards[shard].shard = Shard::new(shard, settings[shard].clone(), Arc::clone(router), Arc::clone(totals));
        (shards[shard].due, shards[shard].due_at_the_latest, shards[shard].deadline) = (None, None, None);
        self.truth.panicked(shard, self.now);
        self.truth.hindered(shard, self.now, self.now);
    }

    pub fn stall(&mut self, shard: usize, for_ms: u64) {
        self.log.note(self.clock(), "stall", &[shard as u64, for_ms], &[]);
        let own = &mut self.service.shards[shard];
        own.stalled_until = own.stalled_until.max(self.now + for_ms);
        self.truth.hindered(shard, self.now, self.now + for_ms);
    }

    pub fn panic_next(&mut self, shard: usize) {
        self.service.shards[shard].panics_next = true;
        self.wake(shard, self.now);
    }

    /// The faults are over.
    pub fn end_stalls(&mut self) {
        for shard in 0..self.plan.shards {
            let own = &mut self.service.shards[shard];
            own.stalled_until = 0;
            own.panics_next = false;
            own.publishes_at = 0;
            self.wake(shard, self.now);
            self.pump(shard);
        }
    }

    /// A look at a shard that has nothing to do just now.
    pub fn sample(&mut self, shard: usize) {
        let own = &self.service.shards[shard];
        own.shard.engine().check();
        own.queue.check();
        let counts = own.shard.engine().counts();
        // What is known of the world comes from what was handed over: only then is it all there.
        let all_known = own.queue.is_empty() && !own.queue.has_held();
        self.fact(&Fact::Sampled { shard, counts, all_known });
    }

    // --- publishing ----------------------------------------------------------------------------------------------

    /// Publishes what a shard owes, as far as it goes now.
    pub fn pump(&mut self, shard: usize) {
        self.retry_held(shard);
        self.note_what_waits(shard);
        loop {
            self.notice_connection(shard);
            if self.now < self.service.shards[shard].publishes_at {
                break;
            }
            let max_payload = self.link(Party::Publisher(shard)).max_payload;
            let own = &mut self.service.shards[shard];
            let fresh = own.delivery.taken().is_empty();
            match own.delivery.next(&mut own.queue, max_payload) {
                Step::Wait => break,
                Step::Barrier => {
                    own.barriers += 1;
                    let barrier = own.barriers;
                    own.barrier = Some(barrier);
                    // It is sent when somebody looks at it, which may be over another connection.
                    if self.phase == Phase::Safety && self.rng.chance(self.plan.faults) {
                        let later = self.rng.within(1, 100);
                        self.at(self.now + later, Event::SendBarrier(shard, barrier));
                        if self.rng.chance(500) {
                            let for_ms = self.rng.within(1, later);
                            self.break_link(Party::Publisher(shard), for_ms);
                        }
                    } else {
                        self.send_barrier(shard, barrier);
                    }
                    let timeout = self.now + BARRIER_TIMEOUT.as_millis() as u64;
                    self.at(timeout, Event::BarrierTimeout(shard, barrier));
                }
                Step::Publish => {
                    if fresh {
                        self.note_taken_over(shard);
                    }
                    self.publish(shard);
                }
            }
        }
        self.note_what_waits(shard);
        let own = &mut self.service.shards[shard];
        if own.blocked && !own.queue.is_full() {
            own.blocked = false;
            self.truth.unblocked(shard, self.now);
            self.wake(shard, self.now);
        }
    }

    fn note_what_waits(&mut self, shard: usize) {
        let queue = &self.service.shards[shard].queue;
        self.truth.holds(shard, queue.has_held(), !queue.is_empty());
    }

    fn note_taken_over(&mut self, shard: usize) {
        let taken: Vec<(Subject, Bytes)> = (self.service.shards[shard].delivery.taken().iter())
            .map(|outgoing| (outgoing.subject.clone(), outgoing.payload.clone()))
            .collect();
        for (subject, payload) in taken {
            self.log.note(self.clock(), "owed", &[shard as u64], &payload);
            let read = self.read(&subject, payload);
            self.service.shards[shard].read.push_back(read);
        }
        self.check_that_the_newest_waited(shard);
        // Of one hand-over, the messages of feeds come last, so an answer may stand before the change that it follows from.
        let read = std::mem::take(&mut self.service.shards[shard].read);
        let (updates, answers): (Vec<&Read>, Vec<&Read>) =
            read.iter().partition(|read| matches!(read, Read::Updates(_)));
        // As those for who follows filters may stand before the same ones in a feed.
        let (filtered, for_all): (Vec<&Read>, Vec<&Read>) =
            updates.into_iter().partition(|read| matches!(read, Read::Updates(Updates { filtered: true, .. })));
        for_all.into_iter().chain(filtered).chain(answers).for_each(|read| self.learn(shard, read));
        self.service.shards[shard].read = read;
    }

    /// Of what may be replaced, a stream had the newest waiting on each subject, and nothing else.
    fn check_that_the_newest_waited(&self, shard: usize) {
        let mut waited = BTreeSet::new();
        let read = self.service.shards[shard].read.iter();
        let messages = read.filter_map(|read| if let Read::Updates(updates) = read { Some(updates) } else { None });
        for (message, update) in
            messages.flat_map(|message| message.updates.iter().map(move |update| (message, update)))
        {
            if !is_change(update.cause()) && update.mode() != Mode::Unknown {
                // Of a feed several messages leave, on the same subject.
                let is_first = waited.insert((&message.subject, update.stream, update.epoch));
                assert!(is_first, "replaced: an older one waited beside {}", reading::in_short(update));
            }
        }
    }

    /// What is handed over is said by the service, wherever it gets.
    fn learn(&mut self, shard: usize, read: &Read) {
        match read {
            Read::Updates(Updates { updates, subject, filtered: true, .. }) => {
                updates.iter().for_each(|update| self.fact(&Fact::SaidFiltered { subject, update }));
            }
            Read::Updates(Updates { updates, feed, .. }) => {
                for update in updates {
                    self.log.tell(|| reading::in_short(update));
                    let first_time = self.truth.said(shard, update);
                    self.fact(&Fact::Said { shard, update, first_time });
                    if first_time && is_change(update.cause()) {
                        for feed in self.plan.routes() {
                            let change = (update.stream, update.epoch, update.sequence, *feed);
                            self.unpublished.insert(change, self.now);
                        }
                    }
                    self.truth.remember(self.now, update, *feed);
                    self.ask_for_scenes(update);
                }
            }
            Read::Answer(answer) => {
                self.log.tell(|| format!("answer to {}: {:?}", answer.request, answer.body));
                let handled = self.truth.answered(answer);
                self.truth.learn_scenes(answer);
                self.fact(&Fact::Answered { answer, handled, by: Some(shard) });
            }
        }
    }

    /// Publishes what was taken over: all, or some of it if the connection is slow or fails.
    fn publish(&mut self, shard: usize) {
        let mut most = self.service.shards[shard].read.len();
        self.log.note(self.clock(), "publishes", &[shard as u64, most as u64], &[]);
        let is_safety = self.phase == Phase::Safety;
        let trouble = is_safety && self.plan.faults > 0 && self.rng.chance(self.plan.faults / 10);
        let partly = trouble || is_safety && self.plan.partly > 0 && self.rng.chance(self.plan.partly);
        if partly {
            most = self.rng.below(most + 1);
        }
        let mut probe = None;
        for _ in 0..most {
            let limit = self.link(Party::Publisher(shard)).max_payload;
            let own = &mut self.service.shards[shard];
            let (Some(outgoing), Some(read)) = (own.delivery.taken().pop_front(), own.read.pop_front()) else {
                break;
            };
            if outgoing.payload.len() > limit {
                self.too_large(shard, outgoing.payload.len(), limit);
                continue;
            }
            if own.denied.contains(outgoing.subject.as_str()) {
                if self.now < own.probes_at {
                    self.log.tell(|| format!("not sent, since it was refused: {}", outgoing.subject.as_str()));
                    own.refused.0 += 1;
                    own.delivery.refused(outgoing.subject.as_str().to_owned(), &own.queue);
                    continue;
                }
                own.probes_at = self.now + PROBE_MS;
                probe = Some(own.refusals);
            }
            own.busy_us += self.plan.publish_us;
            let message = match read {
                Read::Updates(updates) => Message::Updates(Rc::new(updates)),
                Read::Answer(answer) => Message::Answer(answer),
            };
            self.send(Party::Publisher(shard), message);
        }
        if let Some(refusals) = probe {
            self.send(Party::Publisher(shard), Message::Probe(refusals));
        }
        let own = &mut self.service.shards[shard];
        let busy_ms = std::mem::take(&mut own.busy_us);
        let (busy_ms, rest) = (busy_ms / 1_000, busy_ms % 1_000);
        own.busy_us = rest;
        if busy_ms > 0 && !partly {
            own.publishes_at = self.now + busy_ms;
            self.at(self.now + busy_ms, Event::Pump(shard));
        }
        if partly {
            self.log.tell(|| format!("only {most}"));
            let fails = trouble && self.rng.chance(500);
            let longest = if trouble { 2_000 } else { 200 };
            let pause = if fails { PAUSE_MS } else { self.rng.within(1, longest) };
            if !fails {
                self.happens_meanwhile(shard, pause);
            }
            let own = &mut self.service.shards[shard];
            if fails {
                own.delivery.lost(&mut own.queue);
                own.read.clear();
                own.barrier = None;
            }
            own.publishes_at = self.now + pause;
            self.truth.hindered(shard, self.now, self.now + pause);
            self.at(self.now + pause, Event::Pump(shard));
        }
    }

    /// A part was published. Before the rest is, the broker may take another size, or the connection be another one.
    fn happens_meanwhile(&mut self, shard: usize, pause: u64) {
        if self.plan.has_full_feeds && self.rng.chance(700) {
            let max_payload = self.rng.pick(&self.plan.max_payloads.clone());
            self.broker_takes(max_payload);
        } else if self.rng.chance(2 * self.plan.faults) {
            let for_ms = self.rng.within(1, pause);
            self.break_link(Party::Publisher(shard), for_ms);
        }
    }

    /// Changes that the broker refused are tried again once in a while, and when it refuses nothing any more, as
    /// `service/publisher.rs` does.
    fn retry_held(&mut self, shard: usize) {
        let now = self.now;
        let own = &mut self.service.shards[shard];
        if !own.queue.has_held() {
            own.retries_at = None;
            return;
        }
        let is_first = own.retries_at.is_none();
        let at = *own.retries_at.get_or_insert(now + PROBE_MS);
        if at <= now || own.denied.is_empty() {
            own.retries_at = None;
            own.queue.release_held();
            self.messages_are_out_of_order();
        } else if is_first {
            self.at(at, Event::Pump(shard));
        }
    }

    /// The broker has refused a message.
    pub fn publishing_refused(&mut self, shard: usize, subject: String) {
        self.log.note(self.clock(), "refused", &[shard as u64], subject.as_bytes());
        let own = &mut self.service.shards[shard];
        own.refused.0 += 1;
        own.refusals += 1;
        own.denied.insert(subject);
    }

    /// A message to a subject that was refused has reached the broker: if nothing was refused meanwhile, it takes all
    /// again.
    pub fn probe_passed(&mut self, shard: usize, refusals: u64) {
        let own = &mut self.service.shards[shard];
        if own.refusals == refusals {
            own.denied.clear();
            self.messages_are_out_of_order();
            self.pump(shard);
        }
    }

    /// A message is larger than its connection takes, which takes less since it was handed over.
    fn too_large(&mut self, shard: usize, bytes: usize, limit: usize) {
        self.log.note(self.clock(), "too large", &[shard as u64, bytes as u64, limit as u64], &[]);
        let own = &mut self.service.shards[shard];
        own.delivery.too_large(bytes, limit, &mut own.queue);
        // What goes in its place reads otherwise.
        let more = own.delivery.taken().len() - own.read.len();
        let instead: Vec<(Subject, Bytes)> = (own.delivery.taken().iter().take(more))
            .map(|outgoing| (outgoing.subject.clone(), outgoing.payload.clone()))
            .collect();
        for (subject, payload) in instead.into_iter().rev() {
            let read = self.read(&subject, payload);
            self.service.shards[shard].read.push_front(read);
        }
    }

    pub fn publisher_connection_changed(&mut self, shard: usize) {
        self.notice_connection(shard);
        self.pump(shard);
    }

    pub fn send_barrier(&mut self, shard: usize, barrier: u64) {
        if self.service.shards[shard].barrier == Some(barrier) {
            self.send(Party::Publisher(shard), Message::Barrier(barrier));
        }
    }

    /// Publishers look at their connection before they do anything else.
    fn notice_connection(&mut self, shard: usize) {
        let believed = self.link(Party::Publisher(shard)).believed;
        let own = &mut self.service.shards[shard];
        if own.delivery.connection_is(believed, &mut own.queue).is_some() {
            own.read.clear();
            own.barrier = None;
            own.publishes_at = 0;
            own.denied.clear();
            self.what_was_held_may_come_again();
        }
    }

    pub fn barrier_passed(&mut self, shard: usize, barrier: u64) {
        let believed = self.link(Party::Publisher(shard)).believed;
        let own = &mut self.service.shards[shard];
        if own.barrier == Some(barrier) {
            self.log.note(self.now - T0, "barrier passes", &[shard as u64, barrier], &[]);
            own.barrier = None;
            // As `service/publisher.rs` has it.
            let (denied, (refused, before)) = (&own.denied, own.refused);
            let unknown = refused + before > 0 && denied.is_empty();
            own.refused = (0, refused);
            own.delivery.barrier_passed_but(believed, &mut own.queue, unknown, |subject| denied.contains(subject));
            if unknown {
                self.what_was_held_may_come_again();
            }
            self.pump(shard);
        }
    }

    pub fn barrier_timed_out(&mut self, shard: usize, barrier: u64) {
        let own = &mut self.service.shards[shard];
        if own.barrier == Some(barrier) {
            self.log.note(self.now, "barrier timed out", &[shard as u64], &[]);
            let own = &mut self.service.shards[shard];
            own.barrier = None;
            own.read.clear();
            own.delivery.lost(&mut own.queue);
            self.pump(shard);
        }
    }

    /// Asserts that nothing is left of anybody.
    pub fn check_empty(&mut self) {
        self.log.note(self.clock(), "the end", &[], &[]);
        for (shard, own) in self.service.shards.iter().enumerate() {
            own.shard.engine().check();
            own.queue.check();
            assert!(own.shard.engine().is_empty(), "leak: shard {shard} keeps {:?}", own.shard.engine().counts());
            assert_eq!(own.shard.engine().next_deadline(), None, "leak: shard {shard} waits for something");
            assert!(own.delivery.is_settled(&own.queue), "leak: shard {shard} still owes something");
            assert!(
                self.service.router.mailbox(shard).is_empty() && own.mail.is_empty(),
                "leak: shard {shard} has mail"
            );
        }
        assert_eq!(self.service.totals.sum(), Default::default(), "leak: counts");
        self.fact(&Fact::Ended);
    }
}

fn next_number(next: Next) -> u64 {
    match next {
        Next::Again => 1,
        Next::Blocked => 2,
        Next::Sleep(due) => due.map_or(3, |due| due.0),
    }
}

/// The shards that each have a part of a request; none if it is for one alone. What `Ingress` decides, said once more.
pub fn round(service: &Service, stream_id: &str, handles: &[u64], what: &What) -> Vec<usize> {
    let all = match what {
        What::Beat(_) | What::Leave(_) => {
            let named = (!stream_id.is_empty()).then(|| service.shard_of(stream_id));
            let owners = named.into_iter().chain(handles.iter().map(|handle| service.owner_of_handle(*handle)));
            owners.collect::<BTreeSet<usize>>().into_iter().collect()
        }
        What::Stats { stream: None } | What::List => (0..service.shards.len()).collect(),
        What::Command { .. }
        | What::Follow { .. }
        | What::Join(_)
        | What::State { .. }
        | What::Stats { .. }
        | What::History { .. }
        | What::Subscribers { .. }
        | What::Config { .. } => Vec::new(),
    };
    if all.len() > 1 { all } else { Vec::new() }
}
