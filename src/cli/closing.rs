//! Closing line of `outpace run`, which says if requests of the command were not paced, and why.

use crate::exchange::{CommandProblem, CommandReport};

/// Advice for a command that made no request through the proxy.
const UNSEEN: &str = "no request of this command came to a target through outpace. If it called one, its HTTP client ignores HTTPS_PROXY (Node before 24, Java, PHP streams, and code with `trust_env=False` do): use a route, see docs/clients.md";
/// Advice for a client that refuses the certificates of outpace.
const DISTRUSTED: &str = "its client brings roots of its own (Python stripe, Java and browsers do): use a route, or give the client the file in $SSL_CERT_FILE, see docs/clients.md";

/// Returns the line, or `None` if every request to a target was paced. Several causes are joined, the
/// most important one first.
pub(super) fn closing_line(
    report: Option<&CommandReport>,
    has_targets: bool,
    problems: &[String],
) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    if let Some(report) = report {
        parts.extend(report.problems.iter().map(about));
        if report.not_held > 0 {
            let count = report.not_held;
            parts.push(format!(
                "{count} requests were not held, because the `mode` of their target is `observe`"
            ));
        }
        if has_targets && report.to_targets == 0 && parts.is_empty() {
            parts.push(match problems.is_empty() {
                true => UNSEEN.to_owned(),
                false => "no request of this command came to a target through outpace".to_owned(),
            });
        }
    }
    parts.extend_from_slice(problems);
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn about(problem: &CommandProblem) -> String {
    let host = problem.host.as_deref().unwrap_or("a host");
    let times = match problem.count {
        1 => String::new(),
        count => format!(" ({count} times)"),
    };
    let (detail, remedy) = (&problem.detail, problem.remedy.trim_end_matches('.'));
    match &*problem.reason {
        "inner-distrusted" => {
            format!(
                "{host} was not reached{times}: the client does not trust outpace's CA; {DISTRUSTED}"
            )
        }
        "client-unknown" => {
            format!("a request came without the credentials of this command{times}: {detail}")
        }
        reason => format!("{host}: {reason}{times}: {detail}. {remedy}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(reason: &str, host: &str, count: u64) -> CommandProblem {
        CommandProblem {
            reason: reason.to_owned(),
            host: Some(host.to_owned()),
            detail: "a cause".to_owned(),
            remedy: "A remedy.".to_owned(),
            count,
        }
    }

    #[test]
    fn a_paced_command_ends_without_a_line() {
        let paced = CommandReport {
            to_targets: 3,
            ..CommandReport::default()
        };
        assert_eq!(closing_line(Some(&paced), true, &[]), None);
        assert_eq!(closing_line(None, true, &[]), None);
        assert_eq!(
            closing_line(Some(&CommandReport::default()), false, &[]),
            None
        );
    }

    #[test]
    fn the_line_names_each_cause_once() {
        let line = |report: &CommandReport, problems: &[String]| {
            let line = closing_line(Some(report), true, problems).unwrap();
            assert!(!line.contains('\n'), "{line}");
            line
        };
        assert_eq!(line(&CommandReport::default(), &[]), UNSEEN);
        let entry = "`x` in NO_PROXY covers target x".to_owned();
        let told = line(&CommandReport::default(), std::slice::from_ref(&entry));
        assert!(told.starts_with("no request") && told.ends_with(&entry) && !told.contains("Java"));
        let report = CommandReport {
            to_targets: 2,
            not_held: 2,
            problems: vec![
                problem("inner-distrusted", "api.stripe.com", 3),
                problem("parent-proxy", "api.test", 1),
            ],
            ..CommandReport::default()
        };
        let told = line(&report, &[]);
        for words in [
            "api.stripe.com was not reached (3 times)",
            "$SSL_CERT_FILE",
            "api.test: parent-proxy: a cause. A remedy",
            "2 requests were not held",
        ] {
            assert!(told.contains(words), "{told}");
        }
    }
}
