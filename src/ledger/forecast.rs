//! Forecasts for newcomers, from the schedules that are known without a call.

use std::borrow::Cow;
use std::sync::Arc;

use super::call::spec_of;
use super::{Ahead, Forecast};
use crate::clock::Instant;
use crate::policy::{Scope, Target};
use crate::schedule::Schedule;

/// The whole of a rate, in millionths.
pub(super) const WHOLE: i64 = 1_000_000;

/// Estimates the instant at which a request of `scope` could be sent after the requests `ahead` of
/// it, not before `from` and while `share` millionths of each rate are available.
///
/// `known` returns the schedule of a limit and key, and true if its numbers are in force even if the
/// caller's policy has other numbers. Otherwise other numbers are adopted first. A schedule that it
/// does not know counts as unused.
pub(super) fn forecast<'a>(
    target: &Target,
    scope: &Scope,
    ahead: &[Ahead],
    (from, share): (Instant, i64),
    mut known: impl FnMut(&Arc<str>, Option<&Arc<str>>) -> Option<(&'a Schedule, bool)>,
) -> Forecast {
    let mut forecast = Forecast {
        at: from,
        clear: from,
        held_by: None,
    };
    for index in scope.limits.iter() {
        let ahead = ahead.get(index).map_or(0, |ahead| ahead.units);
        let at = forecast_by(target, scope, (index, ahead), (from, share), &mut known);
        forecast.delay(at.unwrap_or(from), index);
    }
    forecast
}

/// Estimates like [`forecast`] for the limit at one position alone, with the units ahead in it.
/// Returns `None` for permits.
pub(super) fn forecast_by<'a>(
    target: &Target,
    scope: &Scope,
    (index, ahead): (usize, i64),
    (from, share): (Instant, i64),
    known: &mut impl FnMut(&Arc<str>, Option<&Arc<str>>) -> Option<(&'a Schedule, bool)>,
) -> Option<Instant> {
    let limit = target.limits.get(index)?;
    let spec = spec_of(limit.bound);
    let fresh = Schedule::unused(spec)?;
    let cost = scope.cost(index);
    Some(match known(&limit.name, scope.shared_key(index)) {
        Some((schedule, in_force)) if in_force || schedule.spec() == spec => {
            at_share(schedule, share).forecast(from, ahead, cost)
        }
        Some((schedule, _)) => {
            let changed = schedule.clone().adopt(fresh, from);
            at_share(&changed, share).forecast(from, ahead, cost)
        }
        None => at_share(&fresh, share).forecast(from, ahead, cost),
    })
}

impl Forecast {
    /// Moves the forecast to `at` if that is later, because of the limit at this position.
    pub(super) fn delay(&mut self, at: Instant, limit: usize) {
        if at > self.at {
            *self = Self {
                at,
                clear: at,
                held_by: Some(limit),
            };
        }
    }
}

/// Returns the schedule at a share of its rate. The whole rate needs no copy.
fn at_share(schedule: &Schedule, share: i64) -> Cow<'_, Schedule> {
    match share {
        WHOLE => Cow::Borrowed(schedule),
        share => Cow::Owned(schedule.at_share(share)),
    }
}
