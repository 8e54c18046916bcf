//! How the sources are laid out: lines that fit beside each other on a screen, names that fit into a line, files that
//! have one subject.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The longest line, comments and texts included, characters.
const MAX_COLUMNS: usize = 125;
/// The longest name of a function, and so of a test, characters: a report of tests has one in each line.
const MAX_NAME: usize = 63;
/// The longest file of the library, lines: beyond it there are two subjects in it.
const MAX_LINES: usize = 750;

const FOLDERS: [&str; 5] = ["src", "tests", "benches", "examples", "fuzz"];

#[test]
fn no_line_is_longer_than_a_screen_is_wide() {
    let mut lines = 0;
    for (path, text) in sources() {
        for (number, line) in (1..).zip(text.lines()) {
            lines += 1;
            let columns = line.chars().count();
            assert!(columns <= MAX_COLUMNS, "{}:{number} has {columns} columns", path.display());
        }
    }
    assert!(lines > 50_000, "only {lines} lines found: the search is broken");
}

#[test]
fn no_name_of_a_test_is_longer_than_a_line_of_a_report() {
    let mut found = 0;
    for (path, text) in sources() {
        for name in names_of_functions(&text) {
            found += 1;
            assert!(name.len() <= MAX_NAME, "{}: {name} has {} characters", path.display(), name.len());
        }
    }
    assert!(found > 3_000, "only {found} functions found: the search is broken");
}

#[test]
fn no_file_of_the_library_is_longer_than_one_subject_takes() {
    let mut files = 0;
    for (path, text) in sources().into_iter().filter(|(path, _)| path.starts_with("src")) {
        files += 1;
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines", path.display());
    }
    assert!(files > 100, "only {files} files found: the search is broken");
}

#[test]
fn the_search_finds_names_in_every_form() {
    let text = "fn a() {}\npub(crate) async fn b<T>(x: T) {}\n    const fn c()\nlet f: fn(u8) = d; // fn e\n\
                proptest! { fn f( }";
    assert_eq!(names_of_functions(text).collect::<Vec<_>>(), ["a", "b", "c", "e", "f"]);
}

fn names_of_functions(text: &str) -> impl Iterator<Item = &str> {
    let names = text.match_indices("fn ").filter(|(place, _)| !text[..*place].ends_with(|c: char| c.is_alphanumeric()));
    let names = names.map(|(place, found)| &text[place + found.len()..]);
    let names = names.map(|rest| &rest[..rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())]);
    names.filter(|name| !name.is_empty())
}

/// All sources of ours, by their paths below the repository's root.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in FOLDERS {
        walk(&root.join(folder), &mut |path| {
            let inside = path.strip_prefix(root).expect("below the root").to_owned();
            found.push((inside, fs::read_to_string(path).expect("a source")));
        });
    }
    found
}

fn walk(folder: &Path, look: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        // Of what is built, nothing is ours.
        if path.is_dir() && !path.ends_with("target") {
            walk(&path, look);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            look(&path);
        }
    }
}
