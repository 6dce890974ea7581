//! Data directory, which belongs to this user only and is tested before any part relies on it.

use std::fs::{File, TryLockError};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::activation::InheritedSockets;
use super::admin_token::with_admin_token;
use super::{Parts, StartError};
use crate::config::{Loaded, Settings};
use crate::files::{check_entries, make_private_dir, open_private};
use crate::policy::Policy;
use crate::telemetry::select_otel;

/// Interval between two attempts to lock the data directory.
const LOCK_EVERY: Duration = Duration::from_millis(5);

/// Creates the data directory and the one for temporary files with mode 0700, or checks them and
/// the files in them. A temporary file proves that they are writable.
pub(super) fn prepare(settings: &Settings) -> Result<(), StartError> {
    let temporary = &settings.keep.dir;
    make_private_dir(&settings.data_dir)?;
    check_entries(&settings.data_dir, 1)?;
    make_private_dir(temporary)?;
    let made = tempfile::tempfile_in(temporary).map(drop);
    made.map_err(|cause| StartError::DataDir {
        path: settings.data_dir.clone(),
        cause,
    })
}

/// Locks the data directory for this process. With `waits` the process that drains there releases it
/// first. Otherwise a directory in use is only logged, because its limits are then in force twice.
/// Replicas of a shared ledger may share it.
async fn lock(
    settings: &Settings,
    waits: bool,
    shared: &Parts,
) -> Result<Option<File>, StartError> {
    let file = open_private(&settings.data_dir.join("instance-lock"))?;
    let is_shared = settings.ledger.postgres.is_some();
    let mut is_told = false;
    loop {
        let locked = match is_shared && !waits {
            true => file.try_lock_shared(),
            false => file.try_lock(),
        };
        match locked {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::Error(cause)) => {
                tracing::warn!(%cause, "the data directory could not be locked");
                return Ok(None);
            }
            Err(TryLockError::WouldBlock) if !waits => {
                if !is_shared {
                    tracing::warn!(data_dir = %settings.data_dir.display(), "another outpace uses this data directory, and each of them applies the whole limits; stop one, or set another `data_dir`");
                }
                return Ok(None);
            }
            Err(TryLockError::WouldBlock) => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::info!(
                        "waiting for the previous process to release the data directory"
                    );
                    shared
                        .supervisor
                        .status("waiting for the previous process to release the data directory");
                }
                shared
                    .clock
                    .sleep_until(shared.clock.now() + LOCK_EVERY)
                    .await;
            }
        }
    }
}

/// Settings and policy of this process, and the lock of its data directory.
type LockedDataDir = ((Settings, Arc<ArcSwap<Policy>>), Option<File>);

/// Prepares and locks the data directory, and returns the settings and the policy with its admin
/// token. A process with inherited sockets waits for the one that drains.
pub(super) async fn open(
    loaded: Loaded,
    inherited: &InheritedSockets,
    shared: &Parts,
) -> Result<LockedDataDir, StartError> {
    let settings = &loaded.config.settings;
    select_otel(settings.log.otel);
    prepare(settings)?;
    let lock = lock(settings, !inherited.is_empty(), shared).await?;
    let data_dir = settings.data_dir.clone();
    let (settings, policy) = with_admin_token(loaded, &data_dir)?;
    let policy = Arc::new(ArcSwap::from_pointee(policy));
    Ok(((settings, policy), lock))
}
