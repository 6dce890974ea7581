//! View of a stored request. A caller who may see an item may see its body. Header fields and
//! queries may hold secrets, so only values that are known to be harmless are shown.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::spool::MASK;
use super::views::StoredRequestView;
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
pub(super) fn content_view(
    item: &Item,
    buffer: Option<&Buffer>,
    body: &Bytes,
) -> StoredRequestView {
    let request = &item.request;
    let terms = buffer.map(|buffer| &buffer.terms);
    let method = request.method.as_deref();
    let url = terms.map(|terms| without_query(&terms.url));
    let path = request.path.as_deref();
    let has_query = path.is_some_and(|path| path.contains('?'));
    let headers = request.headers.iter().map(|(name, value)| {
        let is_shown = SHOWN.contains(&&*name.to_ascii_lowercase());
        let value = if is_shown { &**value } else { MASK };
        (name.clone(), value.to_owned())
    });
    let (text, base64) = match std::str::from_utf8(body) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(body))),
    };
    StoredRequestView {
        method: method
            .or(terms.map(|terms| &*terms.method))
            .map(str::to_owned),
        url: url.map(str::to_owned),
        path: path.map(|path| without_query(path).to_owned()),
        query: has_query.then_some(MASK),
        headers: headers.collect(),
        bytes: body.len(),
        body: text,
        body_base64: base64,
    }
}
