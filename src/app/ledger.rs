//! Ledger of this process, which keeps schedules in memory or in a database that replicas share.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::{Parts, StartError, key_secret};
use crate::admin::Readiness;
use crate::config::Settings;
use crate::db::{Database, DatabaseError, LEDGER_CONNECTIONS};
use crate::exchange::Exchange;
use crate::files::open_private;
use crate::ledger::{
    Ledger, Link as _, LinkError, MeasuredLink, MemoryLedger, PostgresLink, Replica, ReplicaReport,
    SharedLedger, SharedParts,
};
use crate::policy::{KeySecret, Policy};
use crate::sync::lock;
use crate::telemetry::Part;

/// Ledger of this process, in the variant that the configuration selects.
#[derive(Debug)]
pub(super) struct OpenLedger {
    pub(super) ledger: Arc<dyn Ledger>,
    /// Shared ledger in Postgres, if it is used. The file holds the number of this replica and is
    /// locked, so that no other process uses the number.
    shared: Option<(Arc<PostgresLedger>, Replica, File)>,
}

/// Shared ledger in Postgres, whose calls are measured.
type PostgresLedger = SharedLedger<MeasuredLink<PostgresLink>>;

impl OpenLedger {
    /// Returns the number of this replica in the shared ledger. No other running process has the
    /// same number.
    pub(super) fn replica(&self) -> Option<Replica> {
        self.shared.as_ref().map(|(_, replica, _)| *replica)
    }

    /// Joins the replicas of the shared ledger, once nothing can prevent the start any more.
    pub(super) fn join(&self, policy: &Arc<ArcSwap<Policy>>, exchange: &Arc<Exchange>) {
        let Some((ledger, ..)) = &self.shared else {
            return;
        };
        let (policy, exchange) = (Arc::clone(policy), Arc::clone(exchange));
        let known = Mutex::new((Arc::clone(&policy.load()), Arc::<str>::default()));
        lock(&known).1 = policy.load().fingerprint().into();
        ledger.join(move || {
            let current = policy.load_full();
            let mut known = lock(&known);
            if !Arc::ptr_eq(&known.0, &current) {
                *known = (Arc::clone(&current), current.fingerprint().into());
            }
            ReplicaReport {
                version: env!("CARGO_PKG_VERSION").into(),
                config: Arc::clone(&known.1),
                waiting: exchange.pacer.waiting_by_lane(),
                ..ReplicaReport::default()
            }
        });
    }

    /// Leaves the shared ledger, which frees the fallback share and the permits of this replica for
    /// other replicas.
    pub(super) async fn leave(&self) {
        if let Some((ledger, ..)) = &self.shared {
            ledger.leave().await;
        }
    }
}

/// Opens the ledger. If the database cannot be reached, a background task connects later while
/// everything else runs. A database that denies access or has another schema is an error.
pub(super) async fn open(
    settings: &Settings,
    shared: &Parts,
    readiness: &Readiness,
) -> Result<OpenLedger, StartError> {
    let mut secret = key_secret::load_or_make(&settings.data_dir)?;
    let Some(postgres) = &settings.ledger.postgres else {
        return Ok(OpenLedger {
            ledger: memory(settings, shared, secret)?,
            shared: None,
        });
    };
    shared.metrics.show(Part::Ledger);
    let (replica, file) = instance(settings, shared).map_err(|cause| StartError::DataDir {
        path: settings.data_dir.clone(),
        cause,
    })?;
    let begin_with = Some(PostgresLink::BEGIN_WITH);
    let database = Database::open(&postgres.source, LEDGER_CONNECTIONS, begin_with)?;
    let link = PostgresLink::new(database.clone(), name(), postgres.migrate);
    // A failure is an outage from the start, unless only the operator can end it.
    let failure = match link.prepare().await {
        // The secret is read again at each new connection.
        Ok(()) => match link.key_secret(&secret).await {
            Ok(known) => {
                secret = known;
                None
            }
            Err(error) => Some(error),
        },
        Err(error @ DatabaseError::Unreachable { .. }) => Some(LinkError::from(error)),
        Err(error) => return Err(error.into()),
    };
    let parts = SharedParts {
        replica,
        clock: shared.clock.clone(),
        random: shared.random.clone(),
        tasks: shared.tasks.clone(),
        metrics: shared.metrics.clone(),
        outage: settings.ledger.outage,
        key_secret: secret,
    };
    let link = MeasuredLink::new(link, shared.clock.clone(), &shared.metrics);
    let ledger = Arc::new(SharedLedger::new(link, parts));
    if let Some(error) = failure {
        ledger.failed(&error);
    }
    let watched = Arc::downgrade(&ledger);
    readiness.watch("ledger", move || watched.upgrade()?.outage());
    let (connecting, data_dir) = (Arc::clone(&ledger), settings.data_dir.clone());
    shared.tasks.spawn_detached(async move {
        connecting.connected().await;
        key_secret::keep(&data_dir, &connecting.key_secret());
    });
    if settings.ledger.outage.bootstrap_ppm == 0 {
        let latch = readiness.latch("ledger");
        let reached = Arc::clone(&ledger);
        shared.tasks.spawn_detached(async move {
            reached.connected().await;
            drop(latch);
        });
    }
    Ok(OpenLedger {
        ledger: Arc::clone(&ledger) as Arc<dyn Ledger>,
        shared: Some((ledger, replica, file)),
    })
}

/// Interval between two looks at the file with the schedules.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Opens the ledger in memory, which keeps its schedules in the data directory.
fn memory(
    settings: &Settings,
    shared: &Parts,
    secret: KeySecret,
) -> Result<Arc<dyn Ledger>, StartError> {
    let clock = shared.clock.clone();
    let ledger = MemoryLedger::with_data_dir(clock.clone(), secret, &settings.data_dir)?;
    let ledger = Arc::new(ledger);
    let syncing = Arc::clone(&ledger);
    shared.tasks.spawn_detached(async move {
        loop {
            clock.sleep_until(clock.now() + SYNC_EVERY).await;
            let ledger = Arc::clone(&syncing);
            // A panic there is logged, and the next look tries again.
            let _ = tokio::task::spawn_blocking(move || ledger.sync()).await;
        }
    });
    Ok(ledger)
}

/// Returns the name of this replica for operators: its host name and process id.
fn name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}", host.trim(), std::process::id())
}

/// Maximum number of processes that may share a data directory.
const INSTANCES: u32 = 64;

/// Returns the number of this replica and the locked file that holds it. The file outlives a
/// restart, and the first unlocked one is used.
fn instance(settings: &Settings, shared: &Parts) -> std::io::Result<(Replica, File)> {
    for index in 1..=INSTANCES {
        let path = settings.data_dir.join(format!("instance-{index}"));
        let mut file = open_private(&path)?;
        if file.try_lock().is_err() {
            continue;
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        if let Ok(known) = text.trim().parse() {
            return Ok((known, file));
        }
        // A positive number is easier to read in logs and tables.
        let fresh = i64::try_from(shared.random.bits() >> 1).unwrap_or(1).max(1);
        file.rewind()?;
        file.set_len(0)?;
        writeln!(file, "{fresh}")?;
        file.sync_all()?;
        return Ok((fresh, file));
    }
    Err(std::io::Error::other("too many processes already use it"))
}
