//! Tables of the forms in which origins tell their limits, each with the API that sends it.

mod demands;
mod families;
mod properties;
mod scopes;
mod sources;
mod values;

use http::{HeaderName, HeaderValue};

use super::*;

/// Thu, 26 Nov 2026 12:00:00 GMT, the date of the examples.
const WALL: u64 = 1_795_694_400;
const NOW: Instant = Instant::from_nanos(5_000_000_000_000);

fn head(lines: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        let name: HeaderName = name.parse().unwrap();
        map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    map
}

fn signal_of(status: u16, lines: &[(&str, &str)], body: &str, rules: &SignalRules) -> Signal {
    let mut headers = head(lines);
    if !body.is_empty() && !headers.contains_key("content-type") {
        headers.insert("content-type", "application/json".parse().unwrap());
    }
    let status = StatusCode::from_u16(status).unwrap();
    let wanted = !body.is_empty() && Peek::is_wanted(status, &headers, rules);
    let peek = wanted
        .then(|| Peek::parse(&headers, body.as_bytes()))
        .flatten();
    let response = ResponseView {
        status,
        headers: &headers,
        peek: peek.as_ref(),
        now: NOW,
        wall: SystemTime::UNIX_EPOCH + Duration::from_secs(WALL),
    };
    read(&response, rules)
}

fn signal(status: u16, lines: &[(&str, &str)], body: &str) -> Signal {
    signal_of(status, lines, body, &SignalRules::default())
}

fn after(seconds: f64) -> Option<Instant> {
    Some(NOW + Duration::from_secs_f64(seconds))
}

/// Limit in short form: label, limit, window, remaining and reset, all times in seconds.
type LimitRow<'a> = (
    LimitUnit,
    Option<&'a str>,
    Option<u64>,
    Option<f64>,
    Option<u64>,
    Option<f64>,
);

fn shown(signal: &Signal) -> Vec<LimitRow<'_>> {
    let of = |limit: &Dimension| (limit.unit, limit.limit, limit.remaining);
    signal
        .dimensions
        .iter()
        .map(|limit| {
            let (unit, amount, remaining) = of(limit);
            let window = limit.window.map(|window| window.as_secs_f64());
            let reset = limit.reset.map(|at| at.since(NOW).as_secs_f64());
            let label = limit.label.as_deref();
            (unit, label, amount, window, remaining, reset)
        })
        .collect()
}
