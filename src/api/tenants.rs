//! Rules that decide which buffers and items a caller of the API may reach. What a caller must not
//! reach does not exist for it, so the response is the same 404 as for an unknown name.

use std::sync::Arc;

use super::{ApiCall, SpoolHandle};
use crate::bounds::{SPOOL_BUFFERS_PART, SPOOL_ITEM_BYTES};
use crate::exchange::{Error, Reason};
use crate::policy::{ApiScope, Client, Glob};
use crate::spool::{Buffer, BufferConfig, BufferOwner, Item, PushAccount, StoreError, find_buffer};

/// Caller of the API, as far as it decides about access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Principal {
    /// Operator on the admin port, who may reach everything.
    Operator,
    /// Client of the configuration that has authenticated itself.
    Client(Arc<str>),
    /// Caller in a configuration without `clients`.
    Local,
}

/// Access of a caller to a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BufferAccess {
    /// Every call for the buffer and for all its items.
    Full,
    /// Calls that read the buffer or push into it, and calls for the caller's own items.
    OwnItems,
    /// Only calls for the caller's own items by their ids.
    ById,
    /// No call, because the buffer belongs to another caller.
    None,
}

impl ApiCall<'_> {
    /// Returns the caller of this call.
    pub(super) fn principal(&self) -> Principal {
        match &self.client.name {
            _ if self.is_operator => Principal::Operator,
            Some(name) => Principal::Client(Arc::clone(name)),
            None => Principal::Local,
        }
    }

    /// Returns the account against which pushes of this call count.
    pub(super) fn account(&self) -> PushAccount {
        match self.principal() {
            Principal::Client(name) => PushAccount {
                share: self.policy.spool_share(&name),
                client: Some(name),
            },
            Principal::Operator | Principal::Local => PushAccount::default(),
        }
    }

    /// Returns the owner of a buffer that this call creates.
    pub(super) fn owner(&self) -> BufferOwner {
        match self.principal() {
            Principal::Client(name) => BufferOwner::Client(name.to_string()),
            Principal::Operator | Principal::Local => BufferOwner::Local,
        }
    }

    /// Returns the stored name of a buffer of this caller. It begins with the name of the client, so
    /// that each client has names of its own.
    pub(super) fn stored_name(&self, name: &str) -> String {
        match self.principal() {
            Principal::Client(client) => format!("{client}:{name}"),
            Principal::Operator | Principal::Local => name.to_owned(),
        }
    }

    /// Returns the name of a buffer as this caller knows it.
    pub(super) fn shown_name<'b>(&self, buffer: &'b Buffer) -> &'b str {
        match (&buffer.terms.owner, self.principal()) {
            (BufferOwner::Client(owner), Principal::Client(_)) => {
                let own = buffer.name.strip_prefix(&**owner);
                let own = own.and_then(|name| name.strip_prefix(':'));
                own.unwrap_or(&buffer.name)
            }
            _ => &buffer.name,
        }
    }

    fn configured(&self) -> Option<&Client> {
        let name = self.client.name.as_ref();
        let mut clients = self.policy.clients.iter();
        clients.find(|client| Some(&client.name) == name)
    }

    /// Returns true if the caller has a scope. Operators, and all callers in a configuration without
    /// clients, have all scopes.
    pub(super) fn has(&self, scope: ApiScope) -> bool {
        self.is_operator
            || self.client.name.is_none()
            || self
                .configured()
                .is_some_and(|client| client.scopes.contains(&scope))
    }

    /// Checks that the caller has a scope.
    ///
    /// # Errors
    /// Returns [`Reason::ScopeMissing`] if it does not have the scope.
    pub(super) fn needs(&self, scope: ApiScope) -> Result<(), Error> {
        if self.has(scope) {
            return Ok(());
        }
        let name = self.client.name.as_deref().unwrap_or_default();
        let scope = scope.word();
        let detail = format!("client `{name}` does not have the scope `{scope}`");
        Err(Error::new(Reason::ScopeMissing, detail))
    }

    /// Returns the access of this caller to a buffer.
    pub(super) fn access(&self, buffer: &Buffer) -> BufferAccess {
        let terms = &buffer.terms;
        match (&terms.owner, self.principal()) {
            (_, Principal::Operator) | (BufferOwner::Local, Principal::Local) => BufferAccess::Full,
            (BufferOwner::Client(owner), Principal::Client(name)) if **owner == *name => {
                BufferAccess::Full
            }
            (BufferOwner::Declared, Principal::Client(name)) => match &terms.clients {
                Some(clients) if !clients.iter().any(|client| **client == *name) => {
                    BufferAccess::ById
                }
                _ => BufferAccess::OwnItems,
            },
            (BufferOwner::Declared | BufferOwner::Overflow, Principal::Local) => {
                BufferAccess::OwnItems
            }
            (BufferOwner::Overflow, Principal::Client(_)) => BufferAccess::ById,
            _ => BufferAccess::None,
        }
    }

    /// Returns true if the caller sees the items of all in a buffer. A configuration without clients
    /// knows only one caller.
    pub(super) fn sees_all_items(&self, buffer: &Buffer) -> bool {
        self.access(buffer) == BufferAccess::Full || self.principal() == Principal::Local
    }

    /// Returns true if the caller pushed this item into a buffer that is not its own.
    pub(super) fn pushed(&self, item: &Item) -> bool {
        match self.principal() {
            Principal::Client(name) => item.request.client.as_deref() == Some(&*name),
            Principal::Local => item.request.client.is_none(),
            Principal::Operator => true,
        }
    }

    /// Checks that the caller may change a buffer, empty it or stop it.
    ///
    /// # Errors
    /// Returns [`Reason::OperatorsOnly`] for a buffer of the configuration or of deferred requests.
    pub(super) fn needs_full(&self, buffer: &Buffer) -> Result<(), Error> {
        if self.access(buffer) == BufferAccess::Full {
            return Ok(());
        }
        let name = &buffer.name;
        let detail = match buffer.terms.owner {
            BufferOwner::Overflow => format!("buffer `{name}` holds the deferred requests of all"),
            _ => format!("buffer `{name}` is declared in the configuration"),
        };
        Err(Error::new(Reason::OperatorsOnly, detail))
    }

    /// Checks that a pushed item may replace the method or the path of its buffer.
    ///
    /// # Errors
    /// Returns [`Reason::OverrideNotAllowed`] if the buffer does not allow it.
    pub(super) fn check_overrides(
        &self,
        buffer: &Buffer,
        method: Option<&str>,
        path: Option<&str>,
    ) -> Result<(), Error> {
        let allow = match &buffer.terms.allow {
            Some(allow) => allow.clone(),
            // This caller may change the buffer itself, so nothing is gained by a refusal.
            None if self.access(buffer) == BufferAccess::Full && self.has(ApiScope::Manage) => {
                return Ok(());
            }
            None => Default::default(),
        };
        let refused = |what: &str, value: &str| {
            let name = self.shown_name(buffer);
            let detail = format!("buffer `{name}` does not allow items with the {what} `{value}`");
            Err(Error::new(Reason::OverrideNotAllowed, detail))
        };
        if let Some(method) = method
            && method != buffer.terms.method
            && !allow.methods.iter().any(|allowed| allowed == method)
        {
            return refused("method", method);
        }
        if let Some(path) = path {
            let plain = path.split_once('?').map_or(path, |(plain, _)| plain);
            let mut allowed = allow.paths.iter().map(|pattern| Glob::path(pattern));
            if !has_one_meaning(plain) || !allowed.any(|pattern| pattern.matches_path(plain)) {
                return refused("path", plain);
            }
        }
        Ok(())
    }
}

/// Part of a request that some origins take from a header field instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overriding {
    /// Method of the request.
    Method,
    /// Path of the request.
    Path,
}

/// Returns the part of the request that some origins take from this header field. Many of them do not
/// distinguish `_` and `-` in names.
pub(super) fn overriding_field(name: &str) -> Option<Overriding> {
    match name.to_ascii_lowercase().replace('_', "-").as_str() {
        "x-http-method-override" | "x-http-method" | "x-method-override" | "x-original-method" => {
            Some(Overriding::Method)
        }
        "x-original-url" | "x-rewrite-url" | "x-original-uri" | "x-forwarded-uri"
        | "x-forwarded-path" => Some(Overriding::Path),
        _ => None,
    }
}

/// Returns true if all origins read a path in the same way. Some decode it twice, take a backslash or
/// its code for a slash, drop a parameter before the dots, or do not remove dot segments.
fn has_one_meaning(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let doubtful = ["%2f", "%5c", "\\", "%25", "..;", "//", "%2e", "%00"];
    let dots = path.split('/').any(|segment| matches!(segment, "." | ".."));
    !dots && !doubtful.iter().any(|part| lower.contains(part))
}

impl SpoolHandle {
    /// Checks that the buffers of a client take at most their part of its share, with a new buffer or
    /// with a new configuration of the buffer `changed`.
    ///
    /// # Errors
    /// Returns [`Reason::SpoolShareFull`] if they would take more.
    pub(super) fn check_buffer_share(
        &self,
        call: &ApiCall<'_>,
        terms: &BufferConfig,
        changed: Option<i64>,
    ) -> Result<(), Error> {
        let account = call.account();
        let Some((client, share)) = account.client.zip(account.share.max) else {
            return Ok(());
        };
        let own = self.store.buffers().into_iter();
        let own = own
            .filter(|buffer| buffer.terms.owner == call.owner() && Some(buffer.number) != changed);
        let used: u64 = own.map(|buffer| buffer_bytes(&buffer.terms)).sum();
        let max = share / SPOOL_BUFFERS_PART;
        if used + buffer_bytes(terms) <= max {
            return Ok(());
        }
        let unit = "bytes of buffers";
        Err(StoreError::ShareFull {
            client,
            used,
            max,
            unit,
        }
        .into())
    }

    /// Returns a buffer that the caller may see, by its id or its name, after a refresh of the
    /// store's cache.
    ///
    /// # Errors
    /// Returns an unknown buffer if there is none, or if it is another's.
    pub(super) async fn buffer(&self, call: &ApiCall<'_>, wanted: &str) -> Result<Buffer, Error> {
        self.store.refresh().await?;
        let unknown = || StoreError::Unknown(format!("buffer `{wanted}`"));
        Ok(self.visible(call, wanted).ok_or_else(unknown)?)
    }

    /// Returns a buffer like [`buffer`](Self::buffer), but refreshes the store's cache only if the
    /// buffer is missing.
    pub(super) async fn known_buffer(
        &self,
        call: &ApiCall<'_>,
        wanted: &str,
    ) -> Result<Buffer, Error> {
        match self.visible(call, wanted) {
            Some(known) => Ok(known),
            None => self.buffer(call, wanted).await,
        }
    }

    fn visible(&self, call: &ApiCall<'_>, wanted: &str) -> Option<Buffer> {
        let own = call.stored_name(wanted);
        let found = self.named(&own).filter(|found| sees(call, found));
        found.or_else(|| find_buffer(&*self.store, wanted).filter(|found| sees(call, found)))
    }

    /// Returns all buffers that the caller may see.
    pub(super) async fn visible_buffers(&self, call: &ApiCall<'_>) -> Result<Vec<Buffer>, Error> {
        self.store.refresh().await?;
        let mut all = self.store.buffers();
        all.retain(|buffer| sees(call, buffer));
        Ok(all)
    }

    /// Returns an item that the caller may see, with its buffer.
    ///
    /// # Errors
    /// Returns an unknown item if there is none, or if it is another's.
    pub(super) async fn visible_item(
        &self,
        call: &ApiCall<'_>,
        id: &str,
    ) -> Result<(Item, Option<Buffer>), Error> {
        let unknown = || StoreError::Unknown(format!("item `{id}`"));
        let item = self.store.item(Arc::from(id)).await;
        let item = item.map_err(|error| match error {
            // Both errors must be the same text.
            StoreError::Unknown(_) => unknown(),
            error => error,
        })?;
        if self.store.buffer(item.buffer).is_none() {
            self.store.refresh().await?;
        }
        let buffer = self.store.buffer(item.buffer);
        let access = buffer
            .as_ref()
            .map_or(BufferAccess::None, |buffer| call.access(buffer));
        match access {
            BufferAccess::Full => Ok((item, buffer)),
            BufferAccess::OwnItems | BufferAccess::ById if call.pushed(&item) => Ok((item, buffer)),
            _ => Err(unknown().into()),
        }
    }
}

/// Returns the bytes that a buffer counts for, without its items.
fn buffer_bytes(terms: &BufferConfig) -> u64 {
    let fields = terms.headers.iter();
    let fields: usize = fields.map(|(name, value)| name.len() + value.len()).sum();
    SPOOL_ITEM_BYTES + (terms.url.len() + fields) as u64
}

fn sees(call: &ApiCall<'_>, buffer: &Buffer) -> bool {
    matches!(
        call.access(buffer),
        BufferAccess::Full | BufferAccess::OwnItems
    )
}
