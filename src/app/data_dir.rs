//! Data directory, which belongs to this user only and is tested before any part relies on it.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::activation::InheritedSockets;
use super::admin_token::with_admin_token;
use super::{Parts, RunMode, StartError, serving};
use crate::bounds::DATA_DIR_WAIT;
use crate::config::{Loaded, Settings, StoreSettings};
use crate::files::{check_entries, make_private_dir, open_private};
use crate::policy::{CommandAccess, Policy};
use crate::telemetry::select_otel;

/// Interval between two attempts to lock the data directory.
const TRY_EVERY: Duration = Duration::from_millis(5);

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

/// Locks the data directory until the process ends, if its limits or its spool are there. Several
/// processes with a shared ledger and no spool on disk may use one directory.
///
/// A proxy of `outpace run` waits for a process that is about to end. It does not wait for one that
/// serves, because that one stays. A process with inherited sockets waits for as long as its
/// supervisor lets it, because the supervisor ends the previous one.
///
/// # Errors
/// Returns [`StartError::InUse`] if another process holds the lock.
async fn lock(
    settings: &Settings,
    mode: RunMode,
    is_successor: bool,
    shared: &Parts,
) -> Result<(), StartError> {
    let has_spool = settings.spool.as_ref();
    let has_spool = has_spool.is_some_and(|spool| matches!(spool.store, StoreSettings::Disk(_)));
    let kept = match settings.ledger.postgres {
        None => "the limits",
        Some(_) if has_spool => "the spool",
        Some(_) => return Ok(()),
    };
    let dir = &settings.data_dir;
    let mut file = open_private(&dir.join("lock-data-dir"))?;
    let clock = &shared.clock;
    let until = clock.now() + DATA_DIR_WAIT;
    let mut is_told = false;
    while !is_locked(&file) {
        if is_successor {
            if !std::mem::replace(&mut is_told, true) {
                let state = "waiting for the previous process to release the data directory";
                tracing::info!("{state}");
                shared.supervisor.status(state);
            }
            clock.sleep_until(clock.now() + TRY_EVERY).await;
            continue;
        }
        let pid = holder(&mut file);
        let is_ending = mode == RunMode::Attended && serving(dir).is_none();
        if !is_ending || clock.now() >= until {
            let path = dir.clone();
            return Err(StartError::InUse { path, pid, kept });
        }
        clock.sleep_until(clock.now() + TRY_EVERY).await;
    }
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = written {
        tracing::warn!(%error, "the process id could not be written to `lock-data-dir`");
    }
    // The lock lasts as long as the process, so the file is never closed.
    let _open: &'static mut File = Box::leak(Box::new(file));
    Ok(())
}

/// Locks the file. A file system without locks counts as locked, after a warning.
fn is_locked(file: &File) -> bool {
    match file.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(error)) => {
            tracing::warn!(%error, "the data directory cannot be locked: do not start another outpace with it");
            true
        }
    }
}

/// Returns the id of the process that holds the lock, if it has written it.
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Prepares and locks the data directory, and returns the settings and the policy with its admin
/// token, and with the access of the command that this process serves alone. A process with inherited
/// sockets waits for the one that drains.
pub(super) async fn open(
    loaded: Loaded,
    mode: RunMode,
    inherited: &InheritedSockets,
    command: Option<&CommandAccess>,
    shared: &Parts,
) -> Result<(Settings, Arc<ArcSwap<Policy>>), StartError> {
    let settings = &loaded.config.settings;
    select_otel(settings.log.otel);
    prepare(settings)?;
    lock(settings, mode, !inherited.is_empty(), shared).await?;
    let data_dir = settings.data_dir.clone();
    let (settings, mut policy) = with_admin_token(loaded, &data_dir)?;
    if let Some(access) = command {
        policy.serve_command(access.clone());
    }
    Ok((settings, Arc::new(ArcSwap::from_pointee(policy))))
}
