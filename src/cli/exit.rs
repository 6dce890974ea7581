//! Exit codes, as in sysexits.h where it has one.

use crate::app::StartError;
use crate::intercept::CaError;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All went well.
    Ok,
    /// The arguments or the configuration are wrong.
    Usage,
    /// A port is in use or cannot be listened on.
    Port,
    /// Something that should not happen.
    Internal,
    /// Not now: the turn of `outpace acquire` comes too late.
    Later,
    /// The data directory, or a file in it, cannot be written or read.
    DataDir,
    /// The disk of the spool failed, or a declared buffer cannot be made.
    Spool,
    /// The key of the CA is open to others, or the CA is not usable.
    Ca,
    /// The database of the shared ledger refuses us, or its schema does not fit.
    Ledger,
    /// What a command that was run ended with.
    Command(u8),
}

impl Exit {
    /// All of them, with what they mean.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::Ok, "all went well; also after a drain"),
        (Self::Usage, "the arguments or the configuration are wrong"),
        (Self::Port, "a port is in use or cannot be listened on"),
        (Self::Internal, "something that should not happen"),
        (
            Self::Later,
            "`acquire`: the turn comes later than the command may wait",
        ),
        (
            Self::DataDir,
            "the data directory or the spool in it cannot be used",
        ),
        (
            Self::Spool,
            "the spool's disk failed, or a declared buffer cannot be made; what was acknowledged is kept",
        ),
        (
            Self::Ca,
            "the CA's key is open to others, or the CA cannot be used",
        ),
        (
            Self::Ledger,
            "the ledger's database refuses us, or its schema does not fit",
        ),
    ];

    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Usage => 64,
            Self::Port => 69,
            Self::Internal => 70,
            Self::DataDir => 73,
            Self::Spool => 74,
            Self::Later => 75,
            Self::Ca => 77,
            Self::Ledger => 78,
            Self::Command(code) => code,
        }
    }

    /// What a command ended with; 128 and the signal if one ended it, as shells count.
    pub(super) fn of_command(status: std::process::ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        let code = status.code().or_else(|| Some(128 + status.signal()?));
        Self::Command(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }
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
            StartError::SpoolOpen(_) => Self::DataDir,
            StartError::Spool(_) => Self::Spool,
            StartError::Internal(_) => Self::Internal,
        }
    }
}
