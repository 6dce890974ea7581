//! CA of a running outpace: takes replaced files without a restart, and reports problems of the CA.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::reload::MISSED_LOOKS;
use super::{App, trust};
use crate::bounds::CA_REPORT_EVERY;
use crate::clock::{Clock, Instant};
use crate::config::Settings;
use crate::intercept::{CaError, CaSource, CertificateAuthority, Leaves, write_bundle};
use crate::origin::Roots;
use crate::policy::Policy;

/// Device, inode, size and time of change of a file.
type FileStamp = (u64, u64, u64, i64, i64);

/// Watcher of the CA's two files.
#[derive(Debug)]
pub(super) struct CaWatcher {
    leaves: Arc<Leaves>,
    source: CaSource,
    bundles: Vec<PathBuf>,
    roots: Vec<rustls_pki_types::CertificateDer<'static>>,
    clock: Clock,
    /// State of both files as of the last decision.
    decided: Option<[FileStamp; 2]>,
    /// Number of looks in a row that found no usable files.
    missed: u32,
    daily: ReportTimer,
}

/// Timer of the reports about the CA.
#[derive(Debug)]
struct ReportTimer {
    next: Instant,
}

impl ReportTimer {
    /// Starts the timer after a report.
    fn new(now: Instant) -> Self {
        let next = now + CA_REPORT_EVERY;
        Self { next }
    }

    /// Returns true if a report is due, and waits for the next one then.
    fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            *self = Self::new(now);
        }
        due
    }
}

/// Files that were found, with their state before they were read.
type FoundCa = (
    Option<[FileStamp; 2]>,
    Result<CertificateAuthority, CaError>,
);

impl CaWatcher {
    /// Prepares the watch over the files of the CA in use. The first look reads them once more.
    pub(super) fn new(app: &App) -> Self {
        let settings = &app.settings;
        Self {
            leaves: Arc::clone(&app.leaves),
            source: settings.ca.clone(),
            bundles: bundle_dirs(settings),
            roots: settings.roots.clone(),
            clock: app.clock.clone(),
            decided: None,
            missed: 0,
            daily: ReportTimer::new(app.clock.now()),
        }
    }

    /// Takes the CA if its files have changed, and returns the change as text. Files that do not fit
    /// together may be halfway through a replacement, so the problem is logged at a later look.
    pub(super) async fn look(&mut self) -> Option<String> {
        let stamps = self.blocking(|source, _| stamps(&source)).await?;
        if stamps.is_some() && stamps == self.decided {
            return None;
        }
        self.take(false).await
    }

    /// Reads the files of the CA now, and returns the change as text.
    pub(super) async fn reload(&mut self) -> Option<String> {
        self.take(true).await
    }

    async fn take(&mut self, now: bool) -> Option<String> {
        let found: FoundCa = self
            .blocking(|source, clock| {
                let before = stamps(&source);
                let loaded = CertificateAuthority::load(&source);
                let valid = loaded.and_then(|ca| ca.check_valid(clock.wall()).map(|()| ca));
                (before, valid)
            })
            .await?;
        let (stamps, loaded) = found;
        let ca = match loaded {
            Ok(ca) => ca,
            Err(error) => {
                self.missed = self.missed.saturating_add(1);
                if self.missed == MISSED_LOOKS || now {
                    tracing::error!(%error, "the changed CA was not taken; the previous one stays in use");
                }
                return None;
            }
        };
        self.missed = 0;
        self.decided = stamps;
        let old = self.leaves.ca();
        if old.pem() == ca.pem() {
            return None;
        }
        let (before, after) = (old.describe(), ca.describe());
        let change = match before.fingerprint == after.fingerprint {
            true => format!("clients now trust {} CA certificates", after.further + 1),
            false => format!("the CA {} signs now", after.subject),
        };
        self.leaves.replace_ca(ca);
        let (leaves, roots) = (Arc::clone(&self.leaves), self.roots.clone());
        let dirs = self.bundles.clone();
        let written = self
            .blocking(move |_, _| {
                let roots = Roots::load(roots);
                let ca = leaves.ca();
                let mut all = dirs.iter();
                all.try_for_each(|dir| write_bundle(dir, &ca, roots.certificates()))
            })
            .await;
        if let Some(Err(error)) = written {
            tracing::error!(%error, "the files for clients could not be written; clients may not trust the CA");
        }
        tracing::info!(subject = %after.subject, sha256 = %after.fingerprint, further = after.further, "the CA has changed");
        Some(change)
    }

    /// Runs file operations on a thread of their own, because a network file system may be slow.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(CaSource, Clock) -> T + Send + 'static,
    ) -> Option<T> {
        let (source, clock) = (self.source.clone(), self.clock.clone());
        let done = tokio::task::spawn_blocking(move || work(source, clock));
        done.await.ok()
    }

    /// Logs the problems of the CA once a day.
    pub(super) fn report(&mut self, policy: &Policy) {
        if self.daily.is_due(self.clock.now()) {
            warn(&self.leaves.ca(), policy, &self.clock);
        }
    }
}

/// Logs each problem of the CA as a warning.
pub(super) fn warn(ca: &CertificateAuthority, policy: &Policy, clock: &Clock) {
    for problem in ca.findings(policy, clock.wall()) {
        tracing::warn!(%problem, "the CA needs attention");
    }
}

fn stamps(source: &CaSource) -> Option<[FileStamp; 2]> {
    let stamp = |path: PathBuf| {
        let found = fs::metadata(path).ok()?;
        let changed = (found.mtime(), found.mtime_nsec());
        Some((found.dev(), found.ino(), found.size(), changed.0, changed.1))
    };
    let (cert, key) = source.paths();
    Some([stamp(cert)?, stamp(key)?])
}

/// Returns the directories that receive the files for clients.
pub(super) fn bundle_dirs(settings: &Settings) -> Vec<PathBuf> {
    let mut dirs = vec![trust::trust_dir(&settings.data_dir)];
    dirs.extend(settings.export_dir.clone());
    dirs
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Reaches the bound `CA_REPORT_EVERY`.
    #[test]
    fn a_report_is_due_once_a_day() {
        let start = Instant::from_nanos(0);
        let mut daily = ReportTimer::new(start);
        let hours = 1..=24 * 10;
        let due = hours.filter(|hour| daily.is_due(start + Duration::from_secs(hour * 3600)));
        let expected: Vec<u64> = (1..=10).map(|day| day * 24).collect();
        assert_eq!(due.collect::<Vec<_>>(), expected);
    }
}
