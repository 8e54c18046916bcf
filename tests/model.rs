//! A naive model beside the engine: random runs of everything that can happen, and after every step both must have said
//! the same, answered the same, and count the same.
//!
//! A long run, and a failed one again (what it prints says so too):
//!
//! ```text
//! PROPTEST_CASES=1000000 cargo test --release --test model -- --nocapture
//! PROPTEST_RNG_SEED=… PROPTEST_CASES=… cargo test --release --test model
//! ```
//!
//! A failure is reduced to the shortest run that fails. Its seed is added to `proptest-regressions/model.txt`, which is
//! run first from then on. A seed is worth something only until a strategy in `steps.rs` changes, so copy the run that
//! is printed into a test with a sentence for a name, at the end of this file: it is Rust, but for a few `vec!`.
//!
//! | file | what it is |
//! |---|---|
//! | `model/steps.rs` | what can happen |
//! | `model/told.rs` | what is said, in the words of both |
//! | `model/reference.rs` | the model: what the contract says of a whole engine |
//! | `model/audience.rs`, `model/stream.rs`, `model/head.rs` | the same of who watches, and of one stream |
//! | `model/bytes.rs` | what is kept, and the limits on it |
//! | `model/subject.rs` | the engine, in the model's words |
//! | this one | what must hold after every step: add to [`invariants`] |

use std::{
    cell::Cell,
    collections::BTreeSet,
    hash::{BuildHasher as _, RandomState},
    panic,
    time::Instant,
};

use orchestrator_service::engine::{Cause, Mode, Tick, WhenEmpty};
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, FileFailurePersistence, RngSeed, TestError, TestRunner},
};
use proptest_state_machine::{ReferenceStateMachine as _, StateMachineTest};

use bytes::ByteLimits;
use reference::Model;
use steps::{Action, Many, Plan, PlanScene, STREAMS, Say, Setup, Span, Step, Who};
use subject::Subject;
use told::{Answer, Fact, Refusal};

#[path = "model/audience.rs"]
mod audience;
#[path = "model/bytes.rs"]
mod bytes;
#[path = "model/head.rs"]
mod head;
#[path = "model/reference.rs"]
mod reference;
#[path = "model/steps.rs"]
mod steps;
#[path = "model/stream.rs"]
mod stream;
#[path = "model/subject.rs"]
mod subject;
#[path = "model/told.rs"]
mod told;

/// What must hold after every step, besides that both said and answered the same. This is the place for another one.
fn invariants(model: &Model, subject: &mut Subject) {
    subject.engine.check();
    assert_eq!(
        subject::without_bytes(subject.engine.counts()),
        model.counts(),
        "the engine's counts are left, the model's right"
    );
    let (configs, (least, most)) = (subject.engine.counts().config_bytes, model.config_bytes());
    assert!(
        (least..=most).contains(&configs),
        "the engine counts {configs} bytes of streams, the model {least} to {most}"
    );
    let (clients, (least, most)) = (subject.engine.counts().client_bytes, model.client_bytes());
    assert!(
        (least..=most).contains(&clients),
        "the engine counts {clients} bytes of clients, the model {least} to {most}"
    );
    for stream in STREAMS {
        let counts = model.streams.get(stream).map(stream::Stream::counts);
        assert_eq!(subject.counts(stream), counts, "the engine's counts of {stream} are left, the model's right");
    }
    if !model.last.is_up_to_date {
        return;
    }
    let (deadline, due) = (subject.engine.next_deadline(), model.dues().into_iter().min().map(Tick));
    assert!(
        due.is_none_or(|due| deadline.is_some_and(|deadline| deadline <= due)),
        "{deadline:?} is later than {due:?}"
    );
    assert_eq!(subject.engine.is_empty(), model.is_empty(), "whether nothing is left");
    if model.setup.curious {
        states(model, subject);
    }
}

/// Every stream is where the model says. Asking brings streams to the present, so this is not done in every run.
fn states(model: &Model, subject: &mut Subject) {
    for stream in STREAMS {
        let state = model.streams.get(stream).map(|stream| stream.fact(model.now, Cause::Snapshot));
        assert_eq!(subject.state(stream), state, "the engine's state of {stream} is left, the model's right");
    }
    assert!(subject.is_silent(), "asking for the state of a stream that is up to date says nothing to others");
}

impl StateMachineTest for Subject {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(model: &Model) -> Self {
        Self::new(model)
    }

    fn apply(mut subject: Self, model: &Model, step: Step) -> Self {
        subject.step(model, &step);
        invariants(model, &mut subject);
        subject
    }

    fn teardown(mut subject: Self, model: Model) {
        if model.last.is_up_to_date {
            states(&model, &mut subject);
        }
    }
}

/// How many runs there are if nobody says: some seconds of them. A few hundred find only what is everywhere.
const CASES: u32 = 10_000;

/// Fewest and most steps of a run.
const STEPS: std::ops::RangeInclusive<usize> = 1..=60;

#[test]
fn the_engine_says_what_the_model_says_in_any_run() {
    let mut config = Config::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => RandomState::new().hash_one(config.cases),
    };
    config.rng_seed = RngSeed::Fixed(seed);
    config.source_file = Some(file!());
    let found = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/model.txt");
    config.failure_persistence = Some(Box::new(FileFailurePersistence::Direct(found)));
    config.max_shrink_iters = 200_000;
    let cases = config.cases;
    let again = format!("PROPTEST_RNG_SEED={seed} PROPTEST_CASES={cases} cargo test --release --test model");
    println!("{again}");

    let begun = Instant::now();
    let failure = quietly(|| {
        let mut runner = TestRunner::new(config.clone());
        let result = runner.run(&Model::sequential_strategy(STEPS), |(model, steps, seen)| {
            Subject::test_sequential(config.clone(), model, steps, seen);
            Ok(())
        });
        result.err().map(|error| match error {
            TestError::Fail(reason, (model, steps, _)) => {
                format!("{reason}\nThe shortest run that fails:\nreplay({model:?}, &{steps:?});")
            }
            error @ TestError::Abort(_) => error.to_string(),
        })
    });
    if let Some(failure) = failure {
        panic!("{failure}\nTo find it again:\n{again}\n");
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{cases} cases in {seconds:.1} s, {:.0} a second", f64::from(cases) / seconds);
}

/// Runs without the message of every panic: there are thousands on the way to the shortest run, and the last one's is in
/// the error.
fn quietly<T>(run: impl FnOnce() -> T) -> T {
    thread_local! {
        static QUIET: Cell<bool> = const { Cell::new(false) };
    }
    let loud = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !QUIET.get() {
            loud(info);
        }
    }));
    QUIET.set(true);
    let result = run();
    QUIET.set(false);
    result
}

// --- that the search finds something to look at -----------------------------------------------------------------------

#[test]
fn random_runs_meet_every_update_every_answer_and_every_refusal() {
    let wanted = "
        Tick-Running Scene-Running Snapshot-Idle Snapshot-Running Snapshot-Paused Snapshot-Stopped Snapshot-Finished
        Command-Idle Command-Running Command-Paused Command-Stopped Command-Finished
        Lifecycle-Idle Lifecycle-Running Lifecycle-Finished Lifecycle-Unknown later-pass adjusted stale several-sessions
        hold-Running-begins hold-Running-goes-on hold-Paused-goes-on hold-Idle-goes-on hold-Stopped-goes-on waits
        Created Started Stopped Removed StaleRemoved
        State Registered RegisteredBatch Unregistered Heard Batch Stats Streams Noted
        Invalid StreamNotFound AlreadyExists InvalidState SceneNotFound UnknownSubscriber RequestIdTaken
        Conflict-Revision Conflict-NoEpoch Conflict-Scene
        Exhausted-streams Exhausted-subscribers Exhausted-sessions
        Exhausted-client-Register Invalid-plan
        Exhausted-configurations-Start Exhausted-configurations-Reconfigure Exhausted-configurations-AdjustScene
        Exhausted-configurations-Status";
    let mut met = BTreeSet::new();
    let config = Config { rng_seed: RngSeed::Fixed(0), failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    for _ in 0..1_000 {
        let tree = Model::sequential_strategy(STEPS).new_tree(&mut runner).expect("no step is refused");
        let (mut model, steps, _) = tree.current();
        for step in steps {
            model.step(&step);
            met.extend(features(&model));
        }
    }
    let missing: Vec<&str> = wanted.split_whitespace().filter(|wanted| !met.contains(*wanted)).collect();
    assert!(missing.is_empty(), "never met: {missing:?}");
}

/// What a step came to, in words.
fn features(model: &Model) -> Vec<String> {
    let kind = |debug: String| debug.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned();
    let mut met = Vec::new();
    let mut facts: Vec<&Fact> = model.last.told.facts.iter().collect();
    match &model.last.outcome {
        Some(Ok(answer)) => {
            met.push(kind(format!("{answer:?}")));
            if let Answer::State(state) | Answer::Registered { state, .. } = answer {
                facts.push(state);
            }
        }
        Some(Err(Refusal::Conflict { expected, .. })) => {
            met.push(format!("Conflict-{}", kind(format!("{expected:?}"))))
        }
        Some(Err(Refusal::Exhausted { what, .. })) => {
            met.push(format!("Exhausted-{}", kind((*what).to_owned())));
            let asked = match &model.last.said {
                Some(Say::Command { command, .. }) => format!("{command:?}"),
                said => said.as_ref().map_or(String::new(), |said| format!("{said:?}")),
            };
            if let Some(what) = what.strip_prefix("bytes of ") {
                met.push(format!("Exhausted-{}-{}", kind(what.to_owned()), kind(asked)));
            }
        }
        Some(Err(refusal)) => met.push(kind(format!("{refusal:?}"))),
        None => {}
    }
    if let Some(Say::Command { command: Action::Start(Some(plan)) | Action::Reconfigure(plan), .. }) = &model.last.said
        && model.setup.plans[usize::from(*plan)].bytes() > model.setup.bytes.config
    {
        met.push("Invalid-plan".to_owned());
    }
    for fact in facts {
        met.push(format!("{:?}-{:?}", fact.cause, fact.mode));
        if fact.loops > 1 {
            met.push("later-pass".to_owned());
        }
        if let Some(overtime) = fact.overtime {
            met.push(format!("hold-{:?}-{}", fact.mode, if overtime == 0 { "begins" } else { "goes-on" }));
        }
        if fact.starts.is_some() {
            met.push("waits".to_owned());
        }
        if model.streams.get(fact.stream).is_some_and(|stream| {
            let plan = stream.plan.scenes.iter().map(|scene| (scene.name, scene.ms));
            !plan.eq(fact.scenes.iter().copied())
        }) {
            met.push("adjusted".to_owned());
        }
    }
    met.extend(model.last.told.happenings.iter().map(|(_, happening)| kind(format!("{happening:?}"))));
    let counts = model.counts();
    if counts.stale > 0 {
        met.push("stale".to_owned());
    }
    if counts.total > counts.unique {
        met.push("several-sessions".to_owned());
    }
    met
}

// --- runs worth keeping -----------------------------------------------------------------------------------------------

/// One run, as a failure prints it. Returns the model at its end.
fn replay(setup: Setup, steps: &[Step]) -> Model {
    let mut model = Model::new(setup);
    let mut subject = Subject::init_test(&model);
    for step in steps {
        model.step(step);
        subject = Subject::apply(subject, &model, step.clone());
    }
    Subject::teardown(subject, model.clone());
    model
}

fn setup(plan: Plan, stale_after: u64) -> Setup {
    Setup {
        plans: vec![plan],
        stale_after,
        max_remembered: 0,
        budget: 1,
        bytes: ByteLimits::AMPLE,
        curious: false,
        reloads: false,
    }
}

#[test]
fn a_stream_woken_after_end_and_idle_timeout_is_just_gone() {
    let plan = Plan {
        scenes: vec![PlanScene::plain("Intro", 1_000)],
        tick: 100,
        looping: false,
        when_empty: WhenEmpty::RunOn,
        grace: 0,
        idle: 2_000,
        no_ticks: false,
        starts: None,
    };
    let setup = setup(plan, 90_000);
    let who = Who { client: 0, session: 0, from: 0 };
    let start = Say::Command { stream: 0, request: None, expects: None, command: Action::Start(Some(0)) };
    let model = replay(
        setup,
        &[
            Step::Say(start),
            Step::Say(Say::Register { stream: 0, who, answered: true }),
            Step::Say(Say::Unregister { stream: 0, who }),
            Step::Wait(Span::Ms(5_000)),
        ],
    );
    let said: Vec<_> = model.last.told.facts.iter().map(|fact| (fact.cause, fact.mode, fact.position)).collect();
    assert_eq!(said, [(Cause::Lifecycle, Mode::Unknown, 1_000)]);
}

#[test]
fn leaving_with_a_stale_session_behind_ends_an_empty_grace() {
    let plan = Plan {
        scenes: vec![PlanScene::plain("Intro", 60_000)],
        tick: 60_000,
        looping: false,
        when_empty: WhenEmpty::Restart,
        grace: 0,
        idle: 60_000,
        no_ticks: false,
        starts: None,
    };
    let setup = setup(plan, 5_000);
    let session = |session| Who { client: 0, session, from: 0 };
    let start = Say::Command { stream: 0, request: None, expects: None, command: Action::Start(Some(0)) };
    let model = replay(
        setup,
        &[
            Step::Say(start),
            Step::Say(Say::Register { stream: 0, who: session(0), answered: true }),
            Step::Say(Say::Register { stream: 0, who: session(1), answered: true }),
            Step::Wait(Span::Ms(1_000)),
            Step::Say(Say::Heartbeat { stream: 0, who: session(0) }),
            Step::Wait(Span::Ms(4_000)),
            // The first session is the last one watching; the second, which is stale, meets an empty stream.
            Step::Rush(Say::UnregisterBatch(Many { stream: Some(0), clients: vec![0], handles: vec![] })),
        ],
    );
    let said: Vec<_> = model.last.told.facts.iter().map(|fact| (fact.cause, fact.mode, fact.position)).collect();
    assert_eq!(said, [(Cause::Lifecycle, Mode::Idle, 0)]);
}
