//! A stream's updates as they come, without those that are old: from a subject of its own, or out of a feed.
//!
//! The broker delivers at most once and several publishers may exist for a moment while a stream changes owner, so a
//! reader must not take what comes for what is true: it keeps a high-water mark and drops what is not above it. It does
//! not ask for what it missed; each update is the full state, so the next one heals a loss.

use std::{
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture};
use prost::Message as _;
use tokio::time::Instant;

use super::{
    ClientError,
    core::Core,
    feeds::Follower,
    follow::{Followed, News},
    plausible,
};
use crate::{
    transport::{Denial, Subscription, TransportError},
    wire::proto::{Cause, Mode, StateUpdate},
};

/// How often at most an update that says that nobody watches makes a client ask after its viewers.
const UNWATCHED_INTERVAL: Duration = Duration::from_secs(1);

/// Where a client reads updates: what the service's `--publish` says it publishes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UpdatesFrom {
    /// `stream.<stream_id>.updates`: a subject a stream, and the broker sends only what is followed.
    #[default]
    Subjects,
    /// `orchestrator.feed.<partition>`: all streams of a partition in one subscription, many updates in one message.
    Feed,
}

/// The newest (epoch, sequence) seen: what is not above it is old.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HighWaterMark {
    epoch: u64,
    sequence: u64,
}

impl HighWaterMark {
    /// The mark that `update` sets.
    #[must_use]
    pub fn of(update: &StateUpdate) -> Self {
        Self { epoch: update.epoch, sequence: update.sequence }
    }

    /// Raises the mark to `update` and says true, or says false when `update` is not above it.
    pub fn admit(&mut self, update: &StateUpdate) -> bool {
        self.raise(Self::of(update))
    }

    /// Raises the mark to `other` and says true, or says false when `other` is not above it.
    pub fn raise(&mut self, other: Self) -> bool {
        let above = other > *self;
        if above {
            *self = other;
        }
        above
    }
}

/// The updates of one stream, from [`Client::updates`](super::Client::updates) on, or those of them that pass a filter,
/// from [`Client::follow`](super::Client::follow) on. Dropping it unsubscribes.
///
/// It ends when the transport is closed, and when the broker refuses the subscription later than it was made (a permission
/// that was taken back, a limit after an outage): [`UpdateStream::end`] says why. Whoever wants to go on asks for another
/// one, which is refused for as long as the broker does.
#[derive(Debug)]
pub struct UpdateStream {
    source: Source,
    stream_id: String,
    end: Option<ClientError>,
    mark: Option<HighWaterMark>,
    skipped: u64,
    /// When it was last asked after the viewers of a stream that is said to have none.
    asked: Option<Instant>,
    /// Told when the epoch rises. Weak: who only reads does not keep the client.
    core: Weak<Core>,
    now: fn() -> SystemTime,
}

/// An update and what it came as.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    /// The update.
    pub update: StateUpdate,
    /// Its bytes as they were published, with fields in them that this version may not know. From a feed only after
    /// [`UpdateStream::keep_bytes`], and none of what was no message, as a snapshot in an answer.
    pub bytes: Option<Bytes>,
}

impl Received {
    /// As it was published, or where that was not kept, as far as this version knows it.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.bytes.clone().unwrap_or_else(|| self.update.encode_to_vec().into())
    }
}

impl From<StateUpdate> for Received {
    /// One that was no message.
    fn from(update: StateUpdate) -> Self {
        Self { update, bytes: None }
    }
}

#[derive(Debug)]
pub(super) enum Source {
    Subject(Subject),
    Feed(Follower),
    Followed(Box<Followed>),
}

/// A subscription of one's own, and the broker's second thoughts about it.
pub(super) struct Subject {
    subscription: Subscription,
    denied: BoxFuture<'static, Denial>,
}

impl Subject {
    pub(super) fn new(subscription: Subscription) -> Self {
        let denied = denied(&subscription).boxed();
        Self { subscription, denied }
    }

    /// What comes next; an error when the broker refuses the subscription.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, ClientError>>> {
        // What had come before the refusal is still news.
        match self.subscription.poll_next_unpin(context) {
            Poll::Ready(message) => Poll::Ready(message.map(|message| Ok(message.payload))),
            Poll::Pending => {
                let denial = ready!(self.denied.poll_unpin(context));
                // It is not to be asked again; whoever does waits for ever, as for any other message.
                self.denied = std::future::pending().boxed();
                Poll::Ready(Some(Err(TransportError::Denied(denial).into())))
            }
        }
    }
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.subscription.fmt(formatter)
    }
}

/// Resolves when the broker refuses this subscription.
pub(super) fn denied(subscription: &Subscription) -> impl Future<Output = Denial> + Send + use<> {
    let mut denied = subscription.denied();
    async move {
        let denial = denied.wait_for(Option::is_some).await.ok().and_then(|denial| denial.clone());
        match denial {
            Some(denial) => denial,
            // It never is, or the subscription is gone.
            None => std::future::pending().await,
        }
    }
}

impl UpdateStream {
    pub(super) fn new(source: Source, stream_id: String, core: Weak<Core>, now: fn() -> SystemTime) -> Self {
        Self { source, stream_id, end: None, mark: None, skipped: 0, asked: None, core, now }
    }

    /// Why it has ended, once it has.
    #[must_use]
    pub fn end(&self) -> Option<&ClientError> {
        self.end.as_ref()
    }

    /// Takes a snapshot as the high-water mark: updates that it already contains are dropped. True if it is news itself.
    /// One that cannot be true is skipped: its epoch is a day or more ahead of the clock, or its sequence beyond its age.
    pub fn seed(&mut self, snapshot: &StateUpdate) -> bool {
        let before = self.mark.map(|mark| mark.epoch);
        let is_news = self.admit(snapshot);
        if is_news
            && before.is_some_and(|before| snapshot.epoch > before)
            && let (Source::Followed(followed), Some(core)) = (&mut self.source, self.core.upgrade())
        {
            // Whoever plays the stream now has not been asked for the filter.
            followed.ask_soon(&core);
        }
        is_news
    }

    fn admit(&mut self, snapshot: &StateUpdate) -> bool {
        if let Some(why) = plausible::doubt(snapshot, (self.now)()) {
            self.skip("implausible", &why);
            return false;
        }
        let before = self.mark.map(|mark| mark.epoch);
        let is_news = match &mut self.mark {
            Some(mark) => mark.admit(snapshot),
            None => {
                self.mark = Some(HighWaterMark::of(snapshot));
                true
            }
        };
        let has_risen = before.is_none_or(|before| snapshot.epoch > before);
        // What the service says when nobody watches any more. With viewers of our own, it does not know them.
        let is_unwatched = snapshot.mode() == Mode::Idle && snapshot.cause() == Cause::Lifecycle;
        if is_news
            && (has_risen || is_unwatched)
            && let Some(core) = self.core.upgrade()
        {
            core.see(&self.stream_id, snapshot.epoch);
            if is_unwatched && self.may_ask_again() {
                core.see_unwatched(&self.stream_id);
            }
        }
        is_news
    }

    /// The next update, or `None` at the [end](Self::end). Cancel safe.
    pub async fn next(&mut self) -> Option<StateUpdate> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// The next update with its bytes, for whoever passes it on; otherwise like [`UpdateStream::next`].
    pub async fn next_received(&mut self) -> Option<Received> {
        std::future::poll_fn(|context| self.poll_received(context)).await
    }

    /// From now on, updates that come in a feed have their bytes too. On a subject of their own they always do.
    pub fn keep_bytes(&self) {
        if let Source::Feed(follower) = &self.source {
            follower.keep_bytes();
        }
    }

    /// How many messages on the stream's subject were skipped because they do not decode or are another stream's. What
    /// does not decode in a feed is nobody's in particular; the metrics count both.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Anybody can publish that nobody watches, so it is believed once in a while only.
    fn may_ask_again(&mut self) -> bool {
        let may = self.asked.is_none_or(|asked| asked.elapsed() >= UNWATCHED_INTERVAL);
        if may {
            self.asked = Some(Instant::now());
        }
        may
    }

    fn read(&mut self, payload: Bytes) -> Option<Received> {
        match StateUpdate::decode(payload.clone()) {
            Ok(update) if update.stream_id == self.stream_id => {
                self.admit(&update).then_some(Received { update, bytes: Some(payload) })
            }
            Ok(update) => {
                self.skip("other_stream", &format_args!("it is of stream {:?}", update.stream_id));
                None
            }
            Err(error) => {
                self.skip("undecodable", &error);
                None
            }
        }
    }

    fn skip(&mut self, reason: &'static str, details: &dyn std::fmt::Display) {
        self.skipped += 1;
        metrics::counter!("client_updates_skipped_total", "reason" => reason).increment(1);
        tracing::debug!(stream_id = self.stream_id, reason, %details, "skipped an update");
    }

    /// The next that comes; an empty place for what is old or cannot be read; an error at the end.
    fn poll_any(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Received>, ClientError>> {
        match &mut self.source {
            Source::Subject(subject) => {
                let payload = ready!(subject.poll_next(context)).unwrap_or_else(|| Err(ClientError::closed()));
                Poll::Ready(payload.map(|payload| self.read(payload)))
            }
            Source::Feed(follower) => {
                let received = ready!(follower.poll_next(context));
                Poll::Ready(received.map(|new| self.admit(&new.update).then(|| Arc::unwrap_or_clone(new))))
            }
            Source::Followed(followed) => {
                let received = match ready!(followed.poll_next(context))? {
                    News::Message(payload) => self.read(payload),
                    News::State(state) => self.admit(&state).then(|| Received::from(*state)),
                };
                if let (Source::Followed(followed), Some(received)) = (&mut self.source, &received) {
                    followed.told(&received.update);
                }
                Poll::Ready(Ok(received))
            }
        }
    }

    fn poll_received(&mut self, context: &mut Context<'_>) -> Poll<Option<Received>> {
        while self.end.is_none() {
            match ready!(self.poll_any(context)) {
                Ok(None) => {}
                Ok(received) => return Poll::Ready(received),
                Err(error) => self.end = Some(error),
            }
        }
        Poll::Ready(None)
    }
}

impl Stream for UpdateStream {
    type Item = StateUpdate;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<StateUpdate>> {
        self.poll_received(context).map(|received| received.map(|received| received.update))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    /// What is there already.
    impl<I: Iterator<Item = Message> + Send> Incoming for stream::Iter<I> {
        fn stop(self: std::pin::Pin<&mut Self>) -> BoxFuture<'_, Result<(), TransportError>> {
            Box::pin(std::future::ready(Ok(())))
        }
    }
    use crate::transport::{self, Incoming, Message, TransportError};
    use futures_util::future::BoxFuture;

    fn update(epoch: u64, sequence: u64) -> StateUpdate {
        StateUpdate { stream_id: "s".into(), epoch, sequence, ..StateUpdate::default() }
    }

    fn reading(payloads: Vec<Vec<u8>>) -> UpdateStream {
        let messages = payloads.into_iter().map(|payload| Message {
            subject: transport::Subject::from("stream.s.updates"),
            payload: Bytes::from(payload),
            reply: None,
        });
        let subject = Subject::new(Subscription::new(stream::iter(messages)));
        UpdateStream::new(Source::Subject(subject), "s".into(), Weak::new(), SystemTime::now)
    }

    async fn read_all(updates: &mut UpdateStream) -> Vec<(u64, u64)> {
        let mut seen = Vec::new();
        while let Some(update) = updates.next().await {
            seen.push((update.epoch, update.sequence));
        }
        seen
    }

    #[tokio::test]
    async fn lower_epochs_and_repeated_or_older_sequences_are_dropped() {
        let sent = [(1, 5), (1, 5), (1, 4), (1, 7), (2, 1), (1, 9), (2, 1), (2, 2)];
        let mut updates = reading(sent.iter().map(|&(e, s)| update(e, s).encode_to_vec()).collect());
        assert_eq!(read_all(&mut updates).await, [(1, 5), (1, 7), (2, 1), (2, 2)]);
    }

    #[tokio::test]
    async fn the_first_update_is_news_even_with_epoch_and_sequence_0() {
        assert_eq!(read_all(&mut reading(vec![update(0, 0).encode_to_vec()])).await, [(0, 0)]);
    }

    #[tokio::test]
    async fn an_update_comes_with_its_bytes_unknown_fields_included() {
        // Field 200, a number.
        let bytes = [update(1, 1).encode_to_vec(), vec![0xc0, 0x0c, 5]].concat();
        let mut updates = reading(vec![bytes.clone()]);
        let expected = Received { update: update(1, 1), bytes: Some(bytes.into()) };
        assert_eq!(updates.next_received().await, Some(expected));
        assert_eq!(updates.next_received().await, None);
    }

    #[tokio::test]
    async fn what_a_snapshot_contains_is_dropped() {
        let mut updates = reading((1..=4).map(|sequence| update(1, sequence).encode_to_vec()).collect());
        assert!(updates.seed(&update(1, 3)));
        assert!(!updates.seed(&update(1, 2)));
        assert_eq!(read_all(&mut updates).await, [(1, 4)]);
    }

    #[tokio::test]
    async fn what_does_not_decode_or_is_anothers_is_skipped_and_counted() {
        let foreign = StateUpdate { stream_id: "t".into(), ..update(9, 9) };
        let mut updates = reading(vec![vec![0xff], foreign.encode_to_vec(), update(1, 1).encode_to_vec()]);
        assert_eq!(read_all(&mut updates).await, [(1, 1)]);
        assert_eq!(updates.skipped(), 2);
    }

    #[tokio::test]
    async fn what_cannot_be_true_silences_no_stream_known_or_unknown() {
        let forged =
            [(1 << 62, 1), (u64::MAX, u64::MAX), (1, u64::MAX)].map(|(epoch, sequence)| update(epoch, sequence));
        let mut payloads = Vec::from(forged.clone().map(|update| update.encode_to_vec()));
        payloads.push(update(1, 1).encode_to_vec());
        payloads.extend(forged.clone().map(|update| update.encode_to_vec()));
        payloads.push(update(1, 2).encode_to_vec());
        let mut updates = reading(payloads);
        assert!(!updates.seed(&forged[0]), "nor a snapshot");
        assert_eq!(read_all(&mut updates).await, [(1, 1), (1, 2)]);
        assert_eq!(updates.skipped(), 7);
    }
}
