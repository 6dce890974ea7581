//! Metrics of the scopes that origins block. Their labels come from closed sets, so a key or a
//! credential is never one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// One blocked scope, as far as the metrics show it.
#[derive(Debug, Clone, Copy)]
pub struct BlockedScope<'a> {
    /// Name of the target.
    pub target: &'a Arc<str>,
    /// Name of the limit, if the block belongs to a configured one.
    pub limit: Option<&'a Arc<str>>,
    /// Narrowest part that the scope names: target, limit, key or credential.
    pub scope: &'static str,
    /// Place in which the origin named the wait, of a closed set.
    pub source: &'static str,
    /// Time of the next attempt since the Unix epoch.
    pub next_attempt: Duration,
    /// End that the origin asked for since the Unix epoch, or `None` if it named none.
    pub origin_until: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ScopeLabels {
    target: Arc<str>,
    limit: Arc<str>,
    scope: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UntilLabels {
    target: Arc<str>,
    limit: Arc<str>,
    source: &'static str,
    by: &'static str,
}

/// Gauge of a number with a fraction.
pub(super) type FloatGauge = Gauge<f64, AtomicU64>;

/// Sums over all blocked scopes at the time of a scrape.
#[derive(Debug, Default)]
pub struct BlockedScopes {
    scopes: HashMap<ScopeLabels, i64>,
    until: HashMap<UntilLabels, Duration>,
}

impl BlockedScopes {
    /// Adds one blocked scope.
    pub fn add(&mut self, block: &BlockedScope<'_>) {
        let target = block.target;
        let limit = block.limit.map_or_else(|| "-".into(), Arc::clone);
        let labels = ScopeLabels {
            target: Arc::clone(target),
            limit: Arc::clone(&limit),
            scope: block.scope,
        };
        *self.scopes.entry(labels).or_default() += 1;
        let ends = [
            ("outpace", Some(block.next_attempt)),
            ("origin", block.origin_until),
        ];
        for (by, end) in ends {
            let Some(end) = end else { continue };
            let labels = UntilLabels {
                target: Arc::clone(target),
                limit: Arc::clone(&limit),
                source: block.source,
                by,
            };
            let latest = self.until.entry(labels).or_default();
            *latest = end.max(*latest);
        }
    }
}

impl BlockedScopes {
    /// Sets the two families of a scrape.
    pub(super) fn write(
        &self,
        scopes: &Family<ScopeLabels, Gauge>,
        until: &Family<UntilLabels, FloatGauge>,
    ) {
        for (labels, count) in &self.scopes {
            scopes.get_or_create(labels).set(*count);
        }
        for (labels, end) in &self.until {
            until.get_or_create(labels).set(end.as_secs_f64());
        }
    }
}
