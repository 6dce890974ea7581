//! Who sends: by the credentials of a proxy URL, or by a field on routes. Where no clients are
//! configured, anyone who can reach the port may send.

use std::sync::Arc;

use http::HeaderMap;

use crate::exchange::{ClientIdentity, Error, Reason};
use crate::policy::{Client, Policy};
use crate::semantics::{CLIENT_TOKEN, proxy_credentials};

/// For requests to the forward proxy: `Proxy-Authorization: Basic`.
pub(super) fn by_proxy_field(
    headers: &HeaderMap,
    policy: &Policy,
    client: &ClientIdentity,
) -> Result<ClientIdentity, Error> {
    if policy.clients.is_empty() {
        return Ok(client.clone());
    }
    let offered = proxy_credentials(headers);
    identify(
        Reason::ClientUnknown,
        offered
            .as_ref()
            .map(|(name, token)| (name.as_str(), token.as_str())),
        policy,
        client,
    )
}

/// For requests to a route: `Outpace-Client-Token: NAME:TOKEN`.
pub(super) fn by_token_field(
    headers: &HeaderMap,
    policy: &Policy,
    client: &ClientIdentity,
) -> Result<ClientIdentity, Error> {
    if policy.clients.is_empty() {
        return Ok(client.clone());
    }
    let offered = headers
        .get(CLIENT_TOKEN)
        .and_then(|value| value.to_str().ok()?.split_once(':'));
    identify(Reason::ClientTokenUnknown, offered, policy, client)
}

/// For calls of the API: as on a route, or `Authorization: Bearer NAME:TOKEN`.
pub(super) fn by_api_field(
    headers: &HeaderMap,
    policy: &Policy,
    client: &ClientIdentity,
) -> Result<ClientIdentity, Error> {
    let bearer = headers.get(http::header::AUTHORIZATION);
    let bearer = bearer.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    match bearer {
        Some(bearer) if !policy.clients.is_empty() => {
            let offered = bearer.trim().split_once(':');
            identify(Reason::ClientTokenUnknown, offered, policy, client)
        }
        _ => by_token_field(headers, policy, client),
    }
}

fn identify(
    no: Reason,
    offered: Option<(&str, &str)>,
    policy: &Policy,
    client: &ClientIdentity,
) -> Result<ClientIdentity, Error> {
    let Some((name, token)) = offered else {
        return Err(Error::new(no, "the request carries no credentials"));
    };
    let matches = |known: &&Client| *known.name == *name && known.token.matches(token);
    match policy.clients.iter().find(matches) {
        Some(known) => Ok(client.known_as(Arc::clone(&known.name), known.group.clone())),
        // Which of the two is wrong is nobody's business.
        None => Err(Error::new(no, "the credentials are of no known client")),
    }
}
