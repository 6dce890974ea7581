//! Clients that origins know by their connection or by a certificate (P10), and the parent proxy.

use std::sync::atomic::Ordering;

use http_body_util::Full;
use tokio::io::AsyncWriteExt as _;

use crate::connections::{post, reason, target};
use crate::harness::scripted::{Accepted, read_head};
use crate::harness::{Client, Identity, Origin, Program, Proto, reply};

/// Answers like a server with connection-bound authentication: the third message of `scheme`
/// authenticates the connection.
async fn handshake_auth(scheme: &'static str, accepted: Accepted) {
    let mut stream = accepted.stream;
    let mut user = None;
    while let Some(head) = read_head(&mut stream).await {
        let field = |name: &str| {
            let lines = head.lines();
            let found = lines.filter_map(|line| line.split_once(": "));
            let mut found = found.filter(|(known, _)| known.eq_ignore_ascii_case(name));
            found.next().map(|(_, value)| value.to_owned())
        };
        let sent = field("authorization")
            .and_then(|sent| sent.strip_prefix(scheme).map(|rest| rest.trim().to_owned()));
        let challenge = match sent.as_deref() {
            Some("one") => Some(format!("{scheme} two")),
            Some(name) => {
                user = Some(name.to_owned());
                None
            }
            None if user.is_none() => Some(scheme.to_owned()),
            None => None,
        };
        let response = match challenge {
            Some(challenge) => format!(
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n\r\n"
            ),
            None => {
                let body = format!("hello {}", user.as_deref().unwrap());
                let length = body.len();
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")
            }
        };
        stream.write_all(response.as_bytes()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_a_connection_that_authenticated_one_client_serves_no_other() {
    for scheme in ["NTLM", "Negotiate", "negotiate"] {
        let script = move |accepted| handshake_auth(scheme, accepted);
        let (origin, _) = Origin::scripted(&[], script).await;
        let program = Program::before(&origin, &target("rate: \"1000/1s\"", "")).await;
        let ask = async |client: &mut Client, sent: Option<&str>| {
            let mut request = client.request("GET", "http://plain.test/");
            if let Some(sent) = sent {
                request = request.header("authorization", format!("{scheme} {sent}"));
            }
            let response = client.ask(request.body(Full::default()).unwrap()).await;
            let body = String::from_utf8(response.body().to_vec()).unwrap();
            (response.status().as_u16(), body)
        };
        let (mut alice, mut bob) = (Client::plain(&program).await, Client::plain(&program).await);
        assert_eq!(ask(&mut alice, None).await.0, 401, "{scheme}");
        assert_eq!(ask(&mut alice, Some("one")).await.0, 401, "{scheme}");
        let hello = (200, "hello alice".to_owned());
        assert_eq!(ask(&mut alice, Some("alice")).await, hello, "{scheme}");
        for _ in 0..3 {
            assert_eq!(
                ask(&mut bob, None).await.0,
                401,
                "{scheme}: bob must not be alice"
            );
            assert_eq!(ask(&mut alice, None).await, hello, "{scheme}");
        }
        drop(alice);
        let mut carol = Client::plain(&program).await;
        assert_eq!(
            ask(&mut carol, None).await.0,
            401,
            "{scheme}: carol must not be alice"
        );
    }
}

const ONLY_13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
const ONLY_12: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];

#[tokio::test(flavor = "multi_thread")]
async fn p10_origins_that_require_a_client_certificate_get_the_configured_one() {
    let us = Identity::new(vec!["us.test".to_owned()]);
    let stranger = Identity::new(vec!["us.test".to_owned()]);
    for versions in [ONLY_13, ONLY_12] {
        let origin = Origin::with(|_, _| async { reply(200, "ok") });
        let origin = origin.client_ca(&us.ca).versions(versions).start().await;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        for (name, text) in [
            ("us.pem", &us.cert),
            ("us.key", &us.key()),
            ("stranger.pem", &stranger.cert),
            ("stranger.key", &stranger.key()),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let certs = |hosts: &str, name: &str| {
            let (cert, key) = (path(&format!("{name}.pem")), path(&format!("{name}.key")));
            format!(
                "  client_certs: [{{ hosts: [\"{hosts}\"], cert: \"{cert}\", key: \"{key}\" }}]"
            )
        };
        for (egress, expected) in [
            (certs("api.test", "us"), "200"),
            (certs("*.test", "us"), "200"),
            (certs("other.test", "us"), "origin-client-certificate"),
            (certs("api.test", "stranger"), "origin-client-certificate"),
            (String::new(), "origin-client-certificate"),
        ] {
            let limit = target("rate: \"100/1s\"", "");
            let program = Program::with_egress(&origin, &limit, &egress).await;
            let before = origin.arrivals.connections.load(Ordering::SeqCst);
            for (proto, method) in [(Proto::Http1, "GET"), (Proto::Http2, "POST")] {
                let mut client = Client::intercepted(&program, "api.test", proto).await;
                let request = client.request(method, "/").body(Full::default()).unwrap();
                let response = client.ask(request).await;
                let found = match response.status().as_u16() {
                    200 => "200".to_owned(),
                    _ => reason(&response),
                };
                assert_eq!(found, expected, "{egress} {proto:?} {response:?}");
            }
            let dials = origin.arrivals.connections.load(Ordering::SeqCst) - before;
            assert!(dials <= 2, "{dials} dials for two requests: {egress}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_proxy_in_trouble_is_asked_again_and_a_refusal_is_not() {
    let troubles: [(&str, u16, usize); 4] = [
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", 200, 2),
        ("", 200, 2),
        ("HTTP/1.1 429 Too Many Requests\r\n\r\n", 200, 2),
        ("HTTP/1.1 403 Forbidden\r\n\r\n", 502, 1),
    ];
    for (first, expected, dials) in troubles {
        let script = move |accepted: Accepted| async move {
            let mut stream = accepted.stream;
            read_head(&mut stream).await.unwrap();
            let answer = match accepted.number {
                0 => first,
                _ => "HTTP/1.1 200 OK\r\n\r\n",
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
            if accepted.number == 0 {
                return;
            }
            let mut stream = accepted.tls.accept(stream).await.unwrap();
            while read_head(&mut stream).await.is_some() {
                let response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                stream.write_all(response).await.unwrap();
            }
        };
        let (origin, accepted) = Origin::scripted(&[b"http/1.1"], script).await;
        let parent = format!("  upstream_proxy: \"http://{}\"", origin.plain);
        let limit = target("rate: \"100/1s\"", "");
        let program = Program::with_egress(&origin, &limit, &parent).await;
        let mut client = Client::intercepted(&program, "api.test", Proto::Http1).await;
        let response = client.ask(post(&client, "/")).await;
        assert_eq!(response.status(), expected, "{first:?}");
        assert_eq!(accepted.load(Ordering::SeqCst), dials, "{first:?}");
    }
}
