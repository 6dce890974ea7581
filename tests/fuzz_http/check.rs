//! Comparison of what arrived with what was meant.

use std::collections::BTreeMap;

use crate::model::{Delimiter, Lines, Meant};
use crate::replies::Reply;
use crate::strict::Message;

/// Fields that outpace sets or that frame a message. They are checked by themselves.
const SET_BY_OUTPACE: [&str; 14] = [
    "host",
    "via",
    "date",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "trailer",
    "cookie",
    "outpace-waited",
    "outpace-attempts",
    "proxy-status",
    "expect",
    "link",
];

/// Returns the end-to-end fields by name. Values with one name keep their order.
fn by_name(fields: &Lines) -> BTreeMap<&str, Vec<String>> {
    let mut map: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in fields {
        if !SET_BY_OUTPACE.contains(&name.as_str()) && !name.starts_with("x-mut") {
            let value = value.trim_ascii().escape_ascii().to_string();
            map.entry(name).or_default().push(value);
        }
    }
    map
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, meant: &T) -> Result<(), String> {
    match found == meant {
        true => Ok(()),
        false => Err(format!("{what}: found {found:?}, meant {meant:?}")),
    }
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// Checks a request that the origin read against its meaning. A `mutated` request may lack
/// trailers.
pub(crate) fn leaving(meant: &Meant, found: &Message, mutated: bool) -> Result<(), String> {
    let line = format!("{} {} HTTP/1.1", meant.method, meant.path);
    expect("request-line", &found.start, &line)?;
    let texts = |name: &str| found.all(name).into_iter().map(text).collect::<Vec<_>>();
    expect("host", &texts("host"), &vec![meant.host.clone()])?;
    expect("body", &text(&found.body), &text(&meant.body))?;
    expect("fields", &by_name(&found.fields), &by_name(&meant.fields))?;
    let cookies = match meant.cookies.is_empty() {
        true => Vec::new(),
        false => vec![meant.cookies.join("; ")],
    };
    expect("cookies", &texts("cookie"), &cookies)?;
    if meant.delimiter == Delimiter::None && !meant.body.is_empty() {
        return Err("a body without a delimiter".to_owned());
    }
    for (name, allowed) in [("te", "trailers"), ("connection", "te"), ("expect", "")] {
        if texts(name).iter().any(|value| value != allowed) {
            return Err(format!("{name} left: {:?}", texts(name)));
        }
    }
    let trailers: Lines = found
        .trailers
        .iter()
        .filter(|(name, _)| !name.starts_with("x-mut"))
        .cloned()
        .collect();
    let announced = meant.trailers.iter().cloned();
    let announced: Lines = announced
        .map(|(name, value)| (name, value.into_bytes()))
        .collect();
    if !(mutated && trailers.is_empty()) {
        expect("trailers", &trailers, &announced)?;
    }
    Ok(())
}

/// Checks a complete response that the client read against its meaning.
pub(crate) fn delivered(
    reply: &Reply,
    status: u16,
    fields: &Lines,
    body: &[u8],
) -> Result<(), String> {
    expect("status", &status, &reply.status)?;
    expect("body", &text(body), &text(&reply.body))?;
    if reply.mutation.is_empty() {
        expect("fields", &by_name(fields), &by_name(&reply.fields))?;
    }
    Ok(())
}

/// Returns true for a refusal or a failure that outpace reports itself.
pub(crate) fn is_own(status: u16, fields: &Lines) -> bool {
    let reported = fields
        .iter()
        .any(|(name, value)| name == "proxy-status" && value.starts_with(b"outpace"));
    status >= 400 && reported
}
