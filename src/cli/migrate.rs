//! `outpace migrate`: updates the schema of the shared ledger, for databases in which `serve` may
//! not do so.

use std::path::Path;

use super::{Exit, print, print_error};
use crate::config;
use crate::db::Database;

pub(super) fn run(path: &Path) -> Exit {
    let loaded = match config::load(path, &config::process_environment, 0) {
        Ok(loaded) => loaded,
        Err(error) => {
            print_error(&format!("the configuration is invalid:\n{error}"));
            return Exit::Usage;
        }
    };
    let Some(postgres) = loaded.config.settings.ledger.postgres else {
        print_error(
            "nothing was migrated: `ledger.postgres.url` is not set; set it to use a shared ledger",
        );
        return Exit::Usage;
    };
    super::block_on(async {
        let migrated = async {
            let database = Database::new(&postgres.url, 1, None)?;
            database.migrate().await?;
            database.check().await?;
            Ok::<_, crate::db::DatabaseError>(database.place())
        };
        match migrated.await {
            Ok(place) => {
                print(&format!("the schema `outpace` at {place} is up to date\n"));
                Exit::Ok
            }
            Err(error) => {
                print_error(&error.to_string());
                Exit::Ledger
            }
        }
    })
}
