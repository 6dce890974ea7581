//! `GET /v1/buffers/{id}/stats`: the items of a buffer, its first item and what it waits for, and an
//! estimate of the time after which the buffer is empty.

use std::sync::Arc;
use std::time::Duration;

use super::spool::{item_view, time};
use super::views::{SpoolUse, StatsReply};
use super::{Answered, ApiCall, SpoolHandle, json as answer};
use crate::bounds::LATE_MAX;
use crate::delivery::head_of;
use crate::exchange::{Error, Reason};
use crate::policy::RequestView;
use crate::semantics::own_credential;
use crate::spool::{Buffer, Item, ItemStatus, Millis, waiting};

/// Waits that a target imposes on the items of a buffer.
#[derive(Debug, Default)]
struct TargetWait {
    /// Time until a block of the next item's scope ends, or zero.
    blocked: Duration,
    /// Time until the limits let the next item leave.
    first: Duration,
    /// Time between the next item and the last one at the pace of the limits.
    spread: Duration,
}

impl SpoolHandle {
    pub(super) async fn stats(&self, call: &ApiCall<'_>, buffer: &Buffer) -> Answered {
        if !call.sees_all_items(buffer) {
            return Err(Error::new(
                Reason::OperatorsOnly,
                "the figures of a buffer of the configuration are about the items of all clients",
            ));
        }
        let counts = self.store.counts(buffer.number).await?;
        let now = self.store.now();
        let heads = self.store.next_items(buffer.number, now, true, 1).await?;
        let first = heads.first();
        let target = target_wait(call, buffer, waiting(&counts));
        let wait = self.item_wait(buffer, first, now).await?;
        let empty = empty_in(buffer, waiting(&counts), wait, &target);
        Ok(answer(&StatsReply {
            buffer: Arc::clone(&buffer.id),
            items: counts.into(),
            head: first.map(|item| item_view(item, Some(buffer))),
            head_waits_for: first.map(|item| reason(buffer, item, now, &target)),
            oldest_at: first.map(|item| time(item.kept)),
            rate_limit: buffer.terms.rate_limit,
            empty_in_s: empty.map(|wait| wait.as_secs_f64()),
            spool: self.used_by(call),
        }))
    }

    /// Returns the use of the spool by the caller, or by all for an operator.
    fn used_by(&self, call: &ApiCall<'_>) -> SpoolUse {
        let usage = self.store.usage();
        let account = call.account();
        let clients = usage.clients.iter();
        let mut own = clients.filter(|(name, _)| Some(name) == account.client.as_ref());
        let own = own.next().map(|(_, own)| *own).unwrap_or_default();
        match &account.client {
            Some(_) => SpoolUse::Client {
                bytes: own.bytes,
                max_bytes: account
                    .share
                    .max
                    .map_or(usage.max, |max| max.min(usage.max)),
                items: own.items,
                max_items: account.share.items,
            },
            None => SpoolUse::All {
                bytes: usage.used,
                max_bytes: usage.max,
            },
        }
    }

    /// Returns the time until the next item is due, because of its delay, backoff or `Retry-After`.
    async fn item_wait(
        &self,
        buffer: &Buffer,
        first: Option<&Item>,
        now: Millis,
    ) -> Result<Duration, Error> {
        let due = match buffer.terms.concurrency {
            0 | 1 => first.cloned(),
            // Without an order the items that are due go first.
            _ => {
                let next = self.store.next_items(buffer.number, now, false, 1);
                next.await?.into_iter().next()
            }
        };
        let due = due.filter(|item| item.status != ItemStatus::InFlight);
        let wait = due.map_or(0, |item| item.not_before.saturating_sub(now));
        Ok(Duration::from_millis(u64::try_from(wait).unwrap_or(0)))
    }
}

/// Returns the reason for which the first item of a buffer is not delivered yet.
fn reason(buffer: &Buffer, item: &Item, now: Millis, target: &TargetWait) -> &'static str {
    match item.status {
        _ if buffer.paused.is_some() => "paused",
        ItemStatus::InFlight => "in_flight",
        _ if item.not_before > now && item.last_status == Some(429) => "retry_after",
        _ if item.not_before > now && item.attempts > 0 => "backoff",
        _ if item.not_before > now => "delay",
        _ if !target.blocked.is_zero() => "block",
        _ if !target.first.is_zero() => "limit",
        _ => "rate",
    }
}

/// Estimates the time after which a buffer is empty. It counts the waits of the next item, the
/// buffer's own rate and the limits and blocks of the target, and not the time of the origin's
/// responses. `None` for a paused buffer.
fn empty_in(buffer: &Buffer, left: u64, wait: Duration, target: &TargetWait) -> Option<Duration> {
    if left == 0 {
        return Some(Duration::ZERO);
    }
    if buffer.paused.is_some() {
        return None;
    }
    let rate = buffer.terms.rate_limit;
    let own = rate.and_then(|rate| Duration::try_from_secs_f64(left as f64 / rate).ok());
    let pace = own.unwrap_or_default().max(target.spread);
    Some(wait.max(target.blocked).max(target.first) + pace)
}

/// Returns the waits that the target of a buffer's URL imposes, as far as they do not depend on the
/// bodies of the items.
fn target_wait(call: &ApiCall<'_>, buffer: &Buffer, left: u64) -> TargetWait {
    let none = TargetWait::default();
    let Ok((origin, head)) = head_of(&buffer.terms) else {
        return none;
    };
    let exchange = call.exchange;
    let target = call.policy.target(&origin.host, origin.port);
    let Some(target) = target.filter(|target| !target.observe && left > 0) else {
        return none;
    };
    let asked = RequestView {
        host: Some(&origin.host),
        body_bytes: Some(0),
        learned: Some(&exchange.pacer.cost_means().estimates),
        ..RequestView::of_head(&head)
    };
    let scope = target.scope(&asked, &exchange.pacer.key_secret());
    let scope = match target.deliveries {
        Some(lane) => scope.in_lane(lane),
        None => scope,
    };
    let replaced = |name: &http::HeaderName| target.set_headers.iter().any(|(set, _)| set == name);
    let credential = own_credential(&head.headers, replaced);
    let now = exchange.clock.now();
    let block = exchange.pacer.block_of(target, &scope, credential);
    let of = |requests| exchange.pacer.forecast_last(target, &scope, requests);
    let first = of(1);
    // A slot that is due within this time counts as one for now.
    let is_later = first > now + LATE_MAX;
    TargetWait {
        blocked: block.map_or(Duration::ZERO, |block| block.next_attempt().since(now)),
        first: first.since(if is_later { now } else { first }),
        spread: of(left).since(first.max(now)),
    }
}
