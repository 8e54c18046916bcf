//! A connection that turns into something else once its answer is sent.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use axum::{body::Bytes, http::Extensions};
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::stream::MeteredStream;

/// Leave to upgrade the connection of a request, once the answer with status 101 is sent.
#[derive(Debug)]
pub struct Upgrade(OnUpgrade);

impl Upgrade {
    /// Takes it out of a request's extensions; `None` when the connection cannot be upgraded.
    #[must_use]
    pub fn take(extensions: &mut Extensions) -> Option<Self> {
        extensions.remove::<OnUpgrade>().map(Self)
    }

    /// The connection, and what the peer has sent on it already.
    ///
    /// # Errors
    /// When the connection broke before the answer was sent.
    pub async fn upgraded(self) -> io::Result<(UpgradedStream, Bytes)> {
        let upgraded = self.0.await.map_err(io::Error::other)?;
        Ok(match upgraded.downcast::<TokioIo<MeteredStream>>() {
            Ok(Parts { io, read_buf, .. }) => (UpgradedStream::Tcp(io.into_inner().into_inner()), read_buf),
            Err(upgraded) => (UpgradedStream::Other(TokioIo::new(upgraded)), Bytes::new()),
        })
    }
}

/// What is left of a connection: without what HTTP needed, where the connection is this server's own.
#[derive(Debug)]
pub enum UpgradedStream {
    /// This server's.
    Tcp(TcpStream),
    /// Of somebody else, who serves the routes.
    Other(TokioIo<Upgraded>),
}

impl UpgradedStream {
    /// Pending while it is certain that nothing can be read, without a try.
    pub fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            // An error is found by reading.
            Self::Tcp(stream) => stream.poll_read_ready(context).map(drop),
            Self::Other(_) => Poll::Ready(()),
        }
    }

    /// Writes what the connection takes now. Nobody is woken when it takes more: whoever wants to be polls.
    ///
    /// # Errors
    /// `WouldBlock` when it takes nothing now; else the connection broke.
    pub fn try_write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = match self {
            Self::Tcp(stream) => stream.try_write(buf)?,
            Self::Other(stream) => match Pin::new(stream).poll_write(&mut Context::from_waker(Waker::noop()), buf) {
                Poll::Ready(written) => written?,
                Poll::Pending => return Err(io::ErrorKind::WouldBlock.into()),
            },
        };
        some_of(buf, written)
    }
}

/// What was written of `buf`: never nothing.
fn some_of(buf: &[u8], written: usize) -> io::Result<usize> {
    match written {
        0 if !buf.is_empty() => Err(io::ErrorKind::WriteZero.into()),
        written => Ok(written),
    }
}

impl AsyncRead for UpgradedStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buf),
            Self::Other(stream) => Pin::new(stream).poll_read(context, buf),
        }
    }
}

impl AsyncWrite for UpgradedStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, buf),
            Self::Other(stream) => Pin::new(stream).poll_write(context, buf),
        };
        Poll::Ready(some_of(buf, ready!(written)?))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Other(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Other(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
