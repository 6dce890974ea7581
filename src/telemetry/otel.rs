//! Log records in the JSON encoding of OTLP, as the receiver `otlpjsonfile` of an OpenTelemetry
//! collector reads them. Attributes follow the semantic conventions where one exists.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use serde_json::{Map, Value, json};

/// True if the configuration selects this form for both outputs.
static SELECTED: AtomicBool = AtomicBool::new(false);

/// Selects the form of all lines from now on.
pub(super) fn select(otel: bool) {
    SELECTED.store(otel, Ordering::Relaxed);
}

pub(super) fn is_selected() -> bool {
    SELECTED.load(Ordering::Relaxed)
}

/// Names of attributes by the names of members. Other members get the prefix `outpace.`.
const NAMES: [(&str, &str); 12] = [
    ("client", "client.address"),
    ("client_name", "enduser.id"),
    ("method", "http.request.method"),
    ("scheme", "url.scheme"),
    ("host", "server.address"),
    ("port", "server.port"),
    ("path", "url.path"),
    ("status", "http.response.status_code"),
    ("sent_bytes", "http.request.body.size"),
    ("received_bytes", "http.response.body.size"),
    ("error", "exception.message"),
    ("version", "service.version"),
];

/// Returns a line of the native form as an OTLP record. A line that is no object is returned as it
/// is.
pub(super) fn record(line: &str, scope: &str) -> String {
    let Ok(Value::Object(mut members)) = serde_json::from_str(line) else {
        return line.to_owned();
    };
    let mut text = |name: &str| match members.remove(name) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    let (time, level, message) = (text("time"), text("level"), text("message"));
    let trace = text("trace");
    let time = humantime::parse_rfc3339(&time).unwrap_or(SystemTime::UNIX_EPOCH);
    let time = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut record = json!({
        "timeUnixNano": time.as_nanos().to_string(),
        "severityNumber": severity(&level),
        "severityText": level.to_uppercase(),
        "body": { "stringValue": message },
        "attributes": attributes(members),
    });
    if !trace.is_empty() {
        record["traceId"] = trace.into();
    }
    let service = json!([{ "key": "service.name", "value": { "stringValue": "outpace" } }]);
    json!({ "resourceLogs": [{
        "resource": { "attributes": service },
        "scopeLogs": [{ "scope": { "name": scope }, "logRecords": [record] }],
    }] })
    .to_string()
}

/// Returns the number of a severity in the OpenTelemetry log data model.
fn severity(level: &str) -> u8 {
    match level {
        "trace" => 1,
        "debug" => 5,
        "warn" => 13,
        "error" => 17,
        _ => 9,
    }
}

fn attributes(members: Map<String, Value>) -> Vec<Value> {
    let shown = members.into_iter().filter(|(_, value)| !value.is_null());
    let attribute = |(name, value): (String, Value)| {
        let known = NAMES.iter().find(|(member, _)| *member == name);
        let key = known.map_or_else(|| format!("outpace.{name}"), |(_, key)| (*key).to_owned());
        let value = match value {
            Value::Bool(value) => json!({ "boolValue": value }),
            // OTLP writes 64-bit numbers as strings.
            Value::Number(number) if number.is_f64() => json!({ "doubleValue": number }),
            Value::Number(number) => json!({ "intValue": number.to_string() }),
            Value::String(text) => json!({ "stringValue": text }),
            other => json!({ "stringValue": other.to_string() }),
        };
        json!({ "key": key, "value": value })
    };
    shown.map(attribute).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_a_record_with_conventional_attributes() {
        let line = r#"{"time":"2026-01-02T03:04:05.006Z","level":"warn","message":"exchange","status":429,"method":"GET","waited_ms":1.5,"limit":null,"no_close_notify":true,"trace":"4bf92f3577b34da6a3ce929d0e0e4736"}"#;
        let told: Value = serde_json::from_str(&record(line, "outpace.exchanges")).unwrap();
        let scope = &told["resourceLogs"][0]["scopeLogs"][0];
        assert_eq!(scope["scope"]["name"], "outpace.exchanges");
        let record = &scope["logRecords"][0];
        assert_eq!(record["timeUnixNano"], "1767323045006000000");
        assert_eq!(record["severityNumber"], 13);
        assert_eq!(record["severityText"], "WARN");
        assert_eq!(record["body"]["stringValue"], "exchange");
        assert_eq!(record["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
        let expected = json!([
            { "key": "http.request.method", "value": { "stringValue": "GET" } },
            { "key": "outpace.no_close_notify", "value": { "boolValue": true } },
            { "key": "http.response.status_code", "value": { "intValue": "429" } },
            { "key": "outpace.waited_ms", "value": { "doubleValue": 1.5 } },
        ]);
        assert_eq!(record["attributes"], expected);
        for odd in ["", "not json", "[1]", "7"] {
            assert_eq!(super::record(odd, "s"), odd);
        }
    }
}
