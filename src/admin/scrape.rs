//! `GET /metrics`: what this process has counted, and the figures of its parts at this moment.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;

use super::{Admin, blocks};
use crate::ledger::spec_of;
use crate::schedule::Spec;
use crate::telemetry::{Exposition, LimitFigures, Scrape};

/// Answers a scraper in the format that it prefers.
pub(super) async fn scrape(State(admin): State<Admin>, headers: HeaderMap) -> impl IntoResponse {
    let accepted = headers.get_all(header::ACCEPT).iter();
    let accepted: Vec<&str> = accepted.filter_map(|value| value.to_str().ok()).collect();
    let exposition = Exposition::negotiate(&accepted.join(","));
    let figures = admin.figures();
    admin.read_spool(&figures).await;
    let text = admin.metrics.encode(&figures, exposition);
    let kind = (header::CONTENT_TYPE, exposition.content_type());
    ([kind, (header::VARY, "accept")], text)
}

impl Admin {
    /// Returns the figures of all targets, of the ledger and of the process.
    fn figures(&self) -> Scrape {
        let scrape = Scrape::new();
        scrape.set_ready(self.readiness.missing().is_none());
        scrape.set_config_broken(self.config.broken_for(self.exchange.clock.wall()));
        scrape.set_blocked(&blocks::measure(self));
        let now = self.exchange.clock.now();
        for target in &self.policy.load().targets {
            // The series of a target and its limits exist before its first request.
            let _series = self.exchange.metrics_of(target);
            let limits = target.limits.iter().map(|limit| &limit.name);
            let _units = self.metrics.limit_units(&target.name, limits);
            let in_force = self.ledger.in_force(target);
            for (limit, in_force) in target.limits.iter().zip(in_force) {
                let limit = LimitFigures {
                    name: limit.name.clone(),
                    is_concurrent: limit.is_concurrent(),
                    configured: amount(Some(spec_of(limit.bound))),
                    in_force: amount(in_force),
                };
                scrape.set_limit(&target.name, &limit);
            }
            scrape.set_queue(&target.name, &self.exchange.pacer.queue(target, now));
        }
        if let Some(ledger) = self.ledger.figures() {
            scrape.set_ledger(&ledger);
        }
        scrape
    }
}

/// Returns the units per second or the permits of a limit, or infinity if nothing is limited.
fn amount(spec: Option<Spec>) -> f64 {
    match spec {
        None => f64::INFINITY,
        Some(Spec::Permits { n }) => n as f64,
        Some(rate) => rate.per_second().unwrap_or_default(),
    }
}
