//! Reports about work that was acquired: its cost settles the limits, and a refusal of its origin
//! blocks its scope for all work and all requests.

use http_body_util::Full;
use serde_json::{Value, json};

use crate::api::call;
use crate::blocks::{blocks, replicas};
use crate::harness::buffers::operate;
use crate::harness::{Client, Origin, Program, soon};

const BUDGET: &str = "targets:
  - name: api
    hosts: [\"plain.test\"]
    max_wait: 1s
    limits:
      - { name: requests, rate: \"1000/1h\", burst: 1000 }
      - { name: input, rate: \"100/1h\", cost: { default: 10 } }
      - { name: output, rate: \"200/1h\", cost: { default: 10 } }
";

const KEYED: &str = "targets:
  - name: api
    hosts: [\"plain.test\"]
    max_wait: 1s
    limits: [{ name: per-key, rate: \"100/1s\", key: \"header:x-key\" }]
";

async fn verb(program: &Program, verb: &str, body: Value) -> (u16, Value) {
    let (status, told, _) = call(program, &format!("/v1/targets/api/{verb}"), body).await;
    (status, told)
}

/// Acquires work and returns its permit.
async fn acquired(program: &Program, body: Value) -> String {
    let (status, told) = verb(program, "acquire", body).await;
    assert_eq!(status, 200, "{told}");
    told["permit"].as_str().expect("a permit").to_owned()
}

/// Returns the status of work of this cost that does not want to wait.
async fn fits(program: &Program, cost: u32) -> u16 {
    let body = json!({ "cost": cost, "max_wait": 0.05 });
    let (status, told) = verb(program, "acquire", body).await;
    if let Some(permit) = told["permit"].as_str() {
        let unused = json!({ "permit": permit, "cost": 0 });
        assert_eq!(verb(program, "report", unused).await.0, 200);
    }
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_the_reported_cost_replaces_the_estimate() {
    let origin = Origin::ok().await;
    for (costs, free, full) in [
        // Cost of each report, then what fits afterwards and what does not.
        (vec![json!(10)], 80, 95),
        (vec![json!({ "input": 0 })], 95, 120),
        (vec![json!({ "input": 20, "output": 100 })], 70, 90),
        (vec![json!(90), json!(5), json!(40)], 50, 70),
        (vec![json!({ "output": 190 })], 1, 20),
        (vec![], 1, 20),
    ] {
        let program = Program::before(&origin, BUDGET).await;
        let permit = acquired(&program, json!({ "cost": 90 })).await;
        assert_eq!(fits(&program, 20).await, 429);
        for cost in &costs {
            let report = json!({ "permit": permit, "cost": cost });
            let (status, told) = verb(&program, "report", report).await;
            assert_eq!(status, 200, "{told}");
            for (limit, units) in told["cost"].as_object().unwrap() {
                let stated = cost.get(limit).unwrap_or(cost);
                assert!(!stated.is_u64() || stated == units, "{limit}: {told}");
            }
        }
        let found = (fits(&program, free).await, fits(&program, full).await);
        assert_eq!(found, (200, 429), "{costs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_reported_refusal_blocks_its_scope_for_work_and_requests() {
    let origin = Origin::ok().await;
    let (_postgres, programs) = replicas(&origin, KEYED).await;
    let of = |key: &str| json!({ "key": key, "max_wait": 0.3 });
    for (report, longest) in [
        (json!({ "limited": true, "retry_after": "30s" }), 30.0),
        (json!({ "limited": true, "retry_after": 86400 }), 900.0),
        (json!({ "limited": true, "retry_after": 20.5 }), 20.5),
        (json!({ "limited": true }), 1.0),
    ] {
        let permit = acquired(&programs[0], of("bad")).await;
        let mut body = report.clone();
        body["permit"] = permit.into();
        let (status, told) = verb(&programs[0], "report", body).await;
        assert_eq!(
            (status, told["blocked_for"].as_f64()),
            (200, Some(longest)),
            "{told}"
        );
        assert!(
            told["blocked"]
                .as_str()
                .unwrap()
                .starts_with("limit `per-key`, key `")
        );
        assert_eq!(verb(&programs[0], "acquire", of("bad")).await.0, 429);
        assert_eq!(verb(&programs[0], "acquire", of("good")).await.0, 200);
        if longest > 1.0 {
            soon("the block at the other replica", async {
                while blocks(&programs[1]).await.is_empty() {}
            })
            .await;
            let mut client = Client::plain(&programs[1]).await;
            for (key, status) in [("bad", 429), ("good", 200)] {
                let request = client
                    .request("GET", "http://plain.test/")
                    .header("x-key", key);
                let response = client.ask(request.body(Full::default()).unwrap()).await;
                assert_eq!(response.status(), status, "{key}");
            }
        }
        operate(&programs[0], "DELETE", "/v1/targets/api/blocks", json!({})).await;
        soon("the lift", async {
            while verb(&programs[0], "acquire", of("bad")).await.0 != 200 {}
            while verb(&programs[1], "acquire", of("bad")).await.0 != 200 {}
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_reports_are_told_with_what_is_right() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, BUDGET).await;
    let permit = acquired(&program, json!({ "hold": "1h" })).await;
    for (report, status, told) in [
        (json!({ "cost": -1 }), 400, "the body is invalid"),
        (json!({ "cost": 1.5 }), 400, "the body is invalid"),
        (
            json!({ "cost": 2_000_000_000_u32 }),
            400,
            "from 0 to 1000000000",
        ),
        (
            json!({ "cost": { "output": 4_000_000_000_u32 } }),
            400,
            "from 0 to 1000000000",
        ),
        (
            json!({ "cost": { "requests": 1 } }),
            400,
            "those limits are: input, output",
        ),
        (json!({ "cost": { "x": 1 } }), 400, "has no limit `x`"),
        (json!({ "retry_after": 3 }), 400, "needs `limited: true`"),
        (
            json!({ "limited": true, "retry_after": -3 }),
            400,
            "`retry_after` is invalid",
        ),
        (
            json!({ "limited": true, "retry_after": "500d" }),
            400,
            "`retry_after` is invalid",
        ),
        (
            json!({ "limited": true, "retry_after": "soon" }),
            400,
            "`retry_after` is invalid",
        ),
        (json!({ "colour": 1 }), 400, "unknown field `colour`"),
        (json!({ "permit": "nobody's" }), 404, "no such permit"),
    ] {
        let mut body = report.clone();
        body.as_object_mut()
            .unwrap()
            .entry("permit")
            .or_insert_with(|| permit.clone().into());
        let (found, problem) = verb(&program, "report", body).await;
        assert_eq!(found, status, "{report}: {problem}");
        assert!(
            problem["detail"].as_str().unwrap().contains(told),
            "{report}: {problem}"
        );
    }
    assert!(blocks(&program).await.is_empty());
    let named = json!({ "permit": permit });
    assert_eq!(verb(&program, "report", named.clone()).await.0, 200);
    assert_eq!(verb(&program, "release", named.clone()).await.0, 200);
    assert_eq!(verb(&program, "report", named).await.0, 404);
    // A permit whose hold time is over is not known any more.
    let short = acquired(&program, json!({ "hold": "50ms" })).await;
    soon("the end of the hold time", async {
        while verb(&program, "report", json!({ "permit": short })).await.0 != 404 {}
    })
    .await;
}
