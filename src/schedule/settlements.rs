//! Settlements of estimates that were too high, against an origin that counts the true costs.

use proptest::prelude::*;

use super::*;

const START: i64 = 1_700_000_000_123_456_789;
const MILLISECOND: i64 = 1_000_000;

/// A request: the pause before it, its estimate, its true cost in per cent of that, and the time
/// until its settlement.
type Asked = (i64, i64, i64, i64);

fn requests() -> impl Strategy<Value = Vec<Asked>> {
    // A cost of zero is a slot that sent nothing.
    let used = prop_oneof![Just(0), 1..100_i64, Just(100)];
    prop::collection::vec((0..400_i64, 1..60_i64, used, 1..900_i64), 1..120)
}

/// Sends the requests as early as the schedule allows, and settles each. Returns the first one that
/// an origin with the same numbers would refuse, which counts true costs alone.
fn refused(spec: Spec, requests: &[Asked]) -> Option<(i64, i64)> {
    let mut ours = Schedule::unused(spec)?;
    ours.expect_settlements();
    let mut origin = Schedule::unused(spec)?;
    let mut now = START;
    let mut due: Vec<(i64, CostChange)> = Vec::new();
    for (pause, estimate, percent, later) in requests {
        now += pause * MILLISECOND;
        loop {
            let at = ours.earliest(Instant::from_nanos(now), *estimate);
            due.sort_by_key(|(at, _)| *at);
            let Some((settled, change)) = due.first().filter(|(when, _)| *when <= at.as_nanos())
            else {
                now = at.as_nanos();
                break;
            };
            now = now.max(*settled);
            ours.correct(*change, Instant::from_nanos(now));
            due.remove(0);
        }
        let (at, used) = (Instant::from_nanos(now), estimate * percent / 100);
        ours.book(at, *estimate);
        due.push((
            now + later * MILLISECOND,
            CostChange::of(used - estimate, used, at),
        ));
        if used > 0 {
            if origin.earliest(at, used) > at {
                return Some((now - START, used));
            }
            origin.book(at, used);
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn p1_pace_costs_below_their_estimates_return_no_unit_that_the_origin_lacks(
        requests in requests()
    ) {
        let window = 1000 * MILLISECOND;
        for spec in [
            Spec::Token { interval: 10 * MILLISECOND, tolerance: 99 * 10 * MILLISECOND, period: window },
            Spec::Sliding { n: 100, window },
            Spec::Fixed { n: 100, window, guard: 0 },
        ] {
            prop_assert_eq!(refused(spec, &requests), None, "{:?}", spec);
        }
    }
}
