//! Cost of a request to a limit with many keys, compared with that of one with few.

use super::load::Way;
use super::setup::Setup;
use super::{Result, cost, say, spread};

/// Numbers of distinct keys. Both targets have the same limit, and no key is ever forgotten.
pub(crate) const FEW: usize = 10;
pub(crate) const MANY: usize = 40_000;

/// Connections of the load.
const CLIENTS: usize = 32;

/// Measures pairs of runs, one with few keys and one with many. The order within a pair alternates.
pub(crate) fn compare(setup: &Setup, seconds: usize, rounds: usize) -> Result<()> {
    let run = |keys: usize, seconds: usize| {
        let way = if keys == FEW {
            Way::FewKeys
        } else {
            Way::ManyKeys
        };
        cost(setup, way, CLIENTS, seconds)
    };
    // Each key must be in use before the first pair.
    run(FEW, seconds)?;
    let (mut sent, mut warm_up) = (0.0, 0);
    while sent < 2.0 * MANY as f64 {
        let figure = run(MANY, seconds)?;
        sent += figure.rate * seconds as f64;
        warm_up += 1;
    }
    let mut pairs = Vec::new();
    for round in 0..rounds {
        let pair = if round % 2 == 0 {
            let few = run(FEW, seconds)?;
            [few, run(MANY, seconds)?]
        } else {
            let many = run(MANY, seconds)?;
            [run(FEW, seconds)?, many]
        };
        pairs.push(pair);
    }
    let [low, ratio, high] = spread(pairs.iter().map(|[few, many]| many.cpu / few.cpu));
    let cpu = |index: usize| spread(pairs.iter().map(|pair| pair[index].cpu))[1];
    say(&format!(
        "{MANY} keys: CPU per request over that with {FEW} keys: {ratio:.2} ({low:.2} to {high:.2}); \
         {:.1} µs and {:.1} µs, {rounds} pairs of {seconds} s after {warm_up} runs\n",
        cpu(1),
        cpu(0),
    ))
}
