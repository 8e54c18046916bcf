//! Publishes what a shard owes, on the shard's own runtime.
//!
//! Changes are kept until a barrier, a round trip behind them, says that the broker has them. When the connection is
//! lost before, they are published again once it is back; a reader that had them sees their sequence repeated.

use std::{collections::VecDeque, rc::Rc, sync::Arc};

use futures_util::future::BoxFuture;
use metrics::counter;
use tracing::{debug, warn};

use crate::{
    shard::thread::Outlet,
    transport::{Connection, Outgoing, Transport, TransportError},
};

/// How many messages are taken over at once: few enough that ticks do not grow old behind them.
const MESSAGES_AT_ONCE: usize = 512;

/// A round trip under way, and how many changes were handed over before it.
struct Barrier {
    until: u64,
    done: BoxFuture<'static, Result<(), TransportError>>,
}

/// Publishes until the outlet is finished and settled.
pub(super) async fn publish(outlet: Rc<Outlet>, transport: Arc<dyn Transport>) {
    let mut connection = transport.connection();
    let mut seen = *connection.borrow_and_update();
    let mut taken: VecDeque<Outgoing> = VecDeque::new();
    let mut barrier: Option<Barrier> = None;
    loop {
        let now = *connection.borrow_and_update();
        if now != seen {
            seen = now;
            barrier = None;
            lost(&outlet, &mut taken);
        }
        if outlet.is_finished() && taken.is_empty() && outlet.owed.borrow().is_settled() {
            return;
        }
        if !seen.connected {
            if connection.changed().await.is_err() {
                return;
            }
            continue;
        }
        if taken.is_empty() {
            take_over(&outlet, &mut taken);
        }
        if !taken.is_empty() {
            match transport.publish(&mut taken).await {
                Ok(()) => {}
                Err(TransportError::TooLarge { bytes, limit }) => {
                    warn!(bytes, limit, "a message is larger than the broker takes");
                    counter!("orchestrator_dropped_total", "reason" => "too_large").increment(1);
                }
                // An answer to a subject that only its asker knows the sense of.
                Err(TransportError::Refused(reason)) => {
                    debug!(reason, "a message cannot be published");
                    counter!("orchestrator_dropped_total", "reason" => "refused_by_broker").increment(1);
                }
                Err(error) => {
                    debug!(%error, "publishing stopped");
                    lost(&outlet, &mut taken);
                    wait_for_connection(&mut connection, seen).await;
                }
            }
        }
        if barrier.is_none() && outlet.owed.borrow().has_unconfirmed() && taken.is_empty() {
            let (until, transport) = (outlet.owed.borrow().handed_over(), Arc::clone(&transport));
            barrier = Some(Barrier { until, done: Box::pin(async move { transport.barrier().await }) });
        }
        if outlet.owed.borrow().is_empty() && taken.is_empty() {
            tokio::select! {
                () = outlet.filled.notified() => {}
                _ = connection.changed() => {}
                confirmed = until_done(&mut barrier) => confirm(&outlet, &mut barrier, confirmed, *connection.borrow() == seen),
            }
        } else if let Some(confirmed) = futures_util::FutureExt::now_or_never(until_done(&mut barrier)) {
            confirm(&outlet, &mut barrier, confirmed, *connection.borrow() == seen);
        }
    }
}

fn take_over(outlet: &Outlet, taken: &mut VecDeque<Outgoing>) {
    let mut owed = outlet.owed.borrow_mut();
    owed.hand_over(MESSAGES_AT_ONCE, |subject, payload| taken.push_back(Outgoing { subject, payload }));
    counter!("orchestrator_published_total").increment(owed.take_published());
    drop(owed);
    outlet.drained.notify_one();
}

/// What was taken over is owed again if it is a change; the rest has been outrun by time.
fn lost(outlet: &Outlet, taken: &mut VecDeque<Outgoing>) {
    counter!("orchestrator_dropped_total", "reason" => "disconnected").increment(taken.len() as u64);
    taken.clear();
    outlet.owed.borrow_mut().owe_again();
}

async fn wait_for_connection(connection: &mut tokio::sync::watch::Receiver<Connection>, seen: Connection) {
    /// An error without a change of the connection is tried again after that.
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
    let _ = tokio::time::timeout(PAUSE, connection.wait_for(|now| *now != seen)).await;
}

async fn until_done(barrier: &mut Option<Barrier>) -> Result<(), TransportError> {
    match barrier {
        Some(barrier) => barrier.done.as_mut().await,
        None => std::future::pending().await,
    }
}

/// A barrier speaks for its own connection: if that is not the `same` as the one published on, it says nothing of what
/// was published, and the loop will find out.
fn confirm(outlet: &Outlet, barrier: &mut Option<Barrier>, confirmed: Result<(), TransportError>, same: bool) {
    let Some(Barrier { until, .. }) = barrier.take() else { return };
    let mut owed = outlet.owed.borrow_mut();
    match confirmed {
        Ok(()) if same => owed.confirm(until),
        Ok(()) => {}
        Err(error) => {
            debug!(%error, "not known whether the broker has the last changes; publishing them again");
            owed.owe_again();
        }
    }
    drop(owed);
    outlet.drained.notify_one();
}
