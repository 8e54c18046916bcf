//! Rules of the engine that random runs meet too seldom, or cannot see: budgets, memory, and states that take many
//! steps to come to. Each was found by a change of the engine that no other test noticed.

use driver::{EngineDriver, config, said, show};
use orchestrator_service::engine::*;

mod budgets;
#[path = "../driver/mod.rs"]
mod driver;
mod handles;
mod requests;

pub(crate) fn stream(id: &str) -> StreamId<'_> {
    StreamId::parse(id).expect("a valid id")
}

pub(crate) fn command<'a>(id: &'a str, request_id: Option<&'a str>, command: Command<'a>) -> Input<'a> {
    Input::Command(Request { request_id, ..Request::new(stream(id), command) })
}

pub(crate) fn register<'a>(id: &'a str, client: &'a str) -> Input<'a> {
    let client_id = ClientId::parse(client).expect("a valid id");
    let subscriber = Newcomer { client_id, session: 0, source: None };
    Input::Register { stream_id: stream(id), subscriber, answered: true }
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
