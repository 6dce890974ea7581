//! Checks that a file is whole before it replaces the one in force. An editor, a copy or a full disk
//! can leave a file that is valid but cut off, and such a file would lift limits and credentials.

use crate::policy::Policy;

/// Reason for which a reload does not take a file. An operator can take the file nevertheless.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Incomplete {
    /// The file has no content, apart from comments.
    #[error("the file is empty")]
    Empty,
    /// The file is a proper prefix of the file in force.
    #[error("the file is cut off: it holds only the first {length} of the {whole} bytes in force")]
    Prefix {
        /// Length of the file in bytes.
        length: usize,
        /// Length of the file in force in bytes.
        whole: usize,
    },
    /// The file has no clients, but the policy in force has some.
    #[error(
        "the file has none of the {count} `clients` in force, and without them no credentials are asked"
    )]
    NoClients {
        /// Number of clients in force.
        count: usize,
    },
    /// The file has no targets, but the policy in force has some.
    #[error(
        "the file has none of the {count} `targets` in force, and without them nothing is paced"
    )]
    NoTargets {
        /// Number of targets in force.
        count: usize,
    },
}

/// Returns true for a document without content: nothing, white space, comments or `null`.
pub fn is_empty(text: &str) -> bool {
    let document = serde_yaml::from_str::<Option<serde::de::IgnoredAny>>(text);
    text.trim().is_empty() || matches!(document, Ok(None))
}

/// Compares the text of a file with the text in force. Line ends do not count.
///
/// # Errors
/// Returns [`Incomplete`] if the file is empty or a proper prefix of the text in force.
pub fn check_text(in_force: &str, text: &str) -> Result<(), Incomplete> {
    if is_empty(text) {
        return Err(Incomplete::Empty);
    }
    let (in_force, text) = (unix_lines(in_force), unix_lines(text));
    if text.len() < in_force.len() && in_force.starts_with(&text) {
        return Err(Incomplete::Prefix {
            length: text.len(),
            whole: in_force.len(),
        });
    }
    Ok(())
}

/// Replaces the line ends of Windows. A carriage return at the end belongs to a cut line end.
fn unix_lines(text: &str) -> String {
    let text = text.strip_suffix('\r').unwrap_or(text);
    text.replace("\r\n", "\n")
}

/// Compares the policy of a file with the policy in force.
///
/// # Errors
/// Returns [`Incomplete`] if the file loses all clients or all targets.
pub fn check_policy(in_force: &Policy, policy: &Policy) -> Result<(), Incomplete> {
    let lost = |before: usize, after: usize| (before > 0 && after == 0).then_some(before);
    if let Some(count) = lost(in_force.clients.len(), policy.clients.len()) {
        return Err(Incomplete::NoClients { count });
    }
    match lost(in_force.targets.len(), policy.targets.len()) {
        Some(count) => Err(Incomplete::NoTargets { count }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const WHOLE: &str = "# The proxy\nlisten: 127.0.0.1:8080\nunmatched: refuse\ntargets:\n  - name: a\n    hosts: [a.test]\n    limits: [{ rate: \"1/1s\" }]\nclients:\n  - { name: app, token: secret-secret-secret }\n";

    fn policy(text: &str) -> Policy {
        let loaded = super::super::parse(Path::new("c"), text, &|_| None, 0);
        loaded
            .unwrap_or_else(|error| panic!("{error}"))
            .config
            .policy
    }

    #[test]
    fn a_document_without_content_is_empty() {
        let bom = "\u{feff}";
        for text in [
            "",
            " \n\t\n",
            "# only\n# comments",
            "---\n",
            "---\n...\n",
            "~",
            "null\n",
            "\r\n",
            bom,
        ] {
            assert_eq!(check_text(WHOLE, text), Err(Incomplete::Empty), "{text:?}");
        }
        for text in ["{}", "listen: 127.0.0.1:1", "a: [", "\0"] {
            assert!(!is_empty(text), "{text:?}");
        }
    }

    #[test]
    fn a_file_cut_off_at_any_byte_is_refused() {
        let windows = WHOLE.replace('\n', "\r\n");
        for (in_force, whole) in [(WHOLE, WHOLE), (WHOLE, &*windows), (&*windows, WHOLE)] {
            for end in 0..whole.len() {
                let cut = whole.get(..end).unwrap();
                assert!(check_text(in_force, cut).is_err(), "{cut:?}");
            }
            assert_eq!(check_text(in_force, whole), Ok(()));
        }
        let longer = format!("{WHOLE}# more\n");
        assert_eq!(check_text(WHOLE, &longer), Ok(()));
        assert_eq!(
            check_text(WHOLE, &WHOLE.replace("secret", "others")),
            Ok(())
        );
    }

    #[test]
    fn a_file_may_not_lose_all_clients_or_all_targets() {
        let (whole, part) = WHOLE.split_once("targets:").unwrap();
        let (targets, clients) = part.split_once("clients:").unwrap();
        let whole_policy = policy(WHOLE);
        let no_clients = policy(&format!("{whole}targets:{targets}"));
        let no_targets = policy(&format!("{whole}clients:{clients}"));
        let refused = check_policy(&whole_policy, &no_clients);
        assert_eq!(refused, Err(Incomplete::NoClients { count: 1 }));
        let refused = check_policy(&whole_policy, &no_targets);
        assert_eq!(refused, Err(Incomplete::NoTargets { count: 1 }));
        assert_eq!(check_policy(&no_clients, &whole_policy), Ok(()));
        assert_eq!(check_policy(&no_targets, &no_targets), Ok(()));
        assert_eq!(check_policy(&whole_policy, &whole_policy), Ok(()));
    }
}
