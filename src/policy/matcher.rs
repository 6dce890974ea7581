//! Which requests of a target a limit applies to.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderName, Method};

use super::{Caller, RequestView};

/// All parts that are set must match.
#[derive(Debug, Clone, Default)]
pub struct Matcher {
    /// The path, without the query.
    pub path: Option<Glob>,
    /// One of these methods; any if empty.
    pub methods: Vec<Method>,
    /// A field of the request.
    pub header: Option<HeaderPattern>,
    /// One of these clients; any if empty.
    pub clients: Vec<Arc<str>>,
    /// The client's group.
    pub group: Option<Arc<str>>,
}

impl Matcher {
    /// Whether the request is one of those meant.
    pub fn matches(&self, asked: &RequestView<'_>) -> bool {
        let request = asked.head;
        self.matches_client(asked.client)
            && (self.methods.is_empty() || self.methods.contains(&request.method))
            && self
                .path
                .as_ref()
                .is_none_or(|path| path.matches(request.uri.path().as_bytes()))
            && self
                .header
                .as_ref()
                .is_none_or(|header| header.matches(request))
    }

    /// Whether nothing but the client is asked, and it is one of those meant.
    pub fn matches_tunnel(&self, client: Option<Caller<'_>>) -> bool {
        let any_request = self.methods.is_empty() && self.path.is_none() && self.header.is_none();
        any_request && self.matches_client(client)
    }

    fn matches_client(&self, client: Option<Caller<'_>>) -> bool {
        let named = |client: Caller<'_>| self.clients.contains(client.name);
        let of_group = |client: Caller<'_>| client.group == self.group.as_ref();
        (self.clients.is_empty() || client.is_some_and(named))
            && (self.group.is_none() || client.is_some_and(of_group))
    }
}

/// `name: value`, where the value may be a glob.
#[derive(Debug, Clone)]
pub struct HeaderPattern {
    /// The field's name.
    pub name: HeaderName,
    /// Its value; one of several lines suffices.
    pub value: Glob,
}

impl HeaderPattern {
    fn matches(&self, request: &Parts) -> bool {
        request
            .headers
            .get_all(&self.name)
            .iter()
            .any(|line| self.value.matches(line.as_bytes()))
    }
}

/// A pattern in which `*` stands for any run of bytes, also none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Box<str>);

impl Glob {
    /// A pattern; every text is one.
    pub fn new(pattern: impl Into<Box<str>>) -> Self {
        Self(pattern.into())
    }

    /// Whether all of `text` fits the pattern.
    pub fn matches(&self, text: &[u8]) -> bool {
        let mut parts = self.0.as_bytes().split(|b| *b == b'*');
        let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
            return false;
        };
        let Some(mut part) = parts.next() else {
            return rest.is_empty();
        };
        for next in parts {
            let Some(at) = find(rest, part) else {
                return false;
            };
            rest = rest.get(at + part.len()..).unwrap_or_default();
            part = next;
        }
        rest.ends_with(part)
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    if part.is_empty() {
        return Some(0);
    }
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_run() {
        let fits = |pattern: &str, text: &str| Glob::new(pattern).matches(text.as_bytes());
        assert!(fits("/v1/chat", "/v1/chat") && !fits("/v1/chat", "/v1/chat/x"));
        assert!(fits("/v1/*", "/v1/") && fits("/v1/*", "/v1/a/b") && !fits("/v1/*", "/v2/a"));
        assert!(fits("*/completions", "/v1/chat/completions") && fits("*", ""));
        assert!(fits("/a/*/c*", "/a/b/c/d") && !fits("/a/*/c", "/a/b/d"));
        assert!(!fits("ab*ba", "aba"));
    }

    #[test]
    fn every_part_must_match() {
        let (request, ()) = http::Request::post("http://h/v1/x?y")
            .header("x-lane", "batch")
            .body(())
            .unwrap()
            .into_parts();
        let matcher = Matcher {
            path: Some(Glob::new("/v1/*")),
            methods: vec![Method::POST],
            header: Some(HeaderPattern {
                name: HeaderName::from_static("x-lane"),
                value: Glob::new("batch"),
            }),
            ..Matcher::default()
        };
        let request = RequestView {
            head: &request,
            client: None,
            json: None,
        };
        assert!(matcher.matches(&request));
        assert!(
            !Matcher {
                methods: vec![Method::GET],
                ..matcher.clone()
            }
            .matches(&request)
        );
        assert!(
            !Matcher {
                path: Some(Glob::new("/v2/*")),
                ..matcher
            }
            .matches(&request)
        );
    }
}
