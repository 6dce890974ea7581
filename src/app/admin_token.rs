//! Admin token that the process makes itself if the configuration sets none. The command line reads
//! it from the data directory.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};

use super::StartError;
use crate::bounds::TOKEN_BYTES_MIN;
use crate::config::{Config, Loaded, Settings};
use crate::files::{exposed_mode, read_private};
use crate::policy::{Operator, Policy, Role, Secret, Token};

/// Random bytes of a new token.
const BYTES: usize = 32;

/// Returns the settings and the policy of a configuration. Without `admin.token` the policy gets the token in the data
/// directory, which is made if it is missing.
///
/// # Errors
/// Returns [`StartError::AdminToken`] if the token cannot be read or written.
pub(super) fn with_admin_token(
    loaded: Loaded,
    data_dir: &Path,
) -> Result<(Settings, Policy), StartError> {
    let Config {
        settings,
        mut policy,
    } = loaded.config;
    if loaded.needs_admin_token {
        let token = Token::new(load_or_make(data_dir)?);
        policy.operators.push(Operator::new(Role::Operate, token));
    }
    Ok((settings, policy))
}

/// Returns the token with the highest role that this configuration reveals, or the one in its data
/// directory.
pub fn admin_token(loaded: &Loaded) -> Option<String> {
    let Config { settings, policy } = &loaded.config;
    let own = match loaded.needs_admin_token {
        // The call itself says that a token is missing.
        true => own_admin_token(&settings.data_dir).ok().flatten(),
        false => None,
    };
    let operators = policy.operators.iter();
    let known = operators.filter_map(|operator| Some((operator.role, operator.token.reveal()?)));
    let best = known.max_by_key(|(role, _)| *role).map(|(_, text)| text);
    own.as_ref().map(Secret::reveal).or(best).map(str::to_owned)
}

/// Returns the token in the data directory, or `None` if no process has written one.
///
/// # Errors
/// Returns [`StartError::AdminToken`] if the file cannot be read, other users can read it, or it
/// holds no token.
fn own_admin_token(data_dir: &Path) -> Result<Option<Secret>, StartError> {
    let path = path(data_dir);
    let failed = |cause: String| StartError::AdminToken {
        path: path.clone(),
        cause,
    };
    let mode = match exposed_mode(&path) {
        Ok(mode) => mode,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    if let Some(mode) = mode {
        return Err(failed(format!(
            "its mode {mode:04o} lets other users read it"
        )));
    }
    let text = read_private(&path)?;
    let text = text.trim();
    if text.len() < TOKEN_BYTES_MIN {
        return Err(failed(format!(
            "it holds {} bytes, and a token has at least {}",
            text.len(),
            TOKEN_BYTES_MIN
        )));
    }
    Ok(Some(Secret::new(text)))
}

fn load_or_make(data_dir: &Path) -> Result<Secret, StartError> {
    if let Some(token) = own_admin_token(data_dir)? {
        return Ok(token);
    }
    let failed = |cause: String| StartError::AdminToken {
        path: path(data_dir),
        cause,
    };
    let text = random_token().map_err(&failed)?;
    let text = text.reveal();
    // The file appears with its whole content and with mode 0600, also if two processes start.
    let written = tempfile::NamedTempFile::new_in(data_dir).and_then(|mut file| {
        file.write_all(format!("{text}\n").as_bytes())?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path(data_dir)) {
            Err(error) if error.error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(error.error)
            }
            _ => Ok(()),
        }
    });
    written.map_err(|error| failed(error.to_string()))?;
    let token = own_admin_token(data_dir)?;
    token.ok_or_else(|| failed("another process removes it".to_owned()))
}

/// Draws a new token, as hexadecimal digits.
///
/// # Errors
/// Returns a message if the system gives no random bytes.
pub(super) fn random_token() -> Result<Secret, String> {
    let mut bytes = [0; BYTES];
    let drawn = SystemRandom::new().fill(&mut bytes);
    drawn.map_err(|_unspecified| "the system gave no random bytes".to_owned())?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Secret::new(text))
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("admin-token")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn p10_closed_the_token_is_private_random_and_kept() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [one, other] = [0, 1].map(|index| load_or_make(dirs[index].path()).unwrap());
        assert_ne!(one, other);
        assert_eq!(one.reveal().len(), 64);
        assert_eq!(load_or_make(dirs[0].path()).unwrap(), one);
        let mode = std::fs::metadata(path(dirs[0].path()))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn a_token_file_that_is_exposed_or_empty_is_an_error_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        assert!(own_admin_token(dir.path()).unwrap().is_none());
        for (text, mode, told) in [
            ("", 0o600, "0 bytes"),
            ("short\n", 0o600, "5 bytes"),
            ("0123456789abcdef", 0o644, "mode 0644"),
        ] {
            std::fs::write(path(dir.path()), text).unwrap();
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(path(dir.path()), permissions).unwrap();
            let error = load_or_make(dir.path()).unwrap_err().to_string();
            assert!(
                error.contains(told) && error.contains("remove it"),
                "{error}"
            );
        }
    }
}
