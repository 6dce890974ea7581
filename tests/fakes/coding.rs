//! Content codings in which the fakes compress a body, flushed after each part.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use http::HeaderMap;

/// Encoder of one body. Each part can be decoded as soon as its bytes have arrived.
pub(crate) enum Encoder {
    Identity,
    Gzip(GzEncoder<Vec<u8>>),
    Deflate(ZlibEncoder<Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    /// Returns the encoder of this coding, or the one that changes nothing.
    pub(crate) fn new(coding: &str) -> Self {
        let level = Compression::default();
        match coding {
            "gzip" => Self::Gzip(GzEncoder::new(Vec::new(), level)),
            "deflate" => Self::Deflate(ZlibEncoder::new(Vec::new(), level)),
            "br" => Self::Brotli(Box::new(brotli::CompressorWriter::new(
                Vec::new(),
                4096,
                5,
                22,
            ))),
            "zstd" => Self::Zstd(zstd::Encoder::new(Vec::new(), 3).unwrap()),
            _ => Self::Identity,
        }
    }

    /// Encodes a part and flushes it.
    pub(crate) fn push(&mut self, part: &[u8]) -> Vec<u8> {
        match self {
            Self::Identity => part.to_vec(),
            Self::Gzip(encoder) => {
                encoder.write_all(part).unwrap();
                encoder.flush().unwrap();
                std::mem::take(encoder.get_mut())
            }
            Self::Deflate(encoder) => {
                encoder.write_all(part).unwrap();
                encoder.flush().unwrap();
                std::mem::take(encoder.get_mut())
            }
            Self::Brotli(encoder) => {
                encoder.write_all(part).unwrap();
                encoder.flush().unwrap();
                std::mem::take(encoder.get_mut())
            }
            Self::Zstd(encoder) => {
                encoder.write_all(part).unwrap();
                encoder.flush().unwrap();
                std::mem::take(encoder.get_mut())
            }
        }
    }

    /// Returns the bytes that end the body.
    pub(crate) fn end(self) -> Vec<u8> {
        match self {
            Self::Identity => Vec::new(),
            Self::Gzip(encoder) => encoder.finish().unwrap(),
            Self::Deflate(encoder) => encoder.finish().unwrap(),
            Self::Brotli(encoder) => encoder.into_inner(),
            Self::Zstd(encoder) => encoder.finish().unwrap(),
        }
    }
}

/// Returns the first coding of `Accept-Encoding` that the fakes have.
pub(super) fn accepted(headers: &HeaderMap) -> &'static str {
    let field = headers.get("accept-encoding");
    let field = field.and_then(|field| field.to_str().ok()).unwrap_or("");
    let mut named = field.split(',').map(|part| {
        let name = part.split(';').next().unwrap_or_default();
        name.trim().to_ascii_lowercase()
    });
    let known = ["gzip", "deflate", "br", "zstd", "identity"];
    let found = named.find_map(|name| known.into_iter().find(|known| *known == name));
    found.unwrap_or("identity")
}
