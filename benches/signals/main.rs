//! Benchmark of reading a response's signals: `cargo bench --bench signals`.
//!
//! Each row reads one head many times in this process and shows the median of several rounds. A
//! response without fields about limits is the common case, and its goal is at most 1 µs.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a benchmark measures real time and makes its own tasks"
)]

use std::hint::black_box;
use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use outpace::policy::SignalRules;
use outpace::signals::{Peek, ResponseView, read};

/// Rounds of each row, of which the median counts.
const ROUNDS: usize = 9;
/// Reads of one round, so that the clock's resolution does not matter.
const READS: u32 = 100_000;

/// Fields of a usual response, as a content delivery network sends them.
const USUAL: [(&str, &str); 16] = [
    ("date", "Thu, 26 Nov 2026 12:00:00 GMT"),
    ("content-type", "application/json"),
    ("content-length", "1234"),
    ("connection", "keep-alive"),
    ("cache-control", "private, max-age=0"),
    ("content-security-policy", "default-src 'none'"),
    ("etag", "W/\"0123456789abcdef\""),
    (
        "strict-transport-security",
        "max-age=31536000; includeSubDomains",
    ),
    ("vary", "Accept-Encoding"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "deny"),
    ("x-request-id", "req_0123456789abcdef0123456789abcdef"),
    ("cf-cache-status", "DYNAMIC"),
    ("cf-ray", "0123456789abcdef-FRA"),
    ("server", "cloudflare"),
    ("alt-svc", "h3=\":443\"; ma=86400"),
];

/// Fields that OpenAI adds to each response.
const OPENAI: [(&str, &str); 6] = [
    ("x-ratelimit-limit-requests", "500"),
    ("x-ratelimit-remaining-requests", "499"),
    ("x-ratelimit-reset-requests", "120ms"),
    ("x-ratelimit-limit-tokens", "200000"),
    ("x-ratelimit-remaining-tokens", "195880"),
    ("x-ratelimit-reset-tokens", "6m1.236s"),
];

/// Fields of the current draft, as Cloudflare sends them.
const STRUCTURED: [(&str, &str); 2] = [
    ("ratelimit", "\"default\";r=50;t=30"),
    ("ratelimit-policy", "\"default\";q=1200;w=300"),
];

const REFUSAL: &str = r#"{"error":{"message":"Rate limit reached. Please try again in 41.724s.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#;

/// Name, status, header fields and body of one response.
type Row<'a> = (&'a str, u16, &'a [(&'a str, &'a str)], &'a str);

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{:<44} {:>10}", "response", "ns")?;
    let rows: [Row<'_>; 5] = [
        ("200 without fields about limits", 200, &[], ""),
        ("404 without fields about limits", 404, &[], ""),
        ("200 with six fields of OpenAI", 200, &OPENAI, ""),
        ("200 with two structured fields", 200, &STRUCTURED, ""),
        ("429 with six fields and a JSON body", 429, &OPENAI, REFUSAL),
    ];
    for (name, status, fields, body) in rows {
        writeln!(out, "{name:<44} {:>10}", median(status, fields, body))?;
    }
    Ok(())
}

/// Returns the median time of one read, in nanoseconds.
fn median(status: u16, fields: &[(&str, &str)], body: &str) -> u128 {
    let lines = USUAL.iter().chain(fields);
    let parsed = lines.filter_map(|(name, value)| {
        let name = name.parse::<HeaderName>().ok()?;
        Some((name, HeaderValue::from_str(value).ok()?))
    });
    let headers: HeaderMap = parsed.collect();
    let status = StatusCode::from_u16(status).unwrap_or_default();
    let rules = SignalRules::default();
    let mut rounds: Vec<u128> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            for _ in 0..READS {
                let peek = Peek::is_wanted(status, &headers, &rules)
                    .then(|| Peek::parse(&headers, body.as_bytes()));
                let peek = peek.flatten();
                let response = ResponseView {
                    status,
                    headers: black_box(&headers),
                    peek: peek.as_ref(),
                    now: outpace::clock::Instant::ZERO,
                    wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_694_400),
                };
                black_box(read(&response, &rules));
            }
            began.elapsed().as_nanos() / u128::from(READS)
        })
        .collect();
    rounds.sort_unstable();
    rounds.get(ROUNDS / 2).copied().unwrap_or_default()
}
