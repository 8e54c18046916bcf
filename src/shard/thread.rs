//! A shard's thread: a single-threaded event loop on a current-thread runtime.
//!
//! It reads the clock, takes turns, sleeps until the next deadline or the next mail, and survives a panic of the
//! engine with an empty one. On the same runtime runs the future that publishes what is owed; the loop never waits
//! for it, except when so much is owed that it must not make more.

use std::{
    cell::{Cell, RefCell},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use metrics::counter;
use tokio::{
    sync::{Notify, watch},
    task::LocalSet,
    time::Instant,
};
use tracing::error;

use super::{
    clock::Clock,
    publish_queue::PublishQueue,
    router::Router,
    totals::Totals,
    turn::{Next, Shard, ShardSettings},
};
use crate::engine::Tick;

/// For how long a service says that it is not ready after a shard lost its streams.
const UNREADY_AFTER_PANIC: Duration = Duration::from_secs(30);

/// What a shard is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Work.
    Work,
    /// Work on what was taken; the receiver takes what has arrived, and ends.
    Close,
    /// Handle what is in the mailbox, publish what is owed, and end.
    Drain,
    /// End.
    Abort,
}

/// What a shard's loop and its publisher share.
#[derive(Debug)]
pub struct Outlet {
    /// What is to be published.
    pub queue: RefCell<PublishQueue>,
    /// Something was added to `queue`, or nothing will be any more.
    pub filled: Notify,
    /// Something was taken from `queue`.
    pub drained: Notify,
    finished: Cell<bool>,
}

impl Outlet {
    /// Whether the loop has ended, so that nothing will be owed that is not owed now.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished.get()
    }
}

/// Whether the shards are well.
#[derive(Debug, Default)]
pub struct Health {
    last_panic: Mutex<Option<(usize, Instant)>>,
    /// A shard whose thread has ended before it was told to.
    dead: Mutex<Option<usize>>,
}

impl Health {
    /// The shard that lost its streams to a panic not long ago.
    #[must_use]
    pub fn ailing_shard(&self) -> Option<usize> {
        let last = *self.last_panic.lock().unwrap_or_else(PoisonError::into_inner);
        last.filter(|(_, at)| at.elapsed() < UNREADY_AFTER_PANIC).map(|(shard, _)| shard)
    }

    /// The shard that works no more: its thread has ended, or what publishes for it. Only another process mends that.
    #[must_use]
    pub fn dead_shard(&self) -> Option<usize> {
        *self.dead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_panic(&self, shard: usize) {
        *self.last_panic.lock().unwrap_or_else(PoisonError::into_inner) = Some((shard, Instant::now()));
    }
}

/// All that a shard's thread is given.
#[derive(Debug)]
pub struct ShardContext {
    /// The shard's number.
    pub number: usize,
    /// What to make its engine with.
    pub settings: ShardSettings,
    /// The mailboxes.
    pub router: Arc<Router>,
    /// The counts.
    pub totals: Arc<Totals>,
    /// Where a panic is noted.
    pub health: Arc<Health>,
    /// What to do.
    pub phases: watch::Receiver<Phase>,
    /// The time.
    pub clock: Clock,
}

/// Notes when a shard's thread ends before it was told to, however it ends.
struct Lifetime {
    shard: usize,
    health: Arc<Health>,
    phases: watch::Receiver<Phase>,
}

impl Drop for Lifetime {
    fn drop(&mut self) {
        let told = !matches!(*self.phases.borrow(), Phase::Work | Phase::Close);
        // A service that is gone tells nobody anything any more.
        if told || self.phases.has_changed().is_err() {
            return;
        }
        let shard = self.shard;
        self.health.dead.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(shard);
        counter!("orchestrator_shards_dead_total").increment(1);
        // What writes the log may be what panicked.
        let _ = catch_unwind(|| error!(shard, "shard ended unbidden; the service is not ready until it is restarted"));
    }
}

/// Starts a shard's thread. `publish` makes the future that publishes what the outlet holds, on the thread's runtime; it
/// ends when the outlet is finished and settled.
///
/// # Errors
/// When the system has no thread, or no runtime, to give.
pub fn spawn<F: Future<Output = ()> + 'static>(
    context: ShardContext,
    queue: PublishQueue,
    publish: impl FnOnce(Rc<Outlet>) -> F + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let lifetime =
        Lifetime { shard: context.number, health: Arc::clone(&context.health), phases: context.phases.clone() };
    std::thread::Builder::new().name(format!("shard-{}", context.number)).spawn(move || {
        let _lifetime = lifetime;
        let outlet = Rc::new(Outlet {
            queue: RefCell::new(queue),
            filled: Notify::new(),
            drained: Notify::new(),
            finished: Cell::new(false),
        });
        let local = LocalSet::new();
        local.block_on(&runtime, async move {
            let mut publisher = tokio::task::spawn_local(publish(Rc::clone(&outlet)));
            let mut phases = context.phases.clone();
            tokio::select! {
                () = run(context, &outlet) => {}
                // It panicked, or its transport was closed. Nothing that the shard does would be known to anybody.
                _ = &mut publisher => return,
            }
            outlet.finished.set(true);
            outlet.filled.notify_one();
            tokio::select! {
                _ = publisher => {}
                _ = phases.wait_for(|phase| *phase == Phase::Abort) => {}
            }
        });
    })
}

/// The loop.
async fn run(context: ShardContext, outlet: &Outlet) {
    let ShardContext { number, mut settings, router, totals, health, mut phases, clock } = context;
    let new_shard = |settings| Shard::new(number, settings, Arc::clone(&router), Arc::clone(&totals));
    let mut shard = new_shard(settings.clone());
    loop {
        // Before the turn: what was put in before an order to drain is to be taken by the turn behind it.
        let phase = *phases.borrow_and_update();
        let turn = catch_unwind(AssertUnwindSafe(|| shard.turn(clock.now(), &mut outlet.queue.borrow_mut())));
        let next = turn.unwrap_or_else(|panic| {
            error!(shard = number, reason = panic_message(&*panic), "shard panicked; it starts again, empty");
            counter!("orchestrator_shard_panics_total").increment(1);
            health.note_panic(number);
            shard.answer_lost(&mut outlet.queue.borrow_mut());
            settings = settings.clone().for_successor();
            shard = new_shard(settings.clone());
            Next::Again
        });
        if !outlet.queue.borrow().is_empty() {
            outlet.filled.notify_one();
        }
        match (phase, next) {
            (Phase::Abort, _) => return shard.end(),
            // The publisher gets its turn in between.
            (_, Next::Again) => tokio::task::yield_now().await,
            (_, Next::Blocked) => tokio::select! {
                () = outlet.drained.notified() => {}
                _ = phases.changed() => {}
            },
            // Nobody else gives it mail now: unless something has come since the turn, this is the end.
            (Phase::Drain, Next::Sleep(_)) if router.mailbox(number).close_if_empty() => return shard.end(),
            (Phase::Drain, Next::Sleep(_)) => {}
            (Phase::Work | Phase::Close, Next::Sleep(due)) => tokio::select! {
                () = router.mailbox(number).woken() => {}
                () = sleep_until(&clock, due) => {}
                // It rests for as long as the publisher is behind.
                () = outlet.drained.notified(), if outlet.queue.borrow().is_behind() => {}
                _ = phases.changed() => {}
            },
        }
    }
}

async fn sleep_until(clock: &Clock, due: Option<Tick>) {
    match due {
        Some(due) => tokio::time::sleep_until(clock.instant(due)).await,
        None => std::future::pending().await,
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
