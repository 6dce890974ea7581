//! Pool of connections to origins, built on `hyper::client::conn`. A *lease* is a connection that
//! is taken before its request exists, so that a slot can be bound at the moment of sending. A
//! request that could not be sent is returned to the caller unchanged.

use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;
use foldhash::HashMap;
use http::{Request, Response};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;

use super::http1::{Http1, Returning, send_error};
use super::{Connector, Io, OriginBody, OriginError};
use crate::bounds::{
    H2_CONNECTION_WINDOW, H2_HEADER_LIST, H2_PING, H2_STREAM_WINDOW, ORIGIN_IDLE, ORIGIN_IDLE_MAX,
};
use crate::clock::{Alarm, Clock, Instant};
use crate::policy::Egress;
use crate::shutdown::{Background, Tasks};
use crate::sync::{self, lock};
use crate::telemetry::Metrics;
use crate::units::Origin;

/// Body of a request to an origin.
pub trait RequestBody:
    http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
    + Send
    + Unpin
    + 'static
{
}

impl<B> RequestBody for B where
    B: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + Unpin
        + 'static
{
}

/// Set of protocols that a connection may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProtocolChoice {
    /// HTTP/2 if TLS negotiates it, otherwise HTTP/1.1.
    Any,
    /// HTTP/1.1 only, for requests that switch protocols.
    Http1,
    /// HTTP/2 with prior knowledge, for gRPC over plain TCP (RFC 9113 section 3.3).
    Http2Prior,
}

/// Origin with the protocols it may be reached by. Connections with equal destinations are
/// interchangeable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Origin to connect to.
    pub origin: Origin,
    /// Protocols that the connection may use.
    pub wire: ProtocolChoice,
}

/// Protocol of a lease's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, with one request at a time per connection.
    Http1,
    /// HTTP/2, with many concurrent requests per connection.
    Http2,
}

/// Connections to all origins. `B` is the type of the request bodies. Cheap to clone.
#[derive(Debug)]
pub struct Pool<B: http_body::Body + 'static>(Arc<PoolState<B>>);

impl<B: http_body::Body + 'static> Clone for Pool<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
pub(super) struct PoolState<B: http_body::Body + 'static> {
    connector: Connector,
    pub(super) clock: Clock,
    pub(super) tasks: Tasks,
    metrics: Metrics,
    idle: RwLock<HashMap<Destination, Arc<Idle<B>>>>,
    /// Instant of the last call of [`Pool::reap`], in nanoseconds. Returned connections count as
    /// idle since this instant, because a finer time is not needed.
    reaped: AtomicI64,
}

/// Idle connections to one destination. Every task that takes or returns a connection writes here.
/// The lock is never held across an await.
#[derive(Debug)]
pub(super) struct Idle<B: http_body::Body + 'static> {
    connections: Mutex<IdleConnections<B>>,
    /// Notification for one dialling task that a connection has become idle.
    returned: Notify,
}

#[derive(Debug)]
struct IdleConnections<B: http_body::Body + 'static> {
    http1: Vec<(Instant, Http1<B>)>,
    http2: Option<http2::SendRequest<B>>,
}

#[derive(Debug)]
enum Leased<B: http_body::Body + 'static> {
    Http1(Http1<B>),
    Http2(http2::SendRequest<B>),
}

/// Connection that is reserved for sending one request.
#[derive(Debug)]
pub struct Lease<B: http_body::Body + 'static>(Option<InHand<B>>);

/// Connection of a lease with the place it returns to when it is idle again.
#[derive(Debug)]
struct InHand<B: http_body::Body + 'static> {
    leased: Leased<B>,
    idle: Arc<Idle<B>>,
    home: Arc<PoolState<B>>,
}

/// Reason why a request got no response. `B` is the body of the request.
#[derive(Debug)]
pub enum SendError<B> {
    /// The request was not sent and is returned unchanged.
    Unsent(Box<Request<B>>),
    /// The request may have been sent, and the connection broke.
    Broken(OriginError),
    /// The request was sent, but no response head arrived before the deadline.
    Late,
}

impl<B: RequestBody> Pool<B> {
    /// Creates a pool without connections.
    pub fn new(connector: Connector, clock: Clock, tasks: Tasks, metrics: Metrics) -> Self {
        let reaped = AtomicI64::new(clock.now().as_nanos());
        Self(Arc::new(PoolState {
            connector,
            clock,
            tasks,
            metrics,
            idle: RwLock::default(),
            reaped,
        }))
    }

    /// Returns the connector of the pool, which tunnels use directly.
    pub fn connector(&self) -> &Connector {
        &self.0.connector
    }

    /// Takes an idle connection to `destination`, if there is one that can send at once.
    pub fn idle(&self, destination: &Destination) -> Option<Lease<B>> {
        let idle = self.0.known(destination)?;
        let leased = lock(&idle.connections).take()?;
        Some(self.0.lease(leased, idle))
    }

    /// Waits until a connection to `destination` may have become ready. Call it after
    /// [`Self::idle`] has returned `None`.
    ///
    /// # Cancel safety
    /// This method is cancel safe, because a notification that is not consumed passes to another
    /// waiter.
    pub async fn returned(&self, destination: &Destination) {
        self.0.idle_of(destination).returned.notified().await;
    }

    /// Opens a new connection to `destination`. If another open HTTP/2 connection to it exists by
    /// then, that one is used instead.
    ///
    /// # Errors
    /// Returns an [`OriginError`]. The request has not been dispatched in any of these cases.
    pub async fn connect(
        &self,
        destination: &Destination,
        egress: &Egress,
    ) -> Result<Lease<B>, OriginError> {
        let offer = destination.wire == ProtocolChoice::Any;
        let connector = &self.0.connector;
        let (io, agreed) = connector
            .connect(&destination.origin, offer, egress)
            .await?;
        self.0.metrics.origin_connected();
        if !agreed && destination.wire != ProtocolChoice::Http2Prior {
            let leased = self.0.http1(io, destination.wire).await?;
            let idle = self.0.idle_of(destination);
            return Ok(self.0.lease(Leased::Http1(leased), idle));
        }
        let sender = self.0.http2(io).await?;
        let idle = self.0.idle_of(destination);
        let first = lock(&idle.connections).share(sender);
        idle.returned.notify_waiters();
        Ok(self.0.lease(Leased::Http2(first), idle))
    }

    /// Closes connections that have been idle for [`ORIGIN_IDLE`] or longer. Call this at regular
    /// intervals.
    pub fn reap(&self) {
        let now = self.0.clock.now();
        self.0.reaped.store(now.as_nanos(), Ordering::Relaxed);
        let mut destinations = sync::write(&self.0.idle);
        destinations.retain(|_, idle| {
            let in_use = Arc::strong_count(idle) > 1;
            let mut known = lock(&idle.connections);
            known.forget(now - ORIGIN_IDLE);
            in_use || known.http2.is_some() || !known.http1.is_empty()
        });
    }
}

impl<B: http_body::Body + 'static> Default for Idle<B> {
    fn default() -> Self {
        let none = IdleConnections {
            http1: Vec::new(),
            http2: None,
        };
        Self {
            connections: Mutex::new(none),
            returned: Notify::new(),
        }
    }
}

impl<B: http_body::Body + 'static> IdleConnections<B> {
    fn take(&mut self) -> Option<Leased<B>> {
        if let Some(sender) = &self.http2 {
            if !sender.is_closed() {
                return Some(Leased::Http2(sender.clone()));
            }
            self.http2 = None;
        }
        // The most recently used connection is the least likely to have been closed by the origin.
        while let Some((_, mut connection)) = self.http1.pop() {
            if connection.is_fresh() {
                return Some(Leased::Http1(connection));
            }
        }
        None
    }

    /// Returns the HTTP/2 connection that all requests share. That is the known one if it is still
    /// open, otherwise `sender`.
    fn share(&mut self, sender: http2::SendRequest<B>) -> http2::SendRequest<B> {
        let known = self.http2.take().filter(|known| !known.is_closed());
        self.http2.insert(known.unwrap_or(sender)).clone()
    }

    /// Closes connections that have been idle since `oldest` or longer.
    fn forget(&mut self, oldest: Instant) {
        self.http1.retain(|(since, _)| *since > oldest);
        self.http2.take_if(|sender| sender.is_closed());
    }
}

impl<B: http_body::Body + 'static> PoolState<B> {
    fn known(&self, destination: &Destination) -> Option<Arc<Idle<B>>> {
        let known = sync::read(&self.idle);
        known.get(destination).cloned()
    }

    fn idle_of(&self, destination: &Destination) -> Arc<Idle<B>> {
        self.known(destination).unwrap_or_else(|| {
            let mut known = sync::write(&self.idle);
            Arc::clone(known.entry(destination.clone()).or_default())
        })
    }

    pub(super) fn put(&self, idle: &Idle<B>, connection: Http1<B>) {
        let since = Instant::from_nanos(self.reaped.load(Ordering::Relaxed));
        let mut known = lock(&idle.connections);
        if known.http1.len() < ORIGIN_IDLE_MAX {
            known.http1.push((since, connection));
            drop(known);
            idle.returned.notify_one();
        }
    }

    fn lease(self: &Arc<Self>, leased: Leased<B>, idle: Arc<Idle<B>>) -> Lease<B> {
        Lease(Some(InHand {
            leased,
            idle,
            home: Arc::clone(self),
        }))
    }
}

impl<B: RequestBody> PoolState<B> {
    async fn http1(&self, io: Io, wire: ProtocolChoice) -> Result<Http1<B>, OriginError> {
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| handshake_error(&error))?;
        let driver: Pin<Box<dyn Future<Output = _> + Send>> = match wire {
            ProtocolChoice::Http1 => Box::pin(connection.with_upgrades()),
            ProtocolChoice::Any | ProtocolChoice::Http2Prior => Box::pin(connection),
        };
        Ok(Http1 {
            sender,
            alarm: Alarm::default(),
            driver: Some(driver),
        })
    }

    async fn http2(&self, io: Io) -> Result<http2::SendRequest<B>, OriginError> {
        let (sender, connection) = http2::Builder::new(Background)
            .timer(TokioTimer::new())
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_header_list_size(H2_HEADER_LIST)
            // Pings find a connection that died silently while requests wait on it.
            .keep_alive_interval(H2_PING)
            .keep_alive_timeout(H2_PING)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| handshake_error(&error))?;
        // The end of the connection reaches every task with a stream on it, so the result is
        // ignored. A drain must not wait for this task.
        self.tasks
            .spawn_detached(async move { drop(connection.await) });
        Ok(sender)
    }
}

impl<B: RequestBody> Lease<B> {
    /// Returns the protocol of the connection.
    pub fn spoken(&self) -> Protocol {
        match self.0.as_ref().map(|held| &held.leased) {
            Some(Leased::Http2(_)) => Protocol::Http2,
            Some(Leased::Http1(_)) | None => Protocol::Http1,
        }
    }

    /// Returns true if the connection can still be used, as it could at the time of taking it.
    pub fn is_fresh(&mut self) -> bool {
        match self.0.as_mut().map(|held| &mut held.leased) {
            Some(Leased::Http1(connection)) => connection.is_fresh(),
            Some(Leased::Http2(sender)) => !sender.is_closed(),
            None => false,
        }
    }

    /// Sends the request and waits for the head of the response until `deadline`.
    ///
    /// # Errors
    /// Returns [`SendError::Unsent`] if the connection closed before the request was sent. Returns
    /// [`SendError::Broken`] if the connection broke, and [`SendError::Late`] after the deadline.
    pub async fn send(
        mut self,
        request: Request<B>,
        deadline: Instant,
    ) -> Result<Response<OriginBody<B>>, SendError<B>> {
        let Some(InHand { leased, idle, home }) = self.0.take() else {
            return Err(SendError::Unsent(Box::new(request)));
        };
        match leased {
            Leased::Http1(connection) => {
                let returning = Returning {
                    connection,
                    plain: request.body().is_end_stream(),
                    idle,
                    home,
                };
                returning.send(request, deadline).await
            }
            Leased::Http2(mut sender) => tokio::select! {
                biased;
                answer = sender.try_send_request(request) => {
                    let response = answer.map_err(send_error)?;
                    Ok(response.map(OriginBody::http2))
                }
                () = home.clock.sleep_until(deadline) => Err(SendError::Late),
            },
        }
    }
}

impl<B: http_body::Body + 'static> Drop for Lease<B> {
    /// Returns an HTTP/1.1 connection to the pool if it was not used and is still open.
    fn drop(&mut self) {
        if let Some(InHand { leased, idle, home }) = self.0.take()
            && let Leased::Http1(mut connection) = leased
            && connection.is_fresh()
        {
            home.put(&idle, connection);
        }
    }
}

fn handshake_error(error: &hyper::Error) -> OriginError {
    OriginError::Refused(format!("connected, but the HTTP handshake failed: {error}"))
}
