//! The one form in which a request is refused: `{"code": "INVALID_ARGUMENT", "message": "…"}`.
//!
//! The codes are the wire's, so that a program needs one table for both ways to the service; the status says the same
//! to those that speak HTTP only.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::client::{ClientError, proto::Code};

/// A request that was refused.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: Code,
    message: String,
    /// What HTTP wants to be said besides, where it does.
    headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Serialize)]
struct Body<'a> {
    code: &'static str,
    message: &'a str,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), headers: Vec::new() }
    }

    /// Something about the request itself: 400.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, message)
    }

    /// The same with another status, where HTTP has one of its own.
    pub(super) fn invalid_as(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, Code::InvalidArgument, message)
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    #[cfg(test)]
    pub(super) fn parts(&self) -> (u16, &'static str, &str) {
        (self.status.as_u16(), self.code.as_str_name(), &self.message)
    }
}

impl From<ClientError> for ApiError {
    fn from(error: ClientError) -> Self {
        Self::new(status_of(error.code()), error.code(), error.message())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Body { code: self.code.as_str_name(), message: &self.message };
        let mut response = (self.status, Json(body)).into_response();
        response.headers_mut().extend(self.headers);
        response
    }
}

fn status_of(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::StreamNotFound | Code::SceneNotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::InvalidState | Code::Conflict | Code::UnknownSubscriber => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Undecodable => StatusCode::BAD_GATEWAY,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}
