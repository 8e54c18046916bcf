//! Times, sorted into steps of 10 µs.

use std::time::Duration;

const STEP_US: u64 = 10;
/// What takes longer is counted as the last step: 2 s.
const STEPS: usize = 200_000;

/// See the module.
#[derive(Clone, Debug)]
pub struct Histogram {
    steps: Vec<u64>,
    count: u64,
    longest_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { steps: vec![0; STEPS], count: 0, longest_us: 0 }
    }
}

impl Histogram {
    /// Adds one.
    pub fn add(&mut self, time: Duration) {
        let us = time.as_micros() as u64;
        self.steps[((us / STEP_US) as usize).min(STEPS - 1)] += 1;
        self.count += 1;
        self.longest_us = self.longest_us.max(us);
    }

    /// How many there are.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// What so large a share of them does not exceed, ms.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (step, count) in self.steps.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return ((step as u64 + 1) * STEP_US) as f64 / 1e3;
            }
        }
        self.longest_ms()
    }

    /// The longest, ms.
    pub fn longest_ms(&self) -> f64 {
        self.longest_us as f64 / 1e3
    }
}
