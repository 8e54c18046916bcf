//! The audit at the end: when all is quiet, somebody asks about everything, and what is answered must be the world's.

use std::{collections::BTreeMap, rc::Rc};

use orchestrator_service::wire::proto::{self, query};

use crate::{
    checkers::Fact,
    gateway::SubId,
    net::What,
    reading::{stream_id, stream_number},
    world::World,
};

impl World {
    /// All is quiet: somebody asks about everything.
    pub fn audit(&mut self) {
        self.log.note(self.clock(), "audit", &[], &[]);
        for stream in 0..self.plan.streams {
            let state = query::Query::GetState(proto::GetState { stream_id: stream_id(stream) });
            let stats = query::Query::GetStats(proto::GetStats { stream_id: stream_id(stream) });
            let questions = [
                self.question(0, state, What::State { stream }),
                self.question(0, stats, What::Stats { stream: Some(stream) }),
                self.ask_history(0, stream),
                self.ask_subscribers(0, stream),
            ];
            self.directors[0].questions.extend(questions.into_iter().flatten());
        }
    }

    /// A viewer that its gateway has not registered: gateway, client and stream.
    pub fn unregistered(&self) -> Option<(usize, String, usize)> {
        let of_gateways = self.gateways.iter().enumerate().find_map(|(number, gateway)| {
            let viewer = gateway.viewers.iter().find(|viewer| !viewer.registered)?;
            Some((number, viewer.sub))
        });
        let of_clients = || {
            let unregistered = self.real_viewers().find(|(_, viewer)| !viewer.registered);
            unregistered.map(|(client, viewer)| (self.gateways.len() + client, viewer.sub))
        };
        let (gateway, sub) = of_gateways.or_else(of_clients)?;
        let sub = &self.truth.subs[sub];
        Some((gateway, sub.client.to_string(), sub.stream))
    }

    /// Who watches, by their gateways: each subscriber, perhaps of several.
    pub fn watchers(&self) -> impl Iterator<Item = SubId> {
        let of_gateways = self.gateways.iter().flat_map(|gateway| &gateway.viewers).map(|viewer| viewer.sub);
        of_gateways.chain(self.real_viewers().map(|(_, viewer)| viewer.sub))
    }

    fn viewers_of(&self, stream: usize) -> Vec<(String, u64)> {
        self.watchers()
            .map(|sub| &self.truth.subs[sub])
            .filter(|sub| sub.stream == stream)
            .map(|sub| (sub.client.to_string(), sub.session))
            .collect()
    }

    /// Tells the checkers what came of it.
    pub fn check_quiet(&mut self) {
        for shard in 0..self.plan.shards {
            let own = &self.service.shards[shard];
            own.shard.engine().check();
            own.queue.check();
        }
        self.check_clients_see_the_service();
        let answers = std::mem::take(&mut self.directors[0].answers);
        assert_eq!(answers.len(), 4 * self.plan.streams, "convergence: every question of the audit is answered");
        let states: BTreeMap<usize, proto::StateUpdate> = (answers.iter())
            .filter_map(|(_, reply)| reply.state.first())
            .map(|state| (stream_number(&state.stream_id), state.clone()))
            .collect();
        for (request, reply) in answers {
            let sent = Rc::clone(&self.truth.requests[request].sent);
            match sent.what {
                What::Stats { stream: Some(stream) } => {
                    let viewers = self.viewers_of(stream);
                    self.fact(&Fact::QuietCounts { stream, answer: &reply, viewers: &viewers });
                }
                What::Subscribers { stream } => {
                    let viewers = self.viewers_of(stream);
                    self.fact(&Fact::QuietSubscribers { stream, answer: &reply, viewers: &viewers });
                }
                What::History { stream } => {
                    let state = states.get(&stream);
                    self.fact(&Fact::QuietHistory { stream, answer: &reply, state });
                }
                What::State { stream } => {
                    let watched = self.watchers().any(|sub| self.truth.subs[sub].stream == stream);
                    for gateway in 0..self.gateways.len() {
                        let view = self.gateways[gateway].views[stream].clone();
                        let view = view.as_ref().map(|(_, view)| &**view);
                        let connected_since = self.gateways[gateway].connected_since;
                        let (answer, reads_feed) = (&reply, self.gateways[gateway].reads_feed);
                        self.fact(&Fact::QuietView {
                            gateway,
                            stream,
                            answer,
                            view,
                            connected_since,
                            reads_feed,
                            watched,
                        });
                    }
                    self.check_quiet_clients(stream, &reply);
                }
                _ => {}
            }
        }
    }

    /// The viewers of clients see what is, too.
    fn check_quiet_clients(&mut self, stream: usize, answer: &proto::QueryReply) {
        let views: Vec<_> = (self.real_viewers())
            .filter(|(_, viewer)| self.truth.subs[viewer.sub].stream == stream)
            .map(|(client, viewer)| (client, viewer.view.clone(), viewer.since, viewer.filter))
            .collect();
        for (client, view, since, filter) in views {
            let connected_since = self.clients.each[client].connected_since.max(since);
            let (gateway, view) = (self.gateways.len() + client, view.as_ref().map(|(_, view)| &**view));
            let reads_feed = self.clients.each[client].reads_feed();
            if let Some(filter) = filter {
                self.fact(&Fact::QuietFiltered { gateway, stream, filter, answer, view });
                continue;
            }
            let watched = true;
            self.fact(&Fact::QuietView { gateway, stream, answer, view, connected_since, reads_feed, watched });
        }
    }
}
