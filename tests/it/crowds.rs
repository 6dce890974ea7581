//! P4: a refusal at one replica counts the requests that wait at the others, at the cost that they
//! are expected to keep.

use std::sync::Arc;
use std::time::Instant;

use http::{Request, Response};
use http_body_util::Full;
use serde_json::Value;
use sqlx::Row as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::blocks::connected;
use crate::harness::buffers::operate;
use crate::harness::{Client, Origin, Postgres, Program, Proto, reply, soon};

/// Units that a request keeps of those that it announces, in percent.
const KEPT: i64 = 10;

/// Starts an origin whose responses state a tenth of the announced units. A request for `/hold` gets
/// no response.
async fn origin() -> Origin {
    let never = Arc::new(Semaphore::new(0));
    let origin = Origin::with(move |_, request| {
        let never = Arc::clone(&never);
        async move {
            if request.uri().path() == "/hold" {
                never.acquire().await.unwrap().forget();
            }
            let units = request.headers()["x-unit"].to_str().unwrap();
            let units = units.parse::<i64>().unwrap() * KEPT / 100;
            reply(200, &format!("{{\"usage\":{units}}}"))
        }
    });
    origin.start().await
}

fn request(path: &str, units: i64, max_wait: &str) -> Request<Full<bytes::Bytes>> {
    Request::get(format!("http://plain.test{path}"))
        .header("host", "plain.test")
        .header("x-unit", units)
        .header("outpace-max-wait", max_wait)
        .body(Full::default())
        .unwrap()
}

async fn ask(program: &Program, proto: Proto, max_wait: &str) -> Response<bytes::Bytes> {
    let mut client = Client::to(program.listen, proto).await;
    client.ask(request("/", 1000, max_wait)).await
}

/// Sends requests that wait at a replica until the set is dropped.
async fn crowd(program: &Program, tasks: &mut JoinSet<()>, count: usize) {
    for _ in 0..count {
        let mut client = Client::to(program.listen, Proto::Http1).await;
        tasks.spawn(async move {
            let _answer = client.send(request("/", 1000, "10m")).await;
        });
    }
    soon("the crowd", async {
        while waiting(program).await < count as u64 {}
    })
    .await;
}

async fn waiting(program: &Program) -> u64 {
    let (_, status) = operate(program, "GET", "/v1/status", Value::Null).await;
    status["targets"][0]["waiting"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_fail_fast_a_refusal_counts_the_requests_of_other_replicas_at_their_settled_cost() {
    // 100 units per second.
    for rate in ["rate: 6000/1m, burst: 1", "rate: 6000/1m, burst: 6000"] {
        let (postgres, origin) = (Postgres::start().await, origin().await);
        let cost = "cost: { estimate: \"header:x-unit\", settle: \"json:/usage\" }";
        let config = format!(
            "ledger: {{ postgres: {{ url: \"{}\" }} }}\ntargets: [{{ name: api, hosts: [plain.test], max_wait: 10m, limits: [{{ name: tokens, {rate}, {cost} }}] }}]\n",
            postgres.url()
        );
        let programs = [
            Program::before(&origin, &config).await,
            Program::before(&origin, &config).await,
        ];
        for program in &programs {
            connected(program).await;
            // Each replica learns what requests keep.
            for _ in 0..2 {
                let mut client = Client::to(program.listen, Proto::Http2).await;
                let answer = client.ask(request("/", 100, "1m")).await;
                assert_eq!(answer.status(), 200);
            }
        }
        // This request uses up a minute of the rate.
        let mut client = Client::to(programs[0].listen, Proto::Http1).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _answer = client.send(request("/hold", 6000, "1m")).await;
        });
        origin.arrivals.reached(5).await;
        let began = Instant::now();
        crowd(&programs[0], &mut tasks, 10).await;
        crowd(&programs[1], &mut tasks, 30).await;
        // A bucket that was full refills one request while the others wait.
        let least = if rate.ends_with("6000") { 40.0 } else { 90.0 };
        let (from, to) = (least + 6.0, least + 24.0);
        // 60 s by the request on its way, 30 s by the own requests, and up to 10 s by the others. A
        // refusal counts all of them.
        soon("an honest wait", async {
            loop {
                for proto in [Proto::Http1, Proto::Http2] {
                    let refused = ask(&programs[1], proto, "1s").await;
                    assert_eq!(refused.status(), 429);
                    let wait = refused.headers()["retry-after"].to_str().unwrap();
                    let wait = wait.parse::<f64>().unwrap() + began.elapsed().as_secs_f64();
                    assert!(wait <= to, "{rate}: {wait}");
                    let url = "/v1/explain?url=http%3A%2F%2Fplain.test%2F&header=x-unit:1000";
                    let (_, told) = operate(&programs[1], "GET", url, Value::Null).await;
                    let explained = told["next_in_s"].as_f64().unwrap();
                    let explained = explained + began.elapsed().as_secs_f64();
                    assert!(explained <= to, "{rate}: {explained}");
                    println!("{rate}: {wait:.1} s refused, {explained:.1} s explained");
                    // The first replica may have booked so much before that all of the second one
                    // come first.
                    if wait >= from && explained >= least {
                        return;
                    }
                }
            }
        })
        .await;
    }
}

/// Requests that the ledger counts as waiting, of all replicas.
async fn listed(postgres: &Postgres) -> i64 {
    let mut database = postgres.connect().await.unwrap();
    let sum = "select coalesce(sum(waiting), 0)::int8 from outpace.flow";
    let row = sqlx::query(sum).fetch_one(&mut database).await.unwrap();
    row.get(0)
}

/// Other replicas would count requests that have left for as long as half a second after the instant
/// at which their replica was due to ask again.
#[tokio::test(flavor = "multi_thread")]
async fn p4_fail_fast_requests_that_have_left_are_counted_by_no_replica() {
    for limit in [
        "rate: 1/1m",
        "rate: 1/1m, algorithm: sliding_window",
        "rate: 100/1m, burst: 1, cost: { estimate: \"header:x-unit\" }",
    ] {
        let (postgres, origin) = (Postgres::start().await, origin().await);
        let config = format!(
            "ledger: {{ postgres: {{ url: \"{}\" }} }}\ntargets: [{{ name: api, hosts: [plain.test], max_wait: 10m, limits: [{{ {limit} }}] }}]\n",
            postgres.url()
        );
        let one = Program::before(&origin, &config).await;
        let other = Program::before(&origin, &config).await;
        for program in [&one, &other] {
            connected(program).await;
        }
        assert_eq!(ask(&one, Proto::Http1, "1s").await.status(), 200);
        let mut tasks = JoinSet::new();
        crowd(&one, &mut tasks, 3).await;
        soon("the report of the crowd", async {
            while listed(&postgres).await == 0 {}
        })
        .await;
        tasks.shutdown().await;
        soon("the end of the crowd", async {
            while waiting(&one).await > 0 {}
        })
        .await;
        let began = Instant::now();
        soon("the withdrawal", async {
            while listed(&postgres).await > 0 {}
        })
        .await;
        assert!(began.elapsed().as_millis() < 500, "{limit}: {began:?}");
    }
}
