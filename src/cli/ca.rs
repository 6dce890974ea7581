//! `outpace ca`: prints the paths, the subject, the fingerprint and the expiry date of the CA.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Exit, print, print_error};
use crate::app::{StartError, Trust};

#[derive(Debug, Args)]
pub(super) struct CaArgs {
    /// Path of the configuration file (without this option, built-in defaults apply)
    #[arg(long, short, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

pub(super) fn run(args: &CaArgs) -> Exit {
    match describe(args.config.as_deref()) {
        Ok(text) => {
            print(&text);
            Exit::Ok
        }
        Err(error) => {
            print_error(&error.to_string());
            Exit::from(&error)
        }
    }
}

fn describe(config: Option<&Path>) -> Result<String, StartError> {
    let trust = Trust::load(config)?;
    let about = trust.ca.describe();
    Ok(format!(
        "certificate  {}\nkey          {}\nbundle       {}\nsubject      {}\nsha256       {}\nvalid until  {}\n",
        trust.cert.display(),
        trust.key.display(),
        trust.bundle.display(),
        about.subject,
        about.fingerprint,
        humantime::format_rfc3339_seconds(about.not_after),
    ))
}
