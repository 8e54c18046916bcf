//! The mailbox beside what it was before: a crossbeam channel, with a queue in front for what was looked at, a count of
//! bytes and a wake-up for each message.
//!
//! | case | what |
//! |---|---|
//! | one thread | 256 messages go in, and a turn takes them out |
//! | two threads | one puts in as fast as there is room, the other takes turns |

#![allow(clippy::unwrap_used, reason = "a bench")]

use std::{
    collections::VecDeque,
    hint::black_box,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_channel::{Receiver, Sender, bounded};
use orchestrator_service::{
    shard::mailbox::{Body, MAILBOX_BYTES, MAILBOX_CAPACITY, Mail, Mailbox},
    wire::subject::Subject,
};
use tokio::sync::Notify;

/// Messages of a turn.
const TURN: usize = 256;
/// Of these a turn looks ahead at so many.
const LOOK_AHEAD: usize = 64;

/// What both are to do.
trait Queue: Sync {
    /// False when there is no room.
    fn send(&self, mail: Mail) -> bool;
    /// Takes a turn's messages; returns how many there were.
    fn turn(&self) -> usize;
}

impl Queue for Mailbox {
    fn send(&self, mail: Mail) -> bool {
        Self::send(self, mail).is_ok()
    }

    fn turn(&self) -> usize {
        let mut inbox = self.open();
        let mut taken = 0;
        while taken < TURN {
            if taken % LOOK_AHEAD == 0 {
                black_box(inbox.look_ahead(LOOK_AHEAD).len());
            }
            let Some(mail) = inbox.take() else { break };
            black_box(mail);
            taken += 1;
        }
        taken
    }
}

/// As it was.
struct Channel {
    sender: Sender<Mail>,
    receiver: Receiver<Mail>,
    first: Mutex<VecDeque<Mail>>,
    waiting_bytes: AtomicUsize,
    wake: Notify,
}

impl Channel {
    fn new() -> Self {
        let (sender, receiver) = bounded(MAILBOX_CAPACITY);
        let (first, waiting_bytes, wake) = Default::default();
        Self { sender, receiver, first, waiting_bytes, wake }
    }
}

fn bytes_of(mail: &Mail) -> usize {
    match &mail.body {
        Body::Command(bytes) | Body::Subscription(bytes) | Body::Query(bytes) => bytes.len(),
        Body::Part(part) => part.bytes(),
    }
}

impl Queue for Channel {
    fn send(&self, mail: Mail) -> bool {
        let bytes = bytes_of(&mail);
        if self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > MAILBOX_BYTES
            || self.sender.try_send(mail).is_err()
        {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.wake.notify_one();
        true
    }

    fn turn(&self) -> usize {
        let mut taken = 0;
        while taken < TURN {
            if taken % LOOK_AHEAD == 0 {
                let mut first = self.first.lock().unwrap();
                let missing = LOOK_AHEAD.saturating_sub(first.len());
                first.extend(self.receiver.try_iter().take(missing));
                black_box(first.len());
            }
            let first = self.first.lock().unwrap().pop_front();
            let Some(mail) = first.or_else(|| self.receiver.try_recv().ok()) else { break };
            self.waiting_bytes.fetch_sub(bytes_of(&mail), Ordering::Relaxed);
            black_box(mail);
            taken += 1;
        }
        taken
    }
}

fn mail() -> Mail {
    Mail::new(Body::Subscription(Bytes::from_static(&[b'x'; 60])), Some(Subject::from_static("_INBOX.0123456789.1")))
}

/// How long it takes until so many messages have gone through, one thread at each end.
fn two_threads(queue: &impl Queue, messages: u64) -> Duration {
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..messages {
                while !queue.send(mail()) {
                    std::thread::yield_now();
                }
            }
        });
        let mut taken = 0;
        while taken < messages {
            match queue.turn() {
                0 => std::thread::yield_now(),
                some => taken += some as u64,
            }
        }
    });
    started.elapsed()
}

fn measure(criterion: &mut Criterion, name: &str, queue: &impl Queue) {
    let mut group = criterion.benchmark_group(format!("mailbox/{name}"));
    group.throughput(Throughput::Elements(TURN as u64));
    group.bench_function("one thread, a turn of 256", |bencher| {
        bencher.iter(|| {
            for _ in 0..TURN {
                assert!(queue.send(mail()));
            }
            assert_eq!(queue.turn(), TURN);
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("two threads, a message", |bencher| {
        bencher.iter_custom(|messages| two_threads(queue, messages));
    });
    group.finish();
}

fn benches(criterion: &mut Criterion) {
    measure(criterion, "locked queue", &Mailbox::new(MAILBOX_CAPACITY, MAILBOX_BYTES));
    measure(criterion, "channel", &Channel::new());
    measure(criterion, "locked queue again", &Mailbox::new(MAILBOX_CAPACITY, MAILBOX_BYTES));
}

criterion_group!(mailbox, benches);
criterion_main!(mailbox);
