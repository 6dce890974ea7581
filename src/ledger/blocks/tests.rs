//! Tests of the blocks of one target.

use super::*;

fn at(seconds: i64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

fn of_key(key: &str) -> BlockScope {
    BlockScope {
        limit: Some("l".into()),
        key: Some(key.into()),
        credential: None,
    }
}

fn of_credential(digest: &str) -> BlockScope {
    BlockScope {
        credential: Some(digest.into()),
        ..BlockScope::default()
    }
}

fn block(scope: BlockScope, until: i64) -> ScopedBlock {
    ScopedBlock {
        scope,
        since: at(1),
        until: at(until),
        asked: Instant::ZERO,
        longer: false,
        cause: BlockCause::default(),
        rest: Instant::ZERO,
    }
}

#[test]
fn p7_one_probe_leaves_per_block_and_other_keys_are_free() {
    let mut blocks = TargetBlocks::default();
    assert_eq!(
        blocks.impose(block(of_key("a"), 10), at(1)),
        Some(of_key("a"))
    );
    assert_eq!(blocks.claim(&of_key("a"), at(2)), BlockClaim::Wait(at(10)));
    assert_eq!(blocks.claim(&of_key("b"), at(2)), BlockClaim::Open);
    assert_eq!(
        blocks.claim(&of_key("a"), at(10)),
        BlockClaim::Probe(at(10))
    );
    let rest = at(10) + PROBE_PATIENCE;
    assert_eq!(blocks.claim(&of_key("a"), at(10)), BlockClaim::Wait(rest));
    // The probe is refused, so the next interval begins.
    assert_eq!(
        blocks.impose(block(of_key("a"), 20), at(11)),
        Some(of_key("a"))
    );
    assert!(!blocks.end_probe(&of_key("a"), at(10), true));
    assert_eq!(blocks.claim(&of_key("a"), at(12)), BlockClaim::Wait(at(20)));
    assert_eq!(
        blocks.claim(&of_key("a"), at(21)),
        BlockClaim::Probe(at(20))
    );
    assert!(blocks.end_probe(&of_key("a"), at(20), true));
    assert_eq!(blocks.claim(&of_key("a"), at(21)), BlockClaim::Open);
}

#[test]
fn p7_a_probe_that_never_left_or_got_no_answer_is_replaced() {
    let mut blocks = TargetBlocks::default();
    blocks.impose(block(of_key("a"), 10), at(1));
    blocks.claim(&of_key("a"), at(10));
    assert!(blocks.end_probe(&of_key("a"), at(10), false));
    assert_eq!(
        blocks.claim(&of_key("a"), at(10)),
        BlockClaim::Probe(at(10))
    );
    let later = at(10) + PROBE_PATIENCE;
    assert_eq!(blocks.claim(&of_key("a"), later), BlockClaim::Probe(at(10)));
}

#[test]
fn p7_late_refusals_only_extend() {
    let mut blocks = TargetBlocks::default();
    blocks.impose(block(of_key("a"), 10), at(1));
    assert_eq!(blocks.impose(block(of_key("a"), 9), at(2)), None);
    assert_eq!(blocks.impose(block(of_key("a"), 3), at(4)), None);
    assert_eq!(
        blocks.impose(block(of_key("a"), 11), at(2)),
        Some(of_key("a"))
    );
}

#[test]
fn p7_a_second_credential_within_the_block_widens_it() {
    let mut blocks = TargetBlocks::default();
    blocks.impose(block(of_credential("a"), 10), at(1));
    // The same credential and a credential after the block widen nothing.
    let same = blocks.impose(block(of_credential("a"), 12), at(2));
    assert_eq!(same, Some(of_credential("a")));
    let after = blocks.clone().impose(block(of_credential("b"), 20), at(13));
    assert_eq!(after, Some(of_credential("b")));
    let wide = blocks.impose(block(of_credential("b"), 20), at(3));
    assert_eq!(wide, Some(BlockScope::default()));
    assert!(wide.is_some_and(|wide| wide.is_target()));
    assert_eq!(blocks.all().len(), 1);
}

#[test]
fn p7_a_widened_block_never_shortens_the_wide_one() {
    let of_limit = BlockScope {
        limit: Some("l".into()),
        ..BlockScope::default()
    };
    for wide in [BlockScope::default(), of_limit, of_key("k")] {
        let of_credential = |digest: &str| BlockScope {
            credential: Some(digest.into()),
            ..wide.clone()
        };
        let mut blocks = TargetBlocks::default();
        blocks.impose(block(wide.clone(), 30), at(1));
        blocks.impose(block(of_credential("a"), 10), at(2));
        let widened = blocks.impose(block(of_credential("b"), 12), at(3));
        assert_eq!((widened, blocks.all().len()), (None, 1));
        assert_eq!(blocks.get(&wide).map(|block| block.until), Some(at(30)));
    }
}

/// Reaches the bound `BLOCKS_MAX`.
#[test]
fn p14_bounds_keys_that_rotate_make_a_bounded_number_of_blocks() {
    let mut blocks = TargetBlocks::default();
    let most = i64::try_from(BLOCKS_MAX).unwrap();
    for number in 0..most + 5 {
        blocks.impose(block(of_key(&number.to_string()), 100 + number), at(1));
    }
    assert_eq!(blocks.len(), BLOCKS_MAX);
    // The blocks that end first make room.
    assert_eq!(blocks.get(&of_key("4")), None);
    assert!(blocks.get(&of_key("5")).is_some());
    blocks.sweep(at(101 + most + 5) + BLOCK_KEPT + Duration::from_secs(1));
    assert_eq!(blocks.len(), 0);
}

#[test]
fn p7_a_late_report_of_a_refusal_does_not_undo_a_lift() {
    let mut blocks = TargetBlocks::default();
    blocks.impose(block(of_key("a"), 10), at(1));
    assert_eq!(blocks.lift(&BlockFilter::default(), at(2)).len(), 1);
    for (since, known) in [(1, false), (2, false), (3, true)] {
        let late = ScopedBlock {
            since: at(since),
            ..block(of_key("a"), 10)
        };
        assert_eq!(blocks.impose(late, at(3)).is_some(), known, "{since}");
    }
}

#[test]
fn p7_an_operator_lifts_one_block_or_all() {
    let lift = |limit: Option<&str>, keys: &[&str]| {
        let mut blocks = TargetBlocks::default();
        for scope in [
            of_key("a"),
            of_key("b"),
            of_credential("c"),
            BlockScope::default(),
        ] {
            blocks.impose(block(scope, 10), at(1));
        }
        let filter = BlockFilter {
            limit: limit.map(Into::into),
            keys: keys.iter().map(|key| (*key).into()).collect(),
        };
        blocks.lift(&filter, at(2)).len()
    };
    for (limit, keys, lifted) in [
        (None, &[][..], 4),
        (Some("l"), &[], 2),
        (Some("l"), &["a"], 1),
        (None, &["c"], 1),
        (Some("m"), &[], 0),
    ] {
        assert_eq!(lift(limit, keys), lifted, "{limit:?} {keys:?}");
    }
}
