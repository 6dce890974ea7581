//! Misconfigurations of the ledger's database.

use super::{Machine, problems};
use crate::harness::{Origin, Postgres, free_port, program};

#[tokio::test(flavor = "multi_thread")]
async fn each_misconfiguration_of_the_database_is_found() {
    let origin = Origin::ok().await;
    let postgres = Postgres::start_in(&std::env::temp_dir(), "on").await;
    let with = |url: &str, migrate: bool| {
        let mut machine = Machine::sound(&origin);
        machine.append(&format!(
            "ledger: {{ postgres: {{ url: \"{url}\", migrate: {migrate} }} }}\n"
        ));
        machine
    };
    let url = postgres.url();

    let machine = with(&postgres.url_by(free_port()), true);
    machine
        .finds("fault", "postgres_reachable", "cannot be used", &[])
        .await;

    let machine = with(&url, false);
    machine
        .finds("fault", "postgres_schema", "missing or older", &[])
        .await;

    let unencoded = "postgres://u:p@ss/w:rd@127.0.0.1:1/postgres";
    let machine = with(unencoded, true);
    machine.finds("fault", "postgres_url", "parts", &[]).await;
    let (_, document) = machine.doctor().await;
    assert!(!document.to_string().contains("w:rd"), "{document}");
    for (wrong, check) in [
        ("sslmode=bogus", "postgres_url"),
        ("pgbouncer=true", "postgres_url"),
        (
            "sslmode=verify-full&sslrootcert=/nosuch.pem",
            "postgres_reachable",
        ),
    ] {
        let machine = with(&format!("{url}?{wrong}"), true);
        machine.finds("fault", check, "", &[]).await;
    }

    let migrated = with(&url, true);
    migrated.write();
    let mut migrate = program();
    migrate
        .arg("migrate")
        .arg("--config")
        .arg(migrated.path("outpace.yaml"));
    assert!(migrate.output().await.unwrap().status.success());
    let (code, document) = migrated.doctor().await;
    assert_eq!((code, problems(&document)), (Some(0), Vec::new()));

    let pooler = postgres.pooler().await;
    let machine = with(&postgres.url_by(pooler.port), true);
    machine
        .finds("warning", "postgres_pooler", "notifications", &[])
        .await;

    let mut connection = postgres.connect().await.unwrap();
    let mut run = async |statement: &'static str| {
        sqlx::raw_sql(statement)
            .execute(&mut connection)
            .await
            .unwrap();
    };
    let lost = "insert into outpace.replica
        values (7, 'pod-7', '', '', '', '[]', 1, 1, 4000000000000000000, 333333)";
    run(lost).await;
    migrated
        .finds("warning", "replicas", "1 of 1 replicas are silent", &[])
        .await;
    run("delete from outpace.replica").await;
    run("create role app login; grant usage on schema outpace to app").await;
    let machine = with(&url.replace("outpace@", "app@"), false);
    machine
        .finds(
            "fault",
            "postgres_privileges",
            "tables",
            &["postgres_schema"],
        )
        .await;
    run("alter role app set synchronous_commit = off").await;
    let machine = with(&url.replace("outpace@", "app@"), false);
    let also = ["postgres_schema", "postgres_privileges"];
    let (_, document) = machine.doctor().await;
    let found = problems(&document);
    assert!(
        found
            .iter()
            .any(|one| one["check"] == "postgres_durability"),
        "{found:#?}"
    );
    assert_eq!(found.len(), also.len() + 1, "{found:#?}");

    run("alter database postgres set default_transaction_read_only = on").await;
    migrated
        .finds("fault", "postgres_writable", "read-only", &[])
        .await;
}
