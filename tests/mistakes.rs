//! Scenarios that programs of this design have got wrong, each named after what must hold. Time and lifecycle are
//! tested on the engine in virtual time, messages on the parts that carry them. What is about processes (RUST_LOG, SIGTERM,
//! shutdown) is tested in `tests/process/`: `logs.rs` and `signals.rs`.

use std::{fs, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;

use driver::{EngineDriver, Said, T0, config, said, show};
use orchestrator_service::{
    engine::*,
    service::{Service, ServiceSettings},
    shard::{
        clock::Now,
        ingress::Ingress,
        mailbox::Mailbox,
        publish_queue::{AtOnce, DEFAULT_MAX_PAYLOAD, Publication, PublishQueue, PublishTo},
        router::Router,
        totals::Totals,
        turn::{Next, Shard, ShardSettings, TurnLimits},
    },
    transport::{Subject, Subscription, Transport, memory::MemoryBus},
    wire::{
        WireLimits, encode,
        proto::{self, Code, orchestrator_command::Command as Wire},
        subject,
    },
};
use prost::Message as _;

mod driver;

// --- time ----------------------------------------------------------------------------------------------------------

#[test]
fn pause_freezes_the_clock_and_resume_goes_on_to_the_millisecond() {
    let mut world = EngineDriver::with_show(&show());
    world.join("a", 0);
    world.until(4_321);
    assert_eq!(world.command("show", Command::Pause).unwrap().position_ms, 4_321);
    assert!(world.until(44_321).iter().all(|said| said.position == 4_321));
    assert_eq!(world.show(), (Mode::Paused, 4_321));
    assert_eq!(world.command("show", Command::Resume).unwrap().position_ms, 4_321);
    world.until(44_322);
    assert_eq!(world.show(), (Mode::Running, 4_322));
}

#[test]
fn a_forced_or_skipped_scene_stays_through_the_next_ticks() {
    let mut world = EngineDriver::with_show(&show());
    world.join("a", 0);
    world.until(500);
    world.command("show", Command::ForceScene("Outro")).unwrap();
    assert_eq!(
        world.until(2_000),
        [
            said(500, Cause::Command, Mode::Running, 13_000, "Outro"),
            said(1_000, Cause::Tick, Mode::Running, 13_500, "Outro"),
            said(2_000, Cause::Tick, Mode::Running, 14_500, "Outro"),
        ]
    );
    world.command("show", Command::PreviousScene).unwrap();
    assert_eq!(world.show(), (Mode::Running, 3_000));
    world.command("show", Command::SkipScene).unwrap();
    world.until(2_001);
    assert_eq!(world.show(), (Mode::Running, 13_001));
}

#[test]
fn ticks_missed_in_a_pause_or_while_idle_are_not_caught_up_with() {
    let mut world = EngineDriver::with_show(&show());
    world.join("a", 0);
    world.until(100);
    world.command("show", Command::Pause).unwrap();
    world.until(50_100);
    world.command("show", Command::Resume).unwrap();
    world.heard();
    assert_eq!(world.until(51_100), [said(51_100, Cause::Tick, Mode::Running, 1_100, "Intro")]);
    // The thread sleeps over three ticks, within Main: one tick, and the beat is kept.
    world.until(54_000);
    world.sleep_until(57_500);
    world.expire();
    assert_eq!(world.heard(), [said(57_500, Cause::Tick, Mode::Running, 7_500, "Main")]);
    assert_eq!(world.until(58_100), [said(58_100, Cause::Tick, Mode::Running, 8_100, "Main")]);
}

#[test]
fn a_loops_overshoot_is_carried_over_and_each_update_has_a_scene() {
    let draft = Draft { loop_scenes: true, tick_interval_ms: Some(700), ..show() };
    let mut world = EngineDriver::with_show(&draft);
    world.join("a", 0);
    world.heard();
    let mut updates = Vec::new();
    // 10,000 passes of 15 s, woken late by up to 13 ms each time.
    let mut at = 0;
    while at < 10_000 * 15_000 {
        at += 9_973 + at % 13;
        world.beat("a", 0).unwrap();
        world.sleep_until(at);
        world.expire();
        updates.extend(world.heard());
    }
    assert!(updates.len() > 10_000);
    for said in &updates {
        assert_eq!(said.loops * 15_000 + said.position, said.at, "drifted: {said:?}");
        assert!(said.scene.is_some(), "without a scene: {said:?}");
    }
}

#[test]
fn a_scene_changes_at_its_boundary_whatever_the_tick_interval() {
    let mut world = EngineDriver::with_show(&Draft { tick_interval_ms: Some(60_000), ..show() });
    world.join("a", 0);
    assert_eq!(
        world.until(16_000),
        [
            said(0, Cause::Lifecycle, Mode::Running, 0, "Intro"),
            said(3_000, Cause::Scene, Mode::Running, 3_000, "Main"),
            said(13_000, Cause::Scene, Mode::Running, 13_000, "Outro"),
            Said { loops: 1, ..said(15_000, Cause::Lifecycle, Mode::Finished, 15_000, None) },
        ]
    );
}

#[test]
fn reconfigure_takes_effect_at_once_and_keeps_the_stream_status() {
    let mut world = EngineDriver::with_show(&show());
    world.join("a", 0);
    let status = Command::UpdateStreamStatus { is_streaming: true, stream_time_ms: 7, timecode: "00:00:07:00" };
    world.command("show", status).unwrap();
    world.until(5_000);
    let new = Draft {
        scenes: vec![Scene::new("Warm-up", 60_000), Scene::new("Main", 30_000)],
        tick_interval_ms: Some(250),
        ..show()
    };
    let state = world.command("show", Command::Reconfigure(config(&new))).unwrap();
    assert_eq!((state.mode, state.position_ms, state.revision), (Mode::Running, 62_000, 4));
    assert_eq!(state.status.map(|status| status.timecode.clone()), Some("00:00:07:00".into()));
    assert_eq!(
        world.until(5_500),
        [
            said(5_000, Cause::Command, Mode::Running, 62_000, "Main"),
            said(5_250, Cause::Tick, Mode::Running, 62_250, "Main"),
            said(5_500, Cause::Tick, Mode::Running, 62_500, "Main"),
        ]
    );
}

#[test]
fn numbers_at_the_ends_are_refused_or_played_but_never_panic() {
    let limits = Limits::default();
    for tick in [0, 9, 60_001, u64::MAX] {
        assert!(Config::new(&Draft { tick_interval_ms: Some(tick), ..show() }, &limits).is_err(), "{tick}");
    }
    for duration_ms in [0, MAX_DURATION_MS + 1, u64::MAX] {
        let scenes = vec![Scene::new("a", duration_ms)];
        assert!(Config::new(&Draft { scenes, ..show() }, &limits).is_err(), "{duration_ms}");
    }
    let longest = vec![Scene::new("a", MAX_DURATION_MS)];
    let mut world = EngineDriver::with_show(&Draft { scenes: longest, ..show() });
    world.join("a", 0);
    for command in [
        Command::Seek(u64::MAX),
        Command::Seek(MAX_DURATION_MS),
        Command::AdjustScene(i64::MAX),
        Command::AdjustScene(1),
        Command::ForceScene("b"),
    ] {
        let before = world.state("show").unwrap();
        assert!(world.command("show", command.clone()).is_err(), "{command:?}");
        assert_eq!(world.state("show").unwrap(), before, "{command:?} changed the state");
    }
    world.until(1_234);
    world.command("show", Command::AdjustScene(i64::MIN)).unwrap();
    assert_eq!(world.show(), (Mode::Finished, 1_234), "shortened to what has played");
}

// --- lifecycle -----------------------------------------------------------------------------------------------------

#[test]
fn a_reloaded_page_finds_the_show_going_on() {
    let mut world = EngineDriver::with_show(&show());
    world.join("a", 0);
    world.until(5_000);
    world.leave("a", 0).unwrap();
    world.heard();
    assert_eq!(world.until(6_999), [], "nothing is published for nobody");
    let (_, state) = world.join("a", 1);
    assert_eq!((state.mode, state.position_ms), (Mode::Running, 6_999));
    assert_eq!(world.until(7_999), [said(7_000, Cause::Tick, Mode::Running, 7_000, "Main")]);
    // Nobody for the whole grace: back to the beginning.
    world.leave("a", 1).unwrap();
    assert_eq!(world.until(9_998), []);
    assert_eq!(world.until(9_999), [said(9_999, Cause::Lifecycle, Mode::Idle, 0, None)]);
}

#[test]
fn freeze_goes_on_where_it_was_left_and_run_on_as_if_watched() {
    for (when_empty, idle, then) in [
        (WhenEmpty::Freeze, (Mode::Idle, 5_000), (Mode::Running, 5_000)),
        (WhenEmpty::RunOn, (Mode::Running, 12_000), (Mode::Running, 12_000)),
    ] {
        let mut world = EngineDriver::with_show(&Draft { when_empty, ..show() });
        world.join("a", 0);
        world.until(5_000);
        world.leave("a", 0).unwrap();
        world.heard();
        assert!(world.until(12_000).is_empty(), "{when_empty:?}: nothing is published for nobody");
        assert_eq!(world.show(), idle, "{when_empty:?}");
        let (_, state) = world.join("a", 0);
        assert_eq!((state.mode, state.position_ms), then, "{when_empty:?}");
    }
}

#[test]
fn a_register_does_not_restart_what_was_stopped_or_has_finished() {
    let mut world = EngineDriver::with_show(&show());
    world.join("a", 0);
    world.until(5_000);
    world.command("show", Command::Stop).unwrap();
    world.heard();
    let (_, state) = world.join("b", 0);
    assert_eq!((state.mode, state.position_ms), (Mode::Stopped, 5_000));
    assert_eq!(world.until(20_000), []);
    world.command("show", Command::Start(None)).unwrap();
    assert_eq!(world.until(35_000).last().map(|said| said.mode), Some(Mode::Finished));
    assert_eq!(world.join("c", 0).1.mode, Mode::Finished);
    assert_eq!(world.until(40_000), []);
}

#[test]
fn a_stream_emptied_by_silence_stops_and_is_removed() {
    let draft = Draft { loop_scenes: true, tick_interval_ms: Some(60_000), ..show() };
    let mut world = EngineDriver::with_show(&draft);
    world.join("a", 0);
    world.until(89_999);
    assert_eq!(world.show().0, Mode::Running);
    world.until(90_000);
    assert_eq!(world.engine.counts().stale, 1);
    // Stale at 90 s, then the grace of 2 s, then 60 s since it was left.
    let silence = world.until(149_999);
    assert_eq!(silence, [said(92_000, Cause::Lifecycle, Mode::Idle, 0, None)]);
    assert_eq!(world.until(150_000), [said(150_000, Cause::Lifecycle, Mode::Unknown, 0, None)]);
    assert!(!world.exists("show"));
}

#[test]
fn a_stream_that_nobody_ever_watched_is_removed() {
    let mut world = EngineDriver::with_show(&show());
    assert_eq!(world.until(59_999), []);
    assert_eq!(world.until(60_000), [said(60_000, Cause::Lifecycle, Mode::Unknown, 0, None)]);
    world.until(60_001);
    assert!(world.engine.is_empty());
}

#[test]
fn leaving_again_starts_the_idle_time_again() {
    let mut world = EngineDriver::with_show(&show());
    world.join("a", 0);
    world.until(1_000);
    world.leave("a", 0).unwrap();
    world.until(50_000);
    world.join("a", 0);
    world.until(51_000);
    world.leave("a", 0).unwrap();
    world.until(110_999);
    assert!(world.exists("show"), "60 s after the first leave");
    world.until(111_000);
    assert!(!world.exists("show"), "60 s after the second");
}

#[test]
fn a_register_that_races_the_removal_is_answered() {
    let mut world = EngineDriver::with_show(&show());
    // At the very moment of the removal, before the engine was called for it.
    world.sleep_until(60_000);
    let refused = world.register("show", "a", 0, true);
    assert_eq!(refused, Err(Rejection::StreamNotFound("show".into())));
    let old = world.updates().pop().expect("the last update");
    assert_eq!((old.mode, old.cause), (Mode::Unknown, Cause::Lifecycle));
    // The same name in the same millisecond.
    let new = world.command("show", Command::Start(Some(config(&show())))).unwrap();
    assert!(new.epoch > old.epoch, "{} after {}", new.epoch, old.epoch);
    world.join("a", 0);
    world.until(61_000);
    assert_eq!(world.show(), (Mode::Running, 1_000));
    // Removed by a command with somebody there, and begun again at once.
    world.command("show", Command::Remove).unwrap();
    world.command("show", Command::Start(Some(config(&show())))).unwrap();
    assert_eq!(world.beat("a", 0), Err(Rejection::UnknownSubscriber { client_id: "a".into(), session: 0 }));
    world.until(62_000);
    assert_eq!(world.show(), (Mode::Idle, 0));
}

#[test]
fn a_second_start_with_another_config_is_refused() {
    let mut world = EngineDriver::with_show(&show());
    world.join("a", 0);
    world.until(4_000);
    let before = world.state("show").unwrap();
    let other = config(&Draft { tick_interval_ms: Some(500), ..show() });
    let refused = world.command("show", Command::Start(Some(other)));
    assert_eq!(refused, Err(Rejection::AlreadyExists("show".into())));
    for same in [None, Some(config(&show()))] {
        let state = world.command("show", Command::Start(same)).unwrap();
        assert_eq!(StateUpdate { cause: Cause::Snapshot, ..state }, before);
    }
}

#[test]
fn stale_subscribers_leave_the_table_and_every_count() {
    let mut world = EngineDriver::with_show(&show());
    for client in ["a", "b", "b6d4e1c2-0f57-4c6c-9d4e-0f3a4c1b2d3e"] {
        world.join(client, 0);
        world.join(client, 1);
    }
    world.until(60_000);
    world.beat("a", 1).unwrap();
    world.until(90_000);
    let counts = world.engine.counts();
    assert_eq!((counts.total, counts.active, counts.stale, counts.unique), (6, 1, 5, 3));
    world.events();
    world.until(90_000 + 1_000);
    let counts = world.engine.counts();
    assert_eq!((counts.total, counts.active, counts.stale, counts.unique), (1, 1, 0, 1));
    assert!(world.beat("b", 0).is_err());
    assert!(world.beat("a", 1).is_ok());
}

#[test]
fn an_old_connections_unregister_leaves_the_new_connection() {
    let mut world = EngineDriver::with_show(&show());
    world.join("a", 1);
    let (new, _) = world.join("a", 2);
    world.until(1_000);
    world.leave("a", 1).unwrap();
    assert!(world.leave("a", 1).is_err(), "it has left");
    assert!(world.beat("a", 2).is_ok());
    let batch = Batch { handles: vec![new], ..Batch::default() };
    assert_eq!(world.handle(Input::HeartbeatBatch(batch)), Ok(Accepted::Batch(Unplaced::default())));
    world.until(10_000);
    assert_eq!(world.show(), (Mode::Running, 10_000));
}

#[test]
fn a_heartbeat_of_an_unknown_client_or_session_says_so() {
    let mut world = EngineDriver::with_show(&show());
    let (handle, _) = world.join("a", 1);
    world.until(1);
    for (client, session) in [("a", 2), ("b", 1)] {
        let unknown = Rejection::UnknownSubscriber { client_id: client.into(), session };
        assert_eq!(world.beat(client, session), Err(unknown));
    }
    let forged = Handle(handle.0 + 1);
    let clients = vec![ClientId::parse("a").unwrap(), ClientId::parse("b").unwrap()];
    let stream_id = StreamId::parse("show").ok();
    let batch = Batch { stream_id, clients, handles: vec![handle, forged] };
    let Ok(Accepted::Batch(unplaced)) = world.handle(Input::HeartbeatBatch(batch)) else { panic!("a batch") };
    assert_eq!((unplaced.handles, unplaced.clients), (vec![forged], vec!["b".to_owned()]));
}

// --- messages ------------------------------------------------------------------------------------------------------

#[test]
fn a_newcomer_sees_the_state_at_once_in_every_mode() {
    let modes: [(&[Command<'_>], Mode); 4] = [
        (&[], Mode::Running),
        (&[Command::Pause], Mode::Paused),
        (&[Command::Stop], Mode::Stopped),
        (&[Command::ForceScene("Outro"), Command::SkipScene], Mode::Finished),
    ];
    for (commands, mode) in modes {
        let mut world = EngineDriver::with_show(&Draft { tick_interval_ms: Some(60_000), ..show() });
        world.join("a", 0);
        world.until(1_000);
        for command in commands {
            world.command("show", command.clone()).unwrap();
        }
        world.heard();
        // With an answer, in the answer; without, as an update.
        assert_eq!(world.join("b", 0).1.mode, mode);
        assert_eq!(world.heard(), []);
        world.register("show", "c", 0, false).unwrap();
        let heard = world.heard();
        assert_eq!(heard.iter().map(|said| (said.cause, said.mode)).collect::<Vec<_>>(), [(Cause::Snapshot, mode)]);
        // Many at once: one more, 50 ms later.
        for client in ["d", "e", "f"] {
            world.register("show", client, 0, false).unwrap();
        }
        assert_eq!(world.until(1_049), [], "{mode:?}");
        assert_eq!(world.until(2_000).iter().map(|said| said.at).collect::<Vec<_>>(), [1_050], "{mode:?}");
    }
}

#[test]
fn a_viewer_that_comes_back_from_silence_sees_what_it_missed() {
    let scenes = vec![Scene::new("Intro", 90_200), Scene::new("Main", 60_000)];
    let draft = Draft { scenes, when_empty: WhenEmpty::RunOn, tick_interval_ms: Some(60_000), ..show() };
    let mut world = EngineDriver::with_show(&draft);
    world.join("a", 0);
    world.until(90_400);
    assert_eq!(world.engine.counts().stale, 1);
    world.beat("a", 0).unwrap();
    assert_eq!(world.heard(), [said(90_400, Cause::Snapshot, Mode::Running, 90_400, "Main")]);
}

#[tokio::test]
async fn commands_subscriptions_and_state_have_their_own_subjects() {
    let desk = Desk::new().await;
    let start = command(Wire::Start(proto::Start { stream_id: "show".into(), config: Some(wire_show()) }));
    let misplaced = desk.ask(subject::SUBSCRIPTION, &start).await;
    assert_ne!(misplaced.code(), Code::Ok);
    desk.transport.publish(&mut [outgoing("stream.show.updates", &start)].into()).await.unwrap();
    desk.transport.barrier().await.unwrap();
    let pause = command(Wire::Pause(proto::Pause { stream_id: "show".into() }));
    assert_eq!(desk.ask(subject::COMMAND, &pause).await.code(), Code::StreamNotFound);
    assert_eq!(desk.ask(subject::COMMAND, &start).await.code(), Code::Ok);
}

#[tokio::test]
async fn a_message_that_does_not_decode_ends_nothing() {
    let desk = Desk::new().await;
    for _ in 0..100 {
        for to in [subject::COMMAND, subject::SUBSCRIPTION, subject::QUERY] {
            desk.transport.publish(&mut [outgoing(to, &[0xff, 0x00, 0x0a])].into()).await.unwrap();
        }
    }
    assert_eq!(desk.ask(subject::COMMAND, &[0xff]).await.code(), Code::Undecodable);
    assert_eq!(desk.start("show").await.code(), Code::Ok);
}

#[tokio::test]
async fn a_refusal_reaches_whoever_sent_the_command() {
    let desk = Desk::new().await;
    let reply = desk.ask(subject::COMMAND, &command(Wire::Stop(proto::Stop { stream_id: "none".into() }))).await;
    assert_eq!((reply.code(), reply.stream_id.as_str()), (Code::StreamNotFound, "none"));
    assert!(reply.message.contains("stream_id"), "{}", reply.message);
}

#[tokio::test]
async fn the_last_update_of_a_stream_survives_an_outage() {
    let desk = Desk::new().await;
    // A gateway's own connection that sees no outage would be another bus; here all are away, and come back.
    let mut updates = desk.transport.subscribe("stream.show.updates", None).await.unwrap();
    let config = proto::OrchestratorConfig {
        scenes: vec![proto::SceneConfig { name: "Main".into(), duration_ms: 300, ..Default::default() }],
        ..Default::default()
    };
    let start = Wire::Start(proto::Start { stream_id: "show".into(), config: Some(config) });
    assert_eq!(desk.ask(subject::COMMAND, &command(start)).await.code(), Code::Ok);
    desk.register("show", "a").await;
    next_of(&mut updates, |update| update.mode() == proto::Mode::Running).await;
    desk.bus.set_online(false);
    // It finishes meanwhile: by its own clock, which we wait for on ours.
    tokio::time::sleep(Duration::from_millis(600)).await;
    desk.bus.set_online(true);
    let last = next_of(&mut updates, |update| update.mode() == proto::Mode::Finished).await;
    assert_eq!((last.current_time, last.cause()), (300, proto::Cause::Lifecycle));
}

#[test]
fn a_tick_does_not_carry_the_configuration() {
    let names: Vec<String> = (0..1_000).map(|n| format!("scene {n:04}")).collect();
    let sizes = [1, 1_000].map(|count| {
        let scenes = names[..count].iter().map(|name| Scene::new(name, 10_000)).collect();
        let mut world = EngineDriver::with_show(&Draft { scenes, ..show() });
        world.join("a", 0);
        world.updates();
        world.sleep_until(1_000);
        world.expire();
        let tick = world.updates().pop().expect("a tick");
        assert_eq!(tick.cause, Cause::Tick);
        let mut bytes = Vec::new();
        encode::write_state(&mut bytes, &tick, Now { tick: tick.at, wall_ms: T0 });
        bytes.len()
    });
    assert!(sizes[1] < sizes[0] + 16, "{sizes:?}");
}

#[tokio::test]
async fn two_instances_act_once_on_each_message() {
    let desk = Desk::new().await;
    let second = Desk::on(&desk.bus).await;
    for n in 0..50 {
        assert_eq!(desk.start(&format!("show-{n}")).await.code(), Code::Ok);
    }
    let streams = [&desk, &second].map(|desk| desk.service.counts().streams);
    assert_eq!(streams.iter().sum::<u64>(), 50, "{streams:?}");
    assert!(streams.iter().all(|count| *count > 0), "both take part: {streams:?}");
}

#[test]
fn a_burst_is_taken_or_refused_but_never_lost_in_silence() {
    let router = Arc::new(Router::new(vec![Mailbox::new(1_000, 1 << 20)]));
    let limits = Arc::new(WireLimits::default());
    let ingress = Ingress::new(Arc::clone(&router), Arc::clone(&limits));
    let pause: Bytes = command(Wire::Pause(proto::Pause { stream_id: "show".into() })).into();
    let answers = |ingress: &Ingress| {
        ingress.accept(subject::COMMAND, pause.clone(), Some(Subject::from_static("inbox"))).map(|(_, bytes)| bytes)
    };
    let refused: Vec<Bytes> = (0..3_000).filter_map(|_| answers(&ingress)).collect();
    assert_eq!(refused.len(), 2_000);
    assert!(refused.iter().all(|bytes| reply(bytes).code() == Code::Unavailable));
    // What was taken is answered, each once.
    let settings =
        ShardSettings { engine: Settings::default(), wire: limits, recorder: None, turn: TurnLimits::default() };
    let mut shard = Shard::new(0, settings, router, Arc::new(Totals::new(1)));
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    let now = Now { tick: Tick(T0), wall_ms: T0 };
    while shard.turn(now, &mut queue) == Next::Again {}
    let mut answered = 0;
    queue.hand_over(AtOnce::ALL, DEFAULT_MAX_PAYLOAD, |Publication { payload: bytes, .. }| {
        assert_eq!(reply(&bytes).code(), Code::StreamNotFound);
        answered += 1;
    });
    assert_eq!(answered, 1_000);
    assert!(answers(&ingress).is_none(), "there is room again");
}

// --- process -------------------------------------------------------------------------------------------------------

#[test]
fn no_queue_between_parts_is_unbounded() {
    let mut read = 0;
    each_source(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut |path, text| {
        read += 1;
        for word in ["unbounded(", "unbounded_channel", "mpsc::channel()", "UnboundedSender"] {
            assert!(!text.contains(word), "{} in {}", word, path.display());
        }
    });
    assert!(read > 30, "only {read} sources found");
}

#[test]
#[should_panic(expected = "no time goes by")]
fn a_test_in_which_no_time_goes_by_fails() {
    EngineDriver::with_show(&show()).until(0);
}

fn each_source(folder: &Path, look: &mut dyn FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            each_source(&path, look);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            look(&path, &fs::read_to_string(&path).expect("a source"));
        }
    }
}

// --- a service on a desk -------------------------------------------------------------------------------------------

/// A service over memory, and a connection to it.
struct Desk {
    bus: MemoryBus,
    transport: Arc<dyn Transport>,
    service: Service,
}

impl Desk {
    async fn new() -> Self {
        Self::on(&MemoryBus::new()).await
    }

    async fn on(bus: &MemoryBus) -> Self {
        let settings = ServiceSettings { shards: 2, ..ServiceSettings::default() };
        let publishers: Vec<Arc<dyn Transport>> = vec![bus.connect()];
        let service = Service::start(settings, bus.connect(), publishers).await.expect("it starts");
        Self { bus: bus.clone(), transport: bus.connect(), service }
    }

    async fn ask(&self, to: &str, bytes: &[u8]) -> proto::Reply {
        let payload = Bytes::copy_from_slice(bytes);
        let answer = self.transport.request(to, payload, Duration::from_secs(10)).await.expect("an answer");
        reply(&answer.payload)
    }

    async fn start(&self, stream: &str) -> proto::Reply {
        let start = proto::Start { stream_id: stream.into(), config: Some(wire_show()) };
        self.ask(subject::COMMAND, &command(Wire::Start(start))).await
    }

    async fn register(&self, stream: &str, client: &str) {
        let register = proto::Register { stream_id: stream.into(), client_id: client.into(), ..Default::default() };
        let message =
            proto::SubscriptionCommand { command: Some(proto::subscription_command::Command::Register(register)) };
        assert_eq!(self.ask(subject::SUBSCRIPTION, &message.encode_to_vec()).await.code(), Code::Ok);
    }
}

async fn next_of(updates: &mut Subscription, wanted: impl Fn(&proto::StateUpdate) -> bool) -> proto::StateUpdate {
    let search = async {
        loop {
            let message = updates.next().await.expect("the subscription lives");
            let update = proto::StateUpdate::decode(message.payload).expect("an update");
            if wanted(&update) {
                return update;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), search).await.expect("the update comes")
}

fn wire_show() -> proto::OrchestratorConfig {
    let scene = |name: &str, duration_ms| proto::SceneConfig { name: name.into(), duration_ms, ..Default::default() };
    proto::OrchestratorConfig {
        scenes: vec![scene("Intro", 3_000), scene("Main", 10_000), scene("Outro", 2_000)],
        ..Default::default()
    }
}

fn command(command: Wire) -> Vec<u8> {
    proto::OrchestratorCommand { command: Some(command), ..Default::default() }.encode_to_vec()
}

fn outgoing(to: &'static str, bytes: &[u8]) -> orchestrator_service::transport::Outgoing {
    orchestrator_service::transport::Outgoing {
        subject: Subject::from_static(to),
        payload: Bytes::copy_from_slice(bytes),
    }
}

fn reply(bytes: &[u8]) -> proto::Reply {
    proto::Reply::decode(bytes).expect("a reply")
}
