//! Sizes in bytes, as written in the configuration file.

use std::fmt;
use std::str::FromStr;

use crate::bounds::SIZE_MAX;

/// A size in bytes, written as `512KiB`, `64MiB`, `1GiB` or `100B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

/// The error for a text that is not a size of at most [`SIZE_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size of at most 1048576GiB; write it as \"64MiB\", \"512KiB\" or \"100B\"")]
pub struct ParseByteSizeError(String);

const UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl ByteSize {
    /// Creates a size of `count` bytes.
    pub const fn from_bytes(count: u64) -> Self {
        Self(count)
    }

    /// Returns the size as a number of bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }

    /// Returns the size as a length in memory, at most [`usize::MAX`].
    pub fn as_len(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = ParseByteSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || ParseByteSizeError(text.to_owned());
        let (number, scale) = UNITS
            .iter()
            .find_map(|(unit, scale)| Some((text.trim().strip_suffix(unit)?, *scale)))
            .ok_or_else(fail)?;
        let count: u64 = number.trim().parse().map_err(|_error| fail())?;
        let size = count.checked_mul(scale).filter(|size| *size <= SIZE_MAX);
        size.map(Self).ok_or_else(fail)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = UNITS
            .into_iter()
            .find(|(_, scale)| self.0 >= *scale && self.0.is_multiple_of(*scale))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_as_they_are_written() {
        for text in ["64MiB", "1GiB", "3KiB", "100B", "1025B"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        assert!("64".parse::<ByteSize>().is_err());
        assert!("99999999999999GiB".parse::<ByteSize>().is_err());
    }
}
