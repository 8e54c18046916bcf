//! What an operator reads of a shard's work: trace points and counters.

use metrics::counter;
use tracing::{debug, info, trace};

use super::feed::Message;
use crate::{
    engine::{Accepted, Event, StateUpdate},
    wire::{
        Refusal, proto,
        subscriptions::{Kind, Named},
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
pub(super) fn membership(message: &Message<'_>, result: &Result<Accepted, Refusal>) {
    let (Message::Subscription { kind, stream_id, named, entries }, Ok(accepted)) = (message, result) else { return };
    let Named { client_id, source_addr, session } = *named;
    match accepted {
        Accepted::Registered { new, total, .. } => {
            debug!(stream_id, client_id, session, source_addr, new, subscribers = total, "client registered");
        }
        Accepted::Unregistered { total, source } => {
            debug!(stream_id, client_id, session, ?source, subscribers = total, "client unregistered");
        }
        Accepted::RegisteredBatch { handles, .. } => {
            let registered = handles.iter().filter(|handle| handle.is_ok()).count();
            debug!(stream_id, registered, of = handles.len(), "clients registered");
        }
        Accepted::Batch(unplaced) if *kind == Kind::UnregisterBatch => {
            let unknown = unplaced.handles.len() + unplaced.clients.len();
            debug!(stream_id, unregistered = entries - unknown, unknown, "clients unregistered");
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
