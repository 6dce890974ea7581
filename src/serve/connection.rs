//! One client connection, whatever it came through: reads requests, finds out where each goes, and
//! drains when the process does.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};

use super::listener::ConnectionSlot;
use super::{Server, authenticate, connect, gateway};
use crate::api::Api;
use crate::bounds::{
    H2_CONNECTION_WINDOW, H2_HEADER_LIST, H2_STREAM_WINDOW, H2_STREAMS, HEAD_BYTES, HEAD_TIMEOUT,
};
use crate::clock::HeadTimer;
use crate::exchange::{Arrival, ClientIdentity, Error, Ingress, Reason, ResponseBody, response};
use crate::policy::Policy;
use crate::semantics::{self, Authority, RequestTarget};
use crate::shutdown::Tasks;
use crate::units::Origin;

/// What a connection's requests may name.
#[derive(Debug, Clone)]
pub(super) enum Inbound {
    /// Anything: this is the proxy's port.
    Proxy,
    /// One origin: this is a route's port.
    Route(Origin),
    /// One origin: this is the inside of a CONNECT.
    Inside(Origin),
}

/// A client connection.
#[derive(Debug)]
pub(super) struct ClientConnection {
    pub(super) server: Arc<Server>,
    pub(super) inbound: Inbound,
    pub(super) client: ClientIdentity,
    pub(super) place: Arc<ConnectionSlot>,
}

impl ClientConnection {
    pub(super) fn new(
        server: Arc<Server>,
        peer: SocketAddr,
        inbound: Inbound,
        place: Arc<ConnectionSlot>,
    ) -> Self {
        let client = ClientIdentity::at(peer.ip().to_canonical());
        Self {
            server,
            inbound,
            client,
            place,
        }
    }

    /// HTTP/1.1, or HTTP/2 if the client begins with its preface.
    pub(super) async fn serve_either<T>(self: Arc<Self>, io: T)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let builder = self.builder();
        self.serve(io, builder).await;
    }

    /// The protocol that ALPN agreed on.
    pub(super) async fn serve_agreed<T>(self: Arc<Self>, io: T, http2: bool)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let builder = self.builder();
        let builder = if http2 {
            builder.http2_only()
        } else {
            builder.http1_only()
        };
        self.serve(io, builder).await;
    }

    fn builder(&self) -> auto::Builder<Tasks> {
        let mut builder = auto::Builder::new(self.server.tasks.clone());
        builder
            .http1()
            .timer(HeadTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES)
            // During a drain every response says `ClientConnection: close`.
            .keep_alive(!self.server.tasks.draining());
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS)
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_header_list_size(H2_HEADER_LIST);
        builder
    }

    async fn serve<T>(self: Arc<Self>, io: T, builder: auto::Builder<Tasks>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let this = Arc::clone(&self);
        let service = service_fn(move |request| Arc::clone(&this).answer(request));
        let serving = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
        let mut serving = std::pin::pin!(serving);
        let drain = self.server.tasks.drain_begun();
        let already = self.server.tasks.draining();
        tokio::select! {
            biased;
            ended = serving.as_mut() => return log_end(ended),
            () = drain, if !already => serving.as_mut().graceful_shutdown(),
        }
        log_end(serving.await);
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, Infallible> {
        let policy = self.server.policy.load_full();
        Ok(match self.destine(&request, &policy) {
            Ok(Routed::Exchange {
                ingress,
                origin,
                client,
            }) => {
                let arrival = Arrival::of_client(ingress, origin, client, policy);
                self.server.exchange.serve(arrival, request).await
            }
            Ok(Routed::Connect { authority, client }) => {
                connect::connect(Arc::clone(&self), request, authority, client, policy).await
            }
            Ok(Routed::Api { client }) => {
                let server = &self.server;
                // Boxed: few requests are for us.
                let call = server.api.serve(&server.exchange, policy, &client, request);
                Box::pin(call).await
            }
            Ok(Routed::Asterisk) => self.answer_asterisk(),
            Err(error) => self.refuse(request.method(), &error),
        })
    }

    /// Where a request goes, and whether its sender may send it.
    fn destine<B>(&self, request: &Request<B>, policy: &Policy) -> Result<Routed, Error> {
        let requested = semantics::classify(request)?;
        let headers = request.headers();
        match (&self.inbound, requested) {
            (_, RequestTarget::Asterisk) => Ok(Routed::Asterisk),
            (Inbound::Inside(origin), requested) => {
                self.inside(origin, requested, request.method())?;
                let origin = origin.clone();
                Ok(Routed::Exchange {
                    ingress: Ingress::Intercept,
                    origin,
                    client: self.client.clone(),
                })
            }
            (Inbound::Proxy, RequestTarget::Connect(authority)) => {
                let client = authenticate::by_proxy_field(headers, policy, &self.client)?;
                Ok(Routed::Connect { authority, client })
            }
            (Inbound::Route(_), RequestTarget::Connect(_)) => Err(Error::new(
                Reason::NoRoute,
                "this port is for one route; it is no proxy",
            )),
            (Inbound::Route(origin), _) => {
                let client = authenticate::by_token_field(headers, policy, &self.client)?;
                Ok(Routed::Exchange {
                    ingress: Ingress::Route,
                    origin: origin.clone(),
                    client,
                })
            }
            (Inbound::Proxy, RequestTarget::Absolute(origin)) => {
                if let Some(origin) = gateway::route(policy, &origin.host) {
                    let client = authenticate::by_token_field(headers, policy, &self.client)?;
                    return Ok(Routed::Exchange {
                        ingress: Ingress::Route,
                        origin,
                        client,
                    });
                }
                let client = authenticate::by_proxy_field(headers, policy, &self.client)?;
                Ok(Routed::Exchange {
                    ingress: Ingress::Plain,
                    origin,
                    client,
                })
            }
            (Inbound::Proxy, RequestTarget::Origin(authority))
                if Api::is_ours(request.uri().path()) && self.is_us(&authority, policy) =>
            {
                if policy.clients.is_empty() && !self.client.address.is_loopback() {
                    let detail = "without `clients` the API answers this machine only";
                    return Err(Error::new(Reason::ClientTokenUnknown, detail));
                }
                let client = authenticate::by_api_field(headers, policy, &self.client)?;
                Ok(Routed::Api { client })
            }
            (Inbound::Proxy, RequestTarget::Origin(authority)) => {
                let origin = gateway::origin(policy, &authority)?;
                let client = authenticate::by_token_field(headers, policy, &self.client)?;
                Ok(Routed::Exchange {
                    ingress: Ingress::Route,
                    origin,
                    client,
                })
            }
        }
    }

    /// Whether a host means outpace itself: this machine, an address, or the host of our public URL,
    /// and no route has it.
    fn is_us(&self, authority: &Authority, policy: &Policy) -> bool {
        let host = &authority.host;
        let ours = host.ip().is_some()
            || host.as_str() == "localhost"
            || self.server.public_host.as_ref() == Some(host);
        ours && gateway::route(policy, host).is_none()
    }

    /// Inside a CONNECT only its authority may be named (RFC 9110 section 7.4): the certificate the
    /// client saw is for that host, and so is the policy.
    fn inside(
        &self,
        origin: &Origin,
        requested: RequestTarget,
        method: &Method,
    ) -> Result<(), Error> {
        let same = match requested {
            RequestTarget::Origin(authority) => names(&authority, origin),
            RequestTarget::Absolute(named) => {
                named.host == origin.host && named.port == origin.port
            }
            RequestTarget::Connect(_) | RequestTarget::Asterisk => {
                let detail = format!("{method} has no place inside a CONNECT");
                return Err(Error::new(Reason::MethodNotAllowed, detail));
            }
        };
        if same {
            return Ok(());
        }
        let detail = format!(
            "the CONNECT was to `{}`, the request names another host",
            origin.authority()
        );
        Err(Error::new(Reason::Misdirected, detail))
    }

    pub(super) fn ingress(&self) -> Ingress {
        match self.inbound {
            Inbound::Proxy => Ingress::Direct,
            Inbound::Route(_) => Ingress::Route,
            Inbound::Inside(_) => Ingress::Intercept,
        }
    }

    /// A no before there is an exchange; it leaves a record all the same.
    pub(super) fn refuse(&self, method: &Method, error: &Error) -> Response<ResponseBody> {
        let mut record = self
            .server
            .exchange
            .recorder
            .begin(self.ingress(), &self.client);
        record.method = method.clone();
        record.refused(error);
        let response = response(error, None, &record.id());
        record.end();
        response
    }

    /// `OPTIONS *` asks about us, not about an origin (RFC 9110 section 9.3.7).
    fn answer_asterisk(&self) -> Response<ResponseBody> {
        let mut record = self
            .server
            .exchange
            .recorder
            .begin(self.ingress(), &self.client);
        record.method = Method::OPTIONS;
        record.status = StatusCode::NO_CONTENT.as_u16();
        record.end();
        let mut response = Response::new(ResponseBody::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    }
}

/// Where a request goes.
enum Routed {
    Exchange {
        ingress: Ingress,
        origin: Origin,
        client: ClientIdentity,
    },
    Connect {
        authority: Authority,
        client: ClientIdentity,
    },
    Api {
        client: ClientIdentity,
    },
    Asterisk,
}

fn names(authority: &Authority, origin: &Origin) -> bool {
    let port = authority.port.unwrap_or(origin.scheme.default_port());
    authority.host == origin.host && port == origin.port
}

/// Clients close, reset and time out all the time; each exchange has its own record.
fn log_end(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a client connection ended");
    }
}
