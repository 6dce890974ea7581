//! Load of Bedrock by plain HTTP, in the forms of its operations `Converse` and `InvokeModel`.

use http::Request;
use http_body_util::Full;
use serde_json::json;

use super::load::{Call, Cell, PARALLEL};
use crate::harness::{Client, Program, Proto};

/// Sends the calls of all cells, each by the next replica, and asserts that they succeed.
pub(super) async fn send(programs: &[Program], cells: &[Cell]) {
    let work = cells
        .iter()
        .flat_map(|cell| (0..PARALLEL).map(move |number| run(programs, cell, number)));
    futures_util::future::join_all(work).await;
}

/// Sends every call of a cell whose number leaves this rest.
async fn run(programs: &[Program], cell: &Cell, rest: usize) {
    let program = &programs[rest % programs.len()];
    let proto = if rest % 2 == 0 {
        Proto::Http1
    } else {
        Proto::Http2
    };
    let mut client = Client::intercepted(program, "api.test", proto).await;
    for call in cell.calls.iter().skip(rest).step_by(PARALLEL) {
        let response = client.ask(request(cell, call)).await;
        assert_eq!(response.status(), 200, "{}", cell.key);
        assert_eq!(response.headers()["content-type"], "application/json");
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
