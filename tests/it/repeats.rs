//! P11 and P14: log lines that a client can cause at will are counted in summaries beyond a bound,
//! and the records of authenticated clients are complete.

use std::net::SocketAddr;

use http::Request;
use http_body_util::Full;
use serde_json::Value;

use crate::harness::{Client, Origin, Program, Proto, free_port, raw};

const CLIENTS: &str = "clients: [{ name: app, token: client-client-client }]\n";
const FLOOD: usize = 300;

fn count(records: &[Value], reason: &str) -> (usize, u64) {
    let of = |message: &'static str| {
        let is = move |line: &&Value| line["message"] == message && line["reason"] == reason;
        records.iter().filter(is)
    };
    let left_out = of("exchanges left out").map(|line| line["count"].as_u64().unwrap());
    (of("exchange").count(), left_out.sum())
}

/// Sends the request [`FLOOD`] times on one connection.
async fn flood(address: SocketAddr, proto: Proto, make: impl Fn() -> Request<Full<bytes::Bytes>>) {
    let mut client = Client::to(address, proto).await;
    for _ in 0..FLOOD {
        let response = client.ask(make()).await;
        assert!(response.status().is_client_error(), "{response:?}");
    }
}

/// Reaches the bound `RECORD_REPEATS`.
#[tokio::test(flavor = "multi_thread")]
async fn p11_records_of_refused_strangers_are_summarized_and_counted() {
    let origin = Origin::ok().await;
    let port = free_port();
    let more = format!(
        "{CLIENTS}routes: [{{ listen: \"127.0.0.1:{port}\", to: \"http://plain.test\" }}]\n"
    );
    let mut program = Program::before(&origin, &more).await;
    let route = SocketAddr::from(([127, 0, 0, 1], port));
    let get = |uri: &str, host: &str| {
        let request = Request::get(uri.to_owned()).header("host", host);
        request.body(Full::default()).unwrap()
    };
    for proto in [Proto::Http1, Proto::Http2] {
        flood(program.listen, proto, || {
            get("http://plain.test/", "plain.test")
        })
        .await;
        flood(route, proto, || get("http://localhost/", "localhost")).await;
        flood(route, proto, || get("http://evil.test/", "evil.test")).await;
    }
    for _ in 0..FLOOD {
        raw(program.listen, "GET / HTTP/1.1\r\nbad field\r\n\r\n").await;
    }
    let reasons = [
        ("client-unknown", FLOOD * 2),
        ("client-token-unknown", FLOOD * 2),
        ("unknown-host", FLOOD * 2),
        ("malformed-request", FLOOD),
    ];
    for (reason, sent) in reasons {
        let series = format!("outpace_reasons_total{{reason=\"{reason}\"}}");
        let counted = program.metric(&series).await;
        assert!((counted - sent as f64).abs() < 0.1, "{reason}: {counted}");
    }
    program.signal("TERM");
    program.exit_code().await;
    for (reason, _) in reasons {
        // The last lines may be read after the end of the program.
        let is_summary = |line: &Value| line["message"] == "exchanges left out";
        let of_reason = |line: &Value| is_summary(line) && line["reason"] == reason;
        program.record(of_reason).await;
    }
    let records = program.records();
    for (reason, sent) in reasons {
        let (full, left_out) = count(&records, reason);
        println!("{reason}: {full} in full, {left_out} in summaries");
        assert!(full >= 100 && left_out > 0, "{reason}: {full}");
        assert_eq!(full + usize::try_from(left_out).unwrap(), sent, "{reason}");
    }
    let summary = records
        .iter()
        .find(|line| line["message"] == "exchanges left out");
    assert_eq!(summary.unwrap()["client"], "127.0.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_each_exchange_of_an_authenticated_client_leaves_a_record() {
    let origin = Origin::ok().await;
    let more = format!("{CLIENTS}unmatched: refuse\n");
    let mut program = Program::before(&origin, &more).await;
    for proto in [Proto::Http1, Proto::Http2] {
        let get = |host: &str| {
            Request::get(format!("http://{host}/"))
                .header("host", host)
                // Base64 of `app:client-client-client`.
                .header(
                    "proxy-authorization",
                    "Basic YXBwOmNsaWVudC1jbGllbnQtY2xpZW50",
                )
                .body(Full::default())
                .unwrap()
        };
        flood(program.listen, proto, || get("plain.test")).await;
        flood(program.listen, proto, || get("plain.test:22")).await;
    }
    program.signal("TERM");
    program.exit_code().await;
    let records = program.records();
    for reason in ["host-not-allowed", "port-not-allowed"] {
        assert_eq!(count(&records, reason), (FLOOD * 2, 0), "{reason}");
    }
}

/// Reaches the bound `EVENT_REPEATS`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_warnings_of_one_kind_are_summarized() {
    let origin = Origin::ok().await;
    let more = "targets:\n\
        - { name: full, hosts: [plain.test], max_waiting: 0, max_wait: 60s, limits: [{ rate: \"1/1h\" }] }\n\
        - { name: keyed, hosts: [api.test], set_headers: { authorization: secret } }\n";
    let mut program = Program::before(&origin, more).await;
    let loop_uri = format!("http://{}/", program.listen);
    let mut client = Client::plain(&program).await;
    for uri in ["http://plain.test/", "http://api.test/", &loop_uri] {
        for _ in 0..60 {
            client.get(uri).await;
        }
    }
    program.signal("TERM");
    program.exit_code().await;
    let events = program.events();
    for (reason, sent) in [
        ("queue-full", 60),
        ("credentials-need-tls", 60),
        ("loop-detected", 60),
    ] {
        let of = |text: &'static str| {
            let is = move |event: &&Value| {
                let message = event["message"].as_str().unwrap_or_default();
                event["reason"] == reason && message.contains(text)
            };
            events.iter().filter(is)
        };
        let full = of("ended an exchange").count() as u64;
        let left_out = of("were left out").map(|event| event["count"].as_u64().unwrap());
        let left_out = left_out.sum::<u64>();
        println!("{reason}: {full} in full, {left_out} in summaries");
        assert!((1..4).contains(&full), "{reason}: {full}");
        assert_eq!(full + left_out, sent, "{reason}");
    }
    // Each exchange has its record.
    let records = program.records();
    assert_eq!(count(&records, "queue-full"), (60, 0));
    assert_eq!(count(&records, "loop-detected"), (60, 0));
}
