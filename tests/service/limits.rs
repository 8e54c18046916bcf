//! How much a service holds, over all its shards.

use orchestrator_service::{
    engine::Limits,
    service::ServiceSettings,
    wire::{WireLimits, proto::Code},
};

use crate::{
    support::messages::*,
    testbed::{Testbed, refused, settings},
};

on_both_transports! {
    the_limit_on_streams_holds_to_the_last_one_over_all_shards,
    the_limit_on_subscribers_holds_to_the_last_one_over_all_shards,
    the_limit_on_sessions_of_a_client_holds_for_each_stream,
}

fn with_limits(engine: Limits) -> ServiceSettings {
    ServiceSettings { limits: WireLimits { engine, ..WireLimits::default() }, ..settings() }
}

async fn the_limit_on_streams_holds_to_the_last_one_over_all_shards(world: Testbed) {
    let service = world.service(with_limits(Limits { max_streams: 20, ..Limits::default() })).await;
    let caller = world.caller().await;
    let ids: Vec<String> = (0..40).map(|number| format!("show-{number}")).collect();

    for id in &ids[..20] {
        caller.done(start(id, long_config())).await;
    }
    for id in &ids[20..] {
        refused(&caller.command(start(id, long_config())).await, Code::ResourceExhausted, &["streams", "20"]);
    }
    caller.done(start(&ids[0], long_config())).await;

    // Room on one shard is room for all.
    for (gone, new) in ids[..5].iter().zip(&ids[20..25]) {
        caller.done(remove(gone)).await;
        caller.done(start(new, long_config())).await;
        refused(&caller.command(start(gone, long_config())).await, Code::ResourceExhausted, &["streams", "20"]);
    }
    assert_eq!((caller.stats("").await.streams, service.counts().streams), (20, 20));
}

async fn the_limit_on_subscribers_holds_to_the_last_one_over_all_shards(world: Testbed) {
    let _service = world.service(with_limits(Limits { max_subscribers: 7, ..Limits::default() })).await;
    let caller = world.caller().await;
    let ids: Vec<String> = (0..9).map(|number| format!("show-{number}")).collect();
    for id in &ids {
        caller.done(start(id, long_config())).await;
    }

    for id in &ids[..5] {
        assert_ne!(caller.subscription(register(id, "v")).await.handle, 0);
    }
    let batch = caller.subscription(register_all(&ids[5], &[("a", ""), ("b", ""), ("c", ""), ("d", "")])).await;
    assert_eq!(batch.code(), Code::ResourceExhausted);
    assert!(batch.message.contains("2 of 4") && batch.message.contains('7'), "{}", batch.message);
    assert_eq!(batch.handles.iter().filter(|handle| **handle != 0).count(), 2);
    for id in &ids[6..] {
        refused(&caller.subscription(register(id, "v")).await, Code::ResourceExhausted, &["subscribers", "7"]);
    }
    assert_ne!(caller.subscription(register(&ids[0], "v")).await.handle, 0, "who is there may say so again");

    caller.subscription(unregister(&ids[0], "v", 0)).await;
    assert_ne!(caller.subscription(register(&ids[8], "v")).await.handle, 0);
    refused(&caller.subscription(register(&ids[0], "v")).await, Code::ResourceExhausted, &["subscribers", "7"]);
    // A stream's end frees its subscribers' room.
    caller.done(remove(&ids[5])).await;
    assert_ne!(caller.subscription(register(&ids[6], "v")).await.handle, 0);
    assert_ne!(caller.subscription(register(&ids[7], "v")).await.handle, 0);
    refused(&caller.subscription(register(&ids[0], "v")).await, Code::ResourceExhausted, &["subscribers", "7"]);
    assert_eq!(caller.stats("").await.total, 7);
}

async fn the_limit_on_sessions_of_a_client_holds_for_each_stream(world: Testbed) {
    let _service = world.service(with_limits(Limits { max_sessions_per_client: 2, ..Limits::default() })).await;
    let caller = world.caller().await;
    for id in ["one", "two"] {
        caller.done(start(id, long_config())).await;
        for session in [0, 1] {
            assert_ne!(caller.subscription(register_from(id, "v", "", session)).await.handle, 0);
        }
        let reply = caller.subscription(register_from(id, "v", "", 2)).await;
        refused(&reply, Code::ResourceExhausted, &["sessions", "2"]);
    }
}
