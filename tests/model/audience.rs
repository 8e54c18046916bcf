//! Who watches: how the reference lets subscribers come, be heard of and leave, by name, by handle and in batches.

use orchestrator_service::engine::{Cause, Counts, Mode};

use crate::{
    bytes::{id_bytes, source_bytes},
    reference::Model,
    steps::{CLIENTS, MAX_SESSIONS, MAX_SUBSCRIBERS, Many, STREAMS, Ticket, Who},
    stream::{Member, Stream},
    told::{Answer, Holder, Outcome, Refusal, Told},
};

impl Model {
    pub(crate) fn register(&mut self, name: &'static str, who: Who, answered: bool, told: &mut Told) -> Outcome {
        let now = self.now;
        self.bring(name, told).ok_or(Refusal::StreamNotFound)?;
        let new = self.streams[name].place(who).is_none();
        let said = told.facts.len();
        let ticket = self.join(name, who, told)?;
        let stream = self.streams.get_mut(name).expect("it was just joined");
        if !answered && told.facts.len() == said {
            stream.owes_snapshot(now, told);
        }
        let (total, state) = (stream.audience.len() as u64, stream.fact(now, Cause::Snapshot));
        Ok(Answer::Registered { ticket, new, total, state })
    }

    pub(crate) fn register_batch(
        &mut self,
        name: &'static str,
        who: &[Option<Who>],
        answered: bool,
        told: &mut Told,
    ) -> Outcome {
        let now = self.now;
        self.bring(name, told).ok_or(Refusal::StreamNotFound)?;
        let said = told.facts.len();
        let mut tickets = Vec::new();
        for who in who {
            tickets.push(match who {
                Some(who) => self.join(name, *who, told),
                None => Err(Refusal::Invalid),
            });
        }
        let stream = self.streams.get_mut(name).expect("it was just joined");
        if !answered && told.facts.len() == said && tickets.iter().any(Result::is_ok) {
            stream.owes_snapshot(now, told);
        }
        Ok(Answer::RegisteredBatch { tickets, state: stream.fact(now, Cause::Snapshot) })
    }

    /// Adds a subscriber to a stream that is there, or refreshes it. Returns its ticket, which is a new one in any case:
    /// what an earlier connection holds stands for nobody from then on.
    pub(crate) fn join(&mut self, name: &'static str, who: Who, told: &mut Told) -> Result<usize, Refusal> {
        let total = self.counts().total;
        if let Some(place) = self.streams[name].place(who) {
            let before = source_bytes(self.streams[name].audience[place].from);
            self.check_client_bytes(source_bytes(who.from).saturating_sub(before))?;
            let stream = self.streams.get_mut(name).expect("the caller has looked");
            let member = &mut stream.audience[place];
            (member.from, member.ticket) = (who.from, self.tickets);
            self.tickets += 1;
            self.touch(name, place, told);
            return Ok(self.tickets - 1);
        }
        if total >= self.max_subscribers.min(MAX_SUBSCRIBERS) {
            return Err(Refusal::Exhausted { what: "subscribers", limit: MAX_SUBSCRIBERS });
        }
        let sessions = self.streams[name].audience.iter().filter(|member| member.client == who.client).count();
        if sessions >= MAX_SESSIONS as usize {
            let limit = u64::from(MAX_SESSIONS);
            return Err(Refusal::Exhausted { what: "sessions of one client on a stream", limit });
        }
        let Who { client, session, from } = who;
        self.check_client_bytes(id_bytes(client) + source_bytes(from))?;
        let stream = self.streams.get_mut(name).expect("the caller has looked");
        let ticket = self.tickets;
        self.tickets += 1;
        // Behind the first session of the client, because a batch that names the client meets them in this order. It
        // shows when the last one watching leaves before one that is stale: that one meets a stream left empty.
        let first = stream.audience.iter().position(|member| member.client == client);
        let place = first.map_or(stream.audience.len(), |first| first + 1);
        stream.audience.insert(place, Member { client, session, from, heard: self.now, stale: false, ticket });
        stream.audience_changed(self.now, told);
        Ok(ticket)
    }

    /// Finds a subscriber by name. The stream is not brought to the present for it: whether somebody is unknown does
    /// not depend on the time.
    pub(crate) fn find(&self, stream: u8, who: Who) -> Result<(&'static str, usize), Refusal> {
        let name = STREAMS[stream as usize];
        let stream = self.streams.get(name).ok_or(Refusal::StreamNotFound)?;
        Ok((name, stream.place(who).ok_or(Refusal::UnknownSubscriber)?))
    }

    /// A subscriber was heard of. False if it was stale and its stream's time was over.
    pub(crate) fn touch(&mut self, name: &'static str, place: usize, told: &mut Told) -> bool {
        let now = self.now;
        let member = &mut self.streams.get_mut(name).expect("the caller has looked").audience[place];
        member.heard = now;
        if !member.stale {
            return true;
        }
        let Some(stream) = self.bring(name, told) else { return false };
        let nobody_watched = stream.audience.iter().all(|member| member.stale);
        stream.audience[place].stale = false;
        let waited = stream.is_idle();
        stream.audience_changed(now, told);
        // It missed what was not said meanwhile; if its return begins the show, that says it all.
        if nobody_watched && !waited {
            stream.owes_snapshot(now, told);
        }
        true
    }

    /// A subscriber leaves. False if its stream's time was over.
    pub(crate) fn leave(&mut self, name: &'static str, place: usize, told: &mut Told) -> bool {
        let now = self.now;
        let Some(stream) = self.bring(name, told) else { return false };
        stream.audience.remove(place);
        stream.audience_changed(now, told);
        true
    }

    pub(crate) fn batch(
        &mut self,
        many: &Many,
        act: impl Fn(&mut Self, &'static str, usize, &mut Told) -> bool,
        told: &mut Told,
    ) -> Answer {
        let mut unplaced = Vec::new();
        for ticket in &many.handles {
            let holder = self.holder(*ticket);
            self.last.holders.push(holder);
            let found = self.streams.values().find_map(|stream| {
                let is_it = |member: &Member| holder == Holder::Registration(member.ticket);
                Some((stream.name, stream.audience.iter().position(is_it)?))
            });
            if !found.is_some_and(|(name, place)| act(self, name, place, told)) {
                unplaced.push(holder);
            }
        }
        let name = many.stream.map(|stream| STREAMS[stream as usize]);
        let there = name.filter(|name| self.bring(name, told).is_some());
        let mut unknown = Vec::new();
        for client in &many.clients {
            let of_client = |stream: &Stream| {
                let mine = stream.audience.iter().filter(|member| member.client == *client);
                mine.map(|member| member.ticket).collect::<Vec<_>>()
            };
            let tickets = there.map_or(Vec::new(), |name| of_client(&self.streams[name]));
            if tickets.is_empty() {
                unknown.push(*client);
            }
            for (name, ticket) in there.into_iter().flat_map(|name| tickets.iter().map(move |ticket| (name, ticket))) {
                let place = self.streams[name].audience.iter().position(|member| member.ticket == *ticket);
                act(self, name, place.expect("nobody else left"), told);
            }
        }
        Answer::Batch { no_such_stream: there.is_none() && name.is_some(), handles: unplaced, clients: unknown }
    }

    pub(crate) fn holder(&self, ticket: Ticket) -> Holder {
        match ticket {
            Ticket::Youngest(back) if self.tickets > 0 => {
                Holder::Registration(self.tickets - 1 - usize::from(back) % self.tickets)
            }
            Ticket::Youngest(_) => Holder::Nobody(0),
            Ticket::Forged(how) => Holder::Nobody(how),
        }
    }
}

impl Stream {
    /// The place in its audience of a subscriber.
    pub(crate) fn place(&self, who: Who) -> Option<usize> {
        self.audience.iter().position(|member| (member.client, member.session) == (who.client, who.session))
    }

    pub(crate) fn counts(&self) -> Counts {
        let (total, active) = (self.audience.len() as u64, self.active() as u64);
        let is_there = |client: &usize| self.audience.iter().any(|member| usize::from(member.client) == *client);
        Counts {
            total,
            active,
            stale: total - active,
            unique: (0..CLIENTS.len()).filter(is_there).count() as u64,
            streams: 1,
            running: u64::from(self.mode == Mode::Running),
            ..Counts::default()
        }
    }
}
