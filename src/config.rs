//! Options and environment: what an operator can set, and what it means for the parts.

use std::{fmt, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, builder::PossibleValue};

use crate::{
    client::{ClientOptions, UpdatesFrom},
    engine::{Limits, MAX_DURATION_MS, MAX_SLOTS},
    gateway::{GatewayOptions, TalkLimits},
    http::{AllowList, HostPattern, OriginPattern, ServerOptions},
    service::ServiceSettings,
    shard::{publish_queue::PublishTo, record::Recorder, router::MAX_SHARDS},
    wire::WireLimits,
};

/// Plays timelines of scenes for thousands of live streams, each only while somebody watches.
#[derive(Debug, Parser)]
#[command(version, about, subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to run; `serve` if nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options of `serve`.
    #[command(flatten)]
    pub serve: ServeOptions,
}

/// What to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the service over NATS (the default).
    Serve(ServeOptions),
    /// Run the gateway over NATS: REST, WebSockets and the page.
    Gateway(GatewayCommand),
    /// Run service and gateway in one process; no NATS needed.
    Standalone(StandaloneOptions),
    /// Run a recording made with --record again, and print the digest of each shard's final state.
    Replay {
        /// The recording.
        file: PathBuf,
    },
}

/// Options of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeOptions {
    /// Where NATS is.
    #[command(flatten)]
    pub nats: NatsArgs,
    /// Where `/livez`, `/readyz` and `/metrics` are.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Connections of all HTTP servers.
    #[command(flatten)]
    pub http: HttpArgs,
    /// The service.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Options of `gateway`.
#[derive(Debug, Clone, Args)]
pub struct GatewayCommand {
    /// Where NATS is.
    #[command(flatten)]
    pub nats: NatsArgs,
    /// Where /livez, /readyz and /metrics are served: not where the service has them, so that both fit on one machine.
    #[arg(long, env = "ORCH_ADMIN_ADDR", default_value = "127.0.0.1:9465", value_name = "ADDR")]
    pub admin_addr: SocketAddr,
    /// Connections of all HTTP servers.
    #[command(flatten)]
    pub http: HttpArgs,
    /// Where updates are read: `feed` if the service publishes nothing else.
    #[arg(long, env = "ORCH_UPDATES", value_enum, default_value_t, value_name = "WHERE")]
    pub updates: UpdatesFrom,
    /// The gateway.
    #[command(flatten)]
    pub gateway: GatewayArgs,
}

impl GatewayCommand {
    /// What the gateway's client is made with.
    #[must_use]
    pub fn client(&self) -> ClientOptions {
        ClientOptions { updates: self.updates, ..self.gateway.client() }
    }
}

/// Options of `standalone`.
#[derive(Debug, Clone, Args)]
pub struct StandaloneOptions {
    /// Where `/livez`, `/readyz` and `/metrics` are.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Connections of all HTTP servers.
    #[command(flatten)]
    pub http: HttpArgs,
    /// The service.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// The gateway.
    #[command(flatten)]
    pub gateway: GatewayArgs,
}

/// Where NATS is.
#[derive(Clone, Args)]
pub struct NatsArgs {
    /// One server or several with commas between; `tls://` and `user:password@` are understood. All are sent the same
    /// login, so URLs with different ones are refused.
    #[arg(long, env = "NATS_URL", hide_env_values = true, default_value = "nats://localhost:4222", value_name = "URL")]
    pub nats_url: String,
    /// A `.creds` file.
    #[arg(long, env = "NATS_CREDS", value_name = "FILE")]
    pub nats_creds: Option<PathBuf>,
}

impl fmt::Debug for NatsArgs {
    /// Without the URL, which may hold a password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("NatsArgs").field("nats_creds", &self.nats_creds).finish_non_exhaustive()
    }
}

impl StandaloneOptions {
    /// What the gateway's client is made with: it heartbeats often enough for the service beside it, and reads what
    /// that publishes.
    ///
    /// # Errors
    /// When it is told to heartbeat more seldom than that.
    pub fn client(&self) -> Result<ClientOptions, String> {
        let (client, stale) = (self.gateway.client(), self.service.stale_timeout);
        let most = Duration::from_millis(ms(stale / 3));
        let heartbeat_interval = match self.gateway.heartbeat_interval {
            Some(told) if told > most => {
                let [told, stale, most] = [told, stale, most].map(humantime::format_duration);
                return Err(format!("--heartbeat-interval {told} is over {most}, a third of --stale-timeout {stale}"));
            }
            Some(told) => told,
            None => client.heartbeat_interval.min(most),
        };
        let updates = match self.service.publish {
            PublishTo::Subjects | PublishTo::Both => UpdatesFrom::Subjects,
            PublishTo::Feed => UpdatesFrom::Feed,
        };
        Ok(ClientOptions { heartbeat_interval, updates, ..client })
    }
}

/// The administrator's address.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "ORCH_ADMIN_ADDR", default_value = "127.0.0.1:9464", value_name = "ADDR")]
    pub admin_addr: SocketAddr,
}

/// What the gateway's port and the administrator's have in common.
#[derive(Debug, Clone, Args)]
pub struct HttpArgs {
    /// Hosts that the HTTP servers are asked for by, besides loopback names and addresses and the address connected to:
    /// gateway.example (any port), gateway.example:8080, *.example, an address, or * for all.
    #[arg(long, env = "ORCH_ALLOWED_HOSTS", value_delimiter = ',', value_name = "HOSTS")]
    pub allowed_hosts: Vec<HostPattern>,
    /// Origins whose pages may ask and read the answers, besides the HTTP servers' own: `https://studio.example`, or * for
    /// all.
    #[arg(long, env = "ORCH_ALLOWED_ORIGINS", value_delimiter = ',', value_name = "ORIGINS")]
    pub allowed_origins: Vec<OriginPattern>,
    /// How long a request's head may take.
    #[arg(long, env = "ORCH_HEAD_TIMEOUT", default_value = "10s", value_parser = io_timeout, value_name = "TIME")]
    pub head_timeout: Duration,
    /// How long a request's body may take.
    #[arg(long, env = "ORCH_BODY_TIMEOUT", default_value = "10s", value_parser = io_timeout, value_name = "TIME")]
    pub body_timeout: Duration,
    /// How long a peer may take to accept 64 KiB of an answer, or the rest of it.
    #[arg(long, env = "ORCH_WRITE_TIMEOUT", default_value = "10s", value_parser = io_timeout, value_name = "TIME")]
    pub write_timeout: Duration,
    /// How long a connection is kept without a request: longer than a load balancer in front keeps it.
    #[arg(long, env = "ORCH_KEEP_ALIVE", default_value = "75s", value_parser = io_timeout, value_name = "TIME")]
    pub keep_alive: Duration,
    /// Most connections at once of the administrator's address.
    #[arg(long, env = "ORCH_ADMIN_MAX_CONNECTIONS", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    pub admin_max_connections: u32,
}

impl HttpArgs {
    /// What the administrator's server is made with.
    #[must_use]
    pub fn admin(&self) -> ServerOptions {
        ServerOptions {
            name: "admin",
            max_connections: self.admin_max_connections,
            max_buffered_bytes: 16 << 20,
            ..self.server()
        }
    }

    fn server(&self) -> ServerOptions {
        ServerOptions {
            head_timeout: self.head_timeout,
            body_timeout: self.body_timeout,
            write_timeout: self.write_timeout,
            idle_timeout: self.keep_alive,
            allowed: AllowList { hosts: self.allowed_hosts.clone(), origins: self.allowed_origins.clone() },
            ..ServerOptions::default()
        }
    }
}

/// The gateway's options.
#[derive(Debug, Clone, Args)]
pub struct GatewayArgs {
    /// Where REST, WebSockets and the page are served.
    #[arg(long, env = "ORCH_HTTP_ADDR", default_value = "127.0.0.1:3000", value_name = "ADDR")]
    pub http_addr: SocketAddr,
    /// How often the gateway says that a viewer is still there: at most a third of the service's --stale-timeout. If
    /// nothing is said it is 30s, and beside a service in the same process less if that has a shorter stale timeout.
    #[arg(long, env = "ORCH_HEARTBEAT_INTERVAL", value_parser = timeout, value_name = "TIME")]
    pub heartbeat_interval: Option<Duration>,
    /// Most connections at once, WebSockets included.
    #[arg(long, env = "ORCH_MAX_CONNECTIONS", default_value_t = ServerOptions::default().max_connections,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000), value_name = "N")]
    pub max_connections: u32,
    /// Most connections at once of one address (of IPv6, of a /64): half of all if nothing is said. Give as many as in all
    /// behind a proxy, whose address all of them have.
    #[arg(long, env = "ORCH_MAX_CONNECTIONS_PER_ADDRESS",
          value_parser = clap::value_parser!(u32).range(1..=10_000_000), value_name = "N")]
    pub max_connections_per_address: Option<u32>,
    /// Most bytes of bodies and answers that are kept at once, for all connections together.
    #[arg(long, env = "ORCH_MAX_BUFFERED_BYTES", default_value_t = ServerOptions::default().max_buffered_bytes as u64,
          value_parser = clap::value_parser!(u64).range(4 << 20..=64 << 30), value_name = "BYTES")]
    pub max_buffered_bytes: u64,
    /// Largest message taken from a viewer, bytes. What viewers say is ignored, but for questions for the time.
    #[arg(long, env = "ORCH_MAX_VIEWER_MESSAGE_BYTES",
          default_value_t = GatewayOptions::default().max_viewer_message_bytes as u32,
          value_parser = clap::value_parser!(u32).range(125..=1 << 20), value_name = "BYTES")]
    pub max_viewer_message_bytes: u32,
    /// How often a viewer is pinged.
    #[arg(long, env = "ORCH_PING_INTERVAL", default_value = "10s", value_parser = io_timeout, value_name = "TIME")]
    pub ping_interval: Duration,
    /// A viewer that says nothing for so long, not even a pong, is given up; never before twice --ping-interval.
    #[arg(long, env = "ORCH_VANISHED_AFTER", default_value = "20s", value_parser = io_timeout, value_name = "TIME")]
    pub vanished_after: Duration,
    /// Bytes that a viewer may say in a second, on average.
    #[arg(long, env = "ORCH_VIEWER_BYTES_PER_SECOND", default_value_t = TalkLimits::default().bytes_per_second,
          value_parser = clap::value_parser!(u32).range(256..=100 << 20), value_name = "BYTES")]
    pub viewer_bytes_per_second: u32,
    /// Messages that a viewer may say in a second, on average.
    #[arg(long, env = "ORCH_VIEWER_MESSAGES_PER_SECOND", default_value_t = TalkLimits::default().messages_per_second,
          value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    pub viewer_messages_per_second: u32,
}

impl GatewayArgs {
    /// What the gateway is made with.
    #[must_use]
    pub fn options(&self, http: &HttpArgs) -> GatewayOptions {
        let http = ServerOptions {
            max_connections: self.max_connections,
            max_connections_per_address: self.max_connections_per_address,
            max_buffered_bytes: usize::try_from(self.max_buffered_bytes).unwrap_or(usize::MAX),
            ..http.server()
        };
        GatewayOptions {
            http,
            max_viewer_message_bytes: self.max_viewer_message_bytes as usize,
            ping_interval: self.ping_interval,
            // A pong has to have time to come.
            vanished_after: self.vanished_after.max(self.ping_interval * 2),
            talk: TalkLimits {
                bytes_per_second: self.viewer_bytes_per_second,
                messages_per_second: self.viewer_messages_per_second,
            },
            ..GatewayOptions::default()
        }
    }

    /// What the gateway's client is made with.
    #[must_use]
    pub fn client(&self) -> ClientOptions {
        let default = ClientOptions::default();
        ClientOptions {
            heartbeat_interval: self.heartbeat_interval.unwrap_or(default.heartbeat_interval),
            // Whoever calls REST hears within a second that there is no service, as `/readyz` says too. Not at once: when
            // the broker was away, the service's connection may come back a moment after the gateway's.
            absent_timeout: Duration::from_millis(750),
            ..default
        }
    }
}

/// The service's options.
#[derive(Debug, Clone, Args)]
pub struct ServiceArgs {
    /// Shard threads; one a core if nothing is said.
    #[arg(long, env = "ORCH_SHARDS", value_parser = clap::value_parser!(u16).range(1..=MAX_SHARDS as i64), value_name = "N")]
    pub shards: Option<u16>,
    /// A subscriber not heard of for that long is removed, such as 90s; at least 1s.
    #[arg(long, env = "ORCH_STALE_TIMEOUT", default_value = "90s", value_parser = stale_timeout, value_name = "TIME")]
    pub stale_timeout: Duration,
    /// A stream that nobody watches for that long is removed, unless its config says otherwise.
    #[arg(long, env = "ORCH_IDLE_TIMEOUT", default_value = "60s", value_parser = timeout, value_name = "TIME")]
    pub idle_timeout: Duration,
    /// Longest idle timeout that a stream may ask for: for so long it is kept for nobody.
    #[arg(long, env = "ORCH_MAX_IDLE_TIMEOUT", default_value = "24h", value_parser = timeout, value_name = "TIME")]
    pub max_idle_timeout: Duration,
    /// Which subjects carry the updates: one a stream, one a partition, or both.
    #[arg(long, env = "ORCH_PUBLISH", value_enum, default_value_t, value_name = "WHERE")]
    pub publish: PublishTo,
    /// Most streams.
    #[arg(long, env = "ORCH_MAX_STREAMS", default_value_t = Limits::default().max_streams,
          value_parser = clap::value_parser!(u64).range(1..=MAX_SLOTS), value_name = "N")]
    pub max_streams: u64,
    /// Most subscribers.
    #[arg(long, env = "ORCH_MAX_SUBSCRIBERS", default_value_t = Limits::default().max_subscribers,
          value_parser = clap::value_parser!(u64).range(1..=MAX_SLOTS), value_name = "N")]
    pub max_subscribers: u64,
    /// Most that all configurations may take, with ids and timecodes, bytes.
    #[arg(long, env = "ORCH_MAX_CONFIG_BYTES", default_value_t = Limits::default().max_config_bytes,
          value_parser = clap::value_parser!(u64).range(1..=1 << 50), value_name = "BYTES")]
    pub max_config_bytes: u64,
    /// Most that client ids that are no UUIDs and IPv6 addresses may take, bytes.
    #[arg(long, env = "ORCH_MAX_CLIENT_BYTES", default_value_t = Limits::default().max_client_bytes,
          value_parser = clap::value_parser!(u64).range(1..=1 << 50), value_name = "BYTES")]
    pub max_client_bytes: u64,
    /// Most filters that are followed.
    #[arg(long, env = "ORCH_MAX_FILTERS", default_value_t = Limits::default().max_filters,
          value_parser = clap::value_parser!(u64).range(0..=MAX_SLOTS), value_name = "N")]
    pub max_filters: u64,
    /// Most that all filters that are followed may take, bytes.
    #[arg(long, env = "ORCH_MAX_FILTER_BYTES", default_value_t = Limits::default().max_filter_bytes,
          value_parser = clap::value_parser!(u64).range(0..=1 << 50), value_name = "BYTES")]
    pub max_filter_bytes: u64,
    /// Most that what happened to streams may take, bytes: beyond it the oldest is forgotten.
    #[arg(long, env = "ORCH_MAX_HISTORY_BYTES", default_value_t = Limits::default().max_history_bytes,
          value_parser = clap::value_parser!(u64).range(0..=1 << 50), value_name = "BYTES")]
    pub max_history_bytes: u64,
    /// Most sessions of one client on one stream.
    #[arg(long, env = "ORCH_MAX_SESSIONS", default_value_t = Limits::default().max_sessions_per_client,
          value_parser = clap::value_parser!(u32).range(1..=65_536), value_name = "N")]
    pub max_sessions: u32,
    /// Most scenes of a stream.
    #[arg(long, env = "ORCH_MAX_SCENES", default_value_t = Limits::default().max_scenes as u32,
          value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    pub max_scenes: u32,
    /// Largest message that is taken, bytes.
    #[arg(long, env = "ORCH_MAX_MESSAGE_BYTES", default_value_t = WireLimits::default().max_message_bytes as u32,
          value_parser = clap::value_parser!(u32).range(1_024..=67_108_864), value_name = "BYTES")]
    pub max_message_bytes: u32,
    /// Shortest tick interval that a stream may ask for.
    #[arg(long, env = "ORCH_MIN_TICK_INTERVAL", default_value = "10ms", value_parser = timeout, value_name = "TIME")]
    pub min_tick_interval: Duration,
    /// Longest tick interval that a stream may ask for.
    #[arg(long, env = "ORCH_MAX_TICK_INTERVAL", default_value = "60s", value_parser = timeout, value_name = "TIME")]
    pub max_tick_interval: Duration,
    /// Answers kept for repeated request ids, of each shard.
    #[arg(long, env = "ORCH_MAX_REMEMBERED_REQUESTS", default_value_t = Limits::default().max_remembered_requests as u32,
          value_parser = clap::value_parser!(u32).range(0..=10_000_000), value_name = "N")]
    pub max_remembered_requests: u32,
    /// Write down all that the engines are fed, for `replay`. The file must not exist.
    #[arg(long, env = "ORCH_RECORD", value_name = "FILE")]
    pub record: Option<PathBuf>,
}

impl ServiceArgs {
    /// What the service is made with.
    ///
    /// # Errors
    /// Says which options contradict each other, or that the recording cannot be begun.
    pub fn settings(&self) -> Result<ServiceSettings, String> {
        if self.min_tick_interval > self.max_tick_interval {
            let (least, most) = (self.min_tick_interval, self.max_tick_interval);
            return Err(format!("--min-tick-interval {least:?} is longer than --max-tick-interval {most:?}"));
        }
        if self.idle_timeout > self.max_idle_timeout {
            let [idle, most] = [self.idle_timeout, self.max_idle_timeout].map(humantime::format_duration);
            return Err(format!("--idle-timeout {idle} is longer than --max-idle-timeout {most}"));
        }
        let default = ServiceSettings::default();
        let engine = Limits {
            max_scenes: self.max_scenes as usize,
            min_tick_interval_ms: ms(self.min_tick_interval),
            max_tick_interval_ms: ms(self.max_tick_interval),
            idle_timeout_ms: ms(self.idle_timeout),
            max_idle_timeout_ms: ms(self.max_idle_timeout),
            max_config_bytes: self.max_config_bytes,
            max_client_bytes: self.max_client_bytes,
            max_filters: self.max_filters,
            max_filter_bytes: self.max_filter_bytes,
            max_history_bytes: self.max_history_bytes,
            max_streams: self.max_streams,
            max_subscribers: self.max_subscribers,
            max_sessions_per_client: self.max_sessions,
            max_remembered_requests: self.max_remembered_requests as usize,
            ..default.limits.engine
        };
        let limits = WireLimits { max_message_bytes: self.max_message_bytes as usize, engine, ..default.limits };
        let recorder = match &self.record {
            Some(file) => match Recorder::create(file, limits.clone()) {
                Ok(recorder) => Some(Arc::new(recorder)),
                Err(error) => return Err(format!("--record {}: {error}", file.display())),
            },
            None => None,
        };
        Ok(ServiceSettings {
            shards: self.shards.map_or(default.shards, usize::from),
            stale_after_ms: ms(self.stale_timeout),
            limits,
            publish_to: self.publish,
            publish_limits: default.publish_limits,
            presence_interval: default.presence_interval,
            seed: default.seed,
            recorder,
        })
    }
}

/// A time as `90s`, `1m 30s` or `100ms`, of at least a millisecond.
fn timeout(text: &str) -> Result<Duration, String> {
    timeout_from(Duration::from_millis(1), text)
}

/// The same, of at least a second. A stale subscriber is removed within a second, so a shorter time would promise more
/// than is kept; and a third of it has to suffice for a heartbeat that is late, or lost and sent again.
fn stale_timeout(text: &str) -> Result<Duration, String> {
    timeout_from(Duration::from_secs(1), text)
}

/// How long a peer may take for something: from 100ms, which the fastest may need, to an hour.
fn io_timeout(text: &str) -> Result<Duration, String> {
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(3_600));
    let time = timeout(text)?;
    if (least..=most).contains(&time) { Ok(time) } else { Err("must be 100ms to 1h".to_owned()) }
}

fn timeout_from(least: Duration, text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| format!("{error}; try 90s or 500ms"))?;
    let most = Duration::from_millis(MAX_DURATION_MS);
    if (least..=most).contains(&time) {
        return Ok(time);
    }
    Err(format!("must be {} to 365days", humantime::format_duration(least)))
}

/// Whole milliseconds; [`timeout`] has seen to it that they fit.
fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(MAX_DURATION_MS)
}

/// Implemented here, so that only this part knows how options are read.
impl ValueEnum for PublishTo {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Subjects, Self::Feed, Self::Both]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Subjects => PossibleValue::new("subjects").help("`stream.<stream_id>.updates`: a subject a stream"),
            Self::Feed => {
                PossibleValue::new("feed").help("`orchestrator.feed.<partition>`: many streams' updates in one message")
            }
            Self::Both => PossibleValue::new("both").help("Both"),
        })
    }
}

impl ValueEnum for UpdatesFrom {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Subjects, Self::Feed]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Subjects => PossibleValue::new("subjects")
                .help("`stream.<stream_id>.updates`: a subject a stream, and the broker sends only what is followed"),
            Self::Feed => PossibleValue::new("feed").help(
                "`orchestrator.feed.<partition>`: all streams of a partition in one subscription, many updates in one \
                 message",
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_options_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_what_runs_without_a_subcommand() {
        let cli = Cli::try_parse_from(["orchestrator_service", "--shards", "3"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.serve.service.settings().unwrap().shards, 3);
    }

    #[test]
    fn times_are_read_with_their_units_and_kept_within_bounds() {
        assert_eq!(timeout("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(timeout("1ms"), Ok(Duration::from_millis(1)));
        for bad in ["90", "0s", "1us", "365days 1ms", "366days", "soon"] {
            assert!(timeout(bad).is_err(), "{bad}");
        }
        assert_eq!(stale_timeout("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(stale_timeout("999ms"), Err("must be 1s to 365days".to_owned()));
    }

    #[test]
    fn standalone_heartbeats_often_enough_for_its_own_stale_timeout() {
        for (args, expected) in [
            (&["--stale-timeout", "6s"][..], Ok(2)),
            (&["--heartbeat-interval", "5s"], Ok(5)),
            (&["--heartbeat-interval", "2s", "--stale-timeout", "6s"], Ok(2)),
            (&[], Ok(30)),
            (&["--heartbeat-interval", "3s", "--stale-timeout", "6s"], Err("--heartbeat-interval 3s is over 2s")),
            (&["--heartbeat-interval", "31s"], Err("--heartbeat-interval 31s is over 30s")),
        ] {
            let cli = Cli::try_parse_from([&["x", "standalone"], args].concat()).unwrap();
            let Some(Command::Standalone(options)) = cli.command else { panic!() };
            match (options.client(), expected) {
                (Ok(client), Ok(s)) => assert_eq!(client.heartbeat_interval, Duration::from_secs(s)),
                (Err(error), Err(words)) => assert!(error.starts_with(words), "{error}"),
                (other, _) => panic!("{args:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_gateway_reads_where_told_and_standalone_what_it_publishes() {
        for (args, expected) in [
            (&["gateway"][..], UpdatesFrom::Subjects),
            (&["gateway", "--updates", "feed"], UpdatesFrom::Feed),
            (&["standalone"], UpdatesFrom::Subjects),
            (&["standalone", "--publish", "both"], UpdatesFrom::Subjects),
            (&["standalone", "--publish", "feed"], UpdatesFrom::Feed),
        ] {
            let client = match Cli::try_parse_from([&["x"], args].concat()).unwrap().command {
                Some(Command::Gateway(options)) => options.client(),
                Some(Command::Standalone(options)) => options.client().expect("no contradiction"),
                other => panic!("{other:?}"),
            };
            assert_eq!(client.updates, expected, "{args:?}");
        }
    }

    #[test]
    fn options_that_contradict_each_other_are_named() {
        let args = ["x", "standalone", "--min-tick-interval", "2s", "--max-tick-interval", "1s"];
        let Some(Command::Standalone(options)) = Cli::try_parse_from(args).unwrap().command else { panic!() };
        assert!(options.service.settings().unwrap_err().contains("--min-tick-interval"));
    }
}
