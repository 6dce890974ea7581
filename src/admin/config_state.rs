//! State of the configuration file against the configuration in force, for operators.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::Serialize;

use crate::sync::lock;

/// Result of the reloads so far. Clones are cheap and share the same state.
#[derive(Debug, Clone, Default)]
pub struct ConfigState(Arc<Mutex<ConfigReport>>);

/// State of the configuration file.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ConfigStatus {
    /// Fault of the present file, or null if it is in force.
    broken: Option<BrokenConfig>,
    /// Keys of the present file that only a restart applies.
    restart_needed_for: Vec<&'static str>,
}

/// Fault of a configuration file that is not taken.
#[derive(Debug, Serialize, JsonSchema)]
struct BrokenConfig {
    /// Instant of the first fault as RFC 3339 text.
    since: String,
    reason: String,
}

#[derive(Debug, Default)]
struct ConfigReport {
    /// First time at which the present file could not be taken, and the latest reason.
    broken: Option<(SystemTime, String)>,
    /// Keys of the present file that only a restart applies.
    restart: Vec<&'static str>,
}

impl ConfigState {
    /// Records that the file was taken, except for the keys that need a restart.
    pub fn taken(&self, restart: &[&'static str]) {
        *lock(&self.0) = ConfigReport {
            broken: None,
            restart: restart.to_vec(),
        };
    }

    /// Records that the file cannot be taken.
    pub fn refused(&self, at: SystemTime, reason: String) {
        let mut report = lock(&self.0);
        let since = report.broken.as_ref().map_or(at, |(since, _)| *since);
        report.broken = Some((since, reason));
    }

    /// Returns the time since the file has been broken, or zero.
    pub(super) fn broken_for(&self, now: SystemTime) -> Duration {
        let report = lock(&self.0);
        let since = report.broken.as_ref();
        since.map_or(Duration::ZERO, |(since, _)| {
            now.duration_since(*since).unwrap_or_default()
        })
    }

    /// Returns a sentence about a broken file or a restart that is due, or `None`.
    pub(super) fn warning(&self) -> Option<String> {
        let report = lock(&self.0);
        match (&report.broken, &*report.restart) {
            (Some((since, reason)), _) => {
                let since = humantime::format_rfc3339_seconds(*since);
                Some(format!(
                    "the configuration file has been broken since {since}: {reason}"
                ))
            }
            (None, []) => None,
            (None, keys) => Some(format!("a restart is due for {}", keys.join(", "))),
        }
    }

    /// Returns the state for operators.
    pub(super) fn shown(&self) -> ConfigStatus {
        let report = lock(&self.0);
        let broken = report.broken.as_ref().map(|(since, reason)| BrokenConfig {
            since: humantime::format_rfc3339_seconds(*since).to_string(),
            reason: reason.clone(),
        });
        ConfigStatus {
            broken,
            restart_needed_for: report.restart.clone(),
        }
    }
}
