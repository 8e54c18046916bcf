//! Bars, with a logarithmic scale where figures lie far apart.

use std::path::Path;

use plotters::prelude::*;

use super::report::{Row, number};

const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 110, 150), RGBColor(210, 120, 40), RGBColor(120, 120, 120), RGBColor(90, 150, 60)];
/// Beyond this ratio of the greatest to the smallest, bars are drawn by their logarithm.
const FAR_APART: f64 = 30.0;

/// Draws one group of bars for each size and unit, one bar for each contestant.
pub fn bars(file: &Path, title: &str, rows: &[&Row]) {
    let mut whos: Vec<&str> = Vec::new();
    let mut groups: Vec<(&str, &str)> = Vec::new();
    for row in rows {
        if !whos.contains(&row.who.as_str()) {
            whos.push(&row.who);
        }
        if !groups.contains(&(&row.scale, &row.unit)) {
            groups.push((&row.scale, &row.unit));
        }
    }
    let positive = || rows.iter().map(|row| row.value).filter(|value| *value > 0.0);
    let (least, most) = (positive().fold(f64::INFINITY, f64::min), positive().fold(0.0, f64::max));
    if most <= 0.0 {
        return;
    }
    let logarithmic = most / least > FAR_APART;
    let height_of = |value: f64| {
        if !logarithmic {
            return value / most;
        }
        // A decade of room below, so that the smallest has a bar too.
        let (low, high) = (least.log10() - 1.0, most.log10());
        ((value.max(least / 10.0).log10() - low) / (high - low)).max(0.0)
    };
    let bar = 34.0;
    let group_width = bar * whos.len() as f64 + 40.0;
    let (width, height) = ((group_width * groups.len() as f64).max(420.0) as u32 + 40, 320);
    let root = SVGBackend::new(file, (width, height)).into_drawing_area();
    let drawn = (|| {
        root.fill(&WHITE)?;
        let scale = if logarithmic { " (logarithmic)" } else { "" };
        root.draw(&Text::new(format!("{title}{scale}"), (20, 12), ("sans-serif", 16)))?;
        for (place, who) in whos.iter().enumerate() {
            let x = 20 + 140 * place as i32;
            root.draw(&Rectangle::new([(x, 38), (x + 12, 50)], COLOURS[place % COLOURS.len()].filled()))?;
            root.draw(&Text::new((*who).to_owned(), (x + 18, 38), ("sans-serif", 13)))?;
        }
        let (floor, ceiling) = (f64::from(height) - 50.0, 90.0);
        for (group, (size, unit)) in groups.iter().enumerate() {
            let left = 20.0 + group_width * group as f64;
            let label = if size.is_empty() { (*unit).to_owned() } else { format!("{size}: {unit}") };
            root.draw(&Text::new(label, (left as i32, floor as i32 + 10), ("sans-serif", 12)))?;
            for (place, who) in whos.iter().enumerate() {
                let found = rows.iter().find(|row| (&*row.scale, &*row.unit) == (*size, *unit) && row.who == *who);
                let Some(row) = found else { continue };
                let x = left + bar * place as f64;
                let top = floor - (floor - ceiling) * height_of(row.value);
                let corners = [(x as i32, top as i32), ((x + bar - 6.0) as i32, floor as i32)];
                root.draw(&Rectangle::new(corners, COLOURS[place % COLOURS.len()].filled()))?;
                root.draw(&Text::new(number(row.value), (x as i32, top as i32 - 14), ("sans-serif", 11)))?;
            }
        }
        root.present()
    })();
    if let Err(error) = drawn {
        eprintln!("{}: {error}", file.display());
    }
}
