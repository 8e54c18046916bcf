//! Two services in one queue group.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use orchestrator_service::{service::ServiceSettings, wire::proto::StateUpdate};
use prost::Message as _;

use crate::{
    support::messages::*,
    world::{LIMIT, World, accepted, settings},
};

on_both_transports! {
    two_instances_share_the_messages_and_act_on_each_once,
}

async fn two_instances_share_the_messages_and_act_on_each_once(world: World) {
    let services = [world.service(settings()).await, world.service(ServiceSettings { shards: 1, ..settings() }).await];
    let caller = world.caller().await;
    let mut updates = caller.listen("stream.*.updates").await;
    let ids: Vec<String> = (0..200).map(|number| format!("show-{number}")).collect();

    let starts = ids.iter().map(|id| async { accepted(caller.command(start(id, long_config())).await).stream_id });
    assert_eq!(join_all(starts).await, ids);

    let streams = services.each_ref().map(|service| service.counts().streams);
    assert_eq!(streams.iter().sum::<u64>(), 200, "{streams:?}");
    assert!(streams.iter().all(|streams| *streams > 10), "both take part: {streams:?}");
    // Updates came before their answers.
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..200 {
        let message = tokio::time::timeout(LIMIT, updates.next()).await.expect("an update").expect("open");
        *seen.entry(StateUpdate::decode(message.payload).expect("an update").stream_id).or_default() += 1;
    }
    assert_eq!((seen.len(), seen.values().max()), (200, Some(&1)));
    caller.transport.barrier().await.unwrap();
    let more = tokio::task::unconstrained(updates.next());
    assert!(futures_util::FutureExt::now_or_never(more).is_none(), "no update came twice");
}
