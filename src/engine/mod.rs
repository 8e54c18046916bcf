//! engine
mod ids;

pub use ids::*;
