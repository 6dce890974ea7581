//! JSON form of a stored request. A caller who may see an item may see its body. Header fields and
//! queries may hold secrets, so only values that are known to be harmless are shown.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::spool::MASK;
use crate::delivery::without_query;
use crate::spool::{Buffer, Item};

/// Header fields whose values are shown, in the order of the alphabet.
const SHOWN: [&str; 12] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "content-encoding",
    "content-language",
    "content-type",
    "date",
    "if-match",
    "if-none-match",
    "traceparent",
    "user-agent",
];

/// Returns the own request of an item, without the header fields of its buffer. A body that is no
/// UTF-8 is written in base64.
pub(super) fn content_json(item: &Item, buffer: Option<&Buffer>, body: &Bytes) -> Value {
    let request = &item.request;
    let terms = buffer.map(|buffer| &buffer.terms);
    let method = request.method.as_deref();
    let url = terms.map(|terms| without_query(&terms.url));
    let path = request.path.as_deref();
    let has_query = path.is_some_and(|path| path.contains('?'));
    let headers = request.headers.iter().map(|(name, value)| {
        let is_shown = SHOWN.contains(&&*name.to_ascii_lowercase());
        (&**name, if is_shown { &**value } else { MASK })
    });
    let mut shown = json!({
        "method": method.or(terms.map(|terms| &*terms.method)),
        "url": url,
        "path": path.map(without_query),
        "query": has_query.then_some(MASK),
        "headers": headers.collect::<Vec<_>>(),
        "bytes": body.len(),
    });
    match std::str::from_utf8(body) {
        Ok(text) => shown["body"] = text.into(),
        Err(_) => shown["body_base64"] = STANDARD.encode(body).into(),
    }
    shown
}
