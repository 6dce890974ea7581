//! A small pool over `hyper::client::conn`. A *lease* is a connection in hand, before the request
//! exists: that is what lets a slot be bound at the moment of sending. A request that was not sent
//! comes back unharmed.

use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use foldhash::HashMap;
use http::header::CONNECTION;
use http::{Request, Response, Version};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;

use super::{Connector, Io, OriginBody, OriginError};
use crate::bounds::{
    H2_CONNECTION_WINDOW, H2_HEADER_LIST, H2_PING, H2_STREAM_WINDOW, ORIGIN_IDLE, ORIGIN_IDLE_MAX,
};
use crate::clock::{Alarm, Clock, Instant};
use crate::policy::Egress;
use crate::shutdown::{Background, Tasks};
use crate::sync;
use crate::telemetry::Metrics;
use crate::units::Origin;

/// What may be spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProtocolChoice {
    /// HTTP/2 where TLS agrees on it, else HTTP/1.1.
    Any,
    /// HTTP/1.1 only, for switches of protocol.
    Http1,
    /// HTTP/2 without asking, for gRPC over plain TCP (RFC 9113 section 3.3).
    Http2Prior,
}

/// An origin and what may be spoken with it: connections with equal destinations are alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Whom to connect to.
    pub origin: Origin,
    /// What may be spoken.
    pub wire: ProtocolChoice,
}

/// Which protocol a lease speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// The connections to all origins; `B` is the body of requests. Cheap to clone.
#[derive(Debug)]
pub struct Pool<B: http_body::Body + 'static>(Arc<PoolState<B>>);

impl<B: http_body::Body + 'static> Clone for Pool<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct PoolState<B: http_body::Body + 'static> {
    connector: Connector,
    clock: Clock,
    tasks: Tasks,
    metrics: Metrics,
    idle: RwLock<HashMap<Destination, Arc<Idle<B>>>>,
    /// When it was last looked what has been idle for long: connections that come back need no finer time.
    reaped: AtomicI64,
}

/// The idle connections to one destination. Written by whoever takes or returns one; the lock is never
/// held across an await.
#[derive(Debug)]
struct Idle<B: http_body::Body + 'static> {
    connections: Mutex<IdleConnections<B>>,
    /// Tells one of those who dial that a connection has come back.
    returned: Notify,
}

#[derive(Debug)]
struct IdleConnections<B: http_body::Body + 'static> {
    http1: Vec<(Instant, Http1<B>)>,
    http2: Option<http2::SendRequest<B>>,
}

/// An HTTP/1.1 connection with the future that moves its bytes.
struct Http1<B: http_body::Body + 'static> {
    sender: http1::SendRequest<B>,
    /// Rings when an answer takes too long.
    alarm: Alarm,
    /// `None` once it has ended.
    driver: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
}

impl<B: http_body::Body + 'static> std::fmt::Debug for Http1<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http1")
            .field("open", &self.driver.is_some())
            .finish_non_exhaustive()
    }
}

impl<B: http_body::Body + 'static> Http1<B> {
    /// Moves bytes; what comes of it is told to whoever waits for the message.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && driver.as_mut().poll(cx).is_ready()
        {
            self.driver = None;
        }
    }

    /// Whether it can take a request now; reads what the origin may have said meanwhile.
    fn is_fresh(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }
}

#[derive(Debug)]
enum Leased<B: http_body::Body + 'static> {
    Http1(Http1<B>),
    Http2(http2::SendRequest<B>),
}

/// A connection that can send one request.
#[derive(Debug)]
pub struct Lease<B: http_body::Body + 'static>(Option<InHand<B>>);

/// A connection, and where it goes when it is idle again.
#[derive(Debug)]
struct InHand<B: http_body::Body + 'static> {
    leased: Leased<B>,
    idle: Arc<Idle<B>>,
    home: Arc<PoolState<B>>,
}

/// Why a request was not answered.
#[derive(Debug)]
pub enum SendError<B> {
    /// It was never sent; here it is.
    Unsent(Box<Request<B>>),
    /// It may have been sent.
    Broken(OriginError),
    /// It was sent, and not answered in time.
    Late,
}

impl<B> Pool<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// No connections yet.
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

    /// The connector, for tunnels.
    pub fn connector(&self) -> &Connector {
        &self.0.connector
    }

    /// A connection that is ready now, if there is one.
    pub fn idle(&self, destination: &Destination) -> Option<Lease<B>> {
        let idle = self.0.known(destination)?;
        let leased = idle.lock().take()?;
        Some(self.0.lease(leased, idle))
    }

    /// Returns when there may be a connection that is ready, which there was not.
    ///
    /// # Cancel safety
    /// Cancel safe: somebody else is told instead.
    pub async fn returned(&self, destination: &Destination) {
        self.0.idle_of(destination).returned.notified().await;
    }

    /// A new connection. If another has meanwhile agreed on HTTP/2 with the same origin, that one.
    ///
    /// # Errors
    /// See [`OriginError`]; all of them are before dispatch.
    pub async fn connect(
        &self,
        destination: &Destination,
        egress: &Egress,
    ) -> Result<Lease<B>, OriginError> {
        let offer = destination.wire == ProtocolChoice::Any;
        let (io, agreed) = self
            .0
            .connector
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
        let first = idle.lock().share(sender);
        idle.returned.notify_waiters();
        Ok(self.0.lease(Leased::Http2(first), idle))
    }

    /// Closes what has been idle for long. To be called now and then.
    pub fn reap(&self) {
        let now = self.0.clock.now();
        self.0.reaped.store(now.as_nanos(), Ordering::Relaxed);
        let mut destinations = sync::write(&self.0.idle);
        destinations.retain(|_, idle| {
            let in_use = Arc::strong_count(idle) > 1;
            let mut known = idle.lock();
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

impl<B: http_body::Body + 'static> Idle<B> {
    fn lock(&self) -> MutexGuard<'_, IdleConnections<B>> {
        let connections = self.connections.lock();
        connections.unwrap_or_else(PoisonError::into_inner)
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
        // The one that was used last is the least likely to have been closed.
        while let Some((_, mut connection)) = self.http1.pop() {
            if connection.is_fresh() {
                return Some(Leased::Http1(connection));
            }
        }
        None
    }

    /// One HTTP/2 connection serves all: the one that is known, or this one.
    fn share(&mut self, sender: http2::SendRequest<B>) -> http2::SendRequest<B> {
        let known = self.http2.take().filter(|known| !known.is_closed());
        self.http2.insert(known.unwrap_or(sender)).clone()
    }

    /// Closes what has been idle since `oldest`.
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

    fn put(&self, idle: &Idle<B>, connection: Http1<B>) {
        let since = Instant::from_nanos(self.reaped.load(Ordering::Relaxed));
        let mut known = idle.lock();
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

impl<B> PoolState<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    async fn http1(&self, io: Io, wire: ProtocolChoice) -> Result<Http1<B>, OriginError> {
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| {
                OriginError::Refused(format!("the connection was made, but {error}"))
            })?;
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
            // A connection that died silently is found out by whoever waits on it.
            .keep_alive_interval(H2_PING)
            .keep_alive_timeout(H2_PING)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| {
                OriginError::Refused(format!("the connection was made, but {error}"))
            })?;
        // Its end reaches everyone who has a stream on it. It must not hold up a drain.
        self.tasks
            .spawn_detached(async move { drop(connection.await) });
        Ok(sender)
    }
}

impl<B> Lease<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// What is spoken on it.
    pub fn spoken(&self) -> Protocol {
        match self.0.as_ref().map(|held| &held.leased) {
            Some(Leased::Http2(_)) => Protocol::Http2,
            Some(Leased::Http1(_)) | None => Protocol::Http1,
        }
    }

    /// Whether it still is what it was when it was taken.
    pub fn is_fresh(&mut self) -> bool {
        match self.0.as_mut().map(|held| &mut held.leased) {
            Some(Leased::Http1(connection)) => connection.is_fresh(),
            Some(Leased::Http2(sender)) => !sender.is_closed(),
            None => false,
        }
    }

    /// Sends the request and waits for the head of the response, until `deadline`.
    ///
    /// # Errors
    /// [`SendError::Unsent`] returns the request if the connection was closed before it left.
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
    /// A connection that was not used is idle again.
    fn drop(&mut self) {
        if let Some(InHand { leased, idle, home }) = self.0.take()
            && let Leased::Http1(mut connection) = leased
            && connection.is_fresh()
        {
            home.put(&idle, connection);
        }
    }
}

/// An HTTP/1.1 connection in use, on its way back to the pool.
#[derive(Debug)]
pub(super) struct Returning<B: http_body::Body + 'static> {
    connection: Http1<B>,
    /// Nothing is left to send, and the origin keeps it open: it is idle when the response is over.
    plain: bool,
    idle: Arc<Idle<B>>,
    home: Arc<PoolState<B>>,
}

impl<B> Returning<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    async fn send(
        mut self,
        request: Request<B>,
        deadline: Instant,
    ) -> Result<Response<OriginBody<B>>, SendError<B>> {
        let mut answer = std::pin::pin!(self.connection.sender.try_send_request(request));
        let answered = std::future::poll_fn(|cx| {
            self.connection.drive(cx);
            match answer.as_mut().poll(cx) {
                Poll::Ready(answered) => Poll::Ready(answered.map_err(send_error)),
                Poll::Pending => {
                    let alarm = &mut self.connection.alarm;
                    let rung = alarm.poll(&self.home.clock, deadline, cx);
                    rung.map(|()| Err(SendError::Late))
                }
            }
        });
        let response = answered.await?;
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            // The new protocol's bytes come through hyper's upgrade, which the driver hands over.
            if let Some(driver) = self.connection.driver.take() {
                self.home.tasks.spawn(async move { drop(driver.await) });
            }
            return Ok(response.map(OriginBody::http2));
        }
        self.plain &=
            response.version() == Version::HTTP_11 && !response.headers().contains_key(CONNECTION);
        Ok(response.map(|incoming| OriginBody::http1(incoming, self)))
    }

    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        self.connection.drive(cx);
    }

    /// The response is over. If the request is, too, the connection is idle again; one that still
    /// uploads is closed, since nobody would drive it.
    pub(super) fn finish(mut self) {
        if self.plain || self.connection.is_fresh() {
            self.home.put(&self.idle, self.connection);
        }
    }
}

fn send_error<B>(error: hyper::client::conn::TrySendError<Request<B>>) -> SendError<B> {
    let mut error = error;
    match error.take_message() {
        Some(request) => SendError::Unsent(Box::new(request)),
        None => SendError::Broken(broken(&error.into_error())),
    }
}

/// hyper's error with its cause, which holds the telling part.
fn broken(error: &hyper::Error) -> OriginError {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    OriginError::Broken(format!("{error}{}", cause.unwrap_or_default()))
}
