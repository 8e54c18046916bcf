//! Plays timelines of scenes for thousands of live streams, each only while somebody watches, over NATS.
//!
//! ```text
//! NATS / memory ──bytes──▶ ingress ──▶ mailbox ──▶ shard loop ──▶ engine
//!                           (peek id,   (bounded)   (one clock     (no tokio, no NATS,
//!                            hash)                   read a turn)   no clock, no bytes)
//! NATS / memory ◀─bytes── publisher ◀── owed ◀── outbox ◀─────────────┘
//!
//! gateway (REST, WebSocket, page) ──▶ client ──▶ the same transport
//! ```
//!
//! A reader begins with [`timeline`] and [`engine`], whose documentation has the canonical run loop; then [`wire`], [`shard`],
//! [`transport`] and [`service`], in this order. A gateway's author needs [`client`] alone.

pub mod client;
pub mod config;
pub mod engine;
pub mod gateway;
pub mod http;
pub mod service;
pub mod shard;
pub mod subject;
pub mod telemetry;
pub mod timeline;
pub mod transport;
pub mod wire;
