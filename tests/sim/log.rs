//! What happened, as a hash over everything, and as text for a reader if wanted.

use crate::rng::mix;

#[derive(Debug, Default)]
pub struct Log {
    hash: u64,
    events: u64,
    print: bool,
}

impl Log {
    pub fn new(print: bool) -> Self {
        Self { print, ..Self::default() }
    }

    /// One thing that happened, at a time in ms since the world began.
    pub fn note(&mut self, at: u64, what: &'static str, numbers: &[u64], bytes: &[u8]) {
        self.events += 1;
        let mut hash = mix(self.hash ^ at);
        for number in numbers {
            hash = mix(hash ^ number);
        }
        hash = mix(hash ^ hash_of(what.as_bytes()) ^ hash_of(bytes));
        self.hash = hash;
        if self.print {
            println!("{:>9}.{:03} {what} {numbers:?}", at / 1_000, at % 1_000);
        }
    }

    /// More about what was noted last, for a reader only.
    pub fn tell(&self, text: impl FnOnce() -> String) {
        if self.print {
            println!("{:>14}   {}", "", text());
        }
    }

    /// The hash so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many things happened.
    pub fn events(&self) -> u64 {
        self.events
    }
}

/// A hash of bytes that is the same in every run.
pub fn hash_of(bytes: &[u8]) -> u64 {
    let mut hash = bytes.len() as u64;
    let (chunks, rest) = bytes.as_chunks::<8>();
    for chunk in chunks {
        hash = mix(hash ^ u64::from_le_bytes(*chunk));
    }
    rest.iter().fold(hash, |hash, byte| mix(hash ^ u64::from(*byte)))
}
