//! P13: a held request whose client has left is given up at once. It keeps no place in the queue
//! and never reaches the origin.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Client, Origin, Program, Proto, soon};

const TARGET: &str = "targets:\n  - name: api\n    hosts: [api.test, plain.test]\n    max_wait: 2h\n    limits: [{ rate: \"1/1h\", burst: 1 }]\nroutes:\n  - { host: r.localhost, to: \"http://plain.test\" }\n";

/// Waits until this number of requests is held.
async fn held(program: &Program, count: f64) {
    let series = "outpace_waiting{target=\"api\"}";
    let reached = async {
        loop {
            if program.metric(series).await.total_cmp(&count).is_eq() {
                return;
            }
        }
    };
    soon("the number of held requests", reached).await;
}

/// Starts the program and takes the only slot of its target.
async fn with_a_full_target(origin: &Origin) -> Program {
    let program = Program::before(origin, TARGET).await;
    let mut client = Client::plain(&program).await;
    assert_eq!(client.get("http://plain.test/").await.status(), 200);
    program
}

/// Sends a request, waits until it is held, and returns the stream.
async fn hold<T: AsyncWrite + Unpin>(program: &Program, mut stream: T, bytes: &[u8]) -> T {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    held(program, 1.0).await;
    stream
}

/// Requests that are held. The body of those with `Expect` is not read.
fn requests(target: &str, host: &str) -> Vec<Vec<u8>> {
    let head = |method: &str, fields: &str| {
        format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")
    };
    let expect = head("POST", "Content-Length: 500\r\nExpect: 100-continue\r\n");
    let chunked = head(
        "PUT",
        "Transfer-Encoding: chunked\r\nExpect: 100-Continue\r\n",
    );
    let plain = head("GET", "");
    [
        expect.clone(),
        chunked,
        // This client does not wait for the 100.
        format!("{expect}some bytes"),
        plain.clone(),
        // The second request waits for the first.
        plain.repeat(2),
        head("POST", "Content-Length: 500\r\n") + "the beginning",
    ]
    .map(String::into_bytes)
    .to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_a_client_that_leaves_frees_its_place_at_once() {
    let origin = Origin::ok().await;
    let program = with_a_full_target(&origin).await;
    let mut left = 0;
    for (target, host) in [
        ("http://plain.test/left", "plain.test"),
        ("/left", "r.localhost"),
    ] {
        for bytes in requests(target, host) {
            for reset in [false, true] {
                let stream = TcpStream::connect(program.listen).await.unwrap();
                let stream = hold(&program, stream, &bytes).await;
                if reset {
                    let socket = socket2::SockRef::from(&stream);
                    socket.set_linger(Some(Duration::ZERO)).unwrap();
                }
                drop(stream);
                held(&program, 0.0).await;
                left += 1;
            }
        }
    }
    for bytes in requests("/left", "api.test") {
        let stream = Client::tls_inside(&program, "api.test", Proto::Http1).await;
        let mut stream = hold(&program, stream.unwrap(), &bytes).await;
        stream.shutdown().await.unwrap();
        drop(stream);
        held(&program, 0.0).await;
        left += 1;
    }
    // A body that ended too early is recorded as such.
    let given_up = |record: &serde_json::Value| {
        let outcome = record["outcome"].as_str().unwrap_or_default();
        matches!(outcome, "abandoned" | "rejected") && record["attempts"] == 0
    };
    let all_written = async {
        while program
            .records()
            .iter()
            .filter(|record| given_up(record))
            .count()
            < left
        {
            held(&program, 0.0).await;
        }
    };
    soon("the records", all_written).await;
    assert_eq!(origin.arrivals.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_an_http_2_client_that_leaves_frees_its_place_at_once() {
    let origin = Origin::ok().await;
    let program = with_a_full_target(&origin).await;
    for expect in ["100-continue", ""] {
        let mut client = Client::intercepted(&program, "api.test", Proto::Http2).await;
        let mut request = client.request("POST", "/left");
        if !expect.is_empty() {
            request = request.header("expect", expect);
        }
        let request = request.body("body".into()).unwrap();
        // The end of this task resets the stream, and then ends the connection.
        let sent = tokio::spawn(async move { client.send(request).await.is_ok() });
        held(&program, 1.0).await;
        sent.abort();
        held(&program, 0.0).await;
    }
    assert_eq!(origin.arrivals.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_wait_for_the_100_loses_no_byte() {
    let origin = Origin::with(|_, request| async move {
        let body = http_body_util::BodyExt::collect(request.into_body());
        let body = body.await.unwrap().to_bytes();
        crate::harness::reply(200, &format!("{} {:?}", body.len(), body.last()))
    });
    let origin = origin.start().await;
    let program = Program::before(&origin, &TARGET.replace("1/1h", "4/1s")).await;
    for size in [1, 4_096, 5_000, 300_000] {
        let mut stream = TcpStream::connect(program.listen).await.unwrap();
        let head = format!(
            "POST http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\nContent-Length: {size}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // The parts arrive while the request is held, and afterwards.
        let mut body = vec![b'x'; size - 1];
        body.push(b'y');
        for part in body.chunks(50_000) {
            stream.write_all(part).await.unwrap();
        }
        let mut answer = String::new();
        soon("the answer", stream.read_to_string(&mut answer))
            .await
            .unwrap();
        assert!(
            answer.ends_with(&format!("{size} Some(121)")),
            "{size}: {answer}"
        );
    }
}
