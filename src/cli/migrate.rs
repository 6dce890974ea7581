//! `outpace migrate`: updates the schema of the shared ledger, for databases in which `serve` may
//! not do so.

use super::client::ConfigArgs;
use super::{Exit, Failure, load_config, print};
use crate::app::StartError;
use crate::db::Database;

pub(super) fn run(args: &ConfigArgs) -> Result<Exit, Failure> {
    let Some(postgres) = load_config(&args.require()?)?
        .config
        .settings
        .ledger
        .postgres
    else {
        let text =
            "nothing was migrated: `ledger.postgres.url` is not set; set it to use a shared ledger";
        return Err(Failure(Exit::USAGE, text.to_owned()));
    };
    super::block_on(async {
        let migrated = async {
            let database = Database::open(&postgres.source, 1, None)?;
            database.migrate().await?;
            database.check().await?;
            Ok::<_, StartError>(database.place())
        };
        let place = migrated.await?;
        Ok(print(&format!(
            "the schema `outpace` at {place} is up to date\n"
        )))
    })
}
