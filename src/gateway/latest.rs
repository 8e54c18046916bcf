//! The last updates of one stream, as all its sockets read them: each at its own pace, none from a queue of its own.
//!
//! A tick or snapshot replaces the one before it, and a change replaces the one that nobody may need any more: the rule is
//! that of [`StateUpdate::is_replaceable`], and "tick" stands for both here. Changes stay, in order, up to a bound. So
//! a slow socket skips ticks without anybody doing something about it, and is too slow when a change it has not read
//! yet is pushed out. What a socket costs is the place it has read to.
//!
//! Beside them is whether the state is live, as a message of its own: of these only the last one counts.

use std::collections::VecDeque;

use axum::body::Bytes;

use crate::client::{
    HighWaterMark,
    proto::{Mode, StateUpdate},
};

/// How many changes a socket may be behind: a minute's worth of a busy operator, and few enough to keep for a stream.
pub(super) const MAX_CHANGES: usize = 64;

/// In which form a socket's updates go over the line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Format {
    /// Text messages.
    #[default]
    Json,
    /// Binary messages: `StateUpdate`s as they were published.
    Proto,
}

/// One update as it goes over the line, encoded once for all sockets.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Frames {
    pub(super) json: Bytes,
    /// Empty where no socket wants it.
    pub(super) proto: Bytes,
}

impl Frames {
    /// The same in every form.
    pub(super) fn same(frame: Bytes) -> Self {
        Self { json: frame.clone(), proto: frame }
    }

    fn of(&self, format: Format) -> Bytes {
        match format {
            Format::Json => self.json.clone(),
            Format::Proto => self.proto.clone(),
        }
    }

    /// With a message before it that is the same in every form.
    pub(super) fn behind(&self, before: &[u8]) -> Self {
        let with = |frame: &Bytes| if frame.is_empty() { Bytes::new() } else { [before, frame].concat().into() };
        Self { json: with(&self.json), proto: with(&self.proto) }
    }
}

/// One update.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Post {
    /// Its epoch and sequence.
    mark: HighWaterMark,
    /// As it goes over the line.
    frames: Frames,
    /// The stream was removed: nothing follows.
    last: bool,
}

/// A stream's last updates.
#[derive(Debug, Default)]
pub(super) struct Latest {
    /// The latest changes, each with how many ticks there were before it; at most [`MAX_CHANGES`].
    changes: VecDeque<(Post, u64)>,
    /// How many changes there ever were; the last in `changes` is the one of this number.
    change_count: u64,
    /// The latest tick, if it is newer than the latest change.
    tick: Option<Post>,
    tick_count: u64,
    /// What was last said about whether the state is live, with the state in it, if there is one.
    notice: Option<(Frames, Option<HighWaterMark>)>,
    notice_count: u64,
    /// The newest state that was put up, if any was.
    newest: Option<HighWaterMark>,
    ended: Option<Ended>,
}

/// Why nothing is put up any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The gateway ends.
    ShuttingDown,
    /// Updates cannot be received any more.
    NoUpdates,
}

/// How far one socket has read the latest updates.
#[derive(Debug, Default, Clone)]
pub(super) struct Reader {
    format: Format,
    changes: u64,
    ticks: u64,
    notices: u64,
    /// It was told last that what it has need not be true.
    is_told_of_loss: bool,
    mark: HighWaterMark,
    /// Ticks that were replaced before they were read, since this was last looked at.
    pub(super) skipped: u64,
}

/// What a socket has to do next.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Send this. With `last`, nothing follows it.
    Send {
        /// One message or two.
        frame: Bytes,
        /// The stream was removed.
        last: bool,
    },
    /// Wait for something new.
    Wait,
    /// Give up: a change that was not read is gone.
    TooSlow,
    /// Nothing more comes.
    Ended(Ended),
}

impl Latest {
    /// Puts an update up, unless something newer is up already: one that was held up may come behind the answer to a
    /// question.
    pub(super) fn post(&mut self, update: &StateUpdate, frames: Frames) {
        if !self.raise(HighWaterMark::of(update)) {
            return;
        }
        let last = update.mode() == Mode::Unknown;
        let post = Post { mark: HighWaterMark::of(update), frames, last };
        if update.is_replaceable() {
            self.tick = Some(post);
            self.tick_count += 1;
            return;
        }
        self.tick = None;
        if self.changes.len() == MAX_CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back((post, self.tick_count));
        self.change_count += 1;
    }

    /// What is up need not be true any more, as the message says.
    pub(super) fn lose(&mut self, frame: Bytes) {
        self.notice = Some((Frames::same(frame), None));
        self.notice_count += 1;
    }

    /// It is true again: the message says so, and what the state is, which all are told.
    pub(super) fn resume(&mut self, update: &StateUpdate, frames: Frames) {
        if update.mode() == Mode::Unknown {
            return self.post(update, frames);
        }
        self.raise(HighWaterMark::of(update));
        self.notice = Some((frames, Some(HighWaterMark::of(update))));
        self.notice_count += 1;
    }

    /// Notes what is put up; false when that is nothing new.
    fn raise(&mut self, mark: HighWaterMark) -> bool {
        let is_new = self.newest.is_none_or(|newest| mark > newest);
        if is_new {
            self.newest = Some(mark);
        }
        is_new
    }

    /// Nothing is put up any more.
    pub(super) fn end(&mut self, ended: Ended) {
        self.ended = Some(ended);
    }

    /// How many changes there ever were.
    pub(super) fn change_count(&self) -> u64 {
        self.change_count
    }

    /// A reader for whom all that is up now is old; but that it is not live is news.
    pub(super) fn reader(&self, format: Format) -> Reader {
        let is_live = self.notice.as_ref().is_none_or(|(_, state)| state.is_some());
        let notices = self.notice_count - u64::from(!is_live);
        Reader { format, changes: self.change_count, ticks: self.tick_count, notices, ..Reader::default() }
    }
}

impl Reader {
    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// What a snapshot contains is not sent again.
    pub(super) fn start_at(&mut self, snapshot: &StateUpdate) {
        self.mark = HighWaterMark::of(snapshot);
    }

    /// What is next for this reader.
    pub(super) fn next(&mut self, latest: &Latest) -> Next {
        match self.next_update(latest) {
            Next::Wait => latest.ended.map_or(Next::Wait, Next::Ended),
            next => next,
        }
    }

    fn next_update(&mut self, latest: &Latest) -> Next {
        if self.notices < latest.notice_count
            && let Some((frames, state)) = &latest.notice
        {
            self.notices = latest.notice_count;
            let was_told_of_loss = std::mem::replace(&mut self.is_told_of_loss, state.is_none());
            // Who begins with a newer state, and never heard of a loss, has no use for it.
            let is_of_use = was_told_of_loss || state.is_none_or(|mark| mark >= self.mark);
            if is_of_use {
                // What is older than that state is not shown behind it.
                self.mark = state.map_or(self.mark, |mark| mark.max(self.mark));
                return Next::Send { frame: frames.of(self.format), last: false };
            }
        }
        while self.changes < latest.change_count {
            let behind = usize::try_from(latest.change_count - self.changes).unwrap_or(usize::MAX);
            let Some(index) = latest.changes.len().checked_sub(behind) else { return Next::TooSlow };
            let (post, ticks_before) = &latest.changes[index];
            self.changes += 1;
            self.skip_ticks(*ticks_before);
            if self.mark.raise(post.mark) {
                return Next::Send { frame: post.frames.of(self.format), last: post.last };
            }
        }
        match &latest.tick {
            Some(post) if self.ticks < latest.tick_count => {
                self.skip_ticks(latest.tick_count - 1);
                self.ticks = latest.tick_count;
                match self.mark.raise(post.mark) {
                    true => Next::Send { frame: post.frames.of(self.format), last: false },
                    false => Next::Wait,
                }
            }
            _ => Next::Wait,
        }
    }

    fn skip_ticks(&mut self, up_to: u64) {
        self.skipped += up_to.saturating_sub(self.ticks);
        self.ticks = self.ticks.max(up_to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::proto::Cause;

    fn post(latest: &mut Latest, cause: Cause, sequence: u64) {
        let update = StateUpdate {
            cause: cause.into(),
            mode: Mode::Running.into(),
            epoch: 1,
            sequence,
            ..StateUpdate::default()
        };
        latest.post(&update, frames(&sequence.to_string()));
    }

    /// As JSON, and with a `p` as protobuf.
    fn frames(json: &str) -> Frames {
        Frames { json: json.to_owned().into(), proto: format!("p{json}").into() }
    }

    fn send(sequence: u64) -> Next {
        Next::Send { frame: sequence.to_string().into(), last: false }
    }

    #[test]
    fn a_newer_tick_replaces_one_that_was_not_read() {
        let mut latest = Latest::default();
        let mut reader = latest.reader(Format::Json);
        (1..=5).for_each(|sequence| post(&mut latest, Cause::Tick, sequence));
        assert_eq!([reader.next(&latest), reader.next(&latest)], [send(5), Next::Wait]);
        assert_eq!(reader.skipped, 4);
    }

    #[test]
    fn snapshots_for_others_make_no_reader_too_slow() {
        let mut latest = Latest::default();
        let mut reader = latest.reader(Format::Json);
        post(&mut latest, Cause::Command, 1);
        (2..=1_000).for_each(|sequence| post(&mut latest, Cause::Snapshot, sequence));
        assert_eq!(std::array::from_fn(|_| reader.next(&latest)), [send(1), send(1_000), Next::Wait]);
        assert_eq!(reader.skipped, 998);
    }

    #[test]
    fn changes_are_read_in_order_and_replace_the_ticks_before_them() {
        let mut latest = Latest::default();
        let mut reader = latest.reader(Format::Json);
        for (cause, sequence) in
            [(Cause::Tick, 1), (Cause::Scene, 2), (Cause::Tick, 3), (Cause::Command, 4), (Cause::Tick, 5)]
        {
            post(&mut latest, cause, sequence);
        }
        assert_eq!(std::array::from_fn(|_| reader.next(&latest)), [send(2), send(4), send(5), Next::Wait]);
        assert_eq!(reader.skipped, 2);
    }

    #[test]
    fn a_reader_that_keeps_up_skips_nothing() {
        let mut latest = Latest::default();
        let mut reader = latest.reader(Format::Json);
        for sequence in 1..=1_000 {
            post(&mut latest, if sequence % 3 == 0 { Cause::Scene } else { Cause::Tick }, sequence);
            assert_eq!([reader.next(&latest), reader.next(&latest)], [send(sequence), Next::Wait]);
        }
        assert_eq!(reader.skipped, 0);
    }

    #[test]
    fn a_reader_may_be_64_changes_behind_and_not_65() {
        let mut latest = Latest::default();
        let (mut slow, mut too_slow) = (latest.reader(Format::Json), latest.reader(Format::Json));
        for sequence in 1..=65 {
            post(&mut latest, Cause::Command, sequence);
            if sequence == 1 {
                assert_eq!(slow.next(&latest), send(1));
            }
        }
        assert_eq!(too_slow.next(&latest), Next::TooSlow);
        for sequence in 2..=65 {
            assert_eq!(slow.next(&latest), send(sequence));
        }
        assert_eq!(slow.next(&latest), Next::Wait);
    }

    #[test]
    fn what_was_up_before_or_is_in_the_snapshot_is_not_sent() {
        let mut latest = Latest::default();
        post(&mut latest, Cause::Command, 1);
        post(&mut latest, Cause::Tick, 2);
        let mut reader = latest.reader(Format::Json);
        assert_eq!(reader.next(&latest), Next::Wait);
        post(&mut latest, Cause::Command, 3);
        post(&mut latest, Cause::Command, 4);
        reader.start_at(&StateUpdate { epoch: 1, sequence: 3, ..StateUpdate::default() });
        assert_eq!([reader.next(&latest), reader.next(&latest)], [send(4), Next::Wait]);
    }

    #[test]
    fn the_update_of_a_removed_stream_is_the_last_one() {
        let mut latest = Latest::default();
        let mut reader = latest.reader(Format::Json);
        let removed = StateUpdate { epoch: 1, sequence: 9, ..StateUpdate::default() };
        latest.post(&removed, frames("9"));
        post(&mut latest, Cause::Tick, 10);
        assert_eq!(reader.next(&latest), Next::Send { frame: "9".into(), last: true });
    }

    #[test]
    fn that_a_state_is_not_live_is_told_at_once_the_last_alone() {
        let mut latest = Latest::default();
        let mut reader = latest.reader(Format::Json);
        post(&mut latest, Cause::Tick, 1);
        latest.lose("away".into());
        let away = Next::Send { frame: "away".into(), last: false };
        assert_eq!([reader.next(&latest), reader.next(&latest), reader.next(&latest)], [away, send(1), Next::Wait]);
        let mut newcomer = latest.reader(Format::Json);
        assert!(matches!(newcomer.next(&latest), Next::Send { .. }), "it is told too");
        let state = StateUpdate { mode: Mode::Running.into(), epoch: 1, sequence: 1, ..StateUpdate::default() };
        latest.resume(&state, frames("back 1"));
        latest.lose("away again".into());
        latest.resume(&state, frames("back 2"));
        for reader in [&mut reader, &mut newcomer] {
            let back = Next::Send { frame: "back 2".into(), last: false };
            assert_eq!(
                [reader.next(&latest), reader.next(&latest)],
                [back, Next::Wait],
                "though it has the state already"
            );
        }
        assert_eq!(latest.reader(Format::Json).next(&latest), Next::Wait);
    }

    #[test]
    fn nothing_older_is_shown_behind_a_state_that_is_live_again() {
        let mut latest = Latest::default();
        let mut reader = latest.reader(Format::Json);
        post(&mut latest, Cause::Command, 5);
        let state = StateUpdate { mode: Mode::Running.into(), epoch: 1, sequence: 6, ..StateUpdate::default() };
        latest.resume(&state, frames("back"));
        post(&mut latest, Cause::Command, 7);
        let back = Next::Send { frame: "back".into(), last: false };
        assert_eq!([reader.next(&latest), reader.next(&latest), reader.next(&latest)], [back, send(7), Next::Wait]);
    }

    #[test]
    fn what_is_older_than_what_is_up_takes_nobodys_place() {
        let mut latest = Latest::default();
        let mut reader = latest.reader(Format::Json);
        post(&mut latest, Cause::Tick, 8);
        // One that was held up, behind an answer that was newer.
        post(&mut latest, Cause::Command, 7);
        post(&mut latest, Cause::Tick, 6);
        assert_eq!([reader.next(&latest), reader.next(&latest)], [send(8), Next::Wait]);
        let state = StateUpdate { mode: Mode::Running.into(), epoch: 1, sequence: 10, ..StateUpdate::default() };
        latest.resume(&state, frames("back"));
        post(&mut latest, Cause::Command, 9);
        let back = Next::Send { frame: "back".into(), last: false };
        assert_eq!([reader.next(&latest), reader.next(&latest)], [back, Next::Wait]);
    }

    #[test]
    fn who_begins_with_a_newer_state_is_not_told_of_an_older_one() {
        let mut latest = Latest::default();
        latest.lose("away".into());
        let mut reader = latest.reader(Format::Json);
        let mut told = reader.clone();
        assert!(matches!(told.next(&latest), Next::Send { .. }), "this one hears of it before");
        let state = |sequence| StateUpdate { mode: Mode::Running.into(), epoch: 1, sequence, ..StateUpdate::default() };
        latest.resume(&state(6), frames("back 6"));
        for reader in [&mut reader, &mut told] {
            reader.start_at(&state(7));
        }
        assert_eq!(reader.next(&latest), Next::Wait);
        assert_eq!(told.next(&latest), Next::Send { frame: "back 6".into(), last: false }, "it has to know");
        post(&mut latest, Cause::Command, 8);
        assert_eq!([reader.next(&latest), told.next(&latest)], [send(8), send(8)]);
    }

    #[test]
    fn each_reader_is_given_its_own_form() {
        let mut latest = Latest::default();
        let mut reader = latest.reader(Format::Proto);
        latest.lose("away".into());
        let send = |frame: &'static str| Next::Send { frame: frame.into(), last: false };
        assert_eq!(reader.next(&latest), send("away"), "words are the same for all");
        let state = StateUpdate { mode: Mode::Running.into(), epoch: 1, sequence: 1, ..StateUpdate::default() };
        latest.resume(&state, frames("1").behind(b"back "));
        post(&mut latest, Cause::Command, 2);
        post(&mut latest, Cause::Tick, 3);
        let next = [reader.next(&latest), reader.next(&latest), reader.next(&latest)];
        assert_eq!(next, ["back p1", "p2", "p3"].map(send));
    }

    #[test]
    fn the_end_comes_behind_what_is_up() {
        let mut latest = Latest::default();
        let mut reader = latest.reader(Format::Json);
        post(&mut latest, Cause::Command, 1);
        latest.end(Ended::NoUpdates);
        assert_eq!([reader.next(&latest), reader.next(&latest)], [send(1), Next::Ended(Ended::NoUpdates)]);
    }
}
