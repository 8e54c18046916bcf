//! Waiting for what is expected to happen.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long anything may take that is expected to happen; generous, for a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Asks again and again until the answer is yes.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(LIMIT, asking).await.is_ok(), "it never came true that {what}");
}

/// The wall clock, ms since 1970.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}
