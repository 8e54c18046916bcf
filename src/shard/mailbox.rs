//! The bounded queue into a shard, with a wake-up for its thread.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use tokio::sync::Notify;

use crate::{
    engine::{Accepted, Counts},
    wire::{proto, subject::Subject},
};

/// How many messages may wait for a shard: at a million a second, what it handles in 65 ms.
pub const MAILBOX_CAPACITY: usize = 65_536;
/// How many bytes may wait for a shard: a full mailbox of ordinary messages has 8 MiB, and 64 of the largest fit.
pub const MAILBOX_BYTES: usize = 64 << 20;

/// What a state in a list is reckoned as, bytes: id, scene and timecode of usual length, decoded.
const BYTES_A_STATE: usize = 1_024;

/// Something for a shard to handle.
#[derive(Debug)]
pub struct Mail {
    /// What.
    pub body: Body,
    /// Where the sender waits for the answer.
    pub reply: Option<Subject>,
}

/// What kind of mail.
#[derive(Debug)]
pub enum Body {
    /// An `OrchestratorCommand`, undecoded.
    Command(Bytes),
    /// A `SubscriptionCommand`, undecoded, of which all belongs to this shard.
    Subscription(Bytes),
    /// A batch that is too large for one turn or of several shards: checked, and cut.
    Pieces(Box<Pieces>),
    /// A `Query` about one stream of this shard, undecoded.
    Query(Bytes),
    /// Totals and lists, which go from each shard to the next.
    Round(Box<Round>),
}

/// Mail that each shard adds its part to before the next has it; the last one answers.
#[derive(Debug)]
pub enum Round {
    /// GetStats of the whole service: the sum so far.
    Stats(Counts),
    /// ListStreams: what the page has so far.
    List {
        /// How many states the page may still take.
        room: usize,
        /// Where to look next in the present shard.
        from_slot: u32,
        /// The states so far.
        states: Vec<proto::StateUpdate>,
    },
}

/// A batch on its way through the shards that it concerns, one after the other.
#[derive(Debug)]
pub struct Pieces {
    /// The stream that the whole of it names, if it does.
    pub stream_id: Box<str>,
    /// What is left of it. Shards only ascend: when they end one after the other, each may still pass on to the next.
    pub left: VecDeque<Piece>,
    /// What became of the pieces before.
    pub so_far: Option<Accepted>,
    /// What all of it had, bytes. It weighs that until its end: what could not be placed grows as pieces go.
    pub bytes: usize,
}

/// What one shard handles of a batch in one turn.
#[derive(Debug)]
pub struct Piece {
    /// Which shard.
    pub shard: usize,
    /// A `SubscriptionCommand`.
    pub message: Bytes,
}

impl Body {
    fn bytes(&self) -> usize {
        match self {
            Self::Pieces(pieces) => pieces.bytes,
            Self::Command(bytes) | Self::Subscription(bytes) | Self::Query(bytes) => bytes.len(),
            Self::Round(round) => match &**round {
                Round::Stats(_) => 0,
                Round::List { states, .. } => states.len() * BYTES_A_STATE,
            },
        }
    }
}

/// Both ends of a queue. Cloning gives another handle to the same one.
#[derive(Clone, Debug)]
pub struct Mailbox {
    sender: Sender<Mail>,
    receiver: Receiver<Mail>,
    /// The oldest mail, which was looked at or put back. Only its shard comes here.
    first: Arc<Mutex<VecDeque<Mail>>>,
    waiting_bytes: Arc<AtomicUsize>,
    wake: Arc<Notify>,
    max_bytes: usize,
}

impl Mailbox {
    /// An empty one for so many messages and bytes.
    #[must_use]
    pub fn new(capacity: usize, max_bytes: usize) -> Self {
        let (sender, receiver) = bounded(capacity);
        let (first, waiting_bytes, wake) = Default::default();
        Self { sender, receiver, first, waiting_bytes, wake, max_bytes }
    }

    /// Puts mail in and wakes the shard.
    ///
    /// # Errors
    /// Gives it back when the mailbox is full.
    pub fn send(&self, mail: Mail) -> Result<(), Mail> {
        let bytes = mail.body.bytes();
        if self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.max_bytes {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(mail);
        }
        self.sender.try_send(mail).map_err(|refused| {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            refused.into_inner()
        })?;
        self.wake.notify_one();
        Ok(())
    }

    /// Takes the oldest mail out.
    #[must_use]
    pub fn take(&self) -> Option<Mail> {
        let first = self.first().pop_front();
        let mail = first.or_else(|| self.receiver.try_recv().ok())?;
        self.waiting_bytes.fetch_sub(mail.body.bytes(), Ordering::Relaxed);
        Some(mail)
    }

    /// Puts mail back that was taken, to be taken next: it is not done with.
    pub fn put_back(&self, mail: Mail) {
        self.waiting_bytes.fetch_add(mail.body.bytes(), Ordering::Relaxed);
        self.first().push_front(mail);
    }

    /// Shows the oldest mail, at most so many, without taking it.
    pub fn look_ahead<T>(&self, most: usize, look: impl FnOnce(&VecDeque<Mail>) -> T) -> T {
        let mut first = self.first();
        let missing = most.saturating_sub(first.len());
        first.extend(self.receiver.try_iter().take(missing));
        look(&first)
    }

    fn first(&self) -> MutexGuard<'_, VecDeque<Mail>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.first().len() + self.receiver.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty() && self.first().is_empty()
    }

    /// Waits until mail was put in since the last call. May return without.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Wakes whoever waits in [`Mailbox::woken`].
    pub fn wake(&self) {
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail(bytes: usize) -> Mail {
        Mail { body: Body::Command(vec![0; bytes].into()), reply: None }
    }

    #[test]
    fn a_full_mailbox_gives_mail_back_and_takes_more_when_there_is_room() {
        let mailbox = Mailbox::new(2, 100);
        assert!(mailbox.send(mail(40)).is_ok());
        assert!(mailbox.send(mail(61)).is_err(), "over its bytes");
        assert!(mailbox.send(mail(60)).is_ok());
        assert!(mailbox.send(mail(0)).is_err(), "over its count");
        assert!(mailbox.take().is_some());
        assert!(mailbox.send(mail(40)).is_ok());
        assert_eq!(mailbox.len(), 2);
    }

    #[test]
    fn looking_ahead_and_putting_back_keep_the_order_and_the_count() {
        let mailbox = Mailbox::new(5, 100);
        let size = |mail: &Mail| mail.body.bytes();
        (1..=4).for_each(|bytes| mailbox.send(mail(bytes)).unwrap());
        let seen = mailbox.look_ahead(2, |first| first.iter().map(size).collect::<Vec<_>>());
        assert_eq!((seen, mailbox.len()), (vec![1, 2], 4));
        let first = mailbox.take().unwrap();
        mailbox.put_back(first);
        assert_eq!(mailbox.look_ahead(9, VecDeque::len), 4);
        let taken: Vec<usize> = std::iter::from_fn(|| mailbox.take()).map(|mail| size(&mail)).collect();
        assert_eq!(taken, [1, 2, 3, 4]);
        assert!(mailbox.is_empty());
        assert!(mailbox.send(mail(100)).is_ok(), "its bytes are free again");
    }
}
