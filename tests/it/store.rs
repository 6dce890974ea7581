//! One suite for every store. Random histories run against a store, each answer is compared with a
//! model, and the store crashes at random points. `OUTPACE_SIM_SEEDS` and `OUTPACE_SIM_SEED` select
//! the histories.

mod site;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use outpace::spool::{
    Attempt, AttemptOutcome, BufferConfig, Finished, IdempotencyKey, Item, ItemChange, ItemStatus,
    ListQuery, NewItem, Purge, PushAccount, Redrive, Request, Store, StoreError, step,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::harness::Postgres;
use site::{Site, held};

const STEPS: usize = 120;

/// Expected content of a store: its items, next sequence numbers and idempotency keys.
#[derive(Default, Clone)]
struct Model {
    items: Vec<Item>,
    next: HashMap<i64, i64>,
    once: HashMap<String, ([u8; 32], Vec<Arc<str>>)>,
}

impl Model {
    fn of(&self, buffer: i64) -> Vec<Item> {
        let mut items: Vec<Item> = self
            .items
            .iter()
            .filter(|item| item.buffer == buffer)
            .cloned()
            .collect();
        items.sort_by_key(|item| item.seq);
        items
    }

    fn find(&mut self, id: &str) -> &mut Item {
        self.items.iter_mut().find(|item| *item.id == *id).unwrap()
    }

    fn place(&mut self, buffer: i64) -> i64 {
        let next = self.next.entry(buffer).or_insert(1);
        *next += 1;
        *next - 1
    }

    fn push(&mut self, buffer: i64, new: &[NewItem], now: i64) {
        for item in new {
            let seq = self.place(buffer);
            self.items.push(Item {
                id: Arc::clone(&item.id),
                buffer,
                seq,
                status: ItemStatus::Queued,
                request: item.request.clone(),
                kept: now,
                not_before: item.not_before,
                expires: item.expires,
                attempts: 0,
                retries: 0,
                refusals: 0,
                maybe_duplicate: false,
                finished: None,
                last_status: None,
                last_error: None,
            });
        }
    }
}

/// Asserts that the items, counts, bodies and next item of each buffer match the model.
async fn compare(store: &dyn Store, model: &Model, buffers: &[i64]) {
    for buffer in buffers {
        let query = ListQuery {
            buffer: Some(*buffer),
            limit: 10_000,
            ..ListQuery::default()
        };
        let expected = model.of(*buffer);
        assert_eq!(store.items(query).await.unwrap(), expected);
        for (status, count) in ItemStatus::ALL
            .iter()
            .zip(store.counts(*buffer).await.unwrap())
        {
            let known = expected
                .iter()
                .filter(|item| item.status == *status)
                .count() as u64;
            assert_eq!(count, known, "{status:?}");
        }
        if let Some(middle) = expected.get(expected.len() / 2) {
            let query = ListQuery {
                buffer: Some(*buffer),
                since: Some(middle.kept),
                limit: 10_000,
                ..ListQuery::default()
            };
            let later = expected.iter().filter(|item| item.kept >= middle.kept);
            let later: Vec<Item> = later.cloned().collect();
            assert_eq!(store.items(query).await.unwrap(), later);
        }
        for item in expected.iter().take(3) {
            let body = store.body(Arc::clone(&item.id)).await.unwrap();
            assert_eq!(body, body_of(&item.id), "{}", item.id);
        }
        let live = expected.into_iter().find(|item| item.status.is_live());
        assert_eq!(
            store
                .next_items(*buffer, 0, true, 1)
                .await
                .unwrap()
                .into_iter()
                .next(),
            live
        );
    }
}

/// Returns the body of an item. Some bodies exceed the 64 bytes that are stored inline in the
/// database.
fn body_of(id: &str) -> Bytes {
    let long = id.ends_with('7') || id.ends_with('3');
    Bytes::from(id.repeat(if long { 9 } else { 1 }))
}

struct History {
    rng: StdRng,
    model: Model,
    buffers: Vec<i64>,
    seed: u64,
    made: usize,
    now: i64,
}

impl History {
    fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            model: Model::default(),
            buffers: Vec::new(),
            seed,
            made: 0,
            now: 1000,
        }
    }

    async fn make_buffers(&mut self, store: &dyn Store) {
        for name in ["a", "b"] {
            let name: Arc<str> = format!("{name}{}", self.seed).into();
            let id = format!("buf_{name}").into();
            let made = store.create(id, name, BufferConfig::default(), 0).await;
            self.buffers.push(made.unwrap().0.number);
        }
    }

    fn items(&mut self) -> Vec<NewItem> {
        let count = self.rng.random_range(1..5);
        (0..count)
            .map(|_| {
                self.made += 1;
                let id: Arc<str> = format!("itm_{}_{:08}", self.seed, self.made).into();
                NewItem {
                    body: body_of(&id),
                    request: Request::default(),
                    not_before: self.now + self.rng.random_range(0..3),
                    expires: self
                        .rng
                        .random_bool(0.2)
                        .then(|| self.now + self.rng.random_range(5..40)),
                    id,
                }
            })
            .collect()
    }

    fn any(&mut self, wanted: impl Fn(&Item) -> bool) -> Option<Item> {
        let some: Vec<&Item> = self
            .model
            .items
            .iter()
            .filter(|item| wanted(item))
            .collect();
        if some.is_empty() {
            return None;
        }
        let index = self.rng.random_range(0..some.len());
        Some(some[index].clone())
    }

    async fn step(&mut self, store: &dyn Store) {
        self.now += self.rng.random_range(0..5);
        let (now, buffer) = (
            self.now,
            self.buffers[self.rng.random_range(0..self.buffers.len())],
        );
        match self.rng.random_range(0..12) {
            0..=3 => self.push(store, buffer).await,
            4..=6 => self.deliver(store).await,
            7 => {
                let change = [ItemChange::Cancel, ItemChange::RetryNow, ItemChange::Skip]
                    [self.rng.random_range(0..3)];
                let Some(item) = self.any(|_| true) else {
                    return;
                };
                let altered = store.alter(Arc::clone(&item.id), change, now).await;
                if !matches!(item.status, ItemStatus::Queued | ItemStatus::Waiting) {
                    assert!(
                        matches!(altered, Err(StoreError::Conflict(_))),
                        "{altered:?}"
                    );
                    return;
                }
                let known = self.model.find(&item.id);
                match change {
                    ItemChange::RetryNow => known.not_before = now,
                    ItemChange::Cancel | ItemChange::Skip => {
                        known.status = if change == ItemChange::Cancel {
                            ItemStatus::Cancelled
                        } else {
                            ItemStatus::Dead
                        };
                        known.finished = Some(now);
                    }
                }
            }
            8 => {
                let dead = |item: &&mut Item| {
                    item.buffer == buffer
                        && matches!(item.status, ItemStatus::Dead | ItemStatus::Expired)
                };
                let head = self.rng.random_bool(0.5);
                let limit = self.rng.random_range(1..4);
                let moved = store
                    .redrive(
                        buffer,
                        Redrive {
                            ids: Vec::new(),
                            limit,
                            head,
                        },
                        now,
                    )
                    .await
                    .unwrap();
                let mut known: Vec<&mut Item> = self.model.items.iter_mut().filter(dead).collect();
                known.sort_by_key(|item| item.seq);
                let mut count = 0;
                for item in known.into_iter().take(limit as usize) {
                    if !head {
                        let next = self.model.next.get_mut(&buffer).unwrap();
                        item.seq = *next;
                        *next += 1;
                    }
                    item.status = ItemStatus::Queued;
                    (item.retries, item.refusals, item.not_before) = (0, 0, now);
                    (item.expires, item.finished) = (None, None);
                    count += 1;
                }
                assert_eq!(moved, count);
            }
            9 => {
                let what =
                    [Purge::Queued, Purge::Dead, Purge::History][self.rng.random_range(0..3)];
                let gone = |item: &Item| {
                    item.buffer == buffer
                        && match what {
                            Purge::Queued => {
                                matches!(item.status, ItemStatus::Queued | ItemStatus::Waiting)
                            }
                            Purge::Dead => item.status == ItemStatus::Dead,
                            Purge::History => !item.status.is_live(),
                        }
                };
                let before = self.model.items.len();
                self.model.items.retain(|item| !gone(item));
                let count = store.purge(buffer, what, None).await.unwrap();
                assert_eq!(count as usize, before - self.model.items.len());
            }
            10 => {
                let Some(item) = self.any(|item| item.status == ItemStatus::InFlight) else {
                    return;
                };
                store
                    .release_claim(item.buffer, Arc::clone(&item.id))
                    .await
                    .unwrap();
                let known = self.model.find(&item.id);
                known.attempts -= 1;
                known.status = if known.attempts > 0 {
                    ItemStatus::Waiting
                } else {
                    ItemStatus::Queued
                };
            }
            _ => {
                let Some(item) = self.any(|item| item.expires.is_some()) else {
                    return;
                };
                store.expire(Arc::clone(&item.id), now).await.unwrap();
                if matches!(item.status, ItemStatus::Queued | ItemStatus::Waiting) {
                    let known = self.model.find(&item.id);
                    (known.status, known.finished) = (ItemStatus::Expired, Some(now));
                }
            }
        }
    }

    async fn push(&mut self, store: &dyn Store, buffer: i64) {
        let items = self.items();
        let has_key = self.rng.random_bool(0.4);
        let key = has_key.then(|| format!("{}/{}", self.seed, self.rng.random_range(0..4)));
        let fingerprint = [self.rng.random_range(0..2); 32];
        let once = key.clone().map(|key| IdempotencyKey { key, fingerprint });
        let account = PushAccount::default();
        let pushed = store.push(buffer, items.clone(), once, &account, self.now);
        let pushed = pushed.await;
        match key.as_ref().and_then(|key| self.model.once.get(key)) {
            Some((known, ids)) if *known == fingerprint => {
                let pushed = pushed.unwrap();
                let told: Vec<_> = pushed.items.into_iter().map(|(id, _)| id).collect();
                assert!(pushed.replayed && told == *ids);
            }
            Some(_) => assert_eq!(pushed, Err(StoreError::KeyReused)),
            None => {
                assert!(!pushed.unwrap().replayed);
                self.model.push(buffer, &items, self.now);
                if let Some(key) = key {
                    let ids = items.iter().map(|item| Arc::clone(&item.id)).collect();
                    self.model.once.insert(key, (fingerprint, ids));
                }
            }
        }
    }

    async fn deliver(&mut self, store: &dyn Store) {
        let now = self.now;
        if let Some(item) = self.any(|item| item.status == ItemStatus::InFlight)
            && self.rng.random_bool(0.7)
        {
            let code = [200, 204, 400, 429, 500, 503][self.rng.random_range(0..6)];
            let outcome = match self.rng.random_range(0..5) {
                0 => AttemptOutcome::Unknown,
                1 => AttemptOutcome::Interrupted,
                _ => AttemptOutcome::Answered {
                    status: code,
                    retry_after: None,
                },
            };
            let step = step(&item, &BufferConfig::default(), &outcome, now, 0.5);
            let attempt = Attempt {
                item: Arc::clone(&item.id),
                buffer: item.buffer,
                number: item.attempts,
                started: now,
                took: 1,
                waited: 0,
                outcome: step.word.into(),
                status: Some(code),
                error: None,
                next: None,
                maybe_duplicate: item.maybe_duplicate,
                response: None,
            };
            let finished = store.finish(Finished { step, attempt }, now).await.unwrap();
            let known = self.model.find(&item.id);
            (known.status, known.not_before) = (step.status, step.not_before);
            (known.retries, known.refusals) = (step.retries, step.refusals);
            known.maybe_duplicate = step.maybe_duplicate;
            known.finished = (!step.status.is_live()).then_some(now);
            known.last_status = Some(code);
            assert_eq!(finished, *known);
            return;
        }
        let Some(item) = self.any(|_| true) else {
            return;
        };
        let claimed = store.claim(item.buffer, Arc::clone(&item.id)).await;
        if matches!(item.status, ItemStatus::Queued | ItemStatus::Waiting) {
            let known = self.model.find(&item.id);
            known.status = ItemStatus::InFlight;
            known.attempts += 1;
            assert_eq!(claimed.unwrap(), *known);
        } else {
            assert!(
                matches!(claimed, Err(StoreError::Conflict(_))),
                "{claimed:?}"
            );
        }
    }
}

async fn history(seed: u64, site: &mut Site) -> usize {
    let mut store = site.open(0).await;
    let mut history = History::new(seed);
    history.make_buffers(&*store).await;
    held(&*store, &history.buffers).await;
    let mut crashes = 0;
    for _ in 0..STEPS {
        history.step(&*store).await;
        if history.rng.random_bool(0.1) {
            crashes += 1;
            // The crashed store gets no further call after the new one is open.
            store = site.open(crashes).await;
            held(&*store, &history.buffers).await;
        }
        compare(&*store, &history.model, &history.buffers).await;
    }
    crashes
}

/// Returns the seeds of the histories and prints, for each, the command that repeats it.
fn seeds() -> impl Iterator<Item = u64> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seeds = match number("OUTPACE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("OUTPACE_SIM_SEEDS").unwrap_or(10),
    };
    seeds.inspect(|seed| {
        println!(
            "seed {seed}; run it again with\n  OUTPACE_SIM_SEED={seed} cargo nextest run --test it p6_every_store"
        );
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_every_store_does_as_the_model_also_after_a_crash_disk() {
    let (mut crashes, mut histories) = (0, 0);
    for seed in seeds() {
        crashes += history(seed, &mut Site::on_disk()).await;
        histories += 1;
    }
    println!("{histories} histories of {STEPS} steps, {crashes} crashes, no difference");
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_every_store_does_as_the_model_also_after_a_crash_postgres() {
    let (mut crashes, mut histories) = (0, 0);
    let mut site = Site::Postgres {
        server: Postgres::start().await,
        replica: 1,
    };
    for seed in seeds() {
        crashes += history(seed, &mut site).await;
        histories += 1;
    }
    println!("{histories} histories of {STEPS} steps, {crashes} crashes, no difference");
}

/// Returns true if all items of the buffers match the model.
async fn is_as(store: &dyn Store, model: &Model, buffers: &[i64]) -> bool {
    for buffer in buffers {
        let query = ListQuery {
            buffer: Some(*buffer),
            limit: 10_000,
            ..ListQuery::default()
        };
        if store.items(query).await.unwrap() != model.of(*buffer) {
            return false;
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_write_torn_anywhere_leaves_what_was_acknowledged() {
    const WRITES: usize = 8;
    let (mut torn, mut found) = (0, 0);
    for seed in seeds().take(3) {
        let mut site = Site::on_disk();
        let store = site.open(0).await;
        let mut history = History::new(seed);
        history.make_buffers(&*store).await;
        for _ in 0..WRITES {
            let before = (site.image("before"), history.model.clone());
            history.step(&*store).await;
            let after = site.image("after");
            for cut in after.tears(&before.0) {
                let torn_store = site.open_torn(&before.0, &after, cut).await;
                let is_new = is_as(&*torn_store, &history.model, &history.buffers).await;
                let is_old = is_as(&*torn_store, &before.1, &history.buffers).await;
                assert!(is_new || is_old, "seed {seed}: torn at byte {cut:?}");
                torn += 1;
                found += usize::from(is_new);
            }
        }
    }
    println!("{torn} tears: {found} with the whole write, all others with none of it");
    assert!(found > 0 && found < torn);
}
