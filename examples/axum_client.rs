//! A gateway of one's own: an Axum server on the client library, over NATS. It answers the README's session with curl.
//!
//!     cargo run --release -- serve                      # the service, next to a nats-server
//!     cargo run --release --example axum_client         # this, on http://localhost:3000
//!
//! `NATS_URL` says where NATS is, `ORCH_HTTP_ADDR` where to listen. Each viewer has a subscription of its own here; the
//! gateway in `src/gateway` shares one among all viewers of a stream, and bounds what strangers may do.

use std::{env, error::Error, net::SocketAddr};

use axum::{
    Json, Router,
    extract::{
        ConnectInfo, Path, State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use orchestrator_service::{
    client::{
        Client, ClientError, ClientOptions, Command, Registration, UpdateStream,
        proto::{Code, OrchestratorConfig, SceneConfig, StateUpdate},
    },
    transport::nats::{NatsOptions, NatsTransport},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use uuid::Uuid;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let set = |name, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    let nats = NatsOptions::new(set("NATS_URL", "nats://localhost:4222"), "axum-client");
    let client = Client::new(NatsTransport::connect(nats).await?, ClientOptions::default());

    let app = Router::new()
        .route("/streams", post(create).get(list))
        .route("/streams/{stream_id}/{command}", post(command))
        .route("/streams/{stream_id}/scene/{scene_name}", post(force_scene))
        .route("/streams/{stream_id}/ws", get(watch))
        .with_state(client.clone())
        .into_make_service_with_connect_info::<SocketAddr>();
    let listener = TcpListener::bind(set("ORCH_HTTP_ADDR", "127.0.0.1:3000")).await?;
    eprintln!("http://{} serves REST and WebSockets", listener.local_addr()?);
    tokio::select! {
        result = axum::serve(listener, app) => result?,
        result = tokio::signal::ctrl_c() => result?,
    }
    // Viewers that are still there are unregistered now, not when they go stale.
    client.close().await;
    Ok(())
}

#[derive(Deserialize)]
struct NewStream {
    stream_id: Option<String>,
    scenes: Vec<Scene>,
    tick_interval_ms: Option<u64>,
    #[serde(default)]
    loop_scenes: bool,
}

#[derive(Deserialize)]
struct Scene {
    name: String,
    duration_ms: u64,
}

async fn create(State(client): State<Client>, Json(new): Json<NewStream>) -> Result<Response, Failure> {
    let scenes = new.scenes.into_iter().map(|Scene { name, duration_ms }| SceneConfig {
        name,
        duration_ms,
        ..Default::default()
    });
    let config = OrchestratorConfig {
        scenes: scenes.collect(),
        tick_interval_ms: new.tick_interval_ms,
        loop_scenes: new.loop_scenes,
        ..OrchestratorConfig::default()
    };
    let stream_id = new.stream_id.unwrap_or_else(|| Uuid::new_v4().to_string());
    client.start(&stream_id, config).await?;
    let answer = json!({"stream_id": stream_id, "message": "Stream created successfully"});
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// The first streams; `list_streams` takes the page's cursor for those behind them.
async fn list(State(client): State<Client>) -> Result<Json<Value>, Failure> {
    let page = client.list_streams(0, None).await?;
    Ok(Json(json!({"streams": page.streams, "cursor": page.cursor})))
}

async fn command(State(client): State<Client>, Path((id, name)): Path<(String, String)>) -> Result<Response, Failure> {
    let command = match &*name {
        "pause" => Command::Pause,
        "resume" => Command::Resume,
        "skip" => Command::SkipScene,
        "stop" => Command::Stop,
        _ => return Ok(StatusCode::NOT_FOUND.into_response()),
    };
    Ok(Json(client.command(&id, command).await?.state).into_response())
}

async fn force_scene(
    State(client): State<Client>,
    Path((stream_id, scene_name)): Path<(String, String)>,
) -> Result<Json<Option<StateUpdate>>, Failure> {
    Ok(Json(client.force_scene(&stream_id, scene_name).await?.state))
}

/// Registers a viewer for as long as the socket is open, and sends the state at once and whenever it changes.
async fn watch(
    State(client): State<Client>,
    Path(stream_id): Path<String>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Failure> {
    // Subscribe before registering: nothing falls between the snapshot and the first update.
    let mut updates = client.updates(&stream_id).await?;
    let (client_id, session) = (format!("viewer-{peer}"), client.random_session());
    let viewer = client.register(&stream_id, &client_id, Some(peer), session).await?;
    updates.seed(viewer.state());
    Ok(upgrade.on_upgrade(|socket| send_updates(socket, updates, viewer)))
}

/// The registration is dropped at the end, which unregisters the viewer.
async fn send_updates(mut socket: WebSocket, mut updates: UpdateStream, viewer: Registration) {
    let mut next = Some(viewer.state().clone());
    while let Some(update) = next {
        let Ok(text) = serde_json::to_string(&update) else { return };
        if socket.send(Message::Text(text.into())).await.is_err() {
            return;
        }
        next = loop {
            tokio::select! {
                update = updates.next() => break update,
                // What viewers say is of no interest, but that they leave.
                message = socket.recv() => if !matches!(message, Some(Ok(_))) { return },
            }
        };
    }
}

/// What the service or the client refused, as a status and words.
struct Failure(ClientError);

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.0.code() {
            Code::StreamNotFound | Code::SceneNotFound => StatusCode::NOT_FOUND,
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::CONFLICT,
        };
        (status, Json(json!({"code": self.0.code().as_str_name(), "message": self.0.message()}))).into_response()
    }
}
