//! Runs many seeds on all cores, and says which one failed and how to run it again.

use std::{
    cell::RefCell,
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{log::Log, world::World};

/// How many seeds an ordinary test run takes.
const SEEDS: u64 = 200;

thread_local! {
    /// What the panic on this thread said, and where.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs one seed; an error is what a checker said.
pub fn run(seed: u64, print: bool) -> Result<Log, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            LAST_PANIC.set(info.to_string());
            if env::var_os("SIM_LOG").is_some() || std::thread::current().name().is_some_and(|name| name != "seeds") {
                before(info);
            }
        }));
    });
    LAST_PANIC.take();
    let log = catch_unwind(AssertUnwindSafe(|| World::new(seed, print).run())).map_err(|_| LAST_PANIC.take())?;
    // A task of a client that panics takes nobody with it.
    let panic = LAST_PANIC.take();
    if panic.is_empty() { Ok(log) } else { Err(panic) }
}

/// What the environment asks for: one seed, or many.
pub fn run_all() {
    if let Some(seed) = number("SIM_SEED") {
        let log = run(seed, env::var_os("SIM_LOG").is_some()).unwrap_or_else(|failure| fail(seed, &failure));
        println!("seed {seed}: {} events, hash {:016x}", log.events(), log.hash());
        return;
    }
    let (from, seeds) = (number("SIM_FROM").unwrap_or(0), number("SIM_SEEDS").unwrap_or(SEEDS));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, done, events) = (AtomicU64::new(from), AtomicU64::new(0), AtomicU64::new(0));
    let failures: Mutex<Vec<(u64, String)>> = Mutex::new(Vec::new());
    let most_failures = number("SIM_FAILURES").unwrap_or(1) as usize;
    let started = Instant::now();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + seeds || lock(&failures).len() >= most_failures {
                return;
            }
            match run(seed, false) {
                Ok(log) => _ = events.fetch_add(log.events(), Ordering::Relaxed),
                Err(failure) => {
                    println!("seed {seed}: {failure}");
                    lock(&failures).push((seed, failure));
                }
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    let progress = || {
        let (done, seconds) = (done.load(Ordering::Relaxed), started.elapsed().as_secs_f64());
        println!("{done} of {seeds} seeds from {from}, {:.0} seeds/s", done as f64 / seconds);
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| std::thread::Builder::new().name("seeds".to_owned()).spawn_scoped(scope, work).expect("a thread"))
            .collect();
        let mut said = Instant::now();
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::park_timeout(Duration::from_millis(20));
            if said.elapsed() >= Duration::from_secs(5) {
                said = Instant::now();
                progress();
            }
        }
    });
    progress();
    println!("{} events", events.load(Ordering::Relaxed));
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((seed, failure)) = failures.first() {
        fail(*seed, failure);
    }
}

fn fail(seed: u64, failure: &str) -> ! {
    panic!(
        "seed {seed}: {failure}\nto see it: SIM_SEED={seed} SIM_LOG=1 cargo test --release --test sim no_seed -- --nocapture"
    );
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}
