//! The publish queue, by what it hands over.

use std::sync::Arc;

use prost::Message as _;

use super::*;
use crate::engine::{Cause, Mode, Rare, Scene, SceneLimits, Tick, Timeline};

const NOW: Now = Now { tick: Tick(0), wall_ms: 0 };

fn update(slot: u32, sequence: u64, cause: Cause) -> StateUpdate {
    StateUpdate {
        stream_id: format!("s{slot}").into(),
        slot,
        partition: slot as u8,
        cause,
        mode: Mode::Running,
        scene: Some(0),
        sequence,
        ..StateUpdate::sample()
    }
}

/// What is handed over, as (subject, sequence).
fn sent(queue: &mut PublishQueue, most: usize) -> Vec<(String, u64)> {
    let mut sent = Vec::new();
    let at_once = AtOnce { messages: most, ..AtOnce::ALL };
    queue.hand_over(at_once, DEFAULT_MAX_PAYLOAD, |Publication { subject, payload, .. }| {
        let sequence = proto::StateUpdate::decode(payload).map_or(0, |update| update.sequence);
        sent.push((subject.to_string(), sequence));
    });
    queue.check();
    sent
}

fn on(slot: u32, sequence: u64) -> (String, u64) {
    (format!("stream.s{slot}.updates"), sequence)
}

#[test]
fn of_ticks_and_snapshots_the_newest_is_kept_and_of_changes_each() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    for (slot, sequence, cause) in [
        (0, 1, Cause::Tick),
        (1, 1, Cause::Tick),
        (0, 2, Cause::Tick),
        (0, 3, Cause::Scene),
        (0, 4, Cause::Command),
        (0, 5, Cause::Tick),
        (0, 6, Cause::Tick),
        (1, 2, Cause::Snapshot),
        (2, 1, Cause::Snapshot),
        (2, 2, Cause::Lifecycle),
        (2, 3, Cause::Snapshot),
        (2, 4, Cause::Tick),
        (2, 5, Cause::Snapshot),
    ] {
        queue.update(&update(slot, sequence, cause), NOW);
        queue.check();
    }
    assert_eq!(sent(&mut queue, 100), [on(1, 2), on(0, 3), on(0, 4), on(0, 6), on(2, 2), on(2, 5)]);
    assert!(queue.is_empty());
}

#[test]
fn an_unconfirmed_change_is_owed_again_before_newer_ones() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    for sequence in 1..=3 {
        queue.update(&update(0, sequence, Cause::Scene), NOW);
    }
    assert_eq!(sent(&mut queue, 2), [on(0, 1), on(0, 2)]);
    let barrier = queue.handed_over();
    assert_eq!(sent(&mut queue, 1), [on(0, 3)]);
    queue.confirm(barrier);
    queue.update(&update(0, 4, Cause::Scene), NOW);
    queue.requeue_unconfirmed();
    assert_eq!(sent(&mut queue, 100), [on(0, 3), on(0, 4)]);
    queue.confirm(queue.handed_over());
    assert!(queue.is_settled());
}

#[test]
fn a_tick_waits_for_its_streams_changes_and_for_no_others_flood() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    for sequence in 1..=6 {
        queue.update(&update(0, sequence, Cause::Command), NOW);
    }
    queue.update(&update(0, 7, Cause::Tick), NOW);
    queue.update(&update(1, 1, Cause::Tick), NOW);
    queue.update(&update(2, 1, Cause::Tick), NOW);
    queue.update(&update(3, 1, Cause::Tick), NOW);
    assert_eq!(sent(&mut queue, 4), [on(1, 1), on(2, 1), on(0, 1), on(0, 2)], "half of it is for changes");
    queue.update(&update(3, 2, Cause::Scene), NOW);
    queue.update(&update(3, 3, Cause::Tick), NOW);
    assert_eq!(sent(&mut queue, 3), [on(0, 3), on(0, 4), on(0, 5)]);
    queue.requeue_unconfirmed();
    let again: Vec<_> = (1..=6).map(|sequence| on(0, sequence)).chain([on(0, 7), on(3, 2), on(3, 3)]).collect();
    assert_eq!(sent(&mut queue, 100), again);
    assert!(queue.is_empty());
}

#[test]
fn it_is_full_before_it_would_drop_a_change() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    let capacity = PublishLimits::default().max_changes;
    for sequence in 0..capacity as u64 {
        assert!(!queue.is_full());
        queue.update(&update(0, sequence, Cause::Scene), NOW);
    }
    assert!(queue.is_full());
    assert_eq!(sent(&mut queue, usize::MAX).len(), capacity);
    assert!(queue.is_full(), "handed over is not confirmed");
    queue.confirm(queue.handed_over());
    assert!(!queue.is_full());
}

#[test]
fn a_feed_carries_a_partitions_updates_in_one_message() {
    for (publish_to, messages) in [(PublishTo::Feed, 2), (PublishTo::Both, 5)] {
        let mut queue = PublishQueue::new(publish_to);
        queue.update(&update(7, 1, Cause::Scene), NOW);
        queue.update(&update(7, 2, Cause::Tick), NOW);
        queue.update(&update(8, 1, Cause::Tick), NOW);
        let mut sent = Vec::new();
        queue.hand_over(AtOnce::ALL, DEFAULT_MAX_PAYLOAD, |publication| sent.push(publication));
        assert_eq!(sent.len(), messages);
        let Publication { kind, subject, payload } = &sent[messages - 2];
        assert_eq!((*kind, subject.as_str()), (Kind::Feed, "orchestrator.feed.7"));
        let batch = proto::UpdateBatch::decode(payload.clone()).unwrap();
        assert_eq!(batch.update.iter().map(|update| update.sequence).collect::<Vec<_>>(), [1, 2]);
    }
}

fn answer(queue: &mut PublishQueue, number: usize, bytes: usize) {
    queue.reply(&Subject::from(format!("answer.{number}")), vec![b'x'; bytes].into());
}

/// One hand-over as it is by default: what kind, how many bytes, and of an answer which.
fn handed_over(queue: &mut PublishQueue) -> Vec<(Kind, usize, String)> {
    let mut sent = Vec::new();
    queue.hand_over(queue.at_once(), DEFAULT_MAX_PAYLOAD, |Publication { kind, subject, payload }| {
        sent.push((kind, payload.len(), subject.to_string()));
    });
    queue.check();
    sent
}

fn bytes_of(kind: Kind, sent: &[(Kind, usize, String)]) -> usize {
    sent.iter().filter(|message| message.0 == kind).map(|message| message.1).sum()
}

#[test]
fn ticks_do_not_wait_behind_large_answers() {
    const LIST: usize = 700_000;
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    (0..15).for_each(|number| answer(&mut queue, number, LIST));
    let (mut answers, mut ticks) = (0, 0);
    for round in 1..=60 {
        // More than a hand-over, each time.
        (0..600).for_each(|slot| queue.update(&update(slot, round, Cause::Tick), NOW));
        let sent = handed_over(&mut queue);
        let kinds: Vec<Kind> = sent.iter().map(|message| message.0).collect();
        let first_answer = kinds.iter().position(|kind| *kind == Kind::Answer).unwrap_or(kinds.len());
        assert!(first_answer >= 256, "half of it is for ticks before any answer: {first_answer}");
        assert!(bytes_of(Kind::Answer, &sent) <= LIST, "at most one more than there is room for");
        answers += kinds.iter().filter(|kind| **kind == Kind::Answer).count();
        ticks += kinds.iter().filter(|kind| **kind == Kind::Update).count();
    }
    // A quarter of 512 KiB, 60 times, and what the last one takes in advance.
    assert!((11..=13).contains(&answers), "{answers} answers");
    assert!(ticks >= 60 * 256, "{ticks} ticks");
    // With nothing else to do, answers have it all.
    while !queue.is_empty() {
        assert!(!handed_over(&mut queue).is_empty());
    }
}

#[test]
fn changes_and_answers_take_turns() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    (0..300).for_each(|number| answer(&mut queue, number, 50));
    (1..=300).for_each(|sequence| queue.update(&update(0, sequence, Cause::Command), NOW));
    let sent = handed_over(&mut queue);
    let changes = sent.iter().filter(|message| message.0 == Kind::Update).count();
    assert_eq!((sent.len(), changes), (512, 256));
}

#[test]
fn an_answer_stays_behind_the_changes_before_it_also_after_a_loss() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    let told = |queue: &mut PublishQueue, most: usize| -> Vec<String> {
        sent(queue, most).into_iter().map(|(subject, sequence)| format!("{subject} {sequence}")).collect()
    };
    for sequence in 1..=3 {
        queue.update(&update(0, sequence, Cause::Command), NOW);
        answer(&mut queue, sequence as usize, 50);
    }
    assert_eq!(told(&mut queue, 3), ["stream.s0.updates 1", "answer.1 0", "stream.s0.updates 2"]);
    queue.requeue_unconfirmed();
    assert_eq!(
        told(&mut queue, 100),
        ["stream.s0.updates 1", "stream.s0.updates 2", "answer.2 0", "stream.s0.updates 3", "answer.3 0"]
    );
}

#[test]
fn too_many_large_answers_become_refusals_and_stop_nothing_else() {
    const LIST: usize = 700_000;
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    (0..1_000).for_each(|number| answer(&mut queue, number, LIST));
    assert!(queue.refuses_large_answers() && !queue.is_full());
    (1_000..1_500).for_each(|number| answer(&mut queue, number, 1_000));
    let PublishLimits { max_answer_bytes, .. } = PublishLimits::default();
    let (mut whole, mut refused, mut bytes) = (0, 0, 0);
    while !queue.is_empty() {
        queue.hand_over(queue.at_once(), DEFAULT_MAX_PAYLOAD, |Publication { payload, .. }| {
            bytes += payload.len();
            match proto::Reply::decode(payload) {
                Ok(reply) if reply.code() == proto::Code::Unavailable => refused += 1,
                _ => whole += 1,
            }
        });
    }
    let kept = max_answer_bytes / 4 * 3 / LIST;
    assert_eq!((whole, refused), (kept + 500, 1_000 - kept), "each is answered, in one way or the other");
    assert!(bytes < max_answer_bytes, "{bytes}");
    assert!(!queue.refuses_large_answers(), "there is room again");
}

#[test]
fn when_even_short_answers_fill_their_room_the_shard_is_to_stop() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    let mut count = 0;
    while !queue.is_full() {
        answer(&mut queue, count, 100);
        count += 1;
        assert!(count < 1_000_000);
    }
    assert!(count > 50_000, "{count}");
    while !queue.is_empty() {
        handed_over(&mut queue);
    }
    assert!(!queue.is_full());
}

#[test]
fn an_answer_over_the_limit_becomes_a_refusal_with_both_sizes() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    let mut said = |bytes: usize, max_payload: usize| {
        answer(&mut queue, 7, bytes);
        let mut said = None;
        queue.hand_over(AtOnce::ALL, max_payload, |Publication { payload, .. }| said = Some(payload));
        said
    };
    assert_eq!(said(1_000, 1_000).map(|payload| payload.len()), Some(1_000));
    let reply = proto::Reply::decode(said(1_001, 1_000).unwrap()).unwrap();
    assert_eq!(reply.code(), proto::Code::ResourceExhausted);
    assert!(reply.message.contains("1001") && reply.message.contains("1000"), "{:?}", reply.message);
    assert_eq!(said(1_001, 10), None, "not even that");
}

#[test]
fn an_update_that_fits_nowhere_is_counted_and_holds_up_nothing() {
    for publish_to in [PublishTo::Subjects, PublishTo::Feed, PublishTo::Both] {
        let mut queue = PublishQueue::new(publish_to);
        let name = "x".repeat(250);
        let scenes = [Scene::new(&name, 10_000)];
        let timeline = Arc::new(Timeline::new(&scenes, SceneLimits::default()).unwrap());
        queue.update(&StateUpdate { timeline, ..update(0, 1, Cause::Scene) }, NOW);
        queue.update(&update(0, 2, Cause::Scene), NOW);
        queue.update(&update(0, 3, Cause::Tick), NOW);
        let mut seen = Vec::new();
        queue.hand_over(AtOnce::ALL, 200, |Publication { kind, payload, .. }| {
            assert!(payload.len() <= 200);
            let updates = match kind {
                Kind::Feed => proto::UpdateBatch::decode(payload).unwrap().update,
                _ => vec![proto::StateUpdate::decode(payload).unwrap()],
            };
            seen.extend(updates.into_iter().map(|update| update.sequence));
        });
        seen.dedup();
        assert!(seen == [2, 3] || seen == [2, 3, 2, 3], "{publish_to:?}: {seen:?}");
        assert!(queue.take_too_large().is_some_and(|TooLarge { bytes, limit }| bytes > 250 && limit == 200));
        assert_eq!(queue.take_too_large(), None);
        queue.confirm(queue.handed_over());
        assert!(queue.is_settled());
        queue.check();
    }
}

#[test]
fn feeds_are_cut_to_what_the_connection_takes_and_none_is_lost() {
    for max_payload in [150, 1_000, 16_384, 1 << 20] {
        let mut queue = PublishQueue::new(PublishTo::Feed);
        for sequence in 1..=3_000 {
            queue.update(&StateUpdate { partition: 7, ..update(sequence as u32 % 50, sequence, Cause::Scene) }, NOW);
        }
        let (mut seen, mut messages) = (Vec::new(), 0);
        while !queue.is_empty() {
            queue.hand_over(queue.at_once(), max_payload, |Publication { payload, .. }| {
                assert!(payload.len() <= max_payload, "{} bytes of {max_payload}", payload.len());
                seen.extend(proto::UpdateBatch::decode(payload).unwrap().update.iter().map(|update| update.sequence));
                messages += 1;
            });
        }
        assert_eq!(seen, (1..=3_000).collect::<Vec<_>>());
        assert!(messages < 3_000 * 200 / max_payload + 3_000 / 512 + 2 || max_payload < 200, "{messages}");
    }
}

#[test]
fn refused_changes_are_held_in_order_and_stop_no_other_stream() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    let refused = |subject: &str| subject == "stream.s0.updates";
    for sequence in 1..=2 {
        queue.update(&update(0, sequence, Cause::Command), NOW);
        queue.update(&update(1, sequence, Cause::Command), NOW);
    }
    assert_eq!(sent(&mut queue, 100).len(), 4);
    // A third is on its way when the broker says no, and a fourth comes.
    let barrier = queue.handed_over();
    queue.update(&update(0, 3, Cause::Command), NOW);
    assert_eq!(sent(&mut queue, 100), [on(0, 3)]);
    queue.confirm_but(barrier, false, refused);
    queue.check();
    queue.update(&update(0, 4, Cause::Command), NOW);
    queue.update(&update(0, 5, Cause::Tick), NOW);
    answer(&mut queue, 7, 10);
    queue.update(&update(1, 3, Cause::Command), NOW);
    assert_eq!(sent(&mut queue, 100), [on(1, 3), ("answer.7".to_owned(), 0)], "nothing of the stream overtakes");
    queue.confirm_but(queue.handed_over(), false, refused);
    queue.check();
    assert!(queue.has_held() && !queue.has_unconfirmed());

    queue.release_held();
    assert_eq!(sent(&mut queue, 100), [on(0, 1), on(0, 2), on(0, 3), on(0, 4), on(0, 5)]);
    queue.confirm(queue.handed_over());
    assert!(queue.is_settled() && !queue.has_held());
}

#[test]
fn held_and_unconfirmed_changes_go_in_order_over_the_next_one() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    queue.update(&update(0, 1, Cause::Scene), NOW);
    assert_eq!(sent(&mut queue, 1), [on(0, 1)]);
    let barrier = queue.handed_over();
    queue.update(&update(0, 2, Cause::Scene), NOW);
    assert_eq!(sent(&mut queue, 1), [on(0, 2)]);
    queue.confirm_but(barrier, false, |_| true);
    queue.update(&update(0, 3, Cause::Scene), NOW);
    assert_eq!(sent(&mut queue, 1), [], "it goes behind the one that is held");
    queue.requeue_unconfirmed();
    assert_eq!(sent(&mut queue, 9), [on(0, 1), on(0, 2), on(0, 3)]);
}

#[test]
fn of_refused_changes_so_many_are_held_and_the_oldest_are_given_up() {
    let limits = PublishLimits { max_held: 3, ..PublishLimits::default() };
    let mut queue = PublishQueue::with_limits(PublishTo::Subjects, limits);
    for sequence in 1..=10 {
        queue.update(&update(0, sequence, Cause::Command), NOW);
    }
    queue.update(&update(0, 11, Cause::Tick), NOW);
    assert_eq!(sent(&mut queue, 100).len(), 11);
    queue.confirm_but(queue.handed_over(), false, |_| true);
    queue.check();
    assert!(!queue.is_full() && queue.is_settled(), "the shard goes on, and may end");
    queue.requeue_unconfirmed();
    assert_eq!(sent(&mut queue, 100), [on(0, 8), on(0, 9), on(0, 10)]);
    queue.confirm_but(queue.handed_over(), false, |_| true);
    queue.update(&update(0, 12, Cause::Tick), NOW);
    queue.give_up_held();
    assert_eq!(sent(&mut queue, 100), [on(0, 12)], "its tick may go");
}

#[test]
fn of_two_subjects_only_the_refused_one_is_tried_again() {
    let mut queue = PublishQueue::new(PublishTo::Both);
    queue.update(&update(7, 1, Cause::Command), NOW);
    assert_eq!(sent(&mut queue, 100).len(), 2);
    queue.confirm_but(queue.handed_over(), false, |subject| subject.starts_with("orchestrator.feed."));
    queue.release_held();
    let mut subjects = Vec::new();
    queue.hand_over(AtOnce::ALL, DEFAULT_MAX_PAYLOAD, |publication| subjects.push(publication.subject.to_string()));
    assert_eq!(subjects, ["orchestrator.feed.7"]);
}

/// [`update`] that passes these filters.
fn filtered(slot: u32, sequence: u64, cause: Cause, tokens: &[u64]) -> StateUpdate {
    let rare = Rare { filtered: tokens.into(), ..Rare::default() }.boxed();
    StateUpdate { rare, ..update(slot, sequence, cause) }
}

fn on_filter(slot: u32, token: u64, sequence: u64) -> (String, u64) {
    (format!("stream.s{slot}.filtered.{token:016x}"), sequence)
}

#[test]
fn an_update_goes_to_each_filter_that_it_passes_in_the_same_bytes() {
    for (publish_to, expected) in [
        (
            PublishTo::Subjects,
            &["stream.s7.updates", "stream.s7.filtered.0000000000000005", "stream.s7.filtered.000000000000001f"][..],
        ),
        (
            PublishTo::Feed,
            &["stream.s7.filtered.0000000000000005", "stream.s7.filtered.000000000000001f", "orchestrator.feed.7"],
        ),
    ] {
        let mut queue = PublishQueue::new(publish_to);
        queue.update(&filtered(7, 1, Cause::Scene, &[5, 31]), NOW);
        let mut sent = Vec::new();
        queue.hand_over(AtOnce::ALL, DEFAULT_MAX_PAYLOAD, |publication| sent.push(publication));
        assert_eq!(sent.iter().map(|sent| sent.subject.as_str()).collect::<Vec<_>>(), expected);
        let updates: Vec<_> = sent.iter().filter(|sent| sent.kind == Kind::Update).collect();
        assert!(updates.iter().all(|sent| sent.payload.as_ptr() == updates[0].payload.as_ptr()), "encoded once");
        assert_eq!((queue.take_published(), queue.take_filtered()), (1, 2));
    }
}

#[test]
fn a_tick_that_takes_anothers_place_goes_to_its_filters_too() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    queue.update(&filtered(0, 1, Cause::Tick, &[1, 2]), NOW);
    queue.update(&update(0, 2, Cause::Tick), NOW);
    queue.update(&filtered(0, 3, Cause::Tick, &[2, 3]), NOW);
    let expected = [on(0, 3), on_filter(0, 2, 3), on_filter(0, 3, 3), on_filter(0, 1, 3)];
    assert_eq!(sent(&mut queue, 100), expected);
    assert!(queue.is_empty());
}

#[test]
fn a_tick_of_another_stream_in_its_slot_goes_to_its_own_filters() {
    for cause in [Cause::Tick, Cause::Command] {
        let mut queue = PublishQueue::new(PublishTo::Subjects);
        queue.update(&filtered(0, 8, Cause::Tick, &[1, 2]), NOW);
        // Its shard has started again, and the slot is another stream's.
        queue.update(&later_stream(0, 1, cause, &[2]), NOW);
        let later = ["stream.later0.updates", "stream.later0.filtered.0000000000000002"].map(|to| (to.to_owned(), 1));
        let earlier = [on(0, 8), on_filter(0, 1, 8), on_filter(0, 2, 8)];
        assert_eq!(sent(&mut queue, 100), [&earlier[..], &later].concat());
    }
}

#[test]
fn what_is_handed_over_at_once_counts_each_filter() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    for slot in 0..3 {
        queue.update(&filtered(slot, 1, Cause::Scene, &[1, 2, 3]), NOW);
    }
    assert_eq!(sent(&mut queue, 5).len(), 8, "two updates, the second of which goes over it");
    assert_eq!(sent(&mut queue, 5).len(), 4);
}

#[test]
fn an_unconfirmed_change_is_owed_again_to_its_filters_too() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    queue.update(&filtered(0, 1, Cause::Scene, &[1]), NOW);
    let both = [on(0, 1), on_filter(0, 1, 1)];
    assert_eq!(sent(&mut queue, 100), both);
    queue.requeue_unconfirmed();
    assert_eq!(sent(&mut queue, 100), both);
    queue.confirm(queue.handed_over());
    assert!(queue.is_settled());
}

#[test]
fn a_refused_filter_waits_by_itself_and_in_order() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    let refused = |subject: &str| subject == "stream.s0.filtered.0000000000000001";
    queue.update(&filtered(0, 1, Cause::Scene, &[1, 2]), NOW);
    assert_eq!(sent(&mut queue, 100).len(), 3);
    queue.confirm_but(queue.handed_over(), false, refused);
    queue.check();
    assert!(queue.has_held() && queue.is_settled());

    // All others go on: what is for it waits behind the first, and a tick is not for it.
    queue.update(&filtered(0, 2, Cause::Scene, &[1, 2]), NOW);
    assert_eq!(sent(&mut queue, 100), [on(0, 2), on_filter(0, 2, 2)]);
    queue.update(&filtered(0, 3, Cause::Tick, &[1, 2]), NOW);
    assert_eq!(sent(&mut queue, 100), [on(0, 3), on_filter(0, 2, 3)]);
    queue.update(&filtered(1, 1, Cause::Scene, &[1]), NOW);
    assert_eq!(sent(&mut queue, 100), [on(1, 1), on_filter(1, 1, 1)], "another stream's filter is another");

    queue.release_held();
    queue.update(&filtered(0, 4, Cause::Scene, &[1]), NOW);
    let again = [on_filter(0, 1, 1), on_filter(0, 1, 2), on(0, 4), on_filter(0, 1, 4)];
    assert_eq!(sent(&mut queue, 100), again);
    queue.confirm(queue.handed_over());
    queue.check();
    assert!(!queue.has_held() && queue.is_settled());
}

#[test]
fn changes_held_for_filters_are_bounded_and_push_out_none_for_all() {
    let limits = PublishLimits { max_held: 2, ..PublishLimits::default() };
    let mut queue = PublishQueue::with_limits(PublishTo::Subjects, limits);
    for slot in 0..4 {
        queue.update(&filtered(slot, 1, Cause::Scene, &[1]), NOW);
    }
    sent(&mut queue, 100);
    queue.confirm_but(queue.handed_over(), false, |subject| {
        subject == "stream.s0.updates" || subject.contains("filtered")
    });
    queue.check();
    queue.release_held();
    let expected = [on(0, 1), on_filter(0, 1, 1), on_filter(2, 1, 1), on_filter(3, 1, 1)];
    assert_eq!(sent(&mut queue, 100), expected, "that of the second stream was given up");
    queue.confirm_but(queue.handed_over(), false, |subject| subject.contains("filtered"));
    queue.give_up_held();
    queue.check();
    assert!(!queue.has_held());
}

#[test]
fn an_update_that_fits_nowhere_is_given_up_once_for_all() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    queue.update(&filtered(0, 1, Cause::Scene, &[1, 2]), NOW);
    queue.hand_over(AtOnce::ALL, 10, |publication| panic!("{publication:?}"));
    assert!(queue.take_too_large().is_some_and(|too_large| too_large.limit == 10));
    queue.confirm(queue.handed_over());
    assert!(queue.is_settled());
}

/// [`update`] of a stream that has come into a slot after another was removed.
fn later_stream(slot: u32, sequence: u64, cause: Cause, tokens: &[u64]) -> StateUpdate {
    StateUpdate { stream_id: format!("later{slot}").into(), epoch: 2, ..filtered(slot, sequence, cause, tokens) }
}

#[test]
fn what_is_held_of_a_removed_stream_holds_up_no_other_in_its_slot() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    queue.update(&filtered(0, 1, Cause::Command, &[1]), NOW);
    queue.update(&filtered(1, 1, Cause::Command, &[1]), NOW);
    assert_eq!(sent(&mut queue, 100).len(), 4);
    queue.confirm_but(queue.handed_over(), false, |subject| {
        ["stream.s0.updates", "stream.s1.filtered.0000000000000001"].contains(&subject)
    });
    queue.check();

    for (sequence, cause) in [(1, Cause::Command), (2, Cause::Tick)] {
        for slot in [0, 1] {
            queue.update(&later_stream(slot, sequence, cause, &[1]), NOW);
        }
    }
    let mut subjects: Vec<String> = sent(&mut queue, 100).into_iter().map(|(subject, _)| subject).collect();
    subjects.sort();
    let of = |slot| [format!("stream.later{slot}.filtered.0000000000000001"), format!("stream.later{slot}.updates")];
    let twice = [0, 1].into_iter().flat_map(of).flat_map(|subject| [subject.clone(), subject]);
    assert_eq!(subjects, twice.collect::<Vec<_>>());
    queue.confirm_but(queue.handed_over(), false, |_| false);
    queue.release_held();
    assert_eq!(sent(&mut queue, 100), [on(0, 1), on_filter(1, 1, 1)]);
}

#[test]
fn what_was_held_for_filters_goes_again_over_the_next_connection() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    queue.update(&filtered(0, 1, Cause::Scene, &[1]), NOW);
    assert_eq!(sent(&mut queue, 100).len(), 2);
    queue.confirm_but(queue.handed_over(), false, |subject| subject.contains("filtered"));
    queue.update(&filtered(0, 2, Cause::Scene, &[1]), NOW);
    answer(&mut queue, 7, 10);
    assert_eq!(sent(&mut queue, 1), [on(0, 2)], "its follower waits");
    queue.update(&update(0, 3, Cause::Scene), NOW);
    queue.requeue_unconfirmed();
    queue.check();
    answer(&mut queue, 8, 10);
    let answer = |number: u64| (format!("answer.{number}"), 0);
    let again = [on_filter(0, 1, 1), on(0, 2), on_filter(0, 1, 2), answer(7), on(0, 3), answer(8)];
    assert_eq!(sent(&mut queue, 100), again);
}

#[test]
fn what_may_have_been_refused_goes_again_and_holds_up_nothing() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    queue.update(&filtered(0, 1, Cause::Scene, &[1, 2]), NOW);
    queue.update(&update(1, 1, Cause::Scene), NOW);
    assert_eq!(sent(&mut queue, 100).len(), 4);
    queue.update(&update(0, 2, Cause::Scene), NOW);
    queue.update(&filtered(0, 3, Cause::Tick, &[1, 2]), NOW);
    queue.update(&update(1, 2, Cause::Tick), NOW);
    queue.confirm_but(queue.handed_over(), true, |subject| subject == "stream.s0.filtered.0000000000000001");
    queue.check();
    let again = [on(0, 1), on_filter(0, 2, 1), on(1, 1), on(1, 2), on(0, 2), on(0, 3), on_filter(0, 2, 3)];
    assert_eq!(sent(&mut queue, 100), again);
    queue.confirm(queue.handed_over());
    queue.release_held();
    assert_eq!(sent(&mut queue, 100), [on_filter(0, 1, 1)]);
}

#[test]
fn what_is_in_doubt_for_long_waits_as_what_is_refused_does() {
    let mut queue = PublishQueue::new(PublishTo::Subjects);
    queue.update(&filtered(0, 1, Cause::Scene, &[1]), NOW);
    let mut published = 0;
    while !queue.has_held() {
        assert_eq!(sent(&mut queue, 100), [on(0, 1), on_filter(0, 1, 1)]);
        published += 1;
        queue.confirm_but(queue.handed_over(), true, |_| false);
        queue.check();
    }
    assert_eq!((published, queue.is_settled()), (1 + usize::from(MAX_DOUBTS), true));
    queue.release_held();
    assert_eq!(sent(&mut queue, 100).len(), 2);
    queue.confirm_but(queue.handed_over(), true, |_| false);
    assert!(!queue.is_settled(), "it begins anew");
}
