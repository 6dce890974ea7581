//! Operators of the admin listener, by their tokens and roles.

use super::{Access, Token};

/// Permission of an operator. Each role includes the ones before it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Permission to read `/metrics`.
    Metrics,
    /// Permission to read the status, explanations and limits.
    Read,
    /// Permission for every call, also for those that change something.
    Operate,
}

impl Role {
    /// Returns the word for this role in the configuration file.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Read => "read",
            Self::Operate => "operate",
        }
    }
}

/// Token for the admin listener, with its role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// Role that the token proves.
    pub role: Role,
    /// Token that is sent as `Authorization: Bearer`.
    pub token: Token,
    /// Access of the operator, which a reload may revoke.
    pub access: Access,
}

impl Operator {
    /// Creates an operator with access that a reload can revoke.
    pub fn new(role: Role, token: Token) -> Self {
        let access = Access::new();
        Self {
            role,
            token,
            access,
        }
    }
}
