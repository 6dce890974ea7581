//! `outpace ca`: prints the paths, the subject, the fingerprint and the expiry date of the CA.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure, print};
use crate::app::Trust;

#[derive(Debug, Args)]
pub(super) struct CaArgs {
    /// Path of the configuration file (without this option, built-in defaults apply)
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: &CaArgs) -> Result<Exit, Failure> {
    let trust = Trust::load(args.config.as_deref())?;
    let about = trust.ca.describe();
    Ok(print(&format!(
        "certificate  {}\nkey          {}\nbundle       {}\nsubject      {}\nsha256       {}\nvalid until  {}\n",
        trust.cert.display(),
        trust.key.display(),
        trust.bundle.display(),
        about.subject,
        about.fingerprint,
        humantime::format_rfc3339_seconds(about.not_after),
    )))
}
