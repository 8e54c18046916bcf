//! Which shard has a stream: id → partition → shard, in two steps that stay apart, because ownership of partitions can
//! move while the first step never changes.

use crate::engine::{PARTITIONS, partition};

use super::mailbox::{Mail, Mailbox, Reserved, Unsent};

/// The most shards: one partition each.
pub const MAX_SHARDS: usize = PARTITIONS as usize;

/// The owners of partitions, and their mailboxes.
#[derive(Debug)]
pub struct Router {
    owner_of: [u16; PARTITIONS as usize],
    mailboxes: Vec<Mailbox>,
}

impl Router {
    /// Deals the partitions out evenly.
    ///
    /// # Panics
    /// Without mailboxes, or with more than [`MAX_SHARDS`].
    #[must_use]
    pub fn new(mailboxes: Vec<Mailbox>) -> Self {
        let shards = mailboxes.len();
        assert!((1..=MAX_SHARDS).contains(&shards), "{shards} shards");
        let owner_of = std::array::from_fn(|partition| (partition % shards) as u16);
        Self { owner_of, mailboxes }
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.mailboxes.len()
    }

    /// The shard that owns a partition.
    #[must_use]
    pub fn owner(&self, partition: u8) -> usize {
        self.owner_of[usize::from(partition)].into()
    }

    /// The shard that has, or would have, a stream. Any text has one, so that a malformed id is refused by a shard too.
    #[must_use]
    pub fn shard_of(&self, stream_id: &str) -> usize {
        self.owner(partition(stream_id))
    }

    /// The mailbox of a shard.
    #[must_use]
    pub fn mailbox(&self, shard: usize) -> &Mailbox {
        &self.mailboxes[shard]
    }

    /// Whether any of these shards takes no more batches and large messages.
    pub fn are_full_of_bulk(&self, shards: impl Iterator<Item = usize>) -> bool {
        let mut asked = [false; MAX_SHARDS];
        shards.for_each(|shard| asked[shard] = true);
        self.mailboxes.iter().zip(asked).any(|(mailbox, asked)| asked && mailbox.is_full_of_bulk())
    }

    /// Puts mail into a shard's mailbox.
    ///
    /// # Errors
    /// When the mailbox takes none; then it is dropped.
    pub fn send(&self, shard: usize, mail: Mail) -> Result<(), Unsent> {
        self.mailboxes[shard].send(mail).map_err(|(_, unsent)| unsent)
    }

    /// Puts mail into the mailboxes of several shards: all of it, or none.
    ///
    /// # Errors
    /// When one of the mailboxes takes none; then all of it is dropped.
    pub fn send_all(&self, mail: Vec<(usize, Mail)>) -> Result<(), Unsent> {
        let places = mail.iter().map(|(shard, mail)| self.mailboxes[*shard].reserve(mail));
        let places: Vec<Reserved<'_>> = places.collect::<Result<_, _>>()?;
        places.into_iter().zip(mail).for_each(|(place, (_, mail))| place.send(mail));
        Ok(())
    }
}
