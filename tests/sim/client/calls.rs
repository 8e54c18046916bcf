//! What clients ask of their connections, carried out; and what comes over them.

use std::rc::Rc;

use bytes::Bytes;
use orchestrator_service::{
    transport::{Denial, Message as Received, Operation, Subject, TransportError},
    wire::{
        proto::{self, orchestrator_command::Command, query::Query, subscription_command},
        subject,
    },
};
use prost::Message as _;

use super::{RealGateway, Subscribed, Waiting, transport::Call, viewer::filters};
use crate::{
    net::{Answer, AnswerBody, Link, Message, Party, Sent, Updates, What},
    reading::stream_number,
    service::round,
    world::World,
};

impl World {
    // --- what clients ask of their connections -------------------------------------------------------------------

    pub(super) fn carry_out(&mut self, transport: usize, call: Call) {
        // What the dead ask for nobody hears.
        let client = self.clients.each.iter().position(|gateway| gateway.transport_number == transport);
        let Some(client) = client else { return };
        match call {
            Call::Subscribe { number, subject, messages, denied, confirmed } => {
                self.log.note(self.clock(), "subscribes", &[client as u64, number], subject.as_bytes());
                let confirmed = Some(confirmed);
                let subscribed = Subscribed { subject: subject.clone(), messages, denied, confirmed };
                self.clients.each[client].subscriptions.insert(number, subscribed);
                self.send(Party::Client(client), Message::Subscribe { number, subject });
            }
            Call::Unsubscribe { number } => {
                self.log.note(self.clock(), "unsubscribes", &[client as u64, number], &[]);
                if self.clients.each[client].subscriptions.remove(&number).is_some() {
                    self.send(Party::Client(client), Message::Unsubscribe { number });
                }
            }
            Call::Request { number, subject, payload, answers } => {
                let sent = self.read_request(client, &subject, payload);
                self.note_who_may_leave(client, &sent.what);
                self.note_who_is_asked_for(client, &sent.what);
                match self.ask(sent, true) {
                    Some(request) => {
                        self.clients.each[client].requests.insert(request, Waiting { number, answers });
                    }
                    None => _ = answers.send(Err(TransportError::Disconnected)),
                }
            }
            Call::Abandon { number } => {
                self.clients.each[client].requests.retain(|_, waiting| waiting.number != number);
            }
        }
    }

    /// Whoever registers may not hear of its handle; until it does, it can only leave by name.
    fn note_who_may_leave(&mut self, client: usize, what: &What) {
        match what {
            What::Join(subs) => subs.iter().for_each(|sub| _ = self.clients.each[client].given.remove(sub)),
            What::Leave(subs) => {
                for (sub, _) in subs.iter().filter(|(_, handle)| handle.is_none()) {
                    self.truth.leaves_by_name(*sub, self.clients.each[client].given.get(sub).copied());
                }
            }
            _ => {}
        }
    }

    fn note_who_is_asked_for(&mut self, client: usize, what: &What) {
        let (now, truth, RealGateway { asked, viewers, .. }) = (self.now, &self.truth, &mut self.clients.each[client]);
        match what {
            What::Join(subs) => asked.extend(subs.iter().map(|sub| (*sub, now))),
            What::Beat(subs) => {
                asked.extend(subs.iter().filter(|(_, handle)| handle.is_none()).map(|(sub, _)| (*sub, now)))
            }
            // Who follows a filter does so before it registers, and not where there is no stream.
            What::Follow { stream, filter } => {
                let theirs = viewers.values().filter(|viewer| viewer.filter == Some(*filter));
                let theirs = theirs.filter(|viewer| truth.subs[viewer.sub].stream == *stream);
                asked.extend(theirs.map(|viewer| (viewer.sub, now)));
            }
            _ => {}
        }
    }

    fn note_given(&mut self, client: usize, answer: &Answer) {
        let AnswerBody::Reply(reply) = &answer.body else { return };
        let is_waited_for = self.clients.each[client].requests.contains_key(&answer.request);
        if !is_waited_for || !matches!(self.truth.requests[answer.request].sent.what, What::Join(_)) {
            return;
        }
        for handle in std::iter::once(&reply.handle).chain(&reply.handles) {
            if let Some(given) = self.truth.handles.get(handle) {
                self.clients.each[client].given.insert(given.sub, given.serial);
            }
        }
    }

    /// What a client's request is about.
    fn read_request(&self, client: usize, subject: &str, payload: Bytes) -> Sent {
        let from = Party::Client(client);
        let read = |what, subject, round| Sent { from, subject, payload: payload.clone(), request: None, what, round };
        match subject {
            subject::COMMAND => {
                let message = proto::OrchestratorCommand::decode(payload.clone()).expect("a command");
                let stream = stream_number(named(message.command.as_ref().expect("a command")));
                let request_id = message.request_id.strip_prefix("request ").and_then(|id| id.parse().ok());
                read(What::Command { stream, request_id }, subject::COMMAND, Vec::new())
            }
            subject::QUERY => {
                let what = match proto::Query::decode(payload.clone()).expect("a query").query.expect("a query") {
                    Query::GetState(query) => What::State { stream: stream_number(&query.stream_id) },
                    Query::GetStats(query) if query.stream_id.is_empty() => What::Stats { stream: None },
                    Query::GetStats(query) => What::Stats { stream: Some(stream_number(&query.stream_id)) },
                    Query::ListStreams(_) => What::List,
                    Query::GetHistory(query) => What::History { stream: stream_number(&query.stream_id) },
                    Query::ListSubscribers(query) => What::Subscribers { stream: stream_number(&query.stream_id) },
                    other @ (Query::GetConfig(_) | Query::GetTime(_)) => {
                        unreachable!("no client of this world asks {other:?}")
                    }
                };
                let round = round(&self.service, "", &[], &what);
                read(what, subject::QUERY, round)
            }
            _ => {
                let message = proto::SubscriptionCommand::decode(payload.clone()).expect("a subscription");
                let command = message.command.expect("a subscription");
                let (stream_id, handles, what) = self.read_subscription(&command);
                let round = round(&self.service, stream_id, handles, &what);
                read(what, subject::SUBSCRIPTION, round)
            }
        }
    }

    fn read_subscription<'a>(&self, command: &'a subscription_command::Command) -> (&'a str, &'a [u64], What) {
        use subscription_command::Command;
        let sub = |stream_id: &str, client_id: &str, session| {
            let known = self.truth.sub(stream_number(stream_id), client_id, session);
            known.expect("a client registers whom this world has made")
        };
        let by_handle = |handles: &[u64]| {
            let known = |handle: &u64| self.truth.handles.get(handle).map(|given| (given.sub, Some(*handle)));
            handles.iter().map(|handle| known(handle).expect("a handle that was given out")).collect::<Vec<_>>()
        };
        let by_name = |stream_id: &str, clients: &[String]| {
            assert!(clients.is_empty(), "a client names nobody by client alone: {clients:?} of {stream_id:?}");
        };
        match command {
            Command::Register(register) => (
                &register.stream_id,
                &[],
                What::Join(vec![sub(&register.stream_id, &register.client_id, register.session)]),
            ),
            Command::RegisterBatch(batch) => {
                let subs = batch.subscriber.iter().map(|one| sub(&batch.stream_id, &one.client_id, one.session));
                (&batch.stream_id, &[], What::Join(subs.collect()))
            }
            Command::Unregister(leave) => {
                let sub = sub(&leave.stream_id, &leave.client_id, leave.session);
                (&leave.stream_id, &[], What::Leave(vec![(sub, None)]))
            }
            Command::Heartbeat(beat) => {
                let sub = sub(&beat.stream_id, &beat.client_id, beat.session);
                (&beat.stream_id, &[], What::Beat(vec![(sub, None)]))
            }
            Command::HeartbeatBatch(batch) => {
                by_name(&batch.stream_id, &batch.client_id);
                (&batch.stream_id, &batch.handle, What::Beat(by_handle(&batch.handle)))
            }
            Command::UnregisterBatch(batch) => {
                by_name(&batch.stream_id, &batch.client_id);
                (&batch.stream_id, &batch.handle, What::Leave(by_handle(&batch.handle)))
            }
            Command::Follow(follow) => {
                let filter = follow.filter.as_ref().expect("a filter");
                let filter = filters().iter().position(|known| known == filter).expect("a filter of this world");
                (&follow.stream_id, &[], What::Follow { stream: stream_number(&follow.stream_id), filter })
            }
        }
    }

    // --- what the broker does for them ---------------------------------------------------------------------------

    pub fn broker_subscribes(&mut self, client: usize, number: u64, subject: String) {
        let denied = self.denied_subjects.contains(&subject);
        if !denied {
            self.clients.each[client].at_broker.insert(number, subject);
        }
        self.deliver(Party::Client(client), Message::Subscribed { number, denied });
    }

    pub fn broker_unsubscribes(&mut self, client: usize, number: u64) {
        self.clients.each[client].at_broker.remove(&number);
    }

    /// Sends an update to the clients that have subscribed to it.
    pub fn broker_forwards(&mut self, updates: &Rc<Updates>) {
        for client in 0..self.clients.each.len() {
            if self.clients.each[client].at_broker.values().any(|subject| *subject == updates.subject) {
                self.deliver(Party::Client(client), Message::Updates(Rc::clone(updates)));
            }
        }
    }

    /// The broker refuses subscriptions to a subject from now on, those too that it has.
    pub fn broker_denies(&mut self, subject: String) {
        self.log.note(self.clock(), "broker denies", &[], subject.as_bytes());
        for client in 0..self.clients.each.len() {
            let at_broker = &self.clients.each[client].at_broker;
            let denied: Vec<u64> =
                at_broker.iter().filter(|(_, known)| **known == subject).map(|(number, _)| *number).collect();
            for number in denied {
                self.clients.each[client].at_broker.remove(&number);
                self.deliver(Party::Client(client), Message::Subscribed { number, denied: true });
            }
        }
        self.denied_subjects.insert(subject);
    }

    /// The broker allows a subject again: who holds a subscription to it tries again, and has it.
    pub fn broker_allows(&mut self, subject: &str) {
        if !self.denied_subjects.remove(subject) {
            return;
        }
        self.log.note(self.clock(), "broker allows", &[], subject.as_bytes());
        for client in 0..self.clients.each.len() {
            if !self.link(Party::Client(client)).alive {
                continue;
            }
            let held = self.clients.each[client].subscriptions.iter();
            let held = held.filter(|(_, known)| known.subject == subject && known.confirmed.is_none());
            for number in held.map(|(number, _)| *number).collect::<Vec<_>>() {
                self.clients.each[client].at_broker.insert(number, subject.to_owned());
                self.deliver(Party::Client(client), Message::Subscribed { number, denied: false });
            }
        }
    }

    // --- what comes over a client's connection -------------------------------------------------------------------

    pub fn client_subscribed(&mut self, client: usize, number: u64, is_denied: bool) {
        let gateway = &mut self.clients.each[client];
        let Some(subscribed) = gateway.subscriptions.get_mut(&number) else { return };
        let denial = is_denied.then(|| denial(&subscribed.subject));
        self.clients.has_news = true;
        match (subscribed.confirmed.take(), denial) {
            (Some(confirmed), None) => _ = confirmed.send(Ok(())),
            (Some(confirmed), Some(denial)) => {
                gateway.subscriptions.remove(&number);
                let _ = confirmed.send(Err(TransportError::Denied(denial)));
            }
            (None, denial) => {
                // What was published meanwhile is lost.
                gateway.gaps += 1;
                gateway.connected_since = self.now;
                subscribed.denied.send_replace(denial);
            }
        }
    }

    pub fn client_sees_updates(&mut self, client: usize, updates: &Updates) {
        self.log.note(self.clock(), "client receives", &[client as u64], updates.subject.as_bytes());
        for subscribed in self.clients.each[client].subscriptions.values() {
            if subscribed.subject == updates.subject {
                let subject = Subject::from(updates.subject.as_str());
                let _ = subscribed.messages.send(Received { subject, payload: updates.payload.clone(), reply: None });
            }
        }
        self.clients.has_news = true;
    }

    pub fn client_answered(&mut self, client: usize, answer: &Answer) {
        self.log.note(self.clock(), "client answered", &[client as u64, answer.request as u64], &[]);
        self.note_given(client, answer);
        self.client_request_hears(client, answer.request, Ok(answer.payload.clone()));
    }

    /// Something came on a request's inbox that is no answer of the service.
    pub fn client_hears_another(&mut self, client: usize, request: usize, payload: Bytes) {
        self.log.note(self.clock(), "client hears another", &[client as u64, request as u64], &payload);
        self.client_request_hears(client, request, Ok(payload));
    }

    pub fn client_found_nobody(&mut self, client: usize, request: usize) {
        self.log.note(self.clock(), "client found nobody", &[client as u64, request as u64], &[]);
        let subject = self.truth.requests[request].sent.subject.to_owned();
        self.client_request_hears(client, request, Err(TransportError::NoResponders(subject)));
    }

    fn client_request_hears(&mut self, client: usize, request: usize, answer: Result<Bytes, TransportError>) {
        let Some(waiting) = self.clients.each[client].requests.get(&request) else { return };
        let subject = Subject::from("_INBOX.client");
        let _ = waiting.answers.send(answer.map(|payload| Received { subject, payload, reply: None }));
        self.clients.has_news = true;
    }

    pub fn client_connection_changed(&mut self, client: usize) {
        let Link { believed, max_payload, .. } = *self.link(Party::Client(client));
        let gateway = &mut self.clients.each[client];
        if believed.connected {
            (gateway.connected_since, gateway.reconnected_at) = (self.now, self.now);
            // Before anything else is sent, as by the transport over NATS.
            gateway.at_broker.clear();
            for (number, subscribed) in &gateway.subscriptions {
                let is_denied = self.denied_subjects.contains(&subscribed.subject);
                subscribed.denied.send_replace(is_denied.then(|| denial(&subscribed.subject)));
                if subscribed.confirmed.is_none() && !is_denied {
                    gateway.at_broker.insert(*number, subscribed.subject.clone());
                }
            }
        }
        gateway.transport.is_now(believed);
        gateway.transport.takes(max_payload);
        for subscribed in gateway.subscriptions.values_mut() {
            if let Some(confirmed) = subscribed.confirmed.take() {
                let _ = confirmed.send(Err(TransportError::Disconnected));
            }
        }
        for waiting in gateway.requests.values() {
            let _ = waiting.answers.send(Err(TransportError::Disconnected));
        }
        self.clients.has_news = true;
    }

    pub fn client_connection_takes(&mut self, client: usize) {
        let max_payload = self.link(Party::Client(client)).max_payload;
        self.clients.each[client].transport.takes(max_payload);
    }

    /// The broker has lost its end.
    pub fn client_connection_breaks(&mut self, client: usize) {
        self.clients.each[client].at_broker.clear();
    }
}

fn denial(subject: &str) -> Denial {
    let reason = "permissions violation".to_owned();
    Denial { operation: Operation::Subscribe, subject: subject.to_owned(), reason }
}

/// The stream that a command names.
fn named(command: &Command) -> &str {
    match command {
        Command::Start(command) => &command.stream_id,
        Command::Stop(command) => &command.stream_id,
        Command::Pause(command) => &command.stream_id,
        Command::Resume(command) => &command.stream_id,
        Command::ForceScene(command) => &command.stream_id,
        Command::SkipScene(command) => &command.stream_id,
        Command::UpdateStreamStatus(command) => &command.stream_id,
        Command::Reconfigure(command) => &command.stream_id,
        Command::Reset(command) => &command.stream_id,
        Command::Remove(command) => &command.stream_id,
        Command::Seek(command) => &command.stream_id,
        Command::PreviousScene(command) => &command.stream_id,
        Command::AdjustScene(command) => &command.stream_id,
    }
}
