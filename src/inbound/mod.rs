//! Byte streams of accepted connections, on the proxy's port, on routes, in intercepted TLS and on
//! the admin port. They end connections that are silent or that do not take their responses.

mod begin;
mod client_stream;
mod http2;
mod linger;
mod progress;
mod stall;

pub use begin::begin;
pub use client_stream::{ClientStream, Returned};
pub use http2::{ClosingStep, Http2Activity, Http2Stream};
pub use progress::{InFlight, RequestProgress, ServedBody};
pub use stall::{StreamTasks, StreamWatch, WatchedBody};

use hyper::server::conn::{http1, http2 as hyper_http2};
use hyper_util::rt::TokioTimer;

use crate::bounds::{
    H2_CONNECTION_WINDOW, H2_HEADER_LIST, H2_STREAM_WINDOW, H2_STREAMS, HEAD_BYTES, HEAD_TIMEOUT,
};
use crate::clock::HeadTimer;

/// Waits for the next step towards the end of a connection, as [`Http2Activity::step`] does. Without
/// an activity there is none.
pub async fn step(activity: Option<&Http2Activity>, is_going_away: bool) -> ClosingStep {
    match activity {
        Some(activity) => activity.step(is_going_away).await,
        None => std::future::pending().await,
    }
}

/// Returns the settings of an HTTP/1 connection, with the timeout for each head.
pub fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(HeadTimer::default())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .max_header_size(HEAD_BYTES);
    builder
}

/// Returns the settings of an HTTP/2 connection whose streams are these tasks.
pub fn http2(tasks: StreamTasks) -> hyper_http2::Builder<StreamTasks> {
    let mut builder = hyper_http2::Builder::new(tasks);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_header_list_size(H2_HEADER_LIST);
    builder
}
