//! A real service as a gateway's author sees it: protobuf over a transport, in real time, over both transports.
//!
//! Whatever takes time is awaited as such. Bounds are wide and only end a test that failed; what must not happen is
//! looked for behind something that comes later, such as an answer, never after a sleep.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is the report")]

/// Runs each case over both transports, each time with a broker of its own.
macro_rules! on_both_transports {
    ($($case:ident),* $(,)?) => {
        mod over_memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    crate::testbed::within_limit(super::$case(crate::testbed::Testbed::memory())).await;
                }
            )*
        }
        mod over_nats {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    crate::testbed::within_limit(async { super::$case(crate::testbed::Testbed::nats().await).await }).await;
                }
            )*
        }
    };
}

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod commands;
mod drain;
mod filters;
mod instances;
mod limits;
mod outages;
mod payloads;
mod queries;
mod reading_back;
mod refusals;
mod stale;
mod subscriptions;
mod testbed;
mod unwell;
mod updates;
