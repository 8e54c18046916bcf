//! The program as an operator runs it: its processes, signals, logs, options and pages, with a real nats-server.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is the report")]

#[path = "../support/mod.rs"]
mod support;

mod connections;
mod logs;
mod options;
mod permissions;
mod readme;
mod recordings;
mod session;
mod signals;
mod stderr;
mod viewer;
