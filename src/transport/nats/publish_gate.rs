//! Which subjects the server refuses messages for, and when to try one of them again.
//!
//! A server says so for each message and never that it has changed its mind. So what it has refused is held back here, but
//! for a message now and then that is sent to find out. If that one is not refused, the permissions have changed, and all
//! is tried again: whatever is still refused is told at its next message.
//!
//! It sends nothing and reads no clock.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::transport::{DENIAL_FORGOTTEN_AFTER, Denied, MAX_DENIED_SUBJECTS, Operation};

/// The first and the longest pause before a message for a refused subject is sent to find out; each is twice the one before.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// How many messages a second are sent to find out, for all subjects together: the server writes a line for each that it
/// refuses.
const PROBES_A_SECOND: usize = 16;

/// What to do with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// Nothing is known against it.
    Open,
    /// Its subject was refused; it is sent to find out. [`PublishGate::probe_sent`] is called then.
    Probe,
    /// Its subject was refused.
    Shut,
}

/// A message that was sent to find out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Probe {
    subject: String,
    /// How often the server had refused the subject before.
    refusals: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct PublishGate {
    denied: Arc<watch::Sender<Denied>>,
    /// Whether anything is refused, so that a message costs a look at this alone as long as nothing is.
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Invariant: has the same subjects as [`Denied::publish`].
    refused: HashMap<String, Refused>,
    probes: Vec<Probe>,
    /// The second that is under way and how many probes it has had.
    second: Option<(Instant, usize)>,
}

#[derive(Debug)]
struct Refused {
    refusals: u64,
    /// When somebody last had a message for it.
    wanted: Instant,
    probe_at: Instant,
    pause: Duration,
}

impl State {
    fn may_probe(&mut self, now: Instant) -> bool {
        match &mut self.second {
            Some((begun, probes)) if now.duration_since(*begun) < Duration::from_secs(1) => {
                *probes += 1;
                *probes <= PROBES_A_SECOND
            }
            other => {
                *other = Some((now, 1));
                true
            }
        }
    }
}

impl State {
    /// Makes room: a quarter goes, so that a flood of subjects is not walked for each of them. Who publishes all the
    /// time is among the others, whatever strangers ask for answers on; `newest` stays.
    fn forget_longest_unwanted(&mut self, newest: &str) {
        let mut wanted: Vec<Instant> = self.refused.values().map(|refused| refused.wanted).collect();
        let quarter = wanted.len() / 4;
        let last_to_go = *wanted.select_nth_unstable(quarter).1;
        let mut may_go = quarter + 1;
        self.refused.retain(|subject, refused| {
            let stays = may_go == 0 || refused.wanted > last_to_go || subject == newest;
            may_go -= usize::from(!stays);
            stays
        });
    }
}

impl PublishGate {
    /// Nothing is refused. What will be is told in `denied`.
    pub(super) fn new(denied: Arc<watch::Sender<Denied>>) -> Self {
        Self { denied, any: AtomicBool::new(false), state: Mutex::default() }
    }

    /// What to do with a message for `subject`. As long as nothing is refused, the time is not asked for.
    pub(super) fn check(&self, subject: &str, now: impl FnOnce() -> Instant) -> Gate {
        if !self.any.load(Ordering::Acquire) {
            return Gate::Open;
        }
        let mut state = self.lock();
        let Some(refused) = state.refused.get_mut(subject) else { return Gate::Open };
        let now = now();
        refused.wanted = now;
        if now >= refused.probe_at && state.may_probe(now) {
            return Gate::Probe;
        }
        drop(state);
        // Nobody needs to be woken for it.
        self.denied.send_if_modified(|denied| {
            denied.refused += 1;
            false
        });
        Gate::Shut
    }

    /// A message for `subject` went to the server in spite of its refusal.
    pub(super) fn probe_sent(&self, subject: &str, now: Instant) {
        let mut state = self.lock();
        let Some(refused) = state.refused.get_mut(subject) else { return };
        refused.probe_at = now + refused.pause;
        refused.pause = (2 * refused.pause).min(LONGEST_PAUSE);
        let probe = Probe { subject: subject.to_owned(), refusals: refused.refusals };
        state.probes.push(probe);
    }

    /// The server has refused a message for `subject`. True if it had not before.
    pub(super) fn refuse(&self, subject: &str, now: Instant) -> bool {
        let mut state = self.lock();
        let new = Refused { refusals: 0, wanted: now, probe_at: now + SHORTEST_PAUSE, pause: 2 * SHORTEST_PAUSE };
        let refused = state.refused.entry(subject.to_owned()).or_insert(new);
        refused.refusals += 1;
        let is_new = refused.refusals == 1;
        self.any.store(true, Ordering::Release);
        // Under the lock, so that both tables change alike.
        self.denied.send_if_modified(|denied| {
            denied.refused += 1;
            if is_new {
                denied.publish.insert(subject.to_owned());
                if denied.publish.len() > MAX_DENIED_SUBJECTS {
                    state.forget_longest_unwanted(subject);
                    denied.publish.retain(|subject| state.refused.contains_key(subject));
                    denied.missed += 1;
                }
            }
            is_new
        });
        is_new
    }

    /// What was sent to find out, since the last call.
    pub(super) fn take_probes(&self) -> Vec<Probe> {
        if self.any.load(Ordering::Acquire) { std::mem::take(&mut self.lock().probes) } else { Vec::new() }
    }

    /// All that the server has to say of `probes` is known. True if it took one of them: then nothing is held back any more.
    pub(super) fn judge(&self, probes: &[Probe]) -> bool {
        let state = self.lock();
        let is_taken =
            |probe: &Probe| state.refused.get(&probe.subject).is_some_and(|refused| refused.refusals == probe.refusals);
        let taken = probes.iter().any(is_taken);
        drop(state);
        if taken {
            self.open();
        }
        taken
    }

    /// Nothing is refused: what was said is out of date.
    pub(super) fn open(&self) {
        let mut state = self.lock();
        state.refused.clear();
        state.probes.clear();
        self.any.store(false, Ordering::Release);
        self.denied.send_if_modified(|denied| {
            let inbox = denied.inbox.take_if(|denial| denial.operation == Operation::Publish);
            let forgotten = !std::mem::take(&mut denied.publish).is_empty();
            denied.missed += u64::from(forgotten);
            forgotten || inbox.is_some()
        });
    }

    /// Forgets what nobody has wanted to publish to for [`DENIAL_FORGOTTEN_AFTER`].
    pub(super) fn forget(&self, now: Instant) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.lock();
        let before = state.refused.len();
        state.refused.retain(|_, refused| now.duration_since(refused.wanted) < DENIAL_FORGOTTEN_AFTER);
        if state.refused.len() < before {
            self.any.store(!state.refused.is_empty(), Ordering::Release);
            self.denied.send_modify(|denied| denied.publish.retain(|subject| state.refused.contains_key(subject)));
        }
    }

    /// What each critical section leaves is whole enough: at the worst a refused subject is learnt of again.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        gate: PublishGate,
        denied: watch::Receiver<Denied>,
        begun: Instant,
    }

    impl World {
        fn new() -> Self {
            let denied = Arc::new(watch::Sender::default());
            Self { denied: denied.subscribe(), gate: PublishGate::new(denied), begun: Instant::now() }
        }

        fn at(&self, ms: u64) -> Instant {
            self.begun + Duration::from_millis(ms)
        }

        /// A message for `subject`, sent if it may be.
        fn publish(&self, subject: &str, ms: u64) -> Gate {
            let gate = self.gate.check(subject, || self.at(ms));
            if gate == Gate::Probe {
                self.gate.probe_sent(subject, self.at(ms));
            }
            gate
        }

        fn refused(&self) -> Vec<String> {
            let told: Vec<String> = self.denied.borrow().publish.iter().cloned().collect();
            let mut known: Vec<String> = self.gate.lock().refused.keys().cloned().collect();
            known.sort();
            assert_eq!(told, known, "both tables");
            told
        }
    }

    #[test]
    fn a_refused_subject_is_held_back_but_for_a_message_now_and_then() {
        let world = World::new();
        assert_eq!(world.publish("a", 0), Gate::Open);
        assert!(world.gate.refuse("a", world.at(1)));
        let sent: Vec<u64> = (1..20_000).step_by(10).filter(|ms| world.publish("a", *ms) == Gate::Probe).collect();
        assert_eq!(sent, [1_001, 3_001, 7_001, 15_001]);
        assert_eq!(world.publish("b", 20_000), Gate::Open, "others are not concerned");
        assert_eq!(world.refused(), ["a"]);
        assert_eq!(world.denied.borrow().refused, 1 + 2_000 - 4);
    }

    #[test]
    fn when_the_server_takes_one_all_are_tried_again() {
        let mut world = World::new();
        for subject in ["a", "b", "c"] {
            world.gate.refuse(subject, world.at(0));
        }
        assert_eq!(world.publish("b", 1_000), Gate::Probe);
        let probes = world.gate.take_probes();
        world.gate.refuse("b", world.at(1_001));
        assert!(!world.gate.judge(&probes), "it was refused again");
        assert_eq!(world.refused(), ["a", "b", "c"]);

        assert_eq!(world.publish("a", 2_000), Gate::Probe);
        let probes = world.gate.take_probes();
        assert_eq!(probes.len(), 1);
        world.denied.mark_unchanged();
        assert!(world.gate.judge(&probes));
        assert!(world.denied.has_changed().unwrap());
        assert_eq!(world.refused(), Vec::<String>::new());
        for subject in ["a", "b", "c"] {
            assert_eq!(world.publish(subject, 2_001), Gate::Open);
        }
    }

    #[test]
    fn a_probe_from_before_a_new_connection_says_nothing() {
        let world = World::new();
        world.gate.refuse("a", world.at(0));
        assert_eq!(world.publish("a", 1_000), Gate::Probe);
        let probes = world.gate.take_probes();
        world.gate.open();
        assert!(!world.gate.judge(&probes));
    }

    #[test]
    fn of_many_refused_subjects_a_few_a_second_are_tried() {
        let world = World::new();
        let subjects: Vec<String> = (0..1_000).map(|number| format!("s.{number:04}")).collect();
        subjects.iter().for_each(|subject| _ = world.gate.refuse(subject, world.at(0)));
        for second in 1..4 {
            let probes =
                subjects.iter().filter(|subject| world.publish(subject, second * 1_000) == Gate::Probe).count();
            assert_eq!(probes, PROBES_A_SECOND);
        }
    }

    #[test]
    fn memory_is_bounded_and_what_nobody_wants_is_forgotten() {
        let world = World::new();
        for number in 0..MAX_DENIED_SUBJECTS + 100 {
            world.gate.refuse(&format!("s.{number:06}"), world.at(0));
        }
        let remembered = world.refused();
        assert!((MAX_DENIED_SUBJECTS / 2..=MAX_DENIED_SUBJECTS).contains(&remembered.len()), "{}", remembered.len());
        assert_eq!(world.denied.borrow().missed, 1, "what was forgotten may still be refused");
        let kept = &remembered[0];
        assert_eq!(world.publish(kept, 30_000), Gate::Probe);

        world.gate.forget(world.at(59_999));
        assert_eq!(world.refused(), remembered);
        world.gate.forget(world.at(60_000));
        assert_eq!(world.refused(), std::slice::from_ref(kept));
        world.gate.forget(world.at(90_000));
        assert_eq!(world.publish(kept, 90_000), Gate::Open);
    }

    #[test]
    fn a_flood_of_other_subjects_does_not_make_a_used_one_forgotten() {
        let world = World::new();
        world.gate.refuse("stream.a.updates", world.at(0));
        for number in 0..3 * MAX_DENIED_SUBJECTS as u64 {
            world.gate.refuse(&format!("z.{number:06}"), world.at(number));
            if number % 100 == 0 {
                world.publish("stream.a.updates", number);
            }
        }
        assert!(world.refused().contains(&"stream.a.updates".to_owned()));
    }

    #[test]
    fn who_is_tried_again_with_all_others_is_known_to_be_in_doubt() {
        let world = World::new();
        world.gate.open();
        assert_eq!(world.denied.borrow().missed, 0, "nothing was refused");
        world.gate.refuse("a", world.at(0));
        world.gate.open();
        assert_eq!(world.denied.borrow().missed, 1);
    }
}
