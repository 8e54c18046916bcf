//! That nothing is left of whoever came and went, in every order: entries and tasks are counted.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::FutureExt as _;

use super::*;
use crate::client::ErrorKind;

/// A resource that is counted, such as a subscription: how many were opened, and how many are open.
#[derive(Debug, Default)]
struct Meter {
    opened: AtomicUsize,
    open: AtomicUsize,
}

struct Resource(Arc<Meter>);

impl Resource {
    fn open(meter: &Arc<Meter>) -> Self {
        meter.opened.fetch_add(1, Ordering::SeqCst);
        meter.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(meter))
    }
}

impl Drop for Resource {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Meter {
    fn counts(&self) -> (usize, usize) {
        (self.opened.load(Ordering::SeqCst), self.open.load(Ordering::SeqCst))
    }
}

type Numbers = Shared<u8, u64>;

fn world() -> (Arc<Numbers>, Arc<Meter>) {
    (Arc::default(), Arc::default())
}

/// Shares a resource that opens after `delay` and stays open.
async fn join_after(
    shared: &Arc<Numbers>,
    meter: &Arc<Meter>,
    delay: Duration,
) -> Result<Holder<u8, u64>, ClientError> {
    let meter = Arc::clone(meter);
    let open = |_| async move {
        let resource = Resource::open(&meter);
        tokio::time::sleep(delay).await;
        Ok(async move {
            let _resource = resource;
            std::future::pending::<()>().await;
        })
    };
    shared.join(7, || 42, open).await
}

async fn join(shared: &Arc<Numbers>, meter: &Arc<Meter>) -> Holder<u8, u64> {
    join_after(shared, meter, Duration::ZERO).await.expect("opened")
}

async fn panics_after(delay: Duration) {
    tokio::time::sleep(delay).await;
    panic!("as the test wants");
}

/// Lets aborted tasks end.
async fn yield_often() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_task_serves_all_holders_from_the_first_to_the_last() {
    let (shared, meter) = world();
    let (first, second) = tokio::join!(join(&shared, &meter), join(&shared, &meter));
    let third = join(&shared, &meter).await;
    assert_eq!((*first, *third.key(), shared.len(), meter.counts()), (42, 7, 1, (1, 1)));
    drop((first, third));
    yield_often().await;
    assert_eq!((shared.len(), meter.counts()), (1, (1, 1)));
    drop(second);
    assert!(shared.is_empty(), "at once: whoever comes now begins anew");
    let again = join(&shared, &meter).await;
    yield_often().await;
    assert_eq!((shared.len(), meter.counts()), (1, (2, 1)));
    drop(again);
    yield_often().await;
    assert_eq!((shared.len(), meter.counts()), (0, (2, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_waiter_leaves_nothing_and_takes_nothing() {
    let (shared, meter) = world();
    let opens_late = || join_after(&shared, &meter, Duration::from_secs(9));
    tokio::time::timeout(Duration::from_secs(1), opens_late()).await.expect_err("not yet open");
    yield_often().await;
    assert_eq!((shared.len(), meter.counts()), (0, (1, 0)));

    let patient = tokio::spawn({
        let (shared, meter) = (Arc::clone(&shared), Arc::clone(&meter));
        async move { join_after(&shared, &meter, Duration::from_secs(9)).await }
    });
    yield_often().await;
    tokio::time::timeout(Duration::from_secs(1), opens_late()).await.expect_err("not yet open");
    let held = patient.await.expect("no panic").expect("opened");
    assert_eq!((shared.len(), meter.counts()), (1, (2, 1)));
    drop(held);
    yield_often().await;
    assert_eq!((shared.len(), meter.counts()), (0, (2, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_failure_to_open_reaches_all_waiters_and_the_next_tries_anew() {
    let (shared, meter) = world();
    let refused = || {
        shared.join(
            7,
            || 42,
            |_| async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Err::<std::future::Ready<()>, _>(ClientError::new(ErrorKind::Exhausted, "too many"))
            },
        )
    };
    let (first, second) = tokio::join!(refused(), refused());
    for result in [first, second] {
        let error = result.expect_err("refused");
        assert_eq!((error.kind(), error.message()), (ErrorKind::Exhausted, "too many"));
    }
    assert!(shared.is_empty());
    let held = join(&shared, &meter).await;
    assert_eq!((shared.len(), meter.counts()), (1, (1, 1)));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn holders_hear_of_a_task_that_ends_and_the_next_begins_anew() {
    let (shared, meter) = world();
    let ends = |_| async { Ok(tokio::time::sleep(Duration::from_secs(1))) };
    let old = shared.join(7, || 1, ends).await.expect("opened");
    assert!(tokio::time::timeout(Duration::from_millis(900), old.ended()).await.is_err());
    tokio::time::timeout(Duration::from_millis(200), old.ended()).await.expect("ended");
    assert!(shared.is_empty());
    let new = join(&shared, &meter).await;
    drop(old);
    yield_often().await;
    assert_eq!((*new, shared.len(), meter.counts()), (42, 1, (1, 1)), "the old one's leave is not the new one's");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_task_is_an_end_and_one_while_it_opens_a_refusal() {
    let (shared, meter) = world();
    let held = shared.join(7, || 1, |_| async { Ok(panics_after(Duration::from_secs(1))) }).await.expect("opened");
    held.ended().await;
    let panics = |_| async {
        panics_after(Duration::ZERO).await;
        Ok(std::future::ready(()))
    };
    assert_eq!(shared.join(7, || 1, panics).await.expect_err("refused").kind(), ErrorKind::Closed);
    assert!(shared.is_empty());
    assert_eq!(*join(&shared, &meter).await, 42);
}

#[test]
fn a_runtime_that_shuts_down_refuses_waiters_and_leaves_nothing() {
    let (shared, meter) = world();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let held = runtime.block_on(join(&shared, &meter));
    let handle = runtime.handle().clone();
    drop(runtime);
    assert_eq!((shared.len(), meter.counts()), (0, (1, 0)));
    let _inside = handle.enter();
    let other = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let refused = shared.join(7, || 1, |_| async { Ok(std::future::ready(())) }).now_or_never();
    assert_eq!(refused.expect("at once").expect_err("refused").kind(), ErrorKind::Closed);
    other.block_on(held.ended());
    assert!(shared.is_empty());
}

/// Joins and leaves, some without waiting.
async fn come_and_go(shared: Arc<Numbers>, meter: Arc<Meter>, number: u64) {
    for round in 0..20 {
        if (round + number).is_multiple_of(7) {
            _ = tokio::time::timeout(Duration::from_nanos(1), join(&shared, &meter)).await;
            continue;
        }
        let held = join(&shared, &meter).await;
        assert!(meter.counts().1 > 0, "it is held and not open");
        assert!(held.ended().now_or_never().is_none(), "it is held and has ended");
        if round % 3 == 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn joins_that_race_the_last_leave_hold_something_open() {
    let (shared, meter) = world();
    const CROWDS: usize = 100;
    for _ in 0..CROWDS {
        let crowd = (0..8).map(|number| tokio::spawn(come_and_go(Arc::clone(&shared), Arc::clone(&meter), number)));
        for one in Vec::from_iter(crowd) {
            one.await.expect("no panic");
        }
        assert!(shared.is_empty());
    }
    let gone = async {
        while meter.counts().1 > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("every task ends");
    assert!(meter.counts().0 >= CROWDS, "each crowd opened it anew");
}
