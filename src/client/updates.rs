//! A stream's updates as they come, without those that are old: from a subject of its own, or out of a feed.
//!
//! The broker delivers at most once and several publishers may exist for a moment while a stream changes owner, so a
//! reader must not take what comes for what is true: it keeps a high-water mark and drops what is not above it. It does not ask
//! for what it missed; each update is the full state, so the next one heals a loss.

use std::{
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use prost::Message as _;

use super::{core::Core, feeds::Follower};
use crate::{transport::Subscription, wire::proto::StateUpdate};

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

/// The updates of one stream, from [`Client::updates`](super::Client::updates) on. Dropping it unsubscribes.
#[derive(Debug)]
pub struct UpdateStream {
    source: Source,
    stream_id: String,
    mark: Option<HighWaterMark>,
    skipped: u64,
    /// Told when the epoch rises. Weak: who only reads does not keep the client.
    core: Weak<Core>,
}

#[derive(Debug)]
pub(super) enum Source {
    Subject(Subscription),
    Feed(Follower),
}

impl UpdateStream {
    pub(super) fn new(source: Source, stream_id: String, core: Weak<Core>) -> Self {
        Self { source, stream_id, mark: None, skipped: 0, core }
    }

    /// Takes a snapshot as the high-water mark: updates that it already contains are dropped. True if it is news itself.
    pub fn seed(&mut self, snapshot: &StateUpdate) -> bool {
        let before = self.mark.map(|mark| mark.epoch);
        let is_news = match &mut self.mark {
            Some(mark) => mark.admit(snapshot),
            None => {
                self.mark = Some(HighWaterMark::of(snapshot));
                true
            }
        };
        if is_news
            && before.is_none_or(|before| snapshot.epoch > before)
            && let Some(core) = self.core.upgrade()
        {
            core.see(&self.stream_id, snapshot.epoch);
        }
        is_news
    }

    /// The next update, or `None` when the transport is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<StateUpdate> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// How many messages on the stream's subject were skipped because they do not decode or are another stream's. What
    /// does not decode in a feed is nobody's in particular; the metrics count both.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn read(&mut self, payload: bytes::Bytes) -> Option<StateUpdate> {
        match StateUpdate::decode(payload) {
            Ok(update) if update.stream_id == self.stream_id => self.seed(&update).then_some(update),
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

    /// The next that comes; an empty place for what is old or cannot be read.
    fn poll_any(&mut self, context: &mut Context<'_>) -> Poll<Option<Option<StateUpdate>>> {
        match &mut self.source {
            Source::Subject(subscription) => {
                let message = ready!(Pin::new(subscription).poll_next(context));
                Poll::Ready(message.map(|message| self.read(message.payload)))
            }
            Source::Feed(follower) => {
                let update = ready!(Pin::new(follower).poll_next(context));
                Poll::Ready(update.map(|update| self.seed(&update).then(|| Arc::unwrap_or_clone(update))))
            }
        }
    }
}

impl Stream for UpdateStream {
    type Item = StateUpdate;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<StateUpdate>> {
        loop {
            match ready!(self.poll_any(context)) {
                None => return Poll::Ready(None),
                Some(None) => {}
                Some(update) => return Poll::Ready(update),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;

    use super::*;

    /// What is there already.
    impl<I: Iterator<Item = Message> + Send> Incoming for stream::Iter<I> {
        fn stop(self: std::pin::Pin<&mut Self>) -> BoxFuture<'_, Result<(), TransportError>> {
            Box::pin(std::future::ready(Ok(())))
        }
    }
    use crate::transport::{Incoming, Message, Subject, TransportError};
    use futures_util::future::BoxFuture;

    fn update(epoch: u64, sequence: u64) -> StateUpdate {
        StateUpdate { stream_id: "s".into(), epoch, sequence, ..StateUpdate::default() }
    }

    fn reading(payloads: Vec<Vec<u8>>) -> UpdateStream {
        let messages = payloads.into_iter().map(|payload| Message {
            subject: Subject::from("stream.s.updates"),
            payload: Bytes::from(payload),
            reply: None,
        });
        UpdateStream::new(Source::Subject(Subscription::new(stream::iter(messages))), "s".into(), Weak::new())
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
}
