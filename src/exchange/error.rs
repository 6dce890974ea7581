//! Error that outpace reports instead of the origin's response, and the errors it is made from.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use super::reason::Reason;
use crate::spool::{SealError, StoreError};
use crate::{origin, semantics};

/// Error that outpace reports instead of a response, with the details of this case.
#[derive(Debug, Clone)]
pub struct Error {
    /// Reason, which selects the status code, the log level and the general texts.
    pub reason: Reason,
    /// Cause in this case as text, including its numbers with units.
    pub detail: String,
    /// Remedy in this case, or `None` for the general one of the reason.
    pub remedy: Option<String>,
    /// Name of the limit that held the request, or `None` if no limit did.
    pub limit: Option<Arc<str>>,
    /// Time after which a retry may succeed, or `None` if it is unknown.
    pub retry_after: Option<Duration>,
    /// State of the item that the error is about, or `None` if it is about no item.
    pub state: Option<&'static str>,
    /// Value of `Allow` for a method that is not allowed, or `None` for the methods that are forwarded.
    pub allow: Option<Box<HeaderValue>>,
}

impl Error {
    /// Creates an error with a detail, without a limit and without a retry time.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            remedy: None,
            limit: None,
            retry_after: None,
            state: None,
            allow: None,
        }
    }

    /// Returns the error with `wait` as the time after which a retry may succeed.
    #[must_use]
    pub const fn after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }
}

impl From<semantics::Malformed> for Error {
    fn from(problem: semantics::Malformed) -> Self {
        Self::new(Reason::MalformedRequest, problem.to_string())
    }
}

impl From<origin::OriginError> for Error {
    fn from(error: origin::OriginError) -> Self {
        let reason = match &error {
            origin::OriginError::Unresolved { .. } => Reason::OriginUnresolved,
            origin::OriginError::Prohibited { .. } => Reason::AddressProhibited,
            origin::OriginError::Ourselves { .. } => Reason::LoopDetected,
            origin::OriginError::Refused(_) => Reason::OriginRefused,
            origin::OriginError::ConnectTimeout => Reason::OriginConnectTimeout,
            origin::OriginError::Certificate(_) => Reason::OriginCertificate,
            origin::OriginError::ClientCertificate(_) => Reason::OriginClientCertificate,
            origin::OriginError::Tls(_) | origin::OriginError::HandshakeBroke(_) => {
                Reason::OriginTls
            }
            origin::OriginError::ParentProxy { .. } => Reason::ParentProxy,
            origin::OriginError::Busy => Reason::OriginBusy,
            origin::OriginError::Unprocessed { .. } | origin::OriginError::Http1Required => {
                Reason::OriginDeclined
            }
            origin::OriginError::Unreadable(_) => Reason::OriginProtocol,
            origin::OriginError::Broken(_) => Reason::OriginBroke,
        };
        Self::new(reason, error.to_string())
    }
}

/// Time in `Retry-After` if the spool is full.
const FULL_WAIT: Duration = Duration::from_secs(30);

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let reason = match &error {
            StoreError::Unknown(_) => Reason::NotFound,
            StoreError::NameTaken(_) | StoreError::Conflict(_) => Reason::Conflict,
            StoreError::KeyReused => Reason::KeyReused,
            StoreError::Refused(_) => Reason::NotStorable,
            StoreError::Full { .. } | StoreError::MinFree { .. } | StoreError::NoSpace { .. } => {
                Reason::SpoolFull
            }
            StoreError::ShareFull { .. } => Reason::SpoolShareFull,
            StoreError::Sealed(SealError::NoKey(_)) => Reason::NotSpoolable,
            StoreError::Damaged(_) | StoreError::Sealed(_) | StoreError::Away(_) => {
                Reason::SpoolUnavailable
            }
        };
        let told = Self::new(reason, error.to_string());
        match reason {
            Reason::SpoolFull | Reason::SpoolShareFull => told.after(FULL_WAIT),
            _ => told,
        }
    }
}
