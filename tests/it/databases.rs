//! Databases as people have them: URLs with several hosts and parameters, passwords that change while
//! outpace runs, and what `check --connect` says.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use crate::harness::buffers::made;
use crate::harness::{Client, Origin, Postgres, Program, Proto, program, refused_start};

/// Number of requests that are sent over four rotations.
const REQUESTS: usize = 10_000;

fn config(url: &str) -> String {
    format!(
        "ledger: {{ postgres: {{ {url} }} }}\ntargets:\n  - {{ name: api, hosts: [plain.test], max_wait: 60s, limits: [{{ name: pace, rate: \"3000/1s\", burst: 100 }}] }}\n"
    )
}

/// Returns exit code and output of `outpace check` for a configuration.
async fn checked(dir: &Path, config: &str, more: &[&str]) -> (Option<i32>, String) {
    let path = dir.join("checked.yaml");
    std::fs::write(&path, config).unwrap();
    let mut command = program();
    let output = command.arg("check").arg(&path).args(more).output().await;
    let output = output.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// Returns exit code and standard error of `outpace serve`, which must not start.
async fn served(dir: &Path, config: &str) -> (Option<i32>, String) {
    let path = dir.join("served.yaml");
    let data = format!(
        "listen: 127.0.0.1:0\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {}/data\n{config}",
        dir.display()
    );
    std::fs::write(&path, data).unwrap();
    refused_start(&path).await
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_url_that_cannot_be_used_is_refused_by_check_and_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    for (url, told) in [
        (
            "postgres://u@localhost/d?pgbouncer=true",
            "`pgbouncer` is unknown",
        ),
        (
            "postgres://u@localhost/d?channel_binding=require",
            "`channel_binding=require`",
        ),
        (
            "postgres://u@localhost/d?sslmode=bogus",
            "`sslmode` is unknown",
        ),
        ("postgres://u@a:x,b/d", "a port is not a number"),
        (
            "postgres://u:QX7/Z9:QX@localhost/d",
            "escape these characters",
        ),
        (
            "postgres://u:QX7@Z9QX@localhost/d",
            "escape these characters",
        ),
    ] {
        let config = config(&format!("url: \"{url}\""));
        for (code, text) in [
            checked(dir.path(), &config, &[]).await,
            served(dir.path(), &config).await,
        ] {
            assert_eq!(code, Some(78), "{url}: {text}");
            assert!(text.contains(told), "{url}: {text}");
            assert!(!text.contains("QX7") && !text.contains("Z9QX"), "{text}");
        }
    }
    let url = "url: \"postgres://u@localhost/d?sslrootcert=/nowhere/ca.pem\"";
    let (code, text) = served(dir.path(), &config(url)).await;
    assert_eq!(code, Some(78), "{text}");
    assert!(
        text.contains("`sslrootcert`") && text.contains("/nowhere/ca.pem"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_check_connects_to_the_database_and_describes_it() {
    let (dir, mut postgres) = (tempfile::tempdir().unwrap(), Postgres::start().await);
    let ours = config(&format!("url: \"{}\"", postgres.url()));
    let (code, text) = checked(dir.path(), &ours, &["--connect"]).await;
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "PostgreSQL 1",
        "no schema outpace yet",
        "synchronous_commit = on",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let database =
        outpace::db::Database::new(&outpace::policy::Secret::new(postgres.url()), 1, None);
    database.unwrap().migrate().await.unwrap();
    let (code, text) = checked(dir.path(), &ours, &["--connect"]).await;
    assert!(
        code == Some(0) && text.contains("schema outpace at migration 1"),
        "{text}"
    );
    let other = ours.replace("outpace@", "nobody@");
    let (code, text) = checked(dir.path(), &other, &["--connect"]).await;
    assert!(
        code == Some(78) && text.contains("refuses access"),
        "{text}"
    );
    // The server has no certificate.
    let other = ours.replace("/postgres\"", "/postgres?sslmode=require\"");
    let (code, text) = checked(dir.path(), &other, &["--connect"]).await;
    assert!(
        code == Some(69) && text.contains("`sslmode=disable`"),
        "{text}"
    );
    postgres.crash();
    let (code, text) = checked(dir.path(), &ours, &["--connect"]).await;
    assert!(
        code == Some(69) && text.contains("Connection refused"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p12_predictable_a_host_that_accepts_writes_is_found_among_several() {
    let origin = Origin::ok().await;
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    for server in [&first, &second] {
        let url = outpace::policy::Secret::new(server.url());
        let database = outpace::db::Database::new(&url, 1, None).unwrap();
        database.migrate().await.unwrap();
    }
    let read_only = "alter system set default_transaction_read_only = on; ";
    first
        .execute(
            "postgres",
            "alter system set default_transaction_read_only = on",
        )
        .await;
    first.execute("postgres", "select pg_reload_conf()").await;
    let url = format!(
        "url: \"postgres://outpace@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write\"",
        first.port, second.port
    );
    let program = Program::before(&origin, &config(&url)).await;
    let connected = |event: &serde_json::Value| event["message"] == "connected to the ledger";
    program.event(connected).await;
    let mut client = Client::plain(&program).await;
    assert_eq!(client.get("http://plain.test/").await.status(), 200);
    let replicas = "select from outpace.replica";
    second.execute("postgres", replicas).await;
    // The hosts change their roles.
    let writable = "begin read write; rollback; set default_transaction_read_only = off";
    let mut admin = first.connect().await.unwrap();
    for sql in [
        writable,
        "alter system reset default_transaction_read_only",
        "select pg_reload_conf()",
    ] {
        sqlx::raw_sql(sql).execute(&mut admin).await.unwrap();
    }
    second.execute("postgres", read_only).await;
    second.execute("postgres", "select pg_reload_conf()").await;
    let end =
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'outpace'";
    second.execute("postgres", end).await;
    program.nth_event(2, connected).await;
    assert_eq!(client.get("http://plain.test/").await.status(), 200);
    first.execute("postgres", replicas).await;
}

/// Sends requests until `stop` is set, and counts those that were answered with 200. Any other
/// response fails the test.
fn clients(
    program: &Program,
    stop: &Arc<AtomicBool>,
    sent: &Arc<AtomicUsize>,
) -> tokio::task::JoinSet<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (address, stop, sent) = (program.listen, Arc::clone(stop), Arc::clone(sent));
        tasks.spawn(async move {
            let mut client = Client::to(address, Proto::Http1).await;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(client.try_get("http://plain.test/").await, Some(200));
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    tasks
}

#[tokio::test(flavor = "multi_thread")]
async fn p12_predictable_no_request_fails_while_the_password_changes() {
    let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
    postgres
        .execute("postgres", "create role app login password 'first'")
        .await;
    postgres
        .execute("postgres", "create database app owner app")
        .await;
    postgres.require_password("app").await;
    let dir = tempfile::tempdir().unwrap();
    let (file, passwords) = (dir.path().join("url"), dir.path().join("passwords"));
    let write = |password: &str| {
        let url = postgres.url_of(&format!("app:{password}"), "app");
        std::fs::write(&file, url + "\n").unwrap();
        std::fs::write(&passwords, format!("*:*:*:app:{password}\n")).unwrap();
    };
    write("first");
    let by_file = format!("url_file: {}", file.display());
    let by_passfile = format!(
        "url: \"{}?passfile={}\"",
        postgres.url_of("app", "app"),
        passwords.display()
    );
    for (source, url) in [by_file, by_passfile].into_iter().enumerate() {
        let spool = "spool: { store: postgres, key: \"only for tests, with 32 bytes or more\" }\n";
        let mut program = Program::before(&origin, &(config(&url) + spool)).await;
        let connected = |event: &serde_json::Value| event["message"] == "connected to the ledger";
        program.event(connected).await;
        let (stop, sent) = (Arc::default(), Arc::<AtomicUsize>::default());
        let mut running = clients(&program, &stop, &sent);
        for (round, is_file_first) in [true, false].into_iter().enumerate() {
            let password = format!("password{source}{round}");
            let change = format!("alter role app password '{password}'");
            if is_file_first {
                write(&password);
            }
            postgres.execute("postgres", &change).await;
            let end =
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'";
            postgres.execute("postgres", end).await;
            if !is_file_first {
                // The old password is refused before the file changes.
                let refused = |event: &serde_json::Value| event["sqlstate"] == "28P01";
                program.event(refused).await;
                write(&password);
            }
            program.nth_event(2 + round, connected).await;
            let before = origin.arrivals.count();
            origin.arrivals.reached(before + REQUESTS / 4).await;
        }
        stop.store(true, Ordering::Relaxed);
        while let Some(done) = running.join_next().await {
            done.unwrap();
        }
        println!(
            "{} requests over 2 rotations, none failed",
            sent.load(Ordering::Relaxed)
        );
        assert!(sent.load(Ordering::Relaxed) >= REQUESTS / 2 - 16);
        // The spool uses the new password, too.
        let name = json!({ "name": format!("b{source}") });
        made(&program, &name).await;
        // A clean exit leaves no fallback share reserved.
        program.signal("TERM");
        program.exit_code().await;
    }
}
