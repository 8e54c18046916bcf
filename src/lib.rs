//! lib
pub mod client;
pub mod engine;
pub mod transport;
pub mod wire;
