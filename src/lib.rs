//! lib
pub mod client;
pub mod engine;
pub mod gateway;
pub mod transport;
pub mod wire;
