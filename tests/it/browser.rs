//! Web pages cannot reach the API, routes or the admin port: the `Host` guard, requests of other
//! sites, content types, and stored responses that a browser shows.

use std::net::SocketAddr;

use http::Request;
use http_body_util::Full;
use serde_json::json;

use crate::harness::buffers::{call, call_with, made, until};
use crate::harness::doors::{TARGET, doors};
use crate::harness::{Client, Origin, Program, Proto, bytes_body, free_port, raw, reply};

/// Starts a program that listens at `listen`, with this section `admin` and further keys.
async fn listening(origin: &Origin, listen: &str, admin: &str, more: &str) -> Program {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "listen: {listen}\nadmin: {admin}\ndata_dir: {}/data\n\
         egress: {{ allow: [\"127.0.0.1\"], resolve: {{ \"plain.test\": \"{}\" }} }}\n{TARGET}{more}",
        dir.path().display(),
        origin.plain,
    );
    Program::start(dir, &config).await
}

const EVIL: (&str, &str) = ("origin", "https://evil.example");
const CROSS: (&str, &str) = ("sec-fetch-site", "cross-site");
const JSON: (&str, &str) = ("content-type", "application/json");
const TEXT: (&str, &str) = ("content-type", "text/plain");

/// Kind of a page's request, true if the request is a change, and the fields of the browser.
type PageRequest = (&'static str, bool, &'static [(&'static str, &'static str)]);

/// Requests that browsers send for pages of other sites.
const PAGES: &[PageRequest] = &[
    ("simple POST", true, &[EVIL, CROSS, TEXT]),
    ("simple POST of an old browser", true, &[EVIL, TEXT]),
    ("simple POST without a type", true, &[EVIL, CROSS]),
    ("POST of JSON", true, &[EVIL, CROSS, JSON]),
    (
        "navigation",
        false,
        &[CROSS, ("sec-fetch-mode", "navigate")],
    ),
    ("image", false, &[CROSS, ("sec-fetch-mode", "no-cors")]),
    ("fetch with CORS", false, &[EVIL, CROSS]),
    (
        "form of a sandbox",
        true,
        &[("origin", "null"), CROSS, JSON],
    ),
    (
        "sandbox of an old browser",
        true,
        &[("origin", "null"), JSON],
    ),
    ("GET of a sandbox", false, &[("origin", "null")]),
    (
        "navigation of a neighbour",
        false,
        &[("sec-fetch-site", "same-site")],
    ),
    (
        "POST of a neighbour",
        true,
        &[
            ("origin", "http://localhost:1"),
            ("sec-fetch-site", "same-site"),
            JSON,
        ],
    ),
    (
        "old neighbour",
        true,
        &[("origin", "http://127.0.0.1:1"), JSON],
    ),
    ("other scheme", true, &[("origin", "https://OWN"), JSON]),
    (
        "extension",
        true,
        &[
            ("origin", "chrome-extension://a"),
            ("sec-fetch-site", "none"),
            JSON,
        ],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_sites_are_refused_at_each_door() {
    let origin = Origin::ok().await;
    let (program, doors) = doors(&origin).await;
    for door in &doors {
        for &proto in door.protocols() {
            for (kind, changes, fields) in PAGES {
                let call = match changes {
                    true => door.changes,
                    false => ("GET", door.reads, ""),
                };
                let response = door.ask(proto, call, &door.own, fields).await;
                let text = String::from_utf8_lossy(response.body());
                let case = format!("{} {proto:?} {kind}: {text}", door.name);
                assert_eq!(response.status(), 403, "{case}");
                assert!(text.contains("cross-site"), "{case}");
                assert_eq!(
                    response.headers()["x-content-type-options"],
                    "nosniff",
                    "{case}"
                );
            }
            let preflight = [EVIL, ("access-control-request-method", "PATCH")];
            let call = ("OPTIONS", door.changes.1, "");
            let response = door.ask(proto, call, &door.own, &preflight).await;
            assert_eq!(response.status(), 403, "{} {proto:?}", door.name);
            let opened = response.headers().keys();
            let mut opened = opened.filter(|name| name.as_str().starts_with("access-control-"));
            assert_eq!(opened.next(), None, "{} {proto:?}", door.name);
        }
    }
    assert_eq!(origin.arrivals.count(), 0);
    assert!(!program.admin_get("/v1/status").await.1.contains("burst 3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebound_name_is_refused_at_each_door() {
    let origin = Origin::ok().await;
    let (program, doors) = doors(&origin).await;
    for door in &doors {
        let port = door.address.port();
        let names = [
            "evil.example",
            "localhost.evil.example",
            "10.0.0.1",
            "0.0.0.0",
            "[fe80::1]",
        ];
        for name in names {
            for host in [name.to_owned(), format!("{name}:{port}")] {
                for &proto in door.protocols() {
                    // HTTP/2 to the proxy's port is a request to the forward proxy, and no target
                    // has this host.
                    let forward = proto == Proto::Http2 && door.address == program.listen;
                    let own = format!("http://{host}");
                    let page = [
                        ("origin", own.as_str()),
                        ("sec-fetch-site", "same-origin"),
                        JSON,
                    ];
                    for (call, fields) in [
                        (("GET", door.reads, ""), &[][..]),
                        (door.changes, &page[..]),
                    ] {
                        let response = door.ask(proto, call, &host, fields).await;
                        let text = String::from_utf8_lossy(response.body());
                        let case = format!("{} {proto:?} {host}: {text}", door.name);
                        let expected = if forward { 403 } else { 421 };
                        assert_eq!(response.status(), expected, "{case}");
                        let refused = ["host-not-allowed", "port-not-allowed"];
                        let refused = refused.iter().any(|reason| text.contains(reason));
                        assert!(!forward || refused, "{case}");
                    }
                }
            }
        }
        // The request-target counts, not `Host` (RFC 9112 section 3.2.2).
        if door.address != program.listen {
            let request = format!(
                "GET http://evil.example{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                door.reads
            );
            let answer = raw(door.address, &request).await;
            assert!(
                answer.starts_with("HTTP/1.1 421"),
                "{}: {answer}",
                door.name
            );
        }
    }
    assert_eq!(origin.arrivals.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_users_and_own_pages_pass_at_each_door() {
    let origin = Origin::ok().await;
    let (program, doors) = doors(&origin).await;
    for door in &doors {
        let port = door.address.port();
        let mut hosts = vec![door.own.clone()];
        if door.name != "host route" {
            let more = ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"];
            hosts.extend(more.map(|host| format!("{host}:{port}")));
        }
        for &proto in door.protocols() {
            for host in &hosts {
                let own = format!("http://{host}");
                let site = |site| ("sec-fetch-site", site);
                let origin = ("origin", own.as_str());
                for (call, fields) in [
                    (("GET", door.reads, ""), &[][..]),
                    (("GET", door.reads, ""), &[site("none")]),
                    (("GET", door.reads, ""), &[site("same-origin")]),
                    (door.changes, &[JSON]),
                    (door.changes, &[JSON, origin]),
                    (door.changes, &[JSON, origin, site("same-origin")]),
                ] {
                    let response = door.ask(proto, call, host, fields).await;
                    let text = String::from_utf8_lossy(response.body());
                    let case = format!("{} {proto:?} {host} {fields:?}: {text}", door.name);
                    assert_eq!(response.status(), 200, "{case}");
                }
            }
        }
    }
    // Six calls by two protocols, with five hosts of the port and one of the host.
    assert_eq!(origin.arrivals.count(), 6 * 2 * (5 + 1));
    for path in ["/healthz", "/readyz"] {
        for host in ["evil.example", "10.0.0.7:8081", "x"] {
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nSec-Fetch-Site: cross-site\r\nConnection: close\r\n\r\n"
            );
            let answer = raw(program.admin, &request).await;
            assert!(
                answer.starts_with("HTTP/1.1 200"),
                "{path} {host}: {answer}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listed_hosts_and_the_public_host_pass() {
    let origin = Origin::ok().await;
    let port = free_port();
    let config = format!(
        "hosts: [box.internal, \"10.1.2.3\"]\npublic_url: http://outpace.public:80\n\
         routes:\n  - {{ listen: \"127.0.0.1:{port}\", hosts: [\"[fd00::1]\"], to: \"http://plain.test\" }}\n"
    );
    let admin = "{ listen: \"127.0.0.1:0\", hosts: [Ops.Internal] }";
    let program = listening(&origin, "127.0.0.1:0", admin, &config).await;
    let route: SocketAddr = ([127, 0, 0, 1], port).into();
    for (address, path, host, status) in [
        (program.listen, "/v1/openapi.json", "box.internal", 200),
        (program.listen, "/v1/openapi.json", "10.1.2.3:8080", 200),
        (program.listen, "/v1/openapi.json", "outpace.public", 200),
        (program.listen, "/v1/openapi.json", "ops.internal", 421),
        (program.listen, "/v1/openapi.json", "[fd00::1]", 421),
        (program.admin, "/metrics", "ops.internal:1", 200),
        (program.admin, "/metrics", "outpace.public", 200),
        (program.admin, "/metrics", "box.internal", 421),
        (route, "/r", "[fd00::1]", 200),
        (route, "/r", "plain.test", 200),
        (route, "/r", "outpace.public", 200),
        (route, "/r", "ops.internal", 421),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = raw(address, &request).await;
        let expected = format!("HTTP/1.1 {status}");
        assert!(answer.starts_with(&expected), "{host} {path}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_credentials_open_any_name_and_nothing_else_does() {
    let origin = Origin::ok().await;
    let clients = "clients: [{ name: app, token: s3cret-s3cret-s3cret }]\n";
    for (more, listen, status) in [
        (clients, "0.0.0.0:0", 200),
        (clients, "127.0.0.1:0", 421),
        ("allow_open: true\n", "0.0.0.0:0", 421),
    ] {
        let admin = "{ listen: \"127.0.0.1:0\" }";
        let program = listening(&origin, listen, admin, more).await;
        let address: SocketAddr = ([127, 0, 0, 1], program.listen.port()).into();
        for host in ["outpace.egress.svc", "10.0.0.7:8080", "evil.example"] {
            let ask = |fields: &str| {
                format!(
                    "GET /v1/openapi.json HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n\r\n"
                )
            };
            let token = "Outpace-Client-Token: app:s3cret-s3cret-s3cret\r\n";
            let answer = raw(address, &ask(token)).await;
            let expected = format!("HTTP/1.1 {status}");
            assert!(answer.starts_with(&expected), "{listen} {host}: {answer}");
            let page = format!("{token}Origin: https://other.example\r\n");
            let answer = raw(address, &ask(&page)).await;
            assert!(
                !answer.starts_with("HTTP/1.1 200"),
                "{listen} {host}: {answer}"
            );
            let nothing = raw(address, &ask("")).await;
            assert!(
                !nothing.starts_with("HTTP/1.1 200"),
                "{listen} {host}: {nothing}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_need_a_type_that_no_form_has() {
    let origin = Origin::ok().await;
    let (program, doors) = doors(&origin).await;
    made(&program, &json!({})).await;
    let push = ("POST", "/buffers/b/items", r#"{"body":"x"}"#);
    let batch = (
        "POST",
        "/buffers/b/batch",
        "{\"body\":\"1\"}\n{\"body\":\"2\"}",
    );
    let create = (
        "POST",
        "/buffers",
        r#"{"name":"c","url":"http://plain.test/"}"#,
    );
    let (api, admin) = (&doors[0], &doors[3]);
    let calls = [(api, push), (api, batch), (api, create), (api, api.changes)];
    let refused = [
        &[][..],
        &[TEXT],
        &[("content-type", "TEXT/plain;charset=utf-8")],
        &[("content-type", "application/x-www-form-urlencoded")],
        &[("content-type", "multipart/form-data; boundary=b")],
        &[("content-type", "")],
        &[JSON, TEXT],
    ];
    for (door, call) in calls.into_iter().chain([(admin, admin.changes)]) {
        for fields in refused {
            let response = door.ask(Proto::Http1, call, &door.own, fields).await;
            let text = String::from_utf8_lossy(response.body());
            let case = format!("{} {} {fields:?}: {text}", door.name, call.1);
            assert_eq!(response.status(), 415, "{case}");
            assert!(text.contains("application/json"), "{case}");
        }
    }
    let (_, known) = call(&program, "GET", "/buffers", "").await;
    assert_eq!(known["buffers"].as_array().unwrap().len(), 1, "{known}");
    let plain = ("content-type", "application/octet-stream");
    let lines = ("content-type", "application/x-ndjson");
    let charset = ("content-type", "Application/JSON; charset=utf-8");
    for (call, kind, status) in [
        (push, JSON, 201),
        (push, plain, 201),
        (push, charset, 201),
        (batch, lines, 201),
        (batch, JSON, 201),
        (("POST", "/buffers/b/pause", ""), TEXT, 200),
        (("POST", "/buffers/b/resume", ""), ("accept", "*/*"), 200),
    ] {
        let response = api.ask(Proto::Http1, call, &api.own, &[kind]).await;
        let text = String::from_utf8_lossy(response.body());
        assert_eq!(response.status(), status, "{} {kind:?}: {text}", call.1);
    }
    let chunked = |body: &str| {
        format!(
            "POST /buffers/b/pause HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{body}"
        )
    };
    let empty = raw(program.listen, &chunked("0\r\n\r\n")).await;
    assert!(empty.starts_with("HTTP/1.1 200"), "{empty}");
    let filled = raw(program.listen, &chunked("2\r\n{}\r\n0\r\n\r\n")).await;
    assert!(filled.starts_with("HTTP/1.1 415"), "{filled}");
}

/// Starts an origin whose every response is a page with a script, and with fields for a browser.
async fn page_origin(html: &'static str) -> Origin {
    Origin::with(move |_, _| async move {
        let mut page = reply(200, "");
        *page.body_mut() = bytes_body(html);
        for (name, value) in [
            ("content-type", "text/html"),
            ("content-disposition", "inline"),
            ("content-security-policy", "script-src *"),
            ("set-cookie", "session=evil"),
            ("clear-site-data", "\"*\""),
            ("strict-transport-security", "max-age=31536000"),
            ("refresh", "0; url=/buffers"),
            ("link", "</x.css>; rel=preload"),
            ("access-control-allow-origin", "*"),
            ("x-request-id", "r-7"),
        ] {
            page.headers_mut().append(name, value.parse().unwrap());
        }
        page
    })
    .start()
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_page_is_isolated_from_the_api() {
    let origin = page_origin("<script>fetch('/buffers')</script>").await;
    let (program, _) = doors(&origin).await;
    made(&program, &json!({})).await;
    for kind in ["1", "2", "3"] {
        let (status, item) = call(
            &program,
            "POST",
            "/buffers/b/items",
            json!({ "body": kind }),
        )
        .await;
        assert_eq!(status, 201, "{item}");
    }
    until(&program, "delivered", 3).await;
    let (_, items) = call(&program, "GET", "/buffers/b/items", "").await;
    for item in items["items"].as_array().unwrap() {
        let path = format!("/items/{}/response", item["id"].as_str().unwrap());
        let mut client = Client::to(program.listen, Proto::Http1).await;
        let request = Request::get(&path).header("host", "localhost");
        let replay = client.ask(request.body(Full::default()).unwrap()).await;
        let field = |name: &str| {
            replay
                .headers()
                .get(name)
                .map(|value| value.to_str().unwrap())
        };
        assert_eq!(replay.status(), 200);
        assert_eq!(
            field("content-security-policy"),
            Some("sandbox; default-src 'none'")
        );
        assert_eq!(field("x-content-type-options"), Some("nosniff"));
        assert_eq!(field("content-disposition"), Some("attachment"));
        assert_eq!(field("content-type"), Some("text/html"));
        assert_eq!(field("x-request-id"), Some("r-7"));
        assert_eq!(field("outpace-replay"), Some("true"));
        for name in [
            "set-cookie",
            "clear-site-data",
            "strict-transport-security",
            "refresh",
            "link",
            "access-control-allow-origin",
        ] {
            assert_eq!(field(name), None, "{name}");
        }
        // A page of another site cannot even navigate to it.
        let (status, _) = call_with(&program, "GET", &path, "", &[CROSS]).await;
        assert_eq!(status, 403);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_responses_of_outpace_forbid_sniffing() {
    let origin = Origin::ok().await;
    let (_program, doors) = doors(&origin).await;
    for (door, path, status) in [
        (&doors[0], "/buffers", 200),
        (&doors[0], "/v1/openapi.json", 200),
        (&doors[0], "/items/none/response", 404),
        (&doors[3], "/v1/status", 200),
        (&doors[3], "/metrics", 200),
        (&doors[3], "/healthz", 200),
        (&doors[3], "/none", 404),
    ] {
        let response = door
            .ask(Proto::Http1, ("GET", path, ""), &door.own, &[])
            .await;
        assert_eq!(response.status(), status, "{path}");
        assert_eq!(
            response.headers()["x-content-type-options"],
            "nosniff",
            "{path}"
        );
    }
}
