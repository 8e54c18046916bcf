//! lib
pub mod client;
pub mod engine;
pub mod gateway;
pub mod service;
pub mod shard;
pub mod transport;
pub mod wire;
