//! Figures of a shared ledger for the metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::call::spec_of;
use super::SharedState;
use super::fallback::at_share;
use super::link::Link;
use super::mode::LedgerMode;
use crate::policy::Target;
use crate::schedule::Spec;
use crate::sync::lock;
use crate::telemetry::LedgerFigures;

impl<L: Link> SharedState<L> {
    /// Returns the numbers of each limit as the present source of bookings has them.
    pub(super) fn in_force(&self, target: &Arc<Target>) -> Vec<Option<Spec>> {
        let mode = self.mode();
        let handle = self.handle(&target.name);
        let view = handle.view();
        let limits = target.limits.iter().map(|limit| {
            let pin = view.pins.get(&limit.name).copied();
            let whole = pin.unwrap_or_else(|| spec_of(limit.bound));
            match mode {
                LedgerMode::Connected => Some(whole),
                LedgerMode::Holding(_) => Some(Spec::Permits { n: 0 }),
                LedgerMode::Fallback { share_ppm, .. } => Some(at_share(whole, share_ppm)),
                LedgerMode::Unlimited => None,
            }
        });
        limits.collect()
    }

    /// Returns the state of the connection to the store.
    pub(super) fn figures(&self) -> LedgerFigures {
        let mode = match self.mode() {
            LedgerMode::Connected => "connected",
            LedgerMode::Holding(_) => "holding",
            LedgerMode::Fallback { .. } => "fallback",
            LedgerMode::Unlimited => "unlimited",
        };
        let fleet = lock(&self.fleet);
        let store = self.store();
        LedgerFigures {
            silent: i64::try_from(fleet.silent.len()).unwrap_or(i64::MAX),
            reserved: fleet.reserved_ppm as f64 / 1e6,
            mode,
            replicas: self.live.load(Ordering::Relaxed),
            share: store.share.ppm as f64 / 1e6,
            clock_offset: store.offset.ahead() as f64 / 1e9,
        }
    }
}
