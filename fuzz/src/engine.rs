//! A sequence of operations on an engine with small tables: the invariants hold after each, and the same sequence comes
//! to the same state.
//!
//! Only the first of the two runs looks at the invariants, which takes longer than the operations do; and only that is
//! given hints, old ones and new ones, which change nothing.

use orchestrator_service::engine::*;

use crate::bytes::Choices;

/// More would only make a case slower to understand.
const MAX_STEPS: usize = 200;

const STREAMS: [&str; 3] = ["a", "b", "c"];
const CLIENTS: [&str; 4] = ["x", "y", "6f9619ff-8b86-d011-b42d-00cf4fc964ff", "6F9619FF-8B86-D011-B42D-00CF4FC964FF"];
const SCENES: [&str; 3] = ["one", "two", "three"];
/// Ids of scenes, one of which is a name as well.
const IDS: [&str; 4] = ["", "x", "y", "two"];
const REQUESTS: [&str; 2] = ["r1", "r2"];

pub fn check(input: &[u8]) {
    let (first, second) = (run(input, true), run(input, false));
    assert_eq!(first, second, "the same inputs at the same times came to another state");
}

/// Runs the case; returns the final state's hash and how many updates there were.
fn run(input: &[u8], checked: bool) -> (u64, usize) {
    let mut choices = Choices::new(input);
    let limits = Limits {
        max_streams: 2 + u64::from(choices.below(2)),
        max_subscribers: 6,
        max_sessions_per_client: 2,
        max_remembered_requests: 3,
        max_remembered_of_stream: 2,
        max_history_bytes: 700,
        ..Limits::default()
    };
    let stale_after_ms = [90_000, 1_000, 100][usize::from(choices.below(3))];
    let mut engine = Engine::new(Settings { limits: limits.clone(), stale_after_ms, seed: 7 });
    let mut outbox = Outbox::default();
    let mut handles = vec![Handle(0), Handle(u64::MAX)];
    let (mut now, mut updates) = (Tick(1_700_000_000_000), 0);
    let mut hints = checked.then(|| vec![Hint::NONE]);
    for _ in 0..MAX_STEPS {
        if choices.is_empty() {
            break;
        }
        step(&mut choices, &mut engine, &mut outbox, &limits, &mut now, &mut handles, hints.as_mut());
        if checked {
            engine.check();
        }
        updates += outbox.updates.len();
        outbox.clear();
    }
    (engine.digest(), updates)
}

fn step(
    choices: &mut Choices<'_>,
    engine: &mut Engine,
    outbox: &mut Outbox,
    limits: &Limits,
    now: &mut Tick,
    handles: &mut Vec<Handle>,
    hints: Option<&mut Vec<Hint>>,
) {
    let stream_id = StreamId::parse(STREAMS[usize::from(choices.below(3))]).expect("valid");
    let client_id = ClientId::parse(CLIENTS[usize::from(choices.below(4))]).expect("valid");
    let session = u64::from(choices.below(3));
    let subscriber = Subscriber { stream_id, client_id, session };
    let source = [None, Some("192.0.2.7:51000"), Some("[2001:db8::7]:1")][usize::from(choices.below(3))]
        .map(|text| text.parse().expect("valid"));
    let newcomer = Newcomer { client_id, session, source };
    let input = match choices.below(14) {
        0..5 => {
            *now = now.after(choices.number().min(40 * 24 * 3_600_000));
            engine.expire(*now, 1 + usize::from(choices.byte()), outbox);
            return;
        }
        5 => Input::Register { stream_id, subscriber: newcomer, answered: choices.below(2) == 0 },
        6 => Input::RegisterBatch {
            stream_id,
            subscribers: vec![Ok(newcomer), Err(Invalid("malformed".to_owned())), Ok(newcomer)],
            answered: choices.below(2) == 0,
        },
        7 => Input::Unregister(subscriber),
        8 => Input::Heartbeat(subscriber),
        kind @ 9..11 => {
            let some = |choices: &mut Choices<'_>| handles[usize::from(choices.byte()) % handles.len()];
            let handles = vec![some(choices), some(choices)];
            let named = choices.below(2) == 0;
            let batch = Batch {
                stream_id: named.then_some(stream_id),
                clients: if named { vec![client_id] } else { Vec::new() },
                handles,
            };
            if kind == 9 { Input::HeartbeatBatch(batch) } else { Input::UnregisterBatch(batch) }
        }
        11 => match choices.below(11) {
            0 => Input::GetState(stream_id),
            1 => Input::GetStats(Some(stream_id)),
            2 => Input::ListStreams { from_slot: u32::from(choices.byte()), limit: 2 },
            3 => Input::ClockStalled { ms: choices.number() },
            4 => Input::WallClock { ms: instant(choices, *now) },
            5 => Input::Follow { stream_id, filter: filter(choices) },
            6 => Input::RegisterFollowing {
                stream_id,
                subscriber: newcomer,
                answered: true,
                filter: Box::new(filter(choices)),
            },
            7 => Input::GetConfig(stream_id),
            8 => Input::ListSubscribers { stream_id, from_slot: u32::from(choices.below(8)), limit: 2 },
            9 => Input::GetHistory { stream_id, before_revision: Some(choices.number()), limit: 3 },
            _ => Input::SetQuota(Quota {
                streams: u64::from(choices.below(4)),
                subscribers: u64::from(choices.below(8)),
                config_bytes: u64::from(choices.byte()),
                client_bytes: u64::from(choices.byte()),
                filters: u64::from(choices.below(4)),
                filter_bytes: u64::from(choices.byte()) * 16,
            }),
        },
        _ => {
            let request_id = (choices.below(4) == 0).then(|| REQUESTS[usize::from(choices.below(2))]);
            let expects = choices.below(24);
            let expected = Expected {
                revision: (expects < 3).then(|| choices.number()),
                epoch: (expects == 3).then(|| choices.number()),
                scene: (expects == 4).then(|| IDS[usize::from(choices.below(4))]),
            };
            let issued_by = (expects == 5).then_some("somebody");
            let request = Request::new(stream_id, command(choices, limits, *now)).expecting(expected);
            Input::Command(Request { request_id, issued_by, ..request })
        }
    };
    let hint = hints.map_or(Hint::NONE, |hints| {
        hints.extend(engine.fetch(std::slice::from_ref(&input)));
        hints[(hints.len() - 1).saturating_sub(usize::from(session == 2) * 3)]
    });
    if let Ok(Accepted::Registered { handle, .. }) = engine.handle_with(*now, input, hint, outbox) {
        assert_ne!(handle.0, 0);
        handles.push(handle);
    }
}

/// One of few, so that some are followed again.
fn filter(choices: &mut Choices<'_>) -> Filter {
    let scenes = SCENES[..usize::from(choices.below(3))].to_vec();
    let draft = FilterDraft {
        scenes,
        changes_only: choices.below(2) == 0,
        min_interval_ms: u32::from(choices.byte()) * 10,
        min_progress: f64::from(choices.below(4)),
    };
    Filter::new(&draft).expect("within the limits")
}

/// A time by the wall clock: around now, or any.
fn instant(choices: &mut Choices<'_>, now: Tick) -> u64 {
    match choices.below(3) {
        0 => now.0.saturating_add(choices.number()),
        1 => now.0.saturating_sub(choices.number()),
        _ => choices.number(),
    }
}

fn command(choices: &mut Choices<'_>, limits: &Limits, now: Tick) -> Command<'static> {
    match choices.below(13) {
        0 => Command::Start(config(choices, limits, now)),
        1 => Command::Stop,
        2 => Command::Pause,
        3 => Command::Resume,
        4 => Command::ForceScene([SCENES[usize::from(choices.below(3))], "x"][usize::from(choices.below(2))]),
        5 => Command::SkipScene,
        6 => Command::PreviousScene,
        7 => Command::Seek(choices.number()),
        8 => Command::AdjustScene(choices.number() as i64 * if choices.below(2) == 0 { 1 } else { -1 }),
        9 => Command::UpdateStreamStatus {
            is_streaming: choices.below(2) == 0,
            stream_time_ms: choices.number(),
            timecode: "00:01",
        },
        10 => config(choices, limits, now).map_or(Command::Reset, Command::Reconfigure),
        11 => Command::Reset,
        _ => Command::Remove,
    }
}

/// A scene, or none where what it holds for or falls back to is refused.
fn scene(choices: &mut Choices<'_>, place: usize) -> Scene<'static> {
    // Names repeat now and then.
    let name = SCENES[place.min(usize::from(choices.below(4)))];
    let mut scene = Scene::new(name, choices.number());
    let more = choices.byte();
    if more & 1 != 0 {
        scene.id = Some(IDS[usize::from(choices.below(4))]).filter(|id| !id.is_empty());
    }
    if more & 2 != 0 {
        let fallback = (more & 4 != 0).then(|| IDS[usize::from(choices.below(4))]).filter(|named| !named.is_empty());
        scene.at_end = AtEnd::Hold { max_hold_ms: Some(choices.number()).filter(|ms| *ms > 0), fallback };
    }
    if more & 8 != 0 {
        (scene.data, scene.warn_ms) = ("data", Some(choices.number()));
    }
    scene
}

/// A configuration, or none where the numbers are refused.
fn config(choices: &mut Choices<'_>, limits: &Limits, now: Tick) -> Option<Config> {
    let count = 1 + usize::from(choices.below(3));
    let scenes = (0..count).map(|place| scene(choices, place)).collect();
    let draft = Draft {
        scenes,
        tick_interval_ms: Some(choices.number()).filter(|ms| *ms > 0),
        loop_scenes: choices.below(2) == 0,
        when_empty: [WhenEmpty::Restart, WhenEmpty::Freeze, WhenEmpty::RunOn][usize::from(choices.below(3))],
        empty_grace_ms: Some(choices.number()),
        idle_timeout_ms: Some(choices.number()).filter(|ms| *ms > 0),
        starts_at_ms: (choices.below(4) == 0).then(|| instant(choices, now)),
        no_ticks: choices.below(4) == 0,
        title: ["", "title"][usize::from(choices.below(2))],
    };
    Config::new(&draft, limits).ok()
}
