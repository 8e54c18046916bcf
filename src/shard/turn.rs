//! One turn of a shard: read the time once, handle a batch of mail, do what is due, owe what came of it.
//!
//! [`Shard`] is a plain struct and [`Shard::turn`] a plain function of the time and the mailbox: it waits for nothing
//! and knows no thread, so a simulator takes turns with the same code.

use std::sync::Arc;

use async_nats::Subject;
use bytes::Bytes;
use metrics::counter;
use tracing::{debug, info, trace};

use super::{
    Totals, add,
    ingress::{FULL, note_refusal},
    mailbox::{Body, Mail, Round},
    owed::Owed,
    router::Router,
};
use crate::{
    engine::{
        Accepted, Batch, Counts, Engine, Event, Handle, Input, Invalid, Limits, Outbox, Rejection, Settings, Tick,
    },
    wire::{
        Refusal, WireLimits,
        decode::{self, Cursor, Question},
        encode,
        proto::{self, subscription_command::Command as Subscription},
        subject,
    },
};

/// The most messages in one turn: with 1 µs each, a turn stays well below the 2 ms that a beat may be late.
pub const MAX_BATCH: usize = 256;
/// The most subscribers named in the messages of one turn, one message aside: a batch may name thousands.
const MAX_BATCH_WEIGHT: usize = 1_024;
/// The most timers looked at in one turn.
pub const EXPIRE_BUDGET: usize = 2_048;
/// A turn that comes so much later than it was due means that the process stood still, ms.
const OVERSLEPT_MS: u64 = 1_000;

/// One reading of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For the engine: never goes back.
    pub tick: Tick,
    /// For viewers: the wall clock, ms since 1970, which can be set.
    pub wall_ms: u64,
}

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
    /// For its engine. The limits on streams and subscribers are those of the whole service.
    pub engine: Settings,
    /// For what comes in.
    pub wire: Arc<WireLimits>,
}

/// An engine with its number, and the way to the other shards.
#[derive(Debug)]
pub struct Shard {
    number: usize,
    engine: Engine,
    router: Arc<Router>,
    totals: Arc<Totals>,
    wire: Arc<WireLimits>,
    /// Of the whole service.
    limits: Limits,
    /// What the engine was last told that it may hold.
    room: (u64, u64),
    outbox: Outbox,
    /// When the next turn is due.
    due: Option<Tick>,
}

impl Shard {
    /// A shard with an empty engine.
    #[must_use]
    pub fn new(number: usize, settings: ShardSettings, router: Arc<Router>, totals: Arc<Totals>) -> Self {
        let limits = settings.engine.limits.clone();
        totals.set(number, &Counts::default());
        Self {
            number,
            room: (limits.max_streams, limits.max_subscribers),
            engine: Engine::new(settings.engine),
            router,
            totals,
            wire: settings.wire,
            limits,
            outbox: Outbox::default(),
            due: None,
        }
    }

    /// Its engine, to look at.
    #[must_use]
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Takes a turn. What it makes is `owed`, and counted in the shared totals before anybody can see an answer.
    pub fn turn(&mut self, now: Now, owed: &mut Owed) -> Next {
        if owed.is_full() {
            return Next::Blocked;
        }
        self.note_lateness(now.tick);
        self.share_room(now.tick);
        let mut weight = 0;
        for _ in 0..MAX_BATCH {
            let Some(mail) = self.router.mailbox(self.number).take() else { break };
            weight += self.handle(now, mail, owed);
            if weight >= MAX_BATCH_WEIGHT || owed.is_full() {
                break;
            }
        }
        self.engine.expire(now.tick, EXPIRE_BUDGET, &mut self.outbox);
        self.settle(now, owed);
        self.totals.set(self.number, &self.engine.counts());
        self.due = self.engine.next_deadline();
        let more = !self.router.mailbox(self.number).is_empty() || self.due.is_some_and(|due| due <= now.tick);
        if more { Next::Again } else { Next::Sleep(self.due) }
    }

    /// After the process stood still, heartbeats may be waiting unread behind what is due: nobody is to blame.
    fn note_lateness(&mut self, now: Tick) {
        let late_ms = self.due.map_or(0, |due| now.since(due));
        if late_ms >= OVERSLEPT_MS && self.engine.counts().total > 0 {
            info!(shard = self.number, late_ms, "woke late; nobody goes stale for as long");
            self.feed(now, Input::Overslept { ms: late_ms });
        }
    }

    /// Limits hold for the service, engines for shards: near a limit, each may fill what the others leave.
    fn share_room(&mut self, now: Tick) {
        /// While that many are free, shards need not look at one another: one turn of each cannot take more.
        const SLACK: u64 = 65_536;
        let (sum, own) = (self.totals.sum(), self.engine.counts());
        let room = |limit: u64, sum: u64, own: u64| {
            if sum + SLACK < limit { limit } else { limit.saturating_sub(sum.saturating_sub(own)) }
        };
        let room = (
            room(self.limits.max_streams, sum.streams, own.streams),
            room(self.limits.max_subscribers, sum.total, own.total),
        );
        if room != self.room {
            self.room = room;
            self.feed(now, Input::SetRoom { max_streams: room.0, max_subscribers: room.1 });
        }
    }

    /// Tells the engine something that it cannot refuse.
    fn feed(&mut self, now: Tick, input: Input<'_>) {
        let noted = self.engine.handle(now, input, &mut self.outbox);
        debug_assert!(matches!(noted, Ok(Accepted::Noted)), "{noted:?}");
    }

    /// Handles one piece of mail; returns how much it was.
    fn handle(&mut self, now: Now, mail: Mail, owed: &mut Owed) -> usize {
        let Mail { body, reply } = mail;
        match body {
            Body::Command(bytes) => self.handle_command(now, &bytes, reply, owed),
            Body::Subscription(bytes) => self.handle_subscription(now, &bytes, reply, owed),
            Body::Query(bytes) => self.handle_query(now, &bytes, reply, owed),
            Body::Round(round) => self.handle_round(now, *round, reply, owed),
        }
    }

    fn handle_command(&mut self, now: Now, bytes: &Bytes, reply: Option<Subject>, owed: &mut Owed) -> usize {
        let decoded = decode::message::<proto::OrchestratorCommand>(bytes, &self.wire);
        let mut stream_id = String::new();
        let result = decoded.and_then(|message| {
            let input = decode::command(&message, &self.wire)?;
            if let Input::Command(request) = &input {
                request.stream_id.as_str().clone_into(&mut stream_id);
            }
            Ok(self.engine.handle(now.tick, input, &mut self.outbox)?)
        });
        self.answer(now, &result, &stream_id, subject::COMMAND, reply, owed);
        1
    }

    fn handle_subscription(&mut self, now: Now, bytes: &Bytes, reply: Option<Subject>, owed: &mut Owed) -> usize {
        let message = decode::message::<proto::SubscriptionCommand>(bytes, &self.wire);
        let (stream_id, weight) = message.as_ref().map_or(("", 1), subject_of);
        let result = message.as_ref().map_err(Clone::clone).and_then(|message| {
            let input = decode::subscription(message, reply.is_some())?;
            Ok(self.engine.handle(now.tick, input, &mut self.outbox)?)
        });
        if let Ok(message) = &message {
            log_membership(message, &result);
        }
        self.answer(now, &result, stream_id, subject::SUBSCRIPTION, reply, owed);
        weight
    }

    fn handle_query(&mut self, now: Now, bytes: &Bytes, reply: Option<Subject>, owed: &mut Owed) -> usize {
        let answer = decode::message::<proto::Query>(bytes, &self.wire).and_then(|message| {
            let input = match decode::question(&message)? {
                Question::State(stream_id) => Input::GetState(stream_id),
                Question::Stats(stream_id) => Input::GetStats(stream_id),
                Question::List { .. } => return Err(Refusal::Unavailable("a list goes round the shards")),
            };
            Ok(self.engine.handle(now.tick, input, &mut self.outbox)?)
        });
        let message = match answer {
            Ok(Accepted::State(update)) => {
                proto::QueryReply { state: vec![encode::state(&update, now.wall_ms)], ..Default::default() }
            }
            Ok(Accepted::Stats(counts)) => {
                proto::QueryReply { stats: Some(encode::stats(&counts)), ..Default::default() }
            }
            Ok(_) => proto::QueryReply::default(),
            Err(refusal) => {
                note_refusal(&refusal, subject::QUERY);
                encode::query_refusal(&refusal)
            }
        };
        self.reply_with(now, &message, reply, owed);
        1
    }

    /// Adds this shard's part to a round, and passes it on or answers.
    fn handle_round(&mut self, now: Now, round: Round, reply: Option<Subject>, owed: &mut Owed) -> usize {
        let last = self.number + 1 == self.router.shards();
        match round {
            Round::Stats(sum) => {
                let sum = add(sum, self.engine.counts());
                if last {
                    let message = proto::QueryReply { stats: Some(encode::stats(&sum)), ..Default::default() };
                    self.reply_with(now, &message, reply, owed);
                } else {
                    self.pass_on(now, Round::Stats(sum), reply, owed);
                }
                1
            }
            Round::List { room, from_slot, mut states } => {
                let input = Input::ListStreams { from_slot, limit: room };
                let listed = self.engine.handle(now.tick, input, &mut self.outbox);
                let Ok(Accepted::Streams { states: found, next_slot }) = listed else { return 1 };
                let weight = found.len();
                let room = room - found.len();
                states.extend(found.iter().map(|update| encode::state(update, now.wall_ms)));
                match next_slot {
                    None if !last && room > 0 => {
                        self.pass_on(now, Round::List { room, from_slot: 0, states }, reply, owed);
                    }
                    _ => {
                        let shard = self.number as u32;
                        let cursor = match next_slot {
                            Some(slot) => Cursor { shard, slot }.to_text(),
                            None if last => String::new(),
                            None => Cursor { shard: shard + 1, slot: 0 }.to_text(),
                        };
                        let message = proto::QueryReply { state: states, cursor, ..Default::default() };
                        self.reply_with(now, &message, reply, owed);
                    }
                }
                weight
            }
            Round::Batch { message, named_at, mut handles, mut unplaced } => {
                let own = handles.get_mut(self.number).map(std::mem::take).unwrap_or_default();
                let weight = own.len();
                let named = named_at == Some(self.number);
                let decoded = decode::message::<proto::SubscriptionCommand>(&message, &self.wire);
                let result = decoded
                    .as_ref()
                    .map_err(Clone::clone)
                    .and_then(|message| self.handle_part(now, message, own, named).map_err(Refusal::from));
                match result {
                    Ok(found) => {
                        unplaced.no_such_stream |= found.no_such_stream;
                        unplaced.handles.extend(found.handles);
                        unplaced.clients.extend(found.clients);
                    }
                    Err(refusal) => {
                        self.answer(now, &Err(refusal), "", subject::SUBSCRIPTION, reply, owed);
                        return weight;
                    }
                }
                if last {
                    let stream_id = decoded.as_ref().map_or("", |message| subject_of(message).0);
                    self.reply_with(now, &encode::batch_reply(&unplaced, stream_id), reply, owed);
                } else {
                    self.pass_on(now, Round::Batch { message, named_at, handles, unplaced }, reply, owed);
                }
                weight
            }
        }
    }

    /// This shard's part of a batch: its handles, and the named clients if their stream is here.
    fn handle_part(
        &mut self,
        now: Now,
        message: &proto::SubscriptionCommand,
        own: Vec<Handle>,
        named: bool,
    ) -> Result<crate::engine::Unplaced, Rejection> {
        // Every shard checks all of it, so that a malformed batch is refused by the first and changes nothing.
        let input = decode::subscription(message, true)?;
        let input = match &input {
            Input::HeartbeatBatch(batch) => {
                let part = pick_named(batch, named, own);
                Input::HeartbeatBatch(part)
            }
            Input::UnregisterBatch(batch) => {
                let part = pick_named(batch, named, own);
                Input::UnregisterBatch(part)
            }
            _ => return Err(Invalid::new("command must be a batch of handles to go round the shards").into()),
        };
        match self.engine.handle(now.tick, input, &mut self.outbox)? {
            Accepted::Batch(unplaced) => Ok(unplaced),
            _ => Ok(crate::engine::Unplaced::default()),
        }
    }

    fn pass_on(&mut self, now: Now, round: Round, reply: Option<Subject>, owed: &mut Owed) {
        let is_batch = matches!(round, Round::Batch { .. });
        let mail = Mail { body: Body::Round(Box::new(round)), reply };
        if let Err(Mail { reply, .. }) = self.router.send(self.number + 1, mail) {
            note_refusal(&FULL, "a round of the shards");
            if is_batch {
                self.reply_with(now, &encode::refusal(&FULL, ""), reply, owed);
            } else {
                self.reply_with(now, &encode::query_refusal(&FULL), reply, owed);
            }
        }
    }

    /// Answers a command or subscription, if somebody waits; a refusal is logged and counted in any case.
    fn answer(
        &mut self,
        now: Now,
        result: &Result<Accepted, Refusal>,
        stream_id: &str,
        about: &str,
        reply: Option<Subject>,
        owed: &mut Owed,
    ) {
        if let Err(refusal) = result {
            note_refusal(refusal, about);
        }
        if reply.is_some() {
            let message = match result {
                Ok(accepted) => encode::reply(accepted, stream_id, now.wall_ms),
                Err(refusal) => encode::refusal(refusal, stream_id),
            };
            self.reply_with(now, &message, reply, owed);
        }
    }

    /// Owes an answer, behind the updates that came before it.
    fn reply_with(&mut self, now: Now, message: &impl prost::Message, reply: Option<Subject>, owed: &mut Owed) {
        self.settle(now, owed);
        if let Some(reply) = reply {
            // Whoever gets the answer may ask another shard for room: it must see what this one has taken.
            self.totals.set(self.number, &self.engine.counts());
            owed.reply(reply, message.encode_to_vec().into());
        }
    }

    /// Owes what the engine said, and logs what it did.
    fn settle(&mut self, now: Now, owed: &mut Owed) {
        for update in &self.outbox.updates {
            trace!(
                stream_id = &*update.stream_id,
                cause = ?update.cause,
                mode = %update.mode,
                position_ms = update.position_ms,
                sequence = update.sequence,
                "state published"
            );
            owed.update(update, now.wall_ms);
        }
        for event in &self.outbox.events {
            log_event(event);
        }
        self.outbox.clear();
    }
}

/// The named clients of a batch if they belong here, and the handles that do.
fn pick_named<'a>(batch: &Batch<'a>, named: bool, handles: Vec<Handle>) -> Batch<'a> {
    if named { Batch { handles, ..batch.clone() } } else { Batch { handles, ..Batch::default() } }
}

/// The stream that a message names, and how many subscribers.
fn subject_of(message: &proto::SubscriptionCommand) -> (&str, usize) {
    match &message.command {
        None => ("", 1),
        Some(Subscription::Register(m)) => (&m.stream_id, 1),
        Some(Subscription::Unregister(m)) => (&m.stream_id, 1),
        Some(Subscription::Heartbeat(m)) => (&m.stream_id, 1),
        Some(Subscription::HeartbeatBatch(m)) => (&m.stream_id, m.client_id.len() + m.handle.len()),
        Some(Subscription::UnregisterBatch(m)) => (&m.stream_id, m.client_id.len() + m.handle.len()),
        Some(Subscription::RegisterBatch(m)) => (&m.stream_id, m.subscriber.len()),
    }
}

fn log_membership(message: &proto::SubscriptionCommand, result: &Result<Accepted, Refusal>) {
    match (&message.command, result) {
        (Some(Subscription::Register(m)), Ok(Accepted::Registered { new, total, .. })) => {
            let (stream_id, client_id, source_addr) = (&*m.stream_id, &*m.client_id, &*m.source_addr);
            debug!(
                stream_id,
                client_id,
                session = m.session,
                source_addr,
                new,
                subscribers = total,
                "client registered"
            );
        }
        (Some(Subscription::Unregister(m)), Ok(Accepted::Unregistered { total, source })) => {
            let (stream_id, client_id) = (&*m.stream_id, &*m.client_id);
            debug!(stream_id, client_id, session = m.session, ?source, subscribers = total, "client unregistered");
        }
        (Some(Subscription::RegisterBatch(m)), Ok(Accepted::RegisteredBatch { handles, .. })) => {
            let registered = handles.iter().filter(|handle| handle.is_ok()).count();
            debug!(stream_id = &*m.stream_id, registered, of = handles.len(), "clients registered");
        }
        (Some(Subscription::UnregisterBatch(m)), Ok(Accepted::Batch(unplaced))) => {
            let unknown = unplaced.handles.len() + unplaced.clients.len();
            let unregistered = m.client_id.len() + m.handle.len() - unknown;
            debug!(stream_id = &*m.stream_id, unregistered, unknown, "clients unregistered");
        }
        _ => {}
    }
}

fn log_event(event: &Event) {
    match event {
        Event::Created { stream_id } => {
            counter!("orchestrator_streams_created_total").increment(1);
            info!(stream_id = &**stream_id, "stream created");
        }
        Event::Started { stream_id } => {
            counter!("orchestrator_streams_started_total").increment(1);
            info!(stream_id = &**stream_id, "orchestrator started");
        }
        Event::Stopped { stream_id, mode } => {
            counter!("orchestrator_streams_stopped_total").increment(1);
            info!(stream_id = &**stream_id, %mode, "orchestrator stopped");
        }
        Event::Removed { stream_id, idle: true } => {
            counter!("orchestrator_streams_removed_total", "reason" => "idle").increment(1);
            info!(stream_id = &**stream_id, "idle stream removed");
        }
        Event::Removed { stream_id, idle: false } => {
            counter!("orchestrator_streams_removed_total", "reason" => "command").increment(1);
            info!(stream_id = &**stream_id, "stream removed");
        }
        Event::StaleRemoved { stream_id, removed, left } => {
            counter!("orchestrator_stale_removed_total").increment(*removed);
            info!(stream_id = &**stream_id, removed, subscribers = left, "stale subscribers removed");
        }
    }
}
