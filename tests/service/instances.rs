//! Two services in one queue group.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use orchestrator_service::{
    service::{Service, ServiceSettings},
    transport::{Operation, Outgoing, Transport as _, memory::MemoryBus},
    wire::proto::{Presence, StateUpdate},
};
use prost::Message as _;

use crate::{
    support::messages::*,
    testbed::{LIMIT, Testbed, accepted, eventually, settings},
};

on_both_transports! {
    two_instances_share_the_messages_and_act_on_each_once,
    the_later_of_two_instances_waits_until_the_earlier_has_gone,
    whoever_comes_later_is_at_no_moment_ready,
}

async fn two_instances_share_the_messages_and_act_on_each_once(world: Testbed) {
    let unaware = ServiceSettings { presence_interval: None, ..settings() };
    let services =
        [world.service(unaware.clone()).await, world.service(ServiceSettings { shards: 1, ..unaware }).await];
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

async fn the_later_of_two_instances_waits_until_the_earlier_has_gone(world: Testbed) {
    let settings = ServiceSettings { presence_interval: Some(Duration::from_millis(200)), ..settings() };
    let first = world.service(settings.clone()).await;
    // A clock of whole milliseconds could show the same for both.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let (second, _) = world.service_in_outage(settings).await;
    eventually("the second has found the first", async || {
        second.ready().is_err_and(|reason| reason.contains(first.instance()))
    })
    .await;
    assert_eq!(first.ready(), Ok(()));
    first.drain().await;
    eventually("the second is ready", async || second.ready().is_ok()).await;
}

/// However long it is until the earlier one announces itself anew, and however soon one comes behind the other.
async fn whoever_comes_later_is_at_no_moment_ready(world: Testbed) {
    let settings = ServiceSettings { presence_interval: Some(Duration::from_secs(600)), ..settings() };
    let first = world.service(settings.clone()).await;
    let mut later = Vec::new();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        later.push(world.service_in_outage(settings.clone()).await.0);
        eventually("it has found the first", async || {
            let readiness: Vec<_> = later.iter().map(Service::ready).collect();
            assert!(readiness.iter().all(Result::is_err), "{readiness:?}");
            readiness.iter().flat_map(|ready| ready.as_ref().err()).all(|reason| reason.contains(first.instance()))
        })
        .await;
    }
    assert_eq!(first.ready(), Ok(()));
}

/// A login with the contract's subjects and no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_may_not_announce_itself_is_ready_all_the_same() {
    let bus = MemoryBus::new();
    bus.deny(Operation::Publish, "orchestrator.i.>");
    bus.deny(Operation::Subscribe, "orchestrator.i.*.presence");
    let settings = ServiceSettings { presence_interval: Some(Duration::from_millis(20)), ..settings() };
    let service = Service::start(settings, bus.connect(), vec![bus.connect()]).await.expect("it starts");
    eventually("the service is ready", async || service.ready().is_ok()).await;
    for _ in 0..20 {
        assert_eq!(service.ready(), Ok(()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a stranger announces costs a false alarm, for as long as it is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_presence_is_forgotten_when_it_is_not_repeated() {
    let bus = MemoryBus::new();
    let settings = ServiceSettings { presence_interval: Some(Duration::from_millis(200)), ..settings() };
    let service = Service::start(settings, bus.connect(), vec![bus.connect()]).await.expect("it starts");
    eventually("the service is ready", async || service.ready().is_ok()).await;
    let stranger = bus.connect();
    let say = |instance: &str, payload: Vec<u8>| {
        let subject = format!("orchestrator.i.{instance}.presence").as_str().into();
        std::collections::VecDeque::from([Outgoing { subject, payload: payload.into() }])
    };
    let forged = Presence { instance: "forged".into(), started_at_ms: 1, ..Presence::default() };
    stranger.publish(&mut say("forged", vec![0xff; 100])).await.unwrap();
    stranger.publish(&mut say("another", forged.encode_to_vec())).await.unwrap();
    stranger.barrier().await.unwrap();
    assert_eq!(service.ready(), Ok(()), "neither is one");
    eventually("it is heard", async || {
        stranger.publish(&mut say("forged", forged.encode_to_vec())).await.unwrap();
        service.ready().is_err_and(|reason| reason.contains("forged"))
    })
    .await;
    eventually("it is forgotten", async || service.ready().is_ok()).await;
}
