//! The shared ledger under faults: slow, behind a pooler, absent at the start, refusing, or with a
//! schema that is too new. Further tests cover wall clocks that are hours off and pinned limits.

use std::time::{Duration, Instant};

use http_body_util::Full;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{
    Client, Origin, Postgres, Program, Proto, faketime, free_port, program, soon, worst_window,
};

const SECOND: Duration = Duration::from_secs(1);
/// Most requests in any second that P1 allows for 20/1s with burst 1: burst + n × (1 + slack/W),
/// rounded down.
const BURSTY: usize = 21;

fn config(url: &str, more: &str) -> String {
    format!(
        "ledger: {{ postgres: {{ url: \"{url}\" }}{more} }}\ntargets:\n  - name: api\n    hosts: [\"plain.test\"]\n    max_wait: 30s\n    limits: [{{ name: rate, rate: \"20/1s\", burst: 1 }}]\n"
    )
}

/// Runs `clients` clients per program for `length`. Each sends one request after another and
/// expects status 200.
async fn storm(programs: &[&Program], clients: usize, length: Duration) {
    let end = Instant::now() + length;
    let mut tasks = tokio::task::JoinSet::new();
    for program in programs {
        for _ in 0..clients {
            let address = program.listen;
            tasks.spawn(async move {
                let mut client = Client::to(address, Proto::Http1).await;
                while Instant::now() < end {
                    assert_eq!(client.try_get("http://plain.test/").await, Some(200));
                }
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

/// Starts a TCP relay to the database that delays each direction by half of `delay`, and returns
/// its port.
async fn slow_way(port: u16, delay: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
                    return;
                };
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let up = async move {
                    let mut buffer = vec![0; 65536];
                    while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
                        tokio::time::sleep(delay / 2).await;
                        if to_server.write_all(&buffer[..read]).await.is_err() {
                            return;
                        }
                    }
                };
                let down = async move {
                    let mut buffer = vec![0; 65536];
                    while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
                        tokio::time::sleep(delay / 2).await;
                        if to_client.write_all(&buffer[..read]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::join!(up, down);
            });
        }
    });
    own
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_and_p2_use_with_a_slow_postgres() {
    let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
    let way = slow_way(postgres.port, Duration::from_millis(300)).await;
    let config = config(&postgres.url_by(way), "");
    let (one, two) = (
        Program::before(&origin, &config).await,
        Program::before(&origin, &config).await,
    );
    for program in [&one, &two] {
        program
            .event(|event| event["message"] == "connected to the ledger")
            .await;
    }
    storm(&[&one, &two], 15, Duration::from_secs(10)).await;
    let times = origin.arrivals.times();
    let (worst, first) = (worst_window(&times, SECOND), *times.iter().min().unwrap());
    let late = |at: &&Duration| **at > first + SECOND * 4 && **at <= first + SECOND * 8;
    let steady = times.iter().filter(late).count();
    println!("every call 300 ms: {steady} in 4 s, worst second {worst}");
    assert!(worst <= BURSTY, "worst second: {worst}");
    assert!(steady >= 70, "{steady} in 4 s of 20/1s");
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_through_a_pooler_in_transaction_mode() {
    let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
    let pooler = postgres.pooler().await;
    let config = config(&postgres.url_by(pooler.port), "");
    let (one, two) = (
        Program::before(&origin, &config).await,
        Program::before(&origin, &config).await,
    );
    storm(&[&one, &two], 6, Duration::from_secs(4)).await;
    let times = origin.arrivals.times();
    let worst = worst_window(&times, SECOND);
    println!(
        "behind pgbouncer: {} in 4 s, worst second {worst}",
        times.len()
    );
    assert!(
        worst <= BURSTY && times.len() >= 70,
        "worst second {worst} of {}",
        times.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_with_a_wall_clock_that_is_hours_off() {
    let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
    let config = config(&postgres.url(), "");
    let right = Program::before(&origin, &config).await;
    let library = faketime();
    let env = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME", "+3h"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let wrong = Program::with_env(&origin, &config, &env).await;
    storm(&[&right, &wrong], 6, Duration::from_secs(5)).await;
    let times = origin.arrivals.times();
    let worst = worst_window(&times, SECOND);
    println!(
        "a clock 3 h off: {} in 5 s, worst second {worst}",
        times.len()
    );
    assert!(
        worst <= BURSTY && times.len() >= 90,
        "worst second {worst} of {}",
        times.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_pinned_at_one_replica_holds_at_all_until_it_is_unpinned() {
    let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
    let config = config(&postgres.url(), "");
    let (one, two) = (
        Program::before(&origin, &config).await,
        Program::before(&origin, &config).await,
    );
    let both = [&one, &two];
    let pin = async {
        origin.arrivals.reached(40).await;
        admin(&one, "PATCH", r#"{ "rate": "5/1s" }"#).await;
        let pinned = origin.arrivals.last().at;
        origin.arrivals.reached(40 + 20).await;
        admin(&two, "DELETE", "").await;
        (pinned, origin.arrivals.last().at)
    };
    let (pinned, unpinned) = tokio::join!(pin, storm(&both, 5, Duration::from_secs(10))).0;
    let times = origin.arrivals.times();
    let start = *times.iter().min().unwrap();
    let within =
        |from: Duration, to: Duration| times.iter().filter(|at| **at >= from && **at < to).count();
    let seconds = Duration::from_secs_f64;
    let before = within(start, start + seconds(1.8));
    // All replicas follow a changed limit within a second, so that second does not count.
    let slow = within(pinned + SECOND, unpinned);
    let length = (unpinned - pinned - SECOND).as_secs_f64();
    let after = within(unpinned + SECOND, unpinned + seconds(3.4));
    println!(
        "20/1s: {before} in 1.8 s; pinned to 5/1s: {slow} in {length:.1} s; unpinned: {after} in 2.4 s"
    );
    assert!(before >= 30 && after >= 40);
    let expected = 5.0 * length;
    assert!(
        (slow as f64 - expected).abs() <= 3.0,
        "{slow} requests while pinned, expected {expected}"
    );
    assert!(worst_window(&times, SECOND) <= BURSTY, "unexpected burst");
}

async fn admin(program: &Program, method: &str, body: &str) {
    let mut client = Client::to(program.admin, Proto::Http1).await;
    let request = http::Request::builder()
        .method(method)
        .uri("/v1/targets/api/limits/rate")
        .header("host", "localhost")
        .header(
            "authorization",
            format!("Bearer {}", program.admin_token().unwrap()),
        )
        .header("content-type", "application/json")
        .body(Full::new(body.to_owned().into()))
        .unwrap();
    let response = client.ask(request).await;
    assert_eq!(response.status(), 200, "{:?}", response.body());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_there_yet_is_waited_for_and_others_are_served() {
    let origin = Origin::ok().await;
    let mut postgres = Postgres::start().await;
    postgres.crash();
    let config = config(&postgres.url(), "") + "  - { name: free, hosts: [\"free.test\"] }\n";
    let program = Program::before(&origin, &config).await;
    program
        .event(|event| {
            event["message"] == "the ledger's database cannot be used, fallback mode applies"
        })
        .await;
    let (status, text) = program.admin_get("/readyz").await;
    let expected = "not ready: ledger\nledger: requests are held: Connection refused";
    assert!(status == 503 && text.starts_with(expected), "{text}");
    let mut client = Client::plain(&program).await;
    let held = client
        .request("GET", "http://plain.test/")
        .header("outpace-max-wait", "0.2");
    let held = client.ask(held.body(Full::default()).unwrap()).await;
    assert_eq!(held.status(), 503, "sent without a fallback share");
    postgres.run().await;
    assert_eq!(client.get("http://plain.test/").await.status(), 200);
    assert_eq!(program.admin_get("/readyz").await.0, 200);
}

/// Number of outages in the test below that the program must log. One line per minute would log
/// the first one only, because a test waits for less time.
const OUTAGES: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn p12_predictable_each_outage_is_logged_and_each_reconnection() {
    let origin = Origin::ok().await;
    let mut postgres = Postgres::start().await;
    let program = Program::before(&origin, &config(&postgres.url(), "")).await;
    let says = |text: &'static str| {
        move |event: &serde_json::Value| {
            let message = event["message"].as_str();
            message.is_some_and(|message| message.contains(text))
        }
    };
    for outage in 1..=OUTAGES {
        program
            .nth_event(outage, says("connected to the ledger"))
            .await;
        postgres.crash();
        program
            .nth_event(outage, says("fallback mode applies"))
            .await;
        postgres.run().await;
    }
    program
        .nth_event(OUTAGES + 1, says("connected to the ledger"))
        .await;
    let events = program.events();
    let warned = events
        .iter()
        .filter(|event| says("fallback mode applies")(event));
    assert_eq!(warned.count(), OUTAGES, "one outage is one line per minute");
}

async fn start_error(config: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    let config = format!(
        "listen: 127.0.0.1:{}\nadmin: {{ listen: \"127.0.0.1:{}\" }}\ndata_dir: {}/data\n{config}",
        free_port(),
        free_port(),
        dir.path().display()
    );
    std::fs::write(&path, config).unwrap();
    let mut command = program();
    command.args(["serve", "--config"]).arg(&path);
    let output = soon("the refusal to start", command.output())
        .await
        .unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_refuses_us_or_does_not_fit_is_told_at_the_start() {
    let postgres = Postgres::start().await;
    let nobody = postgres.url().replace("outpace@", "nobody@");
    let (code, told) = start_error(&config(&nobody, "")).await;
    assert!(
        code == Some(78) && told.contains("refuses access") && told.contains("check user"),
        "{code:?} {told}"
    );
    let unprepared = config(&postgres.url(), "").replace(" } }", ", migrate: false } }");
    let (code, told) = start_error(&unprepared).await;
    assert!(
        code == Some(78) && told.contains("run `outpace migrate`"),
        "{code:?} {told}"
    );
    // A newer schema states the program versions that it still serves.
    let database =
        outpace::db::Database::new(&outpace::policy::Secret::new(postgres.url()), 4, None).unwrap();
    database.migrate().await.unwrap();
    let mut connection = postgres.connect().await.unwrap();
    sqlx::query("update outpace.schema_info set oldest = 7, newest = 9")
        .execute(&mut connection)
        .await
        .unwrap();
    let (code, told) = start_error(&config(&postgres.url(), "")).await;
    assert!(
        code == Some(78) && told.contains("serves programs 7 to 9"),
        "{code:?} {told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p12_predictable_closed_holds_and_open_says_so() {
    let origin = Origin::ok().await;
    for (then, goes) in [("closed", false), ("open", true)] {
        let mut postgres = Postgres::start().await;
        let outage = format!(", on_outage: {then}, share_for: 5s");
        let text = config(&postgres.url(), &outage)
            .replace("max_wait: 30s", "max_wait: 1s")
            .replace("20/1s", "1/1h");
        let program = Program::before(&origin, &text).await;
        let mut client = Client::plain(&program).await;
        assert_eq!(client.get("http://plain.test/").await.status(), 200);
        assert_eq!(client.get("http://plain.test/").await.status(), 429);
        postgres.crash();
        // No slot is free while the fallback share lasts (`share_for`). After that time `on_outage`
        // decides.
        let mut last = 0;
        let end = Instant::now() + Duration::from_secs(9);
        while Instant::now() < end && last != 200 {
            last = client.get("http://plain.test/").await.status().as_u16();
        }
        assert_eq!(last == 200, goes, "{then}: {last}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_a_row_take_one_connection_and_what_it_begins_with_leaves_nothing() {
    let postgres = Postgres::start().await;
    let url = outpace::policy::Secret::new(postgres.url());
    let begin_with = Some(outpace::ledger::PostgresLink::BEGIN_WITH);
    let database = outpace::db::Database::new(&url, 4, begin_with).unwrap();
    database.migrate().await.unwrap();
    let which = || database.ask(sqlx::query("select pg_backend_pid()"), SECOND);
    let pid = |rows: Vec<sqlx::postgres::PgRow>| sqlx::Row::get::<i32, _>(&rows[0], 0);
    let first = pid(which().await.unwrap());
    for _ in 0..100 {
        assert_eq!(pid(which().await.unwrap()), first);
    }
    // An SQL error keeps the connection. A timeout discards it because the late answer may still
    // arrive.
    let wrong = database.ask(sqlx::query("select 1 / 0"), SECOND).await;
    assert!(wrong.unwrap_err().as_database_error().is_some());
    assert_eq!(pid(which().await.unwrap()), first);
    let late = sqlx::query("select pg_sleep(60)::text");
    let late = database.ask(late, SECOND / 20).await;
    let late = late.unwrap_err().to_string();
    assert!(late.contains("no answer to a call within 50ms"), "{late}");
    assert_ne!(pid(which().await.unwrap()), first);
    // A connection that the server ended fails once and is not used again.
    let mut other = postgres.connect().await.unwrap();
    let ended = pid(which().await.unwrap());
    let end = sqlx::query("select pg_terminate_backend($1)").bind(ended);
    end.execute(&mut other).await.unwrap();
    assert!(which().await.is_err());
    assert_ne!(pid(which().await.unwrap()), ended);
    // The warm-up statement runs explicitly because its failure on a new connection would go
    // unnoticed.
    let begun = sqlx::raw_sql(outpace::ledger::PostgresLink::BEGIN_WITH);
    database.ask(begun, SECOND).await.unwrap();
    for table in ["target", "schedule", "flow", "permit", "replica"] {
        let count = format!("select count(*) from outpace.{table}");
        let count = sqlx::query(sqlx::AssertSqlSafe(count));
        let count = database.ask(count, SECOND).await.unwrap();
        assert_eq!(sqlx::Row::get::<i64, _>(&count[0], 0), 0, "{table}");
    }
}
