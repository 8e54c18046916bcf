//! The races of a registration's life, each as a sequence of calls.

use futures_util::FutureExt as _;

use super::*;
use crate::{
    client::batch::{MAX_HANDLES, MAX_SUBSCRIBERS},
    wire::proto::{self, Code, Reply},
};

mod leaving;

/// What a broker takes that is in nobody's way.
const PLENTY: usize = 1 << 20;

type Watcher = watch::Receiver<Standing>;

fn name(stream: &str, client: &str) -> Name {
    Name { stream_id: stream.into(), client_id: client.into(), session: 7 }
}

fn table() -> RegistrationTable {
    RegistrationTable::new(100, 100)
}

impl RegistrationTable {
    fn next(&mut self) -> Option<Job> {
        self.next_job(PLENTY)
    }

    /// Begins an attempt that may begin now.
    fn attempt(&mut self, stream: &str, client: &str) -> usize {
        match self.begin(name(stream, client), None).expect("room") {
            Begun::Now(key) => key,
            Begun::Later(_) => panic!("something is in flight for {stream} {client}"),
        }
    }

    fn register(&mut self, stream: &str, client: &str, handle: u64, epoch: u64) -> (usize, Watcher) {
        let key = self.attempt(stream, client);
        (key, self.end(key, Outcome::Registered { handle, epoch }).expect("registered"))
    }

    /// Registers a client with `s` in epoch 1.
    fn insert(&mut self, client: &str, handle: u64) -> (usize, Watcher) {
        self.register("s", client, handle, 1)
    }

    /// Beats the only slot and returns the job that is due.
    fn beat_all(&mut self) -> Job {
        self.beat(0, 1);
        self.next().expect("a heartbeat is due")
    }

    /// Takes the next job, which must be this, and gives it this answer.
    fn next_is(&mut self, expected: Job, answer: Result<Reply, ClientError>) -> bool {
        let job = self.next();
        assert_eq!(job.as_ref(), Some(&expected));
        self.finished(expected, answer)
    }
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

fn too_large() -> Result<Reply, ClientError> {
    Err(ClientError::too_large(27_007, 16_384))
}

fn confirm(key: usize, client: &str) -> Job {
    Job::Confirm { key, name: Arc::new(name("s", client)) }
}

fn unregister(handles: &[u64]) -> Job {
    Job::Unregister { handles: handles.to_vec(), tries: 0 }
}

fn by_name(client: &str) -> Job {
    Job::UnregisterByName { name: Arc::new(name("s", client)), tries: 0, connection: 0 }
}

fn register(clients: &[(usize, &str)]) -> Job {
    Job::Register {
        stream_id: "s".into(),
        keys: clients.iter().map(|&(key, _)| key).collect(),
        subscribers: clients
            .iter()
            .map(|&(_, client)| proto::Subscriber { client_id: client.into(), source_addr: String::new(), session: 7 })
            .collect(),
    }
}

/// What must hold between any two calls.
fn check(table: &RegistrationTable) {
    let queued = |key: usize| {
        let registers = table.registers.values().flatten().filter(|&&other| other == key).count();
        let count = |queue: &VecDeque<usize>| queue.iter().filter(|&&other| other == key).count();
        (count(&table.beats), count(&table.confirms), registers)
    };
    let mut streams: HashMap<_, BTreeSet<usize>> = HashMap::new();
    for (key, entry) in &table.entries {
        assert_eq!(table.names.get(&entry.name), Some(&key));
        assert!(entry.guards > 0 || entry.in_flight != InFlight::Nothing, "{key} is gone and nobody removes it");
        assert!(!entry.superseded || entry.handle == 0, "{key} has no say");
        let (beats, confirms, registers) = queued(key);
        assert!(beats + confirms + registers <= 1, "{key} is queued more than once");
        assert!(beats == 0 || entry.in_flight == InFlight::Beat);
        assert!(confirms == 0 || entry.in_flight == InFlight::Confirm);
        assert!(registers == 0 || entry.in_flight == InFlight::Register);
        assert!(entry.idle.is_none() || entry.in_flight != InFlight::Nothing, "{key} is waited for in vain");
        streams.entry(Arc::clone(&entry.name.stream_id)).or_default().insert(key);
        assert!(entry.epoch <= table.streams[&entry.name.stream_id].epoch, "{key} has an epoch that nobody has seen");
    }
    assert_eq!(table.names.len(), table.entries.len());
    let kept: HashMap<_, _> =
        table.streams.iter().map(|(stream, watched)| (Arc::clone(stream), watched.keys.clone())).collect();
    assert_eq!(streams, kept);
}

/// Nothing is left of whoever came and went.
fn check_empty(table: &mut RegistrationTable) {
    check(table);
    assert_eq!((table.next(), table.len(), table.unregisters.len()), (None, 0, 0));
    assert!(table.names.is_empty() && table.streams.is_empty() && table.risen.is_empty());
}

#[test]
fn a_registration_beats_once_in_its_slot() {
    let mut table = table();
    for handle in 1..=5 {
        table.insert(&format!("c{handle}"), handle);
    }
    let mut beats = Vec::new();
    for slot in 0..3 {
        table.beat(slot, 3);
        table.beat(slot, 3);
        let Some(Job::Beat(batch)) = table.next() else { panic!("slot {slot} has nothing to do") };
        assert_eq!(table.next(), None);
        assert!(table.finished(Job::Beat(batch.clone()), ok(&[])));
        beats.push(batch);
    }
    assert_eq!(beats, [vec![(0, 1), (3, 4)], vec![(1, 2), (4, 5)], vec![(2, 3)]]);
    check(&table);
}

#[test]
fn a_message_has_at_most_1000_handles_or_500_of_one_stream() {
    let mut table = RegistrationTable::new(5_000, 100);
    for handle in 1..=2_500 {
        table.register(if handle % 4 == 0 { "b" } else { "a" }, &format!("c{handle}"), handle, 1);
    }
    table.beat(0, 1);
    let sizes = |table: &mut RegistrationTable| {
        let jobs = Vec::from_iter(std::iter::from_fn(|| table.next()));
        let sizes = jobs.iter().map(Job::entries).collect::<Vec<_>>();
        for job in jobs {
            let answer = match &job {
                Job::Register { keys, .. } => ok(&keys.iter().map(|key| 10_000 + *key as u64).collect::<Vec<_>>()),
                _ => ok(&[]),
            };
            assert!(table.finished(job, answer));
        }
        sizes
    };
    assert_eq!(sizes(&mut table), [MAX_HANDLES, MAX_HANDLES, 500]);
    table.register_all_again();
    assert_eq!(sizes(&mut table), [MAX_SUBSCRIBERS, MAX_SUBSCRIBERS, MAX_SUBSCRIBERS, 375, MAX_SUBSCRIBERS, 125]);
    check(&table);
}

#[test]
fn batches_are_cut_to_what_the_broker_takes_now() {
    let mut table = RegistrationTable::new(5_000, 5_000);
    let keys: Vec<usize> = (1..=1_000).map(|handle| table.insert(&format!("{handle:036}"), handle).0).collect();
    table.register_all_again();
    let (mut registered, mut bytes) = (0, PLENTY);
    while let Some(job) = table.next_job(bytes) {
        let Job::Register { keys, subscribers, .. } = &job else { panic!("{job:?}") };
        let size: usize = subscribers.iter().map(|one| prost::Message::encoded_len(one) + 2).sum();
        assert!(size < bytes && 8 * keys.len() < bytes, "{size} of {bytes}");
        registered += keys.len();
        let handles: Vec<u64> = keys.iter().map(|key| 10_000 + *key as u64).collect();
        assert!(table.finished(job, ok(&handles)));
        bytes = 1_024;
    }
    assert_eq!(registered, 1_000);
    table.beat(0, 1);
    keys.into_iter().skip(500).for_each(|key| table.release(key));
    let mut handles = 0;
    while let Some(job) = table.next_job(1_024) {
        assert!(8 * job.entries() < 1_024, "{} handles", job.entries());
        handles += job.entries();
        assert!(table.finished(job, ok(&[])));
    }
    assert_eq!(handles, 1_000, "beats and leaves");
    check(&table);
}

#[test]
fn what_was_too_large_is_cut_until_it_fits_and_nothing_is_lost() {
    let mut table = table();
    let mut watchers = Vec::new();
    for handle in 1..=40 {
        watchers.push(table.insert(&format!("c{handle}"), handle).1);
    }
    table.register_all_again();
    let mut sizes = Vec::new();
    while let Some(job) = table.next() {
        let Job::Register { keys, .. } = &job else { panic!("{job:?}") };
        sizes.push(keys.len());
        let fits = keys.len() <= 10;
        let handles: Vec<u64> = keys.iter().map(|key| 100 + *key as u64).collect();
        // Whoever answers may find that the answer does not fit.
        let too_large = if keys.len() > 20 { too_large() } else { refused(Code::ResourceExhausted) };
        assert!(table.finished(job, if fits { ok(&handles) } else { too_large }), "there is nothing to wait for");
        check(&table);
    }
    assert_eq!(sizes, [40, 20, 10, 10, 10, 10]);
    assert!(watchers.iter().all(|watcher| *watcher.borrow() == Standing::Registered { round: 2 }));

    let Job::Beat(batch) = table.beat_all() else { panic!("no heartbeat") };
    assert_eq!(batch.len(), 40, "how many handles fit is another matter");
    assert!(table.finished(Job::Beat(batch), too_large()));
    let sizes = Vec::from_iter(std::iter::from_fn(|| table.next()).map(|job| job.entries()));
    assert_eq!(sizes, [20, 20]);
}

#[test]
fn leaves_that_are_too_large_are_cut_and_count_as_no_attempt() {
    let mut table = table();
    let keys: Vec<usize> = (1..=4).map(|handle| table.insert(&format!("c{handle}"), handle).0).collect();
    keys.into_iter().for_each(|key| table.release(key));
    assert!(table.next_is(unregister(&[1, 2, 3, 4]), too_large()));
    assert!(table.next_is(unregister(&[1, 2]), ok(&[])));
    assert!(table.next_is(unregister(&[3, 4]), ok(&[])));
    check_empty(&mut table);
}

#[test]
fn a_registration_that_fits_nowhere_is_told_and_tried_again_later() {
    let mut table = table();
    let (key, standing) = table.insert("a", 1);
    table.register_all_again();
    assert!(table.next_is(register(&[(key, "a")]), too_large()));
    assert_eq!(*standing.borrow(), Standing::Lost(Code::InvalidArgument));
    assert_eq!(table.next(), None, "not at once");
    assert_eq!(table.beat_all(), register(&[(key, "a")]));
}

#[test]
fn whoever_nobody_knows_by_handle_nor_by_name_is_registered_again() {
    let mut table = table();
    let (_, first) = table.insert("a", 1);
    let (key, second) = table.insert("b", 2);
    assert!(table.next().is_none());
    table.beat(0, 1);
    assert!(table.next_is(Job::Beat(vec![(0, 1), (key, 2)]), unknown(&[2])));
    assert!(table.next_is(confirm(key, "b"), refused(Code::UnknownSubscriber)));
    assert_eq!(*first.borrow(), Standing::Registered { round: 1 });
    assert_eq!(*second.borrow(), Standing::Lost(Code::UnknownSubscriber));
    assert!(table.next_is(register(&[(key, "b")]), ok(&[22])));
    assert_eq!(*second.borrow(), Standing::Registered { round: 2 });
    assert_eq!(table.beat_all(), Job::Beat(vec![(0, 1), (1, 22)]));
    check(&table);
}

#[test]
fn whoever_was_superseded_takes_nothing_and_leaves_silently() {
    let mut table = table();
    let (key, standing) = table.insert("a", 1);
    table.beat(0, 1);
    assert!(table.next_is(Job::Beat(vec![(key, 1)]), unknown(&[1])));
    assert!(table.next_is(confirm(key, "a"), ok(&[])));
    for _ in 0..3 {
        assert_eq!(table.next(), None, "nothing more before the next beat");
        assert_eq!(*standing.borrow(), Standing::Registered { round: 1 }, "the service knows it");
        check(&table);
        table.beat(0, 1);
        assert!(table.next_is(confirm(key, "a"), ok(&[])));
    }
    table.register_all_again();
    assert!(table.next_is(confirm(key, "a"), ok(&[])), "nor after an outage");
    table.release(key);
    check_empty(&mut table);
}

#[test]
fn whoever_outlives_the_other_holder_registers_again() {
    let mut table = table();
    let (key, standing) = table.insert("a", 1);
    table.beat(0, 1);
    assert!(table.next_is(Job::Beat(vec![(key, 1)]), unknown(&[1])));
    assert!(table.next_is(confirm(key, "a"), ok(&[])));
    table.beat(0, 1);
    assert!(table.next_is(confirm(key, "a"), refused(Code::UnknownSubscriber)));
    assert!(table.next_is(register(&[(key, "a")]), ok(&[3])));
    assert_eq!(*standing.borrow(), Standing::Registered { round: 2 });
    table.release(key);
    assert!(table.next_is(unregister(&[3]), ok(&[])));
    check_empty(&mut table);
}

#[test]
fn a_superseded_guard_that_is_refused_registers_again() {
    let mut table = table();
    let (key, standing) = table.insert("a", 1);
    table.beat(0, 1);
    assert!(table.next_is(Job::Beat(vec![(key, 1)]), unknown(&[1])));
    assert!(table.next_is(confirm(key, "a"), ok(&[])), "another holder has registered it");
    // A second guard's attempt may have superseded that, and the stream is gone by then.
    table.attempt("s", "a");
    table.end(key, Outcome::Unknown);
    assert!(table.next_is(register(&[(key, "a")]), refused(Code::StreamNotFound)));
    assert_eq!(*standing.borrow(), Standing::Lost(Code::StreamNotFound));
    table.beat(0, 1);
    assert!(table.next_is(register(&[(key, "a")]), ok(&[5])));
    assert_eq!(*standing.borrow(), Standing::Registered { round: 2 });
    check(&table);
}

#[test]
fn an_unanswered_question_by_name_is_repeated_until_the_guard_goes() {
    for failure in [timeout(), refused(Code::Unavailable)] {
        let mut table = table();
        let (key, _) = table.insert("a", 1);
        table.beat(0, 1);
        assert!(table.next_is(Job::Beat(vec![(key, 1)]), unknown(&[1])));
        assert!(!table.next_is(confirm(key, "a"), failure.clone()));
        assert!(!table.next_is(confirm(key, "a"), failure.clone()));
        table.release(key);
        check_empty(&mut table);
    }
}

#[test]
fn in_a_stream_created_anew_nobody_is_asked_for_by_name() {
    let mut table = table();
    let (key, _) = table.insert("a", 1);
    let job = table.beat_all();
    table.see("s", 2);
    assert!(table.finished(job, unknown(&[1])));
    assert_eq!(table.next(), Some(register(&[(key, "a")])));
}

#[test]
fn a_registration_that_was_refused_is_tried_again_on_its_next_beat() {
    let mut table = table();
    let (key, standing) = table.insert("a", 1);
    table.register_all_again();
    assert!(table.next_is(register(&[(key, "a")]), refused(Code::StreamNotFound)));
    assert_eq!(*standing.borrow(), Standing::Lost(Code::StreamNotFound));
    assert_eq!(table.next(), None, "not at once");
    table.beat(0, 1);
    assert!(table.next_is(register(&[(key, "a")]), ok(&[5])));
    assert_eq!(*standing.borrow(), Standing::Registered { round: 2 });
    check(&table);
}

#[test]
fn one_refused_in_a_batch_does_not_hold_up_the_others() {
    let mut table = table();
    let watchers: Vec<_> = (1..=2).map(|handle| table.insert(&format!("c{handle}"), handle).1).collect();
    table.register_all_again();
    let job = table.next().expect("a registration is due");
    let Job::Register { keys, .. } = &job else { panic!("{job:?}") };
    let handles = keys.iter().map(|&key| if key == 0 { 11 } else { 0 }).collect();
    let reply = Reply { code: Code::ResourceExhausted.into(), handles, ..Reply::default() };
    assert!(table.finished(job, Ok(reply)));
    assert_eq!(*watchers[0].borrow(), Standing::Registered { round: 2 });
    assert_eq!(*watchers[1].borrow(), Standing::Lost(Code::ResourceExhausted));
    check(&table);
}

#[test]
fn what_failed_as_a_whole_is_queued_again() {
    for failure in [timeout(), refused(Code::Unavailable)] {
        let mut table = table();
        let (key, _) = table.insert("a", 1);
        let job = table.beat_all();
        assert!(!table.finished(job, failure.clone()));
        assert!(table.next_is(Job::Beat(vec![(key, 1)]), ok(&[])));
        table.register_all_again();
        assert!(!table.next_is(register(&[(key, "a")]), failure));
        assert_eq!(table.next(), Some(register(&[(key, "a")])));
        check(&table);
    }
}

#[test]
fn a_reconnect_registers_again_after_whatever_is_in_flight() {
    let mut table = table();
    let key = table.attempt("s", "a");
    table.register_all_again();
    let _watcher = table.end(key, Outcome::Registered { handle: 1, epoch: 1 });
    assert!(table.next_is(register(&[(key, "a")]), ok(&[2])));
    let job = table.beat_all();
    table.register_all_again();
    assert_eq!(table.next(), None, "the key is under way");
    assert!(!table.finished(job, timeout()));
    let job = table.next().expect("a registration is due");
    assert_eq!(job, register(&[(key, "a")]));
    table.register_all_again();
    assert!(table.finished(job, ok(&[3])));
    assert!(table.next_is(register(&[(key, "a")]), ok(&[4])));
    assert_eq!(table.next(), None);
    check(&table);
}

/// Registers again what has risen; gives the keys of each request, all of which succeed under handles from 100 on.
fn risen(table: &mut RegistrationTable) -> Vec<Vec<usize>> {
    table.register_risen();
    let mut asked = Vec::new();
    while let Some(job) = table.next() {
        let Job::Register { keys, .. } = &job else { panic!("{job:?}") };
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        asked.push(sorted);
        let handles: Vec<u64> = keys.iter().map(|&key| 100 + key as u64).collect();
        assert!(table.finished(job, ok(&handles)));
        check(table);
    }
    asked
}

#[test]
fn a_higher_epoch_registers_its_streams_viewers_again_alone() {
    let mut table = table();
    for (stream, client, handle) in [("a", "x", 1), ("b", "x", 2), ("a", "y", 3)] {
        table.register(stream, client, handle, 5);
    }
    let _attempt = table.attempt("a", "z");
    for (stream, epoch) in [("a", 5), ("a", 4), ("nobody's", 9)] {
        table.see(stream, epoch);
        assert!(!table.has_risen(), "{stream} {epoch}");
    }
    table.see("a", 6);
    table.see("a", 6);
    assert!(table.has_risen());
    assert_eq!(table.next(), None, "not before its time");
    assert_eq!(risen(&mut table), [[0, 2]]);
    table.see("a", 6);
    assert!(!table.has_risen(), "they have it");
    assert_eq!(risen(&mut table), [[0; 0]; 0]);
}

#[test]
fn whoever_was_registered_in_the_higher_epoch_stays_as_it_is() {
    let mut table = table();
    table.register("s", "a", 1, 5);
    table.register("s", "b", 2, 5);
    table.see("s", 6);
    table.beat(0, 2);
    assert!(table.next_is(Job::Beat(vec![(0, 1)]), unknown(&[1])));
    assert!(table.next_is(register(&[(0, "a")]), ok(&[11])));
    table.register("s", "c", 3, 6);
    assert_eq!(risen(&mut table), [[1]]);
}

#[test]
fn the_answer_to_a_newcomer_tells_of_the_epoch_too() {
    let mut table = table();
    table.register("s", "a", 1, 5);
    table.register("s", "b", 2, 6);
    assert_eq!(risen(&mut table), [[0]], "the service has forgotten those before");
    table.register("s", "c", 3, 5);
    assert_eq!(risen(&mut table), [[2]], "and an answer from before");
}

#[test]
fn an_epoch_that_rises_during_a_registration_follows_it() {
    let mut table = table();
    let (key, _) = table.register("s", "a", 1, 5);
    table.register_all_again();
    let job = table.next().expect("a registration is due");
    table.see("s", 6);
    table.register_risen();
    assert_eq!(table.next(), None, "the key is under way");
    assert!(table.finished(job, ok(&[2])));
    let job = table.next().expect("another registration is due");
    table.see("s", 7);
    table.release(key);
    assert!(table.finished(job, ok(&[3])));
    assert!(table.next_is(unregister(&[2, 3]), ok(&[])));
    assert_eq!(risen(&mut table), [[0; 0]; 0], "whoever is gone is gone");
    check_empty(&mut table);
}

#[test]
fn more_registrations_than_fit_are_refused_attempts_included() {
    let mut table = RegistrationTable::new(1, 1);
    let key = table.attempt("s", "a");
    let full = |table: &mut RegistrationTable| {
        let error = table.begin(name("s", "b"), None).expect_err("full");
        assert_eq!((error.kind(), error.code()), (ErrorKind::Exhausted, Code::ResourceExhausted));
    };
    full(&mut table);
    let _watcher = table.end(key, Outcome::Registered { handle: 1, epoch: 1 });
    full(&mut table);
    table.insert("a", 2);
    check(&table);
}

#[test]
fn closing_unregisters_all_and_ends_what_is_under_way() {
    let mut table = RegistrationTable::new(100, 1);
    let (_, standing) = table.insert("a", 1);
    let (under_way, _) = table.insert("b", 2);
    let (dropped_later, _) = table.insert("c", 3);
    let attempt = table.attempt("s", "d");
    let Begun::Later(waiting) = table.begin(name("s", "d"), None).expect("room") else { panic!("both at once") };
    table.beat(under_way, 100);
    let job = table.next().expect("a heartbeat is due");
    table.beat(dropped_later, 100);
    table.close();
    table.release(dropped_later);
    assert_eq!(*standing.borrow(), Standing::Closed);
    assert_eq!(table.begin(name("s", "e"), None).map(|_| ()).expect_err("closed").kind(), ErrorKind::Closed);
    assert!(table.next_is(unregister(&[1, 2, 3]), ok(&[])) && !table.is_done());
    assert!(!table.finished(job, timeout()));
    assert!(!table.is_done(), "an attempt is under way");
    assert!(table.end(attempt, Outcome::Registered { handle: 4, epoch: 1 }).is_none(), "too late to be held");
    assert!(waiting.now_or_never().is_some(), "and whoever waited for it hears that it is closed");
    assert!(table.next_is(unregister(&[4]), ok(&[])));
    assert!(table.is_done());
    check_empty(&mut table);
}
