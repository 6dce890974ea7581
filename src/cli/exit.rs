//! Exit codes, as in sysexits.h where it has one.

use crate::app::StartError;
use crate::intercept::CaError;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All went well.
    Ok = 0,
    /// The arguments or the configuration are wrong.
    Usage = 64,
    /// A port is in use or cannot be listened on.
    Port = 69,
    /// Something that should not happen.
    Internal = 70,
    /// The data directory, or a file in it, cannot be written or read.
    DataDir = 73,
    /// The key of the CA is open to others, or the CA is not usable.
    Ca = 77,
    /// The database of the shared ledger refuses us, or its schema does not fit.
    Ledger = 78,
}

impl Exit {
    /// All of them, with what they mean.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Ok, "all went well; also after a drain"),
        (Self::Usage, "the arguments or the configuration are wrong"),
        (Self::Port, "a port is in use or cannot be listened on"),
        (Self::Internal, "something that should not happen"),
        (Self::DataDir, "the data directory cannot be used"),
        (
            Self::Ca,
            "the CA's key is open to others, or the CA cannot be used",
        ),
        (
            Self::Ledger,
            "the ledger's database refuses us, or its schema does not fit",
        ),
    ];
}

impl From<&StartError> for Exit {
    fn from(error: &StartError) -> Self {
        match error {
            StartError::Config(_) => Self::Usage,
            StartError::DataDir { .. } => Self::DataDir,
            StartError::Ca(CaError::File { .. }) => Self::DataDir,
            StartError::Ca(_) => Self::Ca,
            StartError::Port { .. } => Self::Port,
            StartError::Ledger(_) => Self::Ledger,
            StartError::Internal(_) => Self::Internal,
        }
    }
}
