//! Decoder of a body with any list of codings. Its work and its memory are bounded.

use std::borrow::Cow;

use super::coding::{CodingStage, Codings};
use super::memory::{DecoderMemory, Held};
use crate::bounds::{DECODED_FREE, DECODED_MAX, DECODED_RATIO, DECODER_WINDOW};

/// Bytes that one step of a decoder makes at most.
const STEP: usize = 8 * 1024;

/// Decoder of a body. Input is pushed in as it passes, and the output goes to a sink.
#[derive(Debug)]
pub struct Decoder {
    stages: Vec<CodingStage>,
    memory: Held,
    work: DecodeWork,
}

/// Reason for which the rest of a body is not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Undecoded {
    /// The body is not what its `Content-Encoding` says.
    #[error("it is not what its content coding says")]
    Corrupt,
    /// The decoded body exceeds [`DECODED_MAX`], or [`DECODED_RATIO`] times its coded size.
    #[error("it exceeds the bounds of decoded bodies")]
    TooLarge,
    /// The decoders of all bodies use all of [`DECODERS_MEMORY`](crate::bounds::DECODERS_MEMORY),
    /// or this one needs more than [`DECODER_WINDOW`].
    #[error("no memory is left for decoders")]
    NoMemory,
}

/// Bytes that were pushed in, and bytes that all stages made.
#[derive(Debug)]
struct DecodeWork {
    taken: u64,
    made: u64,
    /// Bytes that the stages may make.
    most: u64,
}

impl DecodeWork {
    /// Adds the output of a step. All stages count, because each can make much of little.
    fn add(&mut self, made: usize) -> Result<(), Undecoded> {
        self.made = self.made.saturating_add(made as u64);
        let by_ratio = self.taken.saturating_mul(DECODED_RATIO);
        let most = DECODED_FREE.saturating_add(by_ratio).min(self.most);
        (self.made <= most).then_some(()).ok_or(Undecoded::TooLarge)
    }
}

impl Decoder {
    /// Creates a decoder that counts its memory in `memory`.
    pub fn new(codings: &Codings, memory: &DecoderMemory) -> Self {
        Self {
            stages: codings.stages().collect(),
            memory: Held::none(memory.clone()),
            work: DecodeWork {
                taken: 0,
                made: 0,
                most: DECODED_MAX,
            },
        }
    }

    /// Decodes all of `input`, and passes the output to `sink` in pieces.
    ///
    /// # Errors
    /// Returns the reason for which the rest of the body cannot be decoded.
    pub fn push(&mut self, input: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<(), Undecoded> {
        if self.stages.is_empty() {
            sink(input);
            return Ok(());
        }
        self.work.taken = self.work.taken.saturating_add(input.len() as u64);
        self.count_memory()?;
        run(&mut self.stages, &mut self.work, input, sink)?;
        self.count_memory()
    }

    /// Returns true if the body is coded.
    pub const fn decodes(&self) -> bool {
        !self.stages.is_empty()
    }

    /// Returns the bytes that the decoder has made so far.
    pub const fn made(&self) -> u64 {
        self.work.made
    }

    fn count_memory(&mut self) -> Result<(), Undecoded> {
        let each = self.stages.iter().map(CodingStage::memory);
        let fits = each.clone().all(|bytes| bytes <= 2 * DECODER_WINDOW);
        let fits = fits && self.memory.set(each.sum());
        fits.then_some(()).ok_or(Undecoded::NoMemory)
    }
}

/// Decodes a whole body, or returns `None` if it cannot be decoded to at most `most` bytes.
pub fn decode_whole<'a>(codings: &Codings, body: &'a [u8], most: usize) -> Option<Cow<'a, [u8]>> {
    if codings.is_identity() {
        return (body.len() <= most).then_some(Cow::Borrowed(body));
    }
    // The decoder ends with this call, so its memory is not counted with that of the others.
    let mut decoder = Decoder::new(codings, &DecoderMemory::default());
    // Each stage may make as much, so that the last one is not cut by the work of the first.
    decoder.work.most = (most as u64).saturating_mul(decoder.stages.len() as u64);
    let mut text = Vec::new();
    let pushed = decoder.push(body, &mut |made| text.extend_from_slice(made));
    (pushed.is_ok() && text.len() <= most).then_some(Cow::Owned(text))
}

fn run(
    stages: &mut [CodingStage],
    work: &mut DecodeWork,
    mut input: &[u8],
    sink: &mut dyn FnMut(&[u8]),
) -> Result<(), Undecoded> {
    let Some((stage, rest)) = stages.split_first_mut() else {
        sink(input);
        return Ok(());
    };
    let mut output = [0; STEP];
    loop {
        let step = stage.step(input, &mut output);
        let step = step.map_err(|_corrupt| Undecoded::Corrupt)?;
        work.add(step.made)?;
        input = input.get(step.taken..).unwrap_or_default();
        if let Some(made) = output.get(..step.made).filter(|made| !made.is_empty()) {
            run(rest, work, made, sink)?;
        }
        if input.is_empty() && !step.more {
            return Ok(());
        }
    }
}
