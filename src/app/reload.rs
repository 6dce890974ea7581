//! Reload of the configuration on SIGHUP and when the file changes. An invalid file changes
//! nothing, and its errors are logged.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::App;
use crate::config::{self, Settings};
use crate::policy::{Policy, Secret};
use crate::telemetry::Metrics;

/// Interval between two checks of the file. Notifications would miss the change of a mounted config
/// map, which swaps a symbolic link.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Reloader<'a> {
    path: PathBuf,
    settings: &'a Settings,
    admin_token: Option<&'a Secret>,
    policy: Arc<ArcSwap<Policy>>,
    metrics: Metrics,
    hangup: Signal,
    seen: Option<Vec<u8>>,
    generation: u64,
}

impl<'a> Reloader<'a> {
    pub(super) fn new(app: &'a App) -> std::io::Result<Self> {
        Ok(Self {
            path: app.config.clone(),
            settings: &app.settings,
            admin_token: app.admin_token.as_deref(),
            policy: Arc::clone(&app.policy),
            metrics: app.metrics.clone(),
            hangup: signal(SignalKind::hangup())?,
            seen: read(&app.config),
            generation: 0,
        })
    }

    /// Reloads the configuration on SIGHUP or when the file changes. Never completes.
    pub(super) async fn run(mut self) {
        loop {
            let asked = tokio::select! {
                _ = self.hangup.recv() => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            let content = read(&self.path);
            if asked || (content.is_some() && content != self.seen) {
                self.seen = content;
                self.reload();
            }
        }
    }

    fn reload(&mut self) {
        self.generation += 1;
        match config::load(&self.path, &config::process_environment, self.generation) {
            Err(error) => {
                self.metrics.reloaded(false);
                tracing::error!(%error, "the configuration was not reloaded; the previous one stays in force");
            }
            Ok(loaded) => {
                let token = loaded.admin_token.as_deref().map(Secret::reveal);
                let same_token = token == self.admin_token.map(Secret::reveal);
                if loaded.config.settings != *self.settings || !same_token {
                    tracing::warn!(
                        "settings other than policy have changed; restart outpace to apply them"
                    );
                }
                let targets = loaded.config.policy.targets.len();
                self.policy.store(Arc::new(loaded.config.policy));
                self.metrics.reloaded(true);
                tracing::info!(targets, "the configuration was reloaded");
            }
        }
    }
}

/// Reads the content of the file. Unlike a time stamp, the content changes exactly when the
/// configuration does.
fn read(path: &Path) -> Option<Vec<u8>> {
    fs::read(path).ok()
}
