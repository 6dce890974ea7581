//! Two hostile clients with valid credentials, and peers without any, which repeat all attacks in a
//! random order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::honest::basic;
use super::token;
use crate::harness::buffers::call_with;
use crate::harness::{Client, Program, Proto};

/// Time for which an attack holds its connections.
const HOLD: Duration = Duration::from_secs(3);
const SEED: u64 = 17;

pub(super) fn names() -> Vec<String> {
    vec!["hostile-0".to_owned(), "hostile-1".to_owned()]
}

#[derive(Debug, Clone, Copy)]
enum Attack {
    Silent,
    SlowHead,
    SlowUpload,
    NoReader,
    TinyChunks,
    ManyKeys,
    FullSpool,
    HeldPermits,
    Resets,
    Garbage,
    WrongCredentials,
    Leaves,
    Slow,
    Broken,
    NewNames,
}

const ATTACKS: [Attack; 15] = [
    Attack::Silent,
    Attack::SlowHead,
    Attack::SlowUpload,
    Attack::NoReader,
    Attack::TinyChunks,
    Attack::ManyKeys,
    Attack::FullSpool,
    Attack::HeldPermits,
    Attack::Resets,
    Attack::Garbage,
    Attack::WrongCredentials,
    Attack::Leaves,
    Attack::Slow,
    Attack::Broken,
    Attack::NewNames,
];

/// Attackers whose tasks are running.
pub(super) struct Attackers {
    stop: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    done: Arc<AtomicUsize>,
}

impl Attackers {
    /// Ends the attacks and returns their number.
    pub(super) async fn end(self) -> usize {
        self.stop.send(true).unwrap();
        for task in self.tasks {
            task.await.unwrap();
        }
        self.done.load(Ordering::Relaxed)
    }
}

pub(super) async fn begin(program: Arc<Program>, route: u16) -> Attackers {
    let (stop, stopped) = watch::channel(false);
    let done = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    for (number, name) in names().into_iter().enumerate() {
        let attacker = Attacker {
            program: Arc::clone(&program),
            route: SocketAddr::from(([127, 0, 0, 1], route)),
            name,
        };
        let buffer = json!({ "name": attacker.name, "url": "http://plain.test/broken" });
        assert_eq!(attacker.api("/buffers", buffer).await, 201);
        let (mut stopped, done) = (stopped.clone(), Arc::clone(&done));
        tasks.push(tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(SEED + number as u64);
            while !*stopped.borrow() {
                let attack = ATTACKS[random.random_range(0..ATTACKS.len())];
                tokio::select! {
                    () = attacker.attack(attack, random.random()) => {
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    _ = stopped.changed() => {}
                }
            }
        }));
    }
    Attackers { stop, tasks, done }
}

/// One hostile client with its program.
struct Attacker {
    program: Arc<Program>,
    route: SocketAddr,
    name: String,
}

impl Attacker {
    /// Opens connections to all listeners and sends these bytes on each.
    async fn open(&self, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
        let addresses = [self.program.listen, self.route, self.program.admin];
        let mut streams = Vec::new();
        for address in addresses.into_iter().cycle().take(count) {
            if let Ok(mut stream) = TcpStream::connect(address).await {
                // The program may have closed the connection.
                let _closed = stream.write_all(bytes).await;
                streams.push(stream);
            }
        }
        streams
    }

    fn head(&self, rest: &str) -> String {
        let basic = basic(&self.name);
        format!(
            "{rest} HTTP/1.1\r\nHost: plain.test\r\nProxy-Authorization: {basic}\r\nx-key: {}\r\n",
            self.name
        )
    }

    async fn api(&self, path: &str, body: serde_json::Value) -> u16 {
        let token = format!("{}:{}", self.name, token(&self.name));
        let fields = [("outpace-client-token", &*token)];
        call_with(&self.program, "POST", path, body, &fields)
            .await
            .0
    }

    /// Sends a request on connections to the proxy's port, and then holds them without reading.
    async fn held(&self, count: usize, bytes: &[u8]) {
        let mut streams = Vec::new();
        for _ in 0..count {
            if let Ok(mut stream) = TcpStream::connect(self.program.listen).await {
                let _closed = stream.write_all(bytes).await;
                streams.push(stream);
            }
        }
        tokio::time::sleep(HOLD).await;
    }

    async fn get_all(&self, paths: impl Iterator<Item = (String, String)>) {
        let Some(mut client) = Client::try_to(self.program.listen, Proto::Http1).await else {
            return;
        };
        for (path, key) in paths {
            let request = client
                .request("GET", &format!("http://plain.test{path}"))
                .header("proxy-authorization", basic(&self.name))
                .header("outpace-max-wait", "1")
                .header("x-key", key);
            let request = request.body(Full::new(Bytes::new())).unwrap();
            if client.try_ask(request).await.is_none() {
                return;
            }
        }
    }

    async fn attack(&self, attack: Attack, random: u64) {
        match attack {
            Attack::Silent => {
                let _streams = self.open(150, b"").await;
                tokio::time::sleep(HOLD).await;
            }
            Attack::SlowHead => {
                let part = [
                    &b"GET / HT"[..],
                    b"PRI * HTTP/2.0\r\n\r\nSM",
                    b"\x16\x03\x01",
                ];
                let _streams = self.open(60, part[random as usize % 3]).await;
                tokio::time::sleep(HOLD).await;
            }
            Attack::SlowUpload => {
                let head = self.head("POST http://plain.test/length");
                let head = format!("{head}Content-Length: 1000000\r\n\r\nhalf");
                self.held(20, head.as_bytes()).await;
            }
            Attack::NoReader => {
                let head = self.head("GET http://plain.test/large") + "\r\n";
                self.held(8, head.as_bytes()).await;
            }
            Attack::TinyChunks => {
                let mut bytes = self.head("POST http://plain.test/length");
                bytes.push_str("Transfer-Encoding: chunked\r\n\r\n");
                bytes.push_str(&"1\r\na\r\n".repeat(10_000));
                self.held(4, bytes.as_bytes()).await;
            }
            Attack::ManyKeys => {
                let keys = (0..200).map(|n| ("/ok".to_owned(), format!("{random}-{n}")));
                self.get_all(keys).await;
            }
            Attack::FullSpool => {
                let path = format!("/buffers/{}/items", self.name);
                for _ in 0..40 {
                    self.api(&path, json!({ "body": "x".repeat(300_000) }))
                        .await;
                }
            }
            Attack::HeldPermits => {
                for _ in 0..30 {
                    let asked = json!({ "key": "k", "hold": "3s", "max_wait": "1s" });
                    self.api("/v1/targets/api/acquire", asked).await;
                }
            }
            Attack::Resets => self.resets().await,
            Attack::Garbage => {
                let bytes: Vec<u8> = (0..4000u64)
                    .map(|n| (n.wrapping_mul(random) >> 7) as u8)
                    .collect();
                for mut stream in self.open(30, &bytes).await {
                    let _end = stream.read(&mut [0; 512]).await;
                }
            }
            Attack::WrongCredentials => {
                let head = b"GET http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\nProxy-Authorization: Basic eDp5\r\nOutpace-Client-Token: x:y\r\nConnection: close\r\n\r\n";
                for mut stream in self.open(60, head).await {
                    let _end = stream.read_to_end(&mut Vec::new()).await;
                }
            }
            Attack::Leaves => {
                let head = self.head("GET http://plain.test/slow") + "\r\n";
                for _ in 0..20 {
                    drop(self.open(1, head.as_bytes()).await);
                }
            }
            Attack::Slow => {
                let head = self.head("GET http://plain.test/slow") + "\r\n";
                self.held(40, head.as_bytes()).await;
            }
            Attack::Broken => {
                let paths = (0..20).map(|_| ("/broken".to_owned(), self.name.clone()));
                self.get_all(paths).await;
            }
            Attack::NewNames => {
                let fields = format!("Proxy-Authorization: {}\r\n", basic(&self.name));
                for number in 0..20 {
                    let host = format!("h{random}-{number}.test:443");
                    drop(Client::connect(&self.program, &host, &fields).await);
                }
            }
        }
    }

    /// Opens streams over HTTP/2 and resets each at once.
    async fn resets(&self) {
        let Ok(stream) = TcpStream::connect(self.program.listen).await else {
            return;
        };
        let Ok((mut sender, connection)) = h2::client::handshake(stream).await else {
            return;
        };
        let connection = tokio::spawn(connection);
        for _ in 0..300 {
            let request = http::Request::get("http://plain.test/slow")
                .header("proxy-authorization", basic(&self.name))
                .body(())
                .unwrap();
            let Ok(mut ready) = sender.clone().ready().await else {
                break;
            };
            if let Ok((_, mut stream)) = ready.send_request(request, true) {
                stream.send_reset(h2::Reason::CANCEL);
            }
        }
        connection.abort();
        sender = match sender.ready().await {
            Ok(sender) => sender,
            Err(_) => return,
        };
        drop(sender);
    }
}
