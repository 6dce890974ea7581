//! Rebuilding of the client's request for the origin. No head is copied as it is, because many
//! fields apply to one hop only (RFC 9110 section 7.6).
//!
//! Only `Host`, `Via`, the version, the framing and the connection options come from outpace. All
//! other fields come from the client or from the target's `set_headers`.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request, Uri, Version};

use super::body::Outgoing;
use super::body_budget::occupied_by;
use crate::origin::{ParentProxy, Protocol};
use crate::policy::Target;
use crate::semantics::{self, HeaderFlags, Pseudonym};
use crate::units::{Origin, Scheme};

/// Parts of the client's request from which every attempt of an exchange is built.
#[derive(Debug)]
pub(super) struct Template {
    method: Method,
    path: PathAndQuery,
    /// End-to-end fields of the client, and fields that outpace sets, such as `Host` and `Via`.
    headers: HeaderMap,
    /// True if the client accepts trailers (`TE: trailers`, RFC 9110 section 10.1.4).
    te: bool,
    chunked: bool,
    /// Protocol switch that the client requests (RFC 9110 section 7.8), or `None`.
    pub(super) upgrade: Option<HeaderValue>,
}

impl Template {
    /// Builds the template from the client's head. Client fields are stripped before outpace sets
    /// its own fields, so that a client cannot remove those.
    pub(super) fn new(
        mut head: Parts,
        flags: HeaderFlags,
        origin: &Origin,
        target: Option<&Target>,
        chunked: bool,
        pseudonym: &Pseudonym,
    ) -> Self {
        let asks = flags.has(HeaderFlags::UPGRADE);
        let upgrade = asks
            .then(|| semantics::requested_upgrade(&head.method, head.version, &head.headers))
            .flatten();
        let mut headers = std::mem::take(&mut head.headers);
        semantics::strip_request(&mut headers, flags);
        semantics::count_hop(&head.method, &mut headers);
        if flags.has(HeaderFlags::COOKIE) {
            semantics::join_cookies(&mut headers);
        }
        for (name, value) in target.map_or(&[][..], |target| &target.set_headers[..]) {
            headers.insert(name, value.clone());
        }
        pseudonym.add(head.version, &mut headers);
        // Usually the client's `Host` has the canonical form already, so no value is allocated.
        let written = headers.get(header::HOST);
        if !written.is_some_and(|host| origin.is_written(host.as_bytes())) {
            let host = HeaderValue::try_from(origin.authority());
            headers.insert(header::HOST, host.unwrap_or(HeaderValue::from_static("")));
        }
        Self {
            method: head.method,
            path: semantics::path_and_query(&head.uri),
            te: flags.has(HeaderFlags::TE) && headers.contains_key(header::TE),
            headers,
            chunked,
            upgrade,
        }
    }

    pub(super) const fn method(&self) -> &Method {
        &self.method
    }

    pub(super) const fn path(&self) -> &PathAndQuery {
        &self.path
    }

    pub(super) const fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Returns the bytes that the head occupies while the request waits.
    pub(super) fn occupied(&self) -> u64 {
        occupied_by(&self.headers) + self.path.as_str().len() as u64
    }

    /// Returns the client's fields to store with a deferred request. Leaves out `Prefer` and the
    /// fields that outpace or the target sets again for each delivery.
    pub(super) fn own_headers(&self, target: Option<&Target>) -> HeaderMap {
        let mut own = self.headers.clone();
        let set = target.map_or(&[][..], |target| &target.set_headers[..]);
        let ours = [
            header::HOST,
            header::VIA,
            header::CONTENT_LENGTH,
            semantics::PREFER,
        ];
        for name in set.iter().map(|(name, _)| name).chain(&ours) {
            own.remove(name);
        }
        own
    }

    /// Adds fields that outpace sends to the origin, such as `Outpace-Item` on a delivery.
    pub(super) fn add(&mut self, fields: &[(HeaderName, HeaderValue)]) {
        self.headers.extend(fields.iter().cloned());
    }

    /// Builds the request of one attempt for the protocol `spoken` on its connection. Over
    /// HTTP/1.1, plain HTTP to a parent proxy has the absolute-form (RFC 9112 section 3.2.2).
    pub(super) fn request(
        &self,
        spoken: Protocol,
        origin: &Origin,
        parent: Option<&ParentProxy>,
        body: Outgoing,
    ) -> Request<Outgoing> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        match spoken {
            Protocol::Http1 => {
                *request.version_mut() = Version::HTTP_11;
                let absolute = parent.filter(|_| origin.scheme == Scheme::Http);
                *request.uri_mut() = match absolute {
                    Some(_) => self.absolute(origin),
                    None => self.path.clone().into(),
                };
                *request.headers_mut() = self.headers.clone();
                let headers = request.headers_mut();
                self.connection_options(headers);
                if let Some(authorization) = absolute.and_then(|proxy| proxy.authorization.clone())
                {
                    headers.insert(header::PROXY_AUTHORIZATION, authorization);
                }
            }
            Protocol::Http2 => {
                *request.version_mut() = Version::HTTP_2;
                *request.uri_mut() = self.absolute(origin);
                *request.headers_mut() = self.headers.clone();
                // HTTP/2 carries the authority in `:authority` instead (RFC 9113 section 8.3.1).
                request.headers_mut().remove(header::HOST);
            }
        }
        request
    }

    fn absolute(&self, origin: &Origin) -> Uri {
        Uri::builder()
            .scheme(origin.scheme.as_str())
            .authority(origin.authority())
            .path_and_query(self.path.clone())
            .build()
            .unwrap_or_else(|_| self.path.clone().into())
    }

    fn connection_options(&self, headers: &mut HeaderMap) {
        if let Some(upgrade) = &self.upgrade {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, upgrade.clone());
        } else if self.te {
            // `TE` applies to this hop only, so `Connection` must name it (RFC 9110 section
            // 10.1.4).
            headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        }
        if self.chunked {
            let chunked = HeaderValue::from_static("chunked");
            headers.insert(header::TRANSFER_ENCODING, chunked);
        }
    }

    /// Returns true if repeating the request has no further effect. That holds for an idempotent
    /// method (RFC 9110 section 9.2.2) and for a request with `Idempotency-Key`.
    pub(super) fn is_idempotent(&self) -> bool {
        self.method.is_idempotent() || self.headers.contains_key("idempotency-key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(request: http::request::Builder, chunked: bool) -> Template {
        let (head, ()) = request.body(()).unwrap().into_parts();
        let flags = HeaderFlags::of(&head.headers);
        let us = Pseudonym::new(1);
        Template::new(head, flags, &origin(), None, chunked, &us)
    }

    fn origin() -> Origin {
        let host = crate::units::HostName::parse("api.x.com").unwrap();
        Origin {
            scheme: Scheme::Https,
            host,
            port: 8443,
        }
    }

    #[test]
    fn the_request_that_leaves_is_rebuilt() {
        let incoming = Request::get("https://API.x.com:8443/a?b")
            .version(Version::HTTP_10)
            .header("host", "other.example")
            .header("proxy-authorization", "Basic eDp5")
            .header("connection", "close")
            .header("accept", "*/*");
        let template = template(incoming, false);
        let one = template.request(Protocol::Http1, &origin(), None, Outgoing::Empty);
        assert_eq!(one.version(), Version::HTTP_11);
        assert_eq!(one.uri().to_string(), "/a?b");
        assert_eq!(one.headers()["host"], "api.x.com:8443");
        assert_eq!(one.headers().len(), 3, "{:?}", one.headers());
        let two = template.request(Protocol::Http2, &origin(), None, Outgoing::Empty);
        assert_eq!(two.uri().to_string(), "https://api.x.com:8443/a?b");
        assert!(!two.headers().contains_key("host"));
        assert!(template.is_idempotent());
    }

    #[test]
    fn a_body_without_length_leaves_in_chunks_whatever_the_method() {
        let template = template(Request::get("https://api.x.com/"), true);
        let one = template.request(Protocol::Http1, &origin(), None, Outgoing::Empty);
        assert_eq!(one.headers()["transfer-encoding"], "chunked");
        let two = template.request(Protocol::Http2, &origin(), None, Outgoing::Empty);
        assert!(!two.headers().contains_key("transfer-encoding"));
    }

    #[test]
    fn an_upgrade_is_asked_of_the_origin() {
        let incoming = Request::get("/chat")
            .header("connection", "upgrade")
            .header("upgrade", "websocket");
        let template = template(incoming, false);
        let one = template.request(Protocol::Http1, &origin(), None, Outgoing::Empty);
        assert_eq!(one.headers()["connection"], "upgrade");
        assert_eq!(one.headers()["upgrade"], "websocket");
    }

    #[test]
    fn plain_http_goes_to_a_parent_proxy_in_absolute_form() {
        let template = template(Request::get("/x"), false);
        let origin = Origin {
            scheme: Scheme::Http,
            port: 80,
            ..origin()
        };
        let host = crate::units::HostName::parse("proxy.corp").unwrap();
        let parent = ParentProxy {
            host,
            port: 3128,
            authorization: Some(HeaderValue::from_static("Basic eDp5")),
            no_proxy: crate::origin::NoProxy::default(),
        };
        let request = template.request(Protocol::Http1, &origin, Some(&parent), Outgoing::Empty);
        assert_eq!(request.headers()["proxy-authorization"], "Basic eDp5");
        assert!(request.uri().to_string().starts_with("http://"));
    }
}
