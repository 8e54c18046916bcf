//! Rules of the engine that random runs meet too seldom, or cannot see: budgets, memory, and states that take many
//! steps to come to. Each was found by a change of the engine that no other test noticed.

use std::sync::Arc;

use driver::{EngineDriver, T0, config, said, show};
use orchestrator_service::engine::*;

mod driver;

fn stream(id: &str) -> StreamId<'_> {
    StreamId::parse(id).expect("a valid id")
}

fn command<'a>(id: &'a str, request_id: Option<&'a str>, command: Command<'a>) -> Input<'a> {
    Input::Command(Request { request_id, ..Request::new(stream(id), command) })
}

fn register<'a>(id: &'a str, client: &'a str) -> Input<'a> {
    let client_id = ClientId::parse(client).expect("a valid id");
    let subscriber = Newcomer { client_id, session: 0, source: None };
    Input::Register { stream_id: stream(id), subscriber, answered: true }
}

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

/// Asks for a Reset with a request id. Returns whether that was done, rather than answered as before.
fn is_executed(world: &mut EngineDriver, id: &str, request: &str) -> bool {
    let before = world.state(id).map(|state| state.revision);
    let answer = world.handle(command(id, Some(request), Command::Reset));
    match before {
        Ok(before) => {
            assert!(answer.is_ok(), "{answer:?}");
            world.state(id).expect("it is there").revision > before
        }
        Err(_) => panic!("there is no {id}"),
    }
}

#[test]
fn a_flood_of_request_ids_forgets_its_own_and_no_other_streams() {
    let mut world = EngineDriver::with_show(&show());
    let start = |id| command(id, None, Command::Start(Some(config(&show()))));
    world.handle(start("flood")).unwrap();
    assert!(is_executed(&mut world, "show", "mine"));
    for number in 0..1_000 {
        assert!(is_executed(&mut world, "flood", &number.to_string()));
    }
    // Streams that are not there share what one may have.
    for number in 0..1_000 {
        let id = format!("none-{number}");
        assert!(world.handle(command(&id, Some("id"), Command::Stop)).is_err());
    }
    assert!(!is_executed(&mut world, "show", "mine"), "it is remembered");
    assert!(
        !is_executed(&mut world, "flood", "999") && !is_executed(&mut world, "flood", "744"),
        "as many as there may be"
    );
    assert!(is_executed(&mut world, "flood", "743"), "the one before was forgotten");
    assert_eq!(world.engine.requests_forgotten_early(), 744 + 744 + 1);
}

#[test]
fn a_flood_over_many_streams_takes_from_those_that_keep_the_most() {
    let limits = Limits { max_remembered_requests: 100, ..Limits::default() };
    let mut world = EngineDriver::with(Settings { limits, ..Settings::default() });
    let start = |id| command(id, None, Command::Start(Some(config(&show()))));
    for id in ["show", "one", "two"] {
        world.handle(start(id)).unwrap();
    }
    for number in 0..5 {
        assert!(is_executed(&mut world, "show", &number.to_string()));
    }
    for number in 0..300 {
        assert!(is_executed(&mut world, ["one", "two"][number % 2], &number.to_string()));
    }
    assert!((0..5).all(|number| !is_executed(&mut world, "show", &number.to_string())), "it keeps the least");
}

#[test]
fn a_request_id_with_other_content_is_a_conflict_without_effect() {
    let mut world = EngineDriver::with_show(&show());
    world.join("a", 0);
    world.handle(command("show", Some("r"), Command::Pause)).unwrap();
    let before = world.state("show").unwrap();
    let taken = Err(Rejection::RequestIdTaken("r".to_owned()));
    world.heard();
    for other in [Command::Resume, Command::Seek(0), Command::Remove, Command::Start(Some(config(&show())))] {
        assert_eq!(world.handle(command("show", Some("r"), other)), taken);
    }
    let expected = Expected { revision: Some(before.revision), ..Expected::default() };
    let pause = Request::new(stream("show"), Command::Pause).expecting(expected);
    let expected = Request { request_id: Some("r"), ..pause };
    assert_eq!(world.handle(Input::Command(expected)), taken, "what it expects is a part of it");
    assert_eq!((world.state("show").unwrap(), world.heard()), (before, vec![]));
    // A configuration is compared by what it means; the same id for another stream is another request.
    let start = |draft: &Draft<'_>| command("other", Some("r"), Command::Start(Some(config(draft))));
    let first = world.handle(start(&show())).unwrap();
    assert_eq!(world.handle(start(&Draft { empty_grace_ms: Some(DEFAULT_EMPTY_GRACE_MS), ..show() })), Ok(first));
    assert_eq!(world.handle(start(&Draft { loop_scenes: true, ..show() })), taken);
    // After two minutes it is free again.
    world.until(REMEMBER_MS);
    assert!(world.handle(command("show", Some("r"), Command::Seek(7))).is_ok());
}

#[test]
fn a_repeated_remove_gets_its_answer_though_the_stream_is_gone() {
    let mut world = EngineDriver::with_show(&show());
    let first = world.handle(command("show", Some("r"), Command::Remove));
    assert!(first.is_ok());
    world.until(1);
    assert_eq!(world.handle(command("show", Some("r"), Command::Remove)), first);
    // Also when a stream of that name has begun meanwhile, which it leaves alone.
    world.command("show", Command::Start(Some(config(&show())))).unwrap();
    assert_eq!(world.handle(command("show", Some("r"), Command::Remove)), first);
    assert!(world.exists("show"));
}

#[test]
fn remembered_answers_of_one_stream_keep_a_mebibyte_at_most() {
    let names: Vec<String> = (0..1_000).map(|n| format!("{n:0>246}")).collect();
    let scenes: Vec<_> = names.iter().map(|name| Scene::new(name, 1_000)).collect();
    let mut world = EngineDriver::with_show(&Draft { scenes: scenes.clone(), ..show() });
    // A timeline that answers share is there once.
    for number in 0..100 {
        assert!(is_executed(&mut world, "show", &number.to_string()));
    }
    assert_eq!(world.engine.requests_forgotten_early(), 0);
    // 262,000 bytes each, another one each time: four do not fit into a mebibyte beside the entries.
    for number in 100..110_u64 {
        let draft = Draft { scenes: scenes.clone(), empty_grace_ms: Some(number), ..show() };
        let id = number.to_string();
        world.handle(command("show", Some(&id), Command::Reconfigure(config(&draft)))).unwrap();
    }
    assert_eq!(world.engine.requests_forgotten_early(), 100 + 10 - 3, "three are left");
}

#[test]
fn previous_scene_passes_over_a_scene_that_was_adjusted_to_nothing() {
    let mut world = EngineDriver::with_show(&show());
    world.join("a", 0);
    let at = |state: StateUpdate| (state.position_ms, state.scene.map(|scene| state.timeline.name(scene).to_owned()));
    world.command("show", Command::ForceScene("Main")).unwrap();
    // Nothing of it has played, so nothing is left of it.
    let state = world.command("show", Command::AdjustScene(i64::MIN)).unwrap();
    assert_eq!(at(state), (3_000, Some("Outro".to_owned())));

    let state = world.command("show", Command::PreviousScene).unwrap();

    assert_eq!(at(state), (0, Some("Intro".to_owned())));
}

#[test]
fn a_handle_of_a_stream_just_removed_stands_for_nobody() {
    let mut world = EngineDriver::with_show(&show());
    let (handle, _) = world.join("a", 0);
    world.command("show", Command::Remove).unwrap();
    // Before the records of its subscribers are freed, which takes a call.
    let batch = || Batch { handles: vec![handle], ..Batch::default() };
    for input in [Input::HeartbeatBatch(batch()), Input::UnregisterBatch(batch())] {
        let unplaced = Unplaced { handles: vec![handle], ..Unplaced::default() };
        assert_eq!(world.handle(input), Ok(Accepted::Batch(unplaced)));
    }
    world.until(1);
    assert!(world.engine.is_empty());
}

#[test]
fn a_batch_that_meets_a_removed_stream_still_serves_the_others() {
    let mut world = EngineDriver::with_show(&show());
    let (gone, _) = world.join("a", 0);
    world.command("show", Command::Remove).unwrap();
    world.command("show", Command::Start(Some(config(&show())))).unwrap();
    let (there, _) = world.join("a", 0);
    world.until(89_999);
    world.command("other", Command::Start(Some(config(&show())))).unwrap();
    world.register("other", "b", 0, true).unwrap();
    world.command("other", Command::Remove).unwrap();

    let batch = Batch { handles: vec![there, gone], ..Batch::default() };

    let unplaced = Unplaced { handles: vec![gone], ..Unplaced::default() };
    assert_eq!(world.handle(Input::HeartbeatBatch(batch)), Ok(Accepted::Batch(unplaced)));
    world.until(90_000);
    assert_eq!(world.engine.counts().active, 1, "it was heard");
}

#[test]
fn subscribers_that_go_stale_together_make_one_event() {
    let mut world = EngineDriver::with_show(&show());
    for client in ["a", "b", "c"] {
        world.join(client, 0);
    }
    world.until(1_000);
    world.join("d", 0);
    world.until(90_499);
    world.events();
    world.sleep_until(90_500);
    world.expire();
    assert_eq!(world.events(), [Event::StaleRemoved { stream_id: "show".into(), removed: 3, left: 1 }]);
}

#[test]
fn updates_and_handles_carry_the_partition_of_their_stream() {
    let mut world = EngineDriver::new();
    // 0x68 by the published test vector of FNV-1a.
    let state = world.command("foobar", Command::Start(Some(config(&show())))).unwrap();
    assert_eq!((state.partition, stream("foobar").partition()), (0x68, 0x68));
    let Ok(Accepted::Registered { handle, state, .. }) = world.register("foobar", "a", 0, true) else {
        panic!("it is registered")
    };
    assert_eq!((state.partition, handle.partition()), (0x68, 0x68));
}

#[test]
fn a_source_address_is_read_or_refused() {
    assert_eq!(parse_source_addr(""), Ok(None));
    assert_eq!(parse_source_addr("192.0.2.7:51000"), Ok(Some(([192, 0, 2, 7], 51_000).into())));
    assert!(parse_source_addr("192.0.2.7").is_err_and(|error| error.0.contains("source_addr")));
}

#[test]
fn a_command_that_does_not_fit_the_mode_is_refused() {
    let mut world = EngineDriver::with_show(&show());
    world.command("show", Command::Stop).unwrap();
    let commands = [
        (Command::Pause, "Pause"),
        (Command::Resume, "Resume"),
        (Command::ForceScene("Main"), "ForceScene"),
        (Command::SkipScene, "SkipScene"),
        (Command::PreviousScene, "PreviousScene"),
        (Command::Seek(0), "Seek"),
        (Command::AdjustScene(0), "AdjustScene"),
    ];
    for (command, name) in commands {
        let refused = world.command("show", command).expect_err(name);
        assert_eq!(refused.to_string(), format!("{name} is not possible while the stream is STOPPED"));
    }
}

#[test]
fn an_answer_is_whole_when_every_part_was_carried_out() {
    let unplaced = Unplaced::default();
    assert!(Accepted::Batch(unplaced.clone()).is_whole());
    for unplaced in [
        Unplaced { no_such_stream: true, ..unplaced.clone() },
        Unplaced { handles: vec![Handle(1)], ..unplaced.clone() },
        Unplaced { clients: vec!["a".to_owned()], ..unplaced },
    ] {
        assert!(!Accepted::Batch(unplaced.clone()).is_whole(), "{unplaced:?}");
    }
    let mut world = EngineDriver::with_show(&show());
    let client_id = ClientId::parse("a").expect("a valid id");
    let good = Newcomer { client_id, session: 0, source: None };
    for (subscribers, is_whole) in
        [(vec![], true), (vec![Ok(good)], true), (vec![Ok(good), Err(Invalid("malformed".to_owned()))], false)]
    {
        let batch = Input::RegisterBatch { stream_id: stream("show"), subscribers, answered: true };
        assert_eq!(world.handle(batch).unwrap().is_whole(), is_whole);
    }
    assert!(Accepted::Heard.is_whole());
}

#[test]
fn thousands_on_one_stream_are_each_found_and_each_let_go() {
    // More than a chunk of records, and so many in the index that the first bits of two hashes are often the same.
    const MANY: usize = 20_000;
    let mut engine = Engine::new(Settings::default());
    let mut outbox = Outbox::default();
    let mut tell = |input: Input<'_>| engine.handle(Tick(T0), input, &mut outbox);
    tell(command("show", None, Command::Start(Some(config(&show()))))).unwrap();
    let names: Vec<String> = (0..MANY).map(|number| format!("viewer-{number}")).collect();
    for (there, name) in names.iter().enumerate() {
        let Ok(Accepted::Registered { new, total, .. }) = tell(register("show", name)) else { panic!("{name} joins") };
        assert_eq!((new, total), (true, there as u64 + 1), "{name}");
    }
    for (gone, name) in names.iter().enumerate() {
        let client_id = ClientId::parse(name).expect("a valid id");
        let viewer = Subscriber { stream_id: stream("show"), client_id, session: 0 };
        let left = (MANY - 1 - gone) as u64;
        assert_eq!(tell(Input::Unregister(viewer)), Ok(Accepted::Unregistered { total: left, source: None }));
        assert!(matches!(tell(Input::Heartbeat(viewer)), Err(Rejection::UnknownSubscriber { .. })), "{name}");
    }
    engine.check();
}

#[test]
fn a_late_leave_or_heartbeat_by_an_old_handle_touches_nobody() {
    let mut world = EngineDriver::with_show(&show());
    let batch = |handle| Batch { handles: vec![handle], ..Batch::default() };
    let unknown = |handle| Ok(Accepted::Batch(Unplaced { handles: vec![handle], ..Unplaced::default() }));
    let (old, _) = world.join("a", 7);
    world.until(60_000);
    // The same client and session at another gateway, or registered again after an answer that was lost.
    let (new, _) = world.join("a", 7);
    assert_ne!(old, new);
    world.until(61_000);
    assert_eq!(world.handle(Input::UnregisterBatch(batch(old))), unknown(old));
    assert_eq!(world.handle(Input::HeartbeatBatch(batch(old))), unknown(old));
    assert_eq!(world.engine.counts().active, 1);
    // An old gateway knows no handles: it registers again, or sends heartbeats, by name.
    world.until(100_000);
    world.beat("a", 7).unwrap();
    assert_eq!(world.handle(Input::HeartbeatBatch(batch(new))), Ok(Accepted::Batch(Unplaced::default())));
    // What the void handle asked for did not count as a sign of life: 90 s from here.
    world.until(189_999);
    assert_eq!(world.handle(Input::HeartbeatBatch(batch(old))), unknown(old));
    world.until(190_000);
    assert_eq!((world.engine.counts().active, world.engine.counts().stale), (0, 1));
}

#[test]
fn registering_a_batch_again_voids_each_of_its_handles() {
    let mut world = EngineDriver::with_show(&show());
    let newcomer = |id| Newcomer { client_id: ClientId::parse(id).expect("a valid id"), session: 0, source: None };
    let mut register = |ids: &[&'static str]| {
        let subscribers = ids.iter().map(|id| Ok(newcomer(*id))).collect();
        match world.handle(Input::RegisterBatch { stream_id: stream("show"), subscribers, answered: true }) {
            Ok(Accepted::RegisteredBatch { handles, .. }) => handles.into_iter().map(Result::unwrap).collect(),
            other => panic!("a batch was answered with {other:?}"),
        }
    };
    let first: Vec<Handle> = register(&["a", "b"]);
    // Twice in one batch: the last one stands.
    let second: Vec<Handle> = register(&["a", "b", "a"]);
    let void = [first, vec![second[0]]].concat();
    let handles = [void.clone(), second[1..].to_vec()].concat();
    let answer = world.handle(Input::UnregisterBatch(Batch { handles, ..Batch::default() }));
    assert_eq!(answer, Ok(Accepted::Batch(Unplaced { handles: void, ..Unplaced::default() })));
    assert_eq!(world.engine.counts().total, 0);
}

#[test]
fn no_handle_can_be_derived_from_ten_thousand_of_ones_own() {
    for seed in [0, 7, u64::MAX] {
        let mut engine = Engine::new(Settings { seed, ..Settings::default() });
        let mut outbox = Outbox::default();
        let mut own = Vec::new();
        let start = |id| command(id, None, Command::Start(Some(config(&show()))));
        for id in ["show", "other"] {
            engine.handle(Tick(T0), start(id), &mut outbox).expect("created");
        }
        // Turn and turn about, so that theirs lie right beside ours, on the same stream and on another.
        for number in 0..10_000 {
            for (id, client) in [("show", "own"), ("show", "theirs"), ("other", "theirs")] {
                let client = format!("{client}-{number}");
                match engine.handle(Tick(T0), register(id, &client), &mut outbox) {
                    Ok(Accepted::Registered { handle, .. }) if client.starts_with("own") => own.push(handle),
                    Ok(_) => {}
                    Err(rejection) => panic!("{client} is not registered: {rejection}"),
                }
            }
        }
        outbox.clear();
        let mut guesses = Vec::new();
        for (place, Handle(mine)) in own.iter().enumerate() {
            let before = own[place.saturating_sub(1)].0;
            // The numbers beside it, slots and tags beside it, every bit, the way from the last to this one once more,
            // and the same in the other stream's partition.
            guesses.extend((1..=4_u64).flat_map(|near| [mine.wrapping_add(near), mine.wrapping_sub(near)]));
            guesses.extend((1..=4_u64).flat_map(|near| [mine.wrapping_add(near << 28), mine.wrapping_sub(near << 28)]));
            guesses.extend((0..64).map(|bit| mine ^ 1 << bit));
            guesses.extend([mine.wrapping_add(mine.wrapping_sub(before)), mine ^ before, mine & before, mine | before]);
            guesses.push(mine & u64::MAX >> 8 | u64::from(stream("other").partition()) << 56);
        }
        let known: std::collections::BTreeSet<u64> = own.iter().map(|handle| handle.0).collect();
        guesses.retain(|guess| !known.contains(guess));
        let count = guesses.len();
        let batch = Batch { handles: guesses.into_iter().map(Handle).collect(), ..Batch::default() };
        let Ok(Accepted::Batch(unplaced)) = engine.handle(Tick(T0), Input::UnregisterBatch(batch), &mut outbox) else {
            panic!("a batch")
        };
        assert_eq!((unplaced.handles.len(), engine.counts().total), (count, 30_000), "seed {seed}");
        engine.check();
    }
}

#[test]
fn a_hundred_thousand_guessed_handles_remove_nobody() {
    let (mut engine, mut outbox) = (Engine::new(Settings::default()), Outbox::default());
    engine
        .handle(Tick(T0), command("show", None, Command::Start(Some(config(&show())))), &mut outbox)
        .expect("created");
    for number in 0..10_000 {
        engine.handle(Tick(T0), register("show", &number.to_string()), &mut outbox).expect("registered");
    }
    let partition = u64::from(stream("show").partition()) << 56;
    // By counting, as handles once were: slots and generations; and by a generator of numbers.
    let counted = (0..10_000).flat_map(|slot| (0..5).map(move |tag| tag << 28 | slot));
    let drawn = (1..=50_000_u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8);
    let handles: Vec<Handle> = counted.chain(drawn).map(|guess| Handle(partition | guess)).collect();
    assert_eq!(handles.len(), 100_000);
    let batch = Batch { handles, ..Batch::default() };
    let Ok(Accepted::Batch(unplaced)) = engine.handle(Tick(T0), Input::UnregisterBatch(batch), &mut outbox) else {
        panic!("a batch")
    };
    assert_eq!((unplaced.handles.len(), engine.counts().total), (100_000, 10_000));
}

/// When scenes were told, and where the stream was then, in so many ms of a stream of such scenes.
fn scenes_told(lengths: &[u64], loop_scenes: bool, ms: u64) -> Vec<(u64, u64)> {
    let names: Vec<String> = (0..lengths.len()).map(|number| number.to_string()).collect();
    let scenes = names.iter().zip(lengths).map(|(name, ms)| Scene::new(name, *ms)).collect();
    let mut world = EngineDriver::with_show(&Draft { scenes, loop_scenes, tick_interval_ms: Some(10), ..show() });
    world.join("a", 0);
    let told = world.until(ms);
    assert!(told.windows(2).all(|pair| pair[0].at < pair[1].at), "one update at a time: {told:?}");
    let total: u64 = lengths.iter().sum();
    told.iter()
        .filter(|said| said.cause == Cause::Scene)
        .map(|said| (said.at, said.loops * total + said.position))
        .collect()
}

#[test]
fn scenes_are_told_no_more_often_than_the_least_tick_interval() {
    // A loop of a millisecond, loops of several short scenes, and a show of many that ends.
    let many = [1; 900];
    for (lengths, looping) in [(&[1][..], true), (&[3, 4, 1], true), (&[1, 60_000], true), (&many, false)] {
        let told = scenes_told(lengths, looping, 1_000);
        assert!((1..=100).contains(&told.len()), "{lengths:?}: {} in a second", told.len());
        assert!(told.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 10), "{lengths:?}: {told:?}");
        assert!(told.iter().all(|(at, position)| at == position), "{lengths:?}: positions stay arithmetic: {told:?}");
        // Scenes begin all the time in three of them: the next one is told as soon as may be.
        assert!(lengths.len() == 2 || told.windows(2).all(|pair| pair[1].0 - pair[0].0 == 10), "{told:?}");
    }
    // Ten milliseconds and more are told to the millisecond.
    assert_eq!(
        scenes_told(&[10, 25, 11], true, 100).iter().map(|(at, _)| *at).collect::<Vec<_>>(),
        [10, 35, 46, 56, 81, 92]
    );
}

#[test]
fn a_scene_that_waits_is_a_change_though_a_snapshot_came_first() {
    let scenes = vec![Scene::new("Flash", 1), Scene::new("Short", 4), Scene::new("Main", 60_000)];
    let mut world = EngineDriver::with_show(&Draft { scenes, tick_interval_ms: Some(10), ..show() });
    world.join("a", 0);
    world.until(7);
    world.register("show", "b", 0, false).unwrap();
    assert_eq!(world.heard(), [said(7, Cause::Snapshot, Mode::Running, 7, "Main")]);
    // Short began at 1 and was told then; Main at 5 waits until 11, and the tick of 10 does not tell of it.
    assert_eq!(world.until(11), [said(11, Cause::Scene, Mode::Running, 11, "Main")]);
}

#[test]
fn an_answer_given_again_has_the_first_ones_server_time() {
    let mut world = EngineDriver::with_show(&show());
    world.handle(Input::WallClock { ms: T0 + 5_000 }).unwrap();
    let ask = |world: &mut EngineDriver| match world.handle(command("show", Some("r"), Command::Stop)) {
        Ok(Accepted::State(state)) => state,
        other => panic!("a Stop was answered with {other:?}"),
    };
    let first = ask(&mut world);
    assert_eq!((first.at, first.server_time_ms()), (Tick(T0), Some(T0 + 5_000)));
    world.until(700);
    world.handle(Input::WallClock { ms: T0 }).unwrap();
    assert_eq!(ask(&mut world), first);
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

#[test]
fn the_answers_to_two_pieces_of_a_batch_are_one_answer() {
    let unplaced = |no_such_stream, handle, client: &str| Unplaced {
        no_such_stream,
        handles: vec![Handle(handle)],
        clients: vec![client.to_owned()],
    };
    for (before, behind) in [(false, false), (false, true), (true, false), (true, true)] {
        let whole = Accepted::Batch(unplaced(before, 1, "a")).and(Accepted::Batch(unplaced(behind, 2, "b")));
        let expected = Unplaced {
            no_such_stream: before || behind,
            handles: vec![Handle(1), Handle(2)],
            clients: vec!["a".to_owned(), "b".to_owned()],
        };
        assert_eq!(whole, Accepted::Batch(expected), "no such stream: {before}, then {behind}");
    }
    let mut world = EngineDriver::with_show(&show());
    let mut piece = |clients: &[&str]| {
        let newcomer = |id| Newcomer { client_id: ClientId::parse(id).expect("a valid id"), session: 0, source: None };
        let subscribers = clients.iter().map(|id| Ok(newcomer(*id))).collect();
        match world.handle(Input::RegisterBatch { stream_id: stream("show"), subscribers, answered: true }) {
            Ok(Accepted::RegisteredBatch { handles, state }) => (handles, state),
            other => panic!("a batch was answered with {other:?}"),
        }
    };
    let ((first, old), (second, new)) = (piece(&["a", "b"]), piece(&["c"]));
    let whole = Accepted::RegisteredBatch { handles: first.clone(), state: old }
        .and(Accepted::RegisteredBatch { handles: second.clone(), state: new.clone() });
    let handles = [first, second].concat();
    assert_eq!(whole, Accepted::RegisteredBatch { handles, state: new }, "all handles, and the newest state");
}

#[test]
fn a_refused_stream_id_is_told_which_character_is_to_blame() {
    for (id, bad) in [("a.b", "'.'"), ("show 1", "' '"), ("z\u{fc}", "'\u{fc}'"), ("Ā-b", "'Ā'"), ("ok*>", "'*'")] {
        let error = StreamId::parse(id).expect_err(id);
        assert!(error.0.ends_with(&format!("this one holds {bad}")), "{id}: {error}");
    }
}

#[test]
fn two_faults_of_a_uuid_do_not_make_up_for_one_another() {
    const UUID: &str = "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa";
    let mut world = EngineDriver::with_show(&show());
    world.join(UUID, 0);
    for first in 0..UUID.len() {
        for second in first..UUID.len() {
            let fault = |place: usize, c: char| match c {
                _ if place != first && place != second => c,
                '-' => 'x',
                _ => 'A',
            };
            // A text of its own, and so another client.
            let text: String = UUID.chars().enumerate().map(|(place, c)| fault(place, c)).collect();
            let joined = world.register("show", &text, 0, true);
            assert!(matches!(joined, Ok(Accepted::Registered { new: true, .. })), "{text}");
        }
    }
    assert_eq!(world.engine.counts().unique, 1 + 36 * 37 / 2);
}

#[test]
fn a_hint_decides_nothing_whatever_became_of_what_it_points_to() {
    for client in ["viewer", "6f9619ff-8b86-d011-b42d-00cf4fc964ff"] {
        let mut engine = Engine::new(Settings::default());
        let mut outbox = Outbox::default();
        let now = Tick(T0);
        let client_id = ClientId::parse(client).expect("a valid id");
        let subscriber = |session| Subscriber { stream_id: stream("show"), client_id, session };
        let newcomer = |session| Newcomer { client_id, session, source: None };
        let join =
            |session| Input::Register { stream_id: stream("show"), subscriber: newcomer(session), answered: true };
        let start = || command("show", None, Command::Start(Some(config(&show()))));
        let mut tell = |engine: &mut Engine, input: Input<'_>| {
            engine.handle(now, input, &mut outbox).expect("it is carried out");
        };
        let unknown = |session| Err(Rejection::UnknownSubscriber { client_id: client.to_owned(), session });
        tell(&mut engine, start());
        tell(&mut engine, join(0));
        let [hint] = engine.fetch(&[Input::Heartbeat(subscriber(0))])[..] else { panic!("a hint for each") };
        assert_ne!(hint, Hint::NONE);
        let mut outbox = Outbox::default();
        let mut beat = |engine: &mut Engine, session| {
            let outcome = engine.handle_with(now, Input::Heartbeat(subscriber(session)), hint, &mut outbox);
            engine.check();
            outcome
        };
        assert_eq!(beat(&mut engine, 0), Ok(Accepted::Heard));
        assert_eq!(beat(&mut engine, 1), unknown(1), "it points to another session");
        tell(&mut engine, Input::Unregister(subscriber(0)));
        assert_eq!(beat(&mut engine, 0), unknown(0), "it points to a free slot");
        // The slot is used again, by a session that is not the client's first.
        tell(&mut engine, command("other", None, Command::Start(Some(config(&show())))));
        tell(&mut engine, register("other", client));
        assert_eq!(beat(&mut engine, 0), unknown(0), "it points to a subscriber of another stream");
        tell(&mut engine, join(7));
        tell(&mut engine, Input::Unregister(Subscriber { stream_id: stream("other"), client_id, session: 0 }));
        tell(&mut engine, join(8));
        assert_eq!((beat(&mut engine, 7), beat(&mut engine, 8)), (Ok(Accepted::Heard), Ok(Accepted::Heard)));
        tell(&mut engine, command("show", None, Command::Remove));
        let gone = Err(Rejection::StreamNotFound("show".to_owned()));
        assert_eq!(beat(&mut engine, 8), gone, "it points to a stream that is gone");
        tell(&mut engine, start());
        assert_eq!(beat(&mut engine, 8), unknown(8), "it points to a record of the stream before");
    }
}

#[test]
fn what_is_fetched_together_is_found_where_it_is_found_alone() {
    let mut engine = Engine::new(Settings::default());
    let mut outbox = Outbox::default();
    let names: Vec<String> = (0..300).map(|number| format!("n{number}")).collect();
    for name in &names[..3] {
        engine
            .handle(Tick(T0), command(name, None, Command::Start(Some(config(&show())))), &mut outbox)
            .expect("created");
    }
    let beat = |number: usize| {
        let client_id = ClientId::parse(&names[number]).expect("a valid id");
        Input::Heartbeat(Subscriber { stream_id: stream(&names[number % 3]), client_id, session: 0 })
    };
    for number in 0..300 {
        engine.handle(Tick(T0), register(&names[number % 3], &names[number]), &mut outbox).expect("registered");
    }
    // More than are looked up at once, and some that name nobody in between.
    let inputs: Vec<Input<'_>> =
        (0..300).map(|number| if number % 7 == 3 { Input::GetStats(None) } else { beat(number) }).collect();
    let hints = engine.fetch(&inputs);
    assert_eq!(hints.len(), inputs.len());
    for (input, hint) in inputs.iter().zip(&hints) {
        assert_eq!(engine.fetch(std::slice::from_ref(input)), [*hint], "{input:?}");
    }
    let distinct: std::collections::HashSet<String> = hints.iter().map(|hint| format!("{hint:?}")).collect();
    assert!(distinct.len() > 250, "nearly each points elsewhere, not {} places", distinct.len());
}
