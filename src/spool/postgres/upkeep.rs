//! What the store does by itself: signs of life, taking what nobody holds, and looking what others did.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::postgres::PgListener;
use sqlx::{FromRow as _, Row as _};

use super::super::rows::BufferRow;
use super::super::{Buffer, StoreError};
use super::cache::{Look, LookRow};
use super::{PostgresState, failed};

/// How often a look is taken, whatever is heard.
const EVERY: Duration = Duration::from_millis(250);
/// However much is heard, not more often.
const AT_MOST: Duration = Duration::from_millis(10);

/// Works until the store is closed or gone.
pub(super) async fn run(store: Weak<PostgresState>) {
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
                tracing::warn!(%error, "the spool's database is away; nothing is sent from it meanwhile");
            }
            Ok(()) if away => tracing::info!("the spool's database is back"),
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

impl PostgresState {
    /// A sign of life if one is due, then a look, and what nobody holds is taken.
    async fn tick(&self) -> Result<(), StoreError> {
        self.prepare()
            .await
            .map_err(|error| StoreError::Away(error.to_string()))?;
        self.stay().await?;
        let free = self.look().await?;
        if !free.is_empty() && !self.closed.load(Ordering::Acquire) {
            let replica = self.parts.replica;
            self.rows(|| {
                sqlx::query("select outpace.take_v1($1, $2)::text")
                    .bind(replica)
                    .bind(&free)
            })
            .await?;
            self.look().await?;
        }
        Ok(())
    }

    async fn stay(&self) -> Result<(), StoreError> {
        let (clock, lease) = (&self.parts.clock, self.parts.settings.lease);
        let ttl = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
        // We stop earlier than others may begin: what is under way needs time to break off.
        let ours = lease.mul_f64(0.8);
        let now = clock.now();
        let held = self.cache.until().filter(|until| *until > now);
        if let Some(until) = held {
            if until > now + ours.mul_f64(0.7) {
                return Ok(());
            }
            let alive = self.sign("select outpace.alive_v1($1, $2)", ttl).await?;
            // Heard too late, what was in flight has broken off: it needs a new term to be taken up.
            if alive && clock.now() < until {
                self.cache.extend(now + ours);
                return Ok(());
            }
        }
        // What was ours may have been somebody else's meanwhile: all that is in flight is doubtful.
        self.cache.let_go();
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
        let first = rows.first().map(|row| row.try_get(0));
        first
            .transpose()
            .map(|alive| alive.unwrap_or(false))
            .map_err(|error| failed(&error))
    }

    /// Looks which buffers there are, and who holds them. Returns those that nobody holds.
    pub(super) async fn look(&self) -> Result<Vec<i64>, StoreError> {
        let _one = self.looking.lock().await;
        let sql = "select outpace.millis_v1(), b.number, b.version, b.edition, b.bytes, \
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
        for row in &rows {
            let read = || {
                look.now = row.try_get(0)?;
                let Some(number) = row.try_get::<Option<i64>, _>(1)? else {
                    return Ok(());
                };
                if !row.try_get::<bool, _>(6)? {
                    free.push(number);
                }
                look.rows.push(LookRow {
                    number,
                    version: row.try_get(2)?,
                    edition: row.try_get(3)?,
                    bytes: row.try_get(4)?,
                    term: row.try_get(5)?,
                });
                Ok::<_, sqlx::Error>(())
            };
            let mut read = read;
            read().map_err(|error| failed(&error))?;
        }
        look.fresh = self.fresh(&look.rows).await?;
        self.cache.take_in(look, took);
        Ok(free)
    }

    /// Buffers of an edition that is not known yet.
    async fn fresh(&self, rows: &[LookRow]) -> Result<Vec<Buffer>, StoreError> {
        let news = rows
            .iter()
            .filter(|row| self.cache.edition(row.number) != Some(row.edition));
        let news: Vec<i64> = news.map(|row| row.number).collect();
        if news.is_empty() {
            return Ok(Vec::new());
        }
        let sql = "select number, id, name, terms, paused, created from outpace.buffer where number = any ($1)";
        let rows = self.rows(|| sqlx::query(sql).bind(&news)).await?;
        let read = rows
            .iter()
            .map(|row| BufferRow::from_row(row).and_then(Buffer::try_from));
        read.collect::<Result<_, _>>()
            .map_err(|error| failed(&error))
    }

    /// Waits for a word of another replica. Behind a pooler none comes, and the next look is soon.
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
