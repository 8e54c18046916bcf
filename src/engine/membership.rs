//! Who comes and who goes: registers, heartbeats, leaves, silence, and the counts that follow.
//!
//! Every change of a stream's audience goes through [`Engine::change_members`], whether somebody joined, left, went stale
//! or came back. What it means for the stream is decided in
//! [`Stream::audience_changed`](super::stream::Stream::audience_changed).

use std::net::SocketAddr;

use super::{
    Accepted, Batch, Cause, ClientId, Engine, Event, Filter, Handle, Hint, Invalid, Joined, Limits, MAX_SLOTS,
    Newcomer, Outbox, Rejection, StreamId, Subscriber, Tick, Unplaced,
    handle::Named,
    stream::Members,
    subscribers::{IN_FLIGHT, Silent},
};

impl Engine {
    pub(super) fn register(
        &mut self,
        now: Tick,
        stream_id: StreamId<'_>,
        newcomer: Newcomer<'_>,
        answered: bool,
        outbox: &mut Outbox,
    ) -> Result<Accepted, Rejection> {
        let slot = self.wake_by_id(now, stream_id, outbox)?;
        let Joined { handle, new, total } = self.join_and_see(now, slot, newcomer, answered, outbox)?;
        Ok(Accepted::Registered { handle, new, total, state: self.streams.get(slot).state(now, Cause::Snapshot) })
    }

    pub(super) fn register_following(
        &mut self,
        now: Tick,
        stream_id: StreamId<'_>,
        (newcomer, answered): (Newcomer<'_>, bool),
        filter: Filter,
        outbox: &mut Outbox,
    ) -> Result<Accepted, Rejection> {
        let slot = self.wake_by_id(now, stream_id, outbox)?;
        self.check_filter(slot, &filter)?;
        let joined = self.join_and_see(now, slot, newcomer, answered, outbox)?;
        Ok(self.follow(now, slot, filter, Some(joined)))
    }

    fn join_and_see(
        &mut self,
        now: Tick,
        slot: u32,
        newcomer: Newcomer<'_>,
        answered: bool,
        outbox: &mut Outbox,
    ) -> Result<Joined, Rejection> {
        let before = self.counts.total;
        let made = outbox.updates.len();
        let handle = self.join(now, slot, newcomer, outbox)?;
        self.welcome(now, slot, answered || outbox.updates.len() > made, outbox);
        let total = u64::from(self.streams.get(slot).members.total);
        Ok(Joined { handle, new: self.counts.total > before, total })
    }

    pub(super) fn register_batch(
        &mut self,
        now: Tick,
        stream_id: StreamId<'_>,
        newcomers: Vec<Result<Newcomer<'_>, Invalid>>,
        answered: bool,
        outbox: &mut Outbox,
    ) -> Result<Accepted, Rejection> {
        let slot = self.wake_by_id(now, stream_id, outbox)?;
        let made = outbox.updates.len();
        let handles: Vec<Result<Handle, Rejection>> = newcomers
            .into_iter()
            .map(|newcomer| newcomer.map_err(Rejection::from).and_then(|new| self.join(now, slot, new, outbox)))
            .collect();
        if handles.iter().any(Result::is_ok) {
            self.welcome(now, slot, answered || outbox.updates.len() > made, outbox);
        }
        Ok(Accepted::RegisteredBatch { handles, state: self.streams.get(slot).state(now, Cause::Snapshot) })
    }

    /// Adds a subscriber, or refreshes the one that is there, whose handle is void from then on: it may be held by an
    /// earlier connection, whose late leave must not evict the one that has just come.
    fn join(
        &mut self,
        now: Tick,
        stream: u32,
        newcomer: Newcomer<'_>,
        outbox: &mut Outbox,
    ) -> Result<Handle, Rejection> {
        let Newcomer { client_id, session, source } = newcomer;
        let lookup = self.subscribers.lookup(stream, client_id);
        let first = self.subscribers.find(&lookup);
        let slot = match self.subscribers.find_session(first, session) {
            Some(slot) => {
                self.check_bytes(client_id, Some(slot), source)?;
                self.subscribers.set_source(slot, source);
                if !self.touch(now, slot, outbox) {
                    return Err(Rejection::StreamNotFound(self.streams.get(stream).show.id.to_string()));
                }
                self.subscribers.renew(slot);
                slot
            }
            None => {
                self.check_room(first)?;
                self.check_bytes(client_id, None, source)?;
                let head = self.streams.get(stream).members.head;
                let slot = self.subscribers.insert(now, lookup, first, session, source, head);
                self.change_members(now, stream, |members| members.joined(slot, first.is_none()), outbox);
                slot
            }
        };
        Ok(self.subscribers.handle(slot, self.streams.get(stream).partition))
    }

    /// Changes who is counted of a stream that is there. As a rule it is watched, or not, as before: then nothing else of
    /// it changes, nor what is due, and its timer is not looked at.
    fn change_members(&mut self, now: Tick, slot: u32, change: impl FnOnce(&mut Members), outbox: &mut Outbox) {
        let stream = self.streams.get_mut(slot);
        let before = stream.members.counts();
        change(&mut stream.members);
        self.counts += stream.members.counts();
        self.counts -= before;
        if stream.has_new_audience() {
            self.with_stream(slot, |stream| stream.audience_changed(now, outbox));
        }
    }

    fn check_room(&self, first_session: Option<u32>) -> Result<(), Rejection> {
        let Limits { max_subscribers, max_sessions_per_client, .. } = self.settings.limits;
        let limit = max_subscribers.min(MAX_SLOTS);
        if self.counts.total >= self.quota.subscribers.min(limit) || self.subscribers.len() >= MAX_SLOTS {
            return Err(Rejection::Exhausted { what: "subscribers", limit });
        }
        if self.subscribers.sessions(first_session).count() >= max_sessions_per_client as usize {
            let limit = u64::from(max_sessions_per_client);
            return Err(Rejection::Exhausted { what: "sessions of one client on a stream", limit });
        }
        Ok(())
    }

    /// Refuses to keep more of ids and addresses than there is room for.
    fn check_bytes(
        &self,
        client_id: ClientId<'_>,
        there: Option<u32>,
        source: Option<SocketAddr>,
    ) -> Result<(), Rejection> {
        let limit = self.settings.limits.max_client_bytes;
        let more = self.subscribers.more_bytes(client_id, there, source);
        if more == 0 || self.subscribers.bytes() + more <= self.quota.client_bytes.min(limit) {
            return Ok(());
        }
        Err(Rejection::Exhausted { what: "bytes of client ids that are no UUIDs and of IPv6 addresses", limit })
    }

    /// A newcomer sees the state at once: in its reply, in the update that its coming made, or in one for it.
    fn welcome(&mut self, now: Tick, slot: u32, has_seen: bool, outbox: &mut Outbox) {
        if !has_seen {
            self.with_stream(slot, |stream| stream.owe_snapshot(now, outbox));
        }
    }

    pub(super) fn unregister(
        &mut self,
        now: Tick,
        subscriber: Subscriber<'_>,
        hint: Hint,
        outbox: &mut Outbox,
    ) -> Result<Accepted, Rejection> {
        let slot = self.find_subscriber(subscriber, hint)?;
        let (stream, source) = (self.subscribers.stream_of(slot), self.subscribers.source(slot));
        if !self.leave(now, slot, outbox) {
            return Err(Rejection::StreamNotFound(subscriber.stream_id.as_str().to_owned()));
        }
        Ok(Accepted::Unregistered { total: u64::from(self.streams.get(stream).members.total), source })
    }

    pub(super) fn heartbeat(
        &mut self,
        now: Tick,
        subscriber: Subscriber<'_>,
        hint: Hint,
        outbox: &mut Outbox,
    ) -> Result<(), Rejection> {
        let slot = self.find_subscriber(subscriber, hint)?;
        if self.touch(now, slot, outbox) {
            return Ok(());
        }
        Err(Rejection::StreamNotFound(subscriber.stream_id.as_str().to_owned()))
    }

    fn find_subscriber(&self, subscriber: Subscriber<'_>, hint: Hint) -> Result<u32, Rejection> {
        let Subscriber { stream_id, client_id, session } = subscriber;
        let stream = self.find_stream_at(stream_id, hint)?;
        if self.subscribers.is_it(hint.subscriber, stream, client_id, session) {
            return Ok(hint.subscriber);
        }
        let first = self.subscribers.find(&self.subscribers.lookup(stream, client_id));
        self.subscribers
            .find_session(first, session)
            .ok_or_else(|| Rejection::UnknownSubscriber { client_id: client_id.to_string(), session })
    }

    /// Does something to each subscriber of a batch, and tells which are not there.
    pub(super) fn batch(
        &mut self,
        now: Tick,
        batch: Batch<'_>,
        act: impl Fn(&mut Self, Tick, u32, &mut Outbox) -> bool,
        outbox: &mut Outbox,
    ) -> Accepted {
        let handles = self.batch_of_handles(now, &batch.handles, &act, outbox);
        let mut unplaced = Unplaced { handles, ..Unplaced::default() };
        let stream = batch.stream_id.map(|stream_id| self.wake_by_id(now, stream_id, outbox));
        unplaced.no_such_stream = matches!(stream, Some(Err(_)));
        let Some(Ok(stream)) = stream else {
            unplaced.clients = batch.clients.iter().map(|client| client.to_string()).collect();
            return Accepted::Batch(unplaced);
        };
        let mut lookups = Vec::with_capacity(IN_FLIGHT);
        for clients in batch.clients.chunks(IN_FLIGHT) {
            lookups.clear();
            lookups.extend(clients.iter().map(|client| self.subscribers.begin(stream, *client)));
            lookups.iter_mut().for_each(|lookup| self.subscribers.approach(lookup));
            for (client, lookup) in clients.iter().zip(&lookups) {
                let mut next = self.subscribers.find(lookup);
                if next.is_none() {
                    unplaced.clients.push(client.to_string());
                }
                while let Some(slot) = next {
                    // Before acting: leaving takes the slot out of the chain.
                    next = self.subscribers.next_session(slot);
                    act(self, now, slot, outbox);
                }
            }
        }
        Accepted::Batch(unplaced)
    }

    /// The same to whom each handle stands for; gives those that stand for nobody. A function of its own, so that what the
    /// loops need is in registers: a fifth more a second while all is in the cache.
    #[inline(never)]
    fn batch_of_handles(
        &mut self,
        now: Tick,
        handles: &[Handle],
        act: &impl Fn(&mut Self, Tick, u32, &mut Outbox) -> bool,
        outbox: &mut Outbox,
    ) -> Vec<Handle> {
        let (mut unplaced, mut named) = (Vec::new(), [Named::default(); IN_FLIGHT]);
        for handles in handles.chunks(IN_FLIGHT) {
            let named = &mut named[..handles.len()];
            self.subscribers.begin_handles(handles, named);
            for (handle, named) in handles.iter().zip(&*named) {
                match self.subscribers.find_named(*named) {
                    Some(slot) if !self.is_of_removed(slot) && act(self, now, slot, outbox) => {}
                    _ => unplaced.push(*handle),
                }
            }
        }
        unplaced
    }

    #[inline]
    fn is_of_removed(&self, subscriber: u32) -> bool {
        !self.removed.is_empty() && self.streams.get(self.subscribers.stream_of(subscriber)).is_removed()
    }

    /// A subscriber is still there. False when its stream is not: being woken for it was its end.
    #[inline]
    pub(super) fn touch(&mut self, now: Tick, slot: u32, outbox: &mut Outbox) -> bool {
        !self.subscribers.heard(slot, now) || self.reactivate(now, slot, outbox)
    }

    /// It was stale, and counts as watching again.
    #[cold]
    fn reactivate(&mut self, now: Tick, slot: u32, outbox: &mut Outbox) -> bool {
        let stream = self.subscribers.stream_of(slot);
        self.wake(now, stream, outbox);
        if self.streams.get(stream).is_removed() {
            return false;
        }
        let nobody_watched = self.streams.get(stream).members.active == 0;
        let made = outbox.updates.len();
        self.change_members(now, stream, |members| members.active += 1, outbox);
        // While nobody watched, nothing was published, and a heartbeat's answer carries no state.
        self.welcome(now, stream, !nobody_watched || outbox.updates.len() > made, outbox);
        true
    }

    /// A subscriber leaves, of itself or because it was silent for too long. False as in [`Engine::touch`].
    pub(super) fn leave(&mut self, now: Tick, slot: u32, outbox: &mut Outbox) -> bool {
        let stream = self.subscribers.stream_of(slot);
        self.wake_if_due(now, stream, outbox);
        let removed = self.subscribers.remove(slot, &mut self.streams.get_mut(stream).members.head);
        if self.streams.get(stream).is_removed() {
            return false;
        }
        self.change_members(now, stream, |members| members.left(removed), outbox);
        true
    }

    pub(super) fn on_timeout(&mut self, now: Tick, silent: Silent, outbox: &mut Outbox) {
        match silent {
            Silent::Stale(slot) => {
                let stream = self.subscribers.stream_of(slot);
                self.wake_if_due(now, stream, outbox);
                if self.streams.get(stream).is_removed() {
                    return;
                }
                self.change_members(now, stream, |members| members.active -= 1, outbox);
            }
            Silent::Gone(slot) => {
                let stream = self.subscribers.stream_of(slot);
                if self.leave(now, slot, outbox) {
                    self.tell_stale(stream, outbox);
                }
            }
        }
    }

    /// One event for a run of stale subscribers of the same stream.
    fn tell_stale(&self, stream: u32, outbox: &mut Outbox) {
        let stream = self.streams.get(stream);
        let now_left = u64::from(stream.members.total);
        match outbox.events.last_mut() {
            Some(Event::StaleRemoved { stream_id, removed, left }) if **stream_id == *stream.show.id => {
                *removed += 1;
                *left = now_left;
            }
            _ => {
                let stream_id = stream.show.id.clone();
                outbox.events.push(Event::StaleRemoved { stream_id, removed: 1, left: now_left });
            }
        }
    }
}
