//! What can be read of a stream besides its state: its configuration, its subscribers, its history, and the time.

use std::collections::BTreeSet;

use orchestrator_service::wire::{
    WireLimits,
    proto::{
        AtEnd, Code, HistoryAction, HistoryEntry, Mode, OrchestratorConfig, QueryReply, SceneConfig, SubscriberInfo,
        WhenEmpty, orchestrator_command::Command, query::Query,
    },
};

use crate::{
    support::messages::*,
    testbed::{Caller, Testbed, accepted, command_message, eventually, refused, say, settings, wall_ms, within_limit},
};

on_both_transports! {
    a_configuration_is_read_back_as_it_was_given,
    what_was_left_out_is_read_back_as_its_default,
    a_change_of_what_was_read_is_refused_once_it_has_moved_on,
    adjusted_lengths_are_told_until_the_pass_is_over,
    subscribers_are_listed_as_they_registered,
    who_stays_is_on_one_page_while_others_come_and_go,
    the_time_is_the_services_wall_clock,
    a_history_tells_what_was_done_by_whom_and_where_it_led,
    a_history_has_the_last_256_and_is_read_backwards,
    what_is_asked_of_an_unknown_stream_or_beyond_a_limit_is_refused,
}

/// A configuration with everything in it.
fn everything() -> OrchestratorConfig {
    let scene = |name: &str, duration_ms| SceneConfig { name: name.into(), duration_ms, ..SceneConfig::default() };
    OrchestratorConfig {
        scenes: vec![
            SceneConfig { scene_id: "opening".into(), data: "{\"colour\":\"#f80\"}".into(), ..scene("Intro", LONG_MS) },
            SceneConfig { at_end: AtEnd::Hold.into(), warn_ms: Some(60_000), ..scene("Break", LONG_MS) },
            SceneConfig {
                at_end: AtEnd::Hold.into(),
                max_hold_ms: Some(7_000),
                fallback_scene: "closing".into(),
                danger_ms: Some(0),
                ..scene("Break", LONG_MS)
            },
            scene("Main", LONG_MS),
            SceneConfig { scene_id: "closing".into(), ..scene("Outro", LONG_MS) },
        ],
        tick_interval_ms: Some(60_000),
        loop_scenes: true,
        when_empty: WhenEmpty::RunOn.into(),
        empty_grace_ms: Some(0),
        idle_timeout_ms: Some(LONG_MS),
        starts_at_ms: None,
        no_ticks: true,
        title: "The morning show ☀".into(),
    }
}

async fn read(caller: &Caller, id: &str) -> QueryReply {
    let reply = caller.query(get_config(id)).await;
    assert_eq!((reply.code(), &*reply.message), (Code::Ok, ""));
    assert_eq!((reply.state.len(), &*reply.state[0].stream_id), (1, id));
    reply
}

async fn a_configuration_is_read_back_as_it_was_given(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let state = caller.done(start("show", everything())).await;
    let reply = read(&caller, "show").await;
    assert_eq!(reply.config, Some(everything()));
    assert_eq!(reply.scene_duration_ms, [0; 0], "all are as configured");
    assert_eq!((reply.state[0].revision, reply.state[0].epoch), (state.revision, state.epoch));
    assert_eq!(reply.state[0].config_revision, 1);

    let later = OrchestratorConfig { starts_at_ms: Some(wall_ms() + LONG_MS), ..everything() };
    caller.done(reconfigure("show", later.clone())).await;
    let reply = read(&caller, "show").await;
    assert_eq!((reply.config, reply.state[0].config_revision), (Some(later), 2));
}

async fn what_was_left_out_is_read_back_as_its_default(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    caller.done(start("show", config(&[("Main", LONG_MS)]))).await;
    let filled = OrchestratorConfig {
        tick_interval_ms: Some(100),
        empty_grace_ms: Some(2_000),
        idle_timeout_ms: Some(WireLimits::default().engine.idle_timeout_ms),
        ..config(&[("Main", LONG_MS)])
    };
    assert_eq!(read(&caller, "show").await.config, Some(filled.clone()));
    // Given so, it is the same configuration.
    caller.done(start("show", filled)).await;
}

async fn a_change_of_what_was_read_is_refused_once_it_has_moved_on(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    caller.done(start("show", long_config())).await;
    let seen = read(&caller, "show").await;
    let (mut changed, revision) = (seen.config.expect("a configuration"), seen.state[0].revision);
    changed.title = "Mine".into();
    // Somebody else was quicker.
    caller.done(reconfigure("show", OrchestratorConfig { title: "Theirs".into(), ..long_config() })).await;

    let mut change = command_message(reconfigure("show", changed));
    change.expected_revision = Some(revision);
    refused(&caller.send(&change).await, Code::Conflict, &["expected_revision"]);
    let now = read(&caller, "show").await;
    assert_eq!(now.config.map(|config| config.title).as_deref(), Some("Theirs"));
    change.expected_revision = Some(now.state[0].revision);
    assert_eq!(caller.send(&change).await.code(), Code::Ok);
    assert_eq!(read(&caller, "show").await.config.map(|config| config.title).as_deref(), Some("Mine"));
}

async fn adjusted_lengths_are_told_until_the_pass_is_over(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let looping = OrchestratorConfig { loop_scenes: true, ..long_config() };
    caller.done(start("show", looping.clone())).await;
    caller.subscription(register("show", "viewer")).await;
    let adjusted = caller.done(adjust("show", 5_000)).await;

    let reply = read(&caller, "show").await;
    assert_eq!(reply.scene_duration_ms, [LONG_MS + 5_000, LONG_MS, LONG_MS]);
    assert_eq!(reply.config.map(|config| config.scenes), Some(looping.scenes), "as it was configured");
    assert_eq!(reply.state[0].config_revision, adjusted.revision, "when to read again");
    for _ in 0..3 {
        caller.done(skip("show")).await;
    }
    let reply = read(&caller, "show").await;
    assert_eq!((reply.scene_duration_ms, reply.state[0].loop_count), (vec![], 1));
}

// --- subscribers -------------------------------------------------------------------------------------------------

async fn page(caller: &Caller, id: &str, limit: u32, cursor: &str) -> QueryReply {
    let reply = caller.query(list_subscribers(id, limit, cursor)).await;
    assert_eq!((reply.code(), &*reply.message), (Code::Ok, ""));
    assert_ne!(reply.server_time_ms, 0);
    reply
}

async fn subscribers_are_listed_as_they_registered(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    caller.done(start("show", long_config())).await;
    assert_eq!(page(&caller, "show", 0, "").await.subscriber, [], "nobody at first");
    let uuid = "6f9619ff-8b86-d011-b42d-00cf4fc964ff";
    let before = wall_ms();
    for (client, source, session) in
        [("zoë", "192.0.2.7:51000", 0), ("zoë", "[2001:db8::7]:443", u64::MAX), (uuid, "", 7)]
    {
        caller.subscription(register_from("show", client, source, session)).await;
    }
    caller.done(start("other", long_config())).await;
    caller.subscription(register("other", "elsewhere")).await;

    let reply = page(&caller, "show", 0, "").await;
    assert_eq!(&*reply.cursor, "", "all of them");
    let of = |one: &SubscriberInfo| (one.client_id.clone(), one.source_addr.clone(), one.session, one.stale);
    let mut listed: Vec<_> = reply.subscriber.iter().map(of).collect();
    listed.sort();
    let expected = [
        (uuid.to_owned(), String::new(), 7, false),
        ("zoë".to_owned(), "192.0.2.7:51000".to_owned(), 0, false),
        ("zoë".to_owned(), "[2001:db8::7]:443".to_owned(), u64::MAX, false),
    ];
    assert_eq!(listed, expected);
    for one in &reply.subscriber {
        let heard = one.last_heard_ms;
        assert!((before.saturating_sub(1)..=reply.server_time_ms).contains(&heard), "{heard} after {before}");
    }
}

async fn who_stays_is_on_one_page_while_others_come_and_go(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    caller.done(start("show", long_config())).await;
    let names = |kind: &str, count: usize| (0..count).map(|n| format!("{kind}-{n}")).collect::<Vec<_>>();
    let (staying, leaving) = (names("staying", 120), names("leaving", 120));
    let mixed: Vec<(&str, &str)> = staying.iter().zip(&leaving).flat_map(|(a, b)| [(&**a, ""), (&**b, "")]).collect();
    accepted(caller.subscription(register_all("show", &mixed)).await);

    for limit in [1, 7, 239, 1_000] {
        let (mut seen, mut cursor, mut turn) = (Vec::new(), String::new(), 0);
        loop {
            let reply = page(&caller, "show", limit, &cursor).await;
            assert!(reply.subscriber.len() <= limit as usize);
            seen.extend(reply.subscriber.into_iter().map(|one| one.client_id));
            // One goes and comes again, also the one that the cursor points to; and somebody is new, in its place. As many
            // as come go, or a page of one would never be the last.
            let leaver = leaving[turn % leaving.len()].as_str();
            caller.subscription(unregister("show", leaver, 0)).await;
            caller.subscription(register("show", &format!("new-{limit}-{turn}"))).await;
            caller.subscription(unregister("show", &format!("new-{limit}-{}", turn.wrapping_sub(1)), 0)).await;
            caller.subscription(register("show", leaver)).await;
            turn += 1;
            assert!(turn < 1_000, "the pages have an end");
            cursor = reply.cursor;
            if cursor.is_empty() {
                break;
            }
        }
        let stayed: Vec<&String> = seen.iter().filter(|name| name.starts_with("staying")).collect();
        assert_eq!(stayed.len(), 120, "limit {limit}: each once");
        let stayed: BTreeSet<&String> = stayed.into_iter().collect();
        assert_eq!(stayed, staying.iter().collect(), "limit {limit}");
    }
}

async fn the_time_is_the_services_wall_clock(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let before = wall_ms();
    let reply = caller.query(Query::GetTime(Default::default())).await;
    let after = wall_ms();
    assert_eq!(reply.code(), Code::Ok);
    assert!((before..=after).contains(&reply.server_time_ms), "{before} <= {} <= {after}", reply.server_time_ms);
}

// --- history -----------------------------------------------------------------------------------------------------

async fn history(caller: &Caller, id: &str, limit: u32, before_revision: u64) -> Vec<HistoryEntry> {
    let reply = caller.query(get_history(id, limit, before_revision)).await;
    assert_eq!((reply.code(), &*reply.message), (Code::Ok, ""));
    reply.history
}

async fn by(caller: &Caller, who: &str, command: Command) {
    let mut message = command_message(command);
    message.issued_by = who.into();
    accepted(caller.send(&message).await);
}

async fn a_history_tells_what_was_done_by_whom_and_where_it_led(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    let before = wall_ms();
    caller.done(start("show", long_config())).await;
    caller.subscription(register("show", "viewer")).await;
    by(&caller, "ann", pause("show")).await;
    by(&caller, "ann", pause("show")).await;
    by(&caller, "bob", seek("show", LONG_MS + 5)).await;
    caller.done(skip("show")).await;
    refused(&caller.command(force("show", "Nowhere")).await, Code::SceneNotFound, &[]);
    by(&caller, "", stop("show")).await;

    let told = history(&caller, "show", 0, 0).await;
    type Outline<'a> = (HistoryAction, &'a str, u64, Mode, Option<u32>);
    let outline: Vec<Outline<'_>> = (told.iter())
        .map(|entry| (entry.action(), &*entry.issued_by, entry.revision, entry.mode(), entry.scene_index))
        .collect();
    let expected: [Outline<'_>; 6] = [
        (HistoryAction::Stop, "", 6, Mode::Stopped, Some(2)),
        (HistoryAction::SkipScene, "", 5, Mode::Paused, Some(2)),
        (HistoryAction::Seek, "bob", 4, Mode::Paused, Some(1)),
        // The second one changed nothing.
        (HistoryAction::Pause, "ann", 3, Mode::Paused, Some(0)),
        (HistoryAction::Lifecycle, "", 2, Mode::Running, Some(0)),
        (HistoryAction::Start, "", 1, Mode::Idle, None),
    ];
    assert_eq!(outline, expected);

    let [stopped, skipped, sought, paused, ..] = &told[..] else { panic!("{told:?}") };
    assert_eq!((sought.position_before_ms, sought.position_ms), (paused.position_ms, LONG_MS + 5));
    assert_eq!((skipped.position_before_ms, skipped.position_ms), (LONG_MS + 5, 2 * LONG_MS));
    assert_eq!((stopped.position_before_ms, stopped.position_ms), (2 * LONG_MS, 2 * LONG_MS));
    let after = wall_ms();
    // Epochs, which the creation is dated by, and ticks are of clocks of their own.
    assert!(told.iter().all(|entry| (before - 50..=after + 50).contains(&entry.at_ms)), "{before}, {told:#?}, {after}");
    let began = told[4].at_ms;
    for entry in &told[..4] {
        let played = entry.at_ms - began;
        assert!(entry.planned_position_ms.abs_diff(played) <= 50, "{played} ms after it began: {entry:?}");
    }
}

async fn a_history_has_the_last_256_and_is_read_backwards(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    caller.done(start("show", long_config())).await;
    caller.tell((0..300).map(|position| say(seek("show", position)))).await;
    assert_eq!(caller.state("show").await.revision, 301);

    let revisions = |entries: &[HistoryEntry]| entries.iter().map(|entry| entry.revision).collect::<Vec<_>>();
    let all = history(&caller, "show", 256, 0).await;
    assert_eq!(revisions(&all), (46..=301).rev().collect::<Vec<_>>());
    assert_eq!(history(&caller, "show", 0, 0).await, all[..100], "100 unless it says otherwise");
    let (mut pages, mut before) = (Vec::new(), 0);
    loop {
        let page = history(&caller, "show", 83, before).await;
        let Some(last) = page.last() else { break };
        before = last.revision;
        pages.extend(page);
    }
    assert_eq!(pages, all);
    assert_eq!(history(&caller, "show", 10, 46).await, []);
}

async fn what_is_asked_of_an_unknown_stream_or_beyond_a_limit_is_refused(world: Testbed) {
    let (_service, caller) = world.with_service().await;
    for query in [get_config("nobody"), list_subscribers("nobody", 0, ""), get_history("nobody", 0, 0)] {
        let reply = caller.query(query).await;
        assert_eq!(reply.code(), Code::StreamNotFound, "{reply:?}");
        assert!(reply.message.contains("\"nobody\""), "{}", reply.message);
    }
    for (query, words) in [
        (get_config("a.b"), "stream_id"),
        (list_subscribers("", 0, ""), "stream_id"),
        (list_subscribers("show", 1_001, ""), "1000, not 1001"),
        (list_subscribers("show", 1, "next"), "cursor"),
        (get_history("show", 257, 0), "256, not 257"),
    ] {
        let reply = caller.query(query).await;
        assert_eq!(reply.code(), Code::InvalidArgument, "{reply:?}");
        assert!(reply.message.contains(words), "{}", reply.message);
    }
}

// --- sizes -------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_2_kb_pages_are_shorter_and_a_large_config_is_refused() {
    within_limit(async {
        let world = Testbed::nats_that_takes(2_048).await;
        let _service = world.service(settings()).await;
        let caller = world.caller().await;
        caller.done(start("show", long_config())).await;
        let clients: Vec<String> = (0..60).map(|n| format!("{n:0128}")).collect();
        for client in &clients {
            caller.subscription(register("show", client)).await;
        }
        let (mut seen, mut cursor) = (BTreeSet::new(), String::new());
        loop {
            let reply = page(&caller, "show", 1_000, &cursor).await;
            assert!(!reply.subscriber.is_empty());
            for one in reply.subscriber {
                assert!(seen.insert(one.client_id), "nobody twice");
            }
            cursor = reply.cursor;
            if cursor.is_empty() {
                break;
            }
        }
        assert_eq!(seen, clients.into_iter().collect());

        for position in 0..60 {
            by(&caller, &"x".repeat(128), seek("show", position)).await;
        }
        let cut = history(&caller, "show", 256, 0).await;
        assert!((5..60).contains(&cut.len()), "{} entries", cut.len());
        assert_eq!(cut[0].revision, 62);

        assert_eq!(caller.query(get_config("show")).await.code(), Code::Ok);
        let many = |from: usize| (from..from + 60).map(|n| (format!("scene {n}"), LONG_MS)).collect::<Vec<_>>();
        let scenes = many(0);
        let scenes: Vec<(&str, u64)> = scenes.iter().map(|(name, ms)| (&**name, *ms)).collect();
        caller.done(reconfigure("show", config(&scenes))).await;
        assert_eq!(caller.query(get_config("show")).await.code(), Code::Ok, "1 KB of scenes fits");
        let mut large = config(&scenes);
        large.scenes[0].data = "d".repeat(1_960);
        // Asked for in two steps, since a request of that size would not be taken either.
        large.scenes.truncate(2);
        let reply = caller.command(reconfigure("show", large)).await;
        assert_eq!(reply.code(), Code::Ok, "{}", reply.message);
        let reply = caller.query(get_config("show")).await;
        assert_eq!((reply.code(), reply.config), (Code::ResourceExhausted, None));
        assert!(reply.message.contains("2048"), "{}", reply.message);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_budget_the_oldest_of_all_histories_is_forgotten() {
    within_limit(async {
        let world = Testbed::memory();
        let mut settings = settings();
        settings.shards = 1;
        settings.limits.engine.max_history_bytes = 2_000;
        let service = world.service(settings).await;
        let caller = world.caller().await;
        for id in ["old", "new"] {
            caller.done(start(id, long_config())).await;
            for position in 0..30 {
                caller.done(seek(id, position)).await;
            }
        }
        let kept = history(&caller, "new", 0, 0).await;
        assert!((10..30).contains(&kept.len()), "{} entries", kept.len());
        assert_eq!(kept[0].revision, 31, "the newest are kept");
        assert_eq!(history(&caller, "old", 0, 0).await, [], "the oldest are not");
        eventually("the bytes are counted", async || (1_000..=2_000).contains(&service.counts().history_bytes)).await;
        caller.done(remove("new")).await;
        eventually("nothing is left of it", async || service.counts().history_bytes == 0).await;
    })
    .await;
}
