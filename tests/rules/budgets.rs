//! How much one call does, and how many bytes strangers may make the engine keep.

use std::sync::Arc;

use orchestrator_service::engine::*;

use crate::{
    command,
    driver::{EngineDriver, T0, config, show},
    register, stream,
};

#[test]
fn a_call_keeps_some_of_its_budget_for_the_silent_and_the_dead() {
    const MANY: usize = 40;
    const BUDGET: usize = 16;
    let mut engine = Engine::new(Settings { stale_after_ms: 1_000, ..Settings::default() });
    let mut outbox = Outbox::default();
    let mut tell = |engine: &mut Engine, ms: u64, input: Input<'_>| {
        engine.handle(Tick(T0 + ms), input, &mut outbox).expect("it is carried out");
    };
    let draft = Draft { tick_interval_ms: Some(100), ..show() };
    let start = || Command::Start(Some(config(&draft)));
    let names: Vec<String> = (0..MANY).map(|number| format!("n{number}")).collect();
    tell(&mut engine, 0, command("silent", None, start()));
    for name in &names {
        tell(&mut engine, 0, register("silent", name));
    }
    tell(&mut engine, 500, command("dead", None, start()));
    for name in &names {
        tell(&mut engine, 500, command(name, None, start()));
        tell(&mut engine, 500, register(name, "viewer"));
        tell(&mut engine, 500, register("dead", name));
    }
    tell(&mut engine, 500, command("silent", None, Command::Stop));
    while let Some(due) = engine.next_deadline().filter(|due| due.0 < T0 + 1_000) {
        engine.expire(due.max(Tick(T0 + 500)), usize::MAX, &mut outbox);
    }
    outbox.clear();

    // All in this millisecond: a tick of each stream, everybody of one silent for too long, everybody of one dead.
    let now = Tick(T0 + 1_000);
    engine.handle(now, command("dead", None, Command::Remove), &mut outbox).expect("it is removed");
    let mut calls = Vec::new();
    while engine.next_deadline().is_some_and(|due| due <= now) {
        outbox.clear();
        engine.expire(now, BUDGET, &mut outbox);
        engine.check();
        let some_are_dead = engine.next_deadline() == Some(Tick(0));
        calls.push((outbox.updates.len(), engine.counts().stale, some_are_dead));
    }

    // An eighth is kept for the silent and an eighth for the dead; what one leaves is the next one's.
    let expected = [
        (12, 2, true),
        (12, 4, true),
        (12, 6, true),
        (4, 16, true),
        (0, 30, true),
        (0, 40, true),
        (0, 40, true),
        (0, 40, false),
    ];
    assert_eq!(calls, expected, "ticks, stale so far, whether some of the dead are left");
}

fn long(names: &[String]) -> Draft<'_> {
    let scenes = names.iter().map(|name| Scene::new(name, 1_000)).collect();
    Draft { scenes, ..show() }
}

#[test]
fn what_all_streams_keep_is_bounded_and_a_refusal_changes_nothing() {
    // 1,000 scenes of 16 bytes and a name of 4.
    let names: Vec<String> = (0..1_000).map(|number| format!("{number:04}")).collect();
    let large = config(&long(&names));
    let limits = Limits { max_config_bytes: 50_000, ..Limits::default() };
    let mut world = EngineDriver::with(Settings { limits, ..Settings::default() });
    let exhausted = Err(Rejection::Exhausted { what: "bytes of configurations", limit: 50_000 });
    let start = || Command::Start(Some(large.clone()));
    world.command("one", start()).unwrap();
    world.command("two", start()).unwrap();
    assert_eq!(world.engine.counts().config_bytes, 2 * (3 + 20_000));
    let digest = world.engine.digest();
    assert_eq!(world.command("three", start()), exhausted);
    // An adjusted pass is another timeline; a timecode is kept as well.
    assert_eq!(world.command("one", Command::AdjustScene(1)), exhausted);
    let timecode = "x".repeat(10_000);
    let status = Command::UpdateStreamStatus { is_streaming: true, stream_time_ms: 0, timecode: &timecode };
    assert_eq!(world.command("two", status.clone()), exhausted);
    assert_eq!(world.engine.digest(), digest, "nothing has changed");
    // What gets smaller is fine, and what is removed makes room.
    world.command("one", Command::Reconfigure(config(&show()))).unwrap();
    world.command("two", status).unwrap();
    world.command("two", Command::Remove).unwrap();
    world.command("three", start()).unwrap();
    world.command("three", Command::AdjustScene(1)).unwrap();
    assert_eq!(world.command("one", Command::Reconfigure(large)), exhausted);
    for id in ["one", "three"] {
        world.command(id, Command::Remove).unwrap();
    }
    assert_eq!(world.engine.counts(), Counts::default());
}

#[test]
fn a_pass_that_is_as_configured_takes_no_bytes_of_its_own() {
    let mut world = EngineDriver::with(Settings::default());
    world.command("show", Command::Start(Some(config(&show())))).unwrap();
    let bytes = |world: &EngineDriver| world.engine.counts().config_bytes;
    let before = bytes(&world);
    world.command("show", Command::AdjustScene(5)).unwrap();
    assert!(bytes(&world) > before);
    world.command("show", Command::AdjustScene(-5)).unwrap();
    assert_eq!(bytes(&world), before, "adjusted back");

    // Read from somewhere else, the two are not one in memory.
    let mut exported = world.engine.export(stream("show")).unwrap();
    exported.pass = Arc::new((*exported.pass).clone());
    let mut other = EngineDriver::with(Settings::default());
    other.engine.import(Tick(T0), exported, &mut Outbox::default());
    assert_eq!(bytes(&other), before);
}

#[test]
fn a_stream_may_ask_for_no_more_bytes_and_idle_time_than_allowed() {
    let names: Vec<String> = (0..100).map(|number| format!("{number:03}")).collect();
    let limits = Limits { max_config_bytes_of_stream: 1_899, max_idle_timeout_ms: 60_000, ..Limits::default() };
    let refused = |draft: &Draft<'_>| Config::new(draft, &limits).map_err(|error| error.0);
    let words = "scenes must take at most 1899 bytes, 16 each and their names, and 40 to 52 each if one has more, and ids, \
                 data and the title; these take 1900";
    assert_eq!(refused(&long(&names)), Err(words.to_owned()));
    assert!(refused(&long(&names[1..])).is_ok());
    let idle = |ms| Draft { idle_timeout_ms: Some(ms), ..show() };
    assert_eq!(refused(&idle(60_001)), Err("idle_timeout_ms must be 1 to 60000, not 60001".to_owned()));
    assert!(refused(&idle(60_000)).is_ok());
}

#[test]
fn what_subscribers_keep_beside_their_records_is_bounded_in_bytes() {
    let what = "bytes of client ids that are no UUIDs and of IPv6 addresses";
    let limits = Limits { max_client_bytes: 100, ..Limits::default() };
    let mut world = EngineDriver::with(Settings { limits, ..Settings::default() });
    world.command("show", Command::Start(Some(config(&show())))).unwrap();
    let exhausted = Err(Rejection::Exhausted { what, limit: 100 });
    let join = |world: &mut EngineDriver, id: &'static str, source: &str| {
        let client_id = ClientId::parse(id).expect("a valid id");
        let source = parse_source_addr(source).expect("an address");
        let subscriber = Newcomer { client_id, session: 0, source };
        world.handle(Input::Register { stream_id: stream("show"), subscriber, answered: true }).map(drop)
    };
    // A UUID and an IPv4 address are in the record.
    let uuid = "6f9619ff-8b86-d011-b42d-00cf4fc964ff";
    join(&mut world, uuid, "192.0.2.7:1").unwrap();
    assert_eq!(world.engine.counts().client_bytes, 0);
    join(&mut world, "text", "").unwrap();
    assert_eq!(world.engine.counts().client_bytes, 32 + 4);
    join(&mut world, uuid, "[2001:db8::7]:1").unwrap();
    let kept = world.engine.counts().client_bytes;
    assert_eq!(kept, 32 + 4 + size_of::<std::net::SocketAddrV6>() as u64);
    let digest = world.engine.digest();
    // Within a hundred together neither fits beside 36 and 28.
    let longest = "another one that is too long";
    for (id, source) in [(longest, ""), ("other", "[::1]:1")] {
        assert_eq!(join(&mut world, id, source), exhausted, "{id}");
    }
    assert_eq!(world.engine.digest(), digest, "nothing has changed");
    // The same address again, or another one of its kind, takes no more.
    join(&mut world, uuid, "[2001:db8::8]:1").unwrap();
    join(&mut world, uuid, "").unwrap();
    join(&mut world, "b", "").unwrap();
    world.command("show", Command::Remove).unwrap();
    world.until(1);
    assert_eq!(world.engine.counts(), Counts::default());
}
