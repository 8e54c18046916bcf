//! One viewer's way out: its line, how far it has read the latest updates, and its pace.
//!
//! Two write to it. As long as the viewer has all that there is, the [`fanout`](super::fanout) does, which comes by with
//! each update and has many more to go to: it writes what the line takes at once, and waits for nothing. What needs waiting
//! is for the socket's own task to see to: a line that is full, a viewer that is behind. The task writes the newest
//! then, and leaves the outlet to the fanout again when there is nothing more. Whose turn it is is the [`Turn`].

use std::{
    sync::{PoisonError, RwLock},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use axum::body::Bytes;
use tokio::time::Instant;
use tungstenite::Utf8Bytes;

use super::{
    clock::TimeQuestion,
    end::End,
    latest::{Latest, Next, Reader},
    line::{Fault, Heard, Line, ping_frame},
    pace::Pace,
};
use crate::http::patience;

/// What is so for all outlets that are written to at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment<'a> {
    pub(super) now: Instant,
    /// How late this gateway is itself.
    pub(super) lag: Duration,
    pub(super) latest: &'a RwLock<Latest>,
    /// How long a viewer may take to accept a message.
    pub(super) write_timeout: Duration,
}

/// Who writes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The fanout: the viewer has all that there is, and the line is clear.
    Fanout,
    /// The task: the line has taken part of a frame, and has to take the rest until then.
    Blocked { due: Instant },
    /// The task: the viewer is behind. Not before then, unless it answers.
    Held { until: Instant },
    /// Nobody.
    Ended(End),
}

/// One viewer's way out.
pub(super) struct Outlet {
    turn: Turn,
    reader: Reader,
    pace: Pace,
    line: Line,
    /// The socket's task, while it waits.
    task: Option<Waker>,
}

impl Outlet {
    /// The fanout leaves it alone until [`Self::start`].
    pub(super) fn new(line: Line, reader: Reader, now: Instant) -> Self {
        Self { turn: Turn::Held { until: now }, reader, pace: Pace::new(now), line, task: None }
    }

    /// Sends the snapshot, and what has come behind it.
    pub(super) fn start(&mut self, snapshot: Bytes, moment: Moment<'_>) {
        self.turn = match self.line.send(snapshot) {
            Ok(()) => self.fill(moment),
            Err(fault) => Turn::Ended(fault.into()),
        };
    }

    /// Something new is up, or nothing more will be: writes it if it is the fanout's turn, and hands over to the task what
    /// needs waiting.
    pub(super) fn offer(&mut self, moment: Moment<'_>) {
        if self.turn != Turn::Fanout {
            return;
        }
        self.turn = self.fill(moment);
        if self.turn != Turn::Fanout
            && let Some(task) = self.task.take()
        {
            task.wake();
        }
    }

    /// For the task: ready when the viewer has said something, with what it said if that is a text, and at the end.
    /// Meanwhile it writes what is the task's to write.
    ///
    /// Reading comes first: a viewer that says it is gone is not written to.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        moment: Moment<'_>,
    ) -> Poll<Result<Option<Utf8Bytes>, End>> {
        let polled = self.poll_line(context, moment);
        match &polled {
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(end)) => self.turn = Turn::Ended(*end),
            Poll::Pending if self.task.as_ref().is_some_and(|task| task.will_wake(context.waker())) => {}
            Poll::Pending => self.task = Some(context.waker().clone()),
        }
        polled
    }

    fn poll_line(&mut self, context: &mut Context<'_>, moment: Moment<'_>) -> Poll<Result<Option<Utf8Bytes>, End>> {
        loop {
            if let Poll::Ready(heard) = self.line.poll_heard(context) {
                return Poll::Ready(self.on_message(heard?, moment));
            }
            let was_clear = self.line.is_clear();
            self.drive(context, moment)?;
            // An answer of the line's own may have waited for the frame.
            if was_clear || !self.line.is_clear() {
                return Poll::Pending;
            }
        }
    }

    fn on_message(&mut self, heard: Heard, moment: Moment<'_>) -> Result<Option<Utf8Bytes>, End> {
        match heard {
            Heard::Pong(payload) if self.pace.answered(&payload, moment.now, moment.lag) => self.line.forgive_answer(),
            Heard::Pong(_) | Heard::Anything => {}
            Heard::Text(text) => return Ok(Some(text)),
            Heard::Close => return Err(End::Closed),
        }
        Ok(None)
    }

    /// When the task has to look at it again, if nothing happens before.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.turn {
            Turn::Blocked { due: at } | Turn::Held { until: at } => Some(at),
            Turn::Fanout | Turn::Ended(_) => None,
        }
    }

    /// Whether the viewer has had its time for a message. Where that is long ago, this process stood still, and nobody is to
    /// blame.
    pub(super) fn check_time(&mut self, moment: Moment<'_>) -> Result<(), End> {
        if let Turn::Blocked { due } = self.turn
            && due <= moment.now
        {
            if !patience::is_late(due) {
                return Err(End::TooSlow);
            }
            self.turn = Turn::Blocked { due: moment.now + moment.write_timeout };
        }
        Ok(())
    }

    /// Asks whether the viewer is there, unless it is asked already or cannot be now.
    pub(super) fn ping(&mut self, moment: Moment<'_>) -> Result<(), End> {
        if self.may_say()
            && let Some(ping) = self.pace.ping(moment.now)
        {
            self.say(ping_frame(ping), moment)?;
        }
        Ok(())
    }

    /// For the task: answers the viewer's question once there is an answer and the line takes it, however far behind
    /// the viewer is: an answer is small, and none comes unasked.
    pub(super) fn poll_answer(
        &mut self,
        question: &mut TimeQuestion,
        context: &mut Context<'_>,
        moment: Moment<'_>,
    ) -> Poll<Result<(), End>> {
        // When the line is clear again, the task is there, and at the end too.
        if !self.may_say() {
            return Poll::Pending;
        }
        let frame = ready!(question.poll_answer(context));
        self.pace.note_sent(frame.len());
        Poll::Ready(self.say(frame, moment))
    }

    /// Whether anything but updates may be sent now.
    fn may_say(&self) -> bool {
        self.line.is_clear() && !matches!(self.turn, Turn::Ended(_))
    }

    /// Sends what is no update, when it may be.
    fn say(&mut self, frame: Bytes, moment: Moment<'_>) -> Result<(), End> {
        self.line.send(frame)?;
        if !self.line.is_clear() {
            self.turn = Turn::Blocked { due: moment.now + moment.write_timeout };
        }
        Ok(())
    }

    /// Nothing is written any more but by whoever closes the line.
    pub(super) fn into_line(self) -> Line {
        self.line
    }

    /// What is the task's to write.
    fn drive(&mut self, context: &mut Context<'_>, moment: Moment<'_>) -> Result<(), End> {
        loop {
            match self.turn {
                Turn::Fanout => return Ok(()),
                Turn::Blocked { .. } => match self.line.poll_sent(context) {
                    Poll::Ready(sent) => {
                        sent?;
                        self.turn = self.fill(moment);
                    }
                    Poll::Pending => return Ok(()),
                },
                Turn::Held { .. } => {
                    self.turn = self.fill(moment);
                    if let Turn::Held { .. } = self.turn {
                        return Ok(());
                    }
                }
                Turn::Ended(end) => return Err(end),
            }
        }
    }

    /// Writes what is next until there is nothing more, and says whose turn it is then.
    fn fill(&mut self, moment: Moment<'_>) -> Turn {
        let Moment { now, lag, latest, write_timeout } = moment;
        loop {
            if !self.line.is_clear() {
                return Turn::Blocked { due: now + write_timeout };
            }
            if let Some(until) = self.pace.hold(now, lag) {
                return Turn::Held { until };
            }
            let next = self.reader.next(&latest.read().unwrap_or_else(PoisonError::into_inner));
            count_skipped(std::mem::take(&mut self.reader.skipped));
            match next {
                Next::Wait => return Turn::Fanout,
                Next::Send { frame, last } => match self.send(frame, now) {
                    Ok(()) if last => return Turn::Ended(End::Removed),
                    Ok(()) => {}
                    Err(fault) => return Turn::Ended(fault.into()),
                },
                Next::TooSlow => return Turn::Ended(End::TooSlow),
                Next::Ended(ended) => return Turn::Ended(ended.into()),
            }
        }
    }

    /// Sends a frame, and a ping behind it where the pace asks for one.
    fn send(&mut self, frame: Bytes, now: Instant) -> Result<(), Fault> {
        self.line.send(match self.pace.sent(frame.len(), now) {
            None => frame,
            Some(ping) => [frame, ping_frame(ping)].concat().into(),
        })
    }
}

fn count_skipped(ticks: u64) {
    if ticks > 0 {
        metrics::counter!("gateway_ticks_skipped_total").increment(ticks);
    }
}
