//! `outpace migrate`: the schema of the shared ledger, where `serve` is not allowed to do it.

use std::path::Path;

use super::{Exit, print, print_error};
use crate::config;
use crate::db::Database;

pub(super) fn run(path: &Path) -> Exit {
    let loaded = match config::load(path, &config::process_environment, 0) {
        Ok(loaded) => loaded,
        Err(error) => {
            print_error(&format!("the configuration is wrong:\n{error}"));
            return Exit::Usage;
        }
    };
    let Some(postgres) = loaded.config.settings.ledger.postgres else {
        print_error("there is nothing to migrate: `ledger.postgres.url` is not set");
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
