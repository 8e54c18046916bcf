//! The world: everything in it, its time, and what happens next.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    rc::Rc,
    sync::Arc,
};

use orchestrator_service::shard::record::Recorder;

use crate::{
    checkers::{Checkers, Fact},
    client::Clients,
    director::Director,
    gateway::Gateway,
    log::Log,
    net::{Link, Message, Parcel, Party, Sent, delay},
    plan::Plan,
    rng::Rng,
    service::Service,
    truth::Truth,
};

/// The beginning of time: some day in 2023, ms since 1970.
pub const T0: u64 = 1_700_000_000_000;

/// So long may a shard have to do with a flood that is over, s.
const CATCHES_UP_WITHIN_S: u64 = 900;
/// So much longer than others an audit over a slow connection may take, s.
const SLOW_AUDIT_S: u64 = 30;

/// What a stream of the broker answers that captures a request's subject, and others who are in the way.
const OTHER_ANSWERS: [&[u8]; 4] = [
    br#"{"stream":"ORDERS","seq":4711}"#,
    br#"{"stream":"X","domain":"hub","seq":1,"duplicate":true}"#,
    br#"{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"X","seq":0}"#,
    b"",
];

/// Something that will happen.
#[derive(Debug)]
pub enum Event {
    /// A message reaches the broker.
    AtBroker(Parcel),
    /// A message reaches whom it is for.
    Arrive(Parcel),
    /// A shard wakes; only the last such wake-up that was asked for counts.
    Turn(usize, u64),
    /// A publisher goes on that had to wait.
    Pump(usize),
    /// A publisher's barrier is begun.
    SendBarrier(usize, u64),
    /// A publisher without anything to do notices what has become of its connection.
    PublisherNotices(usize),
    /// A barrier has taken too long.
    BarrierTimeout(usize, u64),
    /// A gateway heartbeats.
    Beat(usize),
    /// A gateway looks after those who are not registered.
    Tend(usize),
    /// A gateway that died is started again.
    Rebirth(usize),
    /// A gateway with the real client starts, or is started again.
    ClientStarts(usize),
    /// Such a gateway looks after the streams that its viewers miss.
    ClientTends(usize),
    /// The broker allows to subscribe to a subject again.
    Allow(String),
    /// The broker takes messages to a subject again.
    Take(String),
    /// Clients have had time to find out that there is no service, if it has been away since then.
    AskWhetherAway(u64),
    /// Its holder notices that a connection is broken.
    Notice(Party, u64),
    /// A connection is made again.
    Reconnect(Party, u64),
    /// The world does something at random.
    Act,
    /// Somebody sends a command of a flood.
    Flood,
}

#[derive(Debug)]
struct Scheduled {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What may go wrong now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Anything.
    Safety,
    /// Nothing any more: all must converge.
    Liveness,
    /// Everybody has left.
    Empty,
}

/// See the module.
pub struct World {
    pub plan: Plan,
    pub rng: Rng,
    pub log: Log,
    /// Ms since 1970.
    pub now: u64,
    pub phase: Phase,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    pub links: Vec<Link>,
    /// What the broker takes of connections made from now on, bytes.
    pub max_payload: usize,
    /// What the broker lets nobody subscribe to at present.
    pub denied_subjects: BTreeSet<String>,
    /// To which subjects it takes no message.
    pub refused_subjects: BTreeSet<String>,
    /// Until then readers may miss updates, because messages to some stream's were just refused.
    refusing_until: u64,
    refusals: u64,
    /// How often somebody may have missed something.
    misses: u64,
    /// Changes that were handed over and that the broker has not had: stream, epoch, sequence, and whether in a feed; and
    /// since when.
    pub unpublished: BTreeMap<(usize, u64, u64, bool), u64>,
    pub service: Service,
    pub gateways: Vec<Gateway>,
    pub clients: Clients,
    pub directors: Vec<Director>,
    pub truth: Truth,
    pub checkers: Checkers,
}

impl World {
    pub fn new(seed: u64, print: bool) -> Self {
        Self::recorded(seed, print, None)
    }

    /// A world whose service writes down what its engines are fed.
    pub fn recorded(seed: u64, print: bool, recorder: Option<Arc<Recorder>>) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng);
        let service = Service::new(&plan, rng.next(), recorder);
        let truth = Truth::new(&plan, &service);
        let gateways: Vec<Gateway> =
            (plan.gateways.iter().enumerate()).map(|(number, style)| Gateway::new(number, *style, &plan)).collect();
        let directors: Vec<Director> = (0..plan.directors).map(|_| Director::default()).collect();
        let parties = 1 + plan.shards + gateways.len() + directors.len() + plan.clients.len();
        let max_payload = rng.pick(&plan.max_payloads);
        let clients = Clients::new(&plan, rng.next(), &Link::new(max_payload));
        let world = Self {
            log: Log::new(print),
            now: T0,
            phase: Phase::Safety,
            queue: BinaryHeap::new(),
            scheduled: 0,
            max_payload,
            denied_subjects: BTreeSet::new(),
            refused_subjects: BTreeSet::new(),
            refusing_until: 0,
            refusals: 0,
            misses: 0,
            unpublished: BTreeMap::new(),
            links: (0..parties).map(|_| Link::new(max_payload)).collect(),
            service,
            gateways,
            clients,
            directors,
            truth,
            checkers: Checkers::new(),
            rng,
            plan,
        };
        world.log.tell(|| format!("{:?}", world.plan));
        world
    }

    /// Its whole history: safety, liveness, emptiness.
    pub fn run(mut self) -> Log {
        self.run_safety();

        self.begin_liveness();
        let since = self.now;
        self.run_until_caught_up();
        self.run_until(self.now + 10_000);
        self.check_reconnected_clients(since);
        self.run_until(self.now + 2 * self.plan.stale_after_ms + 2 * self.plan.heartbeat_ms + 10_000);
        // A mailbox for four is full at times without any fault. Whoever was refused tries again, and succeeds in the end;
        // the steps are out of step with the heartbeats.
        for _ in 0..100 {
            if self.unregistered().is_none() {
                break;
            }
            self.run_until(self.now + 337);
        }
        assert_eq!(self.unregistered(), None, "convergence: every viewer is registered");
        self.audit();
        self.run_until_audited();
        let lost = self.unpublished.iter().find(|(_, since)| **since + 1_000 < self.now);
        assert_eq!(lost, None, "loss: a change that the broker never had: stream, epoch, sequence, feed");
        self.check_quiet();

        self.everybody_leaves();
        self.run_until(self.now + 6_000);
        self.check_closed();
        self.call_off_endless_shows();
        // The stale timeout, the longest idle timeout, and the time for which request ids are remembered.
        self.run_until(self.now + self.plan.stale_after_ms + 60_000 + 125_000);
        self.check_empty();
        self.check_nothing_is_left_of_clients();
        self.log
    }

    /// Its first phase alone. Each shard then says to the recording, if there is one, in which state it is: in the midst
    /// of things, where there is more of it than at the end.
    pub fn record(mut self) {
        self.run_safety();
        for own in &self.service.shards {
            own.shard.end();
        }
    }

    fn run_safety(&mut self) {
        for gateway in 0..self.gateways.len() {
            let (beat, tend) = (self.rng.within(0, self.plan.heartbeat_ms), self.rng.within(0, 1_000));
            self.at(self.now + beat, Event::Beat(gateway));
            self.at(self.now + tend, Event::Tend(gateway));
        }
        for client in 0..self.clients.each.len() {
            let starts = self.rng.within(0, 1_000);
            self.at(self.now + starts, Event::ClientStarts(client));
        }
        if self.plan.all_play() {
            self.everything_plays();
        }
        self.at(self.now, Event::Act);
        self.at(self.now + 5_000, Event::Flood);
        self.run_until(T0 + self.plan.safety_ms);
    }

    /// Ms since the world began.
    pub fn clock(&self) -> u64 {
        self.now - T0
    }

    pub fn at(&mut self, at: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled { at: at.max(self.now), number: self.scheduled, event }));
    }

    pub fn run_until(&mut self, end: u64) {
        match self.clients.has_runtime() {
            Some(runtime) => runtime.block_on(self.run_with_clients(end)),
            None => {
                while self.next_event_at().is_some_and(|at| at <= end) {
                    self.next_event();
                }
            }
        }
        self.now = end;
    }

    pub fn next_event_at(&self) -> Option<u64> {
        self.queue.peek().map(|Reverse(next)| next.at)
    }

    pub fn next_event(&mut self) {
        let Some(Reverse(Scheduled { at, event, .. })) = self.queue.pop() else { return };
        self.now = at;
        self.happen(event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::AtBroker(parcel) => self.at_broker(parcel),
            Event::Arrive(parcel) => self.arrive(parcel),
            Event::Turn(shard, token) => self.turn_if_current(shard, token),
            Event::Pump(shard) => self.pump(shard),
            Event::SendBarrier(shard, barrier) => self.send_barrier(shard, barrier),
            Event::PublisherNotices(shard) => self.publisher_connection_changed(shard),
            Event::BarrierTimeout(shard, barrier) => self.barrier_timed_out(shard, barrier),
            Event::Beat(gateway) => self.beat(gateway),
            Event::Tend(gateway) => self.tend(gateway),
            Event::Rebirth(gateway) => self.gateway_starts(gateway),
            Event::ClientStarts(client) => self.client_starts(client),
            Event::ClientTends(client) => self.client_tends(client),
            Event::Allow(subject) => self.broker_allows(&subject),
            Event::Take(subject) => self.broker_takes_again(&subject),
            Event::AskWhetherAway(generation) => self.check_clients_miss_the_service(generation),
            Event::Notice(party, generation) => self.notice_loss(party, generation),
            Event::Reconnect(party, generation) => self.reconnect(party, generation),
            Event::Act => self.act(),
            Event::Flood => self.flood(),
        }
    }

    /// Tells the checkers something.
    pub fn fact(&mut self, fact: &Fact<'_>) {
        self.checkers.see(self.now, fact, &self.truth);
    }

    // --- messages ------------------------------------------------------------------------------------------------

    pub fn number_of(&self, party: Party) -> usize {
        let gateways = 1 + self.plan.shards;
        match party {
            Party::Ingress => 0,
            Party::Publisher(shard) => 1 + shard,
            Party::Gateway(gateway) => gateways + gateway,
            Party::Director(director) => gateways + self.plan.gateways.len() + director,
            Party::Client(client) => gateways + self.plan.gateways.len() + self.plan.directors + client,
        }
    }

    pub fn link(&mut self, party: Party) -> &mut Link {
        let number = self.number_of(party);
        &mut self.links[number]
    }

    fn one_way(&mut self) -> u64 {
        let spikes = if self.phase == Phase::Safety { self.plan.spikes } else { 0 };
        delay(&mut self.rng, self.plan.delay_ms, spikes)
    }

    /// Sends a message to the broker; it is lost if the connection is broken and its holder does not know yet.
    pub fn send(&mut self, party: Party, message: Message) {
        let (now, delay) = (self.now, self.one_way());
        let link = self.link(party);
        let generation = link.generation;
        if let Some(at) = link.send_at(now, delay) {
            self.at(at, Event::AtBroker(Parcel { party, generation, message }));
        }
    }

    pub fn deliver(&mut self, party: Party, message: Message) {
        let (now, delay) = (self.now, self.one_way());
        let link = self.link(party);
        let generation = link.generation;
        if let Some(at) = link.receive_at(now, delay) {
            self.at(at, Event::Arrive(Parcel { party, generation, message }));
        }
    }

    fn at_broker(&mut self, Parcel { party, generation, message }: Parcel) {
        if !self.link(party).carries(generation) {
            return;
        }
        match &message {
            Message::Request(sent) => {
                if self.phase == Phase::Safety && self.plan.duplicates > 0 && self.rng.chance(self.plan.duplicates) {
                    let later = self.now + self.rng.within(0, 3_000);
                    let generation = self.link(Party::Ingress).generation;
                    let parcel = Parcel { party: Party::Ingress, generation, message: message.clone() };
                    self.at(later, Event::Arrive(parcel));
                }
                // The broker may know already that the service is not there.
                if let (Party::Client(_), Some(request), false) = (party, sent.request, self.link(Party::Ingress).alive)
                    && self.rng.chance(500)
                {
                    return self.deliver(party, Message::NoResponders(request));
                }
                if let (Party::Client(_), Some(request)) = (party, sent.request)
                    && self.rng.chance(self.plan.others_answer)
                {
                    let payload = self.rng.pick(&OTHER_ANSWERS).into();
                    self.deliver(party, Message::Another { request, payload });
                }
                self.deliver(Party::Ingress, message);
            }
            Message::Updates(updates) if self.refused_subjects.contains(&updates.subject) => {
                self.deliver(party, Message::Refused(updates.subject.clone()));
            }
            Message::Updates(updates) => {
                for gateway in 0..self.gateways.len() {
                    let reads = self.gateways[gateway].reads_feed == updates.feed && !updates.filtered;
                    if self.gateways[gateway].alive && reads {
                        self.deliver(Party::Gateway(gateway), message.clone());
                    }
                }
                for update in updates.updates.iter().filter(|_| !updates.filtered) {
                    self.unpublished.remove(&(update.stream, update.epoch, update.sequence, updates.feed));
                }
                self.broker_forwards(updates);
            }
            Message::Answer(answer) => {
                let to = self.truth.requests[answer.request].sent.from;
                if matches!(to, Party::Client(_)) && self.rng.chance(self.plan.duplicates) {
                    self.deliver(to, message.clone());
                }
                self.deliver(to, message);
            }
            Message::Barrier(_) | Message::Probe(_) => self.deliver(party, message),
            Message::Subscribe { number, subject } => {
                let Party::Client(client) = party else { unreachable!("{party:?} subscribes to {subject}") };
                self.broker_subscribes(client, *number, subject.clone());
            }
            Message::Unsubscribe { number } => {
                let Party::Client(client) = party else { unreachable!("{party:?} unsubscribes from {number}") };
                self.broker_unsubscribes(client, *number);
            }
            Message::Refused(_) | Message::Subscribed { .. } | Message::NoResponders(_) | Message::Another { .. } => {
                unreachable!("the broker's own")
            }
        }
    }

    fn arrive(&mut self, Parcel { party, generation, message }: Parcel) {
        if !self.link(party).carries(generation) {
            return;
        }
        match (party, message) {
            (Party::Ingress, Message::Request(sent)) => self.take_in(&sent),
            (Party::Publisher(shard), Message::Barrier(barrier)) => self.barrier_passed(shard, barrier),
            (Party::Publisher(shard), Message::Refused(subject)) => self.publishing_refused(shard, subject),
            (Party::Publisher(shard), Message::Probe(refusals)) => self.probe_passed(shard, refusals),
            (Party::Gateway(gateway), Message::Updates(updates)) => self.see_updates(gateway, &updates),
            (Party::Gateway(gateway), Message::Answer(answer)) => self.gateway_answered(gateway, &answer),
            (Party::Director(director), Message::Answer(answer)) => self.director_answered(director, &answer),
            (Party::Client(client), Message::Updates(updates)) => self.client_sees_updates(client, &updates),
            (Party::Client(client), Message::Answer(answer)) => self.client_answered(client, &answer),
            (Party::Client(client), Message::NoResponders(request)) => self.client_found_nobody(client, request),
            (Party::Client(client), Message::Subscribed { number, denied }) => {
                self.client_subscribed(client, number, denied);
            }
            (Party::Client(client), Message::Another { request, payload }) => {
                self.client_hears_another(client, request, payload);
            }
            (party, message) => unreachable!("{party:?} was sent {message:?}"),
        }
    }

    /// Sends a request if the connection is there; returns the number under which its answer comes.
    pub fn ask(&mut self, sent: Sent, answered: bool) -> Option<usize> {
        let from = sent.from;
        let (bytes, limit) = (sent.payload.len(), self.link(from).max_payload);
        if !self.link(from).is_up() {
            return None;
        }
        assert!(bytes <= limit, "size: {from:?} sends {bytes} bytes where {limit} are taken: {:?}", sent.what);
        let request = answered.then_some(self.truth.requests.len());
        let sent = Rc::new(Sent { request, ..sent });
        self.log.note(self.clock(), "sent", &[request.map_or(u64::MAX, |n| n as u64)], &sent.payload);
        self.log.tell(|| format!("{:?} {:?}", sent.from, sent.what));
        if answered {
            self.truth.note_request(Rc::clone(&sent));
        }
        self.send(from, Message::Request(sent));
        request
    }

    // --- outages -------------------------------------------------------------------------------------------------

    /// Breaks a connection. Its holder notices later, or only when it is made again.
    pub fn break_link(&mut self, party: Party, for_ms: u64) {
        if !self.link(party).alive {
            return;
        }
        let link = self.link(party);
        link.alive = false;
        link.generation += 1;
        let generation = link.generation;
        self.log.note(self.clock(), "connection breaks", &[self.number_of(party) as u64, for_ms], &[]);
        self.log.tell(|| format!("{party:?}"));
        if let Party::Client(client) = party {
            self.client_connection_breaks(client);
        }
        if let Party::Publisher(shard) = party {
            // Until it is there again, and all that was on its way was given up.
            self.truth.hindered(shard, self.now, self.now + for_ms + 8_000);
        }
        if party == Party::Ingress && for_ms > 6_000 {
            self.at(self.now + 5_500, Event::AskWhetherAway(generation));
        }
        let noticed = self.now + self.rng.within(0, for_ms.min(2_500));
        let is_missed = matches!(party, Party::Publisher(_)) && self.rng.chance(400);
        if !is_missed {
            self.at(noticed, Event::Notice(party, generation));
        }
        self.at(self.now + for_ms, Event::Reconnect(party, generation));
    }

    /// The broker takes no message to a subject from now on.
    pub fn broker_refuses(&mut self, subject: String, for_ms: u64) {
        self.log.note(self.clock(), "broker refuses", &[for_ms], subject.as_bytes());
        self.at(self.now + for_ms, Event::Take(subject.clone()));
        self.refused_subjects.insert(subject);
        self.refusals += 1;
        for shard in 0..self.plan.shards {
            self.truth.hindered(shard, self.now, self.now + for_ms + 3_000);
        }
    }

    /// It takes them again: publishers find out with the next that they try.
    fn broker_takes_again(&mut self, subject: &str) {
        if self.refused_subjects.remove(subject) {
            self.log.note(self.clock(), "broker takes again", &[], subject.as_bytes());
            self.messages_are_out_of_order();
        }
    }

    /// The broker is told to take another size of messages from now on: its connections hear of it at once.
    pub fn broker_takes(&mut self, max_payload: usize) {
        self.log.note(self.clock(), "broker takes", &[max_payload as u64], &[]);
        self.max_payload = max_payload;
        for party in self.parties() {
            let link = self.link(party);
            if link.alive {
                link.max_payload = max_payload;
            }
            if let Party::Client(client) = party {
                self.client_connection_takes(client);
            }
        }
    }

    /// What was held once and is published again is out of order once more.
    pub fn what_was_held_may_come_again(&mut self) {
        if self.refusals > 0 {
            self.messages_are_out_of_order();
        }
    }

    /// What was held comes behind what was not, and readers have no use for it any more.
    pub fn messages_are_out_of_order(&mut self) {
        self.refusing_until = self.now + 2_000;
        self.refusals += 1;
    }

    /// Updates that are seen with the same number came over one connection, without a gap that is known.
    pub fn course(&mut self, party: Party, gaps: u64) -> u64 {
        let is_refusing = self.now < self.refusing_until
            || !self.refused_subjects.is_empty()
            || self.service.shards.iter().any(|own| !own.denied.is_empty());
        if is_refusing {
            self.misses += 1;
            return u64::MAX - self.misses;
        }
        self.link(party).generation << 40 | gaps << 20 | self.refusals
    }

    fn notice_loss(&mut self, party: Party, generation: u64) {
        let link = self.link(party);
        if link.alive || link.generation != generation {
            return;
        }
        link.believed.connected = false;
        self.connection_changed(party);
    }

    fn reconnect(&mut self, party: Party, generation: u64) {
        let max_payload = self.max_payload;
        let link = self.link(party);
        if link.alive || link.generation != generation {
            return;
        }
        link.alive = true;
        link.max_payload = max_payload;
        link.believed.connected = true;
        link.believed.generation = generation;
        self.log.note(self.clock(), "connection made", &[self.number_of(party) as u64], &[]);
        match party {
            // Its transport sends over the new one before it is looked at.
            Party::Publisher(shard) if self.phase == Phase::Safety => {
                let later = self.rng.within(0, 100);
                self.at(self.now + later, Event::PublisherNotices(shard));
            }
            _ => self.connection_changed(party),
        }
    }

    fn connection_changed(&mut self, party: Party) {
        match party {
            Party::Publisher(shard) => self.publisher_connection_changed(shard),
            Party::Gateway(gateway) => self.gateway_connection_changed(gateway),
            Party::Client(client) => self.client_connection_changed(client),
            Party::Ingress | Party::Director(_) => {}
        }
    }

    pub fn parties(&self) -> Vec<Party> {
        std::iter::once(Party::Ingress)
            .chain((0..self.plan.shards).map(Party::Publisher))
            .chain((0..self.gateways.len()).map(Party::Gateway))
            .chain((0..self.directors.len()).map(Party::Director))
            .chain((0..self.plan.clients.len()).map(Party::Client))
            .collect()
    }

    /// What was sent while there were faults is no fault's doing any more, and still takes its time: where a shard may owe
    /// little, a flood waits in its mailbox for many a round trip, and what comes behind it is not handled before; and where
    /// its connection is slow, what it owes is answered long after that.
    fn run_until_caught_up(&mut self) {
        for _ in 0..CATCHES_UP_WITHIN_S {
            let (sent, asked) = (self.service.arrivals(), self.truth.requests.len());
            self.run_until(self.now + 1_000);
            if self.service.has_handled(sent) && self.truth.has_answered(asked) {
                return;
            }
        }
        panic!(
            "convergence: after {CATCHES_UP_WITHIN_S} s without a fault a shard is still busy with what came before"
        );
    }

    /// Where a connection is slow, the audit is answered behind all that the others ask meanwhile.
    fn run_until_audited(&mut self) {
        let asked = self.truth.requests.len();
        self.run_until(self.now + 5_000);
        let most_s = if self.plan.publish_us > 0 { SLOW_AUDIT_S } else { 0 };
        for _ in 0..most_s {
            let is_answered = self.truth.has_answered(asked);
            self.run_until(self.now + 1_000);
            if is_answered {
                break;
            }
        }
    }

    /// No fault any more, and nothing that a fault left behind.
    fn begin_liveness(&mut self) {
        self.phase = Phase::Liveness;
        for subject in self.denied_subjects.clone() {
            self.broker_allows(&subject);
        }
        for subject in self.refused_subjects.clone() {
            self.broker_takes_again(&subject);
        }
        self.log.note(self.clock(), "faults stop", &[], &[]);
        for party in self.parties() {
            let generation = self.link(party).generation;
            self.reconnect(party, generation);
        }
        for gateway in 0..self.gateways.len() {
            self.gateway_starts(gateway);
        }
        self.sessions_end_elsewhere();
        for client in 0..self.clients.each.len() {
            self.client_starts(client);
            self.client_tends(client);
        }
        self.end_stalls();
    }
}
