//! Costs as expressions: several limits from one request, errors, learned estimates, and what an
//! operator is told.

use serde_json::json;

use super::*;

/// Numbers of a request body and of a response body, and the used units of three limits.
#[tokio::test(flavor = "multi_thread")]
async fn one_request_is_charged_to_several_limits_by_their_own_expressions() {
    let limits = format!(
        "      - {{ name: requests, rate: {BUDGET}/30d, burst: {BUDGET}, key: \"header:x-case\" }}\n      - {{ name: input, rate: {BUDGET}/30d, key: \"header:x-case\", cost: {{ estimate: [\"header:x-unit\", {{ max: [\"body/4\", 3] }}], settle: [\"json:/message/usage/input_tokens\", \"json:/usage/input_tokens\"] }} }}\n      - {{ name: output, rate: {BUDGET}/30d, key: \"header:x-case\", cost: {{ estimate: [\"header:x-unit\", \"json:/max_tokens\", 50], settle: \"json:/usage/output_tokens\", max: 400 }} }}\n"
    );
    let tokens = "estimate: [\"header:x-unit\", { sum: [\"body/2\", \"json:/max_tokens\"] }]";
    let scene = Scene::new(tokens, &limits, true).await;
    let usage = "{\"usage\":{\"input_tokens\":11,\"output_tokens\":22}}";
    let large = "{\"usage\":{\"input_tokens\":11,\"output_tokens\":22000}}";
    for way in WAYS {
        for (body, answer, expected) in [
            // Body of 20 bytes with 64: body/2 + 64, max(body/4, 3), max_tokens.
            ("{\"max_tokens\":   64 }", "{}", [1, 74, 5, 64]),
            ("{\"max_tokens\":   64 }", usage, [1, 74, 11, 22]),
            ("{\"max_tokens\":   64 }", large, [1, 74, 11, 400]),
            ("12345678", "{}", [1, 4, 3, 50]),
            ("{\"max_tokens\":1e9}", "{}", [1, BUDGET, 5, 400]),
        ] {
            scene.set(Answer::json(200, answer));
            // The cost of a slot that came too late would be used, too.
            let case = loop {
                let (case, voided) = (scene.case(), scene.voided().await);
                let response = scene.ask(way, &case, body, &[]).await;
                assert_eq!(response.status(), 200);
                if scene.voided().await == voided {
                    break case;
                }
            };
            for (limit, units) in ["requests", "tokens", "input", "output"]
                .iter()
                .zip(expected)
            {
                let used = scene.used_of(limit, &case).await;
                // An estimate is rounded up by at most a sixteenth.
                let near = (units..=units + units / 16 + 1).contains(&used);
                assert!(near, "{limit} {body} {answer}: {used} and not {units}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_cost_what_the_rule_for_their_status_says() {
    let settle = "settle: \"json:/usage/total_tokens\"";
    let none = "{\"error\":1}";
    let stated = "{\"usage\":{\"total_tokens\":9}}";
    for (rule, cases) in [
        (
            "on_error: refund",
            &[(400_u16, none, 0_i64), (500, none, 0), (422, stated, 9)] as &[_],
        ),
        ("on_error: keep", &[(400, none, ESTIMATE), (500, stated, 9)]),
        (
            "on_error: { 4xx: refund, 422: keep, 5xx: keep }",
            &[
                (400, none, 0),
                (422, none, ESTIMATE),
                (500, none, ESTIMATE),
                (404, stated, 9),
            ],
        ),
        (
            "default: 512",
            &[(400, none, ESTIMATE), (200, none, ESTIMATE)],
        ),
    ] {
        let rule = rule.replace("default: 512", "on_error: {}");
        let cost = format!("{ESTIMATED}, {settle}, {rule}");
        let scene = Scene::new(&cost, "", true).await;
        for way in WAYS {
            for (status, text, expected) in cases {
                let answer = Answer::json(*status, text);
                scene
                    .settles(way, answer, *expected, &format!("{rule} {status} {text}"))
                    .await;
            }
        }
    }
}

/// Each attempt that is repeated costs what its own response says.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_repeated_is_refunded_too() {
    for (rule, cost) in [
        ("on_error: refund", 7),
        ("on_error: { 429: refund }", 7),
        ("on_error: keep", 7 + 2 * ESTIMATE),
    ] {
        let answered = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let origin = Origin::with(move |_, _| {
            let number = answered.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let mut answer = match number {
                0 | 1 => Answer::json(429, "{\"error\":{}}"),
                _ => Answer::json(200, "{\"usage\":{\"total_tokens\":7}}"),
            };
            if number < 2 {
                answer.fields.push(("retry-after-ms", "10".to_owned()));
            }
            async move { answer.reply() }
        });
        let origin = origin.start().await;
        let config = format!(
            "targets:\n  - name: api\n    hosts: [api.test, plain.test]\n    max_wait: 20s\n    retry: {{ backoff: 1ms }}\n    limits:\n      - {{ name: tokens, rate: {BUDGET}/30d, algorithm: sliding_window, cost: {{ {ESTIMATED}, default: {ESTIMATE}, settle: \"json:/usage/total_tokens\", {rule} }} }}\n"
        );
        let program = Program::before(&origin, &config).await;
        let scene = Scene {
            program,
            origin,
            next: Arc::new(Mutex::new(Answer::json(200, ""))),
            cases: Default::default(),
        };
        let response = scene.ask(WAYS[0], "x", "{}", &[]).await;
        assert_eq!(response.status(), 200, "{rule}");
        assert_eq!(scene.used("x", 0).await, cost, "{rule}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learned_estimate_follows_the_true_costs_of_its_key() {
    let cost = "estimate: { learned: [\"header:x-unit\", \"json:/max_tokens\"] }, settle: \"json:/usage/total_tokens\"";
    let scene = Scene::new(cost, "", true).await;
    let (saver, spender) = (scene.case(), scene.case());
    let usage = |tokens| Answer::json(200, &json!({"usage": {"total_tokens": tokens}}).to_string());
    // The keys use a tenth and twice of what they announce.
    for (case, tokens) in [(&saver, 100), (&spender, 2000)] {
        for _ in 0..3 {
            scene.set(usage(tokens));
            scene.ask(WAYS[2], case, "{\"max_tokens\":1000}", &[]).await;
        }
    }
    for (case, factor) in [(&saver, 0.1), (&spender, 2.0)] {
        let estimate = explained(&scene, case, "1000").await["cost"]
            .as_i64()
            .unwrap();
        let expected = 1000.0 * factor;
        let near = (expected..=expected * 1.1).contains(&(estimate as f64));
        assert!(near, "{estimate} and not {expected}");
    }
    // A key without a value of its own has the mean of all keys.
    let estimate = explained(&scene, "new", "1000").await["cost"]
        .as_i64()
        .unwrap();
    assert!((1050..=1200).contains(&estimate), "{estimate}");
}

/// Returns the explanation of the limit `tokens` for a request with this estimate.
async fn explained(scene: &Scene, case: &str, unit: &str) -> Value {
    let url = "https%3A%2F%2Fapi.test%2Fv1";
    let path = format!("/v1/explain?url={url}&header=x-case:{case}&header=x-unit:{unit}");
    let (_, told) = operate(&scene.program, "GET", &path, Value::Null).await;
    told["limits"][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_shows_the_expressions_and_the_estimate() {
    for (cost, estimated, settled) in [
        (
            "estimate: [\"header:x-unit\", \"body/4\"], settle: { sum: [\"json:/a\", \"header:x-b\"] }",
            "header:x-unit or else body/4 or else 512",
            json!("{ sum: [json:/a, header:x-b] }"),
        ),
        (
            "estimate: { max: [\"header:x-unit\", 7] }",
            "{ max: [header:x-unit, 7] } or else 512",
            Value::Null,
        ),
        (
            "estimate: learned, settle: \"json:/usage\"",
            "512, times what was learned",
            json!("json:/usage"),
        ),
    ] {
        let scene = Scene::new(cost, "", false).await;
        let told = explained(&scene, "x", "9").await;
        assert_eq!(told["estimated_by"], estimated);
        assert_eq!(told["settled_by"], settled);
        let expected = if estimated.starts_with("512") { 512 } else { 9 };
        assert_eq!(told["cost"], expected, "{cost}");
    }
}

/// A refusal is read in every coding, so that a spent quota is told after one attempt.
#[tokio::test(flavor = "multi_thread")]
async fn p7_signals_a_coded_refusal_is_read() {
    let quota = "{\"error\":{\"message\":\"quota\",\"type\":\"insufficient_quota\",\"code\":\"insufficient_quota\"}}";
    for coding in CODINGS {
        let scene = Scene::new(ESTIMATED, "", true).await;
        for way in WAYS {
            let frames = encoded(coding, &[quota.as_bytes().to_vec()]);
            let answer = Answer {
                status: 429,
                ..Answer::new("application/json", coding, frames.clone())
            };
            scene.set(answer);
            let case = scene.case();
            let response = scene.ask(way, &case, "{}", &[]).await;
            assert_eq!(
                response.headers()["outpace-attempts"],
                "1",
                "{coding} {way:?}"
            );
            assert!(*response.body() == frames.concat(), "{coding}");
            scene.set(Answer::json(200, "{}"));
            let response = scene.ask(way, &case, "{}", &[]).await;
            assert_eq!(
                response.status(),
                200,
                "{coding} {way:?}: the quota held a request"
            );
        }
    }
}

/// The wait in a coded body delays the retry.
#[tokio::test(flavor = "multi_thread")]
async fn p7_signals_a_wait_in_a_coded_refusal_holds_the_retry() {
    let wait = "{\"error\":{\"message\":\"Please try again in 300ms.\",\"type\":\"tokens\"}}";
    for coding in CODINGS {
        let frames = encoded(coding, &[wait.as_bytes().to_vec()]);
        let refusal = Answer {
            status: 429,
            ..Answer::new("application/json", coding, frames)
        };
        let origin = Origin::with(move |number, _| {
            let answer = match number % 2 {
                0 => refusal.clone(),
                _ => Answer::json(200, "{}"),
            };
            async move { answer.reply() }
        });
        let origin = origin.start().await;
        let config = "targets:\n  - name: api\n    hosts: [api.test]\n    retry: { backoff: 1ms }\n    limits: [{ rate: \"200/1s\" }]\n";
        let program = Program::before(&origin, config).await;
        for proto in [Proto::Http1, Proto::Http2] {
            let mut client = Client::intercepted(&program, "api.test", proto).await;
            let response = client.get("/").await;
            assert_eq!(response.status(), 200, "{coding}");
            let times = origin.arrivals.times();
            let gap = times[times.len() - 1] - times[times.len() - 2];
            assert!(gap.as_millis() >= 299, "{coding}: {gap:?}");
        }
    }
}

/// Returns what `outpace check` prints about a file with this text.
async fn checked(text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("outpace.yaml");
    std::fs::write(&path, text).unwrap();
    let checked = crate::harness::program().arg("check").arg(&path).output();
    let checked = checked.await.unwrap();
    let told = String::from_utf8(checked.stdout).unwrap();
    let errors = String::from_utf8(checked.stderr).unwrap();
    assert!(checked.status.success(), "{told}{errors}");
    told
}

/// The page's examples are valid, and the warnings are those that the page names.
#[tokio::test]
async fn the_examples_of_the_page_about_tokens_are_valid() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tokens.md");
    let page = std::fs::read_to_string(page).unwrap();
    let blocks: Vec<&str> = page.split("```yaml\n").skip(1).collect();
    assert_eq!(blocks.len(), 5);
    for (block, warns) in blocks.iter().zip([false, true, false, false, false]) {
        let told = checked(block.split("```").next().unwrap()).await;
        assert_eq!(told.contains("include_usage"), warns, "{told}");
        assert!(told.contains("with a burst of"), "{told}");
    }
}

#[tokio::test]
async fn check_warns_of_a_settlement_that_sees_nothing() {
    let target = |more: &str, settle: &str| {
        format!(
            "targets: [{{ name: api, hosts: [api.test], {more} limits: [{{ name: tokens, rate: 9/1s, cost: {{ settle: {settle} }} }}] }}]\n"
        )
    };
    for (more, settle, warning) in [
        ("", "\"json:/usage/total_tokens\"", "include_usage"),
        (
            "",
            "{ sum: [\"json:/usage/completion_tokens\"] }",
            "include_usage",
        ),
        (
            "",
            "\"json:/usage/input_tokens\"",
            "/message/usage/input_tokens",
        ),
        ("tls: tunnel,", "\"json:/cost\"", "tls: intercept"),
        ("tls: tunnel,", "\"header:x-cost\"", "tls: intercept"),
    ] {
        let told = checked(&target(more, settle)).await;
        let warned = told.lines().filter(|line| line.starts_with("warning: "));
        let about = "limit tokens of target api";
        let found = warned
            .clone()
            .any(|line| line.contains(warning) && line.contains(about));
        assert!(found, "{settle}: {told}");
    }
    for settle in [
        "\"header:x-cost\"",
        "\"json:/cost\"",
        "[\"json:/response/usage/input_tokens\", \"json:/usage/input_tokens\"]",
    ] {
        let told = checked(&target("", settle)).await;
        assert!(!told.contains("warning: "), "{told}");
    }
}
