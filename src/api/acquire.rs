//! Slots and permits for work that is not an HTTP request through outpace.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::open_work::OpenWork;
use super::views::{AcquireReply, ReleaseReply, RenewReply};
use super::{Answered, Api, ApiCall, bad, json};
use crate::bounds::{COST_MAX, OPEN_WORK, PERMIT_HOLD, PERMIT_HOLD_MAX};
use crate::clock::{Clock, Instant};
use crate::exchange::{ClientIdentity, Error, Reason, Record};
use crate::pace::{Ticket, Turn};
use crate::policy::{Bound, LimitKey, Scope, Target, Work};
use crate::shares::Share;
use crate::spool::DurationSpec;
use crate::sync::lock;

/// Body of a call of `acquire`. All fields are optional.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AcquireRequest {
    key: KeyOfWork,
    lane: Option<String>,
    cost: Option<u32>,
    max_wait: Option<DurationSpec>,
    hold: Option<DurationSpec>,
}

/// Value for the keyed limits, or a list of values for keys of several parts.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(untagged)]
enum KeyOfWork {
    #[default]
    None,
    One(String),
    Several(Vec<String>),
}

impl KeyOfWork {
    fn values(&self) -> &[String] {
        match self {
            Self::None => &[],
            Self::One(value) => std::slice::from_ref(value),
            Self::Several(values) => values,
        }
    }
}

pub(super) fn duration(name: &str, spec: Option<&DurationSpec>) -> Result<Option<Duration>, Error> {
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

/// Work that holds no permit of a `concurrent` limit, by the client that acquired it.
pub(super) type KeptWork = Arc<Mutex<OpenWork<Option<Arc<str>>, HeldPermit>>>;

/// Permits that workers hold. A permit that is not renewed in time is released automatically.
pub(super) type HeldPermits = Arc<Mutex<HashMap<String, HeldPermit>>>;

#[derive(Debug)]
pub(super) struct HeldPermit {
    pub(super) target: Arc<str>,
    /// Client that acquired the permit, or `None` in a configuration without clients.
    client: Option<Arc<str>>,
    /// Share of the client, or `None` if it may acquire all permits.
    share: Option<Share>,
    /// Turn of the worker. Dropping it returns the permits of all limits.
    pub(super) turn: Turn,
    expires: Instant,
}

impl HeldPermit {
    /// Returns true if the caller acquired this permit for the target. To others it does not exist.
    pub(super) fn belongs_to(&self, call: &ApiCall<'_>, target: &Target) -> bool {
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
            key: asked.key.values(),
            lane: asked.lane.as_deref(),
            cost: asked.cost,
        };
        let scope = target
            .scope_of_work(&work, &exchange.pacer.key_secret())
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
            share: call.client.share.clone(),
            credential: None,
            probes: Vec::new(),
        };
        let permits = Permits {
            target,
            scope: &ticket.scope,
            client: call.client,
            now: arrived,
        };
        permits.check_share(&lock(&self.held))?;
        let turn = exchange.turn(&ticket, record).await?;
        let (id, now) = (exchange.random.name(), exchange.clock.now());
        let holding = HeldPermit {
            target: Arc::clone(&target.name),
            client: call.client.name.clone(),
            share: call.client.share.clone(),
            turn,
            expires: now + hold,
        };
        let is_kept = if target.has_permits(ticket.scope.limits) {
            let mut held = lock(&self.held);
            // Another call of the client may have acquired the last permit of its share meanwhile.
            permits.check_share(&held)?;
            held.insert(id.clone(), holding);
            drop(held);
            let watching = watch(Arc::clone(&self.held), id.clone(), exchange.clock.clone());
            exchange.tasks.spawn_detached(watching);
            true
        } else {
            let share = call.client.share.as_ref();
            let most = share.map_or(OPEN_WORK as u64, |share| share.of(OPEN_WORK as u64));
            let most = usize::try_from(most).unwrap_or(OPEN_WORK);
            let (owner, times) = (call.client.name.clone(), (now, holding.expires));
            lock(&self.open).insert((id.clone(), owner, holding), most, times)
        };
        let id = is_kept.then_some(id);
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
        self.with_held(call, target, &named.permit, |_| ())?;
        let counted = lock(&self.held).remove(&named.permit);
        let open = lock(&self.open).remove(&named.permit);
        // The drop happens outside the locks, because it calls the ledger.
        drop((counted, open));
        Ok(json(&ReleaseReply { released: true }))
    }

    pub(super) fn renew(
        &self,
        call: &ApiCall<'_>,
        target: &Target,
        named: &PermitName,
    ) -> Answered {
        let hold = hold_time(named.hold.as_ref())?;
        let expires = call.exchange.clock.now() + hold;
        self.with_held(call, target, &named.permit, |held| held.expires = expires)?;
        lock(&self.open).renew(&named.permit, expires);
        let expires_in = hold.as_secs_f64();
        Ok(json(&RenewReply { expires_in }))
    }
}

impl Api {
    /// Calls `then` with the caller's permit of this name. To others it does not exist.
    pub(super) fn with_held<R>(
        &self,
        call: &ApiCall<'_>,
        target: &Target,
        permit: &str,
        then: impl FnOnce(&mut HeldPermit) -> R,
    ) -> Result<R, Error> {
        let now = call.exchange.clock.now();
        let (mut held, mut open) = (lock(&self.held), lock(&self.open));
        let found = match held.get_mut(permit) {
            None => open.get(permit, now),
            found => found,
        };
        let own = found.filter(|held| held.belongs_to(call, target));
        own.map(then).ok_or_else(|| unknown(target))
    }
}

/// Permits of some work that a client asks for or holds.
struct Permits<'a> {
    target: &'a Arc<Target>,
    scope: &'a Scope,
    client: &'a ClientIdentity,
    now: Instant,
}

impl Permits<'_> {
    /// Refuses a client that holds its share of the permits already.
    fn check_share(&self, held: &HashMap<String, HeldPermit>) -> Result<(), Error> {
        let Some(share) = &self.client.share else {
            return Ok(());
        };
        for (index, most) in self.concurrent() {
            let (own, expires) = self.own(held, index);
            if own >= share.of(u64::from(most)) {
                return Err(self.refusal(index, own, most, expires));
            }
        }
        Ok(())
    }

    /// Returns the positions of the limits with permits, each with the number of its permits. A limit
    /// that counts each client separately is shared with no other client.
    fn concurrent(&self) -> impl Iterator<Item = (usize, u32)> {
        self.scope.limits.iter().filter_map(|index| {
            let limit = self.target.limits.get(index)?;
            let by_client = limit.key.as_ref().is_some_and(LimitKey::is_client);
            match limit.bound {
                Bound::Concurrent(most) if !by_client => Some((index, most)),
                _ => None,
            }
        })
    }

    /// Returns the number of permits of the limit that the client has acquired, and the instant at
    /// which the first of them expires.
    fn own(&self, held: &HashMap<String, HeldPermit>, index: usize) -> (u64, Instant) {
        let limit = self.target.limits.get(index);
        let name = limit.map_or("", |limit| &*limit.name);
        let holder = self.client.share.as_ref().map(|share| &share.holder);
        let is_own = |held: &HeldPermit| held.share.as_ref().map(|share| &share.holder) == holder;
        let own = held.values().filter(|held| {
            held.target == self.target.name
                && is_own(held)
                && held.turn.holds(name, self.scope.key(index))
        });
        own.fold((0, Instant::FAR), |(count, expires), held| {
            (count + 1, expires.min(held.expires))
        })
    }

    fn refusal(&self, index: usize, own: u64, most: u32, expires: Instant) -> Error {
        let limit = self.target.limits.get(index);
        let limit = limit.map(|limit| Arc::clone(&limit.name));
        let client = self.client.share.as_ref();
        let detail = format!(
            "client `{}` holds {own} of {most} permits of limit `{}` of target `{}` by `acquire`; release one of them",
            client.map_or("-", |share| &share.holder),
            limit.as_deref().unwrap_or("-"),
            self.target.name,
        );
        let mut error = Error::new(Reason::ClientShareFull, detail);
        error.limit = limit;
        error.after(expires.since(self.now))
    }
}

fn unknown(target: &Target) -> Error {
    let detail = format!(
        "target `{}` has no such permit here: it was released or has expired; acquire a new one",
        target.name
    );
    Error::new(Reason::NoSuchPermit, detail)
}
