//! What an operator reads of a shard's work: trace points and counters.

use metrics::counter;
use tracing::{debug, info, trace};

use crate::{
    engine::{Accepted, Event, StateUpdate},
    wire::{
        Refusal,
        proto::{self, subscription_command::Command as Subscription},
    },
};

/// A refusal, whether or not somebody is told; of a batch also that of a part.
pub(super) fn refused(code: proto::Code, reason: &str, about: &str) {
    if code != proto::Code::Ok {
        let code = code.as_str_name();
        counter!("orchestrator_refused_total", "code" => code).increment(1);
        debug!(code, about, reason, "message refused");
    }
}

/// An update that goes out.
pub(super) fn update(update: &StateUpdate) {
    trace!(
        stream_id = &*update.stream_id,
        cause = ?update.cause,
        mode = %update.mode,
        position_ms = update.position_ms,
        sequence = update.sequence,
        "state published"
    );
}

/// Somebody came or went.
pub(super) fn membership(message: &proto::SubscriptionCommand, result: &Result<Accepted, Refusal>) {
    match (&message.command, result) {
        (Some(Subscription::Register(m)), Ok(Accepted::Registered { new, total, .. })) => {
            let (stream_id, client_id, source_addr) = (&*m.stream_id, &*m.client_id, &*m.source_addr);
            debug!(
                stream_id,
                client_id,
                session = m.session,
                source_addr,
                new,
                subscribers = total,
                "client registered"
            );
        }
        (Some(Subscription::Unregister(m)), Ok(Accepted::Unregistered { total, source })) => {
            let (stream_id, client_id) = (&*m.stream_id, &*m.client_id);
            debug!(stream_id, client_id, session = m.session, ?source, subscribers = total, "client unregistered");
        }
        (Some(Subscription::RegisterBatch(m)), Ok(Accepted::RegisteredBatch { handles, .. })) => {
            let registered = handles.iter().filter(|handle| handle.is_ok()).count();
            debug!(stream_id = &*m.stream_id, registered, of = handles.len(), "clients registered");
        }
        (Some(Subscription::UnregisterBatch(m)), Ok(Accepted::Batch(unplaced))) => {
            let unknown = unplaced.handles.len() + unplaced.clients.len();
            let unregistered = m.client_id.len() + m.handle.len() - unknown;
            debug!(stream_id = &*m.stream_id, unregistered, unknown, "clients unregistered");
        }
        _ => {}
    }
}

/// Something happened to a stream.
pub(super) fn event(event: &Event) {
    match event {
        Event::Created { stream_id } => {
            counter!("orchestrator_streams_created_total").increment(1);
            info!(stream_id = &**stream_id, "stream created");
        }
        Event::Started { stream_id } => {
            counter!("orchestrator_streams_started_total").increment(1);
            info!(stream_id = &**stream_id, "orchestrator started");
        }
        Event::Stopped { stream_id, mode } => {
            counter!("orchestrator_streams_stopped_total").increment(1);
            info!(stream_id = &**stream_id, %mode, "orchestrator stopped");
        }
        Event::Removed { stream_id, idle: true } => {
            counter!("orchestrator_streams_removed_total", "reason" => "idle").increment(1);
            info!(stream_id = &**stream_id, "idle stream removed");
        }
        Event::Removed { stream_id, idle: false } => {
            counter!("orchestrator_streams_removed_total", "reason" => "command").increment(1);
            info!(stream_id = &**stream_id, "stream removed");
        }
        Event::StaleRemoved { stream_id, removed, left } => {
            counter!("orchestrator_stale_removed_total").increment(*removed);
            info!(stream_id = &**stream_id, removed, subscribers = left, "stale subscribers removed");
        }
    }
}
