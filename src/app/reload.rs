//! Reload of the configuration on SIGHUP and when the file changes. An invalid file changes
//! nothing, and its errors are logged.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::App;
use crate::config;
use crate::policy::Secret;

/// Interval between two checks of the file. Notifications would miss the change of a mounted config
/// map, which swaps a symbolic link.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Reloader<'a> {
    app: &'a App,
    hangup: Signal,
    seen: Option<Vec<u8>>,
    generation: u64,
}

impl<'a> Reloader<'a> {
    pub(super) fn new(app: &'a App) -> std::io::Result<Self> {
        Ok(Self {
            app,
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
            let content = read(&self.app.config);
            if asked || (content.is_some() && content != self.seen) {
                self.seen = content;
                self.reload();
            }
        }
    }

    fn reload(&mut self) {
        let app = self.app;
        self.generation += 1;
        match config::load(&app.config, &config::process_environment, self.generation) {
            Err(error) => {
                app.metrics.reloaded(false);
                tracing::error!(%error, "the configuration was not reloaded; the previous one stays in force");
            }
            Ok(loaded) => {
                let token = loaded.admin_token.as_deref().map(Secret::reveal);
                let same_token = token == app.admin_token.as_deref().map(Secret::reveal);
                if loaded.config.settings != app.settings || !same_token {
                    tracing::warn!(
                        "settings other than policy have changed; restart outpace to apply them"
                    );
                }
                let targets = loaded.config.policy.targets.len();
                app.policy.store(Arc::new(loaded.config.policy));
                app.metrics.reloaded(true);
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
