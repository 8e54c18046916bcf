//! One viewer's WebSocket, from the handshake to the end.
//!
//! The order is what makes the first message the current state and none after it missing: take a seat (subscribe),
//! register, send the snapshot that the registration brought, then what the board has above it.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::{
        State,
        ws::{
            CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code,
            rejection::WebSocketUpgradeRejection,
        },
    },
    http::Extensions,
    response::Response,
};
use futures_util::SinkExt as _;
use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::{
    App,
    board::Next,
    error::ApiError,
    extract::{Asked, Params, peer},
    hub::Seat,
};
use crate::{
    client::{Registration, Standing, proto::Code},
    http::ConnectionGuard,
};

/// How long the closing handshake may take. The viewer is unregistered before it begins.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// What a socket reads at once; the default of 128 KiB is a lot for pongs.
const READ_BUFFER: usize = 4 << 10;
/// What a socket collects before it writes. Every message is flushed, so this is only ever one message.
const WRITE_BUFFER: usize = 0;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Viewer {
    client_id: Option<String>,
    session: Option<u64>,
}

/// `GET /streams/{stream_id}/ws`: registers the viewer, then upgrades. A refusal is an ordinary answer.
pub(super) async fn open(
    State(app): State<Arc<App>>,
    Params(stream_id): Params<String>,
    Asked(viewer): Asked<Viewer>,
    extensions: Extensions,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|rejection| ApiError::invalid_as(rejection.status(), rejection.body_text()))?;
    let client_id = viewer.client_id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let session = viewer.session.unwrap_or_else(|| app.client.random_session());

    let seat = app.hub.join(&stream_id).await?;
    let registration = app.client.register(&stream_id, &client_id, peer(&extensions), session).await?;
    // The connection has its place for as long as the socket lives.
    let guard = extensions.get::<Arc<ConnectionGuard>>().cloned();
    let max_bytes = app.options.max_viewer_message_bytes;
    let upgrade = upgrade
        .max_message_size(max_bytes)
        .max_frame_size(max_bytes)
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER);
    Ok(upgrade.on_upgrade(move |socket| async move {
        tracing::debug!(stream_id, client_id, session, "socket opened");
        let end =
            Connection { app, socket, seat, lost_since: None, last_heard: Instant::now() }.run(registration).await;
        tracing::debug!(stream_id, client_id, session, reason = end.reason(), "socket closed");
        drop(guard);
    }))
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
    /// The service does not know the stream, for too long.
    Lost,
    /// More changes waited than are kept, or one message took too long.
    TooSlow,
    /// Nothing was heard, not even a pong.
    Vanished,
    /// The connection broke, or the viewer broke the protocol or its limits.
    Failed,
}

impl End {
    fn reason(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Removed => "removed",
            Self::ShuttingDown => "shutting_down",
            Self::Lost => "lost",
            Self::TooSlow => "too_slow",
            Self::Vanished => "vanished",
            Self::Failed => "failed",
        }
    }

    /// What to tell the viewer, if it can still be told.
    fn farewell(self) -> Option<(u16, &'static str)> {
        match self {
            Self::Removed => Some((close_code::NORMAL, "the stream was removed")),
            Self::Lost => Some((close_code::NORMAL, "the stream is gone")),
            Self::ShuttingDown => Some((close_code::AWAY, "the gateway is shutting down")),
            Self::TooSlow => Some((close_code::POLICY, "too slow")),
            Self::Closed | Self::Vanished | Self::Failed => None,
        }
    }

    /// True when it was the gateway that gave the viewer up.
    fn is_drop(self) -> bool {
        matches!(self, Self::Lost | Self::TooSlow | Self::Vanished | Self::Failed)
    }
}

/// A socket at work.
struct Connection {
    app: Arc<App>,
    socket: WebSocket,
    seat: Seat,
    last_heard: Instant,
    /// Since when the service has not known the stream.
    lost_since: Option<Instant>,
}

impl Connection {
    async fn run(mut self, registration: Registration) -> End {
        let _open = Open::count();
        let end = self.attend(&registration).await;
        // Unregistered before the goodbye: it may take a while, and the viewer is gone for the service already.
        drop(registration);
        if end.is_drop() {
            metrics::counter!("gateway_sockets_dropped_total", "reason" => end.reason()).increment(1);
        }
        match end.farewell() {
            Some((code, reason)) => _ = timeout(CLOSE_TIMEOUT, self.say_goodbye(code, reason)).await,
            None if end == End::Closed => _ = timeout(CLOSE_TIMEOUT, self.return_goodbye()).await,
            None => {}
        }
        end
    }

    async fn attend(&mut self, registration: &Registration) -> End {
        match self.begin(registration).await {
            Ok(()) => match self.serve(registration).await {
                Ok(never) => match never {},
                Err(end) => end,
            },
            Err(end) => end,
        }
    }

    async fn begin(&mut self, registration: &Registration) -> Result<(), End> {
        let snapshot = registration.state();
        self.seat.start_at(snapshot);
        let text = serde_json::to_string(snapshot).map_err(|_| End::Failed)?;
        self.write(Message::Text(text.into())).await
    }

    /// Reads, pings and writes, one at a time. Reading comes first: a viewer that says it is gone is not written to.
    async fn serve(&mut self, registration: &Registration) -> Result<std::convert::Infallible, End> {
        let interval = self.app.options.ping_interval;
        let mut pings = interval_at(Instant::now() + interval, interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let app = Arc::clone(&self.app);
        let ending = app.ending();
        tokio::pin!(ending);
        let mut standing = registration.watch();
        let mut unread = true;
        loop {
            tokio::select! {
                biased;
                () = &mut ending => return Err(End::ShuttingDown),
                message = self.socket.recv() => self.hear(message)?,
                _ = pings.tick() => self.ping().await?,
                changed = standing.changed() => {
                    changed.map_err(|_| End::ShuttingDown)?;
                    let now = *standing.borrow_and_update();
                    self.look_at(now)?;
                }
                () = self.seat.changed(), if !unread => unread = true,
                () = std::future::ready(()), if unread => unread = self.write_next().await?,
            }
        }
    }

    fn hear(&mut self, message: Option<Result<Message, axum::Error>>) -> Result<(), End> {
        match message {
            Some(Ok(Message::Close(_))) | None => Err(End::Closed),
            Some(Ok(_)) => {
                self.last_heard = Instant::now();
                Ok(())
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "reading from a socket failed");
                Err(End::Failed)
            }
        }
    }

    async fn ping(&mut self) -> Result<(), End> {
        let options = &self.app.options;
        if self.last_heard.elapsed() >= options.vanished_after {
            return Err(End::Vanished);
        }
        if self.lost_since.is_some_and(|since| since.elapsed() >= options.lost_after) {
            return Err(End::Lost);
        }
        self.write(Message::Ping(Bytes::new())).await
    }

    fn look_at(&mut self, standing: Standing) -> Result<(), End> {
        match standing {
            Standing::Registered { .. } => {
                // What was published while the service did not know this viewer may not have been published at all.
                self.lost_since = None;
                self.seat.refresh();
            }
            Standing::Lost(Code::StreamNotFound) => {
                self.lost_since.get_or_insert_with(Instant::now);
            }
            Standing::Lost(_) => {}
            Standing::Closed => return Err(End::ShuttingDown),
        }
        Ok(())
    }

    /// Writes the next update, if there is one; says whether to look again.
    async fn write_next(&mut self) -> Result<bool, End> {
        let next = self.seat.next();
        let skipped = self.seat.take_skipped();
        if skipped > 0 {
            metrics::counter!("gateway_ticks_skipped_total").increment(skipped);
        }
        match next {
            Next::Send { text, last } => {
                self.write(Message::Text(text)).await?;
                if last { Err(End::Removed) } else { Ok(true) }
            }
            Next::Wait => Ok(false),
            Next::TooSlow => Err(End::TooSlow),
        }
    }

    async fn write(&mut self, message: Message) -> Result<(), End> {
        match timeout(self.app.options.write_timeout, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Failed),
            Err(_) => Err(End::TooSlow),
        }
    }

    /// Sends the close frame and waits for the viewer's own, so that it is not lost in a reset.
    async fn say_goodbye(&mut self, code: u16, reason: &'static str) {
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
        if self.socket.send(Message::Close(Some(frame))).await.is_ok() {
            while let Some(Ok(_)) = self.socket.recv().await {}
        }
    }

    /// Sends the answer to the viewer's own close frame. It was made when that was read, but only waits to be written:
    /// without this the viewer would see the line break.
    async fn return_goodbye(&mut self) {
        // An error means that the line is gone already.
        let _ = self.socket.flush().await;
    }
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
