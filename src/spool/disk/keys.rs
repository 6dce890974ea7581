//! Record of the keys that sealed something in the database, so that a start without one of them is
//! noticed and need not read every item.

use super::super::StoreError;
use super::DiskStore;
use super::batch::{Batch, Failed};
use super::op::Change;

/// Query for the keys of all sealed items and buffers, which reads every row.
const ALL: &str = "select distinct substr(json_extract(request, '$.sealed'), 1, 18) from item \
                   where json_extract(request, '$.sealed') is not null \
                   union select substr(json_extract(terms, '$.sealed'), 1, 18) from buffer \
                   where json_extract(terms, '$.sealed') is not null";

/// Returns the keys of sealed rows that are not among `known`, and records the first of `known`.
/// Reads all rows only if a recorded key is not known, or in a file without a record.
pub(super) async fn missing(
    store: &DiskStore,
    known: &[String],
) -> Result<Vec<String>, StoreError> {
    let noted: Vec<String> = sqlx::query_scalar("select id from seal_key")
        .fetch_all(&store.readers)
        .await?;
    let mut is_changed = known.first().is_some_and(|newest| !noted.contains(newest));
    if noted.is_empty() || noted.iter().any(|key| !known.contains(key)) {
        is_changed = true;
        let used: Vec<String> = sqlx::query_scalar(ALL).fetch_all(&store.readers).await?;
        let missing = used.into_iter().filter(|key| !known.contains(key));
        let missing: Vec<String> = missing.collect();
        if !missing.is_empty() {
            return Ok(missing);
        }
    }
    if is_changed {
        let known = known.to_vec();
        store.write(NoteKeys { known }).await?;
    }
    Ok(Vec::new())
}

/// Replaces the recorded keys by those that are known.
struct NoteKeys {
    known: Vec<String>,
}

impl Change for NoteKeys {
    type Output = ();

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<(), Failed> {
        sqlx::query("delete from seal_key")
            .execute(&mut *batch.connection)
            .await?;
        for key in &self.known {
            sqlx::query("insert into seal_key values (?) on conflict do nothing")
                .bind(key.clone())
                .execute(&mut *batch.connection)
                .await?;
        }
        Ok(())
    }
}
