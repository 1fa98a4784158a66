//! What the fuzz targets of all crates share: choices from the bytes that a fuzzer makes, and a
//! replay of the committed inputs.
//!
//! A target is a function that panics when its input shows a defect. So each checks more than "does
//! not crash": a second, naive reading of the specification, a round trip, or a bound. Targets are
//! in the rooms that they test. Package `fuzz` runs them under libFuzzer (`cargo xtask fuzz`).
#![allow(clippy::unwrap_used, reason = "for tests alone")]

mod replay;

pub use replay::replay;

/// A target: a name, which is also the name of its directory of inputs, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// Bytes, read as choices from front to back. When they are used up, every choice is zero.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of them.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether they are used up.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        byte
    }

    /// The lowest bit of the next byte.
    pub fn flag(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// The next two bytes, the higher one first.
    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }

    /// Up to `count` bytes.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// As many bytes as fit, the rest zero.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.u8())
    }

    /// A piece whose length is in one byte before it.
    pub fn piece(&mut self) -> &'a [u8] {
        let length = usize::from(self.u8());
        self.take(length)
    }

    /// Any text: a piece, with invalid UTF-8 replaced.
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(self.piece()).into_owned()
    }
}
