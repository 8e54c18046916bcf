//! The log's way to standard error, which stops nobody.
//!
//! Whoever logs puts a whole line into a bounded queue and goes on; a thread of its own writes. A pipe whose reader
//! sleeps holds up that thread alone, a pipe whose reader has gone and a full disk cost the lines. What is lost is counted
//! (`orchestrator_dropped_total`, reason `log_line`) and said in the log as soon as it can be.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt::Display,
    fs::File,
    io::{self, ErrorKind, Write},
    os::fd::AsFd as _,
    panic::PanicHookInfo,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// What may wait to be written: some ten thousand lines, more than a second of the busiest log, and little beside what a
/// service keeps.
const QUEUE_BYTES: usize = 2 << 20;

/// Of it, what is kept for warnings and errors, so that a flood of other lines does not push them out.
const RESERVED_BYTES: usize = QUEUE_BYTES / 4;

/// Most bytes of one write, but for a longer line: what Linux writes to a pipe as a whole, so that lines of programs that
/// share a pipe do not end up inside each other.
const WRITE_BYTES: usize = 4_096;

/// How long the writer rests when standard error is non-blocking and takes nothing.
const BUSY_REST: Duration = Duration::from_millis(10);

/// The log. Clones write to the same one.
#[derive(Debug, Clone)]
pub struct Log(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Something was put into the queue.
    filled: Condvar,
    /// The writer has written all there was.
    written: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whole lines. Invariant: at most [`QUEUE_BYTES`].
    waiting: Vec<u8>,
    /// Whether the writer has lines in hand that it has taken out.
    writing: bool,
    /// Lines lost since it was last said in the log.
    lost: u64,
}

impl Log {
    /// A log to standard error. Without a thread or a descriptor for it, all lines are lost and counted.
    #[must_use]
    pub fn to_stderr() -> Self {
        // Written through a descriptor of our own and not through `io::stderr`: who waits there holds its lock.
        match io::stderr().as_fd().try_clone_to_owned() {
            Ok(stderr) => Self::to(File::from(stderr)),
            Err(_) => Self::to(io::sink()),
        }
    }

    fn to(sink: impl Write + Send + 'static) -> Self {
        let log = Self(Arc::new(Shared { queue: Mutex::default(), filled: Condvar::new(), written: Condvar::new() }));
        let shared = Arc::clone(&log.0);
        // Without a thread the queue fills, and what comes then is lost and counted.
        _ = thread::Builder::new().name("log".to_owned()).spawn(move || write_all_that_comes(&shared, sink));
        log
    }

    /// Writes a line that is no event, such as the error that ends the program. Whatever `RUST_LOG` says.
    pub fn line(&self, text: impl Display) {
        self.put(format!("{text}\n").as_bytes(), QUEUE_BYTES);
    }

    /// Waits until all is written that was logged before, but no longer than this.
    pub fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut queue = self.0.lock();
        while queue.writing || !queue.waiting.is_empty() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            queue = self.0.written.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Logs panics instead of printing them: who panics must not wait for a reader, nor panic again without one.
    pub fn take_panics(&self) {
        let log = self.clone();
        std::panic::set_hook(Box::new(move |panic| log.line(describe(panic))));
    }

    fn put(&self, line: &[u8], limit: usize) {
        let mut queue = self.0.lock();
        if queue.waiting.len() + line.len() <= limit {
            queue.waiting.extend_from_slice(line);
        } else {
            queue.lost += 1;
            count_lost(1);
        }
        drop(queue);
        self.0.filled.notify_one();
    }
}

impl Shared {
    /// A panic while it was held leaves whole lines: nothing panics between two halves of a change.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = EventWriter<'a>;

    fn make_writer(&'a self) -> EventWriter<'a> {
        EventWriter { log: self, limit: QUEUE_BYTES - RESERVED_BYTES }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> EventWriter<'a> {
        let limit = if *event.level() <= Level::WARN { QUEUE_BYTES } else { QUEUE_BYTES - RESERVED_BYTES };
        EventWriter { log: self, limit }
    }
}

/// Takes one event, whole: the subscriber makes the line first and writes it at once.
#[derive(Debug)]
pub struct EventWriter<'a> {
    log: &'a Log,
    limit: usize,
}

impl Write for EventWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.log.put(line, self.limit);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn count_lost(lines: u64) {
    metrics::counter!("orchestrator_dropped_total", "reason" => "log_line").increment(lines);
}

/// What the default hook prints, in one line but for a backtrace.
fn describe(panic: &PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let message = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(|m| &**m));
    let (thread, message) = (thread::current(), message.unwrap_or("no message"));
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let mut text = format!("thread '{}' panicked at {place}: {message}", thread.name().unwrap_or("<unnamed>"));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        text += &format!("\n{backtrace}");
    }
    text
}

/// The thread that writes, for as long as the process lives.
fn write_all_that_comes(shared: &Shared, sink: impl Write) {
    let (mut writer, mut lines) = (LineWriter { sink, torn: false }, Vec::new());
    loop {
        let mut queue = shared.lock();
        while queue.waiting.is_empty() {
            queue.writing = false;
            shared.written.notify_all();
            queue = shared.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.writing = true;
        std::mem::swap(&mut queue.waiting, &mut lines);
        // Lost behind these lines, because they filled the queue.
        let mut lost = std::mem::take(&mut queue.lost);
        drop(queue);

        let failed = chunks(&lines).filter(|chunk| writer.write(chunk).is_err()).map(count_lines).sum();
        lines.clear();
        count_lost(failed);
        lost += failed;
        if lost > 0 && writer.write(format!("{lost} lines of the log were lost\n").as_bytes()).is_err() {
            shared.lock().lost += lost;
        }
    }
}

/// Whole lines of up to [`WRITE_BYTES`] together, or a single longer one.
fn chunks(mut lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let within = &lines[..lines.len().min(WRITE_BYTES)];
        let end = within.iter().rposition(|&byte| byte == b'\n');
        let end = end.or_else(|| lines.iter().position(|&byte| byte == b'\n'))?;
        let (chunk, rest) = lines.split_at(end + 1);
        lines = rest;
        Some(chunk)
    })
}

fn count_lines(chunk: &[u8]) -> u64 {
    chunk.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// Writes whole lines.
struct LineWriter<W> {
    sink: W,
    /// The last line was cut off by an error, as on a full disk: the next one begins with an end of line.
    torn: bool,
}

impl<W: Write> LineWriter<W> {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.torn {
            self.write_fully(b"\n")?;
            self.torn = false;
        }
        self.write_fully(lines)
    }

    fn write_fully(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let whole = bytes.len();
        while !bytes.is_empty() {
            match self.sink.write(bytes) {
                Ok(written) if written > 0 => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Another process has made the open file non-blocking, and its reader is behind.
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(BUSY_REST),
                failed => {
                    self.torn |= bytes.len() < whole;
                    return Err(failed.err().unwrap_or_else(|| ErrorKind::WriteZero.into()));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// More writes than any test looks at.
    const MANY: usize = 10_000;

    /// Gives each write to the test, and does as the test says.
    struct Sink {
        writes: mpsc::SyncSender<Vec<u8>>,
        answers: mpsc::Receiver<io::Result<usize>>,
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            _ = self.writes.send(bytes.to_vec());
            self.answers.recv().unwrap_or(Ok(bytes.len()))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A log whose writer waits for the test at each write; after `answers` is dropped, it takes all.
    struct Held {
        log: Log,
        writes: mpsc::Receiver<Vec<u8>>,
        answers: mpsc::SyncSender<io::Result<usize>>,
    }

    impl Held {
        fn new() -> Self {
            let ((write, writes), (answers, answer)) = (mpsc::sync_channel(MANY), mpsc::sync_channel(MANY));
            Self { log: Log::to(Sink { writes: write, answers: answer }), writes, answers }
        }

        fn next(&self) -> String {
            String::from_utf8(self.writes.recv_timeout(LONG).unwrap()).unwrap()
        }

        fn answer(&self, answer: io::Result<usize>) {
            self.answers.send(answer).unwrap();
        }

        /// All that is written from now on, as text.
        fn rest(self) -> String {
            drop(self.answers);
            self.log.flush(LONG);
            drop(self.log);
            self.writes.try_iter().map(|bytes| String::from_utf8(bytes).unwrap()).collect()
        }
    }

    /// Puts lines in at the weight of an event of this level.
    fn flood(log: &Log, limit: usize, lines: usize) {
        for _ in 0..lines {
            EventWriter { log, limit }.write_all(&[&[b'x'; 1_023][..], b"\n"].concat()).unwrap();
        }
    }

    #[test]
    fn lines_come_in_their_order_and_whole() {
        let held = Held::new();
        held.log.line("one");
        assert_eq!(held.next(), "one\n");
        held.log.line("two");
        held.log.line("y".repeat(10_000));
        held.log.line("three");
        held.answer(Ok(4));
        let expected = ["two\n", &*("y".repeat(10_000) + "\n"), "three\n"];
        for line in expected {
            assert_eq!(held.next(), line);
            held.answer(Ok(line.len()));
        }
        assert_eq!(held.rest(), "");
    }

    #[test]
    fn a_writer_that_is_held_up_costs_counted_lines_and_no_time() {
        let held = Held::new();
        held.log.line("first");
        held.next();
        let all = QUEUE_BYTES / 1_024;

        flood(&held.log, QUEUE_BYTES, all + 7);
        held.log.flush(Duration::from_millis(1));
        held.answer(Ok(6));

        let rest = held.rest();
        assert_eq!(rest.lines().count(), all + 1);
        assert_eq!(rest.lines().last(), Some("7 lines of the log were lost"));
    }

    #[test]
    fn a_flood_leaves_room_for_warnings() {
        let held = Held::new();
        held.log.line("first");
        held.next();

        flood(&held.log, QUEUE_BYTES - RESERVED_BYTES, 10_000);
        held.log.line("a warning");
        held.answer(Ok(6));

        assert!(held.rest().contains("\na warning\n"));
    }

    #[test]
    fn what_could_not_be_written_is_said_later_behind_whole_lines() {
        let held = Held::new();
        held.log.line("one");
        held.next();
        held.answer(Ok(2));
        assert_eq!(held.next(), "e\n");
        held.answer(Err(ErrorKind::StorageFull.into()));
        // That a line was lost, which fails as well.
        assert_eq!(held.next(), "\n");
        held.answer(Err(ErrorKind::StorageFull.into()));
        held.log.line("two");

        assert_eq!(held.rest(), "\ntwo\n1 lines of the log were lost\n");
    }

    #[test]
    fn a_busy_or_interrupted_sink_is_tried_again() {
        let held = Held::new();
        held.log.line("one");
        for error in [ErrorKind::WouldBlock, ErrorKind::Interrupted] {
            assert_eq!(held.next(), "one\n");
            held.answer(Err(error.into()));
        }

        assert_eq!(held.rest(), "one\n");
    }
}
