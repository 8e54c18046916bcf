//! A gateway of before reads what today's service says of a show with all that is new in it: what it knows it finds as it
//! was, and what it does not know is in nobody's way.

use orchestrator_service::wire::proto::{
    AtEnd, OrchestratorCommand, OrchestratorConfig, Query, QueryReply, Reply, SceneConfig, StateUpdate,
    SubscriptionCommand, orchestrator_command::Command, subscription_command::Command as Subscription,
};
use orchestrator_service::wire::subject;
use prost::Message as _;

use crate::{
    old_messages as old,
    recording::Testbed,
    support::{
        messages::{get_state, get_stats, list, register, skip, start},
        waiting::wall_ms,
    },
};

/// The fields of then.
fn known(update: StateUpdate) -> old::StateUpdate {
    old::StateUpdate {
        stream_id: update.stream_id,
        current_scene: update.current_scene,
        current_time: update.current_time,
        time_remaining: update.time_remaining,
        progress_percentage: update.progress_percentage,
        is_running: update.is_running,
        is_paused: update.is_paused,
        is_complete: update.is_complete,
        stream_timecode: update.stream_timecode,
        stream_is_streaming: update.stream_is_streaming,
        mode: update.mode,
        revision: update.revision,
        sequence: update.sequence,
        epoch: update.epoch,
        server_time_ms: update.server_time_ms,
        total_duration: update.total_duration,
        scene_index: update.scene_index,
        scene_elapsed: update.scene_elapsed,
        scene_remaining: update.scene_remaining,
        loop_count: update.loop_count,
        cause: update.cause,
    }
}

/// Asserts that both read the same, and gives today's reading.
fn read_update(bytes: &[u8]) -> StateUpdate {
    let now = StateUpdate::decode(bytes).expect("an update");
    assert_eq!(old::StateUpdate::decode(bytes).expect("an update, then too"), known(now.clone()));
    now
}

fn read_reply(bytes: &[u8]) -> StateUpdate {
    let now = Reply::decode(bytes).expect("an answer");
    let then = old::Reply::decode(bytes).expect("an answer, then too");
    let expected = (now.code, &*now.stream_id, now.revision, now.handle, now.state.clone().map(known));
    assert_eq!((then.code, &*then.stream_id, then.revision, then.handle, then.state), expected);
    now.state.expect("a state")
}

fn read_query_reply(bytes: &[u8]) -> QueryReply {
    let now = QueryReply::decode(bytes).expect("an answer");
    let then = old::QueryReply::decode(bytes).expect("an answer, then too");
    let states: Vec<_> = now.state.iter().cloned().map(known).collect();
    assert_eq!((then.code, &then.cursor, &then.state), (now.code, &now.cursor, &states));
    let counts = then.stats.map(|stats| (stats.total, stats.active, stats.streams, stats.running_streams));
    assert_eq!(counts, now.stats.map(|stats| (stats.total, stats.active, stats.streams, stats.running_streams)));
    now
}

/// A scene that holds after a moment, and another of the same name.
fn new_show() -> OrchestratorConfig {
    let break_of = |scene_id: &str, duration_ms, at_end: AtEnd| SceneConfig {
        name: "Break".into(),
        duration_ms,
        scene_id: scene_id.into(),
        data: "{\"colour\": \"red\"}".into(),
        at_end: at_end.into(),
        warn_ms: Some(10),
        ..Default::default()
    };
    OrchestratorConfig {
        scenes: vec![break_of("first", 100, AtEnd::Hold), break_of("second", 600_000, AtEnd::Next)],
        no_ticks: true,
        title: "A show".into(),
        ..Default::default()
    }
}

async fn tell(testbed: &Testbed, command: Command) -> StateUpdate {
    let command = OrchestratorCommand { command: Some(command), issued_by: "director".into(), ..Default::default() };
    read_reply(&testbed.ask(subject::COMMAND, command.encode_to_vec()).await)
}

#[tokio::test]
async fn a_gateway_of_before_reads_what_is_new_without_loss() {
    let mut testbed = Testbed::new().await;
    let waiting = OrchestratorConfig { starts_at_ms: Some(wall_ms() + 3_600_000), ..new_show() };
    tell(&testbed, start("later", waiting)).await;
    assert!(read_update(&testbed.next_update("later").await).starts_in.is_some());

    tell(&testbed, start("show", new_show())).await;
    read_update(&testbed.next_update("show").await);
    let joins = SubscriptionCommand { command: Some(register("show", "viewer")) };
    read_reply(&testbed.ask(subject::SUBSCRIPTION, joins.encode_to_vec()).await);
    read_update(&testbed.next_update("show").await);
    let holds = read_update(&testbed.next_update("show").await);
    assert_eq!((holds.holding, holds.scene_id.as_deref()), (true, Some("first")), "{holds:?}");
    let goes_on = tell(&testbed, skip("show")).await;
    assert_eq!(read_update(&testbed.next_update("show").await).scene_index, goes_on.scene_index);

    for query in [get_state("show"), get_stats(""), list(0, "")] {
        let query = Query { query: Some(query) };
        read_query_reply(&testbed.ask(subject::QUERY, query.encode_to_vec()).await);
    }
    testbed.end().await;
}

#[test]
fn a_command_with_new_fields_is_the_same_to_a_service_of_before() {
    let new = OrchestratorCommand {
        command: Some(start("show", new_show())),
        request_id: "once".into(),
        expected_revision: Some(3),
        expected_epoch: Some(4),
        expected_scene: Some("first".into()),
        issued_by: "director".into(),
    };
    let old = old::OrchestratorCommand::decode(&*new.encode_to_vec()).expect("a command, then too");
    let Some(old::orchestrator_command::Command::Start(old::Start { stream_id, config: Some(config) })) = old.command
    else {
        panic!("{old:?}");
    };
    let scenes: Vec<_> = config.scenes.iter().map(|scene| (&*scene.name, scene.duration_ms)).collect();
    assert_eq!((&*stream_id, &*scenes), ("show", &[("Break", 100), ("Break", 600_000)][..]));
    assert_eq!((&*old.request_id, old.expected_revision), ("once", Some(3)));

    let follow = SubscriptionCommand { command: Some(Subscription::Follow(Default::default())) };
    let old = old::SubscriptionCommand::decode(&*follow.encode_to_vec()).expect("it decodes, then too");
    assert_eq!(old.command, None, "what is not known is none of its commands");
}
