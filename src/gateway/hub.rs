//! One subscription to a stream's updates for all sockets that show it: a room, there from its first seat to its last.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::sleep,
};

use super::board::{Board, Next, Reader};
use crate::client::{
    Client, ClientError, UpdateStream,
    proto::{Code, Mode, StateUpdate},
};

/// Over how long the rooms of a gateway spread asking for the state, when all have a reason to at once.
const REFRESH_SPREAD_MS: u64 = 500;
/// How long after a question that got no answer it is asked again, plus the spread.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// All rooms.
#[derive(Debug)]
pub(super) struct Hub {
    client: Client,
    rooms: Mutex<HashMap<Arc<str>, Occupied>>,
}

/// A room that has seats.
#[derive(Debug)]
struct Occupied {
    room: Arc<Room>,
    seats: usize,
    pump: AbortHandle,
}

/// What the sockets of one stream share.
#[derive(Debug)]
struct Room {
    stream_id: Arc<str>,
    board: watch::Sender<Board>,
    /// What became of subscribing: nobody registers before it has succeeded.
    opened: watch::Sender<Option<Result<(), ClientError>>>,
    /// Somebody has reason to think that updates were missed.
    refresh: Notify,
}

/// A socket's place in a room. With the last one the subscription ends.
#[derive(Debug)]
pub(super) struct Seat {
    hub: Arc<Hub>,
    room: Arc<Room>,
    board: watch::Receiver<Board>,
    reader: Reader,
}

impl Hub {
    pub(super) fn new(client: Client) -> Arc<Self> {
        Arc::new(Self { client, rooms: Mutex::new(HashMap::new()) })
    }

    /// Takes a seat. When it returns, whatever is published from now on will be on the board.
    pub(super) async fn join(self: &Arc<Self>, stream_id: &str) -> Result<Seat, ClientError> {
        let mut seat = self.sit(stream_id);
        let mut opened = seat.room.opened.subscribe();
        // The room cannot be gone while the seat is held, so this is an answer; `updates` bounds the wait for it.
        if let Ok(result) = opened.wait_for(Option::is_some).await
            && let Some(Err(error)) = &*result
        {
            return Err(error.clone());
        }
        seat.reader = seat.board.borrow_and_update().reader();
        Ok(seat)
    }

    fn sit(self: &Arc<Self>, stream_id: &str) -> Seat {
        let mut rooms = self.rooms();
        let room = match rooms.get_mut(stream_id) {
            Some(occupied) => {
                occupied.seats += 1;
                Arc::clone(&occupied.room)
            }
            None => {
                let room = Arc::new(Room {
                    stream_id: stream_id.into(),
                    board: watch::Sender::new(Board::default()),
                    opened: watch::Sender::new(None),
                    refresh: Notify::new(),
                });
                let pump = tokio::spawn(pump(self.client.clone(), Arc::clone(&room))).abort_handle();
                rooms.insert(Arc::clone(&room.stream_id), Occupied { room: Arc::clone(&room), seats: 1, pump });
                room
            }
        };
        let board = room.board.subscribe();
        Seat { hub: Arc::clone(self), room, board, reader: Reader::default() }
    }

    fn leave(&self, room: &Arc<Room>) {
        let mut rooms = self.rooms();
        let Some(occupied) = rooms.get_mut(&room.stream_id) else { return };
        debug_assert!(Arc::ptr_eq(&occupied.room, room), "a room has seats for as long as it is there");
        occupied.seats -= 1;
        if occupied.seats == 0 {
            occupied.pump.abort();
            rooms.remove(&room.stream_id);
        }
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<Arc<str>, Occupied>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
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

impl Drop for Seat {
    fn drop(&mut self) {
        self.hub.leave(&self.room);
    }
}

/// Subscribes, and puts up what comes until the room is given up.
async fn pump(client: Client, room: Arc<Room>) {
    match client.updates(&room.stream_id).await {
        Ok(updates) => {
            room.opened.send_replace(Some(Ok(())));
            room.read(&client, updates).await;
            tracing::debug!(stream_id = %room.stream_id, "the subscription ended: the transport is closed");
        }
        Err(error) => {
            room.opened.send_replace(Some(Err(error)));
        }
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
    async fn read(&self, client: &Client, mut updates: UpdateStream) {
        let mut connection = client.connection();
        let mut generation = connection.borrow_and_update().generation;
        let mut watched = true;
        let mut asking: Option<Asking<'_>> = None;
        loop {
            tokio::select! {
                update = updates.next() => {
                    let Some(update) = update else { return };
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
