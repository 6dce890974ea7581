//! Batching of pushes: all pushes that arrive during a running statement share the next one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Weak};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use sqlx::FromRow;
use sqlx::postgres::PgRow;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::super::room::{PushAccount, RoomReservation, item_bytes, push_max};
use super::super::rows::{checksum, json};
use super::super::{IdempotencyKey, Millis, NewItem, Pushed, StoreError, Usage, total_bytes};
use super::PostgresStore;
use crate::policy::SpoolShare;

/// Maximum number of pushes in one statement.
const PUSHES: usize = 1024;
/// Maximum size of the items in one statement in bytes, unless a single push is larger.
const BYTES: u64 = 8 << 20;
/// Number of concurrent statements, so that one is sent while the server commits the other. The
/// lock on a buffer's row keeps their places in order.
const AT_ONCE: usize = 2;
/// Number of waiting pushes from which a second concurrent statement begins.
const WORTH_IT: usize = 256;

/// A push that waits for the next batch.
#[derive(Debug)]
pub(super) struct WaitingPush {
    pub(super) buffer: i64,
    pub(super) items: Vec<NewItem>,
    pub(super) once: Option<IdempotencyKey>,
    pub(super) account: PushAccount,
    /// Items and bytes that the push adds to the sums.
    pub(super) adds: Usage,
    /// Room of the push until it is stored.
    pub(super) reservation: Option<RoomReservation>,
    pub(super) now: Millis,
    pub(super) tell: oneshot::Sender<Result<Pushed, StoreError>>,
    /// Permit for its share of the memory of unanswered pushes.
    pub(super) _memory: OwnedSemaphorePermit,
}

impl WaitingPush {
    /// Releases the room and sends the result to the caller.
    fn answer(self, result: Result<Pushed, StoreError>) {
        drop(self.reservation);
        // The caller may be gone, but its push is stored nevertheless.
        let _ = self.tell.send(result);
    }
}

/// Array arguments of `fits_v1`, with one entry per client.
#[derive(Default)]
struct Sums {
    owners: Vec<String>,
    items: Vec<i64>,
    bytes: Vec<i64>,
    max_items: Vec<Option<i64>>,
    max_bytes: Vec<Option<i64>>,
}

impl Sums {
    fn of(batch: &[WaitingPush]) -> Self {
        let mut sums: HashMap<_, (Usage, SpoolShare)> = HashMap::new();
        for push in batch {
            let (sum, share) = sums.entry(push.account.owner()).or_default();
            sum.items += push.adds.items;
            sum.bytes += push.adds.bytes;
            *share = push.account.share;
        }
        let mut all = Self::default();
        for (owner, (sum, share)) in sums {
            all.owners.push(owner.to_string());
            all.items.push(signed(sum.items));
            all.bytes.push(signed(sum.bytes));
            all.max_items.push(share.items.map(signed));
            all.max_bytes.push(share.max.map(signed));
        }
        all
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Stores waiting pushes in batches until the store is dropped.
pub(super) async fn run(store: Weak<PostgresStore>, mut waiting: mpsc::Receiver<WaitingPush>) {
    let mut next = VecDeque::new();
    let mut under_way = FuturesUnordered::new();
    loop {
        let mut more = Vec::new();
        // Callers that were just answered may push again, and those pushes belong to the next
        // batch.
        tokio::task::yield_now().await;
        if next.is_empty() {
            tokio::select! {
                came = waiting.recv_many(&mut more, PUSHES) => if came == 0 { break },
                Some(()) = under_way.next(), if !under_way.is_empty() => continue,
            }
        }
        next.extend(more);
        while next.len() < PUSHES
            && let Ok(more) = waiting.try_recv()
        {
            next.push_back(more);
        }
        // A small batch would only wait for the row locks of the running statement, so it collects
        // more pushes here.
        if under_way.len() >= AT_ONCE || (!under_way.is_empty() && next.len() < WORTH_IT) {
            under_way.next().await;
            continue;
        }
        let Some(store) = store.upgrade() else { break };
        let batch = batch(&mut next);
        under_way.push(async move { store.keep(batch).await });
    }
    while under_way.next().await.is_some() {}
}

/// Takes pushes for one statement in their order, as long as they fit and no key occurs twice.
fn batch(waiting: &mut VecDeque<WaitingPush>) -> Vec<WaitingPush> {
    let mut keys = HashSet::new();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while let Some(push) = waiting.front() {
        bytes += total_bytes(&push.items);
        let once = push.once.as_ref();
        let again = once.is_some_and(|once| !keys.insert(once.key.clone()));
        if again || (bytes > BYTES && !batch.is_empty()) {
            break;
        }
        batch.extend(waiting.pop_front());
    }
    batch
}

/// Array arguments of one call of `push_v1`.
#[derive(Default)]
struct Columns<'a> {
    /// Numbers of the buffers, each one once.
    buffers: Vec<i64>,
    /// Position of each push's buffer in `buffers`, counted from 1.
    to: Vec<i32>,
    keys: Vec<Option<&'a str>>,
    prints: Vec<Option<&'a [u8]>>,
    nows: Vec<Millis>,
    firsts: Vec<&'a str>,
    of: Vec<i32>,
    ids: Vec<&'a str>,
    requests: Vec<String>,
    crcs: Vec<i64>,
    sizes: Vec<i64>,
    bodies: Vec<&'a [u8]>,
    not_befores: Vec<Millis>,
    expires: Vec<Option<Millis>>,
    owners: Vec<String>,
    counted: Vec<i64>,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a [WaitingPush]) -> Self {
        let mut all = Self::default();
        let mut cache = HashMap::new();
        for (push, number) in batch.iter().zip(1..) {
            let to = *cache.entry(push.buffer).or_insert_with(|| {
                all.buffers.push(push.buffer);
                i32::try_from(all.buffers.len()).unwrap_or(i32::MAX)
            });
            all.to.push(to);
            let once = push.once.as_ref();
            all.keys.push(once.map(|once| &*once.key));
            all.prints.push(once.map(|once| &once.fingerprint[..]));
            all.nows.push(push.now);
            all.owners.push(push.account.owner().to_string());
            let first = push.items.first();
            all.firsts.push(first.map_or("", |item| &*item.id));
            for item in &push.items {
                let request = json(&item.request);
                let crc = checksum(&item.id, &request, &item.body);
                let size = i64::try_from(item.body.len()).unwrap_or(i64::MAX);
                all.of.push(number);
                all.ids.push(&item.id);
                all.crcs.push(i64::from(crc));
                let counted = item_bytes(request.len(), item.body.len(), false);
                all.counted.push(signed(counted));
                all.requests.push(request);
                all.sizes.push(size);
                all.bodies.push(&item.body);
                all.not_befores.push(item.not_before);
                all.expires.push(item.expires);
            }
        }
        all
    }
}

impl PostgresStore {
    /// Stores the pushes of a batch that fit, and answers every one of them.
    async fn keep(&self, mut batch: Vec<WaitingPush>) {
        let mut kept = self.keep_all(&batch).await;
        if kept.as_ref().is_ok_and(Vec::is_empty) {
            batch = self.refuse_excess(batch).await;
            if batch.is_empty() {
                return;
            }
            kept = self.keep_all(&batch).await;
        }
        if kept.as_ref().is_ok_and(Vec::is_empty) {
            let (used, max) = (self.room.usage().used, push_max(self.parts.settings.max));
            kept = Err(StoreError::Full { used, max });
        }
        if matches!(kept, Err(StoreError::Refused(_))) && batch.len() > 1 {
            // Only the push whose values the database refuses must fail.
            let second = batch.split_off(batch.len() / 2);
            Box::pin(self.keep(batch)).await;
            return Box::pin(self.keep(second)).await;
        }
        let mut places = HashMap::new();
        for (index, push) in batch.into_iter().enumerate() {
            let answer = match &kept {
                Ok(rows) => rows.get(index).map_or_else(
                    || Err(StoreError::Away("a database reply is too short".to_owned())),
                    |row| answer(row, &push, &mut places),
                ),
                Err(error) => Err(error.clone()),
            };
            if answer.as_ref().is_ok_and(|pushed| !pushed.replayed) {
                self.room.pushed(&push.account, push.adds);
            }
            push.answer(answer);
        }
    }

    /// Reads the sums of all replicas, refuses the pushes that do not fit, and returns the others.
    async fn refuse_excess(&self, mut batch: Vec<WaitingPush>) -> Vec<WaitingPush> {
        if let Err(error) = self.look().await {
            for push in batch {
                push.answer(Err(error.clone()));
            }
            return Vec::new();
        }
        for push in &mut batch {
            push.reservation = None;
        }
        let mut fitting = Vec::with_capacity(batch.len());
        for mut push in batch {
            match self.room.reserve(&push.account, push.adds, 0) {
                Ok(reservation) => {
                    push.reservation = Some(reservation);
                    fitting.push(push);
                }
                Err(full) => push.answer(Err(full)),
            }
        }
        fitting
    }

    /// Stores all pushes of a batch, or none and returns no row if they do not fit. The database
    /// decides, because other replicas may have pushed since the latest look.
    async fn keep_all(&self, batch: &[WaitingPush]) -> Result<Vec<PgRow>, StoreError> {
        let all = Columns::of(batch);
        let sums = Sums::of(batch);
        let most = signed(push_max(self.parts.settings.max));
        // Other replicas are notified unless this one drains all of these buffers.
        let mut buffers = all.buffers.iter();
        let tell = buffers.any(|buffer| self.cache.hold(*buffer).is_none());
        let sql = "with room as materialized (select $15 or outpace.fits_v1($19, $20, $21, $22, $23, $24) as fits) \
                   select p.* from room cross join lateral outpace.push_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, \
                   $10, $11, $12, $13, $14, $15, $16, $17, $18) p where room.fits";
        self.rows_again(|again| {
            sqlx::query(sql)
                .bind(&all.buffers)
                .bind(&all.to)
                .bind(&all.keys)
                .bind(&all.prints)
                .bind(&all.nows)
                .bind(&all.firsts)
                .bind(&all.of)
                .bind(&all.ids)
                .bind(&all.requests)
                .bind(&all.crcs)
                .bind(&all.sizes)
                .bind(&all.bodies)
                .bind(&all.not_befores)
                .bind(&all.expires)
                .bind(again)
                .bind(tell)
                .bind(&all.owners)
                .bind(&all.counted)
                .bind(&sums.owners)
                .bind(&sums.items)
                .bind(&sums.bytes)
                .bind(&sums.max_items)
                .bind(&sums.max_bytes)
                .bind(most)
        })
        .await
    }
}

/// Converts a row of `push_v1` into the result of its push. `places` counts the places given so far
/// in this batch, by buffer number.
fn answer(
    row: &PgRow,
    push: &WaitingPush,
    places: &mut HashMap<i64, i64>,
) -> Result<Pushed, StoreError> {
    let (state, first, made): (i32, Option<i64>, Option<String>) = FromRow::from_row(row)?;
    match (state, first) {
        (0 | 4, Some(first)) => {
            let before = match state {
                0 => places.entry(push.buffer).or_default(),
                _ => &mut 0,
            };
            let first = first + *before;
            *before += i64::try_from(push.items.len()).unwrap_or(0);
            let ids = push.items.iter().map(|item| Arc::clone(&item.id));
            Ok(Pushed {
                items: ids.zip(first..).collect(),
                replayed: false,
            })
        }
        (1, _) => {
            let items: Vec<(Arc<str>, i64)> =
                serde_json::from_str(&made.unwrap_or_default()).unwrap_or_default();
            // The same first id means that an earlier try of this push was stored and its reply was
            // lost.
            let ours = items.first().zip(push.items.first());
            let replayed = ours.is_none_or(|((id, _), item)| *id != item.id);
            Ok(Pushed { items, replayed })
        }
        (2, _) => Err(StoreError::no_buffer(push.buffer)),
        (3, _) => Err(StoreError::KeyReused),
        _ => Err(StoreError::Away("a database reply is invalid".to_owned())),
    }
}
