//! Access of the one command for which `outpace run` has started a proxy.

use std::sync::Arc;

use super::{Policy, Secret};

/// Name in the proxy URL of the command, before its token.
pub const COMMAND_NAME: &str = "run";

/// Token that the command has in its proxy URL. The command runs as the user who started the proxy,
/// and reaches every address without the proxy, too. So the proxy lets it reach all ports, and
/// private addresses except those of metadata services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandAccess(Arc<Secret>);

impl CommandAccess {
    /// Creates the access that this token opens.
    pub fn new(token: Secret) -> Self {
        Self(Arc::new(token))
    }

    /// Returns true if a proxy URL with this name and token belongs to the command.
    pub fn matches(&self, name: &str, token: &str) -> bool {
        name == COMMAND_NAME && self.0.matches(token)
    }

    /// Returns the text of the token. Callers must not log it.
    pub fn reveal(&self) -> &str {
        self.0.reveal()
    }
}

impl Policy {
    /// Restricts the forward proxy to one command, which reaches all ports and private addresses.
    pub fn serve_command(&mut self, access: CommandAccess) {
        self.egress.private = true;
        self.command = Some(access);
    }
}
