//! P14: origins that are slow to begin a TLS session or a response, and clients that are slow to send.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::bounds::{HELD, TARGET};
use crate::harness::scripted::{Accepted, read_head};
use crate::harness::{Origin, Program, faketime, raw, soon};

/// Origin that answers plain requests, but begins no TLS session.
pub(crate) async fn without_tls() -> Origin {
    let script = |accepted: Accepted| async move {
        let mut stream = accepted.stream;
        let mut first = [0];
        // A TLS record of type handshake begins with 22 (RFC 8446 section 5.1).
        if stream.peek(&mut first).await.is_err() || first == [22] {
            return std::future::pending().await;
        }
        while let Some(head) = read_head(&mut stream).await {
            if head.contains("/silent") {
                return std::future::pending().await;
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            let _ended = stream.write_all(answer).await;
        }
    };
    Origin::scripted(&[], script).await.0
}

pub(crate) const ROUTED: &str =
    "GET /free HTTP/1.1\r\nHost: r.localhost\r\nConnection: close\r\n\r\n";

/// Times as the program measures them. Its clocks run faster than the test's.
///
/// Reaches the bound `CONNECT_TIMEOUT`.
/// Reaches the bound `RESPONSE_HEAD_TIMEOUT`.
/// Reaches the bound `GRPC_BODY_IDLE`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_a_silent_origin_is_given_up() {
    const FASTER: u32 = 90;
    let (library, rate) = (faketime(), format!("+0 x{FASTER}"));
    let env = [("LD_PRELOAD", &*library), ("FAKETIME", &*rate)];
    let origin = without_tls().await;
    let more = HELD.replace(
        "limits: [",
        "limits: [{ rate: \"1000/1s\", key: \"json:/k\", match: { path: \"/grpc\" } }, ",
    );
    let program = Program::with_env(&origin, &more, &env).await;
    let address = program.listen;
    // It is no GET, because a GET would be sent again.
    let silent =
        "POST http://plain.test/silent HTTP/1.1\r\nHost: plain.test\r\nContent-Length: 0\r\n\r\n";
    // The key of the limit is in the body, so the body is read before the origin is asked.
    let grpc = "POST http://plain.test/grpc HTTP/1.1\r\nHost: plain.test\r\nContent-Type: application/grpc\r\nContent-Length: 9\r\n\r\nx";
    let given_up = [
        (ROUTED, "origin-connect-timeout", 15),
        (silent, "origin-timeout", 900),
        (grpc, "body-timeout", 900),
    ]
    .map(|(request, reason, seconds)| async move {
        let began = std::time::Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let (mut answer, mut part) = (String::new(), [0; 2048]);
        while !answer.contains(reason) {
            let read = soon(reason, stream.read(&mut part)).await.unwrap();
            assert!(read > 0, "{reason}: {answer}");
            answer.push_str(&String::from_utf8_lossy(&part[..read]));
        }
        let took = began.elapsed() * FASTER;
        assert!(took.as_secs() >= seconds - 1, "{reason}: {took:?}");
    });
    futures_util::future::join_all(given_up).await;
}

/// Requests at once, of which each needs a connection, to an origin whose handshakes do not end.
///
/// Reaches the bound `ORIGIN_DIALS`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_connections_to_an_origin_are_opened_a_few_at_a_time() {
    const DIALS: usize = 32;
    let (open, opened) = watch::channel(false);
    let (dials, mut dialling) = watch::channel((0, 0));
    let script = move |accepted: Accepted| {
        let (mut opened, dials) = (opened.clone(), dials.clone());
        async move {
            dials.send_modify(|(now, most)| {
                *now += 1;
                *most = (*now).max(*most);
            });
            // The first connection shows the protocol.
            if accepted.number > 0 {
                let _open = opened.wait_for(|open| *open).await;
            }
            dials.send_modify(|(now, _)| *now -= 1);
            let Ok(mut stream) = accepted.tls.accept(accepted.stream).await else {
                return;
            };
            while read_head(&mut stream).await.is_some() {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                let _ended = stream.write_all(answer).await;
                let _ended = stream.flush().await;
            }
        }
    };
    let (origin, _) = Origin::scripted(&[b"http/1.1"], script).await;
    let more = TARGET.replace("max_wait: 0s", "max_wait: 60s")
        + "routes: [{ host: r.localhost, to: \"https://api.test\" }]\n";
    let program = Program::before(&origin, &more).await;
    let address = program.listen;
    assert!(raw(address, ROUTED).await.starts_with("HTTP/1.1 200"));
    // The second request uses the connection of the first one.
    let requests: Vec<_> = (0..DIALS + 8)
        .map(|_| tokio::spawn(async move { raw(address, ROUTED).await }))
        .collect();
    soon("the dials", dialling.wait_for(|(now, _)| *now >= DIALS))
        .await
        .unwrap();
    open.send_replace(true);
    for request in requests {
        assert!(request.await.unwrap().starts_with("HTTP/1.1 200"));
    }
    assert_eq!(dialling.borrow().1, DIALS);
}
