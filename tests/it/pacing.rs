//! P1 and P2 at an origin that stamps arrivals. The tests count requests per window and do not
//! judge speed.

use std::sync::Arc;
use std::time::Duration;

use crate::harness::{Client, Origin, Program, Proto, reply, worst_window};

const SECOND: Duration = Duration::from_secs(1);

fn target(limit: &str) -> String {
    format!(
        "targets:\n  - name: api\n    hosts: [\"api.test\", \"plain.test\"]\n    max_wait: 5m\n    limits: [{limit}]\n"
    )
}

/// Sends `each` requests, one after another, on each of `clients` intercepted connections. Every
/// response must have status 200.
async fn storm(program: &Arc<Program>, clients: usize, each: usize, proto: Proto) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..clients {
        let program = Arc::clone(program);
        tasks.spawn(async move {
            let mut client = Client::intercepted(&program, "api.test", proto).await;
            for _ in 0..each {
                let response = client.get("/x").await;
                assert_eq!(response.status(), 200, "{:?}", response.body());
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_and_p2_full_use_with_burst_1_through_interception() {
    let origin = Origin::ok().await;
    let program =
        Arc::new(Program::before(&origin, &target("{ rate: \"10/1s\", burst: 1 }")).await);
    storm(&program, 20, 10, Proto::Http1).await;
    let times = origin.arrivals.times();
    let took = *times.iter().max().unwrap() - *times.iter().min().unwrap();
    let worst = worst_window(&times, SECOND);
    println!("200 requests, 20 clients, 10/1s burst 1: worst second {worst}, took {took:?}");
    assert_eq!(times.len(), 200);
    assert!(worst <= 11, "worst second: {worst}");
    assert!(
        took >= Duration::from_millis(19_850) && took <= Duration::from_millis(20_500),
        "took {took:?}"
    );
}

/// Starts an origin that answers 429 to every request beyond `n` in any second.
async fn strict_origin(n: usize) -> Origin {
    let log = Arc::new(std::sync::Mutex::new(std::collections::VecDeque::new()));
    Origin::with(move |_, _| {
        let mut log = log.lock().unwrap();
        let now = std::time::Instant::now();
        while log.front().is_some_and(|at| now - *at >= SECOND) {
            log.pop_front();
        }
        let status = if log.len() < n { 200 } else { 429 };
        if status == 200 {
            log.push_back(now);
        }
        drop(log);
        async move { reply(status, "") }
    })
    .start()
    .await
}

async fn never_refused(limit: &str, proto: Proto) {
    let origin = strict_origin(10).await;
    let program = Arc::new(Program::before(&origin, &target(limit)).await);
    storm(&program, 20, 4, proto).await;
    let times = origin.arrivals.times();
    let worst = worst_window(&times, SECOND);
    println!("{limit}: worst second {worst}");
    assert_eq!(
        times.len(),
        80,
        "more than 80 arrivals mean that a request was refused and repeated"
    );
    assert!(worst <= 10, "worst second: {worst}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_without_burst_a_strict_origin_refuses_none() {
    never_refused("{ rate: \"10/1s\" }", Proto::Http2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_with_a_sliding_window_a_strict_origin_refuses_none() {
    never_refused(
        "{ rate: \"10/1s\", algorithm: sliding_window }",
        Proto::Http1,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_with_a_fixed_window_no_window_of_the_calendar_has_more() {
    let calendar = Arc::new(std::sync::Mutex::new(
        std::collections::HashMap::<u64, usize>::new(),
    ));
    let seen = Arc::clone(&calendar);
    let origin = Origin::with(move |_, _| {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        *seen.lock().unwrap().entry(now.as_secs()).or_default() += 1;
        async { reply(200, "") }
    })
    .start()
    .await;
    let limit = "{ rate: \"20/1s\", algorithm: fixed_window }";
    let program = Arc::new(Program::before(&origin, &target(limit)).await);
    storm(&program, 20, 4, Proto::Http1).await;
    let worst = calendar.lock().unwrap().values().copied().max().unwrap();
    assert!(worst <= 20, "{worst} in one second of the calendar");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_limits_hold_at_once_and_a_match_limits_only_its_requests() {
    let origin = Origin::ok().await;
    let limits = "{ name: all, rate: \"40/1s\", burst: 1 }, \
                  { name: slow, rate: \"5/1s\", burst: 1, match: { path: \"/slow*\", method: GET } }";
    let program = Arc::new(Program::before(&origin, &target(limits)).await);
    let mut tasks = tokio::task::JoinSet::new();
    for (path, each) in [("/slow", 4), ("/slow", 4), ("/fast", 30), ("/fast", 30)] {
        let program = Arc::clone(&program);
        tasks.spawn(async move {
            let mut client = Client::intercepted(&program, "api.test", Proto::Http1).await;
            for _ in 0..each {
                assert_eq!(client.get(path).await.status(), 200);
            }
        });
    }
    tasks.join_all().await;
    let all = origin.arrivals.all();
    let slow: Vec<_> = all
        .iter()
        .filter(|a| a.uri == "/slow")
        .map(|a| a.at)
        .collect();
    assert!(
        worst_window(&slow, SECOND) <= 6,
        "slow: {}",
        worst_window(&slow, SECOND)
    );
    assert!(worst_window(&origin.arrivals.times(), SECOND) <= 42);
    let record = program
        .record(|r| r["path"] == "/slow" && r["waited_ms"].as_f64() > Some(100.0))
        .await;
    assert_eq!(record["limit"], "slow");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_never_has_more_at_once() {
    let (now, most) = (
        Arc::new(std::sync::atomic::AtomicUsize::new(0)),
        Arc::new(std::sync::atomic::AtomicUsize::new(0)),
    );
    let (counted, peak) = (Arc::clone(&now), Arc::clone(&most));
    let origin = Origin::with(move |_, _| {
        let (now, most) = (Arc::clone(&counted), Arc::clone(&peak));
        async move {
            let count = now.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
            most.fetch_max(count, std::sync::atomic::Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            now.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            reply(200, "")
        }
    })
    .start()
    .await;
    let program =
        Arc::new(Program::before(&origin, &target("{ name: at-once, concurrent: 3 }")).await);
    storm(&program, 12, 5, Proto::Http1).await;
    assert_eq!(most.load(std::sync::atomic::Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_client_that_disconnects_frees_its_place_at_once() {
    let origin = Origin::ok().await;
    let program = Arc::new(Program::before(&origin, &target("{ rate: \"1/2s\", burst: 1 }")).await);
    let mut first = Client::plain(&program).await;
    assert_eq!(first.get("http://plain.test/first").await.status(), 200);
    // Five clients would wait for ten seconds in all. After they disconnect, the sixth request is
    // next in the queue.
    let gone: Vec<_> = (0..5)
        .map(|_| {
            let program = Arc::clone(&program);
            tokio::spawn(async move {
                Client::plain(&program)
                    .await
                    .get("http://plain.test/gone")
                    .await
            })
        })
        .collect();
    let waiting = "outpace_waiting{target=\"api\"}";
    crate::harness::soon("five queued requests", async {
        while program.metric(waiting).await < 5.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for client in &gone {
        client.abort();
    }
    crate::harness::soon("an empty queue", async {
        while program.metric(waiting).await > 0.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(first.get("http://plain.test/sixth").await.status(), 200);
    let times = origin.arrivals.all();
    assert_eq!(times.last().unwrap().uri, "/sixth");
    assert_eq!(times.len(), 2, "an abandoned request was sent");
    let abandoned = program.record(|r| r["outcome"] == "abandoned").await;
    // The line says how long the client waited before it went away.
    let [waited, took] =
        ["waited_ms", "duration_ms"].map(|field| abandoned[field].as_f64().unwrap());
    assert!(0.5 * took < waited && waited <= took, "{abandoned}");
    assert_eq!(
        (abandoned["path"].as_str(), abandoned["status"].as_u64()),
        (Some("/gone"), Some(0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_leave_in_the_order_they_came() {
    let origin = Origin::ok().await;
    let program =
        Arc::new(Program::before(&origin, &target("{ rate: \"20/1s\", burst: 1 }")).await);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        let mut client = Client::plain(&program).await;
        let request = client.request("GET", &format!("http://plain.test/{number}"));
        let request = request.body(http_body_util::Full::default()).unwrap();
        tasks.spawn(async move { client.ask(request).await.status() });
        let waiting = "outpace_waiting{target=\"api\"}";
        let known = || async { program.metric(waiting).await as usize + origin.arrivals.count() };
        crate::harness::soon("the request in the queue", async {
            while known().await <= number {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    tasks.join_all().await;
    let order: Vec<_> = origin
        .arrivals
        .all()
        .iter()
        .map(|a| a.uri.clone())
        .collect();
    let expected: Vec<_> = (0..20).map(|n| format!("/{n}")).collect();
    assert_eq!(order, expected);
}
