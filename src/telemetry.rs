//! Logs and metrics, and the administrator's HTTP address.

mod log;

use std::{
    io::{self, IsTerminal as _},
    net::SocketAddr,
    sync::Arc,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tokio::{net::TcpListener, task::JoinHandle};
use tracing::info;
use tracing_subscriber::EnvFilter;

pub use self::log::Log;
use crate::{
    http::{self, ServerOptions},
    transport::nats::QUIET_LOGS,
};

/// Logs events to `log` as `RUST_LOG` says. All targets of our own are under `orchestrator_service`; without it, they
/// are logged from `info` on, and those of libraries from `warn` on: but for the NATS client's connector, which repeats
/// with each attempt what the transport tells once.
///
/// # Errors
/// When `RUST_LOG` is no filter, or logging was set up before.
pub fn init_logging(log: &Log) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => {
            EnvFilter::try_new(&directives).map_err(|error| format!("RUST_LOG={directives:?} is no filter: {error}"))?
        }
        _ => EnvFilter::new(format!("warn,{QUIET_LOGS},orchestrator_service=info")),
    };
    let colours = io::stderr().is_terminal();
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log.clone()).with_ansi(colours);
    // They would be printed, which panics where standard error is broken.
    format.log_internal_errors(false).try_init()
}

/// Installs the recorder of metrics.
///
/// # Errors
/// When there is one already.
pub fn init_metrics() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new().install_recorder()?;
    describe();
    Ok(handle)
}

fn describe() {
    use metrics::{describe_counter as counter, describe_gauge as gauge};
    counter!("orchestrator_received_total", "Requests received.");
    counter!("orchestrator_refused_total", "Requests refused, by code.");
    counter!("orchestrator_published_total", "State updates handed to the transport.");
    counter!("orchestrator_filtered_total", "State updates handed to the transport for who follows a filter.");
    counter!("orchestrator_republished_total", "Changes published again because the broker may not have had them.");
    counter!(
        "orchestrator_dropped_total",
        "What was dropped, by reason; of changes only those that the broker refuses (denied) or cannot carry \
         (update_too_large)."
    );
    counter!("orchestrator_answers_skipped_total", "Answers to requests that were not those waited for.");
    counter!("orchestrator_streams_created_total", "Streams created.");
    counter!("orchestrator_streams_started_total", "Times that a stream began to play.");
    counter!("orchestrator_streams_stopped_total", "Times that a stream ceased to play.");
    counter!("orchestrator_streams_removed_total", "Streams removed, by reason.");
    counter!("orchestrator_stale_removed_total", "Subscribers removed because they were not heard of.");
    counter!("orchestrator_shard_panics_total", "Shards that lost their streams to a panic.");
    counter!(
        "client_unregisters_given_up_total",
        "Subscribers left to go stale because they could not be unregistered."
    );
    counter!("client_unregisters_forgotten_total", "Unregisterings forgotten because too many waited.");
    counter!("client_updates_skipped_total", "Updates that were not passed on, by reason: old, foreign or impossible.");
    counter!("gateway_late_updates_skipped_total", "Updates that were too old when they came.");
    counter!(
        "gateway_ticks_skipped_total",
        "Ticks that newer ones replaced: for viewers who read too slowly, or where the gateway itself was late."
    );
    counter!("gateway_sockets_dropped_total", "Viewers dropped by the gateway, by reason.");
    counter!("orchestrator_broker_refusals_total", "Refusals by the broker, by what it refused.");
    counter!("orchestrator_publish_denied_total", "Messages that the broker does not permit to be published.");
    counter!("orchestrator_shards_dead_total", "Shards that died and were not replaced.");
    counter!("orchestrator_http_refused_total", "Connections and requests refused by an HTTP server, by reason.");
    counter!("orchestrator_http_cut_total", "Connections that an HTTP server ended, by reason.");
    counter!("orchestrator_http_accept_errors_total", "Connections that could not be accepted.");
    gauge!("orchestrator_subscribers", "Subscribers, active and stale.");
    gauge!("orchestrator_subscribers_active", "Subscribers heard of within the stale timeout.");
    gauge!("orchestrator_subscribers_stale", "Subscribers about to be removed.");
    gauge!("orchestrator_unique_clients", "Clients, each once a stream.");
    gauge!("orchestrator_streams", "Streams.");
    gauge!("orchestrator_streams_running", "Streams that play.");
    gauge!("orchestrator_config_bytes", "What all configurations take, with ids and timecodes, bytes.");
    gauge!("orchestrator_client_bytes", "What client ids that are no UUIDs and IPv6 addresses take, bytes.");
    gauge!("orchestrator_history_bytes", "What is kept of what happened to streams takes, bytes.");
    gauge!("orchestrator_filters", "Filters that are followed, each once a stream.");
    gauge!("orchestrator_filter_bytes", "What filters that are followed take, bytes.");
    gauge!("orchestrator_receive_dropped", "Messages lost because they were not read in time, as far as is known.");
    gauge!("orchestrator_ready", "1 when the service can do its work.");
    gauge!("orchestrator_mailbox_messages", "Messages that wait, by shard.");
    gauge!("gateway_sockets", "WebSockets that are open.");
}

/// What the administrator's pages ask.
pub trait HealthCheck: Send + Sync + 'static {
    /// Whether the process can do its work.
    ///
    /// # Errors
    /// Why not.
    fn ready(&self) -> Result<(), String>;

    /// Brings the gauges up to date.
    fn record_gauges(&self);
}

struct Admin {
    metrics: PrometheusHandle,
    health: Box<dyn HealthCheck>,
}

/// Serves `/livez`, `/readyz` and `/metrics` until the task is aborted. They have connections of their own, so that they are
/// reached when the gateway's are all taken.
///
/// # Errors
/// When the address cannot be had.
pub async fn serve_admin(
    address: SocketAddr,
    metrics: PrometheusHandle,
    health: impl HealthCheck,
    options: ServerOptions,
) -> io::Result<JoinHandle<()>> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on --admin-addr {address}: {error}")))?;
    let router = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(Arc::new(Admin { metrics, health: Box::new(health) }));
    info!("http://{} serves /livez, /readyz and /metrics", listener.local_addr()?);
    Ok(tokio::spawn(async move {
        if let Err(error) = http::serve(listener, router, options, std::future::pending()).await {
            tracing::error!(%error, "admin address failed");
        }
    }))
}

async fn readyz(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    match admin.health.ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

async fn render(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    admin.health.record_gauges();
    admin.metrics.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.metrics.render())
}
