//! Names of viewers and streams: UUIDs made of a number, the same in every run.

use uuid::Uuid;

/// A number that looks like a random one (splitmix64).
pub const fn scramble(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The number's UUID.
pub fn uuid(number: u64) -> Uuid {
    Uuid::from_u64_pair(scramble(number), scramble(!number))
}

/// Its text, 36 bytes.
pub fn text(number: u64) -> String {
    uuid(number).to_string()
}

/// The text of a stream's id.
pub fn stream(number: u64) -> String {
    text(number | 1 << 63)
}

/// Numbers below `end` in an order that looks random, the same in every run.
#[derive(Debug)]
pub struct Shuffled {
    state: u64,
    end: u64,
}

impl Shuffled {
    /// Begins at `seed`.
    pub const fn new(seed: u64, end: u64) -> Self {
        Self { state: seed, end }
    }
}

impl Iterator for Shuffled {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.state = self.state.wrapping_add(1);
        Some(((u128::from(scramble(self.state)) * u128::from(self.end)) >> 64) as u64)
    }
}
