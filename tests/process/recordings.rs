//! Recordings: of a process that stops, of one that is killed, and files that are none.

use std::{fs, path::Path, process::Output};

use crate::{
    session::create,
    support::program::{Program, command},
    viewer::Viewer,
};

/// Standalone with three shards, recording into `file`.
fn recording(file: &Path) -> Program {
    let mut command = command(&["standalone", "--http-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"]);
    command.args(["--shards", "3", "--record"]).arg(file);
    Program::start(command)
}

/// How long the last entry is, its length included.
fn last_entry_bytes(recording: &[u8]) -> usize {
    let (mut at, mut last) = (0, 0);
    while at < recording.len() {
        let length = prost::decode_length_delimiter(&recording[at..]).expect("a length");
        last = prost::length_delimiter_len(length) + length;
        at += last;
    }
    last
}

/// Streams on several shards, viewers that come and go, calls that are carried out and refused.
async fn use_it(program: &Program) {
    for _ in 0..4 {
        let stream_id = create(program).await;
        let mut viewer = Viewer::of(program, &stream_id, "?client_id=first").await;
        viewer.until(|update| update["cause"] == "TICK").await;
        let second = Viewer::of(program, &stream_id, "?client_id=second&session=7").await;
        for (call, status) in [("skip", 200), ("pause", 200), ("scene/Nowhere", 404), ("resume", 200), ("start", 200)] {
            assert_eq!(program.call("POST", &format!("/streams/{stream_id}/{call}"), None).await.0, status, "{call}");
        }
        drop(second);
        viewer.until(|update| update["cause"] == "TICK").await;
    }
    assert_eq!(program.call("GET", "/streams", None).await.0, 200);
}

fn replay(file: &Path) -> Output {
    command(&["replay"]).arg(file).output().unwrap()
}

/// What a replay prints that comes to its end: its first line, what it says of each shard, and its warnings.
fn replayed(file: &Path) -> (String, Vec<String>, String) {
    let output = replay(file);
    let warnings = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{}: {warnings}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines().map(str::to_owned);
    (lines.next().unwrap(), lines.collect(), warnings)
}

/// It was refused with these words, and without a panic.
fn assert_refused(output: &Output, words: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(words) && !text.contains("panicked"), "{words}: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_comes_to_the_digests_that_the_process_logged() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("recording");
    let mut program = recording(&file);
    use_it(&program).await;
    program.stops_on("TERM").await;

    let (head, shards, warnings) = replayed(&file);

    assert_eq!(warnings, "");
    assert!(head.contains(" 0 panics") && !head.starts_with("0 entries"), "{head}");
    let log = program.log();
    let logged = log.lines().filter_map(|line| line.split_once("recording ends shard=")).map(|(_, rest)| {
        let (shard, digest) = rest.split_once(" digest=").expect("a hash");
        format!("shard {shard}: {digest} (as recorded)")
    });
    let mut logged: Vec<String> = logged.collect();
    logged.sort_unstable();
    assert_eq!(logged.len(), 3, "{log}");
    assert_eq!(shards, logged, "left replayed, right logged");

    // The same file without its end: in the middle of its last entry, and in front of it.
    let whole = fs::read(&file).unwrap();
    let last = last_entry_bytes(&whole);
    for (missing, where_it_stops) in [(1, "in the middle of an entry"), (last, "how shard")] {
        fs::write(&file, &whole[..whole.len() - missing]).unwrap();
        let (_, cut, warnings) = replayed(&file);
        assert!(warnings.starts_with("orchestrator_service: warning: "), "{warnings}");
        assert!(warnings.contains("not complete") && warnings.contains(where_it_stops), "{warnings}");
        let differing = cut.iter().zip(&shards).filter(|(cut, whole)| cut != whole).count();
        assert_eq!((cut.len(), differing), (3, 1), "the others agree: {cut:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_leaves_a_recording_to_the_moment_of_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("recording");
    let mut program = recording(&file);
    use_it(&program).await;
    program.signal("KILL");
    program.end().await;

    let (head, shards, warnings) = replayed(&file);

    assert!(warnings.contains("not complete"), "{warnings}");
    assert_eq!(shards.len(), 3, "{shards:?}");
    for (number, line) in shards.iter().enumerate() {
        let hash = line.strip_prefix(&format!("shard {number}: ")).expect("a shard");
        assert!(hash.ends_with(" (the recording does not say how it ended)"), "{line}");
        assert!(hash[..16].bytes().all(|byte| byte.is_ascii_hexdigit()), "{line}");
    }
    // Not only the beginning: each of the four streams told more than its creation.
    let updates: u64 = head.split(' ').nth(2).expect("a number").parse().unwrap();
    assert!(updates > 4 * 5, "{head}");
    assert_eq!(replayed(&file).1, shards, "a second replay comes to the same");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_is_not_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("recording");
    fs::write(&file, "of yesterday").unwrap();

    let mut program = recording(&file);
    let (status, log) = program.end().await;

    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("--record") && log.contains("exists"), "{log}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "of yesterday");
}

#[test]
fn what_is_no_recording_is_refused_with_words() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("recording");
    assert_refused(&replay(&file), "cannot read the recording");
    assert_refused(&replay(directory.path()), "cannot read the recording");
    for (content, words) in [
        (&b""[..], "no shard begins in it"),
        (b"\n", "no shard begins in it"),
        (include_bytes!("../../Cargo.toml"), "entry 0 is not one of a recording"),
        (include_bytes!("../../Cargo.lock"), "entry 0 is not one of a recording"),
        (&[0xff; 64], "its length is no length"),
        // Longer than any message, and not there.
        (&[0xff, 0xff, 0xff, 0x7f], "it is too long"),
        // An entry that says nothing, and one of a shard that has not begun.
        (&[0], "it says nothing"),
        (&[2, 0x60, 1], "its shard has not begun"),
    ] {
        fs::write(&file, content).unwrap();
        assert_refused(&replay(&file), words);
    }
}
