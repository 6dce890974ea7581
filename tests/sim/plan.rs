//! What will happen in a world of several replicas: joins, leaves, cuts, clocks that are hours apart.

use std::time::Duration;

use outpace::policy::Algorithm;
use outpace::units::Rate;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::store::Way;

const HOUR: i64 = 3_600_000_000_000;

/// What will happen.
pub(crate) struct Plan {
    pub(crate) rate: Rate,
    pub(crate) algorithm: Algorithm,
    pub(crate) length: Duration,
    pub(crate) replicas: Vec<Life>,
    /// When the machine stands still, and for how long.
    pub(crate) freezes: Vec<(Duration, Duration)>,
    pub(crate) way: Way,
    /// When another server takes over, and how much of the past it lacks.
    pub(crate) fail_over: Option<(Duration, Duration)>,
    /// When all clients come at once, each with one request.
    pub(crate) crowd: Option<Duration>,
    pub(crate) seed: u64,
}

/// One replica's life.
#[derive(Clone)]
pub(crate) struct Life {
    pub(crate) joins: Duration,
    /// When it goes, and whether it says goodbye.
    pub(crate) goes: Option<(Duration, bool)>,
    pub(crate) clients: usize,
    pub(crate) patience: Duration,
    /// When it is cut off.
    pub(crate) cut: Vec<(Duration, Duration)>,
    /// How far its clock is from the store's.
    pub(crate) skew: i64,
}

pub(crate) fn ms(rng: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

impl Plan {
    /// Anything may happen.
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
                let from = ms(&mut rng, 0..length);
                life.cut = vec![(from, from + ms(&mut rng, 100..8000))];
            }
        }
        if rng.random_bool(0.3) {
            let from = ms(&mut rng, 0..length);
            plan.way.cut = vec![(from, from + ms(&mut rng, 100..8000))];
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

    /// Nothing but demand: replicas all want more than there is.
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

    /// Everybody is cut off in the middle.
    pub(crate) fn outage(seed: u64) -> Self {
        let mut plan = Self::saturated(seed * 20 + 7);
        plan.length = Duration::from_secs(26);
        plan.way.cut = vec![(Duration::from_secs(5), Duration::from_secs(20))];
        plan
    }

    /// Between two requests of a replica that is cut off: its share is in whole requests per period, evenly
    /// spread, with room for those that are late. `None` if that is less than one.
    pub(crate) fn alone_interval(&self) -> Option<f64> {
        let whole = self.rate.count() as usize / self.replicas.len();
        (whole > 0).then(|| self.spread() / whole as f64)
    }

    /// The period with room for those that are late: by the calendar, for clocks that differ; without a burst,
    /// the bucket's own room besides.
    fn spread(&self) -> f64 {
        let period = self.rate.period().as_secs_f64();
        match self.algorithm {
            Algorithm::FixedWindow => period + (period / 20.0).max(0.025),
            Algorithm::TokenBucket { burst: None } => period + 0.05,
            Algorithm::SlidingWindow | Algorithm::TokenBucket { .. } => period + 0.025,
        }
    }

    /// When a replica's share begins, whose silence is over after so many seconds: by windows, one window
    /// later, since the others may have used the first.
    pub(crate) fn alone_from(&self, silence: f64) -> f64 {
        match self.algorithm {
            Algorithm::TokenBucket { .. } => silence,
            Algorithm::SlidingWindow | Algorithm::FixedWindow => silence + self.spread(),
        }
    }

    /// The store's server is lost, and another goes on without the last moments. Everybody is cut off
    /// for a while, or nobody notices before the next answer.
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
            plan.way.cut = vec![(at, at + ms(&mut rng, 1..3000))];
        }
        plan
    }

    /// Many more come at once, to several replicas, than can be served within their patience; each serves more
    /// than a few of them.
    pub(crate) fn crowd(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plan = Self::calm(seed, &mut rng, 6);
        plan.rate = Rate::new(rng.random_range(100..400), Duration::from_secs(1)).unwrap();
        plan.algorithm = Algorithm::TokenBucket { burst: Some(1) };
        plan.crowd = Some(Duration::from_secs(3));
        // As far as a database in the next zone.
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

    /// How many of a crowd can be served.
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

    /// Whether the machine stands still, so that nobody can be told anything.
    pub(crate) fn frozen(&self) -> bool {
        !self.freezes.is_empty()
    }

    /// What the schedule lets leave per second.
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
