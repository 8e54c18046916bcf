//! What strangers make the service keep, in bytes, and the limits on it.
//!
//! Of some of it the engine learns when it has to, so what is kept is known in the fewest and in the most. What a run asks
//! for is decided to the byte all the same: see [`Model::determined`].

use proptest::{collection::vec, prelude::*};

use crate::{
    head::Head,
    reference::Model,
    steps::{CLIENTS, Hold, Plan, STREAMS, Say, TIMECODES, Who, who},
    stream::{Member, Stream},
    told::Refusal,
};

/// What may be kept for strangers, bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByteLimits {
    /// For all streams.
    pub(crate) configs: u64,
    /// For one configuration.
    pub(crate) config: u64,
    /// For all subscribers, beside their records.
    pub(crate) clients: u64,
}

impl ByteLimits {
    /// More than any run can need.
    pub(crate) const AMPLE: Self = Self { configs: 1 << 20, config: 1 << 20, clients: 1 << 20 };
}

/// As a rule more than is ever needed, else about what some streams and subscribers take: to the byte, or one beside it.
pub(crate) fn byte_limits() -> impl Strategy<Value = Edges> {
    let kept = (0..3_usize, 0..2_usize, any::<bool>(), any::<bool>())
        .prop_map(|(plan, stream, is_adjusted, has_timecode)| Kept { plan, stream, is_adjusted, has_timecode });
    let configs = proptest::option::weighted(0.8, (vec(kept, 1..=3), -1..=1_i64));
    let config = proptest::option::weighted(0.2, (0..3_usize, -1..=0_i64));
    let clients = proptest::option::weighted(0.7, (vec(who(), 0..5), -1..=1_i64));
    prop_oneof![
        2 => Just(Edges::default()),
        1 => (configs, config, clients).prop_map(|(configs, config, clients)| Edges { configs, config, clients }),
    ]
}

/// Limits by what just fits, and so many bytes more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Edges {
    configs: Option<(Vec<Kept>, i64)>,
    config: Option<(usize, i64)>,
    clients: Option<(Vec<Who>, i64)>,
}

/// A stream of this plan and id, whether its pass is adjusted, and whether its encoder's timecode is known.
#[derive(Clone, Copy, Debug)]
struct Kept {
    plan: usize,
    stream: usize,
    is_adjusted: bool,
    has_timecode: bool,
}

impl Kept {
    fn bytes(self, plans: &[Plan]) -> u64 {
        let plan = &plans[self.plan];
        let adjusted = if self.is_adjusted { plan.scene_bytes() } else { 0 };
        let timecode = if self.has_timecode { TIMECODES[0].len() as u64 } else { 0 };
        STREAMS[self.stream].len() as u64 + plan.bytes() + adjusted + timecode
    }
}

impl Edges {
    pub(crate) fn limits(&self, plans: &[Plan]) -> ByteLimits {
        let stream = |kept: &Kept| kept.bytes(plans);
        let configs = self.configs.as_ref().map(|(kept, more)| (kept.iter().map(stream).sum::<u64>(), *more));
        let config = self.config.map(|(plan, more)| (plans[plan].bytes(), more));
        let client = |who: &Who| id_bytes(who.client) + source_bytes(who.from);
        let clients = self.clients.as_ref().map(|(kept, more)| (kept.iter().map(client).sum::<u64>(), *more));
        let limit = |edge: Option<(u64, i64)>| edge.map(|(bytes, more)| bytes.saturating_add_signed(more));
        let ample = ByteLimits::AMPLE;
        ByteLimits {
            configs: limit(configs).unwrap_or(ample.configs),
            config: limit(config).unwrap_or(ample.config),
            clients: limit(clients).unwrap_or(ample.clients),
        }
    }
}

// --- counting -----------------------------------------------------------------------------------------------------------

impl Plan {
    /// What it takes, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let has_more = self.starts.is_some() || !self.title().is_empty();
        self.scene_bytes() + if has_more { 32 + self.title().len() as u64 } else { 0 }
    }

    /// What its scenes take, bytes: for each its name, and where it ends and its name does. If any has more than that,
    /// ids and places for what each may have; if one does not lead to the next, also which do not, and the times to the end.
    pub(crate) fn scene_bytes(&self) -> u64 {
        let count = self.scenes.len() as u64;
        let length = |text: Option<&str>| text.map_or(0, str::len) as u64;
        let names = self.scenes.iter().map(|scene| length(Some(scene.name))).sum::<u64>();
        let ids = self.scenes.iter().map(|scene| length(scene.id)).sum::<u64>();
        let leads_elsewhere = |hold: Hold| hold.max.is_none() || hold.fallback.is_some();
        let turns = self.scenes.iter().filter(|scene| scene.hold.is_some_and(leads_elsewhere)).count() as u64;
        let is_plain = self.scenes.iter().all(|scene| scene.id.is_none() && scene.hold.is_none());
        let details = if is_plain { 0 } else { 24 + 48 + 40 * count + ids };
        let times = if turns == 0 { 0 } else { 4 * turns + 8 * (count + 1) };
        16 * count + names + details + times
    }
}

impl Stream {
    /// What is kept for it, bytes, in the fewest and in the most: the engine keeps a pass that was adjusted until it
    /// notices that another has begun, and of a stream that nobody watches it does so when it has to.
    pub(crate) fn bytes(&self, now: u64) -> (u64, u64) {
        let timecode = self.status.map_or(0, |status| TIMECODES[usize::from(status.timecode)].len() as u64);
        let configured = self.name.len() as u64 + self.plan.bytes() + timecode;
        let last = self.story.last().map_or(now, |(when, _)| *when);
        let adjusted = |when| self.adjusted_bytes(&self.head(when));
        (configured + adjusted(now), configured + adjusted(last))
    }

    pub(crate) fn adjusted_bytes(&self, head: &Head) -> u64 {
        if head.scenes == self.plan.scenes { 0 } else { self.plan.scene_bytes() }
    }
}

pub(crate) fn bytes_of(audience: &[Member]) -> u64 {
    audience.iter().map(|member| id_bytes(member.client) + source_bytes(member.from)).sum()
}

/// What an id takes beside the record, bytes; a UUID in small letters is in it.
pub(crate) fn id_bytes(client: u8) -> u64 {
    let is_uuid = matches!(client, 1 | 4);
    if is_uuid { 0 } else { 32 + CLIENTS[usize::from(client)].len() as u64 }
}

/// What an address takes beside the record, bytes; one of IPv4 is in it.
pub(crate) fn source_bytes(from: u8) -> u64 {
    if from < 2 { 0 } else { 28 }
}

/// How many bytes more may be kept for streams, and of how many.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    left: u64,
    limit: u64,
}

impl Room {
    /// What was `before` may become `after`, unless it takes more than there is.
    pub(crate) fn check(self, before: u64, after: u64) -> Result<(), Refusal> {
        let fits = after.saturating_sub(before) <= self.left;
        if fits { Ok(()) } else { Err(Refusal::Exhausted { what: "bytes of configurations", limit: self.limit }) }
    }
}

impl Model {
    /// What is kept for all streams, in the fewest and in the most: see [`Stream::bytes`].
    pub(crate) fn config_bytes(&self) -> (u64, u64) {
        let bytes = self.streams.values().map(|stream| stream.bytes(self.now));
        bytes.fold((0, 0), |(least, most), (one_least, one_most)| (least + one_least, most + one_most))
    }

    /// How much there is left of it for a command to a stream that was brought to the present, in the most and in the
    /// fewest.
    pub(crate) fn room(&self, stream: &str) -> [Room; 2] {
        let limit = self.setup.bytes.configs;
        let (least, most) = self.config_bytes();
        let (own_least, own_most) = self.streams.get(stream).map_or((0, 0), |stream| stream.bytes(self.now));
        let left = |kept: u64| Room { left: self.max_config_bytes.min(limit).saturating_sub(kept), limit };
        [left(least), left(most - own_most + own_least)]
    }

    /// What is kept for all subscribers beside their records, in the fewest and in the most: ids that are no UUIDs in
    /// small letters, and addresses that are longer than those of IPv4.
    pub(crate) fn client_bytes(&self) -> (u64, u64) {
        let least = self.streams.values().map(|stream| bytes_of(&stream.audience)).sum();
        (least, least + self.unforgotten_bytes)
    }

    pub(crate) fn check_client_bytes(&self, more: u64) -> Result<(), Refusal> {
        let limit = self.setup.bytes.clients;
        if more == 0 || self.client_bytes().0 + more <= self.max_client_bytes.min(limit) {
            return Ok(());
        }
        Err(Refusal::Exhausted { what: "bytes of client ids that are no UUIDs and of IPv6 addresses", limit })
    }

    /// The same, but a question where the answer depends on whether the engine has noticed that the adjusted pass of
    /// another stream is over, or has forgotten all subscribers of a stream that was removed.
    pub(crate) fn determined(&self, say: Say) -> Say {
        // More than any one of them can take.
        const AMPLE: u64 = 600;
        let (stream, is_certain) = match say {
            Say::Command { stream, .. } => {
                let [most, least] = self.room(STREAMS[usize::from(stream)]);
                (stream, most == least || least.left > AMPLE)
            }
            Say::Register { stream, .. } | Say::RegisterBatch { stream, .. } => {
                let (least, most) = self.client_bytes();
                (stream, most == least || most + AMPLE < self.max_client_bytes.min(self.setup.bytes.clients))
            }
            say => return say,
        };
        if is_certain { say } else { Say::GetState { stream } }
    }
}
