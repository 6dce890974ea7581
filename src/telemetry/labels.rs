//! Labels of the metrics. Their values come from closed sets or from the configuration.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// Outcome of an exchange, which is a label of `outpace_exchanges_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExchangeOutcome {
    /// The origin's response was passed on completely.
    Delivered,
    /// outpace refused the request because of its policy or its load.
    Refused,
    /// outpace rejected the request because it was malformed.
    Rejected,
    /// The origin, the network or outpace itself failed.
    Failed,
    /// The client disconnected before the exchange was complete.
    Abandoned,
    /// The request was written to the spool, and the client received 202.
    Spooled,
}

impl ExchangeOutcome {
    /// Returns the value of the label `outcome`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Abandoned => "abandoned",
            Self::Spooled => "spooled",
        }
    }

    /// All outcomes, in the order of their documentation.
    pub const ALL: [Self; 6] = [
        Self::Delivered,
        Self::Refused,
        Self::Rejected,
        Self::Failed,
        Self::Abandoned,
        Self::Spooled,
    ];
}

impl EncodeLabelValue for ExchangeOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.name().encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TargetLabel {
    pub(super) target: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ExchangeLabels {
    pub(super) target: Arc<str>,
    pub(super) outcome: ExchangeOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabel {
    pub(super) reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ClientLabel {
    pub(super) client: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ResultLabel {
    pub(super) result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AuthLabels {
    pub(super) listener: &'static str,
    pub(super) cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UsageLabels {
    pub(super) target: Arc<str>,
    pub(super) cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RefusalLabels {
    pub(super) listener: &'static str,
    pub(super) cause: &'static str,
}

/// Listeners that refuse connections and credentials, as values of the label `listener`.
pub(super) const LISTENERS: [&str; 3] = ["proxy", "route", "admin"];
/// Values of the label `cause` for a failed authentication.
pub(super) const AUTH_CAUSES: [&str; 2] = ["missing", "wrong"];
/// Values of the label `cause` for a refused connection.
pub(super) const REFUSAL_CAUSES: [&str; 3] = ["rate", "share", "full"];
/// Values of the label `cause` for a response without usage.
pub(super) const USAGE_CAUSES: [&str; 5] = ["absent", "coding", "corrupt", "bound", "memory"];

/// Class of a response's status code (RFC 9110 section 15), which is a label of durations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum StatusClass {
    /// 1xx, such as the 101 of an upgrade.
    Informational,
    /// 2xx, the request was successful.
    Successful,
    /// 3xx, the client must look elsewhere.
    Redirection,
    /// 4xx, the request is at fault.
    ClientError,
    /// 5xx and higher codes.
    ServerError,
    /// No response, because the client left first.
    None,
}

impl StatusClass {
    pub(super) const ALL: [Self; 6] = [
        Self::Informational,
        Self::Successful,
        Self::Redirection,
        Self::ClientError,
        Self::ServerError,
        Self::None,
    ];

    /// Returns the class of a status code, where 0 means that there is none.
    pub(super) const fn of(status: u16) -> Self {
        match status / 100 {
            0 => Self::None,
            1 => Self::Informational,
            2 => Self::Successful,
            3 => Self::Redirection,
            4 => Self::ClientError,
            _ => Self::ServerError,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Informational => "1xx",
            Self::Successful => "2xx",
            Self::Redirection => "3xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::None => "none",
        }
    }
}

impl EncodeLabelValue for StatusClass {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.name().encode(encoder)
    }
}

/// Kind of an attempt that ended without a response, which is a label of
/// `outpace_origin_errors_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OriginErrorKind {
    /// No connection to the origin could be made.
    Connect,
    /// The connection broke, or the response was malformed.
    Broken,
    /// The head of the response did not arrive in time.
    Timeout,
    /// The origin took no bytes of the request for too long.
    Idle,
}

impl OriginErrorKind {
    pub(super) const ALL: [Self; 4] = [Self::Connect, Self::Broken, Self::Timeout, Self::Idle];

    const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Broken => "broken",
            Self::Timeout => "timeout",
            Self::Idle => "idle",
        }
    }
}

impl EncodeLabelValue for OriginErrorKind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.name().encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ClassLabels {
    pub(super) target: Arc<str>,
    pub(super) class: StatusClass,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OriginErrorLabels {
    pub(super) target: Arc<str>,
    pub(super) kind: OriginErrorKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LimitLabels {
    pub(super) target: Arc<str>,
    pub(super) limit: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabels {
    pub(super) target: Arc<str>,
    pub(super) limit: Arc<str>,
    pub(super) kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LaneLabels {
    pub(super) target: Arc<str>,
    pub(super) lane: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ModeLabel {
    pub(super) mode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BuildLabels {
    pub(super) version: &'static str,
}
