//! Messages to the service, encoded.

use bytes::Bytes;
use orchestrator_service::wire::proto::{
    GetStats, Heartbeat, HeartbeatBatch, OrchestratorCommand, OrchestratorConfig, Pause, Query, Register,
    RegisterBatch, Resume, SceneConfig, Start, StateUpdate, Subscriber, SubscriptionCommand, UnregisterBatch,
    UpdateStreamStatus, orchestrator_command::Command, query, subscription_command::Command as Subscription,
};
use prost::Message as _;

use crate::support::ids;

/// Intro, Main and Outro: all boundaries lie on the beat of a tick of 100 ms and of its parts.
pub const SCENES: [(&str, u64); 3] = [("Intro", 3_000), ("Main", 10_000), ("Outro", 2_000)];

fn command(command: Command) -> Bytes {
    OrchestratorCommand { command: Some(command), ..Default::default() }.encode_to_vec().into()
}

fn subscription(command: Subscription) -> Bytes {
    SubscriptionCommand { command: Some(command) }.encode_to_vec().into()
}

/// Starts a stream whose scenes repeat for ever, with a tick now and then or with none.
pub fn start(stream_id: &str, tick_ms: Option<u64>) -> Bytes {
    let scenes =
        SCENES.map(|(name, duration_ms)| SceneConfig { name: name.to_owned(), duration_ms, ..Default::default() });
    let config = OrchestratorConfig {
        scenes: scenes.into(),
        tick_interval_ms: tick_ms,
        no_ticks: tick_ms.is_none(),
        loop_scenes: true,
        ..Default::default()
    };
    command(Command::Start(Start { stream_id: stream_id.to_owned(), config: Some(config) }))
}

/// Pauses a stream.
pub fn pause(stream_id: &str) -> Bytes {
    command(Command::Pause(Pause { stream_id: stream_id.to_owned() }))
}

/// Resumes a stream.
pub fn resume(stream_id: &str) -> Bytes {
    command(Command::Resume(Resume { stream_id: stream_id.to_owned() }))
}

/// Tells whether a stream's encoder sends: if that is news, a command that changes neither position nor beat.
pub fn status(stream_id: &str, is_streaming: bool) -> Bytes {
    let timecode = "00:00:07:00".to_owned();
    let status = UpdateStreamStatus { stream_id: stream_id.to_owned(), is_streaming, stream_time: 1, timecode };
    command(Command::UpdateStreamStatus(status))
}

/// Registers a viewer, whose id is the number's UUID.
pub fn register(stream_id: &str, viewer: u64) -> Bytes {
    let (stream_id, client_id) = (stream_id.to_owned(), ids::text(viewer));
    subscription(Subscription::Register(Register { stream_id, client_id, ..Default::default() }))
}

/// Registers viewers, each with an address.
pub fn register_batch(stream_id: &str, viewers: impl Iterator<Item = u64>) -> Bytes {
    let subscriber = viewers.map(|viewer| Subscriber {
        client_id: ids::text(viewer),
        source_addr: format!("192.0.{}.{}:{}", viewer >> 8 & 255, viewer & 255, 1_024 + (viewer >> 16) % 60_000),
        session: 0,
    });
    let subscriber = subscriber.collect();
    subscription(Subscription::RegisterBatch(RegisterBatch { stream_id: stream_id.to_owned(), subscriber }))
}

/// One heartbeat of one viewer.
pub fn heartbeat(stream_id: &str, viewer: u64) -> Bytes {
    let (stream_id, client_id) = (stream_id.to_owned(), ids::text(viewer));
    subscription(Subscription::Heartbeat(Heartbeat { stream_id, client_id, session: 0 }))
}

/// Heartbeats of viewers of a stream.
pub fn heartbeats_by_key(stream_id: &str, viewers: impl Iterator<Item = u64>) -> Bytes {
    let client_id = viewers.map(ids::text).collect();
    let batch = HeartbeatBatch { stream_id: stream_id.to_owned(), client_id, handle: Vec::new() };
    subscription(Subscription::HeartbeatBatch(batch))
}

/// Heartbeats of whom the service gave these handles.
pub fn heartbeats_by_handle(handle: Vec<u64>) -> Bytes {
    subscription(Subscription::HeartbeatBatch(HeartbeatBatch { handle, ..Default::default() }))
}

/// They leave.
pub fn unregister_by_handle(handle: Vec<u64>) -> Bytes {
    subscription(Subscription::UnregisterBatch(UnregisterBatch { handle, ..Default::default() }))
}

/// Asks how many there are in the whole service.
pub fn get_stats() -> Bytes {
    Query { query: Some(query::Query::GetStats(GetStats::default())) }.encode_to_vec().into()
}

/// An update as the service makes them, for those who only publish.
pub fn an_update(stream_id: &str) -> Bytes {
    let update = StateUpdate {
        stream_id: stream_id.to_owned(),
        current_scene: Some("Main".to_owned()),
        current_time: 7_300,
        time_remaining: 7_700,
        progress_percentage: 48.67,
        is_running: true,
        mode: 2,
        revision: 2,
        sequence: 1_000,
        epoch: 1_800_000_000_000_000,
        server_time_ms: 1_800_000_000_000,
        total_duration: 15_000,
        scene_index: Some(1),
        scene_elapsed: 4_300,
        scene_remaining: 5_700,
        loop_count: 3,
        ..Default::default()
    };
    update.encode_to_vec().into()
}
