//! Return of free pages of the database file to the file system, for bodies with files of their own.

use super::batch::{Batch, Failed};
use super::op::Change;
use crate::bounds::{SPOOL_BLOCK, SPOOL_COMMIT};

pub(super) struct Shrink {
    /// Bytes that are wanted. At least [`SPOOL_COMMIT`] bytes are returned if they are free.
    pub(super) by: u64,
}

impl Change for Shrink {
    type Output = ();

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<(), Failed> {
        let count = self.by.max(SPOOL_COMMIT).div_ceil(SPOOL_BLOCK);
        // A file of an earlier version keeps its pages.
        let sql = format!("pragma incremental_vacuum({count})");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .persistent(false)
            .fetch_all(&mut *batch.connection)
            .await?;
        Ok(())
    }
}
