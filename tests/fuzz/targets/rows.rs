//! Rows of a spool on disk, in which another program may have written any value.

use std::sync::Arc;

use outpace::clock::Clock;
use outpace::shutdown::Tasks;
use outpace::spool::{DiskSettings, DiskStore, ListQuery, Reads as _};
use sqlx::sqlite::{SqliteConnectOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, SqliteConnection};
use tokio::runtime::{Builder, Runtime};

use super::{Target, text};

pub(crate) const TARGET: Target = Target {
    name: "rows",
    seeds: &[
        b"status=6\nkept=9223372036854775807\nnot_before=-1\ncode=99999",
        b"request={\"path\":\"/a\",\"headers\":[[\"a\",\"b\"]],\"reply\":true}\nattempts=-1\nerror=a",
        b"expires=-9223372036854775808\nfinished=0\nretries=4294967296\nrefusals=7\ndoubtful=2",
        b"id=\nseq=-1\nlarge=1\ncrc=-1\nsize=9223372036854775807\nborn=0",
        b"outcome=delivered\nheaders=[[\"a\",\"b\"]]\nbody=x\ncut=7\nnumber=-1\nnext=1",
        b"headers={}\ntook=-1\nwaited=9223372036854775807\nstarted=0\nitem=b\noutcome=\xc3\xa9",
        b"request=\nheaders=null\nstatus=-1",
    ],
    run,
};

const OF_ITEM: [&str; 18] = [
    "id",
    "born",
    "seq",
    "status",
    "request",
    "large",
    "crc",
    "size",
    "kept",
    "not_before",
    "expires",
    "attempts",
    "retries",
    "refusals",
    "doubtful",
    "finished",
    "code",
    "error",
];
const OF_ATTEMPT: [&str; 13] = [
    "item", "number", "started", "took", "waited", "outcome", "code", "error", "next", "doubtful",
    "headers", "body", "cut",
];

struct World {
    runtime: Runtime,
    store: DiskStore,
    /// Connection of the other program.
    other: SqliteConnection,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let settings = DiskSettings {
            dir: dir.path().join("spool"),
            max: 1 << 30,
            min_free: 0,
            ballast: 0,
            inline: 1024,
            accept_loss: true,
        };
        let path = settings.dir.join("spool.db");
        let (store, other) = runtime.block_on(async {
            let store = DiskStore::open(settings, &Clock::system(), &Tasks::new())
                .await
                .unwrap();
            let options = SqliteConnectOptions::new()
                .filename(path)
                .foreign_keys(false)
                .synchronous(SqliteSynchronous::Off);
            (store, options.connect().await.unwrap())
        });
        Self {
            runtime,
            store,
            other,
            _dir: dir,
        }
    }

    fn run(&mut self, values: &[(&str, &str)]) {
        let Self {
            runtime,
            store,
            other,
            ..
        } = self;
        runtime.block_on(async {
            for sql in [
                "delete from item",
                "delete from attempt",
                "insert into item values (1, 'a', 1, 1, 1, 0, '{}', 0, 0, 0, 0, 0, null, 0, 0, 0, 0, null, null, null, '', 0)",
                "insert into attempt values (1, 'a', 1, 1, 0, 0, 0, 'failed', null, null, null, 0, null, null, 0)",
            ] {
                sqlx::query(sql).execute(&mut *other).await.unwrap();
            }
            for (column, value) in values {
                for (table, known) in [("item", &OF_ITEM[..]), ("attempt", &OF_ATTEMPT[..])] {
                    if known.contains(column) {
                        // The table refuses a value of another type.
                        let _refused = write(other, table, column, value).await;
                    }
                }
            }
            read(store).await;
        });
    }
}

async fn write(
    other: &mut SqliteConnection,
    table: &str,
    column: &str,
    value: &str,
) -> Result<(), sqlx::Error> {
    let sql = AssertSqlSafe(format!("update {table} set {column} = ?"));
    let query = match value.parse::<i64>() {
        _ if value == "null" => sqlx::query(sql).bind(None::<i64>),
        Ok(number) => sqlx::query(sql).bind(number),
        Err(_) if column == "body" => sqlx::query(sql).bind(value.as_bytes().to_vec()),
        Err(_) => sqlx::query(sql).bind(value.to_owned()),
    };
    query.execute(other).await.map(|_| ())
}

/// Reads the rows in every way in which the program does.
async fn read(store: &DiskStore) {
    let query = ListQuery {
        limit: 10,
        responses: true,
        ..ListQuery::default()
    };
    let items = store.items(query.clone()).await.unwrap_or_default();
    for item in &items {
        let _content = store.content(item).await;
        let _same = store.item(Arc::clone(&item.id)).await;
        let _shown = format!("{item:?}");
    }
    for (_, attempt) in store.attempts(query).await.unwrap_or_default() {
        let _shown = format!("{attempt:?}");
    }
    let _counts = store.counts(1).await;
    for now in [0, i64::MAX] {
        let _next = store.next_items(1, now, true, 10).await;
    }
    let _keys = store.missing_keys(&[]).await;
    let _interrupted = store.interrupted(1).await;
}

fn run(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let values: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    thread_local!(static WORLD: std::cell::RefCell<World> = World::new().into());
    WORLD.with_borrow_mut(|world| world.run(&values));
}
