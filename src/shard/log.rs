//! What an operator reads of a shard's work: trace points and counters.

use metrics::counter;
use tracing::{debug, info, trace, warn};

use super::{engine_op::Message, throttle::Throttle};
use crate::{
    engine::{Accepted, Event, Joined, StateUpdate},
    wire::{
        Refusal, commands, proto,
        subject::ReplyError,
        subscriptions::{Kind, Named},
    },
};

/// A refusal, whether or not somebody is told; of a batch also that of a part.
pub(super) fn refused(code: proto::Code, reason: &str, about: &str) {
    if code != proto::Code::Ok {
        let code = code.as_str_name();
        counter!("orchestrator_refused_total", "code" => code).increment(1);
        /// Enough to find out what is wrong, and too few to fill a disk.
        static LINES: Throttle = Throttle::new(100, 1_000);
        if tracing::enabled!(tracing::Level::DEBUG)
            && let Some(held_back) = LINES.pass()
        {
            debug!(code, about, reason, held_back, "message refused");
        }
    }
}

/// A message that is refused for where its answer would go: nobody is told but the operator.
pub(super) fn reply_refused(about: &str, error: &ReplyError) {
    static LINES: Throttle = Throttle::new(1, 30_000);
    counter!("orchestrator_dropped_total", "reason" => "reply_subject").increment(1);
    if let Some(held_back) = LINES.pass() {
        warn!(about, %error, held_back, "a message was refused for its reply subject; told at most once in 30 s");
    }
}

/// A command that was carried out, and who said to have done it.
pub(super) fn command(message: &Message<'_>, result: &Result<Accepted, Refusal>) {
    if let (Message::Command(message), Ok(Accepted::State(state))) = (message, result)
        && let Some(command) = &message.command
    {
        let (name, issued_by) = (commands::name(command), &*message.issued_by);
        debug!(stream_id = &*state.stream_id, command = name, issued_by, revision = state.revision, "command");
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

/// Somebody came or went. Runbooks look for these words.
pub(super) fn membership(message: &Message<'_>, result: &Result<Accepted, Refusal>) {
    let (Message::Subscription { kind, stream_id, named, entries, weight: _ }, Ok(accepted)) = (message, result) else {
        return;
    };
    let Named { client_id, source_addr, session } = *named;
    let joined = |Joined { new, total, .. }: Joined| {
        if new {
            debug!(
                stream_id,
                client_id,
                session,
                source_addr,
                subscribers = total,
                "Added subscriber {client_id} to stream {stream_id}"
            );
        } else {
            debug!(
                stream_id,
                client_id,
                session,
                source_addr,
                subscribers = total,
                "Refreshed subscriber {client_id} of stream {stream_id}"
            );
        }
    };
    match accepted {
        Accepted::Registered { handle, new, total, .. } => joined(Joined { handle: *handle, new: *new, total: *total }),
        Accepted::Following(following) => following.joined.into_iter().for_each(joined),
        Accepted::Unregistered { total, source } => {
            debug!(stream_id, client_id, session, ?source, "Client {client_id} unregistering from stream {stream_id}");
            debug!(stream_id, subscribers = total, "Remaining subscribers for stream {stream_id}: {total}");
        }
        // A line for a batch.
        Accepted::RegisteredBatch { handles, .. } => {
            let registered = handles.iter().filter(|handle| handle.is_ok()).count();
            debug!(
                stream_id,
                registered,
                of = handles.len(),
                "Added or refreshed {registered} subscribers of stream {stream_id}"
            );
        }
        Accepted::Batch(unplaced) if *kind == Kind::UnregisterBatch => {
            let unknown = unplaced.handles.len() + unplaced.clients.len();
            let left = entries - unknown;
            if stream_id.is_empty() {
                debug!(unregistered = left, unknown, "{left} clients unregistering by handle");
            } else {
                debug!(stream_id, unregistered = left, unknown, "{left} clients unregistering from stream {stream_id}");
            }
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
            info!(stream_id = &**stream_id, "Removing idle orchestrator for stream {stream_id}");
        }
        Event::Removed { stream_id, idle: false } => {
            counter!("orchestrator_streams_removed_total", "reason" => "command").increment(1);
            info!(stream_id = &**stream_id, "stream removed");
        }
        Event::StaleRemoved { stream_id, removed, left } => {
            counter!("orchestrator_stale_removed_total").increment(*removed);
            info!(stream_id = &**stream_id, removed, subscribers = left, "Cleaned up {removed} stale subscribers");
        }
    }
}
