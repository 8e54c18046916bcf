//! The races of a registration's life, each as a sequence of calls.

use super::*;

fn who(stream: &str, client: &str) -> Who {
    Who { stream_id: stream.into(), client_id: client.into(), source_addr: None, session: 7 }
}

fn book() -> Book {
    Book::new(100, 100)
}

fn ok(handles: &[u64]) -> Result<Reply, ClientError> {
    Ok(Reply { handles: handles.to_vec(), ..Reply::default() })
}

fn unknown(handles: &[u64]) -> Result<Reply, ClientError> {
    Ok(Reply { code: Code::UnknownSubscriber.into(), unknown_handle: handles.to_vec(), ..Reply::default() })
}

fn refused(code: Code) -> Result<Reply, ClientError> {
    Ok(Reply { code: code.into(), ..Reply::default() })
}

fn timeout() -> Result<Reply, ClientError> {
    Err(ClientError::new(ErrorKind::Timeout, "no answer"))
}

fn leave(handles: &[u64]) -> Option<Job> {
    Some(Job::Leave { handles: handles.to_vec(), tries: 0 })
}

/// Beats the only slot and returns the heartbeat that is due.
fn beat(book: &mut Book) -> Job {
    book.beat(0, 1);
    book.next_job().expect("a heartbeat is due")
}

/// What must hold between any two calls.
fn check(book: &Book) {
    let mut holders = HashMap::new();
    for (key, entry) in &book.entries {
        assert!(!entry.gone || entry.errand != Errand::None, "{key} is gone and nobody removes it");
        if entry.handle != 0 {
            *holders.entry(entry.handle).or_insert(0) += 1;
        }
    }
    assert_eq!(holders, book.holders);
    let kept = book.entries.iter().filter(|(_, entry)| !entry.gone).count();
    assert_eq!(kept, book.names.count(), "with no registration under way");
    let mut streams: HashMap<_, BTreeSet<usize>> = HashMap::new();
    for (key, entry) in &book.entries {
        streams.entry(entry.who.stream_id.clone()).or_default().insert(key);
        assert!(entry.epoch <= book.streams[&entry.who.stream_id].epoch, "{key} has an epoch that nobody has seen");
    }
    assert_eq!(streams, book.streams.iter().map(|(stream, watched)| (stream.clone(), watched.keys.clone())).collect());
}

#[test]
fn a_registration_beats_once_in_its_slot() {
    let mut book = book();
    for handle in 1..=5 {
        book.insert(who("s", "c"), handle, 1).expect("room");
    }
    let mut beats = Vec::new();
    for slot in 0..3 {
        book.beat(slot, 3);
        book.beat(slot, 3);
        let Some(job) = book.next_job() else { panic!("slot {slot} has nothing to do") };
        let Job::Beat(batch) = &job else { panic!("{job:?}") };
        beats.push(batch.clone());
        assert_eq!(book.next_job(), None);
        assert!(book.finished(job, ok(&[])));
    }
    assert_eq!(beats, [vec![(0, 1), (3, 4)], vec![(1, 2), (4, 5)], vec![(2, 3)]]);
    check(&book);
}

#[test]
fn a_heartbeat_message_has_at_most_1000_handles() {
    let mut book = Book::new(5_000, 100);
    for handle in 1..=2_500 {
        book.insert(who("s", "c"), handle, 1).expect("room");
    }
    book.beat(0, 1);
    let sizes: Vec<usize> = std::iter::from_fn(|| book.next_job())
        .map(|job| if let Job::Beat(batch) = job { batch.len() } else { panic!("{job:?}") })
        .collect();
    assert_eq!(sizes, [1_000, 1_000, 500]);
}

#[test]
fn what_is_unknown_is_registered_again_under_a_new_handle() {
    let mut book = book();
    let (_, first) = book.insert(who("s", "a"), 1, 1).expect("room");
    let (_, second) = book.insert(who("s", "b"), 2, 1).expect("room");
    let job = beat(&mut book);
    assert!(book.finished(job, unknown(&[2])));
    assert_eq!(*first.borrow(), Standing::Registered { round: 1 });
    assert_eq!(*second.borrow(), Standing::Lost(Code::UnknownSubscriber));

    let job = book.next_job().expect("a registration is due");
    let subscriber = proto::Subscriber { client_id: "b".into(), source_addr: String::new(), session: 7 };
    assert_eq!(job, Job::Register { stream_id: "s".into(), keys: vec![1], subscribers: vec![subscriber] });
    assert!(book.finished(job, ok(&[22])));
    assert_eq!(*second.borrow(), Standing::Registered { round: 2 });
    assert_eq!(beat(&mut book), Job::Beat(vec![(0, 1), (1, 22)]));
    check(&book);
}

#[test]
fn re_registrations_go_by_stream_and_at_most_500_to_a_message() {
    let mut book = Book::new(5_000, 100);
    for handle in 1..=1_200 {
        book.insert(who(if handle % 4 == 0 { "b" } else { "a" }, "c"), handle, 1).expect("room");
    }
    book.register_all_again();
    let mut seen = Vec::new();
    while let Some(job) = book.next_job() {
        let Job::Register { stream_id, keys, subscribers } = &job else { panic!("{job:?}") };
        assert_eq!(keys.len(), subscribers.len());
        seen.push((stream_id.to_string(), keys.len()));
        let handles: Vec<u64> = keys.iter().map(|key| 10_000 + *key as u64).collect();
        assert!(book.finished(job, ok(&handles)));
    }
    assert_eq!(seen, [("a".into(), 500), ("a".into(), 400), ("b".into(), 300)]);
    check(&book);
}

#[test]
fn a_registration_that_was_refused_is_tried_again_on_its_next_beat() {
    let mut book = book();
    let (_, standing) = book.insert(who("s", "a"), 1, 1).expect("room");
    let job = beat(&mut book);
    assert!(book.finished(job, unknown(&[1])));
    let job = book.next_job().expect("a registration is due");
    assert!(book.finished(job, refused(Code::StreamNotFound)));
    assert_eq!(*standing.borrow(), Standing::Lost(Code::StreamNotFound));
    assert_eq!(book.next_job(), None, "not at once");
    let job = beat(&mut book);
    assert!(matches!(job, Job::Register { .. }), "{job:?}");
    assert!(book.finished(job, ok(&[5])));
    assert_eq!(*standing.borrow(), Standing::Registered { round: 2 });
    check(&book);
}

#[test]
fn one_refused_in_a_batch_does_not_hold_up_the_others() {
    let mut book = book();
    let watchers: Vec<_> = (1..=2).map(|handle| book.insert(who("s", "c"), handle, 1).expect("room").1).collect();
    book.register_all_again();
    let job = book.next_job().expect("a registration is due");
    let reply = Reply { code: Code::ResourceExhausted.into(), handles: vec![11, 0], ..Reply::default() };
    assert!(book.finished(job, Ok(reply)));
    assert_eq!(*watchers[0].borrow(), Standing::Registered { round: 2 });
    assert_eq!(*watchers[1].borrow(), Standing::Lost(Code::ResourceExhausted));
    check(&book);
}

#[test]
fn what_failed_as_a_whole_is_queued_again() {
    for failure in [timeout(), refused(Code::Unavailable)] {
        let mut book = book();
        book.insert(who("s", "a"), 1, 1).expect("room");
        let job = beat(&mut book);
        assert!(!book.finished(job, failure.clone()));
        let again = book.next_job().expect("the heartbeat again");
        assert_eq!(again, Job::Beat(vec![(0, 1)]));
        assert!(book.finished(again, ok(&[])));
        book.register_all_again();
        let job = book.next_job().expect("a registration is due");
        assert!(!book.finished(job, failure));
        assert!(matches!(book.next_job(), Some(Job::Register { .. })));
        check(&book);
    }
}

#[test]
fn a_dropped_guard_is_unregistered_once() {
    let mut book = book();
    let (key, _) = book.insert(who("s", "a"), 1, 1).expect("room");
    book.remove(key);
    let job = book.next_job();
    assert_eq!(job, leave(&[1]));
    assert!(book.finished(job.expect("checked"), ok(&[])));
    assert_eq!((book.next_job(), book.len()), (None, 0));
    check(&book);
}

#[test]
fn a_guard_dropped_while_its_registration_is_under_way_is_unregistered_afterwards() {
    let mut book = book();
    let (key, _) = book.insert(who("s", "a"), 1, 1).expect("room");
    book.register_all_again();
    let job = book.next_job().expect("a registration is due");
    book.remove(key);
    let farewell = book.next_job();
    assert_eq!(farewell, leave(&[1]), "the old handle at once");
    assert!(book.finished(farewell.expect("checked"), ok(&[])));
    assert!(book.finished(job, ok(&[1])), "and the new one, though it be the same");
    assert_eq!(book.next_job(), leave(&[1]));
    assert_eq!(book.len(), 0);
    check(&book);
}

#[test]
fn a_guard_dropped_while_its_registration_fails_is_unregistered_by_name() {
    let mut book = book();
    let (key, _) = book.insert(who("s", "a"), 1, 1).expect("room");
    let job = beat(&mut book);
    assert!(book.finished(job, unknown(&[1])));
    let job = book.next_job().expect("a registration is due");
    book.remove(key);
    assert_eq!(book.next_job(), None, "it has no handle");
    assert!(!book.finished(job, timeout()));
    assert_eq!(book.next_job(), Some(Job::LeaveByName { who: who("s", "a"), tries: 0 }));
    check(&book);
}

#[test]
fn who_is_registered_or_about_to_be_is_not_unregistered_by_name() {
    let mut book = book();
    let (first, again) = (who("s", "a"), who("s", "a"));
    book.begin(&first).expect("room");
    assert!(book.end(&first, true));
    book.begin(&again).expect("room");
    assert_eq!(book.next_job(), None, "it is about to be registered");
    let (key, _) = book.insert(again.clone(), 1, 1).expect("room");
    assert!(!book.end(&again, false));
    assert_eq!(book.next_job(), None, "it is registered");
    book.begin(&first).expect("room");
    assert!(book.end(&first, true));
    assert_eq!(book.next_job(), None, "whatever became of another try");
    check(&book);
    book.remove(key);
    assert_eq!(book.next_job(), leave(&[1]));
    assert_eq!(book.next_job(), None);
    check(&book);
}

#[test]
fn a_farewell_left_out_for_a_registration_that_fails_is_made_up_for() {
    let mut book = book();
    let (first, again) = (who("s", "a"), who("s", "a"));
    book.begin(&first).expect("room");
    assert!(book.end(&first, true));
    book.begin(&again).expect("room");
    assert_eq!(book.next_job(), None);
    assert!(book.end(&again, false));
    assert_eq!(book.next_job(), Some(Job::LeaveByName { who: again, tries: 0 }));
    assert_eq!(book.next_job(), None);
    check(&book);
}

#[test]
fn a_guard_dropped_while_its_heartbeat_is_under_way_does_not_come_back() {
    for answer in [ok(&[]), unknown(&[1]), timeout()] {
        let mut book = book();
        let (key, _) = book.insert(who("s", "a"), 1, 1).expect("room");
        let job = beat(&mut book);
        book.remove(key);
        assert_eq!(book.len(), 1, "the job still has the key");
        let _ = book.finished(job, answer);
        assert_eq!(book.len(), 0);
        assert_eq!(book.next_job(), leave(&[1]));
        assert_eq!(book.next_job(), None);
        check(&book);
    }
}

#[test]
fn two_guards_of_one_subscriber_are_unregistered_with_the_last() {
    let mut book = book();
    let (first, _) = book.insert(who("s", "a"), 1, 1).expect("room");
    let (second, _) = book.insert(who("s", "a"), 1, 1).expect("room");
    book.remove(first);
    assert_eq!(book.next_job(), None);
    book.remove(second);
    assert_eq!(book.next_job(), leave(&[1]));
    check(&book);
}

#[test]
fn a_reconnect_during_a_heartbeat_or_a_registration_registers_again_after_it() {
    let mut book = book();
    book.insert(who("s", "a"), 1, 1).expect("room");
    let job = beat(&mut book);
    book.register_all_again();
    assert_eq!(book.next_job(), None, "the key is under way");
    assert!(!book.finished(job, timeout()));
    let job = book.next_job().expect("a registration is due");
    assert!(matches!(job, Job::Register { .. }), "{job:?}");
    book.register_all_again();
    assert!(book.finished(job, ok(&[2])));
    assert!(matches!(book.next_job(), Some(Job::Register { .. })));
    check(&book);
}

/// Registers again what has risen; gives the keys of each request, all of which succeed under handles from 100 on.
fn risen(book: &mut Book) -> Vec<Vec<usize>> {
    book.register_risen();
    let mut asked = Vec::new();
    while let Some(job) = book.next_job() {
        let Job::Register { keys, .. } = &job else { panic!("{job:?}") };
        asked.push(keys.clone());
        let handles: Vec<u64> = keys.iter().map(|&key| 100 + key as u64).collect();
        assert!(book.finished(job, ok(&handles)));
        check(book);
    }
    asked
}

#[test]
fn a_higher_epoch_registers_a_streams_viewers_again_and_nobody_elses() {
    let mut book = book();
    for (stream, handle) in [("a", 1), ("b", 2), ("a", 3)] {
        book.insert(who(stream, "c"), handle, 5).expect("room");
    }
    for (stream, epoch) in [("a", 5), ("a", 4), ("nobody's", 9)] {
        book.see(stream, epoch);
        assert!(!book.has_risen(), "{stream} {epoch}");
    }
    book.see("a", 6);
    book.see("a", 6);
    assert!(book.has_risen());
    assert_eq!(book.next_job(), None, "not before its time");
    assert_eq!(risen(&mut book), [[0, 2]]);
    book.see("a", 6);
    assert!(!book.has_risen(), "they have it");
    assert_eq!(risen(&mut book), [[0; 0]; 0]);
}

#[test]
fn whoever_was_registered_in_the_higher_epoch_is_not_registered_again() {
    let mut book = book();
    book.insert(who("s", "a"), 1, 5).expect("room");
    book.insert(who("s", "b"), 2, 5).expect("room");
    book.see("s", 6);
    book.beat(0, 2);
    let job = book.next_job().expect("a heartbeat is due");
    assert!(book.finished(job, unknown(&[1])));
    let job = book.next_job().expect("a registration is due");
    assert!(book.finished(job, ok(&[11])));
    book.insert(who("s", "c"), 3, 6).expect("room");
    assert_eq!(risen(&mut book), [[1]]);
}

#[test]
fn the_answer_to_a_newcomer_tells_of_the_epoch_too() {
    let mut book = book();
    book.insert(who("s", "a"), 1, 5).expect("room");
    book.insert(who("s", "b"), 2, 6).expect("room");
    assert_eq!(risen(&mut book), [[0]], "the service has forgotten those before");
    book.insert(who("s", "c"), 3, 5).expect("room");
    assert_eq!(risen(&mut book), [[2]], "and an answer from before");
}

#[test]
fn an_epoch_that_rises_during_a_registration_is_registered_with_after_it() {
    let mut book = book();
    let (key, _) = book.insert(who("s", "a"), 1, 5).expect("room");
    book.register_all_again();
    let job = book.next_job().expect("a registration is due");
    book.see("s", 6);
    book.register_risen();
    assert_eq!(book.next_job(), None, "the key is under way");
    assert!(book.finished(job, ok(&[2])));
    let job = book.next_job().expect("another registration is due");
    book.see("s", 7);
    book.remove(key);
    assert!(book.finished(job, ok(&[3])));
    check(&book);
    assert_eq!(book.next_job(), leave(&[2, 3]));
    assert_eq!(risen(&mut book), [[0; 0]; 0], "whoever is gone is gone");
}

#[test]
fn unregisterings_collect_behind_the_one_under_way() {
    let mut book = book();
    let keys: Vec<usize> = (1..=4).map(|handle| book.insert(who("s", "c"), handle, 1).expect("room").0).collect();
    book.remove(keys[0]);
    let job = book.next_job().expect("a farewell is due");
    keys[1..].iter().for_each(|&key| book.remove(key));
    assert_eq!(book.next_job(), None);
    assert!(book.finished(job, ok(&[])));
    assert_eq!(book.next_job(), leave(&[2, 3, 4]));
}

#[test]
fn an_unregistering_that_fails_is_tried_a_few_times() {
    let mut book = book();
    let (key, _) = book.insert(who("s", "a"), 1, 1).expect("room");
    book.remove(key);
    let mut attempts = 0;
    while let Some(job) = book.next_job() {
        attempts += 1;
        assert!(!book.finished(job, timeout()));
    }
    assert_eq!(attempts, u32::from(super::super::farewells::MAX_RETRIES) + 1);
}

#[test]
fn more_unregisterings_than_fit_are_counted() {
    let mut book = Book::new(100, 2);
    let keys: Vec<usize> = (1..=4).map(|handle| book.insert(who("s", "c"), handle, 1).expect("room").0).collect();
    keys.into_iter().for_each(|key| book.remove(key));
    assert_eq!(book.farewells.forgotten, 2);
    assert_eq!(book.next_job(), leave(&[1, 2]));
}

#[test]
fn more_registrations_than_fit_are_refused() {
    let mut book = Book::new(1, 1);
    book.insert(who("s", "a"), 1, 1).expect("room");
    let error = book.insert(who("s", "b"), 2, 1).expect_err("full");
    assert_eq!((error.kind(), error.code()), (ErrorKind::Exhausted, Code::ResourceExhausted));
    check(&book);
}

#[test]
fn closing_unregisters_all_and_ends_what_is_under_way() {
    let mut book = Book::new(100, 1);
    let (_, standing) = book.insert(who("s", "a"), 1, 1).expect("room");
    let under_way = book.insert(who("s", "b"), 2, 1).expect("room").0;
    let dropped_later = book.insert(who("s", "c"), 3, 1).expect("room").0;
    book.beat(under_way, 100);
    let job = book.next_job().expect("a heartbeat is due");
    book.beat(dropped_later, 100);
    book.close();
    book.remove(dropped_later);
    assert_eq!(*standing.borrow(), Standing::Closed);
    assert_eq!(book.insert(who("s", "d"), 4, 1).map(|_| ()).expect_err("closed").kind(), ErrorKind::Closed);
    assert_eq!(book.next_job(), leave(&[1, 2, 3]));
    assert!(!book.finished(job, timeout()));
    assert_eq!(book.next_job(), None);
    assert!(book.is_done());
    assert_eq!(book.len(), 0);
    check(&book);
}
