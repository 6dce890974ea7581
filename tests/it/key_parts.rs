//! Keys of limits by host, client address, path segment, and by several parts, in HTTP/1 and HTTP/2.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::json;
use tokio::net::TcpSocket;

use crate::harness::buffers::call;
use crate::harness::{Client, Origin, Program, Proto};

const BOTH: [Proto; 2] = [Proto::Http1, Proto::Http2];

/// Returns a target with one limit of one request per hour and key.
fn keyed(key: &str) -> String {
    format!(
        "targets:\n  - name: api\n    hosts: [plain.test, api.test, other.test]\n    max_wait: 0s\n    \
         limits: [{{ name: one, rate: \"1/1h\", burst: 1, key: {key} }}]\n\
         routes: [{{ host: r.localhost, to: \"http://plain.test\" }}]\n"
    )
}

/// Sends a GET with these fields and returns its status.
async fn sent(client: &mut Client, uri: &str, fields: &[(&str, &str)]) -> u16 {
    let mut request = client.request("GET", uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::default()).unwrap();
    client.ask(request).await.status().as_u16()
}

/// Each host has its own schedule, and every HTTP version and ingress mode counts in the same one.
#[tokio::test(flavor = "multi_thread")]
async fn p7_signals_hosts_count_apart_and_http_versions_together() {
    let origin = Origin::ok().await;
    for [first, second] in [BOTH, [Proto::Http2, Proto::Http1]] {
        let program = Program::before(&origin, &keyed("host")).await;
        for host in ["api.test", "other.test"] {
            let mut client = Client::intercepted(&program, host, first).await;
            assert_eq!(get(&mut client, first, host).await, 200, "{host} {first:?}");
            let mut client = Client::intercepted(&program, host, second).await;
            assert_eq!(
                get(&mut client, second, host).await,
                429,
                "{host} {second:?}"
            );
        }
        let mut client = Client::to(program.listen, first).await;
        assert_eq!(sent(&mut client, "http://PLAIN.test/a", &[]).await, 200);
        assert_eq!(sent(&mut client, "http://plain.test/b", &[]).await, 429);
        let mut client = Client::to(program.listen, second).await;
        assert_eq!(sent(&mut client, "http://plain.TEST:80/c", &[]).await, 429);
        let mut route = Client::to(program.listen, Proto::Http2).await;
        assert_eq!(sent(&mut route, "http://r.localhost/", &[]).await, 429);
    }
}

async fn get(client: &mut Client, proto: Proto, host: &str) -> u16 {
    let request = match proto {
        Proto::Http1 => Request::get("/").header("host", host),
        Proto::Http2 => Request::get(format!("https://{host}/")),
    };
    let request = request.body(Full::<Bytes>::default()).unwrap();
    client.ask(request).await.status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_isolation_client_addresses_count_apart() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, &keyed("client_ip")).await;
    for proto in BOTH {
        for (address, first) in [
            ("127.0.0.2:0", 200),
            ("127.0.0.3:0", 200),
            ("127.0.0.2:0", 429),
        ] {
            let first = if proto == Proto::Http1 { first } else { 429 };
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(address.parse::<SocketAddr>().unwrap()).unwrap();
            let stream = socket.connect(program.listen).await.unwrap();
            let mut client = Client::over(stream, proto).await;
            let status = sent(&mut client, "http://plain.test/", &[]).await;
            assert_eq!(status, first, "{address} {proto:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_a_segment_of_the_path_counts_in_every_spelling() {
    let origin = Origin::ok().await;
    for proto in BOTH {
        let program = Program::before(&origin, &keyed("\"path:2\"")).await;
        let mut client = Client::to(program.listen, proto).await;
        for (path, expected) in [
            ("/v1/a/x", 200),
            ("/v2//%61", 429),
            ("/v1/z/../a?y", 429),
            ("/v1/b", 200),
            ("/v1/a%2Fb", 200),
            ("/v1", 200),
            ("/", 429),
            ("/v9/", 429),
        ] {
            let uri = format!("http://plain.test{path}");
            let status = sent(&mut client, &uri, &[]).await;
            assert_eq!(status, expected, "{path} {proto:?}");
        }
    }
}

/// The parts of a key do not run into each other, and a call of `acquire` names them in order.
#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_keys_of_two_parts_count_each_pair() {
    let origin = Origin::ok().await;
    for proto in BOTH {
        let program = Program::before(&origin, &keyed("[\"path:1\", \"header:x-k\"]")).await;
        let mut client = Client::to(program.listen, proto).await;
        for (path, key, expected) in [
            ("/a", "bc", 200),
            ("/ab", "c", 200),
            ("/a%7Cb", "c", 200),
            ("/a", "b|c", 200),
            ("/a", "bc", 429),
            ("/ab", "c", 429),
            ("/a%7Cb", "c", 429),
            ("/a", "b|c", 429),
        ] {
            let uri = format!("http://plain.test{path}");
            let status = sent(&mut client, &uri, &[("x-k", key)]).await;
            assert_eq!(status, expected, "{path} {key} {proto:?}");
        }
        assert_eq!(sent(&mut client, "http://plain.test/a", &[]).await, 200);
        for (key, expected) in [
            (json!(["a", "bc"]), 429),
            (json!(["a", "new"]), 200),
            (json!(["a", "new"]), 429),
            (json!("a"), 422),
            (json!(["a"]), 422),
        ] {
            let body = json!({ "key": key });
            let (status, told) = call(&program, "POST", "/v1/targets/api/acquire", &body).await;
            assert_eq!(status, expected, "{key}: {told}");
        }
    }
}
