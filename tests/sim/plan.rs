//! Random plans for a simulation of several replicas, with joins, departures, disconnections and
//! clocks that are hours apart.

use std::time::Duration;

use outpace::policy::Algorithm;
use outpace::units::Rate;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::way::{Cut, CutKind, Way};

const HOUR: i64 = 3_600_000_000_000;

/// Everything that happens in one simulated run, drawn from one seed.
pub(crate) struct Plan {
    pub(crate) rate: Rate,
    pub(crate) algorithm: Algorithm,
    pub(crate) length: Duration,
    pub(crate) replicas: Vec<Life>,
    /// Pauses of the whole machine, each with its start since the beginning of the run and its
    /// length.
    pub(crate) freezes: Vec<(Duration, Duration)>,
    pub(crate) way: Way,
    /// Instant of a failover since the start, and length of the history that the new server lacks.
    pub(crate) fail_over: Option<(Duration, Duration)>,
    /// Instant since the start at which all clients arrive, each with one request. `None` makes
    /// clients send repeatedly.
    pub(crate) crowd: Option<Duration>,
    pub(crate) seed: u64,
}

/// Lifetime, clients and faults of one simulated replica.
#[derive(Clone)]
pub(crate) struct Life {
    pub(crate) joins: Duration,
    /// Instant since the start at which the replica ends, and true if it leaves the ledger
    /// properly.
    pub(crate) goes: Option<(Duration, bool)>,
    pub(crate) clients: usize,
    pub(crate) patience: Duration,
    /// Periods in which this replica cannot use the store.
    pub(crate) cut: Vec<Cut>,
    /// Offset of the replica's clock from the store's clock, in nanoseconds.
    pub(crate) skew: i64,
}

pub(crate) fn ms(rng: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

/// Draws a period of up to 8 s in which the store cannot be used, of any kind.
fn cut(rng: &mut StdRng, length: u64) -> Cut {
    let from = ms(rng, 0..length);
    Cut {
        from,
        to: from + ms(rng, 100..8000),
        kind: CutKind::ALL[rng.random_range(0..CutKind::ALL.len())],
    }
}

impl Plan {
    /// Draws a plan with any mix of joins, departures, disconnections, pauses and message faults.
    pub(crate) fn random(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plan = Self::calm(seed, &mut rng, 5);
        let length = plan.length.as_millis() as u64;
        for life in &mut plan.replicas {
            life.joins = if rng.random_bool(0.5) {
                Duration::ZERO
            } else {
                ms(&mut rng, 0..length / 2)
            };
            life.goes = rng
                .random_bool(0.3)
                .then(|| (ms(&mut rng, length / 2..length), rng.random_bool(0.5)));
            life.clients = rng.random_range(1..12);
            life.patience = ms(&mut rng, 100..20_000);
            if rng.random_bool(0.3) {
                life.cut = vec![cut(&mut rng, length)];
            }
        }
        if rng.random_bool(0.3) {
            plan.way.cut = vec![cut(&mut rng, length)];
        }
        if rng.random_bool(0.3) {
            plan.freezes = vec![(ms(&mut rng, 0..length), ms(&mut rng, 1..3000))];
        }
        if rng.random_bool(0.2) {
            plan.way.loss = 0.02;
        }
        if rng.random_bool(0.2) {
            plan.way.twice = 0.05;
        }
        plan.way.spikes = (0.02, 300.0);
        plan
    }

    /// Draws a plan without faults in which every replica has more demand than its share of the
    /// rate.
    pub(crate) fn saturated(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = match seed % 100 {
            0 => 200,
            1 => 40,
            _ => rng.random_range(1..11),
        };
        let mut plan = Self::calm(seed, &mut rng, count);
        plan.length = Duration::from_secs(20);
        let share = plan.rate.count() as f64 / plan.rate.period().as_secs_f64() / count as f64;
        for life in &mut plan.replicas {
            life.clients = 4 + share.ceil() as usize;
            life.patience = Duration::from_secs(600);
        }
        plan
    }

    /// Draws a saturated plan in which no replica can use the store from 5 s to 20 s. The seeds take
    /// the kinds of outages in turn.
    pub(crate) fn outage(seed: u64) -> Self {
        let mut plan = Self::saturated(seed * 20 + 7);
        plan.length = Duration::from_secs(26);
        plan.way.cut = vec![Cut {
            from: Duration::from_secs(5),
            to: Duration::from_secs(20),
            kind: CutKind::ALL[seed as usize % CutKind::ALL.len()],
        }];
        plan
    }

    /// Returns the interval between two requests of a replica in fallback mode, in seconds. The
    /// fallback share is a whole number of requests per period, spread evenly. `None` means a share
    /// below one request.
    pub(crate) fn alone_interval(&self) -> Option<f64> {
        let whole = self.rate.count() as usize / self.replicas.len();
        (whole > 0).then(|| self.spread() / whole as f64)
    }

    /// Returns the period plus room for late requests, in seconds. A fixed window adds room for
    /// clock differences, and a token bucket without burst adds the slack of 25 ms twice.
    fn spread(&self) -> f64 {
        let period = self.rate.period().as_secs_f64();
        match self.algorithm {
            Algorithm::FixedWindow => period + (period / 20.0).max(0.025),
            Algorithm::TokenBucket { burst: None } => period + 0.05,
            Algorithm::SlidingWindow | Algorithm::TokenBucket { .. } => period + 0.025,
        }
    }

    /// Returns the instant at which a replica's fallback share begins, in seconds, if its silence
    /// ends at `silence`. Token buckets begin one interval later and window algorithms one window,
    /// because other replicas may have used the whole rate before.
    pub(crate) fn alone_from(&self, silence: f64) -> f64 {
        match self.algorithm {
            Algorithm::TokenBucket { .. } => silence + self.alone_interval().unwrap_or(0.0),
            Algorithm::SlidingWindow | Algorithm::FixedWindow => silence + self.spread(),
        }
    }

    /// Draws a plan in which a new server replaces the store and lacks its last changes. In 70 % of
    /// the plans all replicas are also disconnected for up to 3 s.
    pub(crate) fn fail_over(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plan = Self::calm(seed, &mut rng, 8);
        for life in &mut plan.replicas {
            life.clients = rng.random_range(1..12);
            life.joins = ms(&mut rng, 0..3000);
        }
        let at = ms(&mut rng, 3000..5000);
        plan.fail_over = Some((at, ms(&mut rng, 1..500)));
        if rng.random_bool(0.7) {
            plan.way.cut = vec![Cut {
                from: at,
                to: at + ms(&mut rng, 1..3000),
                kind: CutKind::Silent,
            }];
        }
        plan
    }

    /// Draws a plan in which about four times the number of requests arrive that can be served
    /// within their max wait. Each replica gets an equal part of them.
    pub(crate) fn crowd(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plan = Self::calm(seed, &mut rng, 6);
        plan.rate = Rate::new(rng.random_range(100..400), Duration::from_secs(1)).unwrap();
        plan.algorithm = Algorithm::TokenBucket { burst: Some(1) };
        plan.crowd = Some(Duration::from_secs(3));
        // The delay is that of a database in another availability zone.
        plan.way.delay = 0.2..2.0;
        let patience = ms(&mut rng, 1000..2000);
        let wanted = plan.per_second() * patience.as_secs_f64() * 4.0;
        let each = (wanted / plan.replicas.len() as f64).ceil() as usize;
        for life in &mut plan.replicas {
            life.clients = each + 1;
            life.patience = patience;
        }
        plan
    }

    /// Draws a plan without faults, for a history of requests after which a forecast is made.
    pub(crate) fn explained(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self::calm(seed, &mut rng, 5)
    }

    /// Returns the number of requests of a crowd that can be served within their max wait.
    pub(crate) fn capacity(&self) -> f64 {
        let patience = self.replicas.iter().map(|life| life.patience).max();
        self.per_second() * patience.unwrap_or_default().as_secs_f64()
    }

    fn calm(seed: u64, rng: &mut StdRng, most: usize) -> Self {
        let count = if most > 10 {
            most
        } else {
            rng.random_range(1..=most)
        };
        let rate = Rate::new(rng.random_range(5..60), ms(rng, 500..2000)).unwrap();
        let algorithm = match rng.random_range(0..4) {
            0 => Algorithm::TokenBucket { burst: None },
            1 => Algorithm::TokenBucket {
                burst: Some(rng.random_range(1..10)),
            },
            2 => Algorithm::SlidingWindow,
            _ => Algorithm::FixedWindow,
        };
        Self {
            rate,
            algorithm,
            length: Duration::from_secs(8),
            replicas: (0..count)
                .map(|_| Life {
                    joins: Duration::ZERO,
                    goes: None,
                    clients: 1,
                    patience: Duration::from_secs(60),
                    cut: Vec::new(),
                    skew: rng.random_range(-20..20) * HOUR / 3,
                })
                .collect(),
            freezes: Vec::new(),
            way: Way {
                delay: 0.05..0.8,
                spikes: (0.0, 1.0),
                loss: 0.0,
                twice: 0.0,
                cut: Vec::new(),
            },
            fail_over: None,
            crowd: None,
            seed,
        }
    }

    /// Returns true if the machine pauses during the run, because refusals may then be late.
    pub(crate) fn frozen(&self) -> bool {
        !self.freezes.is_empty()
    }

    /// Returns the sustained rate of the schedule, in requests per second.
    pub(crate) fn per_second(&self) -> f64 {
        let (n, period) = (
            f64::from(self.rate.count()),
            self.rate.period().as_secs_f64(),
        );
        match self.algorithm {
            Algorithm::TokenBucket { burst: Some(_) } | Algorithm::FixedWindow => n / period,
            Algorithm::SlidingWindow => n / (period + 0.025),
            Algorithm::TokenBucket { burst: None } => n / (period + 0.025),
        }
    }
}
