//! Errors of the configuration, which name the problem, its position and the correct form.

use std::fmt;
use std::path::{Path, PathBuf};

use super::Incomplete;

/// Error for a configuration that was not applied, with all problems that were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    path: PathBuf,
    problems: Vec<Violation>,
}

/// One problem in a configuration, with its position and its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Line and column in the document, if the parser reports them.
    pub place: Option<(usize, usize)>,
    /// Path inside the document, such as `targets[0].limits[1].rate`. Empty for the whole document.
    pub key: String,
    /// Message that names the problem and the correct form.
    pub text: String,
}

impl ConfigError {
    pub(super) fn unreadable(path: &Path, cause: &std::io::Error) -> Self {
        Self::one(path, None, "", format!("the file cannot be read: {cause}"))
    }

    pub(super) fn empty(path: &Path) -> Self {
        let text =
            "the file is empty; write at least one key, or `{}` for the default of every key";
        Self::one(path, None, "", text.to_owned())
    }

    /// Creates the error for a file that is written to all the time.
    pub fn changing(path: &Path) -> Self {
        let text = "the file keeps changing; reload again when it is complete";
        Self::one(path, None, "", text.to_owned())
    }

    /// Creates the error for a path that names something else than a file, such as a pipe.
    pub fn irregular(path: &Path) -> Self {
        let text = "it is not a regular file, so it cannot be read again; use a file";
        Self::one(path, None, "", text.to_owned())
    }

    /// Creates the error for a file of which something else cannot be used.
    pub fn unusable(path: &Path, cause: &dyn fmt::Display) -> Self {
        Self::one(path, None, "", cause.to_string())
    }

    /// Creates the error for a file that seems incomplete, with the two remedies.
    pub fn incomplete(path: &Path, found: &Incomplete) -> Self {
        let remedy = "write the whole file, or take this one with `outpace reload --force`";
        Self::one(path, None, "", format!("{found}; {remedy}"))
    }

    /// Creates the error for targets with hosts for which the CA in use may not sign.
    pub fn outside_ca(path: &Path, found: &[String]) -> Self {
        let one = |text: &String| Violation {
            place: None,
            key: "targets".to_owned(),
            text: text.clone(),
        };
        Self::rules(path, found.iter().map(one).collect())
    }

    /// Converts an error in the syntax or a type. The parser's message is split into position, key
    /// and text.
    pub(super) fn syntax(path: &Path, error: &serde_yaml::Error) -> Self {
        let place = error.location().map(|at| (at.line(), at.column()));
        let full = error.to_string();
        let mut text = full.as_str();
        if let Some((line, column)) = place {
            text = text.trim_end_matches(&format!(" at line {line} column {column}"));
        }
        let (key, text) = match text.split_once(": ") {
            Some((key, rest)) if is_key(key) => (key, rest),
            _ => ("", text),
        };
        Self::one(path, place, key, with_suggestion(text))
    }

    pub(super) fn rules(path: &Path, problems: Vec<Violation>) -> Self {
        let path = path.to_owned();
        Self { path, problems }
    }

    /// Creates the error for a wrong choice of client on the command line.
    pub fn about_client(text: String) -> Self {
        Self::one(Path::new("clients"), None, "", text)
    }

    /// Creates the error for an environment variable that cannot be used.
    pub fn about_environment(text: String) -> Self {
        Self::one(Path::new("environment"), None, "", text)
    }

    fn one(path: &Path, place: Option<(usize, usize)>, key: &str, text: String) -> Self {
        let key = key.to_owned();
        let problem = Violation { place, key, text };
        Self::rules(path, vec![problem])
    }

    /// Returns the problems in the order in which they were found.
    pub fn problems(&self) -> &[Violation] {
        &self.problems
    }
}

fn is_key(text: &str) -> bool {
    let of_key = |c: char| c.is_ascii_alphanumeric() || "._[]-?".contains(c);
    !text.is_empty() && text.chars().all(of_key)
}

/// Replaces "unknown field" with a message that suggests the nearest known key, or lists all keys.
fn with_suggestion(text: &str) -> String {
    let Some(rest) = text.strip_prefix("unknown field `") else {
        return text.to_owned();
    };
    let mut quoted = rest.split('`').step_by(2);
    let unknown = quoted.next().unwrap_or_default();
    let known = quoted.map(|name| (strsim::damerau_levenshtein(unknown, name), name));
    if let Some((_, name)) = known.filter(|(distance, _)| *distance <= 2).min() {
        return format!("there is no key `{unknown}`; did you mean `{name}`?");
    }
    let (_, known) = rest.split_once(", expected ").unwrap_or_default();
    let known = known.trim_start_matches("one of ");
    format!("there is no key `{unknown}`; the keys here are {known}")
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:", self.path.display())?;
            if let Some((line, column)) = problem.place {
                write!(f, "{line}:{column}:")?;
            }
            if !problem.key.is_empty() {
                write!(f, " {}:", problem.key)?;
            }
            write!(f, " {}", problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
