//! Reasons for responses that outpace generates, and the table in `docs/errors.md`.
use http::StatusCode;

pub use super::reason_table::Reason;
use crate::telemetry::ExchangeOutcome;

/// Row of the reason table, with all that responses, logs and metrics need.
#[derive(Debug, Clone, Copy)]
pub struct ReasonRow {
    /// Stable identifier in logs, metrics and responses, for example `queue-full`.
    pub token: &'static str,
    /// HTTP status code of the response, for example 429.
    pub status: StatusCode,
    /// Error type in `Proxy-Status`, as defined in RFC 9209 section 2.3.
    pub proxy_error: &'static str,
    /// Outcome in the record: refused by policy, rejected as malformed, or failed.
    pub outcome: ExchangeOutcome,
    /// Level that decides on a log line in addition to the canonical line.
    pub level: Level,
    /// General cause in full sentences, sent as the `title` of the problem.
    pub meaning: &'static str,
    /// Action that solves the problem, in full sentences.
    pub remedy: &'static str,
}

/// Log levels of a reason, in addition to the canonical line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// No additional log line, because the canonical line is sufficient.
    Debug,
    /// Additional warning with the remedy, because an operator must act.
    Warn,
}

/// Returns the reason table as Markdown, in the form of `docs/errors.md`.
pub fn table() -> String {
    let mut text = String::from(
        "| reason | status | RFC 9209 error | meaning | what to do |\n| --- | --- | --- | --- | --- |\n",
    );
    for &reason in Reason::ALL {
        let row = reason.row();
        text.push_str(&format!(
            "| `{}` | {} | `{}` | {} | {} |\n",
            row.token,
            row.status.as_u16(),
            row.proxy_error,
            row.meaning,
            row.remedy
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_distinct_and_rows_are_sentences() {
        let reason_table: Vec<_> = Reason::ALL.iter().map(|reason| reason.row()).collect();
        let tokens: std::collections::HashSet<_> =
            reason_table.iter().map(|row| row.token).collect();
        assert_eq!(tokens.len(), Reason::ALL.len());
        assert!(
            reason_table
                .iter()
                .all(|row| row.remedy.ends_with('.') && row.meaning.ends_with('.'))
        );
    }

    /// Set `UPDATE_GOLDEN=1` to write the page again, then review the difference.
    #[test]
    fn the_table_is_the_page() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/errors.md");
        let page = format!(
            "# Reasons\n\nThe error responses of outpace name one of these reasons: in `Proxy-Status`, and in the member\n`reason` of the JSON body. `detail` is another member of that body. Two kinds of error responses\nhave no reason: those of the admin port, and the 431 for an HTTP/2 head above 256 KiB.\n\nThe spool is the durable store of all buffers and items.\n\nNo response is possible for the reasons that begin with `inner-`. outpace closes the connection,\nand only the log shows the reason and its status.\n\nThis page is generated from `src/exchange/reason_table.rs`.\n\n{}",
            table()
        );
        if crate::exchange::updating_golden() {
            std::fs::write(path, &page).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), page);
    }
}
