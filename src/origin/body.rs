//! Body of a response, which also owns the HTTP/1.1 connection that it arrives on. Reading the body
//! drives the connection. The end of the body returns the connection to the pool.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use std::sync::Arc;

use super::http1::Returning;
use super::http2::StreamHold;
use super::pool::RequestBody;

/// Response body of an origin, read as a stream of frames.
#[derive(Debug)]
pub struct OriginBody<B: RequestBody> {
    incoming: Incoming,
    /// HTTP/1.1 connection of the response. `None` for HTTP/2, where a task drives the connection,
    /// and after the end of the body.
    connection: Option<Returning<B>>,
    /// Hold on the HTTP/2 stream of the response, until the end of the body.
    hold: Option<Arc<StreamHold<B>>>,
}

impl<B: RequestBody> OriginBody<B> {
    pub(super) fn http2(incoming: Incoming, hold: Option<Arc<StreamHold<B>>>) -> Self {
        let mut body = Self {
            incoming,
            connection: None,
            hold,
        };
        body.finish_if(http_body::Body::is_end_stream(&body.incoming));
        body
    }

    pub(super) fn http1(incoming: Incoming, connection: Returning<B>) -> Self {
        let mut body = Self {
            incoming,
            connection: Some(connection),
            hold: None,
        };
        body.finish_if(http_body::Body::is_end_stream(&body.incoming));
        body
    }

    fn finish_if(&mut self, ended: bool) {
        if !ended {
            return;
        }
        self.hold = None;
        if let Some(connection) = self.connection.take() {
            connection.finish();
        }
    }
}

impl<B: RequestBody> http_body::Body for OriginBody<B> {
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
            connection.connection.drive(cx);
            polled = Pin::new(&mut this.incoming).poll_frame(cx);
        }
        match &polled {
            Poll::Ready(Some(Ok(_))) => this.finish_if(this.incoming.is_end_stream()),
            Poll::Ready(None) => this.finish_if(true),
            // A broken connection is closed and never reused.
            Poll::Ready(Some(Err(_))) => (this.connection, this.hold) = (None, None),
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
