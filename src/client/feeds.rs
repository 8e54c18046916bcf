//! The feeds that a client reads: one subscription for each partition of which somebody follows a stream.
//!
//! A feed is there from its first follower to its last, with a reader as a task of its own. The reader decodes each
//! update once, if somebody follows its stream, and waits for nobody: what a follower has not taken yet is bounded, and
//! what is newer takes the place of what is older, since each update is the full state. Which updates are old news is
//! not known here: that is for whoever [reads](super::UpdateStream).

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use prost::Message as _;
use tokio::{sync::watch, task::AbortHandle};

use super::{ClientError, core::subscribe};
use crate::{
    transport::Transport,
    wire::{StreamId, feed, proto::StateUpdate, subject},
};

/// How many updates wait for one follower: some seconds of a stream that ticks as fast as it may, and a few dozen KB.
const MAX_WAITING: usize = 256;

/// All feeds that are read.
#[derive(Debug, Default)]
pub(super) struct Feeds {
    read: Mutex<HashMap<u8, Arc<Feed>>>,
}

/// The feed of one partition.
#[derive(Debug)]
struct Feed {
    partition: u8,
    /// What became of subscribing.
    opened: watch::Sender<Option<Result<(), ClientError>>>,
    /// By stream; no list is empty. Lock it behind [`Feeds::read`] when both are needed.
    followers: Mutex<HashMap<Box<str>, Vec<Arc<Waiting>>>>,
    reader: OnceLock<AbortHandle>,
}

/// The updates of one stream, out of a feed. Dropping it ends it, and the last of a feed ends the subscription.
pub(super) struct Follower {
    feeds: Arc<Feeds>,
    feed: Arc<Feed>,
    stream_id: Box<str>,
    waiting: Arc<Waiting>,
}

impl Feeds {
    /// Follows a stream. When it returns, whatever is published from now on will come.
    pub(super) async fn follow(
        self: &Arc<Self>,
        stream_id: StreamId<'_>,
        transport: &Arc<dyn Transport>,
        timeout: Duration,
    ) -> Result<Follower, ClientError> {
        let follower = self.join(stream_id);
        follower.feed.open_once(self, transport, timeout);
        let mut opened = follower.feed.opened.subscribe();
        // The feed cannot be gone while it has a follower, and its reader says how it went, however it ends.
        match opened.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Err(error))) => Err(error.clone()),
            _ => Ok(follower),
        }
    }

    fn join(self: &Arc<Self>, stream_id: StreamId<'_>) -> Follower {
        let waiting = Arc::new(Waiting::default());
        let partition = stream_id.partition();
        let mut read = self.read();
        let feed = Arc::clone(read.entry(partition).or_insert_with(|| Feed::new(partition)));
        feed.followers().entry(stream_id.as_str().into()).or_default().push(Arc::clone(&waiting));
        drop(read);
        Follower { feeds: Arc::clone(self), feed, stream_id: stream_id.as_str().into(), waiting }
    }

    fn leave(&self, feed: &Arc<Feed>, stream_id: &str, waiting: &Arc<Waiting>) {
        let mut read = self.read();
        let mut followers = feed.followers();
        if let Some(of_stream) = followers.get_mut(stream_id) {
            of_stream.retain(|other| !Arc::ptr_eq(other, waiting));
            if of_stream.is_empty() {
                followers.remove(stream_id);
            }
        }
        let last = followers.is_empty();
        drop(followers);
        if last {
            remove(&mut read, feed);
            drop(read);
            feed.close();
        }
    }

    /// A reader has ended: its followers hear of it, and whoever comes next begins anew.
    fn end(&self, feed: &Arc<Feed>) {
        let mut read = self.read();
        remove(&mut read, feed);
        feed.followers().values().flatten().for_each(|waiting| waiting.end());
        feed.open(Err(ClientError::closed()));
    }

    fn read(&self) -> MutexGuard<'_, HashMap<u8, Arc<Feed>>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes this feed, and not one that has taken its place.
fn remove(read: &mut HashMap<u8, Arc<Feed>>, feed: &Arc<Feed>) {
    if read.get(&feed.partition).is_some_and(|other| Arc::ptr_eq(other, feed)) {
        read.remove(&feed.partition);
    }
}

impl Feed {
    fn new(partition: u8) -> Arc<Self> {
        Arc::new(Self {
            partition,
            opened: watch::Sender::new(None),
            followers: Mutex::default(),
            reader: OnceLock::new(),
        })
    }

    /// Starts the reader, unless another follower has. Without a lock that the reader needs at its end: a runtime that is
    /// shutting down ends it here.
    fn open_once(self: &Arc<Self>, feeds: &Arc<Feeds>, transport: &Arc<dyn Transport>, timeout: Duration) {
        self.reader.get_or_init(|| {
            let reader = Reader { feeds: Arc::clone(feeds), feed: Arc::clone(self) };
            tokio::spawn(reader.run(Arc::clone(transport), timeout)).abort_handle()
        });
    }

    /// Unsubscribes.
    fn close(&self) {
        if let Some(reader) = self.reader.get() {
            reader.abort();
        }
    }

    /// Says what became of subscribing, if nobody has said it before.
    fn open(&self, result: Result<(), ClientError>) {
        self.opened.send_if_modified(|opened| {
            let first = opened.is_none();
            opened.get_or_insert(result);
            first
        });
    }

    /// Gives each update of a message to those who follow its stream.
    fn hand_out(&self, message: Bytes) {
        let updates = match feed::updates(message) {
            Ok(updates) => updates,
            Err(error) => return self.skip(&error),
        };
        let followers = self.followers();
        let mut not_followed = 0;
        for update in updates {
            match hand_over(update, &followers) {
                Ok(is_followed) => not_followed += u64::from(!is_followed),
                Err(error) => self.skip(&error),
            }
        }
        drop(followers);
        if not_followed > 0 {
            count_skipped("not_followed", not_followed);
        }
    }

    fn skip(&self, reason: &prost::DecodeError) {
        count_skipped("undecodable", 1);
        tracing::debug!(partition = self.partition, %reason, "skipped a feed's message, or an update in it");
    }

    fn followers(&self) -> MutexGuard<'_, HashMap<Box<str>, Vec<Arc<Waiting>>>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says whether anybody follows the update's stream. If not, that is all that was decoded.
fn hand_over(update: Bytes, followers: &HashMap<Box<str>, Vec<Arc<Waiting>>>) -> Result<bool, prost::DecodeError> {
    let stream_id = feed::stream_id(update.clone())?;
    // What is no text is no id, and nobody follows it.
    let of_stream = std::str::from_utf8(&stream_id).ok().and_then(|stream_id| followers.get(stream_id));
    let Some(of_stream) = of_stream else { return Ok(false) };
    let update = Arc::new(StateUpdate::decode(update)?);
    of_stream.iter().for_each(|waiting| waiting.push(Arc::clone(&update)));
    Ok(true)
}

fn count_skipped(reason: &'static str, updates: u64) {
    metrics::counter!("client_updates_skipped_total", "reason" => reason).increment(updates);
}

/// The task that reads a feed. However it ends, its followers hear of it.
struct Reader {
    feeds: Arc<Feeds>,
    feed: Arc<Feed>,
}

impl Reader {
    /// Lets go of the transport once it has subscribed: followers do not keep it open.
    async fn run(self, transport: Arc<dyn Transport>, timeout: Duration) {
        let subscribed = subscribe(&*transport, subject::feed(self.feed.partition).as_str(), timeout).await;
        drop(transport);
        match subscribed {
            Ok(mut subscription) => {
                self.feed.open(Ok(()));
                while let Some(message) = subscription.next().await {
                    self.feed.hand_out(message.payload);
                }
            }
            Err(error) => self.feed.open(Err(error)),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.feeds.end(&self.feed);
    }
}

/// What a follower has not taken yet.
#[derive(Debug, Default)]
struct Waiting {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// At most [`MAX_WAITING`].
    updates: VecDeque<Arc<StateUpdate>>,
    ended: bool,
    waker: Option<Waker>,
}

impl Waiting {
    fn push(&self, update: Arc<StateUpdate>) {
        let mut state = self.state();
        let skipped = state.make_room();
        state.updates.push_back(update);
        state.wake();
        drop(state);
        if skipped > 0 {
            count_skipped("slow_reader", skipped as u64);
        }
    }

    /// Nothing comes any more.
    fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.wake();
    }

    fn poll_next(&self, context: &Context<'_>) -> Poll<Option<Arc<StateUpdate>>> {
        let mut state = self.state();
        match state.updates.pop_front() {
            Some(update) => Poll::Ready(Some(update)),
            None if state.ended => Poll::Ready(None),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Drops the ticks and snapshots when it is full, and the oldest change if that is not enough; says how many went.
    fn make_room(&mut self) -> usize {
        let before = self.updates.len();
        if before == MAX_WAITING {
            self.updates.retain(|update| !update.is_replaceable());
            if self.updates.len() == MAX_WAITING {
                self.updates.pop_front();
            }
        }
        before - self.updates.len()
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Stream for Follower {
    type Item = Arc<StateUpdate>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.waiting.poll_next(context)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.feeds.leave(&self.feed, &self.stream_id, &self.waiting);
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Follower").field("stream_id", &self.stream_id).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "feeds_tests.rs"]
mod tests;
