//! Configuration: YAML becomes a policy and settings, and no other module reads YAML.
//!
//! Parsing ends in types that cannot hold invalid values. An error in the syntax or a type names
//! its position. All violations of rules are reported at once, with their paths. `check`, start and
//! reload run the same code. `config.example.yaml` is the manual, and a test uncomments and runs
//! each of its sections.

mod error;
mod expression;
mod json_schema;
mod partial;
mod paths;
mod resolve;
mod schema;
mod state_dir;
mod value;
mod whole;

pub use error::{ConfigError, Violation};
pub use json_schema::json_schema;
pub use partial::{Purpose, load_for};
pub use whole::{Incomplete, check_policy, check_text, is_empty};

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use crate::db::DatabaseSource;
use crate::exchange::{AccessLog, BodySettings};
use crate::intercept::CaSource;
use crate::ledger::Outage;
use crate::origin::ParentProxy;
use crate::policy::{Policy, Secret};
use crate::spool::{BufferSpec, DiskSettings, PostgresSpoolSettings};
use crate::units::ByteSize;

/// Content of a configuration file after validation.
#[derive(Debug)]
pub struct Config {
    /// Settings that require a restart to change.
    pub settings: Settings,
    /// Policy that each reload replaces as a whole.
    pub policy: Policy,
}

/// Settings from which the parts of the program are built. A change requires a restart.
#[derive(Debug, PartialEq)]
pub struct Settings {
    /// Address on which the proxy listens for requests.
    pub listen: SocketAddr,
    /// URL under which apps reach the proxy, if it differs from `listen`.
    pub public_url: Option<String>,
    /// Address on which the admin port listens.
    pub admin_listen: SocketAddr,
    /// Addresses on which routes with a port of their own listen.
    pub route_ports: Vec<SocketAddr>,
    /// Directory in which the proxy keeps its state.
    pub data_dir: PathBuf,
    /// Source of the CA's certificate and private key.
    pub ca: CaSource,
    /// Directory for copies of `ca.pem` and `bundle.pem`, in addition to the data directory.
    pub export_dir: Option<PathBuf>,
    /// Root certificates that are trusted for origins, in addition to the system's roots.
    pub roots: Vec<CertificateDer<'static>>,
    /// Parent proxy through which all connections to origins are made.
    pub parent: Option<ParentProxy>,
    /// Bounds in bytes for request bodies that are kept in memory or on disk.
    pub keep: BodySettings,
    /// Settings of the ledger, which holds the schedules.
    pub ledger: LedgerSettings,
    /// Settings of the spool, or `None` without a spool.
    pub spool: Option<SpoolSettings>,
    /// Selection of canonical lines, and form of all lines.
    pub log: LogSettings,
    /// Time that a drain may take before the remaining requests are dropped.
    pub drain_timeout: Duration,
}

impl Settings {
    /// Returns the keys of the configuration whose settings differ from those of `newer`.
    pub fn changed_keys(&self, newer: &Self) -> Vec<&'static str> {
        // A new field must be compared, so all are named here.
        let Self {
            listen,
            public_url,
            admin_listen,
            route_ports,
            data_dir,
            ca,
            export_dir,
            roots,
            parent,
            keep,
            ledger,
            spool,
            log,
            drain_timeout,
        } = self;
        let mut keys = vec![
            ("listen", *listen != newer.listen),
            ("public_url", *public_url != newer.public_url),
            ("admin.listen", *admin_listen != newer.admin_listen),
            ("routes", *route_ports != newer.route_ports),
            ("data_dir", *data_dir != newer.data_dir),
            ("ca", *ca != newer.ca || *export_dir != newer.export_dir),
            ("egress.roots", *roots != newer.roots),
            ("egress.upstream_proxy", *parent != newer.parent),
            ("bodies", *keep != newer.keep),
            ("ledger", *ledger != newer.ledger),
            ("spool", *spool != newer.spool),
            ("log", *log != newer.log),
            ("drain_timeout", *drain_timeout != newer.drain_timeout),
        ];
        keys.retain(|(_, changed)| *changed);
        keys.into_iter().map(|(key, _)| key).collect()
    }
}

/// Settings of the log on both outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// Selection of the canonical lines.
    pub access: AccessLog,
    /// True for OTLP records, false for the native form.
    pub otel: bool,
}

/// Settings of the spool: its store, its bounds, its keys and its declared buffers.
#[derive(Debug, PartialEq)]
pub struct SpoolSettings {
    /// Store of the items, with its bounds in bytes.
    pub store: StoreSettings,
    /// Bytes that the body of one item may have.
    pub max_body: ByteSize,
    /// Keys that open sealed secrets, the newest first. Only the newest key seals new secrets.
    pub keys: Vec<Secret>,
    /// Time for which delivered and cancelled items are kept. Items may be removed earlier if the
    /// spool is nearly full.
    pub keep_delivered: Duration,
    /// Time for which dead letters and expired items are kept.
    pub keep_dead: Duration,
    /// Buffers that the configuration file declares.
    pub buffers: Vec<BufferSpec>,
}

/// Store of the items, which is local or shared by all replicas.
#[derive(Debug, PartialEq, Eq)]
pub enum StoreSettings {
    /// Directory on this machine, which one process uses at a time.
    Disk(DiskSettings),
    /// Database of the ledger, which all replicas share.
    Postgres(PostgresSpoolSettings),
}

impl StoreSettings {
    /// Returns the bound of the spool in bytes.
    pub const fn max(&self) -> u64 {
        match self {
            Self::Disk(disk) => disk.max,
            Self::Postgres(postgres) => postgres.max,
        }
    }
}

/// Settings of the ledger, with its behaviour during an outage of the database.
#[derive(Debug, PartialEq, Eq)]
pub struct LedgerSettings {
    /// Database that holds the schedules, or `None` for a ledger in memory.
    pub postgres: Option<PostgresSettings>,
    /// Behaviour while the database cannot be reached.
    pub outage: Outage,
}

/// Settings of the Postgres database that holds the schedules.
#[derive(Debug, PartialEq, Eq)]
pub struct PostgresSettings {
    /// Source of the database's URL, which may contain a password.
    pub source: DatabaseSource,
    /// True if `serve` brings the schema of the database up to date.
    pub migrate: bool,
}

/// Function that looks up an environment variable by name.
pub type Environment = dyn Fn(&str) -> Option<String>;

/// Looks up a variable in the environment of this process. A value that is not UTF-8 counts as not
/// set.
#[expect(
    clippy::disallowed_methods,
    reason = "configuration is where the environment is read"
)]
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Validated configuration, and its need for a token that the process makes itself.
#[derive(Debug)]
pub struct Loaded {
    /// Settings and policy that the file defines.
    pub config: Config,
    /// True if the file sets no `admin.token`, so the one in the data directory is used.
    pub needs_admin_token: bool,
}

/// Reads and validates the file at `path`. `generation` counts reloads.
///
/// # Errors
/// Returns a [`ConfigError`] that names each problem, its position and the correct form.
pub fn load(
    path: &Path,
    environment: &Environment,
    generation: u64,
) -> Result<Loaded, ConfigError> {
    parse(path, &read(path)?, environment, generation)
}

/// Reads the text of the file at `path`, without a byte order mark.
///
/// # Errors
/// Returns a [`ConfigError`] with the cause if the file cannot be read or is not UTF-8.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |cause| ConfigError::unreadable(path, &cause);
    let mut text = std::fs::read_to_string(path).map_err(unreadable)?;
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    Ok(text)
}

/// Validates a document as [`load`] does, but takes its text as an argument. `path` only appears in
/// messages. The document `{}` stands for the default of every key.
///
/// # Errors
/// Returns a [`ConfigError`] that names each problem, its position and the correct form.
pub fn parse(
    path: &Path,
    text: &str,
    environment: &Environment,
    generation: u64,
) -> Result<Loaded, ConfigError> {
    // An empty file is more often a mistake than a choice of all defaults.
    if is_empty(text) {
        return Err(ConfigError::empty(path));
    }
    let mut file = value::with_environment(environment, text, || schema::read(text))
        .map_err(|error| ConfigError::syntax(path, &error))?;
    paths::anchor(&mut file, path);
    let data_dir = state_dir::default_data_dir(path, environment);
    resolve::resolve(file, &data_dir, generation)
        .map_err(|problems| ConfigError::rules(path, problems))
}

#[cfg(test)]
mod tests;
