//! First bytes of a connection, which show its version of HTTP.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;

use crate::bounds::FIRST_BYTE_TIMEOUT;
use crate::intercept::Prefixed;

/// Bytes with which an HTTP/2 connection begins (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads the first bytes of a connection. `http2` is the protocol of ALPN: true for HTTP/2, false
/// for HTTP/1.1. With `None` the connection is HTTP/2 if it begins with the whole preface.
///
/// Returns the stream with these bytes, and true for HTTP/2. Returns `None` if the stream ends or
/// fails first, or if the first byte of HTTP/1 or the whole preface takes longer than
/// [`FIRST_BYTE_TIMEOUT`].
pub async fn begin<T>(io: T, http2: Option<bool>) -> Option<(Prefixed<T>, bool)>
where
    T: AsyncRead + Unpin,
{
    let begun = timeout(FIRST_BYTE_TIMEOUT, version(io, http2)).await;
    begun.ok().flatten()
}

async fn version<T>(mut io: T, http2: Option<bool>) -> Option<(Prefixed<T>, bool)>
where
    T: AsyncRead + Unpin,
{
    let mut first = BytesMut::with_capacity(1024);
    loop {
        match io.read_buf(&mut first).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return None,
        }
        let is_http2 = first.starts_with(PREFACE);
        let is_decided = is_http2 || http2 == Some(false) || !PREFACE.starts_with(&first);
        if is_decided {
            return Some((Prefixed::new(io, first.freeze()), http2.unwrap_or(is_http2)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use tokio::io::AsyncWriteExt as _;

    /// Writes these bytes, with a second after each, and returns the version and the seconds that
    /// it took.
    async fn begun(bytes: &[u8], http2: Option<bool>) -> (Option<bool>, u64) {
        let clock = Clock::anchored(0);
        let (mut client, server) = tokio::io::duplex(64);
        let writing = async {
            for byte in bytes {
                client.write_all(&[*byte]).await.unwrap();
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
            std::future::pending::<()>().await;
        };
        let start = clock.now();
        let begun = tokio::select! {
            begun = begin(server, http2) => begun,
            () = writing => None,
        };
        (
            begun.map(|begun| begun.1),
            clock.now().since(start).as_secs(),
        )
    }

    /// Reaches the bound `FIRST_BYTE_TIMEOUT`.
    #[tokio::test(start_paused = true)]
    async fn p14_a_connection_without_its_first_bytes_ends_after_10_s() {
        for http2 in [None, Some(true)] {
            for silent in ["", "P", "PRI * HT", "PRI * HTTP/2.0\r\n\r\nSM"] {
                assert_eq!(
                    begun(silent.as_bytes(), http2).await,
                    (None, 10),
                    "{silent}"
                );
            }
        }
        assert_eq!(begun(b"", Some(false)).await, (None, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_bytes_decide_about_the_version_unless_alpn_did() {
        assert_eq!(begun(b"GET", None).await, (Some(false), 0));
        assert_eq!(begun(b"PRx", None).await, (Some(false), 2));
        assert_eq!(begun(b"P", Some(false)).await, (Some(false), 0));
        assert_eq!(begun(b"GET", Some(true)).await, (Some(true), 0));
        let (client, server) = tokio::io::duplex(64);
        let mut client = client;
        client.write_all(PREFACE).await.unwrap();
        assert!(begin(server, None).await.unwrap().1);
    }
}
