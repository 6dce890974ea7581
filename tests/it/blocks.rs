//! P7 and P13: a refusal of the origin blocks what it speaks of, and nothing else. The block lets one
//! attempt leave per interval, and the other requests take no part in it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::harness::buffers::operate;
use crate::harness::{Client, Origin, Postgres, Program, Proto, reply};

/// Values of `Retry-After`, each with the shortest time between two attempts of the blocked scope.
const WAITS: [(Option<&str>, Duration); 4] = [
    (Some("2"), Duration::from_millis(1950)),
    (None, Duration::from_millis(200)),
    (Some("30"), Duration::from_secs(29)),
    (Some("86400"), Duration::from_secs(800)),
];

/// Kinds of scopes: the name, the limits of the target, and a request for each of five scopes.
const KINDS: [(&str, &str, [Asked; 5]); 4] = [
    (
        "keyed by a credential",
        "[{ name: per-key, rate: \"200/1s\", key: \"header:authorization\" }]",
        [
            BAD_KEY,
            asked("/", "k1", "m"),
            asked("/", "k2", "m"),
            asked("/", "k3", "m"),
            asked("/", "k4", "m"),
        ],
    ),
    (
        "keyed by a model",
        "[{ name: per-model, rate: \"200/1s\", key: \"json:/model\" }]",
        [
            asked("/", "k", "bad"),
            asked("/", "k", "m1"),
            asked("/", "k", "m2"),
            asked("/", "k", "m3"),
            asked("/", "k", "m4"),
        ],
    ),
    (
        "matched by a path",
        "[{ name: all, rate: \"200/1s\" }, { name: search, rate: \"200/1s\", match: { path: \"/bad*\" } }]",
        [
            asked("/bad", "k", "m"),
            asked("/core1", "k", "m"),
            asked("/core2", "k", "m"),
            asked("/core3", "k", "m"),
            asked("/core4", "k", "m"),
        ],
    ),
    (
        "without a key",
        "[{ name: all, rate: \"200/1s\" }]",
        [
            BAD_KEY,
            asked("/", "k1", "m"),
            asked("/", "k2", "m"),
            asked("/", "k3", "m"),
            asked("/", "k4", "m"),
        ],
    ),
];

const BAD_KEY: Asked = asked("/", "bad", "m");

/// One request, as far as a scope depends on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    path: &'static str,
    key: &'static str,
    model: &'static str,
}

pub(crate) const fn asked(path: &'static str, key: &'static str, model: &'static str) -> Asked {
    Asked { path, key, model }
}

pub(crate) fn policy(limits: &str) -> String {
    format!(
        "targets:\n  - name: api\n    hosts: [\"api.test\", \"plain.test\"]\n    max_wait: 1s\n    limits: {limits}\n"
    )
}

fn is_bad(request: &Request<Incoming>) -> bool {
    let named = ["authorization", "x-model"];
    let fields = named.map(|name| {
        request
            .headers()
            .get(name)
            .map(|value| value.as_bytes().to_vec())
    });
    let is = |value: &Option<Vec<u8>>| {
        value
            .as_deref()
            .is_some_and(|value| value.ends_with(b"bad"))
    };
    fields.iter().any(is) || request.uri().path() == "/bad"
}

/// Times at which requests of the bad scope arrived at the origin.
pub(crate) type Attempts = Arc<Mutex<Vec<Instant>>>;

/// Starts an origin that refuses all requests of the bad scope, and answers all others with 200.
pub(crate) async fn refusing(after: Option<&'static str>) -> (Origin, Attempts) {
    let attempts = Attempts::default();
    let seen = Arc::clone(&attempts);
    let origin = Origin::with(move |_, request| {
        let bad = is_bad(&request);
        if bad {
            seen.lock().unwrap().push(Instant::now());
        }
        async move {
            let mut answer = reply(if bad { 429 } else { 200 }, "");
            if let Some(after) = after.filter(|_| bad) {
                answer
                    .headers_mut()
                    .insert("retry-after", after.parse().unwrap());
            }
            answer
        }
    });
    (origin.start().await, attempts)
}

/// Ways in which a client reaches the origin.
const WAYS: [Option<Proto>; 3] = [None, Some(Proto::Http1), Some(Proto::Http2)];

pub(crate) async fn sent(program: &Program, way: Option<Proto>, asked: Asked) -> Response<Bytes> {
    let (mut client, prefix) = match way {
        None => (Client::plain(program).await, "http://plain.test"),
        Some(proto) => (Client::intercepted(program, "api.test", proto).await, ""),
    };
    let request = client
        .request("POST", &format!("{prefix}{}", asked.path))
        .header("authorization", format!("Bearer {}", asked.key))
        .header("x-model", asked.model)
        .header("content-type", "application/json");
    let body = format!("{{\"model\":\"{}\"}}", asked.model);
    client.ask(request.body(Full::from(body)).unwrap()).await
}

/// Checks that the attempts of the bad scope are at least `gap` apart.
fn assert_apart(attempts: &Attempts, gap: Duration, context: &str) {
    let times = attempts.lock().unwrap().clone();
    let gaps: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|one| *one >= gap), "{context}: {gaps:?}");
}

/// Sends requests of the bad scope all the time and one round of the good scopes in each way.
async fn only_the_bad_scope_is_blocked(kind: usize) {
    let (name, limits, [bad, good @ ..]) = KINDS[kind];
    for (after, gap) in WAITS {
        let (origin, attempts) = refusing(after).await;
        let program = Arc::new(Program::before(&origin, &policy(limits)).await);
        let first = sent(&program, None, bad).await;
        assert_eq!(first.status(), 429, "{name} {after:?}");
        let mut storm = tokio::task::JoinSet::new();
        for way in WAYS {
            let program = Arc::clone(&program);
            storm.spawn(async move { sent(&program, way, bad).await.status() });
        }
        for way in WAYS {
            for one in good {
                let status = sent(&program, way, one).await.status();
                assert_eq!(status, 200, "{name} {after:?} {one:?}");
            }
        }
        let refused = storm.join_all().await;
        assert!(
            refused.iter().all(|status| *status == 429),
            "{name} {after:?} {refused:?}"
        );
        assert_apart(&attempts, gap, &format!("{name} {after:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_bad_key_blocks_only_itself() {
    only_the_bad_scope_is_blocked(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_bad_model_blocks_only_itself() {
    only_the_bad_scope_is_blocked(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_bad_path_blocks_only_its_limit() {
    only_the_bad_scope_is_blocked(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_spent_credential_blocks_only_itself() {
    only_the_bad_scope_is_blocked(3).await;
}

/// Starts two programs that share a ledger in Postgres, in front of an origin.
pub(crate) async fn replicas(origin: &Origin, policy: &str) -> (Postgres, [Program; 2]) {
    let postgres = Postgres::start().await;
    let config = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\n{policy}",
        postgres.url()
    );
    let programs = [
        Program::before(origin, &config).await,
        Program::before(origin, &config).await,
    ];
    for program in &programs {
        connected(program).await;
    }
    (postgres, programs)
}

pub(crate) async fn connected(program: &Program) {
    program
        .event(|event| event["message"] == "connected to the ledger")
        .await;
}

/// Returns the blocks of the target that a program knows.
pub(crate) async fn blocks(program: &Program) -> Vec<Value> {
    let (status, told) = operate(program, "GET", "/v1/targets/api/blocks", json!({})).await;
    assert_eq!(status, 200, "{told}");
    told["blocks"].as_array().unwrap().clone()
}

/// Sends requests until one gets this status, for at most one second.
async fn becomes(program: &Program, asked: Asked, status: u16) {
    let by = Instant::now() + Duration::from_secs(1);
    loop {
        let response = sent(program, None, asked).await;
        if response.status() == status {
            return;
        }
        let late = Instant::now() >= by;
        let text = String::from_utf8_lossy(response.body());
        assert!(!late, "{asked:?} did not become {status}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_an_operator_lifts_a_block_on_all_replicas() {
    let (origin, attempts) = refusing(Some("86400")).await;
    let (_postgres, programs) = replicas(&origin, &policy(KINDS[0].1)).await;
    for (by, way) in [
        "/v1/targets/api/blocks?key=Bearer%20bad",
        "/v1/targets/api/blocks?limit=per-key",
        "/v1/targets/api/blocks",
    ]
    .into_iter()
    .zip(WAYS)
    {
        let before = attempts.lock().unwrap().len();
        assert_eq!(sent(&programs[0], way, BAD_KEY).await.status(), 429);
        // The other replica learns of the block without an attempt of its own.
        let by_other = Instant::now() + Duration::from_secs(1);
        while blocks(&programs[1]).await.is_empty() {
            assert!(Instant::now() < by_other, "the block is unknown after 1 s");
        }
        let shown = &blocks(&programs[1]).await[0];
        let until = ["next_attempt_in_s", "origin_until_in_s"].map(|name| shown[name].as_f64());
        assert!(until[0] > Some(800.0) && until[0] <= Some(900.0), "{shown}");
        assert!(
            until[1] > Some(86_300.0) && until[1] <= Some(86_401.0),
            "{shown}"
        );
        let refused = sent(&programs[1], way, BAD_KEY).await;
        let text = String::from_utf8_lossy(refused.body()).into_owned();
        assert_eq!(refused.status(), 429);
        for part in [
            "limit `per-key`",
            "`retry-after: 86400`",
            "answered / with 429",
            "block_max",
        ] {
            assert!(text.contains(part), "{text} lacks {part}");
        }
        let after: u64 = refused.headers()["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((800..=900).contains(&after), "{after}");
        assert_eq!(attempts.lock().unwrap().len(), before + 1, "{by}");
        let (status, told) = operate(&programs[1], "DELETE", by, json!({})).await;
        assert_eq!((status, told["lifted"].as_u64()), (200, Some(1)), "{told}");
        let is_free = async |program: &Program| {
            let by = Instant::now() + Duration::from_secs(1);
            while !blocks(program).await.is_empty() {
                assert!(Instant::now() < by, "the block was not lifted within 1 s");
            }
        };
        is_free(&programs[0]).await;
        is_free(&programs[1]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_block_outlasts_a_restart_of_all_replicas_for_its_key_only() {
    let (origin, attempts) = refusing(Some("86400")).await;
    for (_, limits, [bad, good @ ..]) in KINDS {
        attempts.lock().unwrap().clear();
        let (_postgres, programs) = replicas(&origin, &policy(limits)).await;
        assert_eq!(sent(&programs[0], None, bad).await.status(), 429);
        let by = Instant::now() + Duration::from_secs(1);
        while blocks(&programs[1]).await.is_empty() {
            assert!(Instant::now() < by, "the block is unknown after 1 s");
        }
        // All replicas are down at the same time.
        for program in &programs {
            program.signal("KILL");
        }
        for program in programs {
            let program = program.again().await;
            connected(&program).await;
            for way in WAYS {
                assert_eq!(sent(&program, way, bad).await.status(), 429, "{limits}");
                assert_eq!(sent(&program, way, good[0]).await.status(), 200, "{limits}");
            }
            assert_eq!(attempts.lock().unwrap().len(), 1, "{limits}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_two_refused_credentials_widen_the_block_to_the_target() {
    for shared in [false, true] {
        let (origin, _) = refusing(Some("30")).await;
        let (_postgres, programs) = match shared {
            false => (
                None,
                vec![Program::before(&origin, &policy(KINDS[3].1)).await],
            ),
            true => {
                let (postgres, programs) = replicas(&origin, &policy(KINDS[3].1)).await;
                (Some(postgres), programs.into())
            }
        };
        for _ in 0..3 {
            a_second_credential_widens(&programs, shared).await;
        }
    }
}

/// Has two credentials refused, and lifts the block that holds all of them.
async fn a_second_credential_widens(programs: &[Program], shared: bool) {
    let program = &programs[0];
    let other = asked("/", "k1", "m");
    assert_eq!(sent(program, None, BAD_KEY).await.status(), 429);
    assert_eq!(sent(program, None, other).await.status(), 200);
    let second = asked("/", "too-bad", "m");
    assert_eq!(sent(program, None, second).await.status(), 429);
    for program in programs {
        becomes(program, other, 429).await;
        let (_, told) = operate(program, "DELETE", "/v1/targets/api/blocks", json!({})).await;
        assert_eq!(told["lifted"].as_u64(), Some(1), "{told}");
        becomes(program, other, 200).await;
        if shared {
            break;
        }
    }
    for program in programs {
        becomes(program, other, 200).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_requests_of_a_blocked_key_take_no_place_in_the_queue() {
    let (origin, attempts) = refusing(Some("2")).await;
    let policy = policy(KINDS[0].1)
        .replace("max_wait: 1s", "max_wait: 20s\n    max_waiting: 4")
        .replace("rate: \"200/1s\"", "rate: \"5/1s\"");
    let program = Arc::new(Program::before(&origin, &policy).await);
    let mut storm = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let program = Arc::clone(&program);
        storm.spawn(async move { sent(&program, None, BAD_KEY).await.status() });
    }
    while attempts.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    for good in ["k1", "k2", "k3"] {
        for way in WAYS {
            let status = sent(&program, way, asked("/", good, "m")).await.status();
            assert_eq!(status, 200, "{good}");
        }
    }
    storm.abort_all();
}
