//! Clients that may use the proxy, with their tokens and their permissions for the API.

use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq as _;

use super::{Access, Token};
use crate::shares::Share;

/// A configured client that may use the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Name of the client, which is the user part of its proxy URL.
    pub name: Arc<str>,
    /// Group of the client. Several clients can share a group, and matchers can select it.
    pub group: Option<Arc<str>>,
    /// Token with which the client proves its identity.
    pub token: Token,
    /// Permissions of the client for the buffers and items of the spool.
    pub scopes: Vec<ApiScope>,
    /// Share of the bounds that clients have in common. `None` for a client that may hold them
    /// wholly.
    pub share: Option<Share>,
    /// Access of the client, which lasts until a reload removes the client or changes its token.
    pub access: Access,
    /// Share of the client in the spool.
    pub spool: SpoolShare,
}

/// Bounds of what one client may have in the spool. A bound that is `None` does not apply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpoolShare {
    /// Bytes that the client's items may count for.
    pub max: Option<u64>,
    /// Number of items that the client may have, in any state.
    pub items: Option<u64>,
}

/// A permission for the calls of the API about buffers and items. The `acquire` call needs none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ApiScope {
    /// Permission to push items into buffers.
    Push,
    /// Permission to read buffers, items and their attempts.
    Read,
    /// Permission to create, change, empty and delete buffers, and to change items.
    Manage,
}

impl ApiScope {
    /// Returns the word for this permission in the configuration file.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Read => "read",
            Self::Manage => "manage",
        }
    }
}

/// A secret text that is never printed, because its `Debug` output hides the text.
#[derive(Clone)]
pub struct Secret(Box<str>);

impl Secret {
    /// Wraps `text` as a secret that is never printed.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// Returns true if `offered` equals the secret. The time does not depend on the position of the
    /// first difference.
    pub fn matches(&self, offered: &str) -> bool {
        self.0.as_bytes().ct_eq(offered.as_bytes()).into()
    }

    /// Returns the text of the secret. Callers must not log or print it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(&other.0)
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_compared_but_never_printed() {
        let secret = Secret::new("hunter2");
        assert!(secret.matches("hunter2") && !secret.matches("hunter") && !secret.matches(""));
        assert!(!format!("{secret:?}").contains("hunter"));
    }
}
