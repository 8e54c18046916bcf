//! The world: everything in it, its time, and what happens next.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    rc::Rc,
    sync::Arc,
};

use orchestrator_service::shard::record::Tape;

use crate::{
    checkers::{Checkers, Fact},
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
    /// A barrier has taken too long.
    BarrierTimeout(usize, u64),
    /// A gateway heartbeats.
    Beat(usize),
    /// A gateway looks after those who are not registered.
    Tend(usize),
    /// A gateway that died is started again.
    Rebirth(usize),
    /// Its holder notices that a connection is broken.
    Notice(Party, u64),
    /// A connection is made again.
    Reconnect(Party, u64),
    /// The world does something at random.
    Act,
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
    pub service: Service,
    pub gateways: Vec<Gateway>,
    pub directors: Vec<Director>,
    pub truth: Truth,
    pub checkers: Checkers,
}

impl World {
    pub fn new(seed: u64, print: bool) -> Self {
        Self::recorded(seed, print, None)
    }

    /// A world whose service writes down what its engines are fed.
    pub fn recorded(seed: u64, print: bool, tape: Option<Arc<Tape>>) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng);
        let service = Service::new(&plan, rng.next(), tape);
        let truth = Truth::new(&plan, &service);
        let gateways: Vec<Gateway> =
            (plan.gateways.iter().enumerate()).map(|(number, style)| Gateway::new(number, *style, &plan)).collect();
        let directors: Vec<Director> = (0..plan.directors).map(|_| Director::default()).collect();
        let parties = 1 + plan.shards + gateways.len() + directors.len();
        let world = Self {
            log: Log::new(print),
            now: T0,
            phase: Phase::Safety,
            queue: BinaryHeap::new(),
            scheduled: 0,
            links: (0..parties).map(|_| Link::new()).collect(),
            service,
            gateways,
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
        self.run_until(self.now + 2 * self.plan.stale_after_ms + 2 * self.plan.heartbeat_ms + 20_000);
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
        self.run_until(self.now + 5_000);
        self.check_quiet();

        self.everybody_leaves();
        // The stale timeout, the longest idle timeout, and the time for which request ids are remembered.
        self.run_until(self.now + self.plan.stale_after_ms + 60_000 + 125_000);
        self.check_empty();
        self.log
    }

    /// Its first phase alone. Each shard then says to the recording, if there is one, in which state it is: in the midst
    /// of things, where there is more of it than at the end.
    pub fn record(mut self) {
        self.run_safety();
        for seat in &self.service.seats {
            seat.shard.end();
        }
    }

    fn run_safety(&mut self) {
        for gateway in 0..self.gateways.len() {
            let (beat, tend) = (self.rng.within(0, self.plan.heartbeat_ms), self.rng.within(0, 1_000));
            self.at(self.now + beat, Event::Beat(gateway));
            self.at(self.now + tend, Event::Tend(gateway));
        }
        self.at(self.now, Event::Act);
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

    fn run_until(&mut self, end: u64) {
        while let Some(Reverse(next)) = self.queue.peek() {
            if next.at > end {
                break;
            }
            let Some(Reverse(Scheduled { at, event, .. })) = self.queue.pop() else { break };
            self.now = at;
            self.happen(event);
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::AtBroker(parcel) => self.at_broker(parcel),
            Event::Arrive(parcel) => self.arrive(parcel),
            Event::Turn(shard, token) => self.turn_if_current(shard, token),
            Event::Pump(shard) => self.pump(shard),
            Event::BarrierTimeout(shard, barrier) => self.barrier_timed_out(shard, barrier),
            Event::Beat(gateway) => self.beat(gateway),
            Event::Tend(gateway) => self.tend(gateway),
            Event::Rebirth(gateway) => self.gateway_starts(gateway),
            Event::Notice(party, generation) => self.notice_loss(party, generation),
            Event::Reconnect(party, generation) => self.reconnect(party, generation),
            Event::Act => self.act(),
        }
    }

    /// Tells the checkers something.
    pub fn fact(&mut self, fact: &Fact<'_>) {
        self.checkers.see(self.now, fact, &self.truth);
    }

    // --- messages ------------------------------------------------------------------------------------------------

    fn number_of(&self, party: Party) -> usize {
        let gateways = 1 + self.plan.shards;
        match party {
            Party::Ingress => 0,
            Party::Publisher(shard) => 1 + shard,
            Party::Gateway(gateway) => gateways + gateway,
            Party::Director(director) => gateways + self.plan.gateways.len() + director,
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

    fn deliver(&mut self, party: Party, message: Message) {
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
            Message::Request(_) => {
                if self.phase == Phase::Safety && self.plan.duplicates > 0 && self.rng.chance(self.plan.duplicates) {
                    let later = self.now + self.rng.within(0, 3_000);
                    let generation = self.link(Party::Ingress).generation;
                    let parcel = Parcel { party: Party::Ingress, generation, message: message.clone() };
                    self.at(later, Event::Arrive(parcel));
                }
                self.deliver(Party::Ingress, message);
            }
            Message::Updates(updates) => {
                for gateway in 0..self.gateways.len() {
                    if self.gateways[gateway].alive && self.gateways[gateway].reads_feed == updates.feed {
                        self.deliver(Party::Gateway(gateway), message.clone());
                    }
                }
            }
            Message::Answer(answer) => {
                let to = self.truth.requests[answer.request].sent.from;
                self.deliver(to, message);
            }
            Message::Barrier(_) => self.deliver(party, message),
        }
    }

    fn arrive(&mut self, Parcel { party, generation, message }: Parcel) {
        if !self.link(party).carries(generation) {
            return;
        }
        match (party, message) {
            (Party::Ingress, Message::Request(sent)) => self.take_in(&sent),
            (Party::Publisher(shard), Message::Barrier(barrier)) => self.barrier_passed(shard, barrier),
            (Party::Gateway(gateway), Message::Updates(updates)) => self.see_updates(gateway, &updates),
            (Party::Gateway(gateway), Message::Answer(answer)) => self.gateway_answered(gateway, &answer),
            (Party::Director(director), Message::Answer(answer)) => self.director_answered(director, &answer),
            (party, message) => unreachable!("{party:?} was sent {message:?}"),
        }
    }

    /// Sends a request if the connection is there; returns the number under which its answer comes.
    pub fn ask(&mut self, sent: Sent, answered: bool) -> Option<usize> {
        let from = sent.from;
        if !self.link(from).is_up() {
            return None;
        }
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
        let noticed = self.now + self.rng.within(0, for_ms.min(2_500));
        self.at(noticed, Event::Notice(party, generation));
        self.at(self.now + for_ms, Event::Reconnect(party, generation));
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
        let link = self.link(party);
        if link.alive || link.generation != generation {
            return;
        }
        link.alive = true;
        link.believed.connected = true;
        link.believed.generation = generation;
        self.log.note(self.clock(), "connection made", &[self.number_of(party) as u64], &[]);
        self.connection_changed(party);
    }

    fn connection_changed(&mut self, party: Party) {
        match party {
            Party::Publisher(shard) => self.publisher_connection_changed(shard),
            Party::Gateway(gateway) => self.gateway_connection_changed(gateway),
            Party::Ingress | Party::Director(_) => {}
        }
    }

    pub fn parties(&self) -> Vec<Party> {
        std::iter::once(Party::Ingress)
            .chain((0..self.plan.shards).map(Party::Publisher))
            .chain((0..self.gateways.len()).map(Party::Gateway))
            .chain((0..self.directors.len()).map(Party::Director))
            .collect()
    }

    /// No fault any more, and nothing that a fault left behind.
    fn begin_liveness(&mut self) {
        self.phase = Phase::Liveness;
        self.log.note(self.clock(), "faults stop", &[], &[]);
        for party in self.parties() {
            let generation = self.link(party).generation;
            self.reconnect(party, generation);
        }
        for gateway in 0..self.gateways.len() {
            self.gateway_starts(gateway);
        }
        self.end_stalls();
    }
}
