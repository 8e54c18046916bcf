//! Attempts that come to nothing and guards that are dropped: who is unregistered, and that it is done once.

use futures_util::FutureExt as _;

use super::*;
use crate::client::unregister_queue::{MAX_RETRIES, MAX_RETRIES_BY_NAME};

#[test]
fn a_dropped_guard_is_unregistered_once() {
    let mut table = table();
    let (key, _) = table.insert("a", 1);
    table.release(key);
    assert!(table.next_is(unregister(&[1]), ok(&[])));
    check_empty(&mut table);
}

#[test]
fn a_guard_dropped_while_registering_is_unregistered_afterwards() {
    let mut table = table();
    let (key, _) = table.insert("a", 1);
    table.register_all_again();
    let job = table.next().expect("a registration is due");
    table.release(key);
    assert!(table.next_is(unregister(&[1]), ok(&[])), "the old handle at once");
    assert!(table.finished(job, ok(&[2])));
    assert!(table.next_is(unregister(&[2]), ok(&[])), "and the new one");
    check_empty(&mut table);
}

#[test]
fn a_guard_dropped_in_a_failing_registration_leaves_by_name() {
    let mut table = table();
    let (key, _) = table.insert("a", 1);
    table.register_all_again();
    let job = table.next().expect("a registration is due");
    table.release(key);
    assert!(!table.finished(job, timeout()));
    assert!(table.next_is(unregister(&[1]), ok(&[])));
    assert!(matches!(table.next(), Some(Job::UnregisterByName { connection: 1, .. })), "on the same connection");
    check(&table);
}

#[test]
fn attempts_for_one_subscriber_follow_one_another() {
    let mut table = table();
    let key = table.attempt("s", "a");
    let Begun::Later(idle) = table.begin(name("s", "a"), None).expect("room") else { panic!("both at once") };
    let mut idle = Box::pin(idle);
    assert!(idle.as_mut().now_or_never().is_none());
    let first = table.end(key, Outcome::Registered { handle: 1, epoch: 1 });
    assert!(idle.as_mut().now_or_never().is_some(), "now");
    let again = table.attempt("s", "a");
    assert_eq!(again, key);
    let second = table.end(key, Outcome::Registered { handle: 2, epoch: 1 });
    assert!(first.is_some() && second.is_some());
    check(&table);

    // As to a heartbeat, a question and a registration.
    for answer in [unknown(&[2]), refused(Code::UnknownSubscriber), ok(&[3])] {
        table.beat(0, 1);
        let job = table.next().expect("something is due");
        let Begun::Later(idle) = table.begin(name("s", "a"), None).expect("room") else { panic!("overtaken") };
        assert!(table.finished(job, answer));
        assert_eq!(idle.now_or_never().is_some(), table.entries[key].in_flight == InFlight::Nothing);
        check(&table);
    }
    table.release(key);
    table.release(key);
    assert!(table.next_is(unregister(&[3]), ok(&[])));
    check_empty(&mut table);
}

#[test]
fn an_attempt_waits_for_what_its_predecessor_left_in_flight() {
    let mut table = table();
    let (key, _) = table.insert("a", 1);
    let job = table.beat_all();
    table.release(key);
    let Begun::Later(idle) = table.begin(name("s", "a"), None).expect("room") else { panic!("overtaken") };
    assert!(table.finished(job, ok(&[])));
    assert!(idle.now_or_never().is_some());
    table.insert("a", 2);
    assert!(table.next_is(unregister(&[1]), ok(&[])), "the new one has another handle");
    assert_eq!(table.next(), None);
    check(&table);
}

#[test]
fn of_two_guards_the_last_unregisters_by_the_handle_that_counts() {
    for last_first in [false, true] {
        let mut table = table();
        let (first, _) = table.insert("a", 1);
        let (second, _) = table.insert("a", 2);
        assert_eq!(table.beat_all(), Job::Beat(vec![(0, 2)]), "one heartbeat for both");
        assert!(table.finished(Job::Beat(vec![(0, 2)]), ok(&[])));
        table.release(if last_first { second } else { first });
        assert_eq!((table.next(), table.len()), (None, 1));
        table.release(if last_first { first } else { second });
        assert!(table.next_is(unregister(&[2]), ok(&[])));
        check_empty(&mut table);
    }
}

#[test]
fn beside_a_guard_a_failed_attempt_is_made_up_for_a_refused_is_not() {
    let mut table = table();
    let (key, standing) = table.insert("a", 1);
    for outcome in [Outcome::Refused, Outcome::NotExecuted] {
        assert_eq!(table.attempt("s", "a"), key);
        assert!(table.end(key, outcome).is_none());
        assert_eq!(table.next(), None);
        check(&table);
    }
    assert_eq!(table.attempt("s", "a"), key);
    assert!(table.end(key, Outcome::Unknown).is_none());
    assert!(table.next_is(register(&[(key, "a")]), ok(&[2])), "its handle may be void");
    assert_eq!(*standing.borrow(), Standing::Registered { round: 2 });
    table.release(key);
    assert!(table.next_is(unregister(&[2]), ok(&[])));
    check_empty(&mut table);
}

#[test]
fn a_refused_attempt_leaves_nothing_and_an_unknown_one_its_name() {
    let mut table = table();
    for outcome in [Outcome::Refused, Outcome::NotExecuted] {
        let key = table.attempt("s", "a");
        assert_eq!((table.next(), table.len()), (None, 1));
        assert!(table.end(key, outcome).is_none());
        check_empty(&mut table);
    }
    let key = table.attempt("s", "a");
    assert!(table.end(key, Outcome::Unknown).is_none());
    assert!(table.next_is(by_name("a"), ok(&[])));
    check_empty(&mut table);
}

#[test]
fn who_is_registered_or_about_to_be_is_not_unregistered_by_name() {
    let mut table = table();
    let key = table.attempt("s", "a");
    table.end(key, Outcome::Unknown);
    let key = table.attempt("s", "a");
    assert_eq!(table.next(), None, "it is about to be registered");
    table.end(key, Outcome::Registered { handle: 1, epoch: 1 });
    check(&table);
    table.release(key);
    assert!(table.next_is(unregister(&[1]), ok(&[])));
    check_empty(&mut table);
}

#[test]
fn a_leave_by_name_left_out_is_made_up_for_unless_answered_since() {
    for (outcome, made_up) in [(Outcome::NotExecuted, true), (Outcome::Unknown, true), (Outcome::Refused, false)] {
        let mut table = table();
        let key = table.attempt("s", "a");
        table.end(key, Outcome::Unknown);
        let key = table.attempt("s", "a");
        assert_eq!(table.next(), None);
        table.end(key, outcome);
        if made_up {
            assert!(table.next_is(by_name("a"), ok(&[])), "{outcome:?}");
        }
        check_empty(&mut table);
    }
}

#[test]
fn a_leave_by_name_does_not_come_behind_a_later_registration() {
    let mut table = table();
    let key = table.attempt("s", "c");
    assert!(table.end(key, Outcome::Unknown).is_none());
    // It is queued, and the same viewer comes again and goes before its turn.
    let (key, _) = table.insert("c", 5);
    table.release(key);
    assert!(table.next_is(unregister(&[5]), ok(&[])));
    assert_eq!(table.next(), None, "another gateway's registration would be met");
    check(&table);
}

#[test]
fn a_leave_by_name_under_way_is_not_repeated_behind_a_register() {
    for goes_first in [true, false] {
        let mut table = table();
        let key = table.attempt("s", "a");
        table.end(key, Outcome::Unknown);
        let leave = table.next().expect("a leave is due");
        // Meanwhile the same viewer comes again, and another gateway's registration supersedes it.
        let (key, _) = table.insert("a", 5);
        table.beat(0, 1);
        assert!(table.next_is(Job::Beat(vec![(key, 5)]), unknown(&[5])));
        assert!(table.next_is(confirm(key, "a"), ok(&[])));
        if goes_first {
            table.release(key);
        }
        assert!(!table.finished(leave, timeout()));
        assert_eq!(table.next(), None, "another gateway's registration would be met");
        if !goes_first {
            table.release(key);
        }
        check_empty(&mut table);
    }
}

#[test]
fn a_leave_by_name_is_given_up_soon_and_with_a_new_connection() {
    let mut table = table();
    let unknown = |table: &mut RegistrationTable| {
        let key = table.attempt("s", "a");
        table.end(key, Outcome::Unknown);
    };
    unknown(&mut table);
    let mut attempts = 0;
    while let Some(job) = table.next() {
        attempts += 1;
        assert!(!table.finished(job, timeout()));
    }
    assert_eq!(attempts, u32::from(MAX_RETRIES_BY_NAME) + 1);
    check_empty(&mut table);

    // All register again on a new connection, so it may be another's by then: one that waits, and one under way.
    unknown(&mut table);
    table.register_all_again();
    check_empty(&mut table);
    let key = table.attempt("s", "a");
    table.register_all_again();
    table.end(key, Outcome::Unknown);
    check_empty(&mut table);
    unknown(&mut table);
    let job = table.next().expect("a leave is due");
    table.register_all_again();
    assert!(!table.finished(job, timeout()));
    check_empty(&mut table);
}

#[test]
fn the_same_handle_given_again_keeps_who_has_come_back() {
    let mut table = table();
    let (key, _) = table.insert("a", 1);
    table.release(key);
    let (key, _) = table.insert("a", 1);
    assert_eq!(table.next(), None, "the handle is held again");
    table.release(key);
    let job = table.next().expect("a leave is due");
    let (key, _) = table.insert("a", 1);
    assert!(!table.finished(job, timeout()));
    assert_eq!(table.next(), None, "nor is it tried again");
    table.release(key);
    assert!(table.next_is(unregister(&[1]), ok(&[])));
    check_empty(&mut table);
}

#[test]
fn a_guard_dropped_during_its_heartbeat_does_not_come_back() {
    for answer in [ok(&[]), unknown(&[1]), timeout(), too_large()] {
        let mut table = table();
        let (key, _) = table.insert("a", 1);
        let job = table.beat_all();
        table.release(key);
        assert_eq!(table.len(), 1, "the job still has the key");
        let _ = table.finished(job, answer);
        assert!(table.next_is(unregister(&[1]), ok(&[])));
        check_empty(&mut table);
    }
}

#[test]
fn unregisterings_collect_behind_the_one_under_way() {
    let mut table = table();
    let keys: Vec<usize> = (1..=4).map(|handle| table.insert(&format!("c{handle}"), handle).0).collect();
    table.release(keys[0]);
    let job = table.next().expect("a leave is due");
    keys[1..].iter().for_each(|&key| table.release(key));
    assert_eq!(table.next(), None);
    assert!(table.finished(job, ok(&[])));
    assert!(table.next_is(unregister(&[2, 3, 4]), ok(&[])));
    check_empty(&mut table);
}

#[test]
fn an_unregistering_that_fails_is_tried_a_few_times() {
    let mut table = table();
    let (key, _) = table.insert("a", 1);
    table.release(key);
    let mut attempts = 0;
    while let Some(job) = table.next() {
        attempts += 1;
        assert!(!table.finished(job, timeout()));
    }
    assert_eq!(attempts, u32::from(MAX_RETRIES) + 1);
    check_empty(&mut table);
}

#[test]
fn more_unregisterings_than_fit_are_counted() {
    let mut table = RegistrationTable::new(100, 2);
    let keys: Vec<usize> = (1..=4).map(|handle| table.insert(&format!("c{handle}"), handle).0).collect();
    keys.into_iter().for_each(|key| table.release(key));
    assert_eq!(table.unregisters.forgotten, 2);
    assert!(table.next_is(unregister(&[1, 2]), ok(&[])));
    check_empty(&mut table);
}
