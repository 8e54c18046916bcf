//! One HTTP/1 server, for the gateway's port and the administrator's alike: so that neither lacks a protection that the
//! other has.
//!
//! It knows nothing of ours: it takes routes, and answers for what strangers do to connections.
//!
//! | what a stranger can do | what bounds it | file |
//! |---|---|---|
//! | open connections | a cap in all and one for an address; who waits longest with nothing to do gives way | `admission` |
//! | send a head slowly, or nothing | [`ServerOptions::head_timeout`], [`ServerOptions::idle_timeout`] | `connection` |
//! | send a body slowly | [`ServerOptions::body_timeout`] | `stream` |
//! | read an answer slowly | [`ServerOptions::write_timeout`] | `stream` |
//! | make us keep bytes | [`ServerOptions::max_buffered_bytes`], half of it for an address | `admission`, `response` |
//! | let a browser speak for its user, or rebind a name | allow-lists of hosts and origins | `guard`, `authority` |
//! | use up file descriptors | the limit is raised, and connections are fitted to it | `descriptors` |
//!
//! A stop of this process is nobody's fault: whatever runs out while the process stood still gets a second period
//! ([`patience`]).

use std::{future::Future, io, time::Duration};

use axum::Router;
use tokio::net::TcpListener;

pub use self::{
    admission::{Buffered, ConnectionGuard},
    authority::{HostPattern, OriginPattern},
    guard::AllowList,
    refusal::Refusal,
    upgrade::{Upgrade, UpgradedStream},
};

mod admission;
mod authority;
mod connection;
pub mod descriptors;
mod guard;
pub mod patience;
mod refusal;
mod response;
mod server;
mod stream;
mod upgrade;

/// How a server treats connections. The defaults fit viewers on the open internet.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// What the metrics and the log call it.
    pub name: &'static str,
    /// Connections at once, WebSockets included.
    pub max_connections: u32,
    /// Of these, how many one address may have: an IPv4 address, or a /64 of IPv6, since that is what one subscriber of
    /// a provider has. Half of all unless something else is said, so that nobody takes all of them alone.
    pub max_connections_per_address: Option<u32>,
    /// How long a request's head may take, and a new connection's first byte.
    pub head_timeout: Duration,
    /// How long a request's body may take.
    pub body_timeout: Duration,
    /// How long a peer may take to accept 64 KiB of an answer, or the rest of it.
    pub write_timeout: Duration,
    /// How long a connection is kept between two requests. Longer than load balancers keep theirs, which is 60 s: or they
    /// would send a request into a connection that is being closed.
    pub idle_timeout: Duration,
    /// Bytes of bodies and answers that are kept at once for all connections.
    pub max_buffered_bytes: usize,
    /// How long open requests and sockets may take to end at the end.
    pub shutdown_timeout: Duration,
    /// Who may ask.
    pub allowed: AllowList,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            name: "gateway",
            max_connections: 100_000,
            max_connections_per_address: None,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            max_buffered_bytes: 64 << 20,
            shutdown_timeout: Duration::from_secs(2),
            allowed: AllowList::default(),
        }
    }
}

impl ServerOptions {
    /// Connections of one address.
    fn per_address(&self) -> u32 {
        self.max_connections_per_address.unwrap_or_else(|| self.max_connections.div_ceil(2)).min(self.max_connections)
    }
}

/// Serves `listener` until `shutdown` resolves; then no more connections are taken, requests under way are answered, and
/// what has not ended after [`ServerOptions::shutdown_timeout`] is cut.
///
/// The routes find the peer's address in `ConnectInfo<SocketAddr>`, and in a [`ConnectionGuard`] what a connection counts
/// as: who upgrades it keeps that for as long as the connection lives.
///
/// # Errors
/// When the listener has no address.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    options: ServerOptions,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    server::Server::new(router, options).serve(listener, shutdown).await
}
