//! Helpers for spool tests: calls of the API, and an origin that records the bodies it receives.

use std::collections::HashMap;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use super::{Client, Origin, Program, Proto, reply};

pub(crate) const SPOOL: &str =
    "spool: { min_free: 1MiB, ballast: 1MiB, key: \"only for tests, with 32 bytes or more\" }\n";

/// Fields that hold credentials, as a target or buffer sets them.
pub(crate) const CREDENTIALS: [&str; 3] = ["authorization", "x-apikey", "client_secret"];

/// Sends one API call on a new connection and returns the status and the JSON body. A body that is
/// not JSON becomes `Null`.
pub(crate) async fn call(
    program: &Program,
    method: &str,
    path: &str,
    body: impl ToString,
) -> (u16, Value) {
    call_with(program, method, path, body, &[]).await
}

pub(crate) async fn call_with(
    program: &Program,
    method: &str,
    path: &str,
    body: impl ToString,
    headers: &[(&str, &str)],
) -> (u16, Value) {
    let mut client = Client::to(program.listen, Proto::Http1).await;
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", format!("localhost:{}", program.listen.port()));
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = request.body(Full::new(body.to_string().into())).unwrap();
    let response = client.ask(body).await;
    let status = response.status().as_u16();
    let json = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
    (status, json)
}

/// Sends one call to the admin port with the token of an operator, and returns the status and the
/// JSON body.
pub(crate) async fn operate(
    program: &Program,
    method: &str,
    path: &str,
    body: Value,
) -> (u16, Value) {
    let mut client = Client::to(program.admin, Proto::Http1).await;
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header(
            "authorization",
            format!("Bearer {}", program.admin_token().unwrap()),
        )
        .header("content-type", "application/json")
        .body(Full::new(bytes::Bytes::from(body.to_string())))
        .unwrap();
    let response = client.ask(request).await;
    let json = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
    (response.status().as_u16(), json)
}

pub(crate) async fn made(program: &Program, more: &Value) -> String {
    let mut buffer = json!({ "name": "b", "url": "http://plain.test/in" });
    for (key, value) in more.as_object().unwrap() {
        buffer[key] = value.clone();
    }
    let (status, made) = call(program, "POST", "/buffers", buffer).await;
    assert_eq!(status, 201, "{made}");
    made["id"].as_str().unwrap().to_owned()
}

/// Waits for the response of each item of buffer `b`, for up to 30 s each and for at most 1000
/// items. Then asserts that `count` items are in `state`.
pub(crate) async fn until(program: &Program, state: &str, count: u64) {
    let (_, items) = call(program, "GET", "/buffers/b/items?limit=1000", "").await;
    for item in items["items"].as_array().unwrap() {
        let path = format!("/items/{}/response", item["id"].as_str().unwrap());
        call_with(program, "GET", &path, "", &[("prefer", "wait=30")]).await;
    }
    let (_, buffer) = call(program, "GET", "/buffers/b", "").await;
    assert_eq!(buffer["items"][state].as_u64(), Some(count), "{buffer}");
}

/// Starts an origin that records each request body in arrival order. The response status is
/// `status(n)` for arrival number `n`, counted from 0.
pub(crate) async fn noting(
    status: impl Fn(usize) -> u16 + Send + Sync + 'static,
) -> (Origin, Arc<std::sync::Mutex<Vec<String>>>) {
    let seen: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let ours = Arc::clone(&seen);
    let origin = Origin::with(move |number, request| {
        let (seen, status) = (Arc::clone(&ours), status(number));
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            seen.lock()
                .unwrap()
                .push(String::from_utf8(body.to_vec()).unwrap());
            reply(status, "taken")
        }
    })
    .start()
    .await;
    (origin, seen)
}

/// Bodies that the spool acknowledged to producers, and bodies that arrived at the origin, each in
/// order.
#[derive(Default)]
pub(crate) struct Oracle {
    pub(crate) acknowledged: Vec<String>,
    pub(crate) arrived: Vec<String>,
}

impl Oracle {
    /// Asserts that every acknowledged body arrived and that first arrivals are in acknowledged
    /// order. Returns the number of repeated arrivals.
    pub(crate) fn check(&self) -> usize {
        let mut first: HashMap<&str, usize> = HashMap::new();
        for (place, body) in self.arrived.iter().enumerate() {
            first.entry(body).or_insert(place);
        }
        let places: Vec<usize> = self
            .acknowledged
            .iter()
            .map(|body| {
                *first
                    .get(body.as_str())
                    .unwrap_or_else(|| panic!("{body} was acknowledged but never arrived"))
            })
            .collect();
        assert!(places.is_sorted(), "arrivals out of order: {places:?}");
        self.arrived.len() - first.len()
    }
}
