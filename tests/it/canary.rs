//! P10: a secret in any part of a stored request or response appears in no file, no dump, no log, no
//! metric, no error and no answer of the API but the one that is the client's own.

use std::path::Path;

use serde_json::json;

use crate::harness::buffers::{SPOOL, call, call_with, until};
use crate::harness::{Client, Origin, Postgres, Program, Proto, reply};

/// Texts that must not appear anywhere. Each is part of one place of a request or response.
const CANARIES: [&str; 12] = [
    "canary-buffer-url",
    "canary-buffer-query",
    "canary-buffer-field",
    "canary-buffer-secret",
    "canary-path",
    "canary-query",
    "canary-field",
    "canary-secret",
    "canary-body",
    "canary-metadata",
    "canary-response-field",
    "canary-response-body",
];

fn check(place: &str, bytes: &[u8]) {
    for canary in CANARIES {
        let mut windows = bytes.windows(canary.len());
        let is_there = windows.any(|window| window == canary.as_bytes());
        assert!(!is_there, "{canary} is in {place}");
    }
}

/// Checks the names and contents of all files below `dir`, and returns their number.
fn check_files(dir: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        check("a file name", path.to_string_lossy().as_bytes());
        if path.is_dir() {
            count += check_files(&path);
        } else {
            check(&path.to_string_lossy(), &std::fs::read(&path).unwrap());
            count += 1;
        }
    }
    count
}

/// Starts an origin that answers with canaries: 200 to `/in`, 500 to a path with `fail`.
async fn origin() -> Origin {
    Origin::with(|_, request| async move {
        let fails = request.uri().path().contains("fail");
        let mut response = reply(if fails { 500 } else { 200 }, "canary-response-body");
        let value = "canary-response-field".parse().unwrap();
        response.headers_mut().insert("x-access", value);
        response
    })
    .start()
    .await
}

/// Pushes items with canaries everywhere, waits for their ends and checks what is shown.
async fn push_all(program: &Program) {
    let buffer = json!({ "name": "b", "max_retries": 0,
        "url": "https://api.test/canary-buffer-url?key=canary-buffer-query",
        "headers": { "x-note": "canary-buffer-field", "authorization": "canary-buffer-secret" } });
    let (status, made) = call(program, "POST", "/buffers", buffer).await;
    assert_eq!(status, 201, "{made}");
    let item = |path: &str, size: usize| {
        json!({ "path": path, "body": format!("canary-body{}", "x".repeat(size)),
            "metadata": { "id": "canary-metadata" },
            "headers": { "x-field": "canary-field", "x-api-key": "canary-secret" } })
    };
    let mut client = Vec::new();
    for (path, size) in [
        ("/canary-path/fail?api_key=canary-query", 10),
        ("/canary-path/in?api_key=canary-query", 10),
        ("/canary-path/in?api_key=canary-query", 400_000),
    ] {
        let (status, item) = call(program, "POST", "/buffers/b/items", item(path, size)).await;
        assert_eq!(status, 201, "{item}");
        // The metadata is the client's own and is returned unchanged.
        assert_eq!(item["metadata"]["id"], "canary-metadata");
        client.push(item["id"].as_str().unwrap().to_owned());
    }
    until(program, "delivered", 2).await;
    call(program, "POST", "/buffers/b/pause", "{}").await;
    let (_, item) = call(program, "POST", "/buffers/b/items", item("/canary-path", 5)).await;
    client.push(item["id"].as_str().unwrap().to_owned());
    let path = format!("/items/{}/response", client[1]);
    let (status, _) = call_with(program, "GET", &path, "", &[]).await;
    assert_eq!(status, 200);
    let (_, attempts) = call(
        program,
        "GET",
        &format!("/items/{}/attempts", client[1]),
        "",
    )
    .await;
    let attempt = &attempts["attempts"][0];
    assert_eq!(
        attempt["response_body"], "canary-response-body",
        "{attempt}"
    );
    for path in [
        "/buffers",
        "/buffers/b",
        "/attempts",
        "/buffers/none",
        "/items/none",
    ] {
        let (_, shown) = call(program, "GET", path, "").await;
        // The path of a buffer's URL is shown to its owner, and the query is not.
        let shown = shown.to_string().replace("/canary-buffer-url", "");
        check(path, shown.as_bytes());
    }
}

/// Checks the metrics and the status of the admin port, and all output of the program.
async fn check_output(program: &Program) {
    let mut admin = Client::to(program.admin, Proto::Http1).await;
    for path in ["/metrics", "/v1/status"] {
        let answer = admin.get(path).await;
        assert!(!answer.body().is_empty(), "{path}");
        check(path, answer.body());
    }
    let records = program.records();
    assert!(!records.is_empty());
    check(
        "the log",
        format!("{records:?}{:?}", program.events()).as_bytes(),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_no_canary_is_in_the_files_of_a_spool_or_in_any_output() {
    let origin = origin().await;
    for spool in [
        SPOOL,
        "spool: { min_free: 1MiB, ballast: 1MiB, inline: 1KiB }\n",
    ] {
        let mut program = Program::before(&origin, spool).await;
        push_all(&program).await;
        check_output(&program).await;
        // Files are read while the program runs, and after a clean end.
        let count = check_files(&program.path("data"));
        assert!(count > 5, "{count}");
        program.signal("TERM");
        program.exit_code().await;
        assert!(check_files(&program.path("data")) > 3);
        check_output_of_end(&program);
    }
}

fn check_output_of_end(program: &Program) {
    let output = format!("{:?}{:?}", program.records(), program.events());
    check("the log", output.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_no_canary_is_in_the_database_of_a_shared_spool() {
    let origin = origin().await;
    let postgres = Postgres::start().await;
    let more = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\nspool: {{ store: postgres, lease: 1s, key: \"only for tests, with 32 bytes or more\" }}\n",
        postgres.url()
    );
    let program = Program::before(&origin, &more).await;
    push_all(&program).await;
    check_output(&program).await;
    check_files(&program.path("data"));
    let mut connection = postgres.connect().await.unwrap();
    let tables =
        "select table_name::text from information_schema.tables where table_schema = 'outpace'";
    let tables: Vec<String> = sqlx::query_scalar(tables)
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let mut rows = 0;
    for table in &tables {
        let sql = format!("select r::text from outpace.{table} r");
        let found: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_all(&mut connection)
            .await
            .unwrap();
        for row in &found {
            check(table, row.as_bytes());
        }
        rows += found.len();
    }
    // The text of a row has its binary columns in hexadecimal digits, so they are read again.
    for (table, columns) in [("body", "body"), ("attempt", "body")] {
        let sql = format!("select {columns} from outpace.{table} where {columns} is not null");
        let found: Vec<Vec<u8>> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_all(&mut connection)
            .await
            .unwrap();
        assert!(found.len() >= 3, "{table}: {}", found.len());
        for bytes in &found {
            check(table, bytes);
        }
    }
    assert!(tables.len() > 5 && rows > 8, "{tables:?} {rows}");
}
