//! One viewer's WebSocket, from the handshake to the end.
//!
//! The order is what makes the first message the current state and none after it missing: subscribe to the
//! stream's channel, register, send the snapshot that the registration brought, then the latest updates above it.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Bytes, extract::State, http::Extensions, response::Response};
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep_until, timeout},
};

use super::{
    App,
    error::ApiError,
    extract::{Params, QueryParams, peer},
    handshake::Handshake,
    hub::Subscriber,
    latest::{Ended, Next},
    line::{Fault, Heard, Line, ping_frame, text_frame},
    pace::Pace,
    talk::Allowance,
};
use crate::{
    client::{Registration, Standing, proto::Code},
    http::{ConnectionGuard, patience},
};

/// How long the closing handshake may take. The viewer is unregistered before it begins.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Viewer {
    client_id: Option<String>,
    session: Option<u64>,
}

/// `GET /streams/{stream_id}/ws`: registers the viewer, then upgrades. A refusal is an ordinary answer.
pub(super) async fn open(
    State(app): State<Arc<App>>,
    handshake: Handshake,
    Params(stream_id): Params<String>,
    QueryParams(viewer): QueryParams<Viewer>,
    extensions: Extensions,
) -> Result<Response, ApiError> {
    let client_id = viewer.client_id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let session = viewer.session.unwrap_or_else(|| app.client.random_session());
    let subscriber = app.hub.join(&stream_id).await?;
    let registration = app.client.register(&stream_id, &client_id, peer(&extensions), session).await?;
    // The connection has its place for as long as the socket lives.
    let guard = extensions.get::<Arc<ConnectionGuard>>().cloned();
    let (accept_key, upgrade) = handshake.into_parts();
    tokio::spawn(async move {
        // Whoever is gone by now leaves with the registration and the subscription.
        let (stream, read) = match upgrade.upgraded().await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!(%error, "a connection broke before it was a socket"),
        };
        let options = &app.options;
        let line = Line::new(stream, &read, options.max_viewer_message_bytes, Allowance::new(options.talk));
        drop(read);
        // Boxed: what there is only at the beginning takes no memory for as long as the socket lives.
        Box::pin(Socket::new(app, line, subscriber).run(registration)).await;
        drop(guard);
    });
    Ok(Handshake::accept(accept_key))
}

/// Why a socket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The viewer closed it.
    Closed,
    /// The stream was removed.
    Removed,
    /// The gateway ends.
    ShuttingDown,
    /// The stream's updates cannot be received any more.
    UpdatesEnded,
    /// The service does not know the stream, for too long.
    Lost,
    /// More changes waited than are kept, or one message took too long.
    TooSlow,
    /// Nothing was heard, not even a pong.
    Vanished,
    /// The viewer says more than it may.
    TooMuch,
    /// The viewer broke the protocol or its limits; the close code that says how.
    Protocol(u16),
    /// The connection broke.
    Failed,
}

impl End {
    fn reason(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Removed => "removed",
            Self::ShuttingDown => "shutting_down",
            Self::UpdatesEnded => "updates_ended",
            Self::Lost => "lost",
            Self::TooSlow => "too_slow",
            Self::Vanished => "vanished",
            Self::TooMuch => "too_much",
            Self::Protocol(_) => "protocol",
            Self::Failed => "failed",
        }
    }

    /// What to tell the viewer, where it is for the gateway to speak. The codes are those of RFC 6455, section 7.4.1, and
    /// of its registry.
    fn close_frame(self) -> Option<(u16, &'static str)> {
        match self {
            Self::Removed => Some((1000, "the stream was removed")),
            Self::Lost => Some((1000, "the stream is gone")),
            Self::ShuttingDown => Some((1001, "the gateway is shutting down")),
            Self::UpdatesEnded => Some((1013, "the stream's updates are not received any more")),
            Self::TooSlow => Some((1008, "too slow")),
            Self::Vanished => Some((1008, "no ping was answered")),
            Self::TooMuch => Some((1008, "too much was said")),
            Self::Protocol(1007) => Some((1007, "a text message has to be UTF-8")),
            Self::Protocol(1009) => Some((1009, "the message is too large")),
            Self::Protocol(code) => Some((code, "the protocol was broken")),
            Self::Closed | Self::Failed => None,
        }
    }

    /// True when it was the gateway that gave the viewer up.
    fn is_drop(self) -> bool {
        !matches!(self, Self::Closed | Self::Removed | Self::ShuttingDown)
    }
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Broken => Self::Failed,
            Fault::Protocol(code) => Self::Protocol(code),
            Fault::TooMuch => Self::TooMuch,
        }
    }
}

/// A socket at work.
struct Socket {
    app: Arc<App>,
    line: Line,
    subscriber: Subscriber,
    pace: Pace,
    last_heard: Instant,
    /// When the viewer is pinged next, if nothing asks it before.
    next_ping: Instant,
    /// Until when the message that is being written has to be accepted.
    write_due: Option<Instant>,
    /// Since when the service has not known the stream.
    lost_since: Option<Instant>,
    /// There may be an update that this socket has not looked at.
    is_unread: bool,
}

/// What a socket waits for.
enum Event {
    Heard(Heard),
    /// All that was sent is written.
    Sent,
    /// There is something new in the channel.
    Changed,
    Due,
    Standing(watch::Receiver<Standing>),
}

impl Socket {
    fn new(app: Arc<App>, line: Line, subscriber: Subscriber) -> Self {
        let now = Instant::now();
        let next_ping = now + app.options.ping_interval;
        let pace = Pace::new(now);
        Self {
            app,
            line,
            subscriber,
            pace,
            last_heard: now,
            next_ping,
            write_due: None,
            lost_since: None,
            is_unread: true,
        }
    }

    async fn run(mut self, registration: Registration) {
        let _open = Open::count();
        let (client_id, session) = (registration.client_id(), registration.session());
        tracing::debug!(stream_id = self.subscriber.stream_id(), client_id, session, "socket opened");
        let Err(end) = self.attend(&registration).await;
        let reason = end.reason();
        tracing::debug!(stream_id = self.subscriber.stream_id(), client_id, session, reason, "socket closed");
        // Unregistered before it is closed: that may take a while, and the viewer is gone for the service already.
        drop(registration);
        if end.is_drop() {
            metrics::counter!("gateway_sockets_dropped_total", "reason" => reason).increment(1);
        }
        let is_fault = matches!(end, End::TooMuch | End::Protocol(_));
        if end != End::Failed {
            _ = timeout(CLOSE_TIMEOUT, self.line.close(end.close_frame(), is_fault)).await;
        }
    }

    async fn attend(&mut self, registration: &Registration) -> Result<std::convert::Infallible, End> {
        let snapshot = registration.state();
        self.subscriber.start_at(snapshot);
        let text = serde_json::to_string(snapshot).map_err(|_| End::Failed)?;
        self.send(text_frame(text)).await?;
        self.serve(registration).await
    }

    /// Reads, pings and writes. Reading comes first: a viewer that says it is gone is not written to.
    async fn serve(&mut self, registration: &Registration) -> Result<std::convert::Infallible, End> {
        let mut latest = self.subscriber.latest();
        let mut standing = pin!(next_standing(registration.watch()));
        let mut timer = pin!(sleep_until(self.next_ping));
        loop {
            let now = Instant::now();
            let hold = self.pace.hold(now);
            if self.is_unread && hold.is_none() && self.line.is_clear() {
                self.write_next(&mut latest).await?;
                continue;
            }
            self.set_timer(timer.as_mut(), hold);
            let event = {
                let mut changed = pin!(latest.changed());
                poll_fn(|context| self.poll_event(context, changed.as_mut(), timer.as_mut(), standing.as_mut())).await?
            };
            match event {
                Event::Heard(heard) => self.hear(heard)?,
                Event::Sent => self.write_due = None,
                Event::Changed => self.is_unread = true,
                Event::Due => self.look_at_time().await?,
                Event::Standing(mut receiver) => {
                    let now = *receiver.borrow_and_update();
                    self.look_at(now)?;
                    standing.set(next_standing(receiver));
                }
            }
        }
    }

    fn poll_event(
        &mut self,
        context: &mut Context<'_>,
        changed: Pin<&mut impl Future<Output = Result<(), watch::error::RecvError>>>,
        timer: Pin<&mut Sleep>,
        standing: Pin<&mut impl Future<Output = watch::Receiver<Standing>>>,
    ) -> Poll<Result<Event, End>> {
        if let Poll::Ready(heard) = self.line.poll_heard(context) {
            return Poll::Ready(heard.map(Event::Heard).map_err(End::from));
        }
        if let Poll::Ready(sent) = self.line.poll_sent(context)
            && self.write_due.is_some()
        {
            return Poll::Ready(sent.map(|()| Event::Sent).map_err(End::from));
        }
        // What is not looked at for now says nothing new.
        if !self.is_unread
            && let Poll::Ready(changed) = changed.poll(context)
        {
            return Poll::Ready(changed.map(|()| Event::Changed).map_err(|_| End::UpdatesEnded));
        }
        if timer.poll(context).is_ready() {
            return Poll::Ready(Ok(Event::Due));
        }
        standing.poll(context).map(|receiver| Ok(Event::Standing(receiver)))
    }

    /// Sets the timer, unless it fires before anyway: most times it does.
    fn set_timer(&self, timer: Pin<&mut Sleep>, hold: Option<Instant>) {
        let due = [Some(self.next_ping), self.write_due, hold].into_iter().flatten().min().unwrap_or(self.next_ping);
        if timer.is_elapsed() || due < timer.deadline() {
            timer.reset(due);
        }
    }

    fn hear(&mut self, heard: Heard) -> Result<(), End> {
        let now = Instant::now();
        self.last_heard = now;
        match heard {
            Heard::Pong(payload) if self.pace.answered(&payload, now) => self.line.forgive_answer(),
            Heard::Pong(_) | Heard::Anything => {}
            Heard::Close => return Err(End::Closed),
        }
        Ok(())
    }

    /// What is due by now. What is due for long is so because this process stood still: nobody is to blame, and what the
    /// viewer said meanwhile is still to be read.
    async fn look_at_time(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let options = &self.app.options;
        if let Some(due) = self.write_due.filter(|due| *due <= now) {
            if !patience::is_late(due) {
                return Err(End::TooSlow);
            }
            self.write_due = Some(now + options.write_timeout);
        }
        if self.next_ping > now {
            return Ok(());
        }
        if patience::is_late(self.next_ping) {
            self.last_heard = now;
            self.lost_since = self.lost_since.map(|_| now);
        }
        self.next_ping = now + options.ping_interval;
        if now - self.last_heard >= options.vanished_after {
            return Err(End::Vanished);
        }
        if self.lost_since.is_some_and(|since| now - since >= options.lost_after) {
            return Err(End::Lost);
        }
        if self.line.is_clear()
            && let Some(ping) = self.pace.ping(now)
        {
            self.send(ping_frame(ping)).await?;
        }
        Ok(())
    }

    fn look_at(&mut self, standing: Standing) -> Result<(), End> {
        match standing {
            Standing::Registered { .. } => {
                // What was published while the service did not know this viewer may not have been published at all.
                self.lost_since = None;
                self.subscriber.refresh();
            }
            Standing::Lost(Code::StreamNotFound) => {
                self.lost_since.get_or_insert_with(Instant::now);
            }
            Standing::Lost(_) => {}
            Standing::Closed => return Err(End::ShuttingDown),
        }
        Ok(())
    }

    /// Writes the next update, if there is one.
    async fn write_next(&mut self, latest: &mut watch::Receiver<super::latest::Latest>) -> Result<(), End> {
        let next = self.subscriber.next(&latest.borrow_and_update());
        let skipped = self.subscriber.take_skipped();
        if skipped > 0 {
            metrics::counter!("gateway_ticks_skipped_total").increment(skipped);
        }
        match next {
            Next::Send { frame, last } => {
                let ping = self.pace.sent(frame.len(), Instant::now());
                let frame = match ping {
                    None => frame,
                    Some(ping) => [frame, ping_frame(ping)].concat().into(),
                };
                self.send(frame).await?;
                if last {
                    return Err(End::Removed);
                }
            }
            Next::Wait => self.is_unread = false,
            Next::TooSlow => return Err(End::TooSlow),
            Next::Ended(Ended::ShuttingDown) => return Err(End::ShuttingDown),
            Next::Ended(Ended::NoUpdates) => return Err(End::UpdatesEnded),
        }
        Ok(())
    }

    /// Sends a frame. If the line does not take all of it now, it has until the write timeout.
    async fn send(&mut self, frame: Bytes) -> Result<(), End> {
        let mut frame = Some(frame);
        poll_fn(|context| Poll::Ready(self.line.send(frame.take().unwrap_or_default(), context))).await?;
        if !self.line.is_clear() {
            self.write_due = Some(Instant::now() + self.app.options.write_timeout);
        }
        Ok(())
    }
}

/// Resolves when the standing has changed. An end without one is the client's.
async fn next_standing(mut receiver: watch::Receiver<Standing>) -> watch::Receiver<Standing> {
    let _ = receiver.changed().await;
    receiver
}

/// Counts an open socket for as long as it lives.
struct Open;

impl Open {
    fn count() -> Self {
        metrics::gauge!("gateway_sockets").increment(1);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("gateway_sockets").decrement(1);
    }
}
