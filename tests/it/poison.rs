//! An error that one input causes in a database fails that one request, and all others continue.

use serde_json::json;
use sqlx::{Connection as _, Executor as _};

use crate::harness::buffers::{SPOOL, call, made};
use crate::harness::{Client, Origin, Postgres, Program, Proto, soon};

/// Makes the database refuse three keys, each with an error of another class.
const REFUSE_KEYS: &str = "
    alter table outpace.schedule add constraint poison check (key not like '/violates%');
    create function poison() returns trigger language plpgsql as $$
    begin
      if new.key like '/divides%' then perform 1 / 0; end if;
      if new.key like '/exceeds%' then raise exception using errcode = '54000'; end if;
      return new;
    end $$;
    create trigger poison before insert on outpace.schedule for each row execute function poison();";

async fn execute(postgres: &Postgres, sql: &'static str) {
    let mut connection = sqlx::PgConnection::connect(&postgres.url()).await.unwrap();
    connection.execute(sqlx::raw_sql(sql)).await.unwrap();
}

async fn status(program: &Program, proto: Proto, path: &str) -> u16 {
    let mut client = Client::to(program.listen, proto).await;
    client
        .try_get(&format!("http://plain.test{path}"))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_database_refuses_fails_alone() {
    let postgres = Postgres::start().await;
    let origin = Origin::ok().await;
    let config = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }}, on_outage: closed }}\ntargets: [{{ name: a, hosts: [plain.test], max_wait: 20s, limits: [{{ rate: 1000/1s, key: path }}] }}]\n",
        postgres.url()
    );
    let program = Program::before(&origin, &config).await;
    assert_eq!(status(&program, Proto::Http1, "/first").await, 200);
    execute(&postgres, REFUSE_KEYS).await;
    for round in 0..3 {
        for proto in [Proto::Http1, Proto::Http2] {
            let paths = [
                format!("/violates{round}"),
                format!("/good{round}"),
                format!("/divides{round}"),
                format!("/exceeds{round}"),
                "/first".to_owned(),
            ];
            let all = paths.iter().map(|path| status(&program, proto, path));
            let all = soon("all answers", futures_util::future::join_all(all)).await;
            assert_eq!(all, [400, 200, 400, 400, 200], "{proto:?} {round}");
        }
        let acquire = |key: &str| {
            let body = json!({ "key": format!("/{key}{round}") });
            let program = &program;
            async move { call(program, "POST", "/v1/targets/a/acquire", body).await }
        };
        for key in ["violates", "divides", "exceeds"] {
            let (status, told) = acquire(key).await;
            assert_eq!(
                (status, &told["reason"]),
                (400, &json!("not-bookable")),
                "{told}"
            );
        }
        assert_eq!(acquire("good").await.0, 200);
    }
    assert!((program.metric("outpace_ledger_connected").await - 1.0).abs() < 0.1);
    let events = program.events();
    let warned = events
        .iter()
        .filter(|event| event["level"] == "warn")
        .count();
    assert_eq!(warned, 1, "{events:#?}");
}

/// A missing privilege is not the fault of any request, although its class is that of a wrong name.
#[tokio::test(flavor = "multi_thread")]
async fn p12_predictable_an_error_of_every_booking_is_an_outage() {
    let postgres = Postgres::start().await;
    let origin = Origin::ok().await;
    let config = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }}, on_outage: share }}\ntargets: [{{ name: a, hosts: [plain.test], max_wait: 20s, limits: [{{ rate: 1000/1s, key: path }}] }}]\n",
        postgres.url()
    );
    let program = Program::before(&origin, &config).await;
    assert_eq!(status(&program, Proto::Http1, "/first").await, 200);
    // The control call without inputs writes this row, so it fails as well.
    execute(
        &postgres,
        "alter table outpace.target add constraint broken check (name <> 'a') not valid;
         delete from outpace.target; alter table outpace.schedule add constraint all_broken check (false) not valid;",
    )
    .await;
    let answers = ["/a", "/b", "/c"].map(|path| status(&program, Proto::Http1, path));
    let answers = soon(
        "the fallback share",
        futures_util::future::join_all(answers),
    )
    .await;
    assert_eq!(answers, [200, 200, 200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_the_database_refuses_fails_alone() {
    let postgres = Postgres::start().await;
    let origin = Origin::ok().await;
    let shared = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\nspool: {{ store: postgres, key: \"only for tests, with 32 bytes or more\" }}\n",
        postgres.url()
    );
    for config in [shared.as_str(), SPOOL] {
        let program = Program::before(&origin, config).await;
        let id = made(&program, &json!({ "concurrency": 9 })).await;
        if config == SPOOL {
            let url = program.path("data/spool/spool.db");
            let mut database = sqlx::SqliteConnection::connect(url.to_str().unwrap())
                .await
                .unwrap();
            let sql = "create trigger poison before insert on item when new.size % 10 = 7 begin select raise(abort, 'poison'); end";
            database.execute(sql).await.unwrap();
        } else {
            execute(
                &postgres,
                "alter table outpace.item add constraint poison check (size % 10 <> 7)",
            )
            .await;
        }
        let push = format!("/buffers/{id}/items");
        let pushes = (0..40_usize).map(|n| {
            let (program, push) = (&program, &push);
            async move {
                let body = json!({ "body": "x".repeat(n) });
                (n, call(program, "POST", push, body).await)
            }
        });
        let answers = soon("all pushes", futures_util::future::join_all(pushes)).await;
        let mut refused = Vec::new();
        for (n, (status, told)) in answers {
            if status == 400 {
                assert_eq!(told["reason"], "not-storable", "{n}: {told}");
                refused.push(n % 10);
            } else {
                assert_eq!(status, 201, "{n}: {told}");
            }
        }
        // A sealed body is larger than its text by a constant number of bytes.
        assert_eq!(refused, [refused[0]; 4]);
    }
}
