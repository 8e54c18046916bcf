//! The direction of the arrows: which part may know which. Walks the sources and fails on an arrow that is not in the
//! table of ARCHITECTURE.md, and on anything in engine and timeline that would make them depend on more than their arguments.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Part, and the parts it may use. `None`: any.
const MAY_USE: [(&str, Option<&[&str]>); 11] = [
    ("timeline", Some(&[])),
    ("engine", Some(&["timeline"])),
    ("wire", Some(&["engine", "timeline"])),
    ("shard", Some(&["engine", "wire"])),
    ("transport", Some(&[])),
    ("service", Some(&["engine", "shard", "transport", "wire"])),
    ("client", Some(&["timeline", "transport", "wire"])),
    ("gateway", Some(&["client"])),
    ("telemetry", None),
    ("config", None),
    ("lib", None),
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
fn the_search_finds_an_arrow_in_every_form() {
    let text =
        "use crate::{\n    engine::{A, wire},\n    shard,\n};\nuse crate::client::B;\nfn f() { crate::gateway::g() }";
    assert_eq!(parts_used(text), ["client", "engine", "gateway", "shard"]);
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
