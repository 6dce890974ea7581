//! Tests of a pacer on the memory ledger: costs that are returned, and waits behind other requests.

use std::cell::Cell;
use std::time::Duration;

use super::*;
use crate::ledger::MemoryLedger;
use crate::policy::{Algorithm, Bound, Cost, Expression, Limit, Source};
use crate::units::Rate;

/// Costs of the requests of a test: the estimate, the usage that is settled, and the rate.
#[derive(Debug, Clone, Copy)]
struct Shape {
    estimate: i64,
    settled: i64,
    /// Units per minute, which are also the burst.
    rate: u32,
}

const SHAPES: [Shape; 3] = [
    Shape {
        estimate: 4096,
        settled: 400,
        rate: 6000,
    },
    Shape {
        estimate: 900,
        settled: 30,
        rate: 1000,
    },
    Shape {
        estimate: 32_000,
        settled: 16_000,
        rate: 60_000,
    },
];

struct Scene {
    pacer: Pacer,
    clock: Clock,
    target: Arc<Target>,
    scope: Scope,
}

impl Scene {
    fn new(shape: Shape, algorithm: Algorithm) -> Self {
        let period = Duration::from_mins(1);
        let rate = Rate::new(shape.rate, period).unwrap();
        let mut limit = Limit::new("tokens", Bound::Rate { rate, algorithm });
        limit.cost = Some(Cost {
            settle: Some(Expression::Value(Source::Json("/usage".into()))),
            ..Cost::fixed(shape.estimate, i64::from(shape.rate))
        });
        let target = Arc::new(Target::named("t", vec![limit]));
        let mut set = LimitSet::default();
        set.insert(0);
        let clock = Clock::anchored(20_000_000_000);
        let ledger = MemoryLedger::new(clock.clone(), KeySecret::new([0; 32]));
        let (tasks, metrics) = (Tasks::new(), Metrics::new());
        let pacer = Pacer::new(Arc::new(ledger), clock.clone(), tasks, metrics);
        Self {
            pacer,
            clock,
            scope: Scope::plain(set).with(Vec::new(), vec![(0, shape.estimate)]),
            target,
        }
    }

    fn enter(&self, max_wait: Duration) -> Admission {
        let now = self.clock.now();
        let ticket = Ticket {
            target: Arc::clone(&self.target),
            scope: self.scope.clone(),
            arrived: now,
            deadline: now + max_wait,
            share: None,
            credential: None,
            probes: Vec::new(),
        };
        self.pacer.enter(&ticket, ConnectionState::Ready)
    }
}

const LONG: Duration = Duration::from_hours(9);

fn bucket(shape: Shape) -> Algorithm {
    let burst = Some(shape.rate);
    Algorithm::TokenBucket { burst }
}

/// Returns the turn of a request that can be sent now.
fn turn(admission: Admission) -> Turn {
    match admission {
        Admission::Turn(turn) => turn,
        Admission::Wait(_) | Admission::Refused(_) => panic!("the request has to wait"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_sent_nothing_costs_a_bucket_nothing() {
    for shape in SHAPES {
        let scene = Scene::new(shape, bucket(shape));
        for _ in 0..3 * i64::from(shape.rate) / shape.estimate {
            drop(turn(scene.enter(LONG)));
        }
    }
}

/// Windows would have to know whether the slot still counts, and a strict limit promises n.
#[tokio::test(start_paused = true)]
async fn p1_pace_a_slot_that_sent_nothing_stays_booked_in_other_limits() {
    let strict = Algorithm::TokenBucket { burst: None };
    for algorithm in [strict, Algorithm::SlidingWindow, Algorithm::FixedWindow] {
        for shape in SHAPES {
            let scene = Scene::new(shape, algorithm);
            let mut sent = 0;
            while let Admission::Turn(_) = scene.enter(LONG) {
                sent += 1;
            }
            let most = i64::from(shape.rate) / shape.estimate;
            assert_eq!(sent, most, "{algorithm:?} {shape:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_settlement_lets_the_next_request_leave_at_once() {
    for shape in SHAPES {
        let scene = Scene::new(shape, bucket(shape));
        let mut sent = Vec::new();
        let mut waiter = loop {
            match scene.enter(LONG) {
                Admission::Turn(turn) => sent.push(turn.leave().unwrap()),
                Admission::Wait(waiter) => break waiter,
                Admission::Refused(refusal) => panic!("{refusal:?}"),
            }
        };
        waiter.ready();
        // The driver learns from the ledger that nothing is left.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let began = scene.clock.now();
        for turn in &sent {
            turn.settle(|_, _| Some(shape.settled));
        }
        while !matches!(waiter.next().await, Event::Turn(_)) {}
        let waited = scene.clock.now().since(began);
        assert!(waited < Duration::from_secs(1), "{shape:?}: {waited:?}");
    }
}

/// A request behind 20 others waits for what they are expected to use.
#[tokio::test(start_paused = true)]
async fn a_refusal_counts_waiting_requests_at_their_settled_costs() {
    for shape in SHAPES {
        let scene = Scene::new(shape, bucket(shape));
        for _ in 0..9 {
            let turn = turn(scene.enter(LONG)).leave().unwrap();
            turn.settle(|_, _| Some(shape.settled));
            turn.learn_cost(0, shape.settled);
            drop(turn);
            tokio::time::sleep(Duration::from_mins(1)).await;
        }
        let mut held = Vec::new();
        let mut waiting = Vec::new();
        while waiting.len() < 20 {
            match scene.enter(LONG) {
                Admission::Turn(turn) => held.push(turn.leave().unwrap()),
                Admission::Wait(waiter) => waiting.push(waiter),
                Admission::Refused(refusal) => panic!("{refusal:?}"),
            }
        }
        let Admission::Refused(refusal) = scene.enter(Duration::from_millis(300)) else {
            panic!("{shape:?} is not refused");
        };
        let wait = refusal.available.since(scene.clock.now()).as_secs_f64();
        let seconds = |units: i64| units as f64 * 60.0 / f64::from(shape.rate);
        let ahead = seconds(20 * shape.settled);
        let most = ahead + seconds(2 * shape.estimate);
        assert!(
            (ahead..=most).contains(&wait),
            "{shape:?}: {wait} s, {ahead} s ahead"
        );
    }
}

/// Requests of many keys, which one limit counts together and a slower one for each key.
struct Keyed {
    pacer: Pacer,
    clock: Clock,
    target: Arc<Target>,
}

/// Waits for the turn of a request, and sends it.
async fn leave(waiter: &mut Waiter) {
    loop {
        if let Event::Turn(turn) = waiter.next().await {
            drop(turn.leave_at_once());
            return;
        }
    }
}

impl Keyed {
    fn new(all: (&str, Algorithm), each: (&str, Algorithm)) -> Self {
        let limit = |name: &str, (rate, algorithm): (&str, Algorithm)| {
            let rate = rate.parse().unwrap();
            Limit::new(name, Bound::Rate { rate, algorithm })
        };
        let mut each = limit("each", each);
        each.key = Some(Source::Path.into());
        let target = Arc::new(Target::named("t", vec![limit("all", all), each]));
        let clock = Clock::anchored(20_000_000_000);
        let ledger = MemoryLedger::new(clock.clone(), KeySecret::new([0; 32]));
        let (tasks, metrics) = (Tasks::new(), Metrics::new());
        let pacer = Pacer::new(Arc::new(ledger), clock.clone(), tasks, metrics);
        Self {
            pacer,
            clock,
            target,
        }
    }

    fn enter(&self, key: &str) -> Admission {
        let mut set = LimitSet::default();
        set.insert(0);
        set.insert(1);
        let now = self.clock.now();
        let ticket = Ticket {
            target: Arc::clone(&self.target),
            scope: Scope::plain(set).with(vec![(1, key.into())], Vec::new()),
            arrived: now,
            deadline: now + LONG,
            share: None,
            credential: None,
            probes: Vec::new(),
        };
        self.pacer.enter(&ticket, ConnectionState::Ready)
    }

    /// Sends requests of one key for ever, so that some always wait. Counts those that have left.
    async fn crowd(&self, key: &str, sent: &Cell<u32>) {
        let mut waiting: std::collections::VecDeque<Waiter> = Default::default();
        loop {
            match self.enter(key) {
                Admission::Turn(turn) => {
                    drop(turn.leave());
                    sent.set(sent.get() + 1);
                }
                Admission::Wait(mut waiter) => {
                    waiter.ready();
                    waiting.push_back(waiter);
                }
                Admission::Refused(refusal) => panic!("{refusal:?}"),
            }
            if waiting.len() == 30 {
                let mut first = waiting.pop_front().unwrap();
                leave(&mut first).await;
                sent.set(sent.get() + 1);
            }
        }
    }

    /// Returns the longest wait of 40 further keys, one of which comes every 37 ms.
    async fn longest_of_others(&self) -> Duration {
        let mut longest = Duration::ZERO;
        for number in 0..40 {
            tokio::time::sleep(Duration::from_millis(37)).await;
            let began = self.clock.now();
            if let Admission::Wait(mut waiter) = self.enter(&format!("k{number}")) {
                waiter.ready();
                leave(&mut waiter).await;
            }
            longest = longest.max(self.clock.now().since(began));
        }
        longest
    }
}

/// A slot that is booked ahead for one key uses up what the common limit allows before it.
#[tokio::test(start_paused = true)]
async fn p13_isolation_a_key_near_its_rate_delays_no_other_key() {
    let strict = Algorithm::TokenBucket { burst: None };
    let burst = Algorithm::TokenBucket { burst: Some(5) };
    let (sliding, fixed) = (Algorithm::SlidingWindow, Algorithm::FixedWindow);
    for (all, each) in [
        (("1000/1s", strict), ("20/1s", strict)),
        (("200/1s", strict), ("20/1s", burst)),
        (("1000/1s", burst), ("10/1s", sliding)),
        (("1000/1s", sliding), ("20/1s", strict)),
        (("3000/1m", strict), ("600/1m", strict)),
        (("6000/1m", fixed), ("600/1m", strict)),
    ] {
        let (scene, sent) = (Keyed::new(all, each), Cell::new(0));
        let longest = tokio::select! {
            longest = scene.longest_of_others() => longest,
            () = scene.crowd("busy", &sent) => panic!("the crowd never ends"),
        };
        let most = crate::bounds::HORIZON_NEAR + Duration::from_millis(25);
        assert!(longest <= most, "{all:?} {each:?}: {longest:?}");
        // P2: the key still uses its rate. The others came within 1.48 s.
        let rate: Rate = each.0.parse().unwrap();
        let least = f64::from(rate.count()) / rate.period().as_secs_f64() * 1.48 * 0.95 - 1.0;
        let sent = f64::from(sent.get());
        assert!(sent >= least, "{all:?} {each:?}: {sent} of {least}");
    }
}
