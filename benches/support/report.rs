//! Figures: as a table, as JSON, as charts.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{chart, process};

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured, such as "memory".
    pub what: String,
    /// At which size, such as "1 M".
    pub scale: String,
    /// Of whom.
    pub who: String,
    /// How much.
    pub value: f64,
    /// Of what unit.
    pub unit: String,
    /// What it should be, if there is an aim: "<=" or ">=" and a number.
    pub aim: Option<String>,
}

impl Row {
    /// A figure without an aim.
    pub fn new(what: &str, scale: &str, who: &str, value: f64, unit: &str) -> Self {
        let [what, scale, who, unit] = [what, scale, who, unit].map(str::to_owned);
        Self { what, scale, who, value, unit, aim: None }
    }

    /// A figure that is to be `aim`, such as "<= 80".
    pub fn aimed(self, aim: impl Into<String>) -> Self {
        Self { aim: Some(aim.into()), ..self }
    }

    fn is_reached(&self) -> Option<bool> {
        let (how, limit) = self.aim.as_deref()?.split_once(' ')?;
        let limit: f64 = limit.parse().ok()?;
        Some(if how == "<=" { self.value <= limit } else { self.value >= limit })
    }
}

/// All figures of a program.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// The program.
    pub name: String,
    /// What it is about.
    pub title: String,
    /// Where it ran.
    pub machine: String,
    /// When, s since 1970.
    pub at: u64,
    /// Whether with small numbers.
    pub quick: bool,
    /// The figures.
    pub rows: Vec<Row>,
}

/// The service itself, among the contestants.
pub const OURS: &str = "orchestrator";
/// The design it replaces.
pub const ACTORS: &str = "actors";
/// The least that does the same, which shows what the machine gives.
pub const LIMIT: &str = "limit";
/// A bare loop over async-nats.
pub const BARE: &str = "bare async-nats";

impl Report {
    /// An empty one.
    pub fn new(name: &str, title: &str, quick: bool) -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { name: name.to_owned(), title: title.to_owned(), machine: process::machine(), at, quick, rows: vec![] }
    }

    /// One that was saved.
    pub fn load(file: &Path) -> Self {
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    }

    /// Prints a row for each thing measured and a column for each contestant.
    pub fn print(&self) {
        let mut whos: Vec<&str> = Vec::new();
        let mut keys: Vec<(&str, &str, &str)> = Vec::new();
        for row in &self.rows {
            if !whos.contains(&row.who.as_str()) {
                whos.push(&row.who);
            }
            let key = (row.what.as_str(), row.scale.as_str(), row.unit.as_str());
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        println!("\n{} ({}{})\n", self.title, self.machine, if self.quick { ", quick" } else { "" });
        let mut lines =
            vec![[&["", "", ""][..], &whos[..], &["aim"][..]].concat().iter().map(|s| s.to_string()).collect()];
        for key in &keys {
            let of = |who: &str| {
                self.rows.iter().find(|row| (&*row.what, &*row.scale, &*row.unit) == *key && row.who == who)
            };
            let mut line = vec![key.0.to_owned(), key.1.to_owned(), key.2.to_owned()];
            line.extend(whos.iter().map(|who| of(who).map_or_else(|| "–".to_owned(), |row| number(row.value))));
            let aimed = self.rows.iter().find(|row| (&*row.what, &*row.scale, &*row.unit) == *key && row.aim.is_some());
            line.push(aimed.map_or_else(String::new, |row| {
                let verdict = if row.is_reached() == Some(true) { "" } else { ", **missed**" };
                format!("{}{verdict}", row.aim.as_deref().unwrap_or_default())
            }));
            lines.push(line);
        }
        print_columns(&lines);
    }

    /// Writes the JSON.
    pub fn save(&self, folder: &Path) {
        fs::create_dir_all(folder).expect("the folder can be made");
        let file = folder.join(format!("{}.json", self.name));
        let text = serde_json::to_string_pretty(self).expect("figures are JSON");
        fs::write(&file, text + "\n").expect("the file can be written");
        println!("\nwritten: {}", file.display());
    }

    /// Draws one chart for each thing measured that has several contestants or sizes.
    pub fn draw(&self, folder: &Path) {
        let whats: BTreeSet<&str> = self.rows.iter().map(|row| row.what.as_str()).collect();
        for what in whats {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.what == what).collect();
            if rows.len() < 2 {
                continue;
            }
            let name: String = what.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
            let file = folder.join(format!("{}-{}.svg", self.name, name.trim_matches('-')));
            chart::bars(&file, what, &rows);
            println!("drawn:   {}", file.display());
        }
    }
}

/// Three digits that count.
pub fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 100_000.0 {
        let whole = format!("{value:.0}");
        let mut text = String::new();
        for (place, digit) in whole.chars().enumerate() {
            if place > 0 && (whole.len() - place) % 3 == 0 {
                text.push(',');
            }
            text.push(digit);
        }
        return text;
    }
    let digits = if magnitude >= 100.0 || magnitude == 0.0 {
        0
    } else if magnitude >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

/// As a table of Markdown, so that a document shows what the program printed. The first line is the head.
fn print_columns(lines: &[Vec<String>]) {
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default())
        .collect();
    for (place, line) in lines.iter().enumerate() {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            let space = " ".repeat(width - cell.chars().count());
            if column < 3 || column + 1 == line.len() { format!("{cell}{space}") } else { format!("{space}{cell}") }
        });
        println!("| {} |", cells.collect::<Vec<_>>().join(" | "));
        if place == 0 {
            println!("|{}", "---|".repeat(line.len()));
        }
    }
}
