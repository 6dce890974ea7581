//! Table F, floods: HTTP/2 clients that send cheap frames without end, or read nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::http2::{MODES, tokens};
use super::strange_origin::{Mode, Site, TARGET, body};
use super::streams::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameClient, PING, WINDOW_UPDATE, encode, frame,
    pseudo,
};
use crate::harness::scripted::{HEADERS, RST_STREAM, SETTINGS};
use crate::harness::{Client, Origin, Program, Proto, reply, soon};

/// Bytes of a flood after which the test gives up.
const FLOOD: usize = 32 << 20;
/// Time without progress after which a writer counts as stopped by flow control.
const STALL: Duration = Duration::from_millis(500);
/// Memory that a flood may cost, in MiB.
const MEMORY: u64 = 32;

/// End of a flood: its bytes, and true if the program has closed the connection.
#[derive(Debug)]
struct FloodEnd {
    sent: usize,
    is_closed: bool,
}

/// Writes `frames(n)` for n from 0 until the program ends the connection or takes no more bytes. The
/// responses are read only if `reads`.
async fn flood(mut client: FrameClient, reads: bool, frames: impl Fn(u32) -> Vec<u8>) -> FloodEnd {
    client.write(&[]).await;
    let (mut reader, mut writer) = tokio::io::split(client.stream);
    let reading = tokio::spawn(async move {
        if reads {
            let mut read = Vec::new();
            let _ended = reader.read_to_end(&mut read).await;
        }
        // A flood that is not read keeps its connection until the test aborts this task.
        std::future::pending::<()>().await;
    });
    let (mut sent, mut number, mut is_closed) = (0, 0, false);
    while sent < FLOOD && !is_closed {
        let mut batch = Vec::new();
        while batch.len() < 16_384 {
            batch.extend(frames(number));
            number += 1;
        }
        let written = async { writer.write_all(&batch).await.and(writer.flush().await) };
        match tokio::time::timeout(STALL, written).await {
            Ok(Ok(())) => sent += batch.len(),
            Ok(Err(_)) => is_closed = true,
            Err(_) => break,
        }
    }
    reading.abort();
    FloodEnd { sent, is_closed }
}

/// Processor time that the program has used, in clock ticks of 10 ms.
fn ticks(program: &Program) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", program.pid())).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    let fields: Vec<_> = fields.collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Floods the program in every ingress mode, while another client asks for its token. Returns the
/// ends.
async fn flood_everywhere(
    first: impl Fn(&Site, Mode) -> Vec<u8>,
    reads: bool,
    frames: impl Fn(&Site, Mode, u32) -> Vec<u8>,
) -> Vec<FloodEnd> {
    let site = Site::before(tokens().await, TARGET).await;
    let mut ends = Vec::new();
    for mode in MODES {
        let (memory, used) = (site.program.memory(), ticks(&site.program));
        let mut client = FrameClient::begin(&site, mode, &[], false).await;
        client.write(&first(&site, mode)).await;
        let flooding = flood(client, reads, |number| frames(&site, mode, number));
        let mut flooding = std::pin::pin!(flooding);
        let mut served = 0;
        let end = loop {
            tokio::select! {
                biased;
                end = flooding.as_mut() => break end,
                () = site.assert_own((mode, Proto::Http2), "meanwhile") => served += 1,
            }
        };
        site.assert_own((mode, Proto::Http2), "afterwards").await;
        let used = (ticks(&site.program) - used) * 10;
        let grown = site.program.memory().saturating_sub(memory) >> 20;
        println!("{mode:?}: {end:?}, {served} served, {used} ms, {grown} MiB");
        assert!(grown < MEMORY, "{mode:?}: {grown} MiB");
        ends.push(end);
    }
    ends
}

fn stream_of(number: u32) -> u32 {
    number * 2 + 1
}

fn request(site: &Site, mode: Mode, stream: u32, method: &str, flags: u8) -> Vec<u8> {
    let block = encode(&pseudo(site, mode, method, "/own/flood"));
    frame(HEADERS, flags | END_HEADERS, stream, &block)
}

fn assert_closed(ends: &[FloodEnd]) {
    for end in ends {
        assert!(end.is_closed && end.sent < FLOOD, "{end:?}");
    }
}

/// Requests that are reset at once, without end: the connection is closed, and another client is
/// served.
///
/// RFC 9113 section 10.5.
#[tokio::test(flavor = "multi_thread")]
async fn f06_a_rapid_reset_ends_the_connection() {
    let ends = flood_everywhere(
        |_, _| Vec::new(),
        true,
        |site, mode, number| {
            let stream = stream_of(number);
            let mut bytes = request(site, mode, stream, "GET", END_STREAM);
            bytes.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
            bytes
        },
    )
    .await;
    assert_closed(&ends);
}

/// CONTINUATION frames without end: the connection is closed.
///
/// RFC 9113 section 10.5.1.
#[tokio::test(flavor = "multi_thread")]
async fn f06_a_flood_of_continuations_ends_the_connection() {
    for payload in [
        encode(&[("x-a", "b")]),
        Vec::new(),
        encode(&[("x-a", "b")]).repeat(1000),
    ] {
        let ends = flood_everywhere(
            |site, mode| {
                let block = encode(&pseudo(site, mode, "GET", "/own/flood"));
                frame(HEADERS, END_STREAM, 1, &block)
            },
            true,
            |_, _, _| frame(CONTINUATION, 0, 1, &payload),
        )
        .await;
        assert_closed(&ends);
    }
}

/// PING or SETTINGS frames without end to a client that does not read: the program stops reading, so
/// that its answers cost bounded memory.
///
/// RFC 9113 section 10.5.
#[tokio::test(flavor = "multi_thread")]
async fn f06_floods_of_ping_and_settings_are_stopped() {
    for (kind, payload) in [(PING, &[0; 8][..]), (SETTINGS, &[0, 3, 0, 0, 0, 9])] {
        let ends = flood_everywhere(
            |_, _| Vec::new(),
            false,
            |_, _, _| frame(kind, 0, 0, payload),
        )
        .await;
        for end in ends {
            assert!(end.sent < FLOOD, "{kind}: {end:?}");
        }
    }
}

/// DATA frames with one byte or none, without end: the connection is closed.
///
/// RFC 9113 section 10.5.
#[tokio::test(flavor = "multi_thread")]
async fn f06_a_flood_of_small_data_ends_the_connection() {
    for payload in [&[][..], b"x"] {
        let ends = flood_everywhere(
            |site, mode| request(site, mode, 1, "POST", 0),
            true,
            |_, _, _| frame(DATA, 0, 1, payload),
        )
        .await;
        assert_closed(&ends);
    }
}

/// Frames that make the program reset its own streams, without end (MadeYouReset): the connection is
/// closed.
///
/// RFC 9113 section 10.5.
#[tokio::test(flavor = "multi_thread")]
async fn f06_made_you_reset_ends_the_connection() {
    for increment in [[0x7f, 0xff, 0xff, 0xff], [0, 0, 0, 0]] {
        let ends = flood_everywhere(
            |_, _| Vec::new(),
            true,
            |site, mode, number| {
                let stream = stream_of(number);
                let mut bytes = request(site, mode, stream, "GET", END_STREAM);
                // The window overflows, or the increment is zero (RFC 9113 section 6.9).
                bytes.extend(frame(WINDOW_UPDATE, 0, stream, &increment));
                bytes
            },
        )
        .await;
        assert_closed(&ends);
    }
}

/// Starts an origin that answers `/large` with 4 MiB, and other paths with their last part.
async fn large() -> Origin {
    let origin = Origin::with(|_, request| async move {
        match request.uri().path() {
            "/large" => reply(200, &"x".repeat(4 << 20)),
            path => reply(200, path.rsplit('/').next().unwrap()),
        }
    });
    origin.http1().start().await
}

/// A client whose windows are zero, with 200 requests for large responses: they cost bounded memory,
/// and another client is served.
///
/// RFC 9113 sections 5.2.2 and 10.5.
#[tokio::test(flavor = "multi_thread")]
async fn f06_windows_of_zero_cost_bounded_memory() {
    const REQUESTS: u32 = 200;
    let site = Site::before(large().await, TARGET).await;
    for mode in MODES {
        let before = site.program.memory();
        // SETTINGS_INITIAL_WINDOW_SIZE has the identifier 4.
        let mut client = FrameClient::begin(&site, mode, &[0, 4, 0, 0, 0, 0], false).await;
        for number in 0..REQUESTS {
            let block = encode(&pseudo(&site, mode, "GET", "/large"));
            client.head(stream_of(number), END_STREAM, &block).await;
        }
        client.heads(REQUESTS as usize).await;
        site.assert_own((mode, Proto::Http2), "meanwhile").await;
        let grown = site.program.memory().saturating_sub(before) >> 20;
        println!("{mode:?}: {grown} MiB for {REQUESTS} responses of 4 MiB");
        assert!(grown < 64, "{mode:?}: {grown} MiB");
        drop(client);
    }
}

/// One response that its client does not read, among 100 streams of the connection, and among the
/// requests of other clients on one connection to the origin: all others end.
///
/// RFC 9113 section 5.2.
#[tokio::test(flavor = "multi_thread")]
async fn f07_one_slow_reader_stops_no_other_stream() {
    let origin = Origin::with(|_, request| async move {
        match request.uri().path() {
            "/large" => reply(200, &"x".repeat(4 << 20)),
            path => reply(200, path.rsplit('/').next().unwrap()),
        }
    });
    let site = Site::before_tls(origin.start().await, TARGET).await;
    for mode in MODES {
        let stream = site.stream(mode, Proto::Http2).await;
        let mut client = Client::over(stream, Proto::Http2).await;
        let request = |path: &str| site.request(mode, "GET", path).body(body("")).unwrap();
        let slow = client.send(request("/large"));
        let mut slow = soon("the slow head", slow).await.unwrap();
        for number in 0..99 {
            let response = client.ask(request(&format!("/own/{number}"))).await;
            assert_eq!(**response.body(), *number.to_string().as_bytes());
            site.assert_own((mode, Proto::Http2), "other").await;
        }
        let body = soon("the rest", slow.body_mut().collect()).await.unwrap();
        assert_eq!(body.to_bytes().len(), 4 << 20, "{mode:?}");
    }
}

/// Twenty clients that do not read their large responses, on one connection to the origin: another
/// client is served.
///
/// RFC 9113 section 5.2.
#[tokio::test(flavor = "multi_thread")]
async fn f07_slow_readers_of_one_origin_stop_no_other_client() {
    let origin = Origin::with(|_, request| async move {
        match request.uri().path() {
            "/large" => reply(200, &"x".repeat(4 << 20)),
            path => reply(200, path.rsplit('/').next().unwrap()),
        }
    });
    let site = Site::before_tls(origin.start().await, TARGET).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let stream = site.stream(Mode::Intercepted, Proto::Http2).await;
        let mut client = Client::over(stream, Proto::Http2).await;
        let request = site.request(Mode::Intercepted, "GET", "/large");
        let response = client.send(request.body(body("")).unwrap());
        let response = soon("the slow head", response).await.unwrap();
        slow.push((client, response));
        site.assert_own((Mode::Intercepted, Proto::Http2), "other")
            .await;
    }
}

/// More requests at once than one connection to an origin takes, although the origin allows more: a
/// further connection is opened, so that the window of each has room for all its streams.
///
/// RFC 9113 sections 5.1.2 and 5.2.
///
/// Reaches the bound `H2_STREAMS`.
#[tokio::test(flavor = "multi_thread")]
async fn f07_a_connection_to_an_origin_takes_a_bounded_number_of_streams() {
    const STREAMS: usize = 256;
    let (open, opened) = tokio::sync::watch::channel(false);
    let origin = Origin::with(move |_, _| {
        let mut opened = opened.clone();
        async move {
            let _ended = opened.wait_for(|open| *open).await;
            reply(200, "ok")
        }
    });
    let origin = origin.streams(10_000).start().await;
    let site = Arc::new(Site::before_tls(origin, TARGET).await);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..=STREAMS {
        let task = Arc::clone(&site);
        let way = (Mode::Plain, Proto::Http1);
        tasks.spawn(async move { task.ask(way, "GET", "/").await.status });
        site.origin.arrivals.reached(number + 1).await;
        let connections = site.origin.arrivals.connections.load(Ordering::SeqCst);
        assert_eq!(connections, 1 + number / STREAMS, "request {number}");
    }
    open.send_replace(true);
    assert!(tasks.join_all().await.iter().all(|status| *status == 200));
}
