//! The messages that the tests send, in few words.

use orchestrator_service::wire::proto::{
    self, OrchestratorConfig, SceneConfig, orchestrator_command::Command, query::Query,
    subscription_command::Command as Subscription,
};

/// Ten minutes: nothing ends by itself in a test.
pub(crate) const LONG_MS: u64 = 600_000;

/// Scenes by name and length in ms, everything else as it is by default.
pub(crate) fn config(scenes: &[(&str, u64)]) -> OrchestratorConfig {
    let scenes = scenes.iter().map(|(name, duration_ms)| SceneConfig {
        name: (*name).into(),
        duration_ms: *duration_ms,
        ..Default::default()
    });
    OrchestratorConfig { scenes: scenes.collect(), ..Default::default() }
}

/// Three scenes that last for longer than any test, with a tick now and then.
pub(crate) fn long_config() -> OrchestratorConfig {
    OrchestratorConfig {
        tick_interval_ms: Some(60_000),
        ..config(&[("Intro", LONG_MS), ("Main", LONG_MS), ("Outro", LONG_MS)])
    }
}

pub(crate) fn start(id: &str, config: OrchestratorConfig) -> Command {
    Command::Start(proto::Start { stream_id: id.into(), config: Some(config) })
}

pub(crate) fn start_again(id: &str) -> Command {
    Command::Start(proto::Start { stream_id: id.into(), config: None })
}

pub(crate) fn stop(id: &str) -> Command {
    Command::Stop(proto::Stop { stream_id: id.into() })
}

pub(crate) fn pause(id: &str) -> Command {
    Command::Pause(proto::Pause { stream_id: id.into() })
}

pub(crate) fn resume(id: &str) -> Command {
    Command::Resume(proto::Resume { stream_id: id.into() })
}

pub(crate) fn force(id: &str, scene: &str) -> Command {
    Command::ForceScene(proto::ForceScene { stream_id: id.into(), scene_name: scene.into() })
}

pub(crate) fn skip(id: &str) -> Command {
    Command::SkipScene(proto::SkipScene { stream_id: id.into() })
}

pub(crate) fn previous(id: &str) -> Command {
    Command::PreviousScene(proto::PreviousScene { stream_id: id.into() })
}

pub(crate) fn seek(id: &str, position_ms: u64) -> Command {
    Command::Seek(proto::Seek { stream_id: id.into(), position_ms })
}

pub(crate) fn adjust(id: &str, delta_ms: i64) -> Command {
    Command::AdjustScene(proto::AdjustScene { stream_id: id.into(), delta_ms })
}

pub(crate) fn status(id: &str, stream_time: u64, timecode: &str) -> Command {
    let (stream_id, timecode) = (id.into(), timecode.into());
    Command::UpdateStreamStatus(proto::UpdateStreamStatus { stream_id, is_streaming: true, stream_time, timecode })
}

pub(crate) fn reconfigure(id: &str, config: OrchestratorConfig) -> Command {
    Command::Reconfigure(proto::Reconfigure { stream_id: id.into(), config: Some(config) })
}

pub(crate) fn reset(id: &str) -> Command {
    Command::Reset(proto::Reset { stream_id: id.into() })
}

pub(crate) fn remove(id: &str) -> Command {
    Command::Remove(proto::Remove { stream_id: id.into() })
}

pub(crate) fn register(id: &str, client: &str) -> Subscription {
    register_from(id, client, "", 0)
}

pub(crate) fn register_from(id: &str, client: &str, source_addr: &str, session: u64) -> Subscription {
    let (stream_id, client_id, source_addr) = (id.into(), client.into(), source_addr.into());
    Subscription::Register(proto::Register { stream_id, client_id, source_addr, session, ..Default::default() })
}

pub(crate) fn unregister(id: &str, client: &str, session: u64) -> Subscription {
    Subscription::Unregister(proto::Unregister { stream_id: id.into(), client_id: client.into(), session })
}

pub(crate) fn heartbeat(id: &str, client: &str, session: u64) -> Subscription {
    Subscription::Heartbeat(proto::Heartbeat { stream_id: id.into(), client_id: client.into(), session })
}

pub(crate) fn heartbeats(id: &str, clients: &[&str], handle: Vec<u64>) -> Subscription {
    Subscription::HeartbeatBatch(proto::HeartbeatBatch { stream_id: id.into(), client_id: owned(clients), handle })
}

pub(crate) fn unregister_all(id: &str, clients: &[&str], handle: Vec<u64>) -> Subscription {
    Subscription::UnregisterBatch(proto::UnregisterBatch { stream_id: id.into(), client_id: owned(clients), handle })
}

/// Each with session 0.
pub(crate) fn register_all(id: &str, clients: &[(&str, &str)]) -> Subscription {
    let subscriber = clients.iter().map(|(client_id, source_addr)| proto::Subscriber {
        client_id: (*client_id).into(),
        source_addr: (*source_addr).into(),
        session: 0,
    });
    Subscription::RegisterBatch(proto::RegisterBatch { stream_id: id.into(), subscriber: subscriber.collect() })
}

pub(crate) fn get_state(id: &str) -> Query {
    Query::GetState(proto::GetState { stream_id: id.into() })
}

/// Of the whole service if `id` is empty.
pub(crate) fn get_stats(id: &str) -> Query {
    Query::GetStats(proto::GetStats { stream_id: id.into() })
}

pub(crate) fn list(limit: u32, cursor: &str) -> Query {
    Query::ListStreams(proto::ListStreams { limit, cursor: cursor.into() })
}

pub(crate) fn get_config(id: &str) -> Query {
    Query::GetConfig(proto::GetConfig { stream_id: id.into() })
}

pub(crate) fn list_subscribers(id: &str, limit: u32, cursor: &str) -> Query {
    Query::ListSubscribers(proto::ListSubscribers { stream_id: id.into(), limit, cursor: cursor.into() })
}

/// From the newest on if the revision is 0.
pub(crate) fn get_history(id: &str, limit: u32, before_revision: u64) -> Query {
    Query::GetHistory(proto::GetHistory { stream_id: id.into(), limit, before_revision })
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
