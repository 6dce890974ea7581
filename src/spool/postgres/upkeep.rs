//! Background upkeep of the store: heartbeats, taking free leases and reading changes of other
//! replicas.

use std::collections::{BTreeMap, HashMap};
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgRow};
use sqlx::{FromRow, Row as _};

use super::super::{Buffer, StoreError, Usage, millis};
use super::PostgresStore;
use super::cache::{Look, LookRow};
use super::change::buffer_of;
use crate::bounds::SPOOL_ITEM_BYTES;

/// Longest interval between two looks at the database without a notification.
const EVERY: Duration = Duration::from_millis(250);
/// Shortest interval between two looks, however many notifications arrive.
const AT_MOST: Duration = Duration::from_millis(10);
/// Names of buffers in one event about a takeover.
const TAKEOVER_NAMES: usize = 20;

/// Runs the upkeep until the store is closed or dropped.
pub(super) async fn run(store: Weak<PostgresStore>) {
    let mut listener = None;
    let mut away = false;
    loop {
        let Some(store) = store.upgrade() else { return };
        if store.closed.load(Ordering::Acquire) {
            return;
        }
        let done = store.tick().await;
        match &done {
            Err(error) if !away => {
                tracing::warn!(%error, "the spool's database cannot be used; its items wait until it can");
            }
            Ok(()) if away => tracing::info!("the spool's database can be used again"),
            _ => {}
        }
        away = done.is_err();
        let clock = store.parts.clock.clone();
        let from = clock.now() + AT_MOST;
        tokio::select! {
            () = clock.sleep_until(clock.now() + EVERY) => {}
            () = store.hear(&mut listener), if !away => clock.sleep_until(from).await,
        }
    }
}

impl PostgresStore {
    /// Sends a heartbeat if one is due, looks at the database and takes the leases of free buffers.
    async fn tick(&self) -> Result<(), StoreError> {
        self.prepare()
            .await
            .map_err(|error| StoreError::Away(error.to_string()))?;
        self.stay().await?;
        let free = self.look().await?;
        if !free.is_empty() && !self.closed.load(Ordering::Acquire) {
            let replica = self.parts.replica;
            let sql = "select taken_buffer, former_owner from outpace.take_v1($1, $2)";
            let taken = self
                .rows(|| sqlx::query(sql).bind(replica).bind(&free))
                .await?;
            self.look().await?;
            self.announce(&taken)?;
        }
        Ok(())
    }

    /// Logs the takeover of buffers from replicas that are silent, with one event for each of these
    /// replicas.
    fn announce(&self, taken: &[PgRow]) -> Result<(), StoreError> {
        let mut from: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for row in taken {
            let (number, former): (i64, Option<i64>) = FromRow::from_row(row)?;
            let Some(former) = former.filter(|former| *former != self.parts.replica) else {
                continue;
            };
            let buffer = self.cache.buffer(number);
            let name = buffer.map_or_else(|| number.to_string(), |buffer| buffer.name.to_string());
            from.entry(former).or_default().push(name);
        }
        for (replica, buffers) in from {
            let count = buffers.len();
            let named = buffers.get(..TAKEOVER_NAMES).unwrap_or(&buffers).join(", ");
            tracing::warn!(
                replica,
                buffers = named,
                count,
                "buffers were taken over from another replica, because it is silent"
            );
        }
        Ok(())
    }

    async fn stay(&self) -> Result<(), StoreError> {
        let (clock, lease) = (&self.parts.clock, self.parts.settings.lease);
        let ttl = millis(lease);
        // This replica stops at four fifths of the lease. Its deliveries need time to end before
        // another replica may begin.
        let ours = lease.mul_f64(0.8);
        let now = clock.now();
        let held = self.cache.until().filter(|until| *until > now);
        if let Some(until) = held {
            if until > now + ours.mul_f64(0.7) {
                return Ok(());
            }
            let alive = self.sign("select outpace.alive_v1($1, $2)", ttl).await?;
            // If the reply arrives after the old deadline, deliveries have been cancelled. Their
            // items are recovered only under a new term.
            if alive && clock.now() < until {
                self.cache.extend(now + ours);
                return Ok(());
            }
        }
        // Another replica may have held the buffers meanwhile, so the outcome of all items in
        // flight is uncertain.
        if self.cache.let_go() > 0 {
            tracing::warn!(
                "the leases of this replica on its buffers have ended, so another replica may take them over"
            );
        }
        let now = clock.now();
        self.sign("select true from outpace.enter_v1($1, $2)", ttl)
            .await?;
        self.cache.extend(now + ours);
        Ok(())
    }

    async fn sign(&self, sql: &'static str, ttl: i64) -> Result<bool, StoreError> {
        let replica = self.parts.replica;
        let rows = self
            .rows(|| sqlx::query(sql).bind(replica).bind(ttl))
            .await?;
        let alive = rows.first().map(|row| row.try_get(0)).transpose()?;
        Ok(alive.unwrap_or(false))
    }

    /// Reads all buffers and their leases into the cache. Returns the numbers of buffers without a
    /// live lease holder.
    pub(super) async fn look(&self) -> Result<Vec<i64>, StoreError> {
        let _one = self.looking.lock().await;
        let sql = "select outpace.millis_v1(), b.number, b.version, b.edition, coalesce(octet_length(b.terms), 0)::int8, \
                   case when l.owner = $1 then l.term end, \
                   coalesce(d.until > clock_timestamp(), false) \
                   from (select 1) one left join outpace.buffer b on not b.removed \
                   left join outpace.lease l on l.buffer = b.number \
                   left join outpace.drainer d on d.id = l.owner";
        let (clock, replica) = (&self.parts.clock, self.parts.replica);
        let begun = clock.now();
        let rows = self.rows(|| sqlx::query(sql).bind(replica)).await?;
        let took = clock.now().since(begun);
        let mut look = Look::default();
        let mut free = Vec::new();
        let (mut used, mut clients) = (0, HashMap::new());
        for row in &rows {
            look.now = row.try_get(0)?;
            let Some(number) = row.try_get::<Option<i64>, _>(1)? else {
                continue;
            };
            if !row.try_get::<bool, _>(6)? {
                free.push(number);
            }
            used += SPOOL_ITEM_BYTES + row.try_get::<i64, _>(4)?.unsigned_abs();
            look.rows.push(LookRow {
                number,
                version: row.try_get(2)?,
                edition: row.try_get(3)?,
                term: row.try_get(5)?,
            });
        }
        let read =
            "select owner, sum(items)::int8, sum(bytes)::int8 from outpace.usage group by owner";
        for row in &self.rows(|| sqlx::query(read)).await? {
            let (owner, items, bytes): (String, i64, i64) = FromRow::from_row(row)?;
            let usage = Usage {
                items: u64::try_from(items).unwrap_or(0),
                bytes: u64::try_from(bytes).unwrap_or(0),
            };
            used += usage.bytes;
            if usage.items > 0 {
                clients.insert(owner.into(), usage);
            }
        }
        self.room.loaded(used, clients);
        look.fresh = self.fresh(&look.rows).await?;
        self.cache.take_in(look, took);
        Ok(free)
    }

    /// Reads the buffers with an edition that the cache does not have yet.
    async fn fresh(&self, rows: &[LookRow]) -> Result<Vec<Buffer>, StoreError> {
        let is_new = |row: &&LookRow| self.cache.edition(row.number) != Some(row.edition);
        let news = rows.iter().filter(is_new).map(|row| row.number);
        let news: Vec<i64> = news.collect();
        if news.is_empty() {
            return Ok(Vec::new());
        }
        let sql = "select number, id, name, terms, paused, created from outpace.buffer where number = any ($1)";
        let rows = self.rows(|| sqlx::query(sql).bind(&news)).await?;
        rows.iter().map(buffer_of).collect()
    }

    /// Waits for a notification of another replica. A pooler in transaction mode passes none on,
    /// and then only the regular looks remain.
    async fn hear(&self, listener: &mut Option<PgListener>) {
        if listener.is_none() {
            *listener = self.parts.database.listen("outpace_spool").await.ok();
        }
        match listener {
            Some(hearing) => {
                if hearing.recv().await.is_err() {
                    *listener = None;
                }
            }
            None => std::future::pending().await,
        }
    }
}
