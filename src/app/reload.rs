//! Reload of the configuration: on SIGHUP, when the file changes, and at the request of an operator.
//! A file that is invalid or seems incomplete changes nothing, and the reason is logged.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::admin_token::with_admin_token;
use super::ca::CaWatcher;
use super::notify::serving_state;
use super::{App, StartError};
use crate::admin::{ReloadCall, ReloadCalls, Reloaded};
use crate::bounds::{CONFIG_READS, CONFIG_SETTLE, RELOAD_CALLS};
use crate::config::{self, ConfigError, Incomplete};
use crate::policy::{Access, PolicyChanges};

/// Interval between two looks at the file. Notifications would miss the change of a mounted config
/// map, which swaps a symbolic link.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Number of looks in a row that find no readable file before this is logged. A file that is
/// replaced may be missing for a moment.
pub(super) const MISSED_LOOKS: u32 = 3;

/// Triggers of reloads, which exist before outpace reports that it is ready. An early SIGHUP would
/// otherwise end the process.
#[derive(Debug)]
pub(super) struct ReloadTriggers {
    hangup: Signal,
    calls: mpsc::Receiver<ReloadCall>,
}

impl ReloadTriggers {
    /// Installs the handler of SIGHUP. Returns the triggers with the sender of calls.
    pub(super) fn listen() -> std::io::Result<(ReloadCalls, Self)> {
        let hangup = signal(SignalKind::hangup())?;
        let (sender, calls) = mpsc::channel(RELOAD_CALLS);
        Ok((sender, Self { hangup, calls }))
    }
}

pub(super) struct Reloader<'a> {
    app: &'a App,
    triggers: ReloadTriggers,
    ca: CaWatcher,
    /// Text of the file from which the policy in force was made.
    in_force: String,
    /// Text for which the last decision was made, so that each refusal is logged once.
    decided: String,
    /// Number of looks in a row that found no readable file.
    missed: u32,
    generation: u64,
}

impl<'a> Reloader<'a> {
    /// Prepares reloads of the policy that was made from `text`.
    pub(super) fn new(app: &'a App, text: String, triggers: ReloadTriggers) -> Self {
        Self {
            app,
            triggers,
            ca: CaWatcher::new(app),
            decided: text.clone(),
            in_force: text,
            missed: 0,
            generation: 0,
        }
    }

    /// Reloads the configuration on SIGHUP, on an operator's call or when the file changes. Never
    /// completes.
    pub(super) async fn run(mut self) {
        let clock = self.app.clock.clone();
        loop {
            tokio::select! {
                Some(call) = self.triggers.calls.recv() => {
                    let answer = self.reload(call.force).await;
                    // The caller may have disconnected, and the result is logged anyway.
                    let _ = call.answer.send(answer.map_err(|error| error.to_string()));
                }
                _ = self.triggers.hangup.recv() => {
                    // The result is logged.
                    let _ = self.reload(false).await;
                }
                () = clock.sleep_until(clock.now() + LOOK_EVERY) => self.look().await,
            }
        }
    }

    /// Takes a changed CA and a changed configuration file.
    async fn look(&mut self) {
        if self.ca.look().await.is_some() {
            // A configuration may have been refused because of the previous CA.
            self.decided.clone_from(&self.in_force);
        }
        self.ca.report(&self.app.policy.load());
        self.look_at_config().await;
    }

    /// Takes a changed file once two reads find the same text. Otherwise a later look takes it.
    async fn look_at_config(&mut self) {
        let text = match self.read().await {
            Ok(text) => text,
            Err(error) => {
                self.missed = self.missed.saturating_add(1);
                if self.missed == MISSED_LOOKS {
                    self.app
                        .config_state
                        .refused(self.app.clock.wall(), error.to_string());
                    tracing::warn!(%error, "the configuration file cannot be read; the policy stays in force");
                }
                return;
            }
        };
        if self.missed >= MISSED_LOOKS {
            tracing::info!("the configuration file can be read again");
        }
        let was_missing = std::mem::take(&mut self.missed) >= MISSED_LOOKS;
        if text == self.decided && !was_missing {
            return;
        }
        self.settle().await;
        if self.read().await.as_ref() == Ok(&text) {
            self.app.supervisor.reloading();
            let taken = self.take(text, false);
            // The result is logged.
            let _ = self.log(taken);
        }
    }

    /// Takes the CA, and the file as soon as two reads find the same text.
    async fn reload(&mut self, force: bool) -> Result<Reloaded, ConfigError> {
        self.app.supervisor.reloading();
        let ca = self.ca.reload().await;
        let mut taken = self.reload_config(force).await;
        if let (Ok(reloaded), Some(change)) = (&mut taken, ca) {
            reloaded.changes = match reloaded.changes.as_str() {
                "nothing changed" => change,
                changes => format!("{changes}; {change}"),
            };
        }
        taken
    }

    async fn reload_config(&mut self, force: bool) -> Result<Reloaded, ConfigError> {
        let mut before = self.read().await;
        for _ in 1..CONFIG_READS {
            self.settle().await;
            let after = self.read().await;
            if after == before {
                let taken = after.and_then(|text| self.take(text, force));
                return self.log(taken);
            }
            before = after;
        }
        self.log(Err(ConfigError::changing(&self.app.config)))
    }

    async fn settle(&self) {
        let clock = &self.app.clock;
        clock.sleep_until(clock.now() + CONFIG_SETTLE).await;
    }

    /// Reads the file on a thread of its own, because a network file system may be slow.
    async fn read(&self) -> Result<String, ConfigError> {
        let path = self.app.config.clone();
        let read = tokio::task::spawn_blocking(move || {
            // A read of a pipe would wait for its writer.
            match std::fs::metadata(&path) {
                Ok(found) if !found.is_file() => Err(ConfigError::irregular(&path)),
                _ => config::read(&path),
            }
        });
        let aborted = |_cause| Err(ConfigError::changing(&self.app.config));
        read.await.unwrap_or_else(aborted)
    }

    /// Replaces the policy by that of `text`. `force` takes a text that seems incomplete, too.
    fn take(&mut self, text: String, force: bool) -> Result<Reloaded, ConfigError> {
        let app = self.app;
        let incomplete = |found: Incomplete| ConfigError::incomplete(&app.config, &found);
        self.decided.clone_from(&text);
        self.generation += 1;
        let mut document = text.as_str();
        if !force {
            config::check_text(&self.in_force, &text).map_err(incomplete)?;
        } else if config::is_empty(&text) {
            document = "{}";
        }
        let environment = &config::process_environment;
        let loaded = config::parse(&app.config, document, environment, self.generation)?;
        let unusable = |error: StartError| ConfigError::unusable(&app.config, &error);
        let (mut settings, mut new) =
            with_admin_token(loaded, &app.settings.data_dir).map_err(unusable)?;
        if let Some(access) = &app.command {
            new.serve_command(access.clone());
            // Without one in the file, the parent proxy is that of the environment at the start.
            settings.parent = settings.parent.or_else(|| app.settings.parent.clone());
        }
        let old = app.policy.load_full();
        if !force {
            config::check_policy(&old, &new).map_err(incomplete)?;
            let uncovered = app.leaves.ca().uncovered(&new);
            if !uncovered.is_empty() {
                return Err(ConfigError::outside_ca(&app.config, &uncovered));
            }
        }
        let restart_needed_for = app.settings.changed_keys(&settings);
        let reloaded = Reloaded {
            changes: PolicyChanges::between(&old, &new).to_string(),
            restart: !restart_needed_for.is_empty(),
            restart_needed_for,
        };
        let revoked = new.keep_access(&old);
        app.policy.store(Arc::new(new));
        app.exchange.pacer.adopt(&app.policy.load());
        // A request from now on is authenticated by the new policy.
        revoked.iter().for_each(Access::revoke);
        self.in_force = text;
        Ok(reloaded)
    }

    /// Logs and counts the result of a reload.
    fn log(&self, taken: Result<Reloaded, ConfigError>) -> Result<Reloaded, ConfigError> {
        let state = serving_state(self.app.listen, &self.app.policy.load());
        self.app.supervisor.ready(&match taken {
            Ok(_) => state,
            Err(_) => format!("{state}; the configuration file was refused, see the log"),
        });
        self.app.metrics.reloaded(taken.is_ok());
        if taken.is_ok() {
            self.app.metrics.set_config_read(self.app.clock.wall());
        }
        match &taken {
            Err(error) => {
                self.app
                    .config_state
                    .refused(self.app.clock.wall(), error.to_string());
                tracing::error!(%error, "the configuration was not reloaded; the previous one stays in force");
            }
            Ok(reloaded) => {
                let keys = &reloaded.restart_needed_for;
                self.app.config_state.taken(keys);
                if reloaded.restart {
                    let keys = keys.join(", ");
                    tracing::warn!(keys, "changed settings need a restart of outpace");
                }
                let targets = self.app.policy.load().targets.len();
                tracing::info!(targets, changes = %reloaded.changes, "the configuration was reloaded");
            }
        }
        taken
    }
}
