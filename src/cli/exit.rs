//! Exit codes of the program, with the numbers of `sysexits.h` where it defines one.

use crate::app::StartError;
use crate::files::FileFault;
use crate::intercept::CaError;

/// Result of the program, which is the exit code of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit(pub u8);

/// Defines the exit codes of outpace itself with their list, so that no code lacks its meaning.
macro_rules! exits {
    ($($(#[$doc:meta])+ $name:ident, $code:literal, $meaning:literal;)+) => {
        $($(#[$doc])+ pub const $name: Self = Self($code);)+

        /// All exit codes of outpace itself, with the meanings that README.md lists.
        pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, $meaning)),+];
    };
}

impl Exit {
    exits! {
        /// The command succeeded, or the proxy stopped after a drain.
        OK, 0, "success, also after a drain";
        /// The command `doctor` has found at least one fault.
        FAULT, 1, "`doctor`: at least one fault was found";
        /// The arguments or the configuration are invalid, or the API rejected the call.
        USAGE, 64, "the arguments or the configuration are invalid, or a call was rejected";
        /// A listen address cannot be bound, the called outpace does not answer or is not ready, or the
        /// database of `check --connect` does not answer.
        PORT, 69, "a port cannot be bound, or outpace or the database of `check --connect` does not answer";
        /// An internal error occurred, for example a runtime that could not be started.
        INTERNAL, 70, "an internal error";
        /// The API answered 429, because the turn would come after the max wait.
        LATER, 75, "`acquire`: the turn would come after the max wait";
        /// The data directory, the spool in it or another file cannot be read or written.
        DATA_DIR, 73, "the data directory or the spool in it cannot be used, another outpace uses it, or another user can change it";
        /// The disk of the spool failed, a key of its items is missing, or a declared buffer could
        /// not be created.
        SPOOL, 74, "the disk of the spool failed, a key of its items is missing, or a buffer of the configuration could not be created; acknowledged items remain";
        /// Other users can read the private key of the CA, or the CA is unusable or has expired.
        CA, 77, "other users can read the CA's key, or the CA is unusable or has expired";
        /// The database of the shared ledger denied access, its URL cannot be used, or its schema does
        /// not match.
        LEDGER, 78, "the URL of the ledger's database cannot be used, the database denies access, or its schema does not match";
        /// The command of `run` or `acquire` cannot be started, for example without permission.
        NOT_STARTED, 126, "`run`, `acquire`: the command cannot be started";
        /// The command of `run` or `acquire` was not found.
        NOT_FOUND, 127, "`run`, `acquire`: the command was not found";
    }

    /// Converts the exit status of a command. A signal becomes 128 plus its number, as in shells.
    pub(super) fn of_command(status: std::process::ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        let code = status.code().or_else(|| Some(128 + status.signal()?));
        Self(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }
}

/// Failure of a subcommand: the exit code and the message to print.
pub(super) struct Failure(pub(super) Exit, pub(super) String);

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let exit = match &error {
            StartError::Config(_) => Exit::USAGE,
            StartError::DataDir { .. }
            | StartError::InUse { .. }
            | StartError::AdminToken { .. }
            | StartError::Files(_)
            | StartError::SpoolOpen(_) => Exit::DATA_DIR,
            StartError::Ca(CaError::File { .. } | CaError::Foreign(_)) => Exit::DATA_DIR,
            StartError::Ca(CaError::Rotation(_)) => Exit::USAGE,
            StartError::Ca(_) => Exit::CA,
            StartError::Port { .. } | StartError::Socket(_) => Exit::PORT,
            StartError::Ledger(_) => Exit::LEDGER,
            StartError::Spool(_) => Exit::SPOOL,
            StartError::Internal(_) => Exit::INTERNAL,
        };
        Self(exit, error.to_string())
    }
}

impl From<FileFault> for Failure {
    fn from(fault: FileFault) -> Self {
        Self(Exit::DATA_DIR, fault.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(Exit::INTERNAL, error.to_string())
    }
}
