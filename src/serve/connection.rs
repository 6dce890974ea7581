//! One client connection on a proxy port, on a route's port or inside a CONNECT. The connection
//! reads requests, routes each of them, and closes gracefully when a drain begins.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use http::header::{CONNECTION, EXPECT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::revocation::ConnectionAccess;
use super::{Server, authenticate, connect, gateway};
use crate::api::Api;
use crate::bounds::{DRAIN_IDLE, REVOCATION_GRACE};
use crate::clock::Clock;
use crate::connections::ConnectionSlot;
use crate::exchange::{
    Arrival, ClientBody, ClientIdentity, Error, Ingress, REVOKED, Reason, Recording, ResponseBody,
    UnreadBodies, check_http2_head,
};
use crate::inbound::{
    self, ClientStream, ClosingStep, Http2Activity, Http2Stream, RequestProgress, StreamTasks,
    WatchedBody,
};
use crate::policy::Policy;
use crate::semantics::{self, Authority, RequestTarget};
use crate::sockets::{self, Reset};
use crate::throttle::{AuthFailure, ListenerKind};
use crate::units::Origin;

/// Origins that the requests of a connection may name.
#[derive(Debug, Clone)]
pub(super) enum Inbound {
    /// Any origin, because the connection came through the proxy's port.
    Proxy,
    /// Only this origin, because the connection came through a route's port. The address is that
    /// of the route in the configuration.
    Route(SocketAddr, Origin),
    /// Only this origin, because the requests are inside its CONNECT.
    Inside(Origin),
}

/// Connection of a client, shared by its requests.
#[derive(Debug)]
pub(super) struct ClientConnection {
    pub(super) server: Arc<Server>,
    pub(super) inbound: Inbound,
    /// Local address of the listener that accepted the connection.
    pub(super) listener: SocketAddr,
    /// Local address of the connection itself, which is the one that the client dialled.
    pub(super) local: IpAddr,
    pub(super) client: ClientIdentity,
    pub(super) slot: Arc<ConnectionSlot>,
    pub(super) access: ConnectionAccess,
}

impl ClientConnection {
    /// Performs the TLS handshake of a listener with TLS, and serves the connection inside it. A
    /// failed handshake gets no response and no record, like a connection without a request.
    pub(super) async fn serve_tls(self: Arc<Self>, stream: TcpStream, tls: Arc<ServerConfig>) {
        match sockets::accept_tls(stream, tls).await {
            Ok((stream, http2)) => Box::pin(self.serve(stream, http2)).await,
            Err(error) => tracing::debug!(%error, "a TLS handshake with a client failed"),
        }
    }

    /// Serves the protocol that was negotiated by ALPN, which is HTTP/2 if `http2` is true. With
    /// `None` it serves HTTP/1.1, or HTTP/2 if the client begins with the HTTP/2 preface.
    pub(super) async fn serve<T>(self: Arc<Self>, io: T, http2: Option<bool>)
    where
        T: AsyncRead + AsyncWrite + Reset + Unpin + Send + 'static,
    {
        let Some((io, http2)) = self.until_drain(inbound::begin(io, http2)).await else {
            return;
        };
        match http2 {
            true => self.serve_http2(io).await,
            false => self.serve_http1(io).await,
        }
    }

    /// Waits for the first bytes of a connection. A connection that is silent when a drain begins is
    /// closed after [`DRAIN_IDLE`], because its first request may be on its way.
    async fn until_drain<T>(&self, begun: impl Future<Output = Option<T>>) -> Option<T> {
        let tasks = &self.server.tasks;
        let already = tasks.draining();
        tokio::select! {
            biased;
            begun = begun => begun,
            () = self.access.revoked() => None,
            () = self.drain_grace(), if !already => None,
        }
    }

    /// Waits until [`DRAIN_IDLE`] after the begin of a drain.
    async fn drain_grace(&self) {
        self.server.tasks.drain_begun().await;
        let clock = &self.server.exchange.clock;
        clock.sleep_until(clock.now() + DRAIN_IDLE).await;
    }

    /// Waits until a drain has begun and no request has come for [`DRAIN_IDLE`]. A request that comes
    /// sooner is answered with `Connection: close`, so its client does not use the connection again.
    async fn idle_in_drain(&self, progress: &RequestProgress) {
        self.server.tasks.drain_begun().await;
        let mut before = progress.idle_mark();
        loop {
            self.drain_grace().await;
            let idle = progress.idle_mark();
            if idle.is_some() && idle == before {
                return;
            }
            before = idle;
        }
    }

    async fn serve_http1<T>(self: Arc<Self>, io: T)
    where
        T: AsyncRead + AsyncWrite + Reset + Unpin + Send + 'static,
    {
        let unread = Arc::new(UnreadBodies::noted());
        let (stream, progress, returned) = ClientStream::new(io, Arc::clone(&unread), self.clock());
        let (this, noted) = (Arc::clone(&self), Arc::clone(&progress));
        let service = service_fn(move |request: Request<Incoming>| {
            let (this, in_flight) = (Arc::clone(&this), noted.begin());
            let bodies = Arc::clone(&unread);
            let request = request.map(|body| ClientBody::new(body, Arc::clone(&bodies)));
            async move {
                let (method, version) = (request.method().clone(), request.version());
                let expects = request.headers().contains_key(EXPECT);
                let tasks = this.server.tasks.clone();
                let mut response = this.answer(request).await;
                let switches = method == Method::CONNECT && response.status().is_success();
                if bodies.must_close(expects).await || tasks.draining() && !switches {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().entry(CONNECTION).or_insert(close);
                }
                Ok::<_, Infallible>(in_flight.answer(&method, version, response).await)
            }
        });
        let serving = inbound::http1().serve_connection(TokioIo::new(stream), service);
        let serving = serving.with_upgrades();
        let broken = || progress.break_off();
        let closing = self.idle_in_drain(&progress);
        let shut_down =
            |serving: Pin<&mut http1::UpgradeableConnection<_, _>>| serving.graceful_shutdown();
        let ended = self.until_end(serving, closing, shut_down, broken, None);
        match ended.await.unwrap_or(Ok(())) {
            // The stream is taken first, because the client waits for its end.
            Err(error) if error.is_parse() => {
                let stream = returned.take().filter(|_| progress.is_idle());
                Box::pin(self.refuse_head(&error, progress.line(), stream)).await;
            }
            ended => {
                if progress.resets()
                    && let Some(stream) = returned.take()
                {
                    stream.reset();
                }
                log_end(ended);
            }
        }
    }

    async fn serve_http2<T>(self: Arc<Self>, io: T)
    where
        T: AsyncRead + AsyncWrite + Reset + Unpin + Send + 'static,
    {
        let this = Arc::clone(&self);
        let unread = Arc::new(UnreadBodies::Drained(self.server.tasks.clone()));
        let activity = Http2Activity::new(self.clock());
        let tasks = self.server.tasks.clone();
        let streams = StreamTasks::new(tasks, self.clock(), Arc::clone(&activity));
        let begun = streams.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (this, watch) = (Arc::clone(&this), begun.begin());
            let request = request.map(|body| ClientBody::new(body, Arc::clone(&unread)));
            async move {
                let response = match check_http2_head(&request) {
                    Ok(()) => this.answer(request).await,
                    Err(error) => this.refuse(request.method(), &error),
                };
                let response = response.map(|body| WatchedBody::new(body, watch));
                Ok::<_, Infallible>(response)
            }
        });
        let io = TokioIo::new(Http2Stream::new(io, Arc::clone(&activity)));
        let serving = inbound::http2(streams).serve_connection(io, service);
        let shut_down = |serving: Pin<&mut http2::Connection<_, _, _>>| serving.graceful_shutdown();
        // GOAWAY ends the connection without the loss of a request that is on its way.
        let closing = self.server.tasks.drain_begun();
        let ended = self.until_end(serving, closing, shut_down, || (), Some(&activity));
        if let Some(ended) = ended.await {
            log_end(ended);
        }
    }

    /// Runs a connection to its end, and closes it gracefully after `closing` or when its client loses
    /// its access. In the second case it is given up after [`REVOCATION_GRACE`]. `broken` is then
    /// called before its drop, and the result is `None`. A connection with an activity also ends by its
    /// timeouts. The connection is dropped when this function returns.
    async fn until_end<F: Future>(
        &self,
        serving: F,
        closing: impl Future<Output = ()>,
        shut_down: impl Fn(Pin<&mut F>),
        broken: impl FnOnce(),
        activity: Option<&Http2Activity>,
    ) -> Option<F::Output> {
        let mut serving = std::pin::pin!(serving);
        let mut closing = std::pin::pin!(closing);
        let mut closes = false;
        let mut revoked = std::pin::pin!(self.access.revoked());
        let mut goes_away = false;
        loop {
            tokio::select! {
                biased;
                ended = serving.as_mut() => return Some(ended),
                () = closing.as_mut(), if !closes => {
                    closes = true;
                    shut_down(serving.as_mut());
                }
                () = revoked.as_mut() => break,
                step = inbound::step(activity, goes_away) => match step {
                    ClosingStep::GoAway => {
                        goes_away = true;
                        shut_down(serving.as_mut());
                    }
                    ClosingStep::Close => return None,
                },
            }
        }
        shut_down(serving.as_mut());
        if self.access.is_shared() {
            return Some(serving.await);
        }
        let ended = tokio::time::timeout(REVOCATION_GRACE, serving.as_mut()).await;
        if ended.is_err() {
            broken();
        }
        ended.ok()
    }

    fn clock(&self) -> Clock {
        self.server.exchange.clock.clone()
    }

    async fn answer(self: Arc<Self>, mut request: Request<ClientBody>) -> Response<ResponseBody> {
        let policy = self.server.policy.load_full();
        let is_last_hop = semantics::is_last_hop(request.method(), request.headers());
        let routed = self.destine(&request, &policy);
        if let Ok(routed) = &routed
            && !self.note_access(routed)
        {
            // The connection is being dropped, with all its requests.
            std::future::pending::<()>().await;
        }
        match routed {
            Ok(Routed::Exchange(..) | Routed::ByPath(..)) if is_last_hop => self.answer_options(),
            Ok(Routed::Exchange(ingress, origin, client)) => {
                let arrival = Arrival::of_client(ingress, origin, client, policy);
                self.server.exchange.serve(arrival, request).await
            }
            Ok(Routed::Connect(authority, client)) => {
                connect::connect(Arc::clone(&self), request, authority, client, policy).await
            }
            Ok(Routed::Api(client)) => {
                let server = &self.server;
                // The future is boxed, because API calls are rare and would enlarge every other
                // request.
                let call = server.api.serve(&server.exchange, policy, &client, request);
                Box::pin(call).await
            }
            Ok(Routed::ByPath(origin, client)) => {
                gateway::strip_route(&mut request);
                let arrival = Arrival::of_client(Ingress::Route, origin, client, policy);
                // Boxed like the call below, so that other requests keep their size.
                Box::pin(self.server.exchange.serve(arrival, request)).await
            }
            Ok(Routed::Asterisk) => self.answer_options(),
            Err(error) => {
                let record = self.record(request.method());
                Box::pin(self.throttle(&request, &policy, &error)).await;
                record.refuse(&error)
            }
        }
    }

    /// Notes a request that passed the authentication. Returns false if the connection is being
    /// closed for another one.
    fn note_access(&self, routed: &Routed) -> bool {
        let Some(client) = routed.client() else {
            return true;
        };
        self.access.note(&client.access);
        self.slot.establish()
    }

    /// Counts a failed authentication, and waits if the client's address has failed too often.
    async fn throttle<B>(&self, request: &Request<B>, policy: &Policy, error: &Error) {
        let unknown = [Reason::ClientUnknown, Reason::ClientTokenUnknown];
        if policy.clients.is_empty() || !unknown.contains(&error.reason) {
            return;
        }
        let cause = match authenticate::has_credentials(request.headers()) {
            true => AuthFailure::Wrong,
            false => AuthFailure::Missing,
        };
        let listener = match self.inbound {
            Inbound::Route(..) => ListenerKind::Route,
            // The client of a tunnel has lost its access, and offers no credentials.
            Inbound::Inside(_) => return,
            Inbound::Proxy => ListenerKind::Proxy,
        };
        let throttle = &self.server.throttle;
        throttle.failed(self.client.address, listener, cause).await;
    }

    /// Routes a request and authenticates its client.
    ///
    /// # Errors
    /// Returns the error to answer with if the request is malformed, misdirected or not allowed.
    fn destine<B>(&self, request: &Request<B>, policy: &Policy) -> Result<Routed, Error> {
        let requested = self.own_form(semantics::classify(request)?, request.version(), policy);
        self.guard(request, &requested, policy)?;
        let headers = request.headers();
        let by_token = || authenticate::by_token_field(headers, policy, &self.client);
        let by_proxy = || authenticate::by_proxy_field(headers, policy, &self.client);
        Ok(match (&self.inbound, requested) {
            (_, RequestTarget::Asterisk) => Routed::Asterisk,
            (Inbound::Inside(_), _) if self.client.access.is_revoked() => {
                return Err(Error::new(Reason::ClientTokenUnknown, REVOKED));
            }
            (Inbound::Inside(origin), requested) => {
                Self::inside(origin, requested, request.method())?;
                Routed::Exchange(Ingress::Intercept, origin.clone(), self.client.clone())
            }
            (Inbound::Proxy, RequestTarget::Connect(authority)) => {
                Routed::Connect(authority, by_proxy()?)
            }
            (Inbound::Route(..), RequestTarget::Connect(_)) => {
                let detail = "this port serves one route; send CONNECT to the proxy's port";
                return Err(Error::new(Reason::NoRoute, detail));
            }
            (Inbound::Route(_, origin), _) => {
                Routed::Exchange(Ingress::Route, origin.clone(), by_token()?)
            }
            (Inbound::Proxy, RequestTarget::Absolute(origin)) => {
                match gateway::route(policy, &origin.host) {
                    Some(origin) => Routed::Exchange(Ingress::Route, origin, by_token()?),
                    None => Routed::Exchange(Ingress::Plain, origin, by_proxy()?),
                }
            }
            (Inbound::Proxy, RequestTarget::Origin(authority))
                if Api::is_ours(request.uri().path())
                    && gateway::route(policy, &authority.host).is_none() =>
            {
                if policy.clients.is_empty() && !self.client.address.is_loopback() {
                    let detail = "without `clients` the API serves loopback only; set `clients`";
                    return Err(Error::new(Reason::ClientTokenUnknown, detail));
                }
                Routed::Api(authenticate::by_api_field(headers, policy, &self.client)?)
            }
            (Inbound::Proxy, RequestTarget::Origin(authority)) => {
                match gateway::origin(policy, &authority) {
                    Ok(origin) => Routed::Exchange(Ingress::Route, origin, by_token()?),
                    Err(error) => match gateway::by_path(policy, request.uri().path()) {
                        Some(origin) => Routed::ByPath(origin?, by_token()?),
                        None => return Err(error),
                    },
                }
            }
        })
    }

    /// Checks that a request inside a CONNECT names the CONNECT's authority (RFC 9110 section 7.4).
    /// Both the certificate and the policy were chosen for that host.
    ///
    /// # Errors
    /// Returns [`Reason::Misdirected`] for another host and [`Reason::MethodNotAllowed`] for a
    /// CONNECT.
    fn inside(origin: &Origin, requested: RequestTarget, method: &Method) -> Result<(), Error> {
        let same = match requested {
            RequestTarget::Origin(authority) => names(&authority, origin),
            RequestTarget::Absolute(named) => {
                named.host == origin.host && named.port == origin.port
            }
            RequestTarget::Connect(_) | RequestTarget::Asterisk => {
                let detail = format!("{method} is not allowed inside a CONNECT");
                return Err(Error::new(Reason::MethodNotAllowed, detail));
            }
        };
        if same {
            return Ok(());
        }
        let detail = format!(
            "the CONNECT names `{}`, but the request names another host",
            origin.authority()
        );
        Err(Error::new(Reason::Misdirected, detail))
    }

    fn ingress(&self) -> Ingress {
        match self.inbound {
            Inbound::Proxy => Ingress::Direct,
            Inbound::Route(..) => Ingress::Route,
            Inbound::Inside(_) => Ingress::Intercept,
        }
    }

    /// Answers a request that is refused before an exchange begins, and records the refusal.
    pub(super) fn refuse(&self, method: &Method, error: &Error) -> Response<ResponseBody> {
        self.record(method).refuse(error)
    }

    /// Begins the record of a request without an exchange.
    pub(super) fn record(&self, method: &Method) -> Box<Recording> {
        let recorder = &self.server.exchange.recorder;
        let mut record = recorder.begin(self.ingress(), &self.client);
        record.method = method.clone();
        record.is_unauthenticated = !self.slot.is_established();
        record
    }

    /// Answers `OPTIONS *` and an OPTIONS request on its last hop, which ask about outpace and not
    /// about an origin (RFC 9110 sections 7.6.2 and 9.3.7).
    fn answer_options(&self) -> Response<ResponseBody> {
        let mut record = self.record(&Method::OPTIONS);
        record.status = StatusCode::NO_CONTENT.as_u16();
        record.end();
        let mut response = Response::new(ResponseBody::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let made_by_us = HeaderValue::from_static("outpace");
        response
            .headers_mut()
            .insert(semantics::PROXY_STATUS, made_by_us);
        response
    }
}

/// Destination of a request within outpace, with its client.
enum Routed {
    Exchange(Ingress, Origin, ClientIdentity),
    /// Exchange on a route that the path begins with.
    ByPath(Origin, ClientIdentity),
    Connect(Authority, ClientIdentity),
    Api(ClientIdentity),
    Asterisk,
}

impl Routed {
    /// Returns the client, or `None` for a request that needs no authentication.
    const fn client(&self) -> Option<&ClientIdentity> {
        match self {
            Self::Exchange(_, _, client)
            | Self::ByPath(_, client)
            | Self::Connect(_, client)
            | Self::Api(client) => Some(client),
            Self::Asterisk => None,
        }
    }
}

fn names(authority: &Authority, origin: &Origin) -> bool {
    let port = authority.port.unwrap_or(origin.scheme.default_port());
    authority.host == origin.host && port == origin.port
}

/// Logs the end of a connection at debug level only. Clients often close, reset or time out, and
/// every exchange has its own record.
fn log_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "client connection ended with an error");
    }
}
