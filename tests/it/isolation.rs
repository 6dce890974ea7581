//! P7 and P13 at scale: 20 scopes behind 4 replicas that share Postgres, of which the origin refuses
//! one. The table that each test prints compares the others with a round without the bad scope.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::blocks::{blocks, connected};
use crate::harness::buffers::operate;
use crate::harness::{Client, Origin, Postgres, Program, Proto, Reply, reply, soon};

const REPLICAS: usize = 4;
const SCOPES: usize = 20;
/// Requests that each scope sends at each replica in one round, and the time between two of them.
const REQUESTS: usize = 6;
const EVERY: Duration = Duration::from_millis(500);
/// Time in which all replicas learn of a block.
const KNOWN: Duration = Duration::from_millis(150);
/// Number of the scope that the origin refuses.
const BAD: usize = 7;

/// Refusals of an origin: name, status, fields, body, and the shortest time between two attempts of
/// the bad scope, or `None` if each of its requests is one attempt.
type Refusing = (
    &'static str,
    u16,
    &'static [(&'static str, &'static str)],
    &'static str,
    Option<Duration>,
);

const LONG: Duration = Duration::from_secs(800);

const REFUSALS: [Refusing; 6] = [
    (
        "2",
        429,
        &[("retry-after", "2")],
        "{}",
        Some(Duration::from_millis(1900)),
    ),
    ("none", 429, &[], "{}", Some(Duration::from_millis(200))),
    (
        "30",
        429,
        &[("retry-after", "30")],
        "{}",
        Some(Duration::from_secs(29)),
    ),
    ("86400", 429, &[("retry-after", "86400")], "{}", Some(LONG)),
    (
        "403",
        403,
        &[
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "3000"),
        ],
        "{}",
        Some(LONG),
    ),
    (
        "quota",
        429,
        &[],
        r#"{"error":{"code":"insufficient_quota"}}"#,
        None,
    ),
];

/// Kind of scopes: the limits of the target, and how the request of a scope differs from others.
struct Kind {
    limits: &'static str,
    key: fn(usize) -> String,
    path: fn(usize) -> String,
    model: fn(usize) -> String,
    host: fn(usize) -> &'static str,
}

const BY_KEY: Kind = Kind {
    limits: r#"[{ name: per-key, rate: "10/1s", key: "header:authorization" }]"#,
    key: |scope| format!("key-{scope}"),
    path: |_| "/v1".to_owned(),
    model: |_| "m".to_owned(),
    host: |_| "api.test",
};

const BY_MODEL: Kind = Kind {
    limits: r#"[{ name: all, rate: "1000/1s" }, { name: per-model, rate: "10/1s", key: "json:/model" }]"#,
    key: |_| "one".to_owned(),
    path: |_| "/v1".to_owned(),
    model: |scope| format!("model-{scope}"),
    host: |_| "api.test",
};

/// Only the bad scope asks for `/search`, which has a limit of its own.
const BY_PATH: Kind = Kind {
    limits: r#"[{ name: core, rate: "1000/1s" }, { name: search, rate: "10/1s", match: { path: "/search*" } }]"#,
    key: |_| "one".to_owned(),
    path: |scope| match scope {
        BAD => "/search/code".to_owned(),
        _ => format!("/repos/{scope}"),
    },
    model: |_| "m".to_owned(),
    host: |_| "api.test",
};

/// Clients of a gateway bring their own credentials, and no limit is keyed.
const UNKEYED: Kind = Kind {
    limits: r#"[{ name: all, rate: "1000/1s" }]"#,
    ..BY_KEY
};

/// Two shops of one API, which counts them separately. Only the bad scope is in the second one.
const BY_HOST: Kind = Kind {
    limits: r#"[{ name: per-shop, rate: "1000/1s", key: host }]"#,
    key: |_| "one".to_owned(),
    host: |scope| match scope {
        BAD => "other.test",
        _ => "api.test",
    },
    ..BY_KEY
};

/// Log of the origin: the attempts of the bad scope, and the effects of each request.
#[derive(Default)]
struct Seen {
    attempts: Vec<std::time::Instant>,
    effects: HashMap<String, usize>,
    refusal: Option<Refusing>,
}

type Log = Arc<Mutex<Seen>>;

fn field(request: &Request<Incoming>, name: &str) -> String {
    let value = request.headers().get(name);
    value.map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
}

fn answer(log: &Log, request: &Request<Incoming>) -> Reply {
    let mut seen = log.lock().unwrap();
    if let (Some((_, status, named, body, _)), "bad") = (seen.refusal, &*field(request, "x-scope"))
    {
        seen.attempts.push(std::time::Instant::now());
        let mut refused = reply(status, body);
        let fields = refused.headers_mut();
        fields.insert("content-type", "application/json".parse().unwrap());
        for (name, value) in named {
            fields.insert(*name, value.parse().unwrap());
        }
        return refused;
    }
    *seen.effects.entry(field(request, "x-request")).or_default() += 1;
    reply(200, "")
}

/// Replies that one scope got, and the times from its requests to their responses.
#[derive(Default)]
struct Told {
    ok: usize,
    other: usize,
    times: Vec<Duration>,
}

/// Sends the requests of one scope at one replica, each at its time whether the one before is
/// answered or not.
async fn run_scope(
    program: &Program,
    kind: &'static Kind,
    (round, scope, replica): (usize, usize, usize),
) -> Told {
    let proto = if (scope + replica).is_multiple_of(2) {
        Proto::Http1
    } else {
        Proto::Http2
    };
    let host = (kind.host)(scope);
    let mut client = Client::intercepted(program, host, proto).await;
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut told = Told::default();
    for number in 0..REQUESTS {
        ticks.tick().await;
        let path = (kind.path)(scope);
        let request = match proto {
            Proto::Http1 => Request::post(path).header("host", host),
            Proto::Http2 => Request::post(format!("https://{host}{path}")),
        };
        let request = request
            .header("authorization", (kind.key)(scope))
            .header("content-type", "application/json")
            .header("x-scope", if scope == BAD { "bad" } else { "good" })
            .header("x-request", format!("{round}-{scope}-{replica}-{number}"));
        let body = json!({ "model": (kind.model)(scope) }).to_string();
        let began = Instant::now();
        let response = client.ask(request.body(Full::from(body)).unwrap()).await;
        told.times.push(began.elapsed());
        match response.status().as_u16() {
            200 => told.ok += 1,
            _ => told.other += 1,
        }
    }
    told
}

/// Runs one round of all scopes at all replicas. Returns the replies of the good scopes together,
/// the fewest answers of a good scope, and those of the bad scope.
async fn run_round(
    programs: &Arc<[Program]>,
    kind: &'static Kind,
    round: usize,
) -> (Told, usize, Told) {
    let mut tasks = JoinSet::new();
    for scope in 0..SCOPES {
        for replica in 0..REPLICAS {
            let programs = Arc::clone(programs);
            tasks.spawn(async move {
                (
                    scope,
                    run_scope(&programs[replica], kind, (round, scope, replica)).await,
                )
            });
        }
    }
    let (mut good, mut bad, mut by_scope) = (Told::default(), Told::default(), [0; SCOPES]);
    for (scope, told) in tasks.join_all().await {
        by_scope[scope] += told.ok;
        let sum = if scope == BAD { &mut bad } else { &mut good };
        sum.ok += told.ok;
        sum.other += told.other;
        sum.times.extend(told.times);
    }
    let good_scopes = by_scope
        .iter()
        .enumerate()
        .filter(|(scope, _)| *scope != BAD);
    let fewest = good_scopes.map(|(_, ok)| *ok).min().unwrap();
    good.times.sort();
    bad.times.sort();
    (good, fewest, bad)
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

/// Lifts all blocks by one replica and waits until no replica knows one.
async fn unblock(programs: &[Program]) {
    // A refusal that is still on its way to the ledger would come back after the lift.
    for program in programs {
        let is_new = |block: &Value| block["for_s"].as_f64().unwrap() < 2.0 * KNOWN.as_secs_f64();
        while blocks(program).await.iter().any(is_new) {}
    }
    let (status, told) = operate(&programs[1], "DELETE", "/v1/targets/api/blocks", json!({})).await;
    assert_eq!(status, 200, "{told}");
    soon("the lift at all replicas", async {
        for program in programs {
            while !blocks(program).await.is_empty() {}
        }
    })
    .await;
}

/// Checks each refusal against a round in which the origin refuses nothing.
async fn the_others_notice_nothing(name: &str, kind: &'static Kind) {
    let log = Log::default();
    let kept = Arc::clone(&log);
    let origin = Origin::with(move |_, request| {
        let answer = answer(&kept, &request);
        async move { answer }
    });
    let origin = origin.start().await;
    let postgres = Postgres::start().await;
    let config = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\ntargets: [{{ name: api, hosts: [api.test, other.test], max_wait: 2s, limits: {} }}]\n",
        postgres.url(),
        kind.limits
    );
    let mut programs = Vec::new();
    for _ in 0..REPLICAS {
        programs.push(Program::before(&origin, &config).await);
    }
    for program in &programs {
        connected(program).await;
    }
    let programs: Arc<[Program]> = programs.into();
    let all = REPLICAS * REQUESTS;
    let (quiet, fewest, _) = run_round(&programs, kind, 0).await;
    assert_eq!(fewest, all, "{name}: {} refused", quiet.other);
    println!(
        "{name}: refusal, answers per good scope, their p50 and p99 in ms, attempts and p99 of the bad scope"
    );
    let row = |refusal: &str, fewest: usize, good: &Told, attempts: usize, bad: &Told| {
        let ms = |times: &[Duration], percent| percentile(times, percent).as_secs_f64() * 1e3;
        println!(
            "{name} {refusal:>6} {fewest:>3}/{all} {:>6.1} {:>6.1} {attempts:>3} {:>6.1}",
            ms(&good.times, 50),
            ms(&good.times, 99),
            ms(&bad.times, 99)
        );
    };
    row(
        "-",
        fewest,
        &quiet,
        0,
        &Told {
            times: vec![Duration::ZERO],
            ..Told::default()
        },
    );
    for (round, refusal) in REFUSALS.into_iter().enumerate() {
        *log.lock().unwrap() = Seen {
            refusal: Some(refusal),
            ..Seen::default()
        };
        let (good, fewest, bad) = run_round(&programs, kind, round + 1).await;
        let (word, .., gap) = refusal;
        let attempts = log.lock().unwrap().attempts.clone();
        row(word, fewest, &good, attempts.len(), &bad);
        // 99 % of 24 answers are all of them.
        assert_eq!(fewest, all, "{name} {word}: {} refused", good.other);
        assert_eq!(bad.ok, 0, "{name} {word}");
        // Requests that leave before the first refusal is known to all replicas are not held.
        let known = gap.map_or(KNOWN, |gap| {
            (gap / 2).clamp(2 * KNOWN, Duration::from_secs(1))
        });
        let at_once = |time: &&std::time::Instant| **time < attempts[0] + known;
        let first = attempts.iter().filter(at_once).count();
        assert!(
            gap.is_none() || first <= REPLICAS,
            "{name} {word}: {first} at first"
        );
        let later = &attempts[first.saturating_sub(1)..];
        let apart: Vec<Duration> = later.windows(2).map(|pair| pair[1] - pair[0]).collect();
        match gap {
            Some(gap) => assert!(
                apart.iter().all(|one| *one >= gap),
                "{name} {word}: {apart:?}"
            ),
            // A request that outpace refused itself, because the machine is busy, made none.
            None => assert!(
                attempts.len() <= all,
                "{name} {word}: {} attempts of {all} requests",
                attempts.len()
            ),
        }
        let twice = |(id, effects): (&String, &usize)| (*effects > 1).then(|| id.clone());
        let twice: Vec<String> = log
            .lock()
            .unwrap()
            .effects
            .iter()
            .filter_map(twice)
            .collect();
        assert!(
            twice.is_empty(),
            "{name} {word}: {twice:?} had effect twice"
        );
        unblock(&programs).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_isolation_one_bad_key_of_20_costs_the_others_nothing() {
    the_others_notice_nothing("key", &BY_KEY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_isolation_one_bad_model_of_20_costs_the_others_nothing() {
    the_others_notice_nothing("model", &BY_MODEL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_isolation_a_refused_search_costs_core_nothing() {
    the_others_notice_nothing("path", &BY_PATH).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_isolation_a_spent_credential_of_20_costs_the_others_nothing() {
    the_others_notice_nothing("client", &UNKEYED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_isolation_a_refused_shop_costs_the_other_one_nothing() {
    the_others_notice_nothing("shop", &BY_HOST).await;
}
