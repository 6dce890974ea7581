//! Table B of the checklist, rows B1 to B9: the text of the request-target and of `Host` (RFC 9112
//! section 3.2).

use super::{Answer, Mode, SPLITS, Setup};

/// An absolute-form whose `Host` differs: the target applies, and `Host` leaves as the target has it.
///
/// RFC 9112 section 3.2.2.
#[tokio::test(flavor = "multi_thread")]
async fn b01_host_differs_from_the_absolute_form() {
    let setup = Setup::new().await;
    for host in ["other.example", "api.test", "plain.test:8080", "127.0.0.1"] {
        for (mode, url) in [
            (Mode::Plain, "http://plain.test"),
            (Mode::Intercepted, "https://api.test"),
            (Mode::Intercepted, "https://API.test.:443"),
        ] {
            let template =
                format!("GET {url}/x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            for message in setup.passes_in(&[mode], &template).await {
                assert_eq!(message.target, "/x");
            }
        }
    }
}

/// HTTP/1.1 without `Host`: refused with 400.
///
/// RFC 9112 section 3.2.
#[tokio::test(flavor = "multi_thread")]
async fn b02_no_host() {
    let setup = Setup::new().await;
    for template in [
        "GET {t}/ HTTP/1.1\r\n\r\n",
        "GET {t}/ HTTP/1.1\r\nX-Host: {h}\r\n\r\n",
        "POST {t}/ HTTP/1.1\r\nContent-Length: 1\r\n\r\na",
    ] {
        setup.refuses(template).await;
    }
    setup.nothing_left().await;
}

/// Two `Host` lines: refused with 400, even if both are equal.
///
/// RFC 9112 section 3.2.
#[tokio::test(flavor = "multi_thread")]
async fn b03_two_hosts() {
    let setup = Setup::new().await;
    for second in ["{h}", "other.example", ""] {
        setup
            .refuses(&format!(
                "GET {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\nHost: {second}\r\n\r\n"
            ))
            .await;
    }
    setup
        .refuses("GET {t}/ HTTP/1.1\r\nhost: a.test\r\nX: 1\r\nHost: {h}\r\n\r\n")
        .await;
    setup.nothing_left().await;
}

/// `Host` that is empty, or has userinfo, a path or a bad port: refused with 400.
///
/// RFC 9112 section 3.2, RFC 9110 section 7.2.
#[tokio::test(flavor = "multi_thread")]
async fn b04_hosts_that_are_none() {
    let setup = Setup::new().await;
    for host in [
        "",
        "a@b",
        "a/../b",
        "{h}:http",
        "{h}:",
        "{h}:0",
        "{h}:65536",
        "a,b",
        "a b",
        "{h}#x",
        "[::1",
    ] {
        setup
            .refuses(&format!("GET {{t}}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"))
            .await;
    }
    setup.nothing_left().await;
}

/// Userinfo in the target, in a CONNECT or in `:authority`: refused with 400, and neither the answer
/// nor the log shows it.
///
/// RFC 9110 section 4.2.4.
#[tokio::test(flavor = "multi_thread")]
async fn b05_userinfo() {
    let setup = Setup::new().await;
    for userinfo in ["user:sesame", "sesame", ":sesame", "a%40sesame"] {
        for (mode, line) in [
            (Mode::Plain, format!("GET http://{userinfo}@plain.test/")),
            (Mode::Plain, format!("CONNECT {userinfo}@api.test:443")),
            (
                Mode::Intercepted,
                format!("GET https://{userinfo}@api.test/"),
            ),
            (Mode::Routed, format!("GET http://{userinfo}@plain.test/")),
        ] {
            let template = format!("{line} HTTP/1.1\r\nHost: {{h}}\r\n\r\n");
            setup
                .refuses_in(&[mode], &template, 400, "malformed-request")
                .await;
            let answer = setup.ask(mode, SPLITS[0], &template).await;
            assert!(!String::from_utf8_lossy(&answer).contains("sesame"));
        }
        let request = |mode: Mode| {
            let mut fields = mode.pseudo("GET", "/");
            fields[2].1 = format!("{userinfo}@{}", mode.host());
            (fields, None)
        };
        setup
            .each_http2(request, |answer, left| {
                assert!(answer.is_malformed() && left.is_empty(), "{answer:?}");
            })
            .await;
    }
    setup.nothing_left().await;
    let logged = format!("{:?}{:?}", setup.program.records(), setup.program.events());
    assert!(!logged.contains("sesame"), "{logged}");
}

/// A scheme other than `http` and `https`: refused with 400.
///
/// RFC 9110 section 4.2.
#[tokio::test(flavor = "multi_thread")]
async fn b06_schemes() {
    let setup = Setup::new().await;
    for scheme in ["ftp", "file", "ws", "gopher", "httpx"] {
        setup
            .refuses(&format!(
                "GET {scheme}://{{h}}/ HTTP/1.1\r\nHost: {{h}}\r\n\r\n"
            ))
            .await;
        let request = |mode: Mode| {
            let mut fields = mode.pseudo("GET", "/");
            scheme.clone_into(&mut fields[1].1);
            (fields, None)
        };
        setup
            .each_http2(request, |answer, left| {
                assert!(answer.is_malformed() && left.is_empty(), "{answer:?}");
            })
            .await;
    }
    setup.nothing_left().await;
}

/// `https` in absolute-form on the proxy's port: sent over TLS. `http` is sent without TLS.
///
/// RFC 9110 section 4.2.2.
#[tokio::test(flavor = "multi_thread")]
async fn b07_https_in_absolute_form() {
    let setup = Setup::new().await;
    for (url, host, tls) in [
        ("https://api.test/", "api.test", true),
        ("https://api.test:443/", "api.test", true),
        ("HTTPS://API.TEST/", "api.test", true),
        ("http://plain.test/", "plain.test", false),
    ] {
        let template = format!("GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        for split in SPLITS {
            let answer = Answer::one(&setup.ask(Mode::Plain, split, &template).await);
            assert_eq!(answer.status(), 200, "{answer:?}");
            let message = setup.recorder.take().remove(0);
            assert_eq!(
                (message.field("host"), message.tls),
                (host.to_owned(), tls),
                "{url}"
            );
        }
    }
}

/// Port 0, a port beyond 65535, or an empty port: refused with 400.
///
/// RFC 3986 section 3.2.3.
#[tokio::test(flavor = "multi_thread")]
async fn b08_ports() {
    let setup = Setup::new().await;
    for port in ["0", "99999", "", "65536", "-1", "8o"] {
        for template in [
            format!("GET http://{{h}}:{port}/ HTTP/1.1\r\nHost: {{h}}\r\n\r\n"),
            format!("GET {{t}}/ HTTP/1.1\r\nHost: {{h}}:{port}\r\n\r\n"),
        ] {
            setup.refuses(&template).await;
        }
        let request = |mode: Mode| {
            let mut fields = mode.pseudo("GET", "/");
            fields[2].1 = format!("{}:{port}", mode.host());
            (fields, None)
        };
        setup
            .each_http2(request, |answer, left| {
                assert!(
                    answer.is_malformed() && left.is_empty(),
                    "{port}: {answer:?}"
                );
            })
            .await;
    }
    setup.nothing_left().await;
}

/// A fragment in the target: dropped.
///
/// RFC 9112 section 3.2.
#[tokio::test(flavor = "multi_thread")]
async fn b09_a_fragment() {
    let setup = Setup::new().await;
    for (path, left) in [("/#f", "/"), ("/p?q#f", "/p?q"), ("/p#f?q", "/p")] {
        let template =
            format!("GET {{t}}{path} HTTP/1.1\r\nHost: {{h}}\r\nConnection: close\r\n\r\n");
        for message in setup.passes(&template).await {
            assert_eq!(message.target, left);
        }
    }
    for (target, left) in [
        ("http://plain.test#f", "/"),
        ("http://plain.test", "/"),
        ("http://plain.test?a=b#c", "/?a=b"),
    ] {
        let template = format!("GET {target} HTTP/1.1\r\nHost: {{h}}\r\nConnection: close\r\n\r\n");
        for message in setup.passes_in(&[Mode::Plain], &template).await {
            assert_eq!(message.target, left);
        }
    }
}

/// A target that is neither absolute-form, origin-form nor `*`: refused with 400.
///
/// RFC 9112 section 3.2.
#[tokio::test(flavor = "multi_thread")]
async fn b09_a_target_of_no_form() {
    let setup = Setup::new().await;
    for target in ["x", "x/y", "?x", "*x", "*", "http://"] {
        setup
            .refuses(&format!("GET {target} HTTP/1.1\r\nHost: {{h}}\r\n\r\n"))
            .await;
    }
    for (method, path) in [
        ("GET", "#x"),
        ("GET", "*"),
        ("POST", "*"),
        ("GET", "x"),
        ("GET", "?x"),
        ("OPTIONS", "*x"),
        ("GET", ""),
    ] {
        setup
            .each_http2(
                |mode| (mode.pseudo(method, path), None),
                |answer, left| {
                    assert!(
                        answer.is_malformed() && left.is_empty(),
                        "{path}: {answer:?}"
                    );
                },
            )
            .await;
    }
    setup.nothing_left().await;
}
