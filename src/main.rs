//! The program: `serve`, `gateway` and `standalone`.

use std::{
    error::Error,
    io,
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
    config::{Cli, Command, GatewayArgs, GatewayCommand, NatsArgs, ServeOptions, StandaloneOptions},
    gateway::Gateway,
    service::{Service, ServiceSettings},
    shard::record::{self, Replayed},
    telemetry::{self, Checkup},
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

/// A process that has not come to its end by then after a signal is ended, so that a stop takes 5 s at the most.
const STOP_TIMEOUT: Duration = Duration::from_millis(4_900);

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orchestrator_service: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Fallible<()> {
    telemetry::init_logging()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        match cli.command.unwrap_or(Command::Serve(cli.serve)) {
            Command::Serve(options) => serve(options).await,
            Command::Gateway(options) => gateway(options).await,
            Command::Standalone(options) => standalone(options).await,
            Command::Replay { file } => replay(&file),
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    done
}

/// The service over NATS.
async fn serve(options: ServeOptions) -> Fallible<()> {
    let (stopping, stop) = stop_signal()?;
    let nats = nats(&options.nats).await?;
    let settings = options.service.settings()?;
    let watched = Watched::default();
    let checkup = UntilStopped { stopping, checkup: watched.clone() };
    let admin = telemetry::serve_admin(options.admin.admin_addr, telemetry::init_metrics()?, checkup).await?;
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
async fn gateway(options: GatewayCommand) -> Fallible<()> {
    let (stopping, stop) = stop_signal()?;
    let transport = connect(&nats(&options.nats).await?, "orchestrator gateway").await?;
    let client = Client::new(Arc::clone(&transport), options.client());
    let checkup = UntilStopped { stopping, checkup: Served { service: client.service() } };
    let admin = telemetry::serve_admin(options.admin_addr, telemetry::init_metrics()?, checkup).await?;
    let gateway = Gateway::new(client, options.gateway.options());
    let listener = listen(&options.gateway).await?;
    gateway.serve(listener, stop).await?;
    transport.close().await;
    admin.abort();
    Ok(())
}

/// Both in one process, over memory.
async fn standalone(options: StandaloneOptions) -> Fallible<()> {
    let (stopping, stop) = stop_signal()?;
    let client = options.client()?;
    let settings = options.service.settings()?;
    let bus = MemoryBus::new();
    let watched = Watched::default();
    let checkup = UntilStopped { stopping, checkup: watched.clone() };
    let admin = telemetry::serve_admin(options.admin.admin_addr, telemetry::init_metrics()?, checkup).await?;
    let listener = listen(&options.gateway).await?;
    watched.set(start_in_memory(settings, &bus).await?);
    let gateway = Gateway::new(Client::new(bus.connect(), client), options.gateway.options());
    gateway.serve(listener, stop).await?;
    if let Some(service) = watched.take() {
        service.drain().await;
    }
    admin.abort();
    Ok(())
}

/// A recording again. What it lacks at its end is a warning and no error: a killed process leaves such a one.
fn replay(file: &Path) -> Fallible<()> {
    let started = Instant::now();
    let replayed = record::replay(file)?;
    let Replayed { entries, updates, panics, .. } = &replayed;
    println!("{entries} entries, {updates} updates, {panics} panics, in {:.3?}", started.elapsed());
    if let Some(why) = missing_end(&replayed) {
        eprintln!(
            "orchestrator_service: warning: the recording is not complete, and replayed as far as it goes: {why}"
        );
    }
    for (shard, (digest, recorded)) in &replayed.digests {
        let verdict = match recorded {
            None => "the recording does not say how it ended".to_owned(),
            Some(recorded) if recorded == digest => "as recorded".to_owned(),
            Some(recorded) => format!("recorded: {recorded:016x}"),
        };
        println!("shard {shard}: {digest:016x} ({verdict})");
    }
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
fn stop_signal() -> io::Result<(Arc<AtomicBool>, impl Future<Output = ()> + Send)> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopping = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stopping);
    let stop = async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "Ctrl-C",
        };
        info!(signal = name, "stopping");
        flag.store(true, Ordering::Relaxed);
        // The parts have bounds of their own, which add up to more if each of them is held up.
        tokio::spawn(async {
            sleep(STOP_TIMEOUT).await;
            warn!("could not stop in time");
            std::process::exit(0);
        });
    };
    Ok((stopping, stop))
}

/// What a process says of itself; once it is stopping, it is not ready, whatever may still work.
struct UntilStopped<C> {
    stopping: Arc<AtomicBool>,
    checkup: C,
}

impl<C: Checkup> Checkup for UntilStopped<C> {
    fn ready(&self) -> Result<(), String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err("stopping".to_owned());
        }
        self.checkup.ready()
    }

    fn record_gauges(&self) {
        self.checkup.record_gauges();
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

impl Checkup for Watched {
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
struct Served {
    service: watch::Receiver<ServiceState>,
}

impl Checkup for Served {
    fn ready(&self) -> Result<(), String> {
        self.service.borrow().ready()
    }

    fn record_gauges(&self) {}
}
