//! `log`: the selection of canonical lines, and the form of all lines.

use super::super::LogSettings;
use super::super::schema::{LogFormat, LogSection};
use super::{Violation, Violations};
use crate::exchange::AccessLog;
use crate::telemetry::ExchangeOutcome;

pub(super) fn log(p: &mut Violations, section: LogSection) -> LogSettings {
    let access = section.access;
    if access.off && (access.only.is_some() || access.sample.is_some()) {
        report!(p, "log.access" =>
            "`off: true` writes no line, so `only` and `sample` have no effect; remove one of them");
    }
    let mut only = Vec::new();
    for name in access.only.iter().flatten() {
        match ExchangeOutcome::ALL
            .iter()
            .find(|outcome| outcome.name() == name.0)
        {
            Some(outcome) => only.push(*outcome),
            None => {
                let known = ExchangeOutcome::ALL.map(ExchangeOutcome::name).join(", ");
                report!(p, "log.access.only" =>
                    "`{}` is not an outcome; the outcomes are {known}", name.0);
            }
        }
    }
    if access.only.is_some_and(|only| only.is_empty()) {
        report!(p, "log.access.only" =>
            "an empty list writes no line; remove it, or write `off: true`");
    }
    if only.is_empty() {
        only = ExchangeOutcome::ALL.to_vec();
    }
    if access.off {
        only.clear();
    }
    LogSettings {
        access: AccessLog {
            only,
            sample_ppm: access.sample.map_or(1_000_000, |sample| sample.0.0),
        },
        otel: section.format == LogFormat::Otel,
    }
}
