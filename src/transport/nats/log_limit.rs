//! One log line in a while for each kind of fault, however many there are.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often a kind is logged.
const INTERVAL: Duration = Duration::from_secs(30);

/// How many kinds are told apart: more than a few servers have.
const MAX_KINDS: usize = 16;

/// When which kind of fault was last logged, by whichever of the connections that share this.
///
/// Each kind has a time of its own, so that one which comes often, such as that of a server of several, does not hide
/// another one, and two that take turns are not logged at each turn.
#[derive(Debug, Clone, Default)]
pub struct LogLimit {
    logged: Arc<Mutex<VecDeque<Logged>>>,
}

#[derive(Debug)]
struct Logged {
    kind: String,
    at: Instant,
    /// How often it was not logged since.
    unlogged: u64,
}

impl LogLimit {
    /// If this kind is to be logged (again): how often it was not since it last was.
    pub(super) fn permit(&self, kind: &str, now: Instant) -> Option<u64> {
        // Nothing under this lock is ever half changed.
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = logged.iter_mut().find(|known| known.kind == kind) {
            known.unlogged += 1;
            if now.duration_since(known.at) < INTERVAL {
                return None;
            }
            known.at = now;
            return Some(std::mem::take(&mut known.unlogged) - 1);
        }
        if logged.len() == MAX_KINDS {
            logged.pop_front();
        }
        logged.push_back(Logged { kind: kind.to_owned(), at: now, unlogged: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_logged_once_in_an_interval_and_none_hides_another() {
        let (limit, begun) = (LogLimit::default(), Instant::now());
        let shared = limit.clone();
        assert_eq!(limit.permit("refused", begun), Some(0));
        for passed_s in 1..30 {
            let now = begun + Duration::from_secs(passed_s);
            assert_eq!(shared.permit("refused", now), None, "{passed_s}");
            assert_eq!(shared.permit("no such user", now).is_some(), passed_s == 1, "{passed_s}");
        }
        assert_eq!(shared.permit("refused", begun + INTERVAL), Some(29));
        assert_eq!(limit.permit("refused", begun + INTERVAL), None);
        for kind in 0..1_000 {
            assert_eq!(limit.permit(&kind.to_string(), begun + INTERVAL), Some(0));
        }
        assert_eq!(limit.logged.lock().unwrap().len(), MAX_KINDS);
    }
}
