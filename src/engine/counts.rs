//! How many there are, and how many there may be.

use std::ops::{Add, AddAssign, SubAssign};

use super::Limits;

/// How much an engine's tables may hold: the limits, or what others leave of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Most streams.
    pub streams: u64,
    /// Most subscribers.
    pub subscribers: u64,
    /// Most [`Counts::config_bytes`].
    pub config_bytes: u64,
    /// Most [`Counts::client_bytes`].
    pub client_bytes: u64,
    /// Most filters that are followed.
    pub filters: u64,
    /// Most [`Counts::filter_bytes`].
    pub filter_bytes: u64,
}

impl Quota {
    /// All that the limits allow.
    #[must_use]
    pub const fn of(limits: &Limits) -> Self {
        Self {
            streams: limits.max_streams,
            subscribers: limits.max_subscribers,
            config_bytes: limits.max_config_bytes,
            client_bytes: limits.max_client_bytes,
            filters: limits.max_filters,
            filter_bytes: limits.max_filter_bytes,
        }
    }
}

/// How many there are. Kept, not computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Subscribers: active and stale.
    pub total: u64,
    /// Subscribers heard of within the stale timeout.
    pub active: u64,
    /// Subscribers about to be removed because they were not.
    pub stale: u64,
    /// Clients, each once a stream.
    pub unique: u64,
    /// Streams.
    pub streams: u64,
    /// Streams in mode RUNNING.
    pub running: u64,
    /// What streams were given to keep, bytes: ids, configurations, adjusted passes, timecodes.
    pub config_bytes: u64,
    /// What subscribers were given to keep beside their records, bytes: ids that are no UUIDs, and IPv6 addresses.
    pub client_bytes: u64,
    /// Filters that are followed, each once a stream.
    pub filters: u64,
    /// What they take, bytes.
    pub filter_bytes: u64,
    /// What the histories of all streams take, bytes.
    pub history_bytes: u64,
}

impl Add for Counts {
    type Output = Self;

    fn add(mut self, more: Self) -> Self {
        self += more;
        self
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        let Self {
            total,
            active,
            stale,
            unique,
            streams,
            running,
            config_bytes,
            client_bytes,
            filters,
            filter_bytes,
            history_bytes,
        } = more;
        self.total += total;
        self.active += active;
        self.stale += stale;
        self.unique += unique;
        self.streams += streams;
        self.running += running;
        self.config_bytes += config_bytes;
        self.client_bytes += client_bytes;
        self.filters += filters;
        self.filter_bytes += filter_bytes;
        self.history_bytes += history_bytes;
    }
}

impl SubAssign for Counts {
    fn sub_assign(&mut self, less: Self) {
        let Self {
            total,
            active,
            stale,
            unique,
            streams,
            running,
            config_bytes,
            client_bytes,
            filters,
            filter_bytes,
            history_bytes,
        } = less;
        self.total -= total;
        self.active -= active;
        self.stale -= stale;
        self.unique -= unique;
        self.streams -= streams;
        self.running -= running;
        self.config_bytes -= config_bytes;
        self.client_bytes -= client_bytes;
        self.filters -= filters;
        self.filter_bytes -= filter_bytes;
        self.history_bytes -= history_bytes;
    }
}
