//! P7 and P13 at scale: 20 scopes behind 4 replicas that share Postgres, of which the origin refuses
//! one. The table that each test prints compares the others with a round without the bad scope.

mod apis;
mod fleet;
mod quotas;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};

use crate::harness::{Client, Origin, Proto, Reply, reply};
use fleet::{Fleet, REPLICAS, assert_probes, percentile};

const SCOPES: usize = 20;
/// Time between two requests of a good scope at one replica. The bad scope sends twice as many.
const EVERY: Duration = Duration::from_millis(500);
/// Number of the scope that the origin refuses.
const BAD: usize = 7;

/// Refusals of an origin.
#[derive(Clone, Copy)]
struct Refusing {
    word: &'static str,
    status: u16,
    fields: &'static [(&'static str, &'static str)],
    body: &'static str,
    /// Shortest time between two attempts of the bad scope, or `None` if each of its requests is one
    /// attempt.
    gap: Option<Duration>,
    /// Requests that each good scope sends at each replica.
    requests: usize,
}

const REQUESTS: usize = 4;
const LONG: Option<Duration> = Some(Duration::from_secs(800));

const REFUSALS: [Refusing; 6] = [
    Refusing {
        word: "2",
        status: 429,
        fields: &[("retry-after", "2")],
        body: "{}",
        gap: Some(Duration::from_millis(1800)),
        // The round is longer than a block.
        requests: 6,
    },
    Refusing {
        word: "none",
        status: 429,
        fields: &[],
        body: "{}",
        // Half of the default backoff is the shortest wait, and clocks differ a little.
        gap: Some(Duration::from_millis(400)),
        requests: REQUESTS,
    },
    Refusing {
        word: "30",
        status: 429,
        fields: &[("retry-after", "30")],
        body: "{}",
        gap: Some(Duration::from_secs(29)),
        requests: REQUESTS,
    },
    Refusing {
        word: "86400",
        status: 429,
        fields: &[("retry-after", "86400")],
        body: "{}",
        gap: LONG,
        requests: REQUESTS,
    },
    Refusing {
        word: "403",
        status: 403,
        fields: &[
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "3000"),
        ],
        body: "{}",
        gap: LONG,
        requests: REQUESTS,
    },
    Refusing {
        word: "quota",
        status: 429,
        fields: &[],
        body: r#"{"error":{"code":"insufficient_quota"}}"#,
        gap: None,
        requests: REQUESTS,
    },
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
    limits: r#"[{ name: per-key, rate: "200/1s", key: "header:authorization" }]"#,
    key: |scope| format!("key-{scope}"),
    path: |_| "/v1".to_owned(),
    model: |_| "m".to_owned(),
    host: |_| "api.test",
};

const BY_MODEL: Kind = Kind {
    limits: r#"[{ name: all, rate: "1000/1s" }, { name: per-model, rate: "200/1s", key: "json:/model" }]"#,
    key: |_| "one".to_owned(),
    path: |_| "/v1".to_owned(),
    model: |scope| format!("model-{scope}"),
    host: |_| "api.test",
};

/// Only the bad scope asks for `/search`, which has a limit of its own.
const BY_PATH: Kind = Kind {
    limits: r#"[{ name: core, rate: "1000/1s" }, { name: search, rate: "200/1s", match: { path: "/search*" } }]"#,
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

/// Log of the origin in one round.
#[derive(Clone, Default)]
struct Seen {
    round: usize,
    refusal: Option<Refusing>,
    /// Attempts of the bad scope, each with the id of its request.
    attempts: Vec<(std::time::Instant, String)>,
    /// Number of effects of each request.
    effects: HashMap<String, usize>,
}

type Log = Arc<Mutex<Seen>>;

fn field(request: &Request<Incoming>, name: &str) -> String {
    let value = request.headers().get(name);
    value.map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
}

fn answer(log: &Log, request: &Request<Incoming>) -> Reply {
    let mut seen = log.lock().unwrap();
    let id = field(request, "x-request");
    // A request of an earlier round whose client has gone away may still arrive.
    let is_current = id.starts_with(&format!("{}-", seen.round));
    if let (Some(refusal), "bad") = (seen.refusal, &*field(request, "x-scope")) {
        if is_current {
            seen.attempts.push((std::time::Instant::now(), id));
        }
        let mut refused = reply(refusal.status, refusal.body);
        let fields = refused.headers_mut();
        fields.insert("content-type", "application/json".parse().unwrap());
        for (name, value) in refusal.fields {
            fields.insert(*name, value.parse().unwrap());
        }
        return refused;
    }
    *seen.effects.entry(id).or_default() += 1;
    reply(200, "")
}

/// Replies that some scopes got, and the times from their requests to their responses.
#[derive(Default)]
struct Told {
    ok: usize,
    /// Ids of the requests that were answered.
    ids: Vec<String>,
    times: Vec<Duration>,
}

impl Told {
    fn and(mut self, other: Self) -> Self {
        self.ok += other.ok;
        self.ids.extend(other.ids);
        self.times.extend(other.times);
        self.times.sort();
        self
    }
}

/// Client of one scope at one replica.
struct ScopeClient {
    client: Client,
    proto: Proto,
    kind: &'static Kind,
    scope: usize,
}

impl ScopeClient {
    async fn of(fleet: &Fleet, kind: &'static Kind, scope: usize, replica: usize) -> Self {
        let proto = match (scope + replica).is_multiple_of(2) {
            true => Proto::Http1,
            false => Proto::Http2,
        };
        let host = (kind.host)(scope);
        let client = Client::intercepted(&fleet.programs[replica], host, proto).await;
        Self {
            client,
            proto,
            kind,
            scope,
        }
    }

    /// Sends one request with this id, and notes its response.
    async fn send(&mut self, id: String, told: &Mutex<Told>) {
        let Self { kind, scope, .. } = *self;
        let (host, path) = ((kind.host)(scope), (kind.path)(scope));
        let request = match self.proto {
            Proto::Http1 => Request::post(path).header("host", host),
            Proto::Http2 => Request::post(format!("https://{host}{path}")),
        };
        let request = request
            .header("authorization", (kind.key)(scope))
            .header("content-type", "application/json")
            .header("x-scope", if scope == BAD { "bad" } else { "good" })
            .header("x-request", &id);
        let body = json!({ "model": (kind.model)(scope) }).to_string();
        let began = Instant::now();
        let response = self
            .client
            .ask(request.body(Full::from(body)).unwrap())
            .await;
        let mut told = told.lock().unwrap();
        told.times.push(began.elapsed());
        told.ids.push(id);
        told.ok += usize::from(response.status() == 200);
    }
}

/// Connects a client of each good scope at each replica.
async fn clients_of(fleet: &Fleet, kind: &'static Kind) -> Vec<ScopeClient> {
    let mut clients = Vec::new();
    for scope in (0..SCOPES).filter(|scope| *scope != BAD) {
        for replica in 0..REPLICAS {
            clients.push(ScopeClient::of(fleet, kind, scope, replica).await);
        }
    }
    clients
}

/// Requests of the bad scope at all replicas, which end with this value.
struct Storm {
    tasks: JoinSet<()>,
    told: Arc<Mutex<Told>>,
}

impl Storm {
    /// Connects a client at each of these replicas. Each sends one request after the other.
    async fn start(
        fleet: &Fleet,
        kind: &'static Kind,
        round: usize,
        replicas: std::ops::Range<usize>,
    ) -> Self {
        let (mut tasks, told) = (JoinSet::new(), Arc::<Mutex<Told>>::default());
        for replica in replicas {
            let told = Arc::clone(&told);
            let mut client = ScopeClient::of(fleet, kind, BAD, replica).await;
            tasks.spawn(async move {
                let mut ticks = interval(EVERY / 2);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                for number in 0.. {
                    ticks.tick().await;
                    client
                        .send(format!("{round}-bad-{replica}-{number}"), &told)
                        .await;
                }
            });
        }
        Self { tasks, told }
    }

    /// Returns the replies so far.
    fn told(&self) -> Told {
        std::mem::take(&mut *self.told.lock().unwrap())
    }

    /// Ends all requests and their connections.
    async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Sends the requests of all good scopes at all replicas, each at its time. Returns their replies,
/// and the fewest answers of one scope.
async fn send_good(
    clients: &mut Vec<ScopeClient>,
    (round, requests): (usize, usize),
) -> (Told, usize) {
    let mut good = JoinSet::new();
    // The clients take turns, so that their requests do not wait for each other.
    let (began, turn) = (
        Instant::now(),
        EVERY / u32::try_from(clients.len()).unwrap(),
    );
    for (index, mut client) in clients.drain(..).enumerate() {
        good.spawn(async move {
            let mut ticks = interval_at(began + turn * u32::try_from(index).unwrap(), EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let told = Mutex::default();
            for number in 0..requests {
                ticks.tick().await;
                client
                    .send(format!("{round}-good-{index}-{number}"), &told)
                    .await;
            }
            (client, told.into_inner().unwrap())
        });
    }
    let (mut sum, mut by_scope) = (Told::default(), HashMap::<usize, usize>::new());
    for (client, told) in good.join_all().await {
        *by_scope.entry(client.scope).or_default() += told.ok;
        clients.push(client);
        sum = sum.and(told);
    }
    (sum, by_scope.into_values().min().unwrap())
}

fn print_row(name: &str, word: &str, (good, fewest, bad): (&Told, usize, &Told), attempts: usize) {
    let ms = |times: &[Duration], percent| percentile(times, percent).as_secs_f64() * 1e3;
    println!(
        "{name:>6} {word:>6} {fewest:>3}/{} {:>6.1} {:>6.1} {attempts:>3} {:>6.1}",
        good.ids.len() / (SCOPES - 1),
        ms(&good.times, 50),
        ms(&good.times, 99),
        ms(&bad.times, 99),
    );
}

/// Checks one refusal: the good scopes get all answers, and the bad one makes one attempt per block.
async fn check_refusal(
    name: &str,
    (fleet, log): (&Fleet, &Log),
    clients: &mut Vec<ScopeClient>,
    kind: &'static Kind,
    (round, refusal): (usize, Refusing),
) {
    let context = format!("{name} {}", refusal.word);
    *log.lock().unwrap() = Seen {
        round,
        refusal: Some(refusal),
        ..Seen::default()
    };
    // The first refusal is known to all replicas before the others send, so every further attempt
    // counts. All bad clients stay until the end, because a probe whose client leaves ends the block.
    let first = Storm::start(fleet, kind, round, 0..1).await;
    if refusal.gap.is_some() {
        fleet.all_know_one_block().await;
    }
    let others = Storm::start(fleet, kind, round, 1..REPLICAS).await;
    let (good, fewest) = send_good(clients, (round, refusal.requests)).await;
    let bad = first.told().and(others.told());
    let seen = log.lock().unwrap().clone();
    let scopes = fleet.blocked_scopes().await;
    for storm in [first, others] {
        storm.end().await;
    }
    *log.lock().unwrap() = Seen::default();
    print_row(
        name,
        refusal.word,
        (&good, fewest, &bad),
        seen.attempts.len(),
    );
    let all = REPLICAS * refusal.requests;
    // 99 % of at most 24 answers are all of them.
    assert_eq!((fewest, good.ok), (all, all * (SCOPES - 1)), "{context}");
    assert_eq!(bad.ok, 0, "{context}");
    let (times, ids): (Vec<_>, Vec<_>) = seen.attempts.into_iter().unzip();
    match refusal.gap {
        Some(gap) => {
            let since: Vec<Duration> = times.iter().map(|at| *at - times[0]).collect();
            assert_probes(&since, gap, &context);
        }
        None => {
            let count = |id: &String| ids.iter().filter(|known| *known == id).count();
            assert!(
                bad.ids.iter().all(|id| count(id) == 1),
                "{context}: {ids:?}"
            );
            assert!(ids.iter().all(|id| count(id) == 1), "{context}: {ids:?}");
        }
    }
    // No other scope is blocked at any replica.
    assert_eq!(
        scopes.len(),
        usize::from(refusal.gap.is_some()),
        "{context}: {scopes:?}"
    );
    let once = |id: &String| seen.effects.get(id) == Some(&1);
    assert!(
        good.ids.iter().all(once),
        "{context}: a request had no effect or two"
    );
    fleet.unblock().await;
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
    let fleet = Fleet::before(&origin, &format!("limits: {}", kind.limits)).await;
    let mut clients = clients_of(&fleet, kind).await;
    let storm = Storm::start(&fleet, kind, 0, 0..REPLICAS).await;
    let (quiet, fewest) = send_good(&mut clients, (0, REQUESTS)).await;
    let bad = storm.told();
    storm.end().await;
    println!(
        "scopes, refusal, answers per good scope, p50 and p99 in ms, attempts and p99 of the bad scope"
    );
    print_row(name, "-", (&quiet, fewest, &bad), bad.ids.len());
    assert_eq!(fewest, REPLICAS * REQUESTS, "{name}");
    for round in REFUSALS
        .into_iter()
        .enumerate()
        .map(|(index, refusal)| (index + 1, refusal))
    {
        check_refusal(name, (&fleet, &log), &mut clients, kind, round).await;
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
