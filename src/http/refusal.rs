//! The form in which a request is refused before it reaches the routes: the same as theirs.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

/// A request that was refused, as `{"code": "INVALID_ARGUMENT", "message": "…"}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What was wrong, in words that name the option which would allow it.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The wire's code for it: too much at once passes, and all else is the request's own fault.
    fn code(&self) -> &'static str {
        if self.status == StatusCode::SERVICE_UNAVAILABLE { "UNAVAILABLE" } else { "INVALID_ARGUMENT" }
    }

    pub(super) fn body(&self) -> String {
        serde_json::json!({"code": self.code(), "message": self.message}).to_string()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        (self.status, json, self.body()).into_response()
    }
}
