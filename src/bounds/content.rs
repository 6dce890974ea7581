//! Bounds of response bodies that are read for the usage they state.

/// Content codings that one body may have.
///
/// Beyond it: the body is not read, so the estimate of its request stays.
pub const CODINGS_MAX: usize = 3;
/// Bytes of the window of one decoder. RFC 9659 allows no larger one for zstd.
///
/// Beyond it: the rest of the body is not decoded, so the estimate of its request stays.
pub const DECODER_WINDOW: u64 = 8 * 1024 * 1024;
/// Bytes that the decoders of all bodies together may use. A window counts as far as it is filled.
///
/// Beyond it: the rest of the body is not decoded, so the estimate of its request stays.
pub const DECODERS_MEMORY: u64 = 32 * 1024 * 1024;
/// Bytes of a decoded body that are read, however small its coded size is. See also
/// [`DECODED_RATIO`].
pub const DECODED_FREE: u64 = 1024 * 1024;
/// Ratio of a decoded body to its coded size, beyond its first MiB.
///
/// Beyond it: the rest of the body is not decoded, so the estimate of its request stays.
pub const DECODED_RATIO: u64 = 200;
/// Bytes of a decoded body that are read.
///
/// Beyond it: the rest of the body is not decoded, so the estimate of its request stays.
pub const DECODED_MAX: u64 = 256 * 1024 * 1024;
/// Members of one gzip body that are decoded.
///
/// Beyond it: the rest of the body is not decoded.
pub const GZIP_MEMBERS: u32 = 1024;
/// Bytes of a coded body that are decoded before the connection to the client may be written.
pub const DECODED_SLICE: usize = 8 * 1024;
/// Bytes of text that are read for usage before the connection to the client is written.
pub const EXAMINED_AT_ONCE: usize = 64 * 1024;
