//! Followed filters: subjects of their own, for what passes.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::FutureExt as _;
use orchestrator_service::{
    service::ServiceSettings,
    shard::publish_queue::PublishTo,
    transport::Subscription,
    wire::proto::{self, Cause, Code, Filter, Mode, OrchestratorConfig, Reply, StateUpdate, subscription_command},
};
use prost::Message as _;

use crate::{
    support::messages::*,
    testbed::{Caller, LIMIT, Testbed, accepted, refused, settings},
};

on_both_transports! {
    what_passes_a_filter_is_on_the_subject_that_the_answer_names,
    where_only_feeds_are_published_filters_have_subjects_too,
    register_with_a_filter_answers_for_both,
    what_cannot_be_followed_is_refused_and_nothing_is_changed,
    when_its_lease_is_over_nothing_is_published_for_a_filter,
}

pub(crate) fn follow(id: &str, filter: Filter) -> subscription_command::Command {
    subscription_command::Command::Follow(proto::Follow { stream_id: id.into(), filter: Some(filter) })
}

fn changes_of(scenes: &[&str]) -> Filter {
    let scene = scenes.iter().map(|scene| (*scene).to_owned()).collect();
    Filter { scene, changes_only: true, ..Filter::default() }
}

/// Three scenes of 300 ms, and many ticks.
fn short_config() -> OrchestratorConfig {
    let scenes = config(&[("Intro", 300), ("Main", 300), ("Outro", 300)]);
    OrchestratorConfig { tick_interval_ms: Some(20), ..scenes }
}

impl Caller {
    /// Follows, and reads what passes from then on.
    async fn followed(&self, id: &str, filter: Filter) -> (Reply, Subscription) {
        let reply = self.subscription(follow(id, filter)).await;
        assert_eq!(reply.code(), Code::Ok, "{}", reply.message);
        assert!(reply.updates_subject.starts_with(&format!("stream.{id}.filtered.")), "{reply:?}");
        let subscription = self.listen(&reply.updates_subject).await;
        (reply, subscription)
    }
}

/// All messages up to the first update like this, by sequence.
async fn until(
    messages: &mut Subscription,
    is_last: impl Fn(&StateUpdate) -> bool,
) -> BTreeMap<u64, (StateUpdate, Bytes)> {
    let mut read = BTreeMap::new();
    loop {
        let message = tokio::time::timeout(LIMIT, messages.next()).await.expect("an update").expect("open");
        let update = StateUpdate::decode(message.payload.clone()).expect("an update");
        let is_end = is_last(&update);
        read.insert(update.sequence, (update, message.payload));
        if is_end {
            return read;
        }
    }
}

fn is_finished(update: &StateUpdate) -> bool {
    update.mode() == Mode::Finished
}

/// Asserts that a filter's reader had, byte for byte, what the readers of everything had, and each change of these.
fn assert_agrees(
    filtered: &BTreeMap<u64, (StateUpdate, Bytes)>,
    all: &BTreeMap<u64, (StateUpdate, Bytes)>,
    passes: impl Fn(&StateUpdate) -> bool,
) {
    for (sequence, (_, bytes)) in filtered {
        assert_eq!(all.get(sequence).map(|(_, bytes)| bytes), Some(bytes), "update {sequence}");
    }
    for (sequence, (update, _)) in all {
        assert_eq!(filtered.contains_key(sequence), passes(update), "{update:?}");
    }
}

async fn what_passes_a_filter_is_on_the_subject_that_the_answer_names(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    caller.done(start("show", short_config())).await;
    let mut all = caller.listen("stream.show.updates").await;
    let (reply, mut changes) = caller.followed("show", changes_of(&[])).await;
    assert_eq!((reply.lease_ms, reply.handle), (90_000, 0));
    assert_eq!(accepted(reply).mode(), Mode::Idle, "it watches nothing");
    let (_, mut everything) = caller.followed("show", Filter::default()).await;
    let (first, mut main) = caller.followed("show", changes_of(&["Main", "Main"])).await;
    let (same, _) = caller.followed("show", changes_of(&["Main"])).await;
    assert_eq!(first.updates_subject, same.updates_subject, "equal filters have one subject");
    caller.subscription(register("show", "viewer")).await;

    let all = until(&mut all, is_finished).await;

    let is_change = |update: &StateUpdate| update.cause() != Cause::Tick;
    assert_agrees(&until(&mut changes, is_finished).await, &all, is_change);
    assert_agrees(&until(&mut everything, is_finished).await, &all, |_| true);
    let main = until(&mut main, |update| update.current_scene.as_deref() == Some("Outro")).await;
    let scenes: Vec<_> = main.values().filter_map(|(update, _)| update.current_scene.as_deref()).collect();
    assert_eq!(scenes, ["Main", "Outro"]);
}

async fn where_only_feeds_are_published_filters_have_subjects_too(world: Testbed) {
    let _service = world.service(ServiceSettings { publish_to: PublishTo::Feed, ..settings() }).await;
    let caller = world.caller().await;
    caller.done(start("show", short_config())).await;
    let mut main = caller.listen("stream.show.updates").await;
    let (_, mut changes) = caller.followed("show", changes_of(&[])).await;
    caller.subscription(register("show", "viewer")).await;
    let causes: Vec<Cause> =
        until(&mut changes, is_finished).await.values().map(|(update, _)| update.cause()).collect();
    assert_eq!(causes, [Cause::Lifecycle, Cause::Scene, Cause::Scene, Cause::Lifecycle]);
    assert!(main.next().now_or_never().is_none(), "nothing is published on the stream's subject");
}

async fn register_with_a_filter_answers_for_both(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    caller.done(start("show", long_config())).await;
    let register = proto::Register {
        stream_id: "show".into(),
        client_id: "viewer".into(),
        filter: Some(changes_of(&["Main"])),
        ..Default::default()
    };
    let reply = caller.subscription(subscription_command::Command::Register(register)).await;
    let (same, mut main) = caller.followed("show", changes_of(&["Main"])).await;
    assert_eq!((&reply.updates_subject, reply.lease_ms), (&same.updates_subject, 90_000));
    let handle = reply.handle;
    assert_eq!(accepted(reply).mode(), Mode::Running);
    assert_eq!(caller.subscription(heartbeats("", &[], vec![handle])).await.code(), Code::Ok);
    let skipped = caller.done(skip("show")).await;
    let passed = until(&mut main, |_| true).await;
    assert_eq!(passed.keys().copied().collect::<Vec<_>>(), [skipped.sequence]);
}

async fn what_cannot_be_followed_is_refused_and_nothing_is_changed(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let unknown = caller.subscription(follow("show", Filter::default())).await;
    refused(&unknown, Code::StreamNotFound, &["stream_id", "\"show\""]);
    caller.done(start("show", long_config())).await;
    for (filter, words) in [
        (changes_of(&["a"; 65]), &["filter.scene", "64", "65"][..]),
        (changes_of(&["a", ""]), &["filter.scene[1]", "1 to 256"]),
        (Filter { min_interval_ms: 3_600_001, ..Filter::default() }, &["filter.min_interval_ms", "3600000"]),
        (Filter { min_progress: f64::INFINITY, ..Filter::default() }, &["filter.min_progress", "0 to 100"]),
    ] {
        refused(&caller.subscription(follow("show", filter.clone())).await, Code::InvalidArgument, words);
        let register = proto::Register {
            stream_id: "show".into(),
            client_id: "viewer".into(),
            filter: Some(filter),
            ..Default::default()
        };
        let reply = caller.subscription(subscription_command::Command::Register(register)).await;
        refused(&reply, Code::InvalidArgument, words);
    }
    refused(&caller.subscription(follow("no such id", Filter::default())).await, Code::InvalidArgument, &["stream_id"]);
    assert_eq!(caller.stats("show").await.total, 0, "nobody was registered with them");
    for ms in 0..64 {
        let filter = Filter { min_interval_ms: ms, ..Filter::default() };
        assert_eq!(caller.subscription(follow("show", filter)).await.code(), Code::Ok);
    }
    let one_more = Filter { min_interval_ms: 64, ..Filter::default() };
    let reply = caller.subscription(follow("show", one_more)).await;
    refused(&reply, Code::ResourceExhausted, &["64 filters of one stream"]);
}

async fn when_its_lease_is_over_nothing_is_published_for_a_filter(world: Testbed) {
    let _service = world.service(ServiceSettings { stale_after_ms: 1_000, ..settings() }).await;
    let caller = world.caller().await;
    let often = OrchestratorConfig { tick_interval_ms: Some(50), ..long_config() };
    caller.done(start("show", often)).await;
    let (reply, mut once) = caller.followed("show", Filter::default()).await;
    assert_eq!(reply.lease_ms, 1_000);
    let (_, mut repeated) = caller.followed("show", Filter { min_interval_ms: 1, ..Filter::default() }).await;
    let viewer = caller.subscription(register("show", "viewer")).await;
    let began = viewer.state.expect("a state").server_time_ms;
    let mut last = 0;
    while last < began + 3_000 {
        let heard = caller.subscription(heartbeat("show", "viewer", 0)).await;
        assert_eq!(heard.code(), Code::Ok);
        caller.subscription(follow("show", Filter { min_interval_ms: 1, ..Filter::default() })).await;
        let passed = until(&mut repeated, |_| true).await;
        last = passed.values().map(|(update, _)| update.server_time_ms).max().unwrap_or_default();
    }
    let mut newest = 0;
    while let Some(Some(message)) = tokio::task::unconstrained(once.next()).now_or_never() {
        newest = StateUpdate::decode(message.payload).expect("an update").server_time_ms;
    }
    assert!((began..began + 2_000).contains(&newest), "from {began} on, the last was at {newest}");
}
