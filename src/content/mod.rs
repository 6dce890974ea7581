//! Content of message bodies: their codings and formats, read while the bytes pass.

mod coding;
mod decoder;
mod events;
mod memory;
mod usage;

pub use coding::Codings;
pub use decoder::{Decoder, Undecoded, decode_whole};
pub use events::{Piece, Splitter, StreamFormat};
pub use memory::DecoderMemory;
pub use usage::{ReaderState, SeenNumbers, Unread, UsageReader};

#[cfg(test)]
mod tests;
