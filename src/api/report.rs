//! Report of a worker about work that it acquired: what the work cost, and whether its origin refused
//! it. So work in any language feeds the same budgets and blocks as requests through outpace.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use super::acquire::duration;
use super::views::ReportReply;
use super::{Answered, Api, ApiCall, bad};
use crate::bounds::COST_MAX;
use crate::exchange::Error;
use crate::policy::Target;
use crate::spool::DurationSpec;

/// Body of a call of `report`. All fields but `permit` are optional.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkReport {
    permit: String,
    #[serde(default)]
    cost: Option<ReportedCost>,
    #[serde(default)]
    limited: bool,
    #[serde(default)]
    retry_after: Option<DurationSpec>,
}

/// Units that the work has used.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum ReportedCost {
    /// Units of each limit with a `cost`.
    All(u32),
    /// Units by the name of a limit with a `cost`.
    Limits(BTreeMap<String, u32>),
}

impl ReportedCost {
    /// Returns the units for a limit, or `None` if its estimate stays.
    fn of(&self, limit: &str) -> Option<i64> {
        match self {
            Self::All(units) => Some((*units).into()),
            Self::Limits(units) => units.get(limit).map(|units| (*units).into()),
        }
    }

    /// Checks that all numbers are in range, and that each named limit has a cost.
    fn check(&self, target: &Target) -> Result<(), Error> {
        let costed = || target.limits.iter().filter(|limit| limit.cost.is_some());
        let units: Vec<u32> = match self {
            Self::All(units) => vec![*units],
            Self::Limits(limits) => limits.values().copied().collect(),
        };
        if units.iter().any(|units| *units > COST_MAX) {
            return Err(bad(format!("`cost` is a number from 0 to {COST_MAX}")));
        }
        let Self::Limits(limits) = self else {
            return Ok(());
        };
        let is_unknown = |name: &&String| !costed().any(|limit| *limit.name == ***name);
        let Some(unknown) = limits.keys().find(is_unknown) else {
            return Ok(());
        };
        let known: Vec<&str> = costed().map(|limit| &*limit.name).collect();
        Err(bad(format!(
            "target `{}` has no limit `{unknown}` with a `cost`; those limits are: {}",
            target.name,
            if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            }
        )))
    }
}

impl Api {
    pub(super) fn report(
        &self,
        call: &ApiCall<'_>,
        target: &Arc<Target>,
        report: &WorkReport,
    ) -> Answered {
        if let Some(cost) = &report.cost {
            cost.check(target)?;
        }
        let after = duration("retry_after", report.retry_after.as_ref())?;
        if after.is_some() && !report.limited {
            return Err(bad("`retry_after` needs `limited: true`"));
        }
        let (scope, booked, settled) = self.with_held(call, target, &report.permit, |held| {
            // The positions in the scope are those of the policy under which the work was booked.
            let booked = Arc::clone(held.turn.target());
            let name = |index: usize| booked.limits.get(index).map(|limit| &*limit.name);
            if !report.limited {
                held.turn.answered();
            }
            held.turn
                .settle_again(|index, _| report.cost.as_ref()?.of(name(index)?));
            let scope = held.turn.scope().clone();
            let costs = held.turn.costs();
            let costs = costs.filter_map(|(index, _)| Some((name(index)?, scope.cost(index))));
            let costs: BTreeMap<String, i64> = costs
                .map(|(name, units)| (name.to_owned(), units))
                .collect();
            (scope, booked, costs)
        })?;
        let blocked = report
            .limited
            .then(|| call.exchange.refuse_work(&booked, &scope, after));
        let (scope, wait) = blocked.unzip();
        Ok(super::json(&ReportReply {
            target: &target.name,
            cost: settled,
            blocked: scope.map(|scope| scope.to_string()),
            blocked_for: wait.map(|wait| wait.as_secs_f64()),
        }))
    }
}
