//! Content codings of a body (RFC 9110 section 8.4), each with a decoder that input is pushed into.

use std::fmt;

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState};
use flate2::{Decompress, FlushDecompress, Status};
use http::{HeaderMap, header};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, Operation as _};

use super::memory::Counted;
use crate::bounds::{CODINGS_MAX, DECODER_WINDOW, GZIP_MEMBERS};

/// Content codings of a body, in the order in which they are removed. It is empty for a body that
/// is not coded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Codings(Vec<Coding>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

impl Codings {
    /// Returns the codings that a head names, or `None` if one of them is unknown or there are more
    /// than [`CODINGS_MAX`].
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut codings = Vec::new();
        for value in headers.get_all(header::CONTENT_ENCODING) {
            for name in value.to_str().ok()?.split(',') {
                let name = name.trim().to_ascii_lowercase();
                codings.push(match &*name {
                    "" | "identity" => continue,
                    "gzip" | "x-gzip" => Coding::Gzip,
                    "deflate" => Coding::Deflate,
                    "br" => Coding::Brotli,
                    "zstd" => Coding::Zstd,
                    _ => return None,
                });
            }
        }
        // The last coding was applied last, so it is removed first.
        codings.reverse();
        (codings.len() <= CODINGS_MAX).then_some(Self(codings))
    }

    /// Returns true if the body is not coded.
    pub const fn is_identity(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn stages(&self) -> impl Iterator<Item = CodingStage> {
        self.0.iter().map(|coding| CodingStage::new(*coding))
    }
}

/// Progress of one step of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DecodeStep {
    /// Bytes of the input that were taken.
    pub(super) taken: usize,
    /// Bytes that were written to the output.
    pub(super) made: usize,
    /// True if a further step may make output without further input.
    pub(super) more: bool,
}

/// The input is not what the coding says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Corrupt;

type Brotli = BrotliState<Counted, Counted, Counted>;

/// Decoder of one coding.
pub(super) enum CodingStage {
    Gzip {
        inflate: Decompress,
        members: u32,
    },
    /// A body of `deflate` before its first byte, which tells zlib from a bare stream.
    Undecided,
    Deflate(Decompress),
    Brotli(Box<Brotli>, Counted),
    /// Decoder and the bytes that it made, which bound the used part of its window.
    Zstd(ZstdDecoder<'static>, u64),
    /// The end of the coding, after which further bytes are ignored, or a decoder without memory.
    Ended,
}

/// Bytes of memory of an inflate decoder: its window and its tables.
const INFLATE: u64 = 48 * 1024;
/// Bytes of memory of a zstd decoder besides its window: its tables and a block.
const ZSTD: u64 = 160 * 1024;
/// Window bits of a decoder for gzip, the largest that the format has.
const GZIP_BITS: u8 = 15;

impl CodingStage {
    fn new(coding: Coding) -> Self {
        match coding {
            Coding::Gzip => Self::Gzip {
                inflate: Decompress::new_gzip(GZIP_BITS),
                members: 1,
            },
            Coding::Deflate => Self::Undecided,
            Coding::Brotli => {
                let counted = Counted::default();
                let [one, two, three] = std::array::from_fn(|_| counted.clone());
                let state = Box::new(Brotli::new_strict(one, two, three));
                Self::Brotli(state, counted)
            }
            Coding::Zstd => {
                let window = DParameter::WindowLogMax(DECODER_WINDOW.ilog2());
                let decoder = ZstdDecoder::new();
                let decoder = decoder.and_then(|mut decoder| {
                    decoder.set_parameter(window)?;
                    Ok(decoder)
                });
                decoder.map_or(Self::Ended, |decoder| Self::Zstd(decoder, 0))
            }
        }
    }

    /// Returns the bytes of memory that the decoder uses.
    pub(super) fn memory(&self) -> u64 {
        match self {
            Self::Gzip { .. } | Self::Deflate(_) => INFLATE,
            Self::Brotli(_, counted) => size_of::<Brotli>() as u64 + counted.bytes(),
            Self::Zstd(_, made) => ZSTD + (*made).min(DECODER_WINDOW),
            Self::Undecided | Self::Ended => 0,
        }
    }

    /// Decodes a part of the input into `output`.
    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<DecodeStep, Corrupt> {
        match self {
            Self::Gzip { inflate, members } => {
                let (step, ended) = inflated(inflate, input, output)?;
                if ended && step.taken < input.len() {
                    *members += 1;
                    *inflate = Decompress::new_gzip(GZIP_BITS);
                    return (*members <= GZIP_MEMBERS).then_some(step).ok_or(Corrupt);
                }
                Ok(step)
            }
            Self::Undecided => {
                if let Some(first) = input.first() {
                    // The first byte of zlib names method 8. No encoder begins a bare stream so.
                    *self = Self::Deflate(Decompress::new(first & 0x0f == 8));
                    return self.step(input, output);
                }
                Ok(DecodeStep::NOTHING)
            }
            Self::Deflate(inflate) => {
                let (step, ended) = inflated(inflate, input, output)?;
                self.ended_if(ended, step, input)
            }
            Self::Brotli(state, _) => {
                let (mut left, mut taken) = (input.len(), 0);
                let (mut room, mut made, mut total) = (output.len(), 0, 0);
                let result = BrotliDecompressStream(
                    &mut left, &mut taken, input, &mut room, &mut made, output, &mut total, state,
                );
                let more = matches!(result, BrotliResult::NeedsMoreOutput);
                if matches!(result, BrotliResult::ResultFailure) || state.window_bits > WINDOW_BITS
                {
                    return Err(Corrupt);
                }
                let ended = matches!(result, BrotliResult::ResultSuccess);
                self.ended_if(ended, DecodeStep { taken, made, more }, input)
            }
            Self::Zstd(decoder, total) => {
                let status = decoder
                    .run_on_buffers(input, output)
                    .map_err(|_cause| Corrupt)?;
                let (taken, made) = (status.bytes_read, status.bytes_written);
                *total = total.saturating_add(made as u64);
                let more = made == output.len();
                // A decoder that makes no progress would be asked forever.
                let stuck = taken == 0 && made == 0 && !input.is_empty();
                (!stuck)
                    .then_some(DecodeStep { taken, made, more })
                    .ok_or(Corrupt)
            }
            Self::Ended => Ok(DecodeStep {
                taken: input.len(),
                ..DecodeStep::NOTHING
            }),
        }
    }

    /// Releases the decoder if its stream has ended. The rest of the input is then ignored.
    fn ended_if(
        &mut self,
        ended: bool,
        mut step: DecodeStep,
        input: &[u8],
    ) -> Result<DecodeStep, Corrupt> {
        if ended {
            *self = Self::Ended;
            step.taken = input.len();
            step.more = false;
        }
        Ok(step)
    }
}

/// Largest window of a brotli stream, as its number of bits.
const WINDOW_BITS: u32 = DECODER_WINDOW.ilog2();

impl DecodeStep {
    const NOTHING: Self = Self {
        taken: 0,
        made: 0,
        more: false,
    };
}

/// Inflates a part of the input. Returns true if the stream has ended.
fn inflated(
    inflate: &mut Decompress,
    input: &[u8],
    output: &mut [u8],
) -> Result<(DecodeStep, bool), Corrupt> {
    let before = (inflate.total_in(), inflate.total_out());
    let status = inflate.decompress(input, output, FlushDecompress::None);
    let status = status.map_err(|_cause| Corrupt)?;
    let taken = usize::try_from(inflate.total_in() - before.0).map_err(|_cause| Corrupt)?;
    let made = usize::try_from(inflate.total_out() - before.1).map_err(|_cause| Corrupt)?;
    let ended = status == Status::StreamEnd;
    let more = made == output.len() && !ended;
    if taken == 0 && made == 0 && !input.is_empty() && !ended {
        return Err(Corrupt);
    }
    Ok((DecodeStep { taken, made, more }, ended))
}

impl fmt::Debug for CodingStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip { .. } => "Gzip",
            Self::Undecided | Self::Deflate(_) => "Deflate",
            Self::Brotli(..) => "Brotli",
            Self::Zstd(..) => "Zstd",
            Self::Ended => "Ended",
        })
    }
}
