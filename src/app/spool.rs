//! Spool of this process: opens the store, declares buffers, starts deliveries and removes old
//! items.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::{Parts, StartError};
use crate::admin::Readiness;
use crate::api::SpoolHandle;
use crate::config::{PostgresSettings, Settings, StoreSettings};
use crate::db::{Database, DatabaseError};
use crate::delivery::{Deliveries, DeliveryParts, SpoolDeferral};
use crate::exchange::Exchange;
use crate::ledger::Replica;
use crate::policy::{Policy, Secret};
use crate::random::Random;
use crate::spool::{
    BufferSpec, DiskStore, PostgresParts, PostgresSpoolSettings, PostgresStore, Sealer, Store,
};

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
    keep_delivered: Duration,
    keep_dead: Duration,
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
    let store = match &kept {
        StoreBackend::DiskStore(disk) => Arc::clone(disk) as Arc<dyn Store>,
        StoreBackend::PostgresStore(store) => Arc::clone(store) as Arc<dyn Store>,
    };
    let keys = spool.keys.iter().map(Secret::reveal);
    let sealer = Arc::new(Sealer::new(keys, shared.random.clone()));
    let deliveries = Deliveries::new(DeliveryParts {
        store: Arc::clone(&store),
        exchange: Arc::clone(exchange),
        policy: Arc::clone(policy),
        sealer: Arc::clone(&sealer),
    });
    let late = || (spool.buffers.clone().into(), shared.random.clone());
    let opened = OpenSpool {
        kept,
        keep_delivered: spool.keep_delivered,
        keep_dead: spool.keep_dead,
        api: SpoolHandle {
            store,
            deliveries,
            sealer,
            max_body: spool.max_body.as_bytes(),
        },
        late: (!is_there).then(late),
    };
    if is_there {
        let declared = opened.api.declare(&spool.buffers, &shared.random).await;
        declared.map_err(StartError::Spool)?;
    }
    Ok(Some(opened))
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
        database: Database::new(&database.url, PostgresStore::CONNECTIONS, None)?,
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
            sealer: Arc::clone(&self.api.sealer),
            max_body: self.api.max_body,
            base,
        };
        // Nothing else sets this cell, so the call cannot fail.
        let _ = exchange.deferral.set(Arc::new(shelves));
        match self.late.clone() {
            None => self.api.deliveries.begin(),
            Some((buffers, random)) => {
                let (api, clock) = (self.api.clone(), shared.clock.clone());
                let latch = readiness.latch("spool");
                shared.tasks.spawn_cancel_on_drain(async move {
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
        shared.tasks.spawn_cancel_on_drain(async move {
            loop {
                let now = store.now();
                match store.prune(now - delivered, now - dead).await {
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
