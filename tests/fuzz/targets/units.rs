//! Quantities, patterns and digests of the configuration: each is printed as it can be read.

use std::time::Duration;

use outpace::db::Database;
use outpace::policy::{Allow, HostPattern, Secret, Token};
use outpace::units::{ByteSize, Rate, is_name, parse_duration};

use super::{Target, text};

pub(crate) const TARGET: Target = Target {
    name: "units",
    seeds: &[
        b"10/1s",
        b"10000000/400d",
        b"10 per sec",
        b"1m30s",
        b"0",
        b"18446744073709551615s",
        b"64MiB",
        b"17179869183GiB",
        b"*.a.test:8443",
        b"[::1]:80",
        b"[fd00::/8]:443",
        b"0123456789abcdef0123456789ABCDEF0123456789abcdef0123456789abcdef",
        b"postgres://u:p%40@[::1]:5432/a?sslmode=verify-full&options=-c%20a=b",
        b"postgres:///a?host=/run/x&port=1",
    ],
    run,
};

fn run(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Ok(rate) = text.parse::<Rate>() {
        assert_eq!(rate.to_string().parse(), Ok(rate));
        assert!(rate.count() > 0 && rate.period() >= Duration::from_millis(1));
    }
    if let Ok(size) = text.parse::<ByteSize>() {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
    if let Ok(span) = parse_duration(text) {
        let written = humantime::format_duration(span).to_string();
        assert_eq!(parse_duration(&written), Ok(span), "{text}");
    }
    if let Ok(pattern) = text.parse::<HostPattern>() {
        assert_eq!(pattern.to_string().parse(), Ok(pattern.clone()));
        if let Some(host) = pattern.exact() {
            assert!(pattern.matches(host, pattern.port().unwrap_or(443)));
        }
    }
    if let Ok(allow) = text.parse::<Allow>() {
        assert_eq!(allow.to_string().parse(), Ok(allow));
    }
    let is_digest = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let token = Token::of_digest(text);
    assert_eq!(token.is_some(), is_digest);
    assert_eq!(token, Token::of_digest(&text.to_ascii_uppercase()));
    let plain = Token::new(Secret::new(text));
    assert!(plain.matches(text) && token.is_none_or(|token| !token.matches(text)));
    assert!(!is_name(text) || !text.contains(['/', '?', '#', '%']));
    check_url(text);
}

/// Checks that a URL is refused or names a place without its password.
fn check_url(text: &str) {
    thread_local!(static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    RUNTIME.with(|runtime| {
        let _inside = runtime.enter();
        if let Ok(database) = Database::new(&Secret::new(text), 2, None) {
            let _place = database.place();
        }
    });
}
