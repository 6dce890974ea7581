//! Options of TCP sockets that find peers which have vanished without closing their connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::bounds::{ACCEPT_BACKLOG, PEER_SILENT, TLS_ACCEPT_TIMEOUT, UNSENT_BYTES};

/// Time without a byte after which the system probes the peer for the first time.
const IDLE: Duration = Duration::from_secs(60);
/// Time between two probes of a peer that does not answer them.
const INTERVAL: Duration = Duration::from_secs(15);
/// Number of unanswered probes after which the system closes the connection.
const PROBES: u32 = 4;

/// Binds `address` and listens with a backlog of [`ACCEPT_BACKLOG`].
///
/// # Errors
/// Returns the error of the operating system, for example if the port is in use.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(ACCEPT_BACKLOG)
}

/// Turns TCP keep-alive on, so that a peer that has vanished does not hold a connection forever.
/// On Linux the connection also ends if the peer takes no bytes for [`PEER_SILENT`], and at most
/// [`UNSENT_BYTES`] wait in the system, so that a slow peer is not taken for one that takes nothing.
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
    {
        socket.set_tcp_user_timeout(Some(PEER_SILENT))?;
        socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    }
    Ok(())
}

/// Returns true if this machine has the address, on any interface. The system is asked each time,
/// because interfaces change.
pub fn is_local(ip: IpAddr) -> bool {
    // Documentation addresses (RFC 5737, RFC 3849), which no machine has.
    let nobodys = match ip {
        IpAddr::V4(_) => IpAddr::from([192, 0, 2, 1]),
        IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
    };
    // With `ip_nonlocal_bind` any address can be bound. Then the address that the system would send
    // from decides, which is the same only for an address of this machine.
    ip.is_loopback() || can_bind(ip) && (!can_bind(nobodys) || source_of(ip) == Some(ip))
}

/// Returns true if a socket can be bound to the address. No packet is sent.
fn can_bind(ip: IpAddr) -> bool {
    match UdpSocket::bind((ip, 0)) {
        Ok(_) => true,
        // All ports of this machine's address are taken.
        Err(error) => error.kind() == io::ErrorKind::AddrInUse,
    }
}

/// Returns the local address of packets to this address. No packet is sent.
fn source_of(ip: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((ip, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
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

    #[test]
    fn p10_closed_the_addresses_of_this_machine_are_known() {
        let documentation = ["192.0.2.7", "198.51.100.7", "2001:db8::7"];
        for elsewhere in ["8.8.8.8", "2606:4700::1111"].iter().chain(&documentation) {
            assert!(!is_local(elsewhere.parse().unwrap()), "{elsewhere}");
        }
        for here in ["127.0.0.1", "127.9.9.9", "::1"] {
            assert!(is_local(here.parse().unwrap()), "{here}");
        }
        // The address from which this machine would send, if it has a route at all.
        for to in documentation {
            let source = source_of(to.parse().unwrap());
            assert!(source.is_none_or(is_local), "{source:?}");
        }
    }

    /// Reaches the bound `PEER_SILENT`.
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
            {
                assert_eq!(socket.tcp_user_timeout().unwrap(), Some(PEER_SILENT));
                assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT_BYTES);
            }
        }
    }
}
