//! Who may use the machine at the same time, and how long a test may take.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::RwLock;

use crate::support::waiting::wall_ms;

/// The longest test, all rounds of a long run included.
const TEST_LIMIT: Duration = Duration::from_secs(300);

/// Held for writing by whoever measures or loads the machine. Fair, so that nobody waits for ever.
static MACHINE: RwLock<()> = RwLock::const_new(());

/// Runs a test that others may run beside.
pub(crate) async fn shared(test: impl Future<Output = ()>) {
    let _guard = MACHINE.read().await;
    tokio::time::timeout(TEST_LIMIT, test).await.expect("the test ends in time");
}

/// Runs a test that needs the machine for itself.
pub(crate) async fn alone(test: impl Future<Output = ()>) {
    let _guard = MACHINE.write().await;
    tokio::time::timeout(TEST_LIMIT, test).await.expect("the test ends in time");
}

/// Sees how long the machine itself lets somebody wait who only sleeps: on one that is busy with other things, a beat
/// cannot be better than that.
#[derive(Debug)]
pub(crate) struct Metronome {
    worst_us: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Metronome {
    pub(crate) fn start() -> Self {
        const STEP: Duration = Duration::from_millis(5);
        let (worst_us, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let metronome = Self { worst_us: Arc::clone(&worst_us), stop: Arc::clone(&stop) };
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let before = Instant::now();
                std::thread::sleep(STEP);
                let late = before.elapsed().saturating_sub(STEP);
                worst_us.fetch_max(late.as_micros() as u64, Ordering::Relaxed);
            }
        });
        metronome
    }

    pub(crate) fn worst(&self) -> Duration {
        Duration::from_micros(self.worst_us.load(Ordering::Relaxed))
    }
}

impl Drop for Metronome {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Whether the larger numbers are asked for.
pub(crate) fn long_run() -> bool {
    std::env::var("ORCH_FAULTS").is_ok_and(|value| value == "long")
}

/// Says what was measured, for whoever reads the test's output.
pub(crate) fn measured(what: &str, value: impl std::fmt::Display) {
    println!("measured: {what}: {value}");
}

/// Returns when the wall clock shows `time_ms`.
pub(crate) async fn clock_at(time_ms: u64) {
    while let Some(left_ms) = time_ms.checked_sub(wall_ms()).filter(|left_ms| *left_ms > 0) {
        tokio::time::sleep(Duration::from_millis(left_ms)).await;
    }
}
