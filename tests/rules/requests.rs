//! Repeats of a request id: what is remembered, for whom, and what a flood of them may take.

use orchestrator_service::engine::*;

use crate::{
    command,
    driver::{EngineDriver, T0, config, show},
    stream,
};

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
