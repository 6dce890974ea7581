//! Section `ledger`, which defines the database of the schedules and the behaviour during its
//! outage.

use std::time::Duration;

use super::super::{LedgerSettings, PostgresSettings, schema};
use super::{Violation, Violations, secret, span};
use crate::db::{DatabaseSource, UrlError, check_url};
use crate::ledger::{OnOutage, Outage};

const SHARE_FOR: Duration = Duration::from_secs(60);
/// Shortest permitted `share_for`, because a short failure of the network may last as long.
const SHARE_FOR_MIN: Duration = Duration::from_secs(5);

pub(super) fn ledger(p: &mut Violations, written: Option<schema::LedgerSection>) -> LedgerSettings {
    let written = written.unwrap_or_default();
    let shared = written.postgres.is_some();
    let postgres = written.postgres.and_then(|postgres| {
        let key = "ledger.postgres.url";
        let Some(url) = secret(p, key, &postgres.url, &postgres.url_file) else {
            report!(p, "ledger.postgres" =>
                "it needs a `url`: \"postgres://user:password@host/database\"");
            return None;
        };
        // Other errors are found when the database is opened, at start and in `check`.
        if let Err(error @ UrlError::Scheme) = check_url(&url) {
            report!(p, "{key}" => "{error}");
        }
        Some(PostgresSettings {
            source: DatabaseSource::new(url, postgres.url_file),
            migrate: postgres.migrate.unwrap_or(true),
        })
    });
    if !shared
        && (written.on_outage.is_some()
            || written.share_for.is_some()
            || written.bootstrap_share.is_some())
    {
        report!(p, "ledger" =>
            "`on_outage`, `share_for` and `bootstrap_share` are about a shared ledger; set `ledger.postgres.url`");
    }
    let share_for = span(written.share_for, SHARE_FOR);
    if share_for < SHARE_FOR_MIN {
        report!(p, "ledger.share_for" => "a blip of the network is longer; write 5s or more");
    }
    LedgerSettings {
        postgres,
        outage: Outage {
            then: match written.on_outage {
                None | Some(schema::OnOutageSetting::Share) => OnOutage::Share,
                Some(schema::OnOutageSetting::Closed) => OnOutage::Closed,
                Some(schema::OnOutageSetting::Open) => OnOutage::Open,
            },
            share_for,
            bootstrap_ppm: written.bootstrap_share.map_or(0, |share| share.0.0.into()),
        },
    }
}
