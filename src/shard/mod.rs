//! Shards: a fixed number of threads, each around one engine.
//!
//! | file | job |
//! |---|---|
//! | `clock` | the time that a turn reads, and the clock of all shards |
//! | `totals` | what all shards together count |
//! | `router` | stream id → partition → shard, and the shards' mailboxes |
//! | `mailbox` | the bounded queue into a shard |
//! | `ingress` | a message from outside → mail for a shard, or a refusal |
//! | `turn` | one turn: a batch of mail, what is due, what is owed for it |
//! | `feed` | the one way to the engine: decode, handle |
//! | `record` | what each engine was fed, in a file, and its replay |
//! | `log` | what an operator reads of it |
//! | `owed` | what has yet to be published: newest tick of each stream, every change |
//! | `answers` | the answers among it, apart and bounded |
//! | `batches` | updates gathered into messages of a feed that the connection takes |
//! | `thread` | the thread: turns, sleep, panics |
//!
//! All but the last are plain functions of their arguments, so a simulator can run them in a time of its own. A shard
//! does not know where its messages come from nor how what it owes is sent.

mod answers;
mod batches;
pub mod clock;
pub mod feed;
pub mod ingress;
mod log;
pub mod mailbox;
pub mod owed;
pub mod record;
pub mod router;
pub mod thread;
pub mod totals;
pub mod turn;
