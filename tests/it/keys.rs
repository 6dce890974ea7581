//! Keys of limits: hostile values from every source, many of them, and more than a limit counts
//! separately. Each check runs with the ledger in memory and with one in Postgres.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::json;
use sqlx::Row as _;

use crate::harness::buffers::call;
use crate::harness::{Client, Origin, Postgres, Program, Proto, worst_window};

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

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_no_key_harms_a_target_and_every_key_is_of_the_alphabet() {
    let origin = Origin::ok().await;
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
        assert_eq!(status, 200, "{proto:?} {size} {:?}", program.records());
    }
}

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
    for program in &programs {
        let before = origin.arrivals.count();
        let mut waiting = tokio::task::JoinSet::new();
        for key in 0..600 {
            let address = program.listen;
            waiting.spawn(async move {
                let mut client = Client::to(address, Proto::Http1).await;
                let uri = format!("http://plain.test/?k={key}");
                client.get(&uri).await.status()
            });
        }
        let mut other = Client::intercepted(program, "other.test", Proto::Http1).await;
        for _ in 0..20 {
            let request = Request::builder().uri("/").header("host", "other.test");
            let answer = other.ask(request.body(Full::default()).unwrap()).await;
            assert_eq!(answer.status(), 200);
        }
        while let Some(status) = waiting.join_next().await {
            assert_eq!(status.unwrap(), 200);
        }
        let times: Vec<Duration> = origin.arrivals.times().split_off(before);
        let worst = worst_window(&times, Duration::from_secs(1));
        // The 20 requests to the other target may fall into the same second.
        assert!(worst <= 206 + 20, "worst second: {worst}");
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
