//! Commands: each with its answer.

use orchestrator_service::wire::proto::{Code, Mode, OrchestratorCommand, Reply, StateUpdate};

use crate::{
    support::messages::*,
    testbed::{Testbed, accepted, command_message, eventually, refused, say, say_subscription, wall_ms},
};

on_both_transports! {
    each_command_is_answered_with_the_state_after_it,
    commands_without_a_reply_subject_are_carried_out_the_same,
    a_register_sent_right_behind_its_start_finds_the_stream,
    a_refusal_has_its_code_and_changes_nothing,
    a_repeated_request_gets_the_first_answer_and_is_done_once,
    a_repeat_of_a_refused_request_is_refused_again,
    a_command_that_expects_another_revision_is_a_conflict,
}

/// What a command did, without what depends on when.
fn outline(state: &StateUpdate) -> (Mode, Option<&str>, u64, u64) {
    (state.mode(), state.current_scene.as_deref(), state.current_time / LONG_MS, state.revision)
}

async fn each_command_is_answered_with_the_state_after_it(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let long = || long_config();

    let state = caller.done(start("show", long())).await;
    assert_eq!(outline(&state), (Mode::Idle, None, 0, 1));
    assert_eq!((state.total_duration, state.time_remaining, state.current_time), (3 * LONG_MS, 3 * LONG_MS, 0));
    let registered = caller.subscription(register("show", "viewer")).await;
    assert_ne!(registered.handle, 0);
    let state = accepted(registered);
    assert_eq!(outline(&state), (Mode::Running, Some("Intro"), 0, 2));
    assert_eq!((state.is_running, state.is_paused, state.is_complete), (true, false, false));

    let state = caller.done(pause("show")).await;
    assert_eq!(outline(&state), (Mode::Paused, Some("Intro"), 0, 3));
    assert_eq!((state.is_running, state.is_paused), (true, true));
    let state = caller.done(resume("show")).await;
    assert_eq!(outline(&state), (Mode::Running, Some("Intro"), 0, 4));
    let state = caller.done(force("show", "Outro")).await;
    assert_eq!(outline(&state), (Mode::Running, Some("Outro"), 2, 5));
    let state = caller.done(previous("show")).await;
    assert_eq!(outline(&state), (Mode::Running, Some("Main"), 1, 6));
    let state = caller.done(skip("show")).await;
    assert_eq!(outline(&state), (Mode::Running, Some("Outro"), 2, 7));
    let state = caller.done(seek("show", 5)).await;
    assert_eq!(outline(&state), (Mode::Running, Some("Intro"), 0, 8));
    let state = caller.done(adjust("show", LONG_MS as i64)).await;
    assert_eq!(outline(&state), (Mode::Running, Some("Intro"), 0, 9));
    assert_eq!(state.total_duration, 4 * LONG_MS);
    let state = caller.done(status("show", 7, "01:02:03:04")).await;
    assert_eq!((&*state.stream_timecode, state.stream_is_streaming, state.revision), ("01:02:03:04", true, 10));
    let state = caller.done(reconfigure("show", config(&[("Other", LONG_MS)]))).await;
    assert_eq!(outline(&state), (Mode::Running, Some("Other"), 0, 11));
    assert_eq!(&*state.stream_timecode, "01:02:03:04");
    let state = caller.done(stop("show")).await;
    assert_eq!(outline(&state), (Mode::Stopped, state.current_scene.as_deref(), 0, 12));
    assert_eq!((state.is_running, state.is_paused, state.is_complete), (false, false, false));
    let state = caller.done(start_again("show")).await;
    assert_eq!(outline(&state), (Mode::Running, Some("Other"), 0, 13));
    let state = caller.done(skip("show")).await;
    assert_eq!(outline(&state), (Mode::Finished, None, 1, 14));
    assert_eq!((state.is_complete, state.progress_percentage, state.loop_count), (true, 100.0, 1));
    let state = caller.done(reset("show")).await;
    assert_eq!(outline(&state), (Mode::Running, Some("Other"), 0, 15));
    let state = caller.done(remove("show")).await;
    assert_eq!((state.mode(), state.revision, state.current_scene), (Mode::Unknown, 16, None));
    assert_eq!(caller.stats("").await.streams, 0);
}

async fn commands_without_a_reply_subject_are_carried_out_the_same(world: Testbed) {
    let (_service, caller) = world.with_service().await;

    caller
        .tell([
            say(start("show", long_config())),
            say_subscription(register("show", "viewer")),
            say(force("show", "Main")),
            say(pause("show")),
            say(stop("no-such-stream")),
            say(status("show", 1, "tc")),
        ])
        .await;

    // Behind them on the same connection.
    let state = caller.state("show").await;
    assert_eq!(outline(&state), (Mode::Paused, Some("Main"), 1, 5));
    assert_eq!((state.current_time >= LONG_MS, &*state.stream_timecode), (true, "tc"));
}

async fn a_register_sent_right_behind_its_start_finds_the_stream(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let ids: Vec<String> = (0..300).map(|number| format!("show-{number}")).collect();

    let both = |id: &String| [say(start(id, long_config())), say_subscription(register(id, "viewer"))];
    caller.tell(ids.iter().flat_map(both)).await;

    let stats = caller.stats("").await;
    assert_eq!((stats.streams, stats.running_streams, stats.total), (300, 300, 300));
}

async fn a_refusal_has_its_code_and_changes_nothing(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    caller.done(start("show", long_config())).await;
    let before = caller.state("show").await;

    for (command, code, word) in [
        (stop("nothing"), Code::StreamNotFound, "\"nothing\""),
        (start_again("nothing"), Code::InvalidArgument, "config"),
        (start("show", config(&[("Other", 1_000)])), Code::AlreadyExists, "config"),
        (pause("show"), Code::InvalidState, "IDLE"),
        (resume("show"), Code::InvalidState, "IDLE"),
        (force("show", "Credits"), Code::SceneNotFound, "\"Credits\""),
        (seek("show", 3 * LONG_MS), Code::InvalidArgument, "position_ms"),
    ] {
        refused(&caller.command(command).await, code, &[word]);
    }

    assert_eq!(StateUpdate { server_time_ms: before.server_time_ms, ..caller.state("show").await }, before);
    assert_eq!(caller.stats("").await.streams, 1);
}

async fn a_repeated_request_gets_the_first_answer_and_is_done_once(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    caller.done(start("show", long_config())).await;
    caller.subscription(register("show", "viewer")).await;
    let skip_once = OrchestratorCommand { request_id: "once".into(), ..command_message(skip("show")) };

    let first = caller.send(&skip_once).await;
    // So that the answer would differ if it were made anew.
    caller.done(status("show", 1, "later")).await;
    let first_ms = first.state.as_ref().expect("a state").server_time_ms;
    eventually("time has gone by", async || wall_ms() > first_ms + 20).await;
    let mut second = caller.send(&skip_once).await;

    // The moment is told by two clocks in whole milliseconds.
    let moment_ms = &mut second.state.as_mut().expect("a state").server_time_ms;
    assert!(moment_ms.abs_diff(first_ms) <= 5, "{moment_ms} and {first_ms}");
    *moment_ms = first_ms;
    assert_eq!(second, first, "to the last field");
    let state = caller.state("show").await;
    assert_eq!((state.current_scene.as_deref(), state.revision), (Some("Main"), 4), "one skip");
    // The same id for another stream is another request.
    caller.done(start("other", long_config())).await;
    let other = OrchestratorCommand { request_id: "once".into(), ..command_message(skip("other")) };
    assert_eq!(accepted(caller.send(&other).await).stream_id, "other");
}

async fn a_repeat_of_a_refused_request_is_refused_again(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let pause_once = OrchestratorCommand { request_id: "once".into(), ..command_message(pause("show")) };
    caller.done(start("show", long_config())).await;

    let first = caller.send(&pause_once).await;
    refused(&first, Code::InvalidState, &["Pause", "IDLE"]);
    caller.subscription(register("show", "viewer")).await;

    assert_eq!(caller.send(&pause_once).await, first);
    assert_eq!(caller.state("show").await.mode(), Mode::Running);
    assert_eq!(caller.done(pause("show")).await.mode(), Mode::Paused);
}

async fn a_command_that_expects_another_revision_is_a_conflict(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let expecting =
        |revision, command| OrchestratorCommand { expected_revision: Some(revision), ..command_message(command) };
    let conflict = |reply: &Reply, actual: &str| refused(reply, Code::Conflict, &["expected_revision", actual]);

    conflict(&caller.send(&expecting(1, start("show", long_config()))).await, "at 0");
    let state = accepted(caller.send(&expecting(0, start("show", long_config()))).await);
    conflict(&caller.send(&expecting(0, stop("show"))).await, "at 1");
    conflict(&caller.send(&expecting(u64::MAX, stop("show"))).await, "at 1");

    assert_eq!(caller.state("show").await.mode(), Mode::Idle);
    let state = accepted(caller.send(&expecting(state.revision, stop("show"))).await);
    assert_eq!((state.mode(), state.revision), (Mode::Stopped, 2));
}
