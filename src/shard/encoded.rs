//! An update that is to be published: encoded once, wherever it goes.

use bytes::Bytes;

use super::filtered::Filtered;
use crate::wire::subject::{self, Subject};

/// A stream: the engine's slot for it, which may have been another's and may be another's after it, and its epoch.
pub(super) type StreamKey = (u32, u64);

/// An encoded update.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    /// Of which stream.
    pub stream: StreamKey,
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
    /// Of changes: how often in a row it may have been refused.
    pub doubts: u8,
}

impl Encoded {
    /// In memory of its own. A change may be kept for the length of an outage, and would keep alive the whole buffer in
    /// which it was encoded, hundreds of superseded ticks and all.
    pub(super) fn by_itself(self) -> Self {
        let own = |subject: Subject| Subject::from(subject.as_str());
        Self { subject: self.subject.map(own), payload: Bytes::copy_from_slice(&self.payload), ..self }
    }

    /// Whether all who read the stream are to have it, and not those alone who follow filters.
    #[inline]
    pub(super) const fn is_for_all(&self) -> bool {
        self.subject.is_some() || self.in_feed
    }

    /// The same for those alone.
    pub(super) fn for_followers(&self, filtered: Option<Box<Filtered>>) -> Self {
        Self { subject: None, in_feed: false, filtered, payload: self.payload.clone(), ..*self }
    }

    /// What of it goes to subjects of which that is so, and the rest.
    pub(super) fn split(mut self, is_so: impl Fn(&str) -> bool) -> [Option<Self>; 2] {
        let apart = Self {
            subject: self.subject.take_if(|subject| is_so(subject)),
            in_feed: self.in_feed && is_so(&subject::feed(self.partition)),
            filtered: Filtered::split_where(&mut self.filtered, is_so),
            payload: self.payload.clone(),
            ..self
        };
        self.in_feed &= !apart.in_feed;
        [apart, self].map(|part| Some(part).filter(|part| part.is_for_all() || part.filtered.is_some()))
    }

    /// What it takes, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.payload.len() + size_of_val(self.tokens())
    }

    /// The filters that it goes to.
    #[inline]
    pub(super) fn tokens(&self) -> &[u64] {
        self.filtered.as_ref().map_or(&[], |filtered| filtered.tokens())
    }
}
