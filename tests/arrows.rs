//! The direction of the arrows: which part may know which, and which may name which crate. Walks the sources and fails on
//! an arrow that is not in the table of ARCHITECTURE.md, on a crate away from its home, on anything in engine and timeline
//! that would make them depend on more than their arguments, and on a metric without a description.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Part, and the parts it may use. `None`: any.
const MAY_USE: [(&str, Option<&[&str]>); 13] = [
    ("timeline", Some(&[])),
    ("engine", Some(&["timeline"])),
    ("subject", Some(&[])),
    ("wire", Some(&["engine", "subject", "timeline"])),
    ("shard", Some(&["engine", "wire"])),
    ("transport", Some(&["subject"])),
    ("service", Some(&["engine", "shard", "transport", "wire"])),
    ("client", Some(&["timeline", "transport", "wire"])),
    ("gateway", Some(&["client", "http"])),
    ("http", Some(&[])),
    ("telemetry", None),
    ("config", None),
    ("lib", None),
];

/// Crate, and the parts that may name it. What is to be replaced one day, such as the broker's client, or must not spread,
/// such as how options are read, has one home.
const HOMES: [(&str, &[&str]); 33] = [
    ("async_nats", &["transport"]),
    ("axum", &["gateway", "http", "telemetry"]),
    ("bytemuck", &["engine"]),
    ("bytes", &["client", "service", "shard", "subject", "transport", "wire"]),
    ("bytestring", &["subject"]),
    ("clap", &["config"]),
    ("fastrand", &["client", "transport"]),
    ("foldhash", &["engine", "shard"]),
    ("futures_util", &["client", "gateway", "http", "service", "transport"]),
    ("hashbrown", &["engine", "shard"]),
    ("humantime", &["config"]),
    ("hyper", &["http"]),
    ("hyper_util", &["http"]),
    ("nkeys", &["transport"]),
    ("metrics", &["client", "gateway", "http", "service", "shard", "telemetry", "transport"]),
    ("metrics_exporter_prometheus", &["telemetry"]),
    ("percent_encoding", &["gateway", "transport"]),
    ("prost", &["client", "service", "shard", "wire"]),
    ("rustix", &["http"]),
    ("safe_arch", &["engine"]),
    ("serde", &["gateway", "wire"]),
    ("serde_json", &["gateway", "http"]),
    ("serde_path_to_error", &["gateway"]),
    ("siphasher", &["engine"]),
    ("slab", &["client", "engine", "gateway", "transport"]),
    ("socket2", &["http"]),
    ("thiserror", &["client", "engine", "gateway", "service", "shard", "subject", "timeline", "transport", "wire"]),
    ("tokio", &["client", "gateway", "http", "service", "shard", "telemetry", "transport"]),
    ("tracing", &["client", "gateway", "http", "service", "shard", "telemetry", "transport"]),
    ("tracing_subscriber", &["telemetry"]),
    ("tungstenite", &["gateway"]),
    ("uuid", &["client", "engine", "gateway", "service", "transport"]),
    ("wide", &["engine"]),
];

/// The parts that are functions of their arguments.
const PURE: [&str; 2] = ["engine", "timeline"];

/// What these may not name: runtimes, bytes, the clock, chance, the system.
const IMPURE: [&str; 15] = [
    "tokio",
    "async_nats",
    "prost",
    "bytes::",
    "axum",
    "tracing",
    "Instant",
    "SystemTime",
    "std::time",
    "std::thread",
    "std::fs",
    "std::env",
    "RandomState",
    "std::collections::Hash",
    "rand::",
];

#[test]
fn every_arrow_between_parts_is_in_the_table() {
    let table: BTreeMap<&str, Option<&[&str]>> = MAY_USE.into_iter().collect();
    let mut arrows = 0;
    for (part, path, text) in sources() {
        let allowed = table.get(part.as_str()).unwrap_or_else(|| panic!("{part} is not in the table"));
        for used in parts_used(&text) {
            arrows += usize::from(used != part);
            let fine = used == part || allowed.is_none_or(|allowed| allowed.contains(&used.as_str()));
            assert!(fine, "{} uses {used}, which {part} may not know", path.display());
        }
    }
    assert!(arrows > 20, "only {arrows} arrows found: the search is broken");
}

#[test]
fn engine_and_timeline_depend_on_nothing_but_their_arguments() {
    let mut read = 0;
    for (part, path, text) in sources() {
        if PURE.contains(&part.as_str()) {
            read += 1;
            for word in IMPURE {
                assert!(!text.contains(word), "{} names {word}", path.display());
            }
        }
    }
    assert!(read > 10, "only {read} files of them found");
}

#[test]
fn every_crate_is_named_where_it_has_its_home() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).expect("Cargo.toml");
    let homes: BTreeMap<&str, &[&str]> = HOMES.into_iter().collect();
    let dependencies = dependencies(&manifest);
    for name in &dependencies {
        assert!(homes.contains_key(name.as_str()), "{name} has no home in the table");
    }
    for name in homes.keys() {
        assert!(dependencies.iter().any(|dependency| dependency == name), "{name} is no dependency");
    }
    let mut found = 0;
    for (part, path, text) in sources() {
        for (name, parts) in &homes {
            if names_crate(&text, name) {
                found += 1;
                assert!(parts.contains(&part.as_str()), "{} names {name}, which {part} may not know", path.display());
            }
        }
    }
    assert!(found > 100, "only {found} files name a crate: the search is broken");
}

#[test]
fn every_metric_that_a_part_counts_or_sets_is_described() {
    let (described, counted): (Vec<_>, Vec<_>) = sources().into_iter().partition(|(part, ..)| part == "telemetry");
    let described: BTreeSet<String> = described.iter().flat_map(|(.., text)| metrics_named(text)).collect();
    let counted: BTreeSet<String> = counted.iter().flat_map(|(.., text)| metrics_named(text)).collect();
    assert!(counted.len() > 30, "only {} metrics found: the search is broken", counted.len());
    let missing: Vec<_> = counted.difference(&described).collect();
    assert!(missing.is_empty(), "without a HELP in src/telemetry.rs: {missing:?}");
    let unused: Vec<_> = described.difference(&counted).collect();
    assert!(unused.is_empty(), "described, and counted nowhere: {unused:?}");
}

#[test]
fn the_search_finds_a_crate_in_every_form() {
    for text in [
        "use bytes::Bytes;",
        "use ::bytes::Bytes;",
        "fn f() -> bytes::Bytes {}",
        "#[derive(Debug, bytes::Parse)]",
        "use bytes as other;",
        "use bytes;",
        "extern crate bytes;",
        "use {bytes::Bytes, other::Other};",
    ] {
        assert!(names_crate(text, "bytes"), "{text}");
    }
    for text in ["use crate::bytes::X;", "let bytes = 1;", "megabytes::X", "self.bytes", "f(&bytes)", "mod bytes;"] {
        assert!(!names_crate(text, "bytes"), "{text}");
    }
}

#[test]
fn the_search_finds_an_arrow_in_every_form() {
    let text =
        "use crate::{\n    engine::{A, wire},\n    shard,\n};\nuse crate::client::B;\nfn f() { crate::gateway::g() }";
    assert_eq!(parts_used(text), ["client", "engine", "gateway", "shard"]);
}

/// Texts that are names of metrics, by their first word. (`client_id` is a field, and no metric.)
fn metrics_named(text: &str) -> Vec<String> {
    let is_name = |text: &&str| {
        let of_ours = ["orchestrator_", "client_", "gateway_"].iter().any(|first| text.starts_with(first));
        of_ours && *text != "client_id" && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    text.split('"').skip(1).filter(is_name).map(str::to_owned).collect()
}

/// The names of the crates that the program is built with, as sources spell them.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line == "[dependencies]" || line.starts_with("[target.") && line.ends_with(".dependencies]");
        } else if inside && let Some((name, _)) = line.split_once([' ', '=', '.']) {
            names.push(name.replace('-', "_"));
        }
    }
    names.retain(|name| !name.is_empty() && !name.starts_with('#'));
    names
}

/// Whether a path begins with the crate's name, or an import is of it as a whole.
fn names_crate(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(place, _)| {
        let (before, behind) = (&text[..place], &text[place + name.len()..]);
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let before = before.strip_suffix("::").filter(|root| !root.ends_with(is_word)).unwrap_or(before);
        let begins = !before.ends_with(is_word) && !before.ends_with([':', '.', '$']);
        let is_import = before.trim_end().ends_with("use") || before.trim_end().ends_with("extern crate");
        let is_whole = behind.starts_with(';') || behind.starts_with(" as ");
        begins && (behind.starts_with("::") || is_import && is_whole)
    })
}

/// All sources but the program's: part, path, and text without comments and without tests at the end of a file.
fn sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut |path| {
        let inside = path.strip_prefix(&root).expect("below src");
        let part = inside.components().next().expect("a part").as_os_str().to_string_lossy();
        let part = part.trim_end_matches(".rs").to_owned();
        if part != "main" {
            let text = fs::read_to_string(path).expect("a source");
            found.push((part, path.to_owned(), code_of(&text)));
        }
    });
    assert!(found.len() > 30, "only {} sources found", found.len());
    found
}

fn walk(folder: &Path, look: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            walk(&path, look);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            look(&path);
        }
    }
}

fn code_of(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(text);
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The first names behind `crate::`, and those in the braces of a `use crate::{…}`, sorted.
fn parts_used(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (place, _) in text.match_indices("crate::") {
        let rest = &text[place + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            used.extend(top_level_names(list));
        } else {
            used.push(leading_name(rest));
        }
    }
    used.retain(|name| !name.is_empty());
    used.sort();
    used.dedup();
    used
}

/// The names at depth 1 of a brace list that has just been opened.
fn top_level_names(list: &str) -> Vec<String> {
    let (mut depth, mut names, mut expected) = (1, Vec::new(), true);
    for (place, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => expected = true,
            c if depth == 1 && expected && (c.is_alphanumeric() || c == '_') => {
                names.push(leading_name(&list[place..]));
                expected = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn leading_name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}
