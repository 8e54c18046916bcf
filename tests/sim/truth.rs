//! What is true in this world, as far as an observer of all messages and all turns can know.
//!
//! Who watches is known between two bounds: who may, because a register was handled and nothing since has ended it, and
//! who surely does, because that register was answered OK. What the service says must lie between them.

use std::{collections::BTreeMap, rc::Rc};

use orchestrator_service::{
    client::Playout,
    wire::proto::{self, Cause, Code, HistoryAction, Mode},
};

use crate::{
    gateway::SubId,
    net::{Answer, AnswerBody, Party, Sent, Update, What},
    plan::Plan,
    reading,
    service::Service,
};

/// From the wire: a silent subscriber is removed so soon after its stale timeout, ms.
const REMOVED_WITHIN_MS: u64 = 1_000;
/// A turn so late is not the silent ones' fault, ms.
const CLOCK_STALLED_MS: u64 = 250;

/// A request whose answer is waited for.
#[derive(Debug)]
pub struct Request {
    pub sent: Rc<Sent>,
    /// How often it reached the service,
    pub delivered: u32,
    /// … was refused at the door,
    pub refused: u32,
    /// … and was answered by a shard.
    pub answered: u32,
    handled: Vec<Handled>,
}

impl Request {
    pub fn refused_at_the_door(&mut self, answer: &Answer) {
        self.refused += 1;
        assert_ne!(answer.body.code(), Code::Ok, "refused, with {:?}", answer.body);
    }
}

/// When a shard handled something: in order, and at what time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handled {
    pub serial: u64,
    pub tick: u64,
}

/// A subscriber: a stream, a client and a session, of which no two share all three.
#[derive(Debug)]
pub struct Sub {
    pub stream: usize,
    pub client: Rc<str>,
    pub session: u64,
    may: Option<May>,
    /// Until when it may last have been there, if it may not be any more.
    may_until: Option<(u64, u64)>,
    sure: Option<Sure>,
    left: u64,
    /// Of the latest register that was handled.
    joined: u64,
    /// Which of the messages that reached the service about it was handled last.
    arrival: u64,
    /// Who said last that it leaves, by its name, and when that was handled: whoever else holds it does not know. Nobody,
    /// where what somebody had said before came once more.
    named_away: Option<(Option<Party>, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct May {
    since: u64,
    joined: u64,
    heard: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sure {
    epoch: u64,
    since: u64,
    /// Of the latest register of which this is known.
    joined: u64,
    heard: u64,
    /// Not stale before, because the shard had stood still while it was there.
    extended_until: u64,
}

impl Sure {
    fn stale_at(&self, stale_after_ms: u64) -> u64 {
        (self.heard + stale_after_ms).max(self.extended_until)
    }
}

#[derive(Debug, Default)]
pub struct StreamTruth {
    pub shard: usize,
    /// The newest update that was said.
    pub said: Option<Rc<Update>>,
    /// When an update with a new revision was last handed over, first or again: for its subject, and for a feed.
    pub revision_said_at: [u64; 2],
    /// The time of its newest scene.
    pub scene_at: u64,
    /// When somebody was last known to watch it.
    pub surely_until: u64,
    pub subs: Vec<SubId>,
    /// Its scenes, as somebody asked for them last.
    pub scenes: Option<Scenes>,
    /// Somebody planned it to begin by itself and to have no end.
    pub may_be_endless: bool,
    /// Of which epoch and configuration somebody asked for them.
    asked_for_scenes: Option<(u64, u64)>,
}

/// What is known of a stream's scenes.
#[derive(Debug)]
pub struct Scenes {
    /// The answer's state.
    state: proto::StateUpdate,
    /// A reader that has heard of nothing yet but this.
    reader: Playout,
    pub no_ticks: bool,
    /// The id and the name of each.
    names: Vec<(String, String)>,
}

impl Scenes {
    /// The id and the name of a scene; nothing where there is none.
    pub fn names(&self, scene: Option<u32>) -> (String, String) {
        scene.and_then(|scene| self.names.get(scene as usize)).cloned().unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct ShardTruth {
    /// Turns that came later than they were due, and by how much.
    late: BTreeMap<u64, u64>,
    extended_until: u64,
    panicked: Option<Handled>,
    /// It keeps back changes that the broker refuses: answers are handed over before them.
    is_holding: bool,
    /// It has something to hand over.
    is_behind: bool,
    /// When it could not do its work, or its publisher could not.
    hindered: Vec<(u64, u64)>,
}

/// A handle that was given out.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    pub sub: SubId,
    /// Of the register that it answers.
    pub serial: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Truth {
    pub requests: Vec<Request>,
    pub streams: Vec<StreamTruth>,
    pub subs: Vec<Sub>,
    /// When somebody asked for a filter of a stream, in order.
    follows: BTreeMap<(usize, usize), Vec<u64>>,
    by_name: BTreeMap<(usize, Rc<str>, u64), SubId>,
    /// The handles that were given out.
    pub handles: BTreeMap<u64, Given>,
    pub stale_after_ms: u64,
    pub skew_ms: u64,
    pub grace_ms: u64,
    /// Whether scenes may hold, and shows start at an instant.
    pub has_holds: bool,
    /// How many request ids were given out.
    pub request_ids: usize,
    /// What was commanded of which stream, by the number in the name of who did it.
    pub commands: Vec<(usize, HistoryAction)>,
    /// How many answers a stream remembers.
    pub remembered_of_stream: usize,
    /// For how long a stream that plays may be untold of, where that is known, ms.
    pub longest_gap_ms: Option<u64>,
    shards: Vec<ShardTruth>,
    serial: u64,
}

impl Truth {
    pub fn new(plan: &Plan, service: &Service) -> Self {
        let streams = (0..plan.streams)
            .map(|stream| StreamTruth { shard: service.shard_of(&reading::stream_id(stream)), ..Default::default() });
        Self {
            requests: Vec::new(),
            streams: streams.collect(),
            subs: Vec::new(),
            follows: BTreeMap::new(),
            by_name: BTreeMap::new(),
            handles: BTreeMap::new(),
            stale_after_ms: plan.stale_after_ms,
            skew_ms: plan.skew_ms,
            grace_ms: plan.grace_ms,
            has_holds: plan.has_holds,
            request_ids: 0,
            commands: Vec::new(),
            remembered_of_stream: plan.remembered_of_stream,
            longest_gap_ms: plan.longest_gap_ms(),
            shards: (0..plan.shards).map(|_| ShardTruth::default()).collect(),
            serial: 0,
        }
    }

    /// The subscriber of that name.
    pub fn sub(&self, stream: usize, client: &str, session: u64) -> Option<SubId> {
        self.by_name.get(&(stream, client.into(), session)).copied()
    }

    pub fn new_sub(&mut self, stream: usize, client: Rc<str>, session: u64) -> SubId {
        let sub = self.subs.len();
        self.by_name.insert((stream, Rc::clone(&client), session), sub);
        self.subs.push(Sub {
            stream,
            client,
            session,
            may: None,
            may_until: None,
            sure: None,
            left: 0,
            joined: 0,
            arrival: 0,
            named_away: None,
        });
        self.streams[stream].subs.push(sub);
        sub
    }

    pub fn note_request(&mut self, sent: Rc<Sent>) {
        let handled = Vec::new();
        self.requests.push(Request { sent, delivered: 0, refused: 0, answered: 0, handled });
    }

    /// Whether the first `asked` requests are answered, as often as they reached the service.
    pub fn has_answered(&self, asked: usize) -> bool {
        self.requests[..asked].iter().all(|request| request.answered + request.refused >= request.delivered)
    }

    // --- turns ---------------------------------------------------------------------------------------------------

    /// A turn comes so late, at the least and at the most, and so long after something fell due.
    pub fn note_turn(&mut self, shard: usize, now: u64, late_ms: (u64, u64), overdue_ms: u64) {
        let (least_ms, most_ms) = late_ms;
        let own = &mut self.shards[shard];
        if overdue_ms > 0 {
            let late = own.late.entry(now).or_default();
            *late = overdue_ms.max(*late);
        }
        if most_ms >= CLOCK_STALLED_MS {
            own.extended_until = own.extended_until.max(now + most_ms.min(self.stale_after_ms));
        }
        if least_ms >= CLOCK_STALLED_MS {
            let (due, until) = (now - least_ms, now + least_ms.min(self.stale_after_ms));
            for sub in &mut self.subs {
                let on_this_shard = self.streams[sub.stream].shard == shard;
                if let Some(sure) = sub.sure.as_mut().filter(|_| on_this_shard)
                    && due < sure.stale_at(self.stale_after_ms)
                {
                    sure.extended_until = sure.extended_until.max(until);
                }
            }
        }
    }

    /// How late the turn was in which a shard did what it dates at that time: which may lie before that turn, but not
    /// before the time at which it was due.
    pub fn lateness(&self, shard: usize, tick: u64) -> u64 {
        let turn = self.shards[shard].late.range(tick..).next();
        turn.filter(|(at, late)| *at - *late <= tick).map_or(0, |(_, late)| *late)
    }

    pub fn panicked(&mut self, shard: usize, now: u64) {
        self.serial += 1;
        self.shards[shard].panicked = Some(Handled { serial: self.serial, tick: now });
        for sub in 0..self.subs.len() {
            if self.shard_of(sub) == shard {
                self.subs[sub].sure = None;
                self.subs[sub].end_may(now);
            }
        }
    }

    /// A shard, or its publisher, cannot do its work from then to then.
    pub fn hindered(&mut self, shard: usize, from: u64, to: u64) {
        self.shards[shard].hindered.push((from, to));
    }

    pub fn holds(&mut self, shard: usize, is_holding: bool, is_behind: bool) {
        (self.shards[shard].is_holding, self.shards[shard].is_behind) = (is_holding, is_behind);
    }

    /// Whether all that happened to a stream was handed over before what a shard has just answered.
    pub fn is_up_to_date(&self, stream: usize, by: usize) -> bool {
        let shard = self.streams[stream].shard;
        let own = &self.shards[shard];
        !own.is_holding && (shard == by || !own.is_behind)
    }

    /// A shard stops working, because too much is owed.
    pub fn blocked(&mut self, shard: usize, now: u64) {
        self.hindered(shard, now, u64::MAX);
    }

    /// It goes on.
    pub fn unblocked(&mut self, shard: usize, now: u64) {
        let open = self.shards[shard].hindered.iter_mut().rfind(|(_, ended)| *ended == u64::MAX);
        if let Some((_, ended)) = open {
            *ended = now;
        }
    }

    pub fn was_hindered(&self, shard: usize, from: u64, to: u64) -> bool {
        self.shards[shard].hindered.iter().any(|(begun, ended)| *begun <= to && from <= *ended)
    }

    /// When a shard last lost everything.
    pub fn panicked_at(&self, shard: usize) -> Option<u64> {
        self.shards[shard].panicked.map(|panicked| panicked.tick)
    }

    fn shard_of(&self, sub: SubId) -> usize {
        self.streams[self.subs[sub].stream].shard
    }

    fn of_shard(&self, shard: usize, subs: &[(SubId, Option<u64>)]) -> Vec<(SubId, Option<u64>)> {
        subs.iter().copied().filter(|(sub, _)| self.shard_of(*sub) == shard).collect()
    }

    /// A shard handled a request, or its part of one: the `arrival`-th message that reached the service, between `begun` and
    /// `now`.
    pub fn handled(&mut self, shard: usize, begun: u64, now: u64, sent: &Sent, arrival: u64) -> Handled {
        self.serial += 1;
        if let Some(request) = sent.request.filter(|_| sent.round.is_empty()) {
            self.requests[request].handled.push(Handled { serial: self.serial, tick: now });
        }
        match &sent.what {
            What::Join(subs) => {
                for sub in subs {
                    self.in_order(*sub, arrival);
                    self.handled_join(shard, *sub, begun, now);
                }
            }
            What::Beat(subs) => {
                for (sub, handle) in &self.of_shard(shard, subs) {
                    self.in_order(*sub, arrival);
                    if !self.is_void(*handle) {
                        self.handled_beat(shard, *sub, begun, now);
                    }
                }
            }
            What::Leave(subs) => {
                for (sub, handle) in &self.of_shard(shard, subs) {
                    self.in_order(*sub, arrival);
                    // By a handle that is void, nobody leaves.
                    if !self.is_void(*handle) {
                        self.handled_leave(*sub, begun, now);
                        let is_first = sent.request.is_none_or(|request| self.requests[request].delivered == 1);
                        let by = is_first.then_some(sent.from);
                        self.subs[*sub].named_away = handle.is_none().then_some((by, now));
                    }
                }
            }
            What::Follow { stream, filter } => self.follows.entry((*stream, *filter)).or_default().push(now),
            What::Command { .. }
            | What::State { .. }
            | What::Stats { .. }
            | What::List
            | What::History { .. }
            | What::Subscribers { .. }
            | What::Config { .. } => {}
        }
        Handled { serial: self.serial, tick: now }
    }

    /// What reached the service first about a subscriber is handled first.
    fn in_order(&mut self, sub: SubId, arrival: u64) {
        let before = std::mem::replace(&mut self.subs[sub].arrival, arrival);
        assert!(before <= arrival, "order: of {}: message {before} was handled before {arrival}", self.subs[sub]);
    }

    /// Whether it was registered again since that handle was given out.
    fn is_void(&self, handle: Option<u64>) -> bool {
        let given = handle.and_then(|handle| self.handles.get(&handle));
        given.is_some_and(|given| given.serial < self.subs[given.sub].joined)
    }

    /// Whether somebody of whom that is known may be in the tables of a shard.
    fn may_be_present(&self, shard: usize, may: May, now: u64) -> bool {
        // In a turn that is late, mail comes before what has fallen due.
        let due = now - self.lateness(shard, now);
        due <= (may.heard + self.stale_after_ms).max(self.shards[shard].extended_until) + REMOVED_WITHIN_MS
    }

    fn handled_join(&mut self, shard: usize, sub: SubId, begun: u64, now: u64) {
        let may = self.subs[sub].may.filter(|may| self.may_be_present(shard, *may, begun));
        let sub = &mut self.subs[sub];
        sub.may = Some(May { since: may.map_or(begun, |may| may.since), joined: now, heard: now });
        sub.joined = self.serial;
        sub.keep_sure(begun, now, self.stale_after_ms);
    }

    fn handled_beat(&mut self, shard: usize, sub: SubId, begun: u64, now: u64) {
        let present = self.subs[sub].may.is_some_and(|may| self.may_be_present(shard, may, begun));
        let sub = &mut self.subs[sub];
        if let Some(may) = sub.may.as_mut().filter(|_| present) {
            may.heard = now;
        }
        sub.keep_sure(begun, now, self.stale_after_ms);
    }

    /// Whether a shard may know a subscriber.
    pub fn may_know(&self, sub: SubId) -> bool {
        self.subs[sub].may.is_some()
    }

    /// When it was last said by its name that it leaves, if that was not that holder's will.
    pub fn named_away_against(&self, sub: SubId, holder: Party) -> Option<u64> {
        self.subs[sub].named_away.filter(|(by, _)| *by != Some(holder)).map(|(_, at)| at)
    }

    /// Somebody leaves by name who was given a handle: that must not end a newer registration of another.
    pub fn leaves_by_name(&self, sub: SubId, given: Option<u64>) {
        let newest = self.subs[sub].joined;
        assert!(
            given.is_none_or(|given| given >= newest),
            "leave: by name, behind a newer register: {}",
            self.subs[sub]
        );
    }

    fn handled_leave(&mut self, sub: SubId, begun: u64, now: u64) {
        let sub = &mut self.subs[sub];
        sub.end_may(now);
        if sub.sure.take().is_some_and(|sure| begun < sure.stale_at(self.stale_after_ms)) {
            self.streams[sub.stream].surely_until = begun;
        }
        sub.left = self.serial;
    }

    /// A shard has begun with a request that takes it several turns: some who leave may have left, and some who are heard
    /// of or come may be there.
    pub fn begun(&mut self, shard: usize, now: u64, sent: &Sent) {
        if let What::Leave(subs) = &sent.what {
            for (sub, _) in &self.of_shard(shard, subs) {
                let sub = &mut self.subs[*sub];
                if sub.sure.take().is_some_and(|sure| now < sure.stale_at(self.stale_after_ms)) {
                    self.streams[sub.stream].surely_until = now;
                }
            }
        }
        if let What::Beat(subs) = &sent.what {
            for (sub, _) in &self.of_shard(shard, subs) {
                let present = self.subs[*sub].may.is_some_and(|may| self.may_be_present(shard, may, now));
                if let Some(may) = self.subs[*sub].may.as_mut().filter(|_| present) {
                    may.heard = now;
                }
            }
        }
        if let What::Join(subs) = &sent.what {
            for sub in subs {
                let may = self.subs[*sub].may.filter(|may| self.may_be_present(shard, *may, now));
                // Also who was stale until now: it comes back.
                self.subs[*sub].may = Some(May { since: may.map_or(now, |may| may.since), joined: now, heard: now });
            }
        }
    }

    /// A shard panicked at a request, or at its part of one: whoever asked is told so.
    pub fn lost(&mut self, now: u64, sent: &Sent) {
        self.serial += 1;
        if let Some(request) = sent.request.filter(|_| sent.round.is_empty()) {
            self.requests[request].handled.push(Handled { serial: self.serial, tick: now });
        }
    }

    // --- what the service says -----------------------------------------------------------------------------------

    /// The service says an update; true if it does for the first time.
    pub fn said(&mut self, shard: usize, update: &Update) -> bool {
        let stream = &self.streams[update.stream];
        assert_eq!(stream.shard, shard, "an update of {} by a shard that does not own it", update.stream_id);
        stream.said.as_ref().is_none_or(|said| (said.epoch, said.sequence) < (update.epoch, update.sequence))
    }

    /// Takes notice of an update that was said.
    pub fn remember(&mut self, now: u64, update: &Rc<Update>, in_feed: bool) {
        let tick = self.tick_of(update);
        let stream = &mut self.streams[update.stream];
        let newest = stream.said.as_ref().map_or((0, 0), |said| (said.epoch, said.revision));
        // One that was refused may come again behind newer ones.
        if crate::checkers::grows_revision(update.cause()) && (update.epoch, update.revision) >= newest {
            stream.revision_said_at[usize::from(in_feed)] = now;
        }
        if update.cause() == Cause::Scene {
            stream.scene_at = stream.scene_at.max(tick);
        }
        if stream.said.as_ref().is_none_or(|said| (said.epoch, said.sequence) < (update.epoch, update.sequence)) {
            stream.said = Some(Rc::clone(update));
        }
        if update.mode() == Mode::Unknown {
            for sub in self.streams[update.stream].subs.clone() {
                let sub = &mut self.subs[sub];
                if sub.sure.is_some_and(|sure| sure.epoch <= update.epoch) {
                    sub.sure = None;
                }
                if sub.may.is_some_and(|may| may.joined < tick) {
                    sub.end_may(now);
                }
            }
        }
    }

    /// A shard's answer; returns when it handled what it answers.
    pub fn answered(&mut self, answer: &Answer) -> Option<Handled> {
        let request = &mut self.requests[answer.request];
        let handled = request.handled.get(request.answered as usize).copied();
        request.answered += 1;
        let sent = Rc::clone(&request.sent);
        if let (What::Join(subs), AnswerBody::Reply(reply)) = (&sent.what, &answer.body) {
            let single = [reply.handle];
            let handles = if reply.handles.is_empty() { &single[..] } else { &reply.handles };
            for (handle, sub) in handles.iter().zip(subs).filter(|(handle, _)| **handle != 0) {
                let serial = handled.map_or(0, |handled| handled.serial);
                let before = self.handles.insert(*handle, Given { sub: *sub, serial });
                assert!(before.is_none_or(|before| before.sub == *sub), "identity: handle {handle} was {before:?}");
            }
        }
        if let (What::Join(subs), AnswerBody::Reply(reply), Some(handled)) = (&sent.what, &answer.body, handled) {
            let Some(state) = &reply.state else { return Some(handled) };
            let single = [reply.handle];
            let handles = if reply.handles.is_empty() { &single[..] } else { &reply.handles };
            assert_eq!(handles.len(), subs.len(), "a handle for each subscriber");
            for (sub, handle) in subs.iter().zip(handles) {
                if *handle != 0 {
                    self.surely_joined(*sub, state.epoch, handled);
                }
            }
        }
        handled
    }

    fn surely_joined(&mut self, sub: SubId, epoch: u64, handled: Handled) {
        let shard = self.shard_of(sub);
        let said = &self.streams[self.subs[sub].stream].said;
        let removed =
            said.as_ref().is_some_and(|said| said.epoch > epoch || said.epoch == epoch && said.mode() == Mode::Unknown);
        let panicked = self.shards[shard].panicked.is_some_and(|panicked| panicked.serial > handled.serial);
        let stale_after_ms = self.stale_after_ms;
        let known = &mut self.subs[sub];
        if removed || panicked || known.left > handled.serial {
            return;
        }
        let (tick, serial) = (handled.tick, handled.serial);
        // Unless it was stale in between: then it did not watch all the time.
        let before = known.sure.filter(|sure| sure.epoch == epoch && tick < sure.stale_at(stale_after_ms));
        known.sure = Some(match before {
            Some(sure) => Sure { joined: sure.joined.max(serial), heard: sure.heard.max(tick), ..sure },
            None => Sure { epoch, since: tick, joined: serial, heard: tick, extended_until: 0 },
        });
    }

    // --- bounds --------------------------------------------------------------------------------------------------

    /// The engine's time of an update.
    pub fn tick_of(&self, update: &proto::StateUpdate) -> u64 {
        update.server_time_ms - self.skew_ms
    }

    // --- scenes --------------------------------------------------------------------------------------------------

    /// Whether the scenes that a stream has in this state are known, or were asked for.
    pub fn note_asked_for_scenes(&mut self, update: &Update) -> bool {
        let course = Some((update.epoch, update.config_revision));
        std::mem::replace(&mut self.streams[update.stream].asked_for_scenes, course) == course
    }

    /// Somebody was told a stream's scenes.
    pub fn learn_scenes(&mut self, answer: &Answer) {
        let (What::Config { stream }, AnswerBody::Query(reply)) =
            (&self.requests[answer.request].sent.what, &answer.body)
        else {
            return;
        };
        if let (Some(config), Some(state)) = (&reply.config, reply.state.first()) {
            // Whatever it is asked to compute from is as new as what it was made with.
            let first = proto::StateUpdate { sequence: 0, ..state.clone() };
            let reader = Playout::new(config, &reply.scene_duration_ms, &first).expect("scenes that a service has");
            let (state, no_ticks) = (state.clone(), config.no_ticks);
            let names = config.scenes.iter().map(|scene| (scene.scene_id.clone(), scene.name.clone())).collect();
            self.streams[*stream].scenes = Some(Scenes { state, reader, no_ticks, names });
        }
    }

    /// The scenes that a stream has in this state, if they are known.
    pub fn scenes_of(&self, state: &proto::StateUpdate) -> Option<&Scenes> {
        let scenes = self.streams[reading::stream_number(&state.stream_id)].scenes.as_ref();
        let course = |state: &proto::StateUpdate| (state.epoch, state.config_revision);
        scenes.filter(|scenes| course(&scenes.state) == course(state))
    }

    /// A reader that computes from this state, if its scenes are known.
    pub fn reader_from(&self, state: &proto::StateUpdate) -> Option<Playout> {
        let mut reader = self.scenes_of(state)?.reader.clone();
        assert!(reader.apply(state), "as new as what it was made with: {state:?}, {reader:?}");
        // Of a pass that is over, adjusted lengths are not known any more.
        (!reader.needs_config()).then_some(reader)
    }

    /// Whether somebody may have watched a stream at some time from then to then.
    pub fn may_be_watched(&self, stream: usize, from: u64, to: u64) -> bool {
        let extended_until = self.shards[self.streams[stream].shard].extended_until;
        // Who came last is there most likely.
        self.streams[stream]
            .subs
            .iter()
            .rev()
            .any(|sub| self.subs[*sub].may_be_there(from, to, self.stale_after_ms, extended_until))
    }

    /// Whether a filter of a stream was followed all the time from then to then, if the stream was there.
    pub fn is_followed(&self, stream: usize, filter: usize, from: u64, to: u64) -> bool {
        let Some(asked) = self.follows.get(&(stream, filter)) else { return false };
        let mut until = 0;
        for at in asked.iter().take_while(|at| **at <= to) {
            if until <= *at && *at > from {
                return false;
            }
            until = at + self.stale_after_ms;
        }
        to < until
    }

    /// Who is surely there by that handle, as far as all that was handed over says.
    pub fn surely_named(&self, handle: u64, by: usize) -> Option<&Sub> {
        let given = self.handles.get(&handle)?;
        let sub = &self.subs[given.sub];
        let is_latest = self.is_up_to_date(sub.stream, by)
            && given.serial == sub.joined
            && sub.sure.is_some_and(|sure| sure.joined == given.serial);
        is_latest.then_some(sub)
    }

    /// Whether somebody surely watched it, the same one all the time from then to then.
    pub fn surely_watched(&self, stream: usize, from: u64, to: u64) -> bool {
        self.streams[stream].subs.iter().rev().any(|sub| {
            let sure = self.subs[*sub].sure;
            sure.is_some_and(|sure| sure.since < from && to < sure.stale_at(self.stale_after_ms))
        })
    }

    /// Who may be in the tables of a shard.
    pub fn maybe_there(&self, shard: usize, now: u64) -> impl Iterator<Item = (SubId, &Sub)> {
        let last = move |may: May| (may.heard + self.stale_after_ms).max(self.shards[shard].extended_until);
        self.subs_of(shard).filter(move |(_, sub)| sub.may.is_some_and(|may| now <= last(may) + REMOVED_WITHIN_MS))
    }

    fn subs_of(&self, shard: usize) -> impl Iterator<Item = (SubId, &Sub)> {
        let own = self.streams.iter().filter(move |stream| stream.shard == shard);
        own.flat_map(|stream| &stream.subs).map(|sub| (*sub, &self.subs[*sub]))
    }

    /// Who is surely active in a shard.
    pub fn surely_active(&self, shard: usize, now: u64) -> impl Iterator<Item = (SubId, &Sub)> {
        let own = self.streams.iter().filter(move |stream| stream.shard == shard);
        own.flat_map(|stream| &stream.subs)
            .map(|sub| (*sub, &self.subs[*sub]))
            .filter(move |(_, sub)| sub.sure.is_some_and(|sure| now < sure.stale_at(self.stale_after_ms)))
    }
}

impl std::fmt::Display for Sub {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { stream, client, session, may, sure, .. } = self;
        write!(formatter, "{client} {session} on stream {stream}: {may:?}, {sure:?}")
    }
}

impl Sub {
    fn end_may(&mut self, now: u64) {
        if let Some(may) = self.may.take() {
            self.may_until = Some((may.since, now));
        }
    }

    /// It was heard of, not before `begun` and not after `now`.
    fn keep_sure(&mut self, begun: u64, now: u64, stale_after_ms: u64) {
        let Some(sure) = &mut self.sure else { return };
        if now >= sure.stale_at(stale_after_ms) {
            // It may have been removed before it was heard of.
            self.sure = None;
        } else {
            sure.heard = begun;
        }
    }

    fn may_be_there(&self, from: u64, to: u64, stale_after_ms: u64, extended_until: u64) -> bool {
        self.may.is_some_and(|may| may.since <= to && from <= (may.heard + stale_after_ms).max(extended_until))
            || self.may_until.is_some_and(|(since, until)| since <= to && from <= until)
    }
}
