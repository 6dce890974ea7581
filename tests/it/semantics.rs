//! Raw-byte tests of tables B (target and authority), C (CONNECT) and D (hop-by-hop fields).
//! Requests go to the plain port and inside interception, in one piece and byte by byte.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Client, Origin, Program, Proto, reply, soon};

const TARGET: &str = "targets:\n  - name: api\n    hosts: [api.test, plain.test]\n    limits: [{ rate: \"10000/1s\", burst: 1000 }]\n";

/// Writes `bytes` in one piece or byte by byte, and reads until the peer closes the connection.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &str, split: bool) -> String {
    let chunk = if split { 1 } else { bytes.len() };
    for part in bytes.as_bytes().chunks(chunk) {
        if stream
            .write_all(part)
            .await
            .and(stream.flush().await)
            .is_err()
        {
            break;
        }
    }
    let mut answer = Vec::new();
    let _ended = soon("the end", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends a request to the plain port and, if `inside` is given, inside interception. Each goes out
/// in one piece and byte by byte, and all responses are returned.
async fn everywhere(program: &Program, plain: &str, inside: Option<&str>) -> Vec<String> {
    let mut answers = Vec::new();
    for split in [false, true] {
        answers.push(
            ask(
                TcpStream::connect(program.listen).await.unwrap(),
                plain,
                split,
            )
            .await,
        );
        if let Some(inside) = inside {
            let stream = Client::tls_inside(program, "api.test", Proto::Http1)
                .await
                .unwrap();
            answers.push(ask(stream, inside, split).await);
        }
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn table_b_malformed_targets_and_hosts_get_their_reason() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    let end = "Connection: close\r\n\r\n";
    for (case, head) in [
        ("B2", "GET / HTTP/1.1\r\n"),
        (
            "B3",
            "GET {} HTTP/1.1\r\nHost: api.test\r\nHost: api.test\r\n",
        ),
        ("B4 empty", "GET {} HTTP/1.1\r\nHost: \r\n"),
        ("B4 userinfo", "GET {} HTTP/1.1\r\nHost: a@b\r\n"),
        ("B4 path", "GET {} HTTP/1.1\r\nHost: a/../b\r\n"),
        ("B4 port", "GET {} HTTP/1.1\r\nHost: api.test:http\r\n"),
        (
            "B5",
            "GET http://user:pass@plain.test/ HTTP/1.1\r\nHost: plain.test\r\n",
        ),
        (
            "B6",
            "GET ftp://plain.test/ HTTP/1.1\r\nHost: plain.test\r\n",
        ),
        (
            "B8 zero",
            "GET http://plain.test:0/ HTTP/1.1\r\nHost: plain.test\r\n",
        ),
        (
            "B8 large",
            "GET http://plain.test:99999/ HTTP/1.1\r\nHost: plain.test\r\n",
        ),
        (
            "B8 empty",
            "GET http://plain.test:/ HTTP/1.1\r\nHost: plain.test\r\n",
        ),
        (
            "B12",
            "GET http://plain%2etest/ HTTP/1.1\r\nHost: plain.test\r\n",
        ),
        (
            "A8",
            "POST {} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: gzip, chunked\r\n",
        ),
    ] {
        let plain = head
            .replace("{}", "http://plain.test/")
            .replace("{host}", "plain.test")
            + end;
        let inside = head.replace("{}", "/").replace("{host}", "api.test") + end;
        for answer in everywhere(&program, &plain, Some(&inside)).await {
            assert!(answer.starts_with("HTTP/1.1 400"), "{case}: {answer:?}");
            // A refusal by hyper has no body, but a refusal by outpace states its reason.
            if answer.contains("proxy-status") {
                assert!(
                    answer.contains("malformed-request") && !answer.contains("pass"),
                    "{case}: {answer}"
                );
            }
        }
    }
    assert_eq!(origin.arrivals.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn table_b_the_request_target_counts_and_host_is_rebuilt() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    let plain = "GET http://PLAIN.test.:80/x?q=1#frag HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n";
    for answer in everywhere(&program, plain, None).await {
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let arrival = origin.arrivals.last();
        assert_eq!(
            (&arrival.headers["host"], &arrival.uri[..]),
            (&"plain.test".parse().unwrap(), "/x?q=1")
        );
        assert_eq!(arrival.headers.get_all("host").iter().count(), 1);
    }
    let asterisk = "OPTIONS * HTTP/1.1\r\nHost: plain.test\r\nConnection: close\r\n\r\n";
    for answer in everywhere(&program, asterisk, None).await {
        assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    }
    let trace = "TRACE http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\nMax-Forwards: 0\r\nConnection: close\r\n\r\n";
    for answer in everywhere(&program, trace, None).await {
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    }
    assert_eq!(origin.arrivals.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn table_c_connect_takes_host_and_port_and_nothing_else() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    for authority in [
        "api.test",
        "api.test:",
        "api.test:0",
        "api.test:x",
        "user@api.test:443",
        "/",
        "http://api.test:443/",
    ] {
        let bytes =
            format!("CONNECT {authority} HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n");
        for answer in everywhere(&program, &bytes, None).await {
            assert!(
                answer.starts_with("HTTP/1.1 400"),
                "{authority}: {answer:?}"
            );
        }
    }
    // A well-formed CONNECT is granted. A CONNECT inside an intercepted connection is refused with
    // 405.
    let granted = Client::connect(&program, "api.test:443", "").await;
    assert!(granted.is_ok());
    let inside = "CONNECT api.test:443 HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n";
    let stream = Client::tls_inside(&program, "api.test", Proto::Http1)
        .await
        .unwrap();
    let answer = ask(stream, inside, false).await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn table_d_nothing_of_one_hop_passes_either_way() {
    let origin = Origin::with(|_, _| async {
        let mut answer = reply(200, "x");
        for (name, value) in [
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=9"),
            ("proxy-authenticate", "Basic"),
            ("upgrade", "h2c"),
            ("outpace-attempts", "99"),
        ] {
            answer.headers_mut().insert(name, value.parse().unwrap());
        }
        answer
            .headers_mut()
            .append("set-cookie", "a=1".parse().unwrap());
        answer
            .headers_mut()
            .append("set-cookie", "b=2".parse().unwrap());
        answer
    })
    .http1()
    .start()
    .await;
    let program = Program::before(&origin, TARGET).await;
    let fields = "Connection: close, x-secret, authorization\r\nX-Secret: 1\r\nAuthorization: Bearer t\r\nKeep-Alive: 5\r\n\
                  Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nTE: gzip, trailers\r\nUpgrade: h2c\r\n\
                  HTTP2-Settings: AAMAAABk\r\nOutpace-Max-Wait: 5s\r\nX-Latin: caf\u{e9}\r\n\r\n";
    let plain = format!("GET http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\n{fields}");
    let inside = format!("GET / HTTP/1.1\r\nHost: api.test\r\n{fields}");
    for answer in everywhere(&program, &plain, Some(&inside)).await {
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let lower = answer.to_lowercase();
        for gone in ["x-hop", "timeout=9", "proxy-authenticate", "h2c", "99"] {
            assert!(!lower.contains(gone), "{gone} reached the client: {answer}");
        }
        assert!(
            lower.contains("set-cookie: a=1") && lower.contains("set-cookie: b=2"),
            "{answer}"
        );
        let headers = origin.arrivals.last().headers;
        for gone in [
            "x-secret",
            "keep-alive",
            "proxy-connection",
            "proxy-authorization",
            "upgrade",
            "http2-settings",
            "outpace-max-wait",
            "x-forwarded-for",
            "forwarded",
        ] {
            assert!(!headers.contains_key(gone), "{gone} reached the origin");
        }
        assert_eq!(
            (
                &headers["authorization"],
                &headers["te"],
                &headers["connection"]
            ),
            (
                &"Bearer t".parse().unwrap(),
                &"trailers".parse().unwrap(),
                &"te".parse().unwrap()
            )
        );
        assert_eq!(headers["x-latin"].as_bytes(), "caf\u{e9}".as_bytes());
        assert!(headers["via"].to_str().unwrap().starts_with("1.1 outpace-"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn table_d_versions_are_never_copied() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    let old = "GET http://plain.test/ HTTP/1.0\r\n\r\n";
    for answer in everywhere(&program, old, None).await {
        assert!(answer.contains(" 200 OK"), "{answer}");
        assert_eq!(origin.arrivals.last().version, http::Version::HTTP_11);
    }
    // The origin speaks HTTP/1.0, and its response body ends with the connection.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 1024];
            let _read = stream.read(&mut head).await;
            stream
                .write_all(b"HTTP/1.0 200 OK\r\n\r\nold body")
                .await
                .unwrap();
        }
    });
    let mut origin = Origin::ok().await;
    origin.plain = address;
    let program = Program::before(&origin, TARGET).await;
    let new = "GET http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\nConnection: close\r\n\r\n";
    for answer in everywhere(&program, new, None).await {
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("old body"),
            "{answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p14_responses_1xx_of_an_origin_are_bounded() {
    // The path is the number of responses 1xx before the response.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 1024];
                let read = stream.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..read]).into_owned();
                let count = head.split([' ', '/']).nth(2).unwrap();
                for number in 0..count.parse::<u64>().unwrap() {
                    let status = [102, 103, 199][usize::try_from(number % 3).unwrap()];
                    let interim = format!("HTTP/1.1 {status} Wait\r\nlink: </x>\r\n\r\n");
                    if stream.write_all(interim.as_bytes()).await.is_err() {
                        return;
                    }
                }
                let last = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
                let _ = stream.write_all(last).await;
            });
        }
    });
    let mut origin = Origin::ok().await;
    origin.plain = address;
    let program = Program::before(&origin, TARGET).await;
    // Each one has about 35 bytes.
    for (count, status) in [
        (0, 200),
        (3, 200),
        (1000, 200),
        (20_000, 502),
        (u64::MAX, 502),
    ] {
        let mut client = Client::plain(&program).await;
        let response = client.get(&format!("http://plain.test/{count}")).await;
        assert_eq!(response.status(), status, "{count}");
        let body = String::from_utf8_lossy(response.body()).into_owned();
        assert_eq!(body.contains("1xx"), status == 502, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn table_d_expectations_switches_and_407_that_nobody_asked_for() {
    let origin = Origin::with(|_, request| async move {
        let status = if request.uri().path() == "/407" {
            407
        } else {
            101
        };
        let mut answer = reply(status, "");
        if status == 101 {
            answer
                .headers_mut()
                .insert("connection", "upgrade".parse().unwrap());
            answer
                .headers_mut()
                .insert("upgrade", "surprise".parse().unwrap());
        }
        answer
    })
    .http1()
    .start()
    .await;
    let program = Program::before(&origin, TARGET).await;
    let get = |path: &str, fields: &str| {
        format!(
            "GET http://plain.test{path} HTTP/1.1\r\nHost: plain.test\r\n{fields}Connection: close\r\n\r\n"
        )
    };
    for answer in everywhere(&program, &get("/", "Expect: miracles\r\n"), None).await {
        assert!(answer.starts_with("HTTP/1.1 417"), "{answer}");
    }
    for answer in everywhere(&program, &get("/407", ""), None).await {
        assert!(
            answer.starts_with("HTTP/1.1 502") && answer.contains("origin-protocol"),
            "{answer}"
        );
    }
    for answer in everywhere(&program, &get("/101", ""), None).await {
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_must_not_contradict_itself() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    let mut client = Client::intercepted(&program, "api.test", Proto::Http2).await;
    let request = client.request("GET", "/").header("host", "evil.test");
    let response = client
        .ask(request.body(http_body_util::Full::default()).unwrap())
        .await;
    assert_eq!(response.status(), 400);
    let request = client.request("GET", "/").header("host", "api.test");
    let response = client
        .ask(request.body(http_body_util::Full::default()).unwrap())
        .await;
    assert_eq!(response.status(), 200);
}
