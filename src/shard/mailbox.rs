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
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::gather::Part;
use crate::wire::subject::Subject;

/// How many messages may wait for a shard: at a million a second, what it handles in 65 ms.
pub const MAILBOX_CAPACITY: usize = 65_536;
/// How many bytes may wait for a shard: a full mailbox of ordinary messages has 8 MiB, and 64 of the largest fit.
pub const MAILBOX_BYTES: usize = 64 << 20;

/// How much may wait for a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MailboxLimits {
    /// Messages.
    pub messages: usize,
    /// Bytes.
    pub bytes: usize,
    /// Weight of the messages that weigh more than [`MailboxLimits::bulk_from`]: batches, lists and large
    /// configurations. Whoever's command comes behind all of them waits for so long; at half a microsecond each, 100 ms.
    /// One is taken in any case when none waits.
    pub bulk_weight: usize,
    /// What weighs more is bulk. Less is a single command or heartbeat, of which the count is the limit.
    pub bulk_from: usize,
}

impl Default for MailboxLimits {
    fn default() -> Self {
        Self { messages: MAILBOX_CAPACITY, bytes: MAILBOX_BYTES, bulk_weight: 200_000, bulk_from: 64 }
    }
}

/// As many bytes weigh 1: those of an ordinary command, or of an entry of a batch.
const BYTES_A_WEIGHT: usize = 64;

/// What so many bytes weigh at the least: as much as decoding them takes.
pub(super) const fn weight_of(bytes: usize) -> usize {
    1 + bytes / BYTES_A_WEIGHT
}

/// Something for a shard to handle.
#[derive(Debug)]
pub struct Mail {
    /// What.
    pub body: Body,
    /// Where the sender waits for the answer. A part's is that of the whole request.
    pub reply: Option<Subject>,
    /// How much work it is, in units of half a microsecond: about a register, or a look at a timer.
    weight: usize,
}

impl Mail {
    /// Mail that weighs what its bytes do, or its parts.
    #[must_use]
    pub fn new(body: Body, reply: Option<Subject>) -> Self {
        let weight = match &body {
            Body::Part(part) => part.weight(),
            Body::Command(bytes) | Body::Subscription(bytes) | Body::Query(bytes) => weight_of(bytes.len()),
        };
        Self { body, reply, weight }
    }

    /// The same, of at least that weight.
    #[must_use]
    pub fn weighing(self, weight: usize) -> Self {
        Self { weight: self.weight.max(weight), ..self }
    }
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

impl Mail {
    /// What it counts for while it waits. The same before and behind a turn that is not done with it.
    fn load(&self, limits: &MailboxLimits) -> Load {
        let bytes = match &self.body {
            Body::Part(part) => part.bytes(),
            Body::Command(bytes) | Body::Subscription(bytes) | Body::Query(bytes) => bytes.len(),
        };
        Load { messages: 1, bytes, bulk: if self.weight > limits.bulk_from { self.weight } else { 0 } }
    }
}

/// How much waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    messages: usize,
    bytes: usize,
    /// Weight of what is bulk.
    bulk: usize,
}

impl Load {
    const fn and(self, more: Self) -> Self {
        Self { messages: self.messages + more.messages, bytes: self.bytes + more.bytes, bulk: self.bulk + more.bulk }
    }

    const fn without(self, less: Self) -> Self {
        Self { messages: self.messages - less.messages, bytes: self.bytes - less.bytes, bulk: self.bulk - less.bulk }
    }
}

/// Why a mailbox takes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// As much waits as may.
    Full,
    /// Of what is bulk. Commands are taken.
    FullOfBulk,
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
    limits: MailboxLimits,
    /// The largest answer that the shard's connection takes, bytes, as far as is known.
    max_answer: AtomicUsize,
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
        Self::with_limits(MailboxLimits { messages: capacity, bytes: max_bytes, ..MailboxLimits::default() })
    }

    /// An empty one that takes no more than that.
    #[must_use]
    pub fn with_limits(limits: MailboxLimits) -> Self {
        let (arrived, taken, wake) = Default::default();
        Self(Arc::new(Shared { arrived, taken, wake, limits, max_answer: AtomicUsize::new(usize::MAX) }))
    }

    /// The shard's connection takes answers of so many bytes.
    pub fn set_max_answer(&self, bytes: usize) {
        self.0.max_answer.store(bytes, Ordering::Relaxed);
    }

    /// The largest answer that the shard's connection takes, bytes, as far as is known.
    #[must_use]
    pub fn max_answer(&self) -> usize {
        self.0.max_answer.load(Ordering::Relaxed)
    }

    /// Whether no more bulk is taken: told before work is made of a message that would be refused.
    #[must_use]
    pub fn is_full_of_bulk(&self) -> bool {
        self.arrived().held.bulk >= self.0.limits.bulk_weight
    }

    /// Puts mail in and wakes the shard.
    ///
    /// # Errors
    /// Gives it back when there is no room for it.
    pub fn send(&self, mail: Mail) -> Result<(), (Mail, Unsent)> {
        let mut arrived = self.arrived();
        match self.hold(&mut arrived, self.load(&mail)) {
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
    pub fn reserve(&self, mail: &Mail) -> Result<Reserved<'_>, Unsent> {
        let load = self.load(mail);
        self.hold(&mut self.arrived(), load)?;
        Ok(Reserved { mailbox: self, load })
    }

    fn hold(&self, arrived: &mut Arrived, load: Load) -> Result<(), Unsent> {
        if arrived.closed {
            return Err(Unsent::Closed);
        }
        let (held, limits) = (arrived.held.and(load), &self.0.limits);
        if held.messages > limits.messages || held.bytes > limits.bytes {
            return Err(Unsent::Full);
        }
        // However heavy it is, one is taken: it could never be otherwise.
        if load.bulk > 0 && arrived.held.bulk > 0 && held.bulk > limits.bulk_weight {
            return Err(Unsent::FullOfBulk);
        }
        arrived.held = held;
        Ok(())
    }

    fn load(&self, mail: &Mail) -> Load {
        mail.load(&self.0.limits)
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
        debug_assert_eq!(self.mailbox.load(&mail), self.load, "what the room was reserved for");
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
        self.done = self.done.and(self.mailbox.load(&mail));
        Some(mail)
    }

    /// Puts mail back that was taken, to be taken next: it is not done with.
    pub fn put_back(&mut self, mail: Mail) {
        self.done = self.done.without(self.mailbox.load(&mail));
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
    use futures_util::FutureExt as _;

    use super::*;

    fn mail(bytes: usize) -> Mail {
        Mail::new(Body::Command(vec![0; bytes].into()), None)
    }

    fn size(mail: &Mail) -> usize {
        mail.load(&MailboxLimits::default()).bytes
    }

    fn take(mailbox: &Mailbox) -> Option<usize> {
        mailbox.open().take().map(|mail| size(&mail))
    }

    #[test]
    fn a_full_mailbox_gives_mail_back_until_there_is_room() {
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
        let reserved = mailbox.reserve(&one).unwrap();
        assert!(mailbox.reserve(&mail(41)).is_err());
        drop(reserved);
        let reserved = [mailbox.reserve(&one).unwrap(), mailbox.reserve(&other).unwrap()];
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
        let reserved = mailbox.reserve(&mail(1)).unwrap();
        assert!(!mailbox.close_if_empty(), "something is about to come");
        drop(reserved);
        assert!(mailbox.close_if_empty());
        assert!(matches!(mailbox.send(mail(1)), Err((_, Unsent::Closed))));
        assert_eq!(mailbox.reserve(&mail(1)).unwrap_err(), Unsent::Closed);
    }

    #[test]
    fn bulk_has_a_share_of_the_mailbox_and_commands_have_the_rest() {
        let limits = MailboxLimits { bulk_weight: 100, bulk_from: 10, ..MailboxLimits::default() };
        let mailbox = Mailbox::with_limits(limits);
        let weighing = |weight| mail(1).weighing(weight);
        assert!(mailbox.send(weighing(1_000)).is_ok(), "one is taken, however heavy");
        assert!(mailbox.is_full_of_bulk());
        assert!(matches!(mailbox.send(weighing(11)), Err((_, Unsent::FullOfBulk))));
        assert_eq!(mailbox.reserve(&weighing(11)).unwrap_err(), Unsent::FullOfBulk);
        for _ in 0..1_000 {
            assert!(mailbox.send(weighing(10)).is_ok(), "what is light is taken");
        }
        assert_eq!(take(&mailbox), Some(1));
        assert!(mailbox.send(weighing(60)).is_ok() && mailbox.send(weighing(40)).is_ok());
        assert!(matches!(mailbox.send(weighing(11)), Err((_, Unsent::FullOfBulk))));
    }

    #[tokio::test]
    async fn mail_wakes_a_shard_that_has_none_and_a_wake_up_is_not_lost() {
        let mailbox = Mailbox::new(9, 100);
        assert!(mailbox.woken().now_or_never().is_none(), "there is no mail");
        for round in 0..3 {
            mailbox.send(mail(round)).unwrap();
            mailbox.send(mail(9)).unwrap();
            mailbox.woken().await;
            let mut inbox = mailbox.open();
            while inbox.take().is_some() {}
        }
        // Room that was reserved before wakes it when it is used.
        let reserved = mailbox.reserve(&mail(1)).unwrap();
        reserved.send(mail(1));
        mailbox.woken().await;
    }
}
