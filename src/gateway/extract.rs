//! Reading a request. Whatever is wrong with it is answered in JSON, naming the field: no rejection of the framework
//! reaches the peer as plain text.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use axum::{
    body::Body,
    extract::{ConnectInfo, FromRequest, FromRequestParts, Path, Query, Request},
    http::{Extensions, HeaderMap, StatusCode, header, request::Parts},
};
use futures_util::StreamExt as _;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, de::DeserializeOwned};

use super::{App, error::ApiError};
use crate::{
    client::proto::Code,
    http::{Buffered, ConnectionGuard, patience},
};

/// How much more than the limit is read and thrown away before a body is refused: a peer that is cut off while it
/// still sends often does not get to read why.
const OVERREAD: usize = 8;

/// The parameters in a path.
#[derive(Debug)]
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(params)) => Ok(Self(params)),
            Err(rejection) => Err(ApiError::invalid(rejection.body_text())),
        }
    }
}

/// The query string.
#[derive(Debug)]
pub(super) struct QueryParams<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryParams<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        check_utf_8(parts.uri.query().unwrap_or_default())?;
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(ApiError::invalid(rejection.body_text())),
        }
    }
}

/// Refuses parameters that are not UTF-8, by name. The framework would read a replacement character for whatever is not, so
/// that two ids which differ could be one.
fn check_utf_8(query: &str) -> Result<(), ApiError> {
    let is_broken = |text: &str| percent_decode_str(text).decode_utf8().is_err();
    let Some(parameter) = query.split('&').find(|parameter| is_broken(parameter)) else { return Ok(()) };
    let name = parameter.split('=').next().filter(|name| !is_broken(name)).unwrap_or("a name in the query string");
    Err(ApiError::invalid(format!("{name} is not UTF-8")))
}

/// What every command can carry. A misspelt condition must not turn into none: unknown parameters are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Conditions {
    pub(super) expected_revision: Option<u64>,
    pub(super) expected_epoch: Option<u64>,
    /// Empty: no scene is.
    pub(super) expected_scene: Option<String>,
    pub(super) request_id: Option<String>,
    /// Nobody is authenticated here, so whoever asks says who it is.
    pub(super) issued_by: Option<String>,
}

/// A JSON body that must be there, with the leave to keep what is made of it: for as long as the handler has it.
#[derive(Debug)]
pub(super) struct JsonBody<T>(pub(super) T, pub(super) Lease);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        require_json(request.headers())?;
        let (parts, body) = request.into_parts();
        let (value, lease) = read(&parts, body, app).await?.parsed()?;
        Ok(Self(value, lease))
    }
}

/// A JSON body that may be empty, as [`JsonBody`].
#[derive(Debug)]
pub(super) struct OptionalJsonBody<T>(pub(super) Option<T>, pub(super) Lease);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for OptionalJsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let body = read(&parts, body, app).await?;
        if body.bytes.is_empty() {
            return Ok(Self(None, body.lease));
        }
        require_json(&parts.headers)?;
        let (value, lease) = body.parsed()?;
        Ok(Self(Some(value), lease))
    }
}

/// A number in a path.
pub(super) fn number<T: FromStr + Display>(field: &str, text: &str, least: T, most: T) -> Result<T, ApiError> {
    text.parse()
        .map_err(|_| ApiError::invalid(format!("{field} must be a whole number from {least} to {most}, not {text:?}")))
}

/// Where the request comes from, if the server notes it. An IPv4 address seen through an IPv6 socket is written as what
/// it is.
pub(super) fn peer(extensions: &Extensions) -> Option<SocketAddr> {
    let ConnectInfo(address) = extensions.get::<ConnectInfo<SocketAddr>>()?;
    let ip: IpAddr = address.ip().to_canonical();
    Some(SocketAddr::new(ip, address.port()))
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || essence.starts_with("application/") && essence.ends_with("+json") {
        return Ok(());
    }
    let message = format!("the body's Content-Type must be application/json, not {content_type:?}");
    Err(ApiError::invalid_as(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
}

/// Leave to keep bytes for a peer; none where somebody else serves the routes, who bounds what is kept.
#[derive(Debug)]
pub(super) struct Lease(Option<Buffered>);

impl Lease {
    fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let granted = self.0.as_mut().is_none_or(|buffered| buffered.grow(bytes));
        if granted { Ok(()) } else { Err(too_much()) }
    }
}

/// A body, with the leave to keep it.
struct Kept {
    bytes: Vec<u8>,
    lease: Lease,
}

impl Kept {
    fn new(connection: Option<&Arc<ConnectionGuard>>) -> Result<Self, ApiError> {
        let lease = connection.map(|connection| connection.buffer(0).ok_or_else(too_much)).transpose()?;
        Ok(Self { bytes: Vec::new(), lease: Lease(lease) })
    }

    /// However small the chunks are, what counts is what the buffer takes.
    fn append(&mut self, chunk: &[u8], limit: usize) -> Result<(), ApiError> {
        let (length, capacity) = (self.bytes.len() + chunk.len(), self.bytes.capacity());
        if length > capacity {
            let grown = length.max((2 * capacity).min(limit));
            self.lease.grow(grown - capacity)?;
            self.bytes.reserve_exact(grown - self.bytes.len());
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// What it says, and leave for that: the lease goes on after the bytes are gone.
    fn parsed<T: DeserializeOwned>(mut self) -> Result<(T, Lease), ApiError> {
        /// A scene of 29 bytes becomes a body's and a message's, with every field that a scene may have.
        const TIMES: usize = 6;
        self.lease.grow(TIMES * self.bytes.len())?;
        Ok((parse(&self.bytes)?, self.lease))
    }
}

async fn read(parts: &Parts, body: Body, app: &App) -> Result<Kept, ApiError> {
    let timeout = app.options.http.body_timeout;
    // Where somebody else serves the routes, what is kept is theirs to bound.
    let connection = parts.extensions.get::<Arc<ConnectionGuard>>();
    match patience::within(timeout, read_within(body, app.options.max_body_bytes, connection)).await {
        Ok(result) => result,
        Err(patience::Elapsed) => {
            let message = format!("the body did not arrive within {timeout:?}");
            Err(ApiError::invalid_as(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

async fn read_within(body: Body, limit: usize, connection: Option<&Arc<ConnectionGuard>>) -> Result<Kept, ApiError> {
    let mut chunks = body.into_data_stream();
    let mut kept = Kept::new(connection)?;
    let mut length = 0_usize;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ApiError::invalid(format!("the body broke off: {error}")))?;
        length = length.saturating_add(chunk.len());
        if length <= limit {
            kept.append(&chunk, limit)?;
        } else if length > limit.saturating_mul(OVERREAD) {
            break;
        } else {
            kept = Kept::new(connection)?;
        }
    }
    if length > limit {
        let message = format!("the body is over the limit of {limit} bytes");
        return Err(ApiError::invalid_as(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    Ok(kept)
}

fn too_much() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        Code::Unavailable,
        "too many bodies are being read at once; try again",
    )
}

/// A body as `T`; an error names the field by its path.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let text =
        std::str::from_utf8(bytes).map_err(|error| ApiError::invalid(format!("the body is not UTF-8: {error}")))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "the body".to_owned() } else { path };
        ApiError::invalid(format!("{field}: {}", error.into_inner()))
    })?;
    json.end().map_err(|error| ApiError::invalid(format!("the body: {error}")))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::{super::bodies::StreamBody, *};

    fn refusal(json: &str) -> String {
        let error = parse::<StreamBody>(json.as_bytes()).expect_err(json);
        let (status, code, message) = error.parts();
        assert_eq!((status, code), (400, "INVALID_ARGUMENT"));
        message.to_owned()
    }

    #[test]
    fn a_wrong_type_is_refused_with_the_path_of_its_field() {
        let message = refusal(r#"{"scenes":[{"name":"a","duration_ms":1},{"name":"b","duration_ms":"2"}]}"#);
        assert!(message.starts_with("scenes[1].duration_ms: invalid type: string \"2\", expected u64"), "{message}");
        let message = refusal(r#"{"scenes":[],"when_empty":"LATER"}"#);
        assert!(message.starts_with("when_empty: unknown variant `LATER`"), "{message}");
    }

    #[test]
    fn unknown_missing_negative_and_too_large_are_refused_by_name() {
        for (json, part) in [
            (r#"{"scenes":[],"loop":true}"#, "unknown field `loop`"),
            (r#"{"loop_scenes":true}"#, "missing field `scenes`"),
            (r#"{"scenes":[{"name":"a","duration_ms":-1}]}"#, "scenes[0].duration_ms: invalid value: integer `-1`"),
            (r#"{"scenes":[],"tick_interval_ms":18446744073709551616}"#, "tick_interval_ms: invalid"),
            (r#"{"scenes":[]} x"#, "trailing characters"),
            ("", "the body: EOF"),
            ("{\"scenes\":[", "EOF"),
        ] {
            let message = refusal(json);
            assert!(message.contains(part), "{json}: {message}");
        }
    }

    #[test]
    fn what_is_not_utf_8_is_refused() {
        let error = parse::<StreamBody>(b"{\"scenes\":[{\"name\":\"\xff\"}]}").expect_err("not UTF-8");
        assert!(error.parts().2.contains("not UTF-8"), "{error:?}");
    }

    #[test]
    fn a_number_in_a_path_is_refused_with_its_name_and_limits() {
        assert_eq!(number("position_ms", "18446744073709551615", 0, u64::MAX).expect("fits"), u64::MAX);
        for text in ["", "-1", "1.5", "x", "18446744073709551616"] {
            let error = number("position_ms", text, 0, u64::MAX).expect_err(text);
            assert!(error.parts().2.contains("position_ms") && error.parts().2.contains("18446744073709551615"));
        }
    }
}
