//! Content of message bodies: their codings and formats, read while the bytes pass.

mod coding;
mod decoder;
mod events;
mod memory;

pub use coding::Codings;
pub use decoder::{Decoder, Undecoded};
pub use events::{Piece, Splitter, StreamFormat};
pub use memory::DecoderMemory;

#[cfg(test)]
mod tests;
