//! Where a playing show is: arithmetic on an anchor.
//!
//! Nothing accumulates, so nothing drifts: a position is always the anchor's and the time since.

/// A place in a show: how many passes are complete, and how far the present one has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Playhead {
    /// Completed passes.
    pub loops: u64,
    /// Position on the timeline, ms.
    pub position_ms: u64,
}

impl Playhead {
    /// The beginning of the first pass.
    pub const START: Self = Self { loops: 0, position_ms: 0 };
}

/// Where a show has got to that left `from` some time ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Still in the pass it was in.
    SamePass(Playhead),
    /// In a later pass; the overshoot was carried over.
    LaterPass(Playhead),
    /// Past the end of a timeline that does not loop.
    Ended,
}

/// Plays on from `from` for `elapsed_ms`.
///
/// `pass_ms` is the length of the present pass, which may have been adjusted, also down to 0; `base_ms` that of each
/// pass after it, at least 1. `looping` says whether there is one.
#[must_use]
pub fn advance(from: Playhead, elapsed_ms: u64, pass_ms: u64, base_ms: u64, looping: bool) -> Progress {
    let reached_ms = from.position_ms.saturating_add(elapsed_ms);
    let Some(overshoot_ms) = reached_ms.checked_sub(pass_ms) else {
        return Progress::SamePass(Playhead { position_ms: reached_ms, ..from });
    };
    if !looping {
        return Progress::Ended;
    }
    Progress::LaterPass(Playhead {
        loops: from.loops.saturating_add(1 + overshoot_ms / base_ms),
        position_ms: overshoot_ms % base_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(loops: u64, position_ms: u64) -> Playhead {
        Playhead { loops, position_ms }
    }

    #[test]
    fn the_last_millisecond_belongs_to_the_pass_and_the_end_does_not() {
        assert_eq!(advance(at(0, 5), 9, 15, 15, false), Progress::SamePass(at(0, 14)));
        assert_eq!(advance(at(0, 5), 10, 15, 15, false), Progress::Ended);
        assert_eq!(advance(at(0, 5), 10, 15, 15, true), Progress::LaterPass(at(1, 0)));
    }

    #[test]
    fn an_adjusted_passs_overshoot_goes_into_the_next_pass() {
        assert_eq!(advance(at(3, 0), 20 + 15 * 7 + 4, 20, 15, true), Progress::LaterPass(at(11, 4)));
        assert_eq!(advance(at(0, 0), 4, 0, 15, true), Progress::LaterPass(at(1, 4)));
    }

    #[test]
    fn many_passes_by_the_millisecond_end_where_one_calculation_does() {
        let mut head = Playhead::START;
        for _ in 0..150_000 {
            head = match advance(head, 1, 15, 15, true) {
                Progress::SamePass(head) | Progress::LaterPass(head) => head,
                Progress::Ended => unreachable!("it loops"),
            };
        }
        assert_eq!(head, at(10_000, 0));
        assert_eq!(advance(Playhead::START, 150_000, 15, 15, true), Progress::LaterPass(head));
    }
}
