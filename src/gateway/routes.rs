//! REST: which path calls what. Every handler is a call of the client and the words for its answer.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use serde::{Deserialize, Serialize};

use super::{
    App,
    bodies::{StatusBody, StreamBody},
    error::ApiError,
    extract::{Conditions, JsonBody, OptionalJsonBody, Params, QueryParams, number},
    socket,
};
use crate::client::{
    Accepted, Command, StreamConfig, SubscriberPage,
    proto::{HistoryEntry, OrchestratorConfig, StateUpdate, Stats, SubscriberInfo},
};

/// The page at `/`: it has everything in it, and calls the routes below.
const PAGE: &str = include_str!("page.html");
/// The page runs its own script and nobody else's, and talks to nobody else.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Under which the ids of streams are made that a request with an id of its own creates without naming them.
const CREATED_BY_REQUEST: uuid::Uuid = uuid::uuid!("6b0f6d0e-3f0a-4b8c-9d53-2f9f6f1c7a41");

/// Streams or subscribers on one page, at most; the service's own limit.
const MAX_PAGE: u32 = 1_000;
/// Entries of a history in one answer, at most; likewise.
const MAX_HISTORY: u32 = 256;

type Shared = State<Arc<App>>;
type Answer<T> = Result<T, ApiError>;

pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/streams", post(create).get(list))
        .route("/streams/{stream_id}", get(state).merge(delete(remove)))
        .route("/streams/{stream_id}/start", post(start))
        .route("/streams/{stream_id}/pause", post(pause))
        .route("/streams/{stream_id}/resume", post(resume))
        .route("/streams/{stream_id}/stop", post(stop))
        .route("/streams/{stream_id}/reset", post(reset))
        .route("/streams/{stream_id}/skip", post(skip))
        .route("/streams/{stream_id}/previous", post(previous))
        .route("/streams/{stream_id}/scene/{scene_name}", post(force_scene))
        .route("/streams/{stream_id}/seek/{position_ms}", post(seek))
        .route("/streams/{stream_id}/adjust/{delta_ms}", post(adjust))
        .route("/streams/{stream_id}/status", put(status))
        .route("/streams/{stream_id}/config", put(configure).get(config))
        .route("/streams/{stream_id}/subscribers", get(subscribers))
        .route("/streams/{stream_id}/history", get(history))
        .route("/streams/{stream_id}/stats", get(stream_stats))
        .route("/streams/{stream_id}/ws", get(socket::open))
        .route("/stats", get(stats))
        .route("/time", get(time))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, PAGE)
}

/// What a program that creates streams relies on, to the letter.
#[derive(Serialize)]
struct Created {
    stream_id: String,
    message: &'static str,
}

async fn create(
    State(app): Shared,
    QueryParams(conditions): QueryParams<Conditions>,
    JsonBody(mut body, _lease): JsonBody<StreamBody>,
) -> Answer<Response> {
    let stream_id = body.stream_id.take().unwrap_or_else(|| match &conditions.request_id {
        // A repeat has to come to the same stream: it is there that the first request is remembered.
        Some(request_id) => uuid::Uuid::new_v5(&CREATED_BY_REQUEST, request_id.as_bytes()).to_string(),
        None => uuid::Uuid::new_v4().to_string(),
    });
    app.tell(&stream_id, Command::Start(Some(body.into_config())), conditions).await?;
    // An id that was accepted consists of characters that need no escaping in a path.
    let location = [(header::LOCATION, format!("/streams/{stream_id}"))];
    let created = Created { stream_id, message: "Stream created successfully" };
    Ok((StatusCode::CREATED, location, Json(created)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageParams {
    limit: Option<u64>,
    cursor: Option<String>,
}

#[derive(Serialize)]
struct StreamPage {
    streams: Vec<StateUpdate>,
    cursor: Option<String>,
}

async fn list(State(app): Shared, QueryParams(asked): QueryParams<PageParams>) -> Answer<Json<StreamPage>> {
    let page = app.client.list_streams(limit(asked.limit, MAX_PAGE)?, asked.cursor.as_deref()).await?;
    Ok(Json(StreamPage { streams: page.streams, cursor: page.cursor }))
}

/// How much is asked for at once, in the service's words: nothing said is 0 there.
fn limit(asked: Option<u64>, most: u32) -> Answer<u32> {
    let Some(limit) = asked else { return Ok(0) };
    u32::try_from(limit)
        .ok()
        .filter(|limit| (1..=most).contains(limit))
        .ok_or_else(|| ApiError::invalid(format!("limit must be from 1 to {most}, not {limit}")))
}

/// What a stream was asked to be. `config` may be given to `PUT` as it is.
#[derive(Serialize)]
struct Configured {
    stream_id: String,
    revision: u64,
    config: OrchestratorConfig,
    /// Of this pass, if a scene was adjusted in it.
    scene_duration_ms: Vec<u64>,
    state: StateUpdate,
}

async fn config(State(app): Shared, Params(stream_id): Params<String>) -> Answer<Json<Configured>> {
    let StreamConfig { config, scene_duration_ms, state } = app.client.get_config(&stream_id).await?;
    Ok(Json(Configured { stream_id, revision: state.revision, config, scene_duration_ms, state }))
}

#[derive(Serialize)]
struct Subscribers {
    subscribers: Vec<SubscriberInfo>,
    server_time_ms: u64,
    cursor: Option<String>,
}

async fn subscribers(
    State(app): Shared,
    Params(stream_id): Params<String>,
    QueryParams(asked): QueryParams<PageParams>,
) -> Answer<Json<Subscribers>> {
    let limit = limit(asked.limit, MAX_PAGE)?;
    let page = app.client.list_subscribers(&stream_id, limit, asked.cursor.as_deref()).await?;
    let SubscriberPage { subscribers, server_time_ms, cursor } = page;
    Ok(Json(Subscribers { subscribers, server_time_ms, cursor }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HistoryParams {
    limit: Option<u64>,
    before_revision: Option<u64>,
}

#[derive(Serialize)]
struct History {
    history: Vec<HistoryEntry>,
}

async fn history(
    State(app): Shared,
    Params(stream_id): Params<String>,
    QueryParams(asked): QueryParams<HistoryParams>,
) -> Answer<Json<History>> {
    let limit = limit(asked.limit, MAX_HISTORY)?;
    Ok(Json(History { history: app.client.history(&stream_id, limit, asked.before_revision).await? }))
}

/// The same that a viewer's clock is set by, see `clock`.
#[derive(Serialize)]
struct Time {
    server_time_ms: f64,
    /// By how much it may be wrong, either way; what the way to whoever asks takes comes on top.
    error_ms: f64,
}

/// Estimated, so that however many ask, the service is asked about once in 5 s.
async fn time(State(app): Shared) -> Answer<Json<Time>> {
    let time = app.client.service_time().await?;
    Ok(Json(Time { server_time_ms: time.ms(), error_ms: time.error_ms() }))
}

async fn state(State(app): Shared, Params(stream_id): Params<String>) -> Answer<Json<StateUpdate>> {
    Ok(Json(app.client.get_state(&stream_id).await?))
}

async fn stream_stats(State(app): Shared, Params(stream_id): Params<String>) -> Answer<Json<Stats>> {
    Ok(Json(app.client.stats(Some(&stream_id)).await?))
}

async fn stats(State(app): Shared) -> Answer<Json<Stats>> {
    Ok(Json(app.client.stats(None).await?))
}

/// The answer to a command.
#[derive(Serialize)]
struct Done {
    stream_id: String,
    message: &'static str,
    revision: u64,
    state: Option<StateUpdate>,
}

impl App {
    async fn tell(&self, stream_id: &str, command: Command, conditions: Conditions) -> Answer<Accepted> {
        let Conditions { expected_revision, expected_epoch, expected_scene, request_id, issued_by } = conditions;
        let mut call = self.client.command(stream_id, command).issued_by(issued_by.unwrap_or_default());
        if let Some(request_id) = request_id {
            call = call.request_id(request_id);
        }
        if let Some(revision) = expected_revision {
            call = call.expected_revision(revision);
        }
        if let Some(epoch) = expected_epoch {
            call = call.expected_epoch(epoch);
        }
        if let Some(scene) = expected_scene {
            call = call.expected_scene(scene);
        }
        Ok(call.await?)
    }

    async fn done(
        &self,
        stream_id: &str,
        command: Command,
        conditions: Conditions,
        message: &'static str,
    ) -> Answer<Json<Done>> {
        let Accepted { stream_id, revision, state } = self.tell(stream_id, command, conditions).await?;
        Ok(Json(Done { stream_id, message, revision, state }))
    }
}

/// A command that needs nothing but the stream.
macro_rules! plain_command {
    ($name:ident, $command:expr, $message:literal) => {
        async fn $name(
            State(app): Shared,
            Params(stream_id): Params<String>,
            QueryParams(conditions): QueryParams<Conditions>,
        ) -> Answer<Json<Done>> {
            app.done(&stream_id, $command, conditions, $message).await
        }
    };
}

plain_command!(pause, Command::Pause, "Stream paused");
plain_command!(resume, Command::Resume, "Stream resumed");
plain_command!(stop, Command::Stop, "Stream stopped");
plain_command!(reset, Command::Reset, "Stream reset to its beginning");
plain_command!(skip, Command::SkipScene, "Scene skipped");
plain_command!(previous, Command::PreviousScene, "Back to the previous scene");
plain_command!(remove, Command::Remove, "Stream removed");

async fn start(
    State(app): Shared,
    Params(stream_id): Params<String>,
    QueryParams(conditions): QueryParams<Conditions>,
    OptionalJsonBody(body, _lease): OptionalJsonBody<StreamBody>,
) -> Answer<Json<Done>> {
    let config = body.map(|body| body.config_of(&stream_id)).transpose()?;
    app.done(&stream_id, Command::Start(config), conditions, "Stream started").await
}

async fn force_scene(
    State(app): Shared,
    Params((stream_id, scene_name)): Params<(String, String)>,
    QueryParams(conditions): QueryParams<Conditions>,
) -> Answer<Json<Done>> {
    app.done(&stream_id, Command::ForceScene { scene_name }, conditions, "Scene forced").await
}

async fn seek(
    State(app): Shared,
    Params((stream_id, position)): Params<(String, String)>,
    QueryParams(conditions): QueryParams<Conditions>,
) -> Answer<Json<Done>> {
    let position_ms = number("position_ms", &position, u64::MIN, u64::MAX)?;
    app.done(&stream_id, Command::Seek { position_ms }, conditions, "Position changed").await
}

async fn adjust(
    State(app): Shared,
    Params((stream_id, delta)): Params<(String, String)>,
    QueryParams(conditions): QueryParams<Conditions>,
) -> Answer<Json<Done>> {
    let delta_ms = number("delta_ms", &delta, i64::MIN, i64::MAX)?;
    app.done(&stream_id, Command::AdjustScene { delta_ms }, conditions, "Scene adjusted").await
}

async fn status(
    State(app): Shared,
    Params(stream_id): Params<String>,
    QueryParams(conditions): QueryParams<Conditions>,
    JsonBody(body, _lease): JsonBody<StatusBody>,
) -> Answer<Json<Done>> {
    let StatusBody { is_streaming, stream_time, timecode } = body;
    let command = Command::UpdateStreamStatus { is_streaming, stream_time, timecode };
    app.done(&stream_id, command, conditions, "Stream status updated").await
}

async fn configure(
    State(app): Shared,
    Params(stream_id): Params<String>,
    QueryParams(conditions): QueryParams<Conditions>,
    JsonBody(body, _lease): JsonBody<StreamBody>,
) -> Answer<Json<Done>> {
    let config = body.config_of(&stream_id)?;
    app.done(&stream_id, Command::Reconfigure(config), conditions, "Stream reconfigured").await
}

async fn unknown_route(uri: axum::http::Uri) -> ApiError {
    ApiError::invalid_as(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path()))
}

async fn wrong_method(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    ApiError::invalid_as(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not possible at {}", uri.path()))
}
