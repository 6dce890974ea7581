//! `explain` and the metrics of one key that three limits count: requests, input and output.

use super::*;

const LIMITS: &str = "      - { name: requests, rate: 50/30d, burst: 50, key: \"header:x-api-key\" }
      - { name: input, rate: 9000/30d, key: \"header:x-api-key\", cost: { estimate: \"body/4\", settle: [{ sum: [\"json:/message/usage/input_tokens\", \"json:/message/usage/cache_creation_input_tokens\"] }, \"json:/usage/input_tokens\"] } }
      - { name: output, rate: 8000/30d, key: \"header:x-api-key\", cost: { estimate: \"json:/max_tokens\", default: 500, settle: \"json:/usage/output_tokens\" } }\n";

/// Lines of an explanation, without the limit that only the other tests of this folder need.
const EXPLAINED: &str = "\
requests: 50/30days with burst 50; cost 1 of null; estimated by null, settled by null; 47 left
input: 9000/30days with burst 9000; cost 17 of 9000; estimated by \"body/4 or else 1\", settled by \"[{ sum: [json:/message/usage/input_tokens, json:/message/usage/cache_creation_input_tokens] }, json:/usage/input_tokens]\"; 525 left
output: 8000/30days with burst 8000; cost 64 of 8000; estimated by \"json:/max_tokens or else 500\", settled by \"json:/usage/output_tokens\"; 118 left
";

/// Series of the three limits and of the target, without those that name a time.
const MEASURED: &str = "\
outpace_attempts_total{target=\"api\"} 3
outpace_limit_configured{target=\"api\",limit=\"input\",kind=\"rate\"} 0.003472222222222222
outpace_limit_configured{target=\"api\",limit=\"output\",kind=\"rate\"} 0.0030864197530864197
outpace_limit_configured{target=\"api\",limit=\"requests\",kind=\"rate\"} 0.000019290123456790124
outpace_limit_units_total{target=\"api\",limit=\"input\"} 51
outpace_limit_units_total{target=\"api\",limit=\"output\"} 192
outpace_limit_units_total{target=\"api\",limit=\"requests\"} 3
outpace_responses_without_usage_total{target=\"api\",cause=\"absent\"} 1
outpace_settlements_capped_total{target=\"api\"} 0
";

/// Returns the explanation of the limits as lines. `free_now` counts requests of this cost.
fn lines(told: &Value) -> String {
    let limits = told["limits"].as_array().unwrap().iter();
    limits
        .filter(|limit| limit["name"] != "tokens")
        .map(|limit| {
            assert!(limit["applies"].as_bool().unwrap(), "{limit}");
            assert_eq!(limit["key"].as_str().unwrap().len(), 32, "{limit}");
            let name = limit["name"].as_str().unwrap();
            let [bound, cost, max, estimated, settled, free] =
                ["bound", "cost", "cost_max", "estimated_by", "settled_by", "free_now"]
                    .map(|member| &limit[member]);
            let bound = bound.as_str().unwrap();
            format!("{name}: {bound}; cost {cost} of {max}; estimated by {estimated}, settled by {settled}; {free} left\n")
        })
        .collect()
}

const BODY: &str = "{\"max_tokens\":64,\"messages\":[{\"role\":\"user\",\"content\":\"Hello!\"}]}";

/// Sends three requests of one key: a stream with usage, a response with usage, and one without.
async fn three_requests() -> Scene {
    let scene = Scene::new(ESTIMATED, LIMITS, true).await;
    let key = [
        ("x-api-key", "sk-one"),
        ("content-type", "application/json"),
    ];
    let stream = [
        b"data: {\"message\":{\"usage\":{\"input_tokens\":11,\"cache_creation_input_tokens\":30}}}\n\n"
            .to_vec(),
        b"data: {\"usage\":{\"output_tokens\":1}}\n\n".to_vec(),
        b"data: {\"usage\":{\"output_tokens\":22}}\n\n".to_vec(),
    ];
    let answers = [
        Answer::new("text/event-stream", "gzip", encoded("gzip", &stream)),
        Answer::json(
            200,
            "{\"usage\":{\"input_tokens\":9,\"output_tokens\":300}}",
        ),
        Answer::json(200, "{}"),
    ];
    for (way, answer) in WAYS[..3].iter().zip(answers) {
        scene.set(answer);
        let response = scene.ask(*way, "one", BODY, &key).await;
        assert_eq!(response.status(), 200);
    }
    scene
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_one_truth_explain_and_metrics_agree_on_three_limits_of_one_key() {
    // The requests of a slot that came too late on a busy machine would be counted, too.
    let scene = loop {
        let scene = three_requests().await;
        if scene.voided().await == 0 {
            break scene;
        }
    };
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("url", "https://api.test/v1");
    query.append_pair("method", "POST");
    query.append_pair("body", BODY);
    query.append_pair("header", "x-api-key: sk-one");
    let path = format!("/v1/explain?{}", query.finish());
    let (status, told) = operate(&scene.program, "GET", &path, Value::Null).await;
    assert_eq!(status, 200, "{told}");
    println!("{}", serde_json::to_string_pretty(&told).unwrap());
    assert_eq!(lines(&told), EXPLAINED);
    let series: String = scene.program.admin_get("/metrics").await.1;
    let names: Vec<&str> = MEASURED
        .lines()
        .map(|line| line.split_once(' ').unwrap().0)
        .collect();
    let mut found: Vec<&str> = series
        .lines()
        .filter(|line| {
            names
                .iter()
                .any(|name| line.starts_with(&format!("{name} ")))
        })
        .collect();
    found.sort_unstable();
    let measured = found.join("\n") + "\n";
    println!("{measured}");
    assert_eq!(measured, MEASURED);
}
