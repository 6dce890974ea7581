//! Pool of connections to origins, built on `hyper::client::conn`. A *lease* is a connection that
//! is taken before its request exists, so that a slot can be bound at the moment of sending. A
//! request that could not be sent is returned to the caller unchanged.

use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use foldhash::HashMap;
use http::{Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;

use super::client_link::ClientLink;
use super::connections::{Opened, OriginConnections, Ready};
use super::http1::{Http1, Returning};
use super::http2::{StreamBody, StreamHold};
use super::{Connector, Io, OriginBody, OriginError, descriptors, failure};
use crate::bounds::{ORIGIN_AGE, ORIGIN_IDLE};
use crate::clock::{Alarm, Clock, Instant};
use crate::policy::{Egress, Policy};
use crate::shutdown::Tasks;
use crate::sync;
use crate::telemetry::Metrics;
use crate::units::Origin;

/// Body of a request to an origin.
pub trait RequestBody:
    http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
    + Send
    + Unpin
    + std::fmt::Debug
    + 'static
{
}

impl<B> RequestBody for B where
    B: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + Unpin
        + std::fmt::Debug
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
    /// Number of the client connection to which the connections belong, or `None` if all clients
    /// share them. Connections with an owner use HTTP/1.1.
    pub owner: Option<u64>,
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
pub struct Pool<B: RequestBody>(pub(super) Arc<PoolState<B>>);

impl<B: RequestBody> Clone for Pool<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
pub(super) struct PoolState<B: RequestBody> {
    connector: Connector,
    pub(super) clock: Clock,
    pub(super) tasks: Tasks,
    metrics: Metrics,
    /// Permits for the connections to all origins together.
    pub(super) permits: Arc<Semaphore>,
    pub(super) destinations: RwLock<HashMap<Destination, Arc<OriginConnections<B>>>>,
    /// Instant of the last call of [`Pool::reap`], in nanoseconds. Connections become idle and
    /// expire by this instant, because a finer time is not needed.
    reaped: AtomicI64,
    /// Number of connections so far, which spreads their ages.
    opened: AtomicU32,
}

/// Connection that is reserved for sending one request.
#[derive(Debug)]
pub struct Lease<B: RequestBody>(Option<InHand<B>>);

/// Connection of a lease with the place it returns to when it is idle again.
#[derive(Debug)]
struct InHand<B: RequestBody> {
    leased: Leased<B>,
    connections: Arc<OriginConnections<B>>,
    home: Arc<PoolState<B>>,
}

#[derive(Debug)]
enum Leased<B: RequestBody> {
    Http1(Http1<B>),
    Http2(
        hyper::client::conn::http2::SendRequest<StreamBody<B>>,
        Arc<StreamHold<B>>,
    ),
}

/// Reason why a request got no response. `B` is the body of the request.
#[derive(Debug)]
pub enum SendError<B> {
    /// The request was not sent and is returned unchanged.
    Unsent(Box<Request<B>>),
    /// The request may have been sent. The error says if the origin processed it.
    Failed(OriginError),
    /// The request was sent, but no response head arrived before the deadline.
    Late,
}

impl<B: RequestBody> Pool<B> {
    /// Creates a pool without connections, for at most `max` of them.
    pub fn new(
        connector: Connector,
        max: usize,
        clock: Clock,
        tasks: Tasks,
        metrics: Metrics,
    ) -> Self {
        let reaped = AtomicI64::new(clock.now().as_nanos());
        Self(Arc::new(PoolState {
            connector,
            clock,
            tasks,
            metrics,
            permits: descriptors::permits(max),
            destinations: RwLock::default(),
            reaped,
            opened: AtomicU32::new(0),
        }))
    }

    /// Returns the connector of the pool, which tunnels use directly.
    pub fn connector(&self) -> &Connector {
        &self.0.connector
    }

    /// Takes a connection to `destination` that can send at once, if there is one. Over HTTP/2 this
    /// needs a free stream.
    pub fn idle(&self, destination: &Destination) -> Option<Lease<B>> {
        let connections = self.0.known(destination)?;
        let ready = connections.take(self.0.recently())?;
        Some(self.0.lease(ready, &connections))
    }

    /// Waits for a connection to `destination` that can send at once. A new connection is opened if
    /// the bounds allow it, but a connection that becomes idle before that is taken instead.
    ///
    /// # Errors
    /// Returns the [`OriginError`] of a dial. The request has not been dispatched in this case.
    ///
    /// # Cancel safety
    /// A dial that was begun for this request is finished for others.
    pub async fn acquire(
        &self,
        destination: &Destination,
        policy: &Arc<Policy>,
    ) -> Result<Lease<B>, OriginError> {
        let connections = self.0.connections(destination);
        let granted = connections.enqueue(Arc::clone(policy));
        self.0.grant(&connections);
        let closed = |_closed| Err(OriginError::Refused("the pool was closed".to_owned()));
        granted.await.unwrap_or_else(closed)
    }

    /// Returns true if requests wait for a connection to `destination`, but all its connections are
    /// in use and no further one may be opened.
    pub fn is_full(&self, destination: &Destination) -> bool {
        let known = self.0.known(destination);
        known.is_some_and(|connections| connections.is_full())
    }

    /// Returns true if there are HTTP/2 connections to `destination`, so that a request without a
    /// ready connection waits for a free stream.
    pub fn is_crowded(&self, destination: &Destination) -> bool {
        let known = self.0.known(destination);
        known.is_some_and(|connections| connections.has_http2())
    }

    /// Closes connections that have been idle for [`ORIGIN_IDLE`] or are older than [`ORIGIN_AGE`].
    /// Call this at regular intervals.
    pub fn reap(&self) {
        let now = self.0.clock.now();
        self.0.reaped.store(now.as_nanos(), Ordering::Relaxed);
        let mut used = Vec::new();
        sync::write(&self.0.destinations).retain(|_, connections| {
            let is_unused = connections.forget(now - ORIGIN_IDLE, now);
            used.push(Arc::clone(connections));
            !is_unused || Arc::strong_count(connections) > 2
        });
        // Connections that have expired may be needed by requests that wait.
        for connections in used {
            self.0.grant(&connections);
        }
    }
}

impl<B: RequestBody> PoolState<B> {
    /// Returns the instant of the last reaping, which is recent enough for ages of connections.
    pub(super) fn recently(&self) -> Instant {
        Instant::from_nanos(self.reaped.load(Ordering::Relaxed))
    }

    fn known(&self, destination: &Destination) -> Option<Arc<OriginConnections<B>>> {
        let known = sync::read(&self.destinations);
        known.get(destination).cloned()
    }

    pub(super) fn connections(&self, destination: &Destination) -> Arc<OriginConnections<B>> {
        self.known(destination).unwrap_or_else(|| {
            let mut known = sync::write(&self.destinations);
            let made = || Arc::new(OriginConnections::new(destination.clone()));
            Arc::clone(known.entry(destination.clone()).or_insert_with(made))
        })
    }

    pub(super) fn put(
        self: &Arc<Self>,
        connections: &Arc<OriginConnections<B>>,
        connection: Http1<B>,
    ) {
        if connections.put(self.recently(), connection) {
            self.grant(connections);
        }
    }

    pub(super) fn lease(
        self: &Arc<Self>,
        ready: Ready<B>,
        connections: &Arc<OriginConnections<B>>,
    ) -> Lease<B> {
        let leased = match ready {
            Ready::Http1(connection) => Leased::Http1(connection),
            Ready::Http2(stream) => {
                let (connections, home) = (Arc::clone(connections), Arc::clone(self));
                let hold = StreamHold::new(stream.streams, connections, home);
                Leased::Http2(stream.sender, Arc::new(hold))
            }
        };
        Lease(Some(InHand {
            leased,
            connections: Arc::clone(connections),
            home: Arc::clone(self),
        }))
    }

    /// Opens a connection to the destination.
    pub(super) async fn open(
        self: &Arc<Self>,
        connections: &Arc<OriginConnections<B>>,
        egress: &Egress,
    ) -> Result<Opened<B>, OriginError> {
        let Destination { origin, wire, .. } = &connections.destination;
        let offer = connections.offers_http2(self.clock.now());
        let permit = self.permit().await?;
        let (io, agreed) = self.connector.connect(origin, offer, egress).await?;
        let io = io.holding(permit);
        self.metrics.origin_connected();
        let expires = self.clock.now() + self.next_age();
        if agreed || *wire == ProtocolChoice::Http2Prior {
            return Ok(Opened::Http2(self.http2(io, connections, expires).await?));
        }
        Ok(Opened::Http1(http1(io, *wire, expires).await?))
    }

    /// Returns the age up to which the next connection is used. The ages are spread, so that
    /// connections that were opened together are not replaced together.
    fn next_age(&self) -> Duration {
        // Multiples of the golden ratio are spread evenly.
        let number = f64::from(self.opened.fetch_add(1, Ordering::Relaxed));
        ORIGIN_AGE.mul_f64(1.0 - 0.25 * (number * 0.618_034).fract())
    }
}

async fn http1<B: RequestBody>(
    io: Io,
    wire: ProtocolChoice,
    expires: Instant,
) -> Result<Http1<B>, OriginError> {
    let (refusal, cut, read) = (io.refusal.clone(), io.cut.clone(), Arc::clone(&io.read));
    let (sender, connection) = http1::Builder::new()
        // A recipient removes the spaces (RFC 9112 section 5.1) and the folds (section 5.2).
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| failure::handshake(&error))?;
    let driver: Pin<Box<dyn Future<Output = _> + Send>> = match wire {
        ProtocolChoice::Http1 => Box::pin(connection.with_upgrades()),
        ProtocolChoice::Any | ProtocolChoice::Http2Prior => Box::pin(connection),
    };
    Ok(Http1 {
        cut,
        sender,
        refusal,
        read,
        expires,
        alarm: Alarm::default(),
        driver: Some(driver),
    })
}

impl<B: RequestBody> Lease<B> {
    /// Returns the protocol of the connection.
    pub fn spoken(&self) -> Protocol {
        match self.0.as_ref().map(|held| &held.leased) {
            Some(Leased::Http2(..)) => Protocol::Http2,
            Some(Leased::Http1(_)) | None => Protocol::Http1,
        }
    }

    /// Returns true if the connection can still be used, as it could at the time of taking it.
    pub fn is_fresh(&mut self) -> bool {
        match self.0.as_mut().map(|held| &mut held.leased) {
            Some(Leased::Http1(connection)) => connection.is_fresh(),
            Some(Leased::Http2(sender, hold)) => !sender.is_closed() || hold.refusal().is_there(),
            None => false,
        }
    }

    /// Sends the request and waits for the head of the response until `deadline`. A connection that
    /// authenticates `client` serves no other client afterwards.
    ///
    /// # Errors
    /// Returns [`SendError::Unsent`] if the connection closed before the request was sent. Returns
    /// [`SendError::Failed`] if there was no readable response, and [`SendError::Late`] after the
    /// deadline.
    pub async fn send(
        mut self,
        request: Request<B>,
        deadline: Instant,
        client: &ClientLink,
    ) -> Result<Response<OriginBody<B>>, SendError<B>> {
        let Some(in_hand) = self.0.take() else {
            return Err(SendError::Unsent(Box::new(request)));
        };
        let InHand {
            leased,
            connections,
            home,
        } = in_hand;
        match leased {
            Leased::Http1(connection) => {
                let returning = Returning {
                    connection,
                    plain: request.body().is_end_stream(),
                    is_last: false,
                    connections,
                    home,
                };
                returning.send(request, deadline, client).await
            }
            Leased::Http2(mut sender, hold) => {
                let request = request.map(|body| StreamBody::new(body, &hold));
                let answer = sender.try_send_request(request);
                // A request that was queued while the connection ended comes back when the last
                // sender is dropped, so none is held during the wait.
                drop(sender);
                tokio::select! {
                    biased;
                    answer = answer => match answer {
                        Ok(response) => begun_http2(response, hold).await,
                        Err(error) => {
                            let error = refused(failure::of_request(error), &hold, &connections, &home);
                            Err(failure::or(error, hold.refusal()))
                        }
                    },
                    () = home.clock.sleep_until(deadline) => Err(SendError::Late),
                }
            }
        }
    }
}

/// Returns the response with the part of its body that has arrived together with its head.
async fn begun_http2<B: RequestBody>(
    response: Response<Incoming>,
    hold: Arc<StreamHold<B>>,
) -> Result<Response<OriginBody<B>>, SendError<B>> {
    let mut response = response.map(|body| OriginBody::http2(body, Some(hold)));
    if !response.body().is_end_stream() {
        // The task of the connection may still be reading the frames that follow the head.
        tokio::task::yield_now().await;
        let begun = response.body_mut().begin();
        begun.map_err(|error| SendError::Failed(failure::of_body(error)))?;
    }
    Ok(response)
}

/// Returns the error for the caller, with the body as it was given. An origin that requires
/// HTTP/1.1 gets no HTTP/2 connections for a while (RFC 9113 section 7).
fn refused<B: RequestBody>(
    error: SendError<StreamBody<B>>,
    hold: &StreamHold<B>,
    connections: &OriginConnections<B>,
    home: &PoolState<B>,
) -> SendError<B> {
    match error {
        SendError::Unsent(request) => SendError::Unsent(Box::new(request.map(|sent| sent.body))),
        SendError::Failed(error) => {
            match error {
                OriginError::Http1Required => {
                    connections.require_http1(home.clock.now() + ORIGIN_AGE);
                }
                OriginError::Unprocessed { going_away, .. } if going_away => hold.is_ending(),
                _ => {}
            }
            SendError::Failed(error)
        }
        SendError::Late => SendError::Late,
    }
}

impl<B: RequestBody> Drop for Lease<B> {
    /// Returns an HTTP/1.1 connection to the pool if it was not used and is still open.
    fn drop(&mut self) {
        if let Some(in_hand) = self.0.take()
            && let Leased::Http1(mut connection) = in_hand.leased
            && connection.is_fresh()
        {
            in_hand.home.put(&in_hand.connections, connection);
        }
    }
}
