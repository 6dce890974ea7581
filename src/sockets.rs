//! Options of TCP sockets that find peers which have vanished without closing their connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::bounds::{PEER_SILENT, TLS_ACCEPT_TIMEOUT};

/// Time without a byte after which the system probes the peer for the first time.
const IDLE: Duration = Duration::from_secs(60);
/// Time between two probes of a peer that does not answer them.
const INTERVAL: Duration = Duration::from_secs(15);
/// Number of unanswered probes after which the system closes the connection.
const PROBES: u32 = 4;

/// Turns TCP keep-alive on, so that a peer that has vanished does not hold a connection forever.
/// On Linux the connection also ends if the peer takes no bytes for [`PEER_SILENT`].
///
/// # Errors
/// Returns the error of the operating system, for example if the socket is closed already.
pub fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    let probing = TcpKeepalive::new()
        .with_time(IDLE)
        .with_interval(INTERVAL)
        .with_retries(PROBES);
    socket.set_tcp_keepalive(&probing)?;
    #[cfg(any(target_os = "android", target_os = "linux"))]
    socket.set_tcp_user_timeout(Some(PEER_SILENT))?;
    Ok(())
}

/// Performs the TLS handshake with a client. Returns the stream with the protocol of ALPN: true for
/// HTTP/2, false for HTTP/1.1, and `None` if the client offered none.
///
/// # Errors
/// Returns the error of the handshake, also if it takes longer than [`TLS_ACCEPT_TIMEOUT`].
pub async fn accept_tls(
    stream: TcpStream,
    config: Arc<ServerConfig>,
) -> io::Result<(TlsStream<TcpStream>, Option<bool>)> {
    let accepting = TlsAcceptor::from(config).accept(stream);
    let stream = tokio::time::timeout(TLS_ACCEPT_TIMEOUT, accepting).await??;
    let protocol = stream.get_ref().1.alpn_protocol();
    let http2 = protocol.map(|protocol| protocol == b"h2");
    Ok((stream, http2))
}

/// Byte stream whose connection can be reset, so that its peer does not take the end for an orderly
/// one.
pub trait Reset {
    /// Prepares the stream so that its drop resets the connection. Bytes that the peer has not read
    /// may be lost. A failure is ignored, because the connection has ended then.
    fn reset(&self);
}

impl Reset for TcpStream {
    fn reset(&self) {
        let _ended = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

impl<T: Reset> Reset for TlsStream<T> {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

impl Reset for TokioIo<Upgraded> {
    /// Does nothing, because the drop of an HTTP/2 tunnel already resets its stream.
    fn reset(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn p14_a_watched_socket_probes_its_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (dialled, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        for stream in [&dialled.unwrap(), &accepted.unwrap().0] {
            keep_alive(stream).unwrap();
            let socket = SockRef::from(stream);
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), IDLE);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), INTERVAL);
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), PROBES);
            #[cfg(target_os = "linux")]
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(PEER_SILENT));
        }
    }
}
