//! What a stranger can send: answered with its code and a message that names the field and the limit; nothing changes.

use bytes::Bytes;
use orchestrator_service::{
    transport::Outgoing,
    wire::{
        proto::{
            AtEnd, Code, Mode, OrchestratorCommand, OrchestratorConfig, Query, Reply, SceneConfig, StateUpdate, Stats,
            SubscriptionCommand, orchestrator_command::Command, query, subscription_command,
        },
        subject::{COMMAND, QUERY, SUBSCRIPTION},
    },
};
use prost::Message as _;

use crate::{
    support::messages::*,
    testbed::{Caller, Testbed, accepted, command_message, wall_ms},
};

on_both_transports! {
    bytes_that_do_not_decode_are_undecodable_on_every_subject,
    an_empty_message_names_what_is_missing,
    a_stream_id_that_is_no_subject_token_is_refused_everywhere,
    a_client_id_out_of_its_limits_is_refused_wherever_it_goes,
    a_source_address_that_is_none_is_refused,
    numbers_out_of_their_limits_are_refused_with_the_limit,
    scenes_out_of_their_limits_are_refused_with_the_limit,
    what_scenes_have_beside_names_is_refused_with_field_and_limit,
    texts_out_of_their_limits_are_refused_with_the_limit,
    a_message_of_2_mib_is_refused_and_the_next_one_is_taken,
    numbers_at_their_ends_that_mean_something_are_taken,
    an_adjustment_to_either_end_leaves_the_stream_alive,
    values_at_their_limits_are_taken,
}

/// Something bad: where it is sent, the bytes, the code of the answer, and what the answer's message says.
struct Bad {
    subject: &'static str,
    payload: Bytes,
    code: Code,
    words: Vec<String>,
}

fn bad(subject: &'static str, payload: impl Into<Bytes>, code: Code, words: &[&str]) -> Bad {
    Bad { subject, payload: payload.into(), code, words: words.iter().map(|word| (*word).to_owned()).collect() }
}

fn bad_message(message: &OrchestratorCommand, words: &[&str]) -> Bad {
    bad(COMMAND, message.encode_to_vec(), Code::InvalidArgument, words)
}

fn bad_command(command: Command, words: &[&str]) -> Bad {
    bad_message(&command_message(command), words)
}

fn bad_subscription(command: subscription_command::Command, words: &[&str]) -> Bad {
    let message = SubscriptionCommand { command: Some(command) };
    bad(SUBSCRIPTION, message.encode_to_vec(), Code::InvalidArgument, words)
}

fn bad_query(query: query::Query, words: &[&str]) -> Bad {
    bad(QUERY, Query { query: Some(query) }.encode_to_vec(), Code::InvalidArgument, words)
}

/// A config as a new stream's and as a change of the one that is there.
fn bad_config(config: OrchestratorConfig, words: &[&str]) -> [Bad; 2] {
    [bad_command(start("new", config.clone()), words), bad_command(reconfigure("show", config), words)]
}

/// A paused stream with a viewer, which nothing but a command changes.
async fn paused_show(caller: &Caller) {
    caller.done(start("show", long_config())).await;
    caller.subscription(register("show", "viewer")).await;
    caller.done(pause("show")).await;
}

/// All that may not change.
async fn picture(caller: &Caller) -> (StateUpdate, Stats) {
    (StateUpdate { server_time_ms: 0, ..caller.state("show").await }, caller.stats("").await)
}

/// Sends each with a reply subject and without; after each the service lives and nothing has changed.
async fn assert_refused(caller: &Caller, cases: impl IntoIterator<Item = Bad>) {
    let before = picture(caller).await;
    assert_eq!(before.0.mode(), Mode::Paused);
    for Bad { subject, payload, code, words } in cases {
        let start = payload.slice(..payload.len().min(40));
        // A refusal of a query has the same fields.
        let answer = Reply::decode(caller.ask_raw(subject, payload.clone()).await.payload).expect("a refusal");
        assert_eq!(answer.code(), code, "{subject} {start:?}: {:?}", answer.message);
        for word in &words {
            assert!(answer.message.contains(word), "{subject} {start:?}: {word:?} in {:?}", answer.message);
        }
        assert!(answer.message.len() < 1_024, "{subject}: the message has {} bytes", answer.message.len());
        assert_eq!((answer.state, answer.handle), (None, 0));
        caller.tell([Outgoing { subject: subject.into(), payload }]).await;
        assert_eq!(picture(caller).await, before, "{subject} {start:?}");
    }
}

async fn bytes_that_do_not_decode_are_undecodable_on_every_subject(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    paused_show(&caller).await;
    let whole = command_message(start("new", long_config())).encode_to_vec();
    // Field 1 as a varint, as a message that is cut off, as text that is not UTF-8, as a group; a key without a value.
    let garbage: [&[u8]; 6] = [
        &[0xff; 20],
        &[0x08, 0x01],
        &whole[..whole.len() - 1],
        &[0x0a, 0x04, 0x0a, 0x02, 0xc3, 0x28],
        &[0x0b, 0x0b, 0x0b],
        &[0x0a],
    ];

    let everywhere = garbage.into_iter().flat_map(|bytes| {
        [COMMAND, SUBSCRIPTION, QUERY].map(|subject| bad(subject, bytes.to_vec(), Code::Undecodable, &["decode"]))
    });
    assert_refused(&caller, everywhere).await;
}

async fn an_empty_message_names_what_is_missing(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    paused_show(&caller).await;
    let no_config =
        Command::Reconfigure(orchestrator_service::wire::proto::Reconfigure { stream_id: "show".into(), config: None });

    assert_refused(
        &caller,
        [
            bad(COMMAND, "", Code::InvalidArgument, &["command"]),
            bad(SUBSCRIPTION, "", Code::InvalidArgument, &["command"]),
            bad(QUERY, "", Code::InvalidArgument, &["query"]),
            // A field of a later version and nothing else.
            bad(COMMAND, vec![0xf8, 0x3f, 0x01], Code::InvalidArgument, &["command"]),
            bad_command(no_config, &["config"]),
            bad_command(start_again("new"), &["config"]),
            bad_command(start("new", OrchestratorConfig::default()), &["scenes", "1 to 1000"]),
        ],
    )
    .await;
}

async fn a_stream_id_that_is_no_subject_token_is_refused_everywhere(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    paused_show(&caller).await;
    let long = "x".repeat(129);

    let mut cases = Vec::new();
    for id in ["", "*", ">", "a.b", "show.", "a b", " ", "show\n", "show\0", "ü", "日本", &long] {
        let limit = if id.is_empty() || id.len() > 128 { "1 to 128 bytes" } else { "A-Z a-z 0-9 - and _" };
        let words: &[&str] = &["stream_id", limit];
        let commands = [
            start(id, long_config()),
            stop(id),
            pause(id),
            resume(id),
            force(id, "Main"),
            skip(id),
            status(id, 1, ""),
            reconfigure(id, long_config()),
            reset(id),
            remove(id),
            seek(id, 1),
            previous(id),
            adjust(id, 1),
        ];
        cases.extend(commands.map(|command| bad_command(command, words)));
        let subscriptions = [
            register(id, "v"),
            unregister(id, "v", 0),
            heartbeat(id, "v", 0),
            heartbeats(id, &["v"], vec![]),
            register_all(id, &[("v", "")]),
            unregister_all(id, &["v"], vec![1, u64::MAX]),
        ];
        cases.extend(subscriptions.map(|command| bad_subscription(command, words)));
        cases.push(bad_query(get_state(id), words));
        if !id.is_empty() {
            cases.push(bad_query(get_stats(id), words));
        }
    }
    assert_refused(&caller, cases).await;
}

async fn a_client_id_out_of_its_limits_is_refused_wherever_it_goes(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    paused_show(&caller).await;
    let (long, long_in_bytes) = ("x".repeat(129), "ü".repeat(65));

    let mut cases = Vec::new();
    for id in ["", "a\0", "\n", "\u{7f}", "a\u{85}", &long, &long_in_bytes] {
        let limit = if id.is_empty() || id.len() > 128 { "1 to 128 bytes" } else { "control characters" };
        let words: &[&str] = &["client_id", limit];
        let subscriptions = [
            register("show", id),
            unregister("show", id, 0),
            heartbeat("show", id, 0),
            heartbeats("show", &["viewer", id], vec![]),
            unregister_all("show", &["viewer", id], vec![0]),
        ];
        cases.extend(subscriptions.map(|command| bad_subscription(command, words)));
    }
    assert_refused(&caller, cases).await;
}

async fn a_source_address_that_is_none_is_refused(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    paused_show(&caller).await;

    let addresses = ["nowhere", "192.0.2.7", "192.0.2.7:65536", "192.0.2.7:", ":1", "localhost:80", "2001:db8::1:80"];
    let cases =
        addresses.map(|address| bad_subscription(register_from("show", "v", address, 0), &["source_addr", "ip:port"]));
    assert_refused(&caller, cases).await;
}

async fn numbers_out_of_their_limits_are_refused_with_the_limit(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    paused_show(&caller).await;
    let year = "31536000000";

    let mut cases = Vec::new();
    for number in [0, 9, 60_001, u64::MAX] {
        let config = OrchestratorConfig { tick_interval_ms: Some(number), ..long_config() };
        cases.extend(bad_config(config, &["tick_interval_ms", "10 to 60000", &number.to_string()]));
    }
    for number in [31_536_000_001, u64::MAX] {
        let config = OrchestratorConfig { empty_grace_ms: Some(number), ..long_config() };
        cases.extend(bad_config(config, &["empty_grace_ms", year, &number.to_string()]));
    }
    for number in [0, 86_400_001, u64::MAX] {
        let config = OrchestratorConfig { idle_timeout_ms: Some(number), ..long_config() };
        cases.extend(bad_config(config, &["idle_timeout_ms", "1 to 86400000", &number.to_string()]));
    }
    for number in [0, 31_536_000_001, u64::MAX] {
        let config = config(&[("Intro", 1), ("Main", number)]);
        cases.extend(bad_config(config, &["scenes[1].duration_ms", "1 to", year, &number.to_string()]));
    }
    for number in [3, -1, i32::MAX, i32::MIN] {
        let config = OrchestratorConfig { when_empty: number, ..long_config() };
        cases.extend(bad_config(config, &["when_empty", "RUN_ON", &number.to_string()]));
    }
    for number in [3 * LONG_MS, u64::MAX] {
        cases.push(bad_command(seek("show", number), &["position_ms", "1800000", &number.to_string()]));
    }
    cases.push(bad_command(adjust("show", i64::MAX), &["delta_ms", year]));
    for number in [1_001, u32::MAX] {
        cases.push(bad_query(list(number, ""), &["limit", "1000", &number.to_string()]));
    }
    for cursor in ["0", "-", "a-b", "0-4294967296", "-1-0", "18446744073709551615-0"] {
        cases.push(bad_query(list(1, cursor), &["cursor"]));
    }
    for revision in [0, u64::MAX] {
        let message = OrchestratorCommand { expected_revision: Some(revision), ..command_message(stop("show")) };
        let words = ["expected_revision", &revision.to_string()];
        cases.push(bad(COMMAND, message.encode_to_vec(), Code::Conflict, &words));
    }
    assert_refused(&caller, cases).await;
}

async fn scenes_out_of_their_limits_are_refused_with_the_limit(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    paused_show(&caller).await;
    let (names, long): (Vec<String>, String) = ((0..1_001).map(|n| n.to_string()).collect(), "x".repeat(257));
    let too_many: Vec<(&str, u64)> = names.iter().map(|name| (&**name, 1)).collect();

    let cases = [
        bad_config(config(&[]), &["scenes", "1 to 1000", "0"]),
        bad_config(config(&too_many), &["scenes", "1 to 1000", "1001"]),
        // So large that it is checked before it reaches a shard.
        bad_config(
            OrchestratorConfig { scenes: vec![SceneConfig::default(); 300_000], ..Default::default() },
            &["scenes", "1 to 1000", "300000"],
        ),
        bad_config(config(&[("a", 1), ("", 1)]), &["scenes[1].name", "1 to 256 bytes"]),
        bad_config(config(&[(&long, 1)]), &["scenes[0].name", "1 to 256 bytes", "257"]),
        bad_config(
            OrchestratorConfig { scenes: vec![SceneConfig::default(); 3], ..Default::default() },
            &["scenes[0].name", "1 to 256 bytes"],
        ),
    ];
    assert_refused(&caller, cases.into_iter().flatten()).await;
}

async fn what_scenes_have_beside_names_is_refused_with_field_and_limit(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    paused_show(&caller).await;
    let plain = || SceneConfig { name: "a".into(), duration_ms: 1, ..Default::default() };
    let holding = || SceneConfig { at_end: AtEnd::Hold.into(), ..plain() };
    let named = |scene_id: &str| SceneConfig { scene_id: scene_id.into(), ..plain() };
    let (long, year_and_more) = ("x".repeat(129), Some(31_536_000_001));

    let scenes: [(Vec<SceneConfig>, &[&str]); 12] = [
        (vec![named("a.b")], &["scenes[0].scene_id", "1 to 128 bytes", "a.b"]),
        (vec![named(&long)], &["scenes[0].scene_id", "1 to 128 bytes"]),
        (vec![named("x"), plain(), named("x")], &["scenes[2].scene_id", "distinct", "\"x\""]),
        (vec![SceneConfig { data: "d".repeat(4_097), ..plain() }], &["scenes[0].data", "4096 bytes", "4097"]),
        (vec![SceneConfig { at_end: 2, ..plain() }], &["scenes[0].at_end", "HOLD", "2"]),
        (vec![SceneConfig { max_hold_ms: Some(1), ..plain() }], &["scenes[0].max_hold_ms", "HOLD"]),
        (vec![SceneConfig { fallback_scene: "b".into(), ..plain() }], &["scenes[0].fallback_scene", "HOLD"]),
        (vec![SceneConfig { max_hold_ms: Some(0), ..holding() }], &["scenes[0].max_hold_ms", "1 to 31536000000"]),
        (vec![SceneConfig { max_hold_ms: year_and_more, ..holding() }], &["scenes[0].max_hold_ms", "365 days"]),
        (
            vec![plain(), SceneConfig { fallback_scene: "\u{1}".repeat(256), ..holding() }],
            &["scenes[1].fallback_scene", "later scene"],
        ),
        (vec![SceneConfig { warn_ms: year_and_more, ..plain() }], &["scenes[0].warn_ms", "31536000000"]),
        (vec![SceneConfig { danger_ms: year_and_more, ..plain() }], &["scenes[0].danger_ms", "31536000000"]),
    ];
    let scenes = scenes.into_iter().map(|(scenes, words)| (OrchestratorConfig { scenes, ..Default::default() }, words));
    let whole: [(OrchestratorConfig, &[&str]); 2] = [
        (OrchestratorConfig { title: "t".repeat(257), ..config(&[("a", 1)]) }, &["title", "256 bytes", "257"]),
        (
            OrchestratorConfig { starts_at_ms: Some(u64::MAX), ..config(&[("a", 1)]) },
            &["starts_at_ms", "365 days", "18446744073709551615"],
        ),
    ];
    assert_refused(&caller, scenes.chain(whole).flat_map(|(config, words)| bad_config(config, words))).await;
}

async fn texts_out_of_their_limits_are_refused_with_the_limit(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    paused_show(&caller).await;
    let (request_id, scene, timecode) = ("r".repeat(129), "s".repeat(257), "t".repeat(257));

    assert_refused(
        &caller,
        [
            bad_message(
                &OrchestratorCommand { request_id, ..command_message(stop("show")) },
                &["request_id", "128 bytes", "129"],
            ),
            bad_message(
                &OrchestratorCommand { issued_by: "i".repeat(129), ..command_message(stop("show")) },
                &["issued_by", "128 bytes", "129"],
            ),
            bad_message(
                &OrchestratorCommand { expected_scene: Some(scene.clone()), ..command_message(stop("show")) },
                &["expected_scene", "256 bytes", "257"],
            ),
            bad_command(force("show", &scene), &["scene_name", "256 bytes", "257"]),
            bad_command(force("show", ""), &["scene_name"]),
            bad_command(status("show", 1, &timecode), &["timecode", "256 bytes", "257"]),
        ],
    )
    .await;
}

async fn a_message_of_2_mib_is_refused_and_the_next_one_is_taken(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    paused_show(&caller).await;
    let huge = "x".repeat(2 << 20);
    let words: &[&str] = &["1048576 bytes"];

    assert_refused(
        &caller,
        [
            bad_command(status("show", 1, &huge), words),
            bad_command(stop(&huge), words),
            bad_subscription(register("show", &huge), words),
            bad_subscription(unregister_all("", &[], vec![7; (2 << 20) / 8]), words),
            bad_query(get_state(&huge), words),
            bad(COMMAND, vec![0xff; 2 << 20], Code::InvalidArgument, words),
        ],
    )
    .await;
}

async fn numbers_at_their_ends_that_mean_something_are_taken(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    paused_show(&caller).await;

    for session in [0, u64::MAX] {
        assert_ne!(caller.subscription(register_from("show", "v", "", session)).await.handle, 0);
        assert_eq!(caller.subscription(heartbeat("show", "v", session)).await.code(), Code::Ok);
        assert_eq!(caller.subscription(unregister("show", "v", session)).await.code(), Code::Ok);
    }
    for handles in [vec![0], vec![u64::MAX], vec![0, u64::MAX, 1 << 28, 1 << 56]] {
        for batch in [heartbeats("", &[], handles.clone()), unregister_all("", &[], handles.clone())] {
            let reply = caller.subscription(batch).await;
            assert_eq!((reply.code(), reply.unknown_handle.len()), (Code::UnknownSubscriber, handles.len()));
        }
    }
    for stream_time in [0, u64::MAX] {
        assert_eq!(caller.done(status("show", stream_time, "")).await.mode(), Mode::Paused);
    }
    assert_eq!(caller.done(seek("show", 0)).await.current_time, 0);
    assert_eq!(caller.query(list(0, "")).await.state.len(), 1);
    assert_eq!(caller.stats("show").await.total, 1);
}

async fn an_adjustment_to_either_end_leaves_the_stream_alive(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    paused_show(&caller).await;
    caller.done(seek("show", LONG_MS + 5_000)).await;

    // Never below what has played.
    let state = caller.done(adjust("show", i64::MIN)).await;
    assert_eq!((state.mode(), state.current_time), (Mode::Paused, LONG_MS + 5_000));
    assert_eq!(state.total_duration, 2 * LONG_MS + 5_000);
    let before = caller.state("show").await;
    let reply = caller.command(adjust("show", i64::MAX)).await;
    assert_eq!(reply.code(), Code::InvalidArgument, "{}", reply.message);
    assert_eq!(caller.state("show").await.revision, before.revision);

    // The only scene to nothing: a running stream is at its end.
    caller.done(start("short", config(&[("Main", LONG_MS)]))).await;
    caller.subscription(register("short", "viewer")).await;
    let state = caller.done(adjust("short", i64::MIN)).await;
    assert!(matches!(state.mode(), Mode::Finished | Mode::Running), "{state:?}");
    assert_eq!(caller.done(reset("short")).await.total_duration, LONG_MS);
}

async fn values_at_their_limits_are_taken(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let (longest, year_ms, day_ms) = ("x".repeat(128), 31_536_000_000, 86_400_000);
    let names: Vec<String> = (0..1_000).map(|number| format!("{number:0>256}")).collect();
    let scenes: Vec<(&str, u64)> =
        names.iter().enumerate().map(|(n, name)| (&**name, if n % 2 == 0 { 1 } else { year_ms })).collect();
    let largest = OrchestratorConfig {
        tick_interval_ms: Some(10),
        empty_grace_ms: Some(0),
        idle_timeout_ms: Some(day_ms),
        ..config(&scenes)
    };

    let state = caller.done(start(&longest, largest.clone())).await;
    assert_eq!(state.total_duration, 500 + 500 * year_ms);
    let again = OrchestratorConfig { tick_interval_ms: Some(60_000), empty_grace_ms: Some(year_ms), ..largest };
    caller.done(reconfigure(&longest, again)).await;
    assert_ne!(caller.subscription(register_from(&longest, &"ü".repeat(64), "[::1]:65535", 7)).await.handle, 0);
    caller.done(pause(&longest)).await;
    let state = caller.done(seek(&longest, 499 + 500 * year_ms)).await;
    assert_eq!(state.scene_index, Some(999));
    caller.done(force(&longest, &names[500])).await;
    caller.done(status(&longest, 0, &"t".repeat(256))).await;
    let mut held = config(&[("a", year_ms), ("a", 1), ("b", 1)]);
    held.title = "t".repeat(256);
    held.starts_at_ms = Some(wall_ms() + year_ms - 60_000);
    held.scenes[0].scene_id = "i".repeat(128);
    held.scenes[0].data = "d".repeat(4_096);
    held.scenes[0].at_end = AtEnd::Hold.into();
    held.scenes[0].max_hold_ms = Some(year_ms);
    held.scenes[0].fallback_scene = "b".into();
    (held.scenes[1].warn_ms, held.scenes[1].danger_ms) = (Some(year_ms), Some(0));
    caller.done(start("held", held)).await;
    let request = OrchestratorCommand { issued_by: "i".repeat(128), ..command_message(pause(&longest)) };
    accepted(caller.send(&request).await);
    caller.done(remove("held")).await;
    let request_id = "r".repeat(128);
    accepted(caller.send(&OrchestratorCommand { request_id, ..command_message(pause(&longest)) }).await);
    assert_eq!(caller.query(get_state(&longest)).await.code(), Code::Ok);
}

mod over_nats_alone {
    use super::*;

    /// A server lets anything pass as a reply subject.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_impossible_reply_subject_costs_nobody_else_an_answer() {
        crate::testbed::within_limit(async {
            let world = Testbed::nats().await;
            let Testbed::Nats(server, _) = &world else { panic!() };
            let (_service, caller) = world.with_service().await;
            let stranger = async_nats::connect(server.url()).await.unwrap();
            paused_show(&caller).await;

            for round in 0..20 {
                for reply in ["everybody.*", "everybody.>", "a..b", ".a"] {
                    for subject in [COMMAND, SUBSCRIPTION, QUERY] {
                        let payload =
                            if round % 2 == 0 { Vec::new() } else { command_message(stop("no")).encode_to_vec() };
                        stranger.publish_with_reply(subject, reply, payload.into()).await.unwrap();
                    }
                }
                stranger.flush().await.unwrap();
                let asked = std::time::Instant::now();
                let answers = futures_util::future::join_all((0..20).map(|_| picture(&caller))).await;
                assert_eq!(answers.len(), 20);
                assert!(asked.elapsed() < std::time::Duration::from_secs(5), "{:?}", asked.elapsed());
            }
        })
        .await;
    }
}
