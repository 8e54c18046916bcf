//! The gateway over HTTP, with a real service behind it on the memory transport.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod filters;
mod http;
mod protocols;
mod rest;
mod sockets;
mod under_test;
mod wire;
