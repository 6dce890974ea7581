//! Where schedules live: in memory, or in a database that replicas share.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::sync::Arc;

use super::{Parts, StartError};
use crate::admin::Readiness;
use crate::config::Settings;
use crate::db::{Database, DatabaseError, LEDGER_CONNECTIONS};
use crate::ledger::{self, Ledger, MemoryLedger, PostgresLink, Replica, SharedParts};

/// The ledger of this process.
#[derive(Debug)]
pub(super) enum OpenLedger {
    Memory(Arc<MemoryLedger>),
    /// With the file that holds our number; locked, so that no other process takes it.
    Postgres {
        ledger: Arc<ledger::SharedLedger<PostgresLink>>,
        replica: Replica,
        #[expect(dead_code, reason = "its lock is what counts")]
        file: File,
    },
}

impl OpenLedger {
    pub(super) fn ledger(&self) -> Arc<dyn Ledger> {
        match self {
            Self::Memory(ledger) => Arc::clone(ledger) as Arc<dyn Ledger>,
            Self::Postgres { ledger, .. } => Arc::clone(ledger) as Arc<dyn Ledger>,
        }
    }

    /// Our number among those who share the ledger; no other running process has it.
    pub(super) const fn replica(&self) -> Option<Replica> {
        match self {
            Self::Memory(_) => None,
            Self::Postgres { replica, .. } => Some(*replica),
        }
    }

    /// A clean exit gives promise and permits back.
    pub(super) async fn leave(&self) {
        if let Self::Postgres { ledger, .. } = self {
            ledger.leave().await;
        }
    }
}

/// Opens the ledger. A database that cannot be reached is waited for while everything else runs; one
/// that refuses us, or whose schema does not fit, is an error.
pub(super) async fn open(
    settings: &Settings,
    shared: &Parts,
    readiness: &Readiness,
) -> Result<OpenLedger, StartError> {
    let Some(postgres) = &settings.ledger.postgres else {
        return Ok(OpenLedger::Memory(Arc::new(MemoryLedger::new(
            shared.clock.clone(),
        ))));
    };
    let (replica, file) = instance(settings, shared).map_err(|cause| StartError::DataDir {
        path: settings.data_dir.clone(),
        cause,
    })?;
    let database = Database::new(
        &postgres.url,
        LEDGER_CONNECTIONS,
        Some(PostgresLink::BEGIN_WITH),
    )?;
    let link = PostgresLink::new(database.clone(), name(), postgres.migrate);
    match link.prepare().await {
        Ok(()) => {}
        Err(error @ DatabaseError::Unreachable { .. }) => {
            let then = if settings.ledger.outage.bootstrap_ppm > 0 {
                "until it answers, this replica uses its `bootstrap_share`"
            } else {
                "until it answers, requests to limited targets wait"
            };
            tracing::warn!(%error, then, "the ledger is not there yet");
        }
        Err(error) => return Err(error.into()),
    }
    let ledger = Arc::new(ledger::SharedLedger::new(
        link,
        SharedParts {
            replica,
            clock: shared.clock.clone(),
            random: shared.random.clone(),
            tasks: shared.tasks.clone(),
            metrics: shared.metrics.clone(),
            outage: settings.ledger.outage,
        },
    ));
    if settings.ledger.outage.bootstrap_ppm == 0 {
        let latch = readiness.latch("ledger");
        let reached = Arc::clone(&ledger);
        shared.tasks.spawn_detached(async move {
            reached.connected().await;
            drop(latch);
        });
    }
    Ok(OpenLedger::Postgres {
        ledger,
        replica,
        file,
    })
}

/// What operators know this replica by.
fn name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}", host.trim(), std::process::id())
}

/// Processes that may share a data directory.
const INSTANCES: u32 = 64;

/// Our number in the ledger, which outlives a restart: the first that no other process here uses.
fn instance(settings: &Settings, shared: &Parts) -> std::io::Result<(Replica, File)> {
    for index in 1..=INSTANCES {
        let path = settings.data_dir.join(format!("instance-{index}"));
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        if file.try_lock().is_err() {
            continue;
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        if let Ok(known) = text.trim().parse() {
            return Ok((known, file));
        }
        // Positive, so that it reads well.
        let fresh = i64::try_from(shared.random.bits() >> 1).unwrap_or(1).max(1);
        file.rewind()?;
        file.set_len(0)?;
        writeln!(file, "{fresh}")?;
        file.sync_all()?;
        return Ok((fresh, file));
    }
    let cause = "too many processes use this data directory";
    Err(std::io::Error::other(cause))
}
