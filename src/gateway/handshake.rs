//! The opening handshake of a WebSocket (RFC 6455, section 4.2): what a request must say, and the answer to it.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    response::{AppendHeaders, IntoResponse as _, Response},
};
use tungstenite::handshake::derive_accept_key;

use super::{error::ApiError, latest::Format};
use crate::http::Upgrade;

/// The version that is spoken.
const VERSION: HeaderValue = HeaderValue::from_static("13");
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const UPGRADE: HeaderValue = HeaderValue::from_static("Upgrade");

/// The subprotocols that there are, and in which form updates come there. Without one it is JSON too.
const PROTOCOLS: [(&str, Format); 2] = [("orchestrator.json", Format::Json), ("orchestrator.proto", Format::Proto)];

/// A request to open a WebSocket.
#[derive(Debug)]
pub(super) struct Handshake {
    accept: Accept,
    upgrade: Upgrade,
}

/// What the answer has to say.
#[derive(Debug)]
pub(super) struct Accept {
    key: HeaderValue,
    /// The first of those that were offered which is known. Without one the answer names none: what that means is for who
    /// offered them to decide.
    protocol: Option<(&'static str, Format)>,
}

impl Handshake {
    /// What the answer has to say, and the connection to be.
    pub(super) fn into_parts(self) -> (Accept, Upgrade) {
        (self.accept, self.upgrade)
    }

    fn of(parts: &mut Parts) -> Result<Self, ApiError> {
        let headers = &parts.headers;
        if parts.method != Method::GET
            || !has_token(headers, &header::CONNECTION, "upgrade")
            || !has_token(headers, &header::UPGRADE, "websocket")
        {
            return Err(upgrade_required("this is a WebSocket: ask for it with Upgrade: websocket"));
        }
        let version = headers.get(header::SEC_WEBSOCKET_VERSION);
        if version != Some(&VERSION) {
            return Err(upgrade_required(format!("Sec-WebSocket-Version must be 13, not {}", shown(version))));
        }
        let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
        let key = keys.next().filter(|key| is_key(key.as_bytes()) && keys.next().is_none());
        let key =
            key.ok_or_else(|| ApiError::invalid("Sec-WebSocket-Key must be there once, and be 16 bytes in base64"))?;
        let key = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
            .map_err(|_| ApiError::invalid("Sec-WebSocket-Key cannot be answered"))?;
        let upgrade = Upgrade::take(&mut parts.extensions);
        let upgrade = upgrade.ok_or_else(|| upgrade_required("this connection cannot become a WebSocket"))?;
        Ok(Self { accept: Accept { key, protocol: protocol(headers) }, upgrade })
    }
}

impl Accept {
    /// In which form the viewer wants its updates.
    pub(super) fn format(&self) -> Format {
        self.protocol.map_or(Format::Json, |(_, format)| format)
    }

    /// The answer after which the connection is a WebSocket.
    pub(super) fn into_response(self) -> Response {
        let headers =
            [(header::CONNECTION, UPGRADE), (header::UPGRADE, WEBSOCKET), (header::SEC_WEBSOCKET_ACCEPT, self.key)];
        let protocol = self.protocol.map(|(name, _)| (header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name)));
        (StatusCode::SWITCHING_PROTOCOLS, headers, AppendHeaders(protocol)).into_response()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Handshake {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Self::of(parts)
    }
}

fn shown(value: Option<&HeaderValue>) -> String {
    value.map_or_else(|| "absent".to_owned(), |value| format!("{:?}", String::from_utf8_lossy(value.as_bytes())))
}

/// 426 with what would be right.
fn upgrade_required(message: impl Into<String>) -> ApiError {
    ApiError::invalid_as(StatusCode::UPGRADE_REQUIRED, message)
        .with_header(header::CONNECTION, UPGRADE)
        .with_header(header::UPGRADE, WEBSOCKET)
        .with_header(header::SEC_WEBSOCKET_VERSION, VERSION)
}

/// The first of the subprotocols offered, in the order of who offers them, that is known. Their names are told apart to the
/// letter.
fn protocol(headers: &HeaderMap) -> Option<(&'static str, Format)> {
    tokens(headers, &header::SEC_WEBSOCKET_PROTOCOL)
        .find_map(|offered| PROTOCOLS.into_iter().find(|(name, _)| *name == offered))
}

/// Whether one of the comma-separated tokens of a header is this one.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|part| part.eq_ignore_ascii_case(token))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Whether this is 16 bytes in base64.
fn is_key(text: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    text.len() == 24 && text.ends_with(b"==") && text[..22].iter().all(is_digit)
}
