//! The subscriptions that are held, and what became of each at the server.
//!
//! The client's own subscription goes when the server refuses it, and another takes its place when it is allowed again:
//! whoever holds a [`NatsSubscription`] reads on. Which are to be made next is decided here; [`upkeep`](super::upkeep)
//! makes them.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use async_nats::Subscriber;
use futures_util::{FutureExt as _, Stream, future::BoxFuture};
use tokio::sync::{Notify, oneshot, watch};

use super::source::Source;
use crate::transport::{Denial, Denied, Incoming, Message, Operation, Subject, TransportError};

/// How many subscriptions are made at once, with one round trip behind them: fewer than the client's queue of events has
/// places, so that no refusal is missed.
pub(super) const BATCH: usize = 64;

/// The first and the longest pause before refused subscriptions are tried again; each is twice the one before.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// When refusals may have been missed, all subscriptions are made again, but not more often than that; and each time half as
/// often as before while none of them turns out to be refused. For where messages are refused in crowds, whoever has them
/// refused should not have subscriptions made again all the time: what is on its way just then may be lost.
const SHORTEST_REMAKE: Duration = Duration::from_secs(10);
const LONGEST_REMAKE: Duration = Duration::from_secs(600);

/// One subscription that somebody holds, or waits for.
pub(super) struct Entry {
    /// Grows from one to the next.
    number: u64,
    pub(super) pattern: String,
    pub(super) queue: Option<String>,
    pub(super) source: Source,
    denied: watch::Sender<Option<Denial>>,
    /// With which words the server has refused it in the attempt under way.
    refusal: Mutex<Option<String>>,
    /// Whether it is the one that all answers come to.
    pub(super) is_inbox: bool,
}

impl Entry {
    fn denial(&self, reason: &str) -> Denial {
        Denial { operation: Operation::Subscribe, subject: self.pattern.clone(), reason: reason.to_owned() }
    }

    fn is_denied(&self) -> bool {
        self.denied.borrow().is_some()
    }

    /// How the server has refused it in the attempt under way.
    pub(super) fn refusal(&self) -> Option<Denial> {
        unpoisoned(&self.refusal).as_deref().map(|reason| self.denial(reason))
    }
}

/// Why a subscription is made.
pub(super) enum Wish {
    /// Somebody has asked for it and waits for the outcome.
    New(oneshot::Sender<Result<(), TransportError>>),
    /// It was refused.
    Retry,
    /// Its refusal may have been missed.
    Remake,
}

/// What the client has made: nothing, when it is installed already.
pub(super) type Made = Result<Option<Subscriber>, TransportError>;

/// A subscription to make.
pub(super) struct Task {
    pub(super) entry: Arc<Entry>,
    pub(super) wish: Wish,
}

/// See the module.
pub(super) struct Subscriptions {
    denied: Arc<watch::Sender<Denied>>,
    state: Mutex<State>,
    /// There may be something to make.
    pub(super) work: Notify,
}

struct State {
    next_number: u64,
    /// Invariant: no list is empty.
    by_pattern: HashMap<String, Vec<Arc<Entry>>>,
    new: VecDeque<Task>,
    remake: VecDeque<Task>,
    /// Refused, the next one to try in front.
    retry: VecDeque<Arc<Entry>>,
    retry_at: Instant,
    pause: Duration,
    /// How many of [`State::retry`] to try without a pause, whatever becomes of them.
    eager: usize,
    unnamed: Unnamed,
    /// How many of [`State::unnamed`] are dealt with.
    unnamed_seen: u64,
    /// Refusals may have been missed.
    missed: bool,
    /// When all may be made again; at any time if nothing is said.
    remake_at: Option<Instant>,
    remake_pause: Duration,
}

/// Refusals that did not say of what.
#[derive(Clone, Default)]
pub(super) struct Unnamed {
    pub(super) count: u64,
    /// The last one's words.
    reason: String,
}

impl Subscriptions {
    /// Without any. What is refused is told in `denied`.
    pub(super) fn new(denied: Arc<watch::Sender<Denied>>) -> Self {
        let state = State {
            next_number: 0,
            by_pattern: HashMap::new(),
            new: VecDeque::new(),
            remake: VecDeque::new(),
            retry: VecDeque::new(),
            retry_at: Instant::now(),
            pause: SHORTEST_PAUSE,
            eager: 0,
            unnamed: Unnamed::default(),
            unnamed_seen: 0,
            missed: false,
            remake_at: None,
            remake_pause: SHORTEST_REMAKE,
        };
        Self { denied, state: Mutex::new(state), work: Notify::new() }
    }

    /// Takes up a subscription that is not made yet. Dropping what is returned takes it from here and from the server.
    pub(super) fn enter(
        self: &Arc<Self>,
        pattern: &str,
        queue: Option<&str>,
        source: Source,
        cut: BoxFuture<'static, ()>,
    ) -> NatsSubscription {
        self.enter_as(pattern, queue, source, cut, false)
    }

    /// The same for the inbox of the transport, which goes before all others.
    pub(super) fn enter_inbox(
        self: &Arc<Self>,
        pattern: &str,
        source: Source,
        cut: BoxFuture<'static, ()>,
    ) -> NatsSubscription {
        self.enter_as(pattern, None, source, cut, true)
    }

    fn enter_as(
        self: &Arc<Self>,
        pattern: &str,
        queue: Option<&str>,
        source: Source,
        cut: BoxFuture<'static, ()>,
        is_inbox: bool,
    ) -> NatsSubscription {
        let mut state = self.lock();
        state.next_number += 1;
        let entry = Arc::new(Entry {
            number: state.next_number,
            pattern: pattern.to_owned(),
            queue: queue.map(str::to_owned),
            source,
            denied: watch::Sender::new(None),
            refusal: Mutex::default(),
            is_inbox,
        });
        state.by_pattern.entry(pattern.to_owned()).or_default().push(Arc::clone(&entry));
        drop(state);
        NatsSubscription { entry, subscriptions: Arc::clone(self), last: Subject::from_static(""), cut }
    }

    /// Asks for a subscription to be made. What is received is the outcome; nothing, when nobody makes any more.
    pub(super) fn ask_for(&self, entry: &Arc<Entry>) -> oneshot::Receiver<Result<(), TransportError>> {
        let (asker, outcome) = oneshot::channel();
        self.lock().new.push_back(Task { entry: Arc::clone(entry), wish: Wish::New(asker) });
        self.work.notify_one();
        outcome
    }

    /// How many are held or being made.
    pub(super) fn len(&self) -> usize {
        self.lock().by_pattern.values().map(Vec::len).sum()
    }

    /// The server has refused `pattern`, or has taken it away.
    pub(super) fn refuse(&self, pattern: &str, queue: Option<&str>, reason: &str) {
        let mut state = self.lock();
        state.remake_pause = SHORTEST_REMAKE;
        let all = state.by_pattern.get(pattern).map(Vec::as_slice).unwrap_or_default();
        let meant = all.iter().filter(|entry| queue.is_none() || entry.queue.as_deref() == queue).cloned();
        for entry in meant.collect::<Vec<_>>() {
            *unpoisoned(&entry.refusal) = Some(reason.to_owned());
            if entry.source.is_live() {
                self.deny(&mut state, entry, reason);
            }
        }
    }

    /// The server has refused a subscription and did not say which.
    pub(super) fn refuse_one(&self, reason: &str) {
        let mut state = self.lock();
        state.remake_pause = SHORTEST_REMAKE;
        state.unnamed.count += 1;
        reason.clone_into(&mut state.unnamed.reason);
        drop(state);
        self.work.notify_one();
    }

    /// There were more refusals at once than could be received.
    pub(super) fn may_have_missed(&self) {
        self.lock().missed = true;
        self.work.notify_one();
    }

    /// Nothing comes to the inbox: it is made again.
    pub(super) fn remake_inbox(&self) {
        let mut state = self.lock();
        let inbox = state.by_pattern.values().flatten().find(|entry| entry.is_inbox && !entry.is_denied()).cloned();
        state.remake.extend(inbox.map(|entry| Task { entry, wish: Wish::Remake }));
    }

    /// There is a new connection, with permissions of its own: all that is refused is tried at once.
    pub(super) fn reconnected(&self, now: Instant) {
        let mut state = self.lock();
        state.eager = state.retry.len();
        (state.retry_at, state.pause) = (now, SHORTEST_PAUSE);
        (state.remake_at, state.remake_pause) = (None, SHORTEST_REMAKE);
    }

    /// What to make now, at most [`BATCH`].
    pub(super) fn next_batch(&self, now: Instant) -> Vec<Task> {
        let mut state = self.lock();
        state.plan_remake(now);
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && let Some(task) = state.new.pop_front().or_else(|| state.remake.pop_front())
        {
            let is_asked_for = match &task.wish {
                Wish::New(asker) => !asker.is_closed(),
                Wish::Retry | Wish::Remake => true,
            };
            if is_asked_for && !task.entry.source.is_ended() {
                batch.push(task);
            }
        }
        if now >= state.retry_at {
            let tries = state.retry.len().min(BATCH - batch.len());
            state.eager = state.eager.saturating_sub(tries);
            let refused = state.retry.drain(..tries).filter(|entry| entry.is_denied());
            batch.extend(refused.map(|entry| Task { entry, wish: Wish::Retry }));
        }
        for task in &batch {
            *unpoisoned(&task.entry.refusal) = None;
        }
        batch
    }

    /// The refusals so far that did not say of what.
    pub(super) fn unnamed(&self) -> Unnamed {
        self.lock().unnamed.clone()
    }

    /// When something is to be made again, unless [`Subscriptions::work`] comes before.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let state = self.lock();
        let retry = (!state.retry.is_empty()).then_some(state.retry_at);
        let remake = state.remake_at.filter(|_| state.wants_remake());
        retry.into_iter().chain(remake).min()
    }

    /// Notes what became of a batch, of which each subscription was handed to the server or failed before. Of the refusals
    /// that did not say of what, `unnamed` came meanwhile: a server takes subscriptions in their order until it takes no
    /// more, so they are about the last ones.
    ///
    /// Returns how many are accepted that were refused before.
    pub(super) fn conclude(&self, batch: Vec<(Task, Made)>, unnamed: u64, now: Instant) -> usize {
        let is_open = |task: &Task| unpoisoned(&task.entry.refusal).is_none();
        let open = batch.iter().filter(|(task, made)| made.is_ok() && is_open(task)).count();
        // What is too much for it is about others.
        let unnamed = unnamed.min(open as u64);
        let mut room = open - usize::try_from(unnamed).unwrap_or(open);
        let mut state = self.lock();
        state.unnamed_seen += unnamed;
        let too_many = state.unnamed.reason.clone();
        let (mut tried, mut recovered) = (false, 0);
        for (task, made) in batch {
            tried |= matches!(task.wish, Wish::Retry);
            let refusal = unpoisoned(&task.entry.refusal).clone();
            match (made, refusal) {
                (Ok(subscriber), None) if room > 0 => {
                    room -= 1;
                    recovered += usize::from(self.accept(&state, task, subscriber));
                }
                (Ok(_), refusal) => self.turn_down(&mut state, task, refusal.as_ref().unwrap_or(&too_many)),
                (Err(error), _) => Self::put_off(&mut state, task, error),
            }
        }
        if recovered > 0 {
            state.pause = SHORTEST_PAUSE;
        } else if tried && state.eager == 0 {
            state.retry_at = now + state.pause;
            state.pause = (2 * state.pause).min(LONGEST_PAUSE);
        }
        recovered
    }

    /// True if it was refused before.
    fn accept(&self, state: &State, task: Task, subscriber: Option<Subscriber>) -> bool {
        let Task { entry, wish } = task;
        if let Some(subscriber) = subscriber {
            entry.source.install(subscriber);
        }
        if let Wish::New(asker) = wish {
            // Whoever has stopped waiting has dropped the subscription, too.
            let _ = asker.send(Ok(()));
        }
        let was_denied = entry.is_denied();
        if was_denied {
            self.set_denied(state, &entry, None);
        }
        was_denied
    }

    fn turn_down(&self, state: &mut State, task: Task, reason: &str) {
        let Task { entry, wish } = task;
        match wish {
            Wish::New(asker) => _ = asker.send(Err(TransportError::Denied(entry.denial(reason)))),
            // If it was named meanwhile, it has been denied already.
            Wish::Remake if entry.is_denied() => {}
            Wish::Remake | Wish::Retry => self.deny(state, entry, reason),
        }
    }

    /// Nobody knows what the server would have said.
    fn put_off(state: &mut State, task: Task, error: TransportError) {
        let Task { entry, wish } = task;
        match wish {
            Wish::New(asker) => _ = asker.send(Err(error)),
            Wish::Retry => {
                // The inbox alone has been installed by now.
                entry.source.give_up();
                state.retry_later(entry);
            }
            Wish::Remake => state.remake.push_back(Task { entry, wish: Wish::Remake }),
        }
    }

    /// Notes that a subscription which is held is refused.
    fn deny(&self, state: &mut State, entry: Arc<Entry>, reason: &str) {
        if entry.source.is_ended() {
            return;
        }
        entry.source.give_up();
        self.set_denied(state, &entry, Some(entry.denial(reason)));
        if state.retry.is_empty() {
            (state.retry_at, state.pause) = (Instant::now() + SHORTEST_PAUSE, 2 * SHORTEST_PAUSE);
        }
        state.retry_later(entry);
        self.work.notify_one();
    }

    /// Tells all of the transport and the reader of `entry`, in this order: who hears of it there finds it here.
    fn set_denied(&self, state: &State, entry: &Entry, denial: Option<Denial>) {
        self.denied.send_if_modified(|denied| {
            if entry.is_inbox {
                let is_other = denied.inbox != denial;
                denied.inbox.clone_from(&denial);
                return is_other;
            }
            if let Some(Denial { subject, reason, .. }) = denial.clone() {
                return denied.subscribe.insert(subject, reason.clone()).is_none_or(|before| before != reason);
            }
            let others = state.by_pattern.get(&entry.pattern).map(Vec::as_slice).unwrap_or_default();
            let is_other = |other: &Entry| other.number != entry.number && other.is_denied();
            !others.iter().any(|other| is_other(other)) && denied.subscribe.remove(&entry.pattern).is_some()
        });
        entry.denied.send_replace(denial);
    }

    /// Is about this subscription no more.
    fn leave(&self, entry: &Arc<Entry>) {
        let mut state = self.lock();
        if let Some(all) = state.by_pattern.get_mut(&entry.pattern) {
            all.retain(|other| !Arc::ptr_eq(other, entry));
            if all.is_empty() {
                state.by_pattern.remove(&entry.pattern);
            }
        }
        if entry.is_denied() {
            state.retry.retain(|other| !Arc::ptr_eq(other, entry));
            self.set_denied(&state, entry, None);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        unpoisoned(&self.state)
    }
}

impl State {
    fn wants_remake(&self) -> bool {
        self.missed || self.unnamed.count != self.unnamed_seen
    }

    /// Tries this one again in its turn.
    fn retry_later(&mut self, entry: Arc<Entry>) {
        if !self.retry.iter().any(|other| Arc::ptr_eq(other, &entry)) {
            self.retry.push_back(entry);
        }
    }

    /// Makes all subscriptions again if it is not known which of them the server has.
    ///
    /// When there are more than it takes, they are given up first, and made in their order, so that the oldest stay.
    /// Otherwise each new one is there before the old one goes: what comes just then may be read twice, or, in a queue
    /// group, out of order, and what is on its way to the old one when it goes is lost.
    fn plan_remake(&mut self, now: Instant) {
        if !self.wants_remake() || self.remake_at.is_some_and(|at| now < at) {
            return;
        }
        let too_many = self.unnamed.count != self.unnamed_seen;
        (self.missed, self.unnamed_seen, self.remake_at) = (false, self.unnamed.count, Some(now + self.remake_pause));
        self.remake_pause = (2 * self.remake_pause).min(LONGEST_REMAKE);
        let mut live: Vec<Arc<Entry>> =
            self.by_pattern.values().flatten().filter(|entry| entry.source.is_live()).cloned().collect();
        live.sort_by_key(|entry| (!entry.is_inbox, entry.number));
        if too_many {
            live.iter().for_each(|entry| entry.source.give_up());
        } else {
            // Answers are on their way to it, and whether it is there shows in the round trip behind the others.
            live.retain(|entry| !entry.is_inbox);
        }
        self.remake.extend(live.into_iter().map(|entry| Task { entry, wish: Wish::Remake }));
    }
}

/// What each critical section leaves can be gone on with.
fn unpoisoned<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a reader holds. It outlives refusals, and ends with the transport even when the client cannot end it.
pub(super) struct NatsSubscription {
    pub(super) entry: Arc<Entry>,
    subscriptions: Arc<Subscriptions>,
    /// The subject of the last message: mostly the next one's, too.
    last: Subject,
    cut: BoxFuture<'static, ()>,
}

impl NatsSubscription {
    /// The next message as the client has it.
    pub(super) fn poll_raw(&mut self, context: &mut Context<'_>) -> Poll<Option<async_nats::Message>> {
        if let Poll::Ready(received) = self.entry.source.poll(context) {
            return Poll::Ready(received);
        }
        self.cut.poll_unpin(context).map(|()| None)
    }
}

impl Stream for NatsSubscription {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        self.poll_raw(context).map(|received| {
            let async_nats::Message { subject, reply, payload, .. } = received?;
            if *self.last != *subject {
                self.last = Subject::from(&*subject);
            }
            let reply = reply.map(|reply| Subject::from(&*reply));
            Some(Message { subject: self.last.clone(), payload, reply })
        })
    }
}

/// What the client has received, in types of our own.
pub(super) fn message(received: async_nats::Message) -> Message {
    let text = |subject: async_nats::Subject| Subject::from(&*subject);
    Message { subject: text(received.subject), payload: received.payload, reply: received.reply.map(text) }
}

impl Incoming for NatsSubscription {
    fn stop(self: Pin<&mut Self>) -> BoxFuture<'_, Result<(), TransportError>> {
        let Self { entry, subscriptions, .. } = self.get_mut();
        subscriptions.leave(entry);
        Box::pin(entry.source.drain())
    }

    fn denied(&self) -> watch::Receiver<Option<Denial>> {
        self.entry.denied.subscribe()
    }
}

impl Drop for NatsSubscription {
    fn drop(&mut self) {
        self.subscriptions.leave(&self.entry);
        self.entry.source.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_nothing_is_missing_subscriptions_are_made_again_seldom() {
        let subscriptions = Subscriptions::new(Arc::default());
        let begun = Instant::now();
        let remakes = |from_s: u64, until_s: u64| {
            let is_remade = |second: &u64| {
                subscriptions.may_have_missed();
                subscriptions.next_batch(begun + Duration::from_secs(*second));
                !subscriptions.lock().missed
            };
            (from_s..until_s).filter(is_remade).collect::<Vec<u64>>()
        };
        assert_eq!(remakes(0, 2_500), [0, 10, 30, 70, 150, 310, 630, 1_230, 1_830, 2_430]);
        subscriptions.refuse("stream.>", None, "as a test asked for");
        assert_eq!(remakes(2_500, 3_100), [3_030, 3_040, 3_060]);
        subscriptions.reconnected(begun);
        assert_eq!(remakes(3_100, 3_120), [3_100, 3_110]);
    }
}
