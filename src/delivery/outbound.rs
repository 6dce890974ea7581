//! Conversion of a stored item into the request that is sent to its origin.

use bytes::Bytes;
use http::Request;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;

use super::sendable::{check_method, check_path};
use crate::bounds::{HEAD_BYTES, ITEM_FIELDS};
use crate::exchange::{Error, Reason};
use crate::policy::Policy;
use crate::semantics::is_credential;
use crate::spool::{Buffer, BufferConfig, BufferOwner, Item, Request as ItemRequest, destination};
use crate::units::{HostName, Origin, Scheme};

/// Error of a buffer or item that can never be sent as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsendable {
    /// The buffer's URL is not valid.
    #[error("`url`: outpace cannot send to `{0}`; write it as \"https://api.example.com/path\"")]
    Url(String),
    /// The buffer's URL names an address that is not public and not allowed.
    #[error("`url`: `{0}` is not a public address; add it to `egress.allow`")]
    Private(String),
    /// The buffer's URL names a port that requests may not name.
    #[error(
        "`url`: port {0} is not allowed; add it to `connect_ports`, or add `host:port` to the `hosts` of a target"
    )]
    Port(u16),
    /// The item's path is not valid.
    #[error("`path`: `{0}` is not a path; write it as \"/v1/orders?x=1\"")]
    Path(String),
    /// The method is not a valid HTTP method.
    #[error("`method`: `{0}` is not an HTTP method; write it as \"POST\"")]
    Method(String),
    /// The method is one that outpace does not forward.
    #[error("`method`: `{0}` cannot be sent from a buffer; write another method, such as \"POST\"")]
    NotForwarded(String),
    /// The name or the value of a header field is not valid.
    #[error("`headers`: the name or value of `{0}` is invalid; use visible ASCII characters")]
    Field(String),
    /// The header field belongs to the connection, or outpace sets it itself.
    #[error("`headers`: outpace sets or removes `{0}` itself; leave it out")]
    Reserved(String),
    /// The header fields exceed the bounds of a request.
    #[error(
        "`headers`: at most {ITEM_FIELDS} fields and {HEAD_BYTES} bytes are allowed; leave some out"
    )]
    TooManyFields,
    /// The item was pushed for another destination than its buffer has now.
    #[error("the item was pushed for `{0}` and its buffer sends to `{1}` now; push it again")]
    OtherDestination(String, String),
    /// The target of the host sets credentials that must not leave for the buffer's URL.
    #[error("`url`: {0}")]
    TargetCredential(String),
    /// Credentials of the configuration would leave in clear text.
    #[error(
        "`headers`: `{0}` holds a credential and `{1}` is not https; write an https URL, or set `set_headers_over_http: true` on the target of the host"
    )]
    NeedsTls(String, String),
}

impl From<Unsendable> for Error {
    fn from(problem: Unsendable) -> Self {
        let reason = match &problem {
            Unsendable::Private(_) => Reason::AddressProhibited,
            Unsendable::NeedsTls(..) | Unsendable::TargetCredential(_) => {
                Reason::CredentialsNeedTls
            }
            Unsendable::Port(_) => Reason::PortNotAllowed,
            _ => Reason::MalformedRequest,
        };
        Self::new(reason, problem.to_string())
    }
}

/// Splits an `http` or `https` URL into origin and path with query.
///
/// # Errors
/// Returns [`Unsendable::Url`] if the text is no such URL or has credentials.
pub(super) fn origin_of(text: &str) -> Result<(Origin, PathAndQuery), Unsendable> {
    // The message repeats neither a URL that may contain a password, nor a query.
    let told = if text.contains('@') {
        "a URL with credentials"
    } else {
        without_query(text)
    };
    let fail = || Unsendable::Url(told.to_owned());
    let url = url::Url::parse(text).map_err(|_cause| fail())?;
    let scheme = match url.scheme() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return Err(fail()),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(fail());
    }
    let host = url.host_str().and_then(|host| HostName::parse(host).ok());
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let origin = Origin {
        scheme,
        host: host.ok_or_else(fail)?,
        port: url.port().unwrap_or(scheme.default_port()),
    };
    Ok((origin, path.parse().map_err(|_cause| fail())?))
}

/// Returns a URL or path without its query and fragment, which may hold secrets.
pub fn without_query(text: &str) -> &str {
    text.split(['?', '#']).next().unwrap_or(text)
}

/// Checks that no credential of a declared buffer leaves in clear text, unless the target of its
/// host allows that.
///
/// # Errors
/// Returns [`Unsendable::NeedsTls`] with the name of the first such field.
pub fn check_credentials(terms: &BufferConfig, policy: &Policy) -> Result<(), Unsendable> {
    let (origin, _) = origin_of(&terms.url)?;
    let secret = terms.headers.iter().find(|(name, _)| is_credential(name));
    // The credentials of a declared buffer are the operator's.
    let is_declared = terms.owner == BufferOwner::Declared;
    let Some((name, _)) = secret.filter(|_| is_declared && origin.scheme == Scheme::Http) else {
        return Ok(());
    };
    let target = policy.target(&origin.host, origin.port);
    match target.is_some_and(|target| target.set_headers_over_http) {
        true => Ok(()),
        false => Err(Unsendable::NeedsTls(name.clone(), origin.to_string())),
    }
}

/// Returns the origin of a buffer, and the head of its requests without the fields of single items.
///
/// # Errors
/// Returns an [`Unsendable`] if the buffer's URL, method or header fields are not valid.
pub fn head_of(terms: &BufferConfig) -> Result<(Origin, Parts), Unsendable> {
    let (origin, path) = origin_of(&terms.url)?;
    let mut request = Request::new(());
    *request.method_mut() = check_method(&terms.method)?;
    *request.uri_mut() = path.into();
    insert_fields(request.headers_mut(), terms.headers.iter())?;
    Ok((origin, request.into_parts().0))
}

fn insert_fields<'a>(
    headers: &mut HeaderMap,
    fields: impl Iterator<Item = &'a (String, String)>,
) -> Result<(), Unsendable> {
    for (name, value) in fields {
        let field = || Unsendable::Field(name.clone());
        let known = HeaderName::try_from(name.as_str()).map_err(|_cause| field())?;
        headers.insert(
            known,
            HeaderValue::try_from(value.as_str()).map_err(|_cause| field())?,
        );
    }
    Ok(())
}

/// Builds the request of an item and returns it with its origin. The item's fields replace the
/// buffer's fields of the same name.
pub(super) fn request(
    buffer: &Buffer,
    item: &Item,
    (own, body): (&ItemRequest, Bytes),
    policy: &Policy,
) -> Result<(Origin, Request<Bytes>), Unsendable> {
    let (origin, path) = origin_of(&buffer.terms.url)?;
    check_credentials(&buffer.terms, policy)?;
    let (bound, now) = (&own.destination, destination(&buffer.terms.url));
    if let Some(bound) = bound.as_ref().filter(|bound| **bound != now) {
        return Err(Unsendable::OtherDestination(bound.clone(), now));
    }
    let path = match &own.path {
        Some(own) => check_path(own)?,
        None => path,
    };
    let method = own.method.as_ref().unwrap_or(&buffer.terms.method);
    let method = check_method(method)?;
    let length = body.len();
    let typed = if serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok() {
        "application/json"
    } else {
        "text/plain; charset=utf-8"
    };
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = path.into();
    let headers = request.headers_mut();
    insert_fields(headers, buffer.terms.headers.iter().chain(&own.headers))?;
    if length > 0 {
        let typed = HeaderValue::from_static(typed);
        headers.entry(header::CONTENT_TYPE).or_insert(typed);
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    // The key is the same on every delivery, so an origin that supports it can drop duplicates.
    if let Ok(name) = HeaderValue::try_from(item.reference()) {
        headers.entry("idempotency-key").or_insert(name);
    }
    Ok((origin, request))
}

/// Returns the fields that tell the origin the number of attempts and a possible duplicate. An
/// origin of a target also gets the item's reference.
pub(super) fn fields(item: &Item, has_target: bool) -> Vec<(HeaderName, HeaderValue)> {
    let mut fields = vec![(
        HeaderName::from_static("outpace-attempt"),
        item.attempts.into(),
    )];
    if has_target && let Ok(name) = HeaderValue::try_from(item.reference()) {
        fields.push((HeaderName::from_static("outpace-item"), name));
    }
    if item.maybe_duplicate {
        let name = HeaderName::from_static("outpace-maybe-duplicate");
        fields.push((name, HeaderValue::from_static("1")));
    }
    fields
}

/// Returns header fields as text, in the form in which the spool stores them.
pub(super) fn texts<'a>(
    fields: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>,
) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let fields = fields.map(|(name, value)| (name.to_string(), text(value)));
    fields.collect()
}
