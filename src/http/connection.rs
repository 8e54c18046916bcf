//! One connection, from the first byte to the last or to its upgrade.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::ConnectInfo,
    http::{Method, header},
    response::{IntoResponse as _, Response},
};
use futures_util::future::BoxFuture;
use hyper::{Request, body::Incoming, server::conn::http1, service::Service};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use super::{
    ServerOptions,
    admission::ConnectionGuard,
    guard::AllowList,
    patience,
    response::{self, TrackedBody},
    stream::MeteredStream,
};

/// What is read at once, and the largest head: a cookie jar and a long path fit in.
const READ_BUFFER: usize = 16 << 10;

/// What all connections of a server share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) router: TowerToHyperService<Router>,
    pub(super) options: ServerOptions,
    pub(super) ending: watch::Sender<Ending>,
}

/// How far the end of a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    /// It serves.
    No,
    /// Requests under way are answered.
    Soon,
    /// What is left is cut.
    Now,
}

impl Shared {
    /// Resolves when the end is so far.
    async fn reached(&self, at_least: Ending) {
        let _ = self.ending.subscribe().wait_for(|ending| *ending >= at_least).await;
    }
}

/// Serves a connection until it ends.
pub(super) async fn run(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr, guard: Arc<ConnectionGuard>) {
    let options = &shared.options;
    let local = stream.local_addr().ok().map(|local| local.ip());
    let activity = Arc::new(Activity::new(options, Arc::clone(&guard)));
    let stream = MeteredStream::new(stream, Arc::clone(&activity), options.write_timeout);
    let service = Requests { shared: Arc::clone(&shared), peer, local, activity: Arc::clone(&activity) };
    let connection = http1::Builder::new()
        // The time limits are ours: hyper's for a head runs while a connection is idle, too.
        .header_read_timeout(None)
        // A client may have said all that it has to say.
        .half_close(true)
        .max_buf_size(READ_BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = activity.wait_too_long() => return,
        () = guard.told_to_give_way() => return activity.count_cut("gave_way"),
        () = shared.reached(Ending::Soon) => {
            // The request under way is answered, an idle connection closed.
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = connection => result,
                () = shared.reached(Ending::Now) => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "a connection failed");
    }
}

/// What a connection is doing.
#[derive(Debug)]
pub(super) struct Activity {
    server: &'static str,
    head_timeout: Duration,
    idle_timeout: Duration,
    guard: Arc<ConnectionGuard>,
    phase: Mutex<Phase>,
    /// The phase has become one with an earlier end.
    sooner: Notify,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Nothing of the next request has come.
    Idle { until: Instant },
    /// A head has begun to come.
    Head { until: Instant },
    /// A request is under way: its body and its answer have time limits of their own.
    Busy,
}

impl Activity {
    fn new(options: &ServerOptions, guard: Arc<ConnectionGuard>) -> Self {
        let ServerOptions { name, head_timeout, idle_timeout, .. } = *options;
        let phase = Mutex::new(Phase::Head { until: Instant::now() + head_timeout });
        Self { server: name, head_timeout, idle_timeout, guard, phase, sooner: Notify::new() }
    }

    /// Something came from the peer.
    pub(super) fn note_read(&self) {
        let mut phase = self.phase();
        if let Phase::Idle { .. } = *phase {
            *phase = Phase::Head { until: Instant::now() + self.head_timeout };
            self.sooner.notify_one();
        }
    }

    pub(super) fn count_cut(&self, reason: &'static str) {
        metrics::counter!("orchestrator_http_cut_total", "server" => self.server, "reason" => reason).increment(1);
    }

    fn begin(self: &Arc<Self>) -> UnderWay {
        self.guard.work();
        *self.phase() = Phase::Busy;
        UnderWay { activity: Arc::clone(self), is_upgrade: false }
    }

    /// Resolves when the peer has had its time for the next request.
    async fn wait_too_long(&self) {
        loop {
            let sooner = self.sooner.notified();
            let (until, reason) = match *self.phase() {
                Phase::Idle { until } => (until, "idle_timeout"),
                Phase::Head { until } => (until, "head_timeout"),
                // Looked at again when it could have been idle for its time.
                Phase::Busy => (Instant::now() + self.idle_timeout, ""),
            };
            tokio::select! {
                () = sooner => continue,
                () = sleep_until(until) => {}
            }
            let late = patience::is_late(until);
            match &mut *self.phase() {
                Phase::Idle { until } if *until <= Instant::now() => {
                    if !late {
                        return self.count_cut(reason);
                    }
                    *until = Instant::now() + self.idle_timeout;
                }
                Phase::Head { until } if *until <= Instant::now() => {
                    if !late {
                        return self.count_cut(reason);
                    }
                    *until = Instant::now() + self.head_timeout;
                }
                _ => {}
            }
        }
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way, until its answer is handed over to be written: the peer's time to read it is limited elsewhere.
#[derive(Debug)]
pub(super) struct UnderWay {
    activity: Arc<Activity>,
    is_upgrade: bool,
}

impl UnderWay {
    /// The connection is not one for requests any more: it never waits for one again, and has its place until it ends.
    pub(super) fn becomes_another(&mut self) {
        self.is_upgrade = true;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if !self.is_upgrade {
            *self.activity.phase() = Phase::Idle { until: Instant::now() + self.activity.idle_timeout };
            self.activity.guard.wait();
        }
    }
}

/// The routes, for one connection.
#[derive(Debug)]
struct Requests {
    shared: Arc<Shared>,
    peer: SocketAddr,
    local: Option<IpAddr>,
    activity: Arc<Activity>,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<TrackedBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let under_way = self.activity.begin();
        let guard = Arc::clone(&self.activity.guard);
        let (mut parts, body) = request.into_parts();
        let allowed: &AllowList = &self.shared.options.allowed;
        let admitted = match allowed.check(&parts, self.local) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                let server = self.shared.options.name;
                metrics::counter!("orchestrator_http_refused_total", "server" => server, "reason" => "not_allowed")
                    .increment(1);
                tracing::debug!(peer = %self.peer, reason = refusal.message(), "a request was refused");
                let response = response::prepare(refusal.into_response(), &guard, &Default::default(), under_way);
                return Box::pin(std::future::ready(Ok(response)));
            }
        };
        let is_preflight = admitted.cross_origin.is_some()
            && parts.method == Method::OPTIONS
            && parts.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if is_preflight {
            let response = response::prepare(response::preflight(), &guard, &admitted, under_way);
            return Box::pin(std::future::ready(Ok(response)));
        }
        parts.extensions.insert(ConnectInfo(self.peer));
        parts.extensions.insert(Arc::clone(&guard));
        let answering = self.shared.router.call(Request::from_parts(parts, body));
        Box::pin(async move {
            let response = match answering.await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            Ok(response::prepare(response, &guard, &admitted, under_way))
        })
    }
}
