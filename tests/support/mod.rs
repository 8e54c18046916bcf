//! What the integration tests share: processes, callers, messages, and waiting. Each test program declares it with
//! `#[path = "../support/mod.rs"] mod support;`, and uses a part of it.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod caller;
pub(crate) mod messages;
pub(crate) mod nats_binary;
pub(crate) mod nats_server;
#[cfg(feature = "program")]
pub(crate) mod program;
pub(crate) mod proxy;
pub(crate) mod waiting;
