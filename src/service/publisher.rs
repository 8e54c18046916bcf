//! Publishes what a shard owes, on the shard's own runtime.
//!
//! Changes are kept until a barrier, a round trip behind them, says that the broker has them. When the connection is
//! lost before, they are published again once it is back; a reader that had them sees their sequence repeated.
//! What comes when is decided in [`Delivery`]; here it is done.

use std::{rc::Rc, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use metrics::counter;
use tokio::{sync::watch, time::Instant};
use tracing::{debug, warn};

use super::{
    delivery::{Delivery, Step},
    log_limit::LogLimit,
};
use crate::{
    shard::{
        publish_queue::{DEFAULT_MAX_PAYLOAD, PublishQueue, TooLarge},
        thread::Outlet,
    },
    transport::{Connection, Denied, Transport, TransportError},
};

/// A round trip under way.
type Barrier = BoxFuture<'static, Result<(), TransportError>>;

/// What goes wrong with publishing, as it is logged for all shards together.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    too_large: LogLimit,
}

impl Troubles {
    fn tell(&self, queue: &mut PublishQueue) {
        let Some(TooLarge { bytes, limit }) = queue.take_too_large() else { return };
        if let Some(more) = self.too_large.is_due() {
            warn!(bytes, limit, more, "an update is larger than the broker takes, and is given up");
        }
    }
}

/// How soon changes that the broker refused are tried again, if it has not said before that it takes them.
const RETRY_HELD: Duration = Duration::from_secs(1);

/// Publishes until the outlet is finished and settled.
pub(super) async fn publish(outlet: Rc<Outlet>, transport: Arc<dyn Transport>, troubles: Arc<Troubles>) {
    let mut connection = transport.connection();
    let mut delivery = Delivery::new(*connection.borrow_and_update());
    let mut refusals = Refusals::of(&*transport);
    let mut barrier: Option<Barrier> = None;
    loop {
        // Asked first: it looks at the connection, so nothing is handed over on another one than is seen here.
        let max_payload = transport.max_payload().unwrap_or(DEFAULT_MAX_PAYLOAD);
        let seen = *connection.borrow_and_update();
        if let Some(dropped) = delivery.connection_is(seen, &mut outlet.queue.borrow_mut()) {
            count_lost(dropped);
            barrier = None;
        }
        if let Some(passed) = until_done(&mut barrier).now_or_never() {
            barrier = again_if_denied(&transport, &passed);
            confirm(&outlet, &mut delivery, passed, *connection.borrow(), &mut refusals);
        }
        if outlet.is_finished() {
            outlet.queue.borrow_mut().give_up_held();
            if delivery.is_settled(&outlet.queue.borrow()) {
                return;
            }
        }
        refusals.retry_held(&mut outlet.queue.borrow_mut());
        let step = delivery.next(&mut outlet.queue.borrow_mut(), max_payload);
        troubles.tell(&mut outlet.queue.borrow_mut());
        match step {
            Step::Publish => {
                counter!("orchestrator_published_total").increment(outlet.queue.borrow_mut().take_published());
                counter!("orchestrator_filtered_total").increment(outlet.queue.borrow_mut().take_filtered());
                outlet.drained.notify_one();
                match transport.publish(delivery.taken()).await {
                    Ok(()) => {}
                    Err(TransportError::TooLarge { bytes, limit }) => {
                        delivery.too_large(bytes, limit, &mut outlet.queue.borrow_mut());
                    }
                    // An answer to a subject that only its asker knows the sense of.
                    Err(TransportError::Refused(reason)) => {
                        debug!(reason, "a message cannot be published");
                        counter!("orchestrator_dropped_total", "reason" => "refused_by_broker").increment(1);
                    }
                    // A change is held behind the next barrier. The transport logs it, once in a while.
                    Err(TransportError::Denied(denial)) => {
                        delivery.refused(denial.subject, &outlet.queue.borrow());
                        // This came without waiting, and so may the next thousands: the shard has its turn in between.
                        tokio::task::yield_now().await;
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
                barrier = Some(async move { transport.barrier().await }.boxed());
            }
            Step::Wait => tokio::select! {
                () = outlet.filled.notified() => {}
                changed = connection.changed() => if changed.is_err() { return },
                () = refusals.changed() => {}
                passed = until_done(&mut barrier) => {
                    barrier = again_if_denied(&transport, &passed);
                    confirm(&outlet, &mut delivery, passed, *connection.borrow(), &mut refusals);
                }
            },
        }
    }
}

/// What the broker refuses to take.
#[derive(Debug)]
struct Refusals {
    denied: watch::Receiver<Denied>,
    /// How often refusals may have been missed or forgotten, as was known at the last barrier and at the one before.
    missed: [u64; 2],
    /// When to try again what is held.
    retry_at: Option<Instant>,
}

impl Refusals {
    fn of(transport: &dyn Transport) -> Self {
        let denied = transport.denied();
        let missed = denied.borrow().missed;
        Self { denied, missed: [missed; 2], retry_at: None }
    }

    /// Tries what is held again when it is time, or when nothing is refused any more.
    fn retry_held(&mut self, queue: &mut PublishQueue) {
        if !queue.has_held() {
            self.retry_at = None;
            return;
        }
        let now = Instant::now();
        let at = *self.retry_at.get_or_insert(now + RETRY_HELD);
        if at <= now || self.denied.borrow_and_update().publish.is_empty() {
            self.retry_at = None;
            queue.release_held();
        }
    }

    /// Resolves when there is a reason to try again; never while nothing is held.
    async fn changed(&mut self) {
        let Some(at) = self.retry_at else { return std::future::pending().await };
        tokio::select! {
            () = tokio::time::sleep_until(at) => {}
            // An error would mean that the transport is gone, which the publisher holds.
            _ = self.denied.changed() => {}
        }
    }

    /// A barrier has passed: confirms what the broker did not refuse.
    fn confirm(&mut self, delivery: &mut Delivery, now: Connection, queue: &mut PublishQueue) {
        let denied = self.denied.borrow();
        // A message may have been refused before the last barrier that is behind the barrier only now.
        let missed = self.missed[0] != denied.missed;
        self.missed = [self.missed[1], denied.missed];
        delivery.barrier_passed_but(now, queue, missed, |subject| denied.publish.contains(subject));
    }
}

fn lost(outlet: &Outlet, delivery: &mut Delivery) {
    count_lost(delivery.lost(&mut outlet.queue.borrow_mut()));
}

fn count_lost(dropped: usize) {
    counter!("orchestrator_dropped_total", "reason" => "disconnected").increment(dropped as u64);
}

async fn wait_for_connection(connection: &mut watch::Receiver<Connection>, seen: Connection) {
    /// An error without a change of the connection is tried again after that.
    const PAUSE: Duration = Duration::from_millis(100);
    let _ = tokio::time::timeout(PAUSE, connection.wait_for(|now| *now != seen)).await;
}

async fn until_done(barrier: &mut Option<Barrier>) -> Result<(), TransportError> {
    match barrier {
        Some(barrier) => barrier.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Where the broker refuses barriers, which is not known to lose anything: the same again, after a while.
fn again_if_denied(transport: &Arc<dyn Transport>, passed: &Result<(), TransportError>) -> Option<Barrier> {
    let Err(TransportError::Denied(_)) = passed else { return None };
    let transport = Arc::clone(transport);
    let again = async move {
        tokio::time::sleep(RETRY_HELD).await;
        transport.barrier().await
    };
    Some(again.boxed())
}

fn confirm(
    outlet: &Outlet,
    delivery: &mut Delivery,
    passed: Result<(), TransportError>,
    now: Connection,
    refusals: &mut Refusals,
) {
    match passed {
        // It is being repeated, and speaks for the same changes.
        Err(TransportError::Denied(_)) => {}
        Ok(()) => refusals.confirm(delivery, now, &mut outlet.queue.borrow_mut()),
        Err(error) => {
            debug!(%error, "not known whether the broker has the last changes; publishing them again");
            lost(outlet, delivery);
        }
    }
    outlet.drained.notify_one();
}
