//! Settlement of a request's costs by the usage that its response states.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, Response, StatusCode};

use super::Exchange;
use super::plan::Plan;
use crate::bounds::{DECODED_SLICE, EXAMINED_AT_ONCE};
use crate::content::{ReaderState, Unread, UsageReader};
use crate::json::JsonPointers;
use crate::pace::Turn;
use crate::policy::{Cost, CostMeans, Expression, Source};
use crate::telemetry::Metrics;

/// Reader of the usage in one response, which settles the costs of its request at the end.
#[derive(Debug)]
pub(super) struct UsageSettler {
    head: UsageHead,
    reader: UsageReader,
}

/// Facts that are known with the head of the response.
#[derive(Debug)]
struct UsageHead {
    status: StatusCode,
    /// Numbers in the fields that costs read.
    fields: Vec<(HeaderName, i64)>,
    /// Estimates before they were scaled, with the positions of their limits.
    bases: Vec<(usize, i64)>,
    means: Arc<CostMeans>,
    metrics: Metrics,
}

fn needs_body(cost: &Cost) -> bool {
    cost.settle.as_ref().is_some_and(Expression::needs_body)
}

/// Returns the numbers in the fields that the costs of this turn read.
fn fields(turn: &Turn, headers: &HeaderMap) -> Vec<(HeaderName, i64)> {
    let expressions = turn.costs().filter_map(|(_, cost)| cost.settle.as_ref());
    let sources = expressions.flat_map(Expression::sources);
    let numbers = sources.filter_map(|source| match source {
        Source::Header(name) => Some((name.clone(), source.number_in_head(headers)?)),
        _ => None,
    });
    numbers.collect()
}

impl Exchange {
    /// Settles the costs that depend on the head of a response alone. Returns the reader of the
    /// others, or `None` if there are none.
    pub(super) fn usage<B>(
        &self,
        plan: &Plan<'_>,
        turn: &Turn,
        response: &Response<B>,
    ) -> Option<Box<UsageSettler>> {
        turn.costs().next()?;
        let headers = response.headers();
        let head = UsageHead {
            status: response.status(),
            fields: fields(turn, headers),
            bases: plan.bases.clone(),
            means: Arc::clone(self.pacer.cost_means()),
            metrics: self.metrics.clone(),
        };
        head.settle(turn, |cost| !needs_body(cost), &|_| None, Unread::Absent);
        let pointers = turn.costs().filter_map(|(_, cost)| cost.settle.as_ref());
        let pointers = JsonPointers::new(pointers.flat_map(Expression::pointers))?;
        if pointers.is_empty() {
            return None;
        }
        let reader = UsageReader::new(headers, pointers, &self.decoders);
        Some(Box::new(UsageSettler { head, reader }))
    }
}

/// Settles the costs of an attempt whose response is not delivered, by its head.
pub(super) fn settle_undelivered<B>(turn: &Turn, response: &Response<B>) {
    if turn.costs().next().is_none() {
        return;
    }
    let fields = fields(turn, response.headers());
    let read = |source: &Source| in_fields(&fields, source);
    turn.settle(|_, cost| cost.settled(response.status(), &read));
}

fn in_fields(fields: &[(HeaderName, i64)], source: &Source) -> Option<i64> {
    let Source::Header(name) = source else {
        return None;
    };
    let found = fields.iter().find(|(known, _)| known == name);
    found.map(|(_, number)| *number)
}

impl UsageSettler {
    /// Returns the number of bytes that may be pushed at once, so that no push takes long.
    pub(super) fn slice(&self) -> usize {
        match self.reader.state() {
            ReaderState::Decodes => DECODED_SLICE,
            ReaderState::Reads => EXAMINED_AT_ONCE,
            ReaderState::Ended => usize::MAX,
        }
    }

    /// Reads the next bytes of the body. Returns the number of bytes that were examined.
    pub(super) fn push(&mut self, data: &[u8]) -> usize {
        self.reader.push(data)
    }

    /// Settles the costs by what was seen of the body.
    pub(super) fn settle(self, turn: &Turn) {
        let (seen, unread) = self.reader.finish();
        let read = |source: &Source| match source {
            Source::Json(pointer) => seen.number(pointer),
            _ => None,
        };
        self.head.settle(turn, needs_body, &read, unread);
    }
}

impl UsageHead {
    /// Settles the costs that `selects` returns true for. `read` returns numbers of the body, and
    /// `unread` says why it may lack one.
    fn settle(
        &self,
        turn: &Turn,
        selects: impl Fn(&Cost) -> bool,
        read: &dyn Fn(&Source) -> Option<i64>,
        unread: Unread,
    ) {
        let read = |source: &Source| in_fields(&self.fields, source).or_else(|| read(source));
        let settled = |cost: &Cost| {
            let selected = selects(cost);
            selected.then(|| cost.settled(self.status, &read)).flatten()
        };
        turn.settle(|_, cost| settled(cost));
        if !self.status.is_success() {
            return;
        }
        let target = turn.target();
        let mut lacks = false;
        for (index, cost) in turn.costs().filter(|(_, cost)| selects(cost)) {
            let found = settled(cost);
            lacks |= cost.settle.is_some() && found.is_none();
            let kept = turn.scope().cost(index);
            turn.learn_cost(index, found.unwrap_or(kept).min(cost.max));
            let base = self.bases.iter().find(|(limit, _)| *limit == index);
            if let Some((limit, (found, (_, base)))) = target.limits.get(index).zip(found.zip(base))
            {
                let key = turn.scope().shared_key(index).cloned().unwrap_or_default();
                let found = found.min(cost.max);
                self.means
                    .estimates
                    .learn((&target.name, &limit.name), &key, *base, found);
            }
        }
        if lacks {
            self.metrics.without_usage(&target.name, unread.name());
        }
    }
}
