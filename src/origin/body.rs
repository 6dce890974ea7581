//! A response's body, which also carries the HTTP/1.1 connection it comes from: reading the one
//! drives the other, and the end of the body returns the connection to the pool.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use super::pool::Returning;

/// The body of an origin's response.
#[derive(Debug)]
pub struct OriginBody<B>
where
    B: http_body::Body + 'static,
{
    incoming: Incoming,
    /// Absent for HTTP/2, whose connection has a task, and after the end.
    connection: Option<Returning<B>>,
}

impl<B> OriginBody<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    pub(super) const fn http2(incoming: Incoming) -> Self {
        Self {
            incoming,
            connection: None,
        }
    }

    pub(super) fn http1(incoming: Incoming, connection: Returning<B>) -> Self {
        let mut body = Self {
            incoming,
            connection: Some(connection),
        };
        body.finish_at_end();
        body
    }

    fn finish_at_end(&mut self) {
        if http_body::Body::is_end_stream(&self.incoming)
            && let Some(connection) = self.connection.take()
        {
            connection.finish();
        }
    }
}

impl<B> http_body::Body for OriginBody<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let mut polled = Pin::new(&mut this.incoming).poll_frame(cx);
        if polled.is_pending()
            && let Some(connection) = &mut this.connection
        {
            connection.drive(cx);
            polled = Pin::new(&mut this.incoming).poll_frame(cx);
        }
        match &polled {
            Poll::Ready(Some(Ok(_))) => this.finish_at_end(),
            Poll::Ready(None) => {
                if let Some(connection) = this.connection.take() {
                    connection.finish();
                }
            }
            // A connection that broke is not used again.
            Poll::Ready(Some(Err(_))) => {
                let _ = this.connection.take();
            }
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.incoming)
    }
}
