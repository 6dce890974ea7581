//! P14: bounds of calls, of held memory and of files, each reached by the real program.

use std::path::Path;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::buffers::{SPOOL, call, made, operate};
use crate::harness::{Client, Origin, Program, Proto, program, raw, soon};
use crate::slow_origins::{ROUTED, without_tls};

pub(crate) const TARGET: &str = "targets:
  - name: api
    hosts: [plain.test, api.test]
    max_wait: 0s
    limits: [{ rate: \"1000/1s\", burst: 1000 }, { name: jobs, concurrent: 9 }]
";

/// Sends a call with this text to the proxy, or with an operator's token to the admin port.
async fn send(program: &Program, admin: bool, path: &str, body: String) -> u16 {
    let (address, token) = match admin {
        true => (program.admin, program.admin_token().unwrap()),
        false => (program.listen, String::new()),
    };
    let mut request = Request::post(path)
        .header("host", "localhost")
        .header("content-type", "application/json");
    if admin {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Full::new(Bytes::from(body))).unwrap();
    let mut client = Client::to(address, Proto::Http1).await;
    client.ask(request).await.status().as_u16()
}

/// Returns the JSON text with spaces after it, so that it has this number of bytes.
fn padded(value: &Value, size: usize) -> String {
    let text = value.to_string();
    let spaces = " ".repeat(size - text.len());
    text + &spaces
}

/// Reaches the bound `API_BODY` on proxy, admin.
#[tokio::test(flavor = "multi_thread")]
async fn p14_bodies_of_calls_are_bounded() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, &format!("{SPOOL}{TARGET}")).await;
    for admin in [false, true] {
        for (size, ok) in [(1 << 20, true), ((1 << 20) + 1, false), (2 << 20, false)] {
            let name = format!("b{size}-{admin}");
            let buffer = json!({ "name": name, "url": "http://plain.test/" });
            let body = padded(&buffer, size);
            let status = send(&program, admin, "/v1/buffers", body).await;
            assert_eq!(status, if ok { 201 } else { 400 }, "admin {admin}: {size}");
        }
    }
}

/// Reaches the bound `API_BATCH`.
/// Reaches the bound `API_BATCH_BYTES`.
/// Reaches the bound `PAGE_MAX`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_batches_and_pages_are_bounded() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, &format!("{SPOOL}{TARGET}")).await;
    made(&program, &json!({})).await;
    let batch = |count: usize| Value::from(vec![json!({ "body": "x", "delay": "1d" }); count]);
    let lines = format!("{}\n", json!({ "body": "x", "delay": "1d" })).repeat(1001);
    let large = padded(&batch(1), 9_000_000);
    for (body, expected) in [
        (batch(1001).to_string(), 400),
        (lines, 400),
        (batch(0).to_string(), 400),
        (large, 413),
    ] {
        let status = send(&program, false, "/buffers/b/batch", body).await;
        assert_eq!(status, expected);
    }
    let stored = call(&program, "GET", "/buffers/b/items", "").await.1;
    assert_eq!(
        stored["items"].as_array().map(Vec::len),
        Some(0),
        "{stored}"
    );
    for count in [1000, 5] {
        let status = send(
            &program,
            false,
            "/buffers/b/batch",
            batch(count).to_string(),
        )
        .await;
        assert_eq!(status, 201, "{count}");
    }
    for limit in [1000, 1001, 100_000] {
        let path = format!("/buffers/b/items?limit={limit}");
        let (status, page) = call(&program, "GET", &path, "").await;
        let count = page["items"].as_array().map(Vec::len);
        assert_eq!((status, count), (200, Some(1000)), "{limit}");
    }
}

/// Reaches the bound `PAUSE_REASON`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_the_reason_of_a_pause_is_bounded() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, &format!("{SPOOL}{TARGET}")).await;
    made(&program, &json!({})).await;
    for (reason, expected) in [
        ("x".repeat(1024), 200),
        ("x".repeat(1025), 400),
        ("\u{e9}".repeat(513), 400),
        ("x".repeat(900_000), 400),
    ] {
        let body = json!({ "reason": reason });
        let (status, told) = call(&program, "POST", "/buffers/b/pause", &body).await;
        assert_eq!(status, expected, "{}", reason.len());
        let (status, _) = operate(&program, "POST", "/v1/buffers/b/pause", body).await;
        assert_eq!(status, expected, "{}: {told}", reason.len());
    }
}

/// Reaches the bound `PERMIT_HOLD`.
/// Reaches the bound `PERMIT_HOLD_MAX`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_a_permit_is_held_for_a_bounded_time() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    let mut permit = Value::Null;
    for (hold, expected) in [
        (json!({}), 60.0),
        (json!({ "hold": "1h" }), 3600.0),
        (json!({ "hold": "61m" }), 3600.0),
        (json!({ "hold": "400d" }), 3600.0),
    ] {
        let (status, told) = call(&program, "POST", "/v1/targets/api/acquire", &hold).await;
        assert_eq!((status, told["expires_in"].as_f64()), (200, Some(expected)));
        permit = told["permit"].clone();
    }
    let renew = json!({ "permit": permit, "hold": "400d" });
    let (status, told) = call(&program, "POST", "/v1/targets/api/renew", &renew).await;
    assert_eq!((status, told["expires_in"].as_f64()), (200, Some(3600.0)));
}

/// Reaches the bound `WAITERS_PER_TARGET` on proxy, route, intercepted.
#[tokio::test(flavor = "multi_thread")]
async fn p14_a_full_queue_refuses_on_each_listener() {
    let origin = Origin::ok().await;
    let target = TARGET.replace("max_wait: 0s", "max_wait: 2h\n    max_waiting: 1");
    let target = target.replace("rate: \"1000/1s\", burst: 1000", "rate: \"1/1h\", burst: 1");
    let more = format!("{target}routes: [{{ host: r.localhost, to: \"http://plain.test\" }}]\n");
    let program = Program::before(&origin, &more).await;
    let mut client = Client::plain(&program).await;
    assert_eq!(client.get("http://plain.test/").await.status(), 200);
    let _held = hold(&program, 1, 1).await;
    until(&program, WAITING, |count| count > 0.5).await;
    for proto in [Proto::Http1, Proto::Http2] {
        let mut plain = Client::to(program.listen, proto).await;
        let mut inside = Client::intercepted(&program, "api.test", proto).await;
        let routed = Request::get(match proto {
            Proto::Http1 => "/",
            Proto::Http2 => "http://r.localhost/",
        });
        let routed = match proto {
            Proto::Http1 => routed.header("host", "r.localhost"),
            Proto::Http2 => routed,
        };
        let mut route = Client::to(program.listen, proto).await;
        for response in [
            plain.get("http://plain.test/").await,
            inside.get("/").await,
            route.ask(routed.body(Full::default()).unwrap()).await,
        ] {
            assert_eq!(response.status(), 429, "{proto:?}");
            let text = String::from_utf8_lossy(response.body());
            assert!(text.contains("queue-full"), "{text}");
        }
    }
}

/// A request that would wait for longer than the default is refused at once.
///
/// Reaches the bound `MAX_WAIT`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_a_request_waits_for_at_most_the_default_time() {
    let origin = Origin::ok().await;
    for (rate, is_held) in [("1/62s", false), ("1/1h", false), ("1/58s", true)] {
        let target = TARGET.replace("    max_wait: 0s\n", "");
        let target = target.replace("rate: \"1000/1s\", burst: 1000", "rate: \"RATE\", burst: 1");
        let program = Program::before(&origin, &target.replace("RATE", rate)).await;
        let mut client = Client::plain(&program).await;
        assert_eq!(client.get("http://plain.test/").await.status(), 200);
        let mut stream = hold(&program, 1, 0).await;
        let mut answer = [0; 2048];
        let read = tokio::select! {
            read = stream.read(&mut answer) => Some(read.unwrap()),
            () = until(&program, WAITING, |count| count > 0.5), if is_held => None,
        };
        assert_eq!(read.is_none(), is_held, "{rate}");
        let answer = String::from_utf8_lossy(&answer[..read.unwrap_or_default()]).into_owned();
        assert!(
            is_held || answer.contains("wait-too-long"),
            "{rate}: {answer}"
        );
    }
}

const WAITING: &str = "outpace_waiting{target=\"api\"}";
pub(crate) const HELD: &str = "targets:
  - name: api
    hosts: [plain.test, api.test]
    max_wait: 30d
    limits: [{ rate: \"1/1h\", burst: 1, match: { path: \"/x*\" } }]
routes: [{ host: r.localhost, to: \"https://api.test\" }]
";

/// Sends a request to `/x` whose head is this long, or whose body is.
async fn hold(program: &Program, head: usize, body: usize) -> TcpStream {
    let (head, body) = ("h".repeat(head), "b".repeat(body));
    let request = format!(
        "POST http://plain.test/x HTTP/1.1\r\nHost: plain.test\r\nX-H: {head}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(program.listen).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Waits until a series of the program fits.
async fn until(program: &Program, series: &str, fits: impl Fn(f64) -> bool) {
    soon(series, async {
        while !fits(program.metric(series).await) {}
    })
    .await;
}

/// Bodies take three quarters of the memory, and further ones wait in files.
///
/// Reaches the bound `HELD_BODIES_PERCENT`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_held_bodies_leave_memory_for_heads() {
    let origin = Origin::ok().await;
    let config = format!("{HELD}bodies: {{ memory_total: 1MiB }}\n");
    let program = Program::before(&origin, &config).await;
    assert_eq!(
        Client::plain(&program)
            .await
            .get("http://plain.test/x")
            .await
            .status(),
        200
    );
    let mut held = Vec::new();
    for number in 1..=20_u32 {
        held.push(hold(&program, 1, 60_000).await);
        until(&program, WAITING, |count| count >= f64::from(number)).await;
    }
    // Bytes on their way to a file may exceed the bound for a moment.
    let (series, most) = ("outpace_bodies_buffered_bytes", f64::from(1 << 20) * 0.75);
    let is_near = |bytes: f64| bytes > most - 80_000.0 && bytes <= most;
    until(&program, series, is_near).await;
    for number in 21..=23_u32 {
        held.push(hold(&program, 1, 60_000).await);
        until(&program, WAITING, |count| count >= f64::from(number)).await;
        until(&program, series, is_near).await;
    }
    drop(held);
}

/// Reaches the bound `UNCOUNTED_WAIT`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_a_request_without_memory_prepares_its_connection_for_a_second() {
    let origin = without_tls().await;
    let config = format!("{HELD}bodies: {{ memory_total: 1MiB }}\n");
    let program = Program::before(&origin, &config).await;
    assert_eq!(
        Client::plain(&program)
            .await
            .get("http://plain.test/x")
            .await
            .status(),
        200
    );
    let mut held = Vec::new();
    let refusal = loop {
        let mut stream = hold(&program, 60_000, 0).await;
        let mut answer = [0; 2048];
        tokio::select! {
            count = stream.read(&mut answer) => {
                break String::from_utf8_lossy(&answer[..count.unwrap()]).into_owned();
            }
            () = until(&program, WAITING, |waiting| waiting as usize > held.len()) => {}
        }
        held.push(stream);
    };
    assert!(refusal.starts_with("HTTP/1.1 503"), "{refusal}");
    assert!(refusal.contains("retry-after: 5\r\n"), "{refusal}");
    // No room is left for smaller heads either.
    for size in [20_000, 5_000, 1_000] {
        let mut stream = hold(&program, size, 0).await;
        let mut answer = [0; 12];
        tokio::select! {
            _refused = stream.read(&mut answer) => {}
            () = until(&program, WAITING, |waiting| waiting as usize > held.len()) => {
                held.push(stream);
            }
        }
    }
    while held.len() < 1000 {
        let mut stream = hold(&program, 1, 0).await;
        let mut answer = [0; 12];
        tokio::select! {
            _refused = stream.read(&mut answer) => break,
            () = until(&program, WAITING, |waiting| waiting as usize > held.len()) => {}
        }
        held.push(stream);
    }
    let answer = raw(program.listen, ROUTED).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("memory-full"), "{answer}");
    let record = program.record(|record| record["path"] == "/free").await;
    assert!(record["waited_ms"].as_f64() >= Some(900.0), "{record}");
    drop(held);
}

/// A named pipe, a socket or a directory in place of a secret's file is refused at once.
#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_pipe_socket_or_directory_in_place_of_a_secret_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut mkfifo = std::process::Command::new("mkfifo");
    assert!(mkfifo.arg(path("pipe")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    std::fs::create_dir(path("directory")).unwrap();
    std::fs::write(path("token"), "0123456789012345678901234567890123456789\n").unwrap();
    std::os::unix::fs::symlink(path("token"), path("link")).unwrap();
    let check = async |config: &str, file: &Path| {
        let text = config.replace("FILE", &file.display().to_string());
        std::fs::write(path("outpace.yaml"), text).unwrap();
        let mut command = program();
        let checked = command.arg("check").arg(path("outpace.yaml")).output();
        soon(config, checked).await.unwrap()
    };
    for config in [
        "admin: { token_file: FILE }\n",
        "admin: { tokens: [{ token_file: FILE, role: read }] }\n",
        "clients: [{ name: a, token_file: FILE }]\n",
        "spool: { key_file: FILE }\n",
        "ledger: { postgres: { url_file: FILE } }\n",
    ] {
        for kind in ["pipe", "socket", "directory"] {
            let output = check(config, &path(kind)).await;
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success(), "{config} {kind}");
            assert!(told.contains("cannot be read: "), "{config} {kind}: {told}");
        }
    }
    // A link to a regular file is followed, as secrets of a platform are.
    for name in ["token", "link"] {
        let output = check("admin: { token_file: FILE }\n", &path(name)).await;
        assert!(output.status.success(), "{name}: {output:?}");
    }
}
