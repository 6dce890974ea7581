//! Table C of the checklist, rows C9 to C13: the bytes inside a CONNECT.

use bytes::Bytes;
use http::{Method, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::connect::{CLOSING, GET, closing, connect};
use super::frames::{Frames, Http2Answer};
use super::record::{OK, Recorder};
use super::{Answer, MODES, Mode, SPLITS, Setup, Split, write_split};
use crate::harness::{Client, Program, Proto, soon};

/// A client that sends no TLS and no HTTP inside an intercepted CONNECT, or nothing for 10 s: the
/// connection closes with a record.
///
/// RFC 9110 section 9.3.6.
#[tokio::test(flavor = "multi_thread")]
async fn c09_another_protocol_inside_a_connect() {
    let setup = closing().await;
    // hyper reads an incomplete head again only at an empty line, so each start has one.
    for start in [
        "SSH-2.0-OpenSSH_9.6\r\n\r\n",
        "\0\0\0\u{8}\u{4}\u{d2}\u{16}/\r\n\r\n",
        "EHLO a\r\n\r\n",
    ] {
        for split in SPLITS {
            let (head, rest) = connect(&setup, split, "api.test:443", "", start).await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            // A start that could be a method gets a response, and so does its first byte alone.
            let is_method = start.starts_with("EHLO");
            if is_method || !rest.is_empty() && split == Split::Bytes {
                Answer::one(&rest).assert_refused(start, 400, "malformed-request");
            } else {
                assert!(rest.is_empty(), "{start:?}: {rest:?}");
            }
        }
    }
    setup
        .program
        .record(|record| record["reason"] == "inner-not-http")
        .await;
    let (head, rest) = connect(&setup, Split::Whole, "api.test:443", "", "").await;
    assert!(
        head.starts_with("HTTP/1.1 200") && rest.is_empty(),
        "{head}"
    );
    setup.nothing_left().await;
}

/// The end of one side of a tunnel, or its reset: passed on to the other side, and the tunnel is
/// recorded.
///
/// RFC 9110 section 9.3.6.
#[tokio::test(flavor = "multi_thread")]
async fn c10_the_end_of_a_tunnel() {
    let setup = closing().await;
    for reset in [false, true] {
        let mut stream = Client::connect(&setup.program, "tunnel.test:443", "")
            .await
            .unwrap();
        stream
            .write_all(b"PUT / HTTP/1.1\r\nHost: tunnel.test\r\nContent-Length: 9\r\n\r\nab")
            .await
            .unwrap();
        setup.recorder.begun().await;
        if reset {
            stream.set_zero_linger().unwrap();
            drop(stream);
        } else {
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            let ended = soon("the origin's end", stream.read_to_end(&mut rest)).await;
            assert_eq!((ended.unwrap(), rest.len()), (0, 0));
        }
        assert!(setup.recorder.broken().await.ends_with("\r\n\r\nab"));
    }
    // The origin closes first, and the client's side is still open.
    let (_, rest) = {
        let stop = GET.replace("GET /x", "GET /stop");
        let setup =
            Setup::answering(|_| b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbye".to_vec()).await;
        connect(&setup, Split::Whole, "tunnel.test:443", "", &stop).await
    };
    assert!(rest.ends_with(b"bye"));
    soon("both records", async {
        let tunnels = || {
            setup
                .program
                .records()
                .iter()
                .filter(|r| r["ingress"] == "tunnel")
                .count()
        };
        while tunnels() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A CONNECT over HTTP/2: one tunnel per stream. An extended CONNECT is a stream error.
///
/// RFC 9113 section 8.5, RFC 8441.
///
/// Differs: an extended CONNECT gets a stream error instead of 501. outpace does not announce
/// SETTINGS_ENABLE_CONNECT_PROTOCOL, so RFC 8441 section 3 forbids it.
#[tokio::test(flavor = "multi_thread")]
async fn c11_connect_over_http_2() {
    let setup = closing().await;
    let stream = TcpStream::connect(setup.program.listen).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let mut sender = sender.clone().ready().await.unwrap();
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri("tunnel.test:443");
        let (response, mut body) = sender
            .send_request(request.body(()).unwrap(), false)
            .unwrap();
        let response = soon("the answer to CONNECT", response).await.unwrap();
        assert_eq!(response.status(), 200);
        body.send_data(Bytes::from_static(GET.as_bytes()), false)
            .unwrap();
        let mut incoming = response.into_body();
        let mut read = Vec::new();
        while read.len() < CLOSING.len() {
            let data = soon("data of the tunnel", incoming.data()).await.unwrap();
            read.extend_from_slice(&data.unwrap());
        }
        assert_eq!(read, CLOSING.as_bytes());
    }
    assert_eq!(setup.recorder.take().len(), 3);
    for mode in MODES {
        for split in SPLITS {
            let mut fields = mode.pseudo("CONNECT", "/");
            fields.insert(1, (":protocol".to_owned(), "websocket".to_owned()));
            let stream = setup.open(mode, Proto::Http2).await;
            let answer = Frames::begin()
                .headers(&fields, false)
                .send(stream, split)
                .await;
            assert!(
                matches!(answer, Http2Answer::Reset(_)),
                "{mode:?}: {answer:?}"
            );
        }
    }
    setup.nothing_left().await;
}

/// Bytes that follow a CONNECT at once: the first bytes of the tunnel, relayed or intercepted.
///
/// RFC 9112 section 9.3.2.
#[tokio::test(flavor = "multi_thread")]
async fn c12_bytes_sent_with_the_connect() {
    let setup = closing().await;
    for split in SPLITS {
        let (head, rest) = connect(&setup, split, "tunnel.test:443", "", GET).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(rest, CLOSING.as_bytes());
        assert_eq!(setup.recorder.take()[0].target, "/x");
        // The ClientHello goes out with the CONNECT, and a ServerHello comes back.
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = "api.test".try_into().unwrap();
        let mut tls = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n".to_vec();
        tls.write_tls(&mut bytes).unwrap();
        let mut stream = setup.open(Mode::Plain, Proto::Http1).await;
        write_split(&mut stream, &bytes, split).await;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(soon("the 200", stream.read_u8()).await.unwrap());
        }
        // 22 is the content type of a TLS handshake record (RFC 8446 section 5.1).
        assert_eq!(soon("a ServerHello", stream.read_u8()).await.unwrap(), 22);
    }
}

/// A relayed tunnel: one slot for its connection. Requests inside are not paced, which the ingress
/// mode in the log shows.
///
/// RFC 9110 section 9.3.6.
#[tokio::test(flavor = "multi_thread")]
async fn c13_tunnels_are_paced_by_connection() {
    let (recorder, origin) = Recorder::start(|_| OK.into()).await;
    let target = "targets: [{ name: blind, hosts: [tunnel.test], tls: tunnel, limits: [{ rate: \"1/1h\", burst: 1 }] }]";
    let program = Program::before(&origin, target).await;
    let mut stream = Client::connect(&program, "tunnel.test:443", "")
        .await
        .unwrap();
    for _ in 0..3 {
        stream.write_all(GET.as_bytes()).await.unwrap();
        let mut answer = vec![0; OK.len()];
        soon("an answer", stream.read_exact(&mut answer))
            .await
            .unwrap();
        assert_eq!(answer, OK.as_bytes());
    }
    assert_eq!(recorder.take().len(), 3);
    let refused = Client::connect(&program, "tunnel.test:443", "Outpace-Max-Wait: 0\r\n").await;
    let refused = refused.unwrap_err();
    assert!(
        refused.starts_with("HTTP/1.1 429") && refused.contains("wait-too-long"),
        "{refused}"
    );
    drop(stream);
    let record = program
        .record(|record| record["ingress"] == "tunnel" && record["status"] == 200)
        .await;
    assert_eq!(record["target"], "blind");
}
