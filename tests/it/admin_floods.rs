//! P14: HTTP/2 clients of the admin port that send cheap frames without end, or read nothing.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::scripted::{HEADERS, RST_STREAM, SETTINGS};
use crate::harness::{Client, Origin, Proto};
use crate::listener_tls::start;

const DATA: u8 = 0;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
/// Flags END_STREAM and END_HEADERS of a HEADERS frame.
const WHOLE: u8 = 0x5;
/// Bytes of a flood after which the test gives up.
const FLOOD: usize = 32 << 20;
/// Time without progress after which a writer counts as stopped by flow control.
const STALL: Duration = Duration::from_millis(500);
/// Memory that a flood may cost, in MiB.
const MEMORY: u64 = 32;

/// Flood of frames, with the bytes that precede it.
struct Flood {
    name: &'static str,
    first: Vec<u8>,
    frames: Box<dyn Fn(u32) -> Vec<u8>>,
    /// True if the client reads the responses. Then the connection must be closed.
    reads: bool,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head, &stream.to_be_bytes()[..], payload].concat()
}

/// Returns a header block of a request, without indexing and without Huffman code.
fn block(method: &str) -> Vec<u8> {
    let fields = [
        (":method", method),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/healthz"),
    ];
    let mut block = Vec::new();
    for text in fields {
        block.push(0);
        for text in [text.0, text.1] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.bytes());
        }
    }
    block
}

fn floods() -> Vec<Flood> {
    let odd = |number: u32| number * 2 + 1;
    let flood = |name, first, reads, frames: Box<dyn Fn(u32) -> Vec<u8>>| Flood {
        name,
        first,
        frames,
        reads,
    };
    let reset = move |number| {
        let head = frame(HEADERS, WHOLE, odd(number), &block("GET"));
        [head, frame(RST_STREAM, 0, odd(number), &[0, 0, 0, 8])].concat()
    };
    let made_you_reset = move |number| {
        let head = frame(HEADERS, WHOLE, odd(number), &block("GET"));
        [head, frame(8, 0, odd(number), &[0, 0, 0, 0])].concat()
    };
    let unfinished = || frame(HEADERS, 1, 1, &block("GET"));
    let post = frame(HEADERS, 4, 1, &block("POST"));
    vec![
        flood("rapid reset", Vec::new(), true, Box::new(reset)),
        flood("MadeYouReset", Vec::new(), true, Box::new(made_you_reset)),
        flood(
            "CONTINUATION",
            unfinished(),
            true,
            Box::new(|_| frame(CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y'])),
        ),
        flood(
            "empty CONTINUATION",
            unfinished(),
            true,
            Box::new(|_| frame(CONTINUATION, 0, 1, &[])),
        ),
        flood(
            "small DATA",
            post,
            true,
            Box::new(|_| frame(DATA, 0, 1, b"x")),
        ),
        flood(
            "PING",
            Vec::new(),
            false,
            Box::new(|_| frame(PING, 0, 0, &[0; 8])),
        ),
        flood(
            "SETTINGS",
            Vec::new(),
            false,
            Box::new(|_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9])),
        ),
    ]
}

/// Writes the flood until the program ends the connection or takes no more bytes. Returns the bytes
/// and true if the connection was closed.
async fn run(stream: impl AsyncRead + AsyncWrite, flood: &Flood) -> (usize, bool) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let first = [&preface[..], &frame(SETTINGS, 0, 0, &[]), &flood.first].concat();
    writer.write_all(&first).await.unwrap();
    let reading = async {
        if flood.reads {
            let mut read = vec![0; 65_536];
            while let Ok(1..) = reader.read(&mut read).await {}
        }
        std::future::pending().await
    };
    let writing = async {
        let (mut sent, mut number) = (0, 0);
        while sent < FLOOD {
            let mut batch = Vec::new();
            while batch.len() < 16_384 {
                batch.extend((flood.frames)(number));
                number += 1;
            }
            let written = async { writer.write_all(&batch).await.and(writer.flush().await) };
            match tokio::time::timeout(STALL, written).await {
                Ok(Ok(())) => sent += batch.len(),
                Ok(Err(_)) => return (sent, true),
                Err(_) => break,
            }
        }
        (sent, false)
    };
    tokio::select! {
        end = writing => end,
        end = reading => end,
    }
}

/// Each flood is ended or stopped, costs bounded memory, and another operator is served meanwhile.
///
/// RFC 9113 section 10.5.
#[tokio::test(flavor = "multi_thread")]
async fn p14_floods_of_frames_to_the_admin_port_are_stopped() {
    let origin = Origin::ok().await;
    let (secured, identity) = start(&origin).await;
    let program = &secured.program;
    let connect = async || {
        let stream = TcpStream::connect(program.admin).await.unwrap();
        let tls = Client::tls(stream, "localhost", Proto::Http2, &identity.ca);
        tls.await.unwrap()
    };
    for flood in floods() {
        let memory = program.memory();
        let mut other = Client::over(connect().await, Proto::Http2).await;
        let stream = connect().await;
        let mut flooding = std::pin::pin!(run(stream, &flood));
        let mut served = 0;
        let (sent, is_closed) = loop {
            tokio::select! {
                biased;
                end = flooding.as_mut() => break end,
                response = other.get("https://localhost/healthz") => {
                    assert_eq!(response.status(), 200, "{}", flood.name);
                    served += 1;
                }
            }
        };
        let grown = program.memory().saturating_sub(memory) >> 20;
        println!(
            "{}: {sent} bytes, closed {is_closed}, {served} served, {grown} MiB",
            flood.name
        );
        assert!(sent < FLOOD, "{}: {sent}", flood.name);
        assert!(is_closed || !flood.reads, "{}", flood.name);
        assert!(grown < MEMORY, "{}: {grown} MiB", flood.name);
        let mut other = Client::over(connect().await, Proto::Http2).await;
        assert_eq!(other.get("https://localhost/healthz").await.status(), 200);
    }
}
