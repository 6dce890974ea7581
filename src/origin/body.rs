//! Body of a response, which also owns the HTTP/1.1 connection that it arrives on. Reading the body
//! drives the connection. The end of the body returns the connection to the pool.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use super::http1::Returning;

/// Response body of an origin, read as a stream of frames.
#[derive(Debug)]
pub struct OriginBody<B>
where
    B: http_body::Body + 'static,
{
    incoming: Incoming,
    /// HTTP/1.1 connection of the response. `None` for HTTP/2, where a task drives the connection,
    /// and after the end of the body.
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
            // A broken connection is closed and never reused.
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
