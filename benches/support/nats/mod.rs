//! What benches over a real nats-server share: the server, the program under test, contestants as processes of their
//! own, and who talks to them.

pub mod caller;
pub mod messages;
#[path = "../../../tests/support/nats_binary.rs"]
mod nats_binary;
pub mod program;
pub mod raw;
pub mod server;
