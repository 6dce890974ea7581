//! Tests of the states of items.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::backoff::Backoff;
use super::*;

fn item(retries: u32) -> Item {
    Item {
        id: Arc::from("i"),
        buffer: 1,
        seq: 1,
        status: ItemStatus::InFlight,
        request: Default::default(),
        kept: 0,
        not_before: 0,
        expires: None,
        attempts: retries + 1,
        retries,
        refusals: 0,
        maybe_duplicate: false,
        finished: None,
        last_status: None,
        last_error: None,
    }
}

fn answered(status: u16, retry_after: Option<u64>) -> AttemptOutcome {
    AttemptOutcome::Answered {
        status,
        retry_after: retry_after.map(Duration::from_secs),
    }
}

fn next(item: &Item, terms: &BufferConfig, status: u16, now: Millis) -> Step {
    step(item, terms, &answered(status, None), now, 0.5)
}

#[test]
fn every_outcome_is_in_the_list() {
    let mut outcomes = vec![
        AttemptOutcome::Held {
            wait: Duration::ZERO,
        },
        AttemptOutcome::Unsent { passing: true },
        AttemptOutcome::Unsent { passing: false },
        AttemptOutcome::Unknown,
        AttemptOutcome::Interrupted,
        answered(429, Some(1)),
    ];
    outcomes.extend((200..600).map(|status| answered(status, None)));
    let terms = BufferConfig::default();
    let words: std::collections::BTreeSet<_> = outcomes
        .iter()
        .flat_map(|outcome| [0, 99].map(|used| step(&item(used), &terms, outcome, 0, 0.5).word))
        .collect();
    assert_eq!(words, OUTCOMES.into_iter().collect());
}

#[test]
fn an_accepted_response_delivers_its_item_and_no_other_one_does() {
    let terms = BufferConfig::default();
    for is_reply in [false, true] {
        let mut it = item(0);
        it.request.reply = is_reply;
        for (status, asked) in (100..600).flat_map(|status| [(status, None), (status, Some(1))]) {
            let next = step(&it, &terms, &answered(status, asked), 0, 0.5);
            let after = asked.map(Duration::from_secs);
            assert_eq!(
                is_accepted(status, after, is_reply),
                next.status == ItemStatus::Delivered,
                "{status} {asked:?} {is_reply}"
            );
        }
    }
}

#[test]
fn a_pause_that_the_origin_asks_for_uses_up_no_retry() {
    let terms = BufferConfig::default();
    let parked = step(&item(5), &terms, &answered(429, Some(7)), 1000, 0.5);
    assert_eq!((parked.status, parked.retries), (ItemStatus::Waiting, 5));
    assert_eq!((parked.not_before, parked.word), (8000, "parked"));
    let unsaid = next(&item(5), &terms, 429, 0);
    assert_eq!((unsaid.status, unsaid.retries), (ItemStatus::Waiting, 5));
    assert!(unsaid.not_before > 0);
}

/// Refuses an item with this response until it ends. Returns the waits and the last step.
fn refuse_forever(terms: &BufferConfig, outcome: &AttemptOutcome) -> (Vec<Millis>, Step) {
    let (mut it, mut now, mut waits) = (item(0), 0, Vec::new());
    loop {
        let next = step(&it, terms, outcome, now, 0.5);
        if !next.status.is_live() || next.block {
            return (waits, next);
        }
        waits.push(next.not_before - now);
        (it.refusals, it.retries, now) = (next.refusals, next.retries, next.not_before);
    }
}

/// Reaches the bound `REFUSALS_MAX`.
/// Reaches the bound `REFUSAL_WAIT_MAX`.
#[test]
fn refusals_without_end_come_ever_more_slowly_and_end_after_days() {
    let hasty = BufferConfig {
        max_retries: 0,
        backoff: Backoff::Fixed { base: 0 },
        ..BufferConfig::default()
    };
    let days = |waits: &[Millis]| waits.iter().sum::<Millis>() as f64 / 86_400_000.0;
    for terms in [&hasty, &BufferConfig::default()] {
        for status in [429, 529] {
            let (waits, last) = refuse_forever(terms, &answered(status, None));
            assert_eq!((last.status, last.word), (ItemStatus::Dead, "exhausted"));
            assert_eq!((last.refusals, waits.len()), (REFUSALS_MAX, 299));
            assert_eq!(waits[..4], [1000, 2000, 4000, 8000]);
            assert!(waits.is_sorted() && days(&waits) > 2.5, "{}", days(&waits));
        }
    }
    let (waits, _) = refuse_forever(&hasty, &answered(429, None));
    assert_eq!(waits.last(), Some(&millis(REFUSAL_WAIT_MAX)));
}

#[test]
fn refusals_that_name_a_time_are_bounded_too() {
    let terms = BufferConfig::default();
    for (status, asked) in [(429, 1), (503, 1), (529, 2), (429, 3600), (429, 100_000)] {
        let (waits, last) = refuse_forever(&terms, &answered(status, Some(asked)));
        assert_eq!((last.status, waits.len()), (ItemStatus::Dead, 299));
        let asked = millis(Duration::from_secs(asked).min(RETRY_AFTER_MAX));
        assert!(waits[..10].iter().all(|wait| *wait == asked), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait >= asked) && waits.is_sorted());
    }
    // A time that is too short does not let the item loop.
    let hasty = AttemptOutcome::Answered {
        status: 429,
        retry_after: Some(Duration::from_nanos(1)),
    };
    let (waits, _) = refuse_forever(&terms, &hasty);
    assert_eq!(waits[0], millis(RETRY_WAIT_MIN));
}

#[test]
fn an_item_that_is_refused_too_often_follows_on_exhausted() {
    for (on_exhausted, status) in [
        (Exhausted::DeadLetter, ItemStatus::Dead),
        (Exhausted::Drop, ItemStatus::Cancelled),
        (Exhausted::Block, ItemStatus::Waiting),
    ] {
        let terms = BufferConfig {
            on_exhausted,
            ..BufferConfig::default()
        };
        let (_, last) = refuse_forever(&terms, &answered(429, None));
        let block = on_exhausted == Exhausted::Block;
        assert_eq!((last.status, last.block), (status, block));
    }
}

#[test]
fn a_failure_waits_for_its_backoff_and_as_long_as_the_origin_asks() {
    let terms = BufferConfig::default();
    let wait = |status, asked, terms: &BufferConfig| {
        let next = step(&item(0), terms, &answered(status, asked), 0, 0.5);
        (next.not_before, next.retries, next.refusals)
    };
    for status in [500, 502, 504, 520, 522, 409, 425] {
        assert_eq!(wait(status, Some(7), &terms), (7000, 1, 0), "{status}");
    }
    assert_eq!(wait(500, None, &terms), (1000, 1, 0));
    assert_eq!(wait(503, None, &terms), (1000, 1, 0));
    let slow = BufferConfig {
        backoff: Backoff::Fixed { base: 60_000 },
        ..BufferConfig::default()
    };
    assert_eq!(wait(500, Some(7), &slow), (60_000, 1, 0));
    let hasty = BufferConfig {
        backoff: Backoff::List { each: vec![0] },
        ..BufferConfig::default()
    };
    assert_eq!(wait(500, None, &hasty), (100, 1, 0));
}

#[test]
fn retries_are_used_up_and_then_it_is_dead_or_blocks_or_is_dropped() {
    let mut terms = BufferConfig {
        max_retries: 2,
        ..BufferConfig::default()
    };
    let first = next(&item(0), &terms, 500, 0);
    assert_eq!((first.status, first.retries), (ItemStatus::Waiting, 1));
    assert_eq!(first.not_before, 1000);
    let last = |terms: &BufferConfig| next(&item(2), terms, 500, 0);
    assert_eq!(last(&terms).status, ItemStatus::Dead);
    terms.on_exhausted = Exhausted::Drop;
    assert_eq!(last(&terms).status, ItemStatus::Cancelled);
    terms.on_exhausted = Exhausted::Block;
    assert!(last(&terms).block && last(&terms).status == ItemStatus::Waiting);
}

#[test]
fn a_status_of_pause_on_pauses_the_buffer_and_keeps_the_item() {
    let terms = BufferConfig {
        pause_on: vec![401, 403, 500],
        on_exhausted: Exhausted::Drop,
        max_retries: 0,
        ..BufferConfig::default()
    };
    for status in [401, 403, 500] {
        let kept = next(&item(0), &terms, status, 7);
        assert_eq!((kept.status, kept.retries), (ItemStatus::Waiting, 0));
        let reason = kept.pause_reason("itm_1", Some(status)).unwrap();
        assert_eq!(
            reason,
            format!("the origin responded {status} to item itm_1")
        );
    }
    assert_eq!(next(&item(0), &terms, 404, 7).status, ItemStatus::Dead);
    // A client waits for this response, so it gets it.
    let mut awaited = item(0);
    awaited.request.reply = true;
    assert_eq!(next(&awaited, &terms, 401, 7).status, ItemStatus::Delivered);
}

#[test]
fn an_unknown_outcome_follows_the_guarantee() {
    let mut terms = BufferConfig::default();
    let again = step(&item(0), &terms, &AttemptOutcome::Interrupted, 5, 0.5);
    assert!(again.maybe_duplicate && again.status == ItemStatus::Waiting && again.retries == 0);
    terms.guarantee = Guarantee::AtMostOnce;
    let never = step(&item(0), &terms, &AttemptOutcome::Unknown, 5, 0.5);
    assert_eq!(never.status, ItemStatus::Dead);
    assert!(!never.maybe_duplicate);
}

#[test]
fn what_is_wrong_stays_wrong_and_what_expires_is_over() {
    let terms = BufferConfig::default();
    let ends = |item: &Item, status, now| next(item, &terms, status, now).status;
    assert_eq!(ends(&item(0), 400, 0), ItemStatus::Dead);
    let mut short = item(0);
    short.expires = Some(500);
    assert_eq!(ends(&short, 500, 0), ItemStatus::Expired);
    assert_eq!(ends(&short, 204, 900), ItemStatus::Delivered);
}

proptest! {
    /// An item reaches a final state within its retries, however often it fails, and is never
    /// sent early. Each attempt uses up a retry or counts as a refusal.
    #[test]
    fn every_item_comes_to_an_end(statuses in prop::collection::vec(300_u16..600, 10..20), draw in 0.0..1.0) {
        let terms = BufferConfig { max_retries: 4, ..BufferConfig::default() };
        let (mut it, mut now) = (item(0), 0);
        for (count, status) in (1..).zip(statuses) {
            let next = step(&it, &terms, &answered(status, None), now, draw);
            prop_assert!(next.not_before >= now + 100 || !next.status.is_live());
            if !next.status.is_live() {
                return Ok(());
            }
            (it.retries, it.refusals, now) = (next.retries, next.refusals, next.not_before);
            prop_assert_eq!(it.retries + it.refusals, count);
        }
    }
}
