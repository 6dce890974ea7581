//! Spool of this process: opens the store, declares buffers, starts deliveries and removes old
//! items.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::{Parts, StartError};
use crate::admin::Readiness;
use crate::api::{PushThrottle, SpoolHandle};
use crate::clock::Clock;
use crate::config::{PostgresSettings, Settings, SpoolSettings, StoreSettings};
use crate::db::{Database, DatabaseError};
use crate::delivery::{Deliveries, DeliveryParts, SpoolDeferral};
use crate::exchange::Exchange;
use crate::ledger::Replica;
use crate::policy::{Policy, Secret};
use crate::random::Random;
use crate::spool::{
    BufferSpec, DiskStore, KEY_BYTES_MIN, OUTCOMES, PostgresParts, PostgresSpoolSettings,
    PostgresStore, SealedStore, Sealer, SpoolUsage, Store, StoreError, create_key, read_key,
};
use crate::telemetry::Part;

/// Interval between two searches for items that are too old.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// Interval between two attempts to reach the database of the spool after the start.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Store of the items, on this machine's disk or in Postgres.
#[derive(Debug, Clone)]
enum StoreBackend {
    DiskStore(Arc<DiskStore>),
    PostgresStore(Arc<PostgresStore>),
}

/// Open spool of this process, with the retention times of its items.
#[derive(Debug, Clone)]
pub(super) struct OpenSpool {
    kept: StoreBackend,
    sealed: Arc<SealedStore>,
    keep_delivered: Duration,
    keep_dead: Duration,
    policy: Arc<ArcSwap<Policy>>,
    pub(super) api: SpoolHandle,
    /// Buffers to declare once the database answers, with the source of randomness for their ids.
    late: Option<(Arc<[BufferSpec]>, Random)>,
}

/// Opens the spool and declares its buffers. Returns `None` if the configuration has no spool.
pub(super) async fn open(
    settings: &Settings,
    replica: Option<Replica>,
    exchange: &Arc<Exchange>,
    policy: &Arc<ArcSwap<Policy>>,
    shared: &Parts,
) -> Result<Option<OpenSpool>, StartError> {
    let Some(spool) = &settings.spool else {
        return Ok(None);
    };
    shared.metrics.show(Part::Spool);
    let (kept, is_there) = match &spool.store {
        StoreSettings::Disk(disk) => {
            let disk = DiskStore::open(disk.clone(), &shared.clock, &shared.tasks).await?;
            (StoreBackend::DiskStore(Arc::new(disk)), true)
        }
        StoreSettings::Postgres(terms) => {
            let database = settings.ledger.postgres.as_ref().zip(replica);
            let (database, replica) = database
                .ok_or_else(|| StartError::Internal("the spool has no database".to_owned()))?;
            let (store, is_there) = postgres(terms, database, replica, shared).await?;
            (StoreBackend::PostgresStore(store), is_there)
        }
    };
    let inner = match &kept {
        StoreBackend::DiskStore(disk) => Arc::clone(disk) as Arc<dyn Store>,
        StoreBackend::PostgresStore(store) => Arc::clone(store) as Arc<dyn Store>,
    };
    let local = local_key(spool)?;
    let keys = spool.keys.iter().map(Secret::reveal);
    let keys = keys.chain(local.as_deref());
    let sealed = SealedStore::new(inner, Sealer::new(keys, shared.random.clone()));
    let store = Arc::clone(&sealed) as Arc<dyn Store>;
    let deliveries = Deliveries::new(DeliveryParts {
        store: Arc::clone(&store),
        exchange: Arc::clone(exchange),
        policy: Arc::clone(policy),
        warnings: Arc::clone(&shared.warnings),
    });
    shared.metrics.prepare_attempts(OUTCOMES);
    let late = || (spool.buffers.clone().into(), shared.random.clone());
    let opened = OpenSpool {
        kept,
        sealed,
        keep_delivered: spool.keep_delivered,
        keep_dead: spool.keep_dead,
        policy: Arc::clone(policy),
        api: SpoolHandle {
            store,
            deliveries,
            max_body: spool.max_body.as_bytes(),
            pushes: Arc::new(PushThrottle::new(shared.clock.clone())),
            figures: Arc::default(),
        },
        late: (!is_there).then(late),
    };
    if is_there {
        let checked = opened.sealed.check_keys().await;
        checked.map_err(|error| StartError::Spool(missing_key(&error)))?;
        let declared = opened.api.declare(&spool.buffers, &shared.random).await;
        declared.map_err(StartError::Spool)?;
    }
    Ok(Some(opened))
}

/// Returns the key that lies beside the data of a spool on disk, or `None` for a store in Postgres.
/// It is created if the configuration has no key either.
fn local_key(spool: &SpoolSettings) -> Result<Option<String>, StartError> {
    let StoreSettings::Disk(disk) = &spool.store else {
        return Ok(None);
    };
    let read = read_key(&disk.dir).and_then(|key| match key {
        None if spool.keys.is_empty() => create_key(&disk.dir).map(Some),
        known => Ok(known),
    });
    let path = disk.dir.join("spool.key");
    let told = |cause: String| {
        let path = path.display();
        StartError::Spool(format!("the spool's key {path} cannot be used: {cause}"))
    };
    let key = read.map_err(|error| told(error.to_string()))?;
    match key
        .as_ref()
        .map(String::len)
        .filter(|size| *size < KEY_BYTES_MIN)
    {
        Some(size) => Err(told(format!(
            "it has {size} bytes and needs {KEY_BYTES_MIN}; restore it from a copy"
        ))),
        None => Ok(key),
    }
}

/// Waits until the database answers and no key of its items is missing.
async fn keys_are_there(sealed: &SealedStore, clock: &Clock) {
    let mut is_told = false;
    while let Err(error) = sealed.check_keys().await {
        if matches!(error, StoreError::Sealed(_)) && !is_told {
            is_told = true;
            let error = missing_key(&error);
            tracing::error!(%error, "nothing is delivered until the key is there");
        }
        clock.sleep_until(clock.now() + ASK_AGAIN).await;
    }
}

/// Returns the message for a start that a missing key prevents.
fn missing_key(error: &StoreError) -> String {
    match error {
        StoreError::Sealed(_) => "the spool holds items that were sealed by a key that is not configured, or by an earlier version; add the key to `spool.old_keys`, or for a spool on disk put back the file `spool.key` in `spool.dir`. To give the items up, remove the spool's data".to_owned(),
        other => other.to_string(),
    }
}

/// Opens the store in a database. The flag in the result is true if the database answers. If it
/// cannot be reached, the store connects later while everything else runs. A database that denies
/// access or has another schema is an error.
async fn postgres(
    terms: &PostgresSpoolSettings,
    database: &PostgresSettings,
    replica: Replica,
    shared: &Parts,
) -> Result<(Arc<PostgresStore>, bool), StartError> {
    let parts = PostgresParts {
        database: Database::open(&database.source, PostgresStore::CONNECTIONS, None)?,
        migrate: database.migrate,
        settings: terms.clone(),
        replica,
        clock: shared.clock.clone(),
        random: shared.random.clone(),
    };
    let store = PostgresStore::new(parts, &shared.tasks);
    match store.prepare().await {
        Ok(()) => Ok((store, true)),
        Err(error @ DatabaseError::Unreachable { .. }) => {
            tracing::warn!(%error, "the spool's database cannot be reached yet; pushes fail until it answers");
            Ok((store, false))
        }
        Err(error) => Err(error.into()),
    }
}

/// Closes the spool. Everything that writes to it must have ended before.
pub(super) async fn close(spool: Option<&OpenSpool>) {
    match spool.map(|spool| &spool.kept) {
        Some(StoreBackend::DiskStore(disk)) => disk.close().await,
        Some(StoreBackend::PostgresStore(store)) => store.close().await,
        None => {}
    }
}

/// Waits until the disk of the spool fails and returns the error. Never completes for other stores.
pub(super) async fn broken(spool: Option<&OpenSpool>) -> StartError {
    match spool.map(|spool| &spool.kept) {
        Some(StoreBackend::DiskStore(disk)) => StartError::Spool(format!(
            "the spool's disk failed: {}; repair it and start outpace again",
            disk.broken().await
        )),
        Some(StoreBackend::PostgresStore(_)) | None => std::future::pending().await,
    }
}

/// Returns the clients that have used more than eight tenths of their share, so that their history
/// is removed early.
fn crowded_clients(usage: &SpoolUsage, policy: &Policy) -> Vec<Arc<str>> {
    let is_crowded = |used: u64, max: Option<u64>| max.is_some_and(|max| used > max / 10 * 8);
    let clients = usage.clients.iter().filter(|(name, used)| {
        let share = policy.spool_share(name);
        is_crowded(used.bytes, share.max) || is_crowded(used.items, share.items)
    });
    clients.map(|(name, _)| Arc::clone(name)).collect()
}

impl OpenSpool {
    /// Starts deliveries and the removal of old items. Clients fetch the results of their spooled
    /// requests below the URL `base`.
    pub(super) fn begin(
        &self,
        shared: &Parts,
        exchange: &Exchange,
        readiness: &Readiness,
        base: String,
    ) {
        let shelves = SpoolDeferral {
            deliveries: self.api.deliveries.clone(),
            store: Arc::clone(&self.api.store),
            max_body: self.api.max_body,
            base,
        };
        // Nothing else sets this cell, so the call cannot fail.
        let _ = exchange.deferral.set(Arc::new(shelves));
        match self.late.clone() {
            None => self.api.deliveries.begin(),
            Some((buffers, random)) => {
                let (api, clock) = (self.api.clone(), shared.clock.clone());
                let sealed = Arc::clone(&self.sealed);
                let latch = readiness.latch("spool");
                shared.tasks.spawn_cancel_on_drain(async move {
                    keys_are_there(&sealed, &clock).await;
                    while let Err(error) = api.declare(&buffers, &random).await {
                        tracing::debug!(%error, "the buffers could not be declared yet; trying again");
                        clock.sleep_until(clock.now() + ASK_AGAIN).await;
                    }
                    api.deliveries.begin();
                    drop(latch);
                });
            }
        }
        self.prune(shared);
    }

    fn prune(&self, shared: &Parts) {
        let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        let (delivered, dead) = (millis(self.keep_delivered), millis(self.keep_dead));
        let (store, clock) = (Arc::clone(&self.api.store), shared.clock.clone());
        let policy = Arc::clone(&self.policy);
        shared.tasks.spawn_cancel_on_drain(async move {
            loop {
                let now = store.now();
                let crowded = crowded_clients(&store.usage(), &policy.load());
                match store.prune(now - delivered, now - dead, &crowded).await {
                    // More items may be due, so the next search follows at once.
                    Ok(1..) => continue,
                    Ok(0) => {}
                    Err(error) => {
                        tracing::warn!(%error, "old items could not be removed; trying again later");
                    }
                }
                clock.sleep_until(clock.now() + FORGET_EVERY).await;
            }
        });
    }
}
