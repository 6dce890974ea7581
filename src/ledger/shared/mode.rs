//! How this replica stands to the store: connected, cut off and waiting, or on its own. Pure.
//!
//! A replica that is cut off may use the share that was promised to it, but only once the others have
//! surely noticed: they keep it for it from the moment it counts as silent. That is `silent` after its
//! last sign of life was heard, which cannot be later than when the failure was noticed here. After
//! `share_for` the others stop; then the operator's choice counts.

use std::time::Duration;

use super::super::outage::{OnOutage, Outage};
use crate::bounds::HORIZON_MAX;
use crate::clock::Instant;

/// Clocks of two machines run apart by less than this part of what they measure.
const DRIFT: u32 = 1000;

/// Where bookings come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LedgerMode {
    /// From the store.
    Connected,
    /// From nowhere, until this instant at least.
    Holding(Instant),
    /// From our own share, in millionths.
    Fallback(i64),
    /// Without a pace.
    Unlimited,
}

/// What is known of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkState {
    /// The store has not been reached yet.
    Never,
    /// It answers.
    Up,
    /// It did not answer at this instant, and has not since.
    Down(Instant),
    /// It answers again, and is being told what was done meanwhile.
    Returning(Instant),
}

/// The promise of the last sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct FallbackShare {
    /// The share, in millionths.
    pub(super) ppm: i64,
    /// After how long the others notice our silence.
    pub(super) silent: Duration,
}

impl FallbackShare {
    /// When the others have surely noticed our silence that began at `since`, and what they had booked
    /// ahead by then is over.
    pub(super) fn noticed(&self, since: Instant) -> Instant {
        since + self.silent + self.silent / DRIFT + HORIZON_MAX * 2
    }
}

/// Where bookings come from now.
pub(super) fn mode(
    connection: LinkState,
    share: FallbackShare,
    outage: &Outage,
    now: Instant,
) -> LedgerMode {
    let since = match connection {
        LinkState::Up => return LedgerMode::Connected,
        LinkState::Never if outage.bootstrap_ppm > 0 => {
            return LedgerMode::Fallback(outage.bootstrap_ppm);
        }
        LinkState::Never | LinkState::Returning(_) => return LedgerMode::Holding(Instant::FAR),
        LinkState::Down(since) => since,
    };
    let noticed = share.noticed(since);
    // The others count from when they heard us last, which may be as early as a failure before.
    let kept = noticed
        + outage
            .share_for
            .saturating_sub(share.silent * 2 + outage.share_for / DRIFT);
    if now < noticed {
        LedgerMode::Holding(noticed)
    } else if now < kept && share.ppm > 0 {
        LedgerMode::Fallback(share.ppm)
    } else {
        match outage.then {
            OnOutage::Share if share.ppm > 0 => LedgerMode::Fallback(share.ppm),
            OnOutage::Share if now < kept => LedgerMode::Holding(kept),
            OnOutage::Share | OnOutage::Closed => LedgerMode::Holding(Instant::FAR),
            OnOutage::Open if now < kept => LedgerMode::Holding(kept),
            OnOutage::Open => LedgerMode::Unlimited,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outage(then: OnOutage) -> Outage {
        Outage {
            then,
            share_for: Duration::from_secs(60),
            bootstrap_ppm: 0,
        }
    }

    fn at(seconds: i64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    const PROMISE: FallbackShare = FallbackShare {
        ppm: 250_000,
        silent: Duration::from_secs(2),
    };

    #[test]
    fn p12_predictable_first_silence_then_the_share_then_the_operators_choice() {
        let cut = LinkState::Down(at(100));
        let stand = |then, now| mode(cut, PROMISE, &outage(then), at(now));
        for then in [OnOutage::Share, OnOutage::Closed, OnOutage::Open] {
            assert!(matches!(stand(then, 101), LedgerMode::Holding(_)));
            assert_eq!(stand(then, 103), LedgerMode::Fallback(250_000));
            assert_eq!(stand(then, 150), LedgerMode::Fallback(250_000));
        }
        assert_eq!(stand(OnOutage::Share, 1000), LedgerMode::Fallback(250_000));
        assert_eq!(
            stand(OnOutage::Closed, 1000),
            LedgerMode::Holding(Instant::FAR)
        );
        assert_eq!(stand(OnOutage::Open, 1000), LedgerMode::Unlimited);
    }

    #[test]
    fn who_never_reached_the_store_has_no_promise() {
        let never = |outage: &Outage| mode(LinkState::Never, PROMISE, outage, at(5));
        let mut outage = outage(OnOutage::Open);
        assert_eq!(never(&outage), LedgerMode::Holding(Instant::FAR));
        outage.bootstrap_ppm = 100_000;
        assert_eq!(never(&outage), LedgerMode::Fallback(100_000));
    }
}
