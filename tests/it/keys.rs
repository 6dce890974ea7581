//! Keys of limits: hostile values from every source, many of them, and more than a limit counts
//! separately. Each check runs with the ledger in memory and with one in Postgres.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use outpace::db::Database;
use outpace::ledger::{Call, Link as _, LinkError, PostgresLink, Reply, Run};
use outpace::policy::{
    Algorithm, Bound, KeySecret, Limit, LimitSet, Scope, Secret, Source, Target,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::json;
use smallvec::smallvec;
use sqlx::{Connection as _, Row as _};

use crate::harness::buffers::call;
use crate::harness::{Client, Origin, Postgres, Program, Proto, reply, soon, worst_window};

const CALLS: &str = "outpace_ledger_calls_total";
const VOIDED: &str = "outpace_slots_voided_total{target=\"api\"}";
const TARGETS: &str = "targets:
  - name: api
    hosts: [\"plain.test\"]
    limits:
      - { rate: \"1000/1s\", burst: 1000, key: path }
      - { rate: \"1000/1s\", burst: 1000, key: client }
      - { rate: \"1000/1s\", burst: 1000, key: \"query:k\" }
      - { rate: \"1000/1s\", burst: 1000, key: \"header:x-k\" }
      - { rate: \"1000/1s\", burst: 1000, key: \"json:/k\" }
";

/// Starts one program with the ledger in memory, and one with a ledger in Postgres.
async fn both(origin: &Origin, targets: &str) -> (Postgres, [Program; 2]) {
    let postgres = Postgres::start().await;
    let shared = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\n{targets}",
        postgres.url()
    );
    let programs = [
        Program::before(origin, targets).await,
        Program::before(origin, &shared).await,
    ];
    programs[1]
        .event(|event| event["message"] == "connected to the ledger")
        .await;
    (postgres, programs)
}

/// Sends a request through the proxy and returns its status.
async fn sent(program: &Program, proto: Proto, uri: &str, header: &[u8], body: String) -> u16 {
    let mut client = Client::to(program.listen, proto).await;
    let request = client
        .request("POST", uri)
        .header("x-k", http::HeaderValue::from_bytes(header).unwrap())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    client.ask(request).await.status().as_u16()
}

/// Reaches the bound `KEY_BYTES`.
#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_no_key_harms_a_target_and_every_key_is_of_the_alphabet() {
    // An origin that leaves a long body unread would break the connection.
    let origin = Origin::with(|_, request| async move {
        request.into_body().collect().await.unwrap();
        reply(200, "ok")
    });
    let origin = origin.start().await;
    let (postgres, programs) = both(&origin, TARGETS).await;
    let long = "x".repeat(900_000);
    for program in &programs {
        for key in ["\0", "\u{1f600}", "a\"b'c\\d", "", " ", "\u{202e}x", &long] {
            let path = "/v1/targets/api/acquire";
            let (status, body) = call(program, "POST", path, json!({ "key": key })).await;
            assert_eq!(status, 200, "{:?}: {body}", key.get(..9));
        }
        for proto in [Proto::Http1, Proto::Http2] {
            hostile_requests(program, proto).await;
        }
    }
    let mut connection = postgres.connect().await.unwrap();
    let rows = sqlx::query("select key from outpace.schedule");
    let rows = rows.fetch_all(&mut connection).await.unwrap();
    assert!(rows.len() > 20, "{} keys", rows.len());
    for row in rows {
        let key: String = row.get(0);
        let allowed = |byte: u8| byte.is_ascii_graphic() && !b"\"'\\".contains(&byte);
        let is_short = (1..=128).contains(&key.len());
        assert!(is_short && key.bytes().all(allowed), "{key:?}");
    }
}

/// Sends requests with hostile keys in every part of a request, and expects that all are served.
async fn hostile_requests(program: &Program, proto: Proto) {
    let long = format!("/{}", "p".repeat(3000));
    for path in ["/%00", "/%F0%9F%98%80", "/%22%27%5C", "/a%0Ab", &long] {
        for uri in [
            format!("http://plain.test{path}"),
            format!("http://plain.test/?k={}", &path[1..]),
        ] {
            let status = sent(program, proto, &uri, b"x", "{}".into()).await;
            assert_eq!(status, 200, "{proto:?} {path}");
        }
    }
    for header in [&b"\xff\xfe"[..], b"a\tb", b"'\"\\", &[b'h'; 4000]] {
        let uri = "http://plain.test/";
        assert_eq!(sent(program, proto, uri, header, "{}".into()).await, 200);
    }
    for body in [
        r#"{"k":"\u0000"}"#.to_owned(),
        r#"{"k":"\ud800"}"#.to_owned(),
        r#"{"k":{"a":[1,"'"]}}"#.to_owned(),
        format!(r#"{{"k":"{}"}}"#, "j".repeat(200_000)),
        format!(r#"{{"k":"{}"}}"#, "j".repeat(1024 * 1024)),
    ] {
        let uri = "http://plain.test/";
        let size = body.len();
        let status = sent(program, proto, uri, b"x", body).await;
        assert_eq!(status, 200, "{proto:?} {size}");
    }
}

/// Reaches the bound `KEYS_PER_LIMIT`.
#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_keys_beyond_max_keys_share_one_schedule() {
    let origin = Origin::ok().await;
    let targets = "targets:
  - name: api
    hosts: [\"plain.test\"]
    max_wait: 0s
    limits: [{ rate: \"2/1h\", burst: 2, key: path, max_keys: 3 }]
";
    let (_postgres, programs) = both(&origin, targets).await;
    for program in &programs {
        let mut client = Client::plain(program).await;
        for path in ["a", "b", "c"] {
            let uri = format!("http://plain.test/{path}");
            assert_eq!(client.get(&uri).await.status(), 200, "{path}");
        }
        let mut served = 0;
        for key in 0..20 {
            let answer = client.get(&format!("http://plain.test/k{key}")).await;
            served += usize::from(answer.status() == 200);
        }
        assert_eq!(served, 2, "further keys have the limit's rate together");
        assert_eq!(client.get("http://plain.test/a").await.status(), 200);
        assert_eq!(client.get("http://plain.test/a").await.status(), 429);
        let series = "outpace_keys_overflowed_total{target=\"api\"}";
        assert!(program.metric(series).await >= 2.0);
        program
            .event(|event| event["limit"] == "0" && event["target"] == "api")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_full_use_with_many_waiting_keys_while_another_target_is_served() {
    let origin = Origin::ok().await;
    let targets = "targets:
  - name: api
    hosts: [\"plain.test\"]
    max_wait: 60s
    limits:
      - { name: all, rate: \"200/1s\", burst: 1 }
      - { name: each, rate: \"1/1s\", burst: 1, key: \"query:k\" }
  - { name: other, hosts: [\"other.test\"], limits: [{ rate: \"1000/1s\", burst: 1000 }] }
";
    let (_postgres, programs) = both(&origin, targets).await;
    for (program, crowd) in programs.iter().zip([600, 2000]) {
        let before = origin.arrivals.count();
        let mut waiting = tokio::task::JoinSet::new();
        for key in 0..crowd {
            let address = program.listen;
            waiting.spawn(async move {
                let mut client = Client::to(address, Proto::Http1).await;
                let uri = format!("http://plain.test/?k={key}");
                client.get(&uri).await.status()
            });
        }
        let series = "outpace_waiting{target=\"api\"}";
        soon("the crowd", async {
            while program.metric(series).await < 100.0 {}
        })
        .await;
        let mut other = Client::intercepted(program, "other.test", Proto::Http1).await;
        for _ in 0..20 {
            let request = Request::builder().uri("/").header("host", "other.test");
            let answer = other.ask(request.body(Full::default()).unwrap()).await;
            assert_eq!(answer.status(), 200);
        }
        assert!(program.metric(series).await > 0.0, "no crowd was left");
        while let Some(status) = waiting.join_next().await {
            assert_eq!(status.unwrap(), 200);
        }
        let times: Vec<Duration> = origin.arrivals.times().split_off(before);
        let worst = worst_window(&times, Duration::from_secs(1));
        // The 20 requests to the other target may fall into the same second.
        println!("{crowd} waiters: {worst} in the best second");
        assert!((198..=206 + 20).contains(&worst), "worst second: {worst}");
        let failed = |event: &serde_json::Value| {
            let message = event["message"].as_str().unwrap_or_default();
            message.contains("fallback mode")
        };
        assert!(!program.events().iter().any(failed), "an outage");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_all_replicas_count_a_secret_under_the_same_key() {
    let origin = Origin::ok().await;
    let targets = "targets:
  - name: api
    hosts: [\"plain.test\"]
    max_wait: 0s
    limits: [{ rate: \"2/1h\", burst: 2, key: \"header:x-k\" }]
";
    let (postgres, [_, one]) = both(&origin, targets).await;
    let config = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\n{targets}",
        postgres.url()
    );
    let other = Program::before(&origin, &config).await;
    other
        .event(|event| event["message"] == "connected to the ledger")
        .await;
    let mut statuses = Vec::new();
    for program in [&one, &other, &one, &other] {
        let uri = "http://plain.test/";
        statuses.push(sent(program, Proto::Http1, uri, b"sk-secret", String::new()).await);
    }
    assert_eq!(statuses, [200, 200, 429, 429]);
    let mut connection = postgres.connect().await.unwrap();
    let rows = sqlx::query("select secret from outpace.key_secret");
    let rows = rows.fetch_all(&mut connection).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].get::<String, _>(0).len(), 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_full_use_no_slot_is_lost_while_the_ledger_answers_slowly() {
    let origin = Origin::ok().await;
    let targets = "targets:
  - name: api
    hosts: [plain.test, api.test]
    max_wait: 0s
    limits: [{ rate: \"2/1h\", burst: 2, key: path }]
";
    let (postgres, [_, program]) = both(&origin, targets).await;
    for (key, tls, proto) in [
        ("a", false, Proto::Http1),
        ("b", false, Proto::Http2),
        ("c", true, Proto::Http1),
        ("d", true, Proto::Http2),
    ] {
        let (mut client, uri) = if tls {
            let client = Client::intercepted(&program, "api.test", proto).await;
            (client, format!("/{key}"))
        } else {
            let client = Client::to(program.listen, proto).await;
            (client, format!("http://plain.test/{key}"))
        };
        let (mut served, voided) = (0, program.metric(VOIDED).await);
        for _ in 0..2 {
            let mut lock = postgres.connect().await.unwrap();
            let held = "select pg_advisory_lock(hashtextextended('outpace.api', 0))";
            sqlx::query(held).execute(&mut lock).await.unwrap();
            let before = program.metric(CALLS).await;
            let mut answer = pin!(client.get(&uri));
            // The store makes the first call wait for the lock for 20 ms.
            let calls = soon("the calls", async {
                while program.metric(CALLS).await < before + 2.0 {}
            });
            let early = tokio::select! {
                biased;
                answer = &mut answer => Some(answer),
                () = calls => None,
            };
            lock.close().await.unwrap();
            let status = match early {
                // Nothing can be booked here unless a void slot has used up the limit.
                Some(answer) => {
                    assert_eq!(answer.status(), 429, "{key}: {:?}", answer.body());
                    answer.status()
                }
                None => answer.await.status(),
            };
            served += usize::from(status == 200);
        }
        while client.get(&uri).await.status() == 200 {
            served += 1;
        }
        // On a busy machine a slot may be late, so that it is void and booked again.
        let voided = program.metric(VOIDED).await - voided;
        assert_eq!(served + voided as usize, 2, "{key}: {voided} void slots");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_any_text_as_a_key_leaves_the_ledger_usable() {
    let postgres = Postgres::start().await;
    let database = Database::new(&Secret::new(postgres.url()), 2, None).unwrap();
    let link = PostgresLink::new(database, "one".into(), true);
    link.prepare().await.unwrap();
    let mut limits = LimitSet::default();
    limits.insert(0);
    let rate = "1000/1s".parse().unwrap();
    let algorithm = Algorithm::TokenBucket { burst: Some(1000) };
    let mut limit = Limit::new("l", Bound::Rate { rate, algorithm });
    limit.key = Some(Source::Path.into());
    let target = Target::named("t", vec![limit]);
    let booked = async |key: Arc<str>| {
        let scope = Scope::plain(limits).with(vec![(0, key)], Vec::new());
        let call = Call {
            horizon: 1_000_000_000,
            ..Call::new(&target, smallvec![Run::new(scope, 1, 1)], 1)
        };
        match link.call(&call).await {
            Ok(Reply::Answer { answer, .. }) => Ok(answer.runs[0].slots.len()),
            Ok(Reply::Busy) => panic!("no other call holds the lock"),
            Err(error) => Err(error),
        }
    };
    // A new row of a target books nothing for two seconds after a restart of the server only.
    assert_eq!(booked("/".into()).await.unwrap(), 1);
    let secret = KeySecret::new([7; 32]);
    let runtime = tokio::runtime::Handle::current();
    let mut runner = TestRunner::new(Config {
        cases: 64,
        failure_persistence: None,
        ..Config::default()
    });
    let text = "\\PC*|(?s:.*)|[\u{0}-\u{1f}\"'\\\\$%_]{0,9}|[ -~]{3000}";
    let outcome = tokio::task::block_in_place(|| {
        runner.run(&text, |text: String| {
            runtime.block_on(async {
                // A key that a request makes is booked in any case.
                for source in [Source::Client, Source::Path, Source::Query("k".into())] {
                    let key = source.key_of(&text, &secret);
                    prop_assert_eq!(booked(key).await.map_err(fail)?, 1);
                }
                // The text itself is booked or refused alone, and is never an outage.
                let raw = booked(text.as_str().into()).await;
                let is_refused = matches!(raw, Err(LinkError::Refused(_)));
                prop_assert!(is_refused || matches!(raw, Ok(1)), "{:?}", raw);
                prop_assert_eq!(booked("/".into()).await.map_err(fail)?, 1);
                Ok(())
            })
        })
    });
    outcome.unwrap();
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` gives the error")]
fn fail(error: LinkError) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}
