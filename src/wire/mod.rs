//! wire
pub mod json;
pub mod subject;

pub use crate::engine::{ClientId, StreamId};

/// The messages of `proto/orchestrator.proto`, as prost generates them.
pub mod proto {
    #![allow(missing_docs, clippy::all, clippy::pedantic)]
    include!(concat!(env!("OUT_DIR"), "/orchestrator.v1.rs"));
}
