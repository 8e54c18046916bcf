//! What the integration tests share.

pub(crate) mod nats_server;
