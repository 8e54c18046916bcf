//! Outputs to messages and bytes.
//!
//! An update is written by hand, in the order of the field numbers and without what is at its
//! default, exactly as prost would: thousands of streams say one each tick, and none of them allocates.

use bytes::{BufMut, Bytes};
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint},
};

use super::{Refusal, proto, subject};
use crate::engine::{
    Accepted, AtEnd, Cause, Config, Counts, Mode, Rejection, StateUpdate, Tick, Timeline, Unplaced, WhenEmpty,
};

impl From<Mode> for proto::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Unknown => Self::Unknown,
            Mode::Idle => Self::Idle,
            Mode::Running => Self::Running,
            Mode::Paused => Self::Paused,
            Mode::Stopped => Self::Stopped,
            Mode::Finished => Self::Finished,
        }
    }
}

impl From<Cause> for proto::Cause {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Tick => Self::Tick,
            Cause::Scene => Self::Scene,
            Cause::Command => Self::Command,
            Cause::Lifecycle => Self::Lifecycle,
            Cause::Snapshot => Self::Snapshot,
        }
    }
}

/// The numbers of an update that follow from its position.
struct Derived<'a> {
    scene_name: Option<&'a str>,
    scene_id: Option<&'a str>,
    total_ms: u64,
    remaining_ms: u64,
    progress: f64,
    scene_elapsed_ms: u64,
    scene_remaining_ms: u64,
    is_streaming: bool,
    timecode: &'a str,
}

impl<'a> Derived<'a> {
    #[allow(clippy::cast_precision_loss, reason = "a percentage")]
    fn of(update: &'a StateUpdate) -> Self {
        let total_ms = update.timeline.total_ms();
        let place = update.scene.map(|scene| update.timeline.within(scene, update.position_ms));
        Self {
            scene_name: update.scene.map(|scene| update.timeline.name(scene)),
            scene_id: update.scene.and_then(|scene| update.timeline.scene_id(scene)),
            total_ms,
            remaining_ms: total_ms.saturating_sub(update.position_ms),
            // A timeline shortened to nothing is at its end.
            progress: if total_ms == 0 { 100.0 } else { update.position_ms as f64 / total_ms as f64 * 100.0 },
            scene_elapsed_ms: place.map_or(0, |place| place.elapsed_ms),
            scene_remaining_ms: place.map_or(0, |place| place.remaining_ms),
            is_streaming: update.status.as_ref().is_some_and(|status| status.is_streaming),
            timecode: update.status.as_ref().map_or("", |status| &status.timecode),
        }
    }
}

const fn is_live(mode: Mode) -> bool {
    matches!(mode, Mode::Running | Mode::Paused)
}

/// One reading of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For the engine: never goes back.
    pub tick: Tick,
    /// For viewers: the wall clock, ms since 1970, which can be set.
    pub wall_ms: u64,
}

impl Now {
    /// The wall clock at the moment that an update is of. What is told again has noted it.
    fn wall_of(self, update: &StateUpdate) -> u64 {
        update.server_time_ms().unwrap_or_else(|| self.wall_at(update.at))
    }

    /// The wall clock at an earlier moment, had it not been set since.
    #[must_use]
    pub const fn wall_at(self, earlier: Tick) -> u64 {
        self.wall_ms.saturating_sub(self.tick.since(earlier))
    }

    /// How long the stream waits, by that clock, for the instant at which it starts, ms.
    fn starts_in(self, update: &StateUpdate) -> Option<u64> {
        update.starts_at_ms().map(|starts_at_ms| starts_at_ms.saturating_sub(self.wall_of(update)))
    }
}

/// An update as a message.
#[must_use]
pub fn state(update: &StateUpdate, now: Now) -> proto::StateUpdate {
    let derived = Derived::of(update);
    proto::StateUpdate {
        stream_id: update.stream_id.to_string(),
        current_scene: derived.scene_name.map(str::to_owned),
        current_time: update.position_ms,
        time_remaining: derived.remaining_ms,
        progress_percentage: derived.progress,
        is_running: is_live(update.mode),
        is_paused: update.mode == Mode::Paused,
        is_complete: update.mode == Mode::Finished,
        stream_timecode: derived.timecode.to_owned(),
        stream_is_streaming: derived.is_streaming,
        mode: proto::Mode::from(update.mode).into(),
        revision: update.revision,
        sequence: update.sequence,
        epoch: update.epoch,
        server_time_ms: now.wall_of(update),
        total_duration: derived.total_ms,
        scene_index: update.scene,
        scene_elapsed: derived.scene_elapsed_ms,
        scene_remaining: derived.scene_remaining_ms,
        loop_count: update.loop_count,
        cause: proto::Cause::from(update.cause).into(),
        holding: update.overtime_ms().is_some(),
        overtime: update.overtime_ms().unwrap_or(0),
        config_revision: update.config_revision,
        scene_id: derived.scene_id.map(str::to_owned),
        starts_in: now.starts_in(update),
    }
}

/// An update as bytes, the same as those of [`state`]'s message.
pub fn write_state(buffer: &mut impl BufMut, update: &StateUpdate, now: Now) {
    let derived = Derived::of(update);
    let flag = u64::from;
    text(buffer, 1, Some(&*update.stream_id).filter(|id| !id.is_empty()));
    text(buffer, 2, derived.scene_name);
    let mut numbers = Numbers::<{ 6 * NUMBER }>::default();
    numbers.put(3, update.position_ms);
    numbers.put(4, derived.remaining_ms);
    numbers.put_double(5, derived.progress);
    numbers.put(6, flag(is_live(update.mode)));
    numbers.put(7, flag(update.mode == Mode::Paused));
    numbers.put(8, flag(update.mode == Mode::Finished));
    buffer.put_slice(numbers.as_bytes());
    text(buffer, 9, Some(derived.timecode).filter(|timecode| !timecode.is_empty()));
    let mut numbers = Numbers::<{ 15 * NUMBER }>::default();
    numbers.put(10, flag(derived.is_streaming));
    numbers.put(11, proto::Mode::from(update.mode) as u64);
    numbers.put(12, update.revision);
    numbers.put(13, update.sequence);
    numbers.put(14, update.epoch);
    numbers.put(15, now.wall_of(update));
    numbers.put(16, derived.total_ms);
    if let Some(scene) = update.scene {
        numbers.put_present(17, scene.into());
    }
    numbers.put(18, derived.scene_elapsed_ms);
    numbers.put(19, derived.scene_remaining_ms);
    numbers.put(20, update.loop_count);
    numbers.put(21, proto::Cause::from(update.cause) as u64);
    if let Some(overtime_ms) = update.overtime_ms() {
        numbers.put_present(22, flag(true));
        numbers.put(23, overtime_ms);
    }
    numbers.put(24, update.config_revision);
    buffer.put_slice(numbers.as_bytes());
    text(buffer, 25, derived.scene_id);
    if let Some(starts_in) = now.starts_in(update) {
        let mut numbers = Numbers::<NUMBER>::default();
        numbers.put_present(26, starts_in);
        buffer.put_slice(numbers.as_bytes());
    }
}

/// Fields that are numbers, on the stack: a growing buffer would be asked for room for each of their bytes. Encoding an
/// update takes a third longer with that. `ROOM` is what they may take, bytes, and no more: it is set to 0 first.
struct Numbers<const ROOM: usize> {
    bytes: [u8; ROOM],
    len: usize,
}

/// What a number takes, bytes at the most: a key of two, and ten.
const NUMBER: usize = 2 + 10;

impl<const ROOM: usize> Default for Numbers<ROOM> {
    #[inline]
    fn default() -> Self {
        Self { bytes: [0; ROOM], len: 0 }
    }
}

impl<const ROOM: usize> Numbers<ROOM> {
    #[inline]
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// A number that is left out when it is 0.
    #[inline]
    fn put(&mut self, tag: u32, value: u64) {
        if value != 0 {
            self.put_present(tag, value);
        }
    }

    #[inline]
    fn put_present(&mut self, tag: u32, value: u64) {
        self.varint((tag << 3 | WireType::Varint as u32).into());
        self.varint(value);
    }

    #[inline]
    fn put_double(&mut self, tag: u32, value: f64) {
        if value != 0.0 {
            self.varint((tag << 3 | WireType::SixtyFourBit as u32).into());
            self.bytes[self.len..][..8].copy_from_slice(&value.to_le_bytes());
            self.len += 8;
        }
    }

    #[inline]
    fn varint(&mut self, mut value: u64) {
        // In a register while it goes on.
        let mut end = self.len;
        while value >= 0x80 {
            self.bytes[end] = value as u8 | 0x80;
            end += 1;
            value >>= 7;
        }
        self.bytes[end] = value as u8;
        self.len = end + 1;
    }
}

/// One update as an entry of an `UpdateBatch`.
pub fn write_batch_entry(buffer: &mut impl BufMut, update: &[u8]) {
    encode_key(1, WireType::LengthDelimited, buffer);
    encode_varint(update.len() as u64, buffer);
    buffer.put_slice(update);
}

/// One update as a `state` of a `QueryReply`.
pub fn write_listed(buffer: &mut Vec<u8>, update: &StateUpdate, now: Now) {
    let start = buffer.len();
    write_state(buffer, update, now);
    // The length is known only now.
    let mut key = Vec::with_capacity(4);
    encode_key(3, WireType::LengthDelimited, &mut key);
    encode_varint((buffer.len() - start) as u64, &mut key);
    buffer.splice(start..start, key);
}

/// The `cursor` of a `QueryReply`.
pub fn write_cursor(buffer: &mut impl BufMut, cursor: &str) {
    text(buffer, 5, Some(cursor));
}

fn text(buffer: &mut impl BufMut, tag: u32, value: Option<&str>) {
    if let Some(value) = value {
        encode_key(tag, WireType::LengthDelimited, buffer);
        encode_varint(value.len() as u64, buffer);
        buffer.put_slice(value.as_bytes());
    }
}

/// The answer to a refused command or subscription.
#[must_use]
pub fn refusal(refusal: &Refusal, stream_id: &str) -> proto::Reply {
    proto::Reply {
        code: refusal.code().into(),
        message: refusal.to_string(),
        stream_id: stream_id.to_owned(),
        revision: match refusal {
            // What to expect the next time.
            Refusal::Rejected(Rejection::Conflict { revision, .. }) => *revision,
            _ => 0,
        },
        ..Default::default()
    }
}

/// The answer to a refused query.
#[must_use]
pub fn query_refusal(refusal: &Refusal) -> proto::QueryReply {
    proto::QueryReply { code: refusal.code().into(), message: refusal.to_string(), ..Default::default() }
}

/// A refusal without anything else: the bytes of a [`proto::Reply`] and of a [`proto::QueryReply`], which have code and
/// message in the same place.
#[must_use]
pub fn short_refusal(code: proto::Code, message: String) -> Bytes {
    proto::Reply { code: code.into(), message, ..Default::default() }.encode_to_vec().into()
}

/// The answer that is given instead of one of `bytes` bytes, where messages have at most `limit`.
#[must_use]
pub fn answer_too_large(bytes: usize, limit: usize) -> Bytes {
    let message = format!("the answer has {bytes} bytes, and the connection takes {limit}");
    short_refusal(proto::Code::ResourceExhausted, message)
}

/// The answer to an accepted command or subscription.
#[must_use]
pub fn reply(accepted: &Accepted, stream_id: &str, now: Now) -> proto::Reply {
    let empty = || proto::Reply { stream_id: stream_id.to_owned(), ..Default::default() };
    let with_state =
        |update: &StateUpdate| proto::Reply { revision: update.revision, state: Some(state(update, now)), ..empty() };
    match accepted {
        Accepted::State(update) => with_state(update),
        Accepted::Registered { handle, state, .. } => proto::Reply { handle: handle.0, ..with_state(state) },
        Accepted::Following(following) => proto::Reply {
            handle: following.joined.map_or(0, |joined| joined.handle.0),
            updates_subject: subject::filtered(&following.state.stream_id, following.token).to_string(),
            lease_ms: following.lease_ms,
            ..with_state(&following.state)
        },
        Accepted::RegisteredBatch { handles, state } => {
            let refused = handles.iter().enumerate().find_map(|(place, handle)| Some((place, handle.as_ref().err()?)));
            let (code, message) = refused.map_or((proto::Code::Ok, String::new()), |(place, rejection)| {
                let refusal = Refusal::from(rejection.clone());
                let count = handles.iter().filter(|handle| handle.is_err()).count();
                (refusal.code(), format!("{count} of {} refused; subscriber[{place}]: {refusal}", handles.len()))
            });
            proto::Reply {
                code: code.into(),
                message,
                handles: handles.iter().map(|handle| handle.as_ref().map_or(0, |handle| handle.0)).collect(),
                ..with_state(state)
            }
        }
        Accepted::Batch(unplaced) => batch_reply(unplaced, stream_id, usize::MAX),
        Accepted::Unregistered { .. }
        | Accepted::Heard
        | Accepted::Noted
        | Accepted::Stats(_)
        | Accepted::Streams { .. }
        | Accepted::Config { .. }
        | Accepted::Subscribers { .. }
        | Accepted::History(_) => empty(),
    }
}

/// The most that an answer has besides its lists: ids, words and a state, bytes.
pub const MAX_REPLY_BYTES: usize = 1_536;
/// The same without a state: a stream's id, and a message of two lines.
const MAX_WORDS_BYTES: usize = 384;

/// The answer to a batch: what it could not place, as far as that fits into `max_bytes`. The message says how many more
/// there are: the next heartbeat tells of them.
#[must_use]
pub fn batch_reply(unplaced: &Unplaced, stream_id: &str, max_bytes: usize) -> proto::Reply {
    let unknown = unplaced.handles.len() + unplaced.clients.len();
    let mut room = max_bytes.saturating_sub(MAX_WORDS_BYTES);
    let handles = &unplaced.handles[..unplaced.handles.len().min(room / 8)];
    room -= 8 * handles.len();
    let clients: Vec<String> = (unplaced.clients.iter())
        .take_while(|client| {
            // Key and length: an id has at most 128 bytes.
            let bytes = client.len() + 3;
            let fits = bytes <= room;
            room = room.saturating_sub(bytes);
            fits
        })
        .cloned()
        .collect();
    let left_out = unknown - handles.len() - clients.len();
    let (code, mut message) = if unplaced.no_such_stream {
        (proto::Code::StreamNotFound, format!("stream_id: there is no stream {stream_id:?}"))
    } else if unknown > 0 {
        (proto::Code::UnknownSubscriber, format!("{unknown} are not registered; register them again"))
    } else {
        (proto::Code::Ok, String::new())
    };
    if left_out > 0 {
        message += &format!("; {left_out} of them are not listed, since the connection takes {max_bytes} bytes");
    }
    proto::Reply {
        code: code.into(),
        message,
        stream_id: stream_id.to_owned(),
        unknown_handle: handles.iter().map(|handle| handle.0).collect(),
        unknown_client_id: clients,
        ..Default::default()
    }
}

/// A configuration as a message, with every default filled in: [`super::commands::config`] makes the same of it.
#[must_use]
pub fn config(config: &Config) -> proto::OrchestratorConfig {
    let when_empty = match config.when_empty {
        WhenEmpty::Restart => proto::WhenEmpty::Restart,
        WhenEmpty::Freeze => proto::WhenEmpty::Freeze,
        WhenEmpty::RunOn => proto::WhenEmpty::RunOn,
    };
    let scenes = 0..config.timeline.scene_count();
    proto::OrchestratorConfig {
        scenes: scenes.map(|scene| scene_config(&config.timeline, scene)).collect(),
        tick_interval_ms: Some(config.tick_interval_ms.into()),
        loop_scenes: config.loop_scenes,
        when_empty: when_empty.into(),
        empty_grace_ms: Some(config.empty_grace_ms),
        idle_timeout_ms: Some(config.idle_timeout_ms),
        starts_at_ms: config.starts_at_ms(),
        no_ticks: config.no_ticks,
        title: config.title().to_owned(),
    }
}

fn scene_config(timeline: &Timeline, scene: u32) -> proto::SceneConfig {
    let (at_end, max_hold_ms, fallback) = match timeline.at_end(scene) {
        AtEnd::Next => (proto::AtEnd::Next, None, None),
        AtEnd::Hold { max_hold_ms, fallback } => (proto::AtEnd::Hold, max_hold_ms, fallback),
    };
    proto::SceneConfig {
        name: timeline.name(scene).to_owned(),
        duration_ms: timeline.duration_ms(scene),
        scene_id: timeline.scene_id(scene).unwrap_or_default().to_owned(),
        data: timeline.data(scene).to_owned(),
        at_end: at_end.into(),
        max_hold_ms,
        fallback_scene: fallback.unwrap_or_default().to_owned(),
        warn_ms: timeline.warn_ms(scene),
        danger_ms: timeline.danger_ms(scene),
    }
}

/// Counts as a message, and which subjects carry the updates.
#[must_use]
pub const fn stats(counts: &Counts, published_to: proto::PublishedTo) -> proto::Stats {
    proto::Stats {
        total: counts.total,
        active: counts.active,
        stale: counts.stale,
        unique_clients: counts.unique,
        streams: counts.streams,
        running_streams: counts.running,
        published_to: published_to as i32,
    }
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
