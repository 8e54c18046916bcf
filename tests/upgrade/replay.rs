//! Today's service is told what one of before was, and says the same.
//!
//! What tells one run from another is not compared: times, epochs, handles. (Handles in requests are put into the place of
//! those that were given out then.) Positions are the same but for how long the steps took. The words of a refusal are for
//! people, and may be others.

use std::collections::BTreeMap;

use orchestrator_service::wire::{
    proto::{QueryReply, Reply, StateUpdate},
    subject,
};
use prost::Message as _;

use crate::recording::{RECORDED, Testbed, unhex};

/// How much longer the steps may take in one run than in another, ms; jumps are far longer.
const PATIENCE_MS: u64 = 60_000;

#[tokio::test]
async fn what_was_said_before_is_answered_as_before() {
    let mut testbed = Testbed::new().await;
    // Those of then, and those of now in their place.
    let mut handles = BTreeMap::new();
    let mut asked = 0;
    for (number, line) in RECORDED.lines().enumerate() {
        let place = format!("line {} of the recording: {line}", number + 1);
        match *line.split(' ').collect::<Vec<_>>() {
            ["ask", subject, request, answer] => {
                asked += 1;
                let request = with_handles(unhex(request), &handles);
                let now = testbed.ask(subject, request).await;
                compare_answers(subject, &unhex(answer), &now, &mut handles, &place);
            }
            ["tell", subject, message] => testbed.tell(subject, with_handles(unhex(message), &handles)).await,
            ["wait", _, _] => {}
            ["update", stream_id, update] => {
                let now = StateUpdate::decode(&*testbed.next_update(stream_id).await).expect("an update");
                compare_states(&StateUpdate::decode(&*unhex(update)).expect("an update"), &now, &place);
            }
            _ => panic!("{place}"),
        }
    }
    assert!(asked > 80, "{asked} requests are not what was recorded");
    testbed.end().await;
}

/// A request with the handles that this service has given out.
fn with_handles(mut request: Vec<u8>, handles: &BTreeMap<u64, u64>) -> Vec<u8> {
    for place in 0..request.len().saturating_sub(7) {
        let bytes: [u8; 8] = request[place..place + 8].try_into().expect("eight bytes");
        if let Some(now) = handles.get(&u64::from_le_bytes(bytes)) {
            request[place..place + 8].copy_from_slice(&now.to_le_bytes());
        }
    }
    request
}

fn compare_answers(subject: &str, then: &[u8], now: &[u8], handles: &mut BTreeMap<u64, u64>, place: &str) {
    if subject == subject::QUERY {
        let then = QueryReply::decode(then).expect("an answer");
        return compare_query_replies(then, QueryReply::decode(now).expect("an answer"), place);
    }
    let (then, now) = (Reply::decode(then).expect("an answer"), Reply::decode(now).expect("an answer"));
    assert_eq!(in_short(&then), in_short(&now), "{place}");
    let pairs = [(then.handle, now.handle)].into_iter().chain(then.handles.into_iter().zip(now.handles));
    for (then, now) in pairs {
        assert_eq!(then == 0, now == 0, "{place}");
        handles.insert(then, now);
    }
    match (&then.state, &now.state) {
        (Some(then), Some(now)) => compare_states(then, now, place),
        (then, now) => assert_eq!(then, now, "{place}"),
    }
}

/// Of an answer what is the same in each run, but for the state.
fn in_short(reply: &Reply) -> (i32, bool, &str, u64, usize, usize, &[String]) {
    let Reply { code, message, stream_id, revision, handles, unknown_handle, unknown_client_id, .. } = reply;
    (*code, message.is_empty(), stream_id, *revision, handles.len(), unknown_handle.len(), unknown_client_id)
}

fn compare_query_replies(mut then: QueryReply, mut now: QueryReply, place: &str) {
    assert_eq!((then.code, then.message.is_empty()), (now.code, now.message.is_empty()), "{place}: {}", now.message);
    assert_eq!((&then.stats, then.cursor.is_empty()), (&now.stats, now.cursor.is_empty()), "{place}");
    assert_eq!(then.state.len(), now.state.len(), "{place}");
    // In which order streams are listed is nobody's business; which are on the first page of several neither.
    if now.cursor.is_empty() {
        then.state.sort_by(|a, b| a.stream_id.cmp(&b.stream_id));
        now.state.sort_by(|a, b| a.stream_id.cmp(&b.stream_id));
        then.state.iter().zip(&now.state).for_each(|(then, now)| compare_states(then, now, place));
    }
}

fn compare_states(then: &StateUpdate, now: &StateUpdate, place: &str) {
    assert_eq!(timeless(then), timeless(now), "{place}");
    assert!(now.epoch > 0 && now.server_time_ms > 0, "{place}: {now:?}");
    assert!(then.current_time.abs_diff(now.current_time) < PATIENCE_MS, "{place}: {now:?}");
    for state in [then, now] {
        assert_eq!(state.current_time + state.time_remaining, state.total_duration, "{place}: {state:?}");
    }
    let scene_ms = |state: &StateUpdate| state.scene_elapsed + state.scene_remaining;
    assert_eq!(scene_ms(then), scene_ms(now), "{place}: {now:?}");
}

/// Without what depends on time, and without what was not known then.
fn timeless(state: &StateUpdate) -> StateUpdate {
    StateUpdate {
        epoch: 0,
        server_time_ms: 0,
        current_time: 0,
        time_remaining: 0,
        progress_percentage: 0.0,
        scene_elapsed: 0,
        scene_remaining: 0,
        config_revision: 0,
        ..state.clone()
    }
}
