//! What is kept on disk: opened, declared, drained, forgotten in time.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::{Shared, StartError};
use crate::api::Spooling;
use crate::config::{Settings, SpoolSettings};
use crate::delivery::{Deliveries, DeliveryParts, Shelves};
use crate::exchange::Exchange;
use crate::policy::{Policy, Secret};
use crate::spool::{Disk, Sealer, Store};

/// How often history is looked through.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// The spool of this process.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    disk: Arc<Disk>,
    keep_delivered: Duration,
    keep_dead: Duration,
    pub(super) api: Spooling,
}

/// Opens the spool, if there is one.
pub(super) async fn open(
    settings: &Settings,
    exchange: &Arc<Exchange>,
    policy: &Arc<ArcSwap<Policy>>,
    shared: &Shared,
) -> Result<Option<Opened>, StartError> {
    match &settings.spool {
        Some(spool) => Opened::open(spool, exchange, policy, shared)
            .await
            .map(Some),
        None => Ok(None),
    }
}

/// Closes the spool, after all that writes to it has ended.
pub(super) async fn close(spool: Option<&Opened>) {
    if let Some(spool) = spool {
        spool.disk.close().await;
    }
}

/// Resolves when the disk has failed.
pub(super) async fn broken(spool: Option<&Opened>) -> StartError {
    match spool {
        Some(spool) => StartError::Spool(format!("the disk failed: {}", spool.disk.broken().await)),
        None => std::future::pending().await,
    }
}

impl Opened {
    /// Opens the store and declares the buffers of the file.
    async fn open(
        settings: &SpoolSettings,
        exchange: &Arc<Exchange>,
        policy: &Arc<ArcSwap<Policy>>,
        shared: &Shared,
    ) -> Result<Self, StartError> {
        let disk = Disk::open(settings.disk.clone(), &shared.clock, &shared.tasks).await?;
        let disk = Arc::new(disk);
        let store = Arc::clone(&disk) as Arc<dyn Store>;
        let keys = settings.keys.iter().map(Secret::reveal);
        let sealer = Arc::new(Sealer::new(keys, shared.random.clone()));
        let deliveries = Deliveries::new(DeliveryParts {
            store: Arc::clone(&store),
            exchange: Arc::clone(exchange),
            policy: Arc::clone(policy),
            sealer: Arc::clone(&sealer),
        });
        let max_body = settings.max_body.as_bytes();
        let api = Spooling {
            store,
            deliveries,
            sealer,
            max_body,
        };
        let declared = api.declare(&settings.buffers, &shared.random).await;
        declared.map_err(StartError::Spool)?;
        Ok(Self {
            disk,
            keep_delivered: settings.keep_delivered,
            keep_dead: settings.keep_dead,
            api,
        })
    }

    /// Sends what waits, and forgets what is old.
    /// Requests that are kept are told of under `base`.
    pub(super) async fn begin(
        &self,
        shared: &Shared,
        exchange: &Exchange,
        base: String,
    ) -> Result<(), StartError> {
        let shelves = Shelves {
            deliveries: self.api.deliveries.clone(),
            store: Arc::clone(&self.api.store),
            sealer: Arc::clone(&self.api.sealer),
            max_body: self.api.max_body,
            base,
        };
        // Nobody else sets it.
        drop(exchange.shelf.set(Arc::new(shelves)));
        self.api.deliveries.begin();
        let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        let (delivered, dead) = (millis(self.keep_delivered), millis(self.keep_dead));
        let (store, clock) = (Arc::clone(&self.api.store), shared.clock.clone());
        drop(shared.tasks.spawn_until_drain(async move {
            loop {
                let now = store.now();
                match store.forget(now - delivered, now - dead).await {
                    // There may be more.
                    Ok(1..) => {}
                    Ok(0) => clock.sleep_until(clock.now() + FORGET_EVERY).await,
                    Err(error) => {
                        tracing::warn!(%error, "old items cannot be removed now");
                        clock.sleep_until(clock.now() + FORGET_EVERY).await;
                    }
                }
            }
        }));
        Ok(())
    }
}
