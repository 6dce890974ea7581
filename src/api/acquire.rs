//! Slots and permits for work that is not an HTTP request through outpace.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Answered, Api, ApiCall, bad, json};
use crate::bounds::{COST_MAX, PERMIT_HOLD, PERMIT_HOLD_MAX};
use crate::clock::{Clock, Instant};
use crate::exchange::{Error, Reason, Record};
use crate::pace::{Ticket, Turn};
use crate::policy::{Target, Work};
use crate::spool::DurationSpec;
use crate::sync::lock;

/// Body of a call of `acquire`. All fields are optional.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AcquireRequest {
    key: Option<String>,
    lane: Option<String>,
    cost: Option<u32>,
    max_wait: Option<DurationSpec>,
    hold: Option<DurationSpec>,
}

fn duration(name: &str, spec: Option<&DurationSpec>) -> Result<Option<Duration>, Error> {
    let read = spec.map(DurationSpec::read).transpose();
    read.map_err(|error| bad(format!("`{name}` is invalid: {error}")))
}

fn hold_time(spec: Option<&DurationSpec>) -> Result<Duration, Error> {
    let hold = duration("hold", spec)?.unwrap_or(PERMIT_HOLD);
    Ok(hold.min(PERMIT_HOLD_MAX))
}

/// Body of a call of `release` or `renew`, which names a permit.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PermitName {
    permit: String,
    #[serde(default)]
    hold: Option<DurationSpec>,
}

#[derive(Serialize)]
struct AcquireReply<'a> {
    target: &'a str,
    waited: f64,
    /// Permit to renew and release, or null if no limit counts concurrent work.
    permit: Option<&'a str>,
    expires_in: Option<f64>,
}

/// Permits that workers hold. A permit that is not renewed in time is released automatically.
pub(super) type HeldPermits = Arc<Mutex<HashMap<String, HeldPermit>>>;

#[derive(Debug)]
pub(super) struct HeldPermit {
    target: Arc<str>,
    /// Client that acquired the permit, or `None` in a configuration without clients.
    client: Option<Arc<str>>,
    /// Turn of the worker. Dropping it returns the permits of all limits.
    _turn: Turn,
    expires: Instant,
}

impl HeldPermit {
    /// Returns true if the caller acquired this permit for the target. To others it does not exist.
    fn belongs_to(&self, call: &ApiCall<'_>, target: &Target) -> bool {
        self.target == target.name && self.client == call.client.name
    }
}

/// Waits until the hold time of a permit is over, and then releases the permit.
async fn watch(held: HeldPermits, id: String, clock: Clock) {
    loop {
        let Some(expires) = lock(&held).get(&id).map(|held| held.expires) else {
            return;
        };
        if expires <= clock.now() {
            lock(&held).remove(&id);
            tracing::warn!(
                permit = id,
                "a permit was not renewed in time; it was released"
            );
            return;
        }
        clock.sleep_until(expires).await;
    }
}

impl Api {
    pub(super) async fn acquire(
        &self,
        call: &ApiCall<'_>,
        target: &Arc<Target>,
        asked: AcquireRequest,
        record: &mut Record,
    ) -> Answered {
        let exchange = call.exchange;
        if asked
            .cost
            .is_some_and(|cost| !(1..=COST_MAX).contains(&cost))
        {
            return Err(bad(format!("`cost` is a number from 1 to {COST_MAX}")));
        }
        let work = Work {
            caller: call.client.caller(),
            key: asked.key.as_deref(),
            lane: asked.lane.as_deref(),
            cost: asked.cost,
        };
        let scope = target
            .scope_of_work(&work)
            .map_err(|error| Error::new(Reason::NoSuchScope, error.to_string()))?;
        let wait = duration("max_wait", asked.max_wait.as_ref())?;
        let hold = hold_time(asked.hold.as_ref())?;
        let arrived = exchange.clock.now();
        let max_wait = wait.unwrap_or(target.max_wait).min(target.max_wait);
        let ticket = Ticket {
            target: Arc::clone(target),
            scope,
            arrived,
            deadline: arrived + max_wait,
        };
        let turn = exchange.turn(&ticket, record).await?;
        let holds = target.has_permits(ticket.scope.limits);
        let id = holds.then(|| exchange.random.name());
        if let Some(id) = &id {
            let expires = exchange.clock.now() + hold;
            let holding = HeldPermit {
                target: Arc::clone(&target.name),
                client: call.client.name.clone(),
                _turn: turn,
                expires,
            };
            lock(&self.held).insert(id.clone(), holding);
            let watching = watch(Arc::clone(&self.held), id.clone(), exchange.clock.clone());
            exchange.tasks.spawn_detached(watching);
        }
        Ok(json(&AcquireReply {
            target: &target.name,
            waited: record.waited.as_secs_f64(),
            permit: id.as_deref(),
            expires_in: id.as_ref().map(|_| hold.as_secs_f64()),
        }))
    }

    pub(super) fn release(
        &self,
        call: &ApiCall<'_>,
        target: &Target,
        named: &PermitName,
    ) -> Answered {
        let mut held = lock(&self.held);
        let known = held.get(&named.permit);
        if !known.is_some_and(|held| held.belongs_to(call, target)) {
            return Err(unknown(target));
        }
        let holding = held.remove(&named.permit);
        drop(held);
        // The drop happens outside the lock, because it calls the ledger.
        drop(holding);
        Ok(json(&serde_json::json!({ "released": true })))
    }

    pub(super) fn renew(
        &self,
        call: &ApiCall<'_>,
        target: &Target,
        named: &PermitName,
    ) -> Answered {
        let hold = hold_time(named.hold.as_ref())?;
        let mut held = lock(&self.held);
        let holding = held.get_mut(&named.permit);
        let holding = holding.filter(|held| held.belongs_to(call, target));
        holding.ok_or_else(|| unknown(target))?.expires = call.exchange.clock.now() + hold;
        let reply = serde_json::json!({ "expires_in": hold.as_secs_f64() });
        Ok(json(&reply))
    }
}

fn unknown(target: &Target) -> Error {
    let detail = format!(
        "target `{}` has no such permit here: it was released or has expired; acquire a new one",
        target.name
    );
    Error::new(Reason::NoSuchCall, detail)
}
