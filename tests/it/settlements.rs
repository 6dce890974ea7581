//! The word of an origin about costs and pauses is capped, and an operator can have it forgotten.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::Full;
use serde_json::Value;
use sqlx::{Connection as _, Row as _};

use crate::blocks::connected;
use crate::harness::buffers::operate;
use crate::harness::{Client, Origin, Postgres, Program, Proto, reply, soon};

const TARGET: &str = "targets: [{ name: api, hosts: [plain.test], max_wait: 1s, limits: [{ name: tokens, RATE, cost: { settle: \"json:/usage\" } }] }]\n";

/// Starts an origin that states these costs, one per response, and then a cost of 1.
async fn stating(costs: &'static [&'static str]) -> Origin {
    let next = Arc::new(AtomicUsize::new(0));
    let answer = move |_, _| {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let cost = costs.get(number).copied().unwrap_or("1");
        async move { reply(200, &format!("{{\"usage\":{cost}}}")) }
    };
    Origin::with(answer).start().await
}

fn config(rate: &str, postgres: Option<&Postgres>) -> String {
    let ledger = postgres.map(|postgres| {
        format!(
            "ledger: {{ postgres: {{ url: \"{}\" }} }}\n",
            postgres.url()
        )
    });
    ledger.unwrap_or_default() + &TARGET.replace("RATE", rate)
}

/// Sends one request and returns its status and the seconds of its `Retry-After`.
async fn ask(program: &Program, proto: Proto) -> (u16, u64) {
    let mut client = Client::to(program.listen, proto).await;
    let request = http::Request::get("http://plain.test/")
        .header("host", "plain.test")
        .body(Full::default())
        .unwrap();
    let answer = client.ask(request).await;
    let wait = answer.headers().get("retry-after");
    let wait = wait.and_then(|wait| wait.to_str().ok()?.parse().ok());
    (answer.status().as_u16(), wait.unwrap_or(0))
}

/// Waits until a request gets this status, and returns its `Retry-After`.
async fn until(program: &Program, wanted: u16) -> u64 {
    soon("the status", async {
        loop {
            let (status, wait) = ask(program, Proto::Http1).await;
            if status == wanted {
                return wait;
            }
        }
    })
    .await
}

/// Waits until Postgres holds a settlement of the limit.
async fn settled(postgres: &Postgres) {
    let mut database = sqlx::PgConnection::connect(&postgres.url()).await.unwrap();
    soon("the settlement", async {
        loop {
            let sql = "select coalesce(sum(settled), 0)::int8 + coalesce(sum(case kind when 'sliding' then used else 0 end), 0)::int8 from outpace.schedule";
            let row = sqlx::query(sql).fetch_one(&mut database).await.unwrap();
            if row.get::<i64, _>(0) > 0 {
                return;
            }
        }
    })
    .await;
}

async fn forget(program: &Program, query: &str) -> (u16, Value) {
    let path = format!("/v1/targets/api/limits/tokens/usage{query}");
    operate(program, "DELETE", &path, Value::Null).await
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_signals_a_stated_cost_is_capped_and_can_be_forgotten_in_memory() {
    for rate in [
        "rate: 100/1m, burst: 1",
        "rate: 100/1m, burst: 50",
        "rate: 100/1m, algorithm: sliding_window",
        "rate: 100/1h, algorithm: fixed_window",
    ] {
        for proto in [Proto::Http1, Proto::Http2] {
            for cost in [&["1000000000"] as &[_], &["1e300"], &["100"]] {
                let origin = stating(cost).await;
                let program = Program::before(&origin, &config(rate, None)).await;
                assert_eq!(ask(&program, proto).await.0, 200);
                let (status, wait) = ask(&program, proto).await;
                let most = if rate.contains("1h") { 2 * 3600 } else { 61 };
                assert!(
                    status == 429 && wait <= most,
                    "{rate} {cost:?}: {status} {wait}"
                );
                let capped = program.metric("outpace_settlements_capped_total{target=\"api\"}");
                let expected = if cost == ["100"] { 0.0 } else { 1.0 };
                if expected > 0.0 {
                    assert!((capped.await - expected).abs() < 0.1, "{rate} {cost:?}");
                }
                assert_eq!(forget(&program, "").await.0, 200);
                assert_eq!(ask(&program, proto).await.0, 200, "{rate} {cost:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_signals_forgotten_settlements_are_forgotten_by_all_replicas() {
    for rate in [
        "rate: 100/1m, burst: 1",
        "rate: 100/1m, algorithm: sliding_window",
        "rate: 100/1h, algorithm: fixed_window",
    ] {
        let postgres = Postgres::start().await;
        let origin = stating(&["1000000000"]).await;
        let config = config(rate, Some(&postgres));
        let (one, other) = (
            Program::before(&origin, &config).await,
            Program::before(&origin, &config).await,
        );
        assert_eq!(ask(&one, Proto::Http1).await.0, 200);
        settled(&postgres).await;
        let most = if rate.contains("1h") { 2 * 3600 } else { 61 };
        for program in [&one, &other] {
            // A request that the other replica has just refused counts there until it would ask again.
            soon("the wait of the settlement alone", async {
                while !(2..=most).contains(&until(program, 429).await) {}
            })
            .await;
        }
        assert_eq!(forget(&one, "").await.0, 200);
        for program in [&one, &other] {
            until(program, 200).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_forgetting_settlements_forgets_no_request() {
    let origin = stating(&["7", "7", "7", "7", "7"]).await;
    for rate in [
        "rate: 5/1h, burst: 5",
        "rate: 5/1h, algorithm: sliding_window",
    ] {
        let program = Program::before(&origin, &config(rate, None)).await;
        let mut passed = 0;
        for _ in 0..12 {
            passed += usize::from(ask(&program, Proto::Http1).await.0 == 200);
            assert_eq!(forget(&program, "").await.0, 200);
        }
        assert_eq!(passed, 5, "{rate}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn absurd_costs_of_slow_limits_overflow_nothing() {
    let postgres = Postgres::start().await;
    for (rate, most) in [
        ("rate: 1/400d", 400),
        ("rate: 10/400d, burst: 9", 401),
        ("rate: 3/400d, algorithm: fixed_window", 800),
    ] {
        for ledger in [None, Some(&postgres)] {
            let origin = stating(&["1e9", "1e300", "-1", "0.5", "\"x\""]).await;
            let config = config(rate, ledger);
            let program = Program::before(&origin, &config).await;
            for _ in 0..6 {
                let (status, wait) = ask(&program, Proto::Http1).await;
                assert!(matches!(status, 200 | 429), "{rate}: {status}");
                assert!(wait <= most * 86_400 + 60, "{rate}: {wait}");
                assert_eq!(forget(&program, "").await.0, 200);
            }
            assert!(
                program
                    .events()
                    .iter()
                    .all(|event| event["level"] != "error")
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_query_of_the_usage_call_is_refused() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, &config("rate: 1/1s, key: path", None)).await;
    for (query, status) in [
        ("?x=1", 400),
        ("?key=a&key=b", 400),
        ("?key=a&digest=b", 422),
        ("?digest=%00", 422),
        ("?key=/a", 200),
        ("", 200),
    ] {
        let (got, told) = forget(&program, query).await;
        assert_eq!(got, status, "{query}: {told}");
    }
    let path = "/v1/targets/api/limits/none/usage";
    assert_eq!(operate(&program, "DELETE", path, Value::Null).await.0, 404);
}

/// Reaches the bound `BLOCK_MAX`.
#[tokio::test(flavor = "multi_thread")]
async fn p7_signals_a_block_lasts_at_most_block_max() {
    for (key, most) in [
        ("", 900),
        (", block_max: 30s", 30),
        (", block_max: 2h", 7200),
    ] {
        for asked in ["999999999", "86400", "604800"] {
            let origin = Origin::with(move |_, _| async move {
                let mut answer = reply(429, "later");
                answer
                    .headers_mut()
                    .insert("retry-after", asked.parse().unwrap());
                answer
            });
            let origin = origin.start().await;
            let target =
                format!("targets: [{{ name: api, hosts: [plain.test], max_wait: 1s{key} }}]\n");
            let program = Program::before(&origin, &target).await;
            assert_eq!(
                ask(&program, Proto::Http1).await,
                (429, asked.parse().unwrap())
            );
            let (status, wait) = ask(&program, Proto::Http2).await;
            assert!(
                status == 429 && (most - 20..=most).contains(&wait),
                "{key} {asked}: {wait}"
            );
        }
    }
}

/// Returns the estimate of a request that announces 10 units under this key.
async fn estimate(program: &Program, key: &str) -> i64 {
    let url = format!("http%3A%2F%2Fplain.test%2F%3Fk%3D{key}");
    let path = format!("/v1/explain?url={url}&header=x-unit:10");
    let (_, told) = operate(program, "GET", &path, Value::Null).await;
    told["limits"][0]["cost"].as_i64().unwrap()
}

/// Starts one replica, or two that share this database. Each is answered with a wrong usage once.
async fn misled(rate: &str, postgres: Option<&Postgres>) -> (Origin, Vec<Program>) {
    let cost = "key: \"query:k\", cost: { estimate: { learned: \"header:x-unit\" }, default: 10";
    let config = config(rate, postgres).replace("cost: {", &format!("{cost},"));
    let origin = stating(&["1000000000"; 2]).await;
    let mut programs = vec![Program::before(&origin, &config).await];
    if postgres.is_some() {
        programs.push(Program::before(&origin, &config).await);
        for program in &programs {
            connected(program).await;
        }
    }
    for (program, key) in programs.iter().zip(["a", "b"]) {
        let mut client = Client::to(program.listen, Proto::Http1).await;
        let request = http::Request::get(format!("http://plain.test/?k={key}"))
            .header("host", "plain.test")
            .header("x-unit", "10");
        let answer = client.ask(request.body(Full::default()).unwrap()).await;
        assert_eq!(answer.status(), 200, "{rate}");
    }
    (origin, programs)
}

/// Waits until all keys have this estimate at all replicas.
async fn estimates(programs: &[Program], expected: i64) {
    soon("the estimates of all replicas", async {
        for (program, own) in programs.iter().zip(["a", "b"]) {
            for key in [own, "new"] {
                while estimate(program, key).await != expected {}
            }
        }
    })
    .await;
}

/// A wrong settlement would scale the estimates of all later requests.
#[tokio::test(flavor = "multi_thread")]
async fn p7_signals_forgotten_settlements_teach_no_estimate_of_any_replica() {
    for (rate, query) in [
        ("rate: 10000/1h", "?key=a"),
        ("rate: 10000/1h, algorithm: sliding_window", ""),
        ("rate: 10000/1h, algorithm: fixed_window", "?key=none"),
    ] {
        let postgres = Postgres::start().await;
        for ledger in [None, Some(&postgres)] {
            let (_origin, programs) = misled(rate, ledger).await;
            estimates(&programs, 10_000).await;
            assert_eq!(forget(&programs[0], query).await.0, 200);
            estimates(&programs, 10).await;
        }
    }
}
