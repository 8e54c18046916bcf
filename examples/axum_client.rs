//! A gateway of one's own: an Axum server on the client library, over NATS.
//!
//!     cargo run --release -- serve                      # the service, next to a nats-server
//!     cargo run --release --example axum_client         # this, on http://127.0.0.1:3001
//!
//!     curl -X POST http://127.0.0.1:3001/shows/demo     # creates the stream "demo"
//!     curl -N http://127.0.0.1:3001/shows/demo/events   # watches it: it plays while somebody does
//!     curl -X POST http://127.0.0.1:3001/shows/demo/skip
//!
//! It sends updates as server-sent events, one subscription for each viewer. The gateway in `src/gateway` does the same
//! over WebSockets, and shares one subscription among all viewers of a stream.

use std::{convert::Infallible, env, error::Error, net::SocketAddr};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Path, State},
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures_util::{Stream, StreamExt as _, stream};
use orchestrator_service::{
    client::{
        Client, ClientError, ClientOptions, Command,
        proto::{Code, OrchestratorConfig, SceneConfig, StateUpdate},
    },
    transport::nats::{NatsOptions, NatsTransport},
};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("NATS_URL").unwrap_or_else(|_| "nats://localhost:4222".into());
    let transport = NatsTransport::connect(NatsOptions::new(url, "axum-client")).await?;
    let client = Client::new(transport, ClientOptions::default());

    let app = Router::new()
        .route("/shows/{show}", post(create))
        .route("/shows/{show}/skip", post(skip))
        .route("/shows/{show}/events", get(events))
        .with_state(client.clone())
        .into_make_service_with_connect_info::<SocketAddr>();
    let listener = TcpListener::bind("127.0.0.1:3001").await?;
    println!("listening on http://{}", listener.local_addr()?);
    tokio::select! {
        result = axum::serve(listener, app) => result?,
        result = tokio::signal::ctrl_c() => result?,
    }
    // Viewers that are still there are unregistered now, not when they go stale.
    client.close().await;
    Ok(())
}

async fn create(State(client): State<Client>, Path(show): Path<String>) -> Result<StatusCode, Failure> {
    let scenes = [("Intro", 3_000), ("Main", 10_000), ("Outro", 2_000)]
        .map(|(name, duration_ms)| SceneConfig { name: name.into(), duration_ms });
    let config = OrchestratorConfig { scenes: scenes.into(), loop_scenes: true, ..OrchestratorConfig::default() };
    client.start(&show, config).await?;
    Ok(StatusCode::CREATED)
}

/// One of the commands; `client.command` takes any of them.
async fn skip(State(client): State<Client>, Path(show): Path<String>) -> Result<Json<u64>, Failure> {
    let accepted = client.command(&show, Command::SkipScene).await?;
    Ok(Json(accepted.revision))
}

/// Registers the viewer for as long as it reads, and sends the state at once and whenever it changes.
async fn events(
    State(client): State<Client>,
    Path(show): Path<String>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    // Subscribe before registering: nothing falls between the snapshot and the first update.
    let mut updates = client.updates(&show).await?;
    let viewer = client.register(&show, &format!("viewer-{peer}"), Some(peer), client.random_session()).await?;
    let snapshot = viewer.state().clone();
    updates.seed(&snapshot);

    // The registration moves into the stream of events and is dropped with it, which unregisters the viewer.
    let events = stream::iter([snapshot]).chain(updates).map(move |update| {
        let _registered = &viewer;
        Ok(event(&update))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

fn event(update: &StateUpdate) -> Event {
    Event::default().json_data(update).unwrap_or_else(|error| Event::default().comment(error.to_string()))
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
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::CONFLICT,
        };
        (status, self.0.to_string()).into_response()
    }
}
