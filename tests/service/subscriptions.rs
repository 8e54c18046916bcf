//! Who watches: registrations, heartbeats, and batches over several shards.

use orchestrator_service::wire::proto::{Code, Mode};

use crate::{
    support::messages::*,
    testbed::{Caller, Testbed, accepted, refused, say_subscription},
};

on_both_transports! {
    a_subscriber_registers_is_heard_and_leaves,
    sessions_of_one_client_are_apart,
    a_batch_of_registrations_refuses_the_malformed_alone,
    heartbeats_over_several_shards_tell_whom_they_did_not_place,
    leaves_over_several_shards_tell_whom_they_did_not_place,
    a_batch_over_shards_without_a_reply_subject_is_carried_out,
    a_batch_of_an_unknown_stream_still_hears_its_handles,
    a_batch_of_thousands_is_answered_as_a_whole_and_in_order,
    a_register_right_behind_a_batch_of_leaves_stands,
}

/// On different shards of three.
const IDS: [&str; 6] = ["show-0", "show-1", "show-2", "show-3", "show-4", "show-5"];

/// Creates the streams and registers the viewer `v` on each; gives the handles.
async fn watched_streams(caller: &Caller) -> Vec<u64> {
    let mut handles = Vec::new();
    for id in IDS {
        caller.done(start(id, long_config())).await;
        handles.push(caller.subscription(register(id, "v")).await.handle);
    }
    let shard = |handle: &u64| (handle >> 56) % 3;
    assert!((0..3).all(|number| handles.iter().any(|handle| shard(handle) == number)), "all shards take part");
    handles
}

async fn a_subscriber_registers_is_heard_and_leaves(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    refused(&caller.subscription(register("show", "v")).await, Code::StreamNotFound, &["stream_id"]);
    caller.done(start("show", long_config())).await;

    let first = caller.subscription(register_from("show", "v", "192.0.2.7:51000", 0)).await;
    let again = caller.subscription(register_from("show", "v", "[2001:db8::1]:80", 0)).await;
    let heard = caller.subscription(heartbeats("", &[], vec![first.handle, again.handle])).await;
    assert_eq!(heard.unknown_handle, [first.handle], "registering again voids the handle before");
    assert_eq!(accepted(again).mode(), Mode::Running);
    assert_eq!(caller.stats("show").await.total, 1);

    assert_eq!(caller.subscription(heartbeat("show", "v", 0)).await.code(), Code::Ok);
    refused(&caller.subscription(heartbeat("show", "v", 1)).await, Code::UnknownSubscriber, &["session 1"]);
    refused(&caller.subscription(heartbeat("show", "w", 0)).await, Code::UnknownSubscriber, &["\"w\""]);
    refused(&caller.subscription(unregister("show", "w", 0)).await, Code::UnknownSubscriber, &["\"w\""]);
    assert_eq!(caller.subscription(unregister("show", "v", 0)).await.code(), Code::Ok);
    refused(&caller.subscription(unregister("show", "v", 0)).await, Code::UnknownSubscriber, &["\"v\""]);
    assert_eq!(caller.stats("show").await.total, 0);
}

async fn sessions_of_one_client_are_apart(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    caller.done(start("show", long_config())).await;
    for session in [0, 1, u64::MAX] {
        assert_ne!(caller.subscription(register_from("show", "v", "", session)).await.handle, 0);
    }
    let stats = caller.stats("show").await;
    assert_eq!((stats.total, stats.unique_clients), (3, 1));

    assert_eq!(caller.subscription(unregister("show", "v", u64::MAX)).await.code(), Code::Ok);

    refused(
        &caller.subscription(heartbeat("show", "v", u64::MAX)).await,
        Code::UnknownSubscriber,
        &["18446744073709551615"],
    );
    assert_eq!(caller.subscription(heartbeat("show", "v", 1)).await.code(), Code::Ok);
    let stats = caller.stats("show").await;
    assert_eq!((stats.total, stats.unique_clients), (2, 1));
}

async fn a_batch_of_registrations_refuses_the_malformed_alone(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    caller.done(start("show", long_config())).await;
    let long = "x".repeat(129);

    let reply = caller
        .subscription(register_all(
            "show",
            &[("a", "192.0.2.7:1"), ("", ""), ("b", "nowhere"), ("c\n", ""), (&long, ""), ("d", "")],
        ))
        .await;

    assert_eq!(reply.code(), Code::InvalidArgument);
    assert!(
        reply.message.contains("4 of 6") && reply.message.contains("subscriber[1]: client_id"),
        "{}",
        reply.message
    );
    let given: Vec<bool> = reply.handles.iter().map(|handle| *handle != 0).collect();
    assert_eq!(given, [true, false, false, false, false, true]);
    assert_eq!(reply.state.expect("a state").mode(), Mode::Running, "two watch");
    assert_eq!(caller.stats("show").await.total, 2);
    let heard = caller.subscription(heartbeats("", &[], vec![reply.handles[0], reply.handles[5]])).await;
    assert_eq!(heard.code(), Code::Ok);

    let all = caller.subscription(register_all("show", &[("e", ""), ("f", "")])).await;
    assert_eq!((all.code(), all.handles.len()), (Code::Ok, 2));
    let unknown = caller.subscription(register_all("nothing", &[("e", "")])).await;
    refused(&unknown, Code::StreamNotFound, &["\"nothing\""]);
}

async fn heartbeats_over_several_shards_tell_whom_they_did_not_place(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let mut handles = watched_streams(&caller).await;
    let all = caller.subscription(heartbeats("", &[], handles.clone())).await;
    assert_eq!((all.code(), all.unknown_handle.len()), (Code::Ok, 0));

    caller.subscription(unregister(IDS[2], "v", 0)).await;
    let strangers = [0, u64::MAX, handles[2]];
    handles.extend([0, u64::MAX]);
    let reply = caller.subscription(heartbeats(IDS[1], &["v", "w"], handles)).await;

    assert_eq!(reply.code(), Code::UnknownSubscriber);
    assert!(reply.message.contains('4'), "{}", reply.message);
    let mut unknown = reply.unknown_handle;
    unknown.sort_unstable();
    let mut expected = strangers;
    expected.sort_unstable();
    assert_eq!(unknown, expected);
    assert_eq!(reply.unknown_client_id, ["w"]);
}

async fn leaves_over_several_shards_tell_whom_they_did_not_place(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let handles = watched_streams(&caller).await;
    caller.subscription(register(IDS[5], "w")).await;

    let batch = [&handles[..5], &[7]].concat();
    let reply = caller.subscription(unregister_all(IDS[5], &["w", "nobody"], batch.clone())).await;

    assert_eq!(reply.code(), Code::UnknownSubscriber);
    assert_eq!((reply.unknown_handle, reply.unknown_client_id), (vec![7], vec!["nobody".to_owned()]));
    for id in &IDS[..5] {
        assert_eq!(caller.stats(id).await.total, 0, "{id}");
    }
    assert_eq!(caller.stats(IDS[5]).await.total, 1, "v is still there");
    let reply = caller.subscription(unregister_all("", &[], batch)).await;
    assert_eq!(reply.unknown_handle.len(), 6, "all are gone by now");
}

async fn a_batch_over_shards_without_a_reply_subject_is_carried_out(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let handles = watched_streams(&caller).await;

    caller.tell([say_subscription(unregister_all("", &[], handles.clone()))]).await;

    // Goes round the shards behind it.
    let reply = caller.subscription(heartbeats("", &[], handles.clone())).await;
    assert_eq!((reply.code(), reply.unknown_handle.len()), (Code::UnknownSubscriber, handles.len()));
    assert_eq!(caller.stats("").await.total, 0);
}

async fn a_batch_of_an_unknown_stream_still_hears_its_handles(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let handles = watched_streams(&caller).await;

    let reply = caller.subscription(unregister_all("nothing", &["v"], handles)).await;

    assert_eq!(reply.code(), Code::StreamNotFound);
    assert!(reply.message.contains("\"nothing\""), "{}", reply.message);
    assert_eq!((reply.unknown_handle.len(), reply.unknown_client_id), (0, vec!["v".to_owned()]));
    assert_eq!(caller.stats("").await.total, 0);
}

async fn a_batch_of_thousands_is_answered_as_a_whole_and_in_order(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    caller.done(start("show", long_config())).await;
    let names: Vec<String> = (0..2_500).map(|n| format!("viewer-{n}")).collect();
    let mut newcomers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    newcomers[2_100].0 = "";

    let reply = caller.subscription(register_all("show", &newcomers)).await;

    assert_eq!((reply.code(), reply.handles.len()), (Code::InvalidArgument, 2_500));
    assert!(reply.message.contains("1 of 2500") && reply.message.contains("subscriber[2100]"), "{}", reply.message);
    assert_eq!(caller.stats("show").await.total, 2_499);
    let mut handles = reply.handles;
    let left = caller.subscription(unregister_all("", &[], vec![handles[2_499]])).await;
    assert_eq!(left.code(), Code::Ok);
    let last = caller.subscription(heartbeat("show", "viewer-2499", 0)).await;
    assert_eq!(last.code(), Code::UnknownSubscriber, "handles are in the order of the subscribers");
    handles[2_499] = caller.subscription(register("show", "viewer-2499")).await.handle;

    let clients: Vec<&str> = names.iter().map(String::as_str).collect();
    let heard = caller.subscription(heartbeats("show", &clients, handles)).await;
    assert_eq!((heard.unknown_client_id, heard.unknown_handle), (vec!["viewer-2100".to_owned()], vec![0]));

    let mut malformed = clients.clone();
    malformed[2_400] = "a\n";
    let refusal = caller.subscription(unregister_all("show", &malformed, vec![])).await;
    refused(&refusal, Code::InvalidArgument, &["entry 2400"]);
    assert_eq!(caller.stats("show").await.total, 2_499, "nobody left for the sake of a malformed batch");

    let left = caller.subscription(unregister_all("show", &clients, vec![])).await;
    assert_eq!(left.unknown_client_id, ["viewer-2100"]);
    assert_eq!(caller.stats("show").await.total, 0);
    let gone = caller.subscription(register_all("nothing", &newcomers)).await;
    refused(&gone, Code::StreamNotFound, &["\"nothing\""]);
}

/// On one connection, without waiting in between.
async fn a_register_right_behind_a_batch_of_leaves_stands(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let mut handles = watched_streams(&caller).await;

    for _ in 0..20 {
        let again = IDS.map(|id| say_subscription(register(id, "v")));
        let left = say_subscription(unregister_all("", &[], std::mem::take(&mut handles)));
        caller.tell(std::iter::once(left).chain(again)).await;
        for id in IDS {
            assert_eq!(caller.stats(id).await.total, 1, "{id}: who has registered is there");
            handles.push(caller.subscription(register(id, "v")).await.handle);
        }
    }
}
