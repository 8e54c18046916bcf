//! What the bench programs share: arguments, measurements of a process, tables, JSON and charts, and the design that
//! the service replaces.
//!
//! Each measurement runs in a process of its own, which the program starts from itself: so one contestant's memory and
//! caches are not another's, and what a contestant takes is what the process takes.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "part of several programs, of which each uses some")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss, reason = "a bench")]

pub mod actors;
pub mod chart;
pub mod ids;
pub mod lateness;
pub mod nats;
pub mod process;
pub mod report;

use std::{path::PathBuf, process::Command};

use report::{Report, Row};

/// The arguments of a bench program.
#[derive(Debug, Default)]
pub struct Args {
    /// Small numbers: done within a minute.
    pub quick: bool,
    /// Where the JSON and the charts go.
    pub out: PathBuf,
    /// Print the table and draw the charts of this JSON file, and measure nothing.
    pub draw: Option<PathBuf>,
    /// Only measurements whose name holds this.
    pub only: Option<String>,
    /// What a process that was started by [`measure`] is to measure.
    pub child: Option<Vec<String>>,
}

impl Args {
    /// Those of this process. What `cargo bench` adds for criterion is left aside.
    pub fn read() -> Self {
        let mut args = Self { out: PathBuf::from("target/bench"), ..Self::default() };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => args.quick = true,
                "--out" => args.out = words.next().expect("--out needs a folder").into(),
                "--draw" => args.draw = Some(words.next().expect("--draw needs a file").into()),
                "--measure" => args.child = Some(words.by_ref().collect()),
                "--bench" => {}
                "--help" | "-h" => {
                    println!("--quick: a minute; --out DIR: for JSON and charts; --draw FILE.json; NAME: only those");
                    std::process::exit(0);
                }
                other if other.starts_with('-') => panic!("unknown option {other}; see --help"),
                other => args.only = Some(other.to_owned()),
            }
        }
        args
    }

    /// Whether a measurement of that name is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }
}

/// Runs this program again to measure `what`, and waits for its rows: one line of JSON each.
pub fn measure(what: &[&str]) -> Vec<Row> {
    let program = std::env::current_exe().expect("the path of this program");
    let output = Command::new(program)
        .arg("--measure")
        .args(what)
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("this program runs again");
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        eprintln!("{}: {}\n{}", what.join(" "), output.status, String::from_utf8_lossy(&output.stderr));
        return Vec::new();
    }
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Tells the process that started this one.
pub fn tell(row: &Row) {
    println!("{}", serde_json::to_string(row).expect("a row is JSON"));
}

/// One step of a run: what [`measure`] is told, and for how long it takes on two cores, s.
pub type Step = (Vec<String>, u64);

/// A step's words.
pub fn step(words: &[&str], seconds: u64) -> Step {
    (words.iter().map(ToString::to_string).collect(), seconds)
}

/// Takes all steps, with a line for each; prints the table, writes the JSON, draws the charts.
pub fn run(name: &'static str, title: &str, args: &Args, steps: Vec<Step>) {
    if let Some(file) = &args.draw {
        let report = Report::load(file);
        report.print();
        return report.draw(file.parent().expect("a file is in a folder"));
    }
    let steps: Vec<Step> = steps.into_iter().filter(|(words, _)| args.wants(&words.join(" "))).collect();
    let seconds: u64 = steps.iter().map(|(_, seconds)| seconds).sum();
    println!("{title}: {} steps, about {seconds} s", steps.len());
    let mut report = Report::new(name, title, args.quick);
    for (place, (words, seconds)) in steps.iter().enumerate() {
        println!("[{}/{}] {} (about {seconds} s)", place + 1, steps.len(), words.join(" "));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        report.rows.extend(measure(&words));
    }
    report.print();
    report.save(&args.out);
    report.draw(&args.out);
}
