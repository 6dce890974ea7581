//! Authentication of clients by the credentials of a proxy URL or by a header field. If the policy
//! configures no `clients`, every client that reaches the port may send.

use http::HeaderMap;

use crate::exchange::{ClientIdentity, Error, Reason};
use crate::policy::{Client, Policy};
use crate::semantics::{CLIENT_TOKEN, bearer_token, proxy_credentials};

/// Authenticates a request to the forward proxy by `Proxy-Authorization: Basic`.
///
/// # Errors
/// Returns [`Reason::ClientUnknown`] if the credentials are missing or match no client.
pub(super) fn by_proxy_field(
    headers: &HeaderMap,
    policy: &Policy,
    client: &ClientIdentity,
) -> Result<ClientIdentity, Error> {
    let offered = proxy_credentials(headers);
    let offered = offered.as_ref();
    let offered = offered.map(|(name, token)| (name.as_str(), token.as_str()));
    if let Some(command) = policy
        .command
        .as_ref()
        .filter(|_| policy.clients.is_empty())
    {
        return match offered {
            Some((name, token)) if command.matches(name, token) => {
                Ok(client.with_access(&policy.anyone))
            }
            _ => Err(Error {
                remedy: Some(String::from(
                    "Start the program by `outpace run`, or run `outpace serve` for all programs.",
                )),
                ..Error::new(
                    Reason::ClientUnknown,
                    "`outpace run` has started this proxy for one command, and the request lacks the credentials in HTTPS_PROXY of that command",
                )
            }),
        };
    }
    identify(Reason::ClientUnknown, offered, policy, client)
}

/// Authenticates a request to a route by `Outpace-Client-Token: NAME:TOKEN`.
///
/// # Errors
/// Returns [`Reason::ClientTokenUnknown`] if the token is missing or matches no client.
pub(super) fn by_token_field(
    headers: &HeaderMap,
    policy: &Policy,
    client: &ClientIdentity,
) -> Result<ClientIdentity, Error> {
    let offered = headers.get(CLIENT_TOKEN);
    let offered = offered.and_then(|value| value.to_str().ok()?.split_once(':'));
    identify(Reason::ClientTokenUnknown, offered, policy, client)
}

/// Authenticates an API call by `Authorization: Bearer NAME:TOKEN`, or as on a route.
///
/// # Errors
/// Returns [`Reason::ClientTokenUnknown`] if the token is missing or matches no client.
pub(super) fn by_api_field(
    headers: &HeaderMap,
    policy: &Policy,
    client: &ClientIdentity,
) -> Result<ClientIdentity, Error> {
    match bearer_token(headers) {
        Some(bearer) => {
            let offered = bearer.split_once(':');
            identify(Reason::ClientTokenUnknown, offered, policy, client)
        }
        None => by_token_field(headers, policy, client),
    }
}

/// Returns true if the request carries credentials for outpace, valid or not. `Authorization` counts
/// only if it looks like a client's token, because it is usually meant for the origin.
pub(super) fn has_credentials(headers: &HeaderMap) -> bool {
    let bearer = bearer_token(headers);
    headers.contains_key(http::header::PROXY_AUTHORIZATION)
        || headers.contains_key(CLIENT_TOKEN)
        || bearer.is_some_and(|bearer| bearer.contains(':'))
}

fn identify(
    no: Reason,
    offered: Option<(&str, &str)>,
    policy: &Policy,
    client: &ClientIdentity,
) -> Result<ClientIdentity, Error> {
    if policy.clients.is_empty() {
        return Ok(client.with_access(&policy.anyone));
    }
    let Some((name, token)) = offered else {
        return Err(Error::new(no, "the request carries no credentials"));
    };
    let matches = |known: &&Client| *known.name == *name && known.token.matches(token);
    match policy.clients.iter().find(matches) {
        Some(known) => Ok(client.known_as(known)),
        // The message does not say if the name or the token is wrong, because that would help an
        // attacker.
        None => Err(Error::new(no, "the credentials match no configured client")),
    }
}
