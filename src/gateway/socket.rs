//! One viewer's WebSocket, from the handshake to the end.
//!
//! The order is what makes the first message the current state and none after it missing: subscribe to the
//! stream's channel, register, send the snapshot that the registration brought, then the latest updates above it.
//!
//! The task of a socket reads, keeps time, and writes what has to wait; all else is written by the stream's fanout, without
//! a look from here.

use std::{
    convert::Infallible,
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
use tungstenite::Utf8Bytes;

use super::{
    App,
    clock::TimeQuestion,
    end::End,
    error::ApiError,
    extract::{Params, QueryParams, peer},
    fanout::Member,
    handshake::Handshake,
    hub::{Subscriber, proto_frame},
    latest::Format,
    line::{Line, text_frame},
    talk::Allowance,
};
use crate::{
    client::{
        ClientId, Filter, Registration, Standing,
        proto::{self, Code},
    },
    http::{ConnectionGuard, UpgradedStream, patience},
};

/// How long the closing handshake may take. The viewer is unregistered before it begins.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Viewer {
    client_id: Option<String>,
    session: Option<u64>,
    scenes: Option<String>,
    changes_only: Option<bool>,
    min_interval_ms: Option<u32>,
    min_progress: Option<f64>,
}

impl Viewer {
    /// Which updates it wants; none where it wants all, as they come.
    fn filter(&self) -> Result<Option<Filter>, ApiError> {
        let Self { scenes, changes_only, min_interval_ms, min_progress, .. } = self;
        let filter = proto::Filter {
            scene: scenes.iter().flat_map(|scenes| scenes.split(',')).map(str::to_owned).collect(),
            changes_only: changes_only.unwrap_or_default(),
            min_interval_ms: min_interval_ms.unwrap_or_default(),
            min_progress: min_progress.unwrap_or_default(),
        };
        let filter = Filter::try_from(&filter).map_err(|error| ApiError::invalid(error.to_string()))?;
        Ok(Some(filter).filter(|filter| *filter != Filter::default()))
    }

    /// Who it is; somebody new where it does not say.
    fn client_id(self) -> Result<String, ApiError> {
        let Some(client_id) = self.client_id else { return Ok(uuid::Uuid::new_v4().to_string()) };
        ClientId::parse(&client_id).map_err(|error| ApiError::invalid(error.to_string()))?;
        Ok(client_id)
    }
}

/// `GET /streams/{stream_id}/ws`: registers the viewer, then upgrades. A refusal is an ordinary answer.
pub(super) async fn open(
    State(app): State<Arc<App>>,
    handshake: Handshake,
    Params(stream_id): Params<String>,
    QueryParams(viewer): QueryParams<Viewer>,
    extensions: Extensions,
) -> Result<Response, ApiError> {
    // All that can be refused here is, before the service follows a filter for it.
    let filter = viewer.filter()?;
    let session = viewer.session.unwrap_or_else(|| app.client.random_session());
    let client_id = viewer.client_id()?;
    let mut subscriber = app.hub.join(&stream_id, filter).await?;
    let (accept, upgrade) = handshake.into_parts();
    subscriber.read_as(accept.format());
    let registration = app.client.register(&stream_id, &client_id, peer(&extensions), session).await?;
    // The connection has its place for as long as the socket lives.
    let guard = extensions.get::<Arc<ConnectionGuard>>().cloned();
    // Boxed: futures keep room for whatever is moved through them.
    let socket = Box::new(Socket::new(app, subscriber, registration, guard));
    tokio::spawn(async move {
        match upgrade.upgraded().await {
            Ok((stream, read)) => {
                let member = socket.follow(stream, &read);
                drop(read);
                socket.run(member).await;
            }
            // Whoever is gone by now leaves with the registration and the subscription.
            Err(error) => tracing::debug!(%error, "a connection broke before it was a socket"),
        }
    });
    Ok(accept.into_response())
}

/// A viewer's socket, beside its line.
struct Socket {
    app: Arc<App>,
    subscriber: Subscriber,
    registration: Registration,
    last_heard: Instant,
    /// When the viewer is pinged next, if nothing asks it before.
    next_ping: Instant,
    /// Since when the service has not known the stream.
    lost_since: Option<Instant>,
    /// What the viewer asked last, until it is answered.
    question: Option<Box<TimeQuestion>>,
    _guard: Option<Arc<ConnectionGuard>>,
}

/// What a socket waits for.
enum Event {
    /// The viewer has said something: a text, or what needs no answer of the socket's.
    Heard(Option<Utf8Bytes>),
    Due,
    Standing(watch::Receiver<Standing>),
}

impl Socket {
    fn new(
        app: Arc<App>,
        subscriber: Subscriber,
        registration: Registration,
        guard: Option<Arc<ConnectionGuard>>,
    ) -> Self {
        let now = Instant::now();
        let next_ping = now + app.options.ping_interval;
        Self {
            app,
            subscriber,
            registration,
            last_heard: now,
            next_ping,
            lost_since: None,
            question: None,
            _guard: guard,
        }
    }

    /// The connection's place among those that updates are written to; `read` has come on it already.
    fn follow(&self, stream: UpgradedStream, read: &Bytes) -> Member {
        let options = &self.app.options;
        let line = Line::new(stream, read, options.max_viewer_message_bytes, Allowance::new(options.talk));
        self.subscriber.follow(line, self.registration.state())
    }

    async fn run(mut self: Box<Self>, member: Member) {
        let _open = Open::count();
        self.log("socket opened", None);
        let Err(end) = self.attend(&member).await;
        self.log("socket closed", Some(end.reason()));
        if end.is_drop() {
            metrics::counter!("gateway_sockets_dropped_total", "reason" => end.reason()).increment(1);
        }
        let Self { registration, _guard, .. } = *self;
        // Unregistered before it is closed: that may take a while, and the viewer is gone for the service already.
        drop(registration);
        if let Some(line) = member.leave().filter(|_| end != End::Failed) {
            Box::pin(close(line, end)).await;
        }
    }

    fn log(&self, what: &'static str, reason: Option<&'static str>) {
        let (client_id, session) = (self.registration.client_id(), self.registration.session());
        tracing::debug!(stream_id = self.subscriber.stream_id(), client_id, session, reason, "{what}");
    }

    async fn attend(&mut self, member: &Member) -> Result<Infallible, End> {
        let snapshot = self.registration.state();
        member.start(match self.subscriber.format() {
            Format::Json => text_frame(serde_json::to_string(snapshot).map_err(|_| End::Failed)?),
            Format::Proto => proto_frame(&snapshot.clone().into()),
        });
        self.serve(member).await
    }

    /// Reads, and sees to what waits and what is due. Updates are written by others, unless they have to wait.
    async fn serve(&mut self, member: &Member) -> Result<Infallible, End> {
        let mut standing = pin!(next_standing(self.registration.watch()));
        let mut timer = pin!(sleep_until(self.next_ping));
        loop {
            match poll_fn(|context| self.poll_event(member, context, timer.as_mut(), standing.as_mut())).await? {
                Event::Heard(said) => self.hear(said),
                Event::Due => self.look_at_time(member)?,
                Event::Standing(mut receiver) => {
                    let now = *receiver.borrow_and_update();
                    self.look_at(now)?;
                    standing.set(next_standing(receiver));
                }
            }
        }
    }

    fn hear(&mut self, said: Option<Utf8Bytes>) {
        self.last_heard = Instant::now();
        if let Some(said) = said {
            TimeQuestion::note(&mut self.question, &said, &self.app.client);
        }
    }

    fn poll_event(
        &mut self,
        member: &Member,
        context: &mut Context<'_>,
        timer: Pin<&mut Sleep>,
        standing: Pin<&mut impl Future<Output = watch::Receiver<Standing>>>,
    ) -> Poll<Result<Event, End>> {
        loop {
            // Before another is heard, whose number would take the place of this one's.
            self.answer(member, context)?;
            if let Poll::Ready(heard) = member.poll(context) {
                return Poll::Ready(heard.map(Event::Heard));
            }
            // The line may have become clear.
            if !self.answer(member, context)? {
                break;
            }
        }
        if self.poll_due(member, context, timer).is_ready() {
            return Poll::Ready(Ok(Event::Due));
        }
        standing.poll(context).map(|receiver| Ok(Event::Standing(receiver)))
    }

    /// Answers the viewer's question, if there is one and it is possible by now; says whether it has.
    fn answer(&mut self, member: &Member, context: &mut Context<'_>) -> Result<bool, End> {
        let Some(question) = &mut self.question else { return Ok(false) };
        let Poll::Ready(answered) = member.poll_answer(question, context) else { return Ok(false) };
        self.question = None;
        answered.map(|()| true)
    }

    /// Sets the timer, unless it fires before anyway: most times it does.
    fn poll_due(&self, member: &Member, context: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<()> {
        let due = member.due().map_or(self.next_ping, |due| due.min(self.next_ping));
        if timer.is_elapsed() || due < timer.deadline() {
            timer.as_mut().reset(due);
        }
        timer.poll(context)
    }

    /// What is due by now. What is due for long is so because this process stood still: nobody is to blame, and what the
    /// viewer said meanwhile is still to be read.
    fn look_at_time(&mut self, member: &Member) -> Result<(), End> {
        member.check_time()?;
        let now = Instant::now();
        if self.next_ping > now {
            return Ok(());
        }
        if patience::is_late(self.next_ping) {
            self.last_heard = now;
            self.lost_since = self.lost_since.map(|_| now);
        }
        let options = &self.app.options;
        self.next_ping = now + options.ping_interval;
        if now - self.last_heard >= options.vanished_after {
            return Err(End::Vanished);
        }
        if self.lost_since.is_some_and(|since| now - since >= options.lost_after) {
            return Err(End::Lost);
        }
        member.ping()
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
}

/// Tells the viewer why, and waits until it has closed too, for so long.
async fn close(mut line: Line, end: End) {
    _ = timeout(CLOSE_TIMEOUT, line.close(end.close_frame(), end.is_fault())).await;
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
