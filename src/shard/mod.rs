//! Shards: a fixed number of threads, each around one engine.
//!
//! | file | job |
//! |---|---|
//! | `clock` | the time that a turn reads, and the clock of all shards |
//! | `totals` | what all shards together count |
//! | `router` | stream id → partition → shard, and the shards' mailboxes |
//! | `mailbox` | the bounded queue into a shard |
//! | `ingress` | a message from outside → mail for shards, or a refusal |
//! | `split` | a batch in pieces: each for one shard and one turn |
//! | `gather` | what several shards do of one request, and its answer |
//! | `page` | a page of the list of streams, out of what the shards have listed |
//! | `turn` | one turn: a batch of mail, what is due, what is owed for it |
//! | `handle` | one message: to the engine and back as an answer |
//! | `engine_op` | the one way to the engine: decode, handle |
//! | `record` | what each engine was fed, in a file, and its replay |
//! | `log`, `throttle` | what an operator reads of it, and how much of what a stranger causes |
//! | `publish_queue` | what has yet to be published: newest tick of each stream, every change |
//! | `publication` | what is published, where, and how much of it at once |
//! | `answers` | the answers among it, apart and bounded |
//! | `batches` | updates gathered into messages of a feed that the connection takes |
//! | `encoded` | an update, encoded once wherever it goes |
//! | `filtered` | to whose filters it goes besides, and what is held for them |
//! | `thread` | the thread: turns, sleep, panics |
//!
//! All but the last are plain functions of their arguments, so a simulator can run them in a time of its own. A shard
//! does not know where its messages come from nor how what it owes is sent.

mod answers;
mod batches;
pub mod clock;
mod encoded;
pub mod engine_op;
mod filtered;
pub mod gather;
mod handle;
pub mod ingress;
mod log;
pub mod mailbox;
pub mod page;
mod publication;
pub mod publish_queue;
pub mod record;
pub mod router;
pub mod split;
pub mod thread;
mod throttle;
pub mod totals;
pub mod turn;

#[cfg(test)]
mod shards_tests;
