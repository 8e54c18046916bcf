//! When nothing goes wrong any more, everybody sees what is.

use orchestrator_service::wire::proto::{Code, Mode};

use super::{Checker, Fact};
use crate::{reading::in_short, truth::Truth};

/// A running stream's ticks come at least as often in these worlds, and as late, ms.
const BEAT_MS: u64 = 6_500;
/// Longest way of a message once nothing is slow any more, from publisher to broker to gateway, ms.
const ON_ITS_WAY_MS: u64 = 200;

/// Every gateway that was there for a stream's last change has it, and what is watched lives.
pub struct ViewsConverge;

impl Checker for ViewsConverge {
    fn see(&mut self, now: u64, fact: &Fact<'_>, truth: &Truth) {
        let Fact::QuietView { gateway, stream, answer, view, connected_since, reads_feed, watched } = fact else {
            return;
        };
        if answer.code() == Code::Unavailable {
            return;
        }
        let state = answer.state.first();
        let seen = view.map_or("nothing".to_owned(), in_short);
        let stream = &truth.streams[*stream];
        // A stream that nobody watches may be removed just now, and its last update be on its way.
        let said_at = stream.revision_said_at[usize::from(*reads_feed)];
        if said_at > *connected_since && said_at + ON_ITS_WAY_MS <= now {
            let told = match (state, view) {
                (Some(state), Some(view)) => (view.epoch, view.revision) >= (state.epoch, state.revision),
                (None, Some(view)) => view.mode() == Mode::Unknown || truth.panicked_at(stream.shard).is_some(),
                (_, None) => false,
            };
            assert!(told, "convergence: gateway {gateway} sees {seen}, the service has {state:?}");
        }
        if !watched {
            return;
        }
        let Some(state) = state else { panic!("convergence: a stream that is watched is not there") };
        let waits = state.mode() == Mode::Idle && state.starts_in.is_none();
        assert!(!waits, "convergence: a stream that is watched waits for its first viewer");
        if state.mode() == Mode::Running
            && let Some(view) = view
        {
            // One without ticks says nothing as long as nothing changes.
            let has_ticks = !truth.has_holds || truth.scenes_of(state).is_some_and(|scenes| !scenes.no_ticks);
            let fresh = !has_ticks || truth.tick_of(view) + BEAT_MS >= now;
            assert!(fresh || view.mode() != Mode::Running, "convergence: gateway {gateway} last heard {seen}");
        }
    }
}
