//! Plays timelines of scenes for thousands of live streams, each only while somebody watches, over NATS.
//!
//! ```text
//! NATS / memory ──bytes──▶ ingress ──▶ mailbox ──▶ shard loop ──▶ engine
//!                           (peek id,   (bounded)   (one clock     (no tokio, no NATS,
//!                            hash)                   read a turn)   no clock, no bytes)
//! NATS / memory ◀─bytes── publisher ◀── queue ◀─ outbox ◀─────────────┘
//!
//! gateway (REST, WebSocket, page) ──▶ client ──▶ the same transport
//! ```
//!
//! A reader begins with [`timeline`] and [`engine`], whose documentation has the canonical run loop; then [`wire`],
//! [`shard`], [`transport`] and [`service`], in this order. A gateway's author needs [`client`] alone.
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `client` | [`client`], for gateways of one's own: no HTTP, no options, no exporter |
//! | `service` | [`shard`] and [`service`] |
//! | `gateway` | [`gateway`] and [`http`], and the client under them |
//! | `program` (default) | all of it, [`config`] and [`telemetry`]: the program |

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "program")]
pub mod config;
pub mod engine;
#[cfg(feature = "gateway")]
pub mod gateway;
#[cfg(feature = "gateway")]
pub mod http;
#[cfg(feature = "service")]
pub mod service;
#[cfg(feature = "service")]
pub mod shard;
pub mod subject;
#[cfg(feature = "program")]
pub mod telemetry;
pub mod timeline;
pub mod transport;
pub mod wire;
