//! Streams that break, state nothing or cost too much to decode.

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::passing::stepwise;
use super::*;
use crate::harness::scripted::{Accepted, HEADERS, RST_STREAM, RawHttp2, read_head};
use crate::harness::soon;

const SETTLE: &str = "settle: [\"json:/usage/total_tokens\", \"json:/message/usage/input_tokens\"]";

fn events(list: &[&str]) -> Vec<Vec<u8>> {
    let event = |text: &&str| format!("data: {text}\n\n").into_bytes();
    list.iter().map(event).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_number_that_a_stream_states_settles() {
    let scene = Scene::new(&format!("{ESTIMATED}, {SETTLE}"), "", true).await;
    let one = "{\"usage\":{\"total_tokens\":10}}";
    for (list, cost) in [
        (&[one, "{\"usage\":{\"total_tokens\":30}}"] as &[_], 30),
        (&[one, "{\"usage\":null}", "{\"usage\":{}}"], 10),
        (&[one, "{\"usage\":{\"total_tokens\":\"x\"}}"], 10),
        (&[one, "{\"usage\":{\"total_tokens\":-7}}", "[DONE]"], 10),
        (&[one, "{\"usage\":{\"total_tokens\":20", "no JSON"], 10),
        (&["{\"message\":{\"usage\":{\"input_tokens\":7}}}", "{}"], 7),
        (&["{\"choices\":[]}", "[DONE]"], ESTIMATE),
    ] {
        for coding in CODINGS {
            let answer = Answer::new("text/event-stream", coding, encoded(coding, &events(list)));
            scene
                .settles(WAYS[2], answer, cost, &format!("{list:?} {coding}"))
                .await;
        }
    }
    let lacking = scene.without_usage("absent").await;
    assert!((lacking - CODINGS.len() as f64).abs() < 0.1, "{lacking}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_event_ends_a_stream_and_what_was_seen_settles() {
    let scene = Scene::new(&format!("{ESTIMATED}, {SETTLE}"), "", false).await;
    let error =
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n";
    for (before, cost) in [
        ("data: {\"usage\":{\"total_tokens\":12}}\n\n", 12),
        (
            "data: {\"message\":{\"usage\":{\"input_tokens\":34}}}\n\n",
            34,
        ),
        ("data: {\"choices\":[]}\n\n", ESTIMATE),
    ] {
        for coding in CODINGS {
            let parts = [before.as_bytes().to_vec(), error.as_bytes().to_vec()];
            let answer = Answer::new("text/event-stream", coding, encoded(coding, &parts));
            scene
                .settles(WAYS[1], answer, cost, &format!("{before} {coding}"))
                .await;
        }
    }
}

/// Ends of a response that breaks, as the origin writes them.
const BREAKS: [&str; 4] = ["length", "chunk", "garbage", "reset"];

/// Answers one request over HTTP/2 with these bytes, and then resets the stream.
async fn reset(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    coding: &str,
    body: &[u8],
    may_break: Arc<tokio::sync::Semaphore>,
) {
    let Some(mut http2) = RawHttp2::begin(stream, &[]).await else {
        return;
    };
    let Some(stream) = http2.request().await else {
        return;
    };
    // `:status: 200`, and two fields with names of the static table (RFC 7541 appendix A).
    let mut head = vec![0x88];
    for (index, value) in [(31_u8, "text/event-stream"), (26, coding)] {
        head.extend([0x0f, index - 0x0f, u8::try_from(value.len()).unwrap()]);
        head.extend_from_slice(value.as_bytes());
    }
    http2.send(HEADERS, 4, stream, &head).await;
    http2.send(0, 0, stream, body).await;
    may_break.acquire().await.unwrap().forget();
    http2.send(RST_STREAM, 0, stream, &[0, 0, 0, 2]).await;
    while http2.next().await.is_some() {}
}

/// Starts a program before an origin that breaks off after `seen`, and returns the used units.
async fn used_after(broken: &'static str, coding: &'static str, seen: &[&str]) -> i64 {
    let body = encoded(coding, &events(seen));
    // The end of a coded body would show that it is whole.
    let whole = if coding == "identity" {
        body.len()
    } else {
        seen.len()
    };
    let body: Vec<u8> = body[..whole].concat();
    let size = body.len();
    let received = Arc::new(tokio::sync::Semaphore::new(0));
    let may_break = Arc::clone(&received);
    let alpn: &'static [&'static [u8]] = match broken {
        "reset" => &[b"h2"],
        _ => &[b"http/1.1"],
    };
    let (origin, _) = Origin::scripted(alpn, move |accepted: Accepted| {
        let (body, may_break) = (body.clone(), Arc::clone(&may_break));
        async move {
            let mut stream = accepted.tls.accept(accepted.stream).await.unwrap();
            if broken == "reset" {
                return reset(stream, coding, &body, may_break).await;
            }
            if read_head(&mut stream).await.is_none() {
                return;
            }
            let framing = match broken {
                "length" => "Content-Length: 100000\r\n\r\n".to_owned(),
                _ => format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len()),
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: {coding}\r\n{framing}"
            );
            let all = [head.as_bytes(), &body].concat();
            stream.write_all(&all).await.unwrap();
            stream.flush().await.unwrap();
            may_break.acquire().await.unwrap().forget();
            let rest: &[u8] = match broken {
                "length" => b"",
                "chunk" => b"\r\n",
                _ => b"\r\nzz\r\n",
            };
            stream.write_all(rest).await.unwrap();
            stream.flush().await.unwrap();
        }
    })
    .await;
    let config = format!(
        "targets:\n  - name: api\n    hosts: [api.test]\n    retry: {{ attempts: 1 }}\n    limits:\n      - {{ name: tokens, rate: {BUDGET}/30d, cost: {{ {ESTIMATED}, default: {ESTIMATE}, {SETTLE} }} }}\n"
    );
    let program = Program::before(&origin, &config).await;
    let scene = Scene {
        program,
        origin,
        next: Arc::new(Mutex::new(Answer::json(200, ""))),
        cases: Default::default(),
    };
    let mut client = Client::intercepted(&scene.program, "api.test", Proto::Http2).await;
    let request = client.request("GET", "/").body(Full::default()).unwrap();
    let mut body = client.send(request).await.unwrap().into_body();
    let mut seen = 0;
    while seen < size {
        let frame = soon("the events", body.frame()).await.unwrap().unwrap();
        seen += frame.into_data().unwrap().len();
    }
    received.add_permits(1);
    let end = soon("the end", body.frame()).await;
    assert!(end.is_some_and(|end| end.is_err()), "{broken} looks whole");
    scene.used("x", 0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_settles_by_what_was_seen() {
    for broken in BREAKS {
        for coding in ["identity", "gzip", "zstd"] {
            let first = "{\"message\":{\"usage\":{\"input_tokens\":25}}}";
            for (seen, cost) in [
                (&[first] as &[_], 25),
                (&[first, "{\"usage\":{\"total_tokens\":40}}"], 40),
                (&["{\"choices\":[]}"], ESTIMATE),
            ] {
                let used = used_after(broken, coding, seen).await;
                assert_eq!(used, cost, "{broken} {coding} {seen:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_pays_for_what_was_seen() {
    for coding in ["identity", "gzip", "br"] {
        for proto in [Proto::Http1, Proto::Http2] {
            let list = events(&["{\"usage\":{\"total_tokens\":77}}", "{\"more\":1}"]);
            let frames = encoded(coding, &list);
            let hold = Arc::new(tokio::sync::Semaphore::new(1));
            let allowed = Arc::clone(&hold);
            let origin = Origin::with(move |_, _| {
                let answer = stepwise(coding, frames.clone(), Arc::clone(&allowed));
                async move { answer }
            });
            let origin = origin.start().await;
            let config = format!(
                "targets:\n  - name: api\n    hosts: [api.test]\n    limits: [{{ name: tokens, rate: {BUDGET}/30d, cost: {{ {ESTIMATED}, default: {ESTIMATE}, {SETTLE} }} }}]\n"
            );
            let program = Program::before(&origin, &config).await;
            let mut client = Client::intercepted(&program, "api.test", proto).await;
            let request = client.request("GET", "/").body(Full::default()).unwrap();
            let mut body = client.send(request).await.unwrap().into_body();
            soon("the first event", body.frame())
                .await
                .unwrap()
                .unwrap();
            let scene = Scene {
                program,
                origin,
                next: Arc::new(Mutex::new(Answer::json(200, ""))),
                cases: Default::default(),
            };
            assert_eq!(scene.used("x", 0).await, ESTIMATE, "{coding}");
            drop((body, client));
            soon("the settlement", async {
                while scene.used("x", 0).await != 77 {}
            })
            .await;
        }
    }
}

/// Makes a coded body of this many spaces, with a usage before them.
fn bomb(coding: &str) -> Vec<Bytes> {
    let spaces = vec![b' '; 1 << 20];
    let mut parts = vec![b"{\"usage\":{\"total_tokens\":5},\"x\":\"".to_vec()];
    parts.extend(vec![spaces; 32]);
    parts.push(b"\"}".to_vec());
    let whole = vec![parts.concat()];
    encoded(coding, &whole)
}

/// Reaches the bound `DECODED_RATIO` on proxy, intercepted.
#[tokio::test(flavor = "multi_thread")]
async fn p14_bounds_hold_a_bomb_keeps_the_estimate_and_passes_unchanged() {
    let scene = Scene::new(&format!("{ESTIMATED}, {SETTLE}"), "", true).await;
    let mut bombs = 0.0;
    for coding in ["gzip", "deflate", "br", "zstd"] {
        let frames = bomb(coding);
        for way in WAYS {
            for kind in [
                "application/json",
                "text/event-stream",
                "application/x-ndjson",
            ] {
                let answer = Answer::new(kind, coding, frames.clone());
                let about = format!("{coding} {kind}");
                scene.settles(way, answer, ESTIMATE, &about).await;
                bombs += 1.0;
            }
        }
    }
    assert!((scene.without_usage("bound").await - bombs).abs() < 0.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_cannot_be_decoded_pass_unchanged_and_keep_the_estimate() {
    let scene = Scene::new(&format!("{ESTIMATED}, {SETTLE}"), "", true).await;
    let text = Bytes::from_static(b"{\"usage\":{\"total_tokens\":5}}");
    for (coding, cause) in [
        ("compress", "coding"),
        ("gzip, exi", "coding"),
        ("gzip", "corrupt"),
        ("br", "corrupt"),
        ("zstd", "corrupt"),
    ] {
        for way in WAYS {
            let before = scene.without_usage(cause).await;
            let answer = Answer::new("application/json", coding, vec![text.clone()]);
            scene.settles(way, answer, ESTIMATE, coding).await;
            let after = scene.without_usage(cause).await;
            assert!(
                (after - before - 1.0).abs() < 0.1,
                "{coding}: {before} {after}"
            );
        }
    }
}
