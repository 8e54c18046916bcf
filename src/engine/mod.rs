//! The engine: streams, subscribers and timers, and every decision about them.
//!
//! It is a function of what it was told and when: the same inputs at the same times give the same outputs. It does not
//! know bytes, sockets, threads or the time of day; `now` is always an argument, and never goes back.
//!
//! Its caller does the same four things, over and over, whether it is a shard, a test, a simulator or a bench:
//!
//! ```
//! use orchestrator_service::engine::*;
//!
//! let mut engine = Engine::new(Settings::default());
//! let mut outbox = Outbox::default();
//! let stream_id = StreamId::parse("show").unwrap();
//!
//! // 1. Tell it what came in.
//! let draft = Draft { scenes: vec![Scene { name: "Intro", duration_ms: 3_000 }], ..Draft::default() };
//! let config = Config::new(&draft, &Limits::default()).unwrap();
//! let start = Request {
//!     stream_id,
//!     request_id: None,
//!     expected_revision: None,
//!     command: Command::Start(Some(config)),
//! };
//! engine.handle(Tick(0), Input::Command(start), &mut outbox).unwrap();
//! let subscriber = Newcomer { client_id: ClientId::parse("viewer").unwrap(), session: 0, source: None };
//! engine.handle(Tick(0), Input::Register { stream_id, subscriber, answered: true }, &mut outbox).unwrap();
//!
//! // 2. Let it do what has fallen due.
//! engine.expire(Tick(0), 1_000, &mut outbox);
//!
//! // 3. Send what it says.
//! let modes: Vec<Mode> = outbox.updates.iter().map(|update| update.mode).collect();
//! assert_eq!(modes, [Mode::Idle, Mode::Running]);
//! outbox.clear();
//!
//! // 4. Sleep until it has something to do, or something comes in.
//! assert!(engine.next_deadline() <= Some(Tick(100)));
//! ```
//!
//! | file | what it decides |
//! |---|---|
//! | `stream` | lifecycle: what commands, time and the audience do to one stream |
//! | `playback`, `timeline` | where a playing stream is |
//! | `subscribers` | who is there, who is stale |
//! | `wheel` | when to look again |
//! | `requests` | answers for repeats |
//! | this one | which of them an input concerns, the tables' limits, the counts |

#![allow(clippy::cast_possible_truncation, reason = "slots are below 2^28, which inserting checks")]

use std::hash::BuildHasher as _;

use foldhash::fast::FixedState;
use slab::Slab;

mod config;
mod ids;
mod index;
mod input;
mod outbox;
mod playback;
mod requests;
mod stream;
mod subscribers;
mod timeline;
pub mod wheel;

pub use config::*;
pub use ids::*;
pub use input::*;
pub use outbox::*;
pub use playback::{Playhead, Progress, advance};
pub use requests::REMEMBER_MS;
pub use stream::{SNAPSHOT_INTERVAL_MS, Status};
pub use subscribers::STALE_LINGER_MS;
pub use timeline::*;

use index::Index;
use requests::Requests;
use stream::Stream;
use subscribers::{NONE, Silent, Subscribers};
use wheel::{Link, Nodes, Wheel};

/// What an engine is made with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The limits.
    pub limits: Limits,
    /// A subscriber not heard of for that long is stale, and is removed within a second, ms.
    pub stale_after_ms: u64,
    /// Any number that a stranger cannot guess: it goes into hashes and handles, never into an update.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { limits: Limits::default(), stale_after_ms: 90_000, seed: 0 }
    }
}

/// The most subscribers, or streams, that one engine can number.
pub const MAX_SLOTS: u64 = 1 << 28;

/// See the module.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    streams: Streams,
    /// The streams that are there, by id.
    by_id: Index,
    timers: Wheel,
    subscribers: Subscribers,
    requests: Requests,
    hasher: FixedState,
    counts: Counts,
    last_epoch: u64,
    /// Streams removed whose subscribers' records are yet to be freed, a few at each call.
    dying: std::collections::VecDeque<u32>,
}

/// The streams' slab, as the wheel sees it.
#[derive(Debug)]
struct Streams(Slab<Stream>);

impl Streams {
    fn get(&self, slot: u32) -> &Stream {
        &self.0[slot as usize]
    }

    fn get_mut(&mut self, slot: u32) -> &mut Stream {
        &mut self.0[slot as usize]
    }
}

impl Nodes for Streams {
    fn link(&self, key: u32) -> Link {
        self.get(key).timer
    }

    fn link_mut(&mut self, key: u32) -> &mut Link {
        &mut self.get_mut(key).timer
    }

    fn deadline(&self, key: u32) -> Tick {
        self.get(key).due
    }
}

impl Engine {
    /// An engine without streams.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            streams: Streams(Slab::new()),
            by_id: Index::new(),
            timers: Wheel::new(),
            subscribers: Subscribers::new(settings.stale_after_ms, settings.seed),
            requests: Requests::new(settings.limits.max_remembered_requests, settings.seed),
            hasher: FixedState::with_seed(settings.seed),
            counts: Counts::default(),
            last_epoch: 0,
            dying: std::collections::VecDeque::new(),
            settings,
        }
    }

    /// Handles one input.
    ///
    /// # Errors
    /// A [`Rejection`] says why the input was refused; it has then changed nothing, except that the stream it names
    /// was brought to `now`.
    pub fn handle(&mut self, now: Tick, input: Input<'_>, outbox: &mut Outbox) -> Result<Accepted, Rejection> {
        match input {
            Input::Command(request) => self.request(now, request, outbox),
            Input::Register { stream_id, subscriber, answered } => {
                self.register(now, stream_id, subscriber, answered, outbox)
            }
            Input::RegisterBatch { stream_id, subscribers, answered } => {
                self.register_batch(now, stream_id, subscribers, answered, outbox)
            }
            Input::Unregister(subscriber) => self.unregister(now, subscriber, outbox),
            Input::Heartbeat(subscriber) => self.heartbeat(now, subscriber, outbox),
            Input::HeartbeatBatch(batch) => Ok(self.batch(now, batch, Self::hear, outbox)),
            Input::UnregisterBatch(batch) => Ok(self.batch(now, batch, Self::leave, outbox)),
            Input::GetState(stream_id) => {
                let slot = self.wake_by_id(now, stream_id, outbox)?;
                Ok(Accepted::State(self.streams.get(slot).state(now, Cause::Snapshot)))
            }
            Input::GetStats(stream_id) => self.stats(stream_id).map(Accepted::Stats),
            Input::ListStreams { from_slot, limit } => Ok(self.list(now, from_slot, limit, outbox)),
            Input::SetRoom { max_streams, max_subscribers } => {
                self.settings.limits.max_streams = max_streams;
                self.settings.limits.max_subscribers = max_subscribers;
                Ok(Accepted::Noted)
            }
            Input::Overslept { ms } => {
                self.subscribers.pardon(now.after(ms.min(self.settings.stale_after_ms)));
                Ok(Accepted::Noted)
            }
        }
    }

    /// Does what has fallen due by `now`, looking at no more than about `budget` entries. What is left is due at once:
    /// [`Engine::next_deadline`] says so.
    pub fn expire(&mut self, now: Tick, budget: usize, outbox: &mut Outbox) {
        // Streams first, because a beat is heard; but a quarter is kept, so that the silent go in any case.
        let mut looks = budget - budget / 4;
        while let Some(slot) = self.timers.pop(&mut self.streams, now, &mut looks) {
            self.wake(now, slot, outbox);
        }
        looks += budget / 4;
        while let Some(silent) = self.subscribers.next_silent(now, &mut looks) {
            self.fall_silent(now, silent, outbox);
        }
        self.bury(&mut looks);
        self.requests.forget_until(now, looks);
    }

    /// When to call [`Engine::expire`] next; a time gone by means at once. Never later than what is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        if !self.dying.is_empty() {
            return Some(Tick(0));
        }
        [self.timers.next_look(), self.subscribers.next_look(), self.requests.next_due()].into_iter().flatten().min()
    }

    /// How many there are of everything.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// How many answers were forgotten before their time for want of room.
    #[must_use]
    pub const fn requests_forgotten_early(&self) -> u64 {
        self.requests.forgotten_early()
    }

    /// Whether nothing is left: no stream, no subscriber, no timer, no remembered answer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.streams.0.is_empty() && self.subscribers.len() == 0 && self.requests.len() == 0
    }

    // --- commands ------------------------------------------------------------------------------------------------

    /// A repeat gets the first answer; everything else is executed, and its answer remembered if it has an id.
    fn request(&mut self, now: Tick, request: Request<'_>, outbox: &mut Outbox) -> Result<Accepted, Rejection> {
        let Some(request_id) = request.request_id else { return self.command(now, request, outbox) };
        let stream_id = request.stream_id;
        if let Some(answer) = self.requests.recall(now, stream_id.as_str(), request_id) {
            return answer.clone();
        }
        let answer = self.command(now, request, outbox);
        self.requests.remember(now, stream_id.as_str(), request_id, answer.clone());
        answer
    }

    fn command(&mut self, now: Tick, request: Request<'_>, outbox: &mut Outbox) -> Result<Accepted, Rejection> {
        let Request { stream_id, expected_revision, command, .. } = request;
        let slot = self.wake_by_id(now, stream_id, outbox);
        let actual = slot.as_ref().map_or(0, |slot| self.streams.get(*slot).show.revision);
        if let Some(expected) = expected_revision.filter(|expected| *expected != actual) {
            // A command for a stream that is not there says so, whatever revision it expects.
            if slot.is_ok() || matches!(command, Command::Start(_)) {
                return Err(Rejection::Conflict { expected, actual });
            }
        }
        let slot = match (slot, command) {
            (Err(_), Command::Start(config)) => self.create(now, stream_id, config, outbox)?,
            (Err(not_found), _) => return Err(not_found),
            (Ok(slot), Command::Remove) => return Ok(Accepted::State(self.remove_stream(now, slot, false, outbox))),
            (Ok(slot), command) => {
                self.with_stream(slot, |stream| stream.command(now, command, outbox))?;
                slot
            }
        };
        Ok(Accepted::State(self.streams.get(slot).state(now, Cause::Command)))
    }

    fn create(
        &mut self,
        now: Tick,
        stream_id: StreamId<'_>,
        config: Option<Config>,
        outbox: &mut Outbox,
    ) -> Result<u32, Rejection> {
        let config = config.ok_or_else(|| {
            Invalid::new(format!(
                "config must be given to start {stream_id:?}, with 1 scene or more: it does not exist"
            ))
        })?;
        let limit = self.settings.limits.max_streams.min(MAX_SLOTS);
        if self.counts.streams >= limit || self.streams.0.len() as u64 >= MAX_SLOTS {
            return Err(Rejection::Exhausted { what: "streams", limit });
        }
        // Microseconds, so that an epoch outgrows those of an earlier process and of a stream removed just now.
        self.last_epoch = (self.last_epoch + 1).max(now.0.saturating_mul(1_000));
        let entry = self.streams.0.vacant_entry();
        let slot = entry.key() as u32;
        entry.insert(Stream::new(stream_id, slot, config, now, self.last_epoch));
        let (streams, hasher) = (&self.streams, &self.hasher);
        let hash = hasher.hash_one(stream_id.as_str());
        self.by_id.insert(hash, slot, |slot| hasher.hash_one(&*streams.get(*slot).id));
        self.counts.streams += 1;
        self.with_stream(slot, |stream| stream.created(now, outbox));
        Ok(slot)
    }

    // --- subscriptions -------------------------------------------------------------------------------------------

    fn register(
        &mut self,
        now: Tick,
        stream_id: StreamId<'_>,
        newcomer: Newcomer<'_>,
        answered: bool,
        outbox: &mut Outbox,
    ) -> Result<Accepted, Rejection> {
        let slot = self.wake_by_id(now, stream_id, outbox)?;
        let before = self.counts.total;
        let made = outbox.updates.len();
        let handle = self.join(now, slot, newcomer, outbox)?;
        self.welcome(now, slot, answered || outbox.updates.len() > made, outbox);
        let stream = self.streams.get(slot);
        Ok(Accepted::Registered {
            handle,
            new: self.counts.total > before,
            total: u64::from(stream.members.total),
            state: stream.state(now, Cause::Snapshot),
        })
    }

    fn register_batch(
        &mut self,
        now: Tick,
        stream_id: StreamId<'_>,
        newcomers: Vec<Result<Newcomer<'_>, Invalid>>,
        answered: bool,
        outbox: &mut Outbox,
    ) -> Result<Accepted, Rejection> {
        let slot = self.wake_by_id(now, stream_id, outbox)?;
        let made = outbox.updates.len();
        let handles: Vec<Result<Handle, Rejection>> = newcomers
            .into_iter()
            .map(|newcomer| newcomer.map_err(Rejection::from).and_then(|new| self.join(now, slot, new, outbox)))
            .collect();
        if handles.iter().any(Result::is_ok) {
            self.welcome(now, slot, answered || outbox.updates.len() > made, outbox);
        }
        Ok(Accepted::RegisteredBatch { handles, state: self.streams.get(slot).state(now, Cause::Snapshot) })
    }

    /// Adds a subscriber, or refreshes the one that is there.
    fn join(
        &mut self,
        now: Tick,
        stream: u32,
        newcomer: Newcomer<'_>,
        outbox: &mut Outbox,
    ) -> Result<Handle, Rejection> {
        let Newcomer { client_id, session, source } = newcomer;
        let first = self.subscribers.find_client(stream, client_id);
        let known = self.subscribers.find(stream, client_id, session);
        let slot = match known {
            Some(slot) => {
                self.subscribers.set_source(slot, source);
                if !self.hear(now, slot, outbox) {
                    return Err(Rejection::StreamNotFound(self.streams.get(stream).id.to_string()));
                }
                slot
            }
            None => {
                self.check_room(first)?;
                let members = &mut self.streams.get_mut(stream).members;
                let (slot, first) = self.subscribers.insert(now, stream, client_id, session, source, members.head);
                members.head = slot;
                members.total += 1;
                members.active += 1;
                members.unique += u32::from(first);
                self.counts.total += 1;
                self.counts.active += 1;
                self.counts.unique += u64::from(first);
                self.with_stream(stream, |stream| stream.audience_changed(now, outbox));
                slot
            }
        };
        Ok(self.subscribers.handle(slot, self.streams.get(stream).partition))
    }

    fn check_room(&self, first_session: Option<u32>) -> Result<(), Rejection> {
        let Limits { max_subscribers, max_sessions_per_client, .. } = self.settings.limits;
        let limit = max_subscribers.min(MAX_SLOTS);
        if self.counts.total >= limit || self.subscribers.len() >= MAX_SLOTS {
            return Err(Rejection::Exhausted { what: "subscribers", limit });
        }
        if self.subscribers.sessions(first_session).count() >= max_sessions_per_client as usize {
            let limit = u64::from(max_sessions_per_client);
            return Err(Rejection::Exhausted { what: "sessions of one client on a stream", limit });
        }
        Ok(())
    }

    /// A newcomer sees the state at once: in its reply, in the update that its coming made, or in one for it.
    fn welcome(&mut self, now: Tick, slot: u32, has_seen: bool, outbox: &mut Outbox) {
        if !has_seen {
            self.with_stream(slot, |stream| stream.owe_snapshot(now, outbox));
        }
    }

    fn unregister(
        &mut self,
        now: Tick,
        subscriber: Subscriber<'_>,
        outbox: &mut Outbox,
    ) -> Result<Accepted, Rejection> {
        let slot = self.find_subscriber(subscriber)?;
        let (stream, source) = (self.subscribers.stream_of(slot), self.subscribers.source(slot));
        if !self.leave(now, slot, outbox) {
            return Err(Rejection::StreamNotFound(subscriber.stream_id.as_str().to_owned()));
        }
        Ok(Accepted::Unregistered { total: u64::from(self.streams.get(stream).members.total), source })
    }

    fn heartbeat(&mut self, now: Tick, subscriber: Subscriber<'_>, outbox: &mut Outbox) -> Result<Accepted, Rejection> {
        let slot = self.find_subscriber(subscriber)?;
        if self.hear(now, slot, outbox) {
            return Ok(Accepted::Heard);
        }
        Err(Rejection::StreamNotFound(subscriber.stream_id.as_str().to_owned()))
    }

    fn find_subscriber(&self, subscriber: Subscriber<'_>) -> Result<u32, Rejection> {
        let Subscriber { stream_id, client_id, session } = subscriber;
        let stream = self.find_stream(stream_id)?;
        self.subscribers
            .find(stream, client_id, session)
            .ok_or_else(|| Rejection::UnknownSubscriber { client_id: client_id.as_str().to_owned(), session })
    }

    /// Does something to each subscriber of a batch, and tells which are not there.
    fn batch(
        &mut self,
        now: Tick,
        batch: Batch<'_>,
        act: impl Fn(&mut Self, Tick, u32, &mut Outbox) -> bool,
        outbox: &mut Outbox,
    ) -> Accepted {
        let mut unplaced = Unplaced::default();
        for handle in batch.handles {
            match self.subscribers.find_handle(handle) {
                Some(slot) if !self.is_dying(slot) && act(self, now, slot, outbox) => {}
                _ => unplaced.handles.push(handle),
            }
        }
        let stream = batch.stream_id.map(|stream_id| self.wake_by_id(now, stream_id, outbox));
        unplaced.no_such_stream = matches!(stream, Some(Err(_)));
        for client in batch.clients {
            let stream = stream.as_ref().and_then(|stream| stream.as_ref().ok());
            let mut next = stream.and_then(|stream| self.subscribers.find_client(*stream, client));
            if next.is_none() {
                unplaced.clients.push(client.as_str().to_owned());
            }
            while let Some(slot) = next {
                // Before acting: leaving takes the slot out of the chain.
                next = self.subscribers.next_session(slot);
                act(self, now, slot, outbox);
            }
        }
        Accepted::Batch(unplaced)
    }

    fn is_dying(&self, subscriber: u32) -> bool {
        !self.dying.is_empty() && self.streams.get(self.subscribers.stream_of(subscriber)).gone
    }

    /// A subscriber is still there. False when its stream is not: being woken for it was its end.
    fn hear(&mut self, now: Tick, slot: u32, outbox: &mut Outbox) -> bool {
        if !self.subscribers.heard(slot, now) {
            return true;
        }
        let stream = self.subscribers.stream_of(slot);
        self.wake(now, stream, outbox);
        if self.streams.get(stream).gone {
            return false;
        }
        self.streams.get_mut(stream).members.active += 1;
        self.counts.active += 1;
        self.counts.stale -= 1;
        self.with_stream(stream, |stream| stream.audience_changed(now, outbox));
        true
    }

    /// A subscriber leaves, of itself or because it was silent for too long. False as in [`Engine::hear`].
    fn leave(&mut self, now: Tick, slot: u32, outbox: &mut Outbox) -> bool {
        let stream = self.subscribers.stream_of(slot);
        self.wake_if_due(now, stream, outbox);
        let Stream { members, gone, .. } = self.streams.get_mut(stream);
        let removed = self.subscribers.remove(slot, &mut members.head);
        if *gone {
            return false;
        }
        members.total -= 1;
        members.active -= u32::from(!removed.was_stale);
        members.unique -= u32::from(removed.last_of_client);
        self.counts.total -= 1;
        self.counts.active -= u64::from(!removed.was_stale);
        self.counts.stale -= u64::from(removed.was_stale);
        self.counts.unique -= u64::from(removed.last_of_client);
        self.with_stream(stream, |stream| stream.audience_changed(now, outbox));
        true
    }

    fn fall_silent(&mut self, now: Tick, silent: Silent, outbox: &mut Outbox) {
        match silent {
            Silent::Stale(slot) => {
                let stream = self.subscribers.stream_of(slot);
                self.wake_if_due(now, stream, outbox);
                if self.streams.get(stream).gone {
                    return;
                }
                self.streams.get_mut(stream).members.active -= 1;
                self.counts.active -= 1;
                self.counts.stale += 1;
                self.with_stream(stream, |stream| stream.audience_changed(now, outbox));
            }
            Silent::Gone(slot) => {
                let stream = self.subscribers.stream_of(slot);
                if self.leave(now, slot, outbox) {
                    self.tell_stale(stream, outbox);
                }
            }
        }
    }

    /// One event for a run of stale subscribers of the same stream.
    fn tell_stale(&self, stream: u32, outbox: &mut Outbox) {
        let stream = self.streams.get(stream);
        let now_left = u64::from(stream.members.total);
        match outbox.events.last_mut() {
            Some(Event::StaleRemoved { stream_id, removed, left }) if **stream_id == *stream.id => {
                *removed += 1;
                *left = now_left;
            }
            _ => {
                let stream_id = stream.id.clone();
                outbox.events.push(Event::StaleRemoved { stream_id, removed: 1, left: now_left });
            }
        }
    }

    // --- questions -----------------------------------------------------------------------------------------------

    fn stats(&self, stream_id: Option<StreamId<'_>>) -> Result<Counts, Rejection> {
        let Some(stream_id) = stream_id else { return Ok(self.counts) };
        let slot = self.find_stream(stream_id)?;
        let stream = self.streams.get(slot);
        let (total, active) = (u64::from(stream.members.total), u64::from(stream.members.active));
        let running = u64::from(stream.mode() == Mode::Running);
        let unique = u64::from(stream.members.unique);
        Ok(Counts { total, active, stale: total - active, unique, streams: 1, running })
    }

    fn list(&mut self, now: Tick, from_slot: u32, limit: usize, outbox: &mut Outbox) -> Accepted {
        /// Slots looked at in one call: a table that was once large and is nearly empty takes several pages.
        const MOST_SLOTS: usize = 4_096;
        let end = self.streams.0.capacity();
        let mut states = Vec::new();
        let mut slot = from_slot as usize;
        let last = slot.saturating_add(MOST_SLOTS).min(end);
        while slot < last && states.len() < limit {
            if self.streams.0.get(slot).is_some_and(|stream| !stream.gone) {
                self.wake(now, slot as u32, outbox);
                let stream = self.streams.get(slot as u32);
                if !stream.gone {
                    states.push(stream.state(now, Cause::Snapshot));
                }
            }
            slot += 1;
        }
        Accepted::Streams { states, next_slot: (slot < end).then_some(slot as u32) }
    }

    // --- streams -------------------------------------------------------------------------------------------------

    fn find_stream(&self, stream_id: StreamId<'_>) -> Result<u32, Rejection> {
        let id = stream_id.as_str();
        self.by_id
            .find(self.hasher.hash_one(id), |slot| *self.streams.get(*slot).id == *id)
            .ok_or_else(|| Rejection::StreamNotFound(id.to_owned()))
    }

    /// Finds a stream and brings it to `now`, so that no input meets one whose time has not come yet, or is over.
    fn wake_by_id(&mut self, now: Tick, stream_id: StreamId<'_>, outbox: &mut Outbox) -> Result<u32, Rejection> {
        let slot = self.find_stream(stream_id)?;
        self.wake(now, slot, outbox);
        if self.streams.get(slot).gone {
            return Err(Rejection::StreamNotFound(stream_id.as_str().to_owned()));
        }
        Ok(slot)
    }

    /// [`Engine::wake`] for a stream that somebody watches, or at least in vain: nothing is due, so nothing changed.
    fn wake_if_due(&mut self, now: Tick, slot: u32, outbox: &mut Outbox) {
        if self.streams.get(slot).due <= now {
            self.wake(now, slot, outbox);
        }
    }

    /// Brings a stream to `now`, which may be its end.
    fn wake(&mut self, now: Tick, slot: u32, outbox: &mut Outbox) {
        if self.streams.get(slot).gone {
            return;
        }
        if !self.with_stream(slot, |stream| stream.wake(now, outbox)) {
            self.remove_stream(now, slot, true, outbox);
        }
    }

    /// Lets something happen to a stream, keeps count of the running ones, and arms its timer for what is due next.
    fn with_stream<T>(&mut self, slot: u32, act: impl FnOnce(&mut Stream) -> T) -> T {
        let stream = self.streams.get_mut(slot);
        let was_running = stream.mode() == Mode::Running;
        let result = act(stream);
        let is_running = stream.mode() == Mode::Running;
        self.counts.running = self.counts.running + u64::from(is_running) - u64::from(was_running);
        let due = stream.next_due();
        if due != stream.due || !stream.timer.is_linked() {
            self.timers.cancel(&mut self.streams, slot);
            self.streams.get_mut(slot).due = due;
            if due != Tick::NEVER {
                self.timers.arm(&mut self.streams, slot);
            }
        }
        result
    }

    /// Ends a stream and all its subscriptions. Returns its last state.
    fn remove_stream(&mut self, now: Tick, slot: u32, idle: bool, outbox: &mut Outbox) -> StateUpdate {
        let stream = self.streams.get_mut(slot);
        let was_running = stream.mode() == Mode::Running;
        stream.remove(now, idle, outbox);
        let (members, hash) = (stream.members, self.hasher.hash_one(&*stream.id));
        let last = stream.state(now, Cause::Lifecycle);
        self.counts.streams -= 1;
        self.counts.running -= u64::from(was_running);
        self.counts.total -= u64::from(members.total);
        self.counts.active -= u64::from(members.active);
        self.counts.stale -= u64::from(members.total - members.active);
        self.counts.unique -= u64::from(members.unique);
        self.by_id.remove(hash, slot);
        self.timers.cancel(&mut self.streams, slot);
        self.dying.push_back(slot);
        last
    }

    /// Frees the records of subscribers whose stream is gone, and then its slot.
    fn bury(&mut self, looks: &mut usize) {
        while let Some(stream) = self.dying.front().copied() {
            let head = &mut self.streams.get_mut(stream).members.head;
            while *head != NONE {
                let Some(left) = looks.checked_sub(1) else { return };
                *looks = left;
                self.subscribers.remove(*head, head);
            }
            self.streams.0.remove(stream as usize);
            self.dying.pop_front();
        }
    }

    // --- invariants ----------------------------------------------------------------------------------------------

    /// Asserts every invariant across the engine's structures. For tests, after each step; it looks at everything.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check(&self) {
        self.subscribers.check();
        self.requests.check();
        let mut counted = Counts::default();
        let (mut armed, mut gone) = (0, 0);
        for (slot, stream) in &self.streams.0 {
            if stream.gone {
                gone += 1;
                continue;
            }
            stream.check();
            assert_eq!(stream.due, stream.next_due(), "stream {}: due", stream.id);
            assert_eq!(stream.timer.is_linked(), stream.due != Tick::NEVER, "stream {}: timer", stream.id);
            let id = StreamId::parse(&stream.id).expect("a stream's id is valid");
            assert_eq!(self.find_stream(id), Ok(slot as u32), "stream {} is in the index", stream.id);
            armed += usize::from(stream.timer.is_linked());
            let mates: Vec<u32> = self.subscribers.mates(stream.members.head).collect();
            let stale = mates.iter().filter(|mate| self.subscribers.is_stale(**mate)).count() as u64;
            assert_eq!(mates.len(), stream.members.total as usize, "stream {}: its list", stream.id);
            assert!(mates.iter().all(|mate| self.subscribers.stream_of(*mate) == slot as u32));
            assert_eq!(u64::from(stream.members.active), mates.len() as u64 - stale, "stream {}: active", stream.id);
            counted.total += mates.len() as u64;
            counted.stale += stale;
            counted.active += mates.len() as u64 - stale;
            counted.unique += u64::from(stream.members.unique);
            counted.streams += 1;
            counted.running += u64::from(stream.mode() == Mode::Running);
        }
        assert_eq!(counted, self.counts, "counts are kept");
        assert_eq!(self.timers.check(&self.streams), armed, "one timer a stream");
        assert_eq!(self.by_id.len() as u64, counted.streams, "one entry a stream in the index");
        assert_eq!(gone, self.dying.len(), "streams that are gone wait to be buried");
    }
}
