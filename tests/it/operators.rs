//! P10 and S13: operators prove by tokens who they are, roles bound what they may do, and guessing
//! is counted, logged and slow.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use crate::harness::{Origin, Program, free_port, program, raw};

const METRICS: &str = "metrics-metrics-metrics";
const READ: &str = "read-read-read-read-read";
/// Digest of [`READ`] by SHA-256, in hexadecimal digits.
const READ_SHA256: &str = "8b700b749b54882f6983fa265054c6bcd5a0b849bf2e5810c43cf3b0278539f3";
const OPERATE: &str = "operate-operate-operate";
const TARGET: &str =
    "targets: [{ name: api, hosts: [plain.test], limits: [{ name: pace, rate: \"1000/1s\" }] }]\n";
const ROLES: [(&str, u8); 3] = [(METRICS, 1), (READ, 2), (OPERATE, 3)];

/// Starts the program with these keys below `admin` and `more` at the top level.
async fn start(origin: &Origin, admin: &str, more: &str) -> Program {
    let program = Program::before(origin, &format!("{TARGET}{more}")).await;
    let config = std::fs::read_to_string(program.config_path()).unwrap();
    let plain = "admin: { listen: \"127.0.0.1:0\" }";
    let config = config.replace(
        plain,
        &format!("admin: {{ listen: \"127.0.0.1:0\"{admin} }}"),
    );
    std::fs::write(program.config_path(), config).unwrap();
    program.again().await
}

/// Sends one call and returns the status with the head and body of the response.
async fn call(address: SocketAddr, call: &str, token: Option<&str>) -> (u16, String) {
    let (method, path) = call.split_once(' ').unwrap();
    let body = match method {
        "POST" => "{}",
        "PATCH" => "{\"rate\":\"5/1s\"}",
        _ => "",
    };
    let field = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
    let text = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{}Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        field.unwrap_or_default(),
        body.len()
    );
    let answer = raw(address, &text).await;
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

/// Each call with the lowest role that it needs. 0 means that it needs no token.
const CALLS: [(&str, u8); 11] = [
    ("GET /healthz", 0),
    ("GET /readyz", 0),
    ("GET /metrics", 1),
    ("GET /v1/status", 2),
    ("HEAD /v1/status", 2),
    ("GET /v1/explain?url=http://plain.test/", 2),
    ("PATCH /v1/targets/api/limits/pace", 3),
    ("GET /v1/targets/api/blocks", 2),
    ("DELETE /v1/targets/api/limits/pace", 3),
    ("DELETE /v1/targets/api/blocks", 3),
    ("POST /v1/reload", 3),
];

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_each_call_needs_a_token_with_its_role() {
    let origin = Origin::ok().await;
    let tokens = format!(
        ", token: {OPERATE}, tokens: [{{ role: metrics, token: {METRICS} }}, {{ role: read, token_sha256: {READ_SHA256} }}]"
    );
    let clients = "clients: [{ name: app, token: client-client-client }]\n";
    let program = start(&origin, &tokens, clients).await;
    for (what, needs) in CALLS {
        for wrong in [
            None,
            Some("wrong-wrong-wrong-wrong"),
            Some("app:client-client-client"),
            Some(READ_SHA256),
            Some(""),
        ] {
            let (status, answer) = call(program.admin, what, wrong).await;
            let expected = if needs == 0 { 200 } else { 401 };
            assert_eq!(status, expected, "{what} with {wrong:?}: {answer}");
            let challenged = answer.contains("www-authenticate: Bearer");
            assert_eq!(challenged, needs > 0, "{what}: {answer}");
        }
        for (token, role) in ROLES {
            let (status, answer) = call(program.admin, what, Some(token)).await;
            let expected = if role < needs { 403 } else { 200 };
            assert_eq!(status, expected, "{what} with {token}: {answer}");
        }
    }
    // A session of `outpace run` keeps the process alive, so reading is not enough for it.
    assert_eq!(
        call(program.admin, "GET /v1/attend", Some(READ)).await.0,
        403
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_without_a_configured_token_one_is_made_for_the_command_line() {
    let origin = Origin::ok().await;
    let program = start(&origin, "", "").await;
    let path = program.path("data/admin-token");
    let token = std::fs::read_to_string(&path).unwrap();
    assert_eq!((token.trim().len(), token.len()), (64, 65));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    for (what, needs) in CALLS {
        // The metrics on loopback are open, as no token for them is configured.
        let expected = if needs < 2 { 200 } else { 401 };
        assert_eq!(call(program.admin, what, None).await.0, expected, "{what}");
        let (status, answer) = call(program.admin, what, Some(token.trim())).await;
        assert_eq!(status, 200, "{what}: {answer}");
    }
    let config = program.config_path();
    let config = config.to_str().unwrap();
    let outpace = async |arguments: &[&str]| {
        let mut command = super::harness::program();
        let output = command.args(arguments).current_dir(program.dir.path());
        output.output().await.unwrap()
    };
    for arguments in [
        ["status", "-c", config].as_slice(),
        &["reload", "-c", config],
        &["explain", "-c", config, "http://plain.test/"],
    ] {
        let output = outpace(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    // A token is sent only to the address that the data directory names.
    let url = format!("http://{}", program.admin);
    let lost = outpace(&["status", "--admin", &url]).await;
    let told = String::from_utf8_lossy(&lost.stderr).into_owned();
    assert!(
        !lost.status.success() && told.contains("admin-token"),
        "{told}"
    );
    std::fs::copy(program.config_path(), program.path("outpace.yaml")).unwrap();
    assert!(outpace(&["status", "--admin", &url]).await.status.success());
    // The token outlives a restart.
    let program = program.again().await;
    assert_eq!(
        std::fs::read_to_string(program.path("data/admin-token")).unwrap(),
        token
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_others_can_read_or_that_is_cut_stops_the_start() {
    let origin = Origin::ok().await;
    for (text, mode, told) in [
        ("0123456789abcdef0123456789abcdef\n", 0o644, "mode 0644"),
        ("0123456789abcdef0123456789abcdef\n", 0o660, "mode 0660"),
        ("012345\n", 0o600, "6 bytes"),
    ] {
        let mut running = start(&origin, "", "").await;
        let path = running.path("data/admin-token");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        running.signal("TERM");
        running.exit_code().await;
        let mut command = program();
        command
            .args(["serve", "--config"])
            .arg(running.config_path());
        let output = command.output().await.unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(73), "{error}");
        assert!(
            error.contains(told) && error.contains("remove it"),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s13_a_reload_changes_the_tokens_at_once() {
    let origin = Origin::ok().await;
    let program = start(&origin, "", "").await;
    let made = program.admin_token().unwrap();
    let whole = std::fs::read_to_string(program.config_path()).unwrap();
    let mut valid = made.clone();
    for (tokens, next) in [
        (format!(", token: {OPERATE}"), OPERATE),
        (
            ", token: another-another-another".to_owned(),
            "another-another-another",
        ),
        (
            format!(", token: {READ}, tokens: [{{ role: operate, token: {METRICS} }}]"),
            READ,
        ),
        (String::new(), &made),
    ] {
        let listen = "{ listen: \"127.0.0.1:0\"";
        let text = whole.replace(listen, &format!("{listen}{tokens}"));
        std::fs::write(program.config_path(), text).unwrap();
        // An open session ends with its token.
        let mut session =
            super::harness::Client::to(program.admin, super::harness::Proto::Http1).await;
        let request = http::Request::get("/v1/attend")
            .header("host", "localhost")
            .header("authorization", format!("Bearer {valid}"));
        let session = session.send(request.body(http_body_util::Full::default()).unwrap());
        let session = session.await.unwrap();
        assert_eq!(session.status(), 200);
        let reloaded = call(program.admin, "POST /v1/reload", Some(&valid)).await;
        // The reload may take the token of its own caller away.
        assert!(matches!(reloaded.0, 200 | 401), "{}", reloaded.1);
        let ended = http_body_util::BodyExt::collect(session.into_body());
        let lost = call(program.admin, "GET /v1/status", Some(&valid)).await.0 == 401;
        assert_eq!(lost, next != valid, "{tokens}");
        if lost {
            super::harness::soon("the end of the session", ended)
                .await
                .unwrap();
        }
        assert_eq!(
            call(program.admin, "GET /v1/status", Some(next)).await.0,
            200,
            "{tokens}"
        );
        let old = call(program.admin, "GET /v1/status", Some(OPERATE)).await.0;
        assert_eq!(old == 200, next == OPERATE, "{tokens}");
        let own = call(program.admin, "GET /v1/status", Some(&made)).await.0;
        assert_eq!(own == 200, tokens.is_empty(), "{tokens}");
        next.clone_into(&mut valid);
    }
}

/// Returns an address of this machine beyond loopback, or `None` if it has none.
pub(crate) fn own_address() -> Option<IpAddr> {
    // No packet is sent: the system only chooses the address.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// Sends one request and returns its status and the time until its response.
async fn timed(address: SocketAddr, request: String) -> (u16, Duration) {
    let began = Instant::now();
    let answer = raw(address, &request).await;
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, began.elapsed())
}

/// Reaches the bound `AUTH_FAILURES` on proxy, route, admin.
/// Reaches the bound `AUTH_FAILURE_DELAY`.
#[tokio::test(flavor = "multi_thread")]
async fn s13_guesses_from_elsewhere_are_slow_and_right_credentials_are_not() {
    let Some(own) = own_address() else {
        println!("NOT RUN: this machine has no address beyond loopback");
        return;
    };
    let origin = Origin::ok().await;
    let (proxy, route, admin) = (free_port(), free_port(), free_port());
    let more = format!(
        "{TARGET}clients: [{{ name: app, token: client-client-client }}]\nroutes: [{{ listen: \"0.0.0.0:{route}\", to: \"http://plain.test\" }}]\n"
    );
    let program = Program::before(&origin, &more).await;
    let config = std::fs::read_to_string(program.config_path()).unwrap();
    let config = config
        .replace(
            "listen: 127.0.0.1:0\n",
            &format!("listen: 0.0.0.0:{proxy}\n"),
        )
        .replace(
            "admin: { listen: \"127.0.0.1:0\" }",
            &format!("admin: {{ listen: \"0.0.0.0:{admin}\", token: {OPERATE} }}"),
        );
    std::fs::write(program.config_path(), config).unwrap();
    let program = program.again().await;
    let at = |port: u16, field: &str, uri: &str| {
        let text = format!(
            "GET {uri} HTTP/1.1\r\nHost: {own}:{port}\r\n{field}\r\nConnection: close\r\n\r\n"
        );
        timed(SocketAddr::new(own, port), text)
    };
    // Base64 of `app:client-client-client`, and of `app:guess`.
    let right = "Proxy-Authorization: Basic YXBwOmNsaWVudC1jbGllbnQtY2xpZW50";
    let guess = "Proxy-Authorization: Basic YXBwOmd1ZXNz";
    for number in 0..10 {
        let (status, took) = match number % 4 {
            0 => at(proxy, guess, "http://plain.test/").await,
            1 => at(proxy, "Authorization: Bearer app:guess", "/v1/openapi.json").await,
            2 => at(route, "Outpace-Client-Token: app:guess", "/").await,
            _ => at(admin, "Authorization: Bearer guess", "/v1/status").await,
        };
        assert!(
            matches!(status, 401 | 407) && took < Duration::from_secs(2),
            "{status} {took:?}"
        );
    }
    let operate = format!("Authorization: Bearer {OPERATE}");
    let guesses = async {
        tokio::join!(
            at(proxy, guess, "http://plain.test/"),
            at(proxy, "Authorization: Bearer app:guess", "/v1/openapi.json"),
            at(route, "Outpace-Client-Token: app:guess", "/"),
            at(admin, "Authorization: Bearer guess", "/v1/status"),
        )
    };
    let others = async {
        tokio::join!(
            at(proxy, right, "http://plain.test/"),
            at(route, "Outpace-Client-Token: app:client-client-client", "/"),
            at(admin, &operate, "/v1/status"),
            // A request without credentials asks which ones are needed, and is no guess.
            at(proxy, "Accept: */*", "http://plain.test/"),
        )
    };
    let (guesses, others) = tokio::join!(guesses, others);
    for (status, took) in [guesses.0, guesses.1, guesses.2, guesses.3] {
        assert!(matches!(status, 401 | 407), "{status}");
        assert!((4.0..7.0).contains(&took.as_secs_f64()), "{took:?}");
    }
    for ((status, took), expected) in [others.0, others.1, others.2, others.3]
        .into_iter()
        .zip([200, 200, 200, 407])
    {
        assert_eq!(status, expected);
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    // Loopback has no such bound.
    let text = format!(
        "GET http://plain.test/ HTTP/1.1\r\nHost: x\r\n{guess}\r\nConnection: close\r\n\r\n"
    );
    for _ in 0..12 {
        let (status, took) = timed(SocketAddr::from(([127, 0, 0, 1], proxy)), text.clone()).await;
        assert!(status == 407 && took < Duration::from_secs(2), "{took:?}");
    }
    drop(program);
}

#[tokio::test(flavor = "multi_thread")]
async fn s13_failures_are_counted_and_logged_without_their_secrets() {
    let origin = Origin::ok().await;
    let port = free_port();
    let clients = format!(
        "clients: [{{ name: app, token: client-client-client }}]\nroutes: [{{ listen: \"127.0.0.1:{port}\", to: \"http://plain.test\" }}]\n"
    );
    let program = start(&origin, &format!(", token: {OPERATE}"), &clients).await;
    let ask = |uri: &str, field: &str| {
        format!("GET {uri} HTTP/1.1\r\nHost: localhost\r\n{field}Connection: close\r\n\r\n")
    };
    let route = SocketAddr::from(([127, 0, 0, 1], port));
    for _ in 0..3 {
        // Base64 of `app:gu3ss-gu3ss-gu3ss`.
        let basic = "Proxy-Authorization: Basic YXBwOmd1M3NzLWd1M3NzLWd1M3Nz\r\n";
        for (address, uri, field) in [
            (program.listen, "http://plain.test/", basic),
            (program.listen, "http://plain.test/", ""),
            (
                program.listen,
                "/v1/openapi.json",
                "Authorization: Bearer app:gu3ss-gu3ss-gu3ss\r\n",
            ),
            (
                route,
                "/",
                "Outpace-Client-Token: app:gu3ss-gu3ss-gu3ss\r\n",
            ),
            (
                program.admin,
                "/v1/status",
                "Authorization: Bearer gu3ss-gu3ss-gu3ss\r\n",
            ),
            (program.admin, "/v1/status", ""),
        ] {
            let answer = raw(address, &ask(uri, field)).await;
            assert!(answer.starts_with("HTTP/1.1 40"), "{answer}");
        }
    }
    let counted = [
        ("proxy", "wrong", 6.0),
        ("proxy", "missing", 3.0),
        ("route", "wrong", 3.0),
        ("admin", "wrong", 3.0),
        ("admin", "missing", 3.0),
    ];
    for (listener, cause, expected) in counted {
        let series = format!(
            "outpace_failed_authentications_total{{listener=\"{listener}\",cause=\"{cause}\"}}"
        );
        let found: f64 = program.metric(&series).await;
        assert!((found - expected).abs() < 0.1, "{series}: {found}");
    }
    let is_warning = |event: &serde_json::Value| {
        let message = event["message"].as_str();
        message.is_some_and(|message| message.starts_with("credentials were refused"))
    };
    let event = program.event(is_warning).await;
    assert_eq!(
        (&event["client"], &event["failures"]),
        (&"127.0.0.1".into(), &1.into())
    );
    assert_eq!(event["level"], "warn");
    assert_eq!(
        program
            .events()
            .iter()
            .filter(|event| is_warning(event))
            .count(),
        1
    );
    let everything = format!("{:?}{:?}", program.records(), program.events());
    assert!(
        !everything.contains("gu3ss") && !everything.contains("d1M3Nz"),
        "{everything}"
    );
}

/// Wrong credentials in each ingress mode, over both versions of HTTP and by CONNECT.
#[tokio::test(flavor = "multi_thread")]
async fn s13_failures_are_counted_in_each_way_in() {
    use super::harness::{Client, Proto};
    let origin = Origin::ok().await;
    let port = free_port();
    let clients = format!(
        "clients: [{{ name: app, token: client-client-client }}]\nroutes: [{{ listen: \"127.0.0.1:{port}\", to: \"http://plain.test\" }}, {{ host: byhost.test, to: \"http://plain.test\" }}]\n"
    );
    let program = start(&origin, &format!(", token: {OPERATE}"), &clients).await;
    let route = SocketAddr::from(([127, 0, 0, 1], port));
    // Base64 of `app:guess`.
    let basic = ("proxy-authorization", "Basic YXBwOmd1ZXNz");
    let token = ("outpace-client-token", "app:guess");
    let bearer = ("authorization", "Bearer app:guess");
    let mut counted = [0.0, 0.0];
    for proto in [Proto::Http1, Proto::Http2] {
        for (address, method, uri, field) in [
            (program.listen, "GET", "http://plain.test/", basic),
            (program.listen, "CONNECT", "api.test:443", basic),
            (program.listen, "GET", "http://byhost.test/", token),
            (
                program.listen,
                "GET",
                "http://localhost/v1/openapi.json",
                bearer,
            ),
            (program.listen, "GET", "http://localhost/buffers", token),
            (route, "GET", "http://localhost/", token),
        ] {
            let mut client = Client::to(address, proto).await;
            let host = uri.trim_start_matches("http://");
            let host = host.split('/').next().unwrap();
            // HTTP/1 sends the API its calls in origin-form.
            let is_call = host == "localhost" && proto == Proto::Http1;
            let target = match is_call {
                true => uri.trim_start_matches("http://localhost"),
                false => uri,
            };
            let request = http::Request::builder().method(method).uri(target);
            let request = request.header("host", host).header(field.0, field.1);
            let response = client.ask(request.body(http_body_util::Full::default()).unwrap());
            let status = response.await.status();
            assert!(
                matches!(status.as_u16(), 401 | 407),
                "{proto:?} {method} {uri}: {status}"
            );
            counted[usize::from(address == route)] += 1.0;
            for (listener, expected) in ["proxy", "route"].into_iter().zip(counted) {
                let series = format!(
                    "outpace_failed_authentications_total{{listener=\"{listener}\",cause=\"wrong\"}}"
                );
                let found: f64 = program.metric(&series).await;
                assert!(
                    (found - expected).abs() < 0.1,
                    "{proto:?} {method} {uri}: {found}"
                );
            }
        }
    }
}
