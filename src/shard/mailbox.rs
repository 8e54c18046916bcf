//! The bounded queue into a shard, with a wake-up for its thread.
//!
//! | end | whose |
//! |---|---|
//! | [`Mailbox::send`], [`Mailbox::reserve`] | anybody's |
//! | [`Mailbox::open`] | the shard's: once a turn it takes over what has arrived, under one lock |
//!
//! Mail is handled in the order in which it came. What is not done with stays in front of everything behind it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::gather::Part;
use crate::wire::subject::Subject;

/// How many messages may wait for a shard: at a million a second, what it handles in 65 ms.
pub const MAILBOX_CAPACITY: usize = 65_536;
/// How many bytes may wait for a shard: a full mailbox of ordinary messages has 8 MiB, and 64 of the largest fit.
pub const MAILBOX_BYTES: usize = 64 << 20;

/// Something for a shard to handle.
#[derive(Debug)]
pub struct Mail {
    /// What.
    pub body: Body,
    /// Where the sender waits for the answer. A part's is that of the whole request.
    pub reply: Option<Subject>,
}

/// What kind of mail.
#[derive(Debug)]
pub enum Body {
    /// An `OrchestratorCommand`, undecoded.
    Command(Bytes),
    /// A `SubscriptionCommand`, undecoded, of which all belongs to this shard.
    Subscription(Bytes),
    /// A `Query` about one stream of this shard, undecoded.
    Query(Bytes),
    /// This shard's part of a request that concerns several, or that takes several turns.
    Part(Box<Part>),
}

impl Body {
    /// What it counts for while it waits. The same before and behind a turn that is not done with it.
    fn load(&self) -> Load {
        let bytes = match self {
            Self::Part(part) => part.bytes(),
            Self::Command(bytes) | Self::Subscription(bytes) | Self::Query(bytes) => bytes.len(),
        };
        Load { messages: 1, bytes }
    }
}

/// How much waits, or may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    messages: usize,
    bytes: usize,
}

impl Load {
    const fn and(self, more: Self) -> Self {
        Self { messages: self.messages + more.messages, bytes: self.bytes + more.bytes }
    }

    const fn without(self, less: Self) -> Self {
        Self { messages: self.messages - less.messages, bytes: self.bytes - less.bytes }
    }

    const fn fits(self, most: Self) -> bool {
        self.messages <= most.messages && self.bytes <= most.bytes
    }
}

/// Why a mailbox takes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// As much waits as may.
    Full,
    /// Its shard has ended.
    Closed,
}

/// Both ends of a queue. Cloning gives another handle to the same one.
#[derive(Clone, Debug)]
pub struct Mailbox(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    arrived: Mutex<Arrived>,
    /// What the shard has taken over, oldest first. Only the shard comes here, so nobody waits for it; it is not in the
    /// shard because a shard that panics loses its engine and not its mail.
    taken: Mutex<VecDeque<Mail>>,
    wake: Notify,
    most: Load,
}

#[derive(Debug, Default)]
struct Arrived {
    mail: VecDeque<Mail>,
    /// Invariant: what is in `mail`, taken over and not done with, or reserved.
    held: Load,
    closed: bool,
}

impl Mailbox {
    /// An empty one for so many messages and bytes.
    #[must_use]
    pub fn new(capacity: usize, max_bytes: usize) -> Self {
        let (arrived, taken, wake) = Default::default();
        Self(Arc::new(Shared { arrived, taken, wake, most: Load { messages: capacity, bytes: max_bytes } }))
    }

    /// Puts mail in and wakes the shard.
    ///
    /// # Errors
    /// Gives it back when there is no room for it.
    pub fn send(&self, mail: Mail) -> Result<(), (Mail, Unsent)> {
        let mut arrived = self.arrived();
        match self.hold(&mut arrived, mail.body.load()) {
            Ok(()) => {
                self.push(arrived, mail);
                Ok(())
            }
            Err(unsent) => Err((mail, unsent)),
        }
    }

    /// Keeps room for mail, to be sent once there is room for all that belongs to it.
    ///
    /// # Errors
    /// When there is none.
    pub fn reserve(&self, body: &Body) -> Result<Reserved<'_>, Unsent> {
        let load = body.load();
        self.hold(&mut self.arrived(), load)?;
        Ok(Reserved { mailbox: self, load })
    }

    fn hold(&self, arrived: &mut Arrived, load: Load) -> Result<(), Unsent> {
        if arrived.closed {
            return Err(Unsent::Closed);
        }
        let held = arrived.held.and(load);
        if !held.fits(self.0.most) {
            return Err(Unsent::Full);
        }
        arrived.held = held;
        Ok(())
    }

    /// For what there is room.
    fn push(&self, mut arrived: MutexGuard<'_, Arrived>, mail: Mail) {
        arrived.mail.push_back(mail);
        // A shard sleeps only while nothing is held.
        let may_sleep = arrived.mail.len() == 1;
        drop(arrived);
        if may_sleep {
            self.0.wake.notify_one();
        }
    }

    /// The shard's end. Whoever holds it is the only one who takes mail out.
    #[must_use]
    pub fn open(&self) -> Inbox<'_> {
        let taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        Inbox { mailbox: self, taken, done: Load::default() }
    }

    /// Takes no more from now on, unless something waits. True if it is closed.
    #[must_use]
    pub fn close_if_empty(&self) -> bool {
        let mut arrived = self.arrived();
        arrived.closed |= arrived.held.messages == 0;
        arrived.closed
    }

    /// How many messages wait: those that the shard is not done with.
    #[must_use]
    pub fn len(&self) -> usize {
        self.arrived().held.messages
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until mail has come for a shard without any. May return without.
    pub async fn woken(&self) {
        self.0.wake.notified().await;
    }

    fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.0.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for one message. Given back when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Reserved<'a> {
    mailbox: &'a Mailbox,
    load: Load,
}

impl Reserved<'_> {
    /// Puts in the mail that it was reserved for, and wakes the shard.
    pub fn send(mut self, mail: Mail) {
        debug_assert_eq!(mail.body.load(), self.load, "what the room was reserved for");
        self.load = Load::default();
        self.mailbox.push(self.mailbox.arrived(), mail);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.load != Load::default() {
            let mut arrived = self.mailbox.arrived();
            arrived.held = arrived.held.without(self.load);
        }
    }
}

/// The shard's end of a mailbox, for a turn. What was taken out counts until it is dropped.
#[derive(Debug)]
pub struct Inbox<'a> {
    mailbox: &'a Mailbox,
    taken: MutexGuard<'a, VecDeque<Mail>>,
    done: Load,
}

impl Inbox<'_> {
    /// Takes the oldest mail out.
    #[must_use]
    pub fn take(&mut self) -> Option<Mail> {
        if self.taken.is_empty() {
            self.take_over();
        }
        let mail = self.taken.pop_front()?;
        self.done = self.done.and(mail.body.load());
        Some(mail)
    }

    /// Puts mail back that was taken, to be taken next: it is not done with.
    pub fn put_back(&mut self, mail: Mail) {
        self.done = self.done.without(mail.body.load());
        self.taken.push_front(mail);
    }

    /// The oldest mail: at least `most`, if so many wait.
    pub fn look_ahead(&mut self, most: usize) -> &VecDeque<Mail> {
        if self.taken.len() < most {
            self.take_over();
        }
        &self.taken
    }

    fn take_over(&mut self) {
        let mut arrived = self.mailbox.arrived();
        if self.taken.is_empty() {
            std::mem::swap(&mut *self.taken, &mut arrived.mail);
        } else {
            self.taken.append(&mut arrived.mail);
        }
    }
}

impl Drop for Inbox<'_> {
    fn drop(&mut self) {
        let mut arrived = self.mailbox.arrived();
        arrived.held = arrived.held.without(self.done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail(bytes: usize) -> Mail {
        Mail { body: Body::Command(vec![0; bytes].into()), reply: None }
    }

    fn take(mailbox: &Mailbox) -> Option<usize> {
        mailbox.open().take().map(|mail| mail.body.load().bytes)
    }

    #[test]
    fn a_full_mailbox_gives_mail_back_and_takes_more_when_there_is_room() {
        let mailbox = Mailbox::new(2, 100);
        assert!(mailbox.send(mail(40)).is_ok());
        assert!(matches!(mailbox.send(mail(61)), Err((_, Unsent::Full))), "over its bytes");
        assert!(mailbox.send(mail(60)).is_ok());
        assert!(matches!(mailbox.send(mail(0)), Err((_, Unsent::Full))), "over its count");
        assert_eq!(take(&mailbox), Some(40));
        assert!(mailbox.send(mail(40)).is_ok());
        assert_eq!(mailbox.len(), 2);
    }

    #[test]
    fn what_is_taken_counts_until_the_turn_is_over() {
        let mailbox = Mailbox::new(2, 100);
        mailbox.send(mail(100)).unwrap();
        let mut inbox = mailbox.open();
        let taken = inbox.take().unwrap();
        assert!(mailbox.send(mail(1)).is_err());
        inbox.put_back(taken);
        drop(inbox);
        assert!(mailbox.send(mail(1)).is_err(), "it is not done with");
        assert_eq!(take(&mailbox), Some(100));
        assert!(mailbox.send(mail(100)).is_ok(), "its bytes are free again");
    }

    #[test]
    fn looking_ahead_and_putting_back_keep_the_order_and_the_count() {
        let mailbox = Mailbox::new(5, 100);
        let size = |mail: &Mail| mail.body.load().bytes;
        (1..=2).for_each(|bytes| mailbox.send(mail(bytes)).unwrap());
        let mut inbox = mailbox.open();
        assert_eq!(inbox.look_ahead(2).iter().map(size).collect::<Vec<_>>(), [1, 2]);
        (3..=4).for_each(|bytes| mailbox.send(mail(bytes)).unwrap());
        let first = inbox.take().unwrap();
        inbox.put_back(first);
        assert_eq!(inbox.look_ahead(4).iter().map(size).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let taken: Vec<usize> = std::iter::from_fn(|| inbox.take()).map(|mail| size(&mail)).collect();
        assert_eq!(taken, [1, 2, 3, 4]);
        drop(inbox);
        assert!(mailbox.is_empty());
    }

    #[test]
    fn reserved_room_is_given_back_or_used() {
        let mailbox = Mailbox::new(2, 100);
        let (one, other) = (mail(60), mail(40));
        let reserved = mailbox.reserve(&one.body).unwrap();
        assert!(mailbox.reserve(&mail(41).body).is_err());
        drop(reserved);
        let reserved = [mailbox.reserve(&one.body).unwrap(), mailbox.reserve(&other.body).unwrap()];
        assert!(mailbox.send(mail(0)).is_err(), "what is reserved counts");
        reserved.into_iter().zip([one, other]).for_each(|(reserved, mail)| reserved.send(mail));
        assert_eq!([take(&mailbox), take(&mailbox), take(&mailbox)], [Some(60), Some(40), None]);
        assert!(mailbox.is_empty());
    }

    #[test]
    fn a_mailbox_is_closed_only_when_nothing_waits() {
        let mailbox = Mailbox::new(2, 100);
        mailbox.send(mail(1)).unwrap();
        assert!(!mailbox.close_if_empty());
        assert_eq!(take(&mailbox), Some(1));
        let reserved = mailbox.reserve(&mail(1).body).unwrap();
        assert!(!mailbox.close_if_empty(), "something is about to come");
        drop(reserved);
        assert!(mailbox.close_if_empty());
        assert!(matches!(mailbox.send(mail(1)), Err((_, Unsent::Closed))));
        assert_eq!(mailbox.reserve(&mail(1).body).unwrap_err(), Unsent::Closed);
    }

    #[tokio::test]
    async fn mail_wakes_a_shard_that_has_none_and_a_wake_up_is_not_lost() {
        let mailbox = Mailbox::new(9, 100);
        for round in 0..3 {
            mailbox.send(mail(round)).unwrap();
            mailbox.send(mail(9)).unwrap();
            mailbox.woken().await;
            let mut inbox = mailbox.open();
            while inbox.take().is_some() {}
        }
        // Room that was reserved before wakes it when it is used.
        let reserved = mailbox.reserve(&mail(1).body).unwrap();
        reserved.send(mail(1));
        mailbox.woken().await;
    }
}
