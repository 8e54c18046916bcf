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
//! | `input`, `answer`, `outbox` | nothing: what the engine is told, what it answers, and what it says to all |
//! | `counts` | nothing: how many there are of everything |
//! | `show` | what a stream is, and where it is at a moment |
//! | `stream` | lifecycle: what time and the audience do to one stream |
//! | `streams` | which stream is which; found, woken, counted and removed |
//! | `commands` | whom a command concerns, whether it may be, and what it does to the stream |
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
//! | this one | which of them an input concerns, and what falls due |

#![allow(clippy::cast_possible_truncation, reason = "slots are below 2^28, which inserting checks")]

use foldhash::fast::FixedState;

mod answer;
mod check;
mod client_id;
mod commands;
mod config;
mod counts;
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
mod streams;
mod subscribers;
pub mod wheel;

pub use crate::timeline::*;
pub use answer::*;
pub use client_id::ClientId;
pub use config::*;
pub use counts::*;
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

use followers::Followers;
use history::History;
use index::Index;
use requests::Requests;
use schedule::Waiting;
use streams::Streams;
use subscribers::{IN_FLIGHT, Lookup, Subscribers};
use wheel::Wheel;

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

impl Engine {
    /// An engine without streams.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            streams: Streams(slab::Slab::new()),
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
        let result = match input {
            Input::Command(request) => self.request(now, request, outbox),
            Input::Register { stream_id, subscriber, answered } => {
                self.register(now, stream_id, subscriber, answered, outbox)
            }
            Input::RegisterBatch { stream_id, subscribers, answered } => {
                self.register_batch(now, stream_id, subscribers, answered, outbox)
            }
            Input::RegisterFollowing { stream_id, subscriber, answered, filter } => {
                self.register_following(now, stream_id, (subscriber, answered), *filter, outbox)
            }
            Input::Follow { stream_id, filter } => self.follow_alone(now, stream_id, filter, outbox),
            Input::Unregister(subscriber) => self.unregister(now, subscriber, hint, outbox),
            Input::Heartbeat(subscriber) => {
                // Most inputs are, so its answer is made here and not moved: else it takes a tenth longer.
                let heard = self.heartbeat(now, subscriber, hint, outbox);
                self.end_call(made, outbox);
                return heard.map(|()| Accepted::Heard);
            }
            Input::HeartbeatBatch(batch) => Ok(self.batch(now, batch, Self::touch, outbox)),
            Input::UnregisterBatch(batch) => Ok(self.batch(now, batch, Self::leave, outbox)),
            Input::GetState(stream_id) => self.get_state(now, stream_id, outbox),
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
                self.extend_deadlines(now.after(ms.min(self.settings.stale_after_ms)));
                Ok(Accepted::Noted)
            }
        };
        self.end_call(made, outbox);
        result
    }

    /// What is done to all that a call has made, from that update on; as a rule it has made nothing.
    #[inline]
    fn end_call(&mut self, made: usize, outbox: &mut Outbox) {
        if outbox.updates.len() > made {
            self.note_changes(None, outbox);
            self.followers.mark(&mut outbox.updates[made..]);
        }
        debug_assert!(outbox.changes.is_empty(), "a change is of an update");
    }

    /// Nobody goes stale before, and no lease ends.
    fn extend_deadlines(&mut self, until: Tick) {
        self.subscribers.extend_deadlines(until);
        self.followers.extend(until);
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
        self.end_call(made, outbox);
    }
}
