//! An update that is to be published: encoded once, wherever it goes.

use bytes::Bytes;

use super::filtered::Filtered;
use crate::wire::subject::Subject;

/// An encoded update.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    /// The engine's, of the stream.
    pub slot: u32,
    /// None when only feeds are published.
    pub subject: Option<Subject>,
    /// Whether it goes into the feed.
    pub in_feed: bool,
    /// Who else is to have it.
    pub filtered: Option<Box<Filtered>>,
    /// Of the feed.
    pub partition: u8,
    /// The message.
    pub payload: Bytes,
    /// Of changes: grows from each to the next.
    pub number: u64,
}

impl Encoded {
    /// In memory of its own. A change may be kept for the length of an outage, and would keep alive the whole buffer in
    /// which it was encoded, hundreds of superseded ticks and all.
    pub(super) fn by_itself(self) -> Self {
        let own = |subject: Subject| Subject::from(subject.as_str());
        Self { subject: self.subject.map(own), payload: Bytes::copy_from_slice(&self.payload), ..self }
    }

    /// Whether all who read the stream are to have it, and not those alone who follow filters.
    pub(super) const fn is_for_all(&self) -> bool {
        self.subject.is_some() || self.in_feed
    }

    /// The same for those alone.
    pub(super) fn for_followers(&self, filtered: Option<Box<Filtered>>) -> Self {
        Self { subject: None, in_feed: false, filtered, payload: self.payload.clone(), ..*self }
    }

    /// What it takes, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.payload.len() + size_of_val(self.tokens())
    }

    /// The filters that it goes to.
    pub(super) fn tokens(&self) -> &[u64] {
        self.filtered.as_ref().map_or(&[], |filtered| filtered.tokens())
    }
}
