//! The program: `serve`, `gateway` and `standalone`.

use std::{
    error::Error,
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
    process::ExitCode,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser as _;
use orchestrator_service::{
    client::{Client, ServiceState},
    config::{Cli, Command, GatewayArgs, GatewayCommand, HttpArgs, NatsArgs, ServeOptions, StandaloneOptions},
    gateway::{Gateway, GatewayOptions},
    http::{ServerOptions, descriptors},
    service::{Service, ServiceSettings},
    shard::record::{self, Replayed},
    telemetry::{self, HealthCheck, Log},
    transport::{
        Transport,
        memory::MemoryBus,
        nats::{NatsError, NatsOptions, NatsTransport},
    },
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::sleep,
};
use tracing::{info, warn};

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A process that has not come to its end by then after a signal is ended, so that a stop takes 5 s at the most with
/// [`FLUSH_TIMEOUT`].
const STOP_TIMEOUT: Duration = Duration::from_millis(4_600);
/// How long the end of a process waits for whoever reads its log.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => return say_usage(&usage),
    };
    let log = Log::to_stderr();
    log.take_panics();
    let done = run(cli, &log);
    if let Err(error) = &done {
        log.line(format_args!("orchestrator_service: {error}"));
    }
    log.flush(FLUSH_TIMEOUT);
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints what is wrong with the arguments, or the help that they ask for.
fn say_usage(usage: &clap::Error) -> ExitCode {
    let printed = allow_closed(usage.print());
    match u8::try_from(usage.exit_code()) {
        Ok(0) if printed.is_err() => ExitCode::FAILURE,
        Ok(code) => code.into(),
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(cli: Cli, log: &Log) -> Fallible<()> {
    telemetry::init_logging(log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        match cli.command.unwrap_or(Command::Serve(cli.serve)) {
            Command::Serve(options) => serve(options, log).await,
            Command::Gateway(options) => gateway(options, log).await,
            Command::Standalone(options) => standalone(options, log).await,
            Command::Replay { file } => replay(&file, log),
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    done
}

/// The service over NATS.
async fn serve(options: ServeOptions, log: &Log) -> Fallible<()> {
    let (stopping, stop) = stop_signal(log)?;
    let nats = nats(&options.nats).await?;
    let settings = options.service.settings()?;
    let watched = Watched::default();
    let health = UntilStopped { stopping, health: watched.clone() };
    let mut http = options.http.admin();
    fit_descriptors(settings.shards as u64 + 1, [&mut http]);
    let admin = telemetry::serve_admin(options.admin.admin_addr, telemetry::init_metrics()?, health, http).await?;
    tokio::pin!(stop);
    let starting = async {
        let ingress = connect(&nats, "orchestrator ingress").await?;
        let mut publishers: Vec<Arc<dyn Transport>> = Vec::new();
        for shard in 0..settings.shards {
            publishers.push(connect(&nats, &format!("orchestrator shard {shard}")).await?);
        }
        Ok::<_, Box<dyn Error + Send + Sync>>(Service::start(settings, ingress, publishers).await?)
    };
    tokio::select! {
        service = starting => watched.set(service?),
        () = &mut stop => return Ok(()),
    }
    stop.await;
    if let Some(service) = watched.take() {
        service.drain().await;
    }
    admin.abort();
    Ok(())
}

/// The gateway over NATS.
async fn gateway(options: GatewayCommand, log: &Log) -> Fallible<()> {
    let (stopping, stop) = stop_signal(log)?;
    let transport = connect(&nats(&options.nats).await?, "orchestrator gateway").await?;
    let client = Client::new(Arc::clone(&transport), options.client());
    let health = UntilStopped { stopping, health: GatewayHealth { service: client.service() } };
    let (gateway, http) = http_servers(&options.gateway, &options.http, 1);
    let admin = telemetry::serve_admin(options.admin_addr, telemetry::init_metrics()?, health, http).await?;
    let gateway = Gateway::new(client, gateway);
    let listener = listen(&options.gateway).await?;
    gateway.serve(listener, stop).await?;
    transport.close().await;
    admin.abort();
    Ok(())
}

/// Both in one process, over memory.
async fn standalone(options: StandaloneOptions, log: &Log) -> Fallible<()> {
    let (stopping, stop) = stop_signal(log)?;
    let client = options.client()?;
    let settings = options.service.settings()?;
    let bus = MemoryBus::new();
    let watched = Watched::default();
    let health = UntilStopped { stopping, health: watched.clone() };
    let (gateway, http) = http_servers(&options.gateway, &options.http, 0);
    let admin = telemetry::serve_admin(options.admin.admin_addr, telemetry::init_metrics()?, health, http).await?;
    let listener = listen(&options.gateway).await?;
    watched.set(start_in_memory(settings, &bus).await?);
    let gateway = Gateway::new(Client::new(bus.connect(), client), gateway);
    gateway.serve(listener, stop).await?;
    if let Some(service) = watched.take() {
        service.drain().await;
    }
    admin.abort();
    Ok(())
}

/// A recording again. What it lacks at its end is a warning and no error: a killed process leaves such a one.
///
/// A reader that has seen enough and closes the pipe is no error either: the exit code still tells the verdict.
fn replay(file: &Path, log: &Log) -> Fallible<()> {
    let started = Instant::now();
    let replayed = record::replay(file)?;
    let Replayed { entries, updates, panics, .. } = &replayed;
    let mut report = format!("{entries} entries, {updates} updates, {panics} panics, in {:.3?}\n", started.elapsed());
    if let Some(why) = missing_end(&replayed) {
        log.line(format_args!(
            "orchestrator_service: warning: the recording is not complete, and replayed as far as it goes: {why}"
        ));
    }
    for (shard, (digest, recorded)) in &replayed.digests {
        let verdict = match recorded {
            None => "the recording does not say how it ended".to_owned(),
            Some(recorded) if recorded == digest => "as recorded".to_owned(),
            Some(recorded) => format!("recorded: {recorded:016x}"),
        };
        report += &format!("shard {shard}: {digest:016x} ({verdict})\n");
    }
    let mut stdout = io::stdout().lock();
    allow_closed(stdout.write_all(report.as_bytes()).and_then(|()| stdout.flush()))
        .map_err(|error| format!("cannot write to standard output: {error}"))?;
    if replayed.agrees() { Ok(()) } else { Err("the replay came to another state than the recording".into()) }
}

/// What a recording lacks that stops before its shards did, such as that of a process that was killed.
fn missing_end(replayed: &Replayed) -> Option<String> {
    if replayed.cut_off {
        return Some("it stops in the middle of an entry".to_owned());
    }
    let open = replayed.digests.iter().filter(|(_, (_, recorded))| recorded.is_none());
    let open: Vec<String> = open.map(|(shard, _)| shard.to_string()).collect();
    if open.is_empty() { None } else { Some(format!("it does not say how shard {} ended", open.join(", "))) }
}

/// Whoever reads what is printed may close the pipe when it has seen enough.
fn allow_closed(printed: io::Result<()>) -> io::Result<()> {
    printed.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
}

async fn start_in_memory(settings: ServiceSettings, bus: &MemoryBus) -> Fallible<Service> {
    let publishers = (0..settings.shards).map(|_| bus.connect() as Arc<dyn Transport>).collect();
    Ok(Service::start(settings, bus.connect(), publishers).await?)
}

/// What all connections of this process are made with. Checked before anything is logged or listens, and an error names
/// the option.
async fn nats(nats: &NatsArgs) -> Fallible<NatsOptions> {
    let options = NatsOptions { credentials: nats.nats_creds.clone(), ..NatsOptions::new(&nats.nats_url, "") };
    match options.check().await {
        Ok(()) => Ok(options),
        Err(error @ (NatsError::Url(_) | NatsError::Login { .. } | NatsError::Logins(_) | NatsError::NoUser(_))) => {
            Err(format!("--nats-url: {error}").into())
        }
        Err(error @ NatsError::Credentials { .. }) => Err(format!("--nats-creds: {error}").into()),
        Err(error @ NatsError::Client(_)) => Err(error.into()),
    }
}

async fn connect(nats: &NatsOptions, name: &str) -> Fallible<Arc<dyn Transport>> {
    Ok(NatsTransport::connect(NatsOptions { name: name.to_owned(), ..nats.clone() }).await?)
}

/// What the gateway is made with, and the administrator's server beside it.
fn http_servers(gateway: &GatewayArgs, http: &HttpArgs, broker_connections: u64) -> (GatewayOptions, ServerOptions) {
    let (mut gateway, mut admin) = (gateway.options(http), http.admin());
    fit_descriptors(broker_connections, [&mut gateway.http, &mut admin]);
    (gateway, admin)
}

/// Raises the limit of open files, and fits the servers' connections to it.
fn fit_descriptors<const N: usize>(broker_connections: u64, servers: [&mut ServerOptions; N]) {
    let limit = descriptors::raise_limit();
    let asked: [u32; N] = std::array::from_fn(|place| servers[place].max_connections);
    let fitted = descriptors::fit(limit, broker_connections, asked);
    for (server, fitted) in servers.into_iter().zip(fitted) {
        let asked = std::mem::replace(&mut server.max_connections, fitted);
        if let (true, Some(limit)) = (fitted < asked, limit) {
            warn!(
                server = server.name,
                "this process may open {limit} files (ulimit -n), which is too few for {asked} connections: there will be \
                 {fitted} at most"
            );
        }
    }
}

async fn listen(gateway: &GatewayArgs) -> io::Result<TcpListener> {
    let address: SocketAddr = gateway.http_addr;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on --http-addr {address}: {error}")))?;
    info!("http://{} serves REST, WebSockets and the page", listener.local_addr()?);
    Ok(listener)
}

/// Resolves on SIGTERM and Ctrl-C, and then raises the flag. Made before anything else starts, so that neither finds
/// the default handler.
fn stop_signal(log: &Log) -> io::Result<(Arc<AtomicBool>, impl Future<Output = ()> + Send)> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopping = Arc::new(AtomicBool::new(false));
    let (flag, log) = (Arc::clone(&stopping), log.clone());
    let stop = async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "Ctrl-C",
        };
        info!(signal = name, "stopping");
        flag.store(true, Ordering::Relaxed);
        // The parts have bounds of their own, which add up to more if each of them is held up.
        tokio::spawn(async move {
            sleep(STOP_TIMEOUT).await;
            warn!("could not stop in time");
            log.flush(FLUSH_TIMEOUT);
            std::process::exit(0);
        });
    };
    Ok((stopping, stop))
}

/// What a process says of itself; once it is stopping, it is not ready, whatever may still work.
struct UntilStopped<C> {
    stopping: Arc<AtomicBool>,
    health: C,
}

impl<C: HealthCheck> HealthCheck for UntilStopped<C> {
    fn ready(&self) -> Result<(), String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err("stopping".to_owned());
        }
        self.health.ready()
    }

    fn record_gauges(&self) {
        self.health.record_gauges();
    }
}

/// The service for the administrator's pages: there once it has started, until it is drained.
#[derive(Clone, Default)]
struct Watched(Arc<RwLock<Option<Service>>>);

impl Watched {
    fn set(&self, service: Service) {
        if let Ok(mut place) = self.0.write() {
            *place = Some(service);
        }
    }

    fn take(&self) -> Option<Service> {
        self.0.write().ok()?.take()
    }
}

impl HealthCheck for Watched {
    fn ready(&self) -> Result<(), String> {
        let place = self.0.read().map_err(|_| "broken".to_owned())?;
        place.as_ref().map_or_else(|| Err("not running".to_owned()), Service::ready)
    }

    fn record_gauges(&self) {
        if let Ok(Some(service)) = self.0.read().as_deref() {
            service.record_gauges();
        }
    }
}

/// A gateway is ready while it is connected and a service answers: without one, all it could say is 503.
struct GatewayHealth {
    service: watch::Receiver<ServiceState>,
}

impl HealthCheck for GatewayHealth {
    fn ready(&self) -> Result<(), String> {
        self.service.borrow().ready()
    }

    fn record_gauges(&self) {}
}
