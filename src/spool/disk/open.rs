//! Directory and database file of the store, when it is opened.

use std::path::Path;

use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::files::{FileFault, check_entries, make_private_dir, open_private};

/// Creates the directory and locks it. Returns `None` if another process holds the lock.
pub(super) fn take(dir: &Path) -> Result<Option<std::fs::File>, FileFault> {
    make_private_dir(dir)?;
    // The files of bodies lie two levels below.
    check_entries(dir, 2)?;
    let lock = open_private(&dir.join("lock"))?;
    // SQLite creates its other files with the mode of this one.
    open_private(&dir.join("spool.db"))?;
    Ok(lock.try_lock().is_ok().then_some(lock))
}

/// Opens the writer's connection and creates missing tables.
pub(super) async fn connect(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .statement_cache_capacity(256)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .pragma("journal_size_limit", "4194304")
        .pragma("fullfsync", "1")
        .disable_statement_logging();
    let mut connection = SqliteConnection::connect_with(&options).await?;
    sqlx::raw_sql(include_str!("schema.sql"))
        .execute(&mut connection)
        .await?;
    add_missing_columns(&mut connection).await?;
    Ok(connection)
}

/// Adds the columns that a file of an earlier version does not have.
async fn add_missing_columns(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let sql = "select name from pragma_table_info('item')";
    let known: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut *connection).await?;
    for (column, sql) in [
        (
            "refusals",
            "alter table item add column refusals integer not null default 0",
        ),
        ("counted", include_str!("counted.sql")),
    ] {
        if !known.iter().any(|name| name == column) {
            sqlx::raw_sql(sql).execute(&mut *connection).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_of_an_earlier_version_gets_the_missing_column() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool.db");
        let mut connection = connect(&path).await.unwrap();
        let earlier = "alter table item drop column refusals";
        sqlx::raw_sql(earlier)
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        for _ in 0..2 {
            let mut connection = connect(&path).await.unwrap();
            let rows: Vec<i64> = sqlx::query_scalar("select refusals from item")
                .fetch_all(&mut connection)
                .await
                .unwrap();
            assert!(rows.is_empty());
            connection.close().await.unwrap();
        }
    }
}
