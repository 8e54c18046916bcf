//! Connections: how many there may be, how long they may do nothing, and how they end.
//!
//! `axum::serve` has no timeout for a request's head and no bound on connections, so the loop is here. A permit goes
//! with each connection, and on to the WebSocket that it turns into: when all permits are back, everything has ended.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, extract::ConnectInfo, response::Response};
use hyper::{Request, body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};

use super::App;

/// How long to wait after `accept` failed, most likely because the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Leave to be connected, returned when the last part of the connection is gone.
#[derive(Debug, Clone)]
pub(super) struct Permit {
    _permit: Arc<OwnedSemaphorePermit>,
}

pub(super) async fn serve(
    app: Arc<App>,
    router: Router,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    tracing::info!(address = %listener.local_addr()?, "gateway listening");
    let max_connections = app.options.max_connections;
    let permits = Arc::new(Semaphore::new(max_connections as usize));
    let cut = watch::Sender::new(false);
    let server = Server { app: &app, router: TowerToHyperService::new(router), cut: &cut };
    tokio::select! {
        () = server.accept(listener, &permits) => {}
        () = shutdown => {}
    }

    tracing::info!("gateway shutting down");
    app.is_ending.send_replace(true);
    if timeout(app.options.shutdown_timeout, permits.acquire_many(max_connections)).await.is_err() {
        tracing::info!("some connections did not end in time and are cut");
        cut.send_replace(true);
    }
    app.client.close().await;
    Ok(())
}

struct Server<'a> {
    app: &'a Arc<App>,
    router: TowerToHyperService<Router>,
    cut: &'a watch::Sender<bool>,
}

impl Server<'_> {
    /// Accepts for ever. A full house leaves newcomers in the kernel's bounded queue.
    async fn accept(&self, listener: TcpListener, permits: &Arc<Semaphore>) {
        while let Ok(permit) = Arc::clone(permits).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, peer)) => self.connect(stream, peer, Permit { _permit: Arc::new(permit) }),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn connect(&self, stream: TcpStream, peer: SocketAddr, permit: Permit) {
        // Updates are small and each matters now: they must not wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        let service = Connected { router: self.router.clone(), peer, permit };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.app.options.header_read_timeout)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let app = Arc::clone(self.app);
        let mut cut = self.cut.subscribe();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = app.ending() => {
                    // The request under way is answered, an idle connection closed.
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        result = connection => result,
                        _ = cut.wait_for(|cut| *cut) => return,
                    }
                }
            };
            if let Err(error) = result {
                tracing::debug!(%peer, %error, "a connection failed");
            }
        });
    }
}

/// The routes, for one connection.
#[derive(Debug)]
struct Connected {
    router: TowerToHyperService<Router>,
    peer: SocketAddr,
    permit: Permit,
}

impl Service<Request<Incoming>> for Connected {
    type Response = Response;
    type Error = Infallible;
    type Future = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(ConnectInfo(self.peer));
        request.extensions_mut().insert(self.permit.clone());
        self.router.call(request)
    }
}
