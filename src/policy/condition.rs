//! Conditions of a matcher, each with its test, its form for people and the values that it reads.

use std::sync::Arc;

use http::Method;

use super::path::normal_path;
use super::{Caller, Glob, HeaderPattern, Matcher, RequestView};

/// A condition on one part of a request. A matcher is met if all of its conditions are.
#[derive(Debug, Clone, Copy)]
pub enum Condition<'a> {
    /// Pattern for the path in its normal form.
    Path(&'a Glob),
    /// Methods of which one must be that of the request.
    Method(&'a [Method]),
    /// Pattern for the lines of one field.
    Header(&'a HeaderPattern),
    /// Pattern for the values of the query parameter with this name.
    Query(&'a str, &'a Glob),
    /// Pattern for the value of the JSON body at this pointer.
    Json(&'a str, &'a Glob),
    /// Names of clients of which one must have sent the request.
    Client(&'a [Arc<str>]),
    /// Group to which the client must belong.
    Group(&'a str),
}

impl Matcher {
    /// Iterates over the conditions that are set.
    pub fn conditions(&self) -> impl Iterator<Item = Condition<'_>> {
        let clients = (!self.clients.is_empty()).then_some(Condition::Client(&self.clients));
        let group = self.group.as_deref().map(Condition::Group);
        let methods = (!self.methods.is_empty()).then_some(Condition::Method(&self.methods));
        let query = self.query.iter();
        let query = query.map(|(name, pattern)| Condition::Query(name, pattern));
        let json = self.json.iter();
        let json = json.map(|(pointer, pattern)| Condition::Json(pointer, pattern));
        let head = [
            clients,
            group,
            methods,
            self.path.as_ref().map(Condition::Path),
            self.header.as_ref().map(Condition::Header),
        ];
        head.into_iter().flatten().chain(query).chain(json)
    }
}

impl Condition<'_> {
    /// Returns true if the request meets the condition. A body that was not read to its end meets
    /// every condition on its values.
    pub fn matches(&self, asked: &RequestView<'_>) -> bool {
        let request = asked.head;
        match self {
            Self::Path(path) => path.matches_path(request.uri.path()),
            Self::Method(methods) => methods.contains(&request.method),
            Self::Header(header) => header.matches_fields(&request.headers),
            Self::Query(name, pattern) => {
                let mut values = parameters(asked, name);
                values.any(|value| pattern.matches(value.as_bytes()))
            }
            Self::Json(pointer, pattern) => {
                let json = asked.json;
                json.is_some_and(|json| json.matches(pointer, pattern))
            }
            Self::Client(_) | Self::Group(_) => self.matches_client(asked.client),
        }
    }

    /// Returns true if the condition is about the client alone, and the client meets it.
    pub(super) fn matches_client(&self, client: Option<Caller<'_>>) -> bool {
        client.is_some_and(|client| match self {
            Self::Client(names) => names.contains(client.name),
            Self::Group(group) => client.group.is_some_and(|own| **own == **group),
            _ => false,
        })
    }

    /// Returns the name of the field, parameter or JSON member that holds the value, or `None` for
    /// other parts.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Header(header) => Some(header.name.as_str()),
            Self::Query(name, _) => Some(name),
            Self::Json(pointer, _) => Some(pointer),
            Self::Path(_) | Self::Method(_) | Self::Client(_) | Self::Group(_) => None,
        }
    }

    /// Returns the values of the request that the condition is tested with.
    pub fn read(&self, asked: &RequestView<'_>) -> Vec<String> {
        let request = asked.head;
        let of_client = |part: fn(Caller<'_>) -> Option<&Arc<str>>| {
            let text = asked.client.and_then(part);
            text.map(|text| text.to_string()).into_iter().collect()
        };
        match self {
            Self::Path(_) => vec![normal_path(request.uri.path()).into_owned()],
            Self::Method(_) => vec![request.method.to_string()],
            Self::Header(header) => {
                let lines = request.headers.get_all(&header.name).iter();
                let text = lines.map(|line| String::from_utf8_lossy(line.as_bytes()).into_owned());
                text.collect()
            }
            Self::Query(name, _) => parameters(asked, name).collect(),
            Self::Json(pointer, _) => {
                let values = asked.json.map_or([None, None], |json| json.values(pointer));
                let text = values
                    .into_iter()
                    .flatten()
                    .filter_map(|value| value.text());
                let mut read: Vec<String> = text.map(ToOwned::to_owned).collect();
                read.dedup();
                read
            }
            Self::Client(_) => of_client(|client| Some(client.name)),
            Self::Group(_) => of_client(|client| client.group),
        }
    }
}

impl Condition<'_> {
    /// Formats the condition for people. A pattern for a value that `is_secret` by its name is not
    /// shown.
    pub fn shown(&self, is_secret: fn(&str) -> bool) -> String {
        let hidden = self.name().is_some_and(is_secret);
        let quoted = |pattern: &Glob| match hidden && pattern.text() != "*" {
            true => "(not shown)".to_owned(),
            false => format!("\"{}\"", pattern.text()),
        };
        match self {
            Self::Path(path) => format!("path: {}", quoted(path)),
            Self::Method(methods) => {
                let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
                format!("method: {}", names.join(" or "))
            }
            Self::Header(header) => format!("header {}: {}", header.name, quoted(&header.value)),
            Self::Query(name, pattern) => format!("query {name}: {}", quoted(pattern)),
            Self::Json(pointer, pattern) => format!("json {pointer}: {}", quoted(pattern)),
            Self::Client(names) => format!("client: {}", names.join(" or ")),
            Self::Group(group) => format!("group: {group}"),
        }
    }
}

/// Iterates over the decoded values of a query parameter.
fn parameters<'a>(asked: &RequestView<'a>, name: &'a str) -> impl Iterator<Item = String> + 'a {
    let query = asked.head.uri.query().unwrap_or_default();
    let pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs
        .filter(move |(known, _)| *known == *name)
        .map(|(_, value)| value.into_owned())
}
