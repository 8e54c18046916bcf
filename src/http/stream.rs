//! A connection's bytes: when a request began to come, and whether the peer takes what it is sent.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

use super::{connection::Activity, patience};

/// How much a peer has to take within the write timeout: what some answers hold in all, and at 10 s more than the slowest
/// of mobile lines.
const MIN_PROGRESS: usize = 64 << 10;

/// A TCP connection that fails when its peer does not take what it is sent.
///
/// Who upgrades it to something else takes the [`TcpStream`] out, with time limits of its own.
#[derive(Debug)]
pub(super) struct MeteredStream {
    stream: TcpStream,
    activity: Arc<Activity>,
    write_timeout: Duration,
    /// There while the peer takes less than it is sent.
    stalled: Option<Stalled>,
}

#[derive(Debug)]
struct Stalled {
    due: Instant,
    /// What it took since this began.
    taken: usize,
    timer: Pin<Box<Sleep>>,
}

impl MeteredStream {
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>, write_timeout: Duration) -> Self {
        Self { stream, activity, write_timeout, stalled: None }
    }

    /// The connection itself.
    pub(super) fn into_inner(self) -> TcpStream {
        self.stream
    }

    /// Notes what became of writing: the peer has taken some, or it takes nothing now.
    fn note_write(&mut self, written: Poll<io::Result<usize>>, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match (&written, &mut self.stalled) {
            (Poll::Ready(Ok(taken)), Some(stalled)) => {
                stalled.taken += taken;
                if stalled.taken >= MIN_PROGRESS {
                    self.stalled = None;
                }
                written
            }
            (Poll::Ready(_), _) => written,
            (Poll::Pending, _) => {
                ready!(self.poll_stalled(context));
                self.activity.count_cut("write_timeout");
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not take what it is sent")))
            }
        }
    }

    /// Ready when the peer has had its time.
    fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let write_timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| {
            let due = Instant::now() + write_timeout;
            Stalled { due, taken: 0, timer: Box::pin(sleep_until(due)) }
        });
        loop {
            ready!(stalled.timer.as_mut().poll(context));
            if !patience::is_late(stalled.due) {
                return Poll::Ready(());
            }
            stalled.due = Instant::now() + write_timeout;
            stalled.timer.as_mut().reset(stalled.due);
        }
    }
}

impl AsyncRead for MeteredStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buf))?;
        if buf.filled().len() > before {
            self.activity.note_read();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MeteredStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, buf);
        self.note_write(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bufs);
        self.note_write(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Asked for when all has been written: nothing is owed to the peer then.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stalled = None;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
