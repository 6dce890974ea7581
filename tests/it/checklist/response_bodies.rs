//! Table E, bodies: broken HTTP/2 streams, early responses, trailers and endless bodies.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

use super::seen::Seen;
use super::strange_origin::{Case, Mode, Site, TARGET, WAYS, body, open};
use crate::harness::scripted::{Accepted, HEADERS, RST_STREAM, RawHttp2};
use crate::harness::{Client, Origin, Proto, Reply, soon};

/// `:status: 200` (RFC 7541 appendix A).
const STATUS_200: &[u8] = &[0x88];
const DATA: u8 = 0;

/// A stream that is reset before its end, or a connection that ends before it: the client gets a
/// visible error, and the next request its own response.
///
/// RFC 9113 section 8.1, RFC 9112 section 8.
#[tokio::test(flavor = "multi_thread")]
async fn e06_a_truncated_http_2_body_is_visible() {
    // The path is the error code, or `end`. Each frame may leave byte by byte.
    for split in [false, true] {
        let script = move |accepted: Accepted| async move {
            accepted.stream.set_nodelay(true).unwrap();
            let stream = accepted.tls.accept(accepted.stream).await.unwrap();
            let mut http2 = RawHttp2::begin(stream, &[]).await.unwrap();
            let mut number = 0;
            while let Some(stream) = http2.request().await {
                number += 1;
                // Every second request is that of the other client.
                if number % 2 == 0 {
                    send(&mut http2, split, HEADERS, 4, stream, STATUS_200).await;
                    send(&mut http2, split, DATA, 1, stream, b"own").await;
                    continue;
                }
                send(&mut http2, split, HEADERS, 4, stream, STATUS_200).await;
                send(&mut http2, split, DATA, 0, stream, b"half").await;
                let code = [0, 2, 8, 11, 1][number / 2 % 5];
                send(&mut http2, split, RST_STREAM, 0, stream, &[0, 0, 0, code]).await;
            }
        };
        let (origin, _) = Origin::scripted(&[b"h2"], script).await;
        let site = Site::before_tls(origin, TARGET).await;
        for way in WAYS.repeat(3) {
            let seen = site.ask(way, "POST", "/").await;
            seen.assert_cut();
            site.ask(way, "GET", "/").await.assert_whole(200, "own");
        }
    }
}

/// Sends a frame in one piece or byte by byte.
async fn send(
    http2: &mut RawHttp2<tokio_rustls::server::TlsStream<tokio::net::TcpStream>>,
    split: bool,
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &[u8],
) {
    if !split {
        return http2.send(kind, flags, stream, payload).await;
    }
    let length = u8::try_from(payload.len()).unwrap();
    let mut frame = vec![0, 0, length, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    for byte in frame {
        let _ended = http2.0.write_all(&[byte]).await;
        let _ended = http2.0.flush().await;
    }
}

/// Statuses of responses that an origin sends before it has read the request.
const EARLY: [u16; 5] = [413, 401, 429, 403, 200];

/// A final response (413, 401, 429) while the upload is still running: it is relayed, the upload
/// stops, and the connection to the origin is closed.
///
/// RFC 9112 sections 9.3 and 9.5.
#[tokio::test(flavor = "multi_thread")]
async fn e09_an_early_response_is_relayed_and_the_upload_stops() {
    let (close, mut closed) = watch::channel(0_usize);
    let script = move |accepted: Accepted| {
        let close = close.clone();
        async move {
            let Some(mut stream) = open(accepted).await else {
                return;
            };
            // This origin reads heads only, never a body.
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => return,
                }
            }
            let head = String::from_utf8(head).unwrap();
            let path = head.split(' ').nth(1).unwrap();
            let name = path.rsplit('/').next().unwrap();
            let (status, text) = match path.starts_with("/own/") {
                true => ("200", name),
                false => (name, "no"),
            };
            let length = text.len();
            let bytes =
                format!("HTTP/1.1 {status} Early\r\nContent-Length: {length}\r\n\r\n{text}");
            stream.write_all(bytes.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            if path.starts_with("/own/") {
                return;
            }
            // The end of an upload that is not read is a failed write or the end of the stream.
            while stream.read_u8().await.is_ok() {}
            close.send_modify(|count| *count += 1);
        }
    };
    let (origin, _) = Origin::scripted(&[], script).await;
    let more = format!("{TARGET}bodies: {{ memory: 1KiB, disk: 1KiB }}\n");
    let site = Site::before(origin, &more).await;
    for way in WAYS {
        for status in EARLY {
            let before = *closed.borrow_and_update();
            let seen = upload(&site, way, status).await;
            seen.assert_whole(status, "no");
            let ended = closed.wait_for(|count| *count > before);
            soon("the end of the upload", ended).await.unwrap();
            site.assert_own(way, &format!("after-{status}")).await;
        }
    }
}

/// Sends a large body while it reads the response, and returns the response.
async fn upload(site: &Site, (mode, proto): (Mode, Proto), status: u16) -> Seen {
    const SIZE: usize = 64 << 20;
    let path = format!("/early/{status}");
    let stream = site.stream(mode, proto).await;
    let asked = async {
        if proto == Proto::Http2 {
            let mut client = Client::over(stream, proto).await;
            let request = site.request(mode, "POST", &path);
            let request = request.body(body(vec![b'x'; SIZE])).unwrap();
            return Seen::receive(client.send(request).await).await;
        }
        let (mut reader, mut writer) = tokio::io::split(stream);
        let fields = format!("Content-Length: {SIZE}\r\nConnection: close\r\n");
        let head = site.head(mode, "POST", &path, &fields);
        let sending = tokio::spawn(async move {
            writer.write_all(head.as_bytes()).await.unwrap();
            let chunk = vec![b'x'; 1 << 16];
            for _ in 0..SIZE >> 16 {
                if writer.write_all(&chunk).await.is_err() {
                    return;
                }
            }
        });
        let mut bytes = Vec::new();
        let _ended = reader.read_to_end(&mut bytes).await;
        drop(reader);
        sending.await.unwrap();
        Seen::read("POST", &bytes)
    };
    soon("an early response", asked).await
}

/// Trailers of an HTTP/1.1 origin: they reach HTTP/2 clients, and HTTP/1.1 clients that sent `TE:
/// trailers` if `Trailer` announces them. Trailers that could frame or route are dropped.
///
/// RFC 9110 sections 6.5.1 and 6.5.2.
#[tokio::test(flavor = "multi_thread")]
async fn e12_trailers_of_an_http_1_origin_are_forwarded() {
    let chunks = "Transfer-Encoding: chunked\r\nTrailer: x-sum, content-length\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\nContent-Length: 9\r\nHost: evil\r\n\r\n";
    let cases = [Case::open(format!("HTTP/1.1 200 OK\r\n{chunks}"))];
    let site = Site::with_cases(&cases).await;
    for way in WAYS {
        for how in ["whole", "split"] {
            for te in ["trailers", ""] {
                let seen = site
                    .ask_with(way, "GET", &format!("/case/0/{how}"), te)
                    .await;
                seen.assert_whole(200, "ok");
                assert_trailers(way.1, te, &seen);
                site.assert_own(way, "own").await;
            }
        }
    }
}

fn assert_trailers(proto: Proto, te: &str, seen: &Seen) {
    let expected = match proto == Proto::Http2 || te == "trailers" {
        true => vec![("x-sum".to_owned(), "7".to_owned())],
        false => Vec::new(),
    };
    assert_eq!(seen.trailers, expected, "{proto:?} {te:?} {seen:?}");
}

/// Returns a response with these frames as its body.
fn frames(frames: Vec<Frame<Bytes>>) -> Reply {
    let frames = futures_util::stream::iter(frames.into_iter().map(Ok::<_, Infallible>));
    http::Response::new(StreamBody::new(frames).boxed_unsync())
}

/// Trailers of an HTTP/2 origin: the same holds for them.
///
/// RFC 9110 sections 6.5.1 and 6.5.2, RFC 9113 section 8.1.
#[tokio::test(flavor = "multi_thread")]
async fn e12_trailers_of_an_http_2_origin_are_forwarded() {
    let origin = Origin::with(|_, request| async move {
        assert_eq!(request.version(), http::Version::HTTP_2);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        trailers.insert("content-length", "9".parse().unwrap());
        trailers.insert("host", "evil".parse().unwrap());
        let data = Frame::data(Bytes::from_static(b"ok"));
        let mut answer = frames(vec![data, Frame::trailers(trailers)]);
        let announced = "x-sum, content-length".parse().unwrap();
        answer.headers_mut().insert("trailer", announced);
        answer
    });
    let site = Site::before_tls(origin.start().await, TARGET).await;
    for way in WAYS {
        for te in ["trailers", ""] {
            let seen = site.ask_with(way, "GET", "/", te).await;
            seen.assert_whole(200, "ok");
            assert_trailers(way.1, te, &seen);
        }
    }
}

/// Bytes of a body that is far larger than the memory that it may cost.
const LARGE: usize = 200 << 20;

/// A body of 200 MB that is marked as compressed: it is passed on as it arrives and never decoded,
/// and the memory stays bounded.
///
/// RFC 9110 sections 7.7 and 8.4.
#[tokio::test(flavor = "multi_thread")]
async fn e13_a_large_body_costs_bounded_memory() {
    let chunk = Bytes::from(vec![b'z'; 1 << 16]);
    let origin = Origin::with(move |_, request| {
        let chunk = chunk.clone();
        async move {
            let size = request.uri().query().unwrap().parse::<usize>().unwrap();
            let count = size / chunk.len();
            let chunks = (0..count).map(move |_| Ok::<_, Infallible>(Frame::data(chunk.clone())));
            let body = StreamBody::new(futures_util::stream::iter(chunks));
            let mut answer = http::Response::new(body.boxed_unsync());
            let gzip = "gzip".parse().unwrap();
            answer.headers_mut().insert("content-encoding", gzip);
            answer
        }
    });
    let site = Site::before(origin.start().await, TARGET).await;
    site.assert_memory_of(LARGE).await;
}

impl Site {
    /// Reads a large body in every ingress mode and asserts its length and the memory.
    async fn assert_memory_of(&self, size: usize) {
        let before = self.program.memory();
        for (number, (mode, proto)) in WAYS.into_iter().enumerate() {
            let size = if number == 0 { size } else { size / 8 };
            let size = size >> 16 << 16;
            let stream = self.stream(mode, proto).await;
            let mut client = Client::over(stream, proto).await;
            let path = format!("/large?{size}");
            let base = self.base(mode);
            let target = match (mode, proto) {
                (Mode::Intercepted | Mode::Routed, Proto::Http1) => path,
                _ => format!("{base}{path}"),
            };
            let host = base.split_once("://").unwrap().1;
            let mut request = http::Request::builder().uri(target);
            if proto == Proto::Http1 {
                request = request.header("host", host);
            }
            let response = client.send(request.body(body("")).unwrap()).await.unwrap();
            let mut body = response.into_body();
            let mut read = 0;
            while let Some(frame) = soon("a frame", body.frame()).await {
                read += frame.unwrap().into_data().unwrap().len();
            }
            assert_eq!(read, size, "{mode:?} {proto:?}");
        }
        let grown = self.program.memory().saturating_sub(before) >> 20;
        println!("{grown} MiB more than {} MiB", before >> 20);
        assert!(grown < 40, "{grown} MiB");
    }
}

/// Time without progress after which a sender counts as stopped.
const STALL: Duration = Duration::from_millis(500);

/// An endless stream of events to a client that reads nothing: the origin is stopped by flow
/// control, and another client is served.
///
/// RFC 9113 section 5.2.
#[tokio::test(flavor = "multi_thread")]
async fn e13_an_endless_body_is_stopped_while_its_client_does_not_read() {
    for (mode, proto) in WAYS {
        let sent = Arc::new(AtomicUsize::new(0));
        let (stop, mut stopped) = watch::channel(false);
        let counted = Arc::clone(&sent);
        let script = move |accepted: Accepted| {
            let (sent, stop) = (Arc::clone(&counted), stop.clone());
            async move { events(accepted, &sent, &stop).await }
        };
        let (origin, _) = Origin::scripted(&[], script).await;
        let site = Site::before(origin, TARGET).await;
        let before = site.program.memory();
        let mut stream = site.stream(mode, proto).await;
        let mut held = None;
        match proto {
            Proto::Http1 => {
                let head = site.head(mode, "GET", "/events", "");
                stream.write_all(head.as_bytes()).await.unwrap();
                held = Some((Some(stream), None));
            }
            Proto::Http2 => {
                let mut client = Client::over(stream, proto).await;
                let request = site.request(mode, "GET", "/events").body(body("")).unwrap();
                let response = soon("the head", client.send(request)).await.unwrap();
                held.replace((None, Some((client, response))));
            }
        }
        soon("the stop", stopped.wait_for(|stopped| *stopped))
            .await
            .unwrap();
        let sent = sent.load(Ordering::SeqCst) >> 20;
        let grown = site.program.memory().saturating_sub(before) >> 20;
        println!("{mode:?} {proto:?}: {sent} MiB sent, {grown} MiB more memory");
        assert!(sent < 64 && grown < 32, "{sent} MiB sent, {grown} MiB more");
        site.assert_own((mode, proto), "meanwhile").await;
        drop(held);
    }
}

/// Sends events until the program takes none for [`STALL`].
async fn events(accepted: Accepted, sent: &AtomicUsize, stop: &watch::Sender<bool>) {
    let Some(mut stream) = open(accepted).await else {
        return;
    };
    let Some(head) = crate::harness::scripted::read_head(&mut stream).await else {
        return;
    };
    if let Some(token) = head
        .split(['/', ' '])
        .skip_while(|part| *part != "own")
        .nth(1)
    {
        let length = token.len();
        let own = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{token}");
        stream.write_all(own.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        return;
    }
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let events = "data: x\n\n".repeat(1 << 12);
    while let Ok(Ok(count)) = tokio::time::timeout(STALL, stream.write(events.as_bytes())).await {
        sent.fetch_add(count, Ordering::SeqCst);
    }
    stop.send_replace(true);
    // The connection stays open until the program ends it.
    let _ended = stream.read_u8().await;
}
