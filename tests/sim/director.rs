//! Directors, who command streams; and chance, which decides what happens.

use std::rc::Rc;

use orchestrator_service::{
    engine::{DEFAULT_EMPTY_GRACE_MS, StreamId},
    shard::publish_queue::PublishTo,
    wire::{
        proto::{self, AtEnd, HistoryAction, Mode, orchestrator_command::Command, query},
        subject,
    },
};

use crate::{
    gateway::encoded,
    net::{Answer, AnswerBody, Party, Sent, Update, What},
    reading::stream_id,
    rng::Rng,
    service::round,
    world::{Event, Phase, World},
};

#[derive(Debug, Default)]
pub struct Director {
    /// A command with a request id, to be sent again.
    last: Option<(Rc<Sent>, bool)>,
    /// The streams and ids of some of those before.
    before: Vec<(usize, usize)>,
    /// Numbers of the questions of the audit.
    pub questions: Vec<usize>,
    pub answers: Vec<(usize, proto::QueryReply)>,
}

/// What must be so, for a command to be carried out.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    pub revision: Option<u64>,
    pub scene: Option<String>,
    pub epoch: Option<u64>,
}

/// What streams tick at.
const INTERVALS_MS: [Option<u64>; 7] = [None, Some(60), Some(250), Some(500), Some(1_000), Some(1_000), Some(5_000)];

/// Makes something of a scene that only some have: an id, a name that others have, a hold.
fn hold_perhaps(rng: &mut Rng, scene: &mut proto::SceneConfig, ends: bool) {
    if rng.chance(300) {
        scene.scene_id = scene.name.replace("scene ", "id-");
    }
    if rng.chance(200) {
        scene.name = "scene 1".to_owned();
    }
    if rng.chance(350) {
        scene.at_end = AtEnd::Hold.into();
        scene.max_hold_ms = (ends || rng.chance(800)).then(|| rng.within(1, 4_000));
        if scene.max_hold_ms.is_some() && rng.chance(400) {
            scene.fallback_scene = "last".to_owned();
        }
    }
}

/// How many request ids all directors of a world share out: one after the other.
fn next_request_id(world: &mut World) -> usize {
    world.truth.request_ids += 1;
    world.truth.request_ids
}

impl World {
    /// Something happens, and something else later.
    pub fn act(&mut self) {
        if self.phase != Phase::Safety {
            return;
        }
        let next = self.rng.within(0, 2 * self.plan.act_every_ms);
        self.at(self.now + next, Event::Act);
        if self.rng.chance(self.plan.faults) {
            return self.something_breaks();
        }
        let gateway = self.rng.below(self.plan.all_gateways());
        let choice = self.rng.weighted(&[30, 12, 6, 8, 30, 4, 3, 5]);
        if let Some(client) = gateway.checked_sub(self.gateways.len()).filter(|_| choice < 4) {
            return self.real_gateway_acts(client, choice);
        }
        let gateway = gateway.min(self.gateways.len() - 1);
        let here = self.gateways[gateway].viewers.len();
        match choice {
            0 if self.gateways[gateway].alive => {
                let many = if self.plan.is_crowd() { self.rng.within(1, 400) } else { 1 };
                for _ in 0..many.min(self.places_left()) {
                    self.viewer_comes(gateway);
                }
            }
            1 | 2 if here > 0 => {
                let place = self.rng.below(here);
                self.viewer_goes(gateway, place, choice == 2);
            }
            3 if here > 0 => {
                let place = self.rng.below(here);
                self.viewer_reloads(gateway, place);
            }
            4 => self.command_something(),
            5 => self.ask_something(),
            6 => self.send_again(),
            7 if here > 1 => self.several_go(gateway),
            _ => {}
        }
    }

    /// Somebody commands a stream as fast as nobody should, and comes again.
    pub fn flood(&mut self) {
        let floods = self.phase == Phase::Safety && self.clock() < 5_000_u64.saturating_add(self.plan.flood_ms);
        let Some(every_ms) = self.plan.flood_every_ms.filter(|_| floods) else { return };
        self.at(self.now + every_ms, Event::Flood);
        let seek = proto::Seek { stream_id: stream_id(0), position_ms: self.rng.within(0, 2_000) };
        let answered = self.rng.chance(500);
        let request_id = self.plan.flood_has_ids.then(|| next_request_id(self));
        self.command(0, 0, Command::Seek(seek), request_id, answered);
    }

    /// How many viewers may still come.
    fn places_left(&self) -> u64 {
        let here: usize = self.gateways.iter().map(|gateway| gateway.viewers.len()).sum();
        (self.plan.viewers - self.plan.viewers.min(here + self.real_viewers().count())) as u64
    }

    /// The same choices for a gateway with a client.
    fn real_gateway_acts(&mut self, client: usize, choice: usize) {
        let here: Vec<usize> = self.clients.each[client].viewers.keys().copied().collect();
        if choice == 0 {
            let many = if self.plan.is_crowd() { self.rng.within(1, 100) } else { 1 };
            for _ in 0..many.min(self.places_left()) {
                let sub = self.somebody_perhaps_elsewhere();
                self.real_viewer_comes(client, sub);
            }
        } else if !here.is_empty() {
            let viewer = self.rng.pick(&here);
            if choice == 3 {
                let sub = self.clients.each[client].viewers[&viewer].sub;
                let (stream, client_id) = (self.truth.subs[sub].stream, Rc::clone(&self.truth.subs[sub].client));
                let sub = self.another_session(stream, client_id);
                self.real_viewer_comes(client, sub);
            }
            self.real_viewer_goes(client, viewer);
        }
    }

    fn something_breaks(&mut self) {
        let shard = self.rng.below(self.plan.shards);
        let gateway = self.rng.below(self.plan.all_gateways());
        let resizes = if self.plan.has_full_feeds { 60 } else { 6 };
        match self.rng.weighted(&[40, 8, 30, 6, 6, 6, resizes, 6]) {
            0 => {
                let parties = self.parties();
                let party = self.rng.pick(&parties);
                let for_ms = self.rng.pick(&[50, 500, 3_000, 12_000]);
                let for_ms = self.rng.within(1, for_ms);
                self.break_link(party, for_ms);
            }
            1 => {
                // The broker is gone, and everybody with it.
                let for_ms = self.rng.within(10, 8_000);
                self.max_payload = self.rng.pick(&self.plan.max_payloads.clone());
                for party in self.parties() {
                    let later = self.rng.within(0, 1_000);
                    self.break_link(party, for_ms + later);
                }
            }
            2 => {
                let for_ms = self.rng.pick(&[20, 200, 1_500, 5_000]);
                let for_ms = self.rng.within(1, for_ms);
                self.stall(shard, for_ms);
            }
            3 => {
                let for_ms = self.rng.within(self.plan.stale_after_ms / 2, self.plan.stale_after_ms * 2);
                self.stall(shard, for_ms.min(20_000));
            }
            4 => self.panic_next(shard),
            5 => self.something_is_denied(),
            6 => {
                let max_payload = self.rng.pick(&self.plan.max_payloads.clone());
                self.broker_takes(max_payload);
            }
            _ => match gateway.checked_sub(self.gateways.len()) {
                None if self.gateways[gateway].alive => self.gateway_dies(gateway),
                Some(client) if self.clients.each[client].is_alive() => self.client_dies(client),
                _ => {}
            },
        }
    }

    /// The broker refuses subscriptions to a stream's updates, or to a feed, for a while; or messages to it.
    fn something_is_denied(&mut self) {
        let stream_id = stream_id(self.rng.below(self.plan.streams));
        let id = StreamId::parse(&stream_id).expect("a stream's name");
        let feed =
            self.plan.publish_to == PublishTo::Feed || self.plan.publish_to == PublishTo::Both && self.rng.chance(500);
        let subject = if feed { subject::feed(id.partition()) } else { subject::updates(id) };
        let for_ms = self.rng.within(1, 8_000);
        let subject = subject.as_str().to_owned();
        if self.rng.chance(500) {
            return self.broker_refuses(subject, for_ms);
        }
        self.at(self.now + for_ms, Event::Allow(subject.clone()));
        self.broker_denies(subject);
    }

    // --- commands ------------------------------------------------------------------------------------------------

    fn command_something(&mut self) {
        let stream = self.rng.below(self.plan.streams);
        let stream_id = stream_id(stream);
        let command = match self.rng.weighted(&[30, 5, 10, 12, 10, 10, 8, 8, 8, 5, 3, 8, 8]) {
            0 => {
                let config = (!self.rng.chance(100)).then(|| self.config());
                Command::Start(proto::Start { stream_id, config })
            }
            1 => Command::Stop(proto::Stop { stream_id }),
            2 => Command::Pause(proto::Pause { stream_id }),
            3 => Command::Resume(proto::Resume { stream_id }),
            4 => {
                let place = self.rng.below(4);
                let scene_name = if self.rng.chance(300) { format!("id-{place}") } else { format!("scene {place}") };
                Command::ForceScene(proto::ForceScene { stream_id, scene_name })
            }
            5 => Command::SkipScene(proto::SkipScene { stream_id }),
            6 => Command::PreviousScene(proto::PreviousScene { stream_id }),
            7 => Command::Seek(proto::Seek { stream_id, position_ms: self.rng.within(0, 20_000) }),
            8 => Command::AdjustScene(proto::AdjustScene {
                stream_id,
                delta_ms: self.rng.within(0, 6_000) as i64 - 3_000,
            }),
            9 => Command::Reset(proto::Reset { stream_id }),
            10 => Command::Remove(proto::Remove { stream_id }),
            11 => Command::Reconfigure(proto::Reconfigure { stream_id, config: Some(self.config()) }),
            _ => Command::UpdateStreamStatus(proto::UpdateStreamStatus {
                stream_id,
                is_streaming: self.rng.chance(500),
                stream_time: self.rng.within(0, 1_000_000),
                timecode: format!("tc {}", self.truth.requests.len()),
            }),
        };
        let request_id = self.rng.chance(300).then(|| next_request_id(self));
        let said = self.truth.streams[stream].said.as_ref().map_or(0, |said| said.revision);
        let expected_revision = self.rng.chance(100).then(|| said + u64::from(self.rng.chance(200)));
        let place = self.rng.below(self.directors.len() + self.clients.each.len());
        let conditions = Conditions { revision: expected_revision, ..self.conditions(stream, &command) };
        // Two who see the same press at the same time: the second press is another command.
        let other = self.rng.chance(300) && conditions.scene.is_some() && matches!(command, Command::SkipScene(_));
        let other = other.then(|| (self.rng.below(self.directors.len()), command.clone(), conditions.clone()));
        if let Some(client) = place.checked_sub(self.directors.len()) {
            // Its attempts are one command, so they need an id.
            let request_id = request_id.unwrap_or_else(|| next_request_id(self));
            self.client_commands(client, stream, command, request_id, conditions);
        } else {
            let answered = !self.rng.chance(self.plan.unanswered);
            self.command_where(place, stream, command, request_id, conditions, answered);
        }
        if let Some((director, command, conditions)) = other {
            self.command_where(director, stream, command, None, conditions, true);
        }
    }

    /// What a director takes for the state of a stream, as a command may expect it. Who skips a scene often says which.
    fn conditions(&mut self, stream: usize, command: &Command) -> Conditions {
        let often = if matches!(command, Command::SkipScene(_)) { 500 } else { 100 };
        let Some(said) = self.truth.streams[stream].said.clone().filter(|_| self.rng.chance(often)) else {
            return Conditions::default();
        };
        let current = said.scene_id.clone().or_else(|| said.current_scene.clone()).unwrap_or_default();
        let scene = if self.rng.chance(100) { "scene 3".to_owned() } else { current };
        Conditions {
            revision: None,
            scene: self.rng.chance(700).then_some(scene),
            epoch: self.rng.chance(500).then_some(said.epoch + u64::from(self.rng.chance(100))),
        }
    }

    fn command(&mut self, director: usize, stream: usize, command: Command, request_id: Option<usize>, answered: bool) {
        let conditions = self.conditions(stream, &command);
        self.command_where(director, stream, command, request_id, conditions, answered);
    }

    fn command_where(
        &mut self,
        director: usize,
        stream: usize,
        command: Command,
        request_id: Option<usize>,
        conditions: Conditions,
        answered: bool,
    ) {
        self.note_endless(stream, &command);
        let message = proto::OrchestratorCommand {
            issued_by: self.sign(stream, &command),
            command: Some(command),
            request_id: request_id.map(|id| format!("request {id}")).unwrap_or_default(),
            expected_revision: conditions.revision,
            expected_epoch: conditions.epoch,
            expected_scene: conditions.scene,
        };
        let sent = || Sent {
            from: Party::Director(director),
            subject: subject::COMMAND,
            payload: encoded(&message),
            request: None,
            what: What::Command { stream, request_id },
            round: Vec::new(),
        };
        if request_id.is_some() {
            self.directors[director].last = Some((Rc::new(sent()), answered));
            if let Some(id) = request_id {
                let before = &mut self.directors[director].before;
                before.push((stream, id));
                // What is remembered for two minutes was said a while ago.
                let place = self.rng.below(before.len());
                if before.len() > 8 {
                    before.swap_remove(place);
                }
            }
        }
        self.ask(sent(), answered);
    }

    /// A show that begins by itself and has no end stays until somebody calls it off.
    pub fn note_endless(&mut self, stream: usize, command: &Command) {
        let config = match command {
            Command::Start(proto::Start { config: Some(config), .. })
            | Command::Reconfigure(proto::Reconfigure { config: Some(config), .. }) => config,
            _ => return,
        };
        let holds = config.scenes.iter().any(|scene| scene.at_end() == AtEnd::Hold && scene.max_hold_ms.is_none());
        if config.starts_at_ms.is_some() && (config.loop_scenes || holds) {
            self.truth.streams[stream].may_be_endless = true;
        }
    }

    /// Whoever planned a show without an end stops it, when everybody has left.
    pub fn call_off_endless_shows(&mut self) {
        for stream in 0..self.plan.streams {
            if self.truth.streams[stream].may_be_endless {
                let stop = Command::Stop(proto::Stop { stream_id: stream_id(stream) });
                self.command_where(0, stream, stop, None, Conditions::default(), true);
                self.run_until(self.now + 500);
            }
        }
    }

    /// Who a command is from: its number, or nobody.
    pub fn sign(&mut self, stream: usize, command: &Command) -> String {
        let commands = &mut self.truth.commands;
        let number = commands.len();
        commands.push((stream, action_of(command)));
        if number.is_multiple_of(4) { String::new() } else { format!("command {number}") }
    }

    /// A director has waited for an answer in vain, or is impatient: the same request, under the same id. Or it confuses
    /// the ids, and asks for something else under one that it has used.
    fn send_again(&mut self) {
        let director = self.rng.below(self.directors.len());
        if self.rng.chance(300) && !self.directors[director].before.is_empty() {
            let before = self.rng.pick(&self.directors[director].before.clone());
            return self.confuse(director, before);
        }
        let Some((last, answered)) = self.directors[director].last.clone() else { return };
        let What::Command { stream, request_id } = last.what else { return };
        let what = What::Command { stream, request_id };
        let Sent { from, subject, ref payload, ref round, .. } = *last;
        let (payload, round) = (payload.clone(), round.clone());
        self.ask(Sent { from, subject, payload, request: None, what, round }, answered);
    }

    fn confuse(&mut self, director: usize, (stream, id): (usize, usize)) {
        let stream_id = stream_id(stream);
        let command = match self.rng.below(4) {
            0 => Command::Pause(proto::Pause { stream_id }),
            1 => Command::Resume(proto::Resume { stream_id }),
            2 => Command::Stop(proto::Stop { stream_id }),
            _ => Command::Seek(proto::Seek { stream_id, position_ms: self.rng.within(0, 3) * 1_000 }),
        };
        self.command(director, stream, command, Some(id), true);
    }

    fn config(&mut self) -> proto::OrchestratorConfig {
        // The default is not said, as most would have it.
        let empty_grace_ms = Some(self.plan.grace_ms).filter(|grace| *grace != DEFAULT_EMPTY_GRACE_MS);
        let (has_holds, wall_ms) = (self.plan.has_holds, self.now + self.plan.skew_ms);
        let rng = &mut self.rng;
        let mut scenes: Vec<_> = (0..rng.within(1, 5))
            .map(|place| {
                let most = rng.pick(&[2_000, 2_000, 10_000, 30_000]);
                let least = if rng.chance(60) { 1 } else { 200 };
                let short = least == 1;
                let duration_ms = if short { rng.within(1, 40) } else { rng.within(least, most) };
                proto::SceneConfig { name: format!("scene {place}"), duration_ms, ..Default::default() }
            })
            // None so short that a pass would be over at once.
            .chain([proto::SceneConfig { name: "last".to_owned(), duration_ms: 700, ..Default::default() }])
            .collect();
        let starts_at_ms = (has_holds && rng.chance(200)).then(|| wall_ms + rng.within(0, 13_000) - 3_000);
        // One that starts by itself stays until its end; one without an end, until somebody calls it off.
        let ends = starts_at_ms.is_some() && rng.chance(500);
        if has_holds {
            let last = scenes.len() - 1;
            scenes[..last].iter_mut().for_each(|scene| hold_perhaps(rng, scene, ends));
        }
        proto::OrchestratorConfig {
            scenes,
            tick_interval_ms: self.plan.tick_interval_ms.or_else(|| rng.pick(&INTERVALS_MS)),
            loop_scenes: !ends && rng.chance(500),
            starts_at_ms,
            no_ticks: has_holds && self.plan.tick_interval_ms.is_none() && rng.chance(200),
            when_empty: rng.within(0, 2) as i32,
            empty_grace_ms,
            idle_timeout_ms: rng.pick(&[None, Some(1_000), Some(6_000), Some(20_000)]),
            ..Default::default()
        }
    }

    /// Every stream is there, and somebody watches it.
    pub fn everything_plays(&mut self) {
        // Short ones are changes to publish; where there are floods, a stream's own would hold up its ticks.
        let (least, most) = if self.plan.has_full_feeds { (200, 1_500) } else { (15_000, 40_000) };
        for stream in 0..self.plan.streams {
            let scenes = (0..self.rng.within(2, 5)).map(|place| proto::SceneConfig {
                name: format!("scene {place}"),
                duration_ms: self.rng.within(least, most),
                ..Default::default()
            });
            let config = Some(proto::OrchestratorConfig {
                scenes: scenes.collect(),
                tick_interval_ms: Some(self.plan.tick_interval_ms.unwrap_or(250)),
                loop_scenes: true,
                empty_grace_ms: Some(self.plan.grace_ms),
                ..Default::default()
            });
            let start = Command::Start(proto::Start { stream_id: stream_id(stream), config });
            self.command(0, stream, start, None, true);
            let gateway = self.rng.below(self.gateways.len());
            self.viewer_of(gateway, stream);
        }
    }

    /// In the liveness phase a stream that somebody wants to watch is there.
    pub fn start_for_good(&mut self, stream: usize) {
        let scenes = vec![
            proto::SceneConfig { name: "scene 0".to_owned(), duration_ms: 4_000, ..Default::default() },
            proto::SceneConfig { name: "scene 1".to_owned(), duration_ms: 9_000, ..Default::default() },
        ];
        let config = Some(proto::OrchestratorConfig {
            scenes,
            tick_interval_ms: Some(self.plan.tick_interval_ms.unwrap_or(1_000)),
            loop_scenes: true,
            empty_grace_ms: Some(self.plan.grace_ms),
            ..Default::default()
        });
        let start = Command::Start(proto::Start { stream_id: stream_id(stream), config });
        self.command(0, stream, start, None, true);
    }

    // --- questions -----------------------------------------------------------------------------------------------

    pub fn question(&mut self, director: usize, query: query::Query, what: What) -> Option<usize> {
        let round = round(&self.service, "", &[], &what);
        let payload = encoded(&proto::Query { query: Some(query) });
        let (from, subject) = (Party::Director(director), subject::QUERY);
        self.ask(Sent { from, subject, payload, request: None, what, round }, true)
    }

    fn ask_something(&mut self) {
        let director = self.rng.below(self.directors.len());
        let stream = self.rng.below(self.plan.streams);
        let stream_id = stream_id(stream);
        match self.rng.below(7) {
            6 => self.question(
                director,
                query::Query::GetConfig(proto::GetConfig { stream_id }),
                What::Config { stream },
            ),
            0 => self.question(director, query::Query::GetState(proto::GetState { stream_id }), What::State { stream }),
            1 => {
                let what = What::Stats { stream: Some(stream) };
                self.question(director, query::Query::GetStats(proto::GetStats { stream_id }), what)
            }
            2 => self.question(
                director,
                query::Query::GetStats(proto::GetStats::default()),
                What::Stats { stream: None },
            ),
            3 => self.question(director, query::Query::ListStreams(proto::ListStreams::default()), What::List),
            4 => self.ask_history(director, stream),
            _ => self.ask_subscribers(director, stream),
        };
    }

    pub fn ask_history(&mut self, director: usize, stream: usize) -> Option<usize> {
        let asked = proto::GetHistory { stream_id: stream_id(stream), limit: 256, before_revision: 0 };
        self.question(director, query::Query::GetHistory(asked), What::History { stream })
    }

    pub fn ask_subscribers(&mut self, director: usize, stream: usize) -> Option<usize> {
        let asked = proto::ListSubscribers { stream_id: stream_id(stream), limit: 1_000, cursor: String::new() };
        self.question(director, query::Query::ListSubscribers(asked), What::Subscribers { stream })
    }

    /// Who computes where a stream is has to know its scenes: asks for them when they have changed.
    pub fn ask_for_scenes(&mut self, update: &Update) {
        if self.phase == Phase::Empty || update.mode() == Mode::Unknown || self.truth.note_asked_for_scenes(update) {
            return;
        }
        let config = query::Query::GetConfig(proto::GetConfig { stream_id: update.stream_id.clone() });
        self.question(0, config, What::Config { stream: update.stream });
    }

    pub fn director_answered(&mut self, director: usize, answer: &Answer) {
        self.log.note(self.clock(), "director answered", &[director as u64, answer.request as u64], &[]);
        if let AnswerBody::Query(reply) = &answer.body
            && self.directors[director].questions.contains(&answer.request)
        {
            self.directors[director].answers.push((answer.request, reply.clone()));
        }
    }
}

/// What a command is in a history.
fn action_of(command: &Command) -> HistoryAction {
    match command {
        Command::Start(_) => HistoryAction::Start,
        Command::Stop(_) => HistoryAction::Stop,
        Command::Pause(_) => HistoryAction::Pause,
        Command::Resume(_) => HistoryAction::Resume,
        Command::ForceScene(_) => HistoryAction::ForceScene,
        Command::SkipScene(_) => HistoryAction::SkipScene,
        Command::UpdateStreamStatus(_) => HistoryAction::UpdateStreamStatus,
        Command::Reconfigure(_) => HistoryAction::Reconfigure,
        Command::Reset(_) => HistoryAction::Reset,
        Command::Remove(_) => HistoryAction::Remove,
        Command::Seek(_) => HistoryAction::Seek,
        Command::PreviousScene(_) => HistoryAction::PreviousScene,
        Command::AdjustScene(_) => HistoryAction::AdjustScene,
    }
}
