//! P11: the metrics of buffers and of calls to the ledger are what happens, on disk and in Postgres.

use serde_json::{Value, json};

use crate::harness::buffers::{SPOOL, call, operate};
use crate::harness::{Client, Origin, Postgres, Program, reply, soon};

const BUFFERS: &str = "buffers:\n  - { name: good, url: \"http://plain.test/200\" }\n  - { name: bad, url: \"http://plain.test/400\", max_retries: 0 }\n";

fn shared(postgres: &Postgres) -> String {
    format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\nspool: {{ store: postgres, lease: 1s, key: \"only for tests, with 32 bytes or more\" }}\n{BUFFERS}",
        postgres.url()
    )
}

async fn origin() -> Origin {
    let origin =
        Origin::with(
            |_, request| async move { reply(request.uri().path()[1..].parse().unwrap(), "") },
        );
    origin.start().await
}

async fn reaches(program: &Program, series: &str, expected: f64) {
    soon(&format!("{series} {expected}"), async {
        while (program.metric(series).await - expected).abs() > 1e-6 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn items(buffer: &str, state: &str) -> String {
    format!("outpace_spool_items{{buffer=\"{buffer}\",state=\"{state}\"}}")
}

/// Pauses `good`, pushes three items into it and two into `bad`, and checks the metrics.
async fn check(pusher: &Program, replicas: &[&Program]) {
    let paused = operate(pusher, "POST", "/v1/buffers/good/pause", json!({})).await;
    assert_eq!(paused.0, 200, "{paused:?}");
    for (buffer, count) in [("good", 3), ("bad", 2)] {
        for n in 0..count {
            let item = json!({ "body": format!("{buffer} {n}") });
            let path = format!("/buffers/{buffer}/items");
            assert_eq!(call(pusher, "POST", &path, item).await.0, 201);
        }
    }
    for replica in replicas {
        reaches(replica, &items("good", "queued"), 3.0).await;
        reaches(replica, &items("bad", "dead"), 2.0).await;
        reaches(replica, &items("bad", "queued"), 0.0).await;
        reaches(
            replica,
            "outpace_spool_paused_buffers{buffer=\"good\"}",
            1.0,
        )
        .await;
        reaches(replica, "outpace_spool_paused_buffers{buffer=\"bad\"}", 0.0).await;
        let oldest = "outpace_spool_oldest_item_seconds{buffer=\"good\"}";
        soon("an age", async {
            while replica.metric(oldest).await <= 0.0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        // Dead letters are not waiting.
        reaches(
            replica,
            "outpace_spool_oldest_item_seconds{buffer=\"bad\"}",
            0.0,
        )
        .await;
        let max = replica.metric("outpace_spool_max_bytes").await;
        let (used, free) = (
            replica.metric("outpace_spool_used_bytes").await,
            replica.metric("outpace_spool_free_bytes").await,
        );
        assert!(
            free > 0.0 && used > 0.0 && used + free <= max,
            "{used} {free} {max}"
        );
    }
    operate(pusher, "POST", "/v1/buffers/good/resume", json!({})).await;
    for replica in replicas {
        reaches(replica, &items("good", "delivered"), 3.0).await;
        reaches(
            replica,
            "outpace_spool_oldest_item_seconds{buffer=\"good\"}",
            0.0,
        )
        .await;
        reaches(
            replica,
            "outpace_spool_paused_buffers{buffer=\"good\"}",
            0.0,
        )
        .await;
    }
    let mut sums = [0.0, 0.0, 0.0];
    for replica in replicas {
        for (sum, series) in sums.iter_mut().zip([
            "outpace_spool_attempts_total{outcome=\"delivered\"}",
            "outpace_spool_attempts_total{outcome=\"rejected\"}",
            "outpace_spool_leases",
        ]) {
            *sum += replica.metric(series).await;
        }
    }
    assert_eq!(sums.map(|sum| sum as u64)[..2], [3, 2]);
    // A replica gives the lease of a buffer without items back after some time.
    assert!(sums[2] <= 2.0, "{sums:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_the_items_of_each_buffer_are_counted_on_disk() {
    let origin = origin().await;
    let program = Program::before(&origin, &format!("{SPOOL}{BUFFERS}")).await;
    // The series exist before the first item.
    let text = program.admin_get("/metrics").await.1;
    for series in [
        items("good", "in_flight"),
        items("bad", "expired"),
        "outpace_spool_attempts_total{outcome=\"interrupted\"}".to_owned(),
    ] {
        assert!(text.contains(&format!("{series} 0\n")), "{series}\n{text}");
    }
    check(&program, &[&program]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_all_replicas_count_the_items_of_a_shared_store() {
    let origin = origin().await;
    let postgres = Postgres::start().await;
    let replicas = [
        Program::before(&origin, &shared(&postgres)).await,
        Program::before(&origin, &shared(&postgres)).await,
    ];
    check(&replicas[1], &[&replicas[0], &replicas[1]]).await;
}

/// Reaches the bound `BUFFER_FIGURES_WAIT`.
#[tokio::test(flavor = "multi_thread")]
async fn p12_a_store_that_cannot_be_read_delays_no_scrape() {
    let origin = origin().await;
    let postgres = Postgres::start().await;
    let program = Program::before(&origin, &shared(&postgres)).await;
    let series = items("good", "queued");
    let has = async |wanted: bool| {
        soon(&format!("figures: {wanted}"), async {
            loop {
                let (status, text) = program.admin_get("/metrics").await;
                assert_eq!(status, 200);
                if text.contains(&series) == wanted {
                    return;
                }
            }
        })
        .await;
    };
    has(true).await;
    let mut connection = postgres.connect().await.unwrap();
    sqlx::raw_sql("begin; lock table outpace.item in access exclusive mode")
        .execute(&mut connection)
        .await
        .unwrap();
    has(false).await;
    let (_, status) = operate(&program, "GET", "/v1/status", Value::Null).await;
    assert_eq!(status["spool"]["buffers"], Value::Null, "{status}");
    assert!(status["spool"]["max_bytes"].is_number(), "{status}");
    sqlx::raw_sql("rollback")
        .execute(&mut connection)
        .await
        .unwrap();
    has(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_calls_to_the_ledger_have_durations_and_classes_of_errors() {
    const TARGET: &str =
        "targets: [{ name: api, hosts: [plain.test], limits: [{ rate: \"1000/1s\" }] }]\n";
    let origin = Origin::ok().await;
    let mut postgres = Postgres::start().await;
    let config = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\n{TARGET}",
        postgres.url()
    );
    let program = Program::before(&origin, &config).await;
    let text = program.admin_get("/metrics").await.1;
    for call in ["book", "heartbeat", "other"] {
        for class in ["timeout", "unavailable", "server", "refused"] {
            let series =
                format!("outpace_ledger_errors_total{{call=\"{call}\",class=\"{class}\"}} 0\n");
            assert!(text.contains(&series), "{series}\n{text}");
        }
    }
    let booked = "outpace_ledger_call_seconds_count{call=\"book\"}";
    let before = program.metric(booked).await;
    Client::plain(&program)
        .await
        .get("http://plain.test/")
        .await;
    assert!(program.metric(booked).await > before);
    let seconds = program
        .metric("outpace_ledger_call_seconds_sum{call=\"book\"}")
        .await;
    assert!(seconds > 0.0, "{seconds}");
    let grows = async |class: &str| {
        let calls = ["heartbeat", "other"].map(|call| {
            format!("outpace_ledger_errors_total{{call=\"{call}\",class=\"{class}\"}}")
        });
        soon(class, async {
            while program.metric(&calls[0]).await + program.metric(&calls[1]).await < 0.5 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    let mut connection = postgres.connect().await.unwrap();
    sqlx::raw_sql("begin; lock table outpace.replica in access exclusive mode")
        .execute(&mut connection)
        .await
        .unwrap();
    grows("timeout").await;
    sqlx::raw_sql("rollback")
        .execute(&mut connection)
        .await
        .unwrap();
    reaches(&program, "outpace_ledger_connected", 1.0).await;
    sqlx::raw_sql("alter function outpace.heartbeat_v1 rename to away")
        .execute(&mut connection)
        .await
        .unwrap();
    grows("server").await;
    sqlx::raw_sql("alter function outpace.away rename to heartbeat_v1")
        .execute(&mut connection)
        .await
        .unwrap();
    reaches(&program, "outpace_ledger_connected", 1.0).await;
    drop(connection);
    postgres.crash();
    grows("unavailable").await;
}
