//! One engine in virtual time: every test says what happens when, and sees all that was said.

#![allow(dead_code, unreachable_pub, reason = "shared by test crates, each of which uses a part of it")]

use orchestrator_service::engine::*;

/// The beginning of time: some day in 2023, ms since 1970.
pub const T0: u64 = 1_700_000_000_000;

/// An engine, its time, and what it said since the last look.
pub struct EngineDriver {
    pub engine: Engine,
    now: Tick,
    outbox: Outbox,
}

/// An update in short: when it was said, and what a viewer would notice.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    pub at: u64,
    pub cause: Cause,
    pub mode: Mode,
    pub position: u64,
    pub scene: Option<String>,
    pub loops: u64,
}

/// Shorthand for an expected update: milliseconds since time began, cause, mode, position, scene.
pub fn said(at: u64, cause: Cause, mode: Mode, position: u64, scene: impl Into<Option<&'static str>>) -> Said {
    Said { at, cause, mode, position, scene: scene.into().map(str::to_owned), loops: 0 }
}

/// Intro 3 s, Main 10 s, Outro 2 s, and a tick each second unless a test says otherwise.
pub fn show() -> Draft<'static> {
    Draft {
        scenes: vec![Scene::new("Intro", 3_000), Scene::new("Main", 10_000), Scene::new("Outro", 2_000)],
        tick_interval_ms: Some(1_000),
        ..Draft::default()
    }
}

pub fn config(draft: &Draft<'_>) -> Config {
    Config::new(draft, &Limits::default()).expect("a valid config")
}

impl EngineDriver {
    pub fn new() -> Self {
        Self::with(Settings::default())
    }

    pub fn with(settings: Settings) -> Self {
        Self { engine: Engine::new(settings), now: Tick(T0), outbox: Outbox::default() }
    }

    /// One with a stream `show` that waits for its first viewer.
    pub fn with_show(draft: &Draft<'_>) -> Self {
        let mut driver = Self::new();
        driver.command("show", Command::Start(Some(config(draft)))).expect("it starts");
        driver.heard();
        driver
    }

    /// Milliseconds since time began.
    pub fn at(&self) -> u64 {
        self.now.0 - T0
    }

    /// Lets time go by to `at`, calling the engine exactly when it wants to be called.
    pub fn until(&mut self, at: u64) -> Vec<Said> {
        assert!(at > self.at(), "no time goes by from {} to {at}", self.at());
        let mut said = self.heard();
        while let Some(due) = self.engine.next_deadline().filter(|due| due.0 <= T0 + at) {
            self.now = self.now.max(due);
            self.expire();
            said.extend(self.heard());
        }
        self.now = Tick(T0 + at);
        self.expire();
        said.extend(self.heard());
        said
    }

    /// Lets time go by to `at` without calling the engine, as if its thread had slept.
    pub fn sleep_until(&mut self, at: u64) {
        assert!(at > self.at(), "no time goes by from {} to {at}", self.at());
        self.now = Tick(T0 + at);
    }

    /// One call for what is due.
    pub fn expire(&mut self) {
        self.engine.expire(self.now, 1 << 20, &mut self.outbox);
        self.engine.check();
    }

    pub fn handle(&mut self, input: Input<'_>) -> Result<Accepted, Rejection> {
        let result = self.engine.handle(self.now, input, &mut self.outbox);
        self.engine.check();
        result
    }

    pub fn request(&mut self, request: Request<'_>) -> Result<StateUpdate, Rejection> {
        match self.handle(Input::Command(request))? {
            Accepted::State(state) => Ok(state),
            other => panic!("a command was answered with {other:?}"),
        }
    }

    pub fn command(&mut self, stream: &str, command: Command<'_>) -> Result<StateUpdate, Rejection> {
        let stream_id = StreamId::parse(stream).expect("a valid id");
        self.request(Request::new(stream_id, command))
    }

    /// A viewer joins `show` and is answered.
    pub fn join(&mut self, client: &str, session: u64) -> (Handle, StateUpdate) {
        match self.register("show", client, session, true).expect("it joins") {
            Accepted::Registered { handle, state, .. } => (handle, state),
            other => panic!("a register was answered with {other:?}"),
        }
    }

    pub fn register(
        &mut self,
        stream: &str,
        client: &str,
        session: u64,
        answered: bool,
    ) -> Result<Accepted, Rejection> {
        let stream_id = StreamId::parse(stream).expect("a valid id");
        let client_id = ClientId::parse(client).expect("a valid id");
        let subscriber = Newcomer { client_id, session, source: None };
        self.handle(Input::Register { stream_id, subscriber, answered })
    }

    /// A viewer leaves `show`.
    pub fn leave(&mut self, client: &str, session: u64) -> Result<Accepted, Rejection> {
        self.handle(Input::Unregister(subscriber(client, session)))
    }

    pub fn beat(&mut self, client: &str, session: u64) -> Result<Accepted, Rejection> {
        self.handle(Input::Heartbeat(subscriber(client, session)))
    }

    pub fn state(&mut self, stream: &str) -> Result<StateUpdate, Rejection> {
        match self.handle(Input::GetState(StreamId::parse(stream).expect("a valid id")))? {
            Accepted::State(state) => Ok(state),
            other => panic!("a question was answered with {other:?}"),
        }
    }

    /// Mode and position of `show`.
    pub fn show(&mut self) -> (Mode, u64) {
        let state = self.state("show").expect("the show is there");
        (state.mode, state.position_ms)
    }

    pub fn exists(&mut self, stream: &str) -> bool {
        self.state(stream).is_ok()
    }

    /// What was said since the last look.
    pub fn heard(&mut self) -> Vec<Said> {
        let at = self.at();
        self.outbox.events.clear();
        self.outbox.updates.drain(..).map(|update| Said::of(at, &update)).collect()
    }

    /// The events since the last look; drops the updates.
    pub fn events(&mut self) -> Vec<Event> {
        self.outbox.updates.clear();
        std::mem::take(&mut self.outbox.events)
    }

    /// The whole updates since the last look.
    pub fn updates(&mut self) -> Vec<StateUpdate> {
        self.outbox.events.clear();
        std::mem::take(&mut self.outbox.updates)
    }
}

impl Said {
    fn of(at: u64, update: &StateUpdate) -> Self {
        Self {
            at,
            cause: update.cause,
            mode: update.mode,
            position: update.position_ms,
            scene: update.scene.map(|scene| update.timeline.name(scene).to_owned()),
            loops: update.loop_count,
        }
    }
}

fn subscriber(client: &str, session: u64) -> Subscriber<'_> {
    Subscriber {
        stream_id: StreamId::parse("show").expect("a valid id"),
        client_id: ClientId::parse(client).expect("a valid id"),
        session,
    }
}
