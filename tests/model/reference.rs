//! The reference: what the contract says of a whole engine, in plain maps and lists.
//!
//! It is slow and short on purpose. It computes each position from the stream's whole story, counts by counting, looks
//! at everything whenever time goes by, and shares no code with the engine.
//!
//! Where the contract is silent it does what the engine does:
//!
//! - **a stream is woken when its idle timeout is over**: it says that it is gone, and nothing of an end or a grace
//!   that came before; an end missed so is no completed pass.
//! - **Unregister, Heartbeat, GetStats meet such a stream**: they look before it is woken: the subscriber is unknown,
//!   or counted, not the stream missing.
//! - **when ticks come**: counted from when it began to play, or was reconfigured; commands do not move them, a scene
//!   on a tick takes its place.
//! - **scenes shorter than the least tick interval**: told no more often than that, the newest then; no tick in between
//!   tells of them, a snapshot may.
//! - **a snapshot that has to wait for its 50 ms**: any other update in between will do for it; if nobody is left, none
//!   is needed.
//! - **what is told with nobody watching**: what a command or the lifecycle changed.
//! - **Start, Stop, Pause, Resume that change nothing**: accepted, no update, same revision.
//! - **UpdateStreamStatus**: in any mode; stays through Reset and Start; counts only if whether it streams has changed.
//! - **holding**: a hold's beginning and its end by itself are told like a scene that begins; so far as the present
//!   scene is told, so is that it holds.
//! - **AdjustScene while holding**: longer: plays on for so much; shorter: nothing changes. To what has played: it
//!   holds at once.
//! - **Reconfigure while holding**: the same scene, a hold, and no longer than it was: it goes on holding; a hold that
//!   is over by now leads on.
//! - **the same scene of another configuration**: that of its id, or else its name, of several of a name the same one
//!   in a row, or the last.
//! - **`config_revision`**: of what changed the configuration or a length, and of what put the configured lengths back;
//!   a new pass does so without.
//! - **on schedule**: from the creation, or the Reconfigure that changes the instant, to a jump, Pause, Stop, Reset, or
//!   the end; AdjustScene and a status change nothing of it. Unwatched as under RUN_ON, and not removed; after it
//!   nobody has watched since then.
//! - **Start of what is stopped or over**: on schedule if the instant is ahead.
//! - **a jump while it waits for the instant**: plays from there if watched.
//! - **a request id of another stream, or of another content**: another request; refused.
//! - **what a command is checked for first**: a known request id, the stream, what it expects, the mode, then the rest;
//!   refusals are remembered as well.
//! - **a configuration larger than one may be**: refused where it is read: `INVALID_ARGUMENT`, whatever else is wrong,
//!   and not remembered.
//! - **what is counted of a stream, in bytes**: its id, its scenes with what they have beside names, those of an
//!   adjusted pass once more while they differ, its instant and title, its timecode.
//! - **Start of an unknown stream without a config**: `INVALID_ARGUMENT`.
//! - **Seek to the end or beyond**: `INVALID_ARGUMENT`.
//! - **AdjustScene**: not in STOPPED and FINISHED; over 365 days `INVALID_ARGUMENT`; a scene of length 0 is passed
//!   over.
//! - **Reconfigure to something shorter than the position**: at its end: a running stream finishes or loops, an idle or
//!   paused one does so when it plays.
//! - **Resume with nobody there, FREEZE**: IDLE at the position.
//! - **the current scene in IDLE and STOPPED**: none at position 0, also of a later pass.
//! - **when somebody is stale**: when the engine notices; heard of before that, it never was. `ClockStalled` also
//!   delays removal.
//! - **a batch with handles and clients**: handles first; of a client the first session, then the others from the
//!   youngest on.

use std::{collections::BTreeMap, fmt};

use orchestrator_service::engine::{Cause, Counts, REMEMBER_MS, STALE_LINGER_MS};
use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;

use crate::{
    bytes::bytes_of,
    steps::{
        Action, Expects, MAX_STREAMS, MAX_SUBSCRIBERS, SCENES, STREAMS, Say, Setup, Span, Stage, Step, T0, setup, step,
    },
    stream::{Member, Stream, check_instant},
    told::{Answer, Expected, Happening, Holder, Outcome, Refusal, Told},
};

/// See the module.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) setup: Setup,
    pub(crate) now: u64,
    pub(crate) streams: BTreeMap<&'static str, Stream>,
    max_streams: u64,
    pub(crate) max_subscribers: u64,
    /// How far the wall clock is ahead, ms.
    ahead: i64,
    pub(crate) max_config_bytes: u64,
    pub(crate) max_client_bytes: u64,
    /// Of subscribers of streams that were removed: the engine forgets them bit by bit.
    pub(crate) unforgotten_bytes: u64,
    extended_until: u64,
    /// Answers to requests with ids, the oldest first.
    answers: Vec<Answered>,
    /// What a repeat repeats: with what it expected.
    last_request: Option<(Say, Option<Expected>)>,
    /// How many streams there ever were.
    incarnations: usize,
    /// How many registrations there ever were.
    pub(crate) tickets: usize,
    /// What the last step came to.
    pub(crate) last: Last,
}

/// An answer that is remembered.
#[derive(Clone)]
struct Answered {
    when: u64,
    stream: u8,
    request: u8,
    /// All that was asked for, in words: two configurations of the same content are the same.
    content: String,
    outcome: Outcome,
}

/// What the last step came to: what it meant in this run, and what the engine has to make of it.
#[derive(Clone, Default)]
pub(crate) struct Last {
    /// What came in, if anything did.
    pub(crate) said: Option<Say>,
    pub(crate) expected: Option<Expected>,
    pub(crate) holders: Vec<Holder>,
    /// None if nothing came in.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) told: Told,
    /// Whether everything due was done at the end of it.
    pub(crate) is_up_to_date: bool,
}

impl fmt::Debug for Model {
    /// A run is given by its world and its steps.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.setup.fmt(formatter)
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        setup().prop_map(Self::new).boxed()
    }

    fn transitions(model: &Self) -> BoxedStrategy<Step> {
        thread_local! {
            // Built once, because that takes longer than a whole run.
            static STEPS: [BoxedStrategy<Step>; 3] =
                [Stage::Empty, Stage::Unwatched, Stage::Watched].map(|stage| step(stage).boxed());
        }
        STEPS.with(|steps| steps[model.stage() as usize].clone())
    }

    fn apply(mut model: Self, step: &Step) -> Self {
        model.step(step);
        model
    }
}

impl Model {
    pub(crate) fn new(setup: Setup) -> Self {
        Self {
            setup,
            now: T0,
            streams: BTreeMap::new(),
            max_streams: MAX_STREAMS,
            max_subscribers: MAX_SUBSCRIBERS,
            ahead: 0,
            max_config_bytes: u64::MAX,
            max_client_bytes: u64::MAX,
            unforgotten_bytes: 0,
            extended_until: 0,
            answers: Vec::new(),
            last_request: None,
            incarnations: 0,
            tickets: 0,
            last: Last::default(),
        }
    }

    pub(crate) fn step(&mut self, step: &Step) {
        self.last = Last::default();
        let mut told = Told::default();
        match step {
            Step::Say(say) => {
                self.last.outcome = Some(self.say(say, &mut told));
                self.advance(&mut told);
            }
            Step::Rush(say) => self.last.outcome = Some(self.say(say, &mut told)),
            Step::Wait(span) => {
                self.now = self.until(*span);
                self.advance(&mut told);
            }
            Step::Sleep(span) => self.now = self.until(*span),
            Step::Follow(dues) => {
                self.advance(&mut told);
                for _ in 0..*dues {
                    let Some(due) = self.dues().into_iter().min() else { break };
                    self.now = due;
                    self.advance(&mut told);
                }
            }
        }
        self.last.is_up_to_date = !matches!(step, Step::Rush(_) | Step::Sleep(_));
        told.by_stream();
        self.last.told = told;
    }

    fn stage(&self) -> Stage {
        if self.streams.is_empty() {
            Stage::Empty
        } else if self.streams.values().all(|stream| stream.active() == 0) {
            Stage::Unwatched
        } else {
            Stage::Watched
        }
    }

    // --- counting -------------------------------------------------------------------------------------------------------

    pub(crate) fn counts(&self) -> Counts {
        self.streams.values().map(Stream::counts).fold(Counts::default(), |sum, one| sum + one)
    }

    /// Answers that a repeat would get now.
    fn remembered(&self) -> impl Iterator<Item = &Answered> {
        self.answers.iter().filter(|answered| answered.when + REMEMBER_MS > self.now)
    }

    /// Keeps an answer. A stream that is there forgets its own oldest for it, the others together theirs.
    fn remember(&mut self, answered: Answered) {
        let most = self.setup.max_remembered;
        if most == 0 {
            return;
        }
        let now = self.now;
        self.answers.retain(|answered| answered.when + REMEMBER_MS > now);
        let is_there = |stream: u8| self.streams.contains_key(STREAMS[stream as usize]);
        let shares = |other: &Answered| {
            if is_there(answered.stream) { other.stream == answered.stream } else { !is_there(other.stream) }
        };
        if self.answers.iter().filter(|other| shares(other)).count() == most {
            let oldest = self.answers.iter().position(shares).expect("there are some");
            self.answers.remove(oldest);
        }
        self.answers.push(answered);
    }

    /// A stream was removed: its answers are among those of all that are not there.
    fn forget_absent(&mut self) {
        let is_absent = |answered: &Answered| {
            answered.when + REMEMBER_MS > self.now && !self.streams.contains_key(STREAMS[answered.stream as usize])
        };
        let absent = self.answers.iter().filter(|answered| is_absent(answered)).count();
        for _ in self.setup.max_remembered..absent {
            let oldest = self.answers.iter().position(is_absent).expect("there are some");
            self.answers.remove(oldest);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.streams.is_empty() && self.remembered().next().is_none()
    }

    // --- time -----------------------------------------------------------------------------------------------------------

    /// When something will be due, unless something happens before.
    pub(crate) fn dues(&self) -> Vec<u64> {
        let members = self.streams.values().flat_map(|stream| &stream.audience);
        let mut dues: Vec<u64> = members.map(|member| self.silent_at(member)).collect();
        dues.extend(self.streams.values().flat_map(|stream| stream.dues(self.ahead)));
        dues.extend(self.remembered().map(|answered| answered.when + REMEMBER_MS));
        dues
    }

    fn until(&self, span: Span) -> u64 {
        match span {
            Span::Ms(ms) => self.now + ms,
            Span::Forgotten(more) => {
                let due = self.remembered().map(|answered| answered.when + REMEMBER_MS).min().unwrap_or(self.now);
                due.saturating_add_signed(i64::from(more)).max(self.now)
            }
            Span::Due(which, more) => {
                let mut dues = self.dues();
                dues.sort_unstable();
                dues.dedup();
                let due = dues.get(usize::from(which)).or(dues.last()).copied().unwrap_or(self.now);
                due.saturating_add_signed(i64::from(more)).max(self.now)
            }
        }
    }

    /// When a subscriber turns stale, or if it has, when it goes.
    fn silent_at(&self, member: &Member) -> u64 {
        let stale_at = (member.heard + self.setup.stale_after).max(self.extended_until);
        if member.stale { stale_at + STALE_LINGER_MS } else { stale_at }
    }

    /// Does everything that is due now.
    fn advance(&mut self, told: &mut Told) {
        loop {
            for stream in STREAMS {
                self.bring(stream, told);
                self.silence(stream, told);
            }
            if self.dues().into_iter().all(|due| due > self.now) {
                self.unforgotten_bytes = 0;
                return;
            }
        }
    }

    /// Brings a stream to the present. None if there is no such stream, or not any more.
    pub(crate) fn bring(&mut self, stream: &'static str, told: &mut Told) -> Option<&mut Stream> {
        let ahead = self.ahead;
        if !self.streams.get_mut(stream)?.bring(self.now, ahead, told) {
            let mut stream = self.streams.remove(stream)?;
            self.unforgotten_bytes += bytes_of(&stream.audience);
            stream.removed(self.now, true, told);
            self.forget_absent();
            return None;
        }
        self.streams.get_mut(stream)
    }

    /// Those of a stream who were silent for too long.
    fn silence(&mut self, name: &'static str, told: &mut Told) {
        loop {
            let Some(stream) = self.streams.get(name) else { return };
            let Some(place) = stream.audience.iter().position(|member| self.silent_at(member) <= self.now) else {
                return;
            };
            let Some(stream) = self.bring(name, told) else { return };
            if stream.audience[place].stale {
                stream.audience.remove(place);
                let left = stream.audience.len() as u64;
                told.happened(name, Happening::StaleRemoved { removed: 1, left });
            } else {
                stream.audience[place].stale = true;
            }
            let now = self.now;
            self.streams.get_mut(name).expect("it was just there").audience_changed(now, told);
        }
    }

    // --- inputs ---------------------------------------------------------------------------------------------------------

    fn say(&mut self, say: &Say, told: &mut Told) -> Outcome {
        // Numbers that depend on the run are those of the first time when it is asked again.
        let (say, expected) = match say {
            Say::Again => self.last_request.clone().unwrap_or((Say::GetStats { stream: None }, None)),
            say => (self.resolved(say), self.expected(say)),
        };
        if matches!(say, Say::Command { request: Some(_), .. }) {
            self.last_request = Some((say.clone(), expected));
        }
        let say = self.determined(say);
        self.last.expected = expected;
        self.last.said = Some(say.clone());
        if let Say::Command { command: Action::Start(Some(plan)) | Action::Reconfigure(plan), .. } = &say
            && self.setup.plans[usize::from(*plan)].bytes() > self.setup.bytes.config
        {
            // Before anybody looks at the stream, or at the request's id.
            return Err(Refusal::Invalid);
        }
        match &say {
            Say::Again => unreachable!("it is another one again"),
            Say::Command { stream, request: None, command, .. } => self.command(*stream, expected, *command, told),
            Say::Command { stream, request: Some(request), command, .. } => {
                let content = format!("{expected:?} {}", self.content(*command));
                let is_it = |known: &&Answered| (known.stream, known.request) == (*stream, *request);
                if let Some(known) = self.remembered().find(is_it) {
                    let same = known.content == content;
                    return if same { known.outcome.clone() } else { Err(Refusal::RequestIdTaken) };
                }
                let outcome = self.command(*stream, expected, *command, told);
                let (stream, request, when) = (*stream, *request, self.now);
                self.remember(Answered { when, stream, request, content, outcome: outcome.clone() });
                outcome
            }
            Say::Register { stream, who, answered } => self.register(STREAMS[*stream as usize], *who, *answered, told),
            Say::RegisterBatch { stream, who, answered } => {
                self.register_batch(STREAMS[*stream as usize], who, *answered, told)
            }
            Say::Unregister { stream, who } => {
                let (name, place) = self.find(*stream, *who)?;
                let from = self.streams[name].audience[place].from;
                if !self.leave(name, place, told) {
                    return Err(Refusal::StreamNotFound);
                }
                Ok(Answer::Unregistered { total: self.streams[name].audience.len() as u64, from })
            }
            Say::Heartbeat { stream, who } => {
                let (name, place) = self.find(*stream, *who)?;
                if self.touch(name, place, told) { Ok(Answer::Heard) } else { Err(Refusal::StreamNotFound) }
            }
            Say::HeartbeatBatch(many) => Ok(self.batch(many, Self::touch, told)),
            Say::UnregisterBatch(many) => Ok(self.batch(many, Self::leave, told)),
            Say::GetState { stream } => {
                let now = self.now;
                let stream = self.bring(STREAMS[*stream as usize], told).ok_or(Refusal::StreamNotFound)?;
                Ok(Answer::State(stream.fact(now, Cause::Snapshot)))
            }
            Say::GetStats { stream: None } => Ok(Answer::Stats(self.counts())),
            // Like a heartbeat, this does not bring the stream to the present.
            Say::GetStats { stream: Some(stream) } => {
                let stream = self.streams.get(STREAMS[*stream as usize]).ok_or(Refusal::StreamNotFound)?;
                Ok(Answer::Stats(stream.counts()))
            }
            Say::ListStreams { .. } => {
                let now = self.now;
                let mut names = STREAMS;
                names.sort_unstable();
                let states =
                    names.into_iter().filter_map(|name| Some(self.bring(name, told)?.fact(now, Cause::Snapshot)));
                Ok(Answer::Streams(states.collect()))
            }
            Say::SetRoom { streams, subscribers, config_bytes, client_bytes } => {
                (self.max_streams, self.max_subscribers) = (*streams, *subscribers);
                (self.max_config_bytes, self.max_client_bytes) = (*config_bytes, *client_bytes);
                Ok(Answer::Noted)
            }
            Say::ClockStalled { ms } => {
                self.extended_until = self.extended_until.max(self.now + (*ms).min(self.setup.stale_after));
                Ok(Answer::Noted)
            }
            Say::WallClock { ahead } => {
                self.ahead = *ahead;
                Ok(Answer::Noted)
            }
        }
    }

    /// The same with a position instead of a distance from the end.
    fn resolved(&self, say: &Say) -> Say {
        let mut say = say.clone();
        if let Say::Command { stream, command, .. } = &mut say
            && let action @ Action::SeekFromEnd(_) = *command
        {
            let stream = self.streams.get(STREAMS[*stream as usize]);
            *command = Action::Seek(stream.map_or(0, |stream| stream.sought(action, self.now)));
        }
        say
    }

    /// What a command expects.
    fn expected(&self, say: &Say) -> Option<Expected> {
        let Say::Command { stream, expects: Some(expects), .. } = say else { return None };
        let stream = self.streams.get(STREAMS[*stream as usize]);
        let revision = stream.map_or(0, |stream| stream.revision);
        let present = stream.and_then(|stream| stream.present_scene(self.now));
        let name = present.map_or("", |scene| scene.name);
        Some(match expects {
            Expects::Present(more) => Expected::Revision(revision.saturating_add_signed(i64::from(*more))),
            Expects::Exactly(revision) => Expected::Revision(*revision),
            Expects::Epoch(true) => Expected::EpochOf(stream.map(|stream| stream.incarnation)),
            Expects::Epoch(false) => Expected::NoEpoch,
            Expects::Scene(scene) => Expected::Scene(SCENES[*scene as usize]),
            Expects::PresentScene => Expected::Scene(name),
            Expects::PresentId => Expected::Scene(present.and_then(|scene| scene.id).unwrap_or(name)),
            Expects::NoScene => Expected::Scene(""),
        })
    }

    /// Refuses what a command expects in vain.
    fn check_expected(&self, stream: Option<&Stream>, expected: Option<Expected>) -> Result<(), Refusal> {
        let Some(expected) = expected else { return Ok(()) };
        let revision = stream.map_or(0, |stream| stream.revision);
        let present = stream.and_then(|stream| stream.present_scene(self.now));
        let holds = match expected {
            Expected::Revision(expected) => expected == revision,
            Expected::EpochOf(incarnation) => incarnation == stream.map(|stream| stream.incarnation),
            Expected::NoEpoch => false,
            Expected::Scene("") => present.is_none(),
            Expected::Scene(named) => present.is_some_and(|scene| scene.name == named || scene.id == Some(named)),
        };
        let scene = match expected {
            Expected::Scene(_) => present.map_or("", |scene| scene.name),
            _ => "",
        };
        if holds { Ok(()) } else { Err(Refusal::Conflict { expected, revision, scene }) }
    }

    /// What a command asks for, in words.
    fn content(&self, command: Action) -> String {
        match command {
            Action::Start(Some(plan)) => format!("Start {:?}", self.setup.plans[plan as usize]),
            Action::Reconfigure(plan) => format!("Reconfigure {:?}", self.setup.plans[plan as usize]),
            command => format!("{command:?}"),
        }
    }

    fn command(&mut self, stream: u8, expected: Option<Expected>, command: Action, told: &mut Told) -> Outcome {
        let name = STREAMS[stream as usize];
        let (now, ahead) = (self.now, self.ahead);
        let plans = self.setup.plans.clone();
        if self.bring(name, told).is_none() {
            let Action::Start(plan) = command else { return Err(Refusal::StreamNotFound) };
            self.check_expected(None, expected)?;
            let plan = plans[usize::from(plan.ok_or(Refusal::Invalid)?)].clone();
            if self.streams.len() as u64 >= self.max_streams.min(MAX_STREAMS) {
                return Err(Refusal::Exhausted { what: "streams", limit: MAX_STREAMS });
            }
            check_instant(&plan, now, ahead)?;
            self.room(name)[0].check(0, name.len() as u64 + plan.bytes())?;
            let stream = Stream::created(name, self.incarnations, plan, (now, ahead), told);
            self.incarnations += 1;
            let state = stream.fact(now, Cause::Command);
            self.streams.insert(name, stream);
            return Ok(Answer::State(state));
        }
        self.check_expected(self.streams.get(name), expected)?;
        let room = self.room(name)[0];
        let stream = self.streams.get_mut(name).expect("it was just there");
        if matches!(command, Action::Remove) {
            let last = stream.removed(now, false, told);
            self.unforgotten_bytes += bytes_of(&stream.audience);
            self.streams.remove(name);
            self.forget_absent();
            return Ok(Answer::State(last));
        }
        stream.obey((now, ahead), command, &plans, room, told)?;
        Ok(Answer::State(stream.fact(now, Cause::Command)))
    }
}
