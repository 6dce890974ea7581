//! P11 and P12: what an outage of the ledger is called, in responses, `explain` and `status`.

use http::Response;
use http_body_util::Full;
use serde_json::Value;

use crate::harness::{Client, Origin, Postgres, Program, Proto, program, soon};

/// Starts a replica of a fleet of one, with its whole fallback share or with none.
async fn replica(postgres: &Postgres, origin: &Origin, more: &str) -> Program {
    let text = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }}{more} }}\ntargets:\n  - {{ name: api, hosts: [plain.test, api.test], max_wait: 1s, limits: [{{ name: pace, rate: \"2/1s\" }}] }}\n  - {{ name: rare, hosts: [other.test], max_wait: 1s, limits: [{{ name: daily, rate: \"1/1d\", burst: 1 }}] }}\n",
        postgres.url()
    );
    let replica = Program::before(origin, &text).await;
    replica
        .event(|event| event["message"] == "connected to the ledger")
        .await;
    replica
}

/// Sends one request with this max wait in each way, and returns the responses.
async fn asked(replica: &Program, host: &str, wait: &str) -> Vec<Response<bytes::Bytes>> {
    let mut told = Vec::new();
    for proto in [Proto::Http1, Proto::Http2] {
        let mut client = Client::intercepted(replica, host, proto).await;
        let request = match proto {
            Proto::Http1 => http::Request::get("/").header("host", host),
            Proto::Http2 => http::Request::get(format!("https://{host}/")),
        };
        let request = request.header("outpace-max-wait", wait);
        told.push(client.ask(request.body(Full::default()).unwrap()).await);
    }
    told
}

/// Runs a command against the replica and returns what it prints.
async fn printed(replica: &Program, arguments: &[&str]) -> String {
    let mut command = program();
    command
        .arg(arguments[0])
        .arg("-c")
        .arg(replica.config_path());
    let output = command.args(&arguments[1..]).output().await.unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_an_outage_is_called_an_outage() {
    let origin = Origin::ok().await;
    let mut postgres = Postgres::start().await;
    let replica = replica(&postgres, &origin, "").await;
    assert_eq!(asked(&replica, "api.test", "1s").await[0].status(), 200);
    postgres.crash();
    soon("the outage", async {
        while replica.metric("outpace_ledger_connected").await > 0.0 {}
    })
    .await;
    // Until the other replicas would have noticed the silence, nothing may leave.
    for response in asked(&replica, "api.test", "0.1s").await {
        assert_eq!(response.status(), 503, "{:?}", response.body());
        let problem: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(problem["reason"], "ledger-unavailable", "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("unreachable for"), "{detail}");
        let millis: u64 = response.headers()["retry-after-ms"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1..=5000).contains(&millis), "{millis}");
    }
    let explained = printed(&replica, &["explain", "https://api.test/"]).await;
    assert!(
        explained.contains("the ledger is unreachable"),
        "{explained}"
    );
    // Then the replica has the whole rate, because it is alone.
    soon("the fallback share", async {
        while asked(&replica, "api.test", "1s").await[0].status() != 200 {}
    })
    .await;
    let status = printed(&replica, &["status"]).await;
    assert!(status.contains("fallback share of 100 %"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_a_share_of_nothing_is_called_nothing() {
    let origin = Origin::ok().await;
    let mut postgres = Postgres::start().await;
    let first = replica(&postgres, &origin, "").await;
    let second = replica(&postgres, &origin, "").await;
    postgres.has_equal_shares(2).await;
    postgres.crash();
    for replica in [&first, &second] {
        soon("the fallback share", async {
            while asked(replica, "api.test", "1s").await[0].status() != 200 {}
        })
        .await;
        for response in asked(replica, "other.test", "0.2s").await {
            assert_eq!(response.status(), 503, "{:?}", response.body());
            assert_eq!(response.headers()["retry-after"], "5");
            let text = String::from_utf8_lossy(response.body()).into_owned();
            for part in ["ledger-unavailable", "nothing of limit `daily`"] {
                assert!(text.contains(part), "{text}");
            }
        }
        let status = printed(replica, &["status"]).await;
        let told = "fallback share of 50 %, which is nothing of daily";
        assert!(status.contains(told), "{status}");
        let explained = printed(replica, &["explain", "https://other.test/"]).await;
        assert!(
            explained.contains("waits for the ledger, which is unreachable"),
            "{explained}"
        );
    }
}
