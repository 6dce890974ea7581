//! The ledger mode, which is the source of bookings for each state of the connection. Pure
//! functions.
//!
//! A disconnected replica may use its fallback share only after all other replicas have noticed its
//! silence, because they do not reserve the share before. They notice it at most `silent` after the
//! last heartbeat that the store received. That heartbeat is not later than its reply. A heartbeat
//! that was sent without a reply may be later, so it counts from the end of its call. After
//! `share_for` the reservation ends, and the operator's choice applies.

use std::time::Duration;

use super::super::outage::{OnOutage, Outage};
use crate::bounds::{FAULT_LOG, HORIZON_MAX, OUTAGE_LOG};
use crate::clock::Instant;

/// Divisor of the maximum clock drift between two machines, so the drift is at most one thousandth.
const DRIFT: u32 = 1000;

/// The source of bookings, which depends on the connection to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LedgerMode {
    /// The store, because it answers.
    Connected,
    /// No source until this instant at least, so requests are held.
    Holding(Instant),
    /// The fallback share of this replica.
    Fallback {
        /// Share of each limit, in millionths.
        share_ppm: i64,
        /// Instant from which the other replicas leave the share unused.
        noticed: Instant,
    },
    /// No source, because requests are sent at once and without limits.
    Unlimited,
}

/// The state of the connection to the store. All its transitions are methods of this type.
///
/// ```text
/// Never ─ heartbeat ─► Up ─ failed, unsure ─► Down ─ reconnecting ─► Returning ─ heartbeat ─► Up
///                                              ▲                        │
///                                              └──── failed, unsure ────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkState {
    /// The store has not been reached since the start of the process.
    Never,
    /// The store answers calls and heartbeats.
    Up,
    /// The store has received no heartbeat since this instant.
    Down(Instant),
    /// The store answers again after an outage that began at this instant. The replica is reporting
    /// the usage from fallback mode.
    Returning(Instant),
}

impl LinkState {
    /// Returns the state after a call that failed at `now`. An outage continues, because the other
    /// replicas have noticed this silence.
    pub(super) const fn failed(self, now: Instant) -> Self {
        match self {
            Self::Up => Self::Down(now),
            Self::Returning(since) => Self::Down(since),
            Self::Never | Self::Down(_) => self,
        }
    }

    /// Returns the state after a heartbeat without a reply at `now`. The store may have received it,
    /// so the other replicas have to notice the silence again.
    pub(super) const fn unsure(self, now: Instant) -> Self {
        match self {
            Self::Up | Self::Returning(_) | Self::Down(_) => Self::Down(now),
            Self::Never => self,
        }
    }

    /// Returns the state while the replica reports its usage before it is connected again.
    pub(super) const fn reconnecting(self) -> Self {
        match self {
            Self::Down(since) => Self::Returning(since),
            Self::Never | Self::Up | Self::Returning(_) => self,
        }
    }

    /// Returns the start of the outage, or `None` without one or before the first connection.
    pub(super) const fn since(self) -> Option<Instant> {
        match self {
            Self::Down(since) | Self::Returning(since) => Some(since),
            Self::Never | Self::Up => None,
        }
    }

    /// Returns true if the store answers calls.
    pub(super) fn is_up(self) -> bool {
        self == Self::Up
    }
}

/// The warnings about an unreachable store, which are bounded in number.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    /// Instant of the last warning.
    warned: Option<Instant>,
    /// True while no warning has been logged for the present outage.
    is_unlogged: bool,
    /// Instant at which the present outage began with the end of a connection.
    deferred: Option<Instant>,
}

impl FailureLog {
    /// Returns true if the warning about an ended connection is left to a later failure, whose error
    /// tells the reason. Connections that keep ending are logged after [`OUTAGE_LOG`].
    pub(super) fn defers(&mut self, newly: bool, now: Instant) -> bool {
        self.is_unlogged |= newly;
        if newly {
            self.deferred = Some(now);
        }
        self.deferred
            .is_some_and(|first| now.since(first) < OUTAGE_LOG)
    }

    /// Returns true if a failure at `now` is logged. The first failure of an outage has `newly`. An
    /// outage shortly after the last warning is logged by a later failure, if it lasts that long.
    pub(super) fn admits(&mut self, newly: bool, now: Instant) -> bool {
        self.is_unlogged |= newly;
        let gap = if self.is_unlogged {
            OUTAGE_LOG
        } else {
            FAULT_LOG
        };
        if self.warned.is_some_and(|last| now.since(last) < gap) {
            return false;
        }
        *self = Self {
            warned: Some(now),
            is_unlogged: false,
            deferred: self.deferred,
        };
        true
    }
}

/// The fallback share from the last heartbeat reply, with the time until it may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct FallbackShare {
    /// Share of each limit, in millionths.
    pub(super) ppm: i64,
    /// Time without a heartbeat after which other replicas count this one as silent.
    pub(super) silent: Duration,
}

impl FallbackShare {
    /// Returns the instant at which all other replicas have noticed a silence that began at
    /// `since`. Slots that they had booked ahead by then are used up at that instant as well.
    pub(super) fn noticed(&self, since: Instant) -> Instant {
        since + self.silent + self.silent / DRIFT + HORIZON_MAX * 2
    }
}

/// Returns the source of bookings at `now`. While a heartbeat is in flight, its outcome decides.
pub(super) fn mode(
    link: LinkState,
    share: FallbackShare,
    outage: &Outage,
    now: Instant,
) -> LedgerMode {
    let fallback = |share_ppm, noticed| LedgerMode::Fallback { share_ppm, noticed };
    let since = match link {
        LinkState::Down(since) => since,
        LinkState::Up => return LedgerMode::Connected,
        LinkState::Never if outage.bootstrap_ppm > 0 => return fallback(outage.bootstrap_ppm, now),
        LinkState::Never | LinkState::Returning(_) => return LedgerMode::Holding(Instant::FAR),
    };
    let noticed = share.noticed(since);
    // The other replicas count from the last heartbeat that the store received. It may be older
    // than `since`, so the share ends here earlier than in the store.
    let unsure = share.silent * 2 + outage.share_for / DRIFT;
    let kept = noticed + outage.share_for.saturating_sub(unsure);
    if now < noticed {
        return LedgerMode::Holding(noticed);
    }
    if share.ppm > 0 && (now < kept || outage.then == OnOutage::Share) {
        return fallback(share.ppm, noticed);
    }
    match outage.then {
        OnOutage::Share | OnOutage::Open if now < kept => LedgerMode::Holding(kept),
        OnOutage::Share | OnOutage::Closed => LedgerMode::Holding(Instant::FAR),
        OnOutage::Open => LedgerMode::Unlimited,
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

    const HELD: LedgerMode = LedgerMode::Holding(Instant::FAR);
    const PROMISE: FallbackShare = FallbackShare {
        ppm: 250_000,
        silent: Duration::from_secs(2),
    };

    #[test]
    fn p12_predictable_first_silence_then_the_share_then_the_operators_choice() {
        let cut = LinkState::Down(at(100));
        let stand = |then, now| mode(cut, PROMISE, &outage(then), at(now));
        let noticed = PROMISE.noticed(at(100));
        let share_ppm = 250_000;
        let fallback = LedgerMode::Fallback { share_ppm, noticed };
        for then in [OnOutage::Share, OnOutage::Closed, OnOutage::Open] {
            assert!(matches!(stand(then, 101), LedgerMode::Holding(_)));
            assert_eq!(stand(then, 103), fallback);
            assert_eq!(stand(then, 150), fallback);
        }
        assert_eq!(stand(OnOutage::Share, 1000), fallback);
        assert_eq!(stand(OnOutage::Closed, 1000), HELD);
        assert_eq!(stand(OnOutage::Open, 1000), LedgerMode::Unlimited);
    }

    #[test]
    fn p12_predictable_a_failed_return_continues_the_same_outage() {
        let down = LinkState::Up.failed(at(100));
        assert_eq!(down, LinkState::Down(at(100)));
        assert_eq!(down.failed(at(105)), down);
        let returning = down.reconnecting();
        assert_eq!(returning, LinkState::Returning(at(100)));
        assert_eq!(returning.failed(at(110)), down);
        assert_eq!(LinkState::Never.failed(at(1)), LinkState::Never);
        assert_eq!(LinkState::Up.reconnecting(), LinkState::Up);
    }

    #[test]
    fn p1_pace_a_heartbeat_without_a_reply_begins_the_silence_anew() {
        let down = LinkState::Down(at(100));
        for state in [LinkState::Up, down, down.reconnecting()] {
            assert_eq!(state.unsure(at(110)), LinkState::Down(at(110)));
        }
        assert_eq!(LinkState::Never.unsure(at(1)), LinkState::Never);
    }

    /// Reaches the bound `OUTAGE_LOG`.
    #[test]
    fn p12_predictable_each_outage_is_logged_and_a_flapping_store_fills_no_log() {
        let mut log = FailureLog::default();
        assert!(log.admits(true, at(100)));
        assert!(!log.admits(false, at(101)));
        // The second outage within a minute is logged, and its repetition is not.
        assert!(log.admits(true, at(105)));
        assert!(!log.admits(false, at(164)));
        assert!(log.admits(false, at(165)));
        let half = |count: i64| Instant::from_nanos(200_000_000_000 + count * 500_000_000);
        assert!(log.admits(true, half(0)));
        // A failure within a second is logged later if the outage lasts.
        assert!(!log.admits(true, half(1)));
        assert!(log.admits(false, half(2)));
        let lines = (4..24).filter(|count| log.admits(true, half(*count)));
        assert_eq!(lines.count(), 10);
    }

    #[test]
    fn who_never_reached_the_store_has_no_promise() {
        let never = |outage: &Outage| mode(LinkState::Never, PROMISE, outage, at(5));
        let mut outage = outage(OnOutage::Open);
        assert_eq!(never(&outage), HELD);
        outage.bootstrap_ppm = 100_000;
        let share = LedgerMode::Fallback {
            share_ppm: 100_000,
            noticed: at(5),
        };
        assert_eq!(never(&outage), share);
    }
}
