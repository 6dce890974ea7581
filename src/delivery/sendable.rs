//! Checks of buffers and items when they are written, so that nothing is stored that can never be
//! sent.

use std::net::IpAddr;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method};

use super::outbound::{Unsendable, origin_of, without_query};
use crate::bounds::{HEAD_BYTES, ITEM_FIELDS};
use crate::exchange::refused_credential;
use crate::origin::AddressClass;
use crate::policy::{Egress, Policy};
use crate::semantics::is_reserved;
use crate::spool::BufferConfig;
use crate::units::Origin;

/// Checks the URL, the method and the header fields of a buffer.
///
/// # Errors
/// Returns [`Unsendable`] for the first part that can never be sent.
pub fn check_buffer(config: &BufferConfig, policy: &Policy) -> Result<(), Unsendable> {
    let (origin, _) = origin_of(&config.url)?;
    if is_private(&origin, &policy.egress) {
        return Err(Unsendable::Private(origin.host.to_string()));
    }
    check_port(config, policy)?;
    check_target(config, policy)?;
    check_method(&config.method)?;
    check_fields(&config.headers)
}

/// Checks the port in the URL of a buffer, which a reload may have forbidden since the buffer was
/// written.
///
/// # Errors
/// Returns [`Unsendable::Port`] for a port that requests may not name.
pub fn check_port(config: &BufferConfig, policy: &Policy) -> Result<(), Unsendable> {
    let (origin, _) = origin_of(&config.url)?;
    match policy.request_port_allowed(&origin) {
        true => Ok(()),
        false => Err(Unsendable::Port(origin.port)),
    }
}

/// Checks that the target of the host sets no credentials which must not leave for the buffer's URL.
///
/// # Errors
/// Returns [`Unsendable::TargetCredential`] if no item of the buffer could be sent.
pub fn check_target(config: &BufferConfig, policy: &Policy) -> Result<(), Unsendable> {
    let (origin, _) = origin_of(&config.url)?;
    let target = policy.target(&origin.host, origin.port);
    match target.and_then(|target| refused_credential(target, &origin)) {
        Some(refused) => Err(Unsendable::TargetCredential(refused)),
        None => Ok(()),
    }
}

/// Returns true if the URL itself names an address that outpace does not dial.
fn is_private(origin: &Origin, egress: &Egress) -> bool {
    let host = origin.host.as_str();
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) => {
            let allowed = egress.allows((ip, origin.port).into());
            AddressClass::of(ip) != AddressClass::Public && !allowed
        }
        Err(_) => {
            host == "localhost"
                && !egress.resolve.contains_key(&origin.host)
                && !egress.allows(([127, 0, 0, 1], origin.port).into())
        }
    }
}

/// Parses the method of a request that a buffer sends.
///
/// # Errors
/// Returns [`Unsendable`] for a text that is no method, and for `CONNECT` and `TRACE`.
pub fn check_method(text: &str) -> Result<Method, Unsendable> {
    match text.parse::<Method>() {
        Ok(Method::CONNECT | Method::TRACE) => Err(Unsendable::NotForwarded(text.to_owned())),
        Ok(method) => Ok(method),
        Err(_invalid) => Err(Unsendable::Method(text.to_owned())),
    }
}

/// Parses the path with query of an item.
///
/// # Errors
/// Returns [`Unsendable::Path`] for a text that is no path.
pub fn check_path(text: &str) -> Result<PathAndQuery, Unsendable> {
    let wrong = || Unsendable::Path(without_query(text).to_owned());
    if !text.starts_with('/') {
        return Err(wrong());
    }
    text.parse().map_err(|_invalid| wrong())
}

/// Checks the header fields of a buffer or item.
///
/// # Errors
/// Returns [`Unsendable`] for an invalid field, for a field that outpace sets itself, and for more
/// fields than a request may have.
pub fn check_fields<'a>(
    fields: impl IntoIterator<Item = &'a (String, String)>,
) -> Result<(), Unsendable> {
    let (mut count, mut bytes) = (0, 0);
    for (name, value) in fields {
        let known = HeaderName::try_from(name.as_str());
        let (Ok(known), Ok(_)) = (known, HeaderValue::try_from(value.as_str())) else {
            return Err(Unsendable::Field(name.clone()));
        };
        if is_reserved(&known) {
            return Err(Unsendable::Reserved(name.clone()));
        }
        count += 1;
        bytes += name.len() + value.len();
    }
    if count > ITEM_FIELDS || bytes > HEAD_BYTES {
        return Err(Unsendable::TooManyFields);
    }
    Ok(())
}

/// Prefix of the names of buffers for deferred requests, which no other buffer may have.
const OVERFLOW: &str = "overflow.";

/// Checks the name of a buffer against the names that outpace itself uses.
///
/// # Errors
/// Returns a message if the name begins with `overflow.`.
pub fn check_name(name: &str) -> Result<(), String> {
    match name.starts_with(OVERFLOW) {
        true => Err(format!(
            "`{name}` is a name for deferred requests; choose one that does not begin with `{OVERFLOW}`"
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(names: &[&str]) -> Vec<(String, String)> {
        let field = |name: &&str| ((*name).to_owned(), "1".to_owned());
        names.iter().map(field).collect()
    }

    #[test]
    fn a_field_of_the_connection_or_of_outpace_is_refused() {
        for name in [
            "transfer-encoding",
            "Content-Length",
            "CONNECTION",
            "Keep-Alive",
            "te",
            "Trailer",
            "upgrade",
            "expect",
            "host",
            "via",
            "http2-settings",
            "proxy-authorization",
            "Proxy-Connection",
            "proxy-anything",
            "outpace-item",
            "Outpace-Max-Wait",
        ] {
            let refused = check_fields(&fields(&["x-a", name])).unwrap_err();
            assert_eq!(refused, Unsendable::Reserved(name.to_owned()));
            assert!(
                refused
                    .to_string()
                    .contains(&format!("`headers`: outpace sets or removes `{name}`"))
            );
        }
        for name in ["a b", "", ":path", "a:b", "\u{e9}", "a\nb"] {
            let refused = check_fields(&fields(&[name])).unwrap_err();
            assert_eq!(refused, Unsendable::Field(name.to_owned()));
        }
        for value in ["a\r\nb: c", "\0", "a\nb"] {
            let refused = check_fields(&[("x".to_owned(), value.to_owned())]);
            assert!(refused.is_err(), "{value:?}");
        }
        let sound = [
            "authorization",
            "cookie",
            "content-type",
            "idempotency-key",
            "date",
        ];
        assert_eq!(check_fields(&fields(&sound)), Ok(()));
    }

    /// Reaches the bound `ITEM_FIELDS`.
    #[test]
    fn p14_bounds_fields_of_an_item() {
        let names: Vec<String> = (0..=ITEM_FIELDS).map(|n| format!("x-{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(
            check_fields(&fields(&names)),
            Err(Unsendable::TooManyFields)
        );
        assert_eq!(check_fields(&fields(&names[1..])), Ok(()));
        let long = |bytes: usize| [("x".to_owned(), "a".repeat(bytes))];
        assert_eq!(check_fields(&long(HEAD_BYTES - 1)), Ok(()));
        assert_eq!(
            check_fields(&long(HEAD_BYTES)),
            Err(Unsendable::TooManyFields)
        );
    }

    #[test]
    fn methods_and_paths_that_cannot_be_sent_are_refused() {
        for method in ["CONNECT", "TRACE", "", "G T", "GET\r\n", "GET/", "\u{e9}"] {
            assert!(check_method(method).is_err(), "{method:?}");
        }
        for method in ["GET", "POST", "PURGE", "M-SEARCH", "QUERY"] {
            assert!(check_method(method).is_ok(), "{method}");
        }
        for path in [
            "",
            "no",
            "*",
            "http://a.test/",
            "/a b",
            "/a\r\nb",
            "/\0",
            "?x",
        ] {
            assert!(check_path(path).is_err(), "{path:?}");
        }
        for path in ["/", "/a?b=c", "/a%20b", "//a"] {
            assert!(check_path(path).is_ok(), "{path}");
        }
    }

    #[test]
    fn a_url_that_cannot_be_reached_is_refused() {
        let check = |url: &str| {
            let config = BufferConfig {
                url: url.to_owned(),
                ..BufferConfig::default()
            };
            check_buffer(&config, &Policy::default())
        };
        for url in [
            "",
            "notaurl",
            "/path",
            "ftp://a.test/",
            "http://",
            "https://u:p@a.test/",
            "http://a.test:99999/",
        ] {
            assert!(matches!(check(url), Err(Unsendable::Url(_))), "{url}");
        }
        for url in [
            "http://127.0.0.1/",
            "http://[::1]/",
            "http://localhost:9/",
            "http://169.254.169.254/",
            "http://0x7f.1/",
        ] {
            assert!(matches!(check(url), Err(Unsendable::Private(_))), "{url}");
        }
        assert_eq!(check("https://api.example.com/path"), Ok(()));
    }
}
