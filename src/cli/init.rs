//! `outpace init`: writes a first configuration file for one host and one rate.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::client::HERE;
use super::{Exit, Failure, print};
use crate::config;
use crate::policy::HostPattern;
use crate::units::Rate;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpace init --host api.github.com --rate 5000/1h\n  outpace run curl https://api.github.com/zen"
)]
pub(super) struct InitArgs {
    /// Host of the API, such as api.github.com, "*.example.com" or api.example.com:8443
    #[arg(long, value_name = "HOST")]
    host: HostPattern,
    /// Rate that the API allows, such as "5000/1h" or "500/1m"
    #[arg(long, value_name = "RATE")]
    rate: Rate,
    /// Number of requests that may leave at once after a pause (default: 1 % of the rate's number, at least 1)
    #[arg(long, value_name = "N")]
    burst: Option<u32>,
    /// Name of the target in logs and messages (default: the host, with dashes)
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// File to write, which must not exist
    #[arg(long, short, value_name = "FILE", default_value = HERE)]
    config: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &InitArgs) -> Result<Exit, Failure> {
    let text = document(args);
    // The file is valid before it is written, or the message names the wrong argument's key.
    config::parse(&args.config, &text, &|_| None, 0).map_err(|error| {
        Failure(
            Exit::USAGE,
            format!("the arguments make no valid file:\n{error}"),
        )
    })?;
    write(&args.config, &text, args.force)?;
    let path = args.config.display();
    let config = match args.config == Path::new(HERE) {
        true => String::new(),
        false => format!(" -c {path}"),
    };
    Ok(print(&format!(
        "wrote {path}\n\
         next: `outpace check{config}` prints what it comes to, and `outpace run{config} COMMAND` paces a command\n"
    )))
}

fn document(args: &InitArgs) -> String {
    let host = args.host.to_string();
    let name = args.name.clone().unwrap_or_else(|| name_of(&host));
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let burst = args
        .burst
        .map_or_else(String::new, |burst| format!(", burst: {burst}"));
    format!(
        "# Configuration of outpace. `outpace check` prints what it comes to, and config.example.yaml in\n\
         # the repository explains every key.\n\
         targets:\n  - name: {}\n    hosts: [{}]\n    limits: [{{ name: requests, rate: {}{burst} }}]\n    \
         # A request that would wait longer is refused with 429 at once. Keep it below the timeouts of\n    \
         # your clients.\n    max_wait: 60s\n",
        quoted(&name),
        quoted(&host),
        quoted(&args.rate.to_string()),
    )
}

/// Returns a target name for a host: its letters and digits, with single dashes between them.
fn name_of(host: &str) -> String {
    let words = host.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    match words.is_empty() {
        true => "any".to_owned(),
        false => words.join("-").chars().take(64).collect(),
    }
}

fn write(path: &Path, text: &str, force: bool) -> Result<(), Failure> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let made = match force {
        true => options.open(path),
        false => options.create_new(true).open(path),
    };
    let written = made.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| {
        let path = path.display();
        match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                let text = format!("{path} exists; add the target there, set `--config FILE` for another, or replace it with --force");
                Failure(Exit::USAGE, text)
            }
            _ => Failure(Exit::DATA_DIR, format!("{path} cannot be written: {error}; set `--config FILE`")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_targets_come_from_hosts() {
        for (host, name) in [
            ("api.github.com", "api-github-com"),
            ("*.example.com:8443", "example-com-8443"),
            ("[::1]:80", "1-80"),
            ("*", "any"),
        ] {
            assert_eq!(name_of(host), name);
        }
    }
}
