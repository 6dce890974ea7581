//! Load of Bedrock by plain HTTP, in the forms of its operations `Converse` and `InvokeModel`.

use std::sync::atomic::{AtomicUsize, Ordering};

use http::Request;
use http_body_util::{BodyExt as _, Full};
use serde_json::json;

use super::load::{Call, Cell, PARALLEL};
use crate::harness::{Client, Program, Proto};

/// Sends the calls of all cells, each by the next free connection, and asserts that they succeed.
pub(super) async fn send(programs: &[Program], cells: &[Cell]) {
    let next: Vec<AtomicUsize> = cells.iter().map(|_| AtomicUsize::new(0)).collect();
    let work = cells.iter().zip(&next).flat_map(|(cell, next)| {
        (0..PARALLEL).map(move |number| run(&programs[number % programs.len()], cell, next, number))
    });
    futures_util::future::join_all(work).await;
}

/// Sends calls of a cell until none is left.
async fn run(program: &Program, cell: &Cell, next: &AtomicUsize, number: usize) {
    let proto = if number < PARALLEL / 2 {
        Proto::Http1
    } else {
        Proto::Http2
    };
    let mut client = Client::intercepted(program, "api.test", proto).await;
    while let Some(call) = cell.calls.get(next.fetch_add(1, Ordering::Relaxed)) {
        // A long load waits for its budget for longer than an event of other tests.
        let (head, body) = client.send(request(cell, call)).await.unwrap().into_parts();
        body.collect().await.unwrap();
        assert_eq!(head.status, 200, "{}", cell.key);
    }
}

fn request(cell: &Cell, call: &Call) -> Request<Full<bytes::Bytes>> {
    let body = match cell.mode {
        "converse" => json!({
            "messages": [{"role": "user", "content": [{"text": call.prompt()}]}],
            "inferenceConfig": {"maxTokens": call.max},
        }),
        _ => json!({"messages": call.prompt(), "max_tokens": call.max}),
    };
    Request::post(format!("https://api.test/model/{}/{}", cell.key, cell.mode))
        .header("host", "api.test")
        .header("authorization", &cell.key)
        .header("accept-encoding", cell.coding)
        .header("content-type", "application/json")
        .body(Full::from(body.to_string()))
        .unwrap()
}
