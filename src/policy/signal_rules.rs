//! Rules by which the operator says what the responses of a target mean.

use http::{HeaderMap, HeaderName, StatusCode};
use serde_json::Value;

use super::{Glob, HeaderPattern};

/// Rules for reading the responses of one target as signals. They add to the rules that hold for
/// every target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignalRules {
    /// Responses that mean a spent quota, which no wait within a request's life restores.
    pub quota: Vec<SignalRule>,
    /// Responses that mean a conflict on one object, which concerns this request only.
    pub lock: Vec<SignalRule>,
    /// Responses that mean that a limit is reached.
    pub limited: Vec<SignalRule>,
    /// Responses that mean that the origin is overloaded.
    pub overloaded: Vec<SignalRule>,
    /// Further places of the time for which the origin asks clients to wait.
    pub wait: Vec<WaitPlace>,
}

/// A condition on a response. All parts that are set must match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignalRule {
    /// Accepted status codes. An empty list accepts every status from 400.
    pub statuses: Vec<u16>,
    /// Pattern for one field of the response.
    pub header: Option<HeaderPattern>,
    /// Patterns for values of the JSON body, all of which must match.
    pub json: Vec<(JsonPath, Glob)>,
}

/// One place of a response that holds a wait or an instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitPlace {
    /// Field or JSON value that holds the wait.
    pub source: WaitSource,
    /// True if a number without a unit counts milliseconds instead of seconds.
    pub millis: bool,
}

/// The part of a response in which a wait is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitSource {
    /// Value of the field with this name.
    Header(HeaderName),
    /// Value in the JSON body at this path.
    Json(JsonPath),
}

impl SignalRules {
    /// Returns true if the meaning of a response with this status may depend on its JSON body.
    pub fn need_body(&self, status: StatusCode) -> bool {
        let lists = [&self.quota, &self.lock, &self.limited, &self.overloaded];
        let by_json = |rule: &SignalRule| !rule.json.is_empty() && rule.accepts(status);
        let in_json = |place: &WaitPlace| matches!(place.source, WaitSource::Json(_));
        lists.into_iter().flatten().any(by_json)
            || status.as_u16() >= 400 && self.wait.iter().any(in_json)
    }

    /// Formats each rule for people. A pattern for a value that `is_secret` by its name is not shown.
    pub fn shown(&self, is_secret: fn(&str) -> bool) -> Vec<String> {
        let lists = [
            ("limited", &self.limited),
            ("overloaded", &self.overloaded),
            ("quota", &self.quota),
            ("lock", &self.lock),
        ];
        let rules = lists.into_iter().flat_map(|(name, rules)| {
            let one = move |rule: &SignalRule| format!("{name}: {}", rule.shown(is_secret));
            rules.iter().map(one)
        });
        let waits = self.wait.iter().map(|place| {
            let unit = if place.millis { "ms" } else { "s" };
            match &place.source {
                WaitSource::Header(name) => format!("wait: header {name}, in {unit}"),
                WaitSource::Json(path) => format!("wait: json {path}, in {unit}"),
            }
        });
        rules.chain(waits).collect()
    }

    /// Returns true if a rule names this status, which then may be a signal below 400 too.
    pub fn name_status(&self, status: StatusCode) -> bool {
        let lists = [&self.quota, &self.lock, &self.limited, &self.overloaded];
        let names = |rule: &SignalRule| rule.statuses.contains(&status.as_u16());
        lists.into_iter().flatten().any(names)
    }
}

impl SignalRule {
    /// Returns true if the response meets every condition that is set. `json` is its body, if that
    /// was read and is JSON.
    pub fn matches(&self, status: StatusCode, headers: &HeaderMap, json: Option<&Value>) -> bool {
        let of_header = |header: &HeaderPattern| header.matches_fields(headers);
        let of_json = |(path, value): &(JsonPath, Glob)| {
            json.is_some_and(|json| path.find(json).any(|found| fits(value, found)))
        };
        self.accepts(status)
            && self.header.as_ref().is_none_or(of_header)
            && self.json.iter().all(of_json)
    }

    fn shown(&self, is_secret: fn(&str) -> bool) -> String {
        let quoted = |name: &str, pattern: &Glob| match is_secret(name) && pattern.text() != "*" {
            true => "(not shown)".to_owned(),
            false => format!("\"{}\"", pattern.text()),
        };
        let statuses: Vec<String> = self.statuses.iter().map(ToString::to_string).collect();
        let status = match statuses.is_empty() {
            true => "status from 400".to_owned(),
            false => format!("status {}", statuses.join(" or ")),
        };
        let header = self.header.iter().map(|header| {
            let name = header.name.as_str();
            format!("header {name}: {}", quoted(name, &header.value))
        });
        let json = self.json.iter();
        let json = json.map(|(path, value)| {
            let path = path.to_string();
            format!("json {path}: {}", quoted(&path, value))
        });
        let parts: Vec<String> = [status].into_iter().chain(header).chain(json).collect();
        parts.join(" and ")
    }

    fn accepts(&self, status: StatusCode) -> bool {
        match self.statuses.is_empty() {
            true => status.as_u16() >= 400,
            false => self.statuses.contains(&status.as_u16()),
        }
    }
}

/// Compares a JSON value with a pattern. Numbers and booleans count as they are written.
fn fits(pattern: &Glob, value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => pattern.matches(text.as_bytes()),
        other => pattern.matches(other.to_string().as_bytes()),
    }
}

/// A JSON pointer (RFC 6901) in which `*` stands for every element of an array and every member of
/// an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonPath(Vec<Box<str>>);

impl JsonPath {
    /// Parses a path such as `/errors/*/code`. Returns `None` if it does not begin with `/`.
    pub fn parse(text: &str) -> Option<Self> {
        let segments = text.strip_prefix('/')?.split('/');
        let unescaped = segments.map(|segment| segment.replace("~1", "/").replace("~0", "~"));
        Some(Self(unescaped.map(Into::into).collect()))
    }

    /// Returns the values at this path, in the order of the document.
    pub fn find<'a>(&self, json: &'a Value) -> impl Iterator<Item = &'a Value> + use<'a> {
        let mut found = vec![json];
        for segment in &self.0 {
            let next = found.iter().flat_map(|value| inside(value, segment));
            found = next.collect();
        }
        found.into_iter()
    }
}

/// Writes the path as in the configuration.
impl std::fmt::Display for JsonPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut segments = self.0.iter();
        segments
            .try_for_each(|segment| write!(f, "/{}", segment.replace('~', "~0").replace('/', "~1")))
    }
}

/// Returns the members or elements of a value that one segment of a path names.
fn inside<'a>(value: &'a Value, segment: &str) -> Vec<&'a Value> {
    match (value, segment) {
        (Value::Array(list), "*") => list.iter().collect(),
        (Value::Object(map), "*") => map.values().collect(),
        (Value::Array(list), _) => {
            let index = segment.parse::<usize>().ok();
            index
                .and_then(|index| list.get(index))
                .into_iter()
                .collect()
        }
        (Value::Object(map), _) => map.get(segment).into_iter().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, json: &str) -> Vec<String> {
        let json: Value = serde_json::from_str(json).unwrap();
        let path = JsonPath::parse(path).unwrap();
        path.find(&json).map(ToString::to_string).collect()
    }

    #[test]
    fn a_path_finds_its_values_and_a_star_finds_all() {
        let json = r#"{"errors":[{"code":"A"},{"x":1},{"code":"B"}],"a/b":{"~":2},"":3}"#;
        assert_eq!(found("/errors/0/code", json), ["\"A\""]);
        assert_eq!(found("/errors/*/code", json), ["\"A\"", "\"B\""]);
        assert_eq!(found("/*/*/code", json), ["\"A\"", "\"B\""]);
        assert_eq!(found("/a~1b/~0", json), ["2"]);
        assert_eq!(found("/", json), ["3"]);
        for absent in ["/errors/9", "/errors/code", "/errors/0/code/x", "/none"] {
            assert_eq!(found(absent, json), [""; 0], "{absent}");
        }
        assert_eq!(JsonPath::parse("errors"), None);
    }

    #[test]
    fn all_parts_of_a_rule_must_match() {
        let rule = SignalRule {
            statuses: vec![403, 429],
            header: Some(HeaderPattern {
                name: HeaderName::from_static("x-left"),
                value: Glob::new("0"),
            }),
            json: vec![(JsonPath::parse("/code").unwrap(), Glob::new("lock_*"))],
        };
        let mut headers = HeaderMap::new();
        headers.insert("x-left", "0".parse().unwrap());
        let json = serde_json::json!({"code": "lock_timeout"});
        let matches = |status, headers: &HeaderMap, json: Option<&Value>| {
            let status = StatusCode::from_u16(status).unwrap();
            rule.matches(status, headers, json)
        };
        assert!(matches(403, &headers, Some(&json)) && matches(429, &headers, Some(&json)));
        assert!(!matches(400, &headers, Some(&json)));
        assert!(!matches(403, &HeaderMap::new(), Some(&json)));
        assert!(!matches(403, &headers, None));
        for other in [
            serde_json::json!({"code": "locked"}),
            serde_json::json!({"code": null}),
            serde_json::json!(["lock_timeout"]),
        ] {
            assert!(!matches(403, &headers, Some(&other)), "{other}");
        }
        let numbers = SignalRule {
            json: vec![(JsonPath::parse("/code").unwrap(), Glob::new("20429"))],
            ..SignalRule::default()
        };
        let json = serde_json::json!({"code": 20429});
        assert!(numbers.matches(StatusCode::TOO_MANY_REQUESTS, &headers, Some(&json)));
        assert!(!numbers.matches(StatusCode::OK, &headers, Some(&json)));
    }
}
