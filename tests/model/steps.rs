//! What can happen in a run, and how often: the world a run is set in, its steps, and their strategies.
//!
//! A step is written without reference to anything that only a run knows: "the second youngest handle", "1 ms before
//! what is due next". The reference resolves that when it gets there, so a step means something in any run, and a run
//! stays one while steps are taken out of it. Printed with `{:?}` it is Rust again, for [`crate::replay`].

use std::net::SocketAddr;

use orchestrator_service::engine::{
    AtEnd, Config, Draft, Limits, MAX_DURATION_MS, REMEMBER_MS, SNAPSHOT_INTERVAL_MS, STALE_LINGER_MS, Scene, Settings,
    WhenEmpty,
};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::bytes::{ByteLimits, byte_limits};

/// The beginning of every run: some day in 2023, ms since 1970.
pub(crate) const T0: u64 = 1_700_000_000_000;

/// Streams: one more than there is room for.
pub(crate) const STREAMS: [&str; 4] = ["show", "6f9619ff-8b86-d011-b42d-00cf4fc964ff", "B_2", "last"];

/// Clients: texts, UUIDs, and a UUID in capitals, which is another client than the same in small letters.
pub(crate) const CLIENTS: [&str; 6] = [
    "viewer",
    "b6d4e1c2-0f57-4c6c-9d4e-0f3a4c1b2d3e",
    "B6D4E1C2-0F57-4C6C-9D4E-0F3A4C1B2D3E",
    "Zoë",
    "b6d4e1c2-0f57-4c6c-9d4e-0f3a4c1b2d3f",
    "a.b*>",
];

/// What scenes are called, and what else somebody may call one: ids, of which one is a name as well, and nothing that is
/// there.
pub(crate) const SCENES: [&str; 7] = ["Intro", "Main", "Outro", "Credits", "Nowhere", "x", "y"];

/// Ids of scenes.
const IDS: [&str; 3] = ["x", "y", "Main"];

/// Request ids.
pub(crate) const REQUESTS: [&str; 4] = ["r0", "r1", "r2", "r3"];

/// What may be told of the encoder.
pub(crate) const TIMECODES: [&str; 2] = ["00:00:07:00", ""];

/// Where a subscriber may come from.
pub(crate) fn source(from: u8) -> Option<SocketAddr> {
    match from {
        0 => None,
        1 => Some(SocketAddr::from(([192, 0, 2, 7], 51_000))),
        _ => Some(SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(from)], 443))),
    }
}

/// The world that a run is set in.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// The configurations that commands choose from.
    pub(crate) plans: Vec<Plan>,
    pub(crate) stale_after: u64,
    /// Of one stream, and of all together that are not there.
    pub(crate) max_remembered: usize,
    /// How much the engine is allowed to look at in one call.
    pub(crate) budget: usize,
    pub(crate) bytes: ByteLimits,
    /// Whether every stream is asked for its state after every step. Asking brings a stream to the present, so a run
    /// without it is not the same run.
    pub(crate) curious: bool,
    /// Whether every stream is taken out and put back after every step, as if it had been written down and read again.
    pub(crate) reloads: bool,
}

/// A configuration of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) scenes: Vec<PlanScene>,
    pub(crate) tick: u64,
    pub(crate) looping: bool,
    pub(crate) when_empty: WhenEmpty,
    pub(crate) grace: u64,
    pub(crate) idle: u64,
    pub(crate) no_ticks: bool,
    /// When it starts by the wall clock, ms from the beginning of the run.
    pub(crate) starts: Option<i64>,
}

/// A scene of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlanScene {
    pub(crate) name: &'static str,
    pub(crate) id: Option<&'static str>,
    pub(crate) ms: u64,
    pub(crate) hold: Option<Hold>,
}

/// How a scene holds at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) max: Option<u64>,
    pub(crate) fallback: Option<&'static str>,
}

impl PlanScene {
    /// One with nothing but a name and a length.
    pub(crate) const fn plain(name: &'static str, ms: u64) -> Self {
        Self { name, id: None, ms, hold: None }
    }
}

impl Plan {
    pub(crate) fn title(&self) -> &'static str {
        if self.no_ticks { "Without ticks" } else { "" }
    }

    /// The same for the engine, if it takes it.
    pub(crate) fn config(&self, bytes: ByteLimits) -> Option<Config> {
        let draft = Draft {
            scenes: self.scenes.iter().map(PlanScene::scene).collect(),
            tick_interval_ms: Some(self.tick),
            loop_scenes: self.looping,
            when_empty: self.when_empty,
            empty_grace_ms: Some(self.grace),
            idle_timeout_ms: Some(self.idle),
            starts_at_ms: self.starts_at(),
            no_ticks: self.no_ticks,
            title: self.title(),
        };
        let limits = Limits {
            max_idle_timeout_ms: MAX_DURATION_MS,
            max_config_bytes_of_stream: bytes.config,
            ..Limits::default()
        };
        Config::new(&draft, &limits).ok()
    }

    /// The wall clock at which it starts, ms since 1970.
    pub(crate) fn starts_at(&self) -> Option<u64> {
        self.starts.map(|starts| T0.saturating_add_signed(starts))
    }
}

impl PlanScene {
    fn scene(&self) -> Scene<'static> {
        let hold = |hold: Hold| AtEnd::Hold { max_hold_ms: hold.max, fallback: hold.fallback };
        Scene { id: self.id, at_end: self.hold.map_or(AtEnd::Next, hold), ..Scene::new(self.name, self.ms) }
    }
}

/// Most streams at a time, at first.
pub(crate) const MAX_STREAMS: u64 = 3;
/// Most subscribers at a time, at first.
pub(crate) const MAX_SUBSCRIBERS: u64 = 8;
/// Most sessions of one client on one stream.
pub(crate) const MAX_SESSIONS: u32 = 3;

impl Setup {
    /// The same for the engine.
    pub(crate) fn settings(&self) -> Settings {
        let limits = Limits {
            max_streams: MAX_STREAMS,
            max_subscribers: MAX_SUBSCRIBERS,
            max_sessions_per_client: MAX_SESSIONS,
            max_remembered_requests: if self.max_remembered == 0 { 0 } else { 65_536 },
            max_remembered_of_stream: self.max_remembered,
            max_config_bytes: self.bytes.configs,
            max_config_bytes_of_stream: self.bytes.config,
            max_client_bytes: self.bytes.clients,
            ..Limits::default()
        };
        Settings { limits, stale_after_ms: self.stale_after, seed: 7 }
    }
}

/// One step of a run.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Something comes in, and then the engine does what is due.
    Say(Say),
    /// Something comes in, and the engine is not called for what is due: the next input is in the same batch.
    Rush(Say),
    /// Time goes by; the engine is called at the end, however late that is.
    Wait(Span),
    /// Time goes by without a call, so that the next input meets streams whose time has passed.
    Sleep(Span),
    /// The engine is called exactly when it wants to be, until that many things were due.
    Follow(u8),
}

/// How long.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Span {
    Ms(u64),
    /// Until this one of the things to come, counted from the next, and so many ms more.
    Due(u8, i8),
    /// Until the oldest answer is forgotten, and so many ms more.
    Forgotten(i8),
}

/// An input. Streams, clients, scenes, plans and request ids are places in the lists above.
#[derive(Clone, Debug)]
pub(crate) enum Say {
    /// The last command that had a request id, once more.
    Again,
    Command {
        stream: u8,
        request: Option<u8>,
        expects: Option<Expects>,
        command: Action,
    },
    Register {
        stream: u8,
        who: Who,
        answered: bool,
    },
    /// A malformed member is none.
    RegisterBatch {
        stream: u8,
        who: Vec<Option<Who>>,
        answered: bool,
    },
    Unregister {
        stream: u8,
        who: Who,
    },
    Heartbeat {
        stream: u8,
        who: Who,
    },
    HeartbeatBatch(Many),
    UnregisterBatch(Many),
    GetState {
        stream: u8,
    },
    GetStats {
        stream: Option<u8>,
    },
    /// All pages of so many.
    ListStreams {
        limit: usize,
    },
    SetRoom {
        streams: u64,
        subscribers: u64,
        config_bytes: u64,
        client_bytes: u64,
    },
    ClockStalled {
        ms: u64,
    },
    /// The wall clock is set: so far ahead of the time of the run, ms.
    WallClock {
        ahead: i64,
    },
}

/// A connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    pub(crate) client: u8,
    pub(crate) session: u64,
    pub(crate) from: u8,
}

/// A batch.
#[derive(Clone, Debug)]
pub(crate) struct Many {
    pub(crate) stream: Option<u8>,
    pub(crate) clients: Vec<u8>,
    pub(crate) handles: Vec<Ticket>,
}

/// A handle.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ticket {
    /// Given for this one of all registrations, counted from the youngest.
    Youngest(u8),
    /// Never given to anybody; there are several ways of making one up.
    Forged(u8),
}

/// What a command expects of its stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expects {
    /// The revision that it is at, and so much more.
    Present(i8),
    /// That revision.
    Exactly(u64),
    /// The stream that is there; or one that never was.
    Epoch(bool),
    /// A scene.
    Scene(u8),
    /// The present scene by its name, or none.
    PresentScene,
    /// The present scene by its id if it has one.
    PresentId,
    /// No scene.
    NoScene,
}

/// A command.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    Start(Option<u8>),
    Stop,
    Pause,
    Resume,
    ForceScene(u8),
    SkipScene,
    PreviousScene,
    /// A position.
    Seek(u64),
    /// So many ms before the end of the present pass.
    SeekFromEnd(u64),
    AdjustScene(i64),
    Status(Status),
    Reconfigure(u8),
    Reset,
    Remove,
}

/// What is told of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) is_streaming: bool,
    pub(crate) ms: u64,
    pub(crate) timecode: u8,
}

// --- strategies ---------------------------------------------------------------------------------------------------------

/// Any world.
pub(crate) fn setup() -> impl Strategy<Value = Setup> {
    (
        vec(plan(), 3),
        prop_oneof![6 => Just(90_000), 1 => Just(1), 1 => Just(20), 2 => Just(700), 3 => Just(5_000)],
        prop_oneof![1 => Just(0), 1 => Just(1), 3 => Just(3)],
        prop_oneof![3 => Just(1 << 20), 1 => Just(1), 1 => Just(2), 1 => Just(5)],
        byte_limits(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(plans, stale_after, max_remembered, budget, edges, curious, reloads)| Setup {
            bytes: edges.limits(&plans),
            plans,
            stale_after,
            max_remembered,
            budget,
            curious,
            reloads,
        })
}

/// A scene without the things that depend on others: which name, which id, its length, how long it holds, and how many
/// scenes behind it its fallback is.
type Rough = (usize, Option<&'static str>, u64, Option<Option<u64>>, usize);

/// Scenes of which the fallbacks lead to later ones and no id is there twice.
fn scenes(first: usize, rough: &[Rough]) -> Vec<PlanScene> {
    let mut scenes: Vec<PlanScene> = Vec::new();
    for (name, id, ms, hold, _) in rough {
        let id = id.filter(|id| scenes.iter().all(|scene| scene.id != Some(id)));
        let hold = hold.map(|max| Hold { max, fallback: None });
        scenes.push(PlanScene { name: SCENES[(first + name) % 4], id, ms: *ms, hold });
    }
    for (place, (.., ahead)) in rough.iter().enumerate() {
        let Some(target) = scenes.get(place + ahead).filter(|_| *ahead > 0) else { continue };
        let named = target.id.filter(|_| ahead % 2 == 1).unwrap_or(target.name);
        // A name that is the id of an earlier scene names that one.
        let by_id = scenes.iter().position(|scene| scene.id == Some(named));
        if let Some(hold) = &mut scenes[place].hold
            && by_id.is_none_or(|scene| scene > place)
        {
            hold.fallback = Some(named);
        }
    }
    scenes
}

fn rough(length: impl Strategy<Value = u64>) -> impl Strategy<Value = Rough> {
    let max = prop_oneof![
        2 => Just(None),
        2 => (1..20_u64).prop_map(Some),
        3 => (100..3_000_u64).prop_map(Some),
        1 => Just(Some(MAX_DURATION_MS)),
    ];
    (
        0..3_usize,
        proptest::option::weighted(0.3, select(&IDS[..])),
        length,
        proptest::option::weighted(0.3, max),
        prop_oneof![2 => Just(0), 1 => 1..4_usize],
    )
}

fn plan() -> impl Strategy<Value = Plan> {
    let length = prop_oneof![
        2 => Just(1),
        3 => 2_u64..20,
        4 => 50_u64..3_000,
        3 => select(&[100, 1_000, 3_000, 10_000, 60_000][..]),
        1 => Just(MAX_DURATION_MS),
    ];
    (
        // Names from some place on, so that plans share some and not others, in different places.
        (0..4_usize, vec(rough(length), 1..=4), any::<bool>()),
        prop_oneof![3 => Just(100), 1 => Just(10), 1 => Just(11), 2 => Just(1_000), 2 => Just(60_000)],
        any::<bool>(),
        select(&[WhenEmpty::Restart, WhenEmpty::Freeze, WhenEmpty::RunOn][..]),
        select(&[0, 1, 50, 2_000, 100_000, MAX_DURATION_MS][..]),
        prop_oneof![1 => select(&[1, 10, 300, 2_000][..]), 3 => Just(60_000), 2 => Just(MAX_DURATION_MS)],
        proptest::bool::weighted(0.15),
        proptest::option::weighted(0.25, starts()),
    )
        .prop_map(|((first, mut rough, plain), tick, looping, when_empty, grace, idle, no_ticks, starts)| {
            if plain {
                // As older gateways ask for them: with distinct names and nothing else.
                rough = rough.into_iter().enumerate().map(|(n, (_, _, ms, ..))| (n, None, ms, None, 0)).collect();
            }
            Plan { scenes: scenes(first, &rough), tick, looping, when_empty, grace, idle, no_ticks, starts }
        })
}

fn starts() -> impl Strategy<Value = i64> {
    let year = MAX_DURATION_MS as i64;
    prop_oneof![
        4 => 0..5_000_i64,
        2 => -5_000..0_i64,
        1 => select(vec![60_000, 86_400_000, -86_400_000, year, year + 1_000, 2 * year, -2 * year]),
    ]
}

/// What a run has come to, as far as it matters for what is likely to happen next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stage {
    /// No stream is there.
    Empty,
    /// Nobody watches any.
    Unwatched,
    /// Somebody watches.
    Watched,
}

/// Any step. Every step can come on any stage; the stage only makes those likelier without which nothing else happens:
/// left to chance alone, two steps of three found no stream.
pub(crate) fn step(stage: Stage) -> impl Strategy<Value = Step> {
    let (begin, join) = match stage {
        Stage::Empty => (60, 1),
        Stage::Unwatched => (1, 20),
        Stage::Watched => (1, 1),
    };
    let start = (0..3_u8).prop_map(|plan| Say::Command {
        stream: 0,
        request: None,
        expects: None,
        command: Action::Start(Some(plan)),
    });
    let register = (stream(), who(), any::<bool>());
    let register = register.prop_map(|(stream, who, answered)| Say::Register { stream, who, answered });
    prop_oneof![
        begin => start.prop_map(Step::Say),
        join => register.prop_map(Step::Say),
        10 => say().prop_map(Step::Say),
        4 => say().prop_map(Step::Rush),
        5 => span().prop_map(Step::Wait),
        2 => span().prop_map(Step::Sleep),
        2 => (1..8_u8).prop_map(Step::Follow),
    ]
}

fn span() -> impl Strategy<Value = Span> {
    let known = [
        0,
        1,
        SNAPSHOT_INTERVAL_MS - 1,
        SNAPSHOT_INTERVAL_MS,
        STALE_LINGER_MS,
        1_000,
        60_000,
        REMEMBER_MS - 1,
        REMEMBER_MS,
        86_400_000,
        40 * 86_400_000,
        2 * MAX_DURATION_MS,
    ];
    prop_oneof![
        8 => (0..20_u64).prop_map(Span::Ms),
        8 => (0..2_000_u64).prop_map(Span::Ms),
        2 => select(known.to_vec()).prop_map(Span::Ms),
        16 => (-1..=1_i8).prop_map(|more| Span::Due(0, more)),
        4 => ((0..4_u8), (-1..=1_i8)).prop_map(|(which, more)| Span::Due(which, more)),
        2 => (-1..=1_i8).prop_map(Span::Forgotten),
    ]
}

fn stream() -> impl Strategy<Value = u8> {
    prop_oneof![12 => Just(0), 4 => Just(1), 1 => Just(2), 1 => Just(3)]
}

fn client() -> impl Strategy<Value = u8> {
    prop_oneof![5 => Just(0), 2 => Just(1), 2 => 2..6_u8]
}

pub(crate) fn who() -> impl Strategy<Value = Who> {
    let session = prop_oneof![3 => Just(0), 3 => 1..=3_u64, 1 => Just(u64::MAX)];
    (client(), session, 0..4_u8).prop_map(|(client, session, from)| Who { client, session, from })
}

fn many() -> impl Strategy<Value = Many> {
    let ticket = prop_oneof![4 => (0..6_u8).prop_map(Ticket::Youngest), 1 => (0..6_u8).prop_map(Ticket::Forged)];
    let stream = prop_oneof![3 => stream().prop_map(Some), 1 => Just(None)];
    (stream, vec(client(), 0..3), vec(ticket, 0..5)).prop_map(|(stream, clients, handles)| Many {
        stream,
        clients,
        handles,
    })
}

fn say() -> impl Strategy<Value = Say> {
    let request = prop_oneof![3 => Just(None), 1 => (0..4_u8).prop_map(Some)];
    let expects = prop_oneof![
        20 => Just(None),
        2 => Just(Some(Expects::Present(0))),
        1 => (-1..=1_i8).prop_map(|more| Some(Expects::Present(more))),
        1 => prop_oneof![Just(0), Just(1), Just(u64::MAX)].prop_map(|revision| Some(Expects::Exactly(revision))),
        1 => any::<bool>().prop_map(|present| Some(Expects::Epoch(present))),
        1 => (0..7_u8).prop_map(|scene| Some(Expects::Scene(scene))),
        1 => select(&[Expects::PresentScene, Expects::PresentId, Expects::NoScene][..]).prop_map(Some),
    ];
    let ahead = prop_oneof![
        3 => -3_000..3_000_i64,
        1 => select(vec![0, 86_400_000, -86_400_000, MAX_DURATION_MS as i64]),
    ];
    let bytes = || prop_oneof![1 => 0..300_u64, 1 => 300..900_u64, 4 => Just(u64::MAX)];
    let room = (prop_oneof![0..4_u64, Just(u64::MAX)], prop_oneof![0..9_u64, Just(u64::MAX)], bytes(), bytes());
    let room = room.prop_map(|(streams, subscribers, config_bytes, client_bytes)| Say::SetRoom {
        streams,
        subscribers,
        config_bytes,
        client_bytes,
    });
    prop_oneof![
        20 => (stream(), request, expects, action())
            .prop_map(|(stream, request, expects, command)| Say::Command { stream, request, expects, command }),
        2 => Just(Say::Again),
        9 => (stream(), who(), any::<bool>()).prop_map(|(stream, who, answered)| Say::Register { stream, who, answered }),
        2 => (stream(), vec(proptest::option::weighted(0.8, who()), 0..5), any::<bool>())
            .prop_map(|(stream, who, answered)| Say::RegisterBatch { stream, who, answered }),
        5 => (stream(), who()).prop_map(|(stream, who)| Say::Unregister { stream, who }),
        3 => (stream(), who()).prop_map(|(stream, who)| Say::Heartbeat { stream, who }),
        3 => many().prop_map(Say::HeartbeatBatch),
        3 => many().prop_map(Say::UnregisterBatch),
        2 => stream().prop_map(|stream| Say::GetState { stream }),
        1 => proptest::option::of(stream()).prop_map(|stream| Say::GetStats { stream }),
        1 => (1..4_usize).prop_map(|limit| Say::ListStreams { limit }),
        1 => room,
        1 => select(&[0, 1, 700, 60_000, u64::MAX][..]).prop_map(|ms| Say::ClockStalled { ms }),
        1 => ahead.prop_map(|ahead| Say::WallClock { ahead }),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let delta = prop_oneof![
        2 => -20..20_i64,
        2 => -3_000..3_000_i64,
        2 => select(&[i64::MIN, i64::MIN + 1, i64::MAX, MAX_DURATION_MS as i64, -(MAX_DURATION_MS as i64)][..]),
    ];
    prop_oneof![
        6 => proptest::option::weighted(0.8, 0..3_u8).prop_map(Action::Start),
        2 => Just(Action::Stop),
        3 => Just(Action::Pause),
        3 => Just(Action::Resume),
        3 => (0..7_u8).prop_map(Action::ForceScene),
        4 => Just(Action::SkipScene),
        3 => Just(Action::PreviousScene),
        1 => prop_oneof![0..20_u64, 0..3_000_u64, Just(u64::MAX)].prop_map(Action::Seek),
        2 => (0..3_u64).prop_map(Action::SeekFromEnd),
        5 => delta.prop_map(Action::AdjustScene),
        2 => (any::<bool>(), select(&[0, 7, u64::MAX][..]), 0..2_u8)
            .prop_map(|(is_streaming, ms, timecode)| Action::Status(Status { is_streaming, ms, timecode })),
        3 => (0..3_u8).prop_map(Action::Reconfigure),
        2 => Just(Action::Reset),
        1 => Just(Action::Remove),
    ]
}
