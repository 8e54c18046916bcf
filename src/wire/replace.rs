//! What a newer update of the same stream may replace, where updates wait for somebody to take them: one rule for the
//! service's publish queue, a client's feeds and a gateway's viewers.
//!
//! | update | may be replaced |
//! |---|---|
//! | a tick, a snapshot | by any newer update of its stream: that says the same, and is newer |
//! | a change (scene, command, lifecycle) | never |
//! | the last one of a stream (mode UNKNOWN) | never: nothing follows it |
//! | one whose cause this version does not know | never: it may be a change |
//!
//! The one exception is a gateway that reads what was held up by a stop (`gateway/hub`): of what comes late and at once its
//! viewers are shown the newest alone, since a row of scenes that were seconds ago is worse than none.

use super::proto::{Cause, Mode, StateUpdate};
use crate::engine;

const fn is_replaceable(cause: Cause, mode: Mode) -> bool {
    match cause {
        Cause::Tick | Cause::Snapshot => !matches!(mode, Mode::Unknown),
        Cause::Scene | Cause::Command | Cause::Lifecycle => false,
    }
}

impl StateUpdate {
    /// Whether a newer update of the stream may take this one's place before anybody has seen it. See the module.
    #[must_use]
    pub fn is_replaceable(&self) -> bool {
        Cause::try_from(self.cause).is_ok_and(|cause| is_replaceable(cause, self.mode()))
    }
}

impl engine::StateUpdate {
    /// As of the message that it becomes.
    #[must_use]
    pub fn is_replaceable(&self) -> bool {
        is_replaceable(self.cause.into(), self.mode.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_and_snapshots_are_replaceable_and_nothing_else() {
        let replaceable = |cause: i32, mode: Mode| {
            StateUpdate { cause, mode: mode.into(), ..StateUpdate::default() }.is_replaceable()
        };
        for mode in [Mode::Idle, Mode::Running, Mode::Paused, Mode::Stopped, Mode::Finished] {
            // 5 and -1 are causes that there may be some day.
            let all = (-1..=5).map(|cause| replaceable(cause, mode)).collect::<Vec<_>>();
            assert_eq!(all, [false, true, false, false, false, true, false], "{mode:?}");
        }
        assert!((-1..=5).all(|cause| !replaceable(cause, Mode::Unknown)), "the last of a stream");
    }
}
