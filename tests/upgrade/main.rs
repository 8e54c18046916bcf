//! Programs of before and of today understand each other.
//!
//! | file | what |
//! |---|---|
//! | `script` | what a gateway of before says |
//! | `recording` | that, with all that a service of before answered and published: `recorded.txt` |
//! | `replay` | today's service is told the same, and says the same but for what is new |
//! | `old_gateway` | a gateway of before reads what today's service says of what is new |
//! | `old_messages` | the contract as it was compiled then |

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is the report")]

#[path = "../support/mod.rs"]
mod support;

mod old_gateway;
mod old_messages;
mod recording;
mod replay;
mod script;
