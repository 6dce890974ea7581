//! Origin that stamps the arrival of every request, and a client that sends through a proxy.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    times: Arc<Mutex<Vec<Duration>>>,
}

impl Origin {
    pub(crate) async fn start() -> Self {
        // The backlog is larger than the default because hundreds of connections may arrive at
        // once.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let listener = socket.listen(1024).unwrap();
        let address = listener.local_addr().unwrap();
        let times: Arc<Mutex<Vec<Duration>>> = Arc::default();
        let stamped = Arc::clone(&times);
        let began = Instant::now();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&stamped), began));
            }
        });
        Self { address, times }
    }

    pub(crate) fn times(&self) -> Vec<Duration> {
        self.times.lock().unwrap().clone()
    }
}

/// Serves one connection and stamps each request. A read never holds two requests because the proxy
/// sends the next one only after the answer.
async fn serve(mut stream: TcpStream, stamped: Arc<Mutex<Vec<Duration>>>, began: Instant) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        if buffer[..read].ends_with(b"\r\n\r\n") {
            stamped.lock().unwrap().push(began.elapsed());
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}

/// One HTTP/1.1 connection of a client to a proxy.
pub(crate) struct Client(TcpStream);

impl Client {
    pub(crate) async fn to(proxy: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(proxy).await.ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self(stream))
    }

    /// Sends a GET with the extra header `fields` and returns the response status, or `None` if the
    /// connection broke.
    pub(crate) async fn get(&mut self, fields: &str) -> Option<u16> {
        self.get_from("bench.test", fields).await
    }

    /// Sends a GET like [`Self::get`], but to another host.
    pub(crate) async fn get_from(&mut self, host: &str, fields: &str) -> Option<u16> {
        let request = format!("GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n");
        self.0.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::with_capacity(1024);
        loop {
            if self.0.read_buf(&mut answer).await.ok()? == 0 {
                return None;
            }
            let text = String::from_utf8_lossy(&answer);
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().ok())?
            });
            if body.len() >= length.unwrap_or(0) {
                return head.split(' ').nth(1)?.parse().ok();
            }
        }
    }
}
