//! Questions: what there is. A stream that is asked about is brought to the present first; nothing else changes.

use super::{
    Accepted, Action, Cause, Counts, Engine, HistoryEntry, MAX_HISTORY_OF_STREAM, Mode, Outbox, Rejection, StreamId,
    Tick,
};

/// Streams' slots that are looked at for one page: a table that was once large and is nearly empty takes several.
const MOST_STREAMS: usize = 4_096;
/// Subscribers of a stream that are looked at one after the other, each where memory happens to have it.
const MOST_MEMBERS: u32 = 4_096;
/// Subscribers' slots that are looked at where a stream has more of them: in the order of memory, which is far quicker.
const MOST_SUBSCRIBERS: u32 = 65_536;

impl Engine {
    pub(super) fn stats(&self, stream_id: Option<StreamId<'_>>) -> Result<Counts, Rejection> {
        let Some(stream_id) = stream_id else { return Ok(self.counts()) };
        Ok(self.streams.get(self.find_stream(stream_id)?).counts())
    }

    pub(super) fn get_state(
        &mut self,
        now: Tick,
        stream_id: StreamId<'_>,
        outbox: &mut Outbox,
    ) -> Result<Accepted, Rejection> {
        let slot = self.wake_by_id(now, stream_id, outbox)?;
        Ok(Accepted::State(self.streams.get(slot).state(now, Cause::Snapshot)))
    }

    pub(super) fn list(&mut self, now: Tick, from_slot: u32, limit: usize, outbox: &mut Outbox) -> Accepted {
        // An empty table is at its end at once, however large it once was.
        let end = if self.streams.0.is_empty() { 0 } else { self.streams.0.capacity() };
        let mut states = Vec::new();
        let mut slot = from_slot as usize;
        let last = slot.saturating_add(MOST_STREAMS).min(end);
        while slot < last && states.len() < limit {
            if self.streams.0.get(slot).is_some_and(|stream| !stream.is_removed()) {
                self.wake(now, slot as u32, outbox);
                let stream = self.streams.get(slot as u32);
                if !stream.is_removed() {
                    states.push(stream.state(now, Cause::Snapshot));
                }
            }
            slot += 1;
        }
        Accepted::Streams { states, next_slot: (slot < end).then_some(slot as u32) }
    }

    pub(super) fn get_config(
        &mut self,
        now: Tick,
        stream_id: StreamId<'_>,
        outbox: &mut Outbox,
    ) -> Result<Accepted, Rejection> {
        let stream = self.wake_by_id(now, stream_id, outbox)?;
        let stream = self.streams.get(stream);
        Ok(Accepted::Config { config: Box::new(stream.show.config.clone()), state: stream.state(now, Cause::Snapshot) })
    }

    /// The order is that of slots, which subscribers keep for as long as they are there: so pages neither repeat nor miss
    /// anybody who is there all the time, whoever comes and goes in between.
    pub(super) fn list_subscribers(
        &mut self,
        now: Tick,
        stream_id: StreamId<'_>,
        from_slot: u32,
        limit: usize,
        outbox: &mut Outbox,
    ) -> Result<Accepted, Rejection> {
        let stream = self.wake_by_id(now, stream_id, outbox)?;
        let members = self.streams.get(stream).members;
        let (mut slots, next_slot) = if members.total <= MOST_MEMBERS {
            let mut slots: Vec<u32> =
                self.subscribers.of_stream(members.head).filter(|slot| *slot >= from_slot).collect();
            let next = (limit < slots.len()).then(|| *slots.select_nth_unstable(limit).1);
            slots.truncate(limit);
            (slots, next)
        } else {
            self.subscribers.among(stream, from_slot, limit, MOST_SUBSCRIBERS)
        };
        slots.sort_unstable();
        let subscribers = slots.into_iter().map(|slot| self.subscribers.info(slot)).collect();
        Ok(Accepted::Subscribers { subscribers, next_slot })
    }

    pub(super) fn get_history(
        &mut self,
        now: Tick,
        stream_id: StreamId<'_>,
        limit: usize,
        before_revision: Option<u64>,
        outbox: &mut Outbox,
    ) -> Result<Accepted, Rejection> {
        let stream = self.wake_by_id(now, stream_id, outbox)?;
        let mut history: Vec<HistoryEntry> = self.history.of(stream, before_revision).take(limit).collect();
        if history.len() < limit && before_revision.is_none_or(|before| before > 1) {
            history.extend(self.creation(stream));
        }
        Ok(Accepted::History(history))
    }

    /// That a stream was created by somebody who did not say who, which is not kept: its epoch says when. None where what
    /// was behind it is not known any more.
    fn creation(&self, slot: u32) -> Option<HistoryEntry> {
        let show = &self.streams.get(slot).show;
        let follows = match self.history.oldest(slot) {
            Some(oldest) => oldest == (2, true) && self.history.count(slot) < MAX_HISTORY_OF_STREAM,
            None => show.revision == 1 && show.mode() == Mode::Idle && !self.history.has_lost_all(slot),
        };
        follows.then(|| HistoryEntry {
            at_ms: self.clock.at(Tick(show.epoch / 1_000)),
            action: Action::Start,
            issued_by: Box::default(),
            revision: 1,
            mode: Mode::Idle,
            position_ms: 0,
            position_before_ms: 0,
            planned_position_ms: 0,
            loop_count: 0,
            scene: None,
        })
    }
}
