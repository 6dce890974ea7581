//! Baseline: a forward proxy with the least work that hyper allows. Each client connection has its
//! own origin connection, which the same task polls. The forwarder has no policy, guard or log and
//! is unsafe for real use.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::Write as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::Result;

type Driver = client::Connection<TokioIo<TcpStream>, Incoming>;

pub(crate) async fn run() -> Result<()> {
    let origin: SocketAddr = std::env::var("BENCH_ORIGIN")?.parse()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut out = std::io::stdout();
    writeln!(out, "listening {}", listener.local_addr()?)?;
    out.flush()?;
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async move {
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::task::spawn_local(async move {
                    // The error is ignored because a client may disconnect at any time.
                    let _ = serve(stream, origin).await;
                });
            }
        })
        .await
}

async fn serve(stream: TcpStream, origin: SocketAddr) -> Result<()> {
    stream.set_nodelay(true)?;
    let upstream = TcpStream::connect(origin).await?;
    upstream.set_nodelay(true)?;
    let (sender, driver) = client::handshake(TokioIo::new(upstream)).await?;
    let (sender, driver) = (Rc::new(RefCell::new(sender)), Rc::new(RefCell::new(driver)));
    let service = service_fn(|request| forward(Rc::clone(&sender), Rc::clone(&driver), request));
    server::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

async fn forward(
    sender: Rc<RefCell<client::SendRequest<Incoming>>>,
    driver: Rc<RefCell<Driver>>,
    mut request: Request<Incoming>,
) -> std::result::Result<Response<Driven>, hyper::Error> {
    if let Some(path) = request.uri().path_and_query().cloned() {
        *request.uri_mut() = Uri::from(path);
    }
    let mut answer = std::pin::pin!(sender.borrow_mut().send_request(request));
    let response = poll_fn(|cx| {
        drive(&driver, cx);
        answer.as_mut().poll(cx)
    })
    .await?;
    Ok(response.map(|incoming| Driven { incoming, driver }))
}

/// Polls the origin connection once. The result is ignored because an error also reaches the future
/// that waits for the message.
fn drive(driver: &RefCell<Driver>, cx: &mut Context<'_>) {
    let _progress = Pin::new(&mut *driver.borrow_mut()).poll(cx);
}

/// Response body that polls its origin connection while it is read.
struct Driven {
    incoming: Incoming,
    driver: Rc<RefCell<Driver>>,
}

impl Body for Driven {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        if polled.is_ready() {
            return polled;
        }
        drive(&self.driver, cx);
        Pin::new(&mut self.incoming).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
