//! Keys, costs, lanes and clients: the requests that share a schedule, their costs and their order.

use std::sync::Arc;

use http_body_util::Full;

use crate::harness::{Client, Origin, Program, Proto, reply};

async fn ask(program: &Program, fields: &[(&str, &str)], body: &str) -> u16 {
    let mut client = Client::plain(program).await;
    let mut request = client.request("POST", "http://plain.test/v1?user=u");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.header("outpace-max-wait", "0.2");
    let body = Full::new(body.to_owned().into());
    client
        .ask(request.body(body).unwrap())
        .await
        .status()
        .as_u16()
}

fn target(limit: &str) -> String {
    format!("targets: [{{ name: api, hosts: [plain.test], limits: [{limit}] }}]\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_is_counted_by_itself() {
    let origin = Origin::ok().await;
    let by_field = target("{ rate: \"1/1h\", burst: 1, key: \"header:authorization\" }");
    let program = Program::before(&origin, &by_field).await;
    for (key, status) in [("a", 200), ("b", 200), ("a", 429), ("b", 429)] {
        assert_eq!(
            ask(&program, &[("authorization", key)], "").await,
            status,
            "{key}"
        );
    }
    // Requests without the header field share one schedule.
    assert_eq!(
        (ask(&program, &[], "").await, ask(&program, &[], "").await),
        (200, 429)
    );
    let by_body = target("{ rate: \"1/1h\", burst: 1, key: \"json:/model\" }");
    let program = Program::before(&origin, &by_body).await;
    for (body, status) in [
        (r#"{"model":"a"}"#, 200),
        (r#"{"model":"b"}"#, 200),
        (r#"{"model":"a"}"#, 429),
    ] {
        assert_eq!(ask(&program, &[], body).await, status, "{body}");
    }
    // The body that was inspected for the key arrived complete.
    let last = origin.arrivals.last();
    assert_eq!(last.headers["content-length"], "13");
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_no_spelling_of_a_path_passes_a_limit() {
    for limit in [
        "{ rate: \"1/1h\", burst: 1, match: { path: \"/search*\" } }",
        "{ rate: \"1/1h\", burst: 1, match: { path: \"/x/..//%73earch*\" } }",
        "{ rate: \"1/1h\", burst: 1, key: path }",
    ] {
        let origin = Origin::ok().await;
        let program = Program::before(&origin, &target(limit)).await;
        let get = |path: &'static str| {
            let listen = program.listen;
            let text = format!(
                "GET http://plain.test{path} HTTP/1.1\r\nHost: plain.test\r\nOutpace-Max-Wait: 0.2\r\nConnection: close\r\n\r\n"
            );
            async move { crate::harness::raw(listen, &text).await }
        };
        assert!(
            get("/%73earch").await.starts_with("HTTP/1.1 200"),
            "{limit}"
        );
        // The origin receives the spelling of the client.
        assert_eq!(origin.arrivals.last().uri, "/%73earch");
        for path in [
            "/search",
            "//search",
            "/./search",
            "/a/../search",
            "/%2e/%73%65arch",
            "/a//%2E%2e/search",
        ] {
            let answer = get(path).await;
            assert!(
                answer.starts_with("HTTP/1.1 429"),
                "{limit} {path}: {answer}"
            );
        }
        assert!(get("/Search").await.starts_with("HTTP/1.1 200"), "{limit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cost_is_estimated_and_then_settled_by_the_answer() {
    for settle in ["json:/usage/total", "header:x-cost"] {
        let origin = Origin::with(|_, _| async {
            let mut response = reply(200, r#"{"usage":{"total":2}}"#);
            response
                .headers_mut()
                .insert("x-cost", "2".parse().unwrap());
            response
        })
        .start()
        .await;
        let limit = format!(
            "{{ rate: \"100/1h\", burst: 100, cost: {{ estimate: [\"json:/max\"], default: 10, settle: \"{settle}\" }} }}"
        );
        let program = Program::before(&origin, &target(&limit)).await;
        // Two requests of cost 60 fit into 100 only because the first one settles at cost 2.
        assert_eq!(ask(&program, &[], r#"{"max":60}"#).await, 200);
        assert_eq!(ask(&program, &[], r#"{"max":60}"#).await, 200, "{settle}");
        let limit = limit.replace(&format!(", settle: \"{settle}\""), "");
        let program = Program::before(&origin, &target(&limit)).await;
        assert_eq!(ask(&program, &[], r#"{"max":60}"#).await, 200);
        assert_eq!(
            ask(&program, &[], r#"{"max":60}"#).await,
            429,
            "without a settlement the estimate must count"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_have_limits_of_their_own_and_groups_tell_them_apart() {
    let origin = Origin::ok().await;
    let config = "clients:
  - { name: small, token: small-small-small, limits: [{ rate: \"1/1h\", burst: 1 }] }
  - { name: other, token: other-other-other, limits: [{ rate: \"1/1h\", burst: 1 }] }
  - { name: big, group: paid, token: big-big-big-big-big }
routes: [{ host: \"api.route\", to: \"http://plain.test\" }]
targets: [{ name: api, hosts: [plain.test], limits: [{ rate: \"3/1h\", burst: 3, match: { group: paid } }] }]
";
    let program = Program::before(&origin, config).await;
    let send = async |who: &str| {
        let mut client = Client::to(program.listen, Proto::Http1).await;
        let request = http::Request::get("/x")
            .header("host", "api.route")
            .header("outpace-client-token", who)
            .header("outpace-max-wait", "0.2");
        let response = client.ask(request.body(Full::default()).unwrap()).await;
        response.status().as_u16()
    };
    assert_eq!(
        (
            send("small:small-small-small").await,
            send("small:small-small-small").await
        ),
        (200, 429)
    );
    assert_eq!(
        (
            send("other:other-other-other").await,
            send("other:other-other-other").await
        ),
        (200, 429)
    );
    for status in [200, 200, 200, 429] {
        assert_eq!(send("big:big-big-big-big-big").await, status);
    }
    assert!(
        !origin
            .arrivals
            .last()
            .headers
            .contains_key("outpace-client-token")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_fair_lanes_share_by_weight() {
    let origin = Origin::ok().await;
    let config = "targets:
  - name: api
    hosts: [plain.test]
    max_wait: 60s
    limits: [{ rate: \"40/1s\", burst: 1 }]
    lanes: [{ name: heavy, match: { header: \"x-lane: heavy\" }, weight: 3 }, { name: light, weight: 1 }]
";
    let program = Arc::new(Program::before(&origin, config).await);
    let mut tasks = tokio::task::JoinSet::new();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
    for index in 0..20 {
        let program = Arc::clone(&program);
        let lane = if index % 2 == 0 { "heavy" } else { "light" };
        tasks.spawn(async move {
            let mut client = Client::plain(&program).await;
            let mut served = 0;
            while std::time::Instant::now() < end {
                let request = client
                    .request("GET", "http://plain.test/")
                    .header("x-lane", lane);
                assert_eq!(
                    client
                        .ask(request.body(Full::default()).unwrap())
                        .await
                        .status(),
                    200
                );
                served += 1;
            }
            (lane, served)
        });
    }
    let (mut heavy, mut light) = (0, 0);
    while let Some(done) = tasks.join_next().await {
        match done.unwrap() {
            ("heavy", served) => heavy += served,
            (_, served) => light += served,
        }
    }
    let share = f64::from(heavy) / f64::from(heavy + light);
    println!("weights 3 and 1: {heavy} and {light}");
    assert!((0.68..0.82).contains(&share), "{heavy} and {light}");
}
