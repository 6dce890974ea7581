//! P11: a reload reaches the requests that already wait: a limit that is raised, lowered or removed
//! applies to them.

use tokio::task::JoinSet;

use crate::harness::{Client, Origin, Postgres, Program, Proto, soon};

/// Number of requests that wait when the limit changes.
const WAITING: usize = 6;

fn config(ledger: &str, limits: &str) -> String {
    format!(
        "{ledger}targets:\n  - name: api\n    hosts: [plain.test, api.test]\n    max_wait: 1h\n    limits: [{limits}]\n"
    )
}

/// Sends one request that leaves and six that wait, over HTTP/1 and HTTP/2.
async fn waiting(program: &Program) -> JoinSet<u16> {
    let mut client = Client::plain(program).await;
    assert_eq!(client.get("http://plain.test/").await.status(), 200);
    let mut requests = JoinSet::new();
    for number in 0..WAITING {
        let proto = [Proto::Http1, Proto::Http2][number % 2];
        let mut client = Client::to(program.listen, proto).await;
        requests.spawn(async move {
            let response = client.get("http://plain.test/").await;
            response.status().as_u16()
        });
    }
    soon("the waiting requests", async {
        while program.metric("outpace_waiting{target=\"api\"}").await < WAITING as f64 {}
    })
    .await;
    requests
}

async fn reload(program: &Program, from: &str, to: &str) {
    let path = program.config_path();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from));
    std::fs::write(&path, text.replace(from, to)).unwrap();
    program.signal("HUP");
    let taken = "the configuration was reloaded";
    program.event(|event| event["message"] == taken).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_one_truth_waiting_requests_follow_a_changed_limit() {
    let slow = "{ name: pace, rate: \"1/1m\", burst: 1 }";
    let narrow = "{ name: pace, rate: \"1/1d\", burst: 1 }";
    let wide = "{ name: pace, rate: \"1000/1s\", burst: 100 }";
    for is_shared in [false, true] {
        for (to, status) in [(wide, 200), ("", 200), (narrow, 429)] {
            let origin = Origin::ok().await;
            let postgres = match is_shared {
                false => None,
                true => Some(Postgres::start().await),
            };
            let own = postgres.as_ref().map(|postgres| {
                format!(
                    "ledger: {{ postgres: {{ url: \"{}\" }} }}\n",
                    postgres.url()
                )
            });
            let text = config(own.as_deref().unwrap_or_default(), slow);
            let program = Program::before(&origin, &text).await;
            let mut requests = waiting(&program).await;
            reload(&program, slow, to).await;
            while let Some(answer) = soon(to, requests.join_next()).await {
                assert_eq!(answer.unwrap(), status, "{to}");
            }
            let left = if status == 200 { WAITING + 1 } else { 1 };
            assert_eq!(origin.arrivals.count(), left, "{to}");
        }
    }
}
