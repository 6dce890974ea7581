//! Data directory of a configuration that names none: a directory in the user's state directory.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Environment;

/// Directory in the working directory that earlier versions used by default.
const EARLIER: &str = "./outpace-data";

/// Returns the default of `data_dir` for the configuration file at `config`. Each directory with
/// configuration files has its own, so that two projects do not share a spool.
///
/// [`EARLIER`] is used if this user has it already, because it may hold a CA and stored requests.
/// It is also used for a user without a home directory.
pub(super) fn default_data_dir(config: &Path, environment: &Environment) -> PathBuf {
    let earlier = PathBuf::from(EARLIER);
    let user = rustix::process::geteuid().as_raw();
    let known = std::fs::symlink_metadata(&earlier);
    if known.is_ok_and(|known| known.is_dir() && known.uid() == user) {
        return earlier;
    }
    match state_home(environment) {
        Some(state) => state.join("outpace").join(name(config)),
        None => earlier,
    }
}

/// Returns the directory for the state of all programs of this user (XDG Base Directory
/// Specification). A relative path in the variable is not valid.
fn state_home(environment: &Environment) -> Option<PathBuf> {
    let absolute = |name| environment(name).map(PathBuf::from);
    let absolute = |name| absolute(name).filter(|path| path.is_absolute());
    let below_home = match cfg!(target_os = "macos") {
        true => "Library/Application Support",
        false => ".local/state",
    };
    let by_home = || Some(absolute("HOME")?.join(below_home));
    absolute("XDG_STATE_HOME").or_else(by_home)
}

/// Returns the name of the directory for configuration files in the same directory as `config`: its
/// name, and a digest of its path.
fn name(config: &Path) -> String {
    let config = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    let dir = config.parent().unwrap_or(&config);
    let dir = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let digest = ring::digest::digest(&ring::digest::SHA256, dir.as_os_str().as_encoded_bytes());
    let digest = digest.as_ref().iter().take(8);
    let digest: String = digest.map(|byte| format!("{byte:02x}")).collect();
    let plain = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '-';
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name.chars().filter(plain).take(32).collect();
    format!("{name}-{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_directory_follows_the_environment() {
        let of = |variables: &[(&'static str, &'static str)], config: &str| {
            let variables = variables.to_vec();
            let get = move |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            default_data_dir(Path::new(config), &get)
        };
        let xdg = ("XDG_STATE_HOME", "/x/state");
        let home = ("HOME", "/home/me");
        let one = of(&[xdg, home], "/p/one/outpace.yaml");
        assert!(one.starts_with("/x/state/outpace"), "{}", one.display());
        assert_eq!(one, of(&[xdg], "/p/one/other.yaml"));
        assert_ne!(one, of(&[xdg], "/p/two/outpace.yaml"));
        assert_ne!(one, of(&[xdg], "/q/one/outpace.yaml"));
        for relative in ["", "state", "./state"] {
            let by_home = of(&[("XDG_STATE_HOME", relative), home], "/p/one/c.yaml");
            assert!(by_home.starts_with("/home/me"), "{}", by_home.display());
        }
        assert_eq!(of(&[], "/p/one/c.yaml"), Path::new(EARLIER));
        assert_eq!(of(&[("HOME", "me")], "/p/one/c.yaml"), Path::new(EARLIER));
    }
}
