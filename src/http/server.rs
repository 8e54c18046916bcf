//! Accepting connections, and ending them all.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, http::StatusCode};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    ServerOptions,
    admission::{ConnectionGuard, Full, Limits, Table},
    connection::{self, Ending, Shared},
    refusal::Refusal,
};

/// How long to wait after `accept` failed, most likely because the process has no file descriptor left; twice as long each
/// time, up to the most.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const MAX_ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How often that is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(30);
/// How long a full server lets a newcomer wait for a place before it says that it is full.
const FULL_PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait at a time for connections that give way.
const ENDING_PATIENCE: Duration = Duration::from_millis(100);
/// How many newcomers are told at once that there is no place. More are just closed.
pub(super) const MAX_REFUSALS: usize = 32;
/// How long telling one takes at most.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(500);
/// How much the kernel holds that it has not sent yet. What is above it waits here, where a newer state takes its place.
const UNSENT_BYTES: u32 = 16 << 10;

pub(super) struct Server {
    shared: Arc<Shared>,
    table: Arc<Table>,
    refusals: Arc<Semaphore>,
}

impl Server {
    pub(super) fn new(router: Router, options: ServerOptions) -> Self {
        let table = Table::new(Limits {
            connections: options.max_connections,
            per_address: options.per_address(),
            bytes: options.max_buffered_bytes,
        });
        let router = TowerToHyperService::new(router);
        let shared = Arc::new(Shared { router, options, ending: watch::Sender::new(Ending::No) });
        Self { shared, table, refusals: Arc::new(Semaphore::new(MAX_REFUSALS)) }
    }

    pub(super) async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> io::Result<()> {
        let server = self.shared.options.name;
        tracing::info!(server, address = %listener.local_addr()?, "listening");
        tokio::select! {
            () = self.accept(&listener) => {}
            () = shutdown => {}
        }
        drop(listener);
        tracing::info!(server, "shutting down");
        self.shared.ending.send_replace(Ending::Soon);
        if timeout(self.shared.options.shutdown_timeout, self.table.emptied()).await.is_err() {
            tracing::info!(server, connections = self.table.open(), "some connections did not end in time and are cut");
            self.shared.ending.send_replace(Ending::Now);
        }
        Ok(())
    }

    /// Accepts for ever.
    async fn accept(&self, listener: &TcpListener) {
        let mut failures = Failures::default();
        let mut full_since = None;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    failures.pause = ACCEPT_PAUSE;
                    match self.place(peer, &mut full_since).await {
                        Ok(guard) => self.connect(stream, peer, guard),
                        Err(full) => self.refuse(stream, full),
                    }
                }
                Err(error) => failures.note(self.shared.options.name, &error).await,
            }
        }
    }

    /// A place for a newcomer. While all are taken by what works, newcomers wait for a moment, in the kernel's bounded
    /// queue; when that was in vain, each is refused at once until there is a place again.
    async fn place(&self, peer: SocketAddr, full_since: &mut Option<Instant>) -> Result<Arc<ConnectionGuard>, Full> {
        loop {
            let freed = self.table.freed();
            match self.table.admit(peer.ip()) {
                Ok(guard) => {
                    *full_since = None;
                    return Ok(guard);
                }
                Err(Full::Address) => return Err(Full::Address),
                // They have been told, and need only be run.
                Err(Full::Ending) => _ = timeout(ENDING_PATIENCE, freed).await,
                Err(Full::Server) => {
                    let since = *full_since.get_or_insert_with(Instant::now);
                    let left = FULL_PATIENCE.saturating_sub(since.elapsed());
                    if timeout(left, freed).await.is_err() {
                        return Err(Full::Server);
                    }
                }
            }
        }
    }

    fn connect(&self, stream: TcpStream, peer: SocketAddr, guard: Arc<ConnectionGuard>) {
        // Updates are small and each matters now: they must not wait for the acknowledgement of the one before, nor behind
        // what a slow reader has not been sent yet. Both only make it faster, so an error does not matter.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES);
        tokio::spawn(connection::run(Arc::clone(&self.shared), stream, peer, guard));
    }

    /// Says that there is no place, if not too many are being told so.
    fn refuse(&self, stream: TcpStream, full: Full) {
        let (reason, message) = match full {
            Full::Server | Full::Ending => ("full", "all connections are taken; try again later, or elsewhere"),
            Full::Address => ("address_full", "all connections that one address may have are taken"),
        };
        let server = self.shared.options.name;
        metrics::counter!("orchestrator_http_refused_total", "server" => server, "reason" => reason).increment(1);
        if let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() {
            tokio::spawn(async move {
                let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message);
                // Whoever is gone, or does not read it in time, does not hear it.
                let _ = timeout(REFUSAL_TIMEOUT, tell(stream, &refusal)).await;
                drop(permit);
            });
        }
    }
}

/// Sends a refusal, and reads what comes until the peer closes: closing first would take the answer back.
async fn tell(mut stream: TcpStream, refusal: &Refusal) -> io::Result<()> {
    let body = refusal.body();
    let answer = format!(
        "HTTP/1.1 {}\r\nconnection: close\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
         content-length: {}\r\n\r\n{body}",
        refusal.status(),
        body.len(),
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    let mut scrap = [0; 1024];
    while stream.read(&mut scrap).await? > 0 {}
    Ok(())
}

/// Connections that could not be accepted.
struct Failures {
    pause: Duration,
    logged: Option<Instant>,
}

impl Default for Failures {
    fn default() -> Self {
        Self { pause: ACCEPT_PAUSE, logged: None }
    }
}

impl Failures {
    async fn note(&mut self, server: &'static str, error: &io::Error) {
        metrics::counter!("orchestrator_http_accept_errors_total", "server" => server).increment(1);
        if self.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL) {
            self.logged = Some(Instant::now());
            tracing::warn!(server, %error, "a connection could not be accepted; told at most once in 30 s");
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(MAX_ACCEPT_PAUSE);
    }
}
