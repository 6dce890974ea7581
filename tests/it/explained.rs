//! `explain` and `check`: what they say about a limit is what a request meets.

use bytes::Bytes;
use http_body_util::Full;
use serde_json::Value;

use crate::harness::{Client, Origin, Program, Proto, program};

const TARGET: &str = "targets:
  - name: api
    hosts: [plain.test]
    max_wait: 0s
    lanes: [{ name: slow, weight: 2, reserve: \"10%\", match: { json: { /stream: \"false\" } } }, { name: rest }]
    limits:
      - { name: shop, rate: \"9/1h\", burst: 9, key: [host, \"header:authorization\"] }
      - { name: tokens, rate: \"30000/1h\", burst: 30000, match: { path: \"/v1/*\", json: { /model: \"gpt-4o*\" } }, cost: { estimate: [\"json:/max_tokens\", \"header:x-cost\"], default: 1000, settle: \"json:/usage\" } }
      - { name: batch, rate: \"5/1h\", burst: 5, key: [\"path:2\", client_ip], match: { query: { kind: \"*\" }, method: [POST, PUT], header: \"x-api-key: sk-*\" } }
    signals:
      limited: [{ status: [403, 429], header: \"x-left: 0\" }, { json: { /error/token: \"abc*\" } }]
      wait: [{ header: x-wait, unit: ms }, { json: /retry/0/after }]
";

/// A request and its explanation.
struct Case {
    path: &'static str,
    fields: &'static [(&'static str, &'static str)],
    body: String,
    /// Names of the limits that apply, each with the units that it charges.
    charged: &'static [(&'static str, i64)],
    /// Texts that the explanation contains.
    says: &'static [&'static str],
    /// Name of the lane.
    lane: &'static str,
}

fn cases() -> [Case; 5] {
    let long = "x".repeat(3000);
    [
        Case {
            path: "/v1/chat",
            fields: &[("authorization", "Bearer secret-1")],
            body: r#"{"model":"gpt-4o-mini","max_tokens":100,"stream":false}"#.to_owned(),
            charged: &[("shop", 1), ("tokens", 100)],
            says: &[r#""from":"json:/max_tokens""#, r#""read":["gpt-4o-mini"]"#],
            lane: "slow",
        },
        Case {
            path: "/v1/chat?kind=a+b",
            fields: &[("x-api-key", "sk-secret-2"), ("x-cost", "1033.2")],
            body: format!(r#"{{"prompt":"{long}","model":"gpt-4o"}}"#),
            charged: &[("shop", 1), ("tokens", 1088), ("batch", 1)],
            says: &[
                r#""read":["a b"]"#,
                r#""from":"header:x-cost""#,
                r#""value":"chat""#,
                "header x-api-key: (not shown)",
            ],
            lane: "rest",
        },
        Case {
            path: "/v1/%63hat?kind=",
            fields: &[("x-api-key", "sk-secret-3")],
            body: r#"{"model":"o1"}"#.to_owned(),
            charged: &[("shop", 1), ("batch", 1)],
            says: &[r#""read":["o1"],"rule":"json /model: \"gpt-4o*\"""#],
            lane: "rest",
        },
        Case {
            path: "/v1/broken",
            fields: &[("authorization", "Bearer secret-4")],
            body: r#"{"model":"o1""#.to_owned(),
            charged: &[("shop", 1), ("tokens", 1024)],
            says: &["cannot be read to its end", r#""from":"default""#],
            lane: "slow",
        },
        Case {
            path: "/other",
            fields: &[("content-encoding", "gzip")],
            body: "zipped".to_owned(),
            charged: &[("shop", 1)],
            says: &[r#""read":["/other"],"rule":"path: \"/v1/*\"""#],
            lane: "slow",
        },
    ]
}

impl Case {
    async fn explained(&self, program: &Program) -> Value {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("url", &format!("http://plain.test{}", self.path));
        query.append_pair("method", "POST");
        query.append_pair("body", &self.body);
        query.append_pair("client_ip", "127.0.0.1");
        for (name, value) in self.fields {
            query.append_pair("header", &format!("{name}: {value}"));
        }
        let path = format!("/v1/explain?{}", query.finish());
        let (status, told) = program.admin_get(&path).await;
        assert_eq!(status, 200, "{told}");
        serde_json::from_str(&told).unwrap()
    }

    async fn sent(&self, program: &Program, proto: Proto) -> u16 {
        let mut client = Client::to(program.listen, proto).await;
        let mut request = client.request("POST", &format!("http://plain.test{}", self.path));
        for (name, value) in self.fields {
            request = request.header(*name, *value);
        }
        let body = Full::new(Bytes::from(self.body.clone()));
        client
            .ask(request.body(body).unwrap())
            .await
            .status()
            .as_u16()
    }
}

/// Requests that could leave now by each limit, by its name.
fn free(told: &Value) -> Vec<(String, Option<i64>)> {
    let limits = told["limits"].as_array().unwrap().iter();
    let free = |limit: &Value| {
        let name = limit["name"].as_str().unwrap().to_owned();
        (name, limit["free_now"].as_i64())
    };
    limits.map(free).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_is_what_a_request_meets() {
    let origin = Origin::ok().await;
    for case in cases() {
        for proto in [Proto::Http1, Proto::Http2] {
            let program = Program::before(&origin, TARGET).await;
            let told = case.explained(&program).await;
            let text = told.to_string();
            for says in case.says {
                assert!(text.contains(says), "{says}: {text}");
            }
            assert!(!text.contains("secret"), "{text}");
            assert_eq!(told["lane"], case.lane, "{text}");
            let applies = |limit: &&Value| limit["applies"] == true;
            let limits = told["limits"].as_array().unwrap();
            let charged = limits.iter().filter(applies).map(|limit| {
                let name = limit["name"].as_str().unwrap();
                (name, limit["cost"].as_i64().unwrap())
            });
            assert_eq!(charged.collect::<Vec<_>>(), case.charged, "{text}");
            for limit in limits.iter().filter(|limit| limit["match"].is_array()) {
                let conditions = limit["match"].as_array().unwrap();
                let all = conditions.iter().all(|one| one["matches"] == true);
                assert_eq!(limit["applies"], all, "{limit}");
            }
            // The request takes from the limits that were named, and from no other.
            assert_eq!(case.sent(&program, proto).await, 200, "{proto:?} {text}");
            let after = case.explained(&program).await;
            for ((name, before), (_, now)) in free(&told).into_iter().zip(free(&after)) {
                assert_eq!(
                    now,
                    before.map(|before| before - 1),
                    "{name} {proto:?} {text}"
                );
            }
            while case.explained(&program).await["verdict"] == "leaves at once" {
                assert_eq!(case.sent(&program, proto).await, 200);
            }
            assert_eq!(case.sent(&program, proto).await, 429);
        }
    }
}

/// Runs a command with the configuration, and returns what it prints.
async fn printed(config: &str, args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("outpace.yaml"), config).unwrap();
    let output = program().current_dir(dir.path()).args(args).output();
    let output = output.await.unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{text}{output:?}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_in_units_for_a_key_of_two_parts_and_three_limits() {
    let target = TARGET
        .replace("30000/1h", "30000/1m")
        .replace("burst: 30000, ", "");
    let told = printed(
        &target,
        &[
            "explain",
            "--config",
            "outpace.yaml",
            "https://plain.test/v1/chat?kind=x",
            "-H",
            "authorization: Bearer secret-1",
            "-H",
            "x-api-key: sk-secret-2",
            "-d",
            "{\"model\":\"gpt-4o\",\"max_tokens\":1033}",
            "--client-ip",
            "10.0.0.7",
        ],
    )
    .await;
    for line in [
        "shop applies: 9 requests per 1 h, with a burst of 9; one unit per 400 s, rounded up to a whole nanosecond; at most 9 at once\n",
        "  key host: plain.test\n",
        "  key header:authorization: digest ",
        "tokens applies: 30000 units per 1 min, with a burst of 29875; one unit per 2 ms, rounded up",
        "match json /model: \"gpt-4o*\": read \"gpt-4o\", matches\n",
        "  cost: 1033 from json:/max_tokens, charged as 1088\n",
        "  cost settled by json:/usage\n",
        "batch applies: 5 requests per 1 h",
        "  key path:2: chat\n",
        "  key client_ip: 10.0.0.7\n",
        "match query kind: \"*\": read \"x\", matches\n",
    ] {
        assert!(told.contains(line), "{line}\n{told}");
    }
    assert!(!told.contains("secret"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_checked_rules_are_printed_as_they_are_applied() {
    let told = printed(TARGET, &["check", "outpace.yaml"]).await;
    for line in [
        "  limit shop: 9 requests per 1 h, with a burst of 9 (up to 18 within 1h), per host + header:authorization (at most 100000 keys)\n",
        "  limit tokens: 30000 units per 1 h, with a burst of 30000 (up to 60000 within 1h), for requests with path: \"/v1/*\" and json /model: \"gpt-4o*\", cost json:/max_tokens or else header:x-cost or else 1000, at most 30000, settled by json:/usage\n",
        "  limit batch: 5 requests per 1 h, with a burst of 5 (up to 10 within 1h), per path:2 + client_ip (at most 100000 keys), for requests with method: POST or PUT and header x-api-key: (not shown) and query kind: \"*\"\n",
        "  lane slow: weight 2, reserve 10%, for requests with json /stream: \"false\"\n",
        "  lane rest: weight 1, reserve 0%\n",
        "  signal limited: status 403 or 429 and header x-left: \"0\"\n",
        "  signal limited: status from 400 and json /error/token: (not shown)\n",
        "  signal wait: header x-wait, in ms\n",
        "  signal wait: json /retry/0/after, in s\n",
    ] {
        assert!(told.contains(line), "{line}\n{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_a_private_address_is_refused_as_explained() {
    let targets = "targets: [{ name: inner, hosts: [\"10.1.2.3\", \"[::1]\", \"169.254.169.254\", plain.test], limits: [{ rate: \"9/1s\" }] }]\n";
    let origin = Origin::ok().await;
    let program = Program::before(&origin, targets).await;
    let mut client = Client::plain(&program).await;
    for (url, is_refused) in [
        ("http://10.1.2.3/", true),
        ("http://[::1]/", true),
        ("http://169.254.169.254/", true),
        ("http://plain.test/", false),
    ] {
        let (_, told) = program.admin_get(&format!("/v1/explain?url={url}")).await;
        assert_eq!(
            told.contains("`egress.allow` does not list it"),
            is_refused,
            "{url}: {told}"
        );
        let status = client.get(url).await.status().as_u16();
        assert_eq!(status, if is_refused { 403 } else { 200 }, "{url}");
    }
}
