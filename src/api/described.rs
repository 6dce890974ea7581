//! Comparison of a request with the described calls, so that no other call can be reached.

use http::{HeaderValue, Method};

use super::openapi::all;

/// Result of the comparison of a request with the descriptions.
#[derive(Debug)]
pub(super) enum Described {
    /// A call has this path and this method.
    Yes,
    /// Calls have this path and these methods, none of which is that of the request.
    OtherMethod(Vec<Method>),
    /// No call has this path.
    No,
}

/// Compares a request with the descriptions. `segments` are those of the path after `/v1`.
pub(super) fn described(method: &Method, segments: &[&str]) -> Described {
    let calls = all().filter(|call| call.is_at(segments));
    let methods: Vec<Method> = calls.map(|call| call.method.clone()).collect();
    match methods.is_empty() {
        true => Described::No,
        false if methods.contains(method) => Described::Yes,
        false => Described::OtherMethod(methods),
    }
}

/// Returns the value of `Allow` (RFC 9110 section 10.2.1) for these methods.
pub(super) fn allow(methods: &[Method]) -> Option<Box<HeaderValue>> {
    if methods.is_empty() {
        return None;
    }
    let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    HeaderValue::try_from(names.join(", ")).ok().map(Box::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_compared_with_the_descriptions() {
        let of = |method: Method, path: &str| {
            let segments: Vec<&str> = path.split('/').collect();
            described(&method, &segments)
        };
        assert!(matches!(of(Method::GET, "buffers"), Described::Yes));
        assert!(matches!(
            of(Method::POST, "buffers/b/purge"),
            Described::Yes
        ));
        assert!(matches!(
            of(Method::GET, "buffers/b/purge"),
            Described::OtherMethod(methods) if methods == [Method::POST]
        ));
        assert!(matches!(of(Method::POST, "buffers/b/burn"), Described::No));
        assert!(matches!(
            of(Method::GET, "buffers/b/items/c"),
            Described::No
        ));
        assert!(matches!(of(Method::GET, "targets"), Described::No));
    }
}
