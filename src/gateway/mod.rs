//! REST, WebSocket and a page, for people and programs that speak HTTP: a client of the service among others.
//!
//! It knows the [client](crate::client) only: not where the service runs, and nothing of NATS. It keeps no streams;
//! what it has of its own are connections, and for each stream that somebody watches one subscription
//! (`hub`) whose updates are encoded once for all its sockets (`latest`).
//!
//! | file | holds |
//! |---|---|
//! | `routes` | REST: which path calls what, and the answers |
//! | `bodies` | what a request's body may say |
//! | `extract` | reading a request so that whatever is wrong with it is answered in JSON |
//! | `error` | the error's form, and which code is which status |
//! | `handshake` | how a WebSocket is asked for, and the answer |
//! | `socket` | one viewer's WebSocket from then to the end |
//! | `end` | why it ends, and what the viewer is told |
//! | `line` | its frames, on tungstenite |
//! | `outlet` | what is written to it, and by whom: by the fanout, or by its own task where that has to wait |
//! | `pace` | how far a viewer may be behind: what is in the kernels' buffers is bounded by its pongs |
//! | `lag` | how late this gateway is itself |
//! | `talk` | how much a viewer may say |
//! | `clock` | what a viewer's clock is set by |
//! | `freshness` | which updates were held up on their way |
//! | `hub` | one subscription to a stream's updates for all its sockets |
//! | `fanout` | writing an update to all of them |
//! | `latest` | the last updates of a stream, and how far a socket has read |
//!
//! Connections are [`http`]'s. There is no authentication here: put a proxy in front of it before it faces strangers.

use std::{future::Future, io, sync::Arc, time::Duration};

use axum::Router;
use tokio::{net::TcpListener, sync::watch};

use self::hub::Hub;
pub use self::talk::TalkLimits;
use crate::{
    client::{Client, proto::OrchestratorConfig},
    http::{self, ServerOptions},
};

mod bodies;
mod clock;
mod end;
mod error;
mod extract;
mod fanout;
mod freshness;
mod handshake;
mod hub;
mod lag;
mod latest;
mod line;
mod outlet;
mod pace;
mod routes;
mod socket;
mod talk;

/// How the gateway treats connections. The defaults fit viewers on the open internet.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// Its connections.
    pub http: ServerOptions,
    /// The largest request body, bytes.
    pub max_body_bytes: usize,
    /// The largest message taken from a viewer, bytes. What it says is ignored anyway.
    pub max_viewer_message_bytes: usize,
    /// How much a viewer may say.
    pub talk: TalkLimits,
    /// How often a viewer is pinged.
    pub ping_interval: Duration,
    /// A viewer that says nothing for so long, not even a pong, is gone.
    pub vanished_after: Duration,
    /// How long a viewer may take to accept one message.
    pub write_timeout: Duration,
    /// How long a viewer is kept whose stream the service does not know any more.
    pub lost_after: Duration,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            http: ServerOptions::default(),
            max_body_bytes: 1 << 20,
            max_viewer_message_bytes: 4 << 10,
            talk: TalkLimits::default(),
            ping_interval: Duration::from_secs(10),
            vanished_after: Duration::from_secs(20),
            write_timeout: Duration::from_secs(5),
            lost_after: Duration::from_secs(60),
        }
    }
}

/// Reads the body of `POST /streams` as the gateway does: for a tool that checks a configuration before it sends it.
///
/// # Errors
/// Says what is wrong with which field.
pub fn parse_stream_body(body: &[u8]) -> Result<OrchestratorConfig, String> {
    let parsed = extract::parse::<bodies::StreamBody>(body);
    parsed.map(bodies::StreamBody::into_config).map_err(|error| error.message().to_owned())
}

/// What all requests share.
#[derive(Debug)]
struct App {
    client: Client,
    hub: Hub,
    options: GatewayOptions,
    /// True once the gateway is ending: then the hub closes all sockets.
    is_ending: watch::Sender<bool>,
}

/// The gateway: routes over a client of the service.
#[derive(Debug, Clone)]
pub struct Gateway {
    app: Arc<App>,
}

impl Gateway {
    /// A gateway that calls the service through `client`.
    #[must_use]
    pub fn new(client: Client, options: GatewayOptions) -> Self {
        let is_ending = watch::Sender::new(false);
        let hub = Hub::new(client.clone(), is_ending.subscribe(), options.write_timeout);
        Self { app: Arc::new(App { client, hub, options, is_ending }) }
    }

    /// How many streams are watched here, each once a filter: for each, there is one subscription.
    #[must_use]
    pub fn watched_streams(&self) -> usize {
        self.app.hub.len()
    }

    /// The routes, to serve them as part of something else. They take the viewer's address from
    /// `ConnectInfo<SocketAddr>` where it is present. Which hosts and origins may ask is for the server to see to.
    pub fn router(&self) -> Router {
        routes::router(Arc::clone(&self.app))
    }

    /// Serves `listener` until `shutdown` resolves, then ends what is open within [`ServerOptions::shutdown_timeout`],
    /// closes sockets with code 1001 and unregisters their viewers.
    ///
    /// # Errors
    /// When the listener has no address.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()> + Send) -> io::Result<()> {
        let app = &self.app;
        let shutdown = async {
            shutdown.await;
            app.is_ending.send_replace(true);
        };
        http::serve(listener, self.router(), app.options.http.clone(), shutdown).await?;
        app.client.close().await;
        Ok(())
    }
}
