//! Every reason there is to say no, and the one table from reason to wire. `docs/errors.md` is
//! printed from it. No wildcard arm: a new reason does not compile without its row.

use http::StatusCode;

use crate::telemetry::ExchangeOutcome;

/// Why outpace answered a request itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "`Reason::meaning` says it, for people too")]
pub enum Reason {
    MalformedRequest,
    Misdirected,
    ExpectationFailed,
    MethodNotAllowed,
    LoopDetected,
    ClientUnknown,
    NoRoute,
    HostNotAllowed,
    PortNotAllowed,
    AddressProhibited,
    CrossSite,
    WaitTooLong,
    QueueFull,
    OriginUnresolved,
    OriginRefused,
    OriginConnectTimeout,
    OriginCertificate,
    OriginTls,
    ParentProxy,
    OriginBroke,
    OriginTimeout,
    OriginProtocol,
    ClientTokenUnknown,
    InnerNotHttp,
    InnerTls,
    InnerDistrusted,
    NoSuchCall,
    NoSuchScope,
    NotFound,
    Conflict,
    KeyReused,
    NotKept,
    BodyTooLarge,
    SpoolFull,
    SpoolAway,
    SpoolOff,
    ScopeMissing,
    Internal,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct ReasonRow {
    /// The word in logs, metrics and messages.
    pub token: &'static str,
    /// The status code.
    pub status: StatusCode,
    /// The error type of RFC 9209 section 2.3.
    pub proxy_error: &'static str,
    /// Whose doing it is.
    pub outcome: ExchangeOutcome,
    /// At which level it is logged beside its canonical line.
    pub level: Level,
    /// What happened, in general.
    pub meaning: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

/// Log levels that a reason may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The canonical line is enough.
    Debug,
    /// Somebody must act.
    Warn,
}

impl Reason {
    /// All of them, in the order of `docs/errors.md`.
    pub const ALL: [Self; 38] = [
        Self::MalformedRequest,
        Self::Misdirected,
        Self::ExpectationFailed,
        Self::MethodNotAllowed,
        Self::LoopDetected,
        Self::ClientUnknown,
        Self::NoRoute,
        Self::HostNotAllowed,
        Self::PortNotAllowed,
        Self::AddressProhibited,
        Self::CrossSite,
        Self::WaitTooLong,
        Self::QueueFull,
        Self::OriginUnresolved,
        Self::OriginRefused,
        Self::OriginConnectTimeout,
        Self::OriginCertificate,
        Self::OriginTls,
        Self::ParentProxy,
        Self::OriginBroke,
        Self::OriginTimeout,
        Self::OriginProtocol,
        Self::ClientTokenUnknown,
        Self::InnerNotHttp,
        Self::InnerTls,
        Self::InnerDistrusted,
        Self::NoSuchCall,
        Self::NoSuchScope,
        Self::NotFound,
        Self::Conflict,
        Self::KeyReused,
        Self::NotKept,
        Self::BodyTooLarge,
        Self::SpoolFull,
        Self::SpoolAway,
        Self::SpoolOff,
        Self::ScopeMissing,
        Self::Internal,
    ];
}

/// The table as `docs/errors.md` shows it.
pub fn table() -> String {
    let mut text = String::from(
        "| reason | status | RFC 9209 error | meaning | what to do |\n| --- | --- | --- | --- | --- |\n",
    );
    for reason in Reason::ALL {
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
        let reason_table = Reason::ALL.map(Reason::row);
        let tokens: std::collections::HashSet<_> =
            reason_table.iter().map(|row| row.token).collect();
        assert_eq!(tokens.len(), Reason::ALL.len());
        assert!(
            reason_table
                .iter()
                .all(|row| row.remedy.ends_with('.') && row.meaning.ends_with('.'))
        );
    }

    /// Set `UPDATE_GOLDEN=1` to write the page anew; then read it.
    #[test]
    fn the_table_is_the_page() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/errors.md");
        let page = format!(
            "# Reasons\n\nEvery response that outpace makes itself carries one of these in `Proxy-Status` and in its body. This page is printed from the code.\n\n{}",
            table()
        );
        if crate::exchange::updating_golden() {
            std::fs::write(path, &page).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), page);
    }
}
