//! A recording of what each engine was fed, and its replay.
//!
//! The engine is a function of what it is told and when, so this is all there is to know of a service's decisions. A
//! recording is a sequence of length-delimited [`Entry`] messages; entries of one shard are in the order in which its
//! engine had them, those of different shards are mixed.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use metrics::counter;
use prost::Message as _;
use tracing::{error, info};

use super::engine_op::EngineOp;
use crate::{
    engine::{self, Engine, Hint, Limits, Outbox, Settings, Tick},
    wire::WireLimits,
};

/// Longest entry that is read, bytes: of which most is a message of the greatest size that can be configured.
const MAX_ENTRY_BYTES: usize = 160 << 20;

/// One entry of a recording.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    /// Which shard.
    #[prost(uint32, tag = "1")]
    pub shard: u32,
    /// When, ms since 1970.
    #[prost(uint64, tag = "2")]
    pub tick: u64,
    /// What.
    // 8 was a part of a batch, and is not to be used again.
    #[prost(oneof = "What", tags = "3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14")]
    pub what: Option<What>,
}

/// What an entry says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum What {
    /// A new, empty engine.
    #[prost(message, tag = "3")]
    Begin(Begin),
    /// A command.
    #[prost(bytes = "bytes", tag = "4")]
    Command(Bytes),
    /// A subscription whose sender waits for an answer.
    #[prost(bytes = "bytes", tag = "5")]
    AnsweredSubscription(Bytes),
    /// A subscription whose sender does not.
    #[prost(bytes = "bytes", tag = "6")]
    Subscription(Bytes),
    /// A query.
    #[prost(bytes = "bytes", tag = "7")]
    Query(Bytes),
    /// A part of a list.
    #[prost(message, tag = "9")]
    List(List),
    /// How much the tables may hold.
    #[prost(message, tag = "10")]
    Quota(Quota),
    /// What the wall clock says, ms since 1970.
    #[prost(uint64, tag = "14")]
    WallClock(u64),
    /// The process stood still, ms.
    #[prost(uint64, tag = "11")]
    ClockStalled(u64),
    /// What was due, looking at so many timers at the most.
    #[prost(uint64, tag = "12")]
    Expire(u64),
    /// The hash of the engine's state at the end.
    #[prost(fixed64, tag = "13")]
    End(u64),
}

/// What an engine was made with.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Begin {
    /// [`Settings::seed`].
    #[prost(fixed64, tag = "1")]
    pub seed: u64,
    /// [`Settings::stale_after_ms`].
    #[prost(uint64, tag = "2")]
    pub stale_after_ms: u64,
    /// The limits, in the order of the fields of [`WireLimits`] and [`Limits`].
    #[prost(uint64, repeated, tag = "3")]
    pub limits: Vec<u64>,
}

/// [`EngineOp::List`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct List {
    /// First slot.
    #[prost(uint32, tag = "1")]
    pub from_slot: u32,
    /// Most streams.
    #[prost(uint64, tag = "2")]
    pub limit: u64,
}

/// [`EngineOp::Quota`].
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Quota {
    /// Most streams.
    #[prost(uint64, tag = "1")]
    pub streams: u64,
    /// Most subscribers.
    #[prost(uint64, tag = "2")]
    pub subscribers: u64,
    /// Most bytes of configurations.
    #[prost(uint64, tag = "3")]
    pub config_bytes: u64,
    /// Most bytes of client ids and addresses.
    #[prost(uint64, tag = "4")]
    pub client_bytes: u64,
    /// Most filters.
    #[prost(uint64, tag = "5")]
    pub filters: u64,
    /// Most bytes of filters.
    #[prost(uint64, tag = "6")]
    pub filter_bytes: u64,
}

/// A recording being made. Shards share it; each write is whole.
#[derive(Debug)]
pub struct Recorder {
    /// None after a write failed: half an entry would spoil what is there. Each entry is flushed, so that a process that
    /// is killed leaves a recording to the moment of its end.
    file: Mutex<Option<BufWriter<File>>>,
    wire: WireLimits,
}

impl Recorder {
    /// Begins a recording in a new file.
    ///
    /// # Errors
    /// When the file cannot be made, or is there already.
    pub fn create(path: &Path, wire: WireLimits) -> io::Result<Self> {
        let file = File::create_new(path)?;
        Ok(Self { file: Mutex::new(Some(BufWriter::new(file))), wire })
    }

    /// A shard begins with an empty engine.
    pub(super) fn begin(&self, shard: usize, settings: &Settings) {
        let Settings { limits, stale_after_ms, seed } = settings;
        let begin = Begin { seed: *seed, stale_after_ms: *stale_after_ms, limits: numbers(&self.wire, limits) };
        self.put(shard, Tick(0), What::Begin(begin));
    }

    /// A shard feeds its engine.
    pub(super) fn write(&self, shard: usize, now: Tick, fed: &EngineOp) {
        let what = match fed.clone() {
            EngineOp::Command(bytes) => What::Command(bytes),
            EngineOp::Subscription { message, answered: true, .. } => What::AnsweredSubscription(message),
            EngineOp::Subscription { message, answered: false, .. } => What::Subscription(message),
            EngineOp::Query(bytes) => What::Query(bytes),
            EngineOp::List { from_slot, limit } => What::List(List { from_slot, limit: limit as u64 }),
            EngineOp::Quota(quota) => {
                let engine::Quota { streams, subscribers, config_bytes, client_bytes, filters, filter_bytes } = quota;
                What::Quota(Quota { streams, subscribers, config_bytes, client_bytes, filters, filter_bytes })
            }
            EngineOp::WallClock(ms) => What::WallClock(ms),
            EngineOp::ClockStalled(ms) => What::ClockStalled(ms),
            EngineOp::Expire(budget) => What::Expire(budget as u64),
        };
        self.put(shard, now, what);
    }

    /// A shard ends.
    pub(super) fn end(&self, shard: usize, engine: &Engine) {
        let digest = engine.digest();
        info!(shard, digest = format_args!("{digest:016x}"), "recording ends");
        self.put(shard, Tick(0), What::End(digest));
        if let Some(file) = &mut *self.file.lock().unwrap_or_else(PoisonError::into_inner)
            && let Err(error) = file.flush()
        {
            error!(%error, "the recording could not be written to its end");
        }
    }

    fn put(&self, shard: usize, tick: Tick, what: What) {
        let entry = Entry { shard: shard as u32, tick: tick.0, what: Some(what) };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &mut *file
            && let Err(error) = open.write_all(&entry.encode_length_delimited_to_vec()).and_then(|()| open.flush())
        {
            error!(%error, "recording failed and ends here");
            counter!("orchestrator_dropped_total", "reason" => "recording_failed").increment(1);
            *file = None;
        }
    }
}

fn numbers(wire: &WireLimits, limits: &Limits) -> Vec<u64> {
    let WireLimits { max_message_bytes, max_request_id_bytes, max_timecode_bytes, engine: _ } = wire;
    let Limits {
        max_scenes,
        max_scene_name_bytes,
        min_tick_interval_ms,
        max_tick_interval_ms,
        idle_timeout_ms,
        max_idle_timeout_ms,
        max_streams,
        max_subscribers,
        max_config_bytes,
        max_config_bytes_of_stream,
        max_client_bytes,
        max_filters,
        max_filter_bytes,
        max_history_bytes,
        max_sessions_per_client,
        max_remembered_requests,
        max_remembered_of_stream,
    } = limits;
    vec![
        *max_message_bytes as u64,
        *max_request_id_bytes as u64,
        *max_timecode_bytes as u64,
        *max_scenes as u64,
        *max_scene_name_bytes as u64,
        *min_tick_interval_ms,
        *max_tick_interval_ms,
        *idle_timeout_ms,
        *max_idle_timeout_ms,
        *max_streams,
        *max_subscribers,
        *max_config_bytes,
        *max_config_bytes_of_stream,
        *max_client_bytes,
        *max_filters,
        *max_filter_bytes,
        *max_history_bytes,
        u64::from(*max_sessions_per_client),
        *max_remembered_requests as u64,
        *max_remembered_of_stream as u64,
    ]
}

fn limits(numbers: &[u64]) -> Option<WireLimits> {
    let [
        message,
        request,
        timecode,
        scenes,
        name,
        min_tick,
        max_tick,
        idle,
        max_idle,
        streams,
        subscribers,
        config_bytes,
        config_bytes_of_stream,
        client_bytes,
        filters,
        filter_bytes,
        history_bytes,
        sessions,
        remembered,
        remembered_of_stream,
    ] = *numbers
    else {
        return None;
    };
    Some(WireLimits {
        max_message_bytes: usize::try_from(message).ok()?,
        max_request_id_bytes: usize::try_from(request).ok()?,
        max_timecode_bytes: usize::try_from(timecode).ok()?,
        engine: Limits {
            max_scenes: usize::try_from(scenes).ok()?,
            max_scene_name_bytes: usize::try_from(name).ok()?,
            min_tick_interval_ms: min_tick,
            max_tick_interval_ms: max_tick,
            idle_timeout_ms: idle,
            max_idle_timeout_ms: max_idle,
            max_streams: streams,
            max_subscribers: subscribers,
            max_config_bytes: config_bytes,
            max_config_bytes_of_stream: config_bytes_of_stream,
            max_client_bytes: client_bytes,
            max_filters: filters,
            max_filter_bytes: filter_bytes,
            max_history_bytes: history_bytes,
            max_sessions_per_client: u32::try_from(sessions).ok()?,
            max_remembered_requests: usize::try_from(remembered).ok()?,
            max_remembered_of_stream: usize::try_from(remembered_of_stream).ok()?,
        },
    })
}

/// What a replay came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Entries read.
    pub entries: u64,
    /// State updates that the engines made.
    pub updates: u64,
    /// Panics of an engine, each of which the live service survived with an empty one.
    pub panics: u64,
    /// The hash of each shard's final state, and what the recording says that it was; nothing if it ends before.
    pub digests: BTreeMap<u32, (u64, Option<u64>)>,
    /// Whether the recording stops in the middle of an entry, as that of a killed process does.
    pub cut_off: bool,
}

impl Replayed {
    /// Whether every shard that says how it ended has ended so again.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.digests.values().all(|(replayed, recorded)| recorded.is_none_or(|recorded| recorded == *replayed))
    }
}

/// Why a recording could not be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be read.
    #[error("cannot read the recording: {0}")]
    Io(#[from] io::Error),
    /// It is none, or of another version.
    #[error("entry {0} is not one of a recording of this version: {1}")]
    Malformed(u64, &'static str),
}

/// Runs a recording again, as fast as it goes.
///
/// # Errors
/// See [`ReplayError`].
pub fn replay(path: &Path) -> Result<Replayed, ReplayError> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut shards: BTreeMap<u32, (Engine, WireLimits)> = BTreeMap::new();
    let mut ends: BTreeMap<u32, u64> = BTreeMap::new();
    let mut replayed = Replayed::default();
    let mut outbox = Outbox::default();
    loop {
        let entry = match read_entry(&mut reader, replayed.entries) {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(ReplayError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                replayed.cut_off = true;
                break;
            }
            Err(error) => return Err(error),
        };
        let number = replayed.entries;
        let malformed = |why| ReplayError::Malformed(number, why);
        replayed.entries += 1;
        match entry.what.ok_or_else(|| malformed("it says nothing"))? {
            What::Begin(begin) => {
                let wire = limits(&begin.limits).ok_or_else(|| malformed("it has other limits"))?;
                let Begin { seed, stale_after_ms, .. } = begin;
                let settings = Settings { limits: wire.engine.clone(), stale_after_ms, seed };
                shards.insert(entry.shard, (Engine::new(settings), wire));
            }
            What::End(digest) => _ = ends.insert(entry.shard, digest),
            what => {
                let (engine, wire) =
                    shards.get_mut(&entry.shard).ok_or_else(|| malformed("its shard has not begun"))?;
                let fed = fed(what);
                let run = || fed.apply(Tick(entry.tick), engine, wire, &mut outbox);
                replayed.panics += u64::from(catch_unwind(AssertUnwindSafe(run)).is_err());
                replayed.updates += outbox.updates.len() as u64;
                outbox.clear();
            }
        }
    }
    if shards.is_empty() {
        return Err(ReplayError::Malformed(replayed.entries, "no shard begins in it"));
    }
    replayed.digests =
        shards.iter().map(|(shard, (engine, _))| (*shard, (engine.digest(), ends.get(shard).copied()))).collect();
    Ok(replayed)
}

fn fed(what: What) -> EngineOp {
    match what {
        What::Command(bytes) => EngineOp::Command(bytes),
        What::AnsweredSubscription(message) => EngineOp::Subscription { message, answered: true, hint: Hint::NONE },
        What::Subscription(message) => EngineOp::Subscription { message, answered: false, hint: Hint::NONE },
        What::Query(bytes) => EngineOp::Query(bytes),
        What::List(List { from_slot, limit }) => {
            EngineOp::List { from_slot, limit: usize::try_from(limit).unwrap_or(usize::MAX) }
        }
        What::Quota(Quota { streams, subscribers, config_bytes, client_bytes, filters, filter_bytes }) => {
            EngineOp::Quota(engine::Quota { streams, subscribers, config_bytes, client_bytes, filters, filter_bytes })
        }
        What::WallClock(ms) => EngineOp::WallClock(ms),
        What::ClockStalled(ms) => EngineOp::ClockStalled(ms),
        What::Expire(budget) => EngineOp::Expire(usize::try_from(budget).unwrap_or(usize::MAX)),
        // They feed nothing, and do not come here.
        What::Begin(_) | What::End(_) => EngineOp::Expire(0),
    }
}

/// The next entry; none at the end of the file.
fn read_entry(reader: &mut impl Read, number: u64) -> Result<Option<Entry>, ReplayError> {
    let mut length = 0_usize;
    for place in 0.. {
        let mut byte = [0];
        match reader.read(&mut byte)? {
            0 if place == 0 => return Ok(None),
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            _ => length |= usize::from(byte[0] & 0x7f) << (7 * place),
        }
        if byte[0] & 0x80 == 0 {
            break;
        }
        if place == 4 {
            return Err(ReplayError::Malformed(number, "its length is no length"));
        }
    }
    if length > MAX_ENTRY_BYTES {
        return Err(ReplayError::Malformed(number, "it is too long"));
    }
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes)?;
    Entry::decode(&*bytes).map(Some).map_err(|_| ReplayError::Malformed(number, "it does not decode"))
}
