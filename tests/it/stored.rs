//! Reads of stored data always succeed, whatever an earlier version or a call has stored.

use http_body_util::Full;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _};

use crate::harness::buffers::{SPOOL, call, call_with, made, operate};
use crate::harness::{Client, Origin, Postgres, Program, Proto};

/// Hostile numbers for the columns of items and attempts.
const NUMBERS: [i64; 6] = [
    i64::MAX,
    i64::MIN,
    -1,
    253_402_300_800_000,
    1_000_000_000_000_000_000,
    0,
];

const PAUSED: &str = "{\"body\":\"x\",\"delay\":\"1d\"}";

/// Asserts that all calls that read this buffer and its items succeed.
async fn read_all(program: &Program, id: &str, place: &str) {
    let (status, items) = call(
        program,
        "GET",
        &format!("/v1/buffers/{id}/items?limit=1000"),
        "",
    )
    .await;
    assert_eq!(status, 200, "{place}: {items}");
    let mut paths = vec![
        "/v1/buffers".to_owned(),
        format!("/v1/buffers/{id}"),
        format!("/v1/buffers/{id}/stats"),
        "/v1/attempts".to_owned(),
        "/v1/attempts?since=1970-01-01T00:00:00Z".to_owned(),
    ];
    for item in items["items"].as_array().unwrap() {
        let item = item["id"].as_str().unwrap();
        paths.push(format!("/v1/items/{item}"));
        paths.push(format!("/v1/items/{item}/attempts"));
    }
    for path in paths {
        let (status, told) = call(program, "GET", &path, "").await;
        assert_eq!(status, 200, "{place} {path}: {told}");
        let (status, told) = operate(program, "GET", &path, Value::Null).await;
        assert_eq!(status, 200, "{place} admin {path}: {told}");
    }
}

/// Pushes one item that fails and one that waits, so that there are items and attempts.
async fn filled(program: &Program) -> String {
    let id = made(
        program,
        &json!({ "concurrency": 2, "max_retries": 1, "backoff": ["1d"] }),
    )
    .await;
    let push = format!("/buffers/{id}/items");
    let (_, item) = call(program, "POST", &push, r#"{"body":"x"}"#).await;
    assert_eq!(call(program, "POST", &push, PAUSED).await.0, 201);
    let attempts = format!("/items/{}/attempts", item["id"].as_str().unwrap());
    crate::harness::soon("an attempt", async {
        loop {
            let (_, told) = call_with(program, "GET", &attempts, "", &[]).await;
            if told["attempts"]
                .as_array()
                .is_some_and(|all| !all.is_empty())
            {
                return;
            }
        }
    })
    .await;
    id
}

/// Returns statements that store a hostile number in every column of items and attempts, and in the
/// configuration of a buffer.
fn hostile(schema: &str, number: i64) -> Vec<String> {
    let item = [
        "kept",
        "not_before",
        "expires",
        "attempts",
        "retries",
        "refusals",
        "finished",
        "code",
    ];
    let attempt = ["started", "took", "waited", "next", "code"];
    let item = item.map(|column| format!("{column} = {number}")).join(", ");
    let attempt = attempt
        .map(|column| format!("{column} = {number}"))
        .join(", ");
    let mut terms = Vec::new();
    for name in ["timeout_ms", "max_age_ms"] {
        let (from, to) = (
            format!("\"{name}\":"),
            format!("\"{name}\":{number},\"x{name}\":"),
        );
        terms.push(format!(
            "update {schema}buffer set terms = replace(terms, '{from}', '{to}')"
        ));
    }
    terms.push(format!("update {schema}buffer set terms = replace(terms, '\"rate_limit\":null', '\"rate_limit\":1e-300')"));
    terms.push(format!("update {schema}item set {item}"));
    terms.push(format!("update {schema}attempt set {attempt}"));
    terms
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_rows_on_disk_are_shown() {
    for number in NUMBERS {
        let origin = Origin::with(|_, _| async { crate::harness::reply(500, "no") })
            .start()
            .await;
        let program = Program::before(&origin, SPOOL).await;
        let id = filled(&program).await;
        let path = program.path("data/spool/spool.db");
        let mut database = sqlx::SqliteConnection::connect(path.to_str().unwrap())
            .await
            .unwrap();
        for sql in hostile("", number) {
            database
                .execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql)))
                .await
                .unwrap();
        }
        database.close().await.unwrap();
        read_all(&program, &id, &format!("{number}")).await;
        let program = program.again().await;
        read_all(&program, &id, &format!("{number}, restarted")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_rows_in_postgres_are_shown() {
    let postgres = Postgres::start().await;
    let origin = Origin::with(|_, _| async { crate::harness::reply(500, "no") })
        .start()
        .await;
    let config = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\nspool: {{ store: postgres, key: \"only for tests, with 32 bytes or more\" }}\n",
        postgres.url()
    );
    let program = Program::before(&origin, &config).await;
    let id = filled(&program).await;
    let mut database = sqlx::PgConnection::connect(&postgres.url()).await.unwrap();
    for number in NUMBERS {
        for sql in hostile("outpace.", number) {
            database
                .execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql)))
                .await
                .unwrap();
        }
        read_all(&program, &id, &format!("{number}")).await;
    }
}

/// Returns a random value for a field that is a duration or a number.
fn number(dice: &mut StdRng) -> Value {
    match dice.random_range(0..9) {
        0 => json!(0),
        1 => json!(-1),
        2 => json!(0.001),
        3 => json!(34_560_000),
        4 => json!(1e18),
        5 => json!(u64::MAX),
        6 => json!("400d"),
        7 => json!("1ns"),
        _ => json!(dice.random_range(0..100_000)),
    }
}

fn some(dice: &mut StdRng, spec: &mut Value, name: &str, value: impl FnOnce(&mut StdRng) -> Value) {
    if dice.random_bool(0.3) {
        spec[name] = value(dice);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_a_call_accepts_can_be_read() {
    let seed = 7;
    let mut dice = StdRng::seed_from_u64(seed);
    let origin = Origin::with(|_, _| async { crate::harness::reply(503, "no") })
        .start()
        .await;
    let program = Program::before(&origin, SPOOL).await;
    let (mut buffers, mut items) = (0, 0);
    for round in 0..60 {
        let mut buffer = json!({ "name": format!("b{round}"), "url": "http://plain.test/" });
        for name in [
            "timeout",
            "max_age",
            "max_retries",
            "concurrency",
            "rate_limit",
        ] {
            some(&mut dice, &mut buffer, name, number);
        }
        some(&mut dice, &mut buffer, "backoff", |dice| {
            json!([number(dice), number(dice)])
        });
        some(&mut dice, &mut buffer, "on_exhausted", |_| json!("block"));
        let (status, told) = call(&program, "POST", "/buffers", &buffer).await;
        assert!(matches!(status, 201 | 400), "{buffer}: {status} {told}");
        let Some(id) = told["id"].as_str() else {
            continue;
        };
        buffers += 1;
        for _ in 0..4 {
            let mut item = json!({ "body": "x" });
            some(&mut dice, &mut item, "delay", number);
            some(&mut dice, &mut item, "not_before", |_| {
                json!("2026-12-31T23:59:59.999999999Z")
            });
            some(&mut dice, &mut item, "expires_at", |_| {
                json!("9999-12-31T23:59:59.999999999Z")
            });
            some(
                &mut dice,
                &mut item,
                "metadata",
                |dice| json!({ "\u{0}": [number(dice), null] }),
            );
            let (status, told) =
                call(&program, "POST", &format!("/buffers/{id}/items"), &item).await;
            assert!(matches!(status, 201 | 400), "{item}: {status} {told}");
            items += usize::from(status == 201);
        }
        read_all(&program, id, &format!("seed {seed}, {buffer}")).await;
    }
    assert!(
        buffers > 5 && items > 20,
        "{buffers} buffers, {items} items"
    );
}

/// Sends one JSON call and returns the text of the response.
async fn text(program: &Program, proto: Proto, method: &str, path: &str, body: &str) -> String {
    let mut client = Client::to(program.listen, proto).await;
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", format!("localhost:{}", program.listen.port()))
        .header("content-type", "application/json")
        .body(Full::new(body.to_owned().into()))
        .unwrap();
    let answer = client.ask(request).await;
    let text = String::from_utf8_lossy(answer.body()).into_owned();
    assert!(answer.status().is_success(), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_the_numbers_in_metadata_keep_their_digits() {
    let origin = Origin::ok().await;
    let postgres = Postgres::start().await;
    let shared = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\nspool: {{ store: postgres, key: \"only for tests, with 32 bytes or more\" }}\n",
        postgres.url()
    );
    for config in [SPOOL, &shared] {
        let program = Program::before(&origin, config).await;
        made(&program, &json!({})).await;
        for proto in [Proto::Http1, Proto::Http2] {
            for number in [
                "31.245270191439438",
                "5e-324",
                "1.7976931348623157e+308",
                "0.1",
            ] {
                let body = format!(r#"{{"body":"x","metadata":{{"n":{number}}}}}"#);
                let path = "/v1/buffers/b/items";
                let pushed = text(&program, proto, "POST", path, &body).await;
                let pushed: Value = serde_json::from_str(&pushed).unwrap();
                let path = format!("/v1/items/{}", pushed["id"].as_str().unwrap());
                let item = text(&program, proto, "GET", &path, "").await;
                let expected = format!(r#""n":{number}"#);
                assert!(item.contains(&expected), "{proto:?} {number}: {item}");
            }
        }
    }
}
