//! YAML to policy and settings; the only place that knows YAML.
//!
//! Parsing ends in types that cannot hold nonsense. A syntax or type error is told with its place;
//! rule violations all at once with their paths. `check`, start and reload run the same code.
//! `config.example.yaml` is the manual: a test uncomments and runs each of its sections.

mod error;
mod resolve;
mod schema;
mod value;

pub use error::{ConfigError, Violation};

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use crate::exchange::BodySettings;
use crate::intercept::CaSource;
use crate::ledger::Outage;
use crate::origin::ParentProxy;
use crate::policy::{Policy, Secret};
use crate::spool::{BufferSpec, DiskSettings, PostgresSpoolSettings};
use crate::units::ByteSize;

/// What a file says.
#[derive(Debug)]
pub struct Config {
    /// What takes a restart to change.
    pub settings: Settings,
    /// What a reload swaps.
    pub policy: Policy,
}

/// What the parts are built from; changing it takes a restart.
#[derive(Debug, PartialEq)]
pub struct Settings {
    /// The proxy's port.
    pub listen: SocketAddr,
    /// The URL under which apps reach the proxy, if not by `listen`.
    pub public_url: Option<String>,
    /// The operators' port.
    pub admin_listen: SocketAddr,
    /// Ports of routes.
    pub route_ports: Vec<SocketAddr>,
    /// State on disk.
    pub data_dir: PathBuf,
    /// The CA.
    pub ca: CaSource,
    /// Where `ca.pem` and `bundle.pem` go beside the data directory.
    pub export_dir: Option<PathBuf>,
    /// Trusted for origins, beside the system's roots.
    pub roots: Vec<CertificateDer<'static>>,
    /// Where all connections go through.
    pub parent: Option<ParentProxy>,
    /// How much of request bodies may be kept.
    pub keep: BodySettings,
    /// Where schedules live.
    pub ledger: LedgerSettings,
    /// What is kept on disk, and for how long; nothing if there is no spool.
    pub spool: Option<SpoolSettings>,
    /// How long a drain may take.
    pub drain_timeout: Duration,
}

/// What is kept on disk.
#[derive(Debug, PartialEq)]
pub struct SpoolSettings {
    /// Where and how much.
    pub store: StoreSettings,
    /// Bytes of one body.
    pub max_body: ByteSize,
    /// Keys for secrets, the newest first.
    pub keys: Vec<Secret>,
    /// How long what was delivered stays.
    pub keep_delivered: Duration,
    /// How long dead letters stay.
    pub keep_dead: Duration,
    /// Buffers that the file declares.
    pub buffers: Vec<BufferSpec>,
}

/// Where items are kept.
#[derive(Debug, PartialEq, Eq)]
pub enum StoreSettings {
    /// On this machine.
    Disk(DiskSettings),
    /// In the ledger's database, for all replicas.
    Postgres(PostgresSpoolSettings),
}

/// Where schedules live, and what happens without that place.
#[derive(Debug, PartialEq, Eq)]
pub struct LedgerSettings {
    /// A database; memory if there is none.
    pub postgres: Option<PostgresSettings>,
    /// While it cannot be reached.
    pub outage: Outage,
}

/// A database of schedules.
#[derive(Debug, PartialEq, Eq)]
pub struct PostgresSettings {
    /// Its URL, perhaps with a password.
    pub url: Secret,
    /// Whether `serve` brings its schema up to date.
    pub migrate: bool,
}

/// Looks up an environment variable.
pub type Environment = dyn Fn(&str) -> Option<String>;

/// The environment of this process.
#[expect(
    clippy::disallowed_methods,
    reason = "configuration is where the environment is read"
)]
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// What a file says, and the operators' token, which is no setting to compare or print.
#[derive(Debug)]
pub struct Loaded {
    /// Settings and policy.
    pub config: Config,
    /// What operators prove themselves with.
    pub admin_token: Option<Arc<Secret>>,
}

/// Reads and checks `path`; `generation` counts reloads.
///
/// # Errors
/// [`ConfigError`]: each problem with its place and how to write it.
pub fn load(
    path: &Path,
    environment: &Environment,
    generation: u64,
) -> Result<Loaded, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|cause| ConfigError::unreadable(path, &cause))?;
    parse(path, &text, environment, generation)
}

/// Like [`load`], with the text at hand; `path` is for messages.
///
/// # Errors
/// [`ConfigError`].
pub fn parse(
    path: &Path,
    text: &str,
    environment: &Environment,
    generation: u64,
) -> Result<Loaded, ConfigError> {
    let file = value::with_environment(environment, text, || schema::read(text))
        .map_err(|error| ConfigError::syntax(path, &error))?;
    resolve::resolve(file, generation).map_err(|problems| ConfigError::rules(path, problems))
}

#[cfg(test)]
mod tests;
