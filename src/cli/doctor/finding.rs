//! Results of the checks, and their two printed forms.

use serde_json::{Value, json};

/// Verdict of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing is wrong with it.
    Sound,
    /// Something will not work as it looks, or soon not any more.
    Warning,
    /// Something does not work.
    Fault,
    /// The check does not apply here, or an earlier fault prevents it.
    Skipped,
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::Warning => "warning",
            Self::Fault => "fault",
            Self::Skipped => "skipped",
        }
    }
}

/// Result of one check, or of one of its subjects such as a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    check: &'static str,
    pub(super) verdict: Verdict,
    detail: String,
    /// Action that solves the problem, if there is one.
    remedy: Option<String>,
}

impl Finding {
    pub(super) fn sound(check: &'static str, detail: impl Into<String>) -> Self {
        Self::new(check, Verdict::Sound, detail.into(), None)
    }

    pub(super) fn skipped(check: &'static str, detail: impl Into<String>) -> Self {
        Self::new(check, Verdict::Skipped, detail.into(), None)
    }

    pub(super) fn warning(
        check: &'static str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(check, Verdict::Warning, detail.into(), Some(remedy.into()))
    }

    pub(super) fn fault(
        check: &'static str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(check, Verdict::Fault, detail.into(), Some(remedy.into()))
    }

    /// Creates a fault from a message of outpace, which ends with its remedy after a semicolon.
    pub(super) fn of_message(check: &'static str, message: &str) -> Self {
        match message.rsplit_once("; ") {
            Some((detail, remedy)) => Self::fault(check, detail, remedy),
            None => Self::fault(check, message, "see docs/troubleshooting.md"),
        }
    }

    /// Returns the finding as a warning if it is a fault.
    pub(super) fn softened(mut self) -> Self {
        if self.verdict == Verdict::Fault {
            self.verdict = Verdict::Warning;
        }
        self
    }

    const fn new(
        check: &'static str,
        verdict: Verdict,
        detail: String,
        remedy: Option<String>,
    ) -> Self {
        Self {
            check,
            verdict,
            detail,
            remedy,
        }
    }

    pub(super) const fn check(&self) -> &'static str {
        self.check
    }

    fn line(&self) -> String {
        let verdict = self.verdict.word();
        let mut text = format!("{verdict:<9}{:<21}{}\n", self.check, self.detail);
        if let Some(remedy) = &self.remedy {
            text.push_str(&format!("{:<30}remedy: {remedy}\n", ""));
        }
        text
    }
}

/// Returns the findings of a check with a finding for each problem, or the sound one without problems.
pub(super) fn or_sound(
    problems: Vec<Finding>,
    check: &'static str,
    detail: impl Into<String>,
) -> Vec<Finding> {
    match problems.is_empty() {
        true => vec![Finding::sound(check, detail)],
        false => problems,
    }
}

/// Number of findings with this verdict.
pub(super) fn count(findings: &[Finding], verdict: Verdict) -> usize {
    let same = findings.iter().filter(|one| one.verdict == verdict);
    same.count()
}

/// Formats the findings for people, with a summary in the last line.
pub(super) fn text(findings: &[Finding]) -> String {
    let mut text: String = findings.iter().map(Finding::line).collect();
    let of = |verdict| count(findings, verdict);
    text.push_str(&format!(
        "checks: {}, sound: {}, warnings: {}, faults: {}, skipped: {}\n",
        findings.len(),
        of(Verdict::Sound),
        of(Verdict::Warning),
        of(Verdict::Fault),
        of(Verdict::Skipped)
    ));
    text
}

/// Formats the findings for programs.
pub(super) fn document(findings: &[Finding]) -> Value {
    let checks = findings.iter().map(|one| {
        json!({
            "check": one.check,
            "verdict": one.verdict.word(),
            "detail": one.detail,
            "remedy": one.remedy,
        })
    });
    json!({
        "sound": count(findings, Verdict::Fault) == 0,
        "faults": count(findings, Verdict::Fault),
        "warnings": count(findings, Verdict::Warning),
        "checks": checks.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_divided_into_its_cause_and_its_remedy() {
        let finding = Finding::of_message("ca", "the CA has expired; renew it; run `outpace ca`");
        assert_eq!(finding.detail, "the CA has expired; renew it");
        assert_eq!(finding.remedy.as_deref(), Some("run `outpace ca`"));
        let findings = [finding, Finding::sound("clock", "right")];
        assert!(
            text(&findings).contains("fault    ca"),
            "{}",
            text(&findings)
        );
        let document = document(&findings);
        assert_eq!(document["sound"], false);
        assert_eq!(document["checks"][1]["verdict"], "sound");
        assert!(
            or_sound(Vec::new(), "dns", "all")
                .iter()
                .all(|one| one.remedy.is_none())
        );
    }
}
