//! What is kept on disk: pushed by the API, delivered in order, found again after every kind of end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use crate::harness::{Client, Origin, Program, Proto, program, reply, soon, worst_window};

const SPOOL: &str = "spool: { min_free: 1MiB, ballast: 1MiB, key: \"only for tests\" }\n";

/// One call; status and JSON.
async fn call(program: &Program, method: &str, path: &str, body: impl ToString) -> (u16, Value) {
    call_with(program, method, path, body, &[]).await
}

async fn call_with(
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
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = request.body(Full::new(body.to_string().into())).unwrap();
    let response = client.ask(body).await;
    let status = response.status().as_u16();
    let json = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
    (status, json)
}

async fn made(program: &Program, more: &Value) -> String {
    let mut buffer = json!({ "name": "b", "url": "http://plain.test/in" });
    for (key, value) in more.as_object().unwrap() {
        buffer[key] = value.clone();
    }
    let (status, made) = call(program, "POST", "/buffers", buffer).await;
    assert_eq!(status, 201, "{made}");
    made["id"].as_str().unwrap().to_owned()
}

/// Waits until the last item of the buffer is over, and says how many stand there.
async fn until(program: &Program, state: &str, count: u64) {
    let (_, items) = call(program, "GET", "/buffers/b/items?limit=1000", "").await;
    for item in items["items"].as_array().unwrap() {
        let path = format!("/items/{}/response", item["id"].as_str().unwrap());
        call_with(program, "GET", &path, "", &[("prefer", "wait=30")]).await;
    }
    let (_, buffer) = call(program, "GET", "/buffers/b", "").await;
    assert_eq!(buffer["items"][state].as_u64(), Some(count), "{buffer}");
}

/// An origin that notes the bodies it gets, in order.
async fn noting(
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

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_of_a_hosted_buffer_service_are_understood() {
    let (origin, seen) = noting(|_| 200).await;
    let program = Program::before(&origin, SPOOL).await;
    let (status, buffer) = call(&program, "POST", "/buffers", json!({
        "name": "orders", "url": "http://plain.test/orders", "method": "POST",
        "headers": { "x-shop": "1" }, "rate_limit": 20, "max_retries": 3, "backoff": "exponential"
    }))
    .await;
    assert_eq!((status, buffer["order"].as_str()), (201, Some("strict")));
    let id = buffer["id"].as_str().unwrap();
    for number in 0..5 {
        let item = json!({ "body": format!("{{\"n\":{number}}}") });
        let (status, item) = call(&program, "POST", &format!("/buffers/{id}/items"), item).await;
        assert_eq!(
            (status, item["seq"].as_i64()),
            (201, Some(number + 1)),
            "{item}"
        );
    }
    origin.arrivals.reached(5).await;
    let expected: Vec<String> = (0..5).map(|number| format!("{{\"n\":{number}}}")).collect();
    assert_eq!(*seen.lock().unwrap(), expected);
    let arrival = origin.arrivals.last();
    assert_eq!(
        (arrival.uri.as_str(), &arrival.headers["x-shop"]),
        ("/orders", &"1".parse().unwrap())
    );
    assert_eq!(
        arrival.headers["idempotency-key"],
        arrival.headers["outpace-item"]
    );
    let (_, attempts) = call(&program, "GET", "/attempts?status=200&limit=3", "").await;
    assert_eq!(attempts["attempts"].as_array().unwrap().len(), 3);
    // The same again is the same; the name with other terms is not.
    let same = json!({ "name": "orders", "url": "http://plain.test/orders", "headers": { "x-shop": "1" },
        "rate_limit": 20, "max_retries": 3 });
    assert_eq!(call(&program, "POST", "/v1/buffers", same).await.0, 200);
    let other = json!({ "name": "orders", "url": "http://plain.test/other" });
    assert_eq!(call(&program, "POST", "/v1/buffers", other).await.0, 409);
}

/// What producers were told, and what the origin saw.
#[derive(Default)]
struct Oracle {
    acknowledged: Vec<String>,
    arrived: Vec<String>,
}

impl Oracle {
    /// Nothing acknowledged is missing, and first arrivals are in order. Returns how many came twice.
    fn check(&self) -> usize {
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
                    .unwrap_or_else(|| panic!("{body} was acknowledged and is lost"))
            })
            .collect();
        assert!(places.is_sorted(), "out of order: {places:?}");
        self.arrived.len() - first.len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_nothing_is_lost_however_often_it_is_killed() {
    const KILLS: usize = 10;
    let (origin, seen) = noting(|_| 200).await;
    let mut program = Program::before(&origin, SPOOL).await;
    made(&program, &json!({ "max_retries": 100, "backoff": [0.01] })).await;
    let mut oracle = Oracle::default();
    let mut number = 0;
    for kill in 0..KILLS {
        let arrived = origin.arrivals.count();
        let address = program.listen;
        let (stop, pushed) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(number)),
        );
        let (stopped, next) = (Arc::clone(&stop), Arc::clone(&pushed));
        let producer = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            let mut client = Client::to(address, Proto::Http1).await;
            while !stopped.load(Ordering::Relaxed) {
                let body = next.fetch_add(1, Ordering::Relaxed).to_string();
                let request = http::Request::post("/buffers/b/items")
                    .header("host", format!("localhost:{}", address.port()))
                    .body(Full::new(json!({ "body": body }).to_string().into()));
                // Killed in the middle: neither kept nor lost is promised.
                match client.try_ask(request.unwrap()).await {
                    Some(response) if response.status() == 201 => acknowledged.push(body),
                    _ => break,
                }
            }
            acknowledged
        });
        // The moment differs: while items are pushed, claimed, sent and recorded.
        origin.arrivals.reached(arrived + 3 + kill * 2).await;
        program.signal("KILL");
        stop.store(true, Ordering::Relaxed);
        oracle.acknowledged.extend(producer.await.unwrap());
        number = pushed.load(Ordering::Relaxed);
        program = program.again().await;
    }
    let (_, pushed) = call(&program, "GET", "/buffers/b", "").await;
    // Those whose acknowledgement was lost may be there, too.
    let kept: u64 = pushed["items"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(Value::as_u64)
        .sum();
    until(&program, "delivered", kept).await;
    oracle.arrived.clone_from(&seen.lock().unwrap());
    let twice = oracle.check();
    let (_, flagged) = call(
        &program,
        "GET",
        "/attempts?outcome=interrupted&limit=1000",
        "",
    )
    .await;
    let flagged = flagged["attempts"].as_array().unwrap().len();
    println!(
        "killed {KILLS} times: {} acknowledged, {} arrived, {twice} twice, {flagged} flagged",
        oracle.acknowledged.len(),
        oracle.arrived.len()
    );
    assert!(
        twice <= flagged,
        "{twice} came twice, {flagged} were flagged"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_told_with_what_to_do_and_leaves_nothing() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, SPOOL).await;
    made(&program, &json!({})).await;
    call(&program, "POST", "/buffers/b/pause", "{}").await;
    let buffer = |more: Value| {
        let mut buffer = json!({ "name": "c", "url": "http://plain.test/" });
        for (key, value) in more.as_object().unwrap() {
            buffer[key] = value.clone();
        }
        buffer
    };
    let cases = [
        (
            "POST",
            "/buffers",
            buffer(json!({ "url": "ftp://a.test/" })),
            400,
            "write it as",
        ),
        (
            "POST",
            "/buffers",
            buffer(json!({ "url": "http://u:pw@a.test/" })),
            400,
            "credentials",
        ),
        (
            "POST",
            "/buffers",
            buffer(json!({ "url": "http://169.254.169.254/" })),
            403,
            "not a public address",
        ),
        (
            "POST",
            "/buffers",
            buffer(json!({ "name": "a b" })),
            400,
            "`name`",
        ),
        (
            "POST",
            "/buffers",
            buffer(json!({ "colour": 1 })),
            400,
            "unknown field `colour`",
        ),
        (
            "POST",
            "/buffers",
            buffer(json!({ "method": "G T" })),
            400,
            "no method",
        ),
        (
            "POST",
            "/buffers",
            buffer(json!({ "headers": { "a b": "c" } })),
            400,
            "`a b`",
        ),
        (
            "POST",
            "/buffers/nobody/items",
            json!({ "body": "x" }),
            404,
            "`nobody`",
        ),
        (
            "POST",
            "/buffers/b/items",
            json!({ "body": "x", "json": 1 }),
            400,
            "exclude each other",
        ),
        (
            "POST",
            "/buffers/b/items",
            json!({ "body": "x", "path": "no" }),
            400,
            "no path",
        ),
        (
            "POST",
            "/buffers/b/items",
            json!({ "body": "x", "expires_at": "2001-01-01T00:00:00Z" }),
            400,
            "expire",
        ),
        (
            "POST",
            "/buffers/b/batch",
            json!([{ "body": "x" }, { "body_base64": "!" }]),
            400,
            "item 1: `body_base64`",
        ),
        ("POST", "/buffers/b/batch", json!([]), 400, "1 to 1000"),
        (
            "POST",
            "/buffers/b/purge",
            json!({}),
            400,
            "queued, dead or history",
        ),
        ("POST", "/buffers/b/explode", json!({}), 404, "there is no"),
        ("PUT", "/buffers/b", json!({}), 405, "PUT"),
        ("GET", "/items/itm_0", json!({}), 404, "itm_0"),
        (
            "GET",
            "/buffers/b/items?state=sunk",
            json!({}),
            400,
            "`sunk`",
        ),
    ];
    for (method, path, body, status, told) in cases {
        let (got, problem) = call(&program, method, path, &body).await;
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(
            got == status && detail.contains(told),
            "{method} {path} {body}: {got} {problem}"
        );
        assert!(
            problem["remedy"]
                .as_str()
                .is_some_and(|remedy| !remedy.is_empty())
        );
    }
    let key = [("idempotency-key", "k1")];
    let first = call_with(
        &program,
        "POST",
        "/buffers/b/items",
        json!({ "body": "x" }),
        &key,
    )
    .await;
    let again = call_with(
        &program,
        "POST",
        "/buffers/b/items",
        json!({ "body": "x" }),
        &key,
    )
    .await;
    assert_eq!(
        (first.0, again.0, &first.1["id"]),
        (201, 200, &again.1["id"])
    );
    let other = call_with(
        &program,
        "POST",
        "/buffers/b/items",
        json!({ "body": "y" }),
        &key,
    )
    .await;
    assert_eq!(
        (other.0, other.1["reason"].as_str()),
        (422, Some("idempotency-key-reused"))
    );
    let large = json!({ "body": "x".repeat(17 << 20) });
    assert_eq!(
        call(&program, "POST", "/buffers/b/items", large).await.0,
        413
    );
    let (_, kept) = call(&program, "GET", "/buffers/b/items", "").await;
    assert_eq!(kept["items"].as_array().unwrap().len(), 1, "{kept}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_the_origin_parks_and_a_poison_item_goes_to_the_dead_letters_and_back() {
    let cured = Arc::new(AtomicBool::new(false));
    let now_well = Arc::clone(&cured);
    let origin = Origin::with(move |number, request| {
        let well = now_well.load(Ordering::Relaxed);
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let poison = body == "poison" && !well;
            let mut response = reply(
                if number == 0 {
                    429
                } else if poison {
                    400
                } else {
                    200
                },
                "",
            );
            if number == 0 {
                response
                    .headers_mut()
                    .insert("retry-after", "1".parse().unwrap());
            }
            response
        }
    })
    .start()
    .await;
    let program = Program::before(&origin, SPOOL).await;
    made(&program, &json!({ "max_retries": 0 })).await;
    for body in ["first", "poison", "last"] {
        call(
            &program,
            "POST",
            "/buffers/b/items",
            json!({ "body": body }),
        )
        .await;
    }
    until(&program, "delivered", 2).await;
    let times = origin.arrivals.times();
    assert!(
        times[1] - times[0] >= Duration::from_millis(990),
        "{times:?}"
    );
    let (_, dead) = call(&program, "GET", "/buffers/b/items?state=dead", "").await;
    let item = &dead["items"][0];
    assert_eq!(
        (item["last_status"].as_i64(), item["attempts"].as_i64()),
        (Some(400), Some(1))
    );
    cured.store(true, Ordering::Relaxed);
    let (_, moved) = call(&program, "POST", "/buffers/b/redrive", "{}").await;
    assert_eq!(moved["redriven"], 1);
    until(&program, "delivered", 3).await;
    let id = item["id"].as_str().unwrap();
    let (_, attempts) = call(&program, "GET", &format!("/items/{id}/attempts"), "").await;
    let outcomes: Vec<_> = attempts["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(outcomes, ["delivered", "rejected"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_a_buffers_own_rate_holds_over_a_restart() {
    let (origin, seen) = noting(|_| 200).await;
    let mut program = Program::before(&origin, SPOOL).await;
    made(&program, &json!({ "rate_limit": 10 })).await;
    let batch: Vec<_> = (0..40).map(|n| json!({ "body": n.to_string() })).collect();
    assert_eq!(
        call(&program, "POST", "/buffers/b/batch", Value::from(batch))
            .await
            .0,
        201
    );
    origin.arrivals.reached(15).await;
    program = program.again().await;
    until(&program, "delivered", 40).await;
    let worst = worst_window(&origin.arrivals.times(), Duration::from_secs(1));
    println!("10/s over a restart: worst second {worst}");
    assert!(worst <= 10, "worst second {worst}");
    assert!(seen.lock().unwrap().len() <= 41);
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_full_spool_refuses_what_is_new_and_goes_on_with_what_it_has() {
    let (origin, seen) = noting(|_| 200).await;
    let spool = "spool: { max: 4MiB, max_body: 1MiB, min_free: 1MiB, ballast: 1MiB }\n";
    let program = Program::before(&origin, spool).await;
    made(&program, &json!({})).await;
    call(&program, "POST", "/buffers/b/pause", "{}").await;
    let body = "x".repeat(100_000);
    let mut kept = 0;
    let full = loop {
        let (status, told) = call(
            &program,
            "POST",
            "/buffers/b/items",
            json!({ "body": body }),
        )
        .await;
        if status != 201 {
            break (status, told);
        }
        kept += 1;
    };
    assert_eq!(
        (full.0, full.1["reason"].as_str()),
        (507, Some("spool-full"))
    );
    assert!(
        full.1["retry_after"].as_f64() > Some(0.0) && kept > 20,
        "{kept} {}",
        full.1
    );
    call(&program, "POST", "/buffers/b/resume", "{}").await;
    until(&program, "delivered", kept).await;
    assert_eq!(seen.lock().unwrap().len() as u64, kept);
    let (_, purged) = call(
        &program,
        "POST",
        "/buffers/b/purge",
        json!({ "state": "history" }),
    )
    .await;
    assert_eq!(purged["purged"], kept);
    assert_eq!(
        call(
            &program,
            "POST",
            "/buffers/b/items",
            json!({ "body": body })
        )
        .await
        .0,
        201
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_secrets_are_sealed_on_disk_and_refused_without_a_key() {
    let (origin, _) = noting(|_| 200).await;
    let program = Program::before(&origin, SPOOL).await;
    let secret = "Bearer very-secret-token";
    made(&program, &json!({ "headers": { "authorization": secret } })).await;
    let item = json!({ "body": "x", "headers": { "x-api-key": "another-secret" } });
    let (_, pushed) = call(&program, "POST", "/buffers/b/items", item).await;
    origin.arrivals.reached(1).await;
    let arrival = origin.arrivals.last();
    assert_eq!(
        (
            &arrival.headers["authorization"],
            &arrival.headers["x-api-key"]
        ),
        (&secret.parse().unwrap(), &"another-secret".parse().unwrap())
    );
    let (_, shown) = call(&program, "GET", "/buffers/b", "").await;
    assert!(!format!("{shown}{pushed}").contains("secret-token"));
    for file in std::fs::read_dir(program.path("data/spool"))
        .unwrap()
        .flatten()
    {
        if file.file_type().unwrap().is_file() {
            let bytes = std::fs::read(file.path()).unwrap();
            let holds = |text: &str| {
                bytes
                    .windows(text.len())
                    .any(|window| window == text.as_bytes())
            };
            assert!(
                !holds("very-secret") && !holds("another-secret"),
                "{:?}",
                file.path()
            );
        }
    }
    let without = Program::before(&origin, "spool: { min_free: 1MiB, ballast: 1MiB }\n").await;
    let buffer =
        json!({ "name": "b", "url": "http://plain.test/", "headers": { "authorization": secret } });
    let (status, told) = call(&without, "POST", "/buffers", buffer).await;
    assert_eq!((status, told["reason"].as_str()), (422, Some("not-kept")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_do_what_its_scopes_say() {
    let origin = Origin::ok().await;
    let clients =
        "clients:\n  - { name: app, token: t1, scopes: [push] }\n  - { name: ops, token: t2 }\n";
    let program = Program::before(&origin, &format!("{SPOOL}{clients}")).await;
    let as_ops = [("authorization", "Bearer ops:t2")];
    let as_app = [("outpace-client-token", "app:t1")];
    let buffer = json!({ "name": "b", "url": "http://plain.test/" });
    assert_eq!(call(&program, "POST", "/buffers", &buffer).await.0, 401);
    assert_eq!(
        call_with(
            &program,
            "POST",
            "/buffers",
            &buffer,
            &[("authorization", "Bearer ops:t1")]
        )
        .await
        .0,
        401
    );
    let (status, told) = call_with(&program, "POST", "/buffers", &buffer, &as_app).await;
    assert_eq!(
        (status, told["reason"].as_str()),
        (403, Some("scope-missing"))
    );
    assert_eq!(
        call_with(&program, "POST", "/buffers", &buffer, &as_ops)
            .await
            .0,
        201
    );
    assert_eq!(
        call_with(
            &program,
            "POST",
            "/buffers/b/items",
            json!({ "body": "x" }),
            &as_app
        )
        .await
        .0,
        201
    );
    assert_eq!(
        call_with(&program, "GET", "/buffers/b", "", &as_app)
            .await
            .0,
        403
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_lost_end_is_noticed_and_a_damaged_item_is_not_sent() {
    let (origin, seen) = noting(|_| 200).await;
    let program = Program::before(&origin, SPOOL).await;
    made(&program, &json!({})).await;
    call(&program, "POST", "/buffers/b/pause", "{}").await;
    let empty = std::fs::read(program.path("data/spool/spool.db-wal"))
        .unwrap()
        .len();
    for body in ["first one", "damaged!!", "third one"] {
        call(
            &program,
            "POST",
            "/buffers/b/items",
            json!({ "body": body }),
        )
        .await;
    }
    program.signal("KILL");
    let spool = program.path("data/spool");
    let wal = std::fs::read(spool.join("spool.db-wal")).unwrap();
    // What a disk that lies about synchronisation leaves.
    std::fs::write(spool.join("spool.db-wal"), &wal[..empty]).unwrap();
    let mut command = program_of(&program);
    let output = soon("the refusal", command.output()).await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(73)
            && told.contains("3 pushes were acknowledged and 0 are there"),
        "{told}"
    );
    std::fs::write(spool.join("spool.db-wal"), &wal).unwrap();
    let mut program = program.again().await;
    // Folded into the database by an orderly end; then a byte of a body is flipped.
    program.signal("TERM");
    program.exit_code().await;
    let mut db = std::fs::read(spool.join("spool.db")).unwrap();
    let at = db
        .windows(9)
        .position(|window| window == b"damaged!!")
        .unwrap();
    db[at] ^= 1;
    std::fs::write(spool.join("spool.db"), db).unwrap();
    let program = program.again().await;
    call(&program, "POST", "/buffers/b/resume", "{}").await;
    until(&program, "delivered", 2).await;
    assert_eq!(*seen.lock().unwrap(), ["first one", "third one"]);
    let (_, dead) = call(&program, "GET", "/buffers/b/items?state=dead", "").await;
    assert!(
        dead["items"][0]["last_error"]
            .as_str()
            .unwrap()
            .contains("damaged"),
        "{dead}"
    );
}

/// The program with the same configuration, to be run to its end.
fn program_of(running: &Program) -> tokio::process::Command {
    let mut command = program();
    command
        .args(["serve", "--config"])
        .arg(running.config_path());
    command.current_dir(running.dir.path());
    command
}
