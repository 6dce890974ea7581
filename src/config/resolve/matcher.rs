//! Section `match` of a limit or lane.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Method;

use super::super::schema;
use super::super::value::Text;
use super::source::is_member;
use super::{Violation, Violations};
use crate::policy::{Glob, HeaderPattern, Matcher};

/// Builds the matcher of a limit or lane, or `None` if it has none.
pub(super) fn matcher(
    p: &mut Violations,
    key: &str,
    written: Option<&schema::MatchSection>,
) -> Option<Matcher> {
    let written = written?;
    let mut methods = Vec::new();
    for method in written.method.iter().flat_map(|methods| &methods.0) {
        match Method::from_bytes(method.to_ascii_uppercase().as_bytes()) {
            Ok(method) => methods.push(method),
            Err(_) => report!(p, "{key}.match.method" =>
                "`{method}` is not an HTTP method; write it as \"POST\""),
        }
    }
    let header = written.header.as_ref().and_then(|text| {
        let parsed = header_pattern(&text.0);
        if parsed.is_none() {
            report!(p, "{key}.match.header" =>
                "`{}` is not a field; write it as \"x-lane: batch\"", text.0);
        }
        if parsed.as_ref().is_some_and(|header| header.name == http::header::HOST) {
            report!(p, "{key}.match.header" =>
                "HTTP/2 requests have no field `host`; write the host as `hosts` of a target of its own");
        }
        parsed
    });
    let path = written.path.as_ref();
    if let Some(path) = path.filter(|path| !path.0.starts_with(['/', '*'])) {
        report!(p, "{key}.match.path" =>
            "`{}` does not begin with `/`; write it as \"/v1/*\"", path.0);
    }
    let path = path.map(|path| Glob::path(&path.0));
    let query = written.query.iter();
    let query = query.map(|(name, value)| (name.as_str().into(), Glob::new(value.0.as_str())));
    let query: Vec<(Box<str>, Glob)> = query.collect();
    let json = json(p, key, &written.json);
    let names = written.client.iter().flat_map(|names| &names.0);
    let clients: Vec<Arc<str>> = names.map(|name| name.as_str().into()).collect();
    let group = written.group.as_ref().map(|group| group.0.as_str().into());
    let empty = path.is_none()
        && methods.is_empty()
        && written.header.is_none()
        && query.is_empty()
        && written.json.is_empty()
        && clients.is_empty()
        && group.is_none();
    if empty {
        report!(p, "{key}.match" =>
            "it matches nothing in particular; set `path`, `method`, `header`, `query`, `json`, `client` or `group`, or remove it");
        return None;
    }
    Some(Matcher {
        path,
        methods,
        header,
        query,
        json,
        clients,
        group,
    })
}

fn json(p: &mut Violations, key: &str, written: &BTreeMap<String, Text>) -> Vec<(Box<str>, Glob)> {
    let mut patterns = Vec::with_capacity(written.len());
    for (pointer, value) in written {
        match is_member(pointer) {
            true => patterns.push((pointer.as_str().into(), Glob::new(value.0.as_str()))),
            false => report!(p, "{key}.match.json" =>
                "`{pointer}` is not a JSON pointer; write it as /model or /user/id"),
        }
    }
    patterns
}

/// Parses `NAME: PATTERN`, or returns `None` if it has no colon or the name is no field name.
pub(super) fn header_pattern(text: &str) -> Option<HeaderPattern> {
    let (name, value) = text.split_once(':')?;
    let value = Glob::new(value.trim());
    let name = name.trim().parse().ok()?;
    Some(HeaderPattern { name, value })
}
