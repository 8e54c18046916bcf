//! Where a playing show is: arithmetic on an anchor.
//!
//! Nothing accumulates, so nothing drifts: a position is always the anchor's and the time since.

use super::Timeline;

/// A place in a show: how many passes are complete, and how far the present one has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Playhead {
    /// Completed passes.
    pub loops: u64,
    /// Time into the pass, ms: the position, and the holds before it.
    pub pass_ms: u64,
}

impl Playhead {
    /// The beginning of the first pass.
    pub const START: Self = Self { loops: 0, pass_ms: 0 };
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
/// `pass` is the timeline of the present pass, whose scenes may have been adjusted, also down to 0; `base` that of each
/// pass after it, as it was configured. `looping` says whether there is one.
#[must_use]
#[inline]
pub fn advance(from: Playhead, elapsed_ms: u64, pass: &Timeline, base: &Timeline, looping: bool) -> Progress {
    let reached_ms = pass.after(from.pass_ms, elapsed_ms);
    let Some(overshoot_ms) = reached_ms.checked_sub(pass.pass_total_ms()) else {
        return Progress::SamePass(Playhead { pass_ms: reached_ms, ..from });
    };
    if looping { Progress::LaterPass(later_pass(from.loops, overshoot_ms, base)) } else { Progress::Ended }
}

/// So long behind the end of a pass.
fn later_pass(loops: u64, overshoot_ms: u64, base: &Timeline) -> Playhead {
    // A pass that comes to no end is the last one.
    let whole_ms = base.time_to_end(0).unwrap_or(u64::MAX);
    Playhead {
        loops: loops.saturating_add(1 + overshoot_ms / whole_ms),
        pass_ms: base.after(0, overshoot_ms % whole_ms),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::timeline::{AtEnd, Scene, SceneLimits};

    const fn at(loops: u64, pass_ms: u64) -> Playhead {
        Playhead { loops, pass_ms }
    }

    fn timeline(scenes: &[Scene<'_>]) -> Timeline {
        Timeline::new(scenes, SceneLimits::default()).unwrap()
    }

    fn plain(duration_ms: u64) -> Timeline {
        timeline(&[Scene::new("Main", duration_ms)])
    }

    #[test]
    fn the_last_millisecond_belongs_to_the_pass_and_the_end_does_not() {
        let fifteen = plain(15);
        assert_eq!(advance(at(0, 5), 9, &fifteen, &fifteen, false), Progress::SamePass(at(0, 14)));
        assert_eq!(advance(at(0, 5), 10, &fifteen, &fifteen, false), Progress::Ended);
        assert_eq!(advance(at(0, 5), 10, &fifteen, &fifteen, true), Progress::LaterPass(at(1, 0)));
    }

    #[test]
    fn an_adjusted_passs_overshoot_goes_into_the_next_pass() {
        let fifteen = plain(15);
        let adjusted = |ms| fifteen.with_duration(0, ms);
        assert_eq!(advance(at(3, 0), 20 + 15 * 7 + 4, &adjusted(20), &fifteen, true), Progress::LaterPass(at(11, 4)));
        assert_eq!(advance(at(0, 0), 4, &adjusted(0), &fifteen, true), Progress::LaterPass(at(1, 4)));
    }

    #[test]
    fn a_pass_with_a_hold_without_an_end_is_the_last() {
        let at_end = AtEnd::Hold { max_hold_ms: None, fallback: None };
        let base = timeline(&[Scene { at_end, ..Scene::new("Main", 10) }]);
        let Progress::SamePass(held) = advance(at(0, 0), u64::MAX, &base, &base, true) else { panic!("it holds") };
        assert_eq!((held.loops, base.place(held.pass_ms).position_ms), (0, 10));
        // Skipped to a pass of its own end, it plays once more.
        let end = at(0, base.pass_total_ms());
        assert_eq!(advance(end, 4, &base, &base, true), Progress::LaterPass(at(1, 4)));
        assert_eq!(advance(end, 1 << 40, &base, &base, true), Progress::LaterPass(at(1, 1 << 40)));
    }

    #[test]
    fn many_passes_by_the_millisecond_end_where_one_calculation_does() {
        let hold = |max_hold_ms, fallback| AtEnd::Hold { max_hold_ms: Some(max_hold_ms), fallback };
        for (base, whole_ms) in [
            (plain(15), 15),
            (timeline(&[Scene { at_end: hold(7, None), ..Scene::new("a", 3) }, Scene::new("b", 5)]), 15),
            (
                timeline(&[
                    Scene { at_end: hold(4, Some("c")), ..Scene::new("a", 3) },
                    Scene::new("b", 900),
                    Scene { at_end: hold(1, None), ..Scene::new("c", 7) },
                ]),
                15,
            ),
        ] {
            let mut head = Playhead::START;
            for _ in 0..10_000 * whole_ms {
                head = match advance(head, 1, &base, &base, true) {
                    Progress::SamePass(head) | Progress::LaterPass(head) => head,
                    Progress::Ended => unreachable!("it loops"),
                };
            }
            assert_eq!(head, at(10_000, 0), "{base:?}");
            assert_eq!(advance(Playhead::START, 10_000 * whole_ms, &base, &base, true), Progress::LaterPass(head));
        }
    }

    /// Some scenes: lengths, holds (0 for none, 7 for one without an end), and how far ahead the fallback is (0: none).
    fn any_timeline() -> impl Strategy<Value = Timeline> {
        prop::collection::vec((1..6_u64, 0..8_u64, 0..3_usize), 1..6).prop_map(|scenes| {
            let names = ["a", "b", "c", "d", "e"];
            let scene = |(place, (duration_ms, hold, ahead)): (usize, &(u64, u64, usize))| {
                let max_hold_ms = Some(*hold).filter(|hold| *hold < 7);
                let fallback = (*ahead > 0 && place + ahead < scenes.len()).then(|| names[place + ahead]);
                let at_end = if *hold == 0 { AtEnd::Next } else { AtEnd::Hold { max_hold_ms, fallback } };
                Scene { at_end, ..Scene::new(names[place], *duration_ms) }
            };
            timeline(&scenes.iter().enumerate().map(scene).collect::<Vec<_>>())
        })
    }

    proptest! {
        #[test]
        fn two_spans_of_time_come_to_where_both_together_do(
            pass in any_timeline(), base in any_timeline(), from in 0..40_u64, first in 0..200_u64, second in 0..200_u64,
        ) {
            let from = at(0, from.min(pass.pass_total_ms() - 1));
            let whole = advance(from, first + second, &pass, &base, true);
            let (reached, now) = match advance(from, first, &pass, &base, true) {
                Progress::SamePass(head) => (head, &pass),
                Progress::LaterPass(head) => (head, &base),
                Progress::Ended => unreachable!("it loops"),
            };
            let second = match advance(reached, second, now, &base, true) {
                Progress::SamePass(head) | Progress::LaterPass(head) => head,
                Progress::Ended => unreachable!("it loops"),
            };
            prop_assert!(matches!(whole, Progress::SamePass(head) | Progress::LaterPass(head) if head == second));
        }

        #[test]
        fn a_pass_by_the_millisecond_meets_each_boundary_and_ends_in_time(pass in any_timeline(), from in 0..40_u64) {
            let from = from.min(pass.pass_total_ms() - 1);
            let (mut head, mut boundary) = (from, pass.next_boundary(from));
            let end = pass.time_to_end(from);
            for ms in 1..200 {
                let next = pass.after(head, 1);
                // Whatever changes does so at the boundary.
                let here = |at| { let place = pass.place(at); (place.scene, place.overtime_ms.is_some()) };
                let is_over = next >= pass.pass_total_ms();
                prop_assert_eq!(is_over, end.is_some_and(|end| end <= ms));
                if is_over {
                    break;
                }
                prop_assert_eq!(here(head) != here(next), boundary.is_some_and(|boundary| boundary <= next));
                if boundary.is_some_and(|boundary| boundary <= next) {
                    boundary = pass.next_boundary(next);
                }
                head = next;
            }
        }
    }
}
