//! Whether the connection is up, which one it is, and what happened to it.
//!
//! The client's events come through a queue that drops when it is full, and they are raised just before the state
//! changes. So they are only a reason to look: the truth is the client's own state and its count of connections, read
//! on each event, shortly after it, at short intervals, and by each call that depends on it.
//!
//! It does not know what the connection is used for. It holds no client, because the client holds it.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::{Client, connection::State};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use crate::transport::{Connection, TransportError};

/// How often to look at the client without an event. Only a lost event ever waits for it.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long after an event to look again; the client changes its state microseconds after it raised the event.
const SETTLE: Duration = Duration::from_millis(1);

/// The first and the longest pause between two attempts to connect; each is twice the one before.
///
/// 2 s is short enough that nobody waits for a broker which is back. Each pause is drawn between its half and its whole,
/// so that the clients of a restarted broker do not all come at once.
const SHORTEST_DELAY: Duration = Duration::from_millis(40);
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// The pause before `attempt` (from 1) to connect.
///
/// A transport that is closing gets a pause without an end: the client offers no other way to stop it from trying.
pub(super) fn reconnect_delay(attempt: usize, closing: bool) -> Duration {
    if closing {
        return Duration::MAX;
    }
    // Six doublings reach the longest.
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(6);
    let delay = (SHORTEST_DELAY * 2_u32.pow(doublings)).min(LONGEST_DELAY);
    delay.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// How far the end of a transport has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Open,
    /// Calls say `Closed`; what was taken is being sent.
    Closing,
    /// The client got through: it has ended the subscriptions itself.
    Ended,
    /// The client may never get through; subscriptions end without it.
    Cut,
}

/// The state of one connection, shared with the client's callbacks.
pub(super) struct Link {
    /// Where the broker is, without user and password.
    pub(super) url: String,
    /// Which connection this is, to tell those of a process apart.
    pub(super) name: String,
    connection: watch::Sender<Connection>,
    end: watch::Sender<End>,
    /// No reading of the client's state is shown any more.
    closed: AtomicBool,
    look: Notify,
    lame_duck: AtomicBool,
    away_since: Mutex<Instant>,
}

/// Nothing under these locks is ever half changed.
fn unpoisoned<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub(super) fn new(url: String, name: String) -> Self {
        Self {
            url,
            name,
            connection: watch::Sender::new(Connection { connected: false, generation: 0 }),
            end: watch::Sender::new(End::Open),
            closed: AtomicBool::new(false),
            look: Notify::new(),
            lame_duck: AtomicBool::new(false),
            away_since: Mutex::new(Instant::now()),
        }
    }

    /// There is a reason to look at the client's state.
    pub(super) fn look(&self) {
        self.look.notify_one();
    }

    /// The server is about to stop.
    pub(super) fn lame_duck(&self) {
        self.lame_duck.store(true, Ordering::SeqCst);
    }

    /// The client has come to its end.
    pub(super) fn client_ended(&self) {
        self.end_as(End::Ended);
    }

    /// Keeps the watch up to date and leaves a server that is about to stop. Runs until it is aborted.
    pub(super) async fn keep_watching(&self, client: &Client) {
        loop {
            self.refresh(client);
            tokio::select! {
                () = self.look.notified() => {
                    self.refresh(client);
                    sleep(SETTLE).await;
                }
                () = sleep(LOOK_INTERVAL) => {}
            }
            self.leave_lame_duck(client).await;
        }
    }

    /// Connects anew if the server said that it is about to stop, and to another one if there is another.
    async fn leave_lame_duck(&self, client: &Client) {
        if !self.lame_duck.swap(false, Ordering::SeqCst) || !self.connection.borrow().connected {
            return;
        }
        tracing::info!(url = %self.url, "the NATS server is shutting down; leaving it for another");
        // Bounded, because the watch must go on while the client's queue is full.
        if timeout(LOOK_INTERVAL, client.force_reconnect()).await.is_err() {
            self.lame_duck.store(true, Ordering::SeqCst);
        }
    }

    /// Reads the client's state into the watch, and returns it.
    pub(super) fn refresh(&self, client: &Client) -> Connection {
        let statistics = client.statistics();
        let mut now = Connection { connected: false, generation: 0 };
        let mut is_new = false;
        // The reading is done under the watch's lock, so that an older one never replaces a newer one.
        self.connection.send_if_modified(|connection| {
            now = *connection;
            now.connected = client.connection_state() == State::Connected && !self.closed.load(Ordering::SeqCst);
            if now.connected {
                now.generation = statistics.connects.load(Ordering::SeqCst);
            }
            is_new = now.generation != connection.generation;
            std::mem::replace(connection, now) != now
        });
        if is_new {
            self.log_connected(now.generation);
        }
        now
    }

    pub(super) fn watch(&self) -> watch::Receiver<Connection> {
        self.connection.subscribe()
    }

    /// Resolves when the connection of `generation` is gone, also when another took its place, with what to tell a caller.
    pub(super) async fn lost(&self, generation: u64) -> TransportError {
        let mut connection = self.connection.subscribe();
        // An error would mean that the sender is gone, which `self` holds.
        let _ = connection.wait_for(|now| !now.connected || now.generation != generation).await;
        if self.is_closing() { TransportError::Closed } else { TransportError::Disconnected }
    }

    pub(super) fn is_closing(&self) -> bool {
        *self.end.borrow() != End::Open
    }

    /// True for the first caller only.
    pub(super) fn begin_closing(&self) -> bool {
        self.end.send_if_modified(|end| {
            let first = *end == End::Open;
            if first {
                *end = End::Closing;
            }
            first
        })
    }

    /// Ends subscriptions that the client has not ended.
    pub(super) fn cut_subscriptions(&self) {
        self.end_as(End::Cut);
    }

    /// Shows the connection as away from now on, and frees all who wait for it.
    pub(super) fn show_closed(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.connection.send_modify(|connection| connection.connected = false);
    }

    /// Resolves when the client is through, or was given up.
    pub(super) async fn ended(&self) {
        // An error would mean that the sender is gone, which `self` holds.
        let _ = self.end.subscribe().wait_for(|end| *end >= End::Ended).await;
    }

    /// Resolves when subscriptions have to end without the client, or when the link is gone altogether.
    pub(super) fn cut(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut end = self.end.subscribe();
        async move {
            if end.wait_for(|end| *end == End::Cut).await.is_err() {
                // The sender went without a cut: the transport was closed in good order, and the client ends its part.
                std::future::pending().await
            }
        }
    }

    /// The first of the two ends stays.
    fn end_as(&self, how: End) {
        self.end.send_if_modified(|end| {
            let first = *end < End::Ended;
            if first {
                *end = how;
            }
            first
        });
    }

    fn log_connected(&self, generation: u64) {
        tracing::info!(url = %self.url, name = self.name, generation, "connected to NATS");
    }

    pub(super) fn log_lost(&self) {
        *unpoisoned(&self.away_since) = Instant::now();
        tracing::warn!(url = %self.url, name = self.name, "lost the connection to NATS; trying to reach it again");
    }

    /// For how long the connection has been away, s.
    pub(super) fn away_s(&self, now: Instant) -> u64 {
        now.duration_since(*unpoisoned(&self.away_since)).as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_between_attempts_double_up_to_the_longest() {
        for (attempt, whole_ms) in [(1, 40), (2, 80), (3, 160), (6, 1280), (7, 2000), (8, 2000), (usize::MAX, 2000)] {
            let whole = Duration::from_millis(whole_ms);
            for _ in 0..100 {
                let delay = reconnect_delay(attempt, false);
                assert!(delay >= whole / 2 && delay <= whole, "attempt {attempt}: {delay:?} of {whole:?}");
            }
        }
    }

    #[test]
    fn a_closing_transport_stops_trying_to_connect() {
        assert_eq!(reconnect_delay(1, true), Duration::MAX);
    }
}
