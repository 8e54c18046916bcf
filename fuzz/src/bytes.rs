//! Reads choices from the fuzzer's bytes. Past their end everything is 0, so that any prefix is a case of its own.

/// Bytes, read from the front.
pub struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u8) -> u8 {
        self.byte() % n
    }

    /// A number of any size: half of them small, the rest spread over all magnitudes, the ends included.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            255 => u64::MAX,
            254 => i64::MAX as u64,
            small @ 0..128 => u64::from(small),
            shift => u64::from(u16::from_be_bytes([self.byte(), self.byte()])) << ((shift - 128) / 3),
        }
    }
}
