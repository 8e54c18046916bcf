//! That the documents name what is there, and all of it: files, checkers of the simulator, tests and benches.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const DOCUMENTS: [(&str, &str); 4] = [
    ("README.md", include_str!("../README.md")),
    ("ARCHITECTURE.md", include_str!("../ARCHITECTURE.md")),
    ("docs/performance.md", include_str!("../docs/performance.md")),
    ("docs/reliability.md", include_str!("../docs/reliability.md")),
];

fn document(name: &str) -> &'static str {
    DOCUMENTS.iter().find(|(document, _)| *document == name).expect("a document").1
}

/// What a text has between single backquotes, outside of its blocks of code.
fn quoted(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|prose| prose.split('`').skip(1).step_by(2)).collect()
}

/// The folders and sources of the repository, from its root on.
fn files() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    let mut folders: Vec<PathBuf> =
        ["src", "tests", "benches", "fuzz", "examples", "proto"].map(|name| root.join(name)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            found.insert(path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned());
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            }
        }
    }
    found
}

/// The names of what is in a folder, without their ending.
fn entries(folder: &str) -> Vec<String> {
    let found = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).expect("a folder");
    let paths = found.map(|entry| entry.expect("an entry").path());
    let sources = paths.filter(|path| path.is_dir() || path.extension().is_some_and(|ending| ending == "rs"));
    sources.map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned()).collect()
}

/// The checkers that the simulator runs.
fn checkers() -> BTreeSet<&'static str> {
    let lines = include_str!("sim/checkers/mod.rs").lines().filter_map(|line| line.trim().strip_prefix("Box::new("));
    lines.map(|line| line.split("::").nth(1).expect("module::Checker").trim_end_matches([')', ','])).collect()
}

#[test]
fn every_source_that_a_document_names_is_there() {
    let files = files();
    let mut named = 0;
    for (document, text) in DOCUMENTS {
        for name in quoted(text).into_iter().filter(|name| name.ends_with(".rs") && !name.contains(['*', ' '])) {
            named += 1;
            let is_it = |file: &String| {
                file.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('/'))
            };
            assert!(files.iter().any(is_it), "{document} names {name}, which is not there");
        }
    }
    assert!(named > 100, "only {named} sources found: the search is broken");
}

#[test]
fn every_part_that_the_architecture_names_is_there() {
    let files = files();
    let is_path = |name: &&str| name.contains('/') && name.chars().all(|c| c.is_ascii_lowercase() || "_/".contains(c));
    let mut named = 0;
    for name in quoted(document("ARCHITECTURE.md")).into_iter().filter(is_path) {
        named += 1;
        let name = name.trim_end_matches('/');
        let places = [name.to_owned(), format!("src/{name}"), format!("src/{name}.rs"), format!("benches/{name}")];
        // The folders that the search begins in are not in what it finds.
        assert!(places.iter().any(|place| files.contains(place)) || name == "fuzz" || name == "benches", "{name}");
    }
    assert!(named > 30, "only {named} parts found: the search is broken");
}

#[test]
fn every_rule_is_in_the_file_that_the_architecture_names() {
    let table = document("ARCHITECTURE.md").split_once("\n## Where is").expect("the section").1;
    let table = table.split_once("\n## ").expect("and another").0;
    let mut found = 0;
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        let mut file = None;
        for name in quoted(row.rsplit(" | ").next().unwrap_or_default()) {
            if name.ends_with(".rs") {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(name);
                file = Some(fs::read_to_string(path).unwrap_or_else(|error| panic!("src/{name}: {error}")));
            } else if let Some(text) = &file {
                found += 1;
                for word in name.split("::") {
                    let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
                    assert!(words.any(|other| other == word), "{word} is not where it should be: {row}");
                }
            }
        }
    }
    assert!(found > 30, "only {found} rules found: the search is broken");
}

#[test]
fn what_every_change_is_searched_by_is_as_much_as_is_said() {
    let number = |text: &str, before: &str| {
        let digits = text.split_once(before).expect(before).1.split(';').next().unwrap_or_default();
        digits.replace('_', ",")
    };
    let cases = number(include_str!("model.rs"), "const CASES: u32 = ");
    let seeds = number(include_str!("sim/runner.rs"), "const SEEDS: u64 = ");
    let said = format!("with every change is smaller: {cases} cases, {seeds} seeds,");
    assert!(document("docs/reliability.md").contains(&said), "docs/reliability.md does not say {said:?}");
}

#[test]
fn every_reason_for_dropping_something_is_in_the_readme() {
    let readme = quoted(document("README.md"));
    let mut reasons = BTreeSet::new();
    for source in files().into_iter().filter(|file| file.starts_with("src/") && file.ends_with(".rs")) {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(source)).expect("a source");
        let counted = text.split("\"orchestrator_dropped_total\", \"reason\" => \"").skip(1);
        reasons.extend(counted.filter_map(|rest| rest.split('"').next()).map(str::to_owned));
    }
    assert!(reasons.len() > 12, "only {} reasons found: the search is broken", reasons.len());
    for reason in reasons {
        assert!(readme.contains(&&*reason), "README.md lacks the reason {reason}");
    }
}

#[test]
fn every_test_and_bench_is_in_the_tables() {
    let named = quoted(document("ARCHITECTURE.md"));
    for test in entries("tests") {
        let is_it = |name: &&str| name.trim_end_matches('/').trim_end_matches(".rs") == format!("tests/{test}");
        assert!(named.iter().any(is_it), "ARCHITECTURE.md lacks tests/{test}");
    }
    let [readme, performance] = ["README.md", "docs/performance.md"].map(document);
    let commands: Vec<&str> = readme.lines().filter(|line| line.starts_with("cargo bench")).collect();
    for bench in entries("benches").into_iter().filter(|name| name != "support") {
        let is_it = |name: &&str| name.strip_prefix(&*bench).is_some_and(|ending| matches!(ending, ".rs" | "/"));
        assert!(named.iter().any(is_it), "ARCHITECTURE.md lacks the bench {bench}");
        assert!(performance.contains(&format!("`cargo bench --bench {bench}`")), "docs/performance.md lacks {bench}");
        let is_word = |line: &&str| line.split([' ', ',', ';']).any(|word| word == bench);
        assert!(commands.iter().any(is_word), "README.md lacks the bench {bench}");
    }
}

#[test]
fn every_checker_of_the_simulator_holds_a_promise() {
    let section = document("docs/reliability.md").split_once("\n## What is promised").expect("the section").1;
    let section = section.split_once("\n## ").expect("and another").0;
    let rows = section.lines().filter(|line| line.starts_with('|'));
    let named: BTreeSet<&str> = rows.flat_map(quoted).collect();
    let checkers = checkers();
    assert!(checkers.len() > 20, "only {} checkers found: the search is broken", checkers.len());
    for checker in &checkers {
        assert!(named.contains(checker), "docs/reliability.md lacks what {checker} holds");
    }
    // Names of types, but for what is no checker.
    let types =
        named.iter().filter(|name| name.starts_with(char::is_uppercase) && name.chars().all(char::is_alphanumeric));
    for name in types.filter(|name| **name != "Playout") {
        assert!(checkers.contains(name), "docs/reliability.md names {name}, which the simulator does not run");
    }
}
