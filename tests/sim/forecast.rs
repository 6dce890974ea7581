//! Forecasts in virtual time: after a random history no further request arrives except a probe, whose
//! forecast is compared with its real wait.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use outpace::bounds::HORIZON_MAX;
use outpace::clock::Clock;
use outpace::ledger::{OnOutage, Outage, ReplicaReport, SharedLedger, SharedParts};
use outpace::pace::{Admission, ConnectionState, Event, Pacer, Ticket};
use outpace::policy::{Bound, KeySecret, Limit, LimitSet, Scope, Target};
use outpace::random::Random;
use outpace::shutdown::Tasks;
use outpace::telemetry::Metrics;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use crate::plan::{Plan, ms};
use crate::store::{ModelLink, Store};
use crate::way::{Cut, CutKind};

/// The source of bookings while the probe waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The store answers all replicas.
    Shared,
    /// The store has been unreachable for all replicas since the middle of the history.
    Outage,
    /// One replica ended without leaving, so that its share is reserved.
    Killed,
}

/// The forecast of a probe and its real wait, both in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probed {
    pub(crate) forecast: i64,
    pub(crate) real: i64,
}

/// A probe that was refused: the time to its `Retry-After` is over, and this was the answer then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retried {
    /// The request left at once or within the tolerance.
    Left,
    /// The request was refused once more.
    Refused,
}

struct Node {
    pacer: Arc<Pacer>,
    clock: Clock,
    target: Arc<Target>,
    #[expect(dead_code, reason = "the heartbeats end with it")]
    ledger: Arc<SharedLedger<ModelLink>>,
}

impl Node {
    fn ticket(&self, max_wait: Duration) -> Ticket {
        let mut limits = LimitSet::default();
        limits.insert(0);
        let arrived = self.clock.now();
        Ticket {
            target: Arc::clone(&self.target),
            scope: Scope::plain(limits),
            arrived,
            deadline: arrived + max_wait,
            share: None,
            credential: None,
            probes: Vec::new(),
        }
    }

    /// Waits until the request leaves, or returns the instant that its refusal names.
    async fn send(&self, max_wait: Duration) -> Result<(), outpace::clock::Instant> {
        let ticket = self.ticket(max_wait);
        loop {
            let turn = match self.pacer.enter(&ticket, ConnectionState::Ready) {
                Admission::Turn(turn) => turn,
                Admission::Refused(refusal) if self.pacer.is_outdated(&ticket, &refusal) => {
                    self.pacer.read(&ticket).await;
                    continue;
                }
                Admission::Refused(refusal) => return Err(refusal.available),
                Admission::Wait(mut waiter) => loop {
                    match waiter.next().await {
                        Event::Called => waiter.ready(),
                        Event::Turn(turn) => break turn,
                        Event::Refused(refusal) => return Err(refusal.available),
                        Event::Blocked => unreachable!("no origin blocks"),
                    }
                },
            };
            if turn.leave().is_ok() {
                return Ok(());
            }
        }
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(work)
}

/// Returns a period without messages that lasts longer than any run.
fn for_ever(from: Duration) -> Cut {
    Cut {
        from,
        to: Duration::from_secs(3600),
        kind: CutKind::Silent,
    }
}

/// Starts the replicas of a plan and lets a history of requests arrive, which may still wait.
async fn history(plan: &Plan, mode: Mode, rng: &mut StdRng) -> Vec<Arc<Node>> {
    let store = Arc::new(Mutex::new(Store::new()));
    let target = Arc::new(Target::named(
        "t",
        vec![Limit::new(
            "l",
            Bound::Rate {
                rate: plan.rate,
                algorithm: plan.algorithm,
            },
        )],
    ));
    let began = Instant::now();
    let mut nodes = Vec::new();
    let dies = ms(rng, 1500..2500);
    for index in 0..plan.replicas.len() {
        let mut way = plan.way.clone();
        let is_dead = mode == Mode::Killed && index == 1;
        match mode {
            Mode::Outage => way.cut.push(for_ever(Duration::from_secs(3))),
            // A replica that is cut off for ever is as good as dead for the others.
            Mode::Killed if is_dead => way.cut.push(for_ever(dies)),
            Mode::Shared | Mode::Killed => {}
        }
        let seed = plan.seed * 1000 + index as u64;
        let clock = Clock::anchored(1_790_000_000_000_000_000 + plan.replicas[index].skew);
        let (tasks, metrics) = (Tasks::new(), Metrics::new());
        let ledger = Arc::new(SharedLedger::new(
            ModelLink::new(Arc::clone(&store), way, seed),
            SharedParts {
                replica: i64::try_from(index).unwrap() + 1,
                clock: clock.clone(),
                random: Random::seeded(seed),
                tasks: tasks.clone(),
                metrics: metrics.clone(),
                outage: Outage {
                    then: OnOutage::Share,
                    share_for: Duration::from_secs(3600),
                    bootstrap_ppm: 0,
                },
                key_secret: KeySecret::new([0; 32]),
            },
        ));
        ledger.join(ReplicaReport::default);
        let pacer = Pacer::new(Arc::clone(&ledger) as Arc<_>, clock.clone(), tasks, metrics);
        nodes.push(Arc::new(Node {
            pacer: Arc::new(pacer),
            clock,
            target: Arc::clone(&target),
            ledger,
        }));
    }
    // All replicas know each other before the first request.
    tokio::time::sleep_until(began + Duration::from_secs(1)).await;
    // Up to two and a half times as many requests as may leave, so that many still wait at the end.
    let all = plan.per_second() * 8.0 * rng.random_range(0.3..2.5);
    let most = (all as usize / nodes.len()).max(1) * 2;
    for node in &nodes {
        for _ in 0..rng.random_range(0..=most) {
            let (node, wait) = (Arc::clone(node), ms(rng, 0..7000));
            Tasks::new().spawn_detached(async move {
                tokio::time::sleep(wait).await;
                let _ = node.send(Duration::from_secs(3600)).await;
            });
        }
    }
    // In an outage the others have noticed the silence by then.
    tokio::time::sleep_until(began + Duration::from_secs(8) + ms(rng, 50..2000)).await;
    nodes
}

/// Returns the forecast of a probe after a random history and its real wait. `None` stands for a
/// forecast that no slot will come.
pub(crate) fn probe(plan: &Plan, mode: Mode) -> Option<Probed> {
    run(async {
        let mut rng = StdRng::seed_from_u64(plan.seed ^ 0x5eed);
        let nodes = history(plan, mode, &mut rng).await;
        let node = &nodes[0];
        let ticket = node.ticket(Duration::from_secs(3600));
        node.pacer.refresh(&node.target, &ticket.scope).await;
        if node.pacer.gap(&node.target, &ticket.scope).is_some() {
            return None;
        }
        let (at, _) = node.pacer.forecast(&node.target, &ticket.scope, true);
        let began = node.clock.now();
        node.send(Duration::from_secs(3600)).await.unwrap();
        let waited = node.clock.now().since(began);
        Some(Probed {
            forecast: nanos(at.since(began)),
            real: nanos(waited),
        })
    })
}

/// Returns the answer to a refused request that comes back at the instant which the refusal named.
/// `None` if nothing had to be refused.
pub(crate) fn retry(plan: &Plan, mode: Mode) -> Option<Retried> {
    run(async {
        let mut rng = StdRng::seed_from_u64(plan.seed ^ 0x5eed);
        let nodes = history(plan, mode, &mut rng).await;
        let node = &nodes[0];
        let ticket = node.ticket(Duration::ZERO);
        if node.pacer.gap(&node.target, &ticket.scope).is_some() {
            return None;
        }
        let available = node.send(Duration::ZERO).await.err()?;
        // Responses name whole milliseconds, rounded up.
        node.clock
            .sleep_until(available + Duration::from_millis(1))
            .await;
        // A client that retries grants the time by which a forecast may be wrong.
        Some(match node.send(tolerance(plan)).await {
            Ok(()) => Retried::Left,
            Err(_) => Retried::Refused,
        })
    })
}

/// Returns the longest time by which a forecast may be wrong: one horizon, and one unit of the rate,
/// because replicas that wait for the same unit take it in any order.
pub(crate) fn tolerance(plan: &Plan) -> Duration {
    HORIZON_MAX + Duration::from_secs_f64(1.0 / plan.per_second())
}

fn nanos(span: Duration) -> i64 {
    i64::try_from(span.as_nanos()).unwrap()
}
