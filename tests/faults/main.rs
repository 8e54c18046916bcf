//! Faults on real processes: the program itself and a real `nats-server`, killed, stopped, flooded and abandoned.
//!
//! Bounds are wide, since real processes on a busy machine are the point; each test prints what it measured
//! (`cargo test --test faults -- --nocapture`). What must not happen is looked for behind something that comes later.
//!
//! `ORCH_FAULTS=long` runs the larger numbers: 20 rounds of 100,000 joining and leaving instead of 8, and more broker
//! deaths and stops in a row.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is the report")]

#[path = "../support/mod.rs"]
mod support;

mod broker;
mod bursts;
mod caller;
mod crowds;
mod gateways;
mod lists;
mod machine;
mod observer;
mod signals;
