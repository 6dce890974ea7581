//! P10: what is stored opens only for its item and its destination, and only with its key. Values of
//! header fields and queries are never shown.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::harness::buffers::{CREDENTIALS, SPOOL, call, made, noting, until};
use crate::harness::{Origin, Postgres, Program, refused_start};

const SPOOL_WITHOUT_KEY: &str = "spool: { min_free: 1MiB, ballast: 1MiB }\n";

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_url_takes_neither_fields_nor_items_to_another_destination() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, &format!("{SPOOL}connect_ports: [8443]\n")).await;
    let fields = json!({ "url": "https://api.test/in", "headers": { "authorization": "CANARY" } });
    made(&program, &fields).await;
    for url in [
        "http://api.test/in",
        "https://other.test/in",
        "https://api.test:8443/in",
    ] {
        let (status, told) = call(&program, "PATCH", "/buffers/b", json!({ "url": url })).await;
        assert_eq!(status, 409, "{url} {told}");
        let detail = told["detail"].as_str().unwrap();
        assert!(detail.contains("write `headers` anew"), "{detail}");
    }
    // Another path of the same destination is no other destination.
    let same = json!({ "url": "https://API.test:443/elsewhere?q=1" });
    assert_eq!(call(&program, "PATCH", "/buffers/b", same).await.0, 200);
    call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
    until(&program, "delivered", 1).await;
    let arrival = origin.arrivals.last();
    assert_eq!(arrival.headers["authorization"], "CANARY");
    assert!(arrival.uri.ends_with("/elsewhere?q=1"), "{}", arrival.uri);
    call(&program, "POST", "/buffers/b/pause", "{}").await;
    call(&program, "POST", "/buffers/b/items", json!({ "body": "y" })).await;
    let anew = json!({ "url": "http://plain.test/", "headers": { "x-shop": "1" } });
    let (status, told) = call(&program, "PATCH", "/buffers/b", &anew).await;
    assert_eq!(status, 409, "{told}");
    assert!(
        told["detail"].as_str().unwrap().contains("1 items"),
        "{told}"
    );
    call(
        &program,
        "POST",
        "/buffers/b/purge",
        json!({ "state": "queued" }),
    )
    .await;
    assert_eq!(call(&program, "PATCH", "/buffers/b", &anew).await.0, 200);
    call(&program, "POST", "/buffers/b/resume", "{}").await;
    call(&program, "POST", "/buffers/b/items", json!({ "body": "z" })).await;
    until(&program, "delivered", 2).await;
    let arrival = origin.arrivals.last();
    assert_eq!(arrival.headers["x-shop"], "1");
    assert!(!arrival.headers.contains_key("authorization"));
    // A client's own http buffer may have a credential of its own.
    let own = json!({ "name": "own", "url": "http://plain.test/", "headers": { "authorization": "mine" } });
    assert_eq!(call(&program, "POST", "/buffers", own).await.0, 201);
}

/// Executes SQL on the database of a stopped program's spool.
async fn alter(program: &Program, sql: &'static str) {
    let path = program.path("data/spool/spool.db");
    let url = format!("sqlite://{}", path.display());
    let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let done = sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    assert!(done.rows_affected() > 0, "{sql}");
    connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_what_was_sealed_for_one_destination_is_not_sent_to_another() {
    let (origin, seen) = noting(|_| 200).await;
    for (sql, is_paused) in [
        (
            "update buffer set terms = json_set(terms, '$.url', 'http://other.test:80/')",
            true,
        ),
        (
            "update buffer set terms = json_set(terms, '$.url', 'https://plain.test:443/')",
            true,
        ),
        ("update buffer set id = 'buf_other'", true),
        (
            "update item set request = json_set(request, '$.destination', 'http://other.test:80')",
            false,
        ),
        ("update item set id = 'itm_other'", false),
        ("update body set body = zeroblob(length(body))", false),
    ] {
        let mut program = Program::before(&origin, SPOOL).await;
        made(
            &program,
            &json!({ "headers": { "authorization": "CANARY" } }),
        )
        .await;
        call(&program, "POST", "/buffers/b/pause", "{}").await;
        call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
        program.signal("TERM");
        program.exit_code().await;
        alter(&program, sql).await;
        let program = program.again().await;
        call(&program, "POST", "/buffers/b/resume", "{}").await;
        if is_paused {
            let (_, buffer) = call(&program, "GET", "/buffers/b", "").await;
            let paused = buffer["paused"].as_str().unwrap_or_default();
            assert!(
                paused.contains("another item or destination"),
                "{sql}: {buffer}"
            );
        } else {
            until(&program, "dead", 1).await;
        }
        assert!(seen.lock().unwrap().is_empty(), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_at_least_32_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    let long = "k".repeat(32);
    for keys in [
        "key: x".to_owned(),
        format!("key: {}", "k".repeat(31)),
        format!("key: \"{}  \"", "k".repeat(30)),
        format!("key: {long}, old_keys: [short]"),
    ] {
        std::fs::write(&path, format!("spool: {{ {keys} }}\n")).unwrap();
        let (code, text) = refused_start(&path).await;
        assert_eq!(code, Some(64), "{keys}: {text}");
        assert!(text.contains("32 bytes or more"), "{keys}: {text}");
    }
    let origin = Origin::ok().await;
    let more = format!("spool: {{ min_free: 1MiB, ballast: 1MiB, key: {long} }}\n");
    Program::before(&origin, &more).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_on_disk_makes_its_key_and_does_not_start_without_it() {
    let (origin, seen) = noting(|_| 200).await;
    let program = Program::before(&origin, SPOOL_WITHOUT_KEY).await;
    made(
        &program,
        &json!({ "headers": { "authorization": "CANARY" } }),
    )
    .await;
    call(&program, "POST", "/buffers/b/pause", "{}").await;
    call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
    let key = program.path("data/spool/spool.key");
    let mode = std::fs::metadata(&key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(&key).unwrap();
    assert!(text.trim().len() >= 32, "{text}");
    let mut program = program.again().await;
    assert_eq!(std::fs::read_to_string(&key).unwrap(), text);
    program.signal("TERM");
    program.exit_code().await;
    // Without its key the spool does not start, and a new key or a foreign one does not help.
    let config = std::fs::read_to_string(program.config_path()).unwrap();
    let aside = program.path("aside");
    std::fs::rename(&key, &aside).unwrap();
    let foreign = config.replace(
        "ballast: 1MiB",
        "ballast: 1MiB, key: \"of other items, 32 bytes or more\"",
    );
    for config in [&config, &foreign] {
        std::fs::write(program.config_path(), config).unwrap();
        let (code, told) = refused_start(&program.config_path()).await;
        assert_eq!(code, Some(74), "{told}");
        assert!(
            told.contains("old_keys") && told.contains("spool.key"),
            "{told}"
        );
    }
    // A configured key is the newest, and the key beside the data still opens what it sealed.
    std::fs::rename(&aside, &key).unwrap();
    std::fs::write(program.config_path(), &foreign).unwrap();
    let program = program.again().await;
    call(&program, "POST", "/buffers/b/resume", "{}").await;
    until(&program, "delivered", 1).await;
    assert_eq!(*seen.lock().unwrap(), ["x"]);
    assert_eq!(origin.arrivals.last().headers["authorization"], "CANARY");
}

#[tokio::test(flavor = "multi_thread")]
async fn seals_of_an_earlier_version_stop_the_start() {
    let origin = Origin::ok().await;
    for sql in [
        "delete from seal_key; update item set request = json_set(request, '$.sealed', '8d0b3c77:AAAA')",
        "delete from seal_key; update buffer set terms = json_set(terms, '$.sealed', '8d0b3c77:AAAA')",
        "delete from seal_key; update item set request = '{\"headers\":[],\"sealed\":\"8d0b3c77:AAAA\"}'",
    ] {
        let mut program = Program::before(&origin, SPOOL).await;
        made(&program, &json!({})).await;
        call(&program, "POST", "/buffers/b/pause", "{}").await;
        call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
        program.signal("TERM");
        program.exit_code().await;
        alter(&program, sql).await;
        for _ in 0..2 {
            let (code, told) = refused_start(&program.config_path()).await;
            assert_eq!(code, Some(74), "{sql}: {told}");
            assert!(told.contains("an earlier version"), "{told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_values_of_fields_and_queries_are_not_shown() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, SPOOL).await;
    let fields = json!({ "x-shop": "CANARY1", "authorization": "CANARY2", "x-note": "CANARY3" });
    let buffer = json!({ "url": "https://api.test/in?key=CANARY4#CANARY5", "headers": fields });
    let id = made(&program, &buffer).await;
    for path in [
        "/buffers".to_owned(),
        format!("/buffers/{id}"),
        "/buffers/b/stats".to_owned(),
    ] {
        let (_, shown) = call(&program, "GET", &path, "").await;
        assert!(!shown.to_string().contains("CANARY"), "{shown}");
    }
    let (_, shown) = call(&program, "GET", "/buffers/b", "").await;
    assert_eq!(shown["url"], "https://api.test/in");
    let masked = json!({ "authorization": "\u{2026}", "x-note": "\u{2026}", "x-shop": "\u{2026}" });
    assert_eq!(shown["headers"], masked);
    for url in [
        "ftp://a.test/?k=CANARY",
        "http://a.test:99999/?k=CANARY",
        "http://?k=CANARY",
    ] {
        let buffer = json!({ "name": "c", "url": url });
        let (status, told) = call(&program, "POST", "/buffers", buffer).await;
        assert!(
            status == 400 && !told.to_string().contains("CANARY"),
            "{told}"
        );
    }
    let item = json!({ "body": "x", "path": "no?k=CANARY" });
    let (status, told) = call(&program, "POST", "/buffers/b/items", item).await;
    assert!(
        status == 400 && !told.to_string().contains("CANARY"),
        "{told}"
    );
    for args in [
        &["buffers"][..],
        &["buffers", "--json"],
        &["buffers", "show", "b", "--json"],
    ] {
        let url = format!("http://{}", program.listen);
        let mut command = crate::harness::program();
        command.args(args).args(["--url", &url]);
        let output = command.output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.contains("api.test/in") && !text.contains("CANARY"),
            "{text} {output:?}"
        );
    }
    let everything = format!("{:?}{:?}", program.records(), program.events());
    assert!(!everything.contains("CANARY"), "{everything}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_without_a_key_a_shared_spool_stores_no_credentials() {
    let origin = Origin::ok().await;
    let postgres = Postgres::start().await;
    let more = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\nspool: {{ store: postgres }}\n",
        postgres.url()
    );
    let mut program = Program::before(&origin, &more).await;
    made(&program, &json!({ "url": "https://api.test/in" })).await;
    for field in CREDENTIALS {
        let item = json!({ "body": "x", "headers": { field: "CANARY" } });
        let (status, told) = call(&program, "POST", "/buffers/b/items", item).await;
        assert_eq!(
            (status, told["reason"].as_str()),
            (422, Some("not-spoolable"))
        );
        let buffer =
            json!({ "name": "c", "url": "https://api.test/", "headers": { field: "CANARY" } });
        let (status, told) = call(&program, "POST", "/buffers", buffer).await;
        assert_eq!(
            (status, told["reason"].as_str()),
            (422, Some("not-spoolable"))
        );
        assert!(told["detail"].as_str().unwrap().contains(field), "{told}");
    }
    call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
    until(&program, "delivered", 1).await;
    // With a key, and later without it, the items of that key stop the start.
    let config = std::fs::read_to_string(program.config_path()).unwrap();
    let with_key = config.replace(
        "store: postgres",
        "store: postgres, key: \"a key of tests with 32 bytes or more\"",
    );
    program.signal("TERM");
    program.exit_code().await;
    std::fs::write(program.config_path(), with_key).unwrap();
    let mut program = program.again().await;
    let item = json!({ "body": "y", "headers": { "authorization": "CANARY" } });
    assert_eq!(
        call(&program, "POST", "/buffers/b/items", item).await.0,
        201
    );
    until(&program, "delivered", 2).await;
    program.signal("TERM");
    program.exit_code().await;
    std::fs::write(program.config_path(), config).unwrap();
    let (code, told) = refused_start(&program.config_path()).await;
    assert_eq!(code, Some(74), "{told}");
    assert!(told.contains("old_keys"), "{told}");
    // A buffer that was sealed counts like an item.
    let mut connection = postgres.connect().await.unwrap();
    for (sql, code) in [
        ("delete from outpace.item", None),
        (
            "update outpace.buffer set terms = jsonb_set(terms::jsonb, '{sealed}', (select to_jsonb(id || '.AAAA') from outpace.seal_key))::text",
            Some(74),
        ),
    ] {
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        if code.is_some() {
            let (found, told) = refused_start(&program.config_path()).await;
            assert_eq!(found, code, "{sql}: {told}");
            continue;
        }
        program = program.again().await;
        program.signal("TERM");
        program.exit_code().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_opens_the_items_with_their_key_only() {
    let origin = Origin::ok().await;
    for (spool, key) in [
        (SPOOL_WITHOUT_KEY, None),
        (SPOOL, Some("only for tests, with 32 bytes or more")),
    ] {
        let mut program = Program::before(&origin, spool).await;
        made(&program, &json!({})).await;
        call(&program, "POST", "/buffers/b/pause", "{}").await;
        let item = json!({ "body": "a body", "path": "/p?q=1", "headers": { "x-key": "mine" } });
        call(&program, "POST", "/buffers/b/items", item).await;
        program.signal("TERM");
        program.exit_code().await;
        let dir = program.path("data/spool");
        let key_file = program.path("key");
        std::fs::write(&key_file, key.unwrap_or("of other items, 32 bytes or more")).unwrap();
        let run = async |verb: &str, with_file: bool| {
            let mut command = crate::harness::program();
            command.args(["spool", verb]).arg(&dir);
            if with_file {
                command.arg("--key-file").arg(&key_file);
            }
            let output = command.output().await.unwrap();
            let told = [output.stdout, output.stderr].concat();
            let told = String::from_utf8(told).unwrap();
            (output.status.code(), told)
        };
        assert_eq!(run("verify", false).await.0, Some(0));
        let (code, told) = run("export", key.is_some()).await;
        assert_eq!(code, Some(0), "{told}");
        let line: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(line["body"], "a body", "{line}");
        assert_eq!(line["request"]["path"], "/p?q=1", "{line}");
        assert_eq!(
            line["request"]["headers"],
            json!([["x-key", "mine"]]),
            "{line}"
        );
        let (code, told) = run("export", key.is_none()).await;
        assert_eq!(code, Some(73), "{told}");
        assert!(
            told.contains("--key-file") && !told.contains("a body"),
            "{told}"
        );
    }
}
