//! Errors of the CA, each with the file that it is about and a remedy.

use std::io;
use std::path::{Path, PathBuf};

use crate::files::FileFault;

/// Reason why the CA could not be loaded. Each message names the file.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file or directory could not be read or written.
    #[error(
        "{path}: {cause}; make it readable and writable for this user, or set `data_dir` elsewhere"
    )]
    File {
        /// File or directory that the operation was for.
        path: PathBuf,
        /// Error of the operating system.
        cause: io::Error,
    },
    /// Another user owns the key, or can change it or a directory above it.
    #[error("{0}")]
    Foreign(#[from] FileFault),
    /// The permissions of the key file let other users read the key.
    #[error(
        "{path} has mode {mode:04o}: other users can read the key of the CA; run `chmod 600 {path}`"
    )]
    Mode {
        /// Path of the key file.
        path: PathBuf,
        /// Permission bits of the key file.
        mode: u32,
    },
    /// One of the two files exists and the other one is missing.
    #[error(
        "{present} exists but {missing} does not; restore it, or remove {present} for a new CA"
    )]
    Half {
        /// Path of the file that exists.
        present: PathBuf,
        /// Path of the file that is missing.
        missing: PathBuf,
    },
    /// The files are not a CA certificate and its key.
    #[error("{path} is not usable as a CA: {cause}")]
    Unusable {
        /// Path of the certificate or key file.
        path: PathBuf,
        /// Cause that makes the file unusable.
        cause: String,
    },
    /// The certificate of the CA, or one that leads to its root, has expired.
    #[error("the CA in {path} expired on {at}, so no client accepts its certificates; {remedy}")]
    Expired {
        /// Path of the certificate file.
        path: PathBuf,
        /// End of the validity, as text.
        at: String,
        /// Instruction for the operator.
        remedy: &'static str,
    },
    /// The validity of the CA has not begun yet.
    #[error("the CA in {path} is valid only from {at} on; set the clock, or {remedy}")]
    NotYetValid {
        /// Path of the certificate file.
        path: PathBuf,
        /// Begin of the validity, as text.
        at: String,
        /// Instruction for the operator.
        remedy: &'static str,
    },
    /// A rotation cannot take this step. The text names the step that is possible.
    #[error("{0}")]
    Rotation(String),
}

pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> CaError {
    let path = path.to_owned();
    move |cause| CaError::File {
        path: path.clone(),
        cause,
    }
}

pub(super) fn unusable(path: &Path, cause: &dyn std::fmt::Display) -> CaError {
    CaError::Unusable {
        path: path.to_owned(),
        cause: cause.to_string(),
    }
}
