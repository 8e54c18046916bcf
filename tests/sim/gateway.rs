//! Gateways and their viewers.
//!
//! A gateway registers its viewers, heartbeats for them, registers again whom the service does not know and everybody
//! after a reconnect, and shows them the updates that it has not had yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use bytes::Bytes;
use orchestrator_service::{
    shard::publish_queue::PublishTo,
    wire::{
        proto::{self, Code, subscription_command::Command},
        subject,
    },
};
use prost::Message as _;

use crate::{
    checkers::Fact,
    net::{Answer, AnswerBody, Party, Sent, Update, Updates, What},
    plan::{Plan, Style},
    reading::stream_id,
    service::round,
    world::{Event, Phase, World},
};

/// Number of a subscriber in this world.
pub type SubId = usize;

/// After that an answer is waited for no longer, ms.
const PATIENCE_MS: u64 = 2_500;
/// Whom the service refused is registered again after that, ms.
const RETRY_MS: u64 = 1_000;
/// Most subscribers in one message: no more than a shard handles at once, so that `truth` knows one moment of each.
const MOST_IN_A_BATCH: usize = 400;
/// The same in worlds where that takes a shard several turns.
const MOST_IN_A_LARGE_BATCH: usize = 2_500;

#[derive(Debug)]
pub struct Viewer {
    pub sub: SubId,
    pub registered: bool,
    handle: Option<u64>,
    /// Not registered again before.
    not_before: u64,
}

pub struct Gateway {
    style: Style,
    pub alive: bool,
    pub reads_feed: bool,
    pub viewers: Vec<Viewer>,
    /// The newest update of each stream, and of which connection it is.
    pub views: Vec<Option<(u64, Rc<Update>)>>,
    /// Since when it has its connection.
    pub connected_since: u64,
    named: u64,
}

impl Gateway {
    pub fn new(number: usize, style: Style, plan: &Plan) -> Self {
        Self {
            style,
            alive: true,
            reads_feed: match plan.publish_to {
                PublishTo::Subjects => false,
                PublishTo::Feed => true,
                PublishTo::Both => number.is_multiple_of(2),
            },
            viewers: Vec::new(),
            views: (0..plan.streams).map(|_| None).collect(),
            connected_since: 0,
            named: 0,
        }
    }

    fn viewer(&mut self, sub: SubId) -> Option<&mut Viewer> {
        self.viewers.iter_mut().find(|viewer| viewer.sub == sub)
    }
}

impl World {
    // --- viewers -------------------------------------------------------------------------------------------------

    /// A viewer opens a page.
    pub fn viewer_comes(&mut self, gateway: usize) {
        if self.gateways[gateway].style != Style::Names {
            let sub = self.somebody_perhaps_elsewhere();
            return self.let_in(gateway, sub);
        }
        let stream = self.rng.below(self.plan.streams);
        self.gateways[gateway].named += 1;
        let number = self.gateways[gateway].named;
        // Somebody who was here before comes again, perhaps before anybody missed it.
        let old = self.gateways[gateway].named.min(1 + self.plan.viewers as u64 / 2);
        let number = if self.rng.chance(500) { self.rng.within(1, old) } else { number };
        let client: Rc<str> = format!("viewer {number} of {gateway}").into();
        let sub = self.truth.sub(stream, &client, 0).unwrap_or_else(|| self.truth.new_sub(stream, client, 0));
        self.let_in(gateway, sub);
    }

    /// A viewer of that stream opens a page.
    pub fn viewer_of(&mut self, gateway: usize, stream: usize) {
        let sub = if self.gateways[gateway].style == Style::Names {
            self.truth.new_sub(stream, format!("first viewer of {stream} at {gateway}").into(), 0)
        } else {
            self.another_session(stream, format!("client {stream}").into())
        };
        self.let_in(gateway, sub);
    }

    /// Another tab of somebody's, of whom there may be others at this gateway and elsewhere.
    pub fn somebody(&mut self) -> SubId {
        let (stream, number) = (self.rng.below(self.plan.streams), self.rng.below(self.plan.viewers) as u64);
        let uuid = format!("00000000-0000-4000-8000-{number:012x}");
        let client = if number.is_multiple_of(2) { uuid } else { format!("client {number}") };
        self.another_session(stream, client.into())
    }

    /// The same, or somebody who watches at some gateway already, session and all.
    pub fn somebody_perhaps_elsewhere(&mut self) -> SubId {
        if self.rng.chance(self.plan.shared) {
            let elsewhere: Vec<SubId> = self.watchers().filter(|sub| self.truth.subs[*sub].session != 0).collect();
            if !elsewhere.is_empty() {
                return self.rng.pick(&elsewhere);
            }
        }
        self.somebody()
    }

    /// A new session of a client.
    pub fn another_session(&mut self, stream: usize, client: Rc<str>) -> SubId {
        let session = self.truth.subs.len() as u64 + 1;
        self.truth.new_sub(stream, client, session)
    }

    fn let_in(&mut self, gateway: usize, sub: SubId) {
        if self.gateways[gateway].viewer(sub).is_some() {
            return;
        }
        let viewer = Viewer { sub, registered: false, handle: None, not_before: self.now + PATIENCE_MS };
        self.gateways[gateway].viewers.push(viewer);
        self.log.note(self.clock(), "viewer comes", &[gateway as u64, sub as u64], &[]);
        let unanswered = self.rng.chance(self.plan.unanswered);
        self.register(gateway, &[sub], !unanswered);
    }

    /// A viewer closes its page, and its gateway says so, or does not.
    pub fn viewer_goes(&mut self, gateway: usize, place: usize, quietly: bool) {
        let viewer = self.gateways[gateway].viewers.swap_remove(place);
        self.log.note(self.clock(), "viewer goes", &[gateway as u64, viewer.sub as u64, quietly.into()], &[]);
        if !quietly {
            self.unregister(gateway, &[(viewer.sub, viewer.handle)]);
        }
    }

    /// Several viewers close their pages at once, of whichever streams, and some of them come again over the same
    /// connection, before anybody has answered.
    pub fn several_go(&mut self, gateway: usize) {
        let most = self.most_in_a_batch(gateway).min(self.gateways[gateway].viewers.len());
        let many = if self.plan.is_crowd() { most } else { most.min(8) };
        let many = self.rng.within(1, many as u64) as usize;
        let from = self.rng.below(self.gateways[gateway].viewers.len() + 1 - many);
        let gone: Vec<(SubId, Option<u64>)> = (self.gateways[gateway].viewers.drain(from..from + many))
            .map(|viewer| (viewer.sub, viewer.handle))
            .collect();
        self.log.note(self.clock(), "viewers go", &[gateway as u64, gone.len() as u64], &[]);
        match self.gateways[gateway].style {
            Style::Handles => {
                let (handled, named): (Vec<_>, Vec<_>) = gone.iter().partition(|(_, handle)| handle.is_some());
                if !handled.is_empty() {
                    let handle = handled.iter().filter_map(|(_, handle)| *handle).collect();
                    let batch = proto::UnregisterBatch { handle, ..Default::default() };
                    let answered = !self.rng.chance(self.plan.unanswered);
                    self.subscribe(gateway, Command::UnregisterBatch(batch), What::Leave(handled), answered);
                }
                named.into_iter().for_each(|viewer| self.unregister(gateway, &[viewer]));
            }
            Style::Names => {
                let mut streams: BTreeMap<usize, Vec<SubId>> = BTreeMap::new();
                for (sub, _) in &gone {
                    streams.entry(self.truth.subs[*sub].stream).or_default().push(*sub);
                }
                for (stream, subs) in streams {
                    let client_id = subs.iter().map(|sub| self.truth.subs[*sub].client.to_string()).collect();
                    let batch = proto::UnregisterBatch { stream_id: stream_id(stream), client_id, handle: vec![] };
                    let what = What::Leave(subs.into_iter().map(|sub| (sub, None)).collect());
                    let answered = !self.rng.chance(self.plan.unanswered);
                    self.subscribe(gateway, Command::UnregisterBatch(batch), what, answered);
                }
            }
            Style::Singles => gone.iter().for_each(|viewer| self.unregister(gateway, &[*viewer])),
        }
        for (sub, _) in gone.into_iter().take(3) {
            if self.rng.chance(400) {
                self.let_in(gateway, sub);
            }
        }
    }

    /// Who watches under the same session at several gateways goes at all but one of them.
    pub fn sessions_end_elsewhere(&mut self) {
        let mut known: BTreeSet<SubId> = BTreeSet::new();
        for client in 0..self.clients.each.len() {
            let viewers: Vec<_> =
                self.clients.each[client].viewers.iter().map(|(number, one)| (*number, one.sub)).collect();
            for (viewer, sub) in viewers {
                if !known.insert(sub) {
                    self.real_viewer_goes(client, viewer);
                }
            }
        }
        for gateway in 0..self.gateways.len() {
            for place in (0..self.gateways[gateway].viewers.len()).rev() {
                if !known.insert(self.gateways[gateway].viewers[place].sub) {
                    self.viewer_goes(gateway, place, false);
                }
            }
        }
    }

    /// How many subscribers go into one message: no more than a shard handles at once, unless the world is for that, and
    /// no more than the broker takes, and a shard may owe, their answer included.
    fn most_in_a_batch(&mut self, gateway: usize) -> usize {
        /// What one takes at most in these worlds, and what the service keeps free for the rest of an answer.
        const BYTES: usize = 80;
        const REST: usize = 1_536;
        let most = if self.plan.large_batches { MOST_IN_A_LARGE_BATCH } else { MOST_IN_A_BATCH };
        let limit = self.link(Party::Gateway(gateway)).max_payload;
        // Large answers have three quarters of what a shard may owe: whose answer finds no room there is refused for ever.
        let answer = limit.min(self.plan.publish.max_answer_bytes / 4 * 3);
        most.min(limit / BYTES).min(answer.saturating_sub(REST) / 8).max(1)
    }

    /// A viewer reloads its page: a new session, while the old one goes late, or never.
    pub fn viewer_reloads(&mut self, gateway: usize, place: usize) {
        let sub = self.gateways[gateway].viewers[place].sub;
        let (stream, client) = (self.truth.subs[sub].stream, Rc::clone(&self.truth.subs[sub].client));
        if self.gateways[gateway].style == Style::Names {
            self.register(gateway, &[sub], true);
            return;
        }
        let sub = self.another_session(stream, client);
        self.let_in(gateway, sub);
        let quietly = self.rng.chance(300);
        self.viewer_goes(gateway, place, quietly);
    }

    /// A gateway dies with all its viewers.
    pub fn gateway_dies(&mut self, gateway: usize) {
        self.log.note(self.clock(), "gateway dies", &[gateway as u64], &[]);
        self.gateways[gateway].alive = false;
        self.gateways[gateway].viewers.clear();
        self.gateways[gateway].views.fill(None);
        let back = self.rng.within(100, 20_000);
        self.at(self.now + back, Event::Rebirth(gateway));
        self.break_link(Party::Gateway(gateway), back.min(3_000));
    }

    /// A gateway that died is started again.
    pub fn gateway_starts(&mut self, gateway: usize) {
        if !self.gateways[gateway].alive {
            self.gateways[gateway].alive = true;
            self.gateways[gateway].connected_since = self.now;
        }
    }

    // --- messages ------------------------------------------------------------------------------------------------

    fn subscribe(&mut self, gateway: usize, command: Command, what: What, answered: bool) {
        let (stream_id, handles) = match &command {
            Command::HeartbeatBatch(batch) => (&*batch.stream_id, &batch.handle[..]),
            Command::UnregisterBatch(batch) => (&*batch.stream_id, &batch.handle[..]),
            _ => ("", &[][..]),
        };
        let round = round(&self.service, stream_id, handles, &what);
        let payload = proto::SubscriptionCommand { command: Some(command) }.encode_to_vec().into();
        let (from, subject) = (Party::Gateway(gateway), subject::SUBSCRIPTION);
        self.ask(Sent { from, subject, payload, request: None, what, round }, answered);
    }

    /// Registers subscribers of one stream.
    fn register(&mut self, gateway: usize, subs: &[SubId], answered: bool) {
        let named = |sub: &SubId| (self.truth.subs[*sub].client.to_string(), self.truth.subs[*sub].session);
        let stream_id = stream_id(self.truth.subs[subs[0]].stream);
        let command = match subs {
            [sub] => {
                let (client_id, session) = named(sub);
                let source_addr = if session % 3 == 1 { "192.0.2.7:51000".to_owned() } else { String::new() };
                Command::Register(proto::Register { stream_id, client_id, source_addr, session, ..Default::default() })
            }
            _ => {
                let subscriber = |sub| {
                    let (client_id, session) = named(sub);
                    proto::Subscriber { client_id, source_addr: String::new(), session }
                };
                Command::RegisterBatch(proto::RegisterBatch {
                    stream_id,
                    subscriber: subs.iter().map(subscriber).collect(),
                })
            }
        };
        let now = self.now;
        for sub in subs {
            if let Some(viewer) = self.gateways[gateway].viewer(*sub) {
                viewer.not_before = now + PATIENCE_MS;
                // Nobody will say whether it worked: the next heartbeat does.
                viewer.registered = !answered;
            }
        }
        self.subscribe(gateway, command, What::Join(subs.to_vec()), answered);
    }

    fn unregister(&mut self, gateway: usize, subs: &[(SubId, Option<u64>)]) {
        let answered = !self.rng.chance(self.plan.unanswered);
        let sub = &self.truth.subs[subs[0].0];
        let (stream_id, client_id, session) = (stream_id(sub.stream), sub.client.to_string(), sub.session);
        let (command, what) = match (self.gateways[gateway].style, subs) {
            (Style::Handles, [(_, Some(handle))]) => {
                let batch = proto::UnregisterBatch { handle: vec![*handle], ..Default::default() };
                (Command::UnregisterBatch(batch), What::Leave(subs.to_vec()))
            }
            (Style::Names, [(sub, _)]) => {
                let batch = proto::UnregisterBatch { stream_id, client_id: vec![client_id], handle: Vec::new() };
                (Command::UnregisterBatch(batch), What::Leave(vec![(*sub, None)]))
            }
            _ => {
                let leave = Command::Unregister(proto::Unregister { stream_id, client_id, session });
                (leave, What::Leave(vec![(subs[0].0, None)]))
            }
        };
        self.subscribe(gateway, command, what, answered);
    }

    /// A gateway heartbeats for all its viewers, and comes again.
    pub fn beat(&mut self, gateway: usize) {
        if self.phase == Phase::Empty {
            return;
        }
        let mut next = self.plan.heartbeat_ms;
        if self.phase == Phase::Safety && self.rng.chance(self.plan.faults) {
            // Late, perhaps too late.
            next += self.rng.within(0, self.plan.stale_after_ms);
        }
        self.at(self.now + next, Event::Beat(gateway));
        if !self.gateways[gateway].alive {
            return;
        }
        let answered = !self.rng.chance(self.plan.unanswered / 4);
        let viewers: Vec<(SubId, Option<u64>)> = (self.gateways[gateway].viewers.iter())
            .filter(|viewer| viewer.registered)
            .map(|viewer| (viewer.sub, viewer.handle))
            .collect();
        let by_handle = |viewer: &(SubId, Option<u64>)| viewer.1.is_some();
        let most = self.most_in_a_batch(gateway);
        match self.gateways[gateway].style {
            Style::Handles => {
                let (handled, named): (Vec<_>, Vec<_>) = viewers.into_iter().partition(by_handle);
                for chunk in handled.chunks(most) {
                    let handle = chunk.iter().filter_map(|(_, handle)| *handle).collect();
                    let batch = proto::HeartbeatBatch { handle, ..Default::default() };
                    self.subscribe(gateway, Command::HeartbeatBatch(batch), What::Beat(chunk.to_vec()), answered);
                }
                self.beat_one_by_one(gateway, &named);
            }
            Style::Names => {
                let mut streams: BTreeMap<usize, Vec<SubId>> = BTreeMap::new();
                for (sub, _) in viewers {
                    streams.entry(self.truth.subs[sub].stream).or_default().push(sub);
                }
                for (stream, subs) in streams {
                    for chunk in subs.chunks(most) {
                        let client_id = chunk.iter().map(|sub| self.truth.subs[*sub].client.to_string()).collect();
                        let batch = proto::HeartbeatBatch { stream_id: stream_id(stream), client_id, handle: vec![] };
                        let what = What::Beat(chunk.iter().map(|sub| (*sub, None)).collect());
                        self.subscribe(gateway, Command::HeartbeatBatch(batch), what, answered);
                    }
                }
            }
            Style::Singles => self.beat_one_by_one(gateway, &viewers),
        }
    }

    fn beat_one_by_one(&mut self, gateway: usize, viewers: &[(SubId, Option<u64>)]) {
        for (sub, _) in viewers {
            let known = &self.truth.subs[*sub];
            let (stream_id, client_id) = (stream_id(known.stream), known.client.to_string());
            let beat = proto::Heartbeat { stream_id, client_id, session: known.session };
            self.subscribe(gateway, Command::Heartbeat(beat), What::Beat(vec![(*sub, None)]), true);
        }
    }

    /// A gateway registers whoever is not registered.
    pub fn tend(&mut self, gateway: usize) {
        if self.phase == Phase::Empty {
            return;
        }
        let later = self.rng.within(0, 300);
        self.at(self.now + RETRY_MS + later, Event::Tend(gateway));
        let (now, most) = (self.now, self.most_in_a_batch(gateway));
        let mut streams: BTreeMap<usize, Vec<SubId>> = BTreeMap::new();
        for viewer in &self.gateways[gateway].viewers {
            if !viewer.registered && viewer.not_before <= now {
                streams.entry(self.truth.subs[viewer.sub].stream).or_default().push(viewer.sub);
            }
        }
        for (stream, subs) in streams {
            for chunk in subs.chunks(most) {
                self.register(gateway, chunk, true);
            }
            if self.phase == Phase::Liveness {
                self.start_for_good(stream);
            }
        }
    }

    /// After a reconnect a gateway registers everybody anew: what was said meanwhile is lost.
    pub fn gateway_connection_changed(&mut self, gateway: usize) {
        if !self.link(Party::Gateway(gateway)).is_up() {
            return;
        }
        self.gateways[gateway].connected_since = self.now;
        let now = self.now;
        for viewer in &mut self.gateways[gateway].viewers {
            (viewer.registered, viewer.not_before) = (false, now);
        }
        if self.rng.chance(500) {
            self.at(now, Event::Tend(gateway));
        }
    }

    // --- answers and updates -------------------------------------------------------------------------------------

    pub fn gateway_answered(&mut self, gateway: usize, answer: &Answer) {
        if !self.gateways[gateway].alive {
            return;
        }
        let sent = Rc::clone(&self.truth.requests[answer.request].sent);
        let AnswerBody::Reply(reply) = &answer.body else { return };
        self.log.note(self.clock(), "answered", &[gateway as u64, answer.request as u64, reply.code as u64], &[]);
        let now = self.now;
        match &sent.what {
            What::Join(subs) => {
                let single = [reply.handle];
                let handles = if reply.handles.is_empty() { &single[..] } else { &reply.handles };
                for (place, sub) in subs.iter().enumerate() {
                    let handle = handles.get(place).copied().filter(|handle| *handle != 0);
                    if let Some(viewer) = self.gateways[gateway].viewer(*sub) {
                        viewer.registered = handle.is_some();
                        viewer.handle = handle;
                        viewer.not_before = now + RETRY_MS;
                    }
                }
            }
            What::Beat(subs) => {
                // Who was not heard for want of room is as good as unknown.
                let unheard = reply.code() == Code::Unavailable;
                for (sub, handle) in subs {
                    let unknown = match handle {
                        _ if unheard => true,
                        Some(handle) => reply.unknown_handle.contains(handle),
                        None if reply.unknown_client_id.is_empty() => {
                            matches!(reply.code(), Code::UnknownSubscriber | Code::StreamNotFound)
                        }
                        None => reply.unknown_client_id.iter().any(|id| **id == *self.truth.subs[*sub].client),
                    };
                    if let Some(viewer) = self.gateways[gateway].viewer(*sub)
                        && unknown
                        && (handle.is_none() || viewer.handle == *handle)
                    {
                        (viewer.registered, viewer.handle, viewer.not_before) = (false, None, now);
                    }
                }
            }
            _ => {}
        }
    }

    /// Updates reach a gateway: it drops those of a lower epoch and those that it has had.
    pub fn see_updates(&mut self, gateway: usize, updates: &Updates) {
        for update in &updates.updates {
            let generation = self.course(Party::Gateway(gateway), 0);
            let before = self.gateways[gateway].views[update.stream].take();
            let is_new = before
                .as_ref()
                .is_none_or(|(_, before)| (before.epoch, before.sequence) < (update.epoch, update.sequence));
            let numbers = [gateway as u64, update.stream as u64, update.epoch, update.sequence, is_new.into()];
            self.log.note(self.clock(), "seen", &numbers, &[]);
            if is_new {
                let covered = before.as_ref().is_some_and(|(seen_on, _)| *seen_on == generation);
                let before = before.as_ref().map(|(_, before)| &**before);
                self.fact(&Fact::Seen { before, covered, update });
                self.gateways[gateway].views[update.stream] = Some((generation, Rc::clone(update)));
            } else {
                self.gateways[gateway].views[update.stream] = before;
            }
        }
    }

    /// Everybody leaves, some without a word.
    pub fn everybody_leaves(&mut self) {
        self.log.note(self.clock(), "everybody leaves", &[], &[]);
        for gateway in 0..self.gateways.len() {
            while !self.gateways[gateway].viewers.is_empty() {
                let quietly = self.rng.chance(300);
                self.viewer_goes(gateway, 0, quietly);
            }
        }
        self.clients_close();
        self.phase = Phase::Empty;
    }
}

/// The bytes of a message.
pub fn encoded(message: &impl prost::Message) -> Bytes {
    message.encode_to_vec().into()
}
