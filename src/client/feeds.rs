//! The feeds that a client reads: one subscription for each partition of which somebody follows a stream.
//!
//! A feed is there from its first follower to its last, with a reader as a task of its own ([`shared`](super::shared)).
//! The reader decodes each update once, if somebody follows its stream, and waits for nobody: what a follower has not
//! taken yet is bounded, and what is newer takes the place of what is older, since each update is the full state. Which
//! updates are old news is not known here: that is for whoever [reads](super::UpdateStream).

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;

use super::{
    ClientError,
    core::subscribe,
    shared::{Holder, Shared},
    updates::{Received, denied},
};
use crate::{
    transport::{Subscription, Transport, TransportError},
    wire::{StreamId, feed, proto::StateUpdate, subject},
};

/// How many updates wait for one follower: some seconds of a stream that ticks as fast as it may, and a few dozen KB.
const MAX_WAITING: usize = 256;

/// All feeds that are read, by partition.
#[derive(Debug, Default)]
pub(super) struct Feeds {
    read: Arc<Shared<u8, Feed>>,
}

/// The feed of one partition.
#[derive(Debug)]
struct Feed {
    partition: u8,
    followers: Mutex<Followers>,
}

/// By stream; no list is empty. In order, so that they are woken in the same one in each run.
#[derive(Debug, Default)]
struct Followers {
    by_stream: BTreeMap<Box<str>, Vec<Arc<Waiting>>>,
    /// Why the reader has ended, once it has: whoever comes has an end and nothing before it.
    end: Option<ClientError>,
}

/// The updates of one stream, out of a feed. Dropping it ends it, and the last of a feed ends the subscription.
pub(super) struct Follower {
    feed: Holder<u8, Feed>,
    stream_id: Box<str>,
    waiting: Arc<Waiting>,
}

impl Feeds {
    /// Follows a stream. When it returns, whatever is published from now on will come.
    pub(super) async fn follow(
        &self,
        stream_id: StreamId<'_>,
        transport: &Arc<dyn Transport>,
        timeout: Duration,
    ) -> Result<Follower, ClientError> {
        let partition = stream_id.partition();
        let transport = Arc::clone(transport);
        let feed = self
            .read
            .join(
                partition,
                || Feed::new(partition),
                |feed| async move {
                    let subscription = subscribe(&*transport, subject::feed(partition).as_str(), timeout).await?;
                    // Followers do not keep the transport open.
                    drop(transport);
                    Ok(Reader { feed, subscription, end: ClientError::closed() }.run())
                },
            )
            .await?;
        let (stream_id, waiting) = (Box::from(stream_id.as_str()), Arc::default());
        feed.enter(&stream_id, &waiting);
        Ok(Follower { feed, stream_id, waiting })
    }

    /// How many partitions are read.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.read.len()
    }
}

impl Feed {
    fn new(partition: u8) -> Self {
        Self { partition, followers: Mutex::default() }
    }

    fn enter(&self, stream_id: &str, waiting: &Arc<Waiting>) {
        let mut followers = self.followers();
        if let Some(end) = &followers.end {
            waiting.end(end);
        } else {
            followers.by_stream.entry(stream_id.into()).or_default().push(Arc::clone(waiting));
        }
    }

    fn leave(&self, stream_id: &str, waiting: &Arc<Waiting>) {
        let mut followers = self.followers();
        if let Some(of_stream) = followers.by_stream.get_mut(stream_id) {
            of_stream.retain(|other| !Arc::ptr_eq(other, waiting));
            if of_stream.is_empty() {
                followers.by_stream.remove(stream_id);
            }
        }
    }

    fn end(&self, error: &ClientError) {
        let mut followers = self.followers();
        followers.end = Some(error.clone());
        followers.by_stream.values().flatten().for_each(|waiting| waiting.end(error));
    }

    /// Gives each update of a message to those who follow its stream. Behind so many as half of what a follower may have
    /// waiting, others have their turn: of one long message, who takes what comes misses nothing.
    async fn hand_out(&self, message: Bytes) {
        let updates = match feed::updates(message) {
            Ok(updates) => updates,
            Err(error) => return self.skip(&error),
        };
        for (number, piece) in updates.chunks(MAX_WAITING / 2).enumerate() {
            if number > 0 {
                tokio::task::yield_now().await;
            }
            self.hand_out_piece(piece);
        }
    }

    fn hand_out_piece(&self, updates: &[Bytes]) {
        let followers = self.followers();
        let mut not_followed = 0;
        for update in updates {
            match hand_over(update.clone(), &followers) {
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

    fn followers(&self) -> MutexGuard<'_, Followers> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says whether anybody follows the update's stream. If not, that is all that was decoded.
fn hand_over(update: Bytes, followers: &Followers) -> Result<bool, prost::DecodeError> {
    let stream_id = feed::stream_id(update.clone())?;
    // What is no text is no id, and nobody follows it.
    let of_stream = std::str::from_utf8(&stream_id).ok().and_then(|stream_id| followers.by_stream.get(stream_id));
    let Some(of_stream) = of_stream else { return Ok(false) };
    // A copy: what waits must not keep the whole message.
    let bytes =
        of_stream.iter().any(|waiting| waiting.keeps_bytes.load(Relaxed)).then(|| Bytes::copy_from_slice(&update));
    let received = Arc::new(Received { update: StateUpdate::decode(update)?, bytes });
    of_stream.iter().for_each(|waiting| waiting.push(Arc::clone(&received)));
    Ok(true)
}

fn count_skipped(reason: &'static str, updates: u64) {
    metrics::counter!("client_updates_skipped_total", "reason" => reason).increment(updates);
}

/// Reads a feed. However that ends, its followers hear of it.
struct Reader {
    feed: Arc<Feed>,
    subscription: Subscription,
    /// What its followers are told at the end.
    end: ClientError,
}

impl Reader {
    async fn run(mut self) {
        let denied = denied(&self.subscription);
        tokio::pin!(denied);
        loop {
            tokio::select! {
                biased;
                message = self.subscription.next() => match message {
                    Some(message) => self.feed.hand_out(message.payload).await,
                    None => return,
                },
                denial = &mut denied => {
                    self.end = TransportError::Denied(denial).into();
                    return;
                }
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.feed.end(&self.end);
    }
}

/// What a follower has not taken yet.
#[derive(Debug, Default)]
struct Waiting {
    state: Mutex<State>,
    /// The follower wants the bytes too.
    keeps_bytes: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// At most [`MAX_WAITING`].
    updates: VecDeque<Arc<Received>>,
    end: Option<ClientError>,
    waker: Option<Waker>,
}

impl Waiting {
    fn push(&self, update: Arc<Received>) {
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
    fn end(&self, error: &ClientError) {
        let mut state = self.state();
        state.end = Some(error.clone());
        state.wake();
    }

    fn poll_next(&self, context: &Context<'_>) -> Poll<Result<Arc<Received>, ClientError>> {
        let mut state = self.state();
        match (state.updates.pop_front(), &state.end) {
            (Some(update), _) => Poll::Ready(Ok(update)),
            (None, Some(error)) => Poll::Ready(Err(error.clone())),
            (None, None) => {
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
            self.updates.retain(|new| !new.update.is_replaceable());
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

impl Follower {
    /// The next update, or why none will come any more.
    pub(super) fn poll_next(&self, context: &Context<'_>) -> Poll<Result<Arc<Received>, ClientError>> {
        self.waiting.poll_next(context)
    }

    /// From now on, updates come with their bytes.
    pub(super) fn keep_bytes(&self) {
        self.waiting.keeps_bytes.store(true, Relaxed);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.feed.leave(&self.stream_id, &self.waiting);
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
