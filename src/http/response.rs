//! An answer on its way: how long it is under way, and what it makes us keep.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::{
    admission::{Buffered, ConnectionGuard},
    connection::UnderWay,
    guard::Admitted,
    refusal::Refusal,
};

/// Answers up to this size are not counted: they are gone with one write to the kernel, unless the peer does not read,
/// and then a connection has at most one of them.
const SMALL_BYTES: u64 = 4 << 10;

/// Prepares an answer for a connection. One for which there is no room is replaced by a refusal.
pub(super) fn prepare(
    response: Response,
    connection: &Arc<ConnectionGuard>,
    admitted: &Admitted,
    mut under_way: UnderWay,
) -> Response<TrackedBody> {
    let size = response.body().size_hint().exact().filter(|size| *size > SMALL_BYTES);
    let size = size.map(|size| usize::try_from(size).unwrap_or(usize::MAX));
    let (mut response, buffered) = match size.map(|size| connection.buffer(size)) {
        None => (response, None),
        Some(Some(buffered)) => (response, Some(buffered)),
        Some(None) => {
            let message = "too many answers wait for slow readers; try again";
            (Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message).into_response(), None)
        }
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        under_way.becomes_another();
    }
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = &admitted.cross_origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("location"));
    }
    response.map(|body| TrackedBody { body, buffered, _under_way: under_way })
}

/// What a browser asks before it lets an allowed page of another origin send a request that no form could send.
pub(super) fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, PUT, DELETE")),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("content-type")),
        (header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600")),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// The body of an answer. Its bytes are counted until the last of them is written.
#[derive(Debug)]
pub(super) struct TrackedBody {
    body: Body,
    buffered: Option<Buffered>,
    _under_way: UnderWay,
}

/// Bytes with the leave to keep them.
struct Kept {
    bytes: Bytes,
    _buffered: Buffered,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let buffered = &mut this.buffered;
        Pin::new(&mut this.body).poll_frame(context).map_ok(|frame| {
            frame.map_data(|bytes| match buffered.take() {
                // An answer whose size is known comes in one piece.
                Some(buffered) => Bytes::from_owner(Kept { bytes, _buffered: buffered }),
                None => bytes,
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
