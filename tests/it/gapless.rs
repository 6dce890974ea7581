//! Restart without a gap: the sockets outlive the process, and a process that drains says so to its
//! clients and to its supervisor.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::harness::{Client, HeldSockets, Origin, Program, Proto, soon};

/// Ingress mode of a client, with its version of HTTP.
#[derive(Debug, Clone, Copy)]
enum Entry {
    Proxy,
    Route(Proto),
    Intercepted(Proto),
}

const ENTRIES: [Entry; 5] = [
    Entry::Proxy,
    Entry::Route(Proto::Http1),
    Entry::Route(Proto::Http2),
    Entry::Intercepted(Proto::Http1),
    Entry::Intercepted(Proto::Http2),
];

/// Addresses and CA that the clients of all processes use.
struct Service {
    proxy: SocketAddr,
    route: SocketAddr,
    ca: String,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn over<T>(stream: T, proto: Proto) -> Result<Self, String>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let failed = |error: hyper::Error| format!("handshake: {error:?}");
        let io = TokioIo::new(stream);
        match proto {
            Proto::Http1 => {
                let (sender, connection) = http1::handshake(io).await.map_err(failed)?;
                tokio::spawn(connection);
                Ok(Self::Http1(sender))
            }
            Proto::Http2 => {
                let handshake = http2::handshake(TokioExecutor::new(), io);
                let (sender, connection) = handshake.await.map_err(failed)?;
                tokio::spawn(connection);
                Ok(Self::Http2(sender))
            }
        }
    }

    /// Sends a request. The inner `None` says that the origin of the response certainly did not process
    /// it: no byte was sent, or a GOAWAY without an error declares it unprocessed (RFC 9113 section 6.8).
    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Option<Response<Incoming>>, String> {
        let answered = match self {
            Self::Http1(sender) => {
                if sender.ready().await.is_err() {
                    return Ok(None);
                }
                sender.try_send_request(request).await
            }
            Self::Http2(sender) => {
                if sender.ready().await.is_err() {
                    return Ok(None);
                }
                sender.try_send_request(request).await
            }
        };
        match answered {
            Ok(response) => Ok(Some(response)),
            Err(error) if error.message().is_some() => Ok(None),
            Err(error) => {
                let error = error.into_error();
                let cause = std::error::Error::source(&error);
                let cause = cause.and_then(|cause| cause.downcast_ref::<h2::Error>());
                let declined = cause.is_some_and(|cause| {
                    cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR)
                });
                if declined {
                    Ok(None)
                } else {
                    Err(format!("{error:?}"))
                }
            }
        }
    }
}

/// Byte stream to the program, with or without TLS inside a CONNECT.
trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

impl Service {
    async fn dial(&self, entry: Entry) -> Result<Sender, String> {
        let proto = match entry {
            Entry::Proxy => Proto::Http1,
            Entry::Route(proto) | Entry::Intercepted(proto) => proto,
        };
        Sender::over(self.stream(entry).await?, proto).await
    }

    async fn stream(&self, entry: Entry) -> Result<Box<dyn Io>, String> {
        let failed = |error: std::io::Error| format!("dial: {error}");
        let address = match entry {
            Entry::Route(_) => self.route,
            Entry::Proxy | Entry::Intercepted(_) => self.proxy,
        };
        let mut stream = TcpStream::connect(address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let Entry::Intercepted(proto) = entry else {
            return Ok(Box::new(stream));
        };
        let connect = b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n";
        stream.write_all(connect).await.map_err(failed)?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.map_err(failed)?);
        }
        if !head.starts_with(b"HTTP/1.1 200") {
            return Err(String::from_utf8_lossy(&head).into_owned());
        }
        let tls = Client::tls(stream, "api.test", proto, &self.ca).await;
        Ok(Box::new(tls.map_err(failed)?))
    }

    fn request(entry: Entry) -> Request<Full<Bytes>> {
        let uri = match entry {
            Entry::Proxy => "http://plain.test/",
            Entry::Route(Proto::Http1) | Entry::Intercepted(Proto::Http1) => "/",
            Entry::Route(Proto::Http2) => "http://plain.test/",
            Entry::Intercepted(Proto::Http2) => "https://api.test/",
        };
        let host = match entry {
            Entry::Proxy | Entry::Route(_) => "plain.test",
            Entry::Intercepted(_) => "api.test",
        };
        let request = Request::get(uri).header("host", host);
        request.body(Full::default()).unwrap()
    }

    /// Sends one request on the client's connection, or on a new one if the old one has ended.
    async fn ask(&self, entry: Entry, sender: &mut Option<Sender>) -> Result<(), String> {
        loop {
            let mut open = match sender.take() {
                Some(open) => open,
                None => self.dial(entry).await?,
            };
            let Some(response) = open.send(Self::request(entry)).await? else {
                continue;
            };
            let (head, body) = response.into_parts();
            let read = body.collect().await;
            let read = read.map_err(|error| format!("body: {error:?}"))?;
            let text = String::from_utf8_lossy(&read.to_bytes()).into_owned();
            if head.status != 200 {
                return Err(format!("{}: {text}", head.status));
            }
            let closes = head.headers.get("connection");
            if closes.is_none_or(|value| value != "close") {
                *sender = Some(open);
            }
            return Ok(());
        }
    }
}

/// Failures of a client, and its longest wait for a response.
#[derive(Debug, Default)]
struct Seen {
    failed: Vec<String>,
    longest: Duration,
}

/// Sends `count` requests one after another, with a pause of `think` between them.
async fn client(
    service: Arc<Service>,
    entry: Entry,
    count: usize,
    think: Duration,
    done: watch::Sender<usize>,
) -> Seen {
    let (mut sender, mut seen) = (None, Seen::default());
    for _ in 0..count {
        let began = Instant::now();
        if let Err(error) = service.ask(entry, &mut sender).await {
            seen.failed.push(format!("{entry:?}: {error}"));
        }
        seen.longest = seen.longest.max(began.elapsed());
        done.send_modify(|done| *done += 1);
        tokio::time::sleep(think).await;
    }
    seen
}

fn config(dir: &std::path::Path, sockets: &HeldSockets, origin: &Origin) -> String {
    let [proxy, route, admin] = [0, 1, 2].map(|index| sockets.address(index));
    format!(
        "listen: {proxy}\nadmin: {{ listen: \"{admin}\" }}\ndata_dir: {dir}/data\n\
         routes: [{{ listen: \"{route}\", to: \"http://plain.test\", hosts: [plain.test] }}]\n\
         egress:\n  allow: [\"127.0.0.1\"]\n  roots: [\"{dir}/origin-ca.pem\"]\n\
         \x20 resolve: {{ \"api.test\": \"{tls}\", \"plain.test\": \"{plain}\" }}\n\
         targets:\n  - {{ name: api, hosts: [api.test, plain.test], limits: [{{ rate: \"100000/1s\" }}] }}\n",
        dir = dir.display(),
        tls = origin.tls,
        plain = origin.plain,
    )
}

async fn start(sockets: &HeldSockets, config: &str) -> Program {
    let activated = sockets.program();
    let dir = tempfile::tempdir().unwrap();
    Program::start_by(activated.command, dir, config).await
}

const REQUESTS: usize = 10_000;
const RESTARTS: usize = 4;
const CLIENTS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_over_restarts_with_socket_activation() {
    let origin = Origin::ok().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("origin-ca.pem"), &origin.ca).unwrap();
    let sockets = HeldSockets::listen(&["outpace", "outpace", "outpace"]);
    let config = config(dir.path(), &sockets, &origin);
    let mut program = start(&sockets, &config).await;
    assert_eq!(program.listen, sockets.address(0));
    let service = Arc::new(Service {
        proxy: sockets.address(0),
        route: sockets.address(1),
        ca: std::fs::read_to_string(dir.path().join("data/ca.pem")).unwrap(),
    });
    let (done, mut reached) = watch::channel(0);
    let clients = (0..CLIENTS).map(|number| {
        let (entry, done) = (ENTRIES[number % ENTRIES.len()], done.clone());
        let think = Duration::from_millis([0, 0, 3, 20][number / ENTRIES.len()]);
        tokio::spawn(client(
            Arc::clone(&service),
            entry,
            REQUESTS / CLIENTS,
            think,
            done,
        ))
    });
    let clients: Vec<_> = clients.collect();
    let mut exits = Vec::new();
    for restart in 1..=RESTARTS {
        let wanted = REQUESTS * restart / (RESTARTS + 1);
        soon("requests", reached.wait_for(|done| *done >= wanted))
            .await
            .unwrap();
        program.signal("TERM");
        program = if restart % 2 == 0 {
            // The next process waits until this one has released the data directory.
            let (next, code) = tokio::join!(start(&sockets, &config), program.exit_code());
            assert_eq!(code, Some(0));
            next
        } else {
            program.event(|e| e["message"] == "drained").await;
            let drained = Instant::now();
            assert_eq!(program.exit_code().await, Some(0));
            exits.push(drained.elapsed());
            start(&sockets, &config).await
        };
    }
    let mut seen = Seen::default();
    for client in clients {
        let one = soon("a client", client).await.unwrap();
        seen.failed.extend(one.failed);
        seen.longest = seen.longest.max(one.longest);
    }
    println!(
        "{REQUESTS} requests over {RESTARTS} restarts: {} failed, longest pause {:?}, exits after drained {exits:?}",
        seen.failed.len(),
        seen.longest
    );
    assert!(seen.failed.is_empty(), "{:#?}", seen.failed);
    assert_eq!(
        origin.arrivals.count(),
        REQUESTS,
        "each request leaves once"
    );
}

/// Sends one HTTP/1 request as bytes, which are in the system's buffer when this returns.
async fn write(stream: &mut Box<dyn Io>, entry: Entry) {
    let request = match entry {
        Entry::Proxy => "GET http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\n\r\n",
        Entry::Route(_) => "GET / HTTP/1.1\r\nHost: plain.test\r\n\r\n",
        Entry::Intercepted(_) => "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n",
    };
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
}

/// Reads one response with the body `ok`, or to the end of the connection.
async fn read(stream: &mut Box<dyn Io>, to_end: bool) -> String {
    let mut text = Vec::new();
    let reading = async {
        while to_end || !text.ends_with(b"ok") {
            match stream.read_u8().await {
                Ok(byte) => text.push(byte),
                Err(_ended) => break,
            }
        }
    };
    soon("a response", reading).await;
    String::from_utf8(text).unwrap()
}

/// Reaches the bound `DRAIN_IDLE` on proxy, route, intercepted.
#[tokio::test(flavor = "multi_thread")]
async fn p14_a_drain_answers_requests_on_their_way_and_closes_silent_connections() {
    let origin = Origin::ok().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("origin-ca.pem"), &origin.ca).unwrap();
    let sockets = HeldSockets::listen(&["outpace", "outpace", "outpace"]);
    let config = config(dir.path(), &sockets, &origin);
    let mut program = start(&sockets, &config).await;
    let service = Service {
        proxy: sockets.address(0),
        route: sockets.address(1),
        ca: std::fs::read_to_string(dir.path().join("data/ca.pem")).unwrap(),
    };
    let entries = [
        Entry::Proxy,
        Entry::Route(Proto::Http1),
        Entry::Intercepted(Proto::Http1),
    ];
    let (mut asking, mut silent) = (Vec::new(), Vec::new());
    for entry in entries {
        // Connections that have been used, and connections whose first request is on its way.
        for used in [true, false] {
            for list in [&mut asking, &mut silent] {
                let mut stream = service.stream(entry).await.unwrap();
                if used {
                    write(&mut stream, entry).await;
                    let first = read(&mut stream, false).await;
                    assert!(
                        first.starts_with("HTTP/1.1 200") && !first.contains("connection: close"),
                        "{first}"
                    );
                }
                list.push((entry, stream));
            }
        }
    }
    // The program has accepted the unused connections once a later one was served.
    for entry in [Entry::Proxy, Entry::Route(Proto::Http1)] {
        let mut stream = service.stream(entry).await.unwrap();
        write(&mut stream, entry).await;
        read(&mut stream, false).await;
    }
    program.signal("TERM");
    program.event(|e| e["message"] == "draining").await;
    for (entry, stream) in &mut asking {
        write(stream, *entry).await;
    }
    for (entry, stream) in &mut asking {
        let last = read(stream, true).await;
        assert!(
            last.starts_with("HTTP/1.1 200") && last.contains("connection: close"),
            "{entry:?}: {last}"
        );
    }
    for (entry, stream) in &mut silent {
        assert_eq!(read(stream, true).await, "", "{entry:?}");
    }
    assert_eq!(program.exit_code().await, Some(0));
    program.event(|e| e["message"] == "drained").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_follows_drained_although_no_database_was_ever_reached() {
    let origin = Origin::ok().await;
    let url = format!(
        "postgres://outpace@127.0.0.1:{}/outpace",
        crate::harness::free_port()
    );
    let target = "targets:\n  - { name: api, hosts: [plain.test], limits: [{ rate: \"1/1m\", burst: 1 }] }\n";
    for spool in [
        "",
        "spool: { store: postgres, key: \"0123456789abcdef0123456789abcdef\" }\n",
    ] {
        let config = format!("ledger: {{ postgres: {{ url: \"{url}\" }} }}\n{spool}{target}");
        let mut program = Program::before(&origin, &config).await;
        let mut abandoned = TcpStream::connect(program.listen).await.unwrap();
        let request = "GET http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\n\r\n";
        abandoned.write_all(request.as_bytes()).await.unwrap();
        soon("one queued request", async {
            while program.metric("outpace_waiting{target=\"api\"}").await < 1.0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        drop(abandoned);
        let began = Instant::now();
        program.signal("TERM");
        program.event(|e| e["message"] == "drained").await;
        let drained = Instant::now();
        assert_eq!(program.exit_code().await, Some(0));
        println!(
            "drained after {:?}, and ended {:?} later",
            drained - began,
            drained.elapsed()
        );
        let events = program.events();
        let last = events.last().unwrap();
        assert_eq!(last["message"], "drained", "{last}");
    }
}
