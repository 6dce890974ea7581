//! Random choices of one case. The seed of the run and the number of the case determine them, so a
//! case can be run again alone.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Generator of the choices of one case.
pub(crate) struct Dice(StdRng);

impl Dice {
    /// Returns the generator of case `number` in the run with this seed.
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        // Neighbouring numbers must not give related generators, so the number is spread first.
        let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
        Self(StdRng::seed_from_u64(seed ^ spread))
    }

    /// Draws a number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    /// Returns true in `percent` of 100 draws.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// Returns one element of a list that is not empty.
    pub(crate) fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    /// Returns the bytes in pieces of random lengths, as they are written to a socket.
    pub(crate) fn pieces(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut cuts: Vec<usize> = match bytes.len() {
            0 | 1 => Vec::new(),
            length => (0..self.pick(&[0, 0, 0, 1, 2, 5]))
                .map(|_| 1 + self.below(length - 1))
                .collect(),
        };
        cuts.push(bytes.len());
        cuts.sort_unstable();
        let mut from = 0;
        let pieces = cuts.into_iter().map(|to| {
            let piece = bytes[from..to].to_vec();
            from = to;
            piece
        });
        pieces.filter(|piece| !piece.is_empty()).collect()
    }

    /// Returns the text with the case of each letter drawn, as field names may have it.
    pub(crate) fn cased(&mut self, text: &str) -> String {
        match self.below(4) {
            0 => text.to_ascii_lowercase(),
            1 => text.to_ascii_uppercase(),
            2 => text.to_owned(),
            _ => {
                let letter = |letter: char| match self.chance(50) {
                    true => letter.to_ascii_uppercase(),
                    false => letter.to_ascii_lowercase(),
                };
                text.chars().map(letter).collect()
            }
        }
    }

    /// Returns optional whitespace (RFC 9110 section 5.6.3), which is one space most of the time.
    pub(crate) fn whitespace(&mut self) -> &'static str {
        self.pick(&[" ", " ", " ", "", "  ", "\t", " \t "])
    }

    /// Puts the elements of a list into a random order.
    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last + 1));
        }
    }
}
