//! The engine under test: steps become inputs, and what it says becomes the reference's words.

use std::{collections::BTreeMap, sync::Arc};

use orchestrator_service::engine::{
    self, Accepted, Batch, ClientId, Command, Config, Counts, Engine, Event, Handle, Hint, Input, Invalid, Lifecycle,
    Mismatch, Mode, Newcomer, Outbox, Playhead, Quota, Rejection, Request, Run, Scene, SceneLimits, Show, StateUpdate,
    StreamId, Subscriber, Tick, Timeline,
};

use crate::{
    reference::Model,
    steps::{Action, CLIENTS, Many, REQUESTS, SCENES, STREAMS, Say, Status, Step, T0, TIMECODES, Who, source},
    told::{Answer, Expected, Fact, Happening, Holder, Refusal, Told},
};

/// Turns without an end to what is due: far more than any step can need.
const MOST_CALLS: usize = 100_000;

/// The engine, and what its numbers stand for.
pub(crate) struct Subject {
    pub(crate) engine: Engine,
    now: Tick,
    outbox: Outbox,
    /// None where one is larger than it may be.
    configs: Vec<Option<Config>>,
    budget: usize,
    /// The handle of each registration.
    handles: Vec<Handle>,
    /// The epoch of each stream there ever was.
    epochs: Vec<u64>,
    /// The last sequence and revision seen of each stream there ever was.
    progress: BTreeMap<u64, (u64, u64)>,
    /// How many inputs it was told.
    said: u64,
    /// What was found out of the last one.
    hint: Hint,
}

impl Subject {
    pub(crate) fn new(model: &Model) -> Self {
        Self {
            engine: Engine::new(model.setup.settings()),
            now: Tick(T0),
            outbox: Outbox::default(),
            configs: model.setup.plans.iter().map(|plan| plan.config(model.setup.bytes)).collect(),
            budget: model.setup.budget,
            handles: Vec::new(),
            epochs: Vec::new(),
            progress: BTreeMap::new(),
            said: 0,
            hint: Hint::NONE,
        }
    }

    /// Takes the step that `model` has just taken, and compares.
    pub(crate) fn step(&mut self, model: &Model, step: &Step) {
        let until = Tick(model.now);
        if !matches!(step, Step::Follow(_)) {
            self.now = until;
        }
        let outcome = model.last.said.as_ref().map(|say| self.say(model, say));
        if model.last.is_up_to_date {
            self.advance(until);
        }
        let mut told = self.told();
        told.by_stream();
        assert_eq!(outcome, model.last.outcome, "the engine's answer is left, the model's right");
        assert_eq!(told, model.last.told, "what the engine said is left, the model's right");
        if model.setup.reloads {
            self.reload();
        }
    }

    /// Takes every stream out, to plain values, and puts it back from them: the run goes on with what was written down.
    fn reload(&mut self) {
        for stream in STREAMS {
            let Some(show) = self.engine.export(StreamId::parse(stream).expect("valid")) else { continue };
            let read = written_and_read(&show);
            assert_eq!(read, show);
            self.engine.import(self.now, read, &mut self.outbox);
        }
        assert!(self.is_silent(), "who puts back what was there says nothing");
    }

    /// Calls the engine whenever it wants to be called, until `until`.
    fn advance(&mut self, until: Tick) {
        // At once, and then as it says.
        for _ in 0..MOST_CALLS {
            let said = self.outbox.updates.len();
            self.engine.expire(self.now, self.budget, &mut self.outbox);
            self.check_moments(said);
            let due = self.engine.next_deadline().unwrap_or(Tick::NEVER);
            if due > until {
                self.now = until;
                return;
            }
            self.now = self.now.max(due);
        }
        panic!(
            "the engine wants to be called without an end: it is {:?}, due {:?}",
            self.now,
            self.engine.next_deadline()
        );
    }

    /// An update is true for the moment it is made in, but for an end that was noticed late.
    fn check_moments(&self, from: usize) {
        for update in &self.outbox.updates[from..] {
            let late = update.mode == Mode::Finished && update.at < self.now;
            assert!(late || update.at == self.now, "made at {:?}: {update:?}", self.now);
        }
    }

    /// Asks for the state of a stream.
    pub(crate) fn state(&mut self, stream: &'static str) -> Option<Fact> {
        let input = Input::GetState(StreamId::parse(stream).expect("valid"));
        match self.engine.handle(self.now, input, &mut self.outbox) {
            Ok(Accepted::State(state)) => Some(self.fact(&state)),
            Err(Rejection::StreamNotFound(_)) => None,
            other => panic!("asked for a state, it said {other:?}"),
        }
    }

    /// Asks how many there are on a stream.
    pub(crate) fn counts(&mut self, stream: &'static str) -> Option<Counts> {
        let input = Input::GetStats(Some(StreamId::parse(stream).expect("valid")));
        match self.engine.handle(self.now, input, &mut self.outbox) {
            Ok(Accepted::Stats(counts)) => Some(without_bytes(counts)),
            Err(Rejection::StreamNotFound(_)) => None,
            other => panic!("asked for counts, it said {other:?}"),
        }
    }

    /// Whether it has said something that nobody has looked at.
    pub(crate) fn is_silent(&self) -> bool {
        self.outbox.updates.is_empty() && self.outbox.events.is_empty()
    }

    // --- steps become inputs --------------------------------------------------------------------------------------------

    fn say(&mut self, model: &Model, say: &Say) -> Result<Answer, Refusal> {
        if let Say::Command { command: Action::Start(Some(plan)) | Action::Reconfigure(plan), .. } = say
            && self.configs[usize::from(*plan)].is_none()
        {
            // It never comes to the engine.
            return Err(Refusal::Invalid);
        }
        let input = match say {
            Say::Again => unreachable!("the model has looked up what it means"),
            Say::Command { stream, request, expects: _, command } => {
                let request_id = request.map(|request| REQUESTS[request as usize]);
                let command = Request::new(stream_id(*stream), self.command(*command));
                Input::Command(self.expecting(model.last.expected, Request { request_id, ..command }))
            }
            Say::Register { stream, who, answered } => {
                Input::Register { stream_id: stream_id(*stream), subscriber: newcomer(*who), answered: *answered }
            }
            Say::RegisterBatch { stream, who, answered } => {
                let malformed = || Invalid("client_id: malformed".to_owned());
                let subscribers = who.iter().map(|who| who.map(newcomer).ok_or_else(malformed)).collect();
                Input::RegisterBatch { stream_id: stream_id(*stream), subscribers, answered: *answered }
            }
            Say::Unregister { stream, who } => Input::Unregister(subscriber(*stream, *who)),
            Say::Heartbeat { stream, who } => Input::Heartbeat(subscriber(*stream, *who)),
            Say::HeartbeatBatch(many) => Input::HeartbeatBatch(self.batch(model, many)),
            Say::UnregisterBatch(many) => Input::UnregisterBatch(self.batch(model, many)),
            Say::GetState { stream } => Input::GetState(stream_id(*stream)),
            Say::GetStats { stream } => Input::GetStats(stream.map(stream_id)),
            Say::ListStreams { limit } => return self.list(*limit),
            Say::SetRoom { streams, subscribers, config_bytes, client_bytes } => Input::SetQuota(Quota {
                streams: *streams,
                subscribers: *subscribers,
                config_bytes: *config_bytes,
                client_bytes: *client_bytes,
                ..Quota::of(&model.setup.settings().limits)
            }),
            Say::ClockStalled { ms } => Input::ClockStalled { ms: *ms },
            Say::WallClock { ahead } => Input::WallClock { ms: self.now.0.saturating_add_signed(*ahead) },
        };
        let forged: Vec<(Handle, Holder)> = match &input {
            Input::HeartbeatBatch(batch) | Input::UnregisterBatch(batch) => {
                batch.handles.iter().copied().zip(model.last.holders.iter().copied()).collect()
            }
            _ => Vec::new(),
        };
        // A hint changes nothing, whether it is of now, of an earlier moment, or of another input.
        let fresh = self.engine.fetch(std::slice::from_ref(&input))[0];
        let old = std::mem::replace(&mut self.hint, fresh);
        self.said += 1;
        let hint = if self.said.is_multiple_of(2) { fresh } else { old };
        let result = self.engine.handle_with(self.now, input, hint, &mut self.outbox);
        self.check_moments(0);
        match result {
            Ok(accepted) => Ok(self.answer(accepted, &forged)),
            Err(rejection) => Err(self.refusal(rejection)),
        }
    }

    fn expecting<'a>(&self, expected: Option<Expected>, request: Request<'a>) -> Request<'a> {
        let (revision, epoch, scene) = match expected {
            None => (None, None, None),
            Some(Expected::Revision(revision)) => (Some(revision), None, None),
            Some(Expected::EpochOf(stream)) => (None, Some(stream.map_or(0, |stream| self.epochs[stream])), None),
            Some(Expected::NoEpoch) => (None, Some(u64::MAX), None),
            Some(Expected::Scene(named)) => (None, None, Some(named)),
        };
        request.expecting(engine::Expected { revision, epoch, scene })
    }

    fn refusal(&self, rejection: Rejection) -> Refusal {
        let Rejection::Conflict { mismatch, revision } = rejection else { return refusal(rejection) };
        let known = |named: &str| SCENES.into_iter().find(|scene| *scene == named).unwrap_or_default();
        let (expected, scene) = match *mismatch {
            Mismatch::Revision { expected, actual } => {
                assert_eq!(actual, revision);
                (Expected::Revision(expected), "")
            }
            Mismatch::Epoch { expected: u64::MAX, .. } => (Expected::NoEpoch, ""),
            Mismatch::Epoch { expected, .. } => {
                (Expected::EpochOf(self.epochs.iter().position(|epoch| *epoch == expected)), "")
            }
            Mismatch::Scene { expected, actual } => (Expected::Scene(known(&expected)), known(&actual)),
        };
        Refusal::Conflict { expected, revision, scene }
    }

    fn command(&self, action: Action) -> Command<'static> {
        match action {
            Action::Start(plan) => Command::Start(plan.and_then(|plan| self.configs[plan as usize].clone())),
            Action::Stop => Command::Stop,
            Action::Pause => Command::Pause,
            Action::Resume => Command::Resume,
            Action::ForceScene(scene) => Command::ForceScene(SCENES[scene as usize]),
            Action::SkipScene => Command::SkipScene,
            Action::PreviousScene => Command::PreviousScene,
            Action::Seek(position) => Command::Seek(position),
            Action::SeekFromEnd(_) => unreachable!("the model has looked up where that is"),
            Action::AdjustScene(delta) => Command::AdjustScene(delta),
            Action::Status(Status { is_streaming, ms, timecode }) => {
                Command::UpdateStreamStatus { is_streaming, stream_time_ms: ms, timecode: TIMECODES[timecode as usize] }
            }
            Action::Reconfigure(plan) => {
                Command::Reconfigure(self.configs[plan as usize].clone().expect("it is not too large"))
            }
            Action::Reset => Command::Reset,
            Action::Remove => Command::Remove,
        }
    }

    fn batch(&self, model: &Model, many: &Many) -> Batch<'static> {
        Batch {
            stream_id: many.stream.map(stream_id),
            clients: many.clients.iter().map(|client| client_id(*client)).collect(),
            handles: model.last.holders.iter().map(|holder| self.handle(*holder)).collect(),
        }
    }

    fn handle(&self, holder: Holder) -> Handle {
        let youngest = self.handles.last().copied().unwrap_or(Handle(1 << 28));
        let made_up = match holder {
            Holder::Registration(ticket) => return self.handles[ticket],
            Holder::Nobody(0) => Handle(0),
            Holder::Nobody(1) => Handle(u64::MAX),
            // The numbers beside it, another tag, the same in another partition.
            Holder::Nobody(2) => Handle(youngest.0 + 1),
            Holder::Nobody(3) => Handle(youngest.0 - 1),
            Holder::Nobody(4) => Handle(youngest.0 ^ 1 << 27),
            Holder::Nobody(_) => Handle(youngest.0 ^ 1 << 56),
        };
        if self.handles.contains(&made_up) { Handle(0) } else { made_up }
    }

    /// All pages, `limit` streams each.
    fn list(&mut self, limit: usize) -> Result<Answer, Refusal> {
        let (mut from_slot, mut facts, mut slots) = (0, Vec::new(), Vec::new());
        loop {
            let input = Input::ListStreams { from_slot, limit };
            match self.engine.handle(self.now, input, &mut self.outbox).map_err(refusal)? {
                Accepted::Streams { states, next_slot } => {
                    assert!(states.len() <= limit, "{} streams on a page of {limit}", states.len());
                    slots.extend(states.iter().map(|state| state.slot));
                    facts.extend(states.iter().map(|state| self.fact(state)).collect::<Vec<_>>());
                    let Some(next) = next_slot else { break };
                    assert!(next > from_slot, "page {from_slot} is followed by {next}");
                    from_slot = next;
                }
                other => panic!("asked for a list, it said {other:?}"),
            }
        }
        assert!(slots.is_sorted_by(|a, b| a < b), "in the order of their slots: {slots:?}");
        facts.sort_by_key(|fact| fact.stream);
        Ok(Answer::Streams(facts))
    }

    // --- what it says becomes the reference's words ---------------------------------------------------------------------

    fn answer(&mut self, accepted: Accepted, sent: &[(Handle, Holder)]) -> Answer {
        match accepted {
            Accepted::State(state) => Answer::State(self.fact(&state)),
            Accepted::Registered { handle, new, total, state } => {
                Answer::Registered { ticket: self.ticket(handle, &state), new, total, state: self.fact(&state) }
            }
            Accepted::RegisteredBatch { handles, state } => {
                let mut tickets = Vec::new();
                for handle in handles {
                    tickets.push(handle.map(|handle| self.ticket(handle, &state)).map_err(refusal));
                }
                Answer::RegisteredBatch { tickets, state: self.fact(&state) }
            }
            Accepted::Unregistered { total, source: found } => {
                let from = (0..=3).find(|from| source(*from) == found);
                Answer::Unregistered { total, from: from.expect("a source that somebody gave") }
            }
            Accepted::Heard => Answer::Heard,
            Accepted::Batch(unplaced) => {
                // In the order in which they were sent, so that each is the next of those that look like it.
                let mut sent = sent.iter();
                let mut holder = |handle| sent.find(|(other, _)| *other == handle).map(|(_, holder)| *holder);
                let holders = unplaced.handles.into_iter().map(|handle| holder(handle).expect("in the order sent"));
                Answer::Batch {
                    no_such_stream: unplaced.no_such_stream,
                    handles: holders.collect(),
                    clients: unplaced.clients.iter().map(|client| place(&CLIENTS, client)).collect(),
                }
            }
            Accepted::Stats(counts) => Answer::Stats(without_bytes(counts)),
            Accepted::Streams { .. } => unreachable!("pages are put together elsewhere"),
            Accepted::Config { .. } | Accepted::Subscribers { .. } | Accepted::History(_) => {
                unreachable!("asked elsewhere")
            }
            Accepted::Noted => Answer::Noted,
            Accepted::Following(_) => unreachable!("nobody follows a filter here"),
        }
    }

    /// Which registration a handle was given for: an old one if it was given before.
    fn ticket(&mut self, handle: Handle, state: &StateUpdate) -> usize {
        assert_ne!(handle.0, 0, "a handle is never 0");
        assert_eq!(handle.partition(), state.partition, "a handle names its partition");
        self.handles.iter().position(|given| *given == handle).unwrap_or_else(|| {
            self.handles.push(handle);
            self.handles.len() - 1
        })
    }

    fn told(&mut self) -> Told {
        let mut told = Told::default();
        let updates = std::mem::take(&mut self.outbox.updates);
        for update in &updates {
            told.facts.push(self.fact(update));
            let (sequence, revision) = self.progress.entry(update.epoch).or_default();
            assert_eq!(update.sequence, *sequence + 1, "sequence grows by one with every update: {update:?}");
            assert!(
                (*revision..=*revision + 1).contains(&update.revision),
                "revision grew from {revision}: {update:?}"
            );
            (*sequence, *revision) = (update.sequence, update.revision);
        }
        for event in self.outbox.events.drain(..) {
            let (stream_id, happening) = match event {
                Event::Created { stream_id } => (stream_id, Happening::Created),
                Event::Started { stream_id } => (stream_id, Happening::Started),
                Event::Stopped { stream_id, mode } => (stream_id, Happening::Stopped(mode)),
                Event::Removed { stream_id, idle } => (stream_id, Happening::Removed { idle }),
                Event::StaleRemoved { stream_id, removed, left } => {
                    (stream_id, Happening::StaleRemoved { removed, left })
                }
            };
            told.happened(name(&stream_id), happening);
        }
        // The room is kept, so that a step does not allocate it anew.
        self.outbox.updates = updates;
        self.outbox.clear();
        told
    }

    fn fact(&mut self, state: &StateUpdate) -> Fact {
        let incarnation = self.epochs.iter().position(|epoch| *epoch == state.epoch).unwrap_or_else(|| {
            assert!(self.epochs.iter().all(|epoch| *epoch < state.epoch), "epochs grow: {:?}, {state:?}", self.epochs);
            self.epochs.push(state.epoch);
            self.epochs.len() - 1
        });
        let stream = name(&state.stream_id);
        assert_eq!(Some(state.partition), StreamId::parse(stream).ok().map(StreamId::partition));
        let scenes = 0..state.timeline.scene_count();
        Fact {
            stream,
            incarnation,
            cause: state.cause,
            mode: state.mode,
            scene: state.scene,
            position: state.position_ms,
            loops: state.loop_count,
            status: state.status.as_deref().map(|status| Status {
                is_streaming: status.is_streaming,
                ms: status.stream_time_ms,
                timecode: place(&TIMECODES, &status.timecode),
            }),
            revision: state.revision,
            sequence: state.sequence,
            overtime: state.overtime_ms(),
            config_revision: state.config_revision,
            starts: state.starts_at_ms(),
            scenes: scenes
                .map(|scene| {
                    let name = SCENES[usize::from(place(&SCENES, state.timeline.name(scene)))];
                    (name, state.timeline.duration_ms(scene))
                })
                .collect(),
        }
    }
}

/// Those are compared by themselves.
pub(crate) fn without_bytes(counts: Counts) -> Counts {
    Counts { config_bytes: 0, client_bytes: 0, history_bytes: 0, ..counts }
}

/// A show made anew from nothing but numbers and texts.
fn written_and_read(show: &Show) -> Show {
    let Show { id, config, pass, lifecycle, status, revision, sequence, epoch, config_revision, empty_since } = show;
    let Config { timeline, tick_interval_ms, loop_scenes, when_empty, no_ticks, empty_grace_ms, idle_timeout_ms, more } =
        config;
    let scenes: Vec<Scene<'_>> = (0..timeline.scene_count())
        .map(|scene| Scene {
            name: timeline.name(scene),
            duration_ms: timeline.duration_ms(scene),
            id: timeline.scene_id(scene),
            data: timeline.data(scene),
            at_end: timeline.at_end(scene),
            warn_ms: timeline.warn_ms(scene),
            danger_ms: timeline.danger_ms(scene),
        })
        .collect();
    let lengths = (0..pass.scene_count()).map(|scene| (pass.duration_ms(scene), scene));
    let timeline = Timeline::new(&scenes, SceneLimits::default()).expect("it was valid");
    let pass = lengths.fold(timeline.clone(), |pass, (ms, scene)| pass.with_duration(scene, ms));
    let head = |Playhead { loops, pass_ms }: Playhead| Playhead { loops, pass_ms };
    Show {
        id: id.to_string().into(),
        config: Config {
            timeline: Arc::new(timeline),
            tick_interval_ms: *tick_interval_ms,
            loop_scenes: *loop_scenes,
            when_empty: *when_empty,
            empty_grace_ms: *empty_grace_ms,
            idle_timeout_ms: *idle_timeout_ms,
            no_ticks: *no_ticks,
            more: more.clone(),
        },
        pass: Arc::new(pass),
        lifecycle: match *lifecycle {
            Lifecycle::Idle(at) => Lifecycle::Idle(head(at)),
            Lifecycle::Scheduled => Lifecycle::Scheduled,
            Lifecycle::Running(Run { anchor, from, next_tick, boundary, on_schedule }) => {
                Lifecycle::Running(Run { anchor, from: head(from), next_tick, boundary: head(boundary), on_schedule })
            }
            Lifecycle::Paused(at) => Lifecycle::Paused(head(at)),
            Lifecycle::Stopped(at) => Lifecycle::Stopped(head(at)),
            Lifecycle::Finished { loops } => Lifecycle::Finished { loops },
            Lifecycle::Removed(_) => panic!("{id} is removed and was exported"),
        },
        status: status.as_deref().map(|status| {
            let orchestrator_service::engine::Status { is_streaming, stream_time_ms, timecode } = status;
            let (is_streaming, stream_time_ms) = (*is_streaming, *stream_time_ms);
            Arc::new(orchestrator_service::engine::Status { is_streaming, stream_time_ms, timecode: timecode.clone() })
        }),
        revision: *revision,
        sequence: *sequence,
        epoch: *epoch,
        config_revision: *config_revision,
        empty_since: *empty_since,
    }
}

fn refusal(rejection: Rejection) -> Refusal {
    match rejection {
        Rejection::InvalidArgument(_) => Refusal::Invalid,
        Rejection::StreamNotFound(_) => Refusal::StreamNotFound,
        Rejection::AlreadyExists(_) => Refusal::AlreadyExists,
        Rejection::InvalidState { command: _, mode } => Refusal::InvalidState(mode),
        Rejection::SceneNotFound(_) => Refusal::SceneNotFound,
        Rejection::UnknownSubscriber { .. } => Refusal::UnknownSubscriber,
        Rejection::Conflict { .. } => unreachable!("only a command expects something"),
        Rejection::RequestIdTaken(_) => Refusal::RequestIdTaken,
        Rejection::Exhausted { what, limit } => Refusal::Exhausted { what, limit },
    }
}

fn place(list: &[&str], text: &str) -> u8 {
    let place = list.iter().position(|known| *known == text);
    place.and_then(|place| u8::try_from(place).ok()).unwrap_or_else(|| panic!("{text:?} is none of {list:?}"))
}

fn name(stream: &Arc<str>) -> &'static str {
    STREAMS[usize::from(place(&STREAMS, stream))]
}

fn stream_id(stream: u8) -> StreamId<'static> {
    StreamId::parse(STREAMS[stream as usize]).expect("a valid id")
}

fn client_id(client: u8) -> ClientId<'static> {
    ClientId::parse(CLIENTS[client as usize]).expect("a valid id")
}

fn newcomer(who: Who) -> Newcomer<'static> {
    Newcomer { client_id: client_id(who.client), session: who.session, source: source(who.from) }
}

fn subscriber(stream: u8, who: Who) -> Subscriber<'static> {
    Subscriber { stream_id: stream_id(stream), client_id: client_id(who.client), session: who.session }
}
