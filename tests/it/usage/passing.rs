//! Usage is read in every coding and format while the bytes pass, whatever their frames.

use serde_json::json;

use super::*;
use crate::harness::buffers::{call, made, until};
use crate::harness::soon;

const SETTLE: &str = "settle: [{ sum: [[\"json:/message/usage/input_tokens\", \"json:/usage/input_tokens\"], \"json:/usage/output_tokens\"] }, \"json:/usage/total_tokens\"]";

/// Bodies with their content types, their parts and the usage that they state.
fn bodies() -> Vec<(&'static str, Vec<Vec<u8>>, i64)> {
    let lines = |lines: &[&str]| lines.iter().map(|line| line.as_bytes().to_vec()).collect();
    // A text that repeats itself would be a bomb.
    let number = |number: u64| number.wrapping_mul(6_364_136_223_846_793_005).to_string();
    let filler: String = (0..30_000).map(number).collect();
    let long = format!(
        "{{\"choices\":[{{\"message\":\"{filler}\"}}],\"usage\":{{\"total_tokens\":138}},\"x\":\"{filler}\"}}"
    );
    vec![
        (
            "application/json",
            lines(&["{\"id\":1,\"usage\":{\"total_", "tokens\":137}}"]),
            137,
        ),
        (
            "application/json; charset=utf-8",
            vec![long.into_bytes()],
            138,
        ),
        (
            "text/event-stream",
            lines(&[
                "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n",
                "data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}],\"usage\":null}\n\n",
                "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"total_tokens\":139}}\n\n",
                "data: [DONE]\n\n",
            ]),
            139,
        ),
        (
            "text/event-stream; charset=utf-8",
            lines(&[
                "event: message_start\r\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\r\n\r\n",
                ": ping\r\n\r\nevent: message_delta\r\ndata: {\"usage\":{\"output_tokens\":50}}\r\n\r\n",
                "event: message_delta\r\ndata: {\"usage\":\r\ndata: {\"output_tokens\":115}}\r\n\r\n",
                "event: message_stop\r\ndata: {\"type\":\"message_stop\"}\r\n\r\n",
            ]),
            140,
        ),
        (
            "application/x-ndjson",
            lines(&[
                "{\"response\":\"a\",\"done\":false}\n",
                "{\"done\":true,\"usage\":{\"total_tokens\":141}}\n",
            ]),
            141,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_usage_is_read_in_every_coding_and_format() {
    for http2 in [false, true] {
        let scene = Scene::new(&format!("{ESTIMATED}, {SETTLE}"), "", http2).await;
        for (kind, parts, usage) in bodies() {
            for coding in CODINGS {
                for way in WAYS {
                    let answer = Answer::new(kind, coding, encoded(coding, &parts));
                    let about = format!("{kind} {coding} http2={http2}");
                    scene.settles(way, answer, usage, &about).await;
                }
            }
        }
        // The origin was really asked over both versions.
        let version = scene.origin.arrivals.last().version;
        assert_eq!(version == http::Version::HTTP_2, http2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_usage_is_read_however_the_body_is_cut() {
    let scene = Scene::new(&format!("{ESTIMATED}, {SETTLE}"), "", true).await;
    for (kind, parts, usage) in bodies().into_iter().filter(|(_, parts, _)| parts.len() > 1) {
        for coding in CODINGS {
            let body = encoded(coding, &parts).concat();
            let mut cuts: Vec<Vec<usize>> = vec![vec![1], vec![2, 3], vec![7], vec![64]];
            // A cut before each of some positions, which lie in heads, lengths and checksums too.
            let step = (body.len() / 12).max(1);
            cuts.extend((1..body.len()).step_by(step).map(|at| vec![at, usize::MAX]));
            cuts.push(vec![body.len() - 1, 1]);
            for sizes in cuts {
                let answer = Answer::new(kind, coding, cut(&body, &sizes));
                let about = format!("{kind} {coding} {sizes:?}");
                scene.settles(WAYS[2], answer, usage, &about).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_lists_of_codings_are_read() {
    let scene = Scene::new(&format!("{ESTIMATED}, {SETTLE}"), "", true).await;
    for list in [
        &["gzip", "br"] as &[_],
        &["deflate", "zstd"],
        &["br", "gzip", "zstd"],
    ] {
        for (kind, parts, usage) in bodies() {
            let mut frames = vec![Bytes::from(parts.concat())];
            for coding in list {
                let parts: Vec<Vec<u8>> = frames.iter().map(|frame| frame.to_vec()).collect();
                frames = encoded(coding, &parts);
            }
            let answer = Answer::new(kind, &list.join(", "), frames);
            scene
                .settles(WAYS[0], answer, usage, &format!("{list:?} {kind}"))
                .await;
        }
    }
}

/// The origin sends the next event only after the client has the one before, so no byte is held
/// back.
#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_each_event_reaches_the_client_before_the_next_one_exists() {
    for coding in CODINGS {
        for proto in [Proto::Http1, Proto::Http2] {
            let events: Vec<Vec<u8>> = (0..20)
                .map(|number| format!("data: {{\"usage\":{{\"total_tokens\":{number}}}}}\n\n"))
                .map(String::into_bytes)
                .collect();
            let frames = encoded(coding, &events);
            let (sent, frames_of_origin) = (frames.clone(), frames.clone());
            let permits = Arc::new(tokio::sync::Semaphore::new(1));
            let allowed = Arc::clone(&permits);
            let origin = Origin::with(move |_, _| {
                let (frames, allowed) = (frames_of_origin.clone(), Arc::clone(&allowed));
                async move { stepwise(coding, frames, allowed) }
            });
            let origin = origin.start().await;
            let config = format!(
                "targets:\n  - name: api\n    hosts: [api.test]\n    limits: [{{ name: tokens, rate: {BUDGET}/30d, cost: {{ {SETTLE} }} }}]\n"
            );
            let program = Program::before(&origin, &config).await;
            let mut client = Client::intercepted(&program, "api.test", proto).await;
            let request = client.request("GET", "/").body(Full::default()).unwrap();
            let mut body = client.send(request).await.unwrap().into_body();
            let mut received = Vec::new();
            let mut expected = Vec::new();
            for frame in &sent {
                expected.extend_from_slice(frame);
                while received.len() < expected.len() {
                    let next = soon("the event", body.frame()).await.unwrap().unwrap();
                    received.extend_from_slice(&next.into_data().unwrap());
                }
                assert!(received == expected, "{coding} {proto:?}");
                permits.add_permits(1);
            }
            assert!(body.frame().await.is_none_or(|frame| frame.is_ok()));
        }
    }
}

/// Returns a stream of which each frame needs a permit.
pub(super) fn stepwise(
    coding: &str,
    frames: Vec<Bytes>,
    allowed: Arc<tokio::sync::Semaphore>,
) -> Reply {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for frame in frames {
            allowed.acquire().await.unwrap().forget();
            if sender.send(frame).await.is_err() {
                return;
            }
        }
    });
    let mut builder = Response::builder().header("content-type", "text/event-stream");
    if coding != "identity" {
        builder = builder.header("content-encoding", coding);
    }
    builder.body(Channel(receiver).boxed_unsync()).unwrap()
}

/// Body of the frames that a channel receives.
struct Channel(tokio::sync::mpsc::Receiver<Bytes>);

impl hyper::body::Body for Channel {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(cx)
            .map(|frame| frame.map(|frame| Ok(Frame::data(frame))))
    }
}

/// A large body passes whole, whatever is decoded beside it.
#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_large_bodies_are_the_same_bytes() {
    let scene = Scene::new(&format!("{ESTIMATED}, {SETTLE}"), "", true).await;
    let mut text = String::from("{\"data\":[");
    for number in 0..60_000_u64 {
        text.push_str(&format!(
            "{},",
            number.wrapping_mul(6_364_136_223_846_793_005)
        ));
    }
    text.push_str("0],\"usage\":{\"total_tokens\":321}}");
    for coding in CODINGS {
        for way in WAYS {
            let body = encoded(coding, &[text.clone().into_bytes()]).concat();
            let answer = Answer::new("application/json", coding, vec![body.into()]);
            scene.settles(way, answer, 321, coding).await;
        }
    }
}

/// Stored requests settle, too, although no client reads their response.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_from_the_spool_settles() {
    let scene = Scene::new(&format!("{ESTIMATED}, {SETTLE}"), "", true).await;
    made(&scene.program, &json!({})).await;
    let mut delivered = 0;
    for (kind, parts, usage) in bodies() {
        for coding in ["identity", "gzip", "zstd"] {
            let (case, voided) = (scene.case(), scene.voided().await);
            scene.set(Answer::new(kind, coding, encoded(coding, &parts)));
            let item = json!({ "body": "{}", "headers": { "x-case": case } });
            let (status, told) = call(&scene.program, "POST", "/buffers/b/items", item).await;
            assert_eq!(status, 201, "{told}");
            delivered += 1;
            until(&scene.program, "delivered", delivered).await;
            assert_eq!(scene.used(&case, voided).await, usage, "{kind} {coding}");
        }
    }
}
