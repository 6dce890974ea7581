//! Request JSON: values behind long prompts, bodies that cannot be read to their end, and values that
//! are absent, in HTTP/1 and HTTP/2 and in each ingress mode.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::harness::{Client, Origin, Program, Proto, bytes_body, soon};

const BOTH: [Proto; 2] = [Proto::Http1, Proto::Http2];
const TARGET: &str = "targets:
  - name: api
    hosts: [plain.test, api.test]
    max_wait: 0s
    limits:
      - { name: big, rate: \"1/1h\", burst: 1, key: [\"path:1\", \"json:/model\"], match: { json: { /model: \"gpt-4o*\" } } }
routes: [{ host: r.localhost, to: \"http://plain.test\" }]
";

/// Way by which a request reaches the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Plain,
    Route,
    Intercepted,
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// Body of a request, with a length or in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framed {
    Length,
    Chunks,
}

/// Origin that answers with the body of the request.
async fn echo() -> Origin {
    let answer = |_, request: Request<hyper::body::Incoming>| async {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        http::Response::new(bytes_body(body))
    };
    Origin::with(answer).start().await
}

fn framed(body: &str, framing: Framed) -> UnsyncBoxBody<Bytes, Infallible> {
    let bytes = Bytes::copy_from_slice(body.as_bytes());
    match framing {
        Framed::Length => Full::new(bytes).boxed_unsync(),
        Framed::Chunks => {
            let pieces = bytes.chunks(10_007).map(Bytes::copy_from_slice);
            let frames: Vec<_> = pieces.map(|piece| Ok(Frame::data(piece))).collect();
            StreamBody::new(stream::iter(frames)).boxed_unsync()
        }
    }
}

/// Sends a request on a new connection. Returns the status and the body of the response.
async fn sent(
    program: &Program,
    (mode, proto): (Mode, Proto),
    path: &str,
    fields: &[(&str, &str)],
    body: UnsyncBoxBody<Bytes, Infallible>,
) -> (u16, Bytes) {
    let stream: Box<dyn Wire> = match mode {
        Mode::Intercepted => Box::new(
            Client::tls_inside(program, "api.test", proto)
                .await
                .unwrap(),
        ),
        _ => Box::new(TcpStream::connect(program.listen).await.unwrap()),
    };
    let (host, scheme) = match mode {
        Mode::Plain => ("plain.test", "http"),
        Mode::Route => ("r.localhost", "http"),
        Mode::Intercepted => ("api.test", "https"),
    };
    let in_full = proto == Proto::Http2 || mode == Mode::Plain;
    let uri = match in_full {
        true => format!("{scheme}://{host}{path}"),
        false => path.to_owned(),
    };
    let mut request = Request::post(uri).header("content-type", "application/json");
    if proto == Proto::Http1 {
        request = request.header("host", host).version(Version::HTTP_11);
    }
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(body).unwrap();
    let answered = async {
        let response = match proto {
            Proto::Http1 => {
                let (mut sender, link) = http1::handshake(TokioIo::new(stream)).await.unwrap();
                tokio::spawn(link);
                sender.send_request(request).await.unwrap()
            }
            Proto::Http2 => {
                let io = TokioIo::new(stream);
                let (mut sender, link) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
                tokio::spawn(link);
                sender.send_request(request).await.unwrap()
            }
        };
        let status = response.status().as_u16();
        (
            status,
            response.into_body().collect().await.unwrap().to_bytes(),
        )
    };
    soon("a response", answered).await
}

/// The body is longer than the part in memory, so most of it is read back from disk.
#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_a_model_behind_a_long_prompt_is_found_and_the_body_is_unchanged() {
    let origin = echo().await;
    let config = format!("{TARGET}bodies: {{ memory: 64KiB, disk: 8MiB }}\n");
    let program = Program::before(&origin, &config).await;
    let prompt = "\\\"model\\\": \\\"o1\\\", {[ \u{e9} ".repeat(50_000);
    assert!(prompt.len() > 1 << 20);
    let mut number = 0;
    for mode in [Mode::Plain, Mode::Route, Mode::Intercepted] {
        for proto in BOTH {
            for framing in [Framed::Length, Framed::Chunks] {
                number += 1;
                for (model, expected) in [
                    ("gpt-4o", 200),
                    ("gpt-4o", 429),
                    ("gpt-4o-mini", 200),
                    ("o1", 200),
                    ("o1", 200),
                    ("gpt-4o-mini", 429),
                ] {
                    let body = format!(
                        "{{\"messages\" :[{{\"content\":\"{prompt}\"}}],\n\"model\" : \"{model}\" }}\n"
                    );
                    let path = format!("/case{number}/x");
                    let case = format!("{mode:?} {proto:?} {framing:?} {model}");
                    let sent = sent(&program, (mode, proto), &path, &[], framed(&body, framing));
                    let (status, answer) = sent.await;
                    assert_eq!(status, expected, "{case}");
                    assert!(status != 200 || answer == body, "{case}: {}", answer.len());
                }
            }
        }
    }
    program.record(|record| record["body"] == "file").await;
}

/// Name of a request, its further fields, its body, and true if the limit applies to it.
type NamedBody = (
    &'static str,
    &'static [(&'static str, &'static str)],
    String,
    bool,
);

/// Returns requests to which the limit applies, and others.
fn bodies() -> Vec<NamedBody> {
    let json = |text: &str| text.to_owned();
    vec![
        ("trailing comma", &[], json(r#"{"model":"o1",}"#), true),
        ("cut", &[], json(r#"{"model":"o1""#), true),
        ("cut in a string", &[], json(r#"{"model":"o1"#), true),
        ("comment", &[], json("/* x */{\"model\":\"o1\"}"), true),
        ("deep", &[], format!("{{\"x\":{}", "[".repeat(2000)), true),
        (
            "gzip",
            &[("content-encoding", "gzip")],
            json(r#"{"model":"o1"}"#),
            true,
        ),
        ("br", &[("content-encoding", "br")], json("xyz"), true),
        (
            "not sent yet",
            &[("expect", "100-continue")],
            json(r#"{"model":"o1"}"#),
            true,
        ),
        (
            "not held",
            &[],
            format!("{{\"x\":\"{}\",\"model\":\"o1\"}}", "x".repeat(900_000)),
            true,
        ),
        (
            "first of two",
            &[],
            json(r#"{"model":"gpt-4o","model":"o1"}"#),
            true,
        ),
        (
            "last of two",
            &[],
            json(r#"{"model":"o1","model":"gpt-4o"}"#),
            true,
        ),
        (
            "long value",
            &[],
            format!("{{\"model\":\"{}\"}}", "o".repeat(1025)),
            true,
        ),
        (
            "escaped",
            &[],
            json("{\"\\u006dodel\":\"gpt-4\\u006f\"}"),
            true,
        ),
        ("marked", &[], json("\u{feff}{\"model\":\"gpt-4o\"}"), true),
        (
            "held",
            &[],
            format!("{{\"x\":\"{}\",\"model\":\"o1\"}}", "x".repeat(60_000)),
            false,
        ),
        ("elsewhere", &[], json(r#"{"x":{"model":"gpt-4o"}}"#), false),
        ("null", &[], json(r#"{"model":null}"#), false),
        ("number", &[], json(r#"{"model":4}"#), false),
        ("object", &[], json(r#"{"model":{"gpt-4o":1}}"#), false),
        ("missing", &[], json("{}"), false),
        ("form", &[], json("model=gpt-4o"), false),
        (
            "multipart",
            &[],
            json("--b\r\n\r\n{\"model\":\"gpt-4o\"}\r\n--b--"),
            false,
        ),
        ("xml", &[], json("<model>gpt-4o</model>"), false),
        (
            "identity",
            &[("content-encoding", "identity")],
            json(r#"{"model":"o1"}"#),
            false,
        ),
        ("empty", &[], json(""), false),
    ]
}

/// A limit of one request per path applies, or does not, as the documentation of `match` says.
#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_a_body_that_cannot_be_read_to_its_end_matches_every_pattern() {
    let origin = echo().await;
    let target = TARGET.replace("key: [\"path:1\", \"json:/model\"]", "key: \"path:1\"");
    let config = format!("{target}bodies: {{ memory: 64KiB, disk: 128KiB }}\n");
    let program = Program::before(&origin, &config).await;
    for (name, fields, body, applies) in bodies() {
        for (mode, proto) in [
            (Mode::Plain, Proto::Http1),
            (Mode::Route, Proto::Http1),
            (Mode::Intercepted, Proto::Http2),
        ] {
            let path = format!("/{}-{mode:?}", name.replace(' ', "-"));
            for expected in [200, if applies { 429 } else { 200 }] {
                let answered = sent(
                    &program,
                    (mode, proto),
                    &path,
                    fields,
                    framed(&body, Framed::Length),
                );
                let (status, answer) = answered.await;
                assert_eq!(status, expected, "{name} {mode:?} {proto:?}");
                assert!(status != 200 || answer == body, "{name} {mode:?} {proto:?}");
            }
        }
    }
}

/// Query parameters match by their decoded value, and one of several values is enough.
#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_a_query_parameter_is_matched_in_every_spelling() {
    let origin = echo().await;
    let target = TARGET.replace(
        "key: [\"path:1\", \"json:/model\"], match: { json: { /model: \"gpt-4o*\" } }",
        "key: \"path:1\", match: { query: { kind: \"a b*\", x: \"*\" } }",
    );
    let program = Program::before(&origin, &target).await;
    let cases = [
        ("/a?kind=a+bc&x", 429),
        ("/b?x=1&kind=a%20b", 429),
        ("/c?k%69nd=a%20%62&x=", 429),
        ("/d?kind=z&x=1&kind=a+b", 429),
        ("/e?kind=a+b", 200),
        ("/f?x=1&kind=ab", 200),
        ("/g?KIND=a+b&x=1", 200),
        ("/h", 200),
    ];
    for (path, expected) in cases {
        for (index, proto) in BOTH.into_iter().enumerate() {
            let path = path.replacen('/', &format!("/{index}"), 1);
            for expected in [200, expected] {
                let body = framed("{}", Framed::Length);
                let (status, _) = sent(&program, (Mode::Plain, proto), &path, &[], body).await;
                assert_eq!(status, expected, "{path} {proto:?}");
            }
        }
    }
}
