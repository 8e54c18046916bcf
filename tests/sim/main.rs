//! The whole service in virtual time: shards, ingress, mailboxes, what is owed, the publisher's decisions and real
//! bytes, on one thread under a scheduler that a seed decides, with a broker, gateways, viewers and directors around
//! it, and every fault that they can have.
//!
//! ```text
//! cargo test --release --test sim                                               # what CI runs
//! SIM_SEEDS=100000 SIM_FROM=0 cargo test --release --test sim -- --nocapture    # as many as you like
//! SIM_SEED=4711 SIM_LOG=1 cargo test --release --test sim -- --nocapture        # one, with all that happens in it
//! ```
//!
//! A seed is one run, to the byte. A run has three phases: one with faults, in which nothing may be wrong that anybody
//! sees; one without, after which all must have converged; and one in which everybody has left, after which nothing may
//! be left.
//!
//! | file | what |
//! |---|---|
//! | `plan` | what a seed makes of a world before time begins |
//! | `world` | time, the events to come, messages on their way, outages |
//! | `service` | the service, called as its threads call it |
//! | `net`, `reading` | connections; messages as they are sent and read |
//! | `client` | gateways built on the real client, which runs here as it is |
//! | `gateway`, `director` | those who use it; what happens at random |
//! | `audit` | what is asked and compared when all is quiet |
//! | `truth` | what an observer of everything knows |
//! | `checkers` | what must hold: **a new invariant goes there**, in one place |
//! | `runner` | many seeds, on all cores |

#![allow(unreachable_pub, reason = "a test crate")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod audit;
mod checkers;
mod client;
mod director;
mod gateway;
mod log;
mod net;
mod plan;
mod reading;
mod rng;
mod runner;
mod service;
mod truth;
mod world;

use std::sync::Arc;

use orchestrator_service::{
    shard::record::{Recorder, replay},
    wire::WireLimits,
};

use world::World;

#[test]
fn no_seed_breaks_anything() {
    runner::run_all();
}

#[test]
fn a_seed_run_twice_is_the_same_to_the_byte() {
    for seed in 0..40 {
        let (first, second) = (runner::run(seed, false).unwrap(), runner::run(seed, false).unwrap());
        assert!(first.events() > 100, "seed {seed}: hardly anything happened");
        assert_eq!(first.hash(), second.hash(), "seed {seed}");
    }
}

#[test]
fn a_recording_of_a_seed_replays_to_the_state_of_each_shard() {
    let directory = tempfile::tempdir().unwrap();
    let mut entries = 0;
    for seed in 0..20 {
        let file = directory.path().join(seed.to_string());
        let recorder = Recorder::create(&file, WireLimits::default()).unwrap();
        World::recorded(seed, false, Some(Arc::new(recorder))).record();

        let replayed = replay(&file).unwrap();

        entries += replayed.entries;
        assert!((replayed.panics, replayed.cut_off) == (0, false), "seed {seed}: {replayed:?}");
        for (shard, (digest, recorded)) in &replayed.digests {
            assert_eq!(Some(*digest), *recorded, "seed {seed}, shard {shard}: left replayed, right recorded");
        }
    }
    assert!(entries > 10_000, "hardly anything happened: {entries} entries");
}
