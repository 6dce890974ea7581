//! Settlements of estimates that were too high, against an origin that counts the true costs.

use proptest::prelude::*;

use super::*;

const START: i64 = 1_700_000_000_123_456_789;
const MILLISECOND: i64 = 1_000_000;

/// 100 units per second, by each algorithm.
const SPECS: [Spec; 3] = [
    Spec::Token {
        interval: 10 * MILLISECOND,
        tolerance: 99 * 10 * MILLISECOND,
        period: 1000 * MILLISECOND,
    },
    Spec::Sliding {
        n: 100,
        window: 1000 * MILLISECOND,
    },
    Spec::Fixed {
        n: 100,
        window: 1000 * MILLISECOND,
        guard: 0,
    },
];

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

/// The first slot sends nothing, and its units come back while the bucket is busy. The instant at
/// which a booking finds the known costs just used up is a start, too.
#[test]
fn p1_pace_a_slot_that_sent_nothing_returns_no_unit_that_the_origin_lacks() {
    for (void, rest) in [
        (
            (0, 6, 0, 166),
            [
                (41, 32, 94, 262),
                (0, 33, 76, 1),
                (0, 22, 100, 1),
                (0, 36, 100, 1),
                (0, 1, 100, 1),
            ],
        ),
        (
            (0, 18, 0, 490),
            [
                (26, 31, 100, 1),
                (310, 22, 100, 1),
                (0, 49, 100, 1),
                (0, 44, 100, 1),
                (0, 1, 100, 1),
            ],
        ),
        (
            (0, 50, 0, 300),
            [
                (200, 50, 20, 10),
                (0, 50, 100, 10),
                (0, 50, 100, 10),
                (0, 20, 50, 900),
                (0, 30, 100, 1),
            ],
        ),
    ] {
        let requests: Vec<Asked> = std::iter::once(void).chain(rest).collect();
        for spec in SPECS {
            assert_eq!(refused(spec, &requests), None, "{spec:?} {void:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn p1_pace_costs_below_their_estimates_return_no_unit_that_the_origin_lacks(
        requests in requests()
    ) {
        for spec in SPECS {
            prop_assert_eq!(refused(spec, &requests), None, "{:?}", spec);
        }
    }
}
