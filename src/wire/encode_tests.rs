//! What is written by hand, beside what prost writes.

use std::sync::Arc;

use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::engine::{Rare, Scene, SceneLimits, Status, Tick, Timeline};

fn any_update() -> impl Strategy<Value = StateUpdate> {
    let mode = prop::sample::select(vec![
        Mode::Unknown,
        Mode::Idle,
        Mode::Running,
        Mode::Paused,
        Mode::Stopped,
        Mode::Finished,
    ]);
    let cause =
        prop::sample::select(vec![Cause::Tick, Cause::Scene, Cause::Command, Cause::Lifecycle, Cause::Snapshot]);
    let status = prop::option::of((any::<bool>(), ".{0,20}"));
    let place = (0..=13_000u64, prop::option::of(0..2u32), any::<Option<u64>>(), any::<Option<u64>>());
    (mode, cause, place, status, any::<[u64; 5]>()).prop_map(
        |(mode, cause, (position_ms, scene, overtime_ms, starts_at_ms), status, numbers)| {
            let [loop_count, revision, sequence, epoch, config_revision] = numbers;
            let scenes = [Scene { id: Some("intro"), ..Scene::new("Intro", 3_000) }, Scene::new("Main", 10_000)];
            StateUpdate {
                at: Tick(1_000),
                cause,
                mode,
                timeline: Arc::new(Timeline::new(&scenes, SceneLimits::default()).expect("valid")),
                scene,
                position_ms,
                loop_count,
                status: status.map(|(is_streaming, timecode)| {
                    Arc::new(Status { is_streaming, stream_time_ms: 0, timecode: timecode.into() })
                }),
                revision,
                sequence,
                epoch,
                config_revision,
                rare: Rare { overtime_ms, starts_at_ms, ..Rare::default() }.boxed(),
                ..StateUpdate::sample()
            }
        },
    )
}

proptest! {
    #[test]
    fn an_update_written_by_hand_is_what_prost_writes(update in any_update(), time in any::<u64>()) {
        let mut bytes = Vec::new();
        let now = Now { tick: Tick(1_500), wall_ms: time };
        write_state(&mut bytes, &update, now);
        let message = state(&update, now);
        prop_assert_eq!(message.server_time_ms, time.saturating_sub(500), "it was true half a second ago");
        prop_assert_eq!(bytes, message.encode_to_vec());
    }
}

#[test]
fn the_largest_update_written_by_hand_is_what_prost_writes() {
    let most = u64::MAX;
    let status = Status { is_streaming: true, stream_time_ms: most, timecode: "x".repeat(256).into() };
    let name = "y".repeat(256);
    let id = "z".repeat(128);
    let scenes = [Scene { id: Some(&id), ..Scene::new(&name, 1) }];
    let update = StateUpdate {
        stream_id: "s".repeat(128).into(),
        cause: Cause::Snapshot,
        mode: Mode::Finished,
        timeline: Arc::new(Timeline::new(&scenes, SceneLimits::default()).expect("valid")),
        scene: Some(0),
        position_ms: 1,
        loop_count: most,
        status: Some(Arc::new(status)),
        revision: most,
        sequence: most,
        epoch: most,
        config_revision: most,
        rare: Rare { overtime_ms: Some(most), starts_at_ms: Some(most), server_time_ms: Some(most), ..Rare::default() }
            .boxed(),
        ..update_at(Tick(0))
    };
    let now = Now { tick: Tick(0), wall_ms: 0 };
    let mut bytes = Vec::new();
    write_state(&mut bytes, &update, now);
    assert_eq!(bytes, state(&update, now).encode_to_vec());
    assert!(bytes.len() + 128 + 32 <= MAX_REPLY_BYTES, "an answer with it has {} bytes and some", bytes.len());
}

#[test]
fn a_stream_that_waits_says_for_how_long_by_the_clock_it_tells() {
    let update =
        StateUpdate { rare: Rare { starts_at_ms: Some(9_000), ..Rare::default() }.boxed(), ..update_at(Tick(1_000)) };
    let told = |wall_ms| state(&update, Now { tick: Tick(1_500), wall_ms });
    assert_eq!((told(8_000).server_time_ms, told(8_000).starts_in), (7_500, Some(1_500)));
    assert_eq!(told(20_000).starts_in, Some(0), "it is about to");
    assert_eq!(state(&update_at(Tick(0)), Now { tick: Tick(0), wall_ms: 0 }).starts_in, None);
}

fn update_at(at: Tick) -> StateUpdate {
    StateUpdate { at, ..StateUpdate::sample() }
}

#[test]
fn too_large_an_answer_is_refused_alike_to_commands_and_queries() {
    let refusal = answer_too_large(716_000, 65_536);
    let message = "the answer has 716000 bytes, and the connection takes 65536";
    let code = proto::Code::ResourceExhausted.into();
    let reply = proto::Reply { code, message: message.to_owned(), ..Default::default() };
    let query_reply = proto::QueryReply { code, message: message.to_owned(), ..Default::default() };
    assert_eq!(proto::Reply::decode(refusal.clone()), Ok(reply));
    assert_eq!(proto::QueryReply::decode(refusal), Ok(query_reply));
}

#[test]
fn a_batchs_answer_lists_what_fits_and_counts_the_rest() {
    use crate::engine::Handle;
    let unplaced = Unplaced {
        no_such_stream: false,
        handles: (0..3_000).map(Handle).collect(),
        clients: (0..3_000).map(|n| format!("{n:036}")).collect(),
    };
    for (max_bytes, all) in [(1_024, false), (16_384, false), (65_536, false), (1 << 20, true)] {
        let reply = batch_reply(&unplaced, "show", max_bytes);
        let listed = reply.unknown_handle.len() + reply.unknown_client_id.len();
        assert!(reply.encoded_len() <= max_bytes && listed > 0, "{max_bytes}: {listed}");
        assert_eq!(reply.message.contains(&format!("{} of them are not listed", 6_000 - listed)), !all);
        assert_eq!((listed == 6_000, reply.code()), (all, proto::Code::UnknownSubscriber));
    }
    assert!(batch_reply(&unplaced, "show", 300).encoded_len() <= 300, "at the least it says how many");
}

#[test]
fn a_batch_entry_is_what_prost_writes() {
    let entry = proto::StateUpdate { stream_id: "a".into(), ..Default::default() };
    let mut bytes = Vec::new();
    write_batch_entry(&mut bytes, &entry.encode_to_vec());
    assert_eq!(bytes, proto::UpdateBatch { update: vec![entry] }.encode_to_vec());
}
