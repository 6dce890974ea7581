//! Dialling of origins: name resolution, address guard, TCP and TLS. Connections are direct or go
//! through a parent proxy.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;

use super::address::{AddressClass, may_dial};
use super::resolve::Resolver;
use super::tls::ClientTls;
use super::{Io, OriginError, ParentProxy, Roots};
use crate::bounds::{ADDRESS_STAGGER, CONNECT_TIMEOUT};
use crate::policy::Egress;
use crate::sockets::is_local;
use crate::units::{HostName, Origin, Scheme};

/// Connector that opens connections to origins. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Connector(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    resolver: Resolver,
    tls: ClientTls,
    parent: Option<ParentProxy>,
    /// Addresses that this proxy listens on, set once after its listeners are bound.
    ourselves: OnceLock<Vec<SocketAddr>>,
}

impl Connector {
    /// Creates a connector that trusts `roots` and dials through `parent` if it is given.
    ///
    /// # Errors
    /// Returns [`OriginError::Tls`] if TLS cannot be set up.
    pub fn new(roots: &Roots, parent: Option<ParentProxy>) -> Result<Self, OriginError> {
        Ok(Self(Arc::new(Inner {
            resolver: Resolver::new(),
            tls: ClientTls::new(roots)?,
            parent,
            ourselves: OnceLock::new(),
        })))
    }

    /// Sets the addresses that this proxy listens on, so that it never dials itself.
    pub fn set_ourselves(&self, addresses: Vec<SocketAddr>) {
        // Only the first call has an effect. Later calls are ignored.
        let _ = self.0.ourselves.set(addresses);
    }

    /// Returns the parent proxy for connections to this origin, if they go through one.
    pub fn parent(&self, origin: &Origin) -> Option<&ParentProxy> {
        self.0
            .parent
            .as_ref()
            .filter(|parent| parent.serves(origin))
    }

    /// Opens a TCP connection to `origin`, directly or as a tunnel through the parent proxy.
    ///
    /// # Errors
    /// Returns an [`OriginError`]. The client's request has not been dispatched in any of these
    /// cases.
    pub async fn tcp(&self, origin: &Origin, egress: &Egress) -> Result<TcpStream, OriginError> {
        within_time(async {
            match self.parent(origin) {
                None => self.direct(origin, egress).await,
                Some(parent) => self.through(parent, origin, egress).await,
            }
        })
        .await
    }

    /// Opens a connection to `origin`, with TLS if its scheme requires it. The flag in the result
    /// is true if HTTP/2 was negotiated.
    ///
    /// # Errors
    /// Returns an [`OriginError`]. The client's request has not been dispatched in any of these
    /// cases.
    pub async fn connect(
        &self,
        origin: &Origin,
        offer_http2: bool,
        egress: &Egress,
    ) -> Result<(Io, bool), OriginError> {
        within_time(async {
            match (self.parent(origin), origin.scheme) {
                (None, Scheme::Http) => Ok((Io::plain(self.direct(origin, egress).await?), false)),
                (None, Scheme::Https) => self.direct_tls(origin, offer_http2, egress).await,
                // Plain HTTP uses a connection to the parent and requests in absolute-form.
                (Some(parent), Scheme::Http) => {
                    self.guard_literal(origin, egress)?;
                    Ok((Io::plain(self.to_parent(parent).await?), false))
                }
                (Some(parent), Scheme::Https) => {
                    let tcp = self.through(parent, origin, egress).await?;
                    self.tls(origin, offer_http2, egress, tcp).await
                }
            }
        })
        .await
    }

    /// Connects and performs the TLS handshake. If the handshake breaks at one address, the other
    /// addresses are tried.
    async fn direct_tls(
        &self,
        origin: &Origin,
        offer_http2: bool,
        egress: &Egress,
    ) -> Result<(Io, bool), OriginError> {
        let mut addresses = self.addresses(origin, egress).await?;
        loop {
            let (address, tcp) = first_to_connect(&addresses).await?;
            match self.tls(origin, offer_http2, egress, tcp).await {
                Err(OriginError::HandshakeBroke(_)) if addresses.len() > 1 => {
                    addresses.retain(|known| *known != address);
                }
                ended => return ended,
            }
        }
    }

    async fn tls(
        &self,
        origin: &Origin,
        offer_http2: bool,
        egress: &Egress,
        tcp: TcpStream,
    ) -> Result<(Io, bool), OriginError> {
        let Origin { host, port, .. } = origin;
        let identity = egress.client_cert(host, *port);
        let handshake = self.0.tls.handshake(host, offer_http2, identity, tcp);
        let stream = handshake.await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok((Io::tls(stream), http2))
    }

    async fn direct(&self, origin: &Origin, egress: &Egress) -> Result<TcpStream, OriginError> {
        let addresses = self.addresses(origin, egress).await?;
        let (_, tcp) = first_to_connect(&addresses).await?;
        Ok(tcp)
    }

    /// Resolves the origin and returns the addresses that may be dialled, which is at least one.
    async fn addresses(
        &self,
        origin: &Origin,
        egress: &Egress,
    ) -> Result<Vec<SocketAddr>, OriginError> {
        let resolver = &self.0.resolver;
        let resolved = resolver.resolve(&origin.host, origin.port, egress).await?;
        let mut allowed = Vec::with_capacity(resolved.len());
        let mut refused = None;
        for address in resolved {
            match self.guard(&origin.host, address, egress) {
                Ok(()) => allowed.push(address),
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error) if allowed.is_empty() => Err(error),
            _ => Ok(allowed),
        }
    }

    /// Checks that an address of `host` may be dialled. Addresses allowed by the operator pass, and
    /// public ones that do not belong to this machine. The addresses of this proxy never pass.
    fn guard(
        &self,
        host: &HostName,
        address: SocketAddr,
        egress: &Egress,
    ) -> Result<(), OriginError> {
        let host = || host.clone();
        if self.is_ourselves(address) {
            return Err(OriginError::Ourselves { host: host() });
        }
        if may_dial(egress, address) {
            return Ok(());
        }
        let class = AddressClass::of(address.ip());
        tracing::debug!(host = %host(), %address, "not dialled: {class}");
        Err(OriginError::Prohibited { host: host() })
    }

    fn guard_literal(&self, origin: &Origin, egress: &Egress) -> Result<(), OriginError> {
        // A parent proxy resolves names itself, but a literal address can still be checked here.
        let literal = origin.host.ip().map(|ip| SocketAddr::new(ip, origin.port));
        literal.map_or(Ok(()), |address| self.guard(&origin.host, address, egress))
    }

    /// Returns true if the origin is an address literal that this proxy listens on. Such an origin is
    /// never dialled.
    pub fn is_loop(&self, origin: &Origin) -> bool {
        let literal = origin.host.ip().map(|ip| SocketAddr::new(ip, origin.port));
        literal.is_some_and(|address| self.is_ourselves(address))
    }

    fn is_ourselves(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let reaches = |ours: IpAddr| match ours.is_unspecified() {
            // A listener at `::` also accepts IPv4.
            true => (ours.is_ipv6() || ip.is_ipv4()) && (ip.is_unspecified() || is_local(ip)),
            false => ours == ip || ip.is_unspecified() && ours.is_loopback(),
        };
        let mut ours = self.0.ourselves.get().into_iter().flatten();
        ours.any(|ours| ours.port() == address.port() && reaches(ours.ip()))
    }

    async fn to_parent(&self, parent: &ParentProxy) -> Result<TcpStream, OriginError> {
        // The operator configured the parent, so its address is not checked.
        let (resolver, egress) = (&self.0.resolver, Egress::default());
        let resolved = resolver.resolve(&parent.host, parent.port, &egress).await;
        let resolved = resolved.map_err(|error| parent.failed(error))?;
        let connected = first_to_connect(&resolved).await;
        let (_, tcp) = connected.map_err(|error| parent.failed(error))?;
        Ok(tcp)
    }

    async fn through(
        &self,
        parent: &ParentProxy,
        origin: &Origin,
        egress: &Egress,
    ) -> Result<TcpStream, OriginError> {
        self.guard_literal(origin, egress)?;
        let mut tcp = self.to_parent(parent).await?;
        parent.tunnel(&mut tcp, origin).await?;
        Ok(tcp)
    }
}

async fn within_time<T>(
    dial: impl Future<Output = Result<T, OriginError>>,
) -> Result<T, OriginError> {
    tokio::time::timeout(CONNECT_TIMEOUT, dial)
        .await
        .unwrap_or(Err(OriginError::ConnectTimeout))
}

/// Connects to the first address that answers. Each attempt has a head start of [`ADDRESS_STAGGER`]
/// over the next one (RFC 8305 section 5).
async fn first_to_connect(
    addresses: &[SocketAddr],
) -> Result<(SocketAddr, TcpStream), OriginError> {
    let mut rest = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut failed = OriginError::Refused("no address to dial".to_owned());
    loop {
        attempts.extend(rest.next().map(|address| connect_one(*address)));
        tokio::select! {
            result = attempts.next() => match result {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => failed = error,
                None => return Err(failed),
            },
            () = tokio::time::sleep(ADDRESS_STAGGER), if rest.len() > 0 => {}
        }
    }
}

async fn connect_one(address: SocketAddr) -> Result<(SocketAddr, TcpStream), OriginError> {
    let connected = TcpStream::connect(address).await;
    let connected = connected.and_then(|stream| {
        stream.set_nodelay(true)?;
        crate::sockets::keep_alive(&stream)?;
        Ok((address, stream))
    });
    connected.map_err(|error| OriginError::Refused(format!("{}: {error}", shown(address))))
}

/// Formats an address for messages to clients. An address that is not public may be internal, so
/// only its port and family are shown.
fn shown(address: SocketAddr) -> String {
    if AddressClass::of(address.ip()) == AddressClass::Public {
        return address.to_string();
    }
    let version = if address.is_ipv4() { 4 } else { 6 };
    format!("port {} of an IPv{version} address", address.port())
}
