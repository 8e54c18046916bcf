//! A WebSocket over a connection: frames that are encoded once for many sockets go out as they are, and all else is left to
//! tungstenite.
//!
//! Frames of the two kinds must not mix: while a frame of ours is only partly written, tungstenite is told that the
//! connection takes nothing, and while one of tungstenite's is, none of ours is sent.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tungstenite::{
    Error, Message, Utf8Bytes,
    error::CapacityError,
    protocol::{
        CloseFrame, Role, WebSocketConfig, WebSocketContext,
        frame::{
            Frame,
            coding::{CloseCode, Data, OpCode},
        },
    },
};

use super::talk::{Allowance, TooMuch};
use crate::http::UpgradedStream;

/// What a socket reads at once. Viewers have nothing to say but pongs, and there are many of them.
const READ_BUFFER: usize = 128;
/// What is read at once and thrown away at the end.
const SCRAP: usize = 1 << 10;
/// How much of what a viewer was sending when it broke the protocol is still read.
const MAX_DRAINED: usize = 256 << 10;

/// A text message as a frame.
pub(super) fn text_frame(text: String) -> Bytes {
    encode(Frame::message(text, OpCode::Data(Data::Text), true))
}

/// A binary message as a frame.
pub(super) fn binary_frame(message: Bytes) -> Bytes {
    encode(Frame::message(message, OpCode::Data(Data::Binary), true))
}

/// A ping as a frame.
pub(super) fn ping_frame(payload: u32) -> Bytes {
    encode(Frame::ping(Bytes::copy_from_slice(&payload.to_be_bytes())))
}

fn encode(frame: Frame) -> Bytes {
    let mut bytes = Vec::with_capacity(frame.len());
    // Writing to memory does not fail.
    let _ = frame.format(&mut bytes);
    bytes.into()
}

/// One viewer's WebSocket.
pub(super) struct Line {
    stream: UpgradedStream,
    context: WebSocketContext,
    allowance: Allowance,
    /// The rest of a frame that is partly written.
    unsent: Bytes,
    /// tungstenite has something to write.
    owes: bool,
    /// A frame of tungstenite's is partly written.
    is_within: bool,
}

/// What came from a viewer.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    /// The answer to a ping.
    Pong(Bytes),
    /// A text message.
    Text(Utf8Bytes),
    /// Something that is ignored.
    Anything,
    /// Its close frame, or the end.
    Close,
}

/// Why a line cannot be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It broke.
    Broken,
    /// The viewer broke the protocol: the close code that says how.
    Protocol(u16),
    /// The viewer says more than it may.
    TooMuch,
}

impl Line {
    /// A line over a connection on which `read` has come already. Messages over `max_bytes` end it.
    pub(super) fn new(stream: UpgradedStream, read: &Bytes, max_bytes: usize, allowance: Allowance) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_message_size(Some(max_bytes))
            .max_frame_size(Some(max_bytes));
        let context = match read.is_empty() {
            true => WebSocketContext::new(Role::Server, Some(config)),
            false => WebSocketContext::from_partially_read(read.to_vec(), Role::Server, Some(config)),
        };
        // What has come is looked at before anything is waited for.
        Self { stream, context, allowance, unsent: Bytes::new(), owes: !read.is_empty(), is_within: false }
    }

    /// The next that came. Answers to pings and to a close frame are on their way when it returns.
    pub(super) fn poll_heard(&mut self, context: &mut Context<'_>) -> Poll<Result<Heard, Fault>> {
        if !std::mem::take(&mut self.owes) {
            ready!(self.stream.poll_read_ready(context));
        }
        let may_write = self.unsent.is_empty();
        let mut io = Io {
            stream: Pin::new(&mut self.stream),
            context,
            may_write,
            allowance: &mut self.allowance,
            is_blocked: false,
            is_within: &mut self.is_within,
        };
        let read = self.context.read(&mut io);
        self.owes = io.is_blocked;
        let heard = match read {
            Ok(message) => {
                // Its answer, if it needs one, is written with the next look.
                self.owes = true;
                if self.allowance.take_message().is_err() {
                    return Poll::Ready(Err(Fault::TooMuch));
                }
                match message {
                    Message::Pong(payload) => Ok(Heard::Pong(payload)),
                    Message::Close(_) => Ok(Heard::Close),
                    Message::Text(text) => Ok(Heard::Text(text)),
                    Message::Binary(_) | Message::Ping(_) | Message::Frame(_) => Ok(Heard::Anything),
                }
            }
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(error) => fault_of(&error).map_or(Ok(Heard::Close), Err),
        };
        Poll::Ready(heard)
    }

    /// Sends as much of a frame as the connection takes now. When it takes the rest is for [`Self::poll_sent`] to say.
    ///
    /// Only while the line is clear.
    pub(super) fn send(&mut self, frame: Bytes) -> Result<(), Fault> {
        debug_assert!(self.is_clear(), "a frame within a frame");
        self.unsent = frame;
        while !self.unsent.is_empty() {
            match self.stream.try_write(&self.unsent) {
                Ok(length) => self.note_written(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(Fault::Broken),
            }
        }
        Ok(())
    }

    /// Ready when the line is clear. What is left of tungstenite's own is for [`Self::poll_heard`] to write.
    pub(super) fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if self.is_within {
            return Poll::Pending;
        }
        self.poll_unsent(context)
    }

    fn poll_unsent(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        while !self.unsent.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(context, &self.unsent)) {
                Ok(length) => self.note_written(length),
                Err(_) => return Poll::Ready(Err(Fault::Broken)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn note_written(&mut self, length: usize) {
        // A frame that is written is let go: others share it.
        self.unsent = if length == self.unsent.len() { Bytes::new() } else { self.unsent.slice(length..) };
    }

    /// What came was the answer to one of our own pings: that is not counted.
    pub(super) fn forgive_answer(&mut self) {
        self.allowance.forgive_answer();
    }

    /// Whether a frame may be sent: none is partly written.
    pub(super) fn is_clear(&self) -> bool {
        self.unsent.is_empty() && !self.is_within
    }

    /// Sends a close frame, or where there is no code to send the answer to the viewer's own, and waits for the viewer to
    /// close. A frame that is only partly written stands before it.
    ///
    /// After a fault, nothing that the viewer says can be understood any more.
    pub(super) async fn close(&mut self, code: Option<(u16, &'static str)>, is_fault: bool) {
        let _ = std::future::poll_fn(|context| self.poll_unsent(context)).await;
        let frame = code.map(|(code, reason)| CloseFrame { code: CloseCode::from(code), reason: reason.into() });
        // Answers what the viewer closed, where there is no code of ours.
        let mut is_begun = frame.is_none();
        let sent = std::future::poll_fn(|context| {
            let mut io = Io {
                stream: Pin::new(&mut self.stream),
                context,
                may_write: true,
                allowance: &mut self.allowance,
                is_blocked: false,
                is_within: &mut self.is_within,
            };
            let flushed = match std::mem::replace(&mut is_begun, true) {
                false => self.context.close(&mut io, frame.clone()),
                true => self.context.flush(&mut io),
            };
            match flushed {
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                Ok(()) | Err(Error::ConnectionClosed) => Poll::Ready(true),
                Err(_) => Poll::Ready(false),
            }
        });
        // What the viewer still says must be read: closing over it would take the close frame back.
        match sent.await {
            false => {}
            true if is_fault => self.drain().await,
            true => while let Ok(Heard::Pong(_) | Heard::Text(_) | Heard::Anything) = self.heard().await {},
        }
    }

    async fn heard(&mut self) -> Result<Heard, Fault> {
        std::future::poll_fn(|context| self.poll_heard(context)).await
    }

    /// Says that nothing more comes, and reads to the end, if that is not too far.
    async fn drain(&mut self) {
        let _ = std::future::poll_fn(|context| Pin::new(&mut self.stream).poll_shutdown(context)).await;
        for _ in 0..MAX_DRAINED / SCRAP {
            let read = std::future::poll_fn(|context| {
                let mut scrap = [0; SCRAP];
                let mut buf = ReadBuf::new(&mut scrap);
                Pin::new(&mut self.stream).poll_read(context, &mut buf).map_ok(|()| buf.filled().len())
            });
            if !matches!(read.await, Ok(1..)) {
                return;
            }
        }
    }
}

/// `None` for an ordinary end.
fn fault_of(error: &Error) -> Option<Fault> {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => None,
        Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => None,
        Error::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<TooMuch>()) => Some(Fault::TooMuch),
        Error::Capacity(CapacityError::MessageTooLong { .. }) => Some(Fault::Protocol(u16::from(CloseCode::Size))),
        Error::Utf8(_) => Some(Fault::Protocol(u16::from(CloseCode::Invalid))),
        Error::Protocol(_) => Some(Fault::Protocol(u16::from(CloseCode::Protocol))),
        _ => Some(Fault::Broken),
    }
}

/// The connection as tungstenite sees it during one look.
struct Io<'a, 'b, 'c> {
    stream: Pin<&'a mut UpgradedStream>,
    context: &'b mut Context<'c>,
    may_write: bool,
    allowance: &'a mut Allowance,
    /// Something could not be written.
    is_blocked: bool,
    /// What was last written is not whole.
    is_within: &'a mut bool,
}

impl io::Read for Io<'_, '_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        match self.stream.as_mut().poll_read(self.context, &mut buf) {
            Poll::Ready(Ok(())) => {
                let length = buf.filled().len();
                self.allowance.take_bytes(length).map_err(io::Error::other)?;
                Ok(length)
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl io::Write for Io<'_, '_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.may_write
            && let Poll::Ready(written) = self.stream.as_mut().poll_write(self.context, buf)
        {
            let written = written?;
            *self.is_within = written < buf.len();
            return Ok(written);
        }
        self.is_blocked = true;
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// A socket has no buffer of its own.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
