//! One conformance suite for both ledgers. Random sequences of calls must get the same answers from
//! the book in memory and from the functions in Postgres. Both run on a clock that the test sets.

use std::collections::HashMap;
use std::sync::Arc;

use outpace::clock::Instant;
use outpace::db::Database;
use outpace::ledger::{Answer, Book, Call, FlowRead, Run, ScheduleUse, SchedulesRead, Users};
use outpace::ledger::{BlockCause, BlockClaim, BlockFilter, BlockScope, ScopedBlock, TargetBlocks};
use outpace::policy::{LimitSet, Scope, Secret};
use outpace::schedule::{CostChange, ScheduleState, Spec};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sqlx::Row as _;
use sqlx::types::Json;

use crate::harness::Postgres;

const START: i64 = 1_790_000_000_000_000_000;
const MS: i64 = 1_000_000;
const STEPS: usize = 60;

/// One random history of calls for a target, repeatable by its seed.
struct History {
    rng: StdRng,
    seed: u64,
    target: Arc<str>,
    now: i64,
    specs: Vec<Spec>,
    lanes: Vec<(i64, i64)>,
    keyed: bool,
    /// True if costs are settled, which happens more often then.
    settles: bool,
    /// Number of keys that each limit counts separately. Below the number of keys in use, some of
    /// them share a schedule.
    max_keys: u32,
    book: Book,
    /// Fallback share that is reserved for a replica that fell silent, in millionths.
    lost: i64,
    /// Spec and usage of each row in the latest answer, which a later call may report again.
    seen: HashMap<usize, ScheduleState>,
    held: HashMap<(i64, usize, usize), i64>,
}

fn spec(rng: &mut StdRng) -> Spec {
    let n = rng.random_range(1..40_i64);
    let period = rng.random_range(200..4000) * MS;
    match rng.random_range(0..4) {
        0 => {
            let interval = (period / n).max(1);
            Spec::Token {
                interval,
                tolerance: rng.random_range(0..10) * interval,
                period,
            }
        }
        1 => Spec::Sliding { n, window: period },
        2 => Spec::Fixed {
            n,
            window: period,
            guard: period / 20,
        },
        _ => Spec::Permits {
            n: rng.random_range(1..6),
        },
    }
}

impl History {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(1..4);
        let lanes = match rng.random_range(0..3) {
            0 => Vec::new(),
            _ => (0..rng.random_range(2..4))
                .map(|_| {
                    (
                        rng.random_range(1..5),
                        if rng.random_bool(0.3) { 200_000 } else { 0 },
                    )
                })
                .collect(),
        };
        let specs: Vec<Spec> = (0..count).map(|_| spec(&mut rng)).collect();
        let has_permits = specs
            .iter()
            .any(|spec| matches!(spec, Spec::Permits { .. }));
        Self {
            max_keys: match has_permits {
                true => 100,
                false => rng.random_range(1..5),
            },
            specs,
            lanes,
            keyed: rng.random_bool(0.3),
            settles: rng.random_bool(0.5),
            seed,
            target: format!("t{seed}").into(),
            now: START + rng.random_range(0..1000) * MS,
            book: Book::default(),
            lost: if rng.random_bool(0.3) {
                rng.random_range(1..1_000_000)
            } else {
                0
            },
            seen: HashMap::new(),
            held: HashMap::new(),
            rng,
        }
    }

    /// Draws the next call of a random replica. Some rows have a different bound, as during a
    /// policy rollout.
    fn call(&mut self) -> Call {
        let replica = self.rng.random_range(1..4);
        let keys = if self.keyed { 4 } else { 1 };
        let mut rows = Vec::new();
        for (index, spec) in self.specs.clone().into_iter().enumerate() {
            for key in 0..keys {
                let changes = !self.keyed || self.max_keys > 4;
                let spec = if changes && self.rng.random_bool(0.04) {
                    self::spec(&mut self.rng)
                } else {
                    spec
                };
                let held = match spec {
                    Spec::Permits { .. } => {
                        let held = self.held.entry((replica, index, key)).or_default();
                        *held = (*held - self.rng.random_range(0..3)).max(0);
                        *held
                    }
                    _ => 0,
                };
                rows.push(ScheduleUse {
                    limit: format!("l{index}").into(),
                    key: self.keyed.then(|| format!("k{key}").into()),
                    spec,
                    settles: self.settles,
                    max_keys: self.max_keys,
                    held,
                    seen: match self.seen.get(&rows.len()) {
                        Some(seen) if self.rng.random_bool(0.1) => Some(seen.clone()),
                        _ => None,
                    },
                    unbooked: if self.rng.random_bool(0.03) {
                        vec![(self.now - 900 * MS, 1), (self.now - 100 * MS, 2)]
                    } else {
                        Vec::new()
                    },
                });
            }
        }
        let runs = (0..self.rng.random_range(1..4))
            .map(|_| {
                let key = self.rng.random_range(0..keys);
                let mut limits = LimitSet::default();
                (0..self.specs.len())
                    .filter(|_| self.rng.random_bool(0.8))
                    .for_each(|index| limits.insert(index));
                let costs = limits.iter().filter_map(|limit| {
                    let is_large = self.rng.random_bool(0.2);
                    is_large.then(|| (limit, self.rng.random_range(1..60)))
                });
                let costs = costs.collect();
                let lane = self.rng.random_range(0..self.lanes.len().max(1));
                let scope = Scope::plain(limits).with(Vec::new(), costs);
                let want = self.rng.random_range(0..8);
                let waiting = want + self.rng.random_range(0..5);
                let mut run = Run::new(scope.in_lane(u8::try_from(lane).unwrap()), want, waiting);
                if self.rng.random_bool(0.3) {
                    let expected = limits.iter().map(|_| self.rng.random_range(0..90));
                    run.expected = expected.collect();
                }
                let rows = limits.iter();
                run.rows = rows
                    .map(|limit| u32::try_from(limit * keys + key).unwrap())
                    .collect();
                run
            })
            .collect();
        Call {
            target: Arc::clone(&self.target),
            replica,
            horizon: self.rng.random_range(50..400) * MS,
            near: self.rng.random_range(10..100) * MS,
            lead: if self.rng.random_bool(0.1) {
                30 * MS
            } else {
                0
            },
            rows: rows.into_iter().collect(),
            runs,
            weights: self.lanes.iter().map(|lane| lane.0).collect(),
            reserves: self.lanes.iter().map(|lane| lane.1).collect(),
            queue_for_lock: self.rng.random_bool(0.5),
        }
    }

    /// Records granted permits as held, and the spec and usage of each row for later calls.
    fn hold(&mut self, call: &Call, answer: &Answer) {
        for (index, state) in answer.rows.iter().enumerate() {
            if !matches!(state.spec, Spec::Permits { .. }) {
                self.seen.insert(index, state.clone());
            }
        }
        let keys = if self.keyed { 4 } else { 1 };
        for (run, granted) in call.runs.iter().zip(&answer.runs) {
            for row in &run.rows {
                let row = usize::try_from(*row).unwrap();
                if matches!(call.rows[row].spec, Spec::Permits { .. }) {
                    let held = self
                        .held
                        .entry((call.replica, row / keys, row % keys))
                        .or_default();
                    *held += i64::try_from(granted.slots.len()).unwrap();
                }
            }
        }
    }
}

fn seeds() -> u64 {
    let asked = std::env::var("OUTPACE_SIM_SEEDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(100)
}

async fn at(connection: &mut sqlx::PgConnection, now: i64) {
    sqlx::query("select set_config('outpace.clock_ns', $1, false)")
        .bind(now.to_string())
        .execute(connection)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_postgres_give_the_same_slots() {
    let postgres = Postgres::start().await;
    let database = Database::new(&Secret::new(postgres.url()), 4, None).unwrap();
    database.migrate().await.unwrap();
    database.check().await.unwrap();
    let mut connection = postgres.connect().await.unwrap();
    let seeds = match std::env::var("OUTPACE_SIM_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..seeds()).collect(),
    };
    let mut slots = 0;
    for seed in seeds {
        let mut history = History::new(seed);
        silence(&mut connection, history.lost).await;
        for step in 0..STEPS {
            slots += take(&mut history, step, &mut connection).await;
        }
    }
    println!("{slots} slots, the same from both");
    assert!(slots > 1000);
}

/// Registers a replica that fell silent with this fallback share, in millionths.
async fn silence(connection: &mut sqlx::PgConnection, promise: i64) {
    let silent =
        "insert into outpace.replica values (99, 'silent', '0', '', '', '[]', 0, 0, 9000000000000000000, $1)
                  on conflict (id) do update set share_ppm = excluded.share_ppm";
    let silent = sqlx::query(silent).bind(promise);
    silent.execute(connection).await.unwrap();
}

async fn take(history: &mut History, step: usize, connection: &mut sqlx::PgConnection) -> usize {
    let place = format!("OUTPACE_SIM_SEED={} step {step}", history.seed);
    history.now += history.rng.random_range(0..300) * MS;
    at(connection, history.now).await;
    let name = history.target.to_string();
    if history.rng.random_bool(0.03) {
        let until = history.now + history.rng.random_range(-100..1500) * MS;
        history.book.block(until, history.now);
        let epoch = sqlx::query("select outpace.block_v1($1, $2)")
            .bind(&name)
            .bind(until);
        let epoch: i64 = epoch.fetch_one(&mut *connection).await.unwrap().get(0);
        assert_eq!(
            history.book.epoch(),
            u64::try_from(epoch).unwrap(),
            "{place}: epoch"
        );
    }
    if history.rng.random_bool(0.1) {
        let answered = history.rng.random_bool(0.5);
        let epoch = history.book.epoch();
        history.book.end_probe(epoch, answered);
        let probe = sqlx::query("select outpace.probe_v1($1, $2, $3)").bind(&name);
        let probe = probe.bind(i64::try_from(epoch).unwrap()).bind(answered);
        probe.execute(&mut *connection).await.unwrap();
    }
    if history
        .rng
        .random_bool(if history.settles { 0.4 } else { 0.05 })
    {
        let units = match history.rng.random_range(0..10) {
            0 => 1_000_000_000,
            1 => -1_000_000_000,
            2 => i64::MAX,
            3 => i64::MIN,
            _ => history.rng.random_range(-5..5),
        };
        let used = match history.rng.random_range(0..10) {
            0 => i64::MAX,
            1 => i64::MIN,
            _ => history.rng.random_range(-1..8),
        };
        let age = history.rng.random_range(0..2_000_000_000);
        let change = CostChange {
            units,
            used,
            booked: history.now - age,
        };
        let (limit, key): (Arc<str>, Option<Arc<str>>) =
            ("l0".into(), history.keyed.then(|| "k0".into()));
        history
            .book
            .correct(&limit, key.as_ref(), change, history.now);
        let correct = sqlx::query("select outpace.correct_v1($1, 'l0', $2, $3, $4, $5)");
        let correct = correct
            .bind(&name)
            .bind(key.as_deref().unwrap_or_default().to_owned())
            .bind(change.units)
            .bind(change.used)
            .bind(change.booked);
        correct.execute(&mut *connection).await.unwrap();
    }
    if history.rng.random_bool(0.03) {
        let key = history.keyed.then_some("k0");
        history.book.forget_settled("l0", key);
        let forget = sqlx::query("select outpace.forget_settled_v1($1, 'l0', $2)").bind(&name);
        forget.bind(key).execute(&mut *connection).await.unwrap();
    }
    let call = history.call();
    let ours = history
        .book
        .call(&call, history.now, Users::Many { lost: history.lost });
    let asked = sqlx::query("select outpace.book_v1($1)").bind(Json(&call));
    let row = asked.fetch_one(&mut *connection).await;
    let row = row.unwrap_or_else(|error| panic!("{place}: {error:?}\n{call:#?}"));
    let Json(theirs) = row.get::<Json<Answer>, _>(0);
    assert_eq!(ours, theirs, "{place}\n{call:#?}");
    history.hold(&call, &ours);
    same_view(history, connection, &place).await;
    ours.runs.iter().map(|run| run.slots.len()).sum()
}

/// Compares what a random replica reads of a schedule without booking.
async fn same_view(history: &mut History, connection: &mut sqlx::PgConnection, place: &str) {
    if history.rng.random_bool(0.7) {
        return;
    }
    let key: Option<Arc<str>> = history.keyed.then(|| "k0".into());
    let replica = history.rng.random_range(1..4);
    let (limit, name): (Arc<str>, _) = ("l0".into(), history.target.to_string());
    let (_, mut ours) = history
        .book
        .peek(&limit, key.as_ref(), replica, history.now);
    let rows = serde_json::json!([{"limit": "l0", "key": key.as_deref()}]);
    let asked = sqlx::query("select outpace.peek_v1($1, $2, $3)").bind(&name);
    let row = asked.bind(Json(rows)).bind(replica).fetch_one(connection);
    let Json(theirs) = row.await.unwrap().get::<Json<SchedulesRead>, _>(0);
    let mut theirs = theirs.rows.into_iter().next().unwrap().waiting;
    let order = |flow: &FlowRead| (flow.units, flow.behind);
    ours.sort_by_key(order);
    theirs.sort_by_key(order);
    assert_eq!(ours, theirs, "{place}");
}

/// Returns a random scope out of a few.
fn block_scope(rng: &mut StdRng) -> BlockScope {
    let part = |rng: &mut StdRng, names: [&str; 3]| {
        let name = names[rng.random_range(0..3)];
        (!name.is_empty()).then(|| name.into())
    };
    let limit = part(rng, ["", "l0", "l1"]);
    BlockScope {
        key: limit.as_ref().and_then(|_| part(rng, ["", "k0", "k1"])),
        limit,
        credential: part(rng, ["", "c0", "c1"]),
    }
}

/// Runs one statement with these arguments and returns its result as JSON.
async fn asked(
    connection: &mut sqlx::PgConnection,
    call: &str,
    target: &str,
    scope: &impl serde::Serialize,
    more: &str,
) -> serde_json::Value {
    let statement = format!("select to_jsonb(outpace.{call}($1, $2{more})::text::jsonb)");
    let asked = sqlx::query(sqlx::AssertSqlSafe(statement));
    let asked = asked.bind(target).bind(Json(scope));
    let row = asked.fetch_one(&mut *connection).await.unwrap();
    row.get::<Json<serde_json::Value>, _>(0).0
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one history with all kinds of steps")]
async fn memory_and_postgres_keep_the_same_blocks() {
    let postgres = Postgres::start().await;
    let database = Database::new(&Secret::new(postgres.url()), 4, None).unwrap();
    database.migrate().await.unwrap();
    let mut connection = postgres.connect().await.unwrap();
    let mut probes = 0;
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut blocks, mut now) = (TargetBlocks::default(), START);
        let target = format!("blocks {seed}");
        for step in 0..80 {
            let place = format!("seed {seed} step {step}");
            now += rng.random_range(0..2000) * MS;
            at(&mut connection, now).await;
            let (here, scope) = (Instant::from_nanos(now), block_scope(&mut rng));
            match rng.random_range(0..10) {
                0..=2 => {
                    let block = ScopedBlock {
                        scope,
                        // The report of a refusal may take a while.
                        since: Instant::from_nanos(now - rng.random_range(0..1000) * MS),
                        until: Instant::from_nanos(now + rng.random_range(-100..8000) * MS),
                        asked: Instant::from_nanos(now + rng.random_range(0..9000) * MS),
                        longer: rng.random_bool(0.1),
                        cause: BlockCause {
                            status: 429,
                            field: "retry-after".into(),
                            value: step.to_string().into(),
                            path: "/'p\\".into(),
                        },
                        rest: Instant::ZERO,
                    };
                    blocks.impose(block.clone(), here);
                    let call = "select outpace.impose_block_v1($1, $2)::text";
                    let imposed = sqlx::query(call).bind(&target).bind(Json(&block));
                    imposed.execute(&mut connection).await.unwrap();
                    blocks.sweep(here);
                }
                3..=7 => {
                    let here = blocks.claim(&scope, here);
                    let there = asked(&mut connection, "claim_block_v1", &target, &scope, "").await;
                    let there: BlockClaim = serde_json::from_value(there).unwrap();
                    assert_eq!(here, there, "{place}: {scope:?}");
                    if let BlockClaim::Probe(until) = here {
                        probes += 1;
                        let answered = rng.random_bool(0.5);
                        blocks.end_probe(&scope, until, answered);
                        let call = "select outpace.end_block_probe_v1($1, $2, $3, $4)::text";
                        let ended = sqlx::query(call).bind(&target).bind(Json(&scope));
                        let ended = ended.bind(until.as_nanos()).bind(answered);
                        ended.execute(&mut connection).await.unwrap();
                    }
                }
                8 => {
                    let keys = scope.key.into_iter().chain(scope.credential).collect();
                    let limit = scope.limit.filter(|_| rng.random_bool(0.5));
                    let filter = BlockFilter { limit, keys };
                    let lifted = blocks.lift(&filter, here).len();
                    let call = "select outpace.lift_blocks_v1($1, $2, $3)";
                    let call = sqlx::query(call)
                        .bind(&target)
                        .bind(filter.limit.as_deref());
                    let row = call
                        .bind(Json(&filter.keys))
                        .fetch_one(&mut connection)
                        .await;
                    let there: i64 = row.unwrap().get(0);
                    assert_eq!(i64::try_from(lifted).unwrap(), there, "{place}: {filter:?}");
                }
                _ => {}
            }
            let there = sqlx::query("select outpace.blocks_v1($1)").bind(&target);
            let there = there.fetch_one(&mut connection).await.unwrap();
            let Json(mut there) = there.get::<Json<Vec<ScopedBlock>>, _>(0);
            there.sort_by(|one, other| one.scope.cmp(&other.scope));
            assert_eq!(blocks.all(), there, "{place}");
        }
    }
    assert!(probes > 20, "{probes} probes");
}
