//! Formats in which a scraper reads the metrics: the text format of Prometheus, and OpenMetrics 1.0
//! on request.

use std::fmt::Write as _;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::registry::Registry;

/// Format of a scrape, negotiated by `Accept` (RFC 9110 section 12.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// Text format of Prometheus, version 0.0.4.
    Text,
    /// Format OpenMetrics, version 1.0.
    OpenMetrics,
}

impl Exposition {
    /// Returns OpenMetrics if `accept` names it and prefers it to text, and otherwise text.
    pub fn negotiate(accept: &str) -> Self {
        let (mut text, mut open) = (None, None);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut weight, mut version) = (1.0_f64, "1.0.0");
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => weight = value.trim().parse().unwrap_or(0.0),
                    "version" => version = value.trim().trim_matches('"'),
                    _ => {}
                }
            }
            let best = match (&*kind, version) {
                ("application/openmetrics-text", "1.0.0") => &mut open,
                ("text/plain", _) => &mut text,
                _ => continue,
            };
            *best = Some(best.unwrap_or(weight).max(weight));
        }
        match (open, text) {
            (Some(open), text) if open > 0.0 && open >= text.unwrap_or(0.0) => Self::OpenMetrics,
            _ => Self::Text,
        }
    }

    /// Returns the media type of the format.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Writes the metrics of these registries as one text.
    pub(super) fn encode<'a>(self, registries: impl Iterator<Item = &'a Registry>) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        for registry in registries {
            let _ = encode_registry(&mut text, registry);
        }
        match self {
            Self::Text => as_text_format(&text),
            Self::OpenMetrics => {
                let _ = encode_eof(&mut text);
                text
            }
        }
    }
}

/// Writes OpenMetrics text in the text format of Prometheus, in which a counter's family has the
/// same name as its samples.
fn as_text_format(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len() + 1024);
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                let _ = writeln!(text, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_the_scraper_prefers() {
        let text = [
            "",
            "*/*",
            "text/plain",
            "text/plain;version=0.0.4",
            "text/html, */*;q=0.1",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text; version=0.0.1",
            "application/openmetrics-text;version=1.0.0;q=0.3, text/plain;q=0.9",
            "application/openmetrics-text;q=nonsense",
        ];
        for accept in text {
            assert_eq!(Exposition::negotiate(accept), Exposition::Text, "{accept}");
        }
        let openmetrics = [
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; Version=\"1.0.0\"",
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.2",
        ];
        for accept in openmetrics {
            let found = Exposition::negotiate(accept);
            assert_eq!(found, Exposition::OpenMetrics, "{accept}");
        }
    }
}
