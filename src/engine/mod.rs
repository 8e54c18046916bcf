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
//! let draft = Draft { scenes: vec![Scene::new("Intro", 3_000)], ..Draft::default() };
//! let config = Config::new(&draft, &Limits::default()).unwrap();
//! let start = Request::new(stream_id, Command::Start(Some(config)));
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
//! | `show` | what a stream is, and where it is at a moment |
//! | `stream` | lifecycle: what time and the audience do to one stream |
//! | `commands` | what each command does to it |
//! | `schedule` | streams that begin at an instant of the wall clock |
//! | [`timeline`](crate::timeline) | where a playing stream is: arithmetic that is not the engine's alone |
//! | `membership` | who comes and goes, and the counts that follow |
//! | `subscribers` | the table of who is there, and who is stale |
//! | `filter` | which filters mean the same |
//! | `followers` | which filters are followed, and which updates pass them |
//! | `handle` | how a registration is named, so that nobody guesses it |
//! | `records` | how a subscriber's record is laid out, and when it is due |
//! | `index` | which slot a key belongs to, of streams and of subscribers |
//! | `prefetch` | nothing: it asks memory for what a look-up will read |
//! | `wheel` | when to look again |
//! | `requests` | answers for repeats |
//! | `history` | what is kept of what happened, and what is forgotten |
//! | `questions` | nothing: it looks up what is asked |
//! | `check` | every invariant, for tests |
//! | this one | which of them an input concerns; streams found, created, woken, removed |

#![allow(clippy::cast_possible_truncation, reason = "slots are below 2^28, which inserting checks")]

use std::hash::BuildHasher as _;

use foldhash::fast::FixedState;
use slab::Slab;

mod check;
mod client_id;
mod commands;
mod config;
mod filter;
mod followers;
mod handle;
mod history;
mod ids;
mod index;
mod input;
mod membership;
mod outbox;
mod prefetch;
mod questions;
mod records;
mod requests;
mod schedule;
mod show;
mod stream;
mod subscribers;
pub mod wheel;

pub use crate::timeline::*;
pub use client_id::ClientId;
pub use config::*;
pub use filter::*;
pub use followers::MAX_FILTERS_OF_STREAM;
pub use handle::Handle;
pub use history::{Action, HistoryEntry, MAX_HISTORY_OF_STREAM};
pub use ids::*;
pub use input::*;
pub use outbox::*;
pub use records::STALE_LINGER_MS;
pub use requests::REMEMBER_MS;
pub use show::{Lifecycle, Run, Show, Status};
pub use stream::SNAPSHOT_INTERVAL_MS;

use check::Entries;
use commands::Moment;
use followers::{Followers, Room};
use history::History;
use index::Index;
use prefetch::prefetch;
use records::NONE;
use requests::{Recalled, Requests};
use schedule::{Waiting, check_instant};
use stream::{Spare, Stream};
use subscribers::{IN_FLIGHT, Lookup, Subscribers};
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
pub const MAX_SLOTS: u64 = 1 << handle::SLOT_BITS;

/// See the module.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    quota: Quota,
    /// As it was told last.
    clock: WallClock,
    streams: Streams,
    /// The streams that are there, by id.
    by_id: Index,
    timers: Wheel,
    /// The streams that wait for an instant of the wall clock.
    waiting: Waiting,
    subscribers: Subscribers,
    followers: Followers,
    requests: Requests,
    history: History,
    hasher: FixedState,
    counts: Counts,
    last_epoch: u64,
    /// Streams that were removed and whose subscribers' records are yet to be freed, a few at each call.
    removed: std::collections::VecDeque<u32>,
}

/// The streams' slab, as the wheel sees it.
struct Streams(Slab<Stream>);

impl std::fmt::Debug for Streams {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Entries(&self.0).fmt(formatter)
    }
}

impl Streams {
    fn get(&self, slot: u32) -> &Stream {
        &self.0[slot as usize]
    }

    fn get_mut(&mut self, slot: u32) -> &mut Stream {
        &mut self.0[slot as usize]
    }

    /// Asks for what [`Engine::find_stream_at`] will read. The slab looks whether there is a stream, so this waits for the
    /// first line of it; few shards have so many streams that it is far away.
    fn prefetch(&self, slot: u32) {
        if let Some(Stream { show, .. }) = self.0.get(slot as usize) {
            prefetch(&show.lifecycle);
            show.id.as_bytes().first().into_iter().for_each(prefetch);
        }
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
            waiting: Waiting::default(),
            subscribers: Subscribers::new(settings.stale_after_ms, settings.seed),
            followers: Followers::new(),
            requests: Requests::new(&settings.limits, settings.seed),
            history: History::new(),
            hasher: FixedState::with_seed(settings.seed),
            counts: Counts::default(),
            last_epoch: 0,
            removed: std::collections::VecDeque::new(),
            quota: Quota::of(&settings.limits),
            clock: WallClock::default(),
            settings,
        }
    }

    /// Handles one input.
    ///
    /// # Errors
    /// A [`Rejection`] says why the input was refused; it has then changed nothing, except that the stream it names
    /// was brought to `now`.
    pub fn handle(&mut self, now: Tick, input: Input<'_>, outbox: &mut Outbox) -> Result<Accepted, Rejection> {
        self.handle_with(now, input, Hint::NONE, outbox)
    }

    /// [`Engine::handle`] with what [`Engine::fetch`] has found out. A hint that is wrong, or of another time, costs a
    /// look-up and nothing else.
    ///
    /// # Errors
    /// As [`Engine::handle`].
    pub fn handle_with(
        &mut self,
        now: Tick,
        input: Input<'_>,
        hint: Hint,
        outbox: &mut Outbox,
    ) -> Result<Accepted, Rejection> {
        let made = outbox.updates.len();
        let result = self.dispatch(now, input, hint, outbox);
        self.note_changes(None, outbox);
        self.followers.mark(&mut outbox.updates[made..]);
        result
    }

    fn dispatch(
        &mut self,
        now: Tick,
        input: Input<'_>,
        hint: Hint,
        outbox: &mut Outbox,
    ) -> Result<Accepted, Rejection> {
        match input {
            Input::Command(request) => self.request(now, request, outbox),
            Input::Register { stream_id, subscriber, answered } => {
                self.register(now, stream_id, subscriber, answered, outbox)
            }
            Input::RegisterBatch { stream_id, subscribers, answered } => {
                self.register_batch(now, stream_id, subscribers, answered, outbox)
            }
            Input::RegisterFollowing { stream_id, subscriber, answered, filter } => {
                self.register_following(now, stream_id, (subscriber, answered), filter, outbox)
            }
            Input::Follow { stream_id, filter } => {
                let slot = self.wake_by_id(now, stream_id, outbox)?;
                self.check_filter(slot, &filter)?;
                Ok(self.follow(now, slot, filter, None))
            }
            Input::Unregister(subscriber) => self.unregister(now, subscriber, hint, outbox),
            Input::Heartbeat(subscriber) => self.heartbeat(now, subscriber, hint, outbox),
            Input::HeartbeatBatch(batch) => Ok(self.batch(now, batch, Self::touch, outbox)),
            Input::UnregisterBatch(batch) => Ok(self.batch(now, batch, Self::leave, outbox)),
            Input::GetState(stream_id) => {
                let slot = self.wake_by_id(now, stream_id, outbox)?;
                Ok(Accepted::State(self.streams.get(slot).state(now, Cause::Snapshot)))
            }
            Input::GetStats(stream_id) => self.stats(stream_id).map(Accepted::Stats),
            Input::ListStreams { from_slot, limit } => Ok(self.list(now, from_slot, limit, outbox)),
            Input::GetConfig(stream_id) => self.get_config(now, stream_id, outbox),
            Input::ListSubscribers { stream_id, from_slot, limit } => {
                self.list_subscribers(now, stream_id, from_slot, limit, outbox)
            }
            Input::GetHistory { stream_id, before_revision, limit } => {
                self.get_history(now, stream_id, limit, before_revision, outbox)
            }
            Input::SetQuota(quota) => {
                self.quota = quota;
                Ok(Accepted::Noted)
            }
            Input::WallClock { ms } => {
                self.clock = WallClock::read(now, ms);
                Ok(Accepted::Noted)
            }
            Input::ClockStalled { ms } => {
                let until = now.after(ms.min(self.settings.stale_after_ms));
                self.subscribers.extend_deadlines(until);
                self.followers.extend(until);
                Ok(Accepted::Noted)
            }
        }
    }

    /// Finds out where the look-ups of these inputs will end, for all at a time, and brings what lies there into the
    /// processor's cache; changes nothing. Worth it for a dozen inputs and more: each of them waits for memory several
    /// times, one after the other, and the processor waits for many as long as for one.
    ///
    /// The hints are in the order of the inputs. With one, [`Engine::handle_with`] looks the subscriber of a heartbeat or
    /// a leave up no second time, unless it is a further session of its client.
    #[must_use]
    pub fn fetch(&self, inputs: &[Input<'_>]) -> Vec<Hint> {
        let mut hints = Vec::with_capacity(inputs.len());
        let (mut hashes, mut lookups) = (Vec::with_capacity(IN_FLIGHT), Vec::with_capacity(IN_FLIGHT));
        for some in inputs.chunks(IN_FLIGHT) {
            let named = || some.iter().map(Input::one_subscriber);
            // Each step reads what the one before has asked for.
            hashes.clear();
            hashes.extend(named().map(|named| {
                let hash = named.map_or(0, |(stream_id, _)| self.hash_of(stream_id.as_str()));
                self.by_id.prefetch(hash);
                hash
            }));
            lookups.clear();
            lookups.extend(named().zip(&hashes).map(|(named, hash)| {
                let Some((_, client_id)) = named else { return Lookup::NOBODY };
                let stream = self.by_id.likely(*hash);
                self.streams.prefetch(stream);
                self.subscribers.begin(stream, client_id)
            }));
            hints.extend(lookups.iter_mut().map(|lookup| {
                self.subscribers.approach(lookup);
                lookup.hint()
            }));
        }
        hints
    }

    /// Does what has fallen due by `now`, looking at no more than about `budget` entries. What is left is due at once:
    /// [`Engine::next_deadline`] says so.
    pub fn expire(&mut self, now: Tick, budget: usize, outbox: &mut Outbox) {
        let made = outbox.updates.len();
        // Streams first, because a beat is heard; but some is kept, so that the silent and the dead go in any case.
        let mut looks = budget - budget / 8 * 2;
        while let Some(slot) = self.waiting.due(self.clock.at(now)).filter(|_| looks > 0) {
            looks -= 1;
            self.wake(now, slot, outbox);
        }
        while let Some(slot) = self.timers.pop(&mut self.streams, now, &mut looks) {
            self.wake(now, slot, outbox);
        }
        looks += budget / 8;
        while let Some(silent) = self.subscribers.next_silent(now, &mut looks) {
            self.on_timeout(now, silent, outbox);
        }
        looks += budget / 8;
        self.note_changes(None, outbox);
        self.reap(&mut looks);
        self.requests.forget_until(now, looks);
        self.followers.mark(&mut outbox.updates[made..]);
        // Behind what they were to have.
        self.followers.end_until(now, looks.max(budget / 8));
    }

    /// When to call [`Engine::expire`] next; a time gone by means at once. Never later than what is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        if !self.removed.is_empty() {
            return Some(Tick(0));
        }
        let start = self.waiting.next().map(|at_ms| self.clock.tick_of(at_ms));
        let (streams, subscribers) = (self.timers.next_look(), self.subscribers.next_look());
        let (requests, followers) = (self.requests.next_due(), self.followers.next_end());
        [streams, start, subscribers, requests, followers].into_iter().flatten().min()
    }

    /// Whether anything waits for an instant of the wall clock, so that whoever calls should look at that now and then: it
    /// can be set.
    #[must_use]
    pub fn waits_for_wall_clock(&self) -> bool {
        self.waiting.next().is_some()
    }

    /// How many there are of everything.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            client_bytes: self.subscribers.bytes(),
            filters: self.followers.len() as u64,
            filter_bytes: self.followers.bytes(),
            history_bytes: self.history.bytes(),
            ..self.counts
        }
    }

    /// How many answers were forgotten before their time for want of room.
    #[must_use]
    pub const fn requests_forgotten_early(&self) -> u64 {
        self.requests.forgotten_early()
    }

    /// How many entries of histories were forgotten for want of room.
    #[must_use]
    pub const fn history_forgotten_early(&self) -> u64 {
        self.history.forgotten_early()
    }

    /// Whether nothing is left: no stream, no subscriber, no filter, no timer, no remembered answer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.streams.0.is_empty()
            && self.subscribers.len() == 0
            && self.followers.len() == 0
            && self.requests.len() == 0
    }

    // --- what outlives a process ---------------------------------------------------------------------------------

    /// All of a stream that must outlive a process, as it is: the stream is not brought to any time for it.
    #[must_use]
    pub fn export(&self, stream_id: StreamId<'_>) -> Option<Show> {
        self.find_by_name(stream_id.as_str()).map(|slot| self.streams.get(slot).show.clone())
    }

    /// Puts a stream back that was exported, in the place of the one of its id if there is one, whose audience it then
    /// has. If nobody watches it here, who did elsewhere has left now. Limits are not looked at: it was let in once.
    pub fn import(&mut self, now: Tick, mut show: Show, outbox: &mut Outbox) {
        let made = outbox.updates.len();
        self.last_epoch = self.last_epoch.max(show.epoch);
        show.share_pass();
        let slot = match self.find_by_name(&show.id) {
            Some(slot) => {
                self.reconsider_stream(slot, |stream| stream.show = show);
                slot
            }
            None => self.add_stream(show),
        };
        self.with_stream(slot, |stream| stream.audience_changed(now, outbox));
        self.note_changes(None, outbox);
        self.followers.mark(&mut outbox.updates[made..]);
    }

    // --- commands ------------------------------------------------------------------------------------------------

    /// A repeat gets the first answer; everything else is executed, and its answer remembered if it has an id.
    fn request(&mut self, now: Tick, request: Request<'_>, outbox: &mut Outbox) -> Result<Accepted, Rejection> {
        let Some(request_id) = request.request_id else { return self.command(now, request, outbox) };
        let stream_id = request.stream_id;
        let fingerprint = self.requests.fingerprint(&request);
        match self.requests.recall(now, stream_id.as_str(), request_id, fingerprint) {
            Recalled::Repeat(answer) => return answer.clone(),
            Recalled::OtherContent => return Err(Rejection::RequestIdTaken(request_id.to_owned())),
            Recalled::New => {}
        }
        let mut answer = self.command(now, request, outbox);
        if let Ok(Accepted::State(state)) = &mut answer {
            // A repeat is told the same, to the byte, whatever the clock says by then.
            state.server_time_ms = Some(self.clock.at(state.at));
        }
        let is_there = self.find_by_name(stream_id.as_str()).is_some();
        self.requests.remember(now, (stream_id.as_str(), request_id), fingerprint, answer.clone(), is_there);
        answer
    }

    fn command(&mut self, now: Tick, request: Request<'_>, outbox: &mut Outbox) -> Result<Accepted, Rejection> {
        let slot = self.wake_by_id(now, request.stream_id, outbox);
        // A command for a stream that is not there says so, whatever it expects.
        if slot.is_ok() || matches!(request.command, Command::Start(_)) {
            self.check_conditions(now, slot.as_ref().ok().copied(), &request)?;
        }
        let Request { stream_id, command, issued_by, .. } = request;
        let by = (Action::of(&command), issued_by.unwrap_or_default());
        let slot = match (slot, command) {
            (Err(_), Command::Start(config)) => self.create(now, stream_id, config, outbox)?,
            (Err(not_found), _) => return Err(not_found),
            (Ok(slot), Command::Remove) => return Ok(Accepted::State(self.remove_stream(now, slot, false, outbox))),
            (Ok(slot), command) => {
                let (spare, moment) = (self.spare(), Moment { now, clock: self.clock });
                let from_ms = self.streams.get(slot).show.position_ms(now);
                self.reconsider_stream(slot, |stream| stream.command(moment, command, spare, outbox))?;
                outbox.came_from(from_ms);
                slot
            }
        };
        self.note_changes(Some(by), outbox);
        Ok(Accepted::State(self.streams.get(slot).state(now, Cause::Command)))
    }

    /// Refuses a command that expects another stream than there is.
    fn check_conditions(&self, now: Tick, slot: Option<u32>, request: &Request<'_>) -> Result<(), Rejection> {
        let show = slot.map(|slot| &self.streams.get(slot).show);
        let (revision, epoch) = show.map_or((0, 0), |show| (show.revision, show.epoch));
        let conflict = |mismatch| Err(Rejection::Conflict { mismatch, revision });
        if let Some(expected) = request.expected_revision.filter(|expected| *expected != revision) {
            return conflict(Mismatch::Revision { expected, actual: revision });
        }
        if let Some(expected) = request.expected_epoch.filter(|expected| *expected != epoch) {
            return conflict(Mismatch::Epoch { expected, actual: epoch });
        }
        let Some(expected) = request.expected_scene else { return Ok(()) };
        let present = show.and_then(|show| Some((&show.pass, show.present(show.head(now))?.scene)));
        if present.map_or(expected.is_empty(), |(pass, scene)| pass.is_named(scene, expected)) {
            return Ok(());
        }
        let actual = present.map_or(String::new(), |(pass, scene)| pass.name(scene).to_owned());
        conflict(Mismatch::Scene { expected: expected.to_owned(), actual })
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
        if self.counts.streams >= self.quota.streams.min(limit) || self.streams.0.len() as u64 >= MAX_SLOTS {
            return Err(Rejection::Exhausted { what: "streams", limit });
        }
        check_instant(config.starts_at_ms(), self.clock.at(now))?;
        self.spare().check(0, stream_id.as_str().len() + config.bytes())?;
        // Microseconds, so that an epoch outgrows those of an earlier process and of a stream removed just now.
        self.last_epoch = (self.last_epoch + 1).max(now.0.saturating_mul(1_000));
        let slot = self.add_stream(Show::new(stream_id, config, now, self.last_epoch));
        let clock = self.clock;
        self.with_stream(slot, |stream| stream.created(now, clock, outbox));
        Ok(slot)
    }

    /// How much more may be kept for streams.
    fn spare(&self) -> Spare {
        let limit = self.settings.limits.max_config_bytes;
        Spare { bytes: self.quota.config_bytes.min(limit).saturating_sub(self.counts.config_bytes), limit }
    }

    // --- followers -----------------------------------------------------------------------------------------------

    /// Refuses a filter for which there is no room.
    fn check_filter(&self, slot: u32, filter: &Filter) -> Result<(), Rejection> {
        let Limits { max_filters, max_filter_bytes, .. } = self.settings.limits;
        let (filters, bytes) = (self.quota.filters.min(max_filters), self.quota.filter_bytes.min(max_filter_bytes));
        let room = Room {
            filters: (filters.saturating_sub(self.followers.len() as u64), max_filters),
            bytes: (bytes.saturating_sub(self.followers.bytes()), max_filter_bytes),
        };
        self.followers.check_room(slot, filter, room)
    }

    /// Follows a filter for which there is room, of a stream that is at `now`.
    fn follow(&mut self, now: Tick, slot: u32, filter: Filter, joined: Option<Joined>) -> Accepted {
        let lease_ms = self.settings.stale_after_ms;
        let state = self.streams.get(slot).state(now, Cause::Snapshot);
        let token = self.followers.follow(filter, &state, now.after(lease_ms));
        Accepted::Following { token, lease_ms, joined, state }
    }

    // --- streams -------------------------------------------------------------------------------------------------

    fn find_stream(&self, stream_id: StreamId<'_>) -> Result<u32, Rejection> {
        self.find_by_name(stream_id.as_str()).ok_or_else(|| Rejection::StreamNotFound(stream_id.as_str().to_owned()))
    }

    fn find_by_name(&self, id: &str) -> Option<u32> {
        self.by_id.find(self.hash_of(id), |slot| *self.streams.get(slot).show.id == *id)
    }

    fn add_stream(&mut self, show: Show) -> u32 {
        let hash = self.hash_of(&show.id);
        let entry = self.streams.0.vacant_entry();
        let slot = entry.key() as u32;
        let min_scene_interval_ms = u32::try_from(self.settings.limits.min_tick_interval_ms).unwrap_or(u32::MAX);
        let stream = entry.insert(Stream::new(show, slot, min_scene_interval_ms));
        self.counts += stream.counts();
        self.waiting.change(slot, None, stream.show.waits_until());
        self.requests.note_presence(&stream.show.id, true);
        self.by_id.insert(hash, slot);
        slot
    }

    /// [`Engine::find_stream`], at the hint first.
    fn find_stream_at(&self, stream_id: StreamId<'_>, hint: Hint) -> Result<u32, Rejection> {
        match self.streams.0.get(hint.stream as usize) {
            Some(stream) if *stream.show.id == *stream_id.as_str() && !stream.is_removed() => Ok(hint.stream),
            _ => self.find_stream(stream_id),
        }
    }

    fn hash_of(&self, stream_id: &str) -> u64 {
        self.hasher.hash_one(stream_id)
    }

    /// Finds a stream and brings it to `now`, so that no input meets one whose time has not come yet, or is over.
    fn wake_by_id(&mut self, now: Tick, stream_id: StreamId<'_>, outbox: &mut Outbox) -> Result<u32, Rejection> {
        let slot = self.find_stream(stream_id)?;
        self.wake(now, slot, outbox);
        if self.streams.get(slot).is_removed() {
            return Err(Rejection::StreamNotFound(stream_id.as_str().to_owned()));
        }
        Ok(slot)
    }

    /// [`Engine::wake`], if there is anything to do: enough where the stream's state is not looked at.
    fn wake_if_due(&mut self, now: Tick, slot: u32, outbox: &mut Outbox) {
        let stream = self.streams.get(slot);
        if stream.due <= now || stream.show.begins(now, self.clock).is_some() {
            self.wake(now, slot, outbox);
        }
    }

    /// Brings a stream to `now`, which may be its end.
    fn wake(&mut self, now: Tick, slot: u32, outbox: &mut Outbox) {
        if self.streams.get(slot).is_removed() {
            return;
        }
        let clock = self.clock;
        if !self.with_stream(slot, |stream| stream.wake(now, clock, outbox)) {
            self.remove_stream(now, slot, true, outbox);
        }
        self.note_changes(None, outbox);
    }

    /// Lets time or the audience do something to a stream, counts what it changed, and arms its timer for what is due
    /// next. What the stream keeps is another then only if an adjusted pass has ended, so it is not measured otherwise:
    /// thousands of streams are woken each tick.
    fn with_stream<T>(&mut self, slot: u32, act: impl FnOnce(&mut Stream) -> T) -> T {
        let show = &self.streams.get(slot).show;
        if show.is_adjusted() {
            return self.reconsider_stream(slot, act);
        }
        let kept = cfg!(debug_assertions).then(|| show.bytes());
        let result = self.act_on_stream(slot, act);
        if let Some(kept) = kept {
            assert_eq!(kept, self.streams.get(slot).show.bytes(), "what the stream keeps");
        }
        result
    }

    /// [`Engine::with_stream`] for what may give it something else to keep.
    fn reconsider_stream<T>(&mut self, slot: u32, act: impl FnOnce(&mut Stream) -> T) -> T {
        let before = self.streams.get(slot).config_bytes();
        let result = self.act_on_stream(slot, act);
        self.counts.config_bytes = self.counts.config_bytes + self.streams.get(slot).config_bytes() - before;
        result
    }

    fn act_on_stream<T>(&mut self, slot: u32, act: impl FnOnce(&mut Stream) -> T) -> T {
        let stream = self.streams.get_mut(slot);
        let (before, waited) = (stream.head_counts(), stream.show.waits_until());
        let result = act(stream);
        self.counts += stream.head_counts();
        self.counts -= before;
        self.waiting.change(slot, waited, stream.show.waits_until());
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
        let last = self.reconsider_stream(slot, |stream| {
            stream.remove(now, idle, outbox);
            stream.state(now, Cause::Lifecycle)
        });
        let hash = self.hash_of(&last.stream_id);
        self.by_id.remove(hash, slot);
        self.requests.note_presence(&last.stream_id, false);
        self.history.forget(slot);
        self.removed.push_back(slot);
        last
    }

    /// Frees the records of subscribers whose stream is gone, and then its slot.
    fn reap(&mut self, looks: &mut usize) {
        while let Some(stream) = self.removed.front().copied() {
            let head = &mut self.streams.get_mut(stream).members.head;
            while *head != NONE {
                let Some(left) = looks.checked_sub(1) else { return };
                *looks = left;
                self.subscribers.remove(*head, head);
            }
            self.streams.0.remove(stream as usize);
            self.removed.pop_front();
        }
    }
}
