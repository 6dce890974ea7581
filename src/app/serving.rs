//! File `serving.json` in the data directory, which names the addresses of the outpace that uses
//! the directory while it runs.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::admin::ServingInfo;
use crate::files::{check_private_dir, read_own};

/// File `serving.json` of this process, which is removed when this value is dropped.
#[derive(Debug)]
pub(super) struct ServingFile {
    path: PathBuf,
    serving: ServingInfo,
}

impl ServingFile {
    /// Returns the description of this process that other processes read.
    pub(super) fn serving(config: &Path, listen: SocketAddr, admin: SocketAddr) -> ServingInfo {
        let config = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
        ServingInfo {
            config: config.display().to_string(),
            listen,
            admin,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Writes the file. A failure is only logged, because the proxy itself does not need the file.
    pub(super) fn put_up(data_dir: &Path, serving: ServingInfo) -> Self {
        let path = path(data_dir);
        let sign = Self { path, serving };
        let text = serde_json::to_string(&sign.serving).unwrap_or_default();
        let written = tempfile::NamedTempFile::new_in(data_dir).and_then(|file| {
            std::fs::write(file.path(), text)?;
            file.persist(&sign.path).map_err(|error| error.error)
        });
        if let Err(error) = written {
            tracing::warn!(%error, path = %sign.path.display(), "serving.json could not be written; other outpace commands cannot find this process");
        }
        sign
    }
}

impl Drop for ServingFile {
    fn drop(&mut self) {
        // Another process may have written its own file in the meantime.
        if read(&self.path).is_some_and(|known| known == self.serving) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("serving.json")
}

fn read(path: &Path) -> Option<ServingInfo> {
    serde_json::from_slice(&read_own(path).ok()?).ok()
}

/// Returns the description of the outpace that serves with this data directory. The file of a
/// killed process is ignored, because another program may use its ports by now. So is a file that
/// another user could have written, because its address would receive the admin token.
pub fn serving(data_dir: &Path) -> Option<ServingInfo> {
    check_private_dir(data_dir).ok()?;
    read(&path(data_dir)).filter(|serving| is_ours(serving.pid))
}

/// Returns true if a process of this user has this id, or if the system has no `/proc`.
fn is_ours(pid: u32) -> bool {
    let user = |path: &str| Some(std::fs::metadata(path).ok()?.uid());
    let own = user("/proc/self");
    own.is_none() || own == user(&format!("/proc/{pid}"))
}
