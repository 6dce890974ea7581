//! HTTP/1.1 connections. The task that uses a connection also transfers its bytes, so no second task
//! has to be woken for each message.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use http::header::{CONNECTION, TRANSFER_ENCODING};
use http::{Request, Response, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;

use super::client_link::ClientLink;
use super::connections::OriginConnections;
use super::failure;
use super::io::{ClientRefusal, CutTls};
use super::pool::{Destination, PoolState, RequestBody, SendError};
use super::{OriginBody, OriginError};
use crate::bounds::INTERIM_BYTES;
use crate::clock::{Alarm, Instant};
use crate::semantics;

/// Bytes that hyper holds at most of a response whose head it has just parsed. This exceeds the
/// default size of its buffer (417,792 bytes).
const UNPARSED_BYTES: u64 = 512 * 1024;

fn too_many_interim<B: RequestBody>() -> SendError<B> {
    let cause = "it sent too many responses 1xx".to_owned();
    SendError::Failed(OriginError::Unreadable(cause))
}

/// HTTP/1.1 connection with the future that transfers its bytes.
pub(super) struct Http1<B: RequestBody> {
    pub(super) sender: http1::SendRequest<B>,
    pub(super) refusal: ClientRefusal,
    /// State of the TLS session, or `None` without TLS.
    pub(super) cut: Option<CutTls>,
    /// Number of bytes that have been read from the connection.
    pub(super) read: Arc<AtomicU64>,
    /// Instant from which the connection takes no further request.
    pub(super) expires: Instant,
    /// Timer for the deadline of the response head.
    pub(super) alarm: Alarm,
    /// Future that transfers the bytes of the connection. `None` once the connection has ended.
    pub(super) driver: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
}

impl<B: RequestBody> std::fmt::Debug for Http1<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http1")
            .field("open", &self.driver.is_some())
            .finish_non_exhaustive()
    }
}

impl<B: RequestBody> Http1<B> {
    /// Transfers bytes. An error reaches the task that waits for the message, so it is dropped
    /// here.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && driver.as_mut().poll(cx).is_ready()
        {
            self.driver = None;
        }
    }

    /// Returns true if the connection can take a request now. Bytes that the origin has sent
    /// meanwhile, such as a close, are read first. If the origin has refused this client, the next
    /// request reports that.
    pub(super) fn is_fresh(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready() || self.refusal.is_there()
    }
}
/// HTTP/1.1 connection in use, which returns to the pool after its response.
#[derive(Debug)]
pub(super) struct Returning<B: RequestBody> {
    pub(super) connection: Http1<B>,
    /// True if the request is fully sent and the origin keeps the connection open. The connection
    /// is then idle as soon as the response is complete.
    pub(super) plain: bool,
    /// True if the connection must be closed after this response.
    pub(super) is_last: bool,
    pub(super) connections: Arc<OriginConnections<B>>,
    pub(super) home: Arc<PoolState<B>>,
}

impl<B: RequestBody> Returning<B> {
    pub(super) async fn send(
        mut self,
        request: Request<B>,
        deadline: Instant,
        client: &ClientLink,
    ) -> Result<Response<OriginBody<B>>, SendError<B>> {
        let begun = self.connection.read.load(Ordering::Relaxed);
        let mut answer = std::pin::pin!(self.connection.sender.try_send_request(request));
        let answered = std::future::poll_fn(|cx| {
            self.connection.drive(cx);
            // hyper reads and drops responses 1xx without a bound.
            let read = self.connection.read.load(Ordering::Relaxed) - begun;
            match answer.as_mut().poll(cx) {
                // Many of them may arrive at once, together with the response.
                Poll::Ready(Ok(_)) if read > INTERIM_BYTES + UNPARSED_BYTES => {
                    Poll::Ready(Err(too_many_interim()))
                }
                Poll::Ready(answered) => Poll::Ready(answered.map_err(failure::of_request)),
                Poll::Pending if read > INTERIM_BYTES => Poll::Ready(Err(too_many_interim())),
                Poll::Pending => {
                    let alarm = &mut self.connection.alarm;
                    let rung = alarm.poll(&self.home.clock, deadline, cx);
                    rung.map(|()| Err(SendError::Late))
                }
            }
        });
        let response = answered
            .await
            .map_err(|error| failure::or(error, &self.connection.refusal))?;
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            // Bytes of the new protocol pass through hyper's upgrade, which this driver hands over.
            if let Some(driver) = self.connection.driver.take() {
                self.home.tasks.spawn(async move { drop(driver.await) });
            }
            return Ok(response.map(|body| OriginBody::http2(body, None)));
        }
        if let Some(owner) = client.owner_by(response.headers()) {
            self.keep_for(owner);
        }
        self.is_last = semantics::has_doubtful_end(response.headers());
        self.plain &=
            response.version() == Version::HTTP_11 && !response.headers().contains_key(CONNECTION);
        let close_delimited = is_close_delimited(&response);
        let mut response =
            response.map(|incoming| OriginBody::http1(incoming, self, close_delimited));
        let begun = response.body_mut().begin();
        begun.map_err(|error| SendError::Failed(failure::of_body(error)))?;
        Ok(response)
    }

    /// Keeps the connection for one client connection, because it has authenticated that client.
    fn keep_for(&mut self, owner: u64) {
        let destination = Destination {
            owner: Some(owner),
            ..self.connections.destination.clone()
        };
        self.connections = self.home.connections(&destination);
    }

    /// Ends the use of the connection after a complete response. If the request is complete too,
    /// the connection returns to the pool. A connection that is still uploading is closed, because
    /// no task would drive it.
    pub(super) fn finish(mut self) {
        if self.is_last {
            return;
        }
        if self.plain || self.connection.is_fresh() {
            self.home.put(&self.connections, self.connection);
        }
    }
}

/// Returns true if the body of a response has neither a length nor chunks, so that it ends with its
/// connection.
fn is_close_delimited(response: &Response<Incoming>) -> bool {
    let body = response.body();
    let framed = body.is_end_stream() || body.size_hint().exact().is_some();
    !framed && !response.headers().contains_key(TRANSFER_ENCODING)
}
