//! Options and environment variables, good and bad.

use std::{net::TcpListener, process::Output};

use crate::support::program::{Program, command};

/// The option's text in the help: from one option to the next.
fn documented(subcommand: &[&str]) -> Vec<(String, String)> {
    let output = command(&[subcommand, &["--help"]].concat()).output().unwrap();
    assert!(output.status.success());
    let mut options: Vec<(String, String)> = Vec::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let name = line.split_whitespace().find(|word| word.starts_with("--"));
        match (line.trim_start().starts_with('-'), name) {
            (true, Some(name)) if !line.trim_start().starts_with("- ") => {
                options.push((name.to_owned(), line.to_owned()));
            }
            _ => {
                if let Some((_, text)) = options.last_mut() {
                    *text += line;
                }
            }
        }
    }
    options
}

#[test]
fn every_option_has_an_environment_variable() {
    let mut seen = Vec::new();
    for subcommand in [&[][..], &["serve"], &["gateway"], &["standalone"]] {
        for (name, text) in documented(subcommand) {
            if ["--help", "--version"].contains(&&*name) {
                continue;
            }
            let variable = name.trim_start_matches("--").to_uppercase().replace('-', "_");
            let variable = if variable.starts_with("NATS_") { variable } else { format!("ORCH_{variable}") };
            assert!(text.contains(&format!("[env: {variable}")), "{subcommand:?} {name}: {text}");
            seen.push(name);
        }
    }
    for name in
        ["--nats-url", "--http-addr", "--admin-addr", "--shards", "--stale-timeout", "--idle-timeout", "--max-streams"]
    {
        assert!(seen.iter().any(|seen| seen == name), "{name} is documented");
    }
}

/// The options of one of the README's tables, each with its line.
fn in_the_readme(heading: &str) -> Vec<(&'static str, &'static str)> {
    let table = include_str!("../../README.md").split_once(&format!("\n{heading}:\n\n")).expect(heading).1;
    let rows = table.lines().take_while(|line| line.starts_with('|')).skip(2);
    rows.flat_map(|row| {
        let names = row.split(" | ").next().unwrap_or_default();
        names.split('`').filter(|word| word.starts_with("--")).map(move |name| (name, row))
    })
    .collect()
}

#[test]
fn the_readme_has_every_option_with_its_variable_at_its_program() {
    let [all, service, gateway] = [
        "Of all of them, but for NATS in `standalone`",
        "The service's (`serve`, `standalone`)",
        "A gateway's (`gateway`, `standalone`)",
    ]
    .map(in_the_readme);
    let without = |names: &[&str]| {
        let all = [&all[..], &service, &gateway].concat();
        all.into_iter().filter(|(name, _)| !names.contains(name)).collect::<Vec<_>>()
    };
    let standalone = without(&["--nats-url", "--nats-creds", "--updates"]);
    for (subcommand, listed) in [
        ("serve", [&all[..], &service].concat()),
        ("gateway", [&all[..], &gateway].concat()),
        ("standalone", standalone),
    ] {
        let mut documented = documented(&[subcommand]);
        documented.retain(|(name, _)| name != "--help");
        let mut names: Vec<&str> = documented.iter().map(|(name, _)| &**name).collect();
        let mut known: Vec<&str> = listed.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(known, names, "the README beside {subcommand} --help");
        for (name, text) in &documented {
            let variable = text.split("[env: ").nth(1).and_then(|rest| rest.split(['=', ']']).next());
            let variable = format!("`{}`", variable.expect("a variable"));
            let row = listed.iter().find(|(listed, _)| listed == name).expect("it is known").1;
            assert!(row.contains(&variable), "{name}: {row}");
        }
    }
}

/// It was refused with this in its words.
fn assert_refused(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && output.status.code().is_some(), "{}: {text}", output.status);
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

/// The same, with all of it in the first line.
fn assert_refused_at_once(output: &Output, words: &[&str]) {
    assert_refused(output, words);
    let text = String::from_utf8_lossy(&output.stderr);
    let first = text.lines().next().unwrap_or_default();
    assert!(words.iter().all(|word| first.contains(word)), "{words:?} on the first line: {text}");
}

#[test]
fn a_value_out_of_its_limits_is_refused_with_option_and_limits() {
    for (option, value, words) in [
        ("--shards", "0", "1..=256"),
        ("--shards", "257", "1..=256"),
        ("--shards", "many", "invalid digit"),
        ("--max-streams", "0", "1..="),
        ("--max-streams", "18446744073709551615", "1..="),
        ("--max-subscribers", "0", "1..="),
        ("--max-message-bytes", "4294967295", "1024..=67108864"),
        ("--stale-timeout", "0s", "1s to 365days"),
        ("--stale-timeout", "1ms", "1s to 365days"),
        ("--stale-timeout", "999ms", "1s to 365days"),
        ("--stale-timeout", "soon", "try 90s"),
        ("--idle-timeout", "366days", "1ms to 365days"),
        ("--admin-addr", "nowhere", "invalid socket address"),
        ("--http-addr", "localhost", "invalid socket address"),
        ("--publish", "nowhere", "subjects, feed, both"),
        ("--colour", "blue", "unexpected argument"),
    ] {
        let output = command(&["standalone", option, value]).output().unwrap();
        assert_refused(&output, &[option, words]);
        assert_eq!(output.status.code(), Some(2), "as of wrong usage");
    }
}

#[test]
fn a_bad_value_in_the_environment_is_refused_too() {
    let output = command(&[]).env("ORCH_SHARDS", "0").output().unwrap();
    assert_refused(&output, &["--shards", "1..=256"]);
    let output = command(&["gateway"]).env("ORCH_UPDATES", "both").output().unwrap();
    assert_refused(&output, &["--updates", "subjects, feed"]);
    let output = command(&["gateway"]).env("ORCH_HTTP_ADDR", "nowhere").output().unwrap();
    assert_refused(&output, &["--http-addr", "nowhere"]);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let output = command(&["serve", "--min-tick-interval", "2s", "--max-tick-interval", "1s"]).output().unwrap();
    assert_refused_at_once(&output, &["--min-tick-interval", "--max-tick-interval"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_seldom_heartbeats_are_refused_before_a_recording_begins() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("recording");
    for options in [
        &["--heartbeat-interval", "31s"][..],
        &["--heartbeat-interval", "3s", "--stale-timeout", "6s"],
        &["--heartbeat-interval", "30s", "--stale-timeout", "89s"],
    ] {
        let mut standalone = command(&["standalone", "--http-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"]);
        standalone.args(options).arg("--record").arg(&file);
        let (status, log) = Program::start(standalone).end().await;
        let first = log.lines().next().unwrap_or_default();
        assert_eq!(status.code(), Some(1), "{log}");
        for word in ["--heartbeat-interval", "--stale-timeout", options[1]] {
            assert!(first.contains(word), "{word}: {log}");
        }
        assert!(!file.exists());
    }
}

#[test]
fn a_bad_nats_url_or_creds_file_is_refused_with_the_option() {
    for program in ["serve", "gateway"] {
        let refuse = |option: &str, value: &str, words: &[&str]| {
            let arguments = [program, "--admin-addr", "127.0.0.1:0", option, value];
            let output = command(&arguments).env("NATS_URL", "nats://127.0.0.1:1").output().unwrap();
            assert_refused_at_once(&output, &[&[option], words].concat());
            assert!(!String::from_utf8_lossy(&output.stderr).contains("secret"), "{output:?}");
        };
        refuse("--nats-url", "not a url", &["NATS URL"]);
        refuse("--nats-url", "nats://user:secret@host:port", &["NATS URL"]);
        refuse("--nats-url", "nats://:secret@127.0.0.1:1", &["127.0.0.1:1", "no user"]);
        // The client has one login for all servers.
        refuse("--nats-url", "nats://a:secret@127.0.0.1:1,nats://b:secret@127.0.0.1:2", &["127.0.0.1:2", "login"]);
        refuse("--nats-creds", "/no/such/file", &["/no/such/file"]);
        refuse("--nats-creds", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), &["Cargo.toml"]);
    }
}

#[test]
fn a_port_in_use_is_refused_with_the_option_and_the_address() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let (taken, any) = (held.local_addr().unwrap().to_string(), "127.0.0.1:0");
    for arguments in [
        ["standalone", "--http-addr", &taken, "--admin-addr", any],
        ["gateway", "--http-addr", &taken, "--admin-addr", any],
    ] {
        assert_refused(&command(&arguments).output().unwrap(), &["--http-addr", &taken, "in use"]);
    }
    for arguments in [
        &["standalone", "--http-addr", any, "--admin-addr", &taken][..],
        &["gateway", "--http-addr", any, "--admin-addr", &taken],
        &["serve", "--admin-addr", &taken],
    ] {
        assert_refused(&command(arguments).output().unwrap(), &["--admin-addr", &taken, "in use"]);
    }
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_in_the_nats_url_is_not_logged() {
    let service = Program::serve("nats://user:pass-word@127.0.0.1:1", &[]);

    service.logged("NATS is away").await;

    assert!(!service.log().contains("pass-word"), "{}", service.log());
    let output = command(&["serve", "--help"]).env("NATS_URL", "nats://user:pass-word@127.0.0.1:1").output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stdout).contains("pass-word"));
}
