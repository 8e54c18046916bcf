//! The streams: found, brought to the present, counted, and removed.
//!
//! Whatever happens to one happens in [`Engine::with_stream`], which counts what it changed and arms its timer.

use std::hash::BuildHasher as _;

use slab::Slab;

use super::{
    Cause, Engine, Hint, Outbox, Rejection, Show, StateUpdate, StreamId, Tick,
    check::Entries,
    prefetch::prefetch,
    records::NONE,
    stream::Stream,
    wheel::{Link, Nodes},
};

/// The streams' slab, as the wheel sees it.
pub(super) struct Streams(pub Slab<Stream>);

impl std::fmt::Debug for Streams {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Entries(&self.0).fmt(formatter)
    }
}

impl Streams {
    pub(super) fn get(&self, slot: u32) -> &Stream {
        &self.0[slot as usize]
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> &mut Stream {
        &mut self.0[slot as usize]
    }

    /// Asks for what [`Engine::find_stream_at`] will read. The slab looks whether there is a stream, so this waits for the
    /// first line of it; few shards have so many streams that it is far away.
    pub(super) fn prefetch(&self, slot: u32) {
        if let Some(Stream { show, .. }) = self.0.get(slot as usize) {
            prefetch(&show.lifecycle);
            show.id.as_bytes().first().into_iter().for_each(prefetch);
        }
    }
}

impl Nodes for Streams {
    fn link(&self, key: u32) -> Link {
        self.get(key).timer
    }

    fn link_mut(&mut self, key: u32) -> &mut Link {
        &mut self.get_mut(key).timer
    }

    fn deadline(&self, key: u32) -> Tick {
        self.get(key).due
    }
}

impl Engine {
    pub(super) fn find_stream(&self, stream_id: StreamId<'_>) -> Result<u32, Rejection> {
        self.find_by_name(stream_id.as_str()).ok_or_else(|| Rejection::StreamNotFound(stream_id.as_str().to_owned()))
    }

    pub(super) fn find_by_name(&self, id: &str) -> Option<u32> {
        self.by_id.find(self.hash_of(id), |slot| *self.streams.get(slot).show.id == *id)
    }

    pub(super) fn add_stream(&mut self, show: Show) -> u32 {
        let hash = self.hash_of(&show.id);
        let entry = self.streams.0.vacant_entry();
        let slot = entry.key() as u32;
        let min_scene_interval_ms = u32::try_from(self.settings.limits.min_tick_interval_ms).unwrap_or(u32::MAX);
        let stream = entry.insert(Stream::new(show, slot, min_scene_interval_ms));
        self.counts += stream.counts();
        self.waiting.change(slot, None, stream.show.waits_until());
        self.requests.note_presence(&stream.show.id, true);
        self.by_id.insert(hash, slot);
        slot
    }

    /// [`Engine::find_stream`], at the hint first.
    pub(super) fn find_stream_at(&self, stream_id: StreamId<'_>, hint: Hint) -> Result<u32, Rejection> {
        match self.streams.0.get(hint.stream as usize) {
            Some(stream) if *stream.show.id == *stream_id.as_str() && !stream.is_removed() => Ok(hint.stream),
            _ => self.find_stream(stream_id),
        }
    }

    pub(super) fn hash_of(&self, stream_id: &str) -> u64 {
        self.hasher.hash_one(stream_id)
    }

    /// Finds a stream and brings it to `now`, so that no input meets one whose time has not come yet, or is over.
    pub(super) fn wake_by_id(
        &mut self,
        now: Tick,
        stream_id: StreamId<'_>,
        outbox: &mut Outbox,
    ) -> Result<u32, Rejection> {
        let slot = self.find_stream(stream_id)?;
        if self.streams.get(slot).is_awake(now) {
            return Ok(slot);
        }
        self.wake(now, slot, outbox);
        if self.streams.get(slot).is_removed() {
            return Err(Rejection::StreamNotFound(stream_id.as_str().to_owned()));
        }
        Ok(slot)
    }

    /// [`Engine::wake`], if there is anything to do: enough where the stream's state is not looked at.
    pub(super) fn wake_if_due(&mut self, now: Tick, slot: u32, outbox: &mut Outbox) {
        let stream = self.streams.get(slot);
        if stream.due <= now || stream.show.begins(now, self.clock).is_some() {
            self.wake(now, slot, outbox);
        }
    }

    /// Brings a stream to `now`, which may be its end.
    pub(super) fn wake(&mut self, now: Tick, slot: u32, outbox: &mut Outbox) {
        let stream = self.streams.get_mut(slot);
        if let Some(head) = stream.plays_on(now) {
            // Thousands a tick: nothing that is counted changes, and no history is told.
            stream.tell(now, head, outbox);
            return self.arm_stream(slot);
        }
        if !stream.is_removed() {
            self.wake_in_full(now, slot, outbox);
        }
    }

    #[inline(never)]
    fn wake_in_full(&mut self, now: Tick, slot: u32, outbox: &mut Outbox) {
        let clock = self.clock;
        if !self.with_stream(slot, |stream| stream.wake(now, clock, outbox)) {
            self.remove_stream(now, slot, true, outbox);
        }
        self.note_changes(None, outbox);
    }

    /// Lets time or the audience do something to a stream, counts what it changed, and arms its timer for what is due
    /// next. What the stream keeps is another then only if an adjusted pass has ended, so it is not measured otherwise.
    pub(super) fn with_stream<T>(&mut self, slot: u32, act: impl FnOnce(&mut Stream) -> T) -> T {
        let show = &self.streams.get(slot).show;
        if show.is_adjusted() {
            return self.reconsider_stream(slot, act);
        }
        let kept = cfg!(debug_assertions).then(|| show.bytes());
        let result = self.act_on_stream(slot, act);
        if let Some(kept) = kept {
            assert_eq!(kept, self.streams.get(slot).show.bytes(), "what the stream keeps");
        }
        result
    }

    /// [`Engine::with_stream`] for what may give it something else to keep.
    pub(super) fn reconsider_stream<T>(&mut self, slot: u32, act: impl FnOnce(&mut Stream) -> T) -> T {
        let before = self.streams.get(slot).config_bytes();
        let result = self.act_on_stream(slot, act);
        self.counts.config_bytes = self.counts.config_bytes + self.streams.get(slot).config_bytes() - before;
        result
    }

    fn act_on_stream<T>(&mut self, slot: u32, act: impl FnOnce(&mut Stream) -> T) -> T {
        let stream = self.streams.get_mut(slot);
        let (before, waited) = (stream.heads(), stream.show.waits_until());
        let result = act(stream);
        if stream.heads() != before {
            self.counts += stream.heads().counts();
            self.counts -= before.counts();
        }
        self.waiting.change(slot, waited, stream.show.waits_until());
        self.arm_stream(slot);
        result
    }

    /// Arms a stream's timer for what is due next.
    fn arm_stream(&mut self, slot: u32) {
        let stream = self.streams.get_mut(slot);
        let due = stream.next_due();
        let is_linked = stream.timer.is_linked();
        if is_linked && due == stream.due {
            return;
        }
        stream.due = due;
        if is_linked {
            self.timers.cancel(&mut self.streams, slot);
        }
        if due != Tick::NEVER {
            self.timers.arm(&mut self.streams, slot);
        }
    }

    /// Ends a stream and all its subscriptions. Returns its last state.
    pub(super) fn remove_stream(&mut self, now: Tick, slot: u32, idle: bool, outbox: &mut Outbox) -> StateUpdate {
        let last = self.reconsider_stream(slot, |stream| {
            stream.remove(now, idle, outbox);
            stream.state(now, Cause::Lifecycle)
        });
        let hash = self.hash_of(&last.stream_id);
        self.by_id.remove(hash, slot);
        self.requests.note_presence(&last.stream_id, false);
        self.history.forget(slot);
        self.removed.push_back(slot);
        last
    }

    /// Frees the records of subscribers whose stream is gone, and then its slot.
    pub(super) fn reap(&mut self, looks: &mut usize) {
        while let Some(stream) = self.removed.front().copied() {
            let head = &mut self.streams.get_mut(stream).members.head;
            while *head != NONE {
                let Some(left) = looks.checked_sub(1) else { return };
                *looks = left;
                self.subscribers.remove(*head, head);
            }
            self.streams.0.remove(stream as usize);
            self.removed.pop_front();
        }
    }
}
