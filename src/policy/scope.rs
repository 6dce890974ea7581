//! The scope of a request within its target: the limits that apply, their keys and costs, and the
//! lane.

use std::net::IpAddr;
use std::sync::Arc;

use http::request::Parts;

use super::key::readable;
use super::path::normal_path;
use super::{KeySecret, LearnedCosts, LimitSet, RequestJson};
use crate::bounds::COST_MAX;
use crate::units::HostName;

/// The limits, keys, costs and lane of a request. Requests with equal scopes are interchangeable in
/// the queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Scope {
    /// Limits that apply to the request.
    pub limits: LimitSet,
    /// Position of the lane in the target's list.
    pub lane: u8,
    /// Keys and costs, each with the position of its limit. `None` for most requests.
    detail: Option<Arc<Detail>>,
    /// Client of the request, if it has a share of the permits. `None` for all other requests, so
    /// that those of all clients have equal scopes.
    client: Option<Arc<str>>,
}

#[derive(Debug, PartialEq, Eq, Hash, Default, Clone)]
struct Detail {
    keys: Vec<(usize, Arc<str>)>,
    costs: Vec<(usize, i64)>,
}

impl Scope {
    /// Creates the scope of a request with these limits, without keys and with a cost of 1.
    pub const fn plain(limits: LimitSet) -> Self {
        Self {
            limits,
            lane: 0,
            detail: None,
            client: None,
        }
    }

    /// Returns the same scope in another lane.
    #[must_use]
    pub const fn in_lane(mut self, lane: u8) -> Self {
        self.lane = lane;
        self
    }

    /// Returns the same scope as that of one client.
    #[must_use]
    pub fn of_client(mut self, client: Arc<str>) -> Self {
        self.client = Some(client);
        self
    }

    /// Returns the client whose permits are counted separately, or `None` if they are not.
    pub const fn client(&self) -> Option<&Arc<str>> {
        self.client.as_ref()
    }

    /// Returns the same scope with only these limits.
    #[must_use]
    pub const fn only(mut self, limits: LimitSet) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the keys and costs, each with the position of its limit. Two empty lists change
    /// nothing.
    #[must_use]
    pub fn with(mut self, keys: Vec<(usize, Arc<str>)>, costs: Vec<(usize, i64)>) -> Self {
        if !keys.is_empty() || !costs.is_empty() {
            self.detail = Some(Arc::new(Detail { keys, costs }));
        }
        self
    }

    /// Returns the key under which the limit at this position counts the request. The key is empty
    /// if the limit has none.
    pub fn key(&self, limit: usize) -> &str {
        self.shared_key(limit).map_or("", |key| key)
    }

    /// Returns the key of the limit at this position, or `None` if the limit has no key.
    pub fn shared_key(&self, limit: usize) -> Option<&Arc<str>> {
        of_limit(&self.detail.as_ref()?.keys, limit)
    }

    /// Returns the cost of the request for the limit at this position, in units. The default is 1.
    pub fn cost(&self, limit: usize) -> i64 {
        let detail = self.detail.as_ref();
        let cost = detail.and_then(|detail| of_limit(&detail.costs, limit));
        cost.copied().unwrap_or(1)
    }

    /// Replaces the costs of the limits at these positions.
    pub fn set_costs(&mut self, costs: Vec<(usize, i64)>) {
        let Some(detail) = self.detail.as_mut().map(Arc::make_mut) else {
            return;
        };
        for (limit, cost) in costs {
            let known = detail.costs.iter_mut().find(|(index, _)| *index == limit);
            if let Some((_, known)) = known {
                *known = cost;
            }
        }
    }

    /// Returns true if at least one limit counts both requests in the same schedule.
    pub fn shares_a_schedule(&self, other: &Self) -> bool {
        self.limits.overlaps(other.limits)
            && ((self.detail.is_none() && other.detail.is_none())
                || self.limits.iter().any(|limit| self.shares(other, limit)))
    }

    /// Returns true if the limit at this position counts both requests in the same schedule.
    pub fn shares(&self, other: &Self, limit: usize) -> bool {
        self.limits.contains(limit)
            && other.limits.contains(limit)
            && self.key(limit) == other.key(limit)
    }

    /// Returns the scope with other limits and another lane. Each key and cost moves to the
    /// position that `position` returns, and is dropped for `None`.
    #[must_use]
    pub(super) fn moved(
        &self,
        limits: LimitSet,
        lane: u8,
        position: impl Fn(usize) -> Option<usize>,
    ) -> Self {
        let none = Detail::default();
        let detail = self.detail.as_deref().unwrap_or(&none);
        let keys = detail.keys.iter();
        let keys = keys.filter_map(|(index, key)| Some((position(*index)?, Arc::clone(key))));
        let costs = detail.costs.iter();
        let costs = costs.filter_map(|(index, cost)| Some((position(*index)?, *cost)));
        let mut scope = Self::plain(limits).in_lane(lane);
        scope.client.clone_from(&self.client);
        scope.with(keys.collect(), costs.collect())
    }
}

/// Returns the key or cost of the limit at this position.
fn of_limit<T>(list: &[(usize, T)], limit: usize) -> Option<&T> {
    let found = list.iter().find(|(index, _)| *index == limit);
    found.map(|(_, value)| value)
}

/// The parts of a request on which its scope depends.
#[derive(Debug, Clone, Copy)]
pub struct RequestView<'a> {
    /// Head of the request: method, URI and fields.
    pub head: &'a Parts,
    /// Client that sent the request, or `None` if clients are not identified.
    pub client: Option<Caller<'a>>,
    /// Host of the request's origin, or `None` if it is not known.
    pub host: Option<&'a HostName>,
    /// Address of the client, or `None` for a request that outpace itself sends.
    pub client_ip: Option<IpAddr>,
    /// Values of the body, or `None` if the request has no body or the scope does not depend on it.
    pub json: Option<&'a RequestJson>,
    /// Bytes of the body, as far as they are known.
    pub body_bytes: Option<u64>,
    /// Learned factors of estimates, or `None` to use none.
    pub learned: Option<&'a LearnedCosts>,
}

impl<'a> RequestView<'a> {
    /// Creates the view of a request of which only the head is known.
    pub const fn of_head(head: &'a Parts) -> Self {
        Self {
            head,
            client: None,
            host: None,
            client_ip: None,
            json: None,
            body_bytes: None,
            learned: None,
        }
    }
}

/// An identified client that sends requests.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// Name of the client in the configuration.
    pub name: &'a Arc<str>,
    /// Group of the client, if it has one.
    pub group: Option<&'a Arc<str>>,
}

/// The place from which a value is read. Keys and estimates read from the request, settlements from
/// the response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Value of the field with this name.
    Header(http::HeaderName),
    /// Name of the client that sent the request.
    Client,
    /// Address of the client that sent the request.
    ClientIp,
    /// Name of the origin's host in its canonical form, without the port.
    Host,
    /// Path of the request, without the query.
    Path,
    /// Segment of the path in its normal form, of which the first one has number 1.
    PathSegment(usize),
    /// Decoded value of the query parameter with this name.
    Query(Box<str>),
    /// Value in the JSON body at this JSON pointer (RFC 6901).
    Json(Box<str>),
}

impl Source {
    /// Returns true if the value is in the body, which must then be read.
    pub const fn needs_body(&self) -> bool {
        matches!(self, Self::Json(_))
    }

    /// Returns true if the value is known for a tunnel, of which no request is visible.
    pub(super) const fn is_of_connection(&self) -> bool {
        matches!(self, Self::Client | Self::ClientIp | Self::Host)
    }

    fn text(&self, asked: &RequestView<'_>) -> Option<String> {
        match self {
            Self::Header(name) => header_text(asked.head.headers.get(name)?),
            Self::Client => asked.client.map(|client| client.name.to_string()),
            Self::ClientIp => asked
                .client_ip
                .map(|address| address.to_canonical().to_string()),
            Self::Host => asked.host.map(|host| host.as_str().to_owned()),
            Self::PathSegment(number) => {
                let path = normal_path(asked.head.uri.path());
                let segment = path.split('/').nth(*number)?;
                (!segment.is_empty()).then(|| segment.to_owned())
            }
            Self::Path => Some(asked.head.uri.path().to_owned()),
            Self::Query(name) => {
                let query = asked.head.uri.query()?;
                let mut pairs = url::form_urlencoded::parse(query.as_bytes());
                let (_, value) = pairs.find(|(key, _)| *key == **name)?;
                Some(value.into_owned())
            }
            Self::Json(pointer) => asked.json?.text(pointer).map(str::to_owned),
        }
    }

    /// Returns the schedule's key for a request. Requests without a value share one key.
    pub(super) fn key(&self, asked: &RequestView<'_>, secret: &KeySecret) -> Arc<str> {
        self.text(asked)
            .map_or_else(|| NO_KEY.into(), |text| self.key_of(&text, secret))
    }

    /// Returns the schedule's key for this value. Client names and paths stay readable if they are
    /// keys already. All other values may be secret and are replaced by a digest. Paths count in
    /// their normal form.
    pub fn key_of(&self, text: &str, secret: &KeySecret) -> Arc<str> {
        match self {
            Self::Client | Self::ClientIp | Self::Host | Self::PathSegment(_) => {
                readable(&text.into())
            }
            Self::Path => readable(&normal_path(text).into()),
            _ => secret.digest(text),
        }
    }

    /// Returns the value in the form that becomes the key, without a digest.
    pub(super) fn plain(&self, asked: &RequestView<'_>) -> Option<String> {
        let text = self.text(asked)?;
        Some(match self {
            Self::Path => normal_path(&text).into_owned(),
            _ => text,
        })
    }

    /// Returns the cost that the request states, in units, or `None` if there is no valid number. If
    /// a name is repeated in JSON, the higher one of its first and last number counts.
    pub fn number(&self, asked: &RequestView<'_>) -> Option<i64> {
        match self {
            Self::Json(pointer) => {
                let values = asked.json?.values(pointer).into_iter().flatten();
                values.filter_map(|value| number(value.text()?)).max()
            }
            _ => number(&self.text(asked)?),
        }
    }

    /// Returns the cost that the response states in its head, in units. Only [`Self::Header`] can
    /// yield one.
    pub fn number_in_head(&self, headers: &http::HeaderMap) -> Option<i64> {
        match self {
            Self::Header(name) => number(&header_text(headers.get(name)?)?),
            _ => None,
        }
    }
}

/// Writes the source as in the configuration.
impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Client => f.write_str("client"),
            Self::ClientIp => f.write_str("client_ip"),
            Self::Host => f.write_str("host"),
            Self::Path => f.write_str("path"),
            Self::PathSegment(number) => write!(f, "path:{number}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Json(pointer) => write!(f, "json:{pointer}"),
        }
    }
}

/// Key of the requests that have no value at the source of their key.
pub(super) const NO_KEY: &str = "-";

fn header_text(value: &http::HeaderValue) -> Option<String> {
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// Returns the cost that a text states, in units, or `None` if it is no number from 0.
pub fn number(text: &str) -> Option<i64> {
    let number = text.trim().parse::<f64>().ok()?;
    // An absurd number still says that the cost is high, so it is cut and not ignored.
    let valid = number.is_finite() && number >= 0.0;
    valid.then(|| number.min(f64::from(COST_MAX)).ceil() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Parts {
        http::Request::post("http://h/v1/x?user=a%20b&n=7")
            .header("authorization", "Bearer secret")
            .header("x-cost", "12.2")
            .body(())
            .unwrap()
            .into_parts()
            .0
    }

    #[test]
    fn a_value_is_found_where_the_source_says() {
        let head = request();
        let json = br#"{"model":"m","max_tokens":100,"null":null,"n":9,"n":7}"#;
        let pointers = ["/model", "/max_tokens", "/null", "/n"];
        let pointers = crate::json::JsonPointers::new(pointers).unwrap();
        let json = RequestJson::of_body(pointers, &head.headers, json);
        let host = HostName::parse("A.Test.").unwrap();
        let asked = RequestView {
            json: Some(&json),
            host: Some(&host),
            client_ip: Some("::ffff:10.0.0.7".parse().unwrap()),
            ..RequestView::of_head(&head)
        };
        assert_eq!(Source::Host.text(&asked).unwrap(), "a.test");
        assert_eq!(Source::ClientIp.text(&asked).unwrap(), "10.0.0.7");
        assert_eq!(Source::PathSegment(1).text(&asked).unwrap(), "v1");
        assert_eq!(Source::PathSegment(2).text(&asked).unwrap(), "x");
        assert_eq!(Source::PathSegment(3).text(&asked), None);
        assert_eq!(Source::Json("/n".into()).text(&asked).unwrap(), "7");
        assert_eq!(Source::Json("/n".into()).number(&asked), Some(9));
        assert_eq!(Source::Query("user".into()).text(&asked).unwrap(), "a b");
        assert_eq!(Source::Json("/model".into()).text(&asked).unwrap(), "m");
        assert_eq!(Source::Json("/null".into()).text(&asked), None);
        assert_eq!(Source::Json("/max_tokens".into()).number(&asked), Some(100));
        let cost = http::HeaderName::from_static("x-cost");
        assert_eq!(Source::Header(cost).number(&asked), Some(13));
        let secret = KeySecret::new([1; 32]);
        assert_eq!(&*Source::Path.key(&asked, &secret), "/v1/x");
        assert_eq!(&*Source::Client.key(&asked, &secret), "-");
    }

    #[test]
    fn an_absurd_cost_is_cut_and_an_unreadable_one_is_ignored() {
        for (text, cost) in [
            ("7.2", Some(8)),
            ("0", Some(0)),
            ("1e9", Some(1_000_000_000)),
            ("1e18", Some(1_000_000_000)),
            ("1e300", Some(1_000_000_000)),
            ("-1", None),
            ("NaN", None),
            ("inf", None),
            ("1e999", None),
            ("many", None),
        ] {
            assert_eq!(number(text), cost, "{text}");
        }
    }

    #[test]
    fn p1_pace_every_spelling_of_a_path_has_one_key() {
        let secret = KeySecret::new([1; 32]);
        let key = |path: &str| Source::Path.key_of(path, &secret);
        let long = format!("/{}", "a/".repeat(100));
        for (one, other) in [
            ("/search", "//%73earch"),
            ("/v1/a", "/v1/b/../a"),
            ("/a%2Fb", "/a%2fb"),
            (&*long, &*long.replace("a/", "%61/./")),
        ] {
            assert_eq!(key(one), key(other));
        }
        assert_ne!(key("/a/b"), key("/a%2Fb"));
        assert_eq!(&*key("//search"), "/search");
    }

    #[test]
    fn p10_closed_a_secret_is_no_key_in_clear() {
        let head = request();
        let asked = RequestView::of_head(&head);
        let secret = KeySecret::new([1; 32]);
        let key = Source::Header(http::header::AUTHORIZATION).key(&asked, &secret);
        assert!(key.len() == 32 && !key.contains("secret"));
    }
}
