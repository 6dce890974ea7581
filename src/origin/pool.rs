//! A small pool over `hyper::client::conn`. A *lease* is a connection in hand, before the request
//! exists: that is what lets a slot be bound at the moment of sending. A request that was not sent
//! comes back unharmed.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::{Body, Connector, Error, Io};
use crate::bounds::{
    H2_CONNECTION_WINDOW, H2_HEADER_LIST, H2_PING, H2_STREAM_WINDOW, ORIGIN_IDLE, ORIGIN_IDLE_MAX,
};
use crate::clock::{Clock, Instant};
use crate::policy::Egress;
use crate::shutdown::{Background, Tasks};
use crate::telemetry::Metrics;
use crate::units::Origin;

/// What may be spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wire {
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
    pub wire: Wire,
}

/// Which protocol a lease speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// The connections to all origins; `B` is the body of requests. Cheap to clone.
#[derive(Debug)]
pub struct Pool<B: http_body::Body + 'static>(Arc<Home<B>>);

impl<B: http_body::Body + 'static> Clone for Pool<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Home<B: http_body::Body + 'static> {
    connector: Connector,
    clock: Clock,
    tasks: Tasks,
    metrics: Metrics,
    /// Written by whoever takes or returns a connection; never held across an await.
    idle: Mutex<HashMap<Destination, Idle<B>>>,
}

#[derive(Debug)]
struct Idle<B: http_body::Body + 'static> {
    http1: Vec<(Instant, Http1<B>)>,
    http2: Option<http2::SendRequest<B>>,
}

/// An HTTP/1.1 connection with the future that moves its bytes.
struct Http1<B: http_body::Body + 'static> {
    sender: http1::SendRequest<B>,
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
pub struct Lease<B: http_body::Body + 'static> {
    leased: Option<Leased<B>>,
    destination: Destination,
    home: Arc<Home<B>>,
}

/// Why a request was not answered.
#[derive(Debug)]
pub enum SendError<B> {
    /// It was never sent; here it is.
    Unsent(Box<Request<B>>),
    /// It may have been sent.
    Broken(Error),
}

impl<B> Pool<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// No connections yet.
    pub fn new(connector: Connector, clock: Clock, tasks: Tasks, metrics: Metrics) -> Self {
        Self(Arc::new(Home {
            connector,
            clock,
            tasks,
            metrics,
            idle: Mutex::default(),
        }))
    }

    /// The connector, for tunnels.
    pub fn connector(&self) -> &Connector {
        &self.0.connector
    }

    /// A connection that is ready now, if there is one.
    pub fn idle(&self, destination: &Destination) -> Option<Lease<B>> {
        let mut idle = self.0.lock();
        let known = idle.get_mut(destination)?;
        if let Some(sender) = &known.http2 {
            if !sender.is_closed() {
                let leased = Leased::Http2(sender.clone());
                return Some(self.0.lease(leased, destination));
            }
            known.http2 = None;
        }
        // The one that was used last is the least likely to have been closed.
        while let Some((_, mut connection)) = known.http1.pop() {
            if connection.is_fresh() {
                return Some(self.0.lease(Leased::Http1(connection), destination));
            }
        }
        None
    }

    /// A new connection. If another has meanwhile agreed on HTTP/2 with the same origin, that one.
    ///
    /// # Errors
    /// See [`Error`]; all of them are before dispatch.
    pub async fn connect(
        &self,
        destination: &Destination,
        egress: &Egress,
    ) -> Result<Lease<B>, Error> {
        let offer = destination.wire == Wire::Any;
        let (io, agreed) = self
            .0
            .connector
            .connect(&destination.origin, offer, egress)
            .await?;
        self.0.metrics.origin_connected();
        if !agreed && destination.wire != Wire::Http2Prior {
            let leased = self.0.http1(io, destination.wire).await?;
            return Ok(self.0.lease(Leased::Http1(leased), destination));
        }
        let sender = self.0.http2(io).await?;
        let mut idle = self.0.lock();
        let known = idle.entry(destination.clone()).or_default();
        let first = known
            .http2
            .take()
            .filter(|sender| !sender.is_closed())
            .unwrap_or(sender);
        known.http2 = Some(first.clone());
        Ok(self.0.lease(Leased::Http2(first), destination))
    }

    /// Closes what has been idle for long. To be called now and then.
    pub fn reap(&self) {
        let oldest = self.0.clock.now() - ORIGIN_IDLE;
        self.0.lock().retain(|_, known| {
            known.http1.retain(|(since, _)| *since > oldest);
            if known
                .http2
                .as_ref()
                .is_some_and(http2::SendRequest::is_closed)
            {
                known.http2 = None;
            }
            known.http2.is_some() || !known.http1.is_empty()
        });
    }
}

impl<B: http_body::Body + 'static> Default for Idle<B> {
    fn default() -> Self {
        Self {
            http1: Vec::new(),
            http2: None,
        }
    }
}

impl<B: http_body::Body + 'static> Home<B> {
    fn lock(&self) -> MutexGuard<'_, HashMap<Destination, Idle<B>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, destination: Destination, connection: Http1<B>) {
        let now = self.clock.now();
        let mut idle = self.lock();
        let known = idle.entry(destination).or_default();
        if known.http1.len() < ORIGIN_IDLE_MAX {
            known.http1.push((now, connection));
        }
    }

    fn lease(self: &Arc<Self>, leased: Leased<B>, destination: &Destination) -> Lease<B> {
        Lease {
            leased: Some(leased),
            destination: destination.clone(),
            home: Arc::clone(self),
        }
    }
}

impl<B> Home<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    async fn http1(&self, io: Io, wire: Wire) -> Result<Http1<B>, Error> {
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| Error::Refused(format!("the connection was made, but {error}")))?;
        let driver: Pin<Box<dyn Future<Output = _> + Send>> = match wire {
            Wire::Http1 => Box::pin(connection.with_upgrades()),
            Wire::Any | Wire::Http2Prior => Box::pin(connection),
        };
        Ok(Http1 {
            sender,
            driver: Some(driver),
        })
    }

    async fn http2(&self, io: Io) -> Result<http2::SendRequest<B>, Error> {
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
            .map_err(|error| Error::Refused(format!("the connection was made, but {error}")))?;
        // Its end reaches everyone who has a stream on it. It must not hold up a drain.
        drop(
            self.tasks
                .spawn_until_drained(async move { drop(connection.await) }),
        );
        Ok(sender)
    }
}

impl<B> Lease<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// What is spoken on it.
    pub const fn spoken(&self) -> Spoken {
        match self.leased {
            Some(Leased::Http2(_)) => Spoken::Http2,
            Some(Leased::Http1(_)) | None => Spoken::Http1,
        }
    }

    /// Whether it still is what it was when it was taken.
    pub fn is_fresh(&mut self) -> bool {
        match &mut self.leased {
            Some(Leased::Http1(connection)) => connection.is_fresh(),
            Some(Leased::Http2(sender)) => !sender.is_closed(),
            None => false,
        }
    }

    /// Sends the request and waits for the head of the response.
    ///
    /// # Errors
    /// [`SendError::Unsent`] returns the request if the connection was closed before it left.
    pub async fn send(mut self, request: Request<B>) -> Result<Response<Body<B>>, SendError<B>> {
        match self.leased.take() {
            Some(Leased::Http1(connection)) => {
                let home = Arc::clone(&self.home);
                let returning = Returning {
                    connection,
                    destination: self.destination.clone(),
                    home,
                };
                returning.send(request).await
            }
            Some(Leased::Http2(mut sender)) => {
                let response = sender.try_send_request(request).await.map_err(send_error)?;
                Ok(response.map(Body::http2))
            }
            None => Err(SendError::Unsent(Box::new(request))),
        }
    }
}

impl<B: http_body::Body + 'static> Drop for Lease<B> {
    /// A connection that was not used is idle again.
    fn drop(&mut self) {
        if let Some(Leased::Http1(mut connection)) = self.leased.take()
            && connection.is_fresh()
        {
            self.home.put(self.destination.clone(), connection);
        }
    }
}

/// An HTTP/1.1 connection in use, on its way back to the pool.
#[derive(Debug)]
pub(super) struct Returning<B: http_body::Body + 'static> {
    connection: Http1<B>,
    destination: Destination,
    home: Arc<Home<B>>,
}

impl<B> Returning<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    async fn send(mut self, request: Request<B>) -> Result<Response<Body<B>>, SendError<B>> {
        let mut answer = std::pin::pin!(self.connection.sender.try_send_request(request));
        let answered = std::future::poll_fn(|cx| {
            self.connection.drive(cx);
            answer.as_mut().poll(cx)
        })
        .await;
        let response = answered.map_err(send_error)?;
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            // The new protocol's bytes come through hyper's upgrade, which the driver hands over.
            if let Some(driver) = self.connection.driver.take() {
                drop(self.home.tasks.spawn(async move { drop(driver.await) }));
            }
            return Ok(response.map(Body::http2));
        }
        let mut returning = Some(self);
        let (parts, incoming) = response.into_parts();
        let mut incoming = Some(incoming);
        let body = std::future::poll_fn(|cx| {
            let body = incoming.take().zip(returning.take());
            Poll::Ready(body.map(|(incoming, returning)| Body::http1(incoming, returning, cx)))
        })
        .await;
        match body {
            Some(body) => Ok(Response::from_parts(parts, body)),
            None => Err(SendError::Broken(Error::Broken(
                "the body was lost".to_owned(),
            ))),
        }
    }

    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        self.connection.drive(cx);
    }

    /// The response is over. If the request is, too, the connection is idle again; one that still
    /// uploads is closed, since nobody would drive it.
    pub(super) fn finish(mut self, cx: &mut Context<'_>) {
        self.connection.drive(cx);
        if self.connection.driver.is_some() && self.connection.sender.is_ready() {
            self.home.put(self.destination, self.connection);
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
fn broken(error: &hyper::Error) -> Error {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    Error::Broken(format!("{error}{}", cause.unwrap_or_default()))
}
