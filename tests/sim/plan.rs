//! What kind of world a seed makes: all that is drawn before time begins.

use orchestrator_service::shard::{mailbox::MAILBOX_CAPACITY, owed::PublishTo};

use crate::rng::Rng;

/// How a gateway names its viewers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// In batches of handles, of all streams at once.
    Handles,
    /// In batches of client ids, a stream at a time; sessions are unknown to it, as to an older gateway.
    Names,
    /// One message a viewer.
    Singles,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub shards: usize,
    pub streams: usize,
    pub directors: usize,
    pub gateways: Vec<Style>,
    /// At most so many viewers at a time.
    pub viewers: usize,
    pub stale_after_ms: u64,
    pub heartbeat_ms: u64,
    pub mailbox_capacity: usize,
    pub publish_to: PublishTo,
    /// One way over one connection, ms.
    pub delay_ms: (u64, u64),
    /// Every so often one takes far longer, per mille.
    pub spikes: u64,
    /// Requests delivered twice, per mille.
    pub duplicates: u64,
    /// Registers and leaves without a reply subject, per mille.
    pub unanswered: u64,
    /// Of what happens, how much is a fault, per mille.
    pub faults: u64,
    /// A shard's turns come up to so much later than they are due, ms.
    pub jitter_ms: u64,
    /// Something happens about every so many ms.
    pub act_every_ms: u64,
    /// For how long it does.
    pub safety_ms: u64,
    /// The grace of every stream under RESTART.
    pub grace_ms: u64,
    /// The wall clock's distance from the ticks.
    pub skew_ms: u64,
}

impl Plan {
    pub fn draw(rng: &mut Rng) -> Self {
        let crowd = rng.chance(6);
        let (stale_after_ms, heartbeat_ms) =
            rng.pick(&[(3_000, 1_000), (3_000, 1_000), (10_000, 3_000), (10_000, 4_000), (90_000, 30_000)]);
        // So few places that only small batches get through, and not all of them.
        let tight = !crowd && rng.chance(150);
        let styles = [Style::Handles, Style::Handles, Style::Names, Style::Singles];
        let styles = if tight { &styles[..3] } else { &styles };
        let gateways: Vec<Style> = (0..rng.within(1, 3)).map(|_| rng.pick(styles)).collect();
        let long = stale_after_ms > 10_000;
        Self {
            shards: rng.pick(&[1, 2, 2, 3]),
            streams: rng.within(1, if tight { 3 } else { 6 }) as usize,
            directors: rng.within(1, 2) as usize,
            gateways,
            viewers: if crowd { rng.within(1_000, 4_000) as usize } else { rng.within(2, 40) as usize },
            stale_after_ms,
            heartbeat_ms,
            mailbox_capacity: if tight { rng.within(4, 16) as usize } else { MAILBOX_CAPACITY },
            publish_to: rng.pick(&[PublishTo::Subjects, PublishTo::Subjects, PublishTo::Feed, PublishTo::Both]),
            delay_ms: rng.pick(&[(0, 0), (0, 3), (1, 20), (5, 80)]),
            spikes: rng.pick(&[0, 5, 30]),
            duplicates: rng.pick(&[0, 20, 150]),
            unanswered: rng.pick(&[0, 100, 600]),
            faults: rng.pick(&[0, 20, 60, 150]),
            jitter_ms: rng.pick(&[0, 0, 0, 2, 30]),
            act_every_ms: if crowd { 50 } else { rng.pick(&[40, 200, 700]) },
            safety_ms: if crowd { 20_000 } else { rng.within(20_000, if long { 200_000 } else { 90_000 }) },
            grace_ms: rng.pick(&[0, 300, 2_000, 4_000]),
            skew_ms: rng.within(0, 5_000),
        }
    }

    /// Whether there are thousands of viewers, so that looking at everything must be rare.
    pub fn is_crowd(&self) -> bool {
        self.viewers >= 1_000
    }
}
