//! Publishes what a shard owes, on the shard's own runtime.
//!
//! Changes are kept until a barrier, a round trip behind them, says that the broker has them. When the connection is
//! lost before, they are published again once it is back; a reader that had them sees their sequence repeated.
//! What comes when is decided in [`Delivery`]; here it is done.

use std::{rc::Rc, sync::Arc};

use futures_util::{FutureExt as _, future::BoxFuture};
use metrics::counter;
use tracing::{debug, warn};

use super::{
    delivery::{Delivery, Step},
    log_limit::LogLimit,
};
use crate::{
    shard::{
        owed::{DEFAULT_MAX_PAYLOAD, Owed, TooLarge},
        thread::Outlet,
    },
    transport::{Connection, Transport, TransportError},
};

/// A round trip under way.
type Barrier = BoxFuture<'static, Result<(), TransportError>>;

/// What goes wrong with publishing, as it is logged for all shards together.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    too_large: LogLimit,
}

impl Troubles {
    fn tell(&self, owed: &mut Owed) {
        let Some(TooLarge { bytes, limit }) = owed.take_too_large() else { return };
        if let Some(more) = self.too_large.is_due() {
            warn!(bytes, limit, more, "an update is larger than the broker takes, and is given up");
        }
    }
}

/// Publishes until the outlet is finished and settled.
pub(super) async fn publish(outlet: Rc<Outlet>, transport: Arc<dyn Transport>, troubles: Arc<Troubles>) {
    let mut connection = transport.connection();
    let mut delivery = Delivery::new(*connection.borrow_and_update());
    let mut barrier: Option<Barrier> = None;
    loop {
        let seen = *connection.borrow_and_update();
        if let Some(dropped) = delivery.connection_is(seen, &mut outlet.owed.borrow_mut()) {
            count_lost(dropped);
            barrier = None;
        }
        if let Some(passed) = until_done(&mut barrier).now_or_never() {
            barrier = None;
            confirm(&outlet, &mut delivery, passed, *connection.borrow());
        }
        if outlet.is_finished() && delivery.is_settled(&outlet.owed.borrow()) {
            return;
        }
        let max_payload = transport.max_payload().unwrap_or(DEFAULT_MAX_PAYLOAD);
        let step = delivery.next(&mut outlet.owed.borrow_mut(), max_payload);
        troubles.tell(&mut outlet.owed.borrow_mut());
        match step {
            Step::Publish => {
                counter!("orchestrator_published_total").increment(outlet.owed.borrow_mut().take_published());
                outlet.drained.notify_one();
                match transport.publish(delivery.taken()).await {
                    Ok(()) => {}
                    Err(TransportError::TooLarge { bytes, limit }) => {
                        delivery.too_large(bytes, limit, &mut outlet.owed.borrow_mut());
                    }
                    // An answer to a subject that only its asker knows the sense of.
                    Err(TransportError::Refused(reason)) => {
                        debug!(reason, "a message cannot be published");
                        counter!("orchestrator_dropped_total", "reason" => "refused_by_broker").increment(1);
                    }
                    Err(error) => {
                        debug!(%error, "publishing stopped");
                        barrier = None;
                        lost(&outlet, &mut delivery);
                        wait_for_connection(&mut connection, seen).await;
                    }
                }
            }
            Step::Barrier => {
                let transport = Arc::clone(&transport);
                barrier = Some(Box::pin(async move { transport.barrier().await }));
            }
            Step::Wait => tokio::select! {
                () = outlet.filled.notified() => {}
                changed = connection.changed() => if changed.is_err() { return },
                passed = until_done(&mut barrier) => {
                    barrier = None;
                    confirm(&outlet, &mut delivery, passed, *connection.borrow());
                }
            },
        }
    }
}

fn lost(outlet: &Outlet, delivery: &mut Delivery) {
    count_lost(delivery.lost(&mut outlet.owed.borrow_mut()));
}

fn count_lost(dropped: usize) {
    counter!("orchestrator_dropped_total", "reason" => "disconnected").increment(dropped as u64);
}

async fn wait_for_connection(connection: &mut tokio::sync::watch::Receiver<Connection>, seen: Connection) {
    /// An error without a change of the connection is tried again after that.
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
    let _ = tokio::time::timeout(PAUSE, connection.wait_for(|now| *now != seen)).await;
}

async fn until_done(barrier: &mut Option<Barrier>) -> Result<(), TransportError> {
    match barrier {
        Some(barrier) => barrier.as_mut().await,
        None => std::future::pending().await,
    }
}

fn confirm(outlet: &Outlet, delivery: &mut Delivery, passed: Result<(), TransportError>, now: Connection) {
    match passed {
        Ok(()) => delivery.barrier_passed(now, &mut outlet.owed.borrow_mut()),
        Err(error) => {
            debug!(%error, "not known whether the broker has the last changes; publishing them again");
            lost(outlet, delivery);
        }
    }
    outlet.drained.notify_one();
}
