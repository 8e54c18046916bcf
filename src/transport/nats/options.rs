//! How a connection is made.

use std::{
    fmt, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{Auth, AuthError, ConnectOptions};

use super::{
    credentials::Credentials,
    events::Shared,
    link::reconnect_delay,
    log_limit::LogLimit,
    servers::{Login, Servers},
};
use crate::transport::SUBSCRIPTION_CAPACITY;

/// How often the client asks its server for a sign of life. It gives up after the third unanswered time, so a peer that
/// died without a word is noticed within 8 s, against 4 minutes by default.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// How long one attempt to connect may take before the next begins, a handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How to reach the broker.
#[derive(Clone)]
pub struct NatsOptions {
    /// `nats://host:port`, or several of them separated by commas. `tls://` demands TLS. `user:password@` or `token@`
    /// before a host is the login for all of them, so they may not have different ones: the client has one for all
    /// servers, those that it hears of from a cluster included.
    pub url: String,
    /// What the broker's own tools call this connection.
    pub name: String,
    /// A `.creds` file with a JWT and its key, read for each attempt to connect.
    pub credentials: Option<PathBuf>,
    /// Shared by connections that are made together, so that each kind of fault is logged once for all of them. That a
    /// connection is lost or made is logged for each.
    pub log_limit: LogLimit,
}

impl NatsOptions {
    /// Options for `url` under `name`, without a credentials file.
    pub fn new(url: impl Into<String>, name: impl Into<String>) -> Self {
        Self { url: url.into(), name: name.into(), credentials: None, log_limit: LogLimit::default() }
    }

    /// Checks what [`NatsTransport::connect`](super::NatsTransport::connect) would refuse, as far as it can be told
    /// without connecting.
    pub async fn check(&self) -> Result<(), NatsError> {
        Servers::parse(&self.url)?;
        match &self.credentials {
            None => Ok(()),
            Some(path) => Credentials::read(path.clone())
                .await
                .map(drop)
                .map_err(|source| NatsError::Credentials { path: path.clone(), source }),
        }
    }
}

impl fmt::Debug for NatsOptions {
    /// Without the URL, which may hold a password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("NatsOptions")
            .field("name", &self.name)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// Why no transport could be made. An absent broker is no such reason: it is waited for.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// The URL cannot be read. The text leaves out the URL, which may hold a password.
    #[error("the NATS URL cannot be read: {0}")]
    Url(#[source] io::Error),
    /// Two URLs have different users, passwords or tokens.
    #[error("the NATS URL of {0} has another login than those before it: all servers are sent the same")]
    Logins(String),
    /// A user, password or token cannot be meant.
    #[error("the login in the NATS URL of {server} {why}")]
    Login {
        /// Which server's, without the login.
        server: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A URL has a password without a user.
    #[error("the NATS URL of {0} has a password and no user before it")]
    NoUser(String),
    /// The credentials file cannot be read.
    #[error("the NATS credentials in {path} cannot be read: {source}")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What was wrong with it.
        source: io::Error,
    },
    /// The client refused its options.
    #[error("the NATS client cannot start: {0}")]
    Client(#[source] async_nats::Error),
}

/// What the client is made with.
pub(super) fn client_options(options: &NatsOptions, login: Option<Login>, shared: &Arc<Shared>) -> ConnectOptions {
    let (for_events, for_delays, for_auth) = (Arc::clone(shared), Arc::clone(shared), Arc::clone(shared));
    let (login, file) = (Arc::new(login), options.credentials.clone());
    // Asked at each attempt.
    ConnectOptions::with_auth_callback(move |nonce| {
        let (shared, login, file) = (Arc::clone(&for_auth), Arc::clone(&login), file.clone());
        async move { auth(&shared, login.as_ref().as_ref(), file, &nonce).await }
    })
    .name(&options.name)
    .retry_on_initial_connect()
    .max_reconnects(None)
    .connection_timeout(CONNECT_TIMEOUT)
    .ping_interval(PING_INTERVAL)
    .subscription_capacity(SUBSCRIPTION_CAPACITY)
    .event_callback(move |event| {
        for_events.on_event(&event);
        std::future::ready(())
    })
    .reconnect_delay_callback(move |attempt| reconnect_delay(attempt, for_delays.link.is_closing()))
}

/// The identity that a server is shown.
async fn auth(shared: &Shared, login: Option<&Login>, file: Option<PathBuf>, nonce: &[u8]) -> Result<Auth, AuthError> {
    let mut auth = match file {
        None => Auth::new(),
        Some(path) => match Credentials::read(path.clone()).await {
            Ok(credentials) => credentials.auth(nonce)?,
            Err(error) => {
                let error = NatsError::Credentials { path, source: error }.to_string();
                shared.log_away(&error, Instant::now());
                return Err(AuthError::new(error));
            }
        },
    };
    match login.cloned() {
        None => {}
        Some(Login { user, password: Some(password) }) => {
            (auth.username, auth.password) = (Some(user), Some(password));
        }
        Some(Login { user: token, password: None }) => auth.token = Some(token),
    }
    Ok(auth)
}
