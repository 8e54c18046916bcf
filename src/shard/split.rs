//! Batches in pieces: each for one shard, and of a size that it handles in one turn.

use super::{gather::Work, router::Router};
use crate::{engine::Handle, wire::subscriptions::Subscription};

/// The most entries of a batch that a shard handles at once: about half a millisecond of registers, so that a beat is
/// not late for a batch.
pub const MAX_PIECE_ENTRIES: usize = 1_000;

/// What each shard gets of a batch, in the order of the shards: its handles, and everything else if the stream that the
/// batch names is there. A piece has at most `most` entries.
pub(super) fn split(
    router: &Router,
    mut message: Subscription<'_>,
    named_at: Option<usize>,
    most: usize,
) -> Vec<(usize, Work)> {
    let kind = message.kind;
    // As a rule each shard has about as many.
    let share = message.handles.len() / router.shards() * 9 / 8 + 8;
    let mut handles: Vec<Vec<Handle>> = (0..router.shards()).map(|_| Vec::with_capacity(share)).collect();
    for handle in std::mem::take(&mut message.handles) {
        handles[router.owner(handle.partition())].push(handle);
    }
    let mut named = Some(message);
    let parts = handles.into_iter().enumerate().filter_map(|(shard, handles)| {
        let rest = if named_at == Some(shard) { named.take() } else { None };
        let concerns_it = rest.is_some() || !handles.is_empty();
        let rest = rest.unwrap_or_else(|| Subscription::empty(kind));
        concerns_it.then_some((shard, Subscription { handles, ..rest }))
    });
    let work = |part: Subscription<'_>| Work { weight: part.weight(), pieces: part.pieces(most).into() };
    parts.map(|(shard, part)| (shard, work(part))).collect()
}
