//! Interception inside a CONNECT: certificates of outpace's CA, and bytes that are not TLS.

use http_body_util::Full;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Client, Origin, Program, Proto, soon};

const TARGET: &str = "targets:\n  - name: api\n    hosts: [api.test, \"127.0.0.1\"]\n    limits: [{ rate: \"1000/1s\" }]\n";

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_of_http_are_intercepted_and_recorded() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    for (proto, version) in [
        (Proto::Http1, http::Version::HTTP_2),
        (Proto::Http2, http::Version::HTTP_2),
    ] {
        let mut client = Client::intercepted(&program, "api.test", proto).await;
        let response = client.get("/path?secret=1").await;
        assert_eq!(
            (response.status().as_u16(), &response.body()[..]),
            (200, &b"ok"[..])
        );
        let arrival = origin.arrivals.last();
        // The origin offers HTTP/2, so outpace uses HTTP/2 to the origin for both versions of the
        // client.
        assert_eq!(arrival.version, version);
        assert!(arrival.uri.ends_with("/path?secret=1"), "{}", arrival.uri);
    }
    let record = program.record(|r| r["ingress"] == "intercept").await;
    for (key, value) in [
        ("host", "api.test"),
        ("path", "/path"),
        ("target", "api"),
        ("outcome", "delivered"),
        ("scheme", "https"),
    ] {
        assert_eq!(record[key], value, "{key}");
    }
    assert!(
        !format!("{:?}", program.records()).contains("secret"),
        "a query, which may hold secrets, was recorded"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_without_http_2_is_spoken_to_in_http_1() {
    let origin = Origin::with(|_, _| async { crate::harness::reply(200, "ok") })
        .http1()
        .start()
        .await;
    let program = Program::before(&origin, TARGET).await;
    let mut client = Client::intercepted(&program, "api.test", Proto::Http2).await;
    let request = client
        .request("GET", "/")
        .header("cookie", "a=b")
        .header("cookie", "c=d");
    let response = client.ask(request.body(Full::default()).unwrap()).await;
    assert_eq!(response.status(), 200);
    let arrival = origin.arrivals.last();
    assert_eq!(
        (
            arrival.version,
            &arrival.headers["host"],
            &arrival.headers["cookie"]
        ),
        (
            http::Version::HTTP_11,
            &"api.test".parse().unwrap(),
            &"a=b; c=d".parse().unwrap()
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_distrusts_us_is_told_the_remedy_once() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    for _ in 0..2 {
        let tcp = Client::connect(&program, "api.test:443", "").await.unwrap();
        // The client trusts the CA of the origin but not the CA of outpace.
        assert!(
            Client::tls(tcp, "api.test", Proto::Http1, &origin.ca)
                .await
                .is_err()
        );
    }
    let event = program
        .event(|e| {
            e["message"]
                .as_str()
                .is_some_and(|m| m.contains("does not trust outpace's CA"))
        })
        .await;
    assert!(event["remedy"].as_str().unwrap().contains("outpace env"));
    soon("both rejections in the metric", async {
        while program.metric("outpace_leaves_rejected_total").await < 2.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let told = program
        .events()
        .iter()
        .filter(|e| e["remedy"].is_string())
        .count();
    assert_eq!(told, 1);
    program
        .record(|r| r["reason"] == "inner-distrusted" && r["outcome"] == "rejected")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_tls_is_served_as_http_or_closed() {
    let origin = Origin::ok().await;
    let plain_port = origin.plain.port();
    let more = TARGET.replace(
        "api.test,",
        &format!("api.test, \"plain.test:{plain_port}\","),
    );
    let program = Program::before(&origin, &more).await;
    let mut tcp = Client::connect(&program, &format!("plain.test:{plain_port}"), "")
        .await
        .unwrap();
    tcp.write_all(
        format!(
            "GET /inside HTTP/1.1\r\nHost: plain.test:{plain_port}\r\nConnection: close\r\n\r\n"
        )
        .as_bytes(),
    )
    .await
    .unwrap();
    let mut answer = String::new();
    soon("an answer", tcp.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(origin.arrivals.last().uri, "/inside");

    let mut tcp = Client::connect(&program, "api.test:443", "").await.unwrap();
    tcp.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _closed = soon("the close", tcp.read_to_end(&mut answer)).await;
    assert!(answer.is_empty());
    let record = program.record(|r| r["reason"] == "inner-not-http").await;
    assert_eq!(record["host"], "api.test");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_sent_with_the_connect_are_not_lost() {
    let origin = Origin::ok().await;
    let plain_port = origin.plain.port();
    let more = TARGET.replace(
        "api.test,",
        &format!("api.test, \"plain.test:{plain_port}\","),
    );
    let program = Program::before(&origin, &more).await;
    let authority = format!("plain.test:{plain_port}");
    let both = format!(
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\nGET /early HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
    );
    let answer = crate::harness::raw(program.listen, &both).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK")
            || answer.matches("HTTP/1.1 200").count() == 2,
        "{answer}"
    );
    assert_eq!(origin.arrivals.last().uri, "/early");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_a_certificate_too() {
    let origin = Origin::ok().await;
    let port = origin.tls.port();
    let more = TARGET.replace("\"127.0.0.1\"", &format!("\"127.0.0.1:{port}\""));
    let program = Program::before(&origin, &more).await;
    let tcp = Client::connect(&program, &format!("127.0.0.1:{port}"), "")
        .await
        .unwrap();
    let mut stream = Client::tls(tcp, "127.0.0.1", Proto::Http1, &program.ca())
        .await
        .unwrap();
    stream
        .write_all(
            format!("GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ended = soon("an answer", stream.read_to_end(&mut answer)).await;
    assert!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_with_a_foreign_certificate_is_not_believed() {
    let origin = Origin::ok().await;
    let mut stranger = Origin::ok().await;
    stranger.ca = origin.ca.clone();
    let program = Program::before(&stranger, TARGET).await;
    let mut client = Client::intercepted(&program, "api.test", Proto::Http1).await;
    let response = client.get("/").await;
    assert_eq!(response.status(), 502);
    assert!(
        response.headers()["proxy-status"]
            .to_str()
            .unwrap()
            .contains("tls_certificate_error")
    );
    assert_eq!(stranger.arrivals.count(), 0);
}
