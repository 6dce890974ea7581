//! Who may use the proxy.

use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq as _;

/// A named user of the proxy.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its name: the user part of its proxy URL.
    pub name: Arc<str>,
    /// A label for several clients.
    pub group: Option<Arc<str>>,
    /// What it proves itself with.
    pub token: Secret,
    /// What it may do with what is kept.
    pub scopes: Vec<ApiScope>,
}

/// What a client may do by the API. Turns for work (`acquire`) need none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApiScope {
    /// Push items.
    Push,
    /// Look at buffers, items and attempts.
    Read,
    /// Make, change and empty buffers; take items back.
    Manage,
}

impl ApiScope {
    /// Its word in the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Read => "read",
            Self::Manage => "manage",
        }
    }
}

/// A string that is never printed.
#[derive(Clone)]
pub struct Secret(Box<str>);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// Whether `offered` is the secret, in time that does not depend on where they differ.
    pub fn matches(&self, offered: &str) -> bool {
        self.0.as_bytes().ct_eq(offered.as_bytes()).into()
    }

    /// The secret itself.
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
