//! Prompts of the fakes of language models, which state the usage that they want, and the words of
//! the responses.

use super::{FakeRequest, FakeUsage};

/// Tokens in one event of a stream.
const TOKENS_PER_EVENT: u64 = 25;

/// Usage that a prompt asks for, as `input=50 cached=0 written=0 output=20`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prompt {
    /// Input tokens that neither came from the cache nor were written to it.
    pub(super) input: u64,
    pub(super) cached: u64,
    pub(super) written: u64,
    pub(super) output: u64,
}

impl Prompt {
    /// Reads the numbers in a request. A request without them has a quarter of its bytes as input.
    pub(super) fn of(request: &FakeRequest, produces: u64) -> Self {
        let text = String::from_utf8_lossy(&request.body);
        let number = |name: &str| {
            let (_, rest) = text.split_once(name)?;
            let end = rest.find(|c: char| !c.is_ascii_digit())?;
            rest.get(..end)?.parse::<u64>().ok()
        };
        Self {
            input: number("input=").unwrap_or(request.body.len() as u64 / 4),
            cached: number("cached=").unwrap_or(0),
            written: number("written=").unwrap_or(0),
            output: number("output=").unwrap_or(produces),
        }
    }

    /// Returns the whole text of the response.
    pub(super) fn text(self) -> String {
        words(0, self.output)
    }

    /// Returns the texts of the events of a stream, each with its number of tokens.
    pub(super) fn deltas(self) -> impl Iterator<Item = (String, u64)> {
        let starts = (0..self.output).step_by(TOKENS_PER_EVENT as usize);
        starts.map(move |from| {
            let to = (from + TOKENS_PER_EVENT).min(self.output);
            (words(from, to), to - from)
        })
    }

    /// Returns the usage that counts where the cache is read for nothing.
    pub(super) fn counted(self) -> FakeUsage {
        FakeUsage {
            input: self.input + self.written,
            output: self.output,
        }
    }
}

/// Returns one word for each of these tokens. They differ, so that they hardly compress.
fn words(from: u64, to: u64) -> String {
    let word = |token: u64| format!("{:x} ", (token * 2_654_435_761) % (1 << 32));
    (from..to).map(word).collect()
}
