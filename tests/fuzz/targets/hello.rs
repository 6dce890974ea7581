//! First bytes inside a CONNECT: a ClientHello with its server name, plain HTTP, or anything else.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use outpace::clock::Clock;
use outpace::intercept::{
    AcceptError, CaNames, CaSource, CertificateAuthority, Inside, Leaves, accept,
};
use outpace::telemetry::Metrics;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};

use super::Target;

pub(crate) const TARGET: Target = Target {
    name: "hello",
    seeds: &[
        include_bytes!("../seeds/hello-api.test.bin"),
        include_bytes!("../seeds/hello-other.test.bin"),
        include_bytes!("../seeds/hello-fragments.bin"),
        b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x16\x03\x01\xff\xff\x01",
        b"\x80\x2e\x01\x03\x01",
        b"SSH-2.0-a\r\n",
    ],
    run,
};

struct World {
    runtime: Runtime,
    /// Configuration of a connection to `api.test`.
    config: Arc<ServerConfig>,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = CaSource::DataDir {
            dir: dir.path().join("data"),
            constrain: false,
        };
        let ca = CertificateAuthority::load_or_make(
            &source,
            &CaNames::default(),
            Clock::system().wall(),
        );
        let leaves = Leaves::new(ca.unwrap(), Clock::system(), Metrics::new()).unwrap();
        Self {
            runtime: Builder::new_current_thread().enable_time().build().unwrap(),
            config: leaves.config(&"api.test".parse().unwrap()).unwrap(),
            _dir: dir,
        }
    }

    /// Returns the result as text. Bytes of plain HTTP are read again through the stream.
    fn outcome(&self, bytes: &[u8], step: usize) -> String {
        let stream = Pieces { rest: bytes, step };
        self.runtime.block_on(async {
            match accept(stream, Arc::clone(&self.config)).await {
                Ok(Inside::Plain(mut stream)) => {
                    let mut read = Vec::new();
                    stream.read_to_end(&mut read).await.unwrap();
                    assert_eq!(read, bytes, "bytes of plain HTTP have changed");
                    "plain".to_owned()
                }
                Ok(Inside::Tls { .. }) => "TLS".to_owned(),
                Err(error) => {
                    assert!(!matches!(error, AcceptError::TooSlow), "no byte is awaited");
                    error.to_string()
                }
            }
        })
    }
}

fn run(data: &[u8]) {
    thread_local!(static WORLD: World = World::new());
    WORLD.with(|world| {
        let whole = world.outcome(data, data.len().max(1));
        let bytewise = world.outcome(data, 1);
        if data.first() == Some(&0x16) {
            assert_eq!(whole, bytewise, "the pieces of a ClientHello matter");
        }
        // A word that is still incomplete is taken for the beginning of a method.
        assert!(whole != "plain" || bytewise == "plain");
    });
}

/// Stream that yields at most `step` bytes at once, and takes all that is written to it.
struct Pieces<'a> {
    rest: &'a [u8],
    step: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.step.min(self.rest.len()).min(into.remaining());
        let (now, rest) = self.rest.split_at(length);
        into.put_slice(now);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(from.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
