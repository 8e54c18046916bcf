//! One subscription to a stream's updates for all sockets that show it: a room, there from its first seat to its last.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use super::board::{Board, Next, Reader};
use crate::client::{
    Client, ClientError, UpdateStream,
    proto::{Code, Mode, StateUpdate},
    shared::{Holder, Shared},
};

/// Over how long the rooms of a gateway spread asking for the state, when all have a reason to at once.
const REFRESH_SPREAD_MS: u64 = 500;
/// How long after a question that got no answer it is asked again, plus the spread.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// All rooms, by stream.
#[derive(Debug)]
pub(super) struct Hub {
    client: Client,
    rooms: Arc<Shared<Arc<str>, Room>>,
}

/// What the sockets of one stream share.
#[derive(Debug)]
struct Room {
    stream_id: Arc<str>,
    board: watch::Sender<Board>,
    /// Somebody has reason to think that updates were missed.
    refresh: Notify,
}

/// A socket's place in a room. With the last one the subscription ends.
#[derive(Debug)]
pub(super) struct Seat {
    room: Holder<Arc<str>, Room>,
    board: watch::Receiver<Board>,
    reader: Reader,
}

impl Hub {
    pub(super) fn new(client: Client) -> Self {
        Self { client, rooms: Arc::default() }
    }

    /// Takes a seat. When it returns, whatever is published from now on will be on the board.
    pub(super) async fn join(&self, stream_id: &str) -> Result<Seat, ClientError> {
        let stream_id: Arc<str> = stream_id.into();
        let make = || Room::new(Arc::clone(&stream_id));
        // Nobody registers before this has succeeded.
        let open = |room: Arc<Room>| {
            let client = self.client.clone();
            async move {
                let updates = client.updates(&room.stream_id).await?;
                Ok(async move { room.read(&client, updates).await })
            }
        };
        let room = self.rooms.join(Arc::clone(&stream_id), make, open).await?;
        let mut board = room.board.subscribe();
        let reader = board.borrow_and_update().reader();
        Ok(Seat { room, board, reader })
    }
}

impl Seat {
    /// The snapshot that this socket has sent: what it contains is not sent again.
    pub(super) fn start_at(&mut self, snapshot: &StateUpdate) {
        self.reader.start_at(snapshot);
    }

    /// What to send next.
    pub(super) fn next(&mut self) -> Next {
        let board = self.board.borrow_and_update();
        self.reader.next(&board)
    }

    /// How many ticks were skipped since this was last asked.
    pub(super) fn take_skipped(&mut self) -> u64 {
        std::mem::take(&mut self.reader.skipped)
    }

    /// Resolves when the board has changed since `next`. Cancel safe.
    pub(super) async fn changed(&mut self) {
        // The sender lives in the room, and the room in this seat.
        let _ = self.board.changed().await;
    }

    /// Updates may have been missed: asks for the state, once for all who say so.
    pub(super) fn refresh(&self) {
        self.room.refresh.notify_one();
    }
}

/// A question for the state, under way.
type Asking<'a> = BoxFuture<'a, Result<StateUpdate, ClientError>>;

async fn answered(asking: &mut Option<Asking<'_>>) -> Result<StateUpdate, ClientError> {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

impl Room {
    fn new(stream_id: Arc<str>) -> Self {
        Self { stream_id, board: watch::Sender::default(), refresh: Notify::new() }
    }

    /// Puts up what comes until the room is given up.
    async fn read(&self, client: &Client, mut updates: UpdateStream) {
        let mut connection = client.connection();
        let mut generation = connection.borrow_and_update().generation;
        let mut watched = true;
        let mut asking: Option<Asking<'_>> = None;
        loop {
            tokio::select! {
                update = updates.next() => {
                    let Some(update) = update else {
                        tracing::debug!(stream_id = %self.stream_id, "the subscription ended: the transport is closed");
                        return;
                    };
                    // It is the full state, so there is nothing left to ask.
                    asking = None;
                    self.post(&update);
                }
                () = self.refresh.notified() => asking = asking.or_else(|| Some(self.ask(client, Duration::ZERO))),
                changed = connection.changed(), if watched => {
                    watched = changed.is_ok();
                    let now = *connection.borrow_and_update();
                    if now.connected && now.generation != generation {
                        generation = now.generation;
                        asking = Some(self.ask(client, Duration::ZERO));
                    }
                }
                answer = answered(&mut asking), if asking.is_some() => {
                    asking = match answer {
                        Ok(state) => {
                            if updates.seed(&state) {
                                self.post(&state);
                            }
                            None
                        }
                        Err(error) if error.code() == Code::Unavailable => {
                            Some(self.ask(client, REFRESH_PAUSE))
                        }
                        // Not there, or not now: the registrations find out, and say when it is back.
                        Err(_) => None,
                    };
                }
            }
        }
    }

    fn ask<'a>(&'a self, client: &'a Client, pause: Duration) -> Asking<'a> {
        let pause = pause + Duration::from_millis(client.random_session() % REFRESH_SPREAD_MS);
        Box::pin(async move {
            sleep(pause).await;
            client.get_state(&self.stream_id).await
        })
    }

    fn post(&self, update: &StateUpdate) {
        match serde_json::to_string(update) {
            Ok(text) => self.board.send_modify(|board| board.post(update, text)),
            Err(error) => tracing::debug!(stream_id = %self.stream_id, %error, "an update does not encode"),
        }
        if update.mode() == Mode::Unknown {
            tracing::debug!(stream_id = %self.stream_id, "the stream was removed");
        }
    }
}
