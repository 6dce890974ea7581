//! Exit codes of the program, with the numbers of `sysexits.h` where it defines one.

use crate::app::StartError;
use crate::intercept::CaError;

/// Result of the program, which determines the exit code of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command succeeded, or the proxy stopped after a drain.
    Ok,
    /// The arguments or the configuration are invalid, or the API rejected the call.
    Usage,
    /// A listen address cannot be bound, or the called outpace does not answer or is not ready.
    Port,
    /// An internal error occurred, for example a runtime that could not be started.
    Internal,
    /// The API answered 429, because the turn would come after the max wait.
    Later,
    /// The data directory, the spool in it or another file cannot be read or written.
    DataDir,
    /// The disk of the spool failed, or a declared buffer could not be created.
    Spool,
    /// Other users can read the private key of the CA, or the CA is unusable.
    Ca,
    /// The database of the shared ledger denied access, or its schema does not match.
    Ledger,
    /// A command that outpace ran has ended with this exit code.
    Command(u8),
}

impl Exit {
    /// All exit codes of outpace itself, with the meanings that README.md lists.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::Ok, "success, also after a drain"),
        (
            Self::Usage,
            "the arguments or the configuration are invalid, or a call was rejected",
        ),
        (
            Self::Port,
            "a port cannot be bound, or outpace does not answer",
        ),
        (Self::Internal, "an internal error"),
        (
            Self::Later,
            "`acquire`: the turn would come after the max wait",
        ),
        (
            Self::DataDir,
            "the data directory or the spool in it cannot be used",
        ),
        (
            Self::Spool,
            "the disk of the spool failed, or a buffer of the configuration could not be created; acknowledged items remain",
        ),
        (
            Self::Ca,
            "other users can read the CA's key, or the CA is unusable",
        ),
        (
            Self::Ledger,
            "the ledger's database denies access, or its schema does not match",
        ),
    ];

    /// Returns the number that the process passes to the operating system.
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

    /// Converts the exit status of a command. A signal becomes 128 plus its number, as in shells.
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
