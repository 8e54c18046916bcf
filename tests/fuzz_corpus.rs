//! The fuzzers' checks, with the corpus that is kept in the repository: the same code as under `cargo fuzz`.

#![allow(unreachable_pub, reason = "shared with the fuzz crate")]

use std::{fs, path::Path};

#[path = "../fuzz/src/bytes.rs"]
mod bytes;
#[path = "../fuzz/src/decode.rs"]
mod decode;
#[path = "../fuzz/src/engine.rs"]
mod engine;
#[path = "../fuzz/src/rest_json.rs"]
mod rest_json;
#[path = "../fuzz/src/wheel.rs"]
mod wheel;

/// Runs each file of a target's corpus; a failure says which.
fn each_of(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut read = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is there") {
        let path = entry.expect("an entry").path();
        let input = fs::read(&path).expect("a case");
        assert!(std::panic::catch_unwind(|| check(&input)).is_ok(), "{} fails", path.display());
        read += 1;
    }
    assert!(read > 5, "only {read} cases in {}", folder.display());
}

#[test]
fn every_message_of_the_corpus_is_refused_or_understood() {
    each_of("decode", decode::check);
}

#[test]
fn the_engine_holds_its_invariants_through_the_whole_corpus() {
    each_of("engine", engine::check);
}

#[test]
fn the_wheel_fires_what_a_sorted_map_fires() {
    each_of("wheel", wheel::check);
}

#[test]
fn every_body_of_the_corpus_is_refused_or_understood() {
    each_of("rest_json", rest_json::check);
}
