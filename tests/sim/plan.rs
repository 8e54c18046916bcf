//! What kind of world a seed makes: all that is drawn before time begins.

use orchestrator_service::{
    engine::Limits,
    shard::{
        ingress::IngressLimits,
        mailbox::MailboxLimits,
        publish_queue::{AtOnce, PublishLimits, PublishTo},
        turn::TurnLimits,
    },
};

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

/// How patient a real client is, and how much it keeps.
#[derive(Clone, Copy, Debug)]
pub struct ClientStyle {
    pub attempt_ms: u64,
    pub total_ms: u64,
    pub absent_ms: u64,
    pub max_registrations: usize,
    pub max_unregisters: usize,
    /// Whether its gateway wants to know if there is a service.
    pub asks: bool,
}

impl ClientStyle {
    fn draw(rng: &mut Rng) -> Self {
        let attempt_ms = rng.pick(&[300, 1_000, 2_000, 2_000]);
        Self {
            attempt_ms,
            total_ms: attempt_ms * rng.within(1, 4),
            absent_ms: rng.pick(&[0, 750, 5_000]),
            max_registrations: rng.pick(&[5, 1_000_000, 1_000_000]),
            max_unregisters: rng.pick(&[3, 100_000, 100_000]),
            asks: rng.chance(500),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub shards: usize,
    pub streams: usize,
    pub directors: usize,
    pub gateways: Vec<Style>,
    /// Gateways with the real client.
    pub clients: Vec<ClientStyle>,
    /// At most so many viewers at a time.
    pub viewers: usize,
    pub stale_after_ms: u64,
    pub heartbeat_ms: u64,
    /// How much a turn takes, a mailbox and ingress.
    pub turn: TurnLimits,
    pub mailbox: MailboxLimits,
    pub ingress: IngressLimits,
    /// How many answers a stream remembers for repeats.
    pub remembered_of_stream: usize,
    pub publish_to: PublishTo,
    /// How much may be owed, and leaves at once.
    pub publish: PublishLimits,
    /// What a publisher's connection takes for one message, µs.
    pub publish_us: u64,
    /// Of what is to be published, how often a connection takes a part first and the rest later, per mille.
    pub partly: u64,
    /// Many streams share the messages of feeds, and the broker takes now less and now more than such a message.
    pub has_full_feeds: bool,
    /// What the broker takes, bytes: one of these at a time.
    pub max_payloads: Vec<usize>,
    /// One way over one connection, ms.
    pub delay_ms: (u64, u64),
    /// Every so often one takes far longer, per mille.
    pub spikes: u64,
    /// Requests delivered twice, per mille.
    pub duplicates: u64,
    /// Requests of clients that something else answers first, per mille.
    pub others_answer: u64,
    /// Registers and leaves without a reply subject, per mille.
    pub unanswered: u64,
    /// Viewers that come as somebody who watches at another gateway, session and all, per mille.
    pub shared: u64,
    /// Viewers of clients that follow a filter, per mille.
    pub filtered: u64,
    /// Scenes hold, shows start at an instant, some have no ticks.
    pub has_holds: bool,
    /// Whether gateways register and leave in batches of thousands.
    pub large_batches: bool,
    /// Somebody floods a stream with commands, one in so many ms.
    pub flood_every_ms: Option<u64>,
    /// For how long.
    pub flood_ms: u64,
    /// Each with a request id.
    pub flood_has_ids: bool,
    /// The tick interval of every stream, if it is the same.
    pub tick_interval_ms: Option<u64>,
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
        let congested = !crowd && !tight && rng.chance(50);
        let has_full_feeds = !crowd && !tight && !congested && rng.chance(80);
        let styles = [Style::Handles, Style::Handles, Style::Names, Style::Singles];
        let styles = if tight { &styles[..3] } else { &styles };
        let gateways: Vec<Style> = (0..rng.within(1, 3)).map(|_| rng.pick(styles)).collect();
        let long = stale_after_ms > 10_000;
        let clients = if rng.chance(400) { rng.within(1, 2) } else { 0 };
        let has_clients = clients > 0;
        let clients: Vec<ClientStyle> = (0..clients).map(|_| ClientStyle::draw(rng)).collect();
        Self {
            shards: rng.pick(&[1, 2, 2, 3]),
            streams: match () {
                () if congested => rng.within(8, 40),
                () if has_full_feeds => rng.within(20, 40),
                () => rng.within(1, if tight { 3 } else { 6 }),
            } as usize,
            directors: rng.within(1, 2) as usize,
            gateways,
            clients,
            viewers: match () {
                () if crowd => rng.within(1_000, 4_000),
                () if has_full_feeds => rng.within(60, 100),
                () => rng.within(2, 40),
            } as usize,
            stale_after_ms,
            heartbeat_ms,
            turn: turn_limits(rng, crowd),
            mailbox: mailbox_limits(rng, tight),
            ingress: ingress_limits(rng, crowd),
            remembered_of_stream: rng.pick(&[Limits::default().max_remembered_of_stream, 4, 30]),
            publish_to: if has_full_feeds {
                rng.pick(&[PublishTo::Feed, PublishTo::Both])
            } else {
                rng.pick(&[PublishTo::Subjects, PublishTo::Subjects, PublishTo::Feed, PublishTo::Both])
            },
            delay_ms: rng.pick(&[(0, 0), (0, 3), (1, 20), (5, 80)]),
            spikes: rng.pick(&[0, 5, 30]),
            duplicates: rng.pick(&[0, 20, 150]),
            others_answer: rng.pick(&[0, 0, 100]),
            unanswered: rng.pick(&[0, 100, 600]),
            shared: rng.pick(&[0, 100, 400]),
            // Where more is to be published than can be, it is known how much.
            filtered: if congested { 0 } else { rng.pick(&[0, 300, 800]) },
            has_holds: rng.chance(500),
            large_batches: crowd && rng.chance(500),
            flood_every_ms: (congested || rng.chance(100))
                .then(|| if congested { rng.within(2, 4) } else { rng.within(5, 200) }),
            flood_ms: if congested { rng.within(2_000, 4_000) } else { u64::MAX },
            flood_has_ids: rng.chance(500),
            tick_interval_ms: congested.then_some(100),
            faults: match () {
                () if has_full_feeds => 40,
                () if congested => rng.pick(&[0, 0, 20]),
                () => rng.pick(&[0, 20, 60, 150]),
            },
            jitter_ms: rng.pick(&[0, 0, 0, 2, 30]),
            publish: match () {
                () if has_full_feeds => PublishLimits::default(),
                () => publish_limits(rng, congested, crowd && has_clients),
            },
            partly: match () {
                () if has_full_feeds => 200,
                () if congested => 0,
                () => rng.pick(&[0, 0, 10]),
            },
            has_full_feeds,
            publish_us: if congested { rng.within(1_000, 5_000) } else { 0 },
            max_payloads: if has_full_feeds { vec![1 << 10, 4 << 10] } else { max_payloads(rng, crowd || tight) },
            act_every_ms: if crowd || has_full_feeds { 50 } else { rng.pick(&[40, 200, 700]) },
            safety_ms: if crowd || congested || has_full_feeds {
                20_000
            } else {
                rng.within(20_000, if long { 200_000 } else { 90_000 })
            },
            grace_ms: rng.pick(&[0, 300, 2_000, 4_000]),
            skew_ms: rng.within(0, 5_000),
        }
    }

    /// Whether all streams play from the beginning, so that there is much to publish at once.
    pub fn all_play(&self) -> bool {
        self.has_full_feeds || self.tick_interval_ms.is_some()
    }

    /// How many gateways there are, of both kinds.
    pub fn all_gateways(&self) -> usize {
        self.gateways.len() + self.clients.len()
    }

    /// Which ways updates go: on subjects, and in feeds.
    pub fn routes(&self) -> &'static [bool] {
        match self.publish_to {
            PublishTo::Subjects => &[false],
            PublishTo::Feed => &[true],
            PublishTo::Both => &[false, true],
        }
    }

    /// For how long nothing may be handed over of a stream that plays, where more is to be published than can be, ms: its
    /// tick interval, the shard's rest, and the time until its turn comes among all others.
    pub fn longest_gap_ms(&self) -> Option<u64> {
        /// Sizes of the shortest and of the longest update of these worlds, bytes.
        const SHORT: usize = 100;
        const LONG: usize = 400;
        let interval_ms = self.tick_interval_ms?;
        let AtOnce { messages, bytes } = self.publish.at_once;
        let most_updates = messages.min(bytes / SHORT + 1) as u64;
        // Each on its subject, in a feed, or both.
        let hand_over_ms = most_updates * 2 * self.publish_us / 1_000 + 1;
        let ticks = (messages / 2).min(bytes / 2 / LONG).max(1) as u64;
        let hand_overs = (self.streams as u64).div_ceil(ticks) + 2;
        Some(interval_ms + self.turn.rest_ms + 2 * self.jitter_ms + hand_overs * hand_over_ms + 100)
    }

    /// Whether there are thousands of viewers, so that looking at everything must be rare.
    pub fn is_crowd(&self) -> bool {
        self.viewers >= 1_000
    }
}

/// What a broker takes: what it does by default, or little, or now this and then that.
fn max_payloads(rng: &mut Rng, crowd: bool) -> Vec<usize> {
    const DEFAULT: usize = 1 << 20;
    if crowd || rng.chance(500) {
        return vec![DEFAULT];
    }
    let some = [1 << 10, 2 << 10, 4 << 10, 16 << 10, 64 << 10, DEFAULT];
    (0..rng.within(1, 3)).map(|_| rng.pick(&some)).collect()
}

/// As they are by default, or so low that they are met. Clients make batches that answers to the whole of a crowd fit into.
fn publish_limits(rng: &mut Rng, congested: bool, crowd_of_clients: bool) -> PublishLimits {
    let usual = PublishLimits::default();
    if !congested && rng.chance(600) {
        return usual;
    }
    let stops = !congested || rng.chance(300);
    PublishLimits {
        // Where a shard stops, its ticks are late whatever goes first.
        max_changes: if stops { rng.pick(&[usual.max_changes, 10, 100]) } else { usual.max_changes },
        max_change_bytes: if stops {
            rng.pick(&[usual.max_change_bytes, 2 << 10, 20 << 10])
        } else {
            usual.max_change_bytes
        },
        max_answers: if stops { rng.pick(&[usual.max_answers, 10, 100]) } else { usual.max_answers },
        max_answer_bytes: if stops {
            let least = if crowd_of_clients { 64 << 10 } else { 0 };
            rng.pick(&[usual.max_answer_bytes, 8 << 10, 40 << 10]).max(least)
        } else {
            usual.max_answer_bytes
        },
        ticks_behind: rng.pick(&[usual.ticks_behind, 0, 5]),
        max_feed_bytes: rng.pick(&[usual.max_feed_bytes, 300, 2_000]),
        at_once: AtOnce {
            // So much at a time that it is known when ticks have their share.
            messages: if stops { rng.pick(&[usual.at_once.messages, 4, 16]) } else { rng.pick(&[4, 16]) },
            bytes: if stops { rng.pick(&[usual.at_once.bytes, 1 << 10, 8 << 10]) } else { usual.at_once.bytes },
        },
        ..usual
    }
}

fn turn_limits(rng: &mut Rng, crowd: bool) -> TurnLimits {
    let usual = TurnLimits::default();
    if crowd || rng.chance(700) {
        return usual;
    }
    TurnLimits {
        messages: rng.pick(&[usual.messages, 1, 7]),
        weight: rng.pick(&[usual.weight, 1, 20]),
        look_ahead: rng.pick(&[usual.look_ahead, 1, 3]),
        expire_budget: rng.pick(&[usual.expire_budget, 1, 5]),
        rest_ms: rng.pick(&[usual.rest_ms, 10]),
    }
}

/// So few places, where it is tight, that only small batches get through, and not all of them.
fn mailbox_limits(rng: &mut Rng, tight: bool) -> MailboxLimits {
    let usual = MailboxLimits::default();
    let little = tight && rng.chance(300);
    MailboxLimits {
        messages: if tight { rng.within(4, 16) as usize } else { usual.messages },
        bulk_weight: if little { rng.within(5, 50) as usize } else { usual.bulk_weight },
        bulk_from: if little { rng.within(1, 10) as usize } else { usual.bulk_from },
        ..usual
    }
}

fn ingress_limits(rng: &mut Rng, crowd: bool) -> IngressLimits {
    let usual = IngressLimits::default();
    if rng.chance(700) {
        return usual;
    }
    IngressLimits {
        max_piece_entries: if crowd { rng.within(50, 500) as usize } else { rng.within(1, 4) as usize },
        max_listed: rng.pick(&[usual.max_listed, 1, 10]),
    }
}
