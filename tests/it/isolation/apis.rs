//! P7 and P13 at the fakes of real APIs: a resource of GitHub that is spent costs the other resource
//! nothing, and a shop of Shopify that is spent costs the other shop nothing.

use std::time::Duration;

use http::Request;
use http_body_util::Full;
use tokio::task::JoinSet;
use tokio::time::interval;

use super::fleet::{Fleet, REPLICAS, assert_probes};
use crate::fakes::{Fake, FakeEntry, GitHub, Shopify};
use crate::harness::{Client, Proto};

const PROTOS: [Proto; 2] = [Proto::Http1, Proto::Http2];
/// Requests that one client of the good scope sends, and the time between two of them.
const REQUESTS: usize = 6;
const EVERY: Duration = Duration::from_millis(400);

/// Requests of one scope: all of them are the same.
#[derive(Debug, Clone, Copy)]
struct Traffic {
    method: &'static str,
    host: &'static str,
    path: &'static str,
    key: &'static str,
}

impl Traffic {
    /// Sends one request and returns the status of its response and its body.
    async fn send(self, client: &mut Client, proto: Proto) -> (u16, String) {
        let Self {
            method,
            host,
            path,
            key,
        } = self;
        let request = Request::builder()
            .method(method)
            .header("authorization", key);
        let request = match proto {
            Proto::Http1 => request.uri(path).header("host", host),
            Proto::Http2 => request.uri(format!("https://{host}{path}")),
        };
        let response = client.ask(request.body(Full::default()).unwrap()).await;
        let body = String::from_utf8_lossy(response.body()).into_owned();
        (response.status().as_u16(), body)
    }

    fn is_of(self, entry: &FakeEntry) -> bool {
        (&*entry.host, &*entry.path, &*entry.key) == (self.host, self.path, self.key)
    }
}

/// Sends the good requests at all replicas over both versions of HTTP. Returns the number of those
/// that were answered by the origin with 200 and without an error.
async fn answered(fleet: &Fleet, good: Traffic) -> usize {
    let mut tasks = JoinSet::new();
    for program in &fleet.programs {
        for proto in PROTOS {
            let mut client = Client::intercepted(program, good.host, proto).await;
            tasks.spawn(async move {
                let (mut ticks, mut answered) = (interval(EVERY), 0);
                for _ in 0..REQUESTS {
                    ticks.tick().await;
                    let (status, body) = good.send(&mut client, proto).await;
                    answered += usize::from(status == 200 && !body.contains("errors"));
                }
                answered
            });
        }
    }
    tasks.join_all().await.into_iter().sum()
}

/// Sends requests of the spent scope at all replicas until the tasks end.
async fn storm(fleet: &Fleet, bad: Traffic) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for program in &fleet.programs {
        for proto in PROTOS {
            let mut client = Client::intercepted(program, bad.host, proto).await;
            tasks.spawn(async move {
                let mut ticks = interval(EVERY / 4);
                loop {
                    ticks.tick().await;
                    let (status, body) = bad.send(&mut client, proto).await;
                    assert!(status != 200 || body.contains("errors"), "{bad:?}: {body}");
                }
            });
        }
    }
    tasks
}

/// Checks that the good scope gets the same answers as without the bad one, and that at most one
/// attempt of the bad scope leaves per block.
async fn check(fleet: &Fleet, fake: &Fake, (good, bad): (Traffic, Traffic), gap: Duration) {
    let quiet = answered(fleet, good).await;
    let all = REPLICAS * PROTOS.len() * REQUESTS;
    assert_eq!(quiet, all, "{good:?}");
    let before = fake.log().len();
    // The first refusal is known to all replicas before others can leave.
    let mut client = Client::intercepted(&fleet.programs[0], bad.host, Proto::Http2).await;
    let first = tokio::spawn(async move { bad.send(&mut client, Proto::Http2).await });
    fleet.all_know_one_block().await;
    let mut bad_clients = storm(fleet, bad).await;
    let beside = answered(fleet, good).await;
    assert!(
        bad_clients.try_join_next().is_none(),
        "a spent scope was answered"
    );
    let log: Vec<FakeEntry> = fake.log().split_off(before);
    let scopes = fleet.blocked_scopes().await;
    // A probe whose client leaves ends the block, so all bad clients stay until here.
    bad_clients.shutdown().await;
    first.abort();
    let attempts: Vec<Duration> = log
        .iter()
        .filter(|entry| bad.is_of(entry))
        .map(|entry| entry.at)
        .collect();
    println!(
        "{good:?}: {beside} of {quiet}; {bad:?}: {} attempts",
        attempts.len()
    );
    // 99 % of 48 answers are all of them.
    assert_eq!(beside, quiet, "{good:?} beside {bad:?}");
    assert!(!attempts.is_empty());
    assert_probes(&attempts, gap, &format!("{bad:?}"));
    assert_eq!(scopes.len(), 1, "{scopes:?}");
    let effects = log
        .iter()
        .filter(|entry| entry.effect && good.is_of(entry))
        .count();
    assert!(
        good.method == "GET" || effects == quiet,
        "{effects} effects of {quiet} requests"
    );
    fleet.unblock().await;
}

const HOUR: Duration = Duration::from_secs(3600);
/// Shortest time between two attempts of a scope that is blocked for `block_max`.
const LONG: Duration = Duration::from_secs(800);

#[tokio::test(flavor = "multi_thread")]
async fn p13_isolation_a_spent_resource_of_github_costs_the_other_one_nothing() {
    let mut github = GitHub::new(1000, 1000, 1000, 1_000_000, HOUR);
    for (resource, key) in [("search", "one"), ("core", "two")] {
        github.outsider(resource, key, 1000, Duration::ZERO);
    }
    let fake = Fake::start(github).await;
    let limits = r#"limits: [{ name: core, rate: "500/1s", match: { path: "/repos/*" } }, { name: search, rate: "500/1s", match: { path: "/search/*" } }]"#;
    let fleet = Fleet::before(&fake.origin, limits).await;
    let traffic = |method, path, key| Traffic {
        method,
        host: "api.test",
        path,
        key,
    };
    for (method, key, good, bad) in [
        ("GET", "one", "/repos/a/b", "/search/code"),
        ("POST", "two", "/search/code", "/repos/a/b"),
    ] {
        let pair = (traffic(method, good, key), traffic(method, bad, key));
        check(&fleet, &fake, pair, LONG).await;
    }
    // GitHub warns of a ban for each request that is sent in spite of a refusal.
    assert_eq!(fake.refusals(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_isolation_a_spent_shop_of_shopify_costs_the_other_one_nothing() {
    let mut shopify = Shopify::new(100, 1000);
    shopify.drained = Some("other.test");
    let fake = Fake::start(shopify).await;
    let target = r#"limits: [{ name: per-shop, rate: "500/1s", key: host }]
    signals: { limited: [{ status: 200, json: { "/errors/*/extensions/code": THROTTLED } }] }"#;
    let fleet = Fleet::before(&fake.origin, target).await;
    let traffic = |host, path| Traffic {
        method: "POST",
        host,
        path,
        key: "one",
    };
    for (path, gap) in [
        (
            "/admin/api/2026-10/graphql.json",
            Duration::from_millis(400),
        ),
        (
            "/admin/api/2026-10/products.json",
            Duration::from_millis(1800),
        ),
    ] {
        let pair = (traffic("api.test", path), traffic("other.test", path));
        check(&fleet, &fake, pair, gap).await;
    }
}
