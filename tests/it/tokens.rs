//! P5 and P13: no response of one client reaches another, whatever happens to the requests between.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::oneshot;

use crate::harness::scripted::Accepted;
use crate::harness::{Client, Origin, Program, Proto, free_port, soon};

const CLIENTS: u64 = 50;
const REQUESTS: usize = 200;
const SEED: u64 = 15;

/// Fates of a request, as its path tells the origin.
const FATES: [&str; 8] = [
    "length", "chunks", "close", "after", "early", "cut", "unended", "gone",
];

/// Requests whose clients wait until they have arrived, by token.
type Arrivals = Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>;

/// Reads one request head. Returns its path's two parts and the length of its body.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, String, usize)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().trim_start_matches('/');
    let (fate, token) = path.split_once('/').unwrap();
    let lower = head.to_ascii_lowercase();
    let mut lengths = lower
        .lines()
        .filter_map(|line| line.strip_prefix("content-length: "));
    let length = lengths.next().map_or(0, |length| length.parse().unwrap());
    Some((fate.to_owned(), token.to_owned(), length))
}

/// Answers each request with its token, in the way that its path asks for.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, arrivals: Arrivals) {
    while let Some((fate, token, length)) = head(&mut stream).await {
        let mut body = vec![0; if fate == "early" { 0 } else { length }];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let size = token.len();
        let ok = "HTTP/1.1 200 OK\r\n";
        let answer = match &*fate {
            "length" => format!("{ok}Content-Length: {size}\r\n\r\n{token}"),
            "chunks" => {
                format!("{ok}Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n{token}\r\n0\r\n\r\n")
            }
            "close" => format!("{ok}Connection: close\r\n\r\n{token}"),
            "after" => format!(
                "{ok}Content-Length: {size}\r\n\r\n{token}{ok}Content-Length: 6\r\n\r\npoison"
            ),
            "early" => {
                format!("HTTP/1.1 413 Too Large\r\nContent-Length: {size}\r\n\r\n{token}")
            }
            "cut" => format!("{ok}Content-Length: 4096\r\n\r\n{token}"),
            "unended" => format!("{ok}Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n{token}\r\n"),
            _ => {
                if let Some(arrived) = arrivals.lock().unwrap().remove(&token) {
                    arrived.send(()).unwrap();
                }
                // The client leaves, so outpace closes the connection.
                drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await);
                return;
            }
        };
        if stream.write_all(answer.as_bytes()).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        match &*fate {
            "length" | "chunks" => {}
            // If the rest arrives nevertheless, the connection can be used again.
            "early" => {
                body.resize(length, 0);
                if stream.read_exact(&mut body).await.is_err() {
                    return;
                }
            }
            _ => {
                let _ended = stream.shutdown().await;
                return;
            }
        }
    }
}

/// Client that asks in one of four ways, and connects again after each failure.
struct Asker<'a> {
    program: &'a Program,
    route: SocketAddr,
    number: u64,
    client: Option<Client>,
}

impl Asker<'_> {
    async fn client(&mut self) -> &mut Client {
        if self.client.is_none() {
            let client = match self.number % 4 {
                0 => Client::plain(self.program).await,
                1 => Client::to(self.route, Proto::Http1).await,
                2 => Client::intercepted(self.program, "api.test", Proto::Http1).await,
                _ => Client::intercepted(self.program, "api.test", Proto::Http2).await,
            };
            self.client = Some(client);
        }
        self.client.as_mut().unwrap()
    }

    fn request(&self, path: &str, body: Vec<u8>) -> Request<Full<Bytes>> {
        let builder = Request::post(match self.number % 4 {
            0 => format!("http://plain.test{path}"),
            3 => format!("https://api.test{path}"),
            _ => path.to_owned(),
        });
        let host = match self.number % 4 {
            0 => "plain.test",
            _ => "api.test",
        };
        builder.header("host", host).body(Full::from(body)).unwrap()
    }

    /// Sends one request and checks that the response is its own, or visibly none.
    async fn ask(&mut self, fate: &str, token: &str, size: usize, arrivals: &Arrivals) {
        let request = self.request(&format!("/{fate}/{token}"), vec![b'x'; size]);
        if fate == "gone" {
            let (sender, arrived) = oneshot::channel();
            arrivals.lock().unwrap().insert(token.to_owned(), sender);
            let client = self.client().await;
            tokio::select! {
                response = client.try_ask(request) => panic!("{response:?}"),
                arrived = soon("the request at the origin", arrived) => arrived.unwrap(),
            }
            self.client = None;
            return;
        }
        let response = self.client().await.try_ask(request).await;
        let found = response.map(|response| {
            let body = String::from_utf8_lossy(response.body()).into_owned();
            (response.status().as_u16(), body)
        });
        // The failure of a body may arrive together with its head.
        let found = found
            .filter(|(status, body)| *status != 502 || !body.contains("the response broke off"));
        let expected = match fate {
            "cut" | "unended" => None,
            "early" => Some((413, token.to_owned())),
            _ => Some((200, token.to_owned())),
        };
        assert_eq!(found, expected, "{fate} {token} of client {}", self.number);
        if found.is_none() || matches!(fate, "early" | "close") {
            self.client = None;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_responses_ten_thousand_requests_of_fifty_clients_get_their_own_response() {
    let arrivals = Arrivals::default();
    let noted = Arc::clone(&arrivals);
    let (origin, _) = Origin::scripted(&[b"http/1.1"], move |accepted: Accepted| {
        let noted = Arc::clone(&noted);
        async move {
            let mut first = [0];
            // The first byte of TLS is 0x16, and a request begins with a letter.
            match accepted.stream.peek(&mut first).await {
                Ok(1) if first == [0x16] => {
                    if let Ok(stream) = accepted.tls.accept(accepted.stream).await {
                        answer(stream, noted).await;
                    }
                }
                _ => answer(accepted.stream, noted).await,
            }
        }
    })
    .await;
    let port = free_port();
    let config = format!(
        "targets: [{{ name: api, hosts: [\"api.test\", \"plain.test\"], limits: [{{ rate: \"100000/1s\" }}] }}]\n\
         routes: [{{ listen: \"127.0.0.1:{port}\", to: \"https://api.test\" }}]\n"
    );
    let program = Arc::new(Program::before(&origin, &config).await);
    let route = SocketAddr::from(([127, 0, 0, 1], port));
    let clients = (0..CLIENTS).map(|number| {
        let (program, arrivals) = (Arc::clone(&program), Arc::clone(&arrivals));
        tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(SEED * CLIENTS + number);
            let mut asker = Asker {
                program: &program,
                route,
                number,
                client: None,
            };
            for count in 0..REQUESTS {
                // Every second request is an ordinary one, which would get a stray response.
                let fate = match count % 2 {
                    0 => FATES[rng.random_range(0..FATES.len())],
                    _ => FATES[rng.random_range(0..2)],
                };
                let size = match fate {
                    "early" => 400_000,
                    _ => rng.random_range(0..2000),
                };
                let token = format!("c{number}-{count}-{:x}", rng.random::<u64>());
                asker.ask(fate, &token, size, &arrivals).await;
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}
