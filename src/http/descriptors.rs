//! File descriptors: as many as the system gives, and some of them kept for what is more than one connection's.
//!
//! A process that has used up its descriptors on viewers cannot open a new connection to its broker, and is blind for as
//! long as they stay.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{admission::MAX_ENDING, server::MAX_REFUSALS};

/// What is kept back besides connections that are ending: connections to the broker (each twice, while one takes the
/// other's place), the log, a recording, listeners, the runtime's own, name look-ups.
const KEPT: u64 = 64;

/// Raises this process's limit to what it may have, and says what it is then; `None` when there is none.
pub fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
        return maximum;
    }
    current
}

/// How many connections each of the servers may have under a limit: what it asks for if that fits, and otherwise what
/// is left when the smaller ones have what they ask for, or their fair share.
///
/// `broker_connections` are this process's own.
#[must_use]
pub fn fit<const N: usize>(limit: Option<u64>, broker_connections: u64, asked: [u32; N]) -> [u32; N] {
    let Some(limit) = limit else { return asked };
    let beyond = (u64::from(MAX_ENDING) + MAX_REFUSALS as u64) * N as u64;
    let kept = KEPT + 2 * broker_connections + beyond;
    // Under a limit that is too small for all this, half of it is still better than nothing.
    let mut left = limit.saturating_sub(kept).max(limit / 2);
    let mut fitted = asked;
    let mut order: Vec<usize> = (0..N).collect();
    order.sort_by_key(|&place| asked[place]);
    for (done, &place) in order.iter().enumerate() {
        let share = left / (N - done) as u64;
        fitted[place] = asked[place].min(u32::try_from(share).unwrap_or(u32::MAX)).max(1);
        left = left.saturating_sub(u64::from(fitted[place]));
    }
    fitted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_given_and_what_does_not_is_cut_from_the_largest() {
        assert_eq!(fit(Some(1 << 20), 1, [100_000, 256]), [100_000, 256]);
        assert_eq!(fit(None, 1, [100_000, 256]), [100_000, 256]);
        let [gateway, admin] = fit(Some(1_024), 1, [100_000, 256]);
        assert_eq!(admin, 256);
        assert!(u64::from(gateway) <= 1_024 - 256 - KEPT - 2 - 128 && gateway > 500, "{gateway}");
        let [gateway, admin] = fit(Some(64), 1, [100_000, 256]);
        assert!(gateway + admin <= 32 && gateway > 0 && admin > 0, "{gateway} {admin}");
    }

    #[test]
    fn the_limit_is_raised_to_what_may_be_had() {
        let limit = raise_limit();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!((limit, current), (maximum, maximum));
    }
}
