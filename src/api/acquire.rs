//! Turns for work that is no HTTP request through us.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Api, Call, json};
use crate::bounds::{PERMIT_HOLD, PERMIT_HOLD_MAX};
use crate::clock::{Clock, Instant};
use crate::exchange::{Body, Error, Reason, Record};
use crate::pace::{Ticket, Turn};
use crate::policy::{Target, Work};
use crate::units::parse_duration;

/// What `acquire` is asked with.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Acquire {
    key: Option<String>,
    lane: Option<String>,
    cost: Option<u32>,
    max_wait: Option<Span>,
    hold: Option<Span>,
}

/// A duration with its unit, or seconds.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Span {
    Seconds(f64),
    Text(String),
}

impl Span {
    fn read(&self, name: &str) -> Result<Duration, Error> {
        let read = match self {
            Self::Seconds(seconds) => {
                Duration::try_from_secs_f64(*seconds).map_err(|error| error.to_string())
            }
            Self::Text(text) => parse_duration(text),
        };
        read.map_err(|error| {
            let detail = format!(
                "`{name}` is not understood: {error}; write it as \"30s\" or as a number of seconds"
            );
            Error::new(Reason::MalformedRequest, detail)
        })
    }
}

/// What names a permit.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    permit: String,
    #[serde(default)]
    hold: Option<Span>,
}

#[derive(Serialize)]
struct Acquired<'a> {
    target: &'a str,
    waited: f64,
    /// To be released; none where no limit counts how many run at once.
    permit: Option<&'a str>,
    expires_in: Option<f64>,
}

/// Permits that workers hold. One that is not renewed comes back by itself.
#[derive(Debug, Default)]
pub struct Held(Arc<Mutex<HashMap<String, Holding>>>);

#[derive(Debug)]
struct Holding {
    target: Arc<str>,
    /// Its end gives the permits back.
    _turn: Turn,
    expires: Instant,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Holding>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the permit back when its time is over.
    async fn watch(self, id: String, clock: Clock) {
        loop {
            let Some(expires) = self.lock().get(&id).map(|held| held.expires) else {
                return;
            };
            if expires <= clock.now() {
                self.lock().remove(&id);
                tracing::warn!(permit = id, "a permit was not renewed; it is free again");
                return;
            }
            clock.sleep_until(expires).await;
        }
    }
}

impl Api {
    pub(super) async fn acquire(
        &self,
        call: &Call<'_>,
        target: &Arc<Target>,
        asked: Acquire,
        record: &mut Record,
    ) -> Result<Response<Body>, Error> {
        let exchange = call.exchange;
        let work = Work {
            caller: call.sender.caller(),
            key: asked.key.as_deref(),
            lane: asked.lane.as_deref(),
            cost: asked.cost,
        };
        let scope = target
            .scope_of_work(&work)
            .map_err(|error| Error::new(Reason::NoSuchScope, error.to_string()))?;
        let wait = asked
            .max_wait
            .map(|span| span.read("max_wait"))
            .transpose()?;
        let hold = asked.hold.map(|span| span.read("hold")).transpose()?;
        let hold = hold.unwrap_or(PERMIT_HOLD).min(PERMIT_HOLD_MAX);
        let arrived = exchange.clock.now();
        let patience = wait.unwrap_or(target.max_wait).min(target.max_wait);
        let ticket = Ticket {
            target: Arc::clone(target),
            scope,
            arrived,
            deadline: arrived + patience,
        };
        let turn = exchange.turn(&ticket, record).await?;
        let holds = target.has_permits(ticket.scope.limits);
        let id = holds.then(|| exchange.random.name());
        if let Some(id) = &id {
            let expires = exchange.clock.now() + hold;
            let holding = Holding {
                target: Arc::clone(&target.name),
                _turn: turn,
                expires,
            };
            self.held.lock().insert(id.clone(), holding);
            let watching = Held(Arc::clone(&self.held.0)).watch(id.clone(), exchange.clock.clone());
            drop(exchange.tasks.spawn_until_drained(watching));
        }
        Ok(json(&Acquired {
            target: &target.name,
            waited: record.waited.as_secs_f64(),
            permit: id.as_deref(),
            expires_in: id.as_ref().map(|_| hold.as_secs_f64()),
        }))
    }

    pub(super) fn release(
        &self,
        target: &Arc<Target>,
        named: &Named,
    ) -> Result<Response<Body>, Error> {
        let mut held = self.held.lock();
        let known = held
            .get(&named.permit)
            .is_some_and(|held| held.target == target.name);
        if !known {
            return Err(unknown(target));
        }
        let holding = held.remove(&named.permit);
        drop(held);
        // Outside the lock: it tells the ledger.
        drop(holding);
        Ok(json(&serde_json::json!({ "released": true })))
    }

    pub(super) fn renew(
        &self,
        call: &Call<'_>,
        target: &Arc<Target>,
        named: &Named,
    ) -> Result<Response<Body>, Error> {
        let hold = named
            .hold
            .as_ref()
            .map(|span| span.read("hold"))
            .transpose()?;
        let hold = hold.unwrap_or(PERMIT_HOLD).min(PERMIT_HOLD_MAX);
        let mut held = self.held.lock();
        let holding = held
            .get_mut(&named.permit)
            .filter(|held| held.target == target.name);
        let holding = holding.ok_or_else(|| unknown(target))?;
        holding.expires = call.exchange.clock.now() + hold;
        Ok(json(
            &serde_json::json!({ "expires_in": hold.as_secs_f64() }),
        ))
    }
}

fn unknown(target: &Target) -> Error {
    let detail = format!(
        "no such permit of target `{}` is held here: it was released or has expired",
        target.name
    );
    Error::new(Reason::NoSuchCall, detail)
}
