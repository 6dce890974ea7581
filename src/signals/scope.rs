//! Part of an API for which a signal holds, as far as the response says.

use http::HeaderMap;

use super::fields::LimitFields;
use super::values::label;
use super::{Peek, ResponseView, SignalKind};

/// The part of an API for which a signal holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SignalScope {
    /// The response does not say, so the limits of the request decide.
    #[default]
    Unknown,
    /// All that this operator sends to the API, with any credential.
    Target,
    /// All requests to this host, which is the tenant.
    Host,
    /// All requests with this credential.
    Credential,
    /// All requests with this credential to the pool with this name.
    Resource(Box<str>),
    /// All requests with this credential to this endpoint.
    Endpoint,
    /// All requests that concern the same object.
    Object,
}

/// Reads the scope of a response with these limits. A response without a signal has one too, because
/// it tells the pool of the limits that it shows.
pub(super) fn scope(
    response: &ResponseView<'_>,
    kind: SignalKind,
    fields: &LimitFields,
) -> SignalScope {
    let peek = response.peek.filter(|_| kind != SignalKind::None);
    if !fields.any {
        return match peek.is_some_and(Peek::is_global) {
            true => SignalScope::Credential,
            false => SignalScope::Unknown,
        };
    }
    let text = |name: &str| field(response.headers, name);
    if let Some(scope) = text("stripe-rate-limited-reason").and_then(of_stripe) {
        return scope;
    }
    if let Some(scope) = text("ratelimit-reason").and_then(of_jira) {
        return scope;
    }
    let is_global = text("x-ratelimit-scope") == Some("global")
        || text("x-ratelimit-global").is_some_and(|text| text.eq_ignore_ascii_case("true"))
        || peek.is_some_and(|peek| peek.is_global() || peek.is_secondary());
    if is_global {
        return SignalScope::Credential;
    }
    let resource = text("x-ratelimit-resource");
    // GitHub refuses although something is left only because of its secondary limits.
    let is_spent = fields
        .dimensions
        .iter()
        .any(|limit| limit.remaining == Some(0));
    let has_rest = fields
        .dimensions
        .iter()
        .any(|limit| limit.remaining.is_some());
    if resource.is_some() && kind == SignalKind::Limited && has_rest && !is_spent {
        return SignalScope::Credential;
    }
    let pool = resource
        .or_else(|| text("x-ratelimit-bucket"))
        .or_else(|| text("x-ratelimit-endpoint-name"));
    pool.and_then(label)
        .map_or(SignalScope::Unknown, SignalScope::Resource)
}

fn field<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn of_stripe(reason: &str) -> Option<SignalScope> {
    match reason {
        "global-rate" | "global-concurrency" => Some(SignalScope::Credential),
        "endpoint-rate" | "endpoint-concurrency" => Some(SignalScope::Endpoint),
        "resource-specific" => Some(SignalScope::Object),
        _ => None,
    }
}

fn of_jira(reason: &str) -> Option<SignalScope> {
    match reason {
        "jira-burst-based" => Some(SignalScope::Endpoint),
        "jira-per-issue-on-write" => Some(SignalScope::Object),
        "jira-quota-global-based" => Some(SignalScope::Target),
        "jira-quota-tenant-based" => Some(SignalScope::Host),
        _ => None,
    }
}
