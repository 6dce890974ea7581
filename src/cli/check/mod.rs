//! `outpace check FILE`: validates a configuration file with the code of start and reload, but
//! starts nothing.

mod policy;
mod settings;
mod warnings;

pub(super) use warnings::{CLIENT_TIMEOUTS, warnings};

use std::path::PathBuf;

use clap::Args;

use super::client::ConfigArgs;
use super::{Exit, Failure, load_config, print};
use crate::app::{StartError, ca_names};
use crate::clock::Clock;
use crate::config::{PostgresSettings, Settings, StoreSettings};
use crate::db::{Database, DatabaseError};
use crate::intercept::{CaSource, CertificateAuthority};
use crate::policy::Policy;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  outpace check\n  outpace check config.example.yaml\n  outpace check --connect -c outpace.yaml"
)]
pub(super) struct CheckArgs {
    /// Configuration file, like `--config FILE`
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    /// Also connect to the ledger's database, and print its version, schema and durability
    #[arg(long)]
    connect: bool,
}

pub(super) fn run(args: &CheckArgs) -> Result<Exit, Failure> {
    let path = args
        .file
        .clone()
        .map_or_else(|| args.config.require(), Ok)?;
    let config = load_config(&path)?.config;
    if let Some(postgres) = &config.settings.ledger.postgres {
        // The same error ends `serve`.
        Database::open(&postgres.source, 1, None).map_err(StartError::from)?;
    }
    let mut text = String::from("the configuration is valid\n");
    text.push_str(&settings::described(&config));
    text.push_str(&policy::described(&config.policy));
    text.push_str(&about_ca(&config.settings.ca, &config.policy));
    for warning in warnings(&config) {
        text.push_str(&format!("warning: {warning}\n"));
    }
    let exit = print(&text);
    match &config.settings.ledger.postgres {
        Some(postgres) if args.connect => super::block_on(connect(postgres, &config.settings)),
        None if args.connect => Ok(print(
            "database: none, because `ledger.postgres` is not set\n",
        )),
        _ => Ok(exit),
    }
}

/// Connects to the ledger's database and describes it. A database that `serve` would refuse is an
/// error, and so is one that does not answer.
async fn connect(postgres: &PostgresSettings, settings: &Settings) -> Result<Exit, Failure> {
    let reported = async {
        let database = Database::open(&postgres.source, 1, None)?;
        let report = database.report().await?;
        if !report.fits && !postgres.migrate {
            return Err(DatabaseError::TooOld);
        }
        let spool = settings.spool.as_ref();
        let needs_durable =
            spool.is_some_and(|spool| matches!(spool.store, StoreSettings::Postgres(_)));
        if needs_durable {
            database.must_be_durable().await?;
        }
        Ok(report)
    };
    let report = reported.await.map_err(|error: DatabaseError| {
        let exit = match &error {
            DatabaseError::Unreachable { .. } => Exit::PORT,
            _ => Exit::LEDGER,
        };
        Failure(exit, error.to_string())
    })?;
    let schema = match (report.schema, report.fits) {
        (Some(version), true) => format!("schema outpace at migration {version}"),
        (_, true) => "schema outpace".to_owned(),
        (_, false) => "no schema outpace yet, which `serve` creates".to_owned(),
    };
    let encrypted = match report.encrypted {
        true => "encrypted",
        false => "not encrypted",
    };
    Ok(print(&format!(
        "database {}: PostgreSQL {}, {schema}, synchronous_commit = {}, {encrypted}\n",
        report.place, report.version, report.synchronous_commit
    )))
}

/// Describes the constraints that a new CA gets, and the problems of the present CA. Nothing is
/// created.
fn about_ca(source: &CaSource, policy: &Policy) -> String {
    let mut text = String::new();
    let names = ca_names(source, policy);
    if names.is_constrained() {
        text.push_str(&format!("CA: a new one may sign only for {names}\n"));
    }
    let (cert, key) = source.paths();
    if !cert.exists() && !key.exists() {
        return text;
    }
    for (_, problem) in about_ca_files(source, policy) {
        text.push_str(&format!("warning: {problem}\n"));
    }
    text
}

/// Returns the problems of the present CA with their remedies. The flag is true for a problem that
/// prevents a start.
pub(super) fn about_ca_files(source: &CaSource, policy: &Policy) -> Vec<(bool, String)> {
    let now = Clock::system().wall();
    match CertificateAuthority::load(source) {
        Ok(ca) => {
            let is_fault = ca.check_valid(now).is_err();
            let findings = ca.findings(policy, now).into_iter();
            findings.map(|finding| (is_fault, finding)).collect()
        }
        Err(error) => vec![(true, error.to_string())],
    }
}
