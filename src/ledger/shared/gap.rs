//! Meaning of an outage for the requests of a target, in words and as a [`LedgerGap`].

use std::sync::Arc;

use super::super::LedgerGap;
use super::super::call::spec_of;
use super::SharedState;
use super::link::Link;
use super::mode::LedgerMode;
use crate::clock::Instant;
use crate::policy::{LimitSet, Target};
use crate::schedule::{Schedule, Spec, whole_share};
use crate::sync::lock;

impl<L: Link> SharedState<L> {
    /// Returns the source of the bookings of a target in words.
    pub(super) fn mode_in_words(&self, target: &Target) -> String {
        match self.mode() {
            LedgerMode::Connected => self.fleet_in_words(),
            LedgerMode::Holding(_) => "disconnected: requests are held".to_owned(),
            LedgerMode::Fallback { share_ppm: ppm, .. } => {
                let share = ppm as f64 / 1e4;
                let all = (0..target.limits.len()).filter(|index| is_nothing(target, *index, ppm));
                let names: Vec<&str> = all
                    .filter_map(|index| Some(&*target.limits.get(index)?.name))
                    .collect();
                match names.is_empty() {
                    true => format!("disconnected: fallback share of {share} %"),
                    false => format!(
                        "disconnected: fallback share of {share} %, which is nothing of {}",
                        names.join(", ")
                    ),
                }
            }
            LedgerMode::Unlimited => "disconnected: requests are sent without limits".to_owned(),
        }
    }

    /// Returns the mode and the error of the last failed call, or `None` while the store answers.
    pub(super) fn outage(&self) -> Option<String> {
        let cause = Arc::clone(&lock(&self.failure));
        let effect = match self.mode() {
            LedgerMode::Connected => return None,
            _ => self.effect(),
        };
        match cause.is_empty() {
            true => Some(effect),
            false => Some(format!("{effect}: {cause}")),
        }
    }

    /// Returns the effect of an outage on requests, in words.
    pub(super) fn effect(&self) -> String {
        match self.mode() {
            LedgerMode::Connected => "none".to_owned(),
            LedgerMode::Holding(until) if until < Instant::FAR => {
                "requests are held until the fallback share begins".to_owned()
            }
            LedgerMode::Holding(_) => "requests are held".to_owned(),
            LedgerMode::Fallback { share_ppm, .. } => {
                format!("fallback share of {} %", share_ppm as f64 / 1e4)
            }
            LedgerMode::Unlimited => "requests are sent without limits".to_owned(),
        }
    }

    /// Returns the reason why no request with these limits can be booked now.
    pub(super) fn gap(&self, target: &Target, limits: LimitSet) -> Option<LedgerGap> {
        let (until, zero) = match self.mode() {
            LedgerMode::Connected | LedgerMode::Unlimited => return None,
            LedgerMode::Holding(until) => (Some(until).filter(|until| *until < Instant::FAR), None),
            LedgerMode::Fallback { share_ppm, .. } => {
                let zero = limits
                    .iter()
                    .find(|index| is_nothing(target, *index, share_ppm));
                (None, Some(zero?))
            }
        };
        let since = self.link_state.borrow().since();
        let cause = Arc::clone(&lock(&self.failure));
        Some(LedgerGap {
            since,
            until,
            zero,
            cause,
        })
    }
}

/// Returns true if this share of the limit at a position is less than one unit or permit.
fn is_nothing(target: &Target, limit: usize, share_ppm: i64) -> bool {
    let Some(limit) = target.limits.get(limit) else {
        return false;
    };
    match spec_of(limit.bound) {
        Spec::Permits { n } => whole_share(n, share_ppm) == 0,
        spec => Schedule::unused(spec)
            .is_some_and(|schedule| schedule.at_fallback_share(share_ppm).is_none()),
    }
}
